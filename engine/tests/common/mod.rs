//! What the tests share: random hostile input, and the serial machine run over what is in the log.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod files;
pub mod log;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use thalweg::reference::{
    Arrival, Delivery, SerialDiscard, SerialEvent, SerialMachine, SerialMark, SerialRecord,
};
use thalweg::storage::{Access, MemoryStorage, Storage};
use thalweg::{
    Ack, AppenderOptions, Batch, DiscardReason, Event, MarkChange, MixedBatch, NewEvent, Options,
    Placement, ReadError, Receipt, Rejection, Store, Why,
};
use thalweg_wal::{LogReader, Record, RecordKind, Segment};

/// An event of a test: which stream, and everything else by small numbers, so that ids collide,
/// parents are met before and after, and streams mix.
#[derive(Debug, Clone)]
pub struct TestEvent {
    pub stream: u8,
    pub id: Option<u8>,
    pub parents: Option<Vec<u8>>,
    pub require_parents: bool,
    pub condition: Condition,
    /// Of the stream of the event before it in its batch, if there is one, and tied to it.
    pub with_previous: bool,
    pub payload: u8,
}

/// What else an event asks of its stream, or what stands in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    None,
    /// The tips that there are, in reverse, the first of them twice.
    RightTips,
    /// The tips that there are, but for one more or one less.
    NearlyRightTips,
    /// The listed parents, whatever they are.
    Tips,
    /// The place that is next.
    RightLocal,
    Local(u8),
    /// No event: a seal.
    Seal,
    /// No event: the end of a seal.
    Unseal,
    /// No event: a mark, so far below what is one too many.
    Mark(u8),
    /// No event: a cursor is taken away.
    Unmark,
    /// No event: the event with its id is discarded, if it is held.
    Discard,
    /// No event: one that is held is, if there is one in the stream.
    DiscardHeld,
    /// No event: the stream is trimmed, so far below what is one too many.
    Trim(u8),
}

impl TestEvent {
    /// The record at `place` of a log that has come to `machine` so far, after `reach` bytes of its batch, of
    /// which an event of the stream `previous` is the last. `made` is its id if it has none of its own.
    fn resolve(
        &self,
        machine: &SerialMachine,
        previous: Option<&str>,
        reach: u64,
        made: Vec<u8>,
    ) -> (String, SerialRecord) {
        let with_previous = self.with_previous && previous.is_some();
        let stream = match previous {
            Some(previous) if with_previous => previous.to_owned(),
            _ => format!("stream-{}", self.stream),
        };
        let name = stream.clone().into_bytes();
        match self.condition {
            Condition::Seal => return (stream, SerialRecord::Seal(name)),
            Condition::Unseal => return (stream, SerialRecord::Unseal(name)),
            Condition::Mark(_) | Condition::Unmark => {
                let cursor = format!("cursor-{}", self.stream % 3).into_bytes();
                let change = self.mark_change(machine.order.len() as u64);
                return (stream, SerialRecord::Mark(SerialMark { cursor, change, reach }));
            }
            Condition::Trim(below) => {
                let first = (machine.delivered(&name) + 1).saturating_sub(below.into());
                return (stream, SerialRecord::StreamTrim(name, first));
            }
            Condition::Discard | Condition::DiscardHeld => {
                let named = format!("e{}", self.id.unwrap_or(self.payload)).into_bytes();
                let held = machine.held_ids(&name).into_iter().nth(self.payload.into());
                let held = held.filter(|_| self.condition == Condition::DiscardHeld);
                let reason = match self.require_parents {
                    true => DiscardReason::Expired,
                    false => DiscardReason::Discarded,
                };
                let id = held.unwrap_or(named);
                let discard = SerialDiscard { stream: name, id, reason };
                return (stream, SerialRecord::Discard(discard));
            }
            _ => {}
        }
        let listed = self.parents.iter().flatten().map(|id| format!("e{id}").into_bytes());
        let mut tips = machine.tips(&name);
        let (parents, if_tips) = match self.condition {
            Condition::RightTips => {
                tips.extend(tips.first().cloned());
                tips.reverse();
                (Some(tips), true)
            }
            Condition::NearlyRightTips => {
                if self.payload > 0 {
                    tips.push(format!("e{}", self.payload).into_bytes());
                } else {
                    tips.pop();
                }
                (Some(tips), true)
            }
            Condition::Tips => (Some(listed.collect()), true),
            _ => (self.parents.is_some().then(|| listed.collect()), false),
        };
        let if_local = match self.condition {
            Condition::RightLocal => Some(machine.delivered(&name)),
            Condition::Local(local) => Some(local.into()),
            _ => None,
        };
        let event = SerialEvent {
            stream: name,
            id: self.id.map_or(made, |id| format!("e{id}").into_bytes()),
            parents,
            require_parents: self.require_parents,
            if_tips,
            if_local,
            with_previous,
            payload: vec![self.payload; usize::from(self.payload)],
        };
        (stream, SerialRecord::Event(event))
    }

