//! Shapes of graphs, and of logs, each of which has broken an engine of this kind before.

mod common;

use std::time::{Duration, Instant};

use common::{
    Rng, append_batch as append, check, expected, ids, open, rejected, shared, wild_event,
};
use thalweg::reference::Arrival;
use thalweg::storage::MemoryStorage;
use thalweg::{
    Ack, Batch, Event, LimitError, MixedBatch, NewEvent, Options, OwnedEvent, Placement, Refusal,
    Rejection, Root, RootKind, Store, Why, WhyHeld,
};

/// Sizes that a debug build gets through in the time of a test.
const fn sized(debug: usize, release: usize) -> usize {
    if cfg!(debug_assertions) { debug } else { release }
}

fn event(id: &str, parents: &[&str]) -> NewEvent {
    Event::new(format!("payload of {id}")).id(id).parents(parents.iter().copied())
}

/// Checks the store, a copy of it that was killed, and the store after closing and opening it.
fn check_all(store: Store, storage: &MemoryStorage) {
    let expected = expected(storage);
    check(&store, &expected);
    let killed = storage.fork();
    check(&open(&killed), &expected);
    store.close().expect("closes");
    check(&open(storage), &expected);
}

/// Appends the events one batch after the other, without waiting in between.
fn pour(store: &Store, stream: &str, events: impl IntoIterator<Item = NewEvent>, batch_len: usize) {
    let appender = store.appender(stream).expect("an appender");
    let mut events = events.into_iter().peekable();
    let mut last = None;
    while events.peek().is_some() {
        let batch: Batch = events.by_ref().take(batch_len).collect();
        last = Some(appender.submit(batch).expect("accepted"));
    }
    let receipt = last.expect("there are events").wait().expect("appended");
    store.wait_committed(receipt.end).expect("committed");
}

/// A chain of `len` events `0 <- 1 <- 2 ...`, the last first.
fn reversed_chain(len: usize) -> impl Iterator<Item = NewEvent> {
    (0..len).rev().map(|number| {
        let parent = number.checked_sub(1).map(|parent| parent.to_string());
        Event::new("").id(number.to_string()).parents(parent)
    })
}

#[test]
fn a_reversed_chain_orders_in_linear_time() {
    let measured = |len: usize| {
        let storage = MemoryStorage::new();
        let store = open(&storage);
        let begun = Instant::now();
        pour(&store, "chain", reversed_chain(len), 1000);
        let elapsed = begun.elapsed();
        let globals = (0..).map(|number: u64| number.to_string());
        for (event, id) in store.read(..).expect("reads").zip(globals) {
            let event = event.expect("reads");
            assert_eq!((event.id(), event.local()), (id.as_bytes(), event.global()));
        }
        assert_eq!(store.stats().delivered, len as u64);
        assert_eq!((store.stats().held, store.held().expect("held").len()), (0, 0));
        (elapsed, store)
    };
    let len = sized(200_000, 1_000_000);
    let (small, _) = measured(len / 10);
    let (large, store) = measured(len);
    // Ten times the length: a quadratic step takes a hundred times as long.
    assert!(
        large < small * 40 + Duration::from_secs(1),
        "{large:?} for ten times what took {small:?}"
    );
    store.close().expect("closes");
}

#[test]
fn a_reversed_chain_is_held_and_released_over_a_restart() {
    let storage = MemoryStorage::new();
    let len = sized(20_000, 200_000);
    let store = open(&storage);
    // All but the first, which is the last of the iterator.
    pour(&store, "chain", reversed_chain(len).take(len - 1), 1000);
    assert_eq!((store.stats().delivered, store.stats().held), (0, len as u64 - 1));
    match store.why_held("chain", (len - 1).to_string()).expect("answers") {
        Why::Held(WhyHeld { missing, roots, waiting }) => {
            assert_eq!(missing, [(len - 2).to_string().into_bytes()]);
            assert_eq!(roots, [Root { id: b"0".to_vec(), kind: RootKind::Absent }]);
            assert_eq!(waiting, 0);
        }
        other => panic!("{other:?}"),
    }
    match store.why_held("chain", "1").expect("answers") {
        Why::Held(why) => assert_eq!(why.waiting, len as u64 - 2),
        other => panic!("{other:?}"),
    }
    store.close().expect("closes");
    let store = open(&storage);
    assert_eq!(
        append(&store, "chain", [event("0", &[])]),
        [Placement::Delivered { global: 0, local: 0 }]
    );
    assert_eq!(ids(&store), (0..len).map(|number| number.to_string()).collect::<Vec<_>>());
    check_all(store, &storage);
}

