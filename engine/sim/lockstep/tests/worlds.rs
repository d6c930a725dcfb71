//! Worlds: one seed gives one run, other seeds give other runs, and all of them end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep::atomic::AtomicU64;
use lockstep::{Condvar, Either, Lock, RwLock, bounded, now, run, thread, unbounded};

/// Three threads that add to a number in two steps, and so lose some.
fn race() -> u64 {
    let number = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let number = Arc::clone(&number);
            thread::spawn(move || {
                for _ in 0..10 {
                    let before = number.load(Ordering::Relaxed);
                    number.store(before + 1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    number.load(Ordering::Relaxed)
}

#[test]
fn one_seed_gives_one_run_and_others_give_others() {
    let mut results = BTreeSet::new();
    for seed in 0..200 {
        let first = run(seed, race);
        assert_eq!(first, run(seed, race), "seed {seed}");
        results.insert(first.0);
    }
    assert!(results.contains(&30), "sometimes nothing is lost");
    assert!(results.len() > 10, "and sometimes much: {results:?}");
}

#[test]
fn locks_and_conditions_lose_nothing() {
    for seed in 0..200 {
        let (sum, _) = run(seed, || {
            let shared = Arc::new((Lock::new((0, 0)), Condvar::new(), RwLock::new(0)));
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        for _ in 0..5 {
                            shared.0.lock().0 += 1;
                            shared.1.notify_all();
                            *shared.2.write() += 1;
                        }
                    })
                })
                .collect();
            let mut state = shared.0.lock();
            while state.0 < 15 {
                shared.1.wait(&mut state);
            }
            drop(state);
            threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
            *shared.2.read()
        });
        assert_eq!(sum, 15);
    }
}

#[test]
fn channels_hand_over_everything_and_drop_what_nobody_takes() {
    for seed in 0..200 {
        run(seed, || {
            let (sender, receiver) = bounded(2);
            let producers: Vec<_> = (0..2)
                .map(|producer| {
                    let sender = sender.clone();
                    thread::spawn(move || {
                        (0..5).try_for_each(|number| sender.send((producer, number)))
                    })
                })
                .collect();
            drop(sender);
            let taken: Vec<(i32, i32)> = receiver.iter().collect();
            for producer in 0..2 {
                let own = taken.iter().filter(|(from, _)| *from == producer);
                assert!(own.map(|(_, number)| *number).eq(0..5), "in order");
            }
            producers
                .into_iter()
                .for_each(|thread| thread.join().expect("no panic").expect("sent"));
            let (sender, receiver) = unbounded();
            let message = Arc::new(());
            sender.send(Arc::clone(&message)).expect("sent");
            drop(receiver);
            assert_eq!(Arc::strong_count(&message), 1, "it goes with its last receiver");
            sender.send(message).expect_err("nobody takes it");
        });
    }
}

/// An hour passes at once when everybody waits, and a wait that somebody ends in time is not too late.
#[test]
fn the_clock_jumps_when_everybody_waits() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..300 {
        let begun = std::time::Instant::now();
        run(seed, || {
            let shared = Arc::new((Lock::new(false), Condvar::new()));
            let start = now();
            let timed_out =
                shared.1.wait_until(&mut shared.0.lock(), start + Duration::from_secs(3600));
            assert!(timed_out.timed_out() && now() >= start + Duration::from_secs(3600));
            let other = Arc::clone(&shared);
            let waker = thread::spawn(move || {
                (0..50).for_each(|_| lockstep::point());
                *other.0.lock() = true;
                other.1.notify_all();
            });
            let deadline = now() + Duration::from_secs(1);
            let mut is_set = shared.0.lock();
            while !*is_set && !shared.1.wait_until(&mut is_set, deadline).timed_out() {}
            outcomes.insert(*is_set);
            drop(is_set);
            waker.join().expect("no panic");
        });
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    assert_eq!(outcomes.len(), 2, "a wait may run out of time though somebody could go on");
}

#[test]
fn a_panic_goes_to_whoever_joins() {
    let ((), _) = run(1, || {
        let thread = thread::spawn(|| panic!("on purpose"));
        thread.join().expect_err("it panics");
    });
    let panicked = std::panic::catch_unwind(|| run(2, || panic!("on purpose")));
    assert!(panicked.is_err());
}

#[test]
fn outside_of_a_world_everything_is_as_in_std() {
    assert_eq!(lockstep::ordinal(), None);
    let (sender, receiver) = bounded(1);
    let thread = thread::spawn(move || (0..100).try_for_each(|number| sender.send(number)));
    assert!(receiver.iter().eq(0..100));
    thread.join().expect("no panic").expect("sent");
    let waited = Condvar::new().wait_until(&mut Lock::new(()).lock(), now());
    assert!(waited.timed_out());
}

#[test]
#[ignore = "the process that `a_deadlock_is_reported_with_its_seed` starts"]
fn child_that_deadlocks() {
    run(77, || {
        let lock = Arc::new(Lock::new(()));
        let held = lock.lock();
        let other = Arc::clone(&lock);
        let thread = thread::Builder::new().name(String::from("other"));
        let thread = thread.spawn(move || drop(other.lock())).expect("starts");
        thread.join().expect("never");
        drop(held);
    });
}

#[test]
fn a_deadlock_is_reported_with_its_seed() {
    let child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["child_that_deadlocks", "--exact", "--ignored", "--nocapture"])
        .output()
        .expect("the child runs");
    assert!(!child.status.success());
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(said.contains("THALWEG_SEED=77: everybody waits for ever"), "{said}");
    assert!(said.contains("1 other: Waits"), "{said}");
}

#[test]
fn whoever_waits_for_two_channels_gets_all_of_both() {
    for seed in 0..200 {
        let (taken, _) = run(seed, || {
            let ((one, ones), (two, twos)) = (bounded(1), unbounded());
            let producers = [
                thread::spawn(move || (0..5).try_for_each(|number| one.send(number)).is_ok()),
                thread::spawn(move || (5..10).try_for_each(|number| two.send(number)).is_ok()),
            ];
            let mut taken = BTreeSet::new();
            let (first_ended, rest) = loop {
                match lockstep::either(&ones, &twos) {
                    Either::First(Ok(number)) | Either::Second(Ok(number)) => taken.insert(number),
                    Either::First(Err(_)) => break (true, &twos),
                    Either::Second(Err(_)) => break (false, &ones),
                };
            };
            assert_eq!(first_ended, std::ptr::eq(rest, &twos));
            taken.extend(rest.iter());
            producers.into_iter().for_each(|thread| assert!(thread.join().expect("no panic")));
            taken
        });
        assert!(taken.into_iter().eq(0..10));
    }
}
