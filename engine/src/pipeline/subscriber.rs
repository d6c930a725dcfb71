//! The readers: delivered events by global or local sequence, straight out of the mapped log. Those that follow
//! what is still to come are in `subscription.rs`.
//!
//! A reader bounds itself by the `delivered` watermark, so it never sees a hole that is filled later
//! nor an event that could be taken back. It takes no lock per event: it holds a view of the
//! segments and of the order log, and renews it when it comes to the end of what it sees.

use std::ops::{Bound, RangeBounds};

use thalweg_wal::{Damage, name};

use crate::derived::order_log::{Entry, NONE};
use crate::derived::run::{KnownItem, Run, StreamItem};
use crate::derived::runs;
use crate::error::ReadError;
use crate::event::{Event, EventId, Pin};
use crate::order::cold::head_of;
use crate::pipeline::core::Core;
use crate::pipeline::lookup::{Fault, Lookup, find_known, segment_at};
use crate::sync::Arc;

/// Events of a stream are located this many at a time.
pub(crate) const LOCATED_MAX: u64 = 512;

/// How chained events find the tips that they were chained on. Shared by the events of a reader.
#[derive(Debug)]
pub(crate) struct ParentSource {
    core: Arc<Core>,
}

impl ParentSource {
    /// Ids of the events that a chained event was chained on.
    pub(crate) fn chained_on(&self, event: &Event) -> Result<Vec<Vec<u8>>, ReadError> {
        let lookup = self.core.lookup();
        Ok(lookup.chained_on_ids(event.global, event.stream(), self.core.store_tag)?)
    }
}

/// Makes events out of global sequences, for one reader.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) core: Arc<Core>,
    lookup: Lookup,
    source: Arc<ParentSource>,
    pin: Option<Arc<Pin>>,
}