#[test]
fn a_fork_of_many_children_that_come_before_their_parent() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let children = 10_000;
    pour(&store, "fork", (0..children).map(|child| event(&format!("c{child}"), &["root"])), 700);
    assert_eq!(store.stats().held, children);
    append(&store, "fork", [event("root", &[])]);
    let wanted: Vec<String> = std::iter::once("root".to_owned())
        .chain((0..children).map(|child| format!("c{child}")))
        .collect();
    assert_eq!(ids(&store), wanted, "the children in the order of the log");
    // A chained event is chained on all of them, and the next on that one alone.
    append(&store, "fork", [Event::new("").id("merge"), Event::new("").id("after")]);
    let merge = store.get("fork", "merge").expect("gets").expect("is there");
    let tips: Vec<Vec<u8>> = wanted[1..].iter().map(|id| id.clone().into_bytes()).collect();
    assert_eq!(merge.parents().expect("parents"), tips);
    let after = store.get("fork", "after").expect("gets").expect("is there");
    assert_eq!(after.parents().expect("parents"), [b"merge"]);
    check_all(store, &storage);
}

#[test]
fn a_fan_in_of_many_parents_that_come_late() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let count = 5000;
    let parents: Vec<String> = (0..count).map(|parent| format!("p{parent}")).collect();
    let merge = Event::new("").id("merge").parents(parents.iter().map(String::as_str));
    assert_eq!(append(&store, "s", [merge]), [Placement::Held { missing: count }]);
    let mut late = parents.clone();
    Rng(7).shuffle(&mut late);
    pour(&store, "s", late.iter().map(|parent| event(parent, &[])), 300);
    late.push("merge".to_owned());
    assert_eq!(ids(&store), late);
    append(&store, "s", [Event::new("").id("after")]);
    let after = store.get("s", "after").expect("gets").expect("is there");
    assert_eq!(after.parents().expect("parents"), [b"merge"]);
    check_all(store, &storage);
}

/// Each parent that came was counted off from the front of the child's list: 4.5 s for 80,000
/// parents, and ten minutes for as many as an event may list.
#[test]
fn a_fan_in_orders_in_linear_time() {
    let measured = |count: usize| {
        let storage = MemoryStorage::new();
        let store = open(&storage);
        let ids = || (0..count).map(|parent| parent.to_string());
        append(&store, "s", [Event::new("").id("merge").parents(ids())]);
        let begun = Instant::now();
        let roots = ids().map(|id| Event::new("").id(id).parents::<&str>([]));
        pour(&store, "s", roots, 5000);
        let elapsed = begun.elapsed();
        assert_eq!(store.stats().delivered, count as u64 + 1);
        elapsed
    };
    let len = sized(60_000, 200_000);
    let (small, large) = (measured(len / 10), measured(len));
    assert!(
        large < small * 40 + Duration::from_secs(1),
        "{large:?} for ten times what took {small:?}"
    );
}

#[test]
fn every_permutation_of_a_small_graph() {
    // A fork with a long branch, and a merge.
    let graph: [(&str, &[&str]); 6] = [
        ("a", &[]),
        ("b", &["a"]),
        ("c", &["a"]),
        ("d", &["b"]),
        ("e", &["c", "d"]),
        ("f", &["e", "a"]),
    ];
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let mut order: Vec<usize> = (0..6).collect();
    let mut permutations = Vec::new();
    permute(&mut order, 0, &mut permutations);
    assert_eq!(permutations.len(), 720);
    for (number, permutation) in permutations.iter().enumerate() {
        let events = permutation.iter().map(|&node| event(graph[node].0, graph[node].1));
        // As one batch, as six, or as a few.
        let stream = format!("permutation-{number}");
        let events: Vec<NewEvent> = events.collect();
        for part in events.chunks(1 + number % 6) {
            append(&store, &stream, part.to_vec());
        }
        let view = store.stream(&stream).expect("finds").expect("is there");
        assert_eq!(view.len(), 6, "{permutation:?}");
    }
    check_all(store, &storage);
}

