//! Subscriptions of every kind show exactly their part of the order, in one piece, whatever goes on meanwhile;
//! and barriers end when readers can see what they wait for.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{Rng, SOON, acked, append, check, expected, shared, soon, wild_event};
use faulty::{Fault, Faulty, Op, open as open_faulty};
use thalweg::storage::MemoryStorage;
use thalweg::{
    Ack, Barrier, Batch, Cause, CursorError, Event, MixedBatch, Options, Placement, ReadError,
    Refusal, Start, Store, Subscription,
};

fn open(storage: &MemoryStorage) -> Store {
    Options::new().segment_bytes(1 << 20).open_on(shared(storage)).expect("opens")
}

/// What a subscription is for.
#[derive(Debug, Clone)]
enum Kind {
    All,
    Stream(&'static str),
    Streams(&'static [&'static str]),
    Prefix(&'static str),
}

const KINDS: [Kind; 8] = [
    Kind::All,
    Kind::Stream("a-0"),
    Kind::Stream("b-1"),
    Kind::Stream("not there"),
    Kind::Streams(&["a-1", "b-0", "not there"]),
    Kind::Streams(&[]),
    Kind::Prefix("a-"),
    Kind::Prefix(""),
];

impl Kind {
    fn subscribe(&self, store: &Store, from: impl Into<Start>) -> Subscription {
        let subscribed = match self {
            Kind::All => store.subscribe(from),
            Kind::Stream(name) => store.subscribe_stream(name, from),
            Kind::Streams(names) => store.subscribe_streams(names.iter().copied(), from),
            Kind::Prefix(prefix) => store.subscribe_prefix(prefix, from),
        };
        subscribed.expect("subscribes")
    }

