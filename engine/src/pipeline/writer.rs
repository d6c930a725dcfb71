//! The writer: the one thread that writes the log.
//!
//! It takes what is in the queue, puts it into one frame, writes the frame once, syncs it once, and
//! only then says so: first to the readers of the log, then to the appenders. Appends that come
//! while a sync is under way make up the next frame, so the group grows with the load and
//! nobody sets a timer.
//!
//! After a failed write or sync nothing is tried again and nothing more is acknowledged. The writer
//! goes on answering, until the queue is closed and empty, so that nobody waits for it in vain.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, SendError, Sender};
use thalweg_wal::{AppendError, FrameBuf, LogWriter, Spare, SpareRequest};

use crate::error::{AppendFailure, Cause};
use crate::event::{Ack, Receipt};
use crate::options::Durability;
use crate::pipeline::committer::Awaiting;
use crate::pipeline::core::Core;
use crate::pipeline::orderer::Message;
use crate::pipeline::queue::{Request, Requests};
use crate::pipeline::threads::message_of;
use crate::sync::Arc;

/// A frame is closed when it has this many bytes, though a batch may make it longer.
const GROUP_BYTES: u64 = 8 << 20;
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
    pub(crate) requests: Requests,
    /// Tells the orderer that the log has grown.
    pub(crate) orderer: Sender<Message>,
    /// Hands appends that wait for the order to the committer.
    pub(crate) awaiting: Sender<Awaiting>,
    pub(crate) preparer: Sender<SpareRequest>,
    pub(crate) spares: Receiver<Option<Spare>>,
}

/// A request in the frame that is being made.
#[derive(Debug)]
struct Member {
    request: Request,
    /// Offset of its first record in the frame.
    offset: u64,
}

impl Writer {
    /// Runs until the queue is closed and empty. If the writer panics, what is left is answered all
    /// the same: flume keeps it for as long as there is a sender, so nobody else would.
    pub(crate) fn run(&mut self) {
        // What is in hand outlives a panic, so that nobody hears of it before its cause is known.
        let (mut group, mut carried) = (Vec::new(), None);
        let follow = AssertUnwindSafe(|| self.follow(&mut group, &mut carried));
        if let Err(panic) = catch_unwind(follow) {
            let cause = Cause::Panic { thread: "thalweg-writer", message: message_of(&*panic) };
            self.core.fail(cause.clone());
            self.core.stop_orderer();
            // The first cause stands, and may be that of another thread.
            let cause = self.core.cause().cloned().unwrap_or(cause);
            for Member { request, .. } in group {
                self.answer(request, AppendFailure::Unknown(cause.clone()));
            }
            carried.into_iter().for_each(|request| self.refuse(request));
            while let Ok(request) = self.requests.recv() {
                self.refuse(request);
            }
        }
    }

    fn follow(&mut self, group: &mut Vec<Member>, carried: &mut Option<Request>) {
        let mut frame = FrameBuf::new();
        let mut last_sync = Instant::now();
        self.ask_for_spare();
        loop {
            let first = match carried.take() {
                Some(request) => request,
                None => match self.next_request(&mut last_sync) {
                    Some(request) => request,
                    None => break,
                },
            };
            *carried = self.gather(first, &mut frame, group);
            self.commit(&mut frame, group);
            self.ask_for_spare();
        }
        if self.core.cause().is_none() {
            self.sync_buffered();
        }
    }

