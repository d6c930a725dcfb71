//! From a directory to a usable log.
//!
//! Recovery reads the header of every segment, then the frames of the last one. It ends in a
//! [`Recovered`] log or in an error; nothing half recovered exists. Every decision is a row of a
//! table in `FORMAT.md`: rows H1 to H6 for headers, rows T1 to T5 for the tail.
//!
//! Recovery is idempotent: a crash at any of its steps leaves a directory that recovers to the same
//! log. It never truncates, and cuts a torn tail by sealing the segment below it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::error::OpenError;
use crate::format::{
    ALIGN, FRAME_HEADER_LEN, FRAME_LEN_MAX, Fault, FrameHeader, Run, SEGMENT_HEADER_LEN,
    SegmentHeader, SegmentHeaderState, VERSION_MAJOR, is_zero, written_len,
};
use crate::log::{SEGMENT_LEN_MAX, SEGMENT_LEN_MIN};
use crate::loss::Losses;
use crate::name;
use crate::segment::{Damage, Segment};
use crate::storage::{
    Access, MappedFile, Storage, StorageFile, read_device_exact_at, read_exact_at,
};
use crate::trim::{TrimHeader, TrimPoint};

/// Files are read in pieces of this many bytes where not all of one is wanted at once.
const READ_LEN: usize = 1 << 20;
/// What is read beyond the last byte that was written.
const PAGE_LEN: u64 = 4096;
/// How far before a checkpoint's end its last frame is looked for at first.
const LOOK_BACK_LEN: u64 = 1 << 16;

const LEN_MISFIT: &str = "the file is shorter or longer than its header says";

/// What a checkpoint knows of the end of the log. It saves time, and it can reveal that the end of
/// the log is missing; it is never believed over the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailHint {
    /// The log was durable up to here, which is the end of a frame.
    pub durable_end: u64,
    /// Whether the log was closed at this end, with nothing in flight. If nothing at all stands
    /// behind it, neither on the device nor in the cache, the log goes on in place.
    pub closed: bool,
}

/// What recovery did to the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TailReport {
    /// The store was created.
    Created,
    /// The log ended with a whole frame.
    Clean,
    /// The log ended with a frame that was never acknowledged; it was cut off.
    Cut {
        /// Position of the cut.
        position: u64,
        /// Bytes from the cut to the last byte that was written.
        dropped_len: u64,
    },
}

impl fmt::Display for TailReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TailReport::Created => f.write_str("created"),
            TailReport::Clean => f.write_str("clean"),
            TailReport::Cut { position, dropped_len } => write!(
                f,
                "a torn tail of {dropped_len} bytes, never acknowledged, was cut at position {position}"
            ),
        }
    }
}

/// The segments of a log, and what is known of its end.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: Vec<Arc<Segment>>,
    /// End of the last segment: where the log ends.
    pub(crate) end: u64,
    pub(crate) report: TailReport,
    /// Nothing but zeros follows the end, and appending there is safe.
    pub(crate) appendable: bool,
    /// Number of an unused segment, prepared ahead.
    pub(crate) spare: Option<u64>,
    /// Damage that a reading store worked around.
    pub(crate) damage: Vec<Damage>,
    /// What is known to be lost.
    pub(crate) losses: Option<Arc<Losses>>,
    /// Where the segments are from.
    pub(crate) links: Vec<Link>,
    /// Where the log begins, if not with segment 1.
    pub(crate) trim: Option<TrimPoint>,
    /// Numbers of files of segments that were trimmed, and not unlinked yet.
    pub(crate) trimmed: Vec<u64>,
    /// What is wrong with the file that says where the log begins; a writing store does not open then.
    pub(crate) trim_fault: Option<OpenError>,
}

/// What a segment follows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Before<'a> {
    /// Nothing: it is segment 1.
    Nothing,
    /// A segment that was trimmed.
    Trimmed(&'a TrimHeader),
    Segment(&'a SegmentHeader),
}

impl<'a> Before<'a> {
    /// What the first segment of a log follows.
    fn all(trim: Option<&'a TrimHeader>) -> Self {
        trim.map_or(Before::Nothing, Before::Trimmed)
    }

    fn number(self) -> u64 {
        match self {
            Before::Nothing => 0,
            Before::Trimmed(trim) => trim.point.segment - 1,
            Before::Segment(header) => header.number,
        }
    }

    /// Position at which it ends, and the next begins.
    fn limit(self) -> u64 {
        match self {
            Before::Nothing => 0,
            Before::Trimmed(trim) => trim.point.position,
            Before::Segment(header) => header.base + header.len,
        }
    }

    /// Positions at which its frames can end.
    fn ends(self) -> RangeInclusive<u64> {
        match self {
            Before::Nothing => 0..=0,
            Before::Trimmed(trim) => trim.point.previous_end..=trim.point.previous_end,
            Before::Segment(header) => header.base + SEGMENT_HEADER_LEN..=self.limit(),
        }
    }

    fn salt(self) -> u64 {
        match self {
            Before::Nothing => 0,
            Before::Trimmed(trim) => trim.point.previous_salt,
            Before::Segment(header) => header.salt,
        }
    }

    /// What it says that is forgotten; nothing if nobody knows.
    fn forgotten(self) -> Option<u64> {
        match self {
            Before::Nothing => Some(0),
            Before::Trimmed(_) => None,
            Before::Segment(header) => Some(header.forgotten),
        }
    }

    fn store_id(self) -> Option<[u8; 16]> {
        match self {
            Before::Nothing => None,
            Before::Trimmed(trim) => Some(trim.store_id),
            Before::Segment(header) => Some(header.store_id),
        }
    }

    /// Whether the segment behind it was in use for certain: a log is never trimmed of all of its segments.
    fn is_followed(self) -> bool {
        matches!(self, Before::Trimmed(_))
    }
}

/// What the header page of a segment file means for the log. One arm of `Chain::take` each.
#[derive(Debug)]
pub(crate) enum HeaderCondition {
    /// H1: the last file, all zeros: prepared ahead and not used.
    Spare,
    /// H2: the last file, no whole header page, and zeros behind it: the header was being written.
    /// It is durable before the first frame is, so nothing in the file was ever acknowledged.
    Activating,
    /// H3: a whole header.
    Whole(SegmentHeader),
    /// H4: part of a header, or none, though the segment was in use.
    Damaged { fault: Fault, other_copy: bool },
    /// H5: a whole header of another version.
    Foreign { major: u16 },
    /// H6: a header that does not belong here.
    Misfit { detail: &'static str },
}

/// How the frames of the last segment end. One arm of `conclude` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TailCondition {
    /// T1: zeros from the last whole frame on.
    Zeros,
    /// T2: something that is no whole frame, and no proof that it ever was one.
    Torn { written_end: u64 },
    /// T3: no whole frame, but a later frame proves that the log was durable beyond this place.
    ProvedByFrame(Proof),
    /// T4: no whole frame, but the checkpoint proves that the log was durable beyond this place.
    ProvedByCheckpoint(Proof),
}

/// What is known of a log that is damaged before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Proof {
    fault: Fault,
    /// Where the next whole frame stands, or the end of what was durable if there is none.
    resumes: u64,
    /// End of what was durable and of the whole frames that follow it without a gap.
    readable_end: u64,
}

