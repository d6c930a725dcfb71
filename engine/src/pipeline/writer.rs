//! The writer: the one thread that writes the log.
//!
//! It takes what is in the queue, puts it into one frame, writes the frame once, syncs it once, and
//! only then says so: first to the readers of the log, then to the appenders. Appends that come
//! while a sync is under way make up the next frame, so the group grows with the load and
//! nobody sets a timer.
//!
//! After a failed write or sync nothing is tried again and nothing more is acknowledged. The writer
//! goes on answering, until the queue is closed and empty, so that nobody waits for it in vain.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use thalweg_wal::format::{BATCH_LEN_MAX, FRAME_LEN_MAX};
use thalweg_wal::{AppendError, FrameBuf, LogWriter, Spare, SpareRequest};

use crate::clock::Clock;
use crate::error::{AppendFailure, Cause, Outcome};
use crate::event::{Ack, Receipt};
use crate::observe::Frame;
use crate::options::Durability;
use crate::pipeline::committer::{Awaiting, Commit, Due};
use crate::pipeline::core::Core;
use crate::pipeline::group_commit::{self, GroupCommit, Panic};
use crate::pipeline::lane::{Reply, Request};
use crate::pipeline::threads::message_of;
use crate::sync::{Arc, Receiver, RecvError, Sender, mpmc as channel, now};

/// A frame is closed when it has this many bytes, though a batch may make it longer.
const GROUP_BYTES: u64 = 8 << 20;
// Whatever comes next, the frame that it goes into has room for it.
const _: () = assert!(GROUP_BYTES + BATCH_LEN_MAX as u64 <= FRAME_LEN_MAX);
/// A frame is closed when it has this many requests.
const GROUP_REQUESTS: usize = 4096;
/// With buffered durability, the log is synced when it has not been for this long.
const BUFFERED_SYNC_EVERY: Duration = Duration::from_secs(1);

/// The writer's state.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) core: Arc<Core>,
    pub(crate) log: LogWriter,
    pub(crate) durability: Durability,
    pub(crate) clock: Clock,
    pub(crate) requests: Receiver<Request>,
    /// Takes appends that wait for the order.
    pub(crate) committer: Sender<Commit>,
    pub(crate) preparer: channel::Sender<SpareRequest>,
    pub(crate) spares: channel::Receiver<Option<Spare>>,
    pub(crate) group: Group,
}

/// The requests in hand. What is in here outlives a panic, and is answered.
#[derive(Debug)]
pub(crate) struct Group {
    frame: FrameBuf,
    /// Those that are answered when the frame is durable, and those that then wait for the order.
    durable: VecDeque<Member>,
    ordered: VecDeque<Member>,
    /// Position at which the frame was written, and the end of the log behind it.
    written: (u64, u64),
    /// What it has.
    info: Frame,
    /// With buffered durability, when the log was synced last.
    last_sync: Instant,
}

impl Group {
    pub(crate) fn new() -> Self {
        Group {
            frame: FrameBuf::new(),
            durable: VecDeque::new(),
            ordered: VecDeque::new(),
            written: (0, 0),
            info: Frame::default(),
            last_sync: now(),
        }
    }

    fn len(&self) -> usize {
        self.durable.len() + self.ordered.len()
    }

    /// What the frame has of the requests, for those who count.
    fn frame_of(&self, bytes: u64) -> Frame {
        let mut frame = Frame { bytes, ..Frame::default() };
        for member in self.durable.iter().chain(&self.ordered) {
            if let Part::Records(records) = &member.part {
                frame.batches += 1;
                frame.events += u64::from(records.count);
            }
        }
        frame
    }

    fn pop(&mut self) -> Option<Member> {
        self.durable.pop_front().or_else(|| self.ordered.pop_front())
    }
}

/// A request in hand.
#[derive(Debug)]
struct Member {
    reply: Reply,
    part: Part,
}

/// What a request has to do with the frame that is being made.
#[derive(Debug)]
enum Part {
    Records(Records),
    /// Its lane has stopped. It is answered in its turn.
    Refused(AppendFailure),
    /// It has no batch, and waits for its turn.
    Nothing,
}

/// What the frame has of a request.
#[derive(Debug)]
struct Records {
    /// Offset of the first record in the frame.
    offset: u64,
    byte_len: u64,
    count: u32,
}

impl Writer {
    /// Runs until the queue is closed and empty.
    pub(crate) fn run(&mut self) {
        group_commit::run(self);
        if self.core.cause().is_none() {
            self.sync_buffered();
        }
    }

