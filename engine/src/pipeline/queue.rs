//! From the appenders to the writer: a flume queue behind a reader-biased gate.
//!
//! An append first takes a permit from a budget of requests and bytes, and waits for it if it has
//! to, holding nothing. The queue has room for as many requests as there are permits, so sending
//! never waits: the gate's read side is held for the moment of the send and for nothing else.
//! Closing takes the sender out from behind the gate; the writer drains what is there and then
//! finds the queue disconnected. Permits are given back when their request completes.

use thalweg_wal::EncodedBatch;

use crate::error::AppendFailure;
use crate::event::{Ack, Receipt};
use crate::sync::{Arc, AtomicU64, EventCount, Ordering, Promise, ReaderBiased};

/// Most requests under way.
const REQUEST_COUNT_MAX: u64 = 4096;
/// Bits of the budget word that count bytes; those above count requests, and the top bit closes.
const BYTE_BITS: u32 = 48;
const ONE_REQUEST: u64 = 1 << BYTE_BITS;
const CLOSED: u64 = 1 << 63;

const _: () = assert!(REQUEST_COUNT_MAX * ONE_REQUEST < CLOSED);

/// What an append comes to.
pub(crate) type Outcome = Result<Receipt, AppendFailure>;

/// An accepted append on its way to the writer.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) batch: EncodedBatch,
    pub(crate) ack: Ack,
    pub(crate) promise: Promise<Outcome>,
    pub(crate) permit: Permit,
}

/// The writer's end of the queue.
pub(crate) type Requests = flume::Receiver<Request>;

/// The queue is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueClosed;

/// The appenders' end of the queue.
#[derive(Debug)]
pub(crate) struct Queue {
    gate: ReaderBiased<Option<flume::Sender<Request>>>,
    budget: Arc<Budget>,
}

impl Queue {
    /// A queue that holds requests of about `byte_max` bytes in all.
    pub(crate) fn new(byte_max: u64) -> (Self, Requests) {
        let (sender, receiver) = flume::bounded(REQUEST_COUNT_MAX as usize);
        let budget = Arc::new(Budget {
            used: AtomicU64::new(0),
            byte_max: byte_max.min(ONE_REQUEST / 2),
            freed: EventCount::new(),
        });
        (Queue { gate: ReaderBiased::new(Some(sender)), budget }, receiver)
    }

    /// Waits for room for a request of `byte_len` bytes. A request larger than all the room is let
    /// in when it is alone.
    pub(crate) fn permit(&self, byte_len: u64) -> Result<Permit, QueueClosed> {
        self.budget.take(byte_len)?;
        Ok(Permit { budget: Arc::clone(&self.budget), byte_len })
    }

    /// Hands a request to the writer. Never waits.
    pub(crate) fn send(&self, request: Request) -> Result<(), Request> {
        let gate = self.gate.read();
        let Some(sender) = &*gate else { return Err(request) };
        sender.try_send(request).map_err(|error| {
            debug_assert!(
                matches!(error, flume::TrySendError::Disconnected(_)),
                "the queue has room for every permit"
            );
            error.into_inner()
        })
    }

    /// Closes the queue: nothing more is accepted, and who waits for a permit is told.
    pub(crate) fn close(&self) {
        drop(self.gate.write().take());
        self.budget.close();
    }
}

/// Requests and bytes under way, in one word, so that one compare-and-swap takes both.
#[derive(Debug)]
struct Budget {
    used: AtomicU64,
    byte_max: u64,
    freed: EventCount,
}

impl Budget {
    fn take(&self, byte_len: u64) -> Result<(), QueueClosed> {
        loop {
            match self.try_take(byte_len) {
                Some(taken) => return taken,
                None => {
                    self.freed.wait_until(|| self.fits(self.used.load(Ordering::Relaxed), byte_len))
                }
            }
        }
    }

    fn try_take(&self, byte_len: u64) -> Option<Result<(), QueueClosed>> {
        // Relaxed throughout: the word is only a count. What a request carries is handed over by
        // the queue, and the event count orders the wake-up.
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            if used & CLOSED != 0 {
                return Some(Err(QueueClosed));
            }
            if !self.fits(used, byte_len) {
                return None;
            }
            let taken = used + ONE_REQUEST + byte_len;
            match self.used.compare_exchange_weak(used, taken, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Some(Ok(())),
                Err(now) => used = now,
            }
        }
    }

    /// Whether a request of `byte_len` bytes need not wait any longer: there is room, or the end.
    fn fits(&self, used: u64, byte_len: u64) -> bool {
        let requests = (used & !CLOSED) >> BYTE_BITS;
        let bytes = used & (ONE_REQUEST - 1);
        let room = requests < REQUEST_COUNT_MAX && bytes + byte_len <= self.byte_max;
        used & CLOSED != 0 || requests == 0 || room
    }

    fn give_back(&self, byte_len: u64) {
        self.used.fetch_sub(ONE_REQUEST + byte_len, Ordering::Relaxed);
        self.freed.notify_all();
    }

    fn close(&self) {
        self.used.fetch_or(CLOSED, Ordering::Relaxed);
        self.freed.notify_all();
    }
}

/// Room in the queue, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    byte_len: u64,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.byte_len);
    }
}
