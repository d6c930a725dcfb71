//! The machine of one partition: the serial machine, run over the partition's share of a window.
//!
//! A partition owns its streams. Parents never cross streams, so it needs nobody else to decide
//! what is delivered and in which sequence; the only thing it cannot know is how many deliveries
//! of other partitions come before its own. It therefore works in two steps: [`Partition::order`]
//! finds the groups `(trigger, deliveries)` of a window, and [`Partition::place`], once the prefix sum
//! over all triggers is known, gives each delivery its global sequence.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashSet;
use smallvec::SmallVec;
use thalweg_wal::{DiscardReason, Record, RecordKind};

use crate::derived::order_log::{Entry, Lineage, NONE};
use crate::derived::run::{DamagedRun, KnownItem, Run, StreamItem};
use crate::derived::runs;
use crate::event::{EventId, Placement, Rejection};
use crate::order::cohort::Cohort;
use crate::order::entries::Entries;
use crate::order::held::{NIL, Watch, Watches};
use crate::order::keys::Keys;
use crate::order::known::{SharedTable, Table};
use crate::order::stream::Stream;
use crate::order::tips::Tip;
use crate::order::window::Share;
use crate::pipeline::lookup::{self, Fault, Lookup};
use crate::sync::Arc;

/// Room for so many deliveries is kept from one window to the next.
const DELIVERIES_KEPT_MAX: usize = 1024;
/// Records whose places in the table of known events are fetched at once.
pub(super) const LOOKED_UP_TOGETHER: usize = 16;
/// More parents than this are told apart through a set.
const FEW_PARENTS: usize = 16;

/// Ids of tips that the rejections of a partition in one window may name, in bytes. Many events can
/// be rejected for a stream with many tips, and each of them names all of these.
const NAMED_TIPS_BYTES: usize = 16 << 20;

/// A record of a window, as a scanner hands it over.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scanned {
    /// Place of the record in the window, from 0.
    pub(crate) index: u32,
    /// Where its extract is among those of the partition in its cut, or
    /// [`NO_EXTRACT`](super::extract::NO_EXTRACT).
    pub(crate) extract: u32,
    /// Place of its cut in the window, from 0.
    pub(crate) cut: u32,
    /// Position of the record in the log.
    pub(crate) position: u64,
    /// Key of its stream.
    pub(crate) stream_key: u64,
    /// Key of its id.
    pub(crate) key: u64,
}

/// A delivery that has its place in its stream, and not yet in the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    /// Index in the window of the record that set it off.
    trigger: u32,
    stream: u32,
    position: u64,
    local: u64,
    /// Key of the event's id.
    key: u64,
    /// Where the event stands in `known`; nothing if it is to be entered with its place in the store.
    slot: Option<usize>,
    was_held: bool,
    lineage: Chain,
}

/// What the machine has looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// Ids that were looked up among those that are known.
    pub(crate) lookups: u64,
    /// Records that were read, beside the one that arrives.
    pub(crate) records_read: u64,
    /// Bytes of those that had to be verified, since this process had not done so before.
    pub(crate) bytes_verified: u64,
}

/// Where the parents of a delivery are written down.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chain {
    /// In its record.
    Listed,
    /// It was chained while the stream had no tip.
    Root,
    /// It was chained on the event delivered before it.
    Previous,
    /// It was chained on the tips in this element of `chains`.
    Tips(u32),
}

/// A chained event that has more than one tip, or another tip than its predecessor.
#[derive(Debug)]
pub(crate) struct ChainedOn {
    /// Index of the event in the window. It is its own trigger: a chained event never waits.
    pub(crate) trigger: u32,
    /// Local sequences of the tips.
    pub(crate) locals: Vec<u64>,
    /// Where the tips log will hold them; set between the two steps.
    pub(crate) slot: u64,
}

/// A stream and its newest delivery, for whoever looks the stream up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadUpdate {
    pub(crate) stream_key: u64,
    /// Newest delivery before the window, or [`NONE`].
    pub(crate) previous: u64,
    /// Newest delivery now.
    pub(crate) head: u64,
}

/// A stream that was sealed in a window, or whose seal was taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SealChange {
    pub(crate) stream_key: u64,
    pub(crate) sealed: bool,
}

/// Where readers of a stream begin since a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FirstChange {
    pub(crate) stream: Vec<u8>,
    pub(crate) first: u64,
}

/// What a partition has, and events that it did not take since the store was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PartitionCounts {
    /// Streams that are there: see [`Stream::is_there`].
    pub(crate) streams: u64,
    /// Held events.
    pub(crate) held: u64,
    pub(crate) duplicates: u64,
    pub(crate) conflicts: u64,
    pub(crate) rejected: u64,
    /// Held events that were discarded.
    pub(crate) discarded: u64,
}

/// What is known of an id. As a number, the three upper bits tell the kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KnownAs {
    /// Delivered, with its global sequence.
    Delivered(u64),
    /// Delivered by the window in hand: index in the partition's deliveries.
    InHand(usize),
    /// Held, with its position in the log.
    Held(u64),
    /// The event at this position was held, and is discarded: whatever says that it is held is from before.
    /// The id is free.
    Discarded(u64, DiscardReason),
    /// Not known: the list of the events that watch an id with this key begins here. In memory only.
    Awaited(u32),
}

const _: () = assert!(thalweg_wal::format::ALIGN > 1, "the lowest bit of a position is free");

impl KnownAs {
    /// On a delivery in a run: an older run may have the event as held.
    const WAS_HELD: u64 = 1 << 62;
    const IN_HAND: u64 = 1 << 63;
    const DISCARDED: u64 = 5 << 61;
    /// On a position that was discarded: the event was held for too long.
    const EXPIRED: u64 = 1;
    const HELD: u64 = 3 << 62;
    const AWAITED: u64 = 7 << 61;

    #[inline]
    pub(crate) fn encode(self) -> u64 {
        match self {
            KnownAs::Delivered(global) => global,
            KnownAs::InHand(index) => Self::IN_HAND | index as u64,
            KnownAs::Held(position) => Self::HELD | position,
            KnownAs::Discarded(position, reason) => {
                Self::DISCARDED | position | Self::expired(reason)
            }
            KnownAs::Awaited(first) => Self::AWAITED | u64::from(first),
        }
    }

