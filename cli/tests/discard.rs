//! `discard`: held events are given up, by name and by age.

mod common;

use std::path::Path;

use common::{on, run, store_of};
use serde_json::json;

fn line(stream: &str, id: &str, parent: &str) -> String {
    format!("{{\"stream\":\"{stream}\",\"id\":\"{id}\",\"parents\":\"{parent}\"}}\n")
}

fn held(store: &Path) -> Vec<String> {
    let held = run(on("held", store, &["--json"])).exits(0).json();
    held.iter().map(|event| event["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn events_are_discarded_by_their_ids() {
    let lines = [line("s", "root", ""), line("s", "a", "never"), line("s", "b", "a")].concat();
    let (_place, store) = store_of(&lines);
    let told = run(on("discard", &store, &["s", "a", "--json"])).exits(0);
    assert_eq!(told.json(), [json!({"stream": "s", "id": "a", "state": "discarded"})]);
    assert_eq!(held(&store), ["b"]);
    let told = run(on("discard", &store, &["s", "a", "root", "b"])).exits(1);
    let words: Vec<&str> = told.text().split_whitespace().collect();
    let table = ["stream", "id", "state", "s", "a", "unknown", "s", "root", "delivered"];
    assert_eq!(words, [&table[..], &["s", "b", "discarded"]].concat());
    told.says("1 event discarded");
    let why = run(on("why", &store, &["s", "a", "--json"])).exits(0).json();
    assert_eq!((&why[0]["state"], &why[0]["reason"]), (&json!("discarded"), &json!("discarded")));
    let why = run(on("why", &store, &["s", "a"])).exits(0);
    assert!(why.text().contains("will never be delivered"), "{}", why.text());
    let stat = run(on("stat", &store, &["--json"])).exits(0).json();
    assert_eq!((&stat[0]["discarded"], &stat[0]["held"]), (&json!(2), &json!(0)));
    let verified = run(on("verify", &store, &["--json"])).exits(0).json();
    assert_eq!(verified[0]["discarded"], 2);
    // The id is free.
    run(on("append", &store, &["s", "--id", "a", "another"])).exits(0);
    run(on("order", &store, &["--rebuild"])).exits(0);
    assert_eq!(run(on("read", &store, &["--format", "ids"])).exits(0).text(), "root\na\n");
}

#[test]
fn events_are_discarded_by_their_age() {
    let lines = [line("s", "a", "never"), line("t", "b", "never")].concat();
    let (_place, store) = store_of(&lines);
    let listed = run(on("held", &store, &["--json"])).exits(0).json();
    let since = listed[0]["since_ms"].as_u64().expect("it is known since when");
    assert!(since > 1_700_000_000_000, "{since}");
    let table = run(on("held", &store, &[])).exits(0);
    assert!(table.text().contains("held for"), "{}", table.text());
    run(on("discard", &store, &["--held-longer", "30d"])).exits(0).says("0 events discarded");
    // More than a millisecond has passed since: programs were started.
    let foreseen = run(on("discard", &store, &["--held-longer", "0s", "--dry-run", "--json"]));
    let state =
        |id: &str, stream: &str, state: &str| json!({"stream": stream, "id": id, "state": state});
    assert_eq!(foreseen.exits(0).json(), [state("a", "s", "held"), state("b", "t", "held")]);
    assert_eq!(held(&store), ["a", "b"]);
    let one = run(on("discard", &store, &["--held-longer", "0s", "--stream", "t", "--json"]));
    assert_eq!(one.exits(0).json(), [state("b", "t", "discarded")]);
    run(on("discard", &store, &["--held-longer", "0s"])).exits(0).says("1 event discarded");
    assert_eq!(held(&store), [] as [&str; 0]);
    let why = run(on("why", &store, &["s", "a", "--json"])).exits(0).json();
    assert_eq!(why[0]["reason"], "expired");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (_place, store) = store_of(&line("s", "a", "never"));
    for bad in [
        &[][..],
        &["s"],
        &["s", "a", "--held-longer", "1d"],
        &["s", "a", "--dry-run"],
        &["s", "a", "--stream", "s"],
        &["--held-longer", "1w"],
        &["s", ""],
    ] {
        run(on("discard", &store, bad)).exits(2);
    }
    assert_eq!(held(&store), ["a"]);
    run(on("discard", Path::new("/there/is/none"), &["s", "a"])).exits(2).says("no store");
}
