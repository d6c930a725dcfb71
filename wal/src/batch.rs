//! Encoding of events on the appender's thread, limits checked before a byte is written.

use std::fmt;

use crate::format::{
    BATCH_LEN_MAX, FLAG_CHAINED, FLAG_REQUIRE_PARENTS, ID_LEN_MAX, PARENT_COUNT_MAX,
    PAYLOAD_LEN_MAX, RecordFields, RecordLayout, STREAM_LEN_MAX, encode_record, encoded_record_len,
};

/// Where an event hangs in its stream.
#[derive(Debug, Clone, Copy)]
pub enum Lineage<'a> {
    /// On the tips of the stream at the event's place in the log.
    Chained,
    /// On the listed parents; none of them makes a root.
    Parents(&'a [&'a [u8]]),
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
    /// The batch would be longer than [`BATCH_LEN_MAX`] bytes.
    Batch {
        /// Bytes that the batch would take.
        len: u64,
    },
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitError::Stream { len } => {
                write!(f, "a stream name takes 1 to {STREAM_LEN_MAX} bytes, this one has {len}")
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
}

impl EncodedBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event. On an error the batch is as it was.
    pub fn push(&mut self, event: &EventFields<'_>) -> Result<(), LimitError> {
        let fields = checked(event)?;
        let len = self.bytes.len() as u64 + fields.encoded_len();
        if len > BATCH_LEN_MAX as u64 {
            return Err(LimitError::Batch { len });
        }
        encode_record(&fields, &mut self.bytes);
        self.count += 1;
        Ok(())
    }

    /// Takes all events out. The buffer stays.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    /// Bytes that the buffer has room for.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The stream of each event, in their order.
    pub fn streams(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (record, after) = rest.split_at(encoded_record_len(rest) as usize);
            rest = after;
            Some(RecordLayout::stream(record))
        })
    }

    /// Number of events.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether there is no event.
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

fn checked<'a>(event: &EventFields<'a>) -> Result<RecordFields<'a>, LimitError> {
    let id_fits = |id: &[u8]| (1..=ID_LEN_MAX).contains(&id.len());
    if !(1..=STREAM_LEN_MAX).contains(&event.stream.len()) {
        return Err(LimitError::Stream { len: event.stream.len() });
    }
    if let Some(id) = event.id.filter(|id| !id_fits(id)) {
        return Err(LimitError::Id { len: id.len() });
    }
    let (parents, chained) = match event.lineage {
        Lineage::Chained => (&[][..], FLAG_CHAINED),
        Lineage::Parents(parents) => (parents, 0),
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
    let require = if event.require_parents { FLAG_REQUIRE_PARENTS } else { 0 };
    Ok(RecordFields {
        stream: event.stream,
        id: event.id.unwrap_or_default(),
        parents,
        flags: chained | require,
        payload: event.payload,
    })
}
