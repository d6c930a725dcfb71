use std::collections::BTreeMap;

use proptest::prelude::*;
use thalweg_wal::name;
use thalweg_wal::storage::MemoryStorage;

use super::*;
use crate::derived::order_log::NONE;
use crate::order::stream::{Stream, StreamBlob};

const STORE: [u8; 16] = [3; 16];

fn delivered(key: u64, global: u64, was_held: bool) -> KnownItem {
    KnownItem { key, value: KnownAs::delivered_in_run(global, was_held) }
}

fn watch(parent_key: u64, position: u64) -> WatchItem {
    WatchItem { parent_key, position, id_key: position + 1, parent_at: 0 }
}

/// A stream with its blob, of which `delivered` is the only number that these tests look at.
fn stream(fresh: &mut Fresh, key: u64, name: &[u8], is_second: bool, held: u32) {
    let (mut item, blob) = Stream { is_second, held, ..Stream::new(key, name) }.encode();
    item.value |= fresh.blobs.len() as u64;
    fresh.blobs.push(blob.expect("a stream that holds events has a blob"));
    fresh.streams.push(item);
}

/// Makes a run, with what a store says of the deliveries: where the event of a global sequence is.
fn built_of(
    storage: &MemoryStorage,
    number: u64,
    fresh: &mut Fresh,
    runs: &[Arc<Run>],
    position_of: &dyn Fn(u64) -> u64,
    is_over: &dyn Fn(&WatchItem) -> bool,
) -> Arc<Run> {
    fresh.sort();
    let extent = Extent { number, from: number, to: number + 1 };
    let is_delivery = |global, position| position_of(global) == position;
    let truth = Truth { is_over, is_delivery: &is_delivery, is_left_out: &|_| false };
    build(storage, STORE, name::run, extent, fresh, runs, &truth, &|| false).expect("no fault")
}

fn built(storage: &MemoryStorage, number: u64, fresh: &mut Fresh, runs: &[Arc<Run>]) -> Arc<Run> {
    built_of(storage, number, fresh, runs, &|global| global, &|_| false)
}

fn items<I: Item>(run: &Arc<Run>) -> Vec<I> {
    run.items::<I>(0).map(|item| item.expect("no damage")).collect()
}

fn known(run: &Arc<Run>) -> Vec<KnownAs> {
    items::<KnownItem>(run).iter().map(|item| KnownAs::decode(item.value)).collect()
}

#[test]
fn of_an_event_that_was_held_a_merge_keeps_the_delivery() {
    let storage = MemoryStorage::new();
    let held =
        built(&storage, 1, &mut Fresh { watches: vec![watch(5, 40)], ..Fresh::default() }, &[]);
    assert_eq!(known(&held), [KnownAs::Held(40)]);
    let mut fresh = Fresh { known: vec![delivered(41, 40, true)], ..Fresh::default() };
    let merged = built_of(&storage, 2, &mut fresh, &[held], &|global| global, &|_| true);
    assert_eq!(known(&merged), [KnownAs::Delivered(40)]);
    assert_eq!(merged.count::<WatchItem>(), 0);
}

/// An event that is held was forgotten when another with the same key had been held and was delivered: a merge
/// counted the two kinds, and took the one for the other. The event then arrived for the first time again.
#[test]
fn a_merge_does_not_take_one_id_for_another_with_the_same_key() {
    let storage = MemoryStorage::new();
    let (key, mut watched) = (77, watch(5, 40));
    watched.id_key = key;
    let first = Fresh { known: vec![delivered(key, 10, true)], ..Fresh::default() };
    let second = Fresh { watches: vec![watched], ..Fresh::default() };
    let runs = [(1, first), (2, second)].map(|(n, mut fresh)| built(&storage, n, &mut fresh, &[]));
    let merged = built(&storage, 3, &mut Fresh::default(), &runs);
    assert_eq!(known(&merged), [KnownAs::Delivered(10), KnownAs::Held(40)]);
}

#[test]
fn of_streams_with_one_key_a_merge_keeps_the_newest_state_of_each() {
    let storage = MemoryStorage::new();
    let key = 9 << 60;
    let states = [[("a", 1), ("b", 2), ("c", 3)], [("b", 12), ("a", 11), ("d", 14)]];
    let runs: Vec<Arc<Run>> = (1..)
        .zip(states)
        .map(|(number, states)| {
            let mut fresh = Fresh::default();
            for (name, held) in states {
                stream(&mut fresh, key, name.as_bytes(), name != "a", held);
            }
            built(&storage, number, &mut fresh, &[])
        })
        .collect();
    let mut fresh = Fresh::default();
    stream(&mut fresh, key, b"b", true, 22);
    let merged = built(&storage, 3, &mut fresh, &runs);
    let found: BTreeMap<Vec<u8>, u32> = items::<StreamItem>(&merged)
        .iter()
        .map(|item| {
            let blob = merged.blob(item.blob().expect("a blob")).expect("no damage");
            let blob = StreamBlob::decode(blob).expect("adds up");
            assert_eq!(blob.head, NONE);
            let stream = blob.restore(key, 0).expect("adds up");
            (stream.name.to_vec(), stream.held)
        })
        .collect();
    let expected = [("a", 11), ("b", 22), ("c", 3), ("d", 14)];
    assert_eq!(found, expected.map(|(name, held)| (name.as_bytes().to_vec(), held)).into());
    assert_eq!(merged.count::<StreamItem>(), 4);
}

