//! Opening, closing, dropping and failing: nothing hangs, everything accepted completes exactly once,
//! and a store that has stopped can be read, and opened again.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::{
    Rng, SOON, acked, append, check, expected, nothing_hangs, shared, soon, this_test, wild_event,
};
use faulty::{Fault, Faulty, Op};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{
    Ack, AppendFailure, Batch, Cause, CloseError, Event, LogOpenError, MixedBatch, OpenError,
    Options, Placement, ReadError, Refusal, Store, Ticket,
};

fn payloads(store: &Store) -> Vec<Vec<u8>> {
    let events = store.read(..).expect("reads");
    events.map(|event| event.expect("reads").payload().to_vec()).collect()
}

/// The orderer cut the log where the bytes ended that it could see, which is a moment before the
/// writer has handed over the tickets for them. A ticket that came too late waited for the next
/// append, and did not learn what became of its events.
#[test]
fn tickets_for_the_order_are_never_late() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let stream = format!("s{thread}");
            let appender = store.appender_with(&stream, acked(Ack::Ordered)).expect("an appender");
            let unwatched = store.appender_with(&stream, acked(Ack::Durable)).expect("another");
            scope.spawn(move || {
                for round in 0..1000_u64 {
                    unwatched.append("one more").expect("accepted");
                    let batch = Batch::from([Event::new(vec![0; round as usize % 5])]);
                    let mut ticket = appender.submit(batch).expect("accepted");
                    let receipt = ticket.wait_timeout(SOON).expect("in time").expect("appended");
                    let placement = receipt.placements[0].clone();
                    let own = 2 * round + 1;
                    assert!(
                        matches!(placement, Placement::Delivered { local, .. } if local == own),
                        "{placement:?} of event {own}"
                    );
                }
            });
        }
    });
}

// One writer, and readers beside it.

#[test]
fn a_second_writer_is_refused_and_told_who_has_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let me = format!("process {}", std::process::id());
    match Store::open(dir.path()) {
        Err(OpenError::Log(LogOpenError::Locked { holder, .. })) => assert_eq!(holder, me),
        other => panic!("{other:?}"),
    }
    let child = this_test("child_that_opens")
        .env("THALWEG_CHILD_DIR", dir.path())
        .output()
        .expect("the child runs");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains(&format!("refused: {me}\n")), "{said}");
    // A handle that is left keeps nothing locked once the store is closed.
    let appender = store.appender("s").expect("an appender");
    store.close().expect("closes");
    let again = Store::open(dir.path()).expect("opens again");
    append(&again, "s", "x");
    assert!(
        matches!(appender.append("y"), Err(refused) if matches!(refused.reason, Refusal::Closed))
    );
}

#[test]
#[ignore = "the process that `a_second_writer_is_refused_and_told_who_has_the_store` starts"]
fn child_that_opens() {
    let Some(dir) = std::env::var_os("THALWEG_CHILD_DIR") else { return };
    match Store::open(dir) {
        Err(OpenError::Log(LogOpenError::Locked { holder, .. })) => println!("\nrefused: {holder}"),
        other => println!("\nnot refused: {other:?}"),
    }
}

/// Names and bytes of all files; nothing while a segment is being prepared.
fn directory(path: &Path) -> Option<BTreeMap<String, Vec<u8>>> {
    let entries = std::fs::read_dir(path).expect("lists");
    entries
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            let name = entry.file_name().into_string().expect("a plain name");
            Some((name, std::fs::read(entry.path()).ok()?))
        })
        .collect()
}

#[test]
fn a_reader_beside_the_writer_sees_a_prefix_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Options::new().segment_bytes(1 << 20).open(dir.path()).expect("opens");
    let mut rng = Rng::from_env();
    for round in 0..30_u64 {
        let mut batch = MixedBatch::new();
        for _ in 0..20 {
            let payload = vec![round as u8; rng.below(3000) as usize];
            batch.push("s", &wild_event(&mut rng, 0, 2000, payload)).expect("within the limits");
        }
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
        if round % 10 == 3 {
            store.checkpoint().expect("a checkpoint");
        }
        if round % 3 == 0 {
            let before = loop {
                // None while a segment that is prepared in the background gets its name.
                if let Some(before) = directory(dir.path()) {
                    break before;
                }
            };
            let reader = Options::new().open_read_only(dir.path()).expect("opens for reading");
            check(
                &reader,
                &expected(&thalweg::storage::OsStorage::open(dir.path()).expect("opens")),
            );
            assert!(matches!(reader.appender("s"), Err(Refusal::ReadOnly)));
            let refused = reader.submit(MixedBatch::new(), Ack::Durable).expect_err("refused");
            assert!(matches!(refused.reason, Refusal::ReadOnly));
            reader.checkpoint().expect_err("a reader writes nothing");
            reader.close().expect("closes");
            // Beside the reader, the writer may only have prepared its next segment.
            let after = loop {
                if let Some(after) = directory(dir.path()) {
                    break after;
                }
            };
            let is_new = |name: &str| name.starts_with("segment-") && !before.contains_key(name);
            let kept = after.iter().filter(|(name, _)| !is_new(name));
            let settled = before.iter().filter(|(name, _)| !name.ends_with(".new"));
            assert!(kept.eq(settled), "the reader has changed something");
        }
    }
}

