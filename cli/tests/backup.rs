//! `backup` and `restore`: what they make, what they say, and what they leave when they are stopped.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Place, eventually, interrupt, on, run, store_of, thalweg, wait};
use thalweg::{AppenderOptions, Batch, Event, Store};

fn lines(count: usize) -> String {
    let line = |n: usize| format!("{{\"stream\":\"s{}\",\"id\":\"{n}\",\"payload\":{n}}}\n", n % 3);
    (0..count).map(line).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("an entry"));
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn a_store_comes_back_from_its_backup_under_the_same_numbers() {
    let (place, store) = store_of(&lines(500));
    let (target, back) = (place.path("backup"), place.path("back"));
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let made = run(on("backup", &store, &[&text(&target)])).exits(0);
    assert!(made.stderr.is_empty(), "{}", made.stderr);
    assert!(made.text().starts_with("backed up up to position"), "{}", made.text());
    assert!(made.text().contains(", 500 events delivered\n"), "{}", made.text());
    let read = run(on("read", &store, &[])).exits(0).stdout;
    assert!(run(on("read", &target, &[])).exits(0).stdout == read, "a backup can be read");
    run(on("verify", &target, &[])).exits(0);
    let restored = run(on("restore", &target, &[&text(&back), "--json"])).exits(0);
    let report = &restored.json()[0];
    assert_eq!((&report["delivered"], &report["linked_files"]), (&500.into(), &0.into()));
    assert_eq!(report["store_id"].as_str().expect("text").len(), 32);
    assert!(run(on("read", &back, &[])).exits(0).stdout == read);
    run(on("verify", &back, &[])).exits(0);
    // The store goes on, the backup stays, and the restored one goes its own way.
    run(on("append", &store, &["s0", "later"])).exits(0);
    run(on("append", &back, &["s0", "elsewhere"])).exits(0);
    assert!(run(on("read", &target, &[])).exits(0).stdout == read);
    run(on("verify", &target, &[])).exits(0);
    for path in [&store, &back] {
        assert_eq!(run(on("read", path, &[])).exits(0).text().lines().count(), 501);
        run(on("verify", path, &[])).exits(0);
    }
    // Another, with and without links.
    for (more, linked) in [(&["--json"][..], true), (&["--json", "--copy"], false)] {
        let target = place.path(if linked { "linked" } else { "copied" });
        let target = text(&target);
        let args = [&[&*target], more].concat();
        let report = &run(on("backup", &store, &args)).exits(0).json()[0];
        assert_eq!(report["linked_files"].as_u64() > Some(0), linked, "{report}");
        assert_eq!(report["damaged"], 0);
    }
}

/// A replica that starts with the state alone, and one that has the newest part of the history.
#[test]
fn a_replica_starts_from_the_frontier_and_goes_on_as_its_source() {
    let (place, store) = store_of(&lines(500));
    // Two segments more.
    let line =
        |n: usize| format!("{{\"stream\":\"long\",\"payload\":\"{}{n}\"}}\n", "x".repeat(20_000));
    let long = place.path("long.ndjson");
    fs::write(&long, (0..150).map(line).collect::<String>()).expect("writes");
    run(on("import", &store, &[long.to_str().expect("text")])).exits(0);
    let all = run(on("read", &store, &[])).exits(0).text().to_owned();
    for (begin, back) in [(&["--frontier"][..], "all"), (&["--from", "600"], "some")] {
        let (copy, back) = (place.path(&format!("copy-{back}")), place.path(back));
        let args = [&[copy.to_str().expect("text"), "--json"], begin].concat();
        let report = &run(on("backup", &store, &args)).exits(0).json()[0];
        let first = report["first"].as_u64().expect("a number");
        assert_eq!(report["delivered"], 650);
        assert_eq!(first == 650, begin[0] == "--frontier", "{first}");
        assert!((500..=600).contains(&first) || first == 650, "{first}");
        let restored = run(on("restore", &copy, &[back.to_str().expect("text")])).exits(0);
        let text = format!(", from event {first} on, 650 events delivered\n");
        assert!(restored.text().contains(&text), "{}", restored.text());
        let from = first.to_string();
        let left = run(on("read", &back, &["--from", &from])).exits(0);
        let newest = all.lines().skip(first as usize);
        assert!(left.text().lines().eq(newest), "{}", left.text().lines().count());
        run(on("append", &back, &["s0", "next"])).exits(0);
        let next = run(on("read", &back, &["--from", &from, "--json"])).exits(0).json();
        let next = next.last().expect("an event");
        assert_eq!((&next["global"], &next["local"]), (&650.into(), &167.into()));
    }
    let target = place.path("no").to_str().expect("text").to_owned();
    run(on("backup", &store, &[&target, "--frontier", "--from", "1"])).exits(2);
    assert!(!place.path("no").exists());
}