fn permute(order: &mut Vec<usize>, fixed: usize, out: &mut Vec<Vec<usize>>) {
    if fixed == order.len() {
        out.push(order.clone());
    }
    for next in fixed..order.len() {
        order.swap(fixed, next);
        permute(order, fixed + 1, out);
        order.swap(fixed, next);
    }
}

#[test]
fn a_stream_with_gaps_that_are_filled_one_by_one() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let len = sized(2000, 20_000);
    let link = |number: usize| {
        let parent = number.checked_sub(1).map(|parent| parent.to_string());
        Event::new("").id(number.to_string()).parents(parent)
    };
    // Every second is missing, and they come from the last to the first but one, so that each
    // gap that is filled releases nothing, until the very last releases all.
    pour(&store, "s", (0..len).filter(|number| number % 2 == 1).map(link), 100);
    let gaps: Vec<usize> = (1..len).filter(|number| number % 2 == 0).collect();
    for chunk in gaps.rchunks(50) {
        append(&store, "s", chunk.iter().rev().copied().map(link));
        assert_eq!(store.stats().delivered, 0);
    }
    let held: Vec<u64> =
        store.held().expect("held").iter().map(|event| event.missing.len() as u64).collect();
    assert_eq!(held, vec![1; len - 1]);
    append(&store, "s", [link(0)]);
    assert_eq!(ids(&store), (0..len).map(|number| number.to_string()).collect::<Vec<_>>());
    check_all(store, &storage);
}

fn root(id: &str, kind: RootKind) -> Root {
    Root { id: id.as_bytes().to_vec(), kind }
}

fn why(store: &Store, stream: &str, id: &str) -> WhyHeld {
    match store.why_held(stream, id).expect("answers") {
        Why::Held(why) => why,
        other => panic!("{id}: {other:?}"),
    }
}

#[test]
fn what_can_never_be_delivered_is_held_and_disturbs_nobody() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "other", [event("elsewhere", &[])]);
    let placements = append(
        &store,
        "s",
        [
            event("self", &["self"]),
            event("two-a", &["two-b"]),
            event("two-b", &["two-a"]),
            event("three-a", &["three-c"]),
            event("three-b", &["three-a"]),
            event("three-c", &["three-b", "root"]),
            event("tail", &["three-b", "self", "gone"]),
            event("tail-of-tail", &["tail"]),
            event("abroad", &["elsewhere"]),
            event("root", &[]),
            event("child", &["root"]),
        ],
    );
    let held = |missing| Placement::Held { missing };
    let delivered = |global, local| Placement::Delivered { global, local };
    let wanted = [
        held(1),
        held(1),
        held(1),
        held(1),
        held(1),
        held(2),
        held(3),
        held(1),
        held(1),
        delivered(1, 0),
        delivered(2, 1),
    ];
    assert_eq!(placements, wanted);
    use RootKind::{Absent, Cycle};
    let cases: [(&str, &[Root], u64); 7] = [
        ("self", &[root("self", Cycle)], 2),
        ("two-a", &[root("two-a", Cycle), root("two-b", Cycle)], 1),
        ("three-b", &[root("three-a", Cycle), root("three-b", Cycle), root("three-c", Cycle)], 4),
        (
            "tail",
            &[
                root("gone", Absent),
                root("self", Cycle),
                root("three-a", Cycle),
                root("three-b", Cycle),
                root("three-c", Cycle),
            ],
            1,
        ),
        (
            "tail-of-tail",
            &[
                root("gone", Absent),
                root("self", Cycle),
                root("three-a", Cycle),
                root("three-b", Cycle),
                root("three-c", Cycle),
            ],
            0,
        ),
        ("abroad", &[root("elsewhere", Absent)], 0),
        ("three-c", &[root("three-a", Cycle), root("three-b", Cycle), root("three-c", Cycle)], 4),
    ];
    let check_why = |store: &Store| {
        for (id, roots, waiting) in &cases {
            let mut why = why(store, "s", id);
            why.roots.sort();
            assert_eq!((&why.roots[..], why.waiting), (*roots, *waiting), "{id}");
        }
        assert_eq!(why(store, "s", "three-c").missing, [b"three-b"]);
        assert_eq!(why(store, "s", "tail").missing, [&b"three-b"[..], b"self", b"gone"]);
        assert_eq!(
            store.why_held("s", "child").expect("answers"),
            Why::Delivered { global: 2, local: 1 }
        );
        assert_eq!(store.why_held("s", "gone").expect("answers"), Why::Unknown);
        assert_eq!(store.why_held("nowhere", "x").expect("answers"), Why::Unknown);
    };
    check_why(&store);
    check(&store, &expected(&storage));
    store.close().expect("closes");
    let store = open(&storage);
    check_why(&store);
    // An event that comes later goes to the cycle's tail, and changes nothing.
    assert_eq!(append(&store, "s", [event("late", &["tail-of-tail"])]), [held(1)]);
    assert_eq!(why(&store, "s", "self").waiting, 3);
    check_all(store, &storage);
}

