//! The pipeline, in the direction of flow.
//!
//! ```text
//! appender  ->  queue  ->  writer  ->  scanner  ->  orderer  ->  committer  ->  subscriber
//! (user)        flume      1 thread    N threads    1 + pool     1 thread       (user)
//!                             |                                     |
//!                             +-------->  callbacks, 1 thread  <----+
//! ```
//!
//! Each stage is one file. Between appender and queue are `lane`, what the handles of an appender share;
//! `permits` and `room`, where an append waits; and `gate`, which closing and sealing shut.
//! `group_commit` is the writer's loop. What the stages share is in `core`; how a stage finds a record by
//! position, or an entry by global sequence, is in `lookup`; where subscribers of one stream wait is in
//! `arrivals`; `keeper` does the slow work on the side:
//! spare segments and checkpoints. `threads` starts, names and pins everything.

pub(crate) mod appender;
pub(crate) mod lane;
#[allow(unreachable_pub, reason = "the models compile this file as part of another crate")]
pub(crate) mod permits;
#[cfg(test)]
mod permits_tests;
#[allow(unreachable_pub, reason = "the models compile this file as part of another crate")]
pub(crate) mod room;
#[cfg(test)]
mod room_tests;

#[allow(unreachable_pub, reason = "the models compile this file as part of another crate")]
pub(crate) mod gate;
#[cfg(test)]
mod gate_tests;

#[allow(unreachable_pub, reason = "the models compile this file as part of another crate")]
pub(crate) mod group_commit;
#[cfg(test)]
mod group_commit_tests;
pub(crate) mod writer;

pub(crate) mod scanner;

pub(crate) mod orderer;

pub(crate) mod committer;

#[allow(unreachable_pub, reason = "the models compile this file as part of another crate")]
pub(crate) mod callbacks;

pub(crate) mod subscriber;
pub(crate) mod subscription;

pub(crate) mod arrivals;
pub(crate) mod core;
#[allow(unreachable_pub, reason = "the models compile this file as part of another crate")]
pub(crate) mod interests;
pub(crate) mod keeper;
pub(crate) mod lookup;
pub(crate) mod threads;
