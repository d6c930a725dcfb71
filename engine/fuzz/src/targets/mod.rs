//! What the fuzz targets do with their bytes: a plain function each, which libFuzzer calls from
//! `fuzz_targets/`, and the tests of the engine (`tests/hostile_bytes.rs`) with every input that is kept.

pub mod disk;
pub mod fix_up;
pub mod input;
pub mod log;
pub mod store;

/// Does something with bytes, and panics if it goes wrong.
pub type Target = fn(&[u8]);

/// The targets of the engine and of the log. That of the import is in the CLI.
pub const TARGETS: [(&str, Target); 8] = [
    ("frame", log::frame),
    ("record", log::record),
    ("batch", log::batch),
    ("segment_header", store::segment_header),
    ("checkpoint", store::checkpoint),
    ("order_log", store::order_log),
    ("run", store::run),
    ("store", store::store),
];
