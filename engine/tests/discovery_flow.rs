//! A store on a log that is not ordered yet is open: it appends, reads, answers and closes while it
//! discovers what is there, a slow stage stops the ones before it, and what was discovered once is not
//! discovered again.

mod common;
#[path = "common/faulty.rs"]
mod faulty;
#[path = "../../wal/tests/common/hooked.rs"]
mod hooked;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::log::{Log, log_of_windows, push};
use common::{Rng, SOON, acked, append, check, expected, keep, shared, soon};
use faulty::Faulty;
use hooked::{Hooked, Op};
use thalweg::storage::{Access, MemoryStorage, Storage};
use thalweg::{Ack, Event, Options, Placement, ReadError, Store, Why};

const SEGMENT_BYTES: u64 = 1 << 20;

fn options() -> Options {
    Options::new().scanners(2).orderers(2).segment_bytes(SEGMENT_BYTES)
}

fn open(storage: &MemoryStorage) -> Store {
    options().open_on(shared(storage)).expect("opens")
}

/// Opens a store that takes `each` to write the order of a window.
fn open_slow(storage: &MemoryStorage, each: Duration) -> Store {
    let faulty = Faulty::over(storage.clone());
    faulty.slow_down(faulty::Op::Write, "order-", each);
    options().open_on(Arc::new(faulty)).expect("opens")
}

/// A log of so many windows with 20 events each: a chain that is whole, and one whose first event is
/// missing.
fn chains(windows: usize) -> MemoryStorage {
    let mut log = Log::new();
    for window in 0..windows {
        log.many(window * 10..(window + 1) * 10, 10, |batch, number| {
            let (id, parent) = (number.to_string(), (number as i64 - 1).to_string());
            let parents: &[&[u8]] = if number == 0 { &[] } else { &[parent.as_bytes()] };
            push(batch, b"whole", id.as_bytes(), parents, b"");
            push(batch, b"headless", id.as_bytes(), &[parent.as_bytes()], b"");
        });
        log = log.new_segment();
    }
    log.written()
}

fn positions(store: &Store) -> Vec<u64> {
    let events = store.read(..).expect("reads");
    events.map(|event| event.expect("reads").position()).collect()
}

// Serving meanwhile.

/// What is committed can be read, and what is appended is durable, long before all is ordered. The
/// events that come live are ordered behind all that was there.
#[test]
fn a_store_reads_appends_and_answers_while_it_discovers() {
    let windows = 30;
    let storage = chains(windows);
    let store = open_slow(&storage, Duration::from_millis(50));
    let found = store.durable_end();
    let all_is_ordered = || store.wait_committed_timeout(found, Duration::ZERO).expect("goes on");

    let live = store.appender("whole").expect("an appender");
    let ticket = live.append_event(Event::new("live").id("live")).expect("accepted");
    let receipt = ticket.wait().expect("durable");
    assert!(!all_is_ordered(), "an append does not wait for the discovery");
    assert!(receipt.position >= found);

    let appender = store.appender_with("whole", acked(Ack::Ordered)).expect("an appender");
    let last = Event::new("").id("last").parents(["live"]);
    let mut ordered = appender.append_event(last).expect("accepted");

    store.wait_committed(found / 8).expect("goes on");
    assert!(!all_is_ordered());
    let view = store.stream("whole").expect("finds").expect("is there already");
    let ids: Vec<Vec<u8>> =
        view.read(..).expect("reads").map(|event| event.expect("reads").id().to_vec()).collect();
    assert_eq!(ids, (0..view.len()).map(|id| id.to_string().into_bytes()).collect::<Vec<_>>());
    assert!(!view.is_empty() && view.len() < windows as u64 * 10);
    assert!(store.get("whole", "3").expect("gets").is_some());
    assert!(store.get("whole", "live").expect("gets").is_none(), "not before all that was there");
    assert!(ordered.try_wait().is_none());

    let held = store.held().expect("answers");
    assert!(!held.is_empty() && held.len() < windows * 10, "in the middle: {}", held.len());
    assert!(held.iter().all(|event| event.stream == b"headless"));
    let why = store.why_held("headless", "0").expect("answers");
    assert!(matches!(why, Why::Held(_)), "{why:?}");
    assert_eq!(store.streams().expect("answers").len(), 2);
    store.checkpoint().expect("a checkpoint of what there is");
    assert!(!all_is_ordered(), "all of this was in the middle");

    let global = windows as u64 * 10;
    let place = |ahead| Placement::Delivered { global: global + ahead, local: global + ahead };
    let receipt = ordered.wait_timeout(SOON).expect("in time").expect("appended");
    assert_eq!(receipt.placements, [place(1)]);
    check(&store, &expected(&storage));
}

