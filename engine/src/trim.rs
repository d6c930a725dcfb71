//! Trimming: giving up the oldest part of the log, and keeping what the rest of it rests on.
//!
//! A trim goes segment by segment, since whole files go. It is done by whoever asks, beside the pipeline, and in this
//! order:
//!
//! 1. decide which segments go: none that is written, none that no checkpoint is beyond, none with an event that a
//!    cursor has before it;
//! 2. make the base where the log is to begin ([`crate::trimmed`]), and write it: with a rename, the log begins there;
//! 3. show it to whoever looks something up, and then take the segments from the lists;
//! 4. unlink the files. Whoever has one mapped goes on reading it.
//!
//! A crash before the rename leaves the log as it was, and one behind it leaves files that the next opening removes.

use std::fmt;
use std::io;
use std::time::Duration;

use thalweg_wal::storage::{Storage, remove_if_there};
use thalweg_wal::{Segment, name, retire};

use crate::clock::Clock;
use crate::derived::chunks::Layout;
use crate::derived::order_log::{ORDER, TIPS};
use crate::error::{OpenError, ReadError};
use crate::order::window::Frontier;
use crate::pipeline::core::{Core, deadline_in};
use crate::pipeline::lookup::{Fault, Lookup};
use crate::pipeline::orderer::{Call, OrdererHandle};
use crate::sync::{Arc, Mutex, completion};
use crate::trimmed::Base;
use crate::trimmed::advance::advance;
use crate::trimmed::facts::FACTS;

/// How long until there may be something to give up that there was not: what kept it may be gone, and the last segment grows.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How much of the log to give up: everything that one of the limits says. Without any, nothing.
///
/// Whole segments go, so what is left is up to one segment more than a limit says. Nothing goes that a cursor has not
/// come to yet, unless [`Trim::past_cursors`] says so, and never the segment that is written.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use thalweg::{Store, Trim};
///
/// let store = Store::open(dir.path())?;
/// let report = store.trim(&Trim::new().keep_bytes(1 << 30))?;
/// assert_eq!(report.first, 0); // there was nothing to trim
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trim {
    before: Option<u64>,
    keep_bytes: Option<u64>,
    older_than: Option<Duration>,
    everything: bool,
    remember: Option<u64>,
    past_cursors: bool,
    dry_run: bool,
}

