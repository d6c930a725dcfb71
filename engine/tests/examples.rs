//! The examples do what they say: each checks its own result, and these tests its last line.

#![allow(dead_code, unreachable_pub, reason = "each example is a program of its own")]

#[path = "../examples/account.rs"]
mod account;
#[path = "../examples/import_foreign.rs"]
mod import_foreign;
#[path = "../examples/merge.rs"]
mod merge;
#[path = "../examples/projection.rs"]
mod projection;

#[test]
fn an_account_is_never_overdrawn() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut before = 0;
    for _ in 0..2 {
        let last = account::run(&dir.path().join("store")).expect("runs");
        let words: Vec<&str> = last.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let [there, "there", withdrawn, "withdrawn", left, "left"] = words[..] else {
            panic!("{last}");
        };
        let number = |word: &str| word.parse::<i64>().expect("a number");
        assert_eq!(number(there), before + 1000);
        assert_eq!(number(there), number(withdrawn) + number(left));
        before = number(left);
    }
}

#[test]
fn replicas_merge() {
    let dir = tempfile::tempdir().expect("a directory");
    let last = merge::run(dir.path()).expect("runs");
    // The lines that Alice and Bob have put behind `milk` know nothing of each other: their ids say which comes first.
    assert_eq!(last, "in the end Groceries: milk butter eggs flour jam");
}

#[test]
fn an_import_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    let last = import_foreign::run(import_foreign::SAMPLE, &path).expect("runs");
    assert_eq!(last, "6 commits in causal order, 0 held");
    // The source has grown since.
    let grown = format!("{}77aa 6f1c\tNext\n99bb not-there\tLost\n", import_foreign::SAMPLE);
    let last = import_foreign::run(&grown, &path).expect("runs");
    assert_eq!(last, "7 commits in causal order, 1 held");
}

#[test]
fn a_projection_counts_everything_once() {
    let dir = tempfile::tempdir().expect("a directory");
    for (before, now) in [(0, 2100), (2100, 4200)] {
        let last = projection::run(&dir.path().join("store")).expect("runs");
        assert_eq!(last, format!("{before} before, 2100 paid in, {now} now"));
    }
}