#[test]
fn a_subscriber_sees_a_discovery_as_one_order_without_holes() {
    let storage = log_of_windows(&mut Rng::from_env(), 16);
    let store = open_slow(&storage, Duration::from_millis(10));
    let wanted: Vec<u64> =
        expected(&storage).order.iter().map(|delivery| delivery.position).collect();
    let seen = std::thread::scope(|scope| {
        let follow = |from: u64| {
            let mut subscription = store.subscribe(from).expect("subscribes");
            let count = wanted.len() as u64 - from;
            move || -> (u64, Vec<u64>) {
                let next = |_| {
                    let event = subscription.next_timeout(SOON).expect("reads").expect("in time");
                    (event.global(), event.position())
                };
                let (globals, positions): (Vec<u64>, Vec<u64>) = (0..count).map(next).unzip();
                assert!(globals.into_iter().eq(from..from + count), "a hole");
                (from, positions)
            }
        };
        let mut followers = vec![scope.spawn(follow(0))];
        // From now on, at many moments in the middle of it.
        while !store.wait_committed_timeout(store.durable_end(), Duration::ZERO).expect("goes on") {
            followers.push(scope.spawn(follow(store.stats().delivered)));
            std::thread::sleep(Duration::from_millis(15));
        }
        let ends = followers.into_iter().map(|follower| follower.join().expect("follows"));
        ends.collect::<Vec<_>>()
    });
    assert!(seen.iter().any(|(from, _)| *from > 0), "no one began in the middle");
    for (from, positions) in seen {
        assert_eq!(positions, wanted[from as usize..], "from {from}");
    }
}

#[test]
fn a_subscriber_that_never_reads_holds_nobody_up() {
    let storage = chains(6);
    let store = open(&storage);
    let mut subscriptions: Vec<_> =
        (0..50).map(|from| store.subscribe(from).expect("subscribes")).collect();
    let mut read = store.read(..).expect("reads");
    append(&store, "whole", "live");
    let waiting = store.clone();
    soon("wait", move || waiting.wait_committed(waiting.durable_end())).expect("is ordered");
    check(&store, &expected(&storage));
    // They have lost nothing by it, and see what came meanwhile.
    for (subscription, from) in subscriptions.iter_mut().zip(0..) {
        assert_eq!(subscription.next().expect("goes on").expect("reads").global(), from);
    }
    assert!(read.next().is_none(), "a read ends where it was committed when it was made");
    store.close().expect("closes");
}

// Slow stages.

/// The order of the first window cannot be written for now: orderer and scanners stop a few windows
/// ahead of it, and appends go on, since the log itself is the queue.
#[test]
fn a_slow_order_stops_the_stages_before_it_and_no_append() {
    let windows = 40;
    let storage = chains(windows);
    let faulty = Faulty::over(storage.clone());
    faulty.hold(faulty::Op::Write, "order-");
    let store = options().open_on(Arc::new(faulty.clone())).expect("opens");
    keep(&store);
    let first = store.stats().committed;
    faulty.wait_until_one_waits();
    // As far as they come: until nothing has moved for a while.
    let (mut ordered, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_millis(200) {
        let now = store.stats().ordered;
        if now != ordered {
            (ordered, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let stats = store.stats();
    assert_eq!(stats.committed, first);
    let ahead = (stats.scanned - first) / SEGMENT_BYTES;
    // Those that the committer may have in front of it, one in its hand and one in the orderer's; and
    // each step from one segment to the next is an empty window.
    assert!(ahead <= 4, "{ahead} of {windows} windows are ordered and nobody takes them");
    for number in 0..20 {
        let appender = store.appender("live").expect("an appender");
        let mut ticket = appender.append(format!("{number}")).expect("accepted");
        ticket.wait_timeout(SOON).expect("does not wait for the order").expect("durable");
    }
    faulty.let_go();
    check(&store, &expected(&storage));
    store.close().expect("closes");
}

/// One thread for each stage, room for one byte of appends, and events of both kinds: found and live.
#[test]
fn the_narrowest_pipeline_comes_to_the_end() {
    let storage = chains(8);
    let options = Options::new().scanners(1).orderers(1).queue_bytes(1);
    let store = options.segment_bytes(SEGMENT_BYTES).open_on(shared(&storage)).expect("opens");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..25 {
                    append(store, &format!("live-{thread}"), format!("{number}"));
                }
            });
        }
    });
    let waiting = store.clone();
    soon("wait", move || waiting.wait_committed(waiting.durable_end())).expect("is ordered");
    check(&store, &expected(&storage));
}

