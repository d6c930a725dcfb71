//! What a directory of segments means: rows H1 to H6 of the decision table in `FORMAT.md`.

mod common;

use common::{
    Event, HEADER_PAGE, MIB, append_frames, bytes_of, flip, open, patch, put, read, snapshot, walk,
    whole,
};
use proptest::prelude::*;
use thalweg_wal::format::{
    Fault, SEGMENT_HEADER_COPY_LEN, SEGMENT_HEADER_LEN, SegmentHeader, SegmentHeaderState,
    VERSION_MAJOR,
};
use thalweg_wal::storage::{MemoryStorage, Storage};
use thalweg_wal::{LogReader, OpenError, OpenedLog, TailReport, name};

const COPY: usize = SEGMENT_HEADER_COPY_LEN as usize;

fn frame(index: u8) -> Vec<Event> {
    vec![Event::new("s", [b'a', index], vec![index; 400_000])]
}

fn events(range: std::ops::Range<u8>) -> Vec<Event> {
    range.flat_map(frame).collect()
}

/// Three segments with two frames each.
fn store() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    append_frames(&mut writer, &(0..6).map(frame).collect::<Vec<_>>());
    drop(writer);
    assert_eq!(read(&storage, None).expect("opens").segments.len(), 3);
    storage
}

fn both(storage: &MemoryStorage) -> (Result<LogReader, OpenError>, Result<OpenedLog, OpenError>) {
    let files = snapshot(storage);
    let reader = read(storage, None);
    assert!(snapshot(storage) == files, "a reader changes nothing");
    let writer = open(storage, None);
    if writer.is_err() {
        assert!(snapshot(storage) == files, "a refused opening changes nothing");
    }
    (reader, writer)
}

fn is_missing(storage: &MemoryStorage, number: u64) {
    let expected = storage.describe(&name::segment(number));
    let is = |error| matches!(error, OpenError::SegmentMissing { file } if file == expected);
    let (reader, writer) = both(storage);
    assert!(is(writer.expect_err("a gap")));
    match reader {
        Ok(reader) => {
            reads_a_part(&reader);
        }
        Err(error) => assert!(is(error), "nothing is there"),
    }
}

/// Opening for reading has said that something is wrong, and shows nothing that was not there.
fn reads_a_part(reader: &LogReader) -> usize {
    assert!(!reader.damage.is_empty());
    let (found, _) = walk(&reader.segments);
    let mut rest = events(0..6).into_iter();
    assert!(found.iter().all(|event| rest.any(|known| known == *event)));
    found.len()
}

fn is_foreign(storage: &MemoryStorage, number: u64, about: &str) {
    let expected = storage.describe(&name::segment(number));
    let is = |error| match error {
        OpenError::SegmentForeign { file, detail } => {
            assert_eq!(file, expected);
            assert!(detail.contains(about), "{detail}");
        }
        other => panic!("expected a foreign segment, got {other:?}"),
    };
    let (reader, writer) = both(storage);
    is(writer.expect_err("foreign"));
    match reader {
        Ok(reader) => drop(reads_a_part(&reader)),
        Err(OpenError::Damaged(_)) => {}
        Err(error) => is(error),
    }
}

/// H1 and H2: what was never put to use is no part of the log.
#[test]
fn a_header_that_was_never_whole_leaves_the_log_as_it_was() {
    let storage = store();
    // Opening seals the third segment and puts the fourth to use, empty.
    drop(open(&storage, None).expect("opens"));
    let page = bytes_of(&storage, 4)[..HEADER_PAGE].to_vec();
    for written in [0, 1, 8, 95, 512, COPY - 1, COPY, COPY + 1, COPY + 100, HEADER_PAGE - 1] {
        let storage = storage.fork();
        let mut torn = page[..written].to_vec();
        torn.resize(HEADER_PAGE, 0);
        patch(&storage, 4, 0, &torn);
        let (reader, writer) = both(&storage);
        let reader = reader.expect("opens for reading");
        assert_eq!((reader.segments.len(), reader.tail), (3, TailReport::Clean));
        assert_eq!(whole(&reader.segments), events(0..6));
        let opened = writer.expect("opens for writing");
        assert_eq!(opened.segments.len(), 4);
        let mut writer = opened.writer;
        append_frames(&mut writer, &[frame(6)]);
        drop(writer);
        assert_eq!(whole(&read(&storage, None).expect("opens").segments), events(0..7));
    }
}

