//! Checking a store against the definition of its order, without trusting anything derived.
//!
//! Every checksum of the log is verified, the serial machine of [`crate::reference`] is run over
//! all of it, and what the checkpoint and the order log say is compared with what came out: each
//! entry, each link, each stream and each held event. If the beginning of the log was trimmed, the machine begins with
//! what is kept of it, all of which is verified, and has to agree with itself. Nothing is written, and no bytes, however
//! damaged, make the check panic.
//!
//! The serial machine keeps what it has seen in memory: about 1.2 KiB for an event with an id and a
//! parent of 40 bytes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use thalweg_wal::format::Fault as LogFault;
use thalweg_wal::storage::{Access, MemoryStorage, OsStorage, Storage};
use thalweg_wal::{Damage, LogReader, Mark, Record, RecordKind, Segment, name};

use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks;
use crate::derived::order_log::{self, Entry, Lineage, NONE, ORDER, TIPS};
use crate::derived::run::DamagedRun;
use crate::error::ReadError;
use crate::event::{EventId, Rejection};
use crate::open::{READ_ONLY_ATTEMPTS, State, is_of, restore};
use crate::order::cold::{for_each_stream, held_positions};
use crate::order::keys::{Keys, partition_of};
use crate::order::partition::KnownAs;
use crate::order::window::Frontier;
use crate::pipeline::lookup::{Fault, LongRecords, Lookup};
use crate::reference::{
    Arrival, Delivery, SerialDiscard, SerialEvent, SerialMachine, SerialMark, SerialRecord,
};
use crate::sync::Arc;
use crate::trimmed::facts::FACTS;
use crate::trimmed::{self, Base, Begun, Horizon, Wrong};

/// Most problems that a report lists; the rest is only counted.
const PROBLEMS_MAX: usize = 100;
/// Progress is reported every so many events.
const PROGRESS_EVERY: u64 = 4096;

/// How far a check has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Bytes of the log that are checked.
    pub bytes_done: u64,
    /// Bytes of the log.
    pub bytes_total: u64,
    /// Events that are checked.
    pub events: u64,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Name of the file in the store's directory.
    pub file: String,
    /// Offset in the file, in bytes, where one place is concerned.
    pub offset: Option<u64>,
    /// Position in the log that is concerned, in bytes.
    pub position: Option<u64>,
    /// What is wrong.
    pub detail: String,
    /// What to do about it.
    pub remedy: Remedy,
}

/// What to do about a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// The file is derived: [`rebuild`](crate::rebuild) makes it again. It costs time.
    Rebuild,
    /// The log is damaged: put the file back from a copy, or have [`repair`](crate::repair) record the loss.
    Repair,
    /// The file says what nothing else does: put it back from a [backup](crate::restore).
    Restore,
    /// A backup is not what it was: take another.
    Backup,
}

