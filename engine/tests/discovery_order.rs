//! A store that opens on a log of which nothing is ordered comes to the order of the serial machine:
//! for every number of threads, however the log is cut into windows, wherever it is interrupted and
//! whatever is appended meanwhile. Whole orders are compared, event by event.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use common::log::{frames, keep_the_log_only, log_of, log_of_windows, mixed, resolved};
use common::{Expected, Rng, SOON, TestEvent, check, expected, shared, soon};
use faulty::{Fault, Faulty, Op};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use thalweg::reference::SerialRecord;
use thalweg::{Ack, Cause, Options, ReadError, Refusal, Store};

const THREADS: [usize; 5] = [1, 2, 3, 5, 16];

/// An error that nobody would try again.
const FATAL: ErrorKind = ErrorKind::PermissionDenied;

fn options(threads: usize) -> Options {
    Options::new().scanners(threads.min(4)).orderers(threads).segment_bytes(1 << 20)
}

/// Ids in the order of their delivery, with their streams and places.
fn ids(expected: &Expected) -> Vec<(&[u8], &[u8], u64)> {
    let deliveries = expected.order.iter();
    deliveries
        .map(|delivery| {
            let event = &expected.events[&delivery.position];
            (&event.stream[..], &event.id[..], delivery.local)
        })
        .collect()
}

/// As many cases as `PROPTEST_CASES` says, in relation to its default of 256.
fn cases(of_256: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: (config.cases * of_256).div_ceil(256),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 200,
        ..config
    }
}

// Threads and windows.

proptest! {
    #![proptest_config(cases(3))]

    #[test]
    fn threads_and_windows_do_not_change_the_order(events in frames(60..90), seed: u64) {
        compare_threads_and_windows(&events, &mut Rng(seed));
    }
}

fn compare_threads_and_windows(events: &[Vec<TestEvent>], rng: &mut Rng) {
    let frames = resolved(events);
    let count = frames.len();
    let everywhere: Vec<usize> = (0..count).step_by(count.div_ceil(20)).collect();
    let anywhere: Vec<usize> =
        (0..rng.below(6)).map(|_| rng.below(count as u64) as usize).collect();
    // One window that is large enough for the pool, some of any size, and small ones.
    let logs = [vec![], anywhere, everywhere].map(|cuts| log_of(&frames, &cuts));
    let orders = logs.each_ref().map(|log| expected(log));
    for order in &orders {
        assert!(ids(order) == ids(&orders[0]), "the windows change the definition of the order");
    }
    for (log, order) in logs.iter().zip(&orders) {
        for threads in THREADS {
            let store = options(threads).open_on(shared(&log.fork())).expect("opens");
            check(&store, order);
        }
        let reader = options(2).open_read_only_on(shared(log)).expect("opens");
        check(&reader, order);
    }
}

proptest! {
    #![proptest_config(cases(1))]

    /// Cuts that are scanned when their turn comes are ordered as one window, if they are long.
    #[test]
    fn cuts_that_are_ordered_together_do_not_change_the_order(events in frames(400..420)) {
        let frames = resolved(&events);
        // Some 2,000 records each: the memory budget says how many cuts may go together.
        let cuts: Vec<usize> = (65..frames.len()).step_by(65).collect();
        let log = log_of(&frames, &cuts);
        let order = expected(&log);
        for memory in [0, 10 << 20, 1 << 30] {
            for threads in THREADS {
                let options = options(threads).memory_budget(memory);
                check(&options.open_on(shared(&log.fork())).expect("opens"), &order);
            }
        }
    }
}

// Interruptions.

/// What ends a session in the middle of a discovery.
#[derive(Debug, Clone, Copy)]
enum End {
    Close,
    Drop,
    /// The process dies: the directory is what it is at this moment.
    Kill,
    /// The same, right behind a checkpoint that has a part of the log.
    CheckpointAndKill,
    /// The order cannot be written any more, once so many windows have been.
    Fault(u64),
}

#[derive(Debug, Clone)]
struct Session {
    threads: usize,
    /// What is waited for before the end, of 16 parts of the log.
    part: u64,
    /// Batches that are appended while the log is discovered.
    live: usize,
    end: End,
}

