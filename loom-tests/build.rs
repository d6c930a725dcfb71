//! Turns the shipped primitives into their modelled selves, for this crate only.
//!
//! A crate-local `cfg` needs no `RUSTFLAGS`, so `cargo test --workspace` runs every model
//! on the same target directory as everything else and can never silently skip them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cfg=thalweg_loom");
}
