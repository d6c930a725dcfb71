//! Events: as they are appended, and as they are read back.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use thalweg_wal::{
    DiscardReason, EncodedBatch, EventFields, LimitError, Lineage, MarkChange, Record, Segment,
};

use crate::cursors::Cursor;
use crate::error::ReadError;
use crate::pipeline::subscriber::ParentSource;
use crate::trimmed::Base;

/// More parents than this are listed in a vector.
const FEW_PARENTS: usize = 16;

/// An event to be appended. Made by [`Event::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    id: Option<Vec<u8>>,
    parents: Option<Vec<Vec<u8>>>,
    if_tips: bool,
    if_local: Option<u64>,
    require_parents: bool,
    with_previous: bool,
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
        self.if_tips = false;
        self
    }

    /// Rejects the event, instead of holding it, when a parent is missing at its place in the log.
    /// A rejected event is never delivered, and its id stays free.
    #[must_use]
    pub fn require_parents(mut self) -> Self {
        self.require_parents = true;
        self
    }

    /// Names the event's parents, and rejects it unless they are, as a set, the tips of the stream at
    /// its place in the log: nobody else has appended anything that is delivered since its author
    /// looked. An empty list expects a stream without a delivered event. Replaces
    /// [`NewEvent::parents`].
    ///
    /// An event whose condition holds is an event with these parents and nothing more: conditions are no
    /// part of it. So to append it again, after an answer that was lost, is a
    /// [`Placement::Duplicate`], whatever the stream has come to since; give the event an id for that.
    ///
    /// This is optimistic concurrency: read, decide, append, and start over if somebody was faster. The
    /// rejection names the tips that there are.
    ///
    /// ```
    /// use thalweg::{Ack, AppenderOptions, Event, Placement, Rejection, Store};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = Store::open(dir.path().join("data"))?;
    /// let account = store.appender_with("account-7", AppenderOptions::new().ack(Ack::Ordered))?;
    /// account.append_event(Event::new("opened").id("o").if_tips::<&str>([]))?.wait()?;
    ///
    /// // Somebody else, who has seen the same, is faster.
    /// account.append_event(Event::new("paid in 5").id("p").if_tips(["o"]))?.wait()?;
    ///
    /// let mut tips = vec![b"o".to_vec()];
    /// let withdrawn = loop {
    ///     // Here one would look at the events up to `tips`, and decide whether to pay out.
    ///     let event = Event::new("paid out 5").id("w").if_tips(tips);
    ///     let receipt = account.append_event(event)?.wait()?;
    ///     match receipt.placements.into_iter().next().expect("one event") {
    ///         Placement::Rejected { reason: Rejection::Tips, tips: there } => tips = there,
    ///         placement => break placement,
    ///     }
    /// };
    /// assert_eq!(withdrawn, Placement::Delivered { global: 2, local: 2 });
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn if_tips<P: Into<Vec<u8>>>(mut self, tips: impl IntoIterator<Item = P>) -> Self {
        self.parents = Some(tips.into_iter().map(Into::into).collect());
        self.if_tips = true;
        self
    }

    /// Rejects the event unless it takes this place in its stream: exactly so many events of the stream
    /// are delivered before it. Goes with listed parents, which then must not be missing, and without.
    /// Other conditions of the event have to hold too.
    ///
    /// For streams in which every event follows the one before it, this says what [`NewEvent::if_tips`]
    /// says, in fewer bytes; the place is `local + 1` of the newest event that was seen.
    ///
    /// ```
    /// use thalweg::{Ack, AppenderOptions, Event, Placement, Rejection, Store};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = Store::open(dir.path().join("data"))?;
    /// let account = store.appender_with("account-7", AppenderOptions::new().ack(Ack::Ordered))?;
    /// account.append_event(Event::new("opened").id("o").if_local(0))?.wait()?;
    ///
    /// let late = account.append_event(Event::new("opened, too").id("p").if_local(0))?.wait()?;
    /// let (reason, tips) = (Rejection::Local { next: 1 }, vec![b"o".to_vec()]);
    /// assert_eq!(late.placements, [Placement::Rejected { reason, tips }]);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn if_local(mut self, local: u64) -> Self {
        self.if_local = Some(local);
        self
    }

    /// Ties the event to the one before it in its batch, which must be of the same stream: it is
    /// rejected if that one is rejected or is a [`Placement::Conflict`]. That one may be tied to the
    /// one before it, and so on.
    ///
    /// A batch of new events of which the first has a condition, and the others are chained and tied, each
    /// to the one before it, is all or nothing.
    ///
    /// ```
    /// use thalweg::{Ack, AppenderOptions, Batch, Event, Placement, Rejection, Store};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let store = Store::open(dir.path().join("data"))?;
    /// # let cart = store.appender_with("cart", AppenderOptions::new().ack(Ack::Ordered))?;
    /// let receipt = cart
    ///     .submit(Batch::from([
    ///         Event::new("checked out").if_local(7),
    ///         Event::new("paid").with_previous(),
    ///         Event::new("closed").with_previous(),
    ///     ]))?
    ///     .wait()?;
    /// let rejected = |reason| Placement::Rejected { reason, tips: vec![] };
    /// assert_eq!(receipt.placements[0], rejected(Rejection::Local { next: 0 }));
    /// assert_eq!(receipt.placements[1..], [(); 2].map(|()| rejected(Rejection::Previous)));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_previous(mut self) -> Self {
        self.with_previous = true;
        self
    }

    fn encode_into(&self, stream: &[u8], batch: &mut EncodedBatch) -> Result<(), LimitError> {
        // Nearly every event has few parents, and their list needs no allocation.
        let mut few = [&[][..]; FEW_PARENTS];
        let many: Vec<&[u8]>;
        let listed = self.parents.as_deref().unwrap_or_default();
        let parents = if let Some(few) = few.get_mut(..listed.len()) {
            few.iter_mut().zip(listed).for_each(|(few, parent)| *few = parent);
            &*few
        } else {
            many = listed.iter().map(Vec::as_slice).collect();
            &many
        };
        batch.push(&EventFields {
            stream,
            id: self.id.as_deref(),
            lineage: match self.parents {
                Some(_) if self.if_tips => Lineage::IfTips(parents),
                Some(_) => Lineage::Parents(parents),
                None => Lineage::Chained,
            },
            require_parents: self.require_parents,
            if_local: self.if_local,
            with_previous: self.with_previous,
            payload: &self.payload,
        })
    }
}

