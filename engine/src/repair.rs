//! Making a damaged store whole again, with every number as it was.
//!
//! What cannot be read any more is written down as lost, with what stands in for it: of each delivery, its
//! stream, its id, and parents that bring it to its place in the order. So the order stays a function of the
//! log, and comes to the same numbers for everything else, in this machine and in a rebuild.
//!
//! What the lost records were is known from the *evidence*: the order log says where each delivery stood and
//! which came before it in its stream, the runs have the keys of ids, events that are whole name their
//! parents, and damaged bytes still say something. None of it is believed untested. The serial machine
//! is run over the repaired log before anything is changed, and has to come to the order that the evidence
//! has. Where it does not, or where there is no evidence, a repair would give events other numbers than
//! readers may have seen, and is refused unless that is accepted.
//!
//! Where the beginning of the log was trimmed, all this begins with what is kept of it. That itself cannot be
//! repaired: nothing else says what it says.
//!
//! It takes memory for all that was delivered and not trimmed: as much as [`verify`](crate::verify), and 48 bytes for
//! each delivery.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use thalweg_wal::storage::Storage;
use thalweg_wal::{
    Damage, LossBuilder, Losses, Record, RecordKind, Stretch, Substitute, Survey, Unverified,
    WriteLock, name,
};

use crate::backup;
use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks::{self, item_of};
use crate::derived::order_log::{self, Entry, Lineage, NONE, ORDER, TIPS};
use crate::derived::run::{KnownItem, Run, WatchItem};
use crate::error::OpenError;
use crate::event::{EventId, Rejection};
use crate::observe::trace;
use crate::open::{directory, io_error, is_of, probe, tag_of};
use crate::order::keys::Keys;
use crate::order::partition::KnownAs;
use crate::order::window::Frontier;
use crate::reference::{Arrival, SerialMachine, SerialRecord};
use crate::sync::Arc;
use crate::trimmed::{self, Base, Begun, Wrong};
use crate::verify::{arrive, serial_record};

/// How often the order is tried again with something more that a lost record may have been.
const ATTEMPTS_MAX: usize = 64;
/// Bytes that a substitute stands for, where nobody asks where the record ended.
const PLACE_LEN: u64 = 8;

/// How a store is repaired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairOptions {
    /// Change nothing, and only report.
    pub dry_run: bool,
    /// Go on where it cannot be shown that all events keep their numbers.
    pub accept_renumbering: bool,
}

impl RepairOptions {
    /// A repair that is done, and keeps all numbers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes nothing, and only reports.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Goes on where it cannot be shown that all events keep their numbers.
    pub fn accept_renumbering(mut self, accept: bool) -> Self {
        self.accept_renumbering = accept;
        self
    }
}

/// A delivered event that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostEvent {
    /// Its global sequence, which it keeps.
    pub global: u64,
    /// Its place in its stream, which it keeps.
    pub local: u64,
    /// Position of its record.
    pub position: u64,
    /// Name of its stream; made up if nothing says it.
    pub stream: Vec<u8>,
    /// Its id, if it is known.
    pub id: Option<Vec<u8>>,
    /// How its id is known.
    pub known_by: KnownBy,
}

/// A cursor that is not where it was, since a mark is lost, or an event for which a mark was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MovedCursor {
    /// Its name.
    pub name: Vec<u8>,
    /// Where the newest checkpoint has it; nothing if it was not there.
    pub was: Option<u64>,
    /// Where the repaired log has it; nothing if it is not there any more.
    pub at: Option<u64>,
}

/// How the id of a lost event is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KnownBy {
    /// A hash of it, or an event that names it and nothing else that it can mean.
    Proof,
    /// Bytes that are damaged somewhere.
    DamagedBytes,
    /// It is the one of several that fits.
    Inference,
    /// It is not known.
    Nothing,
}

/// Why it is not known that all events keep their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unproven {
    /// Something is lost of which no evidence tells what the order made of it.
    NoEvidence {
        /// Up to this position the order is known.
        known_to: u64,
        /// The first position that is lost behind it.
        lost_from: u64,
    },
    /// With what is known of the lost events, the order comes out otherwise.
    Contradiction {
        /// First global sequence at which it does.
        global: u64,
        /// Events that can be read and come to another number.
        renumbered: u64,
    },
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unproven::NoEvidence { known_to, lost_from } => write!(
                f,
                "nothing tells what was delivered of the bytes that are lost from position {lost_from} on: \
                 the order is known up to position {known_to}. Events behind them may get other numbers \
                 than they had"
            ),
            Unproven::Contradiction { global, renumbered } => write!(
                f,
                "without the lost events the order comes out otherwise from global sequence {global} on, \
                 and {renumbered} events that can be read get other numbers"
            ),
        }
    }
}

/// What a repair has found and done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// Everything that was wrong with the log.
    pub damage: Vec<Damage>,
    /// Stretches of the log, as positions, that are lost and were not known to be.
    pub lost: Vec<Range<u64>>,
    /// Delivered events in them. They keep their numbers; reading one is an error.
    pub lost_events: Vec<LostEvent>,
    /// Positions of events in them that were held. They are not held any more, and can be appended again.
    pub lost_held: Vec<u64>,
    /// Whole records that were refused, for a reason that is lost, and stay so.
    pub kept_refused: u64,
    /// Seals put on and taken off again in place of lost ones.
    pub seals: u64,
    /// Discards in place of lost ones. One that is lost, and of which nothing in the order tells, leaves its event
    /// held.
    pub discards: u64,
    /// Cursors that are not where the newest checkpoint has them. Of marks that are lost behind it nothing is
    /// known.
    pub cursors: Vec<MovedCursor>,
    /// Why it is not known that all events keep their numbers; nothing if they do.
    pub unproven: Option<Unproven>,
    /// Something was changed, or would be if this were no dry run.
    pub is_needed: bool,
    /// The log is whole now, but for what is recorded as lost.
    pub is_done: bool,
    /// Folder in the store's directory with what was replaced, and with this report.
    pub quarantine: Option<String>,
    /// Bytes that earlier repairs have recorded as lost.
    pub lost_before: u64,
}

