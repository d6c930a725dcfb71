//! Everything that could wait for itself: calls from callbacks, handles that are dropped in odd places,
//! and stages that die or are held up while somebody waits for them. Each scene has to end.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{SOON, append, check, expected, keep, nothing_hangs, shared, soon};
use faulty::{Fault, Faulty, Op, open, options};
use thalweg::{
    Ack, AppendFailure, AppenderOptions, Batch, Event, FlushError, Outcome, ReadError, Refusal,
    Store, StreamAppender,
};

const SEGMENT: &str = "segment-0000000000000001";
const NEXT_SEGMENT: &str = "segment-0000000000000002";
const ACKS: [Ack; 2] = [Ack::Durable, Ack::Ordered];
const PIPELINES: [usize; 6] = [1, 2, 3, 4, 8, 16];

fn pipeline(batches: usize, ack: Ack) -> AppenderOptions {
    AppenderOptions::new().pipeline(batches).ack(ack)
}

fn one(payload: impl Into<Vec<u8>>) -> Batch {
    Batch::from([Event::new(payload)])
}

fn add_one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::SeqCst);
}

fn ended<T: Send + 'static>(name: &str, thread: JoinHandle<T>) -> T {
    soon(name, move || thread.join().expect("no panic"))
}

/// The store can be opened again, and is what the serial machine makes of its log. Whoever closed it
/// may be a callback that is not quite done.
fn check_again(storage: &Faulty) {
    let begun = Instant::now();
    let again = loop {
        match options().open_on(shared(&storage.inner)) {
            Ok(store) => break store,
            Err(error) => assert!(begun.elapsed() < SOON, "it is not let go: {error}"),
        }
        std::thread::yield_now();
    };
    check(&again, &expected(&storage.inner));
}

/// An appender whose callbacks wait for one another: the first runs, and does `what` when it is told
/// to; those behind it fill the pipeline.
struct InCallback<T> {
    appender: StreamAppender,
    go: std::sync::mpsc::Sender<()>,
    done: Receiver<T>,
    /// Callbacks that have returned, the first included.
    returned: Arc<AtomicU64>,
    accepted: u64,
}

impl<T: Send + 'static> InCallback<T> {
    fn new(
        store: &Store,
        stream: &str,
        options: AppenderOptions,
        batches: usize,
        what: impl FnOnce(&StreamAppender) -> T + Send + 'static,
    ) -> Self {
        let appender = store.appender_with(stream, options).expect("an appender");
        let (go, may_go) = channel();
        let (done_in, done) = channel();
        let (begun_in, begun) = channel();
        let returned = Arc::new(AtomicU64::new(0));
        let (own, counting) = (appender.clone(), Arc::clone(&returned));
        let first = move |_: Outcome| {
            begun_in.send(()).expect("the test listens");
            let _ = may_go.recv();
            let _ = done_in.send(what(&own));
            counting.fetch_add(1, Ordering::SeqCst);
        };
        appender.submit_with(one("first"), first).expect("accepted");
        begun.recv_timeout(SOON).expect("called");
        for _ in 1..batches {
            let returned = Arc::clone(&returned);
            let count = move |_: Outcome| add_one(&returned);
            appender.submit_with(one("behind"), count).expect("accepted");
        }
        InCallback { appender, go, done, returned, accepted: batches as u64 }
    }

    fn go(&self) -> T {
        self.go.send(()).expect("the callback waits");
        self.done.recv_timeout(SOON).expect("what a callback does hangs")
    }

    fn all_returned(&self) -> bool {
        self.returned.load(Ordering::SeqCst) == self.accepted
    }
}

