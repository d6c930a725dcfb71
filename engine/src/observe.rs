//! What the stages tell of what they do: once for each frame and each window, and for each batch only if somebody has
//! asked for it. Where it goes is nothing that they know.

use std::time::Instant;

use crate::sync::now;
use crate::timings::{Detail, Recorder, Recorders, StageTimes, Timings, Work};

/// What the stages of a store tell.
#[derive(Debug)]
pub(crate) struct Observer {
    recorders: Recorders,
}

/// A frame that is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// Batches that it has.
    pub(crate) batches: u64,
    /// Its length in the log.
    pub(crate) bytes: u64,
}

impl Observer {
    /// With `detailed`, for each batch too.
    pub(crate) fn new(detailed: bool) -> Self {
        Observer { recorders: Recorders::new(detailed) }
    }

    /// The frame is in the file; that began at `start`.
    pub(crate) fn wrote(&self, frame: Frame, start: Instant) {
        self.recorders.write.add_since(start);
        self.recorders.frame_batches.add(frame.batches);
        self.recorders.frame_bytes.add(frame.bytes);
    }

    /// The newest frame is durable; its sync began at `start`.
    pub(crate) fn synced(&self, start: Instant) {
        self.recorders.sync.add_since(start);
    }

    /// A part of the log is scanned.
    pub(crate) fn scanned(&self, start: Instant) {
        self.recorders.scan.add_since(start);
    }

    /// A window is ordered.
    pub(crate) fn ordered(&self, start: Instant) {
        self.recorders.order.add_since(start);
    }

    /// A window is committed.
    pub(crate) fn committed(&self, start: Instant) {
        self.recorders.commit.add_since(start);
    }

    /// The time, if it is recorded for each batch.
    #[inline]
    pub(crate) fn batch_clock(&self) -> Option<Instant> {
        self.recorders.detail.as_ref().map(|_| now())
    }

    /// Records for a batch the time since `start`, which [`Observer::batch_clock`] gave.
    #[inline]
    pub(crate) fn batch(&self, start: Option<Instant>, of: impl FnOnce(&Detail) -> &Recorder) {
        if let (Some(detail), Some(start)) = (&self.recorders.detail, start) {
            of(detail).add_since(start);
        }
    }

    /// Where the threads that order a window sum up their time, if they do.
    pub(crate) fn work(&self) -> Option<&Work> {
        self.recorders.detail.as_ref().map(|detail| &detail.work)
    }

    /// What was recorded so far.
    pub(crate) fn timings(&self) -> Timings {
        self.recorders.snapshot()
    }

    /// Where the time of the stages went, if that is recorded.
    pub(crate) fn stage_times(&self) -> Option<StageTimes> {
        self.recorders.stage_times()
    }
}
