//! The index: partitions in memory, runs on disk, a thread that writes runs and one that merges them.

use std::cmp::Reverse;
use std::io;
use std::path::Path;
use std::thread::JoinHandle;

use thalweg_wal::name;
use thalweg_wal::storage::{OsStorage, Storage, remove_if_there, write_all_at};

use crate::derived::run::{DamagedRun, Extent, KnownItem, Run};
use crate::derived::runs::{self, BuildError, Fresh, Truth};
use crate::order::known::Table;
use crate::sync::mpmc::{Either, Receiver, Sender, either, unbounded};
use crate::sync::{Arc, Condvar, Mutex};

/// As in the engine's `order/keys.rs`. There a key's stream chooses the partition, here the key.
const PARTITION_COUNT: usize = 64;
/// As in the engine's `order/partition.rs`.
const LOOKED_UP_TOGETHER: usize = 16;
/// As in the engine's `pipeline/keeper.rs`.
const MERGE_ALONG_MAX: u64 = 1 << 18;
/// Keys after which a run is due: `CHECKPOINT_ITEMS` of the engine's `pipeline/orderer.rs`.
const CHECKPOINT_KEYS: u64 = 1 << 20;
/// Bytes of a checkpoint, about: the engine's has counts of partitions and the list of the runs.
const CHECKPOINT_LEN: usize = 4096;
const STORE_ID: [u8; 16] = *b"thalweg-runs-idx";

/// Known keys and their values, within a budget of memory.
#[derive(Debug)]
pub struct Index {
    partitions: Vec<Partition>,
    budget: usize,
    /// Keys that were inserted; they stand for positions in the log.
    count: u64,
    /// What of them is in a run, or in one that is under way.
    sealed: u64,
    runs: Vec<Arc<Run>>,
    shared: Arc<Shared>,
    tasks: Option<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Partition {
    known: Table,
    fresh: Vec<KnownItem>,
    cold_below: u64,
}

impl Partition {
    fn memory_len(&self) -> usize {
        self.fresh.len() * size_of::<KnownItem>() + self.known.memory_len()
    }

    /// Forgets what is not fresh.
    fn forget(&mut self, below: u64) {
        self.known.replace(self.fresh.iter().map(|item| (item.key, item.value)).collect());
        self.cold_below = below;
    }
}

/// What the keeper tells the index.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    runs: Vec<Arc<Run>>,
    checkpointed: u64,
    checkpointing: bool,
    /// Nothing is merged, and nothing is due for it.
    merged: bool,
    failure: Option<String>,
}

#[derive(Debug)]
struct Task {
    fresh: Fresh,
    from: u64,
    to: u64,
}

#[inline]
fn partition_of(key: u64) -> usize {
    (key >> (64 - PARTITION_COUNT.trailing_zeros())) as usize
}

fn damage(damaged: DamagedRun) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{damaged:?}"))
}

impl Index {
    /// An empty index in `dir`, which is made if it is not there, with `budget` bytes of memory for
    /// what is kept there.
    pub fn create(dir: &Path, budget: usize) -> io::Result<Self> {
        let storage: Arc<dyn Storage> = Arc::new(OsStorage::create(dir)?);
        let shared = Arc::new(Shared::default());
        shared.state.lock().merged = true;
        let (tasks, tasks_in) = unbounded();
        let (merges, merges_in) = unbounded();
        let (merged, merged_in) = unbounded();
        let mut keeper = Keeper {
            storage: Arc::clone(&storage),
            shared: Arc::clone(&shared),
            merges,
            runs: Vec::new(),
            next_number: 1,
            is_merging: false,
        };
        let threads = vec![
            std::thread::spawn(move || keeper.run(&tasks_in, &merged_in)),
            std::thread::spawn(move || merge(&*storage, &merges_in, &merged)),
        ];
        Ok(Index {
            partitions: (0..PARTITION_COUNT).map(|_| Partition::default()).collect(),
            budget,
            count: 0,
            sealed: 0,
            runs: Vec::new(),
            shared,
            tasks: Some(tasks),
            threads,
        })
    }

    /// Looks up ids of events that arrive: hardly any is known. As the machine does, it has the
    /// processor fetch the places of several first, in memory and in the filters.
    pub fn look_up_arrivals(
        &self,
        keys: &[u64],
        mut visit: impl FnMut(u64, Option<u64>),
    ) -> io::Result<()> {
        for keys in keys.chunks(LOOKED_UP_TOGETHER) {
            for &key in keys {
                let partition = &self.partitions[partition_of(key)];
                partition.known.touch(key);
                if partition.cold_below > 0 {
                    runs::touch::<KnownItem>(&self.runs, partition.cold_below, key);
                }
            }
            keys.iter().try_for_each(|&key| self.find(key).map(|found| visit(key, found)))?;
        }
        Ok(())
    }

