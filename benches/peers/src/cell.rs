//! One cell: a contender, a shape of load, a store of its own, for a few seconds.
//!
//! Runs in a process of its own, so that processor time and memory are the cell's and nothing that a
//! contender leaves behind, a thread or a cache, reaches the next one.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::contenders::{Contender, Peer, Quantiles, Setup, Spans};
use crate::machine::{Counters, Used, free_bytes, peak_kib, sync_file_system};
use crate::payload::{Batches, Pool};

/// What a cell is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) contender: String,
    pub(crate) setup: Setup,
    pub(crate) batch: usize,
    pub(crate) payload: usize,
    pub(crate) depth: usize,
    pub(crate) warm_up: Duration,
    pub(crate) seconds: Duration,
    /// The cell ends when less than this is free on the file system.
    pub(crate) free_min: u64,
    /// Where the outcome is written to.
    pub(crate) outcome: PathBuf,
}

/// Why the clock was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EndedBy {
    Time,
    Bytes,
    Space,
    Failure,
}

/// What a cell has measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Events acknowledged while the clock ran, over the seconds that it ran.
    pub(crate) events: u64,
    pub(crate) seconds: f64,
    pub(crate) ended_by: EndedBy,
    /// Append calls that were acknowledged while the clock ran.
    pub(crate) appends: u64,
    /// Of one append, from the call, or the submit, to its acknowledgement.
    pub(crate) latency_us: Quantiles,
    pub(crate) spans: Spans,
    pub(crate) cpu_s: f64,
    pub(crate) flushes: Option<u64>,
    pub(crate) device_written_bytes: Option<u64>,
    pub(crate) open_s: f64,
    pub(crate) settle_s: f64,
    pub(crate) close_s: f64,
    pub(crate) peak_kib: u64,
    /// Events acknowledged to each thread, warm-up and what came after the clock included.
    pub(crate) acknowledged: Vec<u64>,
}

const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(2);
/// The warm-up may take one part in this of the bytes.
pub(crate) const WARM_UP_SHARE: u64 = 4;
/// Longest latency that is told from longer ones, in nanoseconds.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// A count that one thread writes, on cache lines of its own.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Acknowledged(AtomicU64);

#[derive(Debug)]
struct Shared<'a> {
    spec: &'a Spec,
    pool: Pool,
    barrier: Barrier,
    phase: AtomicU8,
    acknowledged: Vec<Acknowledged>,
}

impl Shared<'_> {
    // The clock's thread sets the phase, and a thread that has failed stops everybody. Relaxed, as are
    // the counts: nothing but the numbers themselves is handed over.
    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    fn set_phase(&self, phase: u8) {
        self.phase.fetch_max(phase, Ordering::Relaxed);
    }

    fn byte_len(&self) -> u64 {
        let events: u64 =
            self.acknowledged.iter().map(|count| count.0.load(Ordering::Relaxed)).sum();
        events * self.spec.payload as u64
    }
}

/// What one thread has measured.
struct Measured {
    events: u64,
    appends: u64,
    latency: Histogram<u64>,
}

impl Measured {
    fn new() -> Result<Self, Failure> {
        let latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)?;
        Ok(Measured { events: 0, appends: 0, latency })
    }
}

/// Runs the cell and writes its outcome.
pub(crate) fn run(spec: &Spec) -> Result<(), Failure> {
    let outcome = measure(spec)?;
    Ok(std::fs::write(&spec.outcome, serde_json::to_vec(&outcome)?)?)
}

fn measure(spec: &Spec) -> Result<Outcome, Failure> {
    let peer = Peer::named(&spec.contender)?;
    let begun = Instant::now();
    let contender = (peer.open)(&spec.setup)?;
    // Nobody's first sync pays for what opening has written.
    sync_file_system(&spec.setup.dir)?;
    let open_s = begun.elapsed().as_secs_f64();

    let shared = Shared {
        spec,
        pool: Pool::new(spec.payload, spec.batch),
        barrier: Barrier::new(spec.setup.threads + 1),
        phase: AtomicU8::new(WARM_UP),
        acknowledged: (0..spec.setup.threads).map(|_| Acknowledged::default()).collect(),
    };
    let (measured, used, ended_by) = drive_all(&*contender, &shared)?;
    let begun = Instant::now();
    contender.settle()?;
    let settle_s = begun.elapsed().as_secs_f64();
    let spans = contender.spans();
    let begun = Instant::now();
    contender.close()?;
    let close_s = begun.elapsed().as_secs_f64();
    Ok(Outcome {
        events: measured.events,
        seconds: used.wall.as_secs_f64(),
        ended_by,
        appends: measured.appends,
        latency_us: quantiles(&measured.latency),
        spans,
        cpu_s: used.cpu.as_secs_f64(),
        flushes: used.device.map(|device| device.flushes),
        device_written_bytes: used.device.map(|device| device.written_bytes),
        open_s,
        settle_s,
        close_s,
        peak_kib: peak_kib(),
        acknowledged: shared.acknowledged.into_iter().map(|count| count.0.into_inner()).collect(),
    })
}

