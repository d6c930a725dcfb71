//! The serial machine, begun where a trimmed log begins. Whoever begins it learns whether the base fits together: what
//! the state counts, what its runs say, and the records that are kept have to agree.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks;
use crate::derived::order_log::{NONE, ORDER, TIPS};
use crate::derived::run::{DamagedRun, KnownItem, WatchItem};
use crate::event::EventId;
use crate::open::tag_of;
use crate::order::cold::{for_each_stream, held_positions};
use crate::order::keys::PARTITION_COUNT;
use crate::order::partition::{KnownAs, Partition, PartitionCounts};
use crate::order::tips::Tip;
use crate::pipeline::lookup::{Fault, LongRecords, Lookup};
use crate::reference::{SerialEvent, SerialMachine, SerialRecord, Trimmed};
use crate::sync::Arc;
use crate::trimmed::base::{Base, Horizon, Wrong};
use crate::verify::serial_record;

/// A machine at the beginning of a log.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    pub(crate) machine: SerialMachine,
    /// Of each stream with deliveries, the way back of its skip list: their local and global sequences, newest first.
    pub(crate) ways: HashMap<Vec<u8>, Vec<(u64, u64)>>,
}

/// A stream as the base has it.
struct Kept {
    name: Vec<u8>,
    key: u64,
    delivered: u64,
    held: u64,
    sealed: bool,
    tips: Vec<Tip>,
    head: Option<u64>,
}

impl Base {
    /// The serial machine at the beginning of the log. Verifies everything that is kept, says what is damaged or does
    /// not fit together, and goes on if that is possible.
    pub(crate) fn begin(self: &Arc<Self>, wrong: &mut dyn FnMut(Wrong)) -> Option<Begun> {
        let mut is_whole = true;
        self.verify(&mut |damaged| {
            is_whole = false;
            wrong(damaged);
        });
        if !is_whole {
            return None;
        }
        let begun = self.begin_verified(&mut |detail| wrong(Wrong::base(detail)));
        begun.map_err(|fault| wrong(fault.into())).ok()
    }

    fn begin_verified(self: &Arc<Self>, wrong: &mut dyn FnMut(String)) -> Result<Begun, Fault> {
        let tag = tag_of(&self.checkpoint.store_id);
        let partition = |index| self.checkpoint.partition(index, self.keys, tag);
        let partitions: Vec<Partition> = (0..PARTITION_COUNT).map(partition).collect();
        let lookup = self.lookup();
        let mut streams = Vec::new();
        for_each_stream(&partitions, &lookup, |stream| {
            streams.push(Kept {
                name: stream.name.to_vec(),
                key: stream.key,
                delivered: stream.delivered,
                held: u64::from(stream.held),
                sealed: stream.sealed,
                tips: stream.tips.sorted(),
                head: stream.path.last().copied(),
            });
        })?;
        streams.retain(|stream| stream.sealed || stream.delivered + stream.held > 0);
        let first = self.frontier().global;
        let Checkpoint { forgotten, cursors, .. } = &self.checkpoint;
        let machine = SerialMachine::begin(first, *forgotten, cursors.clone());
        let mut begun = Begun { machine, ways: HashMap::new() };
        for stream in &streams {
            self.begin_stream(stream, tag, &mut begun, wrong)?;
        }
        for (name, &first) in &self.checkpoint.firsts {
            begun.machine.begin_readers(name, first);
        }
        let watched = self.watched()?;
        for record in self.all_held() {
            // As many parents are before that one, in bytes.
            let at = watched.get(&record.position()).copied().unwrap_or(0);
            let before = |index: &usize| {
                record.parents().take(*index).map(|parent| 1 + parent.len()).sum::<usize>() < at
            };
            let waits_for = (0..).take_while(before).count();
            let serial = serial_record(&record, &self.checkpoint.store_id);
            if let SerialRecord::Event(event) = serial {
                let is_lost = record.is_lost();
                begun.machine.begin_held(record.position(), event, waits_for, is_lost);
            }
        }
        self.compare_held(&held_positions(&partitions, &lookup)?, wrong);
        self.compare_counts(&streams, &begun.machine, wrong);
        self.compare_known(wrong)?;
        Ok(begun)
    }