    fn wants(&self, stream: &[u8]) -> bool {
        match self {
            Kind::All => true,
            Kind::Stream(name) => stream == name.as_bytes(),
            Kind::Streams(names) => names.iter().any(|name| stream == name.as_bytes()),
            Kind::Prefix(prefix) => stream.starts_with(prefix.as_bytes()),
        }
    }
}

struct Subscriber {
    kind: Kind,
    /// Where it began, and where it goes on; nothing before it has begun from now.
    first: Option<u64>,
    next: Option<u64>,
    all: Vec<Seen>,
}

/// What a subscriber has seen of an event.
type Seen = (u64, u64, Vec<u8>);

fn seen(event: &Event) -> Seen {
    (event.global(), event.local(), event.id().to_vec())
}

/// Follows until the store closes, in all the ways that there are; returns where to go on.
fn follow(mut subscription: Subscription, rng: &mut Rng, all: &mut Vec<Seen>) -> u64 {
    loop {
        let before = subscription.next_sequence();
        let next = match rng.below(3) {
            0 => subscription.next().unwrap_or(Err(ReadError::Closed)).map(Some),
            1 => subscription.next_timeout(Duration::from_micros(rng.below(500))),
            _ => subscription.try_next(),
        };
        match next {
            Ok(Some(event)) => {
                assert!(event.global() >= before, "{} after {before}", event.global());
                assert_eq!(subscription.next_sequence(), event.global() + 1);
                all.push(seen(&event));
            }
            Ok(None) => assert!(subscription.next_sequence() >= before),
            Err(ReadError::Closed) => return subscription.next_sequence(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn append_wildly(store: &Store, mut rng: Rng, first: u64) {
    for round in first..first + 40 {
        let mut batch = MixedBatch::new();
        for _ in 0..1 + rng.below(8) {
            let payload = vec![0; rng.below(4000) as usize];
            let event = wild_event(&mut rng, round, 60, payload);
            let stream = format!("{}-{}", ["a", "b"][rng.below(2) as usize], rng.below(3));
            batch.push(stream, &event).expect("within the limits");
        }
        let ticket = store.submit(batch, Ack::Durable).expect("accepted");
        if rng.once_in(2) {
            ticket.wait().expect("appended");
        }
    }
}

#[test]
fn each_kind_sees_its_part_of_the_order_over_appends_rolls_and_reopenings() {
    let storage = MemoryStorage::new();
    let mut rng = Rng::from_env();
    // Of each kind one from the start, one from anywhere, and one from now.
    let mut subscribers = Vec::new();
    for kind in KINDS {
        for from in [Some(0), Some(rng.below(600)), None] {
            let kind = kind.clone();
            subscribers.push(Subscriber { kind, first: from, next: from, all: Vec::new() });
        }
    }
    for session in 0..4 {
        // Everything in memory; everything forgotten after each window.
        let budget = [1 << 30, 0][session % 2];
        let options = Options::new().segment_bytes(1 << 20).memory_budget(budget);
        let store = options.open_on(shared(&storage)).expect("opens");
        std::thread::scope(|scope| {
            for Subscriber { kind, first, next, all } in &mut subscribers {
                let (store, mut rng) = (store.clone(), Rng(rng.next()));
                scope.spawn(move || {
                    let subscription = match next {
                        Some(next) => kind.subscribe(&store, *next),
                        None => kind.subscribe(&store, Start::Now),
                    };
                    first.get_or_insert(subscription.next_sequence());
                    drop(store);
                    *next = Some(follow(subscription, &mut rng, all));
                });
            }
            let appenders: Vec<_> = (0..3)
                .map(|_| {
                    let (store, rng) = (&store, Rng(rng.next()));
                    scope.spawn(move || append_wildly(store, rng, 40 * session as u64))
                })
                .collect();
            appenders.into_iter().for_each(|thread| thread.join().expect("appends"));
            if rng.once_in(2) {
                store.wait_committed(store.durable_end()).expect("committed");
            }
            store.close().expect("closes");
        });
    }
    // What the last close has cut off.
    let store = open(&storage);
    store.wait_committed(store.durable_end()).expect("committed");
    let expected = expected(&storage);
    check(&store, &expected);
    let order: Vec<(Vec<u8>, Seen)> = (0..)
        .zip(&expected.order)
        .map(|(global, delivery)| {
            let id = expected.events[&delivery.position].id.clone();
            (delivery.stream.clone(), (global, delivery.local, id))
        })
        .collect();
    assert!(order.len() > 400 && store.stats().segments > 2, "{} events", order.len());
    for Subscriber { kind, first, next, mut all } in subscribers {
        let (first, next) = (first.expect("was there"), next.expect("was there"));
        let mut rest = kind.subscribe(&store, next);
        while let Some(event) = rest.try_next().expect("reads") {
            all.push(seen(&event));
        }
        assert_eq!(rest.next_sequence(), store.delivered().max(next), "{kind:?}");
        let wanted: Vec<Seen> = order
            .iter()
            .filter(|(stream, seen)| kind.wants(stream) && seen.0 >= first)
            .map(|(_, seen)| seen.clone())
            .collect();
        assert!(all == wanted, "{kind:?} from {first}: {} of {}", all.len(), wanted.len());
    }
    for (stream, (global, local, _)) in order.iter().step_by(7) {
        let mut at = store.subscribe_stream_at(stream, *local).expect("subscribes");
        let event = at.try_next().expect("reads").expect("is there");
        assert_eq!((event.global(), event.local()), (*global, *local));
    }
}

#[test]
fn a_subscription_from_now_misses_nothing_that_is_under_way() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let store = &store;
            scope.spawn(move || {
                let name = format!("s{thread}");
                let appender =
                    store.appender_with(&name, acked(Ack::Ordered)).expect("an appender");
                for round in 0..60 {
                    let ticket = appender.append("under way").expect("accepted");
                    if round % 3 == 0 {
                        std::thread::yield_now();
                    }
                    let token = store.delivered();
                    let visible = store.read(..token).expect("reads").count() as u64;
                    assert_eq!(visible, token);
                    let kind = &[Kind::All, Kind::Prefix("s"), Kind::Streams(&["s0", "s1", "s2"])];
                    let mut later = kind[round % 3].subscribe(store, Start::Now);
                    let mut of_stream = store.subscribe_stream(&name, token).expect("subscribes");
                    let first = later.next_sequence();
                    assert!(first >= token);
                    let receipt = ticket.wait().expect("appended");
                    let [Placement::Delivered { global, .. }] = receipt.placements[..] else {
                        panic!("{receipt:?}");
                    };
                    if global >= first {
                        let found =
                            later.find(|event| event.as_ref().expect("reads").global() == global);
                        assert!(found.is_some());
                    }
                    if global >= token {
                        let next = of_stream.next().expect("goes on").expect("reads");
                        assert_eq!(next.global(), global);
                    }
                }
            });
        }
    });
}

#[test]
fn any_start_is_as_good_as_another() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let far = [1 << 63, u64::MAX - 1, u64::MAX];
    let mut none: Vec<Subscription> = Vec::new();
    for from in far {
        none.extend(KINDS.iter().map(|kind| kind.subscribe(&store, from)));
        none.push(store.subscribe_stream_at("a-0", from).expect("subscribes"));
    }
    let mut third = store.subscribe_stream_at("a-0", 3).expect("subscribes");
    for number in 0..6 {
        append(&store, "a-0", "event");
        append(&store, "b-0", "event");
        let next = third.try_next().expect("reads");
        assert_eq!(next.map(|event| event.local()), (number >= 3).then_some(number));
        for subscription in &mut none {
            assert!(subscription.try_next().expect("reads").is_none());
            assert!(subscription.next_timeout(Duration::ZERO).expect("reads").is_none());
        }
    }
    let ahead = store.cursor("far ahead").expect("a cursor");
    ahead.commit(7).expect("commits");
    let mut from_cursor = store.subscribe_stream("b-0", &ahead).expect("subscribes");
    let next = from_cursor.next().expect("goes on").expect("reads");
    assert_eq!((next.global(), next.local()), (7, 3));
}

