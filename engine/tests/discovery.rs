//! Discovery: what the log held when the store was opened is put in order, while the store serves.
//!
//! It survives what passes, ends when it is told to, and goes on where it stopped.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{SOON, acked, append, check, expected, keep, nothing_hangs, shared, soon};
use faulty::{Fault, Faulty, Op, open as open_faulty, options};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{Ack, Batch, Cause, CloseError, Event, Placement, Store};

/// The number of "input/output error", on every Unix.
const EIO: i32 = 5;

/// A closed store of which only the log is left.
fn only_the_log(storage: MemoryStorage) -> MemoryStorage {
    for name in storage.list().expect("lists") {
        if !name.starts_with("segment-") && name != "LOCK" {
            storage.remove(&name).expect("removes");
        }
    }
    storage
}

/// A log with these many batches, each with an event that is chained on two tips: its order takes items
/// of the tips log too.
fn undelivered(batches: u64) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let store = options().open_on(shared(&storage)).expect("opens");
    let appender = store.appender_with("s", acked(Ack::Durable)).expect("an appender");
    for number in 0..batches {
        appender.submit(forked(number)).expect("accepted").wait().expect("appended");
    }
    store.close().expect("closes");
    only_the_log(storage)
}

fn forked(number: u64) -> Batch {
    let root = |side: &str| Event::new(side).id(format!("{number}{side}")).parents::<&str>([]);
    Batch::from([root("left"), root("right"), Event::new(format!("{number}"))])
}

fn is_derived(cause: &Cause) -> bool {
    matches!(cause, Cause::Derived(_))
}

// What passes.

/// Where the order is written.
const WRITES: [(Op, &str); 4] =
    [(Op::Write, "order-"), (Op::Write, "tips-"), (Op::Create, "order-"), (Op::Create, "tips-")];

fn fault(op: Op, file: &'static str, count: u64, error: ErrorKind) -> Fault {
    Fault { op: Some(op), file, skip: 0, count, error }
}

/// The first write of the order that failed stopped the engine, whatever the error was.
#[test]
fn a_write_of_the_order_that_fails_for_a_while_is_tried_again() {
    let log = undelivered(40);
    for (op, file) in WRITES {
        for count in [1, 4] {
            for error in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::WouldBlock] {
                let storage = Faulty::over(log.fork());
                storage.fail(fault(op, file, count, error));
                tried_again(&storage, count);
            }
            let storage = Faulty::over(log.fork());
            storage.fail_with_os_error(fault(op, file, count, ErrorKind::Other), EIO);
            tried_again(&storage, count);
        }
    }
}

fn tried_again(storage: &Faulty, count: u64) {
    let store = open_faulty(storage);
    append(&store, "s", "one more");
    assert!(store.wait_committed_timeout(store.durable_end(), SOON).expect("goes on"));
    assert_eq!(storage.failed(), count);
    let stats = store.stats();
    assert_eq!((stats.commit_retries, stats.commit_error), (count, None));
    check(&store, &expected(&storage.inner));
    store.close().expect("closes");
    let store = open_faulty(storage);
    check(&store, &expected(&storage.inner));
    store.close().expect("closes");
}

#[test]
fn nothing_durable_waits_for_an_order_that_cannot_be_written() {
    let storage = Faulty::over(undelivered(3));
    storage.fail(fault(Op::Write, "order-", u64::MAX, ErrorKind::StorageFull));
    let store = open_faulty(&storage);
    keep(&store);
    let begun = Instant::now();
    let error = loop {
        assert!(begun.elapsed() < SOON, "nobody tells what is wrong");
        if let Some(error) = store.stats().commit_error {
            break error;
        }
    };
    assert!(error.contains("space"), "{error}");
    let ordered = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let mut waiting = ordered.append("waits for its order").expect("accepted");
    let durable = store.appender_with("s", acked(Ack::Durable)).expect("an appender");
    for _ in 0..20 {
        let mut ticket = durable.append("is durable").expect("accepted");
        ticket.wait_timeout(SOON).expect("completes").expect("appended");
    }
    assert!(waiting.wait_timeout(Duration::from_millis(20)).is_none());
    assert_eq!((store.stats().delivered, store.cause().is_none()), (0, true));
    storage.heal();
    let receipt = waiting.wait_timeout(SOON).expect("completes").expect("appended");
    assert!(matches!(receipt.placements[..], [Placement::Delivered { .. }]));
    check(&store, &expected(&storage.inner));
    assert_eq!(store.stats().commit_error, None);
    store.close().expect("closes");
}

