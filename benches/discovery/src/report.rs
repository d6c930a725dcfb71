//! Rows for machines, tables for people.

use serde::Serialize;

use crate::cell::{Outcome, Scanned};
use crate::contenders::{AFTER, BOUND, CRC, TUNED};
use crate::machine::{Emptied, Machine, Used};

/// What is discovered.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Task {
    pub(crate) profile: char,
    pub(crate) profile_name: &'static str,
    /// Events that are there.
    pub(crate) events: usize,
    pub(crate) streams: usize,
    /// Events that are not delivered in a store that has delivered what came before, and the first event
    /// of each stream: what all rates are about.
    pub(crate) undelivered: usize,
    /// Events that are delivered in the end.
    pub(crate) deliverable: usize,
    pub(crate) seed: u64,
}

/// What is in memory when the clock starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Caches {
    Cold,
    Warm,
    /// All that it needs, in its own memory.
    Memory,
}

impl Caches {
    pub(crate) fn new(is_memory: bool, cold: bool) -> Self {
        match (is_memory, cold) {
            (true, _) => Caches::Memory,
            (false, true) => Caches::Cold,
            (false, false) => Caches::Warm,
        }
    }
}

/// Who discovers, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Load {
    pub(crate) contender: &'static str,
    /// 0 for what it takes by itself.
    pub(crate) threads: usize,
    pub(crate) caches: Caches,
}

impl Load {
    pub(crate) fn label(&self) -> String {
        match self.threads {
            0 => self.contender.to_owned(),
            threads => format!("{}, {threads}", self.contender),
        }
    }
}

/// One run of a cell.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    row: &'static str,
    #[serde(flatten)]
    task: Task,
    #[serde(flatten)]
    load: Load,
    round: usize,
    /// Whether the right events were delivered in a right order; without that, figures say nothing.
    pub(crate) ok: bool,
    wrong: Option<String>,
    #[serde(flatten)]
    figures: Option<Figures>,
    #[serde(flatten)]
    place: Place,
}

/// What a run has measured.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    #[serde(flatten)]
    used: Used,
    /// Undelivered events over the time; none if there are none.
    events_per_s: Option<f64>,
    cpu_us_per_event: Option<f64>,
    lookups_per_event: Option<f64>,
    scanned: Option<Scanned>,
    bytes_per_s: Option<f64>,
}

impl Figures {
    fn new(task: &Task, outcome: Outcome) -> Self {
        let Outcome { used, lookups, scanned } = outcome;
        // A scan is about all events, and repeated.
        let events = match scanned {
            Some(scanned) => task.events as u64 * scanned.passes,
            None => task.undelivered as u64,
        };
        let per_event = |total: f64| (events > 0).then(|| total / events as f64);
        Figures {
            used,
            events_per_s: per_event(used.wall_s).map(|seconds| 1.0 / seconds),
            cpu_us_per_event: per_event(used.cpu_s * 1e6),
            lookups_per_event: lookups.and_then(|lookups| per_event(lookups as f64)),
            scanned,
            bytes_per_s: scanned
                .map(|scanned| (scanned.bytes * scanned.passes) as f64 / used.wall_s),
        }
    }
}

/// What a run was made on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Place {
    pub(crate) store_bytes: u64,
    /// How the caches were emptied, if they were.
    pub(crate) emptied: Option<Emptied>,
    #[serde(flatten)]
    pub(crate) machine: Machine,
}

impl Run {
    pub(crate) fn new(
        task: &Task,
        load: &Load,
        round: usize,
        outcome: Option<Outcome>,
        wrong: Option<String>,
        place: Place,
    ) -> Self {
        Run {
            row: "run",
            task: task.clone(),
            load: load.clone(),
            round,
            ok: wrong.is_none(),
            wrong,
            figures: outcome.map(|outcome| Figures::new(task, outcome)),
            place,
        }
    }

    pub(crate) fn print(&self) {
        print(self);
    }
}

fn print(row: &impl Serialize) {
    println!("{}", serde_json::to_string(row).expect("a row is plain data"));
}

/// The runs of a load: the one in the middle, and how far the others are from it.
#[derive(Debug, Serialize)]
struct Median<'a> {
    row: &'static str,
    #[serde(flatten)]
    task: &'a Task,
    #[serde(flatten)]
    load: &'a Load,
    runs: usize,
    wrong_runs: usize,
    #[serde(flatten)]
    figures: Option<&'a Figures>,
    wall_s_min: Option<f64>,
    wall_s_max: Option<f64>,
    /// How many times faster it is than these, each at its best in these caches.
    times_sqlite_after: Option<f64>,
    times_sqlite_tuned: Option<f64>,
    times_bound: Option<f64>,
    /// Of a scan: its bytes per second in parts of those of the plain checksum with as many threads.
    of_crc32c: Option<f64>,
}

