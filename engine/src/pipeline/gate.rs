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
//! A stream is shut from the moment its seal passes. Once the order has come to the seal, it is the order
//! that says whether the stream is sealed; if the seal is not stored, the stream opens again.
//!
//! After a crash the order has to come to the end of the log first. Until then nobody knows which streams
//! are sealed, and the gate lets everything pass that is not sealed before its eyes: the order rejects
//! what comes to a sealed stream.

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
    /// Streams that are sealed or about to be, by their keys: while there are none, nobody asks.
    seals: HashMap<u64, Seal>,
    /// Whether the order has come to where the log ended when it was opened.
    settled: bool,
}

#[derive(Debug, Default)]
struct Seal {
    /// Seals that have passed and are not decided.
    under_way: u32,
    /// Whether the stream is sealed as far as it is ordered.
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
    /// An open gate to `queue`. The streams `sealed` are sealed as far as the log is ordered; `settled`
    /// says whether that is to its end.
    pub fn new(queue: Sender<T>, sealed: impl IntoIterator<Item = u64>, settled: bool) -> Self {
        let seal = |key| (key, Seal { under_way: 0, sealed: true });
        let seals = sealed.into_iter().map(seal).collect();
        Gate { state: ReaderBiased::new(State { sender: Some(queue), seals, settled }) }
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
        state.change(stream, |seal| seal.under_way += 1);
        Ok(())
    }

    /// Ends what [`Gate::seal`] began: the seal is ordered, which [`Gate::learn`] was told, or it is not
    /// stored. Called before anybody hears of it, and in the order of the log.
    pub fn decide(&self, stream: u64) {
        self.state.write().change(stream, |seal| seal.under_way -= 1);
    }

    /// The order has come to a seal of the stream, or to where it is taken off. Called in the order of
    /// the log.
    pub fn learn(&self, stream: u64, sealed: bool) {
        self.state.write().change(stream, |seal| seal.sealed = sealed);
    }

    /// Whether appends to the stream are refused.
    pub fn is_sealed(&self, stream: u64) -> bool {
        self.state.read().is_sealed(stream)
    }

    /// The order has come to where the log ended when it was opened: from now on it is known which
    /// streams are sealed.
    pub fn settle(&self) {
        self.state.write().settled = true;
    }
}

impl<T> State<T> {
    /// Changes what is known of a stream's seal, and forgets it when there is nothing to know.
    fn change(&mut self, stream: u64, change: impl FnOnce(&mut Seal)) {
        let seal = self.seals.entry(stream).or_default();
        change(seal);
        if seal.under_way == 0 && !seal.sealed {
            self.seals.remove(&stream);
        }
    }

    fn is_sealed(&self, stream: u64) -> bool {
        self.seals
            .get(&stream)
            .is_some_and(|seal| seal.under_way > 0 || (seal.sealed && self.settled))
    }
}
