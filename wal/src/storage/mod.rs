//! The seam between the log and the world: one directory, its files, and their maps.
//!
//! All file access of the workspace goes through [`Storage`], and what is left to chance: [`OsStorage`] is a directory of the
//! operating system, [`MemoryStorage`] lives in memory, and a simulated disk with faults is a third
//! implementation away. Writes may be short and reads may be short, as the operating system's are;
//! [`write_all_at`] and [`read_exact_at`] finish them.
//!
//! Deliberately not here: threads, retries, caching, and any knowledge of what a file means.

#[cfg(target_os = "linux")]
mod inotify;
mod mapped;
mod memory;
mod os;

use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use mapped::{Map, MappedFile, MappedTail, MappedWriter};
pub use memory::MemoryStorage;
pub use os::OsStorage;

/// Whole files are read in pieces of this many bytes.
const READ_LEN: usize = 1 << 20;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// For reading only.
    Read,
    /// For reading and writing.
    Write,
}

/// One directory of files. Names come from [`crate::name`].
pub trait Storage: Debug + Send + Sync + 'static {
    /// The name of `name` for people: a path where there is one.
    fn describe(&self, name: &str) -> String;

    /// Creates a file of exactly `len` bytes that read as zeros. Fails if it exists. Durable only
    /// after [`StorageFile::sync`] and [`Storage::sync_dir`].
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>>;

    /// Opens an existing file.
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>>;

    /// Names of all files, in no particular order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Renames a file, replacing `to`. Durable after [`Storage::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Unlinks a file. Maps of it stay valid. Durable after [`Storage::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;

    /// Creates a folder for files whose names begin with its own and a slash; that it is there is as good.
    /// A storage without folders has nothing to do.
    fn create_folder(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    /// As [`Storage::sync_dir`], for what is in a folder.
    fn sync_folder(&self, _name: &str) -> io::Result<()> {
        self.sync_dir()
    }

    /// Takes the lock file `name` for this process, or says who has it. Never waits. The lock
    /// ends with the returned value, or with the process.
    fn try_lock(&self, name: &str, holder: &str) -> io::Result<LockAttempt>;

    /// What the holder of the lock file `name` wrote, if somebody has the lock now. Takes no lock itself, so it keeps
    /// nobody out. `None` if nobody has it, or this storage cannot tell.
    fn lock_holder(&self, _name: &str) -> io::Result<Option<String>> {
        Ok(None)
    }

    /// The directory of the operating system that this is, if it is one: see [`link`].
    fn directory(&self) -> Option<&Path> {
        None
    }

    /// Begins to look out for changes of the files. `None` if this storage cannot tell: then one has to look
    /// from time to time. Needs the right to read the directory, and costs whoever writes next to nothing.
    fn watch(&self) -> io::Result<Option<Arc<dyn Watch>>> {
        Ok(None)
    }

    /// A random number: identities of stores and salts of segments come from it, so it must not repeat
    /// itself from one process to the next. By default from the operating system.
    fn random(&self) -> u64 {
        // The standard library seeds each `RandomState` from the operating system.
        RandomState::new().build_hasher().finish()
    }
}

/// Looks out for changes of the files of a directory, whichever process makes them. One thread waits, any may
/// wake it.
///
/// Nothing is missed: who makes the watch, then looks at the files, then waits, is woken by what has changed
/// since the watch was made, and so on from one wait to the next.
pub trait Watch: Debug + Send + Sync {
    /// Blocks until a file whose name `is_wanted` has been made, written or renamed to since the last call, until
    /// somebody calls [`Watch::wake`], or until `timeout` is over. May return for no reason.
    ///
    /// # Errors
    ///
    /// The watch is over, because the directory is gone, say. It tells nothing any more.
    fn wait(&self, is_wanted: &dyn Fn(&str) -> bool, timeout: Duration) -> io::Result<()>;

    /// Ends the wait that is under way; if there is none, the next.
    fn wake(&self);
}

/// What [`Storage::try_lock`] came to.
#[derive(Debug)]
pub enum LockAttempt {
    /// The lock is ours until the value is dropped.
    Held(Box<dyn Debug + Send + Sync>),
    /// Somebody has it; the text is what the holder wrote.
    Busy(String),
}

