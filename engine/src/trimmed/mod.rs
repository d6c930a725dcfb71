//! What is kept of the part of the log that was trimmed: the machine's state where the log begins now, and what
//! ordering needs of the events before that place.
//!
//! The order is a function of the log from its first record on, so giving up the beginning of the log takes what
//! the machine had made of it by then. That is the [`Base`]: made by the machine itself, which is run over what is
//! going to be trimmed ([`advance`](advance::advance)), and compared with the order that there is, before anything
//! goes. Everything else is derived from the base and the log, as it was from the log alone.
//!
//! * `facts`: for each delivery that was trimmed, what tells its id and its content from others;
//! * `base`: the state, and copies of the few records that are still looked at: held events, and the tips of the
//!   streams;
//! * `advance`: from one base to the next;
//! * `serial`: the serial machine, begun with a base, for whoever checks or repairs the log.
//!
//! None of it can be made again, so none of it is a derived file.

pub(crate) mod advance;
pub(crate) mod base;
pub(crate) mod facts;
pub(crate) mod serial;

pub(crate) use self::base::{Base, Horizon, missing};
pub(crate) use self::serial::Begun;
