//! Faults that were met once. Each test tells what went wrong, and sees that it does not again.

mod common;
#[path = "../../wal/tests/common/disk.rs"]
mod disk;
#[path = "common/faulty.rs"]
mod faulty;

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{SOON, acked, append, check, expected, flip, keep, nothing_hangs, shared, soon};
use disk::Disk;
use faulty::{Fault, Faulty, Op, open as open_faulty, options};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{
    Ack, AppendFailure, Batch, Cause, CloseError, Durability, Event, LogOpenError, MixedBatch,
    NewEvent, OpenError, Options, ReadError, Store, rebuild,
};

const SEGMENT: &str = "segment-0000000000000001";
const RUN: &str = "run-0000000000000001.run";
const NEXT_SEGMENT: &str = "segment-0000000000000002";

fn open(storage: &MemoryStorage) -> Store {
    options().open_on(shared(storage)).expect("opens")
}

fn root(id: &str) -> NewEvent {
    Event::new(format!("the payload of {id}")).id(id).parents::<&str>([])
}

fn append_root(store: &Store, id: &str) {
    let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
    let _ = appender.submit(Batch::from([root(id)])).expect("accepted").wait();
}

fn is_panic_of(cause: &Cause, name: &str) -> bool {
    matches!(cause, Cause::Panic { thread, .. } if *thread == name)
}

/// The store has stopped: whatever is asked of it ends, closing says why, and the next opening makes
/// the order of all that is stored.
fn check_stopped(store: Store, storage: &Faulty, is_cause: impl Fn(&Cause) -> bool) {
    let cause = store.cause().expect("the engine has stopped");
    assert!(is_cause(&cause), "{cause:?}");
    nothing_hangs(&store);
    let closed = soon("close", move || store.close());
    assert!(matches!(&closed, Err(CloseError::Poisoned(cause)) if is_cause(cause)), "{closed:?}");
    check(&open(&storage.inner), &expected(&storage.inner));
}

/// A closed store of which only the log is left, so that opening orders all of it: many more windows
/// than the stages have under way.
fn long_tail() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let store = Options::new().segment_bytes(8 << 20).open_on(shared(&storage)).expect("opens");
    for number in 0..12 {
        append(&store, "s", vec![number; 4 << 20]);
    }
    store.close().expect("closes");
    for name in storage.list().expect("lists") {
        if !name.starts_with("segment-") && name != "LOCK" {
            storage.remove(&name).expect("removes");
        }
    }
    storage
}

// A stage dies.

/// A panic took the stage away before the cause was known, or nobody told the orderer: tickets, calls
/// or closing then waited for what a dead thread would have sent.
#[test]
fn a_stage_that_panics_is_named_and_leaves_nobody_waiting() {
    for (thread, op, file) in [
        ("thalweg-writer", Op::Write, SEGMENT),
        ("thalweg-writer", Op::Sync, SEGMENT),
        ("thalweg-preparer", Op::Create, NEXT_SEGMENT),
        ("thalweg-committer", Op::Write, "order-"),
        ("thalweg-checkpoint", Op::Create, "checkpoint"),
    ] {
        println!("{thread} at {op:?}");
        let storage = Faulty::default();
        let store = open_faulty(&storage);
        keep(&store);
        append(&store, "s", "before");
        storage.panic(Fault::always(op, file));
        let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
        // The second makes the store prepare a segment.
        let tickets = [1, 400_000, 2].map(|len| appender.append(vec![7; len]));
        let mut stored = 1;
        for mut ticket in tickets.into_iter().flatten() {
            match ticket.wait_timeout(SOON).expect("completes") {
                Ok(_) => stored += 1,
                Err(AppendFailure::Unknown(cause) | AppendFailure::NotAppended(cause)) => {
                    assert!(is_panic_of(&cause, thread), "{cause:?}");
                }
            }
        }
        let asked = store.clone();
        let _ = soon("checkpoint", move || asked.checkpoint());
        // The preparer may not have got to it yet.
        let waited = soon("wait_committed", {
            let store = store.clone();
            move || store.wait_committed(u64::MAX)
        });
        assert!(
            matches!(&waited, Err(ReadError::Poisoned(cause)) if is_panic_of(cause, thread)),
            "{waited:?}"
        );
        check_stopped(store, &storage, |cause| is_panic_of(cause, thread));
        assert!(expected(&storage.inner).events.len() >= stored, "what is acknowledged is there");
    }
}

