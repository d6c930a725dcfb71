//! Encoding of records on the appender's thread, limits checked before a byte is written.

use std::collections::HashSet;
use std::fmt;

use crate::format::{
    BATCH_LEN_MAX, FLAG_CHAINED, FLAG_IF_LOCAL, FLAG_IF_TIPS, FLAG_REQUIRE_PARENTS,
    FLAG_WITH_PREVIOUS, ID_LEN_MAX, PARENT_COUNT_MAX, PAYLOAD_LEN_MAX, RecordFields, RecordLayout,
    STREAM_LEN_MAX, encode_discard, encode_mark, encode_record, encoded_record_len,
};
use crate::record::{DiscardReason, MarkChange, RecordKind};

/// Where an event hangs in its stream.
#[derive(Debug, Clone, Copy)]
pub enum Lineage<'a> {
    /// On the tips of the stream at the event's place in the log.
    Chained,
    /// On the listed parents; none of them makes a root.
    Parents(&'a [&'a [u8]]),
    /// On the listed parents, if they are, as a set, the tips of the stream at the event's place in
    /// the log; rejected otherwise. An empty list stands for a stream without a delivered event.
    IfTips(&'a [&'a [u8]]),
}

/// An event, as its appender knows it.
#[derive(Debug, Clone, Copy)]
pub struct EventFields<'a> {
    /// Name of the stream, 1 to [`STREAM_LEN_MAX`] bytes.
    pub stream: &'a [u8],
    /// Id, 1 to [`ID_LEN_MAX`] bytes, or none to let the engine name the event.
    pub id: Option<&'a [u8]>,
    /// Where the event hangs.
    pub lineage: Lineage<'a>,
    /// Reject the event, instead of holding it, when a parent is missing.
    pub require_parents: bool,
    /// Reject the event unless this many events of its stream are delivered before it.
    pub if_local: Option<u64>,
    /// Reject the event if the one before it in the batch, which is of the same stream, is refused.
    pub with_previous: bool,
    /// The payload, up to [`PAYLOAD_LEN_MAX`] bytes; may be empty.
    pub payload: &'a [u8],
}

/// An event or a batch is larger than the format allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// The stream name is empty or longer than [`STREAM_LEN_MAX`] bytes.
    Stream {
        /// Bytes in the name.
        len: usize,
    },
    /// The name of a cursor is empty or longer than [`STREAM_LEN_MAX`] bytes.
    Cursor {
        /// Bytes in the name.
        len: usize,
    },
    /// The id is empty or longer than [`ID_LEN_MAX`] bytes.
    Id {
        /// Bytes in the id.
        len: usize,
    },
    /// A parent's id is empty or longer than [`ID_LEN_MAX`] bytes.
    Parent {
        /// Place in the list of parents, from 0.
        index: usize,
        /// Bytes in the parent's id.
        len: usize,
    },
    /// More parents than [`PARENT_COUNT_MAX`].
    ParentCount {
        /// Parents listed.
        count: usize,
    },
    /// The payload is longer than [`PAYLOAD_LEN_MAX`] bytes.
    Payload {
        /// Bytes in the payload.
        len: usize,
    },
    /// The event is tied to the one before it, and the batch has no event of its stream there.
    Previous,
    /// The batch would be longer than [`BATCH_LEN_MAX`] bytes.
    Batch {
        /// Bytes that the batch would take.
        len: u64,
    },
}