/// Producers that wait for room in a full pipeline.
fn blocked_producers(appender: &StreamAppender, count: u64) -> Vec<JoinHandle<Option<Refusal>>> {
    let barrier = Arc::new(Barrier::new(count as usize + 1));
    let producers: Vec<_> = (0..count)
        .map(|number| {
            let (appender, barrier) = (appender.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                let submitted = match number % 3 {
                    0 => appender.submit_with(one("blocked"), |_| {}).err(),
                    1 => appender.submit(one("blocked")).err(),
                    _ => appender.submit_timeout(one("blocked"), Duration::from_secs(60)).err(),
                };
                submitted.map(|refused| refused.reason)
            })
        })
        .collect();
    barrier.wait();
    // So that they wait, mostly. Those that come too late are refused at once, which is as good.
    std::thread::sleep(Duration::from_millis(5));
    producers
}

// Calls from a callback.

/// The known deadlock of this kind of appender: who waits for a place holds what the close needs, and
/// the place is free when the callback returns.
#[test]
fn a_close_in_a_callback_ends_whoever_waits_for_room() {
    for ack in ACKS {
        for depth in PIPELINES {
            for producers in [1, 3, 6] {
                let storage = Faulty::default();
                let store = open(&storage);
                keep(&store);
                let scene = InCallback::new(&store, "s", pipeline(depth, ack), depth, |appender| {
                    appender.close()
                });
                let producers = blocked_producers(&scene.appender, producers);
                scene.go().expect("all of it is appended");
                for producer in producers {
                    let refused = ended("a producer", producer);
                    assert!(matches!(refused, Some(Refusal::Closed)), "{refused:?}");
                }
                let appender = scene.appender.clone();
                soon("close", move || appender.close()).expect("closes");
                assert!(scene.all_returned(), "a close waits for callbacks");
                soon("close", move || store.close()).expect("closes");
                assert_eq!(expected(&storage.inner).events.len(), depth);
            }
        }
    }
}

#[test]
fn an_abort_in_a_callback_ends_whoever_waits_for_room() {
    for ack in ACKS {
        for depth in PIPELINES {
            let storage = Faulty::default();
            let store = open(&storage);
            keep(&store);
            let abort = |appender: &StreamAppender| appender.abort();
            let scene = InCallback::new(&store, "s", pipeline(depth, ack), depth, abort);
            let producers = blocked_producers(&scene.appender, 4);
            scene.go();
            for producer in producers {
                let refused = ended("a producer", producer);
                assert!(matches!(refused, Some(Refusal::Stopped(_))), "{refused:?}");
            }
            let appender = scene.appender.clone();
            let _ = soon("close", move || appender.close());
            assert!(scene.all_returned());
            soon("close", move || store.close()).expect("closes");
        }
    }
}

#[test]
fn a_submit_in_a_callback_finds_a_full_pipeline_full_at_once() {
    for ack in ACKS {
        for depth in PIPELINES {
            for full in [true, false] {
                let storage = Faulty::default();
                let store = open(&storage);
                keep(&store);
                let batches = if full { depth } else { depth - 1 };
                if batches == 0 {
                    continue;
                }
                let submit_all = |appender: &StreamAppender| {
                    let long = Duration::from_secs(600);
                    let mut refused = Vec::new();
                    refused.extend(appender.submit(one("x")).err());
                    refused.extend(appender.append("x").err());
                    refused.extend(appender.submit_timeout(one("x"), long).err());
                    refused.extend(appender.submit_with(one("x"), |_| {}).err());
                    refused.extend(appender.submit_and_forget(one("x")).err());
                    assert!(refused.iter().all(|refused| matches!(refused.reason, Refusal::Full)));
                    assert!(refused.iter().all(|refused| refused.batch == one("x")));
                    refused.len()
                };
                let scene = InCallback::new(&store, "s", pipeline(depth, ack), batches, submit_all);
                let refused = scene.go();
                // With one place left, at least one got in; more, if its batch was done meanwhile.
                if full {
                    assert_eq!(refused, 5);
                } else {
                    assert!(refused < 5);
                }
                let appender = scene.appender.clone();
                soon("close", move || appender.close()).expect("closes");
                soon("close", move || store.close()).expect("closes");
            }
        }
    }
}

