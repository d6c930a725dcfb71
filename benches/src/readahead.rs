//! Compares ways to read a long log once: through a map, with what advice, or by positioned reads.
//!
//! ```text
//! thalweg-benches readahead DIR [MIB [THREADS [ROUNDS]]]
//! ```
//!
//! A file of MIB mebibytes (default 1024) is read whole, in cuts of 16 MiB that THREADS threads (default: one per core)
//! take in turn, as the engine's scanners do, and CRC-32C is computed over it: what a scanner does at least. Each way
//! reads it cold, after the file was dropped from the page cache, and warm; the ways take turns, ROUNDS times (default 5). Every
//! cut is compared with its checksum from the writing, and `device_mib`, which the kernel counts, shows what was
//! cold. Lines of JSON on stdout, one for each median, and a table on stderr.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::{Advice, Mmap};
use rustix::fs::{Advice as FileAdvice, fadvise};
use rustix::time::{ClockId, clock_gettime};

use crate::Failure;
use crate::locks::Machine;

/// As the engine cuts the log.
const CUT_LEN: usize = 16 << 20;
const MIB: usize = 1 << 20;

/// A way to read the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Map,
    /// The kernel is told that the whole map will be read from front to back.
    MapSequential,
    /// The kernel is asked for a cut before the first look at it.
    MapWillNeed,
    /// The kernel is asked for the cut that this thread is going to take next, about.
    MapWillNeedNext,
    /// The kernel maps a cut at once, and reads what is missing.
    MapPopulate,
    /// Into a buffer of a cut.
    Reads,
    /// The same, and the kernel is asked for the next cut.
    ReadsWillNeedNext,
}

const WAYS: [(Way, &str); 7] = [
    (Way::Map, "map"),
    (Way::MapSequential, "map, sequential"),
    (Way::MapWillNeed, "map, will need"),
    (Way::MapWillNeedNext, "map, will need the next"),
    (Way::MapPopulate, "map, populate"),
    (Way::Reads, "reads"),
    (Way::ReadsWillNeedNext, "reads, will need the next"),
];

/// The file, and what its cuts have to come to.
struct Log {
    file: File,
    sums: Vec<u32>,
}

impl Log {
    /// Writes a file that does not compress, and makes it durable.
    fn write(path: &Path, mib: usize) -> Result<Self, Failure> {
        let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
        let mut block = vec![0; CUT_LEN];
        File::open("/dev/urandom")?.read_exact(&mut block)?;
        let count = (mib * MIB).div_ceil(CUT_LEN);
        let mut sums = Vec::with_capacity(count);
        for number in 0..count {
            block[..8].copy_from_slice(&(number as u64).to_le_bytes());
            file.write_all(&block)?;
            sums.push(crc32c::crc32c(&block));
        }
        file.sync_all()?;
        Ok(Log { file, sums })
    }

    /// Bytes of the cuts from `number` on that advice is about, if there are any.
    fn range(&self, number: usize) -> Option<(usize, usize)> {
        (number < self.sums.len()).then_some((number * CUT_LEN, CUT_LEN))
    }