#[test]
fn a_store_that_another_program_writes_is_backed_up_beside_it() {
    use std::io::Write as _;
    let place = Place::new();
    let store = place.store();
    let mut writer = thalweg(on("import", &store, &[]));
    let mut writer = writer.stdin(std::process::Stdio::piped()).spawn().expect("starts");
    writer.stdin.as_mut().expect("a pipe").write_all(lines(300).as_bytes()).expect("writes");
    eventually("the events", || {
        let read = run(on("read", &store, &[]));
        (read.code == 0 && read.text().lines().count() == 300).then_some(())
    });
    let (target, back) = (place.path("backup"), place.path("back"));
    run(on("backup", &store, &[target.to_str().unwrap()])).exits(0);
    run(on("restore", &target, &[back.to_str().unwrap()])).exits(0);
    assert_eq!(run(on("read", &back, &[])).exits(0).text().lines().count(), 300);
    drop(writer.stdin.take());
    assert_eq!(wait(&mut writer).code(), Some(0));
    run(on("verify", &store, &[])).exits(0);
}

#[test]
fn what_cannot_be_done_is_said_with_a_way_out() {
    let (place, store) = store_of(&lines(10));
    let (target, no) = (place.path("backup"), place.path("no"));
    let (to, nowhere) = (target.to_str().unwrap(), no.to_str().unwrap());
    run(on("backup", &no, &[to])).exits(2).says("thalweg import");
    run(on("restore", &store, &[nowhere])).exits(2).says("thalweg backup");
    run(on("restore", &no, &[to])).exits(2).says("is not a backup");
    run(on("backup", &store, &[to])).exits(0);
    run(on("backup", &store, &[to])).exits(2).says("not empty").says("name a directory");
    run(on("restore", &target, &[store.to_str().unwrap()])).exits(2).says("not empty");
    let file = place.write("file", "x");
    run(on("restore", &target, &[file.to_str().unwrap()])).exits(2).says("not a directory");
    run(on("backup", &store, &[&format!("{nowhere}/x")])).exits(2).says("No such file");

    // A byte of the backup that is not what it was.
    let segment = target.join("segment-0000000000000001.wal");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[700_000] ^= 1;
    fs::write(&segment, bytes).unwrap();
    run(on("restore", &target, &[nowhere])).exits(2).says("segment-0000000000000001.wal");
    let verified = run(on("verify", &target, &[])).exits(1);
    assert!(verified.text().contains("its checksum is wrong"), "{}", verified.text());
    assert_eq!(names(store.parent().unwrap()), ["backup", "file", "store"]);

    // Damage in the store is copied and told.
    let segment = store.join("segment-0000000000000001.wal");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[4096 + 48 + 30] ^= 1;
    fs::write(&segment, bytes).unwrap();
    run(on("backup", &store, &[nowhere])).exits(1).says("1 place").says("thalweg verify");
}

#[test]
fn ctrl_c_leaves_the_source_and_the_target_clean() {
    let place = Place::new();
    let (path, good, target) = (place.store(), place.path("good"), place.path("target"));
    let store = Store::open(&path).expect("opens");
    let appender = store.appender_with("s", AppenderOptions::new()).expect("an appender");
    for number in 0..64_u8 {
        let batch = Batch::from([Event::new(vec![number + 1; 1 << 20])]);
        appender.submit(batch).expect("accepted").wait().expect("appended");
    }
    store.close().expect("closes");
    run(on("backup", &path, &[good.to_str().unwrap(), "--copy"])).exits(0);
    let before = names(&path);
    let mut interrupted = 0;
    for round in 0..12_u64 {
        let to = target.to_str().unwrap();
        let args = match round % 2 {
            0 => on("backup", &path, &[to, "--copy"]),
            _ => on("restore", &good, &[to]),
        };
        let mut child = thalweg(args).spawn().expect("starts");
        // Once it has begun, or is done already.
        eventually("the beginning", || {
            let begun = target.with_extension("partial").exists() || target.exists();
            begun.then_some(())
        });
        std::thread::sleep(Duration::from_millis(round * 7 % 40));
        let sent = Instant::now();
        interrupt(&child);
        let code = wait(&mut child).code();
        assert!(sent.elapsed() < Duration::from_secs(3), "{round}: {:?}", sent.elapsed());
        match code {
            Some(130) => interrupted += 1,
            Some(0) => fs::remove_dir_all(&target).expect("removes"),
            // It came before there was anybody to take it.
            other => panic!("{round}: {other:?}"),
        }
        let mut left = names(path.parent().unwrap());
        // A device that takes long for a sync is not waited for; then the next run has to clear it away.
        left.retain(|name| name != "target.partial" || sent.elapsed() < Duration::from_millis(800));
        assert_eq!(left, ["good", "store"], "{round}");
    }
    assert!(interrupted > 0);
    assert_eq!(names(&path), before);
    run(on("backup", &path, &[target.to_str().unwrap()])).exits(0);
    assert_eq!(names(path.parent().unwrap()), ["good", "store", "target"]);
    run(on("verify", &good, &[])).exits(0);
    run(on("verify", &path, &[])).exits(0);
}
