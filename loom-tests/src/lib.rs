//! Loom models of the primitives that the engine ships.
//!
//! The modules below are the engine's own files, compiled a second time with
//! `cfg(thalweg_loom)`, which this crate's `build.rs` sets for this crate alone. So there is
//! no copy that could drift, no flag to forget, and an edit of a shipped file is explored by
//! the next plain `cargo test`. Their unit tests, which need the real types, are in files beside
//! them.

#[path = "../../engine/src/sync/mod.rs"]
pub mod sync;

#[path = "../../engine/src/pipeline/permits.rs"]
pub mod permits;

#[allow(clippy::len_without_is_empty, reason = "private in the engine, which does not ask")]
#[path = "../../engine/src/order/known.rs"]
pub mod known;

/// Explores the executions of `model` in which threads are preempted up to `bound` times, or
/// all of them, and fails if there were fewer than `floor`.
///
/// The floor is there because a model can go blind without failing: one whose set-up takes the
/// path under test out of reach passes after a handful of executions. It is not checked in a
/// mutant run, which must fail for a better reason.
///
/// # Panics
///
/// As loom reports: on a failed assertion, a data race, a deadlock or a leak in any execution.
/// A deadlock may end the process.
pub fn explore(
    name: &str,
    bound: Option<usize>,
    floor: usize,
    model: impl Fn() + Send + Sync + 'static,
) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    // Not loom's: it counts across executions.
    let executions = Arc::new(AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound;
    builder.max_branches = 20_000;
    let count = Arc::clone(&executions);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });

    let executions = executions.load(Ordering::Relaxed);
    let bound = bound.map_or_else(|| "none".to_owned(), |bound| bound.to_string());
    println!("{name}: {executions} executions, preemption bound {bound}");
    if sync::active_mutant().is_none() {
        assert!(executions >= floor, "{name}: {executions} executions, expected {floor} or more");
    }
}