const _: () = assert!(BATCH_LEN_MAX <= u32::MAX as usize);

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitError::Stream { len } => {
                write!(f, "a stream name takes 1 to {STREAM_LEN_MAX} bytes, this one has {len}")
            }
            LimitError::Cursor { len } => {
                write!(f, "a cursor's name takes 1 to {STREAM_LEN_MAX} bytes, this one has {len}")
            }
            LimitError::Id { len } => {
                write!(f, "an event id takes 1 to {ID_LEN_MAX} bytes, this one has {len}")
            }
            LimitError::Parent { index, len } => write!(
                f,
                "parent {index} of the list is {len} bytes long; an event id takes 1 to {ID_LEN_MAX}"
            ),
            LimitError::ParentCount { count } => {
                write!(f, "an event lists at most {PARENT_COUNT_MAX} parents, this one has {count}")
            }
            LimitError::Payload { len } => {
                write!(f, "a payload takes at most {PAYLOAD_LEN_MAX} bytes, this one has {len}")
            }
            LimitError::Previous => {
                write!(f, "no event of the same stream stands before this one in its batch")
            }
            LimitError::Batch { len } => {
                write!(f, "a batch takes at most {BATCH_LEN_MAX} bytes, this one would take {len}")
            }
        }
    }
}

impl std::error::Error for LimitError {}

/// Records, encoded and checksummed, that become durable together or not at all.
#[derive(Debug, Clone, Default)]
pub struct EncodedBatch {
    bytes: Vec<u8>,
    count: u32,
    /// Where the last record begins in `bytes`.
    last_at: usize,
}

impl EncodedBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event. On an error the batch is as it was.
    pub fn push(&mut self, event: &EventFields<'_>) -> Result<(), LimitError> {
        let fields = checked(event)?;
        if event.with_previous && !self.ends_with_event_of(event.stream) {
            return Err(LimitError::Previous);
        }
        self.push_record(&fields)
    }

    /// Adds a record that seals `stream`: from there on, the stream takes no events. On an error the
    /// batch is as it was.
    pub fn push_seal(&mut self, stream: &[u8]) -> Result<(), LimitError> {
        self.push_control(RecordKind::Seal, stream)
    }

    /// Adds a record from which on `stream` takes events again. On an error the batch is as it was.
    pub fn push_unseal(&mut self, stream: &[u8]) -> Result<(), LimitError> {
        self.push_control(RecordKind::Unseal, stream)
    }

    /// Adds a mark: what becomes of the cursor with this name, if none of the events before it in the batch
    /// is refused. On an error the batch is as it was.
    pub fn push_mark(&mut self, cursor: &[u8], change: MarkChange) -> Result<(), LimitError> {
        if check_stream(cursor).is_err() {
            return Err(LimitError::Cursor { len: cursor.len() });
        }
        // A batch is shorter than 2^32 bytes.
        let payload = encode_mark(change, self.bytes.len() as u32);
        self.push_record(&RecordFields {
            kind: RecordKind::Mark,
            stream: cursor,
            id: &[],
            if_local: None,
            parents: &[],
            flags: 0,
            payload: &payload,
        })
    }

    /// Adds a record that gives the event `id` of `stream` up, if it is held there: it will never be
    /// delivered. On an error the batch is as it was.
    pub fn push_discard(
        &mut self,
        stream: &[u8],
        id: &[u8],
        reason: DiscardReason,
    ) -> Result<(), LimitError> {
        check_stream(stream)?;
        if !(1..=ID_LEN_MAX).contains(&id.len()) {
            return Err(LimitError::Id { len: id.len() });
        }
        self.push_record(&RecordFields {
            kind: RecordKind::Discard,
            stream,
            id,
            if_local: None,
            parents: &[],
            flags: 0,
            payload: &encode_discard(reason),
        })
    }

    /// Adds a record that trims `stream`: from there on, its readers begin at the local sequence `first`. On an
    /// error the batch is as it was.
    pub fn push_stream_trim(&mut self, stream: &[u8], first: u64) -> Result<(), LimitError> {
        self.push_control_with(RecordKind::StreamTrim, stream, &first.to_le_bytes())
    }

    fn push_control(&mut self, kind: RecordKind, stream: &[u8]) -> Result<(), LimitError> {
        self.push_control_with(kind, stream, &[])
    }

    fn push_control_with(
        &mut self,
        kind: RecordKind,
        stream: &[u8],
        payload: &[u8],
    ) -> Result<(), LimitError> {
        check_stream(stream)?;
        let fields =
            RecordFields { kind, stream, id: &[], if_local: None, parents: &[], flags: 0, payload };
        self.push_record(&fields)
    }

    fn push_record(&mut self, fields: &RecordFields<'_>) -> Result<(), LimitError> {
        let len = self.bytes.len() as u64 + fields.encoded_len();
        if len > BATCH_LEN_MAX as u64 {
            return Err(LimitError::Batch { len });
        }
        self.last_at = self.bytes.len();
        encode_record(fields, &mut self.bytes);
        self.count += 1;
        Ok(())
    }

    /// Takes all events out. The buffer stays.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
        self.last_at = 0;
    }

    /// Bytes that the buffer has room for.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The stream of each event, in their order; without those before which the batch itself puts the
    /// stream's seal on or takes it off.
    pub fn unsealed_streams(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        let records = std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (record, after) = rest.split_at(encoded_record_len(rest) as usize);
            rest = after;
            Some(record)
        });
        let mut governed = HashSet::new();
        records.filter_map(move |record| {
            let stream = RecordLayout::stream(record);
            match RecordLayout::kind(record) {
                RecordKind::Event => (!governed.contains(&stream)).then_some(stream),
                RecordKind::Seal | RecordKind::Unseal => {
                    governed.insert(stream);
                    None
                }
                // A cursor may have the name of a stream; nobody appends what stands in for something. What a
                // sealed stream holds can be given up.
                RecordKind::Mark
                | RecordKind::Refused
                | RecordKind::Discard
                | RecordKind::StreamTrim => None,
            }
        })
    }

    fn ends_with_event_of(&self, stream: &[u8]) -> bool {
        let last = &self.bytes[self.last_at..];
        !last.is_empty()
            && RecordLayout::kind(last) == RecordKind::Event
            && RecordLayout::stream(last) == stream
    }

    /// Number of records: events, seals put on or taken off, marks, discards, and trims of streams.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the batch takes in the log.
    pub fn byte_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn check_stream(stream: &[u8]) -> Result<(), LimitError> {
    if (1..=STREAM_LEN_MAX).contains(&stream.len()) {
        Ok(())
    } else {
        Err(LimitError::Stream { len: stream.len() })
    }
}

