//! Backups: a copy of a store at one moment, taken while the store runs, and its way back.
//!
//! The log is the store, so a backup is the log up to a durable position: sealed segments, of which
//! nothing changes any more, and the last one copied up to there. Beside it lies what the newest
//! checkpoint has of the order (runs, order log), so that opening the copy need not make it again. All of that is
//! immutable or append-only, so nothing waits for a backup and it waits for nothing: the
//! caller's thread does all of it, and holds no lock, only references to segments and open files.
//!
//! What nobody will ever write again is linked where that can be done, and everything else is copied:
//! always the last segment, since a store can go on in it; the chunk that the order log goes on in; and
//! the checkpoint. See FORMAT.md, "Copies".
//!
//! A manifest with a checksum for every file is written last. Deliberately not here: schedules,
//! retention, compression, and copying to other machines; a backup is a directory of plain files.

use std::fmt;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_wal::format::Fault;
use thalweg_wal::storage::{
    self, Access, MemoryStorage, OsStorage, Storage, StorageFile, read_exact_at, read_file,
    remove_if_there, write_all_at,
};
use thalweg_wal::{Damage, LogReader, Segment, name};
use xxhash_rust::xxh3::Xxh3;

use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks::Layout;
use crate::derived::order_log::{self, ORDER, TIPS};
use crate::error::{Cause, LogOpenError, OpenError, ReadError};
use crate::observe::trace;
use crate::open::{
    READ_ONLY_ATTEMPTS, check_losses, directory, is_of, probe, read_log, restore as restore_state,
};
use crate::options::Options;
use crate::order::window::Frontier;
use crate::pipeline::core::Core;
use crate::pipeline::lookup::Lookup;
use crate::sync::Arc;
use crate::trimmed::Base;
use crate::verify::{Problem, Remedy, beyond_walks};

mod begin;
mod manifest;
mod place;

use begin::{Begin, Cut, copy_base, wait_for_order};
use manifest::{Entry, Manifest};
use place::Place;

/// Bytes that are copied at a time; an interrupt is looked for between two of them.
const PIECE_LEN: usize = 1 << 20;
/// A copy is synced as often as this, so that no sync is long: the store that runs beside it shares the
/// device, and a request to end must not wait.
const SYNC_EVERY: u64 = 8 << 20;
/// Most problems that a check lists; the rest is only counted.
const PROBLEMS_MAX: usize = 100;

/// How a backup is made, or restored.
#[derive(Debug, Clone, Default)]
pub struct BackupOptions {
    hard_links: Option<bool>,
    begin: Option<Begin>,
}

impl BackupOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether files that never change again are hard-linked instead of copied, where the target is on
    /// the same file system. Default: yes for a backup, no for a restore.
    ///
    /// A link takes no time and no space. No store ever writes to a linked file, but both names have the
    /// same bytes on the same device: a link does not help against a device that loses them.
    #[must_use]
    pub fn hard_links(mut self, hard_links: bool) -> Self {
        self.hard_links = Some(hard_links);
        self
    }

    /// Has a backup begin with the event at this global sequence, or with one before it: the copy is what the store would
    /// be if it were trimmed there ([`Trim::before`](crate::Trim::before)), and the store stays as it is. Only
    /// whole segments are left out, so [`BackupInfo::first`] says where it does begin. Default: where the store does.
    ///
    /// The copy has the state that the store had come to there: late children of events that are left out are delivered,
    /// copies of them are duplicates, and numbers go on. That state is made by running the machine over what is left out, on
    /// the calling thread, and compared with the order that there is. It is waited for until that is
    /// there. Of no meaning for a restore.
    #[must_use]
    pub fn from(mut self, global: u64) -> Self {
        self.begin = Some(Begin::Before(global));
        self
    }

    /// Has a backup begin behind everything: it has no events, and the state that the store has come to. This is what a
    /// replica needs that is to have nothing but what comes. As [`BackupOptions::from`] otherwise.
    #[must_use]
    pub fn from_frontier(mut self) -> Self {
        self.begin = Some(Begin::Frontier);
        self
    }
}

/// How far a backup, a restore or a check of one has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupProgress {
    /// Bytes that are copied, or checked.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// What the manifest of a backup says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupInfo {
    /// Identity of the store. The copy has it too: see [`Store::backup`](crate::Store::backup).
    pub store_id: [u8; 16],
    /// Position in the log that the backup goes up to: everything below it is in the backup, and nothing else.
    pub position: u64,
    /// Position up to which the order is in the backup; the rest is ordered when the copy is opened.
    pub ordered: u64,
    /// The first global sequence in the backup; those before were trimmed, or left out.
    pub first: u64,
    /// Events that are delivered up to [`position`](BackupInfo::position); nothing if the order had not
    /// come there when the backup was made, or only another process knew.
    pub delivered: Option<u64>,
    /// Seconds since 1970 when it was made, by the clock of that machine. Nothing depends on it.
    pub created: u64,
    /// Number of files.
    pub files: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl BackupInfo {
    fn of(manifest: &Manifest) -> Self {
        BackupInfo {
            store_id: manifest.store_id,
            position: manifest.position,
            ordered: manifest.ordered,
            first: manifest.first,
            delivered: manifest.delivered,
            created: manifest.created,
            files: manifest.files.len() as u64,
            bytes: manifest.files.iter().map(|file| file.len).sum(),
        }
    }
}