/// Reads the directory. With `write`, refuses damage; without, works around it where it can.
pub(crate) fn recover(
    storage: &dyn Storage,
    hint: Option<TailHint>,
    write: bool,
) -> Result<Option<Recovered>, OpenError> {
    loop {
        let (trim, trim_fault) = match TrimHeader::read(storage) {
            Ok(trim) => (trim, None),
            Err(problem @ OpenError::Trimmed { .. }) if !write => (None, Some(problem)),
            Err(problem) => return Err(problem),
        };
        let recovered = recover_from(storage, hint, write, trim.as_ref(), trim_fault);
        // An owner that trims the log meanwhile takes away segments from under a reader.
        if write || TrimHeader::read(storage).ok().flatten() == trim {
            return recovered;
        }
    }
}

/// The same for a log that begins where `trim` says.
fn recover_from(
    storage: &dyn Storage,
    hint: Option<TailHint>,
    write: bool,
    trim: Option<&TrimHeader>,
    mut trim_fault: Option<OpenError>,
) -> Result<Option<Recovered>, OpenError> {
    let mut found = find_segments(storage, trim)?;
    // A file that another log's segments stand beside does not say where this one begins.
    let foreign = |trim: &&TrimHeader| own_store_id(&found).is_some_and(|own| own != trim.store_id);
    let trim = match trim.filter(foreign) {
        None => trim,
        Some(_) => {
            let file = storage.describe(name::trimmed());
            let detail =
                "it belongs to another store (if this log was never trimmed, take it away)";
            let detail = String::from(detail);
            let problem = OpenError::Trimmed { file, detail };
            if write {
                return Err(problem);
            }
            trim_fault = Some(problem);
            None
        }
    };
    let begins = trim.map_or(1, |trim| trim.point.segment);
    let trimmed = pass_trimmed(storage, &mut found, trim, write)?;
    let (links, spare, mut damage) = match write {
        true => {
            let mut chain = Chain { storage, trim, links: Vec::new(), spare: None };
            for index in 0..found.len() {
                chain.take(&found, index)?;
            }
            (chain.links, chain.spare, Vec::new())
        }
        false => {
            let mut arranged =
                Arranged { storage, trim, links: Vec::new(), spare: None, damage: Vec::new() };
            arranged.take_all(&found)?;
            (arranged.links, arranged.spare, arranged.damage)
        }
    };
    if trim_fault.is_some() {
        damage.push(file_damage(0, name::trimmed().to_owned(), 0, 0..0, Fault::Checksum));
    }
    let Some(last) = links.last() else {
        return match damage.into_iter().next() {
            // Something was trimmed, so there was a log.
            None if trim.is_some() => {
                Err(OpenError::SegmentMissing { file: storage.describe(&name::segment(begins)) })
            }
            None => Ok(None),
            Some(Damage { file, fault: Fault::Missing, .. }) => {
                Err(OpenError::SegmentMissing { file: storage.describe(&file) })
            }
            Some(Damage { file, fault: Fault::Foreign, .. }) => {
                let detail = "it is longer than any segment, or does not belong here";
                Err(OpenError::SegmentForeign { file: storage.describe(&file), detail })
            }
            Some(Damage { segment: 0, .. }) if let Some(problem) = trim_fault => Err(problem),
            Some(found) => Err(OpenError::Damaged(found)),
        };
    };
    let losses = match Losses::read(storage, &last.header.store_id) {
        Ok(losses) => losses.map(Arc::new),
        Err(problem) if write => return Err(problem),
        Err(OpenError::Losses { .. }) => {
            damage.push(file_damage(0, name::losses().to_owned(), 0, 0..0, Fault::Checksum));
            None
        }
        Err(problem) => return Err(problem),
    };
    let mut scan = Scan { storage, write, losses: losses.as_ref(), damage: &mut damage };
    let mut segments = Vec::with_capacity(links.len());
    for pair in links.windows(2) {
        let (link, next) = (&pair[0], &pair[1]);
        let end = match next.previous_end {
            Some(end) if next.header.number == link.header.number + 1 => {
                end.min(link.limit_there())
            }
            // Only the header that is lost knew where this segment was cut.
            Some(_) | None => scan.find_tail(link, None)?.end,
        };
        segments.push(scan.open_segment(link, end)?);
    }
    let Tail { end, report, zeros_follow } = scan.find_end(last, hint)?;
    segments.push(scan.open_segment(last, end)?);
    let closed = hint.is_some_and(|hint| hint.closed && hint.durable_end == end);
    let empty = end == last.header.base + SEGMENT_HEADER_LEN;
    // A page that is written again takes along whatever the cache shows in it, and after a failed
    // sync that may be frames that were never acknowledged.
    // Nor may a write show up under another name of the file, in a copy that is made of links.
    let appendable = write
        && zeros_follow
        && (closed || empty)
        && !is_linked(storage, &last.header)?
        && is_cache_empty(storage, &last.header, end)?;
    let trim = trim.map(|trim| trim.point);
    Ok(Some(Recovered {
        segments,
        end,
        report,
        appendable,
        spare,
        damage,
        losses,
        links,
        trim,
        trimmed,
        trim_fault,
    }))
}

