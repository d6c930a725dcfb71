//! A segment as readers see it: mapped, bounded by what is published, walked record by record.
//!
//! Damage isolates one record. A walk that meets bytes it cannot trust reports them, looks for the
//! next place at which a whole frame or record stands where it belongs, and goes on from there.

use std::fmt;
use std::sync::Arc;

use crate::format::{Fault, Run, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::loss::Losses;
use crate::name;
use crate::record::Record;
use crate::storage::MappedFile;

/// A place in the log whose bytes are not what was written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Number of the segment.
    pub segment: u64,
    /// Name of the file inside the store's directory.
    pub file: String,
    /// Offset of the damage in the file, in bytes.
    pub offset: u64,
    /// Position of the damage in the whole log.
    pub position: u64,
    /// Position from which on the log can be read again; that of the damage itself if nobody looked.
    pub resumes: u64,
    /// What is wrong.
    pub fault: Fault,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damage { file, offset, position, fault, resumes, .. } = self;
        write!(f, "damage in {file} at offset {offset} (position {position}): {fault}")?;
        if resumes > position {
            write!(f, "; readable again from position {resumes}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Damage {}

/// One segment of the log, open for reading.
#[derive(Debug)]
pub struct Segment {
    header: SegmentHeader,
    file: Arc<MappedFile>,
    /// What is lost of the log, if anything of this segment is.
    losses: Option<Arc<Losses>>,
}

impl Segment {
    pub(crate) fn new(
        header: SegmentHeader,
        file: Arc<MappedFile>,
        losses: Option<&Arc<Losses>>,
    ) -> Arc<Self> {
        let limit = header.base + header.len;
        let losses = losses.filter(|losses| losses.touches(header.base, limit)).cloned();
        Arc::new(Segment { header, file, losses })
    }

    /// The file, which stays as it is when its name goes.
    pub fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }

    pub(crate) fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Ordinal of the segment, from 1.
    pub fn number(&self) -> u64 {
        self.header.number
    }

    /// From the beginning of this segment on, ids of deliveries with a global sequence below this one are
    /// forgotten; 0 if none is. Never less than in the segment before.
    pub fn forgotten(&self) -> u64 {
        self.header.forgotten
    }

    /// Position of the first byte of the file.
    #[inline]
    pub fn base(&self) -> u64 {
        self.header.base
    }

    /// Position of the first frame.
    pub fn first(&self) -> u64 {
        self.header.base + SEGMENT_HEADER_LEN
    }

    /// Position at which the readable part ends now. Grows while the segment is written.
    #[inline]
    pub fn end(&self) -> u64 {
        self.header.base + self.file.published()
    }

    /// Position one past the last byte of the file, where the next segment begins.
    #[inline]
    pub fn limit(&self) -> u64 {
        self.header.base + self.header.len
    }

    /// Whether the file that is mapped is as long as its header says.
    pub(crate) fn is_mapped_whole(&self) -> bool {
        self.file.len() == self.header.len
    }

    /// Makes what was written to the segment durable.
    pub fn sync(&self) -> std::io::Result<()> {
        self.file.sync()
    }

    #[inline]
    fn run(&self) -> Run<'_> {
        Run { bytes: self.file.bytes(), start: self.header.base, salt: self.header.salt }
    }

    fn damage(&self, position: u64, resumes: u64, fault: Fault) -> Damage {
        Damage {
            segment: self.number(),
            file: name::segment(self.number()),
            offset: position - self.header.base,
            position,
            resumes,
            fault,
        }
    }

    /// Has the operating system read `from..to` ahead, if it is not in memory: for somebody who is going to walk over it. Does
    /// not wait until it is there.
    pub fn will_need(&self, from: u64, to: u64) {
        if from < to {
            self.file.file().will_need(from - self.header.base, to - from);
        }
    }

    /// Has the processor fetch the bytes at `position`, so that a look at them soon after need not wait.
    #[inline]
    pub fn touch(&self, position: u64) {
        let offset = position.saturating_sub(self.header.base) as usize;
        // A load that nobody needs: it has to happen, and nothing waits for it.
        std::hint::black_box(self.file.bytes().get(offset).copied());
    }

    /// What stands at `position`, if that is lost; nothing if it is not.
    #[inline]
    fn lost(&self, position: u64) -> Option<Result<Record<'_>, Damage>> {
        let losses = self.losses.as_ref()?;
        losses.stretch_at(position)?;
        let substitute = losses.substitute_at(position);
        Some(substitute.ok_or_else(|| self.damage(position, position, Fault::Lost)))
    }

    /// The record at `position`, its checksum verified; what stands in for it if it is lost.
    #[inline]
    pub fn record(&self, position: u64) -> Result<Record<'_>, Damage> {
        if let Some(lost) = self.lost(position) {
            return lost;
        }
        self.run().record(position).map_err(|fault| self.damage(position, position, fault))
    }

    /// The record at `position`, its checksum not verified: for records that this process has
    /// verified before. Lengths are checked, so a wrong position is an error and never a panic.
    #[inline]
    pub fn record_verified_before(&self, position: u64) -> Result<Record<'_>, Damage> {
        if let Some(lost) = self.lost(position) {
            return lost;
        }
        self.run().record_shape(position).map_err(|fault| self.damage(position, position, fault))
    }

    /// The record of `len` bytes at `position`, both as an earlier look has found them.
    ///
    /// # Panics
    ///
    /// If no such range is readable.
    #[inline]
    pub fn record_of_len(&self, position: u64, len: u64) -> Record<'_> {
        let offset = (position - self.header.base) as usize;
        Record::new(&self.file.bytes()[offset..offset + len as usize], position)
    }

    /// The position at or after `from + len` at which a frame ends, or the end of the readable
    /// part: where to cut the log for somebody who reads about `len` bytes. Never within a frame, also if
    /// its header is damaged or lost: the records of a batch stay together. Reads headers only.
    pub fn cut(&self, from: u64, len: u64) -> u64 {
        let run = self.run();
        let (mut position, mut is_between) = (from, true);
        while position < run.end() && (position < from.saturating_add(len) || !is_between) {
            let header = run.frame_header(position);
            position = match (self.end_of_stretch(position), &header) {
                (Some(end), _) => end,
                (None, Ok(header)) => header.end(),
                (None, Err(_)) => self.resync(position),
            };
            // What stands behind damage may be the rest of a frame.
            is_between = self.end_of_stretch(position).is_none()
                && (header.is_ok() || run.frame_header(position).is_ok());
        }
        position.min(run.end())
    }

    /// Where the stretch ends that is known to be lost, if `position` is in one.
    fn end_of_stretch(&self, position: u64) -> Option<u64> {
        Some(self.losses.as_ref()?.stretch_at(position)?.to)
    }

    /// Where the log can be read again after damage at `position`: never beyond the beginning of what is
    /// known to be lost, in which anything may stand.
    fn resync(&self, position: u64) -> u64 {
        let known = self.losses.as_ref().and_then(|losses| losses.next_from(position + 1));
        self.run().resync(position).min(known.unwrap_or(u64::MAX))
    }

    /// When the frames of the segment were made, for whoever asks position after position.
    pub fn frame_times(&self) -> FrameTimes<'_> {
        FrameTimes { segment: self, frame: self.first()..self.first(), written_at: 0 }
    }

    /// All records in `from..to`, in order. Both are positions at which a frame begins, as
    /// [`Segment::first`], [`Segment::cut`] and [`Segment::end`] give them.
    pub fn walk(&self, from: u64, to: u64) -> Walk<'_> {
        let mut run = self.run();
        let to = to.min(run.end());
        run.bytes = &run.bytes[..(to - self.header.base) as usize];
        Walk { segment: self, run, position: from, frame: None, lost: 0..0 }
    }
}

