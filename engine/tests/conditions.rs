//! Conditional appends and seals: what an event asks of its stream is decided at its place in the log,
//! and stays decided.

mod common;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use common::{
    acked, append_batch as append, check, check_every_life, delivered, expected, flip, ids, open,
    rejected, shared,
};
use thalweg::reference::Arrival;
use thalweg::storage::MemoryStorage;
use thalweg::{
    Ack, Batch, Event, LimitError, MixedBatch, NewEvent, Options, Placement, Refusal, Rejection,
    Store, StreamInfo,
};

fn event(id: &str) -> NewEvent {
    Event::new(format!("payload of {id}")).id(id)
}

fn root(id: &str) -> NewEvent {
    event(id).parents::<&str>([])
}

/// Appends behind a seal that the same batch puts on: else the appender would refuse.
fn append_sealed(
    store: &Store,
    stream: &str,
    events: impl IntoIterator<Item = NewEvent>,
) -> Vec<Placement> {
    let mut batch = MixedBatch::new();
    batch.push_seal(stream).expect("within the limits");
    for event in events {
        batch.push(stream, &event).expect("within the limits");
    }
    let ticket = store.submit(batch, Ack::Ordered).expect("accepted");
    let mut placements = ticket.wait().expect("appended").placements;
    assert!(matches!(placements.remove(0), Placement::Sealed { .. }));
    placements
}

/// Seals the stream or takes the seal off.
fn set_sealed(store: &Store, stream: &str, sealed: bool) -> Placement {
    let mut batch = MixedBatch::new();
    if sealed {
        batch.push_seal(stream).expect("within the limits");
    } else {
        batch.push_unseal(stream).expect("within the limits");
    }
    assert_eq!(batch.len(), 1);
    let placements =
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended").placements;
    let [placement] = &placements[..] else { panic!("one placement: {placements:?}") };
    placement.clone()
}

#[test]
fn the_tips_have_to_be_exactly_those_that_are_named() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let none: [&str; 0] = [];
    assert_eq!(append(&store, "s", [event("a").if_tips(none)]), [delivered(0, 0)]);
    assert_eq!(
        append(&store, "s", [event("b").if_tips(none)]),
        [rejected(Rejection::Tips, &["a"])]
    );
    let placements = append(
        &store,
        "s",
        [
            event("b").if_tips(["a"]),
            root("c"),
            // An ancestor of a tip, a part, too many, one that is unknown, one of another stream.
            event("d").if_tips(["a"]),
            event("d").if_tips(["b"]),
            event("d").if_tips(["b", "c", "a"]),
            event("d").if_tips(["b", "c", "x"]),
            event("d").if_tips(["b", "x"]),
        ],
    );
    let other = rejected(Rejection::Tips, &["b", "c"]);
    assert_eq!(placements[..2], [delivered(1, 1), delivered(2, 2)]);
    assert_eq!(placements[2..], [(); 5].map(|()| other.clone()));
    // In any order, and repeated. Then it is an event with these parents, as they were listed.
    let placements = append(&store, "s", [event("d").if_tips(["c", "b", "c"])]);
    assert_eq!(placements, [delivered(3, 3)]);
    let parents = store.get("s", "d").expect("gets").expect("is there").parents();
    assert_eq!(parents.expect("parents"), [b"c", b"b", b"c"]);
    // Another stream has no tips at all.
    let placements = append(&store, "t", [event("d").if_tips(["d"]), event("d").if_tips(none)]);
    assert_eq!(placements, [rejected(Rejection::Tips, &[]), delivered(4, 0)]);
    // The last of the two calls counts.
    let placements = append(&store, "t", [event("e").if_tips(none).parents(["d"])]);
    assert_eq!(placements, [delivered(5, 1)]);
    check_every_life(store, &storage);
}

