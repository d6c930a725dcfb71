//! The orderer: follows the durable end of the log and puts it in order, window by window.
//!
//! It cuts the log, hands the cuts to the scanners, takes them back in the order of the log, runs
//! the machine over each on the pool, and hands the result to the committer. While it orders one
//! window, the scanners are in the next ones and the committer is in the one before.
//!
//! Starting up, following live traffic and importing are the same thing: the tail is long or short.
//! The orderer owns the partitions, so whoever needs a consistent look at them sends a question,
//! which is answered between two windows.

use std::collections::BTreeMap;

use std::time::{Duration, Instant};

use thalweg_wal::Damage;

use crate::derived::checkpoint::Checkpoint;
use crate::derived::runs::Fresh;
use crate::error::{Cause, ReadError};
use crate::options::OnDamage;
use crate::order::cursors::Cursors;
use crate::order::partition::{Partition, PartitionCounts, Work};
use crate::order::window::{self, Frontier, Scan, Window};
use crate::pipeline::committer::Commit;
use crate::pipeline::core::Core;
use crate::pipeline::gate::Gate;
use crate::pipeline::lane::Request;
use crate::pipeline::lookup::{Fault, Lookup, segment_at};
use crate::pipeline::permits::{Denied, Patience};
use crate::pipeline::scanner::{self, Cut, ScannedCut};
use crate::questions::{Question, answer};
use crate::sync::{Arc, Ordering, Promise, Sender, mpmc as channel, now};

/// A cut ends at the first frame boundary after this many bytes.
const CUT_BYTES: u64 = 16 << 20;
/// All that is durable when a window is begun is in it, within bounds: the longer the window, the more of a stream
/// stands together in it. But until it is ordered nothing of it is delivered, and if the store is closed meanwhile, all of it is
/// begun anew: so it ends when it has so much of the log ...
const WINDOW_BYTES_MAX: u64 = 1 << 30;
/// ... or so many records ...
const WINDOW_WEIGHT_MAX: usize = 4 << 20;
/// ... or when there is no memory for more. A record takes about so many bytes while it waits, is ordered and
/// committed, and when the state has taken it in; with what the allocator keeps.
const WINDOW_BYTES_PER_RECORD: usize = 768;
/// A window may take what the state leaves of all but this part of the budget, and at least as much as that: there is the
/// window that is committed, too, and what a checkpoint writes.
const WINDOW_PART_MIN: usize = 8;
/// If so much waits, cuts come in one window however short they are: a log begins with short segments.
const LONG_TAIL_MIN: usize = 16 << 10;
/// What a cut is taken to weigh until one is scanned.
const CUT_WEIGHT_GUESSED: usize = (CUT_BYTES / 256) as usize;
/// A cut of up to this many bytes, with nothing before it in the scanners, is scanned where it is
/// ordered: the way to another thread and back would take longer.
const OWN_CUT_BYTES: u64 = 64 << 10;
/// Cuts that each scanner has in hand or in front of it.
pub(crate) const CUTS_PER_SCANNER: usize = 2;
/// A checkpoint is due when so many items have become fresh since the last: an opening after a crash has
/// to order them again, which takes it about a second ...
const CHECKPOINT_ITEMS: usize = 1 << 20;
/// ... or when this much of the log has been ordered, whatever is in it.
const CHECKPOINT_BYTES: u64 = 512 << 20;
/// How long to wait before what could not be written is tried again, while memory is short.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What somebody outside wants, and waits for.
///
/// Calls have a channel that drops what is in it when its receiver goes. One that keeps it for as long
/// as there is a sender would never answer: whoever waits for the answer is one.
#[derive(Debug)]
pub(crate) enum Call {
    /// Somebody wants to know.
    Ask(Question),
    /// Write a checkpoint now, and answer when it is durable.
    Checkpoint(Promise<Result<(), ReadError>>),
    /// The log was trimmed: let go of what is gone, so that its space is given back.
    LetGo,
}

