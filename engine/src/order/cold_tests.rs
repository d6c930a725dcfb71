//! The machine of one partition against the serial machine, while parts of its state go to runs, runs are
//! merged, and memory is forgotten. All streams share one key, and so do equal ids in them: what a hash does
//! once in a lifetime. Or each has its own, as always.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use thalweg_wal::storage::{MemoryStorage, Storage};
use thalweg_wal::{
    DiscardReason, EncodedBatch, EventFields, FrameBuf, Lineage, LogOptions, LogWriter, OpenedLog,
};

use crate::derived::chunks::ChunkWriter;
use crate::derived::order_log::{ORDER, TIPS};
use crate::derived::run::{Extent, KnownItem, WatchItem};
use crate::derived::runs::{self, Fresh, Truth};
use crate::event::EventId;
use crate::open::tag_of;
use crate::order::cohort::Cohort;
use crate::order::cursors::Cursors;
use crate::order::extract::NO_EXTRACT;
use crate::order::keys::{Keys, PARTITION_COUNT, partition_of};
use crate::order::partition::{KnownAs, Partition, PartitionCounts, Scanned, parent_at};
use crate::order::stream::Stream;
use crate::order::window::{self, Frontier, Scan, Share, Window};
use crate::pipeline::lookup::{Fault, LongRecords, Lookup};
use crate::reference::{Arrival, SerialMachine};
use crate::sync::Arc;
use crate::verify::serial_record;

const STREAMS: [&str; 3] = ["a", "b", "c"];
const ID_COUNT: u8 = 6;

/// A record, by what it is called.
#[derive(Debug, Clone)]
struct Named {
    stream: usize,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Event { id: u8, parents: Option<Vec<u8>>, require_parents: bool, payload: u8 },
    Seal(bool),
    Discard { id: u8, reason: DiscardReason },
}

/// What happens between two windows.
#[derive(Debug, Clone, Copy)]
enum Between {
    Nothing,
    /// What is fresh goes into a run, with so many of the newest runs.
    Flush(usize),
    /// As much is forgotten as can be.
    Forget,
    /// The store is opened again, with what is in runs.
    Reopen,
}

fn named() -> impl Strategy<Value = Named> {
    let parents = prop_oneof![
        1 => Just(None),
        6 => prop::collection::vec(0..ID_COUNT, 0..3).prop_map(Some),
    ];
    let event = (0..ID_COUNT, parents, prop::bool::weighted(0.1), 0..8_u8).prop_map(
        |(id, parents, require_parents, payload)| Kind::Event {
            id,
            parents,
            require_parents,
            // Most that arrive twice are the same.
            payload: payload / 7,
        },
    );
    let reason = prop_oneof![Just(DiscardReason::Discarded), Just(DiscardReason::Expired)];
    let discard = (0..ID_COUNT, reason).prop_map(|(id, reason)| Kind::Discard { id, reason });
    let kind = prop_oneof![20 => event, 1 => any::<bool>().prop_map(Kind::Seal), 6 => discard];
    (0..STREAMS.len(), kind).prop_map(|(stream, kind)| Named { stream, kind })
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        1 => Just(Between::Nothing),
        3 => (0..4_usize).prop_map(Between::Flush),
        3 => Just(Between::Forget),
        1 => Just(Between::Reopen),
    ]
}

fn push(batch: &mut EncodedBatch, named: &Named) {
    let stream = STREAMS[named.stream].as_bytes();
    match &named.kind {
        Kind::Seal(true) => batch.push_seal(stream),
        Kind::Seal(false) => batch.push_unseal(stream),
        Kind::Discard { id, reason } => batch.push_discard(stream, &[b'A' + id], *reason),
        Kind::Event { id, parents, require_parents, payload } => {
            let ids: Vec<[u8; 1]> = parents.iter().flatten().map(|id| [b'A' + id]).collect();
            let ids: Vec<&[u8]> = ids.iter().map(|id| &id[..]).collect();
            batch.push(&EventFields {
                stream,
                id: Some(&[b'A' + id]),
                lineage: if parents.is_some() { Lineage::Parents(&ids) } else { Lineage::Chained },
                require_parents: *require_parents && parents.is_some(),
                if_local: None,
                with_previous: false,
                payload: &[*payload],
            })
        }
    }
    .expect("within the limits");
}

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) { 1 } else { 150 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_in_runs_counts_as_what_is_in_memory(
        windows in prop::collection::vec((prop::collection::vec(named(), 1..5), between()), 1..24),
    ) {
        check(&windows, KeysOf::OneForAll);
    }
}

/// Ids of the events that arrive in any order.
const MANY_IDS: u8 = 48;