    /// Looks up ids of parents. As the machine does, it has only their places in memory fetched.
    pub fn look_up_parents(
        &self,
        keys: &[u64],
        mut visit: impl FnMut(u64, Option<u64>),
    ) -> io::Result<()> {
        for keys in keys.chunks(LOOKED_UP_TOGETHER) {
            keys.iter().for_each(|&key| self.partitions[partition_of(key)].known.touch(key));
            keys.iter().try_for_each(|&key| self.find(key).map(|found| visit(key, found)))?;
        }
        Ok(())
    }

    #[inline]
    fn find(&self, key: u64) -> io::Result<Option<u64>> {
        let partition = &self.partitions[partition_of(key)];
        if let Some((_, value)) = partition.known.find(key, Some) {
            return Ok(Some(value));
        }
        if partition.cold_below == 0 {
            return Ok(None);
        }
        let value = |_: &Run, item: KnownItem| Some(item.value);
        runs::find(&self.runs, partition.cold_below, key, value).map_err(damage)
    }

    /// Inserts keys, none of which is zero or was there before, with values below 2^62.
    pub fn insert(&mut self, items: impl IntoIterator<Item = (u64, u64)>) -> io::Result<()> {
        for (key, value) in items {
            let partition = &mut self.partitions[partition_of(key)];
            partition.known.insert(key, value);
            partition.fresh.push(KnownItem { key, value });
            self.count += 1;
        }
        self.mind_memory()?;
        let due = self.count - self.sealed >= CHECKPOINT_KEYS;
        if due && !self.shared.state.lock().checkpointing {
            self.checkpoint();
        }
        self.refresh()
    }

    /// Writes what is in no run yet, waits until everything is durable and no merge is due, and ends.
    /// The index can still be searched.
    pub fn settle(&mut self) -> io::Result<()> {
        self.wait_until(|state| !state.checkpointing)?;
        if self.sealed < self.count {
            self.checkpoint();
        }
        self.wait_until(|state| !state.checkpointing && state.merged)?;
        self.refresh()
    }

    /// Number of runs.
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    fn refresh(&mut self) -> io::Result<()> {
        let state = self.shared.state.lock();
        self.runs.clone_from(&state.runs);
        failure(&state)
    }

