//! Placeholder for the first commit.

// The stages that use these come one by one.
#[allow(dead_code, unused_imports)]
mod sync;
