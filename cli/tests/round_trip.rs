//! What goes in comes out: `import`, `append`, `read`, and back again.

mod common;

use std::path::Path;

use common::{Place, on, run, run_with, store_of};

fn read(store: &Path) -> String {
    run(on("read", store, &[])).exits(0).text().to_owned()
}

/// Copies the store over `read | import` and checks that nothing has changed.
#[track_caller]
fn copies(place: &Place, store: &Path) {
    let copy = place.path("copy");
    let lines = read(store);
    run_with(on("import", &copy, &["--strict"]), lines.clone()).exits(0);
    assert_eq!(read(&copy), lines);
}

#[test]
fn keys_come_in_order() {
    let (_place, store) = store_of(
        "{\"payload\":{\"b\":1.50,\"a\":[]},\"parents\":[],\"id\":\"one\",\"stream\":\"s\",\"x\":1}\n\
         {\"stream\":\"s\",\"id\":\"two\",\"parents\":[\"one\"],\"payload\":\"text\"}\n",
    );
    assert_eq!(
        read(&store),
        "{\"global\":0,\"local\":0,\"stream\":\"s\",\"id\":\"one\",\"parents\":[],\
         \"payload\":{\"b\":1.50,\"a\":[]}}\n\
         {\"global\":1,\"local\":1,\"stream\":\"s\",\"id\":\"two\",\"parents\":[\"one\"],\
         \"payload\":\"text\"}\n"
    );
}

#[test]
fn every_json_value_comes_back() {
    let values = [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "1e5",
        "1E+400",
        "0.10",
        "12345678901234567890123",
        "\"\"",
        "\"text\"",
        "\"42\"",
        "\"true\"",
        "\"null\"",
        "\"{}\"",
        "\"[1]\"",
        "\" 1\"",
        "\"\\\"quoted\\\"\"",
        "\"{\\\"base64\\\":\\\"aGk=\\\"}\"",
        "\"\\u0000\"",
        "\"é\\n\"",
        "[]",
        "[1, 2]",
        "{}",
        "{\"a\":{\"base64\":\"x\"}}",
        "{\"base64\":1}",
        "{\"b\":1,\"a\":2}",
    ];
    let lines: String =
        values.iter().map(|v| format!("{{\"stream\":\"s\",\"payload\":{v}}}\n")).collect();
    let (place, store) = store_of(&lines);
    let text = read(&store);
    for (line, value) in text.lines().zip(values) {
        let payload = line.split_once("\"payload\":").unwrap().1.strip_suffix('}').unwrap();
        let same = payload == value
            || serde_json::from_str::<serde_json::Value>(payload).unwrap()
                == serde_json::from_str::<serde_json::Value>(value).unwrap();
        assert!(same, "{value} has become {payload}");
    }
    copies(&place, &store);
}

#[test]
fn every_payload_comes_back() {
    let place = Place::new();
    let payloads: [&[u8]; 14] = [
        b"",
        b"plain text",
        b"42",
        b"\"42\"",
        b"{\"json\": true}",
        b"{\"base64\":\"aGk=\"}",
        b"{\"base64\":\"not base64\"}",
        b" {} ",
        b"[1,\n2]\n",
        b"\xff\x00\xfe",
        b"\0",
        b"\xef\xbb\xbf{}",
        b"line\r\nline",
        &[7; 1000],
    ];
    for payload in payloads {
        run_with(on("append", &place.store(), &["s", "-"]), payload).exits(0);
    }
    assert_eq!(read(&place.store()).lines().count(), payloads.len());
    copies(&place, &place.store());
}

