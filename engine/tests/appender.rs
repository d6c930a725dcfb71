//! The rules of the appender: what a submit waits for, in which order batches are stored and answered,
//! that every accepted batch is answered exactly once, and what ends an appender.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Rng, SOON, acked, append, expected, keep, shared, soon};
use faulty::{Fault, Faulty, Op, open, options};
use thalweg::{
    Ack, AppendFailure, AppenderOptions, Batch, Cause, CloseError, Event, FlushError, LimitError,
    MixedBatch, Options, Outcome, Placement, Receipt, Refusal, Rejection, Store, StreamAppender,
    Ticket,
};

const SEGMENT: &str = "segment-0000000000000001";
const NEXT_SEGMENT: &str = "segment-0000000000000002";
const ACKS: [Ack; 2] = [Ack::Durable, Ack::Ordered];

fn pipeline(batches: usize) -> AppenderOptions {
    AppenderOptions::new().pipeline(batches)
}

fn one(payload: impl Into<Vec<u8>>) -> Batch {
    Batch::from([Event::new(payload)])
}

/// Payloads of everything in the log, in its order, by stream.
fn stored(storage: &Faulty) -> BTreeMap<String, Vec<String>> {
    let mut streams: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in expected(&storage.inner.fork()).events.into_values() {
        let payload = String::from_utf8(event.payload[..event.payload.len().min(32)].to_vec());
        let stream = String::from_utf8(event.stream).expect("text");
        streams.entry(stream).or_default().push(payload.expect("text"));
    }
    streams
}

/// Holds the disk, and has the writer wait for it with a batch of another appender in hand: what is
/// submitted now stays in the queue.
fn hold_the_writer(store: &Store, storage: &Faulty) -> Ticket {
    storage.hold(Op::Sync, SEGMENT);
    let ticket = store.appender("held").expect("an appender").append("held").expect("accepted");
    storage.wait_until_one_waits();
    ticket
}

/// The outcome of a ticket; fails if there is none.
fn outcome(mut ticket: Ticket) -> Outcome {
    ticket.wait_timeout(SOON).expect("completes")
}

/// Does something on a thread of its own that has to wait.
fn blocked<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let thread = std::thread::spawn(what);
    std::thread::sleep(Duration::from_millis(30));
    assert!(!thread.is_finished(), "it does not wait");
    thread
}

fn ended<T: Send + 'static>(name: &str, thread: JoinHandle<T>) -> T {
    soon(name, move || thread.join().expect("no panic"))
}

fn is_full(refused: &Refusal) -> bool {
    matches!(refused, Refusal::Full)
}

fn is_aborted(failure: &AppendFailure) -> bool {
    matches!(failure, AppendFailure::NotAppended(Cause::Aborted))
}

// The pipeline.

#[test]
fn the_default_pipeline_holds_two_batches() {
    assert_eq!(AppenderOptions::PIPELINE_DEFAULT, 2);
    let storage = Faulty::default();
    let store = open(&storage);
    let _held = hold_the_writer(&store, &storage);
    let appender = store.appender("s").expect("an appender");
    let _tickets = [0, 1].map(|number| appender.try_submit(one([number])).expect("room"));
    assert!(is_full(&appender.try_submit(one("no room")).expect_err("full").reason));
    storage.let_go();
}

#[test]
fn a_pipeline_out_of_range_is_refused_by_name() {
    let store = open(&Faulty::default());
    let max = AppenderOptions::PIPELINE_MAX;
    for batches in [0, max + 1, usize::MAX] {
        for refused in [
            store.appender_with("s", pipeline(batches)).map(drop),
            store.mixed_appender(pipeline(batches)).map(drop),
        ] {
            let Err(Refusal::Option { name, detail }) = refused else { panic!("{refused:?}") };
            assert_eq!(name, "pipeline");
            assert!(detail.contains(&format!("1 to {max} batches, not {batches}")), "{detail}");
        }
    }
    let refused = store.appender_with("s", AppenderOptions::new().pipeline_bytes(0));
    assert!(matches!(refused, Err(Refusal::Option { name: "pipeline_bytes", .. })), "{refused:?}");
    for batches in [1, max] {
        let appender = store.appender_with("s", pipeline(batches)).expect("in range");
        appender.append("x").expect("accepted").wait().expect("appended");
    }
}

/// The range and the defaults are also said in words; words drift.
#[test]
fn the_documented_pipeline_is_the_real_one() {
    let source = include_str!("../src/options.rs");
    let doc_of = |function: &str| {
        let (before, _) = source.split_once(function).expect("the function is there");
        let lines = before.lines().rev().filter(|line| !line.trim().starts_with("#["));
        let lines = lines.skip_while(|line| line.trim().is_empty());
        let doc = lines.map_while(|line| line.trim().strip_prefix("///"));
        let mut doc: Vec<&str> = doc.map(str::trim).collect();
        doc.reverse();
        doc.join(" ")
    };
    let doc = doc_of("pub fn pipeline(");
    let (default, max) = (AppenderOptions::PIPELINE_DEFAULT, AppenderOptions::PIPELINE_MAX);
    assert!(doc.contains(&format!("1 to {max}. Default: {default},")), "{doc}");
    let doc = doc_of("pub fn pipeline_bytes(");
    let mib = AppenderOptions::PIPELINE_BYTES_DEFAULT >> 20;
    assert_eq!(mib << 20, AppenderOptions::PIPELINE_BYTES_DEFAULT);
    assert!(doc.contains(&format!("Default: {mib} MiB.")), "{doc}");
}

#[test]
fn a_submit_waits_when_the_pipeline_is_full_and_not_before() {
    for ack in ACKS {
        for depth in 1..=16 {
            let storage = Faulty::default();
            let store = open(&storage);
            keep(&store);
            let _held = hold_the_writer(&store, &storage);
            let appender = store.appender_with("s", pipeline(depth).ack(ack)).expect("an appender");
            let filled = appender.clone();
            let tickets = soon("submit", move || {
                let submit = |number| filled.append(format!("{number}")).expect("accepted");
                (0..depth).map(submit).collect::<Vec<_>>()
            });
            assert!(is_full(&appender.try_submit(one("no room")).expect_err("full").reason));
            let waiting = appender.clone();
            let waiting = blocked(move || waiting.append("late"));
            storage.let_go();
            // Nobody has read a ticket: the place is free when the batch is acknowledged.
            let late = ended("submit", waiting).expect("accepted").wait().expect("appended");
            for ticket in tickets {
                assert!(ticket.wait().expect("appended").end <= late.position);
            }
            store.close().expect("closes");
        }
    }
}

#[test]
fn a_place_is_free_again_when_the_callback_has_returned() {
    for ack in ACKS {
        for depth in [1, 2, 5, 16] {
            let storage = Faulty::default();
            let store = open(&storage);
            let appender = store.appender_with("s", pipeline(depth).ack(ack)).expect("an appender");
            let (called_in, called) = channel();
            let mut returns = Vec::new();
            for number in 0..depth {
                let (return_in, may_return) = channel::<()>();
                let called = called_in.clone();
                let callback = move |outcome: Outcome| {
                    called.send(outcome.is_ok()).expect("the test listens");
                    may_return.recv().expect("the test says when");
                };
                appender.submit_with(one(format!("{number}")), callback).expect("accepted");
                returns.push(return_in);
            }
            for may_return in returns {
                assert!(called.recv_timeout(SOON).expect("called"), "appended");
                // All of them are durable, and yet there is no room.
                let other = store.appender_with("other", acked(ack)).expect("an appender");
                other.append("x").expect("accepted").wait().expect("appended");
                assert!(is_full(&appender.try_submit(one("no")).expect_err("full").reason));
                let waiting = appender.clone();
                let waiting =
                    blocked(move || waiting.submit_with(one("late"), |_| {}).expect("accepted"));
                assert!(called.try_recv().is_err(), "callbacks run one at a time");
                may_return.send(()).expect("the callback waits");
                ended("submit", waiting);
            }
            soon("close", move || appender.close()).expect("closes");
        }
    }
}

