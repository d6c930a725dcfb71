//! Threads of a world; outside of one, those of `std`.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::{CURRENT, World, current};

/// Makes a thread, as [`std::thread::Builder`] does.
#[derive(Debug, Default)]
pub struct Builder {
    name: Option<String>,
}

impl Builder {
    /// A thread without a name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the thread.
    #[must_use]
    pub fn name(mut self, name: String) -> Self {
        self.name = Some(name);
        self
    }

    /// Starts the thread, in the world of the one that calls.
    ///
    /// # Errors
    ///
    /// The operating system has no more threads.
    pub fn spawn<T: Send + 'static>(
        self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let name = self.name.unwrap_or_default();
        let builder = std::thread::Builder::new().name(name.clone());
        let Some((world, me)) = current() else {
            let inner = builder.spawn(|| catch_unwind(AssertUnwindSafe(body)))?;
            return Ok(JoinHandle { inner, member: None });
        };
        let (sender, receiver) = std::sync::mpsc::sync_channel::<usize>(1);
        let its_world = Arc::clone(&world);
        let inner = builder.spawn(move || {
            let number = receiver.recv().expect("it is told its number");
            its_world.await_turn(number);
            CURRENT.set(Some((Arc::clone(&its_world), number)));
            let value = catch_unwind(AssertUnwindSafe(body));
            CURRENT.set(None);
            its_world.leave(number);
            value
        })?;
        let number = world.enter(name, inner.thread().clone());
        sender.send(number).expect("it waits for its number");
        // The new thread may go first.
        world.point(me, false);
        Ok(JoinHandle { inner, member: Some((world, number)) })
    }
}

/// Starts a thread without a name.
///
/// # Panics
///
/// If the operating system has no more threads.
pub fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().spawn(body).expect("there are threads left")
}

/// The right to wait for a thread.
#[derive(Debug)]
pub struct JoinHandle<T> {
    inner: std::thread::JoinHandle<std::thread::Result<T>>,
    member: Option<(Arc<World>, usize)>,
}

impl<T> JoinHandle<T> {
    /// Waits until the thread has ended.
    ///
    /// # Errors
    ///
    /// What it panicked with.
    pub fn join(self) -> std::thread::Result<T> {
        if let (Some((world, number)), Some((_, me))) = (&self.member, current()) {
            world.wait_for(me, *number);
        }
        // It has given the turn away, and does nothing any more that others could see.
        self.inner.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}
