//! Events that wait for parents: each watches the first of them that is missing.
//!
//! An event needs all its parents, but it is enough to watch one. When that one is delivered, the event
//! looks on along its list for the next that is missing: a delivered parent stays delivered, so each
//! is looked at once, whatever the order in which they come. (The idea is from SAT solvers:
//! M. Moskewicz et al., "Chaff", 2001, watch two literals of a clause.) So there is nothing to count,
//! and the state of a held event is its watch, in memory as in a run.
//!
//! A parent has a list of watches, never one child: any number of events may wait for it.

use hashbrown::HashTable;

use crate::derived::run::WatchItem;

/// Ends a list of watches.
const NIL: u32 = u32::MAX;

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

#[derive(Debug, Clone, Copy)]
struct List {
    parent_key: u64,
    first: u32,
}

/// The watches of a partition that are in memory.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    nodes: Vec<Node>,
    /// The first of the nodes that are free, which are linked.
    free: Option<u32>,
    len: usize,
    lists: HashTable<List>,
    /// Watches since the newest run was begun; those that are over have no parent any more.
    fresh: Vec<WatchItem>,
}

impl Watches {
    /// Adds a watch.
    pub(crate) fn add(&mut self, parent_key: u64, watch: Watch) {
        let Watch { position, key, parent_at } = watch;
        let fresh = self.fresh.len() as u32;
        self.fresh.push(WatchItem { parent_key, position, id_key: key, parent_at });
        let entry = self.lists.entry(
            parent_key,
            |list| list.parent_key == parent_key,
            |list| list.parent_key,
        );
        let mut list = entry.or_insert(List { parent_key, first: NIL });
        let list = list.get_mut();
        let node = Node { watch, next: list.first, fresh };
        self.len += 1;
        list.first = match self.free {
            Some(index) => {
                let next_free = self.nodes[index as usize].next;
                self.free = (next_free != NIL).then_some(next_free);
                self.nodes[index as usize] = node;
                index
            }
            None => {
                let index = u32::try_from(self.nodes.len()).unwrap_or(NIL);
                assert_ne!(
                    index, NIL,
                    "fewer than 2^32 - 1 events of a partition are held in memory"
                );
                self.nodes.push(node);
                index
            }
        };
    }

    /// Takes the watches of a parent that is delivered now, and puts them into `taken`.
    /// `is_parent(watch)` tells whether the parent is really the one that stands there in the
    /// event's list.
    pub(crate) fn take<E>(
        &mut self,
        parent_key: u64,
        mut is_parent: impl FnMut(&Watch) -> Result<bool, E>,
        taken: &mut Vec<Watch>,
    ) -> Result<(), E> {
        if self.len == 0 {
            return Ok(());
        }
        let Ok(entry) = self.lists.find_entry(parent_key, |list| list.parent_key == parent_key)
        else {
            return Ok(());
        };
        let (list, _) = entry.remove();
        let mut kept = NIL;
        let mut next = list.first;
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
        if kept != NIL {
            let list = List { parent_key, first: kept };
            self.lists.insert_unique(parent_key, list, |list| list.parent_key);
        }
        if self.len == 0 {
            // Give the memory of a worst case back.
            (self.nodes, self.free, self.lists) = Default::default();
        }
        Ok(())
    }

    fn remove(&mut self, index: u32, parent_key: u64) {
        let node = &mut self.nodes[index as usize];
        node.next = self.free.unwrap_or(NIL);
        self.free = Some(index);
        self.len -= 1;
        // The number may be from before the newest run, and another's now.
        if let Some(fresh) = self.fresh.get_mut(node.fresh as usize)
            && (fresh.parent_key, fresh.position) == (parent_key, node.watch.position)
        {
            fresh.parent_key = 0;
        }
    }

    /// All watches, each with the key of its parent, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = WatchItem> {
        self.lists.iter().flat_map(move |list| {
            let mut next = list.first;
            std::iter::from_fn(move || {
                let node = self.nodes.get(next as usize)?;
                next = node.next;
                let Watch { position, key, parent_at } = node.watch;
                Some(WatchItem { parent_key: list.parent_key, position, id_key: key, parent_at })
            })
        })
    }

    /// The watches that are not over, of those since this was last called.
    pub(crate) fn take_fresh(&mut self) -> Vec<WatchItem> {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|watch| watch.parent_key != 0);
        fresh
    }

    /// Forgets the watches that are not fresh, and returns what is left.
    pub(crate) fn retain_fresh(&mut self) -> impl Iterator<Item = WatchItem> {
        let fresh = self.take_fresh();
        *self = Watches::default();
        for item in fresh {
            let WatchItem { parent_key, position, id_key: key, parent_at } = item;
            self.add(parent_key, Watch { position, key, parent_at });
        }
        self.fresh.iter().copied()
    }

    /// Bytes of memory.
    pub(crate) fn memory_len(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.lists.allocation_size()
            + self.fresh.capacity() * size_of::<WatchItem>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(position: u64) -> Watch {
        Watch { position, key: position + 1000, parent_at: 0 }
    }

    fn take(watches: &mut Watches, parent_key: u64, not: &[u64]) -> Vec<u64> {
        let mut taken = Vec::new();
        let is_parent = |watch: &Watch| Ok::<_, ()>(!not.contains(&watch.position));
        watches.take(parent_key, is_parent, &mut taken).expect("no error");
        let mut positions: Vec<u64> = taken.iter().map(|watch| watch.position).collect();
        positions.sort_unstable();
        positions
    }

    #[test]
    fn all_that_watch_a_parent_are_taken_and_no_others() {
        let mut watches = Watches::default();
        for position in 0..10 {
            watches.add(1 + position % 3, watch(position));
        }
        assert_eq!(take(&mut watches, 1, &[3]), [0, 6, 9]);
        assert_eq!(take(&mut watches, 1, &[]), [3]);
        assert_eq!(take(&mut watches, 1, &[]), [] as [u64; 0]);
        assert_eq!(watches.iter().count(), 6);
        watches.add(1, watch(20));
        assert_eq!(take(&mut watches, 1, &[]), [20]);
        assert_eq!(take(&mut watches, 2, &[]), [1, 4, 7]);
        assert_eq!(take(&mut watches, 3, &[]), [2, 5, 8]);
        assert_eq!(watches.len, 0);
    }

    #[test]
    fn what_is_fresh_are_the_watches_that_are_not_over() {
        let mut watches = Watches::default();
        let positions = |items: Vec<WatchItem>| -> Vec<u64> {
            items.iter().map(|item| item.position).collect()
        };
        (0..6).for_each(|position| watches.add(1 + position % 2, watch(position)));
        take(&mut watches, 1, &[2]);
        assert_eq!(positions(watches.take_fresh()), [1, 2, 3, 5]);
        // Numbers from before must not take what is fresh now.
        (10..14).for_each(|position| watches.add(3, watch(position)));
        take(&mut watches, 2, &[]);
        assert_eq!(positions(watches.retain_fresh().collect()), [10, 11, 12, 13]);
        assert_eq!(take(&mut watches, 1, &[]), [] as [u64; 0], "forgotten");
        assert_eq!(take(&mut watches, 3, &[12]), [10, 11, 13]);
        assert_eq!(positions(watches.take_fresh()), [12]);
    }
}
