//! `faults`: what becomes of acknowledged appends when the process, the disk or the files fail?
//!
//! See `FAULTS.md`. A contender appends in a process of its own and says what was acknowledged; other
//! processes open what it has left and say what is there. Here is the side that starts the processes
//! and compares; nobody is asked what it promises, and nobody's files are read for their meaning.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::Serialize;

use self::child::{Found, Said, Spec};
use self::trace::{Call, End, Fault, Plan, Traced};
use crate::Failure;
use crate::contenders::{Peer, Setup};
use crate::machine::Machine;

pub(crate) mod child;
mod damage;
mod disk;
mod report;
mod trace;

pub(crate) const USAGE: &str = "\
The same faults for everybody: what was acknowledged, and what is there afterwards.

usage: thalweg-peers-bench faults [OPTION VALUE]...

  --contenders A,B    who takes part, in this order       [default: all but walrus]
  --faults A,B        kill, sync, write, full, short, interrupted, flip, tail,
                      missing                             [default: all of them]
  --rounds N          runs of each fault; three times as many kills  [default: 12]
  --flips N           bits that are flipped, one at a time           [default: 64]
  --large MIB         payload of the store that loses a file         [default: 700]
  --buffered yes      appends are not durable: a check of the check  [default: no]
  --dir DIR           where the stores are made and removed          [default: .]

Rows go to stdout, one JSON object a line; the table goes to stderr. x86-64 Linux only.
";

/// Threads that append.
const THREADS: usize = 3;
/// Appends of each that are to be acknowledged.
const APPENDS: u64 = 40;
/// Longer than two pages, so that a failed sync loses some that no later append writes again.
const PAYLOAD_LEN: usize = 10_000;
/// Appends of each thread to a store that has been opened again.
const APPENDS_AFTERWARDS: u64 = 5;
/// A process that reads for longer hangs.
const READ_TIME_MAX: Duration = Duration::from_secs(120);
/// Writes that a full disk refuses before there is room again.
const FULL_TIMES: u64 = 8;

/// The faults while a process runs, by their names on the command line.
const FAULTS: &[(&str, Fault, &[Call], u64)] = &[
    ("kill", Fault::Kill, &[Call::Write, Call::Sync, Call::Size, Call::Name], 1),
    ("sync", Fault::Fails(Errno::EIO), &[Call::Sync], 1),
    ("write", Fault::Fails(Errno::EIO), &[Call::Write], 1),
    ("full", Fault::Fails(Errno::ENOSPC), &[Call::Write, Call::Size], FULL_TIMES),
    ("short", Fault::Short, &[Call::Write], 1),
    ("interrupted", Fault::Fails(Errno::EINTR), &[Call::Write], 1),
];
/// The faults of files that nobody has open.
const DAMAGES: [&str; 3] = ["flip", "tail", "missing"];

struct Options {
    contenders: Vec<&'static Peer>,
    faults: Vec<String>,
    rounds: u64,
    flips: u64,
    large_bytes: u64,
    durable: bool,
    dir: PathBuf,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self, Failure> {
        // walrus takes its directory from the environment, and the others are Thalweg once more.
        let left_out = ["walrus", "thalweg-callbacks", "thalweg-spinning"];
        let everybody = crate::contenders::PEERS.iter();
        let names = FAULTS.iter().map(|(name, ..)| *name).chain(DAMAGES);
        let mut options = Options {
            contenders: everybody.filter(|peer| !left_out.contains(&peer.name)).collect(),
            faults: names.clone().map(str::to_owned).collect(),
            rounds: 12,
            flips: 64,
            large_bytes: 700 << 20,
            durable: true,
            dir: PathBuf::from("."),
        };
        for pair in words.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{} takes a value", pair[0]).into());
            };
            match name.as_str() {
                "--contenders" => {
                    options.contenders =
                        value.split(',').map(Peer::named).collect::<Result<_, _>>()?;
                }
                "--faults" => options.faults = value.split(',').map(str::to_owned).collect(),
                "--rounds" => options.rounds = value.parse()?,
                "--flips" => options.flips = value.parse()?,
                "--large" => options.large_bytes = value.parse::<u64>()? << 20,
                "--buffered" => options.durable = value != "yes",
                "--dir" => options.dir = value.into(),
                _ => return Err(format!("{name} is no option; try faults --help").into()),
            }
        }
        if let Some(fault) =
            options.faults.iter().find(|fault| !names.clone().any(|of| of == **fault))
        {
            return Err(format!("{fault} is no fault; try faults --help").into());
        }
        Ok(options)
    }
}

