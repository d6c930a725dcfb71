//! Readers of a store that is trimmed under them: each sees the order as it is from where it began, hears once of what
//! it has missed, and goes on where the log begins.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use common::{SOON, append_event, shared, soon};
use thalweg::storage::MemoryStorage;
use thalweg::{
    Ack, Event, KeptBy, MixedBatch, Options, Placement, ReadError, Start, Store, Subscription, Trim,
};

/// Three of these fill a segment.
const LONG: usize = 300 << 10;
const NO_WAIT: Duration = Duration::ZERO;

fn options() -> Options {
    Options::new().segment_bytes(1 << 20).scanners(1).orderers(1)
}

fn open() -> Store {
    options().open_on(shared(&MemoryStorage::new())).expect("opens")
}

/// Appends one event, which is delivered at once; returns its global sequence.
fn append(store: &Store, stream: &str, event: &thalweg::NewEvent) -> u64 {
    match append_event(store, stream, event).placements[0] {
        Placement::Delivered { global, .. } => global,
        ref other => panic!("{other:?}"),
    }
}

fn fill(store: &Store, stream: &str, count: u64) {
    for number in 0..count {
        append(store, stream, &Event::new(vec![number as u8 + 1; LONG]));
    }
}

/// Everything but the last segment or so.
fn trim(store: &Store) -> u64 {
    let all = Trim::new().before(u64::MAX).past_cursors();
    let first = store.trim(&all).expect("trims").first;
    assert_eq!(first, store.first());
    first
}

fn first_of(error: Result<Option<Event>, ReadError>) -> u64 {
    match error {
        Err(ReadError::Trimmed { first }) => first,
        other => panic!("{other:?}"),
    }
}

/// The local sequence of the first event of a stream that was not trimmed.
fn first_local(store: &Store, stream: &str) -> u64 {
    let view = store.stream(stream).expect("finds").expect("is there");
    let kept = view.read(..).expect("reads").next();
    kept.map_or(view.len(), |event| event.expect("reads").local())
}

/// A view that was taken before most of what it is to show was appended, which is trimmed by then: the reader has to look
/// again, and finds that it is gone. The stream is long, so that many events of it are located at a time.
#[test]
fn a_subscription_that_was_overtaken_hears_of_it_once_and_goes_on() {
    let store = open();
    for stream in ["a", "b"] {
        append(&store, stream, &Event::new("first"));
    }
    let subscriptions: [(&str, Subscription); 5] = [
        ("global", store.subscribe(0).expect("subscribes")),
        ("stream", store.subscribe_stream("a", 0).expect("subscribes")),
        ("place", store.subscribe_stream_at("a", 0).expect("subscribes")),
        ("set", store.subscribe_streams(["a", "b"], 0).expect("subscribes")),
        ("prefix", store.subscribe_prefix("a", 0).expect("subscribes")),
    ];
    for number in 0..60_u64 {
        append(&store, "a", &Event::new(number.to_le_bytes()));
        fill(&store, "b", u64::from(number % 3 == 0));
    }
    // Some of what is trimmed can still be seen by whoever has looked before.
    let first = store.trim(&Trim::new().before(60)).expect("trims").first;
    assert!((40..60).contains(&first), "{first}");
    for (kind, mut subscription) in subscriptions {
        let of_stream = matches!(kind, "stream" | "place");
        let mut seen = Vec::new();
        let mut told = Vec::new();
        loop {
            match subscription.try_next() {
                Ok(Some(event)) => {
                    let is_short = event.payload().len() == 8 || event.global() < 2;
                    assert!(is_short == (event.stream() == b"a") || event.global() < 2, "{kind}");
                    let place = if of_stream { event.local() } else { event.global() };
                    seen.push((place, told.len()));
                }
                Ok(None) => break,
                Err(ReadError::Trimmed { first }) => told.push(first),
                Err(error) => panic!("{kind}: {error}"),
            }
        }
        let begins = if of_stream { first_local(&store, "a") } else { first };
        assert_eq!(told, [begins], "{kind}");
        let (before, after): (Vec<_>, Vec<_>) = seen.into_iter().partition(|seen| seen.1 == 0);
        assert!(before.iter().all(|seen| seen.0 < begins), "{kind}: {before:?}");
        let after: Vec<u64> = after.into_iter().map(|seen| seen.0).collect();
        let kept: Vec<u64> = match kind {
            "stream" | "place" => (begins..61).collect(),
            "prefix" => {
                let view = store.stream("a").expect("finds").expect("is there");
                view.read(..).expect("reads").map(|event| event.expect("reads").global()).collect()
            }
            _ => (begins..store.delivered()).collect(),
        };
        assert_eq!(after, kept, "{kind}");
    }
}