/// The outside's way to the orderer.
#[derive(Debug)]
pub(crate) struct OrdererHandle {
    pub(crate) calls: channel::Sender<Call>,
    pub(crate) core: Arc<Core>,
}

impl OrdererHandle {
    /// Hands a call over. The promise in it is kept, or broken when the orderer has ended.
    pub(crate) fn call(&self, call: Call) {
        // If the orderer has ended, the call is dropped here, and its promise with it.
        if self.calls.send(call).is_ok() {
            self.core.orderer_work.notify_all();
        }
    }
}

/// The orderer's state.
#[derive(Debug)]
pub(crate) struct Orderer {
    pub(crate) core: Arc<Core>,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) cursors: Cursors,
    /// None for a single thread.
    pub(crate) pool: Option<rayon::ThreadPool>,
    pub(crate) scanned: channel::Receiver<ScannedCut>,
    pub(crate) calls: channel::Receiver<Call>,
    pub(crate) cuts: channel::Sender<Cut>,
    /// The scanners' side of it: while there is nothing to order, the orderer scans as well.
    pub(crate) unscanned: channel::Receiver<Cut>,
    pub(crate) committer: Sender<Commit>,
    /// Where the log ended when it was opened, until the order has come there.
    pub(crate) opened_at: Option<u64>,
    /// Learns of seals; none for a store that is open for reading only.
    pub(crate) gate: Option<Arc<Gate<Request>>>,
    pub(crate) frontier: Frontier,
    /// Ids of deliveries before this one are forgotten.
    pub(crate) forgotten: u64,
    pub(crate) on_damage: OnDamage,
    pub(crate) cuts_max: usize,
    /// Bytes of memory that the state may take.
    pub(crate) memory_budget: usize,
    /// Whether the newest checkpoint says that the store was closed, and nothing came after it.
    pub(crate) closed_before: bool,
}

impl Drop for Orderer {
    /// Also if it has panicked: whoever waits for the order must not wait for it.
    fn drop(&mut self) {
        let _ = self.committer.send(Commit::Ended);
    }
}

/// What the orderer keeps while it runs.
struct Progress {
    lookup: Lookup,
    /// Where the next cut begins.
    cut_at: u64,
    /// The end of the log when it was cut last.
    durable: u64,
    next_cut: u64,
    /// Number of the cut whose turn it is.
    next_in_turn: u64,
    /// Cuts that are scanned and wait for their turn.
    early: BTreeMap<u64, ScannedCut>,
    /// The sum of their weights.
    early_weight: usize,
    /// The greatest weight that a cut had so far.
    cut_weight_max: usize,
    /// Where the log ended when the window in the making was begun.
    window_to: u64,
    /// For cuts that are scanned where they are ordered.
    scan: Scan,
    /// Position at which the newest checkpoint was begun, and how far the order was then.
    sealed: (u64, Frontier),
}

impl Progress {
    /// Keeps a cut until its turn comes.
    fn put(&mut self, cut: ScannedCut) {
        self.early_weight += cut.split.weight();
        self.cut_weight_max = self.cut_weight_max.max(cut.split.weight());
        self.early.insert(cut.number, cut);
    }

    /// Cuts that the scanners have.
    fn cuts_out(&self) -> usize {
        (self.next_cut - self.next_in_turn) as usize - self.early.len()
    }

    /// The weight of all that waits for its turn, when all cuts are scanned.
    fn weight_expected(&self) -> usize {
        self.early_weight + self.cuts_out() * self.cut_weight_max
    }

    /// How far the log is scanned without a gap, beyond what has had its turn.
    fn scanned_to(&self) -> Option<u64> {
        let in_turn = (self.next_in_turn..).zip(&self.early);
        in_turn
            .take_while(|(number, (early, _))| number == *early)
            .last()
            .map(|(_, (_, cut))| cut.to)
    }

    /// The cut whose turn it is, if it is scanned.
    fn take(&mut self) -> Option<ScannedCut> {
        let cut = self.early.remove(&self.next_in_turn)?;
        self.early_weight -= cut.split.weight();
        self.next_in_turn += 1;
        Some(cut)
    }
}

