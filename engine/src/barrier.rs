//! Barriers: waiting until readers can see what somebody knows of.

use std::time::Instant;

use crate::error::ReadError;
use crate::event::Receipt;
use crate::pipeline::core::Core;
use crate::pipeline::subscriber::Reader;
use crate::sync::{Arc, WaitError, Watermark};

/// What to wait for until readers can see it. Taken by [`Store::wait_for`](crate::Store::wait_for), and made
/// from what a consumer is told by whoever has appended.
///
/// Read your own writes, from whatever thread:
///
/// ```
/// use thalweg::{Barrier, Batch, Event, Store};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let store = Store::open(dir.path().join("data"))?;
/// let orders = store.appender("orders-42")?;
/// let receipt = orders.submit(Batch::from([Event::new("paid").id("p")]))?.wait()?; // durable
///
/// store.wait_for(&receipt)?; // and ordered: everything in its batch that can be delivered is
/// assert!(store.get("orders-42", "p")?.is_some());
///
/// // Whoever has only heard of the event can wait for it, before it is appended too.
/// store.wait_for(Barrier::Event { stream: b"orders-42", id: b"p" })?;
/// store.wait_for(Barrier::Sequence(0))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Barrier<'a> {
    /// Everything in the log below this position, in bytes, is ordered: it is delivered, or held, or will never
    /// be. As [`Store::wait_committed`](crate::Store::wait_committed). What a [`Receipt`] makes.
    Position(u64),
    /// The event with this global sequence is delivered.
    Sequence(u64),
    /// The event with this id is delivered. It need not be appended yet; if it never is, or is rejected or held
    /// for ever, this waits as long.
    Event {
        /// Name of the stream.
        stream: &'a [u8],
        /// Id of the event.
        id: &'a [u8],
    },
}

impl From<&Receipt> for Barrier<'_> {
    fn from(receipt: &Receipt) -> Self {
        Barrier::Position(receipt.end)
    }
}

impl Barrier<'_> {
    /// Waits, until `deadline` if there is one; tells whether it can be seen.
    pub(crate) fn wait(
        self,
        core: &Arc<Core>,
        deadline: Option<Instant>,
    ) -> Result<bool, ReadError> {
        match self {
            Barrier::Position(position) => reach(core, &core.committed, position, deadline),
            Barrier::Sequence(u64::MAX) => reach(core, &core.delivered, u64::MAX, deadline),
            Barrier::Sequence(sequence) => reach(core, &core.delivered, sequence + 1, deadline),
            Barrier::Event { stream, id } => {
                let places = core.arrivals.of(core.keys.stream(stream));
                loop {
                    // Before the look: what comes behind it is above that.
                    let delivered = core.delivered.get();
                    if Reader::new(core).find(stream, id)?.is_some() {
                        return Ok(true);
                    }
                    let reached = reach(core, places, delivered + 1, deadline);
                    if !matches!(reached, Ok(true)) {
                        // Readers see more before those are woken who wait for it.
                        return if Reader::new(core).find(stream, id)?.is_some() {
                            Ok(true)
                        } else {
                            reached
                        };
                    }
                }
            }
        }
    }
}

fn reach(
    core: &Core,
    watermark: &Watermark,
    target: u64,
    deadline: Option<Instant>,
) -> Result<bool, ReadError> {
    let reached = match deadline {
        Some(deadline) => watermark.wait_deadline(target, deadline),
        None => watermark.wait_for(target).map_err(|_| WaitError::Failed),
    };
    match reached {
        Ok(_) => Ok(true),
        Err(WaitError::TimedOut) => Ok(false),
        Err(WaitError::Failed) => Err(core.ended()),
    }
}
