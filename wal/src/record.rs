//! A record as it lies in the log: a view over borrowed bytes, nothing is copied or parsed ahead.

use std::fmt;

use crate::format::{
    FLAG_CHAINED, FLAG_IF_TIPS, FLAG_LOST, FLAG_REQUIRE_PARENTS, FLAG_WITH_PREVIOUS, RecordFields,
    RecordLayout, encode_record, record_shape,
};

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// An event.
    Event,
    /// From here on, the stream takes no events. Has a stream and no other field.
    Seal,
    /// From here on, the stream takes events again. Has a stream and no other field.
    Unseal,
    /// How far a consumer has come; see [`Record::mark`]. Belongs to no stream.
    Mark,
    /// The event with this stream and id, if it is held, will never be delivered; see
    /// [`Record::discard_reason`].
    Discard,
    /// From here on, readers of the stream begin at a later event; see [`Record::stream_trim`].
    StreamTrim,
    /// Stands in for something lost that was refused, so that an event that is tied to it is refused, too.
    /// Has a stream and no other field; never in a segment.
    Refused,
}

/// A mark: where a consumer's cursor is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark<'a> {
    /// Name of the cursor, 1 to 255 bytes.
    pub cursor: &'a [u8],
    /// What becomes of the cursor.
    pub change: MarkChange,
    /// The mark counts only if no record of its batch from this position on is refused. Its own position
    /// if it is the first of its batch.
    pub depends_from: u64,
}

/// What a mark does to its cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MarkChange {
    /// Takes it up to this sequence; if it is there or beyond, it stays.
    Advance(u64),
    /// Takes it to this sequence, up or down.
    Reset(u64),
    /// Takes it away.
    Remove,
}

/// Why a held event is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DiscardReason {
    /// Somebody named it.
    Discarded,
    /// It was held for too long.
    Expired,
}

/// One record in the log, borrowed from the segment that holds it.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    bytes: &'a [u8],
    position: u64,
    end: u64,
}

impl<'a> Record<'a> {
    pub(crate) fn new(bytes: &'a [u8], position: u64) -> Self {
        Record { bytes, position, end: position + bytes.len() as u64 }
    }

    /// A record that stands in for what was at `position..end`.
    pub(crate) fn standing_for(bytes: &'a [u8], position: u64, end: u64) -> Self {
        Record { bytes, position, end }
    }

    /// A record that was copied out of the log, as [`Record::bytes`] gave it, with the position that it had there.
    /// Nothing if the bytes do not begin with the shape of one; their checksum is not looked at.
    pub fn detached(bytes: &'a [u8], position: u64) -> Option<Self> {
        record_shape(bytes).ok().map(|bytes| Record::new(bytes, position))
    }

    /// The record as it stands in the log.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The event with its stream and its id and nothing else, for [`Record::detached`].
    pub fn stub(&self) -> Vec<u8> {
        let flags = FLAG_CHAINED | RecordLayout::flags(self.bytes) & FLAG_LOST;
        let (stream, id) = (self.stream(), self.given_id());
        let kind = RecordKind::Event;
        let (if_local, parents, payload) = (None, &[][..], &[][..]);
        let mut out = Vec::new();
        encode_record(
            &RecordFields { kind, stream, id, if_local, parents, flags, payload },
            &mut out,
        );
        out
    }

    /// Position of the record in the whole log.
    #[inline]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes that the record takes in the log, padding included.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a record is never empty")]
    pub fn len(&self) -> u64 {
        self.end - self.position
    }

    /// What the record is.
    #[inline]
    pub fn kind(&self) -> RecordKind {
        RecordLayout::kind(self.bytes)
    }

