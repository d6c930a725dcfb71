//! The order log: for each global sequence, where the event lies and how to get on from it.
//!
//! Entry `g` names the position of the `g`-th delivered event, its place in its stream, and two
//! earlier deliveries of the same stream: the one before it, and the one whose local sequence is
//! its own with the lowest set bit cleared. The second makes a stream a skip list that is written
//! once and never changed: the way from the newest event to any other takes O(log² n) steps, and
//! most take far fewer. So the order is its own index by stream, and nothing else has to be kept.
//! (The idea of immutable jump pointers is from E. W. Myers, "An applicative random-access stack",
//! 1983; clearing a bit replaces his jump rule, since it depends on the local sequence alone.)
//!
//! The tips log holds, for the few chained events that had other tips than their predecessor, the
//! local sequences of those tips.

use crate::derived::chunks::{ChunkReader, Layout};
use crate::derived::item_crc;

/// Bytes of an entry.
pub(crate) const ENTRY_LEN: usize = 40;
/// Bytes of an item of the tips log.
const TIP_LEN: usize = 16;

/// An entry as it is written.
pub(crate) type EncodedEntry = [u8; ENTRY_LEN];

/// The order log.
pub(crate) const ORDER: Layout =
    Layout { name: thalweg_wal::name::order, item_len: ENTRY_LEN, chunk_items: 1 << 18 };
/// The tips log.
pub(crate) const TIPS: Layout =
    Layout { name: thalweg_wal::name::tips, item_len: TIP_LEN, chunk_items: 1 << 16 };

/// No event: the link back of the first event of a stream.
pub(crate) const NONE: u64 = u64::MAX;

/// Where the parents of a delivered event are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Lineage {
    /// In its record.
    #[default]
    Listed,
    /// Nowhere: it was chained while the stream had no tip.
    Root,
    /// It was chained on the event before it in the stream.
    Previous,
    /// It was chained on the tips from this item of the tips log on.
    Tips(u64),
    /// It was chained on tips whose place in the tips log is beyond what an entry can name.
    Unlisted,
}

impl Lineage {
    const TIPS: u32 = 3;

    fn encode(self) -> u32 {
        match self {
            Lineage::Listed => 0,
            Lineage::Root => 1,
            Lineage::Previous => 2,
            Lineage::Tips(item) => u32::try_from(item)
                .ok()
                .and_then(|item| item.checked_add(Self::TIPS))
                .unwrap_or(u32::MAX),
            Lineage::Unlisted => u32::MAX,
        }
    }

    fn decode(code: u32) -> Self {
        match code {
            0 => Lineage::Listed,
            1 => Lineage::Root,
            2 => Lineage::Previous,
            u32::MAX => Lineage::Unlisted,
            code => Lineage::Tips(u64::from(code - Self::TIPS)),
        }
    }
}

/// A delivered event in the order log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// Position of the event in the log.
    pub(crate) position: u64,
    /// Its place in its stream.
    pub(crate) local: u64,
    /// Global sequence of the event before it in its stream, or [`NONE`].
    pub(crate) previous: u64,
    /// Global sequence of the event at `local & (local - 1)` of its stream, or [`NONE`].
    pub(crate) jump: u64,
    pub(crate) lineage: Lineage,
}