#[test]
fn bytes_fill_the_pipeline_too_and_a_large_batch_goes_alone() {
    let storage = Faulty::default();
    let store = open(&storage);
    let held = hold_the_writer(&store, &storage);
    let options = pipeline(100).pipeline_bytes(1000);
    let appender = store.appender_with("s", options).expect("an appender");
    let first = appender.try_submit(one([1; 400])).expect("room");
    assert!(is_full(&appender.try_submit(one([2; 700])).expect_err("full").reason));
    appender.try_submit(one([3; 200])).expect("room");
    // It is larger than the pipeline, so it waits for everything before it, and goes alone.
    let large = appender.clone();
    let large = blocked(move || large.submit(one([4; 100_000])).expect("accepted"));
    storage.let_go();
    held.wait().expect("appended");
    ended("submit", large).wait().expect("appended");
    first.wait().expect("appended");
    storage.hold(Op::Sync, SEGMENT);
    let large = appender.try_submit(one([5; 100_000])).expect("it is alone");
    storage.wait_until_one_waits();
    assert!(is_full(&appender.try_submit(one([6; 1])).expect_err("full").reason));
    storage.let_go();
    large.wait().expect("appended");
    appender.append("small").expect("accepted").wait().expect("appended");
}

/// A wait that was over took the appender with it, and everything that was under way.
#[test]
fn a_timeout_for_a_place_touches_that_call_alone() {
    let storage = Faulty::default();
    let store = open(&storage);
    let _held = hold_the_writer(&store, &storage);
    let appender = store.appender_with("s", pipeline(1)).expect("an appender");
    let first = appender.append("first").expect("accepted");
    let late = one("late");
    for timeout in [Duration::ZERO, Duration::from_millis(20)] {
        let refused = appender.submit_timeout(late.clone(), timeout).expect_err("no room");
        assert!(matches!(refused.reason, Refusal::TimedOut), "{:?}", refused.reason);
        assert_eq!(refused.batch, late, "it comes back whole");
    }
    let waiting = appender.clone();
    let waiting = blocked(move || waiting.append("second").expect("accepted"));
    storage.let_go();
    first.wait().expect("appended");
    ended("submit", waiting).wait().expect("appended");
    let third = appender.submit_timeout(one("third"), Duration::MAX).expect("accepted");
    third.wait().expect("appended");
    store.close().expect("closes");
    assert_eq!(stored(&storage)["s"], ["first", "second", "third"]);
}

/// The same for the queue of the store, which all appenders share: what was taken of the pipeline
/// comes back.
#[test]
fn a_timeout_for_the_queue_touches_that_call_alone() {
    let storage = Faulty::default();
    let store = options().queue_bytes(1).open_on(Arc::new(storage.clone())).expect("opens");
    keep(&store);
    let _held = hold_the_writer(&store, &storage);
    let appender = store.appender_with("s", pipeline(1)).expect("an appender");
    for _ in 0..3 {
        assert!(is_full(&appender.try_submit(one("late")).expect_err("no room").reason));
        let refused = appender.submit_timeout(one("late"), Duration::from_millis(5));
        let reason = refused.expect_err("no room").reason;
        assert!(matches!(reason, Refusal::TimedOut), "{reason:?}");
    }
    storage.let_go();
    let goes_on = soon("submit", move || appender.append("goes on").expect("accepted"));
    outcome(goes_on).expect("appended");
    store.close().expect("closes");
    assert_eq!(stored(&storage)["s"], ["goes on"]);
}

#[test]
fn a_dropped_ticket_takes_nothing_back() {
    let storage = Faulty::default();
    let store = open(&storage);
    let appender = store.appender_with("s", pipeline(2)).expect("an appender");
    let submitting = appender.clone();
    soon("submit", move || {
        for number in 0..100 {
            drop(submitting.append(format!("{number}")).expect("accepted"));
            std::mem::forget(submitting.append("leaked").expect("accepted"));
        }
    });
    appender.close().expect("closes");
    assert_eq!(stored(&storage)["s"].len(), 200);
}

/// A producer that waited for room in the store's queue heard neither that its appender was closed,
/// nor that it was aborted.
#[test]
fn a_submit_that_waits_for_the_queue_ends_with_its_appender() {
    for aborts in [false, true] {
        let storage = Faulty::default();
        let store = options().queue_bytes(1).open_on(Arc::new(storage.clone())).expect("opens");
        keep(&store);
        let held = hold_the_writer(&store, &storage);
        let appender = store.appender("s").expect("an appender");
        let waiting = appender.clone();
        let waiting = blocked(move || waiting.append("no room").expect_err("no room").reason);
        if aborts {
            appender.abort();
            let reason = ended("submit", waiting);
            assert!(matches!(&reason, Refusal::Stopped(failure) if is_aborted(failure)));
        } else {
            let closing = appender.clone();
            soon("close", move || closing.close()).expect("nothing was accepted");
            let reason = ended("submit", waiting);
            assert!(matches!(reason, Refusal::Closed), "{reason:?}");
        }
        let other = store.appender("t").expect("an appender");
        let goes_on = blocked(move || other.append("goes on").expect("accepted"));
        storage.let_go();
        held.wait().expect("appended");
        ended("submit", goes_on).wait().expect("appended");
        store.close().expect("closes");
        assert!(!stored(&storage).contains_key("s"));
    }
}

// Order.

fn number_of(payload: &str) -> u64 {
    payload.rsplit('.').next().and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn callbacks_come_in_the_order_of_the_log_whatever_thread_submits() {
    const THREADS: u64 = 8;
    const BATCHES: u64 = 150;
    for ack in ACKS {
        let storage = Faulty::default();
        let store = open(&storage);
        let seen: Arc<Mutex<Vec<(u64, u64, Receipt)>>> = Arc::default();
        let appender = store.appender_with("s", pipeline(5).ack(ack)).expect("an appender");
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (appender, seen) = (appender.clone(), &seen);
                scope.spawn(move || {
                    for number in 0..BATCHES {
                        let batch = (0..1 + number % 3)
                            .map(|part| Event::new(format!("{thread}.{part}.{number}")));
                        let seen = Arc::clone(seen);
                        let callback = move |outcome: Outcome| {
                            let receipt = outcome.expect("appended");
                            seen.lock().unwrap().push((thread, number, receipt));
                        };
                        appender.submit_with(batch.collect(), callback).expect("accepted");
                    }
                });
            }
        });
        appender.flush().expect("flushes");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len() as u64, THREADS * BATCHES);
        assert!(seen.windows(2).all(|two| two[0].2.end <= two[1].2.position), "in their order");
        for thread in 0..THREADS {
            let own = seen.iter().filter(|(other, ..)| *other == thread);
            assert!(own.map(|(_, number, _)| *number).eq(0..BATCHES), "of thread {thread}");
        }
        if ack == Ack::Ordered {
            // All of them are chained, so all are delivered, and batches stay in one piece.
            let places = seen.iter().flat_map(|(_, _, receipt)| &receipt.placements);
            for (place, placement) in (0..).zip(places) {
                let wanted = Placement::Delivered { global: place, local: place };
                assert_eq!(*placement, wanted);
            }
        }
        let mut log = stored(&storage).remove("s").expect("is there").into_iter();
        for (thread, number, receipt) in seen {
            assert_eq!(
                receipt.placements.len() as u64,
                match ack {
                    Ack::Durable => 0,
                    Ack::Ordered => 1 + number % 3,
                }
            );
            for part in 0..1 + number % 3 {
                assert_eq!(log.next(), Some(format!("{thread}.{part}.{number}")));
            }
        }
        assert_eq!(log.next(), None);
    }
}

/// Tickets and both kinds of callbacks are one sequence.
#[test]
fn outcomes_of_all_kinds_come_in_one_order() {
    for ack in ACKS {
        let store = open(&Faulty::default());
        let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
        let see = |seen: &Arc<Mutex<Vec<u64>>>| {
            let seen = Arc::clone(seen);
            move |outcome: Outcome| {
                seen.lock().unwrap().push(outcome.expect("appended").position);
            }
        };
        let options = pipeline(7).ack(ack).on_outcome(see(&seen));
        let appender = store.appender_with("s", options).expect("an appender");
        let mut tickets = Vec::new();
        for number in 0..300 {
            match number % 3 {
                0 => appender.submit_and_forget(one([1])).expect("accepted"),
                1 => appender.submit_with(one([2]), see(&seen)).expect("accepted"),
                _ => tickets.push(appender.submit(one([3])).expect("accepted")),
            }
        }
        appender.flush().expect("flushes");
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 200);
        assert!(seen.is_sorted(), "callbacks in the order of the log");
        let ticketed: Vec<u64> = tickets
            .into_iter()
            .map(|mut ticket| ticket.try_wait().expect("flushed").expect("appended").position)
            .collect();
        assert!(ticketed.is_sorted());
        for (pair, ticket) in seen.chunks(2).zip(ticketed) {
            assert!(pair[1] < ticket, "in the order of the submits");
        }
    }
}

