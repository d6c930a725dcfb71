//! Models of those who wait for several streams.
//!
//! The list is the shipped one. The order of the steps around it is the subscription's and the committer's, which hold
//! readers and files and cannot be compiled here: it is repeated, with names of its own.

use loom::sync::Arc;
use loom::thread;
use loom_tests::explore;
use loom_tests::pipeline::interests::{Interests, Wants};
use loom_tests::sync::{Failed, Watermark, mutant, set_thread_slot_hint};

/// Whether to take one step in its place: `true`, unless a mutant run takes it elsewhere.
fn step(name: &str) -> bool {
    !mutant(name)
}

struct Core {
    delivered: Watermark,
    interests: Interests,
}

impl Core {
    fn new() -> Arc<Self> {
        Arc::new(Core { delivered: Watermark::new(0), interests: Interests::new() })
    }

    /// A window with one event, of the stream `a`.
    fn commit(&self) {
        let publish = || self.interests.publish(0..1, 1, || Some(vec![&b"a"[..]]));
        let is_in_order = step("sub.delivered_before_places");
        if !is_in_order {
            publish();
        }
        self.delivered.publish(1);
        if is_in_order {
            publish();
        }
    }

    /// Begins a subscription, and waits if there is nothing. Says what that came to, and how many events are delivered
    /// then.
    fn follow(&self) -> (Result<u64, Failed>, u64) {
        let early = (!step("sub.add_before_look")).then(|| self.delivered.get());
        let interest = self.interests.add(Wants::Prefix(b"a".to_vec()));
        if step("sub.look_for_the_end") && self.delivered.is_failed() {
            interest.place.fail();
        }
        let looked = early.unwrap_or_else(|| self.delivered.get());
        let found = if looked == 0 { interest.place.wait_for(1) } else { Ok(looked) };
        self.interests.remove(&interest);
        (found, self.delivered.get())
    }
}

fn spawn_subscriber(core: &Arc<Core>) -> thread::JoinHandle<(Result<u64, Failed>, u64)> {
    let core = Arc::clone(core);
    thread::spawn(move || {
        set_thread_slot_hint(1);
        core.follow()
    })
}

#[test]
fn subscription_against_a_window() {
    explore("a subscription begins while a window is published", Some(3), 150, || {
        let core = Core::new();
        let subscriber = spawn_subscriber(&core);
        core.commit();
        assert_eq!(subscriber.join().unwrap(), (Ok(1), 1));
    });
}

#[test]
fn subscription_against_the_end() {
    explore("a subscription begins while the store ends", Some(3), 200, || {
        let core = Core::new();
        let subscriber = spawn_subscriber(&core);
        core.delivered.fail();
        core.interests.fail();
        assert_eq!(subscriber.join().unwrap(), (Err(Failed), 0));
    });
}

#[test]
fn subscription_passes_over_what_is_of_others() {
    // Windows of one event each. The subscriber wants those of the stream `a`.
    const WINDOWS: [&[u8]; 3] = [b"a", b"a", b"b"];
    explore("a subscription passes over events while windows are published", Some(3), 200, || {
        let core = Core::new();
        let subscriber = {
            let core = Arc::clone(&core);
            thread::spawn(move || {
                set_thread_slot_hint(1);
                let interest = core.interests.add(Wants::Prefix(b"a".to_vec()));
                let mut next = 0;
                for _ in 0..2 {
                    next = core.delivered.get().max(next);
                    interest.set_looked(next);
                    let further = interest.pass(next);
                    let passed = &WINDOWS[next as usize..further as usize];
                    assert!(!passed.contains(&&b"a"[..]), "from {next} to {further}");
                    next = further;
                }
                core.interests.remove(&interest);
            })
        };
        for (number, stream) in (0..).zip(WINDOWS) {
            core.delivered.publish(number + 1);
            core.interests.publish(number..number + 1, 1, || Some(vec![stream]));
        }
        subscriber.join().unwrap();
    });
}
