//! Models of the queue, over the double of the channel.

use loom::alloc::Track;
use loom::thread;
use loom_tests::explore;
use loom_tests::sync::{Receiver, queue};

/// Everything there is until the end.
fn drain(receiver: &Receiver<u32>) -> Vec<u32> {
    std::iter::from_fn(|| receiver.recv()).collect()
}

#[test]
fn message_wakes_the_receiver() {
    explore("a message against a receiver", None, 28, || {
        let (sender, receiver) = queue(Some(1));
        let receiving = thread::spawn(move || assert_eq!(receiver.recv(), Some(1)));
        sender.send(1).unwrap();
        // The end must not be what wakes it.
        receiving.join().unwrap();
        drop(sender);
    });
}

#[test]
fn end_wakes_the_receiver() {
    explore("the last sender goes against a receiver", None, 160, || {
        let (sender, receiver) = queue::<u32>(None);
        let receiving = thread::spawn(move || assert_eq!(receiver.recv(), None));
        drop(sender);
        receiving.join().unwrap();
    });
}

#[test]
fn everything_comes_before_the_end() {
    explore("a sender of two messages, and its end", Some(3), 1_100, || {
        let (sender, receiver) = queue(Some(2));
        let sending = thread::spawn(move || {
            sender.send(1).unwrap();
            sender.send(2).unwrap();
        });
        assert_eq!(drain(&receiver), [1, 2]);
        sending.join().unwrap();
    });
}

#[test]
fn two_senders_end() {
    explore("two senders and their end", Some(2), 3_000, || {
        let (sender, receiver) = queue(Some(2));
        let senders = [(1, sender.clone()), (2, sender)].map(|(message, sender)| {
            thread::spawn(move || {
                sender.send(message).unwrap();
            })
        });
        let mut received = drain(&receiver);
        received.sort_unstable();
        assert_eq!(received, [1, 2]);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn receiver_goes() {
    explore("a message against a receiver that goes", None, 64, || {
        let (sender, receiver) = queue(Some(1));
        let going = thread::spawn(move || drop(receiver));
        // Sent or not, loom reports the message as leaked if nobody drops it.
        let _ = sender.send(Track::new(1));
        drop(sender);
        going.join().unwrap();
    });
}
