//! Everything but the log can be made again. Whatever happens to the other files, the store shows
//! the order that the serial machine makes of the log, or says by name what cannot be read; and
//! damage to the log itself is found, named and never passed over.

mod common;

use std::ops::ControlFlow;

use common::files::{bytes, put};
use common::{Expected, Rng, acked, append_every_kind, check, expected, flip, shared};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{
    Ack, Cause, Event, LogOpenError, MixedBatch, OpenError, Options, ReadError, Store,
    VerifyReport, rebuild, verify, verify_on,
};

const CHECKPOINT: &str = "checkpoint.ckp";
const ORDER: &str = "order-0000000000000000.ord";
const TIPS: &str = "tips-0000000000000000.tip";
const SEGMENT: &str = "segment-0000000000000001.wal";
const DERIVED: [&str; 3] = [CHECKPOINT, ORDER, TIPS];

fn open(storage: &MemoryStorage) -> Result<Store, OpenError> {
    Options::new().orderers(1).scanners(1).open_on(shared(storage))
}

fn fill(store: &Store, rng: &mut Rng, count: u64) {
    append_every_kind(store, rng, count, 5);
}

/// A store with events of every kind, closed.
fn closed_store(seed: u64) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let store = open(&storage).expect("opens");
    fill(&store, &mut Rng(seed), 60);
    store.close().expect("closes");
    let stats = store.stats();
    let kinds = [stats.delivered, stats.held, stats.duplicates, stats.conflicts, stats.rejected];
    assert!(kinds.iter().all(|&count| count > 0), "of every kind: {stats:?}");
    storage
}

/// End of what is not zero.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

fn verified(storage: &MemoryStorage) -> Result<VerifyReport, ReadError> {
    verify_on(shared(storage), &|_| ControlFlow::Continue(()))
}

/// The store opens for reading and for writing with exactly the expected order, goes on, and is
/// healthy then.
fn check_opens(storage: &MemoryStorage, expected_now: &Expected, what: &str) {
    println!("{what}");
    let reader = Options::new().orderers(1).open_read_only_on(shared(storage)).expect("opens");
    check(&reader, expected_now);
    drop(reader);
    let store = open(storage).expect("opens");
    check(&store, expected_now);
    fill(&store, &mut Rng(99), 3);
    check(&store, &expected(storage));
    store.close().expect("closes");
    assert_eq!(verified(storage).expect("verifies").problems, []);
}

#[test]
fn derived_files_that_are_gone_cut_or_empty() {
    let storage = closed_store(1);
    let order = expected(&storage);
    for name in DERIVED {
        let original = bytes(&storage, name);
        let gone = storage.fork();
        gone.remove(name).expect("removes");
        check_opens(&gone, &order, &format!("{name} is gone"));
        let used = used(&original);
        for len in [0, 1, 47, 95, 4095, 4096, used / 2, used - 1, original.len() - 1] {
            if len >= original.len() {
                continue;
            }
            let cut = storage.fork();
            put(&cut, name, &original[..len]);
            check_opens(&cut, &order, &format!("{name} has {len} bytes"));
            let zeroed = storage.fork();
            put(&zeroed, name, &vec![0; len]);
            check_opens(&zeroed, &order, &format!("{name} is {len} zeros"));
        }
        let longer = storage.fork();
        put(&longer, name, &[original, vec![0; 4096]].concat());
        check_opens(&longer, &order, &format!("{name} is longer"));
    }
    let none = storage.fork();
    DERIVED.iter().for_each(|name| none.remove(name).expect("removes"));
    check_opens(&none, &order, "all of them are gone");
}

/// A hole takes no space, and reading it would take as much memory as it seems to be long.
#[test]
fn a_checkpoint_that_seems_to_be_endless_is_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = || Options::new().orderers(1).scanners(1);
    let store = options().open(dir.path()).expect("opens");
    fill(&store, &mut Rng(3), 5);
    store.close().expect("closes");
    let file = std::fs::File::options().write(true).open(dir.path().join(CHECKPOINT));
    file.and_then(|file| file.set_len(1 << 40)).expect("grows");
    let expected = expected(&thalweg::storage::OsStorage::open(dir.path()).expect("is there"));
    check(&options().open_read_only(dir.path()).expect("opens for reading"), &expected);
    check(&options().open(dir.path()).expect("opens"), &expected);
}

