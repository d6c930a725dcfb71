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

use crate::order::extract::{Extract, Span};
use crate::order::held::Watch;
use crate::order::keys::Keys;
use crate::order::partition::{Chain, LOOKED_UP_TOGETHER, Partition, Ready, Scanned};
use crate::order::tips::Tip;
use crate::pipeline::lookup::{Fault, Lookup};

/// Nobody: ends a list of children, and is the number of a parent outside the cohort.
const NONE: u32 = u32::MAX;

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

/// The id of a member.
#[derive(Debug, Clone, Copy)]
struct Id {
    /// Place of its cut in the window.
    cut: u32,
    span: Span,
    is_chained: bool,
}

/// A parent in the list of a member.
#[derive(Debug, Clone, Copy)]
struct Parent {
    key: u64,
    /// Where its id is in the cut of the child.
    id: Span,
    /// Where it stands in the list, in bytes.
    list_at: u16,
    /// The member that it is, or [`NONE`].
    member: u32,
}

/// A place in the index: the number of a member and half of its key.
#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u32,
    key: u32,
}

const EMPTY: Slot = Slot { number: NONE, key: 0 };

/// What orders records of one stream by numbers: the number of each is its place among them, in the order of the log. What is
/// looked at in no order lies in arrays of its own, which fit in a cache where whole members would not. What it has
/// allocated serves one stream after the other.
#[derive(Debug, Default)]
pub(crate) struct Cohort {
    states: Vec<State>,
    ids: Vec<Id>,
    /// First parent of each member, and one more: where the last one's end.
    parents_from: Vec<u32>,
    parents: Vec<Parent>,
    /// The parent that a member watches while it is held.
    watched: Vec<u32>,
    /// The first of the members that watch a member.
    first_child: Vec<u32>,
    /// The next member that watches the same one.
    next_child: Vec<u32>,
    /// Numbers of members by the lower bits of their keys: open addressing, at most half full.
    index: Vec<Slot>,
    /// Numbers of the held members that wait for nothing more.
    ready: BinaryHeap<Reverse<u32>>,
    /// Whether nobody can ask for a member among the known ids before the window ends.
    is_apart: bool,
}

/// Records of one stream, and the extracts of each cut of the window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Records<'a> {
    pub(super) records: &'a [Scanned],
    pub(super) extracts: &'a [&'a [u8]],
}

impl<'a> Records<'a> {
    /// Has the processor fetch these extracts, side by side: the scanners have left them anywhere in memory.
    fn touch(&self, records: &[Scanned]) {
        for scanned in records {
            Extract::touch(self.extracts[scanned.cut as usize], scanned.extract);
        }
    }

    #[inline]
    fn extract(&self, scanned: &Scanned) -> Option<Extract<'a>> {
        Extract::at(self.extracts[scanned.cut as usize], scanned.extract)
    }
}

impl Cohort {
    fn clear(&mut self) {
        self.states.clear();
        self.ids.clear();
        self.parents_from.clear();
        self.parents.clear();
        self.watched.clear();
        self.first_child.clear();
        self.next_child.clear();
        self.ready.clear();
    }

    fn reserve(&mut self, members: usize) {
        self.ids.reserve(members);
        self.parents_from.reserve(members + 1);
        self.parents.reserve(members);
    }

    fn push(&mut self, scanned: &Scanned, extract: &Extract<'_>, keys: Keys) {
        self.parents_from.push(self.parents.len() as u32);
        for (list_at, parent, id) in extract.parents() {
            let key = keys.event(scanned.stream_key, parent);
            self.parents.push(Parent { key, id, list_at, member: NONE });
        }
        let (span, is_chained) = (extract.id_span(), extract.is_chained);
        self.ids.push(Id { cut: scanned.cut, span, is_chained });
    }

    /// Finds out which parents are members. Says whether each member has an id of its own.
    fn link(&mut self, of: Records<'_>) -> bool {
        let len = self.ids.len();
        self.parents_from.push(self.parents.len() as u32);
        self.states.resize(len, State::Coming);
        self.watched.resize(len, NONE);
        self.first_child.resize(len, NONE);
        self.next_child.resize(len, NONE);
        self.index.clear();
        self.index.resize((2 * len).next_power_of_two(), EMPTY);
        for (number, scanned) in (0..).zip(of.records) {
            match self.find(scanned.key, self.id(number, of), of) {
                Ok(_) => return false,
                Err(free) => {
                    self.index[free] = Slot { number, key: (scanned.key >> 32) as u32 };
                }
            }
        }
        for number in 0..len as u32 {
            for parent in self.parents_of(number) {
                let Parent { key, .. } = self.parents[parent as usize];
                let id = self.parent_id(number, parent, of);
                self.parents[parent as usize].member = self.find(key, id, of).unwrap_or(NONE);
            }
        }
        true
    }

