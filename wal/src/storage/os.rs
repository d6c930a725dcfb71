//! A directory of the operating system.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Access, LockAttempt, Map, Storage, StorageFile};

/// Alignment of direct reads: a multiple of every common logical block size.
const DIRECT_ALIGN: usize = 4096;
/// Bytes of one direct read.
const DIRECT_LEN: usize = 1 << 20;

/// A directory of the operating system.
#[derive(Debug, Clone)]
pub struct OsStorage {
    dir: PathBuf,
}

impl OsStorage {
    /// The existing directory `dir`.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        if !fs::metadata(&dir)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(OsStorage { dir })
    }

    /// The directory `dir`, which is created, with its parents, if it is missing.
    pub fn create(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        if !dir.is_dir() {
            fs::create_dir_all(&dir)?;
            // The directory itself is an entry of its parent and must survive power loss too.
            if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        Self::open(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Storage for OsStorage {
    fn describe(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>> {
        let path = self.path(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        if let Err(error) = file.set_len(len) {
            // Half a file under a good name would be found again by the next opening.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Arc::new(OsFile { file, path }))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let path = self.path(name);
        let file = OpenOptions::new().read(true).write(access == Access::Write).open(&path)?;
        Ok(Arc::new(OsFile { file, path }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn create_folder(&self, name: &str) -> io::Result<()> {
        match fs::create_dir(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    fn sync_folder(&self, name: &str) -> io::Result<()> {
        File::open(self.path(name))?.sync_all()
    }

    fn try_lock(&self, name: &str, holder: &str) -> io::Result<LockAttempt> {
        // The file is never deleted, so the lock on its inode is the lock on the store.
        let path = self.path(name);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                // For people, so a full disk is no reason to refuse.
                let _ = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
                Ok(LockAttempt::Held(Box::new(file)))
            }
            Err(TryLockError::WouldBlock) => {
                file.seek(SeekFrom::Start(0))?;
                // The text is for people: whatever it is, the lock is held.
                Ok(LockAttempt::Busy(holder_text(file)?))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    #[cfg(target_os = "linux")]
    fn lock_holder(&self, name: &str) -> io::Result<Option<String>> {
        let file = match File::open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let metadata = file.metadata()?;
        let (device, inode) = (metadata.dev(), metadata.ino());
        let device = format!("{:02x}:{:02x}", rustix::fs::major(device), rustix::fs::minor(device));
        let holder = holder_text(file)?;
        // To try the lock would take it for a moment, and keep out who opens the store just then. The kernel lists the
        // locks; without `/proc`, nobody can tell.
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let is_held = locks.lines().filter_map(Flock::parse).any(|lock| {
            // Some file systems list another device than their files say. Then the process has to be the one that the file names.
            let is_named = || holder.split(' ').any(|word| word == lock.process);
            lock.inode == inode && (lock.device == device || is_named())
        });
        Ok(is_held.then_some(holder))
    }

    #[cfg(target_os = "linux")]
    fn watch(&self) -> io::Result<Option<Arc<dyn super::Watch>>> {
        Ok(Some(Arc::new(super::inotify::DirectoryWatch::new(&self.dir)?)))
    }
}

/// What the holder of a lock wrote.
fn holder_text(file: File) -> io::Result<String> {
    let mut text = Vec::new();
    file.take(256).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// An exclusive lock, as the kernel lists it.
#[cfg(target_os = "linux")]
struct Flock<'a> {
    process: &'a str,
    device: &'a str,
    inode: u64,
}

#[cfg(target_os = "linux")]
impl<'a> Flock<'a> {
    /// Reads a line like `1: FLOCK  ADVISORY  WRITE 3123 fe:00:6463511 0 EOF`. Who waits for a lock has an arrow in the
    /// second place.
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace().skip(1);
        for expected in ["FLOCK", "ADVISORY", "WRITE"] {
            (words.next()? == expected).then_some(())?;
        }
        let process = words.next()?;
        let (device, inode) = words.next()?.rsplit_once(':')?;
        Some(Flock { process, device, inode: inode.parse().ok()? })
    }
}

#[derive(Debug)]
struct OsFile {
    file: File,
    path: PathBuf,
}

impl OsFile {
    /// Reads through a direct descriptor, which no cache can answer.
    fn read_direct(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let direct = OpenOptions::new().read(true).custom_flags(flags).open(&self.path)?;
        let skip = (offset % DIRECT_ALIGN as u64) as usize;
        let want = (buf.len() + skip).min(DIRECT_LEN).next_multiple_of(DIRECT_ALIGN);
        let mut space = vec![0; want + DIRECT_ALIGN];
        let pad = space.as_ptr().align_offset(DIRECT_ALIGN);
        let aligned = &mut space[pad..pad + want];
        let read = direct.read_at(aligned, offset - skip as u64)?;
        let got = read.saturating_sub(skip).min(buf.len());
        buf[..got].copy_from_slice(&aligned[skip..skip + got]);
        Ok(got)
    }
}

impl StorageFile for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.read_direct(buf, offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                // The file system has no direct reads (tmpfs has not): drop the cached pages,
                // which works unless somebody else maps them, and read again.
                let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
                self.file.read_at(buf, offset)
            }
            result => result,
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.file.write_at(buf, offset)
    }

    #[cfg(target_os = "linux")]
    fn reserve(&self) -> io::Result<bool> {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(&self.file, FallocateFlags::empty(), 0, self.len()?) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn is_linked(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() > 1)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// For the kernel it is the same as `madvise` with `MADV_WILLNEED` over a map of the file.
    fn will_need(&self, offset: u64, len: u64) {
        let len = std::num::NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(&self.file, offset, len, rustix::fs::Advice::WillNeed);
    }

    #[allow(unsafe_code)]
    fn map(&self) -> io::Result<Map> {
        // SAFETY: the map is only read through `MappedFile`, whose module docs state why the bytes
        // that it shows do not change, and what is assumed of other programs.
        let map = unsafe { memmap2::MmapOptions::new().map(&self.file)? };
        let (start, len) = (map.as_ptr(), map.len());
        // SAFETY: the map stays where it is until it is dropped, wherever its handle moves.
        Ok(unsafe { Map::new(start, len, Box::new(map)) })
    }
}