impl Remedy {
    /// The command that does it.
    pub fn command(self) -> &'static str {
        match self {
            Remedy::Rebuild => "order --rebuild",
            Remedy::Repair => "repair",
            Remedy::Restore => "restore",
            Remedy::Backup => "backup",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if let Some(offset) = self.offset {
            write!(f, "offset {offset}: ")?;
        }
        if let Some(position) = self.position {
            write!(f, "position {position}: ")?;
        }
        let remedy = match self.remedy {
            Remedy::Rebuild => "derived, so it costs time only: `order --rebuild`",
            Remedy::Repair => "put it back from a copy, or `repair`",
            Remedy::Restore => {
                "nothing else tells what it says: put it back from a backup, with `restore`"
            }
            Remedy::Backup => "take another backup",
        };
        write!(f, "{}; {remedy}", self.detail)
    }
}

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Records in the log: events, seals put on or taken off, marks, and discards.
    pub records: u64,
    /// The first global sequence that was not trimmed; 0 if nothing was. All events before it are delivered.
    pub first: u64,
    /// Position at which the log begins now, in bytes: what was before it was trimmed.
    pub begins: u64,
    /// Records from before it that are kept: those of held events, and what is needed of the tips of streams.
    pub kept_records: u64,
    /// Events that are delivered, the trimmed ones included.
    pub delivered: u64,
    /// Events that are held.
    pub held: u64,
    /// Events that were there already when they arrived.
    pub duplicates: u64,
    /// Events whose id another event had already.
    pub conflicts: u64,
    /// Events that were not taken, since a condition of theirs did not hold or their stream was sealed.
    pub rejected: u64,
    /// Events that were held, and discarded.
    pub discarded: u64,
    /// Streams with delivered or held events, or with a seal.
    pub streams: u64,
    /// Damaged places in the log. If there are any, the derived files are not compared.
    pub damaged: u64,
    /// Deliveries that the order log had and that were compared.
    pub compared: u64,
    /// Stretches of the log that a repair has recorded as lost. They are no problems any more.
    pub lost_stretches: u64,
    /// Bytes in them.
    pub lost_bytes: u64,
    /// Delivered events in them: they have their numbers, and cannot be read.
    pub lost_events: u64,
    /// Files in the directory that are none of the store's, which nobody touches.
    pub unknown_files: Vec<String>,
    /// Files that a crash or a repair has left, which nobody reads: they may be deleted.
    pub left_files: Vec<String>,
    /// The first problems.
    pub problems: Vec<Problem>,
    /// How many problems there are in all.
    pub problem_count: u64,
    /// The check was interrupted: what is reported is what was found so far.
    pub interrupted: bool,
}

impl VerifyReport {
    /// Counts what became of a record.
    fn count(&mut self, kind: RecordKind, arrival: Arrival) {
        match arrival {
            Arrival::Delivered | Arrival::Held(_) => {}
            Arrival::Sealed(_) | Arrival::Unsealed | Arrival::Marked(_) => {}
            Arrival::NotHeld { .. } | Arrival::Trimmed(_) => {}
            Arrival::Discarded => self.discarded += 1,
            Arrival::Rejected(_) if kind == RecordKind::Mark => {}
            Arrival::Duplicate => self.duplicates += 1,
            Arrival::Conflict => self.conflicts += 1,
            Arrival::Rejected(_) => self.rejected += 1,
        }
    }

    fn damage(&mut self, damage: &Damage) {
        self.damaged += 1;
        let Damage { file, offset, position, fault, resumes, .. } = damage.clone();
        let mut detail = fault.to_string();
        if resumes > position {
            detail.push_str(&format!("; readable again from position {resumes}"));
        }
        let (offset, position, remedy) = (Some(offset), Some(position), Remedy::Repair);
        self.add(Problem { file, offset, position, detail, remedy });
    }

    /// A problem of a derived file.
    fn problem(
        &mut self,
        file: impl Into<String>,
        position: Option<u64>,
        detail: impl Into<String>,
    ) {
        let (file, detail) = (file.into(), detail.into());
        self.add(Problem { file, offset: None, position, detail, remedy: Remedy::Rebuild });
    }

    /// A place in a derived file whose checksum is wrong.
    fn damaged_derived(&mut self, file: String, offset: u64, detail: String) {
        let (offset, remedy) = (Some(offset), Remedy::Rebuild);
        self.add(Problem { file, offset, position: None, detail, remedy });
    }

    fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    /// Something of what is kept of the trimmed events is wrong.
    fn wrong_base(&mut self, wrong: Wrong) {
        let Wrong { file, offset, detail } = wrong;
        self.add(Problem { file, offset, position: None, detail, remedy: Remedy::Restore });
    }

