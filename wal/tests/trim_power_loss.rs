//! A trim survives a stop and an error at every single operation: the log begins at the old place or at the
//! new one, and nothing behind the new one is lost.

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::io;
use std::sync::Arc;

use common::{Event, OPTIONS, append_frames, frame_of, whole};
use disk::{Disk, Fault};
use thalweg_wal::storage::Storage;
use thalweg_wal::{
    LogReader, LogWriter, OpenError, OpenedLog, Survey, TrimPoint, TrimWriter, Trimmed, name,
    retire,
};

/// Two of these fill a segment.
fn frame(index: u8) -> Vec<Event> {
    vec![Event::new("s", [index], vec![index; 400_000])]
}

fn events(indexes: std::ops::Range<u8>) -> Vec<Event> {
    indexes.flat_map(frame).collect()
}

fn open(disk: &Disk) -> Result<OpenedLog, OpenError> {
    LogWriter::open(Arc::new(disk.clone()), OPTIONS, None)
}

/// What the engine would write for a log that begins with a segment: it is longer than a page.
fn body(segment: u64) -> Vec<u8> {
    (0..9000_u64).map(|at| (at * segment) as u8).collect()
}

/// Trims the log up to a segment that is open, and unlinks the rest.
fn trim(disk: &Disk, opened: &OpenedLog, number: u64) -> io::Result<()> {
    let mut segments = opened.segments.iter();
    let segment = segments.find(|segment| segment.number() == number).expect("is there");
    let point = TrimPoint::before(segment).expect("can be told");
    let body = body(number);
    let mut writer = TrimWriter::create(disk, opened.store_id, point, body.len() as u64)?;
    for piece in body.chunks(777) {
        writer.write(piece)?;
    }
    writer.finish()?;
    retire(disk, number).map(drop)
}

/// A disk with a log of ten frames in five segments, that was trimmed up to segment `begins` before.
fn earlier(begins: u64) -> Disk {
    let disk = Disk::new();
    let mut opened = open(&disk).expect("creates");
    append_frames(&mut opened.writer, &(0..10).map(frame).collect::<Vec<_>>());
    drop(opened);
    let disk = disk.power_loss(|| true);
    if begins > 1 {
        trim(&disk, &open(&disk).expect("opens"), begins).expect("trims");
    }
    disk.power_loss(|| false)
}

/// How far the trim up to segment 4 may have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// Nobody was told that it is done.
    Perhaps,
    Yes,
}

/// Opens the log for everybody: it begins with segment `old`, or with segment 4, has all that it has to, and
/// what is written down of the rest fits. Returns the last one.
fn check(disk: &Disk, old: u64, done: Done, indexes: std::ops::Range<u8>) -> OpenedLog {
    let begins = |trim: Option<TrimPoint>| trim.map_or(1, |trim| trim.segment);
    let fits = |segment: u64, found: &[Event]| {
        assert!(segment == 4 || (segment == old && done == Done::Perhaps), "{segment}");
        let first = segment as u8 * 2 - 2;
        assert!(found == events(first..indexes.end), "from {segment} on, others");
    };
    let reader = LogReader::open(disk, None).expect("reads");
    assert_eq!(reader.damage, []);
    fits(begins(reader.trim), &whole(&reader.segments));
    assert!(Survey::open(disk, None, &[]).expect("looks").is_whole());
    let opened = open(disk).expect("a log opens after every crash");
    assert_eq!(opened.trim, reader.trim, "who looks first decides nothing");
    fits(begins(opened.trim), &whole(&opened.segments));
    let trimmed = Trimmed::open(disk).expect("whole");
    assert_eq!(trimmed.as_ref().map(Trimmed::point), opened.trim);
    if let Some(trimmed) = trimmed {
        trimmed.verify_body().expect("whole");
        assert!(trimmed.body() == body(trimmed.point().segment), "of another trim");
    }
    let names = disk.list().expect("lists");
    assert!(!names.contains(&name::trimmed_new().to_owned()));
    let below = |name: &String| match name::kind(name) {
        name::Kind::Segment(number) => number < begins(opened.trim),
        _ => false,
    };
    assert!(!names.iter().any(below), "what was trimmed is gone: {names:?}");
    opened
}

/// Every outcome of a power loss that is worth a look.
fn losses(disk: &Disk, seed: u64) -> Vec<Disk> {
    let mut losses = vec![disk.power_loss(|| false), disk.power_loss(|| true)];
    losses.extend((0..3).map(|more| disk.crash(seed * 3 + more)));
    losses
}

