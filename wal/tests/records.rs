//! Every field of an event comes back as it was given, and what is over a limit leaves no trace.

mod common;

use std::sync::Arc;

use common::{Event, batch_of, frame_of, open, read, whole};
use thalweg_wal::format::{
    BATCH_LEN_MAX, ID_LEN_MAX, PARENT_COUNT_MAX, PAYLOAD_LEN_MAX, STREAM_LEN_MAX,
};
use thalweg_wal::storage::MemoryStorage;
use thalweg_wal::{
    DiscardReason, EncodedBatch, FrameBuf, LimitError, MarkChange, Record, RecordKind, Segment,
};

fn plain() -> Event {
    Event::new("stream", "id", "payload")
}

fn shapes() -> Vec<Event> {
    let ids = |count: usize| (0..count).map(|index| format!("p{index}").into_bytes()).collect();
    let mut shapes = vec![
        plain(),
        Event { payload: vec![], ..plain() },
        Event { id: None, ..plain() },
        Event { id: Some(vec![0xff; ID_LEN_MAX]), ..plain() },
        Event { id: Some(vec![0]), ..plain() },
        Event { stream: vec![b'x'; STREAM_LEN_MAX], ..plain() },
        Event { stream: vec![0], ..plain() },
        Event { parents: Some(vec![]), ..plain() },
        Event { parents: Some(vec![b"a".to_vec(), b"a".to_vec(), b"a".to_vec()]), ..plain() },
        Event { parents: Some(ids(1000)), ..plain() },
        Event { parents: Some(vec![vec![7; ID_LEN_MAX]; 300]), ..plain() },
        Event { parents: Some(ids(2)), require_parents: true, ..plain() },
        Event { require_parents: true, ..plain() },
        Event { parents: Some(vec![]), require_parents: true, id: None, ..plain() },
        Event { payload: vec![0; 100_000], ..plain() },
        Event { parents: Some(ids(3)), if_tips: true, ..plain() },
        Event { parents: Some(vec![]), if_tips: true, ..plain() },
        Event { if_local: Some(0), ..plain() },
        Event { if_local: Some(u64::MAX), payload: vec![], ..plain() },
        Event { parents: Some(ids(2)), if_local: Some(1 << 40), ..plain() },
        Event { with_previous: true, ..plain() },
        Event {
            parents: Some(ids(1)),
            require_parents: true,
            if_tips: true,
            if_local: Some(7),
            with_previous: true,
            ..plain()
        },
        Event::control(RecordKind::Seal, "stream"),
        Event::control(RecordKind::Unseal, "another stream"),
        Event::mark("cursor", u64::MAX),
        Event::stream_trim("stream", u64::MAX),
        Event::discard("stream", "id", DiscardReason::Discarded),
        Event::discard("stream", &"i".repeat(ID_LEN_MAX), DiscardReason::Expired),
    ];
    // Every alignment of the end of a record.
    shapes.extend((0..17).map(|len| Event { payload: vec![0xA5; len], ..plain() }));
    shapes
}

/// The only segment of a log with these batches in one frame.
fn segment_of(batches: &[&EncodedBatch]) -> Arc<Segment> {
    let mut frame = FrameBuf::new();
    for batch in batches {
        frame.push(batch);
    }
    let mut opened = open(&MemoryStorage::new(), None).expect("opens");
    opened.writer.append(&mut frame).expect("appends");
    opened.writer.sync().expect("syncs");
    opened.segments.remove(0)
}

fn records(segment: &Segment) -> Vec<Record<'_>> {
    let records = segment.walk(segment.first(), segment.end());
    records.map(|record| record.expect("whole")).collect()
}

#[test]
fn every_field_comes_back_in_order() {
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    writer.append(&mut frame_of(&shapes())).expect("appends");
    writer.sync().expect("syncs");
    drop(writer);
    assert_eq!(whole(&read(&storage, None).expect("opens").segments), shapes());
}

#[test]
fn a_record_is_found_by_its_position_and_by_no_other() {
    let storage = MemoryStorage::new();
    let opened = open(&storage, None).expect("opens");
    let mut writer = opened.writer;
    writer.append(&mut frame_of(&shapes())).expect("appends");
    writer.sync().expect("syncs");
    let segment = &opened.segments[0];
    let mut positions = Vec::new();
    for record in segment.walk(segment.first(), segment.end()) {
        let record = record.expect("whole");
        positions.push(record.position());
        let again = segment.record(record.position()).expect("whole");
        assert_eq!(Event::read(&again), Event::read(&record));
        let unverified = segment.record_verified_before(record.position()).expect("in bounds");
        assert_eq!(Event::read(&unverified), Event::read(&record));
    }
    assert_eq!(positions.len(), shapes().len());
    for position in segment.base()..segment.base() + 20_000 {
        assert_eq!(segment.record(position).is_ok(), positions.contains(&position), "{position}");
    }
    for outside in [segment.end(), segment.end() - 1, segment.limit(), u64::MAX] {
        assert!(segment.record(outside).is_err());
        assert!(segment.record_verified_before(outside).is_err());
    }
}

