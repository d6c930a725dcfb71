//! What is asked of the machine: what it is, how fast it syncs, what a cell has used of it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::Failure;

/// What the machine is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
    /// Device number of the file system, as in `/sys/dev/block`.
    pub(crate) device: String,
}

impl Machine {
    /// The machine, and the file system that `dir` is on.
    pub(crate) fn new(dir: &Path) -> Result<Self, Failure> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Machine {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: kernel.trim().to_owned(),
            file_system: file_system(dir)?,
            device: device(dir)?,
        })
    }
}

/// Type of the file system that `dir` is on: that of the longest mount point above it.
fn file_system(dir: &Path) -> Result<String, Failure> {
    let dir = dir.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        dir.starts_with(point).then(|| (point.len(), right.split(' ').next()))
    });
    // A later mount lies over an earlier one at the same place.
    let name = found.max_by_key(|(len, _)| *len).and_then(|(_, name)| name);
    Ok(name.unwrap_or("unknown").to_owned())
}

fn device(dir: &Path) -> Result<String, Failure> {
    let number = std::fs::metadata(dir)?.dev();
    Ok(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)))
}

/// What a block device has done since it is there, for whatever process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DeviceCounts {
    pub(crate) flushes: u64,
    pub(crate) written_bytes: u64,
}

impl DeviceCounts {
    fn since(self, before: Self) -> Self {
        DeviceCounts {
            flushes: self.flushes - before.flushes,
            written_bytes: self.written_bytes - before.written_bytes,
        }
    }
}

/// The counters of the device that a directory is on.
#[derive(Debug)]
pub(crate) struct Counters {
    /// None where there is no such device: tmpfs, overlays, file systems over several devices.
    stat: Option<PathBuf>,
}

impl Counters {
    pub(crate) fn new(dir: &Path) -> Result<Self, Failure> {
        let block = Path::new("/sys/dev/block").join(device(dir)?);
        let Ok(block) = block.canonicalize() else { return Ok(Counters { stat: None }) };
        // The kernel counts flushes of the whole disk and not of its partitions.
        let disk = match block.parent() {
            Some(parent) if block.join("partition").exists() => parent.to_owned(),
            _ => block,
        };
        Ok(Counters { stat: Some(disk.join("stat")) })
    }

    fn read(&self) -> Option<DeviceCounts> {
        let stat = std::fs::read_to_string(self.stat.as_ref()?).ok()?;
        let fields: Vec<u64> =
            stat.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // Documentation/block/stat.rst: write sectors of 512 bytes are the 7th, flushes the 16th.
        Some(DeviceCounts { written_bytes: fields.get(6)? * 512, flushes: *fields.get(15)? })
    }

    /// The state of clock, processor and device now.
    pub(crate) fn mark(&self) -> Mark {
        Mark { time: Instant::now(), cpu: cpu(), device: self.read() }
    }
}

/// A moment, as [`Counters::mark`] saw it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) time: Instant,
    cpu: Duration,
    device: Option<DeviceCounts>,
}

impl Mark {
    /// What was used from `before` until this moment.
    pub(crate) fn since(self, before: Mark) -> Used {
        let device = self.device.zip(before.device).map(|(now, then)| now.since(then));
        Used { wall: self.time - before.time, cpu: self.cpu.saturating_sub(before.cpu), device }
    }
}

/// What was used between two moments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) device: Option<DeviceCounts>,
}

/// Processor time of all threads of this process.
pub(crate) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Most memory that this process has had, maps included, in KiB.
pub(crate) fn peak_kib() -> u64 {
    status_kib("VmHWM")
}

/// A field of `/proc/self/status` that is in KiB.
pub(crate) fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(name, _)| *name == field);
    found.and_then(|(_, rest)| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Brings everything that the file system of `dir` holds in memory to the device.
pub(crate) fn sync_file_system(dir: &Path) -> Result<(), Failure> {
    Ok(rustix::fs::syncfs(File::open(dir)?)?)
}

/// Bytes that are free for us on the file system of `dir`.
pub(crate) fn free_bytes(dir: &Path) -> Result<u64, Failure> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Bytes that the files below `dir` take on the device.
pub(crate) fn disk_bytes(dir: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes +=
            if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

/// What a 4 KiB append with `fdatasync` to zero-filled space takes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Flushes of the device per 1,000 syncs; about 1,000 where a sync reaches it.
    pub(crate) flushes_per_1000: Option<f64>,
}

/// Measures [`Probe`] in `dir`.
pub(crate) fn probe(dir: &Path) -> Result<Probe, Failure> {
    const WRITES: usize = 200;
    const PAGE: usize = 4096;
    /// Writing zeros in larger pieces leaves pages behind that are slower to write to.
    const FILL: usize = 64 << 10;
    let path = dir.join("fdatasync-probe");
    let file = File::create(&path)?;
    for offset in (0..WRITES * PAGE).step_by(FILL) {
        file.write_all_at(&[0; FILL], offset as u64)?;
    }
    file.sync_all()?;
    let counters = Counters::new(dir)?;
    let mut micros = Vec::with_capacity(WRITES);
    let before = counters.mark();
    for write in 0..WRITES {
        let begun = Instant::now();
        file.write_all_at(&[1; PAGE], (write * PAGE) as u64)?;
        file.sync_data()?;
        micros.push(begun.elapsed().as_nanos() as f64 / 1e3);
    }
    let used = counters.mark().since(before);
    std::fs::remove_file(&path)?;
    micros.sort_by(f64::total_cmp);
    Ok(Probe {
        p50_us: micros[WRITES / 2],
        p99_us: micros[WRITES * 99 / 100],
        flushes_per_1000: used.device.map(|device| device.flushes as f64 * 1e3 / WRITES as f64),
    })
}
