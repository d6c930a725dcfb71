//! A store that is damaged can be repaired, and then everything that is whole has the numbers and the bytes
//! that it had, what is lost is named, and the log alone says so again.

mod common;
#[path = "../../wal/tests/common/disk.rs"]
mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use common::files::{bytes, put, replace_all, snapshot};
use common::log::keep_the_log_only;
use common::{Expected, Rng, append_event, append_every_kind, expected, flip, shared};
use disk::{Disk, Fault};
use thalweg::reference::Delivery;
use thalweg::storage::{Access, MemoryStorage, Storage, write_all_at};
use thalweg::{
    Ack, BackupOptions, BackupProgress, Event, KnownBy, LogOpenError, LostEvent, MarkChange,
    MixedBatch, NewEvent, OpenError, Options, Placement, ReadError, RepairOptions, RepairReport,
    Store, Trim, Unproven, backup_on, repair_on, restore_on, verify_on,
};
use thalweg_wal::{LogReader, name};

fn open(storage: &MemoryStorage) -> Result<Store, OpenError> {
    Options::new().orderers(1).scanners(1).open_on(shared(storage))
}

fn read_only(storage: &MemoryStorage) -> Store {
    let store = Options::new().orderers(1).scanners(1).open_read_only_on(shared(storage));
    store.expect("opens for reading")
}

fn repaired(storage: &MemoryStorage) -> RepairReport {
    repair_on(shared(storage), &RepairOptions::new()).expect("repairs")
}

fn fill(store: &Store, rng: &mut Rng, count: u64) {
    append_every_kind(store, rng, count, 4);
}

fn closed_store(seed: u64, count: u64) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let store = open(&storage).expect("opens");
    fill(&store, &mut Rng(seed), count);
    store.close().expect("closes");
    storage
}

/// A closed store whose log has so many segments, each of a few frames.
fn segmented_store(seed: u64, segments: u64) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut rng = Rng(seed);
    for number in 1..=segments {
        let store = open(&storage).expect("opens");
        fill(&store, &mut rng, 8);
        if number < segments {
            // As after a crash: the next opening goes on in a new segment.
            store.checkpoint().expect("a checkpoint");
            let stopped = storage.fork();
            drop(store);
            replace_all(&storage, &stopped);
        } else {
            store.close().expect("closes");
        }
    }
    assert!(segment_numbers(&storage).len() as u64 >= segments, "{:?}", storage.list());
    storage
}

/// A closed store that was trimmed, of which so many segments are left, and what all of its log came to.
fn trimmed_store(seed: u64, left: usize) -> (MemoryStorage, Expected) {
    let storage = segmented_store(seed, left as u64 + 3);
    let before = expected(&storage);
    let log = LogReader::open(&storage, None).expect("opens");
    let begins = log.segments[log.segments.len() - left].base();
    let set_off = before.order.iter().position(|delivery| delivery.position >= begins);
    let first = set_off.expect("something is left") as u64;
    let store = open(&storage).expect("opens");
    let report = store.trim(&Trim::new().before(first).past_cursors()).expect("trims");
    assert_eq!((report.first, report.segments > 0), (first, true));
    store.close().expect("closes");
    assert_eq!(segment_numbers(&storage).len(), left, "{:?}", storage.list());
    (storage, before)
}

fn segment_numbers(storage: &MemoryStorage) -> Vec<u64> {
    let names = storage.list().expect("lists");
    let number = |name: &String| match name::kind(name) {
        name::Kind::Segment(number) => Some(number),
        _ => None,
    };
    names.iter().filter_map(number).collect()
}

/// What a repair has recorded as lost belongs to the log: without it, a copy would be damaged.
#[test]
fn a_repaired_store_can_be_backed_up_and_restored() {
    let storage = segmented_store(11, 3);
    let record = expected(&storage).records[5].0.clone();
    let segment = name::segment(segment_numbers(&storage)[0]);
    flip(&storage, &segment, record.start + 30, 1);
    let report = repaired(&storage);
    assert!(report.is_done && !report.lost.is_empty(), "{report:?}");
    let store = open(&storage).expect("opens");
    fill(&store, &mut Rng(12), 3);
    store.close().expect("closes");
    let go_on: &dyn Fn(BackupProgress) -> ControlFlow<()> = &|_| ControlFlow::Continue(());
    let options = BackupOptions::new;
    let (copy, restored) = (MemoryStorage::new(), MemoryStorage::new());
    // As another process makes it, and as the store makes it.
    let backup = backup_on(shared(&storage), shared(&copy), options(), go_on).expect("a backup");
    assert!(copy.list().expect("lists").contains(&name::losses().to_owned()));
    assert!(backup.backup.ordered > 0, "the order did not come along");
    let store = open(&storage).expect("opens");
    let live = MemoryStorage::new();
    let backup = store.backup_on(shared(&live), options(), go_on).expect("a backup");
    assert!(backup.backup.ordered > 0, "the order did not come along");
    assert_eq!(backup.backup.store_id, thalweg_wal::store_id(&storage).expect("a store"));
    store.close().expect("closes");
    restore_on(&copy, &restored, options(), go_on).expect("restores");
    for copy in [&restored, &live] {
        let verified = verify_on(shared(copy), &|_| ControlFlow::Continue(())).expect("verifies");
        assert!(verified.problems.is_empty(), "{:?}", verified.problems);
        let (copy, source) = (open(copy).expect("opens"), read_only(&storage));
        copy.wait_committed(copy.durable_end()).expect("ordered");
        assert_eq!(copy.delivered(), source.delivered());
        let read = |store: &Store| -> Vec<Result<Vec<u8>, String>> {
            let events = store.read(0..).expect("reads");
            let bytes = events.map(|event| match event {
                Ok(event) => Ok([event.id(), event.payload()].concat()),
                Err(error) => Err(error.to_string()),
            });
            bytes.collect()
        };
        assert!(read(&copy) == read(&source), "the copy is another");
    }
}

