//! Models of a stage that fails while others wait.
//!
//! The permits and the watermark are the shipped ones. The order of the steps is `Core::fail`'s, and
//! the place of the cause stands for its `OnceLock`, which loom lacks: a flag, and what it guards.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use loom_tests::explore;
use loom_tests::pipeline::permits::{Budget, Denied, Patience};
use loom_tests::sync::{Failed, Watermark, mutant};

/// Whether to take one step in its place: `true`, unless a mutant run takes it elsewhere.
fn step(name: &str) -> bool {
    !mutant(name)
}

struct Core {
    has_cause: AtomicBool,
    cause: UnsafeCell<u32>,
    budget: Budget,
    durable: Watermark,
}

impl Core {
    fn new() -> Arc<Self> {
        let budget = Budget::new(1, 100);
        let (has_cause, cause) = (AtomicBool::new(false), UnsafeCell::new(0));
        Arc::new(Self { has_cause, cause, budget, durable: Watermark::new(0) })
    }

    fn fail(&self) {
        let is_first = step("fail.cause_first");
        if is_first {
            self.set_cause();
        }
        self.budget.close();
        self.durable.fail();
        if !is_first {
            self.set_cause();
        }
    }

    fn set_cause(&self) {
        self.cause.with_mut(|_| ());
        self.has_cause.store(true, Ordering::Release);
    }

    fn read_cause(&self) {
        assert!(self.has_cause.load(Ordering::Acquire), "refused without a cause");
        self.cause.with(|_| ());
    }

    fn submit(&self) {
        match self.budget.take(1, Patience::Endless) {
            Ok(()) => self.budget.give_back(1),
            Err(denied) => {
                assert_eq!(denied, Denied::Closed);
                self.read_cause();
            }
        }
    }
}

fn spawn_failure(core: &Arc<Core>) -> thread::JoinHandle<()> {
    let core = Arc::clone(core);
    thread::spawn(move || core.fail())
}

#[test]
fn refused_submit_finds_the_cause() {
    explore("a failure against two submits", Some(3), 5_300, || {
        let core = Core::new();
        let stage = spawn_failure(&core);
        let submitter = thread::spawn({
            let core = Arc::clone(&core);
            move || core.submit()
        });
        core.submit();
        submitter.join().unwrap();
        stage.join().unwrap();
        core.submit();
    });
}

#[test]
fn blocked_submit_finds_the_cause() {
    explore("a failure against a submit that waits", None, 100, || {
        let core = Core::new();
        core.budget.take(1, Patience::None).unwrap();
        let stage = spawn_failure(&core);
        core.submit();
        stage.join().unwrap();
        core.budget.give_back(1);
    });
}

#[test]
fn reader_finds_the_cause() {
    explore("a failure against a reader that waits", None, 60, || {
        let core = Core::new();
        let stage = spawn_failure(&core);
        assert_eq!(core.durable.wait_for(1), Err(Failed));
        core.read_cause();
        stage.join().unwrap();
    });
}
