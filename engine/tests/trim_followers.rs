//! Followers of a store that its owner trims: they go on, hear once of what they have missed, and keep no space.

mod common;
#[path = "../../wal/tests/common/hooked.rs"]
mod hooked;

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use common::{Rng, SOON, append, shared, soon, this_test};
use hooked::{Hooked, Op};
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, Event, Follower, MixedBatch, Options, ReadError, Store, Trim};

const PATIENCE: Duration = Duration::from_secs(60);
const LONG: usize = 300 << 10;

fn options() -> Options {
    Options::new().segment_bytes(1 << 20).scanners(1).orderers(1)
}

fn all() -> Trim {
    Trim::new().before(u64::MAX).past_cursors()
}

/// Of the stream, each three a segment.
fn fill(store: &Store, stream: &str, count: usize) {
    (0..count).for_each(|number| append(store, stream, vec![number as u8; LONG]));
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < 3 * SOON, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Places, stream, id, and length of the payload.
type Seen = (u64, u64, Vec<u8>, Vec<u8>, usize);

/// All that is shown.
fn all_of(read: thalweg::Read) -> Vec<Seen> {
    read.map(|event| {
        let event = event.expect("reads");
        let (stream, id) = (event.stream().to_vec(), event.id().to_vec());
        (event.global(), event.local(), stream, id, event.payload().len())
    })
    .collect()
}

/// It comes to show what the owner does.
fn check(follower: &Follower, owner: &Store) {
    owner.wait_committed(owner.durable_end()).expect("ordered");
    assert!(follower.wait_delivered(owner.delivered(), PATIENCE).expect("follows"));

    until("it sees that the log was trimmed", || follower.first() == owner.first());
    assert_eq!(follower.delivered(), owner.delivered());
    let shown = all_of(follower.read(..).expect("reads"));
    assert!(shown == all_of(owner.read(..).expect("reads")), "it shows something else");
    assert_eq!(shown.len() as u64, owner.delivered() - owner.first());
    for info in owner.streams().expect("answers").into_iter().filter(|info| info.delivered > 0) {
        let (theirs, ours) = (follower.stream(&info.name), owner.stream(&info.name));
        let theirs = theirs.expect("finds").expect("there is such a stream");
        let ours = ours.expect("finds").expect("there is such a stream");
        assert_eq!(theirs.len(), ours.len());
        assert_eq!(all_of(theirs.read(..).expect("reads")), all_of(ours.read(..).expect("reads")));
    }
    let first = owner.first();
    if first > 0 {
        let before = follower.read(first - 1..);
        assert!(matches!(before, Err(ReadError::Trimmed { first: said }) if said == first));
    }
}

/// Names of files that are mapped and have no name any more.
fn mapped_without_name(dir: &Path) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("Linux");
    let below = dir.to_str().expect("plain");
    let is_gone = |line: &&str| line.ends_with("(deleted)") && line.contains(below);
    maps.lines().filter(is_gone).map(str::to_owned).collect()
}

#[test]
fn a_follower_goes_on_while_its_owner_trims_and_keeps_no_space() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = options().open(dir.path()).expect("opens");
    append(&store, "once", "and never again");
    let follower = Store::open_follower(dir.path()).expect("follows");
    let mut events = follower.subscribe(0).expect("subscribes");
    let mut next = 0;
    for round in 0..4 {
        fill(&store, "s", 8);
        append(&store, &format!("round {round}"), "some stream");
        let first = store.trim(&all()).expect("trims").first;
        assert!(first > 0);
        while next < store.delivered() {
            match events.next_timeout(PATIENCE) {
                Ok(event) => {
                    assert_eq!(event.expect("it comes").global(), next);
                    next += 1;
                }
                Err(ReadError::Trimmed { first: said }) => {
                    assert!(said > next && said <= first, "{said}");
                    next = said;
                }
                Err(error) => panic!("{error}"),
            }
        }
        check(&follower, &store);
        let late = Store::open_follower(dir.path()).expect("follows what is left");
        assert_eq!(late.first(), first);
        check(&late, &store);
    }
    drop(events);
    until("the space is given back", || mapped_without_name(dir.path()).is_empty());
    // Without an owner, and with the next.
    store.close().expect("closes");
    let alone = Store::open_follower(dir.path()).expect("follows");
    assert_eq!(alone.delivered(), next);
    let store = options().open(dir.path()).expect("opens");
    fill(&store, "s", 5);
    store.trim(&all()).expect("trims");
    check(&alone, &store);
    check(&follower, &store);
}

