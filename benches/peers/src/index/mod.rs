//! `index`: what would keep the known ids, Thalweg's own runs or a store that is there already?
//!
//! See `INDEX.md`. A contender runs in a process and an empty directory of its own; here is the side
//! that starts the processes and collects the rows, [`work`] is the other one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Failure;
use crate::contenders::version_of;
use crate::machine::{Machine, disk_bytes, sync_file_system};

#[cfg(feature = "fjall")]
mod fjall;
mod hashbrown;
#[cfg(feature = "lmdb")]
mod lmdb;
#[cfg(feature = "redb")]
mod redb;
mod thalweg;
pub(crate) mod work;

pub(crate) const USAGE: &str = "\
The known ids side by side: 64-bit keys and values, looked up before they are inserted.

usage: thalweg-peers-bench index KEYS MEMORY_MIB [OPTION VALUE]...

  KEYS                keys that are inserted
  MEMORY_MIB          cache of a store, and memory budget of Thalweg, in MiB
  --contenders A,B    who takes part, in this order        [default: everybody]
  --rounds N          runs of each, contenders in turn     [default: 1]
  --limit S           seconds after which a run is ended; its figures are of
                      the keys so far                      [default: 7200]
  --free MIB          space that a run leaves free         [default: 4096]
  --dir DIR           where stores are made and removed    [default: .]

Rows go to stdout, one JSON object a line; the table and complaints go to stderr.
";

/// How often the directory of a run is measured.
const DISK_SAMPLE: Duration = Duration::from_millis(500);
/// What a run may take beyond its limit: the last batch, the sync, the check.
const GRACE: Duration = Duration::from_secs(1800);

/// What keeps keys.
pub(crate) trait Store {
    /// Looks up keys of which hardly any is there, and keys of which all are. Pushes what it finds to
    /// `found`, in their order, the arrivals before the parents.
    fn look_up(
        &mut self,
        arrivals: &[u64],
        parents: &[u64],
        found: &mut Vec<Option<u64>>,
    ) -> Result<(), Failure>;

    /// Inserts keys that are not there, without waiting for the device.
    fn insert(&mut self, items: &[(u64, u64)]) -> Result<(), Failure>;

    /// Makes durable what was inserted.
    fn sync(&mut self) -> Result<(), Failure>;
}

/// What a store is opened with.
pub(crate) struct Setup<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) keys: u64,
    pub(crate) memory: u64,
}

/// What can be compared.
pub(crate) struct Contender {
    name: &'static str,
    /// The name in the lock file, which has the version.
    package: &'static str,
    /// Whether it takes each batch sorted by key, which spares a tree most of the ways down.
    sorted: bool,
    create: fn(&Setup<'_>) -> Result<Box<dyn Store>, Failure>,
}

const CONTENDERS: &[Contender] = &[
    thalweg::CONTENDER,
    #[cfg(feature = "fjall")]
    fjall::CONTENDER,
    #[cfg(feature = "redb")]
    redb::CONTENDER,
    #[cfg(feature = "lmdb")]
    lmdb::CONTENDER,
    hashbrown::CONTENDER,
];

impl Contender {
    fn named(name: &str) -> Result<&'static Contender, Failure> {
        let found = CONTENDERS.iter().find(|contender| contender.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = CONTENDERS.iter().map(|contender| contender.name).collect();
            format!("no contender is named {name}; there are {}", names.join(", ")).into()
        })
    }
}

struct Options {
    keys: u64,
    memory_mib: u64,
    contenders: Vec<&'static Contender>,
    rounds: usize,
    limit: Duration,
    free_min: u64,
    dir: PathBuf,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self, Failure> {
        let [keys, memory, rest @ ..] = words else {
            return Err("index takes KEYS and MEMORY_MIB; try index --help".into());
        };
        let number = |word: &str| word.replace('_', "").parse::<u64>();
        let mut options = Options {
            keys: number(keys).map_err(|error| format!("KEYS {keys}: {error}"))?,
            memory_mib: number(memory).map_err(|error| format!("MEMORY_MIB {memory}: {error}"))?,
            contenders: CONTENDERS.iter().collect(),
            rounds: 1,
            limit: Duration::from_secs(7200),
            free_min: 4096 << 20,
            dir: PathBuf::from("."),
        };
        for pair in rest.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{} takes a value", pair[0]).into());
            };
            options.set(name, value).map_err(|error| format!("{name} {value}: {error}"))?;
        }
        if options.keys == 0 || options.memory_mib == 0 || options.rounds == 0 {
            return Err("KEYS, MEMORY_MIB and rounds take numbers above 0".into());
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        match name {
            "--contenders" => {
                self.contenders =
                    value.split(',').map(Contender::named).collect::<Result<_, _>>()?
            }
            "--rounds" => self.rounds = value.parse()?,
            "--limit" => self.limit = Duration::try_from_secs_f64(value.parse()?)?,
            "--free" => self.free_min = value.parse::<u64>()? << 20,
            "--dir" => self.dir = value.into(),
            _ => return Err("is no option; try index --help".into()),
        }
        Ok(())
    }
}

/// A run, as it is printed.
#[derive(Serialize)]
struct Row {
    row: &'static str,
    contender: &'static str,
    version: &'static str,
    round: usize,
    /// Keys that were asked for; `keys` of the outcome says how many there were.
    keys_asked: u64,
    memory_mib: u64,
    batch: usize,
    machine: Machine,
    ok: bool,
    wrong: Option<String>,
    /// Bytes that the files take when the store is closed, and the most that they took before.
    disk_bytes: Option<u64>,
    disk_peak_bytes: Option<u64>,
    #[serde(flatten)]
    outcome: Option<work::Outcome>,
}