/// A callback that submits the next batch goes on for ever, with one place more than there are chains.
#[test]
fn chains_of_callbacks_that_submit_go_on() {
    fn next(appender: StreamAppender, left: u64, done: std::sync::mpsc::Sender<()>) {
        if left == 0 {
            return done.send(()).expect("the test listens");
        }
        let again = appender.clone();
        let callback = move |outcome: Outcome| {
            outcome.expect("appended");
            next(again, left - 1, done);
        };
        appender.submit_with(one("x"), callback).expect("there is a place");
    }
    for ack in ACKS {
        for chains in [1, 2, 7, 15] {
            let store = open(&Faulty::default());
            keep(&store);
            let appender = store.appender_with("s", pipeline(chains + 1, ack)).expect("opens");
            let (done_in, done) = channel();
            for _ in 0..chains {
                next(appender.clone(), 50, done_in.clone());
            }
            for _ in 0..chains {
                done.recv_timeout(SOON).expect("the chain goes on");
            }
            soon("close", move || store.close()).expect("closes");
        }
    }
}

#[test]
fn a_flush_in_a_callback_is_an_error() {
    for ack in ACKS {
        let store = open(&Faulty::default());
        keep(&store);
        let other = store.appender_with("t", pipeline(1, ack)).expect("an appender");
        let flush = move |appender: &StreamAppender| [appender.flush(), other.flush()];
        let scene = InCallback::new(&store, "s", pipeline(3, ack), 3, flush);
        for flushed in scene.go() {
            assert!(matches!(flushed, Err(FlushError::OnCallbackThread)), "{flushed:?}");
        }
        scene.appender.append("it lives").expect("accepted");
        let appender = scene.appender.clone();
        soon("flush", move || appender.flush()).expect("flushes");
        soon("close", move || store.close()).expect("closes");
    }
}

#[test]
fn two_callbacks_may_close_each_others_appenders() {
    for ack in ACKS {
        for depth in PIPELINES {
            for two_stores in [false, true] {
                let storages = [Faulty::default(), Faulty::default()];
                let stores = [open(&storages[0]), open(&storages[1])];
                stores.iter().for_each(keep);
                let second = &stores[usize::from(two_stores)];
                let appenders = [(&stores[0], "s"), (second, "t")].map(|(store, stream)| {
                    store.appender_with(stream, pipeline(depth, ack)).expect("an appender")
                });
                // Both callbacks are under way, if they can be.
                let meet = Arc::new(Barrier::new(if two_stores { 2 } else { 1 }));
                let (done_in, done) = channel();
                for (own, other) in [(0, 1), (1, 0)] {
                    let (meet, done, other) =
                        (Arc::clone(&meet), done_in.clone(), appenders[other].clone());
                    let close = move |_: Outcome| {
                        meet.wait();
                        done.send(other.close()).expect("the test listens");
                    };
                    // The other one may have closed it already.
                    match appenders[own].submit_with(one("x"), close) {
                        Ok(()) => {}
                        Err(refused) => {
                            assert!(!two_stores && matches!(refused.reason, Refusal::Closed));
                            done_in.send(Ok(())).expect("the test listens");
                        }
                    }
                }
                for _ in 0..2 {
                    done.recv_timeout(SOON).expect("a close hangs").expect("closes");
                }
                for store in stores {
                    soon("close", move || store.close()).expect("closes");
                }
            }
        }
    }
}

#[test]
fn callbacks_of_two_stores_may_close_each_others_store() {
    for ack in ACKS {
        for _ in 0..10 {
            let storages = [Faulty::default(), Faulty::default()];
            let stores = [open(&storages[0]), open(&storages[1])];
            stores.iter().for_each(keep);
            let meet = Arc::new(Barrier::new(2));
            let (done_in, done) = channel();
            for (own, other) in [(0, 1), (1, 0)] {
                let (meet, done, other) =
                    (Arc::clone(&meet), done_in.clone(), stores[other].clone());
                let close = move |_: Outcome| {
                    meet.wait();
                    done.send(other.close()).expect("the test listens");
                };
                let appender = stores[own].appender_with("s", pipeline(2, ack)).expect("opens");
                appender.submit_with(one("x"), close).expect("accepted");
            }
            for _ in 0..2 {
                done.recv_timeout(SOON).expect("a close hangs").expect("closes");
            }
            for store in stores {
                soon("close", move || store.close()).expect("closes");
            }
            storages.iter().for_each(check_again);
        }
    }
}

