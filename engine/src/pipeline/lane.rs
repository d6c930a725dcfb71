//! A lane: what the handles of one appender share, and the way of a batch from its submit to its answer.
//!
//! A batch takes a permit of its lane, which is the appender's pipeline, and one of the queue, which
//! bounds the memory of all of them; both may have to be waited for, and nothing is held meanwhile that
//! others need: see `room`. Then it passes the gate. From there on it is accepted, and its [`Reply`] is answered
//! exactly once: by the writer or the committer, or, if they let go of it, by being dropped.
//!
//! The answers of a lane come from one thread, since all its batches wait for the same: so they come
//! in the order of the log, which is the order in which the batches passed the gate.
//!
//! A lane stops at its first failure. The writer refuses what was accepted after a batch that it did
//! not store, so what is stored of a lane is a prefix of what was submitted.

use std::fmt;
use std::sync::OnceLock;
use std::time::Instant;

use crossbeam::queue::ArrayQueue;
use thalweg_wal::EncodedBatch;

use crate::error::{AppendFailure, Cause, FlushError, Outcome, Refusal};
use crate::event::Ack;
use crate::options::AppenderOptions;
use crate::pipeline::callbacks::{self, is_callback_thread};
use crate::pipeline::core::Core;
use crate::pipeline::gate::{Gate, Shut};
use crate::pipeline::permits::{Budget, Denied, Patience};
use crate::pipeline::room::Room;
use crate::sync::{Arc, Cell, Completion, Ordering, Promise, Sender, completion};

/// Most batches in the queue with one kind of acknowledgement.
pub(crate) const QUEUE_BATCHES_MAX: u64 = 4096;
/// Kinds of acknowledgements, each with permits of its own.
pub(crate) const ACK_KINDS: u64 = 2;
/// A buffer that has grown beyond this, or beyond its share of the pipeline, is not kept for the next
/// batch, but one of a page always is.
const BUFFER_BYTES_KEPT_MAX: u64 = 1 << 20;
const BUFFER_BYTES_KEPT_MIN: u64 = 4 << 10;

/// Where appends go in.
#[derive(Debug)]
pub(crate) struct Inlet {
    pub(crate) core: Arc<Core>,
    /// None for a store that is open for reading only.
    pub(crate) gate: Option<Arc<Gate<Request>>>,
    pub(crate) callbacks: Sender<callbacks::Message<Job>>,
}

impl Inlet {
    pub(crate) fn new(
        core: Arc<Core>,
        gate: Option<Arc<Gate<Request>>>,
        callbacks: Sender<callbacks::Message<Job>>,
    ) -> Self {
        Inlet { core, gate, callbacks }
    }

    /// The permits of the queue for appends with this acknowledgement.
    fn budget(&self, ack: Ack) -> &Arc<Budget> {
        match ack {
            Ack::Durable => &self.core.queues.durable,
            Ack::Ordered => &self.core.queues.ordered,
        }
    }

    fn refusal(&self) -> Refusal {
        match self.core.cause() {
            Some(cause) => Refusal::Poisoned(cause.clone()),
            None => Refusal::Closed,
        }
    }
}

/// An accepted batch on its way to the writer.
#[derive(Debug)]
pub(crate) struct Request {
    /// Nothing, for a request that only wants to be answered in its turn.
    pub(crate) batch: EncodedBatch,
    pub(crate) reply: Reply,
}

/// What a callback is called with.
pub(crate) type OnceCallback = Box<dyn FnOnce(Outcome) + Send>;
/// What a default callback is called with.
pub(crate) type DefaultCallback = Arc<dyn Fn(Outcome) + Send + Sync>;

/// Who is told.
pub(crate) enum Addressee {
    Ticket(Promise<Outcome>),
    Callback(Callback),
    Nobody,
    /// It has no permit of the lane, and waits for those before it.
    Flush(Promise<()>),
}

/// The right to one answer. Dropping it answers too: whoever had it has failed.
pub(crate) struct Reply {
    /// None only while it is dropped.
    lane: Option<Arc<Lane>>,
    byte_len: u64,
    /// None once it is answered.
    addressee: Option<Addressee>,
    /// The stream that the batch seals: [`Gate::decide`] has to follow.
    seals: Option<u64>,
    /// When the batch was sent, if that is recorded.
    sent: Option<Instant>,
}

