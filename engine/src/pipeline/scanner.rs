//! The scanners: threads that verify and split the log, each a part of its own.
//!
//! The orderer cuts the durable log at frame boundaries. A scanner takes a cut, verifies every
//! checksum in it, and hands over what ordering needs: position and keys of each record, split by
//! the partition that owns its stream. Damage isolates one record; it is reported with the cut.

use thalweg_wal::{Damage, RecordKind, Segment};

use crate::event::EventId;
use crate::order::keys::Keys;
use crate::order::partition::Scanned;
use crate::order::window::{MarkScanned, Split};
use crate::pipeline::core::Core;
use crate::sync::Arc;
use crate::sync::mpmc::{Receiver, Sender};
use crate::sync::now;

/// A part of one segment, from one frame boundary to another.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Ordinal of the cut since the store was opened.
    pub(crate) number: u64,
    pub(crate) segment: Arc<Segment>,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// A cut, scanned.
#[derive(Debug)]
pub(crate) struct ScannedCut {
    pub(crate) number: u64,
    pub(crate) split: Split,
    /// Positions of the records, in the order of the log, if somebody asked.
    pub(crate) positions: Option<Vec<u64>>,
    pub(crate) damage: Vec<Damage>,
    /// At the beginning of a segment: ids of deliveries before this one are forgotten from here on.
    pub(crate) forgotten: u64,
    /// Where the log goes on.
    pub(crate) to: u64,
}

impl ScannedCut {
    /// The step from a sealed segment to the next.
    pub(crate) fn empty(number: u64, to: u64) -> Self {
        let split = Split::new(&[], Vec::new());
        let (positions, damage) = (None, Vec::new());
        ScannedCut { number, split, positions, damage, forgotten: 0, to }
    }
}

/// Scans cuts until there are no more.
pub(crate) fn run(core: &Core, cuts: &Receiver<Cut>, scanned: &Sender<ScannedCut>) {
    for cut in cuts {
        // Nobody is going to order it.
        if core.is_stopping() {
            return;
        }
        if scanned.send(scan(core, &cut)).is_err() {
            return;
        }
        core.orderer_work.notify_all();
    }
}

/// Scans one cut.
pub(crate) fn scan(core: &Core, cut: &Cut) -> ScannedCut {
    let start = now();
    let scanned = verify_and_split(core, cut);
    core.observer.scanned(start);
    scanned
}

fn verify_and_split(core: &Core, cut: &Cut) -> ScannedCut {
    let (records, marks, damage) =
        verify(&cut.segment, cut.from, cut.to, core.keys, core.store_tag);
    let positions = (core.ordered_acks.load(crate::sync::Ordering::Relaxed) > 0).then(|| {
        let mut positions = vec![0; records.len() + marks.len()];
        for record in &records {
            positions[record.index as usize] = record.position;
        }
        for mark in &marks {
            positions[mark.index as usize] = mark.position;
        }
        positions
    });
    let split = Split::new(&records, marks);
    let is_first = cut.from == cut.segment.first();
    let forgotten = if is_first { cut.segment.forgotten() } else { 0 };
    ScannedCut { number: cut.number, split, positions, damage, forgotten, to: cut.to }
}

/// Verifies a part of a segment; returns its records, its marks, and where it is damaged.
pub(crate) fn verify(
    segment: &Segment,
    from: u64,
    to: u64,
    keys: Keys,
    store_tag: u32,
) -> (Vec<Scanned>, Vec<MarkScanned>, Vec<Damage>) {
    let mut records = Vec::new();
    let mut marks: Vec<MarkScanned> = Vec::new();
    let mut damage = Vec::new();
    for record in segment.walk(from, to) {
        match record {
            Ok(record) if record.kind() == RecordKind::Mark => {
                let index = (records.len() + marks.len()) as u32;
                marks.push(MarkScanned { index, position: record.position() });
            }
            Ok(record) => {
                let stream_key = keys.stream(record.stream());
                let key = keys.event(stream_key, &EventId::of(&record, store_tag));
                let index = (records.len() + marks.len()) as u32;
                records.push(Scanned { index, position: record.position(), stream_key, key });
            }
            Err(found) => damage.push(found),
        }
    }
    (records, marks, damage)
}
