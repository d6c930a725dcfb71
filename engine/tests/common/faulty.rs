//! A directory in memory whose operations fail, or wait, when a test says so.
#![allow(unreachable_pub, reason = "each test binary uses its own part")]

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use thalweg::storage::{Access, LockAttempt, Map, MemoryStorage, Storage, StorageFile};

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Create,
    Write,
    Sync,
    Rename,
    Remove,
    SyncDir,
}

/// When an operation fails: the one after `skip` others that match.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Any operation, or this one.
    pub op: Option<Op>,
    /// Beginning of the file's name; `SyncDir` has the empty name.
    pub file: &'static str,
    pub skip: u64,
    /// How many fail then, one after the other.
    pub count: u64,
    pub error: io::ErrorKind,
}

/// A directory in memory with faults. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct Faulty {
    pub inner: MemoryStorage,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    plan: Mutex<Plan>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Plan {
    fault: Option<Fault>,
    /// Operations so far.
    ops: u64,
    /// Whether syncs of segments wait.
    shut: bool,
    /// How many wait.
    waiting: u64,
}

impl Faulty {
    pub fn fail(&self, fault: Fault) {
        self.state.plan.lock().unwrap().fault = Some(fault);
    }

    pub fn ops(&self) -> u64 {
        self.state.plan.lock().unwrap().ops
    }

    /// Makes syncs of segments wait, or go on.
    pub fn shut(&self, shut: bool) {
        self.state.plan.lock().unwrap().shut = shut;
        self.state.changed.notify_all();
    }

    /// Returns once a sync waits.
    pub fn wait_until_one_waits(&self) {
        let plan = self.state.plan.lock().unwrap();
        drop(self.state.changed.wait_while(plan, |plan| plan.waiting == 0).unwrap());
    }

    fn step(&self, op: Op, file: &str) -> io::Result<()> {
        let mut plan = self.state.plan.lock().unwrap();
        plan.ops += 1;
        if op == Op::Sync && file.starts_with("segment") && plan.shut {
            plan.waiting += 1;
            self.state.changed.notify_all();
            plan = self.state.changed.wait_while(plan, |plan| plan.shut).unwrap();
            plan.waiting -= 1;
        }
        let Some(fault) = &mut plan.fault else { return Ok(()) };
        if fault.op.is_some_and(|other| other != op) || !file.starts_with(fault.file) {
            return Ok(());
        }
        if fault.skip > 0 {
            fault.skip -= 1;
            return Ok(());
        }
        if fault.count == 0 {
            return Ok(());
        }
        fault.count -= 1;
        Err(fault.error.into())
    }
}

impl Storage for Faulty {
    fn describe(&self, name: &str) -> String {
        self.inner.describe(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>> {
        self.step(Op::Create, name)?;
        let inner = self.inner.create(name, len)?;
        Ok(Arc::new(FaultyFile { storage: self.clone(), name: name.to_owned(), inner }))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let inner = self.inner.open(name, access)?;
        Ok(Arc::new(FaultyFile { storage: self.clone(), name: name.to_owned(), inner }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step(Op::Rename, from)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        // What is not there takes nothing to remove.
        self.inner.open(name, Access::Read)?;
        self.step(Op::Remove, name)?;
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.step(Op::SyncDir, "")
    }

    fn try_lock(&self, name: &str, holder: &str) -> io::Result<LockAttempt> {
        self.inner.try_lock(name, holder)
    }
}

#[derive(Debug)]
struct FaultyFile {
    storage: Faulty,
    name: String,
    inner: Arc<dyn StorageFile>,
}

impl StorageFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_device_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        if let Err(error) = self.storage.step(Op::Write, &self.name) {
            // Some of it may have got there all the same.
            self.inner.write_at(&buf[..buf.len() / 2], offset)?;
            return Err(error);
        }
        self.inner.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.storage.step(Op::Sync, &self.name)?;
        self.inner.sync()
    }

    fn map(&self) -> io::Result<Map> {
        self.inner.map()
    }
}
