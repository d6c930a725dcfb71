//! How long the stages take for what, as histograms that any thread can add to.
//!
//! A histogram has 32 buckets to each power of two, so what it says is at most a thirty-second part too large: two
//! digits. It has one size, and adding to one is three relaxed additions. The layout is that of HdrHistogram by Gil
//! Tene, without its configuration.
//!
//! For each frame and each window something is recorded always; for each batch only if
//! [`Options::timings`](crate::Options::timings) says so; for each event nothing.

use std::fmt;
// Not of the facade: nothing waits for these, and nothing is decided by them, so there is nothing for a simulation to
// come between.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sync::now;

/// Buckets to a power of two, as a power of two.
const SUB_BITS: u32 = 5;
const SUB_COUNT: u64 = 1 << SUB_BITS;
/// Buckets in all: enough for any number of 64 bits.
const BUCKET_COUNT: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

const _: () = assert!(BUCKET_COUNT <= u16::MAX as usize);

/// A histogram that is being filled.
pub(crate) struct Recorder {
    buckets: Box<[AtomicU64]>,
    max: AtomicU64,
    sum: AtomicU64,
}

impl Recorder {
    fn new() -> Self {
        Recorder {
            buckets: (0..BUCKET_COUNT).map(|_| AtomicU64::new(0)).collect(),
            max: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    /// Adds a value. All relaxed: the numbers are for people, and none waits for another.
    pub(crate) fn add(&self, value: u64) {
        self.buckets[bucket_of(value)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
        self.max.fetch_max(value, Ordering::Relaxed);
    }

    /// Adds a time, in nanoseconds.
    pub(crate) fn add_time(&self, time: Duration) {
        self.add(time.as_nanos() as u64);
    }

    /// The sum so far of values in nanoseconds.
    fn total(&self) -> Duration {
        Duration::from_nanos(self.sum.load(Ordering::Relaxed))
    }

    fn snapshot(&self) -> Histogram {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let filled = |(bucket, count): (usize, &AtomicU64)| match load(count) {
            0 => None,
            count => Some((bucket as u16, count)),
        };
        Histogram {
            buckets: self.buckets.iter().enumerate().filter_map(filled).collect(),
            max: load(&self.max),
            sum: load(&self.sum),
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

/// Values below `SUB_COUNT` have a bucket each; above, the highest bits choose.
fn bucket_of(value: u64) -> usize {
    if value < SUB_COUNT {
        return value as usize;
    }
    let shift = value.ilog2() - SUB_BITS;
    (u64::from(shift + 1) * SUB_COUNT + ((value >> shift) & (SUB_COUNT - 1))) as usize
}

/// The largest value of a bucket.
fn bucket_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB_COUNT {
        return bucket;
    }
    let shift = bucket / SUB_COUNT - 1;
    let first = (SUB_COUNT + bucket % SUB_COUNT) << shift;
    first + ((1 << shift) - 1)
}

/// How often which values were met. What a value is, and its unit, is said where the histogram is.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// Buckets that are not empty, in order, and how many values are in each.
    buckets: Box<[(u16, u64)]>,
    max: u64,
    sum: u64,
}

impl Histogram {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The largest value.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// A value that a part of the values does not exceed: half of them for 0.5, all for 1. Up to a thirty-second part too
    /// large; 0 if there are no values.
    pub fn quantile(&self, part: f64) -> u64 {
        // With nobody there, no bucket is found.
        let rank = (self.count() as f64 * part.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.buckets.iter().find(|(_, count)| {
            seen += count;
            seen >= rank
        });
        found.map_or(0, |(bucket, _)| bucket_end((*bucket).into())).min(self.max)
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

/// What a store records.
#[derive(Debug)]
pub(crate) struct Recorders {
    pub(crate) write: Recorder,
    pub(crate) sync: Recorder,
    pub(crate) frame_batches: Recorder,
    pub(crate) frame_bytes: Recorder,
    pub(crate) scan: Recorder,
    pub(crate) order: Recorder,
    pub(crate) commit: Recorder,
    /// What [`Options::timings`](crate::Options::timings) adds.
    pub(crate) detail: Option<Detail>,
}

/// What is recorded for each batch, and for each part of a window.
#[derive(Debug)]
pub(crate) struct Detail {
    pub(crate) slot_wait: Recorder,
    pub(crate) queue: Recorder,
    pub(crate) durable: Recorder,
    pub(crate) ordered: Recorder,
    pub(crate) callback: Recorder,
    pub(crate) work: Work,
}

/// Time of all threads that order a window.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) order: Total,
    pub(crate) place: Total,
}

/// A time, summed up by any number of threads, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Total(AtomicU64);

impl Total {
    fn get(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

/// Does something, and sums up how long it took if somebody wants to know.
#[inline]
pub(crate) fn timed<T>(total: Option<&Total>, work: impl FnOnce() -> T) -> T {
    let Some(Total(total)) = total else { return work() };
    let start = now();
    let done = work();
    let took = now().saturating_duration_since(start);
    total.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    done
}

impl Recorders {
    pub(crate) fn new(detailed: bool) -> Self {
        Recorders {
            write: Recorder::new(),
            sync: Recorder::new(),
            frame_batches: Recorder::new(),
            frame_bytes: Recorder::new(),
            scan: Recorder::new(),
            order: Recorder::new(),
            commit: Recorder::new(),
            detail: detailed.then(|| Detail {
                slot_wait: Recorder::new(),
                queue: Recorder::new(),
                durable: Recorder::new(),
                ordered: Recorder::new(),
                callback: Recorder::new(),
                work: Work::default(),
            }),
        }
    }

    pub(crate) fn snapshot(&self) -> Timings {
        let detail = |of: fn(&Detail) -> &Recorder| {
            self.detail.as_ref().map(|detail| of(detail).snapshot()).unwrap_or_default()
        };
        Timings {
            write: self.write.snapshot(),
            sync: self.sync.snapshot(),
            frame_batches: self.frame_batches.snapshot(),
            frame_bytes: self.frame_bytes.snapshot(),
            scan: self.scan.snapshot(),
            order: self.order.snapshot(),
            commit: self.commit.snapshot(),
            slot_wait: detail(|detail| &detail.slot_wait),
            queue: detail(|detail| &detail.queue),
            durable: detail(|detail| &detail.durable),
            ordered: detail(|detail| &detail.ordered),
            callback: detail(|detail| &detail.callback),
        }
    }

    /// Where the time of the stages went, if that is recorded.
    pub(crate) fn stage_times(&self) -> Option<StageTimes> {
        let Detail { work, .. } = self.detail.as_ref()?;
        Some(StageTimes {
            scan: self.scan.total(),
            order: work.order.get(),
            place: work.place.get(),
            commit: self.commit.total(),
        })
    }
}

/// Time that the threads of the stages that order the log spent with it, of all threads together: on the
/// clock, so a thread that waits for a core counts too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StageTimes {
    /// Verifying checksums, and splitting by stream.
    pub scan: Duration,
    /// Finding out what becomes of each event.
    pub order: Duration,
    /// Giving deliveries their places.
    pub place: Duration,
    /// Writing the order.
    pub commit: Duration,
}

/// How long the stages of a store take, and how much they take at a time, since it was opened. Times are in
/// nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Timings {
    /// For each frame: putting it into the file.
    pub write: Histogram,
    /// For each frame: its `fdatasync`; for buffered durability, making it readable.
    pub sync: Histogram,
    /// For each frame: how many batches it has. The count of this is the number of frames.
    pub frame_batches: Histogram,
    /// For each frame: its length in the log, in bytes.
    pub frame_bytes: Histogram,
    /// For each part of the log that is scanned at a time, up to some 16 MiB: verifying its checksums, and splitting it by stream.
    pub scan: Histogram,
    /// For each window, which is what is ordered at a time: finding out what becomes of its events, and giving the deliveries
    /// their places.
    pub order: Histogram,
    /// For each window: writing its order, until it is shown to readers.
    pub commit: Histogram,
    /// For each batch that got its place in the pipeline and in the store's queue: the wait for it. This and all that follow
    /// are empty without [`Options::timings`](crate::Options::timings).
    pub slot_wait: Histogram,
    /// For each accepted batch: from there until the writer took it.
    pub queue: Histogram,
    /// For each batch that is acknowledged when it is durable: from its acceptance until then.
    pub durable: Histogram,
    /// For each batch that is acknowledged when it is ordered: from its acceptance until then.
    pub ordered: Histogram,
    /// For each callback: from its outcome until it has returned.
    pub callback: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_bucket_that_ends_close_above_it() {
        let mut values: Vec<u64> = (0..2000).collect();
        values.extend((0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]));
        values.extend([u64::MAX - 1, u64::MAX]);
        for value in values {
            let end = bucket_end(bucket_of(value));
            assert!(end >= value && end - value <= value / SUB_COUNT, "{value} ends at {end}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKET_COUNT - 1);
    }

    #[test]
    fn buckets_follow_each_other() {
        for bucket in 1..BUCKET_COUNT {
            assert_eq!(bucket_of(bucket_end(bucket - 1) + 1), bucket);
        }
    }

    #[test]
    fn quantiles_are_of_what_was_added() {
        let recorder = Recorder::new();
        assert_eq!(recorder.snapshot().quantile(0.5), 0);
        for value in 1..=1000 {
            recorder.add(value * 1000);
        }
        let histogram = recorder.snapshot();
        assert_eq!((histogram.count(), histogram.max()), (1000, 1_000_000));
        assert_eq!(histogram.sum(), 500_500_000);
        let parts = [(0.0, 1000), (0.001, 1000), (0.5, 500_000), (0.99, 990_000), (1.0, 1_000_000)];
        for (part, exact) in parts {
            let quantile = histogram.quantile(part);
            assert!((exact..=exact + exact / SUB_COUNT).contains(&quantile), "{quantile}");
        }
    }
}
