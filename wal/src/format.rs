//! Bytes on disk: the segment header, the frame header and the record.
//!
//! This is the only module that knows an offset inside a header; `FORMAT.md` draws the same
//! layouts, and a test holds the two together. Writing, scanning and recovery all go through the
//! functions here, so they cannot disagree. Nothing here touches a file.
//!
//! All numbers are little-endian and of fixed size. Everything starts on an 8-byte boundary, and a
//! run of zeros is never a valid header of any kind: that is what lets recovery read untouched,
//! zero-filled space as "nothing was written here".

use crate::record::{DiscardReason, MarkChange, Parents, Record, RecordKind};

/// Every header, frame and record starts on a multiple of this many bytes.
pub const ALIGN: u64 = 8;

/// Major version of the format. A store with another major version is refused by name.
pub const VERSION_MAJOR: u16 = 1;
/// Minor version of the format. A higher minor version is readable.
pub const VERSION_MINOR: u16 = 0;

/// Bytes at the start of a segment that belong to its header page.
pub const SEGMENT_HEADER_LEN: u64 = 4096;
/// The header page holds the header twice, so that damage to one copy costs nothing that was
/// written in the segment. The last four bytes of a copy are its checksum.
pub const SEGMENT_HEADER_COPY_LEN: u64 = SEGMENT_HEADER_LEN / 2;
/// The same in every version, as are the magic, the version and the range of the checksum: that is
/// how a version tells a newer store from a damaged one.
const SEGMENT_HEADER_CRC_AT: usize = SEGMENT_HEADER_COPY_LEN as usize - 4;
const SEGMENT_MAGIC: [u8; 8] = *b"THALWEGS";
/// Feature bits of a segment header: a build that does not know one that is set refuses the store.
const FEATURE_FORGETS: u32 = 1 << 0;
const FEATURES_KNOWN: u32 = FEATURE_FORGETS;

/// Bytes of a frame header.
pub const FRAME_HEADER_LEN: u64 = 48;
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"FRM1");

/// Bytes of a record header, before stream, id, parents and payload.
pub const RECORD_HEADER_LEN: u64 = 24;
const RECORD_MAGIC: u8 = 0xE7;
const RECORD_KIND_EVENT: u8 = 1;
const RECORD_KIND_SEAL: u8 = 2;
const RECORD_KIND_UNSEAL: u8 = 3;
const RECORD_KIND_MARK: u8 = 4;
/// Only in place of what is lost, as is [`FLAG_LOST`].
const RECORD_KIND_REFUSED: u8 = 5;
const RECORD_KIND_DISCARD: u8 = 6;
const RECORD_KIND_STREAM_TRIM: u8 = 7;

/// Flag: the event has no listed parents; it is chained on the stream's tips.
pub(crate) const FLAG_CHAINED: u8 = 1 << 0;
/// Flag: reject the event when a parent is missing, instead of holding it.
pub(crate) const FLAG_REQUIRE_PARENTS: u8 = 1 << 1;
/// Flag: reject the event unless the listed parents are the tips of its stream.
pub(crate) const FLAG_IF_TIPS: u8 = 1 << 2;
/// Flag: reject the event unless it would take this place in its stream; the place stands before
/// the parents.
pub(crate) const FLAG_IF_LOCAL: u8 = 1 << 3;
/// Flag: reject the event if the one before it in its batch is refused.
pub(crate) const FLAG_WITH_PREVIOUS: u8 = 1 << 4;
/// Flag: the event is lost; this is what is known of it. Never in a segment.
pub(crate) const FLAG_LOST: u8 = 1 << 5;
const FLAGS_KNOWN: u8 =
    FLAG_CHAINED | FLAG_REQUIRE_PARENTS | FLAG_IF_TIPS | FLAG_IF_LOCAL | FLAG_WITH_PREVIOUS;

/// Bytes that a mark has as payload: a sequence, the bytes of its batch before it, and what it does.
pub(crate) const MARK_LEN: usize = 16;
const MARK_ADVANCE: u32 = 1;
const MARK_RESET: u32 = 2;
const MARK_REMOVE: u32 = 3;

