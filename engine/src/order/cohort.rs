//! The records of a stream that stand together in a window, put in order by numbers.
//!
//! Most parents of what comes in a long window come in it, too. So each record gets a number, and each parent in its
//! list is looked up once, among the records of its own cohort: what waits for what is then a few dense arrays, and the tables of
//! the partition see an event once, when it is delivered or left over. It is the machine of [`super::partition`] over other data; what
//! waits for an event outside the cohort, or is left waiting at its end, goes to the partition's own
//! lists, and what comes from there takes its turn among the rest.
//!
//! Only events that nothing is special about come here: whoever finds a condition, a control record or an id that is known
//! leaves the whole cohort to the partition, before anything has changed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use crate::order::extract::Extract;
use crate::order::held::Watch;
use crate::order::keys::Keys;
use crate::order::partition::{Chain, KnownAs, Partition, Ready, Scanned};
use crate::order::tips::Tip;
use crate::pipeline::lookup::{Fault, Lookup};

/// Nobody: ends a list of children, and is the number of a parent outside the cohort.
const NONE: u32 = u32::MAX;
/// Beyond so many bytes of ids a cohort is left to the partition, so that places in them fit 32 bits.
const BYTES_MAX: usize = 1 << 31;
/// Room for so many members is kept from one window to the next.
const KEPT_MAX: usize = 256;

/// What became of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It has not arrived.
    Coming,
    /// It waits for another member.
    Held,
    /// It waits in the lists of the partition.
    Outside,
    Delivered,
}

/// A record of the cohort. Its number is its place in the order of the log.
#[derive(Debug, Clone, Copy)]
struct Member {
    /// Index of the record in the window.
    index: u32,
    state: State,
    is_chained: bool,
    position: u64,
    key: u64,
    /// Its id among the bytes of the cohort.
    id: Span,
    /// Its first parent; the list ends where the next member's begins.
    parents: u32,
    /// The parent that it watches while it is held.
    watched: u32,
    /// The first of the members that watch it.
    first_child: u32,
    /// The next member that watches the same one.
    next_child: u32,
}

/// A parent in the list of a member.
#[derive(Debug, Clone, Copy)]
struct Parent {
    key: u64,
    id: Span,
    /// Where it stands in the list, in bytes.
    at: u32,
    /// The member that it is, or [`NONE`].
    member: u32,
}

/// An id among the bytes of a cohort.
#[derive(Debug, Clone, Copy)]
struct Span {
    at: u32,
    len: u8,
}

/// Records of one stream. Empty between two of them; what it has allocated serves the next.
#[derive(Debug, Default)]
pub(super) struct Cohort {
    members: Vec<Member>,
    parents: Vec<Parent>,
    /// The ids, one after the other: the log, where they stand, is larger than any cache.
    bytes: Vec<u8>,
    /// Numbers of members by the lower bits of their keys: open addressing, at most half full.
    index: Vec<u32>,
    /// Numbers of the held members that wait for nothing more.
    ready: BinaryHeap<Reverse<u32>>,
}

impl Cohort {
    fn clear(&mut self) {
        let many = self.members.capacity() > KEPT_MAX || self.parents.capacity() > 2 * KEPT_MAX;
        if many || self.bytes.capacity() > KEPT_MAX * 256 {
            *self = Cohort::default();
            return;
        }
        self.members.clear();
        self.parents.clear();
        self.bytes.clear();
        self.ready.clear();
    }

    fn bytes(&self, span: Span) -> &[u8] {
        &self.bytes[span.at as usize..][..usize::from(span.len)]
    }

    fn push_bytes(&mut self, id: &[u8]) -> Span {
        let span = Span { at: self.bytes.len() as u32, len: id.len() as u8 };
        self.bytes.extend_from_slice(id);
        span
    }

    fn push(&mut self, scanned: &Scanned, extract: &Extract<'_>, keys: Keys) {
        let parents = self.parents.len() as u32;
        let id = self.push_bytes(extract.id);
        for (at, parent) in extract.parents() {
            let key = keys.event(scanned.stream_key, parent);
            let id = self.push_bytes(parent);
            self.parents.push(Parent { key, id, at, member: NONE });
        }
        self.members.push(Member {
            index: scanned.index,
            state: State::Coming,
            is_chained: extract.is_chained,
            position: scanned.position,
            key: scanned.key,
            id,
            parents,
            watched: NONE,
            first_child: NONE,
            next_child: NONE,
        });
    }