    /// The member with this id, or where its number would have to be.
    #[inline]
    fn find(&self, key: u64, id: &[u8], of: Records<'_>) -> Result<u32, usize> {
        let mask = self.index.len() - 1;
        let mut place = key as usize & mask;
        loop {
            let slot = self.index[place];
            if slot.number == NONE {
                return Err(place);
            }
            if slot.key == (key >> 32) as u32 && self.id(slot.number, of) == id {
                return Ok(slot.number);
            }
            place = (place + 1) & mask;
        }
    }

    /// The id of a member.
    #[inline]
    fn id<'a>(&self, number: u32, of: Records<'a>) -> &'a [u8] {
        let Id { cut, span, .. } = self.ids[number as usize];
        span.of(of.extracts[cut as usize])
    }

    /// The id of a parent of the member with this number.
    #[inline]
    fn parent_id<'a>(&self, number: u32, parent: u32, of: Records<'a>) -> &'a [u8] {
        let Id { cut, .. } = self.ids[number as usize];
        self.parents[parent as usize].id.of(of.extracts[cut as usize])
    }

    #[inline]
    fn parents_of(&self, number: u32) -> Range<u32> {
        self.parents_from[number as usize]..self.parents_from[number as usize + 1]
    }

    /// Has a member wait for another one.
    fn hold(&mut self, number: u32, parent: u32) {
        let watched = self.parents[parent as usize].member;
        let next = std::mem::replace(&mut self.first_child[watched as usize], number);
        self.next_child[number as usize] = next;
        self.watched[number as usize] = parent;
        self.states[number as usize] = State::Held;
    }
}

impl Partition {
    /// Orders records of one stream together, if nothing is special about any of them; says whether it did.
    ///
    /// After an error the partition must not be used again.
    pub(super) fn order_together(
        &mut self,
        of: Records<'_>,
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        cohort.clear();
        let stream = self.gather(of, cohort, lookup)?;
        if let Some(stream) = stream {
            self.begin_at(stream)?;
            self.order_cohort(stream, of, cohort, lookup)?;
            self.end_at(stream);
        }
        Ok(stream.is_some())
    }

