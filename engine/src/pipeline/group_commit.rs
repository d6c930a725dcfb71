//! Group commit: the loop of the thread that writes the log, as a protocol.
//!
//! This file has the steps and their order; what a step does to files and tickets is in `writer`. So
//! the models run the very loop that ships, over a device of their own.
//!
//! # Protocol
//!
//! ```text
//! G1  take the requests that are there: at least one, and no more than a group
//! G2  stopped? then answer them "not appended", go to G1
//! G3  write them            failed? then stop, answer them "unknown" or "not appended"
//! G4  sync                  failed? then stop, answer them "unknown"
//! G5  hand over who waits for the order, publish the end, answer the others
//! ```
//!
//! until the queue has ended. If a step panics, the engine stops with that cause, what is in hand is
//! answered "unknown", and the loop goes on without writing.
//!
//! # What it prevents
//!
//! *An answer before its bytes are safe*: G5 follows G4, on one thread. *A reader that is told of an
//! end before its bytes are safe*: the same. *A ticket for an order that is already made*: tickets
//! are handed over before the end is published, and the orderer does not look beyond the end. *A
//! request without an answer*: every request that was taken is in the group or in an answer, a failed
//! group is answered, and the loop ends only at the end of the queue.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sync::step;

/// What panicked code said.
pub type Panic = Box<dyn Any + Send>;

/// The steps of a commit, by their letters above.
pub trait GroupCommit {
    /// Why a write or a sync failed.
    type Failure;

    /// G1: fills the group; blocks until there is a request. `false` at the end of the queue.
    fn gather(&mut self) -> bool;

    /// Whether the engine has stopped, so that nothing may be written.
    fn is_stopped(&self) -> bool;

    /// Answers the group: not appended.
    fn refuse(&mut self);

    /// G3.
    fn write(&mut self) -> Result<(), Self::Failure>;

    /// G4.
    fn sync(&mut self) -> Result<(), Self::Failure>;

    /// G5, first part: hands over the requests that wait for the order.
    fn hand_over(&mut self);

    /// G5, second part: publishes how far the log is safe.
    fn publish(&mut self);

    /// G5, third part: answers the requests that waited for this.
    fn acknowledge(&mut self);

    /// Stops the engine if the failure says so, and then answers the group.
    fn fail(&mut self, failure: Self::Failure);

    /// Stops the engine, and then answers the group: unknown.
    fn panicked(&mut self, panic: Panic);
}

/// Runs until the queue has ended.
pub fn run(stage: &mut impl GroupCommit) {
    loop {
        match catch_unwind(AssertUnwindSafe(|| follow(stage))) {
            Ok(()) => return,
            // Nobody else will answer what is still in the queue.
            Err(panic) => stage.panicked(panic),
        }
        if !step!("commit.go_on_after_panic") {
            return;
        }
    }
}

fn follow(stage: &mut impl GroupCommit) {
    while stage.gather() {
        if stage.is_stopped() && step!("commit.refuse_when_stopped") {
            stage.refuse();
            continue;
        }
        if let Err(failure) = commit(stage) {
            stage.fail(failure);
            if !step!("commit.go_on_after_failure") {
                return;
            }
        }
    }
}

fn commit<C: GroupCommit>(stage: &mut C) -> Result<(), C::Failure> {
    stage.write()?;
    let is_synced = step!("commit.sync_before_publish");
    if is_synced {
        stage.sync()?;
    }
    let is_handed_over = step!("commit.hand_over_before_publish");
    if is_handed_over {
        stage.hand_over();
    }
    let is_published = step!("commit.publish_before_answer");
    if is_published {
        stage.publish();
    }
    stage.acknowledge();
    if !is_published {
        stage.publish();
    }
    if !is_handed_over {
        stage.hand_over();
    }
    if !is_synced {
        stage.sync()?;
    }
    Ok(())
}