impl Reply {
    fn lane(&self) -> &Arc<Lane> {
        self.lane.as_ref().expect("a reply has its lane until it is dropped")
    }

    /// Why the batch must not be written, if it must not.
    pub(crate) fn refusal(&self) -> Option<&AppendFailure> {
        self.lane().failure.get()
    }

    /// When the batch was sent, if that is recorded.
    pub(crate) fn sent(&self) -> Option<Instant> {
        self.sent
    }

    /// What the batch waits for.
    pub(crate) fn ack(&self) -> Ack {
        self.lane().ack
    }

    /// Stops the lane: nothing that was submitted to it later is stored.
    pub(crate) fn stop_lane(&self, failure: &AppendFailure) {
        if self.lane().stops && !matches!(self.addressee, Some(Addressee::Flush(_))) {
            self.lane().stop(failure.clone());
        }
    }

    /// Takes back the buffer of a batch that is in a frame by now.
    pub(crate) fn keep_buffer(&self, buffer: EncodedBatch) {
        self.lane().keep_buffer(buffer);
    }

    /// Answers.
    pub(crate) fn answer(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Err(failure) = &outcome {
            self.stop_lane(failure);
        }
        let Some(addressee) = self.addressee.take() else { return };
        let (byte_len, seals) = (self.byte_len, self.seals);
        let lane = self.lane();
        let inlet = &lane.inlet;
        if let (Some(stream), Some(gate)) = (seals, &inlet.gate) {
            // Here, in the order of the log, and not by whoever waits for the seal: that may be after
            // somebody has heard that an unseal behind it is done.
            gate.decide(stream);
        }
        if lane.ack == Ack::Ordered && !matches!(addressee, Addressee::Flush(_)) {
            inlet.core.ordered_acks.fetch_sub(1, Ordering::Relaxed);
        }
        if outcome.is_ok() {
            inlet.core.observer.batch(self.sent, |detail| match lane.ack {
                Ack::Durable => &detail.durable,
                Ack::Ordered => &detail.ordered,
            });
        }
        lane.room.leave_queue(byte_len);
        let call = match addressee {
            Addressee::Ticket(promise) => {
                return lane.keep_cell(lane.room.answer(byte_len, promise, outcome));
            }
            Addressee::Nobody => return lane.room.leave_lane(byte_len),
            Addressee::Flush(promise) => Job::Flushed(promise),
            Addressee::Callback(callback) => {
                // Relaxed: a number for people.
                inlet.core.queues.callbacks.fetch_add(1, Ordering::Relaxed);
                let answered = inlet.core.observer.batch_clock();
                Job::Call { callback, outcome, lane: Arc::clone(lane), byte_len, answered }
            }
        };
        // The thread ends after the last answer.
        let sent = inlet.callbacks.send(callbacks::Message::Run(call));
        debug_assert!(sent.is_ok(), "callbacks are run until the last answer is given");
    }