    /// The next request; nothing once the queue is closed and empty. With buffered durability the
    /// log is synced meanwhile, when it is due.
    fn next_request(&mut self, last_sync: &mut Instant) -> Option<Request> {
        loop {
            if self.durability == Durability::Sync || self.log.durable() == self.log.end() {
                *last_sync = Instant::now();
                return self.requests.recv().ok();
            }
            let due = *last_sync + BUFFERED_SYNC_EVERY;
            if due <= Instant::now() {
                self.sync_buffered();
                *last_sync = Instant::now();
            }
            match self.requests.recv_deadline(due) {
                Ok(request) => return Some(request),
                Err(flume::RecvTimeoutError::Disconnected) => return None,
                Err(flume::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Makes what was appended with buffered durability durable.
    fn sync_buffered(&mut self) {
        match self.log.sync() {
            Ok(durable) => self.core.synced.set(durable),
            Err(error) => self.core.fail(cause_of(error)),
        }
    }

    /// Fills the frame with `first` and what else is in the queue. Returns a request that was taken
    /// from the queue and does not fit.
    fn gather(
        &mut self,
        first: Request,
        frame: &mut FrameBuf,
        group: &mut Vec<Member>,
    ) -> Option<Request> {
        frame.clear();
        let offset = frame.push(&first.batch);
        group.push(Member { request: first, offset });
        while frame.byte_len() < GROUP_BYTES && group.len() < GROUP_REQUESTS {
            let Ok(request) = self.requests.try_recv() else { return None };
            if !frame.fits(&request.batch) {
                return Some(request);
            }
            let offset = frame.push(&request.batch);
            group.push(Member { request, offset });
        }
        None
    }

    fn commit(&mut self, frame: &mut FrameBuf, group: &mut Vec<Member>) {
        if self.core.cause().is_some() {
            group.drain(..).for_each(|member| self.refuse(member.request));
            return;
        }
        if self.log.awaits_spare(frame) {
            self.take_spare();
        }
        let appended = match self.log.append(frame) {
            Ok(appended) => appended,
            Err(AppendError::StorageFull(error)) => {
                let error = Arc::new(error);
                for member in group.drain(..) {
                    self.answer(member.request, AppendFailure::StorageFull(Arc::clone(&error)));
                }
                return;
            }
            Err(error) => return self.fail(error, group),
        };
        if let Some(segment) = appended.rolled {
            self.core.segments.push(segment);
        }
        self.core.written.set(appended.end);
        if self.durability == Durability::Sync {
            match self.log.sync() {
                Ok(durable) => self.core.synced.set(durable),
                Err(error) => return self.fail(error, group),
            }
        } else {
            self.log.show();
        }
        // Tickets that wait for the order are with the committer before the orderer can see
        // their records.
        let mut durable_acks = Vec::with_capacity(group.len());
        for Member { request, offset } in group.drain(..) {
            let position = appended.position + offset;
            let receipt = Receipt {
                position,
                end: position + request.batch.byte_len(),
                placements: Vec::new(),
            };
            if request.ack == Ack::Ordered {
                let event_count = request.batch.count() as usize;
                let (promise, permit) = (request.promise, request.permit);
                let awaiting = Awaiting { receipt, event_count, promise, _permit: permit };
                // The committer outlives the writer; if it has died, the batch is stored all the same.
                if let Err(SendError(awaiting)) = self.awaiting.send(awaiting) {
                    awaiting.complete_undecided();
                }
            } else {
                durable_acks.push((request.promise, receipt));
            }
        }
        self.core.durable.publish(appended.end);
        // A full inbox means that the orderer is awake, and it looks at `durable` before it sleeps.
        let _ = self.orderer.try_send(Message::Durable);
        for (promise, receipt) in durable_acks {
            promise.complete(Ok(receipt));
        }
    }

    /// The frame is perhaps on the device and perhaps not; nothing after it will be.
    fn fail(&mut self, error: AppendError, group: &mut Vec<Member>) {
        let cause = cause_of(error);
        self.core.fail(cause.clone());
        for member in group.drain(..) {
            self.answer(member.request, AppendFailure::Unknown(cause.clone()));
        }
    }

    fn refuse(&self, request: Request) {
        let cause = self.core.cause().cloned().unwrap_or(Cause::Panic {
            thread: "thalweg-writer",
            message: String::from("the writer has ended"),
        });
        self.answer(request, AppendFailure::NotAppended(cause));
    }

    fn answer(&self, request: Request, failure: AppendFailure) {
        if request.ack == Ack::Ordered {
            self.core.ordered_acks.fetch_sub(1, crate::sync::Ordering::Relaxed);
        }
        request.promise.complete(Err(failure));
    }

    fn ask_for_spare(&mut self) {
        if let Ok(spare) = self.spares.try_recv() {
            self.log.offer_spare(spare);
        }
        if self.log.is_spare_due()
            && let Some(request) = self.log.request_spare()
            && self.preparer.send(request).is_err()
        {
            self.log.offer_spare(None);
        }
    }

    /// Waits for the spare that was asked for: making another would only take longer.
    fn take_spare(&mut self) {
        let spare = self.spares.recv().unwrap_or(None);
        self.log.offer_spare(spare);
    }
}

fn cause_of(error: AppendError) -> Cause {
    match error {
        AppendError::StorageFull(error) | AppendError::Failed(error) => Cause::Log(Arc::new(error)),
        error => Cause::Log(Arc::new(std::io::Error::other(error.to_string()))),
    }
}
