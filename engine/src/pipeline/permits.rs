//! Permits: how many requests and bytes may be under way, and the only place where an append waits.
//!
//! Both counts and the closing bit are in one word, so that one compare-and-swap takes a permit and
//! nothing is taken after the close. Who finds no room waits on an event count, and wakes when a
//! permit is given back or the budget is closed. A request larger than all the room is let in when it is
//! alone. Permits are not handed out in turn: a large request among many small ones may wait long.
//!
//! The word is changed by read-modify-write only. Its accesses are relaxed: it is a count and hands
//! nothing over. What a request carries is handed over by the queue, and the event count's fences
//! keep a waiter from sleeping through the change that it waits for.

use crate::sync::{Arc, AtomicU64, EventCount, Ordering, step};

/// Bits of the word that count bytes; those above count requests, and the top bit closes.
const BYTE_BITS: u32 = 48;
const ONE_REQUEST: u64 = 1 << BYTE_BITS;
const CLOSED: u64 = 1 << 63;
/// Most requests that the word can count.
const REQUEST_COUNT_MAX: u64 = (CLOSED - 1) / ONE_REQUEST;

/// The budget is closed: nothing more is taken from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// What permits are taken from.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    request_max: u64,
    byte_max: u64,
    freed: EventCount,
}

impl Budget {
    /// A budget of so many requests and bytes.
    pub fn new(request_max: u64, byte_max: u64) -> Self {
        Budget {
            used: AtomicU64::new(0),
            request_max: request_max.min(REQUEST_COUNT_MAX),
            byte_max: byte_max.min(ONE_REQUEST / 2),
            freed: EventCount::new(),
        }
    }

    /// Waits for room for a request of `byte_len` bytes, or for the close.
    pub fn take(this: &Arc<Self>, byte_len: u64) -> Result<Permit, Closed> {
        loop {
            if let Some(taken) = this.try_take(byte_len) {
                taken?;
                return Ok(Permit { budget: Arc::clone(this), byte_len });
            }
            this.freed
                .wait_until(|| this.is_worth_a_try(this.used.load(Ordering::Relaxed), byte_len));
        }
    }

    fn try_take(&self, byte_len: u64) -> Option<Result<(), Closed>> {
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            if used & CLOSED != 0 && step!("permit.refuse_closed") {
                return Some(Err(Closed));
            }
            if !self.is_worth_a_try(used, byte_len) {
                return None;
            }
            let taken = used + ONE_REQUEST + byte_len;
            let swapped =
                self.used.compare_exchange_weak(used, taken, Ordering::Relaxed, Ordering::Relaxed);
            match swapped {
                // The word has changed since it was looked at: there may be no room any more.
                Err(now) if step!("permit.take_rmw") => used = now,
                _ => return Some(Ok(())),
            }
        }
    }

    /// Whether a request of `byte_len` bytes need not wait: there is room, or the end.
    fn is_worth_a_try(&self, used: u64, byte_len: u64) -> bool {
        let requests = (used & !CLOSED) >> BYTE_BITS;
        let bytes = used & (ONE_REQUEST - 1);
        let room = requests < self.request_max && bytes + byte_len <= self.byte_max;
        let alone = requests == 0 && step!("permit.alone");
        let closed = used & CLOSED != 0 && step!("permit.closed_wakes");
        closed || alone || room
    }

    fn give_back(&self, byte_len: u64) {
        self.used.fetch_sub(ONE_REQUEST + byte_len, Ordering::Relaxed);
        if step!("permit.free_notify") {
            self.freed.notify_all();
        }
    }

    /// Ends all waiting, now and later. Permits that are out stay good.
    pub fn close(&self) {
        self.used.fetch_or(CLOSED, Ordering::Relaxed);
        if step!("permit.close_notify") {
            self.freed.notify_all();
        }
    }
}

/// Room for one request, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    byte_len: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.byte_len);
    }
}
