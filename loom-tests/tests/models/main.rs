//! Models of the primitives, and the mutants that prove the models can see.
//!
//! Each model is a handful of operations on two to four threads, explored in every order up to
//! a number of preemptions. The bounds are chosen so that everything runs on every change; small
//! models are explored without a bound. `THALWEG_LOOM_DEEP=1` allows one preemption more. The number
//! of executions that each model must reach is about four fifths of what it reached when it was
//! written.

mod completion;
mod event_count;
mod failure;
mod gate;
mod group_commit;
mod interests;
mod known;
mod mutants;
mod permits;
mod pipeline;
mod queue;
mod reader_biased;
mod room;
mod segments;
mod siblings;
mod watermark;
