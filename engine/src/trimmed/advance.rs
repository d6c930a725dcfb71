//! From one base to the next: the machine is run once more, over what is going to be trimmed.
//!
//! It begins with the state that the base has, orders the segments that are to go, and ends with the state where the
//! log is to begin. So the new base is what the machine makes of the log, by the code that makes everything else of
//! it, and not something that was kept beside it. On the way it comes to the order that there is, entry by entry, or
//! nothing is trimmed.

use thalweg_wal::storage::Storage;
use thalweg_wal::{Segment, TrimPoint, name};

use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks::ChunkWriter;
use crate::derived::order_log::NONE;
use crate::derived::run::{Extent, Run};
use crate::derived::runs::{self, BuildError, Fresh};
use crate::error::ReadError;
use crate::event::EventId;
use crate::order::cold::{for_each_stream, held_positions};
use crate::order::cursors::Cursors;
use crate::order::keys::PARTITION_COUNT;
use crate::order::partition::{KnownAs, Partition};
use crate::order::stream::Stream;
use crate::order::window::{self, Frontier, Ordered, Scan, Window};
use crate::pipeline::core::Core;
use crate::pipeline::keeper::build_run;
use crate::pipeline::lookup::{Fault, Lookup};
use crate::pipeline::scanner;
use crate::sync::Arc;
use crate::trim::TrimError;
use crate::trimmed::base::{Base, BaseBuilder};
use crate::trimmed::facts::{FACTS, Fact};

/// So much of the log is ordered at once.
const WINDOW_BYTES: u64 = 16 << 20;
/// The state is written to a run, and forgotten, when it takes this much memory.
const MEMORY_MAX: usize = 64 << 20;

/// Makes the base for a log that begins with `to`, which follows what is ordered and in a checkpoint, and returns it:
/// the store is trimmed then. `go_on` is asked once a window.
pub(crate) fn advance(
    core: &Core,
    store_id: [u8; 16],
    to: &Segment,
    go_on: &dyn Fn(u64) -> bool,
) -> Result<Arc<Base>, TrimError> {
    let point = TrimPoint::before(to).expect("what is trimmed stands before a later segment");
    advance_to(core, core.lookup(), &core.storage, store_id, (to.base(), point), go_on)
}

/// As [`advance`], for a log in `storage`, which has the files of the base that `lookup` goes on from, and begins at
/// `point`: what is before are the segments that `lookup` sees, up to `end`.
pub(crate) fn advance_to(
    core: &Core,
    lookup: Lookup,
    storage: &Arc<dyn Storage>,
    store_id: [u8; 16],
    (end, point): (u64, TrimPoint),
    go_on: &dyn Fn(u64) -> bool,
) -> Result<Arc<Base>, TrimError> {
    let mut machine = Machine::new(core, lookup, storage, store_id)?;
    let segments = Arc::clone(&machine.lookup.segments);
    for segment in segments.iter().filter(|segment| segment.base() < end) {
        machine.enter(segment);
        let mut from = segment.first().max(machine.reached);
        let segment_end = segment.end().min(end);
        while from < segment_end {
            let end = segment.cut(from, WINDOW_BYTES).min(segment_end);
            if core.is_stopping() || !go_on(from) {
                return Err(TrimError::Interrupted);
            }
            machine.order(segment, from, end)?;
            from = end;
        }
    }
    machine.finish(point)
}

/// The machine over what is going to be trimmed.
struct Machine<'a> {
    core: &'a Core,
    /// Where the base is.
    storage: Arc<dyn Storage>,
    store_id: [u8; 16],
    base: Option<Arc<Base>>,
    partitions: Vec<Partition>,
    cursors: Cursors,
    frontier: Frontier,
    /// Ids of deliveries before this one are forgotten.
    forgotten: u64,
    /// How far the log is ordered.
    reached: u64,
    /// Sees the order that there is, and the machine's own runs.
    lookup: Lookup,
    runs: Vec<Arc<Run>>,
    /// Number of the next run, and where it begins.
    next_run: (u64, u64),
    facts: ChunkWriter,
}

