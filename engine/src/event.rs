//! Events: as they are appended, and as they are read back.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use thalweg_wal::{EncodedBatch, EventFields, LimitError, Lineage, Record, Segment};

use crate::error::ReadError;
use crate::pipeline::subscriber::ParentSource;

/// An event to be appended. Made by [`Event::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    id: Option<Vec<u8>>,
    parents: Option<Vec<Vec<u8>>>,
    require_parents: bool,
    payload: Vec<u8>,
}

impl NewEvent {
    /// Gives the event an id of 1 to 64 bytes, unique in its stream. Without one, the engine names
    /// the event; the receipt and every read say how.
    #[must_use]
    pub fn id(mut self, id: impl Into<Vec<u8>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Names the event's parents by their ids; none makes a root. Without this call the event is
    /// *chained*: its parents are the tips of the stream at its place in the log.
    #[must_use]
    pub fn parents<P: Into<Vec<u8>>>(mut self, parents: impl IntoIterator<Item = P>) -> Self {
        self.parents = Some(parents.into_iter().map(Into::into).collect());
        self
    }

    /// Rejects the event, instead of holding it, when a parent is missing at its place in the log.
    /// A rejected event is never delivered, and its id stays free.
    #[must_use]
    pub fn require_parents(mut self) -> Self {
        self.require_parents = true;
        self
    }

    fn encode_into(&self, stream: &[u8], batch: &mut EncodedBatch) -> Result<(), LimitError> {
        let parents: Vec<&[u8]> = self.parents.iter().flatten().map(Vec::as_slice).collect();
        batch.push(&EventFields {
            stream,
            id: self.id.as_deref(),
            lineage: match self.parents {
                Some(_) => Lineage::Parents(&parents),
                None => Lineage::Chained,
            },
            require_parents: self.require_parents,
            if_local: None,
            with_previous: false,
            payload: &self.payload,
        })
    }
}

/// Events of one stream that become durable together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    events: Vec<NewEvent>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event at the end.
    pub fn push(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there is no event. An empty batch is refused by every append.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(crate) fn encode(&self, stream: &[u8]) -> Result<EncodedBatch, LimitError> {
        let mut encoded = EncodedBatch::new();
        for event in &self.events {
            event.encode_into(stream, &mut encoded)?;
        }
        Ok(encoded)
    }
}

impl<const N: usize> From<[NewEvent; N]> for Batch {
    fn from(events: [NewEvent; N]) -> Self {
        Batch { events: events.into() }
    }
}

impl From<Vec<NewEvent>> for Batch {
    fn from(events: Vec<NewEvent>) -> Self {
        Batch { events }
    }
}

impl FromIterator<NewEvent> for Batch {
    fn from_iter<I: IntoIterator<Item = NewEvent>>(events: I) -> Self {
        Batch { events: events.into_iter().collect() }
    }
}

impl Extend<NewEvent> for Batch {
    fn extend<I: IntoIterator<Item = NewEvent>>(&mut self, events: I) {
        self.events.extend(events);
    }
}

/// Events of any number of streams, in one order, that become durable together or not at all.
///
/// Events are encoded as they are added, so the batch holds no copy of what was given to it.
#[derive(Debug, Clone, Default)]
pub struct MixedBatch {
    encoded: EncodedBatch,
    ack: Ack,
}

impl MixedBatch {
    /// An empty batch, acknowledged when it is durable.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event of `stream` at the end. On an error the batch is as it was.
    pub fn push(&mut self, stream: impl AsRef<[u8]>, event: &NewEvent) -> Result<(), LimitError> {
        event.encode_into(stream.as_ref(), &mut self.encoded)
    }

    /// Chooses when the ticket of the batch completes.
    #[must_use]
    pub fn ack(mut self, ack: Ack) -> Self {
        self.ack = ack;
        self
    }

    /// Number of events.
    pub fn len(&self) -> usize {
        self.encoded.count() as usize
    }

