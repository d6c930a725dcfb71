//! Making the order again from the log alone.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use thalweg_wal::storage::Storage;
use thalweg_wal::{LogReader, WriteLock};

use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks;
use crate::discovery::{DiscoveryProgress, DiscoveryReport};
use crate::error::{CloseError, OpenError};
use crate::open::{directory, probe};
use crate::options::Options;
use crate::trimmed::Base;
use crate::verify::beyond_walks;

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How far a rebuild has come.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RebuildProgress {
    /// The log is checked for damage, and nothing is thrown away yet.
    Checking {
        /// Bytes of the log that are checked.
        bytes_done: u64,
        /// Bytes of the log.
        bytes_total: u64,
        /// Records that are checked.
        records: u64,
    },
    /// Everything is ordered anew.
    Ordering(DiscoveryProgress),
}

/// Throws all derived files of the store in `path` away, and orders everything again.
///
/// The order that comes out is the one that was there: it is a function of the log. In a damaged
/// log it would not be, since events after a lost one would get other numbers, and the derived
/// files are the only evidence of the old ones; so the log is verified first, with what is kept of trimmed events, and
/// nothing is thrown away if there is damage: the report then counts it.
///
/// `progress` is called about ten times a second; when it breaks, the rebuild ends, and the next
/// opening of the store goes on. The report is that of the [discovery](crate::Discovery) of the whole log; the
/// check before it is not in its times.
///
/// # Errors
///
/// As for [`Options::open`]; or the engine stopped on the way.
pub fn rebuild(
    path: impl AsRef<Path>,
    options: Options,
    progress: &dyn Fn(RebuildProgress) -> ControlFlow<()>,
) -> Result<DiscoveryReport, OpenError> {
    let path = path.as_ref();
    let storage = directory(path, false)?;
    probe(&storage, false)?;
    let lock = WriteLock::acquire(&storage)?;
    match count_damage(&storage, progress)? {
        Some(0) => {}
        damage => {
            // Nothing is done; if the check was interrupted, nobody knows of any damage.
            let corrupt = damage.unwrap_or(0);
            return Ok(DiscoveryReport { corrupt, ..DiscoveryReport::default() });
        }
    }
    chunks::remove_all(&storage).map_err(|source| OpenError::Io {
        context: String::from("removing derived files"),
        source,
    })?;
    drop(lock);
    let store = options.create(false).open(path)?;
    let discovery = store.discovery();
    loop {
        let done = discovery.wait_timeout(PROGRESS_EVERY);
        let interrupted = progress(RebuildProgress::Ordering(discovery.progress())).is_break();
        if interrupted || !matches!(done, Ok(None)) {
            break;
        }
    }
    let report = discovery.report();
    match store.close() {
        Err(CloseError::Poisoned(cause)) => Err(OpenError::Poisoned(cause)),
        Ok(()) => Ok(report),
    }
}

/// Damaged places in the log and in what is kept of trimmed events; nothing if the count was interrupted.
fn count_damage(
    storage: &dyn Storage,
    progress: &dyn Fn(RebuildProgress) -> ControlFlow<()>,
) -> Result<Option<u64>, OpenError> {
    // Only the checkpoint may know how far the log went: without it, damage to the newest frame is
    // a torn tail, to be cut.
    let hint = Checkpoint::read(storage)?.and_then(|checkpoint| checkpoint.tail_hint(storage));
    let log = LogReader::open(storage, hint)?;
    let mut corrupt = beyond_walks(&log).count() as u64;
    if let Some(base) = Base::open(storage, &log.store_id)? {
        base.begin(&mut |_| corrupt += 1);
    }
    let bytes_total: u64 = log.segments.iter().map(|segment| segment.end() - segment.base()).sum();
    let (mut bytes_before, mut records) = (0, 0);
    let mut asked = Instant::now();
    for segment in &log.segments {
        for record in segment.walk(segment.first(), segment.end()) {
            records += 1;
            let Ok(record) = record else {
                corrupt += 1;
                continue;
            };
            if records % 1024 == 0 && asked.elapsed() >= PROGRESS_EVERY {
                asked = Instant::now();
                let bytes_done = bytes_before + (record.position() - segment.base());
                let now = RebuildProgress::Checking { bytes_done, bytes_total, records };
                if progress(now).is_break() {
                    return Ok(None);
                }
            }
        }
        bytes_before += segment.end() - segment.base();
    }
    Ok(Some(corrupt))
}
