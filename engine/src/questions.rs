//! Questions about the state of the machine, answered by the orderer between two windows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use thalweg_wal::{DiscardReason, FrameTimes, Segment};

use crate::clock;
use crate::error::ReadError;
use crate::event::EventId;
use crate::order::cold::{first_held_positions, for_each_stream, held_positions};
use crate::order::keys::partition_of;
use crate::order::partition::{KnownAs, Partition};
use crate::pipeline::lookup::{Fault, Lookup, segment_at};
use crate::sync::{Arc, Promise};

/// An event that is stored and waits for parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldEvent {
    /// Name of the stream.
    pub stream: Vec<u8>,
    /// Id of the event.
    pub id: Vec<u8>,
    /// Position in the log, in bytes.
    pub position: u64,
    /// The listed parents that are not delivered, each once, in the order of the list.
    pub missing: Vec<Vec<u8>>,
    /// When it was appended, by the clock of the machine that did; nothing if nobody knows, since an older
    /// version of the store did. Of an event that has outlived its segment, which was trimmed, it is known that it was
    /// appended before what is left: this is when the first batch of that was.
    pub since: Option<SystemTime>,
}

impl HeldEvent {
    /// How long it has been held at the time `now`, if it is known since when; zero if that is later, since a
    /// clock has gone back.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        self.since.map(|since| now.duration_since(since).unwrap_or(Duration::ZERO))
    }
}

/// A stream, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// Name of the stream.
    pub name: Vec<u8>,
    /// Number of delivered events.
    pub delivered: u64,
    /// Number of held events.
    pub held: u64,
    /// Number of delivered events without a delivered child.
    pub tips: u64,
    /// Whether the stream is sealed: it takes no events until the seal is taken off.
    pub sealed: bool,
}

/// Why an event is not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The store has no such event, or one that was discarded, and trimmed since.
    Unknown,
    /// It is delivered.
    Delivered {
        /// Its place in the whole store.
        global: u64,
        /// Its place in its stream.
        local: u64,
    },
    /// It was delivered, and was trimmed since. What its place in its stream was is not kept.
    Trimmed {
        /// Its place in the whole store.
        global: u64,
        /// The first global sequence that was not trimmed.
        first: u64,
    },
    /// It waits.
    Held(WhyHeld),
    /// It was held, and is discarded: it will never be delivered. Nobody has appended another event with its id
    /// since, or that was not taken.
    Discarded {
        /// Position of the event in the log, in bytes.
        position: u64,
        /// Why it is discarded.
        reason: DiscardReason,
    },
}

/// What a held event waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WhyHeld {
    /// The listed parents that are not delivered.
    pub missing: Vec<Vec<u8>>,
    /// Where the trouble begins, over any number of generations.
    pub roots: Vec<Root>,
    /// Number of held events that wait for this one, directly or not.
    pub waiting: u64,
}

/// An event that keeps others waiting.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Root {
    /// Its id.
    pub id: Vec<u8>,
    /// What is the matter with it.
    pub kind: RootKind,
}

/// What keeps an event, and those behind it, from being delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RootKind {
    /// It is not in the stream: not arrived yet, or in another stream, where it does not count.
    Absent,
    /// It is its own ancestor, so it will never be delivered.
    Cycle,
}

type Answer<T> = Promise<Result<T, ReadError>>;

/// What somebody wants to know.
#[derive(Debug)]
pub(crate) enum Question {
    /// The first so many held events.
    Held {
        count: usize,
        answer: Answer<Vec<HeldEvent>>,
    },
    Streams(Answer<Vec<StreamInfo>>),
    Tips {
        stream_key: u64,
        stream: Vec<u8>,
        answer: Answer<Vec<Vec<u8>>>,
    },
    Why {
        stream_key: u64,
        stream: Vec<u8>,
        id: Vec<u8>,
        answer: Answer<Why>,
    },
}

/// Why there is no answer.
enum Unanswered {
    Fault(Fault),
    /// The pipeline ends, and does not wait for one that takes long.
    Stopping,
}

impl<T: Into<Fault>> From<T> for Unanswered {
    fn from(fault: T) -> Self {
        Unanswered::Fault(fault.into())
    }
}

/// What a search looks at. It may go over everything that is held, so it looks at each step whether it is
/// still wanted.
#[derive(Clone, Copy)]
struct View<'a> {
    partitions: &'a [Partition],
    lookup: &'a Lookup,
    is_stopping: &'a dyn Fn() -> bool,
}

impl View<'_> {
    fn go_on(&self) -> Result<(), Unanswered> {
        if (self.is_stopping)() { Err(Unanswered::Stopping) } else { Ok(()) }
    }
}

/// Gives the answer; without one, who asks learns that the store has ended.
fn complete<T>(promise: Answer<T>, answer: Result<T, Unanswered>) {
    let answer = match answer {
        Ok(answer) => Ok(answer),
        Err(Unanswered::Fault(fault)) => Err(fault.into()),
        Err(Unanswered::Stopping) => return,
    };
    promise.complete(answer);
}

