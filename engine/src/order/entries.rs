//! The entries of a window for the order log, which several threads fill in at once.
//!
//! Each delivery has a place of its own, anywhere in the window, so the threads that place partitions write there without a
//! lock and without a merge behind them. The places are made of atomics: that costs nothing here, and two
//! threads at one place would be a wrong entry, which its checksum shows, and nothing worse.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use crate::derived::order_log::{ENTRY_LEN, EncodedEntry};

const WORD_LEN: usize = size_of::<u64>();
/// Entries that are handed on at once.
const WRITTEN_TOGETHER: usize = 1 << 13;

const _: () = assert!(ENTRY_LEN.is_multiple_of(WORD_LEN));

/// The words of an entry.
type Place = [AtomicU64; ENTRY_LEN / WORD_LEN];

/// Entries, in their order.
#[derive(Debug)]
pub(crate) struct Entries {
    places: Vec<Place>,
}

impl Entries {
    /// So many places.
    pub(crate) fn new(len: usize, parallel: bool) -> Self {
        let empty = |_| [const { AtomicU64::new(0) }; ENTRY_LEN / WORD_LEN];
        let places = if parallel {
            // Whoever touches new memory first has the work with it.
            (0..len).into_par_iter().map(empty).collect()
        } else {
            (0..len).map(empty).collect()
        };
        Entries { places }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Fills in a place.
    #[inline]
    pub(crate) fn set(&self, place: usize, entry: &EncodedEntry) {
        for (word, bytes) in self.places[place].iter().zip(entry.as_chunks().0) {
            // Relaxed: whoever reads it has waited for the pool, or got it through a queue.
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
    }

    /// The entry at a place.
    #[inline]
    pub(crate) fn get(&self, place: usize) -> Option<EncodedEntry> {
        let mut entry = [0; ENTRY_LEN];
        copy(self.places.get(place)?, &mut entry);
        Some(entry)
    }

    /// Hands the bytes of all entries to `write`, in their order, many at a time.
    pub(crate) fn write<E>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut entries = vec![[0; ENTRY_LEN]; self.len().min(WRITTEN_TOGETHER)];
        for places in self.places.chunks(WRITTEN_TOGETHER) {
            let entries = &mut entries[..places.len()];
            places.iter().zip(&mut *entries).for_each(|(place, entry)| copy(place, entry));
            write(entries.as_flattened())?;
        }
        Ok(())
    }
}

#[inline]
fn copy(place: &Place, entry: &mut EncodedEntry) {
    for (word, bytes) in place.iter().zip(entry.as_chunks_mut().0) {
        // Relaxed: see `Entries::set`.
        *bytes = word.load(Ordering::Relaxed).to_le_bytes();
    }
}