/// What a backup, or a restore, has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// What the manifest says.
    pub backup: BackupInfo,
    /// Files that are linked and not copied.
    pub linked_files: u64,
    /// Bytes of them.
    pub linked_bytes: u64,
    /// Damaged places that were met in the log of the store. They are in the backup as they are: it is as
    /// good as the store was. A restore looks for none: it compares with the manifest.
    pub damaged: u64,
    /// The first of them.
    pub first_damage: Option<Damage>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a check of a backup has found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupCheck {
    /// What the manifest says.
    pub backup: BackupInfo,
    /// The first problems.
    pub problems: Vec<Problem>,
    /// How many problems there are in all.
    pub problem_count: u64,
    /// The check was interrupted: what is reported is what was found so far.
    pub interrupted: bool,
}

/// Why there is no backup, or no restored store. What was made of it is removed.
#[derive(Debug)]
#[non_exhaustive]
pub enum BackupError {
    /// The store cannot be opened for reading.
    Source(OpenError),
    /// The target is there, and has files in it.
    NotEmpty {
        /// The target.
        path: String,
        /// One of the files.
        example: String,
    },
    /// The target cannot be one.
    Target {
        /// The target.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Somebody else makes a copy to the same target.
    Busy {
        /// Where it is made.
        path: String,
    },
    /// The directory has no manifest: it is no backup, or was opened for writing since.
    NotABackup {
        /// The directory.
        path: String,
    },
    /// The manifest of a backup cannot be used.
    Manifest {
        /// The manifest.
        path: String,
        /// What is wrong with it.
        detail: &'static str,
    },
    /// A file is not what the manifest says.
    Differs {
        /// The file.
        path: String,
        /// What is wrong with it.
        detail: String,
    },
    /// What a copy leaves out cannot be read, or comes to another order than the one that there is; or the
    /// store was closed meanwhile, or its engine has stopped.
    Read(ReadError),
    /// It was interrupted by whoever watches its progress.
    Interrupted,
    /// A file could not be read, written or synced.
    Io {
        /// What was being done.
        context: String,
        /// The operating system's error.
        source: io::Error,
    },
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackupError::Source(error) => error.fmt(f),
            BackupError::NotEmpty { path, example } => write!(
                f,
                "{path} is not empty, it holds {example}; name a directory that is not there yet"
            ),
            BackupError::Target { path, detail } => write!(f, "{path} cannot be used: {detail}"),
            BackupError::Busy { path } => {
                write!(f, "another process makes a copy to the same target, in {path}")
            }
            BackupError::NotABackup { path } => write!(
                f,
                "{path} is not a backup: it has no {}; a backup that is opened for writing is a store \
                 from then on",
                name::manifest()
            ),
            BackupError::Manifest { path, detail } => {
                write!(f, "{path} cannot be used: {detail}; take another backup")
            }
            BackupError::Differs { path, detail } => {
                write!(f, "{path} is not what the manifest says: {detail}; take another backup")
            }
            BackupError::Read(error) => {
                write!(f, "the state where the copy is to begin cannot be made: {error}")
            }
            BackupError::Interrupted => f.write_str("interrupted"),
            BackupError::Io { context, source } if source.kind() == io::ErrorKind::StorageFull => {
                write!(
                    f,
                    "{context}: {source}; what was made is removed: free some space and try again"
                )
            }
            BackupError::Io { context, source } => write!(f, "{context}: {source}"),
        }
    }
}

impl std::error::Error for BackupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BackupError::Source(error) => Some(error),
            BackupError::Read(error) => Some(error),
            BackupError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<OpenError> for BackupError {
    fn from(error: OpenError) -> Self {
        BackupError::Source(error)
    }
}

/// Whoever watches, and may interrupt.
type Watch<'a> = &'a dyn Fn(BackupProgress) -> ControlFlow<()>;

/// Backs up the store in the directory `path`, which another process may be writing meanwhile: up to
/// what was durable at one moment. Takes no lock, and changes nothing in the store but the number of names that its
/// files have.
///
/// As [`Store::backup_with`](crate::Store::backup_with) otherwise. A backup can be the source of another.
///
/// # Errors
///
/// There is no store, or its log cannot be opened at all; or as for
/// [`Store::backup`](crate::Store::backup).
pub fn backup(
    path: impl AsRef<Path>,
    target: impl AsRef<Path>,
    options: BackupOptions,
    progress: &dyn Fn(BackupProgress) -> ControlFlow<()>,
) -> Result<BackupReport, BackupError> {
    let storage: Arc<dyn Storage> = Arc::new(directory(path.as_ref(), false)?);
    probe(&*storage, false)?;
    in_place(target.as_ref(), |target| backup_on(storage, target, options, progress))
}

