//! What is appended and synced is there after reopening, on both storages.

use std::sync::Arc;

use thalweg_wal::storage::{MemoryStorage, OsStorage, Storage};
use thalweg_wal::{
    EncodedBatch, EventFields, FrameBuf, Lineage, LogOptions, LogWriter, TailReport,
};

const OPTIONS: LogOptions = LogOptions { create: true, segment_len_max: 1 << 20 };

fn batch(stream: &str, count: usize, payload: &[u8]) -> EncodedBatch {
    let mut batch = EncodedBatch::new();
    for index in 0..count {
        let id = format!("{stream}-{index}");
        batch
            .push(&EventFields {
                stream: stream.as_bytes(),
                id: Some(id.as_bytes()),
                lineage: Lineage::Chained,
                require_parents: false,
                if_local: None,
                with_previous: false,
                payload,
            })
            .expect("within the limits");
    }
    batch
}

fn payloads(segments: &[Arc<thalweg_wal::Segment>]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for segment in segments {
        for record in segment.walk(segment.first(), segment.end()) {
            found.push(record.expect("no damage").payload().to_vec());
        }
    }
    found
}

fn appended_frames_are_found_again(storage: Arc<dyn Storage>) {
    let mut written = Vec::new();
    for round in 0..6_u8 {
        let opened = LogWriter::open(Arc::clone(&storage), OPTIONS, None).expect("opens");
        assert_eq!(payloads(&opened.segments), written, "round {round}");
        let expected = if round == 0 { TailReport::Created } else { TailReport::Clean };
        assert_eq!(opened.tail, expected);
        let mut writer = opened.writer;
        let mut frame = FrameBuf::new();
        for step in 0..20_u8 {
            let payload = vec![round * 20 + step; 10_000];
            frame.clear();
            frame.push(&batch("s", 3, &payload));
            writer.append(&mut frame).expect("appends");
            writer.sync().expect("syncs");
            written.extend([payload.clone(), payload.clone(), payload]);
        }
    }
}

#[test]
fn on_disk() {
    let dir = tempfile::tempdir().expect("a directory");
    appended_frames_are_found_again(Arc::new(OsStorage::open(dir.path()).expect("opens")));
}

#[test]
fn in_memory() {
    appended_frames_are_found_again(Arc::new(MemoryStorage::new()));
}