/// Repairs the store in the directory `path`: makes its log whole where it is damaged, where segments are
/// missing, cut, renamed or not its own, and records what is lost. Nothing that can be read is given
/// up, and all that is replaced is kept in a folder in the directory.
///
/// Takes the lock, so no writer may have the store open; readers may. It can be cut short at any point and
/// be called again; on a store that needs no repair it changes nothing. A backup that is repaired is a store from
/// then on, as one that is opened for writing is. The derived files are not touched:
/// the next opening for writing makes them again if anything new is lost, which takes as long as ordering
/// the whole log.
///
/// # Errors
///
/// As for [`Options::open`](crate::Options::open), but not for damage; a report that is not
/// [done](RepairReport::is_done) is no error. Damage to what is kept of trimmed events is one, and nothing is
/// changed then: it can only be put back.
pub fn repair(path: impl AsRef<Path>, options: &RepairOptions) -> Result<RepairReport, OpenError> {
    repair_on(Arc::new(directory(path.as_ref(), false)?), options)
}

/// As [`repair`], on any storage.
///
/// # Errors
///
/// As for [`repair`].
pub fn repair_on(
    storage: Arc<dyn Storage>,
    options: &RepairOptions,
) -> Result<RepairReport, OpenError> {
    let _span = trace::repairing(&*storage);
    probe(&*storage, false)?;
    let _lock = WriteLock::acquire(&*storage)?;
    let checkpoint = Checkpoint::read(&*storage)?;
    let hint = checkpoint.as_ref().and_then(|checkpoint| checkpoint.tail_hint(&*storage));
    let first_look = Survey::open(&*storage, hint, &[])?;
    let store_id = first_look.store_id;
    let checkpoint = checkpoint.filter(|checkpoint| is_of(&checkpoint.store_id, &store_id));
    let start = Start::open(&*storage, &store_id)?;
    let evidence = Evidence::read(&*storage, &store_id, checkpoint, start.base.as_ref());
    let delivered = evidence.delivered(&|global| global < evidence.certain());
    let mut survey = match delivered.is_empty() {
        true => first_look,
        false => Survey::open(&*storage, hint, &delivered)?,
    };
    if !survey.is_whole() {
        // Something is lost, so what the order log has behind the checkpoint tells of more: it is written when
        // the log is durable. In a log that is whole it may be what a buffered store has lost.
        let delivered = evidence.delivered(&|_| true);
        survey = Survey::open(&*storage, hint, &delivered)?;
    }
    let mut report = RepairReport {
        damage: survey.damage.clone(),
        lost_before: survey.losses.as_ref().map_or(0, |losses| losses.lost_len()),
        is_needed: !survey.is_whole(),
        ..RepairReport::default()
    };
    if !report.is_needed {
        report.is_done = true;
        return Ok(report);
    }
    let stretches = survey.stretches()?;
    report.lost = stretches.iter().map(|stretch| stretch.from..stretch.to).collect();
    let mut repair = Repair::new(&survey, evidence, &stretches, &start)?;
    let losses = repair.find_losses(&mut report)?;
    if options.dry_run || (report.unproven.is_some() && !options.accept_renumbering) {
        return Ok(report);
    }
    backup::forget(&*storage).map_err(io_error("removing the manifest of a backup"))?;
    report.is_done = true;
    let text = report.to_json();
    let folder = survey.mend(&*storage, &losses, text.as_bytes())?;
    report.quarantine = Some(folder);
    Ok(report)
}

/// What a repair begins with, where the log does.
#[derive(Debug)]
struct Start {
    /// What is kept of what was trimmed.
    base: Option<Arc<Base>>,
    begun: Begun,
    /// Names of the streams that had deliveries, by the global sequence of the last.
    heads: HashMap<u64, Vec<u8>>,
}

impl Start {
    /// Verifies all of it.
    fn open(storage: &dyn Storage, store_id: &[u8; 16]) -> Result<Self, OpenError> {
        let refused = |wrong: Wrong| wrong.refusal(storage);
        let Some(base) = Base::open(storage, store_id)? else {
            return match trimmed::missing(storage) {
                Some(wrong) => Err(refused(wrong)),
                None => Ok(Start { base: None, begun: Begun::default(), heads: HashMap::new() }),
            };
        };
        let mut first_wrong = None;
        let begun = base.begin(&mut |wrong| {
            first_wrong.get_or_insert(wrong);
        });
        match (begun, first_wrong) {
            (_, Some(wrong)) => Err(refused(wrong)),
            (begun, None) => {
                let begun = begun.unwrap_or_default();
                let ways = begun.ways.iter();
                let heads = ways.filter_map(|(name, way)| Some((way.first()?.1, name.clone())));
                let heads = heads.collect();
                Ok(Start { base: Some(base), begun, heads })
            }
        }
    }

    /// Whether the event was delivered and trimmed.
    fn is_trimmed(&self, stream: &[u8], id: &[u8]) -> bool {
        let base = self.base.as_ref();
        base.is_some_and(|base| base.global_of(stream, id).is_ok_and(|global| global.is_some()))
    }
}

/// What is known of the order beside the log.
#[derive(Debug, Default)]
struct Evidence {
    /// What is kept of the deliveries before the first entry.
    base: Option<Arc<Base>>,
    /// Global sequence of the first entry.
    first: u64,
    /// Entries of the order log; nothing where one is damaged.
    entries: Vec<Option<Entry>>,
    /// Bytes of the chunks of the tips log.
    tips: Vec<Option<Vec<u8>>>,
    checkpoint: Option<Checkpoint>,
    runs: Vec<Arc<Run>>,
}

