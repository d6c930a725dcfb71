//! Reading along in another process: delivered events, while the store's owner writes.
//!
//! # What a follower believes
//!
//! An entry of the order log, and nothing else. The owner writes one only after the sync of the log that made its
//! event durable; its checksum is bound to its global sequence; and the order is a function of the log, so an owner that
//! recovers, or makes its derived files again, writes the same bytes at the same place. So as many events are delivered
//! as there are valid entries from the first on. The follower orders nothing, asks nobody, and what it has shown
//! stays true whatever happens to the owner. With [`Durability::Buffered`] entries come before the sync, so all this holds but for
//! a loss of power, which ends the follower, too, and a sync that fails; see `Stage::look` for what is done about entries that outlive
//! their records.
//!
//! [`Durability::Buffered`]: crate::Durability::Buffered
//!
//! # How it goes
//!
//! A follower is a [`Core`] that nobody writes to but one small thread. At each look, `thalweg-follower` reads the next
//! entries from the chunk file, copying them; makes the log readable up to the frames that they name, and the tips log
//! up to the lists; then shows the entries and publishes `delivered`. Between two looks it sleeps until the directory
//! changes ([`Watch`]), or, where nobody can tell, for a few milliseconds. The readers are those of a store.
//!
//! # What the owner may do meanwhile
//!
//! * *It dies.* What it had written stays. The next one comes to the same entries behind its checkpoint, and leaves those that are
//!   there alone; while fewer are there than the follower has shown, because they were taken away, the follower waits.
//! * *It removes a chunk and makes it again*: see [`ChunkFollower`].
//! * *It removes runs*: those in hand stay mapped. Newer ones are taken when many streams are in memory.
//! * *It trims the log*: what was shown stays mapped until the follower has seen that (`Stage::mind_trim`), and goes then. A
//!   follower that has not come so far yet goes on where the log begins now.
//! * *It cuts a torn tail*: no entry names anything there.
//! * *It is repaired, or replaced by a copy*: then the newest entry that was shown is not the one in the file, and the follower
//!   stops with [`Cause::Replaced`] before it shows another.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::RangeBounds;
use std::path::Path;
use std::time::{Duration, Instant};

use thalweg_wal::storage::{Storage, Watch};
use thalweg_wal::{LogFollower, TrimPoint, name};

use crate::cursors::CursorInfo;
use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks::ChunkFollower;
use crate::derived::order_log::{self, Entry, Lineage, NONE, ORDER, TIPS};
use crate::derived::run::Run;
use crate::error::{Cause, LogOpenError, OpenError, ReadError};
use crate::open::{READ_ONLY_ATTEMPTS, directory, io_error, open_read_only_on, tag_of, usable};
use crate::options::Options;
use crate::order::keys::{Keys, PARTITION_COUNT, partition_of};
use crate::order::known::Table;
use crate::order::partition::{FirstChange, PartitionCounts};
use crate::order::window::Frontier;
use crate::pipeline::core::{Core, CoreParts, Gauge, deadline_in};
use crate::pipeline::lookup::{Runs, Segments, segment_at};
use crate::pipeline::subscriber::{Read, StreamView};
use crate::pipeline::subscription::Subscription;
use crate::pipeline::threads;
use crate::questions::{HeldEvent, StreamInfo};
use crate::store::Store;
use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, Mutex, WaitError, now};
use crate::trimmed::Base;

/// Items that a look reads at first; twice as many after each look that finds no end.
const LOOK_ITEMS_MIN: u64 = 64;
/// Items that a look reads at most.
const LOOK_ITEMS_MAX: u64 = 4096;
/// How often the follower looks even if nobody has told it to: on network file systems, changes of other machines
/// are not told.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The pause between two looks where nobody can tell when to look, right after something was found ...
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// ... and when nothing has been for a while.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How often a follower looks whether the log was trimmed.
const TRIM_LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long looks may fail before the follower stops.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so many more streams in memory, the follower looks for a newer checkpoint.
const HEADS_STEP: usize = 1 << 16;

