//! A log that does not begin with its first segment: where it begins, and what ordering needs of the rest.
//!
//! A *trim* gives up the segments before a *trim point*, the beginning of a segment. One file says so. It is
//! written beside the old one and renamed over it: that rename is the trim. Only then are the segments
//! unlinked ([`retire`]), and a crash in between leaves files that are no part of the log any more.
//!
//! Deliberately not here: what may be given up, and what the body of the file means. The engine knows.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::error::OpenError;
use crate::format::{ALIGN, Fault, SEGMENT_HEADER_LEN};
use crate::name;
use crate::recover::segment_numbers;
use crate::segment::Segment;
use crate::storage::{
    Access, MappedFile, Storage, StorageFile, read_exact_at, remove_if_there, write_all_at,
};

const MAGIC: [u8; 8] = *b"THALWEGT";
const VERSION: u32 = 1;
/// Bytes of the file before its body.
pub const TRIM_HEADER_LEN: u64 = 80;
/// Offset of the header's checksum: in every version, as are the magic and the version.
const CRC_AT: usize = TRIM_HEADER_LEN as usize - 4;
/// No log has ever come so far; sums with such a position do not overflow.
const POSITION_MAX: u64 = 1 << 62;
/// The body is written in pieces of this many bytes, however small those are that it is given.
const WRITE_LEN: usize = 1 << 20;

/// Where a log begins, and what the segment before that was: its first segment has to follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrimPoint {
    /// Number of the segment that the log begins with, at least 2.
    pub segment: u64,
    /// Its base. Nothing below this position is part of the log.
    pub position: u64,
    /// Position at which the frames of the segment before it ended.
    pub previous_end: u64,
    /// Salt of the segment before it.
    pub previous_salt: u64,
}

impl TrimPoint {
    /// The trim after which the log begins with `segment`, which its owner has opened; nothing for
    /// segment 1, before which there is nothing to trim.
    pub fn before(segment: &Segment) -> Option<TrimPoint> {
        let header = segment.header();
        let point = TrimPoint {
            segment: header.number,
            position: header.base,
            previous_end: header.previous_end,
            previous_salt: header.previous_salt,
        };
        point.is_possible().then_some(point)
    }

    /// The trim after which the log begins behind all of `segment`, its last, which ends at `end`: with a segment that
    /// [`begin_behind`](crate::begin_behind) makes.
    pub fn behind(segment: &Segment, end: u64) -> Option<TrimPoint> {
        let point = TrimPoint {
            segment: segment.number() + 1,
            position: segment.limit(),
            previous_end: end,
            previous_salt: segment.header().salt,
        };
        point.is_possible().then_some(point)
    }

    /// Where the log in `storage` begins; nothing if it was never trimmed.
    ///
    /// # Errors
    ///
    /// As for [`Trimmed::open`].
    pub fn read(storage: &dyn Storage) -> Result<Option<TrimPoint>, OpenError> {
        Ok(TrimHeader::read(storage)?.map(|header| header.point))
    }

    /// Whether a log can begin so.
    fn is_possible(&self) -> bool {
        self.segment > 1
            // A segment is at least as long as its header.
            && self.segment - 1 <= self.position / SEGMENT_HEADER_LEN
            && self.position <= POSITION_MAX
            && self.position.is_multiple_of(ALIGN)
            && self.previous_end.is_multiple_of(ALIGN)
            && (SEGMENT_HEADER_LEN..=self.position).contains(&self.previous_end)
    }
}

/// What the file says before its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TrimHeader {
    pub(crate) store_id: [u8; 16],
    pub(crate) point: TrimPoint,
    body_len: u64,
    body_crc: u32,
}

impl TrimHeader {
    fn encode(&self) -> [u8; TRIM_HEADER_LEN as usize] {
        let mut bytes = [0; TRIM_HEADER_LEN as usize];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        // 12..16: reserved, zero.
        bytes[16..32].copy_from_slice(&self.store_id);
        bytes[32..40].copy_from_slice(&self.point.segment.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.point.position.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.point.previous_end.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.point.previous_salt.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header of a file that is `file_len` bytes long.
    fn decode(bytes: &[u8; TRIM_HEADER_LEN as usize], file_len: u64) -> Result<Self, Problem> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        if bytes[0..8] != MAGIC {
            return Err(Problem::Fault(Fault::NoMagic));
        }
        if u32_at(CRC_AT) != crc32c::crc32c(&bytes[..CRC_AT]) {
            return Err(Problem::Fault(Fault::Checksum));
        }
        if u32_at(8) != VERSION {
            return Err(Problem::Version(u32_at(8)));
        }
        let header = TrimHeader {
            store_id: bytes[16..32].try_into().expect("sixteen bytes"),
            point: TrimPoint {
                segment: u64_at(32),
                position: u64_at(40),
                previous_end: u64_at(48),
                previous_salt: u64_at(56),
            },
            body_len: u64_at(64),
            body_crc: u32_at(72),
        };
        if !header.point.is_possible() {
            return Err(Problem::Fault(Fault::Position));
        }
        match file_len.checked_sub(TRIM_HEADER_LEN) {
            Some(len) if len < header.body_len => Err(Problem::Fault(Fault::Short)),
            Some(len) if len > header.body_len => Err(Problem::Fault(Fault::Long)),
            _ => Ok(header),
        }
    }

    fn read_from(file: &dyn StorageFile) -> io::Result<Result<Self, Problem>> {
        let len = file.len()?;
        if len < TRIM_HEADER_LEN {
            return Ok(Err(Problem::Fault(Fault::Short)));
        }
        let mut bytes = [0; TRIM_HEADER_LEN as usize];
        read_exact_at(file, &mut bytes, 0)?;
        Ok(Self::decode(&bytes, len))
    }

    /// What the directory says; nothing if nothing was ever trimmed. The body is not looked at.
    pub(crate) fn read(storage: &dyn Storage) -> Result<Option<Self>, OpenError> {
        Ok(open(storage)?.map(|opened| opened.header))
    }
}

/// Why a file does not say where the log begins.
#[derive(Debug, Clone, Copy)]
enum Problem {
    Fault(Fault),
    Version(u32),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Fault(Fault::NoMagic) => f.write_str("it is no file of that kind"),
            Problem::Fault(fault) => fault.fmt(f),
            Problem::Version(version) => {
                write!(f, "it has version {version}, and this build reads version {VERSION}")
            }
        }
    }
}