#[test]
fn a_reader_that_opens_during_appends_sees_a_prefix() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Options::new().segment_bytes(1 << 20).open(dir.path()).expect("opens");
    let (stop, seen) = (AtomicU64::new(0), AtomicU64::new(0));
    let views = std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let mut rng = Rng(thread);
                let mut round = 0;
                while stop.load(Ordering::Relaxed) == 0 {
                    let payload = vec![3; rng.below(2000) as usize];
                    let event = wild_event(&mut rng, round / 2, 40, payload);
                    round += 1;
                    let mut batch = MixedBatch::new();
                    batch.push(format!("s{}", round % 4), &event).expect("within the limits");
                    store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
                }
            });
        }
        let views: Vec<_> = (0..12)
            .map(|round| {
                if round % 4 == 2 {
                    store.checkpoint().expect("a checkpoint");
                }
                let at_least = store.durable_end();
                let reader = Options::new().orderers(1).open_read_only(dir.path()).expect("opens");
                assert!(reader.durable_end() >= at_least, "what was durable is there");
                reader.wait_committed(reader.durable_end()).expect("orders");
                let view: Vec<(u64, Vec<u8>)> = reader
                    .read(..)
                    .expect("reads")
                    .map(|event| event.expect("reads"))
                    .map(|event| (event.position(), event.id().to_vec()))
                    .collect();
                seen.fetch_add(view.len() as u64, Ordering::Relaxed);
                view
            })
            .collect();
        stop.store(1, Ordering::Relaxed);
        views
    });
    let storage = thalweg::storage::OsStorage::open(dir.path()).expect("opens");
    let whole = expected(&storage);
    for view in views {
        let order = &whole.order[..view.len()];
        let wanted: Vec<(u64, Vec<u8>)> = order
            .iter()
            .map(|delivery| (delivery.position, whole.events[&delivery.position].id.clone()))
            .collect();
        assert_eq!(view, wanted);
    }
    assert!(seen.into_inner() > 0);
    check(&store, &whole);
}

// Closing.

#[test]
fn appends_in_flight_complete_once_when_the_store_closes() {
    for (round, by_drop) in [false, true, false, true].into_iter().enumerate() {
        let storage = MemoryStorage::new();
        let store = Options::new().queue_bytes(1 << 14).open_on(shared(&storage)).expect("opens");
        let barrier = Arc::new(Barrier::new(9));
        let threads: Vec<_> = (0..8_u64)
            .map(|thread| {
                let ack = if thread % 2 == 0 { Ack::Durable } else { Ack::Ordered };
                let appender =
                    store.appender_with(format!("s{thread}"), acked(ack)).expect("opens");
                let barrier = Arc::clone(&barrier);
                std::thread::spawn(move || {
                    let mut tickets: Vec<Ticket> = Vec::new();
                    loop {
                        if tickets.len() == 20 {
                            barrier.wait();
                        }
                        let number = tickets.len() as u64;
                        let batch = Batch::from([
                            Event::new(format!("{thread}.{number}.a")),
                            Event::new(format!("{thread}.{number}.b")),
                        ]);
                        match appender.submit(batch.clone()) {
                            Ok(ticket) => tickets.push(ticket),
                            Err(refused) => {
                                assert!(matches!(refused.reason, Refusal::Closed));
                                assert_eq!(refused.batch, batch, "it comes back whole");
                                break;
                            }
                        }
                        assert!(tickets.len() < 5_000_000, "the store does not close");
                    }
                    for ticket in &mut tickets {
                        let outcome = ticket.wait_timeout(SOON).expect("completes");
                        let receipt = outcome.expect("what is accepted is appended");
                        let placed = if ack == Ack::Ordered { 2 } else { 0 };
                        assert_eq!(receipt.placements.len(), placed);
                    }
                    tickets.len() as u64
                })
            })
            .collect();
        barrier.wait();
        if by_drop {
            soon("drop", move || drop(store));
        } else {
            soon("close", move || store.close().expect("closes"));
        }
        let counts: Vec<u64> =
            threads.into_iter().map(|thread| thread.join().expect("ends")).collect();
        let store = Options::new().open_on(shared(&storage)).expect("opens again");
        check(&store, &expected(&storage));
        for (thread, count) in counts.into_iter().enumerate() {
            let view = store.stream(format!("s{thread}")).expect("finds").expect("is there");
            let read: Vec<Vec<u8>> = view
                .read(..)
                .expect("reads")
                .map(|event| event.expect("reads").payload().to_vec())
                .collect();
            let wanted: Vec<Vec<u8>> = (0..count)
                .flat_map(|number| ["a", "b"].map(|part| format!("{thread}.{number}.{part}")))
                .map(String::into_bytes)
                .collect();
            assert!(read == wanted, "round {round}, thread {thread}: not what was appended");
        }
    }
}