#[test]
fn bytes_that_are_no_text_travel_as_base64() {
    let (place, store) = store_of(
        "{\"stream\":{\"base64\":\"/w==\"},\"id\":{\"base64\":\"/gA=\"},\"parents\":[]}\n\
         {\"stream\":{\"base64\":\"/w==\"},\"id\":\"b\",\"parents\":[{\"base64\":\"/gA=\"}]}\n\
         {\"stream\":{\"base64\":\"cGxhaW4=\"},\"id\":\"c\"}\n",
    );
    let events = run(on("read", &store, &[])).json();
    assert_eq!(events[0]["stream"]["base64"], "/w==");
    assert_eq!(events[1]["parents"][0]["base64"], "/gA=");
    assert_eq!(events[2]["stream"], "plain", "base64 of text is that text");
    copies(&place, &store);
}

#[test]
fn chained_events_and_named_ids_are_copied_as_what_they_became() {
    let lines =
        "{\"stream\":\"s\",\"payload\":1}\n".repeat(3) + "{\"stream\":\"t\",\"payload\":2}\n";
    let (place, store) = store_of(&lines);
    let events = run(on("read", &store, &["--stream", "s"])).json();
    assert_eq!(events[0]["parents"], serde_json::json!([]));
    assert_eq!(events[1]["parents"], serde_json::json!([events[0]["id"]]));
    assert!(events.iter().all(|event| event["id"].is_string()), "ids are readable text");
    copies(&place, &store);
}

#[test]
fn a_log_of_commits_can_be_piped_in() {
    // The newest commit first, as git prints them: every parent arrives after its child.
    let (_place, store) = store_of(
        "{\"stream\":\"main\",\"id\":\"d\",\"parents\":\"b c\"}\n\
         {\"stream\":\"main\",\"id\":\"c\",\"parents\":\"a\"}\n\
         {\"stream\":\"main\",\"id\":\"b\",\"parents\":\"a\"}\n\
         {\"stream\":\"main\",\"id\":\"a\",\"parents\":\"\"}\n",
    );
    let ids = run(on("read", &store, &["--format", "ids"])).exits(0);
    assert_eq!(ids.text(), "a\nc\nb\nd\n");
}

#[test]
fn an_import_can_be_run_again() {
    let lines = "{\"stream\":\"s\",\"id\":\"a\",\"parents\":[]}\n\
                 {\"stream\":\"s\",\"id\":\"b\",\"parents\":[\"a\"]}\n";
    let (_place, store) = store_of(lines);
    let before = read(&store);
    let run = run_with(on("import", &store, &["--json"]), lines).exits(0);
    assert_eq!(run.json()[0]["duplicates"], 2);
    assert_eq!(run.json()[0]["delivered"], 0);
    assert_eq!(read(&store), before);
}

#[test]
fn ranges_count_in_the_store_or_in_the_stream() {
    let lines: String = (0..10)
        .map(|n| format!("{{\"stream\":\"{}\",\"payload\":{n}}}\n", ["even", "odd"][n % 2]))
        .collect();
    let (_place, store) = store_of(&lines);
    let payloads = |more: &[&str]| -> Vec<u64> {
        let run = run(on("read", &store, more)).exits(0);
        run.json().iter().map(|event| event["payload"].as_u64().unwrap()).collect()
    };
    assert_eq!(payloads(&["--from", "8"]), [8, 9]);
    assert_eq!(payloads(&["--from", "3", "--limit", "2"]), [3, 4]);
    assert_eq!(payloads(&["--stream", "odd", "--from", "3"]), [7, 9]);
    assert_eq!(payloads(&["--stream", "odd", "-n", "1"]), [1]);
    assert_eq!(payloads(&["--from", "10"]), [0; 0]);
}

#[test]
fn a_file_and_stdin_are_the_same() {
    let place = Place::new();
    let lines = "{\"stream\":\"s\",\"id\":\"a\",\"parents\":[]}\n";
    let file = place.write("events.ndjson", lines);
    run(on("import", &place.path("a"), &[file.to_str().unwrap()])).exits(0);
    run_with(on("import", &place.path("b"), &["-"]), lines).exits(0);
    assert_eq!(read(&place.path("a")), read(&place.path("b")));
}
