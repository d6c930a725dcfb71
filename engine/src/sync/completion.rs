//! A one-shot hand-off: one thread promises a value, another waits for it.
//!
//! # Protocol
//!
//! The two halves share a [`Cell`]: a value and a state, which leaves `PENDING` once:
//!
//! ```text
//! PENDING --- complete(value) --> COMPLETE
//!    \------- promise dropped --> ABANDONED
//!
//! promise                        receiver
//! P1  write the value            R1  state (Acquire): PENDING? sleep, again
//! P2  state = COMPLETE (Release) R2  ABANDONED? then Err
//! P3  notify                     R3  take the value
//! P4  holders -= 1 (AcqRel)      R4  holders -= 1 (AcqRel)
//! ```
//!
//! Whoever leaves last, at P4 or R4, owns the cell again and may use it for another hand-off, so
//! that a steady flow of them allocates nothing.
//!
//! # The races it prevents
//!
//! *A torn value.* The promise touches the value only at P1, the receiver only at R3. R3 follows
//! an Acquire load that read what the Release store P2 wrote, so P1 happens before R3. The
//! receiver is one thread at a time, because taking needs `&mut Completion`.
//!
//! *A receiver that waits for nobody.* A promise ends in `complete` or in its `Drop`, also when
//! its thread unwinds; both leave `PENDING` and notify. (A promise that is leaked never ends.)
//!
//! *A cell in use twice.* The count of holders goes from two to none, so exactly one half finds
//! itself last; the other has touched the cell for the last time before it left, which happens
//! before whatever the last one does with it.

#![allow(unsafe_code)] // The cell that carries the value.

use std::fmt;
use std::time::{Duration, Instant};

use super::{Arc, AtomicU8, EventCount, Ordering, UnsafeCell, spin};

/// The promise is alive and has given no value.
const PENDING: u8 = 0;
/// The value is in the cell, or the receiver has taken it.
const COMPLETE: u8 = 1;
/// The promise is gone and there is no value.
const ABANDONED: u8 = 2;

/// Creates a promise and the completion that waits for it.
pub fn completion<T>() -> (Promise<T>, Completion<T>) {
    Cell::new().split()
}

/// What a promise and its completion share, while neither of them exists.
pub struct Cell<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Cell<T> {
    /// Allocates a cell.
    pub fn new() -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU8::new(PENDING),
            holders: AtomicU8::new(0),
            value: UnsafeCell::new(None),
            ended: EventCount::new(),
        });
        Cell { shared }
    }

    /// Makes the two halves of a hand-off. Allocates nothing.
    pub fn split(self) -> (Promise<T>, Completion<T>) {
        let Cell { shared } = self;
        // Relaxed, all three: nobody else holds the cell, and the halves are handed on by means
        // that order what was done before.
        let holders = shared.holders.swap(2, Ordering::Relaxed);
        debug_assert_eq!(holders, 0, "a cell serves one hand-off at a time");
        shared.state.store(PENDING, Ordering::Relaxed);
        (Promise { shared: Some(Arc::clone(&shared)) }, Completion { shared: Some(shared) })
    }
}

impl<T> Default for Cell<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Cell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").finish_non_exhaustive()
    }
}

struct Shared<T> {
    /// Stored by the promise, once in each hand-off; loaded by both halves.
    state: AtomicU8,
    /// How many of the two halves are left.
    holders: AtomicU8,
    /// Written by the promise while `PENDING`; taken by the receiver once `COMPLETE`. The store
    /// and load of `state` order the two.
    value: UnsafeCell<Option<T>>,
    /// Notified after `state` has left `PENDING`.
    ended: EventCount,
}

// SAFETY: `Shared` hands no reference to the value to anyone. It moves one `T` from the
// promise's thread to the receiver's, which `T: Send` allows, and the protocol above keeps the
// two accesses to the cell ordered. `state`, `holders` and `ended` are `Sync` by themselves.
unsafe impl<T: Send> Sync for Shared<T> {}

/// Steps P4 and R4: gives up one half, and returns the cell if the other half is gone already.
fn leave<T>(shared: Arc<Shared<T>>) -> Option<Cell<T>> {
    // Release: what this half did with the cell happens before what the last one does.
    // Acquire: pairs with it.
    let holders = shared.holders.fetch_sub(1, ord!("compl.leave", AcqRel));
    if step!("compl.leave_last") && holders > 1 {
        return None;
    }
    let unread = shared.value.with_mut(|value| {
        // SAFETY: the other half has left, which happens before this, and this half is here.
        unsafe { (*value).take() }
    });
    drop(unread);
    Some(Cell { shared })
}

