//! Where a copy begins: with the base of a store that was trimmed, or with one that is made for the copy.
//!
//! A copy that is to begin later than its source is what the source would be if it were trimmed there. So it is made
//! in the same way: the machine is run over what the copy leaves out, from the base of the source on, but what it comes
//! to is written to the copy. The source is only read.

use std::cell::RefCell;
use std::time::Duration;

use thalweg_wal::storage::Storage;
use thalweg_wal::{Segment, TrimPoint, begin_behind, name};

use super::{BackupError, BackupProgress, Entry, Piece, Watch, Work, chunks, io_error};
use crate::pipeline::core::{Core, deadline_in};
use crate::pipeline::lookup::{Fault, Lookup};
use crate::sync::{Arc, WaitError};
use crate::trim::{TrimError, first_set_off, remove_strays};
use crate::trimmed::Base;
use crate::trimmed::advance::advance_to;
use crate::trimmed::facts::FACTS;

/// Where a copy is to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// With the last segment before which no delivery is missing from this one on.
    Before(u64),
    /// Behind everything.
    Frontier,
}

impl From<Fault> for BackupError {
    fn from(fault: Fault) -> Self {
        BackupError::Read(fault.into())
    }
}

/// What there is of a base but for the file that says where the log begins.
fn kept(base: &Base) -> impl Iterator<Item = Piece> {
    // The next trim takes names away.
    let runs = base.runs.iter().map(|run| {
        let (name, len) = (name::facts_run(run.extent.number), run.file().len());
        let file = Some(Arc::clone(run.file().file()));
        Piece { name, taken: len, len, sealed: true, file }
    });
    let (first, count) = (base.checkpoint.forgotten, base.frontier().global);
    let facts = (first / FACTS.chunk_items..).zip(chunks(FACTS, first, count));
    let facts = facts.map(|(number, chunk)| {
        let file = base.facts().file(number).map(|file| Arc::clone(file.file()));
        Piece { file, ..chunk }
    });
    runs.chain(facts)
}

/// Copies a base. The file that says where the log begins is copied from where it is mapped: another may have its name
/// by now.
pub(super) fn copy_base(
    work: &mut Work<'_>,
    source: &dyn Storage,
    target: &dyn Storage,
    base: &Base,
    hard_links: bool,
) -> Result<Vec<Entry>, BackupError> {
    let len = base.file().len();
    let file = Some(Arc::clone(base.file().file()));
    let trimmed = Piece { name: name::trimmed().to_owned(), taken: len, len, sealed: true, file };
    let pieces: Vec<Piece> = kept(base).collect();
    work.total += pieces.iter().chain([&trimmed]).map(|piece| piece.len).sum::<u64>();
    let mut files = vec![work.copy(source, target, &trimmed, false)?];
    for piece in &pieces {
        files.push(work.copy(source, target, piece, hard_links)?);
    }
    Ok(files)
}

/// Waits for the order of a store to come to `position`, and lets whoever watches interrupt that.
pub(super) fn wait_for_order(
    core: &Core,
    position: u64,
    progress: Watch<'_>,
) -> Result<(), BackupError> {
    const LOOK: Duration = Duration::from_millis(100);
    loop {
        match core.committed.wait_deadline(position, deadline_in(LOOK)) {
            Ok(_) => return Ok(()),
            Err(WaitError::Failed) => return Err(BackupError::Read(core.ended())),
            Err(WaitError::TimedOut) => {
                let nothing_yet = BackupProgress { bytes_done: 0, bytes_total: 0 };
                if progress(nothing_yet).is_break() {
                    return Err(BackupError::Interrupted);
                }
            }
        }
    }
}

/// A copy that is begun with a base that was made for it.
pub(super) struct Begun {
    pub(super) base: Arc<Base>,
    pub(super) files: Vec<Entry>,
    /// What its log goes on in, if it has nothing of the source's.
    pub(super) segment: Option<Arc<Segment>>,
}

/// What a copy leaves out, and a store has.
pub(super) struct Cut<'a> {
    core: &'a Core,
    /// Sees the source as it was when the copy was begun.
    lookup: Lookup,
    store_id: [u8; 16],
    /// Everything before this position is left out.
    end: u64,
    point: TrimPoint,
    /// The last segment of the source, if all of it is left out.
    last: Option<Arc<Segment>>,
}

