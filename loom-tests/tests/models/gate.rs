//! Models of the gate: appends against a close and against a seal.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use loom_tests::explore;
use loom_tests::pipeline::gate::{Gate, Shut};
use loom_tests::sync::{Receiver, queue, set_thread_slot_hint};

const STREAM: u64 = 1;

#[derive(Debug, PartialEq, Eq)]
enum Message {
    Append(u32),
    Seal,
}
use Message::{Append, Seal};

fn gate() -> (Arc<Gate<Message>>, Receiver<Message>) {
    let (sender, receiver) = queue(Some(4));
    (Arc::new(Gate::new(sender, [], true)), receiver)
}

fn append(gate: &Gate<Message>, number: u32) -> Result<(), Shut<Message>> {
    gate.pass(Append(number), |_, is_sealed| is_sealed(STREAM))
}

/// Starts a thread that appends `count` messages, and returns how many passed.
fn spawn_appender(gate: &Arc<Gate<Message>>, slot: usize, count: u32) -> thread::JoinHandle<u32> {
    let gate = Arc::clone(gate);
    thread::spawn(move || {
        set_thread_slot_hint(slot);
        let mut passed = 0;
        for number in 0..count {
            match append(&gate, number) {
                Ok(()) => passed += 1,
                Err(Shut::Closed(message) | Shut::Sealed(message)) => {
                    assert_eq!(message, Append(number), "what is refused comes back");
                }
            }
        }
        passed
    })
}

fn drain(receiver: &Receiver<Message>) -> Vec<Message> {
    std::iter::from_fn(|| receiver.recv()).collect()
}

#[test]
fn append_against_close() {
    explore("two appends against a close", Some(3), 240, || {
        let (gate, receiver) = gate();
        let appender = spawn_appender(&gate, 1, 2);
        gate.close();
        let received = drain(&receiver).len() as u32;
        assert!(matches!(append(&gate, 9), Err(Shut::Closed(Append(9)))));
        assert_eq!(appender.join().unwrap(), received, "passed and not received, or after the end");
    });
}

#[test]
fn append_against_close_and_receiver() {
    explore("an append, a close and a receiver", Some(3), 2_400, || {
        let (gate, receiver) = gate();
        let appender = spawn_appender(&gate, 1, 1);
        let receiving = thread::spawn(move || drain(&receiver).len() as u32);
        gate.close();
        assert_eq!(appender.join().unwrap(), receiving.join().unwrap());
    });
}

#[test]
fn two_appends_against_close() {
    explore("two appenders against a close", Some(2), 830, || {
        let (gate, receiver) = gate();
        let appenders = [spawn_appender(&gate, 0, 1), spawn_appender(&gate, 1, 1)];
        gate.close();
        let received = drain(&receiver).len() as u32;
        let passed: u32 = appenders.map(|appender| appender.join().unwrap()).iter().sum();
        assert_eq!(passed, received);
    });
}

#[test]
fn append_against_seal() {
    explore("two appends against a seal that is stored", Some(4), 1_300, || {
        let (gate, receiver) = gate();
        let appender = spawn_appender(&gate, 1, 2);
        gate.seal(STREAM, Seal).unwrap();
        // As the orderer does, before whoever sealed hears of it.
        gate.learn(STREAM, true);
        gate.decide(STREAM);
        assert!(matches!(append(&gate, 9), Err(Shut::Sealed(Append(9)))));
        let passed = appender.join().unwrap();
        gate.close();
        let received = drain(&receiver);
        assert_eq!(received.last(), Some(&Seal), "an append is behind the seal");
        assert_eq!(received.len() as u32, passed + 1);
    });
}

#[test]
fn append_after_failed_seal() {
    explore("an append against a seal that is not stored", Some(4), 2_000, || {
        let (gate, _receiver) = gate();
        let is_shut = Arc::new(AtomicBool::new(false));
        let appender = thread::spawn({
            let (gate, is_shut) = (Arc::clone(&gate), Arc::clone(&is_shut));
            move || {
                set_thread_slot_hint(1);
                let was_shut = is_shut.load(Ordering::Acquire);
                let passed = append(&gate, 0).is_ok();
                let still_shut = is_shut.load(Ordering::Acquire);
                assert!(!(passed && was_shut && still_shut), "passed while a seal is under way");
            }
        });
        gate.seal(STREAM, Seal).unwrap();
        is_shut.store(true, Ordering::Release);
        is_shut.store(false, Ordering::Release);
        gate.decide(STREAM);
        append(&gate, 9).expect("the stream is open again");
        appender.join().unwrap();
    });
}

#[test]
fn unseal_against_append() {
    explore("an append against an unseal", None, 1_700, || {
        let (gate, receiver) = gate();
        gate.learn(STREAM, true);
        let appender = spawn_appender(&gate, 1, 1);
        gate.learn(STREAM, false);
        append(&gate, 9).expect("the stream is open again");
        gate.close();
        assert_eq!(appender.join().unwrap() + 1, drain(&receiver).len() as u32);
    });
}
