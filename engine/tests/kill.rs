//! A process that appends from several threads is killed, again and again, on the same directory.
//!
//! The child says on its standard output what was acknowledged to it, and what it has read. After
//! each kill the parent checks that nothing of this is lost, renumbered or torn, and that the store
//! shows the order that the serial machine makes of the log.
//!
//! `THALWEG_KILL_ROUNDS=500` for a long run; `THALWEG_SEED` repeats one, as far as timing allows.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::{Expected, Rng, check, expected, this_test, wild_event};
use thalweg::reference::Arrival;
use thalweg::storage::OsStorage;
use thalweg::{Ack, MixedBatch, Options, Placement, Rejection, Store};

const DIR: &str = "THALWEG_KILL_DIR";
const CHILD: &str = "THALWEG_KILL_CHILD";
const APPENDERS: u64 = 3;
/// A directory is given up after so many rounds, since every check reads all of it.
const ROUNDS_PER_DIRECTORY: u64 = 12;
/// No child takes so long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Batches of one appender that are under way.
const PIPELINE: usize = 6;

fn options(rng: &mut Rng) -> Options {
    Options::new()
        .segment_bytes(1 << 20)
        .scanners(1 + rng.below(2) as usize)
        .orderers(1 + rng.below(2) as usize)
        .queue_bytes(if rng.once_in(4) { 1 } else { 1 << 20 })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// The child.

/// What the parent tells the child: seed, number of the round, and whether to close by itself.
fn orders() -> Option<(u64, u64, bool)> {
    let text = std::env::var(CHILD).ok()?;
    let numbers: Vec<u64> =
        text.split(',').map(|number| number.parse().expect("a number")).collect();
    Some((numbers[0], numbers[1], numbers[2] == 1))
}

#[test]
#[ignore = "the process that `nothing_is_lost_by_kills` starts and kills"]
fn child() {
    let Some((seed, round, closes)) = orders() else { return };
    let mut rng = Rng(seed);
    let dir = std::env::var_os(DIR).expect("the parent says where");
    let store = options(&mut rng).open(dir).expect("the child opens the store");
    let from = store.stats().delivered.saturating_sub(rng.below(200));
    let batches = if closes { 5 + rng.below(60) } else { u64::MAX };
    // The first line goes on behind what the test harness says.
    println!("\nopen");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let appenders: Vec<_> = (0..APPENDERS)
            .map(|appender| {
                let (store, rng) = (&store, Rng(rng.next()));
                scope.spawn(move || append(store, rng, round, appender, batches))
            })
            .collect();
        scope.spawn(|| {
            for event in store.subscribe(from).expect("subscribes") {
                let event = event.expect("reads");
                println!("saw {} {} {}", event.global(), event.position(), hex(event.id()));
            }
        });
        let checkpoints = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                store.checkpoint().expect("a checkpoint");
                // Not to wait for anything: only to leave the disk to the others.
                std::thread::sleep(Duration::from_millis(7));
            }
        });
        appenders.into_iter().for_each(|thread| thread.join().expect("an appender ends"));
        ended.store(true, Ordering::Relaxed);
        println!("closing");
        store.wait_committed(store.durable_end()).expect("committed");
        checkpoints.join().expect("no checkpoint fails");
        store.close().expect("closes");
        println!("closed");
    });
}

fn append(store: &Store, mut rng: Rng, round: u64, appender: u64, batches: u64) {
    let mut under_way = std::collections::VecDeque::new();
    for number in 0..batches {
        let token = format!("{round}.{appender}.{number}");
        let count = 1 + rng.below(8);
        let ack = if rng.once_in(3) { Ack::Ordered } else { Ack::Durable };
        let mut batch = MixedBatch::new();
        for index in 0..count {
            let mut payload = format!("{token}.{index}.{count} ").into_bytes();
            if rng.once_in(50) {
                payload.resize(50_000, b'x');
            }
            let event = wild_event(&mut rng, round * 300, 600, payload);
            batch.push(format!("stream-{}", rng.below(3)), &event).expect("within the limits");
        }
        let ticket = store.submit(batch, ack).expect("accepted");
        under_way.push_back((token, count, ticket));
        if under_way.len() == PIPELINE {
            acknowledge(under_way.pop_front().expect("not empty"));
        }
    }
    under_way.into_iter().for_each(acknowledge);
}

fn acknowledge((token, count, ticket): (String, u64, thalweg::Ticket)) {
    let receipt = ticket.wait().expect("appended");
    let placements: Vec<String> = receipt.placements.iter().map(write_placement).collect();
    println!("ack {token} {count} {} {} {}", receipt.position, receipt.end, placements.join(" "));
}

