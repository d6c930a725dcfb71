//! The appender: a handle through which one stream, or the whole store, is appended to.
//!
//! A submit encodes and checksums the batch on the caller's thread, waits for a permit, and leaves
//! a request in the queue. The returned ticket completes when the writer, or the committer, is done.

use std::time::Duration;

use crate::error::{AppendFailure, BatchRefused, Cause, MixedBatchRefused, Refusal, SubmitError};
use crate::event::{Ack, Batch, Event, MixedBatch, NewEvent, Receipt};
use crate::pipeline::core::{Core, deadline_in};
use crate::pipeline::queue::{Outcome, Queue, Request};
use crate::sync::{Arc, Completion, Ordering, completion};
use thalweg_wal::EncodedBatch;

/// Where appends go in.
#[derive(Debug)]
pub(crate) struct Inlet {
    pub(crate) core: Arc<Core>,
    /// None for a store that is open for reading only.
    pub(crate) queue: Option<Queue>,
}

impl Inlet {
    fn submit(&self, batch: EncodedBatch, ack: Ack) -> Result<Ticket, (Refusal, EncodedBatch)> {
        let Some(queue) = &self.queue else { return Err((Refusal::ReadOnly, batch)) };
        if batch.is_empty() {
            return Err((Refusal::Empty, batch));
        }
        if self.core.cause().is_some() {
            return Err((self.refusal(), batch));
        }
        let Ok(permit) = queue.permit(batch.byte_len()) else {
            return Err((self.refusal(), batch));
        };
        let (promise, completion) = completion();
        if ack == Ack::Ordered {
            // Relaxed: the request travels through the queue, the log and `durable` before the
            // orderer looks, and each of these hands over what came before it.
            self.core.ordered_acks.fetch_add(1, Ordering::Relaxed);
        }
        match queue.send(Request { batch, ack, promise, permit }) {
            Ok(()) => Ok(Ticket { completion: Some(completion), core: Arc::clone(&self.core) }),
            Err(request) => {
                if ack == Ack::Ordered {
                    self.core.ordered_acks.fetch_sub(1, Ordering::Relaxed);
                }
                Err((self.refusal(), request.batch))
            }
        }
    }

    fn refusal(&self) -> Refusal {
        match self.core.cause() {
            Some(cause) => Refusal::Poisoned(cause.clone()),
            None => Refusal::Closed,
        }
    }

    /// Appends events of any streams.
    pub(crate) fn submit_mixed(&self, batch: MixedBatch) -> Result<Ticket, MixedBatchRefused> {
        let (encoded, ack) = batch.into_parts();
        self.submit(encoded, ack).map_err(|(reason, encoded)| SubmitError {
            reason,
            batch: MixedBatch::from_parts(encoded, ack),
        })
    }

    fn submit_to(&self, stream: &[u8], batch: Batch, ack: Ack) -> Result<Ticket, BatchRefused> {
        let encoded = match batch.encode(stream) {
            Ok(encoded) => encoded,
            Err(limit) => return Err(SubmitError { batch, reason: Refusal::Limit(limit) }),
        };
        self.submit(encoded, ack).map_err(|(reason, _)| SubmitError { batch, reason })
    }
}

/// Appends to one stream. Clones are cheap and may be used by any number of threads.
///
/// The batches of one thread keep their order: those that are stored are a prefix of those that
/// it submitted.
#[derive(Debug, Clone)]
pub struct Appender {
    inlet: Arc<Inlet>,
    stream: Arc<[u8]>,
    ack: Ack,
}

impl Appender {
    pub(crate) fn new(inlet: Arc<Inlet>, stream: &[u8]) -> Self {
        Appender { inlet, stream: stream.into(), ack: Ack::default() }
    }

    /// The same appender, with tickets that complete at `ack`.
    #[must_use]
    pub fn ack(mut self, ack: Ack) -> Self {
        self.ack = ack;
        self
    }

    /// Name of the stream.
    pub fn stream(&self) -> &[u8] {
        &self.stream
    }

    /// Appends one event, chained on the stream's tips and named by the engine.
    ///
    /// # Errors
    ///
    /// As for [`Appender::submit`].
    pub fn append(&self, payload: impl AsRef<[u8]>) -> Result<Ticket, BatchRefused> {
        self.submit(Batch::from([Event::new(payload.as_ref())]))
    }

    /// Appends one event.
    ///
    /// # Errors
    ///
    /// As for [`Appender::submit`].
    pub fn append_event(&self, event: NewEvent) -> Result<Ticket, BatchRefused> {
        self.submit(Batch::from([event]))
    }

    /// Hands a batch to the writer. Blocks while the queue is full, and not for the disk.
    ///
    /// When it returns, the batch is accepted: its ticket completes exactly once, whatever happens.
    ///
    /// # Errors
    ///
    /// The batch comes back whole inside the error, and nothing of it was stored: it is empty or
    /// beyond a limit, or the store is closed, read-only or has stopped.
    pub fn submit(&self, batch: Batch) -> Result<Ticket, BatchRefused> {
        self.inlet.submit_to(&self.stream, batch, self.ack)
    }
}

/// The promise of an outcome for an accepted batch.
///
/// Dropping a ticket takes nothing back: the batch is appended all the same.
#[derive(Debug)]
pub struct Ticket {
    /// None once the outcome was taken.
    completion: Option<Completion<Outcome>>,
    core: Arc<Core>,
}

impl Ticket {
    /// Blocks until the batch is acknowledged.
    ///
    /// # Errors
    ///
    /// The batch is not stored, or it is not known whether it is; the error says which, and why.
    ///
    /// # Panics
    ///
    /// If [`Ticket::wait_timeout`] or [`Ticket::try_wait`] has given the outcome already.
    pub fn wait(self) -> Result<Receipt, AppendFailure> {
        let Ticket { completion, core } = self;
        let completion = completion.expect("the outcome of a ticket is given once");
        match completion.wait() {
            Ok(outcome) => outcome,
            Err(_) => Err(abandoned(&core)),
        }
    }

    /// Blocks until the batch is acknowledged, or until `timeout` is over: then `None`, and the
    /// ticket can be waited for again. `None` at once if the outcome was given already.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<Receipt, AppendFailure>> {
        let outcome = self.completion.as_mut()?.wait_deadline(deadline_in(timeout))?;
        self.completion = None;
        Some(outcome.unwrap_or_else(|_| Err(abandoned(&self.core))))
    }

    /// The outcome, if there is one by now and it was not given already. Never blocks.
    pub fn try_wait(&mut self) -> Option<Result<Receipt, AppendFailure>> {
        let outcome = self.completion.as_mut()?.try_take()?;
        self.completion = None;
        Some(outcome.unwrap_or_else(|_| Err(abandoned(&self.core))))
    }
}

/// The engine let go of the batch without an answer, which only a thread that dies does.
fn abandoned(core: &Core) -> AppendFailure {
    AppendFailure::Unknown(core.cause().cloned().unwrap_or(Cause::Panic {
        thread: "thalweg",
        message: String::from("a batch was dropped without an answer"),
    }))
}
