//! Followers: readers in other processes, while an owner writes, dies, and comes back.
//!
//! In most tests the owner is a child process, or somebody who only shares files with the follower; what a follower shows is
//! compared, event by event, with what the owner says after it has recovered.
//!
//! `THALWEG_KILL_ROUNDS=500` for a long run; `THALWEG_SEED` repeats one, as far as timing allows.

mod common;
#[path = "common/faulty.rs"]
mod faulty;
#[path = "../../wal/tests/common/hooked.rs"]
mod hooked;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::files::{bytes, put, replace_all};
use common::{Rng, shared, soon, this_test, wild_event};
use faulty::{Fault, Faulty, Op};
use hooked::Hooked;
use thalweg::storage::{Access, MemoryStorage, OsStorage, Storage, Watch};
use thalweg::{
    Ack, Cause, Durability, Event, Follower, LogOpenError, MixedBatch, OpenError, Options,
    ReadError, Store,
};

/// No wait takes so long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// All that an event shows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    global: u64,
    local: u64,
    position: u64,
    stream: Vec<u8>,
    id: Vec<u8>,
    parents: Vec<Vec<u8>>,
    payload: Vec<u8>,
}

impl Seen {
    fn of(event: &Event) -> Self {
        Seen {
            global: event.global(),
            local: event.local(),
            position: event.position(),
            stream: event.stream().to_vec(),
            id: event.id().to_vec(),
            parents: event.parents().expect("its parents"),
            payload: event.payload().to_vec(),
        }
    }
}

/// What a follower shows from `from` on now.
fn shown(follower: &Follower, from: u64) -> Vec<Seen> {
    let events = follower.read(from..).expect("reads");
    events.map(|event| Seen::of(&event.expect("an event"))).collect()
}

/// What the owner says is delivered from `from` on, once everything durable is ordered.
fn said(owner: &Store, from: u64) -> Vec<Seen> {
    owner.wait_committed(owner.durable_end()).expect("everything is ordered");
    let events = owner.read(from..).expect("reads");
    events.map(|event| Seen::of(&event.expect("an event"))).collect()
}

/// The follower comes to show just what the owner, who rests, says.
fn check(follower: &Follower, owner: &Store) {
    let said = said(owner, 0);
    let count = said.len() as u64;
    assert!(follower.wait_delivered(count, PATIENCE).expect("follows"), "an event is missing");
    assert_eq!(follower.delivered(), count, "more than the owner has delivered");
    assert!(shown(follower, 0) == said, "the follower shows something else");
    let streams: BTreeMap<&[u8], u64> =
        said.iter().map(|seen| (&seen.stream[..], seen.local + 1)).collect();
    // Of very many streams, some.
    let every = 1 + streams.len() / 10_000;
    for (name, len) in streams.into_iter().step_by(every) {
        let view = follower.stream(name).expect("finds").expect("there is such a stream");
        assert_eq!(view.len(), len, "{}", String::from_utf8_lossy(name));
        let locals = view.read(..).expect("reads").map(|event| event.expect("an event").local());
        assert!(locals.eq(0..len));
    }
}

fn append(store: &Store, stream: &str, payload: impl AsRef<[u8]>) {
    let appender = store.appender(stream).expect("an appender");
    appender.append(payload).expect("accepted").wait().expect("appended");
}

#[test]
fn a_follower_sees_what_is_appended_after_it_was_opened() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let follower = Store::open_follower(dir.path()).expect("follows an empty store");
    assert_eq!(follower.delivered(), 0);
    let mut events = follower.subscribe(0).expect("subscribes");
    assert!(events.try_next().expect("nothing is wrong").is_none());
    for number in 0..10_u64 {
        append(&store, "s", format!("{number}"));
        let event = events.next_timeout(PATIENCE).expect("no error").expect("it comes");
        assert_eq!((event.global(), event.local()), (number, number));
        assert_eq!(event.payload(), format!("{number}").as_bytes());
    }
    assert!(follower.stream("t").expect("no error").is_none());
    check(&follower, &store);
    store.close().expect("closes");
    assert_eq!(follower.delivered(), 10);
}

#[test]
fn what_is_no_store_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let refused = |path: &Path| Store::open_follower(path).expect_err("there is no store");
    let missing = |error| matches!(error, OpenError::Log(LogOpenError::Missing { .. }));
    assert!(missing(refused(&dir.path().join("nothing"))));
    assert!(missing(refused(dir.path())));
    std::fs::write(dir.path().join("letter.txt"), "dear").expect("writes");
    let error = refused(dir.path());
    assert!(matches!(error, OpenError::Log(LogOpenError::NotAStore { .. })), "{error}");
    let error = refused(&dir.path().join("letter.txt"));
    assert!(matches!(error, OpenError::NotADirectory { .. }), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1, "something was written");
}

