//! Defects of an engine that came before this one, and that did the same job: it kept events in a
//! database, and found and ordered at start-up what was not delivered yet, with many reading tasks, some
//! ordering tasks and one that committed. Each test opens with how it failed, and would fail there.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::log::{Log, keep_the_log_only, push};
use common::{Rng, SOON, append_batch as append, check, expected, flip, ids, keep, shared, soon};
use faulty::{Fault, Faulty, Op};
use thalweg::reference::SerialMachine;
use thalweg::storage::MemoryStorage;
use thalweg::{
    Ack, Cause, CloseError, Event, MixedBatch, NewEvent, OpenError, Options, Placement, ReadError,
    Store,
};
use thalweg_wal::EncodedBatch;

/// Sizes that a debug build gets through in the time of a test.
const fn sized(debug: usize, release: usize) -> usize {
    if cfg!(debug_assertions) { debug } else { release }
}

fn options() -> Options {
    Options::new().scanners(2).orderers(2).segment_bytes(1 << 20)
}

fn open(storage: &MemoryStorage) -> Store {
    options().open_on(shared(storage)).expect("opens")
}

fn event(id: &str, parents: &[&str]) -> NewEvent {
    Event::new("").id(id).parents(parents.iter().copied())
}

fn settle(store: &Store) {
    store.wait_committed(store.durable_end()).expect("everything is ordered");
}

/// Pushes event `number` of a chain.
fn link(batch: &mut EncodedBatch, stream: &str, number: usize) {
    let parent = number.checked_sub(1).map(|parent| parent.to_string());
    let parents: Vec<&[u8]> = parent.iter().map(String::as_bytes).collect();
    push(batch, stream.as_bytes(), number.to_string().as_bytes(), &parents, b"");
}

// 1. Forks.

/// For each parent, the map of the waiting events had room for one child: a second child took the place
/// of the first, and when the parent came, one branch was released and the other was stuck. Which of
/// them, and whether at all, was up to the order in which a hash map was walked: in about half of the
/// runs live, in some in a hundred at start-up, where the task reported success all the same.
#[test]
fn all_branches_of_a_fork_are_released_by_a_parent_that_comes_last() {
    // Every store hashes in its own way.
    for round in 0..25 {
        let branches = ["b1", "b2", "b3"];
        let heirs = ["b1-heir", "b2-heir", "b3-heir"];
        let wanted = ["a", "b1", "b2", "b3", "b1-heir", "b2-heir", "b3-heir"];

        let storage = MemoryStorage::new();
        let store = open(&storage);
        append(&store, "s", branches.map(|id| event(id, &["a"])));
        append(&store, "s", heirs.map(|id| event(id, &[&id[..2]])));
        append(&store, "s", [event("a", &[])]);
        assert_eq!(ids(&store), wanted, "live, round {round}");

        let mut log = Log::new();
        log.events(&branches.map(|id| ("s", id, &["a"][..])));
        for id in heirs {
            log.events(&[("s", id, &[&id[..2]])]);
        }
        let before_the_parent = log.storage.fork();
        log.events(&[("s", "a", &[])]);
        let store = open(&log.written());
        settle(&store);
        assert_eq!(ids(&store), wanted, "at start-up, round {round}");

        let store = open(&before_the_parent);
        append(&store, "s", [event("a", &[])]);
        assert_eq!(ids(&store), wanted, "found at start-up, released live, round {round}");
    }
}

// 2. Orphans and live parents.

