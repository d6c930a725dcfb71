//! `bench`: how fast this machine does the main job.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use thalweg::{DiscoveryReport, Options, RebuildProgress, Store};

use super::advised;
use crate::bench::source::{Profile, Source};
use crate::bench::{Row, STAGES, figure, machine, rate};
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::output::{self, count, note, plural};
use crate::progress::Progress;

/// Measure how fast this machine does the main job
#[derive(Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Discovery(Discovery),
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let What::Discovery(discovery) = self.what;
        discovery.run()
    }
}

/// Measure how fast a log is put in order, with different numbers of threads
///
/// Makes a store from a seed, throws its order away, and has all of it discovered again, with each
/// number of threads in turn and several times. Needs nothing but this binary and room on a disk,
/// and leaves nothing behind.
///
/// With N threads the engine has N threads that order events and a quarter of that, at least one and
/// up to four, that scan the log; all of them, and the one that writes the order, are kept to N cores
/// (on Linux). The log is in memory: it was just checked. The time is that of opening the store until
/// the last event can be read.
///
/// Each order is read back, and the run fails if it is not whole, not causal, or not the same for
/// all numbers of threads.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg bench discovery
  thalweg bench discovery --events 10000000 --threads 1,2,4,8,16 --svg discovery.svg
  thalweg bench discovery --profile in-order --streams 1 --json"
)]
struct Discovery {
    /// Events in the log
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(1..=4_000_000_000))]
    events: u64,
    /// Streams that the events are spread over
    #[arg(long, value_name = "N", default_value_t = 1_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    streams: u64,
    /// Bytes of each payload
    #[arg(long, value_name = "BYTES", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    payload: u32,
    /// In which order the events arrive, and what their parents are
    #[arg(long, value_enum, default_value_t = Profile::Shuffled)]
    profile: Profile,
    /// Numbers of threads, with commas between; without it, powers of two up to the number of cores
    #[arg(long, value_name = "N,..", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Threads that scan, whatever the number of threads is
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    scanners: Option<u16>,
    /// Threads that order, whatever the number of threads is
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    orderers: Option<u16>,
    /// How often to measure each number of threads; the run in the middle counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=99))]
    runs: u16,
    /// The same seed makes the same events, in the same order, and so the same digest everywhere
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Where to make the store: a directory that is there, on the disk to measure; without it, the one
    /// for temporary files
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Draw the result into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print one JSON object for each number of threads
    #[arg(long)]
    json: bool,
}

/// A directory that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> anyhow::Result<Self> {
        let path = parent.join(format!("thalweg-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            note(format_args!("{} is left behind: {error}", self.0.display()));
        }
    }
}

