//! A window of the log: its records, split by partition, and the order that they come to.
//!
//! Every delivery belongs to the record that set it off, its trigger. Triggers are places in the
//! window, so the number of deliveries before a trigger is a prefix sum over the window, and the
//! global order needs no merge and no lock: it is the same for any number of threads, and for any
//! cut of the log into windows.

use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashTable;
use rayon::prelude::*;
use thalweg_wal::{Record, RecordKind};

use crate::derived::order_log::Entry;
use crate::event::{EventId, Placement};
use crate::order::cohort::Cohort;
use crate::order::cursors::{CursorChange, Cursors};
use crate::order::entries::Entries;
use crate::order::extract::Extract;
use crate::order::keys::{Keys, PARTITION_COUNT, partition_of};
use crate::order::partition::{FirstChange, HeadUpdate, Partition, Scanned, SealChange};
use crate::pipeline::lookup::{Fault, Lookup};
use crate::sync::Mutex;
use crate::timings::{Work, timed};

/// Fewer records than this are better ordered by one thread: waking others would cost more.
pub(crate) const PARALLEL_MIN: usize = 1024;

/// Bytes of an extract that are counted with its record.
const EXTRACT_LEN_USUAL: usize = 128;

/// A mark of a window, as a scanner hands it over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarkScanned {
    /// Place of the record in the window, from 0.
    pub(crate) index: u32,
    /// Position of the record in the log.
    pub(crate) position: u64,
}

/// Records in the order of the log, on their way into a [`Split`]. What it has allocated serves the next.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    records: Vec<Scanned>,
    /// Their extracts, one after the other.
    extracts: Vec<u8>,
    marks: Vec<MarkScanned>,
}

impl Scan {
    /// Adds the record that follows.
    pub(crate) fn push(&mut self, record: &Record<'_>, keys: Keys, store_tag: u32) {
        if record.kind() == RecordKind::Mark {
            let index = self.len() as u32;
            self.marks.push(MarkScanned { index, position: record.position() });
        } else {
            self.push_of_stream(record, keys.stream(record.stream()), keys, store_tag);
        }
    }

    /// Adds a record of the stream with this key.
    pub(super) fn push_of_stream(
        &mut self,
        record: &Record<'_>,
        stream_key: u64,
        keys: Keys,
        store_tag: u32,
    ) {
        let (index, position) = (self.len() as u32, record.position());
        let id = EventId::of(record, store_tag);
        let key = keys.event(stream_key, &id);
        let extract = Extract::push(record, &id, &mut self.extracts);
        self.records.push(Scanned { index, extract, cut: 0, position, stream_key, key });
    }

    /// Number of records.
    fn len(&self) -> usize {
        self.records.len() + self.marks.len()
    }

    /// Positions of all records, in the order of the log.
    pub(crate) fn positions(&self) -> Vec<u64> {
        let mut positions = vec![0; self.len()];
        for record in &self.records {
            positions[record.index as usize] = record.position;
        }
        for mark in &self.marks {
            positions[mark.index as usize] = mark.position;
        }
        positions
    }

    /// Splits the records by partition, and begins anew.
    pub(crate) fn split(&mut self) -> Split {
        let split = self.by_partition();
        self.records.clear();
        self.extracts.clear();
        split
    }

    fn by_partition(&mut self) -> Split {
        let marks = std::mem::take(&mut self.marks);
        let Scan { records, extracts, .. } = &*self;
        let extract_len = |record: &Scanned| {
            Extract::at(extracts, record.extract).map_or(0, |extract| extract.len())
        };
        let mut bounds = [(0, 0); PARTITION_COUNT + 1];
        for record in records {
            let (count, len) = &mut bounds[partition_of(record.stream_key) + 1];
            *count += 1;
            *len += extract_len(record) as u32;
        }
        for partition in 0..PARTITION_COUNT {
            bounds[partition + 1].0 += bounds[partition].0;
            bounds[partition + 1].1 += bounds[partition].1;
        }
        let mut next = bounds;
        let mut sorted = records.clone();
        let mut sorted_extracts = vec![0; extracts.len()];
        for record in records {
            let partition = partition_of(record.stream_key);
            let (place, at) = &mut next[partition];
            let mut record = *record;
            let len = extract_len(&record);
            if len > 0 {
                let from = record.extract as usize;
                sorted_extracts[*at as usize..][..len].copy_from_slice(&extracts[from..from + len]);
                record.extract = *at - bounds[partition].1;
            }
            sorted[*place as usize] = record;
            *place += 1;
            *at += len as u32;
        }
        Split { records: sorted, extracts: sorted_extracts, marks, bounds }
    }
}

/// The records of a cut, sorted by partition, in the order of the log within each.
#[derive(Debug)]
pub(crate) struct Split {
    records: Vec<Scanned>,
    extracts: Vec<u8>,
    /// Those that belong to no partition, in the order of the log.
    marks: Vec<MarkScanned>,
    /// Where each partition's records begin, and their extracts; one more at the end.
    bounds: [(u32, u32); PARTITION_COUNT + 1],
}

