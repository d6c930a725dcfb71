//! Faults on files of the operating system, by methods that work on a plain machine: calls that fail or kill at
//! the n-th of their kind (a shim that is preloaded, and `strace`), a file system that is full (`tmpfs`), one
//! that loses its power (`ext4`, shut down by an ioctl). A method that is not there is skipped, and says why.
//!
//! What the simulated disk says of the kernel is checked here against the kernel. The process under test says on
//! its standard output what it was told; afterwards the store is opened again, and held against that and against
//! the serial machine.
//!
//! `THALWEG_ROUNDS=1000` for a long run, in which every call fails once; `THALWEG_SEED` repeats a choice.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::{Expected, Rng, append, check, expected, this_test, this_test_by, wild_event};
use thalweg::storage::OsStorage;
use thalweg::{Ack, AppendFailure, Cause, MixedBatch, Options, Store};

const DIR: &str = "THALWEG_REAL_DIR";
/// No child takes so long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const BATCHES: u64 = 20;
const EVENTS: u64 = 2;
/// Bytes of a payload. With half a MiB the next segments would be reserved instead of filled.
const PAYLOAD: u64 = 28_000;

fn options() -> Options {
    Options::new().segment_bytes(1 << 20).scanners(1).orderers(1)
}

/// The rounds that a long run asks for.
fn rounds() -> Option<u64> {
    std::env::var("THALWEG_ROUNDS").ok()?.parse().ok()
}

// The process under test.

/// Appends, says what becomes of it, and ends by itself whatever happens.
#[test]
#[ignore = "the process that the tests of this file start"]
fn child_that_appends() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    // The first line goes on behind what the test harness says.
    println!();
    let store = match options().open(dir) {
        Ok(store) => store,
        Err(error) => return println!("not open: {error}"),
    };
    println!("open");
    let number = |name, default| {
        std::env::var(name).map_or(default, |number| number.parse().expect("a number"))
    };
    let first: u64 = number("THALWEG_REAL_FIRST", 0);
    let batches = number("THALWEG_REAL_BATCHES", BATCHES);
    let payload_len = number("THALWEG_REAL_PAYLOAD", PAYLOAD) as usize;
    let mut rng = Rng(first + 1);
    for number in first..first + batches {
        let mut batch = MixedBatch::new();
        for index in 0..EVENTS {
            let mut payload = format!("{number}.{index} ").into_bytes();
            payload.resize(payload_len, b'-');
            let event = wild_event(&mut rng, number, 12, payload);
            batch.push(format!("s{}", number % 2), &event).expect("within the limits");
        }
        let ack = if number % 2 == 0 { Ack::Durable } else { Ack::Ordered };
        match store.submit(batch, ack).map(|ticket| ticket.wait()) {
            Ok(Ok(receipt)) => println!("ack {number} {} {}", receipt.position, receipt.end),
            Ok(Err(AppendFailure::NotAppended(cause))) => println!("not {number} {}", name(&cause)),
            Ok(Err(AppendFailure::Unknown(cause))) => println!("unknown {number} {}", name(&cause)),
            Err(refused) => println!("refused {number} {}", refused.reason),
        }
        if number == first + BATCHES / 2 {
            let done =
                store.checkpoint().map_or_else(|error| error.to_string(), |()| "done".into());
            println!("checkpoint {done}");
        }
    }
    for event in store.read(..).expect("reads go on, whatever has failed") {
        let event = event.expect("reads go on, whatever has failed");
        println!("saw {} {}", event.global(), event.position());
    }
    match store.close() {
        Ok(()) => println!("closed"),
        Err(error) => println!("closed: {error}"),
    }
}

fn name(cause: &Cause) -> &'static str {
    match cause {
        Cause::Log(_) => "log",
        Cause::Derived(_) => "derived",
        Cause::StorageFull(_) => "full",
        Cause::Exhausted(_) => "exhausted",
        _ => "other",
    }
}

/// What the process under test has said.
#[derive(Debug, Default)]
struct Said {
    /// By number of the batch: position and end.
    acked: BTreeMap<u64, (u64, u64)>,
    not_appended: BTreeSet<u64>,
    unknown: BTreeSet<u64>,
    /// By global sequence: position.
    saw: BTreeMap<u64, u64>,
    /// What became of the batches, in their order, by its first word.
    outcomes: Vec<(String, String)>,
    checkpoint: Option<String>,
    /// What it said last, if it came to an end.
    end: Option<String>,
}

