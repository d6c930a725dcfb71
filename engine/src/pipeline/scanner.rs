//! The scanners: threads that verify and split the log, each a part of its own.
//!
//! The orderer cuts the durable log at frame boundaries. A scanner takes a cut, verifies every
//! checksum in it, and hands over what ordering needs: position and keys of each record, split by
//! the partition that owns its stream. Damage isolates one record; it is reported with the cut.

use thalweg_wal::{Damage, Segment};

use crate::order::keys::Keys;
use crate::order::window::{Scan, Split};
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
        let split = Scan::default().split();
        let (positions, damage) = (None, Vec::new());
        ScannedCut { number, split, positions, damage, forgotten: 0, to }
    }
}

/// Scans cuts until there are no more.
pub(crate) fn run(core: &Core, cuts: &Receiver<Cut>, scanned: &Sender<ScannedCut>) {
    let mut scratch = Scan::default();
    for cut in cuts {
        // Nobody is going to order it.
        if core.is_stopping() {
            return;
        }
        if scanned.send(read_ahead_and_scan(core, &cut, &mut scratch)).is_err() {
            return;
        }
        core.orderer_work.notify_all();
    }
}

/// Scans one cut that may have to be read from the device.
pub(crate) fn read_ahead_and_scan(core: &Core, cut: &Cut, scratch: &mut Scan) -> ScannedCut {
    // All of it at once: what the kernel guesses from one look after the other is less.
    cut.segment.will_need(cut.from, cut.to);
    scan(core, cut, scratch)
}

/// Scans one cut.
pub(crate) fn scan(core: &Core, cut: &Cut, scratch: &mut Scan) -> ScannedCut {
    let start = now();
    let scanned = verify_and_split(core, cut, scratch);
    core.observer.scanned(start);
    scanned
}

fn verify_and_split(core: &Core, cut: &Cut, scan: &mut Scan) -> ScannedCut {
    let damage = verify(&cut.segment, cut.from, cut.to, core.keys, core.store_tag, scan);
    let positions =
        (core.ordered_acks.load(crate::sync::Ordering::Relaxed) > 0).then(|| scan.positions());
    let split = scan.split();
    let is_first = cut.from == cut.segment.first();
    let forgotten = if is_first { cut.segment.forgotten() } else { 0 };
    ScannedCut { number: cut.number, split, positions, damage, forgotten, to: cut.to }
}

/// Verifies a part of a segment, and adds its records to `scan`; returns where it is damaged.
pub(crate) fn verify(
    segment: &Segment,
    from: u64,
    to: u64,
    keys: Keys,
    store_tag: u32,
    scan: &mut Scan,
) -> Vec<Damage> {
    let mut damage = Vec::new();
    for record in segment.walk(from, to) {
        match record {
            Ok(record) => scan.push(&record, keys, store_tag),
            Err(found) => damage.push(found),
        }
    }
    damage
}
