//! Tests of the primitives on the real types: threads, a real clock, a real scheduler.
//!
//! They are the siblings of the loom models. A model explores every interleaving of a few steps
//! on doubles; these run many steps on what ships, and find what a double gets wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::{
    Abandoned, Cell, Completion, EventCount, Failed, List, Promise, ReadGuard, ReaderBiased,
    RecvError, WaitError, Watermark, WriteGuard, completion, queue, thread_slot_hint,
};

/// Long enough that a healthy machine, however loaded, does not get there.
fn far_deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Fails to compile if `$type` is `Send`: both impls apply and `_` is ambiguous.
macro_rules! assert_not_send {
    ($type:ty) => {{
        trait AmbiguousIfSend<A> {
            fn check() {}
        }
        impl<T: ?Sized> AmbiguousIfSend<()> for T {}
        struct IsSend;
        impl<T: ?Sized + Send> AmbiguousIfSend<IsSend> for T {}
        <$type as AmbiguousIfSend<_>>::check();
    }};
}

fn assert_send_sync<T: Send + Sync>() {}

#[test]
fn types_cross_threads_as_documented() {
    assert_send_sync::<EventCount>();
    assert_send_sync::<Watermark>();
    assert_send_sync::<ReaderBiased<Vec<u8>>>();
    assert_send_sync::<Promise<std::cell::Cell<u8>>>();
    assert_send_sync::<Completion<std::cell::Cell<u8>>>();
    assert_not_send!(ReaderBiased<std::rc::Rc<u8>>);
    assert_not_send!(ReadGuard<'static, u8>);
    assert_not_send!(WriteGuard<'static, u8>);
    assert_not_send!(Promise<std::rc::Rc<u8>>);
}

#[test]
fn slot_hints_differ_between_threads_and_stay() {
    let mine = thread_slot_hint();
    assert_eq!(mine, thread_slot_hint());
    let other = thread::spawn(thread_slot_hint).join().unwrap();
    assert_ne!(mine, other);
}

#[test]
fn readers_see_whole_writes() {
    const WRITES: u64 = 500;
    // A writer that is preempted between two words must not be seen there.
    let lock = ReaderBiased::new([0u64; 16]);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                // The reads between two writes are enough to bring the bias back and use it.
                while !is_done.load(Ordering::Relaxed) {
                    let words = lock.read();
                    assert!(words.iter().all(|word| *word == words[0]), "torn: {:?}", *words);
                    assert!(words[0] >= last, "went back from {last} to {}", words[0]);
                    last = words[0];
                }
            });
        }
        for round in 0..WRITES {
            for word in lock.write().iter_mut() {
                *word += 1;
            }
            if round % 16 == 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert_eq!(lock.into_inner(), [WRITES; 16]);
}

#[test]
fn writers_exclude_each_other() {
    const WRITES: u64 = 5_000;
    let lock = ReaderBiased::new(0u64);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..WRITES {
                    *lock.write() += 1;
                }
            });
        }
    });
    assert_eq!(*lock.read(), 3 * WRITES);
}

#[test]
fn a_writer_waits_for_every_kind_of_reader() {
    let lock = ReaderBiased::new(());
    let has_written = AtomicBool::new(false);
    thread::scope(|scope| {
        // The second read finds this thread's slot taken and goes through the inner lock.
        let (fast, slow) = (lock.read(), lock.read());
        scope.spawn(|| {
            let _guard = lock.write();
            has_written.store(true, Ordering::Relaxed);
        });
        thread::sleep(Duration::from_millis(10));
        drop(slow);
        thread::sleep(Duration::from_millis(10));
        assert!(!has_written.load(Ordering::Relaxed), "a writer got past a fast reader");
        drop(fast);
    });
    assert!(has_written.load(Ordering::Relaxed));

    // After a revocation the next reader is slow.
    has_written.store(false, Ordering::Relaxed);
    thread::scope(|scope| {
        let slow = lock.read();
        scope.spawn(|| {
            let _guard = lock.write();
            has_written.store(true, Ordering::Relaxed);
        });
        thread::sleep(Duration::from_millis(10));
        assert!(!has_written.load(Ordering::Relaxed), "a writer got past a slow reader");
        drop(slow);
    });
}