    /// By the position of a held event, where the parent that it watches stands in its list, in bytes.
    fn watched(&self) -> Result<HashMap<u64, usize>, DamagedRun> {
        let mut watched = HashMap::new();
        for run in &self.runs {
            for item in run.items::<WatchItem>(0) {
                let item = item?;
                // Events only look on: the last is what counts.
                let at = watched.entry(item.position).or_insert(0);
                *at = (*at).max(item.parent_at as usize);
            }
        }
        Ok(watched)
    }

    /// Sees what the base has, and nothing of the log.
    fn lookup(self: &Arc<Self>) -> Lookup {
        let nothing = thalweg_wal::storage::MemoryStorage::new();
        let empty = |layout| {
            let opened = chunks::open_to_read(layout, &[0; 16], &nothing, (0, 0));
            opened.expect("nothing has to be opened").reader()
        };
        Lookup {
            segments: Arc::default(),
            order: empty(ORDER),
            tips: empty(TIPS),
            runs: Arc::new(self.runs.clone()),
            horizon: Horizon::new(Arc::new(vec![Arc::clone(self)])),
            verified_from: 0,
            skip_damage: false,
            in_flight: Default::default(),
            long_records: Arc::new(LongRecords::new()),
            ending: None,
        }
    }

    fn begin_stream(
        self: &Arc<Self>,
        stream: &Kept,
        tag: u32,
        begun: &mut Begun,
        wrong: &mut dyn FnMut(String),
    ) -> Result<(), Fault> {
        let shown = stream.name.escape_ascii();
        let mut tips = BTreeMap::new();
        for tip in &stream.tips {
            let Some(record) = self.tip(&stream.name, tip.local) else {
                wrong(format!("tip {} of stream {shown} is not kept", tip.local));
                continue;
            };
            let id = EventId::of(&record, tag);
            let global = self.global_of(&stream.name, &id)?;
            let entry = global.and_then(|global| self.entry(global));
            let place = entry.map(|entry| (entry.position, entry.local));
            let is_sound = record.position() == tip.position
                && place == Some((tip.position, tip.local))
                && self.fact_at(tip.position) == global.and_then(|global| self.fact_of(global));
            if !is_sound {
                wrong(format!("tip {} of stream {shown} is another event", tip.local));
            }
            tips.insert(tip.local, id.to_vec());
        }
        if let Some(head) = stream.head {
            match self.way_back(head, stream.delivered) {
                Some(way) => drop(begun.ways.insert(stream.name.clone(), way)),
                None => wrong(format!("the way back in stream {shown} leads nowhere")),
            }
        }
        if self.keys.stream(&stream.name) != stream.key {
            wrong(format!("stream {shown} has the key of another"));
        }
        let trimmed: std::sync::Arc<dyn Trimmed> = Arc::clone(self) as _;
        begun.machine.begin_stream(&stream.name, stream.delivered, tips, stream.sealed, &trimmed);
        Ok(())
    }

    /// Local and global sequences of the deliveries that the links of `head`, the last of `delivered`, lead back to.
    fn way_back(&self, head: u64, delivered: u64) -> Option<Vec<(u64, u64)>> {
        let mut way = Vec::new();
        let (mut local, mut global) = (delivered.checked_sub(1)?, head);
        loop {
            let entry = self.entry(global).filter(|entry| entry.local == local)?;
            way.push((local, global));
            if local == 0 {
                return (entry.jump == NONE).then_some(way);
            }
            if entry.jump >= global {
                return None;
            }
            (local, global) = (local & (local - 1), entry.jump);
        }
    }

