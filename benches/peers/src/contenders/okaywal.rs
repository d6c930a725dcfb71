//! okaywal: a batch is an entry, an event a chunk of it. Every commit is synced.
//!
//! Its segment is filled with zeros on opening, for all that the cell may write, and never
//! checkpointed: what is checkpointed is gone.

use std::sync::mpsc::{SyncSender, sync_channel};

use ::okaywal::{Configuration, Entry, EntryId, LogManager, SegmentReader, WriteAheadLog};

use super::{Contender, Peer, Session, Setup, Visit};
use crate::Failure;

pub(super) const PEER: Peer = Peer {
    name: "okaywal",
    package: "okaywal",
    buffered: false,
    pipelined: false,
    open: |setup| Ok(Box::new(Open(configuration(setup)?.open(Keep(None))?))),
    read_back,
};

fn configuration(setup: &Setup) -> Result<Configuration, Failure> {
    let bytes = u32::try_from(setup.byte_max + setup.byte_max / 4)
        .map_err(|_| "okaywal's segments are shorter than 4 GiB: take fewer --bytes")?;
    let configuration = Configuration::default_for(&setup.dir).preallocate_bytes(bytes);
    Ok(configuration.checkpoint_after_bytes(u64::MAX))
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let (sender, chunks) = sync_channel(1024);
    let configuration = configuration(setup)?;
    std::thread::scope(|scope| {
        let opening = scope.spawn(move || configuration.open(Keep(Some(sender)))?.shutdown());
        // The opening ends when nobody takes what it has found, so the receiver goes first.
        let visited = chunks.into_iter().try_for_each(|chunk| visit(&chunk));
        opening.join().map_err(|_| "opening has panicked")??;
        visited
    })
}

/// Keeps every segment, and shows what is recovered to whoever listens.
#[derive(Debug)]
struct Keep(Option<SyncSender<Vec<u8>>>);

impl LogManager for Keep {
    fn recover(&mut self, entry: &mut Entry<'_>) -> std::io::Result<()> {
        for chunk in entry.read_all_chunks()?.unwrap_or_default() {
            if let Some(sender) = &self.0 {
                sender.send(chunk).map_err(std::io::Error::other)?;
            }
        }
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _last_checkpointed_id: EntryId,
        _checkpointed_entries: &mut SegmentReader,
        _wal: &WriteAheadLog,
    ) -> std::io::Result<()> {
        Err(std::io::Error::other("a segment was checkpointed, and its events with it"))
    }
}

struct Open(WriteAheadLog);

impl Contender for Open {
    fn session(&self, _thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        Ok(Box::new(Thread(&self.0)))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.0.shutdown()?)
    }
}

struct Thread<'a>(&'a WriteAheadLog);

impl Session for Thread<'_> {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        let mut entry = self.0.begin_entry()?;
        for payload in batch {
            entry.write_chunk(payload)?;
        }
        entry.commit()?;
        Ok(())
    }
}
