//! SQLite: one table, one connection behind a lock, one transaction for each batch.

use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, TransactionBehavior};

use super::{Contender, Peer, Session, Setup, Visit};
use crate::Failure;

pub(super) const PEER: Peer = Peer {
    name: "sqlite",
    package: "rusqlite",
    buffered: true,
    pipelined: false,
    open: |setup| Ok(Box::new(Open(Mutex::new(connection(setup)?)))),
    read_back,
};

fn connection(setup: &Setup) -> Result<Connection, Failure> {
    let connection = Connection::open(setup.dir.join("events.sqlite"))?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(format!("the journal is in mode {mode}").into());
    }
    let synchronous = if setup.durable { "FULL" } else { "OFF" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.execute(
        "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY, payload BLOB NOT NULL)",
        [],
    )?;
    Ok(connection)
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let connection = connection(setup)?;
    let mut select = connection.prepare("SELECT payload FROM events ORDER BY sequence")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        visit(row.get_ref(0)?.as_blob()?)?;
    }
    Ok(())
}

/// SQLite lets one connection write at a time. Others that try sleep and poll; a lock wakes them.
struct Open(Mutex<Connection>);

impl Contender for Open {
    fn session(&self, _thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        Ok(Box::new(Thread(&self.0)))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        let connection = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        connection.close().map_err(|(_, error)| error.into())
    }
}

struct Thread<'a>(&'a Mutex<Connection>);

impl Session for Thread<'_> {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        let mut connection = self.0.lock().map_err(|_| "another thread has panicked")?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO events (payload) VALUES (?1)")?;
            for payload in batch {
                insert.execute([payload])?;
            }
        }
        Ok(transaction.commit()?)
    }
}