#[test]
fn closing_wakes_everyone_who_waits() {
    let storage = Faulty::default();
    let store = Options::new().queue_bytes(1).open_on(Arc::new(storage.clone())).expect("opens");
    append(&store, "s", "first");
    let (sender, woken) = channel();
    type Wait = Box<dyn FnOnce(Store) + Send>;
    let waits: [(&'static str, Wait); 5] = [
        ("next", Box::new(|store| assert!(store.subscribe(2).unwrap().next().is_none()))),
        (
            "next_timeout",
            Box::new(|store| {
                let next = store.subscribe(7).unwrap().next_timeout(Duration::from_secs(60));
                assert!(matches!(next, Err(ReadError::Closed)), "{next:?}");
            }),
        ),
        (
            "wait_committed",
            Box::new(|store| {
                let end = store.wait_committed(u64::MAX);
                assert!(matches!(end, Err(ReadError::Closed)), "{end:?}");
            }),
        ),
        (
            "wait_committed_timeout",
            Box::new(|store| {
                let end = store.wait_committed_timeout(u64::MAX, Duration::from_secs(60));
                assert!(matches!(end, Err(ReadError::Closed)), "{end:?}");
            }),
        ),
        (
            "subscription at the last number",
            Box::new(|store| assert!(store.subscribe(u64::MAX).unwrap().next().is_none())),
        ),
    ];
    for (name, wait) in waits {
        let (store, sender) = (store.clone(), sender.clone());
        std::thread::spawn(move || {
            wait(store);
            sender.send(name).expect("the test listens");
        });
    }
    // A submit that waits for room, since the one before it does not come back from the disk.
    storage.hold(Op::Sync, "segment");
    let appender = store.appender("s").expect("an appender");
    let on_disk = appender.append("on its way").expect("accepted");
    storage.wait_until_one_waits();
    std::thread::spawn(move || {
        let refused = appender.append("no room").expect_err("the store closes");
        assert!(matches!(refused.reason, Refusal::Closed));
        sender.send("submit").expect("the test listens");
    });
    assert!(woken.recv_timeout(Duration::from_millis(50)).is_err(), "all of them wait");
    let closing = {
        let store = store.clone();
        std::thread::spawn(move || store.close())
    };
    // The disk has not come back yet: the submit does not wait for it.
    assert_eq!(woken.recv_timeout(Duration::from_secs(1)), Ok("submit"));
    let begun = Instant::now();
    storage.let_go();
    let mut names: Vec<&str> = (0..5).map(|_| woken.recv_timeout(SOON).expect("woken")).collect();
    assert!(begun.elapsed() < Duration::from_secs(1), "too late: {:?}", begun.elapsed());
    names.sort_unstable();
    assert_eq!(names.len(), 5);
    closing.join().expect("no panic").expect("closes");
    on_disk.wait().expect("what was accepted is appended");
    assert_eq!(payloads(&store), [b"first".to_vec(), b"on its way".to_vec()]);
}

#[test]
fn a_closed_store_refuses_and_still_reads() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    for number in 0..10 {
        append(&store, "s", format!("{number}"));
    }
    let (other, appender) = (store.clone(), store.appender("s").expect("an appender"));
    let view = store.stream("s").expect("finds").expect("is there");
    let mut subscription = store.subscribe(3).expect("subscribes");
    let mut read = store.read(2..).expect("reads");
    let event = read.next().expect("an event").expect("reads");
    store.close().expect("closes");
    store.close().expect("closing again does nothing");
    drop(store);

    let batch = Batch::from([Event::new("late").id("x").parents(["y"]), Event::new("later")]);
    let refused = appender.submit(batch.clone()).expect_err("closed");
    assert_eq!((refused.batch, matches!(refused.reason, Refusal::Closed)), (batch, true));
    let mut mixed = MixedBatch::new();
    mixed.push("s", &Event::new("late")).expect("within the limits");
    let byte_len = mixed.byte_len();
    let refused = other.submit(mixed, Ack::Durable).expect_err("closed");
    assert!(matches!(refused.reason, Refusal::Closed));
    assert_eq!((refused.batch.len(), refused.batch.byte_len()), (1, byte_len));

    assert_eq!(event.payload(), b"2");
    assert_eq!(event.parents().expect("parents").len(), 1);
    assert_eq!(
        read.map(|event| event.expect("reads").global()).collect::<Vec<_>>(),
        [3, 4, 5, 6, 7, 8, 9]
    );
    assert_eq!(view.read(8..).expect("reads").count(), 2);
    let followed: Vec<u64> =
        subscription.by_ref().map(|event| event.expect("reads").global()).collect();
    assert_eq!(followed, [3, 4, 5, 6, 7, 8, 9], "what is committed comes, and then the end");
    assert!(subscription.next().is_none());
    assert_eq!(payloads(&other).len(), 10);
    for ended in [
        other.checkpoint().err(),
        other.held().err(),
        other.streams().err(),
        other.why_held("s", "x").err(),
        other.wait_committed(u64::MAX).err(),
    ] {
        assert!(matches!(ended, Some(ReadError::Closed)), "{ended:?}");
    }
    other.wait_committed(other.durable_end()).expect("it was committed");
    drop(other);
    // Everything of the store is gone, and the event is still there.
    drop((view, subscription, storage));
    assert_eq!((event.payload(), event.stream(), event.local()), (&b"2"[..], &b"s"[..], 2));
}

