//! Tests of the room for batches and of the callback thread on the real types. They are the siblings
//! of the loom models.

use std::thread;
use std::time::Duration;

use super::callbacks::{self, Message, is_callback_thread};
use super::gate::{Gate, Shut};
use super::permits::{Budget, Denied, Patience};
use super::room::Room;
use crate::sync::{Arc, AtomicU64, Ordering, Promise, Sender, completion, queue};

/// A callback, and the permit that it holds until it has returned.
struct Job {
    room: Arc<Room>,
    callback: Box<dyn FnOnce() + Send>,
}

impl callbacks::Job for Job {
    fn run(self) {
        (self.callback)();
        self.room.leave_lane(1);
    }
}

fn room(pipeline: u64, queue: &Arc<Budget>) -> Arc<Room> {
    Arc::new(Room::new(Arc::new(Budget::new(pipeline, 100)), Arc::clone(queue)))
}

fn spawn_callbacks() -> (Sender<Message<Job>>, thread::JoinHandle<()>) {
    let (jobs, queue) = queue(None);
    (jobs, thread::spawn(move || callbacks::run(&queue)))
}

fn answer(jobs: &Sender<Message<Job>>, room: &Arc<Room>, callback: impl FnOnce() + Send + 'static) {
    room.leave_queue(1);
    let job = Job { room: Arc::clone(room), callback: Box::new(callback) };
    assert!(jobs.send(Message::Run(job)).is_ok());
}

#[test]
fn a_close_waits_for_the_last_callback() {
    for pipeline in [1, 2, 3] {
        let queue = Arc::new(Budget::new(4, 100));
        let room = room(pipeline, &queue);
        let (jobs, callback_thread) = spawn_callbacks();
        let called = Arc::new(AtomicU64::new(0));
        let accepted = thread::scope(|scope| {
            let producers = [(); 3].map(|()| {
                scope.spawn(|| {
                    let mut accepted = 0;
                    while room.take(1, Patience::Endless).is_ok() {
                        accepted += 1;
                        let called = Arc::clone(&called);
                        answer(&jobs, &room, move || {
                            // Relaxed: closing alone orders it.
                            called.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                    accepted
                })
            });
            thread::sleep(Duration::from_millis(5));
            room.close();
            room.wait_answered();
            let at_close = called.load(Ordering::Relaxed);
            let accepted: u64 = producers.map(|it| it.join().unwrap()).iter().sum();
            assert_eq!(at_close, accepted);
            accepted
        });
        assert!(accepted > 0);
        assert!(jobs.send(Message::End).is_ok());
        callback_thread.join().unwrap();
    }
}

#[test]
fn a_callback_may_close_its_lane_and_submit_to_it() {
    for pipeline in [1, 2] {
        for _ in 0..50 {
            let queue = Arc::new(Budget::new(4, 100));
            let room = room(pipeline, &queue);
            let (jobs, callback_thread) = spawn_callbacks();
            assert!(!is_callback_thread());
            (0..pipeline).for_each(|_| room.take(1, Patience::None).unwrap());
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        let denied = room.take(1, Patience::Endless).unwrap_err();
                        assert_eq!(denied, Denied::Closed, "the callback closes before it returns");
                    });
                }
                for _ in 0..pipeline {
                    answer(&jobs, &room, {
                        let room = Arc::clone(&room);
                        move || {
                            assert!(is_callback_thread());
                            let denied = room.take(1, Patience::Endless).unwrap_err();
                            assert!(matches!(denied, Denied::Full | Denied::Closed));
                            room.close();
                            room.wait_answered();
                        }
                    });
                }
                room.wait_answered();
            });
            assert!(jobs.send(Message::End).is_ok());
            callback_thread.join().unwrap();
            queue.close();
            queue.wait_idle();
        }
    }
}

#[test]
fn a_full_lane_keeps_nobody_out() {
    let queue = Arc::new(Budget::new(1, 100));
    let (slow, other) = (room(1, &queue), room(1, &queue));
    slow.take(1, Patience::None).unwrap();
    slow.leave_queue(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            slow.take(1, Patience::Endless).unwrap();
            slow.leave_queue(1);
            slow.leave_lane(1);
        });
        for _ in 0..100 {
            other.take(1, Patience::Endless).unwrap();
            other.leave_queue(1);
            other.leave_lane(1);
        }
        slow.leave_lane(1);
    });
    slow.close();
    slow.wait_answered();
}

/// All that an append passes, as `Lane::submit` and the shutdown of a store use it.
#[test]
fn every_accepted_request_is_answered_once_and_before_its_lane_is_closed() {
    for round in 0..100 {
        let (sender, requests) = queue(Some(2));
        let gate = Gate::new(sender, [], true);
        let queue = Arc::new(Budget::new(2, 100));
        let lanes = [room(1, &queue), room(2, &queue)];
        thread::scope(|scope| {
            let submit = |lane: usize| {
                let room = Arc::clone(&lanes[lane]);
                room.take(1, Patience::Endless).ok()?;
                let (promise, ticket) = completion();
                match gate.pass((lane, promise), |_, _| false) {
                    Ok(()) => Some(ticket),
                    Err(Shut::Closed(_) | Shut::Sealed(_)) => {
                        room.leave_queue(1);
                        room.leave_lane(1);
                        None
                    }
                }
            };
            for producer in 0..4 {
                scope.spawn(move || {
                    while let Some(mut ticket) = submit(producer % 2) {
                        assert_eq!(ticket.wait(), Ok(producer % 2));
                    }
                });
            }
            scope.spawn(|| {
                while let Some((lane, promise)) = requests.recv() {
                    let promise: Promise<usize> = promise;
                    lanes[lane].leave_queue(1);
                    lanes[lane].answer(1, promise, lane);
                }
            });
            let mut last = submit(0).unwrap();
            if round % 2 == 0 {
                thread::yield_now();
            }
            lanes[0].close();
            lanes[0].wait_answered();
            assert_eq!(last.try_take(), Some(Ok(0)), "the lane is closed, and all is answered");
            lanes[1].close();
            queue.close();
            gate.close();
        });
        lanes.iter().for_each(|room| room.wait_answered());
        queue.wait_idle();
    }
}
