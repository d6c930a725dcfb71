//! Pictures of a stream's events and their parents.
//!
//! [`Dag::new`] puts the events in drawing order, newest first: held events on top, then the
//! events that they miss, then the delivered ones. [`layout`] gives each row its column and its
//! lines; [`text`] and [`svg`] draw that, [`dot`] leaves the drawing to Graphviz.

use std::collections::{BinaryHeap, HashMap};

use crate::output;

pub(crate) mod dot;
mod layout;
pub(crate) mod svg;
pub(crate) mod text;

/// Characters of an id that are drawn. A hash of 20 bytes in hexadecimal digits fits.
const ID_WIDTH: usize = 40;
/// Characters of a payload that are drawn.
const PAYLOAD_WIDTH: usize = 40;

/// A delivered event, as it goes into the picture.
pub(crate) struct Delivered {
    pub(crate) id: Vec<u8>,
    pub(crate) local: u64,
    pub(crate) parents: Vec<Vec<u8>>,
    pub(crate) payload: String,
}

/// A held event, as it goes into the picture.
pub(crate) struct Held {
    pub(crate) id: Vec<u8>,
    pub(crate) missing: Vec<Vec<u8>>,
}

/// What is drawn, in drawing order.
pub(crate) struct Dag {
    nodes: Vec<Node>,
    /// Delivered events that are older than the picture.
    older: u64,
}

struct Node {
    id: Vec<u8>,
    kind: Kind,
    /// Indices of the parents; all are greater than the node's own.
    parents: Vec<usize>,
    /// Parents that stand above: the event waits for itself, over a cycle.
    cycle: Vec<usize>,
    /// Number of parents that are older than the picture.
    older_parents: usize,
}

enum Kind {
    Delivered { local: u64, payload: String },
    Held,
    Absent,
}

impl Dag {
    /// Takes the newest delivered events in local order, the number of older ones that are left
    /// out, and the held events in the order of their arrival.
    pub(crate) fn new(delivered: Vec<Delivered>, older: u64, held: Vec<Held>) -> Self {
        let mut nodes = Vec::with_capacity(delivered.len() + held.len());
        let mut parents = Vec::with_capacity(nodes.capacity());
        for index in children_first(&held) {
            parents.push(held[index].missing.as_slice());
            nodes.push(Node::new(&held[index].id, Kind::Held));
        }
        let mut index: HashMap<&[u8], usize> = HashMap::new();
        for (at, event) in children_first(&held).into_iter().enumerate() {
            index.insert(&held[event].id, at);
        }
        for missing in held.iter().flat_map(|event| &event.missing) {
            index.entry(missing).or_insert_with(|| {
                parents.push(&[]);
                nodes.push(Node::new(missing, Kind::Absent));
                nodes.len() - 1
            });
        }
        for event in delivered.iter().rev() {
            index.insert(&event.id, nodes.len());
            parents.push(&event.parents);
            let (local, payload) = (event.local, event.payload.clone());
            nodes.push(Node::new(&event.id, Kind::Delivered { local, payload }));
        }
        for (at, (node, parents)) in nodes.iter_mut().zip(parents).enumerate() {
            node.link(at, parents, &index);
        }
        Dag { nodes, older }
    }
}

impl Node {
    fn new(id: &[u8], kind: Kind) -> Self {
        Node { id: id.to_vec(), kind, parents: Vec::new(), cycle: Vec::new(), older_parents: 0 }
    }

    fn link(&mut self, at: usize, parents: &[Vec<u8>], index: &HashMap<&[u8], usize>) {
        for parent in parents {
            match index.get(parent.as_slice()) {
                None => self.older_parents += 1,
                Some(parent) if *parent > at => self.parents.push(*parent),
                Some(parent) => self.cycle.push(*parent),
            }
        }
        for list in [&mut self.parents, &mut self.cycle] {
            let mut seen = std::collections::HashSet::new();
            list.retain(|parent| seen.insert(*parent));
        }
    }