/// One fault and what became of it.
#[derive(Debug, Serialize)]
struct Row {
    contender: &'static str,
    version: &'static str,
    fault: String,
    durable: bool,
    /// The call, or the place, that it hit, of so many.
    at: u64,
    of: u64,
    /// What the running process did. None where nothing ran.
    running: Option<Running>,
    /// What was there when the store was opened again.
    opened: Reopened,
    /// The same when the power fails before it is opened again.
    after_power_cut: Option<Reopened>,
}

/// What a process did that was hit while it appended.
#[derive(Debug, Serialize)]
struct Running {
    /// Whether the fault happened at all.
    hit: bool,
    acknowledged: u64,
    /// From the fault on.
    acknowledged_after: u64,
    refused: u64,
    first_refusal: Option<String>,
    panicked: Option<String>,
    close_failed: Option<String>,
    end: String,
    /// Ways of writing that the power cut does not know of.
    unseen: Vec<&'static str>,
}

/// What was found in a store, beside what was acknowledged.
#[derive(Debug, Default, Serialize)]
struct Reopened {
    found: u64,
    /// Acknowledged, and not found.
    lost: u64,
    /// Found more than once.
    twice: u64,
    /// Payloads that nobody has written.
    wrong: u64,
    error: Option<String>,
    panic: Option<String>,
    /// A signal, or that it hung.
    died: Option<String>,
    /// Whether it takes appends again and then has all of it. None where it was not tried.
    goes_on: Option<bool>,
}

