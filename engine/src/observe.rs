//! What the stages tell of what they do: once for each frame and each window, and for each batch only if somebody has
//! asked for it; and what happens rarely enough to be told each time. Where it goes is nothing that they know: into
//! histograms, always; to the facade of the `metrics` crate and to that of the `tracing` crate with the features of these
//! names. Only this file says `cfg(feature)`; without the features, what it calls is empty.

#[cfg_attr(not(feature = "metrics"), path = "observe/no_meters.rs")]
mod meters;
#[cfg_attr(not(feature = "tracing"), path = "observe/no_trace.rs")]
pub(crate) mod trace;

use std::time::{Duration, Instant};

use thalweg_wal::storage::Storage;

use self::meters::Meters;
use self::trace::Tracer;
use crate::pipeline::core::{Counts, Queues};
use crate::sync::now;
use crate::timings::{Detail, Recorder, Recorders, StageTimes, Timings, Work};

/// What the stages of a store tell.
#[derive(Debug)]
pub(crate) struct Observer {
    recorders: Recorders,
    meters: Meters,
    /// What happens rarely.
    pub(crate) trace: Tracer,
}

/// A frame that is written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Frame {
    /// Batches that it has.
    pub(crate) batches: u64,
    /// Their events, with seals and marks.
    pub(crate) events: u64,
    /// Its length in the log.
    pub(crate) bytes: u64,
}

fn since(start: Instant) -> Duration {
    now().saturating_duration_since(start)
}

impl Observer {
    /// Of the store in this storage, of whose log so many bytes are not in order; with `detailed`, for each batch too. One
    /// that is open for reading only has no meters: they would count what those of its owner count.
    pub(crate) fn new(
        storage: &dyn Storage,
        read_only: bool,
        unordered: u64,
        detailed: bool,
    ) -> Self {
        Observer {
            recorders: Recorders::new(detailed),
            meters: Meters::new((!read_only).then_some(storage)),
            trace: Tracer::new(storage, unordered),
        }
    }

    /// The frame is in the file; that began at `start`.
    pub(crate) fn wrote(&self, frame: Frame, start: Instant) {
        let took = since(start);
        self.recorders.write.add_time(took);
        self.recorders.frame_batches.add(frame.batches);
        self.recorders.frame_bytes.add(frame.bytes);
        self.meters.wrote(frame, took);
    }

    /// The frame in the file is synced, which began at `start`.
    pub(crate) fn synced(&self, start: Instant) {
        let took = since(start);
        self.recorders.sync.add_time(took);
        self.meters.synced(took);
    }

    /// The frame is durable, and about to be acknowledged.
    pub(crate) fn durable(&self, frame: Frame, queues: &Queues) {
        self.meters.durable(frame, queues);
    }

    /// A part of the log is scanned.
    pub(crate) fn scanned(&self, start: Instant) {
        let took = since(start);
        self.recorders.scan.add_time(took);
        self.meters.scanned(took);
    }

    /// A window is ordered, and the counts are those behind it.
    pub(crate) fn ordered(&self, start: Instant, counts: &Counts) {
        let took = since(start);
        self.recorders.order.add_time(took);
        self.meters.ordered(took, counts);
    }

    /// The order of a window is written, and readers are about to be shown so many deliveries in all; so many bytes
    /// of the log are durable behind it.
    pub(crate) fn committed(&self, start: Instant, delivered: u64, behind: u64) {
        let took = since(start);
        self.recorders.commit.add_time(took);
        self.meters.committed(took, delivered, behind);
    }

    /// A write of the order has failed, and is made again.
    pub(crate) fn retried(&self, error: &std::io::Error) {
        self.meters.retried();
        self.trace.retrying(error);
    }

    /// A checkpoint was written, or not, which began at `start`.
    pub(crate) fn checkpointed(&self, start: Instant, failure: Option<&std::io::Error>) {
        self.meters.checkpointed(since(start));
        self.trace.checkpointed(failure);
    }

    /// The engine has stopped.
    pub(crate) fn failed(&self, cause: &crate::error::Cause) {
        self.meters.failed();
        self.trace.failed(cause);
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
            of(detail).add_time(since(start));
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