#[test]
fn two_close_at_once_and_both_wait_for_the_end() {
    for _ in 0..20 {
        let storage = MemoryStorage::new();
        let store = Options::new().open_on(shared(&storage)).expect("opens");
        append(&store, "s", "x");
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (store, storage) = (store.clone(), storage.clone());
                std::thread::spawn(move || {
                    store.close().expect("closes");
                    // Whoever comes back from `close` finds the lock free, or taken by another
                    // of these threads, but never held by the store that was closed.
                    let free = storage.fork();
                    assert!(Options::new().open_on(shared(&free)).is_ok());
                    store.stats().committed == store.stats().durable
                })
            })
            .collect();
        for thread in threads {
            assert!(thread.join().expect("no panic"));
        }
        Options::new().open_on(shared(&storage)).expect("the lock is free");
    }
}

#[test]
fn questions_at_the_moment_of_closing_are_answered_or_refused() {
    for round in 0..20_u64 {
        let storage = MemoryStorage::new();
        let store = Options::new().open_on(shared(&storage)).expect("opens");
        append(&store, "s", "x");
        let askers: Vec<_> = (0..4_u64)
            .map(|asker| {
                let store = store.clone();
                std::thread::spawn(move || {
                    loop {
                        let refused = match (asker + round) % 4 {
                            0 => store.held().err(),
                            1 => store.streams().err(),
                            2 => store.checkpoint().err(),
                            _ => store.why_held("s", "x").err(),
                        };
                        if let Some(error) = refused {
                            assert!(matches!(error, ReadError::Closed), "{error:?}");
                            return;
                        }
                    }
                })
            })
            .collect();
        soon("close", move || store.close().expect("closes"));
        soon("asking", move || askers.into_iter().for_each(|asker| asker.join().expect("ends")));
    }
}

#[test]
fn endless_timeouts_wait_without_end() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let mut ticket = appender.append("x").expect("accepted");
    let receipt = ticket.wait_timeout(Duration::MAX).expect("completes").expect("appended");
    assert!(store.wait_committed_timeout(receipt.end, Duration::MAX).expect("committed"));
    let mut subscription = store.subscribe(0).expect("subscribes");
    assert!(subscription.next_timeout(Duration::MAX).expect("reads").is_some());
}

// Failing.

