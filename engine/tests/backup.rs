//! Backups of a store that runs, and their way back: what is in them, what a crash leaves of them, and
//! that a copy and its source never share a byte that somebody writes.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use thalweg::storage::{MemoryStorage, OsStorage, Storage};
use thalweg::{
    AppenderOptions, BackupError, BackupOptions, BackupProgress, BackupReport, Durability,
    MixedBatch, OpenError, Options, ReadError, Store, Trim, backup, backup_on, restore, restore_on,
    verify_backup, verify_backup_on,
};

use thalweg_wal::LogReader;

mod common;
#[path = "../../wal/tests/common/disk.rs"]
mod disk;
#[path = "common/faulty.rs"]
mod faulty;

use common::{Expected, Rng, check, expected, flip, shared, wild_event};
use disk::{Disk, Fault};
use faulty::{Faulty, Op};

const GO_ON: &dyn Fn(BackupProgress) -> ControlFlow<()> = &|_| ControlFlow::Continue(());

fn options() -> Options {
    Options::new().segment_bytes(1 << 20).scanners(2).orderers(2)
}

fn os(path: &Path) -> OsStorage {
    OsStorage::open(path).expect("a directory")
}

/// A batch of hostile events around `around`, of a few streams.
fn batch(rng: &mut Rng, around: u64, count: u64, payload_len: usize) -> MixedBatch {
    let mut batch = MixedBatch::new();
    for _ in 0..count {
        let stream = format!("s{}", rng.below(5));
        let payload = vec![rng.next() as u8; rng.below(payload_len as u64 + 1) as usize];
        batch.push(&stream, &wild_event(rng, around, 60, payload)).expect("within the limits");
    }
    batch
}

/// Appends so many batches, and waits for each.
fn append(store: &Store, rng: &mut Rng, batches: u64, payload_len: usize) {
    let appender = store.mixed_appender(AppenderOptions::new()).expect("an appender");
    for number in 0..batches {
        let batch = batch(rng, number * 40, 50, payload_len);
        appender.submit(batch).expect("accepted").wait().expect("appended");
    }
}

/// What the log up to `position` must come to.
fn assert_is_prefix(copy: &Expected, source: &Expected, position: u64) {
    let below = source.records.iter().take_while(|(place, _)| place.end <= position);
    assert!(copy.records.iter().eq(below), "not the records of the source below {position}");
    assert_eq!(copy.order, source.order[..copy.order.len()], "another order");
}

/// Names and bytes of all files.
fn bytes_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry"));
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().expect("text");
        (name, fs::read(entry.path()).expect("reads"))
    };
    entries.map(file).collect()
}

/// Files of a backup: what the manifest lists.
fn listed(dir: &Path) -> Vec<String> {
    let manifest = fs::read_to_string(dir.join("backup.manifest")).expect("a manifest");
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        ["sealed", "open"].contains(&words[0]).then(|| words[1].to_owned())
    };
    manifest.lines().filter_map(line).collect()
}

/// A closed store of some segments, with a checkpoint and more behind it.
fn closed_store(dir: &Path, seed: u64) -> PathBuf {
    let path = dir.join("store");
    let mut rng = Rng(seed);
    let store = options().open(&path).expect("opens");
    append(&store, &mut rng, 40, 2000);
    store.wait_committed(store.durable_end()).expect("ordered");
    store.checkpoint().expect("a checkpoint");
    append(&store, &mut rng, 4, 200);
    store.close().expect("closes");
    path
}

/// The same, of which the oldest segments are trimmed.
fn trimmed_store(dir: &Path, seed: u64) -> PathBuf {
    let path = closed_store(dir, seed);
    let store = options().open(&path).expect("opens");
    assert!(store.trim(&Trim::new().keep_bytes(1 << 20)).expect("trims").first > 0);
    store.close().expect("closes");
    path
}

