//! What can be in a log of which nothing is ordered when a store is opened on it: every shape of graph,
//! spread over windows in every way, and what is missing, doubled or impossible.

mod common;

use common::log::{Log, keep_the_log_only, push};
use common::{Expected, Rng, append_batch as append, check, expected, ids, shared};
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, Event, NewEvent, Options, Placement, Root, RootKind, Store, Why, WhyHeld};

/// Sizes that a debug build gets through in the time of a test.
const fn sized(debug: usize, release: usize) -> usize {
    if cfg!(debug_assertions) { debug } else { release }
}

fn open_with(storage: &MemoryStorage, threads: usize) -> Store {
    let options = Options::new().scanners(threads.min(4)).orderers(threads);
    options.open_on(shared(storage)).expect("opens")
}

/// Opens a store on the log, with several numbers of threads; returns what the log comes to, and the
/// last of the stores.
fn discover(storage: &MemoryStorage) -> (Expected, Store) {
    let expected = expected(storage);
    for threads in [1, 16] {
        check(&open_with(&storage.fork(), threads), &expected);
    }
    let store = open_with(storage, 2);
    check(&store, &expected);
    (expected, store)
}

/// Ids of a stream in the order of their delivery.
fn ids_of(store: &Store, stream: &str) -> Vec<String> {
    let Some(view) = store.stream(stream).expect("finds") else { return Vec::new() };
    let events = view.read(..).expect("reads");
    events.map(|event| String::from_utf8_lossy(event.expect("reads").id()).into_owned()).collect()
}

fn event(id: &str, parents: &[&str]) -> NewEvent {
    Event::new("").id(id).parents(parents.iter().copied())
}

fn held(store: &Store) -> Vec<String> {
    let events = store.held().expect("held").into_iter();
    events.map(|event| String::from_utf8(event.id).expect("a plain id")).collect()
}

/// Pushes event `number` of a chain.
fn link(batch: &mut thalweg_wal::EncodedBatch, stream: &[u8], number: usize) {
    let parent = number.checked_sub(1).map(|parent| parent.to_string());
    let parents: Vec<&[u8]> = parent.iter().map(String::as_bytes).collect();
    push(batch, stream, number.to_string().as_bytes(), &parents, b"");
}

/// That the whole store is one chain `0 <- 1 <- 2 ...` of this length.
fn check_chain(store: &Store, len: usize) {
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    let mut read = store.read(..).expect("reads");
    for number in 0..len {
        let event = read.next().expect("is there").expect("reads");
        assert_eq!((event.id(), event.local()), (number.to_string().as_bytes(), number as u64));
    }
    assert!(read.next().is_none());
    assert_eq!((store.stats().delivered, store.stats().held), (len as u64, 0));
}

// Nothing, and little.

#[test]
fn a_log_without_events_is_discovered_at_once() {
    let mut log = Log::new();
    let (order, store) = discover(&log.storage.fork());
    assert_eq!((order.order.len(), store.stats().streams), (0, 0));
    // Frames and segments without events, and seals only.
    log.batch(&thalweg_wal::EncodedBatch::new());
    log = log.new_segment().new_segment();
    log.batch(&thalweg_wal::EncodedBatch::new());
    let mut seals = thalweg_wal::EncodedBatch::new();
    seals.push_seal(b"s").expect("within the limits");
    log.batch(&seals);
    let (order, store) = discover(&log.new_segment().written());
    assert_eq!((order.order.len(), store.stats().streams), (0, 1));
    store.close().expect("closes");
}

#[test]
fn more_threads_than_events_find_them_all() {
    let mut log = Log::new();
    log.events(&[("s", "child", &["root"])]);
    log = log.new_segment();
    log.events(&[("t", "other", &[]), ("s", "root", &[])]);
    let storage = log.written();
    let order = expected(&storage);
    for threads in [3, 16, 64] {
        let store = open_with(&storage.fork(), threads);
        check(&store, &order);
        assert_eq!(ids(&store), ["other", "root", "child"]);
    }
}

