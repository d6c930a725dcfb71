//! Discovery: a store is opened, and everything in it that is not delivered yet is found and put in
//! causal order. Thalweg beside what does that today, in one run, over the same events.
//!
//! Every contender runs in a process of its own, over a copy of a store that was prepared beforehand.
//! What it delivered is compared with the serial machine before its figures count.

use std::process::ExitCode;

mod cell;
mod contenders;
mod event;
mod expected;
mod machine;
mod matrix;
mod options;
mod profile;
mod report;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.first().map(String::as_str) {
        Some("--help" | "-h") => {
            print!("{}", options::usage());
            Ok(true)
        }
        // The matrix starts this one; it is not for the hand.
        Some("cell") => cell::run(&words[1..]).map(|()| true),
        _ => options::Options::parse(&words).and_then(|options| matrix::run(&options)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("thalweg-discovery-bench: {error}");
            ExitCode::from(2)
        }
    }
}
