//! The order: the serial machine of [`crate::reference`], one partition of the streams at a time.
//!
//! * `keys`: streams and ids as 64-bit keys, and the partition that owns a stream;
//! * `known`: every known event of a partition by key; read by anybody without a lock;
//! * `tips`: the delivered events of a stream that have no delivered child;
//! * `held`: events that wait for parents, and how they are released;
//! * `extract`: what the machine looks at of an event, copied out of the log;
//! * `stream`: the state of one stream;
//! * `partition`: the machine, run over one partition's share of a window;
//! * `cohort`: the same, over the records of a stream that stand together;
//! * `entries`: where partitions put the entries of a window for the order log;
//! * `cold`: what of a partition is not in memory;
//! * `cursors`: how far consumers have come;
//! * `window`: the partitions' results put together: a prefix sum over trigger positions.
//!
//! Deliberately not here: threads of its own, and writing. A partition is plain data with one owner; it
//! finds records and entries through a `Lookup`, and runs on the pool that it is called in.

pub(super) mod cohort;
pub(crate) mod cold;
#[cfg(test)]
mod cold_tests;
pub(crate) mod cursors;
pub(crate) mod entries;
pub(crate) mod extract;
pub(crate) mod held;
pub(crate) mod keys;
#[allow(unreachable_pub, reason = "the models compile this file as part of another crate")]
pub(crate) mod known;
#[cfg(test)]
mod known_tests;
pub(crate) mod partition;
pub(crate) mod stream;
pub(crate) mod tips;
pub(crate) mod window;
