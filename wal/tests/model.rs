//! Whatever is done to a log, it reads as the list of what was appended, in that order.

mod common;

use std::sync::Arc;

use common::{Event, MIB, batch_of, whole};
use proptest::collection::vec;
use proptest::prelude::*;
use thalweg_wal::storage::{MemoryStorage, OsStorage, Storage};
use thalweg_wal::{
    DiscardReason, FrameBuf, LogOptions, LogReader, LogWriter, OpenedLog, RecordKind, TailHint,
};

#[derive(Debug, Clone)]
enum Step {
    /// A frame of these batches; synced or left for later.
    Append { batches: Vec<Vec<Event>>, sync: bool },
    /// A frame with one payload of so many bytes, so that segments roll.
    AppendLong { len: usize },
    /// Prepare the next segment ahead.
    Spare,
    /// Sync and open again, with or without the word of a checkpoint.
    Reopen { checkpoint: bool, closed: bool },
    /// Open again without a sync; in memory everything was written all the same.
    Crash,
    /// Read along.
    Read,
}

fn id() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..=64)
}

fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![
        Just(RecordKind::Event),
        Just(RecordKind::Seal),
        Just(RecordKind::Unseal),
        Just(RecordKind::Mark),
        Just(RecordKind::Discard),
        Just(RecordKind::StreamTrim)
    ];
    let control = (kind, "[a-z]{1,9}").prop_map(|(kind, stream)| match kind {
        RecordKind::Event => Event::new(&stream, stream.as_str(), "short"),
        RecordKind::Mark => Event::mark(&stream, stream.len() as u64),
        RecordKind::Discard => Event::discard(&stream, &stream, DiscardReason::Expired),
        RecordKind::StreamTrim => Event::stream_trim(&stream, stream.len() as u64),
        kind => Event::control(kind, &stream),
    });
    prop_oneof![1 => control, 4 => long_event()]
}

fn long_event() -> impl Strategy<Value = Event> {
    (
        vec(any::<u8>(), 1..=255),
        proptest::option::of(id()),
        proptest::option::of(vec(id(), 0..5)),
        any::<[bool; 2]>(),
        proptest::option::of(any::<u64>()),
        vec(any::<u8>(), 0..300),
    )
        .prop_map(|(stream, id, parents, [require_parents, if_tips], if_local, payload)| {
            Event {
                kind: RecordKind::Event,
                stream,
                id,
                if_tips: if_tips && parents.is_some(),
                parents,
                require_parents,
                if_local,
                with_previous: false,
                payload,
            }
        })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (vec(vec(event(), 0..4), 0..4), any::<bool>())
            .prop_map(|(batches, sync)| Step::Append { batches, sync }),
        3 => (0..1_500_000_usize).prop_map(|len| Step::AppendLong { len }),
        2 => Just(Step::Spare),
        2 => (any::<bool>(), any::<bool>())
            .prop_map(|(checkpoint, closed)| Step::Reopen { checkpoint, closed }),
        1 => Just(Step::Crash),
        1 => Just(Step::Read),
    ]
}

const OPTIONS: LogOptions = LogOptions { create: true, segment_len_max: 2 * MIB };

fn open(storage: &Arc<dyn Storage>, hint: Option<TailHint>) -> OpenedLog {
    LogWriter::open(Arc::clone(storage), OPTIONS, hint).expect("opens")
}

fn equals_its_model(storage: Arc<dyn Storage>, steps: Vec<Step>) {
    let mut model: Vec<Event> = Vec::new();
    let OpenedLog { mut writer, mut segments, .. } = open(&storage, None);
    let mut frame = FrameBuf::new();
    for step in steps {
        match step {
            Step::Append { batches, sync } => {
                frame.clear();
                for batch in &batches {
                    frame.push(&batch_of(batch));
                }
                segments.extend(writer.append(&mut frame).expect("appends").rolled);
                model.extend(batches.concat());
                if sync {
                    assert_eq!(writer.sync().expect("syncs"), writer.end());
                }
            }
            Step::AppendLong { len } => {
                let event = Event::new("long", b"id".as_slice(), vec![len as u8; len]);
                frame.clear();
                frame.push(&batch_of(std::slice::from_ref(&event)));
                segments.extend(writer.append(&mut frame).expect("appends").rolled);
                model.push(event);
            }
            Step::Spare => {
                if let Some(request) = writer.request_spare() {
                    writer
                        .offer_spare(Some(request.prepare(&*storage, &|| true).expect("prepares")));
                }
            }
            Step::Reopen { checkpoint, closed } => {
                let durable_end = writer.sync().expect("syncs");
                drop((writer, segments));
                let hint = checkpoint.then_some(TailHint { durable_end, closed });
                OpenedLog { writer, segments, .. } = open(&storage, hint);
            }
            Step::Crash => {
                drop((writer, segments));
                OpenedLog { writer, segments, .. } = open(&storage, None);
            }
            Step::Read => {
                let reader = LogReader::open(&*storage, None).expect("opens");
                assert_eq!(whole(&reader.segments), model);
            }
        }
        assert!(writer.durable() <= writer.end());
        if writer.durable() == writer.end() {
            assert_eq!(whole(&segments), model);
        }
    }
    drop((writer, segments));
    let reader = LogReader::open(&*storage, None).expect("opens");
    assert_eq!(whole(&reader.segments), model);
    assert_eq!(reader.damage, []);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(64))]
    #[test]
    fn a_log_in_memory_equals_its_model(steps in vec(step(), 1..25)) {
        equals_its_model(Arc::new(MemoryStorage::new()), steps);
    }
}

proptest! {
    #![proptest_config(config(12))]
    #[test]
    fn a_log_on_disk_equals_its_model(steps in vec(step(), 1..15)) {
        let dir = tempfile::tempdir().expect("a directory");
        equals_its_model(Arc::new(OsStorage::open(dir.path()).expect("opens")), steps);
    }
}
