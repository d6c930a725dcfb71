//! Models of the table of known events. The smallest array has two slots here, the next four.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use loom_tests::explore;
use loom_tests::order::known::{SharedTable, Table};

/// Two keys whose searches begin in the same slot, whether there are two or four.
const FIRST: u64 = 4;
const SECOND: u64 = 8;

/// What is looked for is seen at once or not at all, and what was there stays.
fn spawn_reader(table: &Table) -> thread::JoinHandle<()> {
    let shared = table.shared();
    thread::spawn(move || {
        let second = shared.values(SECOND);
        assert!(matches!(second[..], [] | [20]));
        assert_eq!(shared.values(FIRST), [10]);
    })
}

/// Reads `key` twice and checks that its value is `old`, then perhaps `new`.
fn assert_forward(shared: &SharedTable, key: u64, old: u64, new: u64) -> u64 {
    let seen = [shared.values(key), shared.values(key)].concat();
    let forward = [[old, old], [old, new], [new, new]];
    assert!(forward.iter().any(|values| values[..] == seen));
    seen[1]
}

#[test]
fn insert_against_a_reader() {
    explore("inserted while looked for", None, 4, || {
        let mut table = Table::with_capacity(1);
        let shared = table.shared();
        let reader = thread::spawn(move || {
            let values = shared.values(FIRST);
            assert!(matches!(values[..], [] | [10]));
        });
        table.insert(FIRST, 10);
        reader.join().unwrap();
        assert_eq!(table.shared().values(FIRST), [10]);
    });
}

#[test]
fn insert_beside_another_key() {
    explore("inserted behind another key", None, 8, || {
        let mut table = Table::with_capacity(2);
        table.insert(FIRST, 10);
        let reader = spawn_reader(&table);
        table.insert(SECOND, 20);
        reader.join().unwrap();
    });
}

#[test]
fn growth_against_a_reader() {
    explore("grown while looked into", None, 1_100, || {
        let mut table = Table::with_capacity(1);
        table.insert(FIRST, 10);
        let reader = spawn_reader(&table);
        table.insert(SECOND, 20);
        reader.join().unwrap();
        assert_eq!((table.len(), table.shared().values(SECOND)), (2, vec![20]));
    });
}

#[test]
fn set_against_a_reader() {
    explore("a value changes and hands data over", None, 8, || {
        let mut table = Table::with_capacity(1);
        let slot = table.insert(FIRST, 10);
        let data = Arc::new(UnsafeCell::new(0));
        let reader = thread::spawn({
            let (shared, data) = (table.shared(), Arc::clone(&data));
            move || {
                if assert_forward(&shared, FIRST, 10, 11) == 11 {
                    data.with(|_| ());
                }
            }
        });
        data.with_mut(|_| ());
        table.set(slot, 11);
        reader.join().unwrap();
    });
}

#[test]
fn set_and_growth_against_a_reader() {
    explore("a value changes and the table grows", None, 10_400, || {
        let mut table = Table::with_capacity(1);
        let slot = table.insert(FIRST, 10);
        let shared = table.shared();
        let reader = thread::spawn(move || assert_forward(&shared, FIRST, 10, 11));
        table.set(slot, 11);
        table.insert(SECOND, 20);
        reader.join().unwrap();
    });
}