/// What start-up knew of events without a parent was dropped when start-up had ended, and live ordering
/// had a state of its own. A parent that came live found no child waiting: the child, stored and on
/// disk, stayed hidden until the next restart happened to find both.
#[test]
fn an_orphan_that_start_up_has_found_is_released_by_the_parent_that_comes_live() {
    let mut log = Log::new();
    log.events(&[("s", "grandchild", &["child"]), ("t", "child", &["parent", "other"])]);
    log.events(&[("s", "child", &["parent"])]);
    let storage = log.written();
    // Found just now, or by an earlier start, of which a checkpoint is left or nothing.
    for earlier_starts in 0..3 {
        let storage = storage.fork();
        for start in 0..earlier_starts {
            let store = open(&storage);
            settle(&store);
            assert_eq!((store.stats().delivered, store.stats().held), (0, 3));
            store.close().expect("closes");
            if start == 1 {
                keep_the_log_only(&storage);
            }
        }
        let store = open(&storage);
        append(&store, "s", [event("parent", &[])]);
        assert_eq!(ids(&store), ["parent", "child", "grandchild"]);
        append(&store, "t", [event("other", &[]), event("parent", &[])]);
        assert_eq!(ids(&store)[3..], ["other", "parent", "child"]);
        assert_eq!(store.stats().held, 0);
        check(&store, &expected(&storage));
    }
}

// 3. One bad record.

