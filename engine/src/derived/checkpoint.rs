//! The checkpoint: up to which position of the log the derived files reach, and which they are.
//!
//! The state of the machine is in the runs; the checkpoint lists them, with the little that is not
//! worth a run: counts, the keys of the sealed streams, and where the cursors of consumers are. So it is short, and opening follows the tail of
//! the log from there without reading the state. It is written beside the old one and renamed over it,
//! after everything that it counts is synced. A checkpoint that is missing, damaged, of another version or
//! of another store costs time: the order is then made again from the start of the log.

use std::collections::BTreeMap;
use std::io;

use thalweg_wal::storage::{Storage, read_file, remove_if_there, write_all_at};
use thalweg_wal::{TailHint, name};

use crate::error::OpenError;
use crate::open::is_of;
use crate::order::keys::{Keys, PARTITION_COUNT, partition_of};
use crate::order::partition::{Partition, PartitionCounts};
use crate::order::window::Frontier;

const MAGIC: [u8; 8] = *b"THALWEGC";
const VERSION: u32 = 7;
/// No log is as long as this, nor are there as many runs: the runs have three bits of a position for other
/// things.
const POSITION_MAX: u64 = 1 << 61;
/// Fields of a partition.
const COUNT_FIELDS: usize = 6;

/// What there is up to a position of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Identity of the store, and of what is known to be lost of its log.
    pub(crate) store_id: [u8; 16],
    /// Everything below this position is in the derived files.
    pub(crate) ordered: u64,
    /// Where the order log and the tips log go on.
    pub(crate) frontier: Frontier,
    /// The log was durable up to here, which is the end of a frame.
    pub(crate) log_end: u64,
    /// Whether the log ended here and the store was closed.
    pub(crate) closed: bool,
    /// Ids of deliveries before this one are forgotten.
    pub(crate) forgotten: u64,
    /// What each partition has.
    pub(crate) counts: Vec<PartitionCounts>,
    /// Keys of the sealed streams.
    pub(crate) sealed: Vec<u64>,
    /// Numbers of the runs, oldest first.
    pub(crate) runs: Vec<u64>,
    /// Cursors, with the sequences that they are at.
    pub(crate) cursors: BTreeMap<Vec<u8>, u64>,
    /// Streams that were trimmed, with the local sequences at which their readers begin.
    pub(crate) firsts: BTreeMap<Vec<u8>, u64>,
}

