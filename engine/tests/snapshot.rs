//! Copies of stores that were trimmed, and copies that begin later than their source: they are what the source is, and
//! go on as it does; also if the source is trimmed while they are made.

mod common;
#[path = "../../wal/tests/common/hooked.rs"]
mod hooked;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};

use common::log::keep_the_log_only;
use common::{
    Expected, Rng, append_every_kind, append_to_both, batch_of, check, expected, hostile_event,
    shared, wild_event,
};
use hooked::{Hooked, Op};
use proptest::prelude::*;
use thalweg::reference::{Delivery, SerialEvent};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg::{
    Ack, BackupError, BackupOptions, BackupProgress, BackupReport, Event, MixedBatch, NewEvent,
    Options, Placement, ReadError, Store, Trim, backup_on, restore_on, verify_backup_on, verify_on,
};
use thalweg_wal::{LogReader, name};

const GO_ON: &dyn Fn(BackupProgress) -> ControlFlow<()> = &|_| ControlFlow::Continue(());
/// Segments as short as they can be: a filler or four, and the rest.
const SEGMENT_BYTES: u64 = 1 << 20;
const FILLER_LEN: usize = 300 << 10;

fn options() -> Options {
    Options::new().segment_bytes(SEGMENT_BYTES).scanners(2).orderers(2)
}

fn open(storage: &MemoryStorage, budget: u64) -> Store {
    options().memory_budget(budget).open_on(shared(storage)).expect("opens")
}

fn filler(number: u64) -> MixedBatch {
    let mut batch = MixedBatch::new();
    let event = Event::new(vec![number as u8; FILLER_LEN]);
    batch.push(format!("filler-{}", number % 3), &event).expect("within the limits");
    batch
}

/// Where a copy begins.
#[derive(Debug, Clone, Copy)]
enum Begin {
    Source,
    /// After so many thousandths of what is delivered.
    From(u64),
    Frontier,
}

impl Begin {
    fn options(self, delivered: u64) -> BackupOptions {
        match self {
            Begin::Source => BackupOptions::new(),
            Begin::From(thousandths) => BackupOptions::new().from(delivered * thousandths / 1000),
            Begin::Frontier => BackupOptions::new().from_frontier(),
        }
    }

    /// The first event that the copy has to have: of a log that comes to `expected`, in segments with these bases.
    fn first(self, expected: &Expected, bases: &[u64], source_first: u64) -> u64 {
        let delivered = expected.order.len() as u64;
        let before = match self {
            Begin::Source => return source_first,
            Begin::Frontier => return delivered,
            Begin::From(thousandths) => delivered * thousandths / 1000,
        };
        let first_behind = |base: &u64| {
            let is_behind = |delivery: &Delivery| delivery.position >= *base;
            expected.order.iter().position(is_behind).map_or(delivered, |first| first as u64)
        };
        let firsts = bases[1..].iter().map(first_behind);
        firsts.rev().find(|first| *first <= before).unwrap_or(source_first)
    }
}

fn bases(storage: &dyn Storage) -> Vec<u64> {
    let log = LogReader::open(storage, None).expect("opens");
    log.segments.iter().map(|segment| segment.base()).collect()
}

/// A backup that is what its manifest says, and a store that is what its log comes to.
fn is_good(storage: &MemoryStorage, report: &BackupReport) {
    let verified = verify_on(shared(storage), &|_| ControlFlow::Continue(())).expect("verifies");
    assert_eq!(verified.problems, Vec::new());
    let found = verify_backup_on(storage, GO_ON).expect("a backup");
    assert_eq!((found.problems, &found.backup), (Vec::new(), &report.backup));
}

/// Two stores with the same log: one has all of it, the other was trimmed, or is a copy that begins later.
struct Twins {
    whole: (MemoryStorage, Store),
    other: (MemoryStorage, Store),
    budget: u64,
}

impl Twins {
    fn new(budget: u64) -> Self {
        let whole = MemoryStorage::new();
        open(&whole, budget).close().expect("closes");
        let other = whole.fork();
        let whole = (whole.clone(), open(&whole, budget));
        let other = (other.clone(), open(&other, budget));
        Twins { whole, other, budget }
    }

    /// Appends the same to both, which come to the same.
    fn append(&self, batch: &dyn Fn() -> MixedBatch) {
        append_to_both([&self.whole.1, &self.other.1], batch);
    }