/// As [`backup()`], from and to any storage. The target has no files, or the rest of an attempt that was
/// cut short, which is removed.
///
/// # Errors
///
/// As for [`backup()`].
pub fn backup_on(
    source: Arc<dyn Storage>,
    target: Arc<dyn Storage>,
    options: BackupOptions,
    progress: &dyn Fn(BackupProgress) -> ControlFlow<()>,
) -> Result<BackupReport, BackupError> {
    let _span = trace::backing_up(&*source);
    let OpenedToCopy { derived, log, base } = open_to_copy(&*source)?;
    // A reader finds its way among files that are missing or have each other's names; a copy by names would not.
    // Nor would a copy have a segment that the reader leaves out, since nothing in it can be read without its
    // header.
    let is_left_out = |damage: &Damage| {
        let is_there = log.segments.iter().any(|segment| segment.number() == damage.segment);
        damage.segment > 0 && !is_there
    };
    let not_copied = |damage: &&Damage| is_of_a_file(damage.fault) || is_left_out(damage);
    if let Some(found) = log.damage.iter().find(not_copied) {
        return Err(OpenError::from(LogOpenError::Damaged(found.clone())).into());
    }
    if let Some(found) = log.damage.iter().find(|damage| damage.segment == 0) {
        let (file, detail) = (source.describe(&found.file), found.fault.to_string());
        return Err(OpenError::from(LogOpenError::Losses { file, detail }).into());
    }
    let first_damage = beyond_walks(&log).next().cloned();
    let damaged = beyond_walks(&log).count() as u64;
    if options.begin.is_some() {
        // The machine is run over what is left out, and what it comes to compared with the order.
        let store = Options::new().open_read_only_on(source)?;
        let mut report = store.backup_on(target, options, progress)?;
        report.damaged += damaged;
        report.first_damage = first_damage.or(report.first_damage);
        return Ok(report);
    }
    let identity = log.identity();
    let plan = Plan {
        store_id: log.store_id,
        losses: losses_of(&*source)?,
        base,
        cut: None,
        segments: log.segments,
        end: log.end,
        derived: derived.filter(|derived| derived.checkpoint.store_id == identity),
        damaged,
        first_damage,
    };
    let end = log.end;
    plan.run(source, target, options, progress, &|checkpoint, _| {
        checkpoint.filter(|found| found.ordered == end).map(|found| found.frontier.global)
    })
}

/// A store that nobody has open here.
struct OpenedToCopy {
    derived: Option<Derived>,
    log: LogReader,
    base: Option<Arc<Base>>,
}

/// Opens what a copy takes, all of it of one moment between two trims.
fn open_to_copy(source: &dyn Storage) -> Result<OpenedToCopy, BackupError> {
    let mut attempts = READ_ONLY_ATTEMPTS;
    loop {
        let store_id = thalweg_wal::store_id(source);
        let derived = store_id.and_then(|id| Derived::plan(source, id));
        let checkpoint = Checkpoint::read(source)?;
        // Without what is recorded as lost, the order is not that of the log, and would be left out.
        check_losses(source, checkpoint.as_ref())?;
        let hint = checkpoint.and_then(|checkpoint| checkpoint.tail_hint(source));
        let (log, base) = read_log(source, hint)?;
        let begins = base.as_ref().map_or(0, |base| base.position());
        attempts -= 1;
        // If not, the store was trimmed since the checkpoint was read, and has another.
        let reaches = |derived: &Derived| derived.checkpoint.ordered >= begins;
        if attempts == 0 || derived.as_ref().is_none_or(reaches) {
            return Ok(OpenedToCopy { derived, log, base });
        }
    }
}

/// Backs up an open store: see [`Store::backup_with`](crate::Store::backup_with).
pub(crate) fn backup_open(
    core: &Core,
    target: &Path,
    options: BackupOptions,
    progress: Watch<'_>,
) -> Result<BackupReport, BackupError> {
    in_place(target, |target| backup_core(core, target, options, progress))
}

/// As [`backup_open`], to any storage.
pub(crate) fn backup_core(
    core: &Core,
    target: Arc<dyn Storage>,
    options: BackupOptions,
    progress: Watch<'_>,
) -> Result<BackupReport, BackupError> {
    let _span = trace::backing_up(&*core.storage);
    let Moment { derived, end, lookup } = loop {
        if let Some(moment) = Moment::of(core, options.begin.is_some(), progress)? {
            break moment;
        }
    };
    check_losses(&*core.storage, derived.as_ref().map(|derived| &derived.checkpoint))?;
    let losses = losses_of(&*core.storage)?;
    let segments = lookup.segments.to_vec();
    if end > core.synced.get()
        && let Some(Err(source)) = segments.last().map(|segment| segment.sync())
    {
        // With buffered durability; whoever meets it: a failed sync of the log is final.
        core.fail(Cause::Log(Arc::new(io::Error::new(source.kind(), source.to_string()))));
        return Err(BackupError::Io { context: String::from("syncing the log"), source });
    }
    // Without what is mixed in for its losses.
    let store_id = thalweg_wal::store_id(&*core.storage).unwrap_or(core.store_id);
    let base = lookup.horizon.base().cloned();
    let cut = match options.begin {
        Some(begin) => Cut::choose(core, lookup, store_id, end, begin)?,
        None => None,
    };
    let (damaged, first_damage) = (0, None);
    let plan = Plan { store_id, losses, base, cut, segments, end, derived, damaged, first_damage };
    plan.run(Arc::clone(&core.storage), target, options, progress, &|checkpoint, first| {
        delivered_up_to(core, end, checkpoint.map_or(first, |found| found.frontier.global))
    })
}

/// What an open store has at one moment.
struct Moment {
    derived: Option<Derived>,
    /// Where the log ends. It is durable up to here.
    end: u64,
    lookup: Lookup,
}

impl Moment {
    /// With the order up to the end if it `is_ordered`; nothing if the store was trimmed meanwhile.
    fn of(core: &Core, is_ordered: bool, progress: Watch<'_>) -> Result<Option<Self>, BackupError> {
        // In this order. The checkpoint is beyond the base that there is; what it counts is durable, so it is below the
        // end; and a segment is in the list before anything in it is durable.
        let begins = core.horizon().position;
        let derived = Derived::plan(&*core.storage, core.store_id);
        let derived = derived.filter(|derived| derived.checkpoint.store_id == core.store_id);
        let end = core.durable.get();
        if is_ordered {
            wait_for_order(core, end, progress)?;
        }
        let lookup = core.lookup();
        // What a trim takes from the lists, it has given up before.
        let is_as_before = lookup.horizon.position == begins;
        Ok(is_as_before.then_some(Moment { derived, end, lookup }))
    }
}

