//! Trimming: what is left is what was there before, and what comes is what would have come.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use common::log::keep_the_log_only;
use common::{append_to_both, batch_of, check, expected, hostile_event, shared};
use proptest::prelude::*;
use thalweg::reference::Arrival;
use thalweg::storage::MemoryStorage;
use thalweg::{
    Event, Follower, MarkChange, MixedBatch, NewEvent, Options, Placement, ReadError, Rejection,
    Store, Trim, VerifyReport, verify_on,
};

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
    /// Reads along, from before the first trim on.
    follower: Follower,
    budget: u64,
}

impl Twins {
    fn new(budget: u64) -> Self {
        let whole = MemoryStorage::new();
        open(&whole, budget).close().expect("closes");
        let trimmed = whole.fork();
        let whole = (whole.clone(), open(&whole, budget));
        let trimmed = (trimmed.clone(), open(&trimmed, budget));
        let follower = Follower::open_on(shared(&trimmed.0)).expect("follows");
        Twins { whole, trimmed, follower, budget }
    }

    /// Appends the same to both, which come to the same.
    fn append(&self, batch: &dyn Fn() -> MixedBatch) -> Vec<Placement> {
        append_to_both([&self.whole.1, &self.trimmed.1], batch)
    }

    /// The same with events of one stream.
    fn events(&self, stream: &str, events: &[NewEvent]) -> Vec<Placement> {
        self.append(&|| {
            let mut batch = MixedBatch::new();
            for event in events {
                batch.push(stream, event).expect("within the limits");
            }
            batch
        })
    }

    /// Trims everything that there is now.
    fn trim_all(&self) {
        let end = self.whole.1.delivered();
        (0..5).for_each(|number| self.filler(number));
        self.trim(u64::MAX, true);
        assert!(self.trimmed.1.first() >= end, "{} of {end}", self.trimmed.1.first());
    }

    fn filler(&self, number: u64) {
        self.append(&|| {
            let mut batch = MixedBatch::new();
            let event = Event::new(vec![number as u8; FILLER_LEN]);
            batch.push(format!("filler-{}", number % 3), &event).expect("within the limits");
            batch
        });
    }

    fn trim(&self, before: u64, past_cursors: bool) {
        let store = &self.trimmed.1;
        let first = store.first();
        let mut trim = Trim::new().before(before);
        if past_cursors {
            trim = trim.past_cursors();
        }
        let slowest = store.cursors().into_iter().map(|cursor| cursor.at).min();
        let report = store.trim(&trim).expect("trims");
        assert_eq!(report.first, store.first());
        assert_eq!(report.events, report.first - first);
        assert!(report.first <= before.max(first));
        let kept_from = slowest.filter(|_| !past_cursors).unwrap_or(u64::MAX);
        assert!(report.first <= kept_from.max(first), "it has passed a cursor");
    }

    fn reopen(&mut self, without_derived: bool) {
        for (storage, store) in [&mut self.whole, &mut self.trimmed] {
            store.close().expect("closes");
            if without_derived {
                keep_the_log_only(storage);
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
        let (storage, store) = &self.trimmed;
        let reader = Options::new().memory_budget(self.budget).open_read_only_on(shared(storage));
        check(&reader.expect("opens"), &expected);
        let late = Follower::open_on(shared(storage)).expect("follows");
        for follower in [&self.follower, &late] {
            check_follower(follower, store);
        }
    }
}

/// It shows what the owner does; where the log begins, it learns a little later.
fn check_follower(follower: &Follower, owner: &Store) {
    let delivered = owner.delivered();
    assert!(follower.wait_delivered(delivered, Duration::from_secs(60)).expect("follows"));
    let shown = |read: Result<thalweg::Read, ReadError>| -> Vec<_> {
        let event = |event: Result<Event, ReadError>| {
            let event = event.expect("reads");
            let (stream, id) = (event.stream().to_vec(), event.id().to_vec());
            (event.global(), event.local(), event.position(), stream, id, event.payload().to_vec())
        };
        read.expect("reads").map(event).collect()
    };
    let theirs = shown(follower.read(owner.first()..));
    assert!(theirs == shown(owner.read(..)), "the follower shows something else");
    for info in owner.streams().expect("answers").into_iter().filter(|info| info.delivered > 0) {
        let view = follower.stream(&info.name).expect("finds").expect("is there");
        assert_eq!(view.len(), info.delivered);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<common::TestEvent>),
    Fill(u64),
    /// Up to so many thousandths of what is delivered.
    Trim {
        thousandths: u64,
        past_cursors: bool,
    },
    Reopen {
        without_derived: bool,
        /// As for a trim, at once.
        trim: Option<u64>,
    },
    Checkpoint,
    Check,
}

/// Few streams and ids, in which everything is met again and again; or more, of which most are trimmed long before they are.
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(hostile_event(3, 24), 1..12).prop_map(Step::Append),
        4 => prop::collection::vec(hostile_event(7, 200), 1..60).prop_map(Step::Append),
        8 => (0..8_u64).prop_map(Step::Fill),
        4 => (0..1001_u64, prop::bool::weighted(0.8))
            .prop_map(|(thousandths, past_cursors)| Step::Trim { thousandths, past_cursors }),
        1 => (any::<bool>(), prop::option::of(0..1001_u64))
            .prop_map(|(without_derived, trim)| Step::Reopen { without_derived, trim }),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Check),
    ]
}

