//! What is compared: one file for each contender, and the list of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Failure;

#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "okaywal")]
mod okaywal;
#[cfg(feature = "raft-engine")]
mod raft_engine;
#[cfg(feature = "redb")]
mod redb;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "tephra")]
mod tephra;
mod thalweg;
#[cfg(feature = "walrus")]
mod walrus;

/// How a contender is opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Where it keeps its files. The directory is there; at first, it is empty.
    pub(crate) dir: PathBuf,
    /// Whether an acknowledged append survives power loss, or only the process.
    pub(crate) durable: bool,
    /// Number of threads that append.
    pub(crate) threads: usize,
    /// Number of streams that they append to.
    pub(crate) streams: usize,
    /// About how many bytes of payload are appended at most.
    pub(crate) byte_max: u64,
}

/// An open store that threads append to.
pub(crate) trait Contender: Sync {
    /// What one thread appends with. Made on that thread.
    fn session(&self, thread: usize) -> Result<Box<dyn Session + '_>, Failure>;

    /// Waits until everything acknowledged can be read, where reading lags behind.
    fn settle(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Where appends have spent their time, as the contender itself has measured it.
    fn spans(&self) -> Spans {
        Spans::default()
    }

    /// Closes it as its authors would, after all sessions are gone.
    fn close(self: Box<Self>) -> Result<(), Failure>;
}

/// What one thread appends with.
pub(crate) trait Session {
    /// Appends the batch, atomically where that is possible, and returns when it is acknowledged at
    /// the durability that the contender was opened with.
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure>;

    /// Hands the batch over and does not wait for the acknowledgement. For [`Peer::pipelined`] only.
    fn submit(&mut self, _batch: &[Vec<u8>]) -> Result<(), Failure> {
        Err("is not pipelined".into())
    }

    /// Waits for the acknowledgement of the oldest batch that was submitted and not waited for.
    fn wait(&mut self) -> Result<(), Failure> {
        Err("is not pipelined".into())
    }
}

/// Quantiles of a time, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p99_9: f64,
    pub(crate) max: f64,
}

/// The times that make up an append, where a contender measures them itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spans {
    /// Waiting for a free place in the pipeline.
    pub(crate) slot_wait_us: Option<Quantiles>,
    /// Waiting in the queue for the writer.
    pub(crate) queue_us: Option<Quantiles>,
    /// Of a group: being written.
    pub(crate) write_us: Option<Quantiles>,
    /// Of a group: being synced.
    pub(crate) sync_us: Option<Quantiles>,
    /// From the outcome to the end of the callback.
    pub(crate) callback_us: Option<Quantiles>,
}

/// Takes the payloads that are read back.
pub(crate) type Visit<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

/// What can be compared.
pub(crate) struct Peer {
    /// The name on the command line and in the rows.
    pub(crate) name: &'static str,
    /// The name in the lock file, which has the version.
    pub(crate) package: &'static str,
    /// Whether it can acknowledge without a sync.
    pub(crate) buffered: bool,
    /// Whether a thread can have several appends under way.
    pub(crate) pipelined: bool,
    /// Opens an empty store, or what was there.
    pub(crate) open: fn(&Setup) -> Result<Box<dyn Contender>, Failure>,
    /// Opens what was closed and shows every payload, each thread's in their order.
    pub(crate) read_back: fn(&Setup, &mut Visit<'_>) -> Result<(), Failure>,
}

/// Everything that was built in, in the order of the tables.
pub(crate) const PEERS: &[Peer] = &[
    thalweg::PEER,
    thalweg::CALLBACKS,
    thalweg::SPINNING,
    #[cfg(feature = "tephra")]
    tephra::PEER,
    #[cfg(feature = "raft-engine")]
    raft_engine::PEER,
    #[cfg(feature = "okaywal")]
    okaywal::PEER,
    #[cfg(feature = "walrus")]
    walrus::PEER,
    #[cfg(feature = "fjall")]
    fjall::PEER,
    #[cfg(feature = "redb")]
    redb::PEER,
    #[cfg(feature = "sqlite")]
    sqlite::PEER,
];

impl Peer {
    /// The peer of this name.
    pub(crate) fn named(name: &str) -> Result<&'static Peer, Failure> {
        let found = PEERS.iter().find(|peer| peer.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
            format!("no contender is named {name}; there are {}", names.join(", ")).into()
        })
    }

    /// The version that was built in.
    pub(crate) fn version(&self) -> &'static str {
        version_of(self.package)
    }
}

/// The version of a package, as the lock file has it; the newest, if there are several.
pub(crate) fn version_of(package: &str) -> &'static str {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let wanted = format!("name = \"{package}\"");
    let mut lines = LOCK.lines();
    let mut newest = "";
    while lines.by_ref().any(|line| line == wanted) {
        newest = lines.next().unwrap_or_default();
    }
    newest.trim_start_matches("version = ").trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_known() {
        for peer in PEERS {
            let version = peer.version();
            assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{}: {version}", peer.name);
        }
    }
}
