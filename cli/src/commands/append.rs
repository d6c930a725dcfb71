//! `append`: one event from the command line.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;

use anyhow::{Context as _, bail};
use clap::Args;
use thalweg::{Ack, Event, MixedBatch, Placement, Refusal, Rejection, Store};

use super::{POLL, StoreArgument, settled};
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::lines::{Input, LINE_LEN_MAX};
use crate::ndjson;
use crate::output::{self, NameArgument, name, name_argument, note, plural};

/// Append one event
///
/// The payload is stored as its bytes, whatever they are. Without --parent and --root the event is
/// chained on the stream's tips: its parents are the events that have no child yet. Prints where
/// the event went once it is on disk and ordered.
///
/// Exit code 1 if the event was refused: the stream is sealed, its id stands for another event
/// already, or a parent is missing and --require-parents was given. A duplicate is no error.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg append orders orders-42 created
  date | thalweg append orders clock -
  thalweg append orders orders-42 paid --id pay-1 --parent order-1 --parent invoice-1"
)]
pub(crate) struct Append {
    #[command(flatten)]
    store: StoreArgument,
    /// The stream, 1 to 255 bytes
    #[arg(value_name = "STREAM", value_parser = name_argument())]
    stream: NameArgument,
    /// The payload; `-` or nothing is stdin, to its end
    #[arg(value_name = "PAYLOAD", default_value = "-", hide_default_value = true)]
    payload: OsString,
    /// The event's id, 1 to 64 bytes; without it the engine gives one
    #[arg(long, value_name = "ID", value_parser = name_argument())]
    id: Option<NameArgument>,
    /// The id of a parent; may be given many times
    #[arg(long = "parent", value_name = "ID", value_parser = name_argument())]
    parents: Vec<NameArgument>,
    /// The event has no parents
    #[arg(long, conflicts_with = "parents")]
    root: bool,
    /// Reject the event if a parent is missing, instead of holding it
    #[arg(long)]
    require_parents: bool,
    /// Print where the event went as a JSON object
    #[arg(long)]
    json: bool,
}

impl Append {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let interrupt = Interrupt::install(|| {
            note(format_args!("interrupted: the event may be stored or not"));
        })?;
        let Some(payload) = self.payload(&interrupt)? else {
            return Ok(Exit::Interrupted);
        };
        let mut event = Event::new(payload);
        if let Some(NameArgument(id)) = &self.id {
            event = event.id(id.clone());
        }
        if self.root || !self.parents.is_empty() {
            event = event.parents(self.parents.iter().map(|NameArgument(id)| id.clone()));
        }
        if self.require_parents {
            event = event.require_parents();
        }
        let mut batch = MixedBatch::new();
        batch.push(&self.stream.0, &event)?;

