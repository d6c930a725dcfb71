//! Files that are written once from front to back and read through a map meanwhile.
//!
//! # Why the map is sound
//!
//! A shared reference into a mapped file is sound only while nobody changes the bytes behind it.
//! [`MappedFile`] hands out bytes below its *published end* and nothing else, and:
//!
//! 1. within this process, [`MappedWriter`] is the only way to write the file; it refuses to write
//!    below the published end and it is the only one that moves that end, forwards;
//! 2. another process does not write it, because the directory lock keeps a second writer out, and
//!    a reader of somebody else's store publishes only what that writer has finished: what lies beyond,
//!    it reads with positioned reads ([`MappedTail`]), which copy and do not mind who writes meanwhile;
//! 3. no file is written that has another name (a hard link), as the sealed segments of a backup may
//!    have: [`MappedWriter::open`] refuses it;
//! 4. no code of ours truncates, punches or recycles a file that can be mapped: files are created
//!    at full length and unlinked when they retire, which leaves existing maps valid.
//!
//! A process that takes over a file leaves alone what stands there ([`MappedWriter::standing_len`]). Only where
//! the device has lost what the cache shows, after a failed sync, does it write the same bytes again, into pages that are
//! in memory because they are mapped: whoever reads them meanwhile finds what was there.
//!
//! What remains is a foreign program that truncates or overwrites our files: it can end the process
//! with `SIGBUS` or show it changed bytes, as with every map. `FORMAT.md` states this as an assumption.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Access, Storage, StorageFile, read_device_exact_at, read_exact_at, write_all_at};

/// A read-only view of a whole file.
pub struct Map {
    start: *const u8,
    len: usize,
    /// Keeps the view valid. Never looked at.
    _keep: Box<dyn std::any::Any + Send + Sync>,
}

// SAFETY: `start` points into memory that `_keep`, which is Send, keeps alive and in place.
#[allow(unsafe_code)]
unsafe impl Send for Map {}
// SAFETY: the view is read-only; `slice` makes its caller answer for concurrent writes.
#[allow(unsafe_code)]
unsafe impl Sync for Map {}

impl Map {
    /// A view of `len` bytes from `start`, which `keep` keeps alive and in place.
    ///
    /// # Safety
    ///
    /// `start..start + len` is readable until `keep` is dropped.
    #[allow(unsafe_code)]
    pub unsafe fn new(
        start: *const u8,
        len: usize,
        keep: Box<dyn std::any::Any + Send + Sync>,
    ) -> Self {
        Map { start, len, _keep: keep }
    }

    /// Length of the view in bytes.
    #[expect(clippy::len_without_is_empty, reason = "no file of ours is empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes `from..to`.
    ///
    /// # Safety
    ///
    /// Nobody writes these bytes while the slice is alive.
    #[inline]
    #[allow(unsafe_code)]
    unsafe fn slice(&self, from: usize, to: usize) -> &[u8] {
        assert!(from <= to && to <= self.len, "bytes {from}..{to} of a map of {}", self.len);
        // SAFETY: in bounds by the assertion, readable while `self` lives by the contract of
        // `new`, and unchanged by our own contract.
        unsafe { std::slice::from_raw_parts(self.start.add(from), to - from) }
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Map").field("len", &self.len).finish_non_exhaustive()
    }
}

/// The reading side of a file that grows up to its full length; shared freely.
#[derive(Debug)]
pub struct MappedFile {
    map: Map,
    file: Arc<dyn StorageFile>,
    /// The first failure of a sync. Held while one is under way, so that nobody can sync between a
    /// failure and its note.
    sync_failed: Mutex<Option<(io::ErrorKind, String)>>,
    /// Bytes below this offset never change again. Written by the one [`MappedWriter`] or [`MappedTail`]
    /// with Release, after the bytes; read with Acquire before they are touched.
    published: AtomicU64,
}

impl MappedFile {
    /// Maps `name` for reading, with everything below `published` readable.
    ///
    /// The caller vouches that no process changes the bytes below `published` any more.
    pub fn open(storage: &dyn Storage, name: &str, published: u64) -> io::Result<Arc<Self>> {
        let file = storage.open(name, Access::Read)?;
        Self::over(file, published).map(Arc::new)
    }

    pub(crate) fn over(file: Arc<dyn StorageFile>, published: u64) -> io::Result<Self> {
        let map = file.map()?;
        if published > map.len() as u64 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{published} bytes expected, {} there", map.len()),
            ));
        }
        let sync_failed = Mutex::new(None);
        Ok(MappedFile { map, file, sync_failed, published: AtomicU64::new(published) })
    }

    /// The file that is mapped, for positioned reads: also if its name is gone.
    pub fn file(&self) -> &Arc<dyn StorageFile> {
        &self.file
    }

    /// Length of the file in bytes, written or not.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Whether the file has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Offset below which bytes can be read.
    #[inline]
    pub fn published(&self) -> u64 {
        // Acquire: pairs with the Release store in `MappedWriter::publish`; whoever sees the end
        // sees the bytes below it.
        self.published.load(Ordering::Acquire)
    }

    /// Moves the published end; for the one who may: see [`MappedWriter::publish`].
    fn publish(&self, end: u64) {
        assert!(end >= self.published(), "the published end never moves back");
        assert!(end <= self.len(), "the published end lies inside the file");
        // Release: pairs with the Acquire load in `published`; the writes and positioned reads before it
        // are visible through the map to whoever sees the new end.
        self.published.store(end, Ordering::Release);
    }

    /// All readable bytes.
    #[inline]
    #[allow(unsafe_code)]
    pub fn bytes(&self) -> &[u8] {
        let end = self.published() as usize;
        // SAFETY: bytes below the published end are never written again (module docs, 1 to 4).
        unsafe { self.map.slice(0, end) }
    }

    /// Makes what was written durable.
    ///
    /// A failure is final for this map of the file, whoever asks: the operating system may have let
    /// the bytes go, and another sync that succeeds would vouch for what is not there. So there is
    /// no other; the first failure is returned again.
    pub fn sync(&self) -> io::Result<()> {
        let mut failed = self.sync_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kind, text)) = &*failed {
            return Err(io::Error::new(*kind, text.clone()));
        }
        self.file.sync().inspect_err(|error| *failed = Some((error.kind(), error.to_string())))
    }
}

