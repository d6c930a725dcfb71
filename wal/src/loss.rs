//! What is known to be lost: stretches of the log whose bytes cannot be read any more, and what stands
//! in their place.
//!
//! A repair writes this down, in one file that is replaced as a whole; nothing else does. A *stretch* is a
//! range of positions; its bytes are never looked at again. A *substitute* is a record that stands at
//! a position within a stretch for what was there: a lost event, of which the stream, the id and the
//! parents are known or assumed but not the payload, or something that only the order has to know. So the
//! order stays a function of the log: whoever walks over a segment meets substitutes like records.

use std::io;

use crate::error::OpenError;
use crate::format::{
    ALIGN, FLAG_CHAINED, FLAG_LOST, Fault, RECORD_HEADER_LEN, RecordFields, encode_discard,
    encode_record, encoded_record_len, is_substitute,
};
use crate::name;
use crate::record::{DiscardReason, Record, RecordKind};
use crate::storage::{Storage, read_file, remove_if_there, write_all_at};

const MAGIC: [u8; 8] = *b"THALWEGL";
const VERSION: u32 = 1;
/// Bytes before the stretches.
pub const LOSSES_HEADER_LEN: u64 = 48;
/// Bytes before the record of a substitute: its position and its end.
const PLACE_LEN: usize = 16;

/// A range of positions whose bytes are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// First position.
    pub from: u64,
    /// Position one past the stretch.
    pub to: u64,
}

impl Stretch {
    fn contains(&self, position: u64) -> bool {
        (self.from..self.to).contains(&position)
    }
}

/// A record that stands in for what is lost, with the range of positions that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    position: u64,
    end: u64,
    /// Where the record begins and ends in the file.
    at: (usize, usize),
}

/// Everything that is known to be lost of a store.
#[derive(Debug, PartialEq, Eq)]
pub struct Losses {
    store_id: [u8; 16],
    bytes: Vec<u8>,
    stretches: Vec<Stretch>,
    places: Vec<Place>,
}