/// Events that are delivered up to `end`, of which at least `from`; nothing if the order is not there yet.
///
/// A delivery belongs to the event that has set it off, and comes after it. So the first delivery that
/// lies beyond `end` was set off beyond it, and those before it were not.
fn delivered_up_to(core: &Core, end: u64, from: u64) -> Option<u64> {
    // In this order: what is committed is delivered.
    let committed = core.committed.get();
    let delivered = core.delivered.get();
    if committed < end {
        return None;
    }
    let order = core.order.reader();
    for global in from..delivered {
        if order_log::entry(&order, global).ok()?.position >= end {
            return Some(global);
        }
    }
    Some(delivered)
}

/// Checks every file of the backup in the directory `path` against its manifest. Changes nothing.
///
/// `progress` is called from time to time; when it breaks, the check ends with what it has.
///
/// # Errors
///
/// There is no backup, or its manifest is damaged. Other damage is a problem in the report.
pub fn verify_backup(
    path: impl AsRef<Path>,
    progress: &dyn Fn(BackupProgress) -> ControlFlow<()>,
) -> Result<BackupCheck, BackupError> {
    verify_backup_on(&open_backup(path.as_ref())?, progress)
}

/// As [`verify_backup`], on any storage.
///
/// # Errors
///
/// As for [`verify_backup`].
pub fn verify_backup_on(
    storage: &dyn Storage,
    progress: &dyn Fn(BackupProgress) -> ControlFlow<()>,
) -> Result<BackupCheck, BackupError> {
    let manifest = read_manifest(storage)?;
    let backup = BackupInfo::of(&manifest);
    let mut check =
        BackupCheck { backup, problems: Vec::new(), problem_count: 0, interrupted: false };
    let mut problem = |file: &str, detail: String| {
        check.problem_count += 1;
        if check.problems.len() < PROBLEMS_MAX {
            let (file, remedy) = (file.to_owned(), Remedy::Backup);
            check.problems.push(Problem { file, offset: None, position: None, detail, remedy });
        }
    };
    let names = storage.list().map_err(io_error("listing the backup"))?;
    for other in names {
        let listed = manifest.files.iter().any(|file| file.name == other);
        let ours = !matches!(
            name::kind(&other),
            name::Kind::Unknown | name::Kind::Backup | name::Kind::Lock
        );
        if ours && !listed {
            problem(&other, String::from("it is not in the manifest"));
        }
    }
    let mut work = Work::new(progress, manifest.files.iter().map(|file| file.len).sum());
    for file in &manifest.files {
        match work.check(storage, file) {
            Ok(None) => {}
            Ok(Some(detail)) => problem(&file.name, detail),
            Err(BackupError::Interrupted) => {
                check.interrupted = true;
                break;
            }
            Err(BackupError::Io { source, .. }) => problem(&file.name, source.to_string()),
            Err(error) => return Err(error),
        }
    }
    Ok(check)
}

/// Makes a store of the backup in the directory `path`: every file is compared with the manifest while it is
/// copied, and `target` appears when all of it is right and durable. Until it is opened for writing
/// it is a backup too, which [`verify_backup`] can check again.
///
/// # Errors
///
/// As for [`verify_backup`]; a file is not what the manifest says; or the target cannot be made, as for
/// [`Store::backup`](crate::Store::backup). There is no target then.
pub fn restore(
    path: impl AsRef<Path>,
    target: impl AsRef<Path>,
    options: BackupOptions,
    progress: &dyn Fn(BackupProgress) -> ControlFlow<()>,
) -> Result<BackupReport, BackupError> {
    let source = open_backup(path.as_ref())?;
    // Before anything is made.
    read_manifest(&source)?;
    in_place(target.as_ref(), |target| restore_on(&source, &*target, options, progress))
}

/// As [`restore`], from and to any storage. The target has no files, or the rest of an attempt that was
/// cut short, which is removed.
///
/// # Errors
///
/// As for [`restore`].
pub fn restore_on(
    source: &dyn Storage,
    target: &dyn Storage,
    options: BackupOptions,
    progress: &dyn Fn(BackupProgress) -> ControlFlow<()>,
) -> Result<BackupReport, BackupError> {
    let begun = Instant::now();
    let manifest = read_manifest(source)?;
    begin(target)?;
    let mut work = Work::new(progress, manifest.files.iter().map(|file| file.len).sum());
    for file in &manifest.files {
        let differs =
            |detail| Err(BackupError::Differs { path: source.describe(&file.name), detail });
        let piece = Piece {
            name: file.name.clone(),
            taken: file.len,
            len: file.len,
            sealed: file.sealed,
            file: None,
        };
        match work.copy(source, target, &piece, options.hard_links.unwrap_or(false)) {
            Ok(entry) if entry.len != file.len => {
                return differs(format!("it has {} bytes, not {}", entry.len, file.len));
            }
            Ok(entry) if entry.checksum != file.checksum => {
                return differs(String::from("its checksum is wrong"));
            }
            Ok(_) => {}
            Err(BackupError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound
                ) =>
            {
                return differs(source.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    finish(target, &manifest)?;
    Ok(work.report(&manifest, begun))
}

/// Makes `target` with what `make` puts into a directory beside it, or leaves nothing.
fn in_place(
    target: &Path,
    make: impl FnOnce(Arc<dyn Storage>) -> Result<BackupReport, BackupError>,
) -> Result<BackupReport, BackupError> {
    let place = Place::prepare(target)?;
    let report = match make(Arc::new(place.storage().clone())) {
        Ok(report) => report,
        // The directory is somebody else's.
        Err(error @ BackupError::NotEmpty { .. }) => return Err(error),
        Err(error) => {
            place.abandon();
            return Err(error);
        }
    };
    match place.finish() {
        Ok(()) => Ok(report),
        Err(error) => {
            place.abandon();
            Err(error)
        }
    }
}

fn open_backup(path: &Path) -> Result<OsStorage, BackupError> {
    OsStorage::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            BackupError::NotABackup { path: path.display().to_string() }
        }
        _ => BackupError::Io { context: format!("opening {}", path.display()), source },
    })
}

fn read_manifest(storage: &dyn Storage) -> Result<Manifest, BackupError> {
    let path = storage.describe(name::manifest());
    let bytes = read_file(storage, name::manifest()).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BackupError::NotABackup { path: storage.describe("") },
        _ => BackupError::Io { context: format!("reading {path}"), source },
    })?;
    Manifest::decode(&bytes).map_err(|detail| BackupError::Manifest { path, detail })
}

