//! Subscriptions: readers that follow what is still to come.
//!
//! There is no seam between what is there and what comes: a subscription reads up to `delivered`, and waits
//! until there is more. It buffers no events, and nobody writes to it, so it costs an appender nothing but
//! to wake it, and however far it is behind, it takes the same memory.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::cursors::Cursor;
use crate::error::ReadError;
use crate::event::Event;
use crate::pipeline::core::{Core, deadline_in};
use crate::pipeline::interests::{Interest, Wants};
use crate::pipeline::subscriber::{LOCATED_MAX, Reader};
use crate::sync::{Arc, WaitError, Watermark};

/// So many events that are not wanted may be looked at before the next look at whether the store is closed.
const LOOKS_MAX: u32 = 1024;

/// Who waits for longer lets go of the files that it has looked into, and looks for them again when there is more.
const IDLE_AFTER: Duration = Duration::from_millis(500);

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Start {
    /// At this global sequence. It may be beyond what is delivered.
    Sequence(u64),
    /// With the first event that is not delivered at the time of the call, whatever is under way then.
    Now,
}

impl Start {
    fn sequence(self, core: &Core) -> u64 {
        match self {
            Start::Sequence(sequence) => sequence,
            Start::Now => core.delivered.get(),
        }
    }
}

impl From<u64> for Start {
    fn from(sequence: u64) -> Self {
        Start::Sequence(sequence)
    }
}

impl From<&Cursor> for Start {
    /// Where the cursor is.
    fn from(cursor: &Cursor) -> Self {
        Start::Sequence(cursor.at())
    }
}

/// Delivered events, all or those of some streams, in global order, for ever.
///
/// Made by [`Store::subscribe`](crate::Store::subscribe) and its siblings. It is an iterator that blocks for the
/// next event, and ends when the store is closed or its engine has stopped; [`Subscription::next_timeout`] tells
/// which. What was delivered before the end still comes, unless finding it means looking through many events of
/// other streams. [`Subscription::next_sequence`] says where to go on.
///
/// Each event comes once, and none is left out: nothing that comes later has a place before one that has come.
/// A subscription takes no memory for what it has not handed out, and keeps nobody waiting. One that is between two calls keeps the files
/// mapped that it has looked into, so a trim gives their space back when it goes on; one that waits lets go of them.
pub struct Subscription {
    reader: Reader,
    wanted: Wanted,
    /// What is wanted below this global sequence has been handed out.
    next: u64,
    /// The iterator has given the reason why nothing more will come.
    ended: bool,
}

#[derive(Debug)]
enum Wanted {
    All,
    Stream(Stream),
    /// Of several streams.
    Some(Waiting),
}

/// A place in the list of those who wait for several streams. Taken out when this is dropped.
struct Waiting {
    core: Arc<Core>,
    interest: Arc<Interest>,
    /// Whether this has looked at all that was delivered when it came into the list.
    has_waited: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.core.interests.remove(&self.interest);
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.interest.wants.fmt(f)
    }
}

/// The one stream of a subscription.
#[derive(Debug)]
struct Stream {
    name: Vec<u8>,
    key: u64,
    /// Local sequence of the first event that is not located; not known before the first was looked for by its
    /// global sequence.
    local: Option<u64>,
    /// Global sequences of the next events, the next one last.
    located: Vec<u64>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("wanted", &self.wanted)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    fn new(core: &Arc<Core>, wanted: Wanted, next: u64) -> Self {
        Subscription { reader: Reader::new(core), wanted, next, ended: false }
    }

    pub(crate) fn to_all(core: &Arc<Core>, from: Start) -> Self {
        Self::new(core, Wanted::All, from.sequence(core))
    }

    pub(crate) fn to_stream(core: &Arc<Core>, name: &[u8], from: Start) -> Self {
        Self::new(core, Wanted::Stream(Stream::new(core, name, None)), from.sequence(core))
    }