    fn mark_change(&self, delivered: u64) -> MarkChange {
        let Condition::Mark(below) = self.condition else { return MarkChange::Remove };
        let next = (delivered + 1).saturating_sub(below.into());
        if self.payload == 2 { MarkChange::Reset(next) } else { MarkChange::Advance(next) }
    }
}

/// A batch of these events. What their conditions come to in the end depends on where the batch comes to
/// lie; here they are chosen as if it came next, so that many of them hold.
pub fn batch_of(events: &[TestEvent], storage: &dyn Storage) -> MixedBatch {
    const FRAME_HEADER_LEN: u64 = thalweg_wal::format::FRAME_HEADER_LEN;
    let Expected { mut machine, tag, end, .. } = expected(storage);
    let mut batch = MixedBatch::new();
    let mut previous: Option<String> = None;
    // A sealed stream refuses appends before the order can reject them, but not those of a batch that
    // sets the seal itself: here, where it is already.
    let streams = machine.stream_counts().into_iter();
    let sealed: Vec<_> =
        streams.filter(|(_, counts)| counts.3).map(|(name, _)| name.to_vec()).collect();
    for stream in sealed {
        let position = end + FRAME_HEADER_LEN + batch.byte_len();
        batch.push_seal(&stream).expect("within the limits");
        let record = SerialRecord::Seal(stream);
        machine.arrive(position..end + FRAME_HEADER_LEN + batch.byte_len(), record);
    }
    for event in events {
        let reach = batch.byte_len();
        let position = end + FRAME_HEADER_LEN + reach;
        let made = format!("{tag}-{position:x}").into_bytes();
        let (stream, record) = event.resolve(&machine, previous.as_deref(), reach, made);
        match &record {
            SerialRecord::Event(serial) => {
                let new = to_new(serial, event.id.is_some());
                batch.push(&stream, &new).expect("within the limits");
                previous = Some(stream);
            }
            SerialRecord::Seal(_) => {
                batch.push_seal(&stream).expect("within the limits");
                previous = None;
            }
            SerialRecord::Unseal(_) => {
                batch.push_unseal(&stream).expect("within the limits");
                previous = None;
            }
            SerialRecord::Mark(mark) => {
                batch.push_mark(&mark.cursor, mark.change).expect("within the limits");
                previous = None;
            }
            SerialRecord::StreamTrim(_, first) => {
                batch.push_stream_trim(&stream, *first).expect("within the limits");
                previous = None;
            }
            SerialRecord::Discard(discard) => {
                batch
                    .push_discard(&stream, &discard.id, discard.reason)
                    .expect("within the limits");
                previous = None;
            }
        }
        machine.arrive(position..end + FRAME_HEADER_LEN + batch.byte_len(), record);
    }
    batch
}

pub fn to_new(serial: &SerialEvent, with_id: bool) -> NewEvent {
    let mut event = Event::new(serial.payload.clone());
    if with_id {
        event = event.id(serial.id.clone());
    }
    event = match &serial.parents {
        Some(tips) if serial.if_tips => event.if_tips(tips.clone()),
        Some(parents) => event.parents(parents.clone()),
        None => event,
    };
    if let Some(local) = serial.if_local {
        event = event.if_local(local);
    }
    if serial.require_parents {
        event = event.require_parents();
    }
    if serial.with_previous { event.with_previous() } else { event }
}