impl Reader {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        let source = Arc::new(ParentSource { core: Arc::clone(core) });
        Reader { lookup: core.lookup(), core: Arc::clone(core), source, pin: None }
    }

    /// Lets go of all files, so that what is trimmed of them gives its space back. The next look takes a new view.
    pub(crate) fn let_go(&mut self) {
        self.lookup.let_go();
        self.pin = None;
    }

    /// The entry of a committed event.
    fn entry(&mut self, global: u64) -> Result<Entry, ReadError> {
        match self.lookup.entry(global) {
            Ok(entry) => Ok(entry),
            Err(_) => {
                // Committed after the view was taken, or damaged: the second look tells.
                self.lookup = self.core.lookup();
                Ok(self.lookup.entry(global)?)
            }
        }
    }

    /// The event of a committed global sequence.
    pub(crate) fn event(&mut self, global: u64) -> Result<Event, ReadError> {
        self.is_kept(global)?;
        let entry = self.entry(global)?;
        let pin = self.pin(entry.position)?;
        // The view may be another by now, and of what was trimmed some records are kept in part.
        self.is_kept(global)?;
        let record = pin.record(entry.position)?;
        if record.is_lost() {
            return Err(self.lost(entry.position).into());
        }
        let (len, id) = (record.len(), EventId::of(&record, self.core.store_tag).into());
        let (position, local) = (entry.position, entry.local);
        let source = Arc::clone(&self.source);
        Ok(Event { pin, position, len, global, local, id, source })
    }

    /// An error if the view does not reach back to a global sequence.
    #[inline]
    fn is_kept(&self, global: u64) -> Result<(), ReadError> {
        if global < self.lookup.horizon.first {
            return Err(ReadError::Trimmed { first: self.core.horizon().first });
        }
        Ok(())
    }

    /// What holds the record at a position, with this reader's own count of references.
    fn pin(&mut self, position: u64) -> Result<Arc<Pin>, ReadError> {
        if let Some(pin) = self.pin.as_ref().filter(|pin| pin.holds(position)) {
            return Ok(Arc::clone(pin));
        }
        if self.holder(position).is_none() {
            self.lookup = self.core.lookup();
        }
        let Some(pin) = self.holder(position) else {
            return Err(self.lookup.record(position).err().map_or(ReadError::Closed, Into::into));
        };
        let pin = Arc::new(pin);
        self.pin = Some(Arc::clone(&pin));
        Ok(pin)
    }

    fn holder(&self, position: u64) -> Option<Pin> {
        if position < self.lookup.horizon.position {
            return self.lookup.horizon.base().cloned().map(Pin::Base);
        }
        let pin = segment_at(&self.lookup.segments, position).cloned().map(Pin::Segment);
        pin.filter(|pin| pin.holds(position))
    }

    /// That an event is lost, and known to be.
    fn lost(&self, position: u64) -> Damage {
        let segment = segment_at(&self.lookup.segments, position);
        let (number, base) = segment.map_or((0, 0), |segment| (segment.number(), segment.base()));
        Damage {
            segment: number,
            file: name::segment(number),
            offset: position - base,
            position,
            resumes: position,
            fault: thalweg_wal::format::Fault::Lost,
        }
    }

    /// Local sequence of the first event at or behind the global sequence `from`, of the stream whose
    /// delivery `head`, which is not before `from`, is its newest.
    pub(crate) fn first_local(&mut self, head: u64, from: u64) -> Result<u64, ReadError> {
        self.entry(head)?;
        Ok(self.lookup.seek_global(head, from)?.local)
    }

    /// The first global sequence that was not trimmed when the view was taken.
    pub(crate) fn first(&self) -> u64 {
        self.lookup.horizon.first
    }

    /// Local sequence of the first event that was not trimmed, of the stream with `len` deliveries of which `head` is
    /// the newest.
    pub(crate) fn first_kept(&mut self, head: u64, len: u64) -> Result<u64, ReadError> {
        match self.lookup.horizon.first {
            0 => Ok(0),
            first if head < first => Ok(len),
            first => self.first_local(head, first),
        }
    }

    /// Whether events at or behind the global sequence `from` were trimmed, of the stream whose delivery `head`, which is
    /// not before `from`, is its newest.
    pub(crate) fn has_trimmed(&mut self, head: u64, from: u64) -> Result<bool, ReadError> {
        let first = self.first();
        if from >= first || head < first {
            return Ok(from < first);
        }
        self.entry(head)?;
        let kept = self.lookup.seek_global(head, first)?;
        Ok(kept.previous != NONE && kept.previous >= from)
    }

    /// Global sequences of the local sequences `from..to` of the stream whose delivery `head` is
    /// not earlier.
    pub(crate) fn locate(&mut self, head: u64, from: u64, to: u64) -> Result<Vec<u64>, ReadError> {
        self.entry(head)?;
        let (mut global, mut entry) = self.lookup.seek(head, to - 1)?;
        let mut globals = vec![global];
        while entry.local > from {
            global = entry.previous;
            entry = self.lookup.entry(global)?;
            globals.push(global);
        }
        globals.reverse();
        Ok(globals)
    }

    /// The newest committed delivery of the stream `name`, with its entry.
    pub(crate) fn head(&mut self, name: &[u8]) -> Result<Option<(u64, Entry)>, ReadError> {
        let key = self.core.keys.stream(name);
        let heads = &self.core.heads[crate::order::keys::partition_of(key)];
        // What is forgotten stands in a run before, so the runs are asked after memory.
        let in_memory = heads.values(key);
        let in_runs = self.cold_heads(&self.core.runs.snapshot(), key)?;
        if let Some(head) = self.first_head_of(name, in_memory.into_iter().chain(in_runs))? {
            return Ok(Some(head));
        }
        // What was the newest a moment ago may be trimmed by now; but what was when the log was trimmed is kept.
        let kept = match self.lookup.horizon.base() {
            Some(base) => self.cold_heads(&base.runs, key)?,
            None => return Ok(None),
        };
        self.first_head_of(name, kept.into_iter())
    }

    /// The first of these deliveries that is of the stream `name`.
    fn first_head_of(
        &mut self,
        name: &[u8],
        heads: impl Iterator<Item = u64>,
    ) -> Result<Option<(u64, Entry)>, ReadError> {
        for head in heads {
            // The head is set a moment before it is committed.
            if self.core.delivered.wait_for(head + 1).is_err() {
                return Err(self.core.ended());
            }
            let entry = match self.entry(head) {
                // Of another stream with this key the runs may have a state that is long over.
                Err(ReadError::Trimmed { .. }) => continue,
                entry => entry?,
            };
            let is_it = match self.pin(entry.position)?.record(entry.position) {
                Err(ReadError::Trimmed { .. }) => false,
                record => record?.stream() == name,
            };
            if is_it {
                return Ok(Some((head, entry)));
            }
        }
        Ok(None)
    }

    /// Newest deliveries of the streams with this key, as these runs have them, the newest first.
    fn cold_heads(&self, runs: &[Arc<Run>], key: u64) -> Result<Vec<u64>, ReadError> {
        // What a run has was committed before there was the run, or trimmed; nobody must wait for anything else.
        let delivered = self.core.delivered.get().max(self.lookup.horizon.first);
        let mut heads = Vec::new();
        let look = |run: &Run, item: StreamItem| match head_of(run, &item) {
            Ok(Some(head)) if head >= delivered => Some(run.damaged_item()),
            Ok(head) => {
                heads.extend(head);
                None
            }
            Err(damaged) => Some(damaged),
        };
        let found = runs::find(runs, u64::MAX, key, look);
        match found.map_err(Fault::from)? {
            Some(damaged) => Err(Fault::from(damaged).into()),
            None => Ok(heads),
        }
    }

    /// The delivered event `id` of the stream `name`.
    pub(crate) fn find(&mut self, name: &[u8], id: &[u8]) -> Result<Option<Event>, ReadError> {
        use crate::order::partition::KnownAs;
        let stream_key = self.core.keys.stream(name);
        let key = self.core.keys.event(stream_key, id);
        let delivered = self.core.delivered.get();
        let known = Arc::clone(&self.core.known[crate::order::keys::partition_of(stream_key)]);
        let in_memory = known.values(key);
        let mut cold = Vec::new();
        let look = |_: &Run, item: KnownItem| {
            cold.push(item.value);
            None::<()>
        };
        find_known(&self.core.lookup(), u64::MAX, key, look).map_err(Fault::from)?;
        let mut is_trimmed = false;
        for value in in_memory.into_iter().chain(cold) {
            let KnownAs::Delivered(global) = KnownAs::decode(value) else { continue };
            if self.lookup.is_forgotten(global) {
                continue;
            }
            if let Some(fact) = self.lookup.fact(global)? {
                // An id that was forgotten can have come again.
                is_trimmed |= fact.is_event(self.core.keys, name, id);
            } else if global < delivered {
                let event = self.event(global)?;
                if event.stream() == name && event.id() == id {
                    return Ok(Some(event));
                }
            }
        }
        match is_trimmed {
            true => Err(ReadError::Trimmed { first: self.lookup.horizon.first }),
            false => Ok(None),
        }
    }
}

