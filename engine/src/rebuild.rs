//! Making the order again from the log alone.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use thalweg_wal::storage::Storage;
use thalweg_wal::{LogReader, WriteLock};

use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks;
use crate::error::{CloseError, OpenError};
use crate::open::{directory, probe};
use crate::options::Options;
use crate::verify::beyond_walks;

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How far a rebuild has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RebuildProgress {
    /// Bytes of the log that are ordered.
    pub bytes_done: u64,
    /// Bytes of the log.
    pub bytes_total: u64,
    /// Events delivered so far.
    pub delivered: u64,
    /// Events held now.
    pub held: u64,
}

/// What a rebuild came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RebuildReport {
    /// Events that were scanned and ordered.
    pub scanned: u64,
    /// Events that are delivered.
    pub delivered: u64,
    /// Events that are held.
    pub held: u64,
    /// Events that were there already when they arrived.
    pub duplicates: u64,
    /// Events whose id another event had already.
    pub conflicts: u64,
    /// Events that were not taken, since a condition of theirs did not hold or their stream was sealed.
    pub rejected: u64,
    /// Damaged places in the log. If there are any, nothing was thrown away and nothing ordered.
    pub corrupt: u64,
    /// Time from opening to the last delivery.
    pub elapsed: Duration,
    /// The rebuild was interrupted; the next opening goes on where it stopped.
    pub interrupted: bool,
}

/// Throws all derived files of the store in `path` away, and orders everything again.
///
/// The order that comes out is the one that was there: it is a function of the log. In a damaged
/// log it would not be, since events after a lost one would get other numbers, and the derived
/// files are the only evidence of the old ones; so the log is verified first, and nothing is
/// thrown away if there is damage: the report then counts it.
///
/// `progress` is called about ten times a second; when it breaks, the rebuild ends, and the next
/// opening of the store goes on.
///
/// # Errors
///
/// As for [`Options::open`]; or the engine stopped on the way.
pub fn rebuild(
    path: impl AsRef<Path>,
    options: Options,
    progress: &dyn Fn(RebuildProgress) -> ControlFlow<()>,
) -> Result<RebuildReport, OpenError> {
    let path = path.as_ref();
    let begun = Instant::now();
    let storage = directory(path, false)?;
    probe(&storage, false)?;
    let lock = WriteLock::acquire(&storage)?;
    match count_damage(&storage, progress)? {
        None => return Ok(RebuildReport { interrupted: true, ..RebuildReport::nothing(begun) }),
        Some(0) => {}
        Some(corrupt) => return Ok(RebuildReport { corrupt, ..RebuildReport::nothing(begun) }),
    }
    chunks::remove_all(&storage).map_err(|source| OpenError::Io {
        context: String::from("removing derived files"),
        source,
    })?;
    drop(lock);
    let store = options.create(false).open(path)?;
    let bytes_total = store.durable_end();
    let mut interrupted = false;
    while !interrupted {
        let done = store.wait_committed_timeout(bytes_total, PROGRESS_EVERY);
        let stats = store.stats();
        let (bytes_done, delivered, held) = (stats.committed, stats.delivered, stats.held);
        let now = RebuildProgress { bytes_done, bytes_total, delivered, held };
        interrupted = progress(now).is_break();
        if !matches!(done, Ok(false)) {
            break;
        }
    }
    let (elapsed, stats) = (begun.elapsed(), store.stats());
    if let Err(CloseError::Poisoned(cause)) = store.close() {
        return Err(OpenError::Poisoned(cause));
    }
    let refused = stats.duplicates + stats.conflicts + stats.rejected;
    Ok(RebuildReport {
        scanned: stats.delivered + stats.held + refused,
        delivered: stats.delivered,
        held: stats.held,
        duplicates: stats.duplicates,
        conflicts: stats.conflicts,
        rejected: stats.rejected,
        corrupt: 0,
        elapsed,
        interrupted,
    })
}

impl RebuildReport {
    fn nothing(begun: Instant) -> Self {
        RebuildReport {
            scanned: 0,
            delivered: 0,
            held: 0,
            duplicates: 0,
            conflicts: 0,
            rejected: 0,
            corrupt: 0,
            elapsed: begun.elapsed(),
            interrupted: false,
        }
    }
}

/// Damaged places in the log; nothing if the count was interrupted.
fn count_damage(
    storage: &dyn Storage,
    progress: &dyn Fn(RebuildProgress) -> ControlFlow<()>,
) -> Result<Option<u64>, OpenError> {
    // Only the checkpoint may know how far the log went: without it, damage to the newest frame is
    // a torn tail, to be cut.
    let hint = Checkpoint::read(storage).and_then(|checkpoint| checkpoint.tail_hint(storage));
    let log = LogReader::open(storage, hint)?;
    let mut corrupt = beyond_walks(&log).count() as u64;
    let mut asked = Instant::now();
    for segment in &log.segments {
        for (number, record) in segment.walk(segment.first(), segment.end()).enumerate() {
            corrupt += u64::from(record.is_err());
            if number % 1024 == 0 && asked.elapsed() >= PROGRESS_EVERY {
                asked = Instant::now();
                let nothing_done =
                    RebuildProgress { bytes_done: 0, bytes_total: log.end, delivered: 0, held: 0 };
                if progress(nothing_done).is_break() {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(corrupt))
}