#[test]
fn many_tips_are_compared_and_named_in_linear_time() {
    let tips: usize = if cfg!(debug_assertions) { 20_000 } else { 1_000_000 };
    let storage = MemoryStorage::new();
    let store = Options::new().orderers(1).open_on(shared(&storage)).expect("opens");
    let ids: Vec<String> = (0..tips).map(|tip| format!("tip {tip}")).collect();
    for ids in ids.chunks(10_000) {
        append(&store, "s", ids.iter().map(|id| root(id)));
    }
    let begun = Instant::now();
    let placements = append(
        &store,
        "s",
        [
            event("short").if_tips(ids[1..].iter().cloned()),
            event("long").if_tips(ids.iter().rev().map(String::as_str).chain(["x"])),
            event("right").if_tips(ids.iter().rev().map(String::as_str)),
            event("next").if_tips(["right"]),
        ],
    );
    let all = rejected(Rejection::Tips, &ids.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(placements[0] == all, "all tips in the order of their delivery");
    // What a window's rejections name is bounded.
    let Placement::Rejected { reason: Rejection::Tips, tips } = &placements[1] else {
        panic!("not rejected")
    };
    assert!(tips.is_empty() || placements[1] == all);
    let count = ids.len() as u64;
    assert_eq!(placements[2..], [delivered(count, count), delivered(count + 1, count + 1)]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    check(&store, &expected(&storage));
}

/// Small events, each rejected for a stream with many tips, would have named them all, each time: a
/// batch of some megabytes came to an answer of many gigabytes.
#[test]
fn what_rejections_name_is_bounded() {
    const TIPS: u64 = 10_000;
    let storage = MemoryStorage::new();
    let store = Options::new().orderers(1).open_on(shared(&storage)).expect("opens");
    append(&store, "s", (0..TIPS).map(|tip| root(&format!("tip {tip}"))));
    let placements = append(&store, "s", (0..1000).map(|_| Event::new("").if_local(0)));
    let named: Vec<usize> = placements
        .iter()
        .map(|placement| match placement {
            Placement::Rejected { reason: Rejection::Local { next: TIPS }, tips } => tips.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    let first_without = named.iter().position(|&tips| tips == 0).expect("it ends somewhere");
    assert!((1..200).contains(&first_without), "{first_without}");
    assert!(named[..first_without].iter().all(|&tips| tips == TIPS as usize));
    assert!(named[first_without..].iter().all(|&tips| tips == 0));
    // The next window starts over.
    let placements = append(&store, "s", [Event::new("").if_local(0)]);
    let [Placement::Rejected { tips, .. }] = &placements[..] else { panic!("rejected") };
    assert_eq!(tips.len(), TIPS as usize);
}

#[test]
fn the_place_has_to_be_the_one_that_is_named() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let placements = append(
        &store,
        "s",
        [
            event("a").if_local(1),
            event("a").if_local(0),
            event("b").if_local(0),
            event("b").parents(["a"]).if_local(1),
            event("held").parents(["c"]),
            // A held event has no place yet.
            event("c").parents(["a"]).if_local(3),
            event("c").parents(["a"]).if_local(2),
            // It has released the one that was held.
            event("d").if_local(3),
            event("d").if_local(4).if_tips(["held"]),
            event("d").if_local(4).if_tips(["held", "b"]),
        ],
    );
    let local = |next, tips: &[&str]| rejected(Rejection::Local { next }, tips);
    assert_eq!(
        placements,
        [
            local(0, &[]),
            delivered(0, 0),
            local(1, &["a"]),
            delivered(1, 1),
            Placement::Held { missing: 1 },
            local(2, &["b"]),
            delivered(2, 2),
            local(4, &["b", "held"]),
            rejected(Rejection::Tips, &["b", "held"]),
            delivered(4, 4),
        ]
    );
    assert_eq!(ids(&store), ["a", "b", "c", "held", "d"]);
    check_every_life(store, &storage);
}

#[test]
fn an_event_with_a_condition_is_never_held() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let placements = append(
        &store,
        "s",
        [
            event("held").parents(["gone"]),
            event("x").parents(["gone", "held", "gone"]).if_local(0),
            event("x").parents(["gone"]).require_parents(),
            event("x").if_tips(["held"]),
            // Not even if it waits for itself.
            event("x").parents(["x"]).if_local(0),
            event("x").if_tips(["x"]),
        ],
    );
    let parents = |missing| rejected(Rejection::Parents { missing }, &[]);
    let tips = rejected(Rejection::Tips, &[]);
    assert_eq!(
        placements,
        [Placement::Held { missing: 1 }, parents(2), parents(1), tips.clone(), parents(1), tips]
    );
    assert_eq!(store.held().expect("held").len(), 1);
    check_every_life(store, &storage);
}

#[test]
fn the_first_reason_is_told() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [root("a")]);
    // Every condition is broken; they are mended one by one.
    let broken = || event("x").if_tips(["gone"]).if_local(7).require_parents();
    let mut batch = MixedBatch::new();
    batch.push_seal("s").expect("within the limits");
    let events = [broken(), broken().with_previous(), broken()];
    events.iter().for_each(|event| batch.push("s", event).expect("within the limits"));
    batch.push_unseal("s").expect("within the limits");
    let events = [
        broken(),
        broken().if_local(1),
        event("x").parents(["gone"]).if_local(1),
        // A duplicate is one, whatever it asks for, and so is a conflict.
        event("a").if_tips::<&str>([]).if_local(7).with_previous(),
        event("a").if_tips(["a"]).if_local(1),
    ];
    events.iter().for_each(|event| batch.push("s", event).expect("within the limits"));
    let placements =
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended").placements;
    let rejected = |reason| rejected(reason, &["a"]);
    assert_eq!(
        placements,
        [
            Placement::Sealed { next: 1 },
            rejected(Rejection::Sealed),
            rejected(Rejection::Previous),
            rejected(Rejection::Sealed),
            Placement::Unsealed,
            rejected(Rejection::Local { next: 1 }),
            rejected(Rejection::Tips),
            rejected(Rejection::Parents { missing: 1 }),
            Placement::Duplicate,
            Placement::Conflict,
        ]
    );
    check_every_life(store, &storage);
}

