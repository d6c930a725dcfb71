//! A frame that was cut short while it was written was never acknowledged: it goes, and with it
//! nothing else.

mod common;

use std::sync::Arc;

use common::{
    Event, HEADER_PAGE, OPTIONS, append_frames, bytes_of, flip, open, patch, read, whole,
};
use thalweg_wal::storage::{MemoryStorage, OsStorage, Storage};
use thalweg_wal::{LogReader, LogWriter, TailReport, name};

/// Two whole frames and the one that tears. Its last byte is not zero and it has no padding, so
/// every byte of it matters.
fn frames() -> [Vec<Event>; 3] {
    let event = |id: &str, len| Event::new("s", id, vec![0x5A; len]);
    [
        vec![event("a", 10), event("b", 20)],
        vec![event("c", 30)],
        vec![event("d", 22), event("e", 6), event("f", 38)],
    ]
}

/// A closed store with `frames()`, and the positions of the frames and of the end.
fn store() -> (MemoryStorage, Vec<u64>) {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let edges = append_frames(&mut writer, &frames());
    assert_ne!(bytes_of(&storage, 1)[edges[3] as usize - 1], 0);
    (storage, edges)
}

fn kept() -> Vec<Event> {
    frames()[..2].concat()
}

/// Bytes without a pattern, the same in every run.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9E37_79B9_7F4A_7C15;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// Opens for reading, then for writing, appends, and opens again.
fn recovers(storage: &MemoryStorage, position: u64, report: TailReport) {
    let reader = read(storage, None).expect("opens for reading");
    assert_eq!((reader.end, reader.tail), (position, report));
    assert_eq!(reader.damage, []);
    assert_eq!(whole(&reader.segments), kept());
    drop(reader);

    let opened = open(storage, None).expect("opens for writing");
    assert_eq!(opened.tail, report);
    assert_eq!(whole(&opened.segments), kept());
    let mut writer = opened.writer;
    let later = vec![Event::new("s", "later", "x")];
    append_frames(&mut writer, std::slice::from_ref(&later));
    drop(writer);
    let reader = read(storage, None).expect("opens again");
    assert_eq!(reader.tail, TailReport::Clean);
    assert_eq!(whole(&reader.segments), [kept(), later].concat());
}

/// Harms the last frame from each of its bytes on: `harm` gets the frame, the byte and the end, and
/// returns the end of what is now written.
fn each_byte(harm: impl Fn(&MemoryStorage, usize, usize, usize) -> u64) {
    let (storage, edges) = store();
    for at in edges[2]..edges[3] {
        let storage = storage.fork();
        let written_end = harm(&storage, edges[2] as usize, at as usize, edges[3] as usize);
        let dropped_len = written_end - edges[2];
        let report = match dropped_len {
            0 => TailReport::Clean,
            _ => TailReport::Cut { position: edges[2], dropped_len },
        };
        recovers(&storage, edges[2], report);
    }
}

fn written_end(storage: &MemoryStorage, at_least: usize) -> u64 {
    let bytes = &bytes_of(storage, 1)[..2 * HEADER_PAGE];
    let last = bytes.iter().rposition(|&byte| byte != 0).expect("not empty");
    (last as u64 + 1).max(at_least as u64)
}

#[test]
fn a_frame_that_ends_in_zeros_from_any_byte_on_is_cut() {
    each_byte(|storage, frame, at, end| {
        patch(storage, 1, at, &vec![0; end - at]);
        written_end(storage, frame)
    });
}

#[test]
fn a_frame_that_ends_in_garbage_from_any_byte_on_is_cut() {
    each_byte(|storage, _, at, end| {
        let mut garbage = noise(at, end - at + 700);
        // The first byte is surely another one, the last surely not zero.
        garbage[0] = bytes_of(storage, 1)[at] ^ (garbage[0] | 1);
        *garbage.last_mut().expect("not empty") |= 1;
        patch(storage, 1, at, &garbage);
        (end + 700) as u64
    });
}

#[test]
fn a_frame_with_one_wrong_byte_and_nothing_behind_it_is_cut() {
    each_byte(|storage, _, at, end| {
        flip(storage, 1, at, (at % 8) as u8);
        written_end(storage, end)
    });
}

#[test]
fn a_frame_whose_beginning_never_arrived_is_cut() {
    each_byte(|storage, frame, at, end| {
        patch(storage, 1, frame, &vec![0; at - frame + 1]);
        if at + 1 == end { frame as u64 } else { end as u64 }
    });
}

#[test]
fn frames_of_one_flight_behind_a_torn_one_prove_nothing() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    append_frames(&mut writer, &frames()[..2]);
    // Two frames, one sync: the device may have got the second and not the first.
    let torn = writer.append(&mut common::frame_of(&frames()[2])).expect("appends").position;
    let behind = writer.append(&mut common::frame_of(&frames()[0])).expect("appends").end;
    drop(writer);
    flip(&storage, 1, torn as usize + 60, 3);
    recovers(
        &storage,
        torn,
        TailReport::Cut { position: torn, dropped_len: written_end(&storage, 0) - torn },
    );
    assert!(behind > torn);
}

#[test]
fn cutting_is_the_same_however_often_the_machine_stops_while_it_recovers() {
    let (storage, edges) = store();
    patch(&storage, 1, edges[2] as usize + 100, &[0; 16]);
    let once = storage.fork();
    drop(open(&once, None).expect("opens"));
    // The new segment is there, but its header never was written, or only torn.
    let page = bytes_of(&once, 2)[..HEADER_PAGE].to_vec();
    for torn in [0, 1, 8, 50, 512, 2047] {
        let mut part = page.clone();
        part[torn..].fill(0);
        let again = once.fork();
        patch(&again, 2, 0, &part);
        let dropped_len = edges[3] - edges[2];
        recovers(&again, edges[2], TailReport::Cut { position: edges[2], dropped_len });
    }
    // The preparation of the new segment was cut short.
    let again = storage.fork();
    common::put(&again, &name::segment_new(2), b"half");
    let opened = open(&again, None).expect("opens");
    assert_eq!(whole(&opened.segments), kept());
    assert_eq!(again.list().expect("lists"), [name::segment(1), name::segment(2)]);
}

#[test]
fn a_torn_tail_is_cut_on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::open(dir.path()).expect("opens"));
    let mut writer = LogWriter::open(Arc::clone(&storage), OPTIONS, None).expect("opens").writer;
    let edges = append_frames(&mut writer, &frames());
    drop(writer);
    let path = dir.path().join(name::segment(1));
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[edges[2] as usize + 70..edges[3] as usize].fill(0xEE);
    std::fs::write(&path, &bytes).expect("writes");
    let opened = LogWriter::open(Arc::clone(&storage), OPTIONS, None).expect("opens");
    let dropped_len = edges[3] - edges[2];
    assert_eq!(opened.tail, TailReport::Cut { position: edges[2], dropped_len });
    assert_eq!(whole(&opened.segments), kept());
    drop(opened);
    let reader = LogReader::open(&*storage, None).expect("opens");
    assert_eq!(whole(&reader.segments), kept());
    assert_eq!(std::fs::read(&path).expect("reads"), bytes, "the cut changes no byte");
}
