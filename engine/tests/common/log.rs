//! Logs that no engine has seen: what an import leaves behind that was killed before anything was
//! ordered. Whoever opens a store on one has all of it to discover.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use thalweg::MixedBatch;
use thalweg::reference::{SerialDiscard, SerialMachine, SerialRecord};
use thalweg::storage::{MemoryStorage, Storage};
use thalweg_wal::format::FRAME_HEADER_LEN;
use thalweg_wal::{EncodedBatch, EventFields, FrameBuf, Lineage, LogOptions, LogWriter};

use super::{Rng, TestEvent, hostile_event};

/// A log that is being written, without an engine.
#[derive(Debug)]
pub struct Log {
    pub storage: MemoryStorage,
    segment_bytes: u64,
    writer: LogWriter,
    frame: FrameBuf,
}

impl Log {
    /// A log with the smallest segments that there are.
    pub fn new() -> Self {
        Self::with_segments(1 << 20)
    }

    pub fn with_segments(segment_bytes: u64) -> Self {
        Self::resume(MemoryStorage::new(), segment_bytes)
    }

    fn resume(storage: MemoryStorage, segment_bytes: u64) -> Self {
        let options = LogOptions { create: true, segment_len_max: segment_bytes };
        let target: Arc<dyn Storage> = Arc::new(storage.clone());
        let writer = LogWriter::open(target, options, None).expect("opens").writer;
        Log { storage, segment_bytes, writer, frame: FrameBuf::new() }
    }

    /// Goes on in a new segment, as after a kill. A cut never crosses segments, and a short cut is a
    /// window of its own, so this is how a test says where the windows end.
    pub fn new_segment(self) -> Self {
        let Log { storage, segment_bytes, writer, .. } = self;
        drop(writer);
        Self::resume(storage, segment_bytes)
    }

    /// Writes one frame; returns the position of its first record.
    pub fn batch(&mut self, batch: &EncodedBatch) -> u64 {
        self.frame.clear();
        self.frame.push(batch);
        let appended = self.writer.append(&mut self.frame).expect("appends");
        self.writer.sync().expect("syncs");
        appended.position + FRAME_HEADER_LEN
    }

    /// Writes events `(stream, id, parents)` as one frame; returns the position of the first.
    pub fn events(&mut self, events: &[(&str, &str, &[&str])]) -> u64 {
        let mut batch = EncodedBatch::new();
        for (stream, id, parents) in events {
            let parents: Vec<&[u8]> = parents.iter().map(|parent| parent.as_bytes()).collect();
            push(&mut batch, stream.as_bytes(), id.as_bytes(), &parents, b"");
        }
        self.batch(&batch)
    }

    /// Writes many events of one shape in frames of `frame_len`, without a copy of them in memory.
    /// Each is written by `push`, which gets its number.
    pub fn many(
        &mut self,
        numbers: impl Iterator<Item = usize>,
        frame_len: usize,
        mut push: impl FnMut(&mut EncodedBatch, usize),
    ) {
        let mut batch = EncodedBatch::new();
        for number in numbers {
            push(&mut batch, number);
            if batch.count() as usize == frame_len {
                self.batch(&batch);
                batch.clear();
            }
        }
        if !batch.is_empty() {
            self.batch(&batch);
        }
    }

    /// Writes these records as one frame.
    pub fn records(&mut self, records: &[SerialRecord]) -> u64 {
        let mut batch = EncodedBatch::new();
        records.iter().for_each(|record| push_record(&mut batch, record));
        self.batch(&batch)
    }

    /// The directory: segments, and nothing else.
    pub fn written(self) -> MemoryStorage {
        self.storage
    }
}

/// Adds an event with an id and these parents.
pub fn push(batch: &mut EncodedBatch, stream: &[u8], id: &[u8], parents: &[&[u8]], payload: &[u8]) {
    let event = EventFields {
        stream,
        id: Some(id),
        lineage: Lineage::Parents(parents),
        require_parents: false,
        if_local: None,
        with_previous: false,
        payload,
    };
    batch.push(&event).expect("within the limits");
}