/// The writer waited for the segment that the preparer was filling, and the preparer died of it: the
/// writer never heard that none would come.
#[test]
fn a_roll_that_waits_for_a_segment_learns_that_none_will_come() {
    let storage = Faulty::default();
    storage.hold(Op::Sync, NEXT_SEGMENT);
    storage.panic(Fault { count: 1, ..Fault::always(Op::Sync, NEXT_SEGMENT) });
    let store = open_faulty(&storage);
    keep(&store);
    append(&store, "s", vec![1; 600_000]);
    storage.wait_until_one_waits();
    let appender = store.appender("s").expect("an appender");
    let mut rolls = appender.append(vec![2; 600_000]).expect("accepted");
    assert!(rolls.wait_timeout(Duration::from_millis(50)).is_none(), "it needs the segment");
    storage.let_go();
    // The writer has made a segment by itself, unless it has heard of the panic before.
    if let Err(failure) = rolls.wait_timeout(SOON).expect("completes") {
        let (AppendFailure::Unknown(cause) | AppendFailure::NotAppended(cause)) = failure;
        assert!(is_panic_of(&cause, "thalweg-preparer"), "{cause:?}");
    }
    let waiting = store.clone();
    soon("wait_committed", move || waiting.wait_committed(u64::MAX)).expect_err("it has stopped");
    check_stopped(store, &storage, |cause| is_panic_of(cause, "thalweg-preparer"));
}

/// When the thread that writes the order had died, the orderer went on with windows that nobody
/// took, and kept the order of the whole tail in memory. Questions waited for it.
#[test]
fn a_long_tail_whose_order_cannot_be_written_is_given_up() {
    let tail = long_tail();
    for panics in [false, true] {
        let storage = Faulty::over(tail.fork());
        let error = std::io::ErrorKind::PermissionDenied;
        let fault = Fault { error, ..Fault::always(Op::Create, "order-") };
        if panics {
            storage.panic(fault)
        } else {
            storage.fail(fault)
        }
        let store = open_faulty(&storage);
        let waiting = store.clone();
        soon("wait_committed", move || waiting.wait_committed(u64::MAX)).expect_err("it stops");
        nothing_hangs(&store);
        // An orderer that has ended answers no questions.
        let begun = Instant::now();
        while store.held().is_ok() {
            assert!(begun.elapsed() < SOON, "the orderer goes on: {:?}", store.stats());
        }
        let stats = store.stats();
        assert!(stats.ordered < stats.durable, "all of it was ordered in vain: {stats:?}");
        check_stopped(store, &storage, |cause| match panics {
            false => matches!(cause, Cause::Derived(_)),
            true => is_panic_of(cause, "thalweg-committer"),
        });
    }
}

/// Closing told the orderer to end by a message behind all others, so it first ordered what the
/// scanners had sent. Closing waits for half a second and leaves the rest to the next opening.
#[test]
fn closing_leaves_a_long_tail_to_the_next_opening() {
    let storage = Faulty::over(long_tail());
    storage.hold(Op::Write, "order-");
    let store = open_faulty(&storage);
    storage.wait_until_one_waits();
    let closing = store.clone();
    let closing = std::thread::spawn(move || soon("close", move || closing.close()));
    // Much longer than closing waits for the order.
    std::thread::sleep(Duration::from_secs(2));
    storage.let_go();
    closing.join().expect("no panic").expect("closes");
    let stats = store.stats();
    assert_eq!(stats.committed, stats.ordered, "what is ordered is committed");
    assert!(stats.ordered < stats.durable, "it has ordered all of it: {stats:?}");
    check(&open(&storage.inner), &expected(&storage.inner));
}