/// First and last-plus-one of a range of what begins at `first`. An error if the range names what is before that.
fn bounds(range: &impl RangeBounds<u64>, first: u64) -> Result<(u64, u64), ReadError> {
    let from = match range.start_bound() {
        Bound::Included(&from) => from,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => first,
    };
    if from < first {
        return Err(ReadError::Trimmed { first });
    }
    let to = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&to) => to,
        Bound::Unbounded => u64::MAX,
    };
    Ok((from, to))
}

/// Delivered events in order, up to what was committed when the read began.
///
/// An event that cannot be read is an error in its place; the events after it follow.
#[derive(Debug)]
pub struct Read {
    reader: Reader,
    what: Range,
    next: u64,
    end: u64,
}

#[derive(Debug)]
enum Range {
    Global,
    /// Of the stream with this newest delivery; located ahead, the next one last.
    Local {
        head: u64,
        located: Vec<u64>,
    },
}

impl Read {
    pub(crate) fn global(
        core: &Arc<Core>,
        range: &impl RangeBounds<u64>,
    ) -> Result<Self, ReadError> {
        let reader = Reader::new(core);
        let (from, to) = bounds(range, reader.lookup.horizon.first)?;
        let end = to.min(core.delivered.get());
        Ok(Read { reader, what: Range::Global, next: from, end })
    }

