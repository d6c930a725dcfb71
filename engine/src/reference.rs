//! The serial machine: the definition of the order, in a few dozen plain lines.
//!
//! Everything that the engine does with many threads, windows and derived files is right if and
//! only if it delivers what this machine delivers, in the same sequence. Tests and `verify` compare
//! the two event by event. The machine keeps everything in memory and is not fast; it is short.
//!
//! Events arrive at rising positions. For each:
//!
//! 1. its id is known in its stream, delivered or held: it is a *duplicate* if it is the same event,
//!    else a *conflict*; either way it is ignored;
//! 2. it is not to be taken as things stand here: it is *rejected*, and its id stays free. It is tied
//!    to the event before it, which was refused; or its stream is sealed; or it names another place
//!    or other tips than its stream has; or it has a condition, and a parent is missing;
//! 3. all its parents are delivered: it is *delivered*, and then every held descendant that has
//!    become ready, always the ready one with the smallest position first;
//! 4. otherwise it is *held*.
//!
//! *Marks* say how far consumers have come, as a global sequence under the name of a *cursor*. They change
//! nothing in the order; the order says whether they count. A mark is rejected if an event before it in its
//! batch is refused, or if it names a sequence that is not reached at its place in the log. Otherwise it
//! takes its cursor up, never down, but for a *reset*, which takes it to where it says, and a removal.
//!
//! A *discard* names an event. If that is held at this place of the log, it is forgotten: it will never be
//! delivered, and its id is free again, for an event that is then a new one. What waits for it goes on
//! waiting. If the event is delivered, or not known, nothing happens.
//!
//! A *trim* of a stream says where its readers begin from there on: a local sequence, but never beyond the
//! number of events that are delivered at that place of the log, and never below an earlier trim. It changes
//! nothing in the order.
//!
//! Between the events stand the records that *seal* a stream and take the seal off. Nothing is
//! delivered to a sealed stream, since what it holds waits for events that would have to arrive.
//!
//! A chained event has as parents the tips of its stream: the delivered events without a delivered
//! child. Two events are the same if they list the same parents in the same way and have the same
//! payload. A delivered chained event is also the same as one that lists, in whatever order, the
//! tips that it was chained on, so that what was exported can be imported again. Conditions are no
//! part of an event: to append it again is a duplicate, whatever has become of its stream. Where an event
//! is lost, and what stands in for it has its id, any other with that id is the same.
//!
//! Where a segment begins it can say that the *ids* of deliveries before some global sequence are *forgotten*, but for
//! those of tips. From there on it is as if there had never been an event with such an id: another can come,
//! and an event that lists it as a parent waits. A held event looks at its parents one after the other, as it lists them,
//! and waits for the first that is missing; what it has found stays found.
//!
//! Where the beginning of the log was trimmed, the machine begins with what it had come to there, and what was
//! delivered before is its past: it is all still delivered, and none of it is in [`SerialMachine::order`].

mod past;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use thalweg_wal::{DiscardReason, MarkChange};

use crate::cursors::Cursor;
use crate::event::Rejection;
use crate::reference::past::Past;

pub(crate) use self::past::Trimmed;

/// A record of the log, as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialRecord {
    /// An event.
    Event(SerialEvent),
    /// Seals the stream with this name.
    Seal(Vec<u8>),
    /// Takes the seal off the stream with this name.
    Unseal(Vec<u8>),
    /// A mark.
    Mark(SerialMark),
    /// A discard.
    Discard(SerialDiscard),
    /// Has readers of the stream with this name begin at this local sequence.
    StreamTrim(Vec<u8>, u64),
}

/// A discard, as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialDiscard {
    /// Name of the stream.
    pub stream: Vec<u8>,
    /// Id of the event that is given up.
    pub id: Vec<u8>,
    /// Why: nothing that the machine looks at.
    pub reason: DiscardReason,
}

