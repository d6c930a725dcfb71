//! The whole engine on a simulated disk, its threads one at a time: a seed decides what is done to the
//! store, what fails, when the machine stops and what that leaves, and which thread goes on at every step.
//!
//! `THALWEG_SEED=7` runs that one seed, and runs it again in the same way; `THALWEG_ROUNDS=100000` runs
//! so many, from the given seed or from 0 on. A long run:
//!
//! ```sh
//! THALWEG_SEED=$RANDOM$RANDOM THALWEG_ROUNDS=100000 cargo test -p thalweg-sim --test simulation seeds -- --nocapture
//! ```

#![allow(unreachable_pub, reason = "one binary")]

extern crate thalweg_sim as thalweg;

#[path = "../../../tests/common/mod.rs"]
mod common;
mod damage;
#[path = "../../../../wal/tests/common/disk.rs"]
mod disk;
mod following;
mod model;
mod scenario;
mod workload;

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use lockstep::Summary;
use scenario::Report;

/// How many seeds a run has that is not told.
const ROUNDS: u64 = 2000;

fn run(seed: u64) -> (Report, Summary) {
    catch_unwind(|| lockstep::run(seed, || scenario::run(seed))).unwrap_or_else(|panic| {
        eprintln!("\nTHALWEG_SEED={seed} fails\n");
        std::panic::resume_unwind(panic)
    })
}

fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} takes a number, not {text}")))
}

#[test]
fn seeds() {
    let (seed, rounds) = (number_from("THALWEG_SEED"), number_from("THALWEG_ROUNDS"));
    let rounds = rounds.unwrap_or(if seed.is_some() { 1 } else { ROUNDS });
    let first = seed.unwrap_or(0);
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let sum = Mutex::new((Report::default(), 0, 0));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + rounds || failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let (report, summary) = catch_unwind(|| run(seed)).unwrap_or_else(|panic| {
                        failed.store(true, Ordering::Relaxed);
                        std::panic::resume_unwind(panic)
                    });
                    let mut sum = sum.lock().expect("no panic while locked");
                    sum.0.add(&report);
                    sum.1 += summary.steps;
                    sum.2 += summary.switches;
                }
            });
        }
    });
    let (report, steps, switches) = sum.into_inner().expect("no panic while locked");
    println!("{rounds} seeds from {first} on in {:?}: {report:?}", begun.elapsed());
    println!("{steps} steps, {switches} turns handed on");
    if rounds >= ROUNDS {
        // A simulation that does nothing finds nothing.
        assert!(report.crashes > rounds / 2 && report.reopened > rounds / 2, "{report:?}");
        assert!(report.faults > rounds && report.rolled > rounds / 4, "{report:?}");
        assert!(report.acknowledged > 4 * rounds && report.delivered > 10 * rounds, "{report:?}");
        assert!(report.followers > rounds / 4, "{report:?}");
    }
}

/// What makes a seed worth printing.
#[test]
fn a_seed_gives_the_same_run_every_time() {
    for seed in 0..20 {
        let first = run(seed);
        assert_eq!(first, run(seed), "seed {seed}");
    }
}
