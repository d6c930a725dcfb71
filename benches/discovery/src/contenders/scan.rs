//! The scan alone, beside a plain checksum over the same bytes.
//!
//! A scanner of Thalweg verifies the checksum of every frame and record and reads the headers. Its code
//! is private to the engine, so what is measured is the walk of `thalweg_wal` that it consists of; it
//! then also hashes the stream's name and the event's id, and sorts records by partition, which is not in
//! here. The plain checksum reads the same parts of the same files as one piece each, and knows nothing
//! of frames.
//!
//! A first pass faults the maps in, and those after it are measured, for a moment: this is about
//! processors and memory. With empty caches both are as fast as the disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use thalweg_wal::storage::{MappedFile, OsStorage};
use thalweg_wal::{LogReader, Segment, name};

use super::{Answer, Contender, Done, Setup, Store, Threads};
use crate::Failure;
use crate::cell::Scanned;
use crate::expected::Strictness;
use crate::machine::Clock;

pub(super) const CONTENDER: Contender = Contender {
    name: "scan alone",
    store: Store::Log,
    threads: Threads::Each,
    strictness: Strictness::Exact,
    is_slow: false,
    is_memory: true,
    run: |setup| measure(setup, scan),
};

pub(super) const CRC_CONTENDER: Contender = Contender {
    name: "crc32c alone",
    store: Store::Log,
    threads: Threads::Each,
    strictness: Strictness::Exact,
    is_slow: false,
    is_memory: true,
    run: |setup| measure(setup, checksum),
};

/// How long it is repeated.
const MEASURE: Duration = Duration::from_millis(200);
/// About as much as a thread takes at a time.
const CUT_BYTES: u64 = 1 << 20;

/// A part of a segment, and the map of its file.
struct Cut {
    segment: Arc<Segment>,
    file: Arc<MappedFile>,
    from: u64,
    to: u64,
}

fn measure(
    setup: &Setup,
    pass: fn(&[Cut]) -> Result<Option<u64>, Failure>,
) -> Result<Done, Failure> {
    let cuts = cuts(setup)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(setup.threads).build()?;
    pool.install(|| pass(&cuts))?;
    let (clock, begun) = (Clock::start(), Instant::now());
    let mut passes = 1;
    let records = pool.install(|| pass(&cuts))?;
    while begun.elapsed() < MEASURE {
        pool.install(|| pass(&cuts))?;
        passes += 1;
    }
    let used = clock.stop();
    let bytes = cuts.iter().map(|cut| cut.to - cut.from).sum();
    let answer = Answer::Scanned(Scanned { passes, bytes, records });
    Ok(Done { used, answer, lookups: None })
}

fn cuts(setup: &Setup) -> Result<Vec<Cut>, Failure> {
    let storage = OsStorage::open(&setup.dir)?;
    let mut cuts = Vec::new();
    for segment in LogReader::open(&storage, None)?.segments {
        let (mut from, end) = (segment.first(), segment.end());
        let file =
            MappedFile::open(&storage, &name::segment(segment.number()), end - segment.base())?;
        while from < end {
            let to = segment.cut(from, CUT_BYTES);
            cuts.push(Cut { segment: Arc::clone(&segment), file: Arc::clone(&file), from, to });
            from = to;
        }
    }
    Ok(cuts)
}

fn scan(cuts: &[Cut]) -> Result<Option<u64>, Failure> {
    let count = |cut: &Cut| {
        let mut records = 0;
        for record in cut.segment.walk(cut.from, cut.to) {
            std::hint::black_box(record?.given_id());
            records += 1;
        }
        Ok::<u64, Failure>(records)
    };
    cuts.par_iter().map(count).sum::<Result<u64, _>>().map(Some)
}

fn checksum(cuts: &[Cut]) -> Result<Option<u64>, Failure> {
    cuts.par_iter().for_each(|cut| {
        let [from, to] = [cut.from, cut.to].map(|at| (at - cut.segment.base()) as usize);
        std::hint::black_box(crc32c::crc32c(&cut.file.bytes()[from..to]));
    });
    Ok(None)
}