/// Cuts that are ordered together.
struct ScannedWindow {
    records: Window,
    /// As in [`ScannedCut`].
    positions: Option<Vec<u64>>,
    damage: Vec<Damage>,
    /// As in [`ScannedCut`].
    forgotten: u64,
    /// Where the log goes on.
    to: u64,
}

impl ScannedWindow {
    /// Whether this cut may be a part of it: nobody waits for what becomes of its records, and what
    /// stands before damage is ordered without it.
    fn goes_on_with(&self, next: &ScannedCut) -> bool {
        let is_plain = self.positions.is_none() && self.damage.is_empty();
        is_plain && next.positions.is_none() && next.damage.is_empty()
    }
}

impl Orderer {
    /// Runs until it is told to stop, or until the order cannot be known.
    pub(crate) fn run(&mut self) {
        let start = self.core.ordered.get();
        let mut progress = Progress {
            lookup: Lookup { ending: Some(Arc::clone(&self.core.ending)), ..self.core.lookup() },
            cut_at: start,
            durable: start,
            next_cut: 0,
            next_in_turn: 0,
            early: BTreeMap::new(),
            early_weight: 0,
            cut_weight_max: CUT_WEIGHT_GUESSED,
            window_to: start,
            scan: Scan::default(),
            sealed: (start, self.frontier),
        };
        while !self.core.is_stopping() {
            self.cut(&mut progress);
            if let Err(fault) = self.order_scanned(&mut progress) {
                return self.fail(fault);
            }
            self.take_calls(&mut progress);
            self.core.orderer_work.wait_until(|| {
                !self.scanned.is_empty()
                    || !self.calls.is_empty()
                    || self.core.durable.get() > progress.durable
                    || self.core.is_stopping()
            });
        }
        // What the keeper has not managed to write counts as new.
        let new = self.core.checkpointed.get() < self.core.ordered.get();
        let is_closed = self.closed_before && self.core.reopened.get() == 0;
        if self.core.cause().is_none() && !self.core.read_only && (new || !is_closed) {
            let closed = self.core.unsealed.get() == 0;
            self.checkpoint(&mut progress, closed, None);
        }
    }

    /// Stops the engine.
    fn fail(&self, stop: Stopped) {
        match stop {
            Stopped::Cause(cause) => self.core.fail(cause),
            Stopped::Derived(error) => self.core.fail_derived(error),
            Stopped::GivenUp => {}
        }
    }

    /// Answers the calls that are there. Those that come meanwhile wait for the next turn, so that no
    /// number of callers keeps the log waiting.
    fn take_calls(&mut self, progress: &mut Progress) {
        for _ in 0..self.calls.len() {
            match self.calls.try_recv() {
                Ok(Call::Ask(question)) => self.reply(question, progress),
                Ok(Call::Checkpoint(promise)) => self.checkpoint(progress, false, Some(promise)),
                Ok(Call::LetGo) => self.renew(progress),
                Err(_) => return,
            }
        }
    }

    /// Hands out as much of the durable log as may be under way.
    fn cut(&self, progress: &mut Progress) {
        let durable = self.core.durable.get();
        progress.durable = durable;
        // There is always something to order, whatever the bounds are.
        while progress.cut_at < durable
            && (progress.next_cut - progress.next_in_turn < self.cuts_max as u64
                || progress.cut_at - self.core.scanned.get() < WINDOW_BYTES_MAX
                    && progress.weight_expected() < self.window_weight_max())
        {
            // A segment is in the list before anything in it is durable.
            progress.lookup.segments = self.core.segments.snapshot();
            let segments = &progress.lookup.segments;
            let segment = segment_at(segments, progress.cut_at);
            let here = segment.filter(|segment| progress.cut_at < segment.end());
            let Some(segment) = here else {
                // The rest of a sealed segment is empty, or one is missing: go on in the next, by an empty
                // cut.
                let behind = segment.map_or(0, |segment| segment.limit());
                let next = segments.iter().find(|next| next.base() >= behind);
                let Some(next) = next else { return };
                progress.cut_at = next.first();
                progress.put(ScannedCut::empty(progress.next_cut, progress.cut_at));
                progress.next_cut += 1;
                continue;
            };
            // The end of a full segment is where the next one begins, with its header.
            let from = progress.cut_at.max(segment.first());
            // More may be readable than is published: the tickets for that are still to come.
            // What was there when the store was opened is told apart from what came later.
            let mark = self.core.discovery.to;
            let durable = if from < mark { durable.min(mark) } else { durable };
            let to = segment.cut(from, CUT_BYTES).min(durable);
            let segment = Arc::clone(segment);
            let cut = Cut { number: progress.next_cut, segment, from, to };
            if to - from <= OWN_CUT_BYTES && progress.next_cut == progress.next_in_turn {
                let scanned = scanner::scan(&self.core, &cut, &mut progress.scan);
                progress.put(scanned);
            } else if self.cuts.send(cut).is_err() {
                return;
            }
            progress.next_cut += 1;
            progress.cut_at = to;
        }
    }

