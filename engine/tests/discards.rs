//! Held events that are given up: they are never delivered, their ids are free again, and what waits for them
//! goes on waiting. The log alone says so, in every life of the store.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use common::{
    Rng, append_batch as append, append_every_kind, check, check_every_life, delivered, expected,
    flip, ids, open, shared,
};
use thalweg::storage::MemoryStorage;
use thalweg::{
    Ack, DiscardError, DiscardFate, DiscardReason, Event, LimitError, MixedBatch, NewEvent,
    Options, Placement, Refusal, RepairOptions, Store, Why, repair_on, verify_on,
};
use thalweg_wal::name;

fn event(id: &str, parents: &[&str]) -> NewEvent {
    Event::new(format!("payload of {id}")).id(id).parents(parents.iter().copied())
}

/// What becomes of discards in one batch.
fn discard(store: &Store, stream: &str, ids: &[&str]) -> Vec<Placement> {
    let mut batch = MixedBatch::new();
    for id in ids {
        batch.push_discard(stream, id, DiscardReason::Discarded).expect("within the limits");
    }
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended").placements
}

fn held(missing: u32) -> Placement {
    Placement::Held { missing }
}

/// A clock that stands where it is set, in milliseconds.
#[derive(Clone, Default)]
struct TestClock(Arc<AtomicU64>);

impl TestClock {
    fn set(&self, millis: u64) {
        self.0.store(millis, Ordering::Relaxed);
    }

    fn open(&self, storage: &MemoryStorage) -> Store {
        let Self(millis) = self.clone();
        let now = move || UNIX_EPOCH + Duration::from_millis(millis.load(Ordering::Relaxed));
        Options::new().orderers(1).clock(now).open_on(shared(storage)).expect("opens")
    }
}

const UNKNOWN: Placement = Placement::NotHeld { delivered: false };

#[test]
fn a_discarded_event_is_not_delivered_when_its_parent_arrives() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    assert_eq!(append(&store, "s", [event("child", &["parent"])]), [held(1)]);
    let position = store.held().expect("held")[0].position;
    assert_eq!(discard(&store, "s", &["child", "child"]), [Placement::Discarded, UNKNOWN]);
    assert_eq!(store.held().expect("held"), []);
    let reason = DiscardReason::Discarded;
    let discarded = Why::Discarded { position, reason };
    assert_eq!(store.why_held("s", "child").expect("an answer"), discarded);
    assert_eq!(store.why_held("s", "other").expect("an answer"), Why::Unknown);
    assert_eq!(append(&store, "s", [event("parent", &[])]), [delivered(0, 0)]);
    assert_eq!(ids(&store), ["parent"]);
    let other = Placement::NotHeld { delivered: true };
    assert_eq!(discard(&store, "s", &["parent", "child", "never"]), [other, UNKNOWN, UNKNOWN]);
    assert_eq!((store.stats().discarded, store.stats().held), (1, 0));
    check_every_life(store, &storage);
    let store = open(&storage);
    assert_eq!(store.why_held("s", "child").expect("an answer"), discarded, "from a run");
}

#[test]
fn what_waits_for_a_discarded_event_waits_for_its_id() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [event("grandchild", &["child"]), event("child", &["parent"])]);
    // Of another stream, with the same id.
    append(&store, "t", [event("child", &["parent"])]);
    assert_eq!(discard(&store, "s", &["child"]), [Placement::Discarded]);
    append(&store, "s", [event("parent", &[])]);
    let waiting: Vec<_> =
        store.held().expect("held").into_iter().map(|event| (event.stream, event.id)).collect();
    let pair = |stream: &str, id: &str| (stream.as_bytes().to_vec(), id.as_bytes().to_vec());
    assert_eq!(waiting, [pair("s", "grandchild"), pair("t", "child")]);
    // Another event takes the id: it is new, and what waits is for it.
    let again = Event::new("another").id("child").parents(["parent"]);
    assert_eq!(append(&store, "s", [again]), [delivered(1, 1)]);
    assert_eq!(ids(&store), ["parent", "child", "grandchild"]);
    assert_eq!(store.stats().conflicts, 0);
    check_every_life(store, &storage);
}