/// An answer was lost, and its author asks again: the condition that held then holds no more, but the
/// event is there.
#[test]
fn a_conditional_append_that_is_tried_again_is_a_duplicate() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let batch = || {
        [
            event("a").if_tips::<&str>([]).if_local(0),
            event("b").with_previous(),
            event("c").with_previous(),
        ]
    };
    let first = append(&store, "s", batch());
    assert_eq!(first, [delivered(0, 0), delivered(1, 1), delivered(2, 2)]);
    append(&store, "s", [event("later")]);
    assert_eq!(append(&store, "s", batch()), [(); 3].map(|()| Placement::Duplicate));
    store.close().expect("closes");
    let store = open(&storage);
    assert_eq!(append_sealed(&store, "s", batch()), [(); 3].map(|()| Placement::Duplicate));
    // With other conditions and without, as long as it lists what it listed.
    let again = [root("a"), root("a").if_local(7), event("a").if_tips::<&str>([])];
    assert_eq!(append_sealed(&store, "s", again), [(); 3].map(|()| Placement::Duplicate));
    let other = [event("a").if_tips(["later"])];
    assert_eq!(append_sealed(&store, "s", other), [Placement::Conflict]);
    assert_eq!(ids(&store), ["a", "b", "c", "later"]);
    check_every_life(store, &storage);
}

#[test]
fn a_rejected_id_stays_free() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [event("held").parents(["a"])]);
    assert_eq!(append_sealed(&store, "s", [root("a")]), [rejected(Rejection::Sealed, &[])]);
    set_sealed(&store, "s", false);
    let other = Event::new("another payload").id("a").if_local(0);
    assert_eq!(
        append(&store, "s", [root("a").if_local(1), other]),
        [rejected(Rejection::Local { next: 0 }, &[]), delivered(0, 0)]
    );
    assert_eq!(ids(&store), ["a", "held"]);
    check_every_life(store, &storage);
}

#[test]
fn a_batch_of_tied_events_is_delivered_whole_or_not_at_all() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    // What waits for the first events of the batch comes between them.
    append(&store, "s", [event("after a").parents(["a"]), event("after both").parents(["a", "b"])]);
    let batch = |tips: &[&str]| {
        [
            event("a").if_tips(tips.iter().copied()),
            event("b").with_previous(),
            event("c").with_previous(),
        ]
    };
    let previous = rejected(Rejection::Previous, &[]);
    let nothing = append(&store, "s", batch(&["x"]));
    assert_eq!(nothing, [rejected(Rejection::Tips, &[]), previous.clone(), previous]);
    assert_eq!(ids(&store), [""; 0]);
    assert_eq!(store.held().expect("held").len(), 2);
    let all = append(&store, "s", batch(&[]));
    assert_eq!(all, [delivered(0, 0), delivered(2, 2), delivered(4, 4)]);
    assert_eq!(ids(&store), ["a", "after a", "b", "after both", "c"]);

    // A place in the middle of the batch counts what comes between.
    append(&store, "t", [event("after a").parents(["a"])]);
    let placements = append(
        &store,
        "t",
        [
            event("a").if_local(0),
            event("b").if_local(1).with_previous(),
            event("c").with_previous(),
        ],
    );
    let late = rejected(Rejection::Local { next: 2 }, &["after a"]);
    assert_eq!(placements, [delivered(5, 0), late, rejected(Rejection::Previous, &["after a"])]);
    check_every_life(store, &storage);
}