// Forks.

/// All parts of a graph in all orders: each permutation is a stream, and all of them are in one log,
/// in the same windows or each event in a window of its own.
fn every_permutation(graph: &[(&str, &[&str])], per_window: usize) {
    fn permute(order: &mut [usize], fixed: usize, out: &mut Vec<Vec<usize>>) {
        if fixed == order.len() {
            out.push(order.to_vec());
        }
        for next in fixed..order.len() {
            order.swap(fixed, next);
            permute(order, fixed + 1, out);
            order.swap(fixed, next);
        }
    }
    let mut order: Vec<usize> = (0..graph.len()).collect();
    let mut permutations = Vec::new();
    permute(&mut order, 0, &mut permutations);
    let streams: Vec<String> =
        (0..permutations.len()).map(|number| format!("permutation-{number}")).collect();
    let mut log = Log::new();
    for places in (0..graph.len()).collect::<Vec<_>>().chunks(per_window) {
        for (stream, permutation) in streams.iter().zip(&permutations) {
            let part = places.iter().map(|&place| graph[permutation[place]]);
            let events: Vec<_> = part.map(|(id, parents)| (stream.as_str(), id, parents)).collect();
            log.events(&events);
        }
        log = log.new_segment();
    }
    let (order, store) = discover(&log.written());
    assert_eq!(order.order.len(), graph.len() * permutations.len());
    assert_eq!(store.stats().held, 0);
}

#[test]
fn every_permutation_of_a_tree_is_discovered() {
    // Both branches of the root are there, and one of them forks again.
    let tree: [(&str, &[&str]); 6] = [
        ("a", &[]),
        ("b1", &["a"]),
        ("b2", &["a"]),
        ("c", &["b1"]),
        ("d1", &["c"]),
        ("d2", &["c"]),
    ];
    every_permutation(&tree, 6);
    every_permutation(&tree, 1);
}

#[test]
fn every_permutation_of_merges_and_two_roots_is_discovered() {
    let graph: [(&str, &[&str]); 5] =
        [("a", &[]), ("b", &[]), ("c", &["a", "b"]), ("d", &["b"]), ("e", &["d", "c", "d"])];
    every_permutation(&graph, 5);
    every_permutation(&graph, 2);
}

/// The parent comes in the last window, long after each of its children came in one of its own, so
/// that the scanners have it in hand while its children are ordered.
#[test]
fn a_fork_that_is_spread_over_windows_and_restarts_is_released_whole() {
    let mut log = Log::new();
    let children: Vec<String> = (0..12).map(|child| format!("c{child}")).collect();
    for child in &children {
        let (heir, last) = (format!("{child}-heir"), format!("{child}-last"));
        log.events(&[("s", &last, &[&heir, child]), ("s", child, &["root"])]);
        log = log.new_segment();
        log.events(&[("s", &heir, &[child])]);
        log = log.new_segment();
    }
    // Once the root is there, the ready one with the smallest position comes first: branch by branch.
    let mut wanted = vec![String::from("root")];
    for child in &children {
        wanted.extend([child.clone(), format!("{child}-heir"), format!("{child}-last")]);
    }
    // Without the root nothing can be delivered, in any number of sessions.
    let storage = log.storage.fork();
    for _ in 0..2 {
        let (order, store) = discover(&storage);
        assert_eq!((order.order.len(), order.held.len()), (0, 36));
        store.close().expect("closes");
    }
    // The root comes live, and, in the same place of the log, before anybody looks.
    let store = open_with(&storage, 3);
    assert_eq!(
        append(&store, "s", [event("root", &[])]),
        [Placement::Delivered { global: 0, local: 0 }]
    );
    assert_eq!(ids(&store), wanted);
    check(&store, &expected(&storage));
    log.events(&[("s", "root", &[])]);
    let (_, store) = discover(&log.written());
    assert_eq!(ids(&store), wanted);
}