/// The newest delivery of a stream may stand where there is no log any more.
#[test]
fn an_event_that_outlives_its_segment_is_followed_like_any_other() {
    let storage = MemoryStorage::new();
    let store = options().open_on(shared(&storage)).expect("opens");
    let mut batch = MixedBatch::new();
    batch
        .push("s", &Event::new("child").id("child").parents(["parent"]))
        .expect("within the limits");
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    let follower = Follower::open_on(shared(&storage)).expect("follows");
    fill(&store, "t", 8);
    let first = store.trim(&all()).expect("trims").first;
    until("it sees that", || follower.first() == first);
    let late = Follower::open_on(shared(&storage)).expect("follows");
    let mut batch = MixedBatch::new();
    let parent = Event::new("parent").id("parent").parents::<&str>([]);
    batch.push("s", &parent).expect("within the limits");
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    for follower in [&follower, &late] {
        check(follower, &store);
        let view = follower.stream("s").expect("finds").expect("is there");
        assert_eq!(view.len(), 2, "the child is the newest");
    }
    append(&store, "s", "chained on the child");
    [&follower, &late].into_iter().for_each(|follower| check(follower, &store));
}

/// Somebody who sees nothing of a directory for a while: as a process that is stopped.
#[derive(Debug, Clone, Default)]
struct Stopped(Arc<(Mutex<bool>, Condvar)>);

impl Stopped {
    fn stop(&self, is_stopped: bool) {
        *self.0.0.lock().unwrap() = is_stopped;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let stopped = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(stopped, |stopped| *stopped).unwrap());
    }

    /// What he sees of it.
    fn of(&self, inner: &MemoryStorage) -> Hooked {
        let stopped = self.clone();
        Hooked::new(inner.clone(), move |op| {
            assert!(op.is_of_a_reader(), "{op:?}");
            if matches!(op, Op::Open(..) | Op::List) {
                stopped.wait();
            }
            Ok(())
        })
    }
}

/// One that was stopped until the log was trimmed beyond it goes on where the log begins, and those who read from it
/// meanwhile see nothing but that.
#[test]
fn a_follower_that_was_overtaken_goes_on_where_the_log_begins() {
    let storage = MemoryStorage::new();
    let store = options().open_on(shared(&storage)).expect("opens");
    append(&store, "s", "first");
    let stopped = Stopped::default();
    let follower = Follower::open_on(Arc::new(stopped.of(&storage))).expect("follows");
    let mut slow = follower.subscribe(0).expect("subscribes");
    let mut next = 0;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (follower, done) = (&follower, &done);
            scope.spawn(move || {
                let mut before = 0;
                while !done.load(Ordering::SeqCst) {
                    if reader == 0 {
                        let view = follower.stream("s").expect("finds").expect("it is never gone");
                        assert!(view.len() >= before, "it goes back");
                        before = view.len();
                    } else if reader == 1 {
                        for event in follower.read(..).expect("begins where the log does") {
                            match event {
                                Ok(event) => assert!(event.payload().len() >= 5),
                                Err(ReadError::Trimmed { .. }) => {}
                                Err(error) => panic!("{error}"),
                            }
                        }
                    } else {
                        let delivered = follower.delivered();
                        assert!(delivered >= before && follower.first() <= follower.delivered());
                        before = delivered;
                    }
                }
            });
        }
        for round in 0..6 {
            stopped.stop(true);
            fill(&store, "s", 8);
            let first = store.trim(&all()).expect("trims").first;
            if round % 2 == 0 {
                append(&store, "t", "whatever");
                fill(&store, "t", 2);
            }
            store.checkpoint().expect("a checkpoint");
            let delivered = store.delivered();
            assert!(follower.delivered() < first, "it was not overtaken");
            stopped.stop(false);
            assert!(follower.wait_delivered(delivered, PATIENCE).expect("it goes on"));
            let mut told = Vec::new();
            while next < delivered {
                match slow.next_timeout(PATIENCE) {
                    Ok(event) => {
                        assert_eq!(event.expect("it comes").global(), next);
                        next += 1;
                    }
                    Err(ReadError::Trimmed { first: said }) => {
                        told.push(said);
                        next = said;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(told, [first], "round {round}");
        }
        done.store(true, Ordering::SeqCst);
    });
    check(&follower, &store);
    soon("closing", move || follower.close());
}