/// Bytes that a discard has as payload: why.
pub(crate) const DISCARD_LEN: usize = 4;
const DISCARD_DISCARDED: u32 = 1;
const DISCARD_EXPIRED: u32 = 2;

/// Bytes of the place that an event with [`FLAG_IF_LOCAL`] names.
const IF_LOCAL_LEN: usize = 8;

/// Longest event id, in bytes.
pub const ID_LEN_MAX: usize = 64;
/// Longest stream name, in bytes.
pub const STREAM_LEN_MAX: usize = 255;
/// Most parents that one event may list.
pub const PARENT_COUNT_MAX: usize = 1 << 20;
/// Longest payload, in bytes.
pub const PAYLOAD_LEN_MAX: usize = 32 << 20;
/// Longest batch, in bytes of encoded records. A batch is never split over two frames.
pub const BATCH_LEN_MAX: usize = 64 << 20;
/// Longest frame, in bytes, header included.
pub const FRAME_LEN_MAX: u64 = 2 * BATCH_LEN_MAX as u64;

const _: () = assert!(SEGMENT_HEADER_COPY_LEN.is_multiple_of(ALIGN));
const _: () = assert!(FRAME_HEADER_LEN.is_multiple_of(ALIGN));
const _: () = assert!(RECORD_HEADER_LEN.is_multiple_of(ALIGN));
const _: () = assert!(PAYLOAD_LEN_MAX + (1 << 20) < BATCH_LEN_MAX);
const _: () = assert!(FRAME_LEN_MAX < u32::MAX as u64);

/// `len` rounded up to the next multiple of [`ALIGN`].
#[inline]
pub const fn align_up(len: u64) -> u64 {
    len.next_multiple_of(ALIGN)
}

/// Whether all of `bytes` are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    written_len(bytes) == 0
}

/// Length of `bytes` without the zeros at their end.
pub(crate) fn written_len(bytes: &[u8]) -> usize {
    static ZEROS: [u8; 4096] = [0; 4096];
    // Whole blocks first: comparing them is as fast as memory.
    let mut rest = bytes;
    while let Some((before, block)) = rest.split_last_chunk::<4096>() {
        if *block != ZEROS {
            break;
        }
        rest = before;
    }
    rest.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What is wrong with a piece of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes do not start like a frame or a record.
    NoMagic,
    /// A length or count contradicts the space that it stands in.
    Length,
    /// The checksum does not match the bytes.
    Checksum,
    /// The header names another position than the one that it stands at.
    Position,
    /// The record is of a kind, or carries flags or fields, that this version does not know.
    Unknown,
    /// A frame holds another number of records than its header says.
    Count,
    /// The bytes are lost, and known to be: a repair has written that down.
    Lost,
    /// The segment is not there.
    Missing,
    /// The file does not belong to this log.
    Foreign,
    /// The file is shorter than its header says.
    Short,
    /// The file is longer than its header says.
    Long,
    /// The file has the name of another segment.
    Misnamed,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fault::NoMagic => "no frame or record starts here",
            Fault::Length => "a length contradicts the space around it",
            Fault::Checksum => "the checksum does not match",
            Fault::Position => "the header names another position",
            Fault::Unknown => "unknown record kind or flag",
            Fault::Count => "the frame holds another number of records than it says",
            Fault::Lost => "lost, as a repair has recorded",
            Fault::Missing => "the segment is missing",
            Fault::Foreign => "the file does not belong to this log",
            Fault::Short => "the file is shorter than its header says",
            Fault::Long => "the file is longer than its header says",
            Fault::Misnamed => "the file has the name of another segment",
        })
    }
}

