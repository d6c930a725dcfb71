//! The work itself, in a process of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Contender, Setup, Store};
use crate::Failure;
use crate::machine::{cpu, free_bytes, status_kib};

/// Keys that are looked up, and then inserted.
pub(crate) const BATCH: usize = 16_384;
/// For so many keys that arrive, an earlier one is looked up.
const KEYS_PER_PARENT: usize = 8;
/// Keys that are looked up in the end, and again as many that are not there.
const SAMPLE: u64 = 100_000;
const SEED: u64 = 0x7468_616C_7765_6731;
/// How often memory is looked at.
const MEMORY_SAMPLE: Duration = Duration::from_millis(10);
/// Batches after which the room on the disk is looked at.
const BATCHES_PER_LOOK: u64 = 64;

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) contender: String,
    pub(crate) dir: PathBuf,
    pub(crate) keys: u64,
    pub(crate) memory: u64,
    pub(crate) limit: Duration,
    pub(crate) free_min: u64,
    pub(crate) outcome: PathBuf,
}

/// What came of it. Every answer was right.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Keys that were inserted.
    pub(crate) keys: u64,
    /// `keys`, `limit` or `room`.
    pub(crate) ended_by: String,
    /// Look-ups and inserts.
    pub(crate) ops: u64,
    /// From the first look-up to the end of the sync.
    pub(crate) seconds: f64,
    /// Of them, the sync at the end.
    pub(crate) sync_s: f64,
    pub(crate) ops_per_s: f64,
    /// The rate in each tenth of the keys, without the sync.
    pub(crate) ops_per_s_tenths: Vec<f64>,
    /// Rates of the look-ups at the end, of keys that are there and of keys that are not.
    pub(crate) found_per_s: f64,
    pub(crate) absent_per_s: f64,
    /// Of all threads, during `seconds`.
    pub(crate) cpu_s: f64,
    /// The most that was seen, [`MEMORY_SAMPLE`] apart, checks included.
    pub(crate) rss_anon_peak_bytes: u64,
    pub(crate) rss_file_peak_bytes: u64,
    /// The most that there was, as the kernel has it: mapped files included.
    pub(crate) vm_hwm_bytes: u64,
    /// What the process has dirtied or sent to the device until the store was closed, and what of it
    /// was thrown away before it was written, by the end of a file.
    pub(crate) written_bytes: u64,
    pub(crate) cancelled_bytes: u64,
}

/// SplitMix64 (Steele, Lea and Flood, 2014), a bijection: the keys differ, and nobody keeps them.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The key with this ordinal. Zero is no key of Thalweg's.
fn key(ordinal: u64) -> u64 {
    mix(SEED.wrapping_add(ordinal.wrapping_mul(0x9E37_79B9_7F4A_7C15))).max(1)
}

/// The `n`th of the random ordinals below `end`.
fn random_below(end: u64, n: u64) -> u64 {
    ((u128::from(mix(!SEED ^ n.wrapping_mul(0xD1B5_4A32_D192_ED03))) * u128::from(end)) >> 64)
        as u64
}

/// Keys to look up, and what has to be found.
#[derive(Default)]
struct Batch {
    items: Vec<(u64, u64)>,
    arrivals: Vec<u64>,
    parents: Vec<(u64, u64)>,
    parent_keys: Vec<u64>,
    found: Vec<Option<u64>>,
}

impl Batch {
    /// Sets the keys that arrive and the ordinals of the earlier ones.
    fn fill(
        &mut self,
        arrivals: impl Iterator<Item = u64>,
        parents: impl Iterator<Item = u64>,
        sorted: bool,
    ) {
        self.items.clear();
        self.items.extend(arrivals.map(|ordinal| (key(ordinal), ordinal)));
        self.parents.clear();
        self.parents.extend(parents.map(|ordinal| (key(ordinal), ordinal)));
        if sorted {
            self.items.sort_unstable();
            self.parents.sort_unstable();
        }
        self.arrivals.clear();
        self.arrivals.extend(self.items.iter().map(|item| item.0));
        self.parent_keys.clear();
        self.parent_keys.extend(self.parents.iter().map(|item| item.0));
    }

    /// Looks up both, and compares.
    fn look_up(&mut self, store: &mut dyn Store) -> Result<(), Failure> {
        self.found.clear();
        store.look_up(&self.arrivals, &self.parent_keys, &mut self.found)?;
        if self.found.len() != self.arrivals.len() + self.parents.len() {
            return Err("there are not as many answers as questions".into());
        }
        let (arrivals, parents) = self.found.split_at(self.arrivals.len());
        if let Some(at) = arrivals.iter().position(Option::is_some) {
            return Err(format!("key {:x} is not there, and found", self.arrivals[at]).into());
        }
        let mut pairs = self.parents.iter().zip(parents);
        match pairs.find(|((_, ordinal), found)| **found != Some(*ordinal)) {
            Some((item, found)) => Err(format!("{item:x?} is there; found {found:x?}").into()),
            None => Ok(()),
        }
    }
}

/// Does the work and writes the outcome.
pub(crate) fn run(spec: &Spec) -> Result<(), Failure> {
    let contender = Contender::named(&spec.contender)?;
    let memory = MemoryPeak::watch();
    let setup = Setup { dir: &spec.dir, keys: spec.keys, memory: spec.memory };
    let mut store = (contender.create)(&setup)?;
    let mut outcome = work(spec, contender, &mut *store)?;
    (outcome.found_per_s, outcome.absent_per_s) =
        check(outcome.keys, contender.sorted, &mut *store)?;
    drop(store);
    (outcome.rss_anon_peak_bytes, outcome.rss_file_peak_bytes) = memory.end();
    outcome.vm_hwm_bytes = status_kib("VmHWM") << 10;
    outcome.written_bytes = io_bytes("write_bytes");
    outcome.cancelled_bytes = io_bytes("cancelled_write_bytes");
    Ok(std::fs::write(&spec.outcome, serde_json::to_vec(&outcome)?)?)
}