impl Checkpoint {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.counts.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.store_id);
        let Frontier { global, tips } = self.frontier;
        let head =
            [self.ordered, global, tips, self.log_end, u64::from(self.closed), self.forgotten];
        let counts = self.counts.iter().flat_map(|counts| {
            let PartitionCounts { streams, held, duplicates, conflicts, rejected, discarded } =
                *counts;
            [streams, held, duplicates, conflicts, rejected, discarded]
        });
        let lens = [self.sealed.len(), self.runs.len(), self.cursors.len(), self.firsts.len()];
        let lens = lens.map(|len| len as u64);
        let lists = self.sealed.iter().chain(&self.runs).copied();
        for number in head.into_iter().chain(counts).chain(lens).chain(lists) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for (name, at) in self.cursors.iter().chain(&self.firsts) {
            out.extend_from_slice(&at.to_le_bytes());
            out.push(name.len() as u8);
            out.extend_from_slice(name);
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(body) {
            return None;
        }
        let mut reader = Reader { rest: body };
        let ours = reader.take(8)? == MAGIC
            && reader.u32()? == VERSION
            && reader.u32()? as usize == PARTITION_COUNT;
        if !ours {
            return None;
        }
        let store_id = reader.take(16)?.try_into().ok()?;
        let ordered = reader.u64()?;
        let frontier = Frontier { global: reader.u64()?, tips: reader.u64()? };
        let (log_end, closed, forgotten) = (reader.u64()?, reader.u64()? == 1, reader.u64()?);
        let counts = (0..PARTITION_COUNT).map(|_| {
            let [streams, held, duplicates, conflicts, rejected, discarded] =
                reader.numbers(COUNT_FIELDS)?.try_into().ok()?;
            Some(PartitionCounts { streams, held, duplicates, conflicts, rejected, discarded })
        });
        let counts = counts.collect::<Option<Vec<_>>>()?;
        let [sealed_count, run_count, cursor_count, first_count] =
            reader.numbers(4)?.try_into().ok()?;
        let sealed = reader.numbers(usize::try_from(sealed_count).ok()?)?;
        let runs = reader.numbers(usize::try_from(run_count).ok()?)?;
        let cursors = reader.places(cursor_count)?;
        let firsts = reader.places(first_count)?;
        let checkpoint = Checkpoint {
            store_id,
            ordered,
            frontier,
            log_end,
            closed,
            forgotten,
            counts,
            sealed,
            runs,
            cursors,
            firsts,
        };
        (reader.rest.is_empty() && checkpoint.is_possible()).then_some(checkpoint)
    }

    /// Whether there can be such a log, whatever the checksum says: sums over these numbers are taken
    /// without another look.
    fn is_possible(&self) -> bool {
        let Frontier { global, tips } = self.frontier;
        // Whatever is counted takes more than a byte of the log, but for the tips of chained events.
        let sum = |count: fn(&PartitionCounts) -> u64| {
            self.counts.iter().map(count).try_fold(0_u64, u64::checked_add)
        };
        let counted = [
            Some(global),
            sum(|counts| counts.streams),
            sum(|counts| counts.held),
            sum(|counts| counts.duplicates),
            sum(|counts| counts.conflicts),
            sum(|counts| counts.rejected),
            sum(|counts| counts.discarded),
        ];
        self.ordered <= self.log_end
            && self.log_end <= POSITION_MAX
            && tips <= POSITION_MAX
            && self.forgotten <= global
            && self.runs.iter().all(|number| *number <= POSITION_MAX)
            && self.cursors.values().chain(self.firsts.values()).all(|at| *at <= global)
            && counted.into_iter().all(|count| count.is_some_and(|count| count <= self.ordered))
    }

    /// The partition with this index, whose state is in the runs.
    pub(crate) fn partition(&self, index: usize, keys: Keys, store_tag: u32) -> Partition {
        let sealed = self.sealed.iter().copied().filter(|&key| partition_of(key) == index);
        let mut partition =
            Partition::restore(keys, store_tag, self.counts[index], self.ordered, sealed.collect());
        partition.forgotten = self.forgotten;
        for (name, &first) in &self.firsts {
            if partition_of(keys.stream(name)) == index {
                partition.set_first(name.clone(), first);
            }
        }
        partition
    }

    /// Replaces the checkpoint in `storage` by this one. The files that it counts are synced.
    pub(crate) fn write(&self, storage: &dyn Storage) -> io::Result<()> {
        let new_name = name::checkpoint_new();
        let bytes = self.encode();
        remove_if_there(storage, new_name)?;
        let file = storage.create(new_name, bytes.len() as u64)?;
        write_all_at(&*file, &bytes, 0)?;
        file.sync()?;
        // The files that the checkpoint counts are there before it is.
        storage.sync_dir()?;
        storage.rename(new_name, name::checkpoint())?;
        storage.sync_dir()
    }

    /// Reads the checkpoint in `storage`: `None` if there is none, or if it is damaged.
    ///
    /// # Errors
    ///
    /// It could not be read, so nobody knows what it says. That is not taken for absence: the checkpoint can
    /// reveal that the end of the log is missing, and the files that it lists would be thrown away.
    pub(crate) fn read(storage: &dyn Storage) -> Result<Option<Self>, OpenError> {
        use io::ErrorKind::{FileTooLarge, NotFound, UnexpectedEof};
        match read_file(storage, name::checkpoint()) {
            Ok(bytes) => Ok(Self::decode(&bytes)),
            Err(error) if matches!(error.kind(), NotFound | UnexpectedEof | FileTooLarge) => {
                Ok(None)
            }
            Err(source) => Err(OpenError::Io {
                context: format!(
                    "reading {}, which is derived from the log: if it stays unreadable, remove it, and the \
                     order is made again",
                    storage.describe(name::checkpoint())
                ),
                source,
            }),
        }
    }

    /// What the checkpoint knows of the end of the log in `storage`: nothing if it is another
    /// store's, whose log may well have been longer.
    pub(crate) fn tail_hint(&self, storage: &dyn Storage) -> Option<TailHint> {
        let is_own = thalweg_wal::store_id(storage).is_none_or(|id| is_of(&self.store_id, &id));
        is_own.then_some(TailHint { durable_end: self.log_end, closed: self.closed })
    }
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

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// So many names, each with a number.
    fn places(&mut self, count: u64) -> Option<BTreeMap<Vec<u8>, u64>> {
        let mut places = BTreeMap::new();
        for _ in 0..count {
            let (at, len) = (self.u64()?, self.take(1)?[0]);
            places.insert(self.take(len.into())?.to_vec(), at);
        }
        Some(places)
    }

    /// So many numbers: never more than there are bytes for, so that no length in a file can ask for
    /// memory that the file does not justify.
    fn numbers(&mut self, count: usize) -> Option<Vec<u64>> {
        let bytes = self.take(count.checked_mul(8)?)?;
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        Some(bytes.chunks_exact(8).map(number).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let counts = PartitionCounts {
            streams: 1,
            held: 2,
            duplicates: 3,
            conflicts: 4,
            rejected: 5,
            discarded: 6,
        };
        Checkpoint {
            store_id: [7; 16],
            ordered: 1000,
            frontier: Frontier { global: 3, tips: 4 },
            log_end: 1200,
            closed: true,
            counts: vec![counts; PARTITION_COUNT],
            forgotten: 3,
            sealed: vec![8, 9],
            runs: vec![1, 4],
            cursors: [(b"mailer".to_vec(), 2), (vec![7; 255], 0)].into(),
            firsts: [(b"orders".to_vec(), 1), (b"mails".to_vec(), 3)].into(),
        }
    }

    #[test]
    fn a_checkpoint_reads_back_and_not_with_any_byte_changed() {
        let checkpoint = checkpoint();
        let bytes = checkpoint.encode();
        assert_eq!(Checkpoint::decode(&bytes), Some(checkpoint));
        for byte in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[byte] ^= 4;
            assert_eq!(Checkpoint::decode(&changed), None, "byte {byte}");
            assert_eq!(Checkpoint::decode(&bytes[..byte]), None, "{byte} bytes");
        }
    }

    /// Their sums overflowed when the store opened: a panic, or counts from nowhere.
    #[test]
    fn a_checkpoint_of_what_cannot_be_is_none() {
        type Change = fn(&mut Checkpoint);
        let changes: [Change; 12] = [
            |it| it.firsts = [(b"orders".to_vec(), 4)].into(),
            |it| it.counts[3].streams = u64::MAX,
            |it| it.counts[0].held = 1001,
            |it| (it.counts[1].duplicates, it.counts[2].duplicates) = (1 << 63, 1 << 63),
            |it| it.counts[63].conflicts = 1 << 40,
            |it| it.counts[63].rejected = u64::MAX - 2,
            |it| it.counts[7].discarded = 1001,
            |it| it.frontier.global = 1001,
            |it| it.forgotten = it.frontier.global + 1,
            |it| it.frontier.tips = u64::MAX,
            |it| it.log_end = u64::MAX,
            |it| it.runs[1] = u64::MAX,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut changed = checkpoint();
            change(&mut changed);
            assert_eq!(Checkpoint::decode(&changed.encode()), None, "change {index}");
        }
    }
}
