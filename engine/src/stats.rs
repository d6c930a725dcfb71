//! The parts of [`Stats`](crate::Stats): how much is on its way between two stages, and in the queues.

use crate::pipeline::core::Core;
use crate::pipeline::permits::Budget;
use crate::sync::Ordering;

/// What is on its way, by the stage that it is in front of or in.
///
/// Each is what lies between two neighbours of the chain of positions,
/// `committed <= ordered <= scanned <= durable <= written`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Backlog {
    /// Written, and not durable yet: what the sync in hand makes durable.
    pub sync: Waiting,
    /// Durable, and not scanned yet, or not in turn to be ordered. How many events it has is not known.
    pub scan: Waiting,
    /// In the window that is being ordered.
    pub order: Waiting,
    /// Ordered, and not shown to readers yet. The events are those that are to be delivered.
    pub commit: Waiting,
}

/// How much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Waiting {
    /// Bytes of the log.
    pub bytes: u64,
    /// Number of events, where that is known; seals and the marks of cursors count as well.
    pub events: Option<u64>,
}

/// How much is in the queues of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct QueueDepths {
    /// Appends that are acknowledged when they are durable, from their acceptance until then.
    pub durable: QueueDepth,
    /// Appends that are acknowledged when they are ordered, from their acceptance until then.
    pub ordered: QueueDepth,
    /// Windows that are being ordered, or wait for the committer.
    pub windows: u64,
    /// Callbacks that wait for their turn, with the one that runs.
    pub callbacks: u64,
    /// Questions and requests for a checkpoint that wait for the orderer.
    pub calls: u64,
}

/// How much is in a queue of appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct QueueDepth {
    /// Number of batches, with flushes.
    pub batches: u64,
    /// Their bytes; what bounds them is [`Options::queue_bytes`](crate::Options::queue_bytes).
    pub bytes: u64,
}

impl QueueDepth {
    fn of(budget: &Budget) -> Self {
        let (batches, bytes) = budget.used();
        QueueDepth { batches, bytes }
    }
}

/// The positions of the stages, taken against the flow: each stage is at least where the one after it was a moment
/// before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Positions {
    pub(crate) committed: u64,
    pub(crate) ordered: u64,
    pub(crate) scanned: u64,
    pub(crate) durable: u64,
    pub(crate) written: u64,
}

impl Positions {
    pub(crate) fn of(core: &Core) -> Self {
        let (committed, ordered) = (core.committed.get(), core.ordered.get());
        let (scanned, durable) = (core.scanned.get(), core.durable.get());
        Positions { committed, ordered, scanned, durable, written: core.written.get() }
    }

    pub(crate) fn backlog(&self, core: &Core) -> Backlog {
        // Before what is ordered, which is never less.
        let delivered = core.delivered.get();
        let waiting = |from: u64, to: u64, events| Waiting { bytes: to - from, events };
        Backlog {
            sync: waiting(self.durable, self.written, Some(core.in_frame.get())),
            scan: waiting(self.scanned, self.durable, None),
            order: waiting(self.ordered, self.scanned, Some(core.in_window.get())),
            commit: waiting(self.committed, self.ordered, {
                Some(core.ordered_events.get().saturating_sub(delivered))
            }),
        }
    }
}

/// How much is in the queues, with so many calls.
pub(crate) fn queue_depths(core: &Core, calls: usize) -> QueueDepths {
    QueueDepths {
        durable: QueueDepth::of(&core.queues.durable),
        ordered: QueueDepth::of(&core.queues.ordered),
        windows: core.queues.windows.used().0,
        // Relaxed: a number for people.
        callbacks: core.queues.callbacks.load(Ordering::Relaxed),
        calls: calls as u64,
    }
}