/// One id is held and discarded over and over, with other parents each time, in memory, in runs, and in
/// lives of the store.
#[test]
fn an_id_can_be_held_and_discarded_again_and_again() {
    for budget in [0, 1 << 30] {
        let storage = MemoryStorage::new();
        let options = || Options::new().orderers(1).memory_budget(budget);
        let mut store = options().open_on(shared(&storage)).expect("opens");
        for round in 0..12 {
            let parents = [format!("p{}", round % 5), format!("p{}", (round + 1) % 5)];
            let child = Event::new(format!("{round}")).id("child").parents(parents);
            assert_eq!(append(&store, "s", [child]), [held(2)], "round {round}");
            match round % 4 {
                1 => store.checkpoint().expect("a checkpoint"),
                2 => {
                    store.close().expect("closes");
                    store = options().open_on(shared(&storage)).expect("opens");
                }
                _ => {}
            }
            assert_eq!(discard(&store, "s", &["child"]), [Placement::Discarded], "round {round}");
            if round == 6 {
                store.checkpoint().expect("a checkpoint");
            }
        }
        let parents: Vec<NewEvent> = (0..5).map(|n| event(&format!("p{n}"), &[])).collect();
        append(&store, "s", parents);
        assert_eq!(ids(&store), ["p0", "p1", "p2", "p3", "p4"], "budget {budget}");
        assert_eq!(append(&store, "s", [event("child", &["p0"])]), [delivered(5, 5)]);
        assert_eq!(append(&store, "s", [event("child", &["p0"])]), [Placement::Duplicate]);
        check_every_life(store, &storage);
    }
}

#[test]
fn a_report_says_of_each_event_what_became_of_it() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [event("there", &[]), event("a", &["never"]), event("b", &["never"])]);
    let report = store.discard("s", ["b", "there", "never", "a", "a"]).expect("stored");
    let fates: Vec<_> = report.events.iter().map(|event| (&event.id[..], event.fate)).collect();
    let expected: [(&[u8], _); 5] = [
        (b"b", DiscardFate::Discarded),
        (b"there", DiscardFate::Delivered),
        (b"never", DiscardFate::Unknown),
        (b"a", DiscardFate::Discarded),
        (b"a", DiscardFate::Unknown),
    ];
    assert_eq!((&fates[..], report.discarded()), (&expected[..], 2));
    let end = store.durable_end();
    assert_eq!(store.discard("s", [b""; 0]).expect("nothing to do").events, []);
    assert!(matches!(store.discard("s", [""]), Err(DiscardError::Refused(Refusal::Limit(_)))));
    assert_eq!(store.durable_end(), end, "nothing was stored");
    check_every_life(store, &storage);
    let closed = open(&storage);
    closed.close().expect("closes");
    assert!(matches!(closed.discard("s", ["a"]), Err(DiscardError::Refused(Refusal::Closed))));
    let reader = Options::new().open_read_only_on(shared(&storage)).expect("opens");
    assert!(matches!(reader.discard("s", ["a"]), Err(DiscardError::Refused(Refusal::ReadOnly))));
}