/// Two appenders of one stream, or of two, have no order in general; the submits of one thread do.
#[test]
fn one_thread_keeps_its_order_over_several_appenders() {
    let storage = Faulty::default();
    let store = open(&storage);
    let appenders = ["s", "s", "t"]
        .map(|stream| store.appender_with(stream, pipeline(3)).expect("an appender"));
    let mut tickets = Vec::new();
    for number in 0..300 {
        let appender = &appenders[number * 7 % 3];
        tickets.push(appender.append(format!("{number}")).expect("accepted"));
    }
    let positions: Vec<u64> =
        tickets.into_iter().map(|ticket| ticket.wait().expect("appended").position).collect();
    assert!(positions.is_sorted_by(|one, other| one < other));
    let numbers: Vec<u64> =
        stored(&storage)["s"].iter().map(|payload| number_of(payload)).collect();
    assert!(numbers.is_sorted());
}

/// Producers that waited through a long sync went on as the queue got room, each in its own order.
#[test]
fn producers_that_wait_through_a_long_sync_stay_in_order() {
    let storage = Faulty::default();
    let store = options().queue_bytes(2000).open_on(Arc::new(storage.clone())).expect("opens");
    let held = hold_the_writer(&store, &storage);
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let appender = store.appender_with("s", pipeline(16)).expect("an appender");
            std::thread::spawn(move || {
                for number in 0..100 {
                    appender.append(format!("{thread}.{number}")).expect("accepted");
                }
                appender.flush().expect("flushes");
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    assert!(threads.iter().all(|thread| !thread.is_finished()), "there is no room");
    storage.let_go();
    held.wait().expect("appended");
    for thread in threads {
        ended("a producer", thread);
    }
    let log = stored(&storage).remove("s").expect("is there");
    assert_eq!(log.len(), 400);
    for thread in 0..4 {
        let own = log.iter().filter(|payload| payload.starts_with(&format!("{thread}.")));
        assert!(own.map(|payload| number_of(payload)).eq(0..100));
    }
}

// What is refused, and what is taken.

#[test]
fn an_empty_batch_is_refused_and_the_appender_lives() {
    let store = open(&Faulty::default());
    let appender = store.appender("s").expect("an appender");
    let mixed = store.mixed_appender(AppenderOptions::new()).expect("an appender");
    let end = store.durable_end();
    for _ in 0..3 {
        let refused = appender.submit(Batch::new()).expect_err("empty");
        assert!(matches!(refused.reason, Refusal::Empty), "{:?}", refused.reason);
        let not_called = |_| unreachable!("it was refused");
        let refused = appender.submit_with(Batch::new(), not_called).expect_err("empty");
        assert!(matches!(refused.reason, Refusal::Empty), "{:?}", refused.reason);
        let refused = mixed.submit(MixedBatch::new()).expect_err("empty");
        assert!(matches!(refused.reason, Refusal::Empty), "{:?}", refused.reason);
    }
    assert_eq!(store.durable_end(), end);
    appender.append("x").expect("accepted").wait().expect("appended");
    appender.close().expect("closes");
    mixed.close().expect("closes");
}

#[test]
fn an_empty_payload_is_an_event_like_any_other() {
    let store = open(&Faulty::default());
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let batch = Batch::from([Event::new(""), Event::new("x"), Event::new("").id("last")]);
    let receipt = appender.submit(batch).expect("accepted").wait().expect("appended");
    assert_eq!(receipt.placements.len(), 3);
    let payloads: Vec<Vec<u8>> = store
        .read(..)
        .expect("reads")
        .map(|event| event.expect("reads").payload().to_vec())
        .collect();
    assert_eq!(payloads, [&b""[..], b"x", b""]);
}

#[test]
fn what_is_too_large_is_refused_by_name_before_anything_is_written() {
    const MIB: usize = 1 << 20;
    let storage = Faulty::default();
    let store = open(&storage);
    append(&store, "s", "before");
    let (end, writes) = (store.durable_end(), storage.on_segments(Op::Write, "thalweg-writer"));
    for len in [0, 256] {
        let refused = store.appender(vec![b'n'; len]).map(drop);
        assert!(
            matches!(refused, Err(Refusal::Limit(LimitError::Stream { len: other })) if other == len),
            "{refused:?}"
        );
    }
    let appender = store.appender(vec![b'n'; 255]).expect("it fits");
    let fits = Event::new("fits");
    let large = [
        (fits.clone().id(""), LimitError::Id { len: 0 }, "1 to 64 bytes"),
        (fits.clone().id([1; 65]), LimitError::Id { len: 65 }, "1 to 64 bytes"),
        (fits.clone().parents(["a", ""]), LimitError::Parent { index: 1, len: 0 }, "1 to 64"),
        (fits.clone().parents([[2; 65]]), LimitError::Parent { index: 0, len: 65 }, "1 to 64"),
        (
            Event::new(vec![3; 32 * MIB + 1]),
            LimitError::Payload { len: 32 * MIB + 1 },
            "at most 33554432 bytes",
        ),
    ];
    for (event, limit, said) in large {
        // Behind one that fits: all of the batch is refused.
        let batch = Batch::from([fits.clone(), event]);
        let refused = appender.submit(batch.clone()).expect_err("too large");
        assert!(matches!(refused.reason, Refusal::Limit(other) if other == limit), "{limit:?}");
        assert!(refused.to_string().contains(said), "{refused}");
        assert!(refused.batch == batch, "it comes back whole");
    }
    assert_eq!(store.durable_end(), end);
    assert_eq!(storage.on_segments(Op::Write, "thalweg-writer"), writes);
    // Of what was refused, nothing is in a buffer that serves again.
    let largest_id = fits.id([5; 64]).parents([[6; 64]]);
    appender.append_event(largest_id).expect("accepted").wait().expect("appended");
    let (end, writes) = (store.durable_end(), storage.on_segments(Op::Write, "thalweg-writer"));
    let batch = Batch::from(vec![Event::new(vec![4; 22 * MIB]); 3]);
    let refused = appender.submit(batch).expect_err("too large");
    assert!(matches!(refused.reason, Refusal::Limit(LimitError::Batch { .. })));
    assert!(refused.to_string().contains("at most 67108864 bytes"), "{refused}");
    assert_eq!(refused.batch.len(), 3);
    assert_eq!(store.durable_end(), end);
    assert_eq!(storage.on_segments(Op::Write, "thalweg-writer"), writes);
    store.close().expect("closes");
    assert_eq!(stored(&storage)[&"n".repeat(255)], ["fits"]);
}

/// What was submitted is what is stored, whatever becomes of the caller's buffers afterwards.
#[test]
fn buffers_are_the_callers_again_when_a_submit_returns() {
    let storage = Faulty::default();
    let store = open(&storage);
    let held = hold_the_writer(&store, &storage);
    let (mut name, mut id, mut parent, mut payload) =
        (b"s".to_vec(), b"id".to_vec(), b"parent".to_vec(), b"payload".to_vec());
    let appender = store.appender_with(&name, pipeline(4)).expect("an appender");
    let event = || Event::new(&payload[..]).id(&id[..]).parents([&parent[..]]);
    let mut tickets = vec![appender.append(&payload).expect("accepted")];
    tickets.push(appender.append_event(event()).expect("accepted"));
    let mixed = store.mixed_appender(pipeline(4)).expect("an appender");
    let mut batch = MixedBatch::new();
    batch.push(&name, &event().id("other")).expect("within the limits");
    tickets.push(mixed.submit(batch.clone()).expect("accepted"));
    batch.push("t", &Event::new("never submitted")).expect("within the limits");
    for buffer in [&mut name, &mut id, &mut parent, &mut payload] {
        buffer.fill(b'!');
    }
    drop((name, id, parent, payload, batch));
    storage.let_go();
    held.wait().expect("appended");
    for ticket in tickets {
        ticket.wait().expect("appended");
    }
    store.close().expect("closes");
    let log = expected(&storage.inner);
    let events: Vec<_> = log.events.into_values().filter(|event| event.stream != b"held").collect();
    assert_eq!(events.len(), 3);
    let parents = Some(vec![b"parent".to_vec()]);
    for (event, id) in events.iter().zip([None, Some(b"id".to_vec()), Some(b"other".to_vec())]) {
        assert_eq!((&event.stream[..], &event.payload[..]), (&b"s"[..], &b"payload"[..]));
        if let Some(id) = id {
            assert_eq!((&event.id, &event.parents), (&id, &parents));
        }
    }
}

// Failures.

/// Those that come after a failure hear of what failed first, and at once.
#[test]
fn the_first_failure_is_what_everybody_hears_of() {
    for ack in ACKS {
        for op in [Op::Write, Op::Sync] {
            for panics in [false, true] {
                let storage = Faulty::default();
                let store = open(&storage);
                keep(&store);
                let held = hold_the_writer(&store, &storage);
                let error = ErrorKind::QuotaExceeded;
                let fault = Fault { error, count: 1, ..Fault::always(op, SEGMENT) };
                let is_it = move |cause: &Cause| match cause {
                    Cause::Log(cause) => !panics && cause.kind() == error,
                    Cause::Panic { thread, message } => {
                        panics && *thread == "thalweg-writer" && message == "the storage panics"
                    }
                    _ => false,
                };
                let options = pipeline(2).ack(ack);
                let appender = store.appender_with("s", options).expect("an appender");
                let tickets = ["a", "b"].map(|payload| appender.append(payload).expect("room"));
                let waiting = appender.clone();
                let waiting = blocked(move || waiting.append("no room"));
                if panics {
                    storage.panic(fault)
                } else {
                    storage.fail(fault)
                }
                storage.let_go();
                let mut failed = 0;
                let held = outcome(held);
                for outcome in [held].into_iter().chain(tickets.map(outcome)) {
                    match outcome {
                        Ok(_) => assert_eq!(failed, 0, "nothing is stored after a failure"),
                        Err(AppendFailure::Unknown(cause) | AppendFailure::NotAppended(cause)) => {
                            assert!(is_it(&cause), "{cause:?}");
                            failed += 1;
                        }
                    }
                }
                assert!(failed >= 2);
                let waited = ended("submit", waiting).map(outcome);
                match waited.map_err(|refused| refused.reason) {
                    Err(Refusal::Poisoned(cause)) | Ok(Err(AppendFailure::NotAppended(cause))) => {
                        assert!(is_it(&cause), "{cause:?}");
                    }
                    other => panic!("{other:?}"),
                }
                for _ in 0..3 {
                    let batch = Batch::from([Event::new("late"), Event::new("later")]);
                    let refused = appender.try_submit(batch.clone()).expect_err("stopped");
                    assert!(matches!(refused.reason, Refusal::Poisoned(cause) if is_it(&cause)));
                    assert_eq!(refused.batch, batch);
                }
                let stopped = soon("close", move || (appender.flush(), appender.close()));
                let (Err(FlushError::Stopped(flushed)), Err(closed)) = stopped else {
                    panic!("{stopped:?}")
                };
                for AppendFailure::Unknown(cause) | AppendFailure::NotAppended(cause) in
                    [flushed, closed]
                {
                    assert!(is_it(&cause), "{cause:?}");
                }
                let closed = soon("close", move || store.close());
                assert!(matches!(closed, Err(CloseError::Poisoned(cause)) if is_it(&cause)));
            }
        }
    }
}

/// What one appender could not write stopped another, of which nothing but a flush was in the
/// same group.
#[test]
fn a_flush_beside_a_failure_stops_nobody() {
    for ack in ACKS {
        let storage = Faulty::default();
        let full = Fault::always(Op::Create, NEXT_SEGMENT);
        storage.fail(full);
        let store = open(&storage);
        append(&store, "s", vec![1; 600_000]);
        let held = hold_the_writer(&store, &storage);
        let large = store.appender("large").expect("an appender");
        let bystander = store.appender_with("s", pipeline(4).ack(ack)).expect("an appender");
        let ticket = large.append(vec![2; 600_000]).expect("accepted");
        let flushing = bystander.clone();
        let flushing = blocked(move || flushing.flush());
        storage.let_go();
        held.wait().expect("appended");
        let failed = ticket.wait().expect_err("there is no room");
        assert!(matches!(failed, AppendFailure::NotAppended(Cause::StorageFull(_))), "{failed:?}");
        ended("flush", flushing).expect("everything of this appender is appended");
        bystander.append("goes on").expect("not stopped").wait().expect("there is room for it");
        let refused = large.append("late").expect_err("stopped").reason;
        let Refusal::Stopped(AppendFailure::NotAppended(cause)) = refused else {
            panic!("{refused:?}")
        };
        assert!(matches!(cause, Cause::StorageFull(_)), "{cause:?}");
        let stopped = large.flush();
        assert!(matches!(stopped, Err(FlushError::Stopped(_))), "{stopped:?}");
        large.close().expect_err("stopped");
        assert!(store.cause().is_none(), "the store goes on");
        bystander.close().expect("closes");
        store.close().expect("closes");
    }
}

// Flushing.

#[test]
fn a_flush_waits_for_all_batches_of_all_threads_and_for_their_callbacks() {
    for ack in ACKS {
        let store = open(&Faulty::default());
        let (accepted, returned) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
        let appender = store.appender_with("s", pipeline(6).ack(ack)).expect("an appender");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (appender, accepted, stop) = (&appender, &accepted, &stop);
                let returned = Arc::clone(&returned);
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let returned = Arc::clone(&returned);
                        let callback = move |outcome: Outcome| {
                            outcome.expect("appended");
                            std::thread::yield_now();
                            returned.fetch_add(1, Ordering::SeqCst);
                        };
                        appender.submit_with(one("x"), callback).expect("accepted");
                        accepted.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..100 {
                let mut ticket = appender.append("ticket").expect("accepted");
                let before = accepted.load(Ordering::SeqCst);
                appender.flush().expect("flushes");
                assert!(returned.load(Ordering::SeqCst) >= before);
                ticket.try_wait().expect("flushed").expect("appended");
            }
            stop.store(true, Ordering::SeqCst);
        });
        appender.flush().expect("flushes");
        assert_eq!(accepted.into_inner(), returned.load(Ordering::SeqCst));
        appender.append("a flush closes nothing").expect("accepted");
        appender.close().expect("closes");
        appender.flush().expect("nothing is left to wait for");
        store.close().expect("closes");
        appender.flush().expect("nothing is left to wait for");
        let never_used = store.appender("t").expect("an appender");
        soon("flush", move || never_used.flush()).expect("nothing to wait for");
    }
}

