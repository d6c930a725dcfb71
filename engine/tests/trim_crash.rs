//! Trims that are cut short: by the loss of power, by errors and by kills, at every operation. What is left is the store
//! as it was or as it was to become, and nothing in between.
//!
//! `THALWEG_KILL_ROUNDS=500` for a long run of kills; `THALWEG_SEED` repeats one, as far as timing allows.

mod common;
#[path = "../../wal/tests/common/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::log::keep_the_log_only;
use common::{Expected, Rng, SOON, append_every_kind, check, expected, this_test};
use disk::{Disk, Fault, Op};
use thalweg::{
    Ack, Event, KeptBy, MixedBatch, Options, Placement, ReadError, Store, Trim, TrimError,
};
use thalweg_wal::name;

fn options() -> Options {
    Options::new().segment_bytes(1 << 20).scanners(1).orderers(1)
}

fn open(disk: &Disk) -> Store {
    options().open_on(Arc::new(disk.clone())).expect("opens")
}

/// Everything but the last segment, cursors or not.
fn all() -> Trim {
    Trim::new().before(u64::MAX).past_cursors()
}

fn fill(store: &Store, count: usize) {
    for number in 0..count {
        let mut batch = MixedBatch::new();
        let event = Event::new(vec![number as u8; 300 << 10]);
        batch.push(format!("filler {}", number % 2), &event).expect("within the limits");
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    }
}

/// A closed store of some segments with events of every kind, on a disk that has all of it; and what it comes to. It
/// was trimmed before, if that is asked for.
fn source(trimmed_before: bool) -> (Disk, Expected) {
    let disk = Disk::new();
    let store = open(&disk);
    let mut rng = Rng(11);
    for _ in 0..2 {
        append_every_kind(&store, &mut rng, 3, 12);
        fill(&store, 3);
    }
    append_every_kind(&store, &mut rng, 2, 12);
    let mut log = None;
    if trimmed_before {
        // Only an untrimmed log tells all of the order.
        let mut whole = Vec::new();
        let reader = thalweg_wal::LogReader::open(&disk, None).expect("opens");
        whole.extend(reader.segments.iter().cloned());
        assert!(store.trim(&all()).expect("trims").first > 0);
        fill(&store, 3);
        append_every_kind(&store, &mut rng, 2, 12);
        fill(&store, 2);
        log = Some(whole);
    }
    store.close().expect("closes");
    let expected = match log {
        None => expected(&disk),
        Some(older) => common::expected_of(&disk, &older),
    };
    (disk.power_loss(|| true), expected)
}

/// What can be done to a store that opens after a trim was cut short; where it begins.
fn check_after(disk: &Disk, log: &Expected, allowed: &[u64], what: &str) -> u64 {
    let mut begins = None;
    for without_derived in [false, true] {
        if without_derived {
            keep_the_log_only(disk);
        }
        let store = open(disk);
        let first = store.first();
        assert!(
            allowed.contains(&first),
            "{what}: it begins at {first}, not at one of {allowed:?}"
        );
        assert_eq!(*begins.get_or_insert(first), first, "{what}");
        check(&store, log);
        if without_derived {
            // It goes on: with events, and with the next trim.
            fill(&store, 1);
            let next = store.trim(&all()).expect("trims").first;
            assert!(next >= first);
        }
        store.close().expect("closes");
    }
    begins.expect("it was opened")
}

/// After so many runs in a row that end before their fault, there are no more operations.
const QUIET_RUNS: u64 = 10;

