//! An embedded event log that puts events in causal order: crash-safe, lock-free to read,
//! multithreaded, and without an async runtime.
//!
//! Events name their parents. They arrive in any order, from many threads, many times. A store
//! keeps each one durably once, *delivers* it only when all its parents have been delivered, and
//! gives it a place in its stream and in the whole store that never changes again.
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
//! [`Store::appender`] gives a [`StreamAppender`], a handle on one stream;
//! [`Store::mixed_appender`] gives a [`MixedAppender`], which takes batches of events of any
//! streams. An appender has room for a few batches under way, by default for
//! [two](AppenderOptions::PIPELINE_DEFAULT). A submit returns as soon as its batch has a place and
//! is in the queue, and waits while there is no room; [`StreamAppender::try_submit`] does not wait,
//! [`StreamAppender::submit_timeout`] not for ever. Appends of all threads that come together share
//! one write and one sync.
//!
//! [`AppenderOptions::ack`] says when a batch is acknowledged: when it is durable
//! ([`Ack::Durable`], the default), or when it is ordered too ([`Ack::Ordered`]). Only then does
//! the [`Receipt`] tell of each event whether it was delivered, held, a duplicate, a conflict or
//! rejected.
//!
//! Who is told, and how, each submit says. [`StreamAppender::submit`] returns a [`Ticket`], and
//! [`Ticket::wait`] blocks until the batch is acknowledged. [`StreamAppender::submit_with`] takes a
//! callback. [`StreamAppender::submit_and_forget`] leaves it to the callback of the options
//! ([`AppenderOptions::on_outcome`]), or to the next flush. [`StreamAppender::flush`] blocks until
//! everything accepted before has its outcome, [`StreamAppender::close`] also accepts nothing more,
//! and [`StreamAppender::abort`] gives up what is not written.
//!
//! ```
//! use thalweg::{AppenderOptions, Batch, Event, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let store = Store::open(dir.path().join("data"))?;
//! let orders = store.appender_with("orders-42", AppenderOptions::new().pipeline(16))?;
//! for number in 0..100 {
//!     let batch = Batch::from([Event::new(format!("item {number}"))]);
//!     // Waits only while 16 batches are under way, or their callbacks have not returned.
//!     orders.submit_with(batch, move |outcome| match outcome {
//!         Ok(receipt) => println!("item {number} is durable, at position {}", receipt.position),
//!         Err(failure) => eprintln!("item {number}: {failure}"),
//!     })?;
//! }
//! orders.flush()?; // every batch has its outcome, and every callback has returned
//! # store.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! A batch is stored whole or not at all. One that is not accepted comes back inside the error
//! ([`SubmitError`]). One that is accepted has exactly one [`Outcome`]: it is appended, it is not
//! appended, or, after a failure of the disk or of the engine, it is not known which. At the first
//! failure the appender stops, so that what is stored of its batches is a prefix of what it
//! accepted, also after a full disk; it then refuses everything with [`Refusal::Stopped`], and a
//! new appender begins afresh. [`Store::submit`] takes a batch without an appender, and without
//! that promise.
//!
//! # How to append only if nothing has changed
//!
//! An event may name the place that it expects to take in its stream ([`NewEvent::if_local`]), or
//! the stream's tips ([`NewEvent::if_tips`]), and is rejected if it finds others; so nobody has to
//! lock a stream between reading it and appending to it. A batch of new events of which the first
//! has a condition, and the others are chained and tied, each to the one before it
//! ([`NewEvent::with_previous`]), is delivered whole or not at all.
//!
//! ```
//! use thalweg::{Ack, AppenderOptions, Placement, Rejection, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let store = Store::open(dir.path().join("data"))?;
//! let options = AppenderOptions::new().ack(Ack::Ordered); // only then the receipt tells
//! let account = store.appender_with("account-7", options)?;
//! # account.append("paid in 5")?.wait()?;
//! let mut seen = 0; // how many events of the stream we have looked at
//! loop {
//!     // Here one would read the stream from `seen` on, and decide whether to pay out.
//!     let receipt = account.append_if_local(seen, "paid out 5")?.wait()?;
//!     match receipt.placements[0] {
//!         // Somebody was faster.
//!         Placement::Rejected { reason: Rejection::Local { next }, .. } => seen = next,
//!         ref other => break println!("{other:?}"),
//!     }
//! }
//! # store.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Store::seal`] seals a stream: it takes no events until [`Store::unseal`]. Appends to it are
//! refused with [`Refusal::Sealed`].
//!
//! Conditions and seals are decided by the event's place in the log, so the decision is the same
//! after a crash, and for whoever orders the log again. An event that is rejected is stored all the
//! same, and takes its space in the log; its id stays free.
//!
//! # How it starts
//!
//! [`Store::open`] returns as soon as appends can be taken and what was ordered before can be read.
//! What the log holds beyond that, after a crash or a long import, is put in order meanwhile, on all
//! cores; [`Store::discovery`] tells how far that is, and waits for it. Closing interrupts it at once,
//! and the next opening goes on.
//!
//! # How to read
//!
//! * [`Store::read`]: by global sequence; [`Store::stream`]: by local sequence, found by a skip
//!   list;
//! * [`Store::subscribe`], [`Store::subscribe_stream`], [`Store::subscribe_streams`] and
//!   [`Store::subscribe_prefix`]: from somewhere on, for ever, blocking;
//! * [`Store::wait_for`]: blocks until something can be read;
//! * [`Store::get`]: one delivered event by its id;
//! * [`Store::held`] and [`Store::why_held`]: what is not delivered, and why; [`Store::discard`] and
//!   [`Store::expire_held`] give it up;
//! * [`Store::open_follower`]: all but the last two in another process, while this one writes, and
//!   whatever becomes of it.
//!
//! An [`Event`] borrows the mapped log: nothing is copied, no lock is taken, and payloads are never
//! looked into.
//!
//! # How to back it up
//!
//! [`Store::backup`] copies a store while it runs, up to one durable position; [`backup()`] does so for
//! a store that another process writes. [`verify_backup`] compares every byte of the copy with its
//! manifest, and so does [`restore()`], which makes a store of it. A copy can begin later than its source,
//! with the state that there is: [`BackupOptions::from`] and [`BackupOptions::from_frontier`] are how a replica starts
//! without the history.
//!
//! # How to consume
//!
//! A [`Subscription`] follows what is delivered, from a sequence, from a [`Cursor`], or from
//! [`Start::Now`]. A cursor is a named mark of how far a consumer has come. A mark may be in a batch of
//! events ([`Batch::mark`]), and then counts only with all of them: a consumer that appends what it makes of
//! what it reads acts exactly once, however often it is killed.
//!
//! ```
//! use thalweg::{Batch, Event, Store};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let store = Store::open(dir.path().join("data"))?;
//! # store.appender("orders")?.append("two apples")?.wait()?;
//! let cursor = store.cursor("invoices")?;
//! let mut orders = store.subscribe_stream("orders", &cursor)?;
//! let invoices = store.appender("invoices")?;
//!
//! let order = orders.next().expect("blocks until there is one")?;
//! let invoice = Event::new([b"to pay: ", order.payload()].concat());
//! let batch = Batch::from([invoice]).mark("invoices", orders.next_sequence());
//! let receipt = invoices.submit(batch)?.wait()?; // both are durable now
//!
//! store.wait_for(&receipt)?; // and can be seen
//! assert_eq!(cursor.at(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! * **Durable**: a completed append survives power loss ([`Durability::Sync`], the default).
//! * **One outcome**: every accepted batch has exactly one, and it is true.
//! * **Prefix**: of the batches that an appender accepts, those stored are a prefix, in their
//!   order.
//! * **Conditional**: an event with a condition is delivered if it holds at the event's place in
//!   the log, and is rejected otherwise, for ever. It is never held.
//! * **Consumers**: a mark counts with all events of its batch or not at all; cursors go up, and are where
//!   their newest durable mark says; a subscriber sees each event of its part once, in order.
//! * **Causal**: an event is delivered after all its parents, once, whatever the order of arrival.
//! * **Stable**: sequences are dense from 0 and never change, across crashes and power loss. The
//!   order is a pure function of the log: only the log has to be durable, and everything else can
//!   be made again. [`mod@reference`] defines that function in a few dozen lines.
//! * **Damage is seen**: every byte is under a checksum, and damage isolates one record.
//! * **Fail-stop**: after a failed write or sync nothing more is acknowledged; the first cause
//!   stands.
//! * **No hang**: a close, a drop or a failure ends every wait.
//!
//! # Threads
//!
//! An open store runs a writer, one or more scanners, an orderer with a pool, a committer, a thread
//! for callbacks and three helpers (four with a [retention](Options::retention)), all named `thalweg-...`; those that write and order are pinned
//! where there are cores enough. All of them sleep while there is nothing to do; where they are
//! pinned, the writer spins for a moment before ([`Options::spin`]). Handles are cheap to clone and
//! may be used from any thread; which calls block, and for what, is said at each.
//!
//! The callbacks of a store run one at a time, those of an appender in the order of the log. They
//! may use the store and its appenders. In a callback a submit does not wait, and finds a full
//! pipeline [full](Refusal::Full); a close does not wait for callbacks; a flush is an error. A slow
//! callback makes the others late, and the submits of its own appender wait once the pipeline is
//! full; tickets and other appenders go on.
//!
//! # Limits
//!
//! A stream name takes 1 to 255 bytes, as does the name of a cursor, an id 1 to 64, a payload up to 32
//! MiB, a batch up to 64 MiB. A store has up to [4096](Cursor::COUNT_MAX) cursors.
//! One process writes a store; others may open it with [`Options::open_read_only`], as it is then, or
//! [follow](Store::open_follower) it. Known ids, streams and held events take up to
//! [`Options::memory_budget`] of memory; what does not fit is in files.
//!
//! An appender has room for at most [1024](AppenderOptions::PIPELINE_MAX) batches, and all
//! appenders of a store together for 4096 batches and [64 MiB](Options::queue_bytes) that are not
//! acknowledged, and for as many again that wait for the order; who finds no room waits. An appender
//! keeps the buffers of its batches for the next
//! ones: with a pipeline of `n` batches up to `2 n + 2` of them, each as large as its batches were,
//! and none larger than 1 MiB or the `n`-th part of [`AppenderOptions::pipeline_bytes`].