/// Runs everything that was asked for.
pub(crate) fn run(words: &[String]) -> Result<bool, Failure> {
    if words.first().is_some_and(|word| word == "--help") {
        print!("{USAGE}");
        return Ok(true);
    }
    let options = Options::parse(words)?;
    let dir = options.dir.join(format!("thalweg-faults-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let dir = dir.canonicalize()?;
    let Machine { kernel, file_system, .. } = Machine::new(&dir)?;
    eprintln!("Linux {kernel}, {file_system}");
    let mut rows = Vec::new();
    let result = options
        .contenders
        .iter()
        .try_for_each(|peer| Bench { options: &options, peer, dir: &dir, rows: &mut rows }.run());
    std::fs::remove_dir_all(&dir)?;
    report::table(&options.contenders, &rows);
    result.map(|()| true)
}

/// The runs of one contender.
struct Bench<'a> {
    options: &'a Options,
    peer: &'static Peer,
    dir: &'a Path,
    rows: &'a mut Vec<Row>,
}

impl Bench<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        let wanted = |name: &str| self.options.faults.iter().any(|fault| fault == name);
        let faults: Vec<_> = FAULTS.iter().filter(|(name, ..)| wanted(name)).collect();
        let damages = DAMAGES.map(wanted);
        for (name, fault, calls, times) in faults {
            self.while_it_runs(name, *fault, calls, *times)?;
        }
        self.damage(damages)
    }

    fn push(&mut self, row: Row) {
        println!("{}", serde_json::to_string(&row).expect("a row is plain data"));
        self.rows.push(row);
    }

    fn row(&self, fault: &str, (at, of): (u64, u64), opened: Reopened) -> Row {
        Row {
            contender: self.peer.name,
            version: self.peer.version(),
            fault: fault.to_owned(),
            durable: self.options.durable,
            at,
            of,
            running: None,
            opened,
            after_power_cut: None,
        }
    }

    /// A fault that hits a running process, at calls that are spread over its run.
    fn while_it_runs(
        &mut self,
        name: &'static str,
        fault: Fault,
        calls: &'static [Call],
        times: u64,
    ) -> Result<(), Failure> {
        let undisturbed = self.fresh("undisturbed")?;
        let traced = self.append(&self.spec(&undisturbed), None)?;
        std::fs::remove_dir_all(&undisturbed)?;
        let of = calls.iter().filter_map(|call| traced.counts.get(call)).sum::<u64>();
        if traced.end != End::Code(0) || of == 0 {
            let Traced { end, complaint, .. } = traced;
            return Err(format!("{} without a fault: {end:?}: {complaint}", self.peer.name).into());
        }
        let rounds = self.options.rounds * if fault == Fault::Kill { 3 } else { 1 };
        for round in 0..rounds.min(of) {
            let at = 1 + round * of / rounds.min(of);
            let dir = self.fresh("hit")?;
            let spec = self.spec(&dir);
            let traced = self.append(&spec, Some(Plan { fault, calls, at, times }))?;
            let acknowledged = acknowledged(&traced.said);
            let kept = self.copy(&dir, "kept")?;
            traced.disk.cut_power(&dir)?;
            let opened =
                self.reopen(&Spec { setup: self.setup(&kept), ..spec.clone() }, &acknowledged)?;
            let after_power_cut = self.reopen(&spec, &acknowledged)?;
            std::fs::remove_dir_all(&dir)?;
            std::fs::remove_dir_all(&kept)?;
            self.push(Row {
                running: Some(running(traced)),
                after_power_cut: Some(after_power_cut),
                ..self.row(name, (at, of), opened)
            });
        }
        Ok(())
    }

    fn setup(&self, dir: &Path) -> Setup {
        Setup {
            dir: dir.to_owned(),
            durable: self.options.durable || !self.peer.buffered,
            threads: THREADS,
            streams: THREADS,
            byte_max: 1 << 20,
        }
    }

    fn spec(&self, dir: &Path) -> Spec {
        Spec {
            contender: self.peer.name.to_owned(),
            setup: self.setup(dir),
            payload: PAYLOAD_LEN,
            first: vec![0; THREADS],
            appends: APPENDS,
        }
    }

    fn fresh(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir)?;
        Ok(dir)
    }

    fn copy(&self, from: &Path, name: &str) -> Result<PathBuf, Failure> {
        let to = self.dir.join(name);
        // Segments that are reserved ahead stay sparse.
        let status =
            Command::new("cp").args(["-a", "--sparse=always"]).args([from, &to]).status()?;
        if status.success() { Ok(to) } else { Err(format!("cp ended with {status}").into()) }
    }

    fn append(&self, spec: &Spec, plan: Option<Plan>) -> Result<Traced, Failure> {
        trace::run(&mut command("faults-append", spec)?, &spec.setup.dir, plan)
    }

    /// Opens a store, compares, and appends to it once more.
    fn reopen(&self, spec: &Spec, acknowledged: &[HashSet<u64>]) -> Result<Reopened, Failure> {
        let (found, mut reopened) = self.look(spec, acknowledged)?;
        if reopened.is_well() {
            let first = found.events.iter().zip(acknowledged).map(|(found, acknowledged)| {
                found.iter().chain(acknowledged).max().map_or(0, |last| last + 1)
            });
            let first: Vec<_> = first.collect();
            let more = Spec { first, appends: APPENDS_AFTERWARDS, ..spec.clone() };
            let said = trace::leave_alone(&mut command("faults-append", &more)?);
            let new = self::acknowledged(&said.unwrap_or_default());
            let all = found
                .events
                .iter()
                .zip(&new)
                .map(|(found, new)| found.iter().chain(new).copied().collect::<HashSet<_>>());
            let (_, again) = self.look(spec, &all.collect::<Vec<_>>())?;
            let complete = new.iter().all(|new| new.len() as u64 == APPENDS_AFTERWARDS);
            reopened.goes_on = Some(complete && again.is_well() && again.lost == 0);
        }
        Ok(reopened)
    }

    /// Opens a store and compares.
    fn look(
        &self,
        spec: &Spec,
        acknowledged: &[HashSet<u64>],
    ) -> Result<(Found, Reopened), Failure> {
        let output = self.dir.join("output");
        let mut child = command("faults-read", spec)?
            .stdin(Stdio::null())
            .stdout(File::create(&output)?)
            .stderr(File::create(self.dir.join("complaint"))?)
            .spawn()?;
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if begun.elapsed() > READ_TIME_MAX {
                child.kill()?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let found = serde_json::from_slice::<Found>(&std::fs::read(&output)?);
        let died = match (status, &found) {
            (None, _) => Some("hangs".to_owned()),
            (Some(status), found) if !status.success() || found.is_err() => {
                Some(status.to_string())
            }
            _ => None,
        };
        let found = found.unwrap_or_default();
        let mut reopened = Reopened {
            wrong: found.wrong,
            error: found.error.clone(),
            panic: found.panic.clone(),
            died,
            ..Reopened::default()
        };
        for (thread, acknowledged) in acknowledged.iter().enumerate() {
            let events = found.events.get(thread).map_or(&[][..], Vec::as_slice);
            let there: HashSet<u64> = events.iter().copied().collect();
            reopened.found += there.len() as u64;
            reopened.twice += (events.len() - there.len()) as u64;
            reopened.lost += acknowledged.difference(&there).count() as u64;
        }
        Ok((found, reopened))
    }
}