#[test]
fn a_merge_that_is_to_stop_does_even_if_it_has_nothing_to_write() {
    let storage = MemoryStorage::new();
    let watches = (1..20_000).map(|n| watch(n, n)).collect();
    let run = built(&storage, 1, &mut Fresh { watches, ..Fresh::default() }, &[]);
    let looked_at = std::cell::Cell::new(0);
    let is_over = |_: &WatchItem| {
        looked_at.set(looked_at.get() + 1);
        true
    };
    let truth = Truth { is_over: &is_over, is_delivery: &|_, _| false, is_left_out: &|_| false };
    let is_stopping = || looked_at.get() > 0;
    let extent = Extent { number: 2, from: 1, to: 2 };
    let stopped =
        build(&storage, STORE, name::run, extent, &Fresh::default(), &[run], &truth, &is_stopping);
    assert!(
        matches!(&stopped, Err(BuildError::Io(error)) if error.kind() == io::ErrorKind::Interrupted)
    );
    assert!(looked_at.get() < 10_000, "{}", looked_at.get());
}

#[test]
fn neighbours_of_about_one_size_are_due() {
    let small = SMALL_ITEM_COUNT;
    for (counts, due) in [
        (vec![], None),
        (vec![1; 3], None),
        (vec![1; 4], Some(0..4)),
        (vec![1; 7], Some(0..7)),
        (vec![small * 9, 1, 1, 1, 1], Some(1..5)),
        (vec![small * 9; 4], Some(0..4)),
        // The newest first, however many there are behind them.
        (vec![small * 9, small * 9, small * 9, small * 9, 1, 1, 1, 1], Some(4..8)),
        (vec![small * 9, small * 9, small * 9, small * 9, 1, 1, 1], Some(0..4)),
        // What is small in front of what is large goes along.
        (vec![1, small * 9, small * 9, small * 9, 1], Some(0..4)),
        (vec![small * 1000, small * 100, small * 10, 1], None),
    ] {
        assert_eq!(due_for_merge(&counts), due, "{counts:?}");
    }
}

/// However many runs come, few are left, and each item is written again seldom.
#[test]
fn runs_are_few_and_items_are_written_seldom() {
    let (mut counts, mut written, mut most) = (Vec::new(), 0, 0);
    for _ in 0..4096 {
        counts.push(SMALL_ITEM_COUNT);
        while let Some(due) = due_for_merge(&counts) {
            let sum: u64 = counts[due.clone()].iter().sum();
            written += sum;
            counts.splice(due, [sum]);
        }
        most = most.max(counts.len());
    }
    assert!(most <= 6 * (MERGE_WIDTH - 1), "{most} runs");
    assert!(written <= 6 * 4096 * SMALL_ITEM_COUNT, "{written} items");
}

/// What a partition might have learned: few keys, so that they meet.
#[derive(Debug, Clone)]
struct Learned {
    known: Vec<(u64, u64, bool)>,
    watches: Vec<(u64, u64)>,
}

fn learned() -> impl Strategy<Value = Learned> {
    // Buckets and lines are chosen by the upper bits.
    let key = || (1..40_u64).prop_map(|n| n << 58 | n);
    let known = prop::collection::vec((key(), 0..1_000_000_u64, any::<bool>()), 0..200);
    let watches = prop::collection::vec((key(), 0..60_u64), 0..100);
    (known, watches).prop_map(|(known, watches)| Learned { known, watches })
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 2 } else { 64 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_merge_has_what_its_runs_have(
        parts in prop::collection::vec(learned(), 1..5), over in 0..60_u64, below in 0..6_u64,
    ) {
        let storage = MemoryStorage::new();
        let (mut all_known, mut all_watches) = (BTreeMap::new(), BTreeMap::new());
        let mut runs = Vec::new();
        for (number, part) in (1..).zip(&parts) {
            let mut fresh = Fresh::default();
            for &(key, global, was_held) in &part.known {
                fresh.known.push(delivered(key, global, was_held));
            }
            for &(parent_key, position) in &part.watches {
                fresh.watches.push(watch(parent_key, position));
            }
            fresh.sort();
            for item in &fresh.known {
                all_known.insert((item.key, item.value), ());
            }
            for item in &fresh.watches {
                all_watches.insert((item.parent_key, item.position), number);
            }
            // What is held is known by its watch, and is added when the run is made.
            fresh.known.retain(|item| item.value >> 63 == 0);
            runs.push(built(&storage, number, &mut fresh, &[]));
        }
        // All runs, as a search sees them: the newest first.
        let mut found = Vec::new();
        for &(key, _) in all_known.keys() {
            found.clear();
            let looked = find(&runs, below, key, |run, item: KnownItem| {
                found.push((run.extent.number, item.value));
                None::<()>
            });
            prop_assert_eq!(looked, Ok(None));
            prop_assert!(found.iter().all(|&(number, _)| number < below));
            prop_assert!(found.is_sorted_by(|a, b| a.0 > b.0 || a.0 == b.0 && a.1 <= b.1));
        }
        // Merged: nothing is lost but watches that are over. No delivery is that of a held event here.
        let is_over = |watch: &WatchItem| watch.position < over;
        let merged = built_of(&storage, 9, &mut Fresh::default(), &runs, &|_| u64::MAX, &is_over);
        let known = items::<KnownItem>(&merged);
        let known: Vec<(u64, u64)> = known.iter().map(|item| (item.key, item.value)).collect();
        let expected: Vec<(u64, u64)> = all_known.into_keys().collect();
        prop_assert_eq!(known, expected);
        let watches = items::<WatchItem>(&merged);
        let mut watches: Vec<(u64, u64)> =
            watches.iter().map(|item| (item.parent_key, item.position)).collect();
        prop_assert!(watches.is_sorted());
        watches.dedup();
        let expected: Vec<(u64, u64)> =
            all_watches.into_keys().filter(|&(_, position)| position >= over).collect();
        prop_assert_eq!(watches, expected);
        prop_assert!(merged.verify_filter::<KnownItem>().is_ok());
    }
}