/// A long way through events of others ends with the store.
#[test]
fn a_look_for_events_that_are_rare_ends_with_the_store() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let mut batch = MixedBatch::new();
    for _ in 0..20_000 {
        batch.push("others", &Event::new("")).expect("within the limits");
    }
    batch.push("rare", &Event::new("")).expect("within the limits");
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    let mut filtered = store.subscribe_prefix("rare", 0).expect("subscribes");
    let mut stream = store.subscribe_stream("rare", 0).expect("subscribes");
    store.close().expect("closes");
    assert!(matches!(filtered.try_next(), Err(ReadError::Closed)));
    let next = filtered.next_sequence();
    assert!(next > 0 && next < 20_000, "{next}");
    assert!(filtered.next().is_none(), "it stays so");
    // By its links, the stream has no long way.
    assert_eq!(stream.next().expect("goes on").expect("reads").global(), 20_000);
    assert!(stream.next().is_none());
    let store = open(&storage);
    let mut again = store.subscribe_prefix("rare", next).expect("subscribes");
    assert_eq!(again.next().expect("goes on").expect("reads").global(), 20_000);
}

/// How often a thread of this process has gone to sleep so far.
#[cfg(target_os = "linux")]
fn sleeps(thread: &str) -> u64 {
    let path = format!("/proc/self/task/{thread}/status");
    let status = std::fs::read_to_string(path).expect("the thread is there");
    let mut lines = status.lines();
    let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.and_then(|count| count.trim().parse().ok()).expect("Linux counts")
}

