//! Events that wait for parents: each watches the first of them that is missing.
//!
//! An event needs all its parents, but it is enough to watch one. When that one is delivered, the event
//! looks on along its list for the next that is missing: a delivered parent stays delivered, so each
//! is looked at once, whatever the order in which they come. (The idea is from SAT solvers:
//! M. Moskewicz et al., "Chaff", 2001, watch two literals of a clause.) So there is nothing to count,
//! and the state of a held event is its watch, in memory as in a run.
//!
//! A parent has a list of watches, never one child: any number of events may wait for it.

use crate::derived::run::WatchItem;

/// Ends a list of watches, and is a list without any.
pub(crate) const NIL: u32 = u32::MAX;

/// A held event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watch {
    /// Position of the event in the log.
    pub(crate) position: u64,
    /// Key of its id.
    pub(crate) key: u64,
    /// Where the watched parent stands in the event's list, in bytes.
    pub(crate) parent_at: u32,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    watch: Watch,
    next: u32,
    /// Where the watch stands among the fresh ones, if it still is one.
    fresh: u32,
}

/// The watches of a partition that are in memory. Where the list of a parent begins is known to
/// whoever has the table of ids.
#[derive(Debug)]
pub(crate) struct Watches {
    nodes: Vec<Node>,
    /// The first of the nodes that are free, which are linked.
    free: u32,
    len: usize,
    /// Watches since the newest run was begun; those that are over have no parent any more.
    fresh: Vec<WatchItem>,
}

impl Default for Watches {
    fn default() -> Self {
        Watches { nodes: Vec::new(), free: NIL, len: 0, fresh: Vec::new() }
    }
}

impl Watches {
    /// Adds a watch to the list of a parent, and returns where the list begins now.
    pub(crate) fn add(&mut self, first: u32, parent_key: u64, watch: Watch) -> u32 {
        let Watch { position, key, parent_at } = watch;
        let fresh = self.fresh.len() as u32;
        self.fresh.push(WatchItem { parent_key, position, id_key: key, parent_at });
        self.len += 1;
        let node = Node { watch, next: first, fresh };
        let index = self.free;
        if index != NIL {
            self.free = std::mem::replace(&mut self.nodes[index as usize], node).next;
            return index;
        }
        let index = u32::try_from(self.nodes.len()).unwrap_or(NIL);
        assert_ne!(index, NIL, "fewer than 2^32 - 1 events of a partition are held in memory");
        self.nodes.push(node);
        index
    }

    /// Takes the watches of a parent that is delivered now off its list, and puts them into `taken`;
    /// returns where the list begins now. `is_parent(watch)` tells whether the parent is really the
    /// one that stands there in the event's list.
    pub(crate) fn take<E>(
        &mut self,
        first: u32,
        parent_key: u64,
        mut is_parent: impl FnMut(&Watch) -> Result<bool, E>,
        taken: &mut Vec<Watch>,
    ) -> Result<u32, E> {
        let mut kept = NIL;
        let mut next = first;
        while next != NIL {
            let index = next;
            let node = self.nodes[index as usize];
            next = node.next;
            if is_parent(&node.watch)? {
                taken.push(node.watch);
                self.remove(index, parent_key);
            } else {
                // Another id with the same key: this event goes on waiting.
                self.nodes[index as usize].next = kept;
                kept = index;
            }
        }
        if self.len == 0 {
            // Give the memory of a worst case back.
            (self.nodes, self.free) = (Vec::new(), NIL);
        }
        Ok(kept)
    }

    fn remove(&mut self, index: u32, parent_key: u64) {
        let node = &mut self.nodes[index as usize];
        node.next = std::mem::replace(&mut self.free, index);
        self.len -= 1;
        // The number may be from before the newest run, and another's now.
        if let Some(fresh) = self.fresh.get_mut(node.fresh as usize)
            && (fresh.parent_key, fresh.position) == (parent_key, node.watch.position)
        {
            fresh.parent_key = 0;
        }
    }

    /// The watches of a list.
    pub(crate) fn list(&self, first: u32) -> impl Iterator<Item = Watch> {
        let mut next = first;
        std::iter::from_fn(move || {
            let node = self.nodes.get(next as usize)?;
            next = node.next;
            Some(node.watch)
        })
    }

    /// The watches that are not over, of those since this was last called.
    pub(crate) fn take_fresh(&mut self) -> Vec<WatchItem> {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|watch| watch.parent_key != 0);
        fresh
    }

    /// Number of watches since then, over or not.
    pub(crate) fn fresh_count(&self) -> usize {
        self.fresh.len()
    }

    /// Bytes of memory.
    pub(crate) fn memory_len(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.fresh.capacity() * size_of::<WatchItem>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(position: u64) -> Watch {
        Watch { position, key: position + 1000, parent_at: 0 }
    }

    /// The lists of some parents.
    #[derive(Default)]
    struct Lists {
        watches: Watches,
        first: std::collections::BTreeMap<u64, u32>,
    }

    impl Lists {
        fn add(&mut self, parent_key: u64, position: u64) {
            let first = self.first.entry(parent_key).or_insert(NIL);
            *first = self.watches.add(*first, parent_key, watch(position));
        }

        fn take(&mut self, parent_key: u64, not: &[u64]) -> Vec<u64> {
            let first = self.first.entry(parent_key).or_insert(NIL);
            let mut taken = Vec::new();
            let is_parent = |watch: &Watch| Ok::<_, ()>(!not.contains(&watch.position));
            *first =
                self.watches.take(*first, parent_key, is_parent, &mut taken).expect("no error");
            let mut positions: Vec<u64> = taken.iter().map(|watch| watch.position).collect();
            positions.sort_unstable();
            positions
        }

        fn fresh(&mut self) -> Vec<u64> {
            self.watches.take_fresh().iter().map(|item| item.position).collect()
        }
    }

    #[test]
    fn all_that_watch_a_parent_are_taken_and_no_others() {
        let mut lists = Lists::default();
        for position in 0..10 {
            lists.add(1 + position % 3, position);
        }
        assert_eq!(lists.take(1, &[3]), [0, 6, 9]);
        assert_eq!(lists.take(1, &[]), [3]);
        assert_eq!(lists.take(1, &[]), [] as [u64; 0]);
        lists.add(1, 20);
        assert_eq!(lists.take(1, &[]), [20]);
        assert_eq!(lists.watches.list(lists.first[&2]).count(), 3);
        assert_eq!(lists.take(2, &[]), [1, 4, 7]);
        assert_eq!(lists.take(3, &[]), [2, 5, 8]);
        assert_eq!(lists.watches.len, 0);
    }

    #[test]
    fn what_is_fresh_are_the_watches_that_are_not_over() {
        let mut lists = Lists::default();
        (0..6).for_each(|position| lists.add(1 + position % 2, position));
        lists.take(1, &[2]);
        assert_eq!(lists.fresh(), [1, 2, 3, 5]);
        // Numbers from before must not take what is fresh now.
        (10..14).for_each(|position| lists.add(3, position));
        assert_eq!(lists.take(2, &[]), [1, 3, 5]);
        assert_eq!(lists.take(3, &[12]), [10, 11, 13]);
        assert_eq!(lists.fresh(), [12]);
        assert_eq!(lists.take(3, &[]), [12]);
        assert_eq!(lists.fresh(), [] as [u64; 0]);
    }
}
