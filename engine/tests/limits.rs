//! What runs out: room on the disk, memory, descriptors, threads, and the patience of others. The store
//! says so by name, loses nothing, keeps nobody waiting who need not wait, and goes on when there is more.
//!
//! Bounds on queues and pipelines are in `appender.rs`, waits that end in `deadlocks.rs`. What needs limits
//! of the operating system runs in a child process.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::fs::File;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use common::{SOON, acked, append, check, expected, keep, shared, soon, this_test_by};
use faulty::{Fault, Faulty, Op, open as open_faulty, options};
use thalweg::storage::{MemoryStorage, OsStorage, Storage};
use thalweg::{
    Ack, AppendFailure, AppenderOptions, Batch, Cause, Durability, Event, LogOpenError, MixedBatch,
    OpenError, Options, Refusal, Store, Why,
};

/// Set for the process that a test starts.
const IN_CHILD: &str = "THALWEG_LIMITS_CHILD";
/// The directory of the store that it is to open.
const STORE: &str = "THALWEG_LIMITS_STORE";
/// No child takes so long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

// A full disk.

/// Appends a held event, events for several windows, and waits until they are durable.
fn append_windows(store: &Store) {
    for number in 0..40 {
        let mut batch = MixedBatch::new();
        let id = format!("held {number}");
        batch.push("s", &Event::new("x").id(id).parents(["missing"])).expect("within the limits");
        batch.push("s", &Event::new(format!("{number}"))).expect("within the limits");
        store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
    }
}

/// The order waited for room on the disk, and whoever asked a question waited for the order. In one case the
/// state was over its budget of memory and its run could not be written; in the other the committer had as
/// many windows as it may, and could not write them.
#[test]
fn questions_are_answered_while_the_order_waits_for_room() {
    for (op, file, budget) in
        [(Op::Create, "run-", 0), (Op::Write, "checkpoint", 0), (Op::Write, "order-", 1 << 30)]
    {
        let storage = Faulty::default();
        let store = options().memory_budget(budget).open_on(Arc::new(storage.clone()));
        let store = store.expect("opens");
        keep(&store);
        append(&store, "s", "before");
        storage.fail(Fault::always(op, file));
        append_windows(&store);
        let begun = std::time::Instant::now();
        while storage.failed() < 3 {
            assert!(begun.elapsed() < SOON, "{file}: nothing has failed");
            std::thread::yield_now();
        }
        for _ in 0..3 {
            let asking = store.clone();
            let held = soon("held", move || asking.held()).expect("an answer");
            assert!(held.len() <= 40);
            let asking = store.clone();
            let streams = soon("streams", move || asking.streams()).expect("an answer");
            assert_eq!(streams.len(), 1);
            let asking = store.clone();
            let why = soon("why_held", move || asking.why_held("s", "nobody")).expect("an answer");
            assert_eq!(why, Why::Unknown);
        }
        assert_eq!(store.cause().map(|cause| cause.to_string()), None, "{file}");
        let waiting = store.clone();
        let end = store.durable_end();
        storage.heal();
        soon("wait_committed", move || waiting.wait_committed(end)).expect("room again");
        check(&store, &expected(&storage.inner));
        store.close().expect("closes");
    }
}

/// A close ends the wait for room, and the next opening orders what is left.
#[test]
fn a_close_ends_a_wait_for_room_with_questions_in_it() {
    for (op, file, budget) in [(Op::Create, "run-", 0), (Op::Write, "order-", 1 << 30)] {
        let storage = Faulty::default();
        let store = options().memory_budget(budget).open_on(Arc::new(storage.clone()));
        let store = store.expect("opens");
        keep(&store);
        append(&store, "s", "before");
        storage.fail(Fault::always(op, file));
        append_windows(&store);
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                std::thread::spawn(move || while store.held().is_ok() {})
            })
            .collect();
        let closing = store.clone();
        let _ = soon("close", move || closing.close());
        for thread in asking {
            soon("held", move || thread.join()).expect("ends");
        }
        let left = storage.inner.fork();
        let store = options().open_on(Arc::new(left.clone())).expect("opens");
        check(&store, &expected(&left));
    }
}

