//! raft-engine: a raft group for each thread, an entry for each event.

use ::raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};
use protobuf::well_known_types::BytesValue;

use super::{Contender, Peer, Session, Setup, Visit};
use crate::Failure;
use crate::payload::number_of;

pub(super) const PEER: Peer = Peer {
    name: "raft-engine",
    package: "raft-engine",
    buffered: true,
    pipelined: false,
    open,
    read_back,
};

/// Entries that are read at a time.
const READ_ENTRIES: u64 = 1024;

/// An entry has to know its index; a payload knows its number in its thread.
struct Entries;

impl MessageExt for Entries {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        number_of(&entry.value)
    }
}

fn engine(setup: &Setup) -> Result<Engine, Failure> {
    let config = Config {
        dir: setup.dir.to_str().ok_or("the directory is no UTF-8")?.to_owned(),
        // Nobody else compresses, and the payloads would not get smaller.
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    };
    Ok(Engine::open(config)?)
}

fn open(setup: &Setup) -> Result<Box<dyn Contender>, Failure> {
    Ok(Box::new(Open { engine: engine(setup)?, sync: setup.durable }))
}

fn group(thread: usize) -> u64 {
    thread as u64 + 1
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let engine = engine(setup)?;
    let mut entries = Vec::new();
    for group in (0..setup.threads).map(group) {
        let Some(last) = engine.last_index(group) else { continue };
        let mut next = engine.first_index(group).ok_or("a group has a last and no first entry")?;
        while next <= last {
            let end = (next + READ_ENTRIES).min(last + 1);
            engine.fetch_entries_to::<Entries>(group, next, end, None, &mut entries)?;
            entries.drain(..).try_for_each(|entry| visit(&entry.value))?;
            next = end;
        }
    }
    Ok(())
}

struct Open {
    engine: Engine,
    sync: bool,
}

impl Contender for Open {
    fn session(&self, thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        let (batch, entries) = (LogBatch::default(), Vec::new());
        Ok(Box::new(Thread { open: self, group: group(thread), batch, entries }))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.engine.sync()?)
    }
}

struct Thread<'a> {
    open: &'a Open,
    group: u64,
    /// Empty after every write; kept for its memory, as are the entries.
    batch: LogBatch,
    entries: Vec<BytesValue>,
}

impl Session for Thread<'_> {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.entries.resize_with(batch.len(), BytesValue::new);
        for (entry, payload) in self.entries.iter_mut().zip(batch) {
            entry.value.clear();
            entry.value.extend_from_slice(payload);
        }
        self.batch.add_entries::<Entries>(self.group, &self.entries)?;
        let written = self.open.engine.write(&mut self.batch, self.open.sync);
        if written.is_err() {
            // Its entries are still in it.
            self.batch = LogBatch::default();
        }
        written?;
        Ok(())
    }
}