/// Several appenders at full speed, rolls, checkpoints, merges of runs, and one backup after the other.
fn backups_of_a_running_store(durability: Durability, hard_links: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    let store = options().durability(durability).open(&path).expect("opens");
    let (done, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut reports: Vec<(PathBuf, u64, BackupReport)> = Vec::new();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (store, done, acknowledged) = (&store, &done, &acknowledged);
            scope.spawn(move || {
                let mut rng = Rng(thread);
                let appender = store.mixed_appender(AppenderOptions::new()).expect("an appender");
                for number in 0..150 {
                    let batch = batch(&mut rng, number * 10, 20, 3000);
                    let receipt = appender.submit(batch).expect("accepted").wait();
                    acknowledged.fetch_max(receipt.expect("appended").end, Ordering::SeqCst);
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                }
            });
        }
        let (store, done) = (&store, &done);
        scope.spawn(move || {
            while !done.load(Ordering::SeqCst) {
                store.checkpoint().expect("a checkpoint");
                std::thread::yield_now();
            }
        });
        for number in 0..8 {
            let before = acknowledged.load(Ordering::SeqCst);
            let target = dir.path().join(format!("backup-{number}"));
            let options = BackupOptions::new().hard_links(hard_links);
            let report = match number % 2 {
                0 => store.backup_with(&target, options, GO_ON),
                // As another process would do it.
                _ => backup(&path, &target, options, GO_ON),
            };
            reports.push((target, before, report.expect("a backup")));
        }
        done.store(true, Ordering::SeqCst);
    });
    store.close().expect("closes");
    let source = expected(&os(&path));
    let mut linked = 0;
    for (target, before, report) in reports {
        let position = report.backup.position;
        assert!(position >= before, "acknowledged up to {before}, and only {position} is there");
        assert!(position <= source.end);
        assert_eq!(report.damaged, 0);
        linked += report.linked_files;
        let found = verify_backup(&target, GO_ON).expect("a backup");
        assert_eq!((found.problems, found.backup), (Vec::new(), report.backup.clone()));
        let copy = expected(&os(&target));
        assert_is_prefix(&copy, &source, position);
        if let Some(delivered) = report.backup.delivered {
            assert_eq!(delivered, copy.order.len() as u64);
        }
        // Beside the store that it comes from, for reading, and as a store of its own.
        let reader = options().open_read_only(&target).expect("opens for reading");
        check(&reader, &copy);
        reader.close().expect("closes");
        assert!(verify_backup(&target, GO_ON).expect("still a backup").problems.is_empty());
        let restored = target.with_extension("restored");
        let again = restore(&target, &restored, BackupOptions::new(), GO_ON).expect("restored");
        assert_eq!((again.backup, again.linked_files), (report.backup.clone(), 0));
        let store = options().open(&restored).expect("opens");
        assert_eq!(store.stats().checkpoint_position.max(4096), report.backup.ordered.max(4096));
        check(&store, &copy);
        assert!(store.verify().expect("verifies").problems.is_empty());
        store.close().expect("closes");
        assert!(!restored.join("backup.manifest").exists(), "a store is no backup");
        let refused = verify_backup(&restored, GO_ON);
        assert!(matches!(refused, Err(BackupError::NotABackup { .. })), "{refused:?}");
    }
    assert_eq!(linked > 0, hard_links);
}

#[test]
fn backups_of_a_running_store_are_exact_prefixes() {
    backups_of_a_running_store(Durability::Sync, true);
}

#[test]
fn backups_of_a_buffered_store_are_exact_prefixes() {
    backups_of_a_running_store(Durability::Buffered, false);
}

/// What is written and not synced may be lost, so it is in no backup; nor does the backup wait for it.
#[test]
fn a_backup_ends_at_what_is_durable_and_waits_for_nothing() {
    let storage = Faulty::default();
    let store = faulty::open(&storage);
    common::append(&store, "s", "durable");
    let durable = store.durable_end();
    storage.hold(Op::Sync, "segment-");
    let appender = store.appender("s").expect("an appender");
    let ticket = appender.append("written").expect("accepted");
    storage.wait_until_one_waits();
    let (target, from) = (MemoryStorage::new(), store.clone());
    let made = common::soon("a backup beside a sync", move || {
        let report = from.backup_on(shared(&target), BackupOptions::new(), GO_ON);
        (report.expect("a backup"), target)
    });
    storage.let_go();
    ticket.wait().expect("appended");
    let (report, target) = made;
    assert_eq!((report.backup.position, report.backup.delivered), (durable, Some(1)));
    let copy = expected(&target);
    assert_eq!((copy.end, copy.records.len()), (durable, 1));
    store.wait_committed(store.durable_end()).expect("ordered");
    assert_eq!(store.read(..).expect("reads").count(), 2);
}

