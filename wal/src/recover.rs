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
    ALIGN, FRAME_HEADER_LEN, Fault, FrameHeader, Run, SEGMENT_HEADER_LEN, SegmentHeader,
    SegmentHeaderState, VERSION_MAJOR,
};
use crate::log::SEGMENT_LEN_MIN;
use crate::name;
use crate::segment::{Damage, Segment};
use crate::storage::{
    Access, MappedFile, Storage, StorageFile, read_device_exact_at, read_exact_at,
};

/// What a checkpoint knows of the end of the log. It saves time, and it can reveal that the end of
/// the log is missing; it is never believed over the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailHint {
    /// The log was durable up to here, which is the end of a frame.
    pub durable_end: u64,
    /// Whether the log was closed at this end, with nothing in flight.
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

/// How the frames of the last segment end. One arm of `conclude` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TailCondition {
    /// T1: zeros from the last whole frame on.
    Zeros,
    /// T2: something that is no whole frame, and no proof that it ever was one.
    Torn { written_end: u64 },
    /// T3: no whole frame, but a later frame proves that the log was durable beyond this place.
    ProvedByFrame { fault: Fault, resumes: u64, readable_end: u64 },
    /// T4: no whole frame, but the checkpoint proves that the log was durable beyond this place.
    ProvedByCheckpoint { fault: Fault, resumes: u64, readable_end: u64 },
}

/// Reads the directory. With `write`, refuses damage; without, works around it where it can.
pub(crate) fn recover(
    storage: &dyn Storage,
    hint: Option<TailHint>,
    write: bool,
) -> Result<Option<Recovered>, OpenError> {
    let numbers = segment_numbers(storage)?;
    let mut found = Vec::new();
    for &number in &numbers {
        found.push(FoundSegment::read(storage, number)?);
    }
    let spare = found.pop_if(|last| last.is_unused()).map(|spare| spare.number);
    if found.is_empty() {
        return Ok(None);
    }
    let mut damage = Vec::new();
    let headers = chain(storage, &found, write, &mut damage)?;
    let mut segments = Vec::with_capacity(headers.len());
    for pair in headers.windows(2) {
        let published = pair[1].previous_end.saturating_sub(pair[0].base);
        segments.push(open_segment(storage, &pair[0], published)?);
    }
    let last = headers.last().expect("at least one header");
    let (whole_end, condition) = scan_tail(storage, last, hint, write)?;
    let (end, report) = conclude(last, whole_end, condition, write, &mut damage)?;
    segments.push(open_segment(storage, last, end - last.base)?);
    let closed = hint.is_some_and(|hint| hint.closed && hint.durable_end == end);
    let empty = end == last.base + SEGMENT_HEADER_LEN;
    let appendable = condition == TailCondition::Zeros && (closed || empty);
    Ok(Some(Recovered { segments, end, report, appendable, spare, damage }))
}

fn segment_numbers(storage: &dyn Storage) -> Result<Vec<u64>, OpenError> {
    let names = storage.list().map_err(OpenError::io("listing the store's directory"))?;
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| match name::kind(name) {
            name::Kind::Segment(number) => Some(number),
            _ => None,
        })
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// A segment file and what its header turns out to be.
#[derive(Debug)]
struct FoundSegment {
    number: u64,
    len: u64,
    state: SegmentHeaderState,
    /// Zeros where the first frame's header would be: no frame was ever written.
    body_zero: bool,
}

impl FoundSegment {
    fn read(storage: &dyn Storage, number: u64) -> Result<Self, OpenError> {
        let name = name::segment(number);
        let path = storage.describe(&name);
        let file =
            storage.open(&name, Access::Read).map_err(OpenError::io(format!("opening {path}")))?;
        let len = file.len().map_err(OpenError::io(format!("reading {path}")))?;
        let mut page = vec![0; (SEGMENT_HEADER_LEN + FRAME_HEADER_LEN).min(len) as usize];
        read_exact_at(&*file, &mut page, 0).map_err(OpenError::io(format!("reading {path}")))?;
        let header_len = page.len().min(SEGMENT_HEADER_LEN as usize);
        let state = SegmentHeader::decode(&page[..header_len]);
        let body_zero = page[header_len..].iter().all(|&byte| byte == 0);
        Ok(FoundSegment { number, len, state, body_zero })
    }

