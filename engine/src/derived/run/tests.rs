use std::collections::BTreeMap;

use proptest::prelude::*;
use thalweg_wal::name;
use thalweg_wal::storage::{Access, MemoryStorage, read_file};

use super::*;

const STORE: [u8; 16] = [5; 16];
const EXTENT: Extent = Extent { number: 1, from: 10, to: 20 };

/// What a run has, each table by its key; streams have these blobs.
#[derive(Debug, Clone, Default)]
struct Model {
    known: BTreeMap<u64, Vec<u64>>,
    streams: BTreeMap<u64, Vec<Vec<u8>>>,
    watches: BTreeMap<u64, Vec<(u64, u32)>>,
}

/// Everything that can be asked of a run.
type Answers = (Vec<Vec<KnownItem>>, Vec<Vec<(u64, Vec<u8>)>>, Vec<Vec<WatchItem>>);

impl Model {
    fn known_items(&self) -> Vec<KnownItem> {
        let of = |(&key, values): (&u64, &Vec<u64>)| -> Vec<KnownItem> {
            values.iter().map(|&value| KnownItem { key, value }).collect()
        };
        self.known.iter().flat_map(of).collect()
    }

    fn watch_items(&self) -> Vec<WatchItem> {
        let of = |(&parent_key, watches): (&u64, &Vec<(u64, u32)>)| -> Vec<WatchItem> {
            let item = |&(position, parent_at): &(u64, u32)| WatchItem {
                parent_key,
                position,
                id_key: position ^ 7,
                parent_at,
            };
            watches.iter().map(item).collect()
        };
        self.watches.iter().flat_map(of).collect()
    }

    fn write(&self, storage: &MemoryStorage) -> Arc<Run> {
        let (known, watches) = (self.known_items(), self.watch_items());
        let blobs: Vec<(u64, &Vec<u8>)> = self
            .streams
            .iter()
            .flat_map(|(&key, blobs)| blobs.iter().map(move |b| (key, b)))
            .collect();
        // More room than is used, as in a merge.
        let capacity = Capacity {
            known: known.len() as u64 * 2 + 5,
            streams: blobs.len() as u64,
            watches: watches.len() as u64 + 1,
            blobs: (blobs.iter().map(|(_, blob)| blob.len() as u64).sum(), blobs.len() as u64),
        };
        let go_on = || false;
        let mut writer = RunWriter::create(storage, STORE, name::run, EXTENT, capacity, &go_on)
            .expect("creates");
        let mut table = writer.table::<KnownItem>();
        known.iter().for_each(|item| table.push(*item).expect("writes"));
        table.finish().expect("writes");
        let mut table = writer.table::<StreamItem>();
        for (key, blob) in blobs {
            let value = StreamItem::BLOB | table.blob(blob).expect("writes");
            table.push(StreamItem { key, value, tip_key: 0 }).expect("writes");
        }
        table.finish().expect("writes");
        let mut table = writer.table::<WatchItem>();
        watches.iter().for_each(|item| table.push(*item).expect("writes"));
        table.finish().expect("writes");
        writer.finish().expect("syncs")
    }

    /// What a run must say of these keys.
    fn answers(&self, keys: &[u64]) -> Answers {
        let (known, watches) = (self.known_items(), self.watch_items());
        let streams = |key: &u64| {
            let blobs = self.streams.get(key).into_iter().flatten();
            blobs.map(|blob| (*key, blob.clone())).collect()
        };
        (
            keys.iter().map(|key| of_key(&known, *key)).collect(),
            keys.iter().map(streams).collect(),
            keys.iter().map(|key| of_key(&watches, *key)).collect(),
        )
    }
}

fn of_key<I: Item>(items: &[I], key: u64) -> Vec<I> {
    items.iter().filter(|item| item.key() == key).copied().collect()
}

