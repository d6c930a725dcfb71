//! Reading along: the log as far as somebody says that it goes, and being told of changes.

mod common;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use common::{Event, HEADER_PAGE, MIB, frame_of, open, patch};
use thalweg_wal::storage::{Access, MemoryStorage, OsStorage, Storage, write_all_at};
use thalweg_wal::{LogFollower, LogWriter, OpenError, name};

/// No wait takes so long, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn follow(storage: &MemoryStorage) -> LogFollower {
    LogFollower::open(Arc::new(storage.clone()), None).expect("follows")
}

/// Appends one event of so many bytes in a frame of its own, without a sync; returns its position.
fn append(writer: &mut LogWriter, payload_len: usize) -> u64 {
    let event = Event::new("s", "", vec![7; payload_len]);
    let mut frame = frame_of(&[Event { id: None, ..event }]);
    writer.append(&mut frame).expect("appends").position + common::FRAME_HEADER as u64
}

fn end(log: &LogFollower) -> u64 {
    log.segments().last().expect("a segment").end()
}

#[test]
fn a_follower_shows_the_log_up_to_the_frame_that_it_is_told_of() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    let mut log = follow(&storage);
    let empty = end(&log);
    assert!(!log.reach(empty + 48).expect("looks"), "there is nothing");
    let positions: Vec<u64> = [10, 20, 200_000, 30].map(|len| append(&mut writer, len)).into();
    assert_eq!(end(&log), empty, "nobody has told of it");
    for (n, &position) in positions.iter().enumerate() {
        assert!(log.reach(position).expect("looks"), "frame {n}");
        let next =
            positions.get(n + 1).map_or(writer.end(), |next| next - common::FRAME_HEADER as u64);
        assert_eq!(end(&log), next, "frame {n}, and no other");
        let record = log.segments()[0].record(position).expect("a record");
        assert_eq!(record.payload().len(), [10, 20, 200_000, 30][n]);
    }
    assert!(log.reach(positions[0]).expect("looks"), "what is shown stays");
    assert!(!log.reach(writer.end()).expect("looks"));
    assert!(!log.reach(u64::MAX).expect("looks"));
    assert!(!log.reach(0).expect("looks"), "no frame is in a header");
}

/// A follower that was told of a frame behind long ones that it had not read either said that it was not there: it
/// took no more frames at once than it had read ahead.
#[test]
fn a_follower_reaches_a_frame_behind_several_long_ones() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    let mut log = follow(&storage);
    let positions = [100_000, 200_000, 100_000, 100].map(|len| append(&mut writer, len));
    assert!(log.reach(positions[3]).expect("looks"));
}

/// A follower that was behind took only what it had read ahead, told that the position was not there, and waited for
/// the next change of the files, which need not come.
#[test]
fn a_follower_that_is_far_behind_comes_to_the_end_in_one_go() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    let mut log = follow(&storage);
    // More than is read ahead; and a long frame behind a short one.
    for lens in [vec![10_000; 30], vec![10, 200_000]] {
        let positions: Vec<u64> = lens.iter().map(|&len| append(&mut writer, len)).collect();
        assert!(log.reach(*positions.last().expect("some")).expect("looks"));
        assert_eq!(end(&log), writer.end());
    }
}

#[test]
fn a_follower_goes_on_in_the_next_segments() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    let mut log = follow(&storage);
    let positions: Vec<u64> = (0..9).map(|_| append(&mut writer, 400_000)).collect();
    assert!(log.reach(*positions.last().expect("nine")).expect("looks"));
    assert!(log.segments().len() >= 4);
    for &position in &positions {
        assert!(log.reach(position).expect("looks"), "all before is there too");
        let at = log.segments().partition_point(|segment| segment.base() <= position) - 1;
        log.segments()[at].record(position).expect("a record");
    }
    // The end of a sealed segment holds nothing.
    let sealed = &log.segments()[0];
    let (end, limit) = (sealed.end(), sealed.limit());
    assert!(
        end < limit && !log.reach(end).expect("looks") && !log.reach(limit - 8).expect("looks")
    );
}

#[test]
fn a_frame_that_is_not_whole_is_not_shown() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    let first = append(&mut writer, 100);
    let mut log = follow(&storage);
    let second = append(&mut writer, 100_000);
    let last_word = writer.end() as usize - 200;
    patch(&storage, 1, last_word, &[0; 8]);
    assert!(!log.reach(second).expect("looks"));
    assert_eq!(end(&log), second - common::FRAME_HEADER as u64);
    assert!(log.reach(first).expect("looks"));
    patch(&storage, 1, last_word, &[7; 8]);
    assert!(log.reach(second).expect("looks"), "it is whole now");
    // Once another segment follows, nobody writes there any more, and damage is told of by the record.
    let third = append(&mut writer, 10);
    patch(&storage, 1, third as usize + 30, &[0xff; 4]);
    let next = append(&mut writer, MIB as usize);
    assert!(log.reach(next).expect("looks") && log.reach(third).expect("looks"));
    log.segments()[0].record(third).expect_err("it is damaged");
}

