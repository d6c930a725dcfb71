//! Discovery: what the log held when the store was opened is put in order, while the store serves.
//!
//! It survives what passes, ends when it is told to, and goes on where it stopped.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Rng, SOON, acked, append, check, expected, keep, nothing_hangs, shared, soon, wild_event,
};
use faulty::{Fault, Faulty, Op, open as open_faulty, options};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{
    Ack, Batch, Cause, CloseError, DiscoveryReport, Event, MixedBatch, Options, Placement,
    ReadError, Store,
};

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
        // Before it opens: the order may have been tried before that returns.
        let begun = Instant::now();
        let store = options().wait_for_room(wait).open_on(Arc::new(storage.clone()));
        stops(&storage, store.expect("opens"));
        let (took, failed) = (begun.elapsed(), storage.failed());
        // A busy machine may not come to more.
        assert!(took >= wait && failed > 1, "{op:?} {file}: tried {failed} times in {took:?}");
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

// What it tells.

/// Appends wild events, so many batches of so many bytes.
fn fill(store: &Store, rng: &mut Rng, batches: u64, byte_len: u64) {
    for _ in 0..batches {
        let mut batch = MixedBatch::new();
        while batch.byte_len() < byte_len {
            let payload = vec![7; rng.below(byte_len / 8) as usize];
            let event = wild_event(rng, 0, 400, payload);
            batch.push(format!("s{}", rng.below(5)), &event).expect("within the limits");
        }
        store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
    }
}

/// Everything that a store counts.
fn counts(store: &Store) -> [u64; 5] {
    let stats = store.stats();
    [stats.delivered, stats.held, stats.duplicates, stats.conflicts, stats.rejected]
}

#[test]
fn a_store_that_was_closed_has_nothing_to_discover() {
    let storage = MemoryStorage::new();
    for _ in 0..2 {
        let store = options().open_on(shared(&storage)).expect("opens");
        let report = store.discovery().wait().expect("is done");
        assert_eq!((report.bytes, report.scanned, report.delivered), (0, 0, 0));
        assert_eq!((report.elapsed, report.first_delivery), (Duration::ZERO, None));
        append(&store, "s", "live");
        let progress = store.discovery().progress();
        assert!(progress.is_done && report.is_done);
        assert_eq!((progress.scanned, progress.eta), (0, Some(Duration::ZERO)));
        assert_eq!(store.discovery().report(), report, "what is appended later does not count");
        store.close().expect("closes");
        assert_eq!(store.discovery().wait().expect("was done before"), report);
    }
}

#[test]
fn a_discovery_reports_what_it_has_found_and_nothing_else() {
    let storage = Faulty::over(MemoryStorage::new());
    let mut rng = Rng::from_env();
    let store = options().open_on(Arc::new(storage.clone())).expect("opens");
    fill(&store, &mut rng, 40, 10_000);
    store.wait_committed(store.durable_end()).expect("ordered");
    store.checkpoint().expect("a checkpoint");
    let at_checkpoint = counts(&store);
    let from = store.stats().committed;
    // What has been written of the order is not written again.
    storage.hold(Op::Write, "order-");
    fill(&store, &mut rng, 40, 10_000);
    let killed = storage.inner.fork();
    storage.let_go();
    store.close().expect("closes");
    for (storage, before, from) in
        [(killed.fork(), at_checkpoint, Some(from)), (only_the_log(killed), [0; 5], None)]
    {
        let storage = Faulty::over(storage);
        storage.hold(Op::Write, "order-");
        let store = options().timings(true).open_on(Arc::new(storage.clone())).expect("opens");
        keep(&store);
        let discovery = store.discovery();
        storage.wait_until_one_waits();
        assert!(discovery.wait_timeout(Duration::ZERO).expect("goes on").is_none());
        let progress = discovery.progress();
        assert!(!progress.is_done && !discovery.report().is_done);
        assert_eq!((progress.bytes_done, progress.delivered, progress.eta), (0, 0, None));
        assert_eq!(progress.delivered_in_all, before[0]);
        // None of this is what it held.
        let old = expected(&storage.inner);
        fill(&store, &mut rng, 10, 10_000);
        storage.let_go();
        let report = discovery.wait().expect("is done");
        let live = store.wait_committed_timeout(store.durable_end(), SOON);
        assert!(live.expect("goes on"), "everything is ordered");
        assert_eq!(report, discovery.report());
        assert_eq!(report.delivered, old.order.len() as u64 - before[0]);
        assert_eq!(report.held, old.held.len() as u64);
        let events = old.events.len() as u64 - before.iter().sum::<u64>();
        assert_eq!(report.scanned, events);
        let set_back = report.duplicates + report.conflicts + report.rejected;
        assert_eq!(before.iter().sum::<u64>() + events, {
            let [_, _, duplicates, conflicts, rejected] = before;
            let before = duplicates + conflicts + rejected;
            (old.order.len() + old.held.len()) as u64 + set_back + before
        });
        assert!(from.is_none_or(|from| report.bytes == old.end - from), "{from:?}");
        assert!(report.is_done && report.corrupt == 0);
        assert!(report.first_delivery.expect("some are delivered") <= report.elapsed);
        let stages = report.stages.expect("timings are on");
        let times = [stages.scan, stages.order, stages.commit];
        assert!(times.iter().all(|time| !time.is_zero()), "{stages:?}");
        let progress = discovery.progress();
        assert!(progress.is_done && progress.bytes_done == progress.bytes_total);
        assert_eq!((progress.bytes_scanned, progress.bytes_total), (report.bytes, report.bytes));
        assert_eq!((progress.scanned, progress.elapsed), (report.scanned, report.elapsed));
        check(&store, &expected(&storage.inner));
        store.close().expect("closes");
    }
}

