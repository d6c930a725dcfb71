//! Models of the reader-biased lock. The bias comes back after one slow read here.

use loom::sync::Arc;
use loom::thread;
use loom_tests::explore;
use loom_tests::sync::{ReaderBiased, set_thread_slot_hint};

type Lock = Arc<ReaderBiased<usize>>;

/// Starts a thread that reads `count` times through slot `hint` and checks that values only grow.
fn spawn_reader(lock: &Lock, hint: usize, count: usize) -> thread::JoinHandle<()> {
    let lock = Arc::clone(lock);
    thread::spawn(move || {
        set_thread_slot_hint(hint);
        let mut last = 0;
        for _ in 0..count {
            let value = *lock.read();
            assert!(last <= value);
            last = value;
        }
    })
}

#[test]
fn one_reader_one_writer() {
    explore("one reader, one writer", None, 42, || {
        let lock = Arc::new(ReaderBiased::new(0));
        let reader = spawn_reader(&lock, 0, 1);
        *lock.write() += 1;
        reader.join().unwrap();
        assert_eq!(*lock.read(), 1);
    });
}

#[test]
fn two_readers_one_writer() {
    explore("two readers, one writer", Some(3), 4_000, || {
        let lock = Arc::new(ReaderBiased::new(0));
        let readers = [spawn_reader(&lock, 0, 1), spawn_reader(&lock, 1, 1)];
        *lock.write() += 1;
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn two_readers_share_a_slot() {
    explore("two readers in one slot, one writer", Some(3), 8_000, || {
        let lock = Arc::new(ReaderBiased::new(0));
        let readers = [spawn_reader(&lock, 1, 1), spawn_reader(&lock, 1, 1)];
        *lock.write() += 1;
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn bias_is_revoked_and_restored() {
    explore("two writes against two reads", None, 3_200, || {
        let lock = Arc::new(ReaderBiased::new(0));
        let reader = spawn_reader(&lock, 0, 2);
        *lock.write() += 1;
        *lock.write() += 1;
        reader.join().unwrap();
    });
}

#[test]
fn slow_reader_restores_bias_for_fast_reader() {
    explore("revoked, restored, used", Some(3), 580, || {
        let lock = Arc::new(ReaderBiased::new(0));
        *lock.write() += 1;
        // The bias is gone. Whichever reader comes first restores it, for the other or for none.
        let readers = [spawn_reader(&lock, 0, 1), spawn_reader(&lock, 1, 1)];
        *lock.write() += 1;
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn two_writers_one_reader() {
    explore("two writers, one reader twice", Some(3), 3_200, || {
        let lock = Arc::new(ReaderBiased::new(0));
        let reader = spawn_reader(&lock, 0, 2);
        let writer = thread::spawn({
            let lock = Arc::clone(&lock);
            move || *lock.write() += 1
        });
        *lock.write() += 1;
        reader.join().unwrap();
        writer.join().unwrap();
        assert_eq!(*lock.read(), 2);
    });
}
