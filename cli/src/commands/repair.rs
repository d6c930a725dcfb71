//! `repair`: a damaged store made whole again.

use std::io::Write as _;

use anyhow::anyhow;
use clap::Args;
use thalweg::{LostEvent, MovedCursor, RepairOptions, RepairReport};

use super::{StoreArgument, advised, check_is_store};
use crate::exit::Exit;
use crate::output::{self, name, note, plural};

/// Most lost events and damaged places that are printed; the report in the store has all.
const LISTED_MAX: usize = 20;

/// Make a damaged store whole again
///
/// For a store that does not open for writing, or of which `thalweg verify` says that its log is
/// damaged. What cannot be read is recorded as lost; everything else stays, with the numbers that it
/// has. What is replaced is kept in a folder in the store, with the report. Needs the store for itself.
/// It can be cut short at any point and run again, and changes nothing where nothing is wrong.
///
/// The next command that opens the store for writing puts the whole log in order again.
///
/// Exit code 0 if the store is whole now, 1 if `--dry-run` has found something to do, 2 if the repair is
/// refused because events would get other numbers: see `--accept-renumbering`.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Repair {
    #[command(flatten)]
    store: StoreArgument,
    /// Change nothing, and say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Go on where it cannot be shown that all events keep their numbers
    #[arg(long)]
    accept_renumbering: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

impl Repair {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        check_is_store(&self.store.path)?;
        let options =
            RepairOptions::new().dry_run(self.dry_run).accept_renumbering(self.accept_renumbering);
        let shown = self.store.shown();
        let report = thalweg::repair(&self.store.path, &options)
            .map_err(|error| anyhow!("cannot repair {shown}: {}", advised(&error)))?;
        let mut out = output::stdout();
        if self.json {
            // On one line.
            let report: serde_json::Value = serde_json::from_str(&report.to_json())?;
            output::json_line(&mut out, &report)?;
        } else {
            self.print(&mut out, &report)?;
        }
        out.flush()?;
        if report.is_done {
            return Ok(Exit::Done);
        }
        match &report.unproven {
            Some(unproven) if !self.dry_run => Err(anyhow!(
                "nothing was changed: {unproven}. Put the damaged files back from a copy, or repair with \
                 `--accept-renumbering`"
            )),
            _ => Ok(Exit::Problem),
        }
    }

    fn print(&self, out: &mut impl std::io::Write, report: &RepairReport) -> anyhow::Result<()> {
        if !report.is_needed {
            writeln!(out, "nothing to repair")?;
            return Ok(());
        }
        list(out, &report.damage, ToString::to_string)?;
        let bytes: u64 = report.lost.iter().map(|lost| lost.end - lost.start).sum();
        writeln!(
            out,
            "lost: {} of the log in {}, with {} and {}",
            output::bytes(bytes),
            plural(report.lost.len() as u64, "place"),
            plural(report.lost_events.len() as u64, "delivered event"),
            plural(report.lost_held.len() as u64, "held event")
        )?;
        list(out, &report.lost_events, described)?;
        for cursor in &report.cursors {
            writeln!(out, "{}", self.moved(cursor))?;
        }
        if let Some(unproven) = &report.unproven {
            writeln!(out, "{unproven}")?;
        } else {
            writeln!(out, "everything else keeps its numbers")?;
        }
        if let Some(folder) = &report.quarantine {
            writeln!(out, "repaired; what was replaced is in {folder}, with the whole report")?;
        } else if self.dry_run {
            note(format_args!(
                "nothing was changed; `thalweg repair` without --dry-run repairs it"
            ));
        }
        Ok(())
    }
}

impl Repair {
    fn moved(&self, cursor: &MovedCursor) -> String {
        let place =
            |at: Option<u64>| at.map_or_else(|| String::from("not there"), |at| format!("at {at}"));
        let MovedCursor { name: cursor_name, was, at, .. } = cursor;
        let consequence = match at < was {
            true => "its consumer would see again what is between",
            false => "its consumer would miss what is between",
        };
        let (shown, cursor) = (self.store.shown(), name(cursor_name));
        let remedy = match was {
            Some(was) => format!("thalweg cursors {shown} --reset {cursor} --to {was}"),
            None => format!("thalweg cursors {shown} --remove {cursor}"),
        };
        let (was, at) = (place(*was), place(*at));
        format!(
            "cursor {cursor} was {was}, and is {at} since a mark is lost, or what it depended on: \
             {consequence}; `{remedy}` puts it back"
        )
    }
}

fn list<T>(
    out: &mut impl std::io::Write,
    items: &[T],
    show: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    for item in items.iter().take(LISTED_MAX) {
        writeln!(out, "  {}", show(item))?;
    }
    if items.len() > LISTED_MAX {
        writeln!(out, "  and {} more", items.len() - LISTED_MAX)?;
    }
    Ok(())
}

fn described(event: &LostEvent) -> String {
    let id = event.id.as_ref().map_or_else(|| String::from("of unknown id"), |id| name(id));
    let LostEvent { global, local, .. } = event;
    format!("global {global}, local {local} of {}: {id}", name(&event.stream))
}
