//! What a log says of the ids that are forgotten: in the header of each segment, and never less than before.

mod common;

use std::sync::Arc;

use common::{
    Event, HEADER_PAGE, MIB, append_frames, bytes_of, flip, hint, open, patch, put, read, snapshot,
    whole,
};
use thalweg_wal::format::{
    Fault, SEGMENT_HEADER_COPY_LEN, SEGMENT_HEADER_LEN, SegmentHeader, SegmentHeaderState,
};
use thalweg_wal::storage::{MemoryStorage, Storage};
use thalweg_wal::{
    LogFollower, LossBuilder, OpenError, Segment, Survey, TailReport, TrimPoint, TrimWriter, name,
    retire, store_id,
};

/// Fills nearly half of a segment.
fn frame(index: u8) -> Vec<Event> {
    vec![Event::new("s", [index], vec![index; 400_000])]
}

fn events(indexes: std::ops::Range<u8>) -> Vec<Event> {
    indexes.flat_map(frame).collect()
}

/// What each segment says, from the first on.
const FORGOTTEN: [u64; 5] = [0, 50, 50, 70, 71];

/// A log of five segments with two frames each.
fn store() -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    for (index, below) in (0..).zip(FORGOTTEN) {
        writer.forget(below);
        append_frames(&mut writer, &[frame(2 * index), frame(2 * index + 1)]);
    }
    drop(writer);
    assert_eq!(forgotten(&read(&storage, None).expect("reads").segments), FORGOTTEN);
    storage
}

fn forgotten(segments: &[Arc<Segment>]) -> Vec<u64> {
    segments.iter().map(|segment| segment.forgotten()).collect()
}

fn header(storage: &MemoryStorage, number: u64) -> SegmentHeader {
    match SegmentHeader::decode(&bytes_of(storage, number)[..HEADER_PAGE]) {
        SegmentHeaderState::Valid(header) => header,
        other => panic!("a whole header: {other:?}"),
    }
}

fn rewrite_header(storage: &MemoryStorage, number: u64, change: impl FnOnce(&mut SegmentHeader)) {
    let mut header = header(storage, number);
    change(&mut header);
    patch(storage, number, 0, &header.encode());
}

/// Writes `bytes` into both copies of a header page and makes their checksums match.
fn forge(storage: &MemoryStorage, number: u64, offset: usize, bytes: &[u8]) {
    let len = SEGMENT_HEADER_COPY_LEN as usize;
    let mut copy = bytes_of(storage, number)[..len].to_vec();
    copy[offset..offset + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&copy[..len - 4]).to_le_bytes();
    copy[len - 4..].copy_from_slice(&crc);
    patch(storage, number, 0, &copy.repeat(2));
}

/// A writer refuses segment `number`, about this, and changes nothing.
fn is_refused(storage: &MemoryStorage, number: u64, about: &str) {
    let files = snapshot(storage);
    let OpenError::SegmentForeign { file, detail } = open(storage, None).expect_err("refuses")
    else {
        panic!("expected a segment that does not belong");
    };
    assert_eq!(file, storage.describe(&name::segment(number)));
    assert!(detail.contains(about), "{detail}");
    assert!(snapshot(storage) == files);
}

/// Repairs the log with these stretches lost that it finds lost.
fn mend(storage: &MemoryStorage) {
    let looked = Survey::open(storage, None, &[]).expect("looks");
    let mut losses = LossBuilder::new(None);
    for stretch in looked.stretches().expect("fits") {
        losses.lose(stretch.from, stretch.to);
    }
    looked.mend(storage, &losses.build(looked.store_id), b"").expect("mends");
    assert!(Survey::open(storage, None, &[]).expect("looks").is_whole());
}

/// The log without the segments below `number`.
fn trimmed(storage: &MemoryStorage, number: u64) -> MemoryStorage {
    let storage = storage.fork();
    let segments = read(&storage, None).expect("reads").segments;
    let point = TrimPoint::before(&segments[number as usize - 1]).expect("can be told");
    let store_id = store_id(&storage).expect("a store");
    TrimWriter::create(&storage, store_id, point, 0).expect("begins").finish().expect("trims");
    retire(&storage, number).expect("unlinks");
    storage
}