#[test]
fn a_reader_that_unwinds_lets_writers_in() {
    let lock = ReaderBiased::new(1);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let _guard = lock.read();
        panic!("expected: a reader fails inside");
    }));
    assert!(result.is_err());
    *lock.write() += 1;
    assert_eq!(*lock.read(), 2);
}

#[test]
fn no_wake_up_is_lost_in_ping_pong() {
    const ROUNDS: u64 = 3_000;
    let turn = AtomicU64::new(0);
    let changed = EventCount::new();
    let play = |parity| {
        for round in (0..ROUNDS).filter(|round| round % 2 == parity) {
            changed.wait_until(|| turn.load(Ordering::Acquire) == round);
            turn.store(round + 1, Ordering::Release);
            changed.notify_all();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| play(0));
        play(1);
    });
    assert_eq!(turn.into_inner(), ROUNDS);
}

#[test]
fn a_wait_with_a_deadline_ends() {
    let event = EventCount::new();
    let start = Instant::now();
    assert!(!event.wait_deadline(|| false, start + Duration::from_millis(5)));
    assert!(start.elapsed() >= Duration::from_millis(5));
    // The condition wins over a deadline that has passed.
    assert!(event.wait_deadline(|| true, start));
    assert!(!event.wait_deadline(|| false, start));
    // A waiter that gave up leaves the event count in order.
    let is_set = AtomicBool::new(false);
    let is_ready = || is_set.load(Ordering::Acquire);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| event.wait_deadline(is_ready, far_deadline()));
        is_set.store(true, Ordering::Release);
        event.notify_all();
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn a_watermark_carries_what_lies_below_it() {
    const EVENTS: u64 = 3_000;
    let watermark = Watermark::new(0);
    let events: Vec<AtomicU64> = (0..EVENTS).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        for stride in [1, 2, 7] {
            let (watermark, events) = (&watermark, &events);
            scope.spawn(move || {
                let mut checked = 0;
                for target in (1..=EVENTS).step_by(stride) {
                    let position = watermark.wait_for(target).unwrap();
                    assert!(position >= target);
                    for index in checked..position {
                        // Relaxed on both sides: the watermark alone orders them.
                        let event = events[index as usize].load(Ordering::Relaxed);
                        assert_eq!(event, index + 1);
                    }
                    checked = position;
                }
            });
        }
        for (index, event) in events.iter().enumerate() {
            let index = index as u64;
            event.store(index + 1, Ordering::Relaxed);
            watermark.publish(index + 1);
        }
    });
    assert_eq!(watermark.get(), EVENTS);
}

#[test]
fn a_failed_watermark_still_answers_for_what_it_reached() {
    const REACHED: u64 = 300;
    let watermark = Watermark::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for target in 1..=REACHED {
                    assert!(watermark.wait_for(target).is_ok(), "{target} was reached");
                }
                assert_eq!(watermark.wait_for(REACHED + 1), Err(Failed));
                let wait = watermark.wait_deadline(REACHED + 1, far_deadline());
                assert_eq!(wait, Err(WaitError::Failed));
            });
        }
        for position in 1..=REACHED {
            watermark.publish(position);
        }
        assert!(!watermark.is_failed());
        watermark.fail();
        watermark.fail();
    });
    assert!(watermark.is_failed());
    assert_eq!(watermark.wait_for(REACHED), Ok(REACHED));
}

#[test]
fn a_watermark_wait_times_out_and_can_be_repeated() {
    let watermark = Watermark::new(5);
    let soon = Instant::now() + Duration::from_millis(5);
    assert_eq!(watermark.wait_deadline(6, soon), Err(WaitError::TimedOut));
    assert_eq!(watermark.wait_deadline(5, soon), Ok(5));
    watermark.publish(6);
    assert_eq!(watermark.wait_deadline(6, soon), Ok(6));
}

#[test]
#[should_panic(expected = "watermark would move back from 2 to 1")]
fn a_watermark_does_not_move_back() {
    let watermark = Watermark::new(0);
    watermark.publish(2);
    watermark.publish(2);
    watermark.publish(1);
}

