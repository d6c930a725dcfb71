//! What `verify` says of each file of a store: which, where, and what to do about it.

mod common;

use std::ops::ControlFlow;

use common::{flip, shared};
use thalweg::storage::{MemoryStorage, Storage, write_all_at};
use thalweg::{Ack, Event, MixedBatch, Options, Problem, Remedy, VerifyReport, verify_on};
use thalweg_wal::name;

const CHUNK_HEADER: u64 = 4096;
const ENTRY: u64 = 40;

fn store() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let options = Options::new().orderers(1).scanners(1);
    let store = options.open_on(shared(&storage)).expect("opens");
    for number in 0..20_u32 {
        let mut batch = MixedBatch::new();
        // Two roots at the beginning, so that the third event is chained on two tips.
        let event = match number {
            0 | 1 => Event::new("payload").parents::<&str>([]),
            _ => Event::new("payload"),
        };
        batch.push("s", &event.id(format!("e{number}"))).expect("within the limits");
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    }
    store.close().expect("closes");
    storage
}

fn verified(storage: &MemoryStorage) -> VerifyReport {
    verify_on(shared(storage), &|_| ControlFlow::Continue(())).expect("verifies")
}

fn has(report: &VerifyReport, file: &str, offset: Option<u64>, remedy: Remedy) -> bool {
    let is_it = |problem: &&Problem| {
        problem.file == file
            && problem.remedy == remedy
            && (offset.is_none() || problem.offset == offset)
    };
    report.problems.iter().any(|problem| is_it(&problem))
}

#[test]
fn each_damaged_file_is_named_with_the_place_and_the_remedy() {
    let whole = store();
    assert_eq!(verified(&whole).problems, []);
    let run = whole.list().expect("lists").into_iter().find(|name| name.ends_with(".run"));
    let run = run.expect("a closed store has a run");
    let segment = name::segment(1);
    let cases = [
        (
            name::order(0),
            CHUNK_HEADER + 7 * ENTRY + 3,
            Some(CHUNK_HEADER + 7 * ENTRY),
            Remedy::Rebuild,
        ),
        (name::tips(0), CHUNK_HEADER + 3, Some(CHUNK_HEADER), Remedy::Rebuild),
        (run, 4096 + 3, None, Remedy::Rebuild),
        (name::checkpoint().to_owned(), 50, None, Remedy::Rebuild),
        (segment.clone(), 4096 + 48 + 30, Some(4096 + 48), Remedy::Repair),
        (segment, 20, Some(0), Remedy::Repair),
    ];
    for (file, at, offset, remedy) in cases {
        let storage = whole.fork();
        flip(&storage, &file, at, 1);
        let report = verified(&storage);
        assert!(has(&report, &file, offset, remedy), "{file}: {:?}", report.problems);
        let shown = report.problems[0].to_string();
        assert!(shown.contains(remedy.command()), "{shown}");
    }
}

/// Damage to the log keeps nobody from looking at the derived files, which a repair needs.
#[test]
fn derived_files_are_checked_beside_a_damaged_log() {
    let storage = store();
    flip(&storage, &name::segment(1), 4096 + 48 + 30, 1);
    flip(&storage, &name::order(0), CHUNK_HEADER + 5 * ENTRY, 1);
    let report = verified(&storage);
    assert!(has(&report, &name::segment(1), None, Remedy::Repair));
    assert!(has(&report, &name::order(0), Some(CHUNK_HEADER + 5 * ENTRY), Remedy::Rebuild));
}

#[test]
fn a_missing_segment_is_a_finding_and_no_end_of_the_check() {
    let storage = store();
    // A second segment, as after a kill.
    storage.remove(name::checkpoint()).expect("there");
    let options = Options::new().orderers(1).scanners(1);
    options.open_on(shared(&storage)).expect("opens").close().expect("closes");
    storage.remove(&name::segment(1)).expect("there");
    assert!(has(&verified(&storage), &name::segment(1), None, Remedy::Repair));
}

#[test]
fn files_that_are_not_ours_are_named_and_left_alone() {
    let storage = store();
    let ours = ["checkpoint.new", "segment-00000000000000ff.new", "run-00000000000000ff.run"];
    for name in ours.iter().chain(&["notes.txt"]) {
        let file = storage.create(name, 4).expect("creates");
        write_all_at(&*file, b"mine", 0).expect("writes");
    }
    let report = verified(&storage);
    assert_eq!(report.problems, []);
    assert_eq!(report.unknown_files, ["notes.txt"]);
    let mut ours = ours.map(str::to_owned);
    ours.sort();
    assert_eq!(report.left_files, ours);
    assert!(storage.list().expect("lists").contains(&"notes.txt".to_owned()));
}
