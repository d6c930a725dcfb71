//! Derived files: everything that can be made again from the log.
//!
//! * `chunks`: items of fixed length in files of fixed length, written once, read through maps;
//! * `order_log`: the global order, which is also the index by stream;
//! * `run`: a part of the machine's state, sorted and immutable; `filter`: what keeps most look-ups
//!   out of it;
//! * `runs`: all of them together, and how several become one;
//! * `checkpoint`: the list of the runs, and the position of the log up to which they reach.
//!
//! All of them carry a version, the identity of their store and checksums. None is ever believed
//! over the log: what is missing or wrong is thrown away and made again.

pub(crate) mod checkpoint;
pub(crate) mod chunks;
pub(crate) mod filter;
pub(crate) mod order_log;
pub(crate) mod run;
pub(crate) mod runs;

/// A checksum over an item and its place, so that a moved item does not look valid.
#[inline]
pub(crate) fn item_crc(index: u64, bytes: &[u8]) -> u32 {
    // In one piece: items are so short that a second call would cost as much as the first.
    let mut item = [0; 64];
    let len = 8 + bytes.len();
    let Some(place) = item.get_mut(8..len) else {
        return crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), bytes);
    };
    place.copy_from_slice(bytes);
    item[..8].copy_from_slice(&index.to_le_bytes());
    crc32c::crc32c(&item[..len])
}
