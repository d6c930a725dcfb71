//! Finding a record by its position, and a delivered event by its global sequence.

use std::collections::VecDeque;

use thalweg_wal::{Damage, Record, Segment};

use crate::derived::chunks::{self, ChunkReader};
use crate::derived::order_log::{self, Entry, Lineage, NONE};
use crate::derived::run::{DamagedRun, KnownItem, Run};
use crate::derived::runs;
use crate::error::ReadError;
use crate::event::EventId;
use crate::order::window::Ordered;
use crate::pipeline::core::Ending;
use crate::sync::{Arc, AtomicU64, List, Ordering, Snapshot};
use crate::trimmed::Horizon;
use crate::trimmed::facts::{FACTS, Fact};

/// All segments of the log, in order. The writer adds one before it publishes anything in it.
pub(crate) type Segments = List<Arc<Segment>>;
/// The segments there were at some moment.
pub(crate) type SegmentList = Snapshot<Arc<Segment>>;

/// All runs of the state, oldest first. The keeper changes the list when a run is durable.
pub(crate) type Runs = List<Arc<Run>>;
/// The runs there were at some moment.
pub(crate) type RunList = Snapshot<Arc<Run>>;

/// The segment of `list` that holds `position`: the last that does not begin after it.
#[inline]
pub(crate) fn segment_at(list: &[Arc<Segment>], position: u64) -> Option<&Arc<Segment>> {
    let after = list.partition_point(|segment| segment.base() <= position);
    list.get(after.checked_sub(1)?)
}

/// Something that a lookup needs is not what was written.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Log(Damage),
    Order(order_log::Damaged),
    Run(DamagedRun),
    /// It was trimmed: deliveries before this one are.
    Trimmed(u64),
    /// The store closes, and what was begun takes too long to be finished.
    GivenUp,
}

impl From<Damage> for Fault {
    fn from(damage: Damage) -> Self {
        Fault::Log(damage)
    }
}

impl From<order_log::Damaged> for Fault {
    fn from(damaged: order_log::Damaged) -> Self {
        Fault::Order(damaged)
    }
}

impl From<DamagedRun> for Fault {
    fn from(damaged: DamagedRun) -> Self {
        Fault::Run(damaged)
    }
}

impl From<Fault> for ReadError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Log(damage) => ReadError::Damage(damage),
            Fault::Order(damaged) => ReadError::Order { global: damaged.global },
            Fault::Run(DamagedRun { file, offset }) => ReadError::Run { file, offset },
            Fault::Trimmed(first) => ReadError::Trimmed { first },
            Fault::GivenUp => ReadError::Closed,
        }
    }
}

/// Calls `visit` for every item of an id with this key in the runs that have something from before `below`, and then in
/// those of what was trimmed, until it returns something.
#[inline]
pub(crate) fn find_known<T>(
    lookup: &Lookup,
    below: u64,
    key: u64,
    mut visit: impl FnMut(&Run, KnownItem) -> Option<T>,
) -> Result<Option<T>, DamagedRun> {
    let found = runs::find(&lookup.runs, below, key, &mut visit)?;
    match lookup.horizon.base() {
        Some(base) if found.is_none() => runs::find(&base.runs, u64::MAX, key, visit),
        _ => Ok(found),
    }
}

/// A record of at least this many bytes is worth remembering that it was verified.
const LONG_RECORD_LEN: u64 = 4096;

/// Positions of some long records that were verified: many events may name the same one, and each asks
/// for its id.
#[derive(Debug)]
pub(crate) struct LongRecords([AtomicU64; 64]);

impl LongRecords {
    pub(crate) fn new() -> Self {
        LongRecords(std::array::from_fn(|_| AtomicU64::new(u64::MAX)))
    }

    fn place(&self, position: u64) -> &AtomicU64 {
        let hash = position.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        &self.0[(hash >> 58) as usize]
    }

    fn has(&self, position: u64) -> bool {
        // Relaxed: the bytes were published before anybody could name them, and never change.
        self.place(position).load(Ordering::Relaxed) == position
    }

    fn add(&self, position: u64) {
        self.place(position).store(position, Ordering::Relaxed);
    }
}

/// A view of the log and of the order, refreshed once per window or read and never per event.
#[derive(Debug, Clone)]
pub(crate) struct Lookup {
    pub(crate) segments: SegmentList,
    pub(crate) order: ChunkReader,
    pub(crate) tips: ChunkReader,
    /// The runs, oldest first.
    pub(crate) runs: RunList,
    /// Where the log begins, and what is kept of what was before.
    pub(crate) horizon: Horizon,
    /// Records from here on have had their checksums verified by this process.
    pub(crate) verified_from: u64,
    /// Go on past what is damaged, as a store that is open for reading does.
    pub(crate) skip_damage: bool,
    /// Windows that are ordered and perhaps not yet in the order log, oldest first.
    pub(crate) in_flight: VecDeque<Arc<Ordered>>,
    /// Long records that have had their checksums verified by this process.
    pub(crate) long_records: Arc<LongRecords>,
    /// Says when to give up what takes long, to whoever does such things.
    pub(crate) ending: Option<Arc<Ending>>,
}