/// Events with forks, merges, orphans, self-parents, cycles, repeats, conflicts, parents in other
/// streams, chained and rooted ones, all mixed.
pub fn hostile_event(streams: u8, ids: u8) -> impl Strategy<Value = TestEvent> {
    let parents = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Vec::new())),
        6 => prop::collection::vec(0..ids, 1..4).prop_map(Some),
    ];
    let id = prop_oneof![1 => Just(None), 9 => (0..ids).prop_map(Some)];
    let condition = prop_oneof![
        60 => Just(Condition::None),
        8 => Just(Condition::RightTips),
        3 => Just(Condition::NearlyRightTips),
        3 => Just(Condition::Tips),
        6 => Just(Condition::RightLocal),
        4 => (0..4_u8).prop_map(Condition::Local),
        3 => Just(Condition::Seal),
        6 => Just(Condition::Unseal),
        6 => (0..6_u8).prop_map(Condition::Mark),
        1 => Just(Condition::Unmark),
        4 => Just(Condition::Discard),
        8 => Just(Condition::DiscardHeld),
        4 => (0..6_u8).prop_map(Condition::Trim),
    ];
    let flags = (prop::bool::weighted(0.1), prop::bool::weighted(0.2));
    (0..streams, id, parents, flags, condition, 0..3_u8).prop_map(
        |(stream, id, parents, (require_parents, with_previous), condition, payload)| TestEvent {
            stream,
            id,
            parents,
            require_parents,
            condition,
            with_previous,
            payload,
        },
    )
}

/// The serial machine, run over a log.
#[derive(Debug)]
pub struct Expected {
    pub machine: SerialMachine,
    /// What ids begin with that the engine makes.
    pub tag: String,
    /// Where the log ends.
    pub end: u64,
    /// The records of the log, each with its place.
    pub records: Vec<(Range<u64>, SerialRecord)>,
    /// Ids of deliveries before this one are forgotten, but those of tips.
    pub forgotten: u64,
    /// Tips of the stream of each rejected event.
    pub tips: BTreeMap<u64, Vec<Vec<u8>>>,
    pub order: Vec<Delivery>,
    pub held: BTreeMap<u64, BTreeSet<Vec<u8>>>,
    pub arrivals: Vec<(u64, Arrival)>,
    pub events: BTreeMap<u64, SerialEvent>,
}

impl Expected {
    /// How many records of the log came to this.
    pub fn count(&self, is_it: impl Fn(Arrival) -> bool) -> u64 {
        self.arrivals.iter().filter(|(_, arrival)| is_it(*arrival)).count() as u64
    }

    pub fn rejected(&self) -> u64 {
        // Of marks, only the receipts say so.
        let rejected = |(position, arrival): &&(u64, Arrival)| {
            matches!(arrival, Arrival::Rejected(_)) && self.events.contains_key(position)
        };
        self.arrivals.iter().filter(rejected).count() as u64
    }

    /// What became of the record at `position`, as a receipt has to say it.
    pub fn placement(&self, position: u64) -> Placement {
        let at = self.arrivals.binary_search_by_key(&position, |(position, _)| *position);
        match self.arrivals[at.expect("a record")].1 {
            Arrival::Delivered => {
                // Triggers are delivered in the order of their positions, but others come between.
                let is_it = |delivery: &Delivery| delivery.position == position;
                let global = self.order.iter().position(is_it).expect("a delivery");
                Placement::Delivered { global: global as u64, local: self.order[global].local }
            }
            Arrival::Held(missing) => Placement::Held { missing },
            Arrival::Duplicate => Placement::Duplicate,
            Arrival::Conflict => Placement::Conflict,
            Arrival::Rejected(reason) => {
                Placement::Rejected { reason, tips: self.tips[&position].clone() }
            }
            Arrival::Sealed(next) => Placement::Sealed { next },
            Arrival::Unsealed => Placement::Unsealed,
            Arrival::Marked(at) => Placement::Marked { at },
            Arrival::Trimmed(first) => Placement::Trimmed { first },
            Arrival::Discarded => Placement::Discarded,
            Arrival::NotHeld { delivered } => Placement::NotHeld { delivered },
        }
    }
}

