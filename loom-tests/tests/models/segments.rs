//! Models of a log that goes on in a new segment while it is read.
//!
//! The list of segments and the watermark are the shipped ones. The order of the steps is the
//! writer's and the orderer's, which hold files and cannot be compiled here: it is repeated, with
//! names of its own.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use loom_tests::explore;
use loom_tests::sync::{ReaderBiased, Watermark, mutant};

/// Whether to take one step in its place: `true`, unless a mutant run takes it elsewhere.
fn step(name: &str) -> bool {
    !mutant(name)
}

/// One record, at position `base`.
struct Segment {
    base: u64,
    record: UnsafeCell<u32>,
}

impl Segment {
    fn new(base: u64) -> Arc<Self> {
        Arc::new(Self { base, record: UnsafeCell::new(0) })
    }
}

type List = Arc<Vec<Arc<Segment>>>;

/// A log whose first segment is full, and durable.
struct Log {
    list: ReaderBiased<List>,
    durable: Watermark,
}

impl Log {
    fn new() -> Arc<Self> {
        let list = ReaderBiased::new(Arc::new(vec![Segment::new(0)]));
        Arc::new(Self { list, durable: Watermark::new(1) })
    }

    fn list(&self) -> List {
        Arc::clone(&self.list.read())
    }

    /// Appends a record to a new segment.
    fn roll(&self) {
        let is_in_order = step("seg.push_before_publish");
        let segment = Segment::new(1);
        if is_in_order {
            self.push(Arc::clone(&segment));
        }
        let is_written = step("seg.write_before_publish");
        if is_written {
            segment.record.with_mut(|_| ());
        }
        self.durable.publish(2);
        if !is_written {
            segment.record.with_mut(|_| ());
        }
        if !is_in_order {
            self.push(segment);
        }
    }

    fn push(&self, segment: Arc<Segment>) {
        let mut list = self.list.write();
        let mut longer = Vec::clone(&list);
        longer.push(segment);
        *list = Arc::new(longer);
    }

    /// Reads all that is durable, once `durable` has said how much that is.
    fn read(&self, durable: impl FnOnce() -> u64) {
        let early = (!step("seg.watermark_before_list")).then(|| self.list());
        let durable = durable();
        let list = early.unwrap_or_else(|| self.list());
        for position in 0..durable {
            let after = list.partition_point(|segment| segment.base <= position);
            assert_eq!(list[after - 1].base, position, "the segment is not in the list");
            list[after - 1].record.with(|_| ());
        }
    }
}

#[test]
fn roll_against_a_poller() {
    explore("a new segment, and a reader that polls", None, 820, || {
        let log = Log::new();
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            move || {
                log.read(|| log.durable.get());
                // With the bias gone, perhaps.
                log.read(|| log.durable.get());
            }
        });
        log.roll();
        reader.join().unwrap();
    });
}

#[test]
fn roll_against_a_waiter() {
    explore("a new segment, and a reader that waits", None, 40, || {
        let log = Log::new();
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            move || log.read(|| log.durable.wait_for(2).unwrap())
        });
        log.roll();
        reader.join().unwrap();
    });
}
