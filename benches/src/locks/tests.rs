use std::time::{Duration, Instant};

use super::contenders::{self, Mix, Turns};
use super::report::{self, Machine, Spread};
use super::window::{Sample, Switches, is_side_by_side};
use super::{Case, Pace, Plan, measure, order, thread_counts, verify};

#[test]
fn threads_double_up_to_the_number_asked_for() {
    assert_eq!(thread_counts(1), [1]);
    assert_eq!(thread_counts(2), [1, 2]);
    assert_eq!(thread_counts(6), [1, 2, 4, 6]);
    assert_eq!(thread_counts(8), [1, 2, 4, 8]);
}

#[test]
fn each_lock_is_first_in_its_turn_and_runs_once_per_mix_and_round() {
    assert_eq!(
        order(2, 2, 2),
        [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 0), (1, 3), (1, 2)],
        "(round, case); cases 0 and 1 are of the first mix"
    );
}

/// The places of the first writes among the operations of a thread.
fn writes(mix: Mix, thread: usize, threads: usize, operations: usize) -> Vec<usize> {
    let mut turns = Turns::new(mix, thread, threads);
    let writes: Vec<usize> = (0..operations).filter(|_| turns.next_is_write()).collect();
    assert_eq!(turns.writes, writes.len() as u64);
    writes
}

#[test]
fn writes_come_at_their_rate_and_not_on_all_threads_at_once() {
    assert_eq!(writes(Mix::ReadsPerWrite(4), 0, 2, 15), [2, 7, 12]);
    assert_eq!(writes(Mix::ReadsPerWrite(4), 1, 2, 15), [4, 9, 14]);
    assert_eq!(writes(Mix::WritesOnly, 1, 2, 3), [0, 1, 2]);
    assert!(writes(Mix::ReadsOnly, 0, 64, 1000).is_empty());
}

fn undisturbed(begun: Instant) -> Sample {
    let time = Duration::from_micros(300);
    Sample { begun, wall: time, cpu: time, operations: 1, switches: Switches::default() }
}

#[test]
fn a_window_counts_if_all_threads_ran_side_by_side() {
    let now = Instant::now();
    let good = undisturbed(now);
    let late = undisturbed(now + Duration::from_micros(30));
    let preempted = Switches { voluntary: 0, involuntary: 1 };
    let preempted = Sample { switches: preempted, ..good };
    let stolen = Sample { cpu: good.cpu / 2, ..good };
    let slept = Switches { voluntary: 1, involuntary: 0 };
    let slept = Sample { switches: slept, ..stolen };

    assert!(is_side_by_side(&[&good, &good]));
    assert!(is_side_by_side(&[&good, &slept]), "to wait for a lock is part of what it costs");
    assert!(!is_side_by_side(&[&good, &late]), "ran alone at first");
    assert!(!is_side_by_side(&[&good, &preempted]));
    assert!(!is_side_by_side(&[&stolen, &good]), "lost half of its time, not of its own will");
}

#[test]
fn switches_are_told_apart() {
    let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
    assert_eq!(Switches::parse(status), Switches { voluntary: 150, involuntary: 545 });
    assert_eq!(Switches::parse(""), Switches::default());
}

#[test]
fn a_spread_has_its_quantiles_in_order() {
    let spread = Spread::of((0..=20).rev().map(f64::from).collect()).unwrap();
    assert_eq!(spread, Spread { median: 10.0, p10: 2.0, p90: 18.0 });
    let single = Spread::of(vec![7.0]).unwrap();
    assert_eq!(single, Spread { median: 7.0, p10: 7.0, p90: 7.0 });
    assert_eq!(Spread::of(Vec::new()), None);
}

#[test]
fn a_lost_write_and_a_torn_read_fail_the_run() {
    for lock in contenders::all() {
        let case = Case { lock, mix: Mix::WritesOnly };
        let turns = |writes, torn| {
            let mut turns = Turns::new(case.mix, 0, 1);
            (turns.writes, turns.torn) = (writes, torn);
            turns
        };
        assert!(verify(&case, [turns(0, 0)].iter()).is_ok());
        assert!(verify(&case, [turns(1, 0)].iter()).is_err(), "written once and not there");
        assert!(verify(&case, [turns(0, 1)].iter()).is_err());
    }
}

#[test]
fn every_lock_holds_under_every_mix() {
    let plan = Plan { rounds: 2, ..Plan::COMPARE };
    // Whether a window counts depends on the machine; that all writes are there does not.
    for (threads, cores) in [(1, 1), (3, 3), (3, 1)] {
        let pace = Pace { windows: 1, ..Pace::of(threads, cores) };
        let rows = measure(&plan, pace).unwrap();
        assert_eq!(rows.len(), 4 * plan.mixes.len());
        for row in &rows {
            assert_eq!(row.windows, plan.rounds);
            let json = row.json(&Machine::look());
            assert_eq!(json.matches(['{', '}']).count(), 2, "{json}");
            assert!(row.mix != Mix::WritesOnly || row.writes > 0);
            assert_eq!(row.wall_ns.is_some(), row.kept > 0);
        }
        assert_eq!(report::table(&rows).lines().count(), 2 + plan.mixes.len() + 1);
    }
}