/// The file, open, and its header.
struct Opened {
    header: TrimHeader,
    file: Arc<dyn StorageFile>,
}

/// Nothing, if there is no such file.
fn open(storage: &dyn Storage) -> Result<Option<Opened>, OpenError> {
    let path = || storage.describe(name::trimmed());
    let failed = |source| OpenError::Io { context: format!("reading {}", path()), source };
    let file = match storage.open(name::trimmed(), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(failed)?,
    };
    match TrimHeader::read_from(&*file).map_err(failed)? {
        Ok(header) => Ok(Some(Opened { header, file })),
        Err(problem) => Err(OpenError::Trimmed { file: path(), detail: problem.to_string() }),
    }
}

/// What the directory says of the beginning of the log, mapped. Stays as it is when the file is replaced.
#[derive(Debug)]
pub struct Trimmed {
    header: TrimHeader,
    file: Arc<MappedFile>,
    path: String,
}

impl Trimmed {
    /// Opens the file; nothing if nothing was ever trimmed. Reads the header and not the body, which can be
    /// long: see [`Trimmed::verify_body`].
    ///
    /// # Errors
    ///
    /// [`OpenError::Trimmed`], if the header is damaged, the file has another length than it says, or a later
    /// version has written it; [`OpenError::Io`]. Whose it is, the log says: compare [`Trimmed::store_id`].
    pub fn open(storage: &dyn Storage) -> Result<Option<Self>, OpenError> {
        let Some(Opened { header, file }) = open(storage)? else { return Ok(None) };
        let path = storage.describe(name::trimmed());
        // Nobody writes it under this name: it is written under another, and renamed.
        let file = MappedFile::over(file, TRIM_HEADER_LEN + header.body_len)
            .map_err(OpenError::io(format!("mapping {path}")))?;
        Ok(Some(Trimmed { header, file: Arc::new(file), path }))
    }

    /// Where the log begins.
    pub fn point(&self) -> TrimPoint {
        self.header.point
    }

    /// Identity of the store that was trimmed.
    pub fn store_id(&self) -> [u8; 16] {
        self.header.store_id
    }

    /// The file, which stays as it is when another takes its name.
    pub fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }

    /// What the engine has written, as it is mapped: it begins at an address that is a multiple of 8, and is
    /// not verified.
    pub fn body(&self) -> &[u8] {
        let (from, len) = (TRIM_HEADER_LEN as usize, self.header.body_len as usize);
        &self.file.bytes()[from..from + len]
    }

    /// Compares the whole body with its checksum, which reads all of it.
    ///
    /// # Errors
    ///
    /// [`OpenError::Trimmed`], if it is damaged.
    pub fn verify_body(&self) -> Result<(), OpenError> {
        if crc32c::crc32c(self.body()) == self.header.body_crc {
            return Ok(());
        }
        let detail = Fault::Checksum.to_string();
        Err(OpenError::Trimmed { file: self.path.clone(), detail })
    }
}

/// Writes where the log is to begin, piece by piece. Nothing is trimmed before [`TrimWriter::finish`]; if
/// this is dropped before, what was written is taken away again.
pub struct TrimWriter<'a> {
    storage: &'a dyn Storage,
    file: Arc<dyn StorageFile>,
    header: TrimHeader,
    /// What was given and is not in the file yet.
    unwritten: Vec<u8>,
    /// Offset in the file at which that goes.
    offset: u64,
    is_synced: bool,
    is_renamed: bool,
}

impl fmt::Debug for TrimWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrimWriter").field("point", &self.header.point).finish_non_exhaustive()
    }
}