    #[inline]
    pub(crate) fn decode(value: u64) -> Self {
        match value >> 62 {
            2 if value >> 61 == 5 => {
                let reason = match value & Self::EXPIRED {
                    0 => DiscardReason::Discarded,
                    _ => DiscardReason::Expired,
                };
                KnownAs::Discarded(value & !Self::DISCARDED & !Self::EXPIRED, reason)
            }
            2 => KnownAs::InHand((value & !Self::HELD) as usize),
            3 if value >> 61 == 7 => KnownAs::Awaited(value as u32),
            3 => KnownAs::Held(value & !Self::HELD),
            _ => KnownAs::Delivered(value & !Self::WAS_HELD),
        }
    }

    fn expired(reason: DiscardReason) -> u64 {
        match reason {
            DiscardReason::Discarded => 0,
            DiscardReason::Expired => Self::EXPIRED,
        }
    }

    /// The position of the held event that this number says is discarded, if it says so of one.
    #[inline]
    pub(crate) fn discarded_at(value: u64) -> Option<u64> {
        match Self::decode(value) {
            KnownAs::Discarded(position, _) => Some(position),
            _ => None,
        }
    }

    /// A delivery for a run.
    pub(crate) fn delivered_in_run(global: u64, was_held: bool) -> u64 {
        if was_held { Self::WAS_HELD | global } else { global }
    }

    /// Whether this is the delivery, in a run, of an event that was held before.
    pub(crate) fn was_held(value: u64) -> bool {
        value >> 62 == 1
    }
}

/// One partition of the streams.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) keys: Keys,
    pub(crate) store_tag: u32,
    /// Streams that are in memory.
    pub(super) streams: Vec<Stream>,
    /// Indices of the streams in memory, by key.
    pub(super) stream_index: Table,
    /// Bytes that the streams take beside their own size.
    pub(super) stream_heap_len: usize,
    pub(super) known: Table,
    pub(super) watches: Watches,
    /// What is not in memory is in the runs, and began before this position. Zero while everything is
    /// in memory.
    pub(super) cold_below: u64,
    /// Deliveries and discards since the newest run was begun.
    pub(super) fresh_known: Vec<KnownItem>,
    /// Streams that have changed since.
    pub(super) fresh_streams: Vec<u32>,
    /// Ids of deliveries before this one are forgotten, but for tips. Changes between two windows only.
    pub(crate) forgotten: u64,
    /// Keys of the sealed streams.
    pub(super) sealed: HashSet<u64, std::hash::RandomState>,
    /// Where readers begin of the streams that were trimmed, by their names.
    pub(super) firsts: BTreeMap<Vec<u8>, u64>,
    pub(crate) counts: PartitionCounts,
    /// What the machine has looked at since the store was opened.
    work: Cell<Work>,
    pub(super) deliveries: Vec<Delivery>,
    /// What became of the records that were not delivered when they arrived, by their index in the
    /// window; only if somebody wants to know.
    setbacks: Option<Vec<(u32, Placement)>>,
    named_tips_bytes: usize,
    seals: Vec<SealChange>,
    first_changes: Vec<FirstChange>,
    /// End of the newest event that was refused, and key of its stream. Only the record that begins
    /// there asks, so it is never taken back, and there is nothing to remember from one frame to the
    /// next.
    refused: Option<(u64, u64)>,
    /// Positions of the events of the window that were refused, for the marks behind them.
    refused_positions: Vec<u64>,
    chains: Vec<ChainedOn>,
    /// Position and key of the held events that wait for nothing more.
    ready: BinaryHeap<Reverse<(u64, u64)>>,
    released: Vec<Watch>,
}

impl Partition {
    /// A partition that has seen nothing.
    pub(crate) fn new(keys: Keys, store_tag: u32) -> Self {
        Self::restore(keys, store_tag, PartitionCounts::default(), 0, Vec::new())
    }

    /// A partition whose state is in the runs, which reach up to `cold_below`.
    pub(crate) fn restore(
        keys: Keys,
        store_tag: u32,
        counts: PartitionCounts,
        cold_below: u64,
        sealed: Vec<u64>,
    ) -> Self {
        Partition {
            keys,
            store_tag,
            streams: Vec::new(),
            stream_index: Table::default(),
            stream_heap_len: 0,
            known: Table::default(),
            watches: Watches::default(),
            cold_below,
            fresh_known: Vec::new(),
            fresh_streams: Vec::new(),
            forgotten: 0,
            sealed: sealed.into_iter().collect(),
            firsts: BTreeMap::new(),
            counts,
            work: Cell::default(),
            deliveries: Vec::new(),
            setbacks: None,
            named_tips_bytes: 0,
            seals: Vec::new(),
            first_changes: Vec::new(),
            refused: None,
            refused_positions: Vec::new(),
            chains: Vec::new(),
            ready: BinaryHeap::new(),
            released: Vec::new(),
        }
    }

    /// The readers' side of the known ids.
    pub(crate) fn shared_known(&self) -> Arc<SharedTable> {
        self.known.shared()
    }

    /// Runs the machine over the partition's records of a window: in the order of the log if somebody asks for
    /// placements, and stream by stream if not.
    ///
    /// After an error the partition is in the middle of an event and must not be used again.
    pub(crate) fn order(
        &mut self,
        share: &Share<'_>,
        cohort: &mut Cohort,
        lookup: &Lookup,
        with_placements: bool,
    ) -> Result<(), Fault> {
        debug_assert!(self.deliveries.is_empty() && self.seals.is_empty());
        self.setbacks = with_placements.then(Vec::new);
        self.named_tips_bytes = 0;
        self.known.reserve(share.records.len());
        self.deliveries.reserve(share.records.len());
        if with_placements {
            return self.order_each(share.records, lookup);
        }
        // Records that are alone of their stream are put off to the next that are not: their places are fetched
        // together.
        let mut alone = 0..0;
        for together in share.records.chunk_by(|a, b| a.stream_key == b.stream_key) {
            let end = alone.end + together.len();
            if together.len() == 1 {
                alone.end = end;
                continue;
            }
            self.order_each(&share.records[alone], lookup)?;
            alone = end..end;
            if !self.order_together(together, &share.extracts, cohort, lookup)? {
                self.order_each(together, lookup)?;
            }
        }
        self.order_each(&share.records[alone], lookup)
    }

    /// Orders records one by one.
    fn order_each(&mut self, records: &[Scanned], lookup: &Lookup) -> Result<(), Fault> {
        records.chunks(LOOKED_UP_TOGETHER).try_for_each(|records| {
            lookup.go_on()?;
            let touched = self.touch(records, lookup);
            records.iter().zip(touched).try_for_each(|(scanned, record)| {
                let record =
                    record.map_or_else(|| lookup.record_in_window(scanned.position), Ok)?;
                self.arrive(scanned, &record, lookup)
            })
        })
    }