    /// Says what files there are that are no part of a whole store.
    fn note_files(&mut self, names: Vec<String>, runs: &[u64], start: &Start) {
        let base = start.base();
        let first = base.map_or_else(Frontier::default, |base| base.frontier());
        for file in names {
            let is_left = match name::kind(&file) {
                name::Kind::Unknown => {
                    self.unknown_files.push(file);
                    continue;
                }
                name::Kind::SegmentNew(_)
                | name::Kind::LossesNew
                | name::Kind::TrimmedNew
                | name::Kind::Quarantine => true,
                name::Kind::Checkpoint => file != name::checkpoint(),
                name::Kind::Run(number) => !runs.contains(&number),
                // Nobody knows which of these are needed.
                name::Kind::Facts(_) | name::Kind::FactsRun(_) if start.is_lost() => false,
                name::Kind::Facts(number) => number >= first.global.div_ceil(FACTS.chunk_items),
                name::Kind::FactsRun(number) => {
                    !base.is_some_and(|base| base.checkpoint.runs.contains(&number))
                }
                name::Kind::Segment(number) => {
                    base.is_some_and(|base| number < base.point().segment)
                }
                name::Kind::Order(number) => number < first.global / ORDER.chunk_items,
                name::Kind::Tips(number) => number < first.tips / TIPS.chunk_items,
                name::Kind::Lock
                | name::Kind::Backup
                | name::Kind::Losses
                | name::Kind::Trimmed => false,
            };
            if is_left {
                self.left_files.push(file);
            }
        }
        self.unknown_files.sort();
        self.left_files.sort();
    }
}

/// Checks the store in the directory `path`. Takes no lock, so it works beside a writer, and then
/// checks what was durable when it began.
///
/// `progress` is called from time to time; when it breaks, the check ends with what it has.
///
/// # Errors
///
/// There is no store, or its log cannot be opened at all. Damage is a problem in the report.
pub fn verify(
    path: impl AsRef<Path>,
    progress: &dyn Fn(VerifyProgress) -> ControlFlow<()>,
) -> Result<VerifyReport, ReadError> {
    let path = path.as_ref();
    let storage = OsStorage::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            let missing = thalweg_wal::OpenError::Missing { path: path.display().to_string() };
            ReadError::Open(Arc::new(missing.into()))
        }
        std::io::ErrorKind::NotADirectory => {
            let path = path.display().to_string();
            ReadError::Open(Arc::new(crate::error::OpenError::NotADirectory { path }))
        }
        _ => error.into(),
    })?;
    verify_on(Arc::new(storage), progress)
}

