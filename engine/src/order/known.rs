//! A hash table with one writer and any number of readers that wait for nobody.
//!
//! Open addressing with linear probing over pairs of atomics. Keys are inserted and never removed,
//! values change in place. A reader that meets a key sees some value that the key has had; what the
//! values mean, and which of them a reader may use, is up to the table's owner: ours are global
//! sequences, and a reader ignores those that are not committed yet.
//!
//! Growing replaces the whole array. Readers find the array behind a reader-biased lock, which they
//! hold for one probe; the writer takes the other side only to put a larger array in its place.
//!
//! The same key may be inserted several times, for different ids that share it; a search visits
//! every entry of a key.

use crate::sync::{
    Arc, AtomicU64, Ordering, ReaderBiased, TABLE_SLOT_COUNT_MIN, load_own, ord, step,
};

/// Marks an empty slot. No key is zero.
const EMPTY: u64 = 0;

/// Slots in the smallest page of memory.
const PAGE_SLOT_COUNT: usize = 4096 / size_of::<Slot>();

#[derive(Debug)]
struct Slot {
    /// Written once by the writer, Release, after `value`; readers load it with Acquire.
    key: AtomicU64,
    /// Written by the writer before `key`, and at any time after it, Release; readers load it with
    /// Acquire.
    value: AtomicU64,
}

#[derive(Debug)]
struct Slots {
    slots: Box<[Slot]>,
}

impl Slots {
    fn new(count: usize) -> Self {
        debug_assert!(count.is_power_of_two());
        let empty = || Slot { key: AtomicU64::new(EMPTY), value: AtomicU64::new(0) };
        let slots: Box<[Slot]> = std::iter::repeat_with(empty).take(count).collect();
        // The allocator may have left the pages to the kernel, as copies of one page of zeros. An
        // insert looks at a slot before it writes there: each page would be mapped twice, and the
        // second time all cores be told.
        for slot in slots.iter().step_by(PAGE_SLOT_COUNT) {
            slot.value.store(0, Ordering::Relaxed);
        }
        Slots { slots }
    }

    /// Index of the slot at which the search for `key` begins. The upper bits of the key chose
    /// the partition, so the lower ones choose the slot.
    #[inline]
    fn start(&self, key: u64) -> usize {
        key as usize & (self.slots.len() - 1)
    }

    #[inline]
    fn next(&self, index: usize) -> usize {
        (index + 1) & (self.slots.len() - 1)
    }

    /// The first entry of `key` whose value `matches`.
    #[inline]
    fn find<T>(&self, key: u64, mut matches: impl FnMut(u64) -> Option<T>) -> Option<(usize, T)> {
        let mut index = self.start(key);
        loop {
            let slot = &self.slots[index];
            // Acquire: pairs with the Release store of the key in `insert`; makes the value that
            // was stored before it visible.
            match slot.key.load(ord!("known.key_acquire", Acquire)) {
                EMPTY => return None,
                found if found == key => {
                    // Acquire: pairs with the Release store in `set`.
                    let value = slot.value.load(ord!("known.value_acquire", Acquire));
                    if let Some(result) = matches(value) {
                        return Some((index, result));
                    }
                }
                _ => {}
            }
            index = self.next(index);
        }
    }

    fn insert(&self, key: u64, value: u64) -> usize {
        debug_assert_ne!(key, EMPTY, "no key is zero");
        let mut index = self.start(key);
        // Only the writer changes keys, and this is the writer.
        while load_own(&self.slots[index].key) != EMPTY {
            index = self.next(index);
        }
        let slot = &self.slots[index];
        if !step!("known.value_before_key") {
            slot.key.store(key, Ordering::Relaxed);
        }
        // Relaxed: no reader looks at it before it has seen the key.
        slot.value.store(value, Ordering::Relaxed);
        // Release: pairs with the Acquire load in `find`.
        slot.key.store(key, ord!("known.key_release", Release));
        index
    }
}

/// The readers' side.
#[derive(Debug)]
pub struct SharedTable {
    current: ReaderBiased<Arc<Slots>>,
}