/// What is ordered and has a checkpoint need not be ordered again, and a store that was closed is ordered.
#[test]
fn the_order_comes_along() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_store(dir.path(), 7);
    let target = dir.path().join("backup");
    let report = backup(&path, &target, BackupOptions::new(), GO_ON).expect("a backup");
    let copy = expected(&os(&target));
    assert_eq!(report.backup.ordered, report.backup.position);
    assert_eq!(report.backup.delivered, Some(copy.order.len() as u64));
    let names = listed(&target);
    for kind in ["segment-", "order-", "run-", "checkpoint"] {
        assert!(names.iter().any(|name| name.starts_with(kind)), "no {kind} in {names:?}");
    }
    let reader = options().open_read_only(&target).expect("opens");
    assert_eq!(reader.discovery().report().bytes, 0, "something was ordered again");
    check(&reader, &copy);
    // Nor when they are opened for writing: no file that goes on is shared.
    for path in [&path, &target] {
        let store = options().open(path).expect("opens");
        let found = store.discovery().wait().expect("ordered");
        assert_eq!(found.scanned, 0, "{}", path.display());
        check(&store, &copy);
        store.close().expect("closes");
    }
}

/// The log is enough: without a checkpoint, or with one whose files are gone, it is all that is copied.
#[test]
fn the_log_alone_is_enough() {
    for gone in ["checkpoint", "run-", "order-"] {
        let dir = tempfile::tempdir().expect("a directory");
        let path = closed_store(dir.path(), 8);
        for name in bytes_of(&path).into_keys().filter(|name| name.starts_with(gone)) {
            fs::remove_file(path.join(name)).expect("removes");
        }
        let target = dir.path().join("backup");
        let report = backup(&path, &target, BackupOptions::new(), GO_ON).expect("a backup");
        assert_eq!(report.backup.ordered, 0, "{gone}");
        assert!(listed(&target).iter().all(|name| name.starts_with("segment-")), "{gone}");
        let unlisted = bytes_of(&target).len() - listed(&target).len();
        assert_eq!(unlisted, 2, "but for the manifest and the lock");
        let reader = options().open_read_only(&target).expect("opens");
        check(&reader, &expected(&os(&path)));
    }
}

/// An order log that does not hold what the checkpoint counts is not taken along: whoever opened the copy
/// would meet it.
#[test]
fn a_wrong_order_log_does_not_come_along() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_store(dir.path(), 9);
    let file = path.join("order-0000000000000000.ord");
    let mut bytes = fs::read(&file).expect("reads");
    bytes[4096 + 40 * 20] ^= 1;
    fs::write(&file, bytes).expect("writes");
    let target = dir.path().join("backup");
    let report = backup(&path, &target, BackupOptions::new(), GO_ON).expect("a backup");
    assert_eq!(report.backup.ordered, 0);
    assert!(listed(&target).iter().all(|name| name.starts_with("segment-")));
}

/// Three stores with the same linked segments: whatever one of them writes, the others keep every byte.
#[test]
fn no_store_writes_to_a_file_of_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = closed_store(dir.path(), 10);
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let report = backup(&source, &first, BackupOptions::new(), GO_ON).expect("a backup");
    assert!(report.linked_files >= 3, "{report:?}");
    let linked = BackupOptions::new().hard_links(true);
    assert!(restore(&first, &second, linked, GO_ON).expect("restored").linked_files >= 3);
    let mut stores = [source, first, second];
    for round in 0..6 {
        stores.rotate_left(1);
        let before: Vec<_> = stores[1..].iter().map(|store| bytes_of(store)).collect();
        let mut rng = Rng(round);
        let store = options().open(&stores[0]).expect("opens");
        append(&store, &mut rng, 30, 2000);
        store.wait_committed(store.durable_end()).expect("ordered");
        for _ in 0..6 {
            append(&store, &mut rng, 1, 10);
            store.wait_committed(store.durable_end()).expect("ordered");
            store.checkpoint().expect("a checkpoint");
        }
        store.close().expect("closes");
        let after: Vec<_> = stores[1..].iter().map(|store| bytes_of(store)).collect();
        assert!(before == after, "round {round}: a byte of another store has changed");
        assert!(
            thalweg::verify(&stores[0], &|_| ControlFlow::Continue(())).unwrap().problem_count == 0
        );
    }
}

/// Stores that share facts and runs of what was trimmed, and are trimmed further.
#[test]
fn no_trim_writes_to_a_file_of_another_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = trimmed_store(dir.path(), 24);
    let mut stores = vec![source.clone()];
    for (number, begin) in begins().into_iter().enumerate() {
        let [copy, second] =
            ["copy", "second"].map(|name| dir.path().join(format!("{name}-{number}")));
        assert!(backup(&source, &copy, begin, GO_ON).expect("a backup").linked_files > 0);
        let linked = BackupOptions::new().hard_links(true);
        assert!(restore(&copy, &second, linked, GO_ON).expect("restored").linked_files > 0);
        stores.extend([copy, second]);
    }
    for round in 0..2 * stores.len() {
        stores.rotate_left(1);
        let before: Vec<_> = stores[1..].iter().map(|store| bytes_of(store)).collect();
        let store = options().open(&stores[0]).expect("opens");
        append(&store, &mut Rng(round as u64), 30, 2000);
        store.wait_committed(store.durable_end()).expect("ordered");
        let first = store.first();
        assert!(store.trim(&Trim::new().keep_bytes(1 << 19)).expect("trims").first > first);
        store.close().expect("closes");
        let after: Vec<_> = stores[1..].iter().map(|store| bytes_of(store)).collect();
        assert!(before == after, "round {round}: a byte of another store has changed");
    }
}