/// Events of one stream that become durable together or not at all, and marks of consumers with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    events: Vec<NewEvent>,
    marks: Vec<(Vec<u8>, u64)>,
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

    /// Adds a mark behind the events: it takes the cursor with this name, of 1 to 255 bytes, up to `next`, if
    /// none of the batch's events is refused: rejected, or in conflict with another. So a consumer that
    /// appends what it makes of the events below `next` does both or neither, whatever happens meanwhile.
    ///
    /// A batch may have marks and no events. See [`Cursor`] for what a mark means. What became of it is told
    /// behind the events, with [`Ack::Ordered`]: [`Placement::Marked`], or [`Placement::Rejected`], also if `next`
    /// is beyond what is delivered.
    ///
    /// If the batch has several events, tie them together ([`NewEvent::with_previous`]), or give them ids:
    /// otherwise some may be taken without the mark.
    #[must_use]
    pub fn mark(mut self, cursor: impl Into<Vec<u8>>, next: u64) -> Self {
        self.marks.push((cursor.into(), next));
        self
    }

    /// Number of events and marks. Each has a placement, the events first.
    pub fn len(&self) -> usize {
        self.events.len() + self.marks.len()
    }

    /// Whether there is nothing in it. An empty batch is refused by every append.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn encode_into(
        &self,
        stream: &[u8],
        encoded: &mut EncodedBatch,
    ) -> Result<(), LimitError> {
        self.events.iter().try_for_each(|event| event.encode_into(stream, encoded))?;
        let mut marks = self.marks.iter();
        marks.try_for_each(|(cursor, next)| encoded.push_mark(cursor, MarkChange::Advance(*next)))
    }
}