/// Takes out the segments that were trimmed, and have not been unlinked yet; returns their numbers. A file that
/// only has the name of one is left for others to judge.
fn pass_trimmed(
    storage: &dyn Storage,
    found: &mut Vec<FoundSegment>,
    trim: Option<&TrimHeader>,
    write: bool,
) -> Result<Vec<u64>, OpenError> {
    let Some(trim) = trim else { return Ok(Vec::new()) };
    let is_trimmed = |segment: &FoundSegment| {
        let is_it = |header: &SegmentHeader| {
            header.store_id == trim.store_id && header.number == segment.number
        };
        segment.number < trim.point.segment && segment.header().is_none_or(is_it)
    };
    let numbers = found.iter().filter(|segment| is_trimmed(segment));
    let numbers = numbers.map(|segment| segment.number).collect();
    found.retain(|segment| !is_trimmed(segment));
    match found.first() {
        // H6. It would be unlinked for its name.
        Some(segment) if write && segment.number < trim.point.segment => {
            let file = storage.describe(&name::segment(segment.number));
            Err(OpenError::SegmentForeign {
                file,
                detail: "its header has another number or store than its name",
            })
        }
        Some(_) | None => Ok(numbers),
    }
}

/// Identity of the store whose log is in `storage`, as the header of the first segment tells it;
/// nothing if there is none that can be read. A checkpoint of another store is no [`TailHint`].
pub fn store_id(storage: &dyn Storage) -> Option<[u8; 16]> {
    let trim = TrimHeader::read(storage).ok().flatten();
    let begins = trim.as_ref().map_or(1, |trim| trim.point.segment);
    for number in segment_numbers(storage).ok()?.into_iter().filter(|&number| number >= begins) {
        let file = match storage.open(&name::segment(number), Access::Read) {
            // Its owner has trimmed it meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.ok()?,
        };
        return match read_header(&*file, file.len().ok()?).ok()? {
            SegmentHeaderState::Valid(header) | SegmentHeaderState::OneCopy(header, _) => {
                Some(header.store_id)
            }
            SegmentHeaderState::Unused
            | SegmentHeaderState::Damaged(_)
            | SegmentHeaderState::Contradictory
            | SegmentHeaderState::Foreign { .. } => None,
        };
    }
    None
}

/// Numbers that files have as segments, in order.
pub(crate) fn segment_numbers(storage: &dyn Storage) -> io::Result<Vec<u64>> {
    let number = |name: &String| match name::kind(name) {
        name::Kind::Segment(number) => Some(number),
        _ => None,
    };
    let mut numbers: Vec<u64> = storage.list()?.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn find_segments(
    storage: &dyn Storage,
    trim: Option<&TrimHeader>,
) -> Result<Vec<FoundSegment>, OpenError> {
    let numbers =
        segment_numbers(storage).map_err(OpenError::io("listing the store's directory"))?;
    let begins = trim.map_or(1, |trim| trim.point.segment);
    let mut found = Vec::with_capacity(numbers.len());
    for (index, &number) in numbers.iter().enumerate() {
        let place = match index + 1 == numbers.len() {
            _ if number < begins => Place::Trimmed,
            true => Place::Last,
            false => Place::Within,
        };
        found.extend(FoundSegment::read(storage, number, place)?);
    }
    Ok(found)
}

/// Where a segment file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before the beginning of the log: its owner may be about to unlink it.
    Trimmed,
    Within,
    /// At the end, where its owner may take back a spare.
    Last,
}

/// A segment file and what its header page turns out to be.
#[derive(Debug)]
pub(crate) struct FoundSegment {
    number: u64,
    len: u64,
    state: SegmentHeaderState,
    /// Nothing but zeros behind the header page. Only looked for where it matters.
    body_zero: bool,
}

impl FoundSegment {
    /// Reads what matters of a segment file; nothing if it is gone again, because a writer has taken back a
    /// spare meanwhile, or unlinked what was trimmed.
    pub(crate) fn read(
        storage: &dyn Storage,
        number: u64,
        place: Place,
    ) -> Result<Option<Self>, OpenError> {
        let name = name::segment(number);
        let path = storage.describe(&name);
        let file = match storage.open(&name, Access::Read) {
            Err(error) if place != Place::Within && error.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            result => result.map_err(OpenError::io(format!("opening {path}")))?,
        };
        Self::read_file(&*file, number, place == Place::Last)
            .map(Some)
            .map_err(OpenError::io(format!("reading {path}")))
    }

    fn read_file(file: &dyn StorageFile, number: u64, last: bool) -> io::Result<Self> {
        let len = file.len()?;
        let mut state = read_header(file, len)?;
        let mut body_zero = false;
        if last && !matches!(state, SegmentHeaderState::Valid(_)) {
            body_zero = is_zero_from(file, SEGMENT_HEADER_LEN, len)?;
            if !body_zero {
                // A writer may have put the segment to use between the two looks. It writes the
                // header first, so the header is there now.
                state = read_header(file, len)?;
            }
        }
        Ok(FoundSegment { number, len, state, body_zero })
    }

    /// What is wrong with the header page.
    fn header_fault(&self) -> Option<Fault> {
        match &self.state {
            SegmentHeaderState::Valid(_) => None,
            SegmentHeaderState::OneCopy(_, fault) | SegmentHeaderState::Damaged(fault) => {
                Some(*fault)
            }
            SegmentHeaderState::Contradictory => Some(Fault::Unknown),
            SegmentHeaderState::Unused | SegmentHeaderState::Foreign { .. } => Some(Fault::NoMagic),
        }
    }