/// The source was closed, so it goes on in its last segment; the copy begins one of its own, with another
/// salt, though it ends at the same place. An id that the engine makes names a position: see FORMAT.md.
#[test]
fn a_copy_goes_on_in_a_segment_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = closed_store(dir.path(), 22);
    let copy = dir.path().join("copy");
    backup(&source, &copy, BackupOptions::new(), GO_ON).expect("a backup");
    let segments = |path: &Path| LogReader::open(&os(path), None).expect("opens").segments;
    let (count, ids) = (segments(&source).len(), [&source, &copy].map(|path| os(path)));
    assert_eq!(thalweg_wal::store_id(&ids[0]), thalweg_wal::store_id(&ids[1]));
    for (path, grown) in [(&source, 0), (&copy, 1)] {
        let store = options().open(path).expect("opens");
        common::append(&store, "s", "behind the position");
        store.close().expect("closes");
        assert_eq!(segments(path).len(), count + grown, "{}", path.display());
    }
}

/// A copy that somebody has made with links alone, the last segment too, as `cp -al` does.
#[test]
fn a_store_does_not_go_on_in_a_file_that_has_another_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = closed_store(dir.path(), 11);
    let copy = dir.path().join("copy");
    fs::create_dir(&copy).expect("creates");
    for name in bytes_of(&source).into_keys().filter(|name| name != "LOCK") {
        fs::hard_link(source.join(&name), copy.join(&name)).expect("links");
    }
    let (before, log) = (bytes_of(&source), expected(&os(&source)));
    let store = options().open(&copy).expect("opens");
    check(&store, &log);
    append(&store, &mut Rng(1), 3, 100);
    store.wait_committed(store.durable_end()).expect("ordered");
    store.close().expect("closes");
    assert!(before == bytes_of(&source), "the copy has written into its source");
    let store = options().open(&source).expect("opens");
    check(&store, &log);
}

#[test]
fn every_damaged_file_is_found_by_a_check_and_by_a_restore() {
    let dir = tempfile::tempdir().expect("a directory");
    every_damaged_file_is_found(dir.path(), &closed_store(dir.path(), 12));
}

#[test]
fn every_damaged_file_of_a_trimmed_store_is_found_by_a_check_and_by_a_restore() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = trimmed_store(dir.path(), 12);
    every_damaged_file_is_found(dir.path(), &path);
    let files = listed(&dir.path().join("backup"));
    for kind in [".trm", ".fct", "facts-0000000000000001.run"] {
        assert!(files.iter().any(|name| name.ends_with(kind)), "no {kind} in {files:?}");
    }
}

fn every_damaged_file_is_found(dir: &Path, path: &Path) {
    let target = dir.join("backup");
    let hard_links = BackupOptions::new().hard_links(false);
    backup(path, &target, hard_links, GO_ON).expect("a backup");
    let restored = dir.join("restored");
    let mut files = listed(&target);
    assert!(files.len() > 5, "{files:?}");
    let found = |file: &str, what: &str| {
        let check = verify_backup(&target, GO_ON).expect("a manifest");
        let named: Vec<&str> = check.problems.iter().map(|problem| &*problem.file).collect();
        assert_eq!(named, [file], "{what}");
        let error = restore(&target, &restored, BackupOptions::new(), GO_ON).expect_err(what);
        let BackupError::Differs { path, .. } = &error else { panic!("{file} {what}: {error}") };
        assert!(path.ends_with(file), "{error}");
        assert!(!restored.exists() && !restored.with_extension("partial").exists());
    };
    files.reverse();
    for file in &files {
        let at = target.join(file);
        let whole = fs::read(&at).expect("reads");
        for offset in [0, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[offset] ^= 0x10;
            fs::write(&at, bytes).expect("writes");
            found(file, &format!("flipped at {offset}"));
        }
        fs::write(&at, &whole[..whole.len() - 1]).expect("writes");
        found(file, "cut");
        fs::write(&at, [&whole[..], &[0]].concat()).expect("writes");
        found(file, "longer");
        fs::remove_file(&at).expect("removes");
        found(file, "gone");
        fs::write(&at, &whole).expect("writes");
    }
    // What the manifest does not list is found too, and does not come along.
    fs::write(target.join("run-00000000000000ff.run"), b"stray").expect("writes");
    assert_eq!(verify_backup(&target, GO_ON).expect("a manifest").problem_count, 1);
    restore(&target, &restored, BackupOptions::new(), GO_ON).expect("restored");
    assert!(!restored.join("run-00000000000000ff.run").exists());

    let manifest = target.join("backup.manifest");
    let whole = fs::read(&manifest).expect("reads");
    for offset in [0, 20, whole.len() / 2, whole.len() - 3] {
        let mut bytes = whole.clone();
        bytes[offset] ^= 1;
        fs::write(&manifest, bytes).expect("writes");
        let (check, restored) = (
            verify_backup(&target, GO_ON),
            restore(&target, dir.join("no"), BackupOptions::new(), GO_ON),
        );
        assert!(matches!(check, Err(BackupError::Manifest { .. })), "{check:?}");
        assert!(matches!(restored, Err(BackupError::Manifest { .. })), "{restored:?}");
        assert!(!dir.join("no").exists());
    }
}