    /// The node in words. `undrawn` counts the parents that have no line.
    fn label(&self, undrawn: usize) -> String {
        let id = shortened(&output::name(&self.id));
        let mut label = match &self.kind {
            Kind::Delivered { local, payload } => format!("{local}  {id}  {payload}"),
            Kind::Held => format!("held  {id}"),
            Kind::Absent => format!("never arrived  {id}"),
        };
        label.truncate(label.trim_end().len());
        let notes = [(self.older_parents, "older"), (undrawn, "not drawn")];
        for (number, what) in notes.into_iter().filter(|(number, _)| *number > 0) {
            let parents = output::plural(number as u64, "parent");
            label.push_str(&format!("  ({parents} {what})"));
        }
        if !self.cycle.is_empty() {
            label.push_str("  (in a cycle)");
        }
        label
    }
}

fn shortened(id: &str) -> String {
    if id.chars().count() <= ID_WIDTH {
        return id.to_owned();
    }
    id.chars().take(ID_WIDTH - 1).chain(['…']).collect()
}

/// The first characters of a payload, for [`Delivered::payload`].
pub(crate) fn payload_shown(payload: &[u8]) -> String {
    output::preview(payload, PAYLOAD_WIDTH)
}

/// Held events with children before parents and otherwise the newest first, as indices. In a cycle
/// there is no such order; it is cut at its newest event.
fn children_first(held: &[Held]) -> Vec<usize> {
    let index: HashMap<&[u8], usize> =
        held.iter().enumerate().map(|(at, event)| (event.id.as_slice(), at)).collect();
    let parents = |at: usize| held[at].missing.iter().filter_map(|id| index.get(id.as_slice()));
    let mut children = vec![0usize; held.len()];
    for parent in (0..held.len()).flat_map(parents) {
        children[*parent] += 1;
    }
    let mut ready: BinaryHeap<usize> = (0..held.len()).filter(|at| children[*at] == 0).collect();
    let mut drawn = vec![false; held.len()];
    let mut left = (0..held.len()).rev();
    let mut order = Vec::with_capacity(held.len());
    while order.len() < held.len() {
        let next = ready.pop().or_else(|| left.find(|at| !drawn[*at]));
        let next = next.expect("an event that is not drawn is left");
        if std::mem::replace(&mut drawn[next], true) {
            continue;
        }
        order.push(next);
        for parent in parents(next) {
            children[*parent] -= 1;
            if children[*parent] == 0 && !drawn[*parent] {
                ready.push(*parent);
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn delivered(events: &[(&str, &[&str])]) -> Vec<Delivered> {
        let bytes = |id: &&str| id.as_bytes().to_vec();
        (0..)
            .zip(events)
            .map(|(local, (id, parents))| Delivered {
                id: bytes(id),
                local,
                parents: parents.iter().map(bytes).collect(),
                payload: String::new(),
            })
            .collect()
    }

    pub(super) fn held(events: &[(&str, &[&str])]) -> Vec<Held> {
        let bytes = |id: &&str| id.as_bytes().to_vec();
        events
            .iter()
            .map(|(id, missing)| Held {
                id: bytes(id),
                missing: missing.iter().map(bytes).collect(),
            })
            .collect()
    }

    #[test]
    fn held_events_stand_above_what_they_wait_for() {
        let held = held(&[("a", &["x"]), ("c", &["b"]), ("b", &["a", "x"]), ("d", &["x"])]);
        let dag = Dag::new(delivered(&[("r", &[]), ("s", &["r"])]), 0, held);
        let ids: Vec<_> = dag.nodes.iter().map(|node| output::name(&node.id)).collect();
        assert_eq!(ids, ["d", "c", "b", "a", "x", "s", "r"]);
        for (at, node) in dag.nodes.iter().enumerate() {
            assert!(node.parents.iter().all(|parent| *parent > at));
            assert!(node.cycle.is_empty());
        }
    }

    #[test]
    fn cycles_end() {
        let held = held(&[("a", &["b"]), ("b", &["a"]), ("self", &["self"]), ("c", &["a", "a"])]);
        let dag = Dag::new(Vec::new(), 0, held);
        assert_eq!(dag.nodes.len(), 4);
        assert_eq!(dag.nodes.iter().map(|node| node.cycle.len()).sum::<usize>(), 2);
    }
}
