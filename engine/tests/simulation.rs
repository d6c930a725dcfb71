//! The scenarios of the simulation on the threads, locks and channels that ship, in whatever order the
//! machine runs them. A seed decides what is done and what fails, but not the schedule: see
//! `sim/tests/simulation` for that. `THALWEG_SEED` and `THALWEG_ROUNDS` are as there.

#![allow(unreachable_pub, reason = "one binary")]

mod common;
#[path = "../sim/tests/simulation/damage.rs"]
mod damage;
#[path = "../../wal/tests/common/disk.rs"]
mod disk;
#[path = "../sim/tests/simulation/following.rs"]
mod following;
#[path = "../sim/tests/simulation/model.rs"]
mod model;
#[path = "../sim/tests/simulation/scenario.rs"]
mod scenario;
#[path = "../sim/tests/simulation/workload.rs"]
mod workload;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How many seeds a run has that is not told.
const ROUNDS: u64 = 150;
/// No scenario takes this long.
const STUCK_AFTER: Duration = Duration::from_secs(60);

#[test]
fn seeds_on_real_threads() {
    let number_from = |name| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().expect("a number"))
    };
    let seed = number_from("THALWEG_SEED");
    let rounds = number_from("THALWEG_ROUNDS").unwrap_or(if seed.is_some() { 1 } else { ROUNDS });
    let first = seed.unwrap_or(0);
    let mut sum = scenario::Report::default();
    for seed in first..first + rounds {
        println!("THALWEG_SEED={seed}");
        let (sender, ended) = channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ends = sender;
            scenario::run(seed)
        });
        let waited = ended.recv_timeout(STUCK_AFTER);
        assert_eq!(waited, Err(RecvTimeoutError::Disconnected), "THALWEG_SEED={seed} hangs");
        let report = thread.join().unwrap_or_else(|_| panic!("THALWEG_SEED={seed} fails"));
        sum.add(&report);
    }
    println!("{sum:?}");
}