impl Evidence {
    fn read(
        storage: &dyn Storage,
        store_id: &[u8; 16],
        checkpoint: Option<Checkpoint>,
        base: Option<&Arc<Base>>,
    ) -> Self {
        let first = base.map_or_else(Frontier::default, |base| base.frontier());
        let begins = base.map_or(0, |base| base.position());
        // One of before the trim says nothing of what is left.
        let checkpoint = checkpoint.filter(|checkpoint| checkpoint.ordered >= begins);
        let base = base.cloned();
        let mut evidence = Evidence { base, first: first.global, ..Evidence::default() };
        let chunk = |layout, number| {
            let is_ours = |identity: &[u8; 16]| is_of(identity, store_id);
            chunks::read_chunk(storage, layout, number, &is_ours)
        };
        let names = storage.list().unwrap_or_default();
        let count = |kind: fn(name::Kind) -> Option<u64>| {
            names.iter().filter_map(|name| kind(name::kind(name))).max().map_or(0, |last| last + 1)
        };
        let order_of = |kind| match kind {
            name::Kind::Order(number) => Some(number),
            _ => None,
        };
        let tips_of = |kind| match kind {
            name::Kind::Tips(number) => Some(number),
            _ => None,
        };
        let begins = first.global / ORDER.chunk_items;
        for number in begins..count(order_of).min(u64::from(u32::MAX)) {
            let Some(bytes) = chunk(ORDER, number) else {
                // What is behind a chunk that is not there says nothing of the numbers in between.
                break;
            };
            for index in 0..ORDER.chunk_items {
                let global = number * ORDER.chunk_items + index;
                if global < first.global {
                    continue;
                }
                let entry =
                    item_of(&bytes, ORDER, index).and_then(|item| Entry::read(global, item));
                evidence.entries.push(entry);
            }
        }
        while evidence.entries.last().is_some_and(Option::is_none) {
            evidence.entries.pop();
        }
        let begins = first.tips / TIPS.chunk_items;
        let tips = |number| if number < begins { None } else { chunk(TIPS, number) };
        evidence.tips = (0..count(tips_of).min(1 << 20)).map(tips).collect();
        if let Some(checkpoint) = &checkpoint {
            let open = |&number| Run::open(storage, &checkpoint.store_id, name::run, number).ok();
            evidence.runs = checkpoint.runs.iter().filter_map(open).collect();
        }
        evidence.checkpoint = checkpoint;
        evidence
    }

    /// So many entries the checkpoint counts, that are there.
    fn certain(&self) -> usize {
        let count = self.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.frontier.global);
        (count.saturating_sub(self.first) as usize).min(self.entries.len())
    }

    /// Positions of the deliveries that are `wanted`, by their indices, up to the first that does not
    /// follow from those before it.
    fn delivered(&self, wanted: &dyn Fn(usize) -> bool) -> Vec<u64> {
        let is_sound = |index: &usize| *index < self.certain() || self.follows(*index);
        let sound = (0..self.entries.len()).take_while(|index| wanted(*index) && is_sound(index));
        sound.filter_map(|index| self.entries[index]).map(|entry| entry.position).collect()
    }

    /// Whether an entry continues its stream.
    fn follows(&self, index: usize) -> bool {
        let Some(entry) = self.entries[index] else { return false };
        let is_before = |before: Entry| before.local + 1 == entry.local;
        match (entry.previous, entry.previous.checked_sub(self.first)) {
            (NONE, _) => entry.local == 0,
            (_, Some(previous)) if previous >= index as u64 => false,
            (_, Some(previous)) => self.entries[previous as usize].is_none_or(is_before),
            (previous, None) => {
                let base = self.base.as_ref();
                base.and_then(|base| base.entry(previous)).is_some_and(is_before)
            }
        }
    }

    /// Leaves out what is behind the checkpoint and is not of this log: what a crash has left may be.
    fn keep_sound(&mut self, extents: &[Stretch]) {
        let is_held =
            |position: u64| self.base.as_ref().is_some_and(|base| base.held(position).is_some());
        let is_there = |position: u64| {
            extents.iter().any(|extent| (extent.from..extent.to).contains(&position))
                || is_held(position)
        };
        let certain = self.certain();
        let mut sound = certain;
        for index in certain..self.entries.len() {
            let is_here = self.entries[index].is_some_and(|entry| is_there(entry.position));
            if !is_here || !self.follows(index) {
                break;
            }
            sound = index + 1;
        }
        self.entries.truncate(sound);
    }

    /// Local sequences of the tips that a delivery was chained on; nothing if it lists its parents, or if
    /// that is damaged.
    fn chained_on(&self, entry: &Entry) -> Option<Vec<u64>> {
        match entry.lineage {
            Lineage::Listed | Lineage::Unlisted => None,
            Lineage::Root => Some(Vec::new()),
            Lineage::Previous => Some(vec![entry.local.saturating_sub(1)]),
            Lineage::Tips(first) => {
                let item = |index: u64| {
                    let chunk = self.tips.get((index / TIPS.chunk_items) as usize)?.as_ref()?;
                    order_log::tip(index, item_of(chunk, TIPS, index % TIPS.chunk_items)?)
                };
                let count = item(first)?;
                let end = first.checked_add(1)?.checked_add(count)?;
                (first + 1..end).map(item).collect()
            }
        }
    }

    /// Position up to which the order is known.
    fn known_to(&self) -> u64 {
        let newest = self.entries.iter().flatten().map(|entry| entry.position + 1).max();
        let begins = self.base.as_ref().map_or(0, |base| base.position());
        let end = self.first + self.entries.len() as u64;
        let checkpoint = self.checkpoint.as_ref();
        let ordered = checkpoint
            .filter(|checkpoint| end >= checkpoint.frontier.global)
            .map(|checkpoint| checkpoint.ordered);
        newest.unwrap_or(0).max(ordered.unwrap_or(0)).max(begins)
    }
}

/// A delivery of a stream that has lost some.
#[derive(Debug)]
struct OfStream {
    global: u64,
    entry: Entry,
    is_lost: bool,
    /// It was held, and delivered after the event before it.
    is_late: bool,
    id: Option<Vec<u8>>,
    known_by: KnownBy,
    key: Option<u64>,
    found: Option<Unverified>,
}

struct Repair<'a> {
    survey: &'a Survey,
    start: &'a Start,
    evidence: Evidence,
    builder: LossBuilder,
    new: Vec<Stretch>,
    tag: u32,
    keys: Keys,
}

impl<'a> Repair<'a> {
    fn new(
        survey: &'a Survey,
        mut evidence: Evidence,
        stretches: &[Stretch],
        start: &'a Start,
    ) -> Result<Self, OpenError> {
        evidence.keep_sound(&survey.extents()?);
        let mut builder = LossBuilder::new(survey.losses.as_deref());
        stretches.iter().for_each(|stretch| builder.lose(stretch.from, stretch.to));
        let identity = evidence.checkpoint.as_ref().map_or(survey.store_id, |known| known.store_id);
        let (tag, keys) = (tag_of(&survey.store_id), Keys::new(&identity));
        Ok(Repair { survey, start, evidence, builder, new: stretches.to_vec(), tag, keys })
    }

    fn is_lost(&self, position: u64) -> bool {
        self.new.iter().any(|stretch| (stretch.from..stretch.to).contains(&position))
            && !self.builder.has(position)
    }

