//! Derived files: everything that can be made again from the log.
//!
//! * `chunks`: items of fixed length in files of fixed length, written once, read through maps;
//! * `order_log`: the global order, which is also the index by stream;
//! * `checkpoint`: the state of the machine at a position of the log.
//!
//! All of them carry a version, the identity of their store and checksums. None is ever believed
//! over the log: what is missing or wrong is thrown away and made again.

pub(crate) mod checkpoint;
pub(crate) mod chunks;
pub(crate) mod order_log;