// Handles that are dropped in a callback.

#[test]
fn an_appender_may_be_dropped_in_its_own_callback() {
    for ack in ACKS {
        for depth in PIPELINES {
            let storage = Faulty::default();
            let store = open(&storage);
            keep(&store);
            let (done_in, done) = channel();
            let appender = store.appender_with("s", pipeline(depth, ack)).expect("an appender");
            for number in 0..depth {
                let (own, done) = (appender.clone(), done_in.clone());
                let last = move |_: Outcome| {
                    drop(own);
                    done.send(number).expect("the test listens");
                };
                appender.submit_with(one("x"), last).expect("accepted");
            }
            drop(appender);
            for number in 0..depth {
                assert_eq!(done.recv_timeout(SOON), Ok(number));
            }
            soon("close", move || store.close()).expect("closes");
        }
    }
}

#[test]
fn the_last_handle_of_a_store_may_be_dropped_in_a_callback() {
    for ack in ACKS {
        for depth in PIPELINES {
            for by_close in [false, true] {
                let storage = Faulty::default();
                let store = open(&storage);
                append(&store, "before", "x");
                let appender = store.appender_with("s", pipeline(depth, ack)).expect("opens");
                storage.hold(Op::Sync, SEGMENT);
                let (done_in, done) = channel();
                let ends = move |_: Outcome| {
                    if by_close {
                        store.close().expect("closes");
                    }
                    drop(store);
                    done_in.send(()).expect("the test listens");
                };
                let returned = Arc::new(AtomicU64::new(0));
                let mut ends = Some(ends);
                for number in 0..depth {
                    let counting = Arc::clone(&returned);
                    if number == depth / 2 {
                        let ends = ends.take().expect("once");
                        appender.submit_with(one("x"), ends).expect("accepted");
                    } else {
                        let count = move |_: Outcome| add_one(&counting);
                        appender.submit_with(one("x"), count).expect("accepted");
                    }
                }
                let producers = blocked_producers(&appender, 3);
                storage.let_go();
                done.recv_timeout(SOON).expect("the drop hangs");
                for producer in producers {
                    let refused = ended("a producer", producer);
                    assert!(matches!(refused, None | Some(Refusal::Closed)), "{refused:?}");
                }
                let closing = appender.clone();
                soon("close of the appender", move || closing.close()).expect("closes");
                assert_eq!(returned.load(Ordering::SeqCst), depth as u64 - 1);
                check_again(&storage);
            }
        }
    }
}

#[test]
fn a_store_may_be_closed_in_a_callback_while_others_close_it() {
    for ack in ACKS {
        for round in 0..30 {
            let storage = Faulty::default();
            let store = open(&storage);
            keep(&store);
            let closing = store.clone();
            let close = move |_: &StreamAppender| closing.close();
            let scene = InCallback::new(&store, "s", pipeline(3, ack), 3, close);
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let store = store.clone();
                    std::thread::spawn(move || store.close())
                })
                .collect();
            if round % 2 == 0 {
                std::thread::sleep(Duration::from_millis(2));
                assert!(threads.iter().all(|thread| !thread.is_finished()), "callbacks are left");
            }
            scene.go().expect("closes");
            for thread in threads {
                ended("close", thread).expect("closes");
            }
            assert!(scene.all_returned(), "a close waits for callbacks");
            check_again(&storage);
        }
    }
}

// Callbacks that wait.

