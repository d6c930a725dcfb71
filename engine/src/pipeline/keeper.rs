//! The keepers: slow work on the side, so that no stage waits for it.
//!
//! One thread prepares the next segment while this one is written, another writes runs and checkpoints,
//! a third merges runs: three, since a segment must not wait for a checkpoint, nor a checkpoint for a
//! merge.

use std::collections::VecDeque;
use std::io;

use thalweg_wal::storage::{MappedFile, Storage, remove_if_there};
use thalweg_wal::{Segment, Spare, SpareRequest, name};

use crate::derived::checkpoint::Checkpoint;
use crate::derived::run::{DamagedRun, Extent, KnownItem, Naming, Run, RunWriter, WatchItem};
use crate::derived::runs::{self, BuildError, Fresh, Truth};
use crate::error::{Cause, ReadError};
use crate::event::EventId;
use crate::order::keys::Keys;
use crate::order::partition::{KnownAs, parent_at};
use crate::pipeline::core::Core;
use crate::pipeline::lookup::{Fault, Lookup, find_known};
use crate::sync::mpmc::{Either, Receiver, Sender, either};
use crate::sync::{Arc, Ordering, Promise, now};

/// Runs with up to this many items are merged along with the next run; others by a thread of their own.
const MERGE_ALONG_MAX: u64 = 1 << 18;

/// Prepares segments until nobody is left to ask for one.
pub(crate) fn prepare(
    core: &Core,
    requests: &Receiver<SpareRequest>,
    spares: &Sender<Option<Spare>>,
) {
    for request in requests {
        // A disk that is full now may not be when the segment is needed; the writer will then try
        // itself, and say so if there is no room. Nobody needs a segment when the store closes.
        let spare = request.prepare(&*core.storage, &|| !core.is_stopping()).ok();
        let _ = spares.send(spare);
    }
}

/// Work for the keeper of checkpoints.
#[derive(Debug)]
pub(crate) enum CheckpointTask {
    /// Sync chunks that are full, so that the next checkpoint finds them synced.
    Sync(Vec<Arc<MappedFile>>),
    /// Write a checkpoint, after what it counts is durable.
    Write {
        /// All but the runs.
        checkpoint: Checkpoint,
        /// What there is since the last one.
        fresh: Fresh,
        /// A segment of the log that has to be synced first.
        log: Option<Arc<Segment>>,
        chunks: Vec<Arc<MappedFile>>,
        promise: Option<Promise<Result<(), ReadError>>>,
    },
}

/// Neighbours among the runs that are to become one.
#[derive(Debug)]
pub(crate) struct Merge {
    extent: Extent,
    runs: Vec<Arc<Run>>,
}

/// What a merge came to.
#[derive(Debug)]
pub(crate) struct Merged {
    merge: Merge,
    run: Result<Arc<Run>, BuildError>,
}

/// Merges runs until nobody is left to ask for it.
pub(crate) fn merge(core: &Core, merges: &Receiver<Merge>, merged: &Sender<Merged>) {
    for merge in merges {
        let _span = core.observer.trace.merging(merge.runs.len());
        let is_stopping = || core.is_stopping();
        let run = build(core, merge.extent, &Fresh::default(), &merge.runs, &is_stopping);
        // One that was given up is no failure.
        if !core.is_stopping() {
            core.observer
                .trace
                .merged(run.as_ref().map(|run| run.item_count()).map_err(|error| error as _));
        }
        let _ = merged.send(Merged { merge, run });
    }
}

fn build(
    core: &Core,
    extent: Extent,
    fresh: &Fresh,
    neighbours: &[Arc<Run>],
    is_stopping: &dyn Fn() -> bool,
) -> Result<Arc<Run>, BuildError> {
    let (storage, store_id) = (&*core.storage, core.store_id);
    let lookup = core.lookup();
    // The base knows these ids.
    let (keys, first) = ((core.keys, core.store_tag), lookup.horizon.first);
    let trimmed = |global| global < first;
    let named: Naming = name::run;
    build_run(
        storage,
        store_id,
        named,
        extent,
        fresh,
        neighbours,
        &lookup,
        keys,
        first,
        &trimmed,
        is_stopping,
    )
}