    fn trim(&self, thousandths: u64) {
        let before = self.whole.1.delivered() * thousandths / 1000;
        self.other.1.trim(&Trim::new().before(before).past_cursors()).expect("trims");
    }

    /// Goes on with copies of both: of the one all of it, of the other from `begin` on.
    fn copy(&mut self, begin: Begin, running: bool, restored: bool) {
        // One that ends with an empty segment goes on in it.
        self.append(&|| filler(1));
        let expected = expected(&self.whole.0);
        let (delivered, source_first) = (self.whole.1.delivered(), self.other.1.first());
        let first = begin.first(&expected, &bases(&self.other.0), source_first);
        for (is_whole, (storage, store)) in [(true, &mut self.whole), (false, &mut self.other)] {
            let begin = if is_whole { Begin::Source } else { begin };
            let target = MemoryStorage::new();
            let options = begin.options(delivered);
            let report = if running {
                store.backup_on(shared(&target), options, GO_ON)
            } else {
                store.close().expect("closes");
                backup_on(shared(storage), shared(&target), options, GO_ON)
            };
            let report = report.expect("a backup");
            let first = if is_whole { 0 } else { first };
            assert_eq!((report.backup.first, report.damaged), (first, 0), "{begin:?}");
            assert_eq!(report.backup.delivered.unwrap_or(delivered), delivered);
            is_good(&target, &report);
            let reader = Options::new().open_read_only_on(shared(&target)).expect("opens");
            check(&reader, &expected);
            assert_eq!(reader.first(), first);
            drop(reader);
            is_good(&target, &report);
            let copy = match restored {
                true => {
                    let copy = MemoryStorage::new();
                    restore_on(&target, &copy, BackupOptions::new(), GO_ON).expect("restores");
                    copy
                }
                false => target,
            };
            store.close().expect("closes");
            *store = open(&copy, self.budget);
            *storage = copy;
        }
        self.check();
    }

    fn reopen(&mut self, without_derived: bool) {
        for (storage, store) in [&mut self.whole, &mut self.other] {
            store.close().expect("closes");
            if without_derived {
                keep_the_log_only(storage);
            }
            *store = open(storage, self.budget);
        }
    }

