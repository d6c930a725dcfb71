//! Opening, closing, dropping and failing: nothing hangs, everything accepted completes exactly once,
//! and a store that has stopped can be read, and opened again.

mod common;

use std::time::Duration;

use common::shared;
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, Batch, Event, Options, Placement};

/// Everything that must end soon ends within this time, on a busy machine too.
const SOON: Duration = Duration::from_secs(10);

/// The orderer cut the log where the bytes ended that it could see, which is a moment before the
/// writer has handed over the tickets for them. A ticket that came too late waited for the next
/// append, and did not learn what became of its events.
#[test]
fn tickets_for_the_order_are_never_late() {
    let storage = MemoryStorage::new();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let appender = store.appender(format!("s{thread}")).expect("an appender");
            let appender = appender.ack(Ack::Ordered);
            scope.spawn(move || {
                for round in 0..1000 {
                    let unwatched = appender.clone().ack(Ack::Durable);
                    unwatched.append("one more").expect("accepted");
                    let batch = Batch::from([Event::new(vec![0; round % 5])]);
                    let mut ticket = appender.submit(batch).expect("accepted");
                    let receipt = ticket.wait_timeout(SOON).expect("in time").expect("appended");
                    let placement = receipt.placements[0];
                    assert!(matches!(placement, Placement::Delivered { .. }), "{placement:?}");
                }
            });
        }
    });
}
