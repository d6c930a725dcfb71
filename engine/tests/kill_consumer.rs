//! A consumer that is killed at any moment acts exactly once: what it makes and where it is are one batch.

mod common;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Rng, SOON, this_test};
use thalweg::{AppenderOptions, Batch, Event, Options, Store};

const DIR: &str = "THALWEG_KILL_CONSUMER_DIR";
const SEED: &str = "THALWEG_KILL_CONSUMER_SEED";
const ROUNDS: u64 = 25;

#[test]
#[ignore = "the process that `a_killed_consumer_acts_exactly_once` starts and kills"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let seed = std::env::var(SEED).expect("the parent says").parse().expect("a number");
    let mut rng = Rng(seed);
    let store = Options::new().segment_bytes(1 << 20).open(dir).expect("opens");
    let mut source_rng = Rng(rng.next());
    std::thread::scope(|scope| {
        let store = &store;
        scope.spawn(move || {
            let source = store.appender("in").expect("an appender");
            for number in 0.. {
                let payload = vec![b'.'; source_rng.below(2000) as usize];
                let events = (0..1 + source_rng.below(5)).map(|_| Event::new(payload.clone()));
                source.submit_and_forget(events.collect()).expect("accepted");
                if number % 300 == 299 {
                    store.checkpoint().expect("a checkpoint");
                }
            }
        });
        consume(store, rng);
    });
}

/// Appends, for some events at a time, one that lists them. Nothing else keeps it from doing so twice.
fn consume(store: &Store, mut rng: Rng) {
    let cursor = store.cursor("consumer").expect("a cursor");
    let mut source = store.subscribe_stream("in", &cursor).expect("subscribes");
    let out = store.appender_with("out", AppenderOptions::new().pipeline(8)).expect("an appender");
    loop {
        let count = 1 + rng.below(6);
        let events: Vec<String> = source
            .by_ref()
            .take(count as usize)
            .map(|event| event.expect("reads").global().to_string())
            .collect();
        let batch = Batch::from([Event::new(events.join(" "))]);
        out.submit_and_forget(batch.mark("consumer", source.next_sequence())).expect("accepted");
    }
}

fn run_and_kill(dir: &Path, rng: &mut Rng) {
    let mut child = this_test("child")
        .env(DIR, dir)
        .env(SEED, rng.next().to_string())
        .stdout(Stdio::null())
        .spawn()
        .expect("the child starts");
    std::thread::sleep(Duration::from_micros(rng.below(250_000)));
    child.kill().expect("it goes on for ever");
    let output = child.wait_with_output().expect("ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
}

/// Every event of the source up to the cursor was acted on once, in order.
fn check_acts(dir: &Path) -> Option<u64> {
    if !dir.join("segment-0000000000000001.wal").exists() {
        return None;
    }
    let store = Options::new().open_read_only(dir).ok()?;
    store.wait_committed(store.durable_end()).expect("ordered");
    let at = store.cursor("consumer").expect("a cursor").at();
    let payloads = |stream: &str| {
        let view = store.stream(stream).expect("finds");
        let events = view.map(|view| view.read(..).expect("reads"));
        events.into_iter().flatten().map(|event| event.expect("reads"))
    };
    let acts: Vec<u64> = payloads("out")
        .flat_map(|event| {
            let text = String::from_utf8(event.payload().to_vec()).expect("ours");
            text.split(' ').map(|number| number.parse().expect("ours")).collect::<Vec<_>>()
        })
        .collect();
    let source: Vec<u64> =
        payloads("in").map(|event| event.global()).take_while(|global| *global < at).collect();
    assert_eq!(acts, source, "up to {at}");
    Some(acts.len() as u64)
}

#[test]
fn a_killed_consumer_acts_exactly_once() {
    let mut rng = Rng::from_env();
    let dir = tempfile::tempdir().expect("a directory");
    let begun = Instant::now();
    let mut acts = 0;
    for round in 0.. {
        run_and_kill(dir.path(), &mut rng);
        acts = check_acts(dir.path()).unwrap_or(acts);
        // A busy machine may kill children that have not begun.
        if round >= ROUNDS && acts > 0 || begun.elapsed() > 6 * SOON {
            break;
        }
    }
    println!("{acts} events were acted on");
    assert!(acts > 0, "no consumer has come to anything");
}