#[test]
fn nothing_is_readable_before_it_is_synced_or_shown() {
    let storage = MemoryStorage::new();
    let opened = open(&storage, None).expect("opens");
    let (mut writer, segments) = (opened.writer, opened.segments);
    writer.append(&mut frame_of(&[plain()])).expect("appends");
    assert_eq!(whole(&segments), []);
    assert!(writer.durable() < writer.end());
    writer.show();
    assert_eq!(whole(&segments), [plain()]);
    assert!(writer.durable() < writer.end(), "shown is not durable");
    writer.append(&mut frame_of(&[plain()])).expect("appends");
    assert_eq!(writer.sync().expect("syncs"), writer.end());
    assert_eq!(whole(&segments), [plain(), plain()]);
}

#[test]
fn batches_of_a_frame_keep_their_order_and_know_their_offsets() {
    let storage = MemoryStorage::new();
    let opened = open(&storage, None).expect("opens");
    let (mut writer, segments) = (opened.writer, opened.segments);
    let mut frame = FrameBuf::new();
    assert!(frame.is_empty());
    let events: Vec<Event> = (0..9).map(|index| Event::new("s", [index], [index; 30])).collect();
    let offsets: Vec<u64> = events.chunks(2).map(|events| frame.push(&batch_of(events))).collect();
    let len = frame.byte_len();
    let appended = writer.append(&mut frame).expect("appends");
    assert_eq!(appended.end - appended.position, len);
    assert!(appended.rolled.is_none());
    writer.sync().expect("syncs");
    for (chunk, offset) in events.chunks(2).zip(offsets) {
        let record = segments[0].record(appended.position + offset).expect("whole");
        assert_eq!(Event::read(&record), chunk[0]);
    }
    assert_eq!(whole(&segments), events);

    // The same buffer serves the next frame.
    frame.clear();
    assert!(frame.is_empty());
    frame.push(&batch_of(&[plain()]));
    writer.append(&mut frame).expect("appends");
    writer.sync().expect("syncs");
    assert_eq!(whole(&segments)[9..], [plain()]);
}

/// Pushes `event` onto a batch of one, and shows that the batch is as it was.
fn refusal(event: &Event) -> LimitError {
    let mut batch = batch_of(&[plain()]);
    let (count, len) = (batch.count(), batch.byte_len());
    let error = event.push_to(&mut batch).expect_err("over the limit");
    assert_eq!((batch.count(), batch.byte_len()), (count, len));

    assert_eq!(whole(&[segment_of(&[&batch])]), [plain()]);
    error
}

#[test]
fn what_is_over_a_limit_is_refused_by_name() {
    let id = |len| vec![b'i'; len];
    let cases = [
        (Event { stream: vec![], ..plain() }, LimitError::Stream { len: 0 }),
        (
            Event { stream: id(STREAM_LEN_MAX + 1), ..plain() },
            LimitError::Stream { len: STREAM_LEN_MAX + 1 },
        ),
        (Event::control(RecordKind::Seal, ""), LimitError::Stream { len: 0 }),
        (
            Event {
                stream: id(STREAM_LEN_MAX + 1),
                ..Event::control(RecordKind::Unseal, "stream")
            },
            LimitError::Stream { len: STREAM_LEN_MAX + 1 },
        ),
        (
            Event { with_previous: true, ..Event::new("another stream", "id", "") },
            LimitError::Previous,
        ),
        (Event::mark("", 1), LimitError::Cursor { len: 0 }),
        (Event::stream_trim("", 1), LimitError::Stream { len: 0 }),
        (Event::discard("", "id", DiscardReason::Discarded), LimitError::Stream { len: 0 }),
        (Event::discard("stream", "", DiscardReason::Discarded), LimitError::Id { len: 0 }),
        (Event { id: Some(vec![]), ..plain() }, LimitError::Id { len: 0 }),
        (Event { id: Some(id(ID_LEN_MAX + 1)), ..plain() }, LimitError::Id { len: ID_LEN_MAX + 1 }),
        (
            Event { parents: Some(vec![id(1), id(0)]), ..plain() },
            LimitError::Parent { index: 1, len: 0 },
        ),
        (
            Event { parents: Some(vec![id(1), id(1), id(ID_LEN_MAX + 1)]), ..plain() },
            LimitError::Parent { index: 2, len: ID_LEN_MAX + 1 },
        ),
        (
            Event { parents: Some(vec![id(1); PARENT_COUNT_MAX + 1]), ..plain() },
            LimitError::ParentCount { count: PARENT_COUNT_MAX + 1 },
        ),
        (
            Event { payload: vec![0; PAYLOAD_LEN_MAX + 1], ..plain() },
            LimitError::Payload { len: PAYLOAD_LEN_MAX + 1 },
        ),
    ];
    for (event, expected) in cases {
        assert_eq!(refusal(&event), expected);
    }
}