// Closing.

#[test]
fn a_close_drains_and_closes_all_clones_for_good() {
    for ack in ACKS {
        let storage = Faulty::default();
        let store = open(&storage);
        keep(&store);
        let held = hold_the_writer(&store, &storage);
        let returned = Arc::new(AtomicU64::new(0));
        let appender = store.appender_with("s", pipeline(10).ack(ack)).expect("an appender");
        let mut tickets = Vec::new();
        for number in 0..5 {
            tickets.push(appender.append(format!("{number}.0")).expect("accepted"));
            let returned = Arc::clone(&returned);
            let callback = move |outcome: Outcome| {
                outcome.expect("appended");
                std::thread::sleep(Duration::from_millis(2));
                returned.fetch_add(1, Ordering::SeqCst);
            };
            appender.submit_with(one(format!("{number}.1")), callback).expect("accepted");
        }
        let waiting = appender.clone();
        let waiting = blocked(move || waiting.submit(one("no room")));
        let closing: Vec<_> = (0..3)
            .map(|_| {
                let (appender, returned) = (appender.clone(), Arc::clone(&returned));
                blocked(move || {
                    appender.close().expect("closes");
                    assert_eq!(returned.load(Ordering::SeqCst), 5, "every close waits for the end");
                })
            })
            .collect();
        // The disk has not come back yet.
        let refused = ended("submit", waiting).expect_err("closed");
        assert!(matches!(refused.reason, Refusal::Closed), "{:?}", refused.reason);
        assert_eq!(refused.batch, one("no room"));
        let refused = appender.clone().try_submit(one("late")).expect_err("closed");
        assert!(matches!(refused.reason, Refusal::Closed), "{:?}", refused.reason);
        storage.let_go();
        for closing in closing {
            ended("close", closing);
        }
        for mut ticket in tickets {
            ticket.try_wait().expect("closed").expect("appended");
        }
        held.wait().expect("appended");
        soon("closing again", {
            let appender = appender.clone();
            move || appender.close()
        })
        .expect("closes");
        let next = store.appender("s").expect("the store is open");
        next.append("5.0").expect("accepted").wait().expect("appended");
        store.close().expect("closes");
        let wanted: Vec<String> = (0..5)
            .flat_map(|number| [0, 1].map(|it| format!("{number}.{it}")))
            .chain([String::from("5.0")])
            .collect();
        assert_eq!(stored(&storage)["s"], wanted);
    }
}

