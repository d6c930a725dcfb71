//! A window of the log: its records, split by partition, and the order that they come to.
//!
//! Every delivery belongs to the record that set it off, its trigger. Triggers are places in the
//! window, so the number of deliveries before a trigger is a prefix sum over the window, and the
//! global order needs no merge and no lock: it is the same for any number of threads, and for any
//! cut of the log into windows.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::derived::order_log::Entry;
use crate::event::Placement;
use crate::order::cursors::{CursorChange, Cursors};
use crate::order::keys::{PARTITION_COUNT, partition_of};
use crate::order::partition::{FirstChange, HeadUpdate, Partition, Scanned, SealChange};
use crate::pipeline::lookup::{Fault, Lookup};
use crate::timings::{Work, timed};

/// Fewer records than this are better ordered by one thread: waking others would cost more.
pub(crate) const PARALLEL_MIN: usize = 1024;

/// A mark of a window, as a scanner hands it over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarkScanned {
    /// Place of the record in the window, from 0.
    pub(crate) index: u32,
    /// Position of the record in the log.
    pub(crate) position: u64,
}

/// The records of a window, sorted by partition, in the order of the log within each.
#[derive(Debug)]
pub(crate) struct Split {
    records: Vec<Scanned>,
    /// Those that belong to no partition, in the order of the log.
    marks: Vec<MarkScanned>,
    /// Where each partition's records begin; one more at the end.
    bounds: [u32; PARTITION_COUNT + 1],
}

impl Split {
    /// Splits records that are in the order of the log. Each has an index of its own, from 0.
    pub(crate) fn new(records: &[Scanned], marks: Vec<MarkScanned>) -> Self {
        let mut bounds = [0; PARTITION_COUNT + 1];
        for record in records {
            bounds[partition_of(record.stream_key) + 1] += 1;
        }
        for partition in 0..PARTITION_COUNT {
            bounds[partition + 1] += bounds[partition];
        }
        let mut next = bounds;
        let mut sorted = records.to_vec();
        for record in records {
            let place = &mut next[partition_of(record.stream_key)];
            sorted[*place as usize] = *record;
            *place += 1;
        }
        Split { records: sorted, marks, bounds }
    }

    /// Number of records in the window.
    pub(crate) fn len(&self) -> usize {
        self.records.len() + self.marks.len()
    }

    fn of(&self, partition: usize) -> &[Scanned] {
        &self.records[self.bounds[partition] as usize..self.bounds[partition + 1] as usize]
    }
}

/// The records of a window: of one cut of the log, or of several that follow each other.
#[derive(Debug, Default)]
pub(crate) struct Window {
    cuts: Vec<Split>,
    len: usize,
}

impl Window {
    /// Adds the cut that follows those that are there.
    pub(crate) fn push(&mut self, cut: Split) {
        self.len += cut.len();
        self.cuts.push(cut);
    }

    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The marks, in the order of the log.
    fn marks(&self) -> Vec<MarkScanned> {
        let mut marks = Vec::new();
        let mut first = 0;
        for cut in &self.cuts {
            let moved = |mark: &MarkScanned| MarkScanned { index: first + mark.index, ..*mark };
            marks.extend(cut.marks.iter().map(moved));
            first += cut.len() as u32;
        }
        marks
    }

    /// Whether there are records of a partition.
    fn has(&self, partition: usize) -> bool {
        self.cuts.iter().any(|cut| !cut.of(partition).is_empty())
    }

    /// The records of a partition, in the order of the log.
    fn of(&self, partition: usize) -> Cow<'_, [Scanned]> {
        if let [cut] = &self.cuts[..] {
            return Cow::Borrowed(cut.of(partition));
        }
        let mut records =
            Vec::with_capacity(self.cuts.iter().map(|cut| cut.of(partition).len()).sum());
        let mut first = 0;
        for cut in &self.cuts {
            let moved = |record: &Scanned| Scanned { index: first + record.index, ..*record };
            records.extend(cut.of(partition).iter().map(moved));
            first += cut.len() as u32;
        }
        Cow::Owned(records)
    }

    /// The records of a partition, stream by stream, those of a stream in the order of the log.
    ///
    /// That is all the order that the machine needs, since streams have nothing to do with each other.
    /// What it looks at for a stream is then still in the processor's caches at the next record of it,
    /// and the longer the window, the more of a stream stands together.
    fn by_stream(&self, partition: usize) -> Cow<'_, [Scanned]> {
        let mut records = self.of(partition);
        records.to_mut().sort_unstable_by_key(|record| (record.stream_key, record.index));
        records
    }
}

/// Where the next window begins in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Frontier {
    /// Global sequence of the next delivery: the number of deliveries so far.
    pub(crate) global: u64,
    /// Number of the next item of the tips log.
    pub(crate) tips: u64,
}