/// The backup of which a file is repaired is no backup any more: its manifest has other bytes.
#[test]
fn a_backup_that_is_repaired_is_a_store() {
    let (storage, copy) = (segmented_store(11, 3), MemoryStorage::new());
    let go_on: &dyn Fn(BackupProgress) -> ControlFlow<()> = &|_| ControlFlow::Continue(());
    backup_on(shared(&storage), shared(&copy), BackupOptions::new(), go_on).expect("a backup");
    let record = expected(&copy).records[5].0.clone();
    let segment = name::segment(segment_numbers(&copy)[0]);
    flip(&copy, &segment, record.start + 30, 1);
    assert!(repaired(&copy).is_done);
    let names = copy.list().expect("lists");
    assert!(names.iter().all(|other| name::kind(other) != name::Kind::Backup), "{names:?}");
}

/// A reader leaves a segment out whose header is lost and cannot be made again. A copy without it would
/// lose what a repair can still find, and go on under numbers that were given.
#[test]
fn no_backup_leaves_out_a_segment_whose_header_is_lost() {
    let storage = segmented_store(11, 3);
    let last = name::segment(*segment_numbers(&storage).last().expect("segments"));
    overwrite(&storage, &last, 0, &[0; 4096]);
    let go_on: &dyn Fn(BackupProgress) -> ControlFlow<()> = &|_| ControlFlow::Continue(());
    let target = shared(&MemoryStorage::new());
    let refused = backup_on(shared(&storage), target, BackupOptions::new(), go_on);
    let refused = refused.expect_err("a segment is not readable").to_string();
    assert!(refused.contains(&last) && refused.contains("repair"), "{refused}");
}

/// Nor is one made of a store whose record of what is lost is lost or damaged: the order would not come along,
/// which a repair needs.
#[test]
fn no_backup_is_made_without_what_is_recorded_as_lost() {
    let storage = segmented_store(11, 3);
    let record = expected(&storage).records[5].0.clone();
    flip(&storage, &name::segment(segment_numbers(&storage)[0]), record.start + 30, 1);
    assert!(repaired(&storage).is_done);
    open(&storage).expect("opens").close().expect("closes");
    let (gone, damaged) = (storage.fork(), storage.fork());
    gone.remove(name::losses()).expect("removes");
    flip(&damaged, name::losses(), 60, 1);
    let go_on: &dyn Fn(BackupProgress) -> ControlFlow<()> = &|_| ControlFlow::Continue(());
    for source in [gone, damaged] {
        let target = shared(&MemoryStorage::new());
        let refused = backup_on(shared(&source), target, BackupOptions::new(), go_on);
        let refused = refused.expect_err("the losses are not readable").to_string();
        assert!(refused.contains(name::losses()) && refused.contains("repair"), "{refused}");
    }
}

/// Where a mark is lost, or an event for which a mark was refused, a cursor comes elsewhere: to where its
/// consumer would see events again, or miss some. Nobody learned of it.
#[test]
fn cursors_that_come_elsewhere_are_named() {
    let storage = MemoryStorage::new();
    let store = open(&storage).expect("opens");
    fill(&store, &mut Rng(5), 10);
    for (name, next) in [("back", 3), ("back", 5), ("on", 2), ("same", 4)] {
        store.cursor(name).expect("a cursor").commit(next).expect("commits");
    }
    let mut batch = MixedBatch::new();
    batch.push("t", &Event::new("refused for its place").if_local(7)).expect("within the limits");
    batch.push_mark("on", MarkChange::Advance(6)).expect("within the limits");
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
    assert_eq!(store.cursor("on").expect("a cursor").at(), 2);
    store.cursor("same").expect("a cursor").commit(5).expect("commits");
    fill(&store, &mut Rng(6), 2);
    store.close().expect("closes");
    let segment = name::segment(segment_numbers(&storage)[0]);
    let content = bytes(&storage, &segment);
    let find = |wanted: &[u8]| {
        let at = content.windows(wanted.len()).rposition(|found| found == wanted);
        at.expect("it is there") as u64
    };
    flip(&storage, &segment, find(b"back\x05\0\0\0"), 1);
    flip(&storage, &segment, find(b"refused for its place"), 1);
    let report = repaired(&storage);
    assert!(report.is_done, "{report:?}");
    let moved: Vec<_> = report.cursors.iter().map(|cursor| (cursor.was, cursor.at)).collect();
    assert_eq!(moved, [(Some(5), Some(3)), (Some(2), Some(6))], "{report:?}");
    assert!(report.to_json().contains("{\"cursor\":\"back\",\"was\":5,\"at\":3}"));
    let store = open(&storage).expect("opens");
    let at = |name: &str| store.cursor(name).expect("a cursor").at();
    assert_eq!((at("back"), at("on"), at("same")), (3, 6, 5));
}