/// The header of a segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Identity of the store that the segment belongs to.
    pub store_id: [u8; 16],
    /// Ordinal of the segment, from 1, without gaps.
    pub number: u64,
    /// Position of the first byte of the file in the whole log.
    pub base: u64,
    /// Length of the file in bytes.
    pub len: u64,
    /// Random number that enters every checksum of the segment.
    pub salt: u64,
    /// Position at which the frames of the previous segment end; 0 for the first segment.
    /// Writing this header is what seals the previous segment, and what cuts its torn tail.
    pub previous_end: u64,
    /// Salt of the previous segment; 0 for the first. Ties the chain together.
    pub previous_salt: u64,
    /// From the beginning of this segment on, ids of deliveries with a global sequence below this one are
    /// forgotten. Never goes down from one segment to the next.
    pub forgotten: u64,
    /// What the previous segment says of that; 0 for the first. Brings its value back if its header is lost.
    pub previous_forgotten: u64,
}

/// What the first bytes of a segment file turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SegmentHeaderState {
    /// All zeros: the file was prepared ahead and never used.
    Unused,
    /// A whole header.
    Valid(SegmentHeader),
    /// A whole header of which one copy is damaged.
    OneCopy(SegmentHeader, Fault),
    /// A whole header of a format that this version cannot read.
    Foreign {
        /// Major version found in the header.
        major: u16,
        /// Feature bits found in the header.
        features: u32,
    },
    /// A whole header whose feature bits and fields contradict each other. Nobody writes one.
    Contradictory,
    /// None of these.
    Damaged(Fault),
}

impl SegmentHeader {
    /// The header page.
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = vec![0; SEGMENT_HEADER_COPY_LEN as usize];
        copy[0..8].copy_from_slice(&SEGMENT_MAGIC);
        copy[8..10].copy_from_slice(&VERSION_MAJOR.to_le_bytes());
        copy[10..12].copy_from_slice(&VERSION_MINOR.to_le_bytes());
        copy[12..16].copy_from_slice(&self.features().to_le_bytes());
        copy[16..32].copy_from_slice(&self.store_id);
        copy[32..40].copy_from_slice(&self.number.to_le_bytes());
        copy[40..48].copy_from_slice(&self.base.to_le_bytes());
        copy[48..56].copy_from_slice(&self.len.to_le_bytes());
        copy[56..64].copy_from_slice(&self.salt.to_le_bytes());
        copy[64..72].copy_from_slice(&self.previous_end.to_le_bytes());
        copy[72..80].copy_from_slice(&self.previous_salt.to_le_bytes());
        copy[80..88].copy_from_slice(&self.forgotten.to_le_bytes());
        copy[88..96].copy_from_slice(&self.previous_forgotten.to_le_bytes());
        // 96..2044: reserved, zero.
        let crc = crc32c::crc32c(&copy[..SEGMENT_HEADER_CRC_AT]);
        copy[SEGMENT_HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        copy.repeat(2)
    }

    /// Feature bits: a build that remembers all ids must not read on behind one that forgets some.
    fn features(&self) -> u32 {
        if self.forgotten == 0 { 0 } else { FEATURE_FORGETS }
    }

    /// Reads a header page.
    pub fn decode(page: &[u8]) -> SegmentHeaderState {
        if page.len() != SEGMENT_HEADER_LEN as usize {
            return SegmentHeaderState::Damaged(Fault::Length);
        }
        if is_zero(page) {
            return SegmentHeaderState::Unused;
        }
        let (first, second) = page.split_at(SEGMENT_HEADER_COPY_LEN as usize);
        match (Self::check_copy(first), Self::check_copy(second)) {
            (Ok(()), Ok(())) if first != second => SegmentHeaderState::Damaged(Fault::Checksum),
            (Ok(()), Ok(())) => Self::decode_copy(first, None),
            (Ok(()), Err(fault)) => Self::decode_copy(first, Some(fault)),
            (Err(fault), Ok(())) => Self::decode_copy(second, Some(fault)),
            (Err(fault), Err(_)) => SegmentHeaderState::Damaged(fault),
        }
    }

    fn check_copy(copy: &[u8]) -> Result<(), Fault> {
        if copy[0..8] != SEGMENT_MAGIC {
            return Err(Fault::NoMagic);
        }
        let crc = crc32c::crc32c(&copy[..SEGMENT_HEADER_CRC_AT]);
        if crc != u32_at(copy, SEGMENT_HEADER_CRC_AT) {
            return Err(Fault::Checksum);
        }
        Ok(())
    }

