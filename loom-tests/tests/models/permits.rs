//! Models of the permits, which are those of a pipeline and those of the queue.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use loom_tests::explore;
use loom_tests::pipeline::permits::{Budget, Denied, Patience};

/// A budget, and how many of its permits are out.
struct Room {
    budget: Arc<Budget>,
    // Not a cell: permits hand nothing over, so what is counted beside them needs orderings of its
    // own.
    inside: AtomicUsize,
}

impl Room {
    fn new(request_max: u64, byte_max: u64) -> Arc<Self> {
        let budget = Arc::new(Budget::new(request_max, byte_max));
        Arc::new(Self { budget, inside: AtomicUsize::new(0) })
    }

    /// Takes a permit that nobody may hold another beside, and gives it back.
    fn pass_alone(&self, byte_len: u64) {
        self.budget.take(byte_len, Patience::Endless).unwrap();
        assert_eq!(self.inside.fetch_add(1, Ordering::AcqRel), 0, "over-committed");
        self.inside.fetch_sub(1, Ordering::AcqRel);
        self.budget.give_back(byte_len);
    }
}

#[test]
fn two_takers_in_turn() {
    explore("one permit, two takers", None, 220, || {
        let room = Room::new(1, 100);
        let taker = thread::spawn({
            let room = Arc::clone(&room);
            move || room.pass_alone(1)
        });
        room.pass_alone(1);
        taker.join().unwrap();
    });
}

#[test]
fn blocked_taker_goes_on() {
    explore("no permit left until one is dropped", None, 56, || {
        let room = Room::new(1, 100);
        room.budget.take(1, Patience::None).unwrap();
        room.inside.fetch_add(1, Ordering::AcqRel);
        let taker = thread::spawn({
            let room = Arc::clone(&room);
            move || room.pass_alone(1)
        });
        room.inside.fetch_sub(1, Ordering::AcqRel);
        room.budget.give_back(1);
        taker.join().unwrap();
    });
}

#[test]
fn two_blocked_takers_go_on() {
    explore("no permit left, two wait", Some(2), 3_900, || {
        let room = Room::new(1, 100);
        room.budget.take(1, Patience::None).unwrap();
        let takers = [(); 2].map(|()| {
            let room = Arc::clone(&room);
            thread::spawn(move || room.pass_alone(1))
        });
        room.budget.give_back(1);
        for taker in takers {
            taker.join().unwrap();
        }
    });
}

#[test]
fn close_releases_the_blocked() {
    explore("closed while one waits", None, 56, || {
        let budget = Arc::new(Budget::new(1, 100));
        budget.take(1, Patience::None).unwrap();
        let taker = thread::spawn({
            let budget = Arc::clone(&budget);
            move || assert_eq!(budget.take(1, Patience::Endless), Err(Denied::Closed))
        });
        budget.close();
        taker.join().unwrap();
        budget.give_back(1);
        assert_eq!(
            budget.take(1, Patience::Endless),
            Err(Denied::Closed),
            "a permit given back opened it"
        );
    });
}

#[test]
fn nothing_is_taken_after_the_close() {
    explore("taken against a close", None, 18, || {
        let budget = Arc::new(Budget::new(1, 100));
        let is_closed = Arc::new(AtomicBool::new(false));
        let taker = thread::spawn({
            let (budget, is_closed) = (Arc::clone(&budget), Arc::clone(&is_closed));
            move || {
                let was_closed = is_closed.load(Ordering::Acquire);
                let taken = budget.take(1, Patience::Endless);
                assert!(!was_closed || taken.is_err());
            }
        });
        budget.close();
        is_closed.store(true, Ordering::Release);
        taker.join().unwrap();
        assert_eq!(
            budget.take(1, Patience::Endless),
            Err(Denied::Closed),
            "a permit given back opened it"
        );
    });
}

#[test]
fn too_large_goes_alone() {
    explore("one larger than the budget, one small", None, 220, || {
        let room = Room::new(2, 10);
        let large = thread::spawn({
            let room = Arc::clone(&room);
            move || room.pass_alone(100)
        });
        room.pass_alone(4);
        large.join().unwrap();
    });
}

#[test]
fn idle_shows_what_was_done() {
    explore("closed and idle", None, 35, || {
        let budget = Arc::new(Budget::new(1, 100));
        let data = Arc::new(UnsafeCell::new(0));
        let taker = thread::spawn({
            let (budget, data) = (Arc::clone(&budget), Arc::clone(&data));
            move || {
                if budget.take(1, Patience::Endless).is_ok() {
                    data.with_mut(|_| ());
                    budget.give_back(1);
                }
            }
        });
        budget.close();
        budget.wait_idle();
        data.with_mut(|_| ());
        taker.join().unwrap();
    });
}

