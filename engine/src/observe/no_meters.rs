//! Without the feature `metrics`: nothing, in the shape of `meters.rs`.

use std::time::Duration;

use thalweg_wal::storage::Storage;

use super::Frame;
use crate::pipeline::core::{Counts, Queues};

#[derive(Debug)]
pub(super) struct Meters;

impl Meters {
    pub(super) fn new(_: Option<&dyn Storage>) -> Self {
        Meters
    }

    pub(super) fn wrote(&self, _: Frame, _: Duration) {}
    pub(super) fn synced(&self, _: Duration) {}
    pub(super) fn durable(&self, _: Frame, _: &Queues) {}
    pub(super) fn scanned(&self, _: Duration) {}
    pub(super) fn ordered(&self, _: Duration, _: &Counts) {}
    pub(super) fn committed(&self, _: Duration, _: u64, _: u64) {}
    pub(super) fn retried(&self) {}
    pub(super) fn checkpointed(&self, _: Duration) {}
    pub(super) fn failed(&self) {}
}
