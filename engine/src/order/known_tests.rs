//! Tests of the table of known events on the real types. They are the siblings of its loom models.

use std::thread;

use super::known::Table;
use crate::sync::{AtomicU64, Ordering};

#[test]
fn entries_survive_growth_and_keys_may_repeat() {
    let mut table = Table::default();
    let shared = table.shared();
    for key in 1..=1000_u64 {
        table.insert(key << 40 | 7, key);
        table.insert(key << 40 | 7, key + 5000);
    }
    assert_eq!(table.len(), 2000);
    for key in 1..=1000_u64 {
        let mut values = shared.values(key << 40 | 7);
        values.sort_unstable();
        assert_eq!(values, [key, key + 5000]);
        let (slot, ()) =
            table.find(key << 40 | 7, |value| (value == key).then_some(())).expect("there");
        table.set(slot, key + 9000);
        assert!(shared.values(key << 40 | 7).contains(&(key + 9000)));
    }
    assert!(shared.values(7).is_empty());
}

/// Keys that crowd a few places of any array, so that searches pass many other keys.
fn crowded(number: u64) -> u64 {
    (number << 32) | (number % 5 + 1)
}

#[test]
fn readers_find_all_that_was_there_while_the_table_grows() {
    const COUNT: u64 = 1_500;
    let mut table = Table::default();
    let inserted = AtomicU64::new(0);
    thread::scope(|scope| {
        for offset in 0..3_u64 {
            let (shared, inserted) = (table.shared(), &inserted);
            scope.spawn(move || {
                let mut number = offset;
                while inserted.load(Ordering::Relaxed) < COUNT {
                    number = (number * 31 + 7) % COUNT;
                    let there = inserted.load(Ordering::Acquire);
                    let values = shared.values(crowded(number));
                    match values[..] {
                        [value] => assert_eq!(value, number + 1),
                        _ => assert!(values.is_empty() && number >= there, "{values:?}"),
                    }
                }
            });
        }
        for number in 0..COUNT {
            table.insert(crowded(number), number + 1);
            inserted.store(number + 1, Ordering::Release);
            if number % 64 == 0 {
                thread::yield_now();
            }
        }
    });
    assert_eq!(table.len(), COUNT as usize);
}

#[test]
fn a_value_goes_forward_and_hands_over_what_was_done_before() {
    const ROUNDS: u64 = 20_000;
    const KEY: u64 = 3;
    // The two halves change together.
    let doubled = |value: u64| value << 32 | value;
    let mut table = Table::default();
    let mut slot = table.insert(KEY, doubled(1));
    let done = AtomicU64::new(1);
    thread::scope(|scope| {
        for _ in 0..2 {
            let (shared, done) = (table.shared(), &done);
            scope.spawn(move || {
                let mut last = 1;
                while last < ROUNDS {
                    let values = shared.values(KEY);
                    let &[word] = &values[..] else { panic!("{values:?}") };
                    let value = word >> 32;
                    assert_eq!(word, doubled(value));
                    assert!(value >= last, "went back from {last} to {value}");
                    assert!(done.load(Ordering::Relaxed) >= value);
                    last = value;
                }
            });
        }
        for value in 2..=ROUNDS {
            if value % 16 == 0 {
                // A table grows in between.
                table.insert(value << 32, 0);
                slot = table.find(KEY, |_| Some(())).expect("there").0;
            }
            done.store(value, Ordering::Relaxed);
            table.set(slot, doubled(value));
        }
    });
}