/// What can be read has its old numbers and bytes, but for the ids of the deliveries `nameless`; returns the global sequences that are errors.
fn check_numbers(store: &Store, before: &Expected, nameless: &[u64]) -> BTreeSet<u64> {
    let _ = store.wait_committed(store.durable_end());
    let mut lost = BTreeSet::new();
    let mut read = store.read(..before.order.len() as u64).expect("reads");
    let first = store.first();
    for (global, delivery) in (first..).zip(&before.order[first as usize..]) {
        let event = match read.next().expect("as many as before") {
            Ok(event) => event,
            Err(ReadError::Damage(_)) => {
                lost.insert(global);
                continue;
            }
            Err(other) => panic!("{other:?}"),
        };
        let known = &before.events[&delivery.position];
        assert_eq!(
            (event.global(), event.local(), event.position()),
            (global, delivery.local, delivery.position)
        );
        assert_eq!(event.stream(), known.stream);
        assert_eq!((event.id(), event.payload()), (&known.id[..], &known.payload[..]));
        match event.parents() {
            // The id of a parent can be lost with it.
            Ok(parents) if parents != delivery.parents => {
                let both = format!("global {global}: {parents:?} {:?}", delivery.parents);
                assert_eq!(parents.len(), delivery.parents.len(), "{both}");
                for (parent, was) in parents.iter().zip(&delivery.parents) {
                    let is_nameless = nameless.iter().any(|&global| {
                        let event = &before.events[&before.order[global as usize].position];
                        event.id == *was && event.stream == delivery.stream
                    });
                    assert!(parent == was || is_nameless, "{both}");
                }
            }
            Ok(_) => {}
            Err(error) => assert!(matches!(error, ReadError::Damage(_)), "{error:?}"),
        }
    }
    lost
}

/// Global and local sequence, position and id of an event.
type Shown = (u64, u64, u64, Vec<u8>);

fn shown(store: &Store) -> Vec<Option<Shown>> {
    store.wait_committed(store.durable_end()).expect("everything is ordered");
    let show = |event: Result<Event, ReadError>| {
        let event = event.ok()?;
        Some((event.global(), event.local(), event.position(), event.id().to_vec()))
    };
    store.read(..).expect("reads").map(show).collect()
}

/// After a repair: it opens, everything whole is as it was, it goes on, and the log alone comes to the same.
fn check_repaired(storage: &MemoryStorage, before: &Expected, report: &RepairReport, what: &str) {
    assert!(report.is_done && report.unproven.is_none(), "{what}: {report:?}");
    let again = repaired(storage);
    assert!(!again.is_needed && again.is_done, "{what}: {again:?}");
    let reader = read_only(storage);
    let is_nameless = |event: &&LostEvent| event.known_by != KnownBy::Proof;
    let nameless = report.lost_events.iter().filter(is_nameless);
    let nameless: Vec<u64> = nameless.map(|event| event.global).collect();
    let lost = check_numbers(&reader, before, &nameless);
    assert_eq!(reader.stats().corrupt, 0, "{what}: what is lost is no damage any more");
    drop(reader);
    let store = open(storage).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(check_numbers(&store, before, &nameless), lost, "{what}");
    let named: BTreeSet<u64> = report.lost_events.iter().map(|event| event.global).collect();
    assert_eq!(named, lost, "{what}");
    for event in &report.lost_events {
        let delivery = &before.order[event.global as usize];
        assert_eq!((event.local, event.position), (delivery.local, delivery.position), "{what}");
        let is_lost = |at: u64| report.lost.iter().any(|lost| lost.contains(&at));
        assert!(is_lost(event.position), "{what}");
    }
    fill(&store, &mut Rng(77), 3);
    let live = shown(&store);
    store.close().expect("closes");
    let verified = verify_on(shared(storage), &|_| ControlFlow::Continue(())).expect("verifies");
    assert_eq!(verified.problems, [], "{what}");
    // A crash costs what is derived, and it comes to the same.
    keep_the_log_only(storage);
    let store = open(storage).expect("opens");
    assert_eq!(shown(&store), live, "{what}");
    store.close().expect("closes");
    let verified = verify_on(shared(storage), &|_| ControlFlow::Continue(())).expect("verifies");
    assert_eq!(verified.problems, [], "{what}");
}