/// As [`verify`], on any storage.
///
/// # Errors
///
/// As for [`verify`].
pub fn verify_on(
    storage: Arc<dyn Storage>,
    progress: &dyn Fn(VerifyProgress) -> ControlFlow<()>,
) -> Result<VerifyReport, ReadError> {
    crate::backup::check_finished(&*storage, &storage.list()?)
        .map_err(|error| ReadError::Open(Arc::new(error)))?;
    let mut attempts = READ_ONLY_ATTEMPTS;
    let (log, start, mut derived, mut report) = loop {
        let unreadable = |error| ReadError::Open(Arc::new(error));
        let checkpoint = Checkpoint::read(&*storage).map_err(unreadable)?;
        let hint = checkpoint.as_ref().and_then(|checkpoint| checkpoint.tail_hint(&*storage));
        let log = LogReader::open(&*storage, hint)
            .map_err(|error| ReadError::Open(Arc::new(error.into())))?;
        let mut report = VerifyReport::default();
        let start = Start::open(&*storage, &log, &mut report)?;
        let derived = Derived::open(&storage, checkpoint.clone(), start.base(), &log, &mut report);
        attempts -= 1;
        // A store that is written meanwhile has taken away what its checkpoint listed a moment ago, or was trimmed.
        let is_same = || Checkpoint::read(&*storage).is_ok_and(|newest| newest == checkpoint);
        if attempts == 0 || (start.is_of(&log) && (derived.is_some() || is_same())) {
            break (log, start, derived, report);
        }
    };
    let runs = derived.as_ref().map(|derived| derived.checkpoint.runs.clone()).unwrap_or_default();
    report.note_files(storage.list().unwrap_or_default(), &runs, &start);
    if let Some(losses) = &log.losses {
        report.lost_stretches = losses.stretches().len() as u64;
        report.lost_bytes = losses.lost_len();
    }
    let is_told = |damage: &&Damage| start.is_lost() && is_of_beginning(&log, damage);
    beyond_walks(&log).filter(|damage| !is_told(damage)).for_each(|damage| report.damage(damage));
    if let Some(derived) = &derived {
        derived.check_sums(&mut report);
    }
    let begun = start.begin(&mut report);
    let is_begun = begun.is_some();
    let Begun { mut machine, ways } = begun.unwrap_or_default();
    let bytes_total: u64 = log.segments.iter().map(|segment| segment.end() - segment.base()).sum();
    let mut bytes_before = 0;
    for segment in &log.segments {
        if is_begun {
            if let Some(derived) = &mut derived {
                derived.pass(segment.first(), &machine, &mut report);
            }
            machine.forget(segment.forgotten());
        }
        for record in segment.walk(segment.first(), segment.end()) {
            let record = match record {
                Ok(record) => record,
                Err(damage) => {
                    report.damage(&damage);
                    continue;
                }
            };
            report.records += 1;
            if is_begun {
                if let Some(derived) = &mut derived {
                    derived.pass(record.position(), &machine, &mut report);
                }
                report.count(record.kind(), arrive(&mut machine, &record, &log.store_id));
            }
            if report.records.is_multiple_of(PROGRESS_EVERY) {
                let bytes_done = bytes_before + (record.position() - segment.base());
                let events = report.records;
                if progress(VerifyProgress { bytes_done, bytes_total, events }).is_break() {
                    report.interrupted = true;
                    return Ok(report);
                }
            }
        }
        bytes_before += segment.end() - segment.base();
    }
    match &mut derived {
        // Without the damaged records the machine comes to another order. What the derived files
        // say is then not wrong: it is the evidence for the numbers that events have.
        Some(_) if report.damaged > 0 => report.add(Problem {
            file: String::from("the order log and the checkpoint"),
            offset: None,
            position: None,
            detail: String::from(
                "not compared, since the log is damaged; keep them: they hold the order as it was, and a \
                 repair needs them",
            ),
            remedy: Remedy::Repair,
        }),
        Some(derived) if is_begun => {
            derived.pass(u64::MAX, &machine, &mut report);
            derived.compare_order(&machine, ways, &mut report);
        }
        Some(_) | None => {}
    }
    if let Some(losses) = &log.losses {
        let substitutes: HashSet<u64> = losses.substitutes().map(|lost| lost.position()).collect();
        let is_lost = |delivery: &&Delivery| substitutes.contains(&delivery.position);
        let lost = machine.order.iter().filter(is_lost);
        report.lost_events = lost.count() as u64;
    }
    report.delivered = machine.next_global();
    report.held = machine.held().len() as u64;
    report.streams = machine.stream_counts().len() as u64;
    let _ =
        progress(VerifyProgress { bytes_done: bytes_total, bytes_total, events: report.records });
    Ok(report)
}

/// Damage that opening has found where no walk over a segment comes by: the rest is met, and told
/// record by record, on the way.
pub(crate) fn beyond_walks(log: &LogReader) -> impl Iterator<Item = &Damage> {
    let is_walked = |position| {
        log.segments.iter().any(|segment| (segment.first()..segment.end()).contains(&position))
    };
    log.damage.iter().filter(move |damage| !is_walked(damage.position))
}

/// Whether it is no more than that nobody knows where the log begins.
fn is_of_beginning(log: &LogReader, damage: &Damage) -> bool {
    let is_before = |first: &Arc<Segment>| damage.position < first.base();
    damage.file == name::trimmed()
        || (damage.fault == LogFault::Missing && log.segments.first().is_some_and(is_before))
}

/// Has the serial machine take a record, or what stands in for one.
pub(crate) fn arrive(
    machine: &mut SerialMachine,
    record: &Record<'_>,
    store_id: &[u8; 16],
) -> Arrival {
    let place = record.position()..record.position() + record.len();
    if record.kind() == RecordKind::Refused {
        machine.refuse(place, record.stream());
        return Arrival::Rejected(Rejection::Previous);
    }
    match serial_record(record, store_id) {
        SerialRecord::Event(event) if record.is_lost() => machine.arrive_lost(place.start, event),
        record => machine.arrive(place, record),
    }
}

