//! The tips of a stream: its delivered events that have no delivered child.
//!
//! Most streams have one tip and some have thousands, and every delivery looks its parents up
//! among them, so one tip lies in the stream itself, a few in a vector, and many in a hash
//! table.

use hashbrown::HashTable;
use smallvec::SmallVec;

/// More tips than this are kept in a hash table.
const FEW_MAX: usize = 12;

/// A tip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tip {
    /// Key of the event's id.
    pub(crate) key: u64,
    /// Place of the event in its stream.
    pub(crate) local: u64,
    /// Position of the event in the log.
    pub(crate) position: u64,
}

/// The tips of one stream.
#[derive(Debug)]
pub(crate) enum Tips {
    Few(SmallVec<[Tip; 1]>),
    Many(HashTable<Tip>),
}

impl Default for Tips {
    fn default() -> Self {
        Tips::Few(SmallVec::new())
    }
}

impl Tips {
    pub(crate) fn len(&self) -> usize {
        match self {
            Tips::Few(tips) => tips.len(),
            Tips::Many(tips) => tips.len(),
        }
    }

    /// The tip with `key` that `matches`.
    #[inline]
    pub(crate) fn find<E>(
        &self,
        key: u64,
        mut matches: impl FnMut(&Tip) -> Result<bool, E>,
    ) -> Result<Option<Tip>, E> {
        match self {
            Tips::Few(tips) => {
                for tip in tips.iter().filter(|tip| tip.key == key) {
                    if matches(tip)? {
                        return Ok(Some(*tip));
                    }
                }
            }
            Tips::Many(tips) => {
                for tip in tips.iter_hash(key).filter(|tip| tip.key == key) {
                    if matches(tip)? {
                        return Ok(Some(*tip));
                    }
                }
            }
        }
        Ok(None)
    }

    pub(crate) fn insert(&mut self, tip: Tip) {
        match self {
            Tips::Few(tips) if tips.len() < FEW_MAX => {
                tips.push(tip);
            }
            Tips::Few(tips) => {
                let mut many = HashTable::with_capacity(tips.len() * 2);
                for tip in tips.drain(..).chain([tip]) {
                    many.insert_unique(tip.key, tip, |tip| tip.key);
                }
                *self = Tips::Many(many);
            }
            Tips::Many(tips) => {
                tips.insert_unique(tip.key, tip, |tip| tip.key);
            }
        }
    }

    pub(crate) fn remove(&mut self, tip: &Tip) {
        match self {
            Tips::Few(tips) => tips.retain(|other| *other != *tip),
            Tips::Many(tips) => {
                if let Ok(entry) = tips.find_entry(tip.key, |other| other == tip) {
                    entry.remove();
                }
                if tips.len() <= FEW_MAX / 2 {
                    *self = Tips::Few(self.sorted().into());
                }
            }
        }
    }

    /// Takes all tips out.
    pub(crate) fn clear(&mut self) {
        match self {
            Tips::Few(tips) if !tips.spilled() => tips.clear(),
            _ => *self = Tips::default(),
        }
    }

    /// The tip, if there is one and no other.
    #[inline]
    pub(crate) fn only(&self) -> Option<&Tip> {
        match self {
            Tips::Few(tips) => match &tips[..] {
                [tip] => Some(tip),
                _ => None,
            },
            // Many are more than one.
            Tips::Many(_) => None,
        }
    }

    /// Bytes of memory beside the value itself.
    pub(crate) fn heap_len(&self) -> usize {
        match self {
            Tips::Few(tips) if tips.spilled() => tips.capacity() * size_of::<Tip>(),
            Tips::Few(_) => 0,
            Tips::Many(tips) => tips.allocation_size(),
        }
    }

    /// All tips in the order of their delivery.
    pub(crate) fn sorted(&self) -> Vec<Tip> {
        let mut tips: Vec<Tip> = match self {
            Tips::Few(tips) => tips.to_vec(),
            Tips::Many(tips) => tips.iter().copied().collect(),
        };
        tips.sort_unstable_by_key(|tip| tip.local);
        tips
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_agree() {
        let tip =
            |n: u64| Tip { key: n.wrapping_mul(0x9E37_79B9_7F4A_7C15), local: n, position: n * 8 };
        let mut tips = Tips::default();
        for n in 0..40 {
            tips.insert(tip(n));
        }
        for n in (0..40).rev().step_by(2) {
            tips.remove(&tip(n));
        }
        let locals: Vec<u64> = tips.sorted().iter().map(|tip| tip.local).collect();
        assert_eq!(locals, (0..40).step_by(2).collect::<Vec<u64>>());
        for n in 0..40 {
            let found = tips.find(tip(n).key, |_| Ok::<_, ()>(true)).expect("no error");
            assert_eq!(found.is_some(), n % 2 == 0);
        }
        for n in (0..40).step_by(2) {
            tips.remove(&tip(n));
        }
        assert_eq!(tips.len(), 0);
    }
}