/// Reads the events of a store that another process writes, as they are delivered there.
///
/// Opened with [`Store::open_follower`](crate::Store::open_follower), any number of times, in any process. It takes no lock,
/// writes nothing, and needs the right to read the directory and its files, no more. The owner does not know of it and
/// does no work for it.
///
/// # What is promised
///
/// A follower shows the events that the owner delivers, with the same sequences: each once, in order, none left out. An event
/// appears after it is durable and ordered, never before. What a follower has shown stays delivered: the owner may crash and recover,
/// be closed and opened, begin new segments, write checkpoints, and [`rebuild`](crate::rebuild) its derived files; the
/// follower goes on. While nobody has the store open for writing, nothing new comes: what an owner that crashed had not ordered yet, the next
/// one orders. (Of a store with [`Durability::Buffered`](crate::Durability::Buffered) and a loss of power, or a sync that fails, as much is promised
/// as there: what had not been synced may be gone, and something else may come in its place.)
///
/// Damage to a record of the log is an error in its place, and the rest can be read, as in a store.
///
/// Where the readers of a stream begin that was [trimmed](crate::Store::trim_stream), a follower knows from a checkpoint of the
/// owner, the one that it was opened with or a newer one that it has come to look at: until then it shows events that the owner
/// does not show any more.
///
/// # Cost
///
/// One thread, `thalweg-follower`, which sleeps until the kernel tells of a change to the directory (Linux), and looks
/// twice a second besides; elsewhere it looks every 1 to 20 milliseconds. In memory it keeps the newest delivery of each stream that had one since the
/// newest checkpoint of the owner that it knows, in about 32 bytes, and looks for a newer one with every 65,536 of them.
///
/// Handles are cheap clones, for any number of threads. The follower closes when the last is dropped, or with
/// [`Follower::close`]; reads go on after that, and subscriptions end.
///
/// ```
/// use thalweg::Store;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("data");
/// let store = Store::open(&path)?; // in one process ...
/// let orders = store.appender("orders-42")?;
/// orders.append("first")?.wait()?;
///
/// let follower = Store::open_follower(&path)?; // ... and in another
/// let mut events = follower.subscribe(0)?;
/// orders.append("second")?.wait()?;
/// assert_eq!(events.next().unwrap()?.payload(), b"first");
/// assert_eq!(events.next().unwrap()?.payload(), b"second"); // blocks until it is there
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Follower {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    /// Damaged places that the newest answer of [`Follower::ordered_now`] has left out.
    corrupt: Gauge,
    watch: Option<Arc<dyn Watch>>,
    /// Taken by the first close.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("delivered", &self.delivered()).finish_non_exhaustive()
    }
}

impl Follower {
    /// As [`Store::open_follower`](crate::Store::open_follower), on any storage.
    ///
    /// # Errors
    ///
    /// As for [`Store::open_follower`](crate::Store::open_follower).
    pub fn open_on(storage: Arc<dyn Storage>) -> Result<Self, OpenError> {
        // Before the first look at the files, so that no change after that is missed. A system that has no watch to give
        // leaves the clock.
        let watch = storage.watch().unwrap_or_default();
        let mut stage = Stage::open(storage)?;
        // What there is now can be read as soon as this returns.
        while stage.look()? == Found::More {}
        let core = Arc::clone(&stage.core);
        let waiting = watch.clone();
        let run = move |stage: &mut Stage| stage.run(waiting.as_deref());
        let thread =
            threads::spawn(&core, "thalweg-follower", None, stage, run).map_err(|source| {
                OpenError::Io { context: String::from("starting the thread"), source }
            })?;
        let (corrupt, thread) = (Gauge::default(), Mutex::new(Some(thread)));
        Ok(Follower { inner: Arc::new(Inner { core, corrupt, watch, thread }) })
    }

    fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    /// Number of events that can be read now: one past the global sequence of the newest. Never blocks.
    pub fn delivered(&self) -> u64 {
        self.core().delivered.get()
    }