pub fn serial_record(record: &Record<'_>, tag: &str) -> SerialRecord {
    match record.kind() {
        RecordKind::Event => SerialRecord::Event(serial_event(record, tag)),
        RecordKind::Seal => SerialRecord::Seal(record.stream().to_vec()),
        RecordKind::Unseal => SerialRecord::Unseal(record.stream().to_vec()),
        RecordKind::Mark => {
            let mark = record.mark().expect("a mark");
            let reach = record.position() - mark.depends_from;
            let cursor = mark.cursor.to_vec();
            SerialRecord::Mark(SerialMark { cursor, change: mark.change, reach })
        }
        RecordKind::StreamTrim => SerialRecord::StreamTrim(
            record.stream().to_vec(),
            record.stream_trim().expect("a trim"),
        ),
        RecordKind::Discard => SerialRecord::Discard(SerialDiscard {
            stream: record.stream().to_vec(),
            id: record.given_id().to_vec(),
            reason: record.discard_reason().expect("a discard"),
        }),
        RecordKind::Refused => unreachable!("only in place of what is lost"),
    }
}

fn serial_event(record: &Record<'_>, tag: &str) -> SerialEvent {
    let id = match record.given_id() {
        [] => format!("{tag}-{:x}", record.position()).into_bytes(),
        given => given.to_vec(),
    };
    SerialEvent {
        stream: record.stream().to_vec(),
        id,
        parents: (!record.is_chained()).then(|| record.parents().map(<[u8]>::to_vec).collect()),
        require_parents: record.requires_parents(),
        if_tips: record.is_if_tips(),
        if_local: record.if_local(),
        with_previous: record.is_with_previous(),
        payload: record.payload().to_vec(),
    }
}

/// What the log in `storage` must come to.
pub fn expected(storage: &dyn Storage) -> Expected {
    expected_of(storage, &[])
}

