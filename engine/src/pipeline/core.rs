//! What the stages share: the list of segments, the watermarks, and the first cause of a failure.
//!
//! The watermarks are positions in the log, each with one publisher:
//!
//! ```text
//! committed  <=  ordered  <=  scanned  <=  durable  <=  written
//! committer      orderer      orderer      writer       writer
//! ```
//!
//! `delivered` counts instead: it is the number of events that readers may see, and it moves with
//! `committed`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{OnceLock, Weak};
use std::time::{Duration, Instant};

use thalweg_wal::storage::Storage;

use crate::derived::chunks::SharedChunks;
use crate::discovery::{Discovering, Tally};
use crate::error::{Cause, ReadError};
use crate::observe::Observer;
use crate::order::cursors::CursorChange;
use crate::order::keys::Keys;
use crate::order::known::SharedTable;
use crate::order::partition::FirstChange;
use crate::pipeline::arrivals::Arrivals;
use crate::pipeline::interests::Interests;
use crate::pipeline::lane::QUEUE_BATCHES_MAX;
use crate::pipeline::lookup::{LongRecords, Lookup, Runs, Segments};
use crate::pipeline::permits::Budget;
use crate::pipeline::threads::message_of;
use crate::sync::{
    Arc, AtomicBool, AtomicU64, EventCount, List, Mutex, Ordering, ReaderBiased, Watermark, now,
};
use crate::trim::KeptBy;
use crate::trimmed::{Base, Horizon};

/// The end of a wait that begins now, for any timeout: one beyond what the clock can say is as good
/// as a year.
pub(crate) fn deadline_in(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
    now() + timeout.min(YEAR)
}

/// A number that one thread sets and any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn new(value: u64) -> Self {
        Gauge(AtomicU64::new(value))
    }

    pub(crate) fn set(&self, value: u64) {
        // Release: pairs with the Acquire load in `get`; whoever sees how far a stage is sees how far
        // those before it are.
        self.0.store(value, Ordering::Release);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Windows that the committer may have in front of it, with the one that is being ordered.
const WINDOWS_MAX: u64 = 3;

/// How long the window in hand may still take when the pipeline has been told to end.
const LAST_WINDOW: Duration = Duration::from_millis(150);

/// Whether the pipeline has been told to end, and since when.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    begun: AtomicBool,
    /// Set before `begun`.
    since: OnceLock<Instant>,
}

impl Ending {
    fn begin(&self) {
        let _ = self.since.set(now());
        // Release: pairs with the Acquire load in `has_begun`.
        self.begun.store(true, Ordering::Release);
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether even the window in hand has to be given up.
    #[inline]
    pub(crate) fn is_overdue(&self) -> bool {
        self.has_begun()
            && self
                .since
                .get()
                .is_some_and(|since| now().saturating_duration_since(*since) > LAST_WINDOW)
    }
}

/// Shared by all stages and by all handles of a store.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) store_id: [u8; 16],
    pub(crate) keys: Keys,
    /// Begins the ids that the engine makes.
    pub(crate) store_tag: u32,
    pub(crate) read_only: bool,
    pub(crate) segments: Segments,
    pub(crate) order: Arc<SharedChunks>,
    pub(crate) tips: Arc<SharedChunks>,
    /// Runs of the state. Changed by the keeper.
    pub(crate) runs: Runs,
    /// What is kept of what was trimmed: nothing, or one. Whoever trims changes it, before anything goes.
    pub(crate) bases: List<Arc<Base>>,
    long_records: Arc<LongRecords>,
    /// Known ids that are in memory, by partition.
    pub(crate) known: Vec<Arc<SharedTable>>,
    /// Newest delivery of each stream that is in memory, by partition.
    pub(crate) heads: Vec<Arc<SharedTable>>,
    /// Bytes that they take. Written by the committer.
    pub(crate) heads_len: Gauge,
    /// Where ordering began in this process; records from here on are verified.
    pub(crate) ordered_from: u64,
    /// What was not ordered yet when the store was opened.
    pub(crate) discovery: Discovering,

