//! The checkpoint: the state of the machine at a position of the log.
//!
//! It holds the streams with their tips and seals, the known ids, and the held events with what they wait
//! for, so that opening follows the tail of the log from there, and reads no held event again. It
//! is written beside the old one and renamed over it, after the chunks that it counts are synced.
//! A checkpoint that is missing, damaged, of another version or of another store costs time: the order
//! is then made again from the start of the log.

use std::io;

use rayon::prelude::*;
use thalweg_wal::storage::{Storage, read_file, remove_if_there, write_all_at};
use thalweg_wal::{TailHint, name};

use crate::order::held::{Held, HeldNode};
use crate::order::keys::{Keys, PARTITION_COUNT};
use crate::order::known::Table;
use crate::order::partition::{KnownAs, Partition, SetbackCounts, Stream};
use crate::order::tips::Tip;
use crate::order::window::Frontier;

const MAGIC: [u8; 8] = *b"THALWEGC";
const VERSION: u32 = 3;
/// Bytes that the shortest stream takes: without deliveries, with a name of one byte.
const STREAM_LEN_MIN: usize = 8 + 8 + 4 + 1 + 1 + 1 + 1 + 4;
const HEADER_LEN: usize = 96;

/// The state at a position of the log.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) store_id: [u8; 16],
    /// Everything below this position is in the state.
    pub(crate) ordered: u64,
    /// Where the order log and the tips log go on.
    pub(crate) frontier: Frontier,
    /// The log was durable up to here, which is the end of a frame.
    pub(crate) log_end: u64,
    /// Whether the log ended here and the store was closed.
    pub(crate) closed: bool,
    /// One encoded partition each.
    pub(crate) partitions: Vec<Vec<u8>>,
}

impl Snapshot {
    /// Bytes that the checkpoint takes in a file.
    pub(crate) fn byte_len(&self) -> u64 {
        let body: usize = self.partitions.iter().map(|partition| 8 + partition.len()).sum();
        (HEADER_LEN + body + 4) as u64
    }