    pub(crate) fn to_stream_at(core: &Arc<Core>, name: &[u8], local: u64) -> Self {
        Self::new(core, Wanted::Stream(Stream::new(core, name, Some(local))), 0)
    }

    pub(crate) fn to_streams(core: &Arc<Core>, names: HashSet<Vec<u8>>, from: Start) -> Self {
        Self::to_some(core, Wants::Streams(names), from)
    }

    pub(crate) fn to_prefix(core: &Arc<Core>, prefix: &[u8], from: Start) -> Self {
        Self::to_some(core, Wants::Prefix(prefix.to_vec()), from)
    }

    fn to_some(core: &Arc<Core>, wants: Wants, from: Start) -> Self {
        // Before the first look at what is delivered.
        let interest = core.interests.add(wants);
        let waiting = Waiting { core: Arc::clone(core), interest, has_waited: false };
        if core.delivered.is_failed() {
            // Perhaps nobody has found the place when all the others failed.
            waiting.interest.place.fail();
        }
        Self::new(core, Wanted::Some(waiting), from.sequence(core))
    }

    /// The global sequence from which on to go on: everything before that this subscription is for has been
    /// handed out. What to commit to a [`Cursor`], once it is done. Goes up also when events of other streams
    /// were passed over.
    pub fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The next event, if it is delivered by now. Never blocks, but a subscription to streams may have many
    /// events of others to look at.
    ///
    /// # Errors
    ///
    /// An event cannot be read; the next call goes on after it. Or events were trimmed that have not been handed out
    /// ([`ReadError::Trimmed`]), or, where several streams are wanted, have not been looked at; the next call goes on with the
    /// first that was not. Or, while looking at events of other streams,
    /// the store was closed or its engine has stopped.
    pub fn try_next(&mut self) -> Result<Option<Event>, ReadError> {
        let delivered = self.reader.core.delivered.get();
        match &mut self.wanted {
            Wanted::Stream(stream) => stream.next(&mut self.reader, &mut self.next, delivered),
            _ => self.look(delivered),
        }
    }

