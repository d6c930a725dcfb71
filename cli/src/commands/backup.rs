//! `backup`: a copy of a store, which may be written meanwhile.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use thalweg::{BackupError, BackupOptions, BackupProgress, BackupReport};

use super::{StoreArgument, advised, check_is_store};
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::output::{self, count, note, plural};
use crate::progress::Progress;

/// Copy a store, also while another program writes it
///
/// TARGET becomes a directory with the log of the store up to what was durable at one moment, the
/// order that was in its checkpoint, and a manifest with a checksum for every file, which `restore`
/// compares. It appears when all of it is on disk, or not at all; it must not be there before, or be
/// empty. It can be read like a store; opened for writing it becomes one, and is no backup any more.
///
/// Files that never change again are hard-linked if TARGET is on the same file system: that takes no
/// space, and no help against a disk that fails. No store ever writes to a linked file.
///
/// With --from or --frontier the copy begins later than the store, with the state that the store has
/// come to there: numbers go on, children of events that are left out are delivered, and copies of
/// them are duplicates. So a replica can start without the history. The store is only read. It is
/// put in order up to its end first, and what is left out is gone through once.
///
/// After Ctrl-C nothing is left. Exit code 1 if the log of the store is damaged: the backup is made,
/// and as good as the store is; `thalweg verify` says where the damage is.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg backup orders /mnt/backups/orders-monday
  thalweg restore /mnt/backups/orders-monday orders
  thalweg backup orders /mnt/replica/orders --frontier"
)]
pub(crate) struct Backup {
    #[command(flatten)]
    store: StoreArgument,
    /// The directory to make
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    /// Leave out what is before this global sequence, in whole segments: the copy begins with it, or
    /// with an event somewhat before
    #[arg(long, value_name = "SEQ", conflicts_with = "frontier")]
    from: Option<u64>,
    /// Leave out all events: the copy has the state, and goes on from there
    #[arg(long)]
    frontier: bool,
    /// Copy every file, also where a hard link would do
    #[arg(long)]
    copy: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        check_is_store(&self.store.path)?;
        let options = BackupOptions::new().hard_links(!self.copy);
        let options = match self.from {
            Some(global) => options.from(global),
            None if self.frontier => options.from_frontier(),
            None => options,
        };
        let report = watched("copying", |progress| {
            thalweg::backup(&self.store.path, &self.target, options, progress)
        })?
        .map_err(|error| anyhow!("cannot back up {}: {}", self.store.shown(), words(&error)))?;
        let Some(report) = report else { return Ok(Exit::Interrupted) };
        print(&report, "backed up", self.json)?;
        if let Some(damage) = &report.first_damage {
            note(format_args!(
                "{} of the log damaged, and copied as they are: {damage}; `thalweg verify` lists all",
                plural(report.damaged, "place")
            ));
            return Ok(Exit::Problem);
        }
        Ok(Exit::Done)
    }
}

/// Does `work` with a progress bar; `None` after Ctrl-C.
pub(super) fn watched(
    verb: &'static str,
    work: impl FnOnce(&dyn Fn(BackupProgress) -> ControlFlow<()>) -> Result<BackupReport, BackupError>,
) -> anyhow::Result<Result<Option<BackupReport>, BackupError>> {
    let interrupt = Interrupt::install(|| {
        note(format_args!("interrupted; what was made so far is cleared away by the next run"));
    })?;
    let progress = Progress::of_bytes(verb);
    let result = work(&|done| {
        progress.set_total(done.bytes_total);
        progress.set(done.bytes_done, 0);
        if interrupt.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    progress.clear();
    Ok(match result {
        Ok(report) => Ok(Some(report)),
        Err(BackupError::Interrupted) => {
            note(format_args!("interrupted: nothing is left of it"));
            Ok(None)
        }
        Err(error) => Err(error),
    })
}

/// The error, and what to do about it where the library cannot know.
pub(super) fn words(error: &BackupError) -> String {
    match error {
        BackupError::Source(error) => advised(error),
        BackupError::Busy { .. } => format!("{error}; wait for it, or name another target"),
        BackupError::NotABackup { .. } => {
            format!("{error}; `thalweg backup` makes one")
        }
        _ => error.to_string(),
    }
}

/// The report, for people or as JSON.
pub(super) fn print(report: &BackupReport, verb: &str, json: bool) -> anyhow::Result<()> {
    let mut out = output::stdout();
    let backup = &report.backup;
    if json {
        output::json_line(&mut out, &Report::new(report))?;
    } else {
        let linked = match report.linked_files {
            0 => String::new(),
            files => format!(", {} of them linked", count(files)),
        };
        let first = match backup.first {
            0 => String::new(),
            first => format!(", from event {} on", count(first)),
        };
        let delivered = backup.delivered.map_or(String::new(), |delivered| {
            format!(", {} delivered", plural(delivered, "event"))
        });
        writeln!(
            out,
            "{verb} up to position {}{first}{delivered}\n{} in {}{linked}, in {}",
            count(backup.position),
            output::bytes(backup.bytes),
            plural(backup.files, "file"),
            output::duration(report.elapsed)
        )?;
    }
    Ok(out.flush()?)
}

/// The keys of `--json`, in this order.
#[derive(Serialize)]
struct Report {
    store_id: String,
    position: u64,
    ordered: u64,
    first: u64,
    delivered: Option<u64>,
    created: u64,
    files: u64,
    bytes: u64,
    linked_files: u64,
    linked_bytes: u64,
    damaged: u64,
    elapsed_seconds: f64,
}

impl Report {
    fn new(report: &BackupReport) -> Self {
        let backup = &report.backup;
        Report {
            store_id: backup.store_id.iter().map(|byte| format!("{byte:02x}")).collect(),
            position: backup.position,
            ordered: backup.ordered,
            first: backup.first,
            delivered: backup.delivered,
            created: backup.created,
            files: backup.files,
            bytes: backup.bytes,
            linked_files: report.linked_files,
            linked_bytes: report.linked_bytes,
            damaged: report.damaged,
            elapsed_seconds: report.elapsed.as_secs_f64(),
        }
    }
}
