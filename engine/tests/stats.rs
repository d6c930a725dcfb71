//! `Store::stats`: what is on its way, what is in the queues, and how long the stages take.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::sync::{Arc, Condvar, Mutex};

use common::{acked, append, keep, soon};
use faulty::{Faulty, Op, open, options};
use thalweg::{
    Ack, Batch, Durability, Event, Histogram, Options, QueueDepth, QueueDepths, Store, Timings,
};

fn batch(events: usize) -> Batch {
    (0..events).map(|_| Event::new([7; 100])).collect()
}

/// Everything accepted is ordered and shown.
fn settle(store: &Store) {
    store.wait_committed(store.durable_end()).expect("goes on");
}

fn counts<const N: usize>(histograms: [&Histogram; N]) -> [u64; N] {
    histograms.map(Histogram::count)
}

#[test]
fn what_waits_for_a_sync_is_in_the_backlog_and_in_the_queue() {
    let storage = Faulty::default();
    let store = open(&storage);
    keep(&store);
    let before = store.stats();
    assert_eq!(before.queues, QueueDepths::default());
    storage.hold(Op::Sync, "segment-");
    let appender = store.appender("s").expect("an appender");
    let ticket = appender.submit(batch(3)).expect("accepted");
    storage.wait_until_one_waits();
    let stats = store.stats();
    assert_eq!(stats.durable, before.durable);
    assert_eq!(stats.backlog.sync.bytes, stats.written - stats.durable);
    assert!(stats.backlog.sync.bytes > 300, "{:?}", stats.backlog);
    assert_eq!(stats.backlog.sync.events, Some(3));
    let QueueDepth { batches, bytes, .. } = stats.queues.durable;
    assert!(batches == 1 && bytes > 300, "{:?}", stats.queues);
    assert_eq!(stats.queues.ordered.batches, 0);
    // The frame is written, and its sync is not over.
    assert_eq!(counts([&stats.timings.write, &stats.timings.sync]), [1, 0]);
    storage.let_go();
    ticket.wait().expect("appended");
    settle(&store);
    let stats = soon("all is through", {
        let store = store.clone();
        move || {
            loop {
                let stats = store.stats();
                if stats.queues == QueueDepths::default() {
                    return stats;
                }
                std::thread::yield_now();
            }
        }
    });
    assert_eq!((stats.backlog.sync.bytes, stats.backlog.sync.events), (0, Some(0)));
    assert_eq!(stats.backlog.commit.bytes + stats.backlog.scan.bytes, 0);
}

#[test]
fn what_waits_for_the_committer_is_counted_in_events() {
    let storage = Faulty::default();
    let store = open(&storage);
    keep(&store);
    append(&store, "s", "before");
    settle(&store);
    storage.hold(Op::Write, "order-");
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let ticket = appender.submit(batch(5)).expect("accepted");
    storage.wait_until_one_waits();
    let stats = store.stats();
    assert_eq!((stats.delivered, stats.backlog.commit.events), (1, Some(5)));
    assert_eq!(stats.backlog.commit.bytes, stats.ordered - stats.committed);
    assert!(stats.backlog.commit.bytes > 500);
    assert_eq!((stats.backlog.order.bytes, stats.backlog.order.events), (0, Some(0)));
    assert_eq!((stats.queues.ordered.batches, stats.queues.durable.batches), (1, 0));
    // More windows wait in front of the committer, and no more than may.
    // Appends that come together may be one window.
    let appended = soon("windows pile up", {
        let (store, durable) = (store.clone(), store.appender("s").expect("an appender"));
        move || {
            let mut appended = 0;
            while store.stats().queues.windows < 2 {
                durable.append("more").expect("accepted").wait().expect("durable");
                appended += 1;
            }
            appended
        }
    });
    assert!(store.stats().queues.windows <= 3);
    storage.let_go();
    ticket.wait().expect("ordered");
    settle(&store);
    let stats = store.stats();
    assert_eq!((stats.delivered, stats.backlog.commit.events), (6 + appended, Some(0)));
}

/// A gate that callbacks wait at.
#[derive(Default)]
struct Hold(Mutex<bool>, Condvar);