    /// Has the processor fetch what the machine is going to look at. The tables and the log are larger
    /// than any cache: the places for several records are fetched side by side, one step of the way
    /// after the other, where the machine would wait at each step of each. Returns the records.
    fn touch<'a>(
        &self,
        records: &[Scanned],
        lookup: &'a Lookup,
    ) -> [Option<Record<'a>>; LOOKED_UP_TOGETHER] {
        self.touch_known(records, lookup);
        for scanned in records {
            self.stream_index.touch(scanned.stream_key);
            lookup.touch_record(scanned.position);
        }
        let mut touched = [None; LOOKED_UP_TOGETHER];
        let mut next = [(None, None); LOOKED_UP_TOGETHER];
        for ((scanned, (stream, child)), touched) in records.iter().zip(&mut next).zip(&mut touched)
        {
            *stream = self.stream_index.find(scanned.stream_key, Some).map(|(_, index)| index);
            if let Some(index) = *stream {
                std::hint::black_box(self.streams[index as usize].delivered);
            } else if self.cold_below > 0 {
                runs::touch::<StreamItem>(&lookup.runs, self.cold_below, scanned.stream_key);
            }
            // Whoever needs it asks again, and hears why.
            let Ok(record) = lookup.record_in_window(scanned.position) else { continue };
            *touched = Some(record);
            if let Some(parent) = record.parents().next() {
                self.known.touch(self.keys.event(scanned.stream_key, parent));
            }
            if self.counts.held > 0 {
                *child = self.awaited(scanned.key).map(|(_, first)| first);
            }
        }
        for (stream, child) in next {
            let tip = stream.and_then(|index| self.streams[index as usize].tips.only());
            if let Some(tip) = tip {
                lookup.touch_record(tip.position);
            }
            if let Some(child) = child.and_then(|first| self.watches.list(first).next()) {
                lookup.touch_record(child.position);
            }
        }
        touched
    }

    /// The part of it that has to do with the known ids.
    pub(super) fn touch_known(&self, records: &[Scanned], lookup: &Lookup) {
        for scanned in records {
            self.known.touch(scanned.key);
            if self.cold_below > 0 {
                runs::touch::<KnownItem>(&lookup.runs, self.cold_below, scanned.key);
            }
        }
    }

    fn arrive(
        &mut self,
        scanned: &Scanned,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let stream = self.stream_of(scanned.stream_key, record.stream(), lookup)?;
        self.begin_at(stream)?;
        match record.kind() {
            RecordKind::Event => self.arrive_event(scanned, stream, record, lookup)?,
            RecordKind::Seal => {
                self.set_sealed(stream, true);
                let next = self.streams[stream as usize].delivered;
                self.set_back(scanned.index, Placement::Sealed { next });
            }
            RecordKind::Unseal => {
                self.set_sealed(stream, false);
                self.set_back(scanned.index, Placement::Unsealed);
            }
            RecordKind::Discard => self.arrive_discard(scanned, stream, record, lookup)?,
            RecordKind::StreamTrim => {
                let first = self.trim(stream, record.stream_trim().unwrap_or(0));
                self.set_back(scanned.index, Placement::Trimmed { first });
            }
            RecordKind::Mark => unreachable!("marks belong to no partition"),
            // Nobody waits for what became of it: it stands in for something from before a repair.
            RecordKind::Refused => {
                self.refuse(scanned, record.position() + record.len());
                self.set_back(scanned.index, Placement::Conflict);
            }
        }
        self.end_at(stream);
        Ok(())
    }

    /// Takes a stream, which is going to change, off the counts. What arrives delivers and holds events of its
    /// own stream only.
    pub(super) fn begin_at(&mut self, stream: u32) -> Result<(), Fault> {
        let state = &self.streams[stream as usize];
        self.stream_heap_len -= state.heap_len();
        take_from(&mut self.counts.streams, u64::from(state.is_there()))
    }

    /// Counts a stream again.
    pub(super) fn end_at(&mut self, stream: u32) {
        let state = &self.streams[stream as usize];
        self.counts.streams += u64::from(state.is_there());
        self.stream_heap_len += state.heap_len();
    }

    /// Has readers of a stream begin later; says where.
    fn trim(&mut self, stream: u32, first: u64) -> u64 {
        let Stream { name, delivered, .. } = &self.streams[stream as usize];
        let first = first.min(*delivered);
        let before = self.firsts.get(&name[..]).copied().unwrap_or(0);
        if first > before {
            self.firsts.insert(name.to_vec(), first);
            self.first_changes.push(FirstChange { stream: name.to_vec(), first });
        }
        first.max(before)
    }

    /// Where readers begin of the streams that were trimmed.
    pub(crate) fn firsts(&self) -> &BTreeMap<Vec<u8>, u64> {
        &self.firsts
    }

    /// Takes what an earlier life of the store knows of a trimmed stream.
    pub(crate) fn set_first(&mut self, stream: Vec<u8>, first: u64) {
        self.firsts.insert(stream, first);
    }

    /// Where readers begin since the window, in the order of the log.
    pub(crate) fn take_firsts(&mut self) -> Vec<FirstChange> {
        std::mem::take(&mut self.first_changes)
    }

    fn set_sealed(&mut self, stream: u32, sealed: bool) {
        let state = &mut self.streams[stream as usize];
        if std::mem::replace(&mut state.sealed, sealed) != sealed {
            let stream_key = state.key;
            self.seals.push(SealChange { stream_key, sealed });
            match sealed {
                true => self.sealed.insert(stream_key),
                false => self.sealed.remove(&stream_key),
            };
            self.freshen(stream);
        }
    }

    /// Notes that the next run has to have this stream.
    fn freshen(&mut self, stream: u32) {
        if !std::mem::replace(&mut self.streams[stream as usize].fresh, true) {
            self.fresh_streams.push(stream);
        }
    }

    fn arrive_event(
        &mut self,
        scanned: &Scanned,
        stream: u32,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let id = EventId::of(record, self.store_tag);
        let end = record.position() + record.len();
        if let Some(known) = self.find_known(record.stream(), scanned.key, &id, lookup)? {
            if self.is_same(stream, known, record, lookup)? {
                self.counts.duplicates += 1;
                self.set_back(scanned.index, Placement::Duplicate);
            } else {
                self.counts.conflicts += 1;
                self.refuse(scanned, end);
                self.set_back(scanned.index, Placement::Conflict);
            }
            return Ok(());
        }
        if let Some(reason) = self.rejection(stream, record, lookup)? {
            self.counts.rejected += 1;
            self.refuse(scanned, end);
            if self.setbacks.is_some() {
                let tips = self.named_tips(stream, lookup)?;
                self.set_back(scanned.index, Placement::Rejected { reason, tips });
            }
            return Ok(());
        }
        let Some((parent_key, parent_at)) = self.first_missing(stream, record, 0, lookup)? else {
            let slot = Some(self.insert_in_hand(scanned.key));
            let event = Ready { key: scanned.key, slot, was_held: false };
            self.deliver(scanned.index, stream, event, record, lookup)?;
            return self.deliver_ready(scanned.index, stream, lookup);
        };
        let (position, key) = (scanned.position, scanned.key);
        self.hold(stream, parent_key, Watch { position, key, parent_at })?;
        if self.setbacks.is_some() {
            let missing = self.count_missing(stream, record, lookup)?;
            self.set_back(scanned.index, Placement::Held { missing });
        }
        Ok(())
    }

    /// Gives a held event up. What it watches goes on having it in its list, which is passed over when that
    /// is delivered: looking for it there would cost as much as all that wait for the same parent.
    fn arrive_discard(
        &mut self,
        scanned: &Scanned,
        stream: u32,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let known = self.find_known(record.stream(), scanned.key, record.given_id(), lookup)?;
        let Some(KnownAs::Held(position)) = known else {
            self.set_back(scanned.index, Placement::NotHeld { delivered: known.is_some() });
            return Ok(());
        };
        let reason = record.discard_reason().unwrap_or(DiscardReason::Discarded);
        let value = KnownAs::Discarded(position, reason).encode();
        let held_as = KnownAs::Held(position).encode();
        match self.known.find(scanned.key, |value| (value == held_as).then_some(())) {
            Some((slot, ())) => self.known.set(slot, value),
            // It is in a run.
            None => drop(self.insert_known(scanned.key, value)),
        }
        self.fresh_known.push(KnownItem { key: scanned.key, value });
        let held = &mut self.streams[stream as usize].held;
        *held = held.checked_sub(1).ok_or_else(miscounted)?;
        take_from(&mut self.counts.held, 1)?;
        self.counts.discarded += 1;
        self.freshen(stream);
        self.set_back(scanned.index, Placement::Discarded);
        Ok(())
    }

    /// Notes that the event, which ends at `end`, is refused.
    fn refuse(&mut self, scanned: &Scanned, end: u64) {
        self.refused = Some((end, scanned.stream_key));
        self.refused_positions.push(scanned.position);
    }

    /// The entry of a key that events watch: its slot, and where their list begins.
    #[inline]
    fn awaited(&self, key: u64) -> Option<(usize, u32)> {
        self.known.find(key, |value| match KnownAs::decode(value) {
            KnownAs::Awaited(first) => Some(first),
            _ => None,
        })
    }

    /// Whether events can wait for one with this key in the lists of the partition, or in runs.
    #[inline]
    pub(super) fn may_be_awaited(&self, key: u64) -> bool {
        self.counts.held > 0 && (self.cold_below > 0 || self.awaited(key).is_some())
    }

    /// Has an event that arrives wait for a parent.
    pub(super) fn hold(&mut self, stream: u32, parent_key: u64, watch: Watch) -> Result<(), Fault> {
        self.watch(parent_key, watch);
        self.insert_known(watch.key, KnownAs::Held(watch.position).encode());
        let held = &mut self.streams[stream as usize].held;
        *held = held.checked_add(1).ok_or_else(miscounted)?;
        self.counts.held += 1;
        self.freshen(stream);
        Ok(())
    }

    /// Has an event watch a parent.
    pub(super) fn watch(&mut self, parent_key: u64, watch: Watch) {
        match self.awaited(parent_key) {
            Some((slot, first)) => {
                let first = self.watches.add(first, parent_key, watch);
                self.known.set(slot, KnownAs::Awaited(first).encode());
            }
            None => {
                let first = self.watches.add(NIL, parent_key, watch);
                self.insert_known(parent_key, KnownAs::Awaited(first).encode());
            }
        }
    }

    /// Adds to the known ids the event that is delivered next.
    pub(super) fn insert_in_hand(&mut self, key: u64) -> usize {
        self.insert_known(key, KnownAs::InHand(self.deliveries.len()).encode())
    }

    /// Adds to the known ids.
    pub(super) fn insert_known(&mut self, key: u64, value: u64) -> usize {
        self.reserve_known(1);
        self.known.insert(key, value)
    }

    /// Makes room for so many more known ids. Slots stay where they are until the table grows; then the deliveries
    /// of the window learn theirs anew.
    fn reserve_known(&mut self, additional: usize) {
        if !self.known.has_room(additional) {
            self.known.reserve(additional);
            for (index, delivery) in self.deliveries.iter_mut().enumerate() {
                let Some(slot) = &mut delivery.slot else { continue };
                let in_hand = KnownAs::InHand(index).encode();
                let found = self.known.find(delivery.key, |value| (value == in_hand).then_some(()));
                *slot = found.expect("a delivery of the window is known").0;
            }
        }
    }

    fn set_back(&mut self, index: u32, placement: Placement) {
        if let Some(setbacks) = &mut self.setbacks {
            setbacks.push((index, placement));
        }
    }

    /// Why an event that is not known is not taken, if it is not. See [`crate::reference`].
    fn rejection(
        &mut self,
        stream: u32,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<Option<Rejection>, Fault> {
        let Stream { key, sealed, delivered, .. } = self.streams[stream as usize];
        if record.is_with_previous() && self.refused == Some((record.position(), key)) {
            return Ok(Some(Rejection::Previous));
        }
        if sealed {
            return Ok(Some(Rejection::Sealed));
        }
        if record.if_local().is_some_and(|local| local != delivered) {
            return Ok(Some(Rejection::Local { next: delivered }));
        }
        if record.is_if_tips() && !self.lists_tips(stream, record, lookup)? {
            return Ok(Some(Rejection::Tips));
        }
        if record.requires_parents() || record.is_if_tips() || record.if_local().is_some() {
            let missing = self.count_missing(stream, record, lookup)?;
            return Ok((missing > 0).then_some(Rejection::Parents { missing }));
        }
        Ok(None)
    }

    /// Whether the listed parents of `record` are, as a set, the tips of the stream.
    fn lists_tips(&self, stream: u32, record: &Record<'_>, lookup: &Lookup) -> Result<bool, Fault> {
        let state = &self.streams[stream as usize];
        let mut listed = 0;
        for (_, parent) in distinct(record) {
            let key = self.keys.event(state.key, parent);
            if self.find_tip(stream, key, parent, lookup)?.is_none() {
                return Ok(false);
            }
            listed += 1;
        }
        Ok(listed == state.tips.len())
    }

    /// Ids of the stream's tips, in the order of their delivery; none if the window's rejections
    /// have named too many already.
    fn named_tips(&mut self, stream: u32, lookup: &Lookup) -> Result<Vec<Vec<u8>>, Fault> {
        if self.named_tips_bytes > NAMED_TIPS_BYTES {
            return Ok(Vec::new());
        }
        let tips = self.tip_ids(stream, lookup)?;
        let bytes = tips.iter().map(|id| size_of::<Vec<u8>>() + id.len()).sum::<usize>();
        self.named_tips_bytes += bytes;
        Ok(tips)
    }

    /// Ids of the stream's tips, in the order of their delivery.
    fn tip_ids(&self, stream: u32, lookup: &Lookup) -> Result<Vec<Vec<u8>>, Fault> {
        tip_ids(&self.streams[stream as usize], self.store_tag, lookup)
    }

    /// Any record but the one that arrives.
    #[inline]
    pub(super) fn record<'a>(
        &self,
        position: u64,
        lookup: &'a Lookup,
    ) -> Result<Record<'a>, Fault> {
        read(&self.work, position, lookup)
    }

    /// What the machine has looked at since the store was opened.
    pub(crate) fn work(&self) -> Work {
        self.work.get()
    }

    /// Index of the stream with this name, if it is in memory.
    #[inline]
    pub(super) fn find_stream(&self, key: u64, name: &[u8]) -> Option<u32> {
        let is_it = |index| (*self.streams[index as usize].name == *name).then_some(index as u32);
        self.stream_index.find(key, is_it).map(|(_, index)| index)
    }

    /// The stream with this name: in memory, or from the runs, or a new one.
    #[inline]
    pub(super) fn stream_of(
        &mut self,
        key: u64,
        name: &[u8],
        lookup: &Lookup,
    ) -> Result<u32, Fault> {
        match self.find_stream(key, name) {
            Some(index) => Ok(index),
            None => self.enter_stream(key, name, lookup),
        }
    }

    /// Position of a known event.
    fn position_of(&self, known: KnownAs, lookup: &Lookup) -> Result<u64, Fault> {
        match known {
            KnownAs::Delivered(global) => Ok(lookup.entry(global)?.position),
            KnownAs::InHand(index) => Ok(self.deliveries[index].position),
            KnownAs::Held(position) => Ok(position),
            KnownAs::Discarded(..) | KnownAs::Awaited(_) => {
                unreachable!("whoever looks an id up passes these")
            }
        }
    }

    /// What is known of `id` in the stream `name`.
    pub(crate) fn find_known(
        &self,
        name: &[u8],
        key: u64,
        id: &[u8],
        lookup: &Lookup,
    ) -> Result<Option<KnownAs>, Fault> {
        let mut work = self.work.get();
        work.lookups += 1;
        self.work.set(work);
        // Positions of discarded events: an older word on them is that they are held.
        let mut discarded: SmallVec<[u64; 4]> = SmallVec::new();
        let mut look = |value| {
            let known = KnownAs::decode(value);
            match known {
                KnownAs::Awaited(_) => return None,
                KnownAs::Discarded(position, _) => {
                    discarded.push(position);
                    return None;
                }
                KnownAs::Held(position)
                    if lookup.is_over(position) || discarded.contains(&position) =>
                {
                    return None;
                }
                KnownAs::Delivered(global) => {
                    let is_known = match global < self.forgotten {
                        true => self.is_tip(name, key, global, lookup),
                        false => Ok(true),
                    };
                    match is_known.map(|is_known| is_known.then(|| lookup.fact(global))) {
                        Ok(None) => return None,
                        Ok(Some(Ok(Some(fact)))) => {
                            return fact.is_event(self.keys, name, id).then_some(Ok(known));
                        }
                        Ok(Some(Ok(None))) => {}
                        Ok(Some(Err(fault))) | Err(fault) => return Some(Err(fault)),
                    }
                }
                KnownAs::InHand(_) | KnownAs::Held(_) => {}
            }
            let is_it = self.position_of(known, lookup).and_then(|position| {
                let record = self.record(position, lookup)?;
                let other = EventId::of(&record, self.store_tag);
                Ok(record.stream() == name && *other == *id)
            });
            match lookup.or_by_key(is_it) {
                Ok(true) => Some(Ok(known)),
                Ok(false) => None,
                Err(fault) => Some(Err(fault)),
            }
        };
        if let Some((_, known)) = self.known.find(key, &mut look) {
            return known.map(Some);
        }
        if self.cold_below == 0 {
            return Ok(None);
        }
        let look = |run: &Run, item: KnownItem| match KnownAs::decode(item.value) {
            KnownAs::Delivered(_) | KnownAs::Held(_) | KnownAs::Discarded(..) => look(item.value),
            // These are for memory: no run has them.
            KnownAs::InHand(_) | KnownAs::Awaited(_) => Some(Err(run.damaged_item().into())),
        };
        lookup::find_known(lookup, self.cold_below, key, look)?.transpose()
    }

    /// Whether a delivery whose id has this key is a tip of the stream `name`.
    #[cold]
    fn is_tip(&self, name: &[u8], key: u64, global: u64, lookup: &Lookup) -> Result<bool, Fault> {
        // Of what is forgotten, only what links lead to is kept.
        let entry = Lookup::or_trimmed(lookup.entry(global));
        let Some(entry) = lookup.or_none(entry)?.flatten() else { return Ok(false) };
        let is_it = |stream: &Stream| {
            let is_there = |tip: &Tip| Ok::<_, Fault>(tip.local == entry.local);
            Ok(stream.tips.find(key, is_there)?.is_some())
        };
        let stream_key = self.keys.stream(name);
        self.with_stream(stream_key, name, lookup, is_it)?.unwrap_or(Ok(false))
    }

    /// Whether the event at `position`, whose id has this key, was held and is discarded.
    fn is_discarded(&self, key: u64, position: u64, lookup: &Lookup) -> Result<bool, Fault> {
        if self.counts.discarded == 0 {
            return Ok(false);
        }
        let is_it = |value| (KnownAs::discarded_at(value) == Some(position)).then_some(());
        if self.known.find(key, is_it).is_some() {
            return Ok(true);
        }
        let look = |_: &Run, item: KnownItem| is_it(item.value);
        Ok(runs::find(&lookup.runs, self.cold_below, key, look)?.is_some())
    }

    /// Whether the event `id` of `stream` is delivered.
    pub(super) fn is_delivered(
        &self,
        stream: u32,
        key: u64,
        id: &[u8],
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        // Most parents are tips, and tips need no look into the big table.
        if self.find_tip(stream, key, id, lookup)?.is_some() {
            return Ok(true);
        }
        let name = &self.streams[stream as usize].name;
        let known = self.find_known(name, key, id, lookup)?;
        Ok(matches!(known, Some(KnownAs::Delivered(_) | KnownAs::InHand(_))))
    }

    pub(super) fn find_tip(
        &self,
        stream: u32,
        key: u64,
        id: &[u8],
        lookup: &Lookup,
    ) -> Result<Option<Tip>, Fault> {
        self.streams[stream as usize].tips.find(key, |tip| {
            let is_it = self
                .record(tip.position, lookup)
                .map(|record| *EventId::of(&record, self.store_tag) == *id);
            lookup.or_by_key(is_it)
        })
    }

    /// The first parent that is not delivered, of those that stand at or behind `from` in the list of
    /// `record`, in bytes: its key, and where it stands.
    fn first_missing(
        &self,
        stream: u32,
        record: &Record<'_>,
        from: u32,
        lookup: &Lookup,
    ) -> Result<Option<(u64, u32)>, Fault> {
        let mut at = from;
        while let Some(parent) = parent_at(record, at) {
            let key = self.keys.event(self.streams[stream as usize].key, parent);
            if !self.is_delivered(stream, key, parent, lookup)? {
                return Ok(Some((key, at)));
            }
            at += 1 + parent.len() as u32;
        }
        Ok(None)
    }

    /// Number of distinct parents of `record` that are not delivered.
    fn count_missing(
        &self,
        stream: u32,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<u32, Fault> {
        let mut missing = 0;
        for (_, parent) in distinct(record) {
            let key = self.keys.event(self.streams[stream as usize].key, parent);
            missing += u32::from(!self.is_delivered(stream, key, parent, lookup)?);
        }
        Ok(missing)
    }

    /// Delivers an event whose parents are delivered.
    fn deliver(
        &mut self,
        trigger: u32,
        stream: u32,
        event: Ready,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let lineage = if record.is_chained() {
            self.chain(trigger, stream)
        } else {
            for parent in record.parents() {
                let parent_key = self.keys.event(self.streams[stream as usize].key, parent);
                if let Some(tip) = self.find_tip(stream, parent_key, parent, lookup)? {
                    self.streams[stream as usize].tips.remove(&tip);
                }
            }
            Chain::Listed
        };
        self.add_delivery(trigger, stream, event, record.position(), lineage);
        let id = EventId::of(record, self.store_tag);
        self.release_children(stream, event.key, Some((record.stream(), &id)), lookup)
    }

    pub(super) fn add_delivery(
        &mut self,
        trigger: u32,
        stream: u32,
        event: Ready,
        position: u64,
        lineage: Chain,
    ) {
        let Ready { key, slot, was_held } = event;
        let state = &mut self.streams[stream as usize];
        let local = state.delivered;
        state.tips.insert(Tip { key, local, position });
        state.delivered += 1;
        self.freshen(stream);
        let delivery = Delivery { trigger, stream, position, local, key, slot, was_held, lineage };
        self.deliveries.push(delivery);
    }

    /// Replaces all tips of the stream by the chained event that is being delivered.
    pub(super) fn chain(&mut self, trigger: u32, stream: u32) -> Chain {
        let state = &mut self.streams[stream as usize];
        let chain = match state.tips.only() {
            _ if state.tips.len() == 0 => Chain::Root,
            Some(tip) if tip.local + 1 == state.delivered => Chain::Previous,
            _ => {
                let locals = state.tips.sorted().iter().map(|tip| tip.local).collect();
                self.chains.push(ChainedOn { trigger, locals, slot: 0 });
                // No window has as many records.
                Chain::Tips(self.chains.len() as u32 - 1)
            }
        };
        state.tips.clear();
        chain
    }

    /// Lets the events that watch a parent look on for the next that is missing. `parent` has its
    /// stream and its id; none if its record cannot be read, and damage is to be passed.
    pub(super) fn release_children(
        &mut self,
        stream: u32,
        key: u64,
        parent: Option<(&[u8], &[u8])>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        if self.counts.held == 0 {
            return Ok(());
        }
        let mut released = std::mem::take(&mut self.released);
        let work = &self.work;
        let is_parent = |watch: &Watch| {
            let Some((name, id)) = parent else { return Ok(true) };
            if lookup.is_over(watch.position) {
                return Ok(false);
            }
            let is_parent = read(work, watch.position, lookup).map(|child| {
                child.stream() == name && parent_at(&child, watch.parent_at) == Some(id)
            });
            lookup.or_by_key(is_parent)
        };
        if let Some((slot, first)) = self.awaited(key).filter(|(_, first)| *first != NIL) {
            let rest = self.watches.take(first, key, is_parent, &mut released)?;
            self.known.set(slot, KnownAs::Awaited(rest).encode());
        }
        if self.cold_below > 0 {
            self.take_cold(key, is_parent, &mut released, lookup)?;
        }
        for watch in released.drain(..) {
            let is_over = self.is_discarded(watch.key, watch.position, lookup)?
                || self.forgotten > 0 && !self.is_still_held(&watch, lookup)?;
            if !is_over {
                self.look_on(stream, watch, lookup)?;
            }
        }
        self.released = released;
        Ok(())
    }

    /// Whether the event that has a watch is held. A parent that is forgotten can come again, and meets the watches of
    /// its children from the first time.
    #[cold]
    fn is_still_held(&self, watch: &Watch, lookup: &Lookup) -> Result<bool, Fault> {
        let Some(record) = lookup.or_none(self.record(watch.position, lookup))? else {
            return Ok(true);
        };
        let id = EventId::of(&record, self.store_tag);
        let known = self.find_known(record.stream(), watch.key, &id, lookup)?;
        Ok(known == Some(KnownAs::Held(watch.position)))
    }

    /// Finds the next parent that a held event has to wait for, or that there is none.
    fn look_on(&mut self, stream: u32, watch: Watch, lookup: &Lookup) -> Result<(), Fault> {
        let Watch { position, key, parent_at: at } = watch;
        let missing = match lookup.or_none(self.record(position, lookup))? {
            Some(record) => {
                let watched = parent_at(&record, at).map_or(0, <[u8]>::len);
                self.first_missing(stream, &record, at + 1 + watched as u32, lookup)?
            }
            // Nobody can say what else it waits for.
            None => None,
        };
        match missing {
            Some((parent_key, parent_at)) => {
                self.watch(parent_key, Watch { position, key, parent_at });
            }
            None => self.ready.push(Reverse((position, key))),
        }
        Ok(())
    }

    /// Delivers held events until none is ready, the one with the smallest position first.
    fn deliver_ready(&mut self, trigger: u32, stream: u32, lookup: &Lookup) -> Result<(), Fault> {
        while let Some((position, event)) = self.take_next_ready(stream, lookup)? {
            self.deliver_held(trigger, stream, position, event, lookup)?;
        }
        Ok(())
    }

    /// The smallest position of a held event that is ready.
    #[inline]
    pub(super) fn next_ready(&self) -> Option<u64> {
        self.ready.peek().map(|Reverse((position, _))| *position)
    }

    /// Takes the held event that is ready and has the smallest position, and notes that it is delivered.
    pub(super) fn take_next_ready(
        &mut self,
        stream: u32,
        lookup: &Lookup,
    ) -> Result<Option<(u64, Ready)>, Fault> {
        let Some(Reverse((position, key))) = self.ready.pop() else { return Ok(None) };
        lookup.go_on()?;
        // One that watched two parents, of which it had found one before that was forgotten, is there twice.
        while self.ready.peek() == Some(&Reverse((position, key))) {
            self.ready.pop();
        }
        let held_as = KnownAs::Held(position).encode();
        let in_hand = KnownAs::InHand(self.deliveries.len()).encode();
        let slot = match self.known.find(key, |value| (value == held_as).then_some(())) {
            Some((slot, ())) => {
                self.known.set(slot, in_hand);
                slot
            }
            // It is in a run.
            None if self.is_delivered_at(key, position, lookup) => return Err(miscounted()),
            None => self.insert_known(key, in_hand),
        };
        let held = &mut self.streams[stream as usize].held;
        *held = held.checked_sub(1).ok_or_else(miscounted)?;
        take_from(&mut self.counts.held, 1)?;
        Ok(Some((position, Ready { key, slot: Some(slot), was_held: true })))
    }

    /// Delivers an event that was held.
    pub(super) fn deliver_held(
        &mut self,
        trigger: u32,
        stream: u32,
        position: u64,
        event: Ready,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        match lookup.or_none(self.record(position, lookup))? {
            Some(record) => self.deliver(trigger, stream, event, &record, lookup),
            None => {
                // Its place stays its own, so all others keep theirs. Reading it is an error.
                self.add_delivery(trigger, stream, event, position, Chain::Listed);
                self.release_children(stream, event.key, None, lookup)
            }
        }
    }

    /// Whether memory has the event at `position` as a delivery: then it is not held, whatever a run says,
    /// and it must not set itself off once more.
    fn is_delivered_at(&self, key: u64, position: u64, lookup: &Lookup) -> bool {
        let is_there = |value| match KnownAs::decode(value) {
            KnownAs::InHand(index) => self.deliveries[index].position == position,
            KnownAs::Delivered(global) => {
                lookup.entry(global).is_ok_and(|entry| entry.position == position)
            }
            KnownAs::Held(_) | KnownAs::Discarded(..) | KnownAs::Awaited(_) => false,
        };
        self.known.find(key, |value| is_there(value).then_some(())).is_some()
    }

    /// Whether `arriving` is the event that is known already. See [`crate::reference`].
    fn is_same(
        &self,
        stream: u32,
        known: KnownAs,
        arriving: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        if let KnownAs::Delivered(global) = known
            && let Some(fact) = lookup.fact(global)?
        {
            return Ok(fact.is_same(self.keys, arriving));
        }
        let found =
            self.position_of(known, lookup).and_then(|position| self.record(position, lookup));
        let Some(record) = lookup.or_none(found)? else { return Ok(false) };
        if record.is_lost() || arriving.is_lost() {
            return Ok(true);
        }
        if record.payload() != arriving.payload() {
            return Ok(false);
        }
        if record.is_chained() && !arriving.is_chained() {
            let chained_on = self.is_chained_on(stream, known, arriving, lookup);
            return Ok(lookup.or_none(chained_on)?.unwrap_or(false));
        }
        Ok(record.is_chained() == arriving.is_chained()
            && record.parents().as_bytes() == arriving.parents().as_bytes())
    }

    /// Whether the delivered, chained event `known` was chained on the parents that `listing` lists.
    /// What this costs is in proportion to the list, however many tips there were.
    fn is_chained_on(
        &self,
        stream: u32,
        known: KnownAs,
        listing: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        let listed_count = distinct(listing).count();
        let tips = match known {
            KnownAs::Delivered(global) => lookup.chained_on_if(global, listed_count)?,
            KnownAs::InHand(index) => {
                let delivery = &self.deliveries[index];
                match delivery.lineage {
                    Chain::Listed | Chain::Root => Some(Vec::new()),
                    Chain::Previous => Some(vec![delivery.local - 1]),
                    Chain::Tips(chain) => {
                        let tips = &self.chains[chain as usize].locals;
                        (tips.len() == listed_count).then(|| tips.clone())
                    }
                }
            }
            KnownAs::Held(_) | KnownAs::Discarded(..) | KnownAs::Awaited(_) => return Ok(false),
        };
        let Some(mut tips) = tips.filter(|tips| tips.len() == listed_count) else {
            return Ok(false);
        };
        tips.sort_unstable();
        for (_, parent) in distinct(listing) {
            let state = &self.streams[stream as usize];
            let key = self.keys.event(state.key, parent);
            let local = match self.find_known(&state.name, key, parent, lookup)? {
                Some(KnownAs::Delivered(global)) => {
                    match Lookup::or_trimmed(lookup.entry(global))? {
                        Some(entry) => entry.local,
                        // It was no tip any more when the log was trimmed, and the event came later.
                        None => return Ok(false),
                    }
                }
                Some(KnownAs::InHand(index)) => self.deliveries[index].local,
                Some(KnownAs::Held(_) | KnownAs::Discarded(..) | KnownAs::Awaited(_)) | None => {
                    return Ok(false);
                }
            };
            if tips.binary_search(&local).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Says of each trigger how many deliveries it has set off. The others of `counts` belong to other partitions.
    pub(crate) fn count_deliveries(&self, counts: &[AtomicU32]) {
        for group in self.deliveries.chunk_by(|a, b| a.trigger == b.trigger) {
            // Relaxed: whoever adds them up has waited for the pool.
            counts[group[0].trigger as usize].store(group.len() as u32, Ordering::Relaxed);
        }
    }

    /// The chained events of the window that need a place in the tips log.
    pub(crate) fn chains_mut(&mut self) -> impl Iterator<Item = &mut ChainedOn> {
        self.chains.iter_mut()
    }

    /// What became of the records that were not delivered when they arrived, by their index in the
    /// window, if it was asked for.
    pub(crate) fn take_setbacks(&mut self) -> Vec<(u32, Placement)> {
        self.setbacks.take().unwrap_or_default()
    }

    /// Seals that the window has put on and taken off, in the order of the log.
    pub(crate) fn take_seals(&mut self) -> Vec<SealChange> {
        std::mem::take(&mut self.seals)
    }

    /// Positions of the events of the window that were refused.
    pub(crate) fn take_refused(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.refused_positions)
    }

    /// Keys of the streams that are sealed.
    pub(crate) fn sealed_streams(&self) -> impl Iterator<Item = u64> {
        self.sealed.iter().copied()
    }

    /// Gives every delivery of the window its global sequence: `first` plus the number of
    /// deliveries set off before its trigger, `before[trigger]`, plus its place in its group. Fills in its
    /// entry, by its distance from `first`, and returns the newest deliveries. Ends the window.
    pub(crate) fn place(
        &mut self,
        first: u64,
        before: &[u32],
        entries: &Entries,
        lookup: &Lookup,
    ) -> Result<Vec<HeadUpdate>, Fault> {
        let mut heads = Vec::new();
        let mut touched = Vec::new();
        self.reserve_known(self.deliveries.iter().filter(|one| one.slot.is_none()).count());
        let (mut group, mut in_group) = (None, 0);
        for deliveries in self.deliveries.chunks(LOOKED_UP_TOGETHER) {
            for delivery in deliveries {
                self.known.touch(delivery.key);
                std::hint::black_box(before[delivery.trigger as usize]);
            }
            for delivery in deliveries {
                in_group = if group == Some(delivery.trigger) { in_group + 1 } else { 0 };
                group = Some(delivery.trigger);
                let offset = before[delivery.trigger as usize] + in_group;
                let global = first + u64::from(offset);
                let stream = &mut self.streams[delivery.stream as usize];
                if !std::mem::replace(&mut stream.touched, true) {
                    self.stream_heap_len -= stream.heap_len();
                    touched.push((delivery.stream, stream.path.last().copied().unwrap_or(NONE)));
                }
                let (previous, jump) = stream.link(delivery.local, global, lookup)?;
                let known = KnownAs::Delivered(global).encode();
                match delivery.slot {
                    Some(slot) => self.known.set(slot, known),
                    None => drop(self.known.insert(delivery.key, known)),
                }
                let value = KnownAs::delivered_in_run(global, delivery.was_held);
                self.fresh_known.push(KnownItem { key: delivery.key, value });
                let lineage = match delivery.lineage {
                    Chain::Listed => Lineage::Listed,
                    Chain::Root => Lineage::Root,
                    Chain::Previous => Lineage::Previous,
                    Chain::Tips(chain) => Lineage::Tips(self.chains[chain as usize].slot),
                };
                let (position, local) = (delivery.position, delivery.local);
                let entry = Entry { position, local, previous, jump, lineage };
                entries.set(offset as usize, &entry.encode(global));
            }
        }
        for (index, previous) in touched {
            let stream = &mut self.streams[index as usize];
            stream.touched = false;
            self.stream_heap_len += stream.heap_len();
            let head = *stream.path.last().expect("a touched stream has a delivery");
            heads.push(HeadUpdate { stream_key: stream.key, previous, head });
        }
        self.deliveries.clear();
        if self.deliveries.capacity() > DELIVERIES_KEPT_MAX {
            self.deliveries = Vec::new();
        }
        self.chains.clear();
        Ok(heads)
    }
}

/// Reads a record, and counts that.
#[inline]
fn read<'a>(work: &Cell<Work>, position: u64, lookup: &'a Lookup) -> Result<Record<'a>, Fault> {
    let (record, verified) = lookup.record_and_cost(position)?;
    let bytes_verified = if verified { record.len() } else { 0 };
    work.update(|work| Work {
        records_read: work.records_read + 1,
        bytes_verified: work.bytes_verified + bytes_verified,
        ..work
    });
    Ok(record)
}