    pub(crate) fn condition(&self, before: Before<'_>, last: bool) -> HeaderCondition {
        // A file too short to be a segment was cut by somebody else.
        let untouched =
            last && self.body_zero && self.len >= SEGMENT_LEN_MIN && !before.is_followed();
        let (header, fault) = match &self.state {
            SegmentHeaderState::Unused if untouched => return HeaderCondition::Spare,
            SegmentHeaderState::Damaged(_) | SegmentHeaderState::OneCopy(..) if untouched => {
                return HeaderCondition::Activating;
            }
            SegmentHeaderState::Unused => {
                return HeaderCondition::Damaged { fault: Fault::NoMagic, other_copy: false };
            }
            SegmentHeaderState::Damaged(fault) => {
                return HeaderCondition::Damaged { fault: *fault, other_copy: false };
            }
            SegmentHeaderState::Foreign { major, .. } if *major != VERSION_MAJOR => {
                return HeaderCondition::Foreign { major: *major };
            }
            SegmentHeaderState::Foreign { .. } => {
                return HeaderCondition::Misfit { detail: UNKNOWN_FEATURE };
            }
            SegmentHeaderState::Contradictory => {
                return HeaderCondition::Misfit { detail: CONTRADICTORY };
            }
            SegmentHeaderState::Valid(header) => (header, None),
            SegmentHeaderState::OneCopy(header, fault) => (header, Some(*fault)),
        };
        match (self.misfit(header, before), fault) {
            (Some(detail), _) => HeaderCondition::Misfit { detail },
            (None, None) => HeaderCondition::Whole(header.clone()),
            (None, Some(fault)) => HeaderCondition::Damaged { fault, other_copy: true },
        }
    }

    /// Why a whole header does not belong here.
    fn misfit(&self, header: &SegmentHeader, before: Before<'_>) -> Option<&'static str> {
        if header.number != self.number {
            return Some("its header has another number than its name");
        }
        if header.len != self.len {
            return Some(LEN_MISFIT);
        }
        if header.len > SEGMENT_LEN_MAX {
            return Some("it is longer than any segment");
        }
        if before.store_id().is_some_and(|store_id| header.store_id != store_id) {
            return Some("it belongs to another store");
        }
        (!follows(header, before)).then_some(match before {
            Before::Nothing | Before::Segment(_) => "it does not follow the segment before it",
            Before::Trimmed(_) => "it does not follow what was trimmed of the log",
        })
    }

    /// The header, if a copy of it is whole.
    pub(crate) fn header(&self) -> Option<&SegmentHeader> {
        match &self.state {
            SegmentHeaderState::Valid(header) | SegmentHeaderState::OneCopy(header, _) => {
                Some(header)
            }
            SegmentHeaderState::Unused
            | SegmentHeaderState::Foreign { .. }
            | SegmentHeaderState::Contradictory
            | SegmentHeaderState::Damaged(_) => None,
        }
    }

    /// What can be known of a lost header from the segments beside it: all but where the segment
    /// before it ends.
    fn rebuilt(&self, before: Before<'_>, next: Option<&Self>) -> Option<SegmentHeader> {
        let next = next?.header()?;
        let base = before.limit();
        let follows = next.base.checked_sub(self.len) == Some(base)
            && self.len <= SEGMENT_LEN_MAX
            && before.store_id().is_none_or(|store_id| store_id == next.store_id)
            && before.forgotten().is_none_or(|forgotten| forgotten <= next.previous_forgotten);
        follows.then(|| SegmentHeader {
            store_id: next.store_id,
            number: self.number,
            base,
            len: self.len,
            salt: next.previous_salt,
            previous_end: *before.ends().end(),
            previous_salt: before.salt(),
            forgotten: next.previous_forgotten,
            previous_forgotten: before.forgotten().unwrap_or(0),
        })
    }
}

/// Reads the header page, past the cache: after a failed sync the cache may show a header that is
/// not on the device, and frames must not follow it there.
fn read_header(file: &dyn StorageFile, len: u64) -> io::Result<SegmentHeaderState> {
    let mut page = vec![0; SEGMENT_HEADER_LEN.min(len) as usize];
    read_device_exact_at(file, &mut page, 0)?;
    Ok(SegmentHeader::decode(&page))
}

fn is_zero_from(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<bool> {
    let mut piece = vec![0; READ_LEN];
    let mut offset = offset;
    while offset < len {
        let want = (len - offset).min(READ_LEN as u64) as usize;
        read_exact_at(file, &mut piece[..want], offset)?;
        if !is_zero(&piece[..want]) {
            return Ok(false);
        }
        offset += want as u64;
    }
    Ok(true)
}

/// Whether a whole header belongs behind what is before it.
fn follows(header: &SegmentHeader, before: Before<'_>) -> bool {
    header.base.checked_add(header.len).is_some()
        && header.base == before.limit()
        && header.previous_salt == before.salt()
        && before.ends().contains(&header.previous_end)
        && before.forgotten().is_none_or(|forgotten| header.previous_forgotten == forgotten)
        && header.previous_forgotten <= header.forgotten
}

/// Whether a whole header can belong behind so many segments that are missing, and what is before those.
fn follows_a_gap(header: &SegmentHeader, before: Before<'_>, missing: u64) -> bool {
    let limit = before.limit();
    let room = header.base.checked_sub(limit);
    missing <= MISSING_MAX
        && header.base.is_multiple_of(ALIGN)
        && header.base.checked_add(header.len).is_some()
        && room.is_some_and(|room| room >= missing * SEGMENT_LEN_MIN)
        && (limit + SEGMENT_HEADER_LEN..=header.base).contains(&header.previous_end)
        && before.forgotten().unwrap_or(0) <= header.previous_forgotten
        && header.previous_forgotten <= header.forgotten
}

/// More segments that are missing side by side are taken for a header that is wrong.
const MISSING_MAX: u64 = 1 << 16;

/// A segment of the log, in its place.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) header: SegmentHeader,
    /// Where the segment before it ends; unknown if the header had to be rebuilt.
    pub(crate) previous_end: Option<u64>,
    /// Number in the name of the file: another than that of the segment if somebody has renamed it.
    pub(crate) file: u64,
    /// Bytes of the file that are there: fewer than the header says if somebody has cut it.
    pub(crate) there: u64,
    /// Both copies of the header are whole, and the file has the length that they say.
    pub(crate) whole: bool,
}

impl Link {
    /// Position at which the bytes end that are there.
    fn limit_there(&self) -> u64 {
        self.header.base + self.there
    }

