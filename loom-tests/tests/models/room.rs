//! Models of the room for batches and of the thread that runs callbacks. The thread is the shipped
//! loop over the shipped queue; what a job does beside its callback is `Job::run`'s in `lane`.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use loom_tests::explore;
use loom_tests::pipeline::callbacks::{self, Message};
use loom_tests::pipeline::permits::{Budget, Denied, Patience};
use loom_tests::pipeline::room::Room;
use loom_tests::sync::{Sender, completion, queue};

/// A callback, and the permit that it holds until it has returned.
struct Job {
    room: Arc<Room>,
    callback: Box<dyn FnOnce()>,
}

impl callbacks::Job for Job {
    fn run(self) {
        (self.callback)();
        self.room.leave_lane(1);
    }
}

type Jobs = Sender<Message<Job>>;

/// Starts the thread that runs callbacks.
fn spawn_callbacks() -> (Jobs, thread::JoinHandle<()>) {
    let (sender, receiver) = queue(None);
    (sender, thread::spawn(move || callbacks::run(&receiver)))
}

/// As the writer does with a request whose answer goes to a callback.
fn answer(jobs: &Jobs, room: &Arc<Room>, callback: impl FnOnce() + 'static) {
    room.leave_queue(1);
    let job = Job { room: Arc::clone(room), callback: Box::new(callback) };
    assert!(jobs.send(Message::Run(job)).is_ok(), "the thread ends after the last answer");
}

fn end(jobs: &Jobs) {
    assert!(jobs.send(Message::End).is_ok(), "the thread ends once");
}

fn room(pipeline: u64, queue: &Arc<Budget>) -> Arc<Room> {
    Arc::new(Room::new(Arc::new(Budget::new(pipeline, 100)), Arc::clone(queue)))
}

fn queue_budget(batches: u64) -> Arc<Budget> {
    Arc::new(Budget::new(batches, 100))
}

#[test]
fn close_waits_for_the_last_callback() {
    explore("a lane is closed while its callback runs", Some(3), 250, || {
        let room = room(1, &queue_budget(4));
        let called = Arc::new(UnsafeCell::new(0));
        let (jobs, callback_thread) = spawn_callbacks();
        room.take(1, Patience::None).unwrap();
        answer(&jobs, &room, {
            let called = Arc::clone(&called);
            move || called.with_mut(|_| ())
        });
        end(&jobs);
        room.close();
        room.wait_answered();
        called.with(|_| ());
        callback_thread.join().unwrap();
    });
}

/// A callback closes its lane of `pipeline` batches while `producers` wait for room in it.
fn callback_closes(pipeline: u64, producers: usize) {
    let room = room(pipeline, &queue_budget(4));
    let (jobs, callback_thread) = spawn_callbacks();
    for _ in 0..pipeline {
        room.take(1, Patience::None).unwrap();
    }
    let producers: Vec<_> = (0..producers)
        .map(|_| {
            let room = Arc::clone(&room);
            thread::spawn(move || match room.take(1, Patience::Endless) {
                // The callback before has made room.
                Ok(()) => {
                    room.leave_queue(1);
                    room.leave_lane(1);
                }
                Err(denied) => assert_eq!(denied, Denied::Closed),
            })
        })
        .collect();
    answer(&jobs, &room, {
        let room = Arc::clone(&room);
        move || {
            room.close();
            room.wait_answered();
        }
    });
    (1..pipeline).for_each(|_| answer(&jobs, &room, || ()));
    end(&jobs);
    room.wait_answered();
    for producer in producers {
        producer.join().unwrap();
    }
    callback_thread.join().unwrap();
}

#[test]
fn callback_closes_a_pipeline_of_one() {
    explore("a callback closes a pipeline of one", Some(2), 4_500, || callback_closes(1, 1));
}

#[test]
fn callback_closes_a_pipeline_of_two() {
    explore("a callback closes a pipeline of two", Some(2), 14_000, || callback_closes(2, 1));
}

