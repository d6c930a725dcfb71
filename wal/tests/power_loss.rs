//! Append, roll and recovery survive a stop and an error at every single operation.

mod common;
#[path = "common/disk.rs"]
mod disk;

use std::sync::Arc;

use common::{Event, OPTIONS, append_frames, frame_of, hint, put, whole};
use disk::{Disk, Fault};
use thalweg_wal::{AppendError, LogReader, LogWriter, OpenedLog, TailHint};

fn frame(index: u8) -> Vec<Event> {
    let event =
        |id: &str| Event::new("s", [id.as_bytes(), &[index]].concat(), vec![index; 200_000]);
    vec![event("a"), event("b")]
}

fn open(disk: &Disk) -> Result<OpenedLog, thalweg_wal::OpenError> {
    open_with(disk, None)
}

fn open_with(disk: &Disk, hint: Option<TailHint>) -> Result<OpenedLog, thalweg_wal::OpenError> {
    LogWriter::open(Arc::new(disk.clone()), OPTIONS, hint)
}

/// Frames that were submitted, in order, and how many of them were acknowledged.
#[derive(Debug, Default, Clone)]
struct History {
    submitted: Vec<u8>,
    acknowledged: usize,
}

impl History {
    /// What is found is what was acknowledged, and perhaps more of what was submitted; it is then
    /// all there is.
    fn check(&mut self, found: &[Event]) {
        let whole_frames = found.len() / 2;
        assert!(whole_frames >= self.acknowledged, "{whole_frames} frames found of {self:?}");
        assert!(whole_frames <= self.submitted.len());
        self.submitted.truncate(whole_frames);
        self.acknowledged = whole_frames;
        let expected: Vec<Event> = self.submitted.iter().flat_map(|&index| frame(index)).collect();
        assert!(found == expected, "another order or other bytes");
    }

    /// Appends frames until one fails.
    fn append(&mut self, writer: &mut LogWriter, indexes: std::ops::Range<u8>) {
        for index in indexes {
            match writer.append(&mut frame_of(&frame(index))) {
                // Nothing was written, by promise.
                Err(AppendError::StorageFull(_)) => return,
                result => {
                    self.submitted.push(index);
                    if result.and_then(|_| writer.sync()).is_err() {
                        let refused = writer.append(&mut frame_of(&frame(99)));
                        assert!(matches!(refused, Err(AppendError::Poisoned)));
                        assert!(matches!(writer.sync(), Err(AppendError::Poisoned)));
                        return;
                    }
                    self.acknowledged = self.submitted.len();
                }
            }
        }
    }

    /// Opens, checks, appends.
    fn live(&mut self, disk: &Disk, indexes: std::ops::Range<u8>) {
        self.resume(open(disk).expect("a store opens after every crash"), indexes);
    }

    /// The same on a disk with a fault, at which opening may fail.
    fn live_with_fault(&mut self, disk: &Disk, indexes: std::ops::Range<u8>) {
        if let Ok(opened) = open(disk) {
            self.resume(opened, indexes);
        }
    }

    fn resume(&mut self, opened: OpenedLog, indexes: std::ops::Range<u8>) {
        self.check(&whole(&opened.segments));
        let mut writer = opened.writer;
        self.append(&mut writer, indexes);
    }
}

/// Decisions without a pattern, the same in every run.
fn coin(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Few, about half, or most sectors arrive.
        (state >> 32) % 8 < [1, 4, 7][seed as usize % 3]
    }
}

fn losses(disk: &Disk, seed: u64) -> [Disk; 4] {
    [
        disk.power_loss(|| false),
        disk.power_loss(|| true),
        disk.power_loss(coin(seed)),
        disk.power_loss(coin(seed + 1)),
    ]
}

/// A store with a few frames, a roll, and an end that is not clean.
fn earlier() -> (Disk, History) {
    let disk = Disk::new();
    let mut history = History::default();
    history.live(&disk, 0..3);
    (disk.power_loss(|| true), history)
}