/// All bytes of the quarantine that were kept of a file, by offset.
fn kept(storage: &MemoryStorage, report: &RepairReport, file: &str) -> BTreeMap<u64, Vec<u8>> {
    let folder = report.quarantine.as_ref().expect("something was kept");
    let prefix = format!("{folder}/{file}.bytes-");
    let mut kept = BTreeMap::new();
    for name in storage.list().expect("lists") {
        if let Some(rest) = name.strip_prefix(&prefix) {
            let from = rest.split('-').next().expect("an offset").parse().expect("a number");
            kept.insert(from, bytes(storage, &name));
        }
    }
    kept
}

/// The event at `position` is lost, if it was delivered, and no other; what is said of it is true.
fn check_lost_alone(position: u64, before: &Expected, report: &RepairReport, what: &str) {
    let is_it = |(_, delivery): &(u64, &Delivery)| delivery.position == position;
    let delivered: Vec<u64> =
        (0..).zip(&before.order).filter(is_it).map(|(global, _)| global).collect();
    let lost: Vec<u64> = report.lost_events.iter().map(|event| event.global).collect();
    assert_eq!(lost, delivered, "{what}");
    for event in &report.lost_events {
        let known = &before.events[&event.position];
        assert_eq!(event.stream, known.stream, "{what}");
        assert!(event.id.as_ref().is_none_or(|id| *id == known.id), "{what}: {event:?}");
    }
}

#[test]
fn a_flipped_bit_in_any_record_costs_that_record_alone() {
    let storage = closed_store(1, 16);
    let before = expected(&storage);
    let segment = name::segment(1);
    let (mut rng, mut which) = (Rng::from_env(), Rng::from_env());
    for (place, _) in before.records.iter().filter(|_| which.once_in(3)) {
        let damaged = storage.fork();
        let offset = place.start + rng.below(place.end - place.start);
        flip(&damaged, &segment, offset, 1 << rng.below(8));
        let bad = bytes(&damaged, &segment);
        let report = repaired(&damaged);
        assert!(report.is_needed);
        let what = format!("{place:?} at {offset}");
        check_lost_alone(place.start, &before, &report, &what);
        let kept = kept(&damaged, &report, &segment);
        let (&from, piece) = kept.range(..=offset).next_back().expect("kept");
        assert_eq!(*piece, bad[from as usize..][..piece.len()], "{what}");
        assert!(from + piece.len() as u64 > offset, "{what}");
        check_repaired(&damaged, &before, &report, &what);
    }
}

/// What was trimmed is no loss, and tells of parents, tips and held events as if it were there.
#[test]
fn a_flipped_bit_in_a_record_of_a_trimmed_store_costs_that_record_alone() {
    let (storage, before) = trimmed_store(3, 3);
    let first = read_only(&storage).first();
    let log = LogReader::open(&storage, None).expect("opens");
    let begins = log.segments[0].base();
    let (mut rng, mut which) = (Rng::from_env(), Rng::from_env());
    let left = before.records.iter().filter(|(place, _)| place.start >= begins);
    for (place, _) in left.filter(|_| which.once_in(3)) {
        let damaged = storage.fork();
        let after = log.segments.partition_point(|segment| segment.base() <= place.start);
        let offset = place.start + rng.below(place.end - place.start);
        let in_segment = offset - log.segments[after - 1].base();
        flip(&damaged, &nth(&damaged, after), in_segment, 1 << rng.below(8));
        let report = repaired(&damaged);
        let what = format!("{place:?} at {offset}");
        check_lost_alone(place.start, &before, &report, &what);
        check_repaired(&damaged, &before, &report, &what);
        assert_eq!(read_only(&damaged).first(), first, "{what}");
    }
}

#[test]
fn a_store_that_is_whole_is_left_alone() {
    let storage = closed_store(2, 10);
    let before = snapshot(&storage);
    let report = repaired(&storage);
    assert!(report.is_done && !report.is_needed && report.quarantine.is_none());
    assert_eq!(snapshot(&storage), before);
}

const HEADER_PAGE: usize = 4096;

/// Something that happens to the files of a store with four segments.
type Harm = fn(&MemoryStorage, &mut Rng);

fn overwrite(storage: &MemoryStorage, name: &str, offset: usize, bytes: &[u8]) {
    let file = storage.open(name, Access::Write).expect("opens");
    write_all_at(&*file, bytes, offset as u64).expect("writes");
}

/// End of what is not zero.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

/// Name of a segment, by its place among those that are there.
fn nth(storage: &MemoryStorage, place: usize) -> String {
    let mut numbers = segment_numbers(storage);
    numbers.sort_unstable();
    name::segment(numbers[place - 1])
}

fn cut(storage: &MemoryStorage, place: usize, len: impl Fn(usize) -> usize) {
    let name = nth(storage, place);
    let bytes = bytes(storage, &name);
    put(storage, &name, &bytes[..len(used(&bytes))]);
}

fn another_store() -> MemoryStorage {
    segmented_store(99, 4)
}