    fn record(&self, position: u64) -> Option<Record<'_>> {
        let segments = &self.survey.segments;
        let after = segments.partition_point(|segment| segment.base() <= position);
        let Some(before) = after.checked_sub(1) else {
            return self.start.base.as_ref()?.held(position);
        };
        let segment = &segments[before];
        segment.record(position).ok().filter(|_| position < segment.end())
    }

    fn id_of(&self, record: &Record<'_>) -> Vec<u8> {
        EventId::of(record, self.tag).to_vec()
    }

    fn made_id(&self, position: u64) -> Vec<u8> {
        EventId::made(self.tag, position).to_vec()
    }

    /// What is lost, with what stands in for it.
    fn find_losses(&mut self, report: &mut RepairReport) -> Result<Losses, OpenError> {
        self.stand_in_for_deliveries(report);
        report.lost_held = self.lost_held();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let outcome = self.try_order()?;
            if outcome.is_tried_again && attempts < ATTEMPTS_MAX {
                continue;
            }
            report.kept_refused = outcome.kept_refused.len() as u64;
            report.seals = outcome.seals;
            report.discards = outcome.discards;
            report.cursors = outcome.cursors;
            report.unproven = outcome.unproven;
            break;
        }
        let known_to = self.evidence.known_to();
        let behind = self.new.iter().find(|stretch| stretch.to > known_to);
        if let (None, Some(stretch)) = (&report.unproven, behind) {
            let lost_from = stretch.from.max(known_to);
            report.unproven = Some(Unproven::NoEvidence { known_to, lost_from });
        }
        Ok(self.builder.build(self.survey.store_id))
    }

    /// Positions of held events that are lost, as the runs know them.
    fn lost_held(&self) -> Vec<u64> {
        let mut held = BTreeSet::new();
        for run in &self.evidence.runs {
            let watches = run.items::<WatchItem>(0).map_while(Result::ok);
            held.extend(watches.map(|watch| watch.position).filter(|&at| self.is_lost(at)));
        }
        let delivered: HashSet<u64> =
            self.evidence.entries.iter().flatten().map(|entry| entry.position).collect();
        let known = self.evidence.runs.iter().flat_map(|run| run.items::<KnownItem>(0));
        let discarded = known.map_while(Result::ok);
        let discarded: HashSet<u64> =
            discarded.filter_map(|item| KnownAs::discarded_at(item.value)).collect();
        let is_held =
            |position: &u64| !delivered.contains(position) && !discarded.contains(position);
        held.into_iter().filter(is_held).collect()
    }

    /// Puts substitutes in the place of all deliveries that are lost.
    fn stand_in_for_deliveries(&mut self, report: &mut RepairReport) {
        for (root, mut stream) in self.streams_with_losses() {
            let name = self.name_stream(root, &mut stream);
            self.find_ids(&name, &mut stream);
            self.add_substitutes(&name, &stream);
            let lost = stream.into_iter().filter(|delivery| delivery.is_lost);
            report.lost_events.extend(lost.map(|delivery| LostEvent {
                global: delivery.global,
                local: delivery.entry.local,
                position: delivery.entry.position,
                stream: name.clone(),
                id: delivery.id,
                known_by: delivery.known_by,
            }));
        }
        report.lost_events.sort_by_key(|event| event.global);
    }

    /// All deliveries of each stream that has lost one, by the global sequence of the first of them, or of the last
    /// that was trimmed.
    fn streams_with_losses(&self) -> BTreeMap<u64, Vec<OfStream>> {
        let (first, entries) = (self.evidence.first, &self.evidence.entries);
        let mut roots = vec![NONE; entries.len()];
        let mut affected = HashSet::new();
        for (index, entry) in entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            roots[index] = match (entry.previous, entry.previous.checked_sub(first)) {
                (NONE, _) => first + index as u64,
                (_, Some(before)) => roots.get(before as usize).copied().unwrap_or(NONE),
                (previous, None) => previous,
            };
            if self.is_lost(entry.position) && roots[index] != NONE {
                affected.insert(roots[index]);
            }
        }
        let mut streams: BTreeMap<u64, Vec<OfStream>> = BTreeMap::new();
        let mut lost = HashSet::new();
        let mut newest = 0;
        for (global, (root, entry)) in (first..).zip(roots.into_iter().zip(entries)) {
            let Some(entry) = *entry else { continue };
            let is_late = entry.position < newest;
            newest = newest.max(entry.position);
            if !affected.contains(&root) {
                continue;
            }
            let is_lost = self.is_lost(entry.position);
            if is_lost {
                lost.insert(global);
            }
            let (id, known_by, key, found) = (None, KnownBy::Nothing, None, None);
            let delivery = OfStream { global, entry, is_lost, is_late, id, known_by, key, found };
            streams.entry(root).or_default().push(delivery);
        }
        let keys = self.keys_of(&lost);
        for delivery in streams.values_mut().flatten() {
            delivery.key = keys.get(&delivery.global).copied();
        }
        streams
    }

    /// Keys of the ids of these deliveries, as the runs have them.
    fn keys_of(&self, lost: &HashSet<u64>) -> HashMap<u64, u64> {
        let mut keys = HashMap::new();
        for run in &self.evidence.runs {
            for item in run.items::<KnownItem>(0).map_while(Result::ok) {
                if let KnownAs::Delivered(global) = KnownAs::decode(item.value)
                    && lost.contains(&global)
                {
                    keys.insert(global, item.key);
                }
            }
        }
        keys
    }

    /// Name of the stream of these deliveries; reads what the lost ones still say.
    fn name_stream(&self, root: u64, stream: &mut [OfStream]) -> Vec<u8> {
        for delivery in stream.iter_mut().filter(|delivery| delivery.is_lost) {
            delivery.found = self.survey.unverified(delivery.entry.position);
        }
        let mut whole = stream.iter().filter(|delivery| !delivery.is_lost);
        let name = whole.find_map(|delivery| {
            self.record(delivery.entry.position).map(|record| record.stream().to_vec())
        });
        let is_proven = |delivery: &&OfStream| {
            let Some(found) = &delivery.found else { return false };
            let id = found.id.clone().unwrap_or_else(|| self.made_id(delivery.entry.position));
            delivery.key == Some(self.keys.event(self.keys.stream(&found.stream), &id))
        };
        let said = |delivery: &OfStream| delivery.found.as_ref().map(|found| found.stream.clone());
        name.or_else(|| self.start.heads.get(&root).cloned())
            .or_else(|| stream.iter().find(is_proven).and_then(said))
            .or_else(|| stream.iter().find_map(said))
            .unwrap_or_else(|| {
                let first = stream.first().map_or(0, |delivery| delivery.entry.position);
                [b"lost-".as_slice(), &self.made_id(first)].concat()
            })
    }

    /// Finds out the ids of the lost deliveries of a stream: from what they still say, from the hashes in the
    /// runs, and from the parents of the whole ones, which were all delivered before.
    fn find_ids(&self, name: &[u8], stream: &mut [OfStream]) {
        let stream_key = self.keys.stream(name);
        let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
        for index in 0..stream.len() {
            let OfStream { entry, is_lost, key, .. } = stream[index];
            if is_lost {
                let found = stream[index].found.take().filter(|found| found.stream == name);
                let id = found
                    .as_ref()
                    .map(|found| found.id.clone().unwrap_or_else(|| self.made_id(entry.position)));
                let made = self.made_id(entry.position);
                let is_it = |id: &Vec<u8>| key == Some(self.keys.event(stream_key, id));
                let (id, known_by) = match id {
                    Some(id) if is_it(&id) => (Some(id), KnownBy::Proof),
                    _ if is_it(&made) => (Some(made), KnownBy::Proof),
                    Some(id) if key.is_none() && !known.contains_key(&id) => {
                        (Some(id), KnownBy::DamagedBytes)
                    }
                    _ => (None, KnownBy::Nothing),
                };
                if let Some(id) = &id {
                    known.insert(id.clone(), index);
                }
                let delivery = &mut stream[index];
                (delivery.id, delivery.known_by) = (id, known_by);
                delivery.found = found;
                continue;
            }
            let Some(record) = self.record(entry.position) else { continue };
            let id = self.id_of(&record);
            for parent in record.parents() {
                if let Some(&at) = known.get(parent) {
                    if stream[at].known_by == KnownBy::DamagedBytes {
                        stream[at].known_by = KnownBy::Proof;
                    }
                    continue;
                }
                if self.start.is_trimmed(name, parent) {
                    continue;
                }
                if let Some(at) = self.who_is(parent, stream_key, &stream[..index]) {
                    if let Some(wrong) = stream[at].id.take() {
                        known.remove(&wrong);
                    }
                    let is_proven = stream[at].key.is_some();
                    stream[at].known_by =
                        if is_proven { KnownBy::Proof } else { KnownBy::Inference };
                    stream[at].id = Some(parent.to_vec());
                    known.insert(parent.to_vec(), at);
                }
            }
            known.insert(id.clone(), index);
            stream[index].id = Some(id);
        }
    }

    /// Which of these deliveries has an id that somebody names and nobody has: by its hash, or the last of
    /// those of which nothing else is known. So it does not come before it can have come.
    fn who_is(&self, id: &[u8], stream_key: u64, stream: &[OfStream]) -> Option<usize> {
        let key = self.keys.event(stream_key, id);
        let by_key =
            stream.iter().rposition(|delivery| delivery.is_lost && delivery.key == Some(key));
        let by = |known_by| {
            move |delivery: &OfStream| {
                delivery.is_lost && delivery.key.is_none() && delivery.known_by == known_by
            }
        };
        by_key
            .or_else(|| stream.iter().rposition(by(KnownBy::Nothing)))
            .or_else(|| stream.iter().rposition(by(KnownBy::DamagedBytes)))
    }

    /// Adds the substitutes for the lost deliveries of a stream, by going over the stream in the order of
    /// delivery.
    fn add_substitutes(&mut self, name: &[u8], stream: &[OfStream]) {
        // Up to which place in the stream a delivery was a tip at least, since others were chained on it.
        let mut tip_until: HashMap<u64, u64> = HashMap::new();
        for delivery in stream {
            for tip in self.evidence.chained_on(&delivery.entry).unwrap_or_default() {
                let until = tip_until.entry(tip).or_default();
                *until = delivery.entry.local.max(*until);
            }
        }
        let id_of = |delivery: &OfStream| {
            delivery.id.clone().unwrap_or_else(|| self.made_id(delivery.entry.position))
        };
        let mut tips = self.start.begun.machine.tips_by_local(name);
        let mut delivered: HashMap<Vec<u8>, u64> =
            tips.iter().map(|(&local, id)| (id.clone(), local)).collect();
        let mut substitutes = Vec::new();
        // The newest delivery of a stream is always a tip.
        let mut previous = tips.values().next_back().cloned();
        for delivery in stream {
            let (local, id) = (delivery.entry.local, id_of(delivery));
            let is_chained = delivery.entry.lineage != Lineage::Listed;
            let parents: Option<Vec<Vec<u8>>> = match (is_chained, delivery.is_lost) {
                (true, _) => None,
                (false, false) => self
                    .record(delivery.entry.position)
                    .map(|record| record.parents().map(<[u8]>::to_vec).collect()),
                (false, true) => {
                    let found = delivery.found.as_ref().filter(|found| found.is_event);
                    let listed = found.and_then(|found| found.parents.clone());
                    let is_sound = |parents: &Vec<Vec<u8>>| {
                        delivery.known_by == KnownBy::Proof
                            && parents.iter().all(|parent| {
                                delivered.contains_key(parent)
                                    || self.start.is_trimmed(name, parent)
                            })
                    };
                    let assumed = || {
                        let taken = tips.iter().filter(|(tip, _)| {
                            tip_until.get(*tip).is_none_or(|&until| until < local)
                        });
                        let taken = taken.map(|(_, id)| id.clone());
                        // What was held came right after the one before it, and not earlier.
                        let before = previous.clone().filter(|_| delivery.is_late);
                        let all: BTreeSet<Vec<u8>> = taken.chain(before).collect();
                        all.into_iter().collect()
                    };
                    Some(listed.filter(is_sound).unwrap_or_else(assumed))
                }
            };
            match &parents {
                None => tips.clear(),
                Some(parents) => parents.iter().for_each(|parent| {
                    if let Some(local) = delivered.get(parent) {
                        tips.remove(local);
                    }
                }),
            }
            if delivery.is_lost {
                let id = delivery.id.clone();
                // An id that the engine would make anyway is not written down.
                let id = id.filter(|id| *id != self.made_id(delivery.entry.position));
                substitutes.push((delivery.entry.position, Substitute::Event { id, parents }));
            }
            delivered.insert(id.clone(), local);
            tips.insert(local, id.clone());
            previous = Some(id);
        }
        for (position, substitute) in substitutes {
            self.builder.put(position, position + PLACE_LEN, name, substitute);
        }
    }

    /// Runs the serial machine over the log as it will be and compares what it delivers. What can only be
    /// so if something else was lost, is added.
    fn try_order(&mut self) -> Result<Outcome, OpenError> {
        let losses = Arc::new(self.builder.build(self.survey.store_id));
        let mut run = TryOrder {
            repair: self,
            machine: self.start.begun.machine.clone(),
            next: 0,
            fixes: Vec::new(),
            outcome: Outcome::default(),
            forgotten: self.survey.forgotten()?.into(),
            is_sealed_compared: false,
            namesake: None,
            moved: BTreeMap::new(),
            broken_at: None,
        };
        run.prepare();
        let survey = run.repair.survey;
        survey.walk(&losses, |record| run.take(&record))?;
        if !run.outcome.is_tried_again {
            run.compare_seals(u64::MAX);
            run.miss(u64::MAX);
        }
        let TryOrder { machine, fixes, mut outcome, broken_at, moved, .. } = run;
        outcome.cursors = moved_cursors(moved, &machine);
        outcome.unproven = broken_at.map(|global| Unproven::Contradiction {
            global,
            renumbered: renumbered(&self.evidence.entries, &machine),
        });
        for fix in fixes {
            match fix {
                Fix::Refuse { from, to, stream } => {
                    self.builder.lose(from, to);
                    self.builder.put(from, to, &stream, Substitute::Refused);
                }
                Fix::Put { from, to, stream, substitute } => {
                    self.builder.put(from, to, &stream, substitute);
                }
            }
        }
        Ok(outcome)
    }
}