impl<'a> Machine<'a> {
    fn new(
        core: &'a Core,
        lookup: Lookup,
        storage: &Arc<dyn Storage>,
        store_id: [u8; 16],
    ) -> Result<Self, TrimError> {
        let base = lookup.horizon.base().cloned();
        let state = base.as_ref().map(|base| &base.checkpoint);
        let partition = |index: usize| match state {
            Some(state) => state.partition(index, core.keys, core.store_tag),
            None => Partition::new(core.keys, core.store_tag),
        };
        let partitions = (0..PARTITION_COUNT).map(partition).collect();
        let cursors =
            Cursors::new(state.map_or_else(Default::default, |state| state.cursors.clone()));
        let (frontier, reached) =
            state.map_or_else(Default::default, |state| (state.frontier, state.ordered));
        let forgotten = state.map_or(0, |state| state.forgotten);
        let runs = base.as_ref().map_or_else(Vec::new, |base| base.runs.clone());
        // What an attempt that failed has left is written again: of a sync that has failed nobody knows what it has left.
        let facts = ChunkWriter::open_to_rewrite(
            FACTS,
            store_id,
            &**storage,
            Arc::clone(storage),
            (forgotten, frontier.global),
        );
        let facts = facts.map_err(TrimError::io("opening the facts of what was trimmed"))?;
        let names = storage.list().map_err(TrimError::io("listing the store's directory"))?;
        let numbers = names.iter().filter_map(|other| match name::kind(other) {
            name::Kind::FactsRun(number) => Some(number),
            _ => None,
        });
        let lookup = Lookup {
            runs: Arc::new(runs.clone()),
            // What comes is verified before it is looked at.
            verified_from: reached,
            skip_damage: false,
            ending: Some(Arc::clone(&core.ending)),
            ..lookup
        };
        debug_assert_eq!(lookup.horizon.position, reached);
        let next_run = (numbers.max().map_or(1, |newest| newest + 1), reached);
        Ok(Machine {
            core,
            storage: Arc::clone(storage),
            store_id,
            base,
            partitions,
            cursors,
            frontier,
            forgotten,
            reached,
            lookup,
            runs,
            next_run,
            facts,
        })
    }

    /// Forgets what the segment says, at its beginning.
    fn enter(&mut self, segment: &Segment) {
        if self.reached > segment.first() {
            return;
        }
        self.forgotten = segment.forgotten().min(self.frontier.global).max(self.forgotten);
        self.partitions.iter_mut().for_each(|partition| partition.forgotten = self.forgotten);
    }

    /// Orders a part of a segment that follows what is ordered.
    fn order(&mut self, segment: &Segment, from: u64, to: u64) -> Result<(), TrimError> {
        let (keys, tag) = (self.core.keys, self.core.store_tag);
        let mut scan = Scan::default();
        let damage = scanner::verify(segment, from, to, keys, tag, &mut scan);
        if let Some(damage) = damage.into_iter().next() {
            return Err(TrimError::Read(ReadError::Damage(damage)));
        }
        let mut window = Window::default();
        window.push(scan.split());
        let (first, lookup) = (self.frontier, &self.lookup);
        let (partitions, cursors) = (&mut self.partitions, &mut self.cursors);
        let ordered =
            window::order(partitions, cursors, &window, first, lookup, false, false, None)?;
        self.compare(&ordered)?;
        self.add_facts(&ordered)?;
        self.frontier = ordered.next();
        self.reached = to;
        if self.partitions.iter().map(Partition::memory_len).sum::<usize>() > MEMORY_MAX {
            self.write_run(to)?;
            self.partitions.iter_mut().for_each(|partition| partition.forget(to));
        }
        Ok(())
    }

    /// What the machine came to is what readers have seen.
    fn compare(&self, ordered: &Ordered) -> Result<(), TrimError> {
        for global in ordered.first.global..ordered.next().global {
            if Some(self.lookup.entry(global)?) != ordered.entry(global) {
                return Err(TrimError::Read(ReadError::Order { global }));
            }
        }
        Ok(())
    }

    fn add_facts(&mut self, ordered: &Ordered) -> Result<(), TrimError> {
        let mut facts = Vec::new();
        let (keys, tag) = (self.core.keys, self.core.store_tag);
        for global in ordered.first.global..ordered.next().global {
            let entry = self.lookup.entry(global)?;
            let record = self.lookup.record(entry.position)?;
            let id = EventId::of(&record, tag);
            let chained_on = match record.is_chained() {
                true => self.lookup.chained_on_ids(global, record.stream(), tag)?,
                false => Vec::new(),
            };
            Fact::of(keys, &record, &id, &chained_on).encode(global, &mut facts);
        }
        self.facts.append(&mut &*facts).map_err(TrimError::io("writing what is kept of events"))
    }

    /// Writes what has changed since the last run, and makes few runs of many.
    fn write_run(&mut self, to: u64) -> Result<(), TrimError> {
        let mut fresh = Fresh::default();
        self.partitions.iter_mut().for_each(|partition| fresh.append(partition.take_fresh()));
        if !fresh.is_empty() {
            fresh.sort();
            let from = self.next_run.1;
            let run = self.build(from, to, &fresh, &[])?;
            self.runs.push(run);
            self.next_run.1 = to;
        }
        loop {
            let counts: Vec<u64> = self.runs.iter().map(|run| run.item_count()).collect();
            let Some(due) = runs::due_for_merge(&counts) else { break };
            let neighbours = self.runs[due.clone()].to_vec();
            let (first, last) = (neighbours[0].extent, neighbours[neighbours.len() - 1].extent);
            let merged = self.build(first.from, last.to, &Fresh::default(), &neighbours)?;
            self.runs.splice(due, [merged]);
        }
        self.lookup.runs = Arc::new(self.runs.clone());
        Ok(())
    }

