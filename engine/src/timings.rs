//! How long appends and their order spend where, as histograms that any thread can add to.
//!
//! A histogram has eight buckets to each power of two, so what it says is at most an eighth too large;
//! adding to one is one relaxed addition. The layout is that of HdrHistogram by Gil Tene, without
//! its configuration.

use std::fmt;
use std::time::{Duration, Instant};

use crate::sync::{AtomicU64, Ordering};

/// Buckets to a power of two, as a power of two.
const SUB_BITS: u32 = 3;
const SUB_COUNT: u64 = 1 << SUB_BITS;
/// Buckets in all: enough for any number of 64 bits.
const BUCKET_COUNT: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

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

    /// Adds the time since `start`, in nanoseconds.
    pub(crate) fn add_since(&self, start: Instant) {
        self.add(start.elapsed().as_nanos() as u64);
    }

    /// The sum so far of values in nanoseconds.
    fn total(&self) -> Duration {
        Duration::from_nanos(self.sum.load(Ordering::Relaxed))
    }

    fn snapshot(&self) -> Histogram {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Histogram {
            buckets: self.buckets.iter().map(load).collect(),
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

/// How often which values were met.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    buckets: Box<[u64]>,
    max: u64,
    sum: u64,
}

impl Histogram {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The largest value.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// A value that `per_mille` in a thousand of the values do not exceed; up to an eighth too large. 0
    /// if there is none.
    pub fn quantile(&self, per_mille: u64) -> u64 {
        let rank = (self.count() * per_mille.min(1000)).div_ceil(1000);
        let mut seen = 0;
        let found = self.buckets.iter().position(|&count| {
            seen += count;
            seen >= rank && seen > 0
        });
        found.map_or(0, bucket_end).min(self.max)
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("p50", &self.quantile(500))
            .field("p99", &self.quantile(990))
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

/// What [`Options::timings`](crate::Options::timings) has the store record.
#[derive(Debug)]
pub(crate) struct Recorders {
    pub(crate) slot_wait: Recorder,
    pub(crate) queue: Recorder,
    pub(crate) write: Recorder,
    pub(crate) sync: Recorder,
    pub(crate) callback: Recorder,
    pub(crate) group: Recorder,
    pub(crate) scan: Recorder,
    pub(crate) order: Recorder,
    pub(crate) place: Recorder,
    pub(crate) commit: Recorder,
}

/// Does something, and records how long it took if somebody wants to know.
#[inline]
pub(crate) fn timed<T>(
    timings: Option<&Recorders>,
    of: impl FnOnce(&Recorders) -> &Recorder,
    work: impl FnOnce() -> T,
) -> T {
    let Some(timings) = timings else { return work() };
    let start = Instant::now();
    let done = work();
    of(timings).add_since(start);
    done
}

impl Recorders {
    pub(crate) fn new() -> Self {
        Recorders {
            slot_wait: Recorder::new(),
            queue: Recorder::new(),
            write: Recorder::new(),
            sync: Recorder::new(),
            callback: Recorder::new(),
            group: Recorder::new(),
            scan: Recorder::new(),
            order: Recorder::new(),
            place: Recorder::new(),
            commit: Recorder::new(),
        }
    }

    pub(crate) fn snapshot(&self) -> Timings {
        Timings {
            slot_wait: self.slot_wait.snapshot(),
            queue: self.queue.snapshot(),
            write: self.write.snapshot(),
            sync: self.sync.snapshot(),
            callback: self.callback.snapshot(),
            group: self.group.snapshot(),
            scan: self.scan.snapshot(),
            order: self.order.snapshot(),
            place: self.place.snapshot(),
            commit: self.commit.snapshot(),
        }
    }

    /// Where the time of the stages went.
    pub(crate) fn stage_times(&self) -> StageTimes {
        StageTimes {
            scan: self.scan.total(),
            order: self.order.total(),
            place: self.place.total(),
            commit: self.commit.total(),
        }
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
    /// Writing the order, and showing it to readers.
    pub commit: Duration,
}

/// Where the time of appends, and of their order, went since the store was opened, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Timings {
    /// For each batch that got its place in the pipeline and in the store's queue: the wait for it.
    pub slot_wait: Histogram,
    /// For each accepted batch: from there until the writer took it.
    pub queue: Histogram,
    /// For each group: putting its frame into the file.
    pub write: Histogram,
    /// For each group: the sync; for buffered durability, making it readable.
    pub sync: Histogram,
    /// For each callback: from its outcome until it has returned.
    pub callback: Histogram,
    /// For each group that was written: the number of its batches, with flushes and with what was refused
    /// in its turn. Its count is the number of groups.
    pub group: Histogram,
    /// For each part of the log: verifying its checksums, and splitting it by stream.
    pub scan: Histogram,
    /// For each window of the log, and each partition of streams that is in it: finding out what becomes
    /// of the events.
    pub order: Histogram,
    /// The same: giving the deliveries their places; and what is done for that for a window as a whole.
    pub place: Histogram,
    /// For each window: writing its order, and showing it to readers.
    pub commit: Histogram,
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
        assert_eq!(recorder.snapshot().quantile(500), 0);
        for value in 1..=1000 {
            recorder.add(value * 1000);
        }
        let histogram = recorder.snapshot();
        assert_eq!((histogram.count(), histogram.max()), (1000, 1_000_000));
        assert_eq!(histogram.sum(), 500_500_000);
        for (per_mille, exact) in [(1, 1000), (500, 500_000), (990, 990_000), (1000, 1_000_000)] {
            let quantile = histogram.quantile(per_mille);
            assert!((exact..=exact + exact / SUB_COUNT).contains(&quantile), "{quantile}");
        }
    }
}