fn write_placement(placement: &Placement) -> String {
    match placement {
        Placement::Delivered { global, local } => format!("delivered:{global}:{local}"),
        Placement::Held { missing } => format!("held:{missing}"),
        Placement::Duplicate => String::from("duplicate"),
        Placement::Conflict => String::from("conflict"),
        Placement::Rejected { reason, .. } => rejected(*reason),
        other => format!("{other:?}"),
    }
}

/// A rejection, as one word of a line.
fn rejected(reason: Rejection) -> String {
    format!("rejected:{}", format!("{reason:?}").replace(' ', ""))
}

// The parent.

/// When the child is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after it was started: before or while it opens the store.
    AfterStart(Duration),
    /// So long after it has opened the store.
    AfterOpen(Duration),
    /// So long after it has begun to close the store.
    AfterClosing(Duration),
    Never,
}

fn moment(rng: &mut Rng) -> Moment {
    let mut micros = |most: u64| Duration::from_micros(rng.below(most));
    let (start, open, closing) = (micros(12_000), micros(120_000), micros(6_000));
    match rng.below(10) {
        0 | 1 => Moment::AfterStart(start),
        2 | 3 => Moment::AfterClosing(closing),
        4 => Moment::Never,
        _ => Moment::AfterOpen(open),
    }
}

/// What the children of a directory were told.
#[derive(Debug, Default)]
struct Told {
    acks: Vec<Ack_>,
    /// By global sequence: position and id.
    saw: BTreeMap<u64, (u64, String)>,
}

#[derive(Debug)]
struct Ack_ {
    token: String,
    count: u64,
    position: u64,
    end: u64,
    placements: Vec<String>,
}

fn start_child(dir: &Path, seed: u64, round: u64, closes: bool) -> Child {
    this_test("child")
        .env(DIR, dir)
        .env(CHILD, format!("{seed},{round},{}", u64::from(closes)))
        .spawn()
        .expect("the child starts")
}

/// Lines as they come, whole ones only.
fn lines(child: &mut Child) -> Receiver<String> {
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        while out.read_line(&mut line).is_ok_and(|len| len > 0) {
            if line.ends_with('\n') {
                let _ = sender.send(line.trim_end().to_owned());
            }
            line.clear();
        }
    });
    receiver
}

/// Runs a child and kills it; returns whether it ended by itself.
fn run_child(dir: &Path, rng: &mut Rng, round: u64, told: &mut Told) -> bool {
    let moment = moment(rng);
    let closes = matches!(moment, Moment::AfterClosing(_) | Moment::Never);
    let mut child = start_child(dir, rng.next(), round, closes);
    let lines = lines(&mut child);
    let started = Instant::now();
    let mut kill_at = match moment {
        Moment::AfterStart(after) => Some(started + after),
        _ => None,
    };
    loop {
        let until = kill_at.unwrap_or(started + PATIENCE);
        let patience = until.saturating_duration_since(Instant::now());
        match lines.recv_timeout(patience) {
            Ok(line) => match (line.as_str(), moment) {
                ("open", Moment::AfterOpen(after)) => kill_at = Some(Instant::now() + after),
                ("closing", Moment::AfterClosing(after)) => kill_at = Some(Instant::now() + after),
                _ => note(&line, told),
            },
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                assert!(kill_at.is_some(), "the child hangs");
                break;
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
        assert!(started.elapsed() < PATIENCE, "the child goes on and on");
        if kill_at.is_some_and(|at| at <= Instant::now()) {
            break;
        }
    }
    let _ = child.kill();
    let output = child.wait_with_output().expect("the child ends");
    lines.iter().for_each(|line| note(&line, told));
    let by_itself = output.status.code().is_some();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!by_itself || output.status.success(), "{moment:?}: the child failed: {errors}");
    assert!(!errors.contains("panicked"), "{moment:?}: {errors}");
    by_itself
}

fn note(line: &str, told: &mut Told) {
    let mut words = line.split(' ');
    let kind = words.next();
    let rest: Vec<&str> = words.collect();
    let number = |at: usize| rest[at].parse::<u64>().expect("a number");
    match kind {
        Some("ack") => told.acks.push(Ack_ {
            token: rest[0].to_owned(),
            count: number(1),
            position: number(2),
            end: number(3),
            placements: rest[4..]
                .iter()
                .filter(|word| !word.is_empty())
                .map(|&word| word.to_owned())
                .collect(),
        }),
        Some("saw") => {
            let seen = (number(1), rest[2].to_owned());
            let before = told.saw.insert(number(0), seen.clone());
            assert!(before.is_none_or(|before| before == seen), "a number was given away again");
        }
        _ => {}
    }
}