/// When the frames of a segment were made. See [`Segment::frame_times`].
#[derive(Debug)]
pub struct FrameTimes<'a> {
    segment: &'a Segment,
    /// The frame of the last answer, or what stands in its place.
    frame: std::ops::Range<u64>,
    written_at: u64,
}

impl FrameTimes<'_> {
    /// When the frame with `position` was made, in milliseconds since the Unix epoch; nothing if nobody knows:
    /// the frame was written by an older version, its header is damaged or lost, or there is none. Walks over
    /// the headers from the last position that was asked for, or from the first frame, so that all of a
    /// segment cost one walk if they are asked for in order.
    pub fn at(&mut self, position: u64) -> Option<u64> {
        if position < self.frame.start {
            *self = self.segment.frame_times();
        }
        let run = self.segment.run();
        while self.frame.end <= position {
            let start = self.frame.end;
            if start >= run.end() {
                return None;
            }
            let (end, written_at) =
                match (self.segment.end_of_stretch(start), run.frame_header(start)) {
                    (Some(end), _) => (end, 0),
                    (None, Ok(header)) => (header.end(), header.written_at),
                    (None, Err(_)) => (self.segment.resync(start), 0),
                };
            (self.frame, self.written_at) = (start..end, written_at);
        }
        Some(self.written_at).filter(|&written_at| written_at > 0)
    }
}

