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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contenders::PEERS;
    use crate::payload::Batches;

    const BATCH: usize = 3;
    const PAYLOAD: usize = 100;

    fn setup(name: &str) -> Setup {
        let dir = format!("thalweg-peers-test-{}-{name}", std::process::id());
        let dir = std::env::temp_dir().join(dir);
        std::fs::create_dir(&dir).unwrap();
        Setup { dir, durable: true, threads: 2, streams: 2, byte_max: 1 << 20 }
    }

    /// Appends two batches as thread 0 and one as thread 1, under way at once where that is possible.
    fn append(peer: &Peer, setup: &Setup) {
        let pool = Pool::new(PAYLOAD, BATCH);
        let contender = (peer.open)(setup).unwrap();
        for (thread, batches) in [2, 1].into_iter().enumerate() {
            let mut made = Batches::new(&pool, thread as u32, BATCH);
            let mut session = contender.session(thread).unwrap();
            for _ in 0..batches {
                match peer.pipelined {
                    true => session.submit(made.next()).unwrap(),
                    false => session.append(made.next()).unwrap(),
                }
            }
            if peer.pipelined {
                (0..batches).for_each(|_| session.wait().unwrap());
            }
        }
        contender.settle().unwrap();
        contender.close().unwrap();
    }

    /// Everybody keeps what was acknowledged, and one event more, or less, or other, is seen.
    #[test]
    fn what_is_there_is_right_and_what_is_missing_is_not() {
        // walrus takes its directory from the environment of its process.
        for peer in PEERS.iter().filter(|peer| peer.name != "walrus") {
            let setup = setup(peer.name);
            append(peer, &setup);
            let wrong = |acknowledged: [u64; 2], payload| {
                let spec = Spec {
                    contender: peer.name.to_owned(),
                    setup: setup.clone(),
                    batch: BATCH,
                    payload,
                    acknowledged: acknowledged.into(),
                    outcome: PathBuf::new(),
                };
                check(&spec).err().map(|error| error.to_string())
            };
            assert_eq!(wrong([6, 3], PAYLOAD), None, "{}", peer.name);
            for acknowledged in [[7, 3], [5, 3], [3, 6]] {
                assert!(wrong(acknowledged, PAYLOAD).is_some(), "{}", peer.name);
            }
            assert!(wrong([6, 3], PAYLOAD + 1).is_some(), "{}", peer.name);
            std::fs::remove_dir_all(&setup.dir).unwrap();
        }
    }
}
