//! A reader-writer lock for what is read all the time and written almost never.
//!
//! The algorithm is BRAVO: Dave Dice and Alex Kogan, *BRAVO — Biased Locking for Reader-Writer
//! Locks*, USENIX ATC 2019. It wraps an ordinary reader-writer lock. While the lock is *biased*,
//! a reader announces itself in a slot of a table and leaves the inner lock alone, so readers
//! on different cores share no cache line that anyone writes. A writer takes the inner lock,
//! revokes the bias, and waits until all slots are empty.
//!
//! What we changed:
//!
//! * The table belongs to the lock instead of the process, so an announcement is one bit, not
//!   an address, and a writer never waits for the readers of another lock.
//! * A thread looks in one slot, chosen by a per-thread hint instead of a hash. Any thread may
//!   use any slot, so threads need no registration; on a collision the reader takes the inner
//!   lock.
//! * The store-load edge is a `SeqCst` fence, not a `SeqCst` access (see the module above).
//! * The bias comes back after a number of slow reads, not after a time: no clock.
//!
//! # Protocol
//!
//! ```text
//! fast reader                              writer
//! R1  biased (Relaxed)? else go to S1      W1  inner write lock
//! R2  slot: 0 -> 1 (CAS)? else go to S1    W2  was it biased? else go to W6
//! R3  fence(SeqCst)                        W3  biased = false
//! R4  biased (Acquire)? else slot = 0, S1  W4  fence(SeqCst)
//! R5  read the value                       W5  for each slot: wait until it is 0 (Acquire)
//! R6  slot = 0 (Release)                   W6  change the value
//!                                          W7  inner write unlock
//! slow reader
//! S1  inner read lock
//! S2  the last slow read that it takes? then biased = true (Release)
//! S3  read the value
//! S4  inner read unlock
//! ```
//!
//! `biased` is stored at W3 under the inner write lock and at S2 under the inner read lock, so
//! never by a writer and a reader at once. Under the inner lock the number of slow reads since
//! the last revocation says the same: the lock is biased from the moment that number reaches
//! [`SLOW_READ_COUNT_BEFORE_BIAS`]. That is what W2 and S2 look at.
//!
//! # The races it prevents
//!
//! *A reader and a writer inside at once.* Slow readers and writers are kept apart by the inner
//! lock. So take any fast reader and any writer that revokes the bias, and consider their fences
//! R3 and W4, which have a total order.
//!
//! * R3 before W4: W5 reads a slot value no older than what R2 wrote. The writer thus waits
//!   until it reads the 0 of R6 or a later one. R6 is a Release and everything that follows it in
//!   the slot is a read-modify-write, which continues its release sequence; so whichever 0 the
//!   Acquire load at W5 reads, R5 happens before W6.
//! * W4 before R3: R4 reads a bias no older than W3's `false`. Either it reads a `false` and the
//!   reader backs out, or it reads a `true` that a slow reader stored at S2 after this writer
//!   had released the inner lock. Then W6 happens before S2 by the inner lock, and S2 before R5
//!   by Release and Acquire.
//!
//! A writer that finds the bias revoked already (W2) stands behind the one that revoked it. A
//! fast reader that is still inside has read a `true` older than that `false`, so it is of the
//! first kind for the earlier writer, who has waited for it; and none gets in meanwhile, since
//! S2 needs the inner lock.
//!
//! *A reader that keeps a revoking writer waiting for nothing.* A reader that backs out has read
//! nothing, so its slot needs no ordering when it is emptied; and it goes to the inner lock, where
//! it queues behind the writer instead of retrying.
//!
//! # Progress
//!
//! A revoking writer waits for the longest read section, and later readers queue behind it.
//! Hence the rules on [`ReaderBiased::read`].

#![allow(unsafe_code)] // The cell that the lock protects.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::{
    AtomicBool, AtomicUsize, Backoff, CachePadded, ConstPtr, MutPtr, Ordering, READER_SLOT_COUNT,
    RwLock, RwLockReadGuard, RwLockWriteGuard, SLOW_READ_COUNT_BEFORE_BIAS, UnsafeCell, fence,
    thread_slot_hint,
};