    /// Gives everything back: the batch was not accepted after all.
    fn withdraw(mut self) {
        let addressee = self.addressee.take();
        let lane = self.lane();
        if lane.ack == Ack::Ordered {
            lane.inlet.core.ordered_acks.fetch_sub(1, Ordering::Relaxed);
        }
        lane.room.leave_queue(self.byte_len);
        lane.room.leave_lane(self.byte_len);
        // What it has hold of is the caller's; nothing is kept from others meanwhile.
        drop(addressee);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.addressee.is_some() {
            let failure = AppendFailure::Unknown(self.lane().inlet.core.cause_of_death());
            self.finish(Err(failure));
        }
        // The handles may be gone. What the default callback has hold of is the user's, the last handle
        // of the store perhaps, and is not for the writer or the committer to drop.
        if let Some(lane) = self.lane.take().and_then(Arc::into_inner)
            && let Some(callback) = lane.default_callback
        {
            let inlet = lane.inlet;
            let job = Job::LetGo { callback, core: Arc::clone(&inlet.core) };
            let _ = inlet.callbacks.send(callbacks::Message::Run(job));
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("byte_len", &self.byte_len).finish_non_exhaustive()
    }
}

/// What the callback thread runs.
pub(crate) enum Job {
    Call {
        callback: Callback,
        outcome: Outcome,
        lane: Arc<Lane>,
        byte_len: u64,
        answered: Option<Instant>,
    },
    Flushed(Promise<()>),
    /// Drops the default callback of an appender that is gone.
    LetGo {
        callback: DefaultCallback,
        core: Arc<Core>,
    },
}

/// A callback, of one batch or of all.
pub(crate) enum Callback {
    Once(OnceCallback),
    Default(DefaultCallback),
}

impl callbacks::Job for Job {
    fn run(self) {
        match self {
            Job::Flushed(promise) => drop(promise.complete(())),
            Job::Call { callback, outcome, lane, byte_len, answered } => {
                lane.inlet.core.catch_callback(|| match callback {
                    Callback::Once(callback) => callback(outcome),
                    Callback::Default(callback) => callback(outcome),
                });
                lane.inlet.core.observer.batch(answered, |detail| &detail.callback);
                lane.inlet.core.queues.callbacks.fetch_sub(1, Ordering::Relaxed);
                lane.room.leave_lane(byte_len);
                if let Some(lane) = Arc::into_inner(lane) {
                    lane.inlet.core.catch_callback(|| drop(lane.default_callback));
                }
            }
            Job::LetGo { callback, core } => core.catch_callback(|| drop(callback)),
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}

/// What the handles of one appender share.
pub(crate) struct Lane {
    inlet: Arc<Inlet>,
    ack: Ack,
    room: Room,
    /// Whether the lane stops at its first failure.
    stops: bool,
    /// The first failure.
    failure: OnceLock<AppendFailure>,
    default_callback: Option<DefaultCallback>,
    /// Buffers and cells that have served, for the next batches.
    buffers: ArrayQueue<EncodedBatch>,
    buffer_bytes_kept: usize,
    cells: ArrayQueue<Cell<Outcome>>,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("ack", &self.ack).finish_non_exhaustive()
    }
}

/// How a batch passes the gate.
#[derive(Clone, Copy)]
pub(crate) enum Passage {
    /// It appends to streams, none of which may be sealed.
    Append,
    /// It seals the stream with this key.
    Seal(u64),
    /// It takes the seal off a stream.
    Unseal,
}

/// Where the outcome of a submit goes.
pub(crate) enum Way {
    Ticket,
    Callback(OnceCallback),
    DefaultCallback,
}

/// What the buffer of one batch may have grown to, so that all that are kept take no more than a few
/// times what the pipeline has room for.
fn buffer_bytes_kept(options: &AppenderOptions) -> usize {
    let share = options.pipeline_bytes / options.pipeline as u64;
    share.clamp(BUFFER_BYTES_KEPT_MIN, BUFFER_BYTES_KEPT_MAX) as usize
}

impl Lane {
    /// The lane of a new appender.
    pub(crate) fn new(inlet: Arc<Inlet>, options: &AppenderOptions) -> Self {
        let AppenderOptions { pipeline, pipeline_bytes, ack, default_callback } = options;
        let budget = Arc::new(Budget::new(*pipeline as u64, *pipeline_bytes));
        inlet.core.budgets.add(&budget);
        let room = Room::new(budget, Arc::clone(inlet.budget(*ack)));
        Lane {
            inlet,
            ack: *ack,
            room,
            stops: true,
            failure: OnceLock::new(),
            default_callback: default_callback.clone(),
            // One for each batch under way, one for each that is being made or read, and one that is with
            // the writer for a moment longer: with fewer, a steady flow would allocate now and then.
            buffers: ArrayQueue::new(2 * pipeline + 2),
            buffer_bytes_kept: buffer_bytes_kept(options),
            cells: ArrayQueue::new(2 * pipeline + 2),
        }
    }