/// Closing looked at the permits, and a ticket's permit came back a moment before its outcome.
#[test]
fn after_a_close_every_ticket_has_its_outcome() {
    for ack in ACKS {
        let store = open(&Faulty::default());
        for _ in 0..1000 {
            let appender = store.appender_with("s", pipeline(4).ack(ack)).expect("an appender");
            let tickets = [1, 2, 3].map(|number| appender.append([number]).expect("accepted"));
            appender.close().expect("closes");
            for mut ticket in tickets {
                ticket.try_wait().expect("closed").expect("appended");
            }
        }
    }
}

/// The other side of the same: whoever has the outcome finds the place free.
#[test]
fn after_a_ticket_has_its_outcome_its_place_is_free() {
    for ack in ACKS {
        let store = open(&Faulty::default());
        let appender = store.appender_with("s", pipeline(1).ack(ack)).expect("an appender");
        for number in 0..1000 {
            let mut ticket = appender.try_submit(one("x")).expect("there is room");
            if number % 2 == 0 {
                ticket.wait().expect("appended");
            } else {
                while ticket.try_wait().is_none() {
                    std::thread::yield_now();
                }
            }
        }
    }
}

// Aborting.

#[test]
fn an_abort_gives_up_what_is_not_written_and_nothing_else() {
    for ack in ACKS {
        let storage = Faulty::default();
        let store = open(&storage);
        keep(&store);
        storage.hold(Op::Sync, SEGMENT);
        let appender = store.appender_with("s", pipeline(4).ack(ack)).expect("an appender");
        let mut written = appender.append("written").expect("accepted");
        storage.wait_until_one_waits();
        let (said_in, said) = channel();
        let mut ticket = appender.append("not yet").expect("accepted");
        for _ in 0..2 {
            let said = said_in.clone();
            let say = move |outcome| said.send(outcome).expect("the test listens");
            appender.submit_with(one("not yet"), say).expect("accepted");
        }
        let waiting = appender.clone();
        let waiting = blocked(move || waiting.append("no room"));
        let aborting = appender.clone();
        soon("abort", move || aborting.abort());
        // The disk has not come back yet.
        let refused = ended("submit", waiting).expect_err("aborted").reason;
        assert!(matches!(&refused, Refusal::Stopped(failure) if is_aborted(failure)));
        let refused = appender.clone().append("late").expect_err("aborted").reason;
        assert!(matches!(&refused, Refusal::Stopped(failure) if is_aborted(failure)));
        assert!(written.try_wait().is_none() && ticket.try_wait().is_none());
        storage.let_go();
        written.wait_timeout(SOON).expect("completes").expect("it was with the disk");
        let failed = ticket.wait_timeout(SOON).expect("completes").expect_err("aborted");
        assert!(is_aborted(&failed), "{failed:?}");
        for _ in 0..2 {
            let failed = said.recv_timeout(SOON).expect("completes").expect_err("aborted");
            assert!(is_aborted(&failed), "{failed:?}");
        }
        drop(said_in);
        assert!(said.recv_timeout(SOON).is_err(), "each outcome is said once");
        let closed = soon("close", {
            let appender = appender.clone();
            move || (appender.flush(), appender.close())
        });
        assert!(matches!(&closed.0, Err(FlushError::Stopped(failure)) if is_aborted(failure)));
        assert!(matches!(&closed.1, Err(failure) if is_aborted(failure)));
        let next = store.appender("s").expect("the store is open");
        next.append("next").expect("accepted").wait().expect("appended");
        store.close().expect("closes");
        assert_eq!(stored(&storage)["s"], ["written", "next"]);
    }
}

/// Batches that came after the abort were answered when the writer met them, and that was before
/// the answers to those in front of them, which were being written. A flush behind them came back
/// too early in the same way.
#[test]
fn an_abort_does_not_turn_the_order_of_answers_around() {
    const BATCHES: u64 = 300;
    let mut rng = Rng::from_env();
    let mut torn = 0;
    for round in 0..60 {
        let ack = ACKS[round % 2];
        let storage = Faulty::default();
        let store = open(&storage);
        let held = hold_the_writer(&store, &storage);
        let appender = store.appender_with("s", acked(ack)).expect("an appender");
        let seen: Arc<Mutex<Vec<(u64, bool)>>> = Arc::default();
        for number in 0..BATCHES {
            let seen = Arc::clone(&seen);
            let see = move |outcome: Outcome| seen.lock().unwrap().push((number, outcome.is_ok()));
            appender.submit_with(one(format!("{number}")), see).expect("accepted");
        }
        let flushing = appender.clone();
        let at_flush = Arc::clone(&seen);
        let flushing = blocked(move || {
            let _ = flushing.flush();
            at_flush.lock().unwrap().len() as u64
        });
        storage.let_go();
        held.wait().expect("appended");
        (0..rng.below(2000)).for_each(|_| std::hint::spin_loop());
        appender.abort();
        assert_eq!(ended("flush", flushing), BATCHES, "a flush waits for what is before it");
        let seen = seen.lock().unwrap();
        assert!(seen.iter().map(|(number, _)| *number).eq(0..BATCHES), "{seen:?}");
        let appended = seen.iter().take_while(|(_, appended)| *appended).count();
        assert!(seen[appended..].iter().all(|(_, appended)| !appended), "a prefix: {seen:?}");
        torn += u64::from(0 < appended && appended < seen.len());
        store.close().expect("closes");
        assert_eq!(stored(&storage).get("s").map_or(0, Vec::len), appended);
    }
    println!("the abort came in the middle of {torn} groups");
}

// Callbacks.

/// Where a callback ran.
fn here() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

#[test]
fn the_default_callback_is_for_what_is_submitted_and_forgotten() {
    for ack in ACKS {
        let store = open(&Faulty::default());
        let (said_in, said) = channel();
        let options = pipeline(4).ack(ack).on_outcome(move |outcome| {
            said_in.send(outcome.expect("appended").end).expect("the test listens");
        });
        let appender = store.appender_with("s", options).expect("an appender");
        for _ in 0..10 {
            appender.submit_and_forget(one("x")).expect("accepted");
        }
        let ticket = appender.append("not for the callback").expect("accepted");
        let own = |outcome: Outcome| drop(outcome.expect("appended"));
        appender.submit_with(one("neither"), own).expect("accepted");
        appender.submit_and_forget(one("last")).expect("accepted");
        appender.flush().expect("flushes");
        let said: Vec<u64> = said.try_iter().collect();
        assert_eq!(said.len(), 11);
        let other = ticket.wait().expect("appended").end;
        assert!(said[9] < other && other < said[10]);
        // Without one, nobody is told.
        let silent = store.appender_with("s", pipeline(1).ack(ack)).expect("an appender");
        let filling = silent.clone();
        soon("submit", move || {
            for _ in 0..10 {
                filling.submit_and_forget(one("x")).expect("accepted");
            }
        });
        silent.flush().expect("flushes");
    }
}

#[test]
fn a_callback_hears_what_became_of_each_event() {
    let store = open(&Faulty::default());
    let (said_in, said) = channel();
    let say = || {
        let said = said_in.clone();
        move |outcome: Outcome| said.send(outcome.expect("appended").placements).expect("listens")
    };
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let event = |id: &str, parent: &str| Event::new("x").id(id).parents([parent]);
    let root = Event::new("x").id("a").parents::<&str>([]);
    let batch = vec![
        root.clone(),
        event("b", "a"),
        root,
        event("a", "b"),
        event("c", "later"),
        event("d", "never").require_parents(),
    ];
    appender.submit_with(batch.into(), say()).expect("accepted");
    appender.submit_with(one("chained"), say()).expect("accepted");
    let delivered = |place| Placement::Delivered { global: place, local: place };
    let reason = Rejection::Parents { missing: 1 };
    assert_eq!(
        said.recv_timeout(SOON).expect("called"),
        [
            delivered(0),
            delivered(1),
            Placement::Duplicate,
            Placement::Conflict,
            Placement::Held { missing: 1 },
            Placement::Rejected { reason, tips: vec![b"b".to_vec()] },
        ]
    );
    assert_eq!(said.recv_timeout(SOON).expect("called"), [delivered(2)]);
}

