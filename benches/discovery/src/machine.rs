//! What is asked of the machine: what it is, what is cached, what a cell has used of it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::Failure;

/// What the machine is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) file_system: String,
    pub(crate) memory_kib: u64,
}

impl Machine {
    /// The machine, and the file system that `dir` is on.
    pub(crate) fn new(dir: &Path) -> Result<Self, Failure> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(Machine {
            cores: cores(),
            kernel: kernel.trim().to_owned(),
            file_system: file_system(dir)?,
            memory_kib: field(Path::new("/proc/meminfo"), "MemTotal:"),
        })
    }
}

/// Processors that this process may run on.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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

/// The number behind a name in one of the kernel's tables; 0 if it is not there.
fn field(path: &Path, name: &str) -> u64 {
    let table = std::fs::read_to_string(path).unwrap_or_default();
    let rest = table.lines().find_map(|line| line.strip_prefix(name));
    rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// How the page cache is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Emptied {
    /// All of it, by `/proc/sys/vm/drop_caches`.
    DropCaches,
    /// The files of the store, by `posix_fadvise`; where that is all that is allowed.
    Fadvise,
}

/// Has nothing of `dir` in memory.
pub(crate) fn make_cold(dir: &Path) -> Result<Emptied, Failure> {
    rustix::fs::sync();
    if std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return Ok(Emptied::DropCaches);
    }
    for path in files(dir)? {
        rustix::fs::fadvise(File::open(path)?, 0, None, Advice::DontNeed)?;
    }
    Ok(Emptied::Fadvise)
}

/// Has all of `dir` in memory, as far as there is room, and nothing left to be written.
pub(crate) fn make_warm(dir: &Path) -> Result<(), Failure> {
    rustix::fs::sync();
    let mut buffer = vec![0; 1 << 20];
    for path in files(dir)? {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(dir)?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

/// Copies the files of one directory to another, which is new.
pub(crate) fn copy_dir(from: &Path, to: &Path) -> Result<(), Failure> {
    std::fs::create_dir(to)?;
    for path in files(from)? {
        let name = path.file_name().ok_or("a file has a name")?;
        std::fs::copy(&path, to.join(name))?;
    }
    Ok(())
}

/// Bytes of the files in `dir`.
pub(crate) fn bytes_in(dir: &Path) -> Result<u64, Failure> {
    let lens = files(dir)?.into_iter().map(|path| Ok(std::fs::metadata(path)?.len()));
    lens.sum::<std::io::Result<u64>>().map_err(Into::into)
}

/// What a process has used until now.
#[derive(Debug, Clone, Copy)]
struct Mark {
    time: Instant,
    cpu: Duration,
    io: [u64; 3],
}

impl Mark {
    fn now() -> Self {
        let io = Path::new("/proc/self/io");
        Mark {
            time: Instant::now(),
            cpu: cpu(),
            io: ["read_bytes:", "write_bytes:", "rchar:"].map(|name| field(io, name)),
        }
    }
}

/// Processor time of all threads of this process, in user and in kernel mode.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What a discovery has taken.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Used {
    /// From opening until everything is ordered, and the order can be read.
    pub(crate) wall_s: f64,
    /// From opening until the store takes appends and serves what it had.
    pub(crate) ready_s: f64,
    /// From opening until the first event that was not delivered before can be read.
    pub(crate) first_s: Option<f64>,
    pub(crate) cpu_s: f64,
    /// Read from and written to the device, as the kernel accounts it to the process.
    pub(crate) device_read_bytes: u64,
    pub(crate) device_written_bytes: u64,
    /// Asked for by read calls; mapped files are not in it.
    pub(crate) read_call_bytes: u64,
    /// Most memory at any time, maps of files included, and most anonymous memory.
    pub(crate) peak_rss_kib: u64,
    pub(crate) peak_anon_kib: u64,
}

/// How often anonymous memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// The clock of one discovery. The contender starts and stops it.
#[derive(Debug)]
pub(crate) struct Clock {
    begun: Mark,
    ready: Option<Instant>,
    first: Option<Instant>,
    anon: Sampler,
}

impl Clock {
    /// Starts: what a contender has done before is not discovery.
    pub(crate) fn start() -> Self {
        Clock { anon: Sampler::start(), begun: Mark::now(), ready: None, first: None }
    }

    /// The store takes appends, and serves what it had.
    pub(crate) fn ready(&mut self) {
        self.ready.get_or_insert_with(Instant::now);
    }

    /// An event that was not delivered before can be read.
    pub(crate) fn first(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// Everything is ordered. Who was not ready before is ready now.
    pub(crate) fn stop(self) -> Used {
        let end = Mark::now();
        let since = |time: Instant| (time - self.begun.time).as_secs_f64();
        let [read, written, asked] = [0, 1, 2].map(|of| end.io[of] - self.begun.io[of]);
        Used {
            wall_s: since(end.time),
            ready_s: since(self.ready.unwrap_or(end.time)),
            first_s: self.first.map(since),
            cpu_s: (end.cpu - self.begun.cpu).as_secs_f64(),
            device_read_bytes: read,
            device_written_bytes: written,
            read_call_bytes: asked,
            peak_rss_kib: field(Path::new("/proc/self/status"), "VmHWM:"),
            peak_anon_kib: self.anon.stop(),
        }
    }
}

/// Looks at the process's anonymous memory: the kernel keeps its peak only together with maps.
#[derive(Debug)]
struct Sampler {
    shared: Arc<(AtomicBool, AtomicU64)>,
    thread: JoinHandle<()>,
}

impl Sampler {
    fn start() -> Self {
        let shared = Arc::new((AtomicBool::new(false), AtomicU64::new(0)));
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            // Relaxed: nothing but the flag and the number is handed over.
            while !of_thread.0.load(Ordering::Relaxed) {
                of_thread.1.fetch_max(anon_kib(), Ordering::Relaxed);
                std::thread::park_timeout(SAMPLE_EVERY);
            }
        });
        Sampler { shared, thread }
    }

    fn stop(self) -> u64 {
        self.shared.0.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let _ = self.thread.join();
        self.shared.1.load(Ordering::Relaxed).max(anon_kib())
    }
}

fn anon_kib() -> u64 {
    field(Path::new("/proc/self/status"), "RssAnon:")
}
