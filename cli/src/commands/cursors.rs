//! `cursors`: how far consumers have come.

use std::io::Write as _;

use anyhow::bail;
use clap::Args;
use thalweg::Store;

use super::{StoreArgument, seen_whole};
use crate::exit::Exit;
use crate::ndjson;
use crate::output::{self, NameArgument, count, name, name_argument, number_argument};

/// List the cursors of consumers, or move one
///
/// For each cursor, sorted by name: the global sequence of the next event that its consumer wants, and
/// how many events are delivered from there on. A cursor is there from the first commit of its
/// consumer, which is a program, or `thalweg read --cursor NAME --commit`.
///
/// --reset and --remove write to the store; stop the consumer before, or it may take its cursor up
/// again.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg cursors orders
  thalweg cursors orders --reset mailer --to 1000
  thalweg cursors orders --remove mailer"
)]
pub(crate) struct Cursors {
    #[command(flatten)]
    store: StoreArgument,
    /// Print one JSON object a line: cursor, at, lag
    #[arg(long)]
    json: bool,
    /// Take this cursor to the sequence --to, up or down, and make it if it is not there
    #[arg(long, value_name = "NAME", value_parser = name_argument(), requires = "to")]
    reset: Option<NameArgument>,
    /// Global sequence of the next event that the consumer is to see
    #[arg(long, value_name = "N", value_parser = number_argument, allow_negative_numbers = true,
          requires = "reset")]
    to: Option<u64>,
    /// Take this cursor away
    #[arg(long, value_name = "NAME", value_parser = name_argument(), conflicts_with_all = ["reset", "json"])]
    remove: Option<NameArgument>,
}

impl Cursors {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        if let (Some(NameArgument(cursor)), Some(to)) = (&self.reset, self.to) {
            let store = self.store.open_to_change()?;
            store.cursor(cursor)?.reset(to)?;
            store.close()?;
            return Ok(Exit::Done);
        }
        if let Some(NameArgument(cursor)) = &self.remove {
            let store = self.store.open_to_change()?;
            if store.cursors().iter().all(|known| known.name != *cursor) {
                let shown = self.store.shown();
                bail!(
                    "there is no cursor {} in {shown}; `thalweg cursors {shown}` lists them",
                    name(cursor)
                );
            }
            store.cursor(cursor)?.remove()?;
            store.close()?;
            return Ok(Exit::Done);
        }
        let store = self.store.open_to_print()?;
        self.list(&store)?;
        Ok(seen_whole(&store))
    }

    fn list(&self, store: &Store) -> anyhow::Result<()> {
        let cursors = store.cursors();
        let mut out = output::stdout();
        if self.json {
            let mut line = Vec::new();
            for cursor in &cursors {
                line.clear();
                line.extend_from_slice(b"{\"cursor\":");
                ndjson::write_bytes(&mut line, &cursor.name);
                out.write_all(&line)?;
                writeln!(out, ",\"at\":{},\"lag\":{}}}", cursor.at, cursor.lag)?;
            }
        } else {
            let mut table = output::table(["cursor", ">at", ">lag"]);
            for cursor in &cursors {
                table.add_row([name(&cursor.name), count(cursor.at), count(cursor.lag)]);
            }
            output::print_table(&mut out, &table)?;
        }
        Ok(out.flush()?)
    }
}