fn push_record(batch: &mut EncodedBatch, record: &SerialRecord) {
    let event = match record {
        SerialRecord::Seal(stream) => return batch.push_seal(stream).expect("within the limits"),
        SerialRecord::Unseal(stream) => {
            return batch.push_unseal(stream).expect("within the limits");
        }
        SerialRecord::Mark(mark) => {
            return batch.push_mark(&mark.cursor, mark.change).expect("within the limits");
        }
        SerialRecord::StreamTrim(stream, first) => {
            return batch.push_stream_trim(stream, *first).expect("within the limits");
        }
        SerialRecord::Discard(SerialDiscard { stream, id, reason }) => {
            return batch.push_discard(stream, id, *reason).expect("within the limits");
        }
        SerialRecord::Event(event) => event,
    };
    let listed: Option<Vec<&[u8]>> =
        event.parents.as_ref().map(|parents| parents.iter().map(Vec::as_slice).collect());
    let lineage = match &listed {
        Some(tips) if event.if_tips => Lineage::IfTips(tips),
        Some(parents) => Lineage::Parents(parents),
        None => Lineage::Chained,
    };
    let fields = EventFields {
        stream: &event.stream,
        id: Some(&event.id),
        lineage,
        require_parents: event.require_parents,
        if_local: event.if_local,
        with_previous: event.with_previous,
        payload: &event.payload,
    };
    batch.push(&fields).expect("within the limits");
}

/// The records of these frames. Each has an id that it keeps wherever it comes to lie, so the order
/// of the ids is the same however the frames are spread over segments.
pub fn resolved(frames: &[Vec<TestEvent>]) -> Vec<Vec<SerialRecord>> {
    let mut machine = SerialMachine::default();
    // No record stands at 0.
    let mut position = 8;
    let mut resolve = |previous: &mut Option<String>, index: usize, event: &TestEvent| {
        let made = format!("made-{position}").into_bytes();
        let reach = 8 * index as u64;
        let (stream, record) = event.resolve(&machine, previous.as_deref(), reach, made);
        *previous = matches!(record, SerialRecord::Event(_)).then_some(stream);
        machine.arrive(position..position + 8, record.clone());
        position += 8;
        record
    };
    let frames = frames.iter().map(|frame| {
        let mut previous = None;
        let numbered = frame.iter().enumerate();
        numbered.map(|(index, event)| resolve(&mut previous, index, event)).collect()
    });
    frames.collect()
}

/// Throws away what is derived: what is left is what a kill leaves that came before the first
/// checkpoint.
pub fn keep_the_log_only(storage: &dyn Storage) {
    for name in storage.list().expect("lists") {
        if thalweg_wal::name::kind(&name).is_derived() {
            storage.remove(&name).expect("removes");
        }
    }
}

/// The records, as somebody who has the store open appends them.
pub fn mixed(records: &[SerialRecord]) -> MixedBatch {
    let mut batch = MixedBatch::new();
    for record in records {
        let pushed = match record {
            SerialRecord::Seal(stream) => batch.push_seal(stream),
            SerialRecord::Unseal(stream) => batch.push_unseal(stream),
            SerialRecord::Mark(mark) => batch.push_mark(&mark.cursor, mark.change),
            SerialRecord::StreamTrim(stream, first) => batch.push_stream_trim(stream, *first),
            SerialRecord::Discard(SerialDiscard { stream, id, reason }) => {
                batch.push_discard(stream, id, *reason)
            }
            SerialRecord::Event(event) => batch.push(&event.stream, &super::to_new(event, true)),
        };
        pushed.expect("within the limits");
    }
    batch
}

/// Frames of events of the hostile kind.
pub fn frames(counts: Range<usize>) -> impl Strategy<Value = Vec<Vec<TestEvent>>> {
    prop::collection::vec(prop::collection::vec(hostile_event(40, 100), 1..60), counts)
}

/// A log of these frames that is cut before each of those in `cuts`.
pub fn log_of(frames: &[Vec<SerialRecord>], cuts: &[usize]) -> MemoryStorage {
    let mut log = Log::new();
    for (number, frame) in frames.iter().enumerate() {
        if cuts.contains(&number) {
            log = log.new_segment();
        }
        log.records(frame);
    }
    log.written()
}

/// A log of so many windows, each of some events of the hostile kind.
pub fn log_of_windows(rng: &mut Rng, count: usize) -> MemoryStorage {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&rng.next().to_le_bytes());
    let source = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), source);
    let events = frames(count..count + 1).new_tree(&mut runner).expect("events").current();
    let cuts: Vec<usize> = (1..count).collect();
    log_of(&resolved(&events), &cuts)
}