/// Runs what was asked for. Whether all of it was right.
pub(crate) fn run(words: &[String]) -> Result<bool, Failure> {
    if matches!(words.first().map(String::as_str), Some("--help" | "-h")) {
        print!("{USAGE}");
        return Ok(true);
    }
    let options = Options::parse(words)?;
    let dir = options.dir.join(format!("thalweg-index-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let dir = dir.canonicalize()?;
    let rows = rows(&options, &dir);
    std::fs::remove_dir_all(&dir)?;
    let rows = rows?;
    table(&options, &rows);
    Ok(rows.iter().all(|row| row.ok))
}

fn rows(options: &Options, dir: &Path) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for round in 0..options.rounds {
        for contender in &options.contenders {
            eprintln!("{} ...", contender.name);
            let row = one(options, contender, round, dir)?;
            println!("{}", serde_json::to_string(&row)?);
            rows.push(row);
        }
    }
    Ok(rows)
}

fn one(
    options: &Options,
    contender: &'static Contender,
    round: usize,
    dir: &Path,
) -> Result<Row, Failure> {
    let dir = dir.join("run");
    std::fs::create_dir_all(dir.join("store"))?;
    sync_file_system(&dir)?;
    let spec = work::Spec {
        contender: contender.name.to_owned(),
        dir: dir.join("store"),
        keys: options.keys,
        memory: options.memory_mib << 20,
        limit: options.limit,
        free_min: options.free_min,
        outcome: dir.join("outcome.json"),
    };
    let mut disk_peak_bytes = 0;
    let outcome = child(&spec, &dir, &mut disk_peak_bytes);
    let disk_bytes = disk_bytes(&spec.dir).ok();
    let (outcome, wrong) = match outcome {
        Ok(outcome) => (Some(outcome), None),
        Err(error) => (None, Some(error.to_string())),
    };
    if let Some(wrong) = &wrong {
        eprintln!("{} is wrong: {wrong}", contender.name);
    }
    let machine = Machine::new(&dir)?;
    std::fs::remove_dir_all(&dir)?;
    sync_file_system(&options.dir)?;
    Ok(Row {
        row: "index",
        contender: contender.name,
        version: version_of(contender.package),
        round,
        keys_asked: options.keys,
        memory_mib: options.memory_mib,
        batch: work::BATCH,
        machine,
        ok: wrong.is_none(),
        wrong,
        disk_bytes,
        disk_peak_bytes: disk_bytes.map(|bytes| bytes.max(disk_peak_bytes)),
        outcome,
    })
}

/// Does the work in a process of its own.
fn child(spec: &work::Spec, dir: &Path, disk_peak: &mut u64) -> Result<work::Outcome, Failure> {
    let log = dir.join("stderr");
    let mut child = Command::new(std::env::current_exe()?)
        .args(["index-work", &serde_json::to_string(spec)?])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .spawn()?;
    let deadline = Instant::now() + spec.limit + GRACE;
    let mut next_sample = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(format!("took more than {:?}", spec.limit + GRACE).into());
        }
        if Instant::now() >= next_sample {
            // Files may go while they are measured; the next sample will do.
            *disk_peak = (*disk_peak).max(disk_bytes(&spec.dir).unwrap_or(0));
            next_sample = Instant::now() + DISK_SAMPLE;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if !status.success() {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let said = said.lines().last().unwrap_or_default();
        return Err(format!("{status}: {said}").into());
    }
    Ok(serde_json::from_slice(&std::fs::read(&spec.outcome)?)?)
}

/// One line for each run.
fn table(options: &Options, rows: &[Row]) {
    let Options { keys, memory_mib, .. } = options;
    eprintln!("\n{keys} keys, {memory_mib} MiB; sizes in MiB, rates in thousands a second");
    eprintln!(
        "{:<11}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "",
        "seconds",
        "sync s",
        "ops",
        "last 1/10",
        "found",
        "absent",
        "RssAnon",
        "VmHWM",
        "disk",
        "disk max",
        "written",
        "cpu s"
    );
    let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
    for row in rows {
        let Some(outcome) = &row.outcome else {
            eprintln!("{:<11}  WRONG: {}", row.contender, row.wrong.as_deref().unwrap_or_default());
            continue;
        };
        let cells = [
            format!("{:.1}", outcome.seconds),
            format!("{:.1}", outcome.sync_s),
            format!("{:.0}", outcome.ops_per_s / 1e3),
            format!("{:.0}", outcome.ops_per_s_tenths.last().unwrap_or(&0.0) / 1e3),
            format!("{:.0}", outcome.found_per_s / 1e3),
            format!("{:.0}", outcome.absent_per_s / 1e3),
            mib(outcome.rss_anon_peak_bytes),
            mib(outcome.vm_hwm_bytes),
            mib(row.disk_bytes.unwrap_or(0)),
            mib(row.disk_peak_bytes.unwrap_or(0)),
            mib(outcome.written_bytes),
            format!("{:.1}", outcome.cpu_s),
        ];
        eprint!("{:<11}", row.contender);
        cells.iter().for_each(|cell| eprint!("{cell:>9}"));
        match outcome.keys < row.keys_asked {
            true => eprintln!("  ended by {} after {} keys", outcome.ended_by, outcome.keys),
            false => eprintln!(),
        }
    }
}
