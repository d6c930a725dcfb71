//! Rows, as JSON and as a table, and the machine they come from.

use std::fmt;

use super::contenders::Mix;
use crate::sync::SLOW_READ_COUNT_BEFORE_BIAS;

/// Where the run takes place.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(super) cores: usize,
    cpu: String,
    kernel: String,
    /// Load average of the last minute, before the run.
    load: String,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let cpu = cpu_info.lines().find_map(|line| line.strip_prefix("model name"));
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu: cpu.unwrap_or("unknown").trim_matches([' ', '\t', ':']).to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }

    /// The fields of an object.
    pub(crate) fn json(&self) -> String {
        let Self { cores, cpu, kernel, load } = self;
        format!(
            "\"cores\":{cores},\"cpu\":\"{cpu}\",\"kernel\":\"{kernel}\",\"rustc\":\"{RUSTC}\",\
             \"load\":\"{load}\""
        )
    }
}

/// The compiler that built this program.
const RUSTC: &str = env!("THALWEG_RUSTC");

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, cpu, kernel, load } = self;
        write!(f, "{cpu}, {cores} cores, kernel {kernel}, {RUSTC}, load {load}")
    }
}

/// The median of some figures, and their 10th and 90th percentile.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) p10: f64,
    pub(super) p90: f64,
}

impl Spread {
    /// `None` if there are no figures.
    pub(super) fn of(mut figures: Vec<f64>) -> Option<Self> {
        figures.sort_unstable_by(f64::total_cmp);
        let last = figures.len().checked_sub(1)?;
        let quantile = |tenths| figures[(last * tenths + 5) / 10];
        Some(Self { median: quantile(5), p10: quantile(1), p90: quantile(9) })
    }
}

/// The figures of one lock under one mix on some threads.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) lock: &'static str,
    pub(super) mix: Mix,
    pub(super) threads: usize,
    pub(super) parallel: bool,
    /// Wall time of a thread per operation of its own, by round. `None` if no window counts.
    pub(super) wall_ns: Option<Spread>,
    /// CPU time of a thread per operation of its own, by round. `None` if no window counts.
    pub(super) cpu_ns: Option<Spread>,
    pub(super) rounds: usize,
    pub(super) windows: usize,
    /// Windows that count.
    pub(super) kept: usize,
    /// In the windows that count.
    pub(super) operations: u64,
    /// In all windows.
    pub(super) writes: u64,
}

impl Row {
    pub(super) fn json(&self, machine: &Machine) -> String {
        let Self { lock, mix, threads, parallel, rounds, windows, kept, .. } = self;
        let Self { wall_ns, cpu_ns, operations, writes, .. } = self;
        format!(
            "{{\"lock\":\"{lock}\",\"mix\":\"{mix}\",\"threads\":{threads},\"parallel\":{parallel},\
             {},{},\"rounds\":{rounds},\"windows\":{windows},\"kept\":{kept},\
             \"operations\":{operations},\"writes_verified\":{writes},\
             \"slow_reads_before_bias\":{SLOW_READ_COUNT_BEFORE_BIAS},\
             {}}}",
            spread_json("wall_ns", wall_ns),
            spread_json("cpu_ns", cpu_ns),
            machine.json(),
        )
    }
}

fn spread_json(name: &str, spread: &Option<Spread>) -> String {
    match spread {
        Some(Spread { median, p10, p90 }) => {
            format!("\"{name}\":{median:.1},\"{name}_p10\":{p10:.1},\"{name}_p90\":{p90:.1}")
        }
        None => format!("\"{name}\":null,\"{name}_p10\":null,\"{name}_p90\":null"),
    }
}

/// The rows of one number of threads: a line per mix, a column per lock.
pub(super) fn table(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let how = if first.parallel { "side by side" } else { "more than cores" };
    let mut text = format!("threads: {}, {how}; wall ns (CPU ns) per operation\n", first.threads);
    text += &format!("{:26}", "");
    let of_first_mix = rows.iter().take_while(|row| row.mix == first.mix);
    of_first_mix.for_each(|row| text += &format!("{:>20}", row.lock));
    for of_mix in rows.chunk_by(|row, next| row.mix == next.mix) {
        text += &format!("\n{:26}", of_mix[0].mix);
        of_mix.iter().for_each(|row| text += &format!("{:>20}", cell(row)));
    }
    let kept: usize = rows.iter().map(|row| row.kept).sum();
    let windows: usize = rows.iter().map(|row| row.windows).sum();
    text + &format!("\n{kept} of {windows} windows count\n")
}

fn cell(row: &Row) -> String {
    match (row.wall_ns, row.cpu_ns) {
        (Some(wall), Some(cpu)) => format!("{:.1} ({:.1})", wall.median, cpu.median),
        _ => "-".to_owned(),
    }
}
