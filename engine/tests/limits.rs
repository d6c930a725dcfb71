//! What runs out: room on the disk, memory, descriptors, threads, and the patience of others. The store
//! says so by name, loses nothing, keeps nobody waiting who need not wait, and goes on when there is more.
//!
//! Bounds on queues and pipelines are in `appender.rs`, waits that end in `deadlocks.rs`. What needs limits
//! of the operating system runs in a child process.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::sync::Arc;

use common::{SOON, append, check, expected, keep, shared, soon};
use faulty::{Fault, Faulty, Op, open as open_faulty, options};
use thalweg::storage::Storage;
use thalweg::{Ack, AppendFailure, Cause, Event, MixedBatch, Store, Why};

// A full disk.

/// Appends a held event, events for several windows, and waits until they are durable.
fn append_windows(store: &Store) {
    for number in 0..40 {
        let mut batch = MixedBatch::new();
        let id = format!("held {number}");
        batch.push("s", &Event::new("x").id(id).parents(["missing"])).expect("within the limits");
        batch.push("s", &Event::new(format!("{number}"))).expect("within the limits");
        store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
    }
}

/// The order waited for room on the disk, and whoever asked a question waited for the order. In one case the
/// state was over its budget of memory and its run could not be written; in the other the committer had as
/// many windows as it may, and could not write them.
#[test]
fn questions_are_answered_while_the_order_waits_for_room() {
    for (op, file, budget) in
        [(Op::Create, "run-", 0), (Op::Write, "checkpoint", 0), (Op::Write, "order-", 1 << 30)]
    {
        let storage = Faulty::default();
        let store = options().memory_budget(budget).open_on(Arc::new(storage.clone()));
        let store = store.expect("opens");
        keep(&store);
        append(&store, "s", "before");
        storage.fail(Fault::always(op, file));
        append_windows(&store);
        let begun = std::time::Instant::now();
        while storage.failed() < 3 {
            assert!(begun.elapsed() < SOON, "{file}: nothing has failed");
            std::thread::yield_now();
        }
        for _ in 0..3 {
            let asking = store.clone();
            let held = soon("held", move || asking.held()).expect("an answer");
            assert!(held.len() <= 40);
            let asking = store.clone();
            let streams = soon("streams", move || asking.streams()).expect("an answer");
            assert_eq!(streams.len(), 1);
            let asking = store.clone();
            let why = soon("why_held", move || asking.why_held("s", "nobody")).expect("an answer");
            assert_eq!(why, Why::Unknown);
        }
        assert_eq!(store.cause().map(|cause| cause.to_string()), None, "{file}");
        let waiting = store.clone();
        let end = store.durable_end();
        storage.heal();
        soon("wait_committed", move || waiting.wait_committed(end)).expect("room again");
        check(&store, &expected(&storage.inner));
        store.close().expect("closes");
    }
}

/// A close ends the wait for room, and the next opening orders what is left.
#[test]
fn a_close_ends_a_wait_for_room_with_questions_in_it() {
    for (op, file, budget) in [(Op::Create, "run-", 0), (Op::Write, "order-", 1 << 30)] {
        let storage = Faulty::default();
        let store = options().memory_budget(budget).open_on(Arc::new(storage.clone()));
        let store = store.expect("opens");
        keep(&store);
        append(&store, "s", "before");
        storage.fail(Fault::always(op, file));
        append_windows(&store);
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                std::thread::spawn(move || while store.held().is_ok() {})
            })
            .collect();
        let closing = store.clone();
        let _ = soon("close", move || closing.close());
        for thread in asking {
            soon("held", move || thread.join()).expect("ends");
        }
        let left = storage.inner.fork();
        let store = options().open_on(Arc::new(left.clone())).expect("opens");
        check(&store, &expected(&left));
    }
}

/// A store that had not been closed did not open on a full disk, not even to be read.
#[test]
fn a_store_opens_on_a_full_disk_and_serves() {
    // With and without room for a checkpoint.
    for file in ["segment-", ""] {
        let storage = Faulty::default();
        let store = open_faulty(&storage);
        append_windows(&store);
        let storage = Faulty::over(storage.inner.fork());
        drop(store);
        storage.fail(Fault::always(Op::Create, file));
        for _ in 0..3 {
            let store = open_faulty(&storage);
            keep(&store);
            let whole = expected(&storage.inner);
            if file == "segment-" {
                check(&store, &whole);
            }
            assert_eq!(store.held().expect("an answer").len(), whole.held.len());
            for _ in 0..2 {
                let appender = store.appender("s").expect("an appender");
                let refused = appender.append("x").expect("accepted").wait().expect_err("full");
                let full = matches!(refused, AppendFailure::NotAppended(Cause::StorageFull(_)));
                assert!(full, "{refused:?}");
            }
            let closing = store.clone();
            let _ = soon("close", move || closing.close());
            let reader = options().open_read_only_on(shared(&storage.inner)).expect("opens");
            check(&reader, &whole);
        }
        let store = open_faulty(&storage);
        storage.heal();
        append(&store, "s", "room again");
        check(&store, &expected(&storage.inner));
        store.close().expect("closes");
        let store = options().open_on(shared(&storage.inner)).expect("opens");
        check(&store, &expected(&storage.inner));
        let segments = storage.inner.list().expect("lists");
        let segments = segments.iter().filter(|name| name.starts_with("segment-")).count();
        assert_eq!(segments, 2, "the log went on where nobody knows what a crash has left");
    }
}

/// A lack of descriptors stopped the store for good when it came to the next segment, though nothing was at
/// stake.
#[test]
fn a_lack_of_descriptors_refuses_appends_until_there_are_some() {
    const EMFILE: i32 = 24;
    const ENOMEM: i32 = 12;
    for number in [EMFILE, ENOMEM] {
        let storage = Faulty::default();
        storage.fail_with_os_error(Fault::always(Op::Create, "segment-0000000000000002"), number);
        let store = open_faulty(&storage);
        let mut appended = 0;
        let refused = loop {
            let appender = store.appender("s").expect("an appender");
            match appender.append(vec![1; 100_000]).expect("accepted").wait() {
                Ok(_) => appended += 1,
                Err(failure) => break failure,
            }
            assert!(appended < 12, "nothing is refused");
        };
        let AppendFailure::NotAppended(cause @ Cause::Exhausted(_)) = refused else {
            panic!("{refused:?}")
        };
        assert!(cause.to_string().contains("ulimit"), "{cause}");
        append(&store, "s", "a small one fits");
        storage.heal();
        append(&store, "s", vec![2; 100_000]);
        check(&store, &expected(&storage.inner));
        assert_eq!(store.stats().delivered, appended + 2);
        store.close().expect("closes");
    }
}
