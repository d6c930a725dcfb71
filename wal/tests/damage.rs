//! Damage to what was acknowledged is named, never cut, and costs one record.

mod common;

use std::sync::Arc;

use common::{
    Event, FRAME_HEADER, HEADER_PAGE, append_frames, bytes_of, flip, hint, open, patch, read, walk,
    whole,
};
use thalweg_wal::format::SEGMENT_HEADER_LEN;
use thalweg_wal::storage::{MemoryStorage, Storage};
use thalweg_wal::{Damage, LossBuilder, OpenError, Segment, TailReport, name};

fn frames() -> Vec<Vec<Event>> {
    let event = |id: &str, len| Event {
        parents: Some(vec![b"p".to_vec(), b"qq".to_vec()]),
        ..Event::new("s", id, vec![0x5A; len])
    };
    vec![
        vec![event("a", 10), event("b", 0), event("c", 33)],
        vec![event("d", 1)],
        vec![event("e", 30), event("f", 7)],
        vec![event("g", 5)],
    ]
}

struct Store {
    storage: MemoryStorage,
    /// Positions of the frames, then of the end.
    edges: Vec<u64>,
    /// Position, end and event of every record.
    records: Vec<(u64, u64, Event)>,
}

fn store() -> Store {
    let storage = MemoryStorage::new();
    let opened = open(&storage, None).expect("opens");
    let mut writer = opened.writer;
    let edges = append_frames(&mut writer, &frames());
    let segment = &opened.segments[0];
    let records = segment
        .walk(segment.first(), segment.end())
        .map(|record| record.expect("whole"))
        .map(|record| (record.position(), record.position() + record.len(), Event::read(&record)))
        .collect();
    Store { storage, edges, records }
}

impl Store {
    /// The last edge at or before `position`.
    fn frame_at(&self, position: u64) -> u64 {
        *self.edges.iter().rfind(|&&edge| edge <= position).expect("inside")
    }

    /// All events but those whose record has a byte in `from..to`.
    fn but(&self, from: u64, to: u64) -> Vec<Event> {
        let untouched = |record: &&(u64, u64, Event)| record.1 <= from || record.0 >= to;
        self.records.iter().filter(untouched).map(|record| record.2.clone()).collect()
    }
}

fn refused(storage: &MemoryStorage, with: Option<thalweg_wal::TailHint>) -> Damage {
    let (names, bytes) = (storage.list().expect("lists"), bytes_of(storage, 1));
    let damage = match open(storage, with) {
        Err(OpenError::Damaged(damage)) => damage,
        other => panic!("opening for writing must be refused, got {other:?}"),
    };
    assert_eq!(storage.list().expect("lists"), names, "a refused opening changes nothing");
    assert!(bytes_of(storage, 1) == bytes, "a refused opening changes nothing");
    damage
}

/// The places that a walk complains about lie where the harm was done.
fn lies_around(damage: &[Damage], from: u64, to: u64) {
    for found in damage {
        assert!(found.position < to && found.resumes > from, "{found} for {from}..{to}");
        assert_eq!(found.file, name::segment(found.segment));
    }
}

#[test]
fn a_flipped_bit_before_the_tail_refuses_writers_and_costs_readers_one_record() {
    let store = store();
    for at in store.edges[0]..store.edges[3] {
        let storage = store.storage.fork();
        flip(&storage, 1, at as usize, (at % 8) as u8);
        let frame = store.frame_at(at);

        let found = refused(&storage, None);
        assert_eq!((found.segment, found.position, found.offset), (1, frame, frame), "byte {at}");
        assert_eq!(found.file, name::segment(1));
        let next = store.edges.iter().find(|&&edge| edge > at).expect("a later frame");
        assert_eq!(found.resumes, *next);

        let reader = read(&storage, None).expect("opens for reading");
        assert_eq!(reader.damage, [found]);
        assert_eq!(reader.end, store.edges[4]);
        let (events, damage) = walk(&reader.segments);
        assert_eq!(events, store.but(at, at + 1), "byte {at}");
        assert_eq!(damage.len(), 1, "byte {at}: {damage:?}");
        lies_around(&damage, at, at + 1);
    }
}

