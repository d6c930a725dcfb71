//! Tests of the gate on the real types. They are the siblings of the loom models.

use std::thread;

use super::gate::{Gate, Shut};
use crate::sync::{Receiver, queue};

/// What passes the gate: an append to a stream, or the seal of one.
#[derive(Debug, PartialEq, Eq)]
enum Message {
    Append(u64),
    Seal(u64),
}
use Message::{Append, Seal};

fn append(gate: &Gate<Message>, stream: u64) -> Result<(), Shut<Message>> {
    gate.pass(
        Append(stream),
        |message, is_sealed| matches!(message, Append(stream) if is_sealed(*stream)),
    )
}

fn drain(receiver: &Receiver<Message>) -> Vec<Message> {
    std::iter::from_fn(|| receiver.recv()).collect()
}

#[test]
fn what_passes_before_the_close_is_received_and_nothing_else() {
    for round in 0..200 {
        let (sender, receiver) = queue(None);
        let gate = Gate::new(sender, [], true);
        thread::scope(|scope| {
            let append_all = || (0..).take_while(|_| append(&gate, 1).is_ok()).count();
            let appenders = [scope.spawn(append_all), scope.spawn(append_all)];
            let receiving = scope.spawn(|| drain(&receiver).len());
            if round % 2 == 0 {
                thread::yield_now();
            }
            gate.close();
            assert!(matches!(append(&gate, 1), Err(Shut::Closed(Append(1)))));
            let passed: usize = appenders.map(|appender| appender.join().unwrap()).iter().sum();
            assert_eq!(receiving.join().unwrap(), passed);
        });
    }
}

#[test]
fn no_append_is_behind_a_seal() {
    for round in 0..200 {
        let (sender, receiver) = queue(None);
        let gate = Gate::new(sender, [9], true);
        thread::scope(|scope| {
            for stream in 1..=2 {
                let gate = &gate;
                scope.spawn(move || {
                    while append(gate, stream).is_ok() {}
                    assert!(matches!(append(gate, 9), Err(Shut::Sealed(_) | Shut::Closed(_))));
                });
            }
            for stream in 1..=2 {
                if round % 2 == 0 {
                    thread::yield_now();
                }
                gate.seal(stream, Seal(stream)).unwrap();
                gate.learn(stream, true);
                gate.decide(stream);
            }
        });
        gate.close();
        let mut sealed = Vec::new();
        for message in drain(&receiver) {
            match message {
                Append(stream) => assert!(!sealed.contains(&stream), "behind its seal"),
                Seal(stream) => sealed.push(stream),
            }
        }
        assert_eq!(sealed, [1, 2]);
    }
}

#[test]
fn a_stream_is_shut_while_it_is_sealed_or_being_sealed() {
    let (sender, _receiver) = queue(None);
    let gate = Gate::new(sender, [3], true);
    assert!(matches!(append(&gate, 3), Err(Shut::Sealed(Append(3)))), "it was sealed before");
    gate.seal(1, Seal(1)).unwrap();
    assert!(matches!(append(&gate, 1), Err(Shut::Sealed(Append(1)))), "its seal is under way");
    append(&gate, 2).expect("another stream");
    gate.decide(1);
    append(&gate, 1).expect("the seal is not stored");
    gate.seal(1, Seal(1)).unwrap();
    gate.seal(1, Seal(1)).unwrap();
    gate.decide(1);
    assert!(matches!(append(&gate, 1), Err(Shut::Sealed(_))), "one seal is still under way");
    gate.learn(1, true);
    gate.decide(1);
    assert!(matches!(append(&gate, 1), Err(Shut::Sealed(_))), "it is sealed");
    gate.learn(1, false);
    append(&gate, 1).expect("the seal is taken off");
    gate.seal(1, Seal(1)).unwrap();
    gate.learn(1, true);
    gate.learn(1, false);
    assert!(matches!(append(&gate, 1), Err(Shut::Sealed(_))), "a seal is under way");
    gate.decide(1);
    append(&gate, 1).expect("an unseal is behind the seal");
    gate.close();
    assert!(matches!(gate.seal(1, Seal(1)), Err(Shut::Closed(Seal(1)))));
}

#[test]
fn before_the_order_has_caught_up_only_new_seals_shut_a_stream() {
    let (sender, _receiver) = queue(None);
    let gate = Gate::new(sender, [3], false);
    append(&gate, 3).expect("an unseal may be in the tail of the log");
    gate.seal(1, Seal(1)).unwrap();
    assert!(matches!(append(&gate, 1), Err(Shut::Sealed(_))), "it is sealed now");
    gate.learn(4, true);
    append(&gate, 4).expect("the same may be unsealed further on");
    gate.settle();
    for stream in [1, 3, 4] {
        assert!(matches!(append(&gate, stream), Err(Shut::Sealed(_))), "{stream} is sealed");
    }
    append(&gate, 2).expect("it is not");
}

#[test]
fn a_stream_that_is_open_again_is_forgotten() {
    let (sender, _receiver) = queue(None);
    let gate = Gate::new(sender, [3], true);
    for stream in 0..100 {
        gate.seal(stream, Seal(stream)).unwrap();
        // This one is not stored.
        gate.decide(stream);
        gate.seal(stream, Seal(stream)).unwrap();
        gate.learn(stream, true);
        gate.decide(stream);
        gate.learn(stream, false);
    }
    gate.pass(Append(1), |_, _| panic!("asked, though no stream is sealed")).expect("passes");
    gate.learn(3, true);
    append(&gate, 3).expect_err("it is sealed");
}