impl SharedTable {
    /// All values that `key` has at this moment.
    pub fn values(&self, key: u64) -> Vec<u64> {
        let mut values = Vec::new();
        let current = self.current.read();
        current.find(key, |value| {
            values.push(value);
            None::<()>
        });
        values
    }
}

/// The writer's side. There is one.
#[derive(Debug)]
pub struct Table {
    shared: Arc<SharedTable>,
    /// The same array that `shared` shows.
    slots: Arc<Slots>,
    len: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl Table {
    /// A table that takes `capacity` entries before it grows.
    pub fn with_capacity(capacity: usize) -> Self {
        let slots = Arc::new(Slots::new(slot_count(capacity)));
        let shared = Arc::new(SharedTable { current: ReaderBiased::new(Arc::clone(&slots)) });
        Table { shared, slots, len: 0 }
    }

    /// The readers' side.
    pub fn shared(&self) -> Arc<SharedTable> {
        Arc::clone(&self.shared)
    }

    /// Number of entries.
    #[allow(dead_code, reason = "only tests and models count")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `additional` entries, so that slots stay where they are while they come.
    pub fn reserve(&mut self, additional: usize) {
        if !self.has_room(additional) {
            let larger = Arc::new(Slots::new(slot_count(self.len + additional)));
            if !step!("known.copy_before_growth") {
                *self.shared.current.write() = Arc::clone(&larger);
            }
            for (key, value) in self.entries() {
                larger.insert(key, value);
            }
            // Readers that are in the old array finish there: it holds the same entries.
            *self.shared.current.write() = Arc::clone(&larger);
            self.slots = larger;
        }
    }

    /// Whether so many inserts leave all entries in their slots.
    pub fn has_room(&self, additional: usize) -> bool {
        slot_count(self.len + additional) <= self.slots.slots.len()
    }

    /// Bytes of memory.
    pub fn memory_len(&self) -> usize {
        self.slots.slots.len() * size_of::<Slot>()
    }

    /// Keeps the entries whose values are to be kept, in an array of the size for them.
    pub fn retain(&mut self, mut is_kept: impl FnMut(u64) -> bool) {
        let kept: Vec<(u64, u64)> = self.entries().filter(|&(_, value)| is_kept(value)).collect();
        self.replace(kept);
    }

    /// Puts other entries in the place of those there are.
    pub fn replace(&mut self, entries: Vec<(u64, u64)>) {
        self.len = entries.len();
        let slots = Arc::new(Slots::new(slot_count(self.len)));
        for (key, value) in entries {
            slots.insert(key, value);
        }
        // Readers that are in the old array finish there: what it has more was true.
        *self.shared.current.write() = Arc::clone(&slots);
        self.slots = slots;
    }

    /// The first entry of `key` whose value `matches`, with its slot.
    #[inline]
    pub fn find<T>(&self, key: u64, matches: impl FnMut(u64) -> Option<T>) -> Option<(usize, T)> {
        self.slots.find(key, matches)
    }

    /// Has the processor fetch where the search for `key` begins.
    #[inline]
    pub fn touch(&self, key: u64) {
        // A load that nobody needs: it has to happen, and nothing waits for it.
        std::hint::black_box(load_own(&self.slots.slots[self.slots.start(key)].key));
    }

    /// Adds an entry and returns its slot, which stays the same until the table grows.
    #[inline]
    pub fn insert(&mut self, key: u64, value: u64) -> usize {
        self.reserve(1);
        self.len += 1;
        self.slots.insert(key, value)
    }

    /// Changes the value in `slot`.
    #[inline]
    pub fn set(&mut self, slot: usize, value: u64) {
        // Release: pairs with the Acquire load in `find`.
        self.slots.slots[slot].value.store(value, ord!("known.set_release", Release));
    }

    /// All entries, in no particular order.
    pub fn entries(&self) -> impl Iterator<Item = (u64, u64)> {
        self.slots.slots.iter().filter_map(|slot| {
            // Only the writer changes slots, and this is the writer.
            let key = load_own(&slot.key);
            (key != EMPTY).then(|| (key, load_own(&slot.value)))
        })
    }
}

/// Slots for `len` entries: at most three quarters are taken.
fn slot_count(len: usize) -> usize {
    (len + len / 3 + 1).next_power_of_two().max(TABLE_SLOT_COUNT_MIN)
}
