//! The committer: the one thread that writes the order.
//!
//! It appends each ordered window to the order log, makes it visible, and completes the tickets
//! that waited for it. Nothing here is synced: the order is a function of a log that is durable
//! already, so what a reader has seen can never change, whatever is lost of the derived files.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use thalweg_wal::Segment;

use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks::ChunkWriter;
use crate::derived::order_log::{self, NONE};
use crate::derived::runs::Fresh;
use crate::error::{Cause, Outcome, ReadError};
use crate::event::{Placement, Receipt};
use crate::order::keys::partition_of;
use crate::order::known::Table;
use crate::order::partition::HeadUpdate;
use crate::order::window::Ordered;
use crate::pipeline::core::Core;
use crate::pipeline::keeper::CheckpointTask;
use crate::pipeline::lane::Reply;
use crate::pipeline::threads::message_of;
use crate::sync::{Arc, Promise, Receiver, mpmc as channel, now};

/// The pause after the first attempt that failed; each is twice as long as the one before ...
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(1);
/// ... up to this one.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(250);
/// How often a write is tried again that failed for another reason than lack of room: for about a
/// second in all.
const RETRIES_MAX: u32 = 12;

/// What reaches the committer, in order.
#[derive(Debug)]
pub(crate) enum Commit {
    /// An append that waits. It comes before the window that has its records: the writer hands it over
    /// before it publishes them.
    Awaiting(Awaiting),
    /// The next window.
    Window {
        ordered: Arc<Ordered>,
        /// Positions of the window's records, if somebody waits for their placements.
        positions: Option<Vec<u64>>,
        /// Where the log goes on after the window.
        to: u64,
    },
    /// What there is after the windows so far: see [`CheckpointTask::Write`].
    Checkpoint {
        checkpoint: Checkpoint,
        fresh: Fresh,
        /// A segment that has to be synced before the checkpoint is written.
        log: Option<Arc<Segment>>,
        promise: Option<Promise<Result<(), ReadError>>>,
    },
    /// The newest deliveries of streams stand in a run if they are below this sequence, and need not be
    /// in memory.
    Forget { delivered: u64 },
    /// No windows come any more: the orderer has ended.
    Ended,
}

/// An append that waits for its order, or for its turn behind those that do.
#[derive(Debug)]
pub(crate) struct Awaiting {
    pub(crate) reply: Reply,
    pub(crate) due: Due,
}

/// When an append is answered, and how.
#[derive(Debug)]
pub(crate) enum Due {
    /// When its records are ordered. They are durable.
    Ordered { receipt: Receipt, event_count: usize },
    /// When those before it are answered.
    Now(Outcome),
}

impl Awaiting {
    /// What is durable is appended, even if the order has not got to it.
    pub(crate) fn complete_undecided(self) {
        match self.due {
            Due::Now(outcome) => self.reply.answer(outcome),
            Due::Ordered { mut receipt, event_count } => {
                receipt.placements.resize(event_count, Placement::Undecided);
                self.reply.answer(Ok(receipt));
            }
        }
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
    /// Appends that wait, in the order of the log.
    pub(crate) waiting: VecDeque<Awaiting>,
    pub(crate) keeper: channel::Sender<CheckpointTask>,
}

impl Drop for Committer {
    /// However it ends: the orderer must not wait for a thread that is gone, or was never started.
    fn drop(&mut self) {
        self.core.queues.windows.close();
        self.core.orderer_work.notify_all();
    }
}

impl Committer {
    fn give_window_back(&self) {
        self.core.queues.windows.give_back(0);
        self.core.orderer_work.notify_all();
    }