    /// Finds out which parents are members. Says whether each member has an id of its own.
    fn link(&mut self) -> bool {
        self.index.clear();
        self.index.resize((2 * self.members.len()).next_power_of_two(), NONE);
        for number in 0..self.members.len() {
            let Member { key, id, .. } = self.members[number];
            match self.find(key, id) {
                Ok(_) => return false,
                Err(free) => self.index[free] = number as u32,
            }
        }
        for number in 0..self.parents.len() {
            let Parent { key, id, .. } = self.parents[number];
            self.parents[number].member = self.find(key, id).unwrap_or(NONE);
        }
        true
    }

    /// The member with this id, or where its number would have to be.
    fn find(&self, key: u64, id: Span) -> Result<u32, usize> {
        let mask = self.index.len() - 1;
        let mut place = key as usize & mask;
        loop {
            let number = self.index[place];
            if number == NONE {
                return Err(place);
            }
            let member = &self.members[number as usize];
            if member.key == key && self.bytes(member.id) == self.bytes(id) {
                return Ok(number);
            }
            place = (place + 1) & mask;
        }
    }

    fn parents_of(&self, number: u32) -> Range<u32> {
        let next = self.members.get(number as usize + 1);
        let end = next.map_or(self.parents.len() as u32, |next| next.parents);
        self.members[number as usize].parents..end
    }

    /// Has a member wait for another one.
    fn hold(&mut self, number: u32, parent: u32) {
        let watched = self.parents[parent as usize].member;
        let next_child = std::mem::replace(&mut self.members[watched as usize].first_child, number);
        let member = &mut self.members[number as usize];
        (member.state, member.watched, member.next_child) = (State::Held, parent, next_child);
    }
}

impl Partition {
    /// Orders records of one stream together, if nothing is special about any of them; says whether it did.
    ///
    /// After an error the partition must not be used again.
    pub(super) fn order_together(
        &mut self,
        records: &[Scanned],
        extracts: &[u8],
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        let mut cohort = std::mem::take(&mut self.cohort);
        let stream = self.gather(records, extracts, &mut cohort, lookup)?;
        if let Some(stream) = stream {
            self.begin_at(stream)?;
            self.order_cohort(stream, &mut cohort, lookup)?;
            self.end_at(stream);
        }
        cohort.clear();
        self.cohort = cohort;
        Ok(stream.is_some())
    }

