//! The bytes of the log: frames, records and batches.

use std::sync::Arc;

use thalweg::storage::{MemoryStorage, Storage, write_all_at};
use thalweg_wal::format::{ALIGN, FrameHeader, SEGMENT_HEADER_LEN, SegmentHeader};
use thalweg_wal::{
    DiscardReason, EncodedBatch, EventFields, FrameBuf, Lineage, LogOptions, LogReader, LogWriter,
    MarkChange, Record, RecordKind, TailHint, name,
};

use super::fix_up;
use super::input::Input;
use super::store;

const SALT: u64 = 0x1234_5678_9abc_def1;

/// A log of one segment with these bytes behind its header page.
fn storage(frames: &[u8]) -> MemoryStorage {
    let len = (SEGMENT_HEADER_LEN + frames.len() as u64 + 4096).next_multiple_of(ALIGN);
    let header = SegmentHeader {
        store_id: [7; 16],
        number: 1,
        base: 0,
        len,
        salt: SALT,
        previous_end: 0,
        previous_salt: 0,
        forgotten: 0,
        previous_forgotten: 0,
    };
    let storage = MemoryStorage::new();
    let file = storage.create(&name::segment(1), len).expect("creates");
    write_all_at(&*file, &header.encode(), 0).expect("writes");
    write_all_at(&*file, frames, SEGMENT_HEADER_LEN).expect("writes");
    storage
}

/// What a record says, all of it: position, kind, stream, id, parents, flags, place and payload.
type Fields = (u64, RecordKind, Vec<u8>, Vec<u8>, Vec<Vec<u8>>, [bool; 4], Option<u64>, Vec<u8>);

fn fields(record: &Record<'_>) -> Fields {
    let parents: Vec<Vec<u8>> = record.parents().map(<[u8]>::to_vec).collect();
    let flags = [
        record.is_chained(),
        record.is_if_tips(),
        record.requires_parents(),
        record.is_with_previous(),
    ];
    let (stream, id) = (record.stream().to_vec(), record.given_id().to_vec());
    let payload = match record.mark() {
        Some(read) => mark(read.change, record.position() - read.depends_from),
        None => record.payload().to_vec(),
    };
    (record.position(), record.kind(), stream, id, parents, flags, record.if_local(), payload)
}

/// A mark that says how far back its batch begins.
fn mark(change: MarkChange, reach: u64) -> Vec<u8> {
    format!("{change:?} of {reach}").into_bytes()
}

/// All records of a log, and how many places are damaged.
fn walk(log: &LogReader) -> (Vec<Fields>, usize) {
    let (mut records, mut damaged) = (Vec::new(), 0);
    for segment in &log.segments {
        let mut position = segment.first();
        for record in segment.walk(segment.first(), segment.end()) {
            match record {
                Ok(record) => {
                    assert!(record.position() >= position, "a walk goes back");
                    position = record.position() + record.len();
                    assert!(position <= segment.end(), "a walk leaves its segment");
                    records.push(fields(&record));
                }
                Err(damage) => {
                    damaged += 1;
                    assert!(damage.resumes >= damage.position, "{damage:?}");
                    let _ = damage.to_string();
                }
            }
        }
        // Cuts come to the end, and what is between them has the same records.
        let mut from = segment.first();
        while from < segment.end() {
            let to = segment.cut(from, 100);
            assert!(to > from, "a cut makes no progress");
            from = to;
        }
        // No position is right or wrong enough for a panic.
        for position in segment.base()..segment.end() + 64 {
            for record in [segment.record(position), segment.record_verified_before(position)] {
                let _ = record.map(|record| drop(fields(&record)));
            }
        }
    }
    (records, damaged)
}

/// A log whose frames are these bytes, with checksums that match.
pub fn frame(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (fixed, hint_byte) = (!input.once_in(4), input.byte());
    let mut frames = input.0.to_vec();
    if fixed {
        fix_up::frames(&mut frames, SEGMENT_HEADER_LEN, SALT);
    }
    let storage = storage(&frames);
    let hint = (hint_byte % 2 == 1).then(|| TailHint {
        durable_end: SEGMENT_HEADER_LEN + u64::from(hint_byte / 4 % 16) * 48,
        closed: hint_byte % 4 == 1,
    });
    let reader = LogReader::open(&storage, hint).expect("a good header opens for reading");
    let (seen, damaged) = walk(&reader);
    // Going on takes a new segment, which takes long.
    if hint_byte & 0xc0 != 0 {
        return;
    }
    let options = LogOptions { create: false, segment_len_max: 1 << 20 };
    let mut opened = match LogWriter::open(Arc::new(storage.clone()), options, hint) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(!reader.damage.is_empty(), "a reader sees why a writer is refused: {error}");
            return;
        }
    };
    assert!(reader.damage.is_empty(), "a writer goes on over {:?}", reader.damage);
    let mut batch = EncodedBatch::new();
    batch.push_seal(b"later").expect("within the limits");
    let mut frame = FrameBuf::new();
    frame.push(&batch);
    opened.writer.append(&mut frame).expect("appends");
    let end = opened.writer.sync().expect("syncs");
    drop(opened);
    let again = LogReader::open(&storage, None).expect("opens again");
    assert_eq!(again.end, end);
    let (mut later, still_damaged) = walk(&again);
    later.pop().expect("what was appended is there");
    assert!(later == seen && still_damaged == damaged, "a writer has changed what was there");
}

