//! The facade as it ships: `std` atomics, `parking_lot` locks, `crossbeam` padding.
//!
//! `model.rs` has the same names in the same shapes; what is missing there is missing here, but for
//! [`thread`], [`mpmc`] and [`now`], which no protocol uses. `sim.rs` has all of them.

#![allow(unsafe_code)] // A cell hands out raw pointers; see `UnsafeCell`.

pub use std::sync::Arc;
pub use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
pub use std::thread_local;

pub use crossbeam::utils::CachePadded;
pub use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The channel under [`queue()`](super::queue()).
pub mod channel {
    pub use flume::{Receiver, Sender, TryRecvError, TrySendError, bounded, unbounded};
}

/// The channel between stages that may wait for each other.
pub mod mpmc {
    use crossbeam::channel::RecvError;
    pub use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

    /// A message of one of two channels, or the end of one.
    #[derive(Debug)]
    pub enum Either<A, B> {
        /// Of the first.
        First(Result<A, RecvError>),
        /// Of the second.
        Second(Result<B, RecvError>),
    }

    /// Waits for either channel.
    pub fn either<A, B>(first: &Receiver<A>, second: &Receiver<B>) -> Either<A, B> {
        crossbeam::select! {
            recv(first) -> message => Either::First(message),
            recv(second) -> message => Either::Second(message),
        }
    }
}

/// Threads of the engine.
pub mod thread {
    pub use std::thread::{Builder, JoinHandle};
}

/// The time.
#[inline]
pub fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Number of slots of a [`ReaderBiased`](super::ReaderBiased) lock.
///
/// More slots mean fewer collisions between readers, which then take the inner lock, and a
/// longer scan for a writer that revokes the bias. This many suit machines with a few dozen
/// cores; each takes a padded cache line, and a scan of all was measured at under 100 ns.
pub const READER_SLOT_COUNT: usize = 64;

/// Number of slow reads after a revocation before readers get their bias back.
///
/// It keeps a lock that is written often from revoking at every write. The price is that so many
/// reads are slow after a write. Measured on two cores with `thalweg-benches locks bias`: at 1,000
/// reads per write and more, which is what the lock is for, 1, 4 and 16 are alike, and 64
/// or more slow down readers side by side. At 100 reads per write 1 and 4 save up to a fifth; at 10
/// they cost a lone thread a fifth or more. `benches/results` has the figures.
pub const SLOW_READ_COUNT_BEFORE_BIAS: usize = 16;

/// Slots of the smallest array of a table of known events.
pub const TABLE_SLOT_COUNT_MIN: usize = 16;

/// Loads what no other thread stores: the calling thread's own last store, or what it was handed
/// with the right to store.
#[inline]
pub fn load_own(atomic: &AtomicU64) -> u64 {
    // Relaxed: there is nothing to be ordered after but this thread's own store.
    atomic.load(Ordering::Relaxed)
}

/// Returns a small number that differs between the threads of a process.
///
/// Numbers are handed out in the order in which threads first ask and are never reused, so a
/// process that starts many short threads sees large ones. Use it modulo the size of a table,
/// as a hint where to look first, and never as an identity.
pub fn thread_slot_hint() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        // Relaxed: only the uniqueness of the number matters, and no data travels with it.
        static HINT: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    HINT.with(|hint| *hint)
}

/// Asks `is_ready` over and over, for at most `time`; returns what it said last. For waits that are
/// usually shorter than going to sleep and waking takes, on cores that nobody else needs.
pub fn spin(time: std::time::Duration, mut is_ready: impl FnMut() -> bool) -> bool {
    /// Looks between two looks at the clock, which takes longer than they do.
    const LOOKS: usize = 16;
    if time.is_zero() {
        return is_ready();
    }
    let end = std::time::Instant::now() + time;
    loop {
        for _ in 0..LOOKS {
            if is_ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if std::time::Instant::now() >= end {
            return is_ready();
        }
    }
}

/// Waits a little longer each time: first spinning, then yielding, then asleep.
///
/// Sleeping matters on machines with as many runnable threads as cores, where the thread that
/// is waited for may need the core that the waiter spins on.
#[derive(Debug)]
pub struct Backoff {
    busy: crossbeam::utils::Backoff,
    sleep_us: u64,
}

impl Backoff {
    /// The first sleep, in microseconds. Each further one is twice as long, up to the maximum.
    const SLEEP_US_MIN: u64 = 50;
    /// The longest sleep, in microseconds.
    const SLEEP_US_MAX: u64 = 1_000;

    /// Creates a backoff whose first wait is the shortest.
    pub fn new() -> Self {
        Self { busy: crossbeam::utils::Backoff::new(), sleep_us: Self::SLEEP_US_MIN }
    }

    /// Waits once.
    pub fn snooze(&mut self) {
        if !self.busy.is_completed() {
            self.busy.snooze();
            return;
        }
        std::thread::sleep(std::time::Duration::from_micros(self.sleep_us));
        self.sleep_us = (self.sleep_us * 2).min(Self::SLEEP_US_MAX);
    }
}

/// A cell whose accesses the model build can see.
///
/// Like [`std::cell::UnsafeCell`], it is not `Sync`; the primitive around it says why sharing
/// it is sound.
#[derive(Debug)]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// Creates a cell that holds `value`.
    pub fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }

    /// Calls `f` with a pointer through which the value may be changed during the call.
    ///
    /// Dereferencing the pointer is sound if nothing else accesses the value meanwhile.
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }

    /// Returns a pointer through which the value may be read for as long as it is kept.
    pub fn get(&self) -> ConstPtr<T> {
        ConstPtr(self.0.get())
    }

    /// Returns a pointer through which the value may be changed for as long as it is kept.
    pub fn get_mut(&self) -> MutPtr<T> {
        MutPtr(self.0.get())
    }
}

/// A pointer for reading the value of an [`UnsafeCell`].
#[derive(Debug)]
pub struct ConstPtr<T>(*const T);

impl<T> ConstPtr<T> {
    /// Returns the value.
    ///
    /// # Safety
    ///
    /// While the reference lives, the cell must exist and nothing may change its value.
    pub unsafe fn deref(&self) -> &T {
        // SAFETY: the pointer comes from a cell, so it is aligned and its value initialized;
        // that the cell exists and is not changed is the caller's promise.
        unsafe { &*self.0 }
    }
}

/// A pointer for changing the value of an [`UnsafeCell`].
#[derive(Debug)]
pub struct MutPtr<T>(*mut T);

impl<T> MutPtr<T> {
    /// Returns the value.
    ///
    /// # Safety
    ///
    /// While the reference lives, the cell must exist and nothing else may access its value,
    /// including through another call of this method.
    #[allow(clippy::mut_from_ref)] // The shape of loom's type, which guards a window of time.
    pub unsafe fn deref(&self) -> &mut T {
        // SAFETY: the pointer comes from a cell, so it is aligned and its value initialized;
        // that the cell exists and is accessed by nothing else is the caller's promise.
        unsafe { &mut *self.0 }
    }
}