    fn header(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(self.partitions.len() as u32).to_le_bytes());
        header[16..32].copy_from_slice(&self.store_id);
        header[32..40].copy_from_slice(&self.ordered.to_le_bytes());
        header[40..48].copy_from_slice(&self.frontier.global.to_le_bytes());
        header[48..56].copy_from_slice(&self.frontier.tips.to_le_bytes());
        header[56..64].copy_from_slice(&self.log_end.to_le_bytes());
        header[64..72].copy_from_slice(&u64::from(self.closed).to_le_bytes());
        header[72..80].copy_from_slice(&self.byte_len().to_le_bytes());
        // 80..92: reserved, zero.
        let crc = crc32c::crc32c(&header[..HEADER_LEN - 4]);
        header[HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// Replaces the checkpoint in `storage` by this one. The chunks that it counts are synced.
    pub(crate) fn write(&self, storage: &dyn Storage) -> io::Result<()> {
        let new_name = name::checkpoint_new();
        remove_if_there(storage, new_name)?;
        let file = storage.create(new_name, self.byte_len())?;
        let (mut offset, mut crc) = (0, 0);
        let mut put = |bytes: &[u8]| {
            crc = crc32c::crc32c_append(crc, bytes);
            let at = offset;
            offset += bytes.len() as u64;
            write_all_at(&*file, bytes, at)
        };
        put(&self.header())?;
        for partition in &self.partitions {
            put(&(partition.len() as u64).to_le_bytes())?;
            put(partition)?;
        }
        write_all_at(&*file, &crc.to_le_bytes(), offset)?;
        file.sync()?;
        // The chunks that the checkpoint counts are there before it is.
        storage.sync_dir()?;
        storage.rename(new_name, name::checkpoint())?;
        storage.sync_dir()
    }

    /// Reads the checkpoint in `storage`: `None` if there is none that can be used.
    pub(crate) fn read(storage: &dyn Storage) -> Option<Self> {
        let bytes = read_file(storage, name::checkpoint()).ok()?;
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(body) {
            return None;
        }
        let mut reader = Reader { rest: body };
        if reader.take(8)? != MAGIC || reader.u32()? != VERSION {
            return None;
        }
        if reader.u32()? as usize != PARTITION_COUNT {
            return None;
        }
        let store_id = reader.take(16)?.try_into().ok()?;
        let ordered = reader.u64()?;
        let frontier = Frontier { global: reader.u64()?, tips: reader.u64()? };
        let (log_end, closed) = (reader.u64()?, reader.u64()? == 1);
        let len = reader.u64()?;
        reader.take(HEADER_LEN - 80)?;
        let partitions = (0..PARTITION_COUNT)
            .map(|_| {
                let len = reader.u64()?;
                Some(reader.take(usize::try_from(len).ok()?)?.to_vec())
            })
            .collect::<Option<Vec<_>>>()?;
        let whole = reader.rest.is_empty() && len == bytes.len() as u64 && ordered <= log_end;
        whole.then_some(Snapshot { store_id, ordered, frontier, log_end, closed, partitions })
    }

    /// What the checkpoint knows of the end of the log in `storage`: nothing if it is another
    /// store's, whose log may well have been longer.
    pub(crate) fn tail_hint(&self, storage: &dyn Storage) -> Option<TailHint> {
        let is_own = thalweg_wal::store_id(storage).is_none_or(|id| id == self.store_id);
        is_own.then_some(TailHint { durable_end: self.log_end, closed: self.closed })
    }

    /// The partitions; nothing if one of them does not add up.
    pub(crate) fn decode_partitions(&self, keys: Keys, store_tag: u32) -> Option<Vec<Partition>> {
        self.partitions.iter().map(|bytes| decode_partition(bytes, keys, store_tag)).collect()
    }
}

/// Encodes all partitions, with the threads of the pool that it is called in or alone.
pub(crate) fn encode_partitions(partitions: &[Partition], parallel: bool) -> Vec<Vec<u8>> {
    if parallel {
        partitions.par_iter().map(encode_partition).collect()
    } else {
        partitions.iter().map(encode_partition).collect()
    }
}

fn encode_partition(partition: &Partition) -> Vec<u8> {
    let mut out =
        Vec::with_capacity(partition.known.len() * 16 + partition.streams.len() * 96 + 64);
    let counts = partition.setback_counts;
    for count in [counts.duplicates, counts.conflicts, counts.rejected] {
        put_u64(&mut out, count);
    }
    put_u64(&mut out, partition.streams.len() as u64);
    for stream in &partition.streams {
        put_u64(&mut out, stream.key);
        put_u64(&mut out, stream.delivered);
        put_u32(&mut out, stream.held);
        out.push(u8::from(stream.sealed));
        out.push(stream.name.len() as u8);
        out.extend_from_slice(&stream.name);
        out.push(stream.path.len() as u8);
        stream.path.iter().for_each(|&global| put_u64(&mut out, global));
        let tips = stream.tips.sorted();
        put_u32(&mut out, tips.len() as u32);
        for tip in tips {
            put_u64(&mut out, tip.key);
            put_u64(&mut out, tip.local);
            put_u64(&mut out, tip.position);
        }
    }
    // Nodes of the held events are numbered anew, without the gaps.
    let missing = partition.held.missing_of_all();
    let mut renumbered = vec![0; missing.len()];
    put_u64(&mut out, partition.held.len() as u64);
    for (ordinal, (node, held)) in partition.held.nodes().enumerate() {
        renumbered[node as usize] = ordinal as u32;
        put_u64(&mut out, held.position);
        put_u64(&mut out, held.key);
        put_u32(&mut out, held.stream);
        let missing = &missing[node as usize];
        put_u32(&mut out, missing.len() as u32);
        for &(parent_key, parent_at) in missing {
            put_u64(&mut out, parent_key);
            put_u32(&mut out, parent_at);
        }
    }
    put_u64(&mut out, partition.known.len() as u64);
    for (key, value) in partition.known.entries() {
        let value = match KnownAs::decode(value) {
            KnownAs::Held(node) => KnownAs::Held(renumbered[node as usize]).encode(),
            KnownAs::Delivered(_) | KnownAs::InHand(_) => value,
        };
        put_u64(&mut out, key);
        put_u64(&mut out, value);
    }
    out
}

fn decode_partition(bytes: &[u8], keys: Keys, store_tag: u32) -> Option<Partition> {
    let mut reader = Reader { rest: bytes };
    let setback_counts = SetbackCounts {
        duplicates: reader.u64()?,
        conflicts: reader.u64()?,
        rejected: reader.u64()?,
    };
    let mut streams = Vec::with_capacity(reader.count(STREAM_LEN_MIN)?);
    for _ in 0..streams.capacity() {
        let (key, delivered, held) = (reader.u64()?, reader.u64()?, reader.u32()?);
        let sealed = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let name_len = reader.u8()?;
        let name = reader.take(usize::from(name_len))?;
        let path = (0..reader.u8()?).map(|_| reader.u64()).collect::<Option<Vec<_>>>()?;
        let tips = (0..reader.u32()?)
            .map(|_| {
                Some(Tip { key: reader.u64()?, local: reader.u64()?, position: reader.u64()? })
            })
            .collect::<Option<Vec<_>>>()?;
        streams.push(Stream::restore(key, name, delivered, held, sealed, tips, path));
    }
    let mut held = Held::default();
    for ordinal in 0..reader.count(24)? {
        let (position, key, stream) = (reader.u64()?, reader.u64()?, reader.u32()?);
        let missing = (0..reader.u32()?)
            .map(|_| Some((reader.u64()?, reader.u32()?)))
            .collect::<Option<Vec<_>>>()?;
        let node = HeldNode { position, key, stream, missing: missing.len() as u32 };
        let number = held.hold(node, &missing);
        if number as usize != ordinal || stream as usize >= streams.len() {
            return None;
        }
    }
    let known_count = reader.count(16)?;
    let mut known = Table::with_capacity(known_count);
    for _ in 0..known_count {
        let (key, value) = (reader.u64()?, reader.u64()?);
        known.insert(key, value);
    }
    reader
        .rest
        .is_empty()
        .then(|| Partition::restore(keys, store_tag, streams, known, held, setback_counts))
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Takes numbers off the front of some bytes; nothing once they are too short.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A number of items of at least `item_len` bytes each: never more than there is room for, so
    /// that no length in a file can ask for memory that the file does not justify.
    fn count(&mut self, item_len: usize) -> Option<usize> {
        let count = usize::try_from(self.u64()?).ok()?;
        (count <= self.rest.len() / item_len).then_some(count)
    }
}