#[test]
fn events_are_tied_to_what_was_refused_and_to_nothing_else() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [root("a")]);
    let tied = |id: &str| event(id).parents(["a"]).with_previous();
    let placements = append(
        &store,
        "s",
        [
            // A duplicate and a held event are not refused.
            root("a"),
            tied("b"),
            event("held").parents(["gone"]),
            tied("c"),
            // A conflict is.
            Event::new("another a").id("a"),
            tied("d"),
            tied("e"),
            // Only the event before it counts, and only if it is tied to it.
            event("f").parents(["a"]),
            tied("g"),
        ],
    );
    let previous = rejected(Rejection::Previous, &["b", "c"]);
    assert_eq!(
        placements,
        [
            Placement::Duplicate,
            delivered(1, 1),
            Placement::Held { missing: 1 },
            delivered(2, 2),
            Placement::Conflict,
            previous.clone(),
            previous,
            delivered(3, 3),
            delivered(4, 4),
        ]
    );
    // A batch that begins with a tied event is refused whole: it would be tied to a batch of another's.
    let refused = store.appender("s").expect("an appender").submit(Batch::from([tied("h")]));
    assert!(matches!(refused.unwrap_err().reason, Refusal::Limit(LimitError::Previous)));
    check_every_life(store, &storage);
}

#[test]
fn a_sealed_stream_takes_nothing_until_the_seal_is_taken_off() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [root("a"), event("held").parents(["b"])]);
    assert_eq!(set_sealed(&store, "s", true), Placement::Sealed { next: 1 });
    assert_eq!(set_sealed(&store, "s", true), Placement::Sealed { next: 1 });
    let sealed = rejected(Rejection::Sealed, &["a"]);
    let placements = append_sealed(
        &store,
        "s",
        [event("b").parents(["a"]), event("c"), event("d").parents(["gone"]), event("held")],
    );
    let conflict = Placement::Conflict;
    assert_eq!(placements, [sealed.clone(), sealed.clone(), sealed.clone(), conflict]);
    // Others go on.
    assert_eq!(append(&store, "t", [root("b")]), [delivered(1, 0)]);
    assert_eq!(ids(&store), ["a", "b"]);
    assert_eq!(store.held().expect("held").len(), 1);

    // It is sealed after a crash, and after one behind a checkpoint.
    check(&store, &expected(&storage));
    assert_eq!(append_sealed(&open(&storage.fork()), "s", [event("c")]), [sealed]);
    store.checkpoint().expect("a checkpoint");
    let behind = open(&storage.fork());
    behind.wait_committed(behind.durable_end()).expect("committed");
    let batch = Batch::from([event("c")]);
    let refused = behind.appender("s").expect("an appender").submit(batch).expect_err("sealed");
    assert!(matches!(refused.reason, Refusal::Sealed), "{:?}", refused.reason);

    assert_eq!(set_sealed(&store, "s", false), Placement::Unsealed);
    assert_eq!(set_sealed(&store, "s", false), Placement::Unsealed);
    assert_eq!(append(&store, "s", [event("b").parents(["a"])]), [delivered(2, 1)]);
    assert_eq!(ids(&store), ["a", "b", "b", "held"]);
    assert_eq!(set_sealed(&store, "s", true), Placement::Sealed { next: 3 });
    check_every_life(store, &storage);
}

