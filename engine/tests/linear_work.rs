//! Work is linear, whatever the log holds: look-ups are counted, and compared with what there is to
//! look up. `Stats::lookups` is the number of ids that the machine has looked up among the known ones
//! since the store was opened, `Stats::records_read` that of the records of the log which it has read
//! beside the scan.

mod common;

use std::time::Instant;

use common::log::{Log, keep_the_log_only, push};
use common::shared;
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, AppenderOptions, Event, Options, Stats, Store};
use thalweg_wal::EncodedBatch;

/// Most look-ups, and most records read, for each record and for each parent that it lists: its id
/// once when it arrives and once when it is released; each parent once when the child arrives, and
/// once when the parent does.
const EACH: u64 = 4;

/// Sizes that a debug build gets through in the time of a test.
const fn sized(debug: usize, release: usize) -> usize {
    if cfg!(debug_assertions) { debug } else { release }
}

fn open(storage: &MemoryStorage) -> Store {
    let store = Options::new().scanners(2).orderers(2).open_on(shared(storage)).expect("opens");
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    store
}

/// What a discovery of the log costs; all of its `records` with `parents` in all are delivered.
fn check_linear(what: &str, log: Log, records: usize, parents: usize) -> Stats {
    let storage = log.written();
    let begun = Instant::now();
    let store = open(&storage);
    let stats = store.stats();
    println!(
        "{what}: {} look-ups and {} records read for {records} records and {parents} parents, in {:?}",
        stats.lookups,
        stats.records_read,
        begun.elapsed()
    );
    assert_eq!((stats.delivered, stats.held), (records as u64, 0), "{what}");
    let most = EACH * (records + parents) as u64;
    assert!(stats.lookups <= most, "{what}: {} look-ups", stats.lookups);
    assert!(stats.records_read <= most, "{what}: {} records read", stats.records_read);
    store.close().expect("closes");
    // Nothing is left to do for those who come next.
    let again = open(&storage).stats();
    assert_eq!(
        (again.delivered, again.lookups, again.records_read),
        (records as u64, 0, 0),
        "{what}"
    );
    stats
}

/// Pushes event `number` of a chain.
fn link(batch: &mut EncodedBatch, stream: &[u8], number: usize) {
    let parent = number.checked_sub(1).map(|parent| parent.to_string());
    let parents: Vec<&[u8]> = parent.iter().map(String::as_bytes).collect();
    push(batch, stream, number.to_string().as_bytes(), &parents, b"");
}

#[test]
fn a_reversed_chain_of_a_million() {
    let len = sized(100_000, 1_000_000);
    let mut log = Log::with_segments(8 << 20);
    log.many((0..len).rev(), 1000, |batch, number| link(batch, b"chain", number));
    check_linear("a reversed chain", log, len, len - 1);
}

#[test]
fn a_chain_in_its_own_order() {
    let len = sized(50_000, 500_000);
    let mut log = Log::with_segments(8 << 20);
    log.many(0..len, 1000, |batch, number| link(batch, b"chain", number));
    let stats = check_linear("a chain", log, len, len - 1);
    // The parent of each is the tip of its stream, so there is nothing but its own id to look up.
    assert!(stats.lookups <= len as u64, "{} look-ups", stats.lookups);
}

#[test]
fn gaps_that_are_filled_one_at_a_time() {
    let len = sized(50_000, 500_000);
    let mut log = Log::with_segments(8 << 20);
    log.many((1..len).step_by(2), 1000, |batch, number| link(batch, b"s", number));
    // Each in a frame of its own, from the last to the first.
    let gaps: Vec<usize> = (0..len).step_by(2).rev().collect();
    log.many(gaps.into_iter(), 1, |batch, number| link(batch, b"s", number));
    check_linear("gaps", log, len, len - 1);
}