fn at_every_operation(fault: Fault, after: impl Fn(&Disk, u64, &History)) {
    let (disk, history) = earlier();
    let mut op = 1;
    loop {
        let disk = disk.power_loss(|| false);
        disk.fail_at(op, fault);
        let mut history = history.clone();
        history.live_with_fault(&disk, 10..14);
        if disk.ops() < op {
            break;
        }
        after(&disk, op, &history);
        op += 1;
    }
    assert!(op > 20, "the run has operations to fail: {op}");
}

#[test]
fn a_power_loss_at_any_operation_loses_nothing_acknowledged() {
    at_every_operation(Fault::Stop, |disk, op, history| {
        for disk in losses(disk, op) {
            let mut history = history.clone();
            let reader = LogReader::open(&disk, None).expect("opens for reading");
            history.clone().check(&whole(&reader.segments));
            history.live(&disk, 20..23);
            assert!(history.submitted.ends_with(&[20, 21, 22]));
            // And once more: what was recovered and appended is durable.
            history.live(&disk.power_loss(|| false), 0..0);
        }
    });
}

#[test]
fn a_stop_during_recovery_changes_nothing() {
    at_every_operation(Fault::Stop, |disk, op, history| {
        let after = disk.power_loss(coin(op));
        for step in 1..=8 {
            let disk = after.power_loss(|| false);
            disk.fail_at(step, Fault::Stop);
            let mut history = history.clone();
            history.live_with_fault(&disk, 0..0);
            let again = disk.power_loss(coin(step));
            history.live(&again, 20..21);
            history.live(&again.power_loss(|| false), 0..0);
            assert!(history.submitted.ends_with(&[20]));
        }
    });
}

/// A store that had not been closed did not open on a full disk: the log could not go on where it ended, and there
/// was no room for the next segment. Nor did it open to be read by whoever might have made room.
#[test]
fn a_log_opens_without_room_for_its_next_segment_and_goes_on_when_there_is() {
    let (disk, mut history) = earlier();
    disk.full_during(0..u64::MAX);
    for _ in 0..2 {
        let OpenedLog { mut writer, segments, .. } = open(&disk).expect("opens");
        assert!(writer.must_roll());
        history.check(&whole(&segments));
        for _ in 0..2 {
            let refused = writer.append(&mut frame_of(&frame(99)));
            assert!(matches!(refused, Err(AppendError::StorageFull(_))), "{refused:?}");
            assert_eq!(writer.sync().expect("nothing to sync"), writer.end());
        }
        drop(writer);
        for lost in losses(&disk, 1) {
            history.clone().live(&lost, 20..21);
        }
    }
    let mut writer = open(&disk).expect("opens").writer;
    writer.append(&mut frame_of(&frame(99))).expect_err("full");
    disk.heal();
    history.append(&mut writer, 30..32);
    assert!(!writer.must_roll());
    assert_eq!(history.submitted, [0, 1, 2, 30, 31]);
    history.live(&disk.power_loss(|| false), 40..41);
    assert_eq!(history.submitted, [0, 1, 2, 30, 31, 40]);
}

/// An error leaves the process running and the cache full of bytes that the device may not have.
/// The store is opened again in the same process, goes on, and loses power.
#[test]
fn an_error_at_any_operation_loses_nothing_acknowledged_later() {
    at_every_operation(Fault::Error, |disk, op, history| {
        let mut history = history.clone();
        history.live(disk, 20..23);
        assert!(history.submitted.ends_with(&[20, 21, 22]), "operation {op}: {history:?}");
        for disk in losses(disk, op) {
            history.clone().live(&disk, 0..0);
        }
    });
}

fn small(id: &str) -> Vec<Event> {
    vec![Event::new("s", id, "same length")]
}

/// Loses two frames in a sync that fails. The cache goes on showing them.
fn lose_two_frames(disk: &Disk, mut writer: LogWriter) {
    writer.append(&mut frame_of(&small("lost1"))).expect("appends");
    writer.append(&mut frame_of(&small("lost2"))).expect("appends");
    disk.fail_at(disk.ops() + 1, Fault::Error);
    assert!(writer.sync().is_err());
}

