//! Measures consumers, and checks what they have seen.
//!
//! ```text
//! thalweg-benches consumers [OPTION VALUE]...
//! ```
//!
//! Three cases, each on a new store in a directory of its own:
//!
//! * `wake`: from the call of an append to the return of `next` in a subscriber that waits; with one waiter and with
//!   many, each on a stream of its own or all on the whole order. `ack` is from the same call to its acknowledgement. A
//!   subscriber may see an event before its appender has the acknowledgement.
//! * `follower`: the same to a follower in another process. `CLOCK_MONOTONIC` is one clock for both.
//! * `catch-up`: a subscription over everything that is there, beside a plain read of the same events; of the whole order,
//!   and of one stream of sixteen.
//!
//! # How it measures
//!
//! An event's payload has its number and the time of its append. Closed loop: the next append comes when everybody who
//! waits for the last one has seen it, so nobody is measured who stands in line. The first tenth of the appends
//! warms up and does not count. The rounds of `catch-up` take turns, and a figure is their median.
//!
//! Each subscriber checks that it sees exactly its numbers, in order; each catch-up, count and checksum of them.
//!
//! The peers' benchmarks compile these files, too, to measure others in the same way; so nothing here names
//! anything but `std`, `rustix` and `thalweg`.

mod catch_up;
pub(crate) mod follow;
mod report;
pub(crate) mod thalweg;
mod wake;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::time::{ClockId, clock_gettime};

use self::report::Row;
use crate::Failure;

pub(crate) const USAGE: &str = "\
Consumers: how soon they see an event, and how fast they catch up.

usage: consumers [OPTION VALUE]...

  --waiters N,..   threads that wait for events               [default: 1,1000]
  --appends N      appends of a case                          [default: 2000]
  --events N       events to catch up with                    [default: 1000000]
  --payload N      bytes of one event, at least 16            [default: 100]
  --rounds N       catch-ups of each kind                     [default: 5]
  --cases A,B      wake, follower, catch-up                   [default: all]
  --dir DIR        where stores are made and removed          [default: .]
  --json FILE      rows are appended here, one object a line

The table goes to stdout.
";

/// Whether what is acknowledged survives power loss, or only the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    Durable,
    Buffered,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Durability::Durable => "durable",
            Durability::Buffered => "buffered",
        })
    }
}

/// What somebody reads or waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    All,
    /// The stream with this number.
    Stream(usize),
}

pub(crate) type Opened = Result<Box<dyn Log>, Failure>;

/// What is measured.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) durabilities: &'static [Durability],
    /// Makes a new store.
    pub(crate) open: fn(&Path, Durability) -> Opened,
    /// Follows, from the first event on, a store that another process writes.
    pub(crate) follow: fn(&Path) -> Result<Box<dyn Subscribe>, Failure>,
}

/// An open store.
pub(crate) trait Log: Sync {
    /// What one thread appends with.
    fn appender(&self) -> Result<Box<dyn Append + '_>, Failure>;
    /// Waits until everything acknowledged can be read.
    fn settle(&self) -> Result<(), Failure>;
    /// Shows every payload that there is.
    fn read(&self, what: What, visit: &mut Visit<'_>) -> Result<(), Failure>;
    /// Follows from the first event on.
    fn subscribe(&self, what: What) -> Result<Box<dyn Subscribe + Send>, Failure>;
    /// Closes the store, which ends all subscriptions.
    fn close(self: Box<Self>) -> Result<(), Failure>;
}

pub(crate) trait Append {
    /// Appends events, each to the stream with its number, and waits for the acknowledgement.
    fn append(&mut self, events: &[(usize, Vec<u8>)]) -> Result<(), Failure>;
}

pub(crate) trait Subscribe {
    /// Waits for the next event or events, and shows their payloads; `false` if the store was closed.
    fn next(&mut self, visit: &mut Visit<'_>) -> Result<bool, Failure>;
}

/// Takes the payloads that are read.
pub(crate) type Visit<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

/// What is run.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    waiters: Vec<usize>,
    appends: u64,
    events: u64,
    payload: usize,
    rounds: usize,
    cases: Vec<Case>,
    pub(crate) dir: PathBuf,
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Wake,
    Follower,
    CatchUp,
}

impl FromStr for Case {
    type Err = Failure;