fn at_every_operation(fault: Fault, trimmed_before: bool) {
    let (source, log) = source(trimmed_before);
    let run = |op: Option<u64>| {
        let disk = source.power_loss(|| true);
        let store = open(&disk);
        if let Some(op) = op {
            disk.fail_at(disk.ops() + op, fault);
        }
        let old = store.first();
        let trimmed = store.trim(&all());
        (disk, store, old, trimmed)
    };
    let (_, store, old, trimmed) = run(None);
    let new = trimmed.expect("trims").first;
    assert!(old < new && (old > 0) == trimmed_before, "{old} {new}");
    store.close().expect("closes");
    let (mut stayed, mut went, mut refused, mut again, mut ops) = (0, 0, 0, 0, 0);
    // Beside the trim the next segment is made ready, so how many operations there are differs from run to run: up to
    // the last of any.
    let mut quiet = 0;
    for op in 1.. {
        let (disk, store, _, trimmed) = run(Some(op));
        let happened = disk.happened();
        if happened.is_empty() && trimmed.is_ok() {
            quiet += 1;
            if quiet == QUIET_RUNS {
                ops = op - quiet;
                break;
            }
            continue;
        }
        quiet = 0;
        let what = format!("{fault:?} at {op}: {happened:?}");
        disk.heal();
        if let Err(error @ TrimError::Io { source, .. }) = &trimmed
            && source.kind() == std::io::ErrorKind::StorageFull
        {
            assert!(error.to_string().ends_with("so make some room and trim again"), "{error}");
        }
        // Where a success was reported, or readers see it, it has come to stay.
        let shown = store.first();
        let allowed: &[u64] = match &trimmed {
            Ok(report) => {
                assert_eq!((report.first, shown), (new, new), "{what}");
                &[new]
            }
            Err(_) if shown == new => &[new],
            Err(TrimError::Unknown(_)) => &[old, new],
            Err(_) if fault == Fault::Stop => &[old, new],
            Err(_) => &[old],
        };
        let seeds: &[u64] = if fault == Fault::Stop { &[0, op] } else { &[op] };
        for seed in seeds {
            match check_after(&disk.crash(seed ^ 0x5eed), &log, allowed, &what) {
                first if first == new => went += 1,
                _ => stayed += 1,
            }
        }
        if fault != Fault::Stop {
            check(&store, &log);
            let ops_before = disk.ops();
            match (store.trim(&all()), &trimmed) {
                (Ok(report), _) => {
                    again += u64::from(trimmed.is_err());
                    assert_eq!(report.first, new, "{what}");
                    // Nothing that was reported is lost; and what lay about is gone.
                    check_after(&disk.crash(op), &log, &[new], &what);
                    let is_old = |file: &String| match name::kind(file) {
                        name::Kind::Segment(number) => number == 1,
                        name::Kind::TrimmedNew => true,
                        _ => false,
                    };
                    assert!(!disk.names().iter().any(is_old), "{what}: {:?}", disk.names());
                }
                (Err(TrimError::Unknown(second)), Err(TrimError::Unknown(first))) => {
                    assert_eq!(first.kind(), second.kind());
                    assert_eq!(disk.ops(), ops_before, "it was tried all the same");
                    refused += 1;
                }
                (second, first) => panic!("{what}: {first:?}, then {second:?}"),
            }
            check(&store, &log);
        }
        drop(store);
    }
    println!(
        "{fault:?}: {ops} operations, {stayed} as before, {went} trimmed; {again} done again, {refused} refused"
    );
    assert!(stayed > 0 && ops > 12);
    // What comes after the trim itself takes no room.
    assert!(went > 0 || fault == Fault::Full);
    assert_eq!(refused > 0, fault == Fault::Error, "a directory that cannot be synced");
    assert_eq!(again > 3, fault != Fault::Stop);
}

#[test]
fn a_trim_is_whole_or_nothing_wherever_the_machine_stops() {
    at_every_operation(Fault::Stop, false);
    at_every_operation(Fault::Stop, true);
}

#[test]
fn a_trim_that_failed_anywhere_is_done_again_or_refused_until_the_next_opening() {
    at_every_operation(Fault::Error, false);
    at_every_operation(Fault::Error, true);
}

#[test]
fn a_trim_on_a_full_disk_leaves_the_store_as_it_was() {
    at_every_operation(Fault::Full, false);
}