    /// Written by the writer.
    pub(crate) written: Gauge,
    /// Published by the writer, after the bytes are in the map.
    pub(crate) durable: Watermark,
    /// The log is on the device up to here; trails `durable` for buffered durability.
    pub(crate) synced: Gauge,
    /// Written by the orderer.
    pub(crate) scanned: Gauge,
    /// Written by the orderer.
    pub(crate) ordered: Gauge,
    /// Published by the committer, after `delivered` and the heads.
    pub(crate) committed: Watermark,
    /// Number of events that readers may see. Published by the committer.
    pub(crate) delivered: Watermark,
    /// Where those wait who want events of one stream only. Published by the committer, after `delivered`.
    pub(crate) arrivals: Arrivals,
    /// Where those wait who follow sets of streams, or a prefix. Moved after `delivered`, too.
    pub(crate) interests: Interests,
    /// Where the cursors of consumers are. Written by the committer, between `delivered` and `committed`: no
    /// cursor is beyond what readers see.
    pub(crate) cursors: Mutex<BTreeMap<Vec<u8>, u64>>,
    /// Where readers of trimmed streams begin, by the names of these. Written by the committer, before
    /// `committed`; a follower has what the checkpoint says that it began with.
    firsts: ReaderBiased<BTreeMap<Vec<u8>, u64>>,
    /// Position up to which the newest checkpoint knows the order. Written by the keeper.
    pub(crate) checkpointed: Gauge,

    /// 1 when the checkpoint of a closed store was written again for a merge, so that it no longer says
    /// where the log has ended. Written by the keeper.
    pub(crate) reopened: Gauge,

    /// 1 while the log is not sealed at the end that its opening has found, because there was no room for
    /// the next segment: a checkpoint must not say that it was closed there. Written by the writer.
    pub(crate) unsealed: Gauge,

    /// Ends the orderer; see [`Core::stop_orderer`].
    pub(crate) ending: Arc<Ending>,
    /// Where the orderer waits: for a longer log, for scanned cuts, for calls, and for the end.
    pub(crate) orderer_work: EventCount,
    /// 1 when the log is to go on in a new segment. Set by whoever trims everything, and taken back by the writer.
    pub(crate) roll_wanted: Gauge,
    /// What the next segment is to say is forgotten. Written by whoever trims.
    pub(crate) forget_below: Gauge,
    /// Where the thread waits that keeps the store to its retention: for another segment, and for the end.
    pub(crate) trim_work: EventCount,
    /// What has kept the newest trim of that thread from giving up more, and why it has failed, in words.
    pub(crate) trimming: Mutex<(Option<KeptBy>, Option<String>)>,
    /// Where the committer waits between two attempts to write.
    between_attempts: EventCount,
    /// Attempts to write the order that failed and were made again.
    pub(crate) commit_retries: Gauge,
    /// Why the order cannot be written now, in words. Set by the committer while it tries again.
    pub(crate) commit_error: Mutex<Option<String>>,
    /// How long the committer waits for room on the disk.
    pub(crate) wait_for_room: Duration,
    /// The first checkpoint that could not be written, in words.
    pub(crate) checkpoint_error: OnceLock<String>,
    /// Why the newest checkpoint could not be written, if it was for another reason than lack of room.
    /// Written by the keeper; whoever needs the checkpoint need not wait for another.
    pub(crate) unwritable: Mutex<Option<Arc<std::io::Error>>>,
    /// A derived file is not what was written, so there may be no checkpoint. Set before it is taken away;
    /// the keeper looks after it has written one.
    pub(crate) no_checkpoints: AtomicBool,
    /// Checkpoints that are on their way to the disk.
    pub(crate) checkpoints_under_way: AtomicU64,

    /// Records of the frame that is written and not durable yet. Written by the writer.
    pub(crate) in_frame: Gauge,
    /// Records of the window that is being ordered. Written by the orderer.
    pub(crate) in_window: Gauge,
    /// Number of events that are delivered in what is ordered. Written by the orderer.
    pub(crate) ordered_events: Gauge,
    pub(crate) queues: Queues,
    /// Appends that wait for the order; while there are none, nobody asks for placements.
    pub(crate) ordered_acks: AtomicU64,
    pub(crate) counts: Counts,
    /// Where appends wait: closed when nothing more is accepted.
    pub(crate) budgets: Budgets,
    pub(crate) callback_panics: Panics,
    /// How long the writer, and who waits for it, spin before they sleep.
    pub(crate) spin: Duration,
    /// Who is told what the stages do.
    pub(crate) observer: Observer,
    /// 1 when the last callback has returned. Published by the callback thread.
    pub(crate) callbacks_ended: Watermark,
    poison: OnceLock<Cause>,
}