impl Lookup {
    /// Nothing instead of the fault that it was trimmed: whoever goes through candidates that share a key comes by
    /// what is long over.
    pub(crate) fn or_trimmed<T>(found: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(Fault::Trimmed(_)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Lets go of all files. There is nothing to be found any more.
    pub(crate) fn let_go(&mut self) {
        self.segments = SegmentList::default();
        self.order.let_go();
        self.tips.let_go();
        self.runs = RunList::default();
        self.horizon = Horizon::default();
    }

    /// What a position before the log has that is kept.
    #[cold]
    fn record_kept(&self, position: u64) -> Result<Record<'_>, Fault> {
        let kept = self.horizon.base().and_then(|base| base.record(position));
        kept.ok_or(Fault::Trimmed(self.horizon.first))
    }

    /// The entry of a delivery that was trimmed, if it is kept.
    #[cold]
    fn entry_kept(&self, global: u64) -> Result<Entry, Fault> {
        let kept = self.horizon.base().and_then(|base| base.entry(global));
        kept.ok_or(Fault::Trimmed(self.horizon.first))
    }

    /// What is kept of a delivery; nothing if it was not trimmed, and its record tells everything.
    #[inline]
    pub(crate) fn fact(&self, global: u64) -> Result<Option<Fact>, Fault> {
        if global >= self.horizon.first {
            return Ok(None);
        }
        self.fact_kept(global).map(Some)
    }

    #[cold]
    fn fact_kept(&self, global: u64) -> Result<Fact, Fault> {
        let kept = self.horizon.base().and_then(|base| base.fact_of(global));
        kept.ok_or_else(|| {
            let (file, offset) = chunks::place(FACTS, global);
            DamagedRun { file, offset }.into()
        })
    }

    /// Whether nothing is kept of a delivery that was trimmed: its id is forgotten.
    pub(crate) fn is_forgotten(&self, global: u64) -> bool {
        self.horizon.base().is_some_and(|base| {
            global < base.checkpoint.forgotten && base.fact_of(global).is_none()
        })
    }

    /// Whether a held event at this position is over, whatever a run says: it is before the log, and not kept.
    pub(crate) fn is_over(&self, position: u64) -> bool {
        position < self.horizon.position
            && self.horizon.base().is_none_or(|base| base.held(position).is_none())
    }

    /// Whether a record is the one that its key says, if it can be compared. Where damage is to be
    /// passed, a record that cannot be read is taken at its key: a wrong guess is as rare as two ids
    /// with one key, and the rest of its stream is served with the numbers that it had.
    pub(crate) fn or_by_key(&self, is_it: Result<bool, Fault>) -> Result<bool, Fault> {
        Ok(self.or_none(is_it)?.unwrap_or(true))
    }

    /// Nothing instead of a fault, where damage is to be passed.
    pub(crate) fn or_none<T>(&self, found: Result<T, Fault>) -> Result<Option<T>, Fault> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(_) if self.skip_damage => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// An error if what was begun is not to be finished.
    #[inline]
    pub(crate) fn go_on(&self) -> Result<(), Fault> {
        match &self.ending {
            Some(ending) if ending.is_overdue() => Err(Fault::GivenUp),
            _ => Ok(()),
        }
    }

    fn segment(&self, position: u64) -> Result<&Segment, Damage> {
        match segment_at(&self.segments, position) {
            Some(segment) if position < segment.limit() => Ok(segment),
            Some(_) | None => Err(no_segment(position)),
        }
    }

    /// Has the processor fetch the beginning of a record.
    #[inline]
    pub(crate) fn touch_record(&self, position: u64) {
        if let Some(segment) = segment_at(&self.segments, position) {
            segment.touch(position);
        }
    }

    /// A record of the window in hand, which a scanner has just verified.
    #[inline]
    pub(crate) fn record_in_window(&self, position: u64) -> Result<Record<'_>, Fault> {
        Ok(self.segment(position)?.record_verified_before(position)?)
    }

