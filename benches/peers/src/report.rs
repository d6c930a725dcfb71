//! Rows for machines, tables for people.

use serde::Serialize;

use crate::cell;
use crate::contenders::{Quantiles, Spans};
use crate::machine::{Machine, Probe};
use crate::options::Options;

/// Durable figures are in doubt when the device was this many times slower before one run than
/// before another.
const DOUBT: f64 = 2.0;

/// A load on a contender: what a row is about.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Load {
    pub(crate) contender: &'static str,
    pub(crate) version: &'static str,
    pub(crate) durability: &'static str,
    pub(crate) threads: usize,
    pub(crate) batch: usize,
    pub(crate) payload: usize,
    pub(crate) depth: usize,
    pub(crate) streams: usize,
}

/// One run of a cell.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    row: &'static str,
    #[serde(flatten)]
    pub(crate) load: Load,
    round: usize,
    /// Whether the store was read back and held what was acknowledged, and nothing else; and, where
    /// the device counts its flushes, whether a durable run has made any.
    pub(crate) ok: bool,
    /// Why the run says nothing, if it does not.
    pub(crate) wrong: Option<String>,
    /// Fewer appends than two for each thread were acknowledged: take more seconds.
    few: bool,
    #[serde(flatten)]
    pub(crate) figures: Option<Figures>,
    fdatasync_before: Probe,
    fdatasync_after: Probe,
    #[serde(flatten)]
    machine: Machine,
}

/// What a run has measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) events_per_s: f64,
    /// The same events over the time until all of them could be read.
    events_per_s_settled: f64,
    mb_per_s: f64,
    events: u64,
    appends: u64,
    seconds: f64,
    ended_by: cell::EndedBy,
    pub(crate) latency_us: Quantiles,
    spans: Spans,
    cpu_s: f64,
    cpu_us_per_event: f64,
    flushes: Option<u64>,
    flushes_per_1000_appends: Option<f64>,
    device_written_bytes: Option<u64>,
    open_s: f64,
    settle_s: f64,
    close_s: f64,
    reopen_read_s: Option<f64>,
    disk_bytes: u64,
    peak_kib: u64,
}

impl Figures {
    pub(crate) fn new(
        outcome: &cell::Outcome,
        load: &Load,
        disk_bytes: u64,
        reopen_read_s: Option<f64>,
    ) -> Self {
        let (events, appends) = (outcome.events as f64, outcome.appends as f64);
        Figures {
            events_per_s: events / outcome.seconds,
            events_per_s_settled: events / (outcome.seconds + outcome.settle_s),
            mb_per_s: events * load.payload as f64 / 1e6 / outcome.seconds,
            events: outcome.events,
            appends: outcome.appends,
            seconds: outcome.seconds,
            ended_by: outcome.ended_by,
            latency_us: outcome.latency_us,
            spans: outcome.spans,
            cpu_s: outcome.cpu_s,
            cpu_us_per_event: outcome.cpu_s * 1e6 / events.max(1.0),
            flushes: outcome.flushes,
            flushes_per_1000_appends: outcome
                .flushes
                .map(|flushes| flushes as f64 * 1e3 / appends.max(1.0)),
            device_written_bytes: outcome.device_written_bytes,
            open_s: outcome.open_s,
            settle_s: outcome.settle_s,
            close_s: outcome.close_s,
            reopen_read_s,
            disk_bytes,
            peak_kib: outcome.peak_kib,
        }
    }
}

impl Figures {
    /// Why they say nothing, though the store holds what was acknowledged.
    fn doubt(&self, load: &Load, probe: Probe) -> Option<String> {
        if self.appends == 0 {
            return Some(format!("nothing acknowledged until {:?} was over", self.ended_by));
        }
        // A sync that reaches no device, on a device that has seen the probe's, is none.
        let reaches_device = probe.flushes_per_1000.is_some_and(|flushes| flushes > 500.0);
        let unsynced = load.durability == "durable" && reaches_device && self.flushes == Some(0);
        unsynced.then(|| String::from("acknowledged without a flush"))
    }
}

impl Run {
    pub(crate) fn new(
        load: Load,
        round: usize,
        figures: Option<Figures>,
        wrong: Option<String>,
        [fdatasync_before, fdatasync_after]: [Probe; 2],
        machine: &Machine,
    ) -> Self {
        let few = figures.as_ref().is_some_and(|of| of.appends < 2 * load.threads as u64);
        let wrong = wrong.or_else(|| figures.as_ref()?.doubt(&load, fdatasync_before));
        Run {
            row: "run",
            load,
            round,
            ok: wrong.is_none(),
            wrong,
            few,
            figures,
            fdatasync_before,
            fdatasync_after,
            machine: machine.clone(),
        }
    }

    pub(crate) fn print(&self) {
        print(self);
    }
}

/// The runs of a load, in the middle.
#[derive(Debug, Serialize)]
pub(crate) struct Median {
    row: &'static str,
    #[serde(flatten)]
    pub(crate) load: Load,
    runs: usize,
    pub(crate) wrong_runs: usize,
    few: bool,
    events_per_s: Option<f64>,
    events_per_s_settled: Option<f64>,
    events_per_s_min: Option<f64>,
    events_per_s_max: Option<f64>,
    mb_per_s: Option<f64>,
    latency_us: Option<Quantiles>,
    cpu_us_per_event: Option<f64>,
    flushes_per_1000_appends: Option<f64>,
    fdatasync_p50_us: Option<f64>,
    fdatasync_p50_us_min: Option<f64>,
    fdatasync_p50_us_max: Option<f64>,
}