/// Damage in the log is copied as it is, and told: a backup that passes for a good one would be worse.
#[test]
fn damage_in_the_source_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_store(dir.path(), 13);
    let file = path.join("segment-0000000000000001.wal");
    let mut bytes = fs::read(&file).expect("reads");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).expect("writes");
    let target = dir.path().join("backup");
    let report = backup(&path, &target, BackupOptions::new(), GO_ON).expect("a backup");
    assert_eq!(report.damaged, 1);
    assert_eq!(report.first_damage.expect("named").segment, 1);
    assert_eq!(verify_backup(&target, GO_ON).expect("a manifest").problem_count, 0);
}

#[test]
fn a_backup_can_be_backed_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_store(dir.path(), 14);
    let log = expected(&os(&path));
    let mut from = path;
    for number in 0..3 {
        let target = dir.path().join(format!("generation-{number}"));
        let options_ = BackupOptions::new().hard_links(number != 1);
        let report = backup(&from, &target, options_, GO_ON).expect("a backup");
        assert_eq!(report.backup.position, log.end);
        assert_eq!(report.backup.ordered, log.end);
        from = target;
    }
    assert!(verify_backup(&from, GO_ON).expect("a backup").problems.is_empty());
    let store = options().open(&from).expect("opens");
    check(&store, &log);
}

#[test]
fn an_empty_store_has_a_backup() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    let store = options().open(&path).expect("opens");
    let report = store.backup(dir.path().join("backup")).expect("a backup");
    assert_eq!((report.backup.delivered, report.backup.files), (Some(0), 1));
    let copy = options().open(dir.path().join("backup")).expect("opens");
    common::append(&copy, "s", "first");
    copy.close().expect("closes");
    common::append(&store, "s", "other");
    assert_eq!(store.stats().delivered, 1);
}

#[test]
fn a_target_that_cannot_be_one_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_store(dir.path(), 15);
    let good = dir.path().join("good");
    backup(&path, &good, BackupOptions::new(), GO_ON).expect("a backup");
    let before = bytes_of(&path);
    // Both ways, to the same target.
    let refused = |target: &Path| {
        let both = [
            backup(&path, target, BackupOptions::new(), GO_ON),
            restore(&good, target, BackupOptions::new(), GO_ON),
        ];
        both.map(|result| result.expect_err("refused"))
    };
    let full = dir.path().join("full");
    fs::create_dir(&full).expect("creates");
    fs::write(full.join("precious"), "x").expect("writes");
    for error in refused(&full) {
        let BackupError::NotEmpty { example, .. } = &error else { panic!("{error}") };
        assert_eq!(example, "precious");
    }
    for error in refused(&path) {
        assert!(matches!(error, BackupError::NotEmpty { .. }), "{error}");
    }
    for target in [full.join("precious"), PathBuf::from("/"), PathBuf::from("/proc")] {
        for error in refused(&target) {
            let refused =
                matches!(error, BackupError::Target { .. } | BackupError::NotEmpty { .. });
            assert!(refused, "{error}");
        }
    }
    for error in refused(&dir.path().join("no/such/parent")) {
        assert!(matches!(error, BackupError::Io { .. }), "{error}");
    }
    // A store of somebody else that has the name of the directory where the copy would be made.
    let mine = dir.path().join("new.partial");
    let other = closed_store(&dir.path().join("full"), 16);
    fs::rename(other, &mine).expect("renames");
    let mine_before = bytes_of(&mine);
    for error in refused(&dir.path().join("new")) {
        assert!(matches!(error, BackupError::NotEmpty { .. }), "{error}");
    }
    assert!(bytes_of(&mine) == mine_before && bytes_of(&path) == before);
    // No store is where there is none, nor a backup.
    let none = backup(&full, dir.path().join("none"), BackupOptions::new(), GO_ON);
    assert!(matches!(none, Err(BackupError::Source(_))), "{none:?}");
    let none = restore(&path, dir.path().join("none"), BackupOptions::new(), GO_ON);
    assert!(matches!(none, Err(BackupError::NotABackup { .. })), "{none:?}");
    assert!(!dir.path().join("none").exists());
    // An empty directory will do.
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).expect("creates");
    restore(&good, &empty, BackupOptions::new(), GO_ON).expect("restored");
    options().open(&empty).expect("opens");
}