#[test]
fn a_follower_changes_nothing_and_takes_no_lock() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Options::new().segment_bytes(1 << 20).open(dir.path()).expect("opens");
    append(&store, "s", "before");
    let storage = OsStorage::open(dir.path()).expect("is there");
    let storage = Hooked::new(storage, |op| {
        assert!(op.is_of_a_reader(), "{op:?}");
        Ok(())
    });
    let follower = Follower::open_on(Arc::new(storage)).expect("follows");
    for round in 0..4 {
        append(&store, "s", vec![round; 400_000]);
        append(&store, "t", "small");
        store.checkpoint().expect("a checkpoint");
    }
    assert!(store.stats().segments > 1, "nothing was rolled");
    check(&follower, &store);
}

/// Memory has no watch to give, so the follower looks by the clock.
#[test]
fn a_follower_of_a_storage_that_cannot_tell_looks_by_itself() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    let follower = Follower::open_on(shared(&storage)).expect("follows");
    let mut events = follower.subscribe(0).expect("subscribes");
    for number in 0..5_u64 {
        append(&store, "s", "x");
        let event = events.next_timeout(PATIENCE).expect("no error").expect("it comes");
        assert_eq!(event.global(), number);
    }
    check(&follower, &store);
}

#[test]
fn closing_ends_every_wait() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    append(&store, "s", "only");
    for storage in [true, false] {
        let follower = if storage {
            Store::open_follower(dir.path()).expect("follows")
        } else {
            let storage = MemoryStorage::new();
            Options::new().open_on(shared(&storage)).expect("opens").close().expect("closes");
            Follower::open_on(shared(&storage)).expect("follows")
        };
        let (one, other) = (follower.clone(), follower.clone());
        let next = std::thread::spawn(move || {
            one.subscribe(one.delivered()).expect("subscribes").next().is_none()
        });
        let count = std::thread::spawn(move || other.wait_delivered(99, PATIENCE * 9));
        let closed = follower.clone();
        soon("closing", move || closed.close());
        assert!(soon("a subscription", move || next.join().expect("ends")));
        let ended = soon("a wait", move || count.join().expect("ends"));
        assert!(matches!(ended, Err(ReadError::Closed)), "{ended:?}");
        assert_eq!(shown(&follower, 0).len() as u64, follower.delivered(), "reads go on");
        soon("closing again", move || follower.close());
    }
    let follower = Store::open_follower(dir.path()).expect("follows");
    let mut events = follower.subscribe(1).expect("subscribes");
    soon("dropping", move || drop(follower));
    assert!(events.next().is_none());
}

#[test]
fn a_damaged_record_is_an_error_in_its_place() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    for payload in ["first", "second", "third"] {
        append(&store, "s", payload);
    }
    let position = said(&store, 0)[1].position;
    store.close().expect("closes");
    common::flip(&storage, "segment-0000000000000001.wal", position + 26, 1);
    let follower = Follower::open_on(shared(&storage)).expect("follows");
    let read: Vec<_> = follower.read(..).expect("reads").collect();
    assert!(matches!(&read[..], [Ok(_), Err(ReadError::Damage(_)), Ok(_)]), "{read:?}");
}

/// A watch that is of no use.
#[derive(Debug, Clone, Copy)]
enum BadWatch {
    /// As on a network file system, where another machine writes.
    TellsNothing,
    Ends,
}

impl Watch for BadWatch {
    fn wait(&self, _: &dyn Fn(&str) -> bool, timeout: Duration) -> io::Result<()> {
        match self {
            BadWatch::TellsNothing => std::thread::sleep(timeout),
            BadWatch::Ends => return Err(io::ErrorKind::NotFound.into()),
        }
        Ok(())
    }

    fn wake(&self) {}
}