#[test]
fn completions_hand_values_over() {
    const REQUESTS: u64 = 3_000;
    let (requests, queue) = mpsc::sync_channel::<(u64, Promise<Box<u64>>)>(8);
    let answer = thread::spawn(move || {
        for (number, promise) in queue {
            if number % 5 != 0 {
                promise.complete(Box::new(number * 2));
            }
        }
    });
    thread::scope(|scope| {
        for offset in 0..2 {
            let requests = requests.clone();
            scope.spawn(move || {
                for number in (offset..REQUESTS).step_by(2) {
                    let (promise, mut completion) = completion();
                    requests.send((number, promise)).unwrap();
                    let answer = if number % 3 == 0 {
                        completion.wait_deadline(far_deadline()).unwrap()
                    } else {
                        completion.wait()
                    };
                    let expected = if number % 5 == 0 { None } else { Some(number * 2) };
                    assert_eq!(answer.ok().map(|value| *value), expected);
                }
            });
        }
    });
    drop(requests);
    answer.join().unwrap();
}

#[test]
fn a_completion_can_be_polled() {
    let (promise, mut completion) = completion();
    assert!(!completion.is_ended());
    assert_eq!(completion.try_take(), None);
    assert_eq!(completion.wait_deadline(Instant::now()), None);
    promise.complete("value");
    assert!(completion.is_ended());
    assert_eq!(completion.try_take(), Some(Ok("value")));
}

#[test]
#[should_panic(expected = "taken once")]
fn a_completion_is_taken_once() {
    let (promise, mut completion) = completion();
    promise.complete(());
    assert!(completion.try_take().is_some());
    completion.try_take();
}

#[test]
fn a_promise_that_unwinds_is_abandoned() {
    let (promise, mut completion) = completion::<u8>();
    let worker = thread::spawn(move || {
        let _promise = promise;
        panic!("expected: a worker fails with a request in hand");
    });
    assert_eq!(completion.wait(), Err(Abandoned));
    assert!(worker.join().is_err());
}

#[test]
fn a_value_is_dropped_once_whoever_goes_first() {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let drops = Arc::new(AtomicUsize::new(0));

    let (promise, receiver) = completion();
    drop(receiver);
    promise.complete(Counted(Arc::clone(&drops)));
    assert_eq!(drops.load(Ordering::Relaxed), 1, "the receiver went first");

    let (promise, receiver) = completion();
    promise.complete(Counted(Arc::clone(&drops)));
    drop(receiver);
    assert_eq!(drops.load(Ordering::Relaxed), 2, "the value was never taken");

    let (promise, mut receiver) = completion();
    promise.complete(Counted(Arc::clone(&drops)));
    drop(receiver.wait());
    assert_eq!(drops.load(Ordering::Relaxed), 3, "the value was taken");
}

#[test]
fn what_a_watermark_counts_is_in_the_list_that_grew_before() {
    const ITEMS: u64 = 400;
    // As the writer goes on in a new segment: it is in the list before anything in it is published.
    let list = List::<Arc<AtomicU64>>::new(Vec::new());
    let published = Watermark::new(0);
    thread::scope(|scope| {
        for reader in 0..3 {
            let (list, published) = (&list, &published);
            scope.spawn(move || {
                let mut reached = 0;
                while reached < ITEMS {
                    reached = match reader {
                        0 => published.wait_for(reached + 1).unwrap(),
                        _ => published.get(),
                    };
                    let items = list.snapshot();
                    assert!(items.len() as u64 >= reached, "{} of {reached}", items.len());
                    for (index, item) in (0..reached).zip(&items[..]) {
                        assert_eq!(item.load(Ordering::Relaxed), index + 1);
                    }
                }
            });
        }
        for index in 0..ITEMS {
            let item = Arc::new(AtomicU64::new(0));
            list.push(Arc::clone(&item));
            item.store(index + 1, Ordering::Relaxed);
            published.publish(index + 1);
            if index % 16 == 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
    });
}

#[test]
fn what_is_taken_out_of_a_list_lives_while_it_is_read() {
    const ITEMS: u64 = 2_000;
    struct Item {
        is_alive: AtomicBool,
        dropped: Arc<AtomicU64>,
    }
    impl Drop for Item {
        fn drop(&mut self) {
            self.is_alive.store(false, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dropped = Arc::new(AtomicU64::new(0));
    let list = List::new(Vec::new());
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    let items: super::Snapshot<Arc<Item>> = list.snapshot();
                    for item in items.iter() {
                        assert!(item.is_alive.load(Ordering::Relaxed));
                    }
                }
            });
        }
        let growing = scope.spawn(|| {
            for _ in 0..ITEMS {
                let (is_alive, dropped) = (AtomicBool::new(true), Arc::clone(&dropped));
                list.push(Arc::new(Item { is_alive, dropped }));
            }
        });
        while !growing.is_finished() || !list.snapshot().is_empty() {
            list.change(|items| drop(items.drain(..items.len().min(2))));
            thread::yield_now();
        }
        growing.join().unwrap();
        is_done.store(true, Ordering::Relaxed);
    });
    assert_eq!(dropped.load(Ordering::Relaxed), ITEMS, "each item came, and went once");
}

