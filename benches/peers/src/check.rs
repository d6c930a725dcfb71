//! Opens the store of a cell again and reads back all of it, in another process.

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::contenders::{Peer, Setup};
use crate::payload::Pool;

/// What is checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) contender: String,
    pub(crate) setup: Setup,
    pub(crate) batch: usize,
    pub(crate) payload: usize,
    /// Events that were acknowledged to each thread.
    pub(crate) acknowledged: Vec<u64>,
    /// Where the outcome is written to.
    pub(crate) outcome: PathBuf,
}

/// What the check found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Opening, reading every event, and comparing it byte for byte.
    pub(crate) reopen_read_s: f64,
    /// Why the store is wrong, if it is.
    pub(crate) wrong: Option<String>,
}

/// Runs the check and writes its outcome.
pub(crate) fn run(spec: &Spec) -> Result<(), Failure> {
    let begun = Instant::now();
    let wrong = check(spec).err().map(|error| error.to_string());
    let outcome = Outcome { reopen_read_s: begun.elapsed().as_secs_f64(), wrong };
    Ok(std::fs::write(&spec.outcome, serde_json::to_vec(&outcome)?)?)
}

/// Every event that was acknowledged is there, once, unchanged, in its thread's order, and nothing
/// else is.
fn check(spec: &Spec) -> Result<(), Failure> {
    let pool = Pool::new(spec.payload, spec.batch);
    let mut next = vec![0; spec.acknowledged.len()];
    let peer = Peer::named(&spec.contender)?;
    (peer.read_back)(&spec.setup, &mut |payload| {
        let (thread, number) = pool.check(payload)?;
        let next = next.get_mut(thread as usize).ok_or_else(|| format!("thread {thread}"))?;
        if *next != number {
            return Err(format!("thread {thread}: event {number} instead of {next}").into());
        }
        *next += 1;
        Ok(())
    })?;
    if next == spec.acknowledged {
        return Ok(());
    }
    let (read, acknowledged): (u64, u64) = (next.iter().sum(), spec.acknowledged.iter().sum());
    Err(format!("{read} events were read, {acknowledged} were acknowledged").into())
}
