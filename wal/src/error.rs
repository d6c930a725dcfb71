//! What can go wrong with a log, one type per operation.

use std::fmt;
use std::io;

use crate::segment::Damage;

/// Why a log cannot be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another handle in this one, has the store open for writing.
    Locked {
        /// The lock file.
        path: String,
        /// What the holder wrote about itself; may be empty.
        holder: String,
    },
    /// There is no store at this place, and it was not to be created.
    Missing {
        /// Where a store was looked for.
        path: String,
    },
    /// The directory holds files, but no store.
    NotAStore {
        /// The directory.
        path: String,
        /// One of the foreign files.
        example: String,
    },
    /// The store has a format that this version does not read.
    Version {
        /// The segment that says so.
        file: String,
        /// Major version found.
        found: u16,
        /// Major version that this build reads.
        supported: u16,
    },
    /// A segment is missing in the middle or at the start of the log.
    SegmentMissing {
        /// Name of the file that should be there.
        file: String,
    },
    /// A segment belongs to another store or does not follow the one before it.
    SegmentForeign {
        /// The segment.
        file: String,
        /// What does not fit.
        detail: &'static str,
    },
    /// The file that says what is lost of the log is damaged, missing, or another store's.
    Losses {
        /// The file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The file that says where the log begins is damaged, or another store's.
    Trimmed {
        /// The file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// Bytes that were acknowledged are damaged. Nothing was changed.
    Damaged(Damage),
    /// A file could not be read, written or synced. This is not damage: the bytes are unknown.
    Io {
        /// What was being done to which file.
        context: String,
        /// The operating system's error.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| OpenError::Io { context, source }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Locked { path, holder } if holder.is_empty() => {
                write!(f, "the store is open for writing elsewhere ({path} is locked)")
            }
            OpenError::Locked { path, holder } => {
                write!(f, "the store is open for writing elsewhere: {path} is held by {holder}")
            }
            OpenError::Missing { path } => write!(f, "there is no store at {path}"),
            OpenError::NotAStore { path, example } => {
                write!(
                    f,
                    "{path} is not a Thalweg store: it holds files such as {example}, but no log"
                )
            }
            OpenError::Version { file, found, supported } => {
                write!(
                    f,
                    "{file} has format version {found}, and this build reads version {supported}: open \
                     the store with a newer build"
                )
            }
            OpenError::SegmentMissing { file } => {
                write!(
                    f,
                    "{file} is missing: the log has a gap, unless it was trimmed and {} is missing or older \
                     than that; put the file back from a copy, or have `repair` record the loss. What is \
                     whole can be read",
                    crate::name::trimmed()
                )
            }
            OpenError::SegmentForeign { file, detail } => {
                write!(
                    f,
                    "{file} does not belong here: {detail}; put the right file back from a copy, or have \
                     `repair` record the loss. What is whole can be read"
                )
            }
            OpenError::Losses { file, detail } => write!(
                f,
                "{file} cannot be used: {detail}. It says what is lost of the log: put it back from a copy, \
                 or have `repair` make it again"
            ),
            OpenError::Trimmed { file, detail } => write!(
                f,
                "{file} cannot be used: {detail}. It says where the log begins, and what is needed of what was \
                 trimmed, which nothing else tells: put it back from a backup. What is whole can be read"
            ),
            OpenError::Damaged(damage) => write!(
                f,
                "{damage}. These bytes may have been acknowledged, so nothing is cut or changed: put \
                 the file back from a copy, or have `repair` record the loss. What is whole can be read"
            ),
            OpenError::Io { context, source } if source.kind() == io::ErrorKind::StorageFull => {
                write!(
                    f,
                    "{context}: {source}; what was acknowledged is there and can be read; free some \
                     space and try again"
                )
            }
            OpenError::Io { context, source } if is_exhausted(source) => {
                write!(f, "{context}: {source}; {WHEN_EXHAUSTED}")
            }
            OpenError::Io { context, source } => write!(f, "{context}: {source}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Damaged(damage) => Some(damage),
            OpenError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What to do about an [exhausted](is_exhausted) limit, for messages.
pub const WHEN_EXHAUSTED: &str = "a store takes a file descriptor and a map for each of its files: raise the limit of the process \
     (`ulimit -n`, `ulimit -v`), or let go of what it does not need, and try again";

/// Whether the process, or the machine, has no descriptors or no memory left: nothing is wrong with the
/// files, and the same works when there are.
pub fn is_exhausted(error: &io::Error) -> bool {
    /// Without a kind of their own, by their numbers on every Unix: too many open files in the system, in
    /// the process.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    error.kind() == io::ErrorKind::OutOfMemory
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

/// Why a frame was not appended.
#[derive(Debug)]
#[non_exhaustive]
pub enum AppendError {
    /// There is no room for the next segment. Nothing was written; the log takes appends again as
    /// soon as there is room.
    StorageFull(io::Error),
    /// There were no descriptors or no memory for the next segment. Nothing was written; the log takes
    /// appends again as soon as there are.
    Exhausted(io::Error),
    /// A write or a sync failed. The log takes no more appends: reopen it.
    Failed(io::Error),
    /// An earlier write or sync failed.
    Poisoned,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::StorageFull(error) => {
                write!(f, "no room for the next segment ({error}); free some space and try again")
            }
            AppendError::Exhausted(error) => {
                write!(f, "the next segment cannot be made: {error}; {WHEN_EXHAUSTED}")
            }
            AppendError::Failed(error) => write!(f, "writing the log failed: {error}"),
            AppendError::Poisoned => f.write_str("the log failed before; reopen the store"),
        }
    }
}

impl std::error::Error for AppendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AppendError::StorageFull(error)
            | AppendError::Exhausted(error)
            | AppendError::Failed(error) => Some(error),
            AppendError::Poisoned => None,
        }
    }
}
