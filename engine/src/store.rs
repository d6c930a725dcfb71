//! The store: the handle that everything starts from. Wiring, and no logic.

use std::fmt;
use std::ops::{ControlFlow, RangeBounds};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use thalweg_wal::storage::Storage;
use thalweg_wal::{DiscardReason, EncodedBatch, WriteLock};

use crate::backup::{self, BackupError, BackupOptions, BackupProgress, BackupReport};
use crate::barrier::Barrier;
use crate::clock::Clock;
use crate::cursors::{self, Cursor, CursorInfo};
use crate::discards::{self, DiscardReport};
use crate::discovery::Discovery;
use crate::error::{
    Cause, CloseError, CursorError, DiscardError, MixedBatchRefused, OpenError, ReadError, Refusal,
    SealError,
};
use crate::event::{Ack, Event, MixedBatch, Placement};
use crate::follower::Follower;
use crate::options::{AppenderOptions, Options};
use crate::pipeline::appender::{MixedAppender, StreamAppender, Ticket};
use crate::pipeline::callbacks::{self, is_callback_thread};
use crate::pipeline::core::{Core, deadline_in};
use crate::pipeline::lane::{Inlet, Lane, Passage};
use crate::pipeline::orderer::Call;
use crate::pipeline::subscriber::{Read, Reader, StreamView};
use crate::pipeline::subscription::{Start, Subscription};
use crate::questions::{HeldEvent, Question, StreamInfo, Why};
use crate::stats::{Backlog, Positions, QueueDepths, queue_depths};
use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, Mutex, Promise, WaitError, Watermark, completion, now};
use crate::timings::Timings;
use crate::trim::{KeptBy, Trim, TrimError, TrimReport, Trimmer};
use crate::verify::{VerifyReport, verify_on};

/// How long closing waits for the order of what is durable. What is not ordered by then is
/// ordered by the next opening.
const CLOSE_DRAIN: Duration = Duration::from_millis(500);
/// How long dropping the last handle waits for callbacks: one of them may wait for whoever drops it.
const DROP_CALLBACKS: Duration = Duration::from_secs(1);

/// An open store. Clones are cheap handles on the same store, for any number of threads.
///
/// The store closes when the last handle is dropped, or before, with [`Store::close`], which says
/// how it went. Appenders, reads and subscriptions outlive it and end.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    pub(crate) inlet: Arc<Inlet>,
    /// For the batches that come without an appender: acknowledged when durable, and when ordered.
    pub(crate) unrelated: (MixedAppender, MixedAppender),
    pub(crate) trimmer: Arc<Trimmer>,
    /// Taken by the first close.
    pub(crate) threads: Mutex<Option<Threads>>,
    /// 1 when all threads but that of the callbacks have ended.
    pub(crate) shut: Watermark,
    /// What recovery found, in words.
    pub(crate) recovery: String,
    pub(crate) clock: Clock,
}

/// What closing waits for.
pub(crate) struct Threads {
    pub(crate) writer: Option<JoinHandle<()>>,
    pub(crate) others: Vec<JoinHandle<()>>,
    /// Dropped last.
    pub(crate) lock: Option<WriteLock>,
}

