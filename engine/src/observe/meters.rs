//! The numbers of a store that is written, for the recorder that the program has installed.
//!
//! The handles are taken once, when the store is opened, so whoever wants the numbers installs a recorder before; and what a
//! stage then does for a frame or a window is what the recorder does for a few numbers.

use std::fmt;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit};
use thalweg_wal::storage::Storage;

use super::Frame;
use crate::pipeline::core::{Counts, Queues};
use crate::pipeline::permits::Budget;

/// All handles; nothing for a store that is not written.
pub(super) struct Meters(Option<Box<Handles>>);

struct Handles {
    appended_batches: Counter,
    appended_events: Counter,
    appended_bytes: Counter,
    delivered: Counter,
    duplicates: Counter,
    conflicts: Counter,
    rejected: Counter,
    commit_retries: Counter,
    held: Gauge,
    streams: Gauge,
    memory: Gauge,
    unordered: Gauge,
    /// Of appends that are acknowledged when they are durable, and when they are ordered.
    queues: [QueueHandles; 2],
    poisoned: Gauge,
    write: Histogram,
    sync: Histogram,
    scan: Histogram,
    order: Histogram,
    commit: Histogram,
    checkpoint: Histogram,
    frame_batches: Histogram,
    frame_bytes: Histogram,
}

struct QueueHandles {
    batches: Gauge,
    bytes: Gauge,
}

impl QueueHandles {
    fn set(&self, budget: &Budget) {
        let (batches, bytes) = budget.used();
        self.batches.set(batches as f64);
        self.bytes.set(bytes as f64);
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Meters").field(&self.0.is_some()).finish()
    }
}

/// Takes handles that are labelled with one store.
struct Registry(String);

impl Registry {
    fn counter(&self, name: &'static str, unit: Unit, what: &'static str) -> Counter {
        metrics::describe_counter!(name, unit, what);
        metrics::counter!(name, "store" => self.0.clone())
    }

    fn gauge(&self, name: &'static str, unit: Unit, what: &'static str) -> Gauge {
        metrics::describe_gauge!(name, unit, what);
        metrics::gauge!(name, "store" => self.0.clone())
    }

    fn histogram(&self, name: &'static str, unit: Unit, what: &'static str) -> Histogram {
        metrics::describe_histogram!(name, unit, what);
        metrics::histogram!(name, "store" => self.0.clone())
    }

    fn seconds(&self, name: &'static str, what: &'static str) -> Histogram {
        self.histogram(name, Unit::Seconds, what)
    }

    fn queue(&self, ack: &'static str) -> QueueHandles {
        let gauge = |name: &'static str, unit, what: &'static str| {
            metrics::describe_gauge!(name, unit, what);
            metrics::gauge!(name, "store" => self.0.clone(), "ack" => ack)
        };
        QueueHandles {
            batches: gauge(
                "thalweg_queued_batches",
                Unit::Count,
                "Batches that are accepted and not acknowledged, at the newest frame",
            ),
            bytes: gauge("thalweg_queued_bytes", Unit::Bytes, "Their bytes"),
        }
    }
}

