//! Opening a store: recover the log, restore the checkpoint, start the threads.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use thalweg_wal::storage::{MemoryStorage, OsStorage, Storage};
use thalweg_wal::{
    LogOptions, LogReader, LogWriter, OpenedLog, Segment, TailHint, Trimmed, WriteLock, identity,
    name,
};

use crate::backup;
use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks::{self, ChunkWriter};
use crate::derived::order_log::{ORDER, TIPS};
use crate::derived::run::{Extent, Run};
use crate::error::{LogOpenError, OpenError};
use crate::event::Ack;
use crate::observe::trace;
use crate::options::{OnDamage, Options};
use crate::order::cursors::Cursors;
use crate::order::keys::{Keys, PARTITION_COUNT};
use crate::order::known::Table;
use crate::order::partition::Partition;
use crate::order::window::Frontier;
use crate::pipeline::appender::MixedAppender;
use crate::pipeline::committer::Committer;
use crate::pipeline::core::{Core, CoreParts};
use crate::pipeline::gate::Gate;
use crate::pipeline::keeper::Keeper;
use crate::pipeline::lane::{ACK_KINDS, Inlet, Job, Lane, QUEUE_BATCHES_MAX, Request};
use crate::pipeline::lookup::{Runs, Segments};
use crate::pipeline::orderer::{CUTS_PER_SCANNER, Call, Orderer, OrdererHandle};
use crate::pipeline::threads::{self, Cores};
use crate::pipeline::writer::{Group, Writer};
use crate::pipeline::{callbacks, keeper, scanner};
use crate::store::{Inner, Store, Threads};
use crate::sync::mpmc::{Sender, unbounded};
use crate::sync::{self, Arc, Mutex, Watermark};
use crate::trim::{self, Trim, Trimmer};
use crate::trimmed::Base;
use crate::verify::beyond_walks;

/// How long to spin where each thread has a core of its own: longer than a buffered append takes, and
/// less than a core's time is worth.
const SPIN: Duration = Duration::from_micros(20);
/// How often a checkpoint that is replaced under a reader's eyes is read again.
pub(crate) const READ_ONLY_ATTEMPTS: usize = 100;

pub(crate) fn open(options: Options, path: &Path) -> Result<Store, OpenError> {
    let storage: Arc<dyn Storage> = Arc::new(directory(path, options.create)?);
    open_on(options, storage)
}

/// Opens a store for writing on any storage.
pub(crate) fn open_on(options: Options, storage: Arc<dyn Storage>) -> Result<Store, OpenError> {
    let _span = trace::opening(&*storage, false);
    let begun = Instant::now();
    // Looking first keeps the lock file out of directories that are no stores.
    probe(&*storage, options.create)?;
    let lock = WriteLock::acquire(&*storage)?;
    backup::forget(&*storage).map_err(io_error("removing the manifest of a backup"))?;
    let checkpoint = Checkpoint::read(&*storage)?;
    let hint = checkpoint.as_ref().and_then(|checkpoint| checkpoint.tail_hint(&*storage));
    let log_options =
        LogOptions { create: options.create, segment_len_max: options.segment_len_max() };
    check_losses(&*storage, checkpoint.as_ref())?;
    let OpenedLog { writer, store_id, losses, segments, tail, .. } =
        LogWriter::open(Arc::clone(&storage), log_options, hint)?;
    let base = Base::open(&*storage, &store_id)?;
    trim::remove_strays(&*storage, base.as_deref());
    let log_id = store_id;
    // Derived files are of a log with what is known to be lost of it.
    let store_id = identity(&store_id, losses.as_deref());
    let state = match restore(&storage, &storage, checkpoint, base.as_ref(), store_id, true)? {
        Some(state) => {
            remove_stray_runs(&*storage, &state.runs);
            state
        }
        None => {
            chunks::remove_all(&*storage).map_err(io_error("removing derived files"))?;
            State::first(&storage, base.as_ref(), store_id, &segments)?
        }
    };
    let log_end = writer.end();
    let recovery = tail.to_string();
    let corrupt = 0;
    let opened =
        Opened { begun, storage, segments, log_id, store_id, state, log_end, recovery, corrupt };
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
    let _span = trace::opening(&*storage, true);
    let begun = Instant::now();
    let names = storage.list().map_err(io_error("listing the store's directory"))?;
    backup::check_finished(&*storage, &names)?;
    let mut attempts = READ_ONLY_ATTEMPTS;
    let (log, state) = loop {
        // An attempt that comes to nothing leaves files in it.
        let scratch: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let checkpoint = Checkpoint::read(&*storage)?;
        let hint = checkpoint.as_ref().and_then(|checkpoint| checkpoint.tail_hint(&*storage));
        let (log, base) = read_log(&*storage, hint)?;
        let identity = identity_to_read(&log, checkpoint.as_ref());
        let is_early = checkpoint.as_ref().is_some_and(|checkpoint| {
            // The store was trimmed since the checkpoint was read.
            base.as_ref().is_some_and(|base| base.position() > checkpoint.ordered)
        });
        let known = checkpoint.clone().filter(|_| !is_early);
        let restored = restore(&storage, &scratch, known, base.as_ref(), identity, false)?;
        attempts -= 1;
        match restored {
            Some(state) => break (log, state),
            // A store that is written meanwhile has taken away what its checkpoint listed a moment ago.
            None if attempts > 0 && Checkpoint::read(&*storage)? != checkpoint => {}
            None => {
                let state = State::first(&scratch, base.as_ref(), log.identity(), &log.segments)?;
                break (log, state);
            }
        }
    };
    let store_id = state.identity;
    // What walks come by, the scanners count.
    let corrupt = beyond_walks(&log).count() as u64;
    let LogReader { store_id: log_id, segments, end, tail, damage, .. } = log;
    let recovery = match damage.first() {
        Some(damage) => damage.to_string(),
        None => tail.to_string(),
    };
    let log_end = end;
    let opened =
        Opened { begun, storage, segments, log_id, store_id, state, log_end, recovery, corrupt };
    start(options, opened, None)
}