/// Of the newest event of a stream, name and id are kept when it is trimmed. That is no event to be shown.
#[test]
fn what_is_kept_of_a_trimmed_event_is_never_shown_as_the_event() {
    let store = open();
    append(&store, "a", &Event::new("first"));
    let mut global = store.subscribe(0).expect("subscribes");
    let mut stream = store.subscribe_stream("tip", 0).expect("subscribes");
    let mut read = store.read(..).expect("reads");
    fill(&store, "b", 4);
    let tip = append(&store, "tip", &Event::new("whole").id("the tip"));
    let mut later = store.read(tip..).expect("reads");
    fill(&store, "b", 4);
    let first = trim(&store);
    assert!(first > tip, "{first}");
    let mut told = 0;
    while let Ok(event) = global.try_next().map_err(|error| {
        told += u64::from(!matches!(error, ReadError::Trimmed { first: said } if said == first))
    }) {
        let Some(event) = event else { break };
        assert!(event.stream() != b"tip" || event.payload() == b"whole");
    }
    assert_eq!(told, 0, "another error");
    assert_eq!(first_of(stream.try_next()), 1, "nothing of the stream is left");
    assert!(stream.try_next().expect("goes on").is_none());
    for event in read.by_ref().chain(later.by_ref()).flatten() {
        assert!(event.stream() != b"tip" || event.payload() == b"whole");
    }
    assert!(
        matches!(store.get("tip", "the tip"), Err(ReadError::Trimmed { first: said }) if said == first)
    );
    // It is what the next one is chained on all the same.
    append(&store, "tip", &Event::new("next"));
    let next = stream.try_next().expect("reads").expect("is there");
    assert_eq!((next.local(), next.payload()), (1, &b"next"[..]));
    assert_eq!(next.parents().expect("its parent"), [b"the tip"]);
}

#[test]
fn what_a_reader_has_in_hand_stays_readable() {
    let store = open();
    append(&store, "s", &Event::new("root").id("root"));
    fill(&store, "s", 9);
    let held: Vec<Event> =
        store.read(..).expect("reads").map(|event| event.expect("reads")).collect();
    let mut begun = store.read(..).expect("reads");
    let mut of_stream =
        store.stream("s").expect("finds").expect("is there").read(..).expect("reads");
    for read in [&mut begun, &mut of_stream] {
        assert_eq!(read.next().expect("the first").expect("reads").payload(), b"root");
    }
    let first = trim(&store);
    assert!(first > 3, "{first}");
    for (number, event) in held.iter().enumerate().skip(1) {
        assert!(event.payload() == vec![number as u8; LONG], "{number}");
        assert_eq!(event.stream(), b"s");
    }
    // What a chained event was chained on is not in it, and has to be looked up.
    assert_eq!(first_of(held[1].parents().map(|_| None)), first);
    let next = held[first as usize].parents().expect("its parent");
    assert_eq!(next, [held[first as usize - 1].id()]);
    // What was begun sees what it saw, to the end; one that begins now does not.
    for read in [&mut begun, &mut of_stream] {
        let numbers: Vec<u64> = read.map(|event| event.expect("reads").global()).collect();
        assert_eq!(numbers, (1..10).collect::<Vec<u64>>());
    }
    let late = store.read(..).expect("reads").map(|event| event.expect("reads").global());
    assert!(late.eq(first..10));
    assert!(matches!(store.read(0..), Err(ReadError::Trimmed { first: said }) if said == first));
    drop(store);
    assert!(held[9].payload() == vec![9; LONG]);
}

