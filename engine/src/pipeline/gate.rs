//! The gate: what every append passes on its way into the queue, and what closing and sealing shut.
//!
//! Passing takes the read side of a reader-biased lock for as long as it takes to push one message,
//! so appends do not disturb each other. Closing and sealing take the write side: when they have it,
//! every append that passed is in the queue, and none passes after it. That is why nothing is behind
//! the close, and why a record that seals a stream stands behind all appends that were accepted.
//!
//! Nobody waits under the lock. The queue has room for whoever has a permit, and the locks inside the
//! queue are held for a push or a pop.
//!
//! A stream is shut from the moment its seal passes. When the seal is in the log, and the order has
//! told at which position, it stays shut; if the seal is not stored, the stream opens again. Of
//! several seals and unseals of one stream, the one at the highest position counts.

use std::collections::HashMap;

use crate::sync::{ReaderBiased, Sender, step};

/// Lets messages of type `T` into a queue.
#[derive(Debug)]
pub struct Gate<T> {
    state: ReaderBiased<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    /// None once the gate is closed.
    sender: Option<Sender<T>>,
    /// Streams that are or were sealed, by their keys.
    seals: HashMap<u64, Seal>,
}

#[derive(Debug, Default)]
struct Seal {
    /// Seals on their way.
    under_way: u32,
    /// Position of the newest seal or unseal that is in the log.
    position: u64,
    /// What that one was.
    sealed: bool,
}

/// What is refused, with the reason.
#[derive(Debug)]
pub enum Shut<T> {
    /// The gate is closed, or the receiver of the queue is gone.
    Closed(T),
    /// The stream is sealed.
    Sealed(T),
}

impl<T> Gate<T> {
    /// An open gate to `queue`, in front of which these streams are sealed.
    pub fn new(queue: Sender<T>, sealed: impl IntoIterator<Item = u64>) -> Self {
        let seal = |key| (key, Seal { under_way: 0, position: 0, sealed: true });
        let seals = sealed.into_iter().map(seal).collect();
        Gate { state: ReaderBiased::new(State { sender: Some(queue), seals }) }
    }

    /// Pushes a message. The caller has a permit for it, so there is room. If any stream is sealed,
    /// `appends_to` is asked whether the message appends to one of which its argument says so.
    ///
    /// # Errors
    ///
    /// The message comes back.
    pub fn pass(
        &self,
        message: T,
        appends_to: impl FnOnce(&T, &dyn Fn(u64) -> bool) -> bool,
    ) -> Result<(), Shut<T>> {
        let state = self.state.read();
        let Some(sender) = &state.sender else { return Err(Shut::Closed(message)) };
        if !state.seals.is_empty() && appends_to(&message, &|stream| state.is_sealed(stream)) {
            return Err(Shut::Sealed(message));
        }
        if !step!("gate.send_inside") {
            let sender = sender.clone();
            drop(state);
            return sender.send(message).map_err(Shut::Closed);
        }
        sender.send(message).map_err(Shut::Closed)
    }

    /// Closes the gate: what has passed is in the queue, nothing passes any more, and the receiver of
    /// the queue finds its end after what is in there.
    pub fn close(&self) {
        let mut state = self.state.write();
        let sender = if step!("gate.take_sender") { state.sender.take() } else { None };
        // Waking the receiver needs no lock of ours.
        drop(state);
        drop(sender);
    }

    /// Shuts `stream` and pushes the message that seals it. [`Gate::decide`] has to follow.
    ///
    /// # Errors
    ///
    /// The message comes back; the stream is as it was.
    pub fn seal(&self, stream: u64, message: T) -> Result<(), Shut<T>> {
        let mut state = self.state.write();
        let Some(sender) = &state.sender else { return Err(Shut::Closed(message)) };
        sender.send(message).map_err(Shut::Closed)?;
        if !step!("gate.shut_with_seal") {
            drop(state);
            state = self.state.write();
        }
        state.seals.entry(stream).or_default().under_way += 1;
        Ok(())
    }

    /// Ends what [`Gate::seal`] began: the seal is in the log at `position`, or it is not stored.
    pub fn decide(&self, stream: u64, position: Option<u64>) {
        let mut state = self.state.write();
        state.seals.entry(stream).or_default().under_way -= 1;
        if !step!("gate.decide_at_once") {
            drop(state);
            state = self.state.write();
        }
        // Under the same guard: between the two, the stream would be open.
        if let Some(position) = position {
            state.learn(stream, position, true);
        }
    }

    /// The log has a seal of the stream, or an unseal, at `position`.
    pub fn learn(&self, stream: u64, position: u64, sealed: bool) {
        self.state.write().learn(stream, position, sealed);
    }
}

impl<T> State<T> {
    fn learn(&mut self, stream: u64, position: u64, sealed: bool) {
        let seal = self.seals.entry(stream).or_default();
        if position >= seal.position {
            (seal.position, seal.sealed) = (position, sealed);
        }
    }

    fn is_sealed(&self, stream: u64) -> bool {
        self.seals.get(&stream).is_some_and(|seal| seal.sealed || seal.under_way > 0)
    }
}
