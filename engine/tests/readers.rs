//! Readers see the committed prefix: whole, in order, without holes, while appends go on and after.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Rng, acked, check, expected, shared, wild_event};
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, Batch, Event, MixedBatch, Options, Placement, ReadError, Store, Why};

/// Nothing takes so long unless it hangs.
const SOON: Duration = Duration::from_secs(10);

fn open(storage: &MemoryStorage) -> Store {
    Options::new().orderers(2).segment_bytes(1 << 20).open_on(shared(storage)).expect("opens")
}

/// `count` events of stream `s`, with numbers as ids.
fn filled(count: u64) -> (MemoryStorage, Store) {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, 0..count);
    (storage, store)
}

fn append(store: &Store, numbers: std::ops::Range<u64>) {
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let batch: Batch = numbers.map(|number| Event::new("").id(number.to_string())).collect();
    if !batch.is_empty() {
        appender.submit(batch).expect("accepted").wait().expect("appended");
    }
}

fn globals(read: impl Iterator<Item = Result<Event, ReadError>>) -> Vec<u64> {
    read.map(|event| event.expect("reads").global()).collect()
}

#[test]
fn ranges_of_the_whole_store_and_of_a_stream() {
    let (_storage, store) = filled(20);
    let view = store.stream("s").expect("finds").expect("is there");
    assert_eq!((view.len(), view.is_empty(), view.name()), (20, false, &b"s"[..]));
    assert!(store.stream("nothing").expect("finds").is_none());
    assert!(store.stream("").expect("finds").is_none());
    use std::ops::Bound::{Excluded, Included, Unbounded};
    const MAX: u64 = u64::MAX;
    let cases = [
        ((Unbounded, Unbounded), (0..20).collect::<Vec<u64>>()),
        ((Included(0), Excluded(0)), vec![]),
        ((Included(7), Excluded(7)), vec![]),
        ((Included(9), Excluded(3)), vec![]),
        ((Included(0), Excluded(1)), vec![0]),
        ((Included(19), Excluded(20)), vec![19]),
        ((Included(19), Included(19)), vec![19]),
        ((Excluded(17), Excluded(MAX)), vec![18, 19]),
        ((Included(18), Included(MAX)), vec![18, 19]),
        ((Included(20), Unbounded), vec![]),
        ((Included(21), Excluded(30)), vec![]),
        ((Included(MAX), Unbounded), vec![]),
        ((Included(MAX), Included(MAX)), vec![]),
        ((Excluded(MAX), Unbounded), vec![]),
        ((Excluded(MAX), Included(0)), vec![]),
        ((Included(MAX), Excluded(0)), vec![]),
        ((Unbounded, Included(2)), vec![0, 1, 2]),
        ((Unbounded, Excluded(0)), vec![]),
    ];
    for (range, wanted) in cases {
        let global = store.read(range).expect("reads");
        let hint = global.size_hint();
        assert!(
            hint.0 <= wanted.len() && hint.1.is_some_and(|most| most >= wanted.len()),
            "{hint:?}"
        );
        assert_eq!(globals(global), wanted, "{range:?}");
        assert_eq!(globals(view.read(range).expect("reads")), wanted, "{range:?} of the stream");
    }
    // A view and a read stay what they were.
    let (before, mut read) = (view, store.read(..).expect("reads"));
    append(&store, 20..30);
    assert_eq!((before.len(), before.read(..).expect("reads").count()), (20, 20));
    assert_eq!(read.by_ref().count(), 20);
    assert!(read.next().is_none());
    assert_eq!(store.read(..).expect("reads").count(), 30);
}

#[test]
fn an_empty_store_reads_as_nothing() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    assert_eq!(store.read(..).expect("reads").count(), 0);
    assert_eq!(store.read(u64::MAX..).expect("reads").count(), 0);
    assert!(store.stream("s").expect("finds").is_none());
    assert!(store.get("s", "x").expect("gets").is_none());
    assert!(store.get("", "").expect("gets").is_none());
    assert!(store.subscribe(0).expect("subscribes").try_next().expect("reads").is_none());
    assert_eq!((store.held().expect("held"), store.streams().expect("streams")), (vec![], vec![]));
    assert_eq!(store.why_held("s", "x").expect("answers"), Why::Unknown);
    store.wait_committed(0).expect("nothing is committed at once");
    store.wait_committed(store.durable_end()).expect("and so is the beginning");
}