fn quantiles(latency: &Histogram<u64>) -> Quantiles {
    let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
    Quantiles { p50: at(0.5), p99: at(0.99), p99_9: at(0.999), max: latency.max() as f64 / 1e3 }
}

/// Runs all threads beside the clock, and adds up what they have measured.
fn drive_all(
    contender: &dyn Contender,
    shared: &Shared<'_>,
) -> Result<(Measured, Used, EndedBy), Failure> {
    std::thread::scope(|scope| {
        let thread = |thread| scope.spawn(move || drive(contender, shared, thread));
        let threads: Vec<_> = (0..shared.spec.setup.threads).map(thread).collect();
        let clock = clock(shared);
        let mut total = Measured::new()?;
        for thread in threads {
            let measured = thread.join().map_err(|_| "a thread has panicked")??;
            total.events += measured.events;
            total.appends += measured.appends;
            total.latency.add(measured.latency)?;
        }
        let (used, ended_by) = clock?;
        Ok((total, used, ended_by))
    })
}

/// Leads through warm-up and measurement. Whatever happens, the threads are told to stop.
fn clock(shared: &Shared<'_>) -> Result<(Used, EndedBy), Failure> {
    let spec = shared.spec;
    let run = || -> Result<(Used, EndedBy), Failure> {
        let counters = Counters::new(&spec.setup.dir);
        shared.barrier.wait();
        let counters = counters?;
        let byte_max = spec.setup.byte_max;
        wait(shared, spec.warm_up, byte_max / WARM_UP_SHARE)?;
        let before = counters.mark();
        shared.set_phase(MEASURE);
        let ended_by = wait(shared, spec.seconds, byte_max)?;
        shared.set_phase(STOP);
        Ok((counters.mark().since(before), ended_by))
    };
    let result = run();
    shared.set_phase(STOP);
    result
}

/// Waits for the time to pass, the bytes to be appended, the device to be full, or a failure.
fn wait(shared: &Shared<'_>, time: Duration, byte_max: u64) -> Result<EndedBy, Failure> {
    let end = Instant::now() + time;
    loop {
        if shared.phase() == STOP {
            return Ok(EndedBy::Failure);
        }
        if shared.byte_len() >= byte_max {
            return Ok(EndedBy::Bytes);
        }
        if free_bytes(&shared.spec.setup.dir)? < shared.spec.free_min {
            return Ok(EndedBy::Space);
        }
        let now = Instant::now();
        if now >= end {
            return Ok(EndedBy::Time);
        }
        std::thread::sleep(TICK.min(end - now));
    }
}

/// One thread: appends until it is told to stop, then waits for what it has under way.
fn drive(
    contender: &dyn Contender,
    shared: &Shared<'_>,
    thread: usize,
) -> Result<Measured, Failure> {
    let result = append_until_stopped(contender, shared, thread);
    if result.is_err() {
        shared.set_phase(STOP);
    }
    result
}

fn append_until_stopped(
    contender: &dyn Contender,
    shared: &Shared<'_>,
    thread: usize,
) -> Result<Measured, Failure> {
    let (batch, depth) = (shared.spec.batch, shared.spec.depth);
    let session = contender.session(thread);
    let mut batches = Batches::new(&shared.pool, thread as u32, batch);
    let mut measured = Measured::new()?;
    shared.barrier.wait();
    let mut session = session?;
    let acknowledged = &shared.acknowledged[thread].0;
    let mut acknowledge = |begun: Instant, phase: u8| {
        let latency = begun.elapsed();
        acknowledged.store(acknowledged.load(Ordering::Relaxed) + batch as u64, Ordering::Relaxed);
        // What was begun before the clock stopped and is acknowledged after it counts as slow, and
        // not as done. Leaving it out would hide the longest waits.
        if phase != WARM_UP {
            measured.latency.saturating_record(latency.as_nanos() as u64);
        }
        if phase == MEASURE {
            measured.events += batch as u64;
            measured.appends += 1;
        }
    };
    let mut under_way = VecDeque::with_capacity(depth);
    while shared.phase() != STOP {
        let batch = batches.next();
        let begun = Instant::now();
        if depth == 1 {
            session.append(batch)?;
            acknowledge(begun, shared.phase());
        } else {
            session.submit(batch)?;
            under_way.push_back(begun);
            if under_way.len() == depth {
                session.wait()?;
                acknowledge(under_way.pop_front().expect("just pushed"), shared.phase());
            }
        }
    }
    for begun in under_way {
        session.wait()?;
        acknowledge(begun, shared.phase());
    }
    Ok(measured)
}