#[test]
fn derived_files_of_another_store() {
    let (storage, other) = (closed_store(1), closed_store(2));
    let order = expected(&storage);
    // The log of the other store goes on for longer: that proves nothing about this one.
    let store = open(&other).expect("opens");
    fill(&store, &mut Rng(3), 30);
    store.close().expect("closes");
    for mask in 1..8 {
        let mixed = storage.fork();
        let mut names = Vec::new();
        for (bit, name) in DERIVED.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1) {
            put(&mixed, name, &bytes(&other, name));
            names.push((bit, name));
        }
        check_opens(&mixed, &order, &format!("{names:?} come from another store"));
    }
}

#[test]
fn derived_files_of_an_older_moment_of_the_store() {
    let storage = MemoryStorage::new();
    let mut rng = Rng(5);
    let store = open(&storage).expect("opens");
    fill(&store, &mut rng, 20);
    store.checkpoint().expect("a checkpoint");
    let older = storage.fork();
    fill(&store, &mut rng, 20);
    store.close().expect("closes");
    let order = expected(&storage);
    // The checkpoint is what counts; the chunks have what it counts, and more.
    let mixed = storage.fork();
    put(&mixed, CHECKPOINT, &bytes(&older, CHECKPOINT));
    check_opens(&mixed, &order, "the checkpoint is older");
    let mixed = storage.fork();
    DERIVED.iter().for_each(|name| put(&mixed, name, &bytes(&older, name)));
    check_opens(&mixed, &order, "all of them are older");
    // A newer checkpoint over older chunks counts entries that are not there.
    for name in [ORDER, TIPS] {
        let mixed = storage.fork();
        put(&mixed, name, &bytes(&older, name));
        check_damaged(&mixed, &order, &format!("{name} is older"));
    }
}

/// Something in a chunk is wrong: whatever the store shows is right, what it cannot show is an
/// error in its place, `verify` reports it, and a rebuild brings all of it back.
fn check_damaged(storage: &MemoryStorage, order: &Expected, what: &str) {
    println!("{what}");
    let report = verified(storage).expect("verifies");
    assert!(report.problem_count > 0, "{what}: not found");
    check_what_is_shown(storage, order);
    // What a rebuild does to a directory, done here in memory.
    for name in storage.list().expect("lists") {
        if DERIVED.contains(&name.as_str()) {
            storage.remove(&name).expect("removes");
        }
    }
    check_opens(storage, order, "rebuilt");
}

/// Everything that a store shows is right; returns how many events it could not show.
fn check_what_is_shown(storage: &MemoryStorage, order: &Expected) -> usize {
    let reader = match Options::new().orderers(1).open_read_only_on(shared(storage)) {
        Ok(reader) => reader,
        Err(error) => panic!("opens for reading: {error}"),
    };
    if let Err(error) = reader.wait_committed(reader.durable_end()) {
        let typed = matches!(error, ReadError::Poisoned(Cause::Derived(_) | Cause::Damage(_)));
        assert!(typed, "{error:?}");
    }
    let mut errors = 0;
    for (global, event) in reader.read(..).expect("reads").enumerate() {
        match event {
            Ok(event) => {
                let delivery = &order.order[global];
                let wanted = &order.events[&delivery.position];
                assert_eq!((event.global(), event.local()), (global as u64, delivery.local));
                assert_eq!(
                    (event.position(), event.payload()),
                    (delivery.position, &wanted.payload[..])
                );
                assert_eq!(event.id(), wanted.id);
                match event.parents() {
                    Ok(parents) => assert_eq!(parents, delivery.parents),
                    Err(error) => {
                        assert!(matches!(error, ReadError::Order { .. } | ReadError::Damage(_)));
                        errors += 1;
                    }
                }
            }
            Err(error) => {
                let typed = matches!(error, ReadError::Order { .. } | ReadError::Damage(_));
                assert!(typed, "{error:?}");
                errors += 1;
            }
        }
    }
    for stream in ["s0", "s1", "s2"] {
        if let Ok(Some(view)) = reader.stream(stream) {
            for event in view.read(..).expect("reads").flatten() {
                let delivery = &order.order[event.global() as usize];
                let wanted = (delivery.position, delivery.local, stream.as_bytes());
                assert_eq!((event.position(), event.local(), event.stream()), wanted);
            }
        }
    }
    errors
}

