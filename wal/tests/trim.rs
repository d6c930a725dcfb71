//! A log whose first segments are given up: it begins where the trim says, for everybody who opens it.

mod common;
#[path = "common/hooked.rs"]
mod hooked;

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use common::{
    Event, HEADER_PAGE, MIB, OPTIONS, append_frames, bytes_of, flip, frame_of, hint, open, patch,
    put, read, snapshot, walk, whole,
};
use hooked::{Hooked, Op};
use thalweg_wal::format::{Fault, SegmentHeader};
use thalweg_wal::storage::{MemoryStorage, OsStorage, Storage, link, read_file};
use thalweg_wal::{
    LogFollower, LogOptions, LogReader, LogWriter, LossBuilder, OpenError, Segment, Substitute,
    Survey, TRIM_HEADER_LEN, TailReport, TrimPoint, TrimWriter, Trimmed, name, retire, store_id,
};

const BODY: &[u8] = b"what ordering needs of it";

/// Fills nearly half of a segment.
fn frame(index: u8) -> Vec<Event> {
    vec![Event::new("s", [index], vec![index; 400_000])]
}

fn events(indexes: std::ops::Range<u8>) -> Vec<Event> {
    indexes.flat_map(frame).collect()
}

/// A log of five segments with two frames each, closed, and its segments.
fn log(storage: &MemoryStorage) -> Vec<Arc<Segment>> {
    let mut writer = open(storage, None).expect("creates").writer;
    append_frames(&mut writer, &(0..10).map(frame).collect::<Vec<_>>());
    drop(writer);
    let segments = read(storage, None).expect("reads").segments;
    assert_eq!(segments.len(), 5);
    segments
}

fn begin(storage: &dyn Storage, store_id: [u8; 16], point: TrimPoint) {
    let mut writer =
        TrimWriter::create(storage, store_id, point, BODY.len() as u64).expect("begins");
    writer.write(BODY).expect("writes");
    writer.finish().expect("trims");
}

/// Has the log begin with segment `number` of these, and unlinks the rest.
fn trim(storage: &dyn Storage, segments: &[Arc<Segment>], number: u64) -> TrimPoint {
    let point = mark(storage, segments, number);
    retire(storage, number).expect("unlinks");
    point
}

/// The same without unlinking anything.
fn mark(storage: &dyn Storage, segments: &[Arc<Segment>], number: u64) -> TrimPoint {
    let segment = segments.iter().find(|segment| segment.number() == number).expect("is there");
    let point = TrimPoint::before(segment).expect("can be told");
    begin(storage, store_id(storage).expect("a store"), point);
    point
}

/// A log that begins with segment `number` of five.
fn trimmed_log(number: u64) -> (MemoryStorage, TrimPoint) {
    let storage = MemoryStorage::new();
    let segments = log(&storage);
    let point = trim(&storage, &segments, number);
    (storage, point)
}

fn numbers(segments: &[Arc<Segment>]) -> Vec<u64> {
    segments.iter().map(|segment| segment.number()).collect()
}