#[test]
fn neither_a_bad_watch_nor_files_that_cannot_be_read_for_a_while_cost_an_event() {
    for watch in [BadWatch::TellsNothing, BadWatch::Ends] {
        let storage = MemoryStorage::new();
        let store = Options::new().open_on(shared(&storage)).expect("opens");
        append(&store, "s", "before");
        let cannot_be_read = Arc::new(AtomicBool::new(false));
        let fails = Arc::clone(&cannot_be_read);
        let unwell = Hooked::new(storage, move |op| match op {
            hooked::Op::Open(..) if fails.load(Ordering::Relaxed) => {
                Err(io::Error::other("the disk does not answer"))
            }
            _ => Ok(()),
        });
        let follower = Follower::open_on(Arc::new(unwell.watched_by(watch))).expect("follows");
        append(&store, "s", "told of by nobody");
        check(&follower, &store);
        cannot_be_read.store(true, Ordering::Relaxed);
        append(&store, "s", "not to be read yet");
        let waited = follower.wait_delivered(3, Duration::from_millis(600));
        assert!(matches!(waited, Ok(false)), "{waited:?}");
        cannot_be_read.store(false, Ordering::Relaxed);
        check(&follower, &store);
        cannot_be_read.store(true, Ordering::Relaxed);
        append(&store, "s", "never to be read");
        let ended = follower.wait_delivered(4, PATIENCE);
        assert!(matches!(&ended, Err(ReadError::Poisoned(Cause::Follow(_)))), "{ended:?}");
        assert_eq!(shown(&follower, 0).len(), 3, "what was delivered can still be read");
    }
}

/// Long chunks, long lists of tips, and more streams than are kept without looking for newer runs.
#[test]
fn a_follower_goes_on_over_chunks_and_checkpoints() {
    const CHUNK_ITEMS: u64 = 1 << 18;
    const STREAMS: u64 = 250_000;
    let dir = tempfile::tempdir().expect("a directory");
    let store = Options::new().durability(Durability::Buffered).open(dir.path()).expect("opens");
    let follower = Store::open_follower(dir.path()).expect("follows");
    let mut ticket = None;
    let mut submit = |batch: MixedBatch| {
        ticket = Some(store.submit(batch, Ack::Durable).expect("accepted"));
    };
    for first in (0..CHUNK_ITEMS).step_by(4096) {
        let mut batch = MixedBatch::new();
        for number in first..first + 4096 {
            let event = Event::new(number.to_le_bytes()).parents::<&str>([]);
            batch.push((number % STREAMS).to_string(), &event).expect("within the limits");
        }
        submit(batch);
        if first == CHUNK_ITEMS / 2 {
            store.wait_committed(store.durable_end()).expect("ordered");
            store.checkpoint().expect("a checkpoint");
        }
    }
    // Lists of a thousand tips, the last over the end of a chunk of them.
    for list in 0..66 {
        let mut batch = MixedBatch::new();
        for _ in 0..1000 {
            let event = Event::new("tip").parents::<&str>([]);
            batch.push(format!("list {list}"), &event).expect("within the limits");
        }
        batch.push(format!("list {list}"), &Event::new("all of them")).expect("within the limits");
        submit(batch);
    }
    ticket.expect("there were batches").wait().expect("appended");
    store.checkpoint().expect("a checkpoint");
    check(&follower, &store);
    let late = Store::open_follower(dir.path()).expect("follows");
    check(&late, &store);
}

/// After a loss of power the order can have entries whose records are gone, if they were not synced.
#[test]
fn entries_that_outlived_their_records_are_not_shown() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    append(&store, "s", "stays");
    // What a checkpoint counts is synced, so the next owner leaves it where it is, and what stands behind it.
    store.wait_committed(store.durable_end()).expect("ordered");
    store.checkpoint().expect("a checkpoint");
    let after = storage.fork();
    for _ in 0..3 {
        append(&store, "t", vec![1; 5000]);
    }
    store.wait_committed(store.durable_end()).expect("ordered");
    let order = "order-0000000000000000.ord";
    put(&after, order, &bytes(&storage, order));
    // A part of the first lost frame has come to the device, and its header with it.
    let mut torn = vec![0; 3000];
    let log = "segment-0000000000000001.wal";
    let end = thalweg_wal::LogReader::open(&after, None).expect("opens").end;
    storage.open(log, Access::Read).expect("opens").read_at(&mut torn, end).expect("reads");
    after.open(log, Access::Write).expect("opens").write_at(&torn, end).expect("writes");

    let follower = Follower::open_on(shared(&after)).expect("follows");
    assert_eq!(follower.delivered(), 1, "what is gone is shown");
    let owner = Options::new().open_on(shared(&after)).expect("recovers");
    let later = Follower::open_on(shared(&after)).expect("follows");
    assert_eq!(later.delivered(), 1, "what was cut is shown");
    append(&owner, "s", "something else");
    append(&owner, "u", "and more");
    check(&follower, &owner);
    check(&later, &owner);
}