impl Said {
    fn note(&mut self, line: &str) {
        if line.starts_with("not open") {
            self.end = Some(line.to_owned());
            return;
        }
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[0] {
            "ack" => drop(self.acked.insert(number(1), (number(2), number(3)))),
            "not" | "refused" => drop(self.not_appended.insert(number(1))),
            "unknown" => drop(self.unknown.insert(number(1))),
            "saw" => drop(self.saw.insert(number(1), number(2))),
            "checkpoint" => self.checkpoint = line.strip_prefix("checkpoint ").map(str::to_owned),
            "closed" | "closed:" => self.end = Some(line.to_owned()),
            _ => {}
        }
        if ["ack", "not", "refused", "unknown"].contains(&words[0]) {
            let cause = words.get(2).copied().unwrap_or_default();
            self.outcomes.push((words[0].to_owned(), cause.to_owned()));
        }
    }
}

/// Waits for a child; fails if it hangs. Returns whether it ended by itself, and what it said.
fn finish(mut child: Child, what: &str) -> (bool, Said) {
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut errors = child.stderr.take().expect("piped");
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let said = std::thread::spawn(move || {
        let (mut said, mut line) = (Said::default(), String::new());
        while out.read_line(&mut line).is_ok_and(|len| len > 0) {
            // A line that is cut short was not said.
            if line.ends_with('\n') {
                said.note(line.trim_end());
            }
            line.clear();
        }
        said
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("waits") {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("{what}: the process hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let (said, errors) = (said.join().expect("listens"), errors.join().expect("listens"));
    assert!(!errors.contains("panicked"), "{what}: {errors}");
    assert!(status.code().is_none_or(|code| code == 0), "{what}: {status}: {errors}");
    (status.code().is_some(), said)
}

/// How often the numbers of batches are in the log.
fn stored(expected: &Expected) -> BTreeMap<u64, Vec<u64>> {
    let mut stored: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (position, event) in &expected.events {
        let token = event.payload.split(|byte| *byte == b' ').next().unwrap_or_default();
        let token = std::str::from_utf8(token).expect("ours");
        if let Some((number, _)) = token.split_once('.') {
            stored.entry(number.parse().expect("ours")).or_default().push(*position);
        }
    }
    stored
}

/// What was said is true: of the log, of the order, and of another life of the store.
fn check_said(dir: &Path, said: &Said, what: &str) {
    if !dir.join("segment-0000000000000001.wal").exists() {
        assert!(said.acked.is_empty() && said.saw.is_empty(), "{what}: the log is gone");
        return;
    }
    let store = options().open(dir).unwrap_or_else(|error| panic!("{what}: {error}"));
    let storage = OsStorage::open(dir).expect("the directory is there");
    let expected = expected(&storage);
    check(&store, &expected);
    let stored = stored(&expected);
    for (number, positions) in &stored {
        assert_eq!(positions.len() as u64, EVENTS, "{what}: {number} is torn or doubled");
    }
    for (number, (position, end)) in &said.acked {
        let found = stored.get(number).unwrap_or_else(|| panic!("{what}: {number} is lost"));
        assert!(found[0] == *position && found[1] < *end, "{what}: {number} is elsewhere");
    }
    for number in &said.not_appended {
        assert!(!stored.contains_key(number), "{what}: {number} was refused, and is there");
    }
    for (global, position) in &said.saw {
        let delivery = expected.order.get(*global as usize);
        let delivery = delivery.unwrap_or_else(|| panic!("{what}: global {global} is lost"));
        assert_eq!(delivery.position, *position, "{what}: global {global} was renumbered");
    }
    append(&store, "s0", "another life");
    store.close().unwrap_or_else(|error| panic!("{what}: {error}"));
}

/// After the log has failed nothing more is acknowledged, and the first cause stands.
fn check_fail_stop(said: &Said, what: &str) {
    let is_of_log = |(_, cause): &(String, String)| cause == "log";
    let Some(first) = said.outcomes.iter().position(is_of_log) else { return };
    for (outcome, cause) in &said.outcomes[first..] {
        assert_ne!(outcome, "ack", "{what}: acknowledged after the log had failed");
        assert!(outcome == "refused" || cause == "log", "{what}: another cause: {cause}");
    }
    let end = said.end.as_deref().unwrap_or_default();
    assert!(end.contains("the log could not be written"), "{what}: {end}");
}

/// A store that a kill has left in the middle of things, in a directory of its own.
fn interrupted_store(dir: &Path) {
    for entry in std::fs::read_dir(template()).expect("lists") {
        let from = entry.expect("an entry").path();
        let name = from.file_name().expect("has a name");
        std::fs::copy(&from, dir.join(name)).expect("copies");
    }
}

fn template() -> &'static Path {
    static TEMPLATE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let template = TEMPLATE.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let child = this_test("child_that_appends").env(DIR, dir.path()).spawn().expect("starts");
        let (by_itself, said) = finish(child, "the template");
        assert!(by_itself && said.acked.len() as u64 == BATCHES, "{said:?}");
        // Behind the checkpoint, and not closed: a copy of the files while the store is open.
        let store = options().open(dir.path()).expect("opens");
        append(&store, "s0", "behind the checkpoint");
        let copy = tempfile::tempdir().expect("a directory");
        for entry in std::fs::read_dir(dir.path()).expect("lists") {
            let from = entry.expect("an entry").path();
            let is_temporary = from.extension().is_some_and(|extension| extension == "new");
            if !is_temporary {
                std::fs::copy(&from, copy.path().join(from.file_name().expect("has a name")))
                    .expect("copies");
            }
        }
        store.close().expect("closes");
        copy
    });
    template.path()
}

// Calls that fail at the n-th of their kind: by a shim that is preloaded.

/// What comes of C, if there is a compiler; says why, if not.
fn compile(name: &str, source: &str, flags: &[&str]) -> Option<(tempfile::TempDir, PathBuf)> {
    if cfg!(not(target_os = "linux")) {
        println!("skipped: {name}.c is for Linux");
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (from, to) = (dir.path().join(format!("{name}.c")), dir.path().join(name));
    std::fs::write(&from, source).expect("writes");
    match Command::new("cc").arg("-o").args([&to, &from]).args(flags).output() {
        Ok(output) if output.status.success() => Some((dir, to)),
        Ok(output) => panic!("cc: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            println!("skipped: there is no cc: {error}");
            None
        }
    }
}

/// The shim, if it can be made.
fn shim() -> Option<&'static Path> {
    static SHIM: OnceLock<Option<(tempfile::TempDir, PathBuf)>> = OnceLock::new();
    let source = include_str!("real_faults/shim.c");
    let shim = SHIM.get_or_init(|| compile("shim", source, &["-shared", "-fPIC", "-O1", "-ldl"]));
    shim.as_ref().map(|(_, library)| library.as_path())
}

/// A call that the shim has seen.
#[derive(Debug)]
struct Call {
    kind: String,
    inode: u64,
    file: String,
    failed: bool,
    injected: bool,
}

fn calls(log: &Path) -> Vec<Call> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let call = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, inode, file, result, happened] = words[..] else { panic!("{line}") };
        Call {
            kind: kind.to_owned(),
            inode: inode.parse().expect("a number"),
            file: file.to_owned(),
            failed: result == "-1",
            injected: happened == "injected",
        }
    };
    text.lines().map(call).collect()
}

