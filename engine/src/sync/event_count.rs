//! An event count: sleep until a condition over atomics holds, without a lock around them.
//!
//! The idea is Reed and Kanodia's (*Synchronization with Eventcounts and Sequencers*, 1979);
//! the handshake is the one of rayon's `sleep` module, over one mutex and one condition
//! variable in place of a word per sleeper.
//!
//! # Protocol
//!
//! The state that a waiter waits for lives elsewhere, in atomics that the event count never
//! looks at. The event count has one word, `waiters`, the number of threads that are asleep
//! or about to be.
//!
//! ```text
//! waiter                                notifier
//! W1  ready? then return                N1  change the state
//! W2  lock                              N2  fence(SeqCst)
//! W3  waiters += 1                      N3  waiters == 0? then return
//! W4  fence(SeqCst)                     N4  lock, unlock
//! W5  ready? then go to W7              N5  wake all
//! W6  unlock, sleep, lock; go to W5
//! W7  waiters -= 1, unlock
//! ```
//!
//! # The race it prevents
//!
//! A lost wake-up: the waiter sees the old state and sleeps, the notifier sees no waiter and
//! wakes nobody. Two orders are possible for the fences W4 and N2.
//!
//! * W4 before N2: then N3 reads a value no older than what W3 wrote, hence sees the waiter.
//!   If the waiter already sleeps, N5 wakes it. If it is between W3 and W6 it holds the lock,
//!   and N4 waits until W6 has released the lock and is asleep in the same instant.
//! * N2 before W4: then W5 reads a value no older than what N1 wrote, hence does not sleep.
//!
//! A waiter that is woken for another event goes back to W5 with its count still in `waiters`,
//! so the argument holds for every round. That a waiter also *sees data* behind the state it
//! waited for is the business of the state's own orderings, not of this module.
//!
//! A notifier that finds nobody waiting pays one fence and one load; there is no system call.

use std::time::Instant;

use super::{AtomicUsize, Condvar, Mutex, Ordering, fence};

/// Lets threads sleep until a condition holds, and lets others wake them cheaply.
///
/// The condition is a closure over atomics. Whoever makes it true must call
/// [`notify_all`](Self::notify_all) afterwards.
#[derive(Debug)]
pub struct EventCount {
    /// Threads between W3 and W7. Changed by waiters under `lock`, read by notifiers without it.
    waiters: AtomicUsize,
    /// Held by a waiter from W2 until it sleeps, which is what makes N4 wait for it.
    lock: Mutex<()>,
    wake: Condvar,
}

impl EventCount {
    /// Creates an event count that nobody waits on.
    pub fn new() -> Self {
        Self { waiters: AtomicUsize::new(0), lock: Mutex::new(()), wake: Condvar::new() }
    }

    /// Blocks until `ready` returns `true`.
    ///
    /// `ready` runs at least once, possibly often, and from the second time on under an internal
    /// lock: it must be short, must not block and must not call into this event count.
    pub fn wait_until(&self, ready: impl FnMut() -> bool) {
        let is_ready = self.wait(ready, None);
        debug_assert!(is_ready, "a wait without a deadline ends when it is ready");
    }

    /// Blocks until `ready` returns `true` or `deadline` has passed. Returns what `ready` said last.
    ///
    /// The condition wins over the clock: a deadline in the past still asks once. `ready` is
    /// bound by the same rules as in [`wait_until`](Self::wait_until).
    pub fn wait_deadline(&self, ready: impl FnMut() -> bool, deadline: Instant) -> bool {
        self.wait(ready, Some(deadline))
    }

    fn wait(&self, mut ready: impl FnMut() -> bool, deadline: Option<Instant>) -> bool {
        if ready() {
            return true;
        }
        let mut guard = self.lock.lock();
        // Relaxed: the fence below orders it before the check; `lock` orders it among waiters.
        self.waiters.fetch_add(1, Ordering::Relaxed);
        if step!("ec.waiter_fence") {
            // Pairs with the fence in `notify_all`: of the two threads, at least one sees what
            // the other has done.
            fence(Ordering::SeqCst);
        }
        let mut is_ready = step!("ec.recheck") && ready();
        while !is_ready {
            let timed_out = match deadline {
                None => {
                    self.wake.wait(&mut guard);
                    false
                }
                Some(deadline) => self.wake.wait_until(&mut guard, deadline).timed_out(),
            };
            is_ready = ready();
            if timed_out {
                break;
            }
        }
        // Relaxed: a notifier that still counts this thread takes the lock for nothing.
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        is_ready
    }

    /// Wakes every waiter, so that each looks at its condition again.
    ///
    /// Call it after the state has changed. Costs one fence if nobody waits.
    pub fn notify_all(&self) {
        if step!("ec.notifier_fence") {
            // Pairs with the fence in `wait`.
            fence(Ordering::SeqCst);
        }
        // Relaxed: ordered after the change of the state by the fence.
        if self.waiters.load(Ordering::Relaxed) == 0 {
            return;
        }
        if step!("ec.notify_lock") {
            // A waiter that has found nothing and does not sleep yet holds the lock. After this
            // it sleeps, and the call below reaches it.
            drop(self.lock.lock());
        }
        self.wake.notify_all();
    }
}

impl Default for EventCount {
    fn default() -> Self {
        Self::new()
    }
}