/// The same for a log of which some segments were trimmed since somebody has opened them.
pub fn expected_of(storage: &dyn Storage, older: &[Arc<Segment>]) -> Expected {
    let log = LogReader::open(storage, None).expect("the log opens");
    let tag: String = log.store_id[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let mut machine = SerialMachine::default();
    let (mut records, mut arrivals) = (Vec::new(), Vec::new());
    let (mut events, mut tips) = (BTreeMap::new(), BTreeMap::new());
    let begins = log.segments.first().map_or(0, |segment| segment.base());
    let older = older.iter().filter(|segment| segment.base() < begins);
    for segment in older.chain(&log.segments) {
        machine.forget(segment.forgotten());
        for record in segment.walk(segment.first(), segment.end()) {
            let record = record.expect("no damage");
            let (position, end) = (record.position(), record.position() + record.len());
            let record = serial_record(&record, &tag);
            let arrival = machine.arrive(position..end, record.clone());
            arrivals.push((position, arrival));
            if matches!(arrival, Arrival::Rejected(_)) {
                let named = match &record {
                    SerialRecord::Event(event) => machine.tips(&event.stream),
                    _ => Vec::new(),
                };
                tips.insert(position, named);
            }
            if let SerialRecord::Event(event) = &record {
                events.insert(position, event.clone());
            }
            records.push((position..end, record));
        }
    }
    let (held, order) = (machine.held(), machine.order.clone());
    let forgotten = log.segments.iter().map(|segment| segment.forgotten()).max().unwrap_or(0);
    let end = log.end;
    Expected { tag, end, records, forgotten, tips, held, order, arrivals, events, machine }
}

/// Checks everything that a store shows against the serial machine, event by event. Of what was trimmed, it shows
/// that and nothing else.
pub fn check(store: &Store, expected: &Expected) {
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    let first = store.first();
    let mut by_stream: BTreeMap<Vec<u8>, Vec<u64>> = BTreeMap::new();
    let mut read = store.read(..).expect("reads");
    for (global, delivery) in expected.order.iter().enumerate() {
        let trimmed =
            |found| matches!(found, Err(ReadError::Trimmed { first: said }) if said == first);
        if (global as u64) < first {
            let event = &expected.events[&delivery.position];
            // One that is forgotten may be gone altogether, and another can have its id.
            if (global as u64) >= expected.forgotten {
                assert!(trimmed(store.get(&event.stream, &event.id).map(drop)), "global {global}");
                let why = store.why_held(&event.stream, &event.id).expect("answers");
                assert_eq!(why, Why::Trimmed { global: global as u64, first });
            }
            assert!(trimmed(store.read(global as u64..).map(drop)), "global {global}");
            by_stream.entry(event.stream.clone()).or_default().push(global as u64);
            continue;
        }
        let event = read.next().expect("an event is missing").expect("reads");
        let expected_event = &expected.events[&delivery.position];
        assert_eq!(event.global(), global as u64);
        assert_eq!(event.position(), delivery.position, "global {global}");
        assert_eq!(event.local(), delivery.local, "global {global}");
        assert_eq!(event.stream(), expected_event.stream);
        assert_eq!(event.id(), expected_event.id);
        assert_eq!(event.payload(), expected_event.payload);
        assert_eq!(event.parents().expect("parents"), delivery.parents, "global {global}");
        let found = store.get(event.stream(), event.id()).expect("gets").expect("is there");
        assert_eq!(found.global(), event.global());
        by_stream.entry(expected_event.stream.clone()).or_default().push(global as u64);
    }
    assert!(read.next().is_none(), "more events than there should be");

    let firsts = expected.machine.firsts();
    for (name, globals) in &by_stream {
        let view = store.stream(name).expect("finds").expect("is there");
        assert_eq!(view.len(), globals.len() as u64);
        let read: Vec<u64> =
            view.read(..).expect("reads").map(|event| event.expect("reads").global()).collect();
        let first_global = store.first();
        let kept = globals.partition_point(|&global| global < first_global) as u64;
        let first = firsts.get(name).copied().unwrap_or(0).max(kept);
        assert_eq!(view.first(), first);
        assert_eq!(read, globals[first as usize..]);
        if let Some(before) = first.checked_sub(1) {
            let trimmed = view.read(before..);
            assert!(matches!(trimmed, Err(ReadError::Trimmed { first: at }) if at == first));
        }
        let middle = first.max(globals.len() as u64 / 2);
        let tail: Vec<u64> = view
            .read(middle..)
            .expect("reads")
            .map(|event| event.expect("reads").local())
            .collect();
        assert_eq!(tail, (middle..globals.len() as u64).collect::<Vec<u64>>());
    }
    let infos = store.streams().expect("streams");
    let counts: Vec<_> = infos
        .iter()
        .map(|info| (&info.name[..], (info.delivered, info.held, info.tips, info.sealed)))
        .collect();
    assert_eq!(counts, expected.machine.stream_counts().into_iter().collect::<Vec<_>>());

    let held: BTreeMap<u64, BTreeSet<Vec<u8>>> = store
        .held()
        .expect("held")
        .into_iter()
        .map(|event| (event.position, event.missing.into_iter().collect()))
        .collect();
    assert_eq!(held, expected.held);
    let cursors = store.cursors().into_iter().map(|cursor| {
        assert_eq!(cursor.lag, expected.order.len() as u64 - cursor.at);
        (cursor.name, cursor.at)
    });
    assert_eq!(cursors.collect::<BTreeMap<_, _>>(), expected.machine.cursors);
    let stats = store.stats();
    assert_eq!(stats.delivered, expected.order.len() as u64);
    assert_eq!(stats.held, expected.held.len() as u64);
    assert_eq!(stats.duplicates, expected.count(|arrival| arrival == Arrival::Duplicate));
    assert_eq!(stats.conflicts, expected.count(|arrival| arrival == Arrival::Conflict));
    assert_eq!(stats.rejected, expected.rejected());
    assert_eq!(stats.discarded, expected.count(|arrival| arrival == Arrival::Discarded));
}

/// Opens a store that orders with two threads, on however many cores.
pub fn open(storage: &MemoryStorage) -> Store {
    Options::new().orderers(2).open_on(shared(storage)).expect("opens")
}

/// Checks the store, copies of it that were killed before and behind a checkpoint, one that has only its log, and the
/// store after closing and opening it. Returns what the log comes to.
pub fn check_every_life(store: Store, storage: &MemoryStorage) -> Expected {
    let expected = expected(storage);
    check(&store, &expected);
    check(&open(&storage.fork()), &expected);
    store.checkpoint().expect("a checkpoint");
    check(&open(&storage.fork()), &expected);
    let log_only = storage.fork();
    log::keep_the_log_only(&log_only);
    check(&open(&log_only), &expected);
    let report = store.verify().expect("verifies");
    assert_eq!((report.problems, report.rejected), (Vec::new(), expected.rejected()));
    store.close().expect("closes");
    let store = open(storage);
    assert_eq!(store.stats().checkpoint_position, store.durable_end(), "nothing is ordered again");
    check(&store, &expected);
    expected
}

/// Ids of all streams in the order of their delivery, once everything durable is ordered.
pub fn ids(store: &Store) -> Vec<String> {
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    let events = store.read(..).expect("reads");
    events.map(|event| String::from_utf8_lossy(event.expect("reads").id()).into_owned()).collect()
}

/// Everything that must end soon ends within this time, on a busy machine too.
pub const SOON: Duration = Duration::from_secs(10);

/// Does `what` on a thread of its own; fails if it hangs.
pub fn soon<T: Send + 'static>(name: &str, what: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let _ = sender.send(what());
    });
    receiver.recv_timeout(SOON).unwrap_or_else(|_| panic!("{name} hangs, or has panicked"))
}