    /// Orders the cuts whose turn it is.
    fn order_scanned(&mut self, progress: &mut Progress) -> Result<(), Stopped> {
        while self.fill_window(progress)
            && let Some(window) = self.take_window(progress)
        {
            self.await_committer(progress);
            if let Some(cause @ (Cause::Derived(_) | Cause::Panic { .. })) = self.core.cause() {
                // The committer may write nothing more, and the windows would pile up.
                return Err(Stopped::Cause(cause.clone()));
            }
            if self.core.is_stopping() {
                return Ok(());
            }
            self.order_window(window, progress)?;
            if self.checkpoint_is_due(progress) {
                self.checkpoint(progress, false, None);
            }
            self.mind_memory(progress);
            // The scanners must not wait until all that came early is ordered.
            self.cut(progress);
            // Nor must those who ask: while appends come, there may always be a next window.
            self.take_calls(progress);
        }
        Ok(())
    }

    /// Scans what is to be in the next window, side by side with the scanners. Says whether all of it is scanned.
    fn fill_window(&mut self, progress: &mut Progress) -> bool {
        loop {
            self.scanned.try_iter().for_each(|cut| progress.put(cut));
            self.cut(progress);
            if progress.window_to <= self.core.ordered.get() {
                let end = self.core.ordered.get().saturating_add(WINDOW_BYTES_MAX);
                progress.window_to = progress.durable.min(end);
            }
            let is_full = progress.early_weight >= self.window_weight_max();
            let is_whole = || progress.scanned_to().is_some_and(|to| to >= progress.window_to);
            if is_full || progress.cuts_out() == 0 || is_whole() {
                return true;
            }
            if self.core.is_stopping() {
                return false;
            }
            match self.unscanned.try_recv() {
                Ok(cut) => {
                    let scan = &mut progress.scan;
                    let scanned = scanner::read_ahead_and_scan(&self.core, &cut, scan);
                    progress.put(scanned);
                    // A long window takes its time, and who asks must not wait for it.
                    self.take_calls(progress);
                }
                Err(_) => return false,
            }
        }
    }

    /// Takes the cuts whose turn it is: the next one, and what else of a long tail is scanned. If all that is scanned
    /// is short, so are its windows.
    fn take_window(&self, progress: &mut Progress) -> Option<ScannedWindow> {
        let is_long = progress.early_weight >= LONG_TAIL_MIN;
        let ScannedCut { split, positions, damage, forgotten, to, .. } = progress.take()?;
        let mut window =
            ScannedWindow { records: Window::default(), positions, damage, forgotten, to };
        window.records.push(split);
        while (is_long || window.records.len() >= window::PARALLEL_MIN)
            && window.to != self.core.discovery.to
            && let Some(next) = progress.early.get(&progress.next_in_turn)
            && window.goes_on_with(next)
            // What is forgotten is so from the beginning of a window on.
            && next.forgotten <= self.forgotten.max(window.forgotten)
            && window.records.weight() + next.split.weight() <= self.window_weight_max()
        {
            let next = progress.take()?;
            window.records.push(next.split);
            window.to = next.to;
        }
        Some(window)
    }