/// The same, live: each append is a window of its own, and all but the last release nothing.
#[test]
fn gaps_that_are_filled_live_cost_a_constant_each() {
    let len = 4000;
    let mut log = Log::new();
    log.many((1..len).step_by(2), 1000, |batch, number| link(batch, b"s", number));
    let store = open(&log.written());
    let options = AppenderOptions::new().ack(Ack::Ordered);
    let appender = store.appender_with("s", options).expect("an appender");
    let mut before = store.stats();
    for number in (2..len).step_by(2).rev() {
        let event = Event::new("").id(number.to_string()).parents([(number - 1).to_string()]);
        appender.append_event(event).expect("accepted").wait().expect("appended");
        let now = store.stats();
        let (lookups, read) =
            (now.lookups - before.lookups, now.records_read - before.records_read);
        assert!(lookups <= 2 * EACH && read <= 2 * EACH, "{lookups} look-ups, {read} records read");
        before = now;
    }
    let event = Event::new("").id("0").parents::<&str>([]);
    appender.append_event(event).expect("accepted").wait().expect("appended");
    let stats = store.stats();
    assert_eq!((stats.delivered, stats.held), (len as u64, 0));
    assert!(stats.lookups <= EACH * 2 * len as u64, "{} look-ups", stats.lookups);
    assert!(stats.records_read <= EACH * 2 * len as u64, "{} records read", stats.records_read);
}

#[test]
fn a_fork_of_ten_thousand_children() {
    let children = 10_000;
    for parent_comes_last in [false, true] {
        let mut log = Log::new();
        let root = |log: &mut Log| {
            log.events(&[("s", "root", &[])]);
        };
        if !parent_comes_last {
            root(&mut log);
        }
        log.many(0..children, 500, |batch, number| {
            push(batch, b"s", format!("c{number}").as_bytes(), &[b"root"], b"");
        });
        if parent_comes_last {
            root(&mut log);
        }
        check_linear("a fork", log, children + 1, children);
    }
}

#[test]
fn a_merge_of_ten_thousand_parents() {
    let parents = 10_000;
    let ids: Vec<String> = (0..parents).map(|number| format!("p{number}")).collect();
    let listed: Vec<&[u8]> = ids.iter().map(String::as_bytes).collect();
    for merge_comes_first in [false, true] {
        let mut log = Log::new();
        let merge = |log: &mut Log| {
            log.many(0..1, 1, |batch, _| push(batch, b"s", b"merge", &listed, b""));
        };
        if merge_comes_first {
            merge(&mut log);
        }
        log.many(0..parents, 500, |batch, number| {
            push(batch, b"s", ids[number].as_bytes(), &[], b"");
        });
        if !merge_comes_first {
            merge(&mut log);
        }
        check_linear("a merge", log, parents + 1, parents);
    }
}

#[test]
fn a_million_streams_of_one() {
    let streams = sized(100_000, 1_000_000);
    let mut log = Log::with_segments(8 << 20);
    log.many(0..streams, 1000, |batch, number| {
        push(batch, number.to_string().as_bytes(), b"only", &[], b"");
    });
    check_linear("streams of one", log, streams, 0);
}

/// Events that wait for ever cost nothing at any later start, and a constant for each that comes live.
#[test]
fn orphans_that_wait_for_ever_cost_nothing() {
    let orphans = sized(30_000, 1_000_000) as u64;
    let mut log = Log::with_segments(8 << 20);
    log.many(0..orphans as usize, 1000, |batch, number| {
        let (id, parent) = (format!("o{number}"), format!("never-{number}"));
        push(batch, b"s", id.as_bytes(), &[parent.as_bytes()], b"");
    });
    let storage = log.written();
    let store = open(&storage);
    assert!(store.stats().lookups <= EACH * 2 * orphans, "{} look-ups", store.stats().lookups);
    store.close().expect("closes");
    for _ in 0..3 {
        let store = open(&storage);
        let stats = store.stats();
        assert_eq!((stats.held, stats.lookups, stats.records_read), (orphans, 0, 0));
        let options = AppenderOptions::new().ack(Ack::Ordered);
        let appender = store.appender_with("s", options).expect("an appender");
        appender.append("chained").expect("accepted").wait().expect("appended");
        let stats = store.stats();
        assert!(stats.lookups <= 2 * EACH && stats.records_read <= 2 * EACH, "{stats:?}");
        store.close().expect("closes");
    }
}

/// What was ordered by a start that left nothing behind costs the next one the same again, and no more.
#[test]
fn every_start_from_the_log_alone_costs_the_same() {
    let len = 20_000;
    let mut log = Log::new();
    log.many((0..len).rev(), 100, |batch, number| link(batch, b"s", number));
    let storage = log.written();
    let mut costs = Vec::new();
    for _ in 0..3 {
        let store = open(&storage);
        let stats = store.stats();
        costs.push((stats.lookups, stats.records_read));
        store.close().expect("closes");
        keep_the_log_only(&storage);
    }
    assert!(costs.windows(2).all(|pair| pair[0] == pair[1]), "{costs:?}");
}
