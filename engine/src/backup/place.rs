//! Where a copy is made: in a directory beside its target, which gets the target's name when all of it
//! is durable. So the target is there whole, or not at all.
//!
//! The directory is `TARGET.partial`, locked while somebody works in it. A run that was killed leaves it
//! behind, with a mark in it; the next run to the same target clears it away. Whatever is
//! not marked so is left alone and refused by name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thalweg_wal::name;
use thalweg_wal::storage::{OsStorage, remove_if_there};

use super::BackupError;

/// A directory that is to become the target.
#[derive(Debug)]
pub(crate) struct Place {
    target: PathBuf,
    partial: PathBuf,
    parent: PathBuf,
    storage: OsStorage,
    /// Held until the place is finished or given up.
    _lock: File,
}

fn io_error(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let context = format!("{doing} {}", path.display());
    move |source| BackupError::Io { context, source }
}

impl Place {
    /// Makes the place for `target`, which is missing or an empty directory.
    pub(crate) fn prepare(target: &Path) -> Result<Self, BackupError> {
        let refuse = |detail: &str| BackupError::Target {
            path: target.display().to_string(),
            detail: detail.to_owned(),
        };
        let target = match fs::canonicalize(target) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => target.to_owned(),
            Err(error) => return Err(io_error("looking for", target)(error)),
        };
        let Some(file_name) = target.file_name() else {
            return Err(refuse("it is not the name of a directory"));
        };
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let parent_there = fs::metadata(&parent)
            .map_err(io_error("looking for the directory above the target,", &parent))?;
        if fs::symlink_metadata(&target).is_ok() {
            if !target.is_dir() {
                return Err(refuse("it is there, and not a directory"));
            }
            let there = fs::metadata(&target).map_err(io_error("looking at", &target))?;
            if there.dev() != parent_there.dev() {
                return Err(refuse("a file system is mounted there; name a new directory in it"));
            }
            let mut entries = fs::read_dir(&target).map_err(io_error("listing", &target))?;
            if let Some(entry) = entries.next() {
                let entry = entry.map_err(io_error("listing", &target))?;
                let example = entry.file_name().to_string_lossy().into_owned();
                return Err(BackupError::NotEmpty { path: target.display().to_string(), example });
            }
        }
        let mut partial_name = file_name.to_owned();
        partial_name.push(".partial");
        let partial = parent.join(partial_name);
        match fs::create_dir(&partial) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("creating", &partial)(error));
            }
            _ => {}
        }
        let storage = OsStorage::open(&partial).map_err(io_error("opening", &partial))?;
        // Before a lock file is left in a directory that is none of ours.
        super::check_usable(&storage)?;
        let lock = lock(&partial)?;
        Ok(Place { target, partial, parent, storage, _lock: lock })
    }

    pub(crate) fn storage(&self) -> &OsStorage {
        &self.storage
    }

    /// Gives the directory the name of the target, durably. All in it is durable.
    pub(crate) fn finish(&self) -> Result<(), BackupError> {
        let put = || {
            // Over an empty directory, if one is there; a full one is left alone.
            fs::rename(&self.partial, &self.target)?;
            let synced = File::open(&self.parent).and_then(|parent| parent.sync_all());
            synced.inspect_err(|_| {
                // Nobody knows which name it will have after a power loss: there is no copy.
                let _ = fs::rename(&self.target, &self.partial);
            })
        };
        put().map_err(io_error("renaming the copy to", &self.target))?;
        // It says nothing beside a manifest, so it costs nothing if it stays.
        let _ = fs::remove_file(self.target.join(name::unfinished()));
        Ok(())
    }

    /// Removes what was made. What cannot be removed, the next run does.
    pub(crate) fn abandon(self) {
        if super::clear(&self.storage).is_ok()
            && remove_if_there(&self.storage, name::unfinished()).is_ok()
            && remove_if_there(&self.storage, name::LOCK).is_ok()
        {
            let _ = fs::remove_dir(&self.partial);
        }
    }
}

/// Keeps others out of the directory.
fn lock(partial: &Path) -> Result<File, BackupError> {
    let path = partial.join(name::LOCK);
    let busy = || BackupError::Busy { path: partial.display().to_string() };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(io_error("opening", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy()),
        Err(TryLockError::Error(error)) => return Err(io_error("locking", &path)(error)),
    }
    // Whoever had the lock may have finished meanwhile, and taken the file along.
    let held = file.metadata().map_err(io_error("looking at", &path))?;
    match fs::metadata(&path) {
        Ok(there) if (there.dev(), there.ino()) == (held.dev(), held.ino()) => Ok(file),
        _ => Err(busy()),
    }
}