#[test]
fn what_is_held_for_too_long_expires_by_the_time_in_the_log() {
    const DAY: u64 = 86_400_000;
    let (storage, clock) = (MemoryStorage::new(), TestClock::default());
    let mut store = clock.open(&storage);
    // At 0 nobody knows the time. Day 7 comes before day 5: the clock was set back.
    for day in [0, 1, 3, 7, 5] {
        clock.set(day * DAY);
        append(&store, "s", [event(&format!("day {day}"), &["never"])]);
        append(&store, "t", [event(&format!("day {day}"), &["never"])]);
    }
    let at = |day: u64| (day > 0).then(|| UNIX_EPOCH + Duration::from_millis(day * DAY));
    for _ in 0..2 {
        let since: Vec<_> = store.held().expect("held").iter().map(|event| event.since).collect();
        assert_eq!(since, [0, 0, 1, 1, 3, 3, 7, 7, 5, 5].map(at));
        store.close().expect("closes");
        store = clock.open(&storage);
    }
    let expire = |store: &Store, days: u64| {
        let report = store.expire_held(Duration::from_millis(days * DAY)).expect("expires");
        let oldest = store.held().expect("held").into_iter().next();
        assert_eq!(store.oldest_held().expect("held"), oldest, "after {days} days");
        let names = report.events.iter().map(|event| String::from_utf8_lossy(&event.id));
        assert_eq!(report.discarded(), report.events.len() as u64);
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(expire(&store, 4), "", "one that is as old as that stays");
    let one = store.expire_held_of("t", Duration::from_millis(3 * DAY)).expect("expires");
    assert_eq!((one.discarded(), &one.events[0].stream[..]), (1, &b"t"[..]));
    assert_eq!(expire(&store, 1), "day 1 day 3 day 3");
    clock.set(4 * DAY);
    assert_eq!(expire(&store, 0), "", "what is from the future has no age");
    clock.set(100 * DAY);
    assert_eq!(expire(&store, 94), "day 5 day 5");
    assert_eq!(expire(&store, 0), "day 7 day 7");
    let left: Vec<_> = store.held().expect("held").into_iter().map(|event| event.id).collect();
    assert_eq!(left, [b"day 0", b"day 0"], "nobody knows since when");
    let discarded = ["s", "t"].map(|stream| store.discard(stream, ["day 0"]).expect("discards"));
    assert_eq!(discarded.map(|report| report.discarded()), [1, 1]);
    assert_eq!(store.oldest_held().expect("held"), None);
    let why = store.why_held("s", "day 3").expect("an answer");
    assert!(matches!(why, Why::Discarded { reason: DiscardReason::Expired, .. }), "{why:?}");
    check_every_life(store, &storage);
}

/// Appends, discards and expiries from many threads: whatever comes first, the log says what holds.
#[test]
fn many_threads_that_hold_deliver_and_discard_agree_with_the_log() {
    let (storage, clock) = (MemoryStorage::new(), TestClock::default());
    clock.set(1);
    let store = clock.open(&storage);
    let seed = Rng::from_env();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (store, clock) = (&store, &clock);
            let mut rng = Rng(seed.0.wrapping_add(thread));
            scope.spawn(move || {
                for round in 0..150 {
                    let name = |rng: &mut Rng| format!("e{}", rng.below(20));
                    let (id, parent) = (name(&mut rng), name(&mut rng));
                    match rng.below(8) {
                        0 => drop(store.discard("s", [id, parent]).expect("stored")),
                        1 => drop(store.expire_held(Duration::from_millis(9)).expect("stored")),
                        2 if round % 8 == 0 => store.checkpoint().expect("a checkpoint"),
                        _ => {
                            clock.set(round);
                            let id = format!("{id}-{}", round / 30);
                            let parents = [parent, format!("{}-{}", name(&mut rng), round / 30)];
                            let parents = parents[..rng.below(3) as usize].to_vec();
                            let new = Event::new("").id(id).parents(parents);
                            append(store, "s", [new]);
                        }
                    }
                }
            });
        }
    });
    check_every_life(store, &storage);
}

#[test]
fn what_a_sealed_stream_holds_can_be_discarded() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [event("child", &["parent"])]);
    store.seal("s").expect("sealed");
    assert_eq!(discard(&store, "s", &["child"]), [Placement::Discarded]);
    store.unseal("s").expect("unsealed");
    assert_eq!(append(&store, "s", [event("parent", &[])]), [delivered(0, 0)]);
    check_every_life(store, &storage);
}

#[test]
fn a_batch_can_hold_an_event_and_discard_it() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let mut batch = MixedBatch::new();
    batch.push("s", &event("child", &["parent"])).expect("within the limits");
    batch.push_discard("s", "child", DiscardReason::Discarded).expect("within the limits");
    batch.push("s", &event("child", &[])).expect("within the limits");
    batch.push("s", &event("parent", &[])).expect("within the limits");
    let after = Event::new("tied").with_previous();
    batch.push("s", &after).expect("after an event of its stream");
    batch.push_discard("s", "child", DiscardReason::Discarded).expect("within the limits");
    assert_eq!(batch.push("s", &after), Err(LimitError::Previous), "a discard is no event");
    let long = batch.push_discard("s", [b'i'; 65], DiscardReason::Discarded);
    assert_eq!(long, Err(LimitError::Id { len: 65 }));
    let receipt = store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    let kept = Placement::NotHeld { delivered: true };
    let expected =
        [held(1), Placement::Discarded, delivered(0, 0), delivered(1, 1), delivered(2, 2), kept];
    assert_eq!(receipt.placements, expected);
    check_every_life(store, &storage);
}

