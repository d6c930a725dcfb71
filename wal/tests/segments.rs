//! Rolling over segments: the log is one sequence, whatever the files it lies in.

mod common;

use std::sync::Arc;

use common::{Event, MIB, OPTIONS, append_frames, batch_of, frame_of, open, read, whole};
use thalweg_wal::format::{ALIGN, FRAME_HEADER_LEN, RECORD_HEADER_LEN, SEGMENT_HEADER_LEN};
use thalweg_wal::storage::{Access, MappedWriter, MemoryStorage, OsStorage, Storage, link};
use thalweg_wal::{FrameBuf, LogOptions, LogReader, LogWriter, SpareRequest, TailReport, name};

fn big(index: u32, len: usize) -> Vec<Event> {
    vec![Event::new("s", index.to_le_bytes(), vec![index as u8; len])]
}

fn rolls_over_segments(storage: Arc<dyn Storage>) {
    let frames: Vec<Vec<Event>> = (0..12).map(|index| big(index, 300_000)).collect();
    let opened = LogWriter::open(Arc::clone(&storage), OPTIONS, None).expect("opens");
    assert_eq!(opened.tail, TailReport::Created);
    let mut segments = opened.segments;
    let mut writer = opened.writer;
    for events in &frames {
        let appended = writer.append(&mut frame_of(events)).expect("appends");
        assert_eq!(writer.sync().expect("syncs"), appended.end);
        if let Some(segment) = appended.rolled {
            assert_eq!(appended.position, segment.first());
            assert_eq!(segment.base(), segments.last().expect("one").limit());
            assert_eq!(segment.number(), segments.len() as u64 + 1);
            segments.push(segment);
        }
    }
    assert_eq!(segments.len(), 4, "three frames fit into each");
    assert_eq!(whole(&segments), frames.concat());
    drop(writer);
    let reader = LogReader::open(&*storage, None).expect("opens");
    assert_eq!(reader.store_id, opened.store_id);
    assert_eq!(reader.end, segments[3].end());
    assert_eq!(whole(&reader.segments), frames.concat());
    let lens: Vec<u64> = reader.segments.iter().map(|s| s.limit() - s.base()).collect();
    assert_eq!(lens, [MIB; 4]);
}

#[test]
fn rolls_over_segments_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    rolls_over_segments(Arc::new(OsStorage::create(dir.path().join("a/b")).expect("creates")));
}

#[test]
fn rolls_over_segments_in_memory() {
    rolls_over_segments(Arc::new(MemoryStorage::new()));
}

/// A full disk must show itself before the first byte of a segment is acknowledged.
#[test]
fn the_space_of_a_segment_is_taken_before_it_is_used() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("a directory");
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::open(dir.path()).expect("opens"));
    let opened = LogWriter::open(storage, OPTIONS, None).expect("opens");
    let file = std::fs::metadata(dir.path().join(name::segment(1))).expect("is there");
    assert_eq!(file.len(), MIB);
    assert!(file.blocks() * 512 >= MIB, "{} blocks", file.blocks());
    drop(opened);
}

#[test]
fn a_frame_that_fills_a_segment_to_the_last_byte_fits() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let fixed = SEGMENT_HEADER_LEN + FRAME_HEADER_LEN + RECORD_HEADER_LEN + 1 + 4;
    let full = big(1, (MIB - fixed) as usize);
    let appended = writer.append(&mut frame_of(&full)).expect("appends");
    assert!(appended.rolled.is_none());
    assert_eq!(appended.end, MIB, "not one byte is left");
    let after = writer.append(&mut frame_of(&big(2, 0))).expect("appends");
    assert_eq!(after.position, MIB + SEGMENT_HEADER_LEN);
    writer.sync().expect("syncs");
    drop(writer);
    let opened = open(&storage, None).expect("opens");
    assert_eq!(whole(&opened.segments), [full, big(2, 0)].concat());
}

