//! Appends side by side: Thalweg and what a user would take instead, in one run, on one disk.
//!
//! Every run has a process and an empty directory of its own. What opening has written is synced before
//! the clock starts; afterwards the store is closed, opened by another process, and read back
//! byte for byte before its figures count.

use std::process::ExitCode;

mod cell;
mod check;
mod consumers;
mod contenders;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod faults;
mod index;
mod machine;
mod matrix;
mod options;
mod payload;
mod report;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some("--help" | "-h") => {
            print!("{}", options::USAGE);
            Ok(true)
        }
        // The matrix starts these two; they are not for the hand.
        Some("cell") => spec(&words).and_then(|spec| cell::run(&spec)).map(|()| true),
        Some("check") => spec(&words).and_then(|spec| check::run(&spec)).map(|()| true),
        Some("index") => index::run(&words[1..]),
        Some("consumers") => consumers::run(&words[1..]),
        // `consumers` starts this one.
        Some(consumers::CHILD) => consumers::follow(&words[1..]),
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Some("faults") => faults::run(&words[1..]),
        // `faults` starts these two.
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Some("faults-append") => {
            spec(&words).and_then(|spec| faults::child::append(&spec)).map(|()| true)
        }
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Some("faults-read") => {
            spec(&words).and_then(|spec| faults::child::read(&spec)).map(|()| true)
        }
        // `index` starts this one.
        Some("index-work") => spec(&words).and_then(|spec| index::work::run(&spec)).map(|()| true),
        _ => options::Options::parse(&words).and_then(|options| matrix::run(&options)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("thalweg-peers-bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn spec<T: serde::de::DeserializeOwned>(words: &[String]) -> Result<T, Failure> {
    let text = words.get(1).ok_or("there is no specification")?;
    Ok(serde_json::from_str(text)?)
}
