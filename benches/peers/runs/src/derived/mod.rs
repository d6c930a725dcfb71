//! The engine's runs, by path. Skipped by rustfmt, which would look for their tests beside this file.

#[rustfmt::skip]
#[path = "../../../../../engine/src/derived/filter.rs"]
pub(crate) mod filter;
#[rustfmt::skip]
#[path = "../../../../../engine/src/derived/run.rs"]
pub(crate) mod run;
#[rustfmt::skip]
#[path = "../../../../../engine/src/derived/runs.rs"]
pub(crate) mod runs;

/// As in the engine's `derived/mod.rs`.
#[inline]
pub(crate) fn item_crc(index: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.to_le_bytes()), bytes)
}