#[test]
fn a_segment_full_to_the_last_byte_is_recovered_as_the_last_one() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let fixed = SEGMENT_HEADER_LEN + FRAME_HEADER_LEN + RECORD_HEADER_LEN + 1 + 4;
    let full = big(1, (MIB - fixed) as usize);
    append_frames(&mut writer, std::slice::from_ref(&full));
    drop(writer);
    for hint in [None, common::hint(MIB, false), common::hint(MIB, true)] {
        let storage = storage.fork();
        let opened = open(&storage, hint).expect("opens");
        assert_eq!(opened.tail, TailReport::Clean);
        let mut writer = opened.writer;
        append_frames(&mut writer, &[big(2, 5)]);
        drop(writer);
        let reader = read(&storage, None).expect("opens");
        assert_eq!(whole(&reader.segments), [full.clone(), big(2, 5)].concat());
    }
}

#[test]
fn a_frame_longer_than_the_planned_segment_gets_a_longer_one() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let frames = [big(1, 10), big(2, 3 * MIB as usize), big(3, 10)];
    append_frames(&mut writer, &frames);
    drop(writer);
    let reader = read(&storage, None).expect("opens");
    assert_eq!(whole(&reader.segments), frames.concat());
    let lens: Vec<u64> = reader.segments.iter().map(|s| s.limit() - s.base()).collect();
    assert_eq!(lens, [MIB, 4 * MIB]);
}

#[test]
fn positions_are_aligned_whatever_the_length_asked_for() {
    for segment_len_max in [0, MIB + 1, MIB + 4095, 2 * MIB - 1] {
        let options = LogOptions { create: true, segment_len_max };
        let storage = MemoryStorage::new();
        let mut writer =
            LogWriter::open(Arc::new(storage.clone()), options, None).expect("opens").writer;
        let frames: Vec<_> = (0..30).map(|index| big(index, 400_000)).collect();
        append_frames(&mut writer, &frames);
        drop(writer);
        let reader = read(&storage, None).expect("opens");
        for segment in &reader.segments {
            assert!(segment.base().is_multiple_of(SEGMENT_HEADER_LEN), "{}", segment.base());
            assert!(segment.limit() - segment.base() <= segment_len_max.max(MIB));
            for record in segment.walk(segment.first(), segment.end()) {
                assert!(record.expect("whole").position().is_multiple_of(ALIGN));
            }
        }
        assert_eq!(whole(&reader.segments), frames.concat());
    }
}

#[test]
fn segments_grow_with_the_log_up_to_the_limit() {
    let options = LogOptions { create: true, segment_len_max: 2 * MIB };
    let storage = MemoryStorage::new();
    let mut writer =
        LogWriter::open(Arc::new(storage.clone()), options, None).expect("opens").writer;
    append_frames(&mut writer, &(0..40).map(|index| big(index, 400_000)).collect::<Vec<_>>());
    drop(writer);
    let reader = read(&storage, None).expect("opens");
    let lens: Vec<u64> = reader.segments.iter().map(|s| s.limit() - s.base()).collect();
    assert!(lens.is_sorted());
    assert_eq!((lens[0], lens[lens.len() - 1]), (MIB, 2 * MIB));
}

/// It is filled with zeros while somebody waits.
#[test]
fn an_opening_makes_no_long_segment() {
    let storage = MemoryStorage::new();
    let options = LogOptions { segment_len_max: 64 * MIB, ..OPTIONS };
    let open = || LogWriter::open(Arc::new(storage.clone()), options, None).expect("opens");
    let mut writer = open().writer;
    let mut longest = 0;
    for index in 0..60 {
        let appended = writer.append(&mut frame_of(&big(index, 1 << 20))).expect("appends");
        longest = appended.rolled.map_or(longest, |made| made.limit() - made.base());
        writer.sync().expect("syncs");
    }
    drop(writer);
    let opened = open();
    let [.., made] = &opened.segments[..] else { panic!("a segment") };
    assert_eq!((longest, made.limit() - made.base()), (32 * MIB, 8 * MIB));
    let mut writer = opened.writer;
    let rolled = (60..80).find_map(|index| {
        let appended = writer.append(&mut frame_of(&big(index, 1 << 20))).expect("appends");
        writer.sync().expect("syncs");
        appended.rolled
    });
    let next = rolled.expect("the segment is full");
    assert!(next.limit() - next.base() >= 16 * MIB, "as long as ever");
}

