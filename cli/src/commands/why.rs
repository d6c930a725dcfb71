//! `why`: what an event waits for, followed to its end.

use std::io::Write as _;

use clap::Args;
use thalweg::{DiscardReason, RootKind, Why as Answer, WhyHeld};

use super::{StoreArgument, seen_whole};
use crate::exit::Exit;
use crate::ndjson;
use crate::output::{self, NameArgument, count, name, name_argument, plural};

/// Roots that are listed for a person; JSON has all.
const ROOTS_SHOWN: usize = 20;

/// Explain why an event is not delivered
///
/// Follows the missing parents of a held event, and their missing parents, to what the waiting
/// comes down to: events that never arrived, or a cycle of events that wait for each other.
///
/// A STREAM or ID that starts with a double quote or with {"base64": is read as JSON, as `held`
/// and `read --format ids` print names that a terminal could not show.
///
/// Exit code 0 if the event is delivered, held or discarded, 1 if the store does not know it.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Why {
    #[command(flatten)]
    store: StoreArgument,
    /// The event's stream
    #[arg(value_name = "STREAM", value_parser = name_argument())]
    stream: NameArgument,
    /// The event's id
    #[arg(value_name = "ID", value_parser = name_argument())]
    id: NameArgument,
    /// Print one JSON object: stream, id, state, and for a held event missing, roots and waiting, for a
    /// discarded one position and reason
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let store = self.store.open_to_print()?;
        let NameArgument(stream) = &self.stream;
        let NameArgument(id) = &self.id;
        let answer = store.why_held(stream, id)?;
        let mut out = output::stdout();
        if self.json {
            out.write_all(&self.json(&answer))?;
        } else {
            write!(out, "{}", self.text(&answer))?;
            if matches!(answer, Answer::Unknown) {
                let waiting = store.held()?;
                let waiting = waiting.iter().filter(|event| event.stream == *stream);
                let named = waiting.filter(|event| event.missing.contains(id)).count() as u64;
                if named > 0 {
                    writeln!(out, "It is a parent of {}.", plural(named, "held event"))?;
                }
            }
        }
        out.flush()?;
        Ok(if matches!(answer, Answer::Unknown) { Exit::Problem } else { seen_whole(&store) })
    }

    fn text(&self, answer: &Answer) -> String {
        let (stream, id) = (name(&self.stream.0), name(&self.id.0));
        match answer {
            Answer::Unknown => {
                format!("{id} never arrived: no event with this id was appended to {stream}.\n")
            }
            Answer::Delivered { global, local } => format!(
                "{id} is delivered: event {} of the store, {} of stream {stream}.\n",
                count(*global),
                count(*local)
            ),
            Answer::Held(held) => explain(&id, held),
            Answer::Discarded { position, reason } => {
                let why = match reason {
                    DiscardReason::Discarded => "discarded",
                    DiscardReason::Expired => "discarded, since it was held for too long",
                };
                format!(
                    "{id} was held, and is {why}: the event at position {} will never be delivered. Its id is \
                     free.\n",
                    count(*position)
                )
            }
        }
    }

    fn json(&self, answer: &Answer) -> Vec<u8> {
        let mut line = b"{\"stream\":".to_vec();
        ndjson::write_bytes(&mut line, &self.stream.0);
        line.extend_from_slice(b",\"id\":");
        ndjson::write_bytes(&mut line, &self.id.0);
        match answer {
            Answer::Unknown => line.extend_from_slice(b",\"state\":\"unknown\""),
            Answer::Delivered { global, local } => {
                let place =
                    format!(",\"state\":\"delivered\",\"global\":{global},\"local\":{local}");
                line.extend_from_slice(place.as_bytes());
            }
            Answer::Held(held) => write_held(&mut line, held),
            Answer::Discarded { position, reason } => {
                let reason = match reason {
                    DiscardReason::Discarded => "discarded",
                    DiscardReason::Expired => "expired",
                };
                let state = format!(
                    ",\"state\":\"discarded\",\"position\":{position},\"reason\":\"{reason}\""
                );
                line.extend_from_slice(state.as_bytes());
            }
        }
        line.extend_from_slice(b"}\n");
        line
    }
}

fn kind(kind: &RootKind) -> &'static str {
    match kind {
        RootKind::Absent => "absent",
        RootKind::Cycle => "cycle",
    }
}

fn write_held(line: &mut Vec<u8>, held: &WhyHeld) {
    line.extend_from_slice(b",\"state\":\"held\",\"missing\":");
    ndjson::write_list(line, &held.missing);
    line.extend_from_slice(b",\"roots\":[");
    for (index, root) in held.roots.iter().enumerate() {
        line.extend_from_slice(if index == 0 { b"{\"id\":" } else { b",{\"id\":" });
        ndjson::write_bytes(line, &root.id);
        line.extend_from_slice(format!(",\"kind\":\"{}\"}}", kind(&root.kind)).as_bytes());
    }
    line.extend_from_slice(format!("],\"waiting\":{}", held.waiting).as_bytes());
}

fn explain(id: &str, held: &WhyHeld) -> String {
    let missing = count(held.missing.len() as u64);
    let is = if held.missing.len() == 1 { "is" } else { "are" };
    let mut text = format!("{id} is held: {missing} of its parents {is} not delivered. ");
    let absent = held.roots.iter().filter(|root| matches!(root.kind, RootKind::Absent)).count();
    let cyclic = held.roots.len() - absent;
    text.push_str(&match (absent, cyclic) {
        (0, 0) => "What it comes down to is not known.".into(),
        (1, 0) => "It comes down to an event that never arrived:".into(),
        (n, 0) => format!("It comes down to {} that never arrived:", plural(n as u64, "event")),
        (0, _) => "It can never be delivered, because these events wait for each other:".into(),
        (_, _) => "It can never be delivered, because some events wait for each other:".into(),
    });
    text.push('\n');
    for root in held.roots.iter().take(ROOTS_SHOWN) {
        let what = match root.kind {
            RootKind::Absent => "never arrived",
            RootKind::Cycle => "in a cycle",
        };
        text.push_str(&format!("  {}  ({what})\n", name(&root.id)));
    }
    if held.roots.len() > ROOTS_SHOWN {
        let more = (held.roots.len() - ROOTS_SHOWN) as u64;
        text.push_str(&format!("  and {} more; --json lists all\n", count(more)));
    }
    if held.waiting > 0 {
        let (wait, it) = (plural(held.waiting, "event"), if held.waiting == 1 { "s" } else { "" });
        text.push_str(&format!("{wait} wait{it} behind it.\n"));
    }
    text
}