fn io_error(context: impl Into<String>) -> impl FnOnce(io::Error) -> BackupError {
    let context = context.into();
    move |source| BackupError::Io { context, source }
}

/// Refuses a directory in which somebody began to make a copy, and did not come to the end.
pub(crate) fn check_finished(storage: &dyn Storage, names: &[String]) -> Result<(), OpenError> {
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if has(name::unfinished()) && !has(name::manifest()) {
        return Err(OpenError::Unfinished { path: storage.describe("") });
    }
    Ok(())
}

/// A directory that is opened for writing is a backup no more: its manifest would soon be wrong.
pub(crate) fn forget(storage: &dyn Storage) -> io::Result<()> {
    let names = storage.list()?;
    // The mark first: alone it would say that the copy is not whole.
    for file in [name::unfinished(), name::manifest()] {
        if names.iter().any(|other| other == file) {
            storage.remove(file)?;
            storage.sync_dir()?;
        }
    }
    Ok(())
}

/// Whether a copy can be made in a directory: it is empty, or marked by an attempt that was cut short.
fn check_usable(target: &dyn Storage) -> Result<bool, BackupError> {
    let names = target.list().map_err(io_error("listing the target"))?;
    let marked = names.iter().any(|other| other == name::unfinished());
    let foreign = names.iter().find(|other| match name::kind(other) {
        name::Kind::Lock => false,
        name::Kind::Unknown => true,
        _ => !marked,
    });
    match foreign {
        Some(example) => {
            Err(BackupError::NotEmpty { path: target.describe(""), example: example.clone() })
        }
        None => Ok(marked),
    }
}

/// Marks a directory as one in which a copy is made. Nothing is kept of an earlier attempt.
fn begin(target: &dyn Storage) -> Result<(), BackupError> {
    let marked = check_usable(target)?;
    let mark = || {
        clear(target)?;
        if !marked {
            target.create(name::unfinished(), 0)?;
        }
        target.sync_dir()
    };
    mark().map_err(io_error(format!("preparing {}", target.describe(""))))
}

/// Removes what an attempt has made, but for its mark and its lock.
fn clear(target: &dyn Storage) -> io::Result<()> {
    for other in target.list()? {
        let kept = matches!(name::kind(&other), name::Kind::Lock | name::Kind::Unknown)
            || other == name::unfinished();
        if !kept {
            remove_if_there(target, &other)?;
        }
    }
    Ok(())
}

/// Writes the manifest of files that are all synced. Then the copy is whole, also if its mark stays.
fn finish(target: &dyn Storage, manifest: &Manifest) -> Result<(), BackupError> {
    let write = || {
        let text = manifest.encode();
        let file = target.create(name::manifest_new(), text.len() as u64)?;
        write_all_at(&*file, text.as_bytes(), 0)?;
        file.sync()?;
        // What the manifest lists is there before it is.
        target.sync_dir()?;
        target.rename(name::manifest_new(), name::manifest())?;
        target.sync_dir()
    };
    write().map_err(io_error(format!("writing {}", target.describe(name::manifest()))))
}

/// What of a file is to be copied.
#[derive(Debug)]
struct Piece {
    name: String,
    /// So many bytes from the front; the rest are zeros.
    taken: u64,
    len: u64,
    /// Nobody writes it again, in any store that has it.
    sealed: bool,
    /// Already open, since its name may go.
    file: Option<Arc<dyn StorageFile>>,
}

/// What the newest checkpoint has of the order.
#[derive(Debug)]
struct Derived {
    checkpoint: Checkpoint,
    runs: Vec<Piece>,
}

impl Derived {
    /// What there is to copy; nothing if there is no checkpoint, or it does not stand still.
    fn plan(storage: &dyn Storage, store_id: [u8; 16]) -> Option<Self> {
        for _ in 0..READ_ONLY_ATTEMPTS {
            // The log alone is enough, whatever is wrong with it.
            let checkpoint = Checkpoint::read(storage).ok().flatten();
            let checkpoint = checkpoint.filter(|found| is_of(&found.store_id, &store_id))?;
            let run = |&number: &u64| {
                let name = name::run(number);
                // A merge takes the name away; the bytes stay as long as the file is open.
                let file = storage.open(&name, Access::Read).ok()?;
                let len = file.len().ok()?;
                Some(Piece { name, taken: len, len, sealed: true, file: Some(file) })
            };
            let runs: Option<Vec<Piece>> = checkpoint.runs.iter().map(run).collect();
            let Some(runs) = runs else { continue };
            return Some(Derived { checkpoint, runs });
        }
        None
    }
}