fn work(spec: &Spec, contender: &Contender, store: &mut dyn Store) -> Result<Outcome, Failure> {
    let mut batch = Batch::default();
    let (mut keys, mut ops, mut ended_by) = (0, 0, "keys");
    let (mut tenths, mut tenth_begun) = (Vec::new(), (0, 0.0));
    let (begun, cpu_begun) = (Instant::now(), cpu());
    for number in 0.. {
        let end = spec.keys.min(keys + BATCH as u64);
        // The first batch has no earlier keys.
        let parent_count = if keys == 0 { 0 } else { (end - keys) / KEYS_PER_PARENT as u64 };
        let parents = (0..parent_count).map(|n| random_below(keys, number * BATCH as u64 + n));
        batch.fill(keys..end, parents, contender.sorted);
        batch.look_up(store)?;
        store.insert(&batch.items)?;
        ops += 2 * (end - keys) + parent_count;
        keys = end;
        let elapsed = begun.elapsed();
        if keys * 10 >= spec.keys * (tenths.len() as u64 + 1) {
            let seconds = elapsed.as_secs_f64();
            tenths.push((ops - tenth_begun.0) as f64 / (seconds - tenth_begun.1));
            tenth_begun = (ops, seconds);
        }
        if keys == spec.keys {
            break;
        }
        if elapsed > spec.limit {
            ended_by = "limit";
            break;
        }
        if number % BATCHES_PER_LOOK == 0 && free_bytes(&spec.dir)? < spec.free_min {
            ended_by = "room";
            break;
        }
    }
    let sync_begun = Instant::now();
    store.sync()?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Outcome {
        keys,
        ended_by: ended_by.to_owned(),
        ops,
        seconds,
        sync_s: sync_begun.elapsed().as_secs_f64(),
        ops_per_s: ops as f64 / seconds,
        ops_per_s_tenths: tenths,
        cpu_s: (cpu() - cpu_begun).as_secs_f64(),
        found_per_s: 0.0,
        absent_per_s: 0.0,
        rss_anon_peak_bytes: 0,
        rss_file_peak_bytes: 0,
        vm_hwm_bytes: 0,
        written_bytes: 0,
        cancelled_bytes: 0,
    })
}

/// Looks up [`SAMPLE`] keys that are there, and as many that are not.
fn check(keys: u64, sorted: bool, store: &mut dyn Store) -> Result<(f64, f64), Failure> {
    let mut batch = Batch::default();
    let mut rate = |is_there: bool| {
        let mut seconds = 0.0;
        for from in (0..SAMPLE).step_by(BATCH) {
            let sample = from..SAMPLE.min(from + BATCH as u64);
            if is_there {
                let there = sample.map(|n| random_below(keys, u64::MAX - n));
                batch.fill(0..0, there, sorted);
            } else {
                batch.fill(sample.map(|n| keys + n), 0..0, sorted);
            }
            let begun = Instant::now();
            batch.look_up(store)?;
            seconds += begun.elapsed().as_secs_f64();
        }
        Ok::<_, Failure>(SAMPLE as f64 / seconds)
    };
    Ok((rate(true)?, rate(false)?))
}

/// A field of `/proc/self/io`.
fn io_bytes(field: &str) -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let mut lines = io.lines().filter_map(|line| line.split_once(": "));
    let found = lines.find(|(name, _)| *name == field);
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
}

/// A thread that looks at the memory of the process now and then.
struct MemoryPeak {
    seen: Arc<Seen>,
    thread: std::thread::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    ended: AtomicBool,
    anon_kib: AtomicU64,
    file_kib: AtomicU64,
}

impl MemoryPeak {
    fn watch() -> Self {
        let seen = Arc::new(Seen::default());
        let theirs = Arc::clone(&seen);
        // Relaxed: numbers that are read after the thread has ended, and one that ends it.
        let thread = std::thread::spawn(move || {
            while !theirs.ended.load(Ordering::Relaxed) {
                theirs.anon_kib.fetch_max(status_kib("RssAnon"), Ordering::Relaxed);
                theirs.file_kib.fetch_max(status_kib("RssFile"), Ordering::Relaxed);
                std::thread::sleep(MEMORY_SAMPLE);
            }
        });
        MemoryPeak { seen, thread }
    }

    /// The most that was seen, of both kinds, in bytes.
    fn end(self) -> (u64, u64) {
        self.seen.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        let bytes = |kib: &AtomicU64| kib.load(Ordering::Relaxed) << 10;
        (bytes(&self.seen.anon_kib), bytes(&self.seen.file_kib))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contender_finds_what_it_has() {
        for contender in super::super::CONTENDERS {
            let name = format!("thalweg-index-test-{}-{}", contender.name, std::process::id());
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            let spec = Spec {
                contender: contender.name.to_owned(),
                dir: dir.clone(),
                keys: 100_000,
                // So little that Thalweg forgets, and looks into runs.
                memory: 1 << 20,
                limit: Duration::from_secs(60),
                free_min: 0,
                outcome: dir.join("outcome"),
            };
            let setup = Setup { dir: &spec.dir, keys: spec.keys, memory: spec.memory };
            let mut store = (contender.create)(&setup).unwrap();
            let outcome = work(&spec, contender, &mut *store).unwrap();
            assert_eq!((outcome.keys, &*outcome.ended_by), (100_000, "keys"));
            assert_eq!(outcome.ops_per_s_tenths.len(), 7, "seven batches");
            check(outcome.keys, contender.sorted, &mut *store).unwrap();
            drop(store);
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}