        let store = self.store.open_to_append()?;
        // Whether the log can be ordered to its end is known before anything is added to it.
        if settled(&store, &interrupt)?.is_none() {
            note(format_args!("interrupted: nothing was stored"));
            return Ok(Exit::Interrupted);
        }
        let mut ticket = match store.submit(batch, Ack::Ordered) {
            Ok(ticket) => ticket,
            Err(refused) if matches!(refused.reason, Refusal::Sealed) => {
                let (reason, tips) = (Rejection::Sealed, Vec::new());
                return self.report(&store, &Placement::Rejected { reason, tips });
            }
            Err(refused) => return Err(refused.reason.into()),
        };
        let receipt = loop {
            match ticket.wait_timeout(POLL) {
                Some(receipt) => break receipt?,
                None if interrupt.is_set() => {
                    note(format_args!("interrupted: the event may be stored or not"));
                    return Ok(Exit::Interrupted);
                }
                None => {}
            }
        };
        let placement = receipt.placements.into_iter().next().unwrap_or(Placement::Undecided);
        let exit = self.report(&store, &placement)?;
        store.close().context("cannot close the store")?;
        Ok(exit)
    }

    /// The payload's bytes; `None` after an interrupt.
    fn payload(&self, interrupt: &Interrupt) -> anyhow::Result<Option<Vec<u8>>> {
        if self.payload != "-" {
            return Ok(Some(self.payload.clone().into_vec()));
        }
        let whole = Input::open(Path::new("-"))?.whole(LINE_LEN_MAX as u64)?;
        loop {
            match whole.recv_timeout(POLL) {
                Ok(payload) => {
                    let payload = payload.context("cannot read stdin")?;
                    if payload.len() > LINE_LEN_MAX {
                        let len = output::bytes(LINE_LEN_MAX as u64);
                        bail!("the payload is longer than {len}; nothing was appended");
                    }
                    return Ok(Some(payload));
                }
                Err(RecvTimeoutError::Timeout) if interrupt.is_set() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("cannot read stdin"),
            }
        }
    }

    fn report(&self, store: &Store, placement: &Placement) -> anyhow::Result<Exit> {
        let id = self.id_of(store, placement)?;
        let mut out = output::stdout();
        if self.json {
            out.write_all(&self.json(placement, id.as_deref()))?;
        } else {
            let id = id.map_or(String::new(), |id| format!(", id {}", name(&id)));
            writeln!(out, "{}{id}", text(placement, &name(&self.stream.0)))?;
        }
        out.flush()?;
        Ok(match placement {
            Placement::Conflict | Placement::Rejected { .. } => Exit::Problem,
            _ => Exit::Done,
        })
    }

    fn json(&self, placement: &Placement, id: Option<&[u8]>) -> Vec<u8> {
        let mut line = b"{\"stream\":".to_vec();
        ndjson::write_bytes(&mut line, &self.stream.0);
        if let Some(id) = id {
            line.extend_from_slice(b",\"id\":");
            ndjson::write_bytes(&mut line, id);
        }
        let state = match placement {
            Placement::Delivered { global, local } => {
                format!(r#""delivered","global":{global},"local":{local}"#)
            }
            Placement::Held { missing } => format!(r#""held","missing":{missing}"#),
            Placement::Duplicate => r#""duplicate""#.into(),
            Placement::Conflict => r#""conflict""#.into(),
            Placement::Rejected { reason, .. } => {
                format!(r#""rejected","reason":"{}""#, reason_key(*reason))
            }
            // Undecided, or something that this version does not know.
            _ => r#""undecided""#.into(),
        };
        line.extend_from_slice(format!(",\"state\":{state}}}\n").as_bytes());
        line
    }

    /// The id, also if the engine gave it.
    fn id_of(&self, store: &Store, placement: &Placement) -> anyhow::Result<Option<Vec<u8>>> {
        if let Some(NameArgument(id)) = &self.id {
            return Ok(Some(id.clone()));
        }
        let Placement::Delivered { global, .. } = placement else {
            return Ok(None);
        };
        let event = store.read(*global..=*global)?.next().transpose()?;
        Ok(event.map(|event| event.id().to_vec()))
    }
}

/// The word for a reason in `--json`.
fn reason_key(reason: Rejection) -> &'static str {
    match reason {
        Rejection::Previous => "previous",
        Rejection::Sealed => "sealed",
        Rejection::Local { .. } => "local",
        Rejection::Tips => "tips",
        Rejection::Parents { .. } => "parents",
        // Something that this version does not know.
        _ => "other",
    }
}

fn text(placement: &Placement, stream: &str) -> String {
    match placement {
        Placement::Delivered { global, local } => {
            format!("delivered: event {global} of the store, {local} of stream {stream}")
        }
        Placement::Held { missing } => {
            format!("held: {} missing", plural(u64::from(*missing), "parent"))
        }
        Placement::Duplicate => "duplicate: this event is stored already".into(),
        Placement::Conflict => {
            format!("conflict: this id stands for another event in stream {stream}; ignored")
        }
        Placement::Rejected { reason, .. } => format!("rejected: {reason}"),
        _ => "stored; its place in the order is not known yet".into(),
    }
}
