//! What is kept of trimmed events cannot be made again: each of its files that is damaged, missing or another's is
//! named, by a check, by who opens the store, and by a repair, which leaves everything alone.

mod common;

use std::ops::ControlFlow;

use common::files::{bytes, put, snapshot};
use common::{Rng, append_every_kind, flip, shared};
use thalweg::storage::{MemoryStorage, OsStorage, Storage, read_file};
use thalweg::{
    LogOpenError, OpenError, Options, Remedy, RepairOptions, Store, Trim, VerifyReport, rebuild,
    repair_on, verify_on,
};
use thalweg_wal::name;

const CHUNK_HEADER_USED: u64 = 48;
const CHUNK_HEADER: u64 = 4096;
const FACT: u64 = 24;

fn options() -> Options {
    Options::new().orderers(1).scanners(1).segment_bytes(1 << 20)
}

fn open(storage: &MemoryStorage) -> Store {
    options().open_on(shared(storage)).expect("opens")
}

/// Fills up a segment or two, and trims all but the last.
fn fill_and_trim(storage: &MemoryStorage, seed: u64) {
    let store = open(storage);
    append_every_kind(&store, &mut Rng(seed), 10, 4);
    let filler = store.appender("filler").expect("an appender");
    for _ in 0..4 {
        filler.append(vec![7; 300 << 10]).expect("accepted").wait().expect("appended");
    }
    append_every_kind(&store, &mut Rng(seed + 1), 4, 4);
    store.wait_committed(store.durable_end()).expect("ordered");
    let report = store.trim(&Trim::new().keep_bytes(0).past_cursors()).expect("trims");
    assert!(report.events > 0, "{report:?}");
    store.close().expect("closes");
}

fn trimmed_store(seed: u64) -> MemoryStorage {
    let storage = MemoryStorage::new();
    fill_and_trim(&storage, seed);
    storage
}

fn verified(storage: &MemoryStorage) -> VerifyReport {
    verify_on(shared(storage), &|_| ControlFlow::Continue(())).expect("verifies")
}

fn kept_files(storage: &MemoryStorage) -> Vec<String> {
    let mut names = storage.list().expect("lists");
    names.retain(|other| {
        let kind = name::kind(other);
        matches!(kind, name::Kind::Trimmed | name::Kind::Facts(_) | name::Kind::FactsRun(_))
    });
    assert!(names.len() >= 3, "{names:?}");
    names
}

fn is_named(report: &VerifyReport, file: &str) -> bool {
    let is_it = |problem: &thalweg::Problem| problem.file == file;
    report.problems.iter().any(|problem| is_it(problem) && problem.remedy == Remedy::Restore)
}

/// A repair refuses, and leaves everything alone; who opens the store learns of it or reads on, and nobody panics.
fn nothing_is_touched(storage: &MemoryStorage, file: &str, what: &str) {
    let before = snapshot(storage);
    match repair_on(shared(storage), &RepairOptions::new()) {
        Err(OpenError::Log(LogOpenError::Trimmed { file: named, .. })) => {
            assert!(named.contains(file), "{what}: {named}");
        }
        other => panic!("{what}: {other:?}"),
    }
    assert!(snapshot(storage) == before, "{what}: something was changed");
    if let Ok(store) = options().open_read_only_on(shared(storage)) {
        let _ = store.wait_committed(store.durable_end());
        store.read(..).expect("reads").for_each(drop);
    }
    assert!(snapshot(storage) == before, "{what}: a reader has changed something");
}

