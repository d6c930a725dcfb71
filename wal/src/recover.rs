//! From a directory to a usable log.
//!
//! Recovery reads the header of every segment, then the frames of the last one. It ends in a
//! [`Recovered`] log or in an error; nothing half recovered exists. Every decision is a row of a
//! table in `FORMAT.md`: rows H1 to H6 for headers, rows T1 to T5 for the tail.
//!
//! Recovery is idempotent: a crash at any of its steps leaves a directory that recovers to the same
//! log. It never truncates, and cuts a torn tail by sealing the segment below it.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::error::OpenError;
use crate::format::{
    ALIGN, FRAME_HEADER_LEN, FRAME_LEN_MAX, Fault, FrameHeader, Run, SEGMENT_HEADER_LEN,
    SegmentHeader, SegmentHeaderState, VERSION_MAJOR, is_zero, written_len,
};
use crate::log::SEGMENT_LEN_MIN;
use crate::name;
use crate::segment::{Damage, Segment};
use crate::storage::{
    Access, MappedFile, Storage, StorageFile, read_device_exact_at, read_exact_at,
};

/// Files are read in pieces of this many bytes where not all of one is wanted at once.
const READ_LEN: usize = 1 << 20;
/// How far before a checkpoint's end its last frame is looked for at first.
const LOOK_BACK_LEN: u64 = 1 << 16;

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
    /// Damaged headers that a reading store worked around.
    pub(crate) damage: Vec<Damage>,
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
    Damaged { fault: Fault, other_copy: Option<SegmentHeader> },
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
    let found = find_segments(storage)?;
    let mut chain = Chain { storage, write, links: Vec::new(), spare: None, damage: Vec::new() };
    for index in 0..found.len() {
        chain.take(&found, index)?;
    }
    let Chain { links, spare, mut damage, .. } = chain;
    let Some(last) = links.last() else { return Ok(None) };
    let mut segments = Vec::with_capacity(links.len());
    for pair in links.windows(2) {
        let (header, next) = (&pair[0].header, &pair[1]);
        let end = match next.previous_end {
            Some(end) => end,
            // Only the header that is lost knew where this segment was cut.
            None => find_tail(storage, header, None, write, &mut damage)?.end,
        };
        segments.push(open_segment(storage, header, end - header.base)?);
    }
    let tail = find_tail(storage, &last.header, hint, write, &mut damage)?;
    let Tail { end, report, zeros_follow } = tail;
    segments.push(open_segment(storage, &last.header, end - last.header.base)?);
    let closed = hint.is_some_and(|hint| hint.closed && hint.durable_end == end);
    let empty = end == last.header.base + SEGMENT_HEADER_LEN;
    // A page that is written again takes along whatever the cache shows in it, and after a failed
    // sync that may be frames that were never acknowledged.
    let appendable =
        zeros_follow && (closed || empty) && is_cache_empty(storage, &last.header, end)?;
    Ok(Some(Recovered { segments, end, report, appendable, spare, damage }))
}

/// Identity of the store whose log is in `storage`, as the header of the first segment tells it;
/// nothing if there is none that can be read. A checkpoint of another store is no [`TailHint`].
pub fn store_id(storage: &dyn Storage) -> Option<[u8; 16]> {
    let names = storage.list().ok()?;
    let numbers = names.iter().filter_map(|name| match name::kind(name) {
        name::Kind::Segment(number) => Some(number),
        _ => None,
    });
    let file = storage.open(&name::segment(numbers.min()?), Access::Read).ok()?;
    match read_header(&*file, file.len().ok()?).ok()? {
        SegmentHeaderState::Valid(header) | SegmentHeaderState::OneCopy(header, _) => {
            Some(header.store_id)
        }
        SegmentHeaderState::Unused
        | SegmentHeaderState::Damaged(_)
        | SegmentHeaderState::Foreign { .. } => None,
    }
}