/// Opens the log that is there for reading, and what is kept of what was trimmed of it. They belong together, also if
/// its owner trims it meanwhile.
pub(crate) fn read_log(
    storage: &dyn Storage,
    hint: Option<TailHint>,
) -> Result<(LogReader, Option<Arc<Base>>), OpenError> {
    // No two trims are at the same point.
    let point = || Trimmed::open(storage).ok().flatten().map(|trimmed| trimmed.point());
    loop {
        let before = point();
        let opened = LogReader::open(storage, hint).map_err(OpenError::from).and_then(|log| {
            let base = Base::open(storage, &log.store_id)?;
            Ok((log, base))
        });
        if point() == before {
            return opened;
        }
    }
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

/// Refuses a store whose checkpoint knows of losses that are not recorded any more: it would be ordered
/// anew from bytes that a repair has given up.
pub(crate) fn check_losses(
    storage: &dyn Storage,
    checkpoint: Option<&Checkpoint>,
) -> Result<(), OpenError> {
    let names = storage.list().map_err(io_error("listing the store's directory"))?;
    let is_there = names.iter().any(|name| name::kind(name) == name::Kind::Losses);
    let (Some(checkpoint), Some(store_id)) = (checkpoint, thalweg_wal::store_id(storage)) else {
        return Ok(());
    };
    if is_there || checkpoint.store_id == store_id || !is_of(&checkpoint.store_id, &store_id) {
        return Ok(());
    }
    let file = storage.describe(name::losses());
    let detail = String::from("it is missing, and the checkpoint knows of it");
    Err(LogOpenError::Losses { file, detail }.into())
}

/// The identity that derived files have to have for a reader. What is recorded as lost may itself be lost: then
/// those of a log with it still have the numbers.
fn identity_to_read(log: &LogReader, checkpoint: Option<&Checkpoint>) -> [u8; 16] {
    let known = checkpoint.map(|checkpoint| checkpoint.store_id);
    let known = known.filter(|known| log.losses.is_none() && is_of(known, &log.store_id));
    known.unwrap_or_else(|| log.identity())
}

/// Whether a derived file with this identity is of the store, with whatever losses.
pub(crate) fn is_of(identity: &[u8; 16], store_id: &[u8; 16]) -> bool {
    identity[..8] == store_id[..8]
}

/// Refuses directories that hold other things, and, without `create`, those that hold nothing.
pub(crate) fn probe(storage: &dyn Storage, create: bool) -> Result<(), OpenError> {
    let names = storage.list().map_err(io_error("listing the store's directory"))?;
    backup::check_finished(storage, &names)?;
    let kinds = || names.iter().map(|name| name::kind(name));
    if kinds().any(|kind| matches!(kind, name::Kind::Segment(_))) {
        return Ok(());
    }
    let path = storage.describe("");
    match names.iter().find(|name| name::kind(name) == name::Kind::Unknown) {
        Some(example) => Err(LogOpenError::NotAStore { path, example: example.clone() }.into()),
        // What is left of a store that has lost its log: the log says so.
        None if create || kinds().any(is_left_of_a_store) => Ok(()),
        None => Err(LogOpenError::Missing { path }.into()),
    }
}

fn is_left_of_a_store(kind: name::Kind) -> bool {
    use name::Kind::{Facts, FactsRun, Trimmed};
    kind.is_derived() || matches!(kind, Facts(_) | FactsRun(_) | Trimmed)
}

pub(crate) fn io_error(context: &str) -> impl FnOnce(io::Error) -> OpenError {
    let context = context.to_owned();
    move |source| OpenError::Io { context, source }
}

/// What the ids begin with that the engine makes in this store.
pub(crate) fn tag_of(store_id: &[u8; 16]) -> u32 {
    u32::from_be_bytes(*store_id.first_chunk().expect("sixteen bytes"))
}

/// The machine and its files at some position of the log.
pub(crate) struct State {
    pub(crate) partitions: Vec<Partition>,
    pub(crate) cursors: Cursors,
    pub(crate) order: ChunkWriter,
    pub(crate) tips: ChunkWriter,
    /// Oldest first.
    pub(crate) runs: Vec<Arc<Run>>,
    /// What is kept of what was trimmed.
    pub(crate) base: Option<Arc<Base>>,
    frontier: Frontier,
    forgotten: u64,
    ordered: u64,
    /// What this comes from.
    checkpoint: Option<Checkpoint>,
    identity: [u8; 16],
}

impl State {
    /// The state before the first event of the log: that of the base, if something was trimmed.
    fn first(
        target: &Arc<dyn Storage>,
        base: Option<&Arc<Base>>,
        store_id: [u8; 16],
        segments: &[Arc<Segment>],
    ) -> Result<Self, OpenError> {
        let (keys, tag) = (Keys::new(&store_id), tag_of(&store_id));
        let begun = base.map(|base| &base.checkpoint);
        let frontier = begun.map_or_else(Frontier::default, |begun| begun.frontier);
        let open = |layout, count| {
            ChunkWriter::begin(layout, store_id, Arc::clone(target), count)
                .map_err(io_error("creating the order log"))
        };
        let partition = |index| match begun {
            Some(begun) => begun.partition(index, keys, tag),
            None => Partition::new(keys, tag),
        };
        let runs = match base {
            Some(base) => base.copy_runs(&**target, store_id).map_err(io_error("copying runs"))?,
            None => Vec::new(),
        };
        let first = segments.first().expect("an open log has a segment").first();
        Ok(State {
            partitions: (0..PARTITION_COUNT).map(partition).collect(),
            cursors: Cursors::new(
                begun.map_or_else(Default::default, |begun| begun.cursors.clone()),
            ),
            order: open(ORDER, frontier.global)?,
            tips: open(TIPS, frontier.tips)?,
            runs,
            base: base.cloned(),
            frontier,
            forgotten: begun.map_or(0, |begun| begun.forgotten),
            ordered: begun.map_or(first, |begun| begun.ordered),
            checkpoint: None,
            identity: store_id,
        })
    }
}

/// The state that a checkpoint describes; nothing if anything about it is missing or wrong. That a
/// file cannot be opened for another reason says nothing about it, and must not cost it.
pub(crate) fn restore(
    source: &Arc<dyn Storage>,
    target: &Arc<dyn Storage>,
    checkpoint: Option<Checkpoint>,
    base: Option<&Arc<Base>>,
    store_id: [u8; 16],
    in_place: bool,
) -> Result<Option<State>, OpenError> {
    let begins = base.map_or(0, |base| base.position());
    let is_ours = |known: &Checkpoint| known.store_id == store_id && known.ordered >= begins;
    let Some(checkpoint) = checkpoint.filter(is_ours) else { return Ok(None) };
    let first = base.map_or_else(Frontier::default, |base| base.frontier());
    let chunks = |layout, count| {
        let target = Arc::clone(target);
        usable(ChunkWriter::open(layout, store_id, &**source, target, count, in_place))
    };
    let frontier = checkpoint.frontier;
    let Some(order) = chunks(ORDER, (first.global, frontier.global))? else { return Ok(None) };
    let Some(tips) = chunks(TIPS, (first.tips, frontier.tips))? else { return Ok(None) };
    let mut runs = Vec::with_capacity(checkpoint.runs.len());
    for &number in &checkpoint.runs {
        let Some(run) = usable(Run::open(&**source, &store_id, name::run, number))? else {
            return Ok(None);
        };
        runs.push(run);
    }
    // One after the other, and none of what is not ordered.
    let mut reached = 0;
    let follows = |run: &Arc<Run>| {
        let Extent { from, to, .. } = run.extent;
        let follows = reached <= from && from < to;
        reached = to;
        follows
    };
    if !runs.iter().all(follows) || reached > checkpoint.ordered {
        return Ok(None);
    }
    let (keys, tag, ordered) = (Keys::new(&store_id), tag_of(&store_id), checkpoint.ordered);
    let partition = |index| checkpoint.partition(index, keys, tag);
    let partitions = (0..PARTITION_COUNT).map(partition).collect();
    Ok(Some(State {
        partitions,
        cursors: Cursors::new(checkpoint.cursors.clone()),
        order,
        tips,
        runs,
        base: base.cloned(),
        frontier,
        forgotten: checkpoint.forgotten,
        ordered,
        checkpoint: Some(checkpoint),
        identity: store_id,
    }))
}

/// Nothing if a file is missing or wrong.
pub(crate) fn usable<T>(opened: io::Result<T>) -> Result<Option<T>, OpenError> {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), NotFound | InvalidData | UnexpectedEof) => Ok(None),
        Err(error) => Err(io_error("opening derived files")(error)),
    }
}