/// What a run says of these keys.
fn asked(run: &Run, keys: &[u64]) -> Result<Answers, DamagedRun> {
    let mut answers = Answers::default();
    for &key in keys {
        answers.0.push(run.find(key)?.collect());
        let blob_of = |item: StreamItem| {
            let blob = run.blob(item.blob().expect("has a blob"))?;
            Ok((item.key, blob.to_vec()))
        };
        answers.1.push(run.find(key)?.map(blob_of).collect::<Result<_, _>>()?);
        answers.2.push(run.find(key)?.collect());
    }
    Ok(answers)
}

/// All items of a table from a key on.
fn items<I: Item>(run: &Arc<Run>, from: u64) -> Result<Vec<I>, DamagedRun> {
    run.items::<I>(from).collect()
}

/// Everything of a run is read, as verifying a store does.
fn read_through(run: &Arc<Run>) -> Result<(), DamagedRun> {
    run.verify_filter::<KnownItem>()?;
    run.verify_filter::<StreamItem>()?;
    run.verify_filter::<WatchItem>()?;
    items::<KnownItem>(run, 0)?;
    items::<WatchItem>(run, 0)?;
    for item in items::<StreamItem>(run, 0)? {
        run.blob(item.blob().expect("has a blob"))?;
    }
    Ok(())
}

fn model() -> impl Strategy<Value = Model> {
    // Buckets and lines are chosen by the upper bits. Some keys are close, some the same, some the least
    // and the greatest that there are.
    let key = || {
        prop_oneof![
            8 => any::<u64>().prop_map(|key| key.max(1)),
            2 => (1..40_u64).prop_map(|n| n << 57),
            1 => (0..4_u64).prop_map(|n| u64::MAX - n),
            1 => 1..4_u64,
        ]
    };
    let values = prop::collection::vec(any::<u64>(), 1..4);
    let blobs = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 1..3);
    let watches = prop::collection::vec(any::<(u64, u32)>(), 1..4);
    (
        prop::collection::btree_map(key(), values, 0..300),
        prop::collection::btree_map(key(), blobs, 0..60),
        prop::collection::btree_map(key(), watches, 0..60),
    )
        .prop_map(|(known, streams, watches)| Model { known, streams, watches })
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 2 } else { 64 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_run_has_what_was_put_into_it(model in model(), others in prop::collection::vec(1..u64::MAX, 40)) {
        let storage = MemoryStorage::new();
        let run = model.write(&storage);
        prop_assert_eq!(run.extent, EXTENT);
        let of_model = model.known.keys().chain(model.streams.keys()).chain(model.watches.keys());
        let keys: Vec<u64> = of_model.chain(&others).copied().collect();
        prop_assert_eq!(asked(&run, &keys), Ok(model.answers(&keys)));
        prop_assert_eq!(read_through(&run), Ok(()));
        for &from in others.iter().chain([0, u64::MAX].iter()).chain(model.known.keys()) {
            let mut expected = model.known_items();
            expected.retain(|item| item.key >= from);
            prop_assert_eq!(items::<KnownItem>(&run, from), Ok(expected));
        }
        prop_assert_eq!(run.count::<WatchItem>(), model.watch_items().len() as u64);
    }
}

/// A store whose run is this file.
fn store_with(bytes: &[u8]) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let file = storage.create(&name::run(EXTENT.number), bytes.len() as u64).expect("creates");
    write_all_at(&*file, bytes, 0).expect("writes");
    storage
}

/// A few items in each table, of which some share a key.
fn small_model() -> Model {
    let key = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).max(1);
    let mut model = Model::default();
    for n in 1..20 {
        model.known.insert(key(n), vec![n, n + 1]);
    }
    for n in 1..8 {
        model.watches.insert(key(n + 1000), vec![(n, 3)]);
        model.streams.insert(key(n), vec![vec![n as u8; n as usize]]);
    }
    model
}

