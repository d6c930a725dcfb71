//! The engine's table of known ids, by path, and what the runs name of the rest.

#[path = "../../../../../engine/src/order/known.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "the engine uses all of it")]
pub(crate) mod known;
pub(crate) mod partition;
pub(crate) mod stream;