//! # Numbers, spans and events
//!
//! [`Store::stats`] has everything that a store counts and times, and [`Follower::stats`] what can be known of it from another
//! process. Two features hand it on; both are off by default, and add nothing then. Neither does anything for an event or
//! a batch.
//!
//! **`metrics`**: the recorder that is installed (see the crate `metrics`) *when a store is opened for writing* gets these, all with
//! the label `store`, which is its directory.
//!
//! | name | what |
//! |---|---|
//! | `thalweg_appended_batches_total`, `thalweg_appended_events_total`, `thalweg_appended_bytes_total` | what became durable, since the opening |
//! | `thalweg_delivered_events_total`, `thalweg_duplicate_events_total`, `thalweg_conflicting_events_total`, `thalweg_rejected_events_total` | what became of events, since the store was made |
//! | `thalweg_held_events`, `thalweg_streams`, `thalweg_memory_bytes` | gauges, at the newest window |
//! | `thalweg_unordered_bytes` | gauge: durable and not committed, at the newest window |
//! | `thalweg_queued_batches`, `thalweg_queued_bytes` | gauges, at the newest frame; with a label `ack`, `durable` or `ordered` |
//! | `thalweg_write_seconds`, `thalweg_fdatasync_seconds`, `thalweg_frame_batches`, `thalweg_frame_bytes` | histograms, of each frame |
//! | `thalweg_scan_seconds` | histogram, of each part of the log that is scanned at a time |
//! | `thalweg_order_seconds`, `thalweg_commit_seconds` | histograms, of each window |
//! | `thalweg_checkpoint_seconds` | histogram, of each checkpoint |
//! | `thalweg_commit_retries_total` | writes of the order that failed and were made again |
//! | `thalweg_poisoned` | gauge: 1 if the engine has stopped |
//!
//! **`tracing`**: everything has the target `thalweg`. Each open store has a span `store` with its directory, and in it the
//! spans `discovery`, `checkpoint`, `merge` and `close`, and the events `recovered`, `rolled`, `discovered`, `checkpoint written` or
//! `no checkpoint`, `merged` or `not merged`, `writing the order again`, `poisoned`, and `closed`. The spans `open`, `backup` and
//! `repair` are those of the calling thread.