/// Records in a good frame: what the engine makes of them is what the serial machine makes of them.
pub fn record(bytes: &[u8]) {
    let salt = store::log_salt();
    let mut frame = vec![0; 48];
    let (mut rest, mut count) = (bytes, 0);
    // The fuzzer's bytes one after the other, each as long as it says that it is.
    while rest.len() >= 24 && count < 64 {
        let mut record = rest[..rest.len() & !7].to_vec();
        record[4] = 0xE7;
        let position = SEGMENT_HEADER_LEN + frame.len() as u64;
        let len = match fix_up::record(&mut record, position, salt) {
            0 => break,
            len => len,
        };
        frame.extend_from_slice(&record[..len]);
        rest = &rest[len..];
        count += 1;
    }
    let len = frame.len() as u64;
    let (position, record_count) = (SEGMENT_HEADER_LEN, count);
    let header = FrameHeader { position, len, record_count, floor: 0, written_at: 0 };
    header.encode_into(salt, &mut frame);
    store::log(&frame);
}

/// What is encoded reads back as it was given.
pub fn batch(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut batch = EncodedBatch::new();
    let mut given = Vec::new();
    let mut position = SEGMENT_HEADER_LEN + 48;
    while !input.is_empty() && given.len() < 64 {
        let len = if input.once_in(16) { 300 } else { 12 };
        let mut id = || {
            let len = if input.once_in(16) { 70 } else { 4 };
            input.bytes(len)
        };
        let (own, parents) = (id(), [id(), id(), id()]);
        let stream = input.bytes(len);
        let parents: Vec<&[u8]> = parents.iter().map(Vec::as_slice).take(input.below(4)).collect();
        let payload = input.bytes(40);
        let choice = input.byte();
        let event = EventFields {
            stream: &stream,
            id: (choice & 1 == 1).then_some(&*own),
            lineage: match choice >> 1 & 3 {
                0 => Lineage::Chained,
                1 => Lineage::IfTips(&parents),
                _ => Lineage::Parents(&parents),
            },
            require_parents: choice & 8 != 0,
            if_local: (choice & 16 != 0).then(|| input.number(0)),
            with_previous: choice & 32 != 0,
            payload: &payload,
        };
        let before = (batch.count(), batch.byte_len());
        let kind = match choice >> 6 {
            0 if choice & 3 == 3 => RecordKind::StreamTrim,
            0 if choice & 1 == 1 => RecordKind::Discard,
            0 => RecordKind::Seal,
            1 => RecordKind::Unseal,
            2 => RecordKind::Mark,
            _ => RecordKind::Event,
        };
        let change = match choice >> 1 & 3 {
            0 => MarkChange::Advance(u64::from(choice)),
            1 => MarkChange::Reset(u64::MAX - u64::from(choice)),
            _ => MarkChange::Remove,
        };
        let pushed = match kind {
            RecordKind::Seal => batch.push_seal(&stream),
            RecordKind::Unseal => batch.push_unseal(&stream),
            RecordKind::Mark => batch.push_mark(&stream, change),
            RecordKind::Discard => batch.push_discard(&stream, &own, DiscardReason::Expired),
            RecordKind::StreamTrim => batch.push_stream_trim(&stream, choice.into()),
            RecordKind::Event | RecordKind::Refused => batch.push(&event),
        };
        if let Err(error) = pushed {
            assert_eq!((batch.count(), batch.byte_len()), before, "{error} leaves a trace");
            continue;
        }
        let is_event = kind == RecordKind::Event;
        let (is_chained, is_if_tips) = match event.lineage {
            Lineage::Chained => (true, false),
            Lineage::IfTips(_) => (false, true),
            Lineage::Parents(_) => (false, false),
        };
        let listed = parents.iter().filter(|_| is_event && !is_chained);
        let flags = [is_chained, is_if_tips, event.require_parents, event.with_previous];
        given.push((
            position,
            kind,
            stream.clone(),
            event
                .id
                .filter(|_| is_event || kind == RecordKind::Discard)
                .unwrap_or_default()
                .to_vec(),
            listed.map(|parent| parent.to_vec()).collect::<Vec<_>>(),
            flags.map(|flag| flag && is_event),
            event.if_local.filter(|_| is_event),
            match kind {
                RecordKind::Event => payload,
                RecordKind::Mark => mark(change, before.1),
                RecordKind::Discard => vec![2, 0, 0, 0],
                RecordKind::StreamTrim => u64::from(choice).to_le_bytes().to_vec(),
                RecordKind::Seal | RecordKind::Unseal | RecordKind::Refused => Vec::new(),
            },
        ));
        position += batch.byte_len() - before.1;
    }
    let storage = storage(&[0; 64]);
    let options = LogOptions { create: false, segment_len_max: 1 << 20 };
    let opened = LogWriter::open(Arc::new(storage.clone()), options, None).expect("opens");
    let mut writer = opened.writer;
    let mut frame = FrameBuf::new();
    frame.push(&batch);
    let appended = writer.append(&mut frame).expect("appends");
    writer.sync().expect("syncs");
    // A frame that does not fit comes to stand in the next segment.
    let moved = appended.position - SEGMENT_HEADER_LEN;
    given.iter_mut().for_each(|event| event.0 += moved);
    let log = LogReader::open(&storage, None).expect("opens");
    let records: Vec<_> = log
        .segments
        .iter()
        .flat_map(|segment| segment.walk(segment.first(), segment.end()))
        .map(|record| fields(&record.expect("no damage")))
        .collect();
    assert_eq!(records, given);
}