    fn name(&self) -> String {
        name::segment(self.file)
    }
}

fn file_damage(
    segment: u64,
    file: String,
    offset: u64,
    positions: std::ops::Range<u64>,
    fault: Fault,
) -> Damage {
    Damage { segment, file, offset, position: positions.start, resumes: positions.end, fault }
}

/// The segments of a log that is read as far as it is whole: what is missing or does not belong is left
/// out, and reported.
#[derive(Debug)]
struct Arranged<'a> {
    storage: &'a dyn Storage,
    trim: Option<&'a TrimHeader>,
    links: Vec<Link>,
    spare: Option<u64>,
    damage: Vec<Damage>,
}

impl Arranged<'_> {
    /// What the next segment follows.
    fn before(&self) -> Before<'_> {
        self.links.last().map_or(Before::all(self.trim), |link| Before::Segment(&link.header))
    }

    fn take_all(&mut self, found: &[FoundSegment]) -> Result<(), OpenError> {
        let mut last = found.len();
        let begins = self.before().number() + 1;
        if let Some(segment) = found.last()
            // The segment that a trimmed log begins with was in use.
            && (self.trim.is_none() || segment.number != begins)
            && let HeaderCondition::Spare | HeaderCondition::Activating =
                segment.condition(Before::Nothing, true)
        {
            self.spare = Some(segment.number);
            last -= 1;
        }
        let found = &found[..last];
        for segment in found {
            self.refuse_versions(segment)?;
        }
        let own = own_store_id(found);
        let mut places: BTreeMap<u64, &FoundSegment> = BTreeMap::new();
        // Whose header says which segment it is, comes before whose name alone does; and of two with the
        // same header, the one with the right name.
        let is_own = |segment: &&FoundSegment| {
            segment.header().is_some_and(|header| Some(header.store_id) == own)
        };
        for segment in found.iter().filter(is_own) {
            let number = segment.header().map_or(segment.number, |header| header.number);
            let place = places.entry(number).or_insert(segment);
            if segment.number == number {
                *place = segment;
            }
        }
        for segment in found.iter().filter(|segment| segment.header().is_none()) {
            places.entry(segment.number).or_insert(segment);
        }
        let placed: BTreeSet<u64> = places.values().map(|segment| segment.number).collect();
        for segment in found.iter().filter(|segment| !placed.contains(&segment.number)) {
            let file = name::segment(segment.number);
            self.damage.push(file_damage(segment.number, file, 0, 0..0, Fault::Foreign));
        }
        let of_the_log = places.split_off(&begins);
        // By its header, it is part of what was trimmed; by its name, it is not.
        for segment in std::mem::replace(&mut places, of_the_log).values() {
            let file = name::segment(segment.number);
            self.damage.push(file_damage(segment.number, file, 0, 0..0, Fault::Foreign));
        }
        for (&number, &segment) in &places {
            self.place(number, segment, places.get(&number.saturating_add(1)).copied());
        }
        let (expected, limit) = (self.before().number() + 1, self.before().limit());
        if self.spare.is_some_and(|spare| spare > expected) && places.keys().all(|&n| n < expected)
        {
            // It was prepared to follow a segment.
            let file = name::segment(expected);
            self.damage.push(file_damage(expected, file, 0, limit..limit, Fault::Missing));
        }
        Ok(())
    }

    /// What a later version has written is not damaged, and not for this one to judge.
    fn refuse_versions(&self, segment: &FoundSegment) -> Result<(), OpenError> {
        let SegmentHeaderState::Foreign { major, .. } = segment.state else { return Ok(()) };
        let file = self.storage.describe(&name::segment(segment.number));
        Err(match major == VERSION_MAJOR {
            true => OpenError::SegmentForeign { file, detail: UNKNOWN_FEATURE },
            false => OpenError::Version { file, found: major, supported: VERSION_MAJOR },
        })
    }

    fn place(&mut self, number: u64, segment: &FoundSegment, next: Option<&FoundSegment>) {
        let (before, limit) = (self.before().number(), self.before().limit());
        let adjacent = number == before + 1;
        let file = name::segment(segment.number);
        let header = match segment.header() {
            Some(header) => Some(header.clone()),
            None if adjacent => segment.rebuilt(self.before(), next),
            None => None,
        };
        let belongs = |header: &SegmentHeader| match adjacent {
            true => segment.header().is_none() || follows(header, self.before()),
            false => number > before && follows_a_gap(header, self.before(), number - before - 1),
        };
        let header = match header {
            // What is behind such a length was never written by anybody, and would be read.
            Some(header) if belongs(&header) && header.len <= SEGMENT_LEN_MAX => header,
            Some(_) => {
                self.damage.push(file_damage(number, file, 0, limit..limit, Fault::Foreign));
                return;
            }
            None => {
                // Without its salt nothing in it can be told from noise.
                let fault = segment.header_fault().unwrap_or(Fault::NoMagic);
                self.damage.push(file_damage(number, file, 0, limit..limit + segment.len, fault));
                return;
            }
        };
        if !adjacent {
            let file = name::segment(before + 1);
            self.damage.push(file_damage(before + 1, file, 0, limit..header.base, Fault::Missing));
        }
        let SegmentHeader { base, len, .. } = header;
        let there = segment.len.min(len) / ALIGN * ALIGN;
        let fault = segment.header_fault();
        if let Some(fault) = fault {
            let positions = base..base + SEGMENT_HEADER_LEN;
            self.damage.push(file_damage(number, file.clone(), 0, positions, fault));
        }
        if there < SEGMENT_HEADER_LEN {
            self.damage.push(file_damage(number, file, 0, base..base + len, Fault::Short));
            return;
        }
        if segment.len < len {
            let lost = base + there..base + len;
            self.damage.push(file_damage(number, file.clone(), there, lost, Fault::Short));
        } else if segment.len > len {
            let end = base + len;
            self.damage.push(file_damage(number, file.clone(), len, end..end, Fault::Long));
        }
        if segment.number != number {
            self.damage.push(file_damage(number, file, 0, base..base, Fault::Misnamed));
        }
        let previous_end = segment.header().map(|header| header.previous_end);
        let whole = fault.is_none() && segment.len == len;
        self.links.push(Link { header, previous_end, file: segment.number, there, whole });
    }
}

