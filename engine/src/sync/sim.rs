//! The facade as the simulation runs it: threads that run one at a time, in an order that a seed decides.
//!
//! The crate in `engine/sim` compiles the whole engine with `cfg(thalweg_sim)`. What others may come
//! between goes through `lockstep`; the rest is what ships.

#[path = "real.rs"]
mod real;

pub use lockstep::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};
pub use lockstep::{
    Condvar, Lock as Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, now, thread,
};

pub use self::real::{
    Arc, CachePadded, ConstPtr, MutPtr, Ordering, TABLE_SLOT_COUNT_MIN, UnsafeCell, channel, fence,
    thread_local,
};

/// The channel between stages that may wait for each other.
pub mod mpmc {
    pub use lockstep::{Either, Receiver, Sender, bounded, either, unbounded};
}

/// Few, so that readers collide and writers look through them in a few steps.
pub const READER_SLOT_COUNT: usize = 2;

/// Few, so that the bias comes and goes.
pub const SLOW_READ_COUNT_BEFORE_BIAS: usize = 2;

/// Loads what no other thread stores.
pub fn load_own(atomic: &AtomicU64) -> u64 {
    atomic.load_at_once(Ordering::Relaxed)
}

/// The ordinal of the thread in its world: the same in every run.
pub fn thread_slot_hint() -> usize {
    lockstep::ordinal().unwrap_or(0)
}

/// Asks once: spinning would only be a longer way to wait.
pub fn spin(_: std::time::Duration, mut is_ready: impl FnMut() -> bool) -> bool {
    is_ready()
}

/// Waits by letting another thread run.
#[derive(Debug)]
pub struct Backoff(());

impl Backoff {
    /// Creates a backoff.
    pub fn new() -> Self {
        Self(())
    }

    /// Waits once.
    pub fn snooze(&mut self) {
        lockstep::yield_now();
    }
}
