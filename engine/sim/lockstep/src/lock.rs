//! Locks with the interface of `parking_lot`.

use std::ops::{Deref, DerefMut};
use std::sync::{self, PoisonError, TryLockError};
use std::time::Instant;

use crate::{World, current, point};

/// Waits until `attempt` comes to something, in the world of this thread.
fn attempt<T>(
    key: usize,
    mut attempt: impl FnMut() -> Option<T>,
    otherwise: impl FnOnce() -> T,
) -> T {
    let Some((world, me)) = current() else { return otherwise() };
    world.point(me, false);
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        world.wait(me, key, None);
    }
}

fn unpoisoned<G>(attempt: Result<G, TryLockError<G>>) -> Option<G> {
    match attempt {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

fn wake(key: usize) {
    if let Some((world, _)) = current() {
        world.wake(key);
    }
}

/// A mutual exclusion lock.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        Mutex(sync::Mutex::new(value))
    }

    /// Locks.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let inner = attempt(
            self.key(),
            || unpoisoned(self.0.try_lock()),
            || self.0.lock().unwrap_or_else(PoisonError::into_inner),
        );
        MutexGuard { lock: self, inner: Some(inner) }
    }

    /// Locks if nobody has; nobody comes before.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let inner = unpoisoned(self.0.try_lock())?;
        Some(MutexGuard { lock: self, inner: Some(inner) })
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// Access to what a [`Mutex`] protects.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    /// None only while it waits, and as it is dropped.
    inner: Option<sync::MutexGuard<'a, T>>,
}

impl<T> MutexGuard<'_, T> {
    fn unlock(&mut self) {
        drop(self.inner.take());
        wake(self.lock.key());
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_ref().expect("a guard is empty only while it waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("a guard is empty only while it waits")
    }
}

/// A condition variable.
#[derive(Debug, Default)]
pub struct Condvar(sync::Condvar);

/// Whether a wait ended because its time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    /// Whether it did.
    pub fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    /// A condition variable that nobody waits for.
    pub const fn new() -> Self {
        Condvar(sync::Condvar::new())
    }

    /// Unlocks, sleeps until notified, and locks again.
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let Some((world, me)) = current() else {
            let inner = guard.inner.take().expect("a guard is empty only while it waits");
            guard.inner = Some(self.0.wait(inner).unwrap_or_else(PoisonError::into_inner));
            return;
        };
        self.wait_in(&world, me, guard, None);
    }

    /// As [`Condvar::wait`], until `deadline`.
    pub fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Instant,
    ) -> WaitTimeoutResult {
        if let Some((world, me)) = current() {
            return WaitTimeoutResult(self.wait_in(&world, me, guard, Some(deadline)));
        }
        let inner = guard.inner.take().expect("a guard is empty only while it waits");
        let time = deadline.saturating_duration_since(Instant::now());
        let waited = self.0.wait_timeout(inner, time).unwrap_or_else(PoisonError::into_inner);
        guard.inner = Some(waited.0);
        WaitTimeoutResult(waited.1.timed_out())
    }

    fn wait_in<T>(
        &self,
        world: &World,
        me: usize,
        guard: &mut MutexGuard<'_, T>,
        deadline: Option<Instant>,
    ) -> bool {
        // Nobody comes between: the turn is ours until the wait hands it on.
        guard.unlock();
        let timed_out = world.wait(me, self.key(), deadline);
        guard.inner = std::mem::take(&mut guard.lock.lock().inner);
        timed_out
    }

    /// Wakes every waiter.
    pub fn notify_all(&self) {
        point();
        self.0.notify_all();
        wake(self.key());
    }

    pub(crate) fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// A reader-writer lock.
#[derive(Debug, Default)]
pub struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        RwLock(sync::RwLock::new(value))
    }

    /// Locks for reading.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        let inner = attempt(
            self.key(),
            || unpoisoned(self.0.try_read()),
            || self.0.read().unwrap_or_else(PoisonError::into_inner),
        );
        RwLockReadGuard { key: self.key(), inner: Some(inner) }
    }

    /// Locks for writing.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        let inner = attempt(
            self.key(),
            || unpoisoned(self.0.try_write()),
            || self.0.write().unwrap_or_else(PoisonError::into_inner),
        );
        RwLockWriteGuard { key: self.key(), inner: Some(inner) }
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

macro_rules! guard {
    ($name:ident) => {
        /// Access to what a [`RwLock`] protects.
        #[derive(Debug)]
        pub struct $name<'a, T> {
            key: usize,
            /// None only as it is dropped.
            inner: Option<sync::$name<'a, T>>,
        }

        impl<T> Drop for $name<'_, T> {
            fn drop(&mut self) {
                drop(self.inner.take());
                wake(self.key);
            }
        }

        impl<T> Deref for $name<'_, T> {
            type Target = T;

            fn deref(&self) -> &T {
                self.inner.as_ref().expect("a guard is empty only as it is dropped")
            }
        }
    };
}

guard!(RwLockReadGuard);
guard!(RwLockWriteGuard);

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("a guard is empty only as it is dropped")
    }
}
