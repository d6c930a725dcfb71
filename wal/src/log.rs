//! The log: opened for reading or for writing, appended to frame by frame.
//!
//! [`LogWriter`] has no threads and never waits for anything but the device. Whoever drives it
//! decides what goes into a frame, when to sync, and on which thread a spare segment is prepared.

use std::io;
use std::sync::Arc;

use crate::error::{AppendError, OpenError, is_exhausted};
use crate::format::{FRAME_HEADER_LEN, FRAME_LEN_MAX, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::frame::FrameBuf;
use crate::loss::Losses;
use crate::name;
use crate::recover::{Recovered, TailHint, TailReport, mapped_whole, recover};
use crate::segment::{Damage, Segment};
use crate::storage::{LockAttempt, MappedWriter, Storage, remove_if_there};
use crate::trim::{TrimPoint, retire};

/// Shortest segment that is made by itself, in bytes.
pub const SEGMENT_LEN_MIN: u64 = 1 << 20;

/// Longest segment, in bytes. Opening a log may hold as much of its last segment in memory, so no header is
/// believed beyond this: a file can be of any length and take no space.
pub const SEGMENT_LEN_MAX: u64 = 1 << 30;

/// Syncs of as many bytes as this are large: their data outweighs the metadata that goes with it.
const LARGE_SYNC_BYTES: u64 = 512 << 10;

/// Zeros are written ahead in pieces of this many bytes.
const ZERO_LEN: usize = 1 << 20;

/// The exclusive right to write a store. Ends when dropped, or with the process.
#[derive(Debug)]
pub struct WriteLock {
    _held: Box<dyn std::fmt::Debug + Send + Sync>,
}

impl WriteLock {
    /// Takes the right at once or says who has it.
    pub fn acquire(storage: &dyn Storage) -> Result<Self, OpenError> {
        let path = storage.describe(name::LOCK);
        let holder = format!("process {}", std::process::id());
        match storage.try_lock(name::LOCK, &holder) {
            Ok(LockAttempt::Held(held)) => Ok(WriteLock { _held: held }),
            Ok(LockAttempt::Busy(holder)) => Err(OpenError::Locked { path, holder }),
            Err(source) => Err(OpenError::Io { context: format!("locking {path}"), source }),
        }
    }
}

/// A log that was opened for reading: what was durable when it was opened.
#[derive(Debug)]
pub struct LogReader {
    /// Identity of the store.
    pub store_id: [u8; 16],
    /// What is known to be lost.
    pub losses: Option<Arc<Losses>>,
    /// All segments that are there, in order: where some are missing, that is among the damage.
    pub segments: Vec<Arc<Segment>>,
    /// Position at which the log ends.
    pub end: u64,
    /// How it ends.
    pub tail: TailReport,
    /// Damage that was found, and worked around, while opening.
    pub damage: Vec<Damage>,
    /// Where the log begins, if it was trimmed.
    pub trim: Option<TrimPoint>,
}

impl LogReader {
    /// What derived files carry as the identity of their log: see [`identity`](crate::identity).
    pub fn identity(&self) -> [u8; 16] {
        crate::loss::identity(&self.store_id, self.losses.as_deref())
    }

    /// Opens the log that is there, which another process may be writing. Changes nothing.
    pub fn open(storage: &dyn Storage, hint: Option<TailHint>) -> Result<Self, OpenError> {
        let recovered = match recover(storage, hint, false)? {
            Some(recovered) => recovered,
            None => return Err(nothing_there(storage, hint)),
        };
        let Recovered { segments, end, report, damage, losses, trim, .. } = recovered;
        let store_id = segments[0].header().store_id;
        Ok(LogReader { store_id, losses, segments, end, tail: report, damage, trim })
    }
}

/// No segment was ever used: says whether this looks like a store at all.
pub(crate) fn nothing_there(storage: &dyn Storage, hint: Option<TailHint>) -> OpenError {
    let path = storage.describe("");
    let names = storage.list().unwrap_or_default();
    let mut kinds = names.iter().map(|name| name::kind(name));
    let of_a_log = |kind: name::Kind| {
        kind.is_derived() || matches!(kind, name::Kind::Trimmed | name::Kind::Facts(_))
    };
    if hint.is_some() || kinds.any(of_a_log) {
        return OpenError::SegmentMissing { file: storage.describe(&name::segment(1)) };
    }
    match names.iter().find(|name| name::kind(name) == name::Kind::Unknown) {
        Some(foreign) => OpenError::NotAStore { path, example: foreign.clone() },
        None => OpenError::Missing { path },
    }
}

/// How a log is opened for writing.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// Create the store if there is none.
    pub create: bool,
    /// Length that segments grow to, in bytes, rounded down to whole pages, at most [`SEGMENT_LEN_MAX`]. A store starts with
    /// segments of [`SEGMENT_LEN_MIN`] and makes them longer as it grows.
    pub segment_len_max: u64,
}