/// What happens, whether writers refuse the store for it, and whether anything is lost by it.
const HARMS: [(&str, Harm, bool, bool); 21] = [
    ("a copy of a header", |s, rng| flip(s, &nth(s, 2), rng.below(80), 4), true, false),
    ("a header page", |s, _| overwrite(s, &nth(s, 2), 0, &[7; HEADER_PAGE]), true, false),
    ("the header page of the first", |s, _| overwrite(s, &nth(s, 1), 0, &[0; 4096]), true, false),
    ("the header page of the last", |s, _| overwrite(s, &nth(s, 4), 0, &[7; 4096]), true, true),
    ("a frame header", |s, _| flip(s, &nth(s, 3), 4096 + 17, 1), false, false),
    ("a frame header of the last", |s, _| flip(s, &nth(s, 4), 4096 + 17, 1), false, false),
    (
        "a stretch of noise",
        |s, rng| overwrite(s, &nth(s, 2), 5000, &[rng.below(255) as u8 + 1; 900]),
        false,
        true,
    ),
    ("a stretch of zeros", |s, _| overwrite(s, &nth(s, 3), 4096, &[0; 1500]), false, true),
    (
        "all of a segment in zeros",
        |s, _| put(s, &nth(s, 2), &vec![0; bytes(s, &nth(s, 2)).len()]),
        true,
        true,
    ),
    (
        "all of the last segment in zeros",
        |s, _| put(s, &nth(s, 4), &vec![0; bytes(s, &nth(s, 4)).len()]),
        true,
        true,
    ),
    (
        "the end of the last segment",
        |s, _| {
            let end = used(&bytes(s, &nth(s, 4)));
            overwrite(s, &nth(s, 4), end - 700, &[0; 700]);
        },
        true,
        true,
    ),
    ("the first segment is missing", |s, _| s.remove(&nth(s, 1)).expect("there"), true, true),
    ("one in the middle is missing", |s, _| s.remove(&nth(s, 2)).expect("there"), true, true),
    (
        "two neighbours are missing",
        |s, _| (0..2).for_each(|_| s.remove(&nth(s, 2)).expect("there")),
        true,
        true,
    ),
    ("the last segment is missing", |s, _| s.remove(&nth(s, 4)).expect("there"), true, true),
    ("one is cut", |s, _| cut(s, 2, |used| used * 2 / 3), true, true),
    ("the last is cut", |s, _| cut(s, 4, |used| used - 333), true, true),
    (
        "two are swapped",
        |s, _| {
            let (second, third) = (nth(s, 2), nth(s, 3));
            let (one, other) = (bytes(s, &second), bytes(s, &third));
            put(s, &second, &other);
            put(s, &third, &one);
        },
        true,
        false,
    ),
    (
        "one is there twice",
        |s, _| put(s, &name::segment(segment_numbers(s)[3] + 1), &bytes(s, &nth(s, 3))),
        true,
        false,
    ),
    (
        "one is renamed",
        |s, _| s.rename(&nth(s, 2), &name::segment(77)).expect("renames"),
        true,
        false,
    ),
    (
        "one is of another store",
        |s, _| put(s, &nth(s, 3), &bytes(&another_store(), &name::segment(3))),
        true,
        true,
    ),
];

/// Everything that can happen to a segment: before a repair writers refuse the store by name, and readers
/// have the rest with its numbers; after it everything is there that was whole.
#[test]
fn a_store_is_repaired_whatever_happened_to_a_segment() {
    let whole = segmented_store(4, 4);
    repair_whatever_happened(&whole, &expected(&whole));
}

/// The same of what is left of a store that was trimmed: no number changes, whatever was before.
#[test]
fn a_trimmed_store_is_repaired_whatever_happened_to_a_segment() {
    let (trimmed, before) = trimmed_store(6, 4);
    repair_whatever_happened(&trimmed, &before);
}

fn repair_whatever_happened(whole: &MemoryStorage, before: &Expected) {
    for (what, harm, is_refused, is_costly) in HARMS {
        let storage = whole.fork();
        harm(&storage, &mut Rng(5));
        let harmed = snapshot(&storage);
        if is_refused {
            let Err(OpenError::Log(error)) = open(&storage.fork()) else { panic!("{what}: opens") };
            let is_named = matches!(
                error,
                LogOpenError::Damaged(_)
                    | LogOpenError::SegmentMissing { .. }
                    | LogOpenError::SegmentForeign { .. }
            );
            assert!(is_named && error.to_string().contains("`repair`"), "{what}: {error}");
        }
        let reader = read_only(&storage);
        let unreadable = check_numbers(&reader, before, &[]);
        assert!(unreadable.len() < before.order.len(), "{what}: nothing can be read");
        assert_eq!(!unreadable.is_empty(), is_costly, "{what}");
        drop(reader);
        let dry = RepairOptions::new().dry_run(true);
        let foreseen = repair_on(shared(&storage), &dry).expect("looks");
        assert!(foreseen.is_needed && !foreseen.is_done && foreseen.quarantine.is_none(), "{what}");
        assert!(snapshot(&storage) == harmed, "{what}: a dry run changes nothing");
        let report = repaired(&storage);
        assert_eq!((&report.lost, &report.lost_events), (&foreseen.lost, &foreseen.lost_events));
        // All bytes that were there are there: in the log or in quarantine.
        let after = snapshot(&storage);
        for (file, bytes) in &harmed {
            let name::Kind::Segment(_) = name::kind(file) else { continue };
            let in_log = after.values().any(|other| other == bytes);
            let kept = report.quarantine.as_ref().and_then(|_| {
                let kept = kept(&storage, &report, file);
                let mut is_kept = bytes.clone();
                let new = after.get(file)?;
                for (at, piece) in &kept {
                    is_kept[*at as usize..][..piece.len()].copy_from_slice(
                        new.get(*at as usize..*at as usize + piece.len()).unwrap_or(piece),
                    );
                }
                Some(new.starts_with(&is_kept) || is_kept.starts_with(new))
            });
            assert!(in_log || kept == Some(true) || used(bytes) == 0, "{what}: {file}");
        }
        check_repaired(&storage, before, &report, what);
    }
}