    /// Fills the cohort. Nothing if these records have to come one by one; else their stream.
    fn gather(
        &mut self,
        records: &[Scanned],
        extracts: &[u8],
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<Option<u32>, Fault> {
        let mut stream = None;
        for scanned in records {
            lookup.go_on()?;
            let Some(extract) = Extract::at(extracts, scanned.extract) else { return Ok(None) };
            let (index, name) = match stream {
                Some(found) => found,
                None => {
                    let index = self.stream_of(scanned.stream_key, extract.stream, lookup)?;
                    *stream.insert((index, extract.stream))
                }
            };
            if self.streams[index as usize].sealed
                || extract.stream != name
                || cohort.bytes.len() > BYTES_MAX
                || self.find_known(name, scanned.key, extract.id, lookup)?.is_some()
            {
                return Ok(None);
            }
            cohort.push(scanned, &extract, self.keys);
        }
        Ok(stream.filter(|_| cohort.link()).map(|(index, _)| index))
    }

    fn order_cohort(
        &mut self,
        stream: u32,
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        for number in 0..cohort.members.len() as u32 {
            lookup.go_on()?;
            match self.missing_in(stream, cohort, cohort.parents_of(number), lookup)? {
                None => {
                    let trigger = cohort.members[number as usize].index;
                    let event = self.first_seen(number, cohort);
                    self.deliver_member(trigger, stream, number, event, cohort, lookup)?;
                    self.deliver_ready_of(trigger, stream, cohort, lookup)?;
                }
                Some(parent) => self.hold_member(stream, number, parent, cohort)?,
            }
        }
        for number in 0..cohort.members.len() {
            lookup.go_on()?;
            if let Member { state: State::Held, watched, .. } = cohort.members[number] {
                self.hold_outside(stream, number as u32, watched, cohort)?;
            }
        }
        Ok(())
    }

    /// The first of these parents that is not delivered.
    fn missing_in(
        &self,
        stream: u32,
        cohort: &Cohort,
        parents: Range<u32>,
        lookup: &Lookup,
    ) -> Result<Option<u32>, Fault> {
        for number in parents {
            let parent = &cohort.parents[number as usize];
            let is_delivered = match cohort.members.get(parent.member as usize) {
                Some(member) => member.state == State::Delivered,
                None => self.is_delivered(stream, parent.key, cohort.bytes(parent.id), lookup)?,
            };
            if !is_delivered {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Has a member watch the parent with this number.
    fn hold_member(
        &mut self,
        stream: u32,
        number: u32,
        parent: u32,
        cohort: &mut Cohort,
    ) -> Result<(), Fault> {
        match cohort.parents[parent as usize].member {
            NONE => self.hold_outside(stream, number, parent, cohort),
            _ => {
                cohort.hold(number, parent);
                Ok(())
            }
        }
    }

    /// Has a member wait in the lists of the partition.
    fn hold_outside(
        &mut self,
        stream: u32,
        number: u32,
        parent: u32,
        cohort: &mut Cohort,
    ) -> Result<(), Fault> {
        let Parent { key: parent_key, at: parent_at, .. } = cohort.parents[parent as usize];
        let member = &mut cohort.members[number as usize];
        member.state = State::Outside;
        let Member { position, key, .. } = *member;
        self.hold(stream, parent_key, Watch { position, key, parent_at })
    }

    /// A member that is delivered, and of which the partition has heard nothing.
    fn first_seen(&mut self, number: u32, cohort: &Cohort) -> Ready {
        let key = cohort.members[number as usize].key;
        let slot = self.insert_known(key, KnownAs::InHand(self.deliveries.len()).encode());
        Ready { key, slot, was_held: false }
    }

    fn deliver_member(
        &mut self,
        trigger: u32,
        stream: u32,
        number: u32,
        event: Ready,
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let member = &mut cohort.members[number as usize];
        member.state = State::Delivered;
        let Member { position, key, id, is_chained, mut first_child, .. } = *member;
        let lineage = if is_chained {
            self.chain(trigger, stream)
        } else {
            for parent in cohort.parents_of(number) {
                self.take_tip(stream, &cohort.parents[parent as usize], cohort, lookup)?;
            }
            Chain::Listed
        };
        self.add_delivery(trigger, stream, event, position, lineage);
        while first_child != NONE {
            let child = first_child;
            let Member { watched, next_child, .. } = cohort.members[child as usize];
            first_child = next_child;
            let rest = watched + 1..cohort.parents_of(child).end;
            match self.missing_in(stream, cohort, rest, lookup)? {
                None => cohort.ready.push(Reverse(child)),
                Some(parent) => self.hold_member(stream, child, parent, cohort)?,
            }
        }
        if self.may_be_awaited(key) {
            // The name is that of the stream; the lists of the partition are compared by it.
            let name = self.streams[stream as usize].name.clone();
            self.release_children(stream, key, Some((&name, cohort.bytes(id))), lookup)?;
        }
        Ok(())
    }

    /// Takes a parent that has a delivered child now off the tips.
    fn take_tip(
        &mut self,
        stream: u32,
        parent: &Parent,
        cohort: &Cohort,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let tip = match cohort.members.get(parent.member as usize) {
            Some(member) => {
                let is_it = |tip: &Tip| Ok::<_, Fault>(tip.position == member.position);
                self.streams[stream as usize].tips.find(parent.key, is_it)?
            }
            None => self.find_tip(stream, parent.key, cohort.bytes(parent.id), lookup)?,
        };
        if let Some(tip) = tip {
            self.streams[stream as usize].tips.remove(&tip);
        }
        Ok(())
    }

    /// Delivers held events, members and others, until none is ready, the one with the smallest position first.
    fn deliver_ready_of(
        &mut self,
        trigger: u32,
        stream: u32,
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        loop {
            let here = cohort.ready.peek().map(|Reverse(number)| *number);
            let is_first = |number: u32| {
                let position = cohort.members[number as usize].position;
                self.next_ready().is_none_or(|there| position < there)
            };
            if let Some(number) = here.filter(|&number| is_first(number)) {
                lookup.go_on()?;
                cohort.ready.pop();
                let event = self.first_seen(number, cohort);
                self.deliver_member(trigger, stream, number, event, cohort, lookup)?;
            } else if let Some((position, event)) = self.take_next_ready(stream, lookup)? {
                // Members that waited for an event outside come from there, and others wait for them here.
                match cohort.members.binary_search_by_key(&position, |member| member.position) {
                    Ok(number) => {
                        self.deliver_member(trigger, stream, number as u32, event, cohort, lookup)?;
                    }
                    Err(_) => self.deliver_held(trigger, stream, position, event, lookup)?,
                }
            } else {
                return Ok(());
            }
        }
    }
}