impl<const N: usize> From<[NewEvent; N]> for Batch {
    fn from(events: [NewEvent; N]) -> Self {
        Batch { events: events.into(), marks: Vec::new() }
    }
}

impl From<Vec<NewEvent>> for Batch {
    fn from(events: Vec<NewEvent>) -> Self {
        Batch { events, marks: Vec::new() }
    }
}

impl FromIterator<NewEvent> for Batch {
    fn from_iter<I: IntoIterator<Item = NewEvent>>(events: I) -> Self {
        Batch { events: events.into_iter().collect(), marks: Vec::new() }
    }
}

impl Extend<NewEvent> for Batch {
    fn extend<I: IntoIterator<Item = NewEvent>>(&mut self, events: I) {
        self.events.extend(events);
    }
}

/// Events of any number of streams, in one order, that become durable together or not at all; and
/// seals on streams, marks of consumers and discards of held events between them.
///
/// Events are encoded as they are added, so the batch holds no copy of what was given to it.
#[derive(Debug, Clone, Default)]
pub struct MixedBatch {
    encoded: EncodedBatch,
}

impl MixedBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event of `stream` at the end. On an error the batch is as it was.
    pub fn push(&mut self, stream: impl AsRef<[u8]>, event: &NewEvent) -> Result<(), LimitError> {
        event.encode_into(stream.as_ref(), &mut self.encoded)
    }

    /// Seals `stream` at this place of the batch: events of it that come later in the log are
    /// rejected, in this batch too, until the seal is taken off. What is sealed already stays so. The
    /// placement is [`Placement::Sealed`]. On an error the batch is as it was.
    ///
    /// Appends that are accepted before the order has come to the seal are stored and rejected;
    /// [`Store::seal`](crate::Store::seal) has them refused from the start.
    pub fn push_seal(&mut self, stream: impl AsRef<[u8]>) -> Result<(), LimitError> {
        self.encoded.push_seal(stream.as_ref())
    }

    /// Takes the seal off `stream` at this place of the batch, if there is one. Events of the stream may
    /// follow in the same batch. The placement is [`Placement::Unsealed`]. On an error the batch is as it
    /// was.
    pub fn push_unseal(&mut self, stream: impl AsRef<[u8]>) -> Result<(), LimitError> {
        self.encoded.push_unseal(stream.as_ref())
    }

    /// Adds a mark: this becomes of the cursor, if none of the events before it in the batch is refused, of
    /// whatever streams they are. See [`Batch::mark`]. On an error the batch is as it was.
    pub fn push_mark(
        &mut self,
        cursor: impl AsRef<[u8]>,
        change: MarkChange,
    ) -> Result<(), LimitError> {
        self.encoded.push_mark(cursor.as_ref(), change)
    }

    /// Discards the event `id` of `stream`, if it is held at this place of the log: it will never be
    /// delivered, and its id is free again, for an event that is then a new one. Events that wait for it
    /// go on waiting. The placement is [`Placement::Discarded`] or [`Placement::NotHeld`]. On an error the
    /// batch is as it was.
    pub fn push_discard(
        &mut self,
        stream: impl AsRef<[u8]>,
        id: impl AsRef<[u8]>,
        reason: DiscardReason,
    ) -> Result<(), LimitError> {
        self.encoded.push_discard(stream.as_ref(), id.as_ref(), reason)
    }

    /// Trims `stream` at this place of the batch: see [`Store::trim_stream`](crate::Store::trim_stream). The
    /// placement is [`Placement::Trimmed`]. On an error the batch is as it was.
    pub fn push_stream_trim(
        &mut self,
        stream: impl AsRef<[u8]>,
        first: u64,
    ) -> Result<(), LimitError> {
        self.encoded.push_stream_trim(stream.as_ref(), first)
    }

    /// Number of events, of seals put on or taken off, of marks, of discards, and of trims. Each has a placement.
    pub fn len(&self) -> usize {
        self.encoded.count() as usize
    }

    /// Whether there is nothing in it. An empty batch is refused by every append.
    pub fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }

    /// Bytes that the batch will take in the log.
    pub fn byte_len(&self) -> u64 {
        self.encoded.byte_len()
    }

    pub(crate) fn from_encoded(encoded: EncodedBatch) -> Self {
        MixedBatch { encoded }
    }

    pub(crate) fn into_encoded(self) -> EncodedBatch {
        self.encoded
    }
}