#[test]
fn cells_of_completions_serve_again() {
    const ROUNDS: u64 = 5_000;
    // As appender and writer pass them round: whoever is the last to leave hands the cell on.
    let (requests, queue) = mpsc::sync_channel::<(u64, Promise<Box<u64>>)>(4);
    let (cells, spare) = mpsc::channel::<Cell<Box<u64>>>();
    let made = AtomicU64::new(0);
    let back = cells.clone();
    let answer = thread::spawn(move || {
        for (number, promise) in queue {
            let cell = match number % 5 {
                0 => None,
                _ => promise.complete(Box::new(number)),
            };
            if let Some(cell) = cell {
                back.send(cell).unwrap();
            }
        }
    });
    for number in 0..ROUNDS {
        let cell = spare.try_recv().unwrap_or_else(|_| {
            made.fetch_add(1, Ordering::Relaxed);
            Cell::new()
        });
        let (promise, mut completion) = cell.split();
        assert_eq!(completion.try_take(), None, "a value of the hand-off before");
        requests.send((number, promise)).unwrap();
        if number % 3 != 0 {
            let expected = if number % 5 == 0 { Err(Abandoned) } else { Ok(Box::new(number)) };
            assert_eq!(completion.wait(), expected);
        }
        if let Some(cell) = completion.release() {
            cells.send(cell).unwrap();
        }
    }
    drop(requests);
    answer.join().unwrap();
    assert!(made.load(Ordering::Relaxed) < ROUNDS, "no cell served twice");
}

#[test]
fn a_queue_loses_nothing_and_ends() {
    const MESSAGES: u64 = 2_000;
    for receiver_waits in [false, true] {
        let (sender, receiver) = queue::<(u64, u64)>(None);
        thread::scope(|scope| {
            for from in 0..3 {
                let sender = sender.clone();
                scope.spawn(move || {
                    for number in 0..MESSAGES {
                        sender.send((from, number)).unwrap();
                        if number % 64 == 0 {
                            thread::yield_now();
                        }
                    }
                });
            }
            drop(sender);
            let mut next = [0; 3];
            loop {
                let received = match receiver_waits {
                    false => receiver.recv_deadline(far_deadline()),
                    true => receiver.recv().ok_or(RecvError::Ended),
                };
                match received {
                    Ok((from, number)) => {
                        assert_eq!(number, next[from as usize], "out of order");
                        next[from as usize] += 1;
                    }
                    Err(error) => {
                        assert_eq!(error, RecvError::Ended);
                        break;
                    }
                }
            }
            assert_eq!(next, [MESSAGES; 3], "the end came before a message");
        });
    }
}

#[test]
fn a_receiver_sleeps_until_there_is_something() {
    for round in 0..300 {
        let (sender, receiver) = queue(Some(1));
        thread::scope(|scope| {
            let receiving = scope.spawn(|| (receiver.recv(), receiver.recv()));
            if round % 3 == 0 {
                thread::yield_now();
            }
            sender.send(round).unwrap();
            drop(sender);
            assert_eq!(receiving.join().unwrap(), (Some(round), None));
        });
    }
    let (sender, receiver) = queue(Some(1));
    assert_eq!(receiver.try_recv(), Err(RecvError::TimedOut));
    let soon = Instant::now() + Duration::from_millis(5);
    assert_eq!(receiver.recv_deadline(soon), Err(RecvError::TimedOut));
    sender.send(1).unwrap();
    assert_eq!(sender.send(2), Err(2), "full");
    drop(receiver);
    assert_eq!(sender.send(3), Err(3), "nobody receives");
}