/// Whether this is wrong with a file of the log as a whole.
fn is_of_a_file(fault: Fault) -> bool {
    use Fault::{Foreign, Long, Misnamed, Missing, Short};
    matches!(fault, Missing | Foreign | Short | Long | Misnamed)
}

/// The file with what is lost of the log, if there is one. It is replaced, and never written again.
fn losses_of(storage: &dyn Storage) -> Result<Option<Piece>, BackupError> {
    let name = name::losses().to_owned();
    let file = storage.open(&name, Access::Read);
    match file.and_then(|file| Ok((file.len()?, file))) {
        Ok((len, file)) => {
            Ok(Some(Piece { name, taken: len, len, sealed: true, file: Some(file) }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(format!("opening {}", storage.describe(&name)))(error)),
    }
}

/// The chunks with the items `first..count`. One that is not full is written on, and what is behind these
/// items in it is none of the backup's.
fn chunks(layout: Layout, first: u64, count: u64) -> impl Iterator<Item = Piece> {
    (first / layout.chunk_items..count.div_ceil(layout.chunk_items)).map(move |number| {
        let (taken, len) = (layout.published(number, count), layout.file_len());
        Piece { name: (layout.name)(number), taken, len, sealed: taken == len, file: None }
    })
}

/// A backup that is about to be made.
struct Plan<'a> {
    store_id: [u8; 16],
    /// What repairs have recorded as lost, which belongs to the log.
    losses: Option<Piece>,
    /// What the log begins with, if it was trimmed.
    base: Option<Arc<Base>>,
    /// What is left out of it.
    cut: Option<Cut<'a>>,
    segments: Vec<Arc<Segment>>,
    /// The log is taken up to here. It is durable.
    end: u64,
    derived: Option<Derived>,
    damaged: u64,
    first_damage: Option<Damage>,
}

impl Plan<'_> {
    /// Makes the backup. `delivered` tells how many events are delivered up to its end, of a store with
    /// this checkpoint that begins with this event.
    fn run(
        mut self,
        source: Arc<dyn Storage>,
        target: Arc<dyn Storage>,
        options: BackupOptions,
        progress: Watch<'_>,
        delivered: &dyn Fn(Option<&Checkpoint>, u64) -> Option<u64>,
    ) -> Result<BackupReport, BackupError> {
        let begun = Instant::now();
        begin(&*target)?;
        let (mut end, hard_links) = (self.end, options.hard_links.unwrap_or(true));
        let (base, cut) = (self.base.take(), self.cut.take());
        let begins = match &cut {
            Some(cut) => cut.position(),
            None => base.as_ref().map_or(0, |base| base.position()),
        };
        self.segments.retain(|segment| (begins..end).contains(&segment.base()));
        let pieces: Vec<Piece> = self.segments.iter().map(|segment| self.piece(segment)).collect();
        let losses = self.losses.take();
        let total = pieces.iter().chain(&losses).map(|piece| piece.len).sum();
        let mut work = Work::new(progress, total);
        let (base, mut files) = match (cut, base) {
            (Some(cut), _) => {
                let begun = cut.make(&mut work, &target, hard_links)?;
                end = begun.segment.map_or(end, |segment| segment.first());
                (Some(begun.base), begun.files)
            }
            (None, Some(base)) => {
                let files = copy_base(&mut work, &*source, &*target, &base, hard_links)?;
                (Some(base), files)
            }
            (None, None) => (None, Vec::new()),
        };
        work.look_for_damage_in(base.as_deref());
        // A log that is damaged at its end may be shorter than a checkpoint says.
        let derived = self.derived.take().filter(|Derived { checkpoint, .. }| {
            checkpoint.log_end <= end && checkpoint.ordered >= begins
        });
        // Before the log: a trim takes away the names of these files, too, and nobody has them open.
        let checkpoint = match derived {
            Some(derived) => {
                let from = (&*source, base.as_ref());
                let (found, more) =
                    copy_derived(&mut work, from, &target, derived, end, hard_links)?;
                files.extend(more);
                found
            }
            None => None,
        };
        for (segment, piece) in self.segments.iter().zip(&pieces) {
            files.push(work.copy(&*source, &*target, piece, hard_links)?);
            work.look_for_damage(segment, end)?;
        }
        if let Some(piece) = &losses {
            files.push(work.copy(&*source, &*target, piece, hard_links)?);
        }
        let first = base.as_ref().map_or(0, |base| base.frontier().global);
        let manifest = Manifest {
            store_id: self.store_id,
            position: end,
            ordered: checkpoint.as_ref().map_or(begins, |checkpoint| checkpoint.ordered),
            first,
            delivered: match self.segments.is_empty() {
                true => Some(first),
                false => delivered(checkpoint.as_ref(), first),
            },
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            files,
        };
        finish(&*target, &manifest)?;
        work.damaged += self.damaged;
        work.first_damage = self.first_damage.or(work.first_damage);
        Ok(work.report(&manifest, begun))
    }

    /// What is taken of a segment.
    fn piece(&self, segment: &Segment) -> Piece {
        let len = segment.limit() - segment.base();
        // The last is the one that a store may go on in. It is always copied, also if there is one behind
        // it in the source: in the copy there is none.
        let last = self.segments.last().is_some_and(|last| last.number() == segment.number());
        // What stands behind the end of a sealed segment is the rest of a write that was cut short.
        let taken = (self.end.min(segment.end()) - segment.base()).min(len);
        // A trim takes the name away.
        let file = Some(Arc::clone(segment.file().file()));
        Piece { name: name::segment(segment.number()), taken, len, sealed: !last, file }
    }
}