#[test]
fn a_fork_of_ten_thousand_children_is_discovered_whole() {
    let mut log = Log::with_segments(1 << 20);
    let children = 10_000;
    let of_root = |batch: &mut thalweg_wal::EncodedBatch, number: usize| {
        push(batch, b"s", format!("c{number}").as_bytes(), &[b"root"], b"");
    };
    log.many(0..children / 2, 500, of_root);
    log = log.new_segment();
    log.events(&[("s", "root", &[])]);
    log.many(children / 2..children, 500, of_root);
    let storage = log.written();
    let store = open_with(&storage, 2);
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    let wanted: Vec<String> = std::iter::once(String::from("root"))
        .chain((0..children).map(|child| format!("c{child}")))
        .collect();
    assert_eq!(ids(&store), wanted, "in the order of the log");
    assert_eq!(store.streams().expect("streams")[0].tips, children as u64);
    assert_eq!(store.stats().held, 0);
}

// Size.

/// One stream that is all of the store, the last event first: nothing is ordered before the last
/// window, and then everything is. There is no recursion that could be too deep for it.
#[test]
fn a_long_chain_that_is_found_from_its_end_is_discovered() {
    let len = sized(120_000, 1_000_000);
    let mut log = Log::with_segments(4 << 20);
    log.many((0..len).rev(), 1000, |batch, number| link(batch, b"chain", number));
    let storage = log.written();
    let store = open_with(&storage, 2);
    check_chain(&store, len);
    store.close().expect("closes");
}

#[test]
fn a_hundred_thousand_streams_of_one_event_are_discovered() {
    let streams = sized(100_000, 1_000_000);
    let mut log = Log::with_segments(4 << 20);
    let mut names: Vec<usize> = (0..streams).collect();
    Rng(5).shuffle(&mut names);
    log.many(names.iter().copied(), 1000, |batch, number| {
        push(batch, number.to_string().as_bytes(), b"only", &[], b"");
    });
    let store = open_with(&log.written(), 2);
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    let stats = store.stats();
    assert_eq!((stats.streams, stats.delivered, stats.held), (streams as u64, streams as u64, 0));
    for (event, name) in store.read(..).expect("reads").zip(&names) {
        let event = event.expect("reads");
        assert_eq!((event.stream(), event.local()), (name.to_string().as_bytes(), 0));
    }
}

/// One stream has nearly all of the data, and each of the others some of it, in the same windows.
#[test]
fn one_hot_stream_among_many_keeps_its_order() {
    let mut rng = Rng::from_env();
    let mut log = Log::with_segments(1 << 20);
    let (hot, cold) = (sized(8_000, 80_000), 300);
    let mut numbers: Vec<(bool, usize)> = (0..hot).map(|number| (true, number)).collect();
    numbers.extend((0..cold * 3).map(|number| (false, number)));
    rng.shuffle(&mut numbers);
    log.many(0..numbers.len(), 700, |batch, index| match numbers[index] {
        (true, number) => link(batch, b"hot", number),
        (false, number) => link(batch, format!("cold-{}", number % cold).as_bytes(), number / cold),
    });
    let storage = log.written();
    let (order, store) = discover(&storage);
    assert_eq!(order.order.len(), numbers.len());
    let wanted: Vec<String> = (0..hot).map(|number| number.to_string()).collect();
    assert_eq!(ids_of(&store, "hot"), wanted);
    assert_eq!(ids_of(&store, "cold-7"), ["0", "1", "2"]);
}