impl Trim {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Trim::default()
    }

    /// The events before this global sequence.
    #[must_use]
    pub fn before(mut self, global: u64) -> Self {
        self.before = Some(global);
        self
    }

    /// All but the newest so many bytes of the log.
    #[must_use]
    pub fn keep_bytes(mut self, bytes: u64) -> Self {
        self.keep_bytes = Some(bytes);
        self
    }

    /// What is older than this, by the time of day at which it was appended ([`Options::clock`](crate::Options::clock)). A segment is as old as
    /// the first batch of the next one.
    #[must_use]
    pub fn older_than(mut self, age: Duration) -> Self {
        self.older_than = Some(age);
        self
    }

    /// Everything that is there now: the log goes on in a new segment first, if there is room for one. Of no more use
    /// as a retention than a limit of no bytes.
    #[must_use]
    pub fn everything(mut self) -> Self {
        self.everything = true;
        self
    }

    /// Of the events that are trimmed, remembers the newest so many, and forgets the ids of the others. Default: none is
    /// ever forgotten.
    ///
    /// What is kept of an event that was trimmed, to tell that a copy of it is a duplicate and that a child of it can be
    /// delivered, takes some 43 bytes. Where that is too much in the long run, this bounds it. An id that is
    /// forgotten is one that was never there: an event with it is a new event, and one that lists it as a parent waits for
    /// it. The tips of streams are never forgotten.
    ///
    /// What is forgotten is written into the log, at the beginning of the next segment, and holds from there on: so the
    /// order stays a function of the log. If the store is closed before the log has come to another segment, the next
    /// trim says it again. A held event looks at its parents one after the other, as it lists
    /// them: one that it has found to be delivered stays so, whatever is forgotten later.
    #[must_use]
    pub fn remember(mut self, events: u64) -> Self {
        self.remember = Some(events);
        self
    }

    /// Whether the log has to go on in a new segment first.
    pub(crate) fn wants_roll(&self) -> bool {
        self.everything && !self.dry_run
    }

    /// Whether the log may begin with `segment`, by bytes, age, or because everything is to go: `durable` is where it ends,
    /// `now` the time in milliseconds.
    fn may_begin_with(&self, segment: &Segment, durable: u64, now: u64) -> bool {
        let by_bytes =
            || self.keep_bytes.is_some_and(|keep| segment.base().saturating_add(keep) <= durable);
        let by_age = || {
            let age = self.older_than.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            // All that is before it is older than what it begins with.
            let begun = age.and_then(|_| segment.frame_times().at(segment.first()));
            age.zip(begun).is_some_and(|(age, begun)| begun.saturating_add(age) <= now)
        };
        self.everything || by_bytes() || by_age()
    }

    /// How long it takes at most until something more may have to go, beside by a new segment.
    fn look_every(&self) -> Option<Duration> {
        const LOOKS: u32 = 16;
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(60));
        let by_age = self.older_than.map(|age| (age / LOOKS).clamp(least, most));
        // The last segment grows without anybody telling.
        let by_bytes = self.keep_bytes.map(|_| LOOK_AGAIN_AFTER);
        by_age.into_iter().chain(by_bytes).min()
    }

    /// The longest that a segment may be, for this to give up anything in time.
    pub(crate) fn segment_len_max(&self) -> u64 {
        self.keep_bytes.map_or(u64::MAX, |bytes| bytes / 4)
    }

    /// Also what a cursor has before it. Its consumer then gets [`ReadError::Trimmed`].
    #[must_use]
    pub fn past_cursors(mut self) -> Self {
        self.past_cursors = true;
        self
    }
}

impl Trim {
    /// Gives up nothing, and reports what would go now.
    #[must_use]
    pub fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }
}

/// What a trim has come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TrimReport {
    /// The first global sequence that is left.
    pub first: u64,
    /// Events that went.
    pub events: u64,
    /// Segments that went.
    pub segments: u64,
    /// Bytes of the log that went.
    pub bytes: u64,
    /// What has kept it from giving up as much as the limits say, if anything has.
    pub kept_by: Option<KeptBy>,
}

/// What keeps a part of the log that the limits of a trim would give up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeptBy {
    /// A cursor, which has not come further.
    Cursor {
        /// Its name.
        name: Vec<u8>,
        /// Where it is.
        at: u64,
    },
    /// There is no checkpoint behind it: none could be written, or the log is not put in order so far yet.
    Checkpoint,
}

/// Why a store was not trimmed.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrimError {
    /// The store is open for reading only.
    ReadOnly,
    /// The store was closed meanwhile.
    Interrupted,
    /// What is to go cannot be read, or its order is not what readers have seen. Nothing was trimmed.
    Read(ReadError),
    /// What is kept cannot be written, and nothing was trimmed; or it was, and what is gone cannot be removed: the next
    /// trim or opening does.
    Io {
        /// What was done.
        context: String,
        /// What went wrong.
        source: io::Error,
    },
    /// What was written cannot be opened. The next opening of the store may say so, too; nothing more is trimmed before
    /// that.
    Open(OpenError),
    /// The directory could not be synced, so the log begins at the old place or at the new one: the next opening tells.
    /// Readers see what they saw, and nothing more is trimmed before that.
    Unknown(Arc<io::Error>),
}

impl TrimError {
    pub(crate) fn io(context: &str) -> impl FnOnce(io::Error) -> TrimError {
        let context = context.to_owned();
        move |source| TrimError::Io { context, source }
    }

    pub(crate) fn unknown(source: io::Error) -> TrimError {
        TrimError::Unknown(Arc::new(source))
    }
}

