//! The write-ahead log of [Thalweg](https://docs.rs/thalweg): bytes and files, and no threads.
//!
//! A log is a sequence of *records*. Records are committed together in *frames*, frames lie in
//! *segments*, and a *position* is a byte address in the whole log. Every record carries a CRC-32C over
//! its bytes, the salt of its segment and its position, so bytes that are stale, moved or
//! foreign never look valid. `FORMAT.md` in this crate draws every layout and argues why append,
//! roll and recovery survive a crash at any point.
//!
//! The parts, in the order in which a record meets them:
//!
//! * [`EncodedBatch`]: events are checked against the limits and encoded on the caller's thread;
//! * [`FrameBuf`]: the batches of one group commit, side by side;
//! * [`LogWriter`]: appends frames to zero-filled segments, rolls, syncs, and recovers on opening;
//! * [`Segment`]: reads records out of the mapped file and goes on past damage;
//! * [`LogFollower`]: reads along while another process writes;
//! * [`storage::Storage`]: the seam to the operating system, or to memory.
//!
//! Deliberately not here: threads, channels, the order of events, and any look into a payload. The
//! crate is the floor that the `thalweg` crate stands on; use that one.

mod batch;
mod error;
mod follow;
pub mod format;
mod frame;
mod log;
mod loss;
pub mod name;
mod record;
mod recover;
mod repair;
mod segment;
pub mod storage;
mod trim;

pub use batch::{EncodedBatch, EventFields, LimitError, Lineage};
pub use error::{AppendError, OpenError, WHEN_EXHAUSTED, is_exhausted};
pub use follow::LogFollower;
pub use frame::FrameBuf;
pub use log::{
    Appended, LogOptions, LogReader, LogWriter, OpenedLog, SEGMENT_LEN_MAX, SEGMENT_LEN_MIN, Spare,
    SpareRequest, WriteLock, begin_behind,
};
pub use loss::{LOSSES_HEADER_LEN, LossBuilder, Losses, Stretch, Substitute, identity};
pub use record::{DiscardReason, Mark, MarkChange, Parents, Record, RecordKind};
pub use recover::{TailHint, TailReport, store_id};
pub use repair::{Survey, Unverified};
pub use segment::{Damage, FrameTimes, Segment, Walk};
pub use trim::{TRIM_HEADER_LEN, TrimPoint, TrimWriter, Trimmed, retire};
