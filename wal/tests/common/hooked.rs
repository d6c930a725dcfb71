//! A directory that calls the test before each operation: to count it, to have it wait or fail, or to do something else
//! first.
//!
//! The tests of the log and of the engine share it.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses another part")]

use std::fmt;
use std::io;
use std::sync::Arc;

use thalweg_wal::storage::{Access, LockAttempt, Map, Storage, StorageFile, Watch};

/// What is about to be done, with the name of the file if the directory is asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    Create(&'a str),
    Open(&'a str, Access),
    List,
    /// By the name so far.
    Rename(&'a str),
    Remove(&'a str),
    CreateFolder(&'a str),
    SyncDir,
    Lock(&'a str),
    /// Look at a file: how long it is, whether it has other names, or at all of it.
    Look,
    Read,
    /// So many bytes at most.
    ReadDevice(usize),
    WillNeed {
        offset: u64,
        len: u64,
    },
    Write,
    Reserve,
    Sync,
}

impl Op<'_> {
    /// Whether a reader may do it: it changes no file, and takes nothing away from anybody. One that is
    /// there may be synced, so that what is shown of it is durable.
    pub fn is_of_a_reader(self) -> bool {
        let is_a_look = matches!(self, Op::Open(_, Access::Read) | Op::List | Op::Look);
        is_a_look || matches!(self, Op::Read | Op::ReadDevice(_) | Op::WillNeed { .. } | Op::Sync)
    }
}

type Hook = Arc<dyn Fn(Op<'_>) -> io::Result<()> + Send + Sync>;

/// A directory with a hook. If that returns an error, it is the operation's, which is not made then.
#[derive(Clone)]
pub struct Hooked {
    inner: Arc<dyn Storage>,
    before: Hook,
    watch: Option<Arc<dyn Watch>>,
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl Hooked {
    pub fn new(
        inner: impl Storage,
        before: impl Fn(Op<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Hooked { inner: Arc::new(inner), before: Arc::new(before), watch: None }
    }

    /// With another watch than that of the directory.
    pub fn watched_by(self, watch: impl Watch + 'static) -> Self {
        Hooked { watch: Some(Arc::new(watch)), ..self }
    }

    fn file(&self, inner: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        Arc::new(HookedFile { inner, before: Arc::clone(&self.before) })
    }
}

/// All but `directory`, so that nobody gets past the hook.
impl Storage for Hooked {
    fn describe(&self, name: &str) -> String {
        self.inner.describe(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>> {
        (self.before)(Op::Create(name))?;
        self.inner.create(name, len).map(|file| self.file(file))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        (self.before)(Op::Open(name, access))?;
        self.inner.open(name, access).map(|file| self.file(file))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        (self.before)(Op::List)?;
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        (self.before)(Op::Rename(from))?;
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        (self.before)(Op::Remove(name))?;
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        (self.before)(Op::SyncDir)?;
        self.inner.sync_dir()
    }

    fn create_folder(&self, name: &str) -> io::Result<()> {
        (self.before)(Op::CreateFolder(name))?;
        self.inner.create_folder(name)
    }

    fn sync_folder(&self, name: &str) -> io::Result<()> {
        (self.before)(Op::SyncDir)?;
        self.inner.sync_folder(name)
    }

    fn try_lock(&self, name: &str, holder: &str) -> io::Result<LockAttempt> {
        (self.before)(Op::Lock(name))?;
        self.inner.try_lock(name, holder)
    }

    fn lock_holder(&self, name: &str) -> io::Result<Option<String>> {
        self.inner.lock_holder(name)
    }

    fn watch(&self) -> io::Result<Option<Arc<dyn Watch>>> {
        self.watch.clone().map_or_else(|| self.inner.watch(), |watch| Ok(Some(watch)))
    }

    fn random(&self) -> u64 {
        self.inner.random()
    }
}

struct HookedFile {
    inner: Arc<dyn StorageFile>,
    before: Hook,
}

impl fmt::Debug for HookedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl StorageFile for HookedFile {
    fn len(&self) -> io::Result<u64> {
        (self.before)(Op::Look)?;
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (self.before)(Op::Read)?;
        self.inner.read_at(buf, offset)
    }

    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (self.before)(Op::ReadDevice(buf.len()))?;
        self.inner.read_device_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        (self.before)(Op::Write)?;
        self.inner.write_at(buf, offset)
    }

    fn reserve(&self) -> io::Result<bool> {
        (self.before)(Op::Reserve)?;
        self.inner.reserve()
    }

    fn is_linked(&self) -> io::Result<bool> {
        (self.before)(Op::Look)?;
        self.inner.is_linked()
    }

    fn sync(&self) -> io::Result<()> {
        (self.before)(Op::Sync)?;
        self.inner.sync()
    }

    fn map(&self) -> io::Result<Map> {
        (self.before)(Op::Look)?;
        self.inner.map()
    }

    fn will_need(&self, offset: u64, len: u64) {
        if (self.before)(Op::WillNeed { offset, len }).is_ok() {
            self.inner.will_need(offset, len);
        }
    }
}