#[test]
fn an_orphan_that_only_the_checkpoint_remembers_is_released_by_a_live_parent() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [event("grandchild", &["child", "root"]), event("child", &["root"])]);
    append(&store, "t", [event("grandchild", &["child"])]);
    store.close().expect("closes");
    for _ in 0..3 {
        let store = open(&storage);
        assert_eq!(store.stats().held, 3, "without reading the log again");
        assert_eq!(store.stats().checkpoint_position, store.durable_end());
        store.close().expect("closes");
    }
    let store = open(&storage);
    append(&store, "s", [event("root", &[])]);
    assert_eq!(ids(&store), ["root", "child", "grandchild"]);
    assert_eq!(
        append(&store, "t", [event("child", &[])]),
        [Placement::Delivered { global: 3, local: 0 }]
    );
    assert_eq!(ids(&store), ["root", "child", "grandchild", "child", "grandchild"]);
    check_all(store, &storage);
}

#[test]
fn a_rejected_id_is_free_and_a_stream_of_rejections_shows_nothing() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let strict = |id: &str, parents: &[&str]| event(id, parents).require_parents();
    let parents = Rejection::Parents { missing: 1 };
    assert_eq!(append(&store, "s", [strict("a", &["p"])]), [rejected(parents, &[])]);
    assert_eq!(append(&store, "s", [strict("a", &["p"])]), [rejected(parents, &[])]);
    assert!(store.streams().expect("streams").is_empty());
    assert!(store.stream("s").expect("finds").is_none());
    assert_eq!(store.why_held("s", "a").expect("answers"), Why::Unknown);
    // Another event takes the id; then the first is a conflict.
    let placements = append(
        &store,
        "s",
        [event("child", &["a"]), Event::new("other").id("a").parents::<&str>([]), strict("a", &[])],
    );
    let delivered = Placement::Delivered { global: 0, local: 0 };
    assert_eq!(placements, [Placement::Held { missing: 1 }, delivered, Placement::Conflict]);
    // A parent that is itself held is missing too; one that is delivered in the same batch is not.
    let placements = append(
        &store,
        "s",
        [
            event("held", &["gone"]),
            strict("x", &["held"]),
            strict("y", &["child"]),
            strict("z", &["y", "y"]),
        ],
    );
    assert_eq!(placements[..2], [Placement::Held { missing: 1 }, rejected(parents, &["child"])]);
    assert_eq!(ids(&store), ["a", "child", "y", "z"]);
    check_all(store, &storage);
}

/// Every event of the store, as somebody who exported it would append it again.
fn exported(store: &Store) -> Vec<(Vec<u8>, NewEvent)> {
    let again = |event: OwnedEvent| {
        (event.stream, Event::new(event.payload).id(event.id).parents(event.parents))
    };
    let events = store.read(..).expect("reads");
    events.map(|event| again(event.expect("reads").to_owned().expect("copies"))).collect()
}

fn import(store: &Store, events: &[(Vec<u8>, NewEvent)]) -> Vec<Placement> {
    let mut batch = MixedBatch::new();
    for (stream, event) in events {
        batch.push(stream, event).expect("within the limits");
    }
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended").placements
}