impl fmt::Display for TrimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrimError::ReadOnly => f.write_str("the store is open for reading only"),
            TrimError::Interrupted => f.write_str("the store was closed; nothing was trimmed"),
            TrimError::Read(error) => write!(f, "nothing was trimmed: {error}"),
            TrimError::Io { context, source } if source.kind() == io::ErrorKind::StorageFull => {
                write!(
                    f,
                    "{context}: {source}; what is kept is written before anything is removed, so make some room and trim again"
                )
            }
            TrimError::Io { context, source } => write!(f, "{context}: {source}"),
            TrimError::Open(error) => error.fmt(f),
            TrimError::Unknown(source) => write!(
                f,
                "where the log begins could not be made durable: {source}; close the store and open it again, which \
                 tells, to trim it"
            ),
        }
    }
}

impl std::error::Error for TrimError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TrimError::Io { source, .. } => Some(source),
            TrimError::Read(error) => Some(error),
            TrimError::Open(error) => Some(error),
            TrimError::Unknown(source) => Some(&**source),
            TrimError::ReadOnly | TrimError::Interrupted => None,
        }
    }
}

impl From<Fault> for TrimError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::GivenUp => TrimError::Interrupted,
            fault => TrimError::Read(fault.into()),
        }
    }
}

impl From<OpenError> for TrimError {
    fn from(error: OpenError) -> Self {
        TrimError::Open(error)
    }
}

/// A segment that the log could begin with.
struct Candidate {
    segment: Arc<Segment>,
    /// The first delivery that was set off in it or behind it.
    first: u64,
}

/// Whoever trims a store goes through this, one at a time.
#[derive(Debug)]
pub(crate) struct Trimmer {
    pub(crate) core: Arc<Core>,
    pub(crate) orderer: OrdererHandle,
    /// Identity of the log.
    log_id: [u8; 16],
    clock: Clock,
    /// Held while the store is trimmed.
    trimming: Mutex<Left>,
}

/// What a trim has left that did not go well.
#[derive(Debug, Default)]
struct Left {
    /// Why nobody knows where the log begins on the disk.
    unknown: Option<Arc<io::Error>>,
    /// Files that were trimmed and could not be removed.
    files: bool,
}

impl Trimmer {
    pub(crate) fn new(orderer: OrdererHandle, log_id: [u8; 16], clock: Clock) -> Self {
        let core = Arc::clone(&orderer.core);
        Trimmer { core, orderer, log_id, clock, trimming: Mutex::default() }
    }

    pub(crate) fn trim(&self, trim: &Trim) -> Result<TrimReport, TrimError> {
        let core = &self.core;
        if core.read_only {
            return Err(TrimError::ReadOnly);
        }
        let mut left = self.trimming.lock();
        if let Some(cause) = core.cause() {
            return Err(TrimError::Read(ReadError::Poisoned(cause.clone())));
        }
        if core.is_stopping() {
            return Err(TrimError::Interrupted);
        }
        if let Some(source) = &left.unknown {
            return Err(TrimError::Unknown(Arc::clone(source)));
        }
        if left.files {
            self.remove(&mut left)?;
        }
        let mut report = TrimReport { first: core.horizon().first, ..TrimReport::default() };
        // Who trimmed before may have ended before the log came to another segment.
        self.remember(trim, report.first);
        let now = self.clock.millis();
        if !is_over_a_limit(core, trim, now) {
            return Ok(report);
        }
        if !self.checkpoint()? {
            report.kept_by = Some(KeptBy::Checkpoint);
        }
        let Some(Candidate { segment, first }) = choose(core, trim, now, &mut report)? else {
            return Ok(report);
        };
        report.events = first - report.first;
        report.first = first;
        let old = core.segments.snapshot();
        for gone in old.iter().filter(|gone| gone.base() < segment.base()) {
            report.segments += 1;
            report.bytes += gone.limit() - gone.base();
        }
        if trim.dry_run {
            return Ok(report);
        }
        let base = advance(core, self.log_id, &segment, &|_| true).inspect_err(|error| {
            left.unknown = match error {
                TrimError::Unknown(source) => Some(Arc::clone(source)),
                // The log on the disk begins with it all the same. Another attempt would begin with the base before
                // it, and write again what this one needs.
                TrimError::Open(error) => Some(Arc::new(io::Error::other(error.to_string()))),
                _ => None,
            };
        })?;
        debug_assert_eq!(base.frontier().global, first);
        show(core, &base);
        self.remember(trim, first);
        self.orderer.call(Call::LetGo);
        self.remove(&mut left)?;
        Ok(report)
    }