/// A mark, as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialMark {
    /// Name of the cursor.
    pub cursor: Vec<u8>,
    /// What becomes of it.
    pub change: MarkChange,
    /// How many bytes of its batch are before it.
    pub reach: u64,
}

/// An event, as the machine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialEvent {
    /// Name of the stream.
    pub stream: Vec<u8>,
    /// Id of the event in its stream.
    pub id: Vec<u8>,
    /// The listed parents, or none if the event is chained.
    pub parents: Option<Vec<Vec<u8>>>,
    /// Whether the event is to be rejected rather than held.
    pub require_parents: bool,
    /// Whether the listed parents must be the tips of the stream.
    pub if_tips: bool,
    /// The place in its stream that the event must take.
    pub if_local: Option<u64>,
    /// Whether the event is tied to the one that ends where it begins.
    pub with_previous: bool,
    /// The payload, or anything that stands for it: only compared.
    pub payload: Vec<u8>,
}

/// What the machine made of an arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Delivered, perhaps with others after it.
    Delivered,
    /// Held for this many parents.
    Held(u32),
    /// The same event is known.
    Duplicate,
    /// Another event with the id is known.
    Conflict,
    /// Not taken.
    Rejected(Rejection),
    /// The stream is sealed now, after so many deliveries.
    Sealed(u64),
    /// The stream is not sealed now.
    Unsealed,
    /// The mark counts: the cursor is here now, if it is there.
    Marked(Option<u64>),
    /// Readers of the stream begin at this local sequence now.
    Trimmed(u64),
    /// The event was held, and is discarded.
    Discarded,
    /// The event is not held, so it is not discarded.
    NotHeld {
        /// Whether it is delivered; otherwise it is not known.
        delivered: bool,
    },
}

/// One delivery. Its index in [`SerialMachine::order`] is its global sequence, less [`SerialMachine::first`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Position of the event.
    pub position: u64,
    /// Name of its stream.
    pub stream: Vec<u8>,
    /// Place in its stream.
    pub local: u64,
    /// Parents: as listed, or the tips it was chained on, in the order of their delivery.
    pub parents: Vec<Vec<u8>>,
    /// For a chained event, local sequences of the tips it was chained on.
    pub chained_on: Option<Vec<u64>>,
}

/// The serial machine.
#[derive(Debug, Clone, Default)]
pub struct SerialMachine {
    streams: HashMap<Vec<u8>, Stream>,
    /// Global sequence of the first delivery in `order`: those before it were trimmed.
    pub first: u64,
    /// All deliveries, in global order.
    pub order: Vec<Delivery>,
    /// All cursors, with the sequences that they are at.
    pub cursors: BTreeMap<Vec<u8>, u64>,
    /// End and stream of the record before, if that was refused.
    refused: Option<(u64, Vec<u8>)>,
    /// Position of the newest event that was refused.
    newest_refused: Option<u64>,
    /// Ids of deliveries before this one are forgotten.
    forgotten: u64,
}

#[derive(Debug, Clone, Default)]
struct Stream {
    past: Past,
    /// Every known event: delivered ones with their local sequence.
    known: HashMap<Vec<u8>, Known>,
    /// Delivered events without a delivered child, by local sequence.
    tips: BTreeMap<u64, Vec<u8>>,
    /// For a parent that is not delivered, the events that wait for it, with their positions.
    waiting: HashMap<Vec<u8>, Vec<(u64, Vec<u8>)>>,
    delivered: u64,
    sealed: bool,
    /// As in the machine.
    forgotten: u64,
    /// Local sequence at which readers begin.
    first: u64,
}

#[derive(Debug, Clone)]
struct Known {
    event: SerialEvent,
    position: u64,
    /// Global and local sequence, once it is delivered.
    place: Option<(u64, u64)>,
    /// The tips that a chained event was chained on.
    chained_on: Vec<Vec<u8>>,
    /// How many of its parents, as they are listed, it has found, with the one that it waits for.
    looked_at: usize,
    is_lost: bool,
}