    /// Reads a copy whose checksum matches; `other` is what is wrong with the other copy.
    fn decode_copy(copy: &[u8], other: Option<Fault>) -> SegmentHeaderState {
        let (major, features) = (u16_at(copy, 8), u32_at(copy, 12));
        if major != VERSION_MAJOR || features & !FEATURES_KNOWN != 0 {
            return SegmentHeaderState::Foreign { major, features };
        }
        let header = SegmentHeader {
            store_id: copy[16..32].try_into().expect("sixteen bytes"),
            number: u64_at(copy, 32),
            base: u64_at(copy, 40),
            len: u64_at(copy, 48),
            salt: u64_at(copy, 56),
            previous_end: u64_at(copy, 64),
            previous_salt: u64_at(copy, 72),
            forgotten: u64_at(copy, 80),
            previous_forgotten: u64_at(copy, 88),
        };
        if features != header.features() {
            return SegmentHeaderState::Contradictory;
        }
        match other {
            None => SegmentHeaderState::Valid(header),
            Some(fault) => SegmentHeaderState::OneCopy(header, fault),
        }
    }
}

/// The header of a frame, the unit of commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Position of the frame in the whole log.
    pub position: u64,
    /// Length of the frame in bytes, header included, a multiple of [`ALIGN`].
    pub len: u64,
    /// Number of records in the frame.
    pub record_count: u32,
    /// Everything below this position was durable when the header was made. A whole frame is
    /// therefore a proof about the log before it, which tells damage from a torn tail.
    pub floor: u64,
    /// When the frame was made, in milliseconds since the Unix epoch, by the clock of the machine; 0 if that is
    /// not known.
    pub written_at: u64,
}

impl FrameHeader {
    /// Position one past the frame.
    pub fn end(&self) -> u64 {
        self.position + self.len
    }