    /// Of a stream with this newest delivery, of which so much is kept.
    fn local(
        core: &Arc<Core>,
        head: u64,
        Kept { first, len }: Kept,
        range: &impl RangeBounds<u64>,
    ) -> Result<Self, ReadError> {
        let mut reader = Reader::new(core);
        let first = first.max(reader.first_kept(head, len)?);
        let (from, to) = bounds(range, first.min(len))?;
        let what = Range::Local { head, located: Vec::new() };
        Ok(Read { reader, what, next: from, end: to.min(len) })
    }

    fn read_next(&mut self) -> Result<Event, ReadError> {
        let event = self.read_one();
        if let Err(ReadError::Trimmed { .. }) = event {
            // Trimmed meanwhile, and so may be any number of those behind it.
            self.next = self.end;
        }
        event
    }

    fn read_one(&mut self) -> Result<Event, ReadError> {
        let next = self.next;
        let global = match &mut self.what {
            Range::Global => next,
            Range::Local { head, located } => {
                if located.is_empty() {
                    let to = self.end.min(next + LOCATED_MAX);
                    match self.reader.locate(*head, next, to) {
                        Ok(globals) => *located = globals,
                        Err(error) => {
                            // Without the chain there is no way to the rest of the range.
                            self.next = self.end;
                            return Err(error);
                        }
                    }
                    located.reverse();
                }
                located.pop().expect("a range that is not empty has a first event")
            }
        };
        self.next += 1;
        self.reader.event(global)
    }
}

impl Iterator for Read {
    type Item = Result<Event, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.next < self.end).then(|| self.read_next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.end.saturating_sub(self.next)).unwrap_or(usize::MAX);
        (0, Some(left))
    }
}

/// What of a stream can be read: local sequences from `first` on, below `len`.
#[derive(Debug, Clone, Copy)]
struct Kept {
    first: u64,
    len: u64,
}

/// A stream, as far as it is delivered.
#[derive(Debug, Clone)]
pub struct StreamView {
    core: Arc<Core>,
    name: Arc<[u8]>,
    head: u64,
    kept: Kept,
}

impl StreamView {
    /// The stream `name`, if anything of it is delivered.
    pub(crate) fn find(core: &Arc<Core>, name: &[u8]) -> Result<Option<Self>, ReadError> {
        let mut reader = Reader::new(core);
        let Some((head, entry)) = reader.head(name)? else { return Ok(None) };
        let len = entry.local + 1;
        let first = core.first_of(name).max(reader.first_kept(head, len)?);
        let (core, name) = (Arc::clone(core), name.into());
        Ok(Some(StreamView { core, name, head, kept: Kept { first, len } }))
    }

    /// Name of the stream.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// Number of events that were delivered when the view was taken, those that are trimmed away included.
    pub fn len(&self) -> u64 {
        self.kept.len
    }

    /// Local sequence of the first event that can be read: 0, or where [`Store::trim`](crate::Store::trim) or
    /// [`Store::trim_stream`](crate::Store::trim_stream) has put it. Equal to [`StreamView::len`] if all are trimmed
    /// away.
    pub fn first(&self) -> u64 {
        self.kept.first
    }

    /// Whether nothing was delivered. Such a stream has no view, so this is never so.
    pub fn is_empty(&self) -> bool {
        self.kept.len == 0
    }

    /// The events in `range`, by local sequence, as far as the view goes. Finds them without
    /// scanning the log: a skip list leads from the newest event to any other. A range without a beginning begins with
    /// the first event that was not trimmed.
    ///
    /// # Errors
    ///
    /// The range begins with what was trimmed ([`ReadError::Trimmed`]). Events that cannot be read are errors in their
    /// place; if what is read is trimmed meanwhile, that is the last.
    pub fn read(&self, range: impl RangeBounds<u64>) -> Result<Read, ReadError> {
        Read::local(&self.core, self.head, self.kept, &range)
    }
}
