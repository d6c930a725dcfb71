//! All runs of a store: looked up from the newest to the oldest, and made fewer by merging.
//!
//! What happens later stands in a later run, so the newest word on something is the first that a search
//! finds. Merging runs that are neighbours keeps what is still true of them:
//!
//! * of an id that was held and then delivered, the delivery; of one that was discarded, that;
//! * of a stream, its newest state;
//! * of the watches, those whose parent is not delivered.
//!
//! Runs are merged when several of about the same size stand side by side (a log-structured merge,
//! after P. O'Neil et al., 1996, in its *tiered* form): each item is written again once for each time
//! that the state has grown [`MERGE_WIDTH`]-fold, and the number of runs grows with the logarithm.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::io;
use std::iter::Peekable;
use std::ops::Range;

use thalweg_wal::storage::Storage;

use crate::derived::run::{
    Capacity, DamagedRun, Extent, Item, KnownItem, Naming, Run, RunWriter, StreamItem, WatchItem,
};
use crate::order::partition::KnownAs;
use crate::order::stream;
use crate::sync::Arc;

/// So many neighbours of about the same size become one.
const MERGE_WIDTH: usize = 4;
/// Runs up to this many items are of the same size.
const SMALL_ITEM_COUNT: u64 = 1 << 16;

/// Calls `visit` for every item of `key` in the runs that have something from before `below`, the
/// newest first, until it returns something.
#[inline]
pub(crate) fn find<I: Item, T>(
    runs: &[Arc<Run>],
    below: u64,
    key: u64,
    mut visit: impl FnMut(&Run, I) -> Option<T>,
) -> Result<Option<T>, DamagedRun> {
    for run in runs.iter().rev().filter(|run| run.extent.from < below) {
        for item in run.find::<I>(key)? {
            if let Some(found) = visit(run, item) {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// Has the processor fetch what says whether the runs have `key`.
#[inline]
pub(crate) fn touch<I: Item>(runs: &[Arc<Run>], below: u64, key: u64) {
    runs.iter().filter(|run| run.extent.from < below).for_each(|run| run.touch::<I>(key));
}

/// What the machine has learned since the last run.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    pub(crate) known: Vec<KnownItem>,
    /// Where an item says that it has a blob, it is the one with this index in `blobs`.
    pub(crate) streams: Vec<StreamItem>,
    pub(crate) watches: Vec<WatchItem>,
    pub(crate) blobs: Vec<Box<[u8]>>,
}

impl Fresh {
    /// Whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.streams.is_empty() && self.watches.is_empty()
    }

    /// Adds what another partition has learned.
    pub(crate) fn append(&mut self, mut other: Fresh) {
        let offset = self.blobs.len() as u64;
        for item in &mut other.streams {
            if item.blob().is_some() {
                item.value += offset;
            }
        }
        self.known.append(&mut other.known);
        self.streams.append(&mut other.streams);
        self.watches.append(&mut other.watches);
        self.blobs.append(&mut other.blobs);
    }

    /// Number of items of all kinds.
    pub(crate) fn item_count(&self) -> u64 {
        (self.known.len() + self.streams.len() + self.watches.len()) as u64
    }

    /// Puts the items in the order in which a run has them.
    pub(crate) fn sort(&mut self) {
        // A held event is known by its watch.
        let held = |watch: &WatchItem| KnownItem {
            key: watch.id_key,
            value: KnownAs::Held(watch.position).encode(),
        };
        self.known.extend(self.watches.iter().map(held));
        self.known.sort_unstable_by_key(|item| (item.key, item.value));
        self.streams.sort_unstable_by_key(|item| item.key);
        self.watches.sort_unstable_by_key(|item| (item.parent_key, item.position));
    }
}

/// Where the items of a merge come from: what is fresh, or a run.
type Source<'a, I> = Peekable<Box<dyn Iterator<Item = Result<I, DamagedRun>> + 'a>>;

/// The items of several sorted sources, by key.
pub(crate) struct Groups<'a, I: Item> {
    /// The newest first.
    sources: Vec<Source<'a, I>>,
    /// Next key of each source that has more.
    next: BinaryHeap<Reverse<(u64, usize)>>,
}

impl<'a, I: Item + 'a> Groups<'a, I> {
    fn new(sources: Vec<Source<'a, I>>) -> Self {
        let mut groups = Groups { next: BinaryHeap::new(), sources };
        (0..groups.sources.len()).for_each(|source| groups.look(source));
        groups
    }

    /// The items of these runs, given oldest first, whose keys are not below `from`.
    pub(crate) fn of_runs(runs: &[Arc<Run>], from: u64) -> Self {
        Self::new(of_runs(runs, from).collect())
    }

    fn look(&mut self, source: usize) {
        match self.sources[source].peek() {
            Some(Ok(item)) => self.next.push(Reverse((item.key(), source))),
            // Damage is met as soon as anybody asks.
            Some(Err(_)) => self.next.push(Reverse((0, source))),
            None => {}
        }
    }

    /// Fills `group` with all items of the next key, each with the ordinal of its source, the newest
    /// first; `false` if there are no more.
    pub(crate) fn next(&mut self, group: &mut Vec<(usize, I)>) -> Result<bool, DamagedRun> {
        group.clear();
        while let Some(&Reverse((key, source))) = self.next.peek() {
            if group.first().is_some_and(|(_, first)| first.key() != key) {
                break;
            }
            self.next.pop();
            while let Some(item) =
                self.sources[source].next_if(|item| item.as_ref().map_or(true, |i| i.key() == key))
            {
                group.push((source, item?));
            }
            self.look(source);
        }
        Ok(!group.is_empty())
    }
}