#[test]
fn every_byte_of_a_sealed_segment_is_guarded() {
    let store = store();
    // Going on after the unclean end seals the segment.
    let mut writer = open(&store.storage, None).expect("opens").writer;
    let after = vec![Event::new("s", "after", "x")];
    append_frames(&mut writer, std::slice::from_ref(&after));
    drop(writer);
    for at in store.edges[0]..store.edges[4] {
        let storage = store.storage.fork();
        flip(&storage, 1, at as usize, ((at + 3) % 8) as u8);
        let reader = read(&storage, None).expect("opens for reading");
        let (events, damage) = walk(&reader.segments);
        assert_eq!(events, [store.but(at, at + 1), after.clone()].concat(), "byte {at}");
        assert_eq!(damage.len(), 1, "byte {at}: {damage:?}");
        lies_around(&damage, at, at + 1);
    }
}

#[test]
fn a_hole_of_zeros_or_noise_costs_what_it_covers() {
    let store = store();
    let mut writer = open(&store.storage, None).expect("opens").writer;
    append_frames(&mut writer, &[vec![Event::new("s", "after", "x")]]);
    drop(writer);
    let (first, end) = (store.edges[0], store.edges[4]);
    let bytes = bytes_of(&store.storage, 1);
    for len in [8, 40, 200] {
        for from in (first..end - len).step_by(29) {
            for fill in [0x00, 0xE7, 0xFF] {
                let storage = store.storage.fork();
                let hole = vec![fill; len as usize];
                if bytes[from as usize..][..len as usize] == hole {
                    continue;
                }
                patch(&storage, 1, from as usize, &hole);
                let reader = read(&storage, None).expect("opens for reading");
                let (events, damage) = walk(&reader.segments[..1]);
                assert!(!damage.is_empty());
                // What was covered may have been zeros already, so it can cost less.
                let surely = store.but(from, from + len);
                assert!(events.len() >= surely.len(), "{from} + {len}: {damage:?}");
                let mut rest = events.iter();
                assert!(surely.iter().all(|event| rest.any(|found| found == event)));
                assert!(events.iter().all(|event| store.records.iter().any(|r| r.2 == *event)));
                lies_around(&damage, from, from + len);
            }
        }
    }
}

#[test]
fn damage_in_two_frames_at_the_end_is_still_damage() {
    let store = store();
    // A record of the last frame and one of the frame before it: no whole frame follows the damage,
    // but the header of the last still says that the log was durable up to it.
    let last = store.edges[3] + FRAME_HEADER as u64 + 30;
    let before = store.edges[2] + FRAME_HEADER as u64 + 30;
    flip(&store.storage, 1, last as usize, 1);
    flip(&store.storage, 1, before as usize, 1);
    assert_eq!(refused(&store.storage, None).position, store.edges[2]);
    let reader = read(&store.storage, None).expect("opens for reading");
    assert_eq!(reader.end, store.edges[3], "what stands beyond is in doubt");
    let (events, _) = walk(&reader.segments);
    let expected: Vec<Event> = store.but(before, before + 1);
    assert_eq!(events, expected[..expected.len() - 1]);
}

#[test]
fn a_reader_does_not_show_half_a_frame_of_the_last_flight() {
    let storage = MemoryStorage::new();
    let opened = open(&storage, None).expect("opens");
    let mut writer = opened.writer;
    let edges = append_frames(&mut writer, &frames()[..2]);
    let torn = writer.append(&mut common::frame_of(&frames()[2])).expect("appends").position;
    writer.append(&mut common::frame_of(&frames()[3])).expect("appends");
    drop((writer, opened.segments));
    // Damage in the first frame; the last flight shows that the second was durable, and is torn.
    flip(&storage, 1, edges[0] as usize + FRAME_HEADER, 0);
    flip(&storage, 1, torn as usize + FRAME_HEADER, 0);
    let reader = read(&storage, None).expect("opens for reading");
    assert_eq!(reader.end, torn);
    let (events, damage) = walk(&reader.segments);
    assert_eq!(events, frames()[..2].concat()[1..]);
    assert_eq!(damage.len(), 1);
}

