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
use crate::pipeline::permits::{Budget, Closed, Permit};
use crate::sync::{Arc, Promise, ReaderBiased};

/// Most requests under way.
const REQUEST_COUNT_MAX: u64 = 4096;

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
        let budget = Arc::new(Budget::new(REQUEST_COUNT_MAX, byte_max));
        (Queue { gate: ReaderBiased::new(Some(sender)), budget }, receiver)
    }

    /// Waits for room for a request of `byte_len` bytes. A request larger than all the room is let
    /// in when it is alone.
    pub(crate) fn permit(&self, byte_len: u64) -> Result<Permit, Closed> {
        Budget::take(&self.budget, byte_len)
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