#[test]
fn a_callback_that_panics_is_counted_and_costs_no_other() {
    /// What it panics with panics when it is dropped, so many times over.
    struct PanicsWhenDropped(u32);
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            if self.0 > 0 {
                std::panic::panic_any(PanicsWhenDropped(self.0 - 1));
            }
        }
    }
    for ack in ACKS {
        let store = open(&Faulty::default());
        let options = pipeline(1).ack(ack).on_outcome(|_| panic!("the default one"));
        let appender = store.appender_with("s", options).expect("an appender");
        assert_eq!((store.stats().callback_panics, store.stats().first_callback_panic), (0, None));
        let submitting = appender.clone();
        let called = Arc::new(AtomicU64::new(0));
        let counting = Arc::clone(&called);
        soon("submit", move || {
            for number in 0..20 {
                let called = Arc::clone(&counting);
                let callback = move |outcome: Outcome| {
                    outcome.expect("appended");
                    called.fetch_add(1, Ordering::SeqCst);
                    match number % 4 {
                        0 => panic!("number {number}"),
                        1 => std::panic::panic_any(PanicsWhenDropped(number)),
                        _ => {}
                    }
                };
                submitting.submit_with(one("x"), callback).expect("its place is free again");
                submitting.submit_and_forget(one("x")).expect("its place is free again");
            }
            let captured = PanicsWhenDropped(3);
            let callback = move |_| {
                let _captured = captured;
            };
            submitting.submit_with(one("x"), callback).expect("accepted");
            submitting.flush().expect("flushes");
        });
        assert_eq!(called.load(Ordering::SeqCst), 20);
        let stats = store.stats();
        assert_eq!(stats.callback_panics, 5 + 5 + 20 + 1);
        assert_eq!(stats.first_callback_panic.as_deref(), Some("number 0"));
        assert_eq!((stats.poisoned, stats.delivered > 0), (None, true));
        appender.close().expect("closes");
        soon("close", move || store.close()).expect("closes");
    }
}

/// On success, after an abort, when the store has stopped, and when it is closed.
#[test]
fn callbacks_run_on_a_thread_of_their_own() {
    for ack in ACKS {
        for round in 0..4 {
            let storage = Faulty::default();
            let store = open(&storage);
            keep(&store);
            let seen: Arc<Mutex<Vec<(String, bool)>>> = Arc::default();
            let see = || {
                let seen = Arc::clone(&seen);
                move |outcome: Outcome| seen.lock().unwrap().push((here(), outcome.is_ok()))
            };
            let options = pipeline(16).ack(ack).on_outcome(see());
            let appender = store.appender_with("s", options).expect("an appender");
            appender.submit_with(one("x"), see()).expect("accepted");
            appender.flush().expect("flushes");
            let held = hold_the_writer(&store, &storage);
            for _ in 0..5 {
                appender.submit_with(one("x"), see()).expect("accepted");
                appender.submit_and_forget(one("x")).expect("accepted");
            }
            match round {
                0 => {}
                1 => appender.abort(),
                2 => storage.panic(Fault::always(Op::Write, SEGMENT)),
                _ => storage.panic(Fault::always(Op::Write, "order-")),
            }
            storage.let_go();
            held.wait().expect("appended");
            let _ = soon("close", move || store.close());
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), 11, "each is called once, and before the close ends");
            assert!(seen.iter().all(|(thread, _)| thread == "thalweg-callback"), "{seen:?}");
            let appended = seen.iter().filter(|(_, appended)| *appended).count();
            match round {
                0 => assert_eq!(appended, 11),
                // What the order cannot be written for is appended all the same; some of it may have
                // come too late.
                3 => assert!(appended >= 1),
                _ => assert_eq!(appended, 1),
            }
        }
    }
}

#[test]
fn a_slow_callback_delays_no_ticket() {
    for ack in ACKS {
        let store = open(&Faulty::default());
        keep(&store);
        let (return_in, may_return) = channel::<()>();
        let slow = store.appender_with("s", pipeline(2).ack(ack)).expect("an appender");
        let wait = move |_| {
            let _ = may_return.recv();
        };
        slow.submit_with(one("slow"), wait).expect("accepted");
        let other = store.appender_with("s", pipeline(2).ack(ack)).expect("an appender");
        let own = slow.append("a ticket of the same appender").expect("accepted");
        let waiting = other.clone();
        soon("tickets", move || {
            own.wait().expect("appended");
            for _ in 0..100 {
                waiting.append("x").expect("accepted").wait().expect("appended");
            }
            // It has no callbacks to wait for.
            waiting.close().expect("closes");
        });
        drop(return_in);
        slow.close().expect("closes");
        store.close().expect("closes");
    }
}

/// What the default callback has hold of was dropped by whoever let go of the appender last. That was
/// the writer, if nobody else was left, and when the last handle of the store was among it, the writer
/// closed the store, and waited for itself.
#[test]
fn what_a_default_callback_holds_is_not_dropped_by_the_writer() {
    struct Told(Sender<String>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(here());
            panic!("and a panic here is counted");
        }
    }
    for ack in ACKS {
        for forgotten in [false, true] {
            let storage = Faulty::default();
            let store = open(&storage);
            let watching = store.subscribe(0).expect("subscribes");
            let held = hold_the_writer(&store, &storage);
            let (told_in, told) = channel();
            let holds = (Told(told_in), store.clone());
            let options = pipeline(4).ack(ack).on_outcome(move |_| {
                let _ = &holds;
            });
            let appender = store.appender_with("s", options).expect("an appender");
            if forgotten {
                appender.submit_and_forget(one("x")).expect("accepted");
            } else {
                drop(appender.append("x").expect("accepted"));
            }
            drop((appender, store, held));
            storage.let_go();
            let thread = told.recv_timeout(SOON).expect("it is dropped, once nobody needs it");
            assert_eq!(thread, "thalweg-callback");
            // It was the last handle, so the store closes.
            let events = soon("the store closes", move || watching.count());
            assert_eq!(events, 2);
            let again = || Options::new().open_on(Arc::new(storage.clone()));
            while again().is_err() {
                std::thread::yield_now();
            }
        }
    }
}

// Appenders and the life of the store.

#[test]
fn a_closing_store_drains_appenders_that_are_open_dropped_or_leaked() {
    for ack in ACKS {
        for by_drop in [false, true] {
            let storage = Faulty::default();
            let store = open(&storage);
            let held = hold_the_writer(&store, &storage);
            let returned = Arc::new(AtomicU64::new(0));
            let mut tickets = Vec::new();
            let mut fill = |name: &str| {
                let appender = store.appender_with(name, pipeline(8).ack(ack)).expect("opens");
                for number in 0..4 {
                    tickets.push(appender.append(format!("{number}")).expect("accepted"));
                    let returned = Arc::clone(&returned);
                    let callback = move |outcome: Outcome| {
                        outcome.expect("appended");
                        returned.fetch_add(1, Ordering::SeqCst);
                    };
                    appender.submit_with(one(format!("{number}")), callback).expect("accepted");
                }
                appender
            };
            let open = fill("open");
            drop(fill("dropped"));
            std::mem::forget(fill("leaked"));
            let waiting = open.clone();
            let waiting = blocked(move || waiting.append("no room"));
            let closing =
                blocked(move || if by_drop { drop(store) } else { store.close().unwrap() });
            let refused = ended("submit", waiting).expect_err("closed").reason;
            assert!(matches!(refused, Refusal::Closed), "{refused:?}");
            storage.let_go();
            ended("close", closing);
            assert_eq!(returned.load(Ordering::SeqCst), 12);
            for mut ticket in tickets {
                ticket.try_wait().expect("closed").expect("appended");
            }
            held.wait().expect("appended");
            let log = stored(&storage);
            for name in ["open", "dropped", "leaked"] {
                assert_eq!(log[name].len(), 8, "{name}");
            }
            soon("an appender of a closed store", move || {
                let refused = open.append("late").expect_err("closed").reason;
                assert!(matches!(refused, Refusal::Closed), "{refused:?}");
                open.flush().expect("nothing is under way");
                open.close().expect("nothing is under way");
                open.abort();
            });
        }
    }
}