/// Without the order log nobody knows what a lost record has taken with it: that is said, and nothing is
/// done until it is accepted.
#[test]
fn without_evidence_a_repair_asks_first() {
    let storage = closed_store(3, 12);
    let before = expected(&storage);
    let lost = before.order[before.order.len() / 2].position;
    flip(&storage, &name::segment(1), lost + 26, 1);
    keep_the_log_only(&storage);
    let harmed = snapshot(&storage);
    let report = repaired(&storage);
    assert!(!report.is_done && report.is_needed);
    assert!(
        matches!(report.unproven, Some(Unproven::NoEvidence { lost_from, .. }) if lost_from == lost)
    );
    assert!(snapshot(&storage) == harmed, "a refused repair changes nothing");
    let accept = RepairOptions::new().accept_renumbering(true);
    let report = repair_on(shared(&storage), &accept).expect("repairs");
    assert!(report.is_done && report.unproven.is_some());
    let store = open(&storage).expect("opens");
    assert_eq!(shown(&store).len() as u64, store.stats().delivered);
    fill(&store, &mut Rng(1), 2);
    store.close().expect("closes");
    let verified = verify_on(shared(&storage), &|_| ControlFlow::Continue(())).expect("verifies");
    assert_eq!(verified.problems, []);
    assert!(!repaired(&storage).is_needed);
}

/// Damage of any shape to a store of any shape, closed or as a kill leaves it. A repair that says that all
/// numbers stay is right; that it cannot say so is the exception.
#[test]
fn random_damage_is_repaired_or_asked_about() {
    let mut rng = Rng::from_env();
    let (mut asked, rounds) = (0, 24);
    for round in 0..rounds {
        let storage = MemoryStorage::new();
        let store = open(&storage).expect("opens");
        fill(&store, &mut Rng(rng.next()), 12);
        let killed = storage.fork();
        store.close().expect("closes");
        let storage = if rng.once_in(3) { killed } else { storage };
        let before = expected(&storage);
        let segment = name::segment(1);
        for _ in 0..1 + rng.below(3) {
            let (place, _) = &before.records[rng.below(before.records.len() as u64) as usize];
            match rng.below(3) {
                0 => flip(&storage, &segment, place.start + rng.below(24), 1 << rng.below(8)),
                1 => overwrite(&storage, &segment, place.start as usize, &[0; 24]),
                _ => {
                    // In front of the last record, so that what was killed does not look like a torn tail.
                    let len = (before.end - place.start).min(rng.below(400)) as usize;
                    overwrite(&storage, &segment, place.start as usize, &vec![0xA5; len]);
                }
            }
        }
        let report = repaired(&storage);
        if !report.is_needed {
            continue;
        }
        let what = format!("round {round}");
        println!("{what}: log to {}, {} delivered: {report:?}", before.end, before.order.len());
        match &report.unproven {
            None => check_repaired(&storage, &before, &report, &what),
            // Of what a kill has left behind the last delivery nothing is known, as it should be.
            Some(Unproven::NoEvidence { lost_from, .. }) => {
                let newest = before.order.iter().map(|delivery| delivery.position).max();
                assert!(
                    newest.is_some_and(|newest| report.lost.iter().any(|lost| lost.end > newest))
                );
                assert!(report.lost.iter().any(|lost| lost.contains(lost_from)), "{what}");
            }
            Some(unproven) => {
                println!("{what}: {unproven}");
                asked += 1;
            }
        }
    }
    assert!(asked * 6 <= rounds, "{asked} of {rounds} could not be shown to keep their numbers");
}