fn find_segments(storage: &dyn Storage) -> Result<Vec<FoundSegment>, OpenError> {
    let names = storage.list().map_err(OpenError::io("listing the store's directory"))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| match name::kind(name) {
            name::Kind::Segment(number) => Some(number),
            name::Kind::Lock
            | name::Kind::SegmentNew(_)
            | name::Kind::Order(_)
            | name::Kind::Tips(_)
            | name::Kind::Run(_)
            | name::Kind::Checkpoint
            | name::Kind::Unknown => None,
        })
        .collect();
    numbers.sort_unstable();
    let mut found = Vec::with_capacity(numbers.len());
    for (index, &number) in numbers.iter().enumerate() {
        let last = index + 1 == numbers.len();
        found.extend(FoundSegment::read(storage, number, last)?);
    }
    Ok(found)
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
    /// Reads what matters of a segment file; nothing if it is the last and is gone again, because a
    /// writer has taken back a spare meanwhile.
    pub(crate) fn read(
        storage: &dyn Storage,
        number: u64,
        last: bool,
    ) -> Result<Option<Self>, OpenError> {
        let name = name::segment(number);
        let path = storage.describe(&name);
        let file = match storage.open(&name, Access::Read) {
            Err(error) if last && error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(OpenError::io(format!("opening {path}")))?,
        };
        Self::read_file(&*file, number, last)
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

    pub(crate) fn condition(
        &self,
        previous: Option<&SegmentHeader>,
        last: bool,
    ) -> HeaderCondition {
        // A file too short to be a segment was cut by somebody else.
        let untouched = last && self.body_zero && self.len >= SEGMENT_LEN_MIN;
        let (header, fault) = match &self.state {
            SegmentHeaderState::Unused if untouched => return HeaderCondition::Spare,
            SegmentHeaderState::Damaged(_) | SegmentHeaderState::OneCopy(..) if untouched => {
                return HeaderCondition::Activating;
            }
            SegmentHeaderState::Unused => {
                return HeaderCondition::Damaged { fault: Fault::NoMagic, other_copy: None };
            }
            SegmentHeaderState::Damaged(fault) => {
                return HeaderCondition::Damaged { fault: *fault, other_copy: None };
            }
            SegmentHeaderState::Foreign { major, .. } if *major != VERSION_MAJOR => {
                return HeaderCondition::Foreign { major: *major };
            }
            SegmentHeaderState::Foreign { .. } => {
                return HeaderCondition::Misfit {
                    detail: "it uses a feature that this build does not know",
                };
            }
            SegmentHeaderState::Valid(header) => (header, None),
            SegmentHeaderState::OneCopy(header, fault) => (header, Some(*fault)),
        };
        match (self.misfit(header, previous), fault) {
            (Some(detail), _) => HeaderCondition::Misfit { detail },
            (None, None) => HeaderCondition::Whole(header.clone()),
            (None, Some(fault)) => {
                HeaderCondition::Damaged { fault, other_copy: Some(header.clone()) }
            }
        }
    }

    /// Why a whole header does not belong here.
    fn misfit(
        &self,
        header: &SegmentHeader,
        previous: Option<&SegmentHeader>,
    ) -> Option<&'static str> {
        if header.number != self.number {
            return Some("its header has another number than its name");
        }
        if header.len != self.len {
            return Some("the file is shorter or longer than its header says");
        }
        let follows = match previous {
            None => header.base == 0 && header.previous_end == 0 && header.previous_salt == 0,
            Some(previous) if header.store_id != previous.store_id => {
                return Some("it belongs to another store");
            }
            Some(previous) => {
                header.base == previous.base + previous.len
                    && header.previous_salt == previous.salt
                    && header.previous_end >= previous.base + SEGMENT_HEADER_LEN
                    && header.previous_end <= header.base
            }
        };
        (!follows).then_some("it does not follow the segment before it")
    }

    /// What can be known of a lost header from the segments beside it: all but where the segment
    /// before it ends.
    fn rebuilt(
        &self,
        previous: Option<&SegmentHeader>,
        next: Option<&Self>,
    ) -> Option<SegmentHeader> {
        let next = match &next?.state {
            SegmentHeaderState::Valid(next) | SegmentHeaderState::OneCopy(next, _) => next,
            SegmentHeaderState::Unused
            | SegmentHeaderState::Foreign { .. }
            | SegmentHeaderState::Damaged(_) => return None,
        };
        let base = previous.map_or(0, |header| header.base + header.len);
        let follows = next.base.checked_sub(self.len) == Some(base)
            && previous.is_none_or(|header| header.store_id == next.store_id);
        follows.then(|| SegmentHeader {
            store_id: next.store_id,
            number: self.number,
            base,
            len: self.len,
            salt: next.previous_salt,
            previous_end: previous.map_or(0, |header| header.base + header.len),
            previous_salt: previous.map_or(0, |header| header.salt),
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

/// A segment of the log, in its place.
#[derive(Debug)]
struct Link {
    header: SegmentHeader,
    /// Where the segment before it ends; unknown if the header had to be rebuilt.
    previous_end: Option<u64>,
}

/// The segments of the log, as far as they have been looked at.
#[derive(Debug)]
struct Chain<'a> {
    storage: &'a dyn Storage,
    write: bool,
    links: Vec<Link>,
    /// Number of an unused segment at the end.
    spare: Option<u64>,
    damage: Vec<Damage>,
}

impl Chain<'_> {
    /// The decision table of FORMAT.md, "Headers": what a segment file is to the log.
    fn take(&mut self, found: &[FoundSegment], index: usize) -> Result<(), OpenError> {
        let segment = &found[index];
        let path = |number| self.storage.describe(&name::segment(number));
        let previous = self.links.last().map(|link| &link.header);
        let next = found.get(index + 1);
        let condition = segment.condition(previous, next.is_none());
        // H6: a gap, also before a file that was never used: it was prepared to follow a segment.
        let expected = index as u64 + 1;
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
                let previous_end = Some(header.previous_end);
                self.links.push(Link { header, previous_end });
            }
            // H4.
            HeaderCondition::Damaged { fault, other_copy } => {
                let base = previous.map_or(0, |header| header.base + header.len);
                let previous_end = other_copy.as_ref().map(|header| header.previous_end);
                let known = other_copy.or_else(|| segment.rebuilt(previous, next));
                let first = base + SEGMENT_HEADER_LEN;
                let found = Damage {
                    segment: segment.number,
                    file: name::segment(segment.number),
                    offset: 0,
                    position: base,
                    resumes: if known.is_some() { first } else { base + segment.len },
                    fault,
                };
                match known {
                    Some(header) if !self.write => {
                        self.damage.push(found);
                        self.links.push(Link { header, previous_end });
                    }
                    // Without its salt nothing in the last segment can be told from noise; what
                    // stands before it can still be read.
                    None if !self.write && next.is_none() && previous.is_some() => {
                        self.damage.push(found);
                    }
                    Some(_) | None => return Err(OpenError::Damaged(found)),
                }
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

fn open_segment(
    storage: &dyn Storage,
    header: &SegmentHeader,
    published: u64,
) -> Result<Arc<Segment>, OpenError> {
    let name = name::segment(header.number);
    let context = format!("mapping {}", storage.describe(&name));
    let file = MappedFile::open(storage, &name, published).map_err(OpenError::io(context))?;
    Ok(Segment::new(header.clone(), file))
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

fn find_tail(
    storage: &dyn Storage,
    header: &SegmentHeader,
    hint: Option<TailHint>,
    write: bool,
    damage: &mut Vec<Damage>,
) -> Result<Tail, OpenError> {
    let name = name::segment(header.number);
    let path = storage.describe(&name);
    let access = if write { Access::Write } else { Access::Read };
    let file = storage.open(&name, access).map_err(OpenError::io(format!("opening {path}")))?;
    // What is read below must be on the device before anybody builds on it.
    file.sync().map_err(OpenError::io(format!("syncing {path}")))?;
    let mut suspected = None;
    let (end, condition) = loop {
        let (end, condition) =
            scan_tail(&*file, header, hint).map_err(OpenError::io(format!("reading {path}")))?;
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
    let (end, report) = conclude(header, end, condition, write, damage)?;
    Ok(Tail { end, report, zeros_follow: condition == TailCondition::Zeros })
}

/// Finds the end of the whole frames of a segment, and what follows it. Reads past the operating
/// system's cache, which after a failed sync can show bytes that the device never got.
fn scan_tail(
    file: &dyn StorageFile,
    header: &SegmentHeader,
    hint: Option<TailHint>,
) -> io::Result<(u64, TailCondition)> {
    let first = header.base + SEGMENT_HEADER_LEN;
    let limit = header.base + header.len;
    let start = match hint {
        Some(hint) if (first..=limit).contains(&hint.durable_end) => {
            last_frame_before(file, header, hint.durable_end)?.unwrap_or(first)
        }
        Some(_) | None => first,
    };
    let bytes = read_run(file, start - header.base, limit - start)?;
    let run = Run { bytes: &bytes, start, salt: header.salt };
    let (end, fault) = whole_frames(&run, start);
    Ok((end, tail_condition(&run, end, fault, hint)))
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
        let bytes = read_run(file, start - header.base, end - start)?;
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

fn read_run(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut piece = vec![0; READ_LEN.min(len)];
    while bytes.len() < len {
        let want = piece.len().min(len - bytes.len());
        read_device_exact_at(file, &mut piece[..want], offset + bytes.len() as u64)?;
        bytes.extend_from_slice(&piece[..want]);
    }
    Ok(bytes)
}

/// The end of the whole frames that follow each other from `start`, and why the next is none.
fn whole_frames(run: &Run<'_>, start: u64) -> (u64, Fault) {
    let mut position = start;
    loop {
        match whole_frame(run, position) {
            Ok(header) => position = header.end(),
            Err(fault) => return (position, fault),
        }
    }
}

/// A frame is whole if its header and each of its records are, and they fill it. A record of a kind
/// that this version does not know is whole: it must not be taken for a torn one.
pub(crate) fn whole_frame(run: &Run<'_>, position: u64) -> Result<FrameHeader, Fault> {
    let header = run.frame_header(position)?;
    let mut next = position + FRAME_HEADER_LEN;
    for _ in 0..header.record_count {
        next += run.record_whole(next)?.len();
        if next > header.end() {
            return Err(Fault::Length);
        }
    }
    if next == header.end() { Ok(header) } else { Err(Fault::Count) }
}

fn tail_condition(run: &Run<'_>, end: u64, fault: Fault, hint: Option<TailHint>) -> TailCondition {
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
        if whole_frame(run, next).is_ok() {
            resumes.get_or_insert(next);
            next = header.end();
        } else {
            next += ALIGN;
        }
    }
    let proof = |durable_end: u64| {
        let readable_end = whole_frames(run, durable_end.min(run.end())).0;
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