/// Makes a run as [`runs::build`] does, with `lookup` to tell what is over. A file that is not finished is taken
/// away.
#[expect(clippy::too_many_arguments, reason = "where, what, of what, and until when")]
pub(crate) fn build_run(
    storage: &dyn Storage,
    store_id: [u8; 16],
    named: Naming,
    extent: Extent,
    fresh: &Fresh,
    neighbours: &[Arc<Run>],
    lookup: &Lookup,
    keys: (Keys, u32),
    known_from: u64,
    is_left_out: &dyn Fn(u64) -> bool,
    is_stopping: &dyn Fn() -> bool,
) -> Result<Arc<Run>, BuildError> {
    // A watch that cannot be looked into stays.
    let is_over = |watch: &WatchItem| is_over(watch, lookup, keys, known_from).unwrap_or(false);
    // Nor is what is known of an id forgotten, if the delivery cannot be looked into.
    let is_delivery = |global, position| {
        lookup.is_over(position)
            || lookup.entry(global).is_ok_and(|entry| entry.position == position)
    };
    let truth = Truth { is_over: &is_over, is_delivery: &is_delivery, is_left_out };
    runs::build(storage, store_id, named, extent, fresh, neighbours, &truth, is_stopping)
        .inspect_err(|_| RunWriter::abandon(storage, named, extent.number))
}

/// Whether the parent that an event watches is delivered, so that nobody will ask for the watch.
///
/// A delivery before `known_from` says nothing: its id can have been forgotten before the watch was made. What that
/// costs is a watch that stays until the event that has it is trimmed.
fn is_over(
    watch: &WatchItem,
    lookup: &Lookup,
    (keys, store_tag): (Keys, u32),
    known_from: u64,
) -> Result<bool, Fault> {
    let delivered = |_: &Run, item: KnownItem| match KnownAs::decode(item.value) {
        KnownAs::Delivered(global) => (global >= known_from).then_some(global),
        KnownAs::InHand(_) | KnownAs::Held(_) | KnownAs::Discarded(..) | KnownAs::Awaited(_) => {
            None
        }
    };
    if lookup.is_over(watch.position) {
        return Ok(true);
    }
    let Some(global) = find_known(lookup, u64::MAX, watch.parent_key, delivered)? else {
        return Ok(false);
    };
    let child = lookup.record(watch.position)?;
    let watched = parent_at(&child, watch.parent_at);
    if let Some(fact) = lookup.fact(global)? {
        return Ok(watched.is_some_and(|id| fact.is_event(keys, child.stream(), id)));
    }
    let parent = lookup.record(lookup.entry(global)?.position)?;
    let id = EventId::of(&parent, store_tag);
    Ok(parent.stream() == child.stream() && watched == Some(&*id))
}

/// Writes runs and checkpoints.
#[derive(Debug)]
pub(crate) struct Keeper {
    core: Arc<Core>,
    merges: Sender<Merge>,
    /// The runs that are durable, oldest first.
    runs: Vec<Arc<Run>>,
    /// Whether they reach further than the newest checkpoint, which must not list them then.
    are_ahead: bool,
    /// Runs that others have taken the place of. They go when there is a checkpoint without them.
    replaced: Vec<Arc<Run>>,
    next_number: u64,
    /// What is not in a run yet, with the positions from and up to which it reaches, oldest first.
    unwritten: VecDeque<(u64, u64, Fresh)>,
    /// Where the next run begins.
    next_from: u64,
    /// The newest checkpoint.
    newest: Option<Checkpoint>,
    is_merging: bool,
    /// A merge has failed since the newest checkpoint. Another would, too, until something changes.
    merge_has_failed: bool,
    /// The first failure of a sync. It is never tried again: one that then succeeds would prove
    /// nothing, so there are no more checkpoints, and the next opening makes the order again.
    failed: Option<Arc<io::Error>>,
}