    /// Rows H1 and H2: prepared ahead and not used, or torn while its header was written. Before
    /// the header is durable no frame is written, so a first frame of zeros means that nothing in
    /// the file was ever acknowledged. A file too short to be a segment was cut by somebody else.
    fn is_unused(&self) -> bool {
        match self.state {
            SegmentHeaderState::Unused | SegmentHeaderState::Damaged(_) => {
                self.body_zero && self.len >= SEGMENT_LEN_MIN
            }
            SegmentHeaderState::Valid(_) | SegmentHeaderState::Foreign { .. } => false,
        }
    }

    /// What can be known of a damaged header from the segments beside it: all that matters.
    fn rebuilt(
        &self,
        previous: Option<&SegmentHeader>,
        next: Option<&Self>,
    ) -> Option<SegmentHeader> {
        let SegmentHeaderState::Valid(next) = &next?.state else { return None };
        Some(SegmentHeader {
            store_id: next.store_id,
            number: self.number,
            base: next.base.checked_sub(self.len)?,
            len: self.len,
            salt: next.previous_salt,
            previous_end: previous.map_or(0, |header| header.base + header.len),
            previous_salt: previous.map_or(0, |header| header.salt),
        })
    }
}

/// Checks that the segments follow each other without gap (rows H3 to H6).
fn chain(
    storage: &dyn Storage,
    found: &[FoundSegment],
    write: bool,
    damage: &mut Vec<Damage>,
) -> Result<Vec<SegmentHeader>, OpenError> {
    let mut headers: Vec<SegmentHeader> = Vec::with_capacity(found.len());
    for (index, segment) in found.iter().enumerate() {
        let expected = index as u64 + 1;
        let path = |number| storage.describe(&name::segment(number));
        if segment.number != expected {
            return Err(OpenError::SegmentMissing { file: path(expected) });
        }
        let header = match &segment.state {
            SegmentHeaderState::Valid(header) => header.clone(),
            SegmentHeaderState::Foreign { major } => {
                return Err(OpenError::Version {
                    file: path(segment.number),
                    found: *major,
                    supported: VERSION_MAJOR,
                });
            }
            SegmentHeaderState::Unused => damaged_header(
                segment,
                Fault::NoMagic,
                headers.last(),
                found.get(index + 1),
                write,
                damage,
            )?,
            SegmentHeaderState::Damaged(fault) => damaged_header(
                segment,
                *fault,
                headers.last(),
                found.get(index + 1),
                write,
                damage,
            )?,
        };
        let foreign = |detail| OpenError::SegmentForeign { file: path(segment.number), detail };
        if header.number != segment.number {
            return Err(foreign("its header has another number than its name"));
        }
        if header.len != segment.len {
            return Err(foreign("the file is shorter or longer than its header says"));
        }
        if let Some(previous) = headers.last() {
            if header.store_id != previous.store_id {
                return Err(foreign("it belongs to another store"));
            }
            let follows = header.base == previous.base + previous.len
                && header.previous_salt == previous.salt
                && header.previous_end >= previous.base + SEGMENT_HEADER_LEN
                && header.previous_end <= header.base;
            if !follows {
                return Err(foreign("it does not follow the segment before it"));
            }
        }
        headers.push(header);
    }
    Ok(headers)
}

