//! `discard`: gives held events up.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use thalweg::{DiscardFate, DiscardedEvent};

use super::StoreArgument;
use crate::exit::Exit;
use crate::interrupt;
use crate::ndjson;
use crate::output::{self, NameArgument, age_argument, name, name_argument, note, plural};

/// Give up held events: they will never be delivered
///
/// Either the events of STREAM with these IDs, or with --held-longer all that have been held for
/// longer than that. An event's age counts from when it was appended, by the clock of the machine
/// that did. Their ids are free again: a later event with such an id is a new one. Events that wait
/// for a discarded one go on waiting. What is delivered stays delivered, and cannot be discarded.
///
/// The discards are records of the log, so they hold for ever. The store must be there, and no
/// other program may write it at the same time.
///
/// A STREAM or ID that starts with a double quote or with {"base64": is read as JSON, as `held`
/// prints names that a terminal could not show.
///
/// Exit code 0 if all named events were held, 1 if one was not.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg discard orders orders-42 o-7 o-9
  thalweg discard orders --held-longer 30d --dry-run
  thalweg discard orders --held-longer 36h --stream orders-42"
)]
pub(crate) struct Discard {
    #[command(flatten)]
    store: StoreArgument,
    /// The stream of the events
    #[arg(value_name = "STREAM", value_parser = name_argument(), requires = "ids",
          required_unless_present = "held_longer", conflicts_with = "held_longer")]
    named: Option<NameArgument>,
    /// The ids of the events
    #[arg(value_name = "ID", value_parser = name_argument())]
    ids: Vec<NameArgument>,
    /// Discard what has been held for longer than this: a number of seconds, minutes, hours or days,
    /// such as 90s, 45m, 36h or 30d
    #[arg(long, value_name = "AGE", value_parser = age_argument)]
    held_longer: Option<Duration>,
    /// With --held-longer: only the events of this stream
    #[arg(long, short, value_name = "STREAM", value_parser = name_argument(), requires = "held_longer",
          conflicts_with = "named")]
    stream: Option<NameArgument>,
    /// With --held-longer: only list the events that would be discarded
    #[arg(long, requires = "held_longer", conflicts_with = "named")]
    dry_run: bool,
    /// Print one JSON object a line: stream, id, and what became of it: discarded, delivered or unknown; with
    /// --dry-run held
    #[arg(long)]
    json: bool,
}

impl Discard {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        if let (true, Some(longest)) = (self.dry_run, self.held_longer) {
            return self.list(longest);
        }
        interrupt::exit_at_once()?;
        let store = self.store.open_to_change()?;
        let report = match (&self.named, &self.stream, self.held_longer) {
            (Some(NameArgument(stream)), ..) => {
                store.discard(stream, self.ids.iter().map(|NameArgument(id)| id))?
            }
            (None, Some(NameArgument(stream)), Some(longest)) => {
                store.expire_held_of(stream, longest)?
            }
            (None, None, Some(longest)) => store.expire_held(longest)?,
            (None, _, None) => bail!("name a stream and ids, or an age with --held-longer"),
        };
        store.close().context("cannot close the store")?;
        let state = |event: &DiscardedEvent| match event.fate {
            DiscardFate::Discarded => "discarded",
            DiscardFate::Delivered => "delivered",
            DiscardFate::Unknown => "unknown",
        };
        let rows = report.events.iter();
        self.print(rows.map(|event| (&event.stream[..], &event.id[..], state(event))))?;
        if !self.json {
            note(format_args!("{} discarded", plural(report.discarded(), "event")));
        }
        // What has expired may be delivered meanwhile: nobody has named it.
        let is_all = report.discarded() == report.events.len() as u64;
        Ok(if is_all || self.named.is_none() { Exit::Done } else { Exit::Problem })
    }

    fn list(&self, longest: Duration) -> anyhow::Result<Exit> {
        let store = self.store.open_to_print()?;
        let mut held = store.held()?;
        let now = store.time();
        held.retain(|event| {
            let is_meant =
                self.stream.as_ref().is_none_or(|NameArgument(stream)| event.stream == *stream);
            is_meant && event.age(now).is_some_and(|age| age > longest)
        });
        self.print(held.iter().map(|event| (&event.stream[..], &event.id[..], "held")))?;
        if !self.json {
            note(format_args!("{} would be discarded", plural(held.len() as u64, "event")));
        }
        Ok(super::seen_whole(&store))
    }

    fn print<'a>(
        &self,
        events: impl Iterator<Item = (&'a [u8], &'a [u8], &'static str)>,
    ) -> anyhow::Result<()> {
        let mut out = output::stdout();
        if self.json {
            let mut line = Vec::new();
            for (stream, id, state) in events {
                line.clear();
                line.extend_from_slice(b"{\"stream\":");
                ndjson::write_bytes(&mut line, stream);
                line.extend_from_slice(b",\"id\":");
                ndjson::write_bytes(&mut line, id);
                out.write_all(&line)?;
                writeln!(out, ",\"state\":\"{state}\"}}")?;
            }
        } else {
            let mut table = output::table(["stream", "id", "state"]);
            let mut is_empty = true;
            for (stream, id, state) in events {
                is_empty = false;
                table.add_row([name(stream), name(id), state.into()]);
            }
            if !is_empty {
                output::print_table(&mut out, &table)?;
            }
        }
        Ok(out.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_a_number_and_a_unit() {
        let seconds = |text| age_argument(text).map(|age| age.as_secs()).ok();
        let ages = ["0s", "90s", "45m", "36h", "30d"].map(seconds);
        assert_eq!(ages, [Some(0), Some(90), Some(2700), Some(129_600), Some(2_592_000)]);
        for bad in
            ["", "s", "30", "30w", "-1d", "+1d", "1.5h", "1d2h", "1é", "é", "18446744073709551615d"]
        {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
