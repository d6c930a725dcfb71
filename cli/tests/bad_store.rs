//! Stores that are none, damaged ones, and more than one process at once.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Place, eventually, interrupt, on, run, run_with, store_of, thalweg, wait};

/// Commands that must not create a store, with the words that they need.
const READERS: [(&str, &[&str]); 10] = [
    ("read", &[]),
    ("read", &["--follow"]),
    ("streams", &[]),
    ("cursors", &[]),
    ("held", &["--json"]),
    ("why", &["s", "a"]),
    ("stat", &[]),
    ("verify", &[]),
    ("order", &["--rebuild"]),
    ("graph", &["s"]),
];

fn events(count: usize) -> String {
    (0..count)
        .map(|n| {
            format!("{{\"stream\":\"s{}\",\"id\":\"{n}\",\"payload\":{{\"n\":{n}}}}}\n", n % 7)
        })
        .collect()
}

#[test]
fn a_missing_store_is_an_error_that_says_what_to_do() {
    let place = Place::new();
    for (command, more) in READERS {
        run(on(command, &place.store(), more)).exits(2).says("import");
        assert!(!place.store().exists(), "{command} has created the store");
    }
}

#[test]
fn a_file_is_no_store() {
    let place = Place::new();
    let file = place.write("file", "data");
    for (command, more) in READERS {
        run(on(command, &file, more)).exits(2).says("is a file");
    }
    run_with(on("import", &file, &[]), "{\"stream\":\"s\"}\n").exits(2).says("is a file");
    run(on("append", &file, &["s", "x"])).exits(2).says("is a file");
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
    let below = file.join("store");
    run(on("append", &below, &["s", "x"])).exits(2);
    run(on("read", &below, &[])).exits(2);
}

#[test]
fn an_empty_directory_is_no_store_until_something_is_appended() {
    let place = Place::new();
    std::fs::create_dir(place.store()).unwrap();
    for (command, more) in READERS {
        if !more.contains(&"--follow") {
            run(on(command, &place.store(), more)).exits(2).says("import");
        }
        assert_eq!(std::fs::read_dir(place.store()).unwrap().count(), 0, "{command}");
    }
    run(on("append", &place.store(), &["s", "x"])).exits(0);
    run(on("read", &place.store(), &[])).exits(0);
}

#[test]
fn foreign_files_are_left_alone() {
    let place = Place::new();
    std::fs::create_dir(place.store()).unwrap();
    let foreign = place.store().join("thesis.txt");
    std::fs::write(&foreign, "years of work").unwrap();
    for (command, more) in READERS {
        if !more.contains(&"--follow") {
            run(on(command, &place.store(), more)).exits(2);
        }
    }
    // Whether a store may live beside it is the engine's choice; the file is not.
    let append = run(on("append", &place.store(), &["s", "x"]));
    assert!([0, 2].contains(&append.code), "{append:?}");
    assert_eq!(std::fs::read(&foreign).unwrap(), b"years of work");
}

/// Runs everything on a broken store: any answer will do, as long as it is one.
fn survives(store: &Path) {
    for (command, more) in READERS {
        if !more.contains(&"--follow") {
            run(on(command, store, more));
        }
    }
    run_with(on("import", store, &[]), "{\"stream\":\"s\"}\n");
}

#[test]
fn random_bytes_in_place_of_files_end_in_an_error() {
    let (_place, store) = store_of(&events(100));
    let names: Vec<_> = std::fs::read_dir(&store).unwrap().map(|e| e.unwrap().path()).collect();
    let noise: Vec<u8> = (0u32..10_000).map(|n| (n.wrapping_mul(2654435761) >> 24) as u8).collect();
    for name in &names {
        let whole = std::fs::read(name).unwrap();
        for bytes in [&noise[..], &[], &[0; 4096], &noise[..7]] {
            std::fs::write(name, bytes).unwrap();
            let verify = run(on("verify", &store, &[]));
            assert!(verify.code <= 2);
            for command in ["read", "stat", "streams", "held"] {
                run(on(command, &store, &[]));
            }
        }
        std::fs::write(name, &whole).unwrap();
    }
    for name in &names {
        std::fs::write(name, &noise).unwrap();
    }
    survives(&store);
}

#[test]
fn a_damaged_record_is_found_and_the_rest_is_read() {
    let (_place, store) = store_of(&events(1000));
    let files = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path());
    let needle = b"{\"n\":500}";
    let found = files.filter_map(|file| {
        let bytes = std::fs::read(&file).unwrap();
        let at = bytes.windows(needle.len()).position(|window| window == needle)?;
        Some((file, bytes, at))
    });
    for (file, mut bytes, at) in found {
        bytes[at + 5] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
    }
    let verify = run(on("verify", &store, &["--json"])).exits(1);
    assert!(verify.json()[0]["problem_count"].as_u64().unwrap() >= 1);
    assert_ne!(run(on("verify", &store, &[])).exits(1).text(), "");
    let read = run(on("read", &store, &[])).exits(1);
    assert!(read.text().lines().count() > 500, "the rest is read");
}

