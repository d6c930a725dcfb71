//! Bad lines, bad files and bad arguments: each is told with its place, none ends in a panic.

mod common;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use common::{Place, on, run, run_with, store_of, thalweg};

const GOOD: &str = "{\"stream\":\"s\",\"payload\":\"fine\"}\n";

/// One bad line of each kind, with a part of the reason.
const BAD: &[(&[u8], &str)] = &[
    (b"hello", "not JSON"),
    (b"{", "not JSON"),
    (b"{\"stream\":\"s\"", "not JSON"),
    (b"{\"stream\":\"s\",}", "not JSON"),
    (b"{\"stream\":\"s\"} {\"stream\":\"s\"}", "not JSON"),
    (b"{'stream':'s'}", "not JSON"),
    (b"{\"stream\":\"s\",\"payload\":NaN}", "not JSON"),
    (b"{\"stream\":\"s\",\"payload\":01}", "not JSON"),
    (b"{\"stream\":\"a\tb\"}", "not JSON"),
    (b"\0\0\0\0", "not JSON"),
    (b"{\"stream\":\"s\0\"}", "not JSON"),
    (b"\xff\xfe{\"stream\":\"s\"}", "not UTF-8 at byte 1"),
    (b"{\"stream\":\"s\",\"payload\":\"\xc3\x28\"}", "not UTF-8 at byte 26"),
    (b"[]", "expected an object, found a list"),
    (b"[\"s\",null,null,1]", "expected an object, found a list"),
    (b"\"s\"", "expected an object, found a string"),
    (b"1", "expected an object, found a number"),
    (b"null", "expected an object, found null"),
    (b"{}", "has no `stream`"),
    (b"{\"Stream\":\"s\"}", "has no `stream`"),
    (b"{\"stream\":null}", "`stream` takes"),
    (b"{\"stream\":1}", "`stream` takes"),
    (b"{\"stream\":[\"s\"]}", "`stream` takes"),
    (b"{\"stream\":{\"base64\":\"aGk=\",\"x\":1}}", "`stream` takes"),
    (b"{\"stream\":{\"base64\":\"*\"}}", "`stream`: not base64"),
    (b"{\"stream\":\"\\ud800\"}", "`stream`: "),
    (b"{\"stream\":\"\"}", "stream"),
    (b"{\"stream\":\"s\",\"id\":\"\"}", "`id` is empty"),
    (b"{\"stream\":\"s\",\"id\":7}", "`id` takes"),
    (b"{\"stream\":\"s\",\"id\":true}", "`id` takes"),
    (b"{\"stream\":\"s\",\"id\":\"a\",\"id\":\"a\"}", "has `id` twice"),
    (b"{\"stream\":\"s\",\"payload\":1,\"payload\":1}", "has `payload` twice"),
    (b"{\"stream\":\"s\",\"parents\":7}", "`parents` takes"),
    (b"{\"stream\":\"s\",\"parents\":{\"base64\":\"aGk=\"}}", "`parents` takes"),
    (b"{\"stream\":\"s\",\"parents\":[\"a\",null]}", "`parents[1]` takes"),
    (b"{\"stream\":\"s\",\"parents\":[[\"a\"]]}", "`parents[0]` takes"),
    (b"{\"stream\":\"s\",\"payload\":{\"base64\":\"a\"}}", "`payload`: not base64"),
    (b"{\"stream\":\"s\",\"stream\":\"s\"}", "has `stream` twice"),
    (b"{\"stream\":\"s\",\"parents\":[],\"parents\":[]}", "has `parents` twice"),
    (b"{\"stream\":\"s\",\"payload\":1e}", "not JSON"),
    (b"{\"stream\":\"s\",\"payload\":--1}", "not JSON"),
    (b"{\"stream\":\"s\",\"payload\":\"\\x\"}", "not JSON"),
    (b"{\"stream\":\"s\",\"payload\":\"\\u12\"}", "not JSON"),
    (b"{\"stream\":\"s\",\"payload\":[}", "not JSON"),
    // A mark that is not at the start of the input, two of them, and text that is not UTF-8 at all.
    (b"\xef\xbb\xbf{\"stream\":\"s\"}", "not JSON"),
    (b"{\0\"\0s\0t\0r\0e\0a\0m\0", "not JSON"),
    (b"\xed\xa0\x80", "not UTF-8 at byte 1"),
    (b"\xc0\xaf", "not UTF-8 at byte 1"),
    (b"\x1f\x8b\x08\x00", "not UTF-8 at byte 2"),
    (b"{\"stream\":\"s\"\0}", "not JSON"),
];