/// A record for the serial machine; a digest stands for the payload, to save memory.
pub(crate) fn serial_record(record: &Record<'_>, store_id: &[u8; 16]) -> SerialRecord {
    let stream = record.stream().to_vec();
    let digest = Keys::new(store_id).digest(record.payload());
    match record.kind() {
        RecordKind::Event => {}
        RecordKind::Seal => return SerialRecord::Seal(stream),
        RecordKind::Unseal | RecordKind::Refused => return SerialRecord::Unseal(stream),
        RecordKind::Mark => return serial_mark(record),
        RecordKind::StreamTrim => {
            let first = record.stream_trim().expect("its kind says so");
            return SerialRecord::StreamTrim(stream, first);
        }
        RecordKind::Discard => {
            let id = record.given_id().to_vec();
            let reason = record.discard_reason().expect("its kind says so");
            return SerialRecord::Discard(SerialDiscard { stream, id, reason });
        }
    }
    let parents = record.parents().map(<[u8]>::to_vec).collect();
    SerialRecord::Event(SerialEvent {
        stream,
        id: EventId::of(record, crate::open::tag_of(store_id)).to_vec(),
        parents: (!record.is_chained()).then_some(parents),
        require_parents: record.requires_parents(),
        if_tips: record.is_if_tips(),
        if_local: record.if_local(),
        with_previous: record.is_with_previous(),
        payload: digest.to_le_bytes().to_vec(),
    })
}

fn serial_mark(record: &Record<'_>) -> SerialRecord {
    let Mark { cursor, change, depends_from } = record.mark().expect("its kind says so");
    let reach = record.position() - depends_from;
    SerialRecord::Mark(SerialMark { cursor: cursor.to_vec(), change, reach })
}

/// Where the check begins.
enum Start {
    /// With segment 1.
    Log,
    /// Where the log was trimmed.
    Base(Arc<Base>),
    /// Nobody knows: what is kept of what was trimmed cannot be used.
    Lost,
}

impl Start {
    fn open(
        storage: &dyn Storage,
        log: &LogReader,
        report: &mut VerifyReport,
    ) -> Result<Self, ReadError> {
        let examined = Base::examine(storage, &log.store_id);
        let wrong = match examined.map_err(|error| ReadError::Open(Arc::new(error)))? {
            Ok(Some(base)) => return Ok(Start::Base(base)),
            Ok(None) => match trimmed::missing(storage) {
                None => return Ok(Start::Log),
                Some(wrong) => wrong,
            },
            Err(wrong) => wrong,
        };
        report.wrong_base(wrong);
        Ok(Start::Lost)
    }

    fn base(&self) -> Option<&Arc<Base>> {
        match self {
            Start::Base(base) => Some(base),
            Start::Log | Start::Lost => None,
        }
    }

    fn is_lost(&self) -> bool {
        matches!(self, Start::Lost)
    }

    /// Whether the log begins there, as far as one can know.
    fn is_of(&self, log: &LogReader) -> bool {
        self.is_lost() || self.base().map(|base| base.point()) == log.trim
    }

    /// The machine that the check begins with, if there is one.
    fn begin(&self, report: &mut VerifyReport) -> Option<Begun> {
        let base = match self {
            Start::Log => return Some(Begun::default()),
            Start::Lost => return None,
            Start::Base(base) => base,
        };
        (report.first, report.begins) = (base.frontier().global, base.position());
        report.kept_records = base.record_count();
        base.begin(&mut |wrong| report.wrong_base(wrong))
    }
}

/// Global sequences of a stream's deliveries, by their local ones: of those that were trimmed, the few that links of
/// later ones lead to.
#[derive(Default)]
struct Way {
    kept: Vec<(u64, u64)>,
    begins: u64,
    rest: Vec<u64>,
}

impl Way {
    fn new(kept: Vec<(u64, u64)>) -> Self {
        let begins = kept.first().map_or(0, |(local, _)| local + 1);
        Way { kept, begins, rest: Vec::new() }
    }