    /// Whether there is no event. An empty batch is refused by every append.
    pub fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }

    /// Bytes that the batch will take in the log.
    pub fn byte_len(&self) -> u64 {
        self.encoded.byte_len()
    }

    pub(crate) fn from_parts(encoded: EncodedBatch, ack: Ack) -> Self {
        MixedBatch { encoded, ack }
    }

    pub(crate) fn into_parts(self) -> (EncodedBatch, Ack) {
        (self.encoded, self.ack)
    }
}

/// When a ticket completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// When the batch is durable, as the store's [`Durability`](crate::Durability) has it.
    #[default]
    Durable,
    /// When the batch is durable and ordered; the receipt then tells what became of each event.
    Ordered,
}

/// What was stored, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Position in the log of the first event of the batch, in bytes.
    pub position: u64,
    /// Position one past the last event of the batch.
    /// [`Store::wait_committed`](crate::Store::wait_committed) waits for it.
    pub end: u64,
    /// What became of each event, in the order of the batch; empty for [`Ack::Durable`].
    pub placements: Vec<Placement>,
}

/// What the order made of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Placement {
    /// It was delivered when it arrived.
    Delivered {
        /// Its place in the whole store, from 0.
        global: u64,
        /// Its place in its stream, from 0.
        local: u64,
    },
    /// It is durable and waits for parents.
    Held {
        /// How many parents are not delivered yet.
        missing: u32,
    },
    /// The same event is there already. Nothing changed.
    Duplicate,
    /// Another event with this id is there already. This one is ignored for good.
    Conflict,
    /// A parent was missing and the event requires its parents. Its id is free again.
    Rejected,
    /// It is durable, but the store was closed, or its engine stopped, before it was ordered. The
    /// next opening orders it.
    Undecided,
}

/// Eight digits of the store's tag, a dash, and up to sixteen digits of the position.
const MADE_LEN_MAX: usize = 8 + 1 + 16;

/// An id as the order knows it: given by the appender, or made from the event's position.
#[derive(Clone, Copy)]
pub(crate) enum EventId<'a> {
    Given(&'a [u8]),
    Made { text: [u8; MADE_LEN_MAX], len: u8 },
}

impl<'a> EventId<'a> {
    /// The id of the event in `record`. An event without a given id is named after the store and
    /// its position, which nothing else in any store is.
    #[inline]
    pub(crate) fn of(record: &Record<'a>, store_tag: u32) -> Self {
        let given = record.given_id();
        if given.is_empty() { Self::made(store_tag, record.position()) } else { Self::Given(given) }
    }

    fn made(store_tag: u32, position: u64) -> Self {
        let mut text = [0; MADE_LEN_MAX];
        let mut rest = &mut text[..];
        use std::io::Write;
        write!(rest, "{store_tag:08x}-{position:x}").expect("the text is long enough");
        let left = rest.len();
        Self::Made { text, len: (MADE_LEN_MAX - left) as u8 }
    }
}

impl Deref for EventId<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            EventId::Given(id) => id,
            EventId::Made { text, len } => &text[..usize::from(*len)],
        }
    }
}

/// A segment as the events of one reader hold it.
///
/// Counting references on a value that all threads share costs more than reading an event, so
/// each reader has its own count, and the count of the segment itself moves once per reader.
#[derive(Debug)]
pub(crate) struct SegmentPin(pub(crate) Arc<Segment>);

/// A delivered event, borrowed from the mapped log.
///
/// Nothing is copied: the accessors return slices of the segment that holds the event, and the
/// event keeps that segment alive. [`Event::to_owned`] copies what matters and lets go.
#[derive(Clone)]
pub struct Event {
    pub(crate) pin: Arc<SegmentPin>,
    pub(crate) position: u64,
    pub(crate) len: u64,
    pub(crate) global: u64,
    pub(crate) local: u64,
    pub(crate) id: OwnedId,
    pub(crate) source: Arc<ParentSource>,
}

