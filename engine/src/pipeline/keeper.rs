//! The keepers: slow work on the side, so that no stage waits for it.
//!
//! One prepares the next segment while this one is written, the other writes checkpoints. They are
//! two threads with one body, since a segment must not wait for a checkpoint.

use crossbeam::channel::{Receiver, Sender};
use thalweg_wal::storage::MappedFile;
use thalweg_wal::{Segment, Spare, SpareRequest};

use crate::derived::checkpoint::Snapshot;
use crate::error::Cause;
use crate::pipeline::core::Core;
use crate::sync::{Arc, Promise};

/// Work for a keeper.
#[derive(Debug)]
pub(crate) enum KeeperTask {
    /// Prepare a segment.
    Spare(SpareRequest),
    /// Sync chunks that are full, so that the next checkpoint finds them synced.
    Sync(Vec<Arc<MappedFile>>),
    /// Write a checkpoint, after the chunks that it counts are durable.
    Checkpoint {
        snapshot: Snapshot,
        /// A segment of the log that has to be synced first.
        log: Option<Arc<Segment>>,
        chunks: Vec<Arc<MappedFile>>,
        promise: Option<Promise<()>>,
    },
}

/// Works until nobody is left to ask for anything.
pub(crate) fn run(core: &Core, tasks: &Receiver<KeeperTask>, spares: &Sender<Option<Spare>>) {
    // Whether everything that a checkpoint could count has been synced. A sync that fails is never
    // tried again: one that then succeeds would prove nothing.
    let mut synced = true;
    for task in tasks {
        match task {
            KeeperTask::Spare(request) => {
                // A disk that is full now may not be when the segment is needed; the writer will
                // then try itself, and say so if there is no room.
                let spare = request.prepare(&*core.storage).ok();
                let _ = spares.send(spare);
            }
            KeeperTask::Sync(chunks) => synced = synced && sync_all(&chunks),
            KeeperTask::Checkpoint { snapshot, log, chunks, promise } => {
                if let Some(Err(error)) = log.map(|segment| segment.sync()) {
                    // Whoever meets it: a failed sync of the log is final.
                    core.fail(Cause::Log(Arc::new(error)));
                    synced = false;
                }
                synced = synced && sync_all(&chunks);
                // A checkpoint that cannot be written costs time at the next opening, and nothing
                // else; whoever asked for it sees the promise broken.
                if synced && snapshot.write(&*core.storage).is_ok() {
                    core.checkpointed.set(snapshot.ordered);
                    if let Some(promise) = promise {
                        promise.complete(());
                    }
                }
            }
        }
    }
}

fn sync_all(chunks: &[Arc<MappedFile>]) -> bool {
    chunks.iter().all(|chunk| chunk.sync().is_ok())
}
