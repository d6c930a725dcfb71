//! redb: one table from a sequence to the payload, one write transaction for each batch.

use ::redb::{Database, Durability, ReadableTable, TableDefinition};

use super::{Contender, Peer, Session, Setup, Visit};
use crate::Failure;

pub(super) const PEER: Peer =
    Peer { name: "redb", package: "redb", buffered: true, pipelined: false, open, read_back };

const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");

fn database(setup: &Setup) -> Result<Database, Failure> {
    Ok(Database::create(setup.dir.join("events.redb"))?)
}

fn open(setup: &Setup) -> Result<Box<dyn Contender>, Failure> {
    let durability = if setup.durable { Durability::Immediate } else { Durability::None };
    let open = Open { database: database(setup)?, durability };
    open.append(Durability::Immediate, &[])?;
    Ok(Box::new(open))
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    use ::redb::ReadableDatabase;
    let database = database(setup)?;
    let events = database.begin_read()?.open_table(EVENTS)?;
    for event in events.iter()? {
        visit(event?.1.value())?;
    }
    Ok(())
}

struct Open {
    database: Database,
    durability: Durability,
}

impl Open {
    fn append(&self, durability: Durability, batch: &[Vec<u8>]) -> Result<(), Failure> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(durability)?;
        {
            let mut events = transaction.open_table(EVENTS)?;
            let next = events.last()?.map_or(0, |(last, _)| last.value() + 1);
            for (sequence, payload) in (next..).zip(batch) {
                events.insert(sequence, payload.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Contender for Open {
    fn session(&self, _thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        Ok(Box::new(Thread(self)))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        // What was committed without durability is kept by the next durable commit, and not before.
        self.append(Durability::Immediate, &[])
    }
}

struct Thread<'a>(&'a Open);

impl Session for Thread<'_> {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.0.append(self.0.durability, batch)
    }
}