/// H1, for a store whose creation was cut short.
#[test]
fn a_store_whose_creation_was_cut_short_is_created_again() {
    for page in [vec![0; HEADER_PAGE], vec![0xAB; HEADER_PAGE]] {
        let storage = MemoryStorage::new();
        let mut file = page;
        file.resize(MIB as usize, 0);
        put(&storage, &name::segment(1), &file);
        put(&storage, name::LOCK, b"process 1");
        assert!(matches!(read(&storage, None), Err(OpenError::Missing { .. })));
        let opened = open(&storage, None).expect("creates");
        assert_eq!(opened.tail, TailReport::Created);
        assert_eq!(whole(&opened.segments), []);
    }
}

/// A lost header page, and with it the first frames, once passed for a segment that was never used:
/// the whole segment was deleted at the next opening, with all that had been acknowledged in it.
#[test]
fn a_used_segment_is_never_taken_for_an_unused_one() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let frames: Vec<_> =
        (0..100).map(|index| vec![Event::new("s", [index], [index; 200])]).collect();
    let edges = append_frames(&mut writer, &frames);
    drop(writer);
    for lost in [HEADER_PAGE, 2 * HEADER_PAGE, edges[99] as usize] {
        let storage = storage.fork();
        patch(&storage, 1, 0, &vec![0; lost]);
        let (reader, writer) = both(&storage);
        assert!(matches!(reader, Err(OpenError::Damaged(_))));
        assert!(matches!(writer, Err(OpenError::Damaged(_))));
    }
}

/// H4 with one copy left, which a reader uses.
#[test]
fn a_flipped_bit_in_any_header_page_refuses_writers_and_costs_readers_nothing() {
    let storage = store();
    let places = (0..96).chain(COPY - 8..COPY + 96).chain((96..HEADER_PAGE).step_by(401));
    for (index, at) in places.enumerate() {
        let number = 1 + index as u64 % 3;
        let storage = storage.fork();
        flip(&storage, number, at, (index % 8) as u8);
        let Err(OpenError::Damaged(found)) = open(&storage, None) else {
            panic!("segment {number}, byte {at}: must be refused");
        };
        assert_eq!((found.segment, found.offset), (number, 0));
        assert_eq!(
            (found.position, found.resumes),
            ((number - 1) * MIB, (number - 1) * MIB + SEGMENT_HEADER_LEN,)
        );
        let reader = read(&storage, None).expect("opens for reading");
        assert_eq!(reader.damage, [found]);
        assert_eq!(whole(&reader.segments), events(0..6));
    }
}

/// H4 with both copies gone: the segments beside it still know what it said.
#[test]
fn a_lost_header_page_costs_readers_nothing_but_in_the_last_segment() {
    let storage = store();
    for (number, fill) in [(1, 0x00), (1, 0x77), (2, 0x00), (2, 0x77)] {
        let storage = storage.fork();
        patch(&storage, number, 0, &[fill; HEADER_PAGE]);
        assert!(matches!(open(&storage, None), Err(OpenError::Damaged(d)) if d.segment == number));
        let reader = read(&storage, None).expect("opens for reading");
        assert_eq!(reader.damage.len(), 1);
        // Also the end of the segment before is found again, which only this header knew.
        assert_eq!(whole(&reader.segments), events(0..6));
    }
    let storage = storage.fork();
    patch(&storage, 3, 0, &[0x77; HEADER_PAGE]);
    assert!(matches!(open(&storage, None), Err(OpenError::Damaged(d)) if d.segment == 3));
    let reader = read(&storage, None).expect("opens for reading");
    assert_eq!(whole(&reader.segments), events(0..4));
    let [lost] = &reader.damage[..] else { panic!("one damage: {:?}", reader.damage) };
    assert_eq!((lost.position, lost.resumes), (2 * MIB, 3 * MIB));
}