/// Runs a process with a fault, on a new store or on one that was interrupted; returns the calls that it made, and
/// what it said. Then the store is opened again, and checked.
fn run_with(shim: &Path, plan: Option<(&str, u64, &str)>, is_new: bool) -> (Vec<Call>, Said) {
    let what = format!("{plan:?}, {}", if is_new { "new" } else { "interrupted" });
    let (dir, log) = (tempfile::tempdir().expect("a directory"), tempfile::NamedTempFile::new());
    let log = log.expect("a file");
    if !is_new {
        interrupted_store(dir.path());
    }
    let mut command = this_test("child_that_appends");
    command
        .env(DIR, dir.path())
        .env("THALWEG_REAL_FIRST", if is_new { "0" } else { "1000" })
        .env("THALWEG_SHIM_DIR", dir.path())
        .env("THALWEG_SHIM_LOG", log.path())
        .env("LD_PRELOAD", shim);
    if let Some((call, number, fault)) = plan {
        command.env("THALWEG_SHIM", format!("{call}:{number}:{fault}"));
    }
    let (by_itself, said) = finish(command.spawn().expect("starts"), &what);
    assert!(!by_itself || said.end.is_some(), "{what}: {said:?}");
    check_fail_stop(&said, &what);
    check_said(dir.path(), &said, &what);
    (calls(log.path()), said)
}

/// No file is synced again after a sync of it has failed. One that is removed and made anew is another file,
/// though it may have the same name and the same inode.
fn check_no_sync_is_tried_again(calls: &[Call], what: &str) {
    let mut failed: BTreeMap<u64, &str> = BTreeMap::new();
    for call in calls {
        match call.kind.as_str() {
            "unlink" => failed.retain(|_, file| *file != call.file),
            "fdatasync" => {
                let again = failed.contains_key(&call.inode);
                assert!(!again, "{what}: {} was synced again", call.file);
                if call.failed {
                    failed.insert(call.inode, &call.file);
                }
            }
            _ => {}
        }
    }
}

