//! Cursors: named, durable marks of how far consumers have come.
//!
//! A mark is a record of the log, like an event: it is atomic with the batch that it is in, and crashes,
//! rebuilds and backups keep it without knowing of it. Where a cursor is follows from the log; the order
//! decides which marks count, as it decides which events are taken, in `order/cursors.rs`.
//!
//! Here is what a consumer holds: the handle, and how commits share records.

use std::fmt;

use thalweg_wal::format::STREAM_LEN_MAX;
use thalweg_wal::{EncodedBatch, LimitError, MarkChange};

use crate::error::{CursorError, Outcome, Refusal};
use crate::event::{MixedBatch, Placement, Rejection};
use crate::pipeline::appender::MixedAppender;
use crate::pipeline::core::Core;
use crate::sync::{Arc, Mutex};

/// A named, durable mark of how far a consumer has come: the global sequence of the next event that it
/// wants. Everything below is done.
///
/// Made by [`Store::cursor`](crate::Store::cursor). Clones are handles on the same cursor, for any number of
/// threads. A handle does not keep the store open.
///
/// A cursor only goes up: a commit of a sequence that it has passed changes nothing, and is no error, so
/// several threads may commit what they have done in any order. [`Cursor::reset`] takes it down.
/// It never goes beyond what is delivered. A cursor is there from its first mark to its removal; before, it is
/// at 0.
///
/// [`Cursor::at`] goes by the marks that are ordered. A consumer that starts over in the same process has to have
/// the outcome of what it had under way ([`StreamAppender::flush`](crate::StreamAppender::flush)), and take the
/// cursor from the store again.
///
/// There are three ways to commit:
///
/// * [`Cursor::commit`] waits until the mark is durable. What was done before it must be durable
///   before: the consumer sees each event *at least once*.
/// * [`Cursor::commit_relaxed`] does not wait, and marks that come together share a record. After a crash the
///   consumer sees the newest events again, those since the last mark that was durable.
/// * [`Batch::mark`](crate::Batch::mark) puts the mark in the batch of events that the consumer makes of what
///   it reads. Both count or neither, so the consumer acts *exactly once*.
///
/// That holds for one consumer at a time. Where a second may run, let the place of what they append decide
/// ([`NewEvent::if_local`](crate::NewEvent::if_local)): look where the stream ends, then where the cursor is, then
/// append at that end. The batch of whoever is late is rejected, with its mark, and it starts over.
///
/// ```
/// use thalweg::{Ack, AppenderOptions, Batch, Event, Store};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let store = Store::open(dir.path().join("data"))?;
/// # let orders = store.appender_with("orders", AppenderOptions::new().ack(Ack::Ordered))?;
/// # orders.append("two apples")?.wait()?;
/// let cursor = store.cursor("invoices")?;
/// let invoices = store.appender("invoices")?;
/// for event in store.read(cursor.at()..)? {
///     let event = event?;
///     let mut batch = Batch::new();
///     if event.stream() == b"orders" {
///         // Named after what it is made of: whoever makes it again makes a duplicate.
///         batch.push(Event::new("an invoice").id(event.id()));
///     }
///     invoices.submit(batch.mark("invoices", event.global() + 1))?.wait()?;
/// }
/// # store.wait_committed(store.durable_end())?;
/// # assert_eq!(cursor.at(), 1);
/// # assert_eq!(cursor.lag(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cursor {
    shared: Arc<Shared>,
}

struct Shared {
    name: Box<[u8]>,
    core: Arc<Core>,
    /// For marks that somebody waits for, and for those that nobody does.
    ordered: MixedAppender,
    durable: MixedAppender,
    relaxed: Mutex<Relaxed>,
}

/// Commits that nobody waits for. At most one mark is under way; those that come meanwhile are one.
#[derive(Debug, Default)]
struct Relaxed {
    wanted: u64,
    under_way: bool,
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("name", &self.name().escape_ascii().to_string())
            .field("at", &self.at())
            .finish_non_exhaustive()
    }
}

/// A cursor, as [`Store::cursors`](crate::Store::cursors) lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CursorInfo {
    /// Its name.
    pub name: Vec<u8>,
    /// Global sequence of the next event that its consumer wants.
    pub at: u64,
    /// Number of delivered events from there on.
    pub lag: u64,
}

impl Cursor {
    /// Most cursors that a store has. A mark that would make one more is refused.
    pub const COUNT_MAX: usize = 4096;

    pub(crate) fn new(
        core: &Arc<Core>,
        name: &[u8],
        durable: &MixedAppender,
        ordered: &MixedAppender,
    ) -> Result<Self, CursorError> {
        if !(1..=STREAM_LEN_MAX).contains(&name.len()) {
            let limit = LimitError::Cursor { len: name.len() };
            return Err(CursorError::Refused(Refusal::Limit(limit)));
        }
        // What is durable and not ordered yet, after a crash above all, may have marks.
        if core.committed.wait_for(core.durable.get()).is_err() {
            return Err(CursorError::Ended(core.ended()));
        }
        let (durable, ordered) = (durable.clone(), ordered.clone());
        let (core, relaxed) = (Arc::clone(core), Mutex::new(Relaxed::default()));
        Ok(Cursor {
            shared: Arc::new(Shared { name: name.into(), core, ordered, durable, relaxed }),
        })
    }

    /// Name of the cursor.
    pub fn name(&self) -> &[u8] {
        &self.shared.name
    }

    /// Global sequence of the next event that the consumer wants, by the newest mark that counts; 0 if there
    /// is none. Never blocks.
    pub fn at(&self) -> u64 {
        self.shared.core.cursors.lock().get(&*self.shared.name).copied().unwrap_or(0)
    }