/// Removes runs that the checkpoint does not list: a crash has left them. It costs space if it fails.
fn remove_stray_runs(storage: &dyn Storage, runs: &[Arc<Run>]) {
    for other in storage.list().unwrap_or_default() {
        if let name::Kind::Run(number) = name::kind(&other)
            && runs.iter().all(|run| run.extent.number != number)
        {
            let _ = storage.remove(&other);
        }
    }
}

/// A recovered log with its state, before the threads.
struct Opened {
    begun: Instant,
    storage: Arc<dyn Storage>,
    segments: Vec<Arc<Segment>>,
    /// Identity of the log, whatever is lost of it; the next is with that.
    log_id: [u8; 16],
    store_id: [u8; 16],
    state: State,
    log_end: u64,
    recovery: String,
    /// Damaged places that no scanner comes by.
    corrupt: u64,
}

/// Where readers begin of the streams that were trimmed.
pub(crate) fn firsts(partitions: &[Partition]) -> BTreeMap<Vec<u8>, u64> {
    let firsts = partitions.iter().flat_map(Partition::firsts);
    firsts.map(|(name, first)| (name.clone(), *first)).collect()
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
    let Opened { begun, storage, segments, log_id, store_id, state, log_end, recovery, corrupt } =
        opened;
    let cores = Cores::for_options(&options);
    let heads: Vec<Table> = (0..PARTITION_COUNT).map(|_| Table::default()).collect();
    let core = Arc::new(Core::new(CoreParts {
        begun,
        storage,
        store_id,
        keys: Keys::new(&store_id),
        store_tag: tag_of(&store_id),
        read_only: writing.is_none(),
        segments: Segments::new(segments),
        order: Arc::clone(state.order.shared()),
        tips: Arc::clone(state.tips.shared()),
        runs: Runs::new(state.runs.clone()),
        base: state.base.clone(),
        known: state.partitions.iter().map(Partition::shared_known).collect(),
        heads: heads.iter().map(Table::shared).collect(),
        log_end,
        unsealed: writing.as_ref().is_some_and(|(log, _)| log.must_roll()),
        ordered: state.ordered,
        delivered: state.frontier.global,
        cursors: state.cursors.at().clone(),
        firsts: firsts(&state.partitions),
        timings: options.timings,
        queue_bytes: options.queue_bytes,
        wait_for_room: options.wait_for_room,
        spin: options.spin.unwrap_or(if cores.are_enough() { SPIN } else { Duration::ZERO }),
    }));
    core.counts.corrupt.set(corrupt);
    let unordered = log_end.saturating_sub(core.ordered.get());
    core.observer.trace.recovered(&recovery, log_end, unordered);
    let (log, lock) = writing.unzip();
    let mut threads = Threads { writer: None, others: Vec::new(), lock };
    let started = start_threads(&core, &options, cores, state, heads, log, &mut threads);
    let started = started.and_then(|entrances| {
        let calls = entrances.calls.clone();
        let orderer = OrdererHandle { calls, core: Arc::clone(&core) };
        let trimmer = Arc::new(Trimmer::new(orderer, log_id, options.clock.clone()));
        if let Some(retention) = options.retention.filter(|_| !core.read_only) {
            let stage = (Arc::clone(&trimmer), retention);
            let run = |(trimmer, retention): &mut (Arc<Trimmer>, Trim)| trimmer.keep_to(retention);
            threads.others.push(threads::spawn(&core, "thalweg-trimmer", None, stage, run)?);
        }
        Ok((entrances, trimmer))
    });
    let (entrances, trimmer) = match started {
        Ok(started) => started,
        Err(error) => {
            // The ways into the pipeline are gone, so all that were started end. They do so before the
            // lock is given back.
            core.stop_orderer();
            threads.join();
            return Err(OpenError::Io {
                context: String::from(
                    "starting the threads; a higher limit (`ulimit -u`, `ulimit -v`), or fewer `scanners` and \
                     `orderers`, may help",
                ),
                source: error,
            });
        }
    };
    let Entrances { gate, callbacks, .. } = entrances;
    let inlet = Arc::new(Inlet::new(Arc::clone(&core), gate, callbacks));
    let unrelated = |ack| MixedAppender::new(Arc::new(Lane::unrelated(Arc::clone(&inlet), ack)));
    let unrelated = (unrelated(Ack::Durable), unrelated(Ack::Ordered));
    Ok(Store::new(Inner {
        trimmer,
        core,
        inlet,
        unrelated,
        shut: Watermark::new(0),
        threads: Mutex::new(Some(threads)),
        recovery,
        clock: options.clock.clone(),
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
    state: State,
    heads: Vec<Table>,
    log: Option<LogWriter>,
    threads: &mut Threads,
) -> io::Result<Entrances> {
    let log_end = core.durable.get();
    let (sealed, settled) = (sealed(&state.partitions), state.ordered >= log_end);
    let (calls_in, calls) = unbounded();
    let (cuts_in, cuts) = unbounded();
    let (scanned_in, scanned) = unbounded();
    let (committer_in, commits) = sync::queue(None);
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
        waiting: VecDeque::new(),
        keeper: checkpoints_in,
    };
    let run = Committer::run;
    others.push(threads::spawn(core, "thalweg-committer", cores.take(), committer, run)?);
    let (merges_in, merges) = unbounded();
    let (merged_in, merged) = unbounded();
    let stage = (Arc::clone(core), merges, merged_in);
    let run = |(core, merges, merged): &mut (Arc<Core>, _, _)| keeper::merge(core, merges, merged);
    others.push(threads::spawn(core, "thalweg-merger", None, stage, run)?);
    let closed_before = state.checkpoint.as_ref().is_some_and(|checkpoint| {
        // The log ended there and the store was closed.
        checkpoint.closed && checkpoint.ordered == checkpoint.log_end
    });
    let keeper = Keeper::new(Arc::clone(core), merges_in, state.checkpoint)?;
    let stage = (keeper, checkpoints, merged);
    let run = |(keeper, tasks, merged): &mut (Keeper, _, _)| keeper.run(tasks, merged);
    others.push(threads::spawn(core, "thalweg-checkpoint", None, stage, run)?);
    let stage = (Arc::clone(core), spare_requests, spares_in);
    let run =
        |(core, requests, spares): &mut (Arc<Core>, _, _)| keeper::prepare(core, requests, spares);
    others.push(threads::spawn(core, "thalweg-preparer", None, stage, run)?);
    let orderer_core = cores.take();
    let pool = threads::pool(options, &mut cores, others)?;
    // A message for each permit.
    let (requests_in, requests) = sync::queue(Some((ACK_KINDS * QUEUE_BATCHES_MAX) as usize));
    let gate = log.is_some().then(|| Arc::new(Gate::new(requests_in, sealed, settled)));
    let orderer = Orderer {
        core: Arc::clone(core),
        partitions: state.partitions,
        cursors: state.cursors,
        pool,
        scanned,
        calls,
        cuts: cuts_in,
        unscanned: cuts,
        committer: committer_in.clone(),
        opened_at: (!settled).then_some(log_end),
        gate: gate.clone(),
        frontier: state.frontier,
        forgotten: state.forgotten,
        on_damage: if log.is_some() { OnDamage::Stop } else { OnDamage::Skip },
        cuts_max: options.scanners * CUTS_PER_SCANNER,
        memory_budget: usize::try_from(options.memory_budget).unwrap_or(usize::MAX),
        closed_before,
    };
    // Before anybody can ask for them.
    orderer.publish_counts();
    core.discovery.begins(core.counts.tally());
    others.push(threads::spawn(core, "thalweg-orderer", orderer_core, orderer, Orderer::run)?);

    if let Some(log) = log {
        let writer = Writer {
            core: Arc::clone(core),
            log,
            durability: options.durability,
            clock: options.clock.clone(),
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