fn segment_files(storage: &dyn Storage) -> Vec<u64> {
    let names = storage.list().expect("lists");
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| match name::kind(name) {
            name::Kind::Segment(number) => Some(number),
            _ => None,
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

fn survey(storage: &MemoryStorage) -> Survey {
    Survey::open(storage, None, &[]).expect("looks")
}

#[test]
fn a_log_begins_where_it_was_trimmed_for_everybody() {
    let storage = MemoryStorage::new();
    let segments = log(&storage);
    let id = store_id(&storage).expect("a store");
    assert_eq!(TrimPoint::before(&segments[0]), None, "nothing is before it");
    let point = mark(&storage, &segments, 3);
    assert_eq!((point.segment, point.position), (3, segments[2].base()));
    assert_eq!(point.previous_end, segments[1].end());
    assert_eq!(retire(&storage, 3).expect("unlinks"), 2 * MIB);
    assert_eq!(retire(&storage, 3).expect("nothing left"), 0);
    assert_eq!(segment_files(&storage), [3, 4, 5]);

    let trimmed = Trimmed::open(&storage).expect("opens").expect("is there");
    assert_eq!((trimmed.point(), trimmed.store_id(), trimmed.body()), (point, id, BODY));
    assert!(trimmed.body().as_ptr().addr().is_multiple_of(8));
    trimmed.verify_body().expect("whole");

    assert_eq!(store_id(&storage), Some(id));
    let reader = read(&storage, None).expect("reads");
    assert_eq!(whole(&reader.segments), events(4..10));
    assert_eq!((reader.damage, reader.trim, reader.store_id), (vec![], Some(point), id));
    assert!(survey(&storage).is_whole());
    let follower = LogFollower::open(Arc::new(storage.clone()), None).expect("follows");
    assert_eq!(numbers(follower.segments()), [3, 4, 5]);
    assert_eq!(follower.begins_at(), point.position);

    let opened = open(&storage, None).expect("opens");
    assert_eq!((opened.trim, opened.tail, opened.store_id), (Some(point), TailReport::Clean, id));
    assert_eq!(whole(&opened.segments), events(4..10));
    let mut writer = opened.writer;
    append_frames(&mut writer, &[frame(10), frame(11), frame(12)]);
    drop(writer);
    assert_eq!(whole(&read(&storage, None).expect("reads").segments), events(4..13));
    assert_eq!(whole(&open(&storage, None).expect("opens").segments), events(4..13));
    // What was opened before goes on being what it was.
    assert_eq!(whole(&segments), events(0..10));
}

#[test]
fn a_log_is_trimmed_again_and_of_all_but_its_last_segment() {
    let (storage, first) = trimmed_log(2);
    let opened = open(&storage, None).expect("opens");
    let second = trim(&storage, &opened.segments, 4);
    assert!(second.position > first.position);
    let mut writer = opened.writer;
    let known = append_frames(&mut writer, &[frame(10)]);
    drop(writer);
    let opened = open(&storage, hint(known[1], false)).expect("opens");
    assert_eq!((whole(&opened.segments), opened.trim), (events(6..11), Some(second)));
    // All of it: the last segment, which was made at opening, holds nothing.
    let last = opened.segments.last().expect("a segment").number();
    let third = trim(&storage, &opened.segments, last);
    assert_eq!(segment_files(&storage), [last]);
    let end = opened.writer.end();
    drop(opened);
    for closed in [false, true] {
        let opened = open(&storage, hint(end, closed)).expect("opens");
        assert_eq!((whole(&opened.segments), opened.trim), (vec![], Some(third)));
        assert_eq!(numbers(&opened.segments), [last], "it goes on in place");
        let reader = read(&storage, hint(end, closed)).expect("reads");
        assert_eq!((reader.end, reader.damage), (end, vec![]));
        assert!(survey(&storage).is_whole());
    }
    let mut writer = open(&storage, None).expect("opens").writer;
    append_frames(&mut writer, &(11..15).map(frame).collect::<Vec<_>>());
    drop(writer);
    assert_eq!(whole(&open(&storage, None).expect("opens").segments), events(11..15));

    let store = store_id(&storage).expect("a store");
    let back = TrimWriter::create(&storage, store, second, 0).expect_err("the segments are gone");
    assert_eq!(back.kind(), io::ErrorKind::InvalidInput);
    let other = TrimWriter::create(&storage, [9; 16], third, 0).expect_err("another's");
    assert_eq!(other.kind(), io::ErrorKind::InvalidInput);
    begin(&storage, store, third);
}

#[test]
fn a_body_is_written_in_pieces_of_any_length_and_never_half() {
    let storage = MemoryStorage::new();
    let segments = log(&storage);
    let (store, point) = (store_id(&storage).expect("a store"), TrimPoint::before(&segments[1]));
    let point = point.expect("can be told");
    let before = snapshot(&storage);
    // Too few bytes, too many, none of it, and a segment to retire that nobody gave up.
    let mut short = TrimWriter::create(&storage, store, point, 10).expect("begins");
    short.write(&[1; 9]).expect("writes");
    assert_eq!(short.finish().expect_err("too few").kind(), io::ErrorKind::InvalidInput);
    let mut long = TrimWriter::create(&storage, store, point, 10).expect("begins");
    long.write(&[1; 9]).expect("writes");
    assert_eq!(long.write(&[1; 2]).expect_err("too many").kind(), io::ErrorKind::InvalidInput);
    drop(long);
    drop(TrimWriter::create(&storage, store, point, 10).expect("begins"));
    assert_eq!(retire(&storage, 2).expect_err("no trim").kind(), io::ErrorKind::InvalidInput);
    assert_eq!(snapshot(&storage), before);

    let body: Vec<u8> = (0..3 * MIB + 5).map(|byte| ((byte * 31) >> 3) as u8).collect();
    for lens in [vec![1, 7, 1_000_000, 100_000, 1 << 20, 3], vec![2 << 20], vec![4096]] {
        let mut writer =
            TrimWriter::create(&storage, store, point, body.len() as u64).expect("begins");
        let mut rest = &body[..];
        for &len in lens.iter().cycle() {
            let (piece, after) = rest.split_at(rest.len().min(len));
            writer.write(piece).expect("writes");
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        writer.finish().expect("trims");
        let trimmed = Trimmed::open(&storage).expect("opens").expect("is there");
        assert!(trimmed.body() == body);
        trimmed.verify_body().expect("whole");
    }
    assert_eq!(retire(&storage, 3).expect_err("not that much").kind(), io::ErrorKind::InvalidInput);
    // No body at all.
    TrimWriter::create(&storage, store, point, 0).expect("begins").finish().expect("trims");
    let trimmed = Trimmed::open(&storage).expect("opens").expect("is there");
    assert_eq!(trimmed.body(), b"");
    trimmed.verify_body().expect("whole");
    // A body in which something is damaged still says where the log begins.
    begin(&storage, store, point);
    let mut bytes = read_file(&storage, name::trimmed()).expect("is there");
    bytes[TRIM_HEADER_LEN as usize + 3] ^= 4;
    put(&storage, name::trimmed(), &bytes);
    let trimmed = Trimmed::open(&storage).expect("opens").expect("is there");
    let error = trimmed.verify_body().expect_err("damaged");
    assert!(matches!(error, OpenError::Trimmed { .. }), "{error}");
    assert_eq!(open(&storage, None).expect("opens").trim, Some(point));
}

/// The owner was stopped after the trim and before the segments were unlinked, or among them.
#[test]
fn segments_that_a_stopped_owner_has_left_are_no_part_of_the_log() {
    let damages: [fn(&MemoryStorage); 4] = [
        |_| {},
        |storage| drop(storage.remove(&name::segment(1))),
        |storage| drop(storage.remove(&name::segment(2))),
        // Nobody reads what is in them.
        |storage| patch(storage, 2, 0, &[0xFF; 2 * HEADER_PAGE]),
    ];
    for damage in damages {
        let storage = MemoryStorage::new();
        let segments = log(&storage);
        let point = mark(&storage, &segments, 3);
        put(&storage, name::trimmed_new(), b"the next one, half written");
        damage(&storage);
        let before = snapshot(&storage);
        let reader = read(&storage, None).expect("reads");
        assert_eq!((numbers(&reader.segments), reader.damage), (vec![3, 4, 5], vec![]));
        assert_eq!(reader.trim, Some(point));
        let follower = LogFollower::open(Arc::new(storage.clone()), None).expect("follows");
        assert_eq!(numbers(follower.segments()), [3, 4, 5]);
        let looked = survey(&storage);
        assert!(looked.is_whole());
        assert_eq!(looked.extents().expect("fits").len(), 3);
        assert_eq!(snapshot(&storage), before, "who reads changes nothing");
        // Nor does a repair keep them, as if they were another log's.
        let losses = LossBuilder::new(None).build(looked.store_id);
        let folder = looked.mend(&storage, &losses, b"").expect("nothing to do");
        let kept = storage.list().expect("lists");
        let kept: Vec<_> = kept.iter().filter(|name| name.starts_with(&folder)).collect();
        assert_eq!(kept, [&format!("{folder}/{}", name::REPORT)]);

        let opened = open(&storage, None).expect("opens");
        assert_eq!((whole(&opened.segments), opened.trim), (events(4..10), Some(point)));
        assert_eq!(segment_files(&storage), [3, 4, 5, 6]);
        assert!(!storage.list().expect("lists").contains(&name::trimmed_new().to_owned()));
    }
}

/// A file with the number of a trimmed segment can be another: somebody has renamed it, or put it there.
#[test]
fn a_file_that_is_not_the_segment_of_its_name_is_not_unlinked() {
    let foreign = MemoryStorage::new();
    log(&foreign);
    let (storage, point) = trimmed_log(3);
    let renamed = |storage: &MemoryStorage| {
        storage.rename(&name::segment(5), &name::segment(1)).expect("renames");
    };
    let brought = |storage: &MemoryStorage| put(storage, &name::segment(2), &bytes_of(&foreign, 2));
    for (fault, file) in [(Fault::Misnamed, 1), (Fault::Foreign, 2)] {
        let storage = storage.fork();
        match fault {
            Fault::Misnamed => renamed(&storage),
            _ => brought(&storage),
        }
        let before = snapshot(&storage);
        let error = open(&storage, None).expect_err("refuses");
        assert!(matches!(error, OpenError::SegmentForeign { .. }), "{error}");
        assert!(error.to_string().contains(&name::segment(file)), "{error}");
        let reader = read(&storage, None).expect("reads");
        assert_eq!(whole(&reader.segments), events(4..10));
        let found: Vec<_> =
            reader.damage.iter().map(|damage| (damage.fault, &damage.file)).collect();
        assert_eq!(found, [(fault, &name::segment(file))]);
        assert_eq!(snapshot(&storage), before);
        let looked = survey(&storage);
        assert_eq!(looked.stretches().expect("fits"), []);
        let losses = LossBuilder::new(None).build(looked.store_id);
        looked.mend(&storage, &losses, b"").expect("mends");
        let opened = open(&storage, None).expect("opens");
        assert_eq!((whole(&opened.segments), opened.trim), (events(4..10), Some(point)));
    }
}

#[test]
fn every_bit_of_the_header_and_the_length_are_verified() {
    let (storage, _) = trimmed_log(3);
    let whole_file = read_file(&storage, name::trimmed()).expect("is there");
    let refused = |bytes: &[u8], what: &str| {
        put(&storage, name::trimmed(), bytes);
        let before = snapshot(&storage);
        let error = Trimmed::open(&storage).expect_err(what);
        assert!(matches!(error, OpenError::Trimmed { .. }), "{what}: {error}");
        let error = open(&storage, None).expect_err(what);
        assert!(matches!(error, OpenError::Trimmed { .. }), "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains(name::trimmed()) && text.contains("backup"), "{text}");
        assert_eq!(snapshot(&storage), before);
    };
    for byte in 0..TRIM_HEADER_LEN as usize {
        for bit in 0..8 {
            let mut bytes = whole_file.clone();
            bytes[byte] ^= 1 << bit;
            refused(&bytes, &format!("bit {bit} of byte {byte}"));
        }
    }
    for len in 0..whole_file.len() {
        refused(&whole_file[..len], &format!("{len} bytes"));
    }
    refused(&[&whole_file[..], &[0]].concat(), "a byte more");
    refused(&vec![0; whole_file.len()], "zeros");

    // A reader shows what is whole, and says what it cannot tell; a repair cannot do more.
    let reader = read(&storage, None).expect("reads");
    assert_eq!((whole(&reader.segments), reader.trim), (events(4..10), None));
    let found: Vec<_> =
        reader.damage.iter().map(|damage| (damage.fault, &damage.file[..])).collect();
    let (first, trimmed) = (name::segment(1), name::trimmed());
    assert_eq!(found, [(Fault::Missing, &first[..]), (Fault::Checksum, trimmed)]);
    assert_eq!(
        whole(LogFollower::open(Arc::new(storage.clone()), None).expect("follows").segments()),
        events(4..10)
    );
    let before = snapshot(&storage);
    let looked = survey(&storage);
    assert!(!looked.is_whole());
    let losses = LossBuilder::new(None).build(looked.store_id);
    let error = looked.mend(&storage, &losses, b"").expect_err("nothing tells what it said");
    assert!(matches!(error, OpenError::Trimmed { .. }), "{error}");
    assert_eq!(snapshot(&storage), before);

    put(&storage, name::trimmed(), &whole_file);
    assert_eq!(whole(&open(&storage, None).expect("opens").segments), events(4..10));
}

/// Headers with a good checksum, and anything in the fields.
#[test]
fn no_header_makes_anybody_panic() {
    let (storage, point) = trimmed_log(3);
    let whole_file = read_file(&storage, name::trimmed()).expect("is there");
    let numbers = [
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        4096,
        MIB,
        2 * MIB,
        3 * MIB,
        5 * MIB,
        1 << 32,
        1 << 61,
        1 << 62,
        (1 << 62) - 8,
        1 << 63,
        u64::MAX - 7,
        u64::MAX - 4095,
        u64::MAX - 1,
        u64::MAX,
    ];
    let headless = storage.fork();
    patch(&headless, 3, 0, &[0xEE; HEADER_PAGE]);
    // A segment with the last number of all.
    let last = SegmentHeader {
        store_id: store_id(&storage).expect("a store"),
        number: u64::MAX,
        base: 2 * MIB,
        len: MIB,
        salt: 1,
        previous_end: point.previous_end,
        previous_salt: point.previous_salt,
        forgotten: 0,
        previous_forgotten: 0,
    };
    let endless = storage.fork();
    let mut bytes = last.encode();
    bytes.resize(MIB as usize, 0);
    put(&endless, &name::segment(u64::MAX), &bytes);
    for storage in [&storage, &headless, &endless] {
        let numbers_before = segment_files(storage);
        // Each field alone, and together with a position.
        for field in [8, 16, 32, 40, 48, 56, 64] {
            for number in numbers {
                for position in [2 * MIB, 1 << 62, u64::MAX - 7] {
                    let mut bytes = whole_file.clone();
                    bytes[40..48].copy_from_slice(&position.to_le_bytes());
                    bytes[field..field + 8].copy_from_slice(&number.to_le_bytes());
                    let crc = crc32c::crc32c(&bytes[..76]);
                    bytes[76..80].copy_from_slice(&crc.to_le_bytes());
                    put(storage, name::trimmed(), &bytes);
                    let before = snapshot(storage);
                    let fork = storage.fork();
                    open(&fork, hint(u64::MAX - 7, true)).expect_err("it knows of more");
                    if open(&fork, None).is_err() {
                        assert_eq!(snapshot(&fork), before, "{number} at {field}");
                    } else {
                        assert!(bytes == whole_file, "{number} at {field}, {position}");
                    }
                    let _ = (read(storage, None), store_id(storage), Trimmed::open(storage));
                    let _ = LogFollower::open(Arc::new(storage.clone()), None);
                    let delivered = [2 * MIB + 48, 1 << 62];
                    if let Ok(survey) = Survey::open(storage, None, &delivered) {
                        let _ = (survey.extents(), survey.stretches());
                    }
                    let _ = retire(storage, 0);
                }
            }
        }
        assert_eq!(segment_files(storage), numbers_before);
    }
}

#[test]
fn a_file_that_is_missing_foreign_old_or_too_new_is_refused_by_name() {
    let (storage, point) = trimmed_log(3);
    let own = read_file(&storage, name::trimmed()).expect("is there");
    let check = |storage: &MemoryStorage,
                 names: &str,
                 shown: std::ops::Range<u8>,
                 found: &[(Fault, String)]| {
        let before = snapshot(storage);
        let text = open(storage, None).expect_err("refuses").to_string();
        assert!(text.contains(names) && text.contains(name::trimmed()), "{text}");
        let reader = read(storage, None).expect("reads");
        assert_eq!(whole(&reader.segments), events(shown));
        let damage: Vec<_> =
            reader.damage.iter().map(|damage| (damage.fault, damage.file.clone())).collect();
        assert_eq!(damage, found);
        assert_eq!(snapshot(storage), before);
    };
    let gone = storage.fork();
    gone.remove(name::trimmed()).expect("is there");
    check(&gone, &name::segment(1), 4..10, &[(Fault::Missing, name::segment(1))]);

    let foreign = storage.fork();
    foreign.remove(name::trimmed()).expect("is there");
    begin(&foreign, [9; 16], point);
    let found = [(Fault::Missing, name::segment(1)), (Fault::Checksum, name::trimmed().to_owned())];
    check(&foreign, "another store", 4..10, &found);

    // An older one of the same log, which has lost more since.
    let old = storage.fork();
    let segments = read(&old, None).expect("reads").segments;
    trim(&old, &segments, 5);
    put(&old, name::trimmed(), &own);
    check(&old, &name::segment(3), 8..10, &[(Fault::Missing, name::segment(3))]);

    // A newer one than the segments: they are not unlinked for it.
    let new = storage.fork();
    let far = TrimPoint { segment: 9, position: 9 * MIB, ..point };
    begin(&new, store_id(&new).expect("a store"), far);
    let before = snapshot(&new);
    for error in [open(&new, None).expect_err("refuses"), read(&new, None).expect_err("nothing")] {
        assert!(
            matches!(&error, OpenError::SegmentMissing { file } if file.contains("0009")),
            "{error}"
        );
    }
    assert_eq!(snapshot(&new), before);

    // One of another life of the log: the same numbers, other salts.
    let other = storage.fork();
    begin(&other, store_id(&other).expect("a store"), TrimPoint { previous_salt: 7, ..point });
    let before = snapshot(&other);
    let error = open(&other, None).expect_err("refuses");
    assert!(matches!(error, OpenError::SegmentForeign { .. }), "{error}");
    assert_eq!(snapshot(&other), before);

    // Nothing but the file: a store was here, and none is made in its place.
    let alone = MemoryStorage::new();
    put(&alone, name::trimmed(), &own);
    assert!(matches!(open(&alone, None), Err(OpenError::SegmentMissing { .. })));
    let facts = MemoryStorage::new();
    put(&facts, &name::facts(1), b"facts");
    assert!(matches!(open(&facts, None), Err(OpenError::SegmentMissing { .. })));
}

#[test]
fn damage_behind_the_trim_is_damage_as_before() {
    let (storage, point) = trimmed_log(3);
    let full = read(&storage, None).expect("reads");
    let ends: Vec<u64> = full.segments.iter().map(|segment| segment.end()).collect();
    // The first segment of the log, and one in the middle, are missing.
    for (number, shown, lost) in
        [(3, events(6..10), 0), (4, [events(4..6), events(8..10)].concat(), 1)]
    {
        let storage = storage.fork();
        storage.remove(&name::segment(number)).expect("is there");
        let error = open(&storage, None).expect_err("refuses");
        assert!(error.to_string().contains(&name::segment(number)), "{error}");
        let reader = read(&storage, None).expect("reads");
        assert_eq!(whole(&reader.segments), shown);
        assert_eq!(reader.damage.len(), 1);
        assert_eq!((reader.damage[0].fault, reader.damage[0].segment), (Fault::Missing, number));
        let looked = survey(&storage);
        let stretches = looked.stretches().expect("fits");
        let (base, from) = ((number - 1) * MIB, (number - 1) * MIB + HEADER_PAGE as u64);
        assert_eq!((stretches.len(), stretches[0].from, stretches[0].to), (1, from, ends[lost]));
        assert_eq!(base, full.segments[lost].base());
        let mut builder = LossBuilder::new(None);
        stretches.iter().for_each(|stretch| builder.lose(stretch.from, stretch.to));
        looked.mend(&storage, &builder.build(looked.store_id), b"").expect("mends");
        let opened = open(&storage, None).expect("opens");
        assert_eq!((whole(&opened.segments), opened.trim), (shown, Some(point)));
        assert_eq!(numbers(&opened.segments)[..3], [3, 4, 5]);
        assert!(survey(&storage).is_whole());
    }
    // The first header is lost: the trim and the segment behind know all of it.
    let headless = storage.fork();
    patch(&headless, 3, 0, &[0; HEADER_PAGE]);
    assert!(matches!(open(&headless, None), Err(OpenError::Damaged(_))));
    let reader = read(&headless, None).expect("reads");
    assert_eq!((whole(&reader.segments), reader.damage.len()), (events(4..10), 1));
    let looked = survey(&headless);
    looked.mend(&headless, &LossBuilder::new(None).build(looked.store_id), b"").expect("mends");
    assert_eq!(bytes_of(&headless, 3)[..HEADER_PAGE], bytes_of(&storage, 3)[..HEADER_PAGE]);
    assert_eq!(whole(&open(&headless, None).expect("opens").segments), events(4..10));
}

/// The one segment of a log that was trimmed of all others was in use: without its header it is not a spare.
#[test]
fn the_last_segment_of_a_trimmed_log_is_never_taken_for_a_spare() {
    let (storage, _) = trimmed_log(5);
    for cut in [0, HEADER_PAGE] {
        let storage = storage.fork();
        // With frames behind it, and without: zeros to the end of the file.
        patch(&storage, 5, cut, &vec![0; MIB as usize - cut]);
        patch(&storage, 5, 0, &[0; HEADER_PAGE]);
        let before = snapshot(&storage);
        for error in
            [open(&storage, None).expect_err("refuses"), read(&storage, None).expect_err("nothing")]
        {
            assert!(matches!(error, OpenError::Damaged(_)), "{error}");
        }
        assert_eq!(snapshot(&storage), before);
    }
    // One copy of it is enough to know.
    patch(&storage, 5, HEADER_PAGE, &vec![0; MIB as usize - HEADER_PAGE]);
    flip(&storage, 5, 20, 1);
    assert!(matches!(open(&storage, None), Err(OpenError::Damaged(_))));
    let reader = read(&storage, None).expect("reads");
    assert_eq!((numbers(&reader.segments), reader.damage.len()), (vec![5], 1));
}

#[test]
fn a_killed_log_recovers_with_checkpoints_from_before_and_behind_its_beginning() {
    let (storage, point) = trimmed_log(4);
    let end = read(&storage, None).expect("reads").end;
    let first = point.position + HEADER_PAGE as u64;
    let frame_len = (end - 4 * MIB - HEADER_PAGE as u64) / 2;
    // Below the log, at its beginning, in it, at its end.
    let hints = [0, 48, MIB, 2 * MIB + 100, point.position, first, first + frame_len, end];
    for known in hints {
        for closed in [false, true] {
            let storage = storage.fork();
            let opened = open(&storage, hint(known, closed)).expect("opens");
            assert_eq!(whole(&opened.segments), events(6..10), "{known}");
            let mut writer = opened.writer;
            append_frames(&mut writer, &[frame(10)]);
            // The last frame is torn.
            let appended = writer.append(&mut frame_of(&frame(11))).expect("appends");
            let (number, base) = (
                numbers(&[appended.rolled.unwrap_or_else(|| {
                    read(&storage, None).expect("reads").segments.pop().expect("a segment")
                })])[0],
                appended.position,
            );
            drop(writer);
            let offset = (base % MIB) as usize + 300_000;
            patch(&storage, number, offset, &[0; 512]);
            let opened = open(&storage, hint(known, false)).expect("opens");
            assert!(matches!(opened.tail, TailReport::Cut { .. }), "{known}");
            assert_eq!(whole(&opened.segments), events(6..11), "{known}");
        }
    }
    // A checkpoint that knows of more than there is.
    let error = open(&storage, hint(end + 4096, false)).expect_err("refuses");
    assert!(matches!(error, OpenError::Damaged(_)), "{error}");
    let reader = read(&storage, hint(end + 4096, false)).expect("reads");
    assert_eq!(walk(&reader.segments).0, events(6..10));
    assert_eq!(reader.damage.len(), 1);
}

#[test]
fn losses_below_the_trim_are_never_met_and_those_above_go_on_counting() {
    let storage = MemoryStorage::new();
    let segments = log(&storage);
    let place = |index: usize| {
        let segment = &segments[index / 2];
        let records = segment.walk(segment.first(), segment.end());
        let record = records.map(|record| record.expect("whole")).nth(index % 2).expect("two");
        (record.position(), record.position() + record.len())
    };
    let places: Vec<(u64, u64)> = (0..10).map(place).collect();
    let record = |index: usize| places[index];
    // Of segments 1 to 3, one record each.
    let mut builder = LossBuilder::new(None);
    for index in [0, 3, 5] {
        let (from, to) = record(index);
        builder.lose(from, to);
        let event = Substitute::Event { id: Some(vec![index as u8]), parents: None };
        builder.put(from, to, b"s", event);
        patch(&storage, index as u64 / 2 + 1, (from % MIB) as usize, &[0xEE; 64]);
    }
    let store = store_id(&storage).expect("a store");
    let losses = builder.build(store);
    losses.write(&storage).expect("writes");
    let payloads = |segments: &[Arc<Segment>]| -> Vec<(u8, usize)> {
        let events = whole(segments);
        events
            .iter()
            .map(|event| (event.id.as_ref().expect("one")[0], event.payload.len()))
            .collect()
    };
    let n = 400_000;
    let segments = open(&storage, None).expect("opens").segments;
    let lost = [(0, 0), (1, n), (2, n), (3, 0), (4, n), (5, 0)];
    assert_eq!(payloads(&segments)[..6], lost);
    let identity = read(&storage, None).expect("reads").identity();
    for number in [2, 3, 4] {
        trim(&storage, &segments, number);
        let first = number as usize * 2 - 2;
        let opened = open(&storage, None).expect("opens");
        assert_eq!(payloads(&opened.segments)[..6 - first.min(6)], lost[first.min(6)..]);
        let reader = read(&storage, None).expect("reads");
        assert_eq!((reader.identity(), reader.damage), (identity, vec![]), "derived files stand");
        let looked = Survey::open(&storage, None, &[record(0).0, record(7).0]).expect("looks");
        assert!(looked.is_whole());
        assert_eq!(looked.stretches().expect("fits"), []);
        assert_eq!(looked.extents().expect("fits")[0].from, segments[number as usize - 1].first());
        let mut seen = 0;
        looked
            .walk(looked.losses.as_ref().expect("losses"), |record| {
                assert!(record.position() >= segments[number as usize - 1].first());
                seen += 1;
                std::ops::ControlFlow::Continue(())
            })
            .expect("fits");
        assert_eq!(seen, 10 - first);
        // What is lost anew is added to what is known, and what is known stays.
        let mut more = LossBuilder::new(looked.losses.as_deref());
        assert_eq!(more.room_at(record(0).0), Some(record(0).1));
        let (from, to) = record(9);
        more.lose(from, to);
        let fork = storage.fork();
        patch(&fork, 5, (from % MIB) as usize, &[0xEE; 64]);
        let looked = survey(&fork);
        assert_eq!(looked.stretches().expect("fits").len(), 1);
        looked.mend(&fork, &more.build(store), b"").expect("mends");
        let opened = open(&fork, None).expect("opens");
        assert_eq!(opened.losses.expect("losses").lost_len(), losses.lost_len() + to - from);
        assert_eq!(numbers(&opened.segments)[0], number);
    }
}

/// Many segments that are missing side by side: none that a repair makes up is longer than a segment can be.
/// Of 2.5 GiB the first was once made nearly as long, and no writer opened the log after that.
#[test]
fn segments_that_are_made_up_are_no_longer_than_any_segment() {
    let storage = MemoryStorage::new();
    log(&storage);
    let mut bytes = bytes_of(&storage, 5);
    let base = MIB + (5 << 29);
    for copy in [0, HEADER_PAGE / 2] {
        bytes[copy + 40..copy + 48].copy_from_slice(&u64::to_le_bytes(base));
        bytes[copy + 64..copy + 72].copy_from_slice(&u64::to_le_bytes(base));
        let crc = crc32c::crc32c(&bytes[copy..copy + HEADER_PAGE / 2 - 4]);
        bytes[copy + HEADER_PAGE / 2 - 4..copy + HEADER_PAGE / 2]
            .copy_from_slice(&crc.to_le_bytes());
    }
    put(&storage, &name::segment(5), &bytes);
    for number in [2, 3, 4] {
        storage.remove(&name::segment(number)).expect("is there");
    }
    let extents = survey(&storage).extents().expect("fits");
    assert_eq!(extents.len(), 5);
    assert!(extents.iter().all(|extent| extent.to - extent.from <= 1 << 30), "{extents:?}");
}

/// The segment length follows the log that is kept.
#[test]
fn a_trimmed_log_does_not_get_long_segments() {
    let storage = MemoryStorage::new();
    let options = LogOptions { segment_len_max: 64 * MIB, ..OPTIONS };
    let open = || LogWriter::open(Arc::new(storage.clone()), options, None).expect("opens");
    let mut writer = open().writer;
    for index in 0..40 {
        append_frames(&mut writer, &[frame(index)]);
    }
    drop(writer);
    let segments = open().segments;
    let last = segments.last().expect("a segment");
    assert!(last.limit() - last.base() >= 4 * MIB, "a quarter of {}", last.base());
    let next_len = |writer: &mut LogWriter| {
        let rolled = loop {
            let appended = writer.append(&mut frame_of(&frame(0))).expect("appends");
            writer.sync().expect("syncs");
            if let Some(segment) = appended.rolled {
                break segment;
            }
        };
        rolled.limit() - rolled.base()
    };
    // A quarter of what is kept, where more would be a quarter of the log.
    let expected = |from: u64, limit: u64| ((limit - from) / 4).next_power_of_two().max(MIB);
    let mut writer = open().writer;
    let active = read(&storage, None).expect("reads").segments.pop().expect("a segment");
    let point = trim(&storage, &segments, last.number());
    writer.trimmed(&point);
    let kept = expected(point.position, active.limit());
    assert!(kept < expected(0, active.limit()));
    assert_eq!(next_len(&mut writer), kept);
    drop(writer);
    let segments = read(&storage, None).expect("reads").segments;
    let last = segments.last().expect("one");
    let point = trim(&storage, &segments, last.number());
    let opened = open();
    assert_eq!(opened.trim, Some(point));
    let made = opened.segments.last().expect("a segment");
    assert_eq!(made.number(), last.number() + 1);
    assert_eq!(made.limit() - made.base(), expected(point.position, last.limit()));
    assert_eq!(made.limit() - made.base(), MIB);
}

/// A directory of which somebody does something just before a look, counted from 0.
struct Meanwhile {
    storage: Hooked,
    looks_left: Arc<AtomicI64>,
}

impl Meanwhile {
    fn new(inner: &MemoryStorage, at: i64, act: impl FnOnce() + Send + 'static) -> Self {
        let looks_left = Arc::new(AtomicI64::new(at));
        let (left, act) = (Arc::clone(&looks_left), Mutex::new(Some(act)));
        let storage = Hooked::new(inner.clone(), move |op| {
            if matches!(op, Op::Open(..) | Op::List)
                && left.fetch_sub(1, Ordering::Relaxed) == 0
                && let Some(act) = act.lock().expect("no panic").take()
            {
                act();
            }
            Ok(())
        });
        Meanwhile { storage, looks_left }
    }

    fn has_acted(&self) -> bool {
        self.looks_left.load(Ordering::Relaxed) < 0
    }
}

/// The owner trims between any two looks of somebody who opens the log: he sees the log of before or after.
#[test]
fn a_reader_that_opens_while_the_owner_trims_sees_a_whole_log() {
    for unlinks in [false, true] {
        let (mut at, mut counts) = (0, [0, 0]);
        loop {
            let (storage, _) = trimmed_log(2);
            let segments = read(&storage, None).expect("reads").segments;
            let owner = storage.clone();
            let meanwhile = Meanwhile::new(&storage, at, move || {
                let point = mark(&owner, &segments, 4);
                if unlinks {
                    retire(&owner, 4).expect("unlinks");
                }
                assert_eq!(point.segment, 4);
            });
            let reader = LogReader::open(&meanwhile.storage, None).expect("reads");
            assert_eq!(reader.damage, [], "operation {at}");
            let begins = reader.trim.expect("trimmed").segment;
            assert_eq!(reader.segments[0].number(), begins);
            assert_eq!(whole(&reader.segments), events(begins as u8 * 2 - 2..10));
            counts[usize::from(begins == 4)] += 1;
            if !meanwhile.has_acted() {
                break;
            }
            at += 1;
        }
        assert!(at > 5 && counts[1] > 3, "{at} {counts:?}");
    }
    // The trim is done, and the owner is about to unlink the rest.
    for at in 0..8 {
        let storage = MemoryStorage::new();
        let segments = log(&storage);
        mark(&storage, &segments, 4);
        let owner = storage.clone();
        let meanwhile = Meanwhile::new(&storage, at, move || drop(retire(&owner, 4)));
        let reader = LogReader::open(&meanwhile.storage, None).expect("reads");
        assert_eq!((whole(&reader.segments), reader.damage), (events(6..10), vec![]));
        assert!(meanwhile.has_acted(), "operation {at}");
    }
    for at in 0..4 {
        let (storage, _) = trimmed_log(2);
        let segments = read(&storage, None).expect("reads").segments;
        let owner = storage.clone();
        let expected = store_id(&storage);
        let meanwhile = Meanwhile::new(&storage, at, move || {
            trim(&owner, &segments, 4);
        });
        assert_eq!(store_id(&meanwhile.storage), expected, "operation {at}");
    }
}

#[test]
fn a_follower_keeps_what_it_has_and_goes_on_behind_what_it_has_missed() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    let mut follower = LogFollower::open(Arc::new(storage.clone()), None).expect("follows");
    let edges = append_frames(&mut writer, &(0..10).map(frame).collect::<Vec<_>>());
    let record = |index: usize| edges[index] + common::FRAME_HEADER as u64;
    assert!(follower.reach(record(2)).expect("looks"), "segment 2, of which it has one frame");
    assert_eq!(numbers(follower.segments()), [1, 2]);

    // What it has, it has, and the next segment is still there.
    let segments = read(&storage, None).expect("reads").segments;
    trim(&storage, &segments, 3);
    assert!(follower.reach(record(3)).expect("looks"), "of a file that is unlinked");
    assert!(follower.reach(record(4)).expect("looks"));
    assert_eq!((numbers(follower.segments()), follower.begins_at()), (vec![1, 2, 3], 0));
    // It has not come to segment 4 when that goes.
    trim(&storage, &segments, 5);
    assert!(!follower.reach(record(6)).expect("looks"), "nobody has it any more");
    assert_eq!(follower.begins_at(), segments[4].base());
    assert!(follower.reach(record(9)).expect("looks"));
    assert_eq!(numbers(follower.segments()), [1, 2, 3, 5]);
    for position in [record(6), record(7), 4 * MIB - 8, 3 * MIB] {
        assert!(!follower.reach(position).expect("looks"), "{position}");
    }
    let (found, damage) = walk(follower.segments());
    assert_eq!((found, damage), ([events(0..5), events(8..10)].concat(), vec![]));
    append_frames(&mut writer, &[frame(10), frame(11)]);
    assert!(follower.reach(writer.end() - 400_000).expect("looks"));
    let last = numbers(follower.segments()).pop();
    assert_eq!(last, Some(6));

    assert_eq!(follower.let_go(2 * MIB - 1), 1);
    assert_eq!(follower.let_go(follower.begins_at()), 2);
    assert_eq!(numbers(follower.segments()), [5, 6]);
    assert_eq!(follower.let_go(u64::MAX), 1, "never the last");
    assert!(follower.reach(writer.end() - 400_000).expect("looks"));
    // A file that does not say where the log begins is no reason to end.
    put(&storage, name::trimmed(), b"damaged");
    assert!(!follower.reach(u64::MAX).expect("looks"));
}

/// On the operating system: a map of a retired segment stays, and so does another name of its file.
#[test]
fn maps_and_links_of_retired_segments_are_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage = OsStorage::create(dir.path().join("store")).expect("creates");
    let backup = OsStorage::create(dir.path().join("backup")).expect("creates");
    let opened = LogWriter::open(Arc::new(storage.clone()), OPTIONS, None).expect("creates");
    let mut writer = opened.writer;
    append_frames(&mut writer, &(0..10).map(frame).collect::<Vec<_>>());
    drop(writer);
    let segments = LogReader::open(&storage, None).expect("reads").segments;
    for number in [1, 2] {
        assert!(link(&storage, &backup, &name::segment(number)).expect("links"));
    }
    let copied = || [1, 2].map(|number| read_file(&backup, &name::segment(number)).expect("reads"));
    let before = copied();
    let point = mark(&storage, &segments, 4);
    assert_eq!(retire(&storage, 4).expect("unlinks"), MIB, "two of three have another name");
    assert_eq!(segment_files(&storage), [4, 5]);
    assert_eq!(whole(&segments), events(0..10), "through maps that were made before");
    assert!(copied() == before);
    assert_eq!(whole(&LogReader::open(&backup, None).expect("reads").segments), events(0..4));
    let opened = LogWriter::open(Arc::new(storage.clone()), OPTIONS, None).expect("opens");
    assert_eq!((whole(&opened.segments), opened.trim), (events(6..10), Some(point)));
    assert_eq!(whole(&segments), events(0..10));
    let trimmed = Trimmed::open(&storage).expect("opens").expect("is there");
    mark(&storage, &opened.segments, 5);
    assert_eq!((trimmed.point(), trimmed.body()), (point, BODY), "the one that it has opened");
}