/// Why a run could not be made.
#[derive(Debug)]
pub(crate) enum BuildError {
    Damaged(DamagedRun),
    Io(io::Error),
}

impl From<DamagedRun> for BuildError {
    fn from(damaged: DamagedRun) -> Self {
        BuildError::Damaged(damaged)
    }
}

impl From<io::Error> for BuildError {
    fn from(error: io::Error) -> Self {
        BuildError::Io(error)
    }
}

/// What a merge cannot tell from the runs: keys are hashes, and events can share one.
pub(crate) struct Truth<'a> {
    /// Whether the parent of a watch is delivered, so that nobody will ask for the watch.
    pub(crate) is_over: &'a dyn Fn(&WatchItem) -> bool,
    /// Whether the delivery with a global sequence is that of the event at a position.
    pub(crate) is_delivery: &'a dyn Fn(u64, u64) -> bool,
    /// Whether the id of this delivery is forgotten, or known elsewhere.
    pub(crate) is_left_out: &'a dyn Fn(u64) -> bool,
}

/// After so many steps a merge looks whether it is to stop, though it has written nothing.
const STEPS_TOGETHER: u32 = 1024;

/// Makes one run of what is fresh, which is sorted, and of runs, given oldest first, that stand right before it.
/// The new run is durable; its name is after [`Storage::sync_dir`].
pub(crate) fn build(
    storage: &dyn Storage,
    store_id: [u8; 16],
    named: Naming,
    extent: Extent,
    fresh: &Fresh,
    runs: &[Arc<Run>],
    truth: &Truth<'_>,
    is_stopping: &dyn Fn() -> bool,
) -> Result<Arc<Run>, BuildError> {
    let sum = |count: fn(&Run) -> u64| runs.iter().map(|run| count(run)).sum::<u64>();
    let blob_bytes: u64 = fresh.blobs.iter().map(|blob| blob.len() as u64).sum();
    let streams = fresh.streams.len() as u64 + sum(Run::count::<StreamItem>);
    let capacity = Capacity {
        known: fresh.known.len() as u64 + sum(Run::count::<KnownItem>),
        streams,
        watches: fresh.watches.len() as u64 + sum(Run::count::<WatchItem>),
        blobs: (blob_bytes + sum(Run::blobs_len), fresh.blobs.len() as u64),
    };
    let mut writer = RunWriter::create(storage, store_id, named, extent, capacity, is_stopping)?;
    let mut steps: u32 = 0;
    let mut go_on = || {
        steps = steps.wrapping_add(1);
        match steps.is_multiple_of(STEPS_TOGETHER) && is_stopping() {
            true => Err(io::Error::from(io::ErrorKind::Interrupted)),
            false => Ok(()),
        }
    };

    let mut known = Groups::new(sources(&fresh.known, runs));
    let (mut group, mut table) = (Vec::new(), writer.table::<KnownItem>());
    while known.next(&mut group)? {
        go_on()?;
        keep_known(&mut group, truth);
        group.iter().try_for_each(|(_, item)| table.push(*item))?;
    }
    table.finish()?;

    let mut streams = Groups::new(sources(&fresh.streams, runs));
    let (mut group, mut table) = (Vec::new(), writer.table::<StreamItem>());
    let blob_of = |source: usize, offset: u64| match source.checked_sub(1) {
        None => Ok(&*fresh.blobs[offset as usize]),
        Some(run) => runs[runs.len() - 1 - run].blob(offset),
    };
    while streams.next(&mut group)? {
        go_on()?;
        keep_streams(&mut group, &blob_of)?;
        for &(source, mut item) in &group {
            if let Some(offset) = item.blob() {
                item.value = StreamItem::BLOB | table.blob(blob_of(source, offset)?)?;
            }
            table.push(item)?;
        }
    }
    table.finish()?;

    let mut watches = Groups::new(sources(&fresh.watches, runs));
    let (mut group, mut table) = (Vec::new(), writer.table::<WatchItem>());
    while watches.next(&mut group)? {
        group.sort_unstable_by_key(|(_, item)| item.position);
        for &(source, item) in &group {
            go_on()?;
            // What is fresh was looked through when it was taken.
            if source == 0 || !(truth.is_over)(&item) {
                table.push(item)?;
            }
        }
    }
    table.finish()?;
    Ok(writer.finish()?)
}

