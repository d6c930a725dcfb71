//! The machine of one partition: the serial machine, run over the partition's share of a window.
//!
//! A partition owns its streams. Parents never cross streams, so it needs nobody else to decide
//! what is delivered and in which sequence; the only thing it cannot know is how many deliveries
//! of other partitions come before its own. It therefore works in two steps: [`Partition::order`]
//! finds the groups `(trigger, deliveries)` of a window, and [`Partition::place`], once the prefix sum
//! over all triggers is known, gives each delivery its global sequence.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::{HashSet, HashTable};
use thalweg_wal::{Record, RecordKind};

use crate::derived::order_log::{Entry, Lineage, NONE};
use crate::event::{EventId, Placement, Rejection};
use crate::order::held::{Held, HeldNode};
use crate::order::keys::Keys;
use crate::order::known::{SharedTable, Table};
use crate::order::tips::{Tip, Tips};
use crate::pipeline::lookup::{Fault, Lookup};
use crate::sync::Arc;

/// Records whose places in the table of known events are fetched at once.
const LOOKED_UP_TOGETHER: usize = 16;
/// More parents than this are told apart through a set.
const FEW_PARENTS: usize = 16;

/// Ids of tips that the rejections of a partition in one window may name, in bytes. Many events can
/// be rejected for a stream with many tips, and each of them names all of these.
const NAMED_TIPS_BYTES: usize = 16 << 20;

/// A record of a window, as a scanner hands it over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scanned {
    /// Place of the record in the window, from 0.
    pub(crate) index: u32,
    /// Position of the record in the log.
    pub(crate) position: u64,
    /// Key of its stream.
    pub(crate) stream_key: u64,
    /// Key of its id.
    pub(crate) key: u64,
}

/// A delivery that has its place in its stream, and not yet in the store.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    /// Index in the window of the record that set it off.
    trigger: u32,
    stream: u32,
    position: u64,
    local: u64,
    /// Where the event stands in `known`.
    slot: usize,
    lineage: Chain,
}

/// Where the parents of a delivery are written down.
#[derive(Debug, Clone, Copy)]
enum Chain {
    /// In its record.
    Listed,
    /// It was chained while the stream had no tip.
    Root,
    /// It was chained on the event delivered before it.
    Previous,
    /// It was chained on the tips in this element of `chains`.
    Tips(usize),
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

/// Events that were not delivered, since the store was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SetbackCounts {
    pub(crate) duplicates: u64,
    pub(crate) conflicts: u64,
    pub(crate) rejected: u64,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) key: u64,
    pub(crate) name: Box<[u8]>,
    /// Number of delivered events.
    pub(crate) delivered: u64,
    /// Number of held events.
    pub(crate) held: u32,
    /// Whether the stream takes no events.
    pub(crate) sealed: bool,
    /// Whether the window in hand has delivered to the stream.
    touched: bool,
    pub(crate) tips: Tips,
    /// Global sequences of the deliveries whose local sequences are the newest one and what is left
    /// of it as its lowest set bits are cleared one by one: the way back of the skip list.
    pub(crate) path: Vec<u64>,
}

impl Stream {
    fn new(key: u64, name: &[u8]) -> Self {
        Stream {
            key,
            name: name.into(),
            delivered: 0,
            held: 0,
            sealed: false,
            touched: false,
            tips: Tips::default(),
            path: Vec::new(),
        }
    }

    /// A stream as a checkpoint has it.
    pub(crate) fn restore(
        key: u64,
        name: &[u8],
        delivered: u64,
        held: u32,
        sealed: bool,
        tips: impl IntoIterator<Item = Tip>,
        path: Vec<u64>,
    ) -> Self {
        let mut stream = Stream { delivered, held, sealed, path, ..Stream::new(key, name) };
        for tip in tips {
            stream.tips.insert(tip);
        }
        stream
    }

    /// Whether there is anything to say of the stream. One that has only seen rejected events has
    /// nothing to show.
    pub(crate) fn is_there(&self) -> bool {
        self.sealed || self.delivered + u64::from(self.held) > 0
    }