/// A flipped bit is seen by whoever needs the byte, and does not matter to others: nobody gets a wrong answer.
#[test]
fn every_byte_of_a_run_is_checked_or_does_not_matter() {
    let storage = MemoryStorage::new();
    let model = small_model();
    let run = model.write(&storage);
    let keys: Vec<u64> = model.known.keys().chain(model.watches.keys()).copied().collect();
    let expected = asked(&run, &keys).expect("no damage");
    let bytes = read_file(&storage, &name::run(EXTENT.number)).expect("reads");
    let item_lens = [KnownItem::LEN, StreamItem::LEN, WatchItem::LEN];
    let mut used = Vec::new();
    for (table, item_len) in run.tables.iter().zip(item_lens) {
        used.push(table.items_at..table.items_at + table.item_count * item_len as u64);
        used.push(table.buckets_at..table.buckets_at + table.bucket_count * BUCKET_LEN);
        used.push(table.filter_at..table.end());
    }
    used.push(run.blobs_at..run.blobs_at + run.blobs_len);
    let step = if cfg!(miri) { 97 } else { 1 };
    for offset in (0..bytes.len()).step_by(step) {
        let mut flipped = bytes.clone();
        flipped[offset] ^= 1 << (offset % 8);
        let storage = store_with(&flipped);
        let Ok(run) = Run::open(&storage, &STORE, name::run, EXTENT.number) else {
            assert!(offset < HEADER_USED, "byte {offset}");
            continue;
        };
        assert!(offset >= HEADER_USED, "byte {offset}");
        for key in &keys {
            if let Ok(found) = asked(&run, &[*key]) {
                assert_eq!(found, model.answers(&[*key]), "byte {offset}");
            }
        }
        match read_through(&run) {
            Ok(()) => {
                let is_used = used.iter().any(|part| part.contains(&(offset as u64)));
                assert!(!is_used, "byte {offset}");
                assert_eq!(asked(&run, &keys), Ok(expected.clone()), "byte {offset}");
            }
            Err(damaged) => {
                assert_eq!(damaged.file, name::run(EXTENT.number));
                assert!(damaged.offset < bytes.len() as u64);
            }
        }
    }
}

#[test]
fn a_run_of_any_other_length_is_seen() {
    let storage = MemoryStorage::new();
    small_model().write(&storage);
    let bytes = read_file(&storage, &name::run(EXTENT.number)).expect("reads");
    for len in (0..bytes.len()).step_by(if cfg!(miri) { 511 } else { 37 }) {
        let opened = Run::open(&store_with(&bytes[..len]), &STORE, name::run, EXTENT.number);
        let kind = opened.expect_err("too short").kind();
        assert!(matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData));
    }
}

#[test]
fn a_run_of_another_store_or_with_another_number_is_not_ours() {
    let storage = MemoryStorage::new();
    small_model().write(&storage);
    let invalid = |opened: io::Result<Arc<Run>>| opened.expect_err("not ours").kind();
    let opened = Run::open(&storage, &[6; 16], name::run, EXTENT.number);
    assert_eq!(invalid(opened), io::ErrorKind::InvalidData);
    storage.rename(&name::run(EXTENT.number), &name::run(2)).expect("renames");
    assert_eq!(invalid(Run::open(&storage, &STORE, name::run, 2)), io::ErrorKind::InvalidData);
    assert_eq!(invalid(Run::open(&storage, &STORE, name::run, 1)), io::ErrorKind::NotFound);
}

/// Numbers that no run of ours has, with checksums that are right: an error, and no panic or endless memory.
#[test]
fn numbers_that_do_not_add_up_are_errors() {
    let storage = MemoryStorage::new();
    let model = small_model();
    model.write(&storage);
    let bytes = read_file(&storage, &name::run(EXTENT.number)).expect("reads");
    let keys: Vec<u64> = model.known.keys().chain(model.watches.keys()).copied().collect();
    for field in (56..HEADER_USED - 4).step_by(8) {
        let number = u64_at(&bytes, field);
        for wrong in [0, 1, number + 1, number.wrapping_sub(1), 1 << 32, 1 << 60, u64::MAX] {
            let mut changed = bytes.clone();
            changed[field..field + 8].copy_from_slice(&wrong.to_le_bytes());
            let crc = crc32c::crc32c(&changed[..HEADER_USED - 4]);
            changed[HEADER_USED - 4..HEADER_USED].copy_from_slice(&crc.to_le_bytes());
            let storage = store_with(&changed);
            if let Ok(run) = Run::open(&storage, &STORE, name::run, EXTENT.number) {
                keys.iter().for_each(|&key| run.touch::<KnownItem>(key));
                let _ = (asked(&run, &keys), read_through(&run));
            }
        }
    }
    // Places of blobs.
    let run = model.write(&storage);
    for offset in [run.blobs_len() - 1, run.blobs_len(), 1 << 40, u64::MAX - 8, u64::MAX] {
        run.blob(offset).expect_err("there is none");
    }
}