impl Threads {
    /// Waits for all that are left. What a thread that panicked said is the engine's cause already.
    pub(crate) fn join(&mut self) {
        for thread in self.writer.take().into_iter().chain(self.others.drain(..)) {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Store {
    pub(crate) fn new(inner: Inner) -> Self {
        Store { inner: Arc::new(inner) }
    }

    fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    /// Opens the store in the directory `path` for reading and writing, and creates it if it is
    /// not there. [`Options`] has everything that can be chosen.
    ///
    /// # Errors
    ///
    /// As for [`Options::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Options::new().open(path)
    }

    /// Follows the store in the directory `path`, which another process may be writing: reads what is delivered, and
    /// what comes. Takes no lock and changes nothing.
    ///
    /// # Errors
    ///
    /// There is no store, or it cannot be read at all. See [`Follower`].
    pub fn open_follower(path: impl AsRef<Path>) -> Result<Follower, OpenError> {
        let storage = crate::open::directory(path.as_ref(), false)?;
        Follower::open_on(Arc::new(storage))
    }

    /// An appender to the stream `name`, which need not exist yet, with the default
    /// [`AppenderOptions`]. Never blocks.
    ///
    /// # Errors
    ///
    /// The name is empty or longer than 255 bytes, or the store is open for reading only.
    pub fn appender(&self, name: impl AsRef<[u8]>) -> Result<StreamAppender, Refusal> {
        self.appender_with(name, AppenderOptions::new())
    }

    /// An appender to the stream `name`, with options of its own.
    ///
    /// # Errors
    ///
    /// As for [`Store::appender`], or an option has a value that an appender cannot work with.
    pub fn appender_with(
        &self,
        name: impl AsRef<[u8]>,
        options: AppenderOptions,
    ) -> Result<StreamAppender, Refusal> {
        let name = name.as_ref();
        let lane = Lane::new(self.inlet_for(&options)?, &options);
        if !(1..=thalweg_wal::format::STREAM_LEN_MAX).contains(&name.len()) {
            let limit = thalweg_wal::LimitError::Stream { len: name.len() };
            return Err(Refusal::Limit(limit));
        }
        Ok(StreamAppender::new(Arc::new(lane), name))
    }

    /// An appender of batches of any streams.
    ///
    /// # Errors
    ///
    /// The store is open for reading only, or an option has a value that an appender cannot work with.
    pub fn mixed_appender(&self, options: AppenderOptions) -> Result<MixedAppender, Refusal> {
        let lane = Lane::of_encoded(self.inlet_for(&options)?, &options);
        Ok(MixedAppender::new(Arc::new(lane)))
    }

    /// Where an appender with these options appends.
    fn inlet_for(&self, options: &AppenderOptions) -> Result<Arc<Inlet>, Refusal> {
        options.check()?;
        if self.core().read_only {
            return Err(Refusal::ReadOnly);
        }
        Ok(Arc::clone(&self.inner.inlet))
    }

    /// Hands one batch of events of any streams to the writer. Blocks while the store's queue is full,
    /// and not for the disk.
    ///
    /// Batches submitted so have nothing to do with each other: those of one thread keep their order,
    /// but when one is refused, for lack of room on the disk say, a later one may be stored all the same.
    /// [`Store::mixed_appender`] promises more: a prefix, a bound of its own, and a time limit.
    ///
    /// # Errors
    ///
    /// As for [`StreamAppender::submit`].
    pub fn submit(&self, batch: MixedBatch, ack: Ack) -> Result<Ticket, MixedBatchRefused> {
        let (durable, ordered) = &self.inner.unrelated;
        match ack {
            Ack::Durable => durable.submit(batch),
            Ack::Ordered => ordered.submit(batch),
        }
    }

    /// Seals the stream `name`: it takes no more events, until [`Store::unseal`]. Returns the local
    /// sequence of its last delivered event, or nothing if it has none. A stream may be sealed before it
    /// has any, and again when it is sealed.
    ///
    /// From the moment of the call every append to the stream is refused, with [`Refusal::Sealed`], that
    /// of an event which it has already too. What was accepted before is in the log before the seal, and
    /// counts. Held events of the stream stay held, since nothing that they wait for can come. Blocks
    /// until the seal is durable and ordered.
    ///
    /// The seal is a record of the log, so it holds after a crash too. Appends that are accepted after a
    /// crash, before the order has come to the seal again, are stored and then rejected; the receipt of
    /// [`Ack::Ordered`] says so.
    ///
    /// # Errors
    ///
    /// The seal was refused, it is not known to be stored, or the store was closed meanwhile.
    pub fn seal(&self, name: impl AsRef<[u8]>) -> Result<Option<u64>, SealError> {
        let name = name.as_ref();
        let mut batch = EncodedBatch::new();
        batch.push_seal(name).map_err(Refusal::Limit)?;
        let key = self.core().keys.stream(name);
        match self.submit_control(batch, Passage::Seal(key))? {
            Placement::Sealed { next } => Ok(next.checked_sub(1)),
            _ => Err(SealError::Undecided),
        }
    }

    /// Takes the seal off the stream `name`, if there is one: it takes events again. Blocks until that is
    /// durable and ordered.
    ///
    /// # Errors
    ///
    /// As for [`Store::seal`].
    pub fn unseal(&self, name: impl AsRef<[u8]>) -> Result<(), SealError> {
        let mut batch = EncodedBatch::new();
        batch.push_unseal(name.as_ref()).map_err(Refusal::Limit)?;
        match self.submit_control(batch, Passage::Unseal)? {
            Placement::Unsealed => Ok(()),
            _ => Err(SealError::Undecided),
        }
    }

    /// Has readers of the stream `name` begin at the local sequence `first`, for ever, or at the next event that is
    /// delivered to it if `first` is beyond that. Returns where they begin now: never before an earlier trim. The
    /// trim is a record of the log, and takes effect at its place there. Blocks until it is durable and ordered.
    ///
    /// From then on, a read of the stream that begins below is [`ReadError::Trimmed`], a read without a beginning
    /// begins there, and a subscription to the stream that has not come so far says so once and goes on there. All
    /// sequences stay as they are. Nothing is deleted: readers of the whole store, and subscriptions to sets of
    /// streams and to prefixes, which follow its order, go on seeing the events, as does [`Store::get`].
    ///
    /// A trimmed stream takes its name and some 100 bytes in memory and in each checkpoint.
    ///
    /// # Errors
    ///
    /// As for [`Store::seal`].
    pub fn trim_stream(&self, name: impl AsRef<[u8]>, first: u64) -> Result<u64, SealError> {
        let mut batch = EncodedBatch::new();
        batch.push_stream_trim(name.as_ref(), first).map_err(Refusal::Limit)?;
        match self.submit_control(batch, Passage::Append)? {
            Placement::Trimmed { first } => Ok(first),
            _ => Err(SealError::Undecided),
        }
    }

    /// What the order made of a batch that puts one seal on or takes it off, or trims a stream.
    fn submit_control(
        &self,
        batch: EncodedBatch,
        passage: Passage,
    ) -> Result<Placement, SealError> {
        let (_, ordered) = &self.inner.unrelated;
        let receipt = ordered.submit_control(batch, passage)?.wait()?;
        Ok(receipt.placements.into_iter().next().unwrap_or(Placement::Undecided))
    }

    /// Position at which the durable part of the log ends.
    pub fn durable_end(&self) -> u64 {
        self.core().durable.get()
    }

    /// Blocks until everything in the log below `position` is ordered and can be read: a position
    /// from a [`Receipt`](crate::Receipt), or [`Store::durable_end`].
    ///
    /// # Errors
    ///
    /// The store was closed meanwhile, or its engine has stopped.
    pub fn wait_committed(&self, position: u64) -> Result<(), ReadError> {
        self.core().committed.wait_for(position).map_err(|_| self.core().ended())?;
        Ok(())
    }

    /// As [`Store::wait_committed`], for at most `timeout`; tells whether it was reached.
    ///
    /// # Errors
    ///
    /// As for [`Store::wait_committed`].
    pub fn wait_committed_timeout(
        &self,
        position: u64,
        timeout: Duration,
    ) -> Result<bool, ReadError> {
        match self.core().committed.wait_deadline(position, deadline_in(timeout)) {
            Ok(_) => Ok(true),
            Err(WaitError::TimedOut) => Ok(false),
            Err(WaitError::Failed) => Err(self.core().ended()),
        }
    }

    /// Blocks until readers can see it: what a receipt is of, an event, or all below a position or up to a
    /// sequence. See [`Barrier`].
    ///
    /// # Errors
    ///
    /// The store was closed meanwhile, or its engine has stopped; or, for an event, what has its key cannot be
    /// read.
    pub fn wait_for<'a>(&self, barrier: impl Into<Barrier<'a>>) -> Result<(), ReadError> {
        barrier.into().wait(self.core(), None).map(drop)
    }

    /// As [`Store::wait_for`], for at most `timeout`; tells whether it can be seen.
    ///
    /// # Errors
    ///
    /// As for [`Store::wait_for`].
    pub fn wait_for_timeout<'a>(
        &self,
        barrier: impl Into<Barrier<'a>>,
        timeout: Duration,
    ) -> Result<bool, ReadError> {
        barrier.into().wait(self.core(), Some(deadline_in(timeout)))
    }

