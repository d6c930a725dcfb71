//! What can go wrong, one type per operation.

use std::fmt;
use std::io;
use std::sync::Arc;

use thalweg_wal::{Damage, LimitError, WHEN_EXHAUSTED, is_exhausted};

use crate::event::{Batch, MixedBatch, Receipt};

pub use thalweg_wal::OpenError as LogOpenError;

/// Why the engine or an appender stopped. The first cause stands; everything after it reports it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Cause {
    /// There was no room for a batch. Its appender stops, so that what is stored of its batches stays
    /// a prefix; the store goes on, and a new appender can go on when there is room.
    StorageFull(Arc<io::Error>),
    /// The process had no file descriptors or no memory for the next segment of the log, which the batch
    /// needs. As for a full disk: its appender stops, the store goes on, and so can a new appender.
    Exhausted(Arc<io::Error>),
    /// The appender was aborted. The store goes on.
    Aborted,
    /// A write or a sync of the log failed. What was not acknowledged before is not known to be
    /// stored; reopening finds out.
    Log(Arc<io::Error>),
    /// A derived file could not be written or read. The log is whole.
    Derived(Arc<io::Error>),
    /// Bytes of the log are damaged, so the order beyond them is not known.
    Damage(Damage),
    /// A follower could not read the files of the store for some seconds, or they go on in a way that this version
    /// does not read.
    Follow(Arc<LogOpenError>),
    /// A follower has read an event at this global sequence for which there is another now: the store was repaired, or
    /// an older copy was put in its place. What was read before may not be in it.
    Replaced {
        /// The global sequence.
        global: u64,
    },
    /// A thread of the engine panicked: a bug.
    Panic {
        /// Name of the thread.
        thread: &'static str,
        /// What it said.
        message: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::StorageFull(error) => {
                write!(f, "there is no room: {error}; free some space and try again")
            }
            Cause::Exhausted(error) => write!(f, "there is no room: {error}; {WHEN_EXHAUSTED}"),
            Cause::Aborted => f.write_str("the appender was aborted"),
            Cause::Log(error) => write!(f, "the log could not be written: {error}"),
            Cause::Derived(error) => write!(
                f,
                "the order could not be written or read: {error}; what was acknowledged is in the log, \
                 and the next opening orders it"
            ),
            Cause::Damage(damage) => write!(
                f,
                "{damage}; the store can be read, and `verify` lists all damage, but it takes no more \
                 appends"
            ),
            Cause::Follow(error) => write!(f, "the store cannot be followed: {error}"),
            Cause::Replaced { global } => write!(
                f,
                "the store was repaired or replaced while it was followed: there is another event at \
                 global sequence {global} now; open it again, and read from the start"
            ),
            Cause::Panic { thread, message } => {
                write!(f, "thread {thread} panicked, which is a bug: {message}")
            }
        }
    }
}

impl std::error::Error for Cause {}

/// Why a store cannot be opened.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// The log cannot be opened.
    Log(LogOpenError),
    /// The path is no directory.
    NotADirectory {
        /// The path.
        path: String,
    },
    /// The directory holds a part of a backup, or of a store that was to be restored: it was cut short.
    Unfinished {
        /// The directory.
        path: String,
    },
    /// An option has a value that the engine cannot work with.
    Option {
        /// Name of the option.
        name: &'static str,
        /// What is wrong with its value.
        detail: String,
    },
    /// The engine has stopped before it was done.
    Poisoned(Cause),
    /// A thread could not be started, or a file could not be read or written.
    Io {
        /// What was being done.
        context: String,
        /// The operating system's error.
        source: io::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Log(error) => error.fmt(f),
            OpenError::NotADirectory { path } => {
                write!(f, "{path} is not a directory; a store is a directory")
            }
            OpenError::Unfinished { path } => write!(
                f,
                "{path} holds a backup, or a restored store, that was not finished; make it again"
            ),
            OpenError::Option { name, detail } => write!(f, "option {name}: {detail}"),
            OpenError::Poisoned(cause) => write!(f, "the engine has stopped: {cause}"),
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
            OpenError::Log(error) => error.source(),
            OpenError::Io { source, .. } => Some(source),
            OpenError::Poisoned(cause) => Some(cause),
            OpenError::NotADirectory { .. }
            | OpenError::Unfinished { .. }
            | OpenError::Option { .. } => None,
        }
    }
}

impl From<LogOpenError> for OpenError {
    fn from(error: LogOpenError) -> Self {
        OpenError::Log(error)
    }
}

/// Why a batch was not accepted. Nothing of it was stored, and it comes back whole.
pub struct SubmitError<B> {
    /// The batch, as it was submitted.
    pub batch: B,
    /// Why it was refused.
    pub reason: Refusal,
}