#[test]
fn damage_in_the_last_frame_is_seen_if_a_checkpoint_knows_of_it() {
    let store = store();
    let end = store.edges[4];
    for at in store.edges[3]..end {
        for closed in [true, false] {
            let storage = store.storage.fork();
            flip(&storage, 1, at as usize, (at % 8) as u8);
            let found = refused(&storage, hint(end, closed));
            assert_eq!((found.position, found.resumes), (store.edges[3], end));
            let reader = read(&storage, hint(end, closed)).expect("opens for reading");
            assert_eq!((reader.end, &reader.damage), (end, &vec![found]));
            let (events, damage) = walk(&reader.segments);
            assert_eq!(events, store.but(at, at + 1));
            assert_eq!(damage.len(), 1);
        }
    }
}

#[test]
fn a_log_that_lost_its_end_is_refused_if_a_checkpoint_knows_of_it() {
    let store = store();
    let end = store.edges[4];
    for (from, last) in [(1, 0), (2, 1), (3, 2), (4, 3)] {
        let storage = store.storage.fork();
        let lost = store.edges[last];
        patch(&storage, 1, lost as usize, &vec![0; (end - lost) as usize]);
        let found = refused(&storage, hint(end, true));
        assert_eq!((found.position, found.resumes), (lost, end));
        let reader = read(&storage, hint(end, true)).expect("opens for reading");
        let (events, damage) = walk(&reader.segments);
        assert_eq!(events, frames()[..from - 1].concat());
        assert_eq!(damage.len(), 1);
    }
    // The whole file.
    let storage = store.storage.fork();
    patch(&storage, 1, HEADER_PAGE, &vec![0; (end as usize) - HEADER_PAGE]);
    assert_eq!(refused(&storage, hint(end, false)).position, SEGMENT_HEADER_LEN);
}

#[test]
fn a_frame_at_another_place_is_no_frame() {
    let store = store();
    let bytes = bytes_of(&store.storage, 1);
    let frame = |index: usize| &bytes[store.edges[index] as usize..store.edges[index + 1] as usize];
    // Once more behind the end: neither read nor taken for damage.
    let storage = store.storage.fork();
    patch(&storage, 1, store.edges[4] as usize, frame(3));
    let reader = read(&storage, None).expect("opens");
    assert!(matches!(reader.tail, TailReport::Cut { position, .. } if position == store.edges[4]));
    assert_eq!(whole(&reader.segments), frames().concat());
    // In place of another of the same length.
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let twins: Vec<_> = (0..3).map(|index| vec![Event::new("s", [index], "same")]).collect();
    let edges = append_frames(&mut writer, &twins);
    drop(writer);
    let copy = bytes_of(&storage, 1)[edges[0] as usize..edges[1] as usize].to_vec();
    patch(&storage, 1, edges[1] as usize, &copy);
    assert_eq!(refused(&storage, None).position, edges[1]);
    let (events, _) = walk(&read(&storage, None).expect("opens").segments);
    assert_eq!(events, [twins[0].clone(), twins[2].clone()].concat());
}

#[test]
fn a_frame_of_another_store_is_no_frame() {
    let (ours, theirs) = (store(), store());
    let range = ours.edges[3] as usize..ours.edges[4] as usize;
    let stale = bytes_of(&theirs.storage, 1)[range.clone()].to_vec();
    patch(&ours.storage, 1, range.start, &stale);
    // Same place, same contents, another salt.
    let reader = read(&ours.storage, None).expect("opens");
    assert_eq!(reader.end, ours.edges[3]);
    assert_eq!(whole(&reader.segments), frames()[..3].concat());
}

