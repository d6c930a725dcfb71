//! The appender: a handle through which one stream, or the whole store, is appended to.
//!
//! A submit encodes and checksums the batch on the caller's thread, waits for its permits, and leaves
//! a request in the queue. The ticket that it returns, or the callback that it was given, is answered
//! when the writer, or the committer, is done. What the handles of an appender share is in `lane`.

use std::time::{Duration, Instant};

use thalweg_wal::EncodedBatch;

use crate::error::{
    AppendFailure, BatchRefused, FlushError, MixedBatchRefused, Outcome, Refusal, SubmitError,
};
use crate::event::{Batch, Event, MixedBatch, NewEvent, Receipt};
use crate::pipeline::core::deadline_in;
use crate::pipeline::lane::{Lane, OnceCallback, Passage, Way};
use crate::pipeline::permits::Patience;
use crate::sync::{Abandoned, Arc, Completion};

/// Appends to one stream, through a pipeline of batches that are under way.
///
/// Made by [`Store::appender`](crate::Store::appender). Clones are cheap, share the pipeline, and may
/// be used by any number of threads.
///
/// # Pipeline
///
/// A batch takes a place in the pipeline when it is submitted and gives it back when it is
/// acknowledged, or, if it has a callback, when the callback has returned. A submit returns as soon as
/// its batch has a place and is in the queue, and waits while the pipeline is full: that is the only
/// thing that an append waits for. [`AppenderOptions`](crate::AppenderOptions) says how many batches
/// and bytes there is room for. A batch larger than the room goes alone.
///
/// # Order
///
/// The batches of one thread keep their order. Several threads may share an appender; their batches are
/// in the log in the order in which they got into the queue, and answered in that order.
///
/// # Outcomes
///
/// Every accepted batch has exactly one outcome, whatever happens: it is appended, it is not appended,
/// or, after a failure of the disk or of the engine, it is not known which. Those that are appended are
/// a prefix of those that were accepted: after the first failure, a full disk too, the appender stops,
/// refuses everything, and says why. A new appender of the same stream begins afresh.
///
/// # Callbacks
///
/// The callbacks of a store run on a thread of their own, one at a time, those of an appender in the
/// order of its submits. They may use the store and its appenders: on that thread a submit never waits,
/// and finds the pipeline [full](Refusal::Full) instead; [`StreamAppender::close`] does not wait for
/// callbacks, and [`StreamAppender::flush`] is an error. A callback that is slow makes the others
/// late and nothing else. One that panics is caught, counted in
/// [`Stats::callback_panics`](crate::Stats::callback_panics), and costs no other.
#[derive(Debug, Clone)]
pub struct StreamAppender {
    lane: Arc<Lane>,
    stream: Arc<[u8]>,
}

impl StreamAppender {
    pub(crate) fn new(lane: Arc<Lane>, stream: &[u8]) -> Self {
        StreamAppender { lane, stream: stream.into() }
    }

    /// Name of the stream.
    pub fn stream(&self) -> &[u8] {
        &self.stream
    }

    /// Appends one event, chained on the stream's tips and named by the engine. Blocks as
    /// [`StreamAppender::submit`] does.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`].
    pub fn append(&self, payload: impl AsRef<[u8]>) -> Result<Ticket, BatchRefused> {
        self.submit(Batch::from([Event::new(payload.as_ref())]))
    }

    /// Appends one event. Blocks as [`StreamAppender::submit`] does.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`].
    pub fn append_event(&self, event: NewEvent) -> Result<Ticket, BatchRefused> {
        self.submit(Batch::from([event]))
    }

    /// Appends one event if the stream's tips are exactly `tips` at the event's place in the log, and
    /// lists them as its parents: see [`NewEvent::if_tips`]. Whether they were, only the receipt of
    /// [`Ack::Ordered`](crate::Ack::Ordered) says. Blocks as [`StreamAppender::submit`] does.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`].
    pub fn append_if_tips<T: Into<Vec<u8>>>(
        &self,
        tips: impl IntoIterator<Item = T>,
        payload: impl AsRef<[u8]>,
    ) -> Result<Ticket, BatchRefused> {
        self.append_event(Event::new(payload.as_ref()).if_tips(tips))
    }

    /// Appends one event, chained on the stream's tips, if it becomes the one with the local sequence
    /// `local`: see [`NewEvent::if_local`]. Whether it did, only the receipt of
    /// [`Ack::Ordered`](crate::Ack::Ordered) says. Blocks as [`StreamAppender::submit`] does.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`].
    pub fn append_if_local(
        &self,
        local: u64,
        payload: impl AsRef<[u8]>,
    ) -> Result<Ticket, BatchRefused> {
        self.append_event(Event::new(payload.as_ref()).if_local(local))
    }

    /// Hands a batch to the writer. Blocks while the pipeline or the store's queue is full, and not for
    /// the disk.
    ///
    /// When it returns, the batch is accepted and copied: its ticket completes exactly once, whatever
    /// happens.
    ///
    /// # Errors
    ///
    /// The batch comes back whole inside the error, and nothing of it was stored: it is empty or
    /// beyond a limit, the stream is sealed, the appender or the store is closed or has stopped. On the
    /// callback thread it may be that the pipeline is full.
    pub fn submit(&self, batch: Batch) -> Result<Ticket, BatchRefused> {
        self.submit_patiently(batch, Patience::Endless)
    }