impl Discovery {
    fn run(self) -> anyhow::Result<Exit> {
        let dir = self.dir.clone().unwrap_or_else(std::env::temp_dir);
        let scratch = Scratch::new(&dir)?;
        let store = scratch.0.join("store");
        let left = scratch.0.clone();
        let interrupt = Interrupt::install(move || {
            // The other threads may be in the middle of a file; what they leave is told.
            let _ = std::fs::remove_dir_all(&left);
            note(format_args!("interrupted"));
        })?;
        let done = self.measure(&store, &interrupt)?;
        let Some((rows, digest)) = done else {
            note(format_args!("interrupted"));
            return Ok(Exit::Interrupted);
        };
        self.print(&rows, digest)?;
        if let Some(file) = &self.svg {
            let drawn = figure::draw(&rows, &self.title(), &self.notes(&rows, digest));
            std::fs::write(file, drawn)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(Exit::Done)
    }

    /// All rows, and the digest of their order; nothing after an interrupt.
    fn measure(
        &self,
        store: &Path,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<(Vec<Row>, u64)>> {
        let source = Source {
            events: self.events,
            streams: self.streams.min(self.events),
            payload: self.payload as usize,
            profile: self.profile,
            seed: self.seed,
        };
        let progress = Progress::new("making", Some(self.events));
        let made = source.fill(store, &mut |events| {
            progress.set(events, events);
            !interrupt.is_set()
        })?;
        progress.clear();
        if !made {
            return Ok(None);
        }
        let mut rows: Vec<Row> = self.thread_counts().into_iter().map(|n| self.row(n)).collect();
        let mut digest = None;
        for run in 0..self.runs {
            for row in &mut rows {
                let Some(report) = self.discover(store, row, interrupt)? else { return Ok(None) };
                let order = checked(&source, store, &report)?;
                let threads = plural(row.threads as u64, "thread");
                ensure!(
                    *digest.get_or_insert(order) == order,
                    "run {run} with {threads} came to another order"
                );
                row.runs.push(report);
            }
        }
        rows.iter_mut().for_each(|row| row.runs.sort_by(|a, b| rate(a).total_cmp(&rate(b))));
        Ok(Some((rows, digest.expect("there is a run"))))
    }

    fn thread_counts(&self) -> Vec<usize> {
        let mut counts: Vec<usize> = self.threads.iter().map(|&count| count.into()).collect();
        if counts.is_empty() {
            let cores = machine::cores();
            counts = (0..).map(|power| 1 << power).take_while(|count| *count <= cores).collect();
        }
        counts.sort_unstable();
        counts.dedup();
        counts
    }

    fn row(&self, threads: usize) -> Row {
        let scanners = self.scanners.map_or((threads / 4).clamp(1, 4), usize::from);
        let orderers = self.orderers.map_or(threads, usize::from);
        let cores = threads.min(machine::cores());
        Row { threads, cores, scanners, orderers, runs: Vec::new() }
    }

    /// One run; nothing after an interrupt.
    fn discover(
        &self,
        store: &Path,
        row: &mut Row,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<DiscoveryReport>> {
        let options = Options::new().scanners(row.scanners).orderers(row.orderers).timings(true);
        // Threads have the cores of the thread that starts them, so it is one that ends with the run.
        let (cores, report) = std::thread::scope(|scope| {
            let run = || {
                let cores = machine::confine(row.cores);
                let progress = Progress::of_discovery("ordering");
                let report = thalweg::rebuild(store, options, &|now| {
                    if let RebuildProgress::Ordering(discovery) = now {
                        progress.set_discovery(&discovery);
                    }
                    if interrupt.is_set() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                });
                progress.clear();
                (cores, report)
            };
            scope.spawn(run).join().expect("a run does not panic")
        });
        row.cores = cores.min(row.threads);
        let report =
            report.map_err(|error| anyhow!("cannot order the log: {}", advised(&error)))?;
        if report.corrupt > 0 {
            bail!("the log is damaged in {}", plural(report.corrupt, "place"));
        }
        Ok(report.is_done.then_some(report))
    }

    fn title(&self) -> String {
        let profile = match self.profile {
            Profile::Shuffled => "shuffled",
            Profile::InOrder => "parents first",
            Profile::Forks => "shuffled, with forks and merges",
        };
        format!(
            "Discovery of {} in {}, {profile}",
            plural(self.events, "event"),
            plural(self.streams.min(self.events), "stream")
        )
    }

    fn notes(&self, rows: &[Row], digest: u64) -> Vec<String> {
        let bytes = rows[0].median().bytes;
        vec![
            format!(
                "{}, {}; {} in the log; median of {}, and the slowest and the fastest; seed {}",
                machine::processor(),
                plural(machine::cores() as u64, "core"),
                output::bytes(bytes),
                plural(self.runs.into(), "run"),
                self.seed
            ),
            format!(
                "every order is read back, whole and causal, and all are the same: {digest:016x}"
            ),
        ]
    }

    fn print(&self, rows: &[Row], digest: u64) -> anyhow::Result<()> {
        let mut out = output::stdout();
        let (cores, first) = (machine::cores(), &rows[0]);
        if rows.iter().any(|row| row.threads > cores) {
            note(format_args!(
                "this machine has {}: with more threads than that, a row says nothing about more cores",
                plural(cores as u64, "core")
            ));
        }
        if self.json {
            for row in rows {
                output::json_line(&mut out, &self.object(row, first, digest))?;
            }
            return Ok(out.flush()?);
        }
        writeln!(out, "{}", self.title())?;
        let mut table = output::table([
            ">threads",
            ">events/s",
            ">speed-up",
            ">efficiency",
            ">first after",
            ">scan",
            ">order",
            ">place",
            ">commit",
            ">waiting",
        ]);
        for row in rows {
            let report = row.median();
            let mut cells = vec![
                row.threads.to_string(),
                count(row.events_per_second().round() as u64),
                format!("{:.2}", row.speed_up(first)),
                format!("{:.0} %", row.efficiency(first) * 100.0),
                report.first_delivery.map_or_else(String::new, output::duration),
            ];
            cells.extend(row.shares().0.map(|share| format!("{:.0} %", share * 100.0)));
            table.add_row(cells);
        }
        output::print_table(&mut out, &table)?;
        for line in self.notes(rows, digest) {
            writeln!(out, "{line}")?;
        }
        Ok(out.flush()?)
    }

    fn object(&self, row: &Row, first: &Row, digest: u64) -> Measured {
        let (report, shares) = (row.median(), row.shares());
        Measured {
            threads: row.threads,
            cores: row.cores,
            scanners: row.scanners,
            orderers: row.orderers,
            events_per_second: row.events_per_second().round(),
            speed_up: row.speed_up(first),
            efficiency: row.efficiency(first),
            elapsed_seconds: report.elapsed.as_secs_f64(),
            first_delivery_seconds: report.first_delivery.map(|first| first.as_secs_f64()),
            shares: STAGES
                .into_iter()
                .zip(shares.0)
                .map(|(s, v)| (s.to_owned(), v.into()))
                .collect(),
            runs: row.runs.iter().map(|report| rate(report).round()).collect(),
            events: self.events,
            streams: self.streams.min(self.events),
            payload: self.payload,
            profile: format!("{:?}", self.profile),
            bytes: report.bytes,
            seed: self.seed,
            digest: format!("{digest:016x}"),
            processor: machine::processor(),
            machine_cores: machine::cores(),
        }
    }
}

/// The digest of the order, which is whole and causal.
fn checked(source: &Source, store: &Path, report: &DiscoveryReport) -> anyhow::Result<u64> {
    let (scanned, delivered) = (report.scanned, report.delivered);
    ensure!(
        (scanned, delivered, report.held) == (source.events, source.events, 0),
        "{delivered} events are delivered of {scanned}, and {} were appended",
        source.events
    );
    let store = Options::new().create(false).open(store)?;
    let digest = source.check(&store)?;
    Store::close(&store)?;
    Ok(digest)
}

/// The keys of `--json`, in this order.
#[derive(Serialize)]
struct Measured {
    threads: usize,
    cores: usize,
    scanners: usize,
    orderers: usize,
    events_per_second: f64,
    speed_up: f64,
    efficiency: f64,
    elapsed_seconds: f64,
    first_delivery_seconds: Option<f64>,
    shares: serde_json::Map<String, serde_json::Value>,
    runs: Vec<f64>,
    events: u64,
    streams: u64,
    payload: u32,
    profile: String,
    bytes: u64,
    seed: u64,
    digest: String,
    processor: String,
    machine_cores: usize,
}
