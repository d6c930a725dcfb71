//! The practical bound: what ordering takes when everything around it is free.
//!
//! The records are in memory and parsed, under keys that are known not to collide. They are split by
//! stream on all cores (rayon), sorted in their parts, and put in order by Kahn's algorithm
//! (Kahn 1962, "Topological sorting of large networks"), each part by itself. Then the order is
//! written, eight bytes for each event, with one `fdatasync`.
//!
//! It does not read, check or parse a log, keeps no place in a stream and no index, knows no duplicates,
//! and comes to another order for another number of parts. Nothing that does those things can be
//! expected to be as fast.

use rayon::prelude::*;

use super::records::{Record, Records, write_order};
use super::{Contender, Done, Setup, Store, Threads};
use crate::Failure;
use crate::expected::Strictness;
use crate::machine::Clock;

pub(super) const CONTENDER: Contender = Contender {
    name: "bound",
    store: Store::Records,
    threads: Threads::Default,
    strictness: Strictness::Causal,
    is_slow: false,
    is_memory: true,
    run,
};

/// Parts that the records are split into by stream.
const PARTS: usize = 256;
/// Records that are split at a time.
const CHUNK: usize = 1 << 14;

fn run(setup: &Setup) -> Result<Done, Failure> {
    let records = Records::load(&setup.dir)?;
    // The threads of the pool are there, as an engine's would be.
    rayon::broadcast(|_| ());
    let clock = Clock::start();
    let parts = split(&records.records);
    let orders: Vec<Vec<u64>> =
        parts.into_par_iter().map(|part| order_part(&records, part)).collect();
    let order = orders.concat();
    write_order(&setup.dir, &order)?;
    let used = clock.stop();
    Ok(Done::ordered(used, records.ordinals(&order)))
}

/// A record's stream and key, and its place among all.
type Entry = (u64, u64, u32);

fn split(records: &[Record]) -> Vec<Vec<Entry>> {
    let split_chunk = |(chunk, records): (usize, &[Record])| {
        let part = |_| Vec::with_capacity(2 * CHUNK / PARTS);
        let mut parts: Vec<Vec<Entry>> = (0..PARTS).map(part).collect();
        for (index, record) in records.iter().enumerate() {
            let place = (chunk * CHUNK + index) as u32;
            parts[(record.stream >> 56) as usize].push((record.stream, record.key, place));
        }
        parts
    };
    let chunks: Vec<Vec<Vec<Entry>>> =
        records.par_chunks(CHUNK).enumerate().map(split_chunk).collect();
    let join = |part: usize| {
        let pieces: Vec<&[Entry]> = chunks.iter().map(|parts| &parts[part][..]).collect();
        pieces.concat()
    };
    (0..PARTS).into_par_iter().map(join).collect()
}

/// Places of the records of one part, parents first.
fn order_part(records: &Records, mut entries: Vec<Entry>) -> Vec<u64> {
    entries.sort_unstable();
    let mut missing = vec![0_u32; entries.len()];
    let mut edges = Vec::with_capacity(entries.len());
    let mut first = 0;
    for stream in entries.chunk_by(|one, other| one.0 == other.0) {
        for (index, (_, _, place)) in stream.iter().enumerate() {
            for parent in records.parents(&records.records[*place as usize]) {
                missing[first + index] += 1;
                // A parent that is not there keeps its child waiting for ever.
                if let Ok(parent) = stream.binary_search_by_key(parent, |entry| entry.1) {
                    edges.push(((first + parent) as u32, (first + index) as u32));
                }
            }
        }
        first += stream.len();
    }
    kahn(&entries, missing, edges)
}

fn kahn(entries: &[Entry], mut missing: Vec<u32>, edges: Vec<(u32, u32)>) -> Vec<u64> {
    let children = Children::new(entries.len(), &edges);
    let mut ready: Vec<u32> = (0..entries.len() as u32).collect();
    ready.retain(|entry| missing[*entry as usize] == 0);
    let mut next = 0;
    while let Some(&entry) = ready.get(next) {
        next += 1;
        for &child in children.of(entry) {
            missing[child as usize] -= 1;
            if missing[child as usize] == 0 {
                ready.push(child);
            }
        }
    }
    ready.into_iter().map(|entry| u64::from(entries[entry as usize].2)).collect()
}

/// The children of each entry, one list behind the other.
struct Children {
    ends: Vec<u32>,
    children: Vec<u32>,
}

impl Children {
    fn new(entry_count: usize, edges: &[(u32, u32)]) -> Self {
        let mut ends = vec![0; entry_count + 1];
        edges.iter().for_each(|(parent, _)| ends[*parent as usize + 1] += 1);
        for entry in 0..entry_count {
            ends[entry + 1] += ends[entry];
        }
        let mut children = vec![0; edges.len()];
        // Each list is filled from its begin, which so becomes its end.
        for (parent, child) in edges {
            let end = &mut ends[*parent as usize];
            children[*end as usize] = *child;
            *end += 1;
        }
        Children { ends, children }
    }

    fn of(&self, entry: u32) -> &[u32] {
        let entry = entry as usize;
        let begin = if entry == 0 { 0 } else { self.ends[entry - 1] };
        &self.children[begin as usize..self.ends[entry] as usize]
    }
}