/// What is fresh, and the runs from the newest to the oldest.
fn sources<'a, I: Item + 'a>(fresh: &'a [I], runs: &[Arc<Run>]) -> Vec<Source<'a, I>> {
    let fresh: Box<dyn Iterator<Item = _>> = Box::new(fresh.iter().copied().map(Ok));
    std::iter::once(fresh.peekable()).chain(of_runs(runs, 0)).collect()
}

/// The runs from the newest to the oldest, each from the first key on that is not below `from`.
fn of_runs<'a, I: Item + 'a>(runs: &[Arc<Run>], from: u64) -> impl Iterator<Item = Source<'a, I>> {
    runs.iter().rev().map(move |run| {
        let items: Box<dyn Iterator<Item = _>> = Box::new(run.items::<I>(from));
        items.peekable()
    })
}

/// Keeps one of each that are the same, and of an event that was held and is delivered or discarded, the
/// delivery or the discard: older runs can still have it as held. Some are left out.
fn keep_known(group: &mut Vec<(usize, KnownItem)>, truth: &Truth<'_>) {
    let is_left_out = |(_, item): &(usize, KnownItem)| match KnownAs::decode(item.value) {
        KnownAs::Delivered(global) => (truth.is_left_out)(global),
        _ => false,
    };
    if group.len() == 1 {
        group.retain(|item| !is_left_out(item));
        return;
    }
    group.sort_unstable_by_key(|(_, item)| item.value);
    group.dedup_by_key(|(_, item)| item.value);
    let released = |(_, item): &(usize, KnownItem)| match KnownAs::decode(item.value) {
        KnownAs::Delivered(global) if KnownAs::was_held(item.value) => Some(global),
        _ => None,
    };
    let released: Vec<u64> = group.iter().filter_map(released).collect();
    let discarded = group.iter().filter_map(|(_, item)| KnownAs::discarded_at(item.value));
    let discarded: HashSet<u64> = discarded.collect();
    // Ids can share a key, and one of them may still be held.
    group.retain(|(_, item)| match KnownAs::decode(item.value) {
        KnownAs::Held(position) => {
            !discarded.contains(&position)
                && !released.iter().any(|&global| (truth.is_delivery)(global, position))
        }
        _ => true,
    });
    group.retain(|item| !is_left_out(item));
}

/// Keeps the newest state of each stream.
fn keep_streams<'a>(
    group: &mut Vec<(usize, StreamItem)>,
    blob_of: &impl Fn(usize, u64) -> Result<&'a [u8], DamagedRun>,
) -> Result<(), DamagedRun> {
    // The first stream with a key has no mark; others say so, with their names.
    let mut seen: Vec<Option<&[u8]>> = Vec::new();
    let mut kept = Vec::with_capacity(1);
    for &(source, item) in &*group {
        let second = match item.blob() {
            Some(offset) => stream::name_of_second(blob_of(source, offset)?),
            None => None,
        };
        if !seen.contains(&second) {
            seen.push(second);
            kept.push((source, item));
        }
    }
    *group = kept;
    Ok(())
}

/// Which neighbours, of runs with so many items each, should become one.
pub(crate) fn due_for_merge(item_counts: &[u64]) -> Option<Range<usize>> {
    let tier = |count: u64| (count.max(SMALL_ITEM_COUNT)).ilog2() / MERGE_WIDTH.ilog2();
    // From the newest on: those are the smallest, and there are the most of them.
    let mut end = item_counts.len();
    while end > 0 {
        let of_end = tier(item_counts[end - 1]);
        // What is smaller and in front of something larger belongs to it.
        let start = item_counts[..end].iter().rposition(|&count| tier(count) > of_end);
        let start = start.map_or(0, |larger| larger + 1);
        if end - start >= MERGE_WIDTH {
            return Some(start..end);
        }
        end = start;
    }
    None
}

#[cfg(test)]
mod tests;