/// Two frames are lost in a failed sync, but the cache goes on showing them. A frame as long as the
/// first once went in its place, and the page that it shares with the second took that one along to
/// the device: the second frame came back without the first.
#[test]
fn what_a_failed_sync_has_lost_does_not_come_back() {
    for earlier in [vec![], small("earlier")] {
        let disk = Disk::new();
        let mut writer = open(&disk).expect("opens").writer;
        if !earlier.is_empty() {
            append_frames(&mut writer, std::slice::from_ref(&earlier));
        }
        lose_two_frames(&disk, writer);
        let opened = open(&disk).expect("opens");
        assert_eq!(whole(&opened.segments), earlier);
        let mut writer = opened.writer;
        append_frames(&mut writer, &[small("later")]);
        drop(writer);
        let opened = open(&disk.power_loss(|| false)).expect("opens");
        assert_eq!(whole(&opened.segments), [earlier, small("later")].concat());
    }
}

/// The same with a checkpoint that says, truly, that the log was closed at its end: the session that
/// lost the frames went on there in place and wrote no checkpoint of its own. Its word
/// was once enough to go on in place again.
#[test]
fn what_is_lost_behind_the_end_of_a_closed_log_does_not_come_back() {
    let disk = Disk::new();
    let mut writer = open(&disk).expect("opens").writer;
    let edges = append_frames(&mut writer, &[small("earlier")]);
    drop(writer);
    let closed = hint(edges[1], true);

    let opened = open_with(&disk, closed).expect("opens");
    assert_eq!(opened.segments.len(), 1, "with nothing behind the end, the log goes on in place");
    lose_two_frames(&disk, opened.writer);

    let mut opened = open_with(&disk, closed).expect("opens");
    assert_eq!(whole(&opened.segments), small("earlier"));
    append_frames(&mut opened.writer, &[small("later")]);
    drop(opened);
    let opened = open_with(&disk.power_loss(|| false), closed).expect("opens");
    assert_eq!(whole(&opened.segments), [small("earlier"), small("later")].concat());
}

/// The first store of all: nothing, or a store, but never something that cannot be opened.
#[test]
fn a_stop_at_any_operation_of_creation_leaves_a_store_or_none() {
    for op in 1.. {
        let disk = Disk::new();
        disk.fail_at(op, Fault::Stop);
        let mut history = History::default();
        history.live_with_fault(&disk, 0..2);
        for disk in losses(&disk, op) {
            let mut history = history.clone();
            history.live(&disk, 2..4);
            assert!(history.submitted.ends_with(&[2, 3]));
        }
        if disk.ops() < op {
            break;
        }
    }
}

/// The disk itself: it must lose what was not synced, or the tests above prove nothing.
#[test]
fn the_disk_forgets_what_was_not_synced() {
    let (disk, _) = earlier();
    let mut writer = open(&disk).expect("opens").writer;
    let before = disk::files(&disk.power_loss(|| false));
    writer.append(&mut frame_of(&frame(9))).expect("appends");
    assert!(disk::files(&disk.power_loss(|| false)) == before);
    assert!(disk::files(&disk.power_loss(|| true)) != before);
    disk.fail_at(disk.ops() + 1, Fault::Error);
    assert!(writer.sync().is_err());
    assert!(disk::files(&disk) != before, "the cache still shows it");
    assert!(disk::files(&disk.power_loss(|| true)) == before, "and it is gone");
    // A name without a directory sync.
    use thalweg_wal::storage::Storage;
    disk.create("x", 8).expect("creates").sync().expect("syncs");
    let listed = |disk: Disk| disk.list().expect("lists").contains(&"x".to_owned());
    assert!(listed(disk.power_loss(|| true)) && !listed(disk.power_loss(|| false)));
    let cached = disk.cached();
    put(&cached, "y", b"");
    assert!(!disk.list().expect("lists").contains(&"y".to_owned()), "a copy");
}