    /// Says what the next segment is to forget, if the log begins with delivery `first`.
    pub(crate) fn remember(&self, trim: &Trim, first: u64) {
        if let Some(events) = trim.remember.filter(|_| !trim.dry_run) {
            self.core.forget_below.set(first.saturating_sub(events));
        }
    }

    /// Removes what is not needed any more.
    fn remove(&self, left: &mut Left) -> Result<(), TrimError> {
        left.files = true;
        let bases = self.core.bases.snapshot();
        let base = bases.last().expect("something was trimmed");
        remove(&self.core, base).map_err(TrimError::io("removing what was trimmed"))?;
        left.files = false;
        Ok(())
    }

    /// Waits until nobody trims. Called when the pipeline ends: then nobody begins to.
    pub(crate) fn end(&self) {
        drop(self.trimming.lock());
    }

    /// Has a checkpoint written that is beyond everything that may go; `false` if that does not work.
    fn checkpoint(&self) -> Result<bool, TrimError> {
        let core = &self.core;
        let last = core.segments.snapshot().last().map_or(0, |segment| segment.base());
        if core.checkpointed.get() >= last {
            return Ok(true);
        }
        let (promise, mut done) = completion();
        self.orderer.call(Call::Checkpoint(promise));
        let written = done.wait().map_err(|_| match core.cause() {
            Some(cause) => TrimError::Read(ReadError::Poisoned(cause.clone())),
            None => TrimError::Interrupted,
        })?;
        Ok(written.is_ok())
    }

    /// Trims again and again, until the store closes: the thread of a store that has a retention.
    pub(crate) fn keep_to(&self, retention: &Trim) {
        let core = &self.core;
        // Of the list, which would keep what is trimmed mapped, nothing is kept.
        let newest = || core.segments.snapshot().last().map_or(0, |segment| segment.number());
        while !core.is_stopping() {
            let seen = newest();
            let is_kept = match self.trim(retention) {
                Ok(report) => {
                    let is_kept = report.kept_by.is_some();
                    *core.trimming.lock() = (report.kept_by, None);
                    is_kept
                }
                Err(TrimError::Interrupted) => continue,
                Err(error) => {
                    *core.trimming.lock() = (None, Some(error.to_string()));
                    if core.cause().is_some() || matches!(error, TrimError::Unknown(_)) {
                        // It is the same however often it is tried.
                        return;
                    }
                    true
                }
            };
            let is_due = || core.is_stopping() || newest() != seen;
            let pause = if is_kept { Some(LOOK_AGAIN_AFTER) } else { retention.look_every() };
            match pause {
                Some(pause) => drop(core.trim_work.wait_deadline(is_due, deadline_in(pause))),
                None => core.trim_work.wait_until(is_due),
            }
        }
    }
}

/// Whether there is anything to do, without a closer look.
fn is_over_a_limit(core: &Core, trim: &Trim, now: u64) -> bool {
    let segments = core.segments.snapshot();
    let Some(second) = segments.get(1) else { return false };
    let by_bytes = trim.may_begin_with(second, core.durable.get(), now);
    let by_sequence = trim.before.is_some_and(|before| before > core.horizon().first);
    by_bytes || by_sequence
}

