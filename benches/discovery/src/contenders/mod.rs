//! What is compared: one file for each contender, and the list of them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::cell::Scanned;
use crate::expected::Strictness;
use crate::machine::Used;
use crate::profile::Data;

mod kahn;
#[cfg(feature = "p2panda")]
mod p2panda;
mod records;
mod scan;
mod sqlite;
mod sqlite_after;
mod sqlite_before;
mod thalweg;

/// What a cell runs on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// A copy of what was prepared, for this run alone.
    pub(crate) dir: PathBuf,
    /// Threads, or tasks, for those that can be told; 0 for their defaults.
    pub(crate) threads: usize,
    /// Whether anything will be delivered that was not delivered before.
    pub(crate) has_news: bool,
}

/// What came out.
pub(crate) struct Done {
    pub(crate) used: Used,
    pub(crate) answer: Answer,
    pub(crate) lookups: Option<u64>,
}

impl Done {
    fn ordered(used: Used, order: Vec<u32>) -> Self {
        Done { used, answer: Answer::Order(order), lookups: None }
    }
}

/// What a contender says.
pub(crate) enum Answer {
    /// Ordinals in the order of their delivery, those delivered before included, unless the store
    /// keeps none.
    Order(Vec<u32>),
    /// It only scans.
    Scanned(Scanned),
}

/// What a contender runs on. What two contenders share is prepared once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// The schema of the node that the SQLite contenders follow.
    Sqlite,
    /// The same, tuned.
    SqliteTuned,
    /// A log of Thalweg, with what was settled in its checkpoint.
    Log,
    /// Records that are parsed already, without what was settled.
    Records,
}

impl Store {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Store::Sqlite => "sqlite",
            Store::SqliteTuned => "sqlite-tuned",
            Store::Log => "log",
            Store::Records => "records",
        }
    }

    /// Makes the store in `dir`, which is empty.
    pub(crate) fn prepare(self, data: &Data, dir: &Path) -> Result<(), Failure> {
        match self {
            Store::Sqlite => sqlite::prepare(&sqlite::PLAIN, data, dir),
            Store::SqliteTuned => sqlite::prepare(&sqlite::TUNED, data, dir),
            Store::Log => thalweg::prepare(data, dir),
            Store::Records => records::prepare(data, dir),
        }
    }

    /// What is delivered already and is not in this store, parents first.
    pub(crate) fn left_out(self, data: &Data) -> Vec<u32> {
        match self {
            Store::Records => {
                let mut settled = data.arrivals[..data.settled].to_vec();
                settled.sort_unstable(); // parents have lower ordinals
                settled
            }
            Store::Sqlite | Store::SqliteTuned | Store::Log => Vec::new(),
        }
    }
}

/// Which of the numbers of threads it is run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// With what it takes by itself.
    Default,
    /// With that, and with each of `--threads`.
    DefaultAndEach,
    /// With each of `--threads`.
    Each,
    /// With each of `--tasks`.
    Tasks,
}

/// A contender.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) store: Store,
    pub(crate) threads: Threads,
    /// What its order has to be.
    pub(crate) strictness: Strictness,
    /// Whether it takes so long that `--sqlite-events` bounds it.
    pub(crate) is_slow: bool,
    /// Whether all that it reads is in memory before the clock starts, so that caches are nothing to it.
    pub(crate) is_memory: bool,
    pub(crate) run: fn(&Setup) -> Result<Done, Failure>,
}

/// Everybody, in the order in which they run.
pub(crate) const CONTENDERS: &[Contender] = &[
    sqlite_before::CONTENDER,
    sqlite_after::CONTENDER,
    sqlite_after::TUNED_CONTENDER,
    #[cfg(feature = "p2panda")]
    p2panda::CONTENDER,
    kahn::CONTENDER,
    thalweg::CONTENDER,
    thalweg::REBUILD_CONTENDER,
    scan::CONTENDER,
    scan::CRC_CONTENDER,
];

/// Those that others are held against.
pub(crate) const AFTER: &str = sqlite_after::CONTENDER.name;
pub(crate) const TUNED: &str = sqlite_after::TUNED_CONTENDER.name;
pub(crate) const BOUND: &str = kahn::CONTENDER.name;
pub(crate) const CRC: &str = scan::CRC_CONTENDER.name;

impl Contender {
    pub(crate) fn named(name: &str) -> Result<&'static Contender, Failure> {
        let found = CONTENDERS.iter().find(|contender| contender.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = CONTENDERS.iter().map(|contender| contender.name).collect();
            format!("{name} is none of {}", names.join(", ")).into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expected::Expected;
    use crate::profile::PROFILES;

    /// Everybody, with one thread and with several, delivers what the serial machine delivers, whatever
    /// the data looks like.
    #[test]
    fn everybody_is_right_about_everything() {
        let dir =
            std::env::temp_dir().join(format!("thalweg-discovery-test-{}", std::process::id()));
        for profile in &PROFILES {
            let data = Data::new(profile, 2_500, 7).unwrap();
            let expected = Expected::new(&data);
            for (contender, threads) in CONTENDERS.iter().flat_map(|of| [(of, 1), (of, 4)]) {
                std::fs::create_dir_all(&dir).unwrap();
                contender.store.prepare(&data, &dir).unwrap();
                let has_news = expected.len() > data.settled;
                let setup = Setup { dir: dir.clone(), threads, has_news };
                match (contender.run)(&setup).unwrap().answer {
                    Answer::Order(found) => {
                        let order = [contender.store.left_out(&data), found].concat();
                        expected.check(&order, contender.strictness).unwrap_or_else(|error| {
                            panic!("{} over {}: {error}", contender.name, profile.name)
                        });
                    }
                    Answer::Scanned(scanned) => {
                        let events = data.arrivals.len() as u64;
                        assert!(scanned.records.is_none_or(|records| records == events));
                    }
                }
                std::fs::remove_dir_all(&dir).unwrap();
            }
        }
    }
}