#[test]
fn a_long_stream_among_others_reads_by_local_sequence() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let (len, mut rng) = (5000_u64, Rng(4));
    let mut wanted = Vec::new();
    let mut number = 0;
    while (wanted.len() as u64) < len {
        let mut batch = MixedBatch::new();
        let mut mine = Vec::new();
        for index in 0..200 {
            let stream = rng.below(4);
            batch.push(format!("s{stream}"), &Event::new(format!("{number}"))).expect("fits");
            if stream == 1 {
                mine.push((index, number));
            }
            number += 1;
        }
        let receipt =
            store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
        for (index, number) in mine {
            let Placement::Delivered { global, local } = receipt.placements[index] else {
                panic!()
            };
            assert_eq!(local, wanted.len() as u64);
            wanted.push((global, format!("{number}").into_bytes()));
        }
    }
    let check_view = |store: &Store| {
        let view = store.stream("s1").expect("finds").expect("is there");
        assert_eq!(view.len(), wanted.len() as u64);
        let mut rng = Rng(8);
        let mut ranges =
            vec![(0, view.len()), (511, 513), (4095, 4097), (view.len() - 1, view.len())];
        ranges.extend((0..300).map(|_| {
            let from = rng.below(view.len());
            (from, from + rng.below(700))
        }));
        for (from, to) in ranges {
            let read: Vec<(u64, Vec<u8>)> = view
                .read(from..to)
                .expect("reads")
                .map(|event| event.expect("reads"))
                .inspect(|event| assert_eq!(event.stream(), b"s1"))
                .map(|event| (event.global(), event.payload().to_vec()))
                .collect();
            let to = (to as usize).min(wanted.len());
            assert!(read == wanted[from as usize..to], "{from}..{to}");
        }
    };
    check_view(&store);
    store.close().expect("closes");
    check_view(&store);
    check_view(&open(&storage));
}

#[test]
fn a_subscription_begins_where_it_is_told() {
    let (_storage, store) = filled(10);
    for from in [0, 4, 9] {
        let mut subscription = store.subscribe(from).expect("subscribes");
        for global in from..10 {
            assert_eq!(subscription.next_sequence(), global);
            let event = subscription.next().expect("goes on").expect("reads");
            assert_eq!(event.global(), global);
        }
        assert!(subscription.try_next().expect("reads").is_none());
        let begun = Instant::now();
        assert!(subscription.next_timeout(Duration::from_millis(20)).expect("waits").is_none());
        assert!(begun.elapsed() >= Duration::from_millis(20));
        assert!(subscription.next_timeout(Duration::ZERO).expect("asks").is_none());
        assert_eq!(subscription.next_sequence(), 10);
    }
    // One that begins beyond the end sees nothing before its number.
    let mut beyond = store.subscribe(13).expect("subscribes");
    let mut last = store.subscribe(u64::MAX).expect("subscribes");
    let waiting =
        std::thread::spawn(move || beyond.next().expect("goes on").expect("reads").global());
    for number in 10..15 {
        assert!(number > 13 || !waiting.is_finished(), "before its number");
        append(&store, number..number + 1);
    }
    assert_eq!(waiting.join().expect("ends"), 13);
    assert!(last.try_next().expect("reads").is_none());
    assert!(last.next_timeout(Duration::ZERO).expect("asks").is_none());
}