// The examples of the README compile. A copy of this crate without its repository has no README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod backup;
mod barrier;
mod clock;
mod cursors;
mod derived;
mod discards;
mod discovery;
mod error;
mod event;
mod follower;
mod observe;
mod open;
mod options;
mod order;
mod pipeline;
mod questions;
mod rebuild;
pub mod reference;
mod repair;
mod stats;
mod store;
#[allow(dead_code, unused_imports)]
mod sync;
mod timings;
mod trim;
mod trimmed;
mod verify;

pub use backup::{
    BackupCheck, BackupError, BackupInfo, BackupOptions, BackupProgress, BackupReport, backup,
    backup_on, restore, restore_on, verify_backup, verify_backup_on,
};
pub use barrier::Barrier;
pub use cursors::{Cursor, CursorInfo};
pub use discards::{DiscardFate, DiscardReport, DiscardedEvent};
pub use discovery::{Discovery, DiscoveryProgress, DiscoveryReport};
pub use error::{
    AppendFailure, BatchRefused, Cause, CloseError, CursorError, DiscardError, FlushError,
    LogOpenError, MixedBatchRefused, OpenError, Outcome, ReadError, Refusal, SealError,
    SubmitError,
};
pub use event::{
    Ack, Batch, Event, MixedBatch, NewEvent, OwnedEvent, Placement, Receipt, Rejection,
};
pub use follower::{CheckpointStats, Follower, FollowerStats, writer_of};
pub use options::{AppenderOptions, Durability, Options};
pub use pipeline::appender::{MixedAppender, StreamAppender, Ticket};
pub use pipeline::subscriber::{Read, StreamView};
pub use pipeline::subscription::{Start, Subscription};
pub use questions::{HeldEvent, Root, RootKind, StreamInfo, Why, WhyHeld};
pub use rebuild::{RebuildProgress, rebuild};
pub use repair::{
    KnownBy, LostEvent, MovedCursor, RepairOptions, RepairReport, Unproven, repair, repair_on,
};
pub use stats::{Backlog, QueueDepth, QueueDepths, Waiting};
pub use store::{Stats, Store};
pub use thalweg_wal::{Damage, DiscardReason, LimitError, MarkChange, storage};
pub use timings::{Histogram, StageTimes, Timings};
pub use trim::{KeptBy, Trim, TrimError, TrimReport};
pub use verify::{Problem, Remedy, VerifyProgress, VerifyReport, verify, verify_on};
