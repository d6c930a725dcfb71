//! `trim`: where the readers of a stream begin.

use std::io::Write as _;

use anyhow::Context as _;
use clap::Args;

use super::StoreArgument;
use crate::exit::Exit;
use crate::interrupt;
use crate::output::{self, NameArgument, count, name_argument, number_argument};

/// Have the readers of a stream begin later
///
/// From then on, who reads the stream begins with its event number N, or with the next that is
/// delivered to it if N is beyond that. Prints where that is. It never goes back. Nothing is deleted,
/// and all sequences stay: who reads the whole store goes on seeing the events.
///
/// The trim is a record of the log. The store must be there, and no other program may write it at the
/// same time.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Example:
  thalweg trim orders --stream orders-42 --before 1000"
)]
pub(crate) struct Trim {
    #[command(flatten)]
    store: StoreArgument,
    /// The stream
    #[arg(long, short, value_name = "STREAM", value_parser = name_argument())]
    stream: NameArgument,
    /// Local sequence of the first event that is kept
    #[arg(long, value_name = "N", value_parser = number_argument, allow_negative_numbers = true)]
    before: u64,
}

impl Trim {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        trim_stream(&self.store, &self.stream, self.before)
    }
}

fn trim_stream(
    store: &StoreArgument,
    NameArgument(stream): &NameArgument,
    before: u64,
) -> anyhow::Result<Exit> {
    interrupt::exit_at_once()?;
    let store = store.open_to_change()?;
    let first = store.trim_stream(stream, before)?;
    store.close().context("cannot close the store")?;
    let mut out = output::stdout();
    writeln!(out, "readers of the stream begin at local sequence {}", count(first))?;
    out.flush()?;
    Ok(Exit::Done)
}