    /// The discovery of what was not ordered yet when the store was opened: after a crash, or an import
    /// that was cut short. The store serves meanwhile; this tells how far it is, and waits for it. Done at
    /// once for a store that was closed.
    pub fn discovery(&self) -> Discovery {
        Discovery::new(self.core())
    }

    /// Delivered events with global sequences in `range`, up to what is committed now.
    ///
    /// # Errors
    ///
    /// The range begins with what was trimmed ([`ReadError::Trimmed`]); one without a beginning begins with the first
    /// event that was not. Events that cannot be read are errors in their place; if what is read is trimmed meanwhile,
    /// that is the last.
    pub fn read(&self, range: impl RangeBounds<u64>) -> Result<Read, ReadError> {
        Read::global(self.core(), &range)
    }

    /// The stream `name` as far as it is delivered now, or `None` if nothing of it is.
    ///
    /// # Errors
    ///
    /// The stream's newest event cannot be read.
    pub fn stream(&self, name: impl AsRef<[u8]>) -> Result<Option<StreamView>, ReadError> {
        StreamView::find(self.core(), name.as_ref())
    }

    /// The delivered event `id` of the stream `stream`.
    ///
    /// # Errors
    ///
    /// The event cannot be read.
    pub fn get(
        &self,
        stream: impl AsRef<[u8]>,
        id: impl AsRef<[u8]>,
    ) -> Result<Option<Event>, ReadError> {
        Reader::new(self.core()).find(stream.as_ref(), id.as_ref())
    }