#[test]
fn every_kind_of_bad_line_is_reported_and_skipped() {
    let place = Place::new();
    for (index, (line, reason)) in BAD.iter().enumerate() {
        let store = place.path(&format!("store-{index}"));
        let input = [GOOD.as_bytes(), line, b"\n", GOOD.as_bytes()].concat();
        let run = run_with(on("import", &store, &["--json"]), input).exits(1);
        let shown = String::from_utf8_lossy(line);
        let report = run.stderr.lines().find(|line| line.starts_with("line 2: "));
        let report = report.unwrap_or_else(|| panic!("{shown} is not reported: {}", run.stderr));
        assert!(report.contains(reason), "{shown}: {report}");
        assert_eq!(run.json()[0]["appended"], 2, "{shown}");
        assert_eq!(run.json()[0]["skipped"], 1, "{shown}");
    }
}

#[test]
fn names_beyond_the_limits_are_bad_lines() {
    let (stream, id) = ("s".repeat(256), "i".repeat(65));
    let lines = format!(
        "{{\"stream\":\"{stream}\"}}\n{{\"stream\":\"s\",\"id\":\"{id}\"}}\n\
         {{\"stream\":\"s\",\"parents\":[\"{id}\"]}}\n{{\"stream\":\"s\",\"parents\":[\"\"]}}\n\
         {{\"stream\":\"{}\",\"id\":\"{}\"}}\n",
        &stream[1..],
        &id[1..]
    );
    let place = Place::new();
    let run = run_with(on("import", &place.store(), &["--json"]), lines).exits(1);
    for line in 1..=4 {
        assert!(run.stderr.contains(&format!("line {line}: ")), "{}", run.stderr);
    }
    assert_eq!(run.json()[0]["appended"], 1);
}

#[test]
fn a_payload_beyond_the_limit_is_a_bad_line() {
    let place = Place::new();
    let long = format!("{{\"stream\":\"s\",\"payload\":\"{}\"}}\n", "x".repeat((32 << 20) + 1));
    let run = run_with(on("import", &place.store(), &[]), format!("{GOOD}{long}{GOOD}")).exits(1);
    run.says("line 2: ").says("appended 2 events");
}

#[test]
fn a_line_beyond_the_limit_is_skipped_to_its_end() {
    let place = Place::new();
    let mut input = vec![b'x'; (128 << 20) + (1 << 20)];
    input.extend(b"\n");
    input.extend(GOOD.as_bytes());
    input.extend(b"oops\n");
    let run = run_with(on("import", &place.store(), &[]), input).exits(1);
    run.says("line 1: longer than 128.0 MiB").says("line 3: ").says("appended 1 event");
}

#[test]
fn strict_stops_at_the_first_bad_line() {
    let place = Place::new();
    let input = format!("{GOOD}{GOOD}nope\n{GOOD}worse\n");
    let run = run_with(on("import", &place.store(), &["--strict"]), input).exits(1);
    assert!(run.stderr.contains("line 3: "), "{}", run.stderr);
    assert!(!run.stderr.contains("line 5: "), "{}", run.stderr);
    assert_eq!(common::run(on("read", &place.store(), &[])).exits(0).json().len(), 2);
}

#[test]
fn many_bad_lines_are_counted() {
    let place = Place::new();
    let input = "bad\n".repeat(100);
    let run = run_with(on("import", &place.path("a"), &[]), input.clone()).exits(1);
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("line ")).count(), 20);
    run.says("--verbose").says("skipped 100 lines");
    let run = run_with(on("import", &place.path("b"), &["--verbose"]), input).exits(1);
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("line ")).count(), 100);
}

#[test]
fn blanks_line_ends_and_marks_do_not_matter() {
    let place = Place::new();
    let input = "\u{feff}{\"stream\":\"s\",\"payload\":1}\r\n\n  \t \r\n\
                 \t{ \"payload\" : 2 , \"stream\" : \"s\" } \n{\"stream\":\"s\",\"payload\":3}";
    run_with(on("import", &place.store(), &[]), input).exits(0);
    let run = run(on("read", &place.store(), &[])).exits(0);
    let payloads: Vec<_> = run.json().iter().map(|event| event["payload"].clone()).collect();
    assert_eq!(payloads, [1, 2, 3]);
}