/// The id of a read event: in the record, or made.
#[derive(Clone, Copy)]
pub(crate) enum OwnedId {
    InRecord,
    Made { text: [u8; MADE_LEN_MAX], len: u8 },
}

impl From<EventId<'_>> for OwnedId {
    fn from(id: EventId<'_>) -> Self {
        match id {
            EventId::Given(_) => OwnedId::InRecord,
            EventId::Made { text, len } => OwnedId::Made { text, len },
        }
    }
}

impl Event {
    /// An event to be appended, with this payload.
    ///
    /// ```
    /// use thalweg::{Batch, Event};
    ///
    /// let batch = Batch::from([
    ///     Event::new("created").id("a").parents::<&str>([]),
    ///     Event::new("paid").id("b").parents(["a"]),
    ///     Event::new("shipped"), // chained on the stream's tips, named by the engine
    /// ]);
    /// # assert_eq!(batch.len(), 3);
    /// ```
    #[expect(clippy::new_ret_no_self, reason = "what is appended is not yet an event of the store")]
    pub fn new(payload: impl Into<Vec<u8>>) -> NewEvent {
        NewEvent { id: None, parents: None, require_parents: false, payload: payload.into() }
    }

    #[inline]
    fn record(&self) -> Record<'_> {
        self.pin.0.record_of_len(self.position, self.len)
    }

    /// Place in the whole store, from 0. Never changes.
    pub fn global(&self) -> u64 {
        self.global
    }

    /// Place in its stream, from 0. Never changes.
    pub fn local(&self) -> u64 {
        self.local
    }

    /// Position in the log, in bytes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Name of the stream.
    pub fn stream(&self) -> &[u8] {
        self.record().stream()
    }

    /// Id of the event, unique in its stream.
    pub fn id(&self) -> &[u8] {
        match &self.id {
            OwnedId::InRecord => self.record().given_id(),
            OwnedId::Made { text, len } => &text[..usize::from(*len)],
        }
    }

    /// Whether the event was appended without parents of its own, and chained on the stream's tips.
    pub fn is_chained(&self) -> bool {
        self.record().is_chained()
    }

    /// Ids of the parents: as they were listed, or the tips that the event was chained on.
    ///
    /// # Errors
    ///
    /// The tips of a chained event are looked up, so a damaged file can be met.
    pub fn parents(&self) -> Result<Vec<Vec<u8>>, ReadError> {
        let record = self.record();
        if record.is_chained() {
            self.source.chained_on(self)
        } else {
            Ok(record.parents().map(<[u8]>::to_vec).collect())
        }
    }

    /// The payload, as it was appended.
    pub fn payload(&self) -> &[u8] {
        self.record().payload()
    }

    /// A copy that holds nothing of the store.
    ///
    /// # Errors
    ///
    /// As for [`Event::parents`].
    pub fn to_owned(&self) -> Result<OwnedEvent, ReadError> {
        Ok(OwnedEvent {
            global: self.global,
            local: self.local,
            stream: self.stream().to_vec(),
            id: self.id().to_vec(),
            parents: self.parents()?,
            payload: self.payload().to_vec(),
        })
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("global", &self.global)
            .field("local", &self.local)
            .field("stream", &self.stream().escape_ascii().to_string())
            .field("id", &self.id().escape_ascii().to_string())
            .field("payload_len", &self.payload().len())
            .finish_non_exhaustive()
    }
}

/// A delivered event, copied out of the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OwnedEvent {
    /// Place in the whole store, from 0.
    pub global: u64,
    /// Place in its stream, from 0.
    pub local: u64,
    /// Name of the stream.
    pub stream: Vec<u8>,
    /// Id of the event.
    pub id: Vec<u8>,
    /// Ids of the parents.
    pub parents: Vec<Vec<u8>>,
    /// The payload.
    pub payload: Vec<u8>,
}