/// The records of a part of a segment, with the damage between them. See [`Segment::walk`].
#[derive(Debug)]
pub struct Walk<'a> {
    segment: &'a Segment,
    run: Run<'a>,
    position: u64,
    frame: Option<OpenFrame>,
    /// What stands in for the stretch that the walk has come through, by index.
    lost: std::ops::Range<usize>,
}

/// What the walk still expects of the frame that it is in.
#[derive(Debug, Clone, Copy)]
struct OpenFrame {
    position: u64,
    end: u64,
    missing: u32,
}

impl<'a> Walk<'a> {
    /// Enters the frame at the current position.
    fn enter_frame(&mut self) -> Result<(), Fault> {
        let header = self.run.frame_header(self.position)?;
        self.frame = Some(OpenFrame {
            position: header.position,
            end: header.end(),
            missing: header.record_count,
        });
        self.position += crate::format::FRAME_HEADER_LEN;
        Ok(())
    }

    /// Leaves the frame if the walk has reached its end; complains if records are missing in it.
    fn leave_frame(&mut self) -> Option<Damage> {
        let frame = self.frame.take_if(|frame| self.position >= frame.end)?;
        let whole = frame.missing == 0 && self.position == frame.end;
        (!whole).then(|| self.segment.damage(frame.position, frame.end, Fault::Count))
    }

    /// Goes on behind the stretch at the current position, if that is known to be lost.
    fn pass_stretch(&mut self) -> bool {
        let Some(losses) = &self.segment.losses else { return false };
        let Some(stretch) = losses.stretch_at(self.position) else { return false };
        self.lost = losses.substitutes_within(self.position, stretch.to);
        self.position = stretch.to;
        // Records of the frame are missing, and that is known.
        self.frame = None;
        true
    }

    fn skip_damage(&mut self, fault: Fault) -> Damage {
        let from = self.position;
        self.position = self.segment.resync(from).min(self.run.end());
        // The count of a frame in which something is damaged says nothing new.
        self.frame = None;
        self.segment.damage(from, self.position, fault)
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Record<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(index) = self.lost.next() {
                return Some(Ok(self.segment.losses.as_ref()?.substitute(index)));
            }
            if self.pass_stretch() {
                continue;
            }
            if let Some(damage) = self.leave_frame() {
                return Some(Err(damage));
            }
            if self.position >= self.run.end() {
                return None;
            }
            if self.frame.is_none() {
                match self.enter_frame() {
                    Ok(()) => continue,
                    // After damage the walk can find itself between the records of a frame whose
                    // header it could not read: then a record stands here, not a frame.
                    Err(fault) => match self.run.record(self.position) {
                        Ok(record) => {
                            self.position += record.len();
                            return Some(Ok(record));
                        }
                        Err(_) => return Some(Err(self.skip_damage(fault))),
                    },
                }
            }
            return Some(match self.run.record(self.position) {
                Ok(record) => {
                    self.position += record.len();
                    if let Some(frame) = &mut self.frame {
                        frame.missing = frame.missing.saturating_sub(1);
                    }
                    Ok(record)
                }
                Err(fault) => Err(self.skip_damage(fault)),
            });
        }
    }
}