#[test]
fn a_store_serves_while_it_discovers() {
    let before = Faulty::default();
    let store = open_faulty(&before);
    for number in 0..10 {
        append(&store, "s", format!("{number}"));
    }
    store.checkpoint().expect("a checkpoint");
    // Durable, and not ordered: an entry that is there would not be written again.
    before.hold(Op::Write, "order-");
    store
        .appender("s")
        .expect("an appender")
        .append("10")
        .expect("accepted")
        .wait()
        .expect("stored");
    let storage = Faulty::over(before.inner.fork());
    before.let_go();
    storage.hold(Op::Write, "order-");
    let store = open_faulty(&storage);
    storage.wait_until_one_waits();
    let payloads = |store: &Store| store.read(..).expect("reads").count();
    assert_eq!(payloads(&store), 10);
    assert_eq!(store.stream("s").expect("finds").expect("is there").len(), 10);
    let mut subscription = store.subscribe(9).expect("subscribes");
    assert_eq!(subscription.next().expect("an event").expect("reads").payload(), b"9");
    assert!(subscription.try_next().expect("reads").is_none());
    let appender = store.appender("t").expect("an appender");
    appender.append("durable").expect("accepted").wait().expect("appended");
    assert!(!store.discovery().progress().is_done);
    storage.let_go();
    assert_eq!(subscription.next().expect("an event").expect("reads").payload(), b"10");
    assert_eq!(subscription.next().expect("an event").expect("reads").payload(), b"durable");
    assert_eq!(store.discovery().wait().expect("is done").delivered, 1);
    store.close().expect("closes");
}

#[test]
fn who_waits_for_a_discovery_learns_why_it_ended() {
    for fails in [false, true] {
        let storage = Faulty::over(undelivered(3));
        storage.hold(Op::Write, "order-");
        let store = open_faulty(&storage);
        let discovery = store.discovery();
        storage.wait_until_one_waits();
        let waiting = discovery.clone();
        let waiting = std::thread::spawn(move || soon("wait", move || waiting.wait()));
        storage.fail(fault(Op::Write, "tips-", u64::from(fails), ErrorKind::PermissionDenied));
        storage.fail(fault(Op::Write, "order-", u64::from(fails), ErrorKind::PermissionDenied));
        let closing = store.clone();
        let closing = std::thread::spawn(move || closing.close());
        if !fails {
            // The write that waits comes back too late: what it is for is left to the next opening.
            std::thread::sleep(Duration::from_millis(1200));
        }
        storage.let_go();
        let (waited, closed) = (waiting.join().expect("ends"), closing.join().expect("ends"));
        match waited {
            Err(ReadError::Poisoned(cause)) if fails => {
                assert!(is_derived(&cause) && closed.is_err());
                assert!(!discovery.report().is_done);
                assert!(matches!(discovery.wait(), Err(ReadError::Poisoned(_))));
            }
            // It was a small log, and in hand.
            Ok(report) if !fails => assert!(report.is_done),
            other => panic!("{other:?}"),
        }
    }
}