    /// The lane of a new appender of batches that come encoded, for which no buffers need be kept.
    pub(crate) fn of_encoded(inlet: Arc<Inlet>, options: &AppenderOptions) -> Self {
        Lane { buffers: ArrayQueue::new(1), buffer_bytes_kept: 0, ..Lane::new(inlet, options) }
    }

    /// A lane for batches that have nothing to do with each other: bounded by the queue alone, and it
    /// goes on after a failure.
    pub(crate) fn unrelated(inlet: Arc<Inlet>, ack: Ack) -> Self {
        let options = AppenderOptions::new().ack(ack);
        let budget = Arc::new(Budget::new(QUEUE_BATCHES_MAX, u64::MAX));
        inlet.core.budgets.add(&budget);
        let room = Room::new(budget, Arc::clone(inlet.budget(ack)));
        Lane { room, stops: false, ..Lane::of_encoded(inlet, &options) }
    }

    pub(crate) fn inlet(&self) -> &Arc<Inlet> {
        &self.inlet
    }

    /// An empty buffer to encode a batch in.
    pub(crate) fn buffer(&self) -> EncodedBatch {
        self.buffers.pop().unwrap_or_default()
    }

    pub(crate) fn keep_buffer(&self, mut buffer: EncodedBatch) {
        // A flush brings one that never had room for anything.
        if (1..=self.buffer_bytes_kept).contains(&buffer.capacity()) {
            buffer.clear();
            let _ = self.buffers.push(buffer);
        }
    }

    /// Keeps a cell that has served.
    pub(crate) fn keep_cell(&self, cell: Option<Cell<Outcome>>) {
        if let Some(cell) = cell {
            let _ = self.cells.push(cell);
        }
    }

    fn stop(&self, failure: AppendFailure) {
        let _ = self.failure.set(failure);
        self.room.close();
    }

    /// Why nothing more is accepted, if nothing is.
    fn refusal(&self) -> Refusal {
        match (self.inlet.core.cause(), self.failure.get()) {
            (Some(cause), _) => Refusal::Poisoned(cause.clone()),
            (None, Some(failure)) => Refusal::Stopped(failure.clone()),
            (None, None) => Refusal::Closed,
        }
    }

    /// Hands a batch to the writer. Waits for permits as `patience` has it, and never on the callback
    /// thread. For [`Way::Ticket`], returns what the ticket waits for.
    pub(crate) fn submit(
        self: &Arc<Self>,
        batch: EncodedBatch,
        passage: Passage,
        way: Way,
        patience: Patience,
    ) -> Result<Option<Completion<Outcome>>, (Refusal, EncodedBatch)> {
        let inlet = &*self.inlet;
        let Some(gate) = &inlet.gate else { return Err((Refusal::ReadOnly, batch)) };
        if batch.is_empty() {
            return Err((Refusal::Empty, batch));
        }
        let byte_len = batch.byte_len();
        let start = inlet.core.observer.batch_clock();
        if let Err(denied) = self.room.take(byte_len, patience) {
            return Err((self.refusal_for(denied), batch));
        }
        inlet.core.observer.batch(start, |detail| &detail.slot_wait);
        let (addressee, completion) = self.addressee(way);
        if self.ack == Ack::Ordered {
            // Relaxed: the request travels through the queue, the log and `durable` before the
            // orderer looks, and each of these hands over what came before it.
            inlet.core.ordered_acks.fetch_add(1, Ordering::Relaxed);
        }
        let seals = match passage {
            Passage::Seal(stream) => Some(stream),
            Passage::Append | Passage::Unseal => None,
        };
        let lane = Some(Arc::clone(self));
        let sent = inlet.core.observer.batch_clock();
        let reply = Reply { lane, byte_len, addressee: Some(addressee), seals, sent };
        let keys = inlet.core.keys;
        let appends_to = |request: &Request, is_sealed: &dyn Fn(u64) -> bool| {
            request.batch.unsealed_streams().any(|stream| is_sealed(keys.stream(stream)))
        };
        let request = Request { batch, reply };
        let passed = match passage {
            Passage::Append => gate.pass(request, appends_to),
            Passage::Seal(stream) => gate.seal(stream, request),
            Passage::Unseal => gate.pass(request, |_, _| false),
        };
        let (reason, Request { batch, reply }) = match passed {
            Ok(()) => return Ok(completion),
            Err(Shut::Closed(request)) => (inlet.refusal(), request),
            Err(Shut::Sealed(request)) => (Refusal::Sealed, request),
        };
        reply.withdraw();
        Err((reason, batch))
    }