fn session() -> impl Strategy<Value = Session> {
    let end = prop_oneof![
        1 => Just(End::Close),
        1 => Just(End::Drop),
        3 => Just(End::Kill),
        3 => Just(End::CheckpointAndKill),
        2 => (0..8_u64).prop_map(End::Fault),
    ];
    let threads = prop::sample::select(THREADS.to_vec());
    (threads, 0..16_u64, 0..6_usize, end).prop_map(|(threads, part, live, end)| Session {
        threads,
        part,
        live,
        end,
    })
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn interruptions_do_not_change_the_order(
        events in frames(30..60),
        sessions in prop::collection::vec(session(), 1..7),
        seed: u64,
    ) {
        interrupt(&events, &sessions, &mut Rng(seed));
    }
}

fn interrupt(events: &[Vec<TestEvent>], sessions: &[Session], rng: &mut Rng) {
    let frames = resolved(events);
    // A third of them comes while the store is open.
    let (found, live) = frames.split_at(frames.len() - frames.len() / 3);
    let cuts: Vec<usize> = (0..8).map(|_| rng.below(found.len() as u64) as usize).collect();
    let mut storage = log_of(found, &cuts);
    let mut live = live.iter();
    let mut seen = Vec::new();
    for session in sessions {
        let faulty = Faulty::over(storage.clone());
        if let End::Fault(skip) = session.end {
            faulty.fail(Fault { skip, error: FATAL, ..Fault::always(Op::Write, "order-") });
        }
        let store = options(session.threads).open_on(Arc::new(faulty)).expect("opens");
        let part = store.durable_end() / 16 * session.part;
        for frame in live.by_ref().take(session.live) {
            append(&store, frame);
        }
        let waited = store.wait_committed(part);
        if !matches!(session.end, End::Fault(_)) {
            waited.expect("goes on");
        }
        if matches!(session.end, End::CheckpointAndKill) {
            store.checkpoint().expect("a checkpoint");
        }
        let reads = store.read(..).expect("reads").map(|event| event.expect("reads").position());
        let read: Vec<u64> = reads.collect();
        let shorter = read.len().min(seen.len());
        assert_eq!(read[..shorter], seen[..shorter], "a number was given away again");
        if read.len() > seen.len() {
            seen = read;
        }
        match session.end {
            End::Close => store.close().expect("closes"),
            End::Drop => soon("drop", move || drop(store)),
            End::Kill | End::CheckpointAndKill => storage = storage.fork(),
            End::Fault(_) => drop(store.close()),
        }
    }
    let order = expected(&storage);
    let positions: Vec<u64> = order.order.iter().map(|delivery| delivery.position).collect();
    assert!(positions.starts_with(&seen), "what was read is not what was delivered");
    let store = options(2).open_on(shared(&storage)).expect("opens");
    check(&store, &order);
    store.close().expect("closes");
    check(&options(1).open_on(shared(&storage)).expect("opens"), &order);
    // Not a word of all that was needed.
    keep_the_log_only(&storage);
    check(&options(3).open_on(shared(&storage)).expect("opens"), &order);
}

/// Appends a batch, unless its stream is sealed or the order has stopped.
fn append(store: &Store, records: &[SerialRecord]) {
    match store.submit(mixed(records), Ack::Durable) {
        Ok(mut ticket) => {
            // Of a store that stops meanwhile, the outcome may be anything but late.
            let _ = ticket.wait_timeout(SOON).expect("completes");
        }
        Err(refused) => {
            assert!(matches!(refused.reason, Refusal::Sealed | Refusal::Poisoned(_)));
        }
    }
}