#[test]
fn a_callback_that_reads_on_ends_when_the_store_closes() {
    type Wait = fn(Store);
    let waits: [(&str, Wait); 4] = [
        ("next", |store| {
            assert!(store.subscribe(u64::MAX).expect("subscribes").next().is_none());
        }),
        ("next_timeout", |store| {
            let mut subscription = store.subscribe(1 << 40).expect("subscribes");
            let next = subscription.next_timeout(Duration::from_secs(600));
            assert!(matches!(next, Err(ReadError::Closed)), "{next:?}");
        }),
        ("wait_committed", |store| {
            let waited = store.wait_committed(u64::MAX);
            assert!(matches!(waited, Err(ReadError::Closed)), "{waited:?}");
        }),
        ("a following subscription", |store| {
            store.subscribe(0).expect("subscribes").for_each(|event| drop(event.expect("reads")));
        }),
    ];
    for ack in ACKS {
        for (name, wait) in waits {
            for by_drop in [false, true] {
                println!("{name}, by drop: {by_drop}");
                let storage = Faulty::default();
                let store = open(&storage);
                if !by_drop {
                    keep(&store);
                }
                let appender = store.appender_with("s", pipeline(2, ack)).expect("an appender");
                let (begun_in, begun) = channel();
                let (done_in, done) = channel();
                // A callback that has a handle keeps the store open: only a close ends its wait.
                let own = store.clone();
                let callback = move |_: Outcome| {
                    begun_in.send(()).expect("the test listens");
                    wait(own);
                    done_in.send(()).expect("the test listens");
                };
                appender.submit_with(one("x"), callback).expect("accepted");
                begun.recv_timeout(SOON).expect("called");
                let other = appender.append("y").expect("a place is left");
                other.wait().expect("a callback that waits keeps no ticket from its outcome");
                let closing = store.clone();
                if by_drop {
                    drop(store);
                }
                soon(name, move || closing.close()).expect("closes");
                done.try_recv().expect("a close waits for callbacks");
            }
        }
    }
}

/// A subscription keeps no store open: it ends when the last handle goes.
#[test]
fn a_callback_that_follows_ends_when_the_last_handle_is_dropped() {
    for ack in ACKS {
        let storage = Faulty::default();
        let store = open(&storage);
        let mut subscription = store.subscribe(0).expect("subscribes");
        let appender = store.appender_with("s", pipeline(2, ack)).expect("an appender");
        let (begun_in, begun) = channel();
        let (done_in, done) = channel();
        let follow = move |_: Outcome| {
            begun_in.send(()).expect("the test listens");
            done_in.send(subscription.by_ref().count()).expect("the test listens");
        };
        appender.submit_with(one("x"), follow).expect("accepted");
        begun.recv_timeout(SOON).expect("called");
        soon("drop", move || drop(store));
        assert_eq!(done.recv_timeout(SOON), Ok(1));
        check_again(&storage);
    }
}

/// A ticket is answered by the writer or the committer, and so it can be waited for in a callback.
#[test]
fn a_callback_may_wait_for_a_ticket_and_for_the_order() {
    for ack in ACKS {
        let store = open(&Faulty::default());
        keep(&store);
        let asked = store.clone();
        let wait = move |appender: &StreamAppender| {
            let receipt = appender.append("x").expect("a place is left").wait().expect("appended");
            asked.wait_committed(receipt.end).expect("committed");
            asked.checkpoint().expect("a checkpoint");
            asked.held().expect("held").len()
        };
        let scene = InCallback::new(&store, "s", pipeline(3, ack), 2, wait);
        assert_eq!(scene.go(), 0);
        soon("close", move || store.close()).expect("closes");
    }
}

