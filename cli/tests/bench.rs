//! `bench discovery`: what it measures is checked, and nothing of it stays behind.

mod common;

use std::time::{Duration, Instant};

use common::{Place, eventually, interrupt, run, thalweg, wait};

#[test]
fn a_bench_of_discovery_measures_checks_draws_and_cleans_up() {
    let place = Place::new();
    let dir = place.path("disk");
    std::fs::create_dir(&dir).unwrap();
    let (dir, svg) = (dir.to_str().unwrap(), place.path("figure.svg"));
    let drawn = svg.to_str().unwrap();
    for profile in ["shuffled", "in-order", "forks"] {
        let size = ["--events", "3000", "--streams", "7", "--threads", "2,1", "--runs", "2"];
        let rest = ["--profile", profile, "--dir", dir, "--svg", drawn];
        let args = [&["bench", "discovery"][..], &size, &rest].concat();
        let rows = run(args.iter().copied().chain(["--json"])).exits(0).json();
        assert_eq!([&rows[0]["threads"], &rows[1]["threads"]], [1, 2]);
        for row in &rows {
            assert_eq!((&row["events"], &row["digest"]), (&3000.into(), &rows[0]["digest"]));
            assert_eq!(row["runs"].as_array().unwrap().len(), 2);
            let shares = row["shares"].as_object().unwrap();
            let sum: f64 = shares.values().map(|share| share.as_f64().unwrap()).sum();
            assert!(shares.len() == 5 && (sum - 1.0).abs() < 1e-6, "{row}");
            assert!(row["events_per_second"].as_f64().unwrap() > 0.0);
        }
        let figure = std::fs::read_to_string(&svg).unwrap();
        assert!(figure.contains("3,000 events in 7 streams") && figure.ends_with("</svg>\n"));
        let table = run(args).exits(0);
        assert_eq!(table.text().lines().count(), 6, "{}", table.text());
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "nothing stays behind");
}

#[test]
fn an_interrupted_bench_leaves_nothing_behind() {
    let place = Place::new();
    let dir = place.path("disk");
    std::fs::create_dir(&dir).unwrap();
    let events = ["bench", "discovery", "--events", "20000000", "--dir"];
    let mut child = thalweg(events.into_iter().chain([dir.to_str().unwrap()])).spawn().unwrap();
    eventually("a store", || std::fs::read_dir(&dir).unwrap().next().map(drop));
    let sent = Instant::now();
    interrupt(&child);
    assert_eq!(wait(&mut child).code(), Some(130));
    assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn a_bench_that_cannot_run_says_why() {
    let at = ["--dir", "/not/there"];
    run(["bench", "discovery"].into_iter().chain(at)).exits(2).says("/not/there");
    for wrong in [["--threads", "0"], ["--threads", "x"], ["--events", "0"], ["--runs", "0"]] {
        run(["bench", "discovery"].into_iter().chain(wrong)).exits(2).says(wrong[0]);
    }
    run(["bench"]).exits(2);
}