/// What bounds the queues between the stages, and so knows how full they are.
#[derive(Debug)]
pub(crate) struct Queues {
    /// Bounds what is in the queue and in the hands of the writer, for appends that are acknowledged
    /// when they are durable.
    pub(crate) durable: Arc<Budget>,
    /// The same for appends that wait for their order, with the committer too: apart, since the order
    /// may be far behind, and who does not wait for it must not wait for those who do.
    pub(crate) ordered: Arc<Budget>,
    /// Bounds the windows that the committer has in front of it.
    pub(crate) windows: Arc<Budget>,
    /// Callbacks that have not returned. They have no bound but the permits of their batches.
    pub(crate) callbacks: AtomicU64,
}

impl Queues {
    fn new(queue_bytes: u64) -> Self {
        let queue = || Arc::new(Budget::new(QUEUE_BATCHES_MAX, queue_bytes));
        Queues {
            durable: queue(),
            ordered: queue(),
            windows: Arc::new(Budget::new(WINDOWS_MAX, u64::MAX)),
            callbacks: AtomicU64::new(0),
        }
    }
}

/// All budgets that somebody may wait for, so that a close or a failure ends every wait.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    open: Mutex<OpenBudgets>,
}

#[derive(Debug, Default)]
struct OpenBudgets {
    /// Budgets of appenders that are gone are forgotten when the list has doubled.
    budgets: Vec<Weak<Budget>>,
    len_after_last_purge: usize,
    closed: bool,
}

impl Budgets {
    /// Adds a budget; closes it at once if the others are closed.
    pub(crate) fn add(&self, budget: &Arc<Budget>) {
        let mut open = self.open.lock();
        if open.closed {
            return budget.close();
        }
        if open.budgets.len() >= 2 * open.len_after_last_purge.max(16) {
            open.budgets.retain(|budget| budget.strong_count() > 0);
            open.len_after_last_purge = open.budgets.len();
        }
        open.budgets.push(Arc::downgrade(budget));
    }

    /// Closes all, for good.
    fn close(&self) {
        let mut open = self.open.lock();
        open.closed = true;
        let budgets = std::mem::take(&mut open.budgets);
        drop(open);
        budgets.iter().filter_map(Weak::upgrade).for_each(|budget| budget.close());
    }
}

/// Panics of callbacks.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    count: AtomicU64,
    first: OnceLock<String>,
}

impl Panics {
    pub(crate) fn add(&self, panic: &(dyn std::any::Any + Send)) {
        let _ = self.first.set(message_of(panic));
        // Relaxed: a number for people.
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were, and what the first said.
    pub(crate) fn get(&self) -> (u64, Option<&String>) {
        (self.count.load(Ordering::Relaxed), self.first.get())
    }
}

/// Numbers of events, as of the newest ordered window.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) streams: Gauge,
    pub(crate) held: Gauge,
    pub(crate) duplicates: Gauge,
    pub(crate) conflicts: Gauge,
    pub(crate) rejected: Gauge,
    pub(crate) discarded: Gauge,
    pub(crate) corrupt: Gauge,
    pub(crate) lookups: Gauge,
    pub(crate) records_read: Gauge,
    pub(crate) bytes_verified: Gauge,
    /// Bytes of memory that the state takes.
    pub(crate) memory: Gauge,
}

impl Counts {
    /// All but the streams.
    pub(crate) fn tally(&self) -> Tally {
        Tally {
            held: self.held.get(),
            duplicates: self.duplicates.get(),
            conflicts: self.conflicts.get(),
            rejected: self.rejected.get(),
            discarded: self.discarded.get(),
            corrupt: self.corrupt.get(),
        }
    }
}