/// The sleeps of all these threads, once none of them wakes any more.
#[cfg(target_os = "linux")]
fn sleeps_of_all(threads: &[String]) -> u64 {
    let mut before = u64::MAX;
    loop {
        let now = threads.iter().map(|thread| sleeps(thread)).sum();
        if now == before {
            return now;
        }
        before = now;
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Two of three for a stream of their own, the third for a prefix or for a set.
#[test]
fn thousands_of_waiters_wake_for_their_own_streams_and_at_the_end() {
    const WAITERS: usize = 2000;
    const APPENDS: u64 = 200;
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let mut waiting = Vec::new();
    let (woken_in, woken) = channel();
    let (names_in, names) = channel();
    for number in 0..WAITERS {
        let name = format!("idle-{number}-");
        let subscription = match number % 6 {
            0 => store.subscribe_prefix(&name, 0),
            3 => store.subscribe_streams([&name, "never"], Start::Now),
            _ => store.subscribe_stream(&name, 0),
        };
        let mut subscription = subscription.expect("subscribes");
        let (woken, names) = (woken_in.clone(), names_in.clone());
        let wait = move || {
            let link = std::fs::read_link("/proc/thread-self").unwrap_or_default();
            let name = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
            names.send(name).expect("somebody counts");
            let first = subscription.next().map(|event| event.expect("reads").stream().to_vec());
            woken.send(()).expect("somebody counts");
            (first, subscription.next().is_none())
        };
        let thread = std::thread::Builder::new().stack_size(128 << 10);
        waiting.push(thread.spawn(wait).expect("starts"));
    }
    let threads: Vec<String> = names.iter().take(WAITERS).collect();
    #[cfg(target_os = "linux")]
    let before = sleeps_of_all(&threads);
    for _ in 0..APPENDS {
        append(&store, "busy", "event");
    }
    #[cfg(target_os = "linux")]
    {
        // A place is shared by some six of those who wait for a stream. All of them would be 2,000.
        let each = (sleeps_of_all(&threads) - before) as f64 / APPENDS as f64;
        println!("an append wakes {each} of {WAITERS} that wait for something else");
        assert!(each < 60.0, "an append wakes {each}");
    }
    drop(threads);
    for number in (0..WAITERS).step_by(9) {
        append(&store, &format!("idle-{number}-"), "event");
        woken.recv_timeout(SOON).expect("its waiter wakes");
    }
    assert!(woken.try_recv().is_err(), "nobody else does");
    store.close().expect("closes");
    soon("the waiters", move || {
        let _woken = woken;
        for (number, thread) in waiting.into_iter().enumerate() {
            let name = format!("idle-{number}-").into_bytes();
            let wanted = (number % 9 == 0).then_some(name);
            assert_eq!(thread.join().expect("ends"), (wanted, true));
        }
    });
}

/// Not a test of anything: what waiters cost an appender, in numbers. `cargo test --release .. -- --ignored`
#[test]
#[ignore = "a measurement"]
fn what_a_thousand_waiters_cost_an_appender() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let appends = |what: &str| {
        let appender = store.appender_with("busy", acked(Ack::Ordered)).expect("an appender");
        let begun = Instant::now();
        for _ in 0..5000 {
            appender.append("event").expect("accepted").wait().expect("appended");
        }
        println!("{what}: {:?} an append", begun.elapsed() / 5000);
    };
    appends("warm up");
    appends("nobody waits");
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let wait = |number: usize, of_stream: bool| {
            let store = store.clone();
            move || {
                let mut subscription = match of_stream {
                    true => store.subscribe_stream(format!("idle-{number}"), Start::Now),
                    false => store.subscribe_prefix(format!("idle-{number}"), Start::Now),
                }
                .expect("subscribes");
                while !is_over.load(Ordering::Relaxed) {
                    let next = subscription.next_timeout(Duration::from_millis(500));
                    assert!(next.expect("reads").is_none());
                }
            }
        };
        let streams: Vec<_> = (0..1000).map(|number| scope.spawn(wait(number, true))).collect();
        std::thread::sleep(Duration::from_millis(600));
        appends("1,000 wait for events of other streams");
        is_over.store(true, Ordering::Relaxed);
        streams.into_iter().for_each(|thread| thread.join().expect("ends"));
        is_over.store(false, Ordering::Relaxed);
        (0..1000).for_each(|number| drop(scope.spawn(wait(number, false))));
        std::thread::sleep(Duration::from_millis(600));
        appends("1,000 wait for events of other prefixes");
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_barrier_ends_when_readers_can_see() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let event = |id| Barrier::Event { stream: b"s", id };
    for barrier in [Barrier::Sequence(0), event(b"child"), Barrier::Sequence(u64::MAX)] {
        let seen = store.wait_for_timeout(barrier, Duration::from_millis(1)).expect("waits");
        assert!(!seen, "{barrier:?}");
    }
    let appender = store.appender("s").expect("an appender");
    let child = Event::new("").id("child").parents(["parent"]);
    let receipt =
        appender.submit(Batch::from([child])).expect("accepted").wait().expect("appended");
    store.wait_for(&receipt).expect("it is ordered, and held");
    assert!(!store.wait_for_timeout(event(b"child"), Duration::ZERO).expect("waits"));
    let waiting = {
        let store = store.clone();
        std::thread::spawn(move || {
            store.wait_for(Barrier::Event { stream: b"s", id: b"child" }).expect("comes");
            assert!(store.get("s", "child").expect("gets").is_some());
            store.wait_for(Barrier::Sequence(1)).expect("is there");
        })
    };
    append(&store, "t", "of another stream");
    assert!(!waiting.is_finished());
    let parent = Event::new("").id("parent").parents::<&str>([]);
    let receipt =
        appender.submit(Batch::from([parent])).expect("accepted").wait().expect("appended");
    assert!(store.wait_for_timeout(&receipt, SOON).expect("waits"));
    assert!(store.wait_for_timeout(event(b"child"), Duration::ZERO).expect("waits"));
    soon("the barrier", move || waiting.join().expect("ends"));
}

#[test]
fn a_barrier_ends_with_the_store() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let barriers = [
        Barrier::Position(u64::MAX),
        Barrier::Sequence(7),
        Barrier::Event { stream: b"s", id: b"never" },
    ];
    let waiting = barriers.map(|barrier| {
        let store = store.clone();
        std::thread::spawn(move || store.wait_for(barrier))
    });
    append(&store, "s", "something else");
    store.close().expect("closes");
    soon("the barriers", move || {
        for thread in waiting {
            assert!(matches!(thread.join().expect("ends"), Err(ReadError::Closed)));
        }
    });
    for barrier in barriers {
        assert!(matches!(store.wait_for_timeout(barrier, SOON), Err(ReadError::Closed)));
    }
    store.wait_for(Barrier::Sequence(0)).expect("can be seen all the same");
}