/// A checkpoint could not be read when a partition had three streams or more that had short names and
/// no delivery.
#[test]
fn a_stream_can_be_sealed_before_it_has_an_event() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let mut batch = MixedBatch::new();
    for name in 0..=255_u8 {
        batch.push_seal([name]).expect("within the limits");
    }
    for name in (1..=255_u8).step_by(2) {
        batch.push_unseal([name]).expect("within the limits");
    }
    let placements =
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended").placements;
    assert!(placements[..256].iter().all(|found| *found == Placement::Sealed { next: 0 }));
    assert!(placements[256..].iter().all(|found| *found == Placement::Unsealed));
    let info = |name| StreamInfo { name: vec![name], delivered: 0, held: 0, tips: 0, sealed: true };
    let infos: Vec<StreamInfo> = (0..=255_u8).step_by(2).map(info).collect();
    assert_eq!(store.streams().expect("streams"), infos);
    assert!(store.stream([0]).expect("finds").is_none());
    assert!(store.read(..).expect("reads").next().is_none());
    assert!(store.held().expect("held").is_empty());
    let expected = check_every_life(store, &storage);
    assert_eq!(expected.machine.stream_counts().len(), 128);
}

#[test]
fn a_rebuild_comes_to_the_same_rejections_and_seals() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Options::new().open(dir.path()).expect("opens");
    append(
        &store,
        "s",
        [event("a").if_local(0), event("b").if_local(0), event("c").with_previous()],
    );
    append_sealed(&store, "s", [event("d")]);
    set_sealed(&store, "empty", true);
    append(&store, "t", [event("a").if_tips(["x"])]);
    let (before, streams) = (store.stats(), store.streams().expect("streams"));
    store.close().expect("closes");
    let go_on = |_| ControlFlow::Continue(());
    let report =
        thalweg::rebuild(dir.path(), Options::new().orderers(3), &go_on).expect("rebuilds");
    // Seals are no events.
    assert_eq!((report.scanned, report.delivered, report.rejected), (5, 1, 4));
    let store = Options::new().open(dir.path()).expect("opens");
    let after = store.stats();
    assert_eq!((before.delivered, before.rejected), (after.delivered, after.rejected));
    assert_eq!(store.streams().expect("streams"), streams);
    assert_eq!(append_sealed(&store, "s", [event("d")]), [rejected(Rejection::Sealed, &["a"])]);
    store.close().expect("closes");
    let report = thalweg::verify(dir.path(), &|_| ControlFlow::Continue(())).expect("verifies");
    assert_eq!((report.problem_count, report.records, report.streams), (0, 9, 2));
}

/// A reader that cannot read the header of a frame cuts the log between its records. Then an event was
/// ordered in another window than the refused one that it is tied to, and was delivered.
#[test]
fn a_frame_without_a_header_keeps_tied_events_together() {
    const PAYLOAD: usize = 100_000;
    let storage = MemoryStorage::new();
    let options = Options::new().segment_bytes(32 << 20);
    let store = options.clone().open_on(shared(&storage)).expect("opens");
    let tied = (0..99).map(|_| Event::new(vec![1; PAYLOAD]).with_previous());
    let refused = Event::new(vec![1; PAYLOAD]).if_local(7);
    let batch: Batch = [refused].into_iter().chain(tied).collect();
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let receipt = appender.submit(batch).expect("accepted").wait().expect("appended");
    append(&store, "s", [root("a")]);
    let order = expected(&storage);
    assert_eq!((order.order.len(), order.rejected()), (1, 100));
    let damaged = storage.fork();
    // The first segment is too short for the frame.
    flip(&damaged, "segment-0000000000000002.wal", receipt.position - 40 - (1 << 20), 1);
    let reader = options.orderers(1).open_read_only_on(shared(&damaged)).expect("opens");
    reader.wait_committed(reader.durable_end()).expect("goes on behind the damage");
    assert_eq!(reader.stats().rejected, 100);
    assert_eq!(ids(&reader), ["a"]);
    assert!(reader.stats().corrupt > 0);
}

#[test]
fn many_threads_that_name_the_place_they_expect_never_share_one() {
    // Many threads add one to a counter that is the length of their stream; each addition names the place
    // that it has computed from what it was told, and starts over when somebody was faster.
    const THREADS: usize = 4;
    const ADDITIONS: u64 = 25;
    let storage = MemoryStorage::new();
    let store = open(&storage);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                let mut next = 0;
                for addition in 0..ADDITIONS {
                    loop {
                        let event = Event::new(format!("{thread}.{addition}")).if_local(next);
                        match append(store, "s", [event]).remove(0) {
                            Placement::Delivered { local, .. } => {
                                assert_eq!(local, next);
                                next = local + 1;
                                break;
                            }
                            Placement::Rejected {
                                reason: Rejection::Local { next: there },
                                ..
                            } => {
                                assert_ne!(there, next);
                                next = there;
                            }
                            other => panic!("{other:?}"),
                        }
                    }
                }
            });
        }
    });
    let expected = check_every_life(store, &storage);
    assert_eq!(expected.count(|arrival| arrival == Arrival::Delivered), 100);
}