#[test]
fn cut_gives_edges_of_frames() {
    let storage = MemoryStorage::new();
    let opened = open(&storage, None).expect("opens");
    let (mut writer, segment) = (opened.writer, Arc::clone(&opened.segments[0]));
    let frames: Vec<_> = (0..10).map(|index| big(index, 1000 * index as usize)).collect();
    let edges = append_frames(&mut writer, &frames);
    let mut parts = Vec::new();
    let mut from = segment.first();
    while from < segment.end() {
        let to = segment.cut(from, 5_000);
        assert!(edges.contains(&to) && (to - from >= 5_000 || to == segment.end()));
        for record in segment.walk(from, to) {
            parts.push(Event::read(&record.expect("whole")));
        }
        from = to;
    }
    assert_eq!(parts, frames.concat());
    assert_eq!(segment.cut(segment.first(), 0), segment.first());
    assert_eq!(segment.cut(segment.first(), u64::MAX), segment.end());
}

#[test]
fn a_spare_is_asked_for_once_and_used_at_the_roll() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let request: SpareRequest = writer.request_spare().expect("there is none yet");
    assert_eq!(writer.request_spare(), None, "one at a time");
    assert!(!writer.awaits_spare(&frame_of(&big(0, 10))), "it fits into this segment");
    append_frames(&mut writer, &[big(0, 900_000)]);
    assert!(writer.awaits_spare(&frame_of(&big(1, 900_000))));
    assert!(!storage.list().expect("lists").contains(&name::segment(2)));

    let spare = request.prepare(&storage, &|| true).expect("prepares");
    assert!(storage.list().expect("lists").contains(&name::segment(2)));
    assert!(!storage.list().expect("lists").contains(&name::segment_new(2)));
    writer.offer_spare(Some(spare));
    assert_eq!(writer.request_spare(), None, "there is one");
    assert!(!writer.awaits_spare(&frame_of(&big(1, 900_000))));

    append_frames(&mut writer, &[big(1, 900_000)]);
    assert!(writer.request_spare().is_some(), "the spare was used");
    drop(writer);
    let reader = read(&storage, None).expect("opens");
    assert_eq!(whole(&reader.segments), [big(0, 900_000), big(1, 900_000)].concat());
    assert_eq!(reader.segments.len(), 2);
}

#[test]
fn a_spare_that_could_not_be_made_is_made_at_the_roll() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    writer.request_spare().expect("there is none yet");
    writer.offer_spare(None);
    append_frames(&mut writer, &[big(0, 900_000), big(1, 900_000)]);
    drop(writer);
    assert_eq!(read(&storage, None).expect("opens").segments.len(), 2);
}

#[test]
fn a_spare_too_short_for_the_frame_is_replaced() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let spare =
        writer.request_spare().expect("none yet").prepare(&storage, &|| true).expect("prepares");
    writer.offer_spare(Some(spare));
    let frames = [big(0, 10), big(1, 2_000_000)];
    append_frames(&mut writer, &frames);
    drop(writer);
    let reader = read(&storage, None).expect("opens");
    assert_eq!(whole(&reader.segments), frames.concat());
    assert_eq!(reader.segments[1].limit() - reader.segments[1].base(), 2 * MIB);
}

/// A roll while a spare was being prepared elsewhere once made the segment itself; the spare was then
/// renamed over it, and with it went what had been acknowledged.
#[test]
#[should_panic(expected = "spare")]
fn a_roll_never_overtakes_the_spare_it_asked_for() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let _request = writer.request_spare().expect("none yet");
    append_frames(&mut writer, &[big(0, 900_000), big(1, 900_000)]);
}

#[test]
fn an_unused_spare_does_not_outlive_the_writer_for_long() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    append_frames(&mut writer, &[big(0, 10)]);
    let spare =
        writer.request_spare().expect("none yet").prepare(&storage, &|| true).expect("prepares");
    writer.offer_spare(Some(spare));
    let end = writer.end();
    drop(writer);
    // A reader looks past it.
    let reader = read(&storage, None).expect("opens");
    assert_eq!((reader.segments.len(), reader.end), (1, end));
    // A writer that goes on in place removes it, one that seals takes its number.
    let closed = storage.fork();
    drop(open(&closed, common::hint(end, true)).expect("opens"));
    assert_eq!(closed.list().expect("lists"), [name::segment(1)]);
    let opened = open(&storage, None).expect("opens");
    assert_eq!(opened.segments.len(), 2);
    assert_eq!(whole(&opened.segments), big(0, 10));
}

