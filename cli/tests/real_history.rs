//! The main job on a real history: 44,784 commits of a public repository, in any order, through the
//! command line, and out again in causal order.

mod common;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{run, run_with, thalweg};
use serde_json::Value;

/// Events of the history; its README has this and more.
const EVENTS: usize = 44_784;

/// The lines of the history, by committer time.
fn lines() -> Vec<String> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/data/rust-analyzer.ndjson.gz");
    let file = std::fs::File::open(path).expect("the history is part of the project");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("unpacks");
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), EVENTS);
    lines
}

/// A shuffle that is the same for the same seed (xorshift, Fisher and Yates).
fn shuffle(lines: &mut [String], seed: u64) {
    let mut state = seed;
    for last in (1..lines.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        lines.swap(last, (state % (last as u64 + 1)) as usize);
    }
}

/// Id, parents and payload of each line, by id.
fn by_id(lines: &[String]) -> HashMap<String, (BTreeSet<String>, Value)> {
    lines
        .iter()
        .map(|line| {
            let event: Value = serde_json::from_str(line).expect("JSON");
            let parents = event["parents"].as_str().expect("a string of ids");
            let parents = parents.split_whitespace().map(str::to_owned).collect();
            let id = event["id"].as_str().expect("an id").to_owned();
            (id, (parents, event["payload"].clone()))
        })
        .collect()
}

/// Checks what `read` prints: every event once, parents first, numbers dense, nothing changed.
fn check(store: &Path, lines: &[String]) -> Vec<String> {
    let expected = by_id(lines);
    let mut delivered = HashSet::new();
    let mut order = Vec::new();
    for (number, event) in run([Path::new("read"), store]).exits(0).json().iter().enumerate() {
        assert_eq!(event["global"], number);
        assert_eq!(event["local"], number, "there is one stream");
        let id = event["id"].as_str().expect("an id").to_owned();
        let (parents, payload) = &expected[&id];
        let listed: BTreeSet<String> =
            serde_json::from_value(event["parents"].clone()).expect("ids");
        assert_eq!(&listed, parents);
        assert_eq!(&event["payload"], payload);
        assert!(parents.is_subset(&order_set(&delivered, parents)), "{id} before a parent");
        assert!(delivered.insert(id.clone()), "{id} twice");
        order.push(id);
    }
    assert_eq!(order.len(), EVENTS);
    run([Path::new("verify"), store]).exits(0);
    order
}

/// Those of `parents` that are delivered.
fn order_set(delivered: &HashSet<String>, parents: &BTreeSet<String>) -> BTreeSet<String> {
    parents.iter().filter(|parent| delivered.contains(*parent)).cloned().collect()
}

#[test]
fn it_comes_out_in_causal_order_however_it_goes_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let lines = lines();
    let by_time = dir.path().join("by-time");
    run_with([Path::new("import"), &by_time], lines.join("\n").as_bytes()).exits(0);
    check(&by_time, &lines);
    let mut shuffled = lines.clone();
    shuffle(&mut shuffled, 0x7468_616c_7765_6721);
    let at_random = dir.path().join("at-random");
    run_with([Path::new("import"), &at_random], shuffled.join("\n").as_bytes()).exits(0);
    let order = check(&at_random, &lines);

    // Put in order again from the log alone, it is the same order.
    run([Path::new("order"), &at_random, Path::new("--rebuild")]).exits(0);
    assert_eq!(check(&at_random, &lines), order);
}

#[test]
fn killed_in_the_middle_again_and_again_it_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = dir.path().join("store");
    let mut lines = lines();
    shuffle(&mut lines, 42);
    let input = lines.join("\n");
    let mut seen: Vec<String> = Vec::new();
    for round in 0..8_u64 {
        let mut import =
            thalweg([Path::new("import"), &store]).stdin(Stdio::piped()).spawn().expect("starts");
        let mut stdin = import.stdin.take().expect("piped");
        // What is left when the process dies is of no interest.
        let text = input.clone();
        let writer = std::thread::spawn(move || drop(stdin.write_all(text.as_bytes())));
        std::thread::sleep(Duration::from_millis(20 + round * 25));
        import.kill().expect("kills");
        import.wait().expect("ends");
        writer.join().expect("joins");
        // Killed before the store was there, there is nothing to read yet.
        if store.is_dir() && std::fs::read_dir(&store).expect("lists").count() > 1 {
            let read = run([Path::new("read"), &store, Path::new("--format"), Path::new("ids")]);
            if read.code == 0 {
                let now: Vec<String> = read.text().lines().map(str::to_owned).collect();
                assert!(now.starts_with(&seen), "round {round}: the order has changed");
                seen = now;
            }
        }
    }
    run_with([Path::new("import"), &store], input.as_bytes()).exits(0);
    assert!(check(&store, &lines).starts_with(&seen));
}