/// What a follower may show through a map is not written again, not even with the same bytes.
#[test]
fn an_owner_that_recovers_leaves_the_entries_that_are_there_alone() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    // Roots, and an event that is chained on all of them, and so has its parents in the tips log.
    let append_fork = |stream: &str| {
        let mut batch = MixedBatch::new();
        for root in ["a", "b", "c"] {
            let event = Event::new(root).id(root).parents::<&str>([]);
            batch.push(stream, &event).expect("within the limits");
        }
        batch.push(stream, &Event::new("on three tips")).expect("within the limits");
        store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
    };
    append_fork("before");
    store.wait_committed(store.durable_end()).expect("ordered");
    store.checkpoint().expect("a checkpoint");
    append_fork("behind");
    append_fork("behind too");
    let before = said(&store, 0);
    for file in ["order-", "tips-"] {
        let crashed = Faulty::over(storage.fork());
        crashed.fail(Fault::always(Op::Write, file));
        let options = Options::new().wait_for_room(Duration::ZERO);
        let owner = options.open_on(Arc::new(crashed.clone())).expect("recovers");
        assert!(said(&owner, 0) == before);
        assert_eq!((crashed.failed(), owner.stats().commit_retries), (0, 0), "{file} is written");
        crashed.heal();
        append(&owner, "before", "and on");
        assert_eq!(said(&owner, 0).len(), before.len() + 1);
    }
}

/// Somebody puts an older copy of the store in its place and goes on from there.
#[test]
fn a_store_that_is_replaced_is_not_followed() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    append(&store, "s", "first");
    store.close().expect("closes");
    let copy = storage.fork();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    append(&store, "s", "second");
    let follower = Follower::open_on(shared(&storage)).expect("follows");
    check(&follower, &store);
    store.close().expect("closes");

    replace_all(&storage, &copy);
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    append(&store, "another", "not the second");
    append(&store, "another", "third");
    append(&store, "another", "fourth");
    store.close().expect("closes");
    let ended = follower.wait_delivered(3, PATIENCE);
    assert!(matches!(&ended, Err(ReadError::Poisoned(Cause::Replaced { global: 1 }))), "{ended:?}");
    assert_eq!(follower.delivered(), 2);
}

// Owners that are killed.

const DIR: &str = "THALWEG_FOLLOWER_DIR";
const CHILD: &str = "THALWEG_FOLLOWER_CHILD";
/// A directory is given up after so many rounds, since every check reads all of it.
const ROUNDS_PER_DIRECTORY: u64 = 12;

fn options(rng: &mut Rng) -> Options {
    Options::new()
        .segment_bytes(1 << 20)
        .scanners(1 + rng.below(2) as usize)
        .orderers(1 + rng.below(2) as usize)
        // What a process has written outlives it, synced or not.
        .durability(if rng.once_in(3) { Durability::Buffered } else { Durability::Sync })
}

#[test]
#[ignore = "the process that `no_kill_of_the_owner_misleads_a_follower` starts and kills"]
fn owner() {
    let Ok(orders) = std::env::var(CHILD) else { return };
    let numbers: Vec<u64> = orders.split(',').map(|n| n.parse().expect("a number")).collect();
    let (mut rng, round, batch_count) = (Rng(numbers[0]), numbers[1], numbers[2]);
    let dir = std::env::var_os(DIR).expect("the parent says where");
    let store = options(&mut rng).open(dir).expect("the owner opens the store");
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let appenders: Vec<_> = (0..2)
            .map(|_| {
                let (store, rng) = (&store, Rng(rng.next()));
                scope.spawn(move || append_wildly(store, rng, round, batch_count))
            })
            .collect();
        let checkpoints = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                store.checkpoint().expect("a checkpoint");
                // Not to wait for anything: only to leave the disk to the others.
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        appenders.into_iter().for_each(|thread| thread.join().expect("an appender ends"));
        ended.store(true, Ordering::Relaxed);
        checkpoints.join().expect("no checkpoint fails");
    });
    store.close().expect("closes");
}

fn append_wildly(store: &Store, mut rng: Rng, round: u64, batch_count: u64) {
    let mut under_way = std::collections::VecDeque::new();
    for _ in 0..batch_count {
        let mut batch = MixedBatch::new();
        for _ in 0..1 + rng.below(8) {
            let len = if rng.once_in(20) { 60_000 } else { rng.below(60) };
            let payload = vec![rng.next() as u8; len as usize];
            let event = wild_event(&mut rng, round * 300, 600, payload);
            batch.push(format!("stream-{}", rng.below(3)), &event).expect("within the limits");
        }
        under_way.push_back(store.submit(batch, Ack::Durable).expect("accepted"));
        if under_way.len() == 4 {
            under_way.pop_front().expect("not empty").wait().expect("appended");
        }
    }
}

