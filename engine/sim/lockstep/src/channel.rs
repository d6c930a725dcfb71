//! A channel with the interface and the promises of crossbeam's, as far as they are used: any number of
//! senders and receivers, messages that go when the last receiver goes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::lock::{Condvar, Mutex};
use crate::{current, toss};

/// A channel that holds up to `capacity` messages.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State { messages: VecDeque::new(), capacity, senders: 1, receivers: 1 };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

/// A channel that holds any number of messages.
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    bounded(usize::MAX)
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    messages: VecDeque<T>,
    capacity: usize,
    senders: usize,
    receivers: usize,
}

/// The sending end.
pub struct Sender<T>(Arc<Shared<T>>);

/// The receiving end.
pub struct Receiver<T>(Arc<Shared<T>>);

/// The message that was not sent: nobody is left to receive it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendError<T>(pub T);

/// There is no message, and nobody left to send one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecvError;

/// Why there is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryRecvError {
    /// There is none now.
    Empty,
    /// There is none, and no sender.
    Disconnected,
}

impl<T> Sender<T> {
    /// Number of messages.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.0.state.lock().messages.len()
    }

    /// Sends a message; waits while there is no room.
    ///
    /// # Errors
    ///
    /// There is no receiver.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        let mut state = self.0.state.lock();
        while state.receivers > 0 && state.messages.len() >= state.capacity {
            self.0.changed.wait(&mut state);
        }
        if state.receivers == 0 {
            return Err(SendError(message));
        }
        state.messages.push_back(message);
        drop(state);
        self.0.changed.notify_all();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The next message, if there is one.
    ///
    /// # Errors
    ///
    /// As for [`TryRecvError`].
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut state = self.0.state.lock();
        let message = state.messages.pop_front();
        let ended = state.senders == 0;
        drop(state);
        match message {
            Some(message) => {
                self.0.changed.notify_all();
                Ok(message)
            }
            None if ended => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    /// The next message. Waits until there is one.
    ///
    /// # Errors
    ///
    /// There is none, and no sender.
    pub fn recv(&self) -> Result<T, RecvError> {
        let mut state = self.0.state.lock();
        loop {
            if let Some(message) = state.messages.pop_front() {
                drop(state);
                self.0.changed.notify_all();
                return Ok(message);
            }
            if state.senders == 0 {
                return Err(RecvError);
            }
            self.0.changed.wait(&mut state);
        }
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.0.state.lock().messages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is a message or the end; nobody comes before. A lock that somebody holds may be about to
    /// bring one.
    fn is_ready_at_once(&self) -> bool {
        let state = self.0.state.try_lock();
        state.is_none_or(|state| !state.messages.is_empty() || state.senders == 0)
    }

    /// The messages that there are.
    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    /// All messages, up to the end.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter(self)
    }
}

/// A message of one of two channels, or the end of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Either<A, B> {
    /// Of the first.
    First(Result<A, RecvError>),
    /// Of the second.
    Second(Result<B, RecvError>),
}

/// Waits for either channel. Outside of a world it looks again every millisecond.
pub fn either<A, B>(first: &Receiver<A>, second: &Receiver<B>) -> Either<A, B> {
    loop {
        // Messages of the first have no right of way: those of the second could wait for ever.
        let second_is_first = toss();
        for is_second in [second_is_first, !second_is_first] {
            if !is_second {
                match first.try_recv() {
                    Ok(message) => return Either::First(Ok(message)),
                    Err(TryRecvError::Disconnected) => return Either::First(Err(RecvError)),
                    Err(TryRecvError::Empty) => {}
                }
            } else {
                match second.try_recv() {
                    Ok(message) => return Either::Second(Ok(message)),
                    Err(TryRecvError::Disconnected) => return Either::Second(Err(RecvError)),
                    Err(TryRecvError::Empty) => {}
                }
            }
        }
        let Some((world, me)) = current() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        // Nobody comes between the look and the wait.
        if !first.is_ready_at_once() && !second.is_ready_at_once() {
            world.wait_either(me, first.0.changed.key(), second.0.changed.key(), None);
        }
    }
}

/// All messages, up to the end.
#[derive(Debug)]
pub struct Iter<'a, T>(&'a Receiver<T>);

impl<T> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().senders += 1;
        Sender(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().receivers += 1;
        Receiver(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state.lock().senders -= 1;
        self.0.changed.notify_all();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.receivers -= 1;
        let unread = if state.receivers == 0 {
            std::mem::take(&mut state.messages)
        } else {
            VecDeque::new()
        };
        drop(state);
        self.0.changed.notify_all();
        // What they drop may come back here.
        drop(unread);
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}