#[test]
fn no_input_is_no_error() {
    for input in ["", "\n", "\n\n \n"] {
        let place = Place::new();
        let run = run_with(on("import", &place.store(), &["--json"]), input).exits(0);
        assert_eq!(run.json()[0]["appended"], 0);
        assert_eq!(common::run(on("read", &place.store(), &[])).exits(0).text(), "");
    }
}

#[test]
fn random_bytes_are_bad_lines() {
    // A generator with a fixed seed; what matters is that every byte value turns up.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let noise: Vec<u8> = (0..200_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect();
    let place = Place::new();
    let input = [GOOD.as_bytes(), &noise, b"\n", GOOD.as_bytes()].concat();
    let run = run_with(on("import", &place.store(), &["--json"]), input).exits(1);
    assert_eq!(run.json()[0]["appended"], 2);
}

#[test]
fn deep_nesting_is_taken_as_it_is() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let (_place, store) = store_of(&format!("{{\"stream\":\"s\",\"payload\":{deep}}}\n"));
    let run = run(on("read", &store, &[])).exits(0);
    assert!(run.text().ends_with(&format!("\"payload\":{deep}}}\n")));
}

/// Nesting of all kinds, closed and not, as a payload and in the place of names: parsing does not recurse.
#[test]
fn deep_nesting_is_no_danger_anywhere() {
    let place = Place::new();
    let depth = 300_000;
    let nests = [
        "[".repeat(depth),
        "{\"a\":".repeat(depth),
        "[{\"a\":".repeat(depth),
        "{\"base64\":".repeat(depth),
        "[".repeat(depth) + &"]".repeat(depth - 1),
        format!("\"{}\"", "\\\"".repeat(depth)),
    ];
    let closed = ["[".repeat(depth) + &"]".repeat(depth), {
        let nest = "{\"base64\":".repeat(depth);
        format!("{nest}1{}", "}".repeat(depth))
    }];
    let mut input = String::new();
    for nest in nests.iter().chain(&closed) {
        for key in ["id", "parents", "other"] {
            input += &format!("{{\"stream\":\"s\",\"{key}\":{nest}}}\n");
        }
        input += &format!("{{\"stream\":{nest}}}\n{nest}\n");
    }
    let run = run_with(on("import", &place.store(), &["--json"]), input + GOOD).exits(1);
    // Under a key that has no meaning, whole JSON is passed over, and the quotes are a string.
    assert_eq!(run.json()[0]["appended"], 4);
}

/// Numbers stay text: none is too large, too long or too exact.
#[test]
fn huge_numbers_are_taken_as_they_are() {
    let digits = "9".repeat(1_000_000);
    let numbers = ["1e999999999", "-0.0e-999999999", "18446744073709551616", &digits];
    let lines = numbers.map(|number| format!("{{\"stream\":\"s\",\"payload\":{number}}}\n"));
    let (_place, store) = store_of(&lines.concat());
    let run = run(on("read", &store, &[])).exits(0);
    for number in numbers {
        assert!(run.text().contains(&format!("\"payload\":{number}}}\n")), "{number:.30}");
    }
}

/// An endless line from a pipe: it is passed over in constant memory, and named once with its limit.
#[test]
fn an_endless_line_without_an_end_is_reported_once() {
    let place = Place::new();
    let mut command = thalweg(on("import", &place.store(), &["--json"]));
    command.stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let block = vec![b'['; 1 << 20];
    std::io::Write::write_all(&mut input, GOOD.as_bytes()).unwrap();
    (0..300).for_each(|_| std::io::Write::write_all(&mut input, &block).unwrap());
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
    drop(input);
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr.matches("line 2: longer than 128.0 MiB").count(), 1, "{stderr}");
    if let Some(peak) = status.ok().as_deref().and_then(|status| status.split("VmHWM:").nth(1)) {
        let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
        assert!(peak < 512 << 10, "{peak} KiB at the most");
    }
}

#[test]
fn a_file_that_cannot_be_read_creates_no_store() {
    let place = Place::new();
    let missing = place.path("missing.ndjson");
    let more = [missing.to_str().unwrap()];
    run(on("import", &place.store(), &more)).exits(2).says("missing.ndjson");
    let directory = place.path("directory");
    std::fs::create_dir(&directory).unwrap();
    run(on("import", &place.store(), &[directory.to_str().unwrap()])).exits(2).says("directory");
    assert!(!place.store().exists());
}

