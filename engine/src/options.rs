//! How a store is opened.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thalweg_wal::SEGMENT_LEN_MIN;
use thalweg_wal::storage::Storage;

use crate::clock::Clock;
use crate::error::{OpenError, Outcome, Refusal};
use crate::event::Ack;
use crate::pipeline::lane::DefaultCallback;
use crate::pipeline::threads::SINGLE_THREADS;
use crate::store::Store;
use crate::trim::Trim;

/// What a completed append survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Power loss: the batch is on the device before its ticket completes.
    #[default]
    Sync,
    /// The end of the process. After power loss, what was appended since the last sync may be
    /// gone; the log is synced at least once a second while appends come, and on closing.
    Buffered,
}

/// What the orderer does when it meets damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDamage {
    /// Stop the engine: the order beyond the damage is not known.
    Stop,
    /// Count it and go on with the next record.
    Skip,
}

/// How a store is opened. The defaults are right for nearly everybody.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let store = thalweg::Options::new().scanners(2).open(dir.path())?;
/// # store.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) create: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) scanners: usize,
    pub(crate) orderers: usize,
    pub(crate) pin: bool,
    pub(crate) durability: Durability,
    pub(crate) queue_bytes: u64,
    pub(crate) memory_budget: u64,
    pub(crate) timings: bool,
    pub(crate) wait_for_room: Duration,
    /// None for what suits the machine.
    pub(crate) spin: Option<Duration>,
    pub(crate) retention: Option<Trim>,
    pub(crate) clock: Clock,
}

