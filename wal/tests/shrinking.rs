//! A file that somebody else makes shorter while it is being opened: an error that names it, at whatever
//! moment it happens, and never a map that is shorter than its header says.

mod common;
#[path = "common/hooked.rs"]
mod hooked;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Event, OPTIONS, append_frames, bytes_of, hint, open, put};
use hooked::{Hooked, Op};
use thalweg_wal::storage::{MemoryStorage, read_file};
use thalweg_wal::{LogReader, LogWriter, OpenError, name};

/// A directory in which a file gets shorter right before it is opened for the nth time.
fn shrinking(inner: MemoryStorage, shrinks: &str, len: usize, opens: u64) -> Hooked {
    let (files, shrinks, opens_left) = (inner.clone(), shrinks.to_owned(), AtomicU64::new(opens));
    Hooked::new(inner, move |op| {
        if matches!(op, Op::Open(name, _) if name == shrinks)
            && opens_left.fetch_sub(1, Ordering::Relaxed) == 0
        {
            let bytes = read_file(&files, &shrinks)?;
            put(&files, &shrinks, &bytes[..len]);
        }
        Ok(())
    })
}

/// Two segments with a frame each, and where the log ends.
fn store() -> (MemoryStorage, u64) {
    let storage = MemoryStorage::new();
    let mut log_end = 0;
    for round in 0..2_u8 {
        let mut writer = open(&storage, None).expect("opens").writer;
        append_frames(&mut writer, &[vec![Event::new("s", [round], [round; 100])]]);
        // Noise behind the end: the next opening cannot go on in place.
        let number = 1 + u64::from(round);
        let end = writer.end() as usize % (1 << 20);
        log_end = writer.end();
        drop(writer);
        if round == 0 {
            common::patch(&storage, number, end + 64, &[7]);
        }
    }
    assert_eq!(bytes_of(&storage, 2).len(), 1 << 20);
    (storage, log_end)
}

/// Whether an error names the file.
fn is_refused<T>(opened: &Result<T, OpenError>, name: &str, what: &str) -> bool {
    let Err(error) = opened else { return false };
    assert!(error.to_string().contains(name), "{what}: {error}");
    true
}

#[test]
fn a_file_that_shrinks_while_it_is_opened_is_an_error_by_name() {
    let (store, end) = store();
    let mut refused = 0;
    for number in [1, 2] {
        let name = name::segment(number);
        for len in [0, 1, 4095, 4096, 4097, 4200, 500_000, (1 << 20) - 8] {
            for opens in 0..8 {
                let what = format!("{name} has {len} bytes before it is opened {opens} times");
                let storage = || shrinking(store.fork(), &name, len, opens);
                let read = LogReader::open(&storage(), None);
                refused += u32::from(is_refused(&read, &name, &what));
                // It was closed, so a writer goes on in place.
                let mut written = LogWriter::open(Arc::new(storage()), OPTIONS, hint(end, true));
                refused += u32::from(is_refused(&written, &name, &what));
                // Where it is too late for an error, the log goes on, to the end of the segment.
                let Ok(opened) = &mut written else { continue };
                let number = opened.segments.len();
                for round in 0..4 {
                    let event = Event::new("s", [round], vec![round; 400_000]);
                    let mut frame = common::frame_of(&[event]);
                    opened.writer.append(&mut frame).expect("appends");
                    opened.writer.sync().expect("syncs");
                }
                assert!(opened.writer.end() > (number as u64) << 20, "{what}: it has rolled");
            }
        }
    }
    assert!(refused > 50, "only {refused} were refused");
}
