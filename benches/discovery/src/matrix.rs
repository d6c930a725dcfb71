//! The loop over all cells: contenders in turn, each run in a process of its own, over a copy of a store
//! that was prepared once.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::cell::{Outcome, Spec};
use crate::contenders::{Contender, Setup, Threads};
use crate::expected::Expected;
use crate::machine::{Machine, bytes_in, copy_dir, make_cold, make_warm};
use crate::options::Options;
use crate::profile::{Data, Profile};
use crate::report::{Caches, Load, Place, Run, Task, table};

/// Runs everything that was asked for. Whether all of it was right.
pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let dir = options.dir.join(format!("thalweg-discovery-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let dir = dir.canonicalize()?;
    let result =
        Machine::new(&dir).and_then(|machine| Matrix { options, machine, dir: &dir }.run());
    std::fs::remove_dir_all(&dir)?;
    result
}

struct Matrix<'a> {
    options: &'a Options,
    machine: Machine,
    dir: &'a Path,
}

impl Matrix<'_> {
    fn run(&self) -> Result<bool, Failure> {
        let Machine { cores, kernel, file_system, memory_kib } = &self.machine;
        eprintln!("{cores} cores, {} GiB, Linux {kernel}, {file_system}", memory_kib >> 20);
        let mut all_right = true;
        for &profile in &self.options.profiles {
            let everybody = self.options.contenders.clone();
            all_right &= self.profile(profile, self.options.sqlite_events, everybody)?;
            if self.options.events != self.options.sqlite_events {
                let fast = self.options.contenders.iter().copied().filter(|of| !of.is_slow);
                all_right &= self.profile(profile, self.options.events, fast.collect())?;
            }
        }
        Ok(all_right)
    }

    /// One block: a shape of data, and everybody who discovers it.
    fn profile(
        &self,
        profile: &'static Profile,
        count: usize,
        contenders: Vec<&'static Contender>,
    ) -> Result<bool, Failure> {
        if contenders.is_empty() {
            return Ok(true);
        }
        let data = Data::new(profile, count, self.options.seed)?;
        let expected = Expected::new(&data);
        let settled = data.arrivals[..data.settled].len();
        let block = Block {
            matrix: self,
            task: Task {
                profile: profile.letter,
                profile_name: profile.name,
                events: data.arrivals.len(),
                streams: data.stream_count(),
                undelivered: data.backlog(),
                deliverable: expected.len(),
                seed: self.options.seed,
            },
            has_news: expected.len() > settled,
            stores: self.prepare(&data, &contenders)?,
            expected,
            data: &data,
        };
        let runs = block.run(&contenders)?;
        std::fs::remove_dir_all(self.dir.join("stores"))?;
        table(&block.task, &runs);
        Ok(runs.iter().all(|run| run.ok))
    }

    /// Makes each store that somebody asks for, and says how large it is.
    fn prepare(
        &self,
        data: &Data,
        contenders: &[&Contender],
    ) -> Result<HashMap<&'static str, (PathBuf, u64)>, Failure> {
        let mut stores = HashMap::new();
        for contender in contenders {
            let Contender { store, .. } = contender;
            let dir = self.dir.join("stores").join(store.name());
            if !dir.exists() {
                std::fs::create_dir_all(&dir)?;
                store.prepare(data, &dir)?;
                let bytes = bytes_in(&dir)?;
                stores.insert(store.name(), (dir, bytes));
            }
        }
        Ok(stores)
    }
}

/// The runs over one set of data.
struct Block<'a> {
    matrix: &'a Matrix<'a>,
    task: Task,
    data: &'a Data,
    expected: Expected<'a>,
    has_news: bool,
    stores: HashMap<&'static str, (PathBuf, u64)>,
}

impl Block<'_> {
    fn run(&self, contenders: &[&'static Contender]) -> Result<Vec<Run>, Failure> {
        let mut runs = Vec::new();
        for round in 0..self.matrix.options.rounds {
            for contender in contenders {
                for load in self.loads(contender) {
                    let run = self.one(contender, &load, round)?;
                    run.print();
                    runs.push(run);
                }
            }
        }
        Ok(runs)
    }

    fn loads(&self, contender: &Contender) -> Vec<Load> {
        let options = self.matrix.options;
        let threads = match contender.threads {
            Threads::Default => vec![0],
            Threads::DefaultAndEach => [&[0], &options.threads[..]].concat(),
            Threads::Each => options.threads.clone(),
            Threads::Tasks => options.tasks.clone(),
        };
        let caches: Vec<bool> = match contender.is_memory {
            true => vec![false],
            false => options.caches.clone(),
        };
        let load = |cold: bool, threads: usize| Load {
            contender: contender.name,
            threads,
            caches: Caches::new(contender.is_memory, cold),
        };
        let loads = caches.iter().flat_map(|cold| threads.iter().map(|of| load(*cold, *of)));
        loads.collect()
    }

    fn one(&self, contender: &Contender, load: &Load, round: usize) -> Result<Run, Failure> {
        let dir = self.matrix.dir.join("run");
        std::fs::create_dir(&dir)?;
        let (store, store_bytes) = &self.stores[contender.store.name()];
        let spec = Spec {
            contender: contender.name.to_owned(),
            setup: Setup { dir: dir.join("store"), threads: load.threads, has_news: self.has_news },
            outcome: dir.join("outcome.json"),
            order: dir.join("order"),
        };
        copy_dir(store, &spec.setup.dir)?;
        let emptied = match load.caches {
            Caches::Cold => Some(make_cold(&spec.setup.dir)?),
            Caches::Warm | Caches::Memory => {
                make_warm(&spec.setup.dir)?;
                None
            }
        };
        let outcome = self.child(&spec, &dir.join("stderr"));
        let (outcome, wrong) = match outcome {
            Ok(outcome) => {
                let wrong = self.check(contender, &spec, &outcome).err();
                (Some(outcome), wrong)
            }
            Err(error) => (None, Some(error)),
        };
        let wrong = wrong.map(|error| error.to_string());
        if let Some(wrong) = &wrong {
            eprintln!("{} is wrong: {wrong}", load.label());
        }
        std::fs::remove_dir_all(&dir)?;
        let machine = self.matrix.machine.clone();
        let place = Place { store_bytes: *store_bytes, emptied, machine };
        Ok(Run::new(&self.task, load, round, outcome, wrong, place))
    }

    /// Whether a contender has done what it is measured at.
    fn check(&self, contender: &Contender, spec: &Spec, outcome: &Outcome) -> Result<(), Failure> {
        let events = self.task.events as u64;
        if let Some(scanned) = outcome.scanned {
            return match scanned.records {
                Some(records) if records != events => {
                    Err(format!("{records} records were scanned, and not {events}").into())
                }
                _ => Ok(()),
            };
        }
        let mut order = contender.store.left_out(self.data);
        order.extend(spec.read_order()?);
        self.expected.check(&order, contender.strictness)
    }

    /// Runs a cell in a process of its own, and takes its outcome.
    fn child(&self, spec: &Spec, log: &Path) -> Result<Outcome, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["cell", &serde_json::to_string(spec)?])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log)?)
            .spawn()?;
        let limit = self.matrix.options.limit;
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                return Err(format!("it took more than {limit:?}").into());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if !status.success() {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let said = said.lines().last().unwrap_or_default();
            return Err(format!("{status}: {said}").into());
        }
        Ok(serde_json::from_slice(&std::fs::read(&spec.outcome)?)?)
    }
}