/// Events that can be read and have other numbers than the evidence has for them.
fn renumbered(entries: &[Option<Entry>], machine: &SerialMachine) -> u64 {
    let first = machine.first;
    let now: HashMap<u64, (u64, u64)> = (first..)
        .zip(&machine.order)
        .map(|(global, delivery)| (delivery.position, (global, delivery.local)))
        .collect();
    let is_other = |(global, entry): (u64, &Option<Entry>)| {
        let Some(entry) = entry else { return false };
        now.get(&entry.position).is_some_and(|&numbers| numbers != (global, entry.local))
    };
    (first..).zip(entries).filter(|&entry| is_other(entry)).count() as u64
}

/// Of the cursors that were elsewhere at the checkpoint, those that marks behind it have not brought back.
fn moved_cursors(
    moved: BTreeMap<Vec<u8>, (Option<u64>, bool)>,
    machine: &SerialMachine,
) -> Vec<MovedCursor> {
    let moved = moved.into_iter().map(|(name, (was, is_down))| {
        let at = machine.cursors.get(&name).copied();
        (MovedCursor { name, was, at }, is_down)
    });
    let still = moved.filter(|(cursor, is_down)| match is_down {
        true => cursor.at < cursor.was,
        false => cursor.at != cursor.was,
    });
    still.map(|(cursor, _)| cursor).collect()
}