/// A mixed appender keeps the same rules.
#[test]
fn a_mixed_appender_is_a_pipeline_too() {
    for ack in ACKS {
        let storage = Faulty::default();
        let store = open(&storage);
        let held = hold_the_writer(&store, &storage);
        let mixed = store.mixed_appender(pipeline(2).ack(ack)).expect("an appender");
        let batch = |number: u64| {
            let mut batch = MixedBatch::new();
            for stream in ["s", "t"] {
                let event = Event::new(format!("{stream}.{number}"));
                batch.push(stream, &event).expect("within the limits");
            }
            batch
        };
        let ticket = mixed.submit(batch(0)).expect("accepted");
        let (said_in, said) = channel();
        let say = move |outcome: Outcome| said_in.send(outcome).expect("listens");
        mixed.submit_with(batch(1), say).expect("accepted");
        let len = batch(2).byte_len();
        let refused = mixed.try_submit(batch(2)).expect_err("full");
        assert!(is_full(&refused.reason));
        assert_eq!((refused.batch.len(), refused.batch.byte_len()), (2, len));
        let refused = mixed.submit_timeout(batch(2), Duration::from_millis(5)).expect_err("full");
        assert!(matches!(refused.reason, Refusal::TimedOut));
        let waiting = mixed.clone();
        let waiting = blocked(move || waiting.submit(refused.batch).expect("accepted"));
        storage.let_go();
        held.wait().expect("appended");
        let positions = [
            ticket.wait().expect("appended").position,
            said.recv_timeout(SOON).expect("called").expect("appended").position,
            ended("submit", waiting).wait().expect("appended").position,
        ];
        assert!(positions.is_sorted());
        mixed.flush().expect("flushes");
        let (said_in, said) = channel();
        let say = move |outcome: Outcome| said_in.send(outcome).expect("listens");
        mixed.try_submit_with(batch(3), say.clone()).expect("accepted");
        said.recv_timeout(SOON).expect("called").expect("appended");
        let default = store.mixed_appender(pipeline(2).ack(ack).on_outcome(say)).expect("opens");
        default.submit_and_forget(batch(4)).expect("accepted");
        said.recv_timeout(SOON).expect("called").expect("appended");
        mixed.abort();
        let closed = mixed.close().expect_err("aborted");
        assert!(is_aborted(&closed));
        store.close().expect("closes");
        let log = stored(&storage);
        assert_eq!(
            (&log["s"][..], log["t"].len()),
            (&["s.0", "s.1", "s.2", "s.3", "s.4"].map(String::from)[..], 5)
        );
    }
}

// Exactly one outcome, whatever happens.

/// What ends a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    CloseAppenders,
    AbortAppenders,
    CloseStore,
    DropStore,
    /// An operation of the log, or of the order, fails or panics.
    Fault {
        op: Op,
        file: &'static str,
        panics: bool,
    },
    NoRoom,
}

const ENDINGS: [Ending; 12] = [
    Ending::CloseAppenders,
    Ending::AbortAppenders,
    Ending::CloseStore,
    Ending::DropStore,
    Ending::Fault { op: Op::Sync, file: SEGMENT, panics: false },
    Ending::Fault { op: Op::Write, file: SEGMENT, panics: false },
    Ending::Fault { op: Op::Sync, file: SEGMENT, panics: true },
    Ending::Fault { op: Op::Write, file: SEGMENT, panics: true },
    Ending::Fault { op: Op::Write, file: "order-", panics: true },
    Ending::Fault { op: Op::Write, file: "order-", panics: false },
    Ending::Fault { op: Op::Create, file: NEXT_SEGMENT, panics: true },
    Ending::NoRoom,
];

/// What became of an accepted batch, as its appender heard it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// With the position.
    Stored(u64),
    NotStored,
    Unknown,
}

impl Fate {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Ok(receipt) => Fate::Stored(receipt.position),
            Err(AppendFailure::NotAppended(_)) => Fate::NotStored,
            Err(AppendFailure::Unknown(_)) => Fate::Unknown,
        }
    }
}

/// A batch that was submitted.
#[derive(Debug)]
struct Submitted {
    lane: usize,
    number: u64,
    parts: u64,
    accepted: bool,
    /// Whether somebody listens.
    heard: bool,
    fates: Arc<Mutex<Vec<Fate>>>,
    ticket: Option<Ticket>,
}

/// Thread and number of each batch with a callback, as the callbacks ran.
type Seen = Arc<Mutex<Vec<(u64, u64, Fate)>>>;

struct Producer {
    thread: u64,
    rng: Rng,
    lanes: Vec<(StreamAppender, Seen)>,
    payload_max: u64,
}

impl Producer {
    /// Submits until nothing is accepted any more, or enough was.
    fn run(mut self) -> Vec<Submitted> {
        let mut all = Vec::new();
        for number in 0..60 {
            let (submitted, go_on) = self.submit(number);
            all.push(submitted);
            if !go_on {
                break;
            }
        }
        all
    }

    fn submit(&mut self, number: u64) -> (Submitted, bool) {
        let lane = self.rng.below(self.lanes.len() as u64) as usize;
        let (appender, seen) = &self.lanes[lane];
        let (thread, parts) = (self.thread, 1 + self.rng.below(3));
        let batch: Batch = (0..parts)
            .map(|part| {
                let mut payload = format!("{thread}.{part}.{number}").into_bytes();
                payload.resize(payload.len().max(self.rng.below(self.payload_max) as usize), b' ');
                Event::new(payload)
            })
            .collect();
        let fates: Arc<Mutex<Vec<Fate>>> = Arc::default();
        let callback = {
            let (fates, seen) = (Arc::clone(&fates), Arc::clone(seen));
            move |outcome: Outcome| {
                fates.lock().unwrap().push(Fate::of(&outcome));
                seen.lock().unwrap().push((thread, number, Fate::of(&outcome)));
            }
        };
        let submitted = batch.clone();
        let (heard, accepted) = match self.rng.below(8) {
            0 | 1 => (true, appender.submit_with(submitted, callback).map(|()| None)),
            2 => (true, appender.try_submit_with(submitted, callback).map(|()| None)),
            3 => (false, appender.submit_and_forget(submitted).map(|()| None)),
            4 => (true, appender.try_submit(submitted).map(Some)),
            5 => {
                let timeout = Duration::from_micros(self.rng.below(300));
                (true, appender.submit_timeout(submitted, timeout).map(Some))
            }
            6 => (
                false,
                appender.submit(submitted).map(|ticket| {
                    drop(ticket);
                    None
                }),
            ),
            _ => (true, appender.submit(submitted).map(Some)),
        };
        let mut submitted = Submitted {
            lane,
            number,
            parts,
            accepted: accepted.is_ok(),
            heard,
            fates,
            ticket: None,
        };
        let mut go_on = true;
        match accepted {
            Ok(ticket) => submitted.ticket = ticket,
            Err(refused) => {
                assert!(refused.batch == batch, "a refused batch comes back whole");
                go_on = matches!(refused.reason, Refusal::Full | Refusal::TimedOut);
                let is_end = matches!(
                    refused.reason,
                    Refusal::Closed | Refusal::Stopped(_) | Refusal::Poisoned(_)
                );
                assert!(go_on || is_end, "{:?}", refused.reason);
            }
        }
        if self.rng.once_in(6)
            && let Some(mut ticket) = submitted.ticket.take()
        {
            let outcome = ticket.wait_timeout(SOON).expect("completes");
            submitted.fates.lock().unwrap().push(Fate::of(&outcome));
        }
        (submitted, go_on)
    }
}