/// The state of the order was over its budget, and could not be written: the order tried again for ever, and
/// whoever waited for it waited as long. Only for room it is right to wait, and not if a sync of the order has
/// failed for lack of it, since none is tried again.
#[test]
fn a_state_that_cannot_be_written_leaves_nobody_waiting() {
    for (op, file, error) in [
        (Op::Create, "run-", ErrorKind::Other),
        (Op::Write, "run-", ErrorKind::Other),
        (Op::Sync, "run-", ErrorKind::Other),
        (Op::Rename, "checkpoint", ErrorKind::Other),
        (Op::Sync, "order-", ErrorKind::StorageFull),
    ] {
        println!("{op:?} of {file}: {error}");
        let storage = Faulty::default();
        let store = options().memory_budget(0).open_on(Arc::new(storage.clone())).expect("opens");
        keep(&store);
        append(&store, "s", "before");
        storage.fail(Fault { error, ..Fault::always(op, file) });
        let appender = store.appender_with("s", acked(Ack::Ordered)).expect("an appender");
        for _ in 0..3 {
            let Ok(mut ticket) = appender.append("x") else { break };
            let _ = ticket.wait_timeout(SOON).expect("completes");
        }
        let waiting = store.clone();
        let waited = soon("wait_committed", move || waiting.wait_committed(u64::MAX));
        assert!(matches!(waited, Err(ReadError::Poisoned(Cause::Derived(_)))), "{waited:?}");
        check_stopped(store, &storage, |cause| matches!(cause, Cause::Derived(_)));
    }
}

/// The order waited for a checkpoint, to make room in its memory, that the committer had let go of when it
/// failed. Questions to the store waited for the order.
#[test]
fn a_checkpoint_that_a_failed_committer_lets_go_of_is_not_waited_for() {
    let storage = Faulty::default();
    let store = options().memory_budget(0).open_on(Arc::new(storage.clone())).expect("opens");
    keep(&store);
    append(&store, "s", "before");
    storage.fail(Fault { error: ErrorKind::Other, ..Fault::always(Op::Write, "order-") });
    append(&store, "s", "x");
    nothing_hangs(&store);
    check_stopped(store, &storage, |cause| matches!(cause, Cause::Derived(_)));
}

/// A run was written, but not the checkpoint that was to list it. The next merge took the run along, and listed the
/// result in the checkpoint before: whoever opened the store then ordered the same part of the log twice.
#[test]
fn a_run_of_a_checkpoint_that_failed_is_not_listed_by_an_older_one() {
    let storage = Faulty::default();
    let store = open_faulty(&storage);
    let fill = |count: usize| {
        let mut batch = MixedBatch::new();
        for _ in 0..count {
            batch.push("s", &Event::new("x")).expect("within the limits");
        }
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    };
    // Too much to be merged along with the next run.
    for _ in 0..3 {
        fill(90_000);
        store.checkpoint().expect("a checkpoint");
    }
    fill(1);
    storage.fail(Fault { count: 1, ..Fault::always(Op::Create, "checkpoint") });
    store.checkpoint().expect_err("there is no room");
    let runs = || {
        let mut names = storage.inner.list().expect("lists");
        names.retain(|name| name.starts_with("run-"));
        names.len()
    };
    // Time for a merge.
    let begun = Instant::now();
    while runs() != 1 && begun.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let killed = storage.inner.fork();
    check(&open(&killed), &expected(&killed));
    store.checkpoint().expect("a checkpoint");
    let begun = Instant::now();
    while runs() != 1 {
        assert!(begun.elapsed() < SOON, "{} runs are left", runs());
        std::thread::sleep(Duration::from_millis(10));
    }
    let killed = storage.inner.fork();
    let after = open(&killed);
    assert_eq!(after.stats().checkpoint_position, store.durable_end());
    check(&after, &expected(&killed));
}