impl Reopened {
    /// Whether opening and reading came to their end. Says nothing about what was found.
    fn is_well(&self) -> bool {
        self.error.is_none() && self.panic.is_none() && self.died.is_none()
    }
}

fn command(name: &str, spec: &Spec) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name).arg(serde_json::to_string(spec)?);
    Ok(command)
}

/// The events of each thread that were acknowledged.
fn acknowledged(said: &[Said]) -> Vec<HashSet<u64>> {
    let mut acknowledged = vec![HashSet::new(); THREADS];
    for said in said {
        if let Said::Acknowledged(thread, number) = said {
            acknowledged[*thread as usize].insert(*number);
        }
    }
    acknowledged
}

fn running(traced: Traced) -> Running {
    let Traced { said, said_before, .. } = &traced;
    let after = said.get(said_before.unwrap_or(said.len())..).unwrap_or_default();
    let count = |said: &[Said]| {
        said.iter().filter(|said| matches!(said, Said::Acknowledged(..))).count() as u64
    };
    let refusals = || {
        said.iter().filter_map(|said| match said {
            Said::Refused(text) => Some(text.clone()),
            _ => None,
        })
    };
    let first = |of: fn(&Said) -> Option<String>| said.iter().find_map(of);
    // A thread of the contender's own says it here alone.
    let complaint = || {
        let mut lines = traced.complaint.lines();
        lines.by_ref().find(|line| line.contains("panicked at"))?;
        lines.next().map(|line| format!("in a thread of its own: {line}"))
    };
    Running {
        hit: said_before.is_some(),
        acknowledged: count(said),
        acknowledged_after: count(after),
        refused: refusals().count() as u64,
        first_refusal: refusals().next(),
        panicked: first(|said| match said {
            Said::Panicked(text) => Some(text.clone()),
            _ => None,
        })
        .or_else(complaint),
        close_failed: first(|said| match said {
            Said::NotClosed(text) => Some(text.clone()),
            _ => None,
        }),
        end: match traced.end {
            End::Code(code) => format!("exit {code}"),
            End::Signal(signal) => signal.to_string(),
            End::Hung => "hangs".to_owned(),
        },
        unseen: traced.unseen.iter().copied().collect(),
    }
}

/// Every file below a directory, in the order of their names.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