    /// The first global sequence that was not trimmed, as far as the follower has seen; 0 if nothing was. Never blocks.
    pub fn first(&self) -> u64 {
        // A follower that is overtaken sees where the log begins a moment before it goes on there.
        self.core().horizon().first.min(self.delivered())
    }

    /// Blocks until `count` events can be read, for at most `timeout`; tells whether it came to that. After an append with
    /// [`Ack::Ordered`](crate::Ack::Ordered), one more than the global sequence in its receipt has the event in it.
    ///
    /// # Errors
    ///
    /// The follower was closed meanwhile, or has stopped.
    pub fn wait_delivered(&self, count: u64, timeout: Duration) -> Result<bool, ReadError> {
        match self.core().delivered.wait_deadline(count, deadline_in(timeout)) {
            Ok(_) => Ok(true),
            Err(WaitError::TimedOut) => Ok(false),
            Err(WaitError::Failed) => Err(self.core().ended()),
        }
    }

    /// Delivered events with global sequences in `range`, up to what is delivered now.
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

    /// Follows the global order from sequence `from` on, for ever. The iterator blocks for the next event;
    /// [`Subscription::next_timeout`] does for a while, and [`Subscription::try_next`] does not.
    ///
    /// # Errors
    ///
    /// None now; the subscription reports its own.
    pub fn subscribe(&self, from: u64) -> Result<Subscription, ReadError> {
        Ok(Subscription::to_all(self.core(), from.into()))
    }

    /// What is known of the store from outside. Reads the newest checkpoint, which is a small file, and orders nothing; the queues
    /// of the process that writes, and the times of its stages, only that process knows.
    ///
    /// # Errors
    ///
    /// The checkpoint cannot be read.
    pub fn stats(&self) -> Result<FollowerStats, ReadError> {
        let core = self.core();
        let checkpoint = Checkpoint::read(&*core.storage).map_err(opening)?;
        let own = checkpoint.filter(|checkpoint| checkpoint.store_id == core.store_id);
        // After the checkpoint: what is delivered there is nearly always shown here.
        let delivered = core.delivered.get();
        let segments = core.segments.snapshot();
        Ok(FollowerStats {
            delivered,
            segments: segments.len() as u64,
            log_bytes: segments.iter().map(|segment| segment.end() - segment.base()).sum(),
            first: self.first(),
            log_end: segments.last().map_or(0, |segment| segment.end()),
            writer: core.storage.lock_holder(name::LOCK).unwrap_or_default(),
            corrupt: self.inner.corrupt.get(),
            checkpoint: own.map(|checkpoint| CheckpointStats::of(checkpoint, delivered)),
            stopped: core.cause().map(Cause::to_string),
        })
    }

    /// All events that are held, in the order of the log, with the parents that they wait for: the answer of
    /// [`Store::held`](crate::Store::held), as of now.
    ///
    /// The follower's own order knows nothing of held events, so this puts in order, in memory, what of the log the newest
    /// checkpoint does not count, as a store does that is open for reading only. Everything that was acknowledged before the
    /// call is in it, also what its owner has not ordered yet; of what is being appended meanwhile, perhaps a part. Blocks for that: up to a second or
    /// so where the owner writes checkpoints. Damaged places are left out; [`FollowerStats::corrupt`] says how many.
    ///
    /// # Errors
    ///
    /// The log or a derived file cannot be read, or a held event is damaged.
    pub fn held(&self) -> Result<Vec<HeldEvent>, ReadError> {
        self.ordered_now()?.held()
    }

    /// The held event that was appended first, if any is held: the answer of
    /// [`Store::oldest_held`](crate::Store::oldest_held), as of now, in the same way as [`Follower::held`].
    ///
    /// # Errors
    ///
    /// As for [`Follower::held`].
    pub fn oldest_held(&self) -> Result<Option<HeldEvent>, ReadError> {
        self.ordered_now()?.oldest_held()
    }