#[test]
fn the_next_segment_says_it_and_never_less() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    let mut follower = LogFollower::open(Arc::new(storage.clone()), None).expect("follows");
    append_frames(&mut writer, &[frame(0)]);
    let before = bytes_of(&storage, 1);
    writer.forget(5);
    writer.forget(3);
    assert!(bytes_of(&storage, 1) == before, "nothing is written");
    append_frames(&mut writer, &[frame(1), frame(2), frame(3), frame(4)]);
    writer.forget(9);
    writer.forget(5);
    append_frames(&mut writer, &[frame(5), frame(6)]);
    assert!(follower.reach(writer.end() - 400_000).expect("looks"));
    drop(writer);
    let expected = [0, 5, 5, 9];
    assert_eq!(forgotten(follower.segments()), expected);
    let reader = read(&storage, None).expect("reads");
    assert_eq!(forgotten(&reader.segments), expected);
    assert_eq!(whole(&reader.segments), events(0..7));
    for (number, (forgotten, previous)) in (1..).zip([(0, 0), (5, 0), (5, 5), (9, 5)]) {
        let header = header(&storage, number);
        assert_eq!((header.forgotten, header.previous_forgotten), (forgotten, previous));
    }
}

#[test]
fn a_log_that_is_opened_again_goes_on_from_what_its_last_segment_says() {
    // In a new segment.
    let storage = store();
    let mut opened = open(&storage, None).expect("opens");
    assert_eq!(forgotten(&opened.segments), [&FORGOTTEN[..], &[71]].concat());
    // Less is said already, and more counts only if a segment has come to say it.
    opened.writer.forget(60);
    append_frames(&mut opened.writer, &(10..13).map(frame).collect::<Vec<_>>());
    opened.writer.forget(90);
    let end = opened.writer.end();
    drop(opened);
    // In place, of a log that was closed.
    let opened = open(&storage, hint(end, true)).expect("opens");
    assert_eq!(opened.tail, TailReport::Clean);
    assert_eq!(forgotten(&opened.segments), [&FORGOTTEN[..], &[71, 71]].concat());
    let mut writer = opened.writer;
    append_frames(&mut writer, &[frame(13), frame(14)]);
    writer.forget(90);
    append_frames(&mut writer, &[frame(15), frame(16)]);
    drop(writer);
    let reader = read(&storage, None).expect("reads");
    assert_eq!(forgotten(&reader.segments), [&FORGOTTEN[..], &[71, 71, 71, 90]].concat());
    assert_eq!(whole(&reader.segments), events(0..17));
}

#[test]
fn a_trimmed_log_says_what_it_said() {
    let storage = trimmed(&store(), 3);
    let opened = open(&storage, None).expect("opens");
    assert_eq!(forgotten(&opened.segments), [50, 70, 71, 71]);
    drop(opened);
    // Of all but the last.
    let storage = trimmed(&store(), 5);
    let mut writer = open(&storage, None).expect("opens").writer;
    append_frames(&mut writer, &[frame(10), frame(11), frame(12)]);
    assert_eq!(forgotten(&read(&storage, None).expect("reads").segments), [71, 71, 71]);
}

/// H6.
#[test]
fn a_header_that_does_not_follow_in_what_it_forgets_is_named() {
    type Change = fn(&mut SegmentHeader);
    let changes: [(u64, Change); 7] = [
        (1, |header| header.previous_forgotten = 1),
        (1, |header| (header.previous_forgotten, header.forgotten) = (1, 1)),
        (2, |header| header.previous_forgotten = 1),
        (3, |header| header.previous_forgotten -= 1),
        // It would go down, though it says rightly what was said before.
        (3, |header| header.forgotten -= 1),
        (4, |header| header.forgotten = 0),
        (5, |header| (header.previous_forgotten, header.forgotten) = (0, 0)),
    ];
    for (number, change) in changes {
        let storage = store();
        rewrite_header(&storage, number, change);
        is_refused(&storage, number, "does not follow");
        let reader = read(&storage, None).expect("reads");
        assert!(
            reader.damage.iter().any(|d| d.segment == number && d.fault == Fault::Foreign),
            "{number}: {:?}",
            reader.damage
        );
    }
    // What it forgets itself, only the one behind it can deny.
    let storage = store();
    rewrite_header(&storage, 3, |header| header.forgotten += 1);
    is_refused(&storage, 4, "does not follow");

    // Before the first of a trimmed log nobody knows what was said, but it was not more.
    let storage = trimmed(&store(), 3);
    rewrite_header(&storage, 3, |header| header.previous_forgotten = 7);
    assert!(open(&storage.fork(), None).is_ok());
    rewrite_header(&storage, 3, |header| header.previous_forgotten = 51);
    is_refused(&storage, 3, "does not follow");
}