    /// What a window may weigh, if it has more than one cut.
    fn window_weight_max(&self) -> usize {
        let state = usize::try_from(self.core.counts.memory.get()).unwrap_or(usize::MAX);
        let part = self.memory_budget / WINDOW_PART_MIN;
        let free = (self.memory_budget - part).saturating_sub(state);
        let room = free.max(part) / WINDOW_BYTES_PER_RECORD;
        room.min(WINDOW_WEIGHT_MAX)
    }

    fn order_window(
        &mut self,
        window: ScannedWindow,
        progress: &mut Progress,
    ) -> Result<(), Stopped> {
        if let Some(damage) = window.damage.first() {
            if self.on_damage == OnDamage::Stop {
                // Beyond it, the order would not be the one that readers may have seen.
                return Err(Stopped::Cause(Cause::Damage(damage.clone())));
            }
            let corrupt = &self.core.counts.corrupt;
            corrupt.set(corrupt.get() + window.damage.len() as u64);
        }
        let start = now();
        self.core.in_window.set(window.records.len() as u64);
        self.core.scanned.set(window.to);
        // The next one is scanned meanwhile.
        self.cut(progress);
        self.refresh(&mut progress.lookup);
        if window.forgotten > self.forgotten {
            self.forgotten = window.forgotten.min(self.frontier.global);
            self.partitions.iter_mut().for_each(|partition| partition.forgotten = self.forgotten);
        }
        let (partitions, lookup) = (&mut self.partitions, &progress.lookup);
        let with_placements = window.positions.is_some();
        let cursors = &mut self.cursors;
        let mut order = |partitions: &mut [Partition], parallel| {
            let (records, first) = (&window.records, self.frontier);
            let work = self.core.observer.work();
            let asked = with_placements;
            window::order(partitions, cursors, records, first, lookup, asked, parallel, work)
        };
        let ordered = match &self.pool {
            Some(pool) if window.records.len() >= window::PARALLEL_MIN => {
                pool.install(|| order(partitions, true))
            }
            _ => order(partitions, false),
        };
        let ordered = Arc::new(ordered.map_err(Stopped::from)?);
        self.frontier = ordered.next();
        self.core.ordered_events.set(self.frontier.global);
        self.core.ordered.set(window.to);
        self.core.in_window.set(0);
        self.publish_counts();
        self.core.observer.ordered(start, &self.core.counts);
        self.core.discovery.ordered(window.to, || self.core.counts.tally());
        if let Some(gate) = &self.gate {
            // Before whoever waits for the seal can hear of it.
            ordered.seals.iter().for_each(|seal| gate.learn(seal.stream_key, seal.sealed));
            if self.opened_at.take_if(|end| window.to >= *end).is_some() {
                gate.settle();
            }
        }
        progress.lookup.in_flight.push_back(Arc::clone(&ordered));
        let commit = Commit::Window { ordered, positions: window.positions, to: window.to };
        let _ = self.committer.send(commit);
        Ok(())
    }

    /// Takes the permit for a window. The committer may wait for room on the disk meanwhile, so whoever asks
    /// is answered; it gives back what it takes, also when it has failed.
    fn await_committer(&mut self, progress: &mut Progress) {
        while self.core.queues.windows.take(0, Patience::None) == Err(Denied::Full) {
            self.core
                .orderer_work
                .wait_until(|| !self.core.queues.windows.is_full() || !self.calls.is_empty());
            self.take_calls(progress);
        }
    }

    /// Forgets windows that are in the order log by now, and sees what was added to it.
    fn refresh(&self, lookup: &mut Lookup) {
        let delivered = self.core.delivered.get();
        while lookup.in_flight.front().is_some_and(|window| window.next().global <= delivered) {
            lookup.in_flight.pop_front();
        }
        lookup.order.refresh();
        lookup.tips.refresh();
        lookup.runs = self.core.runs.snapshot();
        // Last: what is gone from the lists before was trimmed by then.
        lookup.horizon = self.core.horizon();
    }