impl Keeper {
    /// A keeper of a store whose newest checkpoint is this one.
    ///
    /// # Errors
    ///
    /// The directory cannot be listed, so nobody knows which numbers are free.
    pub(crate) fn new(
        core: Arc<Core>,
        merges: Sender<Merge>,
        newest: Option<Checkpoint>,
    ) -> io::Result<Self> {
        // A store that is open for reading only writes no runs.
        let names = if core.read_only { Vec::new() } else { core.storage.list()? };
        let numbers = names.iter().filter_map(|other| match name::kind(other) {
            name::Kind::Run(number) => Some(number),
            _ => None,
        });
        Ok(Keeper {
            merges,
            runs: core.runs.snapshot().to_vec(),
            are_ahead: false,
            replaced: Vec::new(),
            next_number: numbers.max().map_or(1, |newest| newest + 1),
            unwritten: VecDeque::new(),
            next_from: core.ordered.get(),
            // It may be written again, for a merge, when the log has gone on.
            newest: newest.map(|newest| Checkpoint { closed: false, ..newest }),
            is_merging: false,
            merge_has_failed: false,
            failed: None,
            core,
        })
    }

    /// Works until nobody is left to ask for a checkpoint.
    pub(crate) fn run(&mut self, tasks: &Receiver<CheckpointTask>, merged: &Receiver<Merged>) {
        loop {
            self.merge_if_due();
            match either(tasks, merged) {
                Either::First(Ok(task)) => self.take(task),
                Either::Second(Ok(merged)) => self.replace(merged),
                // The thread that merges ends after this one.
                Either::First(Err(_)) | Either::Second(Err(_)) => return,
            }
        }
    }

    /// It costs time at the next opening, and nothing else.
    fn complain(&self, error: &io::Error) {
        let _ = self.core.checkpoint_error.set(error.to_string());
    }