/// One that was killed in the middle leaves its directory, which nobody takes for a store; the next run
/// clears it away. While somebody works in it, nobody else does.
#[test]
fn a_copy_that_was_cut_short_is_recognised_and_cleared_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_store(dir.path(), 17);
    let (target, partial) = (dir.path().join("backup"), dir.path().join("backup.partial"));
    let attempt = || backup(&path, &target, BackupOptions::new(), GO_ON);
    let left = std::cell::Cell::new(false);
    let busy = |_| {
        if partial.join("segment-0000000000000001.wal").exists() && !left.replace(true) {
            let second = attempt();
            assert!(matches!(second, Err(BackupError::Busy { .. })), "{second:?}");
            // What a kill leaves, as of now.
            let copy = dir.path().join("killed");
            fs::create_dir(&copy).expect("creates");
            for (name, bytes) in bytes_of(&partial) {
                fs::write(copy.join(name), bytes).expect("writes");
            }
        }
        ControlFlow::Continue(())
    };
    backup(&path, &target, BackupOptions::new().hard_links(false), &busy).expect("a backup");
    assert!(!partial.exists());
    fs::remove_dir_all(&target).expect("removes");
    fs::rename(dir.path().join("killed"), &partial).expect("renames");
    assert!(partial.join("segment-0000000000000001.wal").exists());
    for opened in [options().open(&partial), options().open_read_only(&partial)] {
        assert!(matches!(opened, Err(OpenError::Unfinished { .. })), "{opened:?}");
    }
    let verified = thalweg::verify(&partial, &|_| ControlFlow::Continue(()));
    assert!(matches!(verified, Err(ReadError::Open(_))), "{verified:?}");
    assert!(matches!(verify_backup(&partial, GO_ON), Err(BackupError::NotABackup { .. })));
    attempt().expect("a backup");
    assert!(!partial.exists());
    assert!(verify_backup(&target, GO_ON).expect("a backup").problems.is_empty());
}

#[test]
fn an_interrupted_copy_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = closed_store(dir.path(), 18);
    an_interrupted_copy_leaves_nothing_of(dir.path(), &path, &BackupOptions::new());
}

#[test]
fn an_interrupted_copy_of_a_trimmed_store_leaves_nothing() {
    for begin in begins() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = trimmed_store(dir.path(), 18);
        an_interrupted_copy_leaves_nothing_of(dir.path(), &path, &begin);
    }
}

/// Where the copy of a trimmed store can begin.
fn begins() -> [BackupOptions; 3] {
    let new = BackupOptions::new;
    [new(), new().from(u64::MAX), new().from_frontier()]
}

