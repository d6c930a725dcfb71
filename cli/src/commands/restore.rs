//! `restore`: a store from a backup, every byte of it compared with the manifest.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use thalweg::BackupOptions;

use super::backup::{print, watched, words};
use crate::exit::Exit;

/// Make a store of a backup
///
/// Copies what the manifest of the backup lists, and compares every byte with it. STORE appears
/// when all of it is right and on disk, or not at all; it must not be there before, or be empty.
/// The store that opens there delivers what the other one had delivered up to the position of the
/// backup, under the same numbers.
///
/// It has the identity of the store that was backed up, and takes its place. Do not let both go on
/// and mix up what they have then: `thalweg read OLD | thalweg import NEW` makes a store of its own.
///
/// After Ctrl-C nothing is left.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  thalweg restore /mnt/backups/orders-monday orders"
)]
pub(crate) struct Restore {
    /// The backup: a directory that `thalweg backup` has made
    #[arg(value_name = "BACKUP")]
    backup: PathBuf,
    /// The store to make: a directory
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// Hard-link files that never change again, instead of copying them
    #[arg(long)]
    link: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let options = BackupOptions::new().hard_links(self.link);
        let report = watched("restoring", |progress| {
            thalweg::restore(&self.backup, &self.store, options, progress)
        })?
        .map_err(|error| anyhow!("cannot restore {}: {}", self.backup.display(), words(&error)))?;
        let Some(report) = report else { return Ok(Exit::Interrupted) };
        print(&report, "restored", self.json)?;
        Ok(Exit::Done)
    }
}
