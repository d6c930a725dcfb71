//! Tells the benchmarks which compiler built them, so that their results say it.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = std::env::var_os("RUSTC").expect("cargo sets it for build scripts");
    let output = Command::new(rustc).arg("--version").output().expect("cargo has just run it");
    println!("cargo:rustc-env=THALWEG_RUSTC={}", String::from_utf8_lossy(&output.stdout).trim());
}
