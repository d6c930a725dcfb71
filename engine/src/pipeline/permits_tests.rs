//! Tests of the permits on the real types. They are the siblings of the loom models.

use std::thread;
use std::time::Duration;

use super::permits::{Budget, Denied, Patience};
use crate::sync::{Arc, AtomicBool, AtomicU64, Ordering};

#[test]
fn takers_never_hold_more_than_there_is() {
    const REQUESTS: u64 = 3;
    const BYTES: u64 = 100;
    const BYTE_BITS: u32 = 32;
    const ONE_REQUEST: u64 = 1 << BYTE_BITS;
    let budget = Arc::new(Budget::new(REQUESTS, BYTES));
    // Requests and bytes that are out, in one word as well, so that they are seen together. A
    // permit hands nothing over, so what is counted beside it needs orderings of its own.
    let out = AtomicU64::new(0);
    thread::scope(|scope| {
        for taker in 1..=6 {
            let (budget, out) = (&budget, &out);
            scope.spawn(move || {
                for round in 0..300 {
                    // Every tenth or so is larger than the budget.
                    let byte_len = (taker * 31 + round * 17) % 110;
                    budget.take(byte_len, Patience::Endless).unwrap();
                    let before = out.fetch_add(ONE_REQUEST + byte_len, Ordering::AcqRel);
                    let (requests, bytes) = (before >> BYTE_BITS, before & (ONE_REQUEST - 1));
                    assert!(requests < REQUESTS);
                    assert!(bytes + byte_len <= BYTES || requests == 0, "{bytes}, {byte_len}");
                    if round % 16 == 0 {
                        thread::yield_now();
                    }
                    out.fetch_sub(ONE_REQUEST + byte_len, Ordering::AcqRel);
                    budget.give_back(byte_len);
                }
            });
        }
    });
    // All of it came back.
    (0..REQUESTS).for_each(|_| budget.take(33, Patience::None).unwrap());
}

#[test]
fn a_permit_given_back_lets_the_next_in() {
    for _ in 0..200 {
        let budget = Arc::new(Budget::new(1, 100));
        budget.take(100, Patience::None).unwrap();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    budget.take(1, Patience::Endless).unwrap();
                    budget.give_back(1);
                });
            }
            budget.give_back(100);
        });
    }
}

#[test]
fn a_close_releases_all_who_wait_and_refuses_all_who_come() {
    for round in 0..100 {
        let budget = Arc::new(Budget::new(1, 100));
        budget.take(1, Patience::None).unwrap();
        thread::scope(|scope| {
            for byte_len in [1, 200] {
                let budget = &budget;
                scope.spawn(move || {
                    assert_eq!(budget.take(byte_len, Patience::Endless), Err(Denied::Closed));
                });
            }
            if round % 8 == 0 {
                thread::sleep(Duration::from_micros(500));
            }
            budget.close();
        });
        budget.give_back(1);
        assert_eq!(budget.take(1, Patience::Endless), Err(Denied::Closed));
    }
}

#[test]
fn nothing_is_taken_once_the_close_is_known() {
    for _ in 0..20 {
        let budget = Arc::new(Budget::new(2, 100));
        let is_closed = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        let was_closed = is_closed.load(Ordering::Acquire);
                        match budget.take(1, Patience::Endless) {
                            Ok(()) => budget.give_back(1),
                            Err(denied) => {
                                assert_eq!(denied, Denied::Closed);
                                break;
                            }
                        }
                        assert!(!was_closed, "taken after the close");
                    }
                });
            }
            thread::yield_now();
            budget.close();
            is_closed.store(true, Ordering::Release);
        });
    }
}

#[test]
fn a_request_larger_than_the_budget_goes_alone() {
    let budget = Arc::new(Budget::new(4, 100));
    let is_out = AtomicBool::new(false);
    thread::scope(|scope| {
        for (taker, byte_len) in [(0, 101), (1, 1), (2, 100), (3, 500)] {
            let (budget, is_out) = (&budget, &is_out);
            scope.spawn(move || {
                for _ in 0..200 {
                    budget.take(byte_len, Patience::Endless).unwrap();
                    // No two of these go together.
                    assert!(!is_out.swap(true, Ordering::AcqRel), "taker {taker} is not alone");
                    is_out.swap(false, Ordering::AcqRel);
                    budget.give_back(byte_len);
                }
            });
        }
    });
}

#[test]
fn an_idle_budget_shows_what_was_done_under_it() {
    for _ in 0..100 {
        let budget = Budget::new(2, 100);
        let done = AtomicU64::new(0);
        let taken = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while budget.take(1, Patience::Endless).is_ok() {
                        taken.fetch_add(1, Ordering::Relaxed);
                        done.fetch_add(1, Ordering::Relaxed);
                        budget.give_back(1);
                    }
                });
            }
            thread::yield_now();
            budget.close();
            budget.wait_idle();
            assert_eq!(done.load(Ordering::Relaxed), taken.load(Ordering::Relaxed));
            let at_close = done.load(Ordering::Relaxed);
            assert_eq!(budget.take(1, Patience::None), Err(Denied::Closed));
            assert_eq!(done.load(Ordering::Relaxed), at_close, "taken after the close");
        });
    }
}

#[test]
fn whoever_is_denied_finds_the_reason() {
    for _ in 0..200 {
        let budget = Budget::new(1, 100);
        let reason = AtomicU64::new(0);
        thread::scope(|scope| {
            for patience in [Patience::None, Patience::Endless] {
                let (budget, reason) = (&budget, &reason);
                scope.spawn(move || {
                    loop {
                        match budget.take(1, patience) {
                            Ok(()) => budget.give_back(1),
                            Err(Denied::Closed) => break,
                            Err(denied) => assert_eq!(denied, Denied::Full),
                        }
                    }
                    assert_eq!(reason.load(Ordering::Relaxed), 1);
                });
            }
            thread::yield_now();
            reason.store(1, Ordering::Relaxed);
            budget.close();
        });
    }
}
