//! A directory in memory, for tests and for stores that need not outlive the process.
//!
//! Durability is a word here: a sync always succeeds and a dropped store is gone. A clone is
//! another handle on the same directory, so a test can close a store and open it again.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Access, LockAttempt, Map, Storage, StorageFile};

/// A directory in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryStorage {
    inner: Arc<Mutex<Directory>>,
}

#[derive(Debug, Default)]
struct Directory {
    files: BTreeMap<String, Arc<MemoryFile>>,
    locked: Option<String>,
}

impl MemoryStorage {
    /// An empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of every file as it is now, as a directory of its own and not locked: what a
    /// machine that stops at this moment would find again if everything had reached the device.
    pub fn fork(&self) -> Self {
        let copy = MemoryStorage::new();
        let mut files = BTreeMap::new();
        for (name, file) in &self.directory().files {
            files.insert(name.clone(), Arc::new(MemoryFile::new(file.to_vec())));
        }
        copy.directory().files = files;
        copy
    }

    fn directory(&self) -> std::sync::MutexGuard<'_, Directory> {
        // No code panics while it holds the lock; if it did, the map would still be whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &str) -> io::Result<Arc<MemoryFile>> {
        self.directory().files.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for MemoryStorage {
    fn describe(&self, name: &str) -> String {
        format!("memory:{name}")
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>> {
        let mut directory = self.directory();
        if directory.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let file = Arc::new(MemoryFile::new(vec![0; len]));
        directory.files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str, _access: Access) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.file(name)?)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.directory().files.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut directory = self.directory();
        let file = directory.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        directory.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.directory().files.remove(name) {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self, _name: &str, holder: &str) -> io::Result<LockAttempt> {
        let mut directory = self.directory();
        if let Some(busy) = &directory.locked {
            return Ok(LockAttempt::Busy(busy.clone()));
        }
        directory.locked = Some(holder.to_owned());
        Ok(LockAttempt::Held(Box::new(MemoryLock { storage: self.clone() })))
    }

    fn lock_holder(&self, _name: &str) -> io::Result<Option<String>> {
        Ok(self.directory().locked.clone())
    }
}

#[derive(Debug)]
struct MemoryLock {
    storage: MemoryStorage,
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.storage.directory().locked = None;
    }
}

/// A file: a handle on its bytes, which maps share.
#[derive(Debug)]
struct MemoryFile {
    region: Arc<Region>,
}

impl MemoryFile {
    fn new(bytes: Vec<u8>) -> Self {
        MemoryFile { region: Arc::new(Region::new(bytes)) }
    }

    fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.region.len];
        self.region.read_at(&mut bytes, 0);
        bytes
    }
}

impl StorageFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.region.len as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.region.read_at(buf, offset))
    }

    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        Ok(self.region.write_at(buf, offset))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    #[allow(unsafe_code)]
    fn map(&self) -> io::Result<Map> {
        let (start, len) = (self.region.start, self.region.len);
        // SAFETY: the region keeps its allocation in place until the last handle is dropped, and
        // the map holds one.
        Ok(unsafe { Map::new(start, len, Box::new(Arc::clone(&self.region))) })
    }
}

/// Bytes at a fixed address and of a fixed length, so that a map of them is a pointer.
#[derive(Debug)]
struct Region {
    start: *mut u8,
    len: usize,
    /// Orders positioned reads and writes among each other. Maps do not take it: they only read
    /// bytes that are not written any more, as `MappedFile` has it.
    io: Mutex<()>,
}

// SAFETY: the allocation belongs to this value alone, and `io` orders all access but that of
// maps, which read bytes that nobody writes any more.
#[allow(unsafe_code)]
unsafe impl Send for Region {}
// SAFETY: as for Send.
#[allow(unsafe_code)]
unsafe impl Sync for Region {}

impl Region {
    fn new(bytes: Vec<u8>) -> Self {
        let bytes = Box::leak(bytes.into_boxed_slice());
        Region { start: bytes.as_mut_ptr(), len: bytes.len(), io: Mutex::new(()) }
    }

    /// Offset and count of the bytes, of `want` from `offset` on, that lie inside.
    fn span(&self, want: usize, offset: u64) -> (usize, usize) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len);
        (offset, want.min(self.len - offset))
    }

    #[allow(unsafe_code)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> usize {
        let _io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        let (offset, count) = self.span(buf.len(), offset);
        // SAFETY: `span` keeps the range inside the allocation, `io` keeps writers out, and `buf`
        // is another allocation.
        unsafe { self.start.add(offset).copy_to_nonoverlapping(buf.as_mut_ptr(), count) };
        count
    }

    #[allow(unsafe_code)]
    fn write_at(&self, buf: &[u8], offset: u64) -> usize {
        let _io = self.io.lock().unwrap_or_else(PoisonError::into_inner);
        let (offset, count) = self.span(buf.len(), offset);
        // SAFETY: as for `read_at`; no map shows these bytes while they can still be written.
        unsafe { self.start.add(offset).copy_from_nonoverlapping(buf.as_ptr(), count) };
        count
    }
}

impl Drop for Region {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: pointer and length come from the leaked box of `new`, and this is the last owner.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.start, self.len)) });
    }
}