/// What has to be added for the order to come out as it was.
enum Fix {
    /// A whole record was refused for a reason that is lost.
    Refuse { from: u64, to: u64, stream: Vec<u8> },
    /// Something stood here.
    Put { from: u64, to: u64, stream: Vec<u8>, substitute: Substitute },
}

/// What came of an attempt to order the log as it will be.
#[derive(Debug, Default)]
struct Outcome {
    unproven: Option<Unproven>,
    kept_refused: BTreeSet<u64>,
    seals: u64,
    discards: u64,
    cursors: Vec<MovedCursor>,
    /// Something was added that concerns records from before it was known.
    is_tried_again: bool,
}

struct TryOrder<'r, 'a> {
    repair: &'r Repair<'a>,
    machine: SerialMachine,
    /// Next entry of the evidence to come.
    next: usize,
    fixes: Vec<Fix>,
    outcome: Outcome,
    /// What segments further on say is forgotten, with the positions at which they begin.
    forgotten: VecDeque<(u64, u64)>,
    is_sealed_compared: bool,
    /// The newest event that was in conflict with one that is held, if only events that are tied to it have come since:
    /// where the two are, their stream, and their id.
    namesake: Option<(Range<u64>, Vec<u8>, Vec<u8>)>,
    /// Cursors that were elsewhere at the checkpoint: where, and whether they are further down now.
    moved: BTreeMap<Vec<u8>, (Option<u64>, bool)>,
    /// First global sequence at which the order is another.
    broken_at: Option<u64>,
}

impl TryOrder<'_, '_> {
    /// Global sequence of the next entry.
    fn next_global(&self) -> u64 {
        self.repair.evidence.first + self.next as u64
    }

    fn prepare(&mut self) {
        for record in self.repair.builder.build(self.repair.survey.store_id).substitutes() {
            match record.kind() {
                RecordKind::Refused => {
                    self.outcome.kept_refused.insert(record.position());
                }
                RecordKind::Seal | RecordKind::Unseal => self.outcome.seals += 1,
                RecordKind::Discard => self.outcome.discards += 1,
                RecordKind::Event | RecordKind::Mark | RecordKind::StreamTrim => {}
            }
        }
    }

    fn take(&mut self, record: &Record<'_>) -> ControlFlow<()> {
        let store_id = &self.repair.survey.store_id;
        self.compare_seals(record.position());
        while let Some(&(begins, below)) = self.forgotten.front()
            && begins <= record.position()
        {
            self.machine.forget(below);
            self.forgotten.pop_front();
        }
        let is_stand_in = record.is_lost() || record.kind() == RecordKind::Refused;
        let is_known = record.position() < self.repair.evidence.known_to();
        if !is_stand_in
            && record.kind() == RecordKind::Event
            && is_known
            && self.broken_at.is_none()
        {
            self.discard_before(record);
            let serial = serial_record(record, store_id);
            if self.mind(record, &serial) {
                return ControlFlow::Continue(());
            }
            if self.outcome.is_tried_again {
                // From here on nothing comes out as it did.
                return ControlFlow::Break(());
            }
        }
        if record.is_lost() && self.broken_at.is_none() {
            // It was delivered, so its stream was not sealed.
            let serial = serial_record(record, store_id);
            let verdict = self.machine.peek(record.position(), &serial);
            if verdict == Arrival::Rejected(Rejection::Sealed) {
                let stream = record.stream().to_vec();
                self.put_last(0..record.position(), stream, Substitute::Unseal);
                if self.outcome.is_tried_again {
                    return ControlFlow::Break(());
                }
            }
        }
        self.note_namesake(record);
        if arrive(&mut self.machine, record, store_id) != Arrival::Conflict
            && !record.is_with_previous()
        {
            self.namesake = None;
        }
        if is_known && self.broken_at.is_none() && self.discard_surplus(record.position()) {
            return ControlFlow::Break(());
        }
        self.compare();
        self.miss(record.position());
        ControlFlow::Continue(())
    }