/// Dropping the last handle waits for callbacks for a second, and orders for half a second at most.
#[test]
fn a_callback_that_never_returns_does_not_keep_a_drop_for_ever() {
    for ack in ACKS {
        let storage = Faulty::default();
        let store = open(&storage);
        let (begun_in, begun) = channel();
        let (never_in, never) = channel::<()>();
        let appender = store.appender_with("s", pipeline(2, ack)).expect("an appender");
        let callback = move |_: Outcome| {
            begun_in.send(()).expect("the test listens");
            let _ = never.recv();
        };
        appender.submit_with(one("x"), callback).expect("accepted");
        begun.recv_timeout(SOON).expect("called");
        let ticket = appender.append("y").expect("a place is left");
        soon("drop", move || drop(store));
        ticket.wait().expect("appended");
        check_again(&storage);
        drop(never_in);
        soon("close", move || appender.close()).expect("closes");
    }
}

// Everything in flight.

/// Producers of all kinds, which end when they are refused.
fn busy(store: &Store, ack: Ack, depth: usize, calls: &Arc<AtomicU64>) -> Vec<JoinHandle<u64>> {
    (0..4)
        .map(|thread| {
            let appender = store
                .appender_with(format!("s{}", thread / 2), pipeline(depth, ack))
                .expect("opens");
            let calls = Arc::clone(calls);
            std::thread::spawn(move || {
                let mut with_callback = 0;
                for number in 0..10_000_000_u64 {
                    let refused = match number % 3 {
                        0 => appender.append("x").err(),
                        1 => {
                            let calls = Arc::clone(&calls);
                            let call = move |_: Outcome| add_one(&calls);
                            let accepted = appender.submit_with(one("x"), call);
                            with_callback += u64::from(accepted.is_ok());
                            accepted.err()
                        }
                        _ => match appender.append("x") {
                            Ok(mut ticket) => {
                                // Whatever became of it.
                                let _ = ticket.wait_timeout(SOON).expect("completes");
                                None
                            }
                            Err(refused) => Some(refused),
                        },
                    };
                    if refused.is_some() {
                        return with_callback;
                    }
                }
                panic!("nothing ends it");
            })
        })
        .collect()
}

#[test]
fn a_store_that_is_dropped_or_closed_under_load_ends() {
    for round in 0..40_u64 {
        let (ack, depth) = (ACKS[round as usize % 2], PIPELINES[round as usize % 6]);
        let storage = Faulty::default();
        let store = options().queue_bytes(1 << (4 + round % 10));
        let store = store.open_on(Arc::new(storage.clone())).expect("opens");
        let calls = Arc::new(AtomicU64::new(0));
        let threads = busy(&store, ack, depth, &calls);
        std::thread::sleep(Duration::from_millis(round % 7));
        match round % 4 {
            0 | 1 => soon("drop", move || drop(store)),
            2 => soon("close", move || store.close().expect("closes")),
            _ => {
                let closing = (0..3)
                    .map(|_| store.clone())
                    .map(|store| std::thread::spawn(move || store.close().expect("closes")));
                closing.collect::<Vec<_>>().into_iter().for_each(|thread| ended("close", thread));
            }
        }
        let accepted: u64 = threads.into_iter().map(|thread| ended("a producer", thread)).sum();
        assert_eq!(calls.load(Ordering::SeqCst), accepted);
        check_again(&storage);
    }
}

/// A stage dies at each of its steps, while everything is in flight and somebody gives up.
#[test]
fn a_stage_that_dies_under_load_leaves_nobody_waiting() {
    let deaths = [
        (Op::Write, SEGMENT),
        (Op::Sync, SEGMENT),
        (Op::Create, NEXT_SEGMENT),
        (Op::Sync, NEXT_SEGMENT),
        (Op::Write, "order-"),
        (Op::Create, "checkpoint"),
    ];
    for (op, file) in deaths {
        for round in 0..6_u64 {
            println!("{op:?} of {file}, round {round}");
            let (ack, depth) = (ACKS[round as usize % 2], PIPELINES[round as usize % 6]);
            let storage = Faulty::default();
            let store = open(&storage);
            keep(&store);
            append(&store, "before", vec![0; 300_000]);
            let calls = Arc::new(AtomicU64::new(0));
            let threads = busy(&store, ack, depth, &calls);
            storage.panic(Fault { skip: round * 5, ..Fault::always(op, file) });
            std::thread::sleep(Duration::from_millis(round));
            let asked = store.clone();
            let _ = soon("checkpoint", move || asked.checkpoint());
            if store.cause().is_some() {
                nothing_hangs(&store);
            }
            let closing = store.clone();
            let _ = soon("close", move || closing.close());
            let accepted: u64 = threads.into_iter().map(|thread| ended("a producer", thread)).sum();
            assert_eq!(calls.load(Ordering::SeqCst), accepted);
            check_again(&storage);
        }
    }
}