fn run(steps: &[Step], budget: u64) {
    let mut twins = Twins::new(budget);
    let before = |twins: &Twins, thousandths: u64| twins.whole.1.delivered() * thousandths / 1000;
    for step in steps {
        match step {
            Step::Append(events) => drop(twins.append(&|| batch_of(events, &twins.whole.0))),
            Step::Fill(number) => (0..=number % 4).for_each(|_| twins.filler(*number)),
            Step::Trim { thousandths, past_cursors } => {
                twins.trim(before(&twins, *thousandths), *past_cursors);
            }
            Step::Reopen { without_derived, trim } => {
                twins.reopen(*without_derived);
                if let Some(thousandths) = trim {
                    twins.trim(before(&twins, *thousandths), true);
                }
            }
            Step::Checkpoint => twins.trimmed.1.checkpoint().expect("a checkpoint"),
            Step::Check => twins.check(),
        }
    }
    twins.check();
    twins.reopen(true);
    twins.check();
    // All that is left, and the same again.
    twins.trim_all();
    twins.check();
    twins.reopen(true);
    twins.check();
    twins.close();
}

/// Random histories: few, or as many as `THALWEG_ROUNDS` says.
fn rounds() -> u32 {
    std::env::var("THALWEG_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: rounds(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_of_a_trimmed_store_is_what_it_was(
        steps in prop::collection::vec(step(), 1..70),
        budget in prop_oneof![2 => Just(0), 1 => Just(100 << 10), 2 => Just(u64::MAX)],
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
    twins.trim(6, true);
    assert_eq!(twins.trimmed.1.first(), 6);
    for parent in ["a", "b", "c"] {
        append(Event::new("").id("d").parents([parent]));
    }
    twins.check();
}

fn named(id: &str, parents: &[&str]) -> NewEvent {
    Event::new(format!("payload of {id}")).id(id).parents(parents.iter().copied())
}

fn delivered_at(local: u64) -> impl Fn(&Placement) -> bool {
    move |placement| matches!(placement, Placement::Delivered { local: at, .. } if *at == local)
}

#[test]
fn a_copy_of_a_trimmed_event_is_a_duplicate_and_another_one_a_conflict() {
    for budget in [0, u64::MAX] {
        let mut twins = Twins::new(budget);
        let chained = || Event::new("chained").id("chained");
        let events =
            || [named("root", &[]), named("fork", &["root"]), named("tip", &["root"]), chained()];
        twins.events("s", &events());
        // Held, and so is the copy; then delivered, and trimmed, by now.
        twins.events("s", &[named("held", &["late"])]);
        twins.trim_all();
        for round in 0..3 {
            let told = twins.events("s", &events());
            assert!(told.iter().all(|told| *told == Placement::Duplicate), "{told:?}");
            let others = [
                Event::new("something else").id("root").parents::<&str>([]),
                named("root", &["fork"]),
                Event::new("payload of tip").id("tip"),
                named("chained", &["fork", "tip"]),
                Event::new("chained").id("chained").parents(["fork"]),
            ];
            let told = twins.events("s", &others);
            assert!(told.iter().all(|told| *told == Placement::Conflict), "{told:?}");
            assert_eq!(twins.events("s", &[named("held", &["late"])]), [Placement::Duplicate]);
            // An id is one of its stream.
            let stream = format!("another {round}");
            let told = twins.events(&stream, &[named("root", &[])]);
            assert!(delivered_at(0)(&told[0]), "{told:?}");
            twins.check();
            if round == 1 {
                twins.events("s", &[named("late", &[])]);
            }
            twins.reopen(round == 0);
            twins.trim_all();
        }
        twins.check();
    }
}

#[test]
fn a_late_child_of_trimmed_parents_is_delivered() {
    for budget in [0, u64::MAX] {
        let mut twins = Twins::new(budget);
        twins.events("s", &[named("a", &[]), named("b", &["a"]), named("c", &["a"])]);
        // Waits for one that was trimmed, and for one that comes later.
        twins.events("s", &[named("held", &["b", "later"]), named("behind", &["held"])]);
        twins.trim_all();
        twins.reopen(false);
        let told = twins.events("s", &[named("d", &["a", "c"]).require_parents()]);
        assert!(delivered_at(3)(&told[0]), "{told:?}");
        let told = twins.events("s", &[named("e", &["a", "nobody"]).require_parents()]);
        let Placement::Rejected { reason: Rejection::Parents { .. }, .. } = &told[0] else {
            panic!("{told:?}")
        };
        let told = twins.events("s", &[named("f", &["nobody", "b"])]);
        assert_eq!(told, [Placement::Held { missing: 1 }]);
        twins.trim_all();
        twins.reopen(true);
        // Now both are released, from where no log is any more; the parents of one of them were trimmed in two trims.
        let told = twins.events("s", &[named("later", &["d"])]);
        assert!(delivered_at(4)(&told[0]), "{told:?}");
        let child = twins.trimmed.1.get("s", "behind").expect("reads").expect("is there");
        assert_eq!((child.local(), child.payload()), (6, &b"payload of behind"[..]));
        twins.check();
        twins.trim_all();
        assert!(matches!(twins.trimmed.1.get("s", "behind"), Err(ReadError::Trimmed { .. })));
        let told = twins.events("s", &[named("last", &["behind", "a"])]);
        assert!(delivered_at(7)(&told[0]), "{told:?}");
        twins.check();
    }
}

#[test]
fn conditions_are_held_against_what_was_trimmed() {
    for budget in [0, u64::MAX] {
        let mut twins = Twins::new(budget);
        twins.events("s", &[named("a", &[]), named("x", &["a"]), named("y", &["a"])]);
        twins.events("one", &[named("only", &[])]);
        twins.trim_all();
        twins.reopen(budget == 0);
        let tips = twins.trimmed.1.tips("s").expect("answers");
        assert_eq!(tips, [b"x", b"y"]);
        let rejected = |told: Vec<Placement>| match &told[..] {
            [Placement::Rejected { reason, tips: named }] => {
                assert_eq!(named[..], tips);
                *reason
            }
            other => panic!("{other:?}"),
        };
        let condition = |event: NewEvent| twins.events("s", &[event]);
        assert!(matches!(rejected(condition(Event::new("").if_tips(["a"]))), Rejection::Tips));
        assert!(matches!(rejected(condition(Event::new("").if_tips(["x"]))), Rejection::Tips));
        let told = rejected(condition(Event::new("").if_local(2)));
        assert!(matches!(told, Rejection::Local { .. }), "{told:?}");
        // Of a batch that is tied, all or nothing.
        let tied = [Event::new("").if_tips(["x"]), Event::new("").with_previous()];
        let told = twins.events("s", &tied);
        assert!(told.iter().all(|told| matches!(told, Placement::Rejected { .. })), "{told:?}");
        let tied = [
            Event::new("").id("z").if_tips(["y", "x"]).if_local(3),
            Event::new("").with_previous(),
        ];
        let told = twins.events("s", &tied);
        assert!(delivered_at(3)(&told[0]) && delivered_at(4)(&told[1]), "{told:?}");
        let z = twins.trimmed.1.get("s", "z").expect("reads").expect("is there");
        assert_eq!(z.parents().expect("its parents"), [b"y", b"x"]);
        // Chained on what is not there any more.
        let told = twins.events("one", &[Event::new("").id("second"), Event::new("").if_local(2)]);
        assert!(delivered_at(1)(&told[0]) && delivered_at(2)(&told[1]), "{told:?}");
        let second = twins.trimmed.1.get("one", "second").expect("reads").expect("is there");
        assert_eq!(second.parents().expect("its parent"), [b"only"]);
        twins.check();
    }
}

#[test]
fn seals_and_cursors_outlive_a_trim() {
    for without_derived in [false, true] {
        let mut twins = Twins::new(u64::MAX);
        twins.events("s", &[named("a", &[])]);
        twins.append(&|| {
            let mut batch = MixedBatch::new();
            batch.push_seal("s").expect("within the limits");
            batch.push_seal("never used").expect("within the limits");
            batch.push_mark("c", MarkChange::Advance(1)).expect("within the limits");
            batch.push_mark("gone", MarkChange::Advance(0)).expect("within the limits");
            batch.push_mark("gone", MarkChange::Remove).expect("within the limits");
            batch
        });
        twins.trim_all();
        twins.reopen(without_derived);
        let store = &twins.trimmed.1;
        for store in [&twins.whole.1, store] {
            store.wait_committed(store.durable_end()).expect("ordered");
            assert_eq!((store.is_sealed("s"), store.is_sealed("never used")), (true, true));
        }
        let cursors = store.cursors();
        assert_eq!((cursors.len(), &cursors[0].name[..], cursors[0].at), (1, &b"c"[..], 1));
        let told = twins.append(&|| {
            let mut batch = MixedBatch::new();
            batch.push_unseal("s").expect("within the limits");
            batch.push("s", &named("b", &["a"])).expect("within the limits");
            batch.push_mark("c", MarkChange::Reset(0)).expect("within the limits");
            batch.push_mark("c", MarkChange::Advance(3)).expect("within the limits");
            batch
        });
        assert!(
            delivered_at(1)(&told[1]) && told[3] == Placement::Marked { at: Some(3) },
            "{told:?}"
        );
        twins.check();
    }
}
