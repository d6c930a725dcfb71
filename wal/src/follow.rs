//! The log as somebody sees it who reads along while another process writes.
//!
//! The follower shows nothing by itself. It is told a position, because something that its writer has made after the
//! sync names it, and then makes the log readable up to the end of the frame that holds it. What it
//! cannot see through a map yet, since the writer may be writing it, it reads with positioned reads; it
//! believes a frame when it is whole, and publishes it on the map then.
//!
//! Bytes that are published so are never written again: the writer goes on behind them, and one that recovers
//! keeps whole frames or, if it cuts them, leaves them alone in a sealed segment.

use std::io;
use std::sync::Arc;

use crate::error::OpenError;
use crate::format::{
    FRAME_HEADER_LEN, FRAME_LEN_MAX, Fault, Run, SEGMENT_HEADER_LEN, SegmentHeader,
    SegmentHeaderState, VERSION_MAJOR,
};
use crate::log::LogReader;
use crate::loss::Losses;
use crate::name;
use crate::recover::{Before, FoundSegment, HeaderCondition, Place, TailHint, whole_frame};
use crate::segment::Segment;
use crate::storage::{Access, MappedTail, Storage};
use crate::trim::TrimHeader;

/// Bytes that are read ahead at first. A frame that is longer is read again, twice as long each time.
const READ_LEN: u64 = 64 << 10;

/// A log that another process may be writing. Has no threads, takes no lock and changes nothing.
#[derive(Debug)]
pub struct LogFollower {
    storage: Arc<dyn Storage>,
    segments: Vec<Arc<Segment>>,
    /// What was recorded as lost when this was opened.
    losses: Option<Arc<Losses>>,
    /// Position at which the log begins, as far as this knows.
    begins: u64,
    /// Of the last segment.
    tail: MappedTail,
    /// What was read ahead; kept for its space.
    ahead: Vec<u8>,
}

impl LogFollower {
    /// Opens the log that is there, as [`LogReader::open`] does; damage that was worked around is met again by
    /// whoever reads it.
    pub fn open(storage: Arc<dyn Storage>, hint: Option<TailHint>) -> Result<Self, OpenError> {
        let LogReader { segments, losses, trim, .. } = LogReader::open(&*storage, hint)?;
        let begins = trim.map_or(0, |trim| trim.position);
        let last = segments.last().expect("an open log has a segment");
        // Nobody else in this process has the map that the reader has just made.
        let tail = MappedTail::of(Arc::clone(last.file()));
        Ok(LogFollower { storage, segments, losses, begins, tail, ahead: Vec::new() })
    }

    /// Identity of the store, random, the same in all its segments.
    pub fn store_id(&self) -> [u8; 16] {
        self.last().header().store_id
    }

    /// What derived files carry as the identity of their log: see [`identity`](crate::identity).
    pub fn identity(&self) -> [u8; 16] {
        crate::loss::identity(&self.last().header().store_id, self.losses.as_deref())
    }

    /// All segments so far, in order. None ever goes or changes its place, but by [`LogFollower::let_go`].
    /// One that is trimmed stays readable; one that is trimmed before this has come to it is left out.
    pub fn segments(&self) -> &[Arc<Segment>] {
        &self.segments
    }

    /// Position at which the log began when this last looked: at opening, and since then if it found
    /// the next segment trimmed. What was not reached below it never will be.
    pub fn begins_at(&self) -> u64 {
        self.begins
    }

    /// Lets go of the first segments, up to those that end at `position`, but not of the last one; returns how
    /// many. The space of a segment that is trimmed is given back once nobody has a map of it.
    pub fn let_go(&mut self, position: u64) -> usize {
        let until = self.segments.len() - 1;
        let count = self.segments[..until].partition_point(|segment| segment.limit() <= position);
        self.segments.drain(..count).count()
    }

    fn last(&self) -> &Arc<Segment> {
        self.segments.last().expect("an open log has a segment")
    }

    /// Makes the log readable up to the end of the frame that holds `position`; `false` if there is no such frame,
    /// or not yet: then another call may find it. Nor is there if it was trimmed: see [`LogFollower::begins_at`].
    ///
    /// # Errors
    ///
    /// A file cannot be read, or the log goes on with a segment that this version cannot read or that is another
    /// log's. The call can be made again.
    pub fn reach(&mut self, position: u64) -> Result<bool, OpenError> {
        loop {
            let unread = |last: &Segment| (last.end()..last.limit()).contains(&position);
            while unread(self.last()) && self.take_frames(position)? {}
            // A segment that is followed by another has been sealed, and shows all that it holds.
            if position < self.last().end() || !self.take_segment()? {
                return Ok(self.is_readable(position));
            }
        }
    }