// What does not pass.

#[test]
fn a_write_of_the_order_that_never_succeeds_stops_the_store_with_the_cause() {
    let log = undelivered(3);
    for (op, file) in WRITES {
        let storage = Faulty::over(log.fork());
        storage.fail_with_os_error(fault(op, file, u64::MAX, ErrorKind::Other), EIO);
        stops(&storage, open_faulty(&storage));
        assert!(storage.failed() > 3, "{op:?} {file}: tried {} times", storage.failed());

        let storage = Faulty::over(log.fork());
        storage.fail(fault(op, file, u64::MAX, ErrorKind::StorageFull));
        let wait = Duration::from_millis(50);
        let store = options().wait_for_room(wait).open_on(Arc::new(storage.clone()));
        let begun = Instant::now();
        stops(&storage, store.expect("opens"));
        assert!(begun.elapsed() >= wait && storage.failed() > 3);
    }
}

#[test]
fn what_will_not_pass_is_not_tried_again() {
    let log = undelivered(3);
    for (op, file) in WRITES {
        for error in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem, ErrorKind::Other]
        {
            let storage = Faulty::over(log.fork());
            storage.fail(fault(op, file, u64::MAX, error));
            stops(&storage, open_faulty(&storage));
            assert_eq!(storage.failed(), 1, "{op:?} {file} {error:?}");
        }
    }
}

fn stops(storage: &Faulty, store: Store) {
    keep(&store);
    let waiting = store.clone();
    soon("wait_committed", move || waiting.wait_committed(u64::MAX)).expect_err("it stops");
    assert!(is_derived(&store.cause().expect("a cause")));
    nothing_hangs(&store);
    let closed = soon("close", move || store.close());
    assert!(matches!(closed, Err(CloseError::Poisoned(cause)) if is_derived(&cause)));
    check(&open_faulty(&Faulty::over(storage.inner.clone())), &expected(&storage.inner));
}

#[test]
fn a_close_does_not_wait_for_room_on_the_disk() {
    for durable_only in [true, false] {
        let storage = Faulty::over(undelivered(3));
        storage.fail(fault(Op::Write, "order-", u64::MAX, ErrorKind::StorageFull));
        let store = options().wait_for_room(Duration::from_secs(3600));
        let store = store.open_on(Arc::new(storage.clone())).expect("opens");
        keep(&store);
        let ack = if durable_only { Ack::Durable } else { Ack::Ordered };
        let appender = store.appender_with("s", acked(ack)).expect("an appender");
        let mut ticket = appender.append("x").expect("accepted");
        let begun = Instant::now();
        while storage.failed() < 5 {
            assert!(begun.elapsed() < SOON, "it is not tried again");
        }
        let begun = Instant::now();
        let closed = soon("close", move || store.close());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        // Whoever closes learns that the order is not written, and why.
        assert!(matches!(closed, Err(CloseError::Poisoned(cause)) if is_derived(&cause)));
        ticket.wait_timeout(SOON).expect("completes").expect("what is durable is appended");
        storage.heal();
        check(&open_faulty(&storage), &expected(&storage.inner));
    }
}

/// Appends that waited for their order kept their places in the store's queue, and when they had filled it,
/// during a long discovery or with a full disk, durable appends waited for the order as well.
#[test]
fn appends_that_wait_for_the_order_keep_no_durable_append_out() {
    let storage = Faulty::over(undelivered(3));
    storage.hold(Op::Write, "order-");
    let store = options().queue_bytes(10_000).open_on(Arc::new(storage.clone())).expect("opens");
    keep(&store);
    storage.wait_until_one_waits();
    let ordered = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let mut waiting = Vec::new();
    while let Ok(ticket) = ordered.try_submit(Batch::from([Event::new(vec![0; 1000])])) {
        waiting.push(ticket);
    }
    let durable = store.appender_with("s", acked(Ack::Durable)).expect("an appender");
    for _ in 0..3 {
        let mut ticket =
            durable.try_submit(Batch::from([Event::new(vec![1; 1000])])).expect("accepted");
        ticket.wait_timeout(SOON).expect("completes").expect("appended");
    }
    storage.let_go();
    for mut ticket in waiting {
        ticket.wait_timeout(SOON).expect("completes").expect("appended");
    }
    check(&store, &expected(&storage.inner));
    store.close().expect("closes");
}