impl<'a> Median<'a> {
    /// Of all runs of one load. A load with a wrong run has no figures: a fast wrong answer is none.
    fn of(task: &'a Task, runs: &[&'a Run]) -> Self {
        let wrong_runs = runs.iter().filter(|run| !run.ok).count();
        let mut figures: Vec<&Figures> = match wrong_runs {
            0 => runs.iter().filter_map(|run| run.figures.as_ref()).collect(),
            _ => Vec::new(),
        };
        figures.sort_by(|one, other| one.used.wall_s.total_cmp(&other.used.wall_s));
        Median {
            row: "median",
            task,
            load: &runs[0].load,
            runs: runs.len(),
            wrong_runs,
            figures: figures.get(figures.len().saturating_sub(1) / 2).copied(),
            wall_s_min: figures.first().map(|figures| figures.used.wall_s),
            wall_s_max: figures.last().map(|figures| figures.used.wall_s),
            times_sqlite_after: None,
            times_sqlite_tuned: None,
            times_bound: None,
            of_crc32c: None,
        }
    }

    fn wall_s(&self) -> Option<f64> {
        Some(self.figures?.used.wall_s)
    }

    fn is_scan(&self) -> bool {
        self.figures.is_some_and(|figures| figures.scanned.is_some())
    }

    fn compare(&mut self, best: &dyn Fn(&str, Caches) -> Option<f64>, crc: Option<f64>) {
        let Some(figures) = self.figures else { return };
        if self.is_scan() {
            self.of_crc32c = crc.zip(figures.bytes_per_s).map(|(crc, of)| of / crc);
            return;
        }
        // What is in memory has no caches of its own, and is held against warm ones.
        let caches = match self.load.caches {
            Caches::Memory => Caches::Warm,
            caches => caches,
        };
        let times = |wall_s: Option<f64>| wall_s.map(|wall_s| wall_s / figures.used.wall_s);
        self.times_sqlite_after = times(best(AFTER, caches));
        self.times_sqlite_tuned = times(best(TUNED, caches));
        self.times_bound = times(best(BOUND, Caches::Memory));
    }
}

/// Prints the medians of a block, as rows and as a table.
pub(crate) fn table(task: &Task, runs: &[Run]) {
    let mut loads: Vec<&Load> = Vec::new();
    for run in runs.iter().filter(|run| run.round == 0) {
        loads.push(&run.load);
    }
    let of_load = |load: &Load| runs.iter().filter(|run| run.load == *load).collect::<Vec<_>>();
    let mut medians: Vec<Median<'_>> =
        loads.iter().map(|load| Median::of(task, &of_load(load))).collect();
    compare(&mut medians);
    medians.iter().for_each(print);
    heading(task);
    for caches in [Caches::Cold, Caches::Warm, Caches::Memory] {
        medians.iter().filter(|median| median.load.caches == caches).for_each(line);
    }
}

fn compare(medians: &mut [Median<'_>]) {
    type Known = (&'static str, usize, Caches, Option<f64>, Option<f64>);
    let known: Vec<Known> = medians
        .iter()
        .map(|median| {
            let Load { contender, threads, caches } = *median.load;
            let rate = median.figures.and_then(|figures| figures.bytes_per_s);
            (contender, threads, caches, median.wall_s(), rate)
        })
        .collect();
    let best = |name: &str, caches: Caches| {
        let walls = known.iter().filter(|of| of.0 == name && of.2 == caches);
        walls.filter_map(|of| of.3).min_by(f64::total_cmp)
    };
    for median in medians {
        let threads = median.load.threads;
        let crc = known.iter().find(|of| of.0 == CRC && of.1 == threads).and_then(|of| of.4);
        median.compare(&best, crc);
    }
}

fn heading(task: &Task) {
    let Task { profile, profile_name, events, streams, undelivered, deliverable, .. } = task;
    eprintln!(
        "\n({profile}) {profile_name}: {events} events in {streams} streams, {undelivered} \
         undelivered, {deliverable} delivered in the end"
    );
    eprintln!(
        "{:<8}{:<22}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}",
        "caches",
        "",
        "events/s",
        "wall ms",
        "cpu us",
        "first ms",
        "ready ms",
        "read MB",
        "RSS MB",
        "anon MB",
        "x after",
        "x tuned",
        "x bound"
    );
}

fn line(median: &Median<'_>) {
    let caches = format!("{:?}", median.load.caches).to_lowercase();
    let label = median.load.label();
    let Some(figures) = median.figures else {
        eprintln!("{caches:<8}{label:<22}{:>9}", "WRONG");
        return;
    };
    let Figures { used, .. } = figures;
    let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| String::from("-"));
    eprint!(
        "{caches:<8}{label:<22}{:>9}{:>9}{:>9}",
        or_dash(figures.events_per_s.map(short)),
        ms(used.wall_s),
        or_dash(figures.cpu_us_per_event.map(|us| format!("{us:.2}"))),
    );
    if let Some(rate) = figures.bytes_per_s {
        let of_crc = median.of_crc32c.map(|of| format!(", {of:.2} of crc32c"));
        eprintln!("  {:.2} GB/s{}", rate / 1e9, of_crc.unwrap_or_default());
        return;
    }
    let times = |times: Option<f64>| or_dash(times.map(|times| format!("{times:.2}")));
    eprintln!(
        "{:>9}{:>9}{:>9.1}{:>9.1}{:>9.1}{:>8}{:>8}{:>8}",
        or_dash(used.first_s.map(ms)),
        ms(used.ready_s),
        used.device_read_bytes as f64 / 1e6,
        used.peak_rss_kib as f64 / 1024.0,
        used.peak_anon_kib as f64 / 1024.0,
        times(median.times_sqlite_after),
        times(median.times_sqlite_tuned),
        times(median.times_bound),
    );
}

fn short(rate: f64) -> String {
    match rate {
        1e6.. => format!("{:.2}M", rate / 1e6),
        1e4.. => format!("{:.0}k", rate / 1e3),
        1e3.. => format!("{:.1}k", rate / 1e3),
        _ => format!("{rate:.0}"),
    }
}