    /// Appends a delivery to the skip list; returns its links back.
    fn link(&mut self, local: u64, global: u64) -> (u64, u64) {
        let previous = self.path.last().copied().unwrap_or(NONE);
        if local > 0 {
            let cleared = local.trailing_zeros() as usize;
            self.path.truncate(self.path.len() - cleared);
        }
        let jump = self.path.last().copied().unwrap_or(NONE);
        self.path.push(global);
        (previous, jump)
    }
}

/// What `known` says of an id. The two upper bits tell the kinds apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KnownAs {
    /// Delivered, with its global sequence.
    Delivered(u64),
    /// Delivered by the window in hand: index in the partition's deliveries.
    InHand(usize),
    /// Held: index of its node.
    Held(u32),
}

impl KnownAs {
    const IN_HAND: u64 = 1 << 63;
    const HELD: u64 = 3 << 62;

    #[inline]
    pub(crate) fn encode(self) -> u64 {
        match self {
            KnownAs::Delivered(global) => global,
            KnownAs::InHand(index) => Self::IN_HAND | index as u64,
            KnownAs::Held(node) => Self::HELD | u64::from(node),
        }
    }

    #[inline]
    pub(crate) fn decode(value: u64) -> Self {
        match value >> 62 {
            2 => KnownAs::InHand((value & !Self::HELD) as usize),
            3 => KnownAs::Held((value & !Self::HELD) as u32),
            _ => KnownAs::Delivered(value),
        }
    }
}

/// One partition of the streams.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) keys: Keys,
    pub(crate) store_tag: u32,
    pub(crate) streams: Vec<Stream>,
    /// Streams that are there: see [`Stream::is_there`].
    pub(crate) stream_count: u64,
    stream_index: HashTable<u32>,
    pub(crate) known: Table,
    pub(crate) held: Held,
    pub(crate) setback_counts: SetbackCounts,
    deliveries: Vec<Delivery>,
    /// What became of the records that were not delivered when they arrived, by their index in the
    /// window; only if somebody wants to know.
    setbacks: Option<Vec<(u32, Placement)>>,
    named_tips_bytes: usize,
    seals: Vec<SealChange>,
    /// End and stream of the newest event that was refused. Only the record that begins there asks,
    /// so it is never taken back, and there is nothing to remember from one frame to the next.
    refused: Option<(u64, u32)>,
    chains: Vec<ChainedOn>,
    ready: BinaryHeap<Reverse<(u64, u32)>>,
    missing: Vec<(u64, u32)>,
}

impl Partition {
    pub(crate) fn new(keys: Keys, store_tag: u32) -> Self {
        Self::restore(
            keys,
            store_tag,
            Vec::new(),
            Table::default(),
            Held::default(),
            SetbackCounts::default(),
        )
    }

    /// A partition as a checkpoint has it.
    pub(crate) fn restore(
        keys: Keys,
        store_tag: u32,
        streams: Vec<Stream>,
        known: Table,
        held: Held,
        setback_counts: SetbackCounts,
    ) -> Self {
        let mut stream_index = HashTable::with_capacity(streams.len());
        for (index, stream) in streams.iter().enumerate() {
            stream_index
                .insert_unique(stream.key, index as u32, |&index| streams[index as usize].key);
        }
        Partition {
            keys,
            store_tag,
            stream_count: streams.iter().filter(|stream| stream.is_there()).count() as u64,
            streams,
            stream_index,
            known,
            held,
            setback_counts,
            deliveries: Vec::new(),
            setbacks: None,
            named_tips_bytes: 0,
            seals: Vec::new(),
            refused: None,
            chains: Vec::new(),
            ready: BinaryHeap::new(),
            missing: Vec::new(),
        }
    }

    /// The readers' side of the known ids.
    pub(crate) fn shared_known(&self) -> Arc<SharedTable> {
        self.known.shared()
    }