    /// Runs until orderer and writer have ended. If the committer panics, what waits for it is
    /// answered all the same, and in its order, so nobody else has to.
    pub(crate) fn run(&mut self) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.follow())) {
            let message = message_of(&*panic);
            self.core.fail(Cause::Panic { thread: "thalweg-committer", message });
            // It may wait for what this thread will never take.
            self.core.stop_orderer();
        }
        self.drain();
    }

    fn follow(&mut self) {
        while let Some(commit) = self.commits.recv() {
            match self.take(commit) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(error) => return self.core.fail(Cause::Derived(Arc::new(error))),
            }
        }
    }

    fn take(&mut self, commit: Commit) -> io::Result<ControlFlow<()>> {
        match commit {
            Commit::Awaiting(awaiting) => {
                self.waiting.push_back(awaiting);
                self.complete_due();
            }
            Commit::Window { ordered, positions, to } => {
                self.give_window_back();
                self.commit(&ordered, to)?;
                self.complete(&ordered, positions.as_deref(), to);
            }
            Commit::Checkpoint { checkpoint, fresh, log, promise } => {
                let mut chunks = self.order.take_unsynced();
                chunks.extend(self.tips.take_unsynced());
                let task = CheckpointTask::Write { checkpoint, fresh, log, chunks, promise };
                // A keeper that is gone has ended with the store.
                let _ = self.keeper.send(task);
            }
            Commit::Forget { delivered } => {
                self.heads.iter_mut().for_each(|heads| heads.retain(|head| head >= delivered));
                self.publish_heads_len();
            }
            Commit::Ended => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Nothing is ordered any more. Appends that are durable go on coming until the writer ends; after a failure, windows and
    /// checkpoints may come too, and waiting for a checkpoint ends when its promise is dropped.
    fn drain(&mut self) {
        while let Some(awaiting) = self.waiting.pop_front() {
            awaiting.complete_undecided();
        }
        while let Some(commit) = self.commits.recv() {
            match commit {
                Commit::Awaiting(awaiting) => awaiting.complete_undecided(),
                Commit::Window { .. } => self.give_window_back(),
                Commit::Checkpoint { .. } | Commit::Forget { .. } | Commit::Ended => {}
            }
        }
    }

    fn commit(&mut self, ordered: &Ordered, to: u64) -> io::Result<()> {
        let start = now();
        debug_assert_eq!(ordered.first.global, self.order.count());
        debug_assert_eq!(ordered.first.tips, self.tips.count());
        let mut bytes = Vec::new();
        for (index, tip) in (ordered.first.tips..).zip(&ordered.tips) {
            order_log::encode_tip(index, *tip, &mut bytes);
        }
        append(&self.core, &mut self.tips, &bytes)?;
        ordered.entries.write(|bytes| append(&self.core, &mut self.order, bytes))?;
        ordered.heads.iter().for_each(|update| self.update_head(update));
        self.publish_heads_len();
        let delivered = ordered.next().global;
        // Before anybody is told: whoever sees the window finds it in the numbers.
        let behind = self.core.durable.get().saturating_sub(to);
        self.core.observer.committed(start, delivered, behind);
        self.core.discovery.commits(to, delivered, &self.core.observer);
        self.core.delivered.publish(delivered);
        self.core.arrivals.publish(&ordered.heads, delivered);
        self.tell_interested(ordered);
        self.core.set_cursors(&ordered.cursors);
        self.core.set_firsts(&ordered.firsts);
        self.core.committed.publish(to);
        let full = self.order.take_full();
        if !full.is_empty() {
            let _ = self.keeper.send(CheckpointTask::Sync(full));
        }
        Ok(())
    }

    /// Wakes those who wait for events of several streams, if there is something for them.
    fn tell_interested(&self, ordered: &Ordered) {
        let (first, next) = (ordered.first.global, ordered.next().global);
        // Only taken, and lent to the names, if somebody asks for them.
        let lookup = std::cell::OnceCell::new();
        let name = |update: &HeadUpdate| {
            let entry = ordered.entry(update.head)?;
            let record = lookup.get_or_init(|| self.core.lookup()).record(entry.position).ok()?;
            Some(record.stream())
        };
        let names = || ordered.heads.iter().map(name).collect();
        self.core.interests.publish(first..next, ordered.heads.len(), names);
    }

    fn publish_heads_len(&self) {
        let len: usize = self.heads.iter().map(Table::memory_len).sum();
        self.core.heads_len.set(len as u64);
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

    /// Answers the appends whose batches end at or before `to`, and those behind them that are due.
    fn complete(&mut self, ordered: &Ordered, positions: Option<&[u64]>, to: u64) {
        loop {
            self.complete_due();
            let is_ordered = |next: &Awaiting| match &next.due {
                Due::Ordered { receipt, .. } => receipt.end <= to,
                Due::Now(_) => false,
            };
            let Some(Awaiting { reply, due: Due::Ordered { mut receipt, event_count } }) =
                pop_front_if(&mut self.waiting, is_ordered)
            else {
                return;
            };
            receipt.placements = match (positions, &ordered.placements) {
                (Some(positions), Some(placements)) => {
                    let first = positions.partition_point(|&position| position < receipt.position);
                    placements.get(first..first + event_count).unwrap_or_default().to_vec()
                }
                _ => Vec::new(),
            };
            receipt.placements.resize(event_count, Placement::Undecided);
            reply.answer(Ok(receipt));
        }
    }

    /// Answers the appends in front that wait for nothing any more.
    fn complete_due(&mut self) {
        let is_due = |next: &Awaiting| matches!(next.due, Due::Now(_));
        while let Some(Awaiting { reply, due: Due::Now(outcome) }) =
            pop_front_if(&mut self.waiting, is_due)
        {
            reply.answer(outcome);
        }
    }
}

/// Appends to a derived file, if it takes more than one attempt. Only writes are tried again: what an
/// attempt has left behind lies beyond what is published, and the next one writes the same bytes over it.
/// A sync that failed proves nothing when it is made again; those are the keeper's, and final.
fn append(core: &Core, chunks: &mut ChunkWriter, mut bytes: &[u8]) -> io::Result<()> {
    let mut attempts = Attempts::new();
    while let Err(error) = chunks.append(&mut bytes) {
        let Some(pause) = attempts.next(&error, core.wait_for_room) else { return Err(error) };
        core.commit_retries.set(core.commit_retries.get() + 1);
        core.observer.retried(&error);
        *core.commit_error.lock() = Some(error.to_string());
        if !core.pause(pause) {
            return Err(error);
        }
    }
    if attempts.count > 0 {
        *core.commit_error.lock() = None;
    }
    Ok(())
}

/// Attempts at one write.
#[derive(Debug)]
struct Attempts {
    count: u32,
    begun: Instant,
}

impl Attempts {
    fn new() -> Self {
        Attempts { count: 0, begun: now() }
    }

    /// How long to wait before the next attempt; nothing if there is to be none.
    fn next(&mut self, error: &io::Error, wait_for_room: Duration) -> Option<Duration> {
        let again = match Passing::of(error)? {
            Passing::Soon => self.count < RETRIES_MAX,
            Passing::WithRoom => now().saturating_duration_since(self.begun) < wait_for_room,
        };
        let pause = RETRY_PAUSE_MIN * 2_u32.saturating_pow(self.count.min(16));
        self.count += 1;
        again.then_some(pause.min(RETRY_PAUSE_MAX))
    }
}

/// When an error of a write may have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passing {
    /// Soon, or never.
    Soon,
    /// When somebody has made room.
    WithRoom,
}

impl Passing {
    /// Nothing if it will not pass.
    fn of(error: &io::Error) -> Option<Self> {
        /// Errors without a kind of their own, by their numbers on every Unix: input/output error, too
        /// many open files in the system, in the process.
        const EIO: i32 = 5;
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        use io::ErrorKind::{Interrupted, OutOfMemory, QuotaExceeded, StorageFull, WouldBlock};
        match (error.kind(), error.raw_os_error()) {
            (StorageFull | QuotaExceeded, _) => Some(Passing::WithRoom),
            (Interrupted | WouldBlock | OutOfMemory, _) => Some(Passing::Soon),
            (_, Some(EIO | ENFILE | EMFILE)) => Some(Passing::Soon),
            _ => None,
        }
    }
}

fn pop_front_if<T>(queue: &mut VecDeque<T>, is_wanted: impl FnOnce(&T) -> bool) -> Option<T> {
    if queue.front().is_some_and(is_wanted) { queue.pop_front() } else { None }
}
