//! Trimming: what is left is what was there before, and what comes is what would have come.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::{batch_of, check, expected, hostile_event, shared};
use proptest::prelude::*;
use thalweg::reference::Arrival;
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{Ack, Event, MixedBatch, NewEvent, Options, Store, Trim, VerifyReport, verify_on};
use thalweg_wal::name;

/// Segments as short as they can be: a filler or four, and the rest.
const SEGMENT_BYTES: u64 = 1 << 20;
const FILLER_LEN: usize = 300 << 10;

fn open(storage: &MemoryStorage, budget: u64) -> Store {
    let options = Options::new().segment_bytes(SEGMENT_BYTES).memory_budget(budget);
    options.open_on(Arc::new(storage.clone())).expect("opens")
}

fn verified(storage: &MemoryStorage) -> VerifyReport {
    verify_on(shared(storage), &|_| ControlFlow::Continue(())).expect("verifies")
}

/// Two stores with the same log, of which one is trimmed now and then.
struct Twins {
    whole: (MemoryStorage, Store),
    trimmed: (MemoryStorage, Store),
    budget: u64,
}

impl Twins {
    fn new(budget: u64) -> Self {
        let whole = MemoryStorage::new();
        open(&whole, budget).close().expect("closes");
        let trimmed = whole.fork();
        let whole = (whole.clone(), open(&whole, budget));
        let trimmed = (trimmed.clone(), open(&trimmed, budget));
        Twins { whole, trimmed, budget }
    }

    /// Appends the same to both, which come to the same.
    fn append(&self, batch: &dyn Fn() -> MixedBatch) {
        // Before the first of them is in the log, on which it depends.
        let batches = [batch(), batch()];
        let stores = [&self.whole.1, &self.trimmed.1].into_iter().zip(batches);
        let placements: Vec<_> = stores
            .map(|(store, batch)| {
                let receipt = store.submit(batch, Ack::Ordered).expect("is taken").wait();
                let receipt = receipt.expect("is stored");
                (receipt.end, receipt.placements)
            })
            .collect();
        assert_eq!(placements[0], placements[1]);
    }

    fn filler(&self, number: u64) {
        self.append(&|| {
            let mut batch = MixedBatch::new();
            let event = Event::new(vec![number as u8; FILLER_LEN]);
            batch.push(format!("filler-{}", number % 3), &event).expect("within the limits");
            batch
        });
    }

    fn trim(&self, before: u64) {
        let first = self.trimmed.1.first();
        let trim = Trim::new().before(before).past_cursors();
        let report = self.trimmed.1.trim(&trim).expect("trims");
        assert_eq!(report.first, self.trimmed.1.first());
        assert_eq!(report.events, report.first - first);
        assert!(report.first <= before.max(first));
        if std::env::var_os("SHOW").is_some() {
            println!("{before} {report:?}");
        }
    }

    fn reopen(&mut self, without_derived: bool) {
        for (storage, store) in [&mut self.whole, &mut self.trimmed] {
            store.close().expect("closes");
            if without_derived {
                for file in storage.list().expect("lists") {
                    if name::kind(&file).is_derived() {
                        storage.remove(&file).expect("removes");
                    }
                }
            }
            *store = open(storage, self.budget);
        }
    }

    /// With all derived files there.
    fn close(self) {
        for (storage, store) in [self.whole, self.trimmed] {
            let first = store.first();
            store.close().expect("closes");
            let report = verified(&storage);
            assert_eq!(report.problems, []);
            assert_eq!(report.compared, report.delivered - first);
            assert_eq!(report.left_files, [""; 0]);
        }
    }

    /// Both show the same, and a check from outside comes to the same.
    fn check(&self) {
        let expected = expected(&self.whole.0);
        for (storage, store) in [&self.whole, &self.trimmed] {
            check(store, &expected);
            let report = verified(storage);
            assert_eq!(report.problems, []);
            assert_eq!(report.first, store.first());
            let (delivered, held) = (expected.order.len() as u64, expected.held.len() as u64);
            assert_eq!((report.delivered, report.held), (delivered, held));
            let count = |wanted: Arrival| {
                let is_it = |(position, arrival): &&(u64, Arrival)| {
                    *position >= report.begins && *arrival == wanted
                };
                expected.arrivals.iter().filter(is_it).count() as u64
            };
            let found = (report.duplicates, report.conflicts);
            assert_eq!(found, (count(Arrival::Duplicate), count(Arrival::Conflict)));
            assert_eq!(report.streams, expected.machine.stream_counts().len() as u64);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<common::TestEvent>),
    Fill(u64),
    /// Up to so many thousandths of what is delivered.
    Trim(u64),
    Reopen {
        without_derived: bool,
    },
    Check,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(hostile_event(3, 24), 1..12).prop_map(Step::Append),
        8 => (0..8_u64).prop_map(Step::Fill),
        4 => (0..1001_u64).prop_map(Step::Trim),
        1 => any::<bool>().prop_map(|without_derived| Step::Reopen { without_derived }),
        1 => Just(Step::Check),
    ]
}

fn run(steps: &[Step], budget: u64) {
    let mut twins = Twins::new(budget);
    for step in steps {
        match step {
            Step::Append(events) => {
                twins.append(&|| batch_of(events, &twins.whole.0));
            }
            Step::Fill(number) => (0..=number % 4).for_each(|_| twins.filler(*number)),
            Step::Trim(thousandths) => {
                twins.trim(twins.whole.1.delivered() * thousandths / 1000);
            }
            Step::Reopen { without_derived } => twins.reopen(*without_derived),
            Step::Check => twins.check(),
        }
    }
    twins.check();
    twins.reopen(true);
    twins.check();
    twins.close();
}

/// Random histories: few, or as many as `THALWEG_ROUNDS` says.
fn rounds() -> u32 {
    std::env::var("THALWEG_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: rounds(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_of_a_trimmed_store_is_what_it_was(
        steps in prop::collection::vec(step(), 1..60),
        budget in prop_oneof![Just(0), Just(u64::MAX)],
    ) {
        run(&steps, budget);
    }
}

/// The copy of a chained event, with a trimmed event among its parents that it was not chained on, stopped the store:
/// its place in its stream is not kept.
#[test]
fn a_copy_of_a_chained_event_may_name_any_trimmed_event() {
    let twins = Twins::new(0);
    let append = |event: NewEvent| {
        twins.append(&|| {
            let mut batch = MixedBatch::new();
            batch.push("s", &event).expect("within the limits");
            batch
        });
    };
    ["a", "b", "c"].into_iter().for_each(|id| append(Event::new("").id(id)));
    (0..4).for_each(|_| twins.filler(0));
    append(Event::new("").id("d"));
    twins.trim(6);
    assert_eq!(twins.trimmed.1.first(), 6);
    for parent in ["a", "b", "c"] {
        append(Event::new("").id("d").parents([parent]));
    }
    twins.check();
}