    /// Publishes what the machine counts. Called once before the thread starts, so that whoever
    /// opens a store sees the counts of its checkpoint at once.
    pub(crate) fn publish_counts(&self) {
        let (mut sum, mut work, mut memory) = (PartitionCounts::default(), Work::default(), 0);
        for partition in &self.partitions {
            let PartitionCounts { streams, held, duplicates, conflicts, rejected, discarded } =
                partition.counts;
            sum.streams += streams;
            sum.held += held;
            sum.duplicates += duplicates;
            sum.conflicts += conflicts;
            sum.rejected += rejected;
            sum.discarded += discarded;
            work.lookups += partition.work().lookups;
            work.records_read += partition.work().records_read;
            work.bytes_verified += partition.work().bytes_verified;
            memory += partition.memory_len() as u64;
        }
        let counts = &self.core.counts;
        counts.streams.set(sum.streams);
        counts.held.set(sum.held);
        counts.duplicates.set(sum.duplicates);
        counts.conflicts.set(sum.conflicts);
        counts.rejected.set(sum.rejected);
        counts.discarded.set(sum.discarded);
        counts.lookups.set(work.lookups);
        counts.records_read.set(work.records_read);
        counts.bytes_verified.set(work.bytes_verified);
        counts.memory.set(memory + self.core.heads_len.get());
    }

    /// Sees everything as it is now.
    fn renew(&self, progress: &mut Progress) {
        progress.lookup.segments = self.core.segments.snapshot();
        self.refresh(&mut progress.lookup);
    }

    fn reply(&self, question: Question, progress: &mut Progress) {
        self.renew(progress);
        answer(question, &self.partitions, &progress.lookup, &|| self.core.is_stopping());
    }

    fn checkpoint_is_due(&self, progress: &Progress) -> bool {
        let tail = self.core.ordered.get() - progress.sealed.0;
        let fresh: usize = self.partitions.iter().map(Partition::fresh_count).sum();
        let is_long = tail >= CHECKPOINT_BYTES || fresh >= CHECKPOINT_ITEMS;
        is_long && !self.core.read_only && !self.is_checkpointing()
    }

    fn is_checkpointing(&self) -> bool {
        self.core.checkpoints_under_way.load(Ordering::Relaxed) > 0
    }

    /// Keeps the state within its budget: what stands in a run is forgotten, and if that is not enough,
    /// what does not is written to one first. Nothing that is held has to wait for room: it is what
    /// is forgotten first.
    fn mind_memory(&mut self, progress: &mut Progress) {
        let most = self.memory_budget / 4 * 3;
        // The window in hand has published its counts. What is ordered for reading only cannot be
        // written anywhere.
        if self.core.read_only || self.core.counts.memory.get() <= most as u64 {
            return;
        }
        while self.is_over(most) {
            if self.core.is_stopping() || self.core.cause().is_some() {
                return;
            }
            if !self.is_checkpointing() {
                let all_written = self.core.checkpointed.get() >= progress.sealed.0;
                if all_written {
                    self.forget(progress);
                }
                if all_written && self.core.ordered.get() == progress.sealed.0 {
                    // There is nothing left to forget.
                    return;
                }
                if self.is_over(self.memory_budget / 2) {
                    self.checkpoint(progress, false, None);
                }
            }
            if !self.is_over(self.memory_budget) {
                return;
            }
            // The order waits; what is appended is durable all the same.
            self.answer_until(progress, None, |orderer| !orderer.is_checkpointing());
            if self.core.checkpointed.get() < progress.sealed.0 {
                let unwritable = self.core.unwritable.lock().clone();
                if let Some(error) = unwritable {
                    return self.core.fail(Cause::Derived(error));
                }
                self.answer_until(progress, Some(now() + RETRY_AFTER), |_| false);
            }
        }
    }