/// For each byte of the derived files: either `verify` sees that it is wrong, or it does not matter.
#[test]
fn every_byte_of_a_derived_file_is_checked_or_does_not_matter() {
    let storage = closed_store(3);
    let order = expected(&storage);
    let mut rng = Rng::from_env();
    for name in DERIVED {
        let original = bytes(&storage, name);
        let (used, len) = (used(&original) as u64, original.len() as u64);
        let mut offsets: Vec<u64> = (0..100).chain(4090..4200).chain([used - 1, len - 1]).collect();
        offsets.extend((0..400).map(|_| rng.below(used)));
        offsets.extend((0..20).map(|_| rng.below(len)));
        offsets.retain(|&offset| offset < len);
        let (mut seen, mut harmless) = (0, Vec::new());
        for offset in offsets {
            let mask = 1 << rng.below(8);
            flip(&storage, name, offset, mask);
            let report = verified(&storage).expect("verifies");
            if report.problem_count > 0 {
                seen += 1;
            } else {
                harmless.push(offset);
                let reader = Options::new().orderers(1).open_read_only_on(shared(&storage));
                check(&reader.expect("opens"), &order);
            }
            if name == CHECKPOINT {
                assert!(report.problem_count > 0, "byte {offset} of the checkpoint");
                if offset % 16 == 0 {
                    let reader = Options::new().orderers(1).open_read_only_on(shared(&storage));
                    check(&reader.expect("opens"), &order);
                }
            } else if report.problem_count > 0 && offset % 8 == 0 {
                check_what_is_shown(&storage, &order);
            }
            flip(&storage, name, offset, mask);
        }
        println!("{name}: {seen} seen, harmless: {harmless:?}");
        assert!(seen > 100, "{name}: {seen}");
    }
    assert_eq!(verified(&storage).expect("verifies").problems, []);
}

/// For each byte of the log: `verify` sees that it is wrong, unless nothing was ever written there.
#[test]
fn every_byte_of_the_log_is_checked() {
    let storage = closed_store(4);
    let order = expected(&storage);
    let mut rng = Rng::from_env();
    let end = used(&bytes(&storage, SEGMENT)) as u64;
    let mut offsets: Vec<u64> = (0..200).chain(4090..4250).chain(end - 60..end).collect();
    offsets.extend((0..350).map(|_| rng.below(end)));
    for offset in offsets {
        let mask = 1 << rng.below(8);
        flip(&storage, SEGMENT, offset, mask);
        match verified(&storage) {
            Ok(report) if report.problem_count > 0 => {}
            Ok(_) => check(
                &Options::new().orderers(1).open_read_only_on(shared(&storage)).expect("opens"),
                &order,
            ),
            // The header of the only segment.
            Err(ReadError::Open(_)) => assert!(offset < 4096, "byte {offset}"),
            Err(error) => panic!("byte {offset}: {error}"),
        }
        if offset % 8 == 0 && offset >= 4096 {
            let _ = Options::new().orderers(1).open_read_only_on(shared(&storage)).map(|reader| {
                let _ = reader.wait_committed(reader.durable_end());
                reader.read(..).expect("reads").flatten().for_each(|event| {
                    assert_eq!(event.payload(), order.events[&event.position()].payload);
                });
            });
        }
        flip(&storage, SEGMENT, offset, mask);
    }
    check_opens(&storage, &order, "as it was");
}

#[test]
fn a_healthy_store_has_no_problems_and_the_right_counts() {
    for seed in 10..14 {
        let storage = closed_store(seed);
        let order = expected(&storage);
        let report = verified(&storage).expect("verifies");
        assert_eq!(report.problems, []);
        let count = |arrival| order.count(|other| other == arrival);
        use thalweg::reference::Arrival;
        let delivered = order.order.len() as u64;
        assert_eq!(
            [report.records, report.delivered, report.held, report.compared],
            [order.arrivals.len() as u64, delivered, order.held.len() as u64, delivered]
        );
        assert_eq!(
            [report.duplicates, report.conflicts, report.rejected, report.streams],
            [count(Arrival::Duplicate), count(Arrival::Conflict), order.rejected(), 3]
        );
        assert!(!report.interrupted);
    }
}

