//! Facts: what is kept of each delivery whose record was trimmed.
//!
//! A parent that was trimmed is still delivered, and a copy of an event that was trimmed is still a duplicate.
//! Telling that takes the id and the content of the event, or hashes of them. The id is told by its 64-bit key,
//! by which it was found, and by another 64 bits that a hash with another seed makes of the same: here, and only
//! here, two ids are taken for one if both agree, at odds of one in 2^128 for each pair. The content is told
//! by 62 bits of the payload's digest, which stands for it in the serial machine too, and by 32 of the parents; they decide between a duplicate and a conflict, which are both
//! ignored, and nothing else.

use thalweg_wal::{Record, name};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::derived::chunks::Layout;
use crate::derived::item_crc;
use crate::order::keys::Keys;

/// Bytes of a fact in its file.
pub(crate) const FACT_LEN: usize = 24;

/// The facts, by global sequence.
pub(crate) const FACTS: Layout =
    Layout { name: name::facts, item_len: FACT_LEN, chunk_items: 1 << 16 };

/// What is kept of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fact {
    /// What the id hashes to, beside its key.
    check: u64,
    /// What the payload hashes to.
    payload: u64,
    /// What the parents hash to: as they were listed, or, of a chained event, as a set.
    lineage: u32,
    is_chained: bool,
    is_lost: bool,
}

const CHAINED: u64 = 1;
const LOST: u64 = 2;

impl Fact {
    /// What is kept of the event in `record`, which has this id. `chained_on` has the ids of the tips that it was
    /// chained on, if it was.
    pub(crate) fn of(keys: Keys, record: &Record<'_>, id: &[u8], chained_on: &[Vec<u8>]) -> Self {
        let lineage = if record.is_chained() {
            set_hash(keys, chained_on.iter().map(Vec::as_slice).collect())
        } else {
            list_hash(keys, record.parents())
        };
        Fact {
            check: keys.check(record.stream(), id),
            payload: short(keys.digest(record.payload())),
            lineage,
            is_chained: record.is_chained(),
            is_lost: record.is_lost(),
        }
    }

    /// Whether this is of the event `id` of `stream`, whose key is known to be the same.
    pub(crate) fn is_event(&self, keys: Keys, stream: &[u8], id: &[u8]) -> bool {
        self.check == keys.check(stream, id)
    }

    /// Whether `arriving`, which has the same id, is the same event. See [`crate::reference`].
    pub(crate) fn is_same(&self, keys: Keys, arriving: &Record<'_>) -> bool {
        let listed = (!arriving.is_chained()).then(|| arriving.parents().collect());
        arriving.is_lost() || self.has(keys, keys.digest(arriving.payload()), listed)
    }

    /// Whether this is of an event with this digest of its payload, and these parents as they are listed, or none if it
    /// is chained; or of one that is lost, which nobody can compare.
    pub(crate) fn has(&self, keys: Keys, digest: u128, listed: Option<Vec<&[u8]>>) -> bool {
        let has_parents = || match (self.is_chained, listed) {
            (true, None) => true,
            (true, Some(listed)) => self.lineage == set_hash(keys, listed),
            (false, None) => false,
            (false, Some(listed)) => self.lineage == list_hash(keys, listed.into_iter()),
        };
        self.is_lost || (self.payload == short(digest) && has_parents())
    }

    /// The fact of the delivery with this global sequence, for its place.
    pub(crate) fn encode(&self, global: u64, out: &mut Vec<u8>) {
        let start = out.len();
        let flags = (u64::from(self.is_chained) * CHAINED) | (u64::from(self.is_lost) * LOST);
        out.extend_from_slice(&self.check.to_le_bytes());
        out.extend_from_slice(&((self.payload << 2) | flags).to_le_bytes());
        out.extend_from_slice(&self.lineage.to_le_bytes());
        let crc = item_crc(global, &out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// Reads it back; nothing if its checksum is wrong.
    pub(crate) fn decode(global: u64, bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FACT_LEN] = bytes.try_into().ok()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*crc) != item_crc(global, body) {
            return None;
        }
        let (check, rest) = body.split_first_chunk()?;
        let (payload, lineage) = rest.split_first_chunk()?;
        let payload = u64::from_le_bytes(*payload);
        Some(Fact {
            check: u64::from_le_bytes(*check),
            payload: payload >> 2,
            lineage: u32::from_le_bytes(lineage.try_into().ok()?),
            is_chained: payload & CHAINED != 0,
            is_lost: payload & LOST != 0,
        })
    }
}

/// As much of a digest as a fact keeps.
fn short(digest: u128) -> u64 {
    digest as u64 >> 2
}

/// A hash that changes with the order of the ids, and with repetitions.
fn list_hash<'a>(keys: Keys, ids: impl Iterator<Item = &'a [u8]>) -> u32 {
    ids.fold(keys.content_seed(), |before, id| xxh3_64_with_seed(id, before)) as u32
}

/// A hash that no order and no repetition of the ids changes.
fn set_hash(keys: Keys, mut ids: Vec<&[u8]>) -> u32 {
    ids.sort_unstable();
    ids.dedup();
    let hash = |id| xxh3_64_with_seed(id, keys.content_seed());
    let sum = ids.into_iter().map(hash).fold(0, u64::wrapping_add);
    (sum >> 32) as u32
}
