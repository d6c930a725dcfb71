//! Spans and events, for the subscriber that the program has installed. All have the target `thalweg`.

use std::fmt::Debug;
use std::io;

use thalweg_wal::storage::Storage;
use tracing::span::EnteredSpan;
use tracing::{Span, debug, error, info, info_span, warn};

use crate::error::Cause;
use crate::sync::Mutex;

/// A span that the thread is in.
#[derive(Debug)]
#[must_use]
pub(crate) struct Entered {
    _span: EnteredSpan,
}

impl From<Span> for Entered {
    fn from(span: Span) -> Self {
        Entered { _span: span.entered() }
    }
}

/// A store is called what its directory is called.
fn name_of(storage: &dyn Storage) -> String {
    storage.describe("").trim_end_matches('/').to_owned()
}

pub(crate) fn opening(storage: &dyn Storage, read_only: bool) -> Entered {
    info_span!(target: "thalweg", "open", store = name_of(storage), read_only).into()
}

/// What is told of one store that is open, in a span that has its name and lasts as long.
#[derive(Debug)]
pub(crate) struct Tracer {
    store: Span,
    /// The span of the discovery, which one thread begins and another ends. One that is cut short ends with the store.
    discovery: Mutex<Option<Span>>,
}

impl Tracer {
    /// Of a store of whose log so many bytes are not in order.
    pub(crate) fn new(storage: &dyn Storage, unordered: u64) -> Self {
        let store = info_span!(target: "thalweg", parent: None, "store", store = name_of(storage));
        let discovery = (unordered > 0)
            .then(|| info_span!(target: "thalweg", parent: &store, "discovery", bytes = unordered));
        Tracer { store, discovery: Mutex::new(discovery) }
    }

    /// The log ends at `end`, of which `unordered` bytes are not in order.
    pub(crate) fn recovered(&self, recovery: &str, end: u64, unordered: u64) {
        info!(target: "thalweg", parent: &self.store, recovery, end, unordered, "recovered");
    }

    /// The log goes on in the segment that begins at `base`.
    pub(crate) fn rolled(&self, base: u64) {
        debug!(target: "thalweg", parent: &self.store, base, "rolled");
    }

    /// What the log held is in order.
    pub(crate) fn discovered(&self, delivered: u64) {
        if let Some(span) = self.discovery.lock().take() {
            info!(target: "thalweg", parent: &span, delivered, "discovered");
        }
    }

    /// A checkpoint of the log up to `position` is about to be written.
    pub(crate) fn checkpointing(&self, position: u64) -> Entered {
        info_span!(target: "thalweg", parent: &self.store, "checkpoint", position).into()
    }

    /// It is written, or not. In its span.
    pub(crate) fn checkpointed(&self, failure: Option<&io::Error>) {
        match failure {
            None => info!(target: "thalweg", "checkpoint written"),
            Some(error) => warn!(target: "thalweg", %error, "no checkpoint"),
        }
    }

    /// So many runs are about to become one.
    pub(crate) fn merging(&self, runs: usize) -> Entered {
        info_span!(target: "thalweg", parent: &self.store, "merge", runs).into()
    }

    /// They have become one with so many items, or not. In its span.
    pub(crate) fn merged(&self, merged: Result<u64, &dyn Debug>) {
        match merged {
            Ok(items) => debug!(target: "thalweg", items, "merged"),
            Err(error) => warn!(target: "thalweg", ?error, "not merged"),
        }
    }

    /// A write of the order has failed, and is made again.
    pub(crate) fn retrying(&self, error: &io::Error) {
        warn!(target: "thalweg", parent: &self.store, %error, "writing the order again");
    }

    /// The engine has stopped.
    pub(crate) fn failed(&self, cause: &Cause) {
        error!(target: "thalweg", parent: &self.store, %cause, "poisoned");
    }

    pub(crate) fn closing(&self) -> Entered {
        info_span!(target: "thalweg", parent: &self.store, "close").into()
    }

    /// In its span.
    pub(crate) fn closed(&self, cause: Option<&Cause>) {
        match cause {
            None => info!(target: "thalweg", "closed"),
            Some(cause) => warn!(target: "thalweg", %cause, "closed after a failure"),
        }
    }
}

pub(crate) fn backing_up(source: &dyn Storage) -> Entered {
    info_span!(target: "thalweg", "backup", store = name_of(source)).into()
}

pub(crate) fn repairing(storage: &dyn Storage) -> Entered {
    info_span!(target: "thalweg", "repair", store = name_of(storage)).into()
}