#[test]
fn callbacks_that_have_not_returned_are_counted() {
    let storage = Faulty::default();
    let store = open(&storage);
    keep(&store);
    let appender = store.appender_with("s", acked(Ack::Durable).pipeline(8)).expect("an appender");
    let hold = Arc::new(Hold::default());
    for _ in 0..3 {
        let hold = Arc::clone(&hold);
        let wait = move |_| drop(hold.1.wait_while(hold.0.lock().unwrap(), |go| !*go).unwrap());
        appender.submit_with(batch(1), wait).expect("accepted");
    }
    soon("three are there", {
        let store = store.clone();
        move || {
            while store.stats().queues.callbacks < 3 {
                std::thread::yield_now();
            }
        }
    });
    assert_eq!(store.stats().queues.callbacks, 3);
    *hold.0.lock().unwrap() = true;
    hold.1.notify_all();
    appender.flush().expect("flushes");
    assert_eq!(store.stats().queues.callbacks, 0);
}

#[test]
fn every_frame_and_every_window_is_in_the_histograms() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let from = store.stats().written;
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    for _ in 0..20 {
        // Each alone in its frame and its window, since it is waited for.
        appender.submit(batch(2)).expect("accepted").wait().expect("ordered");
    }
    let stats = store.stats();
    let Timings { write, sync, frame_batches, frame_bytes, scan, order, commit, .. } =
        &stats.timings;
    let of_frames = [write, sync, frame_batches, frame_bytes];
    assert_eq!(counts(of_frames), [20; 4]);
    assert_eq!(counts([scan, order, commit]), [20; 3]);
    assert_eq!((frame_batches.sum(), frame_batches.max()), (20, 1));
    assert_eq!(frame_bytes.sum(), stats.written - from);
    assert!(frame_bytes.quantile(0.5) >= 200 && frame_bytes.quantile(0.5) <= frame_bytes.max());
    for times in [write, sync, scan, order, commit] {
        assert!(times.sum() > 0 && times.quantile(1.0) == times.max());
        assert!(times.quantile(0.5) <= times.quantile(0.99));
    }
    // Nobody has asked for these.
    let Timings { slot_wait, queue, durable, ordered, callback, .. } = &stats.timings;
    assert_eq!(counts([slot_wait, queue, durable, ordered, callback]), [0; 5]);
    store.close().expect("closes");
}

#[test]
fn batches_are_timed_by_their_acknowledgement_if_somebody_asks() {
    let storage = Faulty::default();
    let store = options().timings(true).open_on(Arc::new(storage)).expect("opens");
    keep(&store);
    for (ack, appends) in [(Ack::Durable, 3), (Ack::Ordered, 4)] {
        let appender = store.appender_with("s", acked(ack)).expect("an appender");
        for _ in 0..appends {
            appender.append("x").expect("accepted").wait().expect("appended");
        }
        appender.submit_with(batch(1), drop).expect("accepted");
        appender.flush().expect("flushes");
    }
    let Timings { slot_wait, queue, durable, ordered, callback, sync, .. } = store.stats().timings;
    assert_eq!(counts([&slot_wait, &durable, &ordered, &callback]), [9, 4, 5, 2]);
    // Flushes are none of these.
    assert_eq!(queue.count(), 9);
    assert!(durable.sum() + ordered.sum() >= sync.sum(), "an append takes at least its sync");
}

#[test]
fn a_buffered_frame_is_counted_like_any_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options::new().durability(Durability::Buffered);
    let store = options.open(dir.path()).expect("opens");
    (0..5).for_each(|_| append(&store, "s", "x"));
    let Timings { write, sync, .. } = store.stats().timings;
    assert_eq!(counts([&write, &sync]), [5, 5]);
    assert_eq!(store.stats().backlog.sync.bytes, 0, "readable is what is meant by durable here");
    store.close().expect("closes");
}

#[test]
fn cursors_are_there_with_what_they_are_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    assert_eq!(store.stats().cursors, []);
    (0..7).for_each(|_| append(&store, "s", "x"));
    settle(&store);
    store.cursor("mailer").expect("a cursor").commit(2).expect("commits");
    store.cursor("audit").expect("a cursor").commit(7).expect("commits");
    let cursors = store.stats().cursors;
    assert_eq!(cursors, store.cursors());
    let shown: Vec<(&[u8], u64, u64)> =
        cursors.iter().map(|cursor| (&cursor.name[..], cursor.at, cursor.lag)).collect();
    assert_eq!(shown, [(&b"audit"[..], 7, 0), (b"mailer", 2, 5)]);
    store.close().expect("closes");
}

#[test]
fn nobody_has_held_what_is_not_held() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    append(&store, "s", "x");
    settle(&store);
    assert_eq!(store.stats().held, 0);
    store.close().expect("closes");
}
