//! What a follower answers of a store that its owner writes meanwhile: `stats`, `held` and `streams`, beside the owner's
//! own answers.

mod common;
#[path = "../../wal/tests/common/hooked.rs"]
mod hooked;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Rng, append, append_every_kind, shared};
use hooked::{Hooked, Op};
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, Event, Follower, MixedBatch, Options, Store, StreamInfo, writer_of};

/// No wait takes so long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The owner, who rests, and the follower say the same.
fn agree(follower: &Follower, owner: &Store) {
    owner.wait_committed(owner.durable_end()).expect("everything is ordered");
    let held = owner.held().expect("answers");
    assert_eq!(follower.held().expect("answers"), held);
    assert_eq!(follower.oldest_held().expect("answers"), held.into_iter().next());
    assert_eq!(follower.streams().expect("answers"), owner.streams().expect("answers"));
    let stats = owner.stats();
    assert!(follower.wait_delivered(stats.delivered, PATIENCE).expect("follows"));
    assert_eq!(follower.stats().expect("answers").delivered, stats.delivered);
}

#[test]
fn a_follower_answers_as_the_owner_does_with_and_without_checkpoints() {
    let mut rng = Rng::from_env();
    let storage = MemoryStorage::new();
    let owner = Options::new().segment_bytes(1 << 20).open_on(shared(&storage)).expect("opens");
    let follower = Follower::open_on(shared(&storage)).expect("follows an empty store");
    agree(&follower, &owner);
    let mut held = 0;
    for round in 0..12 {
        append_every_kind(&owner, &mut rng, 5, 20);
        if round % 3 == 1 {
            append(&owner, &format!("sealed-{round}"), "x");
            owner.seal(format!("sealed-{round}")).expect("seals");
        }
        agree(&follower, &owner);
        held += owner.stats().held;
        if round % 4 == 2 {
            owner.checkpoint().expect("a checkpoint");
            agree(&follower, &owner);
        }
    }
    assert!(held > 0, "nothing was held");
    assert!(owner.streams().expect("answers").iter().any(|stream| stream.sealed));
    owner.close().expect("closes");
    let owner = Options::new().open_on(shared(&storage)).expect("opens again");
    agree(&follower, &owner);
    owner.close().expect("closes");
}

/// Where each number of a stream was, before and after.
fn between(before: &[StreamInfo], after: &[StreamInfo]) -> BTreeMap<Vec<u8>, RangeInclusive<u64>> {
    let before: BTreeMap<&[u8], u64> =
        before.iter().map(|stream| (&stream.name[..], stream.delivered)).collect();
    let range = |stream: &StreamInfo| {
        let from = before.get(&stream.name[..]).copied().unwrap_or(0);
        (stream.name.clone(), from..=stream.delivered)
    };
    after.iter().map(range).collect()
}

/// Ends the thread that appends, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn answers_while_the_owner_appends_are_of_a_moment_in_between() {
    let dir = tempfile::tempdir().expect("a directory");
    let owner = Options::new().segment_bytes(1 << 20).open(dir.path()).expect("opens");
    let follower = Store::open_follower(dir.path()).expect("follows");
    let (done, mut rng) = (AtomicBool::new(false), Rng::from_env());
    let (mut answers, mut held_in_all) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                append_every_kind(&owner, &mut rng, 1, 20);
                if rng.once_in(20) {
                    owner.checkpoint().expect("a checkpoint");
                }
            }
        });
        let _end = End(&done);
        for _ in 0..15 {
            let before = (owner.streams().expect("answers"), owner.held().expect("answers"));
            let streams = follower.streams().expect("answers");
            let held = follower.held().expect("answers");
            let after = (owner.streams().expect("answers"), owner.held().expect("answers"));
            let range = between(&before.0, &after.0);
            for stream in &streams {
                let range = &range[&stream.name];
                assert!(range.contains(&stream.delivered), "{stream:?} is not in {range:?}");
            }
            assert!(before.0.iter().all(|known| streams.iter().any(|it| it.name == known.name)));
            // What was held all the time is in the answer, and nothing that was never held.
            let positions = |held: &[thalweg::HeldEvent]| -> BTreeSet<u64> {
                held.iter().map(|event| event.position).collect()
            };
            let [before, held, after] = [&before.1, &held, &after.1].map(|held| positions(held));
            assert!(before.intersection(&after).all(|position| held.contains(position)));
            let newest = before.last().copied().unwrap_or(0);
            assert!(held.iter().all(|it| *it > newest || before.contains(it)), "it was delivered");
            answers += 1;
            held_in_all += held.len();
        }
    });
    assert!(answers == 15 && held_in_all > 0);
    agree(&follower, &owner);
    owner.close().expect("closes");
}

