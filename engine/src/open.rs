//! Opening a store: recover the log, restore the checkpoint, start the threads.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::Duration;

use thalweg_wal::storage::{MemoryStorage, OsStorage, Storage};
use thalweg_wal::{LogOptions, LogReader, LogWriter, OpenedLog, Segment, WriteLock, name};

use crate::derived::checkpoint::Snapshot;
use crate::derived::chunks::{self, ChunkWriter};
use crate::derived::order_log::{ORDER, TIPS};
use crate::error::{LogOpenError, OpenError};
use crate::event::Ack;
use crate::options::{OnDamage, Options};
use crate::order::keys::{Keys, PARTITION_COUNT, partition_of};
use crate::order::known::Table;
use crate::order::partition::Partition;
use crate::order::window::Frontier;
use crate::pipeline::appender::MixedAppender;
use crate::pipeline::committer::Committer;
use crate::pipeline::core::{Core, CoreParts};
use crate::pipeline::gate::Gate;
use crate::pipeline::lane::{Inlet, Job, Lane, QUEUE_BATCHES_MAX, Request};
use crate::pipeline::lookup::Segments;
use crate::pipeline::orderer::{CUTS_PER_SCANNER, Call, Orderer, OrdererHandle};
use crate::pipeline::permits::Budget;
use crate::pipeline::threads::{self, Cores};
use crate::pipeline::writer::{Group, Writer};
use crate::pipeline::{callbacks, keeper, scanner};
use crate::store::{Inner, Store, Threads};
use crate::sync::mpmc::{Sender, bounded, unbounded};
use crate::sync::{self, Arc, Mutex, Watermark};

/// How long to spin where each thread has a core of its own: longer than a buffered append takes, and
/// less than a core's time is worth.
const SPIN: Duration = Duration::from_micros(20);
/// Ordered windows that the committer may have in front of it.
const WINDOWS_MAX: u64 = 2;

pub(crate) fn open(options: Options, path: &Path) -> Result<Store, OpenError> {
    let storage: Arc<dyn Storage> = Arc::new(directory(path, options.create)?);
    open_on(options, storage)
}

/// Opens a store for writing on any storage.
pub(crate) fn open_on(options: Options, storage: Arc<dyn Storage>) -> Result<Store, OpenError> {
    // Looking first keeps the lock file out of directories that are no stores.
    probe(&*storage, options.create)?;
    let lock = WriteLock::acquire(&*storage)?;
    let snapshot = Snapshot::read(&*storage);
    let hint = snapshot.as_ref().and_then(|snapshot| snapshot.tail_hint(&*storage));
    let log_options = LogOptions { create: options.create, segment_len_max: options.segment_bytes };
    let OpenedLog { writer, store_id, segments, tail } =
        LogWriter::open(Arc::clone(&storage), log_options, hint)?;
    let state = match restore(&storage, &storage, snapshot, store_id, true)? {
        Some(state) => state,
        None => {
            chunks::remove_all(&*storage).map_err(io_error("removing derived files"))?;
            State::empty(&storage, store_id, &segments)?
        }
    };
    let log_end = writer.end();
    let opened = Opened { storage, segments, store_id, state, log_end, recovery: tail.to_string() };
    start(options, opened, Some((writer, lock)))
}

pub(crate) fn open_read_only(options: Options, path: &Path) -> Result<Store, OpenError> {
    let storage: Arc<dyn Storage> = Arc::new(directory(path, false)?);
    open_read_only_on(options, storage)
}

/// Opens a store for reading on any storage.
pub(crate) fn open_read_only_on(
    options: Options,
    storage: Arc<dyn Storage>,
) -> Result<Store, OpenError> {
    let snapshot = Snapshot::read(&*storage);
    let hint = snapshot.as_ref().and_then(|snapshot| snapshot.tail_hint(&*storage));
    let LogReader { store_id, segments, end, tail, damage } = LogReader::open(&*storage, hint)?;
    let scratch: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let state = match restore(&storage, &scratch, snapshot, store_id, false)? {
        Some(state) => state,
        None => State::empty(&scratch, store_id, &segments)?,
    };
    let recovery = match damage.first() {
        Some(damage) => damage.to_string(),
        None => tail.to_string(),
    };
    let opened = Opened { storage, segments, store_id, state, log_end: end, recovery };
    start(options, opened, None)
}