    /// As [`StreamAppender::submit`], and never blocks.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`], and [`Refusal::Full`] if there is no room.
    pub fn try_submit(&self, batch: Batch) -> Result<Ticket, BatchRefused> {
        self.submit_patiently(batch, Patience::None)
    }

    /// As [`StreamAppender::submit`], and blocks for at most `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`], and [`Refusal::TimedOut`] if there was no room in time. That
    /// touches this call alone: nothing was submitted, and the appender goes on.
    pub fn submit_timeout(&self, batch: Batch, timeout: Duration) -> Result<Ticket, BatchRefused> {
        self.submit_patiently(batch, Patience::Until(deadline_in(timeout)))
    }

    /// As [`StreamAppender::submit`], with a callback in place of a ticket. The callback is called
    /// exactly once, unless the batch is refused, and holds the batch's place in the pipeline until
    /// it returns.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`]. The callback is dropped without being called.
    pub fn submit_with(
        &self,
        batch: Batch,
        callback: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<(), BatchRefused> {
        self.submit_way(batch, Way::Callback(Box::new(callback)), Patience::Endless).map(drop)
    }

    /// As [`StreamAppender::submit_with`], and never blocks.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit_with`], and [`Refusal::Full`] if there is no room.
    pub fn try_submit_with(
        &self,
        batch: Batch,
        callback: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<(), BatchRefused> {
        self.submit_way(batch, Way::Callback(Box::new(callback)), Patience::None).map(drop)
    }

    /// As [`StreamAppender::submit_with`], with the callback that the appender was made with. Without
    /// one nobody hears of the outcome but the next [`StreamAppender::flush`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`].
    pub fn submit_and_forget(&self, batch: Batch) -> Result<(), BatchRefused> {
        self.submit_way(batch, Way::DefaultCallback, Patience::Endless).map(drop)
    }

    /// Blocks until every batch that was accepted before, from any thread, has its outcome and its
    /// callback has returned.
    ///
    /// # Errors
    ///
    /// The appender has stopped, or was aborted: some of the batches are not known to be appended. Or the
    /// call comes from a callback, which would wait for itself.
    pub fn flush(&self) -> Result<(), FlushError> {
        self.lane.flush()
    }

    /// Closes the appender and all its clones: nothing more is accepted, submits that wait for room end,
    /// and everything accepted is appended. Blocks until each batch has its outcome and its callback has
    /// returned; from a callback it does not wait.
    ///
    /// Closing a closed appender waits for the same. The store stays open, and so do other appenders
    /// of the same stream.
    ///
    /// # Errors
    ///
    /// The appender has stopped, or was aborted: some of the batches are not known to be appended.
    pub fn close(&self) -> Result<(), AppendFailure> {
        self.lane.close()
    }

    /// Gives up: nothing more is accepted, submits that wait for room end, and what the writer has not
    /// begun to write is not appended. Never blocks. Each accepted batch still has its one outcome,
    /// soon: [`Cause::Aborted`](crate::Cause::Aborted), if it was given up.
    pub fn abort(&self) {
        self.lane.abort();
    }

    fn submit_patiently(&self, batch: Batch, patience: Patience) -> Result<Ticket, BatchRefused> {
        let completion = self.submit_way(batch, Way::Ticket, patience)?;
        Ok(Ticket { completion, lane: Arc::clone(&self.lane) })
    }

    fn submit_way(
        &self,
        batch: Batch,
        way: Way,
        patience: Patience,
    ) -> Result<Option<Completion<Outcome>>, BatchRefused> {
        let mut encoded = self.lane.buffer();
        if let Err(limit) = batch.encode_into(&self.stream, &mut encoded) {
            self.lane.keep_buffer(encoded);
            return Err(SubmitError { batch, reason: Refusal::Limit(limit) });
        }
        self.lane.submit(encoded, Passage::Append, way, patience).map_err(|(reason, encoded)| {
            self.lane.keep_buffer(encoded);
            SubmitError { batch, reason }
        })
    }
}

/// Appends batches of events of any streams, through a pipeline of batches that are under way.
///
/// Made by [`Store::mixed_appender`](crate::Store::mixed_appender); everything that is said of
/// [`StreamAppender`] holds, except that no one stream belongs to it, and that it has no calls for a
/// single event.
#[derive(Debug, Clone)]
pub struct MixedAppender {
    lane: Arc<Lane>,
}

impl MixedAppender {
    pub(crate) fn new(lane: Arc<Lane>) -> Self {
        MixedAppender { lane }
    }

    /// As [`StreamAppender::submit`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`].
    pub fn submit(&self, batch: MixedBatch) -> Result<Ticket, MixedBatchRefused> {
        self.submit_patiently(batch, Patience::Endless)
    }

    /// As [`StreamAppender::try_submit`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::try_submit`].
    pub fn try_submit(&self, batch: MixedBatch) -> Result<Ticket, MixedBatchRefused> {
        self.submit_patiently(batch, Patience::None)
    }

    /// As [`StreamAppender::submit_timeout`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit_timeout`].
    pub fn submit_timeout(
        &self,
        batch: MixedBatch,
        timeout: Duration,
    ) -> Result<Ticket, MixedBatchRefused> {
        self.submit_patiently(batch, Patience::Until(deadline_in(timeout)))
    }

    /// As [`StreamAppender::submit_with`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit_with`].
    pub fn submit_with(
        &self,
        batch: MixedBatch,
        callback: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<(), MixedBatchRefused> {
        let callback: OnceCallback = Box::new(callback);
        submit_mixed(&self.lane, batch, Way::Callback(callback), Patience::Endless).map(drop)
    }

    /// As [`StreamAppender::try_submit_with`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::try_submit_with`].
    pub fn try_submit_with(
        &self,
        batch: MixedBatch,
        callback: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<(), MixedBatchRefused> {
        let callback: OnceCallback = Box::new(callback);
        submit_mixed(&self.lane, batch, Way::Callback(callback), Patience::None).map(drop)
    }

    /// As [`StreamAppender::submit_and_forget`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit_and_forget`].
    pub fn submit_and_forget(&self, batch: MixedBatch) -> Result<(), MixedBatchRefused> {
        submit_mixed(&self.lane, batch, Way::DefaultCallback, Patience::Endless).map(drop)
    }

    /// As [`StreamAppender::flush`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::flush`].
    pub fn flush(&self) -> Result<(), FlushError> {
        self.lane.flush()
    }

    /// As [`StreamAppender::close`].
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::close`].
    pub fn close(&self) -> Result<(), AppendFailure> {
        self.lane.close()
    }

    /// As [`StreamAppender::abort`].
    pub fn abort(&self) {
        self.lane.abort();
    }

    /// Hands over a batch of control records: one that puts a stream's seal on, or takes it off, or discards.
    pub(crate) fn submit_control(
        &self,
        batch: EncodedBatch,
        passage: Passage,
    ) -> Result<Ticket, Refusal> {
        let submitted = self.lane.submit(batch, passage, Way::Ticket, Patience::Endless);
        let completion = submitted.map_err(|(reason, _)| reason)?;
        Ok(Ticket { completion, lane: Arc::clone(&self.lane) })
    }

    fn submit_patiently(
        &self,
        batch: MixedBatch,
        patience: Patience,
    ) -> Result<Ticket, MixedBatchRefused> {
        let completion = submit_mixed(&self.lane, batch, Way::Ticket, patience)?;
        Ok(Ticket { completion, lane: Arc::clone(&self.lane) })
    }
}

fn submit_mixed(
    lane: &Arc<Lane>,
    batch: MixedBatch,
    way: Way,
    patience: Patience,
) -> Result<Option<Completion<Outcome>>, MixedBatchRefused> {
    let encoded: EncodedBatch = batch.into_encoded();
    lane.submit(encoded, Passage::Append, way, patience).map_err(|(reason, encoded)| SubmitError {
        reason,
        batch: MixedBatch::from_encoded(encoded),
    })
}

/// The promise of an outcome for an accepted batch.
///
/// Dropping a ticket takes nothing back: the batch is appended all the same.
#[derive(Debug)]
pub struct Ticket {
    /// None once the outcome was taken.
    completion: Option<Completion<Outcome>>,
    lane: Arc<Lane>,
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
    pub fn wait(mut self) -> Result<Receipt, AppendFailure> {
        let completion = self.completion.as_mut().expect("the outcome of a ticket is given once");
        completion.spin(self.lane.inlet().core.spin);
        let outcome = completion.wait();
        self.given(outcome)
    }

    /// Blocks until the batch is acknowledged, or until `timeout` is over: then `None`, and the
    /// ticket can be waited for again. `None` at once if the outcome was given already.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<Result<Receipt, AppendFailure>> {
        self.wait_deadline(deadline_in(timeout))
    }

    fn wait_deadline(&mut self, deadline: Instant) -> Option<Outcome> {
        let outcome = self.completion.as_mut()?.wait_deadline(deadline)?;
        Some(self.given(outcome))
    }

    /// The outcome, if there is one by now and it was not given already. Never blocks.
    pub fn try_wait(&mut self) -> Option<Result<Receipt, AppendFailure>> {
        let outcome = self.completion.as_mut()?.try_take()?;
        Some(self.given(outcome))
    }

    fn given(&mut self, outcome: Result<Outcome, Abandoned>) -> Outcome {
        self.let_go();
        // Only a reply that was leaked breaks its promise, and nobody leaks one.
        outcome.unwrap_or_else(|Abandoned| {
            Err(AppendFailure::Unknown(self.lane.inlet().core.cause_of_death()))
        })
    }

    fn let_go(&mut self) {
        if let Some(completion) = self.completion.take() {
            self.lane.keep_cell(completion.release());
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.let_go();
    }
}
