//! Measures the main job on generated logs of any size, and the locks it rests on, and checks what
//! it has measured.
//!
//! ```text
//! thalweg-benches scale DIR EVENTS STREAMS [chain|reversed|shuffled [MEMORY_MIB]]
//! thalweg-benches locks [compare|bias] [THREADS [ROUNDS]]
//! thalweg-benches consumers [OPTION VALUE]...
//! thalweg-benches readahead DIR [MIB [THREADS [ROUNDS]]]
//! ```
//!
//! `scale` appends EVENTS events of about 100 bytes over STREAMS streams, waits until they are
//! ordered, reads them all back, closes, opens again, reads a stream, and makes the order again from the
//! log alone; it prints one line of JSON. MEMORY_MIB is the store's `memory_budget`.
//! Every run checks the number of deliveries and that each event's parent came before it, so a fast
//! wrong answer fails.
//!
//! `locks` compares the engine's reader-biased lock with its peers; see the module of that name.
//!
//! `consumers` measures how soon subscribers and followers see an event, and how fast they catch up; see the
//! module of that name, and `consumers --help`.
//!
//! `readahead` compares ways to read a long log once; see the module of that name.

mod consumers;
mod locks;
mod readahead;

// The engine's own files, as in `loom-tests`: the lock is private to the engine, and a copy would
// drift. Their unit tests come along.
#[path = "../../engine/src/sync/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the benchmarks use one of the primitives")]
mod sync;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use thalweg::{AppenderOptions, Event, MixedBatch, Options, Store};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const USAGE: &str =
    "usage: thalweg-benches scale DIR EVENTS STREAMS [chain|reversed|shuffled [MEMORY_MIB]]
       thalweg-benches locks [compare|bias] [THREADS [ROUNDS]]
       thalweg-benches consumers [OPTION VALUE]...
       thalweg-benches readahead DIR [MIB [THREADS [ROUNDS]]]";

/// Events of one batch.
const BATCH_EVENTS: usize = 1024;
/// Batches under way at a time.
const BATCHES_IN_FLIGHT: usize = 16;

/// In which order the events of a stream arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    /// Parents first.
    Chain,
    /// Children first: nothing is delivered before the last event.
    Reversed,
    /// In no order at all: half of the events wait, on average, when most have arrived.
    Shuffled,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["scale", dir, events, streams, ref options @ ..] => {
            Load::parse(events, streams, options).and_then(|load| scale(dir.as_ref(), load))
        }
        ["locks", ref options @ ..] => locks::run(options),
        ["consumers", ref options @ ..] => consumers(options),
        ["readahead", ref options @ ..] => readahead::run(options),
        // `consumers` starts this one.
        [consumers::follow::CHILD, ref words @ ..] => {
            consumers::follow::child(&contenders(), words)
        }
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("thalweg-benches: {error}");
            ExitCode::FAILURE
        }
    }
}

fn contenders() -> [consumers::Contender; 1] {
    // All crates of the workspace have one version.
    [consumers::thalweg::contender(env!("CARGO_PKG_VERSION"))]
}

fn consumers(words: &[&str]) -> Result<(), Failure> {
    if words == ["--help"] {
        print!("{}", consumers::USAGE);
        return Ok(());
    }
    let options = consumers::Options::parse(words)?;
    let sync_us = fdatasync_us(&options.dir.join("consumers"))?;
    let machine = locks::Machine::look().json();
    let machine = format!("{{{machine},\"fdatasync_p50_us\":{sync_us}}}");
    consumers::run(&options, &contenders(), &machine)
}

/// What `scale` appends, and to what kind of store.
#[derive(Debug, Clone, Copy)]
struct Load {
    events: u64,
    streams: u64,
    arrival: Arrival,
    memory_mib: Option<u64>,
}

impl Load {
    fn parse(events: &str, streams: &str, options: &[&str]) -> Result<Self, Failure> {
        let (arrival, memory_mib) = match *options {
            [] => ("chain", None),
            [arrival] => (arrival, None),
            [arrival, memory] => (arrival, Some(memory.parse()?)),
            _ => return Err(USAGE.into()),
        };
        let arrival = match arrival {
            "chain" => Arrival::Chain,
            "reversed" => Arrival::Reversed,
            "shuffled" => Arrival::Shuffled,
            _ => return Err(USAGE.into()),
        };
        let (events, streams) = (events.parse()?, streams.parse()?);
        if streams == 0 || events < streams {
            return Err("takes 1 <= STREAMS <= EVENTS".into());
        }
        Ok(Load { events, streams, arrival, memory_mib })
    }