impl<'a> Cut<'a> {
    /// What to leave out of a store that is ordered up to `end`, for a copy that begins so; nothing if it begins where
    /// the store does.
    pub(super) fn choose(
        core: &'a Core,
        lookup: Lookup,
        store_id: [u8; 16],
        end: u64,
        begin: Begin,
    ) -> Result<Option<Self>, BackupError> {
        let delivered = core.delivered.get();
        let segments = Arc::clone(&lookup.segments);
        let mut segments = segments
            .iter()
            .filter(|segment| (lookup.horizon.position..end).contains(&segment.base()));
        let cut = |lookup, end, point, last| Cut { core, lookup, store_id, end, point, last };
        let before = match begin {
            Begin::Before(before) => before,
            Begin::Frontier => {
                let last = segments.next_back().expect("an open log has a segment");
                let point = TrimPoint::behind(last, end).expect("a segment ends behind its header");
                return Ok(Some(cut(lookup, end, point, Some(Arc::clone(last)))));
            }
        };
        let (mut chosen, mut first) = (None, lookup.horizon.first);
        for segment in segments.skip(1) {
            first = first_set_off(&lookup, segment.base(), first, delivered)?;
            if first > before {
                break;
            }
            chosen = TrimPoint::before(segment);
        }
        Ok(chosen.map(|point| cut(lookup, point.position, point, None)))
    }

    /// Position at which the log of the copy begins.
    pub(super) fn position(&self) -> u64 {
        self.point.position
    }

    /// Makes the base of the copy, and, if all of the log is left out, a segment for it to go on in.
    pub(super) fn make(
        self,
        work: &mut Work<'_>,
        target: &Arc<dyn Storage>,
        hard_links: bool,
    ) -> Result<Begun, BackupError> {
        let Cut { core, lookup, store_id, end, point, last } = self;
        let mut reached = lookup.horizon.position;
        work.total += end - reached;
        if let Some(base) = lookup.horizon.base() {
            let pieces: Vec<Piece> = kept(base).collect();
            work.total += pieces.iter().map(|piece| piece.len).sum::<u64>();
            for piece in &pieces {
                work.copy(&*core.storage, &**target, piece, hard_links)?;
            }
        }
        let shared = RefCell::new((&mut *work, &mut reached, Ok(())));
        let go_on = |position: u64| {
            let (work, reached, stepped) = &mut *shared.borrow_mut();
            let bytes = position - **reached;
            **reached = position;
            *stepped = work.step(bytes);
            stepped.is_ok()
        };
        let made = advance_to(core, lookup, target, store_id, (end, point), &go_on);
        shared.into_inner().2?;
        let base = made.map_err(|error| error_of(error, core))?;
        work.step(end - reached)?;
        // The machine has made one run of some of those that were copied.
        remove_strays(&**target, Some(&base));
        let mut files = Vec::new();
        let trimmed = (name::trimmed().to_owned(), base.file().len(), true);
        let kept = kept(&base).map(|piece| (piece.name, piece.len, piece.sealed));
        for (name, len, sealed) in [trimmed].into_iter().chain(kept) {
            work.total += len;
            files.push(work.entry(&**target, &name, len, sealed)?);
        }
        let Some(last) = last else { return Ok(Begun { base, files, segment: None }) };
        let name = name::segment(point.segment);
        let begun = begin_behind(&**target, &last, end)
            .map_err(io_error(format!("creating {}", target.describe(&name))))?;
        let len = begun.limit() - begun.base();
        work.total += len;
        files.push(work.entry(&**target, &name, len, false)?);
        Ok(Begun { base, files, segment: Some(begun) })
    }
}

/// Why there is no base for a copy.
fn error_of(error: TrimError, core: &Core) -> BackupError {
    match error {
        TrimError::Interrupted => BackupError::Read(core.ended()),
        TrimError::Read(error) => BackupError::Read(error),
        TrimError::Io { context, source } => BackupError::Io { context, source },
        TrimError::Unknown(source) => BackupError::Io {
            context: String::from("syncing the copy's directory"),
            source: std::io::Error::new(source.kind(), source.to_string()),
        },
        TrimError::Open(error) => BackupError::Source(error),
        TrimError::ReadOnly => unreachable!("a copy is made of any store"),
    }
}
