//! Loom models of the primitives that the engine ships.
//!
//! The modules below are the engine's own files, compiled a second time with
//! `cfg(thalweg_loom)`, which this crate's `build.rs` sets for this crate alone. So there is
//! no copy that could drift, no flag to forget, and an edit of a shipped file is explored by
//! the next plain `cargo test`. Their unit tests, which need the real types, are in files beside
//! them.

#[path = "../../engine/src/sync/mod.rs"]
pub mod sync;

/// The stages' protocols.
#[path = "../../engine/src/pipeline"]
pub mod pipeline {
    pub mod callbacks;
    pub mod gate;
    pub mod group_commit;
    #[allow(clippy::new_without_default, reason = "private in the engine")]
    pub mod interests;
    pub mod permits;
    pub mod room;
}

/// The table of known events.
#[path = "../../engine/src/order"]
pub mod order {
    #[allow(clippy::len_without_is_empty, reason = "private in the engine, which does not ask")]
    pub mod known;
}

/// How many more preemptions than by default are explored in each execution: what the environment
/// variable `THALWEG_LOOM_DEEP` holds, or 0.
fn further_preemptions() -> usize {
    std::env::var("THALWEG_LOOM_DEEP").map_or(0, |deep| {
        deep.parse().expect("THALWEG_LOOM_DEEP is a number of further preemptions")
    })
}

/// Explores the executions of `model` in which threads are preempted up to `bound` times, or
/// all of them, and fails if there were fewer than `floor`. `THALWEG_LOOM_DEEP` raises the bound.
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

    let bound = bound.map(|bound| bound + further_preemptions());
    // Not loom's: it counts across executions.
    let executions = Arc::new(AtomicUsize::new(0));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound;
    builder.max_branches = 20_000;
    let count = Arc::clone(&executions);
    let start = std::time::Instant::now();
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });

    let executions = executions.load(Ordering::Relaxed);
    let took = start.elapsed().as_secs_f32();
    let bound = bound.map_or_else(|| "none".to_owned(), |bound| bound.to_string());
    println!("{name}: {executions} executions, preemption bound {bound}, {took:.2} s");
    if sync::active_mutant().is_none() {
        assert!(executions >= floor, "{name}: {executions} executions, expected {floor} or more");
    }
}