/// Many that wait for one parent: looking for each of them among all would take minutes.
#[test]
fn many_that_wait_for_one_parent_are_discarded_in_linear_time() {
    const COUNT: usize = 60_000;
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let children: Vec<NewEvent> =
        (0..COUNT).map(|n| Event::new("").id(format!("c{n}")).parents(["parent"])).collect();
    append(&store, "s", children);
    let mut batch = MixedBatch::new();
    for number in 0..COUNT - 1 {
        batch.push_discard("s", format!("c{number}"), DiscardReason::Discarded).expect("fits");
    }
    let receipt = store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    assert!(receipt.placements.iter().all(|placement| *placement == Placement::Discarded));
    append(&store, "s", [event("parent", &[])]);
    assert_eq!(ids(&store), ["parent", &format!("c{}", COUNT - 1)]);
    assert_eq!(store.verify().expect("verifies").problems, []);
}

/// A discard that is damaged would have its event delivered, or keep another from its id, and all behind it
/// would get other numbers.
#[test]
fn a_lost_discard_that_the_order_tells_of_is_put_back() {
    for is_taken_again in [false, true] {
        let storage = MemoryStorage::new();
        let store = open(&storage);
        append(&store, "s", [event("first", &[]), event("child", &["parent"])]);
        append(&store, "s", [event("other", &["parent"])]);
        discard(&store, "s", &["child", "other"]);
        if is_taken_again {
            // One that is delivered at once, and one that is held.
            let again = |parent: &str| Event::new("another").id("child").parents([parent]);
            append(&store, "s", [again("first"), again("parent")]);
            // What is tied to an event that is held is delivered.
            let other = Event::new("another").id("other").parents(["parent"]);
            append(&store, "s", [other, Event::new("tied").id("tied").with_previous()]);
        }
        append(&store, "s", [event("parent", &[]), event("last", &["parent"])]);
        let before = expected(&storage);
        let order = ids(&store);
        store.close().expect("closes");
        let is_discard = |record: &&(_, _)| {
            let (_, record): &(std::ops::Range<u64>, _) = record;
            matches!(record, thalweg::reference::SerialRecord::Discard(_))
        };
        for (place, _) in before.records.iter().filter(is_discard) {
            flip(&storage, &name::segment(1), place.start + 30, 1);
        }
        let report = repair_on(shared(&storage), &RepairOptions::new()).expect("repairs");
        assert!(report.is_done && report.unproven.is_none(), "{report:?}");
        assert_eq!((report.discards, report.lost_events.len()), (2, 0), "{report:?}");
        assert_eq!(ids(&open(&storage)), order);
        let verified = verify_on(shared(&storage), &|_| ControlFlow::Continue(()));
        assert_eq!(verified.expect("verifies").problems, []);
    }
}

/// What is there of a store that was killed at any time is a prefix of what happened, and comes to the same
/// order whatever has become of the derived files.
#[test]
fn a_store_that_is_killed_at_any_time_comes_to_the_order_of_its_log() {
    let mut rng = Rng::from_env();
    let storage = MemoryStorage::new();
    let options = || Options::new().orderers(1).memory_budget(0);
    let store = options().open_on(shared(&storage)).expect("opens");
    for round in 0..12 {
        append_every_kind(&store, &mut rng, 4, 6);
        if round % 3 == 1 {
            store.checkpoint().expect("a checkpoint");
        }
        let killed = storage.fork();
        let expected = expected(&killed);
        check(&options().open_on(shared(&killed)).expect("opens"), &expected);
        check(&open(&killed.fork()), &expected);
    }
    assert!(store.stats().discarded > 0);
    check_every_life(store, &storage);
}