    /// Writes the header over the first [`FRAME_HEADER_LEN`] bytes of `frame`.
    pub fn encode_into(&self, salt: u64, frame: &mut [u8]) {
        let header = &mut frame[..FRAME_HEADER_LEN as usize];
        header.fill(0);
        header[0..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        header[8..16].copy_from_slice(&self.position.to_le_bytes());
        header[16..24].copy_from_slice(&self.len.to_le_bytes());
        header[24..28].copy_from_slice(&self.record_count.to_le_bytes());
        // 28..32: reserved, zero.
        header[32..40].copy_from_slice(&self.floor.to_le_bytes());
        header[40..48].copy_from_slice(&self.written_at.to_le_bytes());
        let crc = frame_crc(salt, header);
        header[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

fn frame_crc(salt: u64, header: &[u8]) -> u32 {
    crc32c::crc32c_append(
        crc32c::crc32c(&salt.to_le_bytes()),
        &header[8..FRAME_HEADER_LEN as usize],
    )
}

/// The checksum that a record carries: its own bytes, bound to the segment and the place in it.
///
/// The content part is computed by the appender, who does not yet know the position; the writer
/// then mixes in salt and position over twenty bytes, whatever the size of the record.
#[inline]
fn bound_crc(salt: u64, position: u64, content_crc: u32) -> u32 {
    let mut bytes = [0; 20];
    bytes[0..8].copy_from_slice(&salt.to_le_bytes());
    bytes[8..16].copy_from_slice(&position.to_le_bytes());
    bytes[16..20].copy_from_slice(&content_crc.to_le_bytes());
    crc32c::crc32c(&bytes)
}

/// Reads the length of the record that starts `bytes`, which [`encode_record`] has written.
#[inline]
pub(crate) fn encoded_record_len(bytes: &[u8]) -> u64 {
    record_len(bytes)
}

/// Replaces the content checksum of an encoded record by the one bound to its place.
#[inline]
pub(crate) fn bind_record(record: &mut [u8], salt: u64, position: u64) {
    let content_crc = u32_at(record, 0);
    record[0..4].copy_from_slice(&bound_crc(salt, position, content_crc).to_le_bytes());
}

/// What an appender knows of a record when it encodes it. Every limit is checked before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordFields<'a> {
    pub(crate) kind: RecordKind,
    pub(crate) stream: &'a [u8],
    pub(crate) id: &'a [u8],
    /// Whoever sets it sets [`FLAG_IF_LOCAL`] too.
    pub(crate) if_local: Option<u64>,
    pub(crate) parents: &'a [&'a [u8]],
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

impl RecordFields<'_> {
    /// Bytes of the place that the event names, if it does, and of its list of parents.
    fn lineage_len(&self) -> usize {
        let parents: usize = self.parents.iter().map(|parent| 1 + parent.len()).sum();
        self.if_local.map_or(0, |_| IF_LOCAL_LEN) + parents
    }

    /// Bytes that the record takes in a frame.
    pub(crate) fn encoded_len(&self) -> u64 {
        let fields = self.stream.len() + self.id.len() + self.lineage_len() + self.payload.len();
        align_up(RECORD_HEADER_LEN + fields as u64)
    }
}

/// Appends an encoded record to `out`, with a checksum that is not yet bound to a position.
pub(crate) fn encode_record(fields: &RecordFields<'_>, out: &mut Vec<u8>) {
    debug_assert_eq!(fields.flags & FLAG_IF_LOCAL != 0, fields.if_local.is_some());
    let start = out.len();
    let kind = match fields.kind {
        RecordKind::Event => RECORD_KIND_EVENT,
        RecordKind::Seal => RECORD_KIND_SEAL,
        RecordKind::Unseal => RECORD_KIND_UNSEAL,
        RecordKind::Mark => RECORD_KIND_MARK,
        RecordKind::Refused => RECORD_KIND_REFUSED,
        RecordKind::Discard => RECORD_KIND_DISCARD,
        RecordKind::StreamTrim => RECORD_KIND_STREAM_TRIM,
    };
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[RECORD_MAGIC, kind, fields.flags, 0]);
    out.extend_from_slice(&(fields.payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&(fields.lineage_len() as u32).to_le_bytes());
    out.extend_from_slice(&(fields.parents.len() as u32).to_le_bytes());
    out.extend_from_slice(&[fields.stream.len() as u8, fields.id.len() as u8, 0, 0]);
    debug_assert_eq!(out.len() - start, RECORD_HEADER_LEN as usize);
    out.extend_from_slice(fields.stream);
    out.extend_from_slice(fields.id);
    if let Some(local) = fields.if_local {
        out.extend_from_slice(&local.to_le_bytes());
    }
    for parent in fields.parents {
        out.push(parent.len() as u8);
        out.extend_from_slice(parent);
    }
    out.extend_from_slice(fields.payload);
    out.resize(start + align_up((out.len() - start) as u64) as usize, 0);
    let crc = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Length that the record header at the start of `bytes` claims, padding included.
#[inline]
fn record_len(bytes: &[u8]) -> u64 {
    let fields = u64::from(u32_at(bytes, 8))
        + u64::from(u32_at(bytes, 12))
        + u64::from(bytes[20])
        + u64::from(bytes[21]);
    align_up(RECORD_HEADER_LEN + fields)
}

/// Whether this version knows the kind, the flags and the fields of the record in `bytes`.
#[inline]
fn is_known(bytes: &[u8]) -> bool {
    let (kind, flags) = (bytes[5], bytes[6]);
    if kind == RECORD_KIND_EVENT {
        // A chained event lists nothing that could be its stream's tips.
        let both = FLAG_CHAINED | FLAG_IF_TIPS;
        return flags & !FLAGS_KNOWN == 0 && flags & both != both && lists_parents(bytes);
    }
    // A control record has no flags and no lineage; only a discard has an id, and only marks, discards
    // and trims a payload.
    let rest = u32_at(bytes, 12) | u32_at(bytes, 16) | u32::from(flags);
    let has_id = bytes[21] != 0;
    rest == 0
        && match kind {
            RECORD_KIND_SEAL | RECORD_KIND_UNSEAL => !has_id && u32_at(bytes, 8) == 0,
            RECORD_KIND_MARK => !has_id && RecordLayout::mark(bytes).is_some(),
            RECORD_KIND_STREAM_TRIM => !has_id && RecordLayout::stream_trim(bytes).is_some(),
            RECORD_KIND_DISCARD => has_id && RecordLayout::discard_reason(bytes).is_some(),
            _ => false,
        }
}

/// The payload of a discard.
pub(crate) fn encode_discard(reason: DiscardReason) -> [u8; DISCARD_LEN] {
    match reason {
        DiscardReason::Discarded => DISCARD_DISCARDED.to_le_bytes(),
        DiscardReason::Expired => DISCARD_EXPIRED.to_le_bytes(),
    }
}

/// The payload of a mark. `reach` is the number of bytes of its batch before it.
pub(crate) fn encode_mark(change: MarkChange, reach: u32) -> [u8; MARK_LEN] {
    let (what, next) = match change {
        MarkChange::Advance(next) => (MARK_ADVANCE, next),
        MarkChange::Reset(next) => (MARK_RESET, next),
        MarkChange::Remove => (MARK_REMOVE, 0),
    };
    let mut payload = [0; MARK_LEN];
    payload[..8].copy_from_slice(&next.to_le_bytes());
    payload[8..12].copy_from_slice(&reach.to_le_bytes());
    payload[12..].copy_from_slice(&what.to_le_bytes());
    payload
}

/// Whether the event in `bytes`, whose lengths fit, has the place that its flags say, and behind it a
/// list of as many parents as its header says and nothing else. Who walks a list by its count and who
/// walks it by its bytes must come to the same parents.
#[inline]
fn lists_parents(bytes: &[u8]) -> bool {
    let (flags, count) = (RecordLayout::flags(bytes), u32_at(bytes, 16));
    let has_place = flags & FLAG_IF_LOCAL == 0 || u32_at(bytes, 12) as usize >= IF_LOCAL_LEN;
    if !has_place || (flags & FLAG_CHAINED != 0 && count != 0) {
        return false;
    }
    let (_, mut rest) = RecordLayout::lineage(bytes);
    for _ in 0..count {
        let Some((&len, parents)) = rest.split_first() else { return false };
        if !(1..=ID_LEN_MAX).contains(&usize::from(len)) || parents.len() < usize::from(len) {
            return false;
        }
        rest = &parents[usize::from(len)..];
    }
    rest.is_empty()
}

/// Whether `bytes` begin with a record that may stand in for what is lost: its lengths are in bounds, and it
/// is of a kind for that. Its checksum is not looked at: all of the file has one.
pub(crate) fn is_substitute(bytes: &[u8]) -> bool {
    if bytes.len() < RECORD_HEADER_LEN as usize || bytes[4] != RECORD_MAGIC || bytes[20] == 0 {
        return false;
    }
    let (kind, flags) = (bytes[5], bytes[6]);
    let kinds = [RECORD_KIND_SEAL, RECORD_KIND_UNSEAL, RECORD_KIND_REFUSED, RECORD_KIND_DISCARD];
    let is_event = kind == RECORD_KIND_EVENT && flags & !FLAG_CHAINED == FLAG_LOST;
    let is_other = kinds.contains(&kind) && flags == 0;
    let is_in_bounds =
        record_len(bytes) <= bytes.len() as u64 && usize::from(bytes[21]) <= ID_LEN_MAX;
    is_in_bounds
        && (is_event || is_other)
        && (kind != RECORD_KIND_DISCARD || (bytes[21] > 0 && is_known(bytes)))
}

/// The bytes of the record that `bytes` begin with; its lengths are checked, and nothing else.
#[inline]
pub(crate) fn record_shape(bytes: &[u8]) -> Result<&[u8], Fault> {
    if bytes.len() < RECORD_HEADER_LEN as usize {
        return Err(Fault::Length);
    }
    if bytes[4] != RECORD_MAGIC {
        return Err(Fault::NoMagic);
    }
    let len = record_len(bytes);
    let (stream_len, id_len) = (bytes[20] as usize, bytes[21] as usize);
    if len > bytes.len() as u64 || stream_len == 0 || id_len > ID_LEN_MAX {
        return Err(Fault::Length);
    }
    Ok(&bytes[..len as usize])
}

/// A run of bytes of one segment, with what is needed to judge them.
///
/// `bytes[0]` stands at position `start`. Positions inside are checked against the end of the
/// run, so no length field can lead outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) start: u64,
    pub(crate) salt: u64,
}

impl<'a> Run<'a> {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    #[inline]
    fn at(&self, position: u64) -> &'a [u8] {
        let offset = position.saturating_sub(self.start).min(self.bytes.len() as u64);
        &self.bytes[offset as usize..]
    }

    /// The frame header at `position`. The frame lies whole inside the run.
    pub(crate) fn frame_header(&self, position: u64) -> Result<FrameHeader, Fault> {
        let bytes = self.at(position);
        if bytes.len() < FRAME_HEADER_LEN as usize {
            return Err(Fault::Length);
        }
        if u32_at(bytes, 0) != FRAME_MAGIC {
            return Err(Fault::NoMagic);
        }
        if u32_at(bytes, 4) != frame_crc(self.salt, bytes) {
            return Err(Fault::Checksum);
        }
        let header = FrameHeader {
            position: u64_at(bytes, 8),
            len: u64_at(bytes, 16),
            record_count: u32_at(bytes, 24),
            floor: u64_at(bytes, 32),
            written_at: u64_at(bytes, 40),
        };
        if header.position != position {
            return Err(Fault::Position);
        }
        let fits = header.len >= FRAME_HEADER_LEN
            && header.len.is_multiple_of(ALIGN)
            && header.len <= bytes.len() as u64;
        if !fits {
            return Err(Fault::Length);
        }
        Ok(header)
    }

    /// The record at `position`, its checksum verified.
    #[inline]
    pub(crate) fn record(&self, position: u64) -> Result<Record<'a>, Fault> {
        let record = self.record_whole(position)?;
        let bytes = record.bytes();
        if !is_known(bytes) {
            return Err(Fault::Unknown);
        }
        Ok(record)
    }