#[test]
fn an_unclean_end_goes_on_in_a_new_segment_and_an_empty_one_is_used_again() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    append_frames(&mut writer, &[big(0, 10)]);
    drop(writer);
    for _ in 0..5 {
        let opened = open(&storage, None).expect("opens");
        assert_eq!(opened.segments.len(), 2);
        assert_eq!(opened.tail, TailReport::Clean);
    }
}

#[test]
fn an_empty_frame_is_a_frame() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    append_frames(&mut writer, &[big(0, 10), vec![], big(1, 10)]);
    let end = writer.end();
    drop(writer);
    let reader = read(&storage, None).expect("opens");
    assert_eq!(reader.end, end);
    assert_eq!(whole(&reader.segments), [big(0, 10), big(1, 10)].concat());
}

/// Links of a whole log, the last segment too, as a tool that knows nothing of logs makes them.
#[test]
fn a_segment_with_another_name_is_never_written() {
    let (here, there) =
        (tempfile::tempdir().expect("a place"), tempfile::tempdir().expect("a place"));
    let storage = OsStorage::open(here.path()).expect("opens");
    let mut writer =
        LogWriter::open(Arc::new(storage.clone()), OPTIONS, None).expect("opens").writer;
    let events = big(0, 1000);
    append_frames(&mut writer, std::slice::from_ref(&events));
    let end = writer.end();
    drop(writer);
    let last = name::segment(1);
    let bytes = || std::fs::read(here.path().join(&last)).expect("reads");
    let before = bytes();

    let copy = OsStorage::open(there.path()).expect("opens");
    assert!(link(&storage, &copy, &last).expect("links"), "one file system");
    assert!(!link(&storage, &MemoryStorage::new(), &last).expect("nothing to link"));
    // It was closed here, so that one with a single name would be gone on with.
    let hint = common::hint(end, true);
    let mut writer = LogWriter::open(Arc::new(copy.clone()), OPTIONS, hint).expect("opens").writer;
    append_frames(&mut writer, &[events]);
    drop(writer);
    assert!(before == bytes(), "the other name has what was appended under this one");
    assert_eq!(LogReader::open(&copy, None).expect("opens").segments.len(), 2);
    let refused = MappedWriter::open(&copy, &last, 4096).expect_err("it has another name");
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData);

    std::fs::remove_file(there.path().join(&last)).expect("removes");
    MappedWriter::open(&storage, &last, 4096).expect("the only name");
    let writer = LogWriter::open(Arc::new(storage), OPTIONS, hint).expect("opens").writer;
    assert_eq!(writer.end(), end, "it goes on in place");
}

#[test]
fn a_frame_says_when_it_was_made_if_anybody_knows() {
    let storage = MemoryStorage::new();
    let mut opened = open(&storage, None).expect("opens");
    let mut frame = FrameBuf::new();
    let mut positions = Vec::new();
    let times = [1_700_000_000_000, 0, 5, 1_600_000_000_000];
    for time in times {
        frame.clear();
        frame.push(&batch_of(&[Event::new("s", "a", "1"), Event::new("s", "b", "2")]));
        if time > 0 {
            frame.stamp(time);
        }
        let start = opened.writer.append(&mut frame).expect("appends").position;
        positions.push((start, start + frame.byte_len()));
        opened.writer.sync().expect("syncs");
    }
    let segment = &opened.segments[0];
    let mut walked = segment.frame_times();
    for (&(start, end), time) in positions.iter().zip(times) {
        let time = Some(time).filter(|&time| time > 0);
        for position in [start, start + 48, end - 8] {
            assert_eq!(walked.at(position), time, "{position}");
            assert_eq!(segment.frame_times().at(position), time, "{position}");
        }
    }
    assert_eq!(walked.at(positions[0].0), Some(times[0]), "it goes back if it must");
    assert_eq!(walked.at(segment.end()), None);
    // Of a frame whose header is damaged nothing is known, and of the next one it is.
    let file = storage.open(&thalweg_wal::name::segment(1), Access::Write).expect("opens");
    file.write_at(&[0xFF], positions[2].0 - segment.base() + 17).expect("writes");
    let reader = read(&storage, None).expect("opens");
    let mut walked = reader.segments[0].frame_times();
    let found: Vec<_> = positions.iter().map(|&(start, _)| walked.at(start + 48)).collect();
    assert_eq!(found, [Some(times[0]), None, None, Some(times[3])]);
}