    fn global(&self, local: u64) -> u64 {
        let global = match local.checked_sub(self.begins) {
            Some(index) => self.rest.get(index as usize),
            None => self.kept.iter().find(|(known, _)| *known == local).map(|(_, global)| global),
        };
        global.copied().unwrap_or(NONE)
    }
}

/// The derived files, opened for comparison.
struct Derived {
    state: State,
    checkpoint: Checkpoint,
    lookup: Lookup,
    /// The state of the checkpoint has been compared.
    state_compared: bool,
}

impl Derived {
    /// Opens what there is. What is there and does not fit is a problem; what is not there is none.
    fn open(
        storage: &Arc<dyn Storage>,
        checkpoint: Option<Checkpoint>,
        base: Option<&Arc<Base>>,
        log: &LogReader,
        report: &mut VerifyReport,
    ) -> Option<Self> {
        let names = storage.list().unwrap_or_default();
        let Some(checkpoint) = checkpoint else {
            if names.iter().any(|other| other == name::checkpoint()) {
                report.problem(
                    name::checkpoint(),
                    None,
                    "the checkpoint is damaged, or of another version",
                );
            }
            return None;
        };
        if checkpoint.store_id != log.identity() && is_of(&checkpoint.store_id, &log.store_id) {
            // From before a repair: the next opening for writing makes them again. Unless what it knows to be
            // lost is itself lost.
            if log.losses.is_none() && storage.open(name::losses(), Access::Read).is_err() {
                report.add(Problem {
                    file: name::losses().to_owned(),
                    offset: None,
                    position: None,
                    detail: String::from("it is missing, and the checkpoint knows of it"),
                    remedy: Remedy::Repair,
                });
            }
            return None;
        }
        if checkpoint.store_id != log.identity() {
            report.problem(name::checkpoint(), None, "the checkpoint belongs to another store");
            return None;
        }
        if base.is_some_and(|base| base.position() > checkpoint.ordered) {
            report.problem(name::checkpoint(), None, "the checkpoint is of before the trim");
            return None;
        }
        let scratch: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let restored =
            restore(storage, &scratch, Some(checkpoint.clone()), base, log.identity(), false);
        let detail = match restored {
            Ok(Some(state)) => {
                let lookup = Lookup {
                    segments: Arc::new(log.segments.clone()),
                    order: state.order.shared().reader(),
                    tips: state.tips.shared().reader(),
                    runs: Arc::new(state.runs.clone()),
                    horizon: Horizon::new(Arc::new(base.into_iter().cloned().collect())),
                    verified_from: 0,
                    skip_damage: false,
                    in_flight: VecDeque::new(),
                    long_records: Arc::new(LongRecords::new()),
                    ending: None,
                };
                return Some(Derived { state, checkpoint, lookup, state_compared: false });
            }
            Ok(None) => String::from("a file that it lists is missing or wrong"),
            Err(error) => format!("a file that it lists cannot be opened: {error}"),
        };
        report.problem(name::checkpoint(), None, detail);
        None
    }

    /// Verifies every checksum of the derived files, whatever the log has come to.
    fn check_sums(&self, report: &mut VerifyReport) {
        let (first, Frontier { global, tips }) = (self.first(), self.checkpoint.frontier);
        for global in first.global..global {
            if order_log::entry(&self.lookup.order, global).is_err() {
                let (file, offset) = chunks::place(ORDER, global);
                let detail = format!("the checksum of entry {global} does not match");
                report.damaged_derived(file, offset, detail);
            }
        }
        for item in first.tips..tips {
            if self.lookup.tips.item(item).and_then(|bytes| order_log::tip(item, bytes)).is_none() {
                let (file, offset) = chunks::place(TIPS, item);
                let detail = format!("the checksum of item {item} does not match");
                report.damaged_derived(file, offset, detail);
            }
        }
        for run in &self.state.runs {
            if let Err(DamagedRun { file, offset }) = run.verify() {
                let detail = String::from("the checksum does not match");
                report.damaged_derived(file, offset, detail);
            }
        }
    }