/// A record that could not be decoded ended the task that had met it: a sixteenth of the store, from
/// there on, was not looked at, a warning was logged, and start-up reported success.
#[test]
fn a_damaged_record_costs_itself_and_no_other_stream_and_is_told() {
    let (streams, len) = (40, 12);
    let mut log = Log::new();
    for window in 0..len {
        log.many(0..streams, 8, |batch, stream| link(batch, &format!("s{stream}"), window));
        if window % 3 == 2 {
            log = log.new_segment();
        }
    }
    let storage = log.written();
    let whole = expected(&storage);
    // In the middle of the second segment.
    let position = |(position, event): (&u64, &thalweg::reference::SerialEvent)| {
        (event.stream == b"s17" && event.id == b"4").then_some(*position)
    };
    let damaged = whole.events.iter().find_map(position).expect("is there");
    let name = "segment-0000000000000002.wal";
    flip(&storage, name, damaged % (1 << 20) + 30, 4);
    let mut machine = SerialMachine::default();
    for (place, record) in whole.records.iter().filter(|(place, _)| place.start != damaged) {
        machine.arrive(place.clone(), record.clone());
    }
    let wanted: Vec<u64> = machine.order.iter().map(|delivery| delivery.position).collect();
    assert_eq!(wanted.len(), streams * len - 8, "without it and those behind it");

    for threads in [1, 2, 16] {
        let options = Options::new().scanners(threads.min(4)).orderers(threads);
        let reader = options.open_read_only_on(shared(&storage)).expect("opens");
        settle(&reader);
        let read: Vec<u64> =
            reader.read(..).expect("reads").map(|event| event.expect("reads").position()).collect();
        assert!(read == wanted, "everything else, in order, with {threads} threads");
        let stats = reader.stats();
        assert_eq!((stats.corrupt, stats.held), (1, 7), "counted, and what waits for it is held");
        assert_eq!(reader.held().expect("held")[0].missing, [b"4"]);
    }
    let report = thalweg::verify_on(shared(&storage), &|_| std::ops::ControlFlow::Continue(()));
    let report = report.expect("verifies");
    assert_eq!((report.problem_count, report.problems[0].position), (1, Some(damaged)));
    assert_eq!(report.problems[0].file, name);
    // Whoever would go on writing is told, and refused: behind it, nobody could know the order.
    let store = open(&storage);
    match store.wait_committed(store.durable_end()) {
        Err(ReadError::Poisoned(Cause::Damage(damage))) => {
            assert_eq!((damage.position, damage.file.as_str()), (damaged, name));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(store.close(), Err(CloseError::Poisoned(Cause::Damage(_)))));
}

// 4. One failed commit, or read.

/// A commit that failed once returned before the streams of its cycle were put back, and one look-up
/// that failed dropped the whole chunk of streams that it was for. They were forgotten: their events
/// stayed hidden until one of those streams saw other traffic, or until a restart. If it was the task of
/// the start-up that failed, the start-up had succeeded.
#[test]
fn a_failed_commit_stops_the_store_by_name_and_forgets_no_stream() {
    let streams = 25;
    let mut log = Log::new();
    for window in 0..4 {
        log.many(0..streams, 5, |batch, stream| link(batch, &format!("s{stream}"), 3 - window));
        log = log.new_segment();
    }
    let storage = log.written();
    let order = expected(&storage);
    for op in [Op::Create, Op::Write] {
        for error in [ErrorKind::Other, ErrorKind::PermissionDenied] {
            let inner = storage.fork();
            let faulty = Faulty::over(inner.clone());
            // Of a kind that does not pass.
            faulty.fail(Fault { count: 1, error, ..Fault::always(op, "order-") });
            let failed = match options().open_on(Arc::new(faulty)) {
                Err(OpenError::Io { source, .. }) => {
                    assert_eq!(source.kind(), error);
                    true
                }
                Err(other) => panic!("{other:?}"),
                Ok(store) => {
                    keep(&store);
                    let waiting = store.clone();
                    let waited = soon("wait", move || waiting.wait_committed(u64::MAX));
                    assert!(matches!(waited, Err(ReadError::Poisoned(Cause::Derived(_)))));
                    let refused = store.appender("s0").expect("an appender").append("late");
                    refused.expect_err("nothing more is promised");
                    let closed = soon("close", move || store.close());
                    matches!(closed, Err(CloseError::Poisoned(Cause::Derived(_))))
                }
            };
            assert!(failed, "{op:?}: nobody heard of it");
            let store = open(&inner);
            check(&store, &order);
            assert_eq!((store.stats().held, ids(&store).len()), (0, streams * 4));
        }
    }
}

// 5. Order numbers over restarts.

/// Events that were notified again burnt numbers in memory, which a restart gave away a second time: a
/// consumer that had remembered "from here on" before it missed what came after. With the durability
/// that it had, power loss could take numbers back that had been read.
#[test]
fn a_mark_that_was_taken_before_a_restart_misses_nothing_after_it() {
    let mut rng = Rng::from_env();
    let mut storage = MemoryStorage::new();
    let (mut consumed, mut mark, mut again) = (Vec::new(), 0, Vec::new());
    for session in 0..12_u64 {
        let store = open(&storage);
        settle(&store);
        for number in 0..rng.below(5) {
            let id = format!("{session}-{number}");
            again.push(id.clone());
            append(&store, "s", [event(&id, &[])]);
        }
        // The same again, and again: nothing is delivered, and no number is taken.
        let before = store.stats().delivered;
        for _ in 0..3 {
            let placements = append(
                &store,
                "s",
                again.iter().map(|id| event(id, &[])).chain([
                    // So that the batch is never empty.
                    event("orphan", &["never"]),
                ]),
            );
            assert!(placements[..again.len()].iter().all(|place| *place == Placement::Duplicate));
        }
        assert_eq!(store.stats().delivered, before);
        assert!(before >= mark, "the store is behind its own mark");
        if rng.once_in(3) {
            // A consumer that is not there now comes back to the mark that it has.
            append(&store, "t", [event(&format!("unseen-{session}"), &[])]);
        } else {
            for event in store.read(mark..).expect("reads") {
                let event = event.expect("reads");
                assert_eq!(event.global(), consumed.len() as u64, "dense");
                consumed.push(event.position());
            }
            mark = store.stats().delivered;
            assert_eq!(mark, consumed.len() as u64);
        }
        match rng.below(4) {
            0 => store.close().expect("closes"),
            1 => storage = storage.fork(),
            2 => {
                storage = storage.fork();
                keep_the_log_only(&storage);
            }
            _ => drop(store),
        }
    }
    let order = expected(&storage).order;
    let positions: Vec<u64> = order.iter().map(|delivery| delivery.position).collect();
    assert_eq!(consumed, positions[..consumed.len()], "what was consumed is what was delivered");
}

// 6. Gaps.

/// Each event that filled a gap had every other gap of its stream looked up again: 5,000 look-ups for a
/// stream of 200, 80,000 for one of 800.
#[test]
fn gaps_that_are_filled_one_at_a_time_take_linear_time() {
    let measured = |len: usize| {
        let mut log = Log::with_segments(4 << 20);
        log.many((1..len).step_by(2), 100, |batch, number| link(batch, "s", number));
        let gaps: Vec<usize> = (0..len).step_by(2).rev().collect();
        // Each in a frame of its own, as they would come live.
        log.many(gaps.into_iter(), 1, |batch, number| link(batch, "s", number));
        let storage = log.written();
        let begun = Instant::now();
        let store = open(&storage);
        settle(&store);
        let elapsed = begun.elapsed();
        assert_eq!((store.stats().delivered, store.stats().held), (len as u64, 0));
        elapsed
    };
    let len = sized(40_000, 400_000);
    let (small, large) = (measured(len / 10), measured(len));
    assert!(
        large < small * 40 + Duration::from_secs(1),
        "{large:?} for ten times what took {small:?}"
    );
}

// 7. A start-up that is a mode.

/// Until everything was discovered, for hours where there was much, the process served nothing, and a
/// signal to end was not looked at. Killing it left a lock behind.
#[test]
fn a_store_that_has_just_opened_serves_and_ends_when_it_is_told() {
    let windows = 60;
    let mut log = Log::new();
    for window in 0..windows {
        log.many(window * 5..(window + 1) * 5, 5, |batch, number| link(batch, "s", number));
        log = log.new_segment();
    }
    let storage = log.written();
    let faulty = Faulty::over(storage.clone());
    faulty.slow_down(Op::Write, "order-", Duration::from_millis(25));
    let begun = Instant::now();
    let store = options().open_on(Arc::new(faulty)).expect("opens");
    let appender = store.appender("live").expect("an appender");
    let mut ticket = appender.append("at once").expect("accepted");
    ticket.wait_timeout(SOON).expect("in time").expect("durable");
    let served = begun.elapsed();
    let mut subscription = store.subscribe(0).expect("subscribes");
    let first = subscription.next_timeout(SOON).expect("reads").expect("in time");
    assert_eq!((first.global(), first.id()), (0, &b"0"[..]));
    assert!(store.stats().ordered < store.durable_end(), "the discovery goes on");
    assert!(served < Duration::from_millis(800), "it waited for the discovery: {served:?}");

    let told = Instant::now();
    store.close().expect("closes");
    assert!(told.elapsed() < Duration::from_secs(1), "{:?}", told.elapsed());
    assert!(store.stats().ordered < store.durable_end(), "it went on to the end");
    // No lock is left, and what is done is done.
    let done = store.stats().ordered;
    let store = open(&storage);
    assert_eq!(store.stats().checkpoint_position, done);
    check(&store, &expected(&storage));
}

// 8. Orphans at every boot.

/// Events without a parent were found, read and parsed again by every start, for as long as the parent
/// did not come, and there may be millions that wait for ever. Here the records of those that wait are
/// damaged behind the back of the store: who reads one of them meets it.
#[test]
fn orphans_are_not_read_again_by_the_next_start() {
    let orphans = 2000;
    let mut log = Log::new();
    let first = log.events(&[("s", "first", &["never"])]);
    log.many(0..orphans, 100, |batch, number| {
        let (id, parent) = (format!("orphan-{number}"), format!("never-{number}"));
        push(batch, b"s", id.as_bytes(), &[parent.as_bytes()], b"payload");
    });
    log = log.new_segment();
    log.events(&[("s", "root", &[])]);
    let storage = log.written();
    let store = open(&storage);
    settle(&store);
    let records: Vec<u64> =
        store.held().expect("held").iter().map(|event| event.position).collect();
    assert_eq!((records.len(), records[0]), (orphans + 1, first));
    store.close().expect("closes");
    for position in records {
        flip(&storage, "segment-0000000000000001.wal", position + 20, 1);
    }
    for start in 0..3 {
        let store = open(&storage);
        let stats = store.stats();
        assert_eq!(stats.held, orphans as u64 + 1, "known at once, start {start}");
        assert_eq!(stats.ordered, stats.durable, "there is nothing to discover");
        let child = format!("child-{start}");
        let place = start as u64 + 1;
        assert_eq!(
            append(&store, "s", [event(&child, &["root"])]),
            [Placement::Delivered { global: place, local: place }]
        );
        assert_eq!(store.stats().corrupt, 0);
        store.close().expect("nobody has met them");
    }
    // It is only now that somebody does: their parent comes, and they would have to be delivered.
    let store = open(&storage);
    let appender = store.appender("s").expect("an appender");
    let never = appender.append_event(event("never", &[])).expect("accepted");
    never.wait().expect("durable");
    let waited = store.wait_committed(store.durable_end());
    let by_damage =
        |cause: &Cause| matches!(cause, Cause::Damage(damage) if damage.position == first);
    assert!(matches!(&waited, Err(ReadError::Poisoned(cause)) if by_damage(cause)), "{waited:?}");
}

// And two more.

/// The queue of events that waited for the first of their stream was bounded by a number, which counted
/// streams, and when it was reached all of them were thrown away.
#[test]
fn no_number_of_waiting_streams_makes_the_store_forget_one() {
    let streams = sized(25_000, 100_001);
    let mut log = Log::with_segments(4 << 20);
    let name = |number: usize| number.to_string();
    log.many(0..streams, 1000, |batch, number| {
        push(batch, name(number).as_bytes(), b"second", &[b"first"], b"");
    });
    let storage = log.written();
    let store = open(&storage);
    settle(&store);
    assert_eq!((store.stats().held, store.stats().delivered), (streams as u64, 0));
    store.close().expect("closes");
    let store = open(&storage);
    assert_eq!(store.stats().held, streams as u64);
    let numbers: Vec<usize> = (0..streams).collect();
    for numbers in numbers.chunks(5000) {
        let mut batch = MixedBatch::new();
        for number in numbers {
            batch.push(name(*number), &event("first", &[])).expect("within the limits");
        }
        store.submit(batch, Ack::Durable).expect("accepted").wait().expect("durable");
    }
    settle(&store);
    assert_eq!((store.stats().held, store.stats().delivered), (0, 2 * streams as u64));
    for (place, event) in store.read(..).expect("reads").enumerate() {
        let event = event.expect("reads");
        let id: &[u8] = if place % 2 == 0 { b"first" } else { b"second" };
        assert_eq!((event.stream(), event.id()), (name(place / 2).as_bytes(), id));
    }
}

/// What start-up called delivered was what it had found, delivered or not.
#[test]
fn what_is_counted_as_delivered_can_be_read() {
    let mut log = Log::new();
    log.events(&[
        ("s", "b", &["a"]),
        ("s", "c", &["gone"]),
        ("s", "b", &["a"]),
        ("s", "b", &["x"]),
    ]);
    log = log.new_segment();
    log.events(&[("s", "a", &[]), ("t", "c", &["b"]), ("s", "c", &["gone"])]);
    let store = open(&log.written());
    settle(&store);
    let stats = store.stats();
    assert_eq!((stats.delivered, ids(&store)), (2, vec![String::from("a"), String::from("b")]));
    assert_eq!((stats.held, store.held().expect("held").len()), (2, 2));
    assert_eq!((stats.duplicates, stats.conflicts, stats.rejected), (2, 1, 0));
    let sum = stats.delivered + stats.held + stats.duplicates + stats.conflicts + stats.rejected;
    assert_eq!(sum, 7, "each record has become one of these");
}