    fn wait_until(&self, is_so: impl Fn(&State) -> bool) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        while !is_so(&state) && state.failure.is_none() {
            self.shared.changed.wait(&mut state);
        }
        failure(&state)
    }

    fn memory_len(&self) -> usize {
        self.partitions.iter().map(Partition::memory_len).sum()
    }

    /// As `Orderer::mind_memory` does.
    fn mind_memory(&mut self) -> io::Result<()> {
        while self.memory_len() > self.budget / 4 * 3 {
            let (checkpointing, checkpointed) = {
                let state = self.shared.state.lock();
                failure(&state)?;
                (state.checkpointing, state.checkpointed)
            };
            if !checkpointing {
                let all_written = checkpointed >= self.sealed;
                if all_written {
                    self.forget();
                }
                if all_written && self.count == self.sealed {
                    return Ok(());
                }
                if self.memory_len() > self.budget / 2 {
                    self.checkpoint();
                }
            }
            if self.memory_len() <= self.budget {
                return Ok(());
            }
            self.wait_until(|state| !state.checkpointing)?;
        }
        Ok(())
    }

    /// As `Orderer::forget` does.
    fn forget(&mut self) {
        let mut memory = self.memory_len();
        let mut by_size: Vec<&mut Partition> = self.partitions.iter_mut().collect();
        by_size.sort_unstable_by_key(|partition| Reverse(partition.memory_len()));
        for partition in by_size {
            if memory <= self.budget / 2 {
                return;
            }
            memory -= partition.memory_len();
            partition.forget(self.sealed);
            memory += partition.memory_len();
        }
    }

    fn checkpoint(&mut self) {
        let mut fresh = Fresh::default();
        for partition in &mut self.partitions {
            let known = std::mem::take(&mut partition.fresh);
            fresh.append(Fresh { known, ..Fresh::default() });
        }
        self.shared.state.lock().checkpointing = true;
        let task = Task { fresh, from: self.sealed, to: self.count };
        self.sealed = self.count;
        let tasks = self.tasks.as_ref().expect("there until the index is dropped");
        tasks.send(task).expect("the keeper lives as long as there may be tasks");
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.tasks = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn failure(state: &State) -> io::Result<()> {
    state.failure.as_ref().map_or(Ok(()), |said| Err(io::Error::other(said.clone())))
}

/// Runs that are to become one.
#[derive(Debug)]
struct Merge {
    extent: Extent,
    runs: Vec<Arc<Run>>,
}

#[derive(Debug)]
struct Merged {
    merge: Merge,
    run: Result<Arc<Run>, BuildError>,
}

fn merge(storage: &dyn Storage, merges: &Receiver<Merge>, merged: &Sender<Merged>) {
    for merge in merges {
        let run = build(storage, merge.extent, &Fresh::default(), &merge.runs);
        let _ = merged.send(Merged { merge, run });
    }
}

fn build(
    storage: &dyn Storage,
    extent: Extent,
    fresh: &Fresh,
    runs: &[Arc<Run>],
) -> Result<Arc<Run>, BuildError> {
    // Nothing is held, so nobody asks.
    let truth = Truth { is_over: &|_| false, is_delivery: &|_, _| false, is_left_out: &|_| false };
    runs::build(storage, STORE_ID, name::run, extent, fresh, runs, &truth, &|| false)
}

/// As `Keeper` of the engine.
struct Keeper {
    storage: Arc<dyn Storage>,
    shared: Arc<Shared>,
    merges: Sender<Merge>,
    runs: Vec<Arc<Run>>,
    next_number: u64,
    is_merging: bool,
}

impl Keeper {
    fn run(&mut self, tasks: &Receiver<Task>, merged: &Receiver<Merged>) {
        loop {
            self.merge_if_due();
            let result = match either(tasks, merged) {
                Either::First(Ok(task)) => self.write(task),
                Either::Second(Ok(merged)) => self.replace(merged),
                Either::First(Err(_)) | Either::Second(Err(_)) => return,
            };
            if let Err(error) = result {
                self.shared.state.lock().failure = Some(format!("{error:?}"));
                self.shared.changed.notify_all();
                return;
            }
        }
    }

    fn write(&mut self, task: Task) -> Result<(), BuildError> {
        let Task { mut fresh, from, to } = task;
        fresh.sort();
        let along = self.merged_along(&fresh);
        let from = self.runs.get(along).map_or(from, |first| first.extent.from);
        let extent = Extent { number: self.next_number, from, to };
        self.next_number += 1;
        let run = build(&*self.storage, extent, &fresh, &self.runs[along..])?;
        let replaced: Vec<_> = self.runs.drain(along..).collect();
        self.runs.push(run);
        self.publish(&replaced)?;
        let mut state = self.shared.state.lock();
        state.checkpointed = to;
        state.checkpointing = false;
        // Whether a merge is due is looked at next.
        state.merged = false;
        drop(state);
        self.shared.changed.notify_all();
        Ok(())
    }

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

    /// Makes the list of the runs durable, as a checkpoint does, and removes what it has no more.
    fn publish(&mut self, replaced: &[Arc<Run>]) -> io::Result<()> {
        let storage = &*self.storage;
        let mut list = Vec::with_capacity(CHECKPOINT_LEN);
        self.runs.iter().for_each(|run| list.extend(run.extent.number.to_le_bytes()));
        list.resize(list.len().max(CHECKPOINT_LEN), 0);
        remove_if_there(storage, name::checkpoint_new())?;
        let file = storage.create(name::checkpoint_new(), list.len() as u64)?;
        write_all_at(&*file, &list, 0)?;
        file.sync()?;
        storage.sync_dir()?;
        storage.rename(name::checkpoint_new(), name::checkpoint())?;
        storage.sync_dir()?;
        self.shared.state.lock().runs.clone_from(&self.runs);
        for run in replaced {
            remove_if_there(storage, &name::run(run.extent.number))?;
        }
        Ok(())
    }

    fn merge_if_due(&mut self) {
        if !self.is_merging {
            let counts: Vec<u64> = self.runs.iter().map(|run| run.item_count()).collect();
            if let Some(due) = runs::due_for_merge(&counts) {
                let runs = self.runs[due].to_vec();
                let (first, last) = (&runs[0].extent, &runs[runs.len() - 1].extent);
                let extent = Extent { number: self.next_number, from: first.from, to: last.to };
                self.next_number += 1;
                self.is_merging = self.merges.send(Merge { extent, runs }).is_ok();
            }
        }
        self.shared.state.lock().merged = !self.is_merging;
        self.shared.changed.notify_all();
    }

    fn replace(&mut self, merged: Merged) -> Result<(), BuildError> {
        self.is_merging = false;
        let Merged { merge, run } = merged;
        let first = merge.runs[0].extent.number;
        let at = self.runs.iter().position(|run| run.extent.number == first);
        let at = at.expect("what is merged stays until it is");
        self.runs.splice(at..at + merge.runs.len(), [run?]);
        Ok(self.publish(&merge.runs)?)
    }
}