/// What [`Core::new`] takes.
#[derive(Debug)]
pub(crate) struct CoreParts {
    /// When the opening began.
    pub(crate) begun: Instant,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) store_id: [u8; 16],
    pub(crate) keys: Keys,
    pub(crate) store_tag: u32,
    pub(crate) read_only: bool,
    pub(crate) segments: Segments,
    pub(crate) order: Arc<SharedChunks>,
    pub(crate) tips: Arc<SharedChunks>,
    pub(crate) runs: Runs,
    /// What is kept of what was trimmed.
    pub(crate) base: Option<Arc<Base>>,
    pub(crate) known: Vec<Arc<SharedTable>>,
    pub(crate) heads: Vec<Arc<SharedTable>>,
    /// End of the log.
    pub(crate) log_end: u64,
    /// See [`Core::unsealed`].
    pub(crate) unsealed: bool,
    /// Position up to which the order is known already.
    pub(crate) ordered: u64,
    /// Number of events delivered already.
    pub(crate) delivered: u64,
    /// Where the cursors are so far.
    pub(crate) cursors: BTreeMap<Vec<u8>, u64>,
    /// Where readers of trimmed streams begin so far.
    pub(crate) firsts: BTreeMap<Vec<u8>, u64>,
    /// Whether to record where the time of each batch goes.
    pub(crate) timings: bool,
    /// Bytes of appends that are not answered, of each kind of acknowledgement.
    pub(crate) queue_bytes: u64,
    /// How long the committer waits for room on the disk.
    pub(crate) wait_for_room: Duration,
    /// How long the writer, and who waits for it, spin before they sleep.
    pub(crate) spin: Duration,
}

impl Core {
    pub(crate) fn new(parts: CoreParts) -> Self {
        let (queues, budgets) = (Queues::new(parts.queue_bytes), Budgets::default());
        budgets.add(&queues.durable);
        budgets.add(&queues.ordered);
        let unordered = parts.log_end.saturating_sub(parts.ordered);
        let observer = Observer::new(&*parts.storage, parts.read_only, unordered, parts.timings);
        Core {
            storage: parts.storage,
            store_id: parts.store_id,
            keys: parts.keys,
            store_tag: parts.store_tag,
            read_only: parts.read_only,
            segments: parts.segments,
            order: parts.order,
            tips: parts.tips,
            runs: parts.runs,
            bases: List::new(parts.base.into_iter().collect()),
            long_records: Arc::new(LongRecords::new()),
            known: parts.known,
            heads: parts.heads,
            heads_len: Gauge::new(0),
            ordered_from: parts.ordered,
            discovery: Discovering::new(parts.begun, parts.ordered, parts.log_end, parts.delivered),
            written: Gauge::new(parts.log_end),
            durable: Watermark::new(parts.log_end),
            synced: Gauge::new(parts.log_end),
            scanned: Gauge::new(parts.ordered),
            ordered: Gauge::new(parts.ordered),
            committed: Watermark::new(parts.ordered),
            delivered: Watermark::new(parts.delivered),
            arrivals: Arrivals::new(parts.delivered),
            interests: Interests::new(),
            cursors: Mutex::new(parts.cursors),
            firsts: ReaderBiased::new(parts.firsts),
            checkpointed: Gauge::new(parts.ordered),
            reopened: Gauge::new(0),
            unsealed: Gauge::new(parts.unsealed.into()),
            ending: Arc::default(),
            orderer_work: EventCount::new(),
            roll_wanted: Gauge::default(),
            forget_below: Gauge::default(),
            trim_work: EventCount::new(),
            trimming: Mutex::new((None, None)),
            between_attempts: EventCount::new(),
            commit_retries: Gauge::default(),
            commit_error: Mutex::new(None),
            wait_for_room: parts.wait_for_room,
            checkpoint_error: OnceLock::new(),
            unwritable: Mutex::new(None),
            no_checkpoints: AtomicBool::new(false),
            checkpoints_under_way: AtomicU64::new(0),
            in_frame: Gauge::default(),
            in_window: Gauge::default(),
            ordered_events: Gauge::new(parts.delivered),
            queues,
            ordered_acks: AtomicU64::new(0),
            counts: Counts::default(),
            budgets,
            callback_panics: Panics::default(),
            spin: parts.spin,
            observer,
            callbacks_ended: Watermark::new(0),
            poison: OnceLock::new(),
        }
    }

    /// A view of everything as it is now.
    pub(crate) fn lookup(&self) -> Lookup {
        Lookup {
            segments: self.segments.snapshot(),
            order: self.order.reader(),
            tips: self.tips.reader(),
            runs: self.runs.snapshot(),
            // Last: what is gone from the lists before was trimmed by then.
            horizon: self.horizon(),
            long_records: Arc::clone(&self.long_records),
            verified_from: self.ordered_from,
            skip_damage: self.read_only,
            in_flight: Default::default(),
            ending: None,
        }
    }

    /// Where the log begins now.
    pub(crate) fn horizon(&self) -> Horizon {
        Horizon::new(self.bases.snapshot())
    }

