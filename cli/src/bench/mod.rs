//! What `bench discovery` measures: logs that it makes itself, the runs over them, and their picture.

use std::time::Duration;

use thalweg::DiscoveryReport;

pub(crate) mod figure;
pub(crate) mod machine;
pub(crate) mod source;

/// Discoveries of one log with one number of threads.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) threads: usize,
    /// Cores that the threads had.
    pub(crate) cores: usize,
    pub(crate) scanners: usize,
    pub(crate) orderers: usize,
    /// From the slowest to the fastest.
    pub(crate) runs: Vec<DiscoveryReport>,
}

impl Row {
    /// The run in the middle.
    pub(crate) fn median(&self) -> &DiscoveryReport {
        &self.runs[self.runs.len() / 2]
    }

    pub(crate) fn events_per_second(&self) -> f64 {
        rate(self.median())
    }

    pub(crate) fn speed_up(&self, first: &Row) -> f64 {
        self.events_per_second() / first.events_per_second()
    }

    /// Speed for each thread, beside that of the first row.
    pub(crate) fn efficiency(&self, first: &Row) -> f64 {
        self.speed_up(first) * first.threads as f64 / self.threads as f64
    }

    /// How the time of the cores was spent in the run in the middle.
    pub(crate) fn shares(&self) -> Shares {
        Shares::of(self.median(), self.cores)
    }
}

pub(crate) fn rate(report: &DiscoveryReport) -> f64 {
    report.scanned as f64 / report.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// Names of the stages, and of what is left.
pub(crate) const STAGES: [&str; 5] = ["scan", "order", "place", "commit", "waiting"];

/// Parts of the time of all cores, in the order of [`STAGES`]; they sum up to one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shares(pub(crate) [f64; 5]);

impl Shares {
    fn of(report: &DiscoveryReport, cores: usize) -> Self {
        let stages = report.stages.unwrap_or_default();
        let times = [stages.scan, stages.order, stages.place, stages.commit];
        Self::new(times, report.elapsed * cores as u32)
    }

    /// Times are on the clock: where more threads than cores wanted to run, they sum up to more than
    /// there was, and nothing was left.
    fn new(times: [Duration; 4], capacity: Duration) -> Self {
        let busy: Duration = times.iter().sum();
        let whole = busy.max(capacity).as_secs_f64().max(f64::MIN_POSITIVE);
        let [scan, order, place, commit] = times.map(|time| time.as_secs_f64() / whole);
        Shares([scan, order, place, commit, capacity.saturating_sub(busy).as_secs_f64() / whole])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_parts_of_the_whole() {
        let second = Duration::from_secs(1);
        let shares = Shares::new([second, second, Duration::ZERO, second], 4 * second);
        assert_eq!(shares.0, [0.25, 0.25, 0.0, 0.25, 0.25]);
        let crowded = Shares::new([second; 4], 2 * second);
        assert_eq!(crowded.0, [0.25, 0.25, 0.25, 0.25, 0.0]);
    }
}