const EINTR: &str = "4";
const EIO: &str = "5";
const ENOMEM: &str = "12";
const EMFILE: &str = "24";
const ENOSPC: &str = "28";

/// Which of the `count` calls of a kind fail: all in a long run, and some otherwise.
fn chosen(rng: &mut Rng, count: u64, most: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (1..=count).collect();
    if rounds().is_none() && count > most {
        rng.shuffle(&mut numbers);
        numbers.truncate(most as usize);
        numbers.sort_unstable();
    }
    numbers
}

/// Fails calls of a kind in turn; returns how many faults happened.
fn fail_in_turn(
    call: &str,
    faults: &[&str],
    most: u64,
    check: impl Fn(&[Call], &Said, &str),
) -> u64 {
    let Some(shim) = shim() else { return u64::MAX };
    let mut rng = Rng::from_env();
    let mut happened = 0;
    for is_new in [true, false] {
        let (seen, said) = run_with(shim, None, is_new);
        assert_eq!(said.acked.len() as u64, BATCHES, "nothing was to fail: {said:?}");
        let count = seen.iter().filter(|seen| seen.kind == call).count() as u64;
        for fault in faults {
            for number in chosen(&mut rng, count, most) {
                let (calls, said) = run_with(shim, Some((call, number, fault)), is_new);
                happened += calls.iter().filter(|call| call.injected).count() as u64;
                let what = format!("{call} {number} of {count}, {fault}, new: {is_new}");
                check(&calls, &said, &what);
            }
        }
    }
    println!("{call}: {happened} faults of the kinds {faults:?}");
    assert!(happened > 0, "no {call} has failed");
    happened
}

#[test]
fn a_failed_sync_is_final_at_every_call() {
    fail_in_turn("fdatasync", &[EIO, ENOSPC], 8, |calls, said, what| {
        check_no_sync_is_tried_again(calls, what);
        // The log's own: the appends that were under way are not known to be stored.
        let failed = calls.iter().find(|call| call.injected);
        let in_use = |call: &Call| call.file.starts_with("segment-") && call.file.ends_with(".wal");
        if failed.is_some_and(in_use) && !said.outcomes.is_empty() {
            let first = said.outcomes.iter().find(|(outcome, _)| outcome != "ack");
            let (outcome, cause) =
                first.unwrap_or_else(|| panic!("{what}: acknowledged: {said:?}"));
            assert!(outcome == "unknown" && cause == "log", "{what}: {said:?}");
        }
    });
    fail_in_turn("fsync", &[EIO], 6, |_, _, _| {});
}

#[test]
fn a_write_may_fail_at_every_call() {
    fail_in_turn("pwrite", &["torn", ENOSPC, "zero"], 5, |_, _, _| {});
}

#[test]
fn what_is_cut_short_or_interrupted_goes_on() {
    let nothing_fails = |_: &[Call], said: &Said, what: &str| {
        assert_eq!(said.acked.len() as u64, BATCHES, "{what}: {said:?}");
        assert_eq!(said.end.as_deref(), Some("closed"), "{what}");
        assert_eq!(said.checkpoint.as_deref(), Some("done"), "{what}");
    };
    fail_in_turn("pwrite", &["short", EINTR], 5, nothing_fails);
    fail_in_turn("pread", &["short", EINTR], 3, nothing_fails);
    fail_in_turn("fdatasync", &[EINTR], 4, nothing_fails);
}

#[test]
fn what_cannot_be_opened_read_mapped_or_renamed_is_an_error_that_loses_nothing() {
    fail_in_turn("open", &[EIO, EMFILE], 5, |_, _, _| {});
    fail_in_turn("pread", &[EIO], 5, |_, said, what| {
        // It is read at the opening, and there alone.
        let end = said.end.as_deref().unwrap_or_default();
        assert!(end == "closed" || end.starts_with("not open"), "{what}: {end}");
    });
    fail_in_turn("mmap", &[ENOMEM], 5, |_, _, _| {});
    fail_in_turn("ftruncate", &[ENOSPC], 4, |_, _, _| {});
    fail_in_turn("rename", &[EIO], 3, |_, _, _| {});
    fail_in_turn("unlink", &[EIO], 4, |_, _, _| {});
}