#[test]
fn random_bytes_as_any_kind_of_file() {
    let storage = closed_store(6);
    let order = expected(&storage);
    let mut rng = Rng::from_env();
    for name in [CHECKPOINT, ORDER, TIPS, SEGMENT, "checkpoint.new", "segment-0000000000000002.wal"]
    {
        for len in [0, 1, 100, 4096, 70_000, 1 << 20] {
            let noisy = storage.fork();
            let noise: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
            put(&noisy, name, &noise);
            let report = verified(&noisy);
            if name.starts_with("segment") {
                // Refused, or reported: never taken for a log, and never a panic.
                let sound = report.is_ok_and(|report| report.problem_count == 0);
                assert!(!sound, "{len} random bytes as {name}");
                if let Ok(reader) = Options::new().open_read_only_on(shared(&noisy)) {
                    let _ = reader.wait_committed(reader.durable_end());
                    for event in reader.read(..).expect("reads").flatten() {
                        assert_eq!(event.payload(), order.events[&event.position()].payload);
                    }
                }
                match open(&noisy) {
                    Err(OpenError::Log(_)) => {}
                    other => panic!("{len} random bytes as {name}: {other:?}"),
                }
            } else {
                report.expect("verifies");
                check_opens(&noisy, &order, &format!("{len} random bytes as {name}"));
            }
        }
    }
}

// Damage to the log.

/// A store that was killed, with two segments: nothing of its log is in a checkpoint, or, with
/// `checkpointed`, all of the first segment.
fn killed_store(checkpointed: bool) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let store = open(&storage).expect("opens");
    fill(&store, &mut Rng(8), 30);
    let large = store.appender_with("s0", acked(Ack::Ordered)).expect("an appender");
    large.append(vec![1; 600_000]).expect("accepted").wait().expect("appended");
    if checkpointed {
        store.checkpoint().expect("a checkpoint");
    }
    large.append(vec![1; 600_000]).expect("accepted").wait().expect("appended");
    fill(&store, &mut Rng(9), 10);
    storage.fork()
}

#[test]
fn a_damaged_record_stops_writers_and_is_left_out_by_readers() {
    let storage = killed_store(false);
    let whole = expected(&storage);
    // Somewhere in the middle.
    let (&position, _) = whole.events.iter().nth(60).expect("many events");
    let (&after, _) = whole.events.range(position + 1..).next().expect("many events");
    flip(&storage, SEGMENT, after - 8, 4);
    let before = storage.fork();

    let store = open(&storage).expect("the last segment is whole, so it opens");
    let cause = match store.wait_committed(store.durable_end()) {
        Err(ReadError::Poisoned(cause)) => cause,
        other => panic!("{other:?}"),
    };
    match &cause {
        Cause::Damage(damage) => {
            assert_eq!((damage.position, damage.file.as_str()), (position, SEGMENT));
            assert_eq!(damage.resumes, after);
        }
        other => panic!("{other:?}"),
    }
    let refused = store.submit(
        {
            let mut batch = MixedBatch::new();
            batch.push("s0", &Event::new("x")).expect("within the limits");
            batch
        },
        Ack::Durable,
    );
    refused.expect_err("nothing more is appended behind damage");
    for event in store.read(..).expect("reads") {
        let event = event.expect("reads");
        assert_eq!(event.position(), whole.order[event.global() as usize].position);
    }
    store.close().expect_err("it had stopped");
    assert!(bytes(&storage, SEGMENT) == bytes(&before, SEGMENT), "the log is not touched");

    // A reader shows the order of what is whole.
    let mut machine = thalweg::reference::SerialMachine::default();
    for (place, record) in whole.records.iter().filter(|(place, _)| place.start != position) {
        machine.arrive(place.clone(), record.clone());
    }
    let reader = Options::new().open_read_only_on(shared(&before)).expect("opens");
    reader.wait_committed(reader.durable_end()).expect("goes on behind the damage");
    let read: Vec<u64> =
        reader.read(..).expect("reads").map(|event| event.expect("reads").position()).collect();
    let wanted: Vec<u64> = machine.order.iter().map(|delivery| delivery.position).collect();
    assert_eq!(read, wanted);
    assert_eq!(reader.stats().corrupt, 1);
    let report = verified(&before).expect("verifies");
    assert_eq!((report.problem_count, report.problems[0].position), (1, Some(position)));
    assert_eq!(report.records, whole.records.len() as u64 - 1);
}