    /// All streams, sorted by name: the answer of [`Store::streams`](crate::Store::streams), as of now, in the same way and at the same
    /// price as [`Follower::held`]. What is delivered in it may be ahead of what the follower shows.
    ///
    /// # Errors
    ///
    /// As for [`Follower::held`].
    pub fn streams(&self) -> Result<Vec<StreamInfo>, ReadError> {
        self.ordered_now()?.streams()
    }

    /// The store as it is now, with all of its log in order.
    fn ordered_now(&self) -> Result<Store, ReadError> {
        let storage = Arc::clone(&self.core().storage);
        let store = open_read_only_on(Options::new(), storage).map_err(opening)?;
        store.discovery().wait()?;
        self.inner.corrupt.set(store.stats().corrupt);
        Ok(store)
    }

    /// Ends the thread, and every wait with [`ReadError::Closed`]. What is delivered can still be read. Blocks for the look in hand, if
    /// there is one.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        self.core.stop_orderer();
        if let Some(watch) = &self.watch {
            watch.wake();
        }
        if let Some(thread) = self.thread.lock().take() {
            // What it said if it panicked is the cause already.
            let _ = thread.join();
        }
        self.core.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

fn opening(error: OpenError) -> ReadError {
    ReadError::Open(Arc::new(error))
}

/// What can be known of a store from outside, while another process may be writing it: see [`Follower::stats`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FollowerStats {
    /// Number of events that can be read here.
    pub delivered: u64,
    /// Number of segments, up to that of the newest of them.
    pub segments: u64,
    /// Bytes of the log up to there; what is held behind it is not counted.
    pub log_bytes: u64,
    /// The first global sequence that was not trimmed.
    pub first: u64,
    /// Position of the log up to which it is read here.
    pub log_end: u64,
    /// Who has the store open for writing; nothing if nobody has, or the system does not tell. See [`writer_of`].
    pub writer: Option<String>,
    /// Number of damaged places that the newest answer to [`Follower::held`] or [`Follower::streams`] has left out.
    pub corrupt: u64,
    /// What the newest checkpoint says, if there is one.
    pub checkpoint: Option<CheckpointStats>,
    /// Why the follower has stopped, if it has.
    pub stopped: Option<String>,
}

/// What a checkpoint says of a store, as of its position.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointStats {
    /// Position of the log up to which it counts.
    pub position: u64,
    /// Number of events that were delivered.
    pub delivered: u64,
    /// Number of events that were held.
    pub held: u64,
    /// Number of events that were there already when they arrived.
    pub duplicates: u64,
    /// Number of events whose id another event had already.
    pub conflicts: u64,
    /// Number of events that were rejected.
    pub rejected: u64,
    /// Number of held events that were discarded.
    pub discarded: u64,
    /// Number of streams.
    pub streams: u64,
    /// Where the cursors of consumers were, sorted by name; how far they are behind is by what the follower shows now. Marks that
    /// came later are not in it.
    pub cursors: Vec<CursorInfo>,
}

impl CheckpointStats {
    fn of(checkpoint: Checkpoint, shown: u64) -> Self {
        let sum = |of: fn(&PartitionCounts) -> u64| checkpoint.counts.iter().map(of).sum();
        let info = |(name, at): (Vec<u8>, u64)| {
            // The follower may be about to show what the checkpoint counts.
            CursorInfo { name, at, lag: shown.saturating_sub(at) }
        };
        CheckpointStats {
            position: checkpoint.ordered,
            delivered: checkpoint.frontier.global,
            held: sum(|counts| counts.held),
            duplicates: sum(|counts| counts.duplicates),
            conflicts: sum(|counts| counts.conflicts),
            rejected: sum(|counts| counts.rejected),
            discarded: sum(|counts| counts.discarded),
            streams: sum(|counts| counts.streams),
            cursors: checkpoint.cursors.into_iter().map(info).collect(),
        }
    }
}

/// Who has the store in the directory `path` open for writing, in words (`process 1234`); nothing if nobody has. Takes no
/// lock, so it keeps nobody out. Where the system does not list its locks, or hides those of other containers, nothing too.
///
/// # Errors
///
/// There is no such directory, or its lock file cannot be read.
pub fn writer_of(path: impl AsRef<Path>) -> Result<Option<String>, OpenError> {
    let storage = directory(path.as_ref(), false)?;
    storage.lock_holder(name::LOCK).map_err(io_error("asking who writes"))
}

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Events, and the end of what there is.
    Some,
    /// Events, and perhaps not all.
    More,
}

