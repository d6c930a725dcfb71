//! `ARCHITECTURE.md` names tests and files; they are there.

use std::path::Path;

const PAGE: &str = include_str!("../ARCHITECTURE.md");

/// What is between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn every_promise_names_tests_that_exist() {
    let (_, section) = PAGE.split_once("## Promises and their tests").expect("the section");
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let rows = rows.filter(|row| !row.starts_with("promise"));
    let mut promises = 0;
    for row in rows {
        let (promise, tests) = row.split_once(" | ").expect("two columns");
        let (mut source, mut named) = (None, 0);
        for name in quoted(tests) {
            if name.ends_with(".rs") {
                source = Some(read(name));
                continue;
            }
            let source = source.as_ref().expect("a file comes before its tests");
            let (before, _) = source
                .split_once(&format!("fn {name}("))
                .unwrap_or_else(|| panic!("{promise}: there is no test {name}"));
            let attributes = before.rsplit("\n\n").next().expect("there is a first piece");
            assert!(attributes.contains("#[test]"), "{promise}: {name} is not a test");
            named += 1;
        }
        assert!(named > 0, "nothing would notice: {promise}");
        promises += 1;
    }
    assert!(promises > 30, "only {promises} promises were found");
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
