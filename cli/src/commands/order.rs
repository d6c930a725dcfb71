//! `order --rebuild`: the whole order anew from the log.

use std::io::Write as _;
use std::ops::ControlFlow;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use thalweg::{DiscoveryReport, Options, RebuildProgress};

use super::{StoreArgument, advised, check_is_store};
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::output::{self, count, note, per_second, plural};
use crate::progress::Progress;

/// Put the whole log in order again
///
/// Throws away the derived files (order, tips and checkpoint), finds every event in the log and
/// puts all of them in order, on all cores. The order is a function of the log, so it is the same
/// as before; the log itself is not touched. Needs the store for itself.
///
/// After Ctrl-C the store is whole: what is left is ordered when it is opened the next time. Exit
/// code 1 if corrupt records were found; `thalweg verify` says where.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Order {
    #[command(flatten)]
    store: StoreArgument,
    /// Throw the derived files away and build them again
    #[arg(long, required = true)]
    rebuild: bool,
    /// Threads that find events in the log; without it, by the number of cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          allow_negative_numbers = true)]
    scanners: Option<u16>,
    /// Threads that put events in order; without it, by the number of cores
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          allow_negative_numbers = true)]
    orderers: Option<u16>,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

impl Order {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        check_is_store(&self.store.path)?;
        let interrupt = Interrupt::install(|| note(format_args!("interrupted")))?;
        let mut options = Options::new().create(false);
        if let Some(threads) = self.scanners {
            options = options.scanners(threads.into());
        }
        if let Some(threads) = self.orderers {
            options = options.orderers(threads.into());
        }
        let checking = Progress::new("checking", Some(0));
        let ordering = Progress::of_discovery("ordering");
        let report = thalweg::rebuild(&self.store.path, options, &|progress| {
            match progress {
                RebuildProgress::Checking { bytes_done, bytes_total, records } => {
                    checking.set_total(bytes_total);
                    checking.set(bytes_done, records);
                }
                RebuildProgress::Ordering(discovery) => {
                    checking.clear();
                    ordering.set_discovery(&discovery);
                }
                _ => {}
            }
            if interrupt.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        checking.clear();
        ordering.clear();
        let report = report
            .map_err(|error| anyhow!("cannot order {}: {}", self.store.shown(), advised(&error)))?;
        if report.corrupt == 0 || self.json {
            self.print(&report)?;
        }
        if report.corrupt > 0 {
            note(format_args!(
                "refused: the log is damaged in {}, and without the damaged events all others would get \
                 other numbers; nothing was thrown away, and `thalweg verify` lists the damage",
                plural(report.corrupt, "place")
            ));
            return Ok(Exit::Problem);
        }
        if !report.is_done {
            note(format_args!("interrupted: the rest is ordered when the store is opened"));
            return Ok(Exit::Interrupted);
        }
        Ok(Exit::Done)
    }

    fn print(&self, report: &DiscoveryReport) -> anyhow::Result<()> {
        let rate = per_second(report.scanned, report.elapsed);
        let mut out = output::stdout();
        if self.json {
            let report = Report {
                scanned: report.scanned,
                delivered: report.delivered,
                held: report.held,
                duplicates: report.duplicates,
                conflicts: report.conflicts,
                rejected: report.rejected,
                discarded: report.discarded,
                corrupt: report.corrupt,
                bytes: report.bytes,
                first_delivery_seconds: report.first_delivery.map(|first| first.as_secs_f64()),
                elapsed_seconds: report.elapsed.as_secs_f64(),
                events_per_second: rate,
                interrupted: !report.is_done && report.corrupt == 0,
            };
            output::json_line(&mut out, &report)?;
        } else {
            writeln!(
                out,
                "scanned {} in {}, {} ({} events/s)\n{} delivered, {} held, {} duplicate, \
                 {} conflicting, {} rejected, {} discarded",
                plural(report.scanned, "event"),
                output::bytes(report.bytes),
                output::duration(report.elapsed),
                count(rate),
                count(report.delivered),
                count(report.held),
                count(report.duplicates),
                count(report.conflicts),
                count(report.rejected),
                count(report.discarded)
            )?;
        }
        Ok(out.flush()?)
    }
}

/// The keys of `--json`, in this order.
#[derive(Serialize)]
struct Report {
    scanned: u64,
    delivered: u64,
    held: u64,
    duplicates: u64,
    conflicts: u64,
    rejected: u64,
    discarded: u64,
    corrupt: u64,
    bytes: u64,
    first_delivery_seconds: Option<f64>,
    elapsed_seconds: f64,
    events_per_second: u64,
    interrupted: bool,
}
