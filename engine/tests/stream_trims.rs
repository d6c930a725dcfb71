//! Trims of a stream: where its readers begin is a record of the log, and holds in every life of the store.

mod common;

use common::{append, check_every_life, open};
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, Event, MixedBatch, Placement, ReadError, Start, Store};

/// A store with so many events in "s", and as many in "t" between them.
fn filled(storage: &MemoryStorage, count: u64) -> Store {
    let store = open(storage);
    for number in 0..count {
        append(&store, "s", format!("s{number}"));
        append(&store, "t", format!("t{number}"));
    }
    store
}

fn payloads(events: impl Iterator<Item = Result<Event, ReadError>>) -> Vec<String> {
    events.map(|e| String::from_utf8_lossy(e.expect("reads").payload()).into_owned()).collect()
}

fn of_stream(store: &Store) -> Vec<String> {
    payloads(store.stream("s").expect("finds").expect("is there").read(..).expect("reads"))
}

#[test]
fn readers_of_a_trimmed_stream_begin_where_it_says() {
    let storage = MemoryStorage::new();
    let mut store = filled(&storage, 5);
    assert_eq!(store.trim_stream("s", 3).expect("trims"), 3);
    for _ in 0..2 {
        let view = store.stream("s").expect("finds").expect("is there");
        assert_eq!((view.first(), view.len()), (3, 5));
        assert_eq!(of_stream(&store), ["s3", "s4"]);
        assert_eq!(payloads(view.read(3..).expect("reads")), ["s3", "s4"]);
        assert_eq!(payloads(view.read(..4).expect("reads")), ["s3"]);
        for from in 0..3 {
            let trimmed = view.read(from..).expect_err("trimmed away");
            assert!(matches!(trimmed, ReadError::Trimmed { first: 3 }), "{trimmed:?}");
            assert!(trimmed.to_string().contains("read from 3 on"), "{trimmed}");
        }
        let nothing = view.read(1..1).expect_err("begins with what was trimmed");
        assert!(matches!(nothing, ReadError::Trimmed { first: 3 }), "{nothing:?}");
        // Others see all of it, with the same numbers.
        assert_eq!(store.read(..).expect("reads").count(), 10);
        assert_eq!(store.stream("t").expect("finds").expect("is there").first(), 0);
        let mut prefix = store.subscribe_prefix("s", 0).expect("subscribes");
        let first = prefix.try_next().expect("reads").expect("is there");
        assert_eq!((first.local(), first.payload()), (0, &b"s0"[..]));
        store.close().expect("closes");
        store = open(&storage);
    }
    assert_eq!(store.verify().expect("verifies").problems, []);
}

#[test]
fn a_trim_goes_only_up_and_never_beyond_what_is_delivered() {
    let storage = MemoryStorage::new();
    let store = filled(&storage, 4);
    for (asked, first) in [(2, 2), (1, 2), (0, 2), (100, 4), (3, 4)] {
        assert_eq!(store.trim_stream("s", asked).expect("trims"), first, "to {asked}");
    }
    assert_eq!(of_stream(&store), [] as [&str; 0]);
    append(&store, "s", "next");
    assert_eq!(of_stream(&store), ["next"]);
    // What is not there yet begins at 0.
    assert_eq!(store.trim_stream("new", 7).expect("trims"), 0);
    append(&store, "new", "first");
    assert_eq!(store.stream("new").expect("finds").expect("is there").first(), 0);
    // Its place in the log decides.
    let mut batch = MixedBatch::new();
    batch.push_stream_trim("u", 9).expect("within the limits");
    batch.push("u", &Event::new("a")).expect("within the limits");
    batch.push_stream_trim("u", 9).expect("within the limits");
    batch.push("u", &Event::new("b")).expect("within the limits");
    let placements = store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("stored");
    let trims: Vec<_> = placements.placements.iter().step_by(2).cloned().collect();
    assert_eq!(trims, [Placement::Trimmed { first: 0 }, Placement::Trimmed { first: 1 }]);
    check_every_life(store, &storage);
}

#[test]
fn a_subscription_says_once_that_it_has_missed_something() {
    let storage = MemoryStorage::new();
    let store = filled(&storage, 6);
    let all = store.subscribe_stream("s", 0).expect("subscribes");
    let mut at = store.subscribe_stream_at("s", 1).expect("subscribes");
    let mut kept = store.subscribe_stream_at("s", 5).expect("subscribes");
    let mut now = store.subscribe_stream("s", Start::Now).expect("subscribes");
    store.trim_stream("s", 4).expect("trims");
    for mut below in [all, store.subscribe_stream("s", 3).expect("subscribes")] {
        let missed = below.try_next().expect_err("trimmed away");
        assert!(matches!(missed, ReadError::Trimmed { first: 4 }), "{missed:?}");
        let next = below.try_next().expect("goes on").expect("is there");
        assert_eq!((next.local(), next.payload()), (4, &b"s4"[..]));
        assert_eq!(below.next().expect("more").expect("reads").payload(), b"s5");
        assert!(below.try_next().expect("no more").is_none());
    }
    append(&store, "s", "more");
    append(&store, "s", "and more");
    assert!(matches!(at.next(), Some(Err(ReadError::Trimmed { first: 4 }))));
    assert_eq!(at.next().expect("more").expect("reads").local(), 4);
    assert_eq!(kept.next().expect("more").expect("reads").local(), 5);
    assert_eq!(now.next().expect("more").expect("reads").local(), 6);
    // All of it is trimmed away.
    let mut none = store.subscribe_stream("s", 0).expect("subscribes");
    store.trim_stream("s", 100).expect("trims");
    assert!(matches!(none.next(), Some(Err(ReadError::Trimmed { first: 8 }))));
    assert!(none.try_next().expect("nothing yet").is_none());
    append(&store, "s", "new");
    assert_eq!(none.next().expect("more").expect("reads").payload(), b"new");
}

#[test]
fn a_follower_knows_what_the_checkpoint_says() {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("store");
    let store = Store::open(&path).expect("opens");
    for number in 0..4 {
        append(&store, "s", format!("s{number}"));
    }
    store.trim_stream("s", 2).expect("trims");
    store.checkpoint().expect("a checkpoint");
    let follower = Store::open_follower(&path).expect("follows");
    let view = follower.stream("s").expect("finds").expect("is there");
    assert_eq!((view.first(), view.len()), (2, 4));
    assert!(matches!(view.read(0..), Err(ReadError::Trimmed { first: 2 })));
}