#[test]
fn denied_shows_the_reason() {
    explore("closed for a reason", None, 10_000, || {
        let budget = Arc::new(Budget::new(1, 100));
        let reason = Arc::new(UnsafeCell::new(0));
        let takers = [(); 2].map(|()| {
            let (budget, reason) = (Arc::clone(&budget), Arc::clone(&reason));
            thread::spawn(move || match budget.take(1, Patience::None) {
                Ok(()) => budget.give_back(1),
                Err(Denied::Closed) => reason.with(|_| ()),
                Err(denied) => assert_eq!(denied, Denied::Full),
            })
        });
        reason.with_mut(|_| ());
        budget.close();
        for taker in takers {
            taker.join().unwrap();
        }
    });
}

#[test]
fn impatient_takers() {
    explore("one permit, two takers that do not wait", None, 20, || {
        let room = Room::new(1, 100);
        let is_inside = |room: &Room| match room.budget.take(1, Patience::None) {
            Ok(()) => {
                assert_eq!(room.inside.fetch_add(1, Ordering::AcqRel), 0, "over-committed");
                room.inside.fetch_sub(1, Ordering::AcqRel);
                room.budget.give_back(1);
                true
            }
            Err(denied) => {
                assert_eq!(denied, Denied::Full);
                false
            }
        };
        let taker = thread::spawn({
            let room = Arc::clone(&room);
            move || is_inside(&room)
        });
        let am_inside = is_inside(&room);
        assert!(taker.join().unwrap() || am_inside, "nobody got the permit");
        room.budget.take(1, Patience::None).expect("it was given back");
    });
}

#[test]
fn close_releases_all_the_blocked() {
    explore("closed while two wait", Some(2), 3_500, || {
        let budget = Arc::new(Budget::new(1, 100));
        budget.take(1, Patience::None).unwrap();
        let takers = [(); 2].map(|()| {
            let budget = Arc::clone(&budget);
            thread::spawn(move || {
                assert_eq!(budget.take(1, Patience::Endless), Err(Denied::Closed));
            })
        });
        budget.close();
        budget.give_back(1);
        budget.wait_idle();
        for taker in takers {
            taker.join().unwrap();
        }
    });
}

#[test]
fn settled_shows_the_answer() {
    explore("closed, and idle once the answer is given", None, 1_700, || {
        let budget = Arc::new(Budget::new(1, 100));
        let answer = Arc::new(UnsafeCell::new(0));
        budget.take(1, Patience::None).unwrap();
        let answering = thread::spawn({
            let (budget, answer) = (Arc::clone(&budget), Arc::clone(&answer));
            move || {
                budget.make_room(1);
                answer.with_mut(|_| ());
                budget.settle();
            }
        });
        budget.close();
        budget.wait_idle();
        answer.with(|_| ());
        answering.join().unwrap();
    });
}

#[test]
fn room_before_the_answer() {
    explore("room is made for one who waits", None, 56, || {
        let budget = Arc::new(Budget::new(1, 100));
        budget.take(1, Patience::None).unwrap();
        let taker = thread::spawn({
            let budget = Arc::clone(&budget);
            move || budget.take(1, Patience::Endless).unwrap()
        });
        budget.make_room(1);
        // It needs no more than that.
        taker.join().unwrap();
        budget.settle();
        assert_eq!(budget.take(1, Patience::None), Err(Denied::Full));
    });
}

#[test]
fn closed_elsewhere() {
    explore("another budget is closed for a reason", None, 56, || {
        let budgets = Arc::new((Budget::new(1, 100), Budget::new(1, 100)));
        let reason = Arc::new(UnsafeCell::new(0));
        budgets.0.take(1, Patience::None).unwrap();
        let taker = thread::spawn({
            let (budgets, reason) = (Arc::clone(&budgets), Arc::clone(&reason));
            move || {
                let is_over = || budgets.1.is_closed();
                let taken = budgets.0.take_unless(1, Patience::Endless, is_over);
                assert_eq!(taken, Err(Denied::Closed));
                reason.with(|_| ());
            }
        });
        reason.with_mut(|_| ());
        budgets.1.close();
        budgets.0.wake();
        taker.join().unwrap();
    });
}
