//! walrus: a topic for each thread, since a topic refuses two batches at a time.
//!
//! Its directory is in the environment, where the process that starts this one has put it.

use ::walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use super::{Contender, Peer, Session, Setup, Visit};
use crate::Failure;

pub(super) const PEER: Peer = Peer {
    name: "walrus",
    package: "walrus-rust",
    buffered: true,
    pipelined: false,
    open: |setup| Ok(Box::new(Open(walrus(setup)?))),
    read_back,
};

/// Bytes that are read at a time.
const READ_BYTES: usize = 4 << 20;

fn walrus(setup: &Setup) -> Result<Walrus, Failure> {
    let schedule = if setup.durable { FsyncSchedule::SyncEach } else { FsyncSchedule::NoFsync };
    // Readers keep their place in a file; they are to do so rarely.
    let reading = ReadConsistency::AtLeastOnce { persist_every: u32::MAX };
    Ok(Walrus::with_consistency_and_schedule(reading, schedule)?)
}

fn topic(thread: usize) -> String {
    format!("thread-{thread}")
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let walrus = walrus(setup)?;
    for thread in 0..setup.threads {
        loop {
            let entries = walrus.batch_read_for_topic(&topic(thread), READ_BYTES, true)?;
            if entries.is_empty() {
                break;
            }
            entries.iter().try_for_each(|entry| visit(&entry.data))?;
        }
    }
    Ok(())
}

struct Open(Walrus);

impl Contender for Open {
    fn session(&self, thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        Ok(Box::new(Thread { walrus: &self.0, topic: topic(thread) }))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        // There is no closing; what is written is with the kernel.
        Ok(())
    }
}

struct Thread<'a> {
    walrus: &'a Walrus,
    topic: String,
}

impl Session for Thread<'_> {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        if let [payload] = batch {
            return Ok(self.walrus.append_for_topic(&self.topic, payload)?);
        }
        let payloads: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        Ok(self.walrus.batch_append_for_topic(&self.topic, &payloads)?)
    }
}