impl<'a> TrimWriter<'a> {
    /// Begins the file of a trim at `point`, with a body of `body_len` bytes. The caller holds the
    /// [`WriteLock`](crate::WriteLock), and `point` is of the log that is in `storage`.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput), if no log can begin at `point`, or the log begins later already; or the file
    /// cannot be made.
    pub fn create(
        storage: &'a dyn Storage,
        store_id: [u8; 16],
        point: TrimPoint,
        body_len: u64,
    ) -> io::Result<Self> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
        if !point.is_possible() {
            return Err(invalid("no log can begin there"));
        }
        // One that is damaged may be replaced.
        if let Ok(Some(known)) = TrimHeader::read(storage)
            && (known.point.segment > point.segment || known.store_id != store_id)
        {
            return Err(invalid("the log begins later already, or is another store's"));
        }
        let len = body_len.checked_add(TRIM_HEADER_LEN).filter(|&len| len <= i64::MAX as u64);
        let len = len.ok_or_else(|| invalid("no file is as long"))?;
        remove_if_there(storage, name::trimmed_new())?;
        let file = storage.create(name::trimmed_new(), len)?;
        let header = TrimHeader { store_id, point, body_len, body_crc: 0 };
        let (unwritten, offset) = (Vec::new(), TRIM_HEADER_LEN);
        let (is_synced, is_renamed) = (false, false);
        Ok(TrimWriter { storage, file, header, unwritten, offset, is_synced, is_renamed })
    }

    /// Adds `bytes` to the body.
    ///
    /// # Errors
    ///
    /// As writing; or [`InvalidInput`](io::ErrorKind::InvalidInput), if the body gets longer than was said. Then this is of no
    /// more use.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = TRIM_HEADER_LEN + self.header.body_len - self.offset;
        if (self.unwritten.len() + bytes.len()) as u64 > room {
            let text = "the body gets longer than was said";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.header.body_crc = crc32c::crc32c_append(self.header.body_crc, bytes);
        if self.unwritten.len() + bytes.len() < WRITE_LEN {
            self.unwritten.extend_from_slice(bytes);
            return Ok(());
        }
        self.write_out()?;
        write_all_at(&*self.file, bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn write_out(&mut self) -> io::Result<()> {
        write_all_at(&*self.file, &self.unwritten, self.offset)?;
        self.offset += self.unwritten.len() as u64;
        self.unwritten.clear();
        Ok(())
    }

    /// Writes what is left, and makes it durable. The log begins where it began, and another trim can be tried.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput), if the body is shorter than was said, or as writing and syncing. Then this is
    /// of no more use.
    pub fn sync(&mut self) -> io::Result<()> {
        self.write_out()?;
        if self.offset != TRIM_HEADER_LEN + self.header.body_len {
            let text = "the body is shorter than was said";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        write_all_at(&*self.file, &self.header.encode(), 0)?;
        self.file.sync()?;
        self.is_synced = true;
        Ok(())
    }

    /// Trims: on return the log begins at the point, for good. The segments before it can be
    /// [retired](retire). Does what [`TrimWriter::sync`] does, if that was not called.
    ///
    /// # Errors
    ///
    /// As for [`TrimWriter::sync`]; or as renaming, and syncing the directory. Then the log
    /// may begin at the old place or at the new one, until it is opened again: nothing is to be
    /// retired, and no other trim tried, before that.
    pub fn finish(mut self) -> io::Result<()> {
        if !self.is_synced {
            self.sync()?;
        }
        self.storage.rename(name::trimmed_new(), name::trimmed())?;
        self.is_renamed = true;
        self.storage.sync_dir()
    }
}

impl Drop for TrimWriter<'_> {
    fn drop(&mut self) {
        if !self.is_renamed {
            // Without this a full disk would stay full of the attempt.
            let _ = self.storage.remove(name::trimmed_new());
        }
    }
}

/// Unlinks the segments with numbers below `below`, the oldest first: a trim has taken them out of the log.
/// Returns the bytes that this gives back, once nobody has maps of them; a file that has another
/// name gives back nothing. Maps stay valid.
///
/// The caller holds the [`WriteLock`](crate::WriteLock).
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput), if no trim says that the log begins there or later; or as the operations on files.
/// What is left is taken away by the next call, or when the log is opened for writing.
pub fn retire(storage: &dyn Storage, below: u64) -> io::Result<u64> {
    let trim = TrimHeader::read(storage).map_err(io::Error::other)?;
    if trim.is_none_or(|trim| trim.point.segment < below) {
        let text = format!("no trim says that the log begins with segment {below}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut numbers = segment_numbers(storage)?;
    numbers.retain(|&number| number < below);
    if numbers.is_empty() {
        return Ok(0);
    }
    // Before it is durable that they are no part of the log, none may go: whoever has renamed the file may
    // have died before that.
    storage.sync_dir()?;
    let mut given_back = 0;
    for number in numbers {
        let name = name::segment(number);
        let file = storage.open(&name, Access::Read)?;
        given_back += if file.is_linked()? { 0 } else { file.len()? };
        storage.remove(&name)?;
    }
    storage.sync_dir()?;
    Ok(given_back)
}

const _: () = assert!(TRIM_HEADER_LEN.is_multiple_of(ALIGN));
