//! Without the feature `tracing`: nothing, in the shape of `trace.rs`.

use std::fmt::Debug;
use std::io;

use thalweg_wal::storage::Storage;

use crate::error::Cause;

/// A span that the thread is in.
#[derive(Debug)]
#[must_use]
pub(crate) struct Entered;

pub(crate) fn opening(_: &dyn Storage, _: bool) -> Entered {
    Entered
}

#[derive(Debug)]
pub(crate) struct Tracer;

impl Tracer {
    pub(crate) fn new(_: &dyn Storage, _: u64) -> Self {
        Tracer
    }

    pub(crate) fn recovered(&self, _: &str, _: u64, _: u64) {}
    pub(crate) fn rolled(&self, _: u64) {}
    pub(crate) fn discovered(&self, _: u64) {}

    pub(crate) fn checkpointing(&self, _: u64) -> Entered {
        Entered
    }

    pub(crate) fn checkpointed(&self, _: Option<&io::Error>) {}

    pub(crate) fn merging(&self, _: usize) -> Entered {
        Entered
    }

    pub(crate) fn merged(&self, _: Result<u64, &dyn Debug>) {}
    pub(crate) fn retrying(&self, _: &io::Error) {}
    pub(crate) fn failed(&self, _: &Cause) {}

    pub(crate) fn closing(&self) -> Entered {
        Entered
    }

    pub(crate) fn closed(&self, _: Option<&Cause>) {}
}

pub(crate) fn backing_up(_: &dyn Storage) -> Entered {
    Entered
}

pub(crate) fn repairing(_: &dyn Storage) -> Entered {
    Entered
}