/// The disk may have forgotten the bytes of a sync that has failed, and takes the next one for a success.
#[test]
fn what_a_failed_sync_has_lost_is_written_again() {
    let (source, log) = source(true);
    let disk = source.power_loss(|| true);
    let store = open(&disk);
    // The next segment is made ready by now, so all syncs are those of trims.
    let mut ops = 0;
    while std::mem::replace(&mut ops, disk.ops()) != ops {
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut syncs = 0;
    loop {
        disk.fail_next(Op::Sync, syncs, Fault::Error);
        let before = disk.happened().len();
        let trimmed = store.trim(&all());
        let failed = disk.happened()[before..].first().cloned();
        disk.heal();
        let Some((_, file, _)) = failed else {
            trimmed.expect("nothing fails any more");
            break;
        };
        println!("{file}: {trimmed:?}");
        assert!(matches!(trimmed, Err(TrimError::Io { .. })) || trimmed.is_ok(), "{trimmed:?}");
        syncs += 1;
        if trimmed.is_ok() {
            break;
        }
    }
    assert!(syncs > 2, "{syncs}");
    let first = store.first();
    check_after(&disk.crash(0x5eed), &log, &[first], "after failed syncs");
}

// Processes that are killed.

const DIR: &str = "THALWEG_KILL_TRIM_DIR";
const SEED: &str = "THALWEG_KILL_TRIM_SEED";
const KEEP: u64 = 4 << 20;

/// Appends, consumes, and is kept to its retention, until it is killed.
#[test]
#[ignore = "the process that `kills_of_a_store_that_trims_lose_nothing_that_is_left` starts and kills"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let seed = std::env::var(SEED).expect("the parent says").parse().expect("a number");
    let mut rng = Rng(seed);
    let store = options().retention(Trim::new().keep_bytes(KEEP)).open(dir).expect("opens");
    println!("\nopen {}", store.first());
    std::thread::scope(|scope| {
        for appender in 0..2_u64 {
            let (store, mut rng) = (&store, Rng(rng.next()));
            scope.spawn(move || {
                loop {
                    let mut batch = MixedBatch::new();
                    let number = rng.next();
                    for index in 0..1 + rng.below(3) {
                        let len = if rng.once_in(4) { 250_000 } else { 40 };
                        let mut payload = vec![number as u8; len];
                        payload[..8].copy_from_slice(&number.to_le_bytes());
                        let mut event = Event::new(payload).id(format!("{number:x}.{index}"));
                        if rng.once_in(8) {
                            // Held, some for ever and some for a while.
                            event = event.parents([format!("{number:x}.1")]);
                        }
                        batch.push(format!("s{appender}"), &event).expect("within the limits");
                    }
                    let receipt = store.submit(batch, Ack::Ordered).expect("accepted").wait();
                    let receipt = receipt.expect("appended");
                    for (index, placement) in receipt.placements.iter().enumerate() {
                        if let Placement::Delivered { global, local } = placement {
                            println!("ack {global} {local} s{appender} {number:x}.{index}");
                        }
                    }
                }
            });
        }
        for consumer in 0..2_u64 {
            let store = &store;
            scope.spawn(move || {
                let cursor = store.cursor(format!("c{consumer}")).expect("a cursor");
                // Before it begins, so that it misses nothing.
                cursor.commit(0).expect("commits");
                let from = cursor.at();
                println!("from {consumer} {from}");
                for (count, event) in (1..).zip(store.subscribe(&cursor).expect("subscribes")) {
                    let event = event.expect("nothing that a cursor keeps is trimmed");
                    println!(
                        "saw {consumer} {} {}",
                        event.global(),
                        String::from_utf8_lossy(event.id())
                    );
                    if count % 4 == 0 {
                        cursor.commit(event.global() + 1).expect("commits");
                    }
                    if consumer == 1 && count % 16 == 0 {
                        println!("first {}", store.first());
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
        }
    });
}

/// What the children of a directory have said.
#[derive(Debug, Default)]
struct Told {
    /// By global sequence: local sequence and stream, and id. Not both are known of each.
    acked: BTreeMap<u64, (u64, String, String)>,
    seen: BTreeMap<u64, String>,
    /// Where each consumer goes on, and the first sequence that anybody has seen.
    next: [u64; 2],
    first: u64,
}

impl Told {
    fn note(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[0] {
            "ack" => {
                let said = (number(2), words[3].to_owned(), words[4].to_owned());
                let before = self.acked.insert(number(1), said.clone());
                assert!(
                    before.is_none_or(|before| before == said),
                    "a number was given away again"
                );
            }
            "from" => {
                let (consumer, from) = (number(1) as usize, number(2));
                assert!(from <= self.next[consumer], "a consumer leaves something out");
                self.next[consumer] = from;
            }
            "saw" => {
                let (consumer, global) = (number(1) as usize, number(2));
                assert_eq!(global, self.next[consumer], "consumer {consumer} misses something");
                self.next[consumer] = global + 1;
                let before = self.seen.insert(global, words[3].to_owned());
                assert!(before.is_none_or(|before| before == words[3]), "renumbered");
            }
            "first" | "open" => {
                assert!(number(1) >= self.first, "what was trimmed came back");
                self.first = number(1);
            }
            _ => {}
        }
    }
}

fn run_and_kill(dir: &Path, rng: &mut Rng, told: &mut Told) {
    let mut child = this_test("child")
        .env(DIR, dir)
        .env(SEED, rng.next().to_string())
        .spawn()
        .expect("the child starts");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let lines = std::thread::spawn(move || {
        let (mut lines, mut line) = (Vec::new(), String::new());
        while out.read_line(&mut line).is_ok_and(|len| len > 0) {
            // The last one may be cut.
            if line.ends_with('\n') {
                lines.push(line.trim_end().to_owned());
            }
            line.clear();
        }
        lines
    });
    std::thread::sleep(Duration::from_micros(rng.below(400_000)));
    child.kill().expect("it goes on for ever");
    let output = child.wait_with_output().expect("ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    lines.join().expect("reads").iter().for_each(|line| told.note(line));
}

/// Everything that was said and not trimmed is there, under its numbers, and nothing that a consumer still wants is gone.
fn check_told(store: &Store, told: &Told) {
    store.wait_committed(store.durable_end()).expect("ordered");
    let first = store.first();
    assert!(first >= told.first, "what was trimmed came back");
    let slowest = store.cursors().into_iter().map(|cursor| cursor.at).min();
    assert!(first <= slowest.unwrap_or(0), "a consumer would miss something");
    let mut read = store.read(..).expect("reads");
    let mut locals: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut next = first;
    for event in &mut read {
        let event = event.expect("reads");
        assert_eq!(event.global(), next);
        next += 1;
        if let Some(before) = locals.insert(event.stream().to_vec(), event.local()) {
            assert_eq!(event.local(), before + 1);
        }
        let id = String::from_utf8(event.id().to_vec()).expect("ours");
        if let Some((local, stream, acked)) = told.acked.get(&event.global()) {
            assert_eq!((event.local(), event.stream(), &id), (*local, stream.as_bytes(), acked));
        }
        if let Some(seen) = told.seen.get(&event.global()) {
            assert_eq!(&id, seen);
        }
        let number = id.split('.').next().expect("a number");
        let number = u64::from_str_radix(number, 16).expect("ours");
        assert_eq!(event.payload()[..8], number.to_le_bytes());
    }
    let newest = told.acked.keys().chain(told.seen.keys()).max().map_or(0, |newest| newest + 1);
    assert!(next >= newest, "{newest} events were acknowledged or seen, and {next} are left");
    // Of what was trimmed it is known that it was there.
    for (global, (_, stream, id)) in
        told.acked.iter().take(20).filter(|(global, _)| **global < first)
    {
        assert!(matches!(store.get(stream, id), Err(ReadError::Trimmed { .. })), "{global}");
    }
}

#[test]
fn kills_of_a_store_that_trims_lose_nothing_that_is_left() {
    let rounds = std::env::var("THALWEG_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds: u64 = rounds.unwrap_or(20);
    let mut rng = Rng::from_env();
    let dir = tempfile::tempdir().expect("a directory");
    let mut told = Told::default();
    let begun = Instant::now();
    for round in 0.. {
        run_and_kill(dir.path(), &mut rng, &mut told);
        let is_store = std::fs::read_dir(dir.path()).expect("lists").count() > 1;
        if is_store && rng.once_in(2) {
            match Options::new().open_read_only(dir.path()) {
                Ok(reader) => check_told(&reader, &told),
                // Killed before the first header was whole.
                Err(error) => assert!(told.acked.is_empty(), "{error}"),
            }
        }
        if is_store && rng.once_in(4) {
            let store = options().open(dir.path()).expect("opens");
            check_told(&store, &told);
            told.first = store.first();
        }
        // A busy machine may kill children that have not begun.
        if round >= rounds && told.first > 0 || begun.elapsed() > 6 * SOON && rounds < 100 {
            break;
        }
    }
    let store = options().open(dir.path()).expect("opens");
    check_told(&store, &told);
    println!(
        "{} acknowledged, {:?} consumed, trimmed up to {}",
        told.acked.len(),
        told.next,
        store.first()
    );
    assert!(store.first() > 0, "nothing was trimmed");
    store.close().expect("closes");
}

/// A checkpoint that cannot be written keeps a store from being trimmed, and it says so.
#[test]
fn what_no_checkpoint_is_beyond_is_not_trimmed() {
    let (source, log) = source(false);
    let disk = source.power_loss(|| true);
    keep_the_log_only(&disk);
    let store = open(&disk);
    store.wait_committed(store.durable_end()).expect("ordered");
    disk.full_during(disk.ops()..u64::MAX);
    let report = store.trim(&all()).expect("nothing fails");
    assert_eq!((report.first, report.kept_by), (0, Some(KeptBy::Checkpoint)));
    disk.heal();
    assert!(store.trim(&all()).expect("trims").first > 0);
    check(&store, &log);
}