/// A run was not what was written, so the checkpoint that vouched for it was taken away; and one that was on its way
/// to the disk vouched for it again.
#[test]
fn a_damaged_run_leaves_no_checkpoint_behind() {
    let storage = Faulty::default();
    let store = open_faulty(&storage);
    append_root(&store, "a");
    store.close().expect("closes");
    let store = open_faulty(&storage);
    keep(&store);
    append_root(&store, "b");
    // Its ids, and what looks for them.
    for offset in 4096..4096 + 256 {
        flip(&storage.inner, RUN, offset, 1);
    }
    storage.hold(Op::Create, "checkpoint");
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| store.checkpoint());
        storage.wait_until_one_waits();
        append_root(&store, "a");
        let cause = soon("cause", {
            let store = store.clone();
            move || store.wait_committed(u64::MAX)
        });
        assert!(matches!(cause, Err(ReadError::Poisoned(Cause::Derived(_)))), "{cause:?}");
        storage.let_go();
        let _ = checkpoint.join().expect("no panic");
    });
    let _ = store.close();
    let names = storage.inner.list().expect("lists");
    assert!(!names.iter().any(|name| name.starts_with("checkpoint")), "{names:?}");
    check(&open(&storage.inner), &expected(&storage.inner));
}

/// A rebuild whose engine stopped halfway reported the few events that it had got to as a success.
#[cfg(unix)]
#[test]
fn a_rebuild_that_stops_is_no_success() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = options().open(dir.path()).expect("opens");
    append(&store, "s", "x");
    store.close().expect("closes");
    // No file of the child may be longer than a few MiB: a segment fits, a chunk of the order does not.
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", r#"trap "" XFSZ; ulimit -f 4096; exec "$@""#, "sh"]);
    let child = common::this_test_by(shell, "child_that_rebuilds")
        .env("THALWEG_CHILD_DIR", dir.path())
        .output()
        .expect("the child runs");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains("the order cannot be written\n"), "{said}");
    let storage = thalweg::storage::OsStorage::open(dir.path()).expect("opens");
    check(&options().open(dir.path()).expect("opens"), &expected(&storage));
}

#[cfg(unix)]
#[test]
#[ignore = "the process that `a_rebuild_that_stops_is_no_success` starts"]
fn child_that_rebuilds() {
    let Some(dir) = std::env::var_os("THALWEG_CHILD_DIR") else { return };
    match rebuild(dir, options(), &|_| ControlFlow::Continue(())) {
        Err(OpenError::Poisoned(Cause::Derived(_))) => println!("\nthe order cannot be written"),
        other => println!("\n{other:?}"),
    }
}

// Damage.

/// A damaged entry of the order log stopped the store, and so it did at every later opening, since
/// the checkpoint went on vouching for it.
#[test]
fn a_damaged_order_is_made_again_by_the_next_opening() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    let appender = store.appender("s").expect("an appender");
    appender.append_event(root("a")).expect("accepted").wait().expect("appended");
    store.close().expect("closes");
    // The first entry, behind the page of the header.
    flip(&storage, "order-0000000000000000.ord", 4096 + 3, 0xFF);

    let store = open(&storage);
    // To see that it is a duplicate, the store has to look up the event that is there.
    let appender = store.appender("s").expect("an appender");
    let receipt = appender.append_event(root("a")).expect("accepted").wait().expect("appended");
    let waited = store.wait_committed(receipt.end);
    assert!(matches!(waited, Err(ReadError::Poisoned(Cause::Derived(_)))), "{waited:?}");
    store.close().expect_err("it has stopped");

    let whole = expected(&storage);
    check(&options().open_read_only_on(shared(&storage)).expect("opens"), &whole);
    check(&open(&storage), &whole);
}

// Checkpoints.

