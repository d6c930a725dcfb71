//! `cursors`, and `read --cursor`: a consumer made of commands.

mod common;

use std::path::Path;

use common::{on, run, store_of};
use serde_json::json;

/// Ids of what is printed from the cursor on.
fn read(store: &Path, more: &[&str]) -> String {
    let args = [&["--cursor", "mailer", "--format", "ids"], more].concat();
    run(on("read", store, &args)).exits(0).text().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn at(store: &Path) -> Vec<serde_json::Value> {
    run(on("cursors", store, &["--json"])).exits(0).json()
}

#[test]
fn a_cursor_remembers_what_was_printed() {
    let lines = (0..5).map(|id| format!("{{\"stream\":\"s\",\"id\":\"{id}\"}}\n"));
    let (_place, store) = store_of(&lines.collect::<String>());
    assert_eq!(at(&store), [] as [serde_json::Value; 0]);
    assert_eq!(read(&store, &[]), "0 1 2 3 4", "and nothing is written");
    assert_eq!(read(&store, &["--limit", "2", "--commit"]), "0 1");
    assert_eq!(at(&store), [json!({"cursor": "mailer", "at": 2, "lag": 3})]);
    assert_eq!(read(&store, &["--limit", "1"]), "2");
    assert_eq!(read(&store, &["--commit"]), "2 3 4");
    assert_eq!(read(&store, &["--commit"]), "", "there is no more");
    run(on("append", &store, &["s", "more"])).exits(0);
    let table = run(on("cursors", &store, &[])).exits(0);
    let words: Vec<&str> = table.text().split_whitespace().collect();
    assert_eq!(words, ["cursor", "at", "lag", "mailer", "5", "1"]);
    run(on("verify", &store, &[])).exits(0);
    // Cursors survive what is derived.
    run(on("order", &store, &["--rebuild"])).exits(0);
    assert_eq!(at(&store)[0]["at"], 5);
}

#[test]
fn a_cursor_is_moved_and_taken_away_by_name() {
    let (_place, store) = store_of("{\"stream\":\"s\"}\n{\"stream\":\"s\"}\n");
    run(on("cursors", &store, &["--reset", "mailer", "--to", "2"])).exits(0);
    run(on("cursors", &store, &["--reset", "mailer", "--to", "1"])).exits(0);
    assert_eq!(at(&store), [json!({"cursor": "mailer", "at": 1, "lag": 1})]);
    run(on("cursors", &store, &["--reset", "mailer", "--to", "3"]))
        .exits(2)
        .says("a cursor cannot be at 3, beyond the 2 events that are delivered");
    run(on("cursors", &store, &["--remove", "other"])).exits(2).says("there is no cursor other");
    run(on("cursors", &store, &["--remove", "mailer"])).exits(0);
    assert_eq!(at(&store), [] as [serde_json::Value; 0]);
    for bad in [
        &["--reset", "mailer"][..],
        &["--to", "1"],
        &["--reset", "mailer", "--to", "1", "--remove", "mailer"],
    ] {
        run(on("cursors", &store, bad)).exits(2);
    }
    for bad in [
        &["--commit"][..],
        &["--cursor", "c", "--from", "1"],
        &["--cursor", "c", "--stream", "s"],
        &["--cursor", "c", "--commit", "--follow"],
    ] {
        run(on("read", &store, bad)).exits(2);
    }
}