impl SerialMachine {
    /// Takes the next record of the log, which stands at `place`, from its position to its end.
    pub fn arrive(&mut self, place: Range<u64>, record: SerialRecord) -> Arrival {
        let record = match record {
            SerialRecord::Mark(mark) => return self.arrive_mark(place.start, mark),
            record => record,
        };
        let name = record.stream().to_vec();
        let stream = self.streams.entry(name.clone()).or_default();
        let after_refused = self.refused.take() == Some((place.start, name.clone()));
        let arrival = match record {
            SerialRecord::Event(event) => {
                self.arrive_event(place.start, event, after_refused, false)
            }
            SerialRecord::Seal(_) => {
                stream.sealed = true;
                Arrival::Sealed(stream.delivered)
            }
            SerialRecord::Unseal(_) => {
                stream.sealed = false;
                Arrival::Unsealed
            }
            SerialRecord::Discard(discard) => stream.discard(&discard.id),
            SerialRecord::StreamTrim(_, first) => {
                stream.first = stream.trimmed_to(first);
                Arrival::Trimmed(stream.first)
            }
            SerialRecord::Mark(_) => unreachable!("dealt with above"),
        };
        let refused = matches!(arrival, Arrival::Rejected(_) | Arrival::Conflict);
        if refused {
            self.newest_refused = Some(place.start);
        }
        self.refused = refused.then_some((place.end, name));
        arrival
    }

    /// What becomes of a mark: where its cursor is then, if it is there.
    fn mark_verdict(&self, position: u64, mark: &SerialMark) -> Arrival {
        let (delivered, at) = (self.next_global(), self.cursors.get(&mark.cursor).copied());
        let next = match mark.change {
            MarkChange::Advance(next) => Some(next.max(at.unwrap_or(0))),
            MarkChange::Reset(next) => Some(next),
            MarkChange::Remove => None,
        };
        if self.newest_refused.is_some_and(|refused| refused + mark.reach >= position) {
            return Arrival::Rejected(Rejection::Previous);
        }
        if next.is_some_and(|next| next > delivered) {
            return Arrival::Rejected(Rejection::Undelivered { delivered });
        }
        if next.is_some() && at.is_none() && self.cursors.len() == Cursor::COUNT_MAX {
            return Arrival::Rejected(Rejection::Cursors);
        }
        Arrival::Marked(next)
    }

    fn arrive_mark(&mut self, position: u64, mark: SerialMark) -> Arrival {
        let arrival = self.mark_verdict(position, &mark);
        match arrival {
            Arrival::Marked(Some(next)) => drop(self.cursors.insert(mark.cursor, next)),
            Arrival::Marked(None) => drop(self.cursors.remove(&mark.cursor)),
            _ => {}
        }
        arrival
    }

    /// Takes what stands in for an event that is lost: its payload is nobody's to compare.
    pub fn arrive_lost(&mut self, position: u64, event: SerialEvent) -> Arrival {
        self.refused = None;
        self.arrive_event(position, event, false, true)
    }

    /// Takes what stands in for something lost of `stream` that was refused and stood at `place`.
    pub fn refuse(&mut self, place: Range<u64>, stream: &[u8]) {
        self.newest_refused = Some(place.start);
        self.refused = Some((place.end, stream.to_vec()));
    }

    /// What the machine would make of a record at `position`. For an event that it would deliver, this
    /// says nothing of others that follow.
    pub fn peek(&self, position: u64, record: &SerialRecord) -> Arrival {
        if let SerialRecord::Mark(mark) = record {
            return self.mark_verdict(position, mark);
        }
        let nothing = Stream::default();
        let stream = self.streams.get(record.stream()).unwrap_or(&nothing);
        let event = match record {
            SerialRecord::Event(event) => event,
            SerialRecord::Seal(_) => return Arrival::Sealed(stream.delivered),
            SerialRecord::Unseal(_) => return Arrival::Unsealed,
            SerialRecord::Discard(discard) => return stream.discard_verdict(&discard.id),
            SerialRecord::StreamTrim(_, first) => {
                return Arrival::Trimmed(stream.trimmed_to(*first));
            }
            SerialRecord::Mark(_) => unreachable!("dealt with above"),
        };
        let after_refused =
            self.refused.as_ref().is_some_and(|(end, of)| *end == position && of == &event.stream);
        stream.verdict(event, after_refused, false)
    }

