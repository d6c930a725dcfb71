//! What the protocols rely on in the types under them, asked of both: of the real ones, as they ship,
//! and of the doubles that stand for them in the models.
//!
//! A double that keeps a promise which the real thing does not keep makes models pass that the real
//! thing would fail; one that breaks a promise makes models fail for nothing. The same tests run on
//! both, the doubles' in every order that loom finds.

// What `real.rs` has for the engine and not for these tests.
#[allow(dead_code, unused_imports, unreachable_pub, missing_debug_implementations)]
#[path = "../../engine/src/sync/real.rs"]
mod real;

/// Runs a test of the doubles, in every order up to a few preemptions.
fn explored(test: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

/// Runs a test of the real types, in some order, often.
fn repeated(test: fn()) {
    (0..50).for_each(|_| test());
}

macro_rules! contract {
    ($world:ident, $sync:path, $thread:path, $run:ident: $($test:ident)*) => {
        mod $world {
            use std::cell::Cell;
            use std::time::{Duration, Instant};

            use $sync as sync;
            use $thread as thread;

            use sync::channel::{self, TryRecvError, TrySendError};
            use sync::{
                Arc, AtomicBool, AtomicU64, AtomicUsize, Backoff, Condvar, Mutex, Ordering, RwLock,
                UnsafeCell, load_own, thread_local, thread_slot_hint,
            };

            $(
                mod $test {
                    #[test]
                    fn holds() {
                        super::super::$run(super::$test);
                    }
                }
            )*

            /// Long enough that nobody gets there.
            fn far_deadline() -> Instant {
                Instant::now() + Duration::from_secs(60)
            }

            fn messages_come_in_order() {
                let (sender, receiver) = channel::unbounded();
                let other = sender.clone();
                let sending = thread::spawn(move || {
                    other.try_send(1).unwrap();
                    other.try_send(2).unwrap();
                });
                sending.join().unwrap();
                sender.try_send(3).unwrap();
                assert!(!receiver.is_empty());
                for expected in 1..=3 {
                    assert_eq!(receiver.try_recv(), Ok(expected));
                }
                assert!(receiver.is_empty() && !receiver.is_disconnected());
                assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
            }

            fn two_senders_keep_their_orders() {
                let (sender, receiver) = channel::bounded(4);
                let senders = [(0, sender.clone()), (10, sender)].map(|(from, sender)| {
                    thread::spawn(move || {
                        sender.try_send(from).unwrap();
                        sender.try_send(from + 1).unwrap();
                    })
                });
                let mut received = Vec::new();
                loop {
                    match receiver.try_recv() {
                        Ok(message) => received.push(message),
                        Err(TryRecvError::Empty) => thread::yield_now(),
                        Err(TryRecvError::Disconnected) => break,
                    }
                }
                for from in [0, 10] {
                    let mut of_one = received.iter().filter(|message| **message / 10 * 10 == from);
                    assert_eq!(of_one.next(), Some(&from));
                    assert_eq!(of_one.next(), Some(&(from + 1)));
                }
                assert_eq!(received.len(), 4, "everything comes before the end");
                for sender in senders {
                    sender.join().unwrap();
                }
            }

            fn full_gives_the_message_back() {
                let (sender, receiver) = channel::bounded(1);
                sender.try_send(1).unwrap();
                let error = sender.try_send(2).unwrap_err();
                assert!(matches!(error, TrySendError::Full(2)));
                assert_eq!(error.into_inner(), 2);
                assert_eq!(receiver.try_recv(), Ok(1));
                sender.try_send(3).unwrap();
                assert_eq!(receiver.try_recv(), Ok(3));
            }

            fn no_receiver_gives_the_message_back() {
                let (sender, receiver) = channel::bounded(1);
                drop(receiver);
                let error = sender.try_send(1).unwrap_err();
                assert!(matches!(error, TrySendError::Disconnected(1)));
                assert_eq!(error.into_inner(), 1);
            }

            fn last_sender_ends_it_after_its_messages() {
                let (sender, receiver) = channel::bounded(2);
                let clone = sender.clone();
                drop(sender);
                assert!(!receiver.is_disconnected(), "there is a clone");
                clone.try_send(1).unwrap();
                let going = thread::spawn(move || drop(clone));
                going.join().unwrap();
                assert!(receiver.is_disconnected() && !receiver.is_empty());
                assert_eq!(receiver.try_recv(), Ok(1));
                assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
            }

            /// Whoever waits for an answer to a message behind a receiver that is gone goes on only
            /// when the last sender goes: not before.
            fn backlog_outlives_the_receiver() {
                struct Dropped(Arc<AtomicBool>);
                impl Drop for Dropped {
                    fn drop(&mut self) {
                        self.0.store(true, Ordering::Release);
                    }
                }
                let is_dropped = Arc::new(AtomicBool::new(false));
                let (sender, receiver) = channel::bounded(1);
                assert!(sender.try_send(Dropped(Arc::clone(&is_dropped))).is_ok());
                let clone = sender.clone();
                drop(receiver);
                assert!(!is_dropped.load(Ordering::Acquire));
                drop(sender);
                assert!(!is_dropped.load(Ordering::Acquire), "there is a clone");
                drop(clone);
                assert!(is_dropped.load(Ordering::Acquire));
            }

            /// What was done before a message was sent, or a sender went, is visible to the receiver.
            fn messages_and_ends_carry_data() {
                let (sender, receiver) = channel::unbounded();
                let data = Arc::new(AtomicU64::new(0));
                let sending = thread::spawn({
                    let data = Arc::clone(&data);
                    move || {
                        data.store(1, Ordering::Relaxed);
                        sender.try_send(()).unwrap();
                        data.store(2, Ordering::Relaxed);
                    }
                });
                if receiver.try_recv().is_ok() {
                    assert!(data.load(Ordering::Relaxed) >= 1);
                }
                sending.join().unwrap();
            }

            fn mutex_excludes() {
                let count = Arc::new((Mutex::new(()), AtomicU64::new(0)));
                let add = |count: &(Mutex<()>, AtomicU64)| {
                    let _guard = count.0.lock();
                    let before = count.1.load(Ordering::Relaxed);
                    count.1.store(before + 1, Ordering::Relaxed);
                };
                let adding = thread::spawn({
                    let count = Arc::clone(&count);
                    move || add(&count)
                });
                add(&count);
                adding.join().unwrap();
                assert_eq!(count.1.load(Ordering::Relaxed), 2);
            }

            fn guard_is_the_value() {
                let mutex = Mutex::new(1);
                *mutex.lock() += 1;
                assert_eq!(*mutex.lock(), 2);
            }

            /// One call wakes all who wait, each holds the lock when it goes on, and a deadline that
            /// is far away is not reached. Nothing is said of what has no deadline in a model.
            fn notification_wakes_all() {
                let shared = Arc::new((Mutex::new(false), Condvar::new(), AtomicUsize::new(0)));
                let waiters = [true, false].map(|has_deadline| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        let mut is_ready = shared.0.lock();
                        while !*is_ready {
                            if has_deadline {
                                let end = shared.1.wait_until(&mut is_ready, far_deadline());
                                assert!(!end.timed_out());
                            } else {
                                shared.1.wait(&mut is_ready);
                            }
                        }
                        assert_eq!(shared.2.fetch_add(1, Ordering::Relaxed), 0, "not alone");
                        shared.2.fetch_sub(1, Ordering::Relaxed);
                    })
                });
                *shared.0.lock() = true;
                shared.1.notify_all();
                for waiter in waiters {
                    waiter.join().unwrap();
                }
            }

            fn writer_excludes_readers() {
                let lock = Arc::new((RwLock::new(()), AtomicU64::new(0)));
                let reader = thread::spawn({
                    let lock = Arc::clone(&lock);
                    move || {
                        let _guard = lock.0.read();
                        assert_eq!(lock.1.load(Ordering::Relaxed) % 2, 0, "read amid a write");
                    }
                });
                let guard = lock.0.write();
                lock.1.store(1, Ordering::Relaxed);
                lock.1.store(2, Ordering::Relaxed);
                drop(guard);
                reader.join().unwrap();
            }

            fn readers_share() {
                let lock = Arc::new(RwLock::new(()));
                let mine = lock.read();
                let reader = thread::spawn({
                    let lock = Arc::clone(&lock);
                    move || drop(lock.read())
                });
                // It does not wait for this guard.
                reader.join().unwrap();
                drop(mine);
                drop(lock.write());
            }

            fn cells_and_own_loads() {
                let cell = UnsafeCell::new(1);
                cell.with_mut(|_| ());
                let _ = cell.get();
                let _ = cell.get_mut();
                assert_eq!(cell.into_inner(), 1);
                let atomic = AtomicU64::new(1);
                atomic.store(2, Ordering::Relaxed);
                assert_eq!(load_own(&atomic), 2);
            }

            fn backoff_lets_others_run() {
                let is_set = Arc::new(AtomicBool::new(false));
                let setting = thread::spawn({
                    let is_set = Arc::clone(&is_set);
                    move || is_set.store(true, Ordering::Release)
                });
                let mut backoff = Backoff::new();
                while !is_set.load(Ordering::Acquire) {
                    backoff.snooze();
                }
                setting.join().unwrap();
            }

            thread_local! {
                #[allow(clippy::missing_const_for_thread_local)]
                static MINE: Cell<bool> = Cell::new(false);
            }

            /// Also a slot hint stays the same for its thread. That hints differ is not promised to
            /// anybody, and in a model they do where it says so.
            fn thread_locals_are_of_their_threads() {
                assert!(!MINE.with(Cell::get));
                MINE.with(|mine| mine.set(true));
                let other = thread::spawn(|| MINE.with(Cell::get));
                assert!(!other.join().unwrap() && MINE.with(Cell::get));
                MINE.with(|mine| mine.set(false));
                assert_eq!(thread_slot_hint(), thread_slot_hint());
            }
        }
    };
}

macro_rules! on_both {
    ($($test:ident)*) => {
        contract!(of_the_doubles, loom_tests::sync, loom::thread, explored: $($test)*);
        contract!(of_the_real_types, crate::real, std::thread, repeated: $($test)*);
    };
}

on_both! {
    messages_come_in_order
    two_senders_keep_their_orders
    full_gives_the_message_back
    no_receiver_gives_the_message_back
    last_sender_ends_it_after_its_messages
    backlog_outlives_the_receiver
    messages_and_ends_carry_data
    mutex_excludes
    guard_is_the_value
    notification_wakes_all
    writer_excludes_readers
    readers_share
    cells_and_own_loads
    backoff_lets_others_run
    thread_locals_are_of_their_threads
}