/// A store that had not been closed did not open on a full disk, not even to be read.
#[test]
fn a_store_opens_on_a_full_disk_and_serves() {
    // With and without room for a checkpoint.
    for file in ["segment-", ""] {
        let storage = Faulty::default();
        let store = open_faulty(&storage);
        append_windows(&store);
        let storage = Faulty::over(storage.inner.fork());
        drop(store);
        storage.fail(Fault::always(Op::Create, file));
        for _ in 0..3 {
            let store = open_faulty(&storage);
            keep(&store);
            let whole = expected(&storage.inner);
            if file == "segment-" {
                check(&store, &whole);
            }
            assert_eq!(store.held().expect("an answer").len(), whole.held.len());
            for _ in 0..2 {
                let appender = store.appender("s").expect("an appender");
                let refused = appender.append("x").expect("accepted").wait().expect_err("full");
                let full = matches!(refused, AppendFailure::NotAppended(Cause::StorageFull(_)));
                assert!(full, "{refused:?}");
            }
            let closing = store.clone();
            let _ = soon("close", move || closing.close());
            let reader = options().open_read_only_on(shared(&storage.inner)).expect("opens");
            check(&reader, &whole);
        }
        let store = open_faulty(&storage);
        storage.heal();
        append(&store, "s", "room again");
        check(&store, &expected(&storage.inner));
        store.close().expect("closes");
        let store = options().open_on(shared(&storage.inner)).expect("opens");
        check(&store, &expected(&storage.inner));
        let segments = storage.inner.list().expect("lists");
        let segments = segments.iter().filter(|name| name.starts_with("segment-")).count();
        assert_eq!(segments, 2, "the log went on where nobody knows what a crash has left");
    }
}

/// A lack of descriptors stopped the store for good when it came to the next segment, though nothing was at
/// stake.
#[test]
fn a_lack_of_descriptors_refuses_appends_until_there_are_some() {
    const EMFILE: i32 = 24;
    const ENOMEM: i32 = 12;
    for number in [EMFILE, ENOMEM] {
        let storage = Faulty::default();
        storage.fail_with_os_error(Fault::always(Op::Create, "segment-0000000000000002"), number);
        let store = open_faulty(&storage);
        let mut appended = 0;
        let refused = loop {
            let appender = store.appender("s").expect("an appender");
            match appender.append(vec![1; 100_000]).expect("accepted").wait() {
                Ok(_) => appended += 1,
                Err(failure) => break failure,
            }
            assert!(appended < 12, "nothing is refused");
        };
        let AppendFailure::NotAppended(cause @ Cause::Exhausted(_)) = refused else {
            panic!("{refused:?}")
        };
        assert!(cause.to_string().contains("ulimit"), "{cause}");
        append(&store, "s", "a small one fits");
        storage.heal();
        append(&store, "s", vec![2; 100_000]);
        check(&store, &expected(&storage.inner));
        assert_eq!(store.stats().delivered, appended + 2);
        store.close().expect("closes");
    }
}

// Limits of the operating system.

/// Runs an ignored test of this file in a shell's process, behind `limits` (commands of the shell), and returns what
/// it has printed. Fails if it fails, or does not end.
fn in_a_child(child: &str, limits: &str, environment: &[(&str, &str)]) -> String {
    let script = format!(r#"{limits} exec "$@""#);
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "sh"]);
    let mut command = this_test_by(shell, child);
    command.envs(environment.iter().copied()).env(IN_CHILD, "1");
    let child = child.to_owned();
    let (sender, ended) = channel();
    std::thread::spawn(move || sender.send(command.output().expect("runs")));
    let output = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{child} hangs"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{child}, {limits}: {said}\n{errors}");
    assert!(said.contains("test result: ok. 1 passed"), "{child}: {said}");
    said
}

fn is_child() -> bool {
    std::env::var_os(IN_CHILD).is_some()
}

/// A line of `/proc/self/status`, as a number: KiB where it is memory.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("is there");
    line.trim_start_matches(':').split_whitespace().next().expect("a number").parse().expect("one")
}

/// Anonymous memory of this process, in MiB: what is mapped from files can be dropped at any time.
fn memory_mib() -> u64 {
    status("RssAnon") >> 10
}

fn append_one(store: &Store, payload: Vec<u8>) -> Result<(), AppendFailure> {
    let appender = store.appender("s").expect("an appender");
    appender.append(payload).expect("accepted").wait().map(drop)
}

/// Takes all descriptors but so many.
fn take_descriptors(but: usize) -> Vec<File> {
    let mut taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    taken.truncate(taken.len().saturating_sub(but));
    taken
}