#[test]
fn callback_finds_the_pipeline_full() {
    explore("a callback submits to a full pipeline", Some(3), 220, || {
        let room = room(1, &queue_budget(4));
        let (jobs, callback_thread) = spawn_callbacks();
        room.take(1, Patience::None).unwrap();
        answer(&jobs, &room, {
            let room = Arc::clone(&room);
            move || assert_eq!(room.take(1, Patience::Endless), Err(Denied::Full))
        });
        end(&jobs);
        // Nor does this thread, which is none, take it amiss.
        room.take(1, Patience::Endless).expect("the callback has returned");
        callback_thread.join().unwrap();
    });
}

#[test]
fn full_lane_keeps_nobody_out() {
    explore("a full lane, and another with room", None, 56, || {
        let queue = queue_budget(1);
        let (slow, other) = (room(1, &queue), room(1, &queue));
        // Its batch is answered, and its callback has not returned.
        slow.take(1, Patience::None).unwrap();
        slow.leave_queue(1);
        let blocked = thread::spawn({
            let slow = Arc::clone(&slow);
            move || {
                slow.take(1, Patience::Endless).unwrap();
                slow.leave_queue(1);
            }
        });
        other.take(1, Patience::Endless).unwrap();
        other.leave_queue(1);
        slow.leave_lane(1);
        blocked.join().unwrap();
    });
}

#[test]
fn full_queue_costs_no_permit() {
    explore("a full queue, and a taker that does not wait", None, 5, || {
        let queue = queue_budget(1);
        let (room, other) = (room(1, &queue), room(1, &queue));
        other.take(1, Patience::None).unwrap();
        let taker = thread::spawn({
            let room = Arc::clone(&room);
            move || {
                if room.take(1, Patience::None).is_ok() {
                    room.leave_queue(1);
                    room.leave_lane(1);
                }
                room.close();
                room.wait_answered();
            }
        });
        other.leave_queue(1);
        taker.join().unwrap();
    });
}

#[test]
fn ticket_has_its_outcome_after_the_close() {
    explore("a ticket is answered while its lane is closed", Some(3), 190, || {
        let room = room(1, &queue_budget(4));
        room.take(1, Patience::None).unwrap();
        let (promise, mut ticket) = completion();
        let writer = thread::spawn({
            let room = Arc::clone(&room);
            move || {
                room.leave_queue(1);
                room.answer(1, promise, 7);
            }
        });
        room.close();
        room.wait_answered();
        assert_eq!(ticket.try_take(), Some(Ok(7)));
        writer.join().unwrap();
    });
}

#[test]
fn ticket_has_made_room() {
    explore("the next batch after a ticket's outcome", None, 150, || {
        let room = room(1, &queue_budget(1));
        room.take(1, Patience::None).unwrap();
        let (promise, mut ticket) = completion();
        let writer = thread::spawn({
            let room = Arc::clone(&room);
            move || {
                room.leave_queue(1);
                room.answer(1, promise, 7);
            }
        });
        assert_eq!(ticket.wait(), Ok(7));
        assert_eq!(room.take(1, Patience::None), Ok(()), "the outcome came before the room");
        writer.join().unwrap();
    });
}

#[test]
fn ticket_makes_room_for_a_waiter() {
    explore("a submit waits for a ticket's place", None, 40, || {
        let room = room(1, &queue_budget(2));
        room.take(1, Patience::None).unwrap();
        let (promise, _ticket) = completion();
        let next = thread::spawn({
            let room = Arc::clone(&room);
            move || room.take(1, Patience::Endless).unwrap()
        });
        room.leave_queue(1);
        room.answer(1, promise, 7);
        next.join().unwrap();
    });
}

#[test]
fn close_ends_a_wait_for_the_queue() {
    explore("a lane is closed while a submit waits for the queue", None, 40, || {
        let queue = queue_budget(1);
        let (room, other) = (room(1, &queue), room(1, &queue));
        other.take(1, Patience::None).unwrap();
        let reason = Arc::new(UnsafeCell::new(0));
        let submit = thread::spawn({
            let (room, reason) = (Arc::clone(&room), Arc::clone(&reason));
            move || {
                assert_eq!(room.take(1, Patience::Endless), Err(Denied::Closed));
                reason.with(|_| ());
            }
        });
        reason.with_mut(|_| ());
        room.close();
        room.wait_answered();
        submit.join().unwrap();
    });
}
