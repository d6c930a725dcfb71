//! What of a partition is not in memory: taken from the runs when it is needed, and given up to them
//! when memory is short.
//!
//! A run is made of what is *fresh*, that is, what has changed since the last one was begun. What is not
//! fresh stands in a run, so it can be forgotten at any time, and costs a look there when it is needed
//! again. Everything in memory is newer than what the runs say of it.

use std::cmp::Reverse;
use std::collections::HashSet;

use thalweg_wal::DiscardReason;

use crate::derived::order_log::NONE;
use crate::derived::run::{DamagedRun, KnownItem, Run, StreamItem, WatchItem};
use crate::derived::runs::{self, Fresh, Groups};
use crate::event::EventId;
use crate::order::held::{Watch, Watches};
use crate::order::keys::partition_of;
use crate::order::partition::{KnownAs, Partition, tip_ids};
use crate::order::stream::{Name, Stream, StreamBlob, restore_quiet};
use crate::pipeline::lookup::{Fault, Lookup};

impl Partition {
    /// Takes a stream into memory: the one that the runs have, or a new one.
    pub(super) fn enter_stream(
        &mut self,
        key: u64,
        name: &[u8],
        lookup: &Lookup,
    ) -> Result<u32, Fault> {
        let mut others = self.stream_index.find(key, Some).is_some();
        let stream = match self.cold_stream(key, name, &mut others, lookup)? {
            Some(stream) => stream,
            None => Stream { is_second: others, ..Stream::new(key, name) },
        };
        let index = u32::try_from(self.streams.len()).expect("fewer than 2^38 streams in memory");
        self.stream_heap_len += stream.heap_len();
        self.streams.push(stream);
        self.stream_index.insert(key, u64::from(index));
        Ok(index)
    }

    /// The stream as the runs have it. Sets `others` if they have another with this key.
    fn cold_stream(
        &self,
        key: u64,
        name: &[u8],
        others: &mut bool,
        lookup: &Lookup,
    ) -> Result<Option<Stream>, Fault> {
        if self.cold_below == 0 {
            return Ok(None);
        }
        let look = |run: &Run, item: StreamItem| match restore(run, &item, lookup) {
            Ok(stream) if *stream.name == *name => Some(Ok(stream)),
            // Of another stream with this key the run may have a state that is long over.
            Ok(_) | Err(Fault::Trimmed(_)) => {
                *others = true;
                None
            }
            // The name cannot be compared, where damage is to be passed.
            Err(fault) => match lookup.or_none::<()>(Err(fault)) {
                Ok(_) => Some(restore_unread(&item, name, lookup)),
                Err(fault) => Some(Err(fault)),
            },
        };
        runs::find(&lookup.runs, self.cold_below, key, look)?.transpose()
    }

    /// Takes the watches that the runs have of a parent. See [`super::held::Watches::take`].
    pub(super) fn take_cold(
        &self,
        parent_key: u64,
        mut is_parent: impl FnMut(&Watch) -> Result<bool, Fault>,
        taken: &mut Vec<Watch>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let known = taken.len();
        let look = |_: &Run, item: WatchItem| {
            let watch =
                Watch { position: item.position, key: item.id_key, parent_at: item.parent_at };
            match is_parent(&watch) {
                Ok(true) => taken.push(watch),
                Ok(false) => {}
                Err(fault) => return Some(fault),
            }
            None
        };
        if let Some(fault) = runs::find(&lookup.runs, self.cold_below, parent_key, look)? {
            return Err(fault);
        }
        if taken.len() > known {
            // What is in a run can still be in memory; or an event has come by this parent before it was forgotten, and
            // lists it once more: the place that it has come to counts.
            taken.sort_unstable_by_key(|watch| (watch.position, Reverse(watch.parent_at)));
            taken.dedup_by_key(|watch| watch.position);
        }
        Ok(())
    }

    /// Takes what is fresh, for a run.
    pub(crate) fn take_fresh(&mut self) -> Fresh {
        let watches = self.take_fresh_watches();
        let known = std::mem::take(&mut self.fresh_known);
        let mut fresh = Fresh { known, watches, ..Fresh::default() };
        for index in std::mem::take(&mut self.fresh_streams) {
            let stream = &mut self.streams[index as usize];
            stream.fresh = false;
            let (mut item, blob) = stream.encode();
            if let Some(blob) = blob {
                item.value |= fresh.blobs.len() as u64;
                fresh.blobs.push(blob);
            }
            fresh.streams.push(item);
        }
        fresh
    }

