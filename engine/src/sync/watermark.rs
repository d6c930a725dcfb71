//! A watermark: how far a stage has come, readable by all and awaitable by all.
//!
//! # Protocol
//!
//! `position` is stored by one thread, the stage that owns the watermark, and only grows.
//! `failed` goes from `false` to `true` once and stays. Waiters sleep on one [`EventCount`].
//!
//! ```text
//! publisher                      waiter for `target`
//! P1  position = n  (Release)    V1  position >= target (Acquire)? then Ok
//! P2  notify                     V2  failed (Acquire)?  no: wait for either, go to V1
//! F1  failed = true (Release)    V3  position >= target (Acquire)? then Ok, else Failed
//! F2  notify
//! ```
//!
//! # The races it prevents
//!
//! *Data before its number.* What the stage did before P1 happens before whatever a reader
//! does after it has read a position of at least `n`: P1 is a Release store, each read of
//! `position` is an Acquire load, and later positions are stored by the same thread.
//!
//! *Done, yet reported as failed.* The stage passes `target`, then fails. A waiter that reads
//! the old position at V1 and the failure at V2 must not answer `Failed`, for the record is
//! durable. F1 (Release) and V2 (Acquire) order every publication that the failing thread knew
//! of before V3, so V3 sees it. Progress therefore wins over failure, always.
//!
//! Lost wake-ups are [`EventCount`]'s business.

use std::fmt;
use std::time::Instant;

use super::{AtomicBool, AtomicU64, CachePadded, EventCount, Ordering};

/// A number that only grows, with one publisher and any number of readers and waiters.
#[derive(Debug)]
pub struct Watermark {
    /// Stored by the publisher alone, loaded by everyone. On its own cache line, because
    /// readers poll it while the publisher works on what surrounds the watermark.
    position: CachePadded<AtomicU64>,
    /// The publisher's own copy of `position`, touched by no other thread. The module above says
    /// why the publisher does not load `position` itself.
    published: AtomicU64,
    /// Stored `true` by any thread, never stored `false`.
    failed: AtomicBool,
    /// Notified after each change of the two above.
    changed: EventCount,
}

impl Watermark {
    /// Creates a watermark at `position`.
    pub fn new(position: u64) -> Self {
        Self {
            position: CachePadded::new(AtomicU64::new(position)),
            published: AtomicU64::new(position),
            failed: AtomicBool::new(false),
            changed: EventCount::new(),
        }
    }

    /// Returns the published position. What the publisher did before publishing it is visible.
    pub fn get(&self) -> u64 {
        // Acquire: pairs with the Release store in `publish`.
        self.position.load(ord!("wm.acquire", Acquire))
    }

    /// Moves the watermark to `position` and wakes those who wait for it.
    ///
    /// Only one thread may publish; which one may change, if the hand-over itself synchronizes.
    ///
    /// # Panics
    ///
    /// If `position` is below the published one: a stage never takes back what it announced.
    pub fn publish(&self, position: u64) {
        // Relaxed, as is the store: one thread's copy, or handed over with the right to publish.
        let published = self.published.load(Ordering::Relaxed);
        assert!(published <= position, "watermark would move back from {published} to {position}");
        self.published.store(position, Ordering::Relaxed);
        // Release: pairs with the Acquire load in `get`; what lies below `position` is visible
        // to whoever reads it.
        self.position.store(position, ord!("wm.release", Release));
        if step!("wm.publish_notify") {
            self.changed.notify_all();
        }
    }

    /// Marks the watermark as failed: it will not move again. Wakes all waiters.
    ///
    /// Any thread may call it, at any time and more than once. It is never undone. A
    /// position that was published before, as far as the caller knows, still counts.
    pub fn fail(&self) {
        // Release: pairs with the Acquire load in `outcome`; whoever sees the failure also sees
        // each position that this thread has seen.
        self.failed.store(true, ord!("wm.fail_release", Release));
        if step!("wm.fail_notify") {
            self.changed.notify_all();
        }
    }

    /// Says whether [`fail`](Self::fail) was called. If so, a [`get`](Self::get) that follows
    /// returns at least what the failing thread saw.
    pub fn is_failed(&self) -> bool {
        // Acquire: pairs with the Release store in `fail`.
        self.failed.load(ord!("wm.is_failed_acquire", Acquire))
    }

    /// Blocks until the watermark is at `target` or above, and returns where it is.
    ///
    /// # Errors
    ///
    /// [`Failed`] if the watermark failed below `target`. One that failed at `target` or above
    /// is `Ok`: what was announced has happened.
    pub fn wait_for(&self, target: u64) -> Result<u64, Failed> {
        let mut outcome = None;
        self.changed.wait_until(|| {
            outcome = self.outcome(target);
            outcome.is_some()
        });
        outcome.expect("the wait ends when there is an outcome")
    }

    /// Like [`wait_for`](Self::wait_for), but gives up once `deadline` has passed.
    ///
    /// # Errors
    ///
    /// [`WaitError::Failed`] as above, [`WaitError::TimedOut`] if neither happened in time. The
    /// caller may wait again.
    pub fn wait_deadline(&self, target: u64, deadline: Instant) -> Result<u64, WaitError> {
        let mut outcome = None;
        let wait = || {
            outcome = self.outcome(target);
            outcome.is_some()
        };
        self.changed.wait_deadline(wait, deadline);
        match outcome {
            Some(Ok(position)) => Ok(position),
            Some(Err(Failed)) => Err(WaitError::Failed),
            None => Err(WaitError::TimedOut),
        }
    }

    /// Steps V1 to V3: what a waiter for `target` would be told now, if anything.
    fn outcome(&self, target: u64) -> Option<Result<u64, Failed>> {
        let position = self.get();
        if position >= target {
            return Some(Ok(position));
        }
        // Acquire: pairs with the Release store in `fail`, so that the read below sees what the
        // failing thread saw.
        if !self.failed.load(ord!("wm.fail_acquire", Acquire)) {
            return None;
        }
        let position = self.get();
        if step!("wm.reread_after_fail") && position >= target {
            return Some(Ok(position));
        }
        Some(Err(Failed))
    }
}

/// The watermark failed before it reached the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stage failed before it got this far")
    }
}

impl std::error::Error for Failed {}

/// Why a wait with a deadline ended below the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// The watermark failed; waiting again gives the same answer.
    Failed,
    /// The deadline passed; the watermark may still get there.
    TimedOut,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed => Failed.fmt(f),
            Self::TimedOut => f.write_str("the stage did not get this far in time"),
        }
    }
}

impl std::error::Error for WaitError {}
