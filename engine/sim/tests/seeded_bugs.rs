//! The seeded bugs still are what they say: each patch applies to the sources as they are now, exactly
//! and in one place, and the scoreboard knows it. What the simulation says of them takes long:
//! `seeded_bugs/run`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("seeded_bugs")
}

/// The names of the bugs, and their patches.
fn patches() -> Vec<(String, String)> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut patches: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "patch"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    patches.sort();
    patches
}

/// The changes of a patch: of which file, the lines before, the lines after.
fn changes(patch: &str) -> Vec<(&str, String, String)> {
    let mut changes = Vec::new();
    let mut file = None;
    for line in patch.lines() {
        if let Some(name) = line.strip_prefix("--- a/") {
            file = Some(name);
        } else if line.starts_with("@@ ") {
            changes.push((file.expect("a file before its hunks"), String::new(), String::new()));
        } else if let Some((_, before, after)) =
            changes.last_mut().filter(|_| !line.starts_with("+++ ") && !line.starts_with("diff "))
        {
            let rest = line.get(1..).unwrap_or_default();
            match line.bytes().next() {
                Some(b'-') => *before += &format!("{rest}\n"),
                Some(b'+') => *after += &format!("{rest}\n"),
                Some(b' ') | None => {
                    *before += &format!("{rest}\n");
                    *after += &format!("{rest}\n");
                }
                Some(other) => panic!("a line of a hunk begins with {:?}", other as char),
            }
        }
    }
    changes
}

#[test]
fn every_patch_applies_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let patches = patches();
    assert!(patches.len() >= 28, "{} patches are left", patches.len());
    for (name, patch) in patches {
        let story = patch.lines().next().unwrap_or_default();
        assert!(story.ends_with('.'), "{name}: does not begin with what the bug is");
        let changes = changes(&patch);
        assert!(!changes.is_empty(), "{name}: changes nothing");
        for (file, before, after) in changes {
            assert_ne!(before, after, "{name}: a hunk of {file} changes nothing");
            let source = std::fs::read_to_string(root.join(file))
                .unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
            let places = source.match_indices(&before).count();
            assert_eq!(places, 1, "{name}: {file} has these lines so often:\n{before}");
        }
    }
}

#[test]
fn the_scoreboard_names_every_bug_and_no_other() {
    let scoreboard = std::fs::read_to_string(folder().join("SCOREBOARD.md")).unwrap();
    let rows = scoreboard.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let named: BTreeSet<_> = rows.map(|(name, _)| name.to_owned()).collect();
    let there: BTreeSet<_> = patches().into_iter().map(|(name, _)| name).collect();
    assert_eq!(named, there);
}
