//! Turns the engine into its simulated self, for this crate only.
//!
//! A crate-local `cfg` needs no `RUSTFLAGS`, so `cargo test --workspace` runs the simulation on the
//! same target directory as everything else.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cfg=thalweg_sim");
}