impl Losses {
    /// Reads what the directory says; nothing if nothing was ever lost.
    ///
    /// # Errors
    ///
    /// The file is damaged or another store's, or cannot be read.
    pub fn read(storage: &dyn Storage, store_id: &[u8; 16]) -> Result<Option<Self>, OpenError> {
        let file = || storage.describe(name::losses());
        let bytes = match read_file(storage, name::losses()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(OpenError::Io { context: format!("reading {}", file()), source });
            }
        };
        let losses = Self::decode(bytes)
            .map_err(|fault| OpenError::Losses { file: file(), detail: fault.to_string() })?;
        if losses.store_id != *store_id {
            let detail = String::from("it belongs to another store");
            return Err(OpenError::Losses { file: file(), detail });
        }
        Ok(Some(losses))
    }

    fn decode(bytes: Vec<u8>) -> Result<Self, Fault> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or(Fault::Length)?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(body) {
            return Err(Fault::Checksum);
        }
        let number = |at: usize| -> Result<u64, Fault> {
            let chunk = body.get(at..).and_then(|rest| rest.first_chunk::<8>());
            chunk.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Fault::Length)
        };
        if body.len() < LOSSES_HEADER_LEN as usize || body[0..8] != MAGIC {
            return Err(Fault::NoMagic);
        }
        if body[8..12] != VERSION.to_le_bytes() {
            return Err(Fault::Unknown);
        }
        let store_id = body[16..32].try_into().expect("sixteen bytes");
        let (stretch_count, place_count) = (number(32)?, number(40)?);
        let mut at = LOSSES_HEADER_LEN as usize;
        let mut stretches: Vec<Stretch> = Vec::new();
        for _ in 0..stretch_count {
            let stretch = Stretch { from: number(at)?, to: number(at + 8)? };
            let after = stretches.last().map_or(0, |last| last.to);
            if stretch.from < after
                || stretch.to <= stretch.from
                || !stretch.from.is_multiple_of(ALIGN)
            {
                return Err(Fault::Position);
            }
            stretches.push(stretch);
            at += 16;
        }
        let mut places: Vec<Place> = Vec::new();
        for _ in 0..place_count {
            let (position, end) = (number(at)?, number(at + 8)?);
            let record = &body[at + PLACE_LEN..];
            if !is_substitute(record) {
                return Err(Fault::Unknown);
            }
            let to = at + PLACE_LEN + encoded_record_len(record) as usize;
            let after = places.last().map_or(0, |last| last.end);
            let within = stretch_at(&stretches, position).is_some_and(|stretch| end <= stretch.to);
            if position < after || end <= position || !within {
                return Err(Fault::Position);
            }
            places.push(Place { position, end, at: (at + PLACE_LEN, to) });
            at = to;
        }
        if at != body.len() {
            return Err(Fault::Length);
        }
        Ok(Losses { store_id, stretches, places, bytes })
    }

    /// The stretches, in the order of the log; none meets the next.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Bytes of the log that are lost.
    pub fn lost_len(&self) -> u64 {
        self.stretches.iter().map(|stretch| stretch.to - stretch.from).sum()
    }

    /// The records that stand in for what is lost, in the order of the log.
    pub fn substitutes(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.places.len()).map(|index| self.substitute(index))
    }

    /// A number that differs for other losses of the same store; never 0.
    pub fn fingerprint(&self) -> u64 {
        let crc = |start: u32| u64::from(crc32c::crc32c_append(start, &self.bytes));
        (crc(1) << 32 | crc(2)) | 1
    }

    pub(crate) fn substitute(&self, index: usize) -> Record<'_> {
        let Place { position, end, at: (from, to) } = self.places[index];
        Record::standing_for(&self.bytes[from..to], position, end)
    }

    /// The substitute at exactly this position.
    pub(crate) fn substitute_at(&self, position: u64) -> Option<Record<'_>> {
        let index = self.places.binary_search_by_key(&position, |place| place.position).ok()?;
        Some(self.substitute(index))
    }

    /// Indices of the substitutes within a range of positions.
    pub(crate) fn substitutes_within(&self, from: u64, to: u64) -> std::ops::Range<usize> {
        let index = |position| self.places.partition_point(|place| place.position < position);
        index(from)..index(to)
    }

    /// The stretch that holds `position`.
    pub(crate) fn stretch_at(&self, position: u64) -> Option<&Stretch> {
        stretch_at(&self.stretches, position)
    }

    /// Where the first stretch begins that does not begin before `position`.
    pub(crate) fn next_from(&self, position: u64) -> Option<u64> {
        let index = self.stretches.partition_point(|stretch| stretch.from < position);
        self.stretches.get(index).map(|stretch| stretch.from)
    }

    /// Whether anything between these positions is lost.
    pub(crate) fn touches(&self, from: u64, to: u64) -> bool {
        self.stretches.iter().any(|stretch| stretch.from < to && from < stretch.to)
    }
}

fn stretch_at(stretches: &[Stretch], position: u64) -> Option<&Stretch> {
    let after = stretches.partition_point(|stretch| stretch.from <= position);
    stretches.get(after.checked_sub(1)?).filter(|stretch| stretch.contains(position))
}

/// What derived files of a store carry as its identity: made again from another log, or from the log
/// with other losses, they would be others. The first half is that of the store id.
pub fn identity(store_id: &[u8; 16], losses: Option<&Losses>) -> [u8; 16] {
    let mut identity = *store_id;
    let fingerprint = losses.map_or(0, Losses::fingerprint).to_le_bytes();
    identity[8..].iter_mut().zip(fingerprint).for_each(|(byte, mark)| *byte ^= mark);
    identity
}

/// What a substitute stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Substitute {
    /// An event. Without an id, the id is the one that the engine would have made.
    Event {
        /// The id, if it is known.
        id: Option<Vec<u8>>,
        /// Its parents; none if it was chained on the tips of its stream.
        parents: Option<Vec<Vec<u8>>>,
    },
    /// Something that was refused: an event that is tied to it is refused, too.
    Refused,
    /// A seal.
    Seal,
    /// The end of a seal.
    Unseal,
    /// A discard of the event with this id.
    Discard {
        /// The id, 1 to 64 bytes.
        id: Vec<u8>,
    },
}