    /// Runs the machine over the partition's records of a window, in the order of the log.
    ///
    /// After an error the partition is in the middle of an event and must not be used again.
    pub(crate) fn order(
        &mut self,
        records: &[Scanned],
        lookup: &Lookup,
        with_placements: bool,
    ) -> Result<(), Fault> {
        debug_assert!(self.deliveries.is_empty() && self.seals.is_empty());
        self.setbacks = with_placements.then(Vec::new);
        self.named_tips_bytes = 0;
        // Slots stay where they are until the window is placed.
        self.known.reserve(records.len());
        records.chunks(LOOKED_UP_TOGETHER).try_for_each(|records| {
            lookup.go_on()?;
            // The table is larger than any cache: the processor gets these slots side by side, where
            // the machine below would wait for each.
            records.iter().for_each(|scanned| self.known.touch(scanned.key));
            records.iter().try_for_each(|scanned| self.arrive(scanned, lookup))
        })
    }

    fn arrive(&mut self, scanned: &Scanned, lookup: &Lookup) -> Result<(), Fault> {
        let record = lookup.record_in_window(scanned.position)?;
        let stream = self.stream_of(scanned.stream_key, record.stream());
        // What arrives delivers and holds events of its own stream only.
        self.stream_count -= u64::from(self.streams[stream as usize].is_there());
        match record.kind() {
            RecordKind::Event => self.arrive_event(scanned, stream, &record, lookup)?,
            RecordKind::Seal => {
                self.set_sealed(stream, true);
                let next = self.streams[stream as usize].delivered;
                self.set_back(scanned.index, Placement::Sealed { next });
            }
            RecordKind::Unseal => {
                self.set_sealed(stream, false);
                self.set_back(scanned.index, Placement::Unsealed);
            }
        }
        self.stream_count += u64::from(self.streams[stream as usize].is_there());
        Ok(())
    }