    /// Sees to it that a whole event comes out as it did; `true` if it is not to arrive.
    fn mind(&mut self, record: &Record<'_>, serial: &SerialRecord) -> bool {
        let position = record.position();
        let entries = &self.repair.evidence.entries;
        let is_next = match entries.get(self.next) {
            Some(Some(entry)) => entry.position == position,
            // Nothing is known of the next: whatever comes is right.
            Some(None) => return false,
            None => false,
        };
        let stream = record.stream().to_vec();
        match self.machine.peek(position, serial) {
            Arrival::Rejected(Rejection::Sealed) if is_next => {
                self.put_last(0..position, stream, Substitute::Unseal);
                false
            }
            Arrival::Delivered if is_next => false,
            Arrival::Rejected(Rejection::Previous) if is_next && self.discard_namesake() => false,
            _ if is_next => {
                self.broken_at = Some(self.next_global());
                false
            }
            Arrival::Delivered => {
                // It is tied to what was lost before it, and that was refused; or a seal is lost, or an event
                // that had its id.
                if record.is_with_previous() && self.refuse_before(position, &stream) {
                    return false;
                }
                let to = position + record.len();
                self.machine.refuse(position..to, &stream);
                self.outcome.kept_refused.insert(position);
                self.fixes.push(Fix::Refuse { from: position, to, stream });
                true
            }
            _ => false,
        }
    }

    /// If `record` is delivered, and the machine holds another event with its id, that one was discarded.
    fn discard_before(&mut self, record: &Record<'_>) {
        let position = record.position();
        let entry = self.repair.evidence.entries.get(self.next).copied().flatten();
        let is_next = entry.is_some_and(|entry| entry.position == position);
        if !is_next || self.broken_at.is_some() {
            return;
        }
        let id = self.repair.id_of(record);
        if let Some(held) = self.machine.held_at(record.stream(), &id) {
            self.put_discard(held, position, record.stream().to_vec(), id);
        }
    }

    /// Notes which event, if it is held, has the id of `record`.
    fn note_namesake(&mut self, record: &Record<'_>) {
        if record.kind() == RecordKind::Event {
            let id = self.repair.id_of(record);
            if let Some(held) = self.machine.held_at(record.stream(), &id) {
                self.namesake = Some((held..record.position(), record.stream().to_vec(), id));
            }
        }
    }

    /// An event was taken that is tied to others, the first of which is in conflict now with an event that is
    /// held: so that was discarded. Whether there is one.
    fn discard_namesake(&mut self) -> bool {
        let Some((between, stream, id)) = self.namesake.take() else { return false };
        self.put_last(between, stream, Substitute::Discard { id });
        self.outcome.is_tried_again
    }

    /// Finds the events that the machine has now delivered after they were held, and that were not: they were
    /// discarded before `trigger`. Or before the event that has their id since, and was delivered in their
    /// place. Whether there are any; then all is tried again.
    fn discard_surplus(&mut self, trigger: u64) -> bool {
        let entries = &self.repair.evidence.entries;
        let mut surplus = Vec::new();
        for (index, delivery) in self.machine.order.iter().enumerate().skip(self.next) {
            let entry = entries.get(index).copied();
            let is_as_it_was = match entry {
                Some(Some(entry)) => entry.position == delivery.position,
                // Nothing is known of it.
                Some(None) => true,
                None => false,
            };
            let is_lost = self.repair.builder.has(delivery.position);
            if is_as_it_was || is_lost || delivery.position >= trigger {
                continue;
            }
            let was_delivered = |entry: &Entry| entry.position == delivery.position;
            let Some(record) = self.repair.record(delivery.position) else { continue };
            let id = self.repair.id_of(&record);
            let successor = entry.flatten().filter(|entry| entry.position > delivery.position);
            let successor = successor.filter(|entry| {
                let other = self.repair.record(entry.position);
                other.is_some_and(|other| {
                    other.stream() == record.stream() && self.repair.id_of(&other) == id
                })
            });
            if !entries.iter().flatten().any(was_delivered) {
                let before = successor.map_or(trigger, |entry| entry.position);
                surplus.push((delivery.position, before, record.stream().to_vec(), id));
            }
        }
        for (held, before, stream, id) in surplus {
            self.put_discard(held, before, stream, id);
        }
        self.outcome.is_tried_again
    }

    /// Has the event at `held` be discarded between there and `before`, if something is lost there.
    fn put_discard(&mut self, held: u64, before: u64, stream: Vec<u8>, id: Vec<u8>) {
        self.put_last(held..before, stream, Substitute::Discard { id });
    }

    /// Has what is lost right before `position` be something that was refused.
    fn refuse_before(&mut self, position: u64, stream: &[u8]) -> bool {
        let builder = &self.repair.builder;
        let from = position - PLACE_LEN;
        let is_lost =
            builder.stretches().iter().any(|lost| lost.to == position && lost.from <= from);
        if !is_lost || builder.has(from) {
            return false;
        }
        self.machine.refuse(from..position, stream);
        let (to, stream, substitute) = (position, stream.to_vec(), Substitute::Refused);
        self.fixes.push(Fix::Put { from, to, stream, substitute });
        true
    }

    /// Puts a control record into what is lost within `range`, as late as there is room, and has all of it
    /// tried again.
    fn put_last(&mut self, range: Range<u64>, stream: Vec<u8>, substitute: Substitute) {
        let Range { start, end } = range;
        let builder = &self.repair.builder;
        // What is recorded of before the log, nobody comes by.
        let start = start.max(self.repair.start.base.as_ref().map_or(0, |base| base.position()));
        let within =
            builder.stretches().iter().rev().filter(|lost| lost.from < end && lost.to > start);
        let mut places = within.flat_map(|lost| {
            let (from, to) = (lost.from.max(start), lost.to.min(end));
            (1..=to.saturating_sub(from) / PLACE_LEN).map(move |back| to - back * PLACE_LEN)
        });
        let taken: Vec<u64> = self.fixes.iter().map(Fix::from).collect();
        let free = places.find(|&at| !builder.has(at) && !taken.contains(&at));
        if let Some(from) = free {
            self.fixes.push(Fix::Put { from, to: from + PLACE_LEN, stream, substitute });
            self.outcome.is_tried_again = true;
        }
    }

