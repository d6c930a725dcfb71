//! A disk that forgets what was not synced: a device below, a cache above, and the operations that
//! go from one to the other, each of which can be the last one.
//!
//! A failed sync behaves as the common kernels do: the pages stay readable, count as clean, are
//! not written by the next sync, which succeeds, and are gone after a power loss. Whatever is
//! written later into one of these pages takes the rest of the page along.

#![allow(unreachable_pub, reason = "every test binary uses another part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use thalweg_wal::storage::{
    Access, LockAttempt, Map, MemoryStorage, Storage, StorageFile, read_exact_at, read_file,
    write_all_at,
};

/// A piece that is written or lost as a whole.
const SECTOR: usize = 512;
/// What the cache writes at a time, with whatever it shows in it.
const PAGE: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The machine stops at this operation: it and all later ones fail.
    Stop,
    /// This operation fails, the later ones work.
    Error,
}

#[derive(Debug, Clone)]
pub struct Disk {
    /// What reads and maps show.
    cache: MemoryStorage,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Files by number, as the device has them.
    device: BTreeMap<u64, Vec<u8>>,
    /// Names now, and names that survive.
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Writes that the next sync brings to the device, by file.
    dirty: BTreeMap<u64, Vec<(usize, Vec<u8>)>>,
    /// Files that were never synced: their length may be lost with their bytes.
    unsynced: BTreeSet<u64>,
    made: u64,
    /// Operations that change something, so far.
    ops: u64,
    fault: Option<(u64, Fault)>,
    stopped: bool,
}

impl Disk {
    pub fn new() -> Self {
        Disk { cache: MemoryStorage::new(), state: Arc::default() }
    }

    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    pub fn fail_at(&self, op: u64, fault: Fault) {
        self.state().fault = Some((op, fault));
    }

    /// The disk after a power loss; of what was not synced, `keeps` says for each sector whether it
    /// arrived.
    pub fn power_loss(&self, mut keeps: impl FnMut() -> bool) -> Disk {
        let state = self.state();
        let mut device = state.device.clone();
        for (file, writes) in &state.dirty {
            let bytes = device.get_mut(file).expect("every file is on the device");
            for (offset, written) in writes {
                // Sector by sector of the device, not of the write.
                let mut at = 0;
                while at < written.len() {
                    let len = (SECTOR - (offset + at) % SECTOR).min(written.len() - at);
                    if keeps() {
                        bytes[offset + at..][..len].copy_from_slice(&written[at..at + len]);
                    }
                    at += len;
                }
            }
        }
        for file in &state.unsynced {
            if !keeps() {
                device.get_mut(file).expect("every file is on the device").clear();
            }
        }
        // Names arrive in order, and as far as they got.
        let names = if keeps() { state.names.clone() } else { state.durable_names.clone() };
        let cache = MemoryStorage::new();
        for (name, file) in &names {
            super::put(&cache, name, &device[file]);
        }
        let device = names.values().map(|file| (*file, device[file].clone())).collect();
        let after = State {
            device,
            durable_names: names.clone(),
            names,
            made: state.made,
            ..State::default()
        };
        Disk { cache, state: Arc::new(Mutex::new(after)) }
    }

    /// The files as the cache shows them.
    pub fn cached(&self) -> MemoryStorage {
        self.cache.fork()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    /// Counts an operation; fails it if it is its turn.
    fn step(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.ops += 1;
        match state.fault {
            Some((op, fault)) if op == state.ops => {
                state.stopped = fault == Fault::Stop;
                Err(io::Error::other("injected"))
            }
            _ if state.stopped => Err(io::Error::other("the machine has stopped")),
            _ => Ok(state),
        }
    }
}

impl Storage for Disk {
    fn describe(&self, name: &str) -> String {
        format!("disk:{name}")
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>> {
        let mut state = self.step()?;
        let inner = self.cache.create(name, len)?;
        state.made += 1;
        let number = state.made;
        state.device.insert(number, vec![0; len as usize]);
        state.unsynced.insert(number);
        state.names.insert(name.to_owned(), number);
        Ok(Arc::new(DiskFile { disk: self.clone(), number, inner }))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let inner = self.cache.open(name, access)?;
        let number = self.state().names[name];
        Ok(Arc::new(DiskFile { disk: self.clone(), number, inner }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.cache.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.step()?;
        self.cache.rename(from, to)?;
        let number = state.names.remove(from).expect("the cache has it");
        state.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if self.cache.open(name, Access::Read).is_err() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut state = self.step()?;
        self.cache.remove(name)?;
        state.names.remove(name);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.step()?;
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn try_lock(&self, name: &str, holder: &str) -> io::Result<LockAttempt> {
        self.cache.try_lock(name, holder)
    }
}

#[derive(Debug)]
struct DiskFile {
    disk: Disk,
    number: u64,
    inner: Arc<dyn StorageFile>,
}

impl StorageFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        // A direct read writes the dirty pages first.
        flush(&mut state, self.number);
        let bytes = &state.device[&self.number];
        let offset = (offset as usize).min(bytes.len());
        let count = buf.len().min(bytes.len() - offset);
        buf[..count].copy_from_slice(&bytes[offset..offset + count]);
        Ok(count)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.step().inspect_err(|_| {
            // Some of it may have been written all the same.
            let mut state = self.disk.state();
            let half = buf[..buf.len() / 2].to_vec();
            state.dirty.entry(self.number).or_default().push((offset as usize, half));
        })?;
        write_all_at(&*self.inner, buf, offset)?;
        let start = offset as usize / PAGE * PAGE;
        let end = (offset as usize + buf.len()).next_multiple_of(PAGE);
        let mut pages = vec![0; end.min(self.inner.len()? as usize) - start];
        read_exact_at(&*self.inner, &mut pages, start as u64)?;
        state.dirty.entry(self.number).or_default().push((start, pages));
        Ok(buf.len())
    }

    fn sync(&self) -> io::Result<()> {
        match self.disk.step() {
            Ok(mut state) => {
                flush(&mut state, self.number);
                state.unsynced.remove(&self.number);
                Ok(())
            }
            Err(error) => {
                let mut state = self.disk.state();
                if !state.stopped {
                    state.dirty.remove(&self.number);
                }
                Err(error)
            }
        }
    }

    fn map(&self) -> io::Result<Map> {
        self.inner.map()
    }
}

fn flush(state: &mut State, number: u64) {
    for (offset, written) in state.dirty.remove(&number).unwrap_or_default() {
        let bytes = state.device.get_mut(&number).expect("every file is on the device");
        bytes[offset..offset + written.len()].copy_from_slice(&written);
    }
}

/// All files of a disk with their bytes as the cache shows them.
pub fn files(disk: &Disk) -> Vec<(String, Vec<u8>)> {
    let names = disk.list().expect("lists");
    names
        .into_iter()
        .map(|name| {
            let bytes = read_file(disk, &name).expect("reads");
            (name, bytes)
        })
        .collect()
}