/// The store that these segments are of: the one that most are of, and of several, the one with the
/// first of them.
fn own_store_id(found: &[FoundSegment]) -> Option<[u8; 16]> {
    let ids = || found.iter().filter_map(FoundSegment::header).map(|header| header.store_id);
    let count = |id: [u8; 16]| ids().filter(|other| *other == id).count();
    // Of equal ones, `max_by_key` takes the last.
    ids().rev().max_by_key(|id| count(*id))
}

const UNKNOWN_FEATURE: &str = "it uses a feature that this build does not know";
const CONTRADICTORY: &str =
    "its header says that ids are forgotten and not which, or the other way round";

/// The segments of a log that is written, as far as they have been looked at: all of it has to be there.
#[derive(Debug)]
struct Chain<'a> {
    storage: &'a dyn Storage,
    trim: Option<&'a TrimHeader>,
    links: Vec<Link>,
    /// Number of an unused segment at the end.
    spare: Option<u64>,
}

impl Chain<'_> {
    /// The decision table of FORMAT.md, "Headers": what a segment file is to the log.
    fn take(&mut self, found: &[FoundSegment], index: usize) -> Result<(), OpenError> {
        let segment = &found[index];
        let path = |number| self.storage.describe(&name::segment(number));
        let first = Before::all(self.trim);
        let before = self.links.last().map_or(first, |link| Before::Segment(&link.header));
        let next = found.get(index + 1);
        let condition = segment.condition(before, next.is_none());
        // H6: a gap, also before a file that was never used: it was prepared to follow a segment.
        let expected = first.number() + 1 + index as u64;
        if segment.number != expected {
            return Err(OpenError::SegmentMissing { file: path(expected) });
        }
        match condition {
            // H1, H2: no part of the log.
            HeaderCondition::Spare | HeaderCondition::Activating => {
                self.spare = Some(segment.number);
            }
            // H3.
            HeaderCondition::Whole(header) => {
                let (previous_end, there) = (Some(header.previous_end), header.len);
                let file = segment.number;
                self.links.push(Link { header, previous_end, file, there, whole: true });
            }
            // H4.
            HeaderCondition::Damaged { fault, other_copy } => {
                let base = before.limit();
                let is_known = other_copy || segment.rebuilt(before, next).is_some();
                let readable = if is_known { SEGMENT_HEADER_LEN } else { segment.len };
                let (file, positions) = (name::segment(segment.number), base..base + readable);
                let damage = file_damage(segment.number, file, 0, positions, fault);
                return Err(OpenError::Damaged(damage));
            }
            // H5.
            HeaderCondition::Foreign { major } => {
                return Err(OpenError::Version {
                    file: path(segment.number),
                    found: major,
                    supported: VERSION_MAJOR,
                });
            }
            // H6.
            HeaderCondition::Misfit { detail } => {
                return Err(OpenError::SegmentForeign { file: path(segment.number), detail });
            }
        }
        Ok(())
    }
}

/// The segment, if its file is still as long as it was when the header was read.
pub(crate) fn mapped_whole(
    storage: &dyn Storage,
    segment: Arc<Segment>,
) -> Result<Arc<Segment>, OpenError> {
    if segment.is_mapped_whole() {
        return Ok(segment);
    }
    let file = storage.describe(&name::segment(segment.number()));
    Err(OpenError::SegmentForeign { file, detail: LEN_MISFIT })
}

/// Whether the file has another name, somewhere.
fn is_linked(storage: &dyn Storage, header: &SegmentHeader) -> Result<bool, OpenError> {
    let name = name::segment(header.number);
    let context = format!("opening {}", storage.describe(&name));
    storage
        .open(&name, Access::Read)
        .and_then(|file| file.is_linked())
        .map_err(OpenError::io(context))
}

/// Whether the cache, too, shows nothing from `end` on. After a failed sync it can show frames that
/// were lost, and the next frame that shared a page with one of them would take it along to the
/// device.
fn is_cache_empty(
    storage: &dyn Storage,
    header: &SegmentHeader,
    end: u64,
) -> Result<bool, OpenError> {
    let name = name::segment(header.number);
    let context = format!("reading {}", storage.describe(&name));
    storage
        .open(&name, Access::Read)
        .and_then(|file| is_zero_from(&*file, end - header.base, header.len))
        .map_err(OpenError::io(context))
}

/// Where the log ends in a segment.
#[derive(Debug)]
struct Tail {
    end: u64,
    report: TailReport,
    zeros_follow: bool,
}

/// What looking into segments takes.
struct Scan<'a> {
    storage: &'a dyn Storage,
    write: bool,
    losses: Option<&'a Arc<Losses>>,
    damage: &'a mut Vec<Damage>,
}