/// Losses in the making.
#[derive(Debug, Default, Clone)]
pub struct LossBuilder {
    stretches: Vec<Stretch>,
    /// By position: its end, its stream, and what it is.
    substitutes: std::collections::BTreeMap<u64, (u64, Vec<u8>, Substitute)>,
}

impl LossBuilder {
    /// Begins with what is known to be lost already.
    pub fn new(known: Option<&Losses>) -> Self {
        let mut builder = Self::default();
        let Some(known) = known else { return builder };
        builder.stretches.clone_from(&known.stretches);
        for record in known.substitutes() {
            let substitute = match record.kind() {
                RecordKind::Event => Substitute::Event {
                    id: Some(record.given_id().to_vec()).filter(|id| !id.is_empty()),
                    parents: (!record.is_chained())
                        .then(|| record.parents().map(<[u8]>::to_vec).collect()),
                },
                RecordKind::Refused => Substitute::Refused,
                RecordKind::Seal => Substitute::Seal,
                RecordKind::Unseal => Substitute::Unseal,
                RecordKind::Discard => Substitute::Discard { id: record.given_id().to_vec() },
                RecordKind::Mark | RecordKind::StreamTrim => {
                    unreachable!("it stands in for nothing: see `is_substitute`")
                }
            };
            let place = (record.position() + record.len(), record.stream().to_vec(), substitute);
            builder.substitutes.insert(record.position(), place);
        }
        builder
    }

    /// Adds a stretch. Stretches that meet become one.
    pub fn lose(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let mut merged = Stretch { from, to };
        self.stretches.retain(|other| {
            let apart = other.to < merged.from || merged.to < other.from;
            if !apart {
                merged = Stretch { from: merged.from.min(other.from), to: merged.to.max(other.to) };
            }
            apart
        });
        let index = self.stretches.partition_point(|other| other.from < merged.from);
        self.stretches.insert(index, merged);
    }

    /// Has `substitute` stand for the positions `from..to`, which are lost.
    pub fn put(&mut self, from: u64, to: u64, stream: &[u8], substitute: Substitute) {
        self.substitutes.insert(from, (to, stream.to_vec(), substitute));
    }

    /// The stretches so far.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Position one past what a substitute at `position` can stand for: where the next one stands, or
    /// the stretch ends.
    pub fn room_at(&self, position: u64) -> Option<u64> {
        let stretch = stretch_at(&self.stretches, position)?;
        let next =
            self.substitutes.range(position + 1..).next().map_or(u64::MAX, |(&next, _)| next);
        Some(stretch.to.min(next))
    }

    /// Whether a substitute stands at or over `position`.
    pub fn has(&self, position: u64) -> bool {
        let before = self.substitutes.range(..=position).next_back();
        before.is_some_and(|(_, (end, ..))| *end > position)
    }

    /// Whether nothing is lost.
    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    /// The losses of the store `store_id`.
    pub fn build(&self, store_id: [u8; 16]) -> Losses {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&store_id);
        for number in [self.stretches.len(), self.substitutes.len()] {
            bytes.extend_from_slice(&(number as u64).to_le_bytes());
        }
        for number in self.stretches.iter().flat_map(|stretch| [stretch.from, stretch.to]) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for (position, (end, stream, substitute)) in &self.substitutes {
            for number in [position, end] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            encode(stream, substitute, &mut bytes);
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Losses::decode(bytes).expect("what is encoded decodes")
    }
}

