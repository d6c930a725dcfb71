//! The fuzz targets of Thalweg. See `README.md`. The parser of the import is included by path: the CLI
//! is no library. Skipped by rustfmt, which would look for its tests beside it.

#[allow(missing_docs, dead_code, reason = "the CLI documents and uses it")]
#[rustfmt::skip]
#[path = "../../../cli/src/ndjson.rs"]
pub mod ndjson;
pub mod targets;