#[test]
fn many_streams_in_any_order_come_out_in_theirs() {
    let mut rng = Rng::from_env();
    for (streams, len) in [(10, 100), (sized(200, 1000), 10)] {
        let mut log = Log::new();
        let mut numbers: Vec<usize> = (0..streams * len).collect();
        rng.shuffle(&mut numbers);
        for (part, numbers) in numbers.chunks(numbers.len() / 5).enumerate() {
            log.many(numbers.iter().copied(), 1 + part * 40, |batch, number| {
                link(batch, format!("s{}", number % streams).as_bytes(), number / streams);
            });
            log = log.new_segment();
        }
        let (order, store) = discover(&log.written());
        assert_eq!((order.order.len(), store.stats().held), (streams * len, 0));
        let wanted: Vec<String> = (0..len).map(|number| number.to_string()).collect();
        for stream in 0..streams {
            assert_eq!(ids_of(&store, &format!("s{stream}")), wanted, "of stream {stream}");
        }
    }
}

// Gaps.

#[test]
fn a_gap_holds_what_is_behind_it_and_its_own_stream_only() {
    // Of 20 events of `s`, the 12th is missing; of `t`, the middle one of three.
    let mut log = Log::new();
    let numbers = (0..20).filter(|&number| number != 11);
    log.many(numbers, 3, |batch, number| link(batch, b"s", number));
    log.events(&[("t", "2", &["1"]), ("t", "0", &[]), ("u", "0", &[])]);
    let storage = log.written();
    let (_, store) = discover(&storage);
    assert_eq!(ids_of(&store, "s").len(), 11);
    assert_eq!((ids_of(&store, "t"), store.stats().held), (vec![String::from("0")], 9));
    assert_eq!(
        append(&store, "t", [event("1", &["0"])]),
        [Placement::Delivered { global: 13, local: 1 }]
    );
    assert_eq!(ids_of(&store, "t"), ["0", "1", "2"]);
    assert_eq!(
        (ids_of(&store, "s").len(), store.stats().held),
        (11, 8),
        "the other goes on waiting"
    );
    // The gap itself has a gap before it: nothing moves, and both come at once.
    assert_eq!(
        append(&store, "s", [event("11", &["10", "10b"])]),
        [Placement::Held { missing: 1 }]
    );
    assert_eq!(store.stats().held, 9);
    append(&store, "s", [event("10b", &["9"])]);
    assert_eq!(store.stats().held, 0);
    let mut wanted: Vec<String> = (0..11).map(|number| number.to_string()).collect();
    wanted.push(String::from("10b"));
    wanted.extend((11..20).map(|number| number.to_string()));
    assert_eq!(ids_of(&store, "s"), wanted);
    check(&store, &expected(&storage));
}

/// The first events are all missing: nothing is shown, and discovery ends all the same, every time.
#[test]
fn streams_without_their_first_event_are_held_and_discovery_ends() {
    let mut log = Log::new();
    for stream in 0..20 {
        let name = format!("s{stream}");
        log.many((1..10).rev(), 4, |batch, number| link(batch, name.as_bytes(), number));
    }
    let storage = log.written();
    for _ in 0..3 {
        let (order, store) = discover(&storage);
        assert_eq!((order.order.len(), store.stats().held), (0, 180));
        assert_eq!(store.streams().expect("streams").len(), 20);
        assert!(store.stream("s3").expect("finds").is_none(), "nothing to read");
        match store.why_held("s3", "9").expect("answers") {
            Why::Held(WhyHeld { roots, .. }) => {
                assert_eq!(roots, [Root { id: b"0".to_vec(), kind: RootKind::Absent }]);
            }
            other => panic!("{other:?}"),
        }
        store.close().expect("closes");
    }
    // Those that come at last release their own stream each, by themselves.
    let store = open_with(&storage, 2);
    for stream in (0..20).rev() {
        let name = format!("s{stream}");
        append(&store, &name, [event("0", &[])]);
        assert_eq!(ids_of(&store, &name).len(), 10);
        assert_eq!(store.stats().held, stream * 9);
    }
    check(&store, &expected(&storage));
}

