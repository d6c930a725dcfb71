//! Imports a history that something else has written, with its ids and parents: here the commits of a git repository, as
//! `git log` prints them, children first. The import can be killed at any point and run again: each batch has, beside the
//! commits, an event that says how far the import has come in its source, and both are stored or neither.
//!
//! ```sh
//! cargo run -p thalweg --example import_foreign                   # the repository that one is in, or else a small sample
//! git -C ../other log --format='%H %P%x09%s' main > /tmp/dump
//! cargo run -p thalweg --example import_foreign -- /tmp/dump /tmp/store
//! git -C ../other log --format='%H %P%x09%s' main..next >> /tmp/dump   # the dump grows: run it again, it takes the rest
//! ```

use std::collections::HashSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use thalweg::{AppenderOptions, Event, MixedBatch, Store};

/// A line is an id, the ids of its parents, and, behind a tab, whatever else there is to it.
pub const SAMPLE: &str = "\
6f1c 8a07\tRelease
8a07 b2d4 55e1\tMerge the faster parser
55e1 0c9a\tparser: look ahead by one token
b2d4 0c9a\tdocs: say what a token is
0c9a e4f3\tparser: first version
e4f3 \tFirst commit
";

/// Stream of the commits.
const COMMITS: &str = "commits";
/// Stream of the events that say how many lines of the source are imported. A mark would not do: those are for sequences of the
/// store itself.
const PLACE: &str = "commits/imported";
/// Lines of a batch: all of them are imported, with the place behind them, or none.
const BATCH_LINES: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let mut arguments = std::env::args().skip(1);
    let source = match arguments.next() {
        Some(dump) => std::fs::read_to_string(dump)?,
        None => history(),
    };
    let store = arguments.next().map(PathBuf::from);
    println!("{}", run(&source, &store.unwrap_or_else(|| temporary.path().join("store")))?);
    Ok(())
}

/// What git knows of the directory that one is in; the sample if that is nothing.
fn history() -> String {
    let git = Command::new("git").args(["log", "--all", "--format=%H %P%x09%s"]).output();
    match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            println!("the source is `git log`");
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        _ => {
            println!("the source is a sample, since git has nothing to tell here");
            SAMPLE.to_owned()
        }
    }
}

/// Imports the source in two runs, as if the first had been cut short, and checks the result.
pub fn run(source: &str, path: &Path) -> Result<String, Box<dyn Error>> {
    let half = source.lines().count() / 2;
    import(source.lines().take(half), path)?;
    import(source.lines(), path)?;
    assert_eq!(import(source.lines(), path)?, 0, "there is nothing left to import");
    check(source, path)
}

/// Imports the lines that are not imported yet. Returns how many.
fn import<'a>(lines: impl Iterator<Item = &'a str>, path: &Path) -> Result<usize, Box<dyn Error>> {
    let store = Store::open(path)?;
    let begin = place(&store)?;
    // Many batches under way at a time: what is stored of them is a prefix, so no line is left out.
    let appender = store.mixed_appender(AppenderOptions::new().pipeline(64))?;
    let mut lines = lines.skip(begin);
    let mut place = begin;
    loop {
        let mut batch = MixedBatch::new();
        for line in lines.by_ref().take(BATCH_LINES) {
            let (id, parents, about) = parse(line);
            batch.push(COMMITS, &Event::new(about).id(id).parents(parents))?;
            place += 1;
        }
        if batch.is_empty() {
            break;
        }
        batch.push(PLACE, &Event::new(place.to_string()))?;
        appender.submit_and_forget(batch)?;
    }
    appender.close()?; // all of it is durable, or this is the reason why not
    println!("lines {begin}..{place} imported, {} of them held", {
        store.wait_committed(store.durable_end())?;
        store.stats().held
    });
    store.close()?;
    Ok(place - begin)
}

/// So many lines are imported: what the newest event of the place says.
fn place(store: &Store) -> Result<usize, Box<dyn Error>> {
    store.wait_committed(store.durable_end())?;
    let Some(places) = store.stream(PLACE)? else { return Ok(0) };
    let newest = places.read(places.len() - 1..)?.next().ok_or("it has an event")??;
    Ok(std::str::from_utf8(newest.payload())?.parse()?)
}

fn parse(line: &str) -> (&str, Vec<&str>, &str) {
    let (ids, about) = line.split_once('\t').unwrap_or((line, ""));
    let mut ids = ids.split_ascii_whitespace();
    (ids.next().unwrap_or_default(), ids.collect(), about)
}

/// Every commit is delivered once, after its parents, or waits for one that the source does not have.
fn check(source: &str, path: &Path) -> Result<String, Box<dyn Error>> {
    let store = Store::open(path)?;
    let mut delivered = HashSet::new();
    if let Some(commits) = store.stream(COMMITS)? {
        for commit in commits.read(..)? {
            let commit = commit?;
            let parents = commit.parents()?;
            assert!(parents.iter().all(|parent| delivered.contains(parent)), "parents first");
            assert!(delivered.insert(commit.id().to_vec()), "each commit once");
        }
    }
    let held: HashSet<_> = store.held()?.into_iter().map(|held| held.id).collect();
    for line in source.lines() {
        let id = parse(line).0.as_bytes();
        assert!(delivered.contains(id) != held.contains(id), "{line}");
    }
    assert_eq!(delivered.len() + held.len(), source.lines().count());
    assert_eq!(store.stats().duplicates, 0, "nothing was imported twice");
    store.close()?;
    Ok(format!("{} commits in causal order, {} held", delivered.len(), held.len()))
}