impl Median {
    /// Of all runs of one load. A load with a wrong run has no figures: a fast wrong answer is none.
    pub(crate) fn of(runs: &[&Run]) -> Self {
        let wrong_runs = runs.iter().filter(|run| !run.ok).count();
        let figures: Vec<&Figures> = match wrong_runs {
            0 => runs.iter().filter_map(|run| run.figures.as_ref()).collect(),
            _ => Vec::new(),
        };
        let of = |get: &dyn Fn(&Figures) -> f64| median(figures.iter().map(|f| get(f)).collect());
        let rates = || figures.iter().map(|figures| figures.events_per_s);
        let latency = |get: fn(&Quantiles) -> f64| of(&|figures| get(&figures.latency_us));
        let probes = || {
            let both = runs.iter().flat_map(|run| [run.fdatasync_before, run.fdatasync_after]);
            both.map(|probe| probe.p50_us)
        };
        Median {
            row: "median",
            load: runs[0].load.clone(),
            runs: runs.len(),
            wrong_runs,
            few: runs.iter().any(|run| run.few),
            events_per_s: of(&|figures| figures.events_per_s),
            events_per_s_settled: of(&|figures| figures.events_per_s_settled),
            events_per_s_min: rates().min_by(f64::total_cmp),
            events_per_s_max: rates().max_by(f64::total_cmp),
            mb_per_s: of(&|figures| figures.mb_per_s),
            latency_us: latency(|of| of.p50).and_then(|p50| {
                Some(Quantiles {
                    p50,
                    p99: latency(|of| of.p99)?,
                    p99_9: latency(|of| of.p99_9)?,
                    max: latency(|of| of.max)?,
                })
            }),
            cpu_us_per_event: of(&|figures| figures.cpu_us_per_event),
            flushes_per_1000_appends: median(
                figures.iter().filter_map(|figures| figures.flushes_per_1000_appends).collect(),
            ),
            fdatasync_p50_us: median(probes().collect()),
            fdatasync_p50_us_min: probes().min_by(f64::total_cmp),
            fdatasync_p50_us_max: probes().max_by(f64::total_cmp),
        }
    }

    pub(crate) fn print(&self) {
        print(self);
    }

    /// The name of its row in the table.
    fn label(&self) -> String {
        match self.load.depth {
            1 => self.load.contender.to_owned(),
            depth => format!("{}, {depth} under way", self.load.contender),
        }
    }

    fn cell(&self) -> String {
        match (self.events_per_s, &self.latency_us) {
            _ if self.wrong_runs > 0 => String::from("WRONG"),
            (Some(rate), Some(latency)) => {
                let doubt = if self.few { "?" } else { "" };
                format!("{}{doubt} {}", short(rate), short_us(latency.p99))
            }
            _ => String::from("-"),
        }
    }
}

fn print(row: &impl Serialize) {
    println!("{}", serde_json::to_string(row).expect("a row is plain data"));
}

/// The middle one, or the lower of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

/// The block of one durability, payload and batch: contenders as rows, threads as columns.
pub(crate) fn table(options: &Options, medians: &[Median]) {
    let Some(Median { load, .. }) = medians.first() else { return };
    eprintln!(
        "\n{}, payload {} B, batch {}; events/s and p99 of one append; {}",
        load.durability,
        load.payload,
        load.batch,
        syncs(medians)
    );
    eprint!("{:<26}", "");
    options.threads.iter().for_each(|threads| eprint!("{:>18}", format!("{threads} threads")));
    eprintln!();
    let mut labels: Vec<String> = medians.iter().map(Median::label).collect();
    let mut seen = std::collections::HashSet::new();
    labels.retain(|label| seen.insert(label.clone()));
    for label in labels {
        eprint!("{label:<26}");
        for threads in &options.threads {
            let found = medians
                .iter()
                .find(|median| median.label() == label && median.load.threads == *threads);
            eprint!("{:>18}", found.map_or(String::from("-"), Median::cell));
        }
        eprintln!();
    }
}

/// How fast the device synced around these runs, and whether it was always the same device to them.
fn syncs(medians: &[Median]) -> String {
    let all = |get: fn(&Median) -> Option<f64>| medians.iter().filter_map(get);
    let middle = median(all(|median| median.fdatasync_p50_us).collect());
    let least = all(|median| median.fdatasync_p50_us_min).min_by(f64::total_cmp);
    let most = all(|median| median.fdatasync_p50_us_max).max_by(f64::total_cmp);
    let (Some(middle), Some(least), Some(most)) = (middle, least, most) else {
        return String::from("no probe");
    };
    let doubt = if most > DOUBT * least { ": not a quiet machine" } else { "" };
    format!("fdatasync p50 {middle:.0} us ({least:.0}-{most:.0}){doubt}")
}

fn short(rate: f64) -> String {
    match rate {
        1e6.. => format!("{:.2}M", rate / 1e6),
        1e4.. => format!("{:.0}k", rate / 1e3),
        1e3.. => format!("{:.1}k", rate / 1e3),
        _ => format!("{rate:.0}"),
    }
}

fn short_us(us: f64) -> String {
    match us {
        1e6.. => format!("{:.1}s", us / 1e6),
        1e4.. => format!("{:.0}ms", us / 1e3),
        1e3.. => format!("{:.1}ms", us / 1e3),
        _ => format!("{us:.0}us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_measured() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![3.0, 1.0]), Some(1.0));
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    }
}
