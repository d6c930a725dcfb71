//! What a checkpoint says of the end of the log saves time and reveals loss; it is never believed
//! over the log.

mod common;

use std::sync::Arc;

use common::{
    Event, FRAME_HEADER, append_frames, bytes_of, flip, hint, open, patch, read, walk, whole,
};
use thalweg_wal::format::Fault;
use thalweg_wal::storage::{MemoryStorage, Storage};
use thalweg_wal::{OpenError, TailReport, name};

fn frames() -> Vec<Vec<Event>> {
    (0..5_u8)
        .map(|index| vec![Event::new("s", [index], vec![index; 100 * usize::from(index)])])
        .collect()
}

fn store() -> (MemoryStorage, Vec<u64>) {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let edges = append_frames(&mut writer, &frames());
    drop(writer);
    (storage, edges)
}

#[test]
fn a_clean_close_goes_on_in_place() {
    let (storage, edges) = store();
    let opened = open(&storage, hint(edges[5], true)).expect("opens");
    assert_eq!((opened.segments.len(), opened.tail), (1, TailReport::Clean));
    assert_eq!(whole(&opened.segments), frames().concat());
    let mut writer = opened.writer;
    assert_eq!(append_frames(&mut writer, &frames())[0], edges[5]);
    drop(writer);
    let twice = [frames(), frames()].concat().concat();
    assert_eq!(whole(&read(&storage, None).expect("opens").segments), twice);
}

#[test]
fn anything_else_goes_on_in_a_new_segment() {
    let (storage, edges) = store();
    let hints = [None, hint(edges[5], false), hint(edges[4], true), hint(0, true), hint(7, false)];
    for hint in hints {
        let storage = storage.fork();
        let opened = open(&storage, hint).expect("opens");
        assert_eq!((opened.segments.len(), opened.tail), (2, TailReport::Clean), "{hint:?}");
        assert_eq!(opened.segments[0].end(), edges[5]);
        assert_eq!(whole(&opened.segments), frames().concat());
    }
}

#[test]
fn a_clean_close_with_something_behind_it_is_not_clean() {
    let (storage, edges) = store();
    patch(&storage, 1, edges[5] as usize + 300, b"!");
    let opened = open(&storage, hint(edges[5], true)).expect("opens");
    assert_eq!(opened.tail, TailReport::Cut { position: edges[5], dropped_len: 301 });
    assert_eq!(opened.segments.len(), 2);
}

#[test]
fn frames_behind_the_checkpoint_are_found() {
    let (storage, edges) = store();
    for durable_end in edges {
        for closed in [true, false] {
            let reader = read(&storage, hint(durable_end, closed)).expect("opens");
            assert_eq!(whole(&reader.segments), frames().concat());
        }
    }
}

/// A checkpoint that is none of this log, or names no edge of a frame, once cut the log where it said.
#[test]
fn a_checkpoint_that_names_no_end_of_a_frame_is_not_believed() {
    let (storage, edges) = store();
    for durable_end in edges[0] - 20..edges[5] {
        let opened = open(&storage.fork(), hint(durable_end, true)).expect("opens");
        assert_eq!(opened.tail, TailReport::Clean, "{durable_end}");
        assert_eq!(opened.segments[0].end(), edges[5]);
    }
}

#[test]
fn a_checkpoint_beyond_the_end_refuses_writers_and_tells_readers() {
    let (storage, edges) = store();
    let limit = 1 << 20;
    for durable_end in [edges[5] + 1, edges[5] + 8, edges[5] + 4096, limit, limit + 8, u64::MAX] {
        for closed in [true, false] {
            let storage = storage.fork();
            let files = common::snapshot(&storage);
            let Err(OpenError::Damaged(found)) = open(&storage, hint(durable_end, closed)) else {
                panic!("{durable_end}: must be refused");
            };
            assert!(common::snapshot(&storage) == files);
            assert_eq!((found.position, found.resumes), (edges[5], durable_end));
            assert_eq!(found.file, name::segment(1));
            let reader = read(&storage, hint(durable_end, closed)).expect("opens for reading");
            if durable_end > limit {
                // Nothing follows the frames of this segment: a later one is missing.
                let [missing] = &reader.damage[..] else { panic!("{:?}", reader.damage) };
                assert_eq!((missing.segment, missing.fault), (2, Fault::Missing));
                assert_eq!((missing.position, missing.resumes), (limit, durable_end));
            } else {
                assert_eq!(reader.damage, [found]);
            }
            assert_eq!(walk(&reader.segments).0, frames().concat());
        }
    }
}

#[test]
fn a_lost_last_segment_is_seen_by_the_checkpoint_alone() {
    let (storage, _) = store();
    let mut writer = open(&storage, None).expect("opens").writer;
    let end = append_frames(&mut writer, &frames())[5];
    drop(writer);
    storage.remove(&name::segment(2)).expect("removes");
    assert!(matches!(open(&storage, hint(end, false)), Err(OpenError::Damaged(_))));
    // Without one it is gone unseen; FORMAT.md says so.
    let reader = read(&storage, None).expect("opens");
    assert_eq!((whole(&reader.segments), reader.damage), (frames().concat(), vec![]));
}