fn damaged_header(
    segment: &FoundSegment,
    fault: Fault,
    previous: Option<&SegmentHeader>,
    next: Option<&FoundSegment>,
    write: bool,
    damage: &mut Vec<Damage>,
) -> Result<SegmentHeader, OpenError> {
    let base = previous.map_or(0, |header| header.base + header.len);
    let found = Damage {
        segment: segment.number,
        file: name::segment(segment.number),
        offset: 0,
        position: base,
        resumes: base + SEGMENT_HEADER_LEN,
        fault,
    };
    match segment.rebuilt(previous, next) {
        Some(header) if !write => {
            damage.push(found);
            Ok(header)
        }
        _ => Err(OpenError::Damaged(found)),
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

/// Finds the end of the whole frames of the last segment, and what follows it.
///
/// The segment is synced first, so that what is then read is durable before anybody builds on it,
/// and read past the operating system's cache, which after a failed sync can show bytes that the
/// device never got.
fn scan_tail(
    storage: &dyn Storage,
    header: &SegmentHeader,
    hint: Option<TailHint>,
    write: bool,
) -> Result<(u64, TailCondition), OpenError> {
    let name = name::segment(header.number);
    let path = storage.describe(&name);
    let first = header.base + SEGMENT_HEADER_LEN;
    let limit = header.base + header.len;
    let start = match hint {
        Some(hint) if (first..=limit).contains(&hint.durable_end) => hint.durable_end,
        _ => first,
    };
    let access = if write { Access::Write } else { Access::Read };
    let file = storage.open(&name, access).map_err(OpenError::io(format!("opening {path}")))?;
    file.sync().map_err(OpenError::io(format!("syncing {path}")))?;
    let bytes = read_tail(&*file, start - header.base, limit - start)
        .map_err(OpenError::io(format!("reading {path}")))?;
    let run = Run { bytes: &bytes, start, salt: header.salt };
    let (end, fault) = whole_frames(&run);
    Ok((end, tail_condition(&run, end, fault, hint)))
}

fn read_tail(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    read_device_exact_at(file, &mut bytes, offset)?;
    Ok(bytes)
}

/// The end of the whole frames from the start of the run, and why the next is none.
fn whole_frames(run: &Run<'_>) -> (u64, Fault) {
    let mut position = run.start;
    loop {
        match whole_frame(run, position) {
            Ok(header) => position = header.end(),
            Err(fault) => return (position, fault),
        }
    }
}

/// A frame is whole if its header and each of its records are, and they fill it.
fn whole_frame(run: &Run<'_>, position: u64) -> Result<FrameHeader, Fault> {
    let header = run.frame_header(position)?;
    let mut next = position + FRAME_HEADER_LEN;
    for _ in 0..header.record_count {
        next += run.record(next)?.len();
        if next > header.end() {
            return Err(Fault::Length);
        }
    }
    if next == header.end() { Ok(header) } else { Err(Fault::Count) }
}

fn tail_condition(run: &Run<'_>, end: u64, fault: Fault, hint: Option<TailHint>) -> TailCondition {
    let rest = &run.bytes[(end - run.start) as usize..];
    let written_end = rest.iter().rposition(|&byte| byte != 0).map(|last| end + last as u64 + 1);
    let mut readable_end = end;
    let mut resumes = None;
    let mut proved = false;
    let mut next = end + ALIGN;
    while next < written_end.unwrap_or(end) {
        let Ok(header) = whole_frame(run, next) else {
            // A header alone is proof enough, whatever became of its records.
            proved |= run.frame_header(next).is_ok_and(|header| header.floor > end);
            next += ALIGN;
            continue;
        };
        // A frame that was made when the log was durable beyond `end` proves that what stood at
        // `end` had been acknowledged.
        proved |= header.floor > end;
        resumes.get_or_insert(next);
        readable_end = header.end();
        next = header.end();
    }
    if proved {
        let resumes = resumes.unwrap_or(readable_end);
        return TailCondition::ProvedByFrame { fault, resumes, readable_end };
    }
    match (hint, written_end) {
        (Some(hint), _) if hint.durable_end > end => TailCondition::ProvedByCheckpoint {
            fault,
            resumes: hint.durable_end,
            readable_end: hint.durable_end.min(run.end()),
        },
        (_, None) => TailCondition::Zeros,
        (_, Some(written_end)) => TailCondition::Torn { written_end },
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
    match condition {
        TailCondition::Zeros => Ok((end, TailReport::Clean)),
        TailCondition::Torn { written_end } => {
            Ok((end, TailReport::Cut { position: end, dropped_len: written_end - end }))
        }
        TailCondition::ProvedByFrame { fault, resumes, readable_end }
        | TailCondition::ProvedByCheckpoint { fault, resumes, readable_end } => {
            let found = Damage {
                segment: header.number,
                file: name::segment(header.number),
                offset: end - header.base,
                position: end,
                resumes,
                fault,
            };
            if write {
                return Err(OpenError::Damaged(found));
            }
            // T5: a reader changes nothing and shows all that is whole, on both sides.
            damage.push(found);
            Ok((readable_end, TailReport::Clean))
        }
    }
}
