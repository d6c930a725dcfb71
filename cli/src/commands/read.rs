//! `read`: delivered events in order.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use thalweg::{Event, ReadError, Store};

use super::{StoreArgument, seen_whole};
use crate::exit::Exit;
use crate::ndjson::{self, EventFields};
use crate::output::{self, NameArgument, name, name_argument, note, number_argument, preview};

/// Reading ends after this many damaged events in a row.
const DAMAGE_MAX: u32 = 1000;

/// Print delivered events in order
///
/// Prints the events from sequence N on, in global order, or with --stream in that stream's local
/// order. NDJSON is one object a line, with the keys global, local, stream, id, parents and
/// payload, in this order; `thalweg import` reads it back. `thalweg import --help` says how bytes
/// become JSON.
///
/// Reading works beside a program that writes the store. It shows what was on disk when it opened
/// the store. With --follow it goes on from there, and prints each event as soon as that program has
/// made it durable and put it in order. The program may crash, end and start again; while none has
/// the store open, nothing new comes. Nobody is told when the store is deleted or moved away.
///
/// With --cursor, reading begins where this cursor of a consumer is, and with --commit the cursor is
/// taken behind the last event that was printed, once all are; that opens the store for writing. If
/// an event is damaged, the cursor stays.
///
/// A damaged event is reported on stderr and passed over, with exit code 1. Where damage hides only
/// the parents of a chained event, it is printed with `null` for them.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg read orders | thalweg import copy
  thalweg read orders --from 1000000 --limit 10
  thalweg read orders --stream orders-42 --follow --format table
  thalweg read orders --cursor mailer --commit --limit 100"
)]
pub(crate) struct Read {
    #[command(flatten)]
    store: StoreArgument,
    /// Only the events of this stream
    #[arg(long, short, value_name = "STREAM", value_parser = name_argument())]
    stream: Option<NameArgument>,
    /// Sequence of the first event, counted from 0: global, or local with --stream; without it, the first that
    /// is not trimmed
    #[arg(long, value_name = "N", value_parser = number_argument, allow_negative_numbers = true)]
    from: Option<u64>,
    /// Begin where this cursor is; with the first event if it is not there
    #[arg(long, value_name = "NAME", value_parser = name_argument(),
          conflicts_with_all = ["from", "stream"])]
    cursor: Option<NameArgument>,
    /// Take the cursor behind what was printed
    #[arg(long, requires = "cursor", conflicts_with = "follow")]
    commit: bool,
    /// Most events to print; without it, all
    #[arg(long, short = 'n', value_name = "N", value_parser = number_argument,
          allow_negative_numbers = true)]
    limit: Option<u64>,
    /// Wait for more events at the end
    #[arg(long, short)]
    follow: bool,
    /// What to print for an event
    #[arg(long, value_enum, default_value_t = Format::Ndjson)]
    format: Format,
    /// The same as --format ndjson
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// One JSON object a line; `import` reads it back
    Ndjson,
    /// Columns for people, long values cut
    Table,
    /// The id, one a line
    Ids,
}

impl Read {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let mut printer = Printer::new(self.format, self.limit);
        // Where a cursor is follows from all of the log, which a follower does not put in order.
        if self.follow && self.cursor.is_none() && self.store.is_written()? {
            printer.head()?;
            self.print_for_ever(self.from, &mut printer)?;
            return Ok(if printer.damaged { Exit::Problem } else { Exit::Done });
        }
        let store =
            if self.commit { self.store.open_to_change()? } else { self.store.open_to_print()? };
        let mut next = match &self.cursor {
            Some(NameArgument(cursor)) if store.cursors().iter().all(|c| c.name != *cursor) => {
                store.first()
            }
            Some(NameArgument(cursor)) => store.cursor(cursor)?.at(),
            None => self.first(&store)?,
        };
        printer.head()?;
        let done = self.print_to_end(&store, &mut next, &mut printer)?.is_break();
        printer.out.flush()?;
        let whole = seen_whole(&store);
        self.commit(store, next, printer.damaged)?;
        if self.follow && !done {
            self.print_for_ever(Some(next), &mut printer)?;
        }
        Ok(if printer.damaged { Exit::Problem } else { whole })
    }

    /// Where to begin without a cursor.
    fn first(&self, store: &Store) -> anyhow::Result<u64> {
        match (self.from, &self.stream) {
            (Some(from), _) => Ok(from),
            (None, None) => Ok(store.first()),
            (None, Some(NameArgument(stream))) => {
                Ok(store.stream(stream)?.map_or(0, |view| view.first()))
            }
        }
    }

    /// Prints the events from `next` on as they come, until the limit is reached.
    /// Without a `next`, from the first event that is not trimmed.
    fn print_for_ever(&self, mut next: Option<u64>, printer: &mut Printer) -> anyhow::Result<()> {
        let follower = self.store.follow()?;
        loop {
            let delivered = follower.delivered();
            let printed = match &self.stream {
                None => {
                    let next = next.get_or_insert(follower.first());
                    printer.print(follower.read(*next..)?, next)?
                }
                Some(NameArgument(stream)) => match follower.stream(stream)? {
                    Some(view) => {
                        let next = next.get_or_insert(view.first());
                        printer.print(view.read(*next..)?, next)?
                    }
                    None => ControlFlow::Continue(()),
                },
            };
            printer.out.flush()?;
            if printed.is_break() {
                return Ok(());
            }
            follower.wait_delivered(delivered + 1, Duration::MAX)?;
        }
    }

    /// Takes the cursor to `next`, if that was asked for.
    fn commit(&self, store: Store, next: u64, damaged: bool) -> anyhow::Result<()> {
        let Some(NameArgument(cursor)) = self.cursor.as_ref().filter(|_| self.commit) else {
            return Ok(());
        };
        if damaged {
            note(format_args!(
                "the cursor stays where it is, since not all events could be printed; \
                 `thalweg cursors {} --reset {} --to {next}` takes it behind them",
                self.store.shown(),
                name(cursor)
            ));
        } else {
            store.cursor(cursor)?.commit(next)?;
        }
        Ok(store.close()?)
    }

    /// Prints the events from `next` on, and moves it; breaks when the limit is reached.
    fn print_to_end(
        &self,
        store: &Store,
        next: &mut u64,
        printer: &mut Printer,
    ) -> anyhow::Result<ControlFlow<()>> {
        let Some(NameArgument(stream)) = &self.stream else {
            return printer.print(store.read(*next..)?, next);
        };
        match store.stream(stream)? {
            Some(view) => printer.print(view.read(*next..)?, next),
            None if self.follow => Ok(ControlFlow::Continue(())),
            // A stream of which nothing is delivered has nothing to read yet, but is there.
            None if store.streams()?.iter().any(|known| known.name == *stream) => {
                Ok(ControlFlow::Break(()))
            }
            None => bail!(
                "there is no stream {} in {}; `thalweg streams {1}` lists them",
                name(stream),
                self.store.shown()
            ),
        }
    }
}

