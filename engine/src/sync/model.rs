//! The facade as loom-tests explores it: loom's types in the shapes of `real.rs`.
//!
//! Each type here is at most as strong as the one it stands for. A double that promises more
//! than the real thing makes models pass that the real thing would fail.

#![allow(clippy::new_without_default)] // The doubles have what the protocols call, no more.
#![allow(unsafe_code)] // loom marks its uncounted load so; see `load_own`.

use std::sync::{OnceLock, PoisonError};
use std::time::Instant;

pub use loom::cell::{ConstPtr, MutPtr, UnsafeCell};
pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
pub use loom::sync::{Arc, RwLockReadGuard, RwLockWriteGuard};
pub use loom::thread_local;

pub use crossbeam::utils::CachePadded;

/// Number of slots of a [`ReaderBiased`](super::ReaderBiased) lock: enough for two readers
/// that do not collide, and few enough for two that do.
pub const READER_SLOT_COUNT: usize = 2;

/// Number of slow reads after a revocation before readers get their bias back.
pub const SLOW_READ_COUNT_BEFORE_BIAS: usize = 1;

/// Slots of the smallest array of a table of known events: one entry, and the next makes it grow.
pub const TABLE_SLOT_COUNT_MIN: usize = 2;

/// Loads what no other thread stores.
///
/// loom does not take it for one of the accesses whose orders it explores, and reports a race if
/// a store of another thread is not ordered against it.
pub fn load_own(atomic: &AtomicU64) -> u64 {
    // SAFETY: the value comes from loom's books, not from memory that another thread may write.
    unsafe { atomic.unsync_load() }
}

/// Says whether the environment variable `THALWEG_MUTANT` holds `name`.
pub fn mutant(name: &str) -> bool {
    active_mutant().is_some_and(|active| active == name)
}

/// Returns what the environment variable `THALWEG_MUTANT` held at the first call.
pub fn active_mutant() -> Option<&'static str> {
    static ACTIVE: OnceLock<Option<String>> = OnceLock::new();
    ACTIVE.get_or_init(|| std::env::var("THALWEG_MUTANT").ok()).as_deref()
}

loom::thread_local! {
    static SLOT_HINT: std::cell::Cell<usize> = std::cell::Cell::new(0);
}

/// Returns the number that this model thread was given by [`set_thread_slot_hint`], or 0.
pub fn thread_slot_hint() -> usize {
    SLOT_HINT.with(std::cell::Cell::get)
}

/// Chooses the slot of this model thread.
///
/// A counter that outlives one execution would make the next one differ, which loom does not
/// notice and answers with lost coverage. So models say which readers collide.
pub fn set_thread_slot_hint(hint: usize) {
    SLOT_HINT.with(|slot| slot.set(hint));
}

/// Waits by letting another model thread run.
#[derive(Debug)]
pub struct Backoff(());

impl Backoff {
    /// Creates a backoff.
    pub fn new() -> Self {
        Self(())
    }

    /// Waits once.
    pub fn snooze(&mut self) {
        loom::thread::yield_now();
    }
}

/// loom's mutex with the interface of `parking_lot`'s.
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// Creates an unlocked mutex.
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Locks.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// loom's guard, which a [`Condvar`] can take out and put back.
#[derive(Debug)]
pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> std::ops::Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("a guard is empty only while it waits")
    }
}

impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("a guard is empty only while it waits")
    }
}

/// loom's condition variable with the interface of `parking_lot`'s.
#[derive(Debug)]
pub struct Condvar(loom::sync::Condvar);

/// Whether a wait ended because its time was up. In a model it never is.
#[derive(Debug)]
pub struct WaitTimeoutResult(());

impl WaitTimeoutResult {
    /// Returns `false`.
    pub fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    /// Creates a condition variable that nobody waits for.
    pub fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    /// Unlocks, sleeps until notified, and locks again.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let inner = guard.0.take().expect("a guard is empty only while it waits");
        guard.0 = Some(self.0.wait(inner).unwrap_or_else(PoisonError::into_inner));
    }

    /// Like [`wait`](Self::wait): there is no clock in a model, so the deadline never comes.
    ///
    /// A wait with a deadline that is woken too late is thereby reported as a deadlock.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> WaitTimeoutResult {
        self.wait(guard);
        WaitTimeoutResult(())
    }

    /// Wakes every waiter.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// loom's reader-writer lock with the interface of `parking_lot`'s.
///
/// It does not prefer writers, so the deadlock of a nested read behind a waiting writer cannot
/// be found here; and one model thread must not hold two read guards.
#[derive(Debug)]
pub struct RwLock<T>(loom::sync::RwLock<T>);

impl<T> RwLock<T> {
    /// Creates an unlocked lock.
    pub fn new(value: T) -> Self {
        Self(loom::sync::RwLock::new(value))
    }

    /// Locks for reading.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks for writing.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that keeps flume's promises, as far as its calls that never block go.
///
/// It is a list under a mutex, as flume is. `loom-tests/tests/contract.rs` runs the same tests on
/// both.
pub mod channel {
    use std::collections::VecDeque;

    use super::{Arc, Mutex};

    /// Creates a channel that holds up to `capacity` messages.
    pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
        let state = State { messages: VecDeque::new(), capacity, senders: 1, has_receiver: true };
        let state = Arc::new(Mutex::new(state));
        (Sender(Arc::clone(&state)), Receiver(state))
    }

    /// Creates a channel that holds any number of messages.
    pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        bounded(usize::MAX)
    }

    #[derive(Debug)]
    struct State<T> {
        messages: VecDeque<T>,
        capacity: usize,
        senders: usize,
        has_receiver: bool,
    }

    /// The sending end.
    #[derive(Debug)]
    pub struct Sender<T>(Arc<Mutex<State<T>>>);

    /// The receiving end. Messages outlive it while there is a sender, as flume's do.
    #[derive(Debug)]
    pub struct Receiver<T>(Arc<Mutex<State<T>>>);

    /// A message that was not sent.
    #[derive(Debug)]
    pub enum TrySendError<T> {
        /// The channel has as many messages as it holds.
        Full(T),
        /// The receiver is gone.
        Disconnected(T),
    }

    impl<T> TrySendError<T> {
        /// The message.
        pub fn into_inner(self) -> T {
            match self {
                Self::Full(message) | Self::Disconnected(message) => message,
            }
        }
    }

    /// Why there is no message.
    #[derive(Debug, PartialEq, Eq)]
    pub enum TryRecvError {
        /// There is none now.
        Empty,
        /// There is none, and no sender.
        Disconnected,
    }

    impl<T> Sender<T> {
        /// Sends a message, if there is room and a receiver.
        pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
            let mut state = self.0.lock();
            if !state.has_receiver {
                return Err(TrySendError::Disconnected(message));
            }
            if state.messages.len() == state.capacity {
                return Err(TrySendError::Full(message));
            }
            state.messages.push_back(message);
            Ok(())
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.lock().senders += 1;
            Sender(Arc::clone(&self.0))
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.lock().senders -= 1;
        }
    }

    impl<T> Receiver<T> {
        /// Takes the oldest message.
        pub fn try_recv(&self) -> Result<T, TryRecvError> {
            let mut state = self.0.lock();
            match state.messages.pop_front() {
                Some(message) => Ok(message),
                None if state.senders == 0 => Err(TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        /// Whether there is no message.
        pub fn is_empty(&self) -> bool {
            self.0.lock().messages.is_empty()
        }

        /// Whether there is no sender.
        pub fn is_disconnected(&self) -> bool {
            self.0.lock().senders == 0
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            self.0.lock().has_receiver = false;
        }
    }
}