    /// The first global sequence that was not trimmed; 0 if nothing was. Never blocks.
    pub fn first(&self) -> u64 {
        self.core().horizon().first
    }

    /// Gives up the oldest part of the log: see [`Trim`], which says how much. Blocks until that is done, for about a
    /// microsecond an event that goes; appends and reads go on meanwhile. One thread trims at a time; others wait for it.
    /// Takes memory for 16 MiB of the log at a time, some 100 MiB where events are tiny, for 64 MiB of the state of their order, and
    /// for what is kept of each stream and each held event.
    ///
    /// # Errors
    ///
    /// The store is open for reading only or was closed meanwhile; or what is to go cannot be read, or what is kept of
    /// it cannot be written. Nothing is trimmed then, unless the error is that of the last step ([`TrimError`]).
    pub fn trim(&self, trim: &Trim) -> Result<TrimReport, TrimError> {
        if trim.wants_roll() && !self.core().read_only {
            // The segment that it goes on in is one that can say so.
            self.inner.trimmer.remember(trim, self.first());
            self.core().roll_wanted.set(1);
            // The writer does it on its way to answer this.
            let (durable, _) = &self.inner.unrelated;
            if durable.flush().is_ok() {
                let _ = self.core().committed.wait_for(self.core().durable.get());
            }
        }
        self.inner.trimmer.trim(trim)
    }

    /// Number of delivered events: the global sequence of the next. Nothing at or behind it has been seen by
    /// anybody, whatever is under way; so who takes it, and reads or subscribes from there later, misses nothing
    /// that was delivered in between. Never blocks.
    pub fn delivered(&self) -> u64 {
        self.core().delivered.get()
    }

    /// Follows the global order from somewhere on, for ever: from a global sequence, as a number, from where a
    /// [`Cursor`] is, or from [`Start::Now`].
    ///
    /// # Errors
    ///
    /// None now; the subscription reports its own.
    pub fn subscribe(&self, from: impl Into<Start>) -> Result<Subscription, ReadError> {
        Ok(Subscription::to_all(self.core(), from.into()))
    }

    /// As [`Store::subscribe`], for events of the stream `name` only, which need not exist yet. What is there
    /// is found by the stream's own links, however much lies between; and who waits sleeps while events of other
    /// streams are delivered, but for few streams.
    ///
    /// # Errors
    ///
    /// None now; the subscription reports its own.
    pub fn subscribe_stream(
        &self,
        name: impl AsRef<[u8]>,
        from: impl Into<Start>,
    ) -> Result<Subscription, ReadError> {
        Ok(Subscription::to_stream(self.core(), name.as_ref(), from.into()))
    }

    /// As [`Store::subscribe_stream`], from the local sequence `local` on.
    ///
    /// # Errors
    ///
    /// None now; the subscription reports its own.
    pub fn subscribe_stream_at(
        &self,
        name: impl AsRef<[u8]>,
        local: u64,
    ) -> Result<Subscription, ReadError> {
        Ok(Subscription::to_stream_at(self.core(), name.as_ref(), local))
    }

    /// As [`Store::subscribe`], for events of these streams only, in global order. Looks at every event of the
    /// store: it costs reading all of them. Who waits sleeps while others are delivered, but for a moment every 65,536 events, or
    /// when very many streams are delivered to at once.
    ///
    /// # Errors
    ///
    /// None now; the subscription reports its own.
    pub fn subscribe_streams<N: Into<Vec<u8>>>(
        &self,
        names: impl IntoIterator<Item = N>,
        from: impl Into<Start>,
    ) -> Result<Subscription, ReadError> {
        let names = names.into_iter().map(Into::into).collect();
        Ok(Subscription::to_streams(self.core(), names, from.into()))
    }

    /// As [`Store::subscribe_streams`], for the streams whose names begin with `prefix`.
    ///
    /// # Errors
    ///
    /// None now; the subscription reports its own.
    pub fn subscribe_prefix(
        &self,
        prefix: impl AsRef<[u8]>,
        from: impl Into<Start>,
    ) -> Result<Subscription, ReadError> {
        Ok(Subscription::to_prefix(self.core(), prefix.as_ref(), from.into()))
    }