fn fails_with(
    storage: &Faulty,
    fault: Fault,
    payload: usize,
) -> (Store, Vec<Result<Vec<Placement>, AppendFailure>>) {
    let options = Options::new().segment_bytes(1 << 20).scanners(1).orderers(1);
    let store = options.open_on(Arc::new(storage.clone())).expect("opens");
    for number in 0..5 {
        append(&store, "s", format!("before {number}"));
    }
    store.wait_committed(store.durable_end()).expect("committed");
    storage.fail(fault);
    let mut outcomes = Vec::new();
    for group in 0..10 {
        let tickets: Vec<_> = (0..10)
            .map(|number| {
                let ack = if number % 2 == 0 { Ack::Durable } else { Ack::Ordered };
                let appender = store.appender_with("s", acked(ack)).expect("an appender");
                appender.append(vec![group; payload])
            })
            .collect();
        for ticket in tickets.into_iter().filter_map(Result::ok) {
            let mut ticket: Ticket = ticket;
            let outcome = ticket.wait_timeout(SOON).expect("completes");
            outcomes.push(outcome.map(|receipt| receipt.placements));
        }
    }
    (store, outcomes)
}

/// After a failure: reads go on, waits end with the cause, closing says so, and opening again
/// finds the order that the serial machine makes of what is stored.
fn check_poisoned(store: Store, storage: &Faulty, is_cause: fn(&Cause) -> bool) {
    let cause = store.cause().expect("the engine has stopped");
    assert!(is_cause(&cause), "{cause:?}");
    assert!(store.stats().poisoned.is_some());
    nothing_hangs(&store);
    let refused = store.appender("s").expect("an appender").append("late").expect_err("stopped");
    assert!(matches!(refused.reason, Refusal::Poisoned(cause) if is_cause(&cause)));
    assert!(payloads(&store).len() >= 5, "reads of what is committed go on");
    assert!(store.get("s", "x").expect("gets").is_none());
    let waited = store.wait_committed(u64::MAX);
    assert!(matches!(waited, Err(ReadError::Poisoned(cause)) if is_cause(&cause)));
    let followed: Vec<_> = store.subscribe(0).expect("subscribes").collect();
    let (last, read) = followed.split_last().expect("the cause comes last");
    assert!(matches!(last, Err(ReadError::Poisoned(cause)) if is_cause(cause)));
    let read: Vec<u64> = read.iter().map(|event| event.as_ref().expect("reads").global()).collect();
    assert_eq!(read, (0..store.stats().delivered).collect::<Vec<_>>());
    let seen: Vec<(u64, Vec<u8>)> = store
        .read(..)
        .expect("reads")
        .map(|event| event.expect("reads"))
        .map(|event| (event.position(), event.payload().to_vec()))
        .collect();
    let closed = soon("close", move || store.close());
    assert!(matches!(closed, Err(CloseError::Poisoned(cause)) if is_cause(&cause)));
    let storage = storage.inner.fork();
    let expected = expected(&storage);
    for (delivery, (position, payload)) in expected.order.iter().zip(&seen) {
        assert_eq!(delivery.position, *position, "what was read is not renumbered");
        assert_eq!(expected.events[position].payload, *payload);
    }
    assert!(seen.len() <= expected.order.len());
    let store = Options::new().open_on(shared(&storage)).expect("opens again");
    check(&store, &expected);
    append(&store, "s", "goes on");
    store.close().expect("closes");
}

#[test]
fn a_failed_write_or_sync_of_the_log_is_final() {
    for op in [Op::Write, Op::Sync] {
        for error in [ErrorKind::Other, ErrorKind::StorageFull] {
            let storage = Faulty::default();
            let fault =
                Fault { op: Some(op), file: "segment-0000000000000001", skip: 3, count: 1, error };
            let (store, outcomes) = fails_with(&storage, fault, 100);
            let first = outcomes.iter().position(Result::is_err).expect("one of them fails");
            assert!(matches!(outcomes[first], Err(AppendFailure::Unknown(Cause::Log(_)))));
            // The members of the frame that failed, and then those that were never tried.
            let mut refused = false;
            for outcome in &outcomes[first..] {
                match outcome {
                    Err(AppendFailure::Unknown(_)) => assert!(!refused, "{outcomes:?}"),
                    Err(AppendFailure::NotAppended(Cause::Log(_))) => refused = true,
                    other => panic!("{other:?} after the failure"),
                }
            }
            check_poisoned(store, &storage, |cause| matches!(cause, Cause::Log(_)));
        }
    }
}