    fn options(self) -> Options {
        match self.memory_mib {
            Some(mib) => Options::new().memory_budget(mib << 20),
            None => Options::new(),
        }
    }

    /// Event `number` of the run: its stream, its place in the stream, in the order of arrival.
    fn event(self, number: u64) -> (u64, u64) {
        let number = match self.arrival {
            Arrival::Chain => number,
            Arrival::Reversed => self.events - 1 - number,
            Arrival::Shuffled => shuffled(number, self.events),
        };
        (number % self.streams, number / self.streams)
    }
}

/// Where `number` comes to stand when the numbers below `count` are shuffled, always in the same way: a
/// Feistel network over the next power of four, walked until it is back below `count` (J. Black and
/// P. Rogaway, "Ciphers with arbitrary finite domains", 2002). It needs no memory.
fn shuffled(mut number: u64, count: u64) -> u64 {
    let half = count.next_power_of_two().trailing_zeros().div_ceil(2);
    let mask = (1 << half) - 1;
    loop {
        let (mut left, mut right) = (number >> half, number & mask);
        for round in 0..4_u64 {
            let mixed = (right + (round << 40) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            (left, right) = (right, left ^ ((mixed ^ (mixed >> 29)) >> 7 & mask));
        }
        number = left << half | right;
        if number < count {
            return number;
        }
    }
}

fn scale(dir: &Path, load: Load) -> Result<(), Failure> {
    let Load { events, streams, arrival, .. } = load;
    if dir.exists() {
        return Err(format!("{} is there already", dir.display()).into());
    }
    let sync_us = fdatasync_us(dir)?;
    let store = load.options().open(dir)?;
    let begun = Instant::now();
    append(&store, load)?;
    let appended = begun.elapsed();
    store.wait_committed(store.durable_end())?;
    let ordered = begun.elapsed();
    let stats = store.stats();
    check_counts(&stats, events)?;
    let (log_bytes, state_bytes) = (stats.log_bytes, stats.memory);
    let memory_ordered = memory("RssAnon");

    let begun = Instant::now();
    read_all(&store, events, streams)?;
    let read = begun.elapsed();
    let begun = Instant::now();
    store.close()?;
    let closed = begun.elapsed();
    drop(store);
    let memory_peak = memory("VmHWM");

    let begun = Instant::now();
    let store = load.options().create(false).open(dir)?;
    let opened = begun.elapsed();
    store.wait_committed(store.durable_end())?;
    let reopened = begun.elapsed();
    check_counts(&store.stats(), events)?;
    let memory_reopened = memory("RssAnon");
    let begun = Instant::now();
    let view = store.stream("stream-0")?.ok_or("stream-0 is gone")?;
    let mut locals = 0;
    for event in view.read(view.len() / 2..)? {
        assert_eq!(event?.local(), view.len() / 2 + locals);
        locals += 1;
    }
    assert_eq!(locals, view.len() - view.len() / 2);
    let stream_read = begun.elapsed();
    store.close()?;
    drop(store);
    let disk_bytes = disk_bytes(dir)?;
    let begun = Instant::now();
    let rebuilt = thalweg::rebuild(dir, load.options(), &|_| std::ops::ControlFlow::Continue(()))?;
    let rebuild = begun.elapsed();
    assert_eq!((rebuilt.delivered, rebuilt.held), (events, 0));
    let budget = load.memory_mib.map_or(String::from("null"), |mib| mib.to_string());
    println!(
        "{{\"durability\":\"Sync\",\"batch\":{BATCH_EVENTS},\"in_flight\":{BATCHES_IN_FLIGHT},\
         \"cores\":{},\"fdatasync_p50_us\":{sync_us},\"events\":{events},\"streams\":{streams},\"arrival\":\"{arrival:?}\",\
         \"durable_s\":{:.3},\"ordered_s\":{:.3},\"ordered_per_s\":{:.0},\"read_s\":{:.3},\
         \"read_per_s\":{:.0},\"close_s\":{:.3},\"reopen_s\":{:.3},\"stream_tail\":{locals},\
         \"stream_tail_s\":{:.3},\"log_bytes\":{log_bytes},\"disk_bytes\":{disk_bytes},\
         \"anonymous_kib\":{memory_ordered},\"peak_kib\":{memory_peak},\
         \"anonymous_reopened_kib\":{memory_reopened},\"memory_mib\":{budget},\"opened_s\":{:.3},\
         \"state_bytes\":{state_bytes},\"rebuild_s\":{:.3},\"rebuild_per_s\":{:.0}}}",
        std::thread::available_parallelism().map_or(0, usize::from),
        appended.as_secs_f64(),
        ordered.as_secs_f64(),
        rate(events, ordered),
        read.as_secs_f64(),
        rate(events, read),
        closed.as_secs_f64(),
        reopened.as_secs_f64(),
        stream_read.as_secs_f64(),
        opened.as_secs_f64(),
        rebuild.as_secs_f64(),
        rate(events, rebuild),
    );
    Ok(())
}

fn append(store: &Store, load: Load) -> Result<(), Failure> {
    let mut in_flight = std::collections::VecDeque::new();
    let options = AppenderOptions::new().pipeline(BATCHES_IN_FLIGHT).pipeline_bytes(u64::MAX);
    let appender = store.mixed_appender(options)?;
    let mut batch = MixedBatch::new();
    for number in 0..load.events {
        let (stream, place) = load.event(number);
        let parents = place.checked_sub(1).map(|parent| format!("event-{parent}"));
        let payload = format!("{{\"stream\":{stream},\"place\":{place}}}");
        let event = Event::new(payload).id(format!("event-{place}")).parents(parents);
        batch.push(format!("stream-{stream}"), &event)?;
        if batch.len() == BATCH_EVENTS || number + 1 == load.events {
            in_flight.push_back(appender.submit(std::mem::take(&mut batch))?);
            if in_flight.len() == BATCHES_IN_FLIGHT {
                in_flight.pop_front().expect("not empty").wait()?;
            }
        }
    }
    in_flight.into_iter().try_for_each(|ticket| ticket.wait().map(drop))?;
    Ok(())
}

/// Reads everything, and checks that each stream's events come in their only causal order.
fn read_all(store: &Store, events: u64, streams: u64) -> Result<(), Failure> {
    let mut next = vec![0; streams as usize];
    let mut count = 0;
    for event in store.read(..)? {
        let event = event?;
        let stream: usize = text(event.stream())?.trim_start_matches("stream-").parse()?;
        let place: u64 = text(event.id())?.trim_start_matches("event-").parse()?;
        if next[stream] != place || event.local() != place || event.global() != count {
            return Err(format!("{event:?} is out of order").into());
        }
        next[stream] += 1;
        count += 1;
    }
    if count == events {
        Ok(())
    } else {
        Err(format!("{count} of {events} events were read").into())
    }
}

fn text(bytes: &[u8]) -> Result<&str, Failure> {
    Ok(std::str::from_utf8(bytes)?)
}

fn check_counts(stats: &thalweg::Stats, events: u64) -> Result<(), Failure> {
    if (stats.delivered, stats.held) == (events, 0) {
        return Ok(());
    }
    Err(format!("{} delivered and {} held of {events}", stats.delivered, stats.held).into())
}

fn rate(events: u64, time: Duration) -> f64 {
    events as f64 / time.as_secs_f64()
}

/// Median time of a 4 KiB write with `fdatasync` to zero-filled space beside `dir`, in microseconds.
fn fdatasync_us(dir: &Path) -> Result<u128, Failure> {
    use std::os::unix::fs::FileExt;
    const WRITES: usize = 300;
    let page = [1; 4096];
    let path = dir.with_extension("fdatasync");
    let file = std::fs::File::create(&path)?;
    file.write_all_at(&vec![0; WRITES * page.len()], 0)?;
    file.sync_all()?;
    let mut times = Vec::with_capacity(WRITES);
    for write in 0..WRITES {
        let begun = Instant::now();
        file.write_all_at(&page, (write * page.len()) as u64)?;
        file.sync_data()?;
        times.push(begun.elapsed().as_micros());
    }
    std::fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(times[WRITES / 2])
}

/// A line of this process's status, in KiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|other| other.strip_prefix(line)?.strip_prefix(':'));
    found.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Bytes that the files of the store take on the device.
fn disk_bytes(dir: &Path) -> Result<u64, Failure> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        bytes += entry?.metadata()?.blocks() * 512;
    }
    Ok(bytes)
}
