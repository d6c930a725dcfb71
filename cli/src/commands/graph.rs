//! `graph`: a picture of a stream.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use thalweg::Store;

use super::{StoreArgument, seen_whole};
use crate::exit::Exit;
use crate::graph::{Dag, Delivered, Held, dot, payload_shown, svg, text};
use crate::output::{self, NameArgument, name, name_argument, note, number_argument};

/// Draw the events of a stream and their parents
///
/// The newest events come first, as in `git log --graph`: children above their parents. `*` is a
/// delivered event with its local sequence, id and payload, `o` a held event, `x` an event that
/// others wait for and that never arrived. A parent for which the picture has no room is counted
/// beside the event, and not drawn.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg graph orders orders-42
  thalweg graph orders orders-42 --format svg --output orders.svg
  thalweg graph orders orders-42 --format dot | dot -Tpdf > orders.pdf"
)]
pub(crate) struct Graph {
    #[command(flatten)]
    store: StoreArgument,
    /// The stream
    #[arg(value_name = "STREAM", value_parser = name_argument())]
    stream: NameArgument,
    /// How to draw
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The file to write; `-` is stdout
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Most delivered events to draw, the newest; 0 for all. As many held events, the oldest
    #[arg(long, short = 'n', value_name = "N", default_value = "200",
          value_parser = number_argument, allow_negative_numbers = true)]
    limit: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Characters
    Text,
    /// The language of Graphviz
    Dot,
    /// A picture for a browser
    Svg,
}

impl Graph {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let store = self.store.open_to_print()?;
        let mut damaged = false;
        let dag = self.dag(&store, &mut damaged)?;
        let drawn = match self.format {
            Format::Text => text::draw(&dag),
            Format::Dot => dot::draw(&dag, &self.stream.0),
            Format::Svg => svg::draw(&dag, &self.stream.0),
        };
        if self.output == Path::new("-") {
            let mut out = output::stdout();
            out.write_all(drawn.as_bytes())?;
            out.flush()?;
        } else {
            std::fs::write(&self.output, drawn)
                .with_context(|| format!("cannot write {}", self.output.display()))?;
        }
        let whole = seen_whole(&store);
        Ok(if damaged { Exit::Problem } else { whole })
    }

    /// What is to be drawn. Damaged events are reported and left out.
    fn dag(&self, store: &Store, damaged: &mut bool) -> anyhow::Result<Dag> {
        let NameArgument(stream) = &self.stream;
        let limit = if self.limit == 0 { u64::MAX } else { self.limit };
        let mut held: Vec<Held> = store
            .held()?
            .into_iter()
            .filter(|event| event.stream == *stream)
            .map(|event| Held { id: event.id, missing: event.missing })
            .collect();
        held.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let view = store.stream(stream)?;
        if view.is_none() && held.is_empty() {
            let (stream, store) = (name(stream), self.store.shown());
            bail!("there is no stream {stream} in {store}; `thalweg streams {store}` lists them");
        }
        let mut delivered = Vec::new();
        let mut older = 0;
        if let Some(view) = view {
            older = view.len().saturating_sub(limit).max(view.first());
            for event in view.read(older..)? {
                let event = match event {
                    Ok(event) => event,
                    Err(error) => {
                        *damaged = true;
                        note(format_args!("an event is left out: {error}"));
                        continue;
                    }
                };
                delivered.push(Delivered {
                    id: event.id().to_vec(),
                    local: event.local(),
                    parents: event.parents().unwrap_or_else(|error| {
                        *damaged = true;
                        note(format_args!("the parents of an event are left out: {error}"));
                        Vec::new()
                    }),
                    payload: payload_shown(event.payload()),
                });
            }
        }
        Ok(Dag::new(delivered, older, held))
    }
}