    /// The next request; nothing once the queue is closed and empty. With buffered durability the
    /// log is synced meanwhile, when it is due.
    fn next_request(&mut self) -> Option<Request> {
        loop {
            if self.durability == Durability::Sync || self.log.durable() == self.log.end() {
                self.group.last_sync = now();
                return self.requests.recv();
            }
            let due = self.group.last_sync + BUFFERED_SYNC_EVERY;
            if due <= now() {
                self.sync_buffered();
                self.group.last_sync = now();
            }
            match self.requests.recv_deadline(due) {
                Ok(request) => return Some(request),
                Err(RecvError::Ended) => return None,
                Err(RecvError::TimedOut) => {}
            }
        }
    }

    /// Makes what was appended with buffered durability durable, if there is something.
    fn sync_buffered(&mut self) {
        if self.log.durable() == self.log.end() {
            return;
        }
        match self.log.sync() {
            Ok(durable) => self.core.synced.set(durable),
            Err(error) => self.core.fail(cause_of(error)),
        }
    }

    /// Puts a request into the group.
    fn add(&mut self, request: Request) {
        let Request { batch, reply } = request;
        self.core.observer.batch(reply.sent(), |detail| &detail.queue);
        let part = match reply.refusal() {
            Some(failure) => Part::Refused(failure.clone().not_appended()),
            None if batch.is_empty() => Part::Nothing,
            None => Part::Records(Records {
                offset: self.group.frame.push(&batch),
                byte_len: batch.byte_len(),
                count: batch.count(),
            }),
        };
        reply.keep_buffer(batch);
        let members = match reply.ack() {
            Ack::Durable => &mut self.group.durable,
            Ack::Ordered => &mut self.group.ordered,
        };
        members.push_back(Member { reply, part });
    }

    /// Answers a request for which no order is to be awaited. Those of a lane that waits for the order
    /// go through the committer all the same, behind those that came before.
    fn answer(&self, reply: Reply, outcome: Outcome) {
        if let Err(failure) = &outcome {
            reply.stop_lane(failure);
        }
        match reply.ack() {
            Ack::Durable => reply.answer(outcome),
            Ack::Ordered => self.await_order(Awaiting { reply, due: Due::Now(outcome) }),
        }
    }

    fn await_order(&self, awaiting: Awaiting) {
        // The committer outlives the writer, and answers even if it has failed.
        let sent = self.committer.send(Commit::Awaiting(awaiting));
        debug_assert!(sent.is_ok(), "the committer takes all that the writer hands over");
    }

    fn answer_all(&mut self, failure: &AppendFailure) {
        while let Some(member) = self.group.pop() {
            let failure = match member.part {
                Part::Refused(failure) => failure,
                Part::Records(_) | Part::Nothing => failure.clone(),
            };
            self.answer(member.reply, Err(failure));
        }
    }

    fn ask_for_spare(&mut self) {
        if let Ok(spare) = self.spares.try_recv() {
            self.log.offer_spare(spare);
        }
        if !self.log.is_spare_due() {
            return;
        }
        if let Some(base) = self.core.horizon().base() {
            self.log.trimmed(&base.point());
        }
        if let Some(request) = self.log.request_spare()
            && self.preparer.send(request).is_err()
        {
            self.log.offer_spare(None);
        }
    }