#[cfg(target_os = "linux")]
#[test]
fn few_descriptors_refuse_by_name_and_lose_nothing() {
    in_a_child("child_with_few_descriptors", "ulimit -n 200;", &[]);
    // A store of more files than the process may have open.
    let dir = tempfile::tempdir().expect("a directory");
    let store = options().open(dir.path()).expect("opens");
    for _ in 0..30 {
        append(&store, "s", vec![1; 1 << 20]);
    }
    store.close().expect("closes");
    let path = dir.path().to_str().expect("plain");
    in_a_child("child_that_opens_many_files", "ulimit -n 30;", &[(STORE, path)]);
    let store = options().open(dir.path()).expect("opens with more descriptors");
    check(&store, &expected(&OsStorage::open(dir.path()).expect("is there")));
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the process that `few_descriptors_refuse_by_name_and_lose_nothing` starts"]
fn child_with_few_descriptors() {
    if !is_child() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let log = || expected(&OsStorage::open(dir.path()).expect("is there"));
    let store = options().open(dir.path()).expect("opens");
    let mut appended = 1;
    append(&store, "s", "first");
    let taken = take_descriptors(0);
    let cause = loop {
        match append_one(&store, vec![1; 100_000]) {
            Ok(()) => appended += 1,
            Err(AppendFailure::NotAppended(cause @ Cause::Exhausted(_))) => break cause,
            Err(other) => panic!("{other:?}"),
        }
        assert!(appended < 100, "there is a descriptor left");
    };
    assert!(cause.to_string().contains("ulimit -n"), "{cause}");
    append_one(&store, vec![]).expect("there is room in the segment");
    let error = store.checkpoint().expect_err("a checkpoint is a file");
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    let error = options().open_read_only(dir.path()).expect_err("takes descriptors");
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    store.wait_committed(store.durable_end()).expect("ordered");
    assert_eq!(store.read(..).expect("reads").count(), appended + 1);
    drop(taken);
    append_one(&store, vec![2; 100_000]).expect("there are descriptors again");
    store.checkpoint().expect("a checkpoint");
    check(&store, &log());
    store.close().expect("closes");

    // At every number of descriptors that an opening may meet.
    let mut opened = 0;
    for left in 0..40 {
        let taken = take_descriptors(left);
        match options().open(dir.path()) {
            Ok(store) => {
                opened += 1;
                let _ = append_one(&store, vec![3]);
                let _ = store.close();
            }
            Err(error) => assert!(error.to_string().contains("ulimit -n"), "{left}: {error}"),
        }
        drop(taken);
        let store = options().open(dir.path()).expect("opens with descriptors");
        check(&store, &log());
        store.close().expect("closes");
    }
    assert!((1..40).contains(&opened), "opened {opened} times");

    // The order needs a file and gets none for too long: it stops by name, and the next opening orders.
    let other = tempfile::tempdir().expect("a directory");
    let store = options().open(other.path()).expect("opens");
    let taken = take_descriptors(0);
    append_one(&store, vec![4]).expect("is durable");
    let waited = store.wait_committed(store.durable_end()).expect_err("the order has no file");
    assert!(waited.to_string().contains("Too many open files"), "{waited}");
    drop(taken);
    let _ = store.close();
    let store = options().open(other.path()).expect("opens");
    check(&store, &expected(&OsStorage::open(other.path()).expect("is there")));
    assert_eq!(store.stats().delivered, 1);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the process that `few_descriptors_refuse_by_name_and_lose_nothing` starts"]
fn child_that_opens_many_files() {
    let Some(dir) = std::env::var_os(STORE) else { return };
    for _ in 0..3 {
        let error = options().open(&dir).expect_err("more files than descriptors");
        assert!(matches!(error, OpenError::Log(LogOpenError::Io { .. })), "{error:?}");
        assert!(error.to_string().contains("ulimit -n"), "{error}");
        options().open_read_only(&dir).expect_err("more files than descriptors");
    }
}

/// Ten times as much state as the budget allows, in both ways that it can grow: ids and streams that are known, and
/// events that are held. The order is the one of the serial machine all the same.
#[cfg(target_os = "linux")]
#[test]
fn a_state_far_over_its_budget_takes_the_memory_of_its_budget() {
    let peak = |budget: &str| -> (u64, u64) {
        let said = in_a_child("child_with_much_state", "", &[("THALWEG_LIMITS_BUDGET", budget)]);
        let line = said.lines().find_map(|line| line.split_once("peak ")).expect("says so").1;
        let (state, memory) = line.split_once(' ').expect("two numbers");
        (state.parse().expect("a number"), memory.parse().expect("a number"))
    };
    let ((small, small_rss), (large, large_rss)) = (peak("1048576"), peak("1073741824"));
    println!("state: {small} and {large} bytes; anonymous memory: {small_rss} and {large_rss} MiB");
    assert!(large > 10 << 20, "there is too little to remember: {large} bytes");
    assert!(small <= 3 << 20, "{small} bytes of state for a budget of one MiB");
    // Windows under way and the run that is written come on top.
    assert!(small_rss < 64, "{small_rss} MiB");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the process that `a_state_far_over_its_budget_takes_the_memory_of_its_budget` starts"]
fn child_with_much_state() {
    let Ok(budget) = std::env::var("THALWEG_LIMITS_BUDGET") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let store = options()
        .durability(Durability::Buffered)
        .memory_budget(budget.parse().expect("bytes"))
        .open(dir.path())
        .expect("opens");
    let events: u64 = if cfg!(debug_assertions) { 120_000 } else { 1_000_000 };
    let (mut state, mut memory) = (0, 0);
    for first in (0..events).step_by(1000) {
        let mut batch = MixedBatch::new();
        for number in first..first + 1000 {
            let event = Event::new("").id(format!("{number}"));
            let event = match number % 3 {
                0 => event.parents([format!("missing {number}")]),
                _ => event,
            };
            batch.push(format!("stream {}", number % 40_000), &event).expect("within the limits");
        }
        let ticket = store.submit(batch, Ack::Ordered).expect("accepted");
        ticket.wait().expect("appended");
        // Behind each window the orderer makes room before the next.
        (state, memory) = (state.max(store.stats().memory), memory.max(memory_mib()));
    }
    println!("\npeak {state} {memory}");
    let stats = store.stats();
    assert_eq!((stats.held, stats.delivered), (events / 3, events - events / 3));
    store.close().expect("closes");
}

/// Slow readers and slow callbacks have nothing kept for them but the permits of their own appender.
#[cfg(target_os = "linux")]
#[test]
fn slow_consumers_cost_no_memory() {
    in_a_child("child_with_slow_consumers", "", &[]);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the process that `slow_consumers_cost_no_memory` starts"]
fn child_with_slow_consumers() {
    if !is_child() {
        return;
    }
    const MIB: usize = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options::new().scanners(1).orderers(1).durability(Durability::Buffered);
    let store = options.open(dir.path()).expect("opens");
    let mut subscribers: Vec<_> =
        (0..50).map(|_| store.subscribe(0).expect("subscribes")).collect();
    // A callback that does not return while the others go on.
    let (let_go, held) = channel::<()>();
    let options = AppenderOptions::new().pipeline(16);
    let slow = store.appender_with("slow", options).expect("an appender");
    slow.submit_with(Batch::from([Event::new("x")]), move |_| {
        let _ = held.recv();
    })
    .expect("accepted");
    let mut submitted = 1;
    while slow.try_submit(Batch::from([Event::new(vec![0; 1000])])).is_ok() {
        submitted += 1;
        assert!(submitted <= 16, "more than the pipeline holds");
    }
    let fast = store.appender("fast").expect("an appender");
    let append = |count: u64| {
        for number in 0..count {
            let mut payload = vec![number as u8; MIB];
            payload[..8].copy_from_slice(&number.to_le_bytes());
            fast.append(payload).expect("accepted").wait().expect("appended");
        }
        store.wait_committed(store.durable_end()).expect("ordered");
    };
    append(40);
    let before = memory_mib();
    append(120);
    let after = memory_mib();
    assert!(after < before + 40, "{before} MiB, and {after} after 120 more");
    let_go.send(()).expect("the callback waits");
    store.wait_committed(store.durable_end()).expect("ordered");
    for subscriber in subscribers.iter_mut().take(3) {
        let mut seen = 0;
        while let Some(event) = subscriber.try_next().expect("reads") {
            assert_eq!(event.global(), seen);
            seen += 1;
        }
        assert_eq!(seen, store.stats().delivered);
    }
    drop(subscribers);
    store.close().expect("closes");
}

/// Handles that nobody uses take some memory, no thread, and no time to close.
#[cfg(target_os = "linux")]
#[test]
fn thousands_of_idle_appenders_streams_and_readers_are_cheap() {
    in_a_child("child_with_idle_handles", "", &[]);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the process that `thousands_of_idle_appenders_streams_and_readers_are_cheap` starts"]
fn child_with_idle_handles() {
    const HANDLES: usize = 20_000;
    if !is_child() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let store = options().open(dir.path()).expect("opens");
    append(&store, "s", "x");
    let (threads, memory, files) = (status("Threads"), memory_mib(), open_files());
    let name = |number: usize| format!("idle {number}");
    let appenders: Vec<_> =
        (0..HANDLES).map(|number| store.appender(name(number)).expect("an appender")).collect();
    let subscribers: Vec<_> =
        (0..HANDLES).map(|_| store.subscribe(0).expect("subscribes")).collect();
    assert_eq!((status("Threads"), open_files()), (threads, files));
    // A KiB for each of the 40,000, and what the allocator rounds up to.
    let taken = memory_mib() - memory;
    assert!(taken < 80, "{taken} MiB");
    // They are all of use, and a stream that has an event is as cheap.
    let tickets: Vec<_> =
        appenders.iter().map(|appender| appender.append("y").expect("accepted")).collect();
    tickets.into_iter().for_each(|ticket| drop(ticket.wait().expect("appended")));
    store.wait_committed(store.durable_end()).expect("ordered");
    assert_eq!(store.streams().expect("streams").len(), HANDLES + 1);
    assert_eq!(status("Threads"), threads);
    let closing = store.clone();
    soon("close", move || closing.close()).expect("closes");
    let refused = appenders[HANDLES / 2].append("late").expect_err("closed").reason;
    assert!(matches!(refused, Refusal::Closed), "{refused:?}");
    for (number, mut subscriber) in subscribers.into_iter().enumerate() {
        assert_eq!(subscriber.next().expect("an event").expect("reads").global(), 0);
        assert!(number > 2 || subscriber.nth(HANDLES).is_none(), "it goes on after the end");
    }
    drop(appenders);
    drop(store);
    let store = options().open(dir.path()).expect("opens");
    check(&store, &expected(&OsStorage::open(dir.path()).expect("is there")));
}

#[cfg(target_os = "linux")]
fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("lists").count()
}

/// Many more threads than cores, all at once, through the narrowest queue: each has its outcomes, in its order.
#[test]
fn hundreds_of_threads_through_the_narrowest_queue_all_come_to_an_end() {
    const THREADS: u64 = 200;
    const EACH: u64 = 5;
    let storage = MemoryStorage::new();
    let store = options().queue_bytes(1).open_on(shared(&storage)).expect("opens");
    keep(&store);
    let working = store.clone();
    soon("the threads", move || {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let store = &working;
                scope.spawn(move || {
                    let ack = if thread % 2 == 0 { Ack::Durable } else { Ack::Ordered };
                    let appender = store
                        .appender_with(format!("s{}", thread % 7), acked(ack))
                        .expect("appender");
                    let tickets: Vec<_> = (0..EACH)
                        .map(|number| {
                            appender.append(format!("{thread}.{number}")).expect("accepted")
                        })
                        .collect();
                    let positions: Vec<u64> = tickets
                        .into_iter()
                        .map(|ticket| ticket.wait().expect("appended").position)
                        .collect();
                    assert!(positions.is_sorted());
                });
                if thread % 10 == 0 {
                    scope.spawn(move || {
                        let mut events = store.subscribe(0).expect("subscribes");
                        let all = events.by_ref().take((THREADS * EACH) as usize).count();
                        assert_eq!(all as u64, THREADS * EACH);
                    });
                }
            }
        });
    });
    check(&store, &expected(&storage));
    store.close().expect("closes");
}

/// Nothing recurses: a long chain that is found from its end is released, and asked about, on small stacks.
#[cfg(target_os = "linux")]
#[test]
fn small_stacks_are_enough() {
    // No thread of ours asks for a stack, so this is what they all get.
    in_a_child("child_with_small_stacks", "", &[("RUST_MIN_STACK", "131072")]);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "the process that `small_stacks_are_enough` starts"]
fn child_with_small_stacks() {
    if !is_child() {
        return;
    }
    const LENGTH: u64 = 30_000;
    let storage = MemoryStorage::new();
    let store = Options::new().scanners(2).orderers(2).open_on(shared(&storage)).expect("opens");
    let mut batch = MixedBatch::new();
    for number in (0..LENGTH).rev() {
        let parents = (number + 1 < LENGTH).then(|| format!("{}", number + 1));
        let event = Event::new("x").id(format!("{number}")).parents(parents);
        // From its end: the first event of the chain comes last.
        let at = if number + 1 < LENGTH { "s" } else { "rest" };
        batch.push(at, &event).expect("within the limits");
    }
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    assert_eq!(store.stats().held, LENGTH - 1);
    match store.why_held("s", "0").expect("an answer") {
        Why::Held(why) => assert_eq!(why.roots.len(), 1),
        other => panic!("{other:?}"),
    }
    let first = Event::new("x").id(format!("{}", LENGTH - 1)).parents::<&str>([]);
    let mut batch = MixedBatch::new();
    batch.push("s", &first).expect("within the limits");
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    check(&store, &expected(&storage));
    store.close().expect("closes");
}