#[test]
fn every_byte_that_is_kept_of_trimmed_events_is_checked() {
    let whole = trimmed_store(1);
    let report = verified(&whole);
    assert_eq!(report.problems, []);
    assert!(report.kept_records > 0 && report.held > 0, "{report:?}");
    let (mut rng, mut which) = (Rng::from_env(), Rng::from_env());
    for file in kept_files(&whole) {
        let content = bytes(&whole, &file);
        let places: Vec<u64> = match name::kind(&file) {
            name::Kind::Facts(_) => {
                let items = CHUNK_HEADER..CHUNK_HEADER + report.first * FACT;
                (0..CHUNK_HEADER_USED).chain(items).collect()
            }
            // A hole in a run is not read.
            name::Kind::FactsRun(_) => {
                (0..content.len() as u64).filter(|&at| content[at as usize] != 0).collect()
            }
            _ => (0..content.len() as u64).collect(),
        };
        let step = 1 + places.len() as u64 / 150;
        for place in places.into_iter().filter(|_| which.once_in(step)) {
            let storage = whole.fork();
            flip(&storage, &file, place, 1 << rng.below(8));
            let what = format!("{file} at {place}");
            let report = verified(&storage);
            assert!(is_named(&report, &file), "{what}: {:?}", report.problems);
            let others = report.problems.iter().filter(|problem| problem.file != file);
            assert_eq!(others.count(), 0, "{what}: {:?}", report.problems);
            if rng.once_in(8) {
                nothing_is_touched(&storage, &file, &what);
            }
        }
    }
}

#[test]
fn files_that_are_missing_or_of_another_store_or_time_are_named() {
    let (early, another) = (trimmed_store(1), trimmed_store(1));
    let late = early.fork();
    fill_and_trim(&late, 5);
    assert_eq!(verified(&late).problems, []);
    let mut cases = 0;
    for file in kept_files(&late) {
        for (source, whose) in
            [(None, "nobody"), (Some(&another), "another"), (Some(&early), "early")]
        {
            let storage = late.fork();
            storage.remove(&file).expect("there");
            if let Some(source) = source {
                let Ok(content) = read_file(source, &file) else { continue };
                if content == bytes(&late, &file) {
                    continue;
                }
                put(&storage, &file, &content);
            }
            let (report, what) = (verified(&storage), format!("{file} of {whose}"));
            match (name::kind(&file), whose) {
                // What it needs itself is not there any more.
                (name::Kind::Trimmed, "early") => assert!(report.problem_count > 0, "{what}"),
                _ => assert!(is_named(&report, &file), "{what}: {:?}", report.problems),
            }
            if (name::kind(&file), whose) != (name::Kind::Trimmed, "early") {
                nothing_is_touched(&storage, &file, &what);
            }
            assert!(options().open_on(shared(&storage)).is_err() || whose == "early", "{what}");
            cases += 1;
        }
    }
    assert!(cases >= 7, "{cases}");
}

#[test]
fn files_that_nobody_needs_are_named_and_no_problem() {
    let storage = trimmed_store(1);
    let left = [name::facts(9), name::facts_run(0xff), name::trimmed_new().to_owned()];
    left.iter().for_each(|name| put(&storage, name, b"left"));
    let report = verified(&storage);
    assert_eq!(report.problems, []);
    let mut left = left.to_vec();
    left.sort();
    assert_eq!(report.left_files, left);
}

/// What a rebuild throws away it could not make again without what is kept.
#[test]
fn a_rebuild_throws_nothing_away_if_what_is_kept_is_damaged() {
    let storage = trimmed_store(1);
    let dir = tempfile::tempdir().expect("a directory");
    let disk = OsStorage::open(dir.path()).expect("opens");
    snapshot(&storage).iter().for_each(|(name, bytes)| put(&disk, name, bytes));
    let rebuild = || rebuild(dir.path(), options(), &|_| ControlFlow::Continue(()));
    let report = rebuild().expect("rebuilds");
    assert_eq!(report.corrupt, 0);
    let mut facts = bytes(&disk, &name::facts(0));
    facts[CHUNK_HEADER as usize + 3] ^= 1;
    put(&disk, &name::facts(0), &facts);
    let before = disk.list().expect("lists");
    assert_eq!(rebuild().expect("looks").corrupt, 1);
    assert_eq!(disk.list().expect("lists"), before);
    disk.remove(&name::facts(0)).expect("there");
    let before = disk.list().expect("lists");
    assert!(matches!(rebuild(), Err(OpenError::Log(LogOpenError::Trimmed { .. }))));
    assert_eq!(disk.list().expect("lists"), before);
}
