//! Forgetting the ids of what was trimmed long ago: it is a function of the log, as everything else, and bounds what is
//! kept.

mod common;

use std::sync::Arc;

use common::files::{bytes, put};
use common::log::keep_the_log_only;
use common::{TestEvent, batch_of, check, expected, hostile_event};
use proptest::prelude::*;
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{Ack, Event, MixedBatch, Options, Store, Trim, verify_on};
use thalweg_wal::name;

const SEGMENT_BYTES: u64 = 1 << 20;
const FILLER_LEN: usize = 300 << 10;

/// A store that is trimmed, and all of its log.
struct Forgetful {
    storage: MemoryStorage,
    store: Store,
    log: MemoryStorage,
    budget: u64,
}

fn open(storage: &MemoryStorage, budget: u64) -> Store {
    let options = Options::new().segment_bytes(SEGMENT_BYTES).memory_budget(budget);
    options.open_on(Arc::new(storage.clone())).expect("opens")
}

impl Forgetful {
    fn new(budget: u64) -> Self {
        let storage = MemoryStorage::new();
        let store = open(&storage, budget);
        let forgetful = Forgetful { storage, store, log: MemoryStorage::new(), budget };
        forgetful.keep_log();
        forgetful
    }

    /// Copies what there is of the log to where nothing is trimmed.
    fn keep_log(&self) {
        for file in self.storage.list().expect("lists") {
            if let name::Kind::Segment(_) = name::kind(&file) {
                put(&self.log, &file, &bytes(&self.storage, &file));
            }
        }
    }

    fn append(&self, batch: MixedBatch) {
        let receipt = self.store.submit(batch, Ack::Ordered).expect("is taken").wait();
        let receipt = receipt.expect("is stored");
        self.keep_log();
        let expected = expected(&self.log);
        let in_batch = expected.records.iter().map(|(place, _)| place.start);
        let in_batch = in_batch.filter(|at| (receipt.position..receipt.end).contains(at));
        let placements: Vec<_> = in_batch.map(|at| expected.placement(at)).collect();
        assert_eq!(receipt.placements, placements);
    }

    fn fill(&self, number: u64) {
        let mut batch = MixedBatch::new();
        let event = Event::new(vec![number as u8; FILLER_LEN]);
        batch.push(format!("filler-{}", number % 3), &event).expect("within the limits");
        self.append(batch);
    }

    fn trim(&self, keep_segments: u64, remember: u64) {
        let trim = Trim::new().keep_bytes(keep_segments * SEGMENT_BYTES).remember(remember);
        self.store.trim(&trim.past_cursors()).expect("trims");
    }

    fn reopen(&mut self, without_derived: bool) {
        self.store.close().expect("closes");
        if without_derived {
            keep_the_log_only(&self.storage);
        }
        self.store = open(&self.storage, self.budget);
        self.keep_log();
    }

    fn check(&self) {
        let log = expected(&self.log);
        if std::env::var_os("SHOW").is_some() {
            println!(
                "{} delivered, {} trimmed, {} forgotten",
                log.order.len(),
                self.store.first(),
                log.forgotten
            );
        }
        check(&self.store, &log);
        let go_on = &|_| std::ops::ControlFlow::Continue(());
        let report = verify_on(Arc::new(self.storage.clone()), go_on).expect("a check");
        assert_eq!(report.problems, []);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<TestEvent>),
    Fill(u64),
    Trim { keep_segments: u64, remember: u64 },
    Reopen { without_derived: bool },
    Check,
}

fn step() -> impl Strategy<Value = Step> {
    let trim = (0..3_u64, 0..40_u64);
    prop_oneof![
        8 => prop::collection::vec(hostile_event(3, 24), 1..12).prop_map(Step::Append),
        8 => (0..8_u64).prop_map(Step::Fill),
        4 => trim.prop_map(|(keep_segments, remember)| Step::Trim { keep_segments, remember }),
        1 => any::<bool>().prop_map(|without_derived| Step::Reopen { without_derived }),
        1 => Just(Step::Check),
    ]
}

/// Random histories: few, or as many as `THALWEG_ROUNDS` says.
fn rounds() -> u32 {
    std::env::var("THALWEG_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(16)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: rounds(), failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_forgotten_is_as_if_it_had_never_been(
        steps in prop::collection::vec(step(), 1..60),
        budget in prop_oneof![Just(0), Just(u64::MAX)],
    ) {
        let mut store = Forgetful::new(budget);
        for step in &steps {
            match step {
                Step::Append(events) => store.append(batch_of(events, &store.log)),
                Step::Fill(number) => (0..=number % 4).for_each(|_| store.fill(*number)),
                Step::Trim { keep_segments, remember } => store.trim(*keep_segments, *remember),
                Step::Reopen { without_derived } => store.reopen(*without_derived),
                Step::Check => store.check(),
            }
        }
        store.check();
        store.reopen(true);
        store.check();
    }
}

fn event(stream: &str, id: &str, parents: &[&str]) -> MixedBatch {
    let mut batch = MixedBatch::new();
    let event = Event::new("").id(id).parents(parents.iter().copied());
    batch.push(stream, &event).expect("within the limits");
    batch
}