pub(crate) fn directory(path: &Path, create: bool) -> Result<OsStorage, OpenError> {
    let text = path.display().to_string();
    if path.exists() && !path.is_dir() {
        return Err(OpenError::NotADirectory { path: text });
    }
    let opened = if create { OsStorage::create(path) } else { OsStorage::open(path) };
    opened.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound if !create => LogOpenError::Missing { path: text }.into(),
        io::ErrorKind::NotADirectory => OpenError::NotADirectory { path: text },
        _ => OpenError::Io { context: format!("opening {text}"), source },
    })
}

/// Refuses directories that hold other things, and, without `create`, those that hold nothing.
pub(crate) fn probe(storage: &dyn Storage, create: bool) -> Result<(), OpenError> {
    let names = storage.list().map_err(io_error("listing the store's directory"))?;
    let kinds = || names.iter().map(|name| name::kind(name));
    if kinds().any(|kind| matches!(kind, name::Kind::Segment(_))) {
        return Ok(());
    }
    let path = storage.describe("");
    match names.iter().find(|name| name::kind(name) == name::Kind::Unknown) {
        Some(example) => Err(LogOpenError::NotAStore { path, example: example.clone() }.into()),
        None if create || kinds().any(name::Kind::is_derived) => Ok(()),
        None => Err(LogOpenError::Missing { path }.into()),
    }
}

fn io_error(context: &str) -> impl FnOnce(io::Error) -> OpenError {
    let context = context.to_owned();
    move |source| OpenError::Io { context, source }
}

/// What the ids begin with that the engine makes in this store.
pub(crate) fn tag_of(store_id: &[u8; 16]) -> u32 {
    u32::from_be_bytes(*store_id.first_chunk().expect("sixteen bytes"))
}

/// The machine and its files at some position of the log.
struct State {
    partitions: Vec<Partition>,
    order: ChunkWriter,
    tips: ChunkWriter,
    frontier: Frontier,
    ordered: u64,
    /// The checkpoint that this comes from says that the log ended and the store was closed.
    closed: bool,
    checkpoint_len: u64,
}

impl State {
    /// The state before the first event.
    fn empty(
        target: &Arc<dyn Storage>,
        store_id: [u8; 16],
        segments: &[Arc<Segment>],
    ) -> Result<Self, OpenError> {
        let (keys, tag) = (Keys::new(&store_id), tag_of(&store_id));
        let open = |layout| {
            ChunkWriter::open(layout, store_id, &**target, Arc::clone(target), 0, true)
                .map_err(io_error("creating the order log"))
        };
        Ok(State {
            partitions: (0..PARTITION_COUNT).map(|_| Partition::new(keys, tag)).collect(),
            order: open(ORDER)?,
            tips: open(TIPS)?,
            frontier: Frontier::default(),
            ordered: segments.first().expect("an open log has a segment").first(),
            closed: false,
            checkpoint_len: 0,
        })
    }
}

/// The state that a checkpoint describes; nothing if anything about it is missing or wrong. That a
/// file cannot be opened for another reason says nothing about it, and must not cost it.
fn restore(
    source: &Arc<dyn Storage>,
    target: &Arc<dyn Storage>,
    snapshot: Option<Snapshot>,
    store_id: [u8; 16],
    in_place: bool,
) -> Result<Option<State>, OpenError> {
    let Some(snapshot) = snapshot.filter(|snapshot| snapshot.store_id == store_id) else {
        return Ok(None);
    };
    let (keys, tag) = (Keys::new(&store_id), tag_of(&store_id));
    let Some(partitions) = snapshot.decode_partitions(keys, tag) else { return Ok(None) };
    let open = |layout, count| {
        use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        match ChunkWriter::open(layout, store_id, &**source, Arc::clone(target), count, in_place) {
            Ok(chunks) => Ok(Some(chunks)),
            Err(error) if matches!(error.kind(), NotFound | InvalidData | UnexpectedEof) => {
                Ok(None)
            }
            Err(error) => Err(io_error("opening the order log")(error)),
        }
    };
    let (order, tips) =
        (open(ORDER, snapshot.frontier.global)?, open(TIPS, snapshot.frontier.tips)?);
    let (Some(order), Some(tips)) = (order, tips) else { return Ok(None) };
    Ok(Some(State {
        partitions,
        order,
        tips,
        frontier: snapshot.frontier,
        ordered: snapshot.ordered,
        closed: snapshot.closed && snapshot.ordered == snapshot.log_end,
        checkpoint_len: snapshot.byte_len(),
    }))
}