    /// The record at `position`, its checksum verified, of whatever kind: a record that this
    /// version cannot read was written all the same.
    #[inline]
    pub(crate) fn record_whole(&self, position: u64) -> Result<Record<'a>, Fault> {
        let record = self.record_shape(position)?;
        let bytes = record.bytes();
        let crc = bound_crc(self.salt, position, crc32c::crc32c(&bytes[4..]));
        if u32_at(bytes, 0) != crc {
            return Err(Fault::Checksum);
        }
        Ok(record)
    }

    /// The record at `position`, its lengths checked but not its checksum: for a record that this
    /// process has verified before.
    #[inline]
    pub(crate) fn record_shape(&self, position: u64) -> Result<Record<'a>, Fault> {
        record_shape(self.at(position)).map(|bytes| Record::new(bytes, position))
    }

    /// The next position after `position` at which a frame or record stands that is whole and
    /// where it belongs; the end of the run if there is none.
    pub(crate) fn resync(&self, position: u64) -> u64 {
        let mut next = position + ALIGN;
        while next < self.end() {
            if self.frame_header(next).is_ok() || self.record(next).is_ok() {
                return next;
            }
            next += ALIGN;
        }
        self.end()
    }
}

/// Field access for [`Record`], kept beside the layout that it reads.
pub(crate) struct RecordLayout;