/// Questions and checkpoints waited for as long as appends came: the orderer looked for them only when
/// it had nothing to order, and with appends at the pace of the disk there was always a next window.
#[test]
fn questions_are_answered_while_appends_come_without_a_break() {
    let storage = MemoryStorage::new();
    // While the order of one window is written, the events of the next arrive.
    let store = open_slow(&storage, Duration::from_millis(5));
    keep(&store);
    let (stop, rounds) = (AtomicBool::new(false), 10);
    let slowest = std::thread::scope(|scope| {
        let (appender, stop) = (store.appender("s").expect("an appender"), &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                appender.append("x").expect("accepted").wait().expect("durable");
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let mut slowest = Duration::ZERO;
        for round in 0..rounds {
            let asked = Instant::now();
            let (store, (sender, answers)) = (store.clone(), std::sync::mpsc::channel());
            std::thread::spawn(move || {
                match round % 3 {
                    0 => drop(store.held().expect("answers")),
                    1 => drop(store.streams().expect("answers")),
                    _ => store.checkpoint().expect("a checkpoint"),
                }
                let _ = sender.send(());
            });
            let answered = answers.recv_timeout(Duration::from_secs(20));
            slowest = slowest.max(asked.elapsed());
            if answered.is_err() {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        slowest
    });
    // A machine with other work takes some of the time.
    assert!(slowest < Duration::from_secs(10), "{slowest:?} for an answer");
    check(&store, &expected(&storage));
    store.close().expect("closes");
}

// Ending.

/// Closed at random moments of a discovery, a store ends within the second that is promised, and the
/// next one goes on.
#[test]
fn closing_in_the_middle_of_a_discovery_ends_at_once() {
    let mut rng = Rng::from_env();
    let storage = chains(60);
    let mut in_the_middle = 0;
    for _ in 0..3 {
        let store = open_slow(&storage, Duration::from_millis(25));
        std::thread::sleep(Duration::from_millis(rng.below(100)));
        let begun = Instant::now();
        store.close().expect("closes");
        let elapsed = begun.elapsed();
        // A second is promised; on a machine with other work, some of the time is theirs.
        assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
        let stats = store.stats();
        in_the_middle += u32::from(stats.ordered < stats.durable);
        // Whoever still waits for the order hears that it has ended.
        let waited = store.wait_committed(u64::MAX);
        assert!(matches!(waited, Err(ReadError::Closed)), "{waited:?}");
    }
    assert!(in_the_middle > 0, "all of them had come to the end");
    check(&open(&storage), &expected(&storage));
}

/// Questions are answered by the thread that orders, and closing waited until it had looked through all
/// the generations of a long chain: for five seconds, where a million events were held.
#[test]
fn closing_does_not_wait_for_an_answer_that_takes_long() {
    let len = if cfg!(debug_assertions) { 60_000 } else { 400_000 };
    let mut log = Log::with_segments(8 << 20);
    // All but the first, which never comes.
    log.many((1..len).rev(), 1000, |batch, number| {
        let (id, parent) = (number.to_string(), (number - 1).to_string());
        push(batch, b"s", id.as_bytes(), &[parent.as_bytes()], b"");
    });
    let storage = log.written();
    // From now on, there is nothing new to write at a close.
    let store = open(&storage);
    store.wait_committed(store.durable_end()).expect("is ordered");
    store.close().expect("closes");
    let mut given_up = 0;
    for _ in 0..3 {
        let store = open(&storage);
        assert_eq!(store.stats().held, len as u64 - 1);
        let asking = store.clone();
        let last = (len - 1).to_string();
        let asking = std::thread::spawn(move || asking.why_held("s", last).err());
        std::thread::sleep(Duration::from_millis(30));
        let begun = Instant::now();
        store.close().expect("closes");
        let elapsed = begun.elapsed();
        // A second is promised; on a machine with other work, some of the time is theirs.
        assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
        match asking.join().expect("no panic") {
            Some(ReadError::Closed) => given_up += 1,
            // It was answered in time.
            None => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(given_up > 0, "no question took long enough");
}

// Again.

/// A reader beside the writer discovers the log for itself, in memory, and changes nothing.
#[test]
fn a_reader_discovers_beside_the_writer_and_leaves_no_trace() {
    let storage = log_of_windows(&mut Rng::from_env(), 8);
    let order = expected(&storage);
    let files = |storage: &MemoryStorage| storage.list().expect("lists");
    let before = files(&storage);
    let reader = options().open_read_only_on(shared(&storage)).expect("opens");
    check(&reader, &order);
    assert_eq!(files(&storage), before);
    let writer = open_slow(&storage, Duration::from_millis(20));
    let beside = options().open_read_only_on(shared(&storage)).expect("opens");
    check(&beside, &order);
    check(&writer, &order);
    drop(beside);
    writer.close().expect("closes");
    check(&reader, &order);
}

#[test]
fn what_is_ordered_already_is_there_when_the_store_opens() {
    let storage = chains(3);
    let store = open(&storage);
    store.wait_committed(store.durable_end()).expect("is ordered");
    let read = positions(&store);
    store.close().expect("closes");
    for round in 0..3 {
        let store = open(&storage);
        let stats = store.stats();
        assert_eq!((stats.delivered, stats.held), (30, 30), "round {round}, at once");
        assert_eq!([stats.checkpoint_position, stats.committed, stats.ordered], [stats.durable; 3]);
        assert_eq!(positions(&store), read);
        store.close().expect("closes");
    }
}

/// What is going to be scanned is asked for as a whole, and once; what was appended a moment ago is not.
#[test]
fn a_long_log_is_read_ahead() {
    const COUNT: usize = 300;
    let mut log = Log::new();
    log.many(0..COUNT, 10, |batch, number| {
        push(batch, b"s", number.to_string().as_bytes(), &[], &[1; 1000]);
    });
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    let hooked = Hooked::new(log.written(), move |op| {
        if let Op::WillNeed { offset, len } = op {
            noted.lock().expect("sound").push((offset, offset + len));
        }
        Ok(())
    });
    let store = options().open_on(Arc::new(hooked)).expect("opens");
    store.wait_committed(store.durable_end()).expect("is ordered");
    append(&store, "s", "live");
    store.wait_committed(store.durable_end()).expect("is ordered");
    assert_eq!(store.stats().delivered, COUNT as u64 + 1);
    let asked = asked.lock().expect("sound");
    let [(from, to)] = asked[..] else { panic!("{asked:?}") };
    assert!(from == 4096 && to >= 4096 + (COUNT as u64 * 1000), "{asked:?}");
    store.close().expect("closes");
}

/// A kill in the middle of an append to a log that nobody has ordered: the frame that is not whole is
/// cut, and everything before it is discovered.
#[test]
fn a_torn_tail_behind_a_log_that_was_never_ordered_is_cut() {
    let mut log = Log::new();
    log.events(&[("s", "b", &["a"])]);
    log = log.new_segment();
    log.events(&[("s", "a", &[])]);
    let whole = log.storage.fork();
    let torn_at = log.events(&[("s", "c", &["b"]), ("s", "d", &["c"])]);
    let storage = log.written();
    let order = expected(&whole);
    let name = "segment-0000000000000002.wal";
    let in_file = torn_at % SEGMENT_BYTES;
    for lost in [40, 8, 1] {
        let torn = storage.fork();
        let file = torn.open(name, Access::Write).expect("opens");
        let mut frame = [0; 400];
        file.read_at(&mut frame, in_file).expect("reads");
        let len = frame.iter().rposition(|&byte| byte != 0).expect("is there") as u64 + 1;
        file.write_at(&vec![0; lost as usize], in_file + len - lost).expect("writes");
        let reader = options().open_read_only_on(shared(&torn)).expect("opens");
        check(&reader, &order);
        let store = open(&torn);
        check(&store, &order);
        append(&store, "s", "goes on");
        check(&store, &expected(&torn));
    }
}