fn start_owner(dir: &Path, seed: u64, round: u64, batch_count: u64) -> Child {
    this_test("owner")
        .env(DIR, dir)
        .env(CHILD, format!("{seed},{round},{batch_count}"))
        .stdout(Stdio::null())
        .spawn()
        .expect("the owner starts")
}

/// A thread that follows from the first event on, and all that it has seen.
struct Tail {
    follower: Follower,
    seen: Arc<Mutex<Vec<Seen>>>,
    thread: std::thread::JoinHandle<()>,
}

impl Tail {
    fn new(follower: Follower) -> Self {
        let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
        let events = follower.subscribe(0).expect("subscribes");
        let sink = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            for event in events {
                let event = Seen::of(&event.expect("an event"));
                let mut seen = sink.lock().expect("nobody panics with it");
                assert_eq!(event.global, seen.len() as u64, "not the next one");
                seen.push(event);
            }
        });
        Tail { follower, seen, thread }
    }

    /// It has seen what the owner, who rests, says, and nothing else.
    fn check(&self, said: &[Seen]) {
        let count = said.len() as u64;
        assert!(
            self.follower.wait_delivered(count, PATIENCE).expect("follows"),
            "events are missing"
        );
        assert_eq!(self.follower.delivered(), count, "the owner denies events");
        let since = Instant::now();
        loop {
            let seen = self.seen.lock().expect("the thread has not panicked");
            if seen.len() >= said.len() {
                assert!(*seen == said, "something else was seen");
                return;
            }
            drop(seen);
            assert!(since.elapsed() < PATIENCE, "the subscription has stopped");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(self) {
        self.follower.close();
        self.thread.join().expect("no assertion failed");
    }
}

/// What is done to the files while nobody owns them.
fn meddle(dir: &Path, rng: &mut Rng) {
    match rng.below(8) {
        0 => {
            let report = thalweg::rebuild(dir, options(rng), &|_| ControlFlow::Continue(()));
            report.expect("rebuilds");
        }
        // The next owner makes it again.
        1 => drop(std::fs::remove_file(dir.join("order-0000000000000000.ord"))),
        2 => drop(std::fs::remove_file(dir.join("tips-0000000000000000.tip"))),
        3 => drop(std::fs::remove_file(dir.join("checkpoint.ckp"))),
        _ => {}
    }
}

#[test]
fn no_kill_of_the_owner_misleads_a_follower() {
    let rounds = std::env::var("THALWEG_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds: u64 = rounds.unwrap_or(36);
    let mut rng = Rng::from_env();
    let (mut checked, mut by_itself) = (0, 0);
    for first in (0..rounds).step_by(ROUNDS_PER_DIRECTORY as usize) {
        let dir = tempfile::tempdir().expect("a directory");
        Store::open(dir.path()).expect("creates").close().expect("closes");
        let mut tails = vec![Tail::new(Store::open_follower(dir.path()).expect("follows"))];
        for round in 0..ROUNDS_PER_DIRECTORY.min(rounds - first) {
            let batch_count = if rng.once_in(4) { 1 + rng.below(40) } else { u64::MAX };
            let mut owner = start_owner(dir.path(), rng.next(), round, batch_count);
            let kill_at = Instant::now() + Duration::from_micros(rng.below(250_000));
            if rng.once_in(3) {
                // While the owner is at work.
                tails.push(Tail::new(Store::open_follower(dir.path()).expect("follows")));
            }
            if batch_count == u64::MAX {
                std::thread::sleep(kill_at.saturating_duration_since(Instant::now()));
                owner.kill().expect("kills");
            }
            let output = owner.wait_with_output().expect("the owner ends");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(!errors.contains("panicked"), "{errors}");
            by_itself += u64::from(output.status.code().is_some());
            meddle(dir.path(), &mut rng);
            if rng.once_in(3) {
                continue;
            }
            let recovered = options(&mut rng).open(dir.path()).expect("the owner recovers");
            if rng.once_in(2) {
                append(&recovered, "stream-0", "after the crash");
            }
            let said = said(&recovered, 0);
            tails.iter().for_each(|tail| tail.check(&said));
            if rng.once_in(2) {
                recovered.close().expect("closes");
            }
            checked += said.len();
            // One goes all the way, some come and go.
            while tails.len() > 3 {
                tails.remove(1).end();
            }
        }
        let owner = options(&mut rng).open(dir.path()).expect("the owner recovers");
        let said = said(&owner, 0);
        tails.iter().for_each(|tail| tail.check(&said));
        check(&tails[0].follower, &owner);
        tails.into_iter().for_each(Tail::end);
    }
    println!("{rounds} rounds: {checked} events compared, {by_itself} owners not killed");
    assert!(checked > 0, "the owners were killed before they did anything");
}
