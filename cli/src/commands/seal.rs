//! `seal` and `unseal`: whether a stream takes events.

use std::io::Write as _;

use anyhow::Context as _;
use clap::Args;

use super::StoreArgument;
use crate::exit::Exit;
use crate::interrupt;
use crate::output::{self, NameArgument, count, name_argument};

/// Seal a stream: it takes no more events
///
/// Prints the local sequence of its last delivered event. Appends to the stream are refused from
/// then on; its held events stay held. The seal is a record of the log, so it holds until `unseal`
/// takes it off. Sealing a sealed stream changes nothing. A stream can be sealed before it has an
/// event.
///
/// The store must be there, and no other program may write it at the same time. After Ctrl-C the
/// stream is sealed or not; `thalweg streams` tells.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg seal orders orders-42
  thalweg unseal orders orders-42"
)]
pub(crate) struct Seal {
    #[command(flatten)]
    store: StoreArgument,
    /// The stream, 1 to 255 bytes
    #[arg(value_name = "STREAM", value_parser = name_argument())]
    stream: NameArgument,
}

impl Seal {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        interrupt::exit_at_once()?;
        let store = self.store.open_to_change()?;
        let last = store.seal(&self.stream.0)?;
        store.close().context("cannot close the store")?;
        let mut out = output::stdout();
        match last {
            Some(local) => writeln!(out, "sealed after local sequence {}", count(local))?,
            None => writeln!(out, "sealed without an event")?,
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}

/// Take the seal off a stream: it takes events again
///
/// Changes nothing if the stream is not sealed. The store must be there, and no other program may
/// write it at the same time.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Unseal {
    #[command(flatten)]
    store: StoreArgument,
    /// The stream, 1 to 255 bytes
    #[arg(value_name = "STREAM", value_parser = name_argument())]
    stream: NameArgument,
}

impl Unseal {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        interrupt::exit_at_once()?;
        let store = self.store.open_to_change()?;
        store.unseal(&self.stream.0)?;
        store.close().context("cannot close the store")?;
        let mut out = output::stdout();
        writeln!(out, "unsealed")?;
        out.flush()?;
        Ok(Exit::Done)
    }
}
