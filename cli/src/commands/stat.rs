//! `stat`: the numbers of a store.

use std::io::Write as _;

use clap::Args;
use serde::Serialize;
use thalweg::Stats;

use super::{StoreArgument, seen_whole};
use crate::exit::Exit;
use crate::output::{self, bytes, count, plural};

/// Show the numbers of a store
///
/// Events are counted since the store was made. Positions are addresses in bytes in the whole log;
/// what is durable is on disk, what is committed is ordered and can be read. The store is looked at
/// as it was on disk at this moment; a program that writes it may be ahead.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Stat {
    #[command(flatten)]
    store: StoreArgument,
    /// Print one JSON object; lengths and positions are in bytes
    #[arg(long)]
    json: bool,
}

impl Stat {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let store = self.store.open_to_print()?;
        let stats = store.stats();
        let mut out = output::stdout();
        if self.json {
            output::json_line(&mut out, &Numbers::new(&stats))?;
        } else {
            for (key, value) in rows(&stats) {
                writeln!(out, "{key:<11} {value}")?;
            }
        }
        out.flush()?;
        Ok(seen_whole(&store))
    }
}

fn rows(stats: &Stats) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        (
            "events",
            format!(
                "{} delivered, {} held, in {}",
                count(stats.delivered),
                count(stats.held),
                plural(stats.streams, "stream")
            ),
        ),
        (
            "ignored",
            format!(
                "{} duplicate, {} conflicting, {} rejected, {} discarded, {} corrupt",
                count(stats.duplicates),
                count(stats.conflicts),
                count(stats.rejected),
                count(stats.discarded),
                count(stats.corrupt)
            ),
        ),
        ("log", format!("{} in {}", bytes(stats.log_bytes), plural(stats.segments, "segment"))),
        ("durable", format!("to position {}", count(stats.durable))),
        ("committed", format!("to position {}{}", count(stats.committed), lag(stats))),
        ("checkpoint", format!("at position {}", count(stats.checkpoint_position))),
        ("recovery", output::preview(stats.recovery.as_bytes(), 200)),
    ];
    if let Some(cause) = &stats.poisoned {
        rows.push(("poisoned", cause.clone()));
    }
    rows
}

fn lag(stats: &Stats) -> String {
    match stats.durable.saturating_sub(stats.committed) {
        0 => String::new(),
        behind => format!(", {} behind", bytes(behind)),
    }
}

/// The keys of `--json`, in this order.
#[derive(Serialize)]
struct Numbers<'a> {
    delivered: u64,
    held: u64,
    duplicates: u64,
    conflicts: u64,
    rejected: u64,
    discarded: u64,
    corrupt: u64,
    streams: u64,
    segments: u64,
    log_bytes: u64,
    written: u64,
    durable: u64,
    scanned: u64,
    ordered: u64,
    committed: u64,
    checkpoint_position: u64,
    recovery: &'a str,
    poisoned: Option<&'a str>,
}

impl<'a> Numbers<'a> {
    fn new(stats: &'a Stats) -> Self {
        Numbers {
            delivered: stats.delivered,
            held: stats.held,
            duplicates: stats.duplicates,
            conflicts: stats.conflicts,
            rejected: stats.rejected,
            discarded: stats.discarded,
            corrupt: stats.corrupt,
            streams: stats.streams,
            segments: stats.segments,
            log_bytes: stats.log_bytes,
            written: stats.written,
            durable: stats.durable,
            scanned: stats.scanned,
            ordered: stats.ordered,
            committed: stats.committed,
            checkpoint_position: stats.checkpoint_position,
            recovery: &stats.recovery,
            poisoned: stats.poisoned.as_deref(),
        }
    }
}