    /// Whether there is no use in trying again: there may be room one day, but no sync is tried again.
    fn is_lasting(&self, error: &io::Error) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let is_full = matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge);
        self.failed.is_some() || !is_full
    }

    fn take(&mut self, task: CheckpointTask) {
        match task {
            CheckpointTask::Sync(chunks) => self.sync_all(&chunks),
            CheckpointTask::Write { checkpoint, mut fresh, log, chunks, promise } => {
                let (_span, start) =
                    (self.core.observer.trace.checkpointing(checkpoint.ordered), now());
                if let Some(Err(error)) = log.map(|segment| segment.sync()) {
                    // Whoever meets it: a failed sync of the log is final.
                    let error = Arc::new(error);
                    self.core.fail(Cause::Log(Arc::clone(&error)));
                    self.failed = Some(error);
                }
                self.sync_all(&chunks);
                let ordered = checkpoint.ordered;
                if !fresh.is_empty() {
                    fresh.sort();
                    let from = std::mem::replace(&mut self.next_from, ordered);
                    self.unwritten.push_back((from, ordered, fresh));
                }
                let written = match &self.failed {
                    Some(error) => Err(Arc::clone(error)),
                    None => self.write(checkpoint).map_err(Arc::new),
                };
                let failure = written.as_ref().err().map(|error| &**error);
                self.core.observer.checkpointed(start, failure);
                let lasting = written.as_ref().err().filter(|error| self.is_lasting(error));
                *self.core.unwritable.lock() = lasting.cloned();
                match &written {
                    Ok(()) => {
                        self.merge_has_failed = false;
                        self.core.checkpointed.set(ordered);
                    }
                    Err(error) => self.complain(error),
                }
                self.core.checkpoints_under_way.fetch_sub(1, Ordering::Relaxed);
                self.core.orderer_work.notify_all();
                if let Some(promise) = promise {
                    promise.complete(written.map_err(ReadError::Io));
                }
            }
        }
    }

    fn sync_all(&mut self, chunks: &[Arc<MappedFile>]) {
        if self.failed.is_none() {
            self.failed = chunks.iter().find_map(|chunk| chunk.sync().err()).map(Arc::new);
        }
    }

    /// Writes what there is for runs, and then the checkpoint that lists them.
    fn write(&mut self, checkpoint: Checkpoint) -> io::Result<()> {
        while let Some((from, to, fresh)) = self.unwritten.front() {
            let along = self.merged_along(fresh);
            let from = self.runs.get(along).map_or(*from, |first| first.extent.from);
            let extent = Extent { number: self.next_number, from, to: *to };
            self.next_number += 1;
            // It is short work, and finished even if the store closes.
            match build(&self.core, extent, fresh, &self.runs[along..], &|| false) {
                Ok(run) => {
                    self.replaced.extend(self.runs.drain(along..));
                    self.runs.push(run);
                    self.are_ahead = true;
                    self.unwritten.pop_front();
                }
                Err(error) => return Err(self.io_error(error)),
            }
        }
        self.publish(checkpoint)
    }

    /// Index of the first run that is better merged along with what is fresh.
    fn merged_along(&self, fresh: &Fresh) -> usize {
        if self.is_merging {
            return self.runs.len();
        }
        let counts = self.runs.iter().map(|run| run.item_count());
        let counts: Vec<u64> = counts.chain([fresh.item_count()]).collect();
        let along = runs::due_for_merge(&counts)
            .filter(|due| due.end == counts.len())
            .filter(|due| counts[due.clone()].iter().sum::<u64>() <= MERGE_ALONG_MAX);
        along.map_or(self.runs.len(), |due| due.start)
    }

    /// Makes a checkpoint of the runs the newest, and takes away those that it has no more.
    fn publish(&mut self, mut checkpoint: Checkpoint) -> io::Result<()> {
        checkpoint.runs = self.runs.iter().map(|run| run.extent.number).collect();
        checkpoint.write(&*self.core.storage)?;
        // SeqCst: see `Core::fail_derived`.
        if self.core.no_checkpoints.load(Ordering::SeqCst) {
            self.core.storage.remove(name::checkpoint())?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.newest = Some(checkpoint);
        self.are_ahead = false;
        let runs = self.runs.clone();
        self.core.runs.change(|list| *list = runs);
        for run in self.replaced.drain(..) {
            // Whoever has it open goes on reading it; what cannot be removed, the next opening does.
            let _ = remove_if_there(&*self.core.storage, &name::run(run.extent.number));
        }
        Ok(())
    }

    fn merge_if_due(&mut self) {
        // Runs that no checkpoint lists yet are left alone.
        let is_settled = self.unwritten.is_empty() && !self.are_ahead && self.failed.is_none();
        if self.is_merging || self.merge_has_failed || !is_settled {
            return;
        }
        let counts: Vec<u64> = self.runs.iter().map(|run| run.item_count()).collect();
        let Some(due) = runs::due_for_merge(&counts) else { return };
        let runs = self.runs[due].to_vec();
        let (first, last) = (&runs[0].extent, &runs[runs.len() - 1].extent);
        let extent = Extent { number: self.next_number, from: first.from, to: last.to };
        self.next_number += 1;
        self.is_merging = self.merges.send(Merge { extent, runs }).is_ok();
    }

    /// Puts a merged run in the place of those that it was made of.
    fn replace(&mut self, merged: Merged) {
        self.is_merging = false;
        let Merged { merge, run } = merged;
        let first = merge.runs[0].extent.number;
        let at = self.runs.iter().position(|run| run.extent.number == first);
        let at = at.expect("runs are replaced by their merge only");
        let result = match run {
            Ok(run) => {
                self.replaced.extend(self.runs.splice(at..at + merge.runs.len(), [run]));
                match self.newest.clone() {
                    Some(newest) if !self.are_ahead => {
                        self.core.reopened.set(1);
                        self.publish(newest)
                    }
                    // The next checkpoint lists it.
                    _ => Ok(()),
                }
            }
            Err(error) => Err(self.io_error(error)),
        };
        if let Err(error) = result {
            self.merge_has_failed = true;
            if !self.core.is_stopping() {
                self.complain(&error);
            }
        }
    }

    /// A run that is not what was written would be met again and again: the checkpoint that vouches for
    /// it goes.
    fn io_error(&self, error: BuildError) -> io::Error {
        match error {
            BuildError::Io(error) => error,
            BuildError::Damaged(DamagedRun { file, offset }) => {
                self.core.fail_derived(ReadError::Run { file, offset });
                io::ErrorKind::InvalidData.into()
            }
        }
    }
}
