//! Callbacks: the thread that runs them, one at a time.
//!
//! The writer and the committer answer requests in the order of the log. An answer to a callback
//! becomes a job in the queue of this thread, so the callbacks of an appender run in the order of its
//! submits, and never on a thread that others wait for. The queue has no bound of its own and never
//! makes the writer wait: an append has a permit of its appender until its callback has returned, so
//! there are no more jobs than permits.
//!
//! A job may use the store as it likes. What would have to wait for this very thread does not wait on
//! it: [`is_callback_thread`] tells.

use std::cell::Cell;

use crate::sync::{Receiver, step, thread_local};

/// Something to run.
pub trait Job {
    /// Runs it. Must not panic.
    fn run(self);
}

/// What the thread is told.
#[derive(Debug)]
pub enum Message<J> {
    /// Run this.
    Run(J),
    /// End. Whatever there is to run has been sent before.
    End,
}

thread_local! {
    #[allow(clippy::missing_const_for_thread_local, reason = "loom's has no such form")]
    static IS_CALLBACK_THREAD: Cell<bool> = Cell::new(false);
}

/// Whether the calling thread runs callbacks, of this store or of another. It must not wait for a
/// callback, nor for a permit, which a callback may have to give back first: two stores whose callbacks
/// waited for each other would wait for ever.
pub fn is_callback_thread() -> bool {
    IS_CALLBACK_THREAD.with(Cell::get)
}

/// Runs jobs until told to end.
pub fn run<J: Job>(jobs: &Receiver<Message<J>>) {
    IS_CALLBACK_THREAD.with(|it| it.set(step!("callbacks.mark_thread")));
    while let Some(Message::Run(job)) = jobs.recv() {
        job.run();
    }
}
