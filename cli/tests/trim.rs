//! `trim`: what it says, and what it leaves.

mod common;

use common::{on, run, run_with, store_of};

/// Some 6 MB of log, in several segments.
fn lines() -> String {
    let payload = "x".repeat(100_000);
    let line =
        |number| format!("{{\"stream\":\"s\",\"id\":\"{number}\",\"payload\":\"{payload}\"}}\n");
    (0..60).map(line).collect()
}

#[test]
fn what_is_trimmed_is_gone_and_everything_else_is_as_it_was() {
    let (_place, store) = store_of(&lines());
    let before = run(on("read", &store, &["--from", "50"])).exits(0).stdout;

    let planned = run(on("trim", &store, &["--before", "40", "--dry-run", "--json"])).exits(0);
    let planned = planned.json().remove(0);
    let first = planned["first"].as_u64().expect("a number");
    assert!((1..=40).contains(&first), "{planned}");
    assert_eq!(planned["events"], first);
    run(on("read", &store, &["--from", "0", "--limit", "1"])).exits(0);

    let done = run(on("trim", &store, &["--before", "40"])).exits(0);
    assert!(done.text().starts_with(&format!("trimmed {first} events in ")), "{}", done.text());
    run(on("read", &store, &["--from", "0"]))
        .exits(2)
        .says(&format!("events before sequence {first} were trimmed; read from {first} on"));
    let ids = run(on("read", &store, &["--format", "ids"])).exits(0);
    let expected: Vec<String> = (first..60).map(|id| id.to_string()).collect();
    assert_eq!(ids.text().split_whitespace().collect::<Vec<_>>(), expected);
    assert_eq!(run(on("read", &store, &["--from", "50"])).exits(0).stdout, before);
    let stat = run(on("stat", &store, &["--json"])).exits(0).json().remove(0);
    assert_eq!((&stat["first"], &stat["delivered"]), (&first.into(), &60.into()));

    // All of them again: none is new.
    let again = run_with(on("import", &store, &["-"]), lines()).exits(0);
    assert_eq!(run(on("stat", &store, &["--json"])).json()[0]["delivered"], 60, "{}", again.stderr);
    let nothing = run(on("trim", &store, &["--before", &first.to_string()])).exits(0);
    assert!(nothing.text().starts_with("nothing to trim"), "{}", nothing.text());
}

#[test]
fn a_cursor_keeps_what_it_has_before_it_unless_told_otherwise() {
    let (_place, store) = store_of(&lines());
    run(on("cursors", &store, &["--reset", "mailer", "--to", "5"])).exits(0);
    let kept = run(on("trim", &store, &["--keep", "1MiB"])).exits(0);
    assert!(kept.text().contains("kept for the cursor mailer, which is at 5"), "{}", kept.text());
    let first = || run(on("stat", &store, &["--json"])).json()[0]["first"].as_u64();
    assert!(first().is_some_and(|first| first <= 5));
    let past = run(on("trim", &store, &["--keep", "1MiB", "--past-cursors"])).exits(0);
    assert!(past.text().starts_with("trimmed "), "{}", past.text());
    assert!(first().is_some_and(|first| first > 5));
    run(on("read", &store, &["--cursor", "mailer"])).exits(2).says("were trimmed");
}

#[test]
fn a_trim_that_says_nothing_or_nonsense_is_refused() {
    let (_place, store) = store_of("{\"stream\":\"s\"}\n");
    run(on("trim", &store, &[]))
        .exits(2)
        .says("--before N, --keep SIZE, --older-than AGE, or --all");
    for bad in [&["--keep", "much"][..], &["--before", "-1"], &["--before", "x"]] {
        run(on("trim", &store, bad)).exits(2);
    }
    let nothing = run(on("trim", &store, &["--keep", "1B"])).exits(0);
    assert!(nothing.text().starts_with("nothing to trim"), "{}", nothing.text());
}

#[test]
fn a_trimmed_store_verifies_and_says_why_of_what_was_trimmed() {
    let (_place, store) = store_of(&lines());
    run(on("trim", &store, &["--before", "40"])).exits(0);
    let report = run(on("verify", &store, &["--json"])).exits(0).json().remove(0);
    let first = report["first"].as_u64().expect("a number");
    assert!(first > 0 && report["begins"].as_u64().is_some_and(|begins| begins > 0), "{report}");
    assert_eq!((&report["delivered"], &report["kept_records"]), (&60.into(), &1.into()));
    let text = run(on("verify", &store, &[])).exits(0);
    assert!(text.text().contains(&format!("trimmed: the events before {first}, ")));

    let why = |id: u64| run(on("why", &store, &["s", &id.to_string()])).exits(0);
    assert!(why(first - 1).text().contains("was trimmed since"), "{}", why(first - 1).text());
    assert!(why(first).text().contains("is delivered"), "{}", why(first).text());
    let answer = run(on("why", &store, &["s", "0", "--json"])).exits(0).json().remove(0);
    assert_eq!((&answer["state"], &answer["first"]), (&"trimmed".into(), &first.into()));

    std::fs::remove_file(store.join("trimmed.trm")).expect("there");
    let report = run(on("verify", &store, &["--json"])).exits(1).json().remove(0);
    let problem = &report["problems"][0];
    assert_eq!((&problem["file"], &problem["remedy"]), (&"trimmed.trm".into(), &"restore".into()));
    run(on("repair", &store, &[])).exits(2).says("put it back from a backup");
}

#[test]
fn everything_goes_where_that_is_asked_for() {
    let (_place, store) = store_of("{\"stream\":\"s\",\"id\":\"a\"}\n{\"stream\":\"s\"}\n");
    let done = run(on("trim", &store, &["--all", "--json"])).exits(0).json().remove(0);
    assert_eq!((&done["first"], &done["events"]), (&2.into(), &2.into()));
    assert_eq!(run(on("read", &store, &[])).exits(0).text(), "");
    run(on("append", &store, &["s", "more"])).exits(0);
    assert_eq!(run(on("read", &store, &["--json"])).exits(0).json()[0]["global"], 2);
    run(on("verify", &store, &[])).exits(0);
    run(on("order", &store, &["--rebuild"])).exits(0);
    run(on("trim", &store, &["--older-than", "30d"])).exits(0);
    for bad in [&["--older-than", "30"][..], &["--all", "--keep", "1MB"], &["--stream", "s"]] {
        run(on("trim", &store, bad)).exits(2);
    }
}