    /// Fills the cohort. Nothing if these records have to come one by one; else their stream.
    fn gather(
        &mut self,
        of: Records<'_>,
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<Option<u32>, Fault> {
        let mut stream = None;
        cohort.reserve(of.records.len());
        for records in of.records.chunks(LOOKED_UP_TOGETHER) {
            lookup.go_on()?;
            of.touch(records);
            self.touch_known(records, lookup);
            for scanned in records {
                let Some(extract) = of.extract(scanned) else { return Ok(None) };
                let (index, name) = match stream {
                    Some(found) => found,
                    None => {
                        let index = self.stream_of(scanned.stream_key, extract.stream, lookup)?;
                        *stream.insert((index, extract.stream))
                    }
                };
                if self.streams[index as usize].sealed
                    || extract.stream != name
                    || self.find_known(name, scanned.key, extract.id, lookup)?.is_some()
                {
                    return Ok(None);
                }
                cohort.push(scanned, &extract, self.keys);
            }
        }
        let Some((stream, _)) = stream else { return Ok(None) };
        // All that comes of a stream in this window is here. Only what was held before can ask for a member.
        cohort.is_apart = self.streams[stream as usize].held == 0;
        Ok(cohort.link(of).then_some(stream))
    }

    fn order_cohort(
        &mut self,
        stream: u32,
        of: Records<'_>,
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        for (number, scanned) in (0..).zip(of.records) {
            lookup.go_on()?;
            match self.missing_in(stream, number, cohort.parents_of(number), of, cohort, lookup)? {
                None => {
                    let event = self.first_seen(scanned.key, cohort);
                    self.deliver_member(scanned.index, stream, number, event, of, cohort, lookup)?;
                    self.deliver_ready_of(scanned.index, stream, of, cohort, lookup)?;
                }
                Some(parent) => self.hold_member(stream, number, parent, of, cohort)?,
            }
        }
        for number in 0..of.records.len() as u32 {
            lookup.go_on()?;
            if cohort.states[number as usize] == State::Held {
                let watched = cohort.watched[number as usize];
                self.hold_outside(stream, number, watched, of, cohort)?;
            }
        }
        Ok(())
    }

    /// The first of these parents of a member that is not delivered.
    fn missing_in(
        &self,
        stream: u32,
        number: u32,
        parents: Range<u32>,
        of: Records<'_>,
        cohort: &Cohort,
        lookup: &Lookup,
    ) -> Result<Option<u32>, Fault> {
        for parent in parents {
            let Parent { key, member, .. } = cohort.parents[parent as usize];
            let is_delivered = match cohort.states.get(member as usize) {
                Some(state) => *state == State::Delivered,
                None => {
                    let id = cohort.parent_id(number, parent, of);
                    self.is_delivered(stream, key, id, lookup)?
                }
            };
            if !is_delivered {
                return Ok(Some(parent));
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
        of: Records<'_>,
        cohort: &mut Cohort,
    ) -> Result<(), Fault> {
        match cohort.parents[parent as usize].member {
            NONE => self.hold_outside(stream, number, parent, of, cohort),
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
        of: Records<'_>,
        cohort: &mut Cohort,
    ) -> Result<(), Fault> {
        cohort.states[number as usize] = State::Outside;
        let Parent { key: parent_key, list_at, .. } = cohort.parents[parent as usize];
        let Scanned { position, key, .. } = of.records[number as usize];
        self.hold(stream, parent_key, Watch { position, key, parent_at: u32::from(list_at) })
    }

    /// A member that is delivered, and of which the partition has heard nothing.
    fn first_seen(&mut self, key: u64, cohort: &Cohort) -> Ready {
        let slot = match cohort.is_apart {
            true => None,
            false => Some(self.insert_in_hand(key)),
        };
        Ready { key, slot, was_held: false }
    }

    fn deliver_member(
        &mut self,
        trigger: u32,
        stream: u32,
        number: u32,
        event: Ready,
        of: Records<'_>,
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        cohort.states[number as usize] = State::Delivered;
        let Scanned { position, key, .. } = of.records[number as usize];
        let lineage = if cohort.ids[number as usize].is_chained {
            self.chain(trigger, stream)
        } else {
            for parent in cohort.parents_of(number) {
                self.take_tip(stream, number, parent, of, cohort, lookup)?;
            }
            Chain::Listed
        };
        self.add_delivery(trigger, stream, event, position, lineage);
        let mut child = cohort.first_child[number as usize];
        while child != NONE {
            let next = cohort.next_child[child as usize];
            let rest = cohort.watched[child as usize] + 1..cohort.parents_of(child).end;
            match self.missing_in(stream, child, rest, of, cohort, lookup)? {
                None => cohort.ready.push(Reverse(child)),
                Some(parent) => self.hold_member(stream, child, parent, of, cohort)?,
            }
            child = next;
        }
        if self.may_be_awaited(key) {
            // The name is that of the stream; the lists of the partition are compared by it.
            let name = self.streams[stream as usize].name.clone();
            self.release_children(stream, key, Some((&name, cohort.id(number, of))), lookup)?;
        }
        Ok(())
    }

    /// Takes a parent of a member, which has a delivered child now, off the tips.
    fn take_tip(
        &mut self,
        stream: u32,
        number: u32,
        parent: u32,
        of: Records<'_>,
        cohort: &Cohort,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        let Parent { key, member, .. } = cohort.parents[parent as usize];
        let tip = match of.records.get(member as usize) {
            Some(member) => {
                let is_it = |tip: &Tip| Ok::<_, Fault>(tip.position == member.position);
                self.streams[stream as usize].tips.find(key, is_it)?
            }
            None => {
                let id = cohort.parent_id(number, parent, of);
                self.find_tip(stream, key, id, lookup)?
            }
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
        of: Records<'_>,
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<(), Fault> {
        loop {
            let here = cohort.ready.peek().map(|Reverse(number)| *number);
            let is_first = |number: u32| {
                let position = of.records[number as usize].position;
                self.next_ready().is_none_or(|there| position < there)
            };
            if let Some(number) = here.filter(|&number| is_first(number)) {
                lookup.go_on()?;
                cohort.ready.pop();
                let event = self.first_seen(of.records[number as usize].key, cohort);
                self.deliver_member(trigger, stream, number, event, of, cohort, lookup)?;
            } else if let Some((position, event)) = self.take_next_ready(stream, lookup)? {
                // Members that waited for an event outside come from there, and others wait for them here.
                match of.records.binary_search_by_key(&position, |record| record.position) {
                    Ok(number) => {
                        let number = number as u32;
                        self.deliver_member(trigger, stream, number, event, of, cohort, lookup)?;
                    }
                    Err(_) => self.deliver_held(trigger, stream, position, event, lookup)?,
                }
            } else {
                return Ok(());
            }
        }
    }
}