impl Split {
    /// Number of records in the cut.
    pub(crate) fn len(&self) -> usize {
        self.records.len() + self.marks.len()
    }

    /// How many records of the usual length would take as much memory.
    pub(crate) fn weight(&self) -> usize {
        self.len().max(self.extracts.len() / EXTRACT_LEN_USUAL)
    }

    fn of(&self, partition: usize) -> &[Scanned] {
        &self.records[self.bounds[partition].0 as usize..self.bounds[partition + 1].0 as usize]
    }

    fn extracts_of(&self, partition: usize) -> &[u8] {
        &self.extracts[self.bounds[partition].1 as usize..self.bounds[partition + 1].1 as usize]
    }
}

/// A partition's records of a window.
#[derive(Debug, Clone)]
pub(crate) struct Share<'a> {
    /// In the order of the log, or stream by stream.
    pub(crate) records: &'a [Scanned],
    /// The extracts of each cut.
    pub(crate) extracts: Vec<&'a [u8]>,
}

/// The records of a window: of one cut of the log, or of several that follow each other.
#[derive(Debug, Default)]
pub(crate) struct Window {
    cuts: Vec<Split>,
    len: usize,
    weight: usize,
}

impl Window {
    /// Adds the cut that follows those that are there.
    pub(crate) fn push(&mut self, cut: Split) {
        self.len += cut.len();
        self.weight += cut.weight();
        self.cuts.push(cut);
    }

    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// As [`Split::weight`].
    pub(crate) fn weight(&self) -> usize {
        self.weight
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

    /// A partition's records, in the order of the log.
    fn of<'a>(&'a self, partition: usize, joined: &'a mut Vec<Scanned>) -> Share<'a> {
        let extracts = self.cuts.iter().map(|cut| cut.extracts_of(partition)).collect();
        if let [cut] = &self.cuts[..] {
            return Share { records: cut.of(partition), extracts };
        }
        joined.clear();
        let mut first = 0;
        for (number, cut) in (0..).zip(&self.cuts) {
            let moved =
                |record: &Scanned| Scanned { index: first + record.index, cut: number, ..*record };
            joined.extend(cut.of(partition).iter().map(moved));
            first += cut.len() as u32;
        }
        Share { records: joined, extracts }
    }

    /// A partition's records, stream by stream, those of a stream in the order of the log.
    ///
    /// That is all the order that the machine needs, since streams have nothing to do with each other.
    /// What it looks at for a stream is then still in the processor's caches at the next record of it,
    /// and the longer the window, the more of a stream stands together.
    fn by_stream<'a>(&'a self, partition: usize, sorter: &'a mut Sorter) -> Share<'a> {
        let Sorter { joined, sorting } = sorter;
        let mut share = self.of(partition, joined);
        let is_next_of_same = |pair: &[Scanned]| pair[0].stream_key == pair[1].stream_key;
        if !share.records.windows(2).all(is_next_of_same) {
            share.records = sorting.by_stream(share.records);
        }
        share
    }
}

/// What it takes to sort a partition's records.
#[derive(Debug, Default)]
struct Sorter {
    /// The records, cut after cut.
    joined: Vec<Scanned>,
    sorting: Sorting,
}

#[derive(Debug, Default)]
struct Sorting {
    /// Numbers of the streams by their keys, as they come.
    streams: HashTable<(u64, u32)>,
    /// Number of the stream of each record.
    numbers: Vec<u32>,
    /// Where the next record of each stream goes.
    next: Vec<u32>,
    sorted: Vec<Scanned>,
}

impl Sorting {
    /// The records stream by stream: a counting sort.
    fn by_stream(&mut self, records: &[Scanned]) -> &[Scanned] {
        let Sorting { streams, numbers, next, sorted } = self;
        streams.clear();
        numbers.clear();
        next.clear();
        // The tables of the library go by the upper bits of a hash, too, and these are those of the partition.
        let hash = |key: u64| key.rotate_left(32);
        for record in records {
            let key = record.stream_key;
            let entry = streams.entry(hash(key), |(other, _)| *other == key, |(key, _)| hash(*key));
            let (_, number) = *entry.or_insert((key, next.len() as u32)).get();
            if number as usize == next.len() {
                next.push(0);
            }
            next[number as usize] += 1;
            numbers.push(number);
        }
        let mut end = 0;
        for place in &mut *next {
            end += std::mem::replace(place, end);
        }
        // What stands there from before is written over.
        sorted.resize(records.len(), Scanned::default());
        for (record, number) in records.iter().zip(numbers) {
            let place = &mut next[*number as usize];
            sorted[*place as usize] = *record;
            *place += 1;
        }
        sorted
    }
}

/// What ordering a partition's share of a window takes, beside the partition. It serves one after the other: memory that
/// was never touched is dear.
#[derive(Debug, Default)]
struct Scratch {
    sorter: Sorter,
    cohort: Cohort,
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
    pub(crate) entries: Entries,
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