impl RecordLayout {
    /// The kind of a record that is whole; records of other kinds are not handed out.
    #[inline]
    pub(crate) fn kind(bytes: &[u8]) -> RecordKind {
        match bytes[5] {
            RECORD_KIND_SEAL => RecordKind::Seal,
            RECORD_KIND_UNSEAL => RecordKind::Unseal,
            RECORD_KIND_MARK => RecordKind::Mark,
            RECORD_KIND_REFUSED => RecordKind::Refused,
            RECORD_KIND_DISCARD => RecordKind::Discard,
            RECORD_KIND_STREAM_TRIM => RecordKind::StreamTrim,
            _ => RecordKind::Event,
        }
    }

    /// Whether the record says of itself that it is an event, verified or not.
    pub(crate) fn is_event(bytes: &[u8]) -> bool {
        bytes[5] == RECORD_KIND_EVENT
    }

    #[inline]
    pub(crate) fn flags(bytes: &[u8]) -> u8 {
        bytes[6]
    }

    #[inline]
    pub(crate) fn stream(bytes: &[u8]) -> &[u8] {
        let start = RECORD_HEADER_LEN as usize;
        &bytes[start..start + bytes[20] as usize]
    }

    #[inline]
    pub(crate) fn id(bytes: &[u8]) -> &[u8] {
        let start = RECORD_HEADER_LEN as usize + bytes[20] as usize;
        &bytes[start..start + bytes[21] as usize]
    }

