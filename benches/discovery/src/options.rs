//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::Failure;
use crate::contenders::{CONTENDERS, Contender};
use crate::machine::cores;
use crate::profile::{PROFILES, Profile};

const USAGE: &str = "\
Discovery: every contender finds and orders what is undelivered, in turn, checked.

usage: thalweg-discovery-bench [OPTION VALUE]...

  --profiles abc..      shapes of data, by letter               [default: abcdefgh]
  --contenders A,B      who takes part, in this order           [default: everybody]
  --events N            events, for those that are fast         [default: 200000]
  --sqlite-events N     events, for everybody                   [default: 20000]
  --threads N,..        scanners and orderers of Thalweg, beside its defaults
                                                                [default: 1, 2, 4 .. cores]
  --tasks N,..          ordering tasks of SQLite after          [default: 1,16]
  --caches C,..         cold, warm                              [default: both]
  --rounds N            runs of each cell, contenders in turn   [default: 1]
  --seed N              of the data                             [default: 1]
  --limit S             a run that takes longer is killed       [default: 600]
  --dir DIR             where the stores are made and removed   [default: .]

First everybody runs with --sqlite-events, then the fast ones with --events. Rows go to stdout, one JSON
object a line; tables and complaints go to stderr. The letters:
";

/// The usage, with the letters.
pub(crate) fn usage() -> String {
    let letters =
        PROFILES.iter().map(|profile| format!("  {}  {}\n", profile.letter, profile.name));
    letters.fold(String::from(USAGE), |usage, letter| usage + &letter)
}

/// What is run.
pub(crate) struct Options {
    pub(crate) profiles: Vec<&'static Profile>,
    pub(crate) contenders: Vec<&'static Contender>,
    pub(crate) events: usize,
    pub(crate) sqlite_events: usize,
    pub(crate) threads: Vec<usize>,
    pub(crate) tasks: Vec<usize>,
    /// Whether the caches are cold.
    pub(crate) caches: Vec<bool>,
    pub(crate) rounds: usize,
    pub(crate) seed: u64,
    pub(crate) limit: Duration,
    pub(crate) dir: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        let cores = cores();
        let mut threads: Vec<usize> =
            (0..usize::BITS).map(|bit| 1 << bit).take_while(|threads| *threads < cores).collect();
        threads.push(cores);
        Options {
            profiles: PROFILES.iter().collect(),
            contenders: CONTENDERS.iter().collect(),
            events: 200_000,
            sqlite_events: 20_000,
            threads,
            tasks: vec![1, 16],
            caches: vec![true, false],
            rounds: 1,
            seed: 1,
            limit: Duration::from_secs(600),
            dir: PathBuf::from("."),
        }
    }
}

impl Options {
    pub(crate) fn parse(words: &[String]) -> Result<Self, Failure> {
        let mut options = Options::default();
        for pair in words.chunks(2) {
            let [name, value] = pair else {
                return Err(format!("{} takes a value", pair[0]).into());
            };
            options.set(name, value).map_err(|error| format!("{name} {value}: {error}"))?;
        }
        options.check()?;
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        match name {
            "--profiles" => self.profiles = value.chars().map(profile).collect::<Result<_, _>>()?,
            "--contenders" => {
                self.contenders =
                    value.split(',').map(Contender::named).collect::<Result<_, _>>()?
            }
            "--events" => self.events = value.parse()?,
            "--sqlite-events" => self.sqlite_events = value.parse()?,
            "--threads" => self.threads = numbers(value)?,
            "--tasks" => self.tasks = numbers(value)?,
            "--caches" => self.caches = value.split(',').map(cold).collect::<Result<_, _>>()?,
            "--rounds" => self.rounds = value.parse()?,
            "--seed" => self.seed = value.parse()?,
            "--limit" => self.limit = Duration::try_from_secs_f64(value.parse()?)?,
            "--dir" => self.dir = value.into(),
            _ => return Err("is no option; try --help".into()),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        if self.threads.iter().chain(&self.tasks).any(|number| *number == 0) {
            return Err("threads and tasks take numbers above 0".into());
        }
        // Room for what a number is mixed with.
        if self.events.max(self.sqlite_events) > 100_000_000 {
            return Err("takes a hundred million events at most".into());
        }
        if self.events.min(self.sqlite_events).min(self.rounds) == 0 {
            return Err("events and rounds take numbers above 0".into());
        }
        Ok(())
    }
}

fn profile(letter: char) -> Result<&'static Profile, Failure> {
    let found = PROFILES.iter().find(|profile| profile.letter == letter);
    found.ok_or_else(|| "takes letters of --help".into())
}

fn numbers(list: &str) -> Result<Vec<usize>, <usize as FromStr>::Err> {
    list.split(',').filter(|number| !number.is_empty()).map(str::parse).collect()
}

fn cold(word: &str) -> Result<bool, Failure> {
    match word {
        "cold" => Ok(true),
        "warm" => Ok(false),
        _ => Err("takes cold and warm".into()),
    }
}