/// A read whose view does not reach to what it is for any more tells so, once, and ends.
#[test]
fn a_read_that_was_overtaken_says_so_once() {
    let store = open();
    fill(&store, "s", 4);
    let mut global = store.read(..).expect("reads");
    global.next().expect("the first").expect("reads");
    let view = store.stream("s").expect("finds").expect("is there");
    fill(&store, "s", 8);
    let first = trim(&store);
    assert!(first > 4, "{first}");
    assert!(global.all(|event| event.is_ok()), "it has all that it is for in its view");
    // Of a view that is long over, nothing is left.
    assert_eq!(view.read(..).expect("reads").count(), 0);
    assert!(matches!(view.read(2..), Err(ReadError::Trimmed { first: 4 })));
}

/// What is delivered at each global sequence, written down by whoever appends it.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(u8, u64, u64)>>);

const STREAMS: [&str; 4] = ["a", "ab", "b", "c"];

/// Readers of every kind, consumers with cursors, and trims that know no mercy.
#[test]
fn readers_of_a_store_that_is_trimmed_see_the_order_from_where_they_are() {
    const EVENTS: u64 = 400;
    let store = open();
    let told = Told::default();
    let done = AtomicBool::new(false);
    let (told_trims, seen_in_all) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (store, told, done) = (&store, &told, &done);
        let (told_trims, seen_in_all) = (&told_trims, &seen_in_all);
        scope.spawn(move || {
            for number in 0..EVENTS {
                let stream = (number * 7 % 11 % 4) as usize;
                let mut payload = vec![stream as u8; if number % 3 == 0 { LONG } else { 50 }];
                payload[..8].copy_from_slice(&number.to_le_bytes());
                let mut batch = MixedBatch::new();
                batch.push(STREAMS[stream], &Event::new(payload)).expect("within the limits");
                let ticket = store.submit(batch, Ack::Ordered).expect("accepted");
                let receipt = ticket.wait().expect("appended");
                let Placement::Delivered { global, local } = receipt.placements[0] else {
                    panic!("{receipt:?}");
                };
                let mut told = told.0.lock().unwrap();
                assert_eq!(global, told.len() as u64);
                told.push((stream as u8, local, number));
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(move || {
            let mut before = 0;
            while !done.load(Ordering::SeqCst) {
                let first = trim(store);
                assert!(first >= before);
                before = first;
                std::thread::yield_now();
            }
        });
        let start = |kind: usize, from: u64| match kind {
            0 => store.subscribe(from),
            1 => store.subscribe_stream("a", from),
            2 => store.subscribe_streams(["b", "c"], from),
            _ => store.subscribe_prefix("a", from),
        };
        let is_wanted: fn(usize, u8) -> bool = |kind, stream| match kind {
            0 => true,
            1 => stream == 0,
            2 => stream >= 2,
            _ => stream < 2,
        };
        for reader in 0..8_u64 {
            let kind = (reader % 4) as usize;
            let mut subscription = start(kind, 0).expect("subscribes");
            let is_slow = reader >= 4;
            scope.spawn(move || {
                // What comes next, in numbers of whatever the subscription counts.
                let (mut seen, mut from) = (Vec::new(), 0);
                loop {
                    let ended = done.load(Ordering::SeqCst);
                    match subscription.next_timeout(Duration::from_millis(5)) {
                        Ok(Some(event)) => {
                            let mut number = [0; 8];
                            number.copy_from_slice(&event.payload()[..8]);
                            let stream = event.payload()[8];
                            assert!(event.payload()[8..].iter().all(|&byte| byte == stream));
                            assert_eq!(event.stream(), STREAMS[usize::from(stream)].as_bytes());
                            seen.push((event.global(), event.local(), u64::from_le_bytes(number)));
                            if is_slow && seen.len() % 8 == 0 {
                                std::thread::sleep(Duration::from_millis(20));
                            }
                        }
                        Ok(None) if ended => break,
                        Ok(None) => {}
                        Err(ReadError::Trimmed { first }) => {
                            told_trims.fetch_add(1, Ordering::Relaxed);
                            // At most once for each place where the log begins.
                            assert!(first > from || kind == 1 && first == from, "{first} {from}");
                            from = first;
                            seen.push((u64::MAX, first, 0));
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                let told = told.0.lock().unwrap();
                let wanted: Vec<_> = (0..)
                    .zip(told.iter())
                    .filter(|(_, (stream, ..))| is_wanted(kind, *stream))
                    .map(|(global, &(_, local, number))| (global, local, number))
                    .collect();
                let mut at = 0;
                for item in seen {
                    if item.0 == u64::MAX {
                        let place =
                            |item: &(u64, u64, u64)| if kind == 1 { item.1 } else { item.0 };
                        let next = wanted.partition_point(|wanted| place(wanted) < item.1);
                        assert!(next >= at, "it goes back");
                        at = next;
                        continue;
                    }
                    assert_eq!(wanted[at], item, "reader {reader}");
                    at += 1;
                    seen_in_all.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(at, wanted.len(), "reader {reader} has not seen the end");
            });
        }
    });
    println!("{told_trims:?} trims told, {seen_in_all:?} events seen");
    assert!(store.first() > EVENTS / 2, "{}", store.first());
    assert!(seen_in_all.into_inner() > EVENTS / 4 * 2);
}

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kept_by_cursor(kept_by: Option<KeptBy>, named: &str) -> Option<u64> {
    match kept_by? {
        KeptBy::Cursor { name, at } => {
            assert_eq!(name, named.as_bytes());
            Some(at)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_trim_passes_no_cursor_and_says_which_one_keeps_it() {
    let store = open();
    fill(&store, "s", 12);
    let (slow, fast) =
        (store.cursor("slow").expect("a cursor"), store.cursor("fast").expect("a cursor"));
    slow.commit(4).expect("commits");
    fast.commit(8).expect("commits");
    let all = Trim::new().before(u64::MAX);
    let report = store.trim(&all).expect("trims");
    assert_eq!(kept_by_cursor(report.kept_by, "slow"), Some(4));
    assert!((1..=4).contains(&report.first), "{}", report.first);
    // From where it is, it misses nothing.
    let mut consumer = store.subscribe(&slow).expect("subscribes");
    assert_eq!(consumer.try_next().expect("reads").expect("is there").global(), 4);
    slow.commit(11).expect("commits");
    let report = store.trim(&all).expect("trims");
    assert_eq!(kept_by_cursor(report.kept_by, "fast"), Some(8));
    assert!((5..=8).contains(&report.first), "{}", report.first);
    let report = store.trim(&all.clone().past_cursors()).expect("trims");
    assert_eq!(report.kept_by, None);
    assert!(report.first > 8, "{}", report.first);
    let mut passed = store.subscribe(&fast).expect("subscribes");
    assert_eq!(first_of(passed.try_next()), report.first);
    // A cursor that has been passed keeps all that there is.
    fill(&store, "s", 6);
    let kept = store.trim(&all).expect("trims");
    assert_eq!((kept.first, kept_by_cursor(kept.kept_by, "fast")), (report.first, Some(8)));
    // One at 0 does, too, and one that is taken away does not.
    fast.remove().expect("removes");
    slow.remove().expect("removes");
    let new = store.cursor("new").expect("a cursor");
    new.commit(0).expect("commits");
    let kept = store.trim(&all).expect("trims");
    assert_eq!(kept_by_cursor(kept.kept_by, "new"), Some(0));
    new.remove().expect("removes");
    assert!(store.trim(&all).expect("trims").first > report.first);
}

#[test]
fn a_retention_goes_on_when_the_cursor_that_kept_it_has_gone_on() {
    let storage = MemoryStorage::new();
    let retention = Trim::new().keep_bytes(2 << 20);
    let store = options().retention(retention).open_on(shared(&storage)).expect("opens");
    let cursor = store.cursor("slow").expect("a cursor");
    cursor.commit(0).expect("commits");
    fill(&store, "s", 20);
    until("it is kept", || kept_by_cursor(store.stats().kept_by, "slow").is_some());
    assert_eq!((store.first(), store.stats().first), (0, 0));
    cursor.commit(10).expect("commits");
    until("it goes on", || store.first() > 0);
    assert!(store.first() <= 10);
    cursor.remove().expect("removes");
    until("it goes on", || store.first() > 10);
    until("nothing keeps it", || store.stats().kept_by.is_none());
    assert_eq!(store.stats().trim_error, None);
    soon("closing", move || store.close().expect("closes"));
}

/// Names of files that are mapped and have no name any more, below a directory.
fn mapped_without_name(dir: &Path) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux");
    let below = dir.to_str().expect("plain");
    let is_gone = |line: &&str| line.ends_with("(deleted)") && line.contains(below);
    let mut names: Vec<String> = maps
        .lines()
        .filter(is_gone)
        .map(|line| line.rsplit('/').next().expect("a name").to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// A file that somebody has mapped takes its space until it is let go.
#[test]
fn who_waits_for_what_comes_keeps_no_trimmed_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = options().open(dir.path()).expect("opens");
    fill(&store, "busy", 6);
    append(&store, "idle", &Event::new("only"));
    let have_read = Arc::new(Barrier::new(4));
    let mut waiting = Vec::new();
    for kind in 0..3 {
        let have_read = Arc::clone(&have_read);
        let mut subscription = match kind {
            0 => store.subscribe_stream("idle", 0),
            1 => store.subscribe_prefix("idle", 0),
            _ => store.subscribe_stream("idle", Start::Now),
        }
        .expect("subscribes");
        waiting.push(std::thread::spawn(move || {
            let first = subscription.next_timeout(NO_WAIT);
            if kind < 2 {
                assert!(first.expect("reads").is_some());
            }
            have_read.wait();
            subscription
                .next_timeout(SOON * 6)
                .map(|event| event.map(|event| event.to_owned().expect("owned")))
        }));
    }
    have_read.wait();
    fill(&store, "busy", 9);
    let first = trim(&store);
    assert!(first > 6);
    until("the files are let go", || mapped_without_name(dir.path()).is_empty());
    append(&store, "idle", &Event::new("second"));
    for waiting in waiting {
        let event = waiting.join().expect("no panic").expect("reads").expect("comes");
        assert_eq!(event.payload, b"second");
    }
    store.close().expect("closes");
}

/// Held while their segment goes; delivered later, and then trimmed themselves.
#[test]
fn an_event_that_outlives_its_segment_is_delivered_read_and_trimmed() {
    let storage = MemoryStorage::new();
    let mut store = options().open_on(shared(&storage)).expect("opens");
    let mut batch = MixedBatch::new();
    let child = Event::new("child").id("child").parents(["parent", "other"]);
    batch.push("s", &child).expect("within the limits");
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    fill(&store, "t", 9);
    assert!(trim(&store) > 3);
    for reopen in [false, true] {
        if reopen {
            store.close().expect("closes");
            store = options().open_on(shared(&storage)).expect("opens");
        }
        let held = store.held().expect("answers");
        assert_eq!((held.len(), &held[0].id[..]), (1, &b"child"[..]));
        assert_eq!(held[0].missing, [b"parent".to_vec(), b"other".to_vec()]);
    }
    let mut waiting = store.subscribe_stream("s", 0).expect("subscribes");
    append(&store, "s", &Event::new("parent").id("parent").parents::<&str>([]));
    fill(&store, "t", 9);
    trim(&store);
    append(&store, "s", &Event::new("other").id("other").parents::<&str>([]));
    let read: Vec<Event> = std::iter::from_fn(|| waiting.try_next().ok().flatten()).collect();
    let read_child = store.get("s", "child").expect("reads").expect("is there");
    assert_eq!((read_child.local(), read_child.payload()), (2, &b"child"[..]));
    assert_eq!(read_child.parents().expect("parents"), [b"parent".to_vec(), b"other".to_vec()]);
    assert!(read.iter().all(|event| event.payload().len() > 4), "whole events only");
    assert_eq!(read_child.to_owned().expect("owned").payload, b"child");
    fill(&store, "t", 9);
    let first = trim(&store);
    assert!(first > read_child.global());
    assert!(matches!(store.get("s", "child"), Err(ReadError::Trimmed { .. })));
    assert_eq!(read_child.payload(), b"child", "whoever has it has it");
    assert_eq!(store.stream("s").expect("finds").expect("is there").len(), 3);
}