/// The segment that the log is to begin with, if it is not the one that it does.
fn choose(
    core: &Core,
    trim: &Trim,
    now: u64,
    report: &mut TrimReport,
) -> Result<Option<Candidate>, TrimError> {
    let lookup = core.lookup();
    let (durable, checkpointed) = (core.durable.get(), core.checkpointed.get());
    let delivered = core.delivered.get();
    let cursor = if trim.past_cursors { None } else { slowest_cursor(core) };
    let mut chosen = None;
    let mut first = lookup.horizon.first;
    for segment in lookup.segments.iter().skip(1) {
        let by_bytes = trim.may_begin_with(segment, durable, now);
        if !by_bytes && trim.before.is_none_or(|before| first >= before) {
            break;
        }
        if segment.base() > checkpointed {
            report.kept_by = Some(KeptBy::Checkpoint);
            break;
        }
        first = first_set_off(&lookup, segment.base(), first, delivered)?;
        if !by_bytes && trim.before.is_none_or(|before| first > before) {
            break;
        }
        if let Some((name, at)) = cursor.as_ref().filter(|(_, at)| *at < first) {
            report.kept_by = Some(KeptBy::Cursor { name: name.clone(), at: *at });
            break;
        }
        chosen = Some(Candidate { segment: Arc::clone(segment), first });
    }
    Ok(chosen)
}

fn slowest_cursor(core: &Core) -> Option<(Vec<u8>, u64)> {
    let cursors = core.cursors.lock();
    let slowest = cursors.iter().min_by_key(|(_, at)| **at);
    slowest.map(|(name, at)| (name.clone(), *at))
}

/// The first delivery, from `from` on, that was set off at or behind `position`. An event that sets something off is
/// the first that it delivers, and all that it delivers with it stood before it; so this is the first delivery of an
/// event that stands at or behind `position`.
pub(crate) fn first_set_off(
    lookup: &Lookup,
    position: u64,
    from: u64,
    delivered: u64,
) -> Result<u64, Fault> {
    for global in from..delivered {
        if lookup.entry(global)?.position >= position {
            return Ok(global);
        }
    }
    Ok(delivered)
}

/// Shows the new base, and then lets go of what it stands for.
fn show(core: &Core, base: &Arc<Base>) {
    core.bases.change(|bases| *bases = vec![Arc::clone(base)]);
    core.segments.change(|segments| segments.retain(|segment| segment.base() >= base.position()));
}

/// Removes what is not needed any more.
fn remove(core: &Core, base: &Base) -> io::Result<()> {
    let storage = &*core.storage;
    retire(storage, base.point().segment)?;
    let frontier = base.frontier();
    let chunks =
        core.order.retire(frontier.global).into_iter().chain(core.tips.retire(frontier.tips));
    for chunk in chunks {
        remove_if_there(storage, &chunk)?;
    }
    remove_strays(storage, Some(base));
    Ok(())
}

/// Removes what the base has no use for: runs of an older one, or of one that was not finished, and what stands before
/// it of the order. It costs space if it fails.
pub(crate) fn remove_strays(storage: &dyn Storage, base: Option<&Base>) {
    let listed = base.map_or(&[][..], |base| &base.checkpoint.runs);
    let first = base.map_or_else(Frontier::default, Base::frontier);
    let is_before = |layout: Layout, number: u64, first: u64| number < first / layout.chunk_items;
    for other in storage.list().unwrap_or_default() {
        let is_stray = match name::kind(&other) {
            name::Kind::FactsRun(number) => !listed.contains(&number),
            name::Kind::Facts(number) => {
                base.is_none_or(|base| is_before(FACTS, number, base.checkpoint.forgotten))
            }
            name::Kind::Order(number) => is_before(ORDER, number, first.global),
            name::Kind::Tips(number) => is_before(TIPS, number, first.tips),
            _ => false,
        };
        if is_stray {
            let _ = storage.remove(&other);
        }
    }
}