/// The one writer of a log.
#[derive(Debug)]
pub struct LogWriter {
    storage: Arc<dyn Storage>,
    options: LogOptions,
    active: Active,
    spare: Option<Spare>,
    /// A spare is being prepared elsewhere.
    spare_requested: bool,
    /// Where the next frame goes.
    end: u64,
    /// Everything below is durable. Trails `end` between append and sync.
    durable: u64,
    /// Syncs of the active segment.
    syncs: u64,
    /// The log has to go on in a new segment, for which there was no room when it was opened. Until there
    /// is one, nothing is written.
    must_roll: bool,
    failed: bool,
    /// Position at which the log begins.
    begins: u64,
    /// The next segment forgets at least the ids of deliveries below this global sequence.
    forgotten: u64,
}

#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    file: MappedWriter,
}

impl Active {
    fn header(&self) -> &SegmentHeader {
        self.segment.header()
    }
}

/// How the space of a segment is prepared. Either way it is set aside, and reads as zeros.
///
/// Zeros that are written make later syncs cheap, since no metadata goes with them: twice as many where
/// a sync has 4 KiB, a quarter more at 100 KiB. But all of the log is then written twice, which costs
/// more than it saves where syncs are large: a sixth, at 3 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preparation {
    Fill,
    Reserve,
}

/// A segment that was prepared ahead: zeros on the device under its future name.
#[derive(Debug)]
pub struct Spare {
    number: u64,
    file: MappedWriter,
}

/// What a spare segment has to look like. Preparing it takes no part of the writer, so any
/// thread may do it while the writer goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpareRequest {
    number: u64,
    len: u64,
    preparation: Preparation,
}

impl SpareRequest {
    /// Creates the file and sets its space aside, which takes time and may find the disk full. Asks
    /// now and then whether to go on; if not, it ends with [`io::ErrorKind::Interrupted`] and leaves
    /// nothing behind.
    pub fn prepare(self, storage: &dyn Storage, go_on: &dyn Fn() -> bool) -> io::Result<Spare> {
        let (new_name, name) = (name::segment_new(self.number), name::segment(self.number));
        remove_if_there(storage, &new_name)?;
        let prepared = MappedWriter::create(storage, &new_name, self.len).and_then(|mut file| {
            if self.preparation == Preparation::Fill || !file.reserve()? {
                fill_with_zeros(&mut file, go_on)?;
            }
            file.shared().sync()?;
            // Only a file of full length ever bears the name of a segment.
            storage.rename(&new_name, &name)?;
            storage.sync_dir()?;
            Ok(file)
        });
        match prepared {
            Ok(file) => Ok(Spare { number: self.number, file }),
            Err(error) => {
                // Without this a full disk would stay full of the attempt.
                let _ = storage.remove(&new_name);
                Err(error)
            }
        }
    }
}

fn fill_with_zeros(file: &mut MappedWriter, go_on: &dyn Fn() -> bool) -> io::Result<()> {
    let zeros = vec![0; ZERO_LEN];
    let len = file.shared().len();
    let mut offset = 0;
    while offset < len {
        if !go_on() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let piece = (len - offset).min(ZERO_LEN as u64) as usize;
        file.write_at(&zeros[..piece], offset)?;
        offset += piece as u64;
    }
    Ok(())
}

