//! An embedded event log that puts events in causal order: crash-safe, lock-free to read,
//! multithreaded, and without an async runtime.
//!
//! Events name their parents. They arrive in any order, from many threads, many times. A store keeps
//! each one durably once, *delivers* it only when all its parents have been delivered, and gives it a
//! place in its stream and in the whole store that never changes again.
//!
//! # A complete example
//!
//! ```
//! use thalweg::{Batch, Event, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("data");
//! let store = Store::open(&path)?;
//! let orders = store.appender("orders-42")?;
//!
//! // The child arrives before its parents: it is stored at once, and held.
//! orders.submit(Batch::from([Event::new("merged").id("m").parents(["a", "b"])]))?.wait()?;
//! orders.submit(Batch::from([
//!     Event::new("first").id("a").parents::<&str>([]),
//!     Event::new("second").id("b").parents(["a"]),
//! ]))?.wait()?;
//! // An event without parents of its own is chained on the tips of its stream.
//! let receipt = orders.append("last")?.wait()?;
//!
//! store.wait_committed(receipt.end)?; // read your own writes
//! let mut payloads = Vec::new();
//! for event in store.read(..)? {
//!     payloads.push(String::from_utf8_lossy(event?.payload()).into_owned());
//! }
//! assert_eq!(payloads, ["first", "second", "merged", "last"]);
//! store.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # How to append
//!
//! [`Store::appender`] gives a handle on one stream; [`Store::submit`] takes a [`MixedBatch`] of any
//! streams. A submit returns a [`Ticket`] as soon as the batch is in the queue; [`Ticket::wait`]
//! blocks until it is durable, or, with [`Ack::Ordered`], until it is ordered, and the [`Receipt`]
//! then tells of each event whether it was delivered, held, a duplicate, a conflict or rejected.
//! Appends of all threads that come together share one write and one sync. A batch is stored whole
//! or not at all; a batch that is refused comes back inside the error.
//!
//! An event may name the tips ([`NewEvent::if_tips`]) or the place ([`NewEvent::if_local`]) that it
//! expects of its stream, and is rejected if it finds others; a batch of events that are tied to each
//! other ([`NewEvent::with_previous`]) is then delivered whole or not at all. A sealed stream takes no
//! events ([`MixedBatch::push_seal`]). All of this is decided by the event's place in the log, so it
//! is the same after a crash, and for whoever orders the log again.
//!
//! # How to read
//!
//! * [`Store::read`]: by global sequence; [`Store::stream`]: by local sequence, found by a skip list;
//! * [`Store::subscribe`]: from a sequence on, for ever, blocking;
//! * [`Store::get`]: one delivered event by its id;
//! * [`Store::held`] and [`Store::why_held`]: what is not delivered, and why.
//!
//! An [`Event`] borrows the mapped log: nothing is copied, no lock is taken, and payloads are never
//! looked into.
//!
//! # What is promised
//!
//! * **Durable**: a completed append survives power loss ([`Durability::Sync`], the default).
//! * **Causal**: an event is delivered after all its parents, once, whatever the order of arrival.
//! * **Stable**: sequences are dense from 0 and never change, across crashes and power loss. The order
//!   is a pure function of the log: only the log has to be durable, and everything else can be made
//!   again. [`mod@reference`] defines that function in a few dozen lines.
//! * **Damage is seen**: every byte is under a checksum, and damage isolates one record.
//! * **Fail-stop**: after a failed write or sync nothing more is acknowledged; the first cause stands.
//!
//! # Threads
//!
//! An open store runs a writer, one or more scanners, an orderer with a pool, a committer and two
//! helpers, all named `thalweg-...` and pinned where there are cores enough. All of them sleep while
//! there is nothing to do. Handles are cheap to clone and may be used from any thread; which calls
//! block, and for what, is said at each.
//!
//! # Limits
//!
//! A stream name takes 1 to 255 bytes, an id 1 to 64, a payload up to 32 MiB, a batch up to 64 MiB.
//! One process writes a store; others may open it with [`Options::open_read_only`]. All known ids,
//! streams and held events are kept in memory: about 30 bytes for a delivered event, 320 for a
//! stream, 120 for a held event.

mod derived;
mod error;
mod event;
mod open;
mod options;
mod order;
mod pipeline;
mod questions;
mod rebuild;
pub mod reference;
mod store;
#[allow(dead_code, unused_imports)]
mod sync;
mod timings;
mod verify;

pub use error::{
    AppendFailure, BatchRefused, Cause, CloseError, FlushError, LogOpenError, MixedBatchRefused,
    OpenError, Outcome, ReadError, Refusal, SealError, SubmitError,
};
pub use event::{
    Ack, Batch, Event, MixedBatch, NewEvent, OwnedEvent, Placement, Receipt, Rejection,
};
pub use options::{AppenderOptions, Durability, Options};
pub use pipeline::appender::{MixedAppender, StreamAppender, Ticket};
pub use pipeline::subscriber::{Read, StreamView, Subscription};
pub use questions::{HeldEvent, Root, RootKind, StreamInfo, Why, WhyHeld};
pub use rebuild::{RebuildProgress, RebuildReport, rebuild};
pub use store::{Stats, Store};
pub use thalweg_wal::{Damage, LimitError, storage};
pub use timings::{Histogram, Timings};
pub use verify::{Problem, VerifyProgress, VerifyReport, verify, verify_on};