/// Why a batch, or an appender, was refused.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no event in the batch.
    Empty,
    /// A name, an id, a payload or the batch is longer than the format allows.
    Limit(LimitError),
    /// An option has a value that an appender cannot work with.
    Option {
        /// Name of the option.
        name: &'static str,
        /// What is wrong with its value.
        detail: String,
    },
    /// The store was opened for reading only.
    ReadOnly,
    /// The pipeline, or the store's queue, is full, and the call does not wait: it was asked not to, or
    /// it comes from a callback.
    Full,
    /// There was no room in the pipeline, or in the store's queue, in time.
    TimedOut,
    /// The stream is sealed.
    Sealed,
    /// The appender or the store is closed.
    Closed,
    /// The appender has stopped: this became of the first batch that it could not append. A new
    /// appender begins afresh.
    Stopped(AppendFailure),
    /// The engine has stopped.
    Poisoned(Cause),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Empty => f.write_str("a batch takes at least one event"),
            Refusal::Limit(limit) => limit.fmt(f),
            Refusal::Option { name, detail } => write!(f, "option {name}: {detail}"),
            Refusal::ReadOnly => f.write_str("the store is open for reading only"),
            Refusal::Full => f.write_str("there is no room in the pipeline now"),
            Refusal::TimedOut => f.write_str("there was no room in the pipeline in time"),
            Refusal::Sealed => f.write_str("the stream is sealed"),
            Refusal::Closed => f.write_str("the appender or the store is closed"),
            Refusal::Stopped(failure) => write!(f, "the appender has stopped: {failure}"),
            Refusal::Poisoned(cause) => write!(f, "the engine has stopped: {cause}"),
        }
    }
}

impl<B> fmt::Display for SubmitError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// Without the batch, which may be as long as a book.
impl<B> fmt::Debug for SubmitError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubmitError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<B> std::error::Error for SubmitError<B> {}

impl std::error::Error for Refusal {}

/// A refused batch of one stream.
pub type BatchRefused = SubmitError<Batch>;
/// A refused batch of many streams.
pub type MixedBatchRefused = SubmitError<MixedBatch>;

/// What became of an accepted batch: its receipt, or the reason why there is none.
pub type Outcome = Result<Receipt, AppendFailure>;

/// What became of an accepted batch that was not acknowledged.
#[derive(Debug, Clone)]
pub enum AppendFailure {
    /// The batch is not stored and never will be. It can be appended again.
    NotAppended(Cause),
    /// Whether the batch is stored is not known before the store is opened again.
    Unknown(Cause),
}

impl AppendFailure {
    /// For a batch that came after one with this outcome, and was not written because of it.
    pub(crate) fn not_appended(self) -> Self {
        match self {
            AppendFailure::NotAppended(cause) | AppendFailure::Unknown(cause) => {
                AppendFailure::NotAppended(cause)
            }
        }
    }
}

impl fmt::Display for AppendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendFailure::NotAppended(cause) => write!(f, "not appended: {cause}"),
            AppendFailure::Unknown(cause) => {
                write!(f, "it is not known whether the batch is stored: {cause}")
            }
        }
    }
}

impl std::error::Error for AppendFailure {}

/// Why a flush cannot say that everything is appended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum FlushError {
    /// The appender has stopped: this became of the first batch that it could not append.
    Stopped(AppendFailure),
    /// The call comes from a callback, and would wait for itself.
    OnCallbackThread,
}

impl fmt::Display for FlushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlushError::Stopped(failure) => write!(f, "the appender has stopped: {failure}"),
            FlushError::OnCallbackThread => {
                f.write_str("a callback cannot wait for the callbacks that come after it")
            }
        }
    }
}

impl std::error::Error for FlushError {}

/// Why a stream is not known to be sealed, or its seal to be taken off, or the stream to be trimmed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SealError {
    /// Nothing was stored.
    Refused(Refusal),
    /// It is not stored, or not known to be.
    Failed(AppendFailure),
    /// It is stored, but the store was closed, or its engine stopped, before it was ordered. The next
    /// opening orders it.
    Undecided,
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SealError::Refused(refusal) => refusal.fmt(f),
            SealError::Failed(failure) => failure.fmt(f),
            SealError::Undecided => f.write_str(
                "it is stored, but the store was closed, or its engine stopped, before it was ordered",
            ),
        }
    }
}

impl std::error::Error for SealError {}

impl From<Refusal> for SealError {
    fn from(refusal: Refusal) -> Self {
        SealError::Refused(refusal)
    }
}

impl From<AppendFailure> for SealError {
    fn from(failure: AppendFailure) -> Self {
        SealError::Failed(failure)
    }
}

/// Why held events are not known to be discarded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum DiscardError {
    /// Nothing was stored.
    Refused(Refusal),
    /// The discards are not stored, or not known to be.
    Failed(AppendFailure),
    /// They are stored, but the store was closed, or its engine stopped, before they were ordered. The next
    /// opening orders them.
    Undecided,
    /// It is not known what is held.
    Held(ReadError),
}

