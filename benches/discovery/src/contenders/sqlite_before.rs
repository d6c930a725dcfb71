//! SQLite, before: one task that reads, orders and writes in turn, 1,000 events at a time.

use std::collections::HashMap;

use super::sqlite::{Db, PLAIN, Stream};
use super::{Contender, Done, Setup, Store, Threads};
use crate::Failure;
use crate::event::Cid;
use crate::expected::Strictness;
use crate::machine::Clock;

pub(super) const CONTENDER: Contender = Contender {
    name: "sqlite before",
    store: Store::Sqlite,
    threads: Threads::Default,
    strictness: Strictness::Causal,
    is_slow: true,
    is_memory: false,
    run,
};

/// Events that are read at a time.
const BATCH: usize = 1000;

fn run(setup: &Setup) -> Result<Done, Failure> {
    let mut clock = Clock::start();
    let mut writer = Db::open(&PLAIN, &setup.dir, true)?;
    let reader = Db::open(&PLAIN, &setup.dir, false)?;
    let mut next = writer.next_number()?;
    let mut streams: HashMap<Cid, Stream> = HashMap::new();
    let mut above = 0;
    loop {
        let found = reader.undelivered(above, BATCH, 1, 0)?;
        let is_last = found.len() < BATCH;
        for found in found {
            above = above.max(found.row);
            streams.entry(found.header.stream).or_default().add(found);
        }
        let mut ready = Vec::new();
        for stream in streams.values_mut().filter(|stream| stream.is_touched) {
            ready.extend(stream.order(&reader)?);
        }
        writer.mark(&ready, &mut next)?;
        if !ready.is_empty() {
            clock.first();
        }
        streams.retain(|_, stream| !stream.is_touched || stream.prune());
        if is_last {
            break;
        }
    }
    let used = clock.stop();
    let lookups = Some(reader.lookups());
    Ok(Done { lookups, ..Done::ordered(used, reader.order()?) })
}
