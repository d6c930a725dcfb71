//! A queue from many threads to one, whose senders never wait and whose receiver may.
//!
//! It is a flume channel and an event count. The channel holds the messages, first in, first out
//! for each sender; only its calls that never block are used, and the one place where somebody
//! waits is the event count, so the waiting can be explored and a wait allocates nothing. (A
//! blocking call of flume allocates and parks in ways that loom cannot see.) What bounds the queue
//! is permits, taken before a message is sent: see `pipeline/permits.rs`.
//!
//! # Protocol
//!
//! ```text
//! sender                         receiver
//! S1  push the message           R1  pop a message? then return it
//! S2  notify                     R2  no senders? then the end
//!                                R3  wait until there is a message, or no sender; go to R1
//! last sender, as it is dropped
//! D1  disconnect
//! D2  notify
//! ```
//!
//! # What the ends mean
//!
//! Messages outlive their senders: the receiver gets all of them before it hears of the end. They
//! outlive the receiver too, for as long as there is a sender, as flume has it: so a receiver that
//! gives up has to go on receiving until the end, or whoever waits for an answer waits for ever.

use std::time::{Duration, Instant};

use super::channel;
use super::{Arc, EventCount, spin};

/// Creates a queue that never has more than `capacity` messages, or any number.
pub fn queue<T>(capacity: Option<usize>) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = match capacity {
        Some(capacity) => channel::bounded(capacity),
        None => channel::unbounded(),
    };
    let changed = Arc::new(EventCount::new());
    let sender = Sender { channel: Some(sender), changed: Arc::clone(&changed) };
    (sender, Receiver { channel: receiver, changed, spin: Duration::ZERO })
}

/// The sending end.
#[derive(Debug)]
pub struct Sender<T> {
    /// `None` only while it is dropped.
    channel: Option<channel::Sender<T>>,
    changed: Arc<EventCount>,
}

impl<T> Sender<T> {
    /// Sends a message. Never waits.
    ///
    /// # Errors
    ///
    /// The message comes back: the queue is full, or the receiver is gone.
    pub fn send(&self, message: T) -> Result<(), T> {
        let channel = self.channel.as_ref().expect("a sender has its channel until it is dropped");
        channel.try_send(message).map_err(channel::TrySendError::into_inner)?;
        if step!("queue.send_notify") {
            self.changed.notify_all();
        }
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { channel: self.channel.clone(), changed: Arc::clone(&self.changed) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        drop(self.channel.take());
        if step!("queue.end_notify") {
            self.changed.notify_all();
        }
    }
}

/// The receiving end.
#[derive(Debug)]
pub struct Receiver<T> {
    channel: channel::Receiver<T>,
    changed: Arc<EventCount>,
    /// How long to spin before going to sleep.
    spin: Duration,
}

/// A wait for a message ended without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecvError {
    /// The deadline passed; a message may still come.
    TimedOut,
    /// There is no message, and nobody left to send one.
    Ended,
}

impl<T> Receiver<T> {
    /// The same receiver, which spins for up to `time` before it goes to sleep.
    #[must_use]
    pub fn spinning(self, time: Duration) -> Self {
        Receiver { spin: time, ..self }
    }

    /// The next message, if there is one. Never waits.
    ///
    /// # Errors
    ///
    /// [`RecvError::TimedOut`] at once, or [`RecvError::Ended`].
    pub fn try_recv(&self) -> Result<T, RecvError> {
        self.channel.try_recv().map_err(|error| match error {
            channel::TryRecvError::Empty => RecvError::TimedOut,
            channel::TryRecvError::Disconnected => RecvError::Ended,
        })
    }

    /// The next message. Blocks until there is one; `None` at the end.
    pub fn recv(&self) -> Option<T> {
        loop {
            match self.try_recv() {
                Ok(message) => return Some(message),
                Err(RecvError::Ended) => return None,
                Err(RecvError::TimedOut) => {
                    if !spin(self.spin, || self.is_worth_a_try()) {
                        self.changed.wait_until(|| self.is_worth_a_try());
                    }
                }
            }
        }
    }

    /// The next message. Blocks until there is one, until the end, or until `deadline`.
    ///
    /// # Errors
    ///
    /// As for [`RecvError`]. A message wins over the clock.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvError> {
        match self.try_recv() {
            Err(RecvError::TimedOut) => {
                if !spin(self.spin, || self.is_worth_a_try()) {
                    self.changed.wait_deadline(|| self.is_worth_a_try(), deadline);
                }
                self.try_recv()
            }
            received => received,
        }
    }

    fn is_worth_a_try(&self) -> bool {
        !self.channel.is_empty() || self.channel.is_disconnected()
    }
}
