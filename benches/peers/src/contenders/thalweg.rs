//! Thalweg: events without ids or parents of their own, chained on the tips of their stream.

use std::collections::VecDeque;

use ::thalweg::{Appender, Batch, Durability, Event, Options, Store, Ticket};

use super::{Contender, Peer, Session, Setup, Visit};
use crate::Failure;

pub(super) const PEER: Peer = Peer {
    name: "thalweg",
    package: "thalweg",
    buffered: true,
    pipelined: true,
    open: |setup| Ok(Box::new(Open { store: open(setup)?, streams: setup.streams })),
    read_back,
};

struct Open {
    store: Store,
    streams: usize,
}

fn open(setup: &Setup) -> Result<Store, Failure> {
    let durability = if setup.durable { Durability::Sync } else { Durability::Buffered };
    Ok(Options::new().durability(durability).open(&setup.dir)?)
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let store = open(setup)?;
    store.wait_committed(store.durable_end())?;
    for event in store.read(..)? {
        visit(event?.payload())?;
    }
    let held = store.stats().held;
    if held > 0 {
        return Err(format!("{held} events are held").into());
    }
    Ok(store.close()?)
}

impl Contender for Open {
    fn session(&self, thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        let appender = self.store.appender(format!("stream-{}", thread % self.streams))?;
        Ok(Box::new(Thread { appender, under_way: VecDeque::new() }))
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(self.store.wait_committed(self.store.durable_end())?)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.store.close()?)
    }
}

struct Thread {
    appender: Appender,
    under_way: VecDeque<Ticket>,
}

fn batch_of(payloads: &[Vec<u8>]) -> Batch {
    payloads.iter().map(|payload| Event::new(payload.as_slice())).collect()
}

impl Session for Thread {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.appender.submit(batch_of(batch))?.wait()?;
        Ok(())
    }

    fn submit(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.under_way.push_back(self.appender.submit(batch_of(batch))?);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Failure> {
        self.under_way.pop_front().ok_or("nothing is under way")?.wait()?;
        Ok(())
    }
}