/// Keeps the store from closing by itself when a test fails: one that hangs would hang there again.
pub fn keep(store: &Store) {
    std::mem::forget(store.clone());
}

/// An appender with room for whatever a test does, and this acknowledgement.
pub fn acked(ack: Ack) -> AppenderOptions {
    AppenderOptions::new().ack(ack).pipeline(AppenderOptions::PIPELINE_MAX)
}

/// Appends one chained event, and waits until it is ordered.
pub fn append(store: &Store, stream: &str, payload: impl AsRef<[u8]>) {
    let appender = store.appender_with(stream, acked(Ack::Ordered)).expect("an appender");
    appender.append(payload).expect("accepted").wait().expect("appended");
}

/// Appends a batch, waits until it is ordered, and says what became of its events.
pub fn append_batch(
    store: &Store,
    stream: &str,
    events: impl IntoIterator<Item = NewEvent>,
) -> Vec<Placement> {
    let appender = store.appender_with(stream, acked(Ack::Ordered)).expect("an appender");
    let batch: Batch = events.into_iter().collect();
    appender.submit(batch).expect("accepted").wait().expect("appended").placements
}

/// Appends one event, and waits until it is ordered.
pub fn append_event(store: &Store, stream: &str, event: &NewEvent) -> Receipt {
    let mut batch = MixedBatch::new();
    batch.push(stream, event).expect("within the limits");
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended")
}

/// Appends the same to two stores with the same log, which come to the same.
pub fn append_to_both(stores: [&Store; 2], batch: &dyn Fn() -> MixedBatch) -> Vec<Placement> {
    // Before the first of them is in the log, on which it depends.
    let batches = [batch(), batch()];
    let mut receipts: Vec<_> = (stores.into_iter().zip(batches))
        .map(|(store, batch)| {
            let receipt = store.submit(batch, Ack::Ordered).expect("accepted").wait();
            let receipt = receipt.expect("appended");
            (receipt.end, receipt.placements)
        })
        .collect();
    assert_eq!(receipts[0], receipts[1]);
    receipts.remove(0).1
}

pub fn delivered(global: u64, local: u64) -> Placement {
    Placement::Delivered { global, local }
}

pub fn rejected(reason: Rejection, tips: &[&str]) -> Placement {
    Placement::Rejected { reason, tips: tips.iter().map(|id| id.as_bytes().to_vec()).collect() }
}

/// What every operation of a store that has failed must do: end.
pub fn nothing_hangs(store: &Store) {
    type Call = fn(&Store);
    let calls: [(&str, Call); 7] = [
        ("held", |store| drop(store.held())),
        ("streams", |store| drop(store.streams())),
        ("why_held", |store| drop(store.why_held("s", "x"))),
        ("checkpoint", |store| drop(store.checkpoint())),
        ("wait_committed", |store| drop(store.wait_committed(store.durable_end()))),
        ("append", |store| {
            if let Ok(ticket) = store.appender("s").expect("an appender").append("late") {
                drop(ticket.wait());
            }
        }),
        ("append, for the order", |store| {
            let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
            if let Ok(ticket) = appender.append("late") {
                drop(ticket.wait());
            }
        }),
    ];
    for (name, call) in calls {
        let store = store.clone();
        soon(name, move || call(&store));
    }
}