/// H6 for behind a gap, where only the range is known.
#[test]
fn a_header_behind_a_gap_does_not_go_down_either() {
    for (change, is_part) in [((50, 70), true), ((49, 70), false), ((71, 70), false)] {
        let storage = store();
        storage.remove(&name::segment(3)).expect("is there");
        rewrite_header(&storage, 4, |header| {
            (header.previous_forgotten, header.forgotten) = change;
        });
        let reader = read(&storage, None).expect("reads");
        let has_it = reader.segments.iter().any(|segment| segment.number() == 4);
        assert_eq!(has_it, is_part, "{change:?}");
    }
    // Nor is a lost header rebuilt so that it does.
    let storage = store();
    patch(&storage, 3, 0, &[0; HEADER_PAGE]);
    rewrite_header(&storage, 4, |header| header.previous_forgotten = 49);
    let reader = read(&storage, None).expect("reads");
    assert_eq!(forgotten(&reader.segments), [0, 50, 71]);
    assert!(reader.damage.iter().any(|damage| damage.segment == 3));
}

/// H6 for writers. To readers it is as if the header were lost, which the one behind it brings back.
#[test]
fn a_header_of_which_feature_and_value_contradict_each_other_is_named() {
    for (number, at, bytes) in [
        // The bit and no value, the value and no bit.
        (3, 80, &0_u64.to_le_bytes()[..]),
        (3, 12, &0_u32.to_le_bytes()),
        (1, 12, &1_u32.to_le_bytes()),
        (1, 80, &5_u64.to_le_bytes()),
    ] {
        let whole_log = store();
        let storage = whole_log.fork();
        forge(&storage, number, at, bytes);
        let page = bytes_of(&storage, number)[..HEADER_PAGE].to_vec();
        assert_eq!(SegmentHeader::decode(&page), SegmentHeaderState::Contradictory);
        is_refused(&storage, number, "or the other way round");
        let reader = read(&storage, None).expect("reads");
        assert_eq!((whole(&reader.segments), forgotten(&reader.segments)), {
            (events(0..10), FORGOTTEN.to_vec())
        });
        let [damage] = &reader.damage[..] else { panic!("one: {:?}", reader.damage) };
        assert_eq!((damage.segment, damage.fault), (number, Fault::Unknown));
        mend(&storage);
        assert!(bytes_of(&storage, number) == bytes_of(&whole_log, number));
        // One copy says so, of the other nothing can be read.
        let storage = whole_log.fork();
        forge(&storage, number, at, bytes);
        flip(&storage, number, 20, 0);
        is_refused(&storage, number, "or the other way round");
    }
    // In the last segment nothing tells what it was, and it is no spare.
    let storage = store();
    drop(open(&storage, None).expect("opens"));
    forge(&storage, 6, 80, &0_u64.to_le_bytes());
    is_refused(&storage, 6, "or the other way round");
    assert_eq!(whole(&read(&storage, None).expect("reads").segments), events(0..10));
}

/// A build that does not know a feature refuses the store: this one, the next bit.
#[test]
fn a_feature_that_is_not_known_is_refused_beside_one_that_is() {
    let storage = store();
    forge(&storage, 2, 12, &0b11_u32.to_le_bytes());
    is_refused(&storage, 2, "feature that this build does not know");
    let error = read(&storage, None).expect_err("what it means is for others to judge");
    assert!(matches!(error, OpenError::SegmentForeign { .. }), "{error}");
    // And a header that forgets nothing has no feature.
    let pages: Vec<_> = (1..=2).map(|number| bytes_of(&store(), number)).collect();
    assert_eq!((&pages[0][12..16], &pages[1][12..16]), (&[0; 4][..], &[1, 0, 0, 0][..]));
    assert_eq!(pages[0][80..96], [0; 16]);
}

