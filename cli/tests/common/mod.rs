//! Runs the binary, and holds every run to what is promised of all of them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// No run takes this long. A hang is a failure, not a test that never ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
}

impl Run {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("stdout is text")
    }

    /// The lines of stdout as JSON.
    pub(crate) fn json(&self) -> Vec<serde_json::Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        self.text().lines().map(parse).collect()
    }

    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Run {
        assert_eq!(self.code, code, "stderr: {}\nstdout: {}", self.stderr, self.shown());
        self
    }

    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Run {
        assert!(self.stderr.contains(text), "no {text:?} in stderr: {}", self.stderr);
        self
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2000)]).into_owned()
    }
}

pub(crate) fn thalweg<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    finish(thalweg(args), Vec::new())
}

pub(crate) fn run_with<S: AsRef<OsStr>>(
    args: impl IntoIterator<Item = S>,
    stdin: impl Into<Vec<u8>>,
) -> Run {
    let mut command = thalweg(args);
    command.stdin(Stdio::piped());
    finish(command, stdin.into())
}

fn finish(mut command: Command, stdin: Vec<u8>) -> Run {
    let started = Instant::now();
    let mut child = command.spawn().expect("the binary starts");
    if let Some(mut pipe) = child.stdin.take() {
        // A run that does not read its input to the end closes the pipe: no failure of the test.
        std::thread::spawn(move || pipe.write_all(&stdin));
    }
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child);
    let stderr = stderr.join().expect("the reader does not panic");
    let run = Run {
        code: status.code().unwrap_or_else(|| panic!("ended by a signal: {status}")),
        stdout: stdout.join().expect("the reader does not panic"),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        elapsed: started.elapsed(),
    };
    check(&run);
    run
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).expect("a pipe can be read");
        }
        bytes
    })
}

/// What holds for every run, whatever was asked.
#[track_caller]
fn check(run: &Run) {
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert!([0, 1, 2, 130].contains(&run.code), "exit code {}: {}", run.code, run.stderr);
    assert!(run.code != 2 || !run.stderr.is_empty(), "an error has a text");
    assert!(!run.stderr.contains('\x1b'), "no control characters where no terminal is");
}

/// Waits for the end, not for ever.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the child can be waited for") {
            return status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().expect("the child can be killed");
            panic!("still running after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `done` gives something.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.expect("there is a kill command").success());
}

/// A directory for a store, gone with the test.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Place(tempfile::tempdir().expect("there is room for tests"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path that does not exist yet.
    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a test file can be written");
        path
    }
}

/// A store with these lines in it.
pub(crate) fn store_of(lines: &str) -> (Place, PathBuf) {
    let place = Place::new();
    let store = place.store();
    run_with([OsStr::new("import"), store.as_os_str()], lines).exits(0);
    (place, store)
}

/// The arguments of a run: a command, a path, and more words.
pub(crate) fn on(command: &str, path: &Path, more: &[&str]) -> Vec<OsString> {
    let mut args = vec![command.into(), path.into()];
    args.extend(more.iter().map(OsString::from));
    args
}