    fn arrive_event(
        &mut self,
        position: u64,
        event: SerialEvent,
        after_refused: bool,
        is_lost: bool,
    ) -> Arrival {
        let stream = self.streams.entry(event.stream.clone()).or_default();
        match stream.verdict(&event, after_refused, is_lost) {
            Arrival::Delivered | Arrival::Held(_) => {}
            refused => return refused,
        }
        let id = event.id.clone();
        let missing = stream.take(position, event, is_lost);
        if missing > 0 {
            return Arrival::Held(missing);
        }
        let mut ready = BTreeMap::from([(position, id)]);
        while let Some((_, id)) = ready.pop_first() {
            self.order.push(stream.deliver(&id, self.first + self.order.len() as u64));
            for (position, child) in stream.waiting.remove(&id).unwrap_or_default() {
                // One that is discarded waits no more, also if another has its id now.
                let is_there = stream.known.get(&child).is_some_and(|it| it.position == position);
                if is_there && stream.look_on(&child) {
                    ready.insert(position, child);
                }
            }
        }
        Arrival::Delivered
    }

    /// Forgets the ids of the deliveries before this one, but those of tips: where a segment begins that says so.
    pub fn forget(&mut self, below: u64) {
        self.forgotten = below.min(self.next_global()).max(self.forgotten);
        self.streams.values_mut().for_each(|stream| stream.forgotten = self.forgotten);
    }

    /// The global sequence that the next delivery gets.
    pub fn next_global(&self) -> u64 {
        self.first + self.order.len() as u64
    }

    /// Delivered events, held events and tips of every stream that has any or is sealed, and whether
    /// it is.
    pub fn stream_counts(&self) -> BTreeMap<&[u8], (u64, u64, u64, bool)> {
        let counts = |stream: &Stream| {
            let held = stream.known.values().filter(|known| known.place.is_none()).count();
            (stream.delivered, held as u64, stream.tips.len() as u64, stream.sealed)
        };
        let is_there =
            |stream: &Stream| stream.sealed || stream.delivered > 0 || !stream.known.is_empty();
        let seen = self.streams.iter().filter(|(_, stream)| is_there(stream));
        seen.map(|(name, stream)| (name.as_slice(), counts(stream))).collect()
    }

    /// Ids of the tips of a stream, in the order of their delivery.
    pub fn tips(&self, stream: &[u8]) -> Vec<Vec<u8>> {
        let stream = self.streams.get(stream);
        stream.map_or_else(Vec::new, |stream| stream.tips.values().cloned().collect())
    }

    /// Number of events that are delivered to a stream.
    pub fn delivered(&self, stream: &[u8]) -> u64 {
        self.streams.get(stream).map_or(0, |stream| stream.delivered)
    }

    /// Position of the event `id` of a stream, if it is held.
    pub fn held_at(&self, stream: &[u8], id: &[u8]) -> Option<u64> {
        let known = self.streams.get(stream)?.known.get(id)?;
        known.place.is_none().then_some(known.position)
    }

    /// Where readers of each stream begin, of those that were trimmed.
    pub fn firsts(&self) -> BTreeMap<Vec<u8>, u64> {
        let trimmed = self.streams.iter().filter(|(_, stream)| stream.first > 0);
        trimmed.map(|(name, stream)| (name.clone(), stream.first)).collect()
    }