    fn check(&self) {
        let expected = expected(&self.whole.0);
        for (_, store) in [&self.whole, &self.other] {
            check(store, &expected);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<common::TestEvent>),
    Fill(u64),
    /// Up to so many thousandths of what is delivered.
    Trim(u64),
    Copy {
        begin: Begin,
        running: bool,
        restored: bool,
    },
    Reopen {
        without_derived: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let begin = prop_oneof![
        2 => Just(Begin::Source),
        3 => (0..1001_u64).prop_map(Begin::From),
        2 => Just(Begin::Frontier),
    ];
    let copy = (begin, any::<bool>(), any::<bool>());
    prop_oneof![
        8 => prop::collection::vec(hostile_event(3, 24), 1..12).prop_map(Step::Append),
        8 => (0..8_u64).prop_map(Step::Fill),
        2 => (0..1001_u64).prop_map(Step::Trim),
        3 => copy.prop_map(|(begin, running, restored)| Step::Copy { begin, running, restored }),
        1 => any::<bool>().prop_map(|without_derived| Step::Reopen { without_derived }),
    ]
}

fn run(steps: &[Step], budget: u64) {
    let mut twins = Twins::new(budget);
    for step in steps {
        match step {
            Step::Append(events) => twins.append(&|| batch_of(events, &twins.whole.0)),
            Step::Fill(number) => (0..=number % 4).for_each(|_| twins.append(&|| filler(*number))),
            Step::Trim(thousandths) => twins.trim(*thousandths),
            Step::Copy { begin, running, restored } => twins.copy(*begin, *running, *restored),
            Step::Reopen { without_derived } => twins.reopen(*without_derived),
        }
    }
    twins.check();
    twins.reopen(true);
    twins.check();
    for (storage, store) in [twins.whole, twins.other] {
        store.close().expect("closes");
        let found = verify_on(shared(&storage), &|_| ControlFlow::Continue(()));
        assert_eq!(found.expect("verifies").problems, Vec::new());
    }
}

const ROUNDS: u32 = 24;

/// Random histories: few, or as many as `THALWEG_ROUNDS` says.
fn rounds() -> u32 {
    std::env::var("THALWEG_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: rounds(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Copies of copies, from anywhere, trimmed and reopened between: all that is left is as it was, and all that
    /// comes is as it would have been.
    #[test]
    fn a_copy_from_anywhere_goes_on_as_its_source(
        steps in prop::collection::vec(step(), 1..50),
        budget in prop_oneof![Just(0), Just(u64::MAX)],
    ) {
        run(&steps, budget);
    }
}

/// A closed store of some segments, of which the oldest are trimmed; and what it was before that.
fn trimmed_source(seed: u64) -> (MemoryStorage, Expected) {
    trimmed_source_of(&MemoryStorage::new(), seed)
}

/// As [`trimmed_source`], made of what `whole` then has.
fn trimmed_source_of(whole: &MemoryStorage, seed: u64) -> (MemoryStorage, Expected) {
    let store = open(whole, u64::MAX);
    let mut rng = Rng(seed);
    for number in 0..12 {
        append_every_kind(&store, &mut rng, 1, 12);
        let mut batch = MixedBatch::new();
        for _ in 0..40 {
            let event = wild_event(&mut rng, number * 40, 60, vec![number as u8]);
            batch.push(format!("s{}", rng.below(3)), &event).expect("within the limits");
        }
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("stored");
        (0..3).for_each(|_| {
            store.submit(filler(number), Ack::Ordered).expect("accepted").wait().expect("stored");
        });
    }
    store.cursor("consumer").expect("a cursor").commit(store.delivered() / 2).expect("commits");
    append_every_kind(&store, &mut rng, 2, 12);
    store.wait_committed(store.durable_end()).expect("ordered");
    store.close().expect("closes");
    let (storage, log) = (whole.fork(), expected(whole));
    // With a run each, so that the next trim makes one of four and takes their names away.
    let store = open(&storage, u64::MAX);
    for bytes in [9, 8, 7].map(|segments| segments * SEGMENT_BYTES) {
        let report = store.trim(&Trim::new().keep_bytes(bytes)).expect("trims");
        assert!(report.segments > 0, "{report:?}");
    }
    store.close().expect("closes");
    (storage, log)
}

/// The source, what it comes to when so many fillers are appended, and where it ends then.
fn growing_source(seed: u64) -> (MemoryStorage, Vec<(u64, Expected)>) {
    let whole = MemoryStorage::new();
    let source = trimmed_source_of(&whole, seed).0;
    let store = open(&whole, u64::MAX);
    let mut logs = Vec::new();
    for number in 0..=GROWTH {
        logs.push((store.durable_end(), expected(&whole)));
        store.submit(filler(number), Ack::Ordered).expect("accepted").wait().expect("stored");
    }
    (source, logs)
}

/// Fillers that are appended while a copy is made: some segments.
const GROWTH: u64 = 12;

/// Calls back before each operation of the thread that it was made in; what is done in the call is not counted.
struct Between {
    call: OnceLock<Box<dyn Fn(u64) + Send + Sync>>,
    thread: ThreadId,
    ops: AtomicU64,
    is_inside: AtomicBool,
}

impl Between {
    fn new() -> Arc<Self> {
        Arc::new(Between {
            call: OnceLock::new(),
            thread: thread::current().id(),
            ops: AtomicU64::new(0),
            is_inside: AtomicBool::new(false),
        })
    }

    /// A directory whose operations are counted too.
    fn over(self: &Arc<Self>, inner: &MemoryStorage) -> Arc<Hooked> {
        let between = Arc::clone(self);
        Arc::new(Hooked::new(inner.clone(), move |op| {
            if !matches!(op, Op::Lock(_)) {
                between.step();
            }
            Ok(())
        }))
    }

    fn step(&self) {
        let Some(call) = self.call.get() else { return };
        let is_own = thread::current().id() == self.thread;
        if is_own && !self.is_inside.swap(true, Ordering::SeqCst) {
            call(self.ops.fetch_add(1, Ordering::SeqCst));
            self.is_inside.store(false, Ordering::SeqCst);
        }
    }

    /// From now on, calls back with the number of each operation.
    fn call(&self, call: impl Fn(u64) + Send + Sync + 'static) {
        assert!(self.call.set(Box::new(call)).is_ok(), "there is a callback already");
    }

    /// How many operations there were since then.
    fn ops(&self) -> u64 {
        self.ops.load(Ordering::SeqCst)
    }
}

/// The source loses segments between any two operations of the copy, and others some operations later, and so on, while its
/// log grows. The copy has the log as it was at one moment, and the base that belongs to it.
fn trimmed_meanwhile(begin: Begin, running: bool) {
    let (source, logs) = growing_source(31);
    let delivered = logs[0].1.order.len() as u64;
    let from = options().open_read_only_on(shared(&source)).expect("opens").first();
    let mut firsts = std::collections::BTreeSet::new();
    let (mut op, mut with_trims) = (0, 0);
    loop {
        let storage = source.fork();
        let between = Between::new();
        let hooked = between.over(&storage);
        let store = options().open_on(hooked.clone()).expect("opens");
        let trimming = store.clone();
        between.call(move |now: u64| {
            if now < op || !(now - op).is_multiple_of(9) {
                return;
            }
            let trims = (now - op) / 9;
            for number in (4 * trims..).take(4) {
                if number < GROWTH {
                    let ticket = trimming.submit(filler(number), Ack::Ordered).expect("accepted");
                    ticket.wait().expect("stored");
                }
            }
            // All but the last segment, also what was not there a moment ago; or step by step.
            let keep = if op % 2 == 0 { 0 } else { 6_u64.saturating_sub(trims) };
            let trim = Trim::new().keep_bytes(keep * SEGMENT_BYTES).past_cursors();
            trimming.trim(&trim).expect("trims");
        });
        let target = MemoryStorage::new();
        let hooked_target = between.over(&target);
        let options_ = begin.options(delivered);
        let report = match running {
            true => store.backup_on(hooked_target, options_, GO_ON),
            false => backup_on(hooked, hooked_target, options_, GO_ON),
        };
        let ops = between.ops();
        let report = report.unwrap_or_else(|error| panic!("{begin:?}, trimmed at {op}: {error}"));
        assert_eq!(report.damaged, 0);
        is_good(&target, &report);
        // One from the frontier goes on behind the last segment, so it does not end where its source did.
        let is_it = |(end, log): &&(u64, Expected)| match begin {
            Begin::Frontier => log.order.len() as u64 == report.backup.first,
            _ => *end == report.backup.position,
        };
        let (_, log) = logs.iter().find(is_it).expect("the log of one moment");
        let copy = options().open_on(shared(&target)).expect("opens");
        check(&copy, log);
        assert_eq!(copy.first(), report.backup.first);
        assert!(copy.first() >= from);
        firsts.insert(copy.first());
        copy.close().expect("closes");
        with_trims += u32::from(store.first() > from);
        if ops < op {
            break;
        }
        // Many operations are reads of the same file.
        op += if rounds() > ROUNDS { 1 } else { 5 };
    }
    assert!(with_trims > 10, "{with_trims} of {op}");
    if let (Begin::Source, false) = (begin, running) {
        assert!(firsts.len() > 1, "a copy of what was left after a trim: {firsts:?}");
    }
}

#[test]
fn a_store_is_trimmed_while_it_is_backed_up() {
    trimmed_meanwhile(Begin::Source, true);
}

#[test]
fn a_store_is_trimmed_while_another_process_backs_it_up() {
    trimmed_meanwhile(Begin::Source, false);
}

#[test]
fn a_store_is_trimmed_while_a_copy_from_later_on_is_made() {
    trimmed_meanwhile(Begin::From(700), true);
    trimmed_meanwhile(Begin::From(700), false);
}

#[test]
fn a_store_is_trimmed_while_a_copy_from_the_frontier_is_made() {
    trimmed_meanwhile(Begin::Frontier, true);
    trimmed_meanwhile(Begin::Frontier, false);
}

/// It has no history, and all that rests on it.
#[test]
fn a_copy_from_the_frontier_has_the_state_and_nothing_else() {
    let storage = MemoryStorage::new();
    let store = open(&storage, u64::MAX);
    let submit = |store: &Store, events: &[(&str, NewEvent)]| {
        let mut batch = MixedBatch::new();
        for (stream, event) in events {
            batch.push(stream, event).expect("within the limits");
        }
        let ticket = store.submit(batch, Ack::Ordered).expect("accepted");
        ticket.wait().expect("stored").placements
    };
    let a = || Event::new("a").id("a").parents::<&str>([]);
    let late = || Event::new("late").id("late").parents(["missing", "a"]);
    submit(&store, &[("s", a()), ("s", Event::new("b").id("b").parents(["a"])), ("s", late())]);
    (0..8).for_each(|number| {
        store.submit(filler(number), Ack::Ordered).expect("accepted").wait().expect("stored");
    });
    store.cursor("consumer").expect("a cursor").commit(2).expect("commits");
    let copy = MemoryStorage::new();
    let frontier = BackupOptions::new().from_frontier();
    let report = store.backup_on(shared(&copy), frontier, GO_ON).expect("a backup");
    assert_eq!((report.backup.first, report.backup.delivered), (10, Some(10)));
    let names = copy.list().expect("lists");
    let segments = names.iter().filter(|name| name.ends_with(".wal"));
    assert_eq!(segments.count(), 1, "{names:?}");
    assert!(report.backup.bytes < 3 * SEGMENT_BYTES, "{names:?}");
    let copy = open(&copy, u64::MAX);
    assert_eq!((copy.first(), copy.delivered()), (10, 10));
    assert!(matches!(copy.get("s", "a"), Err(ReadError::Trimmed { first: 10 })));
    assert_eq!(copy.held().expect("held").len(), 1);
    // A duplicate, a conflict, a child of what is gone, and the parent that an event waits for.
    let placements = submit(
        &copy,
        &[
            ("s", a()),
            ("s", Event::new("other").id("b").parents(["a"])),
            ("s", Event::new("c").id("c").parents(["b"])),
            ("s", Event::new("missing").id("missing").parents::<&str>([])),
            ("filler-0", Event::new("chained")),
        ],
    );
    let text = format!("{placements:?}");
    let read: Vec<_> = copy.read(..).expect("reads").map(|event| event.expect("reads")).collect();
    let ids: Vec<_> = read.iter().map(|event| (event.global(), event.id().to_vec())).collect();
    assert_eq!(ids[..3], [(10, b"c".to_vec()), (11, b"missing".to_vec()), (12, b"late".to_vec())]);
    assert_eq!(read[3].local(), 3, "{text}");
    assert!(text.contains("Duplicate") && text.contains("Conflict"), "{text}");
    assert_eq!(copy.cursors()[0].at, 2);
}

/// What the source has forgotten, and what it remembers of what was trimmed: two copies of it, of which one begins later,
/// come to the same, whatever comes.
#[test]
fn a_copy_remembers_and_has_forgotten_what_its_source_has() {
    let (source, log) = trimmed_source(34);
    let store = open(&source, u64::MAX);
    let (mut rng, fillers) = (Rng(5), || {
        (0..4).for_each(|number| {
            store.submit(filler(number), Ack::Ordered).expect("accepted").wait().expect("stored");
        });
    });
    for keep in [5, 3, 2] {
        append_every_kind(&store, &mut rng, 1, 12);
        let trim = Trim::new().keep_bytes(keep * SEGMENT_BYTES).remember(25).past_cursors();
        assert!(store.trim(&trim).expect("trims").segments > 0);
        // What is forgotten stands at the beginning of the next segment.
        fillers();
    }
    for begin in [Begin::From(1000), Begin::Frontier] {
        let delivered = store.delivered();
        let stores = [Begin::Source, begin].map(|begin| {
            let target = MemoryStorage::new();
            let report = store.backup_on(shared(&target), begin.options(delivered), GO_ON);
            is_good(&target, &report.expect("a backup"));
            (open(&target, 0), target)
        });
        let first = stores[1].0.first();
        assert!(first > stores[0].0.first());
        for round in 0..12 {
            let batches = [(), ()].map(|()| {
                let mut rng = Rng(round);
                let mut batch = MixedBatch::new();
                // Each that was ever delivered once more: known, or new.
                for delivery in log.order.iter().filter(|_| round == 0) {
                    let SerialEvent { stream, id, .. } = &log.events[&delivery.position];
                    let event = Event::new("again").id(id.clone()).parents::<&str>([]);
                    batch.push(stream, &event).expect("within the limits");
                }
                for _ in 0..40 {
                    let event = wild_event(&mut rng, round * 40, 60, vec![round as u8]);
                    let stream = format!("s{}", rng.below(3));
                    batch.push(stream, &event).expect("within the limits");
                }
                batch
            });
            let receipts: Vec<_> = (stores.iter().zip(batches))
                .map(|((store, _), batch)| {
                    let ticket = store.submit(batch, Ack::Ordered).expect("accepted");
                    ticket.wait().expect("stored").placements
                })
                .collect();
            assert_eq!(receipts[0], receipts[1], "{begin:?}");
            if round == 0 {
                let again = &receipts[0][..log.order.len()];
                let count =
                    |wanted: fn(&Placement) -> bool| again.iter().filter(|it| wanted(it)).count();
                let forgotten = count(|it| matches!(it, Placement::Delivered { .. }));
                let known = count(|it| matches!(it, Placement::Conflict | Placement::Duplicate));
                assert!(forgotten > 20 && known > 5, "{forgotten} forgotten, {known} known");
            }
        }
        let [all, later] = stores.map(|(store, storage)| {
            let events = store.read(first..).expect("reads").map(|event| {
                let event = event.expect("reads");
                let parents = event.parents().expect("parents");
                (event.position(), event.local(), event.id().to_vec(), parents)
            });
            let events: Vec<_> = events.collect();
            let streams = format!("{:?}", store.streams().expect("streams"));
            let held = store.held().expect("held").into_iter();
            let held: Vec<_> = held.map(|event| (event.position, event.missing)).collect();
            store.close().expect("closes");
            let found = verify_on(shared(&storage), &|_| ControlFlow::Continue(()));
            assert_eq!(found.expect("verifies").problems, Vec::new());
            (events, streams, held)
        });
        assert!(all.0 == later.0, "other events, {begin:?}");
        assert_eq!((all.1, all.2), (later.1, later.2), "{begin:?}");
    }
}

/// What is left out has to be read, and to come to the order that there is. If it does not, there is no copy.
#[test]
fn a_copy_does_not_begin_behind_what_cannot_be_read() {
    let (source, log) = trimmed_source(32);
    let bases = bases(&source);
    let first = LogReader::open(&source, None).expect("opens").segments[0].number();
    common::flip(&source, &name::segment(first), 9000, 1);
    for begin in [Begin::From(900), Begin::Frontier] {
        let target = MemoryStorage::new();
        let options_ = begin.options(log.order.len() as u64);
        let made = backup_on(shared(&source), shared(&target), options_, GO_ON);
        let Err(BackupError::Read(ReadError::Damage(damage))) = made else { panic!("{made:?}") };
        assert!((damage.position..damage.resumes).contains(&(bases[0] + 9000)), "{damage}");
        let refused = verify_backup_on(&target, GO_ON);
        assert!(matches!(refused, Err(BackupError::NotABackup { .. })), "{refused:?}");
    }
    // As it is, it can be copied, and that is told.
    let target = MemoryStorage::new();
    let made = backup_on(shared(&source), shared(&target), BackupOptions::new(), GO_ON);
    assert_eq!(made.expect("a backup").damaged, 1);
}

/// Damage in what is kept of what was trimmed is told, too.
#[test]
fn damage_in_the_facts_is_told() {
    let (source, _) = trimmed_source(33);
    common::flip(&source, &name::facts(0), 4096 + 50, 1);
    let target = MemoryStorage::new();
    let report = backup_on(shared(&source), shared(&target), BackupOptions::new(), GO_ON);
    let report = report.expect("a backup");
    assert_eq!(report.damaged, 1);
    assert_eq!(report.first_damage.expect("named").file, name::facts(0));
}

/// An empty store, and one that has nothing but held events, have a copy from the frontier, too.
#[test]
fn a_store_without_deliveries_can_be_copied_from_its_frontier() {
    let storage = MemoryStorage::new();
    let mut store = open(&storage, u64::MAX);
    for held in 0..2 {
        let target = MemoryStorage::new();
        let frontier = BackupOptions::new().from_frontier();
        let report = store.backup_on(shared(&target), frontier, GO_ON).expect("a backup");
        assert_eq!((report.backup.first, report.backup.delivered), (0, Some(0)));
        is_good(&target, &report);
        store.close().expect("closes");
        store = open(&target, u64::MAX);
        assert_eq!(store.held().expect("held").len(), held);
        let mut batch = MixedBatch::new();
        let orphan = Event::new("").id(format!("{held}")).parents(["nobody"]);
        batch.push("s", &orphan).expect("within the limits");
        store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("stored");
    }
    common::append(&store, "other", "first");
    assert_eq!((store.delivered(), store.held().expect("held").len()), (1, 2));
}