/// A reader-writer lock whose readers do not disturb each other while nobody writes.
///
/// A read costs one uncontended read-modify-write and a fence. The first write after a while
/// costs a look at [`READER_SLOT_COUNT`] cache lines and waits for the readers that are inside.
pub struct ReaderBiased<T> {
    /// Whether readers may use the slots. Stored under `inner`: `false` by a writer, `true` by
    /// a reader. Loaded by readers without it.
    biased: CachePadded<AtomicBool>,
    /// Slow reads since the last revocation; the lock is biased from
    /// [`SLOW_READ_COUNT_BEFORE_BIAS`] on. Counted by readers and reset by writers, under `inner`.
    slow_reads: AtomicUsize,
    /// `true` while a fast reader is inside. Read-modify-write by readers, loaded by writers.
    slots: Box<[CachePadded<AtomicBool>]>,
    /// Keeps writers from each other and from slow readers.
    inner: RwLock<()>,
    /// Read by readers between R4 and R6 or S1 and S4, changed by writers between W5 and W7.
    value: UnsafeCell<T>,
}

// SAFETY: the lock owns its value; sending it sends the value and nothing else.
unsafe impl<T: Send> Send for ReaderBiased<T> {}
// SAFETY: shared, the lock gives `&T` to several threads at once, which `T: Sync` allows, and
// `&mut T`, by which a value can be moved out, to one thread at a time, which `T: Send` allows.
// That the two exclude each other is shown in the module's documentation.
unsafe impl<T: Send + Sync> Sync for ReaderBiased<T> {}

impl<T> ReaderBiased<T> {
    /// Creates an unlocked lock, biased towards readers.
    pub fn new(value: T) -> Self {
        let slot = || CachePadded::new(AtomicBool::new(false));
        Self {
            biased: CachePadded::new(AtomicBool::new(true)),
            slow_reads: AtomicUsize::new(SLOW_READ_COUNT_BEFORE_BIAS),
            slots: std::iter::repeat_with(slot).take(READER_SLOT_COUNT).collect(),
            inner: RwLock::new(()),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the value out.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// Locks for reading. Blocks while a writer is inside or waiting.
    ///
    /// Keep the section short, for a writer and all later readers wait for it. While holding
    /// the guard do not wait for another thread, do no I/O, call no foreign code and take no
    /// other lock. In particular do not take this one: a thread that reads twice deadlocks with
    /// a writer that arrives in between. A guard that is leaked blocks writers for ever.
    pub fn read(&self) -> ReadGuard<'_, T> {
        let hold = match self.claim_slot() {
            Some(claim) => Hold::Slot { _claim: claim },
            None => self.read_slow(),
        };
        // Steps R5 and S3: from here to the drop of `hold`, no writer is inside.
        ReadGuard { value: self.value.get(), _hold: hold, _not_send: PhantomData }
    }

    /// Locks for writing. Blocks until every reader and every other writer has left.
    ///
    /// While holding the guard do not lock this lock again, in either way.
    pub fn write(&self) -> WriteGuard<'_, T> {
        let inner = self.inner.write();
        // Relaxed: counted under `inner`, which this thread holds.
        if self.slow_reads.load(Ordering::Relaxed) >= SLOW_READ_COUNT_BEFORE_BIAS {
            self.revoke_bias();
        }
        // Step W6: from here to the drop of `inner`, nobody else is inside.
        WriteGuard { value: self.value.get_mut(), _inner: inner, _not_send: PhantomData }
    }

    /// Steps R1 to R4.
    fn claim_slot(&self) -> Option<Slot<'_>> {
        // Relaxed: a stale answer costs a detour; R4 decides.
        if !self.biased.load(Ordering::Relaxed) {
            return None;
        }
        let claimed = &*self.slots[thread_slot_hint() % READER_SLOT_COUNT];
        // Relaxed: no data passes between the readers that use a slot, and the fence orders the
        // claim before R4.
        claimed.compare_exchange(false, true, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        if step!("bravo.reader_fence") {
            // Pairs with the fence in `revoke_bias`: the writer sees the claim, or this thread
            // sees that the bias is revoked.
            fence(Ordering::SeqCst);
        }
        // Acquire: pairs with the Release store in `read_slow`, so that what the writer before it
        // wrote is visible.
        if self.biased.load(ord!("bravo.bias_acquire", Acquire)) || !step!("bravo.recheck") {
            return Some(Slot(claimed));
        }
        // Relaxed: this thread has read nothing that a writer would have to wait for. A swap,
        // because a plain store would end the release sequence of the slot's last reader.
        claimed.swap(false, Ordering::Relaxed);
        None
    }

