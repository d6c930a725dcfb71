//! p2panda-stream 0.5: `PartialOrder`, a published queue of events that wait for their parents, over its
//! `MemoryStore`.
//!
//! The records are in memory and parsed, as for the bound; nothing is read, checked or decoded. Its
//! functions are `async` and never wait, so a loop that polls drives them. The order is written behind,
//! with one `fdatasync`, as the bound does it; p2panda itself keeps nothing here.
//!
//! In its favour: keys of 64 bits instead of its hashes of 32 bytes, and a stack of 2 GiB, since it
//! follows the children of an event by recursion, and a long stream in a random order overflows any
//! usual stack. It keeps one order for all streams, on one thread.
//!
//! Later versions (0.7) want a runtime, keep their queue in SQLite, and lose events that name a parent
//! and a parent of that parent; they are not here.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use p2panda_stream::partial::{MemoryStore, PartialOrder};

use super::records::{Records, write_order};
use super::{Contender, Done, Setup, Store, Threads};
use crate::Failure;
use crate::expected::Strictness;
use crate::machine::Clock;

pub(super) const CONTENDER: Contender = Contender {
    name: "p2panda",
    store: Store::Records,
    threads: Threads::Default,
    strictness: Strictness::Causal,
    is_slow: false,
    is_memory: true,
    run,
};

/// Reserved, and taken only as far as it is used.
const STACK_BYTES: usize = 2 << 30;

fn run(setup: &Setup) -> Result<Done, Failure> {
    let setup = setup.clone();
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
    let thread = thread.spawn(move || discover(&setup))?;
    thread.join().map_err(|_| "p2panda has panicked")?
}

fn discover(setup: &Setup) -> Result<Done, Failure> {
    let records = Records::load(&setup.dir)?;
    // It asks for a key only; the place behind the key is not its affair.
    let places: std::collections::HashMap<u64, u64> =
        records.records.iter().zip(0..).map(|(record, place)| (record.key, place)).collect();
    let clock = Clock::start();
    let mut queue = PartialOrder::new(MemoryStore::default());
    let mut keys = Vec::with_capacity(records.records.len());
    block_on(async {
        for record in &records.records {
            queue.process(record.key, records.parents(record)).await?;
        }
        while let Some(key) = queue.next().await? {
            keys.push(key);
        }
        Ok::<_, Failure>(())
    })?;
    write_order(&setup.dir, &keys)?;
    let used = clock.stop();
    let order: Vec<u64> = keys.iter().map(|key| places[key]).collect();
    Ok(Done::ordered(used, records.ordinals(&order)))
}

/// Polls until it is done. Nothing in it waits, so nobody has to be woken.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}