/// A recovered log with its state, before the threads.
struct Opened {
    storage: Arc<dyn Storage>,
    segments: Vec<Arc<Segment>>,
    store_id: [u8; 16],
    state: State,
    log_end: u64,
    recovery: String,
}

/// Newest deliveries of all streams, by partition.
fn heads(partitions: &[Partition]) -> Vec<Table> {
    let head_of = |partition: &Partition| {
        let mut heads = Table::with_capacity(partition.streams.len());
        for stream in &partition.streams {
            if let Some(&head) = stream.path.last() {
                heads.insert(stream.key, head);
            }
        }
        heads
    };
    debug_assert!(partitions.iter().enumerate().all(|(index, partition)| {
        partition.streams.iter().all(|stream| partition_of(stream.key) == index)
    }));
    partitions.iter().map(head_of).collect()
}

/// Keys of the sealed streams.
fn sealed(partitions: &[Partition]) -> Vec<u64> {
    partitions.iter().flat_map(Partition::sealed_streams).collect()
}

/// Starts the pipeline; with a writer, or for reading only.
fn start(
    options: Options,
    opened: Opened,
    writing: Option<(LogWriter, WriteLock)>,
) -> Result<Store, OpenError> {
    let Opened { storage, segments, store_id, state, log_end, recovery } = opened;
    let cores = Cores::for_options(&options);
    let heads = heads(&state.partitions);
    let core = Arc::new(Core::new(CoreParts {
        storage,
        keys: Keys::new(&store_id),
        store_tag: tag_of(&store_id),
        read_only: writing.is_none(),
        segments: Segments::new(segments),
        order: Arc::clone(state.order.shared()),
        tips: Arc::clone(state.tips.shared()),
        known: state.partitions.iter().map(Partition::shared_known).collect(),
        heads: heads.iter().map(Table::shared).collect(),
        log_end,
        ordered: state.ordered,
        delivered: state.frontier.global,
        timings: options.timings,
        spin: options.spin.unwrap_or(if cores.are_enough() { SPIN } else { Duration::ZERO }),
    }));
    let (log, lock) = writing.unzip();
    let mut threads = Threads { writer: None, others: Vec::new(), lock };
    let entrances =
        match start_threads(&core, &options, cores, store_id, state, heads, log, &mut threads) {
            Ok(entrances) => entrances,
            Err(error) => {
                // The ways into the pipeline are gone, so all that were started end. They do so before the
                // lock is given back.
                core.stop_orderer();
                threads.join();
                return Err(OpenError::Io {
                    context: String::from("starting a thread"),
                    source: error,
                });
            }
        };
    let Entrances { gate, callbacks, calls } = entrances;
    let inlet = Arc::new(Inlet::new(Arc::clone(&core), gate, options.queue_bytes, callbacks));
    let unrelated = |ack| MixedAppender::new(Arc::new(Lane::unrelated(Arc::clone(&inlet), ack)));
    let unrelated = (unrelated(Ack::Durable), unrelated(Ack::Ordered));
    Ok(Store::new(Inner {
        orderer: OrdererHandle { calls, core: Arc::clone(&core) },
        core,
        inlet,
        unrelated,
        shut: Watermark::new(0),
        threads: Mutex::new(Some(threads)),
        recovery,
    }))
}

/// The ways into the pipeline.
struct Entrances {
    gate: Option<Arc<Gate<Request>>>,
    callbacks: sync::Sender<callbacks::Message<Job>>,
    calls: Sender<Call>,
}

/// What the callback thread has, and says when it drops it: also if it has panicked, or closing would wait
/// for ever.
struct CallbackStage {
    core: Arc<Core>,
    jobs: sync::Receiver<callbacks::Message<Job>>,
}

impl Drop for CallbackStage {
    fn drop(&mut self) {
        self.core.callbacks_ended.publish(1);
    }
}