#[test]
fn a_segment_that_cannot_be_made_is_final_unless_there_is_no_room() {
    let storage = Faulty::default();
    let error = ErrorKind::Other;
    let fault = Fault { op: Some(Op::Create), file: "segment-", skip: 0, count: u64::MAX, error };
    let (store, outcomes) = fails_with(&storage, fault, 60_000);
    assert!(outcomes.iter().any(Result::is_err));
    check_poisoned(store, &storage, |cause| matches!(cause, Cause::Log(_)));
}

#[test]
fn a_full_disk_refuses_appends_until_there_is_room_again() {
    for op in [Op::Create, Op::Write] {
        let storage = Faulty::default();
        let fault = Fault {
            op: Some(op),
            file: "segment-0000000000000002",
            skip: 0,
            count: u64::MAX,
            error: ErrorKind::StorageFull,
        };
        // Before the store opens, so that no segment is prepared ahead.
        storage.fail(fault);
        let options = Options::new().segment_bytes(1 << 20);
        let store = options.open_on(Arc::new(storage.clone())).expect("opens");
        let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
        let mut appended = 0;
        let full = loop {
            match appender.append(vec![1; 100_000]).expect("accepted").wait() {
                Ok(_) => appended += 1,
                Err(failure) => break failure,
            }
            assert!(appended < 12, "the disk is not full");
        };
        assert!(matches!(full, AppendFailure::NotAppended(Cause::StorageFull(_))), "{full:?}");
        // The appender has stopped, and says why; the next one begins afresh.
        let refused = appender.append(vec![1; 100_000]).expect_err("stopped").reason;
        let Refusal::Stopped(AppendFailure::NotAppended(cause)) = refused else {
            panic!("{refused:?}")
        };
        assert!(matches!(cause, Cause::StorageFull(_)), "{cause:?}");
        let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
        let again = appender.append(vec![1; 100_000]).expect("accepted").wait();
        let again = again.expect_err("full");
        assert!(matches!(again, AppendFailure::NotAppended(Cause::StorageFull(_))), "{again:?}");
        // A small one still fits.
        let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
        appender.append("small").expect("accepted").wait().expect("appended");
        assert_eq!(store.cause().map(|cause| cause.to_string()), None);
        check(&store, &expected(&storage.inner));
        storage.fail(Fault { count: 0, ..fault });
        let receipt =
            appender.append(vec![2; 100_000]).expect("accepted").wait().expect("room again");
        let global = appended + 1;
        assert_eq!(receipt.placements, [Placement::Delivered { global, local: global }]);
        check(&store, &expected(&storage.inner));
        store.close().expect("closes");
        let store = Options::new().open_on(shared(&storage.inner)).expect("opens");
        check(&store, &expected(&storage.inner));
    }
}

