//! Compares the engine's reader-biased lock with the reader-writer locks it could have used.
//!
//! ```text
//! thalweg-benches locks [compare|bias] [THREADS [ROUNDS]]
//! ```
//!
//! `compare`, which is the default, runs all locks on 1, 2, 4, .. THREADS threads (default: one per
//! core) under mixes from no writes to nothing but writes. `bias` runs the reader-biased lock,
//! beside one peer as the yardstick, under mixes that tell how many slow reads should precede the
//! return of the bias; that number is a constant of the engine, so each of its values is a build.
//! Each row is a line of JSON on stdout; a table of the medians follows on stderr.
//!
//! # How it measures
//!
//! The unit is a *window*: all threads leave a spin barrier at once and lock and unlock for a
//! fraction of a millisecond. A window counts if all threads truly ran side by side in it, which
//! `window.rs` decides; the loop that lacks that check measures, on a busy machine, threads that take
//! turns, and calls the contended case cheap. More threads than cores cannot run side by side: such
//! rows say `"parallel":false`, their windows are longer than a time slice, and all of them count.
//! Then the wall time holds the wait for a core, and the CPU time is the figure to look at.
//!
//! A *round* is some windows of each lock under each mix, with the locks in turn, so that what else
//! happens on the machine hits all alike. The first round warms up and is dropped. A figure is the
//! time of all threads by the operations of all threads in a round; a row gives its median over the
//! rounds and, as its spread, the 10th and the 90th percentile.
//!
//! An operation is a lock, the section and the unlock. The section compares or increments two
//! counters. No reader may find the two unequal, and at the end both have to be the number of writes.
//!
//! # What is deliberately not here
//!
//! No pinning, since the engine does not pin by default; a window in which two threads shared a core
//! does not count anyway. No long sections: the rules of the engine's lock forbid them.

mod contenders;
mod report;
mod window;

use std::thread;
use std::time::Duration;

use self::contenders::{Contender, Mix, Turns};
pub(crate) use self::report::Machine;
use self::report::Row;
use self::window::{Barrier, Sample, is_side_by_side};
use crate::Failure;

/// Rounds whose figures count, unless the command line says otherwise.
const ROUNDS: usize = 60;

/// What one run measures.
struct Plan {
    locks: fn() -> Vec<Box<dyn Contender>>,
    mixes: &'static [Mix],
    rounds: usize,
}

impl Plan {
    const COMPARE: Self = Self {
        locks: contenders::all,
        mixes: &[
            Mix::ReadsOnly,
            Mix::ReadsPerWrite(100_000),
            Mix::ReadsPerWrite(1_000),
            Mix::ReadsPerWrite(100),
            Mix::WritesOnly,
        ],
        rounds: ROUNDS,
    };
    const BIAS: Self = Self {
        locks: contenders::reader_biased_and_yardstick,
        mixes: &[
            Mix::ReadsPerWrite(10_000),
            Mix::ReadsPerWrite(1_000),
            Mix::ReadsPerWrite(100),
            Mix::ReadsPerWrite(10),
        ],
        rounds: ROUNDS,
    };
}

/// Runs the sub-command.
pub(crate) fn run(options: &[&str]) -> Result<(), Failure> {
    let (plan, numbers) = match options {
        ["bias", numbers @ ..] => (Plan::BIAS, numbers),
        ["compare", numbers @ ..] | numbers => (Plan::COMPARE, numbers),
    };
    let machine = Machine::look();
    let (threads_max, rounds) = match numbers {
        [] => (machine.cores, plan.rounds),
        [threads] => (threads.parse()?, plan.rounds),
        [threads, rounds] => (threads.parse()?, rounds.parse()?),
        _ => return Err(crate::USAGE.into()),
    };
    if threads_max == 0 || rounds == 0 {
        return Err("takes 1 <= THREADS and 1 <= ROUNDS".into());
    }
    let plan = Plan { rounds, ..plan };
    eprintln!("{machine}");
    for threads in thread_counts(threads_max) {
        let rows = measure(&plan, Pace::of(threads, machine.cores))?;
        rows.iter().for_each(|row| println!("{}", row.json(&machine)));
        eprint!("\n{}", report::table(&rows));
    }
    Ok(())
}

/// Powers of two up to `max`, and `max`.
fn thread_counts(max: usize) -> Vec<usize> {
    let powers = (0..usize::BITS).map(|power| 1 << power);
    powers.take_while(|&threads| threads < max).chain([max]).collect()
}

/// How a number of threads is measured.
#[derive(Debug, Clone, Copy)]
struct Pace {
    threads: usize,
    /// Whether each thread has a core, so that only windows spent side by side count.
    parallel: bool,
    window: Duration,
    /// Windows of a lock under a mix in a round.
    windows: usize,
}

impl Pace {
    /// Short enough that most windows end before something else wants a core.
    const WINDOW_PARALLEL: Duration = Duration::from_micros(300);
    /// Several time slices of a scheduler.
    const WINDOW_SHARED: Duration = Duration::from_millis(10);

