//! A window of time in which all threads do the same, and whether they truly did.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

/// Where the threads meet before each window, and how they end it together.
pub(super) struct Barrier {
    threads: usize,
    /// Looks at `generation` before a thread offers its core to another.
    spins: u32,
    /// Threads that wait for the next window.
    arrived: CachePadded<AtomicUsize>,
    /// Changed by the last thread to arrive, which is what the others wait for.
    generation: CachePadded<AtomicUsize>,
    /// Set by the first thread that finds its time to be over.
    over: CachePadded<AtomicBool>,
}

impl Barrier {
    /// A barrier for so many threads, which all have a core of their own if it is `parallel`.
    pub(super) fn new(threads: usize, parallel: bool) -> Self {
        Self {
            threads,
            spins: if parallel { 10_000 } else { 0 },
            arrived: CachePadded::new(AtomicUsize::new(0)),
            generation: CachePadded::new(AtomicUsize::new(0)),
            over: CachePadded::new(AtomicBool::new(false)),
        }
    }

    fn wait(&self) {
        // Relaxed: it changes only after this thread has arrived.
        let generation = self.generation.load(Ordering::Relaxed);
        // AcqRel: the last to arrive has seen the end of all others' last windows.
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            // Relaxed, both: the store below publishes them.
            self.arrived.store(0, Ordering::Relaxed);
            self.over.store(false, Ordering::Relaxed);
            // Release: pairs with the Acquire load below.
            self.generation.store(generation.wrapping_add(1), Ordering::Release);
            return;
        }
        let mut spins = 0;
        // Acquire: pairs with the Release store above.
        while self.generation.load(Ordering::Acquire) == generation {
            if spins < self.spins {
                spins += 1;
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Tells a thread when the window ends: at its length, or when another thread has found it so.
pub(super) struct Clock<'a> {
    begun: Instant,
    length: Duration,
    over: &'a AtomicBool,
}

impl Clock<'_> {
    /// Operations between two looks, so that the look costs each less than a nanosecond.
    pub(super) const OPERATIONS_PER_LOOK: u64 = 64;

    pub(super) fn is_over(&self) -> bool {
        // Relaxed, both: a hint, by which no data goes.
        if self.over.load(Ordering::Relaxed) {
            return true;
        }
        let is_over = self.begun.elapsed() >= self.length;
        if is_over {
            self.over.store(true, Ordering::Relaxed);
        }
        is_over
    }
}

/// What one thread did in one window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) begun: Instant,
    pub(super) wall: Duration,
    /// Time on a core.
    pub(super) cpu: Duration,
    pub(super) operations: u64,
    /// Switches to other threads from before the barrier until after the window.
    pub(super) switches: Switches,
}

/// Meets the other threads, then runs `operate` in the window and measures it.
pub(super) fn sample(
    barrier: &Barrier,
    length: Duration,
    operate: impl FnOnce(&Clock<'_>) -> u64,
) -> Sample {
    let switches = Switches::so_far();
    barrier.wait();
    let cpu = cpu_time();
    let begun = Instant::now();
    let operations = operate(&Clock { begun, length, over: &barrier.over });
    let wall = begun.elapsed();
    let cpu = cpu_time().saturating_sub(cpu);
    Sample { begun, wall, cpu, operations, switches: Switches::so_far().since(switches) }
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// How often a thread has left its core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Switches {
    /// To wait for something, such as a lock.
    pub(super) voluntary: u64,
    /// Because the scheduler said so.
    pub(super) involuntary: u64,
}

impl Switches {
    /// Of the calling thread. Zero on a system that does not tell.
    fn so_far() -> Self {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        Self::parse(&status)
    }

    pub(super) fn parse(status: &str) -> Self {
        let count = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
        };
        Self {
            voluntary: count("voluntary_ctxt_switches:"),
            involuntary: count("nonvoluntary_ctxt_switches:"),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            voluntary: self.voluntary - before.voluntary,
            involuntary: self.involuntary - before.involuntary,
        }
    }
}

/// Whether the threads of a window ran side by side: they began together, none was preempted, and
/// none lost time to anything but a wait of its own.
///
/// A thread that slept for a lock has less CPU time than wall time for a reason that is part of what
/// the lock costs. One that did not sleep has lost the difference to an interrupt or, in a virtual
/// machine, to another machine.
pub(super) fn is_side_by_side(samples: &[&Sample]) -> bool {
    let begun = samples.iter().map(|sample| sample.begun);
    let (Some(first), Some(last)) = (begun.clone().min(), begun.max()) else { return false };
    samples.iter().all(|sample| {
        let lost = sample.wall.saturating_sub(sample.cpu);
        let slept = sample.switches.voluntary > 0;
        sample.switches.involuntary == 0
            && (slept || lost <= sample.wall / 20)
            && last - first <= sample.wall / 20
    })
}