#[test]
fn an_order_log_that_cannot_be_written_stops_the_store_and_loses_nothing() {
    for (op, file) in [(Op::Write, "order-"), (Op::Write, "tips-")] {
        let storage = Faulty::default();
        let error = ErrorKind::PermissionDenied;
        let fault = Fault { op: Some(op), file, skip: 1, count: 1, error };
        let options = Options::new().scanners(1).orderers(1);
        let store = options.open_on(Arc::new(storage.clone())).expect("opens");
        for number in 0..5 {
            append(&store, "s", format!("before {number}"));
        }
        store.wait_committed(store.durable_end()).expect("committed");
        storage.fail(fault);
        let mut undecided = false;
        for number in 0..200 {
            // Two roots and a chained event make an item of the tips log.
            let batch = Batch::from([
                Event::new("root").parents::<&str>([]),
                Event::new("root").parents::<&str>([]),
                Event::new(format!("{number}")),
            ]);
            let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
            let Ok(mut ticket) = appender.submit(batch) else { break };
            match ticket.wait_timeout(SOON).expect("completes") {
                Ok(receipt) => undecided |= receipt.placements.contains(&Placement::Undecided),
                Err(failure) => {
                    assert!(matches!(failure, AppendFailure::NotAppended(Cause::Derived(_))))
                }
            }
        }
        assert!(undecided, "what is stored is appended, though nobody knows its order yet");
        check_poisoned(store, &storage, |cause| matches!(cause, Cause::Derived(_)));
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_costs_nothing_but_time() {
    for (op, file) in [
        (Op::Create, "checkpoint"),
        (Op::Write, "checkpoint"),
        (Op::Sync, "checkpoint"),
        (Op::Rename, "checkpoint"),
        (Op::SyncDir, ""),
        (Op::Sync, "order-"),
    ] {
        let storage = Faulty::default();
        let store = Options::new().open_on(Arc::new(storage.clone())).expect("opens");
        append(&store, "s", "one");
        store.checkpoint().expect("a checkpoint");
        append(&store, "s", "two");
        storage.fail(Fault {
            op: Some(op),
            file,
            skip: 0,
            count: 1,
            error: ErrorKind::StorageFull,
        });
        let failed = {
            let store = store.clone();
            soon("checkpoint", move || store.checkpoint())
        };
        failed.expect_err("the checkpoint was not written");
        append(&store, "s", "three");
        check(&store, &expected(&storage.inner));
        let now = storage.inner.fork();
        let killed = Options::new().open_on(shared(&now)).expect("opens");
        check(&killed, &expected(&now));
        store.close().expect("closes");
        let store = Options::new().open_on(shared(&storage.inner)).expect("opens");
        check(&store, &expected(&storage.inner));
    }
}

/// Fails each operation of a session in turn, whatever it is.
#[test]
fn any_operation_may_fail_once() {
    let ops = session_with_fault(None);
    assert!(ops > 60, "{ops}");
    let stride = if cfg!(debug_assertions) { 8 } else { 1 };
    let mut rng = Rng::from_env();
    for error in [ErrorKind::Other, ErrorKind::StorageFull] {
        for skip in (rng.below(stride)..ops).step_by(stride as usize) {
            session_with_fault(Some(Fault { op: None, file: "", skip, count: 1, error }));
        }
    }
}

fn session_with_fault(fault: Option<Fault>) -> u64 {
    let storage = Faulty::default();
    if let Some(fault) = fault {
        storage.fail(fault);
    }
    let options = Options::new().segment_bytes(1 << 20).scanners(1).orderers(1);
    let Ok(store) = options.clone().open_on(Arc::new(storage.clone())) else {
        let after = storage.inner.fork();
        let store = options.open_on(shared(&after)).expect("opens at the next attempt");
        append(&store, "s", "x");
        check(&store, &expected(&after));
        return storage.ops();
    };
    let mut tickets = Vec::new();
    let mut rng = Rng(1);
    for number in 0..40_u64 {
        let ack = if number % 2 == 0 { Ack::Durable } else { Ack::Ordered };
        let mut batch = MixedBatch::new();
        for index in 0..3 {
            let mut payload = format!("{number}.{index} ").into_bytes();
            payload.resize(20_000, b'-');
            let event = wild_event(&mut rng, 0, 60, payload);
            batch.push("s", &event).expect("within the limits");
        }
        match store.submit(batch, ack) {
            Ok(ticket) => tickets.push((number, ticket)),
            Err(refused) => assert!(matches!(refused.reason, Refusal::Poisoned(_))),
        }
        if number == 20 {
            let store = store.clone();
            let _ = soon("checkpoint", move || store.checkpoint());
        }
    }
    let mut outcomes = Vec::new();
    for (number, mut ticket) in tickets {
        let outcome =
            ticket.wait_timeout(SOON).unwrap_or_else(|| panic!("{number} of {fault:?} hangs"));
        outcomes.push((number, outcome));
    }
    nothing_hangs(&store);
    let seen: Vec<u64> =
        store.read(..).expect("reads").map(|event| event.expect("reads").position()).collect();
    let _ = soon("close", move || store.close());
    let ops = storage.ops();

    let after = storage.inner.fork();
    let expected = expected(&after);
    let stored = |number: u64| {
        let prefix = |index: u64| format!("{number}.{index} ").into_bytes();
        let of = |index| {
            expected.events.values().filter(move |event| event.payload.starts_with(&prefix(index)))
        };
        let counts = [of(0).count(), of(1).count(), of(2).count()];
        assert!(counts.iter().all(|count| *count == counts[0]), "{number} is torn: {counts:?}");
        counts[0]
    };
    for (number, outcome) in outcomes {
        match outcome {
            Ok(_) => assert_eq!(stored(number), 1, "{fault:?}: {number} was acknowledged"),
            Err(AppendFailure::Unknown(_)) => assert!(stored(number) <= 1),
            Err(_) => assert_eq!(stored(number), 0, "{fault:?}: {number} was refused"),
        }
    }
    let order: Vec<u64> = expected.order.iter().map(|delivery| delivery.position).collect();
    assert!(order.starts_with(&seen), "{fault:?}: what was read is lost or renumbered");
    let store = options.open_on(shared(&after)).expect("opens again");
    check(&store, &expected);
    store.close().expect("closes");
    let again = Options::new().open_on(Arc::new(after) as Arc<dyn Storage>).expect("opens");
    check(&again, &expected);
    ops
}

/// The positions were read in the direction of flow, so a stage could be ahead of the one before it.
#[test]
fn the_stages_in_the_stats_are_never_ahead_of_each_other() {
    let store = Options::new().open_on(shared(&MemoryStorage::new())).expect("opens");
    let appender = store.appender("s").expect("an appender");
    let until = Instant::now() + Duration::from_millis(500);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < until {
                appender.append("x").expect("accepted").wait().expect("appended");
            }
        });
        while Instant::now() < until {
            let stats = store.stats();
            let flow =
                [stats.committed, stats.ordered, stats.scanned, stats.durable, stats.written];
            assert!(flow.is_sorted(), "{flow:?}");
        }
    });
}