/// Why a look has come to nothing.
enum Failure {
    /// It can be tried again.
    Files(LogOpenError),
    Replaced {
        global: u64,
    },
}

impl From<io::Error> for Failure {
    fn from(source: io::Error) -> Self {
        Failure::Files(LogOpenError::Io { context: String::from("reading the order"), source })
    }
}

impl From<LogOpenError> for Failure {
    fn from(error: LogOpenError) -> Self {
        Failure::Files(error)
    }
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Files(error) => Cause::Follow(Arc::new(error)),
            Failure::Replaced { global } => Cause::Replaced { global },
        }
    }
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Files(error) => OpenError::Log(error),
            replaced @ Failure::Replaced { .. } => OpenError::Poisoned(replaced.into()),
        }
    }
}

/// What a checkpoint has for a follower.
struct Known {
    order: ChunkFollower,
    tips: ChunkFollower,
    runs: Vec<Arc<Run>>,
    base: Option<Arc<Base>>,
}

impl Known {
    /// Nothing if a file that the checkpoint names is missing or wrong.
    fn of(
        storage: &Arc<dyn Storage>,
        checkpoint: &Checkpoint,
        base: Option<&Arc<Base>>,
    ) -> Result<Option<Self>, OpenError> {
        if base.is_some_and(|base| base.position() > checkpoint.ordered) {
            // The store was trimmed since the checkpoint was read.
            return Ok(None);
        }
        let Frontier { global, tips } = checkpoint.frontier;
        let first = base.map_or_else(Frontier::default, |base| base.frontier());
        let (global, tips) = ((first.global, global), (first.tips, tips));
        let chunks = |layout, count| {
            usable(ChunkFollower::open(layout, checkpoint.store_id, Arc::clone(storage), count))
        };
        let (Some(order), Some(tips)) = (chunks(ORDER, global)?, chunks(TIPS, tips)?) else {
            return Ok(None);
        };
        let base = base.cloned();
        Ok(runs_of(&**storage, checkpoint)?.map(|runs| Known { order, tips, runs, base }))
    }

    /// Of a store without a checkpoint: the order is read from its beginning, or from where the log begins.
    fn nothing(storage: &Arc<dyn Storage>, store_id: [u8; 16], base: Option<Arc<Base>>) -> Self {
        let first = base.as_ref().map_or_else(Frontier::default, |base| base.frontier());
        let chunks =
            |layout, first| ChunkFollower::begin(layout, store_id, Arc::clone(storage), first);
        let runs = base.as_ref().map_or_else(Vec::new, |base| base.runs.clone());
        Known { order: chunks(ORDER, first.global), tips: chunks(TIPS, first.tips), runs, base }
    }
}

/// The runs that a checkpoint lists; nothing if one is missing or wrong.
fn runs_of(
    storage: &dyn Storage,
    checkpoint: &Checkpoint,
) -> Result<Option<Vec<Arc<Run>>>, OpenError> {
    let open = |&number: &u64| {
        usable(Run::open(storage, &checkpoint.store_id, name::run, number)).transpose()
    };
    // A missing one ends the list early.
    let runs: Vec<_> = checkpoint.runs.iter().map_while(open).collect::<Result<_, _>>()?;
    Ok((runs.len() == checkpoint.runs.len()).then_some(runs))
}

/// The follower's thread.
struct Stage {
    core: Arc<Core>,
    log: LogFollower,
    order: ChunkFollower,
    tips: ChunkFollower,
    /// The newest entry that is shown, if it can be read.
    newest: Option<Entry>,
    /// Items that the next look reads.
    look_items: u64,
    /// Newest deliveries by stream, by partition, since the runs.
    heads: Vec<Table>,
    head_count: usize,
    /// With so many, a newer checkpoint is worth a look.
    head_count_max: usize,
    /// When to look whether the log was trimmed.
    next_trim_look: Instant,
}