    /// The watches that are fresh, without those of events that are discarded.
    fn take_fresh_watches(&mut self) -> Vec<WatchItem> {
        let mut watches = self.watches.take_fresh();
        let discarded = self.fresh_known.iter().filter_map(|i| KnownAs::discarded_at(i.value));
        let discarded: HashSet<u64> = discarded.collect();
        if !discarded.is_empty() {
            watches.retain(|watch| !discarded.contains(&watch.position));
        }
        watches
    }

    /// Forgets what is not fresh. The runs reach up to `below`, and what is fresh began there.
    pub(crate) fn forget(&mut self, below: u64) {
        let watches = self.take_fresh_watches();
        self.watches = Watches::default();
        let held =
            watches.iter().map(|watch| (watch.id_key, KnownAs::Held(watch.position).encode()));
        // Deliveries without what only runs say of them, and discards.
        let known =
            self.fresh_known.iter().map(|item| (item.key, KnownAs::decode(item.value).encode()));
        self.known.replace(known.chain(held).collect());
        for WatchItem { parent_key, position, id_key: key, parent_at } in watches {
            self.watch(parent_key, Watch { position, key, parent_at });
        }
        self.streams.retain(|stream| stream.fresh);
        self.streams.shrink_to_fit();
        self.fresh_streams = (0..self.streams.len() as u32).collect();
        self.stream_heap_len = self.streams.iter().map(Stream::heap_len).sum();
        let keys = self.streams.iter().map(|stream| stream.key);
        self.stream_index.replace(keys.zip(0..).collect());
        self.cold_below = below;
    }

    /// Positions of the events that watch a parent, as far as they are in memory.
    fn watching(&self) -> impl Iterator<Item = u64> {
        let lists = self.known.entries().filter_map(|(_, value)| match KnownAs::decode(value) {
            KnownAs::Awaited(first) => Some(first),
            _ => None,
        });
        lists.flat_map(|first| self.watches.list(first).map(|watch| watch.position))
    }

    /// The newest event with this id that was held in the stream `name`, and is discarded: its position, and
    /// why.
    pub(crate) fn find_discarded(
        &self,
        name: &[u8],
        key: u64,
        id: &[u8],
        lookup: &Lookup,
    ) -> Result<Option<(u64, DiscardReason)>, Fault> {
        let mut discarded = Vec::new();
        let mut look = |value| {
            if let KnownAs::Discarded(position, reason) = KnownAs::decode(value) {
                discarded.push((position, reason));
            }
            None::<()>
        };
        self.known.find(key, &mut look);
        runs::find(&lookup.runs, self.cold_below, key, |_, item: KnownItem| look(item.value))?;
        discarded.sort_unstable_by_key(|&(position, _)| std::cmp::Reverse(position));
        for (position, reason) in discarded {
            // What was discarded before the log begins is not kept.
            let Some(record) = Lookup::or_trimmed(lookup.record(position)).transpose() else {
                continue;
            };
            // It may be of another id with this key.
            let is_it = record.map(|record| {
                record.stream() == name && *EventId::of(&record, self.store_tag) == *id
            });
            if lookup.or_by_key(is_it)? {
                return Ok(Some((position, reason)));
            }
        }
        Ok(None)
    }

    /// Bytes of memory that the partition takes.
    pub(crate) fn memory_len(&self) -> usize {
        self.fresh_len()
            + self.known.memory_len()
            + self.watches.memory_len()
            + self.streams.capacity() * size_of::<Stream>()
            + self.stream_heap_len
            + self.stream_index.memory_len()
    }

    /// Number of items that are fresh; watches that are over count as well.
    pub(crate) fn fresh_count(&self) -> usize {
        self.fresh_known.len() + self.fresh_streams.len() + self.watches.fresh_count()
    }

    /// Bytes of what is fresh and not counted elsewhere.
    pub(crate) fn fresh_len(&self) -> usize {
        self.fresh_known.len() * 16 + self.fresh_streams.len() * 64
    }

    /// The stream with this name, from memory or from the runs.
    pub(crate) fn with_stream<T>(
        &self,
        key: u64,
        name: &[u8],
        lookup: &Lookup,
        look: impl FnOnce(&Stream) -> T,
    ) -> Result<Option<T>, Fault> {
        if let Some(index) = self.find_stream(key, name) {
            return Ok(Some(look(&self.streams[index as usize])));
        }
        let stream = self.cold_stream(key, name, &mut false, lookup)?;
        Ok(stream.as_ref().map(look))
    }

    /// Ids of the tips of the stream with this name, in the order of their delivery.
    pub(crate) fn tips_of(
        &self,
        key: u64,
        name: &[u8],
        lookup: &Lookup,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let tips =
            self.with_stream(key, name, lookup, |stream| tip_ids(stream, self.store_tag, lookup));
        Ok(tips?.transpose()?.unwrap_or_default())
    }
}