    fn from_str(word: &str) -> Result<Self, Failure> {
        match word {
            "wake" => Ok(Case::Wake),
            "follower" => Ok(Case::Follower),
            "catch-up" => Ok(Case::CatchUp),
            _ => Err("takes wake, follower and catch-up".into()),
        }
    }
}

impl Options {
    pub(crate) fn parse<S: AsRef<str>>(words: &[S]) -> Result<Self, Failure> {
        let mut options = Options {
            waiters: vec![1, 1000],
            appends: 2000,
            events: 1_000_000,
            payload: 100,
            rounds: 5,
            cases: vec![Case::Wake, Case::Follower, Case::CatchUp],
            dir: PathBuf::from("."),
            json: None,
        };
        for pair in words.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{} takes a value", pair[0].as_ref()).into());
            };
            let (name, value) = (name.as_ref(), value.as_ref());
            options.set(name, value).map_err(|error| format!("{name} {value}: {error}"))?;
        }
        let positive = options.appends > 0 && options.events > 0 && options.rounds > 0;
        if !positive || options.waiters.contains(&0) || options.payload < HEADER_LEN {
            return Err(format!("takes numbers above 0, and payloads of {HEADER_LEN} bytes").into());
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        match name {
            "--waiters" => self.waiters = list(value)?,
            "--appends" => self.appends = value.parse()?,
            "--events" => self.events = value.parse()?,
            "--payload" => self.payload = value.parse()?,
            "--rounds" => self.rounds = value.parse()?,
            "--cases" => self.cases = list(value)?,
            "--dir" => self.dir = value.into(),
            "--json" => self.json = Some(value.into()),
            _ => return Err("is no option; try --help".into()),
        }
        Ok(())
    }
}

fn list<T: FromStr>(value: &str) -> Result<Vec<T>, T::Err> {
    value.split(',').map(str::parse).collect()
}

/// Runs every case for every contender. `machine` is an object of JSON, and goes into every row.
pub(crate) fn run(
    options: &Options,
    contenders: &[Contender],
    machine: &str,
) -> Result<(), Failure> {
    let dir = options.dir.join(format!("thalweg-consumers-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let result = run_in(&dir, options, contenders, machine);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn run_in(
    dir: &Path,
    options: &Options,
    contenders: &[Contender],
    machine: &str,
) -> Result<(), Failure> {
    println!("{machine}");
    println!(
        "{} appends, {} events, payload {} B",
        options.appends, options.events, options.payload
    );
    let mut report = report::Report::new(options.json.as_deref(), machine)?;
    let mut stores = 0;
    let mut one = |contender: &Contender, run: &dyn Fn(&Path) -> Result<Row, Failure>| {
        stores += 1;
        let dir = dir.join(format!("store-{stores}"));
        let row = run(&dir).map_err(|error| format!("{}: {error}", contender.name))?;
        std::fs::remove_dir_all(&dir)?;
        report.add(contender, &row)
    };
    for &case in &options.cases {
        for contender in contenders {
            for &durability in contender.durabilities {
                match case {
                    Case::Wake => {
                        for &waiters in &options.waiters {
                            for of in wake::Of::ALL {
                                one(contender, &|dir| {
                                    wake::run(contender, dir, durability, of, waiters, options)
                                })?;
                            }
                        }
                    }
                    Case::Follower => {
                        one(contender, &|dir| follow::run(contender, dir, durability, options))?;
                    }
                    // How it was written does not matter to who reads.
                    Case::CatchUp if durability == Durability::Durable => {
                        for what in [What::All, What::Stream(0)] {
                            one(contender, &|dir| catch_up::run(contender, dir, what, options))?;
                        }
                    }
                    Case::CatchUp => {}
                }
            }
        }
    }
    Ok(())
}

/// Number of the event, and the time of its append.
const HEADER_LEN: usize = 16;

fn payload(number: u64, len: usize) -> Vec<u8> {
    let mut payload = vec![b'.'; len];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

/// Notes the time in a payload.
fn stamp(payload: &mut [u8]) {
    payload[8..HEADER_LEN].copy_from_slice(&now_ns().to_le_bytes());
}

/// Number and time of a payload.
fn header(payload: &[u8]) -> Result<(u64, u64), Failure> {
    let (number, rest) = payload.split_first_chunk().ok_or("a payload is too short")?;
    let (sent, _) = rest.split_first_chunk().ok_or("a payload is too short")?;
    Ok((u64::from_le_bytes(*number), u64::from_le_bytes(*sent)))
}

/// The clock that all processes share.
fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
