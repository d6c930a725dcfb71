//! What the tests of the log share: events that own their bytes, and ways to look at and to harm
//! the files of a store in memory.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses another part")]

use std::sync::Arc;

use thalweg_wal::storage::{Access, MemoryStorage, Storage, read_file, write_all_at};
use thalweg_wal::{
    Damage, DiscardReason, EncodedBatch, EventFields, FrameBuf, LimitError, Lineage, LogOptions,
    LogReader, LogWriter, MarkChange, OpenError, OpenedLog, Record, RecordKind, Segment, TailHint,
    name,
};

pub const MIB: u64 = 1 << 20;
pub const HEADER_PAGE: usize = thalweg_wal::format::SEGMENT_HEADER_LEN as usize;
pub const FRAME_HEADER: usize = thalweg_wal::format::FRAME_HEADER_LEN as usize;

pub const OPTIONS: LogOptions = LogOptions { create: true, segment_len_max: MIB };

/// A record that owns its bytes, as given or as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Seals have a stream and nothing else. A mark has its cursor as stream, and its sequence as payload.
    pub kind: RecordKind,
    pub stream: Vec<u8>,
    pub id: Option<Vec<u8>>,
    /// `None` is chained; an empty list is a root.
    pub parents: Option<Vec<Vec<u8>>>,
    pub require_parents: bool,
    pub if_tips: bool,
    pub if_local: Option<u64>,
    pub with_previous: bool,
    pub payload: Vec<u8>,
}

impl Event {
    /// A chained event with an id.
    pub fn new(stream: &str, id: impl Into<Vec<u8>>, payload: impl Into<Vec<u8>>) -> Self {
        Event {
            kind: RecordKind::Event,
            stream: stream.into(),
            id: Some(id.into()),
            parents: None,
            require_parents: false,
            if_tips: false,
            if_local: None,
            with_previous: false,
            payload: payload.into(),
        }
    }

    /// A record that puts a seal on a stream or takes it off.
    pub fn control(kind: RecordKind, stream: &str) -> Self {
        Event { kind, id: None, parents: Some(vec![]), ..Event::new(stream, "", "") }
    }

    /// A mark that takes a cursor up to a sequence.
    pub fn mark(cursor: &str, next: u64) -> Self {
        Event { payload: next.to_le_bytes().to_vec(), ..Self::control(RecordKind::Mark, cursor) }
    }

    /// A discard of the event with this id, or its expiry.
    pub fn discard(stream: &str, id: &str, reason: DiscardReason) -> Self {
        let payload = match reason {
            DiscardReason::Discarded => vec![1, 0, 0, 0],
            DiscardReason::Expired => vec![2, 0, 0, 0],
        };
        Event { id: Some(id.into()), payload, ..Self::control(RecordKind::Discard, stream) }
    }

    /// A trim of a stream.
    pub fn stream_trim(stream: &str, first: u64) -> Self {
        let payload = first.to_le_bytes().to_vec();
        Event { payload, ..Self::control(RecordKind::StreamTrim, stream) }
    }

    pub fn push_to(&self, batch: &mut EncodedBatch) -> Result<(), LimitError> {
        match self.kind {
            RecordKind::Event => {}
            RecordKind::Seal => return batch.push_seal(&self.stream),
            RecordKind::Unseal => return batch.push_unseal(&self.stream),
            RecordKind::Mark => {
                let next = u64::from_le_bytes(self.payload[..].try_into().expect("a sequence"));
                return batch.push_mark(&self.stream, MarkChange::Advance(next));
            }
            RecordKind::Discard => {
                let reason = match self.payload[0] {
                    1 => DiscardReason::Discarded,
                    _ => DiscardReason::Expired,
                };
                let id = self.id.as_deref().unwrap_or_default();
                return batch.push_discard(&self.stream, id, reason);
            }
            RecordKind::StreamTrim => {
                let first = u64::from_le_bytes(self.payload[..].try_into().expect("a sequence"));
                return batch.push_stream_trim(&self.stream, first);
            }
            RecordKind::Refused => unreachable!("never appended"),
        }
        let listed: Vec<&[u8]> = self.parents.iter().flatten().map(Vec::as_slice).collect();
        let lineage = match self.parents {
            None => Lineage::Chained,
            Some(_) if self.if_tips => Lineage::IfTips(&listed),
            Some(_) => Lineage::Parents(&listed),
        };
        batch.push(&EventFields {
            stream: &self.stream,
            id: self.id.as_deref(),
            lineage,
            require_parents: self.require_parents,
            if_local: self.if_local,
            with_previous: self.with_previous,
            payload: &self.payload,
        })
    }

    pub fn read(record: &Record<'_>) -> Self {
        let listed: Vec<Vec<u8>> = record.parents().map(<[u8]>::to_vec).collect();
        assert!(!record.is_chained() || listed.is_empty(), "a chained event lists no parents");
        Event {
            kind: record.kind(),
            stream: record.stream().to_vec(),
            id: (!record.given_id().is_empty()).then(|| record.given_id().to_vec()),
            parents: (!record.is_chained()).then_some(listed),
            require_parents: record.requires_parents(),
            if_tips: record.is_if_tips(),
            if_local: record.if_local(),
            with_previous: record.is_with_previous(),
            payload: match record.mark().map(|mark| mark.change) {
                Some(MarkChange::Advance(next)) => next.to_le_bytes().to_vec(),
                Some(other) => panic!("no test has this: {other:?}"),
                None => record.payload().to_vec(),
            },
        }
    }
}