#[test]
fn bad_arguments_are_usage_errors() {
    let (_place, store) = store_of(GOOD);
    let store = store.to_str().unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["frobnicate"], "frobnicate"),
        (&["read"], "STORE"),
        (&["read", store, "extra"], "extra"),
        (&["read", store, "--from"], "--from"),
        (&["read", store, "--from", "-1"], "must not be negative"),
        (&["read", store, "--from=-1"], "must not be negative"),
        (&["read", store, "--limit", "-5"], "must not be negative"),
        (&["read", store, "--from", "ten"], "whole number"),
        (&["read", store, "--from", "1.5"], "whole number"),
        (&["read", store, "--from", ""], "whole number"),
        (&["read", store, "--limit", "18446744073709551616"], "too large"),
        (&["read", store, "--limit", "99999999999999999999999999"], "too large"),
        (&["read", store, "--format", "xml"], "xml"),
        (&["read", store, "--stream", ""], "empty"),
        (&["read", store, "--stream", "nobody"], "no stream nobody"),
        (&["append", store], "STREAM"),
        (&["append", store, ""], "empty"),
        (&["append", store, "s", "x", "--root", "--parent", "a"], "--root"),
        (&["append", store, "s", "x", "--id", ""], "empty"),
        (&["why", store, "s"], "ID"),
        (&["order", store], "--rebuild"),
        (&["order", store, "--rebuild", "--scanners", "0"], "scanners"),
        (&["order", store, "--rebuild", "--orderers", "-1"], "orderers"),
        (&["order", store, "--rebuild", "--scanners", "1000000"], "scanners"),
        (&["graph", store], "STREAM"),
        (&["graph", store, "s", "--format", "png"], "png"),
        (&["graph", store, "s", "--limit", "-1"], "must not be negative"),
        (&["graph", store, "nobody"], "no stream nobody"),
        (&["graph", store, "s", "--output", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["import", store, "a", "b"], "b"),
        (&["stat", store, "--yaml"], "--yaml"),
    ];
    for (args, text) in cases {
        let run = run(*args).exits(2);
        assert!(run.stderr.contains(text), "{args:?}: {}", run.stderr);
        assert_eq!(run.text(), "", "{args:?}");
    }
}

#[test]
fn absurd_but_whole_numbers_are_fine() {
    let (_place, store) = store_of(GOOD);
    let most = u64::MAX.to_string();
    for more in [["--from", &most], ["--from", "1"], ["--limit", "0"]] {
        assert_eq!(run(on("read", &store, &more)).exits(0).text(), "", "{more:?}");
    }
    assert_eq!(run(on("read", &store, &["--limit", &most])).exits(0).json().len(), 1);
    run(on("read", &store, &["--stream", "s", "--from", &most])).exits(0);
    run(on("graph", &store, &["s", "--limit", &most])).exits(0);
}

#[test]
fn names_may_be_any_bytes() {
    let place = Place::new();
    let name = OsString::from_vec(b"\xff\x1b[31m".to_vec());
    let mut args: Vec<OsString> = vec!["append".into(), place.store().into(), name.clone()];
    args.push("payload".into());
    run(&args).exits(0);
    let streams = run(on("streams", &place.store(), &["--json"])).exits(0);
    assert_eq!(streams.json()[0]["stream"]["base64"], "/xtbMzFt");
    let shown = run(on("streams", &place.store(), &[])).exits(0);
    assert!(!shown.text().contains('\x1b'), "a name does not reach the terminal's controls");
    let args: Vec<OsString> = vec!["read".into(), place.store().into(), "--stream".into(), name];
    assert_eq!(run(&args).exits(0).json().len(), 1);
    let written = "{\"base64\":\"/xtbMzFt\"}";
    assert_eq!(run(on("read", &place.store(), &["--stream", written])).exits(0).json().len(), 1);
}

#[test]
fn help_is_data() {
    let commands = [
        "import", "append", "read", "streams", "cursors", "held", "why", "stat", "verify", "order",
        "graph",
    ];
    let help = run(["--help"]).exits(0);
    for command in commands {
        assert!(help.text().contains(command), "{command}");
        let run = run([command, "--help"]).exits(0);
        assert!(run.text().contains("Usage"), "{command}");
        assert_eq!(run.stderr, "");
    }
    run(["--version"]).exits(0);
}

#[test]
fn a_closed_stderr_is_no_reason_to_panic() {
    let place = Place::new();
    let mut command = thalweg(on("import", &place.store(), &[]));
    command.stdin(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stderr.take());
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"bad\nworse\n").unwrap();
    drop(child.stdin.take());
    assert_eq!(common::wait(&mut child).code(), Some(1));
}