/// The order that a window came to.
#[derive(Debug)]
pub(crate) struct Ordered {
    /// Where the window begins in the order.
    pub(crate) first: Frontier,
    /// Entries of the order log, from `first.global` on.
    pub(crate) entries: Vec<Entry>,
    /// Items of the tips log, from `first.tips` on.
    pub(crate) tips: Vec<u64>,
    /// Newest deliveries of the streams that the window delivered to.
    pub(crate) heads: Vec<HeadUpdate>,
    /// What became of each record, if somebody asked.
    pub(crate) placements: Option<Vec<Placement>>,
    /// Seals that were put on and taken off; those of one stream in the order of the log.
    pub(crate) seals: Vec<SealChange>,
    /// Cursors that marks of the window have changed, each once.
    pub(crate) cursors: Vec<CursorChange>,
    /// Where readers of trimmed streams begin now; those of one stream in the order of the log.
    pub(crate) firsts: Vec<FirstChange>,
}

impl Ordered {
    /// Where the next window begins in the order.
    pub(crate) fn next(&self) -> Frontier {
        Frontier {
            global: self.first.global + self.entries.len() as u64,
            tips: self.first.tips + self.tips.len() as u64,
        }
    }
}

/// Orders a window: with the threads of the pool that it is called in, or alone.
pub(crate) fn order(
    partitions: &mut [Partition],
    cursors: &mut Cursors,
    window: &Window,
    first: Frontier,
    lookup: &Lookup,
    with_placements: bool,
    parallel: bool,
    work: Option<&Work>,
) -> Result<Ordered, Fault> {
    let run = |(index, partition): (usize, &mut Partition)| {
        let total = work.filter(|_| window.has(index)).map(|work| &work.order);
        let order = || {
            let records = if parallel { window.by_stream(index) } else { window.of(index) };
            partition.order(&records, lookup, with_placements)
        };
        timed(total, order)
    };
    if parallel {
        // One task a partition; the pool balances them by stealing, so a partition with a hot
        // stream occupies one thread and the others share the rest.
        partitions.par_iter_mut().enumerate().with_max_len(1).try_for_each(run)?;
    } else {
        partitions.iter_mut().enumerate().try_for_each(run)?;
    }

    let mut before = vec![0; window.len()];
    let placing = work.map(|work| &work.place);
    let (total, tips, seals, mut setbacks) = timed(placing, || {
        partitions.iter().for_each(|partition| partition.count_deliveries(&mut before));
        let total = exclusive_prefix_sum(&mut before);
        let tips = place_tips(partitions, first.tips, &before);
        let seals = partitions.iter_mut().flat_map(Partition::take_seals).collect();
        let setbacks: Option<Vec<(u32, Placement)>> = with_placements
            .then(|| partitions.iter_mut().flat_map(Partition::take_setbacks).collect());
        (total, tips, seals, setbacks)
    });
    let firsts = partitions.iter_mut().flat_map(Partition::take_firsts).collect();
    let cursors = cursors.order(
        &window.marks(),
        partitions.iter_mut().flat_map(Partition::take_refused).collect(),
        |index| first.global + u64::from(before[index as usize]),
        lookup,
        |index, placement| setbacks.iter_mut().for_each(|all| all.push((index, placement.clone()))),
    )?;

    let place = |(index, partition): (usize, &mut Partition)| {
        timed(placing.filter(|_| window.has(index)), || {
            partition.place(first.global, &before, lookup)
        })
    };
    let placed: Result<Vec<_>, Fault> = if parallel {
        partitions.par_iter_mut().enumerate().with_max_len(1).map(place).collect()
    } else {
        partitions.iter_mut().enumerate().map(place).collect()
    };
    let placed = placed?;
    Ok(timed(placing, || {
        let mut entries = vec![Entry::default(); total as usize];
        let mut heads = Vec::new();
        for part in placed {
            for (offset, entry) in part.entries {
                entries[offset as usize] = entry;
            }
            heads.extend(part.heads);
        }
        let placements =
            setbacks.map(|setbacks| placements(setbacks, &before, first.global, &entries));
        Ordered { first, entries, tips, heads, placements, seals, cursors, firsts }
    }))
}

/// Replaces every count by the sum of those before it; returns the sum of all.
fn exclusive_prefix_sum(counts: &mut [u32]) -> u32 {
    let mut sum = 0;
    for count in counts {
        sum += std::mem::replace(count, sum);
    }
    sum
}

/// Gives the lists of tips their places in the tips log, in global order, so that the log is the
/// same whatever the windows were. A list is its length and then the local sequences.
fn place_tips(partitions: &mut [Partition], first: u64, before: &[u32]) -> Vec<u64> {
    let mut chains: Vec<_> = partitions.iter_mut().flat_map(Partition::chains_mut).collect();
    chains.sort_unstable_by_key(|chain| before[chain.trigger as usize]);
    let mut tips = Vec::new();
    for chain in chains {
        chain.slot = first + tips.len() as u64;
        tips.push(chain.locals.len() as u64);
        tips.extend(&chain.locals);
    }
    tips
}