    /// Publishes what a window has made of cursors.
    pub(crate) fn set_cursors(&self, changes: &[CursorChange]) {
        if changes.is_empty() {
            return;
        }
        let mut cursors = self.cursors.lock();
        for CursorChange { name, at } in changes {
            match (at, cursors.get_mut(name)) {
                (Some(at), Some(known)) => *known = *at,
                (Some(at), None) => drop(cursors.insert(name.clone(), *at)),
                (None, _) => drop(cursors.remove(name)),
            }
        }
    }

    /// Local sequence at which readers of the stream `name` begin.
    pub(crate) fn first_of(&self, name: &[u8]) -> u64 {
        self.firsts.read().get(name).copied().unwrap_or(0)
    }

    /// Publishes where readers begin since a window.
    pub(crate) fn set_firsts(&self, changes: &[FirstChange]) {
        if changes.is_empty() {
            return;
        }
        let mut firsts = self.firsts.write();
        for FirstChange { stream, first } in changes {
            firsts.insert(stream.clone(), *first);
        }
    }

    /// Stops the engine. The first cause stands. Every waiter wakes.
    pub(crate) fn fail(&self, cause: Cause) {
        if self.poison.set(cause).is_ok()
            && let Some(cause) = self.cause()
        {
            self.observer.failed(cause);
        }
        self.wake_all();
        self.orderer_work.notify_all();
    }

    /// Why the engine has stopped, if it has.
    pub(crate) fn cause(&self) -> Option<&Cause> {
        self.poison.get()
    }

    /// Why a stage has let go of something that it had to answer.
    pub(crate) fn cause_of_death(&self) -> Cause {
        self.cause().cloned().unwrap_or(Cause::Panic {
            thread: "thalweg",
            message: String::from("a batch was dropped without an answer"),
        })
    }

    /// Tells the orderer to end after the window in hand: on closing, or when a stage has died that
    /// it would wait for in vain.
    pub(crate) fn stop_orderer(&self) {
        self.ending.begin();
        self.orderer_work.notify_all();
        self.trim_work.notify_all();
        self.between_attempts.notify_all();
    }

    /// Waits before another attempt. `false` if there is to be none, since the pipeline ends.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        !self.between_attempts.wait_deadline(|| self.is_stopping(), deadline_in(time))
    }

    /// Whether whatever takes long has to end soon.
    pub(crate) fn is_stopping(&self) -> bool {
        self.ending.has_begun()
    }

    /// Stops the engine because of a derived file that is wrong. It would be met again by every
    /// opening, so the checkpoint that vouches for it goes: the next opening makes the order again from
    /// the log.
    pub(crate) fn fail_derived(&self, error: ReadError) {
        if !self.read_only {
            // SeqCst: in one order with the load in `Keeper::publish`. Either the keeper sees this behind its
            // rename, or that comes before the removal.
            self.no_checkpoints.store(true, Ordering::SeqCst);
            let _ = self.storage.remove(thalweg_wal::name::checkpoint());
        }
        self.fail(Cause::Derived(Arc::new(std::io::Error::other(error.to_string()))));
    }

    /// Ends every wait: the store is closed.
    pub(crate) fn close(&self) {
        self.wake_all();
    }

    /// Runs what belongs to a user, on the callback thread. A panic in it is counted.
    pub(crate) fn catch_callback(&self, callback: impl FnOnce()) {
        // Whatever the callback leaves half done is its own.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(callback)) {
            self.callback_panics.add(&*panic);
            // Even dropping what it panicked with may panic, and so on: what that panics with is leaked.
            let dropped = catch_unwind(AssertUnwindSafe(move || drop(panic)));
            let _ = dropped.map_err(std::mem::forget);
        }
    }

    /// Accepts no more appends, and ends every wait of one.
    pub(crate) fn close_budgets(&self) {
        self.budgets.close();
    }

    fn wake_all(&self) {
        self.budgets.close();
        self.durable.fail();
        self.committed.fail();
        self.delivered.fail();
        self.arrivals.fail();
        self.interests.fail();
    }

    /// Why a wait has ended without what was waited for.
    pub(crate) fn ended(&self) -> ReadError {
        match self.cause() {
            Some(cause) => ReadError::Poisoned(cause.clone()),
            None => ReadError::Closed,
        }
    }
}