#[test]
fn a_closed_pipe_is_success() {
    let (_place, store) = store_of(&events(20_000));
    for more in [&[][..], &["--format", "table"], &["--format", "ids"], &["--follow"]] {
        let mut child = thalweg(on("read", &store, more)).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        drop(stdout);
        let status = wait(&mut child);
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{more:?}");
    }
}

#[test]
fn a_full_disk_behind_stdout_is_an_error() {
    let (_place, store) = store_of(&events(10));
    for (command, more) in READERS {
        if more.contains(&"--follow") {
            continue;
        }
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let more = if command == "graph" { &["s0"] } else { more };
        let mut child = thalweg(on(command, &store, more)).stdout(full).spawn().unwrap();
        let code = wait(&mut child).code();
        // `held --json` has nothing to print.
        assert_eq!(code, Some(if command == "held" { 0 } else { 2 }), "{command}");
    }
}

/// An `import` that waits for more input, with one event stored.
fn writer(store: &Path) -> std::process::Child {
    let mut command = thalweg(on("import", store, &[]));
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let line = b"{\"stream\":\"s\",\"id\":\"first\",\"parents\":[]}\n";
    child.stdin.as_mut().unwrap().write_all(line).unwrap();
    eventually("the first event", || {
        let read = run(on("read", store, &[]));
        (read.code == 0 && read.text().contains("first")).then_some(())
    });
    child
}

#[test]
fn a_second_writer_is_told_at_once_and_readers_come_along() {
    let place = Place::new();
    let store = place.store();
    let mut first = writer(&store);
    for (command, more) in [("append", &["s", "x"][..]), ("import", &[]), ("order", &["--rebuild"])]
    {
        let second = run(on(command, &store, more)).exits(2).says("only one process");
        assert!(second.elapsed < Duration::from_secs(2), "{command}: {:?}", second.elapsed);
    }
    for (command, more) in [("stat", &[][..]), ("verify", &[]), ("streams", &[])] {
        run(on(command, &store, more)).exits(0);
    }
    drop(first.stdin.take());
    assert_eq!(wait(&mut first).code(), Some(0));
    run(on("append", &store, &["s", "x"])).exits(0);
}

#[test]
fn ctrl_c_ends_an_import_within_a_second_and_keeps_what_was_acknowledged() {
    let place = Place::new();
    let store = place.store();
    let mut child = writer(&store);
    let more = events(1000);
    child.stdin.as_mut().unwrap().write_all(more.as_bytes()).unwrap();
    eventually("the other events", || {
        let read = run(on("read", &store, &[]));
        (read.text().lines().count() == 1001).then_some(())
    });
    // Stdin stays open: nothing but the signal ends the run.
    let sent = Instant::now();
    interrupt(&child);
    let status = wait(&mut child);
    assert_eq!(status.code(), Some(130));
    assert!(sent.elapsed() < Duration::from_secs(1), "{:?}", sent.elapsed());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(stderr.contains("1,001 events acknowledged, up to line 1,001"), "{stderr}");
    assert_eq!(run(on("read", &store, &[])).exits(0).text().lines().count(), 1001);
    run(on("verify", &store, &[])).exits(0);
}

