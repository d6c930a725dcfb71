//! `held`: events that wait, and for what.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::StoreArgument;
use crate::exit::Exit;
use crate::ndjson;
use crate::output::{self, NameArgument, name, name_argument, note, plural};

/// Missing parents that a row of the table shows.
const PARENTS_SHOWN: usize = 3;

/// List the held events and the parents that they wait for
///
/// A held event is stored, but not delivered, because at least one of its parents is not. The
/// events come in the order in which they were appended; `missing` are the parents that are not
/// delivered: they were never appended, or are held themselves. `thalweg why` follows such a chain
/// to its end, and `thalweg discard` gives held events up. Held events are no error; the exit code is 0 with and without them.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Held {
    #[command(flatten)]
    store: StoreArgument,
    /// Only the events of this stream
    #[arg(long, short, value_name = "STREAM", value_parser = name_argument())]
    stream: Option<NameArgument>,
    /// Print one JSON object a line: stream, id, missing, and since_ms: when it was appended, in milliseconds
    /// since 1970, null if nobody knows
    #[arg(long)]
    json: bool,
}

impl Held {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let view = self.store.view()?;
        let mut held = view.held()?;
        if let Some(NameArgument(stream)) = &self.stream {
            held.retain(|event| event.stream == *stream);
        }
        let mut out = output::stdout();
        if self.json {
            let mut line = Vec::new();
            for event in &held {
                line.clear();
                line.extend_from_slice(b"{\"stream\":");
                ndjson::write_bytes(&mut line, &event.stream);
                line.extend_from_slice(b",\"id\":");
                ndjson::write_bytes(&mut line, &event.id);
                line.extend_from_slice(b",\"missing\":");
                ndjson::write_list(&mut line, &event.missing);
                out.write_all(&line)?;
                match event.since.and_then(|since| since.duration_since(UNIX_EPOCH).ok()) {
                    Some(since) => writeln!(out, ",\"since_ms\":{}}}", since.as_millis())?,
                    None => writeln!(out, ",\"since_ms\":null}}")?,
                }
            }
        } else if !held.is_empty() {
            let (mut table, now) =
                (output::table(["stream", "id", "held for", "waits for"]), SystemTime::now());
            for event in &held {
                let age = event.age(now).map_or_else(|| String::from("?"), output::age);
                table.add_row([name(&event.stream), name(&event.id), age, listed(&event.missing)]);
            }
            output::print_table(&mut out, &table)?;
        }
        out.flush()?;
        if !self.json {
            note(format_args!("{} held", plural(held.len() as u64, "event")));
        }
        Ok(view.seen_whole())
    }
}

/// The first few ids, and how many more there are.
fn listed(ids: &[Vec<u8>]) -> String {
    let shown: Vec<String> = ids.iter().take(PARENTS_SHOWN).map(|id| name(id)).collect();
    let more = ids.len() - shown.len();
    if more == 0 { shown.join(" ") } else { format!("{} and {more} more", shown.join(" ")) }
}