    /// The cursor `name` of a consumer, a name of 1 to 255 bytes. It need not be there yet: its first commit
    /// makes it. Blocks until everything is ordered that is durable now, since that may have marks of the cursor:
    /// after a crash that is the [discovery](Store::discovery), otherwise a moment.
    ///
    /// # Errors
    ///
    /// The name is empty or too long, or the store was closed, or its engine has stopped, meanwhile.
    pub fn cursor(&self, name: impl AsRef<[u8]>) -> Result<Cursor, CursorError> {
        let (durable, ordered) = &self.inner.unrelated;
        Cursor::new(self.core(), name.as_ref(), durable, ordered)
    }

    /// All cursors, sorted by name, as far as the log is ordered now. Never blocks.
    pub fn cursors(&self) -> Vec<CursorInfo> {
        cursors::list(self.core())
    }

    /// All held events, in the order of the log, with the parents that they wait for.
    ///
    /// # Errors
    ///
    /// The store is closed, its engine has stopped, or a held event cannot be read.
    pub fn held(&self) -> Result<Vec<HeldEvent>, ReadError> {
        self.ask(|answer| Question::Held { count: usize::MAX, answer })
    }

    /// The held event that was appended first, with the parents that it waits for: its
    /// [`age`](HeldEvent::age) is that of the oldest. Nothing if none is held. The numbers of
    /// [`Store::stats`] have no such age, since nobody keeps the oldest: this looks for it among all that wait,
    /// without their records, and blocks meanwhile.
    ///
    /// # Errors
    ///
    /// As for [`Store::held`].
    pub fn oldest_held(&self) -> Result<Option<HeldEvent>, ReadError> {
        Ok(self.ask(|answer| Question::Held { count: 1, answer })?.pop())
    }

    /// Gives up held events of `stream`, by their ids: those that are held will never be delivered, and their ids
    /// are free again, for events that are then new ones. Events that wait for them go on waiting. Says for each
    /// what it found. The discards are one batch of the log: all of them count or none, also after a crash. Blocks
    /// until they are durable and ordered. No ids, and nothing happens.
    ///
    /// # Errors
    ///
    /// An id is empty or too long, or there are too many for one batch; the batch was refused or is not known to
    /// be stored; or the store was closed meanwhile.
    pub fn discard<I: AsRef<[u8]>>(
        &self,
        stream: impl AsRef<[u8]>,
        ids: impl IntoIterator<Item = I>,
    ) -> Result<DiscardReport, DiscardError> {
        let stream = stream.as_ref();
        let events = ids.into_iter().map(|id| (stream.to_vec(), id.as_ref().to_vec()));
        let (_, ordered) = &self.inner.unrelated;
        discards::discard(ordered, events, DiscardReason::Discarded, true)
    }

    /// Gives up all events that have been held for longer than `longest`, of whatever streams, as
    /// [`Store::discard`] does, and says what became of each. An event's age counts from when it was written to
    /// the log, by the clock of the machine ([`Options::clock`]): one that is set back makes events younger, and
    /// none older. Events of which nobody knows when they were written, since an older version did, stay.
    ///
    /// An event that is delivered meanwhile stays delivered. One that takes the id of another meanwhile goes
    /// with it. Blocks for the listing, as [`Store::held`], and until the discards are durable and ordered.
    ///
    /// # Errors
    ///
    /// As for [`Store::discard`] and [`Store::held`]. Discards of earlier batches count then: they are in batches of
    /// some MiB.
    pub fn expire_held(&self, longest: Duration) -> Result<DiscardReport, DiscardError> {
        self.expire_held_if(longest, |_| true)
    }

    /// As [`Store::expire_held`], for the held events of `stream` only.
    ///
    /// # Errors
    ///
    /// As for [`Store::expire_held`].
    pub fn expire_held_of(
        &self,
        stream: impl AsRef<[u8]>,
        longest: Duration,
    ) -> Result<DiscardReport, DiscardError> {
        let stream = stream.as_ref();
        self.expire_held_if(longest, |event| event.stream == stream)
    }

    fn expire_held_if(
        &self,
        longest: Duration,
        is_meant: impl Fn(&HeldEvent) -> bool,
    ) -> Result<DiscardReport, DiscardError> {
        let mut held = self.held().map_err(DiscardError::Held)?;
        held.retain(is_meant);
        let expired = discards::expired(held, longest, &self.inner.clock);
        let events = expired.into_iter().map(|event| (event.stream, event.id));
        let (_, ordered) = &self.inner.unrelated;
        discards::discard(ordered, events, DiscardReason::Expired, false)
    }

    /// The time of day, as the store has it: see [`Options::clock`]. [`HeldEvent::since`] is by it.
    pub fn time(&self) -> SystemTime {
        self.inner.clock.now()
    }