/// Copies what there is of the order, and a checkpoint for it; nothing if it turns out not to be whole.
/// The order can be made again, so this is no reason to fail.
fn copy_derived(
    work: &mut Work<'_>,
    (source, base): (&dyn Storage, Option<&Arc<Base>>),
    target: &Arc<dyn Storage>,
    derived: Derived,
    end: u64,
    hard_links: bool,
) -> Result<(Option<Checkpoint>, Vec<Entry>), BackupError> {
    let Derived { checkpoint, runs } = derived;
    let (first, count) = (first_of(base), checkpoint.frontier);
    let order = chunks(ORDER, first.global, count.global);
    let pieces: Vec<Piece> =
        runs.into_iter().chain(order).chain(chunks(TIPS, first.tips, count.tips)).collect();
    work.total += pieces.iter().map(|piece| piece.len).sum::<u64>();
    let mut files = Vec::new();
    let mut whole = true;
    for piece in &pieces {
        match work.copy(source, &**target, piece, hard_links) {
            Ok(file) => files.push(file),
            Err(BackupError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                ) =>
            {
                whole = false;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    // The log of the copy ends here, but a store does not go on in place: see FORMAT.md, "Copies".
    let checkpoint = Checkpoint { log_end: end, closed: false, ..checkpoint };
    if whole {
        checkpoint
            .write(&**target)
            .map_err(io_error(format!("writing {}", target.describe(name::checkpoint()))))?;
        if is_whole(work, target, base, &checkpoint)? {
            let len =
                read_file(&**target, name::checkpoint()).map_or(0, |bytes| bytes.len() as u64);
            work.total += len;
            files.push(work.entry(&**target, name::checkpoint(), len, false)?);
            return Ok((Some(checkpoint), files));
        }
    }
    for piece in &pieces {
        remove_if_there(&**target, &piece.name).map_err(io_error("removing derived files"))?;
    }
    remove_if_there(&**target, name::checkpoint()).map_err(io_error("removing derived files"))?;
    Ok((None, Vec::new()))
}

/// Whether the derived files in `storage` are those of this checkpoint: somebody who makes the order again
/// in the meantime may have put others in their place.
fn is_whole(
    work: &mut Work<'_>,
    storage: &Arc<dyn Storage>,
    base: Option<&Arc<Base>>,
    checkpoint: &Checkpoint,
) -> Result<bool, BackupError> {
    let scratch: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let store_id = checkpoint.store_id;
    let state = restore_state(storage, &scratch, Some(checkpoint.clone()), base, store_id, false)?;
    let Some(state) = state else { return Ok(false) };
    // Runs follow each other without a gap.
    let follow = state.runs.windows(2).all(|pair| pair[0].extent.to == pair[1].extent.from);
    let reach = state.runs.last().is_none_or(|run| run.extent.to <= checkpoint.ordered);
    let (order, tips) = (state.order.shared().reader(), state.tips.shared().reader());
    let Frontier { global, tips: tip_count } = checkpoint.frontier;
    let first = first_of(base);
    let entries =
        work.all_items(first.global..global, |at| order_log::entry(&order, at).is_ok())?;
    let tips = work.all_items(first.tips..tip_count, |at| order_log::is_tip(&tips, at))?;
    Ok(follow && reach && entries && tips)
}

/// Where the order begins that is there.
fn first_of(base: Option<&Arc<Base>>) -> Frontier {
    base.map_or_else(Frontier::default, |base| base.frontier())
}

/// Whether a piece has nothing but zeros.
fn is_zero(piece: &[u8]) -> bool {
    static ZEROS: [u8; PIECE_LEN] = [0; PIECE_LEN];
    piece == &ZEROS[..piece.len()]
}

/// Whether nothing stands behind what is taken of a file, so that all of it may be linked.
fn is_zero_from(source: &dyn Storage, piece: &Piece) -> Result<bool, BackupError> {
    let Piece { name, taken, len, file, .. } = piece;
    let read = || {
        let from = match file {
            _ if taken == len => return Ok(true),
            Some(file) => Arc::clone(file),
            None => source.open(name, Access::Read)?,
        };
        let (mut offset, mut bytes) = (*taken, vec![0; PIECE_LEN]);
        while offset < *len {
            let now = (len - offset).min(PIECE_LEN as u64) as usize;
            read_exact_at(&*from, &mut bytes[..now], offset)?;
            if !is_zero(&bytes[..now]) {
                return Ok(false);
            }
            offset += now as u64;
        }
        Ok(true)
    };
    read().map_err(io_error(format!("reading {}", source.describe(name))))
}

/// Copies and checks, and counts what it does.
struct Work<'a> {
    progress: Watch<'a>,
    total: u64,
    done: u64,
    piece: Vec<u8>,
    linked_files: u64,
    linked_bytes: u64,
    damaged: u64,
    first_damage: Option<Damage>,
}

impl<'a> Work<'a> {
    fn new(progress: Watch<'a>, total: u64) -> Self {
        let piece = vec![0; PIECE_LEN];
        Work {
            progress,
            total,
            done: 0,
            piece,
            linked_files: 0,
            linked_bytes: 0,
            damaged: 0,
            first_damage: None,
        }
    }

    fn report(self, manifest: &Manifest, begun: Instant) -> BackupReport {
        BackupReport {
            backup: BackupInfo::of(manifest),
            linked_files: self.linked_files,
            linked_bytes: self.linked_bytes,
            damaged: self.damaged,
            first_damage: self.first_damage,
            elapsed: begun.elapsed(),
        }
    }

    /// Has done so much more.
    fn step(&mut self, bytes: u64) -> Result<(), BackupError> {
        self.done += bytes;
        let progress = BackupProgress { bytes_done: self.done, bytes_total: self.total };
        match (self.progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(BackupError::Interrupted),
        }
    }

    /// Whether each of so many items is as it should be.
    fn all_items(
        &mut self,
        items: Range<u64>,
        is_right: impl Fn(u64) -> bool,
    ) -> Result<bool, BackupError> {
        for at in items {
            if at.is_multiple_of(PIECE_LEN as u64) {
                self.step(0)?;
            }
            if !is_right(at) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Links or copies a file. What is copied is synced.
    fn copy(
        &mut self,
        source: &dyn Storage,
        target: &dyn Storage,
        piece: &Piece,
        hard_links: bool,
    ) -> Result<Entry, BackupError> {
        let Piece { name, taken, len, sealed, file } = piece;
        if hard_links && *sealed && is_zero_from(source, piece)? {
            match storage::link(source, target, name) {
                Ok(true) => {
                    self.linked_files += 1;
                    self.linked_bytes += len;
                    return self.entry(target, name, *len, true);
                }
                Ok(false) => {}
                // Its name is gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_some() => {}
                Err(error) => {
                    return Err(io_error(format!("linking {}", source.describe(name)))(error));
                }
            }
        }
        let from = match file {
            Some(file) => Ok(Arc::clone(file)),
            None => source.open(name, Access::Read),
        };
        let from = from.map_err(io_error(format!("opening {}", source.describe(name))))?;
        let writing = || format!("writing {}", target.describe(name));
        let to = target.create(name, *len).map_err(io_error(writing()))?;
        if !sealed {
            // A store may go on in it, and must not meet a full disk then.
            to.reserve().map_err(io_error(writing()))?;
        }
        let mut hash = Xxh3::new();
        let mut unsynced = 0;
        let mut offset = 0;
        while offset < *len {
            let now = (len - offset).min(PIECE_LEN as u64);
            let read = taken.saturating_sub(offset).min(now) as usize;
            let bytes = &mut self.piece[..now as usize];
            read_exact_at(&*from, &mut bytes[..read], offset)
                .map_err(io_error(format!("reading {}", source.describe(name))))?;
            bytes[read..].fill(0);
            hash.update(bytes);
            // The file reads as zeros already.
            if !is_zero(bytes) {
                write_all_at(&*to, bytes, offset).map_err(io_error(writing()))?;
                unsynced += now;
            }
            if unsynced >= SYNC_EVERY {
                to.sync().map_err(io_error(format!("syncing {}", target.describe(name))))?;
                unsynced = 0;
            }
            offset += now;
            self.step(now)?;
        }
        to.sync().map_err(io_error(format!("syncing {}", target.describe(name))))?;
        let checksum = hash.digest128();
        // What is longer than it should be is not what it should be.
        let len = len + from.len().map_or(0, |found| found.saturating_sub(*len));
        Ok(Entry { name: name.clone(), len, checksum, sealed: *sealed })
    }

    /// Reads a file for what a manifest says of it.
    fn entry(
        &mut self,
        storage: &dyn Storage,
        name: &str,
        len: u64,
        sealed: bool,
    ) -> Result<Entry, BackupError> {
        let reading = || format!("reading {}", storage.describe(name));
        let file = storage.open(name, Access::Read).map_err(io_error(reading()))?;
        let found = file.len().map_err(io_error(reading()))?;
        let mut hash = Xxh3::new();
        let mut offset = 0;
        while offset < len.min(found) {
            let now = (len.min(found) - offset).min(PIECE_LEN as u64);
            let bytes = &mut self.piece[..now as usize];
            read_exact_at(&*file, bytes, offset).map_err(io_error(reading()))?;
            hash.update(bytes);
            offset += now;
            self.step(now)?;
        }
        Ok(Entry { name: name.to_owned(), len: found, checksum: hash.digest128(), sealed })
    }

    /// What is wrong with a file that a manifest lists, if anything is.
    fn check(
        &mut self,
        storage: &dyn Storage,
        file: &Entry,
    ) -> Result<Option<String>, BackupError> {
        let found = self.entry(storage, &file.name, file.len, file.sealed)?;
        Ok(if found.len != file.len {
            Some(format!("it has {} bytes, not {}", found.len, file.len))
        } else {
            (found.checksum != file.checksum).then(|| String::from("its checksum is wrong"))
        })
    }

    /// Verifies what is kept of what was trimmed, for the same reason.
    fn look_for_damage_in(&mut self, base: Option<&Base>) {
        let Some(base) = base else { return };
        base.verify(&mut |wrong| {
            self.damaged += 1;
            let (position, fault) = (base.position(), Fault::Checksum);
            let (file, offset) = (wrong.file, wrong.offset.unwrap_or(0));
            let damage = Damage { segment: 0, file, offset, position, resumes: position, fault };
            self.first_damage.get_or_insert(damage);
        });
    }

    /// Verifies every record of a segment below `end`: a backup of damage would otherwise pass for a
    /// good one.
    fn look_for_damage(&mut self, segment: &Segment, end: u64) -> Result<(), BackupError> {
        let end = end.min(segment.end());
        let mut from = segment.first();
        while from < end {
            let to = segment.cut(from, PIECE_LEN as u64).min(end);
            for damage in segment.walk(from, to).filter_map(Result::err) {
                self.damaged += 1;
                self.first_damage.get_or_insert(damage);
            }
            from = to;
            self.step(0)?;
        }
        Ok(())
    }
}