/// Most threads that an option may ask for.
const THREADS_MAX: usize = 1024;
/// Longest spin that an option may ask for.
const SPIN_MAX: Duration = Duration::from_secs(1);
/// Longest segment that an option may ask for, in bytes.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let scanners = (cores / 4).clamp(1, 4);
        // Those that the single threads leave, if that is a pool worth having.
        let orderers = match cores.saturating_sub(SINGLE_THREADS + scanners) {
            0 | 1 => cores,
            left => left.min(16),
        };
        Options {
            create: true,
            segment_bytes: 64 << 20,
            scanners,
            orderers,
            pin: true,
            durability: Durability::Sync,
            queue_bytes: 64 << 20,
            memory_budget: 1 << 30,
            timings: false,
            wait_for_room: Duration::from_secs(5 * 60),
            spin: None,
            retention: None,
            clock: Clock::of_machine(),
        }
    }

    /// Whether a store that is not there is created. Default: yes.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Where the time of day comes from, with which each frame of the log is stamped, and from which the ages of
    /// held events count: for tests, and for machines whose own clock is not to be trusted. Called by the writer once
    /// a frame, so it must not block. Default: the clock of the machine.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Clock::new(clock);
        self
    }

    /// Length that the segments of the log grow to, in bytes, one MiB to one GiB. Default: 64 MiB.
    ///
    /// A store starts with segments of one MiB and makes them longer as it grows.
    #[must_use]
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Number of threads that verify and split the log, at least one. Default: a quarter of the
    /// cores, one to four.
    #[must_use]
    pub fn scanners(mut self, threads: usize) -> Self {
        self.scanners = threads;
        self
    }

    /// Number of threads that put events in order, at least one. Default: the cores that the other
    /// threads leave, at most 16; all of them if those are fewer than two. The order is the same for
    /// every number.
    #[must_use]
    pub fn orderers(mut self, threads: usize) -> Self {
        self.orderers = threads;
        self
    }

    /// Whether threads are pinned to cores where there are enough of them. Default: yes.
    #[must_use]
    pub fn pin(mut self, pin: bool) -> Self {
        self.pin = pin;
        self
    }

    /// What a completed append survives. Default: [`Durability::Sync`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Bytes of appends, of all appenders together, that may wait for their acknowledgement before a
    /// submit waits, at least one. Default: 64 MiB. A batch that is larger goes alone. The number of
    /// batches is bounded too, at 4096. Both hold for each kind of acknowledgement on its own, so that
    /// who waits for the order keeps nobody out who does not.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: u64) -> Self {
        self.queue_bytes = bytes;
        self
    }

    /// Bytes of memory that the state of the order may take: known ids, streams and held events. Default:
    /// 1 GiB. What does not fit is in files that are derived from the log, sorted, and looked up where they
    /// are mapped; the machine's free memory still holds what of them is in use. With zero, nothing stays
    /// in memory from one window of the log to the next: right, and slow.
    ///
    /// Beside it, a store takes `queue_bytes`, what readers hold, and the run that is being written. While a long tail is put in
    /// order, the windows under way take what the state leaves of seven eighths of the budget, at least an eighth of it. A stream is in memory as a whole while it is in use, with 24 bytes for each of its tips.
    /// A store that is open for reading only has in memory what it has ordered itself, without a bound.
    #[must_use]
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.memory_budget = bytes;
        self
    }

    /// How long the writer waits for an append, and a thread for its ticket, without going to sleep.
    /// Spares both the way through the scheduler, at the price of a core. Up to a second. Default: 20 microseconds where
    /// each thread of the store is pinned to a core of its own, else not at all.
    #[must_use]
    pub fn spin(mut self, time: Duration) -> Self {
        self.spin = Some(time);
        self
    }

    /// Whether the store also records where the time of each batch goes, for [`Stats::timings`](crate::Stats::timings), and the
    /// time of all threads that order. Costs a few looks at the clock for each batch. Default: no.
    #[must_use]
    pub fn timings(mut self, timings: bool) -> Self {
        self.timings = timings;
        self
    }

    /// Keeps the store to these limits while it is open: a thread of its own trims it whenever a segment has been
    /// filled, and tries again each second while something keeps it from that
    /// ([`Stats::kept_by`](crate::Stats::kept_by), [`Stats::trim_error`](crate::Stats::trim_error)). Default: nothing is ever trimmed.
    ///
    /// With [`Trim::keep_bytes`], segments are no longer than a quarter of that, but at least 1 MiB.
    #[must_use]
    pub fn retention(mut self, retention: Trim) -> Self {
        self.retention = Some(retention);
        self
    }

    /// How long the order may wait for room on the disk before the engine stops. Default: five minutes.
    ///
    /// The order is in derived files, beside the log. While there is no room for them, nothing is
    /// delivered and [`Stats::commit_error`](crate::Stats::commit_error) says why; durable appends go
    /// on as long as the log has room.
    #[must_use]
    pub fn wait_for_room(mut self, time: Duration) -> Self {
        self.wait_for_room = time;
        self
    }

    /// Opens the store in the directory `path` for reading and writing.
    ///
    /// Recovers the log, and returns as soon as appends can be taken and what was ordered before
    /// can be read; what is not ordered yet is ordered meanwhile.
    /// [`Store::wait_committed`] waits for that.
    ///
    /// # Errors
    ///
    /// Nothing was changed: the store is open for writing elsewhere, is no store, is damaged, or
    /// cannot be read.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Store, OpenError> {
        self.check()?;
        crate::open::open(self, path.as_ref())
    }

    /// Opens the store in the directory `path` for reading: what was durable at this moment.
    ///
    /// Takes no lock and changes nothing, so it works beside a process that writes the store. What
    /// that process has not ordered in a checkpoint is ordered here, in memory. Damaged records are
    /// left out, counted, and do not hinder the rest.
    ///
    /// # Errors
    ///
    /// There is no store, or its log cannot be read at all.
    pub fn open_read_only(self, path: impl AsRef<Path>) -> Result<Store, OpenError> {
        self.check()?;
        crate::open::open_read_only(self, path.as_ref())
    }

    /// As [`Options::open`], on any storage: with
    /// [`MemoryStorage`](crate::storage::MemoryStorage), for tests that leave nothing behind.
    ///
    /// # Errors
    ///
    /// As for [`Options::open`].
    pub fn open_on(self, storage: Arc<dyn Storage>) -> Result<Store, OpenError> {
        self.check()?;
        crate::open::open_on(self, storage)
    }

    /// As [`Options::open_read_only`], on any storage.
    ///
    /// # Errors
    ///
    /// As for [`Options::open_read_only`].
    pub fn open_read_only_on(self, storage: Arc<dyn Storage>) -> Result<Store, OpenError> {
        self.check()?;
        crate::open::open_read_only_on(self, storage)
    }

    /// Bytes of a segment, at most.
    pub(crate) fn segment_len_max(&self) -> u64 {
        let of_retention = self.retention.as_ref().map_or(u64::MAX, Trim::segment_len_max);
        self.segment_bytes.min(of_retention.max(SEGMENT_LEN_MIN))
    }

    fn check(&self) -> Result<(), OpenError> {
        let refuse = |name, detail| Err(OpenError::Option { name, detail });
        for (name, threads) in [("scanners", self.scanners), ("orderers", self.orderers)] {
            if !(1..=THREADS_MAX).contains(&threads) {
                return refuse(name, format!("takes 1 to {THREADS_MAX} threads, not {threads}"));
            }
        }
        if !(SEGMENT_LEN_MIN..=SEGMENT_BYTES_MAX).contains(&self.segment_bytes) {
            let bytes = self.segment_bytes;
            let detail =
                format!("takes {SEGMENT_LEN_MIN} to {SEGMENT_BYTES_MAX} bytes, not {bytes}");
            return refuse("segment_bytes", detail);
        }
        if let Some(spin) = self.spin.filter(|spin| *spin > SPIN_MAX) {
            return refuse("spin", format!("takes up to {SPIN_MAX:?}, not {spin:?}"));
        }
        if self.queue_bytes == 0 {
            return refuse("queue_bytes", String::from("takes at least one byte"));
        }
        Ok(())
    }
}