/// Before and behind each call that changes something: what `kill.rs` does at random moments.
#[test]
fn a_kill_at_every_call_loses_nothing() {
    for call in ["pwrite", "fdatasync", "fsync", "open", "rename", "ftruncate", "unlink"] {
        fail_in_turn(call, &["kill", "killed"], 3, |_, said, what| {
            assert!(said.end.is_none(), "{what}: it has come to an end");
        });
    }
}

// System calls that fail: by strace, which also reaches those that go past the C library.

/// Whether there is an strace that may trace; says why, if not.
fn can_trace() -> bool {
    match Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("skipped: strace: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            println!("skipped: there is no strace: {error}");
            false
        }
    }
}

/// Runs a process under strace with an injection, on a new store, which is then opened again and checked. Calls are
/// counted by thread, so the fault comes to each thread that calls so often.
fn run_traced(injection: &str, payload: &str) -> Said {
    let dir = tempfile::tempdir().expect("a directory");
    let (call, _) = injection.split_once(':').expect("a call comes first");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    command.args(["-e", &format!("inject={injection}")]);
    let mut command = this_test_by(command, "child_that_appends");
    command.env(DIR, dir.path()).env("THALWEG_REAL_PAYLOAD", payload);
    let (_, said) = finish(command.spawn().expect("starts"), injection);
    check_fail_stop(&said, injection);
    check_said(dir.path(), &said, injection);
    said
}

#[test]
fn system_calls_that_fail_lose_nothing() {
    if !can_trace() {
        return;
    }
    let numbers = match rounds() {
        Some(rounds) => (1..=rounds.min(40)).collect(),
        None => vec![1, 4, 9],
    };
    let faults = ["error=EIO", "signal=SIGKILL"];
    for (call, fault) in ["fdatasync", "pwrite64"].iter().flat_map(|call| faults.map(|f| (call, f)))
    {
        for number in &numbers {
            let said = run_traced(&format!("{call}:{fault}:when={number}"), "28000");
            println!("{call} {number}, {fault}: {} acknowledged, {:?}", said.acked.len(), said.end);
        }
    }
}

/// Space is reserved where syncs are large, and written where the file system cannot reserve.
#[test]
fn a_reservation_that_fails_is_a_full_disk_or_is_written_instead() {
    const LARGE: &str = "600000";
    if !can_trace() {
        return;
    }
    let said = run_traced("fallocate:error=EOPNOTSUPP", LARGE);
    assert_eq!(said.acked.len() as u64, BATCHES, "{said:?}");
    let said = run_traced("fallocate:error=ENOSPC:when=1..4", LARGE);
    assert!(said.outcomes.iter().any(|(_, cause)| cause == "full"), "{said:?}");
    assert!(said.unknown.is_empty(), "nothing was written: {said:?}");
    let (last, _) = said.outcomes.last().expect("outcomes");
    assert_eq!((&last[..], said.end.as_deref()), ("ack", Some("closed")), "it goes on with room");
    let said = run_traced("fallocate:error=EIO:when=1..4", LARGE);
    assert!(said.outcomes.iter().any(|(outcome, _)| outcome != "ack"), "{said:?}");
}

// Memory that runs out.