#[test]
fn what_is_tied_to_the_event_before_it_has_one_in_its_batch() {
    let tied = Event { with_previous: true, ..plain() };
    let mut batch = EncodedBatch::new();
    assert_eq!(tied.push_to(&mut batch), Err(LimitError::Previous), "first of its batch");
    batch.push_seal(b"stream").expect("within the limits");
    batch.push_mark(b"stream", MarkChange::Advance(1)).expect("within the limits");
    assert_eq!(tied.push_to(&mut batch), Err(LimitError::Previous), "a seal is no event");
    plain().push_to(&mut batch).expect("within the limits");
    tied.push_to(&mut batch).expect("after an event of its stream");
    tied.push_to(&mut batch).expect("after one that is tied itself");
    Event::new("other", "id", "").push_to(&mut batch).expect("within the limits");
    assert_eq!(tied.push_to(&mut batch), Err(LimitError::Previous), "after another stream");
    assert_eq!(batch.count(), 6);
}

#[test]
fn a_mark_says_what_becomes_of_its_cursor_and_what_it_depends_on() {
    let changes = [MarkChange::Advance(7), MarkChange::Reset(u64::MAX), MarkChange::Remove];
    let mut batch = batch_of(&[plain()]);
    for change in changes {
        batch.push_mark(b"mailer", change).expect("within the limits");
    }
    // One that is alone depends on nothing.
    let mut alone = EncodedBatch::new();
    alone.push_mark(b"mailer", changes[0]).expect("within the limits");
    let segment = segment_of(&[&batch_of(&[plain()]), &batch, &alone]);
    let records = records(&segment);
    assert_eq!(records.len(), 6);
    for (record, change) in records[2..].iter().zip(changes.into_iter().chain([changes[0]])) {
        let mark = record.mark().expect("a mark");
        assert_eq!(
            (record.kind(), mark.cursor, mark.change),
            (RecordKind::Mark, &b"mailer"[..], change)
        );
        assert!(!record.is_chained() && record.given_id().is_empty());
        let alone = record.position() == records[5].position();
        let from = if alone { record } else { &records[1] };
        assert_eq!(mark.depends_from, from.position());
    }
    assert!(records[..2].iter().all(|record| record.mark().is_none()));
}

#[test]
fn a_discard_says_which_event_and_why() {
    let reasons = [DiscardReason::Discarded, DiscardReason::Expired];
    let mut batch = batch_of(&[plain()]);
    for reason in reasons {
        batch.push_discard(b"stream", b"id", reason).expect("within the limits");
    }
    let segment = segment_of(&[&batch]);
    let records = records(&segment);
    assert_eq!(records[0].discard_reason(), None);
    for (record, reason) in records[1..].iter().zip(reasons) {
        assert_eq!(record.kind(), RecordKind::Discard);
        assert_eq!((record.stream(), record.given_id()), (&b"stream"[..], &b"id"[..]));
        assert_eq!((record.discard_reason(), record.mark()), (Some(reason), None));
    }
}

#[test]
fn the_streams_of_a_batch_are_those_of_its_events() {
    let mut batch = EncodedBatch::new();
    batch.push_mark(b"a", MarkChange::Advance(1)).expect("within the limits");
    Event::new("a", "1", "").push_to(&mut batch).expect("within the limits");
    batch.push_seal(b"b").expect("within the limits");
    Event::new("b", "2", "").push_to(&mut batch).expect("within the limits");
    batch.push_mark(b"c", MarkChange::Advance(1)).expect("within the limits");
    batch.push_discard(b"d", b"3", DiscardReason::Discarded).expect("within the limits");
    batch.push_stream_trim(b"e", 7).expect("within the limits");
    assert_eq!(batch.unsealed_streams().collect::<Vec<_>>(), [b"a"]);
}

#[test]
fn a_control_record_has_a_stream_and_nothing_else() {
    let mut batch = EncodedBatch::new();
    batch.push_seal(b"s").expect("within the limits");
    batch.push_unseal(b"s").expect("within the limits");
    assert_eq!((batch.count(), batch.byte_len(), batch.is_empty()), (2, 64, false));
}

#[test]
fn a_batch_takes_no_more_than_its_limit() {
    let half = Event { payload: vec![1; PAYLOAD_LEN_MAX], ..plain() };
    let mut batch = EncodedBatch::new();
    half.push_to(&mut batch).expect("a payload of the full length");
    let before = batch.byte_len();
    let error = half.push_to(&mut batch).expect_err("together too long");
    assert_eq!(error, LimitError::Batch { len: 2 * before });
    assert!(2 * before > BATCH_LEN_MAX as u64);
    assert_eq!((batch.count(), batch.byte_len()), (1, before));
    plain().push_to(&mut batch).expect("there is still room for less");
    assert_eq!(batch.count(), 2);
}