#[test]
fn damage_below_the_checkpoint_is_an_error_in_its_place() {
    let storage = killed_store(true);
    let whole = expected(&storage);
    let delivery = whole.order.iter().find(|delivery| delivery.local == 2).expect("a delivery");
    flip(&storage, SEGMENT, delivery.position + 20, 4);
    let reader = Options::new().open_read_only_on(shared(&storage)).expect("opens");
    let _ = reader.wait_committed(reader.durable_end());
    let mut errors = Vec::new();
    for (global, event) in reader.read(..).expect("reads").enumerate() {
        match event {
            Ok(event) => assert_eq!(event.position(), whole.order[global].position),
            Err(ReadError::Damage(damage)) => errors.push(damage.position),
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(errors, [delivery.position], "one event, and no other");
    assert_eq!(
        reader.stats().delivered,
        whole.order.len() as u64,
        "the tail is ordered all the same"
    );
    assert!(verified(&storage).expect("verifies").problem_count > 0);
}

/// The orderer compares what arrives with the records behind the tips; one of them that is damaged
/// stopped a reader, with the streams that had nothing to do with it.
#[test]
fn a_damaged_tip_below_the_checkpoint_hinders_no_other_stream() {
    let storage = MemoryStorage::new();
    let store = open(&storage).expect("opens");
    let append = |stream: &str, event: thalweg::NewEvent| {
        let appender = store.appender_with(stream, acked(Ack::Ordered)).expect("an appender");
        appender.append_event(event).expect("accepted").wait().expect("appended").position
    };
    append("s", Event::new("").id("root"));
    let tip = append("s", Event::new("").id("tip"));
    append("large", Event::new(vec![0; 600_000]));
    store.checkpoint().expect("a checkpoint");
    append("large", Event::new(vec![0; 600_000]));
    append("s", Event::new("").id("child").parents(["tip"]));
    append("t", Event::new("").id("other"));
    let storage = storage.fork();
    flip(&storage, SEGMENT, tip + 20, 1);
    let reader = Options::new().orderers(1).open_read_only_on(shared(&storage)).expect("opens");
    reader.wait_committed(reader.durable_end()).expect("goes on");
    assert!(reader.get("t", "other").expect("gets").is_some());
    let errors: Vec<u64> = (0..)
        .zip(reader.read(..).expect("reads"))
        .filter_map(|(global, event)| event.is_err().then_some(global))
        .collect();
    assert_eq!(errors, [1], "the tip, and nothing else");
    drop(reader);
    let writer = open(&storage).expect("opens");
    let stopped = writer.wait_committed(writer.durable_end());
    let by_damage = matches!(
        &stopped,
        Err(ReadError::Poisoned(Cause::Damage(damage))) if damage.position == tip
    );
    assert!(by_damage, "{stopped:?}");
}

#[test]
fn damage_in_the_newest_acknowledged_frames_is_refused_by_name() {
    let storage = closed_store(7);
    let end = used(&bytes(&storage, SEGMENT)) as u64;
    flip(&storage, SEGMENT, end - 10, 1);
    let before = bytes(&storage, SEGMENT);
    match open(&storage) {
        Err(OpenError::Log(LogOpenError::Damaged(damage))) => assert_eq!(damage.file, SEGMENT),
        other => panic!("{other:?}"),
    }
    assert!(bytes(&storage, SEGMENT) == before, "nothing is cut");
    let report = verified(&storage).expect("verifies");
    let of_the_log = report.problems.iter().filter(|problem| problem.file == SEGMENT).count();
    assert_eq!(of_the_log, 1, "{:?}", report.problems);
    let reader = Options::new().open_read_only_on(shared(&storage)).expect("opens for reading");
    reader.wait_committed(reader.durable_end()).expect("what a checkpoint has ordered is there");
}

#[test]
fn damage_in_front_of_whole_frames_of_the_last_segment_is_refused_by_name() {
    let storage = MemoryStorage::new();
    let store = open(&storage).expect("opens");
    fill(&store, &mut Rng(8), 30);
    let storage = storage.fork();
    let whole = expected(&storage);
    let (&after, _) = whole.events.iter().nth(61).expect("many events");
    flip(&storage, SEGMENT, after - 8, 4);
    let before = bytes(&storage, SEGMENT);
    match open(&storage) {
        Err(OpenError::Log(LogOpenError::Damaged(damage))) => assert_eq!(damage.file, SEGMENT),
        other => panic!("{other:?}"),
    }
    assert!(bytes(&storage, SEGMENT) == before, "nothing is cut");
    let report = verified(&storage).expect("verifies");
    assert_eq!(report.problem_count, 1, "{:?}", report.problems);
    assert_eq!(report.records, whole.records.len() as u64 - 1);
}

// Rebuilding.

#[test]
fn a_rebuild_makes_the_same_order_and_counts_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Options::new().segment_bytes(1 << 20).open(dir.path()).expect("opens");
    fill(&store, &mut Rng(1), 60);
    store.close().expect("closes");
    let storage = thalweg::storage::OsStorage::open(dir.path()).expect("opens");
    let order = expected(&storage);
    let derived: Vec<Vec<u8>> = [ORDER, TIPS].iter().map(|name| bytes(&storage, name)).collect();
    let report =
        rebuild(dir.path(), Options::new(), &|_| ControlFlow::Continue(())).expect("rebuilds");
    assert_eq!(
        [report.scanned, report.delivered, report.held, report.corrupt],
        [order.events.len() as u64, order.order.len() as u64, order.held.len() as u64, 0]
    );
    assert!(report.is_done);
    for (name, before) in [ORDER, TIPS].iter().zip(derived) {
        assert!(bytes(&storage, name) == before, "{name} is another");
    }
    let store = Options::new().open(dir.path()).expect("opens");
    check(&store, &expected(&storage));
    let locked = rebuild(dir.path(), Options::new(), &|_| ControlFlow::Continue(()));
    assert!(matches!(locked, Err(OpenError::Log(LogOpenError::Locked { .. }))), "{locked:?}");
    check(&store, &expected(&storage));
    store.close().expect("closes");
    let report = verify(dir.path(), &|_| ControlFlow::Continue(())).expect("verifies");
    assert_eq!(report.problems, []);
    let _ = rebuild(dir.path(), Options::new(), &|_| ControlFlow::Break(()));
    let store = Options::new().open(dir.path()).expect("opens after an interrupted rebuild");
    check(&store, &expected(&storage));
}

#[test]
fn a_rebuild_repairs_what_is_derived() {
    for name in DERIVED {
        for offset in [20, 4096 + 25] {
            let dir = tempfile::tempdir().expect("a directory");
            let store = Options::new().open(dir.path()).expect("opens");
            fill(&store, &mut Rng(1), 60);
            store.close().expect("closes");
            let path = dir.path().join(name);
            let mut bytes = std::fs::read(&path).expect("reads");
            let offset = offset.min(bytes.len() - 1);
            bytes[offset] ^= 1;
            std::fs::write(&path, bytes).expect("writes");
            let problems = verify(dir.path(), &|_| ControlFlow::Continue(())).expect("verifies");
            assert!(problems.problem_count > 0, "{name} {offset}");
            rebuild(dir.path(), Options::new(), &|_| ControlFlow::Continue(())).expect("rebuilds");
            let problems = verify(dir.path(), &|_| ControlFlow::Continue(())).expect("verifies");
            assert_eq!(problems.problems, []);
            let storage = thalweg::storage::OsStorage::open(dir.path()).expect("opens");
            check(&Store::open(dir.path()).expect("opens"), &expected(&storage));
        }
    }
}

#[test]
fn a_rebuild_of_a_damaged_log_throws_no_evidence_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Options::new().open(dir.path()).expect("opens");
    fill(&store, &mut Rng(1), 60);
    store.close().expect("closes");
    let order = expected(&thalweg::storage::OsStorage::open(dir.path()).expect("opens"));
    let path = dir.path().join(SEGMENT);
    let whole = std::fs::read(&path).expect("reads");
    // In the middle, and in the newest frame, which only the checkpoint knows to have been there.
    let middle = *order.events.iter().nth(31).expect("many events").0 as usize - 8;
    for offset in [middle, used(&whole) - 10] {
        let mut log = whole.clone();
        log[offset] ^= 1;
        std::fs::write(&path, &log).expect("writes");
        let files = || DERIVED.map(|name| std::fs::read(dir.path().join(name)).expect("is there"));
        let before = files();
        match rebuild(dir.path(), Options::new(), &|_| ControlFlow::Continue(())) {
            Ok(report) => assert_eq!(report.corrupt, 1, "offset {offset}"),
            Err(OpenError::Log(LogOpenError::Damaged(damage))) => assert_eq!(damage.file, SEGMENT),
            Err(error) => panic!("{error:?}"),
        }
        assert!(files() == before, "offset {offset}: a derived file was changed");
        assert!(std::fs::read(&path).expect("reads") == log, "the log was changed");
    }
}
