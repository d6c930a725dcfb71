//! One process writes: the second one is told at once who holds the store.

mod common;

use std::process::Command;

use thalweg_wal::storage::{MemoryStorage, OsStorage, Storage};
use thalweg_wal::{OpenError, WriteLock, name};

/// Set for the process that this test starts of itself.
const CHILD_DIR: &str = "THALWEG_TEST_LOCK_DIR";
const CHILD_EXPECTS: &str = "THALWEG_TEST_LOCK_HOLDER";

fn refused(storage: &dyn Storage) -> (String, String) {
    match WriteLock::acquire(storage) {
        Err(OpenError::Locked { path, holder }) => (path, holder),
        other => panic!("expected to be locked out, got {other:?}"),
    }
}

fn is_exclusive_in_a_process(storage: &dyn Storage) {
    let held = WriteLock::acquire(storage).expect("free");
    let (path, holder) = refused(storage);
    assert_eq!(path, storage.describe(name::LOCK));
    assert_eq!(holder, format!("process {}", std::process::id()));
    drop(held);
    drop(WriteLock::acquire(storage).expect("free again"));
}

#[test]
fn a_second_lock_in_the_process_is_refused_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    is_exclusive_in_a_process(&OsStorage::open(dir.path()).expect("opens"));
}

#[test]
fn a_second_lock_in_the_process_is_refused_in_memory() {
    is_exclusive_in_a_process(&MemoryStorage::new());
}

#[test]
fn a_second_process_is_refused_and_told_who_holds_the_lock() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        let (_, holder) = refused(&OsStorage::open(dir).expect("opens"));
        assert_eq!(Ok(holder), std::env::var(CHILD_EXPECTS));
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let storage = OsStorage::open(dir.path()).expect("opens");
    let child = || {
        Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "a_second_process_is_refused_and_told_who_holds_the_lock"])
            .env(CHILD_DIR, dir.path())
            .env(CHILD_EXPECTS, format!("process {}", std::process::id()))
            .output()
            .expect("starts")
            .status
            .success()
    };
    let held = WriteLock::acquire(&storage).expect("free");
    assert!(child(), "the second process is locked out");
    drop(held);
    assert!(!child(), "nothing is left to lock it out");
}

/// The text in the lock file is for people. Bytes that are no text must not hide the fact that the
/// store is locked.
#[test]
fn a_holder_that_wrote_no_text_still_holds_the_lock() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = OsStorage::open(dir.path()).expect("opens");
    let _held = WriteLock::acquire(&storage).expect("free");
    std::fs::write(dir.path().join(name::LOCK), [0xff, 0xfe, b'!']).expect("writes");
    let (_, holder) = refused(&storage);
    assert!(holder.ends_with('!'));
}

#[test]
fn what_an_earlier_holder_wrote_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = OsStorage::open(dir.path()).expect("opens");
    std::fs::write(dir.path().join(name::LOCK), "x".repeat(500)).expect("writes");
    let _held = WriteLock::acquire(&storage).expect("free");
    assert_eq!(refused(&storage).1, format!("process {}", std::process::id()));
}

/// Who asks must not keep out who opens the store at that moment, so asking takes nothing.
#[test]
fn who_has_the_lock_can_be_asked_without_taking_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let on_disk = OsStorage::open(dir.path()).expect("opens");
    let in_memory = MemoryStorage::new();
    let holder = |storage: &dyn Storage| storage.lock_holder(name::LOCK).expect("asks");
    for storage in [&on_disk as &dyn Storage, &in_memory] {
        assert_eq!(holder(storage), None, "there is no lock file yet");
        let held = WriteLock::acquire(storage).expect("free");
        assert_eq!(holder(storage), Some(format!("process {}", std::process::id())));
        drop(held);
        assert_eq!(holder(storage), None, "what the holder wrote is still there");
        drop(WriteLock::acquire(storage).expect("asking has taken nothing"));
    }
    let _held = WriteLock::acquire(&on_disk).expect("free");
    std::fs::write(dir.path().join(name::LOCK), "").expect("writes");
    assert_eq!(holder(&on_disk), Some(String::new()), "a full disk leaves no text");
    let other = tempfile::tempdir().expect("a directory");
    std::fs::write(other.path().join(name::LOCK), format!("process {}", std::process::id()))
        .expect("writes");
    assert_eq!(holder(&OsStorage::open(other.path()).expect("opens")), None, "another file");
}