/// Every checkpoint that could not be written, for whatever reason, said that the store was closed.
#[test]
fn a_checkpoint_says_why_it_was_not_written() {
    let storage = Faulty::default();
    let store = open_faulty(&storage);
    append(&store, "s", "x");
    storage.fail(Fault::always(Op::Create, "checkpoint"));
    let failed = store.checkpoint().expect_err("the disk is full");
    let full = std::io::ErrorKind::StorageFull;
    assert!(matches!(&failed, ReadError::Io(error) if error.kind() == full), "{failed:?}");
    assert!(store.stats().checkpoint_error.is_some());
    let reader = options().open_read_only_on(shared(&storage.inner)).expect("opens");
    let refused = reader.checkpoint().expect_err("a reader writes nothing");
    assert!(matches!(refused, ReadError::ReadOnly), "{refused:?}");
    store.close().expect("a checkpoint is missing, and nothing else");
    let closed = store.checkpoint().expect_err("closed");
    assert!(matches!(closed, ReadError::Closed), "{closed:?}");
}

/// With buffered durability the order runs ahead of what is synced. A checkpoint said so, was taken
/// for one that contradicts itself, and ordering began again from the front.
#[test]
fn a_checkpoint_of_a_buffered_store_is_used() {
    let storage = MemoryStorage::new();
    let options = options().durability(Durability::Buffered);
    let store = options.clone().open_on(shared(&storage)).expect("opens");
    append(&store, "s", "x");
    let end = store.durable_end();
    store.checkpoint().expect("a checkpoint");
    let killed = storage.fork();
    let after = options.open_on(shared(&killed)).expect("opens");
    assert!(after.stats().checkpoint_position >= end, "{:?}", after.stats());
    check(&after, &expected(&killed));
}

/// A checkpoint of a store to which nothing was appended replaced the one that said that the store
/// was closed, closing saw nothing new, and the next opening began a segment for nothing.
#[test]
fn a_checkpoint_in_between_leaves_a_closed_store_closed() {
    let storage = MemoryStorage::new();
    let store = open(&storage);
    append(&store, "s", "x");
    store.close().expect("closes");
    for _ in 0..2 {
        let store = open(&storage);
        assert_eq!(store.stats().segments, 1, "it goes on in place");
        store.checkpoint().expect("a checkpoint");
        store.close().expect("closes");
    }
}

/// Verifying a store while it was written took a run for missing that a newer checkpoint had replaced.
#[test]
fn a_run_that_is_replaced_meanwhile_is_no_problem() {
    let storage = MemoryStorage::new();
    let store = options().memory_budget(0).open_on(shared(&storage)).expect("opens");
    std::thread::scope(|scope| {
        let writes = scope.spawn(|| (0..300).for_each(|_| append(&store, "s", "x")));
        while !writes.is_finished() {
            assert_eq!(store.verify().expect("verifies").problems, []);
        }
    });
}

/// A closed store with one run, too large to be merged with the next.
fn disk_with_one_run() -> Disk {
    let disk = Disk::new();
    let store = options().memory_budget(0).open_on(Arc::new(disk.clone())).expect("opens");
    let batch: thalweg::Batch = (0..100).map(|_| Event::new("x")).collect();
    let appender = store.appender("s").expect("an appender");
    appender.submit(batch).expect("accepted").wait().expect("appended");
    store.close().expect("closes");
    disk
}

/// Whether or not a store has opened in spite of `what`, its next opening finds everything.
fn goes_on(opened: Result<Store, OpenError>, disk: &Disk, what: &str) {
    if let Ok(store) = opened {
        append(&store, "s", "y");
        store.close().expect("closes");
    }
    let store = options().memory_budget(0).open_on(Arc::new(disk.clone())).expect("opens");
    check(&store, &expected(&disk.power_loss(|| true)));
    assert_eq!(store.verify().expect("verifies").problems, [], "{what}");
}