fn checked<'a>(event: &EventFields<'a>) -> Result<RecordFields<'a>, LimitError> {
    let id_fits = |id: &[u8]| (1..=ID_LEN_MAX).contains(&id.len());
    check_stream(event.stream)?;
    if let Some(id) = event.id.filter(|id| !id_fits(id)) {
        return Err(LimitError::Id { len: id.len() });
    }
    let (parents, lineage) = match event.lineage {
        Lineage::Chained => (&[][..], FLAG_CHAINED),
        Lineage::Parents(parents) => (parents, 0),
        Lineage::IfTips(tips) => (tips, FLAG_IF_TIPS),
    };
    if parents.len() > PARENT_COUNT_MAX {
        return Err(LimitError::ParentCount { count: parents.len() });
    }
    if let Some(index) = parents.iter().position(|parent| !id_fits(parent)) {
        return Err(LimitError::Parent { index, len: parents[index].len() });
    }
    if event.payload.len() > PAYLOAD_LEN_MAX {
        return Err(LimitError::Payload { len: event.payload.len() });
    }
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    let conditions = flag(FLAG_REQUIRE_PARENTS, event.require_parents)
        | flag(FLAG_IF_LOCAL, event.if_local.is_some())
        | flag(FLAG_WITH_PREVIOUS, event.with_previous);
    Ok(RecordFields {
        kind: RecordKind::Event,
        stream: event.stream,
        id: event.id.unwrap_or_default(),
        if_local: event.if_local,
        parents,
        flags: lineage | conditions,
        payload: event.payload,
    })
}
