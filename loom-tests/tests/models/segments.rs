//! Models of a log that goes on in a new segment while it is read.
//!
//! The list of segments and the watermark are the shipped ones. The order of the steps is the
//! writer's and the orderer's, which hold files and cannot be compiled here: it is repeated, with
//! names of its own. Retention is not written yet; the models of the list are its contract.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use loom_tests::explore;
use loom_tests::sync::{List, Mutex, Watermark, mutant, set_thread_slot_hint};

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

/// A log whose first segment is full, and durable.
struct Log {
    list: List<Arc<Segment>>,
    durable: Watermark,
}

impl Log {
    fn new() -> Arc<Self> {
        Arc::new(Self { list: List::new(vec![Segment::new(0)]), durable: Watermark::new(1) })
    }

    /// Appends a record to a new segment.
    fn roll(&self) {
        let is_in_order = step("seg.push_before_publish");
        let segment = Segment::new(1);
        if is_in_order {
            self.list.push(Arc::clone(&segment));
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
            self.list.push(segment);
        }
    }

    /// Reads all that is durable, once `durable` has said how much that is.
    fn read(&self, durable: impl FnOnce() -> u64) {
        let early = (!step("seg.watermark_before_list")).then(|| self.list.snapshot());
        let durable = durable();
        let list = early.unwrap_or_else(|| self.list.snapshot());
        for position in 0..durable {
            let after = list.partition_point(|segment| segment.base <= position);
            assert_eq!(list[after - 1].base, position, "the segment is not in the list");
            list[after - 1].record.with(|_| ());
        }
    }
}

#[test]
fn roll_against_a_poller() {
    explore("a new segment, and a reader that polls", Some(3), 570, || {
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

/// A segment whose end is a write to all of it, as far as a reader is concerned.
struct Mapped {
    bytes: UnsafeCell<u32>,
    /// What a destructor may need, and a reader may hold.
    elsewhere: Arc<Mutex<()>>,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.bytes.with_mut(|_| ());
        drop(self.elsewhere.lock());
    }
}

fn mapped(elsewhere: &Arc<Mutex<()>>) -> Arc<Mapped> {
    Arc::new(Mapped { bytes: UnsafeCell::new(0), elsewhere: Arc::clone(elsewhere) })
}

/// Starts a thread that reads all there is, with something in hand while it takes its snapshot.
fn spawn_reader(
    list: &Arc<List<Arc<Mapped>>>,
    elsewhere: &Arc<Mutex<()>>,
) -> thread::JoinHandle<()> {
    let (list, elsewhere) = (Arc::clone(list), Arc::clone(elsewhere));
    thread::spawn(move || {
        set_thread_slot_hint(1);
        let in_hand = elsewhere.lock();
        let snapshot = list.snapshot();
        drop(in_hand);
        for segment in snapshot.iter() {
            segment.bytes.with(|_| ());
        }
    })
}

#[test]
fn retirement_against_a_reader() {
    explore("a segment retires while it is read", Some(3), 230, || {
        let elsewhere = Arc::new(Mutex::new(()));
        let list = Arc::new(List::new(vec![mapped(&elsewhere), mapped(&elsewhere)]));
        let reader = spawn_reader(&list, &elsewhere);
        list.change(|segments| drop(segments.remove(0)));
        assert_eq!(list.snapshot().len(), 1);
        reader.join().unwrap();
    });
}

#[test]
fn retirement_against_growth() {
    explore("one is taken out while another comes", None, 4, || {
        let list = Arc::new(List::new(vec![0, 1]));
        let writer = thread::spawn({
            let list = Arc::clone(&list);
            move || {
                set_thread_slot_hint(1);
                list.push(2);
            }
        });
        list.change(|segments| segments.retain(|number| *number != 1));
        writer.join().unwrap();
        assert_eq!(*list.snapshot(), [0, 2]);
    });
}
