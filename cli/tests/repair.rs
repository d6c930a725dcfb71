//! `repair`, and what the other commands say of a damaged store before it and after.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{on, run, store_of};

const SEGMENT: &str = "segment-0000000000000001.wal";

fn events(count: usize) -> String {
    (0..count)
        .map(|n| {
            format!("{{\"stream\":\"s{}\",\"id\":\"e{n}\",\"payload\":{{\"n\":{n}}}}}\n", n % 3)
        })
        .collect()
}

/// Turns a byte of the first record around that has these bytes in it.
fn damage(store: &Path, bytes: &[u8]) {
    let path = store.join(SEGMENT);
    let content = std::fs::read(&path).expect("reads");
    let at = content.windows(bytes.len()).position(|found| found == bytes).expect("is there");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    file.write_all_at(&[content[at] ^ 0x20], at as u64).expect("writes");
}

/// The names of all files, with their bytes.
fn snapshot(store: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(store).expect("lists").map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = entries
        .filter(|entry| entry.file_type().expect("a type").is_file() && entry.file_name() != "LOCK")
        .map(|entry| (entry.file_name(), std::fs::read(entry.path()).expect("reads")))
        .collect();
    files.sort();
    files
}

#[test]
fn a_damaged_record_is_recorded_as_lost_and_all_else_stays() {
    let (_place, store) = store_of(&events(9));
    let before = run(on("read", &store, &[])).exits(0).json();
    damage(&store, b"{\"n\":4}");
    run(on("verify", &store, &[])).exits(1);
    let harmed = snapshot(&store);

    let dry = run(on("repair", &store, &["--dry-run"])).exits(1).says("nothing was changed");
    assert!(dry.text().contains("checksum") && dry.text().contains("e4"), "{}", dry.text());
    let dry = run(on("repair", &store, &["--dry-run", "--json"])).exits(1).json();
    assert_eq!((&dry[0]["needed"], &dry[0]["done"]), (&true.into(), &false.into()));
    assert!(snapshot(&store) == harmed, "a dry run changes nothing");

    let done = run(on("repair", &store, &[])).exits(0);
    let text = done.text();
    assert!(text.contains("everything else keeps its numbers"), "{text}");
    assert!(text.contains("global 4, local 1 of s1: e4"), "{text}");
    let folder = store.join("quarantine-0001");
    let report = std::fs::read_to_string(folder.join("report.json")).expect("the report is kept");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["lost_events"][0]["id"], "e4");
    assert_eq!(report["lost_events"].as_array().map(Vec::len), Some(1));
    let kept = std::fs::read_dir(&folder).expect("lists").map(|entry| entry.expect("an entry"));
    let kept: Vec<_> = kept.filter(|entry| entry.file_name() != "report.json").collect();
    assert_eq!(kept.len(), 1, "the bytes of one record");
    let bytes = std::fs::read(kept[0].path()).expect("reads");
    assert!(bytes.windows(2).any(|found| found == b"e4"), "the damaged bytes are kept");

    let again = run(on("repair", &store, &[])).exits(0);
    assert_eq!(again.text(), "nothing to repair\n");
    let verified = run(on("verify", &store, &[])).exits(0);
    assert!(verified.text().contains("recorded as lost by a repair"), "{}", verified.text());
    let verified = run(on("verify", &store, &["--json"])).exits(0).json();
    assert_eq!(
        (&verified[0]["lost_events"], &verified[0]["lost_stretches"]),
        (&1.into(), &1.into())
    );

    run(on("append", &store, &["s1", "more"])).exits(0);
    let after = run(on("read", &store, &[])).json();
    let rest: Vec<_> = before.iter().filter(|event| event["global"] != 4).collect();
    assert_eq!(after[..8].iter().collect::<Vec<_>>(), rest);
    assert_eq!((&after[8]["global"], &after[8]["local"]), (&9.into(), &3.into()));
    run(on("order", &store, &["--rebuild"])).exits(0);
    assert_eq!(run(on("read", &store, &[])).json(), after, "the log alone says so");
}

/// A mark that is lost takes its cursor back, of which nothing was said: its consumer saw events again.
#[test]
fn a_cursor_whose_mark_is_lost_is_named_with_the_way_back() {
    let (_place, store) = store_of(&events(9));
    for to in ["3", "5"] {
        run(on("cursors", &store, &["--reset", "mailer", "--to", to])).exits(0);
    }
    damage(&store, b"mailer\x05");
    let done = run(on("repair", &store, &[])).exits(0);
    let text = done.text();
    let way_back = format!("thalweg cursors {} --reset mailer --to 5", store.display());
    assert!(text.contains("cursor mailer was at 5, and is at 3"), "{text}");
    assert!(text.contains(&way_back), "{text}");
    run(on("cursors", &store, &["--reset", "mailer", "--to", "5"])).exits(0);
    assert_eq!(run(on("repair", &store, &[])).exits(0).text(), "nothing to repair\n");
}

#[test]
fn a_missing_segment_is_named_with_the_way_out() {
    let (_place, store) = store_of(&events(9));
    std::fs::remove_file(store.join(SEGMENT)).expect("removes");
    run(on("append", &store, &["s1", "more"])).exits(2).says("missing");
}

#[test]
fn a_repair_that_would_renumber_asks_first() {
    let (_place, store) = store_of(&events(9));
    run(on("append", &store, &["s1", "more"])).exits(0);
    damage(&store, b"{\"n\":4}");
    for derived in ["order-0000000000000000.ord", "checkpoint.ckp"] {
        std::fs::remove_file(store.join(derived)).expect("removes");
    }
    let harmed = snapshot(&store);
    run(on("repair", &store, &[])).exits(2).says("--accept-renumbering");
    assert!(snapshot(&store) == harmed, "a refused repair changes nothing");
    run(on("repair", &store, &["--accept-renumbering"])).exits(0);
    run(on("verify", &store, &[])).exits(0);
    assert_eq!(run(on("read", &store, &[])).exits(0).json().len(), 9);
}

#[test]
fn a_whole_store_and_no_store() {
    let (place, store) = store_of(&events(9));
    let before = snapshot(&store);
    assert_eq!(run(on("repair", &store, &[])).exits(0).text(), "nothing to repair\n");
    assert!(snapshot(&store) == before);
    run(on("repair", &place.path("nothing"), &[])).exits(2);
    std::fs::write(store.join("notes.txt"), "mine").expect("writes");
    let verified = run(on("verify", &store, &[])).exits(0);
    assert!(
        verified.text().contains("notes.txt: none of the store's files"),
        "{}",
        verified.text()
    );
}