    /// Number of delivered events from there on. Never blocks.
    pub fn lag(&self) -> u64 {
        let at = self.at();
        self.shared.core.delivered.get() - at
    }

    /// Says that everything below the global sequence `next` is done. Blocks until the mark is durable and
    /// the cursor is there; commits and appends that come together share one sync. Nothing is written if the
    /// cursor is there already.
    ///
    /// # Errors
    ///
    /// `next` is beyond what is delivered, there are too many cursors, the store is open for reading only,
    /// closed or stopped, or the mark is not known to be stored. The cursor is then where it was, or, where the
    /// error says that nobody knows, there or at `next`.
    pub fn commit(&self, next: u64) -> Result<(), CursorError> {
        self.check(next)?;
        if self.is_at(next) {
            return Ok(());
        }
        self.put(MarkChange::Advance(next))
    }

    /// As [`Cursor::commit`], and does not wait for the disk: the mark is durable soon, or after the next
    /// commit. At most one such mark of a handle and its clones is under way; those that come meanwhile become
    /// one, so the log grows with the number of syncs and not of calls. Blocks at most for room in the store's queue.
    ///
    /// A mark that cannot be stored is tried again with the next one. After a crash the cursor may be further
    /// down, never up. [`Cursor::flush`] waits for everything; a store that closes does not.
    ///
    /// # Errors
    ///
    /// `next` is beyond what is delivered, or the store is open for reading only, closed or stopped. In a
    /// callback, [`Refusal::Full`] if the store's queue is: the next commit takes this one along.
    pub fn commit_relaxed(&self, next: u64) -> Result<(), CursorError> {
        self.check(next)?;
        if self.is_at(next) {
            return Ok(());
        }
        {
            let mut relaxed = self.shared.relaxed.lock();
            relaxed.wanted = relaxed.wanted.max(next);
            if relaxed.under_way {
                return Ok(());
            }
            relaxed.under_way = true;
        }
        send(&self.shared).map_err(CursorError::Refused)
    }

    /// Blocks until all commits that this handle and its clones have made before are durable.
    ///
    /// # Errors
    ///
    /// As for [`Cursor::commit`].
    pub fn flush(&self) -> Result<(), CursorError> {
        let wanted = self.shared.relaxed.lock().wanted;
        if wanted == 0 { Ok(()) } else { self.commit(wanted) }
    }

    /// Takes the cursor to `next`, up or down: its consumer sees again what is delivered from there on. Blocks
    /// until that is durable. Commits that are under way may come behind it and take the cursor up again, so
    /// the consumer has to be stopped before.
    ///
    /// # Errors
    ///
    /// As for [`Cursor::commit`].
    pub fn reset(&self, next: u64) -> Result<(), CursorError> {
        self.check(next)?;
        self.shared.relaxed.lock().wanted = 0;
        self.put(MarkChange::Reset(next))
    }

    /// Takes the cursor away, if it is there: it is not listed any more, and at 0. Blocks until that is
    /// durable. As with [`Cursor::reset`], the consumer has to be stopped before.
    ///
    /// # Errors
    ///
    /// As for [`Cursor::commit`].
    pub fn remove(&self) -> Result<(), CursorError> {
        self.shared.relaxed.lock().wanted = 0;
        self.put(MarkChange::Remove)
    }

    fn check(&self, next: u64) -> Result<(), CursorError> {
        let delivered = self.shared.core.delivered.get();
        if next > delivered {
            return Err(CursorError::Undelivered { next, delivered });
        }
        Ok(())
    }

    /// Whether there is nothing to write.
    fn is_at(&self, next: u64) -> bool {
        // A cursor at 0 may not be there yet.
        next > 0 && next <= self.at()
    }

    /// Appends a mark, and waits for what becomes of it.
    fn put(&self, change: MarkChange) -> Result<(), CursorError> {
        let submitted = self.shared.ordered.submit(self.shared.batch(change));
        let ticket = submitted.map_err(|refused| CursorError::Refused(refused.reason))?;
        let receipt = ticket.wait().map_err(CursorError::Failed)?;
        match receipt.placements.first() {
            Some(Placement::Marked { .. }) => Ok(()),
            Some(Placement::Rejected { reason: Rejection::Cursors, .. }) => {
                Err(CursorError::TooMany)
            }
            _ => Err(CursorError::Undecided),
        }
    }
}

impl Shared {
    fn batch(&self, change: MarkChange) -> MixedBatch {
        let mut batch = EncodedBatch::new();
        batch.push_mark(&self.name, change).expect("the name was checked, and one mark is short");
        MixedBatch::from_encoded(batch)
    }
}

/// Sends a mark for what is wanted. The caller has set `under_way`.
fn send(shared: &Arc<Shared>) -> Result<(), Refusal> {
    let wanted = shared.relaxed.lock().wanted;
    let told = Arc::clone(shared);
    let callback = move |outcome: Outcome| {
        {
            let mut relaxed = told.relaxed.lock();
            // After a failure the next commit tries again.
            relaxed.under_way = outcome.is_ok() && relaxed.wanted > wanted;
            if !relaxed.under_way {
                return;
            }
        }
        // Full, or closed: as after a failure.
        let _ = send(&told);
    };
    let sent = shared.durable.submit_with(shared.batch(MarkChange::Advance(wanted)), callback);
    sent.map_err(|refused| {
        shared.relaxed.lock().under_way = false;
        refused.reason
    })
}

/// All cursors, sorted by name.
pub(crate) fn list(core: &Core) -> Vec<CursorInfo> {
    let cursors = core.cursors.lock().clone();
    // After that: what is delivered is never less than where a cursor is.
    let delivered = core.delivered.get();
    let info = |(name, at): (Vec<u8>, u64)| CursorInfo { name, at, lag: delivered - at };
    cursors.into_iter().map(info).collect()
}
