//! Streams and ids as 64-bit keys.
//!
//! Keys only ever narrow a search: whoever finds one compares the bytes behind it, so two ids with
//! the same key cost time and never correctness. The hash is XXH3 (Yann Collet), whose output is
//! fixed by its specification, since keys are kept in checkpoints. It is seeded by the store's
//! random identity, so that nobody outside can prepare ids that collide.

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// Streams are spread over this many partitions, whatever the number of threads.
pub(crate) const PARTITION_COUNT: usize = 64;

/// Makes the keys of one store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys {
    seed: u64,
}

impl Keys {
    /// The keys of the store with this identity. They go by its first half, which stays the same whatever is lost of
    /// the log ([`thalweg_wal::identity`]): keys are also kept of what was trimmed.
    pub(crate) fn new(store_id: &[u8; 16]) -> Self {
        Keys { seed: xxh3_64_with_seed(&store_id[..8], 0) }
    }

    /// Key of a stream.
    #[inline]
    pub(crate) fn stream(self, name: &[u8]) -> u64 {
        // Zero marks an empty slot in the tables.
        xxh3_64_with_seed(name, self.seed).max(1)
    }

    /// Key of an event id in the stream with key `stream`.
    #[inline]
    pub(crate) fn event(self, stream: u64, id: &[u8]) -> u64 {
        xxh3_64_with_seed(id, stream).max(1)
    }

    /// Another hash of an event's stream and id: with the key, it stands for both where they are not kept.
    pub(crate) fn check(self, stream: &[u8], id: &[u8]) -> u64 {
        xxh3_64_with_seed(id, xxh3_64_with_seed(stream, !self.seed))
    }

    /// Stands for a payload where it is only compared, and not kept.
    pub(crate) fn digest(self, payload: &[u8]) -> u128 {
        xxh3_128_with_seed(payload, self.content_seed())
    }

    /// Seeds the hashes that stand for contents.
    pub(crate) fn content_seed(self) -> u64 {
        self.seed.rotate_left(32)
    }
}

/// The partition that owns the stream with key `stream`.
#[inline]
pub(crate) fn partition_of(stream: u64) -> usize {
    const SHIFT: u32 = 64 - PARTITION_COUNT.trailing_zeros();
    (stream >> SHIFT) as usize
}

const _: () = assert!(PARTITION_COUNT.is_power_of_two() && PARTITION_COUNT <= u8::MAX as usize + 1);