    /// Name of the stream, 1 to 255 bytes; of a mark, the name of its cursor.
    #[inline]
    pub fn stream(&self) -> &'a [u8] {
        RecordLayout::stream(self.bytes)
    }

    /// The id that the appender gave, 1 to 64 bytes; empty if the engine names the event. Of a discard, the
    /// id of the event that is given up.
    #[inline]
    pub fn given_id(&self) -> &'a [u8] {
        RecordLayout::id(self.bytes)
    }

    /// The parents as the appender listed them: in that order, repeats included. Empty for a root
    /// and for a chained event; [`Record::is_chained`] tells them apart.
    #[inline]
    pub fn parents(&self) -> Parents<'a> {
        RecordLayout::parents(self.bytes)
    }

    /// Whether the event is lost, and this is what is known of it: its stream and its place, perhaps its
    /// id and its parents, and no payload.
    #[inline]
    pub fn is_lost(&self) -> bool {
        RecordLayout::flags(self.bytes) & FLAG_LOST != 0
    }

    /// Whether the event's parents are the tips of its stream at its place in the log.
    #[inline]
    pub fn is_chained(&self) -> bool {
        RecordLayout::flags(self.bytes) & FLAG_CHAINED != 0
    }

    /// Whether the event is to be rejected, not held, while a parent is missing.
    #[inline]
    pub fn requires_parents(&self) -> bool {
        RecordLayout::flags(self.bytes) & FLAG_REQUIRE_PARENTS != 0
    }

    /// Whether the event is to be rejected unless the listed parents are, as a set, the tips of its
    /// stream at its place in the log.
    #[inline]
    pub fn is_if_tips(&self) -> bool {
        RecordLayout::flags(self.bytes) & FLAG_IF_TIPS != 0
    }

    /// The event is to be rejected unless this many events of its stream are delivered before it.
    #[inline]
    pub fn if_local(&self) -> Option<u64> {
        RecordLayout::if_local(self.bytes)
    }

    /// Whether the event is to be rejected if the record that ends where it begins, of the same
    /// stream, is refused.
    #[inline]
    pub fn is_with_previous(&self) -> bool {
        RecordLayout::flags(self.bytes) & FLAG_WITH_PREVIOUS != 0
    }

    /// What the record says if it is a mark.
    #[inline]
    pub fn mark(&self) -> Option<Mark<'a>> {
        if self.kind() != RecordKind::Mark {
            return None;
        }
        let (change, reach) = RecordLayout::mark(self.bytes)?;
        let depends_from = self.position.saturating_sub(reach.into());
        Some(Mark { cursor: self.stream(), change, depends_from })
    }

    /// Why the held event is given up, if the record says that one is.
    #[inline]
    pub fn discard_reason(&self) -> Option<DiscardReason> {
        (self.kind() == RecordKind::Discard).then(|| RecordLayout::discard_reason(self.bytes))?
    }

    /// Local sequence of the first event of the stream that is to be kept, if the record trims a stream.
    #[inline]
    pub fn stream_trim(&self) -> Option<u64> {
        (self.kind() == RecordKind::StreamTrim).then(|| RecordLayout::stream_trim(self.bytes))?
    }

    /// The payload. Its meaning is the user's; the log never looks inside.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        RecordLayout::payload(self.bytes)
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("position", &self.position)
            .field("kind", &self.kind())
            .field("stream", &self.stream().escape_ascii().to_string())
            .field("id", &self.given_id().escape_ascii().to_string())
            .field("parents", &self.parents())
            .field("payload_len", &self.payload().len())
            .finish()
    }
}

/// The listed parents of a record, in the order in which they were given.
#[derive(Clone, Copy)]
pub struct Parents<'a> {
    rest: &'a [u8],
    count: u32,
}

impl<'a> Parents<'a> {
    pub(crate) fn new(rest: &'a [u8], count: u32) -> Self {
        Parents { rest, count }
    }

    /// The bytes that encode the list. Equal lists have equal bytes.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Parents<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        // The checksum covers these bytes, so a length that does not fit can only come from a
        // writer with a bug; ending the list early keeps even that from a panic.
        if self.count == 0 {
            return None;
        }
        let (&len, rest) = self.rest.split_first()?;
        let (parent, rest) = rest.split_at_checked(usize::from(len))?;
        self.rest = rest;
        self.count -= 1;
        Some(parent)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.count as usize))
    }
}

impl fmt::Debug for Parents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.map(|parent| parent.escape_ascii().to_string())).finish()
    }
}
