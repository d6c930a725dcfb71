//! The commands that look into a store, and `append`: what they print, and for whom.

mod common;

use common::{Place, on, run, run_with, store_of};
use serde_json::json;

/// A root, a fork, a merge; two events that wait for one that is missing; a cycle.
const EVENTS: &str = "\
{\"stream\":\"s\",\"id\":\"root\",\"parents\":[],\"payload\":\"first\"}
{\"stream\":\"s\",\"id\":\"left\",\"parents\":[\"root\"]}
{\"stream\":\"s\",\"id\":\"right\",\"parents\":[\"root\"]}
{\"stream\":\"s\",\"id\":\"merge\",\"parents\":[\"left\",\"right\"]}
{\"stream\":\"s\",\"id\":\"h1\",\"parents\":[\"gone\"]}
{\"stream\":\"s\",\"id\":\"h2\",\"parents\":[\"h1\",\"root\"]}
{\"stream\":\"t\",\"id\":\"c1\",\"parents\":[\"c2\"]}
{\"stream\":\"t\",\"id\":\"c2\",\"parents\":[\"c1\"]}
";

#[test]
fn streams_are_listed() {
    let (_place, store) = store_of(EVENTS);
    let run_json = run(on("streams", &store, &["--json"])).exits(0);
    assert_eq!(
        run_json.json(),
        [
            json!({"stream": "s", "delivered": 4, "held": 2, "tips": 1, "sealed": false}),
            json!({"stream": "t", "delivered": 0, "held": 2, "tips": 0, "sealed": false}),
        ]
    );
    let table = run(on("streams", &store, &[])).exits(0);
    let words: Vec<Vec<&str>> =
        table.text().lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["stream", "delivered", "held", "tips", "sealed"]);
    assert_eq!(words[1], ["s", "4", "2", "1"]);
}

#[test]
fn a_sealed_stream_is_marked_and_takes_no_event() {
    let (place, store) = store_of("{\"stream\":\"s\"}\n");
    assert_eq!(run(on("seal", &store, &["s"])).exits(0).text(), "sealed after local sequence 0\n");
    assert_eq!(run(on("seal", &store, &["empty"])).exits(0).text(), "sealed without an event\n");
    assert_eq!(
        run(on("streams", &store, &["--json"])).exits(0).json(),
        [
            json!({"stream": "empty", "delivered": 0, "held": 0, "tips": 0, "sealed": true}),
            json!({"stream": "s", "delivered": 1, "held": 0, "tips": 1, "sealed": true}),
        ]
    );
    let table = run(on("streams", &store, &[])).exits(0);
    let marked = table.text().lines().filter(|line| line.ends_with(" sealed")).count();
    assert_eq!(marked, 3, "the head and two streams: {}", table.text());
    let refused = run(on("append", &store, &["s", "x", "--json"])).exits(1).json().remove(0);
    assert_eq!(refused, json!({"stream": "s", "state": "rejected", "reason": "sealed"}));
    let told = run(on("append", &store, &["s", "x"])).exits(1);
    assert_eq!(told.text(), "rejected: the stream is sealed\n");
    let lines =
        "{\"stream\":\"t\",\"id\":\"1\"}\n{\"stream\":\"s\"}\n{\"stream\":\"t\",\"id\":\"2\"}\n";
    let file = place.path("lines");
    std::fs::write(&file, lines).expect("writes");
    let imported = run(on("import", &store, &[file.to_str().expect("text")])).exits(1);
    assert!(imported.stderr.contains("line 2: the stream is sealed"), "{}", imported.stderr);
    let read = run(on("read", &store, &["--stream", "t", "--format", "ids"])).exits(0);
    assert_eq!(read.text(), "1\n2\n", "the good lines are stored");
    assert_eq!(run(on("unseal", &store, &["s"])).exits(0).text(), "unsealed\n");
    run(on("append", &store, &["s", "x"])).exits(0);
    run(on("seal", std::path::Path::new("not-there"), &["s"])).exits(2);
    run(on("verify", &store, &[])).exits(0);
}

#[test]
fn held_events_name_what_they_wait_for() {
    let (_place, store) = store_of(EVENTS);
    let mut held = run(on("held", &store, &["--json"])).exits(0).json();
    for event in &mut held {
        let since = event.as_object_mut().and_then(|event| event.remove("since_ms"));
        assert!(since.is_some_and(|since| since.is_u64()));
    }
    assert_eq!(
        held,
        [
            json!({"stream": "s", "id": "h1", "missing": ["gone"]}),
            json!({"stream": "s", "id": "h2", "missing": ["h1"]}),
            json!({"stream": "t", "id": "c1", "missing": ["c2"]}),
            json!({"stream": "t", "id": "c2", "missing": ["c1"]}),
        ]
    );
    assert_eq!(run(on("held", &store, &["--json", "--stream", "t"])).exits(0).json().len(), 2);
    let table = run(on("held", &store, &[])).exits(0).says("4 events held");
    assert!(table.text().contains("gone"));
}

#[test]
fn nothing_held_is_nothing_on_stdout() {
    let (_place, store) = store_of("{\"stream\":\"s\"}\n");
    assert_eq!(run(on("held", &store, &["--json"])).exits(0).text(), "");
    assert_eq!(run(on("held", &store, &[])).exits(0).says("0 events held").text(), "");
}

#[test]
fn why_follows_the_chain_to_its_end() {
    let (_place, store) = store_of(EVENTS);
    let why = |stream, id, code| {
        let run_json = run(on("why", &store, &[stream, id, "--json"])).exits(code);
        let text = run(on("why", &store, &[stream, id])).exits(code);
        (run_json.json().remove(0), text.text().to_owned())
    };
    let (json, text) = why("s", "h2", 0);
    assert_eq!(json["state"], "held");
    assert_eq!(json["missing"], json!(["h1"]));
    assert_eq!(json["roots"], json!([{"id": "gone", "kind": "absent"}]));
    assert!(text.contains("gone"), "{text}");
    assert_eq!(why("s", "h1", 0).0["waiting"], 1);
    let (json, text) = why("t", "c1", 0);
    assert_eq!(json["roots"][0]["kind"], "cycle");
    assert!(text.contains("wait for each other"), "{text}");
    assert_eq!(why("s", "merge", 0).0["state"], "delivered");
    assert_eq!(why("s", "never", 1).0["state"], "unknown");
    assert_eq!(why("nobody", "never", 1).0["state"], "unknown");
    let (_, text) = why("s", "gone", 1);
    assert!(text.contains("1 held event"), "{text}");
}

#[test]
fn stat_counts() {
    let (_place, store) = store_of(EVENTS);
    let stat = run(on("stat", &store, &["--json"])).exits(0).json().remove(0);
    for (key, value) in [("delivered", 4), ("held", 4), ("streams", 2), ("corrupt", 0)] {
        assert_eq!(stat[key], value, "{key}");
    }
    assert_eq!(stat["durable"], stat["committed"]);
    let text = run(on("stat", &store, &[])).exits(0);
    assert!(text.text().contains("4 delivered, 4 held, in 2 streams"), "{}", text.text());
}

#[test]
fn verify_finds_nothing_in_a_good_store() {
    let (_place, store) = store_of(EVENTS);
    let report = run(on("verify", &store, &["--json"])).exits(0).json().remove(0);
    assert_eq!(report["problem_count"], 0);
    assert_eq!(report["delivered"], 4);
    assert_eq!(report["held"], 4);
    assert!(run(on("verify", &store, &[])).exits(0).text().starts_with("no problem"));
}

#[test]
fn a_rebuilt_order_is_the_same_order() {
    let (_place, store) = store_of(EVENTS);
    let before = run(on("read", &store, &[])).exits(0).stdout;
    let report = run(on("order", &store, &["--rebuild", "--json"])).exits(0).json().remove(0);
    for (key, value) in [("scanned", 8), ("delivered", 4), ("held", 4), ("corrupt", 0)] {
        assert_eq!(report[key], value, "{key}");
    }
    let more = ["--rebuild", "--scanners", "3", "--orderers", "1"];
    run(on("order", &store, &more)).exits(0);
    assert_eq!(run(on("read", &store, &[])).exits(0).stdout, before);
    run(on("verify", &store, &[])).exits(0);
}

#[test]
fn graphs_show_held_events_too() {
    let (place, store) = store_of(EVENTS);
    let text = run(on("graph", &store, &["s"])).exits(0);
    let expected = r"
o  held  h2
o  held  h1
x  never arrived  gone

*  3  merge
|\
| *  2  right
* |  1  left
|/
*  0  root  first
";
    assert_eq!(format!("\n{}", text.text()), expected);
    let dot = run(on("graph", &store, &["s", "--format", "dot"])).exits(0);
    assert!(dot.text().starts_with("digraph "));
    let file = place.path("s.svg");
    let more = ["s", "--format", "svg", "--output", file.to_str().unwrap()];
    assert_eq!(run(on("graph", &store, &more)).exits(0).text(), "");
    assert!(std::fs::read_to_string(file).unwrap().ends_with("</svg>\n"));
    let few = run(on("graph", &store, &["s", "--limit", "1"])).exits(0);
    assert!(few.text().contains("3 older events not shown"), "{}", few.text());
    run(on("graph", &store, &["t"])).exits(0);
}

#[test]
fn tables_are_for_people_and_ids_for_scripts() {
    let (_place, store) = store_of(EVENTS);
    let table = run(on("read", &store, &["--format", "table"])).exits(0);
    let head: Vec<&str> = table.text().lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["global", "local", "stream", "id", "parents", "payload"]);
    assert_eq!(table.text().lines().count(), 5);
    let ids = run(on("read", &store, &["--format", "ids"])).exits(0);
    assert_eq!(ids.text(), "root\nleft\nright\nmerge\n");
}

#[test]
fn append_says_where_the_event_went() {
    let place = Place::new();
    let store = place.store();
    let append = |more: &[&str], code| {
        let more = [&["s"], more, &["--json"]].concat();
        run(on("append", &store, &more)).exits(code).json().remove(0)
    };
    let first = append(&["one", "--id", "a", "--root"], 0);
    assert_eq!(
        first,
        json!({"stream": "s", "id": "a", "state": "delivered", "global": 0, "local": 0})
    );
    let chained = append(&["two"], 0);
    assert_eq!(chained["local"], 1);
    assert!(chained["id"].is_string(), "the engine's id is told: {chained}");
    assert_eq!(append(&["one", "--id", "a", "--root"], 0)["state"], "duplicate");
    assert_eq!(append(&["other", "--id", "a", "--root"], 1)["state"], "conflict");
    let held = append(&["x", "--id", "h", "--parent", "n1", "--parent", "n2"], 0);
    assert_eq!((&held["state"], &held["missing"]), (&json!("held"), &json!(2)));
    let refused = append(&["x", "--parent", "n1", "--require-parents"], 1);
    assert_eq!((&refused["state"], &refused["reason"]), (&json!("rejected"), &json!("parents")));
    let text = run(on("append", &store, &["s", "three"])).exits(0);
    assert!(text.text().starts_with("delivered: "), "{}", text.text());
    let empty = run_with(on("append", &store, &["s"]), "").exits(0);
    assert!(empty.text().starts_with("delivered: "));
    run(on("append", &store, &[&"s".repeat(256), "x"])).exits(2);
    run(on("append", &store, &["s", "x", "--id", &"i".repeat(65)])).exits(2);
}

#[test]
fn a_refused_append_creates_no_store() {
    let place = Place::new();
    run(on("append", &place.store(), &[&"s".repeat(256), "x"])).exits(2);
    assert!(!place.store().exists());
}

#[test]
fn readers_of_a_trimmed_stream_begin_later() {
    let lines = (0..4).map(|id| format!("{{\"stream\":\"s\",\"id\":\"{id}\"}}\n"));
    let (_place, store) = store_of(&lines.collect::<String>());
    let told = run(on("trim", &store, &["--stream", "s", "--before", "2"])).exits(0);
    assert_eq!(told.text(), "readers of the stream begin at local sequence 2\n");
    let ids = |args: &[&str]| {
        let args = [&["--format", "ids"], args].concat();
        run(on("read", &store, &args)).exits(0).text().split_whitespace().collect::<String>()
    };
    assert_eq!(ids(&["--stream", "s"]), "23");
    assert_eq!(ids(&["--stream", "s", "--from", "3"]), "3");
    assert_eq!(ids(&[]), "0123");
    run(on("read", &store, &["--stream", "s", "--from", "1"])).exits(2).says("read from 2 on");
    run(on("graph", &store, &["s"])).exits(0);
    run(on("trim", &store, &["--stream", "s"])).exits(2);
    run(on("verify", &store, &[])).exits(0);
}