/// H4: the torn end of a segment stays cut even if the header that cut it is lost.
#[test]
fn a_cut_tail_stays_cut_when_the_header_that_cut_it_is_lost() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let small = |id: u8| vec![Event::new("s", [id], "one"), Event::new("s", [id, id], "two")];
    let edges = append_frames(&mut writer, &[small(1), small(2)]);
    drop(writer);
    // The second record of the second frame never arrived.
    patch(&storage, 1, edges[2] as usize - 40, &[0; 40]);
    let mut writer = open(&storage, None).expect("opens").writer;
    append_frames(&mut writer, &[small(3)]);
    drop(writer);
    // A third segment, so that the second's header can be rebuilt.
    drop(open(&storage, None).expect("opens"));
    patch(&storage, 2, 0, &[0; HEADER_PAGE]);
    let reader = read(&storage, None).expect("opens for reading");
    assert_eq!(whole(&reader.segments), [small(1), small(3)].concat());
}

fn rewrite_header(storage: &MemoryStorage, number: u64, change: impl FnOnce(&mut SegmentHeader)) {
    let page = bytes_of(storage, number)[..HEADER_PAGE].to_vec();
    let SegmentHeaderState::Valid(mut header) = SegmentHeader::decode(&page) else {
        panic!("a whole header");
    };
    change(&mut header);
    patch(storage, number, 0, &header.encode());
}

/// Writes `bytes` into both copies of a header page and makes their checksums match.
fn forge(storage: &MemoryStorage, number: u64, offset: usize, bytes: &[u8]) {
    let mut copy = bytes_of(storage, number)[..COPY].to_vec();
    copy[offset..offset + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&copy[..COPY - 4]).to_le_bytes();
    copy[COPY - 4..].copy_from_slice(&crc);
    patch(storage, number, 0, &copy.repeat(2));
}

/// H5.
#[test]
fn another_major_version_is_refused_by_name() {
    for number in 1..=3 {
        let storage = store();
        forge(&storage, number, 8, &(VERSION_MAJOR + 1).to_le_bytes());
        let (reader, writer) = both(&storage);
        for error in [reader.expect_err("newer"), writer.expect_err("newer")] {
            let OpenError::Version { file, found, supported } = error else {
                panic!("expected a version error, got {error:?}");
            };
            assert_eq!(file, storage.describe(&name::segment(number)));
            assert_eq!((found, supported), (VERSION_MAJOR + 1, VERSION_MAJOR));
        }
    }
}

#[test]
fn a_higher_minor_version_is_read_and_an_unknown_feature_is_not() {
    let storage = store();
    forge(&storage, 2, 10, &7_u16.to_le_bytes());
    assert_eq!(whole(&read(&storage, None).expect("opens").segments), events(0..6));
    assert!(open(&storage.fork(), None).is_ok());
    forge(&storage, 2, 12, &2_u32.to_le_bytes());
    is_foreign(&storage, 2, "feature");
}

/// H6: gaps.
#[test]
fn a_missing_segment_is_named() {
    for number in [1, 2] {
        let storage = store();
        storage.remove(&name::segment(number)).expect("removes");
        is_missing(&storage, number);
    }
    // Renamed away from its place.
    let storage = store();
    storage.rename(&name::segment(3), &name::segment(7)).expect("renames");
    is_missing(&storage, 3);
    storage.rename(&name::segment(7), &name::segment(0)).expect("renames");
    is_missing(&storage, 1);
}

#[test]
fn a_missing_segment_is_named_even_if_only_an_unused_one_follows() {
    for lost in [&[1, 2, 3][..], &[3]] {
        let storage = store();
        put(&storage, &name::segment(4), &vec![0; MIB as usize]);
        for &number in lost {
            storage.remove(&name::segment(number)).expect("removes");
        }
        is_missing(&storage, lost[0]);
    }
}

