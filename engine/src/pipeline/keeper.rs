//! The keepers: slow work on the side, so that no stage waits for it.
//!
//! One prepares the next segment while this one is written, the other writes checkpoints. They are
//! two threads with one body, since a segment must not wait for a checkpoint.

use crossbeam::channel::{Receiver, Sender};
use thalweg_wal::storage::MappedFile;
use thalweg_wal::{Spare, SpareRequest};

use crate::derived::checkpoint::Snapshot;
use crate::pipeline::core::Core;
use crate::sync::{Arc, Promise};

/// Work for a keeper.
#[derive(Debug)]
pub(crate) enum KeeperTask {
    /// Prepare a segment.
    Spare(SpareRequest),
    /// Write a checkpoint, after the chunks that it counts are durable.
    Checkpoint { snapshot: Snapshot, chunks: Vec<Arc<MappedFile>>, promise: Option<Promise<()>> },
}

/// Works until nobody is left to ask for anything.
pub(crate) fn run(core: &Core, tasks: &Receiver<KeeperTask>, spares: &Sender<Option<Spare>>) {
    // Chunks stay here until a checkpoint that counts them is written.
    let mut unsynced: Vec<Arc<MappedFile>> = Vec::new();
    for task in tasks {
        match task {
            KeeperTask::Spare(request) => {
                // A disk that is full now may not be when the segment is needed; the writer will
                // then try itself, and say so if there is no room.
                let spare = request.prepare(&*core.storage).ok();
                let _ = spares.send(spare);
            }
            KeeperTask::Checkpoint { snapshot, chunks, promise } => {
                unsynced.extend(chunks);
                let written = unsynced
                    .iter()
                    .try_for_each(|chunk| chunk.sync())
                    .and_then(|()| snapshot.write(&*core.storage));
                // A checkpoint that cannot be written costs time at the next opening, and nothing
                // else; the next one tries again.
                if written.is_ok() {
                    unsynced.clear();
                    core.checkpointed.set(snapshot.ordered);
                    if let Some(promise) = promise {
                        promise.complete(());
                    }
                }
            }
        }
    }
}
