//! A directory in memory that calls back before each operation.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};

use thalweg::storage::{Access, LockAttempt, Map, MemoryStorage, Storage, StorageFile};

/// What is called, from the thread that has made it; what it does itself is not counted.
#[derive(Clone)]
struct Hook {
    call: Arc<OnceLock<Box<dyn Fn(u64) + Send + Sync>>>,
    thread: ThreadId,
    ops: Arc<AtomicU64>,
    is_inside: Arc<AtomicBool>,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.fmt(f)
    }
}

impl Hook {
    fn step(&self) {
        let Some(call) = self.call.get() else { return };
        let is_own = thread::current().id() == self.thread;
        if is_own && !self.is_inside.swap(true, Ordering::SeqCst) {
            call(self.ops.fetch_add(1, Ordering::SeqCst));
            self.is_inside.store(false, Ordering::SeqCst);
        }
    }
}

/// A directory in memory with a callback.
#[derive(Debug, Clone)]
pub struct Hooked {
    inner: MemoryStorage,
    hook: Hook,
}

impl Hooked {
    pub fn new(inner: &MemoryStorage) -> Self {
        let hook = Hook {
            call: Arc::default(),
            thread: thread::current().id(),
            ops: Arc::default(),
            is_inside: Arc::default(),
        };
        Hooked { inner: inner.clone(), hook }
    }

    /// Another directory with the same callback and the same count.
    pub fn beside(&self, inner: &MemoryStorage) -> Self {
        Hooked { inner: inner.clone(), hook: self.hook.clone() }
    }

    /// From now on, calls back with the number of each operation.
    pub fn call(&self, call: impl Fn(u64) + Send + Sync + 'static) {
        assert!(self.hook.call.set(Box::new(call)).is_ok(), "there is a callback already");
    }

    /// How many operations there were since then.
    pub fn ops(&self) -> u64 {
        self.hook.ops.load(Ordering::SeqCst)
    }

    fn file(&self, inner: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        Arc::new(HookedFile { inner, hook: self.hook.clone() })
    }
}

impl Storage for Hooked {
    fn describe(&self, name: &str) -> String {
        self.inner.describe(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>> {
        self.hook.step();
        self.inner.create(name, len).map(|file| self.file(file))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        self.hook.step();
        self.inner.open(name, access).map(|file| self.file(file))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.hook.step();
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.hook.step();
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.hook.step();
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.hook.step();
        self.inner.sync_dir()
    }

    fn try_lock(&self, name: &str, holder: &str) -> io::Result<LockAttempt> {
        self.inner.try_lock(name, holder)
    }
}

#[derive(Debug)]
struct HookedFile {
    inner: Arc<dyn StorageFile>,
    hook: Hook,
}

impl StorageFile for HookedFile {
    fn len(&self) -> io::Result<u64> {
        self.hook.step();
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.hook.step();
        self.inner.read_at(buf, offset)
    }

    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.hook.step();
        self.inner.read_device_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.hook.step();
        self.inner.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.hook.step();
        self.inner.sync()
    }

    fn map(&self) -> io::Result<Map> {
        self.hook.step();
        self.inner.map()
    }
}