    /// The place that the event names, if it does, and its list of parents.
    #[inline]
    fn lineage(bytes: &[u8]) -> (Option<u64>, &[u8]) {
        let start = RECORD_HEADER_LEN as usize + bytes[20] as usize + bytes[21] as usize;
        let lineage = &bytes[start..start + u32_at(bytes, 12) as usize];
        if Self::flags(bytes) & FLAG_IF_LOCAL == 0 {
            return (None, lineage);
        }
        // Verified records have these bytes. What is taken for a record at a wrong position may
        // not, and must not end in a panic.
        match lineage.split_first_chunk::<IF_LOCAL_LEN>() {
            Some((local, parents)) => (Some(u64::from_le_bytes(*local)), parents),
            None => (None, &[]),
        }
    }

    #[inline]
    pub(crate) fn if_local(bytes: &[u8]) -> Option<u64> {
        Self::lineage(bytes).0
    }

    #[inline]
    pub(crate) fn parents(bytes: &[u8]) -> Parents<'_> {
        Parents::new(Self::lineage(bytes).1, u32_at(bytes, 16))
    }

    /// What a mark does to its cursor, and how many bytes of its batch are before it. Nothing if this is not
    /// the payload of a mark.
    #[inline]
    pub(crate) fn mark(bytes: &[u8]) -> Option<(MarkChange, u32)> {
        let payload: &[u8; MARK_LEN] = Self::payload(bytes).try_into().ok()?;
        let change = match (u32_at(payload, 12), u64_at(payload, 0)) {
            (MARK_ADVANCE, next) => MarkChange::Advance(next),
            (MARK_RESET, next) => MarkChange::Reset(next),
            (MARK_REMOVE, 0) => MarkChange::Remove,
            _ => return None,
        };
        Some((change, u32_at(payload, 8)))
    }

    /// Why a held event is given up. Nothing if this is not the payload of a discard.
    #[inline]
    pub(crate) fn discard_reason(bytes: &[u8]) -> Option<DiscardReason> {
        let payload: &[u8; DISCARD_LEN] = Self::payload(bytes).try_into().ok()?;
        match u32::from_le_bytes(*payload) {
            DISCARD_DISCARDED => Some(DiscardReason::Discarded),
            DISCARD_EXPIRED => Some(DiscardReason::Expired),
            _ => None,
        }
    }

    /// The first local sequence to keep. Nothing if this is not the payload of a stream's trim.
    #[inline]
    pub(crate) fn stream_trim(bytes: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(Self::payload(bytes).try_into().ok()?))
    }

    #[inline]
    pub(crate) fn payload(bytes: &[u8]) -> &[u8] {
        let start = RECORD_HEADER_LEN as usize
            + bytes[20] as usize
            + bytes[21] as usize
            + u32_at(bytes, 12) as usize;
        &bytes[start..start + u32_at(bytes, 8) as usize]
    }
}