/// Events of so many streams, each once, in any order, most of whose parents come in their window or near it; and now and
/// then something else.
fn of_streams(count: u8) -> impl Strategy<Value = Vec<Vec<Named>>> {
    let event = move |id: u8, parents: Vec<u8>, what: u8| {
        let near = |distance: &u8| (id + 3 * count).saturating_sub(count * distance) % MANY_IDS;
        let parents = (what != 1).then(|| parents.iter().map(near).collect());
        Named {
            stream: usize::from(id % count),
            kind: Kind::Event { id, parents, require_parents: what == 2, payload: 0 },
        }
    };
    let order = Just((0..MANY_IDS).collect::<Vec<u8>>()).prop_shuffle();
    let about = (prop::collection::vec(0..12_u8, 0..3), 0..40_u8);
    let abouts = prop::collection::vec(about, usize::from(MANY_IDS));
    let others = prop::collection::vec((0..usize::from(MANY_IDS), named()), 0..4);
    let cuts = prop::collection::vec(1..24_usize, 1..12);
    (order, abouts, others, cuts).prop_map(move |(order, abouts, others, cuts)| {
        let mut records: Vec<Named> = Vec::new();
        for (at, (id, (parents, what))) in order.into_iter().zip(abouts).enumerate() {
            let here = others.iter().filter(|(place, _)| *place == at);
            let stream = usize::from(id % count);
            records.extend(here.map(|(_, other)| Named { stream, ..other.clone() }));
            records.push(event(id, parents, what));
        }
        let mut windows = Vec::new();
        for len in cuts.into_iter().cycle() {
            if records.is_empty() {
                break;
            }
            windows.push(records.drain(..len.min(records.len())).collect());
        }
        windows
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn records_of_a_stream_that_stand_together_come_to_the_same_order(
        windows in of_streams(1),
        betweens in prop::collection::vec(between(), 1..8),
        is_cold in any::<bool>(),
    ) {
        check(&with_betweens(windows, betweens, is_cold), KeysOf::OneForAll);
    }

    #[test]
    fn records_of_streams_that_alternate_come_to_the_same_order(
        windows in of_streams(3),
        betweens in prop::collection::vec(between(), 1..8),
        is_cold in any::<bool>(),
    ) {
        check(&with_betweens(windows, betweens, is_cold), KeysOf::Each);
    }
}

/// What happens between windows, if anything does.
fn with_betweens(
    windows: Vec<Vec<Named>>,
    betweens: Vec<Between>,
    is_cold: bool,
) -> Vec<(Vec<Named>, Between)> {
    let betweens = betweens.into_iter().cycle();
    let betweens = betweens.map(|between| if is_cold { between } else { Between::Nothing });
    windows.into_iter().zip(betweens).collect()
}

/// The keys of streams.
#[derive(Debug, Clone, Copy)]
enum KeysOf {
    OneForAll,
    Each,
}

/// A view of a log of which nothing is ever committed: all windows are in flight.
fn lookup_of(storage: &Arc<dyn Storage>, log: &OpenedLog) -> Lookup {
    let chunks = |layout| {
        let target = Arc::clone(storage);
        let chunks = ChunkWriter::open(layout, log.store_id, &**storage, target, (0, 0), true);
        chunks.expect("creates").shared().reader()
    };
    Lookup {
        order: chunks(ORDER),
        tips: chunks(TIPS),
        runs: Arc::new(Vec::new()),
        segments: Arc::new(log.segments.clone()),
        horizon: crate::trimmed::Horizon::default(),
        verified_from: 0,
        skip_damage: false,
        in_flight: VecDeque::new(),
        long_records: Arc::new(LongRecords::new()),
        ending: None,
    }
}

fn check(windows: &[(Vec<Named>, Between)], keys_of: KeysOf) {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let options = LogOptions { create: true, segment_len_max: 1 << 20 };
    let mut log = LogWriter::open(Arc::clone(&storage), options, None).expect("opens");
    let (keys, tag) = (Keys::new(&log.store_id), tag_of(&log.store_id));
    let stream_key = keys.stream(b"the key of all");
    let at = partition_of(stream_key);
    let key_of = |name: &[u8]| match keys_of {
        KeysOf::OneForAll => stream_key,
        // Of the same partition.
        KeysOf::Each => stream_key ^ u64::from(name[0]),
    };
    let segment = Arc::clone(&log.segments[0]);
    let mut lookup = lookup_of(&storage, &log);
    let mut partitions: Vec<_> = (0..PARTITION_COUNT).map(|_| Partition::new(keys, tag)).collect();
    let (mut machine, mut frontier) = (SerialMachine::default(), Frontier::default());
    let (mut duplicates, mut conflicts, mut rejected, mut discarded) = (0, 0, 0, 0);
    let (mut from, mut flushed, mut number) = (segment.first(), segment.first(), 1);
    for (records, between) in windows {
        let mut batch = EncodedBatch::new();
        records.iter().for_each(|named| push(&mut batch, named));
        let mut frame = FrameBuf::new();
        frame.push(&batch);
        log.writer.append(&mut frame).expect("appends");
        log.writer.sync().expect("syncs");
        let (mut scan, mut window) = (Scan::default(), Window::default());
        for (index, record) in segment.walk(from, segment.end()).enumerate() {
            let record = record.expect("whole");
            let position = record.position();
            if index == records.len() / 2 {
                window.push(scan.split());
            }
            scan.push_of_stream(&record, key_of(record.stream()), keys, tag);
            let place = position..position + record.len();
            match machine.arrive(place, serial_record(&record, &log.store_id)) {
                Arrival::Duplicate => duplicates += 1,
                Arrival::Conflict => conflicts += 1,
                Arrival::Rejected(_) => rejected += 1,
                Arrival::Discarded => discarded += 1,
                _ => {}
            }
        }
        window.push(scan.split());
        assert_eq!(window.len(), records.len());
        from = segment.end();
        let cursors = &mut Cursors::default();
        let ordered =
            window::order(&mut partitions, cursors, &window, frontier, &lookup, false, false, None);
        let ordered = ordered.expect("no damage");
        frontier = ordered.next();
        lookup.in_flight.push_back(Arc::new(ordered));

        let mut flush = |partition: &mut Partition, lookup: &mut Lookup, along: usize| {
            let mut fresh = partition.take_fresh();
            fresh.sort();
            let mut list = lookup.runs.to_vec();
            let neighbours = list.split_off(list.len() - along.min(list.len()));
            let first = neighbours.first().map_or(flushed, |run| run.extent.from);
            let extent = Extent { number, from: first, to: from };
            (number, flushed) = (number + 1, from);
            let delivered: BTreeSet<(&[u8], Vec<u8>)> = machine
                .order
                .iter()
                .map(|delivery| {
                    let record = lookup.record(delivery.position).expect("whole");
                    (&*delivery.stream, EventId::of(&record, tag).to_vec())
                })
                .collect();
            let is_over = |watch: &WatchItem| {
                let child = lookup.record(watch.position).expect("whole");
                let parent = parent_at(&child, watch.parent_at).expect("has a parent there");
                delivered.contains(&(child.stream(), parent.to_vec()))
            };
            let is_delivery =
                |global: u64, position| machine.order[global as usize].position == position;
            let truth =
                Truth { is_over: &is_over, is_delivery: &is_delivery, is_left_out: &|_| false };
            let id = log.store_id;
            let run = runs::build(
                &*storage,
                id,
                thalweg_wal::name::run,
                extent,
                &fresh,
                &neighbours,
                &truth,
                &|| false,
            );
            list.push(run.expect("no fault"));
            lookup.runs = Arc::new(list);
        };
        match *between {
            Between::Nothing => {}
            Between::Flush(along) => flush(&mut partitions[at], &mut lookup, along),
            Between::Forget => partitions[at].forget(flushed),
            Between::Reopen => {
                flush(&mut partitions[at], &mut lookup, 0);
                let counts = partitions[at].counts;
                let sealed = partitions[at].sealed_streams().collect();
                partitions[at] = Partition::restore(keys, tag, counts, flushed, sealed);
            }
        }
        check_state(&partitions[at], &key_of, &machine, &lookup);
        let PartitionCounts { duplicates: d, conflicts: c, rejected: r, discarded: g, .. } =
            partitions[at].counts;
        assert_eq!((d, c, r, g), (duplicates, conflicts, rejected, discarded));
    }
}

/// Compares all that there is to say of the streams and of the ids.
fn check_state(
    partition: &Partition,
    key_of: &dyn Fn(&[u8]) -> u64,
    machine: &SerialMachine,
    lookup: &Lookup,
) {
    let counts = partition.counts;
    assert_eq!(counts.held, machine.held().len() as u64, "held");
    let expected = machine.stream_counts();
    assert_eq!(counts.streams, expected.len() as u64, "streams");
    for name in STREAMS.map(str::as_bytes) {
        let of_stream = partition.with_stream(key_of(name), name, lookup, |stream| {
            let (held, tips) = (u64::from(stream.held), stream.tips.len() as u64);
            (stream.delivered, held, tips, stream.sealed)
        });
        let of_stream = of_stream.expect("no damage").unwrap_or_default();
        assert_eq!(of_stream, expected.get(name).copied().unwrap_or_default());
        let tips = partition.tips_of(key_of(name), name, lookup).expect("no damage");
        assert_eq!(tips, machine.tips(name));
    }
    for (global, delivery) in (0..).zip(&machine.order) {
        let entry = lookup.entry(global).expect("no damage");
        assert_eq!((entry.position, entry.local), (delivery.position, delivery.local));
        let record = lookup.record(delivery.position).expect("whole");
        let id = EventId::of(&record, partition.store_tag);
        let key = partition.keys.event(key_of(record.stream()), &id);
        let known = partition.find_known(record.stream(), key, &id, lookup).expect("no damage");
        assert_eq!(known, Some(KnownAs::Delivered(global)));
        assert_eq!(
            lookup.seek(global, delivery.local / 2).map(|(_, at)| at.local).ok(),
            Some(delivery.local / 2)
        );
    }
    for position in machine.held().into_keys() {
        let record = lookup.record(position).expect("whole");
        let id = EventId::of(&record, partition.store_tag);
        let key = partition.keys.event(key_of(record.stream()), &id);
        let known = partition.find_known(record.stream(), key, &id, lookup).expect("no damage");
        assert_eq!(known, Some(KnownAs::Held(position)));
    }
}

/// Orders an event "B" that another waits for, which waits for itself too: so says a run that nobody has
/// written, though its checksums match, and what else `forge` puts into it, who is told the key of "B".
fn order_with_forged(forge: impl FnOnce(&mut Fresh, u64)) -> Result<(), Fault> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let options = LogOptions { create: true, segment_len_max: 1 << 20 };
    let mut log = LogWriter::open(Arc::clone(&storage), options, None).expect("opens");
    let (keys, tag) = (Keys::new(&log.store_id), tag_of(&log.store_id));
    let mut batch = EncodedBatch::new();
    for (id, parents) in [(0, vec![0, 1]), (1, vec![])] {
        let kind = Kind::Event { id, parents: Some(parents), require_parents: false, payload: 0 };
        push(&mut batch, &Named { stream: 0, kind });
    }
    let mut frame = FrameBuf::new();
    frame.push(&batch);
    log.writer.append(&mut frame).expect("appends");
    log.writer.sync().expect("syncs");
    let segment = Arc::clone(&log.segments[0]);
    let records = segment.walk(segment.first(), segment.end());
    let positions: Vec<u64> = records.map(|record| record.expect("whole").position()).collect();
    let (waiting, parent) = (positions[0], positions[1]);

    let stream_key = keys.stream(STREAMS[0].as_bytes());
    let (id_key, parent_key) = (keys.event(stream_key, b"A"), keys.event(stream_key, b"B"));
    let watch =
        |parent_key, parent_at| WatchItem { parent_key, position: waiting, id_key, parent_at };
    let stream = Stream { held: u32::MAX, ..Stream::new(stream_key, STREAMS[0].as_bytes()) };
    let (item, blob) = stream.encode();
    let mut fresh = Fresh {
        streams: vec![item],
        blobs: vec![blob.expect("held events need one")],
        watches: vec![watch(id_key, 0), watch(parent_key, 2)],
        ..Fresh::default()
    };
    forge(&mut fresh, parent_key);
    fresh.sort();
    let extent = Extent { number: 1, from: segment.first(), to: parent };
    let truth = Truth { is_over: &|_| false, is_delivery: &|_, _| false, is_left_out: &|_| false };
    let run = runs::build(
        &*storage,
        log.store_id,
        thalweg_wal::name::run,
        extent,
        &fresh,
        &[],
        &truth,
        &|| false,
    );
    let mut lookup = lookup_of(&storage, &log);
    lookup.runs = Arc::new(vec![run.expect("no fault")]);
    let counts = PartitionCounts { streams: 1, held: 1 << 40, ..PartitionCounts::default() };
    let mut partition = Partition::restore(keys, tag, counts, parent, Vec::new());
    let scanned = Scanned {
        index: 0,
        extract: NO_EXTRACT,
        cut: 0,
        position: parent,
        stream_key,
        key: parent_key,
    };
    let share = Share { records: &[scanned], extracts: Vec::new() };
    partition.order(&share, &mut Cohort::default(), &lookup, false)
}

/// Its delivery set it off again, without end, for as long as there was memory.
#[test]
fn an_event_that_a_forged_run_releases_twice_is_damage() {
    let ordered = order_with_forged(|_, _| {});
    assert!(matches!(ordered, Err(Fault::Run(_))), "{ordered:?}");
}

/// They are indices into what the machine has in memory, and were looked up there.
#[test]
fn what_only_memory_can_know_is_damage_in_a_run() {
    for known in [KnownAs::InHand(7), KnownAs::InHand(1 << 40), KnownAs::Awaited(3)] {
        let ordered = order_with_forged(|fresh, key| {
            fresh.watches.clear();
            fresh.known.push(KnownItem { key, value: known.encode() });
        });
        assert!(matches!(ordered, Err(Fault::Run(_))), "{known:?}: {ordered:?}");
    }
}
