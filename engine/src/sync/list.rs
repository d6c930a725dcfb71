//! A list that grows at the end while it is read, and may lose what nobody needs any more.
//!
//! Readers take a snapshot and look into it for as long as they like: it never changes. Whoever
//! changes the list copies it and puts the copy in its place, so the lock is held for a swap and
//! for nothing else. That suits lists that are read all the time and change as often as a file
//! fills up.
//!
//! # Protocol
//!
//! ```text
//! reader                           whoever changes it
//! R1  read lock                    C1  lock out other changes
//! R2  clone the pointer            C2  copy the newest list, change the copy
//! R3  unlock                       C3  write lock, swap the pointers, unlock
//! R4  look into the snapshot       C4  let other changes in, drop the list before
//! R5  drop the snapshot
//! ```
//!
//! # The races it prevents
//!
//! *A change that undoes another*: of two that copy the same list, the second to swap would. C1.
//!
//! *Foreign code under a lock*: a copy allocates, and what drops the last reference to an item
//! runs its destructor, which for a segment unmaps a file. C2 and C4 are outside the read-write
//! lock, so readers do not wait for them, and C4 is outside any.
//!
//! *An item that goes while it is read*: an item that was taken out lives in the lists from
//! before, and goes with the last snapshot of them.

use super::{Arc, Mutex, ReaderBiased};

/// What a list had in it at some moment.
pub type Snapshot<T> = Arc<Vec<T>>;

/// A list of items that are cheap to clone.
#[derive(Debug)]
pub struct List<T> {
    newest: ReaderBiased<Snapshot<T>>,
    /// Held from C1 to C4.
    changing: Mutex<()>,
}

impl<T: Clone> List<T> {
    /// A list of these items.
    pub fn new(items: Vec<T>) -> Self {
        List { newest: ReaderBiased::new(Arc::new(items)), changing: Mutex::new(()) }
    }

    /// What is in the list. Waits for nobody but a swap of pointers.
    pub fn snapshot(&self) -> Snapshot<T> {
        Arc::clone(&self.newest.read())
    }

    /// Changes the list, seen by every snapshot that is taken after it has returned.
    pub fn change(&self, change: impl FnOnce(&mut Vec<T>)) {
        let changing = step!("list.one_at_a_time").then(|| self.changing.lock());
        let mut items = Vec::clone(&self.snapshot());
        change(&mut items);
        let mut newest = self.newest.write();
        let before = std::mem::replace(&mut *newest, Arc::new(items));
        if !step!("list.drop_outside") {
            return drop(before);
        }
        drop(newest);
        drop(changing);
        drop(before);
    }

    /// Adds an item at the end.
    pub fn push(&self, item: T) {
        self.change(|items| items.push(item));
    }
}
