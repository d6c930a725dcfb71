//! Questions about the state of the machine, answered by the orderer between two windows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::error::ReadError;
use crate::event::EventId;
use crate::order::held::HeldNode;
use crate::order::keys::partition_of;
use crate::order::partition::{KnownAs, Partition, parent_at};
use crate::pipeline::lookup::{Fault, Lookup};
use crate::sync::Promise;

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
    /// The store has no such event.
    Unknown,
    /// It is delivered.
    Delivered {
        /// Its place in the whole store.
        global: u64,
        /// Its place in its stream.
        local: u64,
    },
    /// It waits.
    Held(WhyHeld),
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
    Held(Answer<Vec<HeldEvent>>),
    Streams(Answer<Vec<StreamInfo>>),
    Tips { stream_key: u64, stream: Vec<u8>, answer: Answer<Vec<Vec<u8>>> },
    Why { stream_key: u64, stream: Vec<u8>, id: Vec<u8>, answer: Answer<Why> },
}

/// Answers.
pub(crate) fn answer(question: Question, partitions: &[Partition], lookup: &Lookup) {
    match question {
        Question::Held(answer) => {
            answer.complete(held_events(partitions, lookup).map_err(Into::into));
        }
        Question::Streams(answer) => {
            answer.complete(Ok(streams(partitions)));
        }
        Question::Tips { stream_key, stream, answer } => {
            let partition = &partitions[partition_of(stream_key)];
            let tips = match partition.find_stream(stream_key, &stream) {
                Some(stream) => partition.tip_ids(stream, lookup),
                None => Ok(Vec::new()),
            };
            answer.complete(tips.map_err(Into::into));
        }
        Question::Why { stream_key, stream, id, answer } => {
            let partition = &partitions[partition_of(stream_key)];
            answer.complete(why(partition, stream_key, &stream, &id, lookup).map_err(Into::into));
        }
    }
}

fn held_events(partitions: &[Partition], lookup: &Lookup) -> Result<Vec<HeldEvent>, Fault> {
    let mut events = Vec::new();
    for partition in partitions {
        for (_, node) in partition.held.nodes() {
            let Some(record) = lookup.or_none(lookup.record(node.position))? else { continue };
            events.push(HeldEvent {
                stream: record.stream().to_vec(),
                id: EventId::of(&record, partition.store_tag).to_vec(),
                position: node.position,
                missing: missing_parents(partition, node, lookup)?,
            });
        }
    }
    events.sort_unstable_by_key(|event| event.position);
    Ok(events)
}

fn streams(partitions: &[Partition]) -> Vec<StreamInfo> {
    let streams = partitions.iter().flat_map(|partition| &partition.streams);
    let mut infos: Vec<StreamInfo> = streams
        .filter(|stream| stream.is_there())
        .map(|stream| StreamInfo {
            name: stream.name.to_vec(),
            delivered: stream.delivered,
            held: u64::from(stream.held),
            tips: stream.tips.len() as u64,
            sealed: stream.sealed,
        })
        .collect();
    infos.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    infos
}

/// The listed parents of a held event that are not delivered, each once.
fn missing_parents(
    partition: &Partition,
    node: &HeldNode,
    lookup: &Lookup,
) -> Result<Vec<Vec<u8>>, Fault> {
    let mut missing = Vec::new();
    let mut seen = BTreeSet::new();
    for parent in lookup.record(node.position)?.parents() {
        if seen.insert(parent) && !partition.is_delivered(node.stream, parent, lookup)? {
            missing.push(parent.to_vec());
        }
    }
    Ok(missing)
}

fn why(
    partition: &Partition,
    stream_key: u64,
    stream: &[u8],
    id: &[u8],
    lookup: &Lookup,
) -> Result<Why, Fault> {
    let Some(stream) = partition.find_stream(stream_key, stream) else { return Ok(Why::Unknown) };
    let key = partition.keys.event(stream_key, id);
    match partition.find_known(stream, key, id, lookup)? {
        Some(KnownAs::Delivered(global)) => {
            Ok(Why::Delivered { global, local: lookup.entry(global)?.local })
        }
        Some(KnownAs::Held(node)) => {
            let missing = missing_parents(partition, partition.held.node(node), lookup)?;
            let roots = Ancestry::of(partition, node, lookup)?.roots();
            let waiting = waiting_behind(partition, node, lookup)?;
            Ok(Why::Held(WhyHeld { missing, roots, waiting }))
        }
        // Nothing is in hand between two windows.
        Some(KnownAs::InHand(_)) | None => Ok(Why::Unknown),
    }
}