/// A delivery in the making.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    /// Key of the event's id.
    pub(super) key: u64,
    /// Where it stands in `known`; nothing if nobody can ask for it before the window ends.
    pub(super) slot: Option<usize>,
    pub(super) was_held: bool,
}

/// Ids of a stream's tips, in the order of their delivery.
pub(super) fn tip_ids(
    stream: &Stream,
    store_tag: u32,
    lookup: &Lookup,
) -> Result<Vec<Vec<u8>>, Fault> {
    let tips = stream.tips.sorted().into_iter().map(|tip| {
        let record = lookup.record(tip.position)?;
        Ok(EventId::of(&record, store_tag).to_vec())
    });
    tips.collect()
}

/// Takes from a count that comes from a checkpoint, which a run can contradict.
fn take_from(count: &mut u64, less: u64) -> Result<(), Fault> {
    *count = count.checked_sub(less).ok_or_else(miscounted)?;
    Ok(())
}

/// The checkpoint counts something else than what its runs have.
fn miscounted() -> Fault {
    DamagedRun { file: thalweg_wal::name::checkpoint().to_owned(), offset: 0 }.into()
}

/// The listed parents of a record, each once, with the place of its first mention in the list, in
/// bytes.
pub(crate) fn distinct<'a>(record: &Record<'a>) -> impl Iterator<Item = (u32, &'a [u8])> {
    let parents = record.parents();
    let mut seen_few: Vec<&[u8]> = Vec::new();
    let mut seen_many: HashSet<&[u8], std::hash::RandomState> = HashSet::default();
    let many = parents.size_hint().1.is_some_and(|count| count > FEW_PARENTS);
    let mut next_at = 0;
    parents.filter_map(move |parent| {
        let at = next_at;
        next_at += 1 + parent.len() as u32;
        let new = if many {
            seen_many.insert(parent)
        } else {
            let new = !seen_few.contains(&parent);
            if new {
                seen_few.push(parent);
            }
            new
        };
        new.then_some((at, parent))
    })
}

/// The parent that stands at this place in the list of a record, in bytes: without a walk over
/// the list, since an event with many missing parents asks for each of them.
pub(crate) fn parent_at<'a>(record: &Record<'a>, at: u32) -> Option<&'a [u8]> {
    let (&len, rest) = record.parents().as_bytes().get(at as usize..)?.split_first()?;
    rest.get(..usize::from(len))
}
