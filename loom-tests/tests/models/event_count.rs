//! Models of the event count. A lost wake-up shows as a deadlock.

use std::time::Instant;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use loom_tests::explore;
use loom_tests::sync::EventCount;

#[test]
fn one_waiter() {
    explore("one waiter", None, 60, || {
        let event = Arc::new((AtomicBool::new(false), EventCount::new()));
        let notifier = thread::spawn({
            let event = Arc::clone(&event);
            move || {
                // Relaxed: the event count must work without help from the state's orderings.
                event.0.store(true, Ordering::Relaxed);
                event.1.notify_all();
            }
        });
        event.1.wait_until(|| event.0.load(Ordering::Relaxed));
        notifier.join().unwrap();
    });
}

#[test]
fn one_waiter_with_a_deadline() {
    explore("one waiter with a deadline", None, 60, || {
        let event = Arc::new((AtomicBool::new(false), EventCount::new()));
        let notifier = thread::spawn({
            let event = Arc::clone(&event);
            move || {
                event.0.store(true, Ordering::Relaxed);
                event.1.notify_all();
            }
        });
        let is_set = || event.0.load(Ordering::Relaxed);
        assert!(event.1.wait_deadline(is_set, Instant::now()), "a model has no clock");
        notifier.join().unwrap();
    });
}

#[test]
fn two_waiters_two_publishes() {
    explore("two waiters, two publishes", Some(3), 14_000, || {
        let event = Arc::new((AtomicUsize::new(0), EventCount::new()));
        let waiters = [1, 2].map(|target| {
            let event = Arc::clone(&event);
            thread::spawn(move || {
                event.1.wait_until(|| event.0.load(Ordering::Relaxed) >= target);
            })
        });
        for position in [1, 2] {
            event.0.store(position, Ordering::Relaxed);
            event.1.notify_all();
        }
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}