    fn compare_held(&self, by_runs: &[u64], wrong: &mut dyn FnMut(String)) {
        let kept: Vec<u64> = self.all_held().map(|record| record.position()).collect();
        if kept != by_runs {
            let (kept, held) = (kept.len(), by_runs.len());
            wrong(format!("{kept} held events are kept, and the state has others, {held} of them"));
        }
    }

    fn compare_counts(
        &self,
        streams: &[Kept],
        machine: &SerialMachine,
        wrong: &mut dyn FnMut(String),
    ) {
        let found = machine.stream_counts();
        for Kept { name, delivered, held, sealed, tips, .. } in streams {
            let counts = (*delivered, *held, tips.len() as u64, *sealed);
            let found = found.get(name.as_slice()).copied().unwrap_or_default();
            if counts != found {
                let name = name.escape_ascii();
                wrong(format!(
                    "stream {name} counts delivered, held, tips and seal {counts:?}, not {found:?}"
                ));
            }
        }
        let sum = |count: fn(&Kept) -> u64| streams.iter().map(count).sum::<u64>();
        let counted = |count: fn(&PartitionCounts) -> u64| {
            self.checkpoint.counts.iter().map(count).sum::<u64>()
        };
        let sums = [
            ("delivered events", sum(|stream| stream.delivered), self.frontier().global),
            ("streams", found.len() as u64, counted(|counts| counts.streams)),
            ("held events", machine.held().len() as u64, counted(|counts| counts.held)),
            (
                "sealed streams",
                sum(|stream| u64::from(stream.sealed)),
                self.checkpoint.sealed.len() as u64,
            ),
            ("tips", sum(|stream| stream.tips.len() as u64), self.all_tips().count() as u64),
        ];
        for (what, found, counted) in sums {
            if found != counted {
                wrong(format!("it counts {counted} {what}, and has {found}"));
            }
        }
    }

    /// Every delivery that was trimmed is known by the runs, once.
    fn compare_known(&self, wrong: &mut dyn FnMut(String)) -> Result<(), Fault> {
        let (forgotten, first) = (self.checkpoint.forgotten, self.frontier().global);
        // All from `forgotten` on were found in the facts, so this is no length from nowhere. Of what is forgotten, which
        // can be any number of events, the runs know some.
        let mut is_known = vec![false; (first - forgotten) as usize];
        let mut older = HashSet::new();
        for run in &self.runs {
            for item in run.items::<KnownItem>(0) {
                let KnownAs::Delivered(global) = KnownAs::decode(item?.value) else { continue };
                if global >= first {
                    wrong(format!("it knows delivery {global}, and counts {first}"));
                    continue;
                }
                let is_new = match global.checked_sub(forgotten) {
                    Some(index) => !std::mem::replace(&mut is_known[index as usize], true),
                    None => older.insert(global),
                };
                if !is_new {
                    wrong(format!("it knows delivery {global} twice"));
                }
            }
        }
        let mut tips = self.forgotten_tips();
        let missing = (forgotten..).zip(&is_known).find(|(_, is_known)| !**is_known);
        let missing = tips.find(|tip| !older.contains(tip)).or(missing.map(|(global, _)| global));
        if let Some(global) = missing {
            wrong(format!("it does not know delivery {global}"));
        }
        Ok(())
    }
}

impl Trimmed for Base {
    fn global(&self, stream: &[u8], id: &[u8]) -> Option<u64> {
        // Whoever begins a machine has verified what this looks at.
        self.global_of(stream, id).ok().flatten()
    }

    fn is_same(&self, event: &SerialEvent) -> Option<bool> {
        let global = self.global_of(&event.stream, &event.id).ok()??;
        let digest = u128::from_le_bytes(event.payload.as_slice().try_into().ok()?);
        let listed = event.parents.as_ref();
        let listed = listed.map(|listed| listed.iter().map(Vec::as_slice).collect());
        Some(self.fact_of(global)?.has(self.keys, digest, listed))
    }
}
