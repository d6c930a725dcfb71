//! Events that are cheap to append and were dear to order: each of these took minutes, or would for a
//! few MiB of log, since what it cost was not in proportion to what there is. Counts, not times, are
//! compared, so a walk that nobody counts shows as a test that does not end.

mod common;

use common::log::{Log, push};
use common::shared;
use thalweg::reference::{SerialEvent, SerialRecord};
use thalweg::storage::MemoryStorage;
use thalweg::{Event, Options, Store};
use thalweg_wal::EncodedBatch;

/// Sizes that a debug build gets through in the time of a test.
const fn sized(debug: usize, release: usize) -> usize {
    if cfg!(debug_assertions) { debug } else { release }
}

fn open(storage: &MemoryStorage) -> Store {
    let store = Options::new().scanners(2).orderers(2).open_on(shared(storage)).expect("opens");
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    store
}

/// An event of the stream `s`, chained or with these parents.
fn record(id: String, parents: Option<Vec<String>>) -> SerialRecord {
    SerialRecord::Event(SerialEvent {
        stream: b"s".to_vec(),
        id: id.into_bytes(),
        parents: parents.map(|parents| parents.into_iter().map(String::into_bytes).collect()),
        require_parents: false,
        if_tips: false,
        if_local: None,
        with_previous: false,
        payload: Vec::new(),
    })
}

/// What ordering a log has cost: looks into the known ids, and reads of records.
fn work(store: &Store) -> u64 {
    let stats = store.stats();
    stats.lookups + stats.records_read
}

/// A chained event has all tips of its stream as parents. Each event with its id, and with a list of
/// one, had all of these collected before it was seen to be another: a record of 60 bytes cost a walk
/// over all tips, and for each tip a walk over all that the window had delivered.
#[test]
fn conflicts_with_a_chained_event_of_many_parents() {
    for windows in [true, false] {
        for len in [100, sized(1000, 20_000)] {
            let mut log = Log::with_segments(4 << 20);
            log.records(
                &(0..len).map(|root| record(format!("r{root}"), Some(vec![]))).collect::<Vec<_>>(),
            );
            log.records(&[record(String::from("merge"), None)]);
            if windows {
                log = log.new_segment();
            }
            let conflict = || record(String::from("merge"), Some(vec![String::from("r0")]));
            log.records(&(0..len).map(|_| conflict()).collect::<Vec<_>>());
            let storage = log.written();
            let store = open(&storage);
            let (stats, work) = (store.stats(), work(&store));
            assert_eq!((stats.delivered, stats.conflicts), (len as u64 + 1, len as u64));
            assert!(work <= 10 * len as u64, "{work} for {len} conflicts");
        }
    }
}

/// A chain that was made by chaining is exported and imported again, in the same window: to find the
/// one parent of each, all that the window had delivered was looked through.
#[test]
fn a_chained_stream_that_is_imported_again_at_once() {
    for len in [1000, sized(10_000, 100_000)] {
        let mut log = Log::with_segments(4 << 20);
        let chained = (0..len).map(|number| record(number.to_string(), None));
        log.records(&chained.collect::<Vec<_>>());
        let listed = (0..len).map(|number: usize| {
            let parent = number.checked_sub(1).map(|parent| parent.to_string());
            record(number.to_string(), Some(parent.into_iter().collect()))
        });
        log.records(&listed.collect::<Vec<_>>());
        let storage = log.written();
        let store = open(&storage);
        let (stats, work) = (store.stats(), work(&store));
        assert_eq!((stats.delivered, stats.duplicates), (len as u64, len as u64));
        assert!(work <= 10 * len as u64, "{work} for {len} events that come again");
    }
}

/// Behind a checkpoint, a record is verified when it is read: all of it, however long, for each event
/// that names it.
#[test]
fn children_of_a_long_record_that_a_checkpoint_has() {
    let measured = |payload: usize| {
        let mut log = Log::with_segments(64 << 20);
        let mut batch = EncodedBatch::new();
        push(&mut batch, b"s", b"long", &[], &vec![7; payload]);
        log.batch(&batch);
        let storage = log.written();
        let store = open(&storage);
        store.close().expect("closes");
        let store = open(&storage);
        let appender = store.appender("s").expect("an appender");
        let verified = store.stats().bytes_verified;
        let children = (0..sized(1500, 4000))
            .map(|child| Event::new("").id(child.to_string()).parents(["long"]));
        let batch: thalweg::Batch = children.collect();
        let receipt = appender.submit(batch).expect("accepted").wait().expect("durable");
        store.wait_committed(receipt.end).expect("is ordered");
        store.stats().bytes_verified - verified
    };
    let len = sized(1 << 20, 16 << 20);
    let bytes = measured(len);
    // To verify it once, or a few times, is all right.
    assert!(bytes <= 4 * len as u64, "{bytes} of a record of {len}");
}
