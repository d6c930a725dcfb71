//! Measures the main job on generated logs of any size, and the locks it rests on, and checks what
//! it has measured.
//!
//! ```text
//! thalweg-benches scale DIR EVENTS STREAMS [chain|reversed]
//! thalweg-benches locks [compare|bias] [THREADS [ROUNDS]]
//! ```
//!
//! `scale` appends EVENTS events of about 100 bytes over STREAMS streams, waits until they are
//! ordered, reads them all back, closes, opens again, and reads a stream; it prints one line of JSON.
//! Every run checks the number of deliveries and that each event's parent came before it, so a fast
//! wrong answer fails.
//!
//! `locks` compares the engine's reader-biased lock with its peers; see the module of that name.

mod locks;

// The engine's own files, as in `loom-tests`: the lock is private to the engine, and a copy would
// drift. Their unit tests come along.
#[path = "../../engine/src/sync/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the benchmarks use one of the primitives")]
mod sync;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use thalweg::{AppenderOptions, Event, MixedBatch, Options, Store};

type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "usage: thalweg-benches scale DIR EVENTS STREAMS [chain|reversed]
       thalweg-benches locks [compare|bias] [THREADS [ROUNDS]]";

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
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["scale", dir, events, streams] => parse(events, streams)
            .and_then(|(events, streams)| scale(dir.as_ref(), events, streams, Arrival::Chain)),
        ["scale", dir, events, streams, arrival @ ("chain" | "reversed")] => {
            let arrival = if arrival == "chain" { Arrival::Chain } else { Arrival::Reversed };
            parse(events, streams)
                .and_then(|(events, streams)| scale(dir.as_ref(), events, streams, arrival))
        }
        ["locks", ref options @ ..] => locks::run(options),
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

fn parse(events: &str, streams: &str) -> Result<(u64, u64), Failure> {
    let (events, streams) = (events.parse()?, streams.parse()?);
    if streams == 0 || events < streams {
        Err("takes 1 <= STREAMS <= EVENTS".into())
    } else {
        Ok((events, streams))
    }
}

/// Event `number` of the run: its stream, its place in the stream, in the order of arrival.
fn event(number: u64, events: u64, streams: u64, arrival: Arrival) -> (u64, u64) {
    let number = match arrival {
        Arrival::Chain => number,
        Arrival::Reversed => events - 1 - number,
    };
    (number % streams, number / streams)
}

fn scale(dir: &Path, events: u64, streams: u64, arrival: Arrival) -> Result<(), Failure> {
    if dir.exists() {
        return Err(format!("{} is there already", dir.display()).into());
    }
    let sync_us = fdatasync_us(dir)?;
    let store = Store::open(dir)?;
    let begun = Instant::now();
    append(&store, events, streams, arrival)?;
    let appended = begun.elapsed();
    store.wait_committed(store.durable_end())?;
    let ordered = begun.elapsed();
    let stats = store.stats();
    check_counts(&stats, events)?;
    let log_bytes = stats.log_bytes;
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
    let store = Options::new().create(false).open(dir)?;
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
    let disk_bytes = disk_bytes(dir)?;
    println!(
        "{{\"durability\":\"Sync\",\"batch\":{BATCH_EVENTS},\"in_flight\":{BATCHES_IN_FLIGHT},\
         \"cores\":{},\"fdatasync_p50_us\":{sync_us},\"events\":{events},\"streams\":{streams},\"arrival\":\"{arrival:?}\",\
         \"durable_s\":{:.3},\"ordered_s\":{:.3},\"ordered_per_s\":{:.0},\"read_s\":{:.3},\
         \"read_per_s\":{:.0},\"close_s\":{:.3},\"reopen_s\":{:.3},\"stream_tail\":{locals},\
         \"stream_tail_s\":{:.3},\"log_bytes\":{log_bytes},\"disk_bytes\":{disk_bytes},\
         \"anonymous_kib\":{memory_ordered},\"peak_kib\":{memory_peak},\
         \"anonymous_reopened_kib\":{memory_reopened}}}",
        std::thread::available_parallelism().map_or(0, usize::from),
        appended.as_secs_f64(),
        ordered.as_secs_f64(),
        rate(events, ordered),
        read.as_secs_f64(),
        rate(events, read),
        closed.as_secs_f64(),
        reopened.as_secs_f64(),
        stream_read.as_secs_f64(),
    );
    Ok(())
}

fn append(store: &Store, events: u64, streams: u64, arrival: Arrival) -> Result<(), Failure> {
    let mut in_flight = std::collections::VecDeque::new();
    let options = AppenderOptions::new().pipeline(BATCHES_IN_FLIGHT).pipeline_bytes(u64::MAX);
    let appender = store.mixed_appender(options)?;
    let mut batch = MixedBatch::new();
    for number in 0..events {
        let (stream, place) = event(number, events, streams, arrival);
        let parents = place.checked_sub(1).map(|parent| format!("event-{parent}"));
        let payload = format!("{{\"stream\":{stream},\"place\":{place}}}");
        let event = Event::new(payload).id(format!("event-{place}")).parents(parents);
        batch.push(format!("stream-{stream}"), &event)?;
        if batch.len() == BATCH_EVENTS || number + 1 == events {
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