#[test]
fn what_was_exported_is_a_duplicate_when_it_is_imported() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", [Event::new("chained as a root"), Event::new("chained"), event("x", &[])]);
    append(
        &store,
        "s",
        [event("y", &["x", "x"]), Event::new("merges both tips"), event("z", &["y"])],
    );
    append(&store, "s", [Event::new("merges again").id("m"), Event::new("").id("empty")]);
    append(&store, "t", [event("x", &["w"]), event("w", &[]), Event::new("").id("c")]);
    let before = ids(&store);
    let events = exported(&store);
    assert_eq!(events.len(), 11);
    assert_eq!(import(&store, &events), vec![Placement::Duplicate; 11]);
    let mut shuffled = events.clone();
    Rng(3).shuffle(&mut shuffled);
    assert_eq!(import(&store, &shuffled), vec![Placement::Duplicate; 11]);
    assert_eq!(ids(&store), before, "no number is burnt");

    // The same, when the originals are in the same window, and when only a checkpoint knows them.
    store.close().expect("closes");
    let store = open(&storage);
    assert_eq!(import(&store, &events), vec![Placement::Duplicate; 11]);
    let both: Vec<(Vec<u8>, NewEvent)> = (0..2)
        .flat_map(|_| events.iter().map(|(_, event)| (b"copy".to_vec(), event.clone())))
        .collect();
    let _ = import(&store, &both);

    // Into another store, whose ids are its own, it makes the same graph.
    let copy_storage = MemoryStorage::new();
    let copy = open(&copy_storage);
    assert_eq!(
        import(&copy, &events),
        (0..11)
            .map(|global| {
                let local = store
                    .read(global..)
                    .expect("reads")
                    .next()
                    .expect("one")
                    .expect("reads")
                    .local();
                Placement::Delivered { global, local }
            })
            .collect::<Vec<_>>()
    );
    assert_eq!(exported(&copy), events);

    // Another payload, or other parents, is a conflict.
    let conflicts = [
        Event::new("another payload").id("x").parents::<&str>([]),
        event("x", &["y"]),
        event("y", &["x"]),
        Event::new("payload of y").id("y"),
        Event::new("merges again").id("m").parents(["z"]),
        Event::new("merges again").id("m").parents::<&str>([]),
    ];
    assert_eq!(append(&store, "s", conflicts), vec![Placement::Conflict; 6]);
    check_all(store, &storage);
    check_all(copy, &copy_storage);
}

#[test]
fn a_parent_that_is_listed_twice_counts_once() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let many: Vec<&str> = ["a", "b"].into_iter().cycle().take(100).collect();
    let placements = append(&store, "s", [event("twice", &["a", "a"]), event("often", &many)]);
    assert_eq!(placements, [Placement::Held { missing: 1 }, Placement::Held { missing: 2 }]);
    append(&store, "s", [event("a", &[]), event("b", &[])]);
    assert_eq!(ids(&store), ["a", "twice", "b", "often"]);
    let often = store.get("s", "often").expect("gets").expect("is there");
    let many: Vec<&[u8]> = many.iter().map(|id| id.as_bytes()).collect();
    assert_eq!(often.parents().expect("parents"), many, "as they were listed");
    check_all(store, &storage);
}

#[test]
fn names_and_ids_of_every_length_up_to_the_longest() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    for len in [1_usize, 2, 63, 64, 65, 254, 255] {
        let stream = "n".repeat(len);
        let id = vec![0xff; len.min(64)];
        let event = Event::new("").id(id.clone()).parents([vec![0; len.min(64)]]);
        let parent = Event::new(vec![]).id(vec![0; len.min(64)]).parents::<&str>([]);
        append(&store, &stream, [event, parent, Event::new("")]);
        let view = store.stream(&stream).expect("finds").expect("is there");
        assert_eq!((view.name(), view.len()), (stream.as_bytes(), 3));
        assert_eq!(view.read(1..).expect("reads").next().expect("one").expect("reads").id(), id);
    }
    let too_long = |refusal: Refusal| matches!(refusal, Refusal::Limit(LimitError::Stream { .. }));
    assert!(too_long(store.appender("n".repeat(256)).expect_err("too long")));
    assert!(too_long(store.appender("").expect_err("empty")));
    for bad in [
        Event::new("").id(vec![1; 65]),
        Event::new("").id(""),
        Event::new("").parents([vec![1; 65]]),
        Event::new("").parents([""]),
    ] {
        let batch = Batch::from([Event::new("good"), bad.clone()]);
        let refused =
            store.appender("s").expect("opens").submit(batch.clone()).expect_err("refused");
        assert_eq!(refused.batch, batch);
        assert!(matches!(refused.reason, Refusal::Limit(_)), "{:?}", refused.reason);
        let mut mixed = MixedBatch::new();
        mixed.push("s", &Event::new("good")).expect("within the limits");
        mixed.push("s", &bad).expect_err("beyond the limits");
        assert_eq!(mixed.len(), 1, "the batch is as it was");
    }
    let empty = store.appender("s").expect("opens").submit(Batch::new()).expect_err("empty");
    assert!(matches!(empty.reason, Refusal::Empty));
    assert!(store.stream("s").expect("finds").is_none());
    check_all(store, &storage);
}