#[test]
fn gaps_that_are_filled_one_by_one_are_discovered() {
    let len = sized(3000, 30_000);
    let mut log = Log::new();
    log.many((1..len).step_by(2), 100, |batch, number| link(batch, b"s", number));
    log = log.new_segment();
    // From the last to the first, each in a frame of its own.
    log.many((0..len).step_by(2).collect::<Vec<_>>().into_iter().rev(), 1, |batch, number| {
        link(batch, b"s", number);
    });
    check_chain(&open_with(&log.written(), 2), len);
}

// What can never be delivered.

#[test]
fn impossible_parents_are_discovered_held_and_named() {
    let mut log = Log::new();
    log.events(&[
        ("s", "self", &["self"]),
        ("s", "behind-self", &["self", "root"]),
        ("s", "one", &["two"]),
        ("other", "elsewhere", &[]),
    ]);
    log = log.new_segment();
    log.events(&[
        ("s", "two", &["one"]),
        ("s", "abroad", &["elsewhere"]),
        // The name of a stream is no event, and bytes that were never an id are none either.
        ("s", "of-a-name", &["other"]),
        ("s", "of-nothing", &["\u{0}"]),
        ("s", "root", &[]),
        ("s", "child", &["root"]),
    ]);
    let storage = log.written();
    let impossible = ["self", "behind-self", "one", "two", "abroad", "of-a-name", "of-nothing"]
        .map(String::from);
    for _ in 0..2 {
        let (_, store) = discover(&storage);
        assert_eq!(ids(&store), ["elsewhere", "root", "child"]);
        let mut found = held(&store);
        found.sort();
        let mut wanted = impossible.clone();
        wanted.sort();
        assert_eq!(found, wanted);
        let roots = |id: &str| match store.why_held("s", id).expect("answers") {
            Why::Held(why) => why.roots,
            other => panic!("{id}: {other:?}"),
        };
        let cycle = |id: &str| Root { id: id.as_bytes().to_vec(), kind: RootKind::Cycle };
        let absent = |id: &str| Root { id: id.as_bytes().to_vec(), kind: RootKind::Absent };
        assert_eq!(roots("self"), [cycle("self")]);
        assert_eq!(roots("behind-self"), [cycle("self")]);
        let mut two = roots("one");
        two.sort();
        assert_eq!(two, [cycle("one"), cycle("two")]);
        assert_eq!(roots("abroad"), [absent("elsewhere")]);
        assert_eq!(roots("of-a-name"), [absent("other")]);
        // Whatever comes live has nothing to do with them.
        store.close().expect("closes");
    }
    let store = open_with(&storage, 2);
    append(&store, "s", [event("late", &["child"]), event("later", &["two"])]);
    assert_eq!((ids(&store).last().map(String::as_str), store.stats().held), (Some("late"), 8));
    check(&store, &expected(&storage));
}

// Duplicates and conflicts.

#[test]
fn duplicates_in_a_batch_a_window_and_a_session_burn_no_numbers() {
    let graph: [(&str, &str, &[&str]); 4] =
        [("s", "c", &["b"]), ("s", "a", &[]), ("s", "b", &["a"]), ("s", "d", &["gone"])];
    let conflict: [(&str, &str, &[&str]); 2] = [("s", "c", &["a"]), ("s", "d", &[])];
    let mut log = Log::new();
    // In one batch, in the next, in the next window; of what is held and of what is delivered.
    log.events(&[graph[0], graph[0], graph[1], graph[1], graph[2], graph[3], graph[3]]);
    log.events(&graph);
    log = log.new_segment();
    log.events(&conflict);
    log.events(&graph);
    let storage = log.written();
    let (order, store) = discover(&storage);
    assert_eq!(ids(&store), ["a", "b", "c"], "dense, and each once");
    assert_eq!((store.stats().duplicates, store.stats().conflicts), (11, 2));
    store.close().expect("closes");
    // And those that come when only the checkpoint knows the first.
    let store = open_with(&storage, 2);
    assert_eq!(
        append(&store, "s", [event("c", &["b"]), event("d", &["gone"]), event("d", &[])]),
        [Placement::Duplicate, Placement::Duplicate, Placement::Conflict]
    );
    assert_eq!(order.order.len() as u64, store.stats().delivered);
    assert_eq!(
        append(&store, "s", [event("gone", &[])]),
        [Placement::Delivered { global: 3, local: 3 }]
    );
    assert_eq!(ids(&store), ["a", "b", "c", "gone", "d"]);
    check(&store, &expected(&storage));
}