/// One file.
#[expect(clippy::len_without_is_empty, reason = "a file's length comes from a system call")]
pub trait StorageFile: Debug + Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Reads at most `buf.len()` bytes at `offset`; 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// As [`StorageFile::read_at`], but from the device, past any cache of the operating system:
    /// after a failed sync the cache may hold bytes that the device does not.
    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at most `buf.len()` bytes at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;

    /// Sets aside the space for the whole file, which goes on reading as zeros, so that no write to it
    /// meets a full disk. `false` if this storage cannot.
    fn reserve(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Whether the file has another name, in whatever directory: what is written to it would show there
    /// too, so [`MappedWriter::open`] refuses it.
    fn is_linked(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Makes the file's data, and the length it needs to be read back, durable. A failure is
    /// final: what was written since the last success may or may not be there, and another
    /// attempt that succeeds proves nothing.
    fn sync(&self) -> io::Result<()>;

    /// Maps the whole file for reading.
    fn map(&self) -> io::Result<Map>;

    /// Says that `len` bytes from `offset` on, at least one, will soon be read, through a map or without. A hint: does not wait until
    /// they are there, though perhaps until the device takes the request, and may do nothing.
    fn will_need(&self, _offset: u64, _len: u64) {}
}

/// Writes all of `buf` at `offset`.
pub fn write_all_at(file: &dyn StorageFile, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.write_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                buf = &buf[written..];
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `buf` from `offset`; an early end of the file is an error.
pub fn read_exact_at(file: &dyn StorageFile, buf: &mut [u8], offset: u64) -> io::Result<()> {
    read_full(buf, offset, |buf, offset| file.read_at(buf, offset))
}

/// Fills `buf` from `offset`, past the operating system's cache.
pub(crate) fn read_device_exact_at(
    file: &dyn StorageFile,
    buf: &mut [u8],
    offset: u64,
) -> io::Result<()> {
    read_full(buf, offset, |buf, offset| file.read_device_at(buf, offset))
}

fn read_full(
    mut buf: &mut [u8],
    mut offset: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while !buf.is_empty() {
        match read(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buf = &mut buf[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Longest file that is read as a whole, in bytes. None of ours comes near it; one that seems to be longer may
/// be a hole, which takes no space and as much memory.
pub const READ_FILE_LEN_MAX: u64 = 1 << 30;

/// Reads a whole file.
///
/// # Errors
///
/// As reading; or [`FileTooLarge`](io::ErrorKind::FileTooLarge), beyond [`READ_FILE_LEN_MAX`].
pub fn read_file(storage: &dyn Storage, name: &str) -> io::Result<Vec<u8>> {
    let file = storage.open(name, Access::Read)?;
    let len = file.len()?;
    if len > READ_FILE_LEN_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut piece = vec![0; len.min(READ_LEN)];
    while bytes.len() < len {
        let want = piece.len().min(len - bytes.len());
        read_exact_at(&*file, &mut piece[..want], bytes.len() as u64)?;
        bytes.extend_from_slice(&piece[..want]);
    }
    Ok(bytes)
}

/// Unlinks a file; that it is not there is as good.
pub fn remove_if_there(storage: &dyn Storage, name: &str) -> io::Result<()> {
    match storage.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Gives the file `name` of one storage the same name in another, without copying it. `false` if that
/// cannot be done there: they are on different devices, or no directories of the operating system, or
/// their file system has no links. Durable after [`Storage::sync_dir`].
///
/// Only for files that nobody will ever write again, whatever becomes of the two storages.
pub fn link(from: &dyn Storage, to: &dyn Storage, name: &str) -> io::Result<bool> {
    use io::ErrorKind::{AlreadyExists, NotFound, StorageFull};
    let (Some(from), Some(to)) = (from.directory(), to.directory()) else { return Ok(false) };
    match std::fs::hard_link(from.join(name), to.join(name)) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), AlreadyExists | NotFound | StorageFull) => Err(error),
        // Whatever is in the way of a link: if it is in the way of a copy too, that will say so.
        Err(_) => Ok(false),
    }
}
