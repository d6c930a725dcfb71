//! `trim`: giving up the oldest part of the log, or of one stream.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;
use thalweg::{KeptBy, TrimReport};

use super::StoreArgument;
use crate::exit::Exit;
use crate::interrupt;
use crate::output::{
    self, NameArgument, age_argument, bytes, count, name, name_argument, number_argument, plural,
};

/// Give up the oldest part of the log
///
/// Whole segments go, and their space is given back. What ordering needs of their events is kept: a child of
/// an event that is gone is still delivered, a copy of one is still a duplicate, and no number changes.
/// Reading what is gone is an error that says where the rest begins.
///
/// With --stream, only readers of that stream begin later, with its event number --before: nothing is
/// deleted, and who reads the whole store goes on seeing the events until their segments go.
///
/// Of --before, --keep and --older-than, what any says goes. Nothing goes that a cursor has before it, unless
/// --past-cursors says so, and never the segment that is written. The store must be there, and no other program
/// may write it at the same time; one that does can trim by itself. Ctrl-C leaves the log as it was.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg trim orders --keep 10GiB --older-than 30d
  thalweg trim orders --before 1000000 --dry-run
  thalweg trim orders --stream orders-42 --before 1000"
)]
pub(crate) struct Trim {
    #[command(flatten)]
    store: StoreArgument,
    /// Only for the readers of this stream; --before is then a local sequence
    #[arg(long, short, value_name = "STREAM", value_parser = name_argument(), requires = "before",
          conflicts_with_all = ["keep", "older_than", "all", "remember", "past_cursors", "dry_run", "json"])]
    stream: Option<NameArgument>,
    /// Give up events before this global sequence
    #[arg(long, value_name = "N", value_parser = number_argument, allow_negative_numbers = true)]
    before: Option<u64>,
    /// Give up all but the newest so many bytes of the log: 500MB, 10GiB
    #[arg(long, value_name = "SIZE")]
    keep: Option<ByteSize>,
    /// Give up what is older: 12h, 30d
    #[arg(long, value_name = "AGE", value_parser = age_argument)]
    older_than: Option<Duration>,
    /// Give up everything that is there
    #[arg(long, conflicts_with_all = ["before", "keep", "older_than"])]
    all: bool,
    /// Of the events that were trimmed, remember the ids of the newest N, and forget the others
    #[arg(long, value_name = "N", value_parser = number_argument, allow_negative_numbers = true)]
    remember: Option<u64>,
    /// Also what a cursor has before it
    #[arg(long)]
    past_cursors: bool,
    /// Change nothing, and say what would go
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object; lengths are in bytes
    #[arg(long)]
    json: bool,
}

impl Trim {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        if let (Some(stream), Some(before)) = (&self.stream, self.before) {
            return trim_stream(&self.store, stream, before);
        }
        let has_limit = self.before.is_some() || self.keep.is_some() || self.older_than.is_some();
        if !has_limit && !self.all {
            bail!("say what is to go: --before N, --keep SIZE, --older-than AGE, or --all");
        }
        interrupt::exit_at_once()?;
        let mut trim = thalweg::Trim::new();
        if let Some(before) = self.before {
            trim = trim.before(before);
        }
        if let Some(keep) = self.keep {
            trim = trim.keep_bytes(keep.as_u64());
        }
        if let Some(age) = self.older_than {
            trim = trim.older_than(age);
        }
        if let Some(events) = self.remember {
            trim = trim.remember(events);
        }
        if self.all {
            trim = trim.everything();
        }
        if self.past_cursors {
            trim = trim.past_cursors();
        }
        if self.dry_run {
            trim = trim.dry_run();
        }
        let store = self.store.open_to_change()?;
        let report = store.trim(&trim)?;
        let mut out = output::stdout();
        if self.json {
            output::json_line(&mut out, &Numbers::new(&report))?;
        } else {
            self.print(&mut out, &report)?;
        }
        out.flush()?;
        store.close().context("cannot close the store")?;
        Ok(Exit::Done)
    }

    fn print(&self, out: &mut impl std::io::Write, report: &TrimReport) -> std::io::Result<()> {
        let TrimReport { first, events, segments, bytes: len, .. } = *report;
        match segments {
            0 => writeln!(
                out,
                "nothing to trim; events from global sequence {} on are there",
                count(first)
            )?,
            _ => {
                let done = if self.dry_run { "would trim" } else { "trimmed" };
                let (events, segments) = (plural(events, "event"), plural(segments, "segment"));
                writeln!(
                    out,
                    "{done} {events} in {segments}, {}; events from global sequence {} on are left",
                    bytes(len),
                    count(first)
                )?;
            }
        }
        match &report.kept_by {
            Some(KeptBy::Cursor { name: cursor, at }) => writeln!(
                out,
                "the rest is kept for the cursor {}, which is at {}: `thalweg cursors {}`, or --past-cursors",
                name(cursor),
                count(*at),
                self.store.shown()
            ),
            Some(KeptBy::Checkpoint) => {
                writeln!(out, "the rest is kept because there is no checkpoint behind it")
            }
            _ => Ok(()),
        }
    }
}

/// The keys of `--json`, in this order.
#[derive(Serialize)]
struct Numbers {
    first: u64,
    events: u64,
    segments: u64,
    bytes: u64,
    kept_by_cursor: Option<String>,
    kept_by_checkpoint: bool,
}

impl Numbers {
    fn new(report: &TrimReport) -> Self {
        let kept_by_cursor = match &report.kept_by {
            Some(KeptBy::Cursor { name: cursor, .. }) => Some(name(cursor)),
            _ => None,
        };
        Numbers {
            first: report.first,
            events: report.events,
            segments: report.segments,
            bytes: report.bytes,
            kept_by_cursor,
            kept_by_checkpoint: report.kept_by == Some(KeptBy::Checkpoint),
        }
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