struct Printer {
    out: std::io::BufWriter<std::io::StdoutLock<'static>>,
    line: Vec<u8>,
    format: Format,
    left: u64,
    damaged: bool,
}

impl Printer {
    fn new(format: Format, limit: Option<u64>) -> Self {
        Printer {
            out: output::stdout(),
            line: Vec::new(),
            format,
            left: limit.unwrap_or(u64::MAX),
            damaged: false,
        }
    }

    fn head(&mut self) -> std::io::Result<()> {
        match self.format {
            Format::Table => self.row(["global", "local", "stream", "id", "parents", "payload"]),
            Format::Ndjson | Format::Ids => Ok(()),
        }
    }

    fn print(
        &mut self,
        events: impl Iterator<Item = Result<Event, ReadError>>,
        next: &mut u64,
    ) -> anyhow::Result<ControlFlow<()>> {
        let mut damaged_in_a_row = 0;
        // The limit is looked at before each event, so that the last one is not waited for.
        let mut events = events;
        while self.left > 0 {
            let Some(event) = events.next() else {
                return Ok(ControlFlow::Continue(()));
            };
            *next += 1;
            match event {
                Ok(event) => {
                    self.format_event(&event);
                    self.out.write_all(&self.line)?;
                    self.left -= 1;
                    damaged_in_a_row = 0;
                }
                Err(error) => {
                    self.damaged = true;
                    damaged_in_a_row += 1;
                    note(format_args!("event {}: {error}", *next - 1));
                    if damaged_in_a_row == DAMAGE_MAX {
                        bail!("{DAMAGE_MAX} damaged events in a row; `thalweg verify` tells more");
                    }
                }
            }
        }
        Ok(ControlFlow::Break(()))
    }

    /// Puts the event into `line`.
    fn format_event(&mut self, event: &Event) {
        self.line.clear();
        match self.format {
            Format::Ndjson => {
                let parents = self.parents(event);
                let fields = EventFields {
                    global: event.global(),
                    local: event.local(),
                    stream: event.stream(),
                    id: event.id(),
                    parents: parents.as_deref(),
                    payload: event.payload(),
                };
                ndjson::write_event(&mut self.line, &fields);
            }
            Format::Table => {
                let parents = match self.parents(event) {
                    Some(parents) => {
                        let parents: Vec<String> = parents.iter().map(|id| name(id)).collect();
                        parents.join(" ")
                    }
                    None => "?".into(),
                };
                let row = columns([
                    &event.global().to_string(),
                    &event.local().to_string(),
                    &name(event.stream()),
                    &name(event.id()),
                    &parents,
                    &preview(event.payload(), PAYLOAD_WIDTH),
                ]);
                self.line.extend_from_slice(row.as_bytes());
            }
            Format::Ids => {
                self.line.extend_from_slice(name(event.id()).as_bytes());
                self.line.push(b'\n');
            }
        }
    }

    /// The event's parents. A chained event's are looked up, and may be damaged when it is not.
    fn parents(&mut self, event: &Event) -> Option<Vec<Vec<u8>>> {
        match event.parents() {
            Ok(parents) => Some(parents),
            Err(error) => {
                self.damaged = true;
                note(format_args!("event {}: its parents are not known: {error}", event.global()));
                None
            }
        }
    }

    fn row(&mut self, cells: [&str; 6]) -> std::io::Result<()> {
        self.out.write_all(columns(cells).as_bytes())
    }
}

/// Characters of a payload that a table shows.
const PAYLOAD_WIDTH: usize = 60;

/// A row. The widths are fixed, because a table of all events could not be held in memory; a
/// value that does not fit is cut, the numbers never.
fn columns([global, local, stream, id, parents, payload]: [&str; 6]) -> String {
    let (stream, id, parents) = (cut(stream, 20), cut(id, 24), cut(parents, 28));
    let row = format!("{global:>10}  {local:>8}  {stream:20}  {id:24}  {parents:28}  {payload}");
    format!("{}\n", row.trim_end())
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
