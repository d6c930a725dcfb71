//! Thalweg: a store whose log holds the events, opened, and followed until everything is ordered.
//!
//! The log has each event once, with the same id, parents and bytes as SQLite has them, and was appended and synced by
//! a store with its defaults. What was
//! settled is in a checkpoint, as a crash leaves it that comes when the rest is durable and nothing of it
//! in a checkpoint; where nothing was settled, all derived files are thrown away. Thalweg then also
//! delivers the first events of the streams, which are delivered in SQLite's store already, and that
//! counts against it: rates are those of what SQLite has to deliver.
//!
//! The time is from before `Options::open` until `wait_committed` has come to the end of the log. At
//! that moment every event can be read, by its place in the store and in its stream, and by its id.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use thalweg::{Ack, Event, MixedBatch, Options, Store as Log};
use thalweg_wal::name;

use super::{Contender, Done, Setup, Store, Threads};
use crate::Failure;
use crate::event::{archive_of, id, ordinal};
use crate::expected::Strictness;
use crate::machine::{Clock, copy_dir};
use crate::profile::Data;

pub(super) const CONTENDER: Contender = Contender {
    name: "thalweg",
    store: Store::Log,
    threads: Threads::DefaultAndEach,
    strictness: Strictness::Exact,
    is_slow: false,
    is_memory: false,
    run,
};

/// `thalweg::rebuild`, which is what `thalweg order --rebuild` calls. It verifies the whole log before
/// it throws anything away, then discovers everything, also what was settled, and closes with a
/// checkpoint; all of that is in its time.
pub(super) const REBUILD_CONTENDER: Contender = Contender {
    name: "thalweg rebuild()",
    store: Store::Log,
    threads: Threads::Default,
    strictness: Strictness::Exact,
    is_slow: false,
    is_memory: false,
    run: rebuild,
};

/// Events in a batch while the store is prepared.
const BATCH: usize = 1000;
/// How often it is asked whether there is nothing to be delivered.
const FIRST_EVERY: Duration = Duration::from_millis(10);

pub(super) fn prepare(data: &Data, dir: &Path) -> Result<(), Failure> {
    let (settled, rest) = data.arrivals.split_at(data.settled);
    if !settled.is_empty() {
        append(data, settled, dir)?;
    }
    if rest.is_empty() {
        // Closed, as by a process that ended well.
        return Ok(());
    }
    // As if the rest had never come to a checkpoint.
    let aside = dir.with_extension("settled");
    copy_dir(dir, &aside)?;
    append(data, rest, dir)?;
    for name in derived(dir)? {
        std::fs::remove_file(dir.join(name))?;
    }
    for name in derived(&aside)? {
        std::fs::copy(aside.join(&name), dir.join(&name))?;
    }
    Ok(std::fs::remove_dir_all(&aside)?)
}

fn append(data: &Data, events: &[u32], dir: &Path) -> Result<(), Failure> {
    let store = Log::open(dir)?;
    let mut tickets = Vec::new();
    for events in events.chunks(BATCH) {
        let mut batch = MixedBatch::new();
        for &event in events {
            let stream = id(data.streams[event as usize]);
            let parents: Vec<_> = data.parents[event as usize].iter().map(|of| id(*of)).collect();
            let payload = archive_of(event, &stream, &parents);
            batch.push(stream, &Event::new(payload).id(id(event)).parents(parents))?;
        }
        tickets.push(store.submit(batch, Ack::Durable)?);
    }
    for ticket in tickets {
        ticket.wait()?;
    }
    store.wait_committed(store.durable_end())?;
    Ok(store.close()?)
}

/// Names of the files that Thalweg can make again from its log.
fn derived(dir: &Path) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().into_string().map_err(|_| "a name is not text")?;
        names.extend(Some(name).filter(|name| name::kind(name).is_derived()));
    }
    Ok(names)
}

fn options(setup: &Setup) -> Options {
    match setup.threads {
        0 => Options::new(),
        threads => Options::new().scanners(threads).orderers(threads),
    }
}

fn run(setup: &Setup) -> Result<Done, Failure> {
    let mut clock = Clock::start();
    let store = options(setup).create(false).open(&setup.dir)?;
    clock.ready();
    let end = store.durable_end();
    if setup.has_news {
        // If the order has come further meanwhile, this is later than the first, and never earlier.
        let mut news = store.subscribe(store.stats().delivered)?;
        while news.next_timeout(FIRST_EVERY)?.is_none()
            && !store.wait_committed_timeout(end, Duration::ZERO)?
        {}
        clock.first();
    }
    store.wait_committed(end)?;
    let used = clock.stop();
    let order = order(&store)?;
    store.close()?;
    Ok(Done::ordered(used, order))
}

fn rebuild(setup: &Setup) -> Result<Done, Failure> {
    let clock = Clock::start();
    thalweg::rebuild(&setup.dir, options(setup), &|_| ControlFlow::Continue(()))?;
    let used = clock.stop();
    let store = Log::open(&setup.dir)?;
    let order = order(&store)?;
    store.close()?;
    Ok(Done::ordered(used, order))
}

fn order(store: &Log) -> Result<Vec<u32>, Failure> {
    store.read(..)?.map(|event| ordinal(event?.id())).collect()
}