/// The same events from four threads at once, while they are also found in the log.
#[test]
fn events_that_arrive_again_while_they_are_discovered_are_delivered_once() {
    let (streams, len) = (8, 60);
    let mut numbers: Vec<usize> = (0..streams * len).collect();
    Rng(11).shuffle(&mut numbers);
    let mut log = Log::new();
    for numbers in numbers.chunks(80) {
        log.many(numbers.iter().copied(), 40, |batch, number| {
            link(batch, format!("s{}", number % streams).as_bytes(), number / streams);
        });
        log = log.new_segment();
    }
    let storage = log.written();
    let store = open_with(&storage, 2);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (store, mut numbers) = (&store, numbers.clone());
            Rng(thread).shuffle(&mut numbers);
            scope.spawn(move || {
                let mut tickets = Vec::new();
                for numbers in numbers.chunks(7) {
                    let mut batch = thalweg::MixedBatch::new();
                    for number in numbers {
                        let parent =
                            (number / streams).checked_sub(1).map(|number| number.to_string());
                        let event = Event::new("").id((number / streams).to_string());
                        let event = event.parents(parent);
                        batch.push(format!("s{}", number % streams), &event).expect("fits");
                    }
                    tickets.push(store.submit(batch, Ack::Ordered).expect("accepted"));
                }
                for ticket in tickets {
                    let receipt = ticket.wait().expect("appended");
                    let again = |placement: &Placement| *placement == Placement::Duplicate;
                    assert!(receipt.placements.iter().all(again), "{:?}", receipt.placements);
                }
            });
        }
    });
    assert_eq!(store.stats().duplicates, 4 * (streams * len) as u64);
    assert_eq!(store.stats().delivered, (streams * len) as u64);
    check(&store, &expected(&storage));
}

// Orphans over restarts.

/// Parents come one at a time, each in a session of its own; what the session before it knew is in the
/// checkpoint, in the log alone, or in a checkpoint that has a part of it.
#[test]
fn orphans_and_live_parents_take_turns_over_many_restarts() {
    let generations = 24;
    let mut log = Log::new();
    log.many((1..generations * 2).rev().step_by(2), 3, |batch, number| link(batch, b"s", number));
    let mut storage = log.written();
    for (session, number) in (0..generations * 2).step_by(2).enumerate() {
        let store = open_with(&storage, 1 + session % 3);
        if session % 2 == 0 {
            store.wait_committed(store.durable_end()).expect("everything is ordered");
            assert_eq!(store.stats().delivered, number as u64);
        }
        if session % 5 == 0 {
            store.checkpoint().expect("a checkpoint");
        }
        let parent = number.checked_sub(1).map(|parent| parent.to_string());
        let placements =
            append(&store, "s", [Event::new("").id(number.to_string()).parents(parent)]);
        let place = number as u64;
        assert_eq!(placements, [Placement::Delivered { global: place, local: place }]);
        assert_eq!(store.stats().delivered, number as u64 + 2, "it has taken its orphan with it");
        match session % 4 {
            0 => store.close().expect("closes"),
            1 => storage = storage.fork(),
            2 => {
                storage = storage.fork();
                keep_the_log_only(&storage);
            }
            _ => drop(store),
        }
    }
    check_chain(&open_with(&storage, 2), generations * 2);
    check(&open_with(&storage.fork(), 3), &expected(&storage));
}