impl fmt::Display for DiscardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiscardError::Refused(refusal) => refusal.fmt(f),
            DiscardError::Failed(failure) => failure.fmt(f),
            DiscardError::Undecided => f.write_str(
                "it is stored, but the store was closed, or its engine stopped, before it was ordered",
            ),
            DiscardError::Held(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for DiscardError {}

impl From<Refusal> for DiscardError {
    fn from(refusal: Refusal) -> Self {
        DiscardError::Refused(refusal)
    }
}

impl From<AppendFailure> for DiscardError {
    fn from(failure: AppendFailure) -> Self {
        DiscardError::Failed(failure)
    }
}

/// Why a cursor is not known to be where it was to go.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum CursorError {
    /// The sequence is beyond what is delivered. Nothing was stored.
    Undelivered {
        /// The sequence.
        next: u64,
        /// Number of delivered events: the last sequence that can be committed.
        delivered: u64,
    },
    /// The store has [`Cursor::COUNT_MAX`](crate::Cursor::COUNT_MAX) cursors. Remove one that nobody uses.
    TooMany,
    /// Nothing was stored.
    Refused(Refusal),
    /// The mark is not stored, or not known to be.
    Failed(AppendFailure),
    /// The mark is stored, but the store was closed, or its engine stopped, before it was ordered. The next
    /// opening orders it.
    Undecided,
    /// The store was closed, or its engine has stopped, before it was known where the cursor is.
    Ended(ReadError),
}

impl fmt::Display for CursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CursorError::Undelivered { next, delivered } => write!(
                f,
                "a cursor cannot be at {next}, beyond the {delivered} events that are delivered"
            ),
            CursorError::TooMany => write!(
                f,
                "there are {} cursors already; remove one that nobody uses",
                crate::Cursor::COUNT_MAX
            ),
            CursorError::Refused(refusal) => refusal.fmt(f),
            CursorError::Failed(failure) => failure.fmt(f),
            CursorError::Undecided => f.write_str(
                "the mark is stored, but the store was closed, or its engine stopped, before it was ordered",
            ),
            CursorError::Ended(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CursorError {}

/// Why something cannot be read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ReadError {
    /// The log is damaged at the event that was asked for. Other events can be read.
    Damage(Damage),
    /// The order log is damaged at this global sequence. It is derived:
    /// [`rebuild`](crate::rebuild) makes it again.
    Order {
        /// The global sequence.
        global: u64,
    },
    /// A run of the state is damaged. It is derived: [`rebuild`](crate::rebuild) makes it again.
    Run {
        /// Name of the file inside the store's directory.
        file: String,
        /// Offset of the damage in the file, in bytes.
        offset: u64,
    },
    /// It was trimmed: what is before `first` is gone.
    Trimmed {
        /// The first sequence that can be read: the global one, or, of the reader of a stream, the local one.
        first: u64,
    },
    /// The store was closed while waiting.
    Closed,
    /// The store is open for reading only, and this would write.
    ReadOnly,
    /// The engine has stopped. What is committed can still be read; nothing more will come.
    Poisoned(Cause),
    /// A file could not be opened, mapped or read.
    Io(Arc<io::Error>),
    /// The store cannot be opened for the check.
    Open(Arc<OpenError>),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Damage(damage) => damage.fmt(f),
            ReadError::Order { global } => write!(
                f,
                "the order log is damaged at global sequence {global}; it is derived from the log: \
                 rebuild it with `order --rebuild`"
            ),
            ReadError::Run { file, offset } => write!(
                f,
                "{file} is damaged at offset {offset}; it is derived from the log: rebuild it with \
                 `order --rebuild`"
            ),
            ReadError::Trimmed { first } => {
                write!(f, "events before sequence {first} were trimmed; read from {first} on")
            }
            ReadError::Closed => f.write_str("the store is closed"),
            ReadError::ReadOnly => f.write_str("the store is open for reading only"),
            ReadError::Poisoned(cause) => write!(f, "the engine has stopped: {cause}"),
            ReadError::Io(error) if is_exhausted(error) => {
                write!(f, "a file of the store cannot be read: {error}; {WHEN_EXHAUSTED}")
            }
            ReadError::Io(error) => write!(f, "a file of the store cannot be read: {error}"),
            ReadError::Open(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReadError {}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> Self {
        ReadError::Damage(damage)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Io(Arc::new(error))
    }
}

/// Why closing did not end well. The store is closed all the same.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum CloseError {
    /// The engine had stopped before.
    Poisoned(Cause),
}

impl fmt::Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseError::Poisoned(cause) => write!(f, "the engine had stopped before: {cause}"),
        }
    }
}

impl std::error::Error for CloseError {}