impl Handles {
    fn new(store: String) -> Self {
        let of = Registry(store);
        let count = Unit::Count;
        Handles {
            appended_batches: of.counter(
                "thalweg_appended_batches_total",
                count,
                "Batches that became durable",
            ),
            appended_events: of.counter(
                "thalweg_appended_events_total",
                count,
                "Events that became durable, with seals and marks of cursors",
            ),
            appended_bytes: of.counter(
                "thalweg_appended_bytes_total",
                Unit::Bytes,
                "Bytes that were added to the log",
            ),
            delivered: of.counter(
                "thalweg_delivered_events_total",
                count,
                "Events that are delivered, since the store was made",
            ),
            duplicates: of.counter(
                "thalweg_duplicate_events_total",
                count,
                "Events that were there already, since the store was made",
            ),
            conflicts: of.counter(
                "thalweg_conflicting_events_total",
                count,
                "Events whose id another had already, since the store was made",
            ),
            rejected: of.counter(
                "thalweg_rejected_events_total",
                count,
                "Events that were rejected, since the store was made",
            ),
            commit_retries: of.counter(
                "thalweg_commit_retries_total",
                count,
                "Writes of the order that failed and were made again",
            ),
            held: of.gauge("thalweg_held_events", count, "Events that wait for parents"),
            streams: of.gauge("thalweg_streams", count, "Streams"),
            memory: of.gauge(
                "thalweg_memory_bytes",
                Unit::Bytes,
                "Memory that the state of the order takes",
            ),
            unordered: of.gauge(
                "thalweg_unordered_bytes",
                Unit::Bytes,
                "Bytes of the log that are durable and not committed, at the newest window",
            ),
            queues: ["durable", "ordered"].map(|ack| of.queue(ack)),
            poisoned: of.gauge("thalweg_poisoned", count, "1 if the engine has stopped"),
            write: of.seconds("thalweg_write_seconds", "Writing a frame"),
            sync: of.seconds("thalweg_fdatasync_seconds", "Making a frame durable"),
            scan: of.seconds("thalweg_scan_seconds", "Verifying and splitting a part of the log"),
            order: of.seconds("thalweg_order_seconds", "Ordering a window"),
            commit: of.seconds("thalweg_commit_seconds", "Writing the order of a window"),
            checkpoint: of.seconds("thalweg_checkpoint_seconds", "Writing a checkpoint"),
            frame_batches: of.histogram("thalweg_frame_batches", count, "Batches of a frame"),
            frame_bytes: of.histogram("thalweg_frame_bytes", Unit::Bytes, "Length of a frame"),
        }
    }
}

/// A store is called what its directory is called.
fn name_of(storage: &dyn Storage) -> String {
    storage.describe("").trim_end_matches('/').to_owned()
}

impl Meters {
    pub(super) fn new(written: Option<&dyn Storage>) -> Self {
        Meters(written.map(|storage| Box::new(Handles::new(name_of(storage)))))
    }

    pub(super) fn wrote(&self, frame: Frame, took: Duration) {
        let Some(handles) = &self.0 else { return };
        handles.write.record(took);
        handles.frame_batches.record(frame.batches as f64);
        handles.frame_bytes.record(frame.bytes as f64);
    }

    pub(super) fn synced(&self, took: Duration) {
        let Some(handles) = &self.0 else { return };
        handles.sync.record(took);
    }

    pub(super) fn durable(&self, frame: Frame, queues: &Queues) {
        let Some(handles) = &self.0 else { return };
        handles.appended_batches.increment(frame.batches);
        handles.appended_events.increment(frame.events);
        handles.appended_bytes.increment(frame.bytes);
        let budgets = [&queues.durable, &queues.ordered];
        handles.queues.iter().zip(budgets).for_each(|(queue, budget)| queue.set(budget));
    }

    pub(super) fn scanned(&self, took: Duration) {
        let Some(handles) = &self.0 else { return };
        handles.scan.record(took);
    }

    pub(super) fn ordered(&self, took: Duration, counts: &Counts) {
        let Some(handles) = &self.0 else { return };
        handles.order.record(took);
        handles.duplicates.absolute(counts.duplicates.get());
        handles.conflicts.absolute(counts.conflicts.get());
        handles.rejected.absolute(counts.rejected.get());
        handles.held.set(counts.held.get() as f64);
        handles.streams.set(counts.streams.get() as f64);
        handles.memory.set(counts.memory.get() as f64);
    }

    pub(super) fn committed(&self, took: Duration, delivered: u64, behind: u64) {
        let Some(handles) = &self.0 else { return };
        handles.commit.record(took);
        handles.delivered.absolute(delivered);
        handles.unordered.set(behind as f64);
    }

    pub(super) fn retried(&self) {
        let Some(handles) = &self.0 else { return };
        handles.commit_retries.increment(1);
    }

    pub(super) fn checkpointed(&self, took: Duration) {
        let Some(handles) = &self.0 else { return };
        handles.checkpoint.record(took);
    }

    pub(super) fn failed(&self) {
        let Some(handles) = &self.0 else { return };
        handles.poisoned.set(1.0);
    }
}