/// What is whole is served, whatever is the matter with the segments beside it, and what is not is named.
#[test]
fn a_reader_serves_every_segment_that_is_whole() {
    let (ours, theirs) = (store(), store());
    type Change = fn(&MemoryStorage, &MemoryStorage, u64);
    let changes: [(&str, Change, usize, Fault); 5] = [
        ("missing", |s, _, n| s.remove(&name::segment(n)).expect("removes"), 4, Fault::Missing),
        (
            "another store's",
            |s, theirs, n| put(s, &name::segment(n), &bytes_of(theirs, n)),
            4,
            Fault::Foreign,
        ),
        (
            "cut",
            |s, _, n| put(s, &name::segment(n), &bytes_of(s, n)[..HEADER_PAGE + 400_201]),
            5,
            Fault::Short,
        ),
        (
            "longer",
            |s, _, n| put(s, &name::segment(n), &[bytes_of(s, n), vec![1; 9]].concat()),
            6,
            Fault::Long,
        ),
        (
            "renamed",
            |s, _, n| s.rename(&name::segment(n), &name::segment(n + 10)).expect("renames"),
            6,
            Fault::Misnamed,
        ),
    ];
    for (what, change, count, fault) in changes {
        for number in 1..=3 {
            // The last segment may be missing without anybody knowing.
            if (fault, number) == (Fault::Missing, 3) {
                continue;
            }
            let storage = ours.fork();
            change(&storage, &theirs, number);
            assert!(open(&storage.fork(), None).is_err(), "{what} {number}");
            let reader = read(&storage, None).expect("opens for reading");
            assert_eq!(reads_a_part(&reader), count, "{what} {number}");
            let is_named = reader.damage.iter().any(|d| d.segment == number && d.fault == fault);
            assert!(is_named, "{what} {number}: {:?}", reader.damage);
        }
    }
    // In each other's places.
    let storage = ours.fork();
    put(&storage, &name::segment(1), &bytes_of(&ours, 2));
    put(&storage, &name::segment(2), &bytes_of(&ours, 1));
    assert_eq!(reads_a_part(&read(&storage, None).expect("opens")), 6);
    // Twice: the one with the right name counts.
    let storage = ours.fork();
    put(&storage, &name::segment(4), &bytes_of(&ours, 2));
    assert_eq!(reads_a_part(&read(&storage, None).expect("opens")), 6);
}

/// H6: whole headers in the wrong place.
#[test]
fn segments_that_do_not_belong_are_named() {
    let (ours, theirs) = (store(), store());

    let storage = ours.fork();
    put(&storage, &name::segment(4), &bytes_of(&ours, 3));
    is_foreign(&storage, 4, "another number");

    let storage = ours.fork();
    put(&storage, &name::segment(1), &bytes_of(&ours, 2));
    put(&storage, &name::segment(2), &bytes_of(&ours, 1));
    is_foreign(&storage, 1, "another number");

    for number in [2, 3] {
        let storage = ours.fork();
        put(&storage, &name::segment(number), &bytes_of(&theirs, number));
        is_foreign(&storage, number, "another store");
    }
    let storage = ours.fork();
    put(&storage, &name::segment(1), &bytes_of(&theirs, 1));
    is_foreign(&storage, 2, "another store");

    // An older life of the same store.
    let storage = ours.fork();
    rewrite_header(&storage, 2, |header| header.salt ^= 2);
    is_foreign(&storage, 3, "does not follow");
}

#[test]
fn a_header_that_contradicts_the_segment_before_it_is_named() {
    type Change = fn(&mut SegmentHeader);
    let changes: [(u64, Change, &str); 8] = [
        (1, |header| header.base = MIB, "does not follow"),
        (1, |header| header.base = u64::MAX - 100, "does not follow"),
        (1, |header| header.previous_end = 1, "does not follow"),
        (2, |header| header.base += 8, "does not follow"),
        (2, |header| header.previous_end = header.base + 8, "does not follow"),
        (2, |header| header.previous_end = 8, "does not follow"),
        (2, |header| header.previous_salt += 1, "does not follow"),
        (3, |header| header.number = 4, "another number"),
    ];
    for (number, change, about) in changes {
        let storage = store();
        rewrite_header(&storage, number, change);
        is_foreign(&storage, number, about);
    }
}

#[test]
fn a_file_of_another_length_than_its_header_says_is_named() {
    for number in 1..=3 {
        let bytes = bytes_of(&store(), number);
        for len in [HEADER_PAGE, HEADER_PAGE + 1, bytes.len() / 2, bytes.len() - 1] {
            let storage = store();
            put(&storage, &name::segment(number), &bytes_of(&storage, number)[..len]);
            is_foreign(&storage, number, "shorter or longer");
        }
        let storage = store();
        let mut longer = bytes_of(&storage, number);
        longer.push(0);
        put(&storage, &name::segment(number), &longer);
        is_foreign(&storage, number, "shorter or longer");
    }
}

