//! The loop over all cells: contenders in turn, each run in a process and a directory of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::contenders::{Peer, Setup};
use crate::machine::{Machine, disk_bytes, probe, sync_file_system};
use crate::options::Options;
use crate::report::{Figures, Load, Median, Run, table};
use crate::{Failure, cell, check};

/// Runs everything that was asked for. Whether all of it was right.
pub(crate) fn run(options: &Options) -> Result<bool, Failure> {
    let dir = options.dir.join(format!("thalweg-peers-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let dir = dir.canonicalize()?;
    let result = Matrix { options, machine: Machine::new(&dir)?, dir: &dir }.run();
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
        let options = self.options;
        self.introduce();
        let mut all_right = true;
        for &durable in &options.durability {
            for &payload in &options.payload {
                for &batch in &options.batch {
                    let mut medians = Vec::new();
                    for &threads in &options.threads {
                        medians.extend(self.cell(durable, payload, batch, threads)?);
                    }
                    all_right &= medians.iter().all(|median| median.wrong_runs == 0);
                    table(options, &medians);
                }
            }
        }
        Ok(all_right)
    }

    fn introduce(&self) {
        let Machine { cores, kernel, file_system, device } = &self.machine;
        eprintln!("{cores} cores, Linux {kernel}, {file_system} on device {device}");
        for peer in &self.options.contenders {
            eprintln!("{} {}", peer.name, peer.version());
        }
        if matches!(file_system.as_str(), "tmpfs" | "ramfs") {
            eprintln!("{file_system} is memory: nothing here is durable, and syncs are free");
        }
    }

    /// All rounds of the loads that differ only in contender and depth.
    fn cell(
        &self,
        durable: bool,
        payload: usize,
        batch: usize,
        threads: usize,
    ) -> Result<Vec<Median>, Failure> {
        let loads = self.loads(durable, payload, batch, threads);
        let mut runs = Vec::new();
        for round in 0..self.options.rounds {
            for (peer, load) in &loads {
                let run = self.one(peer, load, round)?;
                run.print();
                runs.push(run);
            }
        }
        let medians: Vec<Median> = loads
            .iter()
            .map(|(_, load)| {
                let of_load: Vec<&Run> = runs.iter().filter(|run| run.load == *load).collect();
                Median::of(&of_load)
            })
            .collect();
        medians.iter().for_each(Median::print);
        Ok(medians)
    }

    fn loads(
        &self,
        durable: bool,
        payload: usize,
        batch: usize,
        threads: usize,
    ) -> Vec<(&'static Peer, Load)> {
        let mut loads = Vec::new();
        for &peer in self.options.contenders.iter().filter(|peer| durable || peer.buffered) {
            for &depth in self.options.depth.iter().filter(|depth| **depth == 1 || peer.pipelined) {
                let load = Load {
                    contender: peer.name,
                    version: peer.version(),
                    durability: if durable { "durable" } else { "buffered" },
                    threads,
                    batch,
                    payload,
                    depth,
                    streams: self.options.streams.unwrap_or(threads),
                };
                // These bytes are appended even if the clock has stopped, and warm-up may not take more.
                let under_way = (threads * depth * batch * payload) as u64;
                if under_way > self.options.byte_max / cell::WARM_UP_SHARE {
                    eprintln!("left out, for {} MiB under way: {load:?}", under_way >> 20);
                    continue;
                }
                loads.push((peer, load));
            }
        }
        loads
    }

    /// One run: append, look at what is left, read it back, remove it.
    fn one(&self, peer: &Peer, load: &Load, round: usize) -> Result<Run, Failure> {
        let before = probe(self.dir)?;
        let dir = self.dir.join("cell");
        std::fs::create_dir(&dir)?;
        let setup = Setup {
            dir: dir.join("store"),
            durable: load.durability == "durable",
            threads: load.threads,
            streams: load.streams,
            byte_max: self.options.byte_max,
        };
        std::fs::create_dir(&setup.dir)?;
        sync_file_system(&dir)?;
        let (figures, wrong) = match self.append_and_check(peer, load, setup, &dir) {
            Ok((figures, wrong)) => (Some(figures), wrong),
            Err(error) => (None, Some(error.to_string())),
        };
        if let Some(wrong) = &wrong {
            eprintln!("{} is wrong: {wrong}: {load:?}", peer.name);
        }
        std::fs::remove_dir_all(&dir)?;
        sync_file_system(self.dir)?;
        let probes = [before, probe(self.dir)?];
        Ok(Run::new(load.clone(), round, figures, wrong, probes, &self.machine))
    }

    fn append_and_check(
        &self,
        peer: &Peer,
        load: &Load,
        setup: Setup,
        dir: &Path,
    ) -> Result<(Figures, Option<String>), Failure> {
        let spec = cell::Spec {
            contender: peer.name.to_owned(),
            setup: setup.clone(),
            batch: load.batch,
            payload: load.payload,
            depth: load.depth,
            warm_up: self.options.warm_up,
            seconds: self.options.seconds,
            free_min: self.options.free_min,
            outcome: dir.join("cell.json"),
        };
        let outcome: cell::Outcome = self.child("cell", &spec, &setup, dir, &spec.outcome)?;
        let disk_bytes = disk_bytes(&setup.dir)?;
        let spec = check::Spec {
            contender: peer.name.to_owned(),
            setup: setup.clone(),
            batch: load.batch,
            payload: load.payload,
            acknowledged: outcome.acknowledged.clone(),
            outcome: dir.join("check.json"),
        };
        let checked = self.child("check", &spec, &setup, dir, &spec.outcome);
        let (reopen_read_s, wrong) = match checked {
            Ok(check::Outcome { reopen_read_s, wrong }) => (Some(reopen_read_s), wrong),
            Err(error) => (None, Some(error.to_string())),
        };
        Ok((Figures::new(&outcome, load, disk_bytes, reopen_read_s), wrong))
    }

    /// Runs one step in a process of its own, and takes its outcome.
    fn child<T: DeserializeOwned>(
        &self,
        step: &str,
        spec: &impl Serialize,
        setup: &Setup,
        dir: &Path,
        outcome: &PathBuf,
    ) -> Result<T, Failure> {
        let log = dir.join("stderr");
        let mut child = Command::new(std::env::current_exe()?)
            .args([step, &serde_json::to_string(spec)?])
            // walrus takes its directory, and its silence, from the environment.
            .env("WALRUS_DATA_DIR", &setup.dir)
            .env("WALRUS_QUIET", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let deadline = Instant::now() + self.options.limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                return Err(format!("{step} took more than {:?}", self.options.limit).into());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if !status.success() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let said = said.lines().last().unwrap_or_default();
            return Err(format!("{step}: {status}: {said}").into());
        }
        Ok(serde_json::from_slice(&std::fs::read(outcome)?)?)
    }
}