    /// Compares the state of the checkpoint when the machine comes to its position.
    fn pass(&mut self, position: u64, machine: &SerialMachine, report: &mut VerifyReport) {
        if self.state_compared || position < self.checkpoint.ordered || report.damaged > 0 {
            return;
        }
        self.state_compared = true;
        let delivered = machine.next_global();
        if delivered != self.checkpoint.frontier.global {
            let counted = self.checkpoint.frontier.global;
            self.problem(report, format!("it counts {counted} delivered events, not {delivered}"));
        }
        self.compare_cursors(machine, report);
        if self.checkpoint.firsts != machine.firsts() {
            let (found, should) = (self.checkpoint.firsts.len(), machine.firsts().len());
            let detail =
                format!("of {found} trimmed streams it has not the same as the log, of {should}");
            self.problem(report, detail);
        }
        let mut compare = || -> Result<(), Fault> {
            self.compare_known(machine, report)?;
            self.compare_held(machine, report)?;
            self.compare_streams(machine, report)
        };
        if let Err(fault) = compare() {
            self.problem(report, ReadError::from(fault).to_string());
        }
    }

    fn problem(&self, report: &mut VerifyReport, detail: String) {
        report.problem(name::checkpoint(), Some(self.checkpoint.ordered), detail);
    }

    /// Compares what is known of each delivered id.
    fn compare_known(
        &self,
        machine: &SerialMachine,
        report: &mut VerifyReport,
    ) -> Result<(), Fault> {
        for (global, delivery) in
            (machine.first..self.checkpoint.frontier.global).zip(&machine.order)
        {
            let record = self.lookup.record(delivery.position)?;
            let (keys, tag) = (self.state.partitions[0].keys, self.state.partitions[0].store_tag);
            let stream_key = keys.stream(record.stream());
            let id = EventId::of(&record, tag);
            let key = keys.event(stream_key, &id);
            let partition = &self.state.partitions[partition_of(stream_key)];
            let known = partition.find_known(record.stream(), key, &id, &self.lookup)?;
            let is_forgotten = global < self.checkpoint.forgotten;
            if known != Some(KnownAs::Delivered(global)) && !is_forgotten {
                let position = delivery.position;
                let detail = format!(
                    "it knows the event at {position} as {known:?}, not as delivery {global}"
                );
                self.problem(report, detail);
            }
        }
        Ok(())
    }

    /// Where what was trimmed ends.
    fn first(&self) -> Frontier {
        self.lookup.horizon.base().map_or_else(Frontier::default, |base| base.frontier())
    }

    fn compare_held(
        &self,
        machine: &SerialMachine,
        report: &mut VerifyReport,
    ) -> Result<(), Fault> {
        let held = held_positions(&self.state.partitions, &self.lookup)?;
        let expected: Vec<u64> = machine.held().into_keys().collect();
        if held != expected {
            let first = held.iter().zip(&expected).find(|(found, expected)| found != expected);
            let at = first.map_or(String::new(), |(_, position)| format!(", first at {position}"));
            let (found, expected) = (held.len(), expected.len());
            let detail = format!("it holds {found} events, not the {expected} expected{at}");
            self.problem(report, detail);
        }
        let counted: u64 = self.checkpoint.counts.iter().map(|counts| counts.held).sum();
        if counted != expected.len() as u64 {
            self.problem(
                report,
                format!("it counts {counted} held events, not {}", expected.len()),
            );
        }
        let counted: u64 = self.checkpoint.counts.iter().map(|counts| counts.discarded).sum();
        let base = self.lookup.horizon.base().map(|base| &base.checkpoint);
        let before: u64 =
            base.map_or(0, |begun| begun.counts.iter().map(|counts| counts.discarded).sum());
        let expected = before + report.discarded;
        if counted != expected {
            self.problem(report, format!("it counts {counted} discarded events, not {expected}"));
        }
        Ok(())
    }

