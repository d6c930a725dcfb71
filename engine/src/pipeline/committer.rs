//! The committer: the one thread that writes the order.
//!
//! It appends each ordered window to the order log, makes it visible, and completes the tickets
//! that waited for it. Nothing here is synced: the order is a function of a log that is durable
//! already, so what a reader has seen can never change, whatever is lost of the derived files.

use std::collections::VecDeque;

use crossbeam::channel::{Receiver, Sender, never, select};
use thalweg_wal::Segment;

use crate::derived::checkpoint::Snapshot;
use crate::derived::chunks::ChunkWriter;
use crate::derived::order_log::{self, NONE};
use crate::error::{Cause, ReadError};
use crate::event::{Placement, Receipt};
use crate::order::keys::partition_of;
use crate::order::known::Table;
use crate::order::partition::HeadUpdate;
use crate::order::window::Ordered;
use crate::pipeline::core::Core;
use crate::pipeline::keeper::CheckpointTask;
use crate::pipeline::permits::Permit;
use crate::pipeline::queue::Outcome;
use crate::sync::{Arc, Ordering, Promise};

/// What reaches the committer, in order.
#[derive(Debug)]
pub(crate) enum Commit {
    /// The next window.
    Window {
        ordered: Arc<Ordered>,
        /// Positions of the window's records, if somebody waits for their placements.
        positions: Option<Vec<u64>>,
        /// Where the log goes on after the window.
        to: u64,
    },
    /// The state after the windows so far.
    Checkpoint {
        snapshot: Snapshot,
        /// A segment that has to be synced before the checkpoint is written.
        log: Option<Arc<Segment>>,
        promise: Option<Promise<Result<(), ReadError>>>,
    },
}

/// An append that is durable and waits for its order.
#[derive(Debug)]
pub(crate) struct Awaiting {
    pub(crate) receipt: Receipt,
    pub(crate) event_count: usize,
    pub(crate) promise: Promise<Outcome>,
    pub(crate) _permit: Permit,
}

impl Awaiting {
    /// What is durable is appended, even if the order has not got to it.
    pub(crate) fn complete_undecided(self) {
        let Awaiting { mut receipt, event_count, promise, _permit } = self;
        receipt.placements.resize(event_count, Placement::Undecided);
        promise.complete(Ok(receipt));
    }
}

/// The committer's state.
#[derive(Debug)]
pub(crate) struct Committer {
    pub(crate) core: Arc<Core>,
    pub(crate) order: ChunkWriter,
    pub(crate) tips: ChunkWriter,
    /// Newest delivery of each stream, by partition.
    pub(crate) heads: Vec<Table>,
    pub(crate) commits: Receiver<Commit>,
    pub(crate) awaiting: Receiver<Awaiting>,
    pub(crate) keeper: Sender<CheckpointTask>,
}

impl Committer {
    /// Runs until orderer and writer have ended.
    pub(crate) fn run(&mut self) {
        let mut waiting = VecDeque::new();
        while let Ok(commit) = self.commits.recv() {
            match commit {
                Commit::Window { ordered, positions, to } => {
                    if let Err(error) = self.commit(&ordered, to) {
                        self.core.fail(Cause::Derived(Arc::new(error)));
                        break;
                    }
                    waiting.extend(self.awaiting.try_iter());
                    self.complete(&mut waiting, &ordered, positions.as_deref(), to);
                }
                Commit::Checkpoint { snapshot, log, promise } => {
                    let mut chunks = self.order.take_unsynced();
                    chunks.extend(self.tips.take_unsynced());
                    let task = CheckpointTask::Write { snapshot, log, chunks, promise };
                    // A keeper that is gone has ended with the store.
                    let _ = self.keeper.send(task);
                }
            }
        }
        waiting.into_iter().for_each(Awaiting::complete_undecided);
        self.drain();
    }

    /// Appends that are durable go on coming until the writer ends. After a failure, windows and
    /// checkpoints may come too, and waiting for a checkpoint ends when its promise is dropped.
    fn drain(&mut self) {
        let (mut commits_open, mut awaiting_open) = (true, true);
        while commits_open || awaiting_open {
            select! {
                recv(self.commits) -> commit => if commit.is_err() {
                    commits_open = false;
                    self.commits = never();
                },
                recv(self.awaiting) -> awaiting => match awaiting {
                    Ok(awaiting) => awaiting.complete_undecided(),
                    Err(_) => {
                        awaiting_open = false;
                        self.awaiting = never();
                    }
                },
            }
        }
    }

    fn commit(&mut self, ordered: &Ordered, to: u64) -> std::io::Result<()> {
        debug_assert_eq!(ordered.first.global, self.order.count());
        debug_assert_eq!(ordered.first.tips, self.tips.count());
        let mut bytes = Vec::new();
        for (index, tip) in (ordered.first.tips..).zip(&ordered.tips) {
            order_log::encode_tip(index, *tip, &mut bytes);
        }
        self.tips.append(&bytes)?;
        bytes.clear();
        for (global, entry) in (ordered.first.global..).zip(&ordered.entries) {
            entry.encode(global, &mut bytes);
        }
        self.order.append(&bytes)?;
        ordered.heads.iter().for_each(|update| self.update_head(update));
        self.core.delivered.publish(ordered.next().global);
        self.core.committed.publish(to);
        let full = self.order.take_full();
        if !full.is_empty() {
            let _ = self.keeper.send(CheckpointTask::Sync(full));
        }
        Ok(())
    }

    fn update_head(&mut self, update: &HeadUpdate) {
        let heads = &mut self.heads[partition_of(update.stream_key)];
        let is_it = |value| (value == update.previous).then_some(());
        match heads.find(update.stream_key, is_it) {
            Some((slot, ())) if update.previous != NONE => heads.set(slot, update.head),
            _ => {
                heads.insert(update.stream_key, update.head);
            }
        }
    }

    /// Completes the tickets whose batches end at or before `to`.
    fn complete(
        &self,
        waiting: &mut VecDeque<Awaiting>,
        ordered: &Ordered,
        positions: Option<&[u64]>,
        to: u64,
    ) {
        while waiting.front().is_some_and(|next| next.receipt.end <= to) {
            let Some(next) = waiting.pop_front() else { return };
            let Awaiting { mut receipt, event_count, promise, _permit } = next;
            receipt.placements = match (positions, &ordered.placements) {
                (Some(positions), Some(placements)) => {
                    let first = positions.partition_point(|&position| position < receipt.position);
                    placements.get(first..first + event_count).unwrap_or_default().to_vec()
                }
                _ => Vec::new(),
            };
            receipt.placements.resize(event_count, Placement::Undecided);
            self.core.ordered_acks.fetch_sub(1, Ordering::Relaxed);
            promise.complete(Ok(receipt));
        }
    }
}