/// A process that runs out of address space ends, as if it were killed, or says what it could not do.
#[test]
fn a_process_that_runs_out_of_memory_loses_nothing() {
    if cfg!(not(target_os = "linux")) {
        return println!("skipped: limits on address space are Linux's");
    }
    let (mut aborted, mut refused, mut whole) = (0, 0, 0);
    let step = if rounds().is_some() { 8 } else { 60 };
    for limit in (60..700).step_by(step) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("sh");
        command.args(["-c", &format!(r#"ulimit -v {}; exec "$@""#, limit << 10), "sh"]);
        let mut command = this_test_by(command, "child_that_appends");
        let child = command.env(DIR, dir.path()).spawn().expect("starts");
        let what = format!("{limit} MiB");
        let (by_itself, said) = finish(child, &what);
        check_fail_stop(&said, &what);
        check_said(dir.path(), &said, &what);
        match (by_itself, said.acked.len() as u64) {
            (true, BATCHES) => whole += 1,
            (true, _) => refused += 1,
            (false, _) => aborted += 1,
        }
    }
    println!("out of memory: {aborted} aborted, {refused} refused, {whole} had enough");
    assert!(refused > 0 && whole > 0);
}

// A file system that is full.

/// Runs an ignored test of this file in a mount namespace of its own, with a file system on `dir` that `mount` makes
/// with these words. The mount ends with the process. Says why, if that cannot be done here.
fn on_file_system(mount: &str, dir: &Path, child: &str) {
    const CANNOT_MOUNT: i32 = 77;
    let script = format!(r#"mount {mount} "$0" || exit {CANNOT_MOUNT}; exec "$@""#);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]).arg(dir);
    let output = match this_test_by(command, child).env(DIR, dir).output() {
        Ok(output) => output,
        Err(error) => return println!("skipped: there is no unshare: {error}"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("unshare failed") || output.status.code() == Some(CANNOT_MOUNT) {
        return println!("skipped: nothing can be mounted here: {errors}");
    }
    println!("{said}");
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("test result: ok. 1 passed"), "{said}");
}

#[test]
fn a_full_file_system_refuses_serves_opens_and_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    on_file_system("-t tmpfs -o size=16m tmpfs", dir.path(), "child_on_a_full_file_system");
}

#[test]
fn a_file_system_without_inodes_refuses_serves_and_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    on_file_system("-t tmpfs -o nr_inodes=64 tmpfs", dir.path(), "child_without_inodes");
}

#[test]
fn a_read_only_file_system_is_read_and_refuses_writers_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let child = "child_on_a_read_only_file_system";
    on_file_system("-t tmpfs -o size=16m tmpfs", dir.path(), child);
}

#[test]
#[ignore = "the process that `a_read_only_file_system_is_read_and_refuses_writers_by_name` starts"]
fn child_on_a_read_only_file_system() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let mut ledger = Ledger::default();
    let store = options().open(&dir).expect("opens");
    while ledger.next < 20 {
        assert!(ledger.append(&store, 1000));
    }
    store.checkpoint().expect("a checkpoint");
    assert!(ledger.append(&store, 1000));
    store.close().expect("closes");
    // Its maps, too.
    drop(store);
    run("mount", &["-o".as_ref(), "remount,ro".as_ref(), dir.as_os_str()]);
    for _ in 0..2 {
        let error = options().open(&dir).expect_err("nothing can be written");
        assert!(error.to_string().contains("Read-only file system"), "{error}");
        let reader = options().open_read_only(&dir).expect("opens for reading");
        ledger.check(&dir, &reader);
    }
    run("mount", &["-o".as_ref(), "remount,rw".as_ref(), dir.as_os_str()]);
    let store = options().open(&dir).expect("opens");
    assert!(ledger.append(&store, 1000));
    ledger.check(&dir, &store);
}

/// Takes all the room that is left.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("ballast");
    let mut file = std::fs::File::create(&path).expect("creates");
    for len in [1 << 16, 1 << 12, 1] {
        while std::io::Write::write_all(&mut file, &vec![1; len]).is_ok() {}
    }
    path
}

fn is_full(failure: &AppendFailure) -> bool {
    matches!(failure, AppendFailure::NotAppended(Cause::StorageFull(_)))
}

/// What was acknowledged, and refused, by number of the event.
#[derive(Debug, Default)]
struct Ledger {
    next: u64,
    acked: BTreeSet<u64>,
    refused: BTreeSet<u64>,
}

impl Ledger {
    /// Appends an event of so many bytes, durably; says whether there was room.
    fn append(&mut self, store: &Store, len: usize) -> bool {
        let mut payload = format!("{} ", self.next).into_bytes();
        payload.resize(payload.len().max(len), b'-');
        let event = wild_event(&mut Rng(self.next), self.next, 30, payload);
        let mut batch = MixedBatch::new();
        batch.push(format!("s{}", self.next % 3), &event).expect("within the limits");
        self.next += 1;
        let ticket = store.submit(batch, Ack::Durable).expect("accepted");
        match ticket.wait() {
            Ok(_) => self.acked.insert(self.next - 1),
            Err(failure) if is_full(&failure) => !self.refused.insert(self.next - 1),
            Err(failure) => panic!("{failure}"),
        }
    }

    /// Nothing that was acknowledged is missing, nothing that was refused is there, and the order is the one of
    /// the serial machine.
    fn check(&self, dir: &Path, store: &Store) {
        let expected = expected(&OsStorage::open(dir).expect("is there"));
        let numbers = expected.events.values().map(|event| {
            let number = event.payload.split(|byte| *byte == b' ').next().expect("a first word");
            std::str::from_utf8(number).expect("ours").parse().expect("ours")
        });
        let stored: BTreeSet<u64> = numbers.collect();
        assert_eq!(stored, self.acked, "lost, or not refused");
        assert!(stored.is_disjoint(&self.refused));
        check(store, &expected);
    }
}

