//! Trims beside what else a store does: discards, ages, forgetting, and limits that nothing can come to.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use common::{append_event, shared};
use thalweg::storage::MemoryStorage;
use thalweg::{DiscardReason, Event, NewEvent, Options, Placement, Store, Trim, Why, verify_on};

const SEGMENT_BYTES: u64 = 1 << 20;
const FILLER_LEN: usize = 300 << 10;

fn open(storage: &MemoryStorage) -> Store {
    open_at(storage, &Arc::default())
}

/// With a clock that stands where `millis` says.
fn open_at(storage: &MemoryStorage, millis: &Arc<AtomicU64>) -> Store {
    let millis = Arc::clone(millis);
    let now = move || UNIX_EPOCH + Duration::from_millis(millis.load(Ordering::Relaxed));
    let options = Options::new().segment_bytes(SEGMENT_BYTES).clock(now);
    options.open_on(shared(storage)).expect("opens")
}

fn append(store: &Store, stream: &str, event: NewEvent) -> Placement {
    append_event(store, stream, &event).placements.remove(0)
}

fn fill(store: &Store) {
    (0..8).for_each(|_| drop(append(store, "filler", Event::new(vec![7; FILLER_LEN]))));
}

fn close_and_verify(storage: &MemoryStorage, store: &Store) {
    store.close().expect("closes");
    let report = verify_on(shared(storage), &|_| ControlFlow::Continue(())).expect("verifies");
    assert_eq!(report.problems, []);
}

/// The sum of a position and the number of bytes to keep went round, and everything was given up.
#[test]
fn to_keep_as_much_as_a_number_can_say_gives_up_nothing() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    fill(&store);
    for keep in [u64::MAX, u64::MAX - SEGMENT_BYTES, 1 << 63] {
        let report = store.trim(&Trim::new().keep_bytes(keep)).expect("has nothing to do");
        assert_eq!((report.first, report.segments), (0, 0));
    }
    assert!(store.trim(&Trim::new().keep_bytes(0)).expect("trims").segments > 0);
    close_and_verify(&storage, &store);
}

/// The record of a discarded event goes with its segment, and asking for it was an error.
#[test]
fn why_is_answered_for_discarded_events_that_are_trimmed() {
    let storage = MemoryStorage::new();
    let mut store = open(&storage);
    let held = append(&store, "s", Event::new("x").id("late").parents(["never"]));
    assert_eq!(held, Placement::Held { missing: 1 });
    store.discard("s", ["late"]).expect("discards");
    let Why::Discarded { reason: DiscardReason::Discarded, .. } =
        store.why_held("s", "late").expect("answers")
    else {
        panic!("it is discarded");
    };
    fill(&store);
    assert!(store.trim(&Trim::new().keep_bytes(0)).expect("trims").segments > 0);
    for _ in 0..2 {
        assert_eq!(store.why_held("s", "late").expect("answers"), Why::Unknown);
        store.close().expect("closes");
        store = open(&storage);
    }
    // The id is free.
    let root: [&str; 0] = [];
    let placed = append(&store, "s", Event::new("y").id("late").parents(root));
    assert!(matches!(placed, Placement::Delivered { .. }), "{placed:?}");
    close_and_verify(&storage, &store);
}

/// When the frame of a held event was written went with its segment, so the event had no age and never expired.
#[test]
fn a_held_event_that_outlives_its_segment_expires() {
    let (storage, millis) = (MemoryStorage::new(), Arc::new(AtomicU64::new(1000)));
    let store = open_at(&storage, &millis);
    append(&store, "s", Event::new("x").id("late").parents(["never"]));
    millis.store(2000, Ordering::Relaxed);
    fill(&store);
    assert!(store.trim(&Trim::new().keep_bytes(0)).expect("trims").segments > 0);
    let held = store.held().expect("answers");
    // It was written before what is left.
    assert_eq!(held[0].since, Some(UNIX_EPOCH + Duration::from_millis(2000)));
    millis.store(9000, Ordering::Relaxed);
    let report = store.expire_held(Duration::from_secs(8)).expect("expires");
    assert_eq!(report.events.len(), 0);
    let report = store.expire_held(Duration::from_secs(6)).expect("expires");
    assert_eq!(report.events.len(), 1);
    assert_eq!(store.held().expect("answers"), []);
    close_and_verify(&storage, &store);
}

/// What is to be forgotten was known only to who had trimmed, and only until the store was closed: one that is opened
/// for each trim, as a command does, never forgot anything.
#[test]
fn what_is_trimmed_is_forgotten_although_the_store_is_closed_in_between() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let root: [&str; 0] = [];
    let first = || Event::new("x").id("first").parents(root);
    append(&store, "s", first());
    append(&store, "s", Event::new("x").id("second").parents(["first"]));
    store.close().expect("closes");
    for _ in 0..3 {
        let store = open(&storage);
        fill(&store);
        store.trim(&Trim::new().everything().remember(0)).expect("trims");
        store.close().expect("closes");
    }
    let store = open(&storage);
    let placed = append(&store, "s", first());
    assert!(matches!(placed, Placement::Delivered { .. }), "{placed:?}");
    close_and_verify(&storage, &store);
}