/// Streams of which nothing was ever taken counted too, and were in no list.
#[test]
fn the_stats_count_the_streams_that_are_listed() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    let append = |stream: &str, event| {
        let appender = store.appender_with(stream, acked(Ack::Ordered)).expect("an appender");
        appender.append_event(event).expect("accepted").wait().expect("appended");
    };
    append("delivered", Event::new("x"));
    append("held", Event::new("x").parents(["missing"]));
    append("rejected", Event::new("x").if_local(7));
    store.seal("sealed").expect("seals");
    store.seal("delivered").expect("seals");
    store.seal("no longer sealed").expect("seals");
    store.unseal("no longer sealed").expect("unseals");
    store.unseal("never sealed").expect("unseals");
    let check = |store: &Store| {
        assert_eq!(store.streams().expect("streams").len(), 3);
        assert_eq!(store.stats().streams, 3);
    };
    check(&store);
    store.close().expect("closes");
    check(&Options::new().open_on(shared(&storage)).expect("opens"));
}

/// The threads that had been started went on for a while, beside whoever had the lock next.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[test]
fn a_thread_that_cannot_be_started_leaves_no_other_behind() {
    const STACK_BYTES: u64 = 1 << 30;
    let mut refused = 0;
    for stacks in 0..9 {
        // Room for so many stacks and for everything else, in KiB.
        let room = (stacks * STACK_BYTES + STACK_BYTES * 3 / 4) >> 10;
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", r#"ulimit -v "$1"; shift; exec "$@""#, "sh", &room.to_string()]);
        let child = common::this_test_by(shell, "child_with_large_stacks")
            .env("RUST_MIN_STACK", STACK_BYTES.to_string())
            .output()
            .expect("the child runs");
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{stacks} stacks: {said}");
        refused += u32::from(said.contains("refused"));
    }
    assert!(refused > 5, "refused for {refused} numbers of stacks");
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
#[test]
#[ignore = "the process that `a_thread_that_cannot_be_started_leaves_no_other_behind` starts"]
fn child_with_large_stacks() {
    if std::env::var_os("RUST_MIN_STACK").is_none() {
        return;
    }
    let storage = shared(&MemoryStorage::new());
    match Options::new().scanners(2).orderers(1).open_on(Arc::clone(&storage)) {
        Ok(store) => store.close().expect("closes"),
        Err(OpenError::Io { context, .. }) => {
            assert_eq!(Arc::strong_count(&storage), 1, "a thread that is left has the storage");
            println!("refused: {context}");
        }
        Err(other) => panic!("{other}"),
    }
}

/// A spin of `Duration::MAX` made the writer panic when it had nothing to do.
#[test]
fn an_option_out_of_range_is_refused_by_its_name_and_says_what_it_takes() {
    let cases: [(&str, Options); 8] = [
        ("scanners", Options::new().scanners(0)),
        ("scanners", Options::new().scanners(usize::MAX)),
        ("orderers", Options::new().orderers(0)),
        ("orderers", Options::new().orderers(1025)),
        ("segment_bytes", Options::new().segment_bytes(1)),
        ("segment_bytes", Options::new().segment_bytes(u64::MAX)),
        ("queue_bytes", Options::new().queue_bytes(0)),
        ("spin", Options::new().spin(Duration::MAX)),
    ];
    for (expected, options) in cases {
        let storage = MemoryStorage::new();
        match options.open_on(shared(&storage)).expect_err("out of range") {
            OpenError::Option { name, detail } => {
                assert_eq!(name, expected);
                assert!(detail.contains("takes"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
        assert!(storage.list().expect("lists").is_empty(), "{expected}: nothing was made");
    }
}
