//! Permits: how many batches and bytes may be under way, and the only place where an append waits.
//!
//! Both counts and the closing bit are in one word, so that one compare-and-swap takes a permit and
//! nothing is taken after the close. Who finds no room waits on an event count, and wakes when a
//! permit is given back, when the budget is closed, or when its time is up. A batch larger than all the
//! room is let in when it is alone. Permits are not handed out in turn: a large batch among many small
//! ones may wait long.
//!
//! A permit is given back at once, or in two steps around the answer to its batch: [`Budget::make_room`]
//! before, so that whoever has the answer finds the room, and [`Budget::settle`] after, so that whoever
//! finds the budget idle finds the answers.
//!
//! The word is changed by read-modify-write only. Taking hands nothing over, so it changes the word
//! relaxed: what a batch carries is handed over by the queue, and the event count's fences keep a
//! waiter from sleeping through the change that it waits for. Giving back is a release, because whoever
//! waits for the budget to be idle goes on after everything that was done under its permits. Closing is
//! one too, because whoever is turned away looks for the reason.

use std::time::Instant;

use crate::sync::{AtomicU64, CachePadded, EventCount, Ordering, ord, step};

/// Bits of the word that count bytes. Those above count answers that are being given, then batches, and
/// the top bit closes.
const BYTE_BITS: u32 = 40;
const ONE_ANSWER: u64 = 1 << BYTE_BITS;
/// As many answers can be given at once as there are threads that answer one appender: a few.
const ANSWER_BITS: u32 = 8;
const ONE_BATCH: u64 = ONE_ANSWER << ANSWER_BITS;
const CLOSED: u64 = 1 << 63;
/// Most batches that the word can count.
pub const BATCH_COUNT_MAX: u64 = (CLOSED - 1) / ONE_BATCH;

/// How long to wait for a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Not at all.
    None,
    /// Until then.
    Until(Instant),
    /// For as long as it takes.
    Endless,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The budget is closed: nothing more is taken from it.
    Closed,
    /// There is no room now.
    Full,
    /// There was no room in time.
    TimedOut,
}

/// What permits are taken from.
#[derive(Debug)]
pub struct Budget {
    used: CachePadded<AtomicU64>,
    batch_max: u64,
    byte_max: u64,
    changed: EventCount,
}

impl Budget {
    /// A budget of so many batches and bytes.
    pub fn new(batch_max: u64, byte_max: u64) -> Self {
        Budget {
            used: CachePadded::new(AtomicU64::new(0)),
            batch_max: batch_max.min(BATCH_COUNT_MAX),
            byte_max: byte_max.min(ONE_ANSWER / 2),
            changed: EventCount::new(),
        }
    }

    /// Takes a permit for a batch of `byte_len` bytes, which [`Budget::give_back`] gives back. Waits for
    /// room as long as `patience` has it; the wait ends when the budget is closed, too.
    ///
    /// # Errors
    ///
    /// As for [`Denied`]; nothing was taken.
    pub fn take(&self, byte_len: u64, patience: Patience) -> Result<(), Denied> {
        self.take_unless(byte_len, patience, || false)
    }

    /// As [`Budget::take`], and finds the budget closed, too, once `is_over` says so. Whoever makes it say
    /// so has to [`Budget::wake`] those who wait.
    ///
    /// # Errors
    ///
    /// As for [`Denied`]; nothing was taken.
    pub fn take_unless(
        &self,
        byte_len: u64,
        patience: Patience,
        is_over: impl Fn() -> bool,
    ) -> Result<(), Denied> {
        loop {
            if is_over() {
                return Err(Denied::Closed);
            }
            if let Some(taken) = self.try_take(byte_len) {
                return taken;
            }
            let is_ready =
                || is_over() || self.is_worth_a_try(self.used.load(Ordering::Relaxed), byte_len);
            match patience {
                Patience::None => return Err(Denied::Full),
                Patience::Endless => self.changed.wait_until(is_ready),
                Patience::Until(deadline) => {
                    if !self.changed.wait_deadline(is_ready, deadline) {
                        return Err(Denied::TimedOut);
                    }
                }
            }
        }
    }