/// What is recorded as lost is a part of the log: without it, nothing may be made of the rest.
#[test]
fn losses_that_are_lost_are_missed() {
    let storage = closed_store(3, 12);
    let before = expected(&storage);
    // In its checksum, so that all it was is known.
    flip(&storage, &name::segment(1), before.order[9].position + 1, 1);
    let report = repaired(&storage);
    assert_eq!(check_numbers(&read_only(&storage), &before, &[]), BTreeSet::from([9]));
    open(&storage).expect("opens").close().expect("closes");
    for harm in 0..2 {
        let storage = storage.fork();
        match harm {
            0 => storage.remove(name::losses()).expect("there"),
            _ => flip(&storage, name::losses(), 70, 1),
        }
        let Err(OpenError::Log(error)) = open(&storage) else { panic!("opens") };
        assert!(matches!(error, LogOpenError::Losses { .. }), "{error:?}");
        let verified = verify_on(shared(&storage), &|_| ControlFlow::Continue(())).expect("runs");
        assert!(verified.problems.iter().any(|problem| problem.file == name::losses()));
        assert_eq!(check_numbers(&read_only(&storage), &before, &[]), BTreeSet::from([9]));
        let again = repaired(&storage);
        assert_eq!(again.lost_events.len(), 1);
        assert_eq!(again.lost, report.lost);
        check_repaired(&storage, &before, &again, &format!("the losses are made again: {harm}"));
    }
}

/// What is lost twice is lost once.
#[test]
fn a_store_can_be_repaired_again_for_new_damage() {
    let storage = closed_store(3, 12);
    let before = expected(&storage);
    let mut lost = BTreeSet::new();
    for global in [9, 10, 4] {
        flip(&storage, &name::segment(1), before.order[global].position + 5, 1);
        let report = repaired(&storage);
        assert!(report.is_done && report.unproven.is_none(), "{report:?}");
        lost.insert(global as u64);
        let store = open(&storage).expect("opens");
        assert_eq!(check_numbers(&store, &before, &[4, 9, 10]), lost);
        store.close().expect("closes");
    }
}

fn on_disk(storage: &MemoryStorage) -> Disk {
    let disk = Disk::new();
    for (name, bytes) in snapshot(storage) {
        let file = disk.create(&name, bytes.len() as u64).expect("creates");
        write_all_at(&*file, &bytes, 0).expect("writes");
        file.sync().expect("syncs");
    }
    disk.sync_dir().expect("syncs");
    disk
}

fn in_memory(disk: &Disk) -> MemoryStorage {
    let storage = MemoryStorage::new();
    for name in disk.names() {
        put(&storage, &name, &bytes(disk, &name));
    }
    storage
}

/// A repair that is cut short, by a crash or an error at any operation, leaves a store that is repaired by
/// the next: with the same numbers, and until then no writer makes anything else of it.
#[test]
fn a_repair_can_be_cut_short_at_any_operation() {
    let whole = segmented_store(6, 4);
    let before = expected(&whole);
    let harms: [(&str, Harm); 4] = [
        ("noise", |s, _| overwrite(s, &name::segment(3), 5000, &[9; 400])),
        ("missing and cut", |s, _| {
            s.remove(&name::segment(2)).expect("there");
            cut(s, 3, |used| used - 500);
        }),
        ("swapped and damaged", |s, _| {
            let (one, other) = (bytes(s, &name::segment(2)), bytes(s, &name::segment(3)));
            put(s, &name::segment(2), &other);
            put(s, &name::segment(3), &one);
            overwrite(s, &name::segment(1), 5000, &[9; 400]);
        }),
        ("the last is noise", |s, _| overwrite(s, &name::segment(4), 0, &[7; 5000])),
    ];
    for (what, harm) in harms {
        let harmed = whole.fork();
        harm(&harmed, &mut Rng(1));
        let reference = harmed.fork();
        let expected_report = repaired(&reference);
        assert!(
            expected_report.is_done && expected_report.unproven.is_none(),
            "{expected_report:?}"
        );
        let lost_events = || expected_report.lost_events.iter();
        let nameless: Vec<u64> =
            lost_events().filter(|event| event.id.is_none()).map(|event| event.global).collect();
        let named: BTreeSet<u64> = lost_events().map(|event| event.global).collect();
        let base = on_disk(&harmed);
        let mut op = 1;
        loop {
            let disk = base.power_loss(|| true);
            let start = disk.ops();
            let fault = if op % 3 == 0 { Fault::Error } else { Fault::Stop };
            disk.fail_at(start + op, fault);
            let result = repair_on(Arc::new(disk.clone()), &RepairOptions::new());
            if disk.ops() < start + op {
                assert!(result.is_ok());
                break;
            }
            for seed in 0..2 {
                let crashed = disk.crash(op * 2 + seed);
                let storage = in_memory(&crashed);
                println!("{what}: operation {op}, {fault:?}, {result:?}");
                if let Ok(store) = open(&storage.fork()) {
                    // Whole already, or as damaged as before.
                    check_numbers(&store, &before, &nameless);
                }
                let again = repaired(&storage);
                assert!(again.is_done && again.unproven.is_none(), "{again:?}");
                assert!(!repaired(&storage).is_needed);
                let store = open(&storage).expect("opens");
                assert_eq!(check_numbers(&store, &before, &nameless), named);
                drop(store);
            }
            op += 1;
        }
        assert!(op > 8, "{what}: there are operations to fail: {op}");
    }
}

