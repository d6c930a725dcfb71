//! One cell: a contender discovers what is in its store.
//!
//! Runs in a process of its own, so that processor time, memory and reads are the cell's, and nothing
//! that a contender leaves behind reaches the next one.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::contenders::{Answer, Contender, Done, Setup};
use crate::machine::Used;

/// What a cell is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) contender: String,
    pub(crate) setup: Setup,
    /// Where the outcome is written to, and the order: four bytes of ordinal for each event.
    pub(crate) outcome: PathBuf,
    pub(crate) order: PathBuf,
}

/// What a cell has measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) used: Used,
    /// Queries for a parent, where there are any.
    pub(crate) lookups: Option<u64>,
    /// What was scanned, if nothing was ordered.
    pub(crate) scanned: Option<Scanned>,
}

/// What a contender has found that only scans.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Scanned {
    /// How often everything was scanned in the time.
    pub(crate) passes: u64,
    /// In one pass.
    pub(crate) bytes: u64,
    /// In one pass; none if it does not look for records.
    pub(crate) records: Option<u64>,
}

/// Runs the cell that the first word describes, and writes its outcome.
pub(crate) fn run(words: &[String]) -> Result<(), Failure> {
    let spec: Spec = serde_json::from_str(words.first().ok_or("there is no specification")?)?;
    let contender = Contender::named(&spec.contender)?;
    let Done { used, answer, lookups } = (contender.run)(&spec.setup)?;
    let scanned = match answer {
        Answer::Scanned(scanned) => Some(scanned),
        Answer::Order(order) => {
            let bytes: Vec<u8> = order.iter().flat_map(|event| event.to_le_bytes()).collect();
            std::fs::write(&spec.order, bytes)?;
            None
        }
    };
    let outcome = Outcome { used, lookups, scanned };
    Ok(std::fs::write(&spec.outcome, serde_json::to_vec(&outcome)?)?)
}

impl Spec {
    /// The order that the cell has written.
    pub(crate) fn read_order(&self) -> Result<Vec<u32>, Failure> {
        let bytes = std::fs::read(&self.order)?;
        let (words, rest) = bytes.as_chunks();
        match rest {
            [] => Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect()),
            _ => Err("the order is cut short".into()),
        }
    }
}
