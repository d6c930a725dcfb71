//! The locks, the two counters that each protects, and the mixes of reads and writes.

use std::fmt;
use std::hint::black_box;

use crossbeam::sync::ShardedLock;

use super::window::Clock;
use crate::sync::ReaderBiased;

/// What the locks protect: equal, except inside a write.
#[derive(Debug, Default)]
pub(super) struct Counters {
    left: u64,
    right: u64,
}

impl Counters {
    /// The section of a read.
    #[inline]
    fn are_equal(&self) -> bool {
        // The box makes each section load what another thread may have changed.
        let counters = black_box(self);
        counters.left == counters.right
    }

    /// The section of a write.
    #[inline]
    fn increment(&mut self) {
        self.left += 1;
        // The box makes the first store happen before the second, so that a reader that gets in
        // between can tell.
        let counters = black_box(self);
        counters.right += 1;
    }
}

/// A lock around [`Counters`].
trait Lock: Sync + Sized + 'static {
    const NAME: &'static str;
    fn new() -> Self;
    fn read<R>(&self, section: impl FnOnce(&Counters) -> R) -> R;
    fn write(&self, section: impl FnOnce(&mut Counters));
}

impl Lock for ReaderBiased<Counters> {
    const NAME: &'static str = "ReaderBiased";

    fn new() -> Self {
        Self::new(Counters::default())
    }

    #[inline]
    fn read<R>(&self, section: impl FnOnce(&Counters) -> R) -> R {
        section(&self.read())
    }

    #[inline]
    fn write(&self, section: impl FnOnce(&mut Counters)) {
        section(&mut self.write());
    }
}

impl Lock for parking_lot::RwLock<Counters> {
    const NAME: &'static str = "parking_lot";

    fn new() -> Self {
        Self::new(Counters::default())
    }

    #[inline]
    fn read<R>(&self, section: impl FnOnce(&Counters) -> R) -> R {
        section(&self.read())
    }

    #[inline]
    fn write(&self, section: impl FnOnce(&mut Counters)) {
        section(&mut self.write());
    }
}

/// Why a lock of the two below is never poisoned.
const NO_PANIC: &str = "no section panics";

impl Lock for std::sync::RwLock<Counters> {
    const NAME: &'static str = "std";

    fn new() -> Self {
        Self::new(Counters::default())
    }

    #[inline]
    fn read<R>(&self, section: impl FnOnce(&Counters) -> R) -> R {
        section(&self.read().expect(NO_PANIC))
    }

    #[inline]
    fn write(&self, section: impl FnOnce(&mut Counters)) {
        section(&mut self.write().expect(NO_PANIC));
    }
}

impl Lock for ShardedLock<Counters> {
    const NAME: &'static str = "ShardedLock";

    fn new() -> Self {
        Self::new(Counters::default())
    }

    #[inline]
    fn read<R>(&self, section: impl FnOnce(&Counters) -> R) -> R {
        section(&self.read().expect(NO_PANIC))
    }

    #[inline]
    fn write(&self, section: impl FnOnce(&mut Counters)) {
        section(&mut self.write().expect(NO_PANIC));
    }
}

/// What the runs see of a lock. Dispatched once per window, not per operation.
pub(super) trait Contender: Sync {
    fn name(&self) -> &'static str;
    /// Locks and unlocks until the clock says that the window is over. Returns how often.
    fn operate(&self, turns: &mut Turns, clock: &Clock<'_>) -> u64;
    fn counters(&self) -> (u64, u64);
}

/// A lock that shares no cache line with another, nor a pair of lines that are fetched together.
#[repr(align(128))]
struct Apart<L>(L);

impl<L: Lock> Contender for Apart<L> {
    fn name(&self) -> &'static str {
        L::NAME
    }

    fn operate(&self, turns: &mut Turns, clock: &Clock<'_>) -> u64 {
        let mut operations = 0;
        while !clock.is_over() {
            for _ in 0..Clock::OPERATIONS_PER_LOOK {
                if turns.next_is_write() {
                    self.0.write(Counters::increment);
                } else if !self.0.read(Counters::are_equal) {
                    turns.torn += 1;
                }
            }
            operations += Clock::OPERATIONS_PER_LOOK;
        }
        operations
    }

    fn counters(&self) -> (u64, u64) {
        self.0.read(|counters| (counters.left, counters.right))
    }
}

fn contender<L: Lock>() -> Box<dyn Contender> {
    Box::new(Apart(L::new()))
}

/// One of each lock, ours first.
pub(super) fn all() -> Vec<Box<dyn Contender>> {
    vec![
        contender::<ReaderBiased<Counters>>(),
        contender::<parking_lot::RwLock<Counters>>(),
        contender::<std::sync::RwLock<Counters>>(),
        contender::<ShardedLock<Counters>>(),
    ]
}

/// Ours, and the lock inside it, by which the runs of two builds can be told from each other's noise.
pub(super) fn reader_biased_and_yardstick() -> Vec<Box<dyn Contender>> {
    let mut locks = all();
    locks.truncate(2);
    locks
}

/// How reads and writes mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mix {
    ReadsOnly,
    /// Each thread writes once after so many reads.
    ReadsPerWrite(u64),
    WritesOnly,
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadsOnly => f.pad("reads only"),
            Self::ReadsPerWrite(reads) => f.pad(&format!("1 write per {reads} reads")),
            Self::WritesOnly => f.pad("writes only"),
        }
    }
}

/// Which of a thread's operations are writes; and what came of them, over all windows.
#[derive(Debug)]
pub(super) struct Turns {
    reads_per_write: u64,
    reads_left: u64,
    pub(super) writes: u64,
    /// Reads that found the counters unequal.
    pub(super) torn: u64,
}

impl Turns {
    /// The turns of one of `threads` threads, whose writes are spread evenly over the operations.
    pub(super) fn new(mix: Mix, thread: usize, threads: usize) -> Self {
        let reads_per_write = match mix {
            // No run gets that far.
            Mix::ReadsOnly => u64::MAX,
            Mix::ReadsPerWrite(reads) => reads,
            Mix::WritesOnly => 0,
        };
        let reads_left = reads_per_write / threads as u64 * (thread as u64 + 1);
        Self { reads_per_write, reads_left, writes: 0, torn: 0 }
    }

    #[inline]
    pub(super) fn next_is_write(&mut self) -> bool {
        match self.reads_left.checked_sub(1) {
            Some(left) => {
                self.reads_left = left;
                false
            }
            None => {
                self.reads_left = self.reads_per_write;
                self.writes += 1;
                true
            }
        }
    }
}
