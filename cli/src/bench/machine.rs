//! The machine that a benchmark runs on, and a part of it.

use std::num::NonZeroUsize;

/// Cores that this thread may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Keeps the calling thread, and those that it starts, to the first `count` cores that it may use;
/// returns how many it has then.
#[cfg(target_os = "linux")]
pub(crate) fn confine(count: usize) -> usize {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(all) = sched_getaffinity(None) else { return cores() };
    let mut few = CpuSet::new();
    let there = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu));
    there.take(count).for_each(|cpu| few.set(cpu));
    let _ = sched_setaffinity(None, &few);
    cores()
}

/// There is no portable way: the threads may use all cores.
#[cfg(not(target_os = "linux"))]
pub(crate) fn confine(_count: usize) -> usize {
    cores()
}

/// The name of the processor, if the system tells.
pub(crate) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| String::from(std::env::consts::ARCH), |(_, name)| name.trim().to_owned())
}