fn encode(stream: &[u8], substitute: &Substitute, out: &mut Vec<u8>) {
    let (mut kind, mut flags, mut given_id, mut listed) =
        (RecordKind::Event, 0, &[][..], Vec::new());
    let (mut payload, reason) = (&[][..], encode_discard(DiscardReason::Discarded));
    match substitute {
        Substitute::Event { id, parents } => {
            given_id = id.as_deref().unwrap_or_default();
            listed = parents.iter().flatten().map(Vec::as_slice).collect();
            flags = FLAG_LOST | if parents.is_none() { FLAG_CHAINED } else { 0 };
        }
        Substitute::Refused => kind = RecordKind::Refused,
        Substitute::Seal => kind = RecordKind::Seal,
        Substitute::Unseal => kind = RecordKind::Unseal,
        Substitute::Discard { id } => {
            (kind, given_id, payload) = (RecordKind::Discard, id, &reason[..]);
        }
    }
    let id = given_id;
    let fields =
        RecordFields { kind, stream, id, if_local: None, parents: &listed, flags, payload };
    encode_record(&fields, out);
}

impl Losses {
    /// Makes these the losses of the store, in one step: before it none of the new ones are known, and
    /// after it all are, also after a crash.
    pub fn write(&self, storage: &dyn Storage) -> io::Result<()> {
        let new_name = name::losses_new();
        remove_if_there(storage, new_name)?;
        let file = storage.create(new_name, self.bytes.len() as u64)?;
        write_all_at(&*file, &self.bytes, 0)?;
        file.sync()?;
        storage.rename(new_name, name::losses())?;
        storage.sync_dir()
    }
}

const _: () = assert!(LOSSES_HEADER_LEN.is_multiple_of(ALIGN));
const _: () = assert!(RECORD_HEADER_LEN.is_multiple_of(ALIGN));

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> LossBuilder {
        let mut builder = LossBuilder::default();
        builder.lose(8192, 8256);
        builder.lose(4096, 4136);
        builder.lose(4136, 4200);
        let parents = Some(vec![b"p".to_vec()]);
        let event = Substitute::Event { id: Some(b"i".to_vec()), parents };
        builder.put(4096, 4160, b"s", event);
        builder.put(4160, 4200, b"s", Substitute::Event { id: None, parents: None });
        builder.put(8192, 8200, b"t", Substitute::Refused);
        builder.put(8200, 8208, b"t", Substitute::Seal);
        builder.put(8208, 8216, b"t", Substitute::Unseal);
        builder.put(8216, 8256, b"t", Substitute::Discard { id: b"i".to_vec() });
        builder
    }

    #[test]
    fn losses_read_back_and_not_with_any_byte_changed() {
        let losses = some().build([7; 16]);
        let both = [Stretch { from: 4096, to: 4200 }, Stretch { from: 8192, to: 8256 }];
        assert_eq!(losses.stretches(), both, "what meets is one");
        let kinds: Vec<_> = losses.substitutes().map(|record| record.kind()).collect();
        use RecordKind::{Discard, Event, Refused, Seal, Unseal};
        assert_eq!(kinds, [Event, Event, Refused, Seal, Unseal, Discard]);
        let last = losses.substitute_at(8216).expect("there");
        assert_eq!(
            (last.given_id(), last.discard_reason()),
            (&b"i"[..], Some(DiscardReason::Discarded))
        );
        let first = losses.substitute_at(4096).expect("there");
        assert!(first.is_lost() && first.given_id() == b"i" && first.len() == 64);
        assert!(losses.substitute_at(4104).is_none());
        assert_eq!(LossBuilder::new(Some(&losses)).build([7; 16]), losses);
        for byte in 0..losses.bytes.len() {
            let mut changed = losses.bytes.clone();
            changed[byte] ^= 16;
            assert!(Losses::decode(changed).is_err(), "byte {byte}");
            assert!(Losses::decode(losses.bytes[..byte].to_vec()).is_err(), "{byte} bytes");
        }
    }

    #[test]
    fn other_losses_have_another_identity() {
        let store = [3; 16];
        let (some, mut more) = (some(), some());
        more.lose(1 << 20, (1 << 20) + 8);
        let of = |builder: &LossBuilder| identity(&store, Some(&builder.build(store)));
        assert_eq!(identity(&store, None), store);
        assert_ne!(of(&some), store);
        assert_ne!(of(&some), of(&more));
        assert_eq!(of(&some)[..8], store[..8]);
    }
}