    /// Why the event `id` of `stream` is not delivered: its missing parents, over all generations,
    /// and how many events wait behind it.
    ///
    /// # Errors
    ///
    /// As for [`Store::held`].
    pub fn why_held(
        &self,
        stream: impl AsRef<[u8]>,
        id: impl AsRef<[u8]>,
    ) -> Result<Why, ReadError> {
        let (stream, id) = (stream.as_ref().to_vec(), id.as_ref().to_vec());
        let stream_key = self.core().keys.stream(&stream);
        self.ask(|answer| Question::Why { stream_key, stream, id, answer })
    }

    /// All streams, sorted by name.
    ///
    /// # Errors
    ///
    /// The store is closed or its engine has stopped.
    pub fn streams(&self) -> Result<Vec<StreamInfo>, ReadError> {
        self.ask(Question::Streams)
    }

    /// Ids of the tips of the stream `name`, in the order of their delivery: the delivered events without
    /// a delivered child, on which the next chained event is chained. None for a stream without events.
    /// What [`NewEvent::if_tips`](crate::NewEvent::if_tips) takes.
    ///
    /// # Errors
    ///
    /// The store is closed, its engine has stopped, or a tip cannot be read.
    pub fn tips(&self, name: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, ReadError> {
        let stream = name.as_ref().to_vec();
        let stream_key = self.core().keys.stream(&stream);
        self.ask(|answer| Question::Tips { stream_key, stream, answer })
    }

    /// Whether an append to the stream `name` would be refused because it is sealed, or being sealed.
    /// Never blocks.
    pub fn is_sealed(&self, name: impl AsRef<[u8]>) -> bool {
        let key = self.core().keys.stream(name.as_ref());
        self.inner.inlet.gate.as_ref().is_some_and(|gate| gate.is_sealed(key))
    }

    fn ask<T>(
        &self,
        question: impl FnOnce(Promise<Result<T, ReadError>>) -> Question,
    ) -> Result<T, ReadError> {
        let (promise, mut answer) = completion();
        self.inner.trimmer.orderer.call(Call::Ask(question(promise)));
        answer.wait().unwrap_or_else(|_| Err(self.core().ended()))
    }

    /// Writes a checkpoint, so that the next opening need not order again what is ordered now.
    /// Blocks until it is durable, and before that for what the order waits for: on a full disk, for room,
    /// as long as [`Options::wait_for_room`](crate::Options::wait_for_room) says. The engine does so by itself
    /// from time to time, and on closing.
    ///
    /// # Errors
    ///
    /// The store is closed, its engine has stopped, it is open for reading only, or the checkpoint
    /// could not be written.
    pub fn checkpoint(&self) -> Result<(), ReadError> {
        let (promise, mut answer) = completion();
        self.inner.trimmer.orderer.call(Call::Checkpoint(promise));
        answer.wait().unwrap_or_else(|_| Err(self.core().ended()))
    }

    /// Checks what is durable now against the definition of its order: every checksum, every delivery,
    /// and what the derived files say. Reads the whole log; [`verify`](crate::verify()) does the same
    /// for a store that is not open, and shows its progress.
    ///
    /// # Errors
    ///
    /// The log cannot be read at all. Damage is a problem in the report.
    pub fn verify(&self) -> Result<VerifyReport, ReadError> {
        let storage = Arc::clone(&self.core().storage);
        verify_on(storage, &|_| ControlFlow::Continue(()))
    }

    /// Makes a copy of the store in the directory `target`, while the store runs: everything in the log
    /// below one durable position, which the report names, and nothing else. Every append that was
    /// acknowledged before the call is in it.
    ///
    /// Runs on the calling thread, and reads all of the store. Appends, the order, checkpoints and merges
    /// go on, and wait for nothing that it has. What is ordered and has a checkpoint comes along; what is
    /// not is ordered when the copy is opened. Files that never change again are hard-linked if the
    /// target is on the same file system, and copied otherwise; the last segment is always copied, and no
    /// store writes to a linked file. Everything is synced when it returns.
    ///
    /// A trimmed store has a trimmed copy, with the same state before it; the store can be trimmed meanwhile. With
    /// [`BackupOptions::from`] the copy begins later than the store.
    ///
    /// The copy can be opened for reading, and is checked by [`verify_backup`](crate::verify_backup());
    /// [`restore`](crate::restore()) makes another copy of it, after comparing every byte. When it is
    /// opened for writing it becomes a store, and is no backup any more. It has the identity of this
    /// store, and so its numbers and ids: it is meant to take its place. Two stores
    /// that both go on have different events behind the position, and ids that the engine makes there can
    /// be the same for different events.
    ///
    /// It is made in the directory `target.partial` and gets its name at the end, so `target` is there
    /// whole or not at all. A run that was killed leaves that directory; the next one to the same target
    /// clears it away.
    ///
    /// # Errors
    ///
    /// The target is not empty, or cannot be made; or a file could not be read, written or synced. Nothing
    /// is left then.
    pub fn backup(&self, target: impl AsRef<Path>) -> Result<BackupReport, BackupError> {
        self.backup_with(target, BackupOptions::new(), &|_| ControlFlow::Continue(()))
    }

    /// As [`Store::backup`], with options. `progress` is called for each MiB or so; when it breaks, the
    /// backup ends with [`BackupError::Interrupted`] and leaves nothing.
    ///
    /// # Errors
    ///
    /// As for [`Store::backup`], or it was interrupted.
    pub fn backup_with(
        &self,
        target: impl AsRef<Path>,
        options: BackupOptions,
        progress: &dyn Fn(BackupProgress) -> ControlFlow<()>,
    ) -> Result<BackupReport, BackupError> {
        backup::backup_open(self.core(), target.as_ref(), options, progress)
    }

    /// As [`Store::backup_with`], to any storage. It has no files, or the rest of an attempt that was cut
    /// short, which is removed.
    ///
    /// # Errors
    ///
    /// As for [`Store::backup_with`].
    pub fn backup_on(
        &self,
        target: Arc<dyn Storage>,
        options: BackupOptions,
        progress: &dyn Fn(BackupProgress) -> ControlFlow<()>,
    ) -> Result<BackupReport, BackupError> {
        backup::backup_core(self.core(), target, options, progress)
    }

    /// The state of the store, in numbers. Never blocks. Copies the histograms, which takes some microseconds. The
    /// numbers are of one moment as far as the chain of positions goes; others may be of a moment later.
    pub fn stats(&self) -> Stats {
        let core = self.core();
        let positions = Positions::of(core);
        let Positions { committed, ordered, scanned, durable, written } = positions;
        let segments = core.segments.snapshot();
        let (callback_panics, first_callback_panic) = core.callback_panics.get();
        let (kept_by, trim_error) = core.trimming.lock().clone();
        Stats {
            written,
            durable,
            scanned,
            ordered,
            committed,
            backlog: positions.backlog(core),
            queues: queue_depths(core, self.inner.trimmer.orderer.calls.len()),
            delivered: core.delivered.get(),
            held: core.counts.held.get(),
            duplicates: core.counts.duplicates.get(),
            conflicts: core.counts.conflicts.get(),
            rejected: core.counts.rejected.get(),
            discarded: core.counts.discarded.get(),
            corrupt: core.counts.corrupt.get(),
            streams: core.counts.streams.get(),
            memory: core.counts.memory.get(),
            lookups: core.counts.lookups.get(),
            records_read: core.counts.records_read.get(),
            bytes_verified: core.counts.bytes_verified.get(),
            callback_panics,
            first_callback_panic: first_callback_panic.cloned(),
            segments: segments.len() as u64,
            log_bytes: segments.iter().map(|segment| segment.end() - segment.base()).sum(),
            first: core.horizon().first,
            kept_by,
            trim_error,
            checkpoint_position: core.checkpointed.get(),
            recovery: self.inner.recovery.clone(),
            checkpoint_error: core.checkpoint_error.get().cloned(),
            commit_error: core.commit_error.lock().clone(),
            commit_retries: core.commit_retries.get(),
            poisoned: core.cause().map(Cause::to_string),
            cursors: cursors::list(core),
            timings: core.observer.timings(),
        }
    }

    /// Why the engine has stopped, if it has.
    pub fn cause(&self) -> Option<Cause> {
        self.core().cause().cloned()
    }

    /// Closes the store: nothing more is accepted, everything accepted is completed, and a
    /// checkpoint is written. Blocks for up to half a second to order what is durable; the rest is
    /// ordered by the next opening. Blocks too for the checkpoint, for a sync that the device has
    /// under way, and until the last callback has returned, unless it is called from one. Appenders,
    /// reads and subscriptions end.
    ///
    /// Closing a closed store does nothing. Dropping the last handle closes too, tells nobody how it
    /// went, and waits for callbacks for at most a second.
    ///
    /// # Errors
    ///
    /// The engine had stopped before. The store is closed all the same.
    pub fn close(&self) -> Result<(), CloseError> {
        self.inner.close(None)
    }
}

impl Inner {
    /// Waits for callbacks until `callbacks_until`, if there is such a time.
    fn close(&self, callbacks_until: Option<Instant>) -> Result<(), CloseError> {
        // Out of the lock first: a callback that closes must not wait for one who waits for it.
        let threads = self.threads.lock().take();
        if let Some(threads) = threads {
            let _span = self.core.observer.trace.closing();
            self.shut_down(threads);
            self.shut.publish(1);
            self.core.observer.trace.closed(self.core.cause());
        }
        if !is_callback_thread() {
            let _ = self.shut.wait_for(1);
            let callbacks = &self.core.callbacks_ended;
            let _ = match callbacks_until {
                None => callbacks.wait_for(1).map_err(drop),
                Some(deadline) => callbacks.wait_deadline(1, deadline).map_err(drop),
            };
        }
        match self.core.cause() {
            Some(cause) => Err(CloseError::Poisoned(cause.clone())),
            None => Ok(()),
        }
    }