/// Whoever opened a store for reading just when its owner replaced the checkpoint, and took away a run that the old one
/// listed, tried again as meant, but over what the first attempt had left in memory: `AlreadyExists`.
#[test]
fn a_checkpoint_that_is_replaced_under_a_readers_eyes_is_read_again() {
    let storage = MemoryStorage::new();
    let owner = Options::new().open_on(shared(&storage)).expect("opens");
    (0..3).for_each(|_| append(&owner, "s", "x"));
    owner.checkpoint().expect("a checkpoint");
    let waiting = Mutex::new(Some(owner.clone()));
    // The first run that is opened is gone, and there is a newer checkpoint.
    let replaced = Hooked::new(storage, move |op| match op {
        Op::Open(name, _) if name.starts_with("run-") => {
            let Some(owner) = waiting.lock().unwrap().take() else { return Ok(()) };
            append(&owner, "s", "meanwhile");
            owner.checkpoint().expect("a checkpoint");
            Err(io::ErrorKind::NotFound.into())
        }
        _ => Ok(()),
    });
    let reader = Options::new().open_read_only_on(Arc::new(replaced)).expect("opens");
    reader.discovery().wait().expect("everything is ordered");
    assert_eq!(reader.stats().delivered, 4);
    assert_eq!(reader.streams().expect("answers"), owner.streams().expect("answers"));
    owner.close().expect("closes");
}

#[test]
fn the_numbers_of_the_checkpoint_are_those_of_its_owner() {
    let mut rng = Rng::from_env();
    let dir = tempfile::tempdir().expect("a directory");
    let owner = Store::open(dir.path()).expect("opens");
    let follower = Store::open_follower(dir.path()).expect("follows");
    assert_eq!(follower.stats().expect("answers").checkpoint, None);
    append_every_kind(&owner, &mut rng, 20, 20);
    let mailer = owner.cursor("mailer").expect("a cursor");
    mailer.commit(3).expect("commits");
    owner.checkpoint().expect("a checkpoint");
    let then = owner.stats();
    let mut batch = MixedBatch::new();
    batch.push("s9", &Event::new("x").parents(["never"])).expect("within the limits");
    (0..5).for_each(|_| batch.push("s8", &Event::new("x")).expect("within the limits"));
    owner.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    mailer.commit(4).expect("commits");
    assert!(follower.wait_delivered(then.delivered + 5, PATIENCE).expect("follows"));
    let stats = follower.stats().expect("answers");
    assert_eq!(stats.delivered, then.delivered + 5);
    let known = stats.checkpoint.expect("there is one");
    assert_eq!(
        [known.position, known.delivered, known.held, known.duplicates],
        [then.committed, then.delivered, then.held, then.duplicates]
    );
    assert_eq!(
        [known.conflicts, known.rejected, known.streams],
        [then.conflicts, then.rejected, then.streams]
    );
    assert!(then.held > 0 && then.duplicates > 0 && then.rejected > 0, "{then:?}");
    let cursors: Vec<(&[u8], u64, u64)> =
        known.cursors.iter().map(|cursor| (&cursor.name[..], cursor.at, cursor.lag)).collect();
    assert_eq!(cursors, [(&b"mailer"[..], 3, stats.delivered - 3)], "of then, behind now");
    let now = owner.stats();
    assert_eq!(stats.segments, now.segments);
    assert!(stats.log_bytes <= now.log_bytes && stats.log_end <= now.durable);
    assert_eq!((stats.corrupt, stats.stopped), (0, None));
    owner.close().expect("closes");
}

#[test]
fn it_is_known_whether_somebody_writes() {
    let dir = tempfile::tempdir().expect("a directory");
    let me = Some(format!("process {}", std::process::id()));
    let writer = |path: &Path| writer_of(path).expect("asks");
    assert_eq!(writer(dir.path()), None, "there is not even a store");
    let owner = Store::open(dir.path()).expect("opens");
    assert_eq!(writer(dir.path()), me);
    let follower = Store::open_follower(dir.path()).expect("follows");
    assert_eq!(follower.stats().expect("answers").writer, me);
    append(&owner, "s", "x");
    owner.close().expect("closes");
    assert_eq!((writer(dir.path()), follower.stats().expect("answers").writer), (None, None));
    // Who asks keeps nobody out.
    Store::open(dir.path()).expect("opens").close().expect("closes");
    assert!(writer_of(dir.path().join("nothing")).is_err());
}