    fn build(
        &mut self,
        from: u64,
        to: u64,
        fresh: &Fresh,
        neighbours: &[Arc<Run>],
    ) -> Result<Arc<Run>, TrimError> {
        let extent = Extent { number: self.next_run.0, from, to };
        self.next_run.0 += 1;
        let truth = (self.core.keys, self.core.store_tag);
        let is_stopping = || self.core.is_stopping();
        // A tip that is forgotten otherwise was one at the base before, too.
        let is_lost = |global| {
            let base = self.base.as_ref();
            global < self.forgotten
                && base.is_some_and(|base| {
                    global < base.frontier().global && base.entry(global).is_none()
                })
        };
        let run = build_run(
            &*self.storage,
            self.store_id,
            name::facts_run,
            extent,
            fresh,
            neighbours,
            &self.lookup,
            truth,
            self.forgotten.max(self.lookup.horizon.first),
            &is_lost,
            &is_stopping,
        );
        run.map_err(|error| match error {
            BuildError::Damaged(damaged) => Fault::from(damaged).into(),
            BuildError::Io(_) if self.core.is_stopping() => TrimError::Interrupted,
            BuildError::Io(error) => TrimError::io("writing what is kept of the order")(error),
        })
    }

    /// Makes what the machine has come to the base of a log that begins at `point`.
    fn finish(mut self, point: TrimPoint) -> Result<Arc<Base>, TrimError> {
        let position = point.position;
        self.write_run(position)?;
        let base = self.collect()?;
        let sync = |file: &Arc<thalweg_wal::storage::MappedFile>| file.sync();
        let storage = &*self.storage;
        let synced = self.facts.take_unsynced().iter().try_for_each(sync);
        synced.map_err(TrimError::io("syncing what is kept"))?;
        storage.sync_dir().map_err(TrimError::unknown)?;
        let checkpoint = Checkpoint {
            store_id: self.store_id,
            ordered: position,
            frontier: self.frontier,
            log_end: position,
            closed: false,
            forgotten: self.forgotten,
            counts: self.partitions.iter().map(|partition| partition.counts).collect(),
            sealed: self.partitions.iter().flat_map(Partition::sealed_streams).collect(),
            cursors: self.cursors.at().clone(),
            firsts: crate::open::firsts(&self.partitions),
            runs: self.runs.iter().map(|run| run.extent.number).collect(),
        };
        let writing = TrimError::io("writing where the log begins");
        let written = base.write(storage, point, &checkpoint).map_err(writing)?;
        if let Some(cause) = self.core.cause() {
            return Err(TrimError::Read(ReadError::Poisoned(cause.clone())));
        }
        written.finish().map_err(TrimError::unknown)?;
        let opened = Base::open(storage, &self.store_id)?;
        Ok(opened.expect("it was just written"))
    }

    /// The records that are still looked at, and the entries that links lead to.
    fn collect(&self) -> Result<BaseBuilder, TrimError> {
        let mut builder = BaseBuilder::default();
        for position in held_positions(&self.partitions, &self.lookup)? {
            builder.held(&self.lookup.record(position)?);
        }
        let mut failed = None;
        for_each_stream(&self.partitions, &self.lookup, |stream| {
            if failed.is_none() {
                failed = self.keep_stream(stream, &mut builder).err();
            }
        })?;
        failed.map_or(Ok(builder), |fault| Err(fault.into()))
    }

    fn keep_stream(&self, stream: &Stream, builder: &mut BaseBuilder) -> Result<(), Fault> {
        let mut next = stream.path.last().copied().unwrap_or(NONE);
        while next != NONE {
            let entry = self.lookup.entry(next)?;
            builder.entry(next, &entry);
            // Links lead back.
            next = if entry.jump < next { entry.jump } else { NONE };
        }
        let partition = &self.partitions[crate::order::keys::partition_of(stream.key)];
        for tip in stream.tips.sorted() {
            let record = self.lookup.record(tip.position)?;
            let id = EventId::of(&record, partition.store_tag);
            let known = partition.find_known(&stream.name, tip.key, &id, &self.lookup)?;
            let Some(KnownAs::Delivered(global)) = known else {
                return Err(Fault::Trimmed(self.frontier.global));
            };
            builder.entry(global, &self.lookup.entry(global)?);
            let older = self.base.as_ref().and_then(|base| base.fact_at(tip.position));
            let fact = match older {
                Some(fact) => fact,
                None => {
                    let reader = self.facts.shared().reader();
                    let fact = reader.item(global).and_then(|bytes| Fact::decode(global, bytes));
                    fact.ok_or(Fault::Trimmed(self.frontier.global))?
                }
            };
            builder.tip(&record, stream.key, tip.local, &fact);
        }
        Ok(())
    }
}