/// Calls `look` for every stream, in no particular order. Given up when the store closes.
pub(crate) fn for_each_stream(
    partitions: &[Partition],
    lookup: &Lookup,
    mut look: impl FnMut(&Stream),
) -> Result<(), Fault> {
    partitions.iter().flat_map(|partition| &partition.streams).for_each(&mut look);
    if partitions.iter().all(|partition| partition.cold_below == 0) {
        return Ok(());
    }
    let runs = &lookup.runs;
    let (mut groups, mut group) = (Groups::of_runs(runs, 0), Vec::new());
    while groups.next(&mut group)? {
        lookup.go_on()?;
        // Streams can share a key: of each, the newest state counts.
        let mut seen: Vec<Name> = Vec::new();
        for &(source, item) in &group {
            let item: StreamItem = item;
            let run = &runs[runs.len() - 1 - source];
            let partition = &partitions[partition_of(item.key)];
            // What is long over has a newer state.
            let restored = Lookup::or_trimmed(restore(run, &item, lookup));
            let Some(stream) = lookup.or_none(restored)?.flatten() else { continue };
            let is_new = partition.find_stream(item.key, &stream.name).is_none();
            if is_new && !seen.contains(&stream.name) {
                seen.push(stream.name.clone());
                look(&stream);
            }
        }
    }
    Ok(())
}

/// Positions of all held events, in the order of the log. Given up when the store closes.
pub(crate) fn held_positions(partitions: &[Partition], lookup: &Lookup) -> Result<Vec<u64>, Fault> {
    first_held_positions(partitions, lookup, usize::MAX)
}

/// The first `count` of them.
pub(crate) fn first_held_positions(
    partitions: &[Partition],
    lookup: &Lookup,
    count: usize,
) -> Result<Vec<u64>, Fault> {
    if partitions.iter().all(|partition| partition.counts.held == 0) {
        return Ok(Vec::new());
    }
    let in_memory = partitions.iter().flat_map(Partition::watching);
    let mut positions: Vec<u64> = in_memory.collect();
    if partitions.iter().any(|partition| partition.cold_below > 0) {
        for run in lookup.runs.iter() {
            for item in run.items::<WatchItem>(0) {
                positions.push(item?.position);
            }
        }
    }
    positions.sort_unstable();
    positions.dedup();
    // A run goes on having watches that are over.
    let mut held = Vec::with_capacity(positions.len().min(count));
    for position in positions {
        lookup.go_on()?;
        if held.len() == count {
            break;
        }
        if is_held(partitions, position, lookup)? {
            held.push(position);
        }
    }
    Ok(held)
}

fn is_held(partitions: &[Partition], position: u64, lookup: &Lookup) -> Result<bool, Fault> {
    if lookup.is_over(position) {
        return Ok(false);
    }
    let Some(record) = lookup.or_none(lookup.record(position))? else { return Ok(false) };
    let keys = partitions[0].keys;
    let stream_key = keys.stream(record.stream());
    let partition = &partitions[partition_of(stream_key)];
    let id = EventId::of(&record, partition.store_tag);
    let known = partition.find_known(record.stream(), keys.event(stream_key, &id), &id, lookup)?;
    Ok(known == Some(KnownAs::Held(position)))
}

/// Global sequence of the newest delivery of an item's stream, if it has one.
pub(crate) fn head_of(run: &Run, item: &StreamItem) -> Result<Option<u64>, DamagedRun> {
    let Some(offset) = item.blob() else { return Ok(Some(item.value)) };
    let blob = StreamBlob::decode(run.blob(offset)?).ok_or_else(|| run.damaged_blob(offset))?;
    Ok((blob.head != NONE).then_some(blob.head))
}

/// The stream of an item.
fn restore(run: &Run, item: &StreamItem, lookup: &Lookup) -> Result<Stream, Fault> {
    let Some(offset) = item.blob() else {
        let entry = lookup.entry(item.value)?;
        let record = lookup.record(entry.position)?;
        return Ok(restore_quiet(item, record.stream(), &entry));
    };
    let blob = StreamBlob::decode(run.blob(offset)?).ok_or_else(|| run.damaged_blob(offset))?;
    let delivered = match blob.head {
        NONE => 0,
        head => lookup.entry(head)?.local + 1,
    };
    Ok(blob.restore(item.key, delivered).ok_or_else(|| run.damaged_blob(offset))?)
}

/// A stream whose newest record cannot be read, taken at its key.
fn restore_unread(item: &StreamItem, name: &[u8], lookup: &Lookup) -> Result<Stream, Fault> {
    let entry = lookup.entry(item.value)?;
    Ok(restore_quiet(item, name, &entry))
}
