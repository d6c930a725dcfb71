//! What opening a log reads from the device, past the cache: what nothing proves to be there, and no more.

mod common;
#[path = "common/hooked.rs"]
mod hooked;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Event, frame_of, whole};
use hooked::{Hooked, Op};
use thalweg_wal::storage::MemoryStorage;
use thalweg_wal::{LogOptions, LogWriter, TailReport};

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

#[test]
fn frames_longer_and_shorter_than_what_is_read_at_once_are_proved() {
    let event = |frame: usize, number: usize| {
        Event::new("s", format!("{frame} {number}"), vec![7; PAYLOAD_LEN])
    };
    let events_in = |frame: usize| if frame.is_multiple_of(3) { 300 } else { frame };
    let frames: Vec<Vec<Event>> = (1..8)
        .map(|frame| (0..events_in(frame)).map(|number| event(frame, number)).collect())
        .collect();
    let last = frames.last().map_or(0, Vec::len);
    let read = device_bytes_to_open(&log_of_frames(&frames), &frames.concat());
    assert!(read < SOME_PAGES + (last + 1) * PAYLOAD_LEN, "{read} bytes");
}