/// Closing and dropping wait for the order for half a second. Here each window takes a fifth of one,
/// so it takes several sessions to come to the end, each of which goes on where the one before it was.
#[test]
fn sessions_that_are_closed_too_early_come_to_the_end_together() {
    let windows = 14;
    let storage = log_of_windows(&mut Rng::from_env(), windows);
    let order = expected(&storage);
    let mut ends = Vec::new();
    for session in 0.. {
        let faulty = Faulty::over(storage.clone());
        faulty.slow_down(Op::Write, "order-", Duration::from_millis(200));
        let store = options(THREADS[session % THREADS.len()]).open_on(Arc::new(faulty));
        let store = store.expect("opens");
        let begins = store.stats().checkpoint_position;
        if let Some(&end) = ends.last() {
            assert_eq!(begins, end, "nothing is ordered again, and nothing is left out");
        }
        let durable = store.durable_end();
        let stats = match session % 2 {
            0 => {
                store.close().expect("closes");
                store.stats()
            }
            // The last of them is seen by the next session alone.
            _ => {
                soon("drop", move || drop(store));
                let reader = options(1).open_read_only_on(shared(&storage)).expect("opens");
                let stats = reader.stats();
                drop(reader);
                ends.push(stats.checkpoint_position);
                if stats.checkpoint_position >= durable {
                    break;
                }
                continue;
            }
        };
        assert_eq!(stats.committed, stats.ordered, "what is ordered is committed");
        ends.push(stats.ordered);
        if stats.ordered >= durable {
            break;
        }
        assert!(session < windows, "no session gets any further: {ends:?}");
    }
    assert!(ends.len() > 2, "it was never in the middle: {ends:?}");
    assert!(ends.is_sorted());
    check(&options(2).open_on(shared(&storage)).expect("opens"), &order);
}

/// Copies of the directory at many moments of a discovery, as kills would leave them: each of them is
/// opened, and each comes to the same order.
#[test]
fn a_kill_at_any_moment_of_a_discovery_leaves_the_same_order() {
    let mut rng = Rng::from_env();
    let storage = log_of_windows(&mut rng, 12);
    let order = expected(&storage);
    let faulty = Faulty::over(storage.clone());
    // So that there are moments in between.
    faulty.slow_down(Op::Write, "order-", Duration::from_millis(10));
    let store = options(2).open_on(Arc::new(faulty)).expect("opens");
    let mut kills = Vec::new();
    while !store.wait_committed_timeout(store.durable_end(), Duration::ZERO).expect("goes on") {
        kills.push((store.stats().committed, storage.fork()));
        std::thread::sleep(Duration::from_millis(rng.below(12)));
        if rng.once_in(4) {
            store.checkpoint().expect("a checkpoint");
            kills.push((store.stats().committed, storage.fork()));
        }
    }
    check(&store, &order);
    assert!(kills.iter().any(|(committed, _)| *committed < store.durable_end()));
    for (number, (_, killed)) in kills.iter().enumerate() {
        let threads = THREADS[number % THREADS.len()];
        check(&options(threads).open_on(shared(killed)).expect("opens"), &order);
    }
    println!("{} kills", kills.len());
}

/// A discovery whose order cannot be written says so to whoever waits, and forgets nothing: neither the
/// windows before the fault nor those that were in hand.
#[test]
fn a_fault_in_any_window_of_a_discovery_loses_no_stream() {
    let windows = 8;
    let storage = log_of_windows(&mut Rng::from_env(), windows);
    let order = expected(&storage);
    for skip in 0..windows as u64 {
        for panics in [false, true] {
            let inner = storage.fork();
            let faulty = Faulty::over(inner.clone());
            let fault =
                Fault { skip, count: 1, error: FATAL, ..Fault::always(Op::Write, "order-") };
            if panics {
                faulty.panic(fault)
            } else {
                faulty.fail(fault)
            }
            let store = options(2).open_on(Arc::new(faulty)).expect("opens");
            common::keep(&store);
            let waiting = store.clone();
            let waited = soon("wait", move || waiting.wait_committed(waiting.durable_end()));
            match (waited, panics) {
                (Err(ReadError::Poisoned(Cause::Derived(_))), false) => {}
                (Err(ReadError::Poisoned(Cause::Panic { .. })), true) => {}
                // The last window needs fewer writes than there are windows.
                (Ok(()), _) => assert!(skip > 0),
                (other, _) => panic!("{other:?}"),
            }
            let closing = store.clone();
            let _ = soon("close", move || closing.close());
            check(&options(1).open_on(shared(&inner)).expect("opens"), &order);
        }
    }
}
