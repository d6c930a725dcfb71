//! Draft.
mod derived;
mod error;
mod event;
mod open;
mod options;
mod order;
mod pipeline;
mod questions;
pub mod reference;
mod store;
#[allow(dead_code, unused_imports)]
mod sync;

pub use error::{
    AppendFailure, BatchRefused, Cause, CloseError, LogOpenError, MixedBatchRefused, OpenError,
    ReadError, Refusal, SubmitError,
};
pub use event::{Ack, Batch, Event, MixedBatch, NewEvent, OwnedEvent, Placement, Receipt};
pub use options::{Durability, Options};
pub use pipeline::appender::{Appender, Ticket};
pub use pipeline::subscriber::{Read, StreamView, Subscription};
pub use questions::{HeldEvent, Root, RootKind, StreamInfo, Why, WhyHeld};
pub use store::{Stats, Store};
pub use thalweg_wal::{Damage, LimitError, storage};