    /// Reads the file once. An error if a cut is not what was written.
    fn read(&self, way: Way, threads: usize) -> Result<(), Failure> {
        // SAFETY: nobody writes the file any more; its name is in a directory of this run's own.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&self.file)? };
        if way == Way::MapSequential {
            map.advise(Advice::Sequential)?;
        }
        let next = AtomicUsize::new(0);
        let run = || -> Result<(), Failure> {
            let mut buffer = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some((at, len)) = self.range(number) else { return Ok(()) };
                let ahead = self.range(number + threads);
                match (way, ahead) {
                    (Way::MapWillNeed, _) => map.advise_range(Advice::WillNeed, at, len)?,
                    (Way::MapPopulate, _) => map.advise_range(Advice::PopulateRead, at, len)?,
                    (Way::MapWillNeedNext, Some((at, len))) => {
                        map.advise_range(Advice::WillNeed, at, len)?;
                    }
                    (Way::ReadsWillNeedNext, Some((at, len))) => {
                        let len = std::num::NonZeroU64::new(len as u64);
                        fadvise(&self.file, at as u64, len, FileAdvice::WillNeed)?;
                    }
                    _ => {}
                }
                let sum = match way {
                    Way::Reads | Way::ReadsWillNeedNext => {
                        buffer.resize(len, 0);
                        self.file.read_exact_at(&mut buffer, at as u64)?;
                        crc32c::crc32c(&buffer)
                    }
                    _ => crc32c::crc32c(&map[at..at + len]),
                };
                if sum != self.sums[number] {
                    return Err(format!("cut {number} is not what was written").into());
                }
            }
        };
        thread::scope(|scope| {
            let readers: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
            readers.into_iter().try_for_each(|reader| reader.join().expect("does not panic"))
        })
    }

    /// Drops the file from the page cache.
    fn drop_cache(&self) -> Result<(), Failure> {
        Ok(fadvise(&self.file, 0, None, FileAdvice::DontNeed)?)
    }
}

/// One reading of the file.
#[derive(Debug, Clone, Copy)]
struct Sample {
    wall: Duration,
    cpu: Duration,
    device: u64,
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Bytes that were read from a device for this process.
fn device_bytes() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    Ok(line.ok_or("no read_bytes in /proc/self/io")?.parse()?)
}

fn sample(log: &Log, way: Way, threads: usize) -> Result<Sample, Failure> {
    let (cpu, device, begun) = (cpu_time(), device_bytes()?, Instant::now());
    log.read(way, threads)?;
    let wall = begun.elapsed();
    Ok(Sample { wall, cpu: cpu_time() - cpu, device: device_bytes()? - device })
}

pub(crate) fn run(words: &[&str]) -> Result<(), Failure> {
    let (dir, numbers) = words.split_first().ok_or(crate::USAGE)?;
    let number = |index: usize, default: usize| match numbers.get(index) {
        Some(word) => word.parse::<usize>().map(|number| number.max(1)),
        None => Ok(default),
    };
    let mib = number(0, 1024)?;
    let threads = number(1, thread::available_parallelism()?.get())?;
    let rounds = number(2, 5)?;
    let dir = tempfile::tempdir_in(dir)?;
    let log = Log::write(&dir.path().join("log"), mib)?;
    let machine = Machine::look().json();
    let mib = log.sums.len() * CUT_LEN / MIB;
    eprintln!("{mib} MiB in cuts of 16, threads: {threads}, medians of {rounds}");
    for cache in ["cold", "warm"] {
        let mut samples = vec![Vec::new(); WAYS.len()];
        log.read(Way::Reads, threads)?;
        for _ in 0..rounds {
            for ((way, _), samples) in WAYS.iter().zip(&mut samples) {
                if cache == "cold" {
                    log.drop_cache()?;
                }
                samples.push(sample(&log, *way, threads)?);
            }
        }
        for ((_, name), mut samples) in WAYS.iter().zip(samples) {
            samples.sort_unstable_by_key(|sample: &Sample| sample.wall);
            let Sample { wall, cpu, device } = samples[samples.len() / 2];
            let (wall, cpu) = (wall.as_secs_f64(), cpu.as_secs_f64());
            let gib_s = mib as f64 / 1024.0 / wall;
            let device = device / MIB as u64;
            eprintln!(
                "{cache} {name:<26} {gib_s:6.2} GiB/s  {:6.1} ms  cpu {:6.1} ms  device {device} MiB",
                wall * 1e3,
                cpu * 1e3,
            );
            println!(
                "{{\"row\":\"readahead\",\"caches\":\"{cache}\",\"way\":\"{name}\",\"threads\":{threads},\"mib\":{mib},\
                 \"rounds\":{rounds},\"wall_s\":{wall:.6},\"cpu_s\":{cpu:.6},\"gib_per_s\":{gib_s:.3},\
                 \"device_mib\":{device},{machine}}}"
            );
        }
    }
    Ok(())
}