/// The half that gives the value, once. Dropping it without a value answers [`Abandoned`].
pub struct Promise<T> {
    /// `None` once the value is given, so that the drop that follows has nothing to answer.
    shared: Option<Arc<Shared<T>>>,
}

impl<T> Promise<T> {
    /// Gives the value and wakes the receiver. Never blocks for longer than it takes to wake it.
    /// Returns the cell if the receiver is gone, and the value is dropped then.
    pub fn complete(mut self, value: T) -> Option<Cell<T>> {
        let shared = self.shared.take().expect("only this function takes it, with the promise");
        shared.value.with_mut(|cell| {
            // SAFETY: the state is `PENDING`, since only this promise changes it and doing so
            // consumes the promise. While it is, the receiver does not touch the cell.
            unsafe { *cell = Some(value) }
        });
        // Release: pairs with the Acquire load in `try_take`; the value is visible to whoever
        // sees the state.
        shared.state.store(COMPLETE, ord!("compl.release", Release));
        if step!("compl.notify") {
            shared.ended.notify_all();
        }
        leave(shared)
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        if step!("compl.abandon") {
            // Relaxed: no value goes with this state.
            shared.state.store(ABANDONED, Ordering::Relaxed);
            shared.ended.notify_all();
        }
        leave(shared);
    }
}

impl<T> fmt::Debug for Promise<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Promise").finish_non_exhaustive()
    }
}

/// The half that waits for the value.
pub struct Completion<T> {
    /// `None` only while it is dropped.
    shared: Option<Arc<Shared<T>>>,
}

impl<T> Completion<T> {
    fn shared(&self) -> &Shared<T> {
        self.shared.as_ref().expect("a completion has its cell until it is dropped")
    }

    /// Spins for up to `time` until the promise has ended. Does not say whether it has.
    pub fn spin(&self, time: Duration) {
        spin(time, || self.is_ended());
    }

    /// Blocks until the promise has ended, and returns its value.
    ///
    /// # Errors
    ///
    /// [`Abandoned`] if the promise was dropped without a value.
    ///
    /// # Panics
    ///
    /// If the value was taken before.
    pub fn wait(&mut self) -> Result<T, Abandoned> {
        self.shared().ended.wait_until(|| self.is_ended());
        self.try_take().expect("the wait ends when the promise has ended")
    }

    /// Like [`wait`](Self::wait), but returns `None` once `deadline` has passed. The caller may
    /// wait again.
    ///
    /// # Panics
    ///
    /// If the value was taken before.
    pub fn wait_deadline(&mut self, deadline: Instant) -> Option<Result<T, Abandoned>> {
        self.shared().ended.wait_deadline(|| self.is_ended(), deadline);
        self.try_take()
    }

    /// Returns the value if the promise has ended, without blocking.
    ///
    /// # Panics
    ///
    /// If the value was taken before.
    pub fn try_take(&mut self) -> Option<Result<T, Abandoned>> {
        // Acquire: pairs with the Release store in `complete`; makes the value visible.
        match self.shared().state.load(ord!("compl.acquire", Acquire)) {
            PENDING => None,
            ABANDONED => Some(Err(Abandoned)),
            _ => {
                let value = self.shared().value.with_mut(|cell| {
                    // SAFETY: the state is `COMPLETE`, so the promise has written the cell,
                    // which happened before the load that said so, and will not touch it again.
                    // No other receiver does: this one is borrowed mutably and not `Clone`.
                    unsafe { (*cell).take() }
                });
                Some(Ok(value.expect("the value of a completion is taken once")))
            }
        }
    }

    /// Says whether the promise has ended, in a value or without one.
    pub fn is_ended(&self) -> bool {
        // Relaxed: whoever then takes the value loads the state again, with Acquire.
        self.shared().state.load(Ordering::Relaxed) != PENDING
    }

    /// Gives up waiting. Returns the cell if the promise has ended and is gone.
    pub fn release(mut self) -> Option<Cell<T>> {
        leave(self.shared.take().expect("a completion has its cell until it is dropped"))
    }
}

impl<T> Drop for Completion<T> {
    fn drop(&mut self) {
        self.shared.take().map(leave);
    }
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").field("is_ended", &self.is_ended()).finish_non_exhaustive()
    }
}

/// The promise was dropped without a value: the thread that held it has failed or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandoned;

impl fmt::Display for Abandoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request was abandoned before it was answered")
    }
}

impl std::error::Error for Abandoned {}
