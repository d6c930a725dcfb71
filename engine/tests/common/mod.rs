//! What the tests share: random hostile input, and the serial machine run over what is in the log.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;
use thalweg::reference::{Arrival, Delivery, SerialEvent, SerialMachine};
use thalweg::storage::{Access, MemoryStorage, Storage};
use thalweg::{Ack, AppenderOptions, Event, NewEvent, Store};
use thalweg_wal::{LogReader, Record};

/// An event of a test: which stream, and everything else by small numbers, so that ids collide,
/// parents are met before and after, and streams mix.
#[derive(Debug, Clone)]
pub struct TestEvent {
    pub stream: u8,
    pub id: Option<u8>,
    pub parents: Option<Vec<u8>>,
    pub require_parents: bool,
    pub payload: u8,
}

impl TestEvent {
    pub fn stream_name(&self) -> String {
        format!("stream-{}", self.stream)
    }

    pub fn to_new(&self) -> NewEvent {
        let mut event = Event::new(vec![self.payload; usize::from(self.payload)]);
        if let Some(id) = self.id {
            event = event.id(format!("e{id}"));
        }
        if let Some(parents) = &self.parents {
            event = event.parents(parents.iter().map(|parent| format!("e{parent}")));
        }
        if self.require_parents { event.require_parents() } else { event }
    }
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
    (0..streams, id, parents, prop::bool::weighted(0.1), 0..3_u8).prop_map(
        |(stream, id, parents, require_parents, payload)| TestEvent {
            stream,
            id,
            parents,
            require_parents,
            payload,
        },
    )
}

/// The serial machine, run over a log.
#[derive(Debug)]
pub struct Expected {
    pub order: Vec<Delivery>,
    pub held: BTreeMap<u64, BTreeSet<Vec<u8>>>,
    pub arrivals: Vec<(u64, Arrival)>,
    pub events: BTreeMap<u64, SerialEvent>,
}

pub fn serial_event(record: &Record<'_>, store_id: &[u8; 16]) -> SerialEvent {
    let tag: String = store_id[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let id = match record.given_id() {
        [] => format!("{tag}-{:x}", record.position()).into_bytes(),
        given => given.to_vec(),
    };
    SerialEvent {
        stream: record.stream().to_vec(),
        id,
        parents: (!record.is_chained()).then(|| record.parents().map(<[u8]>::to_vec).collect()),
        require_parents: record.requires_parents(),
        payload: record.payload().to_vec(),
    }
}

/// What the log in `storage` must come to.
pub fn expected(storage: &dyn Storage) -> Expected {
    let log = LogReader::open(storage, None).expect("the log opens");
    let mut machine = SerialMachine::default();
    let (mut arrivals, mut events) = (Vec::new(), BTreeMap::new());
    for segment in &log.segments {
        for record in segment.walk(segment.first(), segment.end()) {
            let record = record.expect("no damage");
            let event = serial_event(&record, &log.store_id);
            events.insert(record.position(), event.clone());
            arrivals.push((record.position(), machine.arrive(record.position(), event)));
        }
    }
    Expected { held: machine.held(), order: machine.order, arrivals, events }
}

/// Checks everything that a store shows against the serial machine, event by event.
pub fn check(store: &Store, expected: &Expected) {
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    let mut by_stream: BTreeMap<Vec<u8>, Vec<u64>> = BTreeMap::new();
    let mut read = store.read(..).expect("reads");
    for (global, delivery) in expected.order.iter().enumerate() {
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

    for (name, globals) in &by_stream {
        let view = store.stream(name).expect("finds").expect("is there");
        assert_eq!(view.len(), globals.len() as u64);
        let read: Vec<u64> =
            view.read(..).expect("reads").map(|event| event.expect("reads").global()).collect();
        assert_eq!(&read, globals);
        let middle = globals.len() as u64 / 2;
        let tail: Vec<u64> = view
            .read(middle..)
            .expect("reads")
            .map(|event| event.expect("reads").local())
            .collect();
        assert_eq!(tail, (middle..globals.len() as u64).collect::<Vec<u64>>());
    }
    let infos = store.streams().expect("streams");
    let delivered: BTreeMap<Vec<u8>, u64> = infos
        .iter()
        .filter(|info| info.delivered > 0)
        .map(|info| (info.name.clone(), info.delivered))
        .collect();
    let counted = by_stream.iter().map(|(name, globals)| (name.clone(), globals.len() as u64));
    assert_eq!(delivered, counted.collect());

    let held: BTreeMap<u64, BTreeSet<Vec<u8>>> = store
        .held()
        .expect("held")
        .into_iter()
        .map(|event| (event.position, event.missing.into_iter().collect()))
        .collect();
    assert_eq!(held, expected.held);
    let stats = store.stats();
    let count = |arrival| expected.arrivals.iter().filter(|(_, other)| *other == arrival).count();
    assert_eq!(stats.delivered, expected.order.len() as u64);
    assert_eq!(stats.held, expected.held.len() as u64);
    assert_eq!(stats.duplicates, count(Arrival::Duplicate) as u64);
    assert_eq!(stats.conflicts, count(Arrival::Conflict) as u64);
    assert_eq!(stats.rejected, count(Arrival::Rejected) as u64);
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

/// An appender with room for whatever a test does, and this acknowledgement.
pub fn acked(ack: Ack) -> AppenderOptions {
    AppenderOptions::new().ack(ack).pipeline(AppenderOptions::PIPELINE_MAX)
}

/// Appends one chained event, and waits until it is ordered.
pub fn append(store: &Store, stream: &str, payload: impl AsRef<[u8]>) {
    let appender = store.appender_with(stream, acked(Ack::Ordered)).expect("an appender");
    appender.append(payload).expect("accepted").wait().expect("appended");
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
/// and rooted ones; ids and parents are numbers around `around`.
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
    if rng.once_in(12) { event.require_parents() } else { event }
}