#[test]
fn wild_events_over_many_windows_and_many_threads() {
    let mut rng = Rng::from_env();
    for threads in [1, 2, 16] {
        let storage = MemoryStorage::new();
        let options = Options::new().scanners(2).orderers(threads).segment_bytes(8 << 20);
        let store = options.clone().open_on(shared(&storage)).expect("opens");
        // Large batches take the parallel way; many of them under way make windows that are
        // ordered before the ones in front of them are committed.
        let mut tickets = Vec::new();
        for batch_number in 0..sized(10, 60) as u64 {
            let mut batch = MixedBatch::new();
            for _ in 0..1500 {
                let payload = vec![rng.below(3) as u8; rng.below(600) as usize];
                let event = wild_event(&mut rng, batch_number * 200, 1200, payload);
                batch.push(format!("s{}", rng.below(40)), &event).expect("within the limits");
            }
            tickets.push(store.submit(batch, Ack::Ordered).expect("accepted"));
        }
        let placements: Vec<Placement> = tickets
            .into_iter()
            .flat_map(|ticket| ticket.wait().expect("appended").placements)
            .collect();
        let expected = expected(&storage);
        assert_eq!(placements.len(), expected.arrivals.len());
        for (placement, (position, arrival)) in placements.iter().zip(&expected.arrivals) {
            let same = match placement {
                // Looking every delivery up would be quadratic.
                Placement::Delivered { global, local } => {
                    let delivery = &expected.order[*global as usize];
                    *arrival == Arrival::Delivered
                        && (delivery.position, delivery.local) == (*position, *local)
                }
                other => *arrival != Arrival::Delivered && *other == expected.placement(*position),
            };
            assert!(same, "{placement:?} at {position}, not {arrival:?}");
        }
        check(&store, &expected);
        // From the log alone, in windows of another cut, by another number of threads.
        let killed = storage.fork();
        check(&Options::new().orderers(3).open_on(shared(&killed)).expect("opens"), &expected);
        check(
            &Options::new().orderers(1).open_read_only_on(shared(&killed)).expect("opens"),
            &expected,
        );
        store.close().expect("closes");
        check(&options.open_on(shared(&storage)).expect("opens"), &expected);
    }
}

/// A segment was filled to its last byte, so that the end of one was the beginning of the next. The
/// orderer then took the header of the next segment for records, and stopped for the damage.
#[test]
fn a_segment_that_is_full_to_its_last_byte() {
    const SEGMENT: u64 = 1 << 20;
    let storage = MemoryStorage::new();
    let store = Options::new().segment_bytes(SEGMENT).open_on(shared(&storage)).expect("opens");
    let append = |payload: usize| {
        let mut batch = MixedBatch::new();
        batch.push("stream", &Event::new(vec![7; payload])).expect("within the limits");
        let byte_len = batch.byte_len();
        let receipt =
            store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
        assert_eq!(receipt.end - receipt.position, byte_len);
        receipt
    };
    let first = append(0);
    let second = append(0);
    let (frame_header, empty) = (second.position - first.end, second.end - second.position);
    let last = append((SEGMENT - second.end - frame_header - empty) as usize);
    assert_eq!(last.end, SEGMENT, "the segment is full");
    append(0);
    check(&store, &expected(&storage));
    store.close().expect("closes");
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    check(&store, &expected(&storage));
    drop(store);

    // Killed when everything up to the end of the full segment is in a checkpoint.
    let storage = MemoryStorage::new();
    let store = Options::new().segment_bytes(SEGMENT).open_on(shared(&storage)).expect("opens");
    let payload = (SEGMENT - first.position - empty) as usize;
    let receipt = store.appender("s").expect("opens").append(vec![1; payload]).expect("accepted");
    let receipt = receipt.wait().expect("appended");
    assert_eq!(receipt.end, SEGMENT);
    store.wait_committed(SEGMENT).expect("committed");
    store.checkpoint().expect("a checkpoint");
    let storage = storage.fork();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    store.appender("s").expect("opens").append("more").expect("accepted").wait().expect("appended");
    check(&store, &expected(&storage));
}