/// Interrupted at every step of it.
fn an_interrupted_copy_leaves_nothing_of(dir: &Path, path: &Path, begin: &BackupOptions) {
    let good = dir.join("good");
    let steps = AtomicU64::new(0);
    let count = |_| {
        steps.fetch_add(1, Ordering::SeqCst);
        ControlFlow::Continue(())
    };
    backup(path, &good, begin.clone(), &count).expect("a backup");
    let steps = steps.into_inner();
    assert!(steps > 5, "{steps}");
    let before = bytes_of(path);
    let target = dir.join("target");
    for last in 0..steps {
        for number in 0..3 {
            let left = AtomicU64::new(last);
            let stop = |_| match left.fetch_sub(1, Ordering::SeqCst) {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            let options = begin.clone().hard_links(number == 1);
            let result = match number {
                2 => restore(&good, &target, options, &stop),
                _ => backup(path, &target, options, &stop),
            };
            match result {
                Err(BackupError::Interrupted) => {}
                // A restore takes fewer steps: it looks for no damage.
                Ok(_) if number == 2 => fs::remove_dir_all(&target).expect("removes"),
                other => panic!("{other:?}"),
            }
            let names: Vec<_> = fs::read_dir(dir).unwrap().collect();
            assert_eq!(names.len(), 2, "the store and the good backup: {names:?}");
        }
    }
    assert!(bytes_of(path) == before);
    let check = verify_backup(&good, &|_| ControlFlow::Break(())).expect("a backup");
    assert!(check.interrupted);
}

/// A source in memory, some segments long.
fn memory_source(seed: u64) -> (MemoryStorage, Expected) {
    memory_source_of(seed, 12)
}

fn memory_source_of(seed: u64, batches: u64) -> (MemoryStorage, Expected) {
    let storage = MemoryStorage::new();
    let store = options().open_on(shared(&storage)).expect("opens");
    let mut rng = Rng(seed);
    append(&store, &mut rng, batches, 4000);
    store.wait_committed(store.durable_end()).expect("ordered");
    store.checkpoint().expect("a checkpoint");
    append(&store, &mut rng, 2, 100);
    store.close().expect("closes");
    let log = expected(&storage);
    (storage, log)
}

/// Makes a copy on a disk that fails at every operation in turn: the machine stops, with whatever that leaves of
/// what was not synced, or one operation fails, or there is no room. A copy is whole or is seen not to be,
/// and the next attempt makes a whole one.
fn copy_on_a_disk_that_fails(
    log: &Expected,
    make: &dyn Fn(Arc<dyn Storage>) -> Result<BackupReport, BackupError>,
) {
    let disk = Disk::new();
    make(Arc::new(disk.clone())).expect("a copy");
    let ops = disk.ops();
    assert!(ops > 20, "{ops}");
    let (mut whole, mut cut) = (0, 0);
    for fault in [Fault::Stop, Fault::Error, Fault::Full] {
        for op in 0..=ops {
            let disk = Disk::with_seed(op);
            disk.fail_at(op, fault);
            let made = make(Arc::new(disk.clone()));
            let happened = !disk.happened().is_empty();
            disk.heal();
            // Also after a success: what was reported as done survives a power loss.
            let after = disk.crash(op ^ 0x5eed);
            match verify_backup_on(&after, GO_ON) {
                Ok(check) => {
                    whole += 1;
                    assert!(check.problems.is_empty(), "{fault:?} at {op}: {:?}", check.problems);
                    let storage: Arc<dyn Storage> = Arc::new(after.clone());
                    let reader = options().open_read_only_on(storage).expect("opens");
                    check_order(&reader, log);
                }
                Err(error) => {
                    cut += 1;
                    assert!(made.is_err(), "{fault:?} at {op}: it was reported as done: {error}");
                    assert!(happened);
                    assert!(matches!(error, BackupError::NotABackup { .. }), "{error}");
                    let storage: Arc<dyn Storage> = Arc::new(after.clone());
                    let opened = options().create(false).open_read_only_on(storage);
                    assert!(opened.is_err(), "{fault:?} at {op}: half a copy opens as a store");
                    // On what the crash has left, if that says what it is; a mark that was never
                    // synced has nothing else beside it that was.
                    make(Arc::new(after.clone())).expect("the next attempt");
                    assert!(verify_backup_on(&after, GO_ON).expect("whole").problems.is_empty());
                }
            }
        }
    }
    assert!(whole > 3 && cut > 30, "{whole} whole, {cut} cut short");
}

fn check_order(store: &Store, log: &Expected) {
    store.wait_committed(store.durable_end()).expect("ordered");
    let positions = store.read(..).expect("reads").map(|event| event.expect("reads").position());
    let left = log.order.iter().skip(store.first() as usize);
    assert!(positions.eq(left.map(|delivery| delivery.position)), "another order");
}

#[test]
fn a_backup_is_whole_or_seen_not_to_be_whenever_its_disk_fails() {
    let (source, log) = memory_source(19);
    copy_on_a_disk_that_fails(&log, &|target| {
        backup_on(shared(&source), target, BackupOptions::new(), GO_ON)
    });
}

#[test]
fn a_copy_of_a_trimmed_store_is_whole_or_seen_not_to_be_whenever_its_disk_fails() {
    let (source, log) = memory_source_of(23, 24);
    let store = options().open_on(shared(&source)).expect("opens");
    assert!(store.trim(&Trim::new().keep_bytes(1 << 20)).expect("trims").first > 0);
    let first = store.first();
    store.close().expect("closes");
    let firsts = begins().map(|begin| {
        let target = MemoryStorage::new();
        backup_on(shared(&source), shared(&target), begin, GO_ON).expect("a backup").backup.first
    });
    assert!(first == firsts[0] && firsts.is_sorted_by(|before, after| before < after));
    for begin in begins() {
        copy_on_a_disk_that_fails(&log, &|target| {
            backup_on(shared(&source), target, begin.clone(), GO_ON)
        });
    }
}

#[test]
fn a_restore_is_whole_or_seen_not_to_be_whenever_its_disk_fails() {
    let (source, log) = memory_source(20);
    let good = MemoryStorage::new();
    backup_on(shared(&source), shared(&good), BackupOptions::new(), GO_ON).expect("a backup");
    copy_on_a_disk_that_fails(&log, &|target| {
        restore_on(&good, &*target, BackupOptions::new(), GO_ON)
    });
}

/// The machine of the source stops at some operation while a backup is made of it. What the backup has, the source
/// has when it comes up again: nothing in it was not durable.
#[test]
fn a_backup_never_has_what_its_source_can_lose() {
    let run = |stop: Option<u64>| {
        let disk = Disk::with_seed(stop.unwrap_or(1));
        if let Some(op) = stop {
            disk.fail_at(op, Fault::Stop);
        }
        let backups = std::sync::Mutex::new(Vec::new());
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        if let Ok(store) = options().open_on(storage) {
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        let target = MemoryStorage::new();
                        let options = BackupOptions::new();
                        if store.backup_on(shared(&target), options, GO_ON).is_ok() {
                            backups.lock().unwrap().push(target);
                        }
                    }
                });
                let mut rng = Rng(3);
                let appender = store.mixed_appender(AppenderOptions::new()).expect("an appender");
                for number in 0..10 {
                    let ticket = appender.submit(batch(&mut rng, number * 20, 20, 9000));
                    let Ok(Ok(_)) = ticket.map(|ticket| ticket.wait()) else { break };
                    if number % 4 == 3 {
                        let _ = store.checkpoint();
                    }
                }
                done.store(true, Ordering::SeqCst);
            });
            let _ = store.close();
        }
        let ops = disk.ops();
        disk.heal();
        let after = disk.crash(stop.unwrap_or(1));
        let backups = backups.into_inner().unwrap();
        if let Some(newest) = backups.last() {
            let storage: Arc<dyn Storage> = Arc::new(after.clone());
            options().open_on(storage).expect("recovers").close().expect("closes");
            let source = expected(&after);
            let copy = expected(newest);
            assert_is_prefix(&copy, &source, copy.end);
            assert!(verify_backup_on(newest, GO_ON).expect("a backup").problems.is_empty());
        }
        (ops, backups.len())
    };
    let (ops, made) = run(None);
    assert!(made > 0);
    let mut with_backups = 0;
    for op in 0..ops {
        with_backups += u32::from(run(Some(op)).1 > 0);
    }
    assert!(with_backups > 5, "{with_backups} of {ops}");
}