/// Of neighbours that are missing, the longer one came last. The first was made as long, so that the next that is there
/// did not follow them, and the repair of that lost all of it.
#[test]
fn missing_neighbours_of_different_lengths_are_made_again() {
    let storage = segmented_store(4, 7);
    let before = expected(&storage);
    let len = |place| bytes(&storage, &nth(&storage, place)).len();
    assert!(len(5) < len(6));
    let (first, second) = (nth(&storage, 5), nth(&storage, 6));
    [first, second].iter().for_each(|name| storage.remove(name).expect("there"));
    let report = repaired(&storage);
    check_repaired(&storage, &before, &report, "neighbours");
}

/// Ids that were forgotten are forgotten for the machine of a repair too, where the log says so: an event that took one
/// again was delivered.
#[test]
fn a_repair_forgets_what_the_log_says() {
    let storage = MemoryStorage::new();
    let options = Options::new().orderers(1).scanners(1).segment_bytes(1 << 20);
    let store = options.open_on(shared(&storage)).expect("opens");
    let append = |stream: &str, event: NewEvent| append_event(&store, stream, &event);
    let filler = || append("filler", Event::new(vec![7; 300 << 10]));
    append("s", Event::new("").id("a"));
    append("s", Event::new("").id("b"));
    (0..8).for_each(|_| drop(filler()));
    let trim = Trim::new().keep_bytes(0).past_cursors().remember(0);
    assert!(store.trim(&trim).expect("trims").events > 2);
    // The next segments say so.
    (0..8).for_each(|_| drop(filler()));
    let again = append("s", Event::new("other").id("a"));
    assert!(matches!(again.placements[..], [Placement::Delivered { .. }]), "{again:?}");
    let newest = store.read(..).expect("reads").last().expect("an event").expect("reads");
    append("s", Event::new("last"));
    let before = shown(&store);
    store.close().expect("closes");
    let place = newest.position() - 1000;
    let log = LogReader::open(&storage, None).expect("opens");
    let after = log.segments.partition_point(|segment| segment.base() <= place);
    flip(&storage, &nth(&storage, after), place - log.segments[after - 1].base(), 1);
    let report = repaired(&storage);
    assert!(report.is_done && report.unproven.is_none(), "{report:?}");
    let lost: Vec<u64> = report.lost_events.iter().map(|event| event.global).collect();
    assert_eq!(lost, [newest.global() - 1]);
    keep_the_log_only(&storage);
    let now = shown(&open(&storage).expect("opens"));
    let differ = before.iter().zip(&now).filter(|(before, now)| before != now);
    assert_eq!((now.len(), differ.count()), (before.len(), 1));
}

/// What stands in for a lost event takes the tips of the base that it had as parents, and no others; and an event
/// that names a trimmed parent says nothing of what is lost.
#[test]
fn a_lost_event_behind_the_trim_point_goes_on_from_what_was_trimmed() {
    let storage = MemoryStorage::new();
    let options = Options::new().orderers(1).scanners(1).segment_bytes(1 << 20);
    let store = options.open_on(shared(&storage)).expect("opens");
    let append = |stream: &str, event: NewEvent| append_event(&store, stream, &event).position;
    let listing =
        |id: &str, parents: &[&'static str]| Event::new("").id(id).parents(parents.to_vec());
    append("s", listing("root", &[]));
    append("s", listing("a", &["root"]));
    append("s", listing("b", &[]));
    for _ in 0..4 {
        append("filler", Event::new(vec![7; 300 << 10]));
    }
    let report = store.trim(&Trim::new().keep_bytes(0).past_cursors()).expect("trims");
    assert!(report.first > 2, "{report:?}");
    let lost = append("s", listing("lost", &["a"]));
    append("s", listing("of root", &["root"]));
    append("s", Event::new("").id("chained"));
    let before = shown(&store);
    // No run has the key of the lost id yet.
    let storage = storage.fork();
    drop(store);
    let log = LogReader::open(&storage, None).expect("opens");
    let after = log.segments.partition_point(|segment| segment.base() <= lost);
    let at = lost - log.segments[after - 1].base();
    let event = log.segments[after - 1].record(lost).expect("an event");
    let len = event.len() as usize;
    overwrite(&storage, &nth(&storage, after), at as usize, &vec![0; len]);
    let report = repaired(&storage);
    assert!(report.is_done && report.unproven.is_none(), "{report:?}");
    let [event] = &report.lost_events[..] else { panic!("{report:?}") };
    assert_eq!((event.position, &event.stream[..], &event.id), (lost, &b"s"[..], &None));
    keep_the_log_only(&storage);
    let store = open(&storage).expect("opens");
    let differ = before.iter().zip(&shown(&store)).filter(|(before, now)| before != now).count();
    assert_eq!(differ, 1);
    let chained = store.get("s", "chained").expect("gets").expect("is there");
    let parents = chained.parents().expect("parents");
    assert_eq!((parents.len(), &parents[0][..], &parents[2][..]), (3, &b"b"[..], &b"of root"[..]));
}
