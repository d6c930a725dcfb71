//! The serial machine of a log that was trimmed: it begins with what there was, and asks about what was delivered
//! before.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use super::{SerialEvent, SerialMachine, Stream};

/// Answers for the deliveries that were trimmed.
pub(crate) trait Trimmed: Debug + Send + Sync {
    /// Global sequence of the event, if it was delivered.
    fn global(&self, stream: &[u8], id: &[u8]) -> Option<u64>;

    /// Whether the event that was delivered with this id is the same; nothing if none was.
    fn is_same(&self, event: &SerialEvent) -> Option<bool>;
}

/// What was delivered to a stream before the machine began: nothing, if it began with the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Past {
    /// Local sequences of the tips that there were.
    tips: HashMap<Vec<u8>, u64>,
    known: Option<(Vec<u8>, Arc<dyn Trimmed>)>,
}

impl Past {
    pub(super) fn global(&self, id: &[u8]) -> Option<u64> {
        self.known.as_ref().and_then(|(stream, trimmed)| trimmed.global(stream, id))
    }

    pub(super) fn is_same(&self, event: &SerialEvent) -> Option<bool> {
        self.known.as_ref().and_then(|(_, trimmed)| trimmed.is_same(event))
    }

    pub(super) fn tip(&self, id: &[u8]) -> Option<u64> {
        self.tips.get(id).copied()
    }
}

impl SerialMachine {
    /// A machine that begins where so many events are delivered, the ids of so many are forgotten, and the
    /// cursors are there.
    pub(crate) fn begin(first: u64, forgotten: u64, cursors: BTreeMap<Vec<u8>, u64>) -> Self {
        SerialMachine { first, forgotten, cursors, ..SerialMachine::default() }
    }

    /// Adds a stream as it is at the beginning, with its tips by their local sequences.
    pub(crate) fn begin_stream(
        &mut self,
        name: &[u8],
        delivered: u64,
        tips: BTreeMap<u64, Vec<u8>>,
        sealed: bool,
        trimmed: &Arc<dyn Trimmed>,
    ) {
        let places = tips.iter().map(|(&local, id)| (id.clone(), local)).collect();
        let known = (delivered > 0).then(|| (name.to_vec(), Arc::clone(trimmed)));
        let past = Past { tips: places, known };
        let forgotten = self.forgotten;
        let stream = Stream { past, tips, delivered, sealed, forgotten, ..Stream::default() };
        self.streams.insert(name.to_vec(), stream);
    }

    /// Has the readers of a stream that was added begin there.
    pub(crate) fn begin_readers(&mut self, name: &[u8], first: u64) {
        self.streams.entry(name.to_vec()).or_default().first = first;
    }

    /// Ids of the tips of a stream, by their local sequences.
    pub(crate) fn tips_by_local(&self, stream: &[u8]) -> BTreeMap<u64, Vec<u8>> {
        self.streams.get(stream).map_or_else(BTreeMap::new, |stream| stream.tips.clone())
    }

    /// Adds an event that is held at the beginning, and waits for this one of its parents, as they are listed. Its
    /// stream, if it is there then, is added.
    pub(crate) fn begin_held(
        &mut self,
        position: u64,
        event: SerialEvent,
        waits_for: usize,
        is_lost: bool,
    ) {
        let stream = self.streams.entry(event.stream.clone()).or_default();
        stream.hold(position, event, waits_for, is_lost);
    }
}
