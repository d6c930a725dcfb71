//! Models of group commit: the shipped loop, gate, room, queue and watermark over a device of two
//! records. What a step does to files and tickets is the writer's, and is repeated here in short.

use std::panic::resume_unwind;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use loom_tests::explore;
use loom_tests::pipeline::gate::{Gate, Shut};
use loom_tests::pipeline::group_commit::{self, GroupCommit, Panic};
use loom_tests::pipeline::permits::{Budget, Denied, Patience};
use loom_tests::pipeline::room::Room;
use loom_tests::sync::{
    Completion, Failed, Promise, Receiver, Sender, Watermark, completion, queue,
    set_thread_slot_hint,
};

/// How many records a device has.
const RECORDS: usize = 2;

/// What became of a request: the end of its record, or nothing that anybody can rely on.
type Outcome = Result<u64, Unknown>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unknown;

/// An accepted request.
#[derive(Debug)]
struct Request {
    reply: Reply,
    /// Whether it is answered by whoever makes the order.
    is_ordered: bool,
}

/// The right to one answer; dropped, it answers too.
#[derive(Debug)]
struct Reply {
    room: Arc<Room>,
    promise: Option<Promise<Outcome>>,
}

impl Reply {
    fn answer(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(promise) = self.promise.take() {
            self.room.leave_queue(1);
            self.room.answer(1, promise, outcome);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.finish(Err(Unknown));
    }
}

/// What all threads share.
struct Store {
    gate: Gate<Request>,
    room: Arc<Room>,
    budget: Arc<Budget>,
    /// What readers look into, as far as `durable` says.
    records: [UnsafeCell<u32>; RECORDS],
    /// How many records are safe.
    safe: AtomicUsize,
    durable: Watermark,
    has_stopped: AtomicBool,
}

/// Where the device gives up, at its first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Write,
    Sync,
    PanicInWrite,
    PanicInPublish,
    PanicInAnswer,
}

/// What a step panics with.
struct Expected;

/// The writer.
struct Device {
    store: Arc<Store>,
    requests: Receiver<Request>,
    awaiting: Option<Sender<(u64, Reply)>>,
    group: Vec<Request>,
    ordered: Vec<(u64, Reply)>,
    durable: Vec<(u64, Reply)>,
    written: usize,
    fault: Fault,
}

impl Store {
    fn new() -> (Arc<Self>, Receiver<Request>) {
        let (sender, receiver) = queue(Some(RECORDS));
        let budget = Arc::new(Budget::new(RECORDS as u64, 100));
        let lane = Arc::new(Budget::new(RECORDS as u64, 100));
        let store = Arc::new(Self {
            gate: Gate::new(sender, [], true),
            room: Arc::new(Room::new(lane, Arc::clone(&budget))),
            budget,
            records: [(); RECORDS].map(|()| UnsafeCell::new(0)),
            safe: AtomicUsize::new(0),
            durable: Watermark::new(0),
            has_stopped: AtomicBool::new(false),
        });
        (store, receiver)
    }

    /// Hands a request to the writer; nothing if the store has stopped.
    fn submit(&self, is_ordered: bool) -> Option<Completion<Outcome>> {
        match self.room.take(1, Patience::Endless) {
            Ok(()) => {}
            Err(denied) => {
                assert_eq!(denied, Denied::Closed);
                assert!(self.has_stopped.load(Ordering::Acquire), "refused without a reason");
                return None;
            }
        }
        let (promise, completion) = completion();
        let reply = Reply { room: Arc::clone(&self.room), promise: Some(promise) };
        let request = Request { reply, is_ordered };
        match self.gate.pass(request, |_, is_sealed| is_sealed(0)) {
            Ok(()) => Some(completion),
            Err(Shut::Closed(_) | Shut::Sealed(_)) => None,
        }
    }

    /// Reads the records below `end`, which somebody said is safe.
    fn read(&self, end: u64) {
        // Relaxed: whoever said so has handed it over.
        assert!(self.safe.load(Ordering::Relaxed) as u64 >= end, "told of what is not safe");
        self.records[..end as usize].iter().for_each(|record| record.with(|_| ()));
    }

    /// Checks what an appender was told.
    fn check(&self, outcome: Outcome) {
        let end = outcome.expect("the device works");
        assert!(self.durable.get() >= end, "answered before the end is published");
        self.read(end);
    }

    /// As `Core::fail` does.
    fn stop(&self) {
        self.has_stopped.store(true, Ordering::Release);
        self.budget.close();
        self.room.close();
        self.durable.fail();
    }
}

impl Device {
    fn new(store: &Arc<Store>, requests: Receiver<Request>, fault: Fault) -> Self {
        let (group, ordered, durable) = (Vec::new(), Vec::new(), Vec::new());
        let store = Arc::clone(store);
        Device { store, requests, awaiting: None, group, ordered, durable, written: 0, fault }
    }

    fn spawn(mut self) -> thread::JoinHandle<()> {
        thread::spawn(move || group_commit::run(&mut self))
    }

    fn panic_if(&self, fault: Fault) {
        if self.fault == fault {
            // Without the hook, which would print a message for each execution.
            resume_unwind(Box::new(Expected));
        }
    }

    fn answer_all(&mut self) {
        let taken = self.group.drain(..).map(|request| request.reply);
        let written = self.durable.drain(..).chain(self.ordered.drain(..)).map(|(_, reply)| reply);
        taken.chain(written).for_each(|reply| reply.answer(Err(Unknown)));
    }
}