impl Stage {
    /// Opens what the newest checkpoint counts.
    fn open(storage: Arc<dyn Storage>) -> Result<Self, OpenError> {
        let begun = now();
        let mut attempts = READ_ONLY_ATTEMPTS;
        let (log, known, firsts) = loop {
            let checkpoint = Checkpoint::read(&*storage)?;
            let hint = checkpoint.as_ref().and_then(|checkpoint| checkpoint.tail_hint(&*storage));
            let log = LogFollower::open(Arc::clone(&storage), hint)?;
            // Later than the log, so that it does not begin before that does.
            let store_id = log.store_id();
            let base = Base::open(&*storage, &store_id)?;
            let own = checkpoint.as_ref().filter(|known| known.store_id == log.identity());
            let known = own.map(|own| Known::of(&storage, own, base.as_ref()));
            let known = known.transpose()?.flatten();
            attempts -= 1;
            match known {
                Some(known) => break (log, known, own.map(|own| own.firsts.clone())),
                // The owner has taken away what its checkpoint listed a moment ago.
                None if attempts > 0 && Checkpoint::read(&*storage)? != checkpoint => {}
                None => {
                    let known = Known::nothing(&storage, log.identity(), base);
                    break (log, known, None);
                }
            }
        };
        Ok(Self::new(begun, storage, log, known, firsts.unwrap_or_default()))
    }

    fn new(
        begun: Instant,
        storage: Arc<dyn Storage>,
        log: LogFollower,
        known: Known,
        firsts: BTreeMap<Vec<u8>, u64>,
    ) -> Self {
        let Known { order, tips, runs, base } = known;
        let store_id = log.identity();
        let heads: Vec<Table> = (0..PARTITION_COUNT).map(|_| Table::default()).collect();
        let log_end = log.segments().last().map_or(0, |segment| segment.end());
        let delivered = order.count();
        let mut core = Core::new(CoreParts {
            begun,
            storage,
            store_id,
            keys: Keys::new(&store_id),
            store_tag: tag_of(&store_id),
            read_only: true,
            segments: Segments::new(log.segments().to_vec()),
            order: Arc::clone(order.shared()),
            tips: Arc::clone(tips.shared()),
            runs: Runs::new(runs),
            base,
            known: (0..PARTITION_COUNT).map(|_| Table::default().shared()).collect(),
            heads: heads.iter().map(Table::shared).collect(),
            log_end,
            unsealed: false,
            ordered: log_end,
            delivered,
            cursors: BTreeMap::new(),
            firsts,
            timings: false,
            queue_bytes: 0,
            wait_for_room: Duration::ZERO,
            spin: Duration::ZERO,
        });
        // Nobody in this process has verified a record.
        core.ordered_from = u64::MAX;
        let newest = delivered.checked_sub(1);
        let newest =
            newest.and_then(|global| order_log::entry(&order.shared().reader(), global).ok());
        Stage {
            core: Arc::new(core),
            log,
            order,
            tips,
            newest,
            look_items: LOOK_ITEMS_MIN,
            heads,
            head_count: 0,
            head_count_max: HEADS_STEP,
            next_trim_look: begun + TRIM_LOOK_EVERY,
        }
    }