/// The writing side of a [`MappedFile`]; there is exactly one.
#[derive(Debug)]
pub struct MappedWriter {
    shared: Arc<MappedFile>,
}

impl MappedWriter {
    /// Creates `name` at its full length, all zeros.
    pub fn create(storage: &dyn Storage, name: &str, len: u64) -> io::Result<Self> {
        let file = storage.create(name, len)?;
        Ok(MappedWriter { shared: Arc::new(MappedFile::over(file, 0)?) })
    }

    /// Opens `name` to go on writing at `published`. The caller holds the directory lock, and
    /// there is no other writer of this file in the process. A file with another name is refused as
    /// invalid: writing it would change what is not ours.
    pub fn open(storage: &dyn Storage, name: &str, published: u64) -> io::Result<Self> {
        let file = storage.open(name, Access::Write)?;
        if file.is_linked()? {
            let text = format!("{name} has another name, so it cannot be written");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(MappedWriter { shared: Arc::new(MappedFile::over(file, published)?) })
    }

    /// The reading side.
    pub fn shared(&self) -> &Arc<MappedFile> {
        &self.shared
    }

    /// As [`StorageFile::reserve`].
    pub fn reserve(&mut self) -> io::Result<bool> {
        self.shared.file.reserve()
    }

    /// Writes `bytes` at `offset`, which is not below the published end.
    ///
    /// # Panics
    ///
    /// If the bytes lie below the published end or beyond the file: both would break readers.
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert!(offset >= self.shared.published(), "a published byte is never written again");
        assert!(offset + bytes.len() as u64 <= self.shared.len(), "the file never grows");
        write_all_at(&*self.shared.file, bytes, offset)
    }

    /// How many of `bytes`, from the first on, stand on the device at `offset` already: a process before this one may
    /// have written them, and another may show them, so they are not to be written again. What only the cache has,
    /// after a failed sync, has to be.
    pub fn standing_len(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut there = vec![0; bytes.len()];
        read_device_exact_at(&*self.shared.file, &mut there, offset)?;
        Ok(there.iter().zip(bytes).take_while(|(there, wanted)| there == wanted).count())
    }

    /// Makes everything below `end` readable, for good.
    ///
    /// # Panics
    ///
    /// If the end moves backwards or beyond the file.
    pub fn publish(&mut self, end: u64) {
        self.shared.publish(end);
    }
}

/// The growing end of a file that another process writes. There is one for each [`MappedFile`], and it
/// alone moves the published end.
#[derive(Debug)]
pub struct MappedTail {
    shared: Arc<MappedFile>,
}

impl MappedTail {
    /// Maps `file` for reading, with everything below `published` readable.
    ///
    /// The caller vouches that no process changes the bytes below `published` any more.
    pub fn over(file: Arc<dyn StorageFile>, published: u64) -> io::Result<Self> {
        Ok(MappedTail { shared: Arc::new(MappedFile::over(file, published)?) })
    }

    /// Of a file that this process does not write, and that has no other tail.
    pub(crate) fn of(shared: Arc<MappedFile>) -> Self {
        MappedTail { shared }
    }

    /// The reading side.
    pub fn shared(&self) -> &Arc<MappedFile> {
        &self.shared
    }

    /// Copies what stands in the file from `offset` on now, published or not, whoever writes it.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        read_exact_at(&*self.shared.file, buf, offset)
    }

    /// Makes everything below `end` readable, for good.
    ///
    /// The caller vouches that no process changes the bytes below `end` any more.
    ///
    /// # Panics
    ///
    /// If the end moves backwards or beyond the file.
    pub fn publish(&mut self, end: u64) {
        self.shared.publish(end);
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStorage;
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// A file whose first sync fails and whose later ones would succeed, as the kernel's do.
    #[derive(Debug)]
    struct FailsOnce {
        inner: Arc<dyn StorageFile>,
        syncs: AtomicUsize,
    }

    impl StorageFile for FailsOnce {
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
            self.inner.write_at(buf, offset)
        }

        fn sync(&self) -> io::Result<()> {
            match self.syncs.fetch_add(1, Ordering::Relaxed) {
                0 => Err(io::Error::other("the device is gone")),
                _ => Ok(()),
            }
        }

        fn map(&self) -> io::Result<Map> {
            self.inner.map()
        }
    }

    /// With buffered durability two threads may sync a segment: the writer, and whoever writes a
    /// checkpoint. The second must not take the kernel's word after the first has met an error.
    #[test]
    fn a_failed_sync_is_never_tried_again_by_anybody() {
        let inner = MemoryStorage::new().create("file", 4096).expect("creates");
        let file = Arc::new(FailsOnce { inner, syncs: AtomicUsize::new(0) });
        let mapped = MappedFile::over(Arc::clone(&file) as Arc<dyn StorageFile>, 0).expect("maps");
        for _ in 0..3 {
            let error = mapped.sync().expect_err("the first failure stands");
            assert_eq!(error.to_string(), "the device is gone");
        }
        assert_eq!(file.syncs.load(Ordering::Relaxed), 1);
    }
}