#[test]
fn the_last_frame_before_the_checkpoint_is_found_however_long_it_is() {
    for len in [0, 60_000, 70_000, 600_000, 5_000_000] {
        let storage = MemoryStorage::new();
        let mut writer = open(&storage, None).expect("opens").writer;
        let long = [vec![Event::new("s", "short", "x")], vec![Event::new("s", "l", vec![1; len])]];
        let edges = append_frames(&mut writer, &long);
        drop(writer);
        let opened = open(&storage.fork(), hint(edges[2], true)).expect("opens");
        assert_eq!(opened.writer.end(), edges[2], "in place");
        // It starts there and not before: what is damaged before it is the readers' to find.
        let number = opened.segments.len() as u64;
        let first = opened.segments[number as usize - 1].first();
        let base = first - 4096;
        drop(opened);
        if edges[0] >= first {
            flip(&storage, number, (edges[0] - base) as usize + FRAME_HEADER, 1);
            assert!(open(&storage.fork(), hint(edges[2], true)).is_ok());
            assert!(open(&storage.fork(), None).is_err());
        }
        flip(&storage, number, (edges[1] - base) as usize + FRAME_HEADER, 1);
        assert!(open(&storage.fork(), hint(edges[2], true)).is_err());
    }
}

#[test]
fn records_of_an_unknown_kind_are_kept_and_reported_but_never_cut() {
    // A later version may write kinds and flags that this one does not know: a kind, flags, tips that
    // nobody lists, a place that does not fit, seals and a mark that have an id and a payload.
    for (offset, value) in
        [(5, 9), (6, 0x80), (6, 0x20), (6, 0x05), (6, 0x09), (5, 2), (5, 3), (5, 4)]
    {
        let (storage, edges) = store();
        let at = edges[4] as usize + FRAME_HEADER;
        let mut record = bytes_of(&storage, 1)[at..edges[5] as usize].to_vec();
        record[offset] = value;
        reseal(&storage, at, &mut record);
        let storage: Arc<MemoryStorage> = Arc::new(storage);
        let opened = open(&storage, None).expect("opens");
        assert_eq!(opened.tail, TailReport::Clean);
        assert_eq!(opened.segments[0].end(), edges[5]);
        let (events, damage) = walk(&opened.segments);
        assert_eq!(events, frames()[..4].concat());
        let [found] = &damage[..] else { panic!("one record: {damage:?}") };
        assert_eq!(found.fault, thalweg_wal::format::Fault::Unknown);
        assert_eq!((found.position, found.resumes), (at as u64, edges[5]));
    }
}

/// Puts a record with a checksum that matches at its place in the first segment.
fn reseal(storage: &MemoryStorage, at: usize, record: &mut [u8]) {
    let salt = &bytes_of(storage, 1)[56..64];
    let content = crc32c::crc32c(&record[4..]).to_le_bytes();
    let crc = crc32c::crc32c(&[salt, &(at as u64).to_le_bytes(), &content].concat());
    record[..4].copy_from_slice(&crc.to_le_bytes());
    patch(storage, 1, at, record);
}

/// A list of parents is walked by its count here and by its bytes there. Where the two did not agree, the
/// engine came to another order than the serial machine.
#[test]
fn a_list_of_parents_that_is_not_what_its_header_says_is_damage() {
    let parents = Some(vec![b"a".to_vec(), b"bb".to_vec()]);
    let event = Event { parents, if_local: Some(1), ..Event::new("s", "id", "payload") };
    // The lineage is 8 bytes of the place, and 1 + 1 and 1 + 2 of the parents.
    let (flags, lineage_len, count, list) = (6, 12, 16, 24 + 1 + 2 + 8);
    let changes: [&[(usize, u8)]; 9] = [
        &[(count, 1)],
        &[(count, 3)],
        &[(count + 3, 255)],
        &[(count, 0)],
        &[(lineage_len, 12), (8, 8)],
        &[(lineage_len, 14), (8, 6)],
        // A parent without a name, one that goes beyond the list, and one that nobody could name.
        &[(list, 0), (list + 1, 3), (list + 2, 2)],
        &[(list + 2, 3)],
        &[(flags, 1 | 1 << 3)],
    ];
    for (index, change) in changes.iter().enumerate() {
        let storage = MemoryStorage::new();
        let mut writer = open(&storage, None).expect("opens").writer;
        let edges = append_frames(&mut writer, &[vec![event.clone()], vec![event.clone()]]);
        drop(writer);
        let at = edges[0] as usize + FRAME_HEADER;
        let mut record = bytes_of(&storage, 1)[at..edges[1] as usize].to_vec();
        change.iter().for_each(|&(offset, value)| record[offset] = value);
        reseal(&storage, at, &mut record);
        let (events, damage) = walk(&read(&storage, None).expect("opens").segments);
        assert_eq!(events, std::slice::from_ref(&event), "change {index}");
        let [found] = &damage[..] else { panic!("change {index}: {damage:?}") };
        assert_eq!(found.fault, thalweg_wal::format::Fault::Unknown);
    }
    // A name of 65 bytes, in a list that is otherwise right.
    let event = Event { parents: Some(vec![vec![b'p'; 64]]), ..Event::new("s", "id", "p") };
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let edges = append_frames(&mut writer, &[vec![event]]);
    drop(writer);
    let at = edges[0] as usize + FRAME_HEADER;
    let mut record = bytes_of(&storage, 1)[at..edges[1] as usize].to_vec();
    (record[8], record[12], record[24 + 1 + 2]) = (0, 66, 65);
    reseal(&storage, at, &mut record);
    let (events, damage) = walk(&read(&storage, None).expect("opens").segments);
    assert_eq!((events.len(), damage.len()), (0, 1));
}