#[test]
fn subscribers_during_appends_see_the_order_without_holes() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let (threads, batches) = (3_u64, 60_u64);
    let seen = std::thread::scope(|scope| {
        let subscribers: Vec<_> = (0..6_u64)
            .map(|number| {
                let store = store.clone();
                scope.spawn(move || {
                    let from = if number < 3 { 0 } else { number * 20 };
                    let mut subscription = store.subscribe(from).expect("subscribes");
                    let mut seen = Vec::new();
                    loop {
                        let event = match number % 3 {
                            0 => subscription.next().transpose().expect("reads"),
                            1 => match subscription.next_timeout(SOON) {
                                Ok(event) => Some(event.expect("not so long")),
                                Err(ReadError::Closed) => None,
                                Err(error) => panic!("{error}"),
                            },
                            _ => match subscription.try_next().expect("reads") {
                                Some(event) => Some(event),
                                None => subscription.next().transpose().expect("reads"),
                            },
                        };
                        let Some(event) = event else { return (from, seen) };
                        // A chained event's parents are found through the order log.
                        let parents = event.parents().expect("parents").len();
                        assert!(event.local() > 0 || parents == 0);
                        seen.push((event.global(), event.position(), event.id().to_vec()));
                    }
                })
            })
            .collect();
        let appenders: Vec<_> = (0..threads)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    let mut rng = Rng(thread);
                    for round in 0..batches {
                        let mut batch = MixedBatch::new();
                        for _ in 0..8 {
                            let payload = vec![0; rng.below(3000) as usize];
                            let event = wild_event(&mut rng, round, 60, payload);
                            batch.push(format!("s{}", rng.below(5)), &event).expect("fits");
                        }
                        store
                            .submit(batch, Ack::Durable)
                            .expect("accepted")
                            .wait()
                            .expect("appended");
                    }
                })
            })
            .collect();
        appenders.into_iter().for_each(|thread| thread.join().expect("appends"));
        store.wait_committed(store.durable_end()).expect("committed");
        store.close().expect("closes");
        subscribers.into_iter().map(|thread| thread.join().expect("reads")).collect::<Vec<_>>()
    });
    let expected = expected(&storage);
    let order: Vec<(u64, u64, Vec<u8>)> = (0..)
        .zip(&expected.order)
        .map(|(global, delivery)| {
            (global, delivery.position, expected.events[&delivery.position].id.clone())
        })
        .collect();
    assert!(order.len() > 150, "{}", order.len());
    for (from, seen) in seen {
        assert!(seen == order[from as usize..], "from {from}: {} of {}", seen.len(), order.len());
    }
    check(&open(&storage), &expected);
}

#[test]
fn looking_up_during_appends_finds_what_is_delivered() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let done = AtomicBool::new(false);
    let len = 3000_u64;
    std::thread::scope(|scope| {
        for reader in 0..2_u64 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                let mut rng = Rng(reader);
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    // What is delivered now is found now.
                    let delivered = store.stats().delivered;
                    assert!(delivered >= most, "never backwards");
                    most = delivered;
                    if delivered == 0 {
                        continue;
                    }
                    let number = rng.below(delivered);
                    let id = number.to_string();
                    let event = store.get("s", &id).expect("gets").expect("is delivered");
                    assert_eq!((event.global(), event.id()), (number, id.as_bytes()));
                    let view = store.stream("s").expect("finds").expect("is there");
                    assert!(view.len() >= delivered);
                    let last = view.read(delivered - 1..delivered).expect("reads").next();
                    assert_eq!(last.expect("one").expect("reads").global(), delivered - 1);
                    let read = store.read(number..).expect("reads").take(3);
                    for (event, global) in read.zip(number..) {
                        assert_eq!(event.expect("reads").global(), global);
                    }
                    // What is not there, or not yet, is nothing, and never another event.
                    assert!(store.get("s", format!("{}", len + 1)).expect("gets").is_none());
                    assert!(store.get("t", &id).expect("gets").is_none());
                    if let Some(event) = store.get("s", (delivered + 5).to_string()).expect("gets")
                    {
                        assert_eq!(event.global(), delivered + 5);
                    }
                }
            });
        }
        let mut rng = Rng(2);
        let mut next = 0;
        while next < len {
            let end = (next + 1 + rng.below(20)).min(len);
            append(&store, next..end);
            next = end;
        }
        done.store(true, Ordering::Relaxed);
    });
    check(&store, &expected(&storage));
}

#[test]
fn events_outlive_everything_they_came_from() {
    let (storage, store) = filled(5);
    let event = store.get("s", "3").expect("gets").expect("is there");
    let copy = event.to_owned().expect("copies");
    let other = event.clone();
    store.close().expect("closes");
    drop((store, storage, event));
    assert_eq!((other.id(), other.stream(), other.payload()), (&b"3"[..], &b"s"[..], &b""[..]));
    assert_eq!(other.parents().expect("parents"), [b"2"]);
    assert_eq!(other.to_owned().expect("copies"), copy);
    assert!(other.is_chained());
    assert!(format!("{other:?}").contains("global: 3"));
}