/// A parent that is forgotten and comes again meets the watch that its child had on it the first time.
#[test]
fn a_parent_that_comes_again_sets_nothing_off_that_it_has_set_off_before() {
    for budget in [0, u64::MAX] {
        let mut store = Forgetful::new(budget);
        store.append(event("s", "child", &["again", "late"]));
        store.append(event("s", "done", &["again"]));
        store.append(event("s", "again", &[]));
        // No tip is forgotten.
        store.append(event("s", "next", &["done"]));
        for number in 0..24 {
            store.fill(number);
            store.trim(1, 0);
        }
        let log = expected(&store.log);
        assert!(log.forgotten > 3, "{}", log.forgotten);
        store.append(event("s", "again", &[]));
        assert_eq!(expected(&store.log).order.len(), log.order.len() + 1, "it is a new event");
        store.reopen(budget == 0);
        store.append(event("s", "late", &[]));
        assert_eq!(expected(&store.log).order.len(), log.order.len() + 3, "with its child");
        store.append(event("s", "late", &[]));
        store.append(event("s", "again", &[]));
        store.check();
    }
}

/// Without it, what is kept grows with all that ever was; with it, it is that of so many events.
#[test]
fn what_is_kept_of_what_was_trimmed_is_bounded() {
    let store = Forgetful::new(0);
    let kept = || -> u64 {
        let names = store.storage.list().expect("lists").into_iter();
        let kept = names.filter(|file| {
            matches!(
                name::kind(file),
                name::Kind::Facts(_) | name::Kind::FactsRun(_) | name::Kind::Trimmed
            )
        });
        kept.map(|file| bytes(&store.storage, &file).len() as u64).sum()
    };
    let mut most = (0, 0);
    for round in 0..60_u64 {
        let mut batch = MixedBatch::new();
        for number in 0..3000_u64 {
            let id = format!("{round}-{number}");
            let event = Event::new(vec![0; 300]).id(id).parents(Vec::<Vec<u8>>::new());
            let stream = format!("s{}", number % 4);
            // Each takes the place of the last as the tip of its stream.
            let event = if number < 4 { event } else { Event::new(vec![0; 300]) };
            batch.push(stream, &event).expect("within the limits");
        }
        store.store.submit(batch, Ack::Ordered).expect("is taken").wait().expect("is stored");
        let trim = Trim::new().keep_bytes(2 * SEGMENT_BYTES).remember(20_000);
        store.store.trim(&trim).expect("trims");
        if round < 30 { most.0 = kept().max(most.0) } else { most.1 = kept().max(most.1) }
    }
    assert!(store.store.first() > 150_000, "{}", store.store.first());
    assert!(most.1 <= most.0 + most.0 / 4, "{most:?}");
}

/// The log goes on in a new segment, which is all that is left; where it begins survives.
#[test]
fn everything_can_be_trimmed() {
    let mut store = Forgetful::new(u64::MAX);
    for round in 0..3_u64 {
        store.append(event("s", &format!("held {round}"), &["never"]));
        store.append(event("s", &format!("root {round}"), &[]));
        let delivered = store.store.delivered();
        let report = store.store.trim(&Trim::new().everything()).expect("trims");
        assert_eq!((report.first, store.store.first()), (delivered, delivered));
        assert_eq!(store.store.stats().segments, 1);
        assert!(store.store.read(..).expect("reads").next().is_none());
        store.keep_log();
        store.check();
        // Again, there is nothing.
        let report = store.store.trim(&Trim::new().everything()).expect("trims");
        assert_eq!((report.segments, report.events), (0, 0));
        store.reopen(round == 1);
        assert_eq!(store.store.first(), delivered);
        store.append(event("s", &format!("child {round}"), &[&format!("root {round}")]));
        store.append(event("s", &format!("root {round}"), &[]));
        store.check();
    }
}

/// A segment is as old as the first frame of the next.
#[test]
fn what_is_old_is_trimmed_by_the_clock_of_the_store() {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, UNIX_EPOCH};
    let hours = Arc::new(AtomicU64::new(1000));
    let clock = Arc::clone(&hours);
    let hour = Duration::from_secs(3600);
    let options = Options::new()
        .segment_bytes(SEGMENT_BYTES)
        .clock(move || UNIX_EPOCH + hour * clock.load(Ordering::SeqCst) as u32);
    let store = options.open_on(Arc::new(MemoryStorage::new())).expect("opens");
    let fill = || {
        let mut batch = MixedBatch::new();
        batch.push("s", &Event::new(vec![7; FILLER_LEN])).expect("within the limits");
        store.submit(batch, Ack::Ordered).expect("is taken").wait().expect("is stored");
    };
    let trim = Trim::new().older_than(hour * 24);
    for _ in 0..12 {
        fill();
        hours.fetch_add(1, Ordering::SeqCst);
    }
    assert_eq!(store.trim(&trim).expect("trims").segments, 0, "nothing is a day old");
    hours.fetch_add(18, Ordering::SeqCst);
    let report = store.trim(&trim).expect("trims");
    // Event n is 30 - n hours old; three stand in a segment.
    assert_eq!((report.first, report.segments), (6, 2));
    hours.fetch_add(1000, Ordering::SeqCst);
    assert_eq!(store.trim(&trim).expect("trims").first, 9, "but the segment that is written");
}