/// Answers, unless the pipeline ends meanwhile.
pub(crate) fn answer(
    question: Question,
    partitions: &[Partition],
    lookup: &Lookup,
    is_stopping: &dyn Fn() -> bool,
) {
    let view = View { partitions, lookup, is_stopping };
    match question {
        Question::Held { count, answer } => complete(answer, held_events(view, count)),
        Question::Streams(answer) => {
            answer.complete(streams(partitions, lookup).map_err(Into::into));
        }
        Question::Tips { stream_key, stream, answer } => {
            let partition = &partitions[partition_of(stream_key)];
            let tips = partition.tips_of(stream_key, &stream, lookup);
            answer.complete(tips.map_err(Into::into));
        }
        Question::Why { stream_key, stream, id, answer } => {
            let asked = Asked { view, stream_key, stream: &stream };
            complete(answer, asked.why(&id));
        }
    }
}

fn held_events(view: View<'_>, count: usize) -> Result<Vec<HeldEvent>, Unanswered> {
    let View { partitions, lookup, .. } = view;
    let mut events = Vec::new();
    let begins = lookup.horizon.position;
    let mut times = Times { segments: &lookup.segments, begins, current: None };
    for position in first_held_positions(partitions, lookup, count)? {
        view.go_on()?;
        let Some(record) = lookup.or_none(lookup.record(position))? else { continue };
        let (stream, store_tag) = (record.stream(), partitions[0].store_tag);
        let stream_key = partitions[0].keys.stream(stream);
        let asked = Asked { view, stream_key, stream };
        events.push(HeldEvent {
            stream: stream.to_vec(),
            id: EventId::of(&record, store_tag).to_vec(),
            position,
            missing: asked.missing_parents(position)?,
            since: times.at(position),
        });
    }
    Ok(events)
}

/// When the records at rising positions were written.
struct Times<'a> {
    segments: &'a [Arc<Segment>],
    /// Where the log begins. What was written before was so at the latest when that was.
    begins: u64,
    /// The segment of the last answer, by its number, and its frames.
    current: Option<(u64, FrameTimes<'a>)>,
}

impl Times<'_> {
    fn at(&mut self, position: u64) -> Option<SystemTime> {
        let segment = segment_at(self.segments, position.max(self.begins))?;
        let position = position.max(segment.first());
        let times = match &mut self.current {
            Some((number, times)) if *number == segment.number() => times,
            current => &mut current.insert((segment.number(), segment.frame_times())).1,
        };
        clock::at_millis(times.at(position)?)
    }
}

fn streams(partitions: &[Partition], lookup: &Lookup) -> Result<Vec<StreamInfo>, Fault> {
    let mut infos = Vec::new();
    for_each_stream(partitions, lookup, |stream| {
        if stream.is_there() {
            infos.push(StreamInfo {
                name: stream.name.to_vec(),
                delivered: stream.delivered,
                held: u64::from(stream.held),
                tips: stream.tips.len() as u64,
                sealed: stream.sealed,
            });
        }
    })?;
    infos.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(infos)
}

/// A stream that somebody asks about.
#[derive(Clone, Copy)]
struct Asked<'a> {
    view: View<'a>,
    stream_key: u64,
    stream: &'a [u8],
}