impl GroupCommit for Device {
    type Failure = ();

    fn gather(&mut self) -> bool {
        let Some(first) = self.requests.recv() else { return false };
        self.group.push(first);
        while let Ok(request) = self.requests.try_recv() {
            self.group.push(request);
        }
        true
    }

    fn is_stopped(&self) -> bool {
        self.store.has_stopped.load(Ordering::Acquire)
    }

    fn refuse(&mut self) {
        self.answer_all();
    }

    fn write(&mut self) -> Result<(), ()> {
        assert!(!self.is_stopped(), "written after the failure");
        self.panic_if(Fault::PanicInWrite);
        if self.fault == Fault::Write {
            return Err(());
        }
        for request in self.group.drain(..) {
            self.store.records[self.written].with_mut(|_| ());
            self.written += 1;
            let due = if request.is_ordered { &mut self.ordered } else { &mut self.durable };
            due.push((self.written as u64, request.reply));
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ()> {
        if self.fault == Fault::Sync {
            return Err(());
        }
        self.store.safe.store(self.written, Ordering::Relaxed);
        Ok(())
    }

    fn hand_over(&mut self) {
        for awaiting in self.ordered.drain(..) {
            let sender = self.awaiting.as_ref().expect("somebody makes the order");
            sender.send(awaiting).expect("and outlives the writer");
        }
    }

    fn publish(&mut self) {
        self.panic_if(Fault::PanicInPublish);
        self.store.durable.publish(self.written as u64);
    }

    fn acknowledge(&mut self) {
        self.panic_if(Fault::PanicInAnswer);
        for (end, reply) in self.durable.drain(..) {
            reply.answer(Ok(end));
        }
    }

    fn fail(&mut self, (): ()) {
        self.store.stop();
        self.answer_all();
    }

    fn panicked(&mut self, panic: Panic) {
        // The loop must not swallow what the model, or loom, has to say.
        if !panic.is::<Expected>() {
            resume_unwind(panic);
        }
        self.store.stop();
        self.answer_all();
    }
}

#[test]
fn published_is_safe() {
    explore("an append, and a reader that waits for it", Some(2), 1_600, || {
        let (store, requests) = Store::new();
        let writer = Device::new(&store, requests, Fault::None).spawn();
        let reader = thread::spawn({
            let store = Arc::clone(&store);
            move || store.read(store.durable.wait_for(1).unwrap())
        });
        let mut ticket = store.submit(false).unwrap();
        store.check(ticket.wait().unwrap());
        store.gate.close();
        reader.join().unwrap();
        writer.join().unwrap();
    });
}

#[test]
fn two_appenders_commit() {
    explore("two appenders and a close", Some(1), 500, || {
        let (store, requests) = Store::new();
        let writer = Device::new(&store, requests, Fault::None).spawn();
        let appender = thread::spawn({
            let store = Arc::clone(&store);
            move || {
                set_thread_slot_hint(1);
                store.check(store.submit(false).unwrap().wait().unwrap());
            }
        });
        store.check(store.submit(false).unwrap().wait().unwrap());
        appender.join().unwrap();
        store.gate.close();
        writer.join().unwrap();
        assert_eq!(store.durable.get(), 2);
    });
}

#[test]
fn published_is_handed_over() {
    explore("an append that waits for the order", Some(2), 2_000, || {
        let (store, requests) = Store::new();
        let mut device = Device::new(&store, requests, Fault::None);
        let (sender, awaiting) = queue(None);
        device.awaiting = Some(sender);
        let writer = device.spawn();
        let committer = thread::spawn({
            let store = Arc::clone(&store);
            move || {
                let end = store.durable.wait_for(1).unwrap();
                let (position, reply) = awaiting.try_recv().expect("it was handed over before");
                assert_eq!(position, end);
                reply.answer(Ok(end));
            }
        });
        store.check(store.submit(true).unwrap().wait().unwrap());
        store.gate.close();
        writer.join().unwrap();
        committer.join().unwrap();
    });
}

/// Two requests of one appender and a reader meet a device with `fault`.
fn meet(fault: Fault) {
    let (store, requests) = Store::new();
    let writer = Device::new(&store, requests, fault).spawn();
    let reader = thread::spawn({
        let store = Arc::clone(&store);
        move || {
            let waited = store.durable.wait_for(1);
            match fault {
                Fault::PanicInAnswer => assert!(waited.is_ok()),
                _ => assert_eq!(waited, Err(Failed)),
            }
        }
    });
    let tickets = [store.submit(false), store.submit(false)];
    for mut ticket in tickets.into_iter().flatten() {
        assert_eq!(ticket.wait(), Ok(Err(Unknown)), "acknowledged after a failure");
    }
    store.gate.close();
    writer.join().unwrap();
    reader.join().unwrap();
    // Whatever was given is back.
    store.room.wait_answered();
    store.budget.wait_idle();
}

#[test]
fn write_fails() {
    explore("a write fails", Some(1), 228, || meet(Fault::Write));
}

#[test]
fn sync_fails() {
    explore("a sync fails", Some(2), 6_100, || meet(Fault::Sync));
}

#[test]
fn write_panics() {
    explore("a write panics", Some(2), 6_100, || meet(Fault::PanicInWrite));
}

#[test]
fn publication_panics() {
    explore("a publication panics", Some(1), 228, || meet(Fault::PanicInPublish));
}

#[test]
fn answer_panics() {
    explore("an answer panics", Some(1), 326, || meet(Fault::PanicInAnswer));
}