/// A record that was delivered when it arrived is the first of the group that it set off.
fn placements(
    setbacks: Vec<(u32, Placement)>,
    before: &[u32],
    first: u64,
    entries: &[Entry],
) -> Vec<Placement> {
    let mut placements = vec![None; before.len()];
    for (index, placement) in setbacks {
        placements[index as usize] = Some(placement);
    }
    let delivered = |index: usize| {
        let offset = before[index];
        let local = entries[offset as usize].local;
        Placement::Delivered { global: first + u64::from(offset), local }
    };
    let placements = placements.into_iter().enumerate();
    placements.map(|(index, setback)| setback.unwrap_or_else(|| delivered(index))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use thalweg_wal::storage::{MemoryStorage, Storage};
    use thalweg_wal::{EncodedBatch, FrameBuf, LogOptions, LogWriter};

    use super::*;
    use crate::derived::chunks::ChunkWriter;
    use crate::derived::order_log::{ORDER, TIPS};
    use crate::order::keys::Keys;
    use crate::pipeline::lookup::LongRecords;
    use crate::sync::Arc;

    /// Orders a batch as one window of a new log, and returns the partitions with it.
    fn ordered(batch: &EncodedBatch) -> (Ordered, Vec<Partition>, Keys) {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let options = LogOptions { create: true, segment_len_max: 1 << 20 };
        let mut opened = LogWriter::open(Arc::clone(&storage), options, None).expect("opens");
        let mut frame = FrameBuf::new();
        frame.push(batch);
        opened.writer.append(&mut frame).expect("appends");
        opened.writer.sync().expect("syncs");
        let keys = Keys::new(&opened.store_id);
        let segment = &opened.segments[0];
        let scanned =
            segment.walk(segment.first(), segment.end()).zip(0..).map(|(record, index)| {
                let record = record.expect("whole");
                let stream_key = keys.stream(record.stream());
                let key = keys.event(stream_key, record.given_id());
                Scanned { index, position: record.position(), stream_key, key }
            });
        let mut window = Window::default();
        window.push(Split::new(&scanned.collect::<Vec<_>>(), Vec::new()));
        let chunks = |layout| {
            let target = Arc::clone(&storage);
            let chunks =
                ChunkWriter::open(layout, opened.store_id, &*storage, target, (0, 0), true);
            chunks.expect("creates").shared().reader()
        };
        let lookup = Lookup {
            order: chunks(ORDER),
            tips: chunks(TIPS),
            runs: Arc::new(Vec::new()),
            segments: Arc::new(opened.segments.clone()),
            horizon: crate::trimmed::Horizon::default(),
            verified_from: 0,
            skip_damage: false,
            in_flight: VecDeque::new(),
            long_records: Arc::new(LongRecords::new()),
            ending: None,
        };
        let mut partitions: Vec<_> =
            (0..PARTITION_COUNT).map(|_| Partition::new(keys, 1)).collect();
        let (cursors, first) = (&mut Cursors::default(), Frontier::default());
        let ordered = order(&mut partitions, cursors, &window, first, &lookup, false, false, None);
        (ordered.expect("no damage"), partitions, keys)
    }

    #[test]
    fn a_window_tells_which_seals_it_has_changed() {
        let mut batch = EncodedBatch::new();
        for (stream, sealed) in
            [("a", true), ("b", false), ("a", true), ("c", true), ("c", false), ("c", true)]
        {
            let pushed = match sealed {
                true => batch.push_seal(stream.as_bytes()),
                false => batch.push_unseal(stream.as_bytes()),
            };
            pushed.expect("within the limits");
        }
        let (ordered, partitions, keys) = ordered(&batch);
        let changes = |name: &[u8]| -> Vec<bool> {
            let key = keys.stream(name);
            let of_stream = ordered.seals.iter().filter(|change| change.stream_key == key);
            of_stream.map(|change| change.sealed).collect()
        };
        // What was so already is no change.
        assert_eq!(changes(b"a"), [true]);
        assert_eq!(changes(b"b"), [] as [bool; 0]);
        assert_eq!(changes(b"c"), [true, false, true]);
        assert_eq!(ordered.seals.len(), 4);
        let mut sealed: Vec<u64> = partitions.iter().flat_map(Partition::sealed_streams).collect();
        sealed.sort_unstable();
        let mut expected = [b"a", b"c"].map(|name| keys.stream(name));
        expected.sort_unstable();
        assert_eq!(sealed, expected);
        assert!(ordered.placements.is_none() && ordered.entries.is_empty());
    }
}