#[test]
fn every_accepted_batch_has_exactly_one_outcome_and_it_is_true() {
    // More of them on demand.
    let rounds = std::env::var("THALWEG_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds: u64 = rounds.unwrap_or(20);
    let mut rng = Rng::from_env();
    let mut fates = BTreeMap::new();
    for _ in 0..rounds {
        for ending in ENDINGS {
            let seed = rng.next();
            println!("{ending:?}, THALWEG_SEED={seed}");
            one_outcome_each(ending, Rng(seed), &mut fates);
        }
    }
    println!("{fates:?}");
}

fn one_outcome_each(ending: Ending, mut rng: Rng, counts: &mut BTreeMap<&'static str, u64>) {
    let storage = Faulty::default();
    let queue_bytes = if rng.once_in(3) { 500 } else { 1 << 20 };
    let opened = options().queue_bytes(queue_bytes).open_on(Arc::new(storage.clone()));
    let store = opened.expect("opens");
    append(&store, "before", "x");
    let lanes: Vec<(StreamAppender, Seen)> = (0..1 + rng.below(3))
        .map(|lane| {
            let options = pipeline(1 + rng.below(16) as usize).ack(ACKS[rng.below(2) as usize]);
            let appender = store.appender_with(format!("lane {lane}"), options);
            (appender.expect("an appender"), Seen::default())
        })
        .collect();
    match ending {
        Ending::Fault { op, file, panics } => {
            let fault = Fault { skip: rng.below(20), count: 1, ..Fault::always(op, file) };
            if panics { storage.panic(fault) } else { storage.fail(fault) }
        }
        Ending::NoRoom => storage.fail(Fault::always(Op::Create, NEXT_SEGMENT)),
        _ => {}
    }
    let fills = matches!(ending, Ending::NoRoom | Ending::Fault { file: NEXT_SEGMENT, .. });
    let payload_max = if fills { 30_000 } else { 300 };
    let producers: Vec<_> = (0..2 + rng.below(3))
        .map(|thread| {
            let (rng, lanes) = (Rng(rng.next()), lanes.clone());
            let producer = Producer { thread, rng, lanes, payload_max };
            std::thread::spawn(move || producer.run())
        })
        .collect();
    std::thread::sleep(Duration::from_micros(rng.below(3000)));
    let mut store = Some(store);
    match ending {
        Ending::CloseAppenders => lanes.iter().for_each(|(appender, _)| {
            let appender = appender.clone();
            soon("close", move || appender.close()).expect("closes");
        }),
        Ending::AbortAppenders => lanes.iter().for_each(|(appender, _)| appender.abort()),
        Ending::CloseStore => {
            let store = store.clone().expect("is there");
            soon("close", move || store.close()).expect("closes");
        }
        Ending::DropStore => {
            let store = store.take().expect("is there");
            soon("drop", move || drop(store));
        }
        Ending::Fault { .. } | Ending::NoRoom => {}
    }
    let mut submitted: Vec<Vec<Submitted>> =
        producers.into_iter().map(|producer| ended("a producer", producer)).collect();
    for one in submitted.iter_mut().flatten() {
        if let Some(mut ticket) = one.ticket.take() {
            let outcome = ticket.wait_timeout(SOON).expect("completes");
            one.fates.lock().unwrap().push(Fate::of(&outcome));
        }
    }
    if let Some(store) = store {
        let _ = soon("close", move || store.close());
    }
    let mut log = stored(&storage);
    for (lane, (_, seen)) in lanes.iter().enumerate() {
        let mut events = log.remove(&format!("lane {lane}")).unwrap_or_default();
        events.iter_mut().for_each(|payload| payload.truncate(payload.trim_end().len()));
        check_lane(lane, &events, &submitted, &seen.lock().unwrap(), counts);
    }
    let after = storage.inner.fork();
    let again = options().open_on(shared(&after)).expect("opens again");
    common::check(&again, &expected(&after));
}

fn check_lane(
    lane: usize,
    log: &[String],
    submitted: &[Vec<Submitted>],
    seen: &[(u64, u64, Fate)],
    counts: &mut BTreeMap<&'static str, u64>,
) {
    let mut batches_in_log = 0;
    for (thread, all) in submitted.iter().enumerate() {
        let mut is_whole = true;
        let mut after = 0;
        for batch in all.iter().filter(|batch| batch.lane == lane) {
            let fates = batch.fates.lock().unwrap();
            let first = format!("{thread}.0.{}", batch.number);
            let places: Vec<usize> = (0..log.len()).filter(|place| log[*place] == first).collect();
            if let Some(&place) = places.first() {
                for part in 0..batch.parts {
                    let wanted = format!("{thread}.{part}.{}", batch.number);
                    assert_eq!(log.get(place + part as usize), Some(&wanted), "torn");
                }
                batches_in_log += batch.parts;
            }
            assert!(places.len() <= 1, "{batch:?} is there twice");
            let is_stored = !places.is_empty();
            if !batch.accepted {
                *counts.entry("refused").or_default() += 1;
                assert!(fates.is_empty() && !is_stored, "{batch:?} was refused: {is_stored}");
                continue;
            }
            assert_eq!(fates.len(), usize::from(batch.heard), "{batch:?}");
            let name = match fates.first() {
                Some(Fate::Stored(_)) => {
                    assert!(is_stored, "{batch:?} is lost");
                    "stored"
                }
                Some(Fate::NotStored) => {
                    assert!(!is_stored, "{batch:?} is stored");
                    "not stored"
                }
                Some(Fate::Unknown) => "unknown",
                None => "unheard",
            };
            *counts.entry(name).or_default() += 1;
            assert!(is_whole || !is_stored, "{batch:?} is stored, and one before it is not");
            is_whole = is_stored;
            if let Some(&place) = places.first() {
                assert!(after <= place, "{batch:?} has overtaken one before it");
                after = place;
            }
        }
    }
    assert_eq!(batches_in_log, log.len() as u64, "what nobody has submitted is in the log");
    let mut last = 0;
    let mut has_failed = false;
    for (thread, number, fate) in seen {
        if let Fate::Stored(position) = fate {
            assert!(!has_failed, "{thread}.{number} is stored after one that is not");
            assert!(last < *position, "a callback has overtaken another");
            last = *position;
        } else {
            has_failed = true;
        }
    }
    for thread in 0..submitted.len() as u64 {
        let own = seen.iter().filter(|(other, ..)| *other == thread).map(|(_, number, _)| number);
        assert!(own.is_sorted(), "callbacks of one thread in its order");
    }
}

// Group commit.

/// One sync for a group, and one group for whatever has come meanwhile. Syncs for 1,000 appends are
/// printed, for devices of two speeds.
#[test]
fn a_group_takes_one_sync_however_many_appends_it_has() {
    for sync_us in [0, 500] {
        for threads in [1, 16, 64_u64] {
            let appends = if threads == 1 { 200 } else { 960 / threads };
            let storage = Faulty::default();
            let store = open(&storage);
            append(&store, "before", "x");
            if sync_us > 0 {
                storage.slow_down(Op::Sync, SEGMENT, Duration::from_micros(sync_us));
            }
            let count = |op| storage.on_segments(op, "thalweg-writer");
            let (writes, syncs) = (count(Op::Write), count(Op::Sync));
            std::thread::scope(|scope| {
                for thread in 0..threads {
                    let appender = store.appender(format!("s{thread}")).expect("an appender");
                    scope.spawn(move || {
                        for number in 0..appends {
                            let ticket = appender.append([number as u8; 64]).expect("accepted");
                            ticket.wait().expect("appended");
                        }
                    });
                }
            });
            let (groups, syncs) = (count(Op::Write) - writes, count(Op::Sync) - syncs);
            assert_eq!(store.stats().segments, 1, "nothing but groups was written");
            let all = threads * appends;
            assert!(syncs <= groups && groups <= all, "{syncs} syncs, {groups} groups, {all}");
            // Each append was waited for, and a thread has one under way.
            assert!(syncs >= appends, "{syncs} syncs for {appends} waits in a row");
            println!(
                "{threads} threads, {sync_us} us a sync: {} groups and {} syncs for 1,000 appends",
                groups * 1000 / all,
                syncs * 1000 / all
            );
        }
    }
}

/// What has come during a sync goes into one group, however much it is.
#[test]
fn what_waits_during_a_sync_goes_into_the_next_group_together() {
    let storage = Faulty::default();
    let store = open(&storage);
    let held = hold_the_writer(&store, &storage);
    let syncs = storage.on_segments(Op::Sync, "thalweg-writer");
    let tickets: Vec<Ticket> = (0..64)
        .flat_map(|stream| {
            let appender = store.appender(format!("s{stream}")).expect("an appender");
            [0, 1].map(|number| appender.append([number]).expect("accepted"))
        })
        .collect();
    storage.let_go();
    held.wait().expect("appended");
    for ticket in tickets {
        ticket.wait().expect("appended");
    }
    assert_eq!(storage.on_segments(Op::Sync, "thalweg-writer") - syncs, 1);
}