#[test]
fn a_failure_ends_every_wait_with_its_cause() {
    let storage = Faulty::default();
    let store = open_faulty(&storage);
    for _ in 0..3 {
        append(&store, "a-0", "before");
    }
    let cursor = store.cursor("c").expect("a cursor");
    let is_cause = |error: &ReadError| matches!(error, ReadError::Poisoned(Cause::Log(_)));
    let barriers = [
        Barrier::Position(u64::MAX),
        Barrier::Sequence(7),
        Barrier::Event { stream: b"a-0", id: b"never" },
    ];
    let waiting: Vec<_> = KINDS
        .iter()
        .map(|kind| {
            let mut subscription = kind.subscribe(&store, 1);
            std::thread::spawn(move || {
                let count = subscription.by_ref().take_while(Result::is_ok).count();
                (count, subscription.next().is_none(), subscription.next_timeout(SOON))
            })
        })
        .collect();
    let waiting_for = barriers.map(|barrier| {
        let store = store.clone();
        std::thread::spawn(move || store.wait_for(barrier))
    });
    storage.fail(Fault { error: io::ErrorKind::Other, ..Fault::always(Op::Sync, "segment") });
    assert!(matches!(cursor.commit(2), Err(CursorError::Failed(_))));
    soon("the waits", move || {
        for (kind, thread) in KINDS.iter().zip(waiting) {
            let (count, is_over, error) = thread.join().expect("ends");
            assert_eq!(count, if kind.wants(b"a-0") { 2 } else { 0 }, "what was there came");
            assert!(is_over && is_cause(&error.expect_err("has stopped")), "{kind:?}");
        }
        for thread in waiting_for {
            assert!(is_cause(&thread.join().expect("ends").expect_err("has stopped")));
        }
    });
    let late = [cursor.commit(3), cursor.commit_relaxed(3), cursor.reset(0), cursor.remove()];
    for result in late {
        assert!(matches!(result, Err(CursorError::Refused(Refusal::Poisoned(_)))), "{result:?}");
    }
    assert_eq!(cursor.at(), 0, "a mark that is not durable is not seen");
}