    fn of(threads: usize, cores: usize) -> Self {
        if threads <= cores {
            Self { threads, parallel: true, window: Self::WINDOW_PARALLEL, windows: 20 }
        } else {
            Self { threads, parallel: false, window: Self::WINDOW_SHARED, windows: 2 }
        }
    }
}

/// One lock under one mix, from the first round to the last.
struct Case {
    lock: Box<dyn Contender>,
    mix: Mix,
}

/// What one thread did in one window.
struct Entry {
    case: usize,
    round: usize,
    sample: Sample,
}

/// What one thread did in the whole run.
struct Work {
    /// By case.
    turns: Vec<Turns>,
    /// In the order of the windows, which is the same for all threads.
    entries: Vec<Entry>,
}

fn measure(plan: &Plan, pace: Pace) -> Result<Vec<Row>, Failure> {
    let with_mix = |&mix| (plan.locks)().into_iter().map(move |lock| Case { lock, mix });
    let cases: Vec<Case> = plan.mixes.iter().flat_map(with_mix).collect();
    let order = order(plan.rounds + 1, plan.mixes.len(), cases.len() / plan.mixes.len());
    let barrier = Barrier::new(pace.threads, pace.parallel);
    let work: Vec<Work> = thread::scope(|scope| {
        let spawn = |thread| {
            let (cases, order, barrier) = (&cases, &order, &barrier);
            scope.spawn(move || take_part(thread, cases, order, barrier, pace))
        };
        let threads: Vec<_> = (0..pace.threads).map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("no part of it panics")).collect()
    });
    let row = |(index, case): (usize, &Case)| {
        verify(case, work.iter().map(|work| &work.turns[index]))?;
        Ok(row(case, index, &work, plan.rounds, pace))
    };
    cases.iter().enumerate().map(row).collect()
}

/// The cases of each round. All locks run under a mix before the next mix, each first in its turn.
fn order(rounds: usize, mixes: usize, locks: usize) -> Vec<(usize, usize)> {
    let mut order = Vec::with_capacity(rounds * mixes * locks);
    for round in 0..rounds {
        for mix in 0..mixes {
            order.extend((0..locks).map(|turn| (round, mix * locks + (round + turn) % locks)));
        }
    }
    order
}

/// The part of one thread in all windows.
fn take_part(
    thread: usize,
    cases: &[Case],
    order: &[(usize, usize)],
    barrier: &Barrier,
    pace: Pace,
) -> Work {
    let turns = cases.iter().map(|case| Turns::new(case.mix, thread, pace.threads)).collect();
    let entries = Vec::with_capacity(order.len() * pace.windows);
    let mut work = Work { turns, entries };
    for &(round, case) in order {
        let (lock, turns) = (&cases[case].lock, &mut work.turns[case]);
        for _ in 0..pace.windows {
            let sample = window::sample(barrier, pace.window, |clock| lock.operate(turns, clock));
            work.entries.push(Entry { case, round, sample });
        }
    }
    work
}

/// Fails if a reader saw a write in the middle, or if a write is lost.
fn verify<'a>(case: &Case, turns: impl Iterator<Item = &'a Turns>) -> Result<(), Failure> {
    let (mut writes, mut torn) = (0, 0);
    for turns in turns {
        writes += turns.writes;
        torn += turns.torn;
    }
    let (left, right) = case.lock.counters();
    if torn == 0 && left == writes && right == writes {
        return Ok(());
    }
    let (lock, mix) = (case.lock.name(), case.mix);
    Err(format!("{lock}, {mix}: {torn} torn reads; {left} and {right} of {writes} writes").into())
}

/// Sums up the windows of a case that count, by round.
fn row(case: &Case, index: usize, work: &[Work], rounds: usize, pace: Pace) -> Row {
    let (mut windows, mut kept) = (0, 0);
    let mut sums = vec![(Duration::ZERO, Duration::ZERO, 0); rounds + 1];
    for (number, entry) in work[0].entries.iter().enumerate() {
        // Round 0 warms up.
        if entry.case != index || entry.round == 0 {
            continue;
        }
        let samples: Vec<&Sample> = work.iter().map(|work| &work.entries[number].sample).collect();
        windows += 1;
        if pace.parallel && !is_side_by_side(&samples) {
            continue;
        }
        kept += 1;
        let (wall, cpu, operations) = &mut sums[entry.round];
        for sample in samples {
            *wall += sample.wall;
            *cpu += sample.cpu;
            *operations += sample.operations;
        }
    }
    let figures = |time: fn(&(Duration, Duration, u64)) -> Duration| {
        let counted = sums.iter().filter(|(.., operations)| *operations > 0);
        report::Spread::of(counted.map(|sum| time(sum).as_nanos() as f64 / sum.2 as f64).collect())
    };
    Row {
        lock: case.lock.name(),
        mix: case.mix,
        threads: pace.threads,
        parallel: pace.parallel,
        wall_ns: figures(|sum| sum.0),
        cpu_ns: figures(|sum| sum.1),
        rounds,
        windows,
        kept,
        operations: sums.iter().map(|sum| sum.2).sum(),
        writes: work.iter().map(|work| work.turns[index].writes).sum(),
    }
}

#[cfg(test)]
mod tests;
