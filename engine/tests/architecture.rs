//! `ARCHITECTURE.md` and `TESTING.md` name tests and files; they are there.

use std::path::Path;

const PAGE: &str = include_str!("../ARCHITECTURE.md");
const TESTING: &str = include_str!("../TESTING.md");

/// What is between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Checks that every row of the tables names tests that exist; returns how many rows there are.
fn check_rows(tables: &str) -> usize {
    let mut previous = "";
    let mut rows = 0;
    for line in tables.lines() {
        // The row above a line of dashes is a heading.
        let is_heading = std::mem::replace(&mut previous, line).is_empty();
        let Some(row) = line.strip_prefix("| ").filter(|_| !is_heading) else { continue };
        let (what, tests) = row.split_once(" | ").expect("two columns");
        let (mut source, mut named) = (None, 0);
        for name in quoted(tests) {
            if name.ends_with(".rs") {
                source = Some(read(name));
                continue;
            }
            let source = source.as_ref().expect("a file comes before its tests");
            let (before, _) = source
                .split_once(&format!("fn {name}("))
                .unwrap_or_else(|| panic!("{what}: there is no test {name}"));
            let attributes = before.rsplit("\n\n").next().expect("there is a first piece");
            assert!(attributes.contains("#[test]"), "{what}: {name} is not a test");
            named += 1;
        }
        assert!(named > 0, "nothing would notice: {what}");
        rows += 1;
    }
    rows
}

#[test]
fn every_promise_names_tests_that_exist() {
    let (_, section) = PAGE.split_once("## Promises and their tests").expect("the section");
    let promises = check_rows(section);
    assert!(promises > 30, "only {promises} promises were found");
}

#[test]
fn every_behaviour_of_discovery_names_tests_that_exist() {
    let behaviours = check_rows(TESTING);
    assert!(behaviours > 40, "only {behaviours} behaviours were found");
}

/// A test of discovery that no behaviour names says something that the page should say.
#[test]
fn every_test_of_discovery_is_named() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let names: Vec<&str> = quoted(TESTING).collect();
    let mut count = 0;
    for entry in std::fs::read_dir(directory).expect("lists") {
        let file = entry.expect("an entry").file_name().into_string().expect("a plain name");
        if !file.starts_with("discovery_") || !file.ends_with(".rs") {
            continue;
        }
        for test in read(&format!("tests/{file}")).split("#[test]").skip(1) {
            let (_, name) = test.split_once("fn ").expect("a function");
            let (name, _) = name.split_once('(').expect("a function");
            assert!(names.contains(&name), "{file}: {name} is not in TESTING.md");
            count += 1;
        }
    }
    assert!(count > 30, "only {count} tests were found");
}

/// Nothing is decided by the time of day: no order, no recovery, no wait. What clocks there are only go forward.
/// But the ages of held events count by it, in one place.
#[test]
fn no_clock_that_can_be_set_is_read() {
    fn look(directory: &Path) -> usize {
        let entries = std::fs::read_dir(directory).expect("lists");
        let count = |path: std::path::PathBuf| {
            if path.is_dir() {
                return look(&path);
            }
            let source = std::fs::read_to_string(&path).expect("reads");
            // A backup says when it was made, and nothing looks at that.
            let allowed =
                usize::from(path.ends_with("backup.rs") || path.ends_with("src/clock.rs"));
            let count = source.matches("SystemTime::").count();
            assert!(count <= allowed, "{} reads the time of day", path.display());
            1
        };
        entries.map(|entry| count(entry.expect("an entry").path())).sum()
    }
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = look(&engine.join("src")) + look(&engine.join("../wal/src"));
    assert!(files > 50, "only {files} files were found");
}

/// The stages tell what they do, and do not know who listens.
#[test]
fn one_file_knows_the_features() {
    fn files_with(directory: &Path, word: &str) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("lists");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let of = |path: std::path::PathBuf| {
            if path.is_dir() {
                return files_with(&path, word);
            }
            let source = std::fs::read_to_string(&path).expect("reads");
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            source.contains(word).then_some(name).into_iter().collect()
        };
        paths.flat_map(of).collect()
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert_eq!(files_with(&source, "feature = "), ["observe.rs"]);
}

#[test]
fn every_source_file_that_is_named_exists() {
    let words = PAGE.split(|letter: char| letter.is_whitespace() || "`(),;]".contains(letter));
    let files = words.filter(|name| name.starts_with("src/") || name.starts_with("../"));
    let mut count = 0;
    for file in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file.trim_end_matches('.'));
        assert!(path.exists(), "{file} is not there");
        count += 1;
    }
    assert!(count > 20, "only {count} files were found");
}