/// The disk does not come back, and meanwhile everybody gives up: all that need not wait for the disk
/// ends, and all of it when the disk is back.
#[test]
fn giving_up_while_the_disk_is_held_waits_for_nothing_but_the_disk() {
    for ack in ACKS {
        for depth in PIPELINES {
            for dies in [false, true] {
                let storage = Faulty::default();
                let store = open(&storage);
                keep(&store);
                append(&store, "before", "x");
                if dies {
                    storage.panic(Fault::always(Op::Sync, SEGMENT));
                }
                storage.hold(Op::Sync, SEGMENT);
                let appenders = ["closed", "aborted", "dropped", "left"].map(|stream| {
                    let appender =
                        store.appender_with(stream, pipeline(depth, ack)).expect("opens");
                    for _ in 0..depth {
                        appender.submit_with(one("x"), |_| {}).expect("there is room");
                    }
                    appender
                });
                storage.wait_until_one_waits();
                let producers = appenders.each_ref().map(|appender| blocked_producers(appender, 2));
                let [closed, aborted, dropped, left] = appenders;
                let closing = std::thread::spawn(move || closed.close());
                soon("abort", move || aborted.abort());
                drop(dropped);
                let closing_store = store.clone();
                let closing_store = std::thread::spawn(move || closing_store.close());
                for producer in producers.into_iter().flatten() {
                    let refused = ended("a producer", producer);
                    let refused = refused.expect("nobody got in");
                    assert!(
                        matches!(refused, Refusal::Closed | Refusal::Stopped(_)),
                        "{refused:?}"
                    );
                }
                assert!(!closing.is_finished() && !closing_store.is_finished(), "the disk is held");
                storage.let_go();
                assert_eq!(ended("close", closing).is_err(), dies);
                assert_eq!(ended("close", closing_store).is_err(), dies);
                soon("close", move || left.close().is_err());
                check_again(&storage);
            }
        }
    }
}