    /// Waits until `is_over` says so, the deadline has come, or the engine ends. Whoever asks is answered
    /// meanwhile: a question needs no room, neither in memory nor on the disk.
    fn answer_until(
        &mut self,
        progress: &mut Progress,
        deadline: Option<Instant>,
        is_over: impl Fn(&Self) -> bool,
    ) {
        loop {
            let has_ended = || self.core.is_stopping() || self.core.cause().is_some();
            let is_over = || is_over(self) || has_ended();
            let ready = || is_over() || !self.calls.is_empty();
            let in_time = match deadline {
                Some(deadline) => self.core.orderer_work.wait_deadline(ready, deadline),
                None => {
                    self.core.orderer_work.wait_until(ready);
                    true
                }
            };
            if !in_time || is_over() {
                return;
            }
            self.take_calls(progress);
        }
    }

    fn is_over(&self, memory: usize) -> bool {
        self.publish_counts();
        self.core.counts.memory.get() > memory as u64
    }

    /// Forgets what stands in a run, from the largest partition on, until half of the budget is free.
    fn forget(&mut self, progress: &mut Progress) {
        let (position, frontier) = progress.sealed;
        if self.core.heads_len.get() > self.memory_budget as u64 / 8 {
            let _ = self.committer.send(Commit::Forget { delivered: frontier.global });
        }
        let mut memory: usize = self.partitions.iter().map(Partition::memory_len).sum();
        let mut by_size: Vec<&mut Partition> = self.partitions.iter_mut().collect();
        by_size.sort_unstable_by_key(|partition| std::cmp::Reverse(partition.memory_len()));
        for partition in by_size {
            if memory <= self.memory_budget / 2 {
                return;
            }
            memory -= partition.memory_len();
            partition.forget(position);
            memory += partition.memory_len();
        }
    }

    /// Takes what is fresh and sends it after the windows that it includes.
    fn checkpoint(
        &mut self,
        progress: &mut Progress,
        closed: bool,
        promise: Option<Promise<Result<(), ReadError>>>,
    ) {
        if self.core.read_only {
            if let Some(promise) = promise {
                promise.complete(Err(ReadError::ReadOnly));
            }
            return;
        }
        let mut fresh = Fresh::default();
        self.partitions.iter_mut().for_each(|partition| fresh.append(partition.take_fresh()));
        let (ordered, synced) = (self.core.ordered.get(), self.core.synced.get());
        // With buffered durability the order can be ahead of what is on the device. What a
        // checkpoint counts must not be, so the segment is synced before it is written; segments
        // before the last one are synced when they are sealed.
        let unsynced = (ordered > synced).then(|| self.core.segments.snapshot().last().cloned());
        let checkpoint = Checkpoint {
            store_id: self.core.store_id,
            ordered,
            frontier: self.frontier,
            // The log may be longer than what is ordered: then this saves looking for its end.
            log_end: synced.max(ordered),
            closed,
            forgotten: self.forgotten,
            counts: self.partitions.iter().map(|partition| partition.counts).collect(),
            sealed: self.partitions.iter().flat_map(Partition::sealed_streams).collect(),
            cursors: self.cursors.at().clone(),
            firsts: crate::open::firsts(&self.partitions),
            runs: Vec::new(),
        };
        self.closed_before = false;
        self.core.checkpoints_under_way.fetch_add(1, Ordering::Relaxed);
        progress.sealed = (ordered, self.frontier);
        let log = unsynced.flatten();
        let _ = self.committer.send(Commit::Checkpoint { checkpoint, fresh, log, promise });
    }
}

/// Why ordering cannot go on.
enum Stopped {
    Cause(Cause),
    /// A derived file is not what was written.
    Derived(ReadError),
    /// The store closes, and the window in hand took too long. The partitions are in the middle of it, so
    /// there is no checkpoint: the next opening goes on from the last one.
    GivenUp,
}

impl From<Fault> for Stopped {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Log(damage) => Stopped::Cause(Cause::Damage(damage)),
            // What is trimmed is asked for only by what is wrong.
            derived @ (Fault::Order(_) | Fault::Run(_) | Fault::Trimmed(_)) => {
                Stopped::Derived(derived.into())
            }
            Fault::GivenUp => Stopped::GivenUp,
        }
    }
}
