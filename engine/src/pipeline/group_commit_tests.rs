//! Tests of group commit on the real types, over a device in memory. They are the siblings of the
//! loom models.

use std::panic::resume_unwind;
use std::thread;

use super::group_commit::{self, GroupCommit, Panic};
use crate::sync::{
    Arc, AtomicBool, AtomicU64, Ordering, Promise, Receiver, Sender, Watermark, completion, queue,
};

const RECORDS: u64 = 2_000;

type Outcome = Result<u64, ()>;
type Request = Promise<Outcome>;

struct Log {
    records: Vec<AtomicU64>,
    safe: AtomicU64,
    durable: Watermark,
    has_stopped: AtomicBool,
}

/// What goes wrong, and how many records there are by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Write(u64),
    Sync(u64),
    Panic(u64),
}

struct Device {
    log: Arc<Log>,
    requests: Receiver<Request>,
    handed_over: Sender<u64>,
    group: Vec<Request>,
    written: u64,
    fault: Fault,
}

impl Device {
    fn stop(&mut self) {
        self.log.has_stopped.store(true, Ordering::Release);
        self.log.durable.fail();
        self.refuse();
    }

    fn is_due(&self, at: u64) -> bool {
        self.written + self.group.len() as u64 > at
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
        self.log.has_stopped.load(Ordering::Acquire)
    }

    fn refuse(&mut self) {
        self.group.drain(..).for_each(|promise| drop(promise.complete(Err(()))));
    }

    fn write(&mut self) -> Result<(), ()> {
        assert!(!self.is_stopped(), "written after the failure");
        match self.fault {
            Fault::Write(at) if self.is_due(at) => return Err(()),
            Fault::Panic(at) if self.is_due(at) => resume_unwind(Box::new("expected")),
            _ => {}
        }
        for index in self.written..self.written + self.group.len() as u64 {
            // Relaxed, here and where it is read: the watermark and the answer order the two.
            self.log.records[index as usize].store(index + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ()> {
        match self.fault {
            Fault::Sync(at) if self.is_due(at) => return Err(()),
            _ => {}
        }
        self.written += self.group.len() as u64;
        self.log.safe.store(self.written, Ordering::Relaxed);
        Ok(())
    }

    fn hand_over(&mut self) {
        self.handed_over.send(self.written).unwrap();
    }

    fn publish(&mut self) {
        self.log.durable.publish(self.written);
    }

    fn acknowledge(&mut self) {
        let first = self.written - self.group.len() as u64;
        for (index, promise) in (first..).zip(self.group.drain(..)) {
            promise.complete(Ok(index + 1));
        }
    }

    fn fail(&mut self, (): ()) {
        self.stop();
    }

    fn panicked(&mut self, panic: Panic) {
        if !panic.is::<&str>() {
            resume_unwind(panic);
        }
        self.stop();
    }
}

/// Appends all records from four threads, and returns how many were acknowledged.
fn commit_all(fault: Fault) -> u64 {
    let log = Arc::new(Log {
        records: (0..RECORDS).map(|_| AtomicU64::new(0)).collect(),
        safe: AtomicU64::new(0),
        durable: Watermark::new(0),
        has_stopped: AtomicBool::new(false),
    });
    let check = |end: u64| {
        assert!(log.safe.load(Ordering::Relaxed) >= end, "told of what is not safe");
        let last = &log.records[end as usize - 1];
        assert_eq!(last.load(Ordering::Relaxed), end, "told of what is not written");
    };
    let (sender, requests) = queue(None);
    let (handed_over, awaiting) = queue(None);
    let (written, group) = (0, Vec::new());
    let mut device = Device { log: Arc::clone(&log), requests, handed_over, group, written, fault };
    thread::scope(|scope| {
        scope.spawn(move || group_commit::run(&mut device));
        scope.spawn(|| {
            let mut awaited = 0;
            while let Ok(end) = log.durable.wait_for(awaited + 1) {
                check(end);
                while awaited < end {
                    awaited = awaiting.try_recv().expect("handed over before it is published");
                }
                if awaited == RECORDS {
                    break;
                }
            }
        });
        let appenders = [(); 4].map(|()| {
            let sender = sender.clone();
            scope.spawn(|| {
                let sender = sender;
                let mut acknowledged = 0;
                for _ in 0..RECORDS / 8 {
                    // Two at a time, so that groups come about.
                    let tickets = [(); 2].map(|()| {
                        let (promise, ticket) = completion();
                        sender.send(promise).unwrap();
                        ticket
                    });
                    for mut ticket in tickets {
                        let outcome = ticket.wait().expect("every request is answered");
                        if let Ok(end) = outcome {
                            assert!(log.durable.get() >= end, "answered before it is published");
                            check(end);
                            acknowledged += 1;
                        }
                    }
                }
                acknowledged
            })
        });
        drop(sender);
        appenders.map(|appender| appender.join().unwrap()).iter().sum()
    })
}

#[test]
fn what_is_acknowledged_is_safe() {
    assert_eq!(commit_all(Fault::None), RECORDS);
}

#[test]
fn a_failure_answers_everything_and_acknowledges_nothing_more() {
    for at in [0, 1, 500] {
        for fault in [Fault::Write(at), Fault::Sync(at), Fault::Panic(at)] {
            assert!(commit_all(fault) <= at, "{fault:?}");
        }
    }
}
