//! The cursors of consumers, and what marks make of them: the machine's part that belongs to no stream.
//!
//! A mark counts if no event before it in its batch is refused, whatever streams these are of, and if
//! what it names is delivered at its place in the log. Both are known when all partitions have ordered the
//! window; so marks are decided then, one after the other, in the order of the log.

use std::collections::{BTreeMap, BTreeSet};

use thalweg_wal::{Mark, MarkChange};

use crate::cursors::Cursor;
use crate::event::{Placement, Rejection};
use crate::order::window::MarkScanned;
use crate::pipeline::lookup::{Fault, Lookup};

/// Where a window has left a cursor: at a sequence, or gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CursorChange {
    pub(crate) name: Vec<u8>,
    pub(crate) at: Option<u64>,
}

/// All cursors, as far as the log is ordered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cursors {
    at: BTreeMap<Vec<u8>, u64>,
    /// Position of the newest refused event. A mark and what it depends on are in one frame, so no checkpoint
    /// has to know it.
    refused: u64,
}

impl Cursors {
    pub(crate) fn new(at: BTreeMap<Vec<u8>, u64>) -> Self {
        Cursors { at, refused: 0 }
    }

    pub(crate) fn at(&self) -> &BTreeMap<Vec<u8>, u64> {
        &self.at
    }

    /// Decides the marks of a window. `refused` has the positions of its refused events, and
    /// `delivered_before` the number of deliveries before a record of the window. Says of each cursor that
    /// was changed where it is now, and to `placed` what became of each mark.
    pub(crate) fn order(
        &mut self,
        marks: &[MarkScanned],
        mut refused: Vec<u64>,
        delivered_before: impl Fn(u32) -> u64,
        lookup: &Lookup,
        mut placed: impl FnMut(u32, Placement),
    ) -> Result<Vec<CursorChange>, Fault> {
        refused.sort_unstable();
        let mut refused = refused.into_iter().peekable();
        let mut changed = BTreeSet::new();
        for mark in marks {
            while let Some(position) = refused.next_if(|&position| position < mark.position) {
                self.refused = position;
            }
            let record = lookup.record_in_window(mark.position)?;
            let Some(read) = record.mark() else { continue };
            let placement = self.arrive(&read, delivered_before(mark.index));
            if let Placement::Marked { .. } = placement {
                changed.insert(read.cursor);
            }
            placed(mark.index, placement);
        }
        if let Some(position) = refused.last() {
            self.refused = position;
        }
        let change =
            |name: &[u8]| CursorChange { name: name.to_vec(), at: self.at.get(name).copied() };
        Ok(changed.into_iter().map(change).collect())
    }

    /// What becomes of one mark. See [`crate::reference`].
    fn arrive(&mut self, mark: &Mark<'_>, delivered: u64) -> Placement {
        let rejected = |reason| Placement::Rejected { reason, tips: Vec::new() };
        // No event begins at position 0, so that stands for none.
        if self.refused > 0 && self.refused >= mark.depends_from {
            return rejected(Rejection::Previous);
        }
        let at = self.at.get(mark.cursor).copied();
        let next = match mark.change {
            MarkChange::Advance(next) => next.max(at.unwrap_or(0)),
            MarkChange::Reset(next) => next,
            MarkChange::Remove => {
                self.at.remove(mark.cursor);
                return Placement::Marked { at: None };
            }
        };
        if next > delivered {
            return rejected(Rejection::Undelivered { delivered });
        }
        if at.is_none() && self.at.len() == Cursor::COUNT_MAX {
            return rejected(Rejection::Cursors);
        }
        match self.at.get_mut(mark.cursor) {
            Some(at) => *at = next,
            None => drop(self.at.insert(mark.cursor.to_vec(), next)),
        }
        Placement::Marked { at: Some(next) }
    }
}
