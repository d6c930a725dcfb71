//! Somebody else cuts a file that a process has mapped. The process reports an error or dies by `SIGBUS`, and
//! what was acknowledged is all there when the bytes are put back. See "Reading through maps" in
//! `wal/FORMAT.md`.

#![cfg(target_os = "linux")]

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use thalweg::{Ack, AppenderOptions, Options, Store};

const DIR: &str = "THALWEG_SHRINKING_DIR";
const WRITES: &str = "THALWEG_SHRINKING_WRITES";
const SIGBUS: i32 = 7;
/// No child takes so long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options::new().scanners(1).orderers(1).segment_bytes(1 << 20)
}

fn payload(number: usize) -> Vec<u8> {
    format!("{number}-").repeat(20_000).into_bytes()
}

/// The numbers of all events that can be read, and whether there was an error.
fn read(store: &Store) -> (BTreeSet<usize>, bool) {
    let mut numbers = BTreeSet::new();
    let mut has_failed = store.wait_committed(store.durable_end()).is_err();
    for event in store.read(..).expect("reads") {
        let Ok(event) = event else {
            has_failed = true;
            continue;
        };
        let text = std::str::from_utf8(event.payload()).expect("as it was written");
        let number = text.split('-').next().expect("a number").parse().expect("a number");
        assert!(event.payload() == payload(number), "nobody has written event {number}");
        numbers.insert(number);
    }
    (numbers, has_failed)
}

#[test]
#[ignore = "the process whose files `a_file_that_is_cut_under_a_process_loses_nothing` cuts"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let writes = std::env::var_os(WRITES).is_some();
    let store = if writes { options().open(dir) } else { options().open_read_only(dir) };
    let store = store.expect("opens");
    // The first line goes on behind what the test harness says.
    println!("\nopen");
    std::io::stdin().lock().read_line(&mut String::new()).expect("reads");
    let mut has_failed = false;
    if writes {
        let ack = AppenderOptions::new().ack(Ack::Durable);
        let appender = store.appender_with("s", ack).expect("an appender");
        for number in 100..105 {
            let Ok(ticket) = appender.append(payload(number)) else { break };
            match ticket.wait() {
                Ok(_) => println!("acknowledged {number}"),
                Err(_) => has_failed = true,
            }
        }
    }
    let (numbers, cannot_read) = read(&store);
    has_failed |= cannot_read;
    println!("read {} {}", numbers.len(), if has_failed { "with an error" } else { "all" });
}

/// Starts the child; `cut` is called when it has opened the store.
fn run_child(dir: &Path, writes: bool, cut: impl FnOnce()) -> (ExitStatus, Vec<String>) {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.args(["child", "--exact", "--ignored", "--nocapture"]).env(DIR, dir);
    if writes {
        command.env(WRITES, "1");
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child: Child = command.spawn().expect("starts");
    let mut input = child.stdin.take().expect("piped");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    });
    let mut said = Vec::new();
    let mut cut = Some(cut);
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line == "open" => {
                cut.take().expect("it opens once")();
                input.write_all(b"go\n").expect("it listens");
            }
            Ok(line) => said.push(line),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                panic!("the child hangs; it said {said:?}");
            }
        }
    }
    (child.wait().expect("ends"), said)
}

#[test]
fn a_file_that_is_cut_under_a_process_loses_nothing() {
    let (mut killed, mut reported) = (0, 0);
    let cases = [
        ("segment-0000000000000001.wal", 0),
        ("segment-0000000000000001.wal", 4096),
        ("segment-0000000000000001.wal", 500_123),
        ("segment-0000000000000002.wal", 4096),
        ("segment-0000000000000003.wal", 0),
        ("segment-0000000000000003.wal", 4096),
        ("segment-0000000000000003.wal", 100_000),
        ("order-0000000000000000.ord", 0),
        ("order-0000000000000000.ord", 4096 + 100),
        ("run-0000000000000001.run", 0),
    ];
    for (name, len) in cases {
        for writes in [false, true] {
            let what = format!("{name} is cut to {len} bytes, writes: {writes}");
            let dir = tempfile::tempdir().expect("a directory");
            let store = options().open(dir.path()).expect("opens");
            let appender = store.appender("s").expect("an appender");
            (0..40).for_each(|number| {
                drop(appender.append(payload(number)).expect("accepted").wait().expect("appended"));
            });
            store.close().expect("closes");
            drop((appender, store));
            let path = dir.path().join(name);
            let whole = fs::read(&path).expect("reads");
            let used = whole.iter().rposition(|byte| *byte != 0).expect("something") + 1;
            assert!(used > len, "{what}: there is nothing to cut");

            let cut = || {
                let file = OpenOptions::new().write(true).open(&path).expect("opens");
                file.set_len(len as u64).expect("cuts");
            };
            let (status, said) = run_child(dir.path(), writes, cut);
            match status.signal() {
                Some(SIGBUS) => killed += 1,
                None if status.success() => {
                    let told = said.iter().any(|line| line.contains("with an error"));
                    reported += u32::from(told);
                }
                _ => panic!("{what}: {status}, {said:?}"),
            }
            let acknowledged = said.iter().filter_map(|line| line.strip_prefix("acknowledged "));
            let mut expected: BTreeSet<usize> =
                acknowledged.map(|number| number.parse().expect("a number")).collect();
            expected.extend(0..40);

            // As it is, the store says what is wrong, or shows what there is.
            if let Ok(reader) = options().open_read_only(dir.path()) {
                let _ = read(&reader);
            }
            // The bytes are put back where they were cut; what was written behind them stays.
            if path.exists() {
                let file = OpenOptions::new().write(true).open(&path).expect("opens");
                file.write_all_at(&whole[len..used], len as u64).expect("writes");
                let now = file.metadata().expect("a length").len();
                file.set_len(now.max(whole.len() as u64)).expect("grows");
            }
            let store =
                options().open(dir.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
            let (numbers, has_failed) = read(&store);
            assert!(!has_failed, "{what}: not all can be read");
            // Beyond what was acknowledged there can be what the child did not live to tell.
            assert!(expected.is_subset(&numbers), "{what}: {expected:?} but {numbers:?}");
            store.close().expect("closes");
            let report = thalweg::verify(dir.path(), &|_| std::ops::ControlFlow::Continue(()));
            assert_eq!(report.expect("verifies").problems, [], "{what}");
        }
    }
    println!("{killed} were killed by SIGBUS, {reported} reported an error");
    assert!(killed > 0 && reported > 0, "{killed} killed, {reported} reported");
}
