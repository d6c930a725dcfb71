//! `stat`, and what looks at a store while another program writes it: `held`, `streams`, `read --follow`.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};

use common::{eventually, interrupt, on, run, store_of, thalweg, wait};
use serde_json::{Value, json};

const EVENTS: &str = "\
{\"stream\":\"s\",\"id\":\"root\",\"parents\":[]}
{\"stream\":\"s\",\"id\":\"child\",\"parents\":[\"root\"]}
{\"stream\":\"t\",\"id\":\"orphan\",\"parents\":[\"gone\"]}
";

/// A program that has the store open for writing, and appends what it is given.
struct Writer(Child);

impl Writer {
    fn on(store: &Path) -> Self {
        let mut command = thalweg(on("import", store, &[]));
        Writer(command.stdin(Stdio::piped()).spawn().expect("starts"))
    }

    fn append(&mut self, lines: &str) {
        let stdin = self.0.stdin.as_mut().expect("it has a pipe");
        stdin.write_all(lines.as_bytes()).expect("it reads");
    }

    fn name(&self) -> String {
        format!("process {}", self.0.id())
    }

    /// Ends when it has everything.
    fn end(mut self) {
        drop(self.0.stdin.take());
        assert_eq!(wait(&mut self.0).code(), Some(0));
    }
}

fn stat(store: &Path) -> Value {
    run(on("stat", store, &["--json"])).exits(0).json().remove(0)
}

fn keys(object: &Value) -> Vec<&String> {
    object.as_object().expect("an object").keys().collect()
}

/// Waits until another process sees so many events delivered.
fn until_delivered(store: &Path, count: u64) -> Value {
    eventually("the events are delivered", || {
        let stat = stat(store);
        (stat["delivered"] == count && stat["source"] == "follower").then_some(stat)
    })
}

#[test]
fn the_numbers_of_a_store_that_nobody_writes_are_all_there() {
    let (_place, store) = store_of(EVENTS);
    run(on("cursors", &store, &["--reset", "mailer", "--to", "1"])).exits(0);
    let stat = stat(&store);
    assert_eq!((&stat["source"], &stat["writer"]), (&json!("store"), &Value::Null));
    for (key, value) in [("delivered", 2), ("held", 1), ("streams", 2), ("duplicates", 0)] {
        assert_eq!(stat[key], value, "{key}");
    }
    assert_eq!(stat["cursors"], json!([{"cursor": "mailer", "at": 1, "lag": 1}]));
    assert_eq!(stat["backlog"]["commit"], json!({"bytes": 0, "events": 0}));
    assert_eq!(stat["queues"]["durable"], json!({"batches": 0, "bytes": 0}));
    assert_eq!(stat["times"]["sync"]["count"], 0, "it has written nothing");
    let text = run(on("stat", &store, &[])).exits(0);
    let heads: Vec<&str> = text.text().lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(heads[..3], ["log", "order", "queues"], "{}", text.text());
    assert!(heads.last().is_some_and(|head| head.starts_with("cursors")), "{}", text.text());
}

/// With the derived files gone, `stat` has the order made, and says how long that took.
#[test]
fn the_times_are_those_of_the_look() {
    let (_place, store) = store_of(EVENTS);
    std::fs::remove_file(store.join("checkpoint.ckp")).expect("removes");
    let times = &stat(&store)["times"];
    for stage in ["scan", "order", "commit"] {
        assert!(times[stage]["count"].as_u64() > Some(0), "{stage}: {times}");
        assert!(times[stage]["p50_ns"].as_u64() > Some(0), "{stage}: {times}");
        assert!(times[stage]["max_ns"].as_u64() >= times[stage]["p99_ns"].as_u64());
    }
    let text = run(on("stat", &store, &[])).exits(0);
    assert!(text.text().lines().any(|line| line.starts_with("times")), "{}", text.text());
    assert!(text.text().contains(" µs") || text.text().contains(" ms"), "{}", text.text());
}

#[test]
fn a_store_that_is_written_is_looked_at_from_outside() {
    let (_place, store) = store_of(EVENTS);
    let alone = stat(&store);
    let mut writer = Writer::on(&store);
    writer.append("{\"stream\":\"s\",\"id\":\"more\"}\n");
    let beside = until_delivered(&store, 3);
    assert_eq!(beside["writer"], writer.name());
    assert_eq!((&beside["queues"], &beside["times"]), (&Value::Null, &Value::Null));
    assert_eq!(beside["held"], 1, "as of the checkpoint");
    assert_eq!(keys(&beside), keys(&alone), "the keys are always the same");
    let text = run(on("stat", &store, &[])).exits(0);
    assert!(text.text().contains(&format!("{}; this is what is seen", writer.name())));
    assert!(text.text().contains("3 delivered; at the checkpoint 1 held"), "{}", text.text());

    // What is held and which streams there are is exact, not as of the checkpoint.
    writer
        .append("{\"stream\":\"u\",\"id\":\"late\",\"parents\":[\"never\"]}\n{\"stream\":\"s\"}\n");
    until_delivered(&store, 4);
    let mut held = run(on("held", &store, &["--json"])).exits(0).json();
    for event in &mut held {
        let since = event.as_object_mut().and_then(|event| event.remove("since_ms"));
        assert!(since.is_some_and(|since| since.is_u64()), "{event}");
    }
    assert_eq!(
        held,
        [
            json!({"stream": "t", "id": "orphan", "missing": ["gone"]}),
            json!({"stream": "u", "id": "late", "missing": ["never"]}),
        ]
    );
    let row = |stream, delivered, held, tips| {
        json!({"stream": stream, "delivered": delivered, "held": held, "tips": tips,
               "sealed": false})
    };
    assert_eq!(
        run(on("streams", &store, &["--json"])).exits(0).json(),
        [row("s", 4, 0, 1), row("t", 0, 1, 0), row("u", 0, 1, 0)]
    );
    writer.end();
    let after = stat(&store);
    assert_eq!((&after["source"], &after["delivered"]), (&json!("store"), &json!(4)));
    assert_eq!(after["held"], 2);
}

#[test]
fn follow_goes_on_beside_a_writer_from_where_it_is_told() {
    let (_place, store) = store_of(EVENTS);
    let mut writer = Writer::on(&store);
    writer.append("{\"stream\":\"s\",\"id\":\"more\"}\n");
    until_delivered(&store, 3);
    let more = ["--follow", "--from", "1", "--limit", "3", "--format", "ids"];
    let mut reader = thalweg(on("read", &store, &more)).spawn().expect("starts");
    let mut ids = BufReader::new(reader.stdout.take().expect("a pipe")).lines();
    let mut next = || ids.next().expect("a line").expect("text");
    assert_eq!((next(), next()), ("child".into(), "more".into()));
    writer.append("{\"stream\":\"s\",\"id\":\"last\"}\n");
    assert_eq!(next(), "last");
    assert_eq!(wait(&mut reader).code(), Some(0));
    writer.end();
}

#[test]
fn watch_shows_the_numbers_again_and_again_with_their_rate() {
    let (_place, store) = store_of(EVENTS);
    let more = ["--json", "--watch", "0.1"];
    let mut watch = thalweg(on("stat", &store, &more)).spawn().expect("starts");
    let lines = BufReader::new(watch.stdout.take().expect("a pipe")).lines();
    let mut lines = lines.map(|line| -> Value {
        serde_json::from_str(&line.expect("text")).expect("one object a line")
    });
    let first = lines.next().expect("a line");
    assert_eq!((&first["delivered"], &first["delivered_per_second"]), (&json!(2), &Value::Null));
    assert_eq!(lines.next().expect("a line")["delivered_per_second"], 0);
    let mut writer = Writer::on(&store);
    writer.append("{\"stream\":\"s\"}\n");
    let grown = lines.by_ref().find(|line| line["delivered"] == 3).expect("it is seen");
    assert!(grown["delivered_per_second"].as_u64() > Some(0), "{grown}");
    assert_eq!(grown["writer"], writer.name());
    writer.end();
    lines.by_ref().find(|line| line["writer"].is_null()).expect("it is seen to end");
    interrupt(&watch);
    assert_eq!(wait(&mut watch).code(), Some(130));
}

#[test]
fn watch_without_a_terminal_prints_one_block_after_the_other() {
    let (_place, store) = store_of(EVENTS);
    let mut watch = thalweg(on("stat", &store, &["--watch", "0.1"])).spawn().expect("starts");
    let mut out = BufReader::new(watch.stdout.take().expect("a pipe"));
    let mut text = String::new();
    while text.matches("\n\n").count() < 2 {
        assert!(out.read_line(&mut text).expect("text") > 0, "it goes on: {text}");
    }
    interrupt(&watch);
    assert_eq!(wait(&mut watch).code(), Some(130));
    assert!(!text.contains('\x1b'), "nothing that a terminal has to understand: {text}");
    let blocks: Vec<&str> = text.split("\n\n").collect();
    assert!(blocks[..2].iter().all(|block| block.starts_with("log\n")), "{text}");
    assert!(!blocks[0].contains("a second") && blocks[1].contains("0 events a second"), "{text}");
    // Who has seen enough closes the pipe.
    let mut watch = thalweg(on("stat", &store, &["--watch", "0.1"])).spawn().expect("starts");
    let mut pipe = watch.stdout.take().expect("a pipe");
    pipe.read_exact(&mut [0; 3]).expect("it begins");
    drop(pipe);
    assert_eq!(wait(&mut watch).code(), Some(0));
}

#[test]
fn an_interval_that_is_none_is_refused() {
    let (_place, store) = store_of(EVENTS);
    for bad in ["0", "-1", "soon", "inf", "nan", "1e9"] {
        run(on("stat", &store, &["--watch", bad])).exits(2);
    }
    let missing = store.join("nothing");
    run(on("stat", &missing, &["--watch"])).exits(2).says("import");
}