    /// The next event; blocks until it is delivered or `timeout` is over, then `None`.
    ///
    /// # Errors
    ///
    /// As for [`Subscription::try_next`]; or the store was closed, or its engine has stopped.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, ReadError> {
        self.next_until(Some(deadline_in(timeout)))
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<Event>, ReadError> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(Some(event));
            }
            match self.wait_for_more(deadline) {
                Ok(_) => {}
                // There may be something since the last look: others publish how far readers see before they
                // wake, and before they end.
                Err(WaitError::TimedOut) => return self.try_next(),
                Err(WaitError::Failed) => {
                    let last = self.try_next()?;
                    return last
                        .map_or_else(|| Err(self.reader.core.ended()), |last| Ok(Some(last)));
                }
            }
        }
    }

    fn wait_for_more(&mut self, deadline: Option<Instant>) -> Result<u64, WaitError> {
        let more = self.next.saturating_add(1);
        if let Wanted::Some(waiting) = &mut self.wanted {
            waiting.interest.set_looked(self.next);
            waiting.has_waited = true;
        }
        let idle = deadline_in(IDLE_AFTER);
        if deadline.is_none_or(|deadline| deadline > idle) {
            match self.watermark().wait_deadline(more, idle) {
                Err(WaitError::TimedOut) => self.reader.let_go(),
                waited => return waited,
            }
        }
        match deadline {
            Some(deadline) => self.watermark().wait_deadline(more, deadline),
            None => self.watermark().wait_for(more).map_err(|_| WaitError::Failed),
        }
    }

    /// What is above the number of events that this has looked at when there may be another.
    fn watermark(&self) -> &Watermark {
        let core = &self.reader.core;
        match &self.wanted {
            Wanted::Stream(stream) => core.arrivals.of(stream.key),
            Wanted::Some(waiting) => &waiting.interest.place,
            Wanted::All => &core.delivered,
        }
    }

    /// The next wanted event of the first `delivered`, by looking at one after the other.
    fn look(&mut self, delivered: u64) -> Result<Option<Event>, ReadError> {
        if let Wanted::Some(waiting) = &self.wanted
            && waiting.has_waited
        {
            self.next = waiting.interest.pass(self.next);
        }
        let mut looks = 0;
        while self.next < delivered {
            if looks == LOOKS_MAX {
                looks = 0;
                if self.reader.core.delivered.is_failed() {
                    return Err(self.reader.core.ended());
                }
            }
            looks += 1;
            self.next += 1;
            let event = self.reader.event(self.next - 1).inspect_err(|error| {
                if let ReadError::Trimmed { first } = error {
                    self.next = *first;
                }
            })?;
            let is_wanted = match &self.wanted {
                Wanted::Some(waiting) => waiting.interest.wants.wants(event.stream()),
                Wanted::All | Wanted::Stream(_) => true,
            };
            if is_wanted {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

impl Stream {
    fn new(core: &Core, name: &[u8], local: Option<u64>) -> Self {
        let key = core.keys.stream(name);
        Stream { name: name.to_vec(), key, local, located: Vec::new() }
    }

    /// The next event of the stream from `next` on, if it is delivered; `next` is then behind it, and otherwise
    /// at `delivered` or further on.
    fn next(
        &mut self,
        reader: &mut Reader,
        next: &mut u64,
        delivered: u64,
    ) -> Result<Option<Event>, ReadError> {
        if self.located.is_empty() && *next < delivered {
            let located = self.locate(reader, *next);
            match &located {
                Ok(()) if !self.located.is_empty() => {}
                Err(ReadError::Closed | ReadError::Poisoned(_) | ReadError::Trimmed { .. }) => {}
                // There is nothing; or there is no way to what there is, but to what comes later.
                Ok(()) | Err(_) => *next = delivered,
            }
            located?;
        }
        let Some(global) = self.located.pop() else { return Ok(None) };
        let event = reader.event(global);
        if let Err(ReadError::Trimmed { .. }) = event {
            // Since it was located, and so may be any number of those behind it: the next look tells where
            // the stream begins.
            (self.located, self.local) = (Vec::new(), None);
            *next = global;
            return self.next(reader, next, delivered);
        }
        *next = global + 1;
        event.map(Some)
    }

    /// Finds the next events from the global sequence `from` on, if there are any.
    fn locate(&mut self, reader: &mut Reader, from: u64) -> Result<(), ReadError> {
        let Some((head, entry)) = reader.head(&self.name)?.filter(|(head, _)| *head >= from) else {
            return Ok(());
        };
        let kept = reader.first_kept(head, entry.local + 1)?;
        let has_missed = match self.local {
            Some(local) => local < kept,
            None => reader.has_trimmed(head, from)?,
        };
        let from = from.max(reader.first());
        let asked = self.local.map_or_else(|| reader.first_local(head, from), Ok);
        let kept = kept.max(reader.core.first_of(&self.name));
        if has_missed || asked.as_ref().is_ok_and(|&local| local < kept) {
            // Who has missed something hears so, once, and goes on there.
            self.local = Some(kept);
            return Err(ReadError::Trimmed { first: kept });
        }
        let located = asked.and_then(|local| {
            let to = local.saturating_add(LOCATED_MAX).min(entry.local + 1);
            self.local = Some(to.max(local));
            if local < to { reader.locate(head, local, to) } else { Ok(Vec::new()) }
        });
        if located.is_err() {
            self.local = self.local.max(Some(entry.local + 1));
        }
        self.located = located?;
        self.located.reverse();
        Ok(())
    }
}

impl Iterator for Subscription {
    type Item = Result<Event, ReadError>;

    /// Blocks until the next event is delivered.
    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_until(None);
        self.ended = matches!(next, Err(ReadError::Closed | ReadError::Poisoned(_)));
        match next {
            Err(ReadError::Closed) => None,
            next => next.transpose(),
        }
    }
}
