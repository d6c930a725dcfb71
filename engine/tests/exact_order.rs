//! For random hostile input, cut at random into batches, windows, sessions and threads, the store
//! shows exactly what the serial machine delivers: event by event, never sorted, never counted only.

mod common;

use common::{TestEvent, batch_of, check, expected, hostile_event, shared};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, Options, Placement, Store};

/// How a session ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Close,
    /// The process dies: the directory is what it was at the last acknowledgement.
    Kill,
    /// A checkpoint, then the process dies.
    CheckpointAndKill,
}

#[derive(Debug, Clone)]
struct Session {
    batches: Vec<Vec<TestEvent>>,
    scanners: usize,
    orderers: usize,
    memory_budget: u64,
    end: End,
}

fn session(streams: u8, ids: u8) -> impl Strategy<Value = Session> {
    let batch = prop::collection::vec(hostile_event(streams, ids), 1..12);
    let end = prop_oneof![Just(End::Close), Just(End::Kill), Just(End::CheckpointAndKill)];
    // Forget everything after each window, something now and then, nothing.
    let memory_budget = prop_oneof![Just(0), Just(60 << 10), Just(1 << 30)];
    let orderers = prop_oneof![Just(1), Just(2), Just(16)];
    (prop::collection::vec(batch, 0..8), 1..4_usize, orderers, memory_budget, end).prop_map(
        |(batches, scanners, orderers, memory_budget, end)| Session {
            batches,
            scanners,
            orderers,
            memory_budget,
            end,
        },
    )
}

fn options(session: &Session) -> Options {
    Options::new()
        .scanners(session.scanners)
        .orderers(session.orderers)
        .segment_bytes(1 << 20)
        .memory_budget(session.memory_budget)
}

fn run(sessions: &[Session]) {
    let mut storage = MemoryStorage::new();
    for session in sessions {
        let store = options(session).open_on(shared(&storage)).expect("opens");
        let mut seen = Vec::new();
        for events in &session.batches {
            let batch = batch_of(events, &storage);
            let ticket = store.submit(batch, Ack::Ordered).expect("accepted");
            seen.extend(ticket.wait().expect("appended").placements);
        }
        let expected = expected(&storage);
        check(&store, &expected);
        check_placements(&seen, &expected);
        check_report(&store, &expected);
        match session.end {
            End::Close => store.close().expect("closes"),
            End::Kill => storage = storage.fork(),
            End::CheckpointAndKill => {
                store.checkpoint().expect("a checkpoint");
                storage = storage.fork();
            }
        }
    }
    let expected = expected(&storage);
    let reader = Options::new().open_read_only_on(shared(&storage)).expect("opens");
    check(&reader, &expected);
    let store = Options::new().orderers(2).open_on(shared(&storage)).expect("opens");
    check(&store, &expected);
}

/// The store's own check finds nothing wrong, and counts right.
fn check_report(store: &Store, expected: &common::Expected) {
    let report = store.verify().expect("verifies");
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
    assert_eq!(report.records, expected.arrivals.len() as u64);
    assert_eq!(report.delivered, expected.order.len() as u64);
    assert_eq!(report.held, expected.held.len() as u64);
}

/// What the receipts of the last session said is what the machine made of the arrivals.
fn check_placements(seen: &[Placement], expected: &common::Expected) {
    let arrivals = &expected.arrivals[expected.arrivals.len() - seen.len()..];
    for (placement, (position, _)) in seen.iter().zip(arrivals) {
        assert_eq!(*placement, expected.placement(*position), "position {position}");
    }
}

/// Small sessions are windows of a few records each. Here the log is one long tail, so that windows are
/// large enough for the pool, whatever the number of threads.
fn run_large(events: &[TestEvent]) {
    let storage = MemoryStorage::new();
    let store = Options::new().orderers(1).open_on(shared(&storage)).expect("opens");
    for events in events.chunks(700) {
        let batch = batch_of(events, &storage);
        // Ordered: until then, the gate may know of a seal and not yet that it was taken off.
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    }
    let expected = expected(&storage);
    check(&store, &expected);
    // Before anything is checkpointed, every fork orders all of it again, as after a crash.
    for (orderers, budget) in [(1, 1 << 30), (2, 1 << 30), (3, 0), (5, 1 << 18), (16, 1 << 20)] {
        let fork = storage.fork();
        let options = Options::new().orderers(orderers).scanners(orderers.min(4));
        let options = options.memory_budget(budget);
        let store = options.open_on(shared(&fork)).expect("opens");
        check(&store, &expected);
        check_report(&store, &expected);
    }
}

/// As many cases as `PROPTEST_CASES` says, in relation to its default of 256. A failure prints its
/// seed and saves it beside this file, to be tried first from then on.
fn cases(of_256: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: (config.cases * of_256).div_ceil(256),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..config
    }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn few_streams_with_many_collisions(
        sessions in prop::collection::vec(session(2, 12), 1..4)
    ) {
        run(&sessions);
    }

    #[test]
    fn many_streams(sessions in prop::collection::vec(session(200, 40), 1..3)) {
        run(&sessions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..cases(8) })]

    #[test]
    fn large_windows(events in prop::collection::vec(hostile_event(60, 120), 3000..6000)) {
        run_large(&events);
    }
}