/// Whoever waits for room hears of the end at once, whatever the end is.
#[test]
fn producers_that_wait_for_room_wake_at_every_end() {
    type End = fn(&StreamAppender, &Store, &Faulty);
    type IsEnd = fn(&Refusal) -> bool;
    let ends: [(&str, End, IsEnd); 4] = [
        (
            "close",
            |appender, _, _| {
                let appender = appender.clone();
                std::thread::spawn(move || appender.close());
            },
            |refused| matches!(refused, Refusal::Closed),
        ),
        (
            "abort",
            |appender, _, _| appender.abort(),
            |refused| matches!(refused, Refusal::Stopped(AppendFailure::NotAppended(_))),
        ),
        (
            "close of the store",
            |_, store, _| {
                let store = store.clone();
                std::thread::spawn(move || store.close());
            },
            |refused| matches!(refused, Refusal::Closed),
        ),
        (
            "a failure elsewhere",
            |_, store, storage| {
                // The committer has a window from before; the writer is with the disk.
                storage.fail(Fault::always(Op::Create, "checkpoint"));
                storage.panic(Fault::always(Op::Create, "checkpoint"));
                let _ = store.checkpoint();
            },
            |refused| matches!(refused, Refusal::Poisoned(_)),
        ),
    ];
    for (name, end, is_end) in ends {
        for depth in PIPELINES {
            for by_queue in [false, true] {
                let storage = Faulty::default();
                let store = options().queue_bytes(if by_queue { 1 } else { 1 << 20 });
                let store = store.open_on(Arc::new(storage.clone())).expect("opens");
                keep(&store);
                append(&store, "before", "x");
                storage.hold(Op::Sync, SEGMENT);
                let filling =
                    store.appender_with("s", pipeline(depth, Ack::Durable)).expect("opens");
                let appender = if by_queue {
                    filling.append("fills the queue").expect("there is room");
                    store.appender_with("s", pipeline(depth, Ack::Durable)).expect("opens")
                } else {
                    for _ in 0..depth {
                        filling.append("x").expect("there is room");
                    }
                    filling
                };
                storage.wait_until_one_waits();
                let producers = blocked_producers(&appender, 3);
                end(&appender, &store, &storage);
                // The disk is still held: they wait for nothing but the end.
                for producer in producers {
                    let refused = ended(name, producer).expect("there was no room");
                    assert!(is_end(&refused), "{name}: {refused:?}");
                }
                storage.let_go();
                let _ = soon("close", move || store.close());
            }
        }
    }
    // And when their time is up.
    let storage = Faulty::default();
    let store = open(&storage);
    append(&store, "before", "x");
    storage.hold(Op::Sync, SEGMENT);
    let appender = store.appender_with("s", pipeline(1, Ack::Durable)).expect("opens");
    appender.append("x").expect("there is room");
    let waiting = appender.clone();
    let refused = soon("submit_timeout", move || {
        waiting.submit_timeout(one("late"), Duration::from_millis(20)).expect_err("no room")
    });
    assert!(matches!(refused.reason, Refusal::TimedOut));
    storage.let_go();
}

/// Flushes, closes, aborts and questions of all handles at once, from threads and from callbacks.
#[test]
fn everything_at_once_ends() {
    for round in 0..30_usize {
        let (ack, depth) = (ACKS[round % 2], PIPELINES[round % 6]);
        let storage = Faulty::default();
        let store = open(&storage);
        keep(&store);
        let appenders: Vec<StreamAppender> = (0..3)
            .map(|lane| {
                store.appender_with(format!("s{lane}"), pipeline(depth, ack)).expect("opens")
            })
            .collect();
        let appenders = Arc::new(appenders);
        let calls = Arc::new(Mutex::new((0_u64, 0_u64)));
        let threads: Vec<_> = (0..6_usize)
            .map(|thread| {
                let (store, appenders) = (store.clone(), Arc::clone(&appenders));
                let calls = Arc::clone(&calls);
                std::thread::spawn(move || {
                    for step in 0..40_usize {
                        let own = &appenders[(thread + step) % 3];
                        let other = Arc::clone(&appenders);
                        let (asked, counting) = (store.clone(), Arc::clone(&calls));
                        let callback = move |_: Outcome| {
                            let appender = &other[(thread + 1) % 3];
                            match (thread * 7 + step) % 11 {
                                0 if step > 20 => drop(appender.close()),
                                1 if step > 25 => appender.abort(),
                                2 if step > 30 => drop(asked.close()),
                                3 => drop(appender.flush()),
                                4 => drop(asked.held()),
                                5 => drop(asked.checkpoint()),
                                _ => drop(appender.try_submit_with(one("from a callback"), |_| {})),
                            }
                            counting.lock().unwrap().1 += 1;
                        };
                        if own.submit_with(one("x"), callback).is_ok() {
                            calls.lock().unwrap().0 += 1;
                        }
                        match (thread + step) % 5 {
                            0 => drop(own.flush()),
                            1 => drop(store.streams()),
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            ended("a thread", thread);
        }
        soon("close", move || store.close()).expect("closes");
        let (accepted, called) = *calls.lock().unwrap();
        assert_eq!(called, accepted);
        check_again(&storage);
    }
}