/// A log that was opened for writing.
#[derive(Debug)]
pub struct OpenedLog {
    /// Its one writer.
    pub writer: LogWriter,
    /// Identity of the store.
    pub store_id: [u8; 16],
    /// What is known to be lost.
    pub losses: Option<Arc<Losses>>,
    /// All segments, in order; the last is the one that is written.
    pub segments: Vec<Arc<Segment>>,
    /// What was done to the end of the log.
    pub tail: TailReport,
    /// Where the log begins, if it was trimmed.
    pub trim: Option<TrimPoint>,
}

/// Longest segment that an opening makes, in bytes: it is filled while somebody waits. The next one is prepared beside, and there is
/// room for what comes until it is there.
const OPENED_LEN_MAX: u64 = 8 << 20;

/// Where a frame was written. It is not durable before the next [`LogWriter::sync`].
#[derive(Debug)]
pub struct Appended {
    /// Position of the frame.
    pub position: u64,
    /// Position one past the frame.
    pub end: u64,
    /// The new segment, if the frame is the first of one.
    pub rolled: Option<Arc<Segment>>,
}

impl LogWriter {
    /// Opens the log for writing. The caller holds the [`WriteLock`], and keeps it.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: LogOptions,
        hint: Option<TailHint>,
    ) -> Result<OpenedLog, OpenError> {
        match recover(&*storage, hint, true)? {
            Some(recovered) => Self::resume(storage, options, recovered),
            None => {
                let problem = nothing_there(&*storage, hint);
                match problem {
                    OpenError::Missing { .. } if options.create => Self::create(storage, options),
                    problem => Err(problem),
                }
            }
        }
    }

    fn create(storage: Arc<dyn Storage>, options: LogOptions) -> Result<OpenedLog, OpenError> {
        let context = format!("creating {}", storage.describe(&name::segment(1)));
        let make = || {
            // A spare of an earlier attempt that ended before its header was written.
            remove_if_there(&*storage, &name::segment(1))?;
            let len = segment_len(0, &options, 0);
            let preparation = Preparation::Fill;
            let spare =
                SpareRequest { number: 1, len, preparation }.prepare(&*storage, &|| true)?;
            activate(&*storage, spare, new_store_id(&*storage), None, 0, 0)
        };
        let active = make().map_err(OpenError::io(context))?;
        let (store_id, end) = (active.header().store_id, active.segment.first());
        let segments = vec![Arc::clone(&active.segment)];
        let writer = Self::over(storage, options, active, end, 0);
        let (losses, trim) = (None, None);
        Ok(OpenedLog { writer, store_id, losses, segments, tail: TailReport::Created, trim })
    }

    fn resume(
        storage: Arc<dyn Storage>,
        options: LogOptions,
        recovered: Recovered,
    ) -> Result<OpenedLog, OpenError> {
        let Recovered { mut segments, end, report, appendable, spare, losses, .. } = recovered;
        let Recovered { trim, trimmed, .. } = recovered;
        let begins = trim.map_or(0, |trim| trim.position);
        // Whoever trimmed the log last may have died before it was done.
        let new = name::trimmed_new();
        remove_if_there(&*storage, new)
            .map_err(OpenError::io(format!("removing {}", storage.describe(new))))?;
        if let (Some(trim), false) = (trim, trimmed.is_empty()) {
            retire(&*storage, trim.segment)
                .map_err(OpenError::io("removing segments that were trimmed"))?;
        }
        let last = Arc::clone(segments.last().expect("a recovered log has a segment"));
        let number = last.number();
        if let Some(unused) = spare {
            // Its header may be torn, so it is made again when it is wanted.
            let name = name::segment(unused);
            remove_if_there(&*storage, &name)
                .map_err(OpenError::io(format!("removing {}", storage.describe(&name))))?;
        }
        let go_on_in = |segments: &mut Vec<Arc<Segment>>| {
            let name = name::segment(number);
            let published = end - last.base();
            let file = MappedWriter::open(&*storage, &name, published)
                .map_err(OpenError::io(format!("opening {}", storage.describe(&name))))?;
            segments.pop();
            let shared = Arc::clone(file.shared());
            let segment = Segment::new(last.header().clone(), shared, losses.as_ref());
            Ok(Active { segment: mapped_whole(&*storage, segment)?, file })
        };
        let mut must_roll = false;
        let active = if appendable {
            go_on_in(&mut segments)?
        } else {
            // Going on in a new segment seals the old one at `end`: whatever follows there is cut.
            let len = segment_len(last.limit() - begins, &options, 0).min(OPENED_LEN_MAX);
            let preparation = Preparation::Fill;
            let request = SpareRequest { number: number + 1, len, preparation };
            let context = format!("creating {}", storage.describe(&name::segment(number + 1)));
            match request.prepare(&*storage, &|| true) {
                // What there is can be read. The first frame that finds room seals the old one.
                Err(error) if is_full(&error) => {
                    must_roll = true;
                    go_on_in(&mut segments)?
                }
                prepared => {
                    let (store_id, last) = (last.header().store_id, Some(last.header()));
                    prepared
                        .and_then(|spare| activate(&*storage, spare, store_id, last, end, 0))
                        .map_err(OpenError::io(context))?
                }
            }
        };
        let end = end.max(active.segment.first());
        let store_id = active.header().store_id;
        segments.push(Arc::clone(&active.segment));
        let mut writer = Self::over(storage, options, active, end, begins);
        writer.must_roll = must_roll;
        Ok(OpenedLog { writer, store_id, losses, segments, tail: report, trim })
    }

    fn over(
        storage: Arc<dyn Storage>,
        options: LogOptions,
        active: Active,
        end: u64,
        begins: u64,
    ) -> Self {
        LogWriter {
            storage,
            options,
            active,
            spare: None,
            spare_requested: false,
            end,
            durable: end,
            syncs: 0,
            must_roll: false,
            failed: false,
            begins,
            forgotten: 0,
        }
    }

    /// Has the segments that are made from now on be as long as befits a log that begins where a trim says.
    pub fn trimmed(&mut self, point: &TrimPoint) {
        self.begins = point.position.min(self.active.segment.base());
    }

    /// Has the ids of deliveries with a global sequence below `below` be forgotten from the beginning of the
    /// next segment on, whenever the log comes to it. What was said before of more holds. Writes nothing: if the
    /// log is opened again before that, the segments that are there say how much is forgotten.
    pub fn forget(&mut self, below: u64) {
        self.forgotten = self.forgotten.max(below);
    }

    /// Whether the log has to go on in a new segment, for which there was no room when it was opened. It is
    /// not sealed at its end before that, so nobody may vouch for what stands behind it.
    pub fn must_roll(&self) -> bool {
        self.must_roll
    }

    fn has_room_for(&self, frame: &FrameBuf) -> bool {
        !self.must_roll && frame.byte_len() <= self.active.segment.limit() - self.end
    }

    /// Position at which the next frame begins, unless it starts a new segment.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Position below which everything is durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Writes `frame`, rolling to a new segment if it does not fit into this one.
    ///
    /// # Errors
    ///
    /// After [`AppendError::StorageFull`] and [`AppendError::Exhausted`] nothing was written and the writer
    /// is as before. After any other error it takes nothing more.
    ///
    /// # Panics
    ///
    /// If the frame needs a new segment while a spare is being prepared elsewhere: the driver asks
    /// [`LogWriter::awaits_spare`] first, and waits.
    pub fn append(&mut self, frame: &mut FrameBuf) -> Result<Appended, AppendError> {
        if self.failed {
            return Err(AppendError::Poisoned);
        }
        let rolled = match self.has_room_for(frame) {
            true => None,
            false => Some(self.roll(frame.byte_len())?),
        };
        let position = self.end;
        let header = self.active.header();
        let (salt, offset) = (header.salt, position - header.base);
        let bytes = frame.seal(salt, position, self.durable);
        let len = bytes.len() as u64;
        if let Err(error) = self.active.file.write_at(bytes, offset) {
            self.failed = true;
            return Err(AppendError::Failed(error));
        }
        self.end = position + len;
        Ok(Appended { position, end: self.end, rolled })
    }

    /// Goes on in a new segment, if there is a frame in this one; returns it. What is appended is durable then.
    ///
    /// # Errors
    ///
    /// As for [`LogWriter::append`].
    pub fn roll_now(&mut self) -> Result<Option<Arc<Segment>>, AppendError> {
        if self.failed {
            return Err(AppendError::Poisoned);
        }
        if self.end == self.active.segment.first() {
            return Ok(None);
        }
        self.roll(0).map(Some)
    }

    /// Whether a spare was asked for and has to be waited for before [`LogWriter::roll_now`].
    pub fn awaits_any_spare(&self) -> bool {
        self.spare_requested
    }

    /// Makes all appended frames durable and readable; returns the position below which all is.
    ///
    /// # Errors
    ///
    /// A failure is final: the writer takes nothing more, and nothing is tried again.
    pub fn sync(&mut self) -> Result<u64, AppendError> {
        if self.failed {
            return Err(AppendError::Poisoned);
        }
        if let Err(error) = self.active.file.shared().sync() {
            self.failed = true;
            return Err(AppendError::Failed(error));
        }
        self.durable = self.end;
        self.syncs += 1;
        self.show();
        Ok(self.durable)
    }

    /// Makes all appended frames readable without making them durable: for a store that was opened
    /// for buffered durability.
    pub fn show(&mut self) {
        let published = self.end - self.active.header().base;
        self.active.file.publish(published);
    }

    /// Whether a quarter of the active segment is used: early enough to prepare the next one, and
    /// late enough that a store which is opened for a few appends prepares none.
    pub fn is_spare_due(&self) -> bool {
        let segment = &self.active.segment;
        self.must_roll || self.end - segment.base() >= (segment.limit() - segment.base()) / 4
    }

    /// The segment that should be prepared now, if there is one and nobody was asked before.
    pub fn request_spare(&mut self) -> Option<SpareRequest> {
        if self.spare.is_some() || self.spare_requested || self.failed {
            return None;
        }
        self.spare_requested = true;
        Some(self.next_request(0))
    }

    /// Takes the spare that [`LogWriter::request_spare`] asked for, or the news that there is none.
    pub fn offer_spare(&mut self, spare: Option<Spare>) {
        self.spare_requested = false;
        let expected = self.active.segment.number() + 1;
        // Only the segment that is next can be used; `roll` never overtakes a request.
        self.spare = spare.filter(|spare| spare.number == expected);
    }

    /// Whether a roll would have to wait for a spare that is being prepared.
    pub fn awaits_spare(&self, frame: &FrameBuf) -> bool {
        self.spare_requested && !self.has_room_for(frame)
    }

    fn next_request(&self, frame_len: u64) -> SpareRequest {
        let len = segment_len(self.active.segment.limit() - self.begins, &self.options, frame_len);
        // As the syncs of this segment are, so will those of the next be.
        let written = self.end - self.active.segment.base();
        let preparation = match written / self.syncs.max(1) {
            LARGE_SYNC_BYTES.. => Preparation::Reserve,
            _ => Preparation::Fill,
        };
        SpareRequest { number: self.active.segment.number() + 1, len, preparation }
    }

    /// Seals the active segment and goes on in the next.
    fn roll(&mut self, frame_len: u64) -> Result<Arc<Segment>, AppendError> {
        // A segment made here would be replaced, with all that was acknowledged in it, as soon as
        // the spare is renamed to the same name.
        assert!(!self.spare_requested, "the driver waits for the spare it asked for");
        if self.durable < self.end {
            // The new header states that everything before it is there.
            self.sync()?;
        }
        let spare = match self.take_spare(frame_len) {
            Ok(spare) => spare,
            // Nothing is at stake yet: the log ends where it ended.
            Err(error) if is_full(&error) => return Err(AppendError::StorageFull(error)),
            Err(error) if is_exhausted(&error) => return Err(AppendError::Exhausted(error)),
            Err(error) => {
                self.failed = true;
                return Err(AppendError::Failed(error));
            }
        };
        let header = self.active.header().clone();
        let (store_id, previous, forgotten) = (header.store_id, Some(&header), self.forgotten);
        match activate(&*self.storage, spare, store_id, previous, self.end, forgotten) {
            Ok(active) => {
                self.active = active;
                self.must_roll = false;
                self.end = self.active.segment.first();
                self.durable = self.end;
                self.syncs = 0;
                Ok(Arc::clone(&self.active.segment))
            }
            Err(error) => {
                self.failed = true;
                Err(AppendError::Failed(error))
            }
        }
    }

    /// A spare with room for the frame; made here and now if none was prepared.
    fn take_spare(&mut self, frame_len: u64) -> io::Result<Spare> {
        let needed = SEGMENT_HEADER_LEN + frame_len;
        if let Some(spare) = self.spare.take() {
            if spare.file.shared().len() >= needed {
                return Ok(spare);
            }
            let name = name::segment(spare.number);
            drop(spare);
            self.storage.remove(&name)?;
        }
        self.next_request(frame_len).prepare(&*self.storage, &|| true)
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Writes the header of a prepared segment, which seals the segment before it, and forgets no less than that and
/// `forgotten`.
///
/// The header is durable before any frame is written, so a segment without a whole header never
/// held anything that was acknowledged.
fn activate(
    storage: &dyn Storage,
    mut spare: Spare,
    store_id: [u8; 16],
    previous: Option<&SegmentHeader>,
    previous_end: u64,
    forgotten: u64,
) -> io::Result<Active> {
    let previous_forgotten = previous.map_or(0, |header| header.forgotten);
    let header = SegmentHeader {
        store_id,
        number: spare.number,
        base: previous.map_or(0, |header| header.base + header.len),
        len: spare.file.shared().len(),
        salt: storage.random() | 1,
        previous_end,
        previous_salt: previous.map_or(0, |header| header.salt),
        forgotten: forgotten.max(previous_forgotten),
        previous_forgotten,
    };
    spare.file.write_at(&header.encode(), 0)?;
    spare.file.shared().sync()?;
    spare.file.publish(SEGMENT_HEADER_LEN);
    let segment = Segment::new(header, Arc::clone(spare.file.shared()), None);
    Ok(Active { segment, file: spare.file })
}

/// Makes the segment that follows `last`, which ends at `end`, in a directory that has nothing of that log: a copy
/// that begins there. Durable on return.
///
/// # Errors
///
/// As creating, writing and syncing a file.
pub fn begin_behind(storage: &dyn Storage, last: &Segment, end: u64) -> io::Result<Arc<Segment>> {
    let (number, len) = (last.number() + 1, SEGMENT_LEN_MIN);
    let request = SpareRequest { number, len, preparation: Preparation::Reserve };
    let spare = request.prepare(storage, &|| true)?;
    let header = last.header();
    let forgotten = header.forgotten;
    Ok(activate(storage, spare, header.store_id, Some(header), end, forgotten)?.segment)
}

/// Length of the next segment of a log of which `log_len` bytes are kept: a quarter of the log, within
/// limits, so that a small store stays small and a big one has few files; longer if one frame
/// needs it.
fn segment_len(log_len: u64, options: &LogOptions, frame_len: u64) -> u64 {
    let grown = (log_len / 4).next_power_of_two();
    // Whole pages, so that positions keep their alignment from segment to segment.
    let longest =
        options.segment_len_max.min(SEGMENT_LEN_MAX) / SEGMENT_HEADER_LEN * SEGMENT_HEADER_LEN;
    let planned = grown.clamp(SEGMENT_LEN_MIN, longest.max(SEGMENT_LEN_MIN));
    planned.max((SEGMENT_HEADER_LEN + frame_len).next_multiple_of(SEGMENT_LEN_MIN))
}

fn new_store_id(storage: &dyn Storage) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&storage.random().to_le_bytes());
    id[8..].copy_from_slice(&storage.random().to_le_bytes());
    id
}

const _: () = assert!(SEGMENT_LEN_MIN > SEGMENT_HEADER_LEN + FRAME_HEADER_LEN);
const _: () = assert!(SEGMENT_LEN_MAX >= SEGMENT_HEADER_LEN + FRAME_LEN_MAX + SEGMENT_LEN_MIN);