    /// Ends the stages in the direction of flow.
    fn shut_down(&self, mut threads: Threads) {
        self.core.close_budgets();
        if let Some(gate) = &self.inlet.gate {
            gate.close();
        }
        if let Some(writer) = threads.writer.take() {
            // A panic is in `cause` already.
            let _ = writer.join();
        }
        let deadline = now() + CLOSE_DRAIN;
        if !self.core.read_only {
            let _ = self.core.committed.wait_deadline(self.core.durable.get(), deadline);
        }
        self.core.stop_orderer();
        threads.join();
        // Before the lock goes.
        self.trimmer.end();
        self.core.close();
        drop(threads.lock.take());
        // The last answer is given, so the last callback is in the queue.
        let _ = self.inlet.callbacks.send(callbacks::Message::End);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.close(Some(now() + DROP_CALLBACKS));
    }
}

/// The state of a store, in numbers.
///
/// Positions are bytes in the log; those of the stages form a chain,
/// `committed <= ordered <= scanned <= durable <= written`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Position up to which the log is written.
    pub written: u64,
    /// Position up to which the log is durable.
    pub durable: u64,
    /// Position up to which the log is verified and split.
    pub scanned: u64,
    /// Position up to which the log is ordered.
    pub ordered: u64,
    /// Position up to which readers see the order.
    pub committed: u64,
    /// What is on its way between the stages.
    pub backlog: Backlog,
    /// What is in the queues.
    pub queues: QueueDepths,
    /// Number of delivered events.
    pub delivered: u64,
    /// Number of held events. How long the oldest has been held, [`Store::oldest_held`] says.
    pub held: u64,
    /// Number of events that were there already when they arrived.
    pub duplicates: u64,
    /// Number of events whose id another event had already.
    pub conflicts: u64,
    /// Number of events that were rejected; see [`Rejection`](crate::Rejection).
    pub rejected: u64,
    /// Number of held events that were discarded; they count as held no more.
    pub discarded: u64,
    /// Number of damaged places that this process has met.
    pub corrupt: u64,
    /// Number of streams, as [`Store::streams`] lists them.
    pub streams: u64,
    /// Bytes of memory that the state of the order takes: see
    /// [`Options::memory_budget`](crate::Options::memory_budget).
    pub memory: u64,
    /// Ids that were looked up among those that are known, since the store was opened.
    pub lookups: u64,
    /// Records that were read to put others in order, since the store was opened.
    pub records_read: u64,
    /// Bytes of those that had to be verified, since this process had not done so before.
    pub bytes_verified: u64,
    /// Number of callbacks that panicked.
    pub callback_panics: u64,
    /// What the first callback that panicked said.
    pub first_callback_panic: Option<String>,
    /// Number of segments.
    pub segments: u64,
    /// Bytes in the log.
    pub log_bytes: u64,
    /// The first global sequence that was not trimmed: as many deliveries were.
    pub first: u64,
    /// What keeps more of the log than [`Options::retention`](crate::Options::retention) says, if anything does.
    pub kept_by: Option<KeptBy>,
    /// Why the store could not be kept to its retention, if it could not. It is tried again.
    pub trim_error: Option<String>,
    /// Position up to which the newest checkpoint knows the order.
    pub checkpoint_position: u64,
    /// Why a checkpoint could not be written, if one could not. It costs time at the next opening.
    pub checkpoint_error: Option<String>,
    /// Why the order cannot be written now, while that is tried again: nothing is delivered until it
    /// succeeds. See [`Options::wait_for_room`].
    pub commit_error: Option<String>,
    /// Number of attempts to write the order that failed and were made again.
    pub commit_retries: u64,
    /// What opening found at the end of the log.
    pub recovery: String,
    /// Why the engine has stopped, if it has.
    pub poisoned: Option<String>,
    /// The cursors of consumers, sorted by name, with how far each is behind.
    pub cursors: Vec<CursorInfo>,
    /// How long the stages take, and how much at a time, since the store was opened.
    pub timings: Timings,
}
