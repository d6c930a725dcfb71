//! `streams`: what streams there are.

use std::io::Write as _;

use clap::Args;

use super::StoreArgument;
use crate::exit::Exit;
use crate::ndjson;
use crate::output::{self, count, name};

/// List the streams
///
/// For each stream, sorted by name: the number of events that are delivered, the number that is
/// held until missing parents arrive, and the number of tips, which are the delivered events that
/// no delivered event has as a parent. A sealed stream takes no events until `thalweg unseal`.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Streams {
    #[command(flatten)]
    store: StoreArgument,
    /// Print one JSON object a line: stream, delivered, held, tips, sealed
    #[arg(long)]
    json: bool,
}

impl Streams {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let view = self.store.view()?;
        let streams = view.streams()?;
        let mut out = output::stdout();
        if self.json {
            let mut line = Vec::new();
            for stream in &streams {
                line.clear();
                line.extend_from_slice(b"{\"stream\":");
                ndjson::write_bytes(&mut line, &stream.name);
                out.write_all(&line)?;
                let (delivered, held, tips) = (stream.delivered, stream.held, stream.tips);
                let sealed = stream.sealed;
                writeln!(
                    out,
                    ",\"delivered\":{delivered},\"held\":{held},\"tips\":{tips},\"sealed\":{sealed}}}"
                )?;
            }
        } else {
            let mut table = output::table(["stream", ">delivered", ">held", ">tips", "sealed"]);
            for stream in &streams {
                let numbers = [stream.delivered, stream.held, stream.tips].map(count);
                let [delivered, held, tips] = numbers;
                let sealed = if stream.sealed { "sealed" } else { "" };
                table.add_row([name(&stream.name), delivered, held, tips, sealed.into()]);
            }
            output::print_table(&mut out, &table)?;
        }
        out.flush()?;
        Ok(view.seen_whole())
    }
}
