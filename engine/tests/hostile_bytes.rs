//! No bytes in any file of a store end in a panic, a hang, or memory that nothing justifies; and with
//! checksums that do not match, nothing is ever shown that nobody has written.
//!
//! What is done to the bytes is in `fuzz/src/targets`, and libFuzzer does it too: see `fuzz/README.md`.
//! Here it is done with every input that the fuzzer was worth keeping for, and with random ones.
//! `THALWEG_SEED=7` runs that one; `THALWEG_ROUNDS=100000` runs so many, from the given seed or from 0 on.

#![allow(unsafe_code)] // An allocator that watches.
#![allow(unreachable_pub, dead_code, missing_docs, reason = "one binary, and a crate of its own")]

#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use targets::TARGETS;
use targets::disk::Disk;
use thalweg::storage::Storage;

/// How many random inputs a run has that is not told.
const ROUNDS: u64 = 200;
/// No input takes this long.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// The stores have files of up to 11 MiB, which are allocated whole. Nothing else comes near.
const ALLOCATION_MAX: usize = 32 << 20;

/// The largest piece of memory that anybody has asked for.
static LARGEST: AtomicUsize = AtomicUsize::new(0);
/// Panics of all threads: the engine catches those of its own.
static PANICS: AtomicUsize = AtomicUsize::new(0);

struct Watching;

#[global_allocator]
static ALLOCATOR: Watching = Watching;

// SAFETY: everything is handed on to the system's allocator as it came; noting a length returns no memory
// and does not unwind.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        LARGEST.fetch_max(len, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
}

/// Runs a target on one input. Whatever goes wrong is told with the input's name.
fn run(what: &str, target: impl FnOnce() + Send + 'static) {
    watch_panics();
    let (sender, ended) = channel::<()>();
    let thread = std::thread::spawn(move || {
        let _ends = sender;
        target();
    });
    let waited = ended.recv_timeout(STUCK_AFTER);
    assert_eq!(waited, Err(RecvTimeoutError::Disconnected), "{what} hangs");
    assert!(thread.join().is_ok() && PANICS.load(Ordering::Relaxed) == 0, "{what} panics");
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= ALLOCATION_MAX, "{what} asks for {largest} bytes at once");
}

/// The files in a folder of `fuzz/`.
fn kept(folder: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder).join(target);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("lists").path()).collect();
    paths.sort();
    paths
}

fn replay(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(other, _)| *other == name).expect("a target");
    let corpus = kept("corpus", name);
    assert!(!corpus.is_empty(), "nothing is kept of {name}");
    for path in corpus.into_iter().chain(kept("crashes", name)) {
        let bytes = std::fs::read(&path).expect("reads");
        run(&path.display().to_string(), move || target(&bytes));
    }
}

macro_rules! replays {
    ($($test:ident $name:literal)*) => {$(
        #[test]
        fn $test() {
            replay($name);
        }
    )*};
}

replays! {
    every_input_kept_of_frames "frame"
    every_input_kept_of_records "record"
    every_input_kept_of_batches "batch"
    every_input_kept_of_segment_headers "segment_header"
    every_input_kept_of_checkpoints "checkpoint"
    every_input_kept_of_the_order_log "order_log"
    every_input_kept_of_runs "run"
    every_input_kept_of_stores "store"
}

fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} takes a number, not {text}")))
}

/// Bytes as a seed has them.
fn random_input(seed: u64) -> Vec<u8> {
    let random = Disk::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let len = 4 + random.random() % 60;
    (0..len).map(|_| random.random() as u8).collect()
}

/// Runs `round` with the seed that is given, or with as many as are given, or with `rounds`.
fn seeds(rounds: u64, round: impl Fn(u64)) {
    let (seed, given) = (number_from("THALWEG_SEED"), number_from("THALWEG_ROUNDS"));
    let rounds = given.unwrap_or(if seed.is_some() { 1 } else { rounds });
    let first = seed.unwrap_or(0);
    (first..first.saturating_add(rounds)).for_each(round);
}

#[test]
fn random_changes_to_one_kind_of_file() {
    seeds(ROUNDS / 4, |seed| {
        for (name, target) in &TARGETS[3..7] {
            let bytes = random_input(seed);
            run(&format!("THALWEG_SEED={seed} of {name}"), move || target(&bytes));
        }
    });
}

#[test]
fn random_changes_to_any_file_of_a_store() {
    seeds(ROUNDS, |seed| {
        let bytes = random_input(seed);
        run(&format!("THALWEG_SEED={seed}"), move || targets::store::store(&bytes));
    });
}

#[test]
fn random_changes_to_any_file_of_a_directory() {
    seeds(ROUNDS / 4, |seed| {
        let bytes = random_input(!seed);
        run(&format!("THALWEG_SEED={seed} in a directory"), move || {
            let directory = tempfile::tempdir().expect("a directory");
            targets::store::directory(&bytes, directory.path());
        });
    });
}