/// Everything that needs no room.
fn check_served(store: &Store, ledger: &mut Ledger) {
    let before = store.stats().delivered;
    let events = store.read(..).expect("reads");
    let read: Vec<u64> = events.map(|event| event.expect("reads").global()).collect();
    let len = read.len() as u64;
    assert!(len >= before && read.into_iter().eq(0..len));
    store.held().expect("an answer");
    assert_eq!(store.streams().expect("an answer").len(), 3);
    store.why_held("s0", "nobody").expect("an answer");
    for _ in 0..3 {
        assert!(!ledger.append(store, 1 << 20), "there was room for a segment");
    }
    assert_eq!(store.cause().map(|cause| cause.to_string()), None);
}

#[test]
#[ignore = "the process that `a_full_file_system_refuses_serves_opens_and_goes_on` starts"]
fn child_on_a_full_file_system() {
    let Some(mount) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let dir = mount.join("store");
    let mut ledger = Ledger::default();
    let store = options().open(&dir).expect("opens");
    while ledger.next < 60 {
        assert!(ledger.append(&store, 10_000));
    }
    store.checkpoint().expect("a checkpoint");

    // Full at a moment when everything is ordered: no checkpoint can be written, and nothing is at stake.
    store.wait_committed(store.durable_end()).expect("ordered");
    ledger.append(&store, 1);
    store.wait_committed(store.durable_end()).expect("ordered");
    let ballast = fill(&mount);
    let error = store.checkpoint().expect_err("there is no room for a checkpoint");
    assert!(error.to_string().contains("No space left"), "{error}");
    check_served(&store, &mut ledger);
    ledger.check(&dir, &store);
    std::fs::remove_file(&ballast).expect("removes");
    store.checkpoint().expect("there is room again");

    // Full while events come: they fit in the segment, and their order does not fit on the disk.
    let ballast = fill(&mount);
    for _ in 0..400 {
        assert!(ledger.append(&store, 1), "there is room in the segment");
    }
    let begun = Instant::now();
    while store.stats().commit_error.is_none() {
        assert!(begun.elapsed() < PATIENCE, "{:?}", store.stats());
        std::thread::yield_now();
    }
    while ledger.append(&store, 10_000) {}
    check_served(&store, &mut ledger);
    std::fs::remove_file(&ballast).expect("removes");
    ledger.check(&dir, &store);
    assert!(ledger.append(&store, 100_000), "there is room again, and the store goes on");

    // Closed and opened on a full disk, for reading and for writing, again and again.
    let ballast = fill(&mount);
    for _ in 0..300 {
        ledger.append(&store, 1);
    }
    while ledger.append(&store, 10_000) {}
    let _ = store.close();
    for _ in 0..3 {
        let reader = options().open_read_only(&dir).expect("opens for reading");
        ledger.check(&dir, &reader);
        let store = options().open(&dir).expect("opens for writing");
        check_served(&store, &mut ledger);
        let _ = store.close();
    }

    // Killed on a full disk: the log has to go on in another segment, for which there is no room.
    let mut child = this_test("child_that_appends").env(DIR, &dir).spawn().expect("starts");
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    while !line.starts_with("not ") {
        line.clear();
        assert!(out.read_line(&mut line).expect("says something") > 0, "it ended by itself");
        assert!(!line.starts_with("not open"), "{line}");
    }
    child.kill().expect("kills");
    child.wait().expect("ends");
    let before = expected(&OsStorage::open(&dir).expect("is there")).events.len();
    for _ in 0..3 {
        let store = options().open(&dir).expect("opens after a kill");
        check_served(&store, &mut ledger);
        let _ = store.close();
    }
    let store = options().open(&dir).expect("opens");
    std::fs::remove_file(&ballast).expect("removes");
    assert!(ledger.append(&store, 100_000), "there is room again");
    let expected = expected(&OsStorage::open(&dir).expect("is there"));
    assert_eq!(expected.events.len(), before + 1);
    check(&store, &expected);
    store.close().expect("closes");
    let store = options().open(&dir).expect("opens");
    check(&store, &expected);
    println!("{} acknowledged, {} refused", ledger.acked.len(), ledger.refused.len());
}