    /// Looks and waits, until the follower is closed.
    fn run(&mut self, watch: Option<&dyn Watch>) {
        let mut watch = watch;
        let mut pause = PAUSE_MIN;
        let mut failing_since = None;
        while !self.core.is_stopping() {
            match self.look() {
                Ok(Found::More) => continue,
                Ok(Found::Some) => (pause, failing_since) = (PAUSE_MIN, None),
                Ok(Found::Nothing) => failing_since = None,
                Err(failure) => {
                    let since = *failing_since.get_or_insert_with(now);
                    let lasts = now().saturating_duration_since(since) > PATIENCE;
                    if lasts || matches!(failure, Failure::Replaced { .. }) {
                        return self.core.fail(failure.into());
                    }
                }
            }
            match watch {
                Some(told) => {
                    if told.wait(&is_told_of, LOOK_EVERY).is_err() {
                        watch = None;
                    }
                }
                None => {
                    self.core.pause(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Shows what has come to stand in the order log.
    fn look(&mut self) -> Result<Found, Failure> {
        self.mind_trim()?;
        let begins = self.core.horizon().position;
        let count = self.order.count();
        // The newest that is shown is looked at again, if it stands in the same file.
        let again = u64::from(self.order.is_within_chunk());
        let Some(piece) = self.order.look(count - again, self.look_items)? else {
            return Ok(Found::Nothing);
        };
        let entries: Vec<Entry> =
            piece.items().map_while(|(global, item)| Entry::decode(global, item)).collect();
        let Some((seen, new)) = entries.split_at_checked(again as usize) else {
            // The owner has not come so far again.
            return Ok(Found::Nothing);
        };
        if let ([seen], Some(newest)) = (seen, self.newest)
            && *seen != newest
        {
            return Err(Failure::Replaced { global: count - 1 });
        }
        let mut taken = 0;
        // What is not there cannot be shown: after a loss of power, entries can have outlived records that were not
        // synced yet. An owner that recovers writes other ones in their place.
        while let Some(entry) = new.get(taken)
            && (entry.position < begins || self.log.reach(entry.position)?)
            && self.reach_tips(entry)?
        {
            taken += 1;
        }
        let to = count + taken as u64;
        self.show_segments();
        if taken == 0 || !self.order.publish(&piece, to)? {
            return Ok(Found::Nothing);
        }
        self.newest = Some(new[taken - 1]);
        (count..).zip(&new[..taken]).for_each(|(global, entry)| self.update_head(global, entry));
        self.core.delivered.publish(to);
        self.mind_heads();
        let has_more = to == piece.end();
        self.look_items =
            if has_more { (self.look_items * 2).min(LOOK_ITEMS_MAX) } else { LOOK_ITEMS_MIN };
        Ok(if has_more { Found::More } else { Found::Some })
    }

    /// Makes the tips readable that an event was chained on; `false` if they are not all there.
    fn reach_tips(&mut self, entry: &Entry) -> io::Result<bool> {
        let Lineage::Tips(first) = entry.lineage else { return Ok(true) };
        // The list begins with its length, which is believed when it can be read, and never before its items are there.
        let Some(count_end) = first.checked_add(1) else { return Ok(false) };
        if !self.reach_tip_items(count_end)? {
            return Ok(false);
        }
        match order_log::tip_count(&self.tips.shared().reader(), first, NONE) {
            Ok(count) => match count_end.checked_add(count) {
                Some(end) => self.reach_tip_items(end),
                None => Ok(false),
            },
            Err(_) => Ok(false),
        }
    }

    /// Makes the items of the tips log below `end` readable.
    fn reach_tip_items(&mut self, end: u64) -> io::Result<bool> {
        while self.tips.count() < end {
            let from = self.tips.count();
            let Some(piece) = self.tips.look(from, (end - from).min(LOOK_ITEMS_MAX))? else {
                return Ok(false);
            };
            let whole = |(index, item): &(u64, &[u8])| order_log::tip(*index, item).is_some();
            let to = from + piece.items().take_while(whole).count() as u64;
            if to == from || !self.tips.publish(&piece, to)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hands the readers the segments that were added.
    fn show_segments(&self) {
        let shown = self.core.segments.snapshot().last().map_or(0, |segment| segment.number());
        for segment in self.log.segments().iter().filter(|segment| segment.number() > shown) {
            self.core.segments.push(Arc::clone(segment));
        }
    }

    /// Lets go of what was trimmed, so that its space is given back. What was trimmed before it was shown, is not
    /// shown any more.
    fn mind_trim(&mut self) -> Result<(), Failure> {
        if now() < self.next_trim_look {
            return Ok(());
        }
        self.next_trim_look = now() + TRIM_LOOK_EVERY;
        let storage = Arc::clone(&self.core.storage);
        let Some(point) = TrimPoint::read(&*storage).map_err(Failure::Files)? else {
            return Ok(());
        };
        if point.position <= self.core.horizon().position {
            return Ok(());
        }
        let base = match Base::open(&*storage, &self.log.store_id()) {
            Ok(Some(base)) => base,
            // It was replaced meanwhile, and what it lists removed: the next look finds the newer one.
            Ok(None) => return Ok(()),
            Err(OpenError::Log(error)) => return Err(Failure::Files(error)),
            Err(_) => return Ok(()),
        };
        let (Frontier { global, tips }, position) = (base.frontier(), base.position());
        let runs = base.runs.clone();
        // As the owner does: it is there before anything goes.
        self.core.bases.change(|bases| *bases = vec![base]);
        if global > self.order.count() {
            // Nobody looks behind the watermark, nor, by what the base says, before it.
            self.core.delivered.publish(global);
        }
        if self.order.trim(global) {
            self.newest = None;
            self.core.runs.change(|list| *list = runs);
            self.heads.iter_mut().for_each(|heads| heads.retain(|_| false));
            self.head_count = 0;
        }
        self.tips.trim(tips);
        self.log.let_go(position);
        self.core.segments.change(|segments| {
            let last = segments.pop();
            segments.retain(|segment| segment.limit() > position);
            segments.extend(last);
        });
        self.core.order.retire(global);
        self.core.tips.retire(tips);
        Ok(())
    }

    fn update_head(&mut self, global: u64, entry: &Entry) {
        let horizon = self.core.horizon();
        // Whoever finds a stream by its key compares the name, on a record that is verified. A damaged record has no stream.
        let record = match horizon.base() {
            // It was held when its segment was trimmed.
            Some(base) if entry.position < base.position() => base.record(entry.position),
            _ => segment_at(self.log.segments(), entry.position)
                .and_then(|segment| segment.record_verified_before(entry.position).ok()),
        };
        let Some(record) = record else { return };
        let key = self.core.keys.stream(record.stream());
        let heads = &mut self.heads[partition_of(key)];
        let is_it = |value| (value == entry.previous).then_some(());
        match heads.find(key, is_it) {
            Some((slot, ())) if entry.previous != NONE => heads.set(slot, global),
            _ => {
                heads.insert(key, global);
                self.head_count += 1;
            }
        }
    }

    /// Takes the runs of a newer checkpoint, if there is one, once there are many heads in memory.
    fn mind_heads(&mut self) {
        if self.head_count < self.head_count_max {
            return;
        }
        if let Some((below, runs, firsts)) = self.newer_runs() {
            self.core.set_firsts(&firsts);
            // What is forgotten stands in a run before.
            self.core.runs.change(|list| *list = runs);
            self.heads.iter_mut().for_each(|heads| heads.retain(|head| head >= below));
            self.head_count = self.heads.iter().map(|heads| heads.entries().count()).sum();
        }
        self.head_count_max = self.head_count + HEADS_STEP;
    }

    /// The runs of the newest checkpoint, the sequence below which they have all streams, and where readers of trimmed
    /// streams begin. Nothing if it counts more than is
    /// shown, or a file of it is not there: a later one will do.
    fn newer_runs(&self) -> Option<(u64, Vec<Arc<Run>>, Vec<FirstChange>)> {
        let storage = &*self.core.storage;
        let checkpoint = Checkpoint::read(storage).ok()??;
        let below = checkpoint.frontier.global;
        let is_usable = checkpoint.store_id == self.core.store_id && below <= self.order.count();
        if !is_usable {
            return None;
        }
        let runs = runs_of(storage, &checkpoint).ok()??;
        let firsts = checkpoint.firsts.into_iter();
        let firsts = firsts.map(|(stream, first)| FirstChange { stream, first }).collect();
        Some((below, runs, firsts))
    }
}

/// An entry of the order is what comes last of all that belongs to an event.
fn is_told_of(file: &str) -> bool {
    matches!(name::kind(file), name::Kind::Order(_))
}