/// Starts the threads. If one cannot be started, `threads` has those before it, and nobody has a way to
/// them any more.
fn start_threads(
    core: &Arc<Core>,
    options: &Options,
    mut cores: Cores,
    store_id: [u8; 16],
    state: State,
    heads: Vec<Table>,
    log: Option<LogWriter>,
    threads: &mut Threads,
) -> io::Result<Entrances> {
    let log_end = core.durable.get();
    let (sealed, settled) = (sealed(&state.partitions), state.ordered >= log_end);
    let (calls_in, calls) = unbounded();
    let (cuts_in, cuts) = bounded(options.scanners * CUTS_PER_SCANNER);
    let (scanned_in, scanned) = unbounded();
    let (committer_in, commits) = sync::queue(None);
    let windows = Arc::new(Budget::new(WINDOWS_MAX, u64::MAX));
    let (checkpoints_in, checkpoints) = unbounded();
    let (spare_requests_in, spare_requests) = unbounded();
    let (spares_in, spares) = unbounded();

    let others = &mut threads.others;
    let writer_core = cores.take();
    for _ in 0..options.scanners {
        let stage = (Arc::clone(core), cuts.clone(), scanned_in.clone());
        let run = |(core, cuts, scanned): &mut (Arc<Core>, _, _)| scanner::run(core, cuts, scanned);
        others.push(threads::spawn(core, "thalweg-scanner", cores.take(), stage, run)?);
    }
    let committer = Committer {
        core: Arc::clone(core),
        order: state.order,
        tips: state.tips,
        heads,
        commits,
        windows: Arc::clone(&windows),
        waiting: VecDeque::new(),
        keeper: checkpoints_in,
    };
    let run = Committer::run;
    others.push(threads::spawn(core, "thalweg-committer", cores.take(), committer, run)?);
    let stage = (Arc::clone(core), checkpoints);
    let run = |(core, tasks): &mut (Arc<Core>, _)| keeper::checkpoint(core, tasks);
    others.push(threads::spawn(core, "thalweg-checkpoint", None, stage, run)?);
    let stage = (Arc::clone(core), spare_requests, spares_in);
    let run =
        |(core, requests, spares): &mut (Arc<Core>, _, _)| keeper::prepare(core, requests, spares);
    others.push(threads::spawn(core, "thalweg-preparer", None, stage, run)?);
    let orderer_core = cores.take();
    let pool = threads::pool(options, &mut cores, others)?;
    // A message for each permit.
    let (requests_in, requests) = sync::queue(Some(QUEUE_BATCHES_MAX as usize));
    let gate = log.is_some().then(|| Arc::new(Gate::new(requests_in, sealed, settled)));
    let orderer = Orderer {
        core: Arc::clone(core),
        partitions: state.partitions,
        pool,
        scanned,
        calls,
        cuts: cuts_in,
        committer: committer_in.clone(),
        opened_at: (!settled).then_some(log_end),
        gate: gate.clone(),
        windows,
        frontier: state.frontier,
        on_damage: if log.is_some() { OnDamage::Stop } else { OnDamage::Skip },
        cuts_max: options.scanners * CUTS_PER_SCANNER,
        store_id,
        checkpoint_len: state.checkpoint_len,
        closed_before: state.closed,
    };
    // Before anybody can ask for them.
    orderer.publish_counts();
    others.push(threads::spawn(core, "thalweg-orderer", orderer_core, orderer, Orderer::run)?);

    if let Some(log) = log {
        let writer = Writer {
            core: Arc::clone(core),
            log,
            durability: options.durability,
            requests: requests.spinning(core.spin),
            committer: committer_in,
            preparer: spare_requests_in,
            spares,
            group: Group::new(),
        };
        let run = Writer::run;
        threads.writer = Some(threads::spawn(core, "thalweg-writer", writer_core, writer, run)?);
    }
    let (callbacks_in, callbacks) = sync::queue(None);
    let run = |stage: &mut CallbackStage| callbacks::run(&stage.jobs);
    let stage = CallbackStage { core: Arc::clone(core), jobs: callbacks };
    // Nobody joins this thread: a callback may be what closes the store.
    let _ = threads::spawn(core, "thalweg-callback", None, stage, run)?;
    Ok(Entrances { gate, callbacks: callbacks_in, calls: calls_in })
}