    fn refusal_for(&self, denied: Denied) -> Refusal {
        match denied {
            Denied::Closed => self.refusal(),
            Denied::Full => Refusal::Full,
            Denied::TimedOut => Refusal::TimedOut,
        }
    }

    fn addressee(&self, way: Way) -> (Addressee, Option<Completion<Outcome>>) {
        match (way, &self.default_callback) {
            (Way::Callback(callback), _) => (Addressee::Callback(Callback::Once(callback)), None),
            (Way::DefaultCallback, Some(callback)) => {
                (Addressee::Callback(Callback::Default(Arc::clone(callback))), None)
            }
            (Way::DefaultCallback, None) => (Addressee::Nobody, None),
            (Way::Ticket, _) => {
                let (promise, completion) = self.cells.pop().unwrap_or_default().split();
                (Addressee::Ticket(promise), Some(completion))
            }
        }
    }

    /// Blocks until every batch that was accepted before is answered, its callback included.
    pub(crate) fn flush(self: &Arc<Self>) -> Result<(), FlushError> {
        let Some(gate) = &self.inlet.gate else { return Ok(()) };
        if is_callback_thread() {
            return Err(FlushError::OnCallbackThread);
        }
        let (promise, mut answer) = completion();
        let sent = self.inlet.budget(self.ack).take(0, Patience::Endless).is_ok() && {
            let addressee = Some(Addressee::Flush(promise));
            let lane = Some(Arc::clone(self));
            let reply = Reply { lane, byte_len: 0, addressee, seals: None, sent: None };
            let request = Request { batch: EncodedBatch::new(), reply };
            match gate.pass(request, |_, _| false) {
                Ok(()) => true,
                Err(
                    Shut::Closed(Request { mut reply, .. })
                    | Shut::Sealed(Request { mut reply, .. }),
                ) => {
                    self.inlet.budget(self.ack).give_back(0);
                    reply.addressee = None;
                    false
                }
            }
        };
        if sent {
            // A promise that was dropped has waited for those before it too.
            let _ = answer.wait();
        } else {
            // Nothing passes any more, so all that is under way was accepted before.
            self.room.close();
            self.room.wait_answered();
        }
        self.result().map_err(FlushError::Stopped)
    }

    /// Accepts nothing more, and blocks until everything accepted is answered, callbacks included. Does
    /// not block on the callback thread.
    pub(crate) fn close(&self) -> Result<(), AppendFailure> {
        self.room.close();
        self.room.wait_answered();
        self.result()
    }

    /// Accepts nothing more, and has the writer refuse what it has not begun to write.
    pub(crate) fn abort(&self) {
        self.stop(AppendFailure::NotAppended(Cause::Aborted));
    }

    fn result(&self) -> Result<(), AppendFailure> {
        match self.failure.get() {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A deep pipeline of large batches kept a buffer of a MiB for each place, however few bytes it had
    /// room for.
    #[test]
    fn the_buffers_that_are_kept_take_little_more_than_the_pipeline() {
        for pipeline in [1, 2, 16, AppenderOptions::PIPELINE_MAX] {
            for pipeline_bytes in [1, 1 << 20, AppenderOptions::PIPELINE_BYTES_DEFAULT, u64::MAX] {
                let options =
                    AppenderOptions::new().pipeline(pipeline).pipeline_bytes(pipeline_bytes);
                let each = buffer_bytes_kept(&options) as u64;
                assert!((BUFFER_BYTES_KEPT_MIN..=BUFFER_BYTES_KEPT_MAX).contains(&each));
                let count = 2 * pipeline as u64 + 2;
                let bound = pipeline_bytes.saturating_mul(4).max(count * BUFFER_BYTES_KEPT_MIN);
                assert!(count * each <= bound, "{pipeline} batches, {pipeline_bytes} bytes");
            }
        }
    }
}