    /// Ids of the held events of a stream, in the order of the log.
    pub fn held_ids(&self, stream: &[u8]) -> Vec<Vec<u8>> {
        let known = self.streams.get(stream).into_iter().flat_map(|stream| &stream.known);
        let held = known.filter(|(_, known)| known.place.is_none());
        let held: BTreeMap<u64, &Vec<u8>> = held.map(|(id, known)| (known.position, id)).collect();
        held.into_values().cloned().collect()
    }

    /// Positions of all held events, with their undelivered parents in the order of their ids.
    pub fn held(&self) -> BTreeMap<u64, BTreeSet<Vec<u8>>> {
        let mut held = BTreeMap::new();
        for stream in self.streams.values() {
            for known in stream.known.values().filter(|known| known.place.is_none()) {
                held.insert(known.position, stream.missing(&known.event));
            }
        }
        held
    }
}

impl SerialRecord {
    /// Name of the stream, or of the cursor, that the record is about.
    pub fn stream(&self) -> &[u8] {
        match self {
            SerialRecord::Event(event) => &event.stream,
            SerialRecord::Seal(stream) | SerialRecord::Unseal(stream) => stream,
            SerialRecord::Mark(mark) => &mark.cursor,
            SerialRecord::Discard(discard) => &discard.stream,
            SerialRecord::StreamTrim(stream, _) => stream,
        }
    }
}

impl Stream {
    /// What becomes of an event when it arrives.
    fn verdict(&self, event: &SerialEvent, after_refused: bool, is_lost: bool) -> Arrival {
        if let Some(is_same) = self.is_same(event) {
            return if is_lost || is_same { Arrival::Duplicate } else { Arrival::Conflict };
        }
        if let Some(rejection) = self.rejection(event, after_refused) {
            return Arrival::Rejected(rejection);
        }
        match self.missing(event).len() as u32 {
            0 => Arrival::Delivered,
            missing => Arrival::Held(missing),
        }
    }

    /// Whether the event that is known by the id of `event` is the same; nothing if none is.
    fn is_same(&self, event: &SerialEvent) -> Option<bool> {
        let is_same = self.find(&event.id).map(|known| known.is_lost || known.is_same(event));
        is_same.or_else(|| self.past.is_same(event).filter(|_| self.is_in_past(&event.id)))
    }

    /// The event with this id, unless that is forgotten.
    fn find(&self, id: &[u8]) -> Option<&Known> {
        let is_there = |(global, local)| self.forgotten <= global || self.tips.contains_key(&local);
        self.known.get(id).filter(|known| known.place.is_none_or(is_there))
    }

    /// Whether an event with this id was delivered before the machine began, and the id is not forgotten.
    fn is_in_past(&self, id: &[u8]) -> bool {
        let is_tip = || self.past.tip(id).is_some_and(|local| self.tips.contains_key(&local));
        self.past.global(id).is_some_and(|global| self.forgotten <= global || is_tip())
    }

    /// Why an event that is not known is not taken, if it is not.
    fn rejection(&self, event: &SerialEvent, after_refused: bool) -> Option<Rejection> {
        let listed: BTreeSet<&Vec<u8>> = event.parents.iter().flatten().collect();
        let missing = self.missing(event).len() as u32;
        let has_condition = event.require_parents || event.if_tips || event.if_local.is_some();
        if event.with_previous && after_refused {
            Some(Rejection::Previous)
        } else if self.sealed {
            Some(Rejection::Sealed)
        } else if event.if_local.is_some_and(|local| local != self.delivered) {
            Some(Rejection::Local { next: self.delivered })
        } else if event.if_tips && listed != self.tips.values().collect() {
            Some(Rejection::Tips)
        } else if has_condition && missing > 0 {
            Some(Rejection::Parents { missing })
        } else {
            None
        }
    }

    /// Where readers begin after a trim to `first`.
    fn trimmed_to(&self, first: u64) -> u64 {
        self.first.max(first.min(self.delivered))
    }

