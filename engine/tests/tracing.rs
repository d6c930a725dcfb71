//! The feature `tracing`: what a subscriber hears of a store. It is the process's, so each test knows its own store by
//! its name.

mod common;
#[path = "common/faulty.rs"]
mod faulty;

use std::fmt::{Debug, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use common::append;
use faulty::{Fault, Faulty, Op, open as open_faulty};
use thalweg::{BackupOptions, Options, RepairOptions, Store, repair};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

thread_local! {
    static INSIDE: std::cell::RefCell<Vec<u64>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Keeps what it hears: each span and event as a path of spans, with its fields.
#[derive(Default)]
struct Heard {
    /// What each span is called, by its number.
    spans: Mutex<Vec<String>>,
    lines: Mutex<Vec<String>>,
    events: AtomicU64,
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).expect("a string takes all");
    }
}

impl Heard {
    fn path(&self, parent: Option<&Id>, is_contextual: bool) -> String {
        let inside = INSIDE.with_borrow(|inside| inside.last().copied());
        let parent = parent.map(Id::into_u64).or(inside.filter(|_| is_contextual));
        parent.map_or(String::new(), |id| self.spans.lock().unwrap()[id as usize - 1].clone())
    }
}

struct Shared(Arc<Heard>);

impl Subscriber for Shared {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "thalweg"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut path = self.0.path(span.parent(), span.is_contextual());
        write!(path, "/{}", span.metadata().name()).expect("a string takes all");
        span.record(&mut Fields(&mut path));
        self.0.lines.lock().unwrap().push(path.clone());
        let mut spans = self.0.spans.lock().unwrap();
        spans.push(path);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut path = self.0.path(event.parent(), event.is_contextual());
        write!(path, "! {}", event.metadata().level()).expect("a string takes all");
        event.record(&mut Fields(&mut path));
        self.0.lines.lock().unwrap().push(path);
        self.0.events.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, id: &Id) {
        INSIDE.with_borrow_mut(|inside| inside.push(id.into_u64()));
    }

    fn exit(&self, id: &Id) {
        let last = INSIDE.with_borrow_mut(Vec::pop);
        assert_eq!(
            last,
            Some(id.into_u64()),
            "spans are left in turn, by the thread that is in them"
        );
    }
}

/// What is heard in this process.
fn heard() -> &'static Heard {
    static HEARD: OnceLock<Arc<Heard>> = OnceLock::new();
    HEARD.get_or_init(|| {
        let heard = Arc::new(Heard::default());
        let shared = Shared(Arc::clone(&heard));
        tracing::subscriber::set_global_default(shared).expect("there is no other");
        heard
    })
}

/// The lines so far that have all these words.
fn lines(words: &[&str]) -> Vec<String> {
    let lines = heard().lines.lock().unwrap();
    lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).cloned().collect()
}

#[track_caller]
fn told(words: &[&str]) {
    let all = heard().lines.lock().unwrap().clone();
    assert!(!lines(words).is_empty(), "nothing with {words:?} in {all:#?}");
}

fn label(dir: &Path) -> String {
    format!("store={:?}", dir.display().to_string())
}

#[test]
fn the_life_of_a_store_is_told_under_its_name() {
    heard();
    let dir = tempfile::tempdir().expect("a directory");
    let me = &label(dir.path())[..];
    let small = || Options::new().segment_bytes(1 << 20);
    let store = small().open(dir.path()).expect("opens");
    told(&["/open", me, "read_only=false"]);
    told(&["/store", me, "! INFO", "recovered", "unordered=0"]);
    (0..20).for_each(|_| append(&store, "s", vec![7; 200_000]));
    told(&["/store", me, "! DEBUG", "rolled", "base="]);
    store.checkpoint().expect("a checkpoint");
    told(&["/store", me, "/checkpoint", "position=", "! INFO", "checkpoint written"]);
    let before = heard().events.load(Ordering::SeqCst);
    let target = dir.path().with_extension("backup");
    store
        .backup_with(&target, BackupOptions::new(), &|_| std::ops::ControlFlow::Continue(()))
        .expect("a backup");
    told(&["/backup", me]);
    std::fs::remove_dir_all(&target).expect("removes");
    store.close().expect("closes");
    told(&["/store", me, "/close", "! INFO", "closed"]);
    assert!(heard().events.load(Ordering::SeqCst) > before);
    std::fs::remove_file(dir.path().join("checkpoint.ckp")).expect("removes");
    let store = small().open(dir.path()).expect("opens");
    store.discovery().wait().expect("is done");
    told(&["/store", me, "/discovery", "bytes=", "! INFO", "discovered", "delivered=20"]);
    store.close().expect("closes");
    repair(dir.path(), &RepairOptions::new()).expect("repairs");
    told(&["/repair", me]);
}

#[test]
fn an_event_is_nothing_that_is_told() {
    heard();
    let dir = tempfile::tempdir().expect("a directory");
    let me = &label(dir.path())[..];
    let store = Store::open(dir.path()).expect("opens");
    append(&store, "s", "x");
    let before = lines(&[me]).len();
    (0..100).for_each(|_| append(&store, "s", "x"));
    assert_eq!(lines(&[me]).len(), before);
    store.close().expect("closes");
}

/// Storages in memory have one name for all, so this looks for what no other test comes to.
#[test]
fn what_fails_is_told_as_what_it_is() {
    heard();
    let storage = Faulty::default();
    let store = open_faulty(&storage);
    append(&store, "s", "x");
    storage.fail(Fault { count: 2, ..Fault::always(Op::Write, "order-") });
    append(&store, "s", "x");
    told(&["/store", "! WARN", "writing the order again"]);
    storage.fail(Fault::always(Op::Sync, "segment-"));
    let failed = store.appender("s").expect("an appender").append("x").expect("accepted").wait();
    failed.expect_err("the sync has failed");
    told(&["/store", "! ERROR", "poisoned", "cause="]);
    assert_eq!(lines(&["! ERROR", "poisoned"]).len(), 1, "the first cause, and no other");
    store.close().expect_err("it had stopped");
    told(&["/close", "! WARN", "closed after a failure"]);
}