/// How an appender works.
///
/// ```
/// use thalweg::{Ack, AppenderOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let store = thalweg::Store::open(dir.path())?;
/// let options = AppenderOptions::new().pipeline(8).ack(Ack::Ordered);
/// let orders = store.appender_with("orders-42", options)?;
/// # store.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AppenderOptions {
    pub(crate) pipeline: usize,
    pub(crate) pipeline_bytes: u64,
    pub(crate) ack: Ack,
    pub(crate) default_callback: Option<DefaultCallback>,
}

impl Default for AppenderOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for AppenderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppenderOptions")
            .field("pipeline", &self.pipeline)
            .field("pipeline_bytes", &self.pipeline_bytes)
            .field("ack", &self.ack)
            .field("has_callback", &self.default_callback.is_some())
            .finish()
    }
}

impl AppenderOptions {
    /// Batches that an appender has room for, unless it is told otherwise.
    pub const PIPELINE_DEFAULT: usize = 2;
    /// Most batches that an appender can have room for.
    pub const PIPELINE_MAX: usize = 1024;
    /// Bytes that an appender has room for, unless it is told otherwise.
    pub const PIPELINE_BYTES_DEFAULT: u64 = 8 << 20;

    /// The defaults.
    pub fn new() -> Self {
        AppenderOptions {
            pipeline: Self::PIPELINE_DEFAULT,
            pipeline_bytes: Self::PIPELINE_BYTES_DEFAULT,
            ack: Ack::default(),
            default_callback: None,
        }
    }

    /// Batches that may be under way before a submit waits, 1 to 1024. Default: 2, one that is written
    /// while the next is made.
    ///
    /// More are of use when batches are small and one thread makes them: the appender then appends up to
    /// this many with each sync.
    #[must_use]
    pub fn pipeline(mut self, batches: usize) -> Self {
        self.pipeline = batches;
        self
    }

    /// Bytes that may be under way before a submit waits, as they are in the log, at least one. Default:
    /// 8 MiB. A batch that is larger goes alone.
    #[must_use]
    pub fn pipeline_bytes(mut self, bytes: u64) -> Self {
        self.pipeline_bytes = bytes;
        self
    }

    /// When batches are acknowledged. Default: [`Ack::Durable`].
    #[must_use]
    pub fn ack(mut self, ack: Ack) -> Self {
        self.ack = ack;
        self
    }

    /// What is called with the outcome of each batch that is
    /// [submitted and forgotten](crate::StreamAppender::submit_and_forget). Default: nothing.
    #[must_use]
    pub fn on_outcome(mut self, callback: impl Fn(Outcome) + Send + Sync + 'static) -> Self {
        self.default_callback = Some(Arc::new(callback));
        self
    }

    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let refuse = |name, detail| Err(Refusal::Option { name, detail });
        if !(1..=Self::PIPELINE_MAX).contains(&self.pipeline) {
            let (max, batches) = (Self::PIPELINE_MAX, self.pipeline);
            return refuse("pipeline", format!("takes 1 to {max} batches, not {batches}"));
        }
        if self.pipeline_bytes == 0 {
            return refuse("pipeline_bytes", String::from("takes at least one byte"));
        }
        Ok(())
    }
}