    /// Steps S1 and S2.
    #[cold]
    fn read_slow(&self) -> Hold<'_> {
        let inner = self.inner.read();
        // Relaxed: a count, ordered against its reset by `inner`. A collision while the lock is
        // biased is counted as well, beyond the number that matters.
        let before = self.slow_reads.fetch_add(1, Ordering::Relaxed);
        if before + 1 == SLOW_READ_COUNT_BEFORE_BIAS {
            // Release: pairs with the Acquire load in `claim_slot`; hands on what `inner` made
            // visible here, the last writer's changes.
            self.biased.store(true, ord!("bravo.bias_release", Release));
        }
        Hold::Inner { _guard: inner }
    }

    /// Steps W3 to W5. The caller holds `inner` for writing.
    #[cold]
    fn revoke_bias(&self) {
        // Relaxed: ordered against the readers of the count by `inner`.
        self.slow_reads.swap(0, Ordering::Relaxed);
        // Relaxed: the fence orders it before the loads of the slots.
        self.biased.store(false, Ordering::Relaxed);
        if step!("bravo.writer_fence") {
            // Pairs with the fence in `claim_slot`.
            fence(Ordering::SeqCst);
        }
        for slot in &self.slots {
            let mut backoff = Backoff::new();
            // Acquire: pairs with the Release swap in `Slot::drop`; the reader's last access
            // happens before the writer's first.
            while slot.load(ord!("bravo.drain_acquire", Acquire)) && step!("bravo.drain") {
                backoff.snooze();
            }
        }
    }
}

impl<T> fmt::Debug for ReaderBiased<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the value: formatting is foreign code, which must not run under a guard.
        f.debug_struct("ReaderBiased").finish_non_exhaustive()
    }
}

/// A slot that this reader has claimed.
struct Slot<'a>(&'a AtomicBool);

impl Drop for Slot<'_> {
    /// Step R6.
    fn drop(&mut self) {
        // Release: pairs with the Acquire load in `revoke_bias`. A swap, because other readers
        // change the slot by read-modify-write.
        self.0.swap(false, ord!("bravo.unlock_release", Release));
    }
}

/// What keeps writers out while a reader is inside; held for its drop.
enum Hold<'a> {
    Slot { _claim: Slot<'a> },
    Inner { _guard: RwLockReadGuard<'a, ()> },
}

/// Access for reading. Unlocks when dropped; stays on the thread that locked.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReadGuard<'a, T> {
    // Fields drop in the order of declaration: the pointer goes before the right to use it.
    value: ConstPtr<T>,
    _hold: Hold<'a>,
    _not_send: PhantomData<*const T>,
}

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the reference borrows the guard. While the guard lives, `_hold` keeps writers
        // out, so nothing changes the value; and the lock, which owns the cell, is borrowed.
        unsafe { self.value.deref() }
    }
}

/// Access for writing. Unlocks when dropped; stays on the thread that locked.
#[must_use = "the lock is released when the guard is dropped"]
pub struct WriteGuard<'a, T> {
    // Fields drop in the order of declaration: the pointer goes before the right to use it.
    value: MutPtr<T>,
    _inner: RwLockWriteGuard<'a, ()>,
    _not_send: PhantomData<*const T>,
}

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the reference borrows the guard. While the guard lives, `_inner` and the empty
        // slots keep everyone else out, and the guard gives a mutable reference only through
        // `&mut self`; and the lock, which owns the cell, is borrowed.
        unsafe { self.value.deref() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and the guard is borrowed mutably.
        unsafe { self.value.deref() }
    }
}
