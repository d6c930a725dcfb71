//! Giving up held events whose parents will never come: by name, or by age.
//!
//! A discard is a record of the log, so what it does is decided by its place there and holds for ever. Nothing
//! here keeps state: a batch is made, and the order says what became of it.

use std::time::Duration;

use thalweg_wal::{DiscardReason, EncodedBatch, LimitError};

use crate::clock::Clock;
use crate::error::{DiscardError, Refusal};
use crate::event::Placement;
use crate::pipeline::appender::MixedAppender;
use crate::pipeline::lane::Passage;
use crate::questions::HeldEvent;

/// Bytes of discards that go into one batch when they need not be in one.
const BATCH_BYTES: u64 = 4 << 20;

/// What became of the events that were to be discarded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscardReport {
    /// Each of them, in the order in which they were named, or in the order of the log.
    pub events: Vec<DiscardedEvent>,
}

impl DiscardReport {
    /// Number of events that were held, and are discarded now.
    pub fn discarded(&self) -> u64 {
        let discarded = self.events.iter().filter(|event| event.fate == DiscardFate::Discarded);
        discarded.count() as u64
    }
}

/// An event that was to be discarded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscardedEvent {
    /// Name of the stream.
    pub stream: Vec<u8>,
    /// Id of the event.
    pub id: Vec<u8>,
    /// What became of it.
    pub fate: DiscardFate,
}

/// What a discard found, and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiscardFate {
    /// The event was held. It will never be delivered, and its id is free.
    Discarded,
    /// The event is delivered. Nothing has changed.
    Delivered,
    /// The stream has no such event: it never arrived, was rejected, or is discarded already. Nothing has
    /// changed.
    Unknown,
}

/// Those of these events that have been held for longer than `longest`.
pub(crate) fn expired(held: Vec<HeldEvent>, longest: Duration, clock: &Clock) -> Vec<HeldEvent> {
    let now = clock.now();
    let is_expired = |event: &HeldEvent| event.age(now).is_some_and(|age| age > longest);
    held.into_iter().filter(is_expired).collect()
}

/// Discards these events, `(stream, id)`, in one batch, or in several if they need not be in one.
pub(crate) fn discard(
    appender: &MixedAppender,
    events: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    reason: DiscardReason,
    in_one_batch: bool,
) -> Result<DiscardReport, DiscardError> {
    let (mut batch, mut pending) = (EncodedBatch::new(), Vec::new());
    let mut report = DiscardReport::default();
    for (stream, id) in events {
        let limit = |error: LimitError| DiscardError::from(Refusal::Limit(error));
        batch.push_discard(&stream, &id, reason).map_err(limit)?;
        pending.push((stream, id));
        if !in_one_batch && batch.byte_len() >= BATCH_BYTES {
            let (batch, pending) = (std::mem::take(&mut batch), std::mem::take(&mut pending));
            report.events.extend(submit(appender, batch, pending)?);
        }
    }
    if !batch.is_empty() {
        report.events.extend(submit(appender, batch, pending)?);
    }
    Ok(report)
}

fn submit(
    appender: &MixedAppender,
    batch: EncodedBatch,
    events: Vec<(Vec<u8>, Vec<u8>)>,
) -> Result<Vec<DiscardedEvent>, DiscardError> {
    let receipt = appender.submit_control(batch, Passage::Append)?.wait()?;
    let event = |((stream, id), placement)| {
        let fate = match placement {
            Placement::Discarded => DiscardFate::Discarded,
            Placement::NotHeld { delivered: true } => DiscardFate::Delivered,
            Placement::NotHeld { delivered: false } => DiscardFate::Unknown,
            _ => return Err(DiscardError::Undecided),
        };
        Ok(DiscardedEvent { stream, id, fate })
    };
    events.into_iter().zip(receipt.placements).map(event).collect()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn an_age_is_never_negative_and_unknown_if_the_time_is() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        let held = |since| HeldEvent {
            stream: b"s".to_vec(),
            id: b"a".to_vec(),
            position: 8,
            missing: vec![b"p".to_vec()],
            since,
        };
        assert_eq!(held(Some(at(300))).age(at(1000)), Some(Duration::from_millis(700)));
        assert_eq!(held(Some(at(3000))).age(at(1000)), Some(Duration::ZERO));
        assert_eq!(held(None).age(at(1000)), None);
        let all = || vec![held(Some(at(300))), held(None), held(Some(at(3000)))];
        let clock = Clock::new(move || at(1000));
        let count = |longest| expired(all(), Duration::from_millis(longest), &clock).len();
        assert_eq!((count(0), count(699), count(700)), (1, 1, 0));
    }
}
