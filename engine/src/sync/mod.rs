//! The only place where threads of the engine meet: primitives, and the facade they are built on.
//!
//! # What is here
//!
//! * [`ReaderBiased`], a lock whose readers touch one cache line of their own and never wait
//!   for each other.
//! * [`EventCount`], the one way in which a thread of the engine goes to sleep until a
//!   condition over atomics holds.
//! * [`Watermark`], a number that only grows, with one publisher and any number of waiters.
//! * [`completion()`], a one-shot hand-off of a value from one thread to another.
//! * [`queue()`], from many threads to one that may wait.
//! * [`List`], which grows while it is read.
//! * The facade: atomics, fences, locks, cells and thread-locals under one name each. `real.rs` maps
//!   them to `std`, `parking_lot` and `crossbeam`; `model.rs` maps them to loom; `sim.rs` to threads that
//!   take turns.
//!
//! # What is deliberately not here
//!
//! * No channel. Messages travel through flume's, of which only the calls that never block are used;
//!   the double that stands for it in the models has to pass the same tests as flume itself.
//! * No clock in a protocol. Deadlines bound how long a caller sleeps and never decide what
//!   state a primitive is in; policies that would like a clock count events instead. That
//!   keeps every protocol deterministic, which is what makes it explorable.
//! * No `try_lock` and no `SeqCst` access. Every edge that needs a total order is written
//!   `relaxed access; fence(SeqCst); access`, because loom explores that fence faithfully and
//!   treats `SeqCst` loads and stores as acquire and release.
//!
//! # How it is verified
//!
//! The crate `loom-tests` compiles *these files*, not copies, with `cfg(thalweg_loom)` set for
//! that crate alone; and beside them the files elsewhere that are protocols themselves: permits, room,
//! gate, group commit, interests and callbacks of the pipeline, and the table of known events. Two conditions
//! follow. The files of this folder name only `crate::sync` and each other, and the others only
//! `crate::sync` and each other. And no other module of the workspace says `cfg(thalweg_loom)`; nor
//! does any file here but this one.
//!
//! Each ordering and each step that a proof rests on carries a name, through `ord!` and
//! `step!`. A model build in which the environment variable `THALWEG_MUTANT` holds that name
//! weakens the ordering to `Relaxed`, or leaves the step out or out of its place, and a stated
//! model must then fail. `loom-tests/tests/models/mutants.rs` holds the table and checks that it is complete.
//! In every other build the macros expand to the plain ordering and to `true`.
//!
//! The crate in `engine/sim` compiles the engine as a whole once more, with `cfg(thalweg_sim)`: there its
//! threads take turns in an order that a seed decides, on a simulated disk. Same rules: no other
//! file says so, and whatever threads wait for comes from here.
//!
//! What the models take for granted is tested as well. `loom-tests/tests/contract.rs` asks the same of
//! each double and of what it stands for; and each model has a sibling that does the same on the real
//! types, often and in whatever order comes: `loom-tests/tests/models/siblings.rs` says which.
//!
//! The order of steps in files that cannot be leaves, because they hold files or batches, is repeated
//! by the models of `segments`, `failure`, `pipeline`, `gate` and `interests`, with names of its own. Nobody but
//! the reader checks that the repetition is true.
//!
//! An atomic here is either loaded and stored, or loaded and changed by read-modify-write
//! operations, never both: loom 0.7 invents impossible histories for the mixture. And no thread
//! loads an atomic just to change it next if others only load it: loom remembers one access per
//! atomic, so the thread's own load would hide theirs, and the orders in which they come after
//! the change would not be explored. (One of our models shrank to a single execution by it.) The
//! only thread that stores to an atomic looks at it with [`load_own`], which loom does not count.

// In the engine this module is private and its items are `pub` for `loom-tests`, which
// includes the folder by path and has them as its public interface.
#![allow(unreachable_pub)]

/// The ordering of one atomic access, under a name that a mutant run can weaken to `Relaxed`.
#[cfg(not(thalweg_loom))]
macro_rules! ord {
    ($name:literal, $ordering:ident) => {
        $crate::sync::Ordering::$ordering
    };
}

/// The ordering of one atomic access, under a name that a mutant run can weaken to `Relaxed`.
#[cfg(thalweg_loom)]
macro_rules! ord {
    ($name:literal, $ordering:ident) => {
        if $crate::sync::mutant($name) {
            $crate::sync::Ordering::Relaxed
        } else {
            $crate::sync::Ordering::$ordering
        }
    };
}

/// Whether to take one step of a protocol, and in its place: `true`, unless a mutant run does not.
#[cfg(not(thalweg_loom))]
macro_rules! step {
    ($name:literal) => {
        true
    };
}

/// Whether to take one step of a protocol, and in its place: `true`, unless a mutant run does not.
#[cfg(thalweg_loom)]
macro_rules! step {
    ($name:literal) => {
        !$crate::sync::mutant($name)
    };
}

// Files outside this folder import them, so that a module's place in its crate does not matter.
pub(crate) use {ord, step};

#[cfg(thalweg_loom)]
mod model;
#[cfg(not(any(thalweg_loom, thalweg_sim)))]
mod real;
#[cfg(thalweg_sim)]
mod sim;

#[cfg(thalweg_loom)]
pub use self::model::*;
#[cfg(not(any(thalweg_loom, thalweg_sim)))]
pub use self::real::*;
#[cfg(thalweg_sim)]
pub use self::sim::*;

mod completion;
mod event_count;
mod list;
mod queue;
mod reader_biased;
mod watermark;

pub use self::completion::{Abandoned, Cell, Completion, Promise, completion};
pub use self::event_count::EventCount;
pub use self::list::{List, Snapshot};
pub use self::queue::{Receiver, RecvError, Sender, queue};
pub use self::reader_biased::{ReadGuard, ReaderBiased, WriteGuard};
pub use self::watermark::{Failed, WaitError, Watermark};

#[cfg(all(test, not(thalweg_loom)))]
mod tests;