#[test]
fn a_segment_that_is_prepared_or_foreign_is_not_gone_on_in() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    let mut log = follow(&storage);
    let spare = writer.request_spare().expect("nobody has asked").prepare(&storage, &|| true);
    let beyond = MIB + HEADER_PAGE as u64 + 48;
    assert!(!log.reach(beyond).expect("looks"), "it is not in use");
    // A header that is being written.
    patch(&storage, 2, 0, b"THALWEGS");
    assert!(!log.reach(beyond).expect("looks"));
    patch(&storage, 2, 0, &[0; 8]);
    writer.offer_spare(Some(spare.expect("prepares")));
    append(&mut writer, 900_000);
    assert_eq!(append(&mut writer, 200_000), beyond);
    assert!(log.reach(beyond).expect("looks"));

    let other = MemoryStorage::new();
    let mut foreign = open(&other, None).expect("creates").writer;
    append(&mut foreign, 900_000);
    append(&mut foreign, 900_000);
    append(&mut foreign, 900_000);
    let mut bytes = vec![0; MIB as usize];
    let file = other.open(&name::segment(3), Access::Read).expect("opens");
    thalweg_wal::storage::read_exact_at(&*file, &mut bytes, 0).expect("reads");
    let copy = storage.create(&name::segment(3), MIB).expect("creates");
    write_all_at(&*copy, &bytes, 0).expect("writes");
    let error = log.reach(beyond + MIB).expect_err("another log's");
    assert!(matches!(error, OpenError::SegmentForeign { .. }), "{error}");
}

#[test]
fn nothing_that_changes_during_a_look_is_missed() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::open(dir.path()).expect("opens"));
    let Some(watch) = storage.watch().expect("watches") else { return };
    // Each change is answered, so a wake-up that is lost leaves both sides waiting.
    let (answer, answers) = channel();
    let told = Arc::clone(&watch);
    let watcher = thread::spawn(move || {
        let is_wanted = |file: &str| file == "wanted";
        while told.wait(&is_wanted, PATIENCE * 60).is_ok() && answer.send(()).is_ok() {}
    });
    let next = || answers.recv_timeout(PATIENCE).expect("it is told of");
    let wanted = storage.create("wanted", 4096).expect("creates");
    next();
    let other = storage.create("other", 4096).expect("creates");
    for n in 0..200 {
        write_all_at(&*other, b"x", n).expect("writes");
        // A change can be told of more than once, as a creation is that is followed by a length.
        while answers.try_recv().is_ok() {}
        write_all_at(&*wanted, b"x", n).expect("writes");
        next();
    }
    storage.create("prepared", 1).expect("creates");
    storage.rename("prepared", "wanted").expect("renames");
    next();
    drop(answers);
    watch.wake();
    watcher.join().expect("ends");
}

#[test]
fn other_files_do_not_end_a_wait_and_a_wake_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = OsStorage::open(dir.path()).expect("opens");
    let Some(watch) = storage.watch().expect("watches") else { return };
    drop(storage.create("other", 4096).expect("creates"));
    let asked = std::sync::atomic::AtomicU64::new(0);
    let is_wanted = |_: &str| {
        asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        false
    };
    watch.wait(&is_wanted, Duration::from_millis(1)).expect("waits");
    assert!(asked.into_inner() > 0, "it was not told");
    // Before the wait, and for that one only.
    watch.wake();
    watch.wait(&|_| true, PATIENCE * 60).expect("waits");
    watch.wait(&|_| true, Duration::from_millis(1)).expect("waits");
}

#[test]
fn a_watch_of_a_directory_that_is_gone_says_so() {
    let place = tempfile::tempdir().expect("a directory");
    let dir = place.path().join("store");
    let storage = OsStorage::create(&dir).expect("creates");
    let Some(watch) = storage.watch().expect("watches") else { return };
    std::fs::remove_dir(&dir).expect("removes");
    watch.wait(&|_| true, PATIENCE * 60).expect_err("there is nothing to watch");
}

#[test]
fn linux_can_tell_and_memory_cannot() {
    assert!(MemoryStorage::new().watch().expect("no error").is_none());
    let here = OsStorage::open(".").expect("opens").watch().expect("no error");
    assert_eq!(here.is_some(), cfg!(target_os = "linux"));
}