/// When a batch is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// When the batch is durable, as the store's [`Durability`](crate::Durability) has it.
    #[default]
    Durable,
    /// When the batch is durable and ordered; the receipt then tells what became of each event.
    Ordered,
}

/// What was stored, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Position in the log of the first event of the batch, in bytes.
    pub position: u64,
    /// Position one past the last event of the batch.
    /// [`Store::wait_committed`](crate::Store::wait_committed) waits for it.
    pub end: u64,
    /// What became of each event and each seal, in the order of the batch; empty for [`Ack::Durable`].
    pub placements: Vec<Placement>,
}

/// What the order made of an event, of a seal, of a mark, or of a discard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// It was not taken. It is never delivered, and its id is free again.
    Rejected {
        /// The first reason, in the order in which [`Rejection`] has them.
        reason: Rejection,
        /// Ids of the stream's tips at that place, in the order of their delivery: what
        /// [`NewEvent::if_tips`] has to name to succeed if nobody comes between. Empty too where the
        /// rejections around it have named 16 MiB of tips already.
        tips: Vec<Vec<u8>>,
    },
    /// The stream is sealed. The answer to [`MixedBatch::push_seal`].
    Sealed {
        /// Number of events that are delivered before the seal: the place that its next event takes
        /// when it is taken off.
        next: u64,
    },
    /// The stream is not sealed. The answer to [`MixedBatch::push_unseal`].
    Unsealed,
    /// The mark counts. The answer to [`Batch::mark`] and [`MixedBatch::push_mark`].
    Marked {
        /// Where the cursor is now: where the mark took it, or beyond; nowhere if it was taken away.
        at: Option<u64>,
    },
    /// Readers of the stream begin at the local sequence `first` now. The answer to
    /// [`MixedBatch::push_stream_trim`].
    Trimmed {
        /// What was asked for, or what is delivered if that is less, or what an earlier trim has come to if that
        /// is more.
        first: u64,
    },
    /// The event was held, and is discarded: it will never be delivered. The answer to
    /// [`MixedBatch::push_discard`].
    Discarded,
    /// The event is not held at this place of the log, so nothing has changed. The answer to
    /// [`MixedBatch::push_discard`].
    NotHeld {
        /// Whether it is delivered; otherwise the stream has no such event.
        delivered: bool,
    },
    /// It is durable, but the store was closed, or its engine stopped, before it was ordered. The
    /// next opening orders it.
    Undecided,
}