    fn compare_cursors(&self, machine: &SerialMachine, report: &mut VerifyReport) {
        let (found, should) = (&self.checkpoint.cursors, &machine.cursors);
        for name in found.keys().chain(should.keys().filter(|name| !found.contains_key(*name))) {
            if found.get(name) != should.get(name) {
                let (found, should) = (found.get(name), should.get(name));
                let name = name.escape_ascii();
                self.problem(report, format!("cursor {name} is at {found:?}, not at {should:?}"));
            }
        }
    }

    fn compare_streams(
        &self,
        machine: &SerialMachine,
        report: &mut VerifyReport,
    ) -> Result<(), Fault> {
        let expected = machine.stream_counts();
        let mut found = 0;
        let mut wrong = Vec::new();
        let keys = self.state.partitions[0].keys;
        for_each_stream(&self.state.partitions, &self.lookup, |stream| {
            let (held, tips) = (u64::from(stream.held), stream.tips.len() as u64);
            let counts = (stream.delivered, held, tips, stream.sealed);
            found += usize::from(stream.is_there());
            let should = expected.get(&*stream.name).copied().unwrap_or_default();
            if counts != should || keys.stream(&stream.name) != stream.key {
                wrong.push((stream.name.clone(), counts, should));
            }
        })?;
        for (stream, counts, should) in wrong {
            let stream = stream.escape_ascii();
            let detail = format!(
                "stream {stream} has delivered, held, tips and seal {counts:?}, not {should:?}"
            );
            self.problem(report, detail);
        }
        let counted: u64 = self.checkpoint.counts.iter().map(|counts| counts.streams).sum();
        if found != expected.len() || counted != expected.len() as u64 {
            let expected = expected.len();
            let detail = format!("it has {found} streams and counts {counted}, not {expected}");
            self.problem(report, detail);
        }
        Ok(())
    }

    /// Compares every entry of the order log with the machine's deliveries. `ways` has what is known of each stream
    /// from before the log.
    fn compare_order(
        &self,
        machine: &SerialMachine,
        ways: HashMap<Vec<u8>, Vec<(u64, u64)>>,
        report: &mut VerifyReport,
    ) {
        let (order, tips) = (&self.lookup.order, &self.lookup.tips);
        let mut ways: HashMap<Vec<u8>, Way> =
            ways.into_iter().map(|(stream, kept)| (stream, Way::new(kept))).collect();
        let end = self.checkpoint.frontier.global;
        for (global, delivery) in (machine.first..end).zip(&machine.order) {
            if !ways.contains_key(&delivery.stream) {
                ways.insert(delivery.stream.clone(), Way::default());
            }
            let way = ways.get_mut(&delivery.stream).expect("it was just added");
            let local = delivery.local;
            let expected = Entry {
                position: delivery.position,
                local,
                previous: local.checked_sub(1).map_or(NONE, |before| way.global(before)),
                jump: local.checked_sub(1).map_or(NONE, |before| way.global(local & before)),
                lineage: Lineage::Listed,
            };
            way.rest.push(global);
            report.compared += 1;
            let file = name::order(global / ORDER.chunk_items);
            // What is damaged is known already.
            let Ok(entry) = order_log::entry(order, global) else { continue };
            if (Entry { lineage: Lineage::Listed, ..entry }) != expected {
                let detail = format!(
                    "entry {global} names position {} and place {} of its stream, not {} and {local}, or \
                     other links",
                    entry.position, entry.local, delivery.position
                );
                report.problem(file, Some(delivery.position), detail);
                continue;
            }
            let chained_on = match entry.lineage {
                Lineage::Listed => None,
                Lineage::Root => Some(Vec::new()),
                Lineage::Previous => Some(vec![local.wrapping_sub(1)]),
                Lineage::Tips(item) => {
                    Some(order_log::tip_list(tips, item, global).unwrap_or_default())
                }
                Lineage::Unlisted => continue,
            };
            if chained_on != delivery.chained_on {
                let detail = format!(
                    "entry {global} is chained on {chained_on:?} of its stream, not on {:?}",
                    delivery.chained_on
                );
                report.problem(file, Some(delivery.position), detail);
            }
        }
    }
}
