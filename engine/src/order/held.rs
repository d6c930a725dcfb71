//! Events that wait for parents, and for each missing parent the list of its waiting children.
//!
//! A list per parent, never one child: a parent may be awaited by any number of events. Releasing
//! costs time linear in the children that are released. Parents are found by key; the caller
//! compares the bytes behind it before a child is counted down.

use hashbrown::HashTable;

/// Ends a list of children.
const NIL: u32 = u32::MAX;

/// An event that is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldNode {
    /// Position of the event in the log.
    pub(crate) position: u64,
    /// Key of its id.
    pub(crate) key: u64,
    /// Index of its stream in the partition.
    pub(crate) stream: u32,
    /// Distinct parents that are not delivered.
    pub(crate) missing: u32,
}

/// That a child waits for a parent.
#[derive(Debug, Clone, Copy)]
struct Edge {
    child: u32,
    /// Where the parent stands in the child's list, in bytes.
    parent_at: u32,
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    parent_key: u64,
    first: u32,
}

/// All held events of a partition.
#[derive(Debug, Default)]
pub(crate) struct Held {
    nodes: Slab<HeldNode>,
    edges: Slab<Edge>,
    waiting: HashTable<Waiting>,
}

impl Held {
    /// Number of held events.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, node: u32) -> &HeldNode {
        self.nodes.get(node)
    }

    /// All held events, in no particular order.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (u32, &HeldNode)> {
        self.nodes.iter()
    }

    /// Holds an event until every parent in `missing` is delivered: each with its key and its
    /// place in the event's list, each parent once.
    pub(crate) fn hold(&mut self, node: HeldNode, missing: &[(u64, u32)]) -> u32 {
        debug_assert_eq!(node.missing as usize, missing.len());
        let child = self.nodes.insert(node);
        for &(parent_key, parent_at) in missing {
            let entry = self.waiting.entry(
                parent_key,
                |waiting| waiting.parent_key == parent_key,
                |waiting| waiting.parent_key,
            );
            let mut waiting = entry.or_insert(Waiting { parent_key, first: NIL });
            let next = waiting.get().first;
            waiting.get_mut().first = self.edges.insert(Edge { child, parent_at, next });
        }
        child
    }

    /// Counts down the children of a parent that is delivered now, and calls `ready` for those
    /// that wait for nothing more. `is_parent(child, at)` tells whether the parent is really
    /// the one that stands there in the child's list.
    pub(crate) fn release<E>(
        &mut self,
        parent_key: u64,
        mut is_parent: impl FnMut(&HeldNode, u32) -> Result<bool, E>,
        mut ready: impl FnMut(u32, &HeldNode),
    ) -> Result<(), E> {
        let Ok(entry) =
            self.waiting.find_entry(parent_key, |waiting| waiting.parent_key == parent_key)
        else {
            return Ok(());
        };
        let (waiting, _) = entry.remove();
        let mut kept = NIL;
        let mut next = waiting.first;
        while next != NIL {
            let index = next;
            let edge = *self.edges.get(index);
            next = edge.next;
            let node = self.nodes.get_mut(edge.child);
            if is_parent(node, edge.parent_at)? {
                self.edges.remove(index);
                node.missing -= 1;
                if node.missing == 0 {
                    ready(edge.child, node);
                }
            } else {
                // Another id with the same key: this child goes on waiting.
                self.edges.get_mut(index).next = kept;
                kept = index;
            }
        }
        if kept != NIL {
            let waiting = Waiting { parent_key, first: kept };
            self.waiting.insert_unique(parent_key, waiting, |waiting| waiting.parent_key);
        }
        Ok(())
    }

    /// Forgets an event that is delivered.
    pub(crate) fn remove(&mut self, node: u32) {
        self.nodes.remove(node);
    }

    /// For every held event, the parents it waits for, each with its key and place.
    pub(crate) fn missing_of_all(&self) -> Vec<Vec<(u64, u32)>> {
        let mut missing = vec![Vec::new(); self.nodes.slots()];
        for waiting in &self.waiting {
            let mut next = waiting.first;
            while next != NIL {
                let edge = self.edges.get(next);
                missing[edge.child as usize].push((waiting.parent_key, edge.parent_at));
                next = edge.next;
            }
        }
        missing
    }

    /// Children that wait for a parent with this key.
    pub(crate) fn children(&self, parent_key: u64) -> Vec<(u32, u32)> {
        let mut children = Vec::new();
        let found = self.waiting.find(parent_key, |waiting| waiting.parent_key == parent_key);
        let mut next = found.map_or(NIL, |waiting| waiting.first);
        while next != NIL {
            let edge = self.edges.get(next);
            children.push((edge.child, edge.parent_at));
            next = edge.next;
        }
        children
    }
}

/// Values at stable indices; freed indices are used again.
#[derive(Debug)]
struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    const THERE: &str = "an index of the slab is used only while its value is there";

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn insert(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(value);
            return index;
        }
        let index = u32::try_from(self.slots.len()).expect("fewer than 2^32 events are held");
        assert_ne!(index, NIL, "fewer than 2^32 - 1 events are held");
        self.slots.push(Some(value));
        index
    }

    fn get(&self, index: u32) -> &T {
        self.slots[index as usize].as_ref().expect(Self::THERE)
    }

    fn get_mut(&mut self, index: u32) -> &mut T {
        self.slots[index as usize].as_mut().expect(Self::THERE)
    }

    fn remove(&mut self, index: u32) {
        self.slots[index as usize].take().expect(Self::THERE);
        if self.free.len() + 1 == self.slots.len() {
            // Empty again: give the memory of a worst case back.
            *self = Slab::default();
        } else {
            self.free.push(index);
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(index, slot)| slot.as_ref().map(|value| (index as u32, value)))
    }
}