/// A file of a tebibyte takes no space, and recovery would have taken as much memory for its tail.
#[test]
fn a_header_that_is_right_about_an_absurd_length_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    for len in [(1 << 30) + 4096, 1_u64 << 40] {
        let header = SegmentHeader {
            store_id: [7; 16],
            number: 1,
            base: 0,
            len,
            salt: 1,
            previous_end: 0,
            previous_salt: 0,
            forgotten: 0,
            previous_forgotten: 0,
        };
        let path = directory.path().join(name::segment(1));
        std::fs::write(&path, header.encode()).expect("writes");
        std::fs::File::options().write(true).open(&path).unwrap().set_len(len).expect("grows");
        let storage = thalweg_wal::storage::OsStorage::open(directory.path()).expect("opens");
        let error = thalweg_wal::LogReader::open(&storage, None).expect_err("no such segment");
        let OpenError::SegmentForeign { detail, .. } = error else { panic!("{error}") };
        assert!(detail.starts_with("it is longer than any segment"), "{detail}");
    }
}

#[test]
fn a_file_too_short_for_a_header_is_damage() {
    for len in [0, 1, 96, HEADER_PAGE - 1] {
        for number in 1..=3 {
            let storage = store();
            put(&storage, &name::segment(number), &bytes_of(&storage, number)[..len]);
            let refused = |error| matches!(error, OpenError::Damaged(d) if d.segment == number);
            assert!(refused(open(&storage, None).expect_err("too short")));
            let reader = read(&storage, None).expect("the others can be read");
            assert_eq!(reads_a_part(&reader), 4);
        }
    }
}

#[test]
fn an_empty_directory_is_no_store_until_one_is_created() {
    let storage = MemoryStorage::new();
    assert!(matches!(read(&storage, None), Err(OpenError::Missing { .. })));
    let options = thalweg_wal::LogOptions { create: false, ..common::OPTIONS };
    let opened = thalweg_wal::LogWriter::open(std::sync::Arc::new(storage.clone()), options, None);
    assert!(matches!(opened, Err(OpenError::Missing { .. })));
    assert_eq!(snapshot(&storage), []);
    assert_eq!(open(&storage, None).expect("creates").tail, TailReport::Created);
}

#[test]
fn foreign_files_are_left_alone() {
    let storage = MemoryStorage::new();
    put(&storage, "notes.txt", b"mine");
    let (reader, writer) = both(&storage);
    for error in [reader.expect_err("no store"), writer.expect_err("no store")] {
        assert!(matches!(error, OpenError::NotAStore { example, .. } if example == "notes.txt"));
    }
    // Beside a log they do not matter.
    let storage = store();
    put(&storage, "notes.txt", b"mine");
    put(&storage, "segment-2.wal", b"looks like one of ours, and is not");
    assert_eq!(whole(&open(&storage, None).expect("opens").segments), events(0..6));
    assert!(storage.list().expect("lists").contains(&"notes.txt".to_owned()));
    assert!(storage.list().expect("lists").contains(&"segment-2.wal".to_owned()));
}

#[test]
fn derived_files_without_a_log_are_a_lost_log_and_not_a_new_store() {
    for derived in [name::order(1), name::tips(1), name::checkpoint().to_owned()] {
        let storage = MemoryStorage::new();
        put(&storage, &derived, b"derived");
        is_missing(&storage, 1);
    }
    let storage = MemoryStorage::new();
    let hint = common::hint(5000, false);
    assert!(matches!(open(&storage, hint), Err(OpenError::SegmentMissing { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// A whole header can say anything. Opening answers, it does not panic, and it does not open a
    /// log that is not there.
    #[test]
    fn forged_headers_never_panic(
        number in 1_u64..=3,
        field in 0_usize..10,
        value in prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), Just(MIB), Just(4096)],
    ) {
        let storage = store();
        let page = bytes_of(&storage, number)[..HEADER_PAGE].to_vec();
        forge(&storage, number, 16 + 8 * field, &value.to_le_bytes());
        prop_assume!(bytes_of(&storage, number)[..HEADER_PAGE] != page);
        match read(&storage, None) {
            Err(error) => prop_assert!(!error.to_string().is_empty()),
            // A salt of the last segment to which no frame belongs, or an earlier end of the one
            // before: what is read is a part of what was there, in order.
            Ok(reader) => {
                let (found, _) = walk(&reader.segments);
                prop_assert!(found.len() < 6 || field >= 6 || !reader.damage.is_empty());
                let mut rest = events(0..6).into_iter();
                prop_assert!(found.iter().all(|event| rest.any(|known| known == *event)));
            }
        }
    }
}