    /// The entry of a delivery of the window.
    pub(crate) fn entry(&self, global: u64) -> Option<Entry> {
        let offset = global.checked_sub(self.first.global)?;
        Entry::decode(global, &self.entries.get(offset as usize)?)
    }

    /// What became of each record. One that was delivered when it arrived is the first of the group that it set off.
    fn placements_of(&self, setbacks: Vec<(u32, Placement)>, before: &[u32]) -> Vec<Placement> {
        let mut placements = vec![None; before.len()];
        for (index, placement) in setbacks {
            placements[index as usize] = Some(placement);
        }
        let delivered = |index: usize| {
            let global = self.first.global + u64::from(before[index]);
            let local = self.entry(global).expect("the first of a group is in the window").local;
            Placement::Delivered { global, local }
        };
        let placements = placements.into_iter().enumerate();
        placements.map(|(index, setback)| setback.unwrap_or_else(|| delivered(index))).collect()
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
    let counts: Vec<AtomicU32> =
        std::iter::repeat_with(|| AtomicU32::new(0)).take(window.len()).collect();
    let scratches: Mutex<Vec<Scratch>> = Mutex::default();
    let run = |(index, partition): (usize, &mut Partition)| {
        if !window.has(index) {
            return Ok(());
        }
        let order = || {
            let mut scratch = scratches.lock().pop().unwrap_or_default();
            let Scratch { sorter, cohort } = &mut scratch;
            // Whoever asks what became of each record has them come one by one.
            let share = match with_placements {
                true => window.of(index, &mut sorter.joined),
                false => window.by_stream(index, sorter),
            };
            partition.order(&share, cohort, lookup, with_placements)?;
            partition.count_deliveries(&counts);
            scratches.lock().push(scratch);
            Ok::<_, Fault>(())
        };
        timed(work.map(|work| &work.order), order)
    };
    if parallel {
        // One task a partition; the pool balances them by stealing, so a partition with a hot
        // stream occupies one thread and the others share the rest.
        partitions.par_iter_mut().enumerate().with_max_len(1).try_for_each(run)?;
    } else {
        partitions.iter_mut().enumerate().try_for_each(run)?;
    }

    let placing = work.map(|work| &work.place);
    let (before, total, tips, seals, mut setbacks) = timed(placing, || {
        let (before, total) = exclusive_prefix_sum(&counts);
        let tips = place_tips(partitions, first.tips, &before);
        let seals = partitions.iter_mut().flat_map(Partition::take_seals).collect();
        let setbacks: Option<Vec<(u32, Placement)>> = with_placements
            .then(|| partitions.iter_mut().flat_map(Partition::take_setbacks).collect());
        (before, total, tips, seals, setbacks)
    });
    let firsts = partitions.iter_mut().flat_map(Partition::take_firsts).collect();
    let cursors = cursors.order(
        &window.marks(),
        partitions.iter_mut().flat_map(Partition::take_refused).collect(),
        |index| first.global + u64::from(before[index as usize]),
        lookup,
        |index, placement| setbacks.iter_mut().for_each(|all| all.push((index, placement.clone()))),
    )?;

    let entries = Entries::new(total as usize, parallel);
    let place = |(index, partition): (usize, &mut Partition)| {
        timed(placing.filter(|_| window.has(index)), || {
            partition.place(first.global, &before, &entries, lookup)
        })
    };
    let heads: Result<Vec<_>, Fault> = if parallel {
        partitions.par_iter_mut().enumerate().with_max_len(1).map(place).collect()
    } else {
        partitions.iter_mut().enumerate().map(place).collect()
    };
    let heads = heads?;
    Ok(timed(placing, || {
        let heads = heads.concat();
        let mut ordered =
            Ordered { first, entries, tips, heads, placements: None, seals, cursors, firsts };
        ordered.placements = setbacks.map(|setbacks| ordered.placements_of(setbacks, &before));
        ordered
    }))
}

/// For every count the sum of those before it, and the sum of all.
fn exclusive_prefix_sum(counts: &[AtomicU32]) -> (Vec<u32>, u32) {
    let mut sum = 0;
    let before = counts.iter().map(|count| {
        let before = sum;
        // Relaxed: whoever wrote it has come to its end.
        sum += count.load(Ordering::Relaxed);
        before
    });
    (before.collect(), sum)
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use thalweg_wal::storage::{MemoryStorage, Storage};
    use thalweg_wal::{EncodedBatch, FrameBuf, LogOptions, LogWriter};

    use super::*;
    use crate::derived::chunks::ChunkWriter;
    use crate::derived::order_log::{ORDER, TIPS};
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
        let mut scan = Scan::default();
        for record in segment.walk(segment.first(), segment.end()) {
            scan.push(&record.expect("whole"), keys, 1);
        }
        let mut window = Window::default();
        window.push(scan.split());
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
        assert!(ordered.placements.is_none() && ordered.entries.len() == 0);
    }
}