pub fn batch_of(events: &[Event]) -> EncodedBatch {
    let mut batch = EncodedBatch::new();
    for event in events {
        event.push_to(&mut batch).expect("within the limits");
    }
    batch
}

pub fn frame_of(events: &[Event]) -> FrameBuf {
    let mut frame = FrameBuf::new();
    frame.push(&batch_of(events));
    frame
}

pub fn open(storage: &MemoryStorage, hint: Option<TailHint>) -> Result<OpenedLog, OpenError> {
    LogWriter::open(Arc::new(storage.clone()), OPTIONS, hint)
}

pub fn read(storage: &MemoryStorage, hint: Option<TailHint>) -> Result<LogReader, OpenError> {
    LogReader::open(storage, hint)
}

/// Appends each group of events as a frame of its own, synced; returns the frames' positions and,
/// as the last element, the end.
pub fn append_frames(writer: &mut LogWriter, frames: &[Vec<Event>]) -> Vec<u64> {
    let mut edges = Vec::new();
    for events in frames {
        let appended = writer.append(&mut frame_of(events)).expect("appends");
        assert_eq!(writer.sync().expect("syncs"), appended.end);
        edges.push(appended.position);
    }
    edges.push(writer.end());
    edges
}

pub fn walk(segments: &[Arc<Segment>]) -> (Vec<Event>, Vec<Damage>) {
    let (mut events, mut damage) = (Vec::new(), Vec::new());
    for segment in segments {
        for item in segment.walk(segment.first(), segment.end()) {
            match item {
                Ok(record) => events.push(Event::read(&record)),
                Err(found) => damage.push(found),
            }
        }
    }
    (events, damage)
}

pub fn whole(segments: &[Arc<Segment>]) -> Vec<Event> {
    let (events, damage) = walk(segments);
    assert_eq!(damage, [], "no damage expected");
    events
}

pub fn bytes_of(storage: &MemoryStorage, number: u64) -> Vec<u8> {
    read_file(storage, &name::segment(number)).expect("the segment is there")
}

/// Changes bytes of a file. The store is closed.
pub fn patch(storage: &MemoryStorage, number: u64, offset: usize, bytes: &[u8]) {
    let file = storage.open(&name::segment(number), Access::Write).expect("opens");
    write_all_at(&*file, bytes, offset as u64).expect("inside the file");
}

pub fn flip(storage: &MemoryStorage, number: u64, offset: usize, bit: u8) {
    let byte = bytes_of(storage, number)[offset];
    patch(storage, number, offset, &[byte ^ (1 << bit)]);
}

/// Puts a file with exactly these bytes in place of whatever has the name.
pub fn put(storage: &MemoryStorage, name: &str, bytes: &[u8]) {
    let _ = storage.remove(name);
    let file = storage.create(name, bytes.len() as u64).expect("creates");
    write_all_at(&*file, bytes, 0).expect("writes");
}

/// All files with their bytes: to show that something changed nothing.
pub fn snapshot(storage: &MemoryStorage) -> Vec<(String, Vec<u8>)> {
    let mut names = storage.list().expect("lists");
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let bytes = read_file(storage, &name).expect("reads");
            (name, bytes)
        })
        .collect()
}

pub fn hint(durable_end: u64, closed: bool) -> Option<TailHint> {
    Some(TailHint { durable_end, closed })
}

/// The frames of the golden store.
pub fn golden_frames() -> Vec<Vec<Event>> {
    let listed = |ids: &[&[u8]]| Some(ids.iter().map(|id| id.to_vec()).collect());
    let root = Event { parents: listed(&[]), ..Event::new("orders", "o-1", "created") };
    vec![
        vec![
            root.clone(),
            Event::new("orders", "o-2", "chained on the tips"),
            Event { parents: listed(&[b"o-1", b"o-2", b"o-1"]), ..Event::new("orders", "o-3", "") },
        ],
        vec![
            Event { id: None, require_parents: true, ..Event::new("orders", "", "no id") },
            Event {
                parents: listed(&[&[0xFF; 64], b"\0"]),
                require_parents: true,
                ..Event::new("\u{3bb}", [0xFF, 0x00, 0x7F], (0..=255).collect::<Vec<u8>>())
            },
        ],
        vec![Event { stream: vec![b's'; 255], id: Some(vec![7; 64]), ..root.clone() }],
        vec![],
        vec![
            Event { parents: listed(&[b"o-3"]), if_tips: true, ..Event::new("orders", "o-4", "4") },
            Event { with_previous: true, ..Event::new("orders", "o-5", "with o-4") },
            Event { if_local: Some(0x0102_0304_0506_0708), ..Event::new("orders", "o-6", "") },
            Event {
                if_tips: true,
                if_local: Some(6),
                require_parents: true,
                with_previous: true,
                ..Event { id: Some(b"o-7".to_vec()), ..root }
            },
            Event::control(RecordKind::Seal, "orders"),
            Event::control(RecordKind::Unseal, "orders"),
        ],
    ]
}
