//! Models of everything that an append passes: room, gate, queue and completion, against a close of
//! the store. What `Lane::submit` and `Inner::shut_down` do with them is repeated here.

use loom::sync::Arc;
use loom::thread;
use loom_tests::explore;
use loom_tests::pipeline::gate::{Gate, Shut};
use loom_tests::pipeline::permits::{Budget, Denied, Patience};
use loom_tests::pipeline::room::Room;
use loom_tests::sync::{Promise, Receiver, completion, queue, set_thread_slot_hint};

#[derive(Debug)]
struct Request {
    number: u32,
    promise: Promise<u32>,
}

struct Store {
    gate: Gate<Request>,
    lane: Arc<Budget>,
    queue: Arc<Budget>,
    room: Room,
}

impl Store {
    /// A store whose lane and queue have room for so many requests.
    fn new(pipeline: u64, queue_len: u64) -> (Arc<Self>, Receiver<Request>) {
        let (sender, receiver) = queue(Some(queue_len as usize));
        let lane = Arc::new(Budget::new(pipeline, 100));
        let queue = Arc::new(Budget::new(queue_len, 100));
        let room = Room::new(Arc::clone(&lane), Arc::clone(&queue));
        (Arc::new(Self { gate: Gate::new(sender, [], true), lane, queue, room }), receiver)
    }

    /// Appends, and says whether it was accepted. If so, it was answered.
    fn append(&self, number: u32) -> bool {
        if let Err(denied) = self.room.take(1, Patience::Endless) {
            assert_eq!(denied, Denied::Closed);
            return false;
        }
        let (promise, mut ticket) = completion();
        match self.gate.pass(Request { number, promise }, |_, is_sealed| is_sealed(0)) {
            Ok(()) => {
                assert_eq!(ticket.wait(), Ok(number), "answered by another's outcome, or by none");
                true
            }
            Err(Shut::Closed(request) | Shut::Sealed(request)) => {
                assert_eq!(request.number, number, "what is refused comes back");
                self.room.leave_queue(1);
                self.room.leave_lane(1);
                false
            }
        }
    }

    /// Answers until the end. Returns how many there were.
    fn answer_all(&self, requests: &Receiver<Request>) -> usize {
        let answer = |Request { number, promise }| {
            self.room.leave_queue(1);
            self.room.answer(1, promise, number);
        };
        std::iter::from_fn(|| requests.recv()).map(answer).count()
    }

    fn close(&self) {
        self.lane.close();
        self.queue.close();
        self.gate.close();
    }

    fn assert_idle(&self) {
        self.lane.wait_idle();
        self.queue.wait_idle();
    }
}

fn spawn_appender(store: &Arc<Store>, slot: usize) -> thread::JoinHandle<bool> {
    let store = Arc::clone(store);
    thread::spawn(move || {
        set_thread_slot_hint(slot);
        store.append(slot as u32)
    })
}

#[test]
fn close_against_an_appender() {
    explore("an appender, a writer and a close", Some(3), 5_200, || {
        let (store, requests) = Store::new(1, 1);
        let appender = spawn_appender(&store, 1);
        let writer = thread::spawn({
            let store = Arc::clone(&store);
            move || store.answer_all(&requests)
        });
        store.close();
        let accepted = usize::from(appender.join().unwrap());
        assert_eq!(writer.join().unwrap(), accepted);
        store.assert_idle();
    });
}

/// Two appenders, of which one has to wait for the other, and a close.
fn close_against_two(pipeline: u64, queue_len: u64) {
    let (store, requests) = Store::new(pipeline, queue_len);
    let appenders = [spawn_appender(&store, 0), spawn_appender(&store, 1)];
    let writer = thread::spawn({
        let store = Arc::clone(&store);
        move || store.answer_all(&requests)
    });
    store.close();
    let accepted = appenders.map(|appender| usize::from(appender.join().unwrap()));
    assert_eq!(writer.join().unwrap(), accepted.iter().sum());
    store.assert_idle();
}

#[test]
fn close_against_a_full_lane() {
    explore("two appenders in a lane of one, a writer and a close", Some(2), 14_000, || {
        close_against_two(1, 2);
    });
}

#[test]
fn close_against_a_full_queue() {
    explore("two appenders to a queue of one, a writer and a close", Some(2), 15_000, || {
        close_against_two(2, 1);
    });
}

#[test]
fn lane_closes_for_an_appender_that_waits() {
    explore(
        "an appender that waits for its lane, and a close of the lane",
        Some(2),
        15_000,
        || {
            let (store, requests) = Store::new(1, 1);
            store.room.take(1, Patience::None).unwrap();
            let (promise, mut ticket) = completion();
            store.gate.pass(Request { number: 7, promise }, |_, is_sealed| is_sealed(0)).unwrap();
            let appender = spawn_appender(&store, 1);
            let writer = thread::spawn({
                let store = Arc::clone(&store);
                move || store.answer_all(&requests)
            });
            store.room.close();
            store.room.wait_answered();
            assert_eq!(ticket.try_take(), Some(Ok(7)), "the lane is closed, and all is answered");
            store.gate.close();
            let accepted = usize::from(appender.join().unwrap());
            assert_eq!(writer.join().unwrap(), 1 + accepted);
        },
    );
}
