//! Models of the one-shot completion.

use loom::alloc::Track;
use loom::thread;
use loom_tests::explore;
use loom_tests::sync::{Abandoned, completion};

#[test]
fn value_is_handed_over() {
    explore("completion with a value", None, 180, || {
        let (promise, mut completion) = completion();
        let worker = thread::spawn(move || promise.complete(Track::new(7)));
        assert_eq!(completion.wait().map(Track::into_inner), Ok(7));
        worker.join().unwrap();
    });
}

#[test]
fn value_is_polled() {
    explore("completion polled", None, 5, || {
        let (promise, mut completion) = completion();
        let worker = thread::spawn(move || promise.complete(Track::new(7)));
        if let Some(value) = completion.try_take() {
            assert_eq!(value.map(Track::into_inner), Ok(7));
        }
        worker.join().unwrap();
    });
}

#[test]
fn promise_is_abandoned() {
    explore("completion abandoned", None, 180, || {
        let (promise, mut completion) = completion::<u32>();
        let worker = thread::spawn(move || drop(promise));
        assert_eq!(completion.wait(), Err(Abandoned));
        worker.join().unwrap();
    });
}

#[test]
fn receiver_leaves() {
    explore("completion whose receiver leaves", None, 4, || {
        let (promise, completion) = completion();
        let worker = thread::spawn(move || promise.complete(Track::new(7)));
        // loom reports the value as leaked if neither half drops it.
        drop(completion);
        worker.join().unwrap();
    });
}
