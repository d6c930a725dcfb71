//! The keepers: slow work on the side, so that no stage waits for it.
//!
//! One thread prepares the next segment while this one is written, another writes checkpoints: two,
//! since a segment must not wait for a checkpoint.

use std::io;

use thalweg_wal::storage::MappedFile;
use thalweg_wal::{Segment, Spare, SpareRequest};

use crate::derived::checkpoint::Snapshot;
use crate::error::{Cause, ReadError};
use crate::pipeline::core::Core;
use crate::sync::mpmc::{Receiver, Sender};
use crate::sync::{Arc, Ordering, Promise};

/// Prepares segments until nobody is left to ask for one.
pub(crate) fn prepare(
    core: &Core,
    requests: &Receiver<SpareRequest>,
    spares: &Sender<Option<Spare>>,
) {
    for request in requests {
        // A disk that is full now may not be when the segment is needed; the writer will then try
        // itself, and say so if there is no room. Nobody needs a segment when the store closes.
        let spare = request.prepare(&*core.storage, &|| !core.is_stopping()).ok();
        let _ = spares.send(spare);
    }
}

/// Work for the keeper of checkpoints.
#[derive(Debug)]
pub(crate) enum CheckpointTask {
    /// Sync chunks that are full, so that the next checkpoint finds them synced.
    Sync(Vec<Arc<MappedFile>>),
    /// Write a checkpoint, after the chunks that it counts are durable.
    Write {
        snapshot: Snapshot,
        /// A segment of the log that has to be synced first.
        log: Option<Arc<Segment>>,
        chunks: Vec<Arc<MappedFile>>,
        promise: Option<Promise<Result<(), ReadError>>>,
    },
}

/// Writes checkpoints until nobody is left to ask for one.
pub(crate) fn checkpoint(core: &Core, tasks: &Receiver<CheckpointTask>) {
    // The first failure of a sync. It is never tried again: one that then succeeds would prove
    // nothing, so there are no more checkpoints, and the next opening makes the order again.
    let mut failed: Option<Arc<io::Error>> = None;
    for task in tasks {
        match task {
            CheckpointTask::Sync(chunks) => {
                failed = failed.or_else(|| sync_all(&chunks).err().map(Arc::new));
            }
            CheckpointTask::Write { snapshot, log, chunks, promise } => {
                if let Some(Err(error)) = log.map(|segment| segment.sync()) {
                    // Whoever meets it: a failed sync of the log is final.
                    let error = Arc::new(error);
                    core.fail(Cause::Log(Arc::clone(&error)));
                    failed = Some(error);
                }
                failed = failed.or_else(|| sync_all(&chunks).err().map(Arc::new));
                let written = match &failed {
                    Some(error) => Err(Arc::clone(error)),
                    None => snapshot.write(&*core.storage).map_err(Arc::new),
                };
                match &written {
                    Ok(()) => core.checkpointed.set(snapshot.ordered),
                    // It costs time at the next opening, and nothing else.
                    Err(error) => drop(core.checkpoint_error.set(error.to_string())),
                }
                core.checkpoints_under_way.fetch_sub(1, Ordering::Relaxed);
                if let Some(promise) = promise {
                    promise.complete(written.map_err(ReadError::Io));
                }
            }
        }
    }
}

fn sync_all(chunks: &[Arc<MappedFile>]) -> io::Result<()> {
    chunks.iter().try_for_each(|chunk| chunk.sync())
}