#[test]
fn ctrl_c_ends_whatever_waits() {
    let (_place, store) = store_of(&events(10));
    let waiting = [
        on("read", &store, &["--follow"]),
        on("append", &store, &["s", "-"]),
        on("import", &store, &["-"]),
    ];
    for args in waiting {
        let shown = format!("{args:?}");
        let mut child = thalweg(args).stdin(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let sent = Instant::now();
        interrupt(&child);
        assert_eq!(wait(&mut child).code(), Some(130), "{shown}");
        assert!(sent.elapsed() < Duration::from_secs(1), "{shown}: {:?}", sent.elapsed());
    }
}

/// Whenever the signal comes while everything is put in order anew, the run ends, and the next one does
/// the rest.
#[test]
fn ctrl_c_in_the_middle_of_a_discovery_leaves_the_rest_to_the_next_run() {
    let place = Place::new();
    let path = place.store();
    let count = if cfg!(debug_assertions) { 60_000 } else { 600_000 };
    let store = thalweg::Store::open(&path).unwrap();
    let appender = store.appender("chain").unwrap();
    let numbers: Vec<u32> = (0..count).rev().collect();
    for numbers in numbers.chunks(5000) {
        let link = |number: &u32| {
            let parent = number.checked_sub(1).map(|parent| parent.to_string());
            thalweg::Event::new("").id(number.to_string()).parents(parent)
        };
        let batch: thalweg::Batch = numbers.iter().map(link).collect();
        appender.submit(batch).unwrap().wait().unwrap();
    }
    store.close().unwrap();
    let mut interrupted = 0;
    for delay in [400, 200, 100, 50, 25, 10] {
        let mut child = thalweg(on("order", &path, &["--rebuild"])).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let sent = Instant::now();
        interrupt(&child);
        let status = wait(&mut child);
        // On a machine with other work, some of the time is theirs.
        assert!(sent.elapsed() < Duration::from_secs(3), "{delay} ms: {:?}", sent.elapsed());
        match status.code() {
            Some(130) => interrupted += 1,
            // It came to the end before the signal, or the signal came before anything.
            Some(0) | None => {}
            other => panic!("{delay} ms: {other:?}"),
        }
    }
    assert!(interrupted > 0, "no signal came in the middle");
    let read = run(on("read", &path, &["--format", "ids"])).exits(0);
    assert!(read.text().lines().eq((0..count).map(|number| number.to_string())));
    run(on("order", &path, &["--rebuild"])).exits(0);
    run(on("verify", &path, &[])).exits(0);
}

/// Seeded moments of a discovery: of one that is asked for, and of one that an import meets.
#[test]
fn ctrl_c_ends_a_discovery_within_a_second_and_the_next_run_goes_on() {
    let (place, store) = store_of(&shuffled(30_000));
    let order = run(on("read", &store, &[])).exits(0).stdout;
    let (mut seed, mut interrupted) = (7_u64, 0);
    for round in 0..8 {
        let rebuild = ["--rebuild", "--scanners", ["1", "3"][round % 2]];
        let args = match round % 3 {
            0 => on("import", &store, &["-"]),
            _ => on("order", &store, &rebuild),
        };
        if round % 3 == 0 {
            only_the_log(&store);
        }
        let mut child = thalweg(args).stdin(Stdio::piped()).spawn().unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis(50 + (seed >> 33) % 400));
        let sent = Instant::now();
        interrupt(&child);
        let code = wait(&mut child).code();
        // On a machine with other work, some of the time is theirs.
        assert!(sent.elapsed() < Duration::from_secs(3), "{round}: {:?}", sent.elapsed());
        assert!(matches!(code, Some(0 | 130)), "{round}: {code:?}");
        interrupted += u32::from(code == Some(130));
        // Readers see the same order whether it is finished or not, and the next writer goes on.
        assert!(run(on("read", &store, &[])).exits(0).stdout == order, "{round}: another order");
        let file = place.write("none", "");
        run(on("import", &store, &[file.to_str().unwrap()])).exits(0);
    }
    assert!(interrupted > 0);
    assert!(run(on("read", &store, &[])).exits(0).stdout == order);
    run(on("verify", &store, &[])).exits(0);
}

/// A chain, in an order of its own.
fn shuffled(count: u64) -> String {
    let mut places: Vec<u64> = (0..count).collect();
    places.sort_unstable_by_key(|place| place.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let line = |place: u64| {
        let parents = place.checked_sub(1).map_or(String::new(), |parent| format!("\"{parent}\""));
        format!("{{\"stream\":\"s\",\"id\":\"{place}\",\"parents\":[{parents}]}}\n")
    };
    places.into_iter().map(line).collect()
}

/// Throws away what is derived.
fn only_the_log(store: &Path) {
    for entry in std::fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|kind| ["ord", "tip", "run", "ckp"].iter().any(|k| kind == *k))
        {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn follow_shows_what_other_processes_append() {
    let (_place, store) = store_of("{\"stream\":\"a\",\"payload\":0}\n");
    let mut all = thalweg(on("read", &store, &["--follow", "--limit", "4"])).spawn().unwrap();
    let more = ["--follow", "--stream", "b", "--limit", "2", "--format", "ids"];
    let mut one = thalweg(on("read", &store, &more)).spawn().unwrap();
    for (n, stream) in ["a", "b", "b"].into_iter().enumerate() {
        std::thread::sleep(Duration::from_millis(300));
        run(on("append", &store, &[stream, "x", "--id", &format!("new-{n}")])).exits(0);
    }
    let mut text = String::new();
    all.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(wait(&mut all).code(), Some(0));
    assert_eq!(text.lines().count(), 4, "{text}");
    for (n, line) in text.lines().enumerate() {
        assert!(line.starts_with(&format!("{{\"global\":{n},")), "{line}");
    }
    let mut text = String::new();
    one.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "new-1\nnew-2\n");
    assert_eq!(wait(&mut one).code(), Some(0));
}
