//! A directory in memory whose operations fail, panic, or wait, when a test says so.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use thalweg::storage::{Access, LockAttempt, Map, MemoryStorage, Storage, StorageFile};
use thalweg::{Options, Store};

/// Options with which a test has its faults where it expects them: small segments, one thread a stage.
pub fn options() -> Options {
    Options::new().segment_bytes(1 << 20).scanners(1).orderers(1)
}

/// Opens a store on a storage that has faults.
pub fn open(storage: &Faulty) -> Store {
    options().open_on(Arc::new(storage.clone())).expect("opens")
}

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

impl Fault {
    /// Every such operation fails.
    pub fn always(op: Op, file: &'static str) -> Self {
        let error = io::ErrorKind::StorageFull;
        Fault { op: Some(op), file, skip: 0, count: u64::MAX, error }
    }
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
    /// Whether it is a panic instead of an error.
    panics: bool,
    /// The number of the operating system's error, if it is to have one.
    os_error: Option<i32>,
    /// How many operations have failed.
    failed: u64,
    /// Operations so far.
    ops: u64,
    /// Operations on segments so far, by what they are and by the name of the thread.
    on_segments: HashMap<(Op, String), u64>,
    /// Which operations wait: on files with names that begin so.
    held: Option<(Op, &'static str)>,
    /// How many wait.
    waiting: u64,
    /// Which operations take how long.
    slow: Option<(Op, &'static str, Duration)>,
}

impl Faulty {
    /// A directory that has files already.
    pub fn over(inner: MemoryStorage) -> Self {
        Faulty { inner, state: Arc::default() }
    }

    pub fn fail(&self, fault: Fault) {
        let mut plan = self.state.plan.lock().unwrap();
        (plan.fault, plan.panics, plan.os_error) = (Some(fault), false, None);
    }

    /// As `fail`, with an error of the operating system by its number.
    pub fn fail_with_os_error(&self, fault: Fault, number: i32) {
        let mut plan = self.state.plan.lock().unwrap();
        (plan.fault, plan.panics, plan.os_error) = (Some(fault), false, Some(number));
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.state.plan.lock().unwrap().fault = None;
    }

    /// How many operations have failed.
    pub fn failed(&self) -> u64 {
        self.state.plan.lock().unwrap().failed
    }

    /// As `fail`, but the operation panics.
    pub fn panic(&self, fault: Fault) {
        let mut plan = self.state.plan.lock().unwrap();
        (plan.fault, plan.panics) = (Some(fault), true);
    }

    pub fn ops(&self) -> u64 {
        self.state.plan.lock().unwrap().ops
    }

    /// How many operations on segments this thread has begun.
    pub fn on_segments(&self, op: Op, thread: &str) -> u64 {
        let plan = self.state.plan.lock().unwrap();
        plan.on_segments.get(&(op, thread.to_owned())).copied().unwrap_or(0)
    }

    /// Makes operations on a file, by the beginning of its name, take this long.
    pub fn slow_down(&self, op: Op, file: &'static str, by: Duration) {
        self.state.plan.lock().unwrap().slow = Some((op, file, by));
    }

    /// Makes operations on a file, by the beginning of its name, wait.
    pub fn hold(&self, op: Op, file: &'static str) {
        self.state.plan.lock().unwrap().held = Some((op, file));
    }

    /// Lets those that wait go on.
    pub fn let_go(&self) {
        self.state.plan.lock().unwrap().held = None;
        self.state.changed.notify_all();
    }

    /// Returns once an operation waits.
    pub fn wait_until_one_waits(&self) {
        let plan = self.state.plan.lock().unwrap();
        drop(self.state.changed.wait_while(plan, |plan| plan.waiting == 0).unwrap());
    }

    fn step(&self, op: Op, file: &str) -> io::Result<()> {
        let is_it = |other: Op, name: &str| other == op && file.starts_with(name);
        let mut plan = self.state.plan.lock().unwrap();
        plan.ops += 1;
        if file.starts_with("segment-") {
            let thread = std::thread::current().name().unwrap_or_default().to_owned();
            *plan.on_segments.entry((op, thread)).or_default() += 1;
        }
        if let Some((_, _, by)) = plan.slow.filter(|(slow, name, _)| is_it(*slow, name)) {
            drop(plan);
            std::thread::sleep(by);
            plan = self.state.plan.lock().unwrap();
        }
        if plan.held.is_some_and(|(held, name)| is_it(held, name)) {
            plan.waiting += 1;
            self.state.changed.notify_all();
            plan = self.state.changed.wait_while(plan, |plan| plan.held.is_some()).unwrap();
            plan.waiting -= 1;
        }
        let panics = plan.panics;
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
        let error = fault.error;
        plan.failed += 1;
        let os_error = plan.os_error;
        // Not with the lock: the other threads go on.
        drop(plan);
        assert!(!panics, "the storage panics");
        Err(os_error.map_or_else(|| error.into(), io::Error::from_raw_os_error))
    }
}

impl Storage for Faulty {
    fn describe(&self, name: &str) -> String {
        self.inner.describe(name)
    }

    fn lock_holder(&self, name: &str) -> io::Result<Option<String>> {
        self.inner.lock_holder(name)
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