    /// Takes a permit or finds the end; nothing if there is no room.
    fn try_take(&self, byte_len: u64) -> Option<Result<(), Denied>> {
        // Acquire, here and where the exchange fails: pairs with the Release in `close`; what was
        // done before the close is visible to whoever is denied for it.
        let mut used = self.used.load(ord!("permit.closed_acquire", Acquire));
        loop {
            if used & CLOSED != 0 && step!("permit.refuse_closed") {
                return Some(Err(Denied::Closed));
            }
            if !self.is_worth_a_try(used, byte_len) {
                return None;
            }
            let taken = used + ONE_BATCH + byte_len;
            let on_failure = ord!("permit.closed_acquire_late", Acquire);
            let swapped =
                self.used.compare_exchange_weak(used, taken, Ordering::Relaxed, on_failure);
            match swapped {
                // The word has changed since it was looked at: there may be no room any more.
                Err(now) if step!("permit.take_rmw") => used = now,
                _ => return Some(Ok(())),
            }
        }
    }

    /// Whether a batch of `byte_len` bytes need not wait: there is room, or the end.
    fn is_worth_a_try(&self, used: u64, byte_len: u64) -> bool {
        let batches = (used & !CLOSED) / ONE_BATCH;
        let bytes = used & (ONE_ANSWER - 1);
        let room = batches < self.batch_max && bytes + byte_len <= self.byte_max;
        let alone = batches == 0 && step!("permit.alone");
        let closed = used & CLOSED != 0 && step!("permit.closed_wakes");
        closed || alone || room
    }

    /// Whether a batch without bytes would have to wait now.
    pub fn is_full(&self) -> bool {
        // Relaxed: who takes a permit looks again.
        !self.is_worth_a_try(self.used.load(Ordering::Relaxed), 0)
    }

    /// How many batches and bytes have a permit now. For people: nothing can be concluded from it.
    pub fn used(&self) -> (u64, u64) {
        // Relaxed: nothing comes with it.
        let used = self.used.load(Ordering::Relaxed);
        ((used & !CLOSED) / ONE_BATCH, used & (ONE_ANSWER - 1))
    }

    /// Gives a permit back.
    pub fn give_back(&self, byte_len: u64) {
        // Release: pairs with the Acquire load in `is_idle`.
        self.used.fetch_sub(ONE_BATCH + byte_len, ord!("permit.give_back_release", Release));
        if step!("permit.free_notify") {
            self.changed.notify_all();
        }
    }

    /// First step of giving a permit back: there is room again. [`Budget::settle`] has to follow.
    pub fn make_room(&self, byte_len: u64) {
        // Relaxed: who takes the room is handed nothing, and `settle` follows for who waits for the end.
        self.used.fetch_sub(ONE_BATCH + byte_len - ONE_ANSWER, Ordering::Relaxed);
        if step!("permit.room_notify") {
            self.changed.notify_all();
        }
    }

    /// Second step of giving a permit back.
    pub fn settle(&self) {
        // Release: pairs with the Acquire load in `is_idle`.
        let before = self.used.fetch_sub(ONE_ANSWER, ord!("permit.settle_release", Release));
        // Only a budget that is closed is waited for to be idle. One that is closed after this is seen
        // without this answer by whoever closes it.
        if before & CLOSED != 0 && step!("permit.settle_notify") {
            self.changed.notify_all();
        }
    }

    /// Wakes those who wait, so that they look again whether their wait is over.
    pub fn wake(&self) {
        self.changed.notify_all();
    }

    /// Ends all waiting for permits, now and later. Permits that are out stay good. Whoever is denied
    /// one sees what was done before.
    pub fn close(&self) {
        // Release: pairs with the Acquire loads in `try_take`.
        self.used.fetch_or(CLOSED, ord!("permit.close_release", Release));
        if step!("permit.close_notify") {
            self.changed.notify_all();
        }
    }

    /// Whether nothing is taken any more.
    pub fn is_closed(&self) -> bool {
        // Acquire: as in `try_take`.
        self.used.load(ord!("permit.is_closed_acquire", Acquire)) & CLOSED != 0
    }

    /// Blocks until no permit is out; for a budget that is closed. What was done under the permits is
    /// visible afterwards.
    pub fn wait_idle(&self) {
        self.changed.wait_until(|| self.is_idle());
    }

    fn is_idle(&self) -> bool {
        // Acquire: pairs with the Release in `give_back`.
        let used = self.used.load(ord!("permit.idle_acquire", Acquire));
        used & !CLOSED < ONE_ANSWER
    }
}