    /// What becomes of a discard of `id`.
    fn discard_verdict(&self, id: &[u8]) -> Arrival {
        match self.known.get(id) {
            Some(known) if known.place.is_none() => Arrival::Discarded,
            _ => Arrival::NotHeld { delivered: self.is_delivered(id) },
        }
    }

    /// Forgets the event `id` if it is held. Those that wait for it wait for its id, whatever has it.
    fn discard(&mut self, id: &[u8]) -> Arrival {
        let verdict = self.discard_verdict(id);
        if verdict == Arrival::Discarded {
            self.known.remove(id);
        }
        verdict
    }

    /// The listed parents that are not delivered.
    fn missing(&self, event: &SerialEvent) -> BTreeSet<Vec<u8>> {
        event.parents.iter().flatten().filter(|id| !self.is_delivered(id)).cloned().collect()
    }

    fn is_delivered(&self, id: &[u8]) -> bool {
        self.find(id).map_or_else(|| self.is_in_past(id), |known| known.place.is_some())
    }

    /// Local sequence of a delivered event; of one of the past only if it was a tip.
    fn local(&self, id: &[u8]) -> Option<u64> {
        let place = |known: &Known| known.place.map(|(_, local)| local);
        self.known.get(id).map_or_else(|| self.past.tip(id), place)
    }

    /// Takes an event that is not known, and returns how many parents it waits for.
    fn take(&mut self, position: u64, event: SerialEvent, is_lost: bool) -> u32 {
        let missing = self.missing(&event).len() as u32;
        self.hold(position, event, 0, is_lost);
        missing
    }

    /// Has an event look at its parents, from this one of them on.
    fn hold(&mut self, position: u64, event: SerialEvent, looked_at: usize, is_lost: bool) {
        let (id, chained_on) = (event.id.clone(), Vec::new());
        let known = Known { event, position, place: None, chained_on, looked_at, is_lost };
        self.known.insert(id.clone(), known);
        self.look_on(&id);
    }

    /// Has an event look at its parents, one after the other as they are listed, until one is missing: it waits for
    /// that one. Whether none is. What it has found once it does not look at again.
    fn look_on(&mut self, id: &[u8]) -> bool {
        let Known { event, position, looked_at, .. } = &self.known[id];
        let parents = event.parents.iter().flatten().enumerate().skip(*looked_at);
        let missing = parents.clone().find(|(_, parent)| !self.is_delivered(parent));
        let missing = missing.map(|(index, parent)| (index, *position, parent.clone()));
        let Some((index, position, parent)) = missing else { return true };
        self.waiting.entry(parent).or_default().push((position, id.to_vec()));
        self.known.get_mut(id).expect("it is known").looked_at = index + 1;
        false
    }

    fn deliver(&mut self, id: &[u8], global: u64) -> Delivery {
        let local = self.delivered;
        self.delivered += 1;
        let known = self.known.get_mut(id).expect("a ready event is known");
        known.place = Some((global, local));
        let chained = known.event.parents.is_none();
        let chained_on = chained.then(|| self.tips.keys().copied().collect());
        if chained {
            known.chained_on = self.tips.values().cloned().collect();
        }
        let parents = known.event.parents.as_ref().unwrap_or(&known.chained_on).clone();
        let (position, stream) = (known.position, known.event.stream.clone());
        for parent in &parents {
            if let Some(parent_local) = self.local(parent) {
                self.tips.remove(&parent_local);
            }
        }
        self.tips.insert(local, id.to_vec());
        Delivery { position, stream, local, parents, chained_on }
    }
}

impl Known {
    fn is_same(&self, other: &SerialEvent) -> bool {
        let same_parents = match (&self.event.parents, &other.parents) {
            (None, Some(listed)) => {
                let listed: BTreeSet<&Vec<u8>> = listed.iter().collect();
                self.place.is_some() && listed == self.chained_on.iter().collect()
            }
            (known, arriving) => known == arriving,
        };
        same_parents && self.event.payload == other.payload
    }
}