/// Items out of order, or in two buckets at once: a merge would write what is no run, or more than there is
/// room for.
#[test]
fn items_that_are_not_where_their_keys_put_them_are_damage() {
    let storage = MemoryStorage::new();
    let run = small_model().write(&storage);
    let bytes = read_file(&storage, &name::run(EXTENT.number)).expect("reads");
    let table = run.tables[KnownItem::TABLE];
    assert!(table.bucket_count > 2);
    let bucket_at = |index: u64| (table.buckets_at + index * BUCKET_LEN) as usize;
    let seal = |bytes: &mut [u8], index: u64| {
        let at = bucket_at(index);
        let (start, count) = (u64_at(bytes, at), u32_at(bytes, at + 8));
        let from = (table.items_at + start * KnownItem::LEN as u64) as usize;
        let items = crc32c::crc32c(&bytes[from..from + count as usize * KnownItem::LEN]);
        let crc = bucket_crc(items, index, start, count).to_le_bytes();
        bytes[at + 12..at + 16].copy_from_slice(&crc);
    };
    let damage = |bytes: &[u8]| {
        let run = Run::open(&store_with(bytes), &STORE, name::run, EXTENT.number).expect("opens");
        items::<KnownItem>(&run, 0)
    };
    let mut same = bytes.clone();
    seal(&mut same, 0);
    damage(&same).expect("nothing is changed");
    // The first bucket's items, the other way round.
    let mut turned = bytes.clone();
    let (first, second) = (table.items_at as usize, table.items_at as usize + 2 * KnownItem::LEN);
    (0..KnownItem::LEN).for_each(|byte| turned.swap(first + byte, second + byte));
    seal(&mut turned, 0);
    damage(&turned).expect_err("not sorted");
    // The second bucket has the first one's items.
    let mut shared = bytes.clone();
    shared.copy_within(bucket_at(0)..bucket_at(0) + 12, bucket_at(1));
    seal(&mut shared, 1);
    damage(&shared).expect_err("in two buckets");
}

#[test]
fn more_blobs_than_there_is_room_for_are_refused() {
    let storage = MemoryStorage::new();
    let capacity = Capacity { streams: 2, blobs: (10, 1), ..Capacity::default() };
    let go_on = || false;
    let mut writer =
        RunWriter::create(&storage, STORE, name::run, EXTENT, capacity, &go_on).expect("creates");
    let mut table = writer.table::<StreamItem>();
    assert_eq!(table.blob(&[1; 10]).expect("as planned"), 0);
    assert_eq!(table.blob(&[]).expect_err("too many").kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_run_in_the_making_is_none() {
    let storage = MemoryStorage::new();
    let capacity = Capacity { known: 1 << 20, ..Capacity::default() };
    let stops = || true;
    let mut writer =
        RunWriter::create(&storage, STORE, name::run, EXTENT, capacity, &stops).expect("creates");
    let mut table = writer.table::<KnownItem>();
    let mut pushed = (1..1 << 20).map(|n| table.push(KnownItem { key: n << 40, value: n }));
    let error = pushed.find_map(Result::err).expect("it is to stop");
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    let opened = Run::open(&storage, &STORE, name::run, EXTENT.number);
    assert_eq!(opened.expect_err("no header").kind(), io::ErrorKind::InvalidData);
    RunWriter::abandon(&storage, name::run, EXTENT.number);
    assert!(storage.open(&name::run(EXTENT.number), Access::Read).is_err());
}