impl Scan<'_> {
    fn open_segment(&self, link: &Link, end: u64) -> Result<Arc<Segment>, OpenError> {
        let name = link.name();
        let context = format!("mapping {}", self.storage.describe(&name));
        let published = end - link.header.base;
        let file =
            MappedFile::open(self.storage, &name, published).map_err(OpenError::io(context))?;
        let is_there = file.len() >= link.there;
        let segment = Segment::new(link.header.clone(), file, self.losses);
        // A reader makes do with a file of another length, and knows of it.
        if is_there && !self.write { Ok(segment) } else { mapped_whole(self.storage, segment) }
    }

    /// The tail of the last segment that there is. If the checkpoint knows of a later one, a reader takes this
    /// one for whole where nothing follows its frames, and only the later one for missing.
    fn find_end(&mut self, link: &Link, hint: Option<TailHint>) -> Result<Tail, OpenError> {
        let limit = link.header.base + link.header.len;
        let beyond = hint.filter(|hint| !self.write && hint.durable_end > limit);
        if let (Some(hint), true) = (beyond, link.there == link.header.len) {
            let tail = self.find_tail(link, None)?;
            if tail.zeros_follow {
                let (number, positions) = (link.header.number + 1, limit..hint.durable_end);
                if self.damage.iter().all(|known| known.segment != number) {
                    let file = name::segment(number);
                    self.damage.push(file_damage(number, file, 0, positions, Fault::Missing));
                }
                return Ok(tail);
            }
        }
        self.find_tail(link, hint)
    }

    /// Finds the end of the whole frames of a segment, and what follows it: past the operating system's cache, from the
    /// last place up to which the log is proved durable, by the checkpoint or by a frame.
    fn scan_tail(
        &self,
        file: &dyn StorageFile,
        link: &Link,
        hint: Option<TailHint>,
    ) -> io::Result<(u64, TailCondition)> {
        let header = &link.header;
        let first = header.base + SEGMENT_HEADER_LEN;
        let mut limit = link.limit_there();
        let mut start = match hint {
            Some(hint) if (first..=limit).contains(&hint.durable_end) => {
                last_frame_before(file, header, hint.durable_end)?.unwrap_or(first)
            }
            Some(_) | None => first,
        };
        if let Some(cached) = self.look_into_cache(file, link, start) {
            start = cached.proved.unwrap_or(start);
            if let Some(end) = cached.zeros_from {
                // A page more: what follows the frames is zeros, and not the end of the file.
                limit = limit.min(end.next_multiple_of(PAGE_LEN) + PAGE_LEN);
            }
        }
        let bytes = read_device_run(file, start - header.base, limit - start)?;
        let run = Run { bytes: &bytes, start, salt: header.salt };
        let losses = self.losses.map(|losses| &**losses);
        let (end, fault) = whole_frames(&run, losses, start);
        Ok((end, tail_condition(&run, losses, end, fault, hint)))
    }

    /// What the cache shows of a segment from a frame on; nothing if it cannot be read, which whoever reads the device then
    /// names. For whoever holds the lock: what others write meanwhile proves nothing yet.
    fn look_into_cache(
        &self,
        file: &dyn StorageFile,
        link: &Link,
        start: u64,
    ) -> Option<CacheView> {
        // Where something is lost, frames have no ends to go by.
        if !self.write || self.losses.is_some() {
            return None;
        }
        let (base, salt, limit) = (link.header.base, link.header.salt, link.limit_there());
        // The ends of whole frames that nothing has proved yet.
        let mut ends = VecDeque::new();
        let (mut position, mut proved) = (start, None);
        // Not through a map: what cannot be read would end the process. Of what is read, what stands before the frame at
        // hand goes when the next piece comes.
        let (mut bytes, mut from, mut unread) = (Vec::new(), start, start);
        loop {
            let run = Run { bytes: &bytes, start: from, salt };
            match run.frame_header(position) {
                Ok(frame) => {
                    let floor = frame.floor.min(position);
                    while ends.front().is_some_and(|end| *end <= floor) {
                        proved = ends.pop_front();
                    }
                    if whole_frame(&run, None, position).is_err() {
                        break;
                    }
                    position = frame.end();
                    ends.push_back(position);
                }
                // It may go on in what is not read yet.
                Err(Fault::Length) if unread < limit => {
                    bytes.drain(..(position - from) as usize);
                    from = position;
                    let (kept, want) = (bytes.len(), READ_LEN.min((limit - unread) as usize));
                    bytes.resize(kept + want, 0);
                    read_exact_at(file, &mut bytes[kept..], unread - base).ok()?;
                    unread += want as u64;
                }
                Err(_) => break,
            }
        }
        let is_rest_zero = is_zero(&bytes[(position - from) as usize..])
            && is_zero_from(file, unread - base, limit - base).ok()?;
        Some(CacheView { proved, zeros_from: is_rest_zero.then_some(position) })
    }

    fn find_tail(&mut self, link: &Link, hint: Option<TailHint>) -> Result<Tail, OpenError> {
        let path = self.storage.describe(&link.name());
        let access = if self.write { Access::Write } else { Access::Read };
        let file = self.storage.open(&link.name(), access);
        let file = file.map_err(OpenError::io(format!("opening {path}")))?;
        // What is read below must be on the device before anybody builds on it.
        file.sync().map_err(OpenError::io(format!("syncing {path}")))?;
        let mut suspected = None;
        let (end, condition) = loop {
            let (end, condition) = self
                .scan_tail(&*file, link, hint)
                .map_err(OpenError::io(format!("reading {path}")))?;
            let damaged = match condition {
                TailCondition::Zeros | TailCondition::Torn { .. } => false,
                TailCondition::ProvedByFrame(_) | TailCondition::ProvedByCheckpoint(_) => true,
            };
            // A writer that goes on meanwhile can look like damage: a frame that was read while it was
            // half written, before a whole one that was read later. Damage stays where it is.
            if !damaged || suspected == Some(end) {
                break (end, condition);
            }
            suspected = Some(end);
        };
        // Once more, for what such a writer has added since: what is shown is durable.
        file.sync().map_err(OpenError::io(format!("syncing {path}")))?;
        let (end, report) = conclude(&link.header, end, condition, self.write, self.damage)?;
        Ok(Tail { end, report, zeros_follow: condition == TailCondition::Zeros })
    }
}

/// What the operating system's cache shows of the last segment. After a failed sync it can show bytes that the device
/// never got, so it decides nothing, but it tells what need not be read from the device.
#[derive(Debug, Clone, Copy)]
struct CacheView {
    /// The end of frames that are whole, and of which a frame behind them says that they were durable when it was made:
    /// true also if the device never got that frame.
    proved: Option<u64>,
    /// The end of the frames, if nothing but zeros follows. Everything was written through the cache, and zeros never
    /// over anything else, so the device has nothing there either.
    zeros_from: Option<u64>,
}