#[test]
#[ignore = "the process that `a_file_system_without_inodes_refuses_serves_and_goes_on` starts"]
fn child_without_inodes() {
    let Some(mount) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let dir = mount.join("store");
    let mut ledger = Ledger::default();
    let store = options().open(&dir).expect("opens");
    while ledger.next < 5 {
        assert!(ledger.append(&store, 10_000));
    }
    // What is not ordered yet may need a file for its order, and would wait for room to make it.
    store.wait_committed(store.durable_end()).expect("ordered");
    // Without it, the next opening would throw the derived files away, and have their inodes.
    store.checkpoint().expect("a checkpoint");
    let files = (0..).map(|number| mount.join(format!("{number}")));
    let taken: Vec<PathBuf> = files.take_while(|file| std::fs::write(file, "").is_ok()).collect();
    store.checkpoint().expect_err("there is no inode for a checkpoint");
    while ledger.append(&store, 60_000) {}
    check_served(&store, &mut ledger);
    ledger.check(&dir, &store);
    let _ = store.close();
    for _ in 0..2 {
        let reader = options().open_read_only(&dir).expect("opens for reading");
        ledger.check(&dir, &reader);
        let store = options().open(&dir).expect("opens for writing");
        check_served(&store, &mut ledger);
        let _ = store.close();
    }
    let store = options().open(&dir).expect("opens");
    taken.iter().for_each(|file| std::fs::remove_file(file).expect("removes"));
    assert!(ledger.append(&store, 1 << 20), "there are inodes again");
    ledger.check(&dir, &store);
    store.checkpoint().expect("a checkpoint");
    store.close().expect("closes");
    ledger.check(&dir, &options().open(&dir).expect("opens"));
    println!("{} acknowledged, {} refused", ledger.acked.len(), ledger.refused.len());
}

// A file system that loses its power.

/// Rounds in which the power goes, unless a long run asks for more.
const POWER_CUTS: u64 = 5;

/// An ext4 of its own, shut down while a process appends: what was not synced is gone, as the kernel has it.
#[test]
fn a_power_cut_of_a_real_file_system_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
    let file = std::fs::File::create(&image).expect("creates");
    file.set_len(256 << 20).expect("is sparse");
    std::fs::create_dir(&mount).expect("creates");
    match Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).output() {
        Ok(output) if output.status.success() => {}
        other => return println!("skipped: no ext4 can be made here: {other:?}"),
    }
    if compile("shutdown", include_str!("real_faults/shutdown.c"), &[]).is_none() {
        return;
    }
    on_file_system(&format!("-o loop '{}'", image.display()), &mount, "child_that_loses_power");
}

fn run(command: &str, words: &[&std::ffi::OsStr]) {
    let output = Command::new(command).args(words).output().expect("runs");
    assert!(output.status.success(), "{command} {words:?}: {output:?}");
}

#[test]
#[ignore = "the process that `a_power_cut_of_a_real_file_system_loses_nothing_acknowledged` starts"]
fn child_that_loses_power() {
    let Some(mount) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let image = mount.with_file_name("image");
    let (_keep, shutdown) = compile("shutdown", include_str!("real_faults/shutdown.c"), &[])
        .expect("its parent has compiled it");
    let mut rng = Rng::from_env();
    let mut all = Said::default();
    let rounds = rounds().map_or(POWER_CUTS, |rounds| rounds.div_ceil(10));
    for round in 0..rounds {
        // Checks read all of the log, and the image has its size.
        let store = mount.join(format!("store-{}", round / 8));
        if round % 8 == 0 {
            all = Said::default();
            if round > 0 {
                std::fs::remove_dir_all(mount.join(format!("store-{}", round / 8 - 1)))
                    .expect("removes");
            }
        }
        let mut child = this_test("child_that_appends")
            .env(DIR, &store)
            .env("THALWEG_REAL_FIRST", (round * 1_000_000).to_string())
            .env("THALWEG_REAL_BATCHES", "1000000")
            .spawn()
            .expect("starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let until = Instant::now() + PATIENCE;
        while lines.recv_timeout(until - Instant::now()).expect("opens") != "open" {}
        std::thread::sleep(Duration::from_millis(rng.below(400)));
        // A sync that runs at the same time as the shutdown may return success: only what was heard before counts.
        let heard: Vec<String> = lines.try_iter().collect();
        run(shutdown.to_str().expect("plain"), &[mount.as_os_str()]);
        child.kill().expect("kills");
        child.wait().expect("ends");
        run("umount", &[mount.as_os_str()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), mount.as_os_str()]);
        let before = all.acked.len();
        heard.iter().for_each(|line| all.note(line));
        let reader = options().open_read_only(&store).expect("opens for reading");
        check(&reader, &expected(&OsStorage::open(&store).expect("is there")));
        drop(reader);
        check_said(&store, &all, &format!("round {round}"));
        println!("round {round}: {} acknowledged", all.acked.len() - before);
    }
    assert!(!all.acked.is_empty());
}
