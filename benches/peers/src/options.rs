//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::Failure;
use crate::contenders::{PEERS, Peer};

pub(crate) const USAGE: &str = "\
Appends side by side: every contender in every cell, in turn, checked.

usage: thalweg-peers-bench [OPTION VALUE]...
       thalweg-peers-bench index --help      the known ids side by side
       thalweg-peers-bench consumers --help  how soon consumers see an event
       thalweg-peers-bench faults --help     what is left after kills, failing disks and damage

  --contenders A,B    who takes part, in this order            [default: everybody]
  --durability D,..   durable, buffered                        [default: both]
  --threads N,..      threads that append                      [default: 1,2,4,16,64]
  --batch N,..        events in one append                     [default: 1,64,512]
  --payload N,..      bytes of one event                       [default: 100,1024,4096]
  --depth N,..        appends under way per thread; above 1 for those that can
                                                               [default: 1,2,4,8,16]
  --streams N         streams, where there are any             [default: one per thread]
  --rounds N          runs of each cell, contenders in turn    [default: 3]
  --seconds S         length of a run, without warm-up         [default: 2]
  --warm-up S         appends before the clock starts          [default: 0.5]
  --bytes MIB         payload at which a run ends before time  [default: 1024]
  --free MIB          space that a run leaves free             [default: 4096]
  --limit S           a run that takes longer in all is killed [default: 300]
  --dir DIR           where the stores are made and removed    [default: .]

Rows go to stdout, one JSON object a line; tables and complaints go to stderr.
";

/// What is run.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) contenders: Vec<&'static Peer>,
    /// Whether appends are durable.
    pub(crate) durability: Vec<bool>,
    pub(crate) threads: Vec<usize>,
    pub(crate) batch: Vec<usize>,
    pub(crate) payload: Vec<usize>,
    pub(crate) depth: Vec<usize>,
    pub(crate) streams: Option<usize>,
    pub(crate) rounds: usize,
    pub(crate) seconds: Duration,
    pub(crate) warm_up: Duration,
    pub(crate) byte_max: u64,
    pub(crate) free_min: u64,
    pub(crate) limit: Duration,
    pub(crate) dir: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            contenders: PEERS.iter().collect(),
            durability: vec![true, false],
            threads: vec![1, 2, 4, 16, 64],
            batch: vec![1, 64, 512],
            payload: vec![100, 1024, 4096],
            depth: vec![1, 2, 4, 8, 16],
            streams: None,
            rounds: 3,
            seconds: Duration::from_secs(2),
            warm_up: Duration::from_millis(500),
            byte_max: 1024 << 20,
            free_min: 4096 << 20,
            limit: Duration::from_secs(300),
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
            "--contenders" => {
                self.contenders = value.split(',').map(Peer::named).collect::<Result<_, _>>()?
            }
            "--durability" => {
                self.durability = value.split(',').map(durable).collect::<Result<_, _>>()?
            }
            "--threads" => self.threads = numbers(value)?,
            "--batch" => self.batch = numbers(value)?,
            "--payload" => self.payload = numbers(value)?,
            "--depth" => self.depth = numbers(value)?,
            "--streams" => self.streams = Some(value.parse()?),
            "--rounds" => self.rounds = value.parse()?,
            "--seconds" => self.seconds = Duration::try_from_secs_f64(value.parse()?)?,
            "--warm-up" => self.warm_up = Duration::try_from_secs_f64(value.parse()?)?,
            "--bytes" => self.byte_max = value.parse::<u64>()? << 20,
            "--free" => self.free_min = value.parse::<u64>()? << 20,
            "--limit" => self.limit = Duration::try_from_secs_f64(value.parse()?)?,
            "--dir" => self.dir = value.into(),
            _ => return Err("is no option; try --help".into()),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        let lists = [&self.threads, &self.batch, &self.payload, &self.depth];
        if lists.into_iter().flatten().any(|number| *number == 0) {
            return Err("threads, batch, payload and depth take numbers above 0".into());
        }
        if self.payload.iter().any(|len| *len <= crate::payload::HEADER_LEN) {
            return Err(
                format!("a payload takes more than {} bytes", crate::payload::HEADER_LEN).into()
            );
        }
        if self.streams == Some(0) || self.rounds == 0 || self.seconds.is_zero() {
            return Err("streams, rounds and seconds take numbers above 0".into());
        }
        Ok(())
    }
}

fn numbers(list: &str) -> Result<Vec<usize>, <usize as FromStr>::Err> {
    list.split(',').map(str::parse).collect()
}

fn durable(word: &str) -> Result<bool, Failure> {
    match word {
        "durable" => Ok(true),
        "buffered" => Ok(false),
        _ => Err("takes durable and buffered".into()),
    }
}