/// H4.
#[test]
fn a_lost_header_is_rebuilt_with_what_it_forgot() {
    let full = store();
    for number in 1..=4 {
        let storage = full.fork();
        patch(&storage, number, 0, &[0x77; HEADER_PAGE]);
        assert!(matches!(open(&storage, None), Err(OpenError::Damaged(d)) if d.segment == number));
        let reader = read(&storage, None).expect("reads");
        assert_eq!(forgotten(&reader.segments), FORGOTTEN);
        assert_eq!((whole(&reader.segments), reader.damage.len()), (events(0..10), 1));
        mend(&storage);
        assert!(bytes_of(&storage, number) == bytes_of(&full, number), "{number}");
    }
    // What the first of a trimmed log said of the one before it, nothing tells any more.
    let full = trimmed(&full, 4);
    let storage = full.fork();
    patch(&storage, 4, 0, &[0; HEADER_PAGE]);
    assert_eq!(forgotten(&read(&storage, None).expect("reads").segments), FORGOTTEN[3..]);
    mend(&storage);
    let expected = SegmentHeader { previous_forgotten: 0, ..header(&full, 4) };
    assert_eq!(header(&storage, 4), expected);
    assert_eq!(whole(&open(&storage, None).expect("opens").segments), events(6..10));
}

#[test]
fn a_segment_that_a_repair_makes_up_forgets_what_its_neighbours_say() {
    for (lost, expected) in [
        // The one behind knows.
        (&[2][..], FORGOTTEN),
        (&[4], FORGOTTEN),
        // Of several, the one behind knows the last.
        (&[1, 2], [0, 50, 50, 70, 71]),
        (&[3, 4], FORGOTTEN),
        (&[2, 3, 4], [0, 0, 0, 70, 71]),
    ] {
        let storage = store();
        for &number in lost {
            storage.remove(&name::segment(number)).expect("is there");
        }
        mend(&storage);
        let opened = open(&storage, None).expect("opens");
        assert_eq!(forgotten(&opened.segments)[..5], expected, "{lost:?}");
    }
    // Of the last, only the one before it can tell.
    let storage = store();
    patch(&storage, 5, 0, &[0x77; HEADER_PAGE]);
    mend(&storage);
    assert_eq!(forgotten(&open(&storage, None).expect("opens").segments)[..5], [0, 50, 50, 70, 70]);
    // The first of a trimmed log.
    let storage = trimmed(&store(), 3);
    storage.remove(&name::segment(3)).expect("is there");
    mend(&storage);
    assert_eq!(header(&storage, 3).previous_forgotten, 0);
    assert_eq!(forgotten(&open(&storage, None).expect("opens").segments)[..3], FORGOTTEN[2..]);
}

/// H2: neither the feature alone counts, nor the value.
#[test]
fn an_activation_that_is_cut_short_forgets_what_was_said_before() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("creates").writer;
    append_frames(&mut writer, &[frame(0), frame(1)]);
    let mut spare = bytes_of(&storage, 1);
    writer.forget(8);
    append_frames(&mut writer, &[frame(2)]);
    drop(writer);
    let page = bytes_of(&storage, 2)[..HEADER_PAGE].to_vec();
    for written in (0..HEADER_PAGE).step_by(512).chain([80, 84, 88, 96]) {
        let storage = storage.fork();
        spare.fill(0);
        spare[..written].copy_from_slice(&page[..written]);
        put(&storage, &name::segment(2), &spare);
        let opened = open(&storage, None).expect("opens");
        assert_eq!((forgotten(&opened.segments), opened.segments[1].base()), (vec![0, 0], MIB));
        assert_eq!(opened.segments[1].first(), MIB + SEGMENT_HEADER_LEN);
    }
}