/// A backup that is opened for writing is a store, also if a crash comes between; for reading it stays one.
#[test]
fn a_backup_that_is_opened_for_writing_is_no_backup_any_more() {
    let (source, log) = memory_source(21);
    let good = MemoryStorage::new();
    backup_on(shared(&source), shared(&good), BackupOptions::new(), GO_ON).expect("a backup");
    // On a storage nobody renames the directory, so the mark is there still.
    assert!(good.list().expect("lists").iter().any(|name| name == "backup.unfinished"));
    for op in 0..6 {
        let disk = Disk::new();
        restore_on(&good, &disk, BackupOptions::new(), GO_ON).expect("restored");
        disk.fail_at(disk.ops() + op, Fault::Stop);
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let opened = options().open_on(storage);
        drop(opened);
        disk.heal();
        let after = disk.crash(op);
        let storage: Arc<dyn Storage> = Arc::new(after.clone());
        let store = options().open_on(storage).expect("opens after a crash");
        check_order(&store, &log);
        store.close().expect("closes");
        assert!(matches!(verify_backup_on(&after, GO_ON), Err(BackupError::NotABackup { .. })));
    }
    let reader = options().open_read_only_on(shared(&good)).expect("opens");
    drop(reader);
    assert!(verify_backup_on(&good, GO_ON).expect("a backup").problems.is_empty());
    flip(&good, "segment-0000000000000001.wal", 5000, 1);
    assert_eq!(verify_backup_on(&good, GO_ON).expect("a backup").problem_count, 1);
}
