//! Thalweg's index of known ids alone, for the measurement of `index`.
//!
//! What decides the figures is the engine's own code, included by path and not copied: the table in
//! memory (`order/known.rs`), the runs (`derived/run.rs`), their filters (`derived/filter.rs`), their
//! search and their merges (`derived/runs.rs`), and the primitives below them (`sync`). Its files name
//! a few things of modules that hold the whole machine; those are repeated in `derived/mod.rs`,
//! `order/partition.rs` and `order/stream.rs` here.
//!
//! Who calls that code when is repeated in [`Index`], after `Partition` (look up, insert, forget),
//! `Orderer::mind_memory` and `Keeper` of the engine, with its constants.

#[allow(dead_code, unreachable_pub, reason = "the engine uses all of it")]
mod derived;
mod index;
mod order;
#[path = "../../../../engine/src/sync/mod.rs"]
#[allow(dead_code, unused_imports, missing_docs, reason = "the engine uses all of it")]
mod sync;

pub use index::Index;
