//! What opening a log reads from the device, past the cache: what nothing proves to be there, and no more.

mod common;
#[path = "common/hooked.rs"]
mod hooked;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Event, bytes_of, frame_of, patch, whole};
use hooked::{Hooked, Op};
use thalweg_wal::storage::MemoryStorage;
use thalweg_wal::{LogOptions, LogReader, LogWriter, TailReport};

const OPTIONS: LogOptions = LogOptions { create: true, segment_len_max: 64 << 20 };
const FRAMES: usize = 60;
const PAYLOAD_LEN: usize = 10_000;
/// Bytes that are read of pages that only begin or end with what is wanted, and of headers.
const SOME_PAGES: usize = 4 * 4096;

fn events() -> Vec<Event> {
    (0..FRAMES).map(|number| Event::new("s", format!("{number}"), vec![7; PAYLOAD_LEN])).collect()
}

/// A log in one segment of 1 MiB, synced after so many frames each time.
fn log_synced_every(count: usize) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let options = LogOptions { segment_len_max: 1 << 20, ..OPTIONS };
    let mut writer =
        LogWriter::open(Arc::new(storage.clone()), options, None).expect("opens").writer;
    for (number, event) in events().iter().enumerate() {
        writer.append(&mut frame_of(std::slice::from_ref(event))).expect("appends");
        if (number + 1) % count == 0 {
            writer.sync().expect("syncs");
        }
    }
    writer.sync().expect("syncs");
    storage
}

/// A log of frames with these events, each synced.
fn log_of_frames(frames: &[Vec<Event>]) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut writer =
        LogWriter::open(Arc::new(storage.clone()), OPTIONS, None).expect("opens").writer;
    for events in frames {
        writer.append(&mut frame_of(events)).expect("appends");
        writer.sync().expect("syncs");
    }
    storage
}

/// Opens a log with these events for writing; how much of the segments was read from the device for it.
fn device_bytes_to_open(storage: &MemoryStorage, events: &[Event]) -> usize {
    let read = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&read);
    let hooked = Hooked::new(storage.fork(), move |op| {
        if let Op::ReadDevice(len) = op {
            count.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    });
    let opened = LogWriter::open(Arc::new(hooked), OPTIONS, None).expect("opens");
    assert_eq!(opened.tail, TailReport::Clean);
    assert_eq!(whole(&opened.segments), events);
    read.load(Ordering::Relaxed)
}

#[test]
fn what_a_later_frame_proves_and_zeros_are_not_read_from_the_device() {
    let read = device_bytes_to_open(&log_synced_every(1), &events());
    assert!(read < SOME_PAGES + 2 * PAYLOAD_LEN, "{read} bytes");
}

#[test]
fn what_was_synced_together_is_read_from_the_device() {
    let read = device_bytes_to_open(&log_synced_every(20), &events());
    assert!(read >= 20 * PAYLOAD_LEN, "{read} bytes");
    assert!(read < SOME_PAGES + 21 * PAYLOAD_LEN, "{read} bytes");
    let read = device_bytes_to_open(&log_synced_every(FRAMES), &events());
    assert!(read >= FRAMES * PAYLOAD_LEN, "{read} bytes");
}

/// A long frame and many short ones behind it, in one segment: its first 3 MiB and the rest come in several pieces.
fn long_and_short() -> Vec<Vec<Event>> {
    let event = |frame: usize, number: usize| {
        Event::new("s", format!("{frame} {number}"), vec![7; PAYLOAD_LEN])
    };
    let events_in = |frame: usize| if frame == 0 { 300 } else { 1 + frame % 3 };
    (0..80)
        .map(|frame| (0..events_in(frame)).map(|number| event(frame, number)).collect())
        .collect()
}

#[test]
fn frames_longer_and_shorter_than_what_is_read_at_once_are_proved() {
    let frames = long_and_short();
    let storage = log_of_frames(&frames);
    let last = frames.last().map_or(0, Vec::len);
    let read = device_bytes_to_open(&storage, &frames.concat());
    assert!(read < SOME_PAGES + (last + 1) * PAYLOAD_LEN, "{read} bytes");
}

/// Zeros behind the frames prove that nothing follows only where all of them are looked at.
#[test]
fn what_stands_far_behind_the_frames_is_no_clean_tail() {
    let frames = long_and_short();
    let storage = log_of_frames(&frames);
    let opened = LogReader::open(&storage, None).expect("opens");
    let (segment, end) = (opened.segments.last().expect("there is one"), opened.end);
    let (number, in_file) = (segment.number(), (end - segment.base()) as usize);
    let far = bytes_of(&storage, number).len() - 4096;
    assert!(far - in_file > 1 << 20, "it is in the piece that the frames end in");
    patch(&storage, number, far + 7, b"left of a write that never arrived as a whole");
    let reopened = LogWriter::open(Arc::new(storage), OPTIONS, None).expect("opens");
    assert!(
        matches!(reopened.tail, TailReport::Cut { position, .. } if position == end),
        "{:?}",
        reopened.tail
    );
    assert_eq!(whole(&reopened.segments), frames.concat());
}