    fn set_sealed(&mut self, stream: u32, sealed: bool) {
        let state = &mut self.streams[stream as usize];
        if std::mem::replace(&mut state.sealed, sealed) != sealed {
            self.seals.push(SealChange { stream_key: state.key, sealed });
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
        if let Some(known) = self.find_known(stream, scanned.key, &id, lookup)? {
            if self.is_same(stream, known, record, lookup)? {
                self.setback_counts.duplicates += 1;
                self.set_back(scanned.index, Placement::Duplicate);
            } else {
                self.setback_counts.conflicts += 1;
                self.refused = Some((end, stream));
                self.set_back(scanned.index, Placement::Conflict);
            }
            return Ok(());
        }
        if let Some(reason) = self.rejection(stream, record, lookup)? {
            self.setback_counts.rejected += 1;
            self.refused = Some((end, stream));
            if self.setbacks.is_some() {
                let tips = self.named_tips(stream, lookup)?;
                self.set_back(scanned.index, Placement::Rejected { reason, tips });
            }
            return Ok(());
        }
        let missing = self.missing.len() as u32;
        if missing == 0 {
            let known_as = KnownAs::InHand(self.deliveries.len()).encode();
            let slot = self.known.insert(scanned.key, known_as);
            self.deliver(scanned.index, stream, scanned.key, slot, record, lookup)?;
            return self.deliver_ready(scanned.index, lookup);
        }
        let node = HeldNode { position: scanned.position, key: scanned.key, stream, missing };
        let node = self.held.hold(node, &self.missing);
        self.known.insert(scanned.key, KnownAs::Held(node).encode());
        self.streams[stream as usize].held += 1;
        self.set_back(scanned.index, Placement::Held { missing });
        Ok(())
    }

    fn set_back(&mut self, index: u32, placement: Placement) {
        if let Some(setbacks) = &mut self.setbacks {
            setbacks.push((index, placement));
        }
    }

    /// Why an event that is not known is not taken, if it is not. See [`crate::reference`]. Fills
    /// `missing` for an event that is.
    fn rejection(
        &mut self,
        stream: u32,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<Option<Rejection>, Fault> {
        let Stream { sealed, delivered, .. } = self.streams[stream as usize];
        if record.is_with_previous() && self.refused == Some((record.position(), stream)) {
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
        self.find_missing(stream, record, lookup)?;
        let missing = self.missing.len() as u32;
        let has_condition =
            record.requires_parents() || record.is_if_tips() || record.if_local().is_some();
        Ok((has_condition && missing > 0).then_some(Rejection::Parents { missing }))
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
    pub(crate) fn tip_ids(&self, stream: u32, lookup: &Lookup) -> Result<Vec<Vec<u8>>, Fault> {
        let tips = self.streams[stream as usize].tips.sorted().into_iter().map(|tip| {
            let record = lookup.record(tip.position)?;
            Ok(EventId::of(&record, self.store_tag).to_vec())
        });
        tips.collect()
    }

    /// Index of the stream with this name.
    pub(crate) fn find_stream(&self, key: u64, name: &[u8]) -> Option<u32> {
        let is_it = |&index: &u32| {
            let stream = &self.streams[index as usize];
            stream.key == key && *stream.name == *name
        };
        self.stream_index.find(key, is_it).copied()
    }

    fn stream_of(&mut self, key: u64, name: &[u8]) -> u32 {
        if let Some(index) = self.find_stream(key, name) {
            return index;
        }
        let index = u32::try_from(self.streams.len()).expect("fewer than 2^38 streams in a store");
        self.streams.push(Stream::new(key, name));
        let streams = &self.streams;
        self.stream_index.insert_unique(key, index, |&index| streams[index as usize].key);
        index
    }

    /// Position of a known event.
    fn position_of(&self, known: KnownAs, lookup: &Lookup) -> Result<u64, Fault> {
        match known {
            KnownAs::Delivered(global) => Ok(lookup.entry(global)?.position),
            KnownAs::InHand(index) => Ok(self.deliveries[index].position),
            KnownAs::Held(node) => Ok(self.held.node(node).position),
        }
    }

    /// What is known of `id` in `stream`.
    pub(crate) fn find_known(
        &self,
        stream: u32,
        key: u64,
        id: &[u8],
        lookup: &Lookup,
    ) -> Result<Option<KnownAs>, Fault> {
        let name = &self.streams[stream as usize].name;
        let found = self.known.find(key, |value| {
            let known = KnownAs::decode(value);
            let is_it = self.position_of(known, lookup).and_then(|position| {
                let record = lookup.record(position)?;
                let other = EventId::of(&record, self.store_tag);
                Ok(*record.stream() == **name && *other == *id)
            });
            match lookup.or_by_key(is_it) {
                Ok(true) => Some(Ok(known)),
                Ok(false) => None,
                Err(fault) => Some(Err(fault)),
            }
        });
        found.map(|(_, known)| known).transpose()
    }

    /// Whether the event `id` of `stream` is delivered.
    pub(crate) fn is_delivered(
        &self,
        stream: u32,
        id: &[u8],
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        let state = &self.streams[stream as usize];
        let key = self.keys.event(state.key, id);
        // Most parents are tips, and tips need no look into the big table.
        if self.find_tip(stream, key, id, lookup)?.is_some() {
            return Ok(true);
        }
        let known = self.find_known(stream, key, id, lookup)?;
        Ok(matches!(known, Some(KnownAs::Delivered(_) | KnownAs::InHand(_))))
    }

    fn find_tip(
        &self,
        stream: u32,
        key: u64,
        id: &[u8],
        lookup: &Lookup,
    ) -> Result<Option<Tip>, Fault> {
        self.streams[stream as usize].tips.find(key, |tip| {
            let is_it = lookup
                .record(tip.position)
                .map(|record| *EventId::of(&record, self.store_tag) == *id);
            lookup.or_by_key(is_it)
        })
    }

    /// Fills `missing` with the distinct parents of `record` that are not delivered.
    fn find_missing(
        &mut self,
        stream: u32,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let mut missing = std::mem::take(&mut self.missing);
        missing.clear();
        for (at, parent) in distinct(record) {
            if !self.is_delivered(stream, parent, lookup)? {
                let key = self.keys.event(self.streams[stream as usize].key, parent);
                missing.push((key, at));
            }
        }
        self.missing = missing;
        Ok(())
    }

    /// Delivers an event whose parents are delivered.
    fn deliver(
        &mut self,
        trigger: u32,
        stream: u32,
        key: u64,
        slot: usize,
        record: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let local = self.streams[stream as usize].delivered;
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
        let position = record.position();
        let state = &mut self.streams[stream as usize];
        state.tips.insert(Tip { key, local, position });
        state.delivered += 1;
        self.deliveries.push(Delivery { trigger, stream, position, local, slot, lineage });
        self.release_children(key, record, lookup)
    }

    /// Replaces all tips of the stream by the chained event that is being delivered.
    fn chain(&mut self, trigger: u32, stream: u32) -> Chain {
        let state = &mut self.streams[stream as usize];
        let chain = match state.tips.only() {
            _ if state.tips.len() == 0 => Chain::Root,
            Some(tip) if tip.local + 1 == state.delivered => Chain::Previous,
            _ => {
                let locals = state.tips.sorted().iter().map(|tip| tip.local).collect();
                self.chains.push(ChainedOn { trigger, locals, slot: 0 });
                Chain::Tips(self.chains.len() - 1)
            }
        };
        state.tips.clear();
        chain
    }

    fn release_children(
        &mut self,
        key: u64,
        parent: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let id = EventId::of(parent, self.store_tag);
        let ready = &mut self.ready;
        self.held.release(
            key,
            |child, at| {
                let is_parent = lookup.record(child.position).map(|child| {
                    child.stream() == parent.stream() && parent_at(&child, at) == Some(&*id)
                });
                lookup.or_by_key(is_parent)
            },
            |node, child| ready.push(Reverse((child.position, node))),
        )
    }

    /// Delivers held events until none is ready, the one with the smallest position first.
    fn deliver_ready(&mut self, trigger: u32, lookup: &Lookup) -> Result<(), Fault> {
        while let Some(Reverse((position, node))) = self.ready.pop() {
            lookup.go_on()?;
            let HeldNode { key, stream, .. } = *self.held.node(node);
            let held_as = KnownAs::Held(node).encode();
            let (slot, ()) = self
                .known
                .find(key, |value| (value == held_as).then_some(()))
                .expect("a held event is known");
            self.known.set(slot, KnownAs::InHand(self.deliveries.len()).encode());
            self.held.remove(node);
            self.streams[stream as usize].held -= 1;
            match lookup.or_none(lookup.record(position))? {
                Some(record) => self.deliver(trigger, stream, key, slot, &record, lookup)?,
                None => self.deliver_unread(trigger, stream, key, slot, position)?,
            }
        }
        Ok(())
    }

    /// Delivers a held event whose record is damaged, where damage is to be passed: its place stays
    /// its own, so all others keep theirs. Reading it is an error.
    fn deliver_unread(
        &mut self,
        trigger: u32,
        stream: u32,
        key: u64,
        slot: usize,
        position: u64,
    ) -> Result<(), Fault> {
        let state = &mut self.streams[stream as usize];
        let local = state.delivered;
        state.tips.insert(Tip { key, local, position });
        state.delivered += 1;
        let lineage = Chain::Listed;
        self.deliveries.push(Delivery { trigger, stream, position, local, slot, lineage });
        let ready = &mut self.ready;
        let by_key = |_: &HeldNode, _| Ok(true);
        self.held.release(key, by_key, |node, child| ready.push(Reverse((child.position, node))))
    }

    /// Whether `arriving` is the event that is known already. See [`crate::reference`].
    fn is_same(
        &self,
        stream: u32,
        known: KnownAs,
        arriving: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        let found = self.position_of(known, lookup).and_then(|position| lookup.record(position));
        let Some(record) = lookup.or_none(found)? else { return Ok(false) };
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
    fn is_chained_on(
        &self,
        stream: u32,
        known: KnownAs,
        listing: &Record<'_>,
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        let locals = match known {
            KnownAs::Delivered(global) => lookup.chained_on(global)?,
            KnownAs::InHand(index) => {
                let delivery = &self.deliveries[index];
                match delivery.lineage {
                    Chain::Listed | Chain::Root => Vec::new(),
                    Chain::Previous => vec![delivery.local - 1],
                    Chain::Tips(chain) => self.chains[chain].locals.clone(),
                }
            }
            KnownAs::Held(_) => return Ok(false),
        };
        let mut tips = HashSet::with_hasher(std::hash::RandomState::new());
        for local in locals {
            let record = lookup.record(self.position_of_local(stream, local, lookup)?)?;
            tips.insert(EventId::of(&record, self.store_tag).to_vec());
        }
        let mut listed = 0;
        for (_, parent) in distinct(listing) {
            if !tips.contains(parent) {
                return Ok(false);
            }
            listed += 1;
        }
        Ok(listed == tips.len())
    }

    /// Position of the delivered event at `local` of the stream, also of the window in hand.
    fn position_of_local(&self, stream: u32, local: u64, lookup: &Lookup) -> Result<u64, Fault> {
        let in_hand = self
            .deliveries
            .iter()
            .rev()
            .find(|delivery| delivery.stream == stream && delivery.local == local);
        if let Some(delivery) = in_hand {
            return Ok(delivery.position);
        }
        let head = *self.streams[stream as usize].path.last().expect("the stream has deliveries");
        let (_, entry) = lookup.seek(head, local)?;
        Ok(entry.position)
    }

    /// Adds to `counts`, by trigger, how many deliveries the partition found.
    pub(crate) fn count_deliveries(&self, counts: &mut [u32]) {
        for delivery in &self.deliveries {
            counts[delivery.trigger as usize] += 1;
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

    /// Keys of the streams that are sealed.
    pub(crate) fn sealed_streams(&self) -> impl Iterator<Item = u64> {
        self.streams.iter().filter(|stream| stream.sealed).map(|stream| stream.key)
    }

    /// Gives every delivery of the window its global sequence: `first` plus the number of
    /// deliveries set off before its trigger, `before[trigger]`, plus its place in its group.
    /// Ends the window.
    pub(crate) fn place(&mut self, first: u64, before: &[u32]) -> Placed {
        let mut placed =
            Placed { entries: Vec::with_capacity(self.deliveries.len()), heads: Vec::new() };
        let mut touched = Vec::new();
        let (mut group, mut in_group) = (None, 0);
        for delivery in &self.deliveries {
            in_group = if group == Some(delivery.trigger) { in_group + 1 } else { 0 };
            group = Some(delivery.trigger);
            let offset = before[delivery.trigger as usize] + in_group;
            let global = first + u64::from(offset);
            let stream = &mut self.streams[delivery.stream as usize];
            if !std::mem::replace(&mut stream.touched, true) {
                touched.push((delivery.stream, stream.path.last().copied().unwrap_or(NONE)));
            }
            let (previous, jump) = stream.link(delivery.local, global);
            self.known.set(delivery.slot, KnownAs::Delivered(global).encode());
            let lineage = match delivery.lineage {
                Chain::Listed => Lineage::Listed,
                Chain::Root => Lineage::Root,
                Chain::Previous => Lineage::Previous,
                Chain::Tips(chain) => Lineage::Tips(self.chains[chain].slot),
            };
            let (position, local) = (delivery.position, delivery.local);
            placed.entries.push((offset, Entry { position, local, previous, jump, lineage }));
        }
        for (index, previous) in touched {
            let stream = &mut self.streams[index as usize];
            stream.touched = false;
            let head = *stream.path.last().expect("a touched stream has a delivery");
            placed.heads.push(HeadUpdate { stream_key: stream.key, previous, head });
        }
        self.deliveries.clear();
        self.chains.clear();
        placed
    }
}

/// A partition's part of an ordered window.
#[derive(Debug)]
pub(crate) struct Placed {
    /// Entries, each with its distance from the first global sequence of the window.
    pub(crate) entries: Vec<(u32, Entry)>,
    pub(crate) heads: Vec<HeadUpdate>,
}

/// The listed parents of a record, each once, with the place of its first mention in the list, in
/// bytes.
fn distinct<'a>(record: &Record<'a>) -> impl Iterator<Item = (u32, &'a [u8])> {
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