// Interrupting it.

/// No close takes longer, by far, whatever it interrupts and however busy the machine.
const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn an_interrupted_discovery_goes_on_and_comes_to_the_same_order() {
    let mut rng = Rng::from_env();
    let log = MemoryStorage::new();
    let store = Options::new().segment_bytes(4 << 20).open_on(shared(&log)).expect("opens");
    fill(&store, &mut rng, 30, 1 << 20);
    store.close().expect("closes");
    let log = only_the_log(log);
    let whole = expected(&log);
    for (scanners, orderers) in [(1, 1), (1, 2), (2, 4), (4, 3)] {
        let storage = Faulty::over(log.fork());
        storage.slow_down(Op::Write, "order-", Duration::from_millis(150 + rng.below(250)));
        let (mut reached, mut interrupted) = (0, 0);
        let report: DiscoveryReport = loop {
            let options = Options::new().segment_bytes(4 << 20);
            let options = options.scanners(scanners).orderers(orderers);
            let store = options.open_on(Arc::new(storage.clone())).expect("opens");
            let discovery = store.discovery();
            assert!(discovery.progress().delivered_in_all >= reached, "delivered anew");
            let after = Duration::from_micros(rng.below(100_000));
            let done = discovery.wait_timeout(after).expect("goes on");
            let seen: Vec<u64> = store
                .read(..)
                .expect("reads")
                .map(|event| event.expect("reads").position())
                .collect();
            let order = whole.order.iter().map(|delivery| delivery.position);
            assert!(order.take(seen.len()).eq(seen), "renumbered");
            let begun = Instant::now();
            let closing = store.clone();
            soon("close", move || closing.close()).expect("closes");
            assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
            if let Some(done) = done {
                break done;
            }
            let stopped = discovery.report();
            interrupted += u64::from(!stopped.is_done);
            reached = reached.max(store.stats().delivered);
        };
        println!("{scanners}, {orderers}: interrupted {interrupted} times");
        assert!(report.is_done && interrupted > 0);
        let store = open_faulty(&storage);
        check(&store, &whole);
        assert_eq!(store.discovery().report().scanned, 0);
        store.close().expect("closes");
    }
}

/// A single event can set off any number of deliveries, and closing waited for all of them.
#[test]
fn a_close_does_not_wait_for_a_long_release() {
    // Unoptimized, it takes too long to make a log whose release takes long.
    let length = if cfg!(debug_assertions) { 50_000 } else { 5_000_000_u64 };
    let log = MemoryStorage::new();
    let store = Options::new().durability(thalweg::Durability::Buffered);
    let store = store.open_on(shared(&log)).expect("opens");
    let mut batch = MixedBatch::new();
    let event = |number: u64| {
        let parents = number.checked_sub(1).map(|parent| format!("{parent}"));
        Event::new("").id(format!("{number}")).parents(parents)
    };
    for number in (1..length).rev() {
        batch.push("s", &event(number)).expect("within the limits");
        if batch.len() == 10_000 || number == 1 {
            let batch = std::mem::take(&mut batch);
            store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
        }
    }
    store.wait_committed(store.durable_end()).expect("ordered");
    assert_eq!(store.stats().held, length - 1);
    // The last event to arrive is the first of the chain; all others wait for it.
    let appender = store.appender("s").expect("an appender");
    appender.append_event(event(0)).expect("accepted").wait().expect("appended");
    let begun = Instant::now();
    store.close().expect("closes");
    println!("closed in {:?}", begun.elapsed());
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let delivered = store.stats().delivered;
    assert!(delivered == 0 || cfg!(debug_assertions), "too short to be interrupted");
    let store = Options::new().open_on(shared(&log)).expect("opens");
    let report = store.discovery().wait().expect("goes on");
    assert_eq!((report.delivered, report.held), (length - delivered, 0));
    store.close().expect("closes");
}