/// Opening passed over an error of listing the directory, and gave a run the number of one that was in use:
/// ids that were known were not any more, for good.
#[test]
fn an_error_at_any_look_while_opening_loses_nothing() {
    let disk = disk_with_one_run();
    for read in 1.. {
        let disk = disk.power_loss(|| true);
        disk.fail_read_at(read, disk::Fault::Error);
        let opened = options().memory_budget(0).open_on(Arc::new(disk.clone()));
        let reads = disk.reads();
        disk.heal();
        goes_on(opened, &disk, &format!("read {read}"));
        if read > reads {
            break;
        }
    }
}

/// The directory says which segments there are, what is lost of them, and which numbers runs have.
#[test]
fn an_error_at_any_listing_while_opening_loses_nothing() {
    let disk = disk_with_one_run();
    let mut refused = 0;
    for listing in 0..16 {
        let disk = disk.power_loss(|| true);
        disk.fail_next(disk::Op::List, listing, disk::Fault::Error);
        let opened = options().memory_budget(0).open_on(Arc::new(disk.clone()));
        disk.heal();
        refused += u32::from(opened.is_err());
        goes_on(opened, &disk, &format!("listing {listing}"));
    }
    assert!(refused > 3, "{refused} listings were found");
}

/// A checkpoint that could not be read was taken for none: the derived files were thrown away, and damage to the
/// end of the log, which only the checkpoint can tell from a torn tail, would have been cut.
#[test]
fn what_cannot_be_read_is_not_taken_for_absent() {
    let disk = disk_with_one_run();
    let uses_the_checkpoint =
        |store: &Store| store.discovery().wait().expect("is done").scanned == 0;
    let mut refused = 0;
    for read in 1.. {
        for read_only in [false, true] {
            let disk = disk.power_loss(|| true);
            disk.fail_read_at(read, disk::Fault::Error);
            let storage = Arc::new(disk.clone());
            let opened = match read_only {
                true => options().open_read_only_on(storage),
                false => options().open_on(storage),
            };
            match opened {
                Ok(store) => assert!(uses_the_checkpoint(&store), "read {read}: thrown away"),
                Err(OpenError::Io { .. } | OpenError::Log(LogOpenError::Io { .. })) => refused += 1,
                Err(other) => panic!("read {read}: {other}"),
            }
            disk.heal();
            let store = options().open_on(Arc::new(disk.clone())).expect("opens");
            assert!(uses_the_checkpoint(&store), "read {read}: thrown away for good");
            if read > disk.reads() {
                assert!(refused > 10, "only {refused} errors were met");
                return;
            }
        }
    }
}

// Load and tickets.

/// A buffered store was synced when a wait for the next append lasted until the sync was due. Under
/// load the next append is always there, so nothing was ever synced.
#[test]
fn a_buffered_store_is_synced_under_load() {
    let storage = Faulty::default();
    let store = options()
        .durability(Durability::Buffered)
        .open_on(Arc::new(storage.clone()))
        .expect("opens");
    // A sync that fails is one that everybody hears of.
    storage.fail(Fault::always(Op::Sync, SEGMENT));
    // While the writer is busy with an append, the next ones come in.
    storage.slow_down(Op::Write, SEGMENT, Duration::from_millis(2));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let appender = store.appender(format!("s{thread}")).expect("an appender");
            scope.spawn(move || {
                let mut last = appender.append("x");
                while let Ok(ticket) = std::mem::replace(&mut last, appender.append("x")) {
                    let _ = ticket.wait();
                    assert!(begun.elapsed() < SOON, "nothing is synced");
                }
            });
        }
    });
    assert!(store.stats().written < 1 << 20, "a full segment would be synced in any case");
    check_stopped(store, &storage, |cause| matches!(cause, Cause::Log(_)));
}

/// Asking a ticket again for an outcome that it had given panicked.
#[test]
fn a_ticket_gives_its_outcome_once() {
    let store = open(&MemoryStorage::new());
    let mut ticket = store.appender("s").expect("an appender").append("x").expect("accepted");
    ticket.wait_timeout(SOON).expect("completes").expect("appended");
    assert!(ticket.try_wait().is_none());
    assert!(ticket.wait_timeout(Duration::MAX).is_none(), "at once");
}