    /// Any record.
    #[inline]
    pub(crate) fn record(&self, position: u64) -> Result<Record<'_>, Fault> {
        Ok(self.record_and_cost(position)?.0)
    }

    /// Any record, and whether it had to be verified.
    #[inline]
    pub(crate) fn record_and_cost(&self, position: u64) -> Result<(Record<'_>, bool), Fault> {
        if position < self.horizon.position {
            return Ok((self.record_kept(position)?, false));
        }
        let segment = self.segment(position)?;
        if position >= self.verified_from {
            return Ok((segment.record_verified_before(position)?, false));
        }
        let record = segment.record_verified_before(position)?;
        let is_long = record.len() >= LONG_RECORD_LEN;
        if is_long && self.long_records.has(position) {
            return Ok((record, false));
        }
        let record = segment.record(position)?;
        if is_long {
            self.long_records.add(position);
        }
        Ok((record, true))
    }

    /// The entry of a delivered event.
    #[inline]
    pub(crate) fn entry(&self, global: u64) -> Result<Entry, Fault> {
        if global < self.horizon.first {
            return self.entry_kept(global);
        }
        match self.in_flight.front() {
            Some(oldest) if global >= oldest.first.global => {
                let index = self.in_flight.partition_point(|window| window.first.global <= global);
                let window = &self.in_flight[index - 1];
                window.entry(global).ok_or(order_log::Damaged { global }.into())
            }
            _ => Ok(order_log::entry(&self.order, global)?),
        }
    }

    /// Local sequences of the tips that a chained event was chained on, if they are so many: if not, they
    /// are not collected.
    pub(crate) fn chained_on_if(
        &self,
        global: u64,
        count: usize,
    ) -> Result<Option<Vec<u64>>, Fault> {
        if let Lineage::Tips(item) = self.entry(global)?.lineage
            && self.tip_count(item, global)? != count as u64
        {
            return Ok(None);
        }
        self.chained_on(global).map(Some)
    }

    fn tip_count(&self, item: u64, global: u64) -> Result<u64, Fault> {
        for window in &self.in_flight {
            if item >= window.first.tips && item < window.next().tips {
                return Ok(window.tips[(item - window.first.tips) as usize]);
            }
        }
        Ok(order_log::tip_count(&self.tips, item, global)?)
    }

    /// Ids of the events that a chained event of `stream` was chained on.
    pub(crate) fn chained_on_ids(
        &self,
        global: u64,
        stream: &[u8],
        store_tag: u32,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        let locals = self.chained_on(global)?;
        let id = |local: u64| {
            let record = match Self::or_trimmed(self.seek(global, local))? {
                Some((_, entry)) => self.record(entry.position)?,
                // It was a tip when the log was trimmed: it was one before, and here it still is.
                None => {
                    let kept = self.horizon.base().and_then(|base| base.tip(stream, local));
                    kept.ok_or(Fault::Trimmed(self.horizon.first))?
                }
            };
            Ok(EventId::of(&record, store_tag).to_vec())
        };
        locals.into_iter().map(id).collect()
    }

    /// Local sequences of the tips that a chained event was chained on.
    pub(crate) fn chained_on(&self, global: u64) -> Result<Vec<u64>, Fault> {
        let entry = self.entry(global)?;
        match entry.lineage {
            Lineage::Listed | Lineage::Root => Ok(Vec::new()),
            Lineage::Previous => Ok(vec![entry.local.saturating_sub(1)]),
            Lineage::Tips(item) => self.tip_list(item, global),
            Lineage::Unlisted => Err(order_log::Damaged { global }.into()),
        }
    }

    fn tip_list(&self, item: u64, global: u64) -> Result<Vec<u64>, Fault> {
        for window in &self.in_flight {
            if item >= window.first.tips && item < window.next().tips {
                let at = (item - window.first.tips) as usize;
                let count = window.tips[at] as usize;
                return Ok(window.tips[at + 1..at + 1 + count].to_vec());
            }
        }
        Ok(order_log::tip_list(&self.tips, item, global)?)
    }

    /// The first delivery at or behind the global sequence `from`, of the stream whose delivery `head` is not
    /// before `from`. As with [`Lookup::seek`], links never lead forwards.
    pub(crate) fn seek_global(&self, head: u64, from: u64) -> Result<Entry, Fault> {
        let mut global = head;
        let mut entry = self.entry(global)?;
        while entry.previous != NONE && entry.previous >= from {
            let next = if entry.jump >= from { entry.jump } else { entry.previous };
            let earlier = self.entry(next)?;
            if next >= global || earlier.local >= entry.local {
                return Err(order_log::Damaged { global }.into());
            }
            (global, entry) = (next, earlier);
        }
        Ok(entry)
    }

    /// The delivery at `local` of the stream whose delivery `from` is not earlier.
    pub(crate) fn seek(&self, from: u64, local: u64) -> Result<(u64, Entry), Fault> {
        let mut global = from;
        let mut entry = self.entry(global)?;
        while entry.local > local {
            let skipped_to = entry.local & (entry.local - 1);
            let next = if skipped_to >= local { entry.jump } else { entry.previous };
            if next == NONE && global < self.horizon.first {
                // Of what was trimmed, only the jumps are kept.
                return Err(Fault::Trimmed(self.horizon.first));
            }
            let earlier = self.entry(next)?;
            if next >= global || earlier.local >= entry.local {
                return Err(order_log::Damaged { global }.into());
            }
            (global, entry) = (next, earlier);
        }
        if entry.local == local {
            Ok((global, entry))
        } else {
            Err(order_log::Damaged { global }.into())
        }
    }
}

/// The order points outside the log, or to a segment that is not there.
fn no_segment(position: u64) -> Damage {
    Damage {
        segment: 0,
        file: String::from("the log"),
        offset: 0,
        position,
        resumes: position,
        fault: thalweg_wal::format::Fault::Missing,
    }
}