/// Why an event was not taken at its place in the log. The same for ever: it is decided by what comes
/// before it in the log and by nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rejection {
    /// It is tied to the event before it, which was refused. See [`NewEvent::with_previous`]. Of a mark: an
    /// event before it in its batch was refused. See [`Batch::mark`].
    Previous,
    /// Its stream is sealed. See [`MixedBatch::push_seal`].
    Sealed,
    /// It would not take the place that it names. See [`NewEvent::if_local`].
    Local {
        /// The place that it would take.
        next: u64,
    },
    /// The tips of the stream are not those that it names. See [`NewEvent::if_tips`].
    Tips,
    /// Parents are missing, and it has a condition: [`NewEvent::require_parents`], or one of the
    /// others.
    Parents {
        /// How many parents are not delivered.
        missing: u32,
    },
    /// Of a mark: it names a sequence beyond the events that are delivered before it in the log.
    Undelivered {
        /// How many these are.
        delivered: u64,
    },
    /// Of a mark: it would make one cursor more than [`Cursor::COUNT_MAX`].
    Cursors,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::Previous => f.write_str("the event before it was refused"),
            Rejection::Sealed => f.write_str("the stream is sealed"),
            Rejection::Local { next } => write!(f, "the next event of the stream is number {next}"),
            Rejection::Tips => f.write_str("the stream has other tips"),
            Rejection::Undelivered { delivered } => {
                write!(f, "the mark is beyond the {delivered} events that are delivered before it")
            }
            Rejection::Cursors => write!(f, "there are {} cursors already", Cursor::COUNT_MAX),
            Rejection::Parents { missing: 1 } => f.write_str("a parent is missing"),
            Rejection::Parents { missing } => write!(f, "{missing} parents are missing"),
        }
    }
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

    pub(crate) fn made(store_tag: u32, position: u64) -> Self {
        // By hand: every event without an id passes here twice, and formatting costs as much as
        // verifying it.
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |number: u64, place: u32| DIGITS[(number >> (4 * place)) as usize & 15];
        let mut text = [0; MADE_LEN_MAX];
        for place in 0..8 {
            text[7 - place as usize] = digit(u64::from(store_tag), place);
        }
        text[8] = b'-';
        let len = position.checked_ilog2().unwrap_or(0) / 4 + 1;
        for place in 0..len {
            text[9 + (len - 1 - place) as usize] = digit(position, place);
        }
        Self::Made { text, len: 9 + len as u8 }
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

/// What holds a record, as the events of one reader hold on to it.
///
/// Counting references on a value that all threads share costs more than reading an event, so
/// each reader has its own count, and the count of the segment itself moves once per reader.
#[derive(Debug)]
pub(crate) enum Pin {
    Segment(Arc<Segment>),
    /// For an event whose segment was trimmed while it was held.
    Base(Arc<Base>),
}

impl Pin {
    /// Whether the record at `position` is in it.
    pub(crate) fn holds(&self, position: u64) -> bool {
        match self {
            Pin::Segment(segment) => (segment.base()..segment.limit()).contains(&position),
            Pin::Base(base) => position < base.position(),
        }
    }

    /// The record at `position`, verified.
    pub(crate) fn record(&self, position: u64) -> Result<Record<'_>, ReadError> {
        match self {
            Pin::Segment(segment) => Ok(segment.record(position)?),
            // All of it was verified when it was opened.
            Pin::Base(base) => {
                let first = base.frontier().global;
                base.record(position).ok_or(ReadError::Trimmed { first })
            }
        }
    }

    /// The record of `len` bytes at `position`, as an earlier look has found it.
    #[inline]
    fn record_of_len(&self, position: u64, len: u64) -> Record<'_> {
        match self {
            Pin::Segment(segment) => segment.record_of_len(position, len),
            Pin::Base(base) => base.record(position).expect("it was there before"),
        }
    }
}

/// A delivered event, borrowed from the mapped log.
///
/// Nothing is copied: the accessors return slices of the segment that holds the event, and the
/// event keeps that segment alive. [`Event::to_owned`] copies what matters and lets go.
#[derive(Clone)]
pub struct Event {
    pub(crate) pin: Arc<Pin>,
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
        NewEvent {
            id: None,
            parents: None,
            if_tips: false,
            if_local: None,
            require_parents: false,
            with_previous: false,
            payload: payload.into(),
        }
    }

    #[inline]
    fn record(&self) -> Record<'_> {
        self.pin.record_of_len(self.position, self.len)
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
    /// The tips of a chained event are looked up, so a damaged file can be met, or the event be trimmed by now
    /// ([`ReadError::Trimmed`]).
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

#[cfg(test)]
mod tests {
    use super::EventId;

    #[test]
    fn made_ids_are_the_tag_and_the_position_in_hexadecimal() {
        let positions = (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, 1 << bit | 0xa5]);
        for position in positions.chain([u64::MAX]) {
            for tag in [0, 1, 0x0123_abcd, u32::MAX] {
                let made = EventId::made(tag, position);
                assert_eq!(&*made, format!("{tag:08x}-{position:x}").as_bytes());
            }
        }
    }
}
