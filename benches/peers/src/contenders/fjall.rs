//! fjall: one keyspace from a sequence to the payload, one write batch for each batch.

use std::sync::atomic::{AtomicU64, Ordering};

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Contender, Peer, Session, Setup, Visit};
use crate::Failure;

pub(super) const PEER: Peer =
    Peer { name: "fjall", package: "fjall", buffered: true, pipelined: false, open, read_back };

fn database(setup: &Setup) -> Result<(Database, Keyspace), Failure> {
    let database = Database::builder(&setup.dir).open()?;
    let events = database.keyspace("events", KeyspaceCreateOptions::default)?;
    Ok((database, events))
}

fn open(setup: &Setup) -> Result<Box<dyn Contender>, Failure> {
    let (database, events) = database(setup)?;
    let mode = if setup.durable { PersistMode::SyncData } else { PersistMode::Buffer };
    let last = events.last_key_value().map(|last| last.key()).transpose()?;
    let next = match last {
        Some(key) => u64::from_be_bytes((*key).try_into()?) + 1,
        None => 0,
    };
    Ok(Box::new(Open { database, events, mode, next: AtomicU64::new(next) }))
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let (_database, events) = database(setup)?;
    for event in events.iter() {
        visit(&event.value()?)?;
    }
    Ok(())
}

struct Open {
    database: Database,
    events: Keyspace,
    mode: PersistMode,
    /// Sequence of the next event. A batch takes its sequences before it is committed, so that a
    /// reader can meet a later sequence first; fjall has no counter inside its transactions.
    next: AtomicU64,
}

impl Contender for Open {
    fn session(&self, _thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        Ok(Box::new(Thread(self)))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}

struct Thread<'a>(&'a Open);

impl Session for Thread<'_> {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        let Open { database, events, mode, next } = self.0;
        let mut writes = database.batch().durability(Some(*mode));
        // Relaxed: the sequences only have to differ.
        let first = next.fetch_add(batch.len() as u64, Ordering::Relaxed);
        for (sequence, payload) in (first..).zip(batch) {
            writes.insert(events, sequence.to_be_bytes(), payload.as_slice());
        }
        Ok(writes.commit()?)
    }
}
