//! The command line of Thalweg: one binary, the same contract for people and for scripts.
//!
//! `main` parses, runs and maps to an exit code. Each command is a file in `commands/` over a call
//! or two of the `thalweg` library, so what this tool can do, a library user can do; there is no
//! logic of the log here, and no format but the text ones ([`ndjson`], [`graph`]).

use std::process::ExitCode;

use clap::Parser;

mod bench;
mod commands;
mod exit;
mod graph;
mod interrupt;
mod lines;
mod ndjson;
mod output;
mod progress;

/// An event log that puts events in causal order.
///
/// STORE is a directory. Data goes to stdout, everything else to stderr; progress bars are shown
/// only on a terminal, and `--json` replaces a table by one JSON object a line. Only `import` and
/// `append` create a store.
#[derive(Parser)]
#[command(name = "thalweg", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0    done; also when the reader of our output has seen enough and closed the pipe
  1    a check found a problem, or some of the input was skipped
  2    an error: bad usage, or something that could not be done
  130  interrupted by Ctrl-C

Examples:
  thalweg import orders events.ndjson
  git log --format='{\"stream\":\"main\",\"id\":\"%H\",\"parents\":\"%P\"}' | thalweg import history
  thalweg read orders --stream orders-42 --format table
  thalweg read orders | thalweg import copy
  thalweg held orders --json";

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => exit::code(cli.command.run()),
        // Prints help to stdout with code 0, and errors to stderr with code 2.
        Err(error) => error.exit(),
    }
}
