//! Stores that are trimmed for a long time, and by many at once.
//!
//! `THALWEG_ROUNDS=100` turns the log over a hundred times, instead of ten.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{Rng, SOON, append_every_kind, check, expected, shared, soon};
use faulty::{Fault, Faulty, Op};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{
    Ack, AppenderOptions, Batch, Event, MixedBatch, Options, ReadError, Store, Trim, TrimError,
};
use thalweg_wal::name;

const MIB: u64 = 1 << 20;

fn options() -> Options {
    Options::new().segment_bytes(MIB).scanners(1).orderers(1)
}

fn all() -> Trim {
    Trim::new().before(u64::MAX).past_cursors()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < 3 * SOON, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes on the disk, of the log and of all else.
fn disk_usage(dir: &Path) -> (u64, u64) {
    let (mut log, mut other) = (0, 0);
    for entry in std::fs::read_dir(dir).expect("lists") {
        let entry = entry.expect("an entry");
        // It may be gone by now.
        let Ok(metadata) = entry.metadata() else { continue };
        let file = entry.file_name().into_string().expect("plain");
        let bytes = metadata.blocks() * 512;
        match name::kind(&file) {
            name::Kind::Segment(_) | name::Kind::SegmentNew(_) => log += bytes,
            _ => other += bytes,
        }
    }
    (log, other)
}

/// Bytes of files without a name that this process has mapped.
fn mapped_without_name(dir: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux");
    let below = dir.to_str().expect("plain");
    let is_gone = |line: &&str| line.ends_with("(deleted)") && line.contains(below);
    let len = |line: &str| {
        let (range, _) = line.split_once(' ').expect("a range");
        let (from, to) = range.split_once('-').expect("a range");
        let number = |text| u64::from_str_radix(text, 16).expect("a number");
        number(to) - number(from)
    };
    maps.lines().filter(is_gone).map(len).sum()
}

/// The log takes the same space however much goes through it, while consumers with and without cursors and a follower
/// read along; what is kept besides is so much for each event that went and for each stream.
#[test]
fn a_store_that_is_kept_to_its_retention_takes_constant_space() {
    const KEEP: u64 = 4 * MIB;
    // At rest: what is kept, the rest of the segment that it begins in, the one that is written, and the one that is made ready ...
    const LOG_AT_REST: u64 = KEEP + 3 * MIB;
    // ... and while a trim is under way, the one that goes.
    const LOG_MAX: u64 = LOG_AT_REST + MIB;
    const PAYLOAD: usize = 400;
    const STREAMS: u64 = 200;
    let rounds = std::env::var("THALWEG_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let total = rounds.unwrap_or(10_u64) * KEEP;
    let dir = tempfile::tempdir().expect("a directory");
    let store = options().retention(Trim::new().keep_bytes(KEEP)).open(dir.path()).expect("opens");
    let follower = Store::open_follower(dir.path()).expect("follows");
    let cursor = store.cursor("consumer").expect("a cursor");
    cursor.commit(0).expect("commits");
    let done = AtomicBool::new(false);
    let (appended, log_max, unnamed_max) =
        (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (store, follower, cursor, dir) = (&store, &follower, &cursor, dir.path());
        let (done, appended) = (&done, &appended);
        let consume = |mut events: thalweg::Subscription, with_cursor: bool| {
            let mut next = 0;
            loop {
                let ended = done.load(Ordering::SeqCst);
                match events.next_timeout(Duration::from_millis(10)) {
                    Ok(Some(event)) => {
                        assert_eq!(event.global(), next);
                        assert_eq!(event.payload().len(), PAYLOAD);
                        next += 1;
                        if with_cursor && next % 100 == 0 {
                            cursor.commit_relaxed(next).expect("commits");
                        }
                    }
                    Ok(None) if ended && next == store.delivered() => break,
                    Ok(None) if with_cursor => cursor.commit_relaxed(next).expect("commits"),
                    Ok(None) => {}
                    Err(ReadError::Trimmed { first }) if !with_cursor => {
                        assert!(first > next);
                        next = first;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        scope.spawn(move || consume(store.subscribe(cursor).expect("subscribes"), true));
        scope.spawn(move || consume(store.subscribe(0).expect("subscribes"), false));
        scope.spawn(move || consume(follower.subscribe(0).expect("subscribes"), false));
        let (log_max, unnamed_max) = (&log_max, &unnamed_max);
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                let unnamed = mapped_without_name(dir);
                let (log, _) = disk_usage(dir);
                log_max.fetch_max(log, Ordering::Relaxed);
                unnamed_max.fetch_max(unnamed, Ordering::Relaxed);
                assert!(log <= LOG_MAX, "the log takes {log} bytes");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let mut number = 0_u64;
        let mut trimmed_for = 0;
        while store.durable_end() < total {
            let mut batch = MixedBatch::new();
            for _ in 0..50 {
                let event = Event::new(vec![number as u8; PAYLOAD]);
                let stream = format!("stream {}", number * 7919 % STREAMS);
                batch.push(stream, &event).expect("within the limits");
                number += 1;
            }
            appended.fetch_add(50, Ordering::SeqCst);
            let receipt =
                store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
            // A retention slows nobody down: who must not exceed it waits for it. Once in a segment is enough.
            if receipt.end / MIB > trimmed_for {
                trimmed_for = receipt.end / MIB;
                until("the retention keeps up", || store.stats().log_bytes <= KEEP + MIB + MIB / 2);
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    let first = store.first();
    let delivered = store.delivered();
    assert_eq!(delivered, appended.into_inner());
    assert!(first > delivered * 3 / 4, "{first} of {delivered}");
    until("the log is at rest", || disk_usage(dir.path()).0 <= LOG_AT_REST);
    until("all that was trimmed gives its space back", || mapped_without_name(dir.path()) == 0);
    store.close().expect("closes");
    let (log, other) = disk_usage(dir.path());
    println!(
        "{} MiB appended, {first} of {delivered} events trimmed; the log took {:?} KiB at most, and {:?} KiB that had no name \
         any more; {} KiB now, and {} KiB besides",
        total / MIB,
        log_max.into_inner() >> 10,
        unnamed_max.into_inner() >> 10,
        log >> 10,
        other >> 10,
    );
    kept_besides(dir.path(), first, STREAMS);
}

/// What is kept of what was trimmed is bounded: so much for an event, and so much for a stream.
fn kept_besides(dir: &Path, trimmed: u64, streams: u64) {
    let (mut facts, mut runs, mut base) = (0, 0, 0);
    for entry in std::fs::read_dir(dir).expect("lists") {
        let entry = entry.expect("an entry");
        let file = entry.file_name().into_string().expect("plain");
        let metadata = entry.metadata().expect("is there");
        match name::kind(&file) {
            name::Kind::Facts(_) => facts += metadata.blocks() * 512,
            name::Kind::FactsRun(_) | name::Kind::Run(_) => runs += metadata.len(),
            name::Kind::Trimmed => base += metadata.len(),
            _ => {}
        }
    }
    println!(
        "of {trimmed} events and {streams} streams are kept: facts {facts}, runs {runs}, base {base} bytes"
    );
    // A chunk of facts is taken whole.
    assert!(facts <= trimmed * 24 + (3 << 20) / 2 + 8192, "{facts}");
    assert!(runs <= trimmed * 2 * 22 + streams * 400 + 65536, "{runs}");
    assert!(base <= streams * 512 + 65536, "{base}");
}

/// Trims, checkpoints, backups, appends and reads at once, and then the end, whatever is under way. Nobody hangs, and nothing is
/// written once the end was told.
#[test]
fn everything_at_once_ends_and_nothing_is_written_afterwards() {
    let mut rng = Rng::from_env();
    let storage = Faulty::default();
    for round in 0..10 {
        let retention = Trim::new().keep_bytes(2 * MIB);
        let mut options = options();
        if round % 2 == 0 {
            options = options.retention(retention);
        }
        let store = options.open_on(Arc::new(storage.clone())).expect("opens");
        let first = store.first();
        let ended = Arc::new(AtomicBool::new(false));
        type Work = fn(&Store, u64) -> bool;
        let works: [Work; 6] = [
            |store, number| {
                let mut batch = Batch::new();
                batch.push(Event::new(vec![number as u8; 200_000]));
                let appender = store.appender_with("s", AppenderOptions::new());
                appender.is_ok_and(|appender| {
                    appender.submit(batch).is_ok_and(|ticket| ticket.wait().is_ok())
                })
            },
            |store, _| store.trim(&all()).is_ok(),
            |store, number| store.trim(&Trim::new().before(number * 3)).is_ok(),
            |store, _| store.checkpoint().is_ok(),
            |store, _| {
                let read = store.read(..).expect("begins where the log does");
                read.take(20)
                    .all(|event| event.is_ok() || matches!(event, Err(ReadError::Trimmed { .. })))
            },
            |store, _| store.held().is_ok() && store.streams().is_ok(),
        ];
        let threads: Vec<_> = works
            .into_iter()
            .map(|work| {
                let (store, ended) = (store.clone(), Arc::clone(&ended));
                std::thread::spawn(move || {
                    for number in 0.. {
                        if ended.load(Ordering::SeqCst) || !work(&store, number) {
                            break;
                        }
                    }
                    soon("dropping a handle", move || drop(store));
                })
            })
            .collect();
        std::thread::sleep(Duration::from_micros(rng.below(150_000)));
        let is_closed = round % 3 != 0;
        if is_closed {
            let handle = store.clone();
            soon("closing", move || handle.close().expect("closes"));
            let ops = storage.ops();
            let late = store.trim(&all());
            assert!(matches!(late, Err(TrimError::Interrupted)), "{late:?}");
            std::thread::sleep(Duration::from_millis(3));
            assert_eq!(storage.ops(), ops, "something was written behind the close");
        }
        ended.store(true, Ordering::SeqCst);
        drop(store);
        for thread in threads {
            soon("a thread", move || thread.join().expect("no panic"));
        }
        if !is_closed {
            // The last handle is gone, so the lock is free.
            let ops = storage.ops();
            std::thread::sleep(Duration::from_millis(3));
            assert_eq!(storage.ops(), ops, "something was written behind the last handle");
        }
        let store = self::options().open_on(Arc::new(storage.clone())).expect("the lock is free");
        assert!(store.first() >= first);
        store.wait_committed(store.durable_end()).expect("ordered");
        let numbers = store.read(..).expect("reads").map(|event| event.expect("reads").global());
        assert!(numbers.eq(store.first()..store.delivered()));
        store.close().expect("closes");
    }
    let list = storage.inner.list().expect("lists");
    assert!(
        list.iter().any(|file| name::kind(file) == name::Kind::Trimmed),
        "nothing was trimmed: {list:?}"
    );
}

/// Two that trim at once take turns, and come to what one would have come to.
#[test]
fn trims_at_once_take_turns() {
    let storage = MemoryStorage::new();
    let store = options().open_on(shared(&storage)).expect("opens");
    let mut rng = Rng(3);
    for _ in 0..3 {
        append_every_kind(&store, &mut rng, 3, 10);
        for _ in 0..4 {
            common::append(&store, "filler", vec![1; 300 << 10]);
        }
    }
    let log = expected(&storage);
    let reports: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u64)
            .map(|part| {
                let trim = Trim::new().before(store.delivered() * (part + 1) / 4).past_cursors();
                let store = &store;
                scope.spawn(move || store.trim(&trim).expect("trims"))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let first = store.first();
    assert!(first > 0);
    assert_eq!(reports.iter().map(|report| report.events).sum::<u64>(), first);
    assert_eq!(reports.iter().map(|report| report.first).max(), Some(first));
    check(&store, &log);
}

/// A store that has stopped is not trimmed: what it has written may be less than it seems.
/// The retention looked only when the log had come to another segment: one that stopped in the middle of its last
/// segment kept too much for ever.
#[test]
fn what_is_appended_to_the_last_segment_counts_too() {
    let retention = Trim::new().keep_bytes(2 * MIB + MIB / 2);
    let store = options().retention(retention).open_on(shared(&MemoryStorage::new()));
    let store = store.expect("opens");
    let append = |count: usize| {
        for _ in 0..count {
            common::append(&store, "s", vec![1; 300 << 10]);
        }
        store.wait_committed(store.durable_end()).expect("is ordered");
    };
    // Three to a segment of 1 MiB: there are four now, and 3.3 MiB.
    append(10);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(store.first(), 0);
    append(1);
    until("the first segment goes", || store.first() == 3);
    store.close().expect("closes");
}

#[test]
fn a_store_that_has_stopped_is_not_trimmed() {
    let storage = Faulty::default();
    let retention = Trim::new().keep_bytes(2 * MIB);
    let store = options().retention(retention).open_on(Arc::new(storage.clone())).expect("opens");
    let cursor = store.cursor("slow").expect("a cursor");
    cursor.commit(0).expect("commits");
    for _ in 0..12 {
        common::append(&store, "s", vec![1; 300 << 10]);
    }
    until("the cursor keeps it", || store.stats().kept_by.is_some());
    let error = std::io::ErrorKind::Other;
    storage.fail(Fault { error, ..Fault::always(Op::Sync, "segment-") });
    let ticket = store.appender("s").expect("an appender").append("not stored").expect("accepted");
    ticket.wait().expect_err("the sync fails");
    let stopped = store.clone();
    let refused = soon("a trim", move || stopped.trim(&all()));
    assert!(matches!(refused, Err(TrimError::Read(ReadError::Poisoned(_)))), "{refused:?}");
    until("the retention says so", || store.stats().trim_error.is_some());
    assert_eq!(store.first(), 0);
    assert!(storage.inner.list().expect("lists").iter().all(|file| !matches!(
        name::kind(file),
        name::Kind::Trimmed | name::Kind::TrimmedNew | name::Kind::Facts(_)
    )));
    soon("closing", move || store.close().expect_err("it had stopped"));
    storage.heal();
    let store = options().open_on(Arc::new(storage)).expect("opens");
    assert!(store.trim(&all()).expect("trims").first > 0);
}
