//! Room for a batch: a permit of its lane, which is the appender's pipeline, and one of the queue.
//!
//! The permit of the queue is given back when the batch is answered. That of the lane is given back
//! around the answer, if it goes to a ticket, and after the callback, if it goes to one.
//!
//! # What it prevents
//!
//! *A lane that keeps others out.* The lane's permit is taken first. Its giver may be a slow callback,
//! and whoever waits for it holds nothing.
//!
//! *A permit that is lost.* Who gets the lane's and not the queue's gives it back, or closing the lane
//! would wait for it for ever.
//!
//! *A ticket without its outcome after the close, or a full pipeline after the outcome.* There is room
//! before the outcome is given, and the permit counts as out until after.
//!
//! *A wait for the queue that outlives its lane.* The wait is over when the lane is closed, too.
//!
//! *A callback that waits for callbacks.* On the thread that runs them nothing here waits.

use crate::pipeline::callbacks::is_callback_thread;
use crate::pipeline::permits::{Budget, Denied, Patience};
use crate::sync::{Arc, Cell, Promise, step};

/// What the batches of one lane take room from.
#[derive(Debug)]
pub struct Room {
    lane: Arc<Budget>,
    /// Shared by all lanes with the same kind of acknowledgement.
    queue: Arc<Budget>,
}

impl Room {
    /// The room of a lane.
    pub fn new(lane: Arc<Budget>, queue: Arc<Budget>) -> Self {
        Room { lane, queue }
    }

    /// Takes both permits for a batch. Waits as `patience` has it, and never on the callback thread.
    ///
    /// # Errors
    ///
    /// As for [`Budget::take`].
    pub fn take(&self, byte_len: u64, patience: Patience) -> Result<(), Denied> {
        let waits = !(is_callback_thread() && step!("room.callback_takes_or_leaves"));
        let patience = if waits { patience } else { Patience::None };
        let in_order = step!("room.lane_before_queue");
        let (first, second) =
            if in_order { (&self.lane, &self.queue) } else { (&self.queue, &self.lane) };
        first.take(byte_len, patience)?;
        let is_over = || self.lane.is_closed() && step!("room.lane_ends_queue_wait");
        second.take_unless(byte_len, patience, is_over).inspect_err(|_| {
            if step!("room.give_back_the_first") {
                first.give_back(byte_len);
            }
        })
    }

    /// Gives back the permit of the queue.
    pub fn leave_queue(&self, byte_len: u64) {
        self.queue.give_back(byte_len);
    }

    /// Gives back the permit of the lane.
    pub fn leave_lane(&self, byte_len: u64) {
        self.lane.give_back(byte_len);
    }

    /// Answers a ticket, and gives back the permit of the lane around it.
    pub fn answer<T>(&self, byte_len: u64, promise: Promise<T>, outcome: T) -> Option<Cell<T>> {
        if !step!("room.settle_after_answer") {
            self.leave_lane(byte_len);
            return promise.complete(outcome);
        }
        let makes_room_first = step!("room.make_room_before_answer");
        if makes_room_first {
            self.lane.make_room(byte_len);
        }
        let cell = promise.complete(outcome);
        if !makes_room_first {
            self.lane.make_room(byte_len);
        }
        self.lane.settle();
        cell
    }

    /// Takes no more from the lane, and ends every wait of a submit to it.
    pub fn close(&self) {
        self.lane.close();
        if step!("room.wake_queue") {
            self.queue.wake();
        }
    }

    /// Blocks until every batch of a closed lane is answered, callbacks included. Does not block on the
    /// callback thread.
    pub fn wait_answered(&self) {
        if !(is_callback_thread() && step!("room.callback_closes_and_leaves")) {
            self.lane.wait_idle();
        }
    }
}
