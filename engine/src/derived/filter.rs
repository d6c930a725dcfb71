//! A filter: tells of most keys that are not in a table that they are not, at one cache line each.
//!
//! A blocked Bloom filter (Putze, Sanders and Singler, "Cache-, hash- and space-efficient Bloom
//! filters", 2007): the upper bits of a key choose a line, and all bits of the key are in that line.
//! What we changed: a line carries its own checksum, which every look verifies, so that a filter is
//! never read as a whole and a flipped bit never makes a key disappear. And since the line grows
//! with the key, sorted keys make a filter from front to back.

use crate::derived::item_crc;

/// Bytes of a line, which are those of a cache line.
pub(crate) const LINE_LEN: usize = 64;
/// Bits of a line that stand for keys; the rest is its checksum.
const LINE_BITS: u64 = (LINE_LEN as u64 - 4) * 8;
/// Keys for each line: 16 bits a key, of which about one in a thousand that is not there looks as if
/// it were.
const KEYS_PER_LINE: u64 = LINE_BITS / 16;
/// Bits that a key sets.
const BITS_PER_KEY: u32 = 8;

/// Lines of a filter for `capacity` keys.
pub(crate) fn line_count(capacity: u64) -> u64 {
    capacity.div_ceil(KEYS_PER_LINE).max(1)
}

/// The line of a key.
#[inline]
pub(crate) fn line_of(key: u64, line_count: u64) -> u64 {
    ((u128::from(key) * u128::from(line_count)) >> 64) as u64
}

/// The bits of a key in its line: an arithmetic sequence, as double hashing has it.
#[inline]
fn bits(key: u64) -> impl Iterator<Item = u64> {
    // The upper bits of the key are nearly the same in all of a line.
    let mixed = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let (start, step) = (mixed as u32, (mixed >> 32) as u32 | 1);
    (0..BITS_PER_KEY).map(move |n| {
        let hash = start.wrapping_add(step.wrapping_mul(n));
        (u64::from(hash) * LINE_BITS) >> 32
    })
}

/// A line in the making.
#[derive(Debug)]
pub(crate) struct Line([u8; LINE_LEN]);

impl Line {
    pub(crate) fn new() -> Self {
        Line([0; LINE_LEN])
    }

    pub(crate) fn insert(&mut self, key: u64) {
        bits(key).for_each(|bit| self.0[(bit / 8) as usize] |= 1 << (bit % 8));
    }

    /// The finished line, which is the `index`th of its filter.
    pub(crate) fn finish(mut self, index: u64) -> [u8; LINE_LEN] {
        let (body, crc) = self.0.split_at_mut(LINE_LEN - 4);
        crc.copy_from_slice(&item_crc(index, body).to_le_bytes());
        self.0
    }
}

/// Whether `key` may be in the line with this index; nothing if the line is not what was written.
#[inline]
pub(crate) fn may_contain(line: &[u8; LINE_LEN], index: u64, key: u64) -> Option<bool> {
    let (body, crc) = line.split_last_chunk::<4>()?;
    if u32::from_le_bytes(*crc) != item_crc(index, body) {
        return None;
    }
    Some(bits(key).all(|bit| body[(bit / 8) as usize] & (1 << (bit % 8)) != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes())
    }

    fn filter(keys: &[u64]) -> Vec<[u8; LINE_LEN]> {
        let count = line_count(keys.len() as u64);
        let mut lines: Vec<Line> = (0..count).map(|_| Line::new()).collect();
        keys.iter().for_each(|&key| lines[line_of(key, count) as usize].insert(key));
        lines.into_iter().zip(0..).map(|(line, index)| line.finish(index)).collect()
    }

    fn look(lines: &[[u8; LINE_LEN]], key: u64) -> Option<bool> {
        let index = line_of(key, lines.len() as u64);
        may_contain(&lines[index as usize], index, key)
    }

    #[test]
    fn a_key_that_is_in_is_found_and_few_others_are() {
        let keys: Vec<u64> = (0..100_000).map(key).collect();
        let lines = filter(&keys);
        assert!(keys.iter().all(|&key| look(&lines, key) == Some(true)));
        let wrong = (100_000..300_000).filter(|&n| look(&lines, key(n)) == Some(true)).count();
        assert!(wrong < 600, "{wrong} of 200000");
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_line_is_seen() {
        let line = filter(&[key(1)])[0];
        for bit in 0..LINE_LEN * 8 {
            let mut flipped = line;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(may_contain(&flipped, 0, key(1)), None);
        }
        assert_eq!(may_contain(&line, 1, key(1)), None, "at another place");
    }
}
