//! Shapes of graphs, and of logs, each of which has broken an engine of this kind before.

mod common;

use common::{check, expected, shared};
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, Event, MixedBatch, Options};

/// A segment was filled to its last byte, so that the end of one was the beginning of the next. The
/// orderer then took the header of the next segment for records, and stopped for the damage.
#[test]
fn a_segment_that_is_full_to_its_last_byte() {
    const SEGMENT: u64 = 1 << 20;
    let storage = MemoryStorage::new();
    let store = Options::new().segment_bytes(SEGMENT).open_on(shared(&storage)).expect("opens");
    let append = |payload: usize| {
        let mut batch = MixedBatch::new().ack(Ack::Ordered);
        batch.push("stream", &Event::new(vec![7; payload])).expect("within the limits");
        let byte_len = batch.byte_len();
        let receipt = store.submit(batch).expect("accepted").wait().expect("appended");
        assert_eq!(receipt.end - receipt.position, byte_len);
        receipt
    };
    let first = append(0);
    let second = append(0);
    let (frame_header, empty) = (second.position - first.end, second.end - second.position);
    let last = append((SEGMENT - second.end - frame_header - empty) as usize);
    assert_eq!(last.end, SEGMENT, "the segment is full");
    append(0);
    check(&store, &expected(&storage));
    store.close().expect("closes");
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    check(&store, &expected(&storage));
    drop(store);

    // Killed when everything up to the end of the full segment is in a checkpoint.
    let storage = MemoryStorage::new();
    let store = Options::new().segment_bytes(SEGMENT).open_on(shared(&storage)).expect("opens");
    let payload = (SEGMENT - first.position - empty) as usize;
    let receipt = store.appender("s").expect("opens").append(vec![1; payload]).expect("accepted");
    let receipt = receipt.wait().expect("appended");
    assert_eq!(receipt.end, SEGMENT);
    store.wait_committed(SEGMENT).expect("committed");
    store.checkpoint().expect("a checkpoint");
    let storage = storage.fork();
    let store = Options::new().open_on(shared(&storage)).expect("opens");
    store.appender("s").expect("opens").append("more").expect("accepted").wait().expect("appended");
    check(&store, &expected(&storage));
}
