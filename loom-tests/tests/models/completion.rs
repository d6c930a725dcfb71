//! Models of the one-shot completion.

use loom::alloc::Track;
use loom::thread;
use loom_tests::explore;
use loom_tests::sync::{Abandoned, Cell, completion};

#[test]
fn value_is_handed_over() {
    explore("completion with a value", None, 360, || {
        let (promise, mut completion) = completion();
        let worker = thread::spawn(move || promise.complete(Track::new(7)));
        assert_eq!(completion.wait().map(Track::into_inner), Ok(7));
        drop(completion);
        worker.join().unwrap();
    });
}

#[test]
fn value_is_polled() {
    explore("completion polled", None, 28, || {
        let (promise, mut completion) = completion();
        let worker = thread::spawn(move || promise.complete(Track::new(7)));
        if let Some(value) = completion.try_take() {
            assert_eq!(value.map(Track::into_inner), Ok(7));
        }
        drop(completion);
        worker.join().unwrap();
    });
}

#[test]
fn promise_is_abandoned() {
    explore("completion abandoned", None, 540, || {
        let (promise, mut completion) = completion::<u32>();
        let worker = thread::spawn(move || drop(promise));
        assert_eq!(completion.wait(), Err(Abandoned));
        drop(completion);
        worker.join().unwrap();
    });
}

#[test]
fn receiver_leaves() {
    explore("completion whose receiver leaves", None, 5, || {
        let (promise, completion) = completion();
        let worker = thread::spawn(move || promise.complete(Track::new(7)));
        // loom reports the value as leaked if neither half drops it.
        drop(completion);
        worker.join().unwrap();
    });
}

/// A second hand-off over a cell that has served sees nothing of the first.
fn use_again(cell: Cell<Track<u32>>) {
    let (promise, mut completion) = cell.split();
    assert!(completion.try_take().is_none());
    assert!(promise.complete(Track::new(8)).is_none());
    assert_eq!(completion.wait().map(Track::into_inner), Ok(8));
    assert!(completion.release().is_some(), "both halves are gone");
}

#[test]
fn last_to_leave_has_the_cell() {
    explore("completion whose cell serves again", None, 720, || {
        let (promise, mut completion) = Cell::new().split();
        // Whoever has the cell uses it at once, so that nothing but leaving orders the two.
        let worker = thread::spawn(move || {
            let cell = promise.complete(Track::new(7));
            cell.map(use_again).is_some()
        });
        assert_eq!(completion.wait().map(Track::into_inner), Ok(7));
        let is_mine = completion.release().map(use_again).is_some();
        assert_ne!(is_mine, worker.join().unwrap(), "one half is the last");
    });
}

#[test]
fn last_to_leave_drops_the_unread() {
    explore("completion left unread, whose cell serves again", None, 13, || {
        let (promise, completion) = Cell::new().split();
        let worker = thread::spawn(move || {
            let cell = promise.complete(Track::new(7));
            cell.map(use_again).is_some()
        });
        let is_mine = completion.release().map(use_again).is_some();
        assert_ne!(is_mine, worker.join().unwrap(), "one half is the last");
    });
}

#[test]
fn abandoned_cell_is_not_lost() {
    explore("completion abandoned, whose cell serves again", None, 660, || {
        let (promise, mut completion) = Cell::new().split();
        let worker = thread::spawn(move || drop(promise));
        assert_eq!(completion.wait().map(Track::into_inner), Err(Abandoned));
        if let Some(cell) = completion.release() {
            use_again(cell);
        }
        worker.join().unwrap();
    });
}