impl Asked<'_> {
    fn partition(&self) -> &Partition {
        &self.view.partitions[partition_of(self.stream_key)]
    }

    fn find(&self, id: &[u8]) -> Result<Option<KnownAs>, Fault> {
        let partition = self.partition();
        let key = partition.keys.event(self.stream_key, id);
        partition.find_known(self.stream, key, id, self.view.lookup)
    }

    fn id_at(&self, position: u64) -> Result<Vec<u8>, Fault> {
        let record = self.view.lookup.record(position)?;
        Ok(EventId::of(&record, self.partition().store_tag).to_vec())
    }

    /// The listed parents of a held event that are not delivered, each once.
    fn missing_parents(&self, position: u64) -> Result<Vec<Vec<u8>>, Fault> {
        let mut missing = Vec::new();
        let mut seen = BTreeSet::new();
        for parent in self.view.lookup.record(position)?.parents() {
            if seen.insert(parent) && !matches!(self.find(parent)?, Some(KnownAs::Delivered(_))) {
                missing.push(parent.to_vec());
            }
        }
        Ok(missing)
    }

    fn why(&self, id: &[u8]) -> Result<Why, Unanswered> {
        match self.find(id)? {
            Some(KnownAs::Delivered(global)) => match self.view.lookup.horizon.first {
                first if global < first => Ok(Why::Trimmed { global, first }),
                _ => Ok(Why::Delivered { global, local: self.view.lookup.entry(global)?.local }),
            },
            Some(KnownAs::Held(position)) => {
                let missing = self.missing_parents(position)?;
                let roots = Ancestry::of(self, position)?.roots(self.view)?;
                let waiting = self.waiting_behind(position)?;
                Ok(Why::Held(WhyHeld { missing, roots, waiting }))
            }
            // Nothing is in hand between two windows, and who looks an id up passes the others.
            Some(KnownAs::InHand(_) | KnownAs::Discarded(..) | KnownAs::Awaited(_)) | None => {
                let partition = self.partition();
                let key = partition.keys.event(self.stream_key, id);
                let found = partition.find_discarded(self.stream, key, id, self.view.lookup)?;
                Ok(found
                    .map_or(Why::Unknown, |(position, reason)| Why::Discarded { position, reason }))
            }
        }
    }

    /// How many held events wait for this one, directly or not.
    fn waiting_behind(&self, position: u64) -> Result<u64, Unanswered> {
        // A held event watches one of the parents it waits for; here they all count.
        let mut children: BTreeMap<Vec<u8>, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
        for child in held_positions(self.view.partitions, self.view.lookup)? {
            self.view.go_on()?;
            let record = self.view.lookup.record(child)?;
            if record.stream() == self.stream {
                let id = self.id_at(child)?;
                for parent in record.parents() {
                    children.entry(parent.to_vec()).or_default().push((child, id.clone()));
                }
            }
        }
        let mut seen = BTreeSet::from([position]);
        let mut to_visit = vec![self.id_at(position)?];
        while let Some(id) = to_visit.pop() {
            self.view.go_on()?;
            for (child, id) in children.remove(&id).unwrap_or_default() {
                if seen.insert(child) {
                    to_visit.push(id);
                }
            }
        }
        Ok(seen.len() as u64 - 1)
    }
}

/// The held ancestors of a held event, and the parents at which the search ended.
struct Ancestry {
    /// Ids by position.
    ids: BTreeMap<u64, Vec<u8>>,
    /// For each held ancestor, its parents that are held too.
    held_parents: BTreeMap<u64, BTreeSet<u64>>,
    absent: BTreeSet<Vec<u8>>,
}

impl Ancestry {
    fn of(asked: &Asked<'_>, position: u64) -> Result<Self, Unanswered> {
        let mut ancestry = Ancestry {
            ids: BTreeMap::new(),
            held_parents: BTreeMap::new(),
            absent: BTreeSet::new(),
        };
        let mut to_visit = vec![position];
        while let Some(position) = to_visit.pop() {
            asked.view.go_on()?;
            if ancestry.ids.contains_key(&position) {
                continue;
            }
            ancestry.ids.insert(position, asked.id_at(position)?);
            let mut held_parents = BTreeSet::new();
            for parent in asked.missing_parents(position)? {
                match asked.find(&parent)? {
                    Some(KnownAs::Held(parent)) => {
                        held_parents.insert(parent);
                        to_visit.push(parent);
                    }
                    _ => {
                        ancestry.absent.insert(parent);
                    }
                }
            }
            ancestry.held_parents.insert(position, held_parents);
        }
        Ok(ancestry)
    }

    /// Absent parents, and the events on cycles: what is left when events without held parents, and
    /// then events without held children, are taken away again and again.
    fn roots(mut self, view: View<'_>) -> Result<Vec<Root>, Unanswered> {
        let mut children: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (&child, parents) in &self.held_parents {
            view.go_on()?;
            children.entry(child).or_default();
            for &parent in parents {
                children.entry(parent).or_default().insert(child);
            }
        }
        peel(&mut self.held_parents, &mut children, view)?;
        peel(&mut children, &mut self.held_parents, view)?;
        let absent = self.absent.into_iter().map(|id| Root { id, kind: RootKind::Absent });
        let mut ids = self.ids;
        let cycles = children.into_keys().filter_map(|position| {
            Some(Root { id: ids.remove(&position)?, kind: RootKind::Cycle })
        });
        Ok(absent.chain(cycles).collect())
    }
}

/// Takes away every node without a neighbour in `ahead`, until each has one.
fn peel(
    ahead: &mut BTreeMap<u64, BTreeSet<u64>>,
    behind: &mut BTreeMap<u64, BTreeSet<u64>>,
    view: View<'_>,
) -> Result<(), Unanswered> {
    let bare = ahead.iter().filter(|(_, neighbours)| neighbours.is_empty());
    let mut bare: Vec<u64> = bare.map(|(&node, _)| node).collect();
    while let Some(node) = bare.pop() {
        view.go_on()?;
        ahead.remove(&node);
        for dependent in behind.remove(&node).unwrap_or_default() {
            if let Some(neighbours) = ahead.get_mut(&dependent) {
                neighbours.remove(&node);
                if neighbours.is_empty() {
                    bare.push(dependent);
                }
            }
        }
    }
    Ok(())
}
