//! Models of the watermark.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use loom_tests::explore;
use loom_tests::sync::{Failed, Watermark};

/// A record and the watermark that says whether it may be read.
struct Log {
    record: UnsafeCell<u32>,
    durable: Watermark,
}

impl Log {
    fn new() -> Arc<Self> {
        Arc::new(Self { record: UnsafeCell::new(0), durable: Watermark::new(0) })
    }

    fn write(&self) {
        // loom checks that no access overlaps; a plain number keeps the model free of `unsafe`.
        self.record.with_mut(|_| ());
        self.durable.publish(1);
    }

    fn read(&self) {
        self.record.with(|_| ());
    }
}

#[test]
fn carries_data_to_a_waiter() {
    explore("watermark carries data to a waiter", None, 60, || {
        let log = Log::new();
        let writer = thread::spawn({
            let log = Arc::clone(&log);
            move || log.write()
        });
        assert_eq!(log.durable.wait_for(1), Ok(1));
        log.read();
        writer.join().unwrap();
    });
}

#[test]
fn carries_data_to_a_poller() {
    explore("watermark carries data to a poller", None, 5, || {
        let log = Log::new();
        let writer = thread::spawn({
            let log = Arc::clone(&log);
            move || log.write()
        });
        if log.durable.get() == 1 {
            log.read();
        }
        writer.join().unwrap();
    });
}

#[test]
fn waiters_before_and_after_failure() {
    explore("watermark fails above one waiter and below another", Some(3), 13_500, || {
        let watermark = Arc::new(Watermark::new(0));
        let waiters = [(1, Ok(1)), (2, Err(Failed))].map(|(target, expected)| {
            let watermark = Arc::clone(&watermark);
            thread::spawn(move || assert_eq!(watermark.wait_for(target), expected))
        });
        watermark.publish(1);
        watermark.fail();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

#[test]
fn failure_shows_progress() {
    explore("watermark polled for failure", None, 5, || {
        let watermark = Arc::new(Watermark::new(0));
        let publisher = thread::spawn({
            let watermark = Arc::clone(&watermark);
            move || {
                watermark.publish(1);
                watermark.fail();
            }
        });
        if watermark.is_failed() {
            assert_eq!(watermark.get(), 1);
        }
        publisher.join().unwrap();
    });
}

#[test]
fn another_thread_fails_after_progress() {
    explore("watermark failed by a thread that saw it move", Some(3), 3_300, || {
        let watermark = Arc::new(Watermark::new(0));
        let publisher = thread::spawn({
            let watermark = Arc::clone(&watermark);
            move || watermark.publish(1)
        });
        let failer = thread::spawn({
            let watermark = Arc::clone(&watermark);
            move || {
                if watermark.get() == 1 {
                    watermark.fail();
                }
            }
        });
        assert_eq!(watermark.wait_for(1), Ok(1));
        publisher.join().unwrap();
        failer.join().unwrap();
    });
}