    fn is_readable(&self, position: u64) -> bool {
        let after = self.segments.partition_point(|segment| segment.base() <= position);
        let holds = |segment: &Arc<Segment>| (segment.first()..segment.end()).contains(&position);
        self.segments[..after].last().is_some_and(holds)
    }

    /// Publishes whole frames of the last segment, no further than the one that holds `position`: as many as are
    /// read at once. `false` if there is none.
    fn take_frames(&mut self, position: u64) -> Result<bool, OpenError> {
        let last = Arc::clone(self.last());
        let header = last.header();
        let start = last.end();
        let room = last.limit() - start;
        let (mut want, mut taken) = (READ_LEN.min(room), false);
        while want >= FRAME_HEADER_LEN {
            self.ahead.resize(want as usize, 0);
            let context =
                || format!("reading {}", self.storage.describe(&name::segment(header.number)));
            self.tail
                .read_exact_at(&mut self.ahead, start - header.base)
                .map_err(|source| OpenError::Io { context: context(), source })?;
            let run = Run { bytes: &self.ahead, start, salt: header.salt };
            let mut end = start;
            while end <= position
                && let Ok(frame) = whole_frame(&run, self.losses.as_deref(), end)
            {
                end = frame.end();
            }
            if end > start {
                self.tail.publish(end - header.base);
                taken = true;
                break;
            }
            // The checksum of the header is verified before its length is looked at.
            let is_longer = run.frame_header(start) == Err(Fault::Length);
            if !is_longer || want == room || want >= FRAME_LEN_MAX {
                break;
            }
            want = (want * 2).min(room);
        }
        self.ahead.truncate(READ_LEN as usize);
        self.ahead.shrink_to_fit();
        Ok(taken)
    }

    /// Goes on in the next segment, if the log does. The last one is sealed then, and readable to its end.
    fn take_segment(&mut self) -> Result<bool, OpenError> {
        let last = Arc::clone(self.last());
        let mut number = last.number() + 1;
        let mut found = FoundSegment::read(&*self.storage, number, Place::Last)?;
        let mut trim = None;
        if found.is_none() {
            // Its owner may have trimmed the log up to behind it. A file that cannot tell is no reason to end.
            let point = TrimHeader::read(&*self.storage).ok().flatten();
            trim = point.filter(|trim| {
                trim.point.segment > number && trim.store_id == last.header().store_id
            });
            if let Some(trim) = &trim {
                number = trim.point.segment;
                found = FoundSegment::read(&*self.storage, number, Place::Last)?;
            }
        }
        let before = trim.as_ref().map_or(Before::Segment(last.header()), Before::Trimmed);
        let path = || self.storage.describe(&name::segment(number));
        let Some(found) = found else { return Ok(false) };
        // The rows are those of FORMAT.md, "Headers".
        let header = match found.condition(before, true) {
            // H1, H2, and H4 without a copy: nothing to be read yet.
            HeaderCondition::Spare
            | HeaderCondition::Activating
            | HeaderCondition::Damaged { other_copy: false, .. } => return Ok(false),
            // H3, and H4.
            HeaderCondition::Whole(header) => header,
            HeaderCondition::Damaged { other_copy: true, .. } => match found.header() {
                Some(header) => header.clone(),
                None => return Ok(false),
            },
            // H5.
            HeaderCondition::Foreign { major } => {
                let (file, found, supported) = (path(), major, VERSION_MAJOR);
                return Err(OpenError::Version { file, found, supported });
            }
            // H6.
            HeaderCondition::Misfit { detail } => {
                return Err(OpenError::SegmentForeign { file: path(), detail });
            }
        };
        let opened = self.storage.open(&name::segment(number), Access::Read);
        let tail = match opened.and_then(|file| MappedTail::over(file, SEGMENT_HEADER_LEN)) {
            // Trimmed between the two looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            tail => tail.map_err(|source| OpenError::Io {
                context: format!("mapping {}", path()),
                source,
            })?,
        };
        if !has_header(tail.shared().bytes(), &header) {
            // The file was replaced between the two looks.
            return Ok(false);
        }
        match trim {
            None => {
                let sealed_end = header.previous_end - last.base();
                self.tail.publish(sealed_end.max(self.tail.shared().published()));
            }
            // How the last one ended, nobody knows any more.
            Some(trim) => self.begins = trim.point.position,
        }
        self.segments.push(Segment::new(header, Arc::clone(tail.shared()), self.losses.as_ref()));
        self.tail = tail;
        Ok(true)
    }
}

fn has_header(page: &[u8], expected: &SegmentHeader) -> bool {
    match SegmentHeader::decode(page) {
        SegmentHeaderState::Valid(header) | SegmentHeaderState::OneCopy(header, _) => {
            header == *expected
        }
        SegmentHeaderState::Unused
        | SegmentHeaderState::Damaged(_)
        | SegmentHeaderState::Contradictory
        | SegmentHeaderState::Foreign { .. } => false,
    }
}
