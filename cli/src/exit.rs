//! How a run ends: exit codes, and errors as one sentence on stderr.

use std::io;
use std::process::ExitCode;

/// How a command that ran to its end came out. Errors are the fourth way, code 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, nothing to complain about.
    Done,
    /// A check found a problem, or some of the input was skipped.
    Problem,
    /// Ended by Ctrl-C or a request to terminate.
    Interrupted,
}

/// Exit code of an error: bad usage, or something that could not be done.
const ERROR: u8 = 2;
/// Exit code after SIGINT, as shells report it.
pub(crate) const INTERRUPTED: u8 = 130;

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        match exit {
            Exit::Done => ExitCode::SUCCESS,
            Exit::Problem => ExitCode::from(1),
            Exit::Interrupted => ExitCode::from(INTERRUPTED),
        }
    }
}

/// The exit code of a finished command; an error is printed to stderr first.
///
/// A reader that has closed its end of our stdout has seen what it wanted: that is success.
pub(crate) fn code(result: anyhow::Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            crate::output::note(format_args!("thalweg: {}", sentence(&error)));
            ExitCode::from(ERROR)
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The error and its causes, without saying anything twice: many errors quote their source.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_quoted_already_is_not_repeated() {
        let error =
            anyhow::anyhow!("disk full").context("cannot write: disk full").context("import");
        assert_eq!(sentence(&error), "import: cannot write: disk full");
    }

    #[test]
    fn a_closed_pipe_is_found_below_context() {
        let closed =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("write");
        assert!(is_closed_pipe(&closed));
        assert!(!is_closed_pipe(&anyhow::anyhow!("broken pipe")));
    }
}