/// A process that runs nothing but one ignored test of this binary, and says what it says through pipes.
pub fn this_test(child: &str) -> Command {
    of_this_test(Command::new(std::env::current_exe().expect("this test")), child)
}

/// The same, started by another program: its last arguments are what to start.
pub fn this_test_by(mut starter: Command, child: &str) -> Command {
    starter.arg(std::env::current_exe().expect("this test"));
    of_this_test(starter, child)
}

fn of_this_test(mut command: Command, child: &str) -> Command {
    command.args([child, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Changes one byte where it is.
pub fn flip(storage: &MemoryStorage, name: &str, offset: u64, mask: u8) {
    let file = storage.open(name, Access::Write).expect("opens");
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, offset).expect("reads"), 1);
    file.write_at(&[byte[0] ^ mask], offset).expect("writes");
}

/// A directory in memory, as the options take it.
pub fn shared(storage: &MemoryStorage) -> Arc<dyn Storage> {
    Arc::new(storage.clone())
}

/// A small random number generator (SplitMix64, Sebastiano Vigna), so that a seed that a test has
/// printed brings the same numbers back.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The seed in `THALWEG_SEED`, or a new one; printed, so that a failure names it.
    pub fn from_env() -> Self {
        let given = std::env::var("THALWEG_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.expect("after 1970").as_nanos() as u64
        });
        println!("THALWEG_SEED={seed}");
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// An event of the hostile kind: forks, merges, orphans, self-parents, cycles, repeated ids, chained
/// and rooted ones, and conditions that rarely hold; ids and parents are numbers around `around`.
pub fn wild_event(rng: &mut Rng, around: u64, spread: u64, payload: Vec<u8>) -> NewEvent {
    let mut name = {
        let mut rng = Rng(rng.next());
        move || format!("e{}", around + rng.below(spread))
    };
    let mut event = Event::new(payload);
    if !rng.once_in(10) {
        event = event.id(name());
    }
    event = match rng.below(9) {
        0 | 1 => event,
        2 => event.parents::<&str>([]),
        count => event.parents((0..count.div_ceil(3)).map(|_| name())),
    };
    match rng.below(48) {
        0 => event.if_local(rng.below(spread)),
        1 => event.if_tips([name()]),
        2 => event.if_tips::<&str>([]),
        3..7 => event.require_parents(),
        _ => event,
    }
}

/// Appends so many batches of events of every kind, of so many wild ones each: forks, held ones, duplicates, conflicts,
/// tied ones, rejected ones, discards and seals.
pub fn append_every_kind(store: &Store, rng: &mut Rng, count: u64, wild: u64) {
    for _ in 0..count {
        let mut batch = MixedBatch::new();
        for _ in 0..wild {
            let payload = vec![rng.below(3) as u8; rng.below(40) as usize];
            let event = wild_event(rng, 0, 200, payload);
            let stream = format!("s{}", rng.below(3));
            for _ in 0..1 + u64::from(rng.once_in(5)) {
                batch.push(&stream, &event).expect("within the limits");
            }
        }
        // Some that wait are given up, and may come again.
        let held = if rng.once_in(2) { store.held().expect("held") } else { Vec::new() };
        for event in held.iter().filter(|_| rng.once_in(4)) {
            let reason = DiscardReason::Expired;
            batch.push_discard(&event.stream, &event.id, reason).expect("within the limits");
        }
        // A tied event, and at times a seal and its end, with an event between them.
        let stream = format!("s{}", rng.below(3));
        batch.push(&stream, &wild_event(rng, 0, 200, vec![9])).expect("within the limits");
        batch.push(&stream, &Event::new("tied").with_previous()).expect("within the limits");
        if rng.once_in(10) {
            batch.push_seal(&stream).expect("within the limits");
            batch.push(&stream, &Event::new("sealed out")).expect("within the limits");
            batch.push_unseal(&stream).expect("within the limits");
        }
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    }
}