    /// Goes on in a new segment, since somebody wants to trim all before it. Without room for one, it does not.
    fn roll(&mut self) -> Result<(), AppendError> {
        self.core.roll_wanted.set(0);
        if self.log.awaits_any_spare() {
            self.take_spare();
        }
        self.log.forget(self.core.forget_below.get());
        match self.log.roll_now() {
            Ok(Some(segment)) => {
                self.core.observer.trace.rolled(segment.base());
                self.core.segments.push(segment);
                self.core.unsealed.set(0);
                let end = self.log.end();
                self.core.written.set(end);
                self.core.synced.set(end);
                self.core.durable.publish(end);
                self.core.orderer_work.notify_all();
                self.core.trim_work.notify_all();
                Ok(())
            }
            Ok(None) | Err(AppendError::StorageFull(_) | AppendError::Exhausted(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the spare that was asked for: making another would only take longer.
    fn take_spare(&mut self) {
        let spare = self.spares.recv().unwrap_or(None);
        self.log.offer_spare(spare);
    }
}

impl GroupCommit for Writer {
    type Failure = AppendError;

    fn gather(&mut self) -> bool {
        self.ask_for_spare();
        self.group.frame.clear();
        let Some(first) = self.next_request() else { return false };
        self.add(first);
        while self.group.frame.byte_len() < GROUP_BYTES && self.group.len() < GROUP_REQUESTS {
            let Ok(request) = self.requests.try_recv() else { break };
            self.add(request);
        }
        self.group.frame.stamp(self.clock.millis());
        true
    }

    fn is_stopped(&self) -> bool {
        self.core.cause().is_some()
    }

    fn refuse(&mut self) {
        self.answer_all(&AppendFailure::NotAppended(self.core.cause_of_death()));
    }

    fn write(&mut self) -> Result<(), AppendError> {
        let start = now();
        if self.core.roll_wanted.get() > 0 {
            self.roll()?;
        }
        if self.group.frame.is_empty() {
            let end = self.log.end();
            self.group.written = (end, end);
            return Ok(());
        }
        if self.log.awaits_spare(&self.group.frame) {
            self.take_spare();
        }
        self.log.forget(self.core.forget_below.get());
        let appended = self.log.append(&mut self.group.frame)?;
        if let Some(segment) = appended.rolled {
            self.core.observer.trace.rolled(segment.base());
            self.core.segments.push(segment);
            self.core.unsealed.set(0);
            self.core.trim_work.notify_all();
        }
        self.core.written.set(appended.end);
        self.group.written = (appended.position, appended.end);
        let bytes = appended.end - appended.position;
        self.group.info = self.group.frame_of(bytes);
        self.core.in_frame.set(self.group.info.events);
        self.core.observer.wrote(self.group.info, start);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), AppendError> {
        if self.group.frame.is_empty() {
            return Ok(());
        }
        let start = now();
        match self.durability {
            Durability::Sync => self.core.synced.set(self.log.sync()?),
            Durability::Buffered => self.log.show(),
        }
        self.core.observer.synced(start);
        Ok(())
    }

    fn hand_over(&mut self) {
        let (position, _) = self.group.written;
        while let Some(Member { reply, part }) = self.group.ordered.pop_front() {
            let due = match part {
                Part::Records(records) => Due::Ordered {
                    receipt: records.receipt(position),
                    event_count: records.count as usize,
                },
                Part::Refused(failure) => Due::Now(Err(failure)),
                Part::Nothing => Due::Now(Ok(Receipt::default())),
            };
            self.await_order(Awaiting { reply, due });
        }
    }

    fn publish(&mut self) {
        if self.group.frame.is_empty() {
            return;
        }
        let (_, end) = self.group.written;
        self.core.durable.publish(end);
        self.core.in_frame.set(0);
        self.core.observer.durable(self.group.info, &self.core.queues);
    }

    fn acknowledge(&mut self) {
        let (position, _) = self.group.written;
        while let Some(Member { reply, part }) = self.group.durable.pop_front() {
            reply.answer(match part {
                Part::Records(records) => Ok(records.receipt(position)),
                Part::Refused(failure) => Err(failure),
                Part::Nothing => Ok(Receipt::default()),
            });
        }
        // Those who wait for an answer come first: they may have the next append.
        self.core.orderer_work.notify_all();
    }

    fn fail(&mut self, failure: AppendError) {
        let failure = match failure {
            AppendError::StorageFull(error) => {
                AppendFailure::NotAppended(Cause::StorageFull(Arc::new(error)))
            }
            AppendError::Exhausted(error) => {
                AppendFailure::NotAppended(Cause::Exhausted(Arc::new(error)))
            }
            // The frame is perhaps on the device and perhaps not; nothing after it will be.
            error => {
                self.core.fail(cause_of(error));
                AppendFailure::Unknown(self.core.cause_of_death())
            }
        };
        self.answer_all(&failure);
    }

    fn panicked(&mut self, panic: Panic) {
        let cause = Cause::Panic { thread: "thalweg-writer", message: message_of(&*panic) };
        self.core.fail(cause);
        self.core.stop_orderer();
        self.answer_all(&AppendFailure::Unknown(self.core.cause_of_death()));
    }
}

impl Records {
    fn receipt(&self, frame: u64) -> Receipt {
        let position = frame + self.offset;
        Receipt { position, end: position + self.byte_len, placements: Vec::new() }
    }
}

fn cause_of(error: AppendError) -> Cause {
    match error {
        AppendError::StorageFull(error)
        | AppendError::Exhausted(error)
        | AppendError::Failed(error) => Cause::Log(Arc::new(error)),
        error => Cause::Log(Arc::new(std::io::Error::other(error.to_string()))),
    }
}