/// Everything that was told is in the log, and in the order where it was said to be.
fn check_told(told: &Told, expected: &Expected) {
    for ack in &told.acks {
        let stored: Vec<(&u64, String)> = expected
            .events
            .range(ack.position..ack.end)
            .map(|(position, event)| (position, token_of(&event.payload)))
            .collect();
        let wanted: Vec<String> =
            (0..ack.count).map(|index| format!("{}.{index}.{}", ack.token, ack.count)).collect();
        let tokens: Vec<&String> = stored.iter().map(|(_, token)| token).collect();
        assert_eq!(tokens, wanted.iter().collect::<Vec<_>>(), "{ack:?} is lost or torn");
        for (&(&position, _), placement) in stored.iter().zip(&ack.placements) {
            check_placement(position, placement, expected);
        }
    }
    for (global, (position, id)) in &told.saw {
        let delivery = expected.order.get(*global as usize).expect("what was read is not lost");
        assert_eq!(delivery.position, *position, "global {global} was renumbered");
        assert_eq!(hex(&expected.events[position].id), *id, "global {global}");
    }
}

fn check_placement(position: u64, placement: &str, expected: &Expected) {
    let at = expected.arrivals.partition_point(|(other, _)| *other < position);
    let arrival = expected.arrivals[at].1;
    let wanted = match arrival {
        Arrival::Held(missing) => format!("held:{missing}"),
        Arrival::Duplicate => String::from("duplicate"),
        Arrival::Conflict => String::from("conflict"),
        Arrival::Rejected(reason) => rejected(reason),
        Arrival::Sealed(_)
        | Arrival::Unsealed
        | Arrival::Marked(_)
        | Arrival::Discarded
        | Arrival::Trimmed(_)
        | Arrival::NotHeld { .. } => {
            panic!("the children seal and mark nothing")
        }
        Arrival::Delivered => {
            let global = expected.order.iter().position(|delivery| delivery.position == position);
            let global = global.expect("a delivered event is in the order");
            format!("delivered:{global}:{}", expected.order[global].local)
        }
    };
    assert_eq!(placement, wanted, "position {position}");
}

fn token_of(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Every batch in the log is whole, and of each appender's batches a prefix is there, in order.
fn check_batches(expected: &Expected) {
    let mut next: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
    let mut open: Option<(u64, u64)> = None;
    for event in expected.events.values() {
        let token = token_of(&event.payload);
        let numbers: Vec<u64> = token.split('.').map(|part| part.parse().expect("ours")).collect();
        let [round, appender, number, index, count] = numbers[..] else { panic!("{token}") };
        assert!(
            open.is_none_or(|whose| whose == (round, appender)),
            "{token} is inside another batch"
        );
        let next = next.entry((round, appender)).or_default();
        assert_eq!((number, index), *next, "the next of round {round}, appender {appender}");
        *next = if index + 1 == count { (number + 1, 0) } else { (number, index + 1) };
        open = (index + 1 < count).then_some((round, appender));
    }
    assert_eq!(open, None, "the log ends in the middle of a batch");
}

fn check_directory(dir: &Path, rng: &mut Rng, told: &Told) {
    let storage = OsStorage::open(dir).expect("the directory is there");
    if !dir.join("segment-0000000000000001.wal").exists() {
        assert!(told.acks.is_empty() && told.saw.is_empty(), "the log is gone");
        return;
    }
    let reader = match Options::new().orderers(1).open_read_only(dir) {
        Ok(reader) => reader,
        // Killed before the header of the first segment was whole.
        Err(thalweg::OpenError::Log(thalweg::LogOpenError::Missing { .. })) => {
            assert!(told.acks.is_empty() && told.saw.is_empty(), "the log is gone");
            return;
        }
        Err(error) => panic!("the store opens for reading: {error}"),
    };
    let before = expected(&storage);
    check_told(told, &before);
    check_batches(&before);
    check(&reader, &before);
    // Otherwise the next child meets what the kill has left.
    if rng.once_in(3) {
        let store = options(rng).open(dir).expect("the store opens for writing");
        check(&store, &before);
        if rng.once_in(2) {
            store.close().expect("closes");
        }
    }
}

#[test]
fn nothing_is_lost_by_kills() {
    let rounds = std::env::var("THALWEG_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds: u64 = rounds.unwrap_or(60);
    let mut rng = Rng::from_env();
    let (mut acks, mut seen, mut by_itself) = (0, 0, 0);
    for first in (0..rounds).step_by(ROUNDS_PER_DIRECTORY as usize) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut told = Told::default();
        for round in 0..ROUNDS_PER_DIRECTORY.min(rounds - first) {
            by_itself += u64::from(run_child(dir.path(), &mut rng, round, &mut told));
            check_directory(dir.path(), &mut rng, &told);
        }
        let report = thalweg::verify(dir.path(), &|_| std::ops::ControlFlow::Continue(()));
        if let Ok(report) = report {
            assert_eq!(report.problems, []);
        }
        acks += told.acks.len();
        seen += told.saw.len();
    }
    println!(
        "{rounds} rounds: {acks} batches acknowledged, {seen} events read, {by_itself} not killed"
    );
    assert!(acks > 0 && seen > 0, "the children were killed before they did anything");
}