/// Bytes that an earlier attempt left behind the end stay dead: the segment is sealed below them and
/// the next one has another salt.
#[test]
fn stale_bytes_behind_the_end_never_come_back() {
    let store = store();
    let segment_bytes = bytes_of(&store.storage, 1);
    let torn = store.edges[3] as usize;
    flip(&store.storage, 1, torn + FRAME_HEADER + 1, 2);
    let opened = open(&store.storage, None).expect("opens");
    assert!(matches!(opened.tail, TailReport::Cut { .. }));
    drop(opened);
    // Even if the device now comes up with the whole frame after all.
    patch(&store.storage, 1, torn, &segment_bytes[torn..store.edges[4] as usize]);
    let opened = open(&store.storage, None).expect("opens");
    assert_eq!(whole(&opened.segments), frames()[..3].concat());
    assert_eq!(opened.segments[0].end(), store.edges[3]);
}

#[test]
fn cut_goes_on_past_damage() {
    let store = store();
    let mut writer = open(&store.storage, None).expect("opens").writer;
    append_frames(&mut writer, &[vec![Event::new("s", "after", "x")]]);
    drop(writer);
    for at in store.edges[0]..store.edges[4] {
        let storage = store.storage.fork();
        flip(&storage, 1, at as usize, 2);
        let reader = read(&storage, None).expect("opens for reading");
        let segment: &Segment = &reader.segments[0];
        let (mut from, mut events) = (segment.first(), Vec::new());
        while from < segment.end() {
            let to = segment.cut(from, 100);
            assert!(to > from, "byte {at}: progress");
            let part = segment.walk(from, to).filter_map(Result::ok);
            events.extend(part.map(|record| Event::read(&record)));
            from = to;
        }
        assert_eq!(events, store.but(at, at + 1), "byte {at}");
    }
}

/// A window that ends within a frame would part a mark, or a tied event, from what it depends on; and a
/// checkpoint of that place knows nothing of what was refused before it.
#[test]
fn cut_never_parts_the_records_of_a_frame() {
    let store = store();
    let mut writer = open(&store.storage, None).expect("opens").writer;
    append_frames(&mut writer, &[vec![Event::new("s", "after", "x")]]);
    drop(writer);
    for &at in &store.edges[..4] {
        let storage = store.storage.fork();
        flip(&storage, 1, at as usize + 8, 2);
        for lost in [false, true] {
            if lost {
                let mut losses = LossBuilder::default();
                losses.lose(at, at + FRAME_HEADER as u64);
                let store_id = thalweg_wal::store_id(&storage).expect("a store");
                losses.build(store_id).write(&storage).expect("writes");
            }
            let reader = read(&storage, None).expect("opens for reading");
            let segment: &Segment = &reader.segments[0];
            let (first, end) = (segment.first(), segment.end());
            for len in (8..end - first).step_by(8) {
                let to = segment.cut(first, len);
                let is_edge = to == end || store.edges.contains(&to);
                assert!(is_edge && to >= first + len, "header at {at}, lost: {lost}: {to}");
            }
        }
    }
}

#[test]
fn a_segment_of_random_bytes_is_damage_and_never_a_panic() {
    let store = store();
    let noise: Vec<u8> = (0_u64..1 << 20)
        .map(|index| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8)
        .collect();
    let storage = store.storage.fork();
    common::put(&storage, &name::segment(1), &noise);
    assert!(matches!(open(&storage, None), Err(OpenError::Damaged(_))));
    assert!(matches!(read(&storage, None), Err(OpenError::Damaged(_))));
    // A good header over random bytes: nothing there proves anything.
    patch(&storage, 1, 0, &bytes_of(&store.storage, 1)[..HEADER_PAGE]);
    let reader = read(&storage, None).expect("opens");
    assert_eq!(reader.end, SEGMENT_HEADER_LEN);
    assert_eq!(walk(&reader.segments), (vec![], vec![]));
    let shared: &Arc<Segment> = &reader.segments[0];
    assert_eq!(shared.end(), SEGMENT_HEADER_LEN);
}