impl Entry {
    /// The entry of sequence `global` as it is written.
    #[inline]
    pub(crate) fn encode(&self, global: u64) -> EncodedEntry {
        let mut bytes = [0; ENTRY_LEN];
        let numbers = [self.position, self.local, self.previous, self.jump];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes[32..36].copy_from_slice(&self.lineage.encode().to_le_bytes());
        let crc = item_crc(global, &bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the entry of sequence `global` from all its bytes; nothing if its checksum is wrong, or if
    /// there can be no such entry.
    pub(crate) fn read(global: u64, bytes: &[u8]) -> Option<Self> {
        (bytes.len() == ENTRY_LEN).then(|| Self::decode(global, bytes)).flatten()
    }

    /// Reads the entry of sequence `global`; nothing if its checksum is wrong, or if there can be no such
    /// entry.
    #[inline]
    pub(crate) fn decode(global: u64, bytes: &[u8]) -> Option<Self> {
        let number =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if word(36) != item_crc(global, &bytes[..36]) {
            return None;
        }
        let entry = Entry {
            position: number(0),
            local: number(8),
            previous: number(16),
            jump: number(24),
            lineage: Lineage::decode(word(32)),
        };
        // Whoever follows the links relies on their going back, whatever the checksum says.
        let goes_back = |link| link < global || link == NONE;
        let is_possible =
            entry.local <= global && goes_back(entry.previous) && goes_back(entry.jump);
        is_possible.then_some(entry)
    }
}

/// Appends item `index` of the tips log to `out`.
pub(crate) fn encode_tip(index: u64, value: u64, out: &mut Vec<u8>) {
    let value = value.to_le_bytes();
    out.extend_from_slice(&value);
    out.extend_from_slice(&item_crc(index, &value).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// The entry of sequence `global`. `Err` if it is damaged or not published.
#[inline]
pub(crate) fn entry(order: &ChunkReader, global: u64) -> Result<Entry, Damaged> {
    order.item(global).and_then(|bytes| Entry::decode(global, bytes)).ok_or(Damaged { global })
}

/// Number of tips in the list that begins at item `first` of the tips log.
pub(crate) fn tip_count(tips: &ChunkReader, first: u64, global: u64) -> Result<u64, Damaged> {
    tip_item(tips, first).ok_or(Damaged { global })
}

fn tip_item(tips: &ChunkReader, index: u64) -> Option<u64> {
    tip(index, tips.item(index)?)
}

/// Item `index` of the tips log, from its bytes; nothing if its checksum is wrong.
pub(crate) fn tip(index: u64, bytes: &[u8]) -> Option<u64> {
    let (value, rest) = bytes.split_first_chunk::<8>()?;
    let crc = u32::from_le_bytes(rest.get(..4)?.try_into().ok()?);
    (crc == item_crc(index, value)).then(|| u64::from_le_bytes(*value))
}

/// Whether item `index` of the tips log is what was written.
pub(crate) fn is_tip(tips: &ChunkReader, index: u64) -> bool {
    tip_item(tips, index).is_some()
}

/// The list of tips that begins at item `first` of the tips log.
pub(crate) fn tip_list(tips: &ChunkReader, first: u64, global: u64) -> Result<Vec<u64>, Damaged> {
    let item = |index: u64| tip_item(tips, index);
    let read = || {
        let count = item(first)?;
        // The count is checked item by item: a wrong one ends at the first item that is not there.
        let end = first.checked_add(1)?.checked_add(count)?;
        (first + 1..end).map(item).collect::<Option<Vec<u64>>>()
    };
    read().ok_or(Damaged { global })
}

/// The order log does not hold what it should at this sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged {
    pub(crate) global: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_only_at_its_own_place() {
        for lineage in [Lineage::Listed, Lineage::Root, Lineage::Previous, Lineage::Tips(77)] {
            let entry = Entry { position: 5, local: 1, previous: 2, jump: NONE, lineage };
            let bytes = entry.encode(9);
            assert_eq!(Entry::decode(9, &bytes), Some(entry));
            assert_eq!(Entry::decode(8, &bytes), None);
            for byte in 0..bytes.len() {
                let mut flipped = bytes;
                flipped[byte] ^= 1;
                assert_eq!(Entry::decode(9, &flipped), None, "byte {byte}");
            }
        }
    }

    #[test]
    fn an_entry_that_cannot_be_is_none() {
        let entry =
            Entry { position: 5, local: 9, previous: 8, jump: 0, lineage: Lineage::Previous };
        let possible = |entry: Entry| Entry::decode(9, &entry.encode(9)).is_some();
        assert!(possible(entry) && possible(Entry { previous: NONE, jump: NONE, ..entry }));
        for wrong in [9, 10, NONE - 1] {
            assert!(!possible(Entry { previous: wrong, ..entry }));
            assert!(!possible(Entry { jump: wrong, ..entry }));
        }
        for local in [10, u64::MAX] {
            assert!(!possible(Entry { local, ..entry }));
        }
    }
}