/// The gate kept a stream shut until whoever had sealed it woke up to hear of it. An unseal behind the
/// seal was ordered and answered meanwhile, and the appends that followed were refused.
#[test]
fn a_stream_takes_events_as_soon_as_an_unseal_behind_a_seal_is_answered() {
    const STREAMS: usize = 48;
    let store = open(&MemoryStorage::new());
    let names: Vec<String> = (0..STREAMS).map(|stream| stream.to_string()).collect();
    let appender = |name| store.appender(name).expect("an appender");
    let appenders: Vec<_> = names.iter().map(appender).collect();
    for round in 0..100 {
        std::thread::scope(|scope| {
            for name in &names {
                let store = &store;
                scope.spawn(move || store.seal(name).expect("seals"));
            }
            // A stream that is shut has its seal in the log, or on its way there.
            for appender in &appenders {
                while appender.append("until it is sealed").is_ok() {
                    std::thread::yield_now();
                }
            }
            let mut batch = MixedBatch::new();
            names.iter().for_each(|name| batch.push_unseal(name).expect("within the limits"));
            store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
            for appender in &appenders {
                let accepted = appender.append("again").map(drop).map_err(|refused| refused.reason);
                assert!(accepted.is_ok(), "round {round}: {accepted:?}");
            }
        });
    }
}

/// For each event of a batch, the seals of the batch were gone through one by one, and the gate kept
/// closing and sealing waiting meanwhile.
#[test]
fn a_batch_of_many_seals_passes_the_gate_in_linear_time() {
    const STREAMS: usize = 50_000;
    let store = open(&MemoryStorage::new());
    store.seal("another").expect("seals");
    let mut batch = MixedBatch::new();
    for stream in 0..STREAMS {
        batch.push_unseal(stream.to_string()).expect("within the limits");
    }
    for stream in STREAMS..2 * STREAMS {
        batch.push(stream.to_string(), &Event::new("")).expect("within the limits");
    }
    let begun = Instant::now();
    store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_writer_learns_the_tips_and_retries_on_them() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    assert_eq!(store.tips("s").expect("asks"), [[0_u8; 0]; 0]);
    append(&store, "s", [root("a"), root("b"), event("c").parents(["a"])]);
    assert_eq!(store.tips("s").expect("asks"), [b"b", b"c"]);
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let placements = |ticket: thalweg::Ticket| ticket.wait().expect("appended").placements;
    let stale = appender.append_if_tips(["b"], "d").expect("accepted");
    assert_eq!(placements(stale), [rejected(Rejection::Tips, &["b", "c"])]);
    let fresh = appender.append_if_tips(store.tips("s").expect("asks"), "d").expect("accepted");
    assert_eq!(placements(fresh), [delivered(3, 3)]);
    let late = appender.append_if_local(3, "e").expect("accepted");
    let Placement::Rejected { reason, tips } = &placements(late)[0] else { panic!("rejected") };
    assert_eq!((*reason, tips), (Rejection::Local { next: 4 }, &store.tips("s").expect("asks")));
    let next = appender.append_if_local(4, "e").expect("accepted");
    assert_eq!(placements(next), [delivered(4, 4)]);
    check_every_life(store, &storage);
}

#[test]
fn a_store_says_which_streams_are_sealed() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [root("a"), event("b")]);
    assert_eq!(store.seal("s").expect("seals"), Some(1));
    assert_eq!(store.seal("s").expect("seals again"), Some(1));
    assert_eq!(store.seal("empty").expect("seals"), None);
    assert!(store.is_sealed("s") && store.is_sealed("empty") && !store.is_sealed("t"));
    let refused = store.appender("s").expect("an appender").append("c").expect_err("sealed");
    assert!(matches!(refused.reason, Refusal::Sealed), "{:?}", refused.reason);
    assert_eq!(refused.batch.len(), 1);
    store.unseal("s").expect("unseals");
    assert!(!store.is_sealed("s"));
    append(&store, "s", [event("c")]);
    store.close().expect("closes");
    let store = open(&storage);
    assert!(!store.is_sealed("s") && store.is_sealed("empty"));
    check_every_life(store, &storage);
}