    /// Compares what the machine has delivered since the last time.
    fn compare(&mut self) {
        let entries = &self.repair.evidence.entries;
        while self.next < self.machine.order.len() && self.next < entries.len() {
            let delivery = &self.machine.order[self.next];
            if let (Some(entry), None) = (&entries[self.next], self.broken_at) {
                let chained_on = self.repair.evidence.chained_on(entry);
                let is_lost = self.repair.builder.has(delivery.position);
                let same = entry.position == delivery.position
                    && entry.local == delivery.local
                    && (is_lost
                        || entry.lineage == Lineage::Unlisted
                        || chained_on == delivery.chained_on);
                if !same {
                    self.broken_at = Some(self.next_global());
                }
            }
            self.next += 1;
        }
    }

    /// Triggers come at rising positions: what was delivered at or before `position` and has not come by now
    /// does not come.
    fn miss(&mut self, position: u64) {
        let entry = self.repair.evidence.entries.get(self.next).copied().flatten();
        if entry.is_some_and(|entry| entry.position <= position) && self.broken_at.is_none() {
            self.broken_at = Some(self.next_global());
        }
    }

    /// Compares the sealed streams and the cursors with those of the checkpoint when the machine comes to its position.
    fn compare_seals(&mut self, position: u64) {
        let Some(checkpoint) = &self.repair.evidence.checkpoint else { return };
        if self.is_sealed_compared || position < checkpoint.ordered {
            return;
        }
        self.is_sealed_compared = true;
        let (sealed, ordered) = (checkpoint.sealed.clone(), checkpoint.ordered);
        let is_lost = |stretch: &Stretch| stretch.from < ordered;
        if !self.repair.new.iter().any(is_lost) {
            return;
        }
        let keys = self.repair.keys;
        let streams = self.machine.stream_counts().into_iter();
        let differ: Vec<(Vec<u8>, bool)> = streams
            .map(|(name, counts)| (name, counts.3, sealed.contains(&keys.stream(name))))
            .filter(|(_, is_now, was)| is_now != was)
            .map(|(name, _, was)| (name.to_vec(), was))
            .collect();
        let was = &checkpoint.cursors;
        for name in was.keys().chain(self.machine.cursors.keys()) {
            let (was, at) = (was.get(name).copied(), self.machine.cursors.get(name).copied());
            if at != was {
                self.moved.insert(name.clone(), (was, at < was));
            }
        }
        for (stream, was_sealed) in differ {
            let substitute = if was_sealed { Substitute::Seal } else { Substitute::Unseal };
            self.put_last(0..ordered, stream, substitute);
        }
    }
}

impl Fix {
    fn from(&self) -> u64 {
        match self {
            Fix::Refuse { from, .. } | Fix::Put { from, .. } => *from,
        }
    }
}

impl RepairReport {
    /// The report as one JSON object, as it is kept beside what was replaced. Names and ids that are no UTF-8
    /// have each byte that is none replaced.
    pub fn to_json(&self) -> String {
        let mut out = String::from("{\n");
        let list = |items: Vec<String>| match items.is_empty() {
            true => String::from("[]"),
            false => format!("[\n    {}\n  ]", items.join(",\n    ")),
        };
        let damage = self.damage.iter().map(|damage| {
            let Damage { file, offset, position, resumes, fault, .. } = damage;
            format!(
                "{{\"file\":{},\"offset\":{offset},\"position\":{position},\"resumes\":{resumes},\"fault\":{}}}",
                quoted(file),
                quoted(&fault.to_string())
            )
        });
        let lost = self.lost.iter().map(|lost| format!("[{},{}]", lost.start, lost.end));
        let events = self.lost_events.iter().map(|event| {
            let id = event.id.as_ref().map_or_else(
                || String::from("null"),
                |id| quoted(&String::from_utf8_lossy(id)),
            );
            format!(
                "{{\"global\":{},\"local\":{},\"position\":{},\"stream\":{},\"id\":{id},\"id_known_by\":\"{}\"}}",
                event.global,
                event.local,
                event.position,
                quoted(&String::from_utf8_lossy(&event.stream)),
                event.known_by.word()
            )
        });
        let place = |at: Option<u64>| at.map_or_else(|| String::from("null"), |at| at.to_string());
        let cursors = self.cursors.iter().map(|cursor| {
            let name = quoted(&String::from_utf8_lossy(&cursor.name));
            format!(
                "{{\"cursor\":{name},\"was\":{},\"at\":{}}}",
                place(cursor.was),
                place(cursor.at)
            )
        });
        let numbers =
            |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let text = |text: &Option<String>| {
            text.as_ref().map_or_else(|| String::from("null"), |text| quoted(text))
        };
        let fields = [
            ("needed", self.is_needed.to_string()),
            ("done", self.is_done.to_string()),
            ("damage", list(damage.collect())),
            ("lost", list(lost.collect())),
            ("lost_events", list(events.collect())),
            ("lost_held", format!("[{}]", numbers(&self.lost_held))),
            ("kept_refused", self.kept_refused.to_string()),
            ("seals", self.seals.to_string()),
            ("discards", self.discards.to_string()),
            ("cursors", list(cursors.collect())),
            ("unproven", text(&self.unproven.as_ref().map(ToString::to_string))),
            ("lost_before", self.lost_before.to_string()),
            ("quarantine", text(&self.quarantine)),
        ];
        let lines: Vec<String> =
            fields.iter().map(|(name, value)| format!("  \"{name}\": {value}")).collect();
        out.push_str(&lines.join(",\n"));
        out.push_str("\n}\n");
        out
    }
}

impl KnownBy {
    fn word(self) -> &'static str {
        match self {
            KnownBy::Proof => "proof",
            KnownBy::DamagedBytes => "damaged bytes",
            KnownBy::Inference => "inference",
            KnownBy::Nothing => "nothing",
        }
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