/// Trims and appends with a fault at every operation in turn.
fn at_every_operation(fault: Fault, mut after: impl FnMut(&Disk, u64, u64, Done, u8)) {
    for old in [1, 2] {
        let disk = earlier(old);
        for op in 1.. {
            let disk = disk.power_loss(|| false);
            let mut opened = open(&disk).expect("opens");
            let before = disk.ops();
            disk.fail_at(before + op, fault);
            let mut done = Done::Perhaps;
            let mut end = 10;
            if trim(&disk, &opened, 4).is_ok() {
                done = Done::Yes;
                let appended = opened.writer.append(&mut frame_of(&frame(10)));
                if appended.is_ok() && opened.writer.sync().is_ok() {
                    end = 11;
                } else {
                    // It may be there.
                    continue;
                }
            }
            let over = disk.ops() < before + op;
            drop(opened);
            disk.heal();
            after(&disk, op, old, done, end);
            if over {
                assert!(op > 10, "the run has operations to fail: {op}");
                break;
            }
        }
    }
}

#[test]
fn a_power_loss_at_any_operation_of_a_trim_leaves_the_old_log_or_the_new_one() {
    let mut seen = std::collections::BTreeSet::new();
    at_every_operation(Fault::Stop, |disk, op, old, done, end| {
        for disk in losses(disk, op) {
            let mut opened = check(&disk, old, done, 0..end);
            seen.insert((old, opened.trim.map(|trim| trim.segment)));
            // It goes on, is trimmed again, and loses power again.
            append_frames(&mut opened.writer, &[frame(end)]);
            trim(&disk, &opened, 4).expect("trims");
            drop(opened);
            drop(check(&disk.power_loss(|| false), old, Done::Yes, 0..end + 1));
        }
    });
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        [(1, None), (1, Some(4)), (2, Some(2)), (2, Some(4))]
    );
}

/// The process goes on after an error, or another takes over: with a cache that shows more than the device may have.
#[test]
fn an_error_at_any_operation_of_a_trim_leaves_the_old_log_or_the_new_one() {
    at_every_operation(Fault::Error, |disk, op, old, done, end| {
        let mut opened = check(disk, old, done, 0..end);
        append_frames(&mut opened.writer, &[frame(end)]);
        let begins = opened.trim.map_or(1, |trim| trim.segment);
        drop(opened);
        for disk in losses(disk, op) {
            // What has been opened once stays.
            let done = if begins == 4 { Done::Yes } else { done };
            drop(check(&disk, old, done, 0..end + 1));
        }
    });
}

/// Whoever opens the log after a crash unlinks what is left: it can be stopped there, too.
#[test]
fn a_stop_while_the_rest_is_unlinked_leaves_the_same_log() {
    at_every_operation(Fault::Stop, |disk, op, old, done, end| {
        let after = disk.crash(op);
        for step in 1..=7 {
            let disk = after.power_loss(|| false);
            disk.fail_at(step, Fault::Stop);
            drop(open(&disk));
            for disk in [disk.power_loss(|| false), disk.crash(step)] {
                drop(check(&disk, old, done, 0..end));
            }
        }
    });
}

/// The rename is in the cache and the sync of the directory has failed: no segment may go before another sync
/// has made it durable.
#[test]
fn nothing_is_unlinked_before_the_trim_is_durable() {
    let disk = earlier(1);
    let opened = open(&disk).expect("opens");
    disk.fail_next(disk::Op::SyncDir, 0, Fault::Error);
    trim(&disk, &opened, 4).expect_err("the sync fails");
    drop(opened);
    disk.fail_next(disk::Op::SyncDir, 0, Fault::Error);
    open(&disk).expect_err("and fails again");
    for seed in 0..100 {
        drop(check(&disk.crash(seed), 1, Done::Perhaps, 0..10));
    }
}

/// Done is done, also if nothing was unlinked yet.
#[test]
fn a_trim_that_has_returned_is_durable() {
    let disk = earlier(1);
    let opened = open(&disk).expect("opens");
    let segment = &opened.segments[3];
    let point = TrimPoint::before(segment).expect("can be told");
    let mut writer = TrimWriter::create(&disk, opened.store_id, point, 9000).expect("begins");
    writer.write(&body(4)).expect("writes");
    writer.finish().expect("trims");
    drop(opened);
    for disk in losses(&disk, 1) {
        drop(check(&disk, 1, Done::Yes, 0..10));
    }
}

/// On a full disk nothing is trimmed, nothing is left of the attempt, and the log goes on.
#[test]
fn a_full_disk_leaves_the_log_untrimmed() {
    let disk = earlier(1);
    let opened = open(&disk).expect("opens");
    disk.full_during(0..u64::MAX);
    let error = trim(&disk, &opened, 4).expect_err("no room");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(!disk.list().expect("lists").contains(&name::trimmed_new().to_owned()));
    disk.heal();
    trim(&disk, &opened, 4).expect("trims");
    drop(opened);
    drop(check(&disk.power_loss(|| false), 1, Done::Yes, 0..10));
}