// Owners that are killed.

const DIR: &str = "THALWEG_TRIM_OWNER_DIR";
const SEED: &str = "THALWEG_TRIM_OWNER_SEED";

#[test]
#[ignore = "the process that `no_owner_that_trims_and_is_killed_misleads_a_follower` starts and kills"]
fn owner() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let mut rng = Rng(std::env::var(SEED).expect("the parent says").parse().expect("a number"));
    let store = options().retention(Trim::new().keep_bytes(4 << 20)).open(dir).expect("opens");
    loop {
        let mut batch = MixedBatch::new();
        for _ in 0..1 + rng.below(4) {
            let len = if rng.once_in(3) { 200_000 } else { 60 };
            let mut event =
                Event::new(vec![rng.next() as u8; len]).id(format!("e{}", rng.below(900)));
            if rng.once_in(3) {
                event = event.parents([format!("e{}", rng.below(900))]);
            }
            batch.push(format!("s{}", rng.below(4)), &event).expect("within the limits");
        }
        store.submit(batch, Ack::Durable).expect("accepted").wait().expect("appended");
    }
}

#[test]
#[expect(clippy::zombie_processes, reason = "whoever leaves early has failed")]
fn no_owner_that_trims_and_is_killed_misleads_a_follower() {
    let rounds = std::env::var("THALWEG_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let mut rng = Rng::from_env();
    let dir = tempfile::tempdir().expect("a directory");
    options().open(dir.path()).expect("creates").close().expect("closes");
    let follower = Store::open_follower(dir.path()).expect("follows");
    let mut events = follower.subscribe(0).expect("subscribes");
    let mut seen: Vec<Seen> = Vec::new();
    let (mut next, mut trims) = (0, 0);
    for _ in 0..rounds.unwrap_or(6_u64) {
        let mut child = this_test("owner")
            .env(DIR, dir.path())
            .env(SEED, rng.next().to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("the owner starts");
        let until = Instant::now() + Duration::from_micros(300_000 + rng.below(500_000));
        let mut is_running = true;
        let mut owner = None;
        loop {
            match events.next_timeout(Duration::from_millis(5)) {
                Ok(Some(event)) => {
                    assert_eq!(event.global(), next);
                    let (stream, id) = (event.stream().to_vec(), event.id().to_vec());
                    seen.push((next, event.local(), stream, id, event.payload().len()));
                    next += 1;
                }
                Ok(None) => {}
                Err(ReadError::Trimmed { first }) => {
                    assert!(first > next);
                    (next, trims) = (first, trims + 1);
                }
                Err(error) => panic!("{error}"),
            }
            if is_running && Instant::now() > until {
                is_running = false;
                child.kill().expect("it goes on for ever");
                let mut errors = String::new();
                io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut errors)
                    .expect("reads");
                child.wait().expect("ends");
                assert!(!errors.contains("panicked"), "{errors}");
                let recovered = options().open(dir.path()).expect("recovers");
                recovered.wait_committed(recovered.durable_end()).expect("ordered");
                owner = Some(recovered);
            }
            if owner.as_ref().is_some_and(|owner| next == owner.delivered()) {
                break;
            }
        }
        let owner = owner.expect("it was opened");
        check(&follower, &owner);
        let first = owner.first();
        let kept = all_of(owner.read(..).expect("reads"));
        let from = seen.partition_point(|seen| seen.0 < first);
        assert!(seen[from..].iter().all(|seen| kept[(seen.0 - first) as usize] == *seen));
        if rng.once_in(2) {
            owner.close().expect("closes");
        }
    }
    println!(
        "{} events seen, overtaken {trims} times, trimmed up to {}",
        seen.len(),
        follower.first()
    );
    assert!(!seen.is_empty() && follower.first() > 0);
}