/// The frame that ends exactly at `end`, by its header. The scan starts there, and so believes a
/// checkpoint no further than the log bears it out; without such a frame it starts from the front.
fn last_frame_before(
    file: &dyn StorageFile,
    header: &SegmentHeader,
    end: u64,
) -> io::Result<Option<u64>> {
    let first = header.base + SEGMENT_HEADER_LEN;
    let earliest = end.saturating_sub(FRAME_LEN_MAX).max(first);
    if end == first || !(end - first).is_multiple_of(ALIGN) {
        return Ok((end == first).then_some(first));
    }
    let mut unread = end;
    let mut len = LOOK_BACK_LEN;
    while unread > earliest {
        let start = end.saturating_sub(len).max(earliest);
        let bytes = read_device_run(file, start - header.base, end - start)?;
        let run = Run { bytes: &bytes, start, salt: header.salt };
        // The part that was read before cannot hold the start of the frame.
        let mut position = unread;
        while position > start {
            position -= ALIGN;
            if run.frame_header(position).is_ok_and(|frame| frame.end() == end) {
                return Ok(Some(position));
            }
        }
        unread = start;
        len *= 8;
    }
    Ok(None)
}

fn read_device_run(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    read_run(len, |piece, at| read_device_exact_at(file, piece, offset + at))
}

/// Reads `len` bytes, piece by piece.
fn read_run(len: u64, read: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut piece = vec![0; READ_LEN.min(len)];
    while bytes.len() < len {
        let want = piece.len().min(len - bytes.len());
        read(&mut piece[..want], bytes.len() as u64)?;
        bytes.extend_from_slice(&piece[..want]);
    }
    Ok(bytes)
}

/// The end of the whole frames that follow each other from `start`, and why the next is none. What is known
/// to be lost counts as whole, and behind it the rest of a frame whose header is lost.
fn whole_frames(run: &Run<'_>, losses: Option<&Losses>, start: u64) -> (u64, Fault) {
    let (mut position, mut is_behind_loss) = (start, false);
    while position < run.end() {
        if let Some(end) = end_of_loss(losses, position) {
            (position, is_behind_loss) = (end.min(run.end()), true);
            continue;
        }
        match whole_frame(run, losses, position) {
            Ok(header) => {
                position = header.end();
                // A stretch can begin in one frame and end in another.
                is_behind_loss = end_of_loss(losses, position - ALIGN).is_some();
            }
            Err(fault) => match run.record_whole(position) {
                Ok(record) if is_behind_loss => position += record.len(),
                Ok(_) | Err(_) => return (position, fault),
            },
        }
    }
    (position, Fault::Length)
}

fn end_of_loss(losses: Option<&Losses>, position: u64) -> Option<u64> {
    losses?.stretch_at(position).map(|stretch| stretch.to)
}

/// A frame is whole if its header and each of its records are, and they fill it. A record of a kind
/// that this version does not know is whole: it must not be taken for a torn one.
pub(crate) fn whole_frame(
    run: &Run<'_>,
    losses: Option<&Losses>,
    position: u64,
) -> Result<FrameHeader, Fault> {
    let header = run.frame_header(position)?;
    let (mut next, mut count, mut is_lossy) = (position + FRAME_HEADER_LEN, 0, false);
    while next < header.end() {
        if let Some(end) = end_of_loss(losses, next) {
            (next, is_lossy) = (end, true);
            continue;
        }
        next += run.record_whole(next)?.len();
        count += 1;
    }
    if is_lossy && next >= header.end() {
        // Nobody knows how many records there were.
        return Ok(FrameHeader { len: next - position, ..header });
    }
    match () {
        () if next > header.end() => Err(Fault::Length),
        () if count != header.record_count => Err(Fault::Count),
        () => Ok(header),
    }
}

fn tail_condition(
    run: &Run<'_>,
    losses: Option<&Losses>,
    end: u64,
    fault: Fault,
    hint: Option<TailHint>,
) -> TailCondition {
    let rest = &run.bytes[(end - run.start) as usize..];
    let written_end = end + written_len(rest) as u64;
    let mut resumes = None;
    let mut durable_end = end;
    let mut next = end + ALIGN;
    while next < written_end {
        let Ok(header) = run.frame_header(next) else {
            next += ALIGN;
            continue;
        };
        // A frame that was made when the log was durable beyond `end` proves that what stood at
        // `end` had been acknowledged. Its header is proof enough, whatever became of its records.
        durable_end = durable_end.max(header.floor.min(next));
        if whole_frame(run, losses, next).is_ok() {
            resumes.get_or_insert(next);
            next = header.end();
        } else {
            next += ALIGN;
        }
    }
    let proof = |durable_end: u64| {
        let readable_end = whole_frames(run, losses, durable_end.min(run.end())).0;
        Proof { fault, resumes: resumes.unwrap_or(durable_end), readable_end }
    };
    match hint {
        Some(hint) if hint.durable_end > durable_end => {
            TailCondition::ProvedByCheckpoint(proof(hint.durable_end))
        }
        Some(_) | None if durable_end > end => TailCondition::ProvedByFrame(proof(durable_end)),
        Some(_) | None if written_end == end => TailCondition::Zeros,
        Some(_) | None => TailCondition::Torn { written_end },
    }
}

/// The decision table of FORMAT.md, "The tail": where the log ends, and what to say of it.
fn conclude(
    header: &SegmentHeader,
    end: u64,
    condition: TailCondition,
    write: bool,
    damage: &mut Vec<Damage>,
) -> Result<(u64, TailReport), OpenError> {
    let found = |proof: Proof| Damage {
        segment: header.number,
        file: name::segment(header.number),
        offset: end - header.base,
        position: end,
        resumes: proof.resumes,
        fault: proof.fault,
    };
    match (condition, write) {
        // T1.
        (TailCondition::Zeros, true | false) => Ok((end, TailReport::Clean)),
        // T2.
        (TailCondition::Torn { written_end }, true | false) => {
            Ok((end, TailReport::Cut { position: end, dropped_len: written_end - end }))
        }
        // T3, T4.
        (TailCondition::ProvedByFrame(proof), true)
        | (TailCondition::ProvedByCheckpoint(proof), true) => Err(OpenError::Damaged(found(proof))),
        // T5: a reader changes nothing and shows all that is whole, on both sides.
        (TailCondition::ProvedByFrame(proof), false)
        | (TailCondition::ProvedByCheckpoint(proof), false) => {
            damage.push(found(proof));
            Ok((proof.readable_end, TailReport::Clean))
        }
    }
}