/// The held ancestors of a held event, and the parents at which the search ended.
struct Ancestry {
    ids: BTreeMap<u32, Vec<u8>>,
    /// For each held ancestor, its parents that are held too.
    held_parents: BTreeMap<u32, BTreeSet<u32>>,
    absent: BTreeSet<Vec<u8>>,
}

impl Ancestry {
    fn of(partition: &Partition, node: u32, lookup: &Lookup) -> Result<Self, Fault> {
        let mut ancestry = Ancestry {
            ids: BTreeMap::new(),
            held_parents: BTreeMap::new(),
            absent: BTreeSet::new(),
        };
        let mut to_visit = vec![node];
        while let Some(node) = to_visit.pop() {
            if ancestry.ids.contains_key(&node) {
                continue;
            }
            let held = partition.held.node(node);
            let record = lookup.record(held.position)?;
            ancestry.ids.insert(node, EventId::of(&record, partition.store_tag).to_vec());
            let stream_key = partition.streams[held.stream as usize].key;
            let mut held_parents = BTreeSet::new();
            for parent in missing_parents(partition, held, lookup)? {
                let key = partition.keys.event(stream_key, &parent);
                match partition.find_known(held.stream, key, &parent, lookup)? {
                    Some(KnownAs::Held(parent)) => {
                        held_parents.insert(parent);
                        to_visit.push(parent);
                    }
                    _ => {
                        ancestry.absent.insert(parent);
                    }
                }
            }
            ancestry.held_parents.insert(node, held_parents);
        }
        Ok(ancestry)
    }

    /// Absent parents, and the events on cycles: what is left when events without held parents, and
    /// then events without held children, are taken away again and again.
    fn roots(mut self) -> Vec<Root> {
        let mut children: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (&child, parents) in &self.held_parents {
            children.entry(child).or_default();
            for &parent in parents {
                children.entry(parent).or_default().insert(child);
            }
        }
        peel(&mut self.held_parents, &mut children);
        peel(&mut children, &mut self.held_parents);
        let absent = self.absent.into_iter().map(|id| Root { id, kind: RootKind::Absent });
        let mut ids = self.ids;
        let cycles = children
            .into_keys()
            .filter_map(|node| Some(Root { id: ids.remove(&node)?, kind: RootKind::Cycle }));
        absent.chain(cycles).collect()
    }
}

/// Takes away every node without a neighbour in `ahead`, until each has one.
fn peel(ahead: &mut BTreeMap<u32, BTreeSet<u32>>, behind: &mut BTreeMap<u32, BTreeSet<u32>>) {
    let bare = ahead.iter().filter(|(_, neighbours)| neighbours.is_empty());
    let mut bare: Vec<u32> = bare.map(|(&node, _)| node).collect();
    while let Some(node) = bare.pop() {
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
}

/// How many held events wait for this one, directly or not.
fn waiting_behind(partition: &Partition, node: u32, lookup: &Lookup) -> Result<u64, Fault> {
    let mut seen = BTreeSet::from([node]);
    let mut to_visit = VecDeque::from([node]);
    while let Some(node) = to_visit.pop_front() {
        let held = partition.held.node(node);
        let record = lookup.record(held.position)?;
        let id = EventId::of(&record, partition.store_tag);
        for (child, at) in partition.held.children(held.key) {
            let child_record = lookup.record(partition.held.node(child).position)?;
            let is_parent = child_record.stream() == record.stream()
                && parent_at(&child_record, at) == Some(&*id);
            if is_parent && seen.insert(child) {
                to_visit.push_back(child);
            }
        }
    }
    Ok(seen.len() as u64 - 1)
}
