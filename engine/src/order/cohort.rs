//! The records of a stream that stand together in a window, put in order by numbers.
//!
//! Most parents of what comes in a long window come in it, too. So each record gets a number, and each parent in its
//! list is looked up once, among the records of its own cohort: what waits for what is then numbers, and the table of known ids
//! sees most events once, when they get their places in the store. It is the machine of [`super::partition`] over other data; what
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

/// A record of the cohort. Its number is its place in the order of the log.
///
/// A line of the processor's caches has all of it: members are delivered in no order, and of a long stream, each look is
/// one into memory.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Member {
    key: u64,
    position: u64,
    /// Place of its cut in the window.
    cut: u32,
    id: Span,
    /// Index of the record in the window.
    index: u32,
    is_chained: bool,
    parent_count: u16,
    /// Number of its first parent; the others follow.
    parents_from: u32,
    /// The member that its first parent is, or [`NONE`].
    first_parent: u32,
    /// The parent that it watches while it is held.
    watched: u32,
    /// The first of the members that watch it.
    first_child: u32,
    /// The next member that watches the same one.
    next_child: u32,
}

const _: () = assert!(size_of::<Member>() == 64);

impl Member {
    fn parents(&self) -> Range<u32> {
        self.parents_from..self.parents_from + u32::from(self.parent_count)
    }
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

/// A place in the index: the number of a member, and half of its key.
#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u32,
    key: u32,
}

const EMPTY: Slot = Slot { number: NONE, key: 0 };

/// Records of one stream. What it has allocated serves one stream after the other.
#[derive(Debug, Default)]
pub(crate) struct Cohort {
    members: Vec<Member>,
    /// By the numbers of the members: close together, since each arrival looks at those of its parents.
    states: Vec<State>,
    parents: Vec<Parent>,
    /// Members by the lower bits of their keys: open addressing, at most half full.
    index: Vec<Slot>,
    /// Numbers of the held members that wait for nothing more.
    ready: BinaryHeap<Reverse<u32>>,
    /// Whether nobody can ask for a member among the known ids before the window ends.
    is_apart: bool,
}

/// Where a cohort is ordered.
#[derive(Debug, Clone, Copy)]
struct At<'a> {
    stream: u32,
    /// The extracts of each cut of the window.
    extracts: &'a [&'a [u8]],
    lookup: &'a Lookup,
}

impl Cohort {
    fn clear(&mut self) {
        self.members.clear();
        self.states.clear();
        self.parents.clear();
        self.ready.clear();
    }

    fn push(&mut self, scanned: &Scanned, extract: &Extract<'_>, keys: Keys) {
        let parents_from = self.parents.len() as u32;
        for (list_at, parent, id) in extract.parents() {
            let key = keys.event(scanned.stream_key, parent);
            self.parents.push(Parent { key, id, list_at, member: NONE });
        }
        let Scanned { index, cut, position, key, .. } = *scanned;
        self.members.push(Member {
            key,
            position,
            cut,
            id: extract.id_span(),
            index,
            is_chained: extract.is_chained,
            // Each takes a byte of a list whose length fits as much.
            parent_count: (self.parents.len() as u32 - parents_from) as u16,
            parents_from,
            first_parent: NONE,
            watched: NONE,
            first_child: NONE,
            next_child: NONE,
        });
    }

    /// Finds out which parents are members. Says whether each member has an id of its own.
    fn link(&mut self, extracts: &[&[u8]]) -> bool {
        self.states.resize(self.members.len(), State::Coming);
        self.index.clear();
        self.index.resize((2 * self.members.len()).next_power_of_two(), EMPTY);
        for number in 0..self.members.len() as u32 {
            let Member { key, cut, id, .. } = self.members[number as usize];
            match self.find(key, id.of(extracts[cut as usize]), extracts) {
                Ok(_) => return false,
                Err(free) => self.index[free] = Slot { number, key: (key >> 32) as u32 },
            }
        }
        for number in 0..self.members.len() {
            let Member { cut, .. } = self.members[number];
            let parents = self.members[number].parents();
            for parent in parents.clone().rev() {
                let Parent { key, id, .. } = self.parents[parent as usize];
                let found = self.find(key, id.of(extracts[cut as usize]), extracts);
                let member = found.unwrap_or(NONE);
                self.parents[parent as usize].member = member;
                // The last to be looked up is the first.
                self.members[number].first_parent = member;
            }
        }
        true
    }

    /// The member with this id, or where it would have to be in the index.
    #[inline]
    fn find(&self, key: u64, id: &[u8], extracts: &[&[u8]]) -> Result<u32, usize> {
        let mask = self.index.len() - 1;
        let mut place = key as usize & mask;
        loop {
            let slot = self.index[place];
            if slot.number == NONE {
                return Err(place);
            }
            if slot.key == (key >> 32) as u32 {
                let Member { cut, id: other, .. } = self.members[slot.number as usize];
                if other.of(extracts[cut as usize]) == id {
                    return Ok(slot.number);
                }
            }
            place = (place + 1) & mask;
        }
    }

    /// Has the processor fetch the members that the next ones are likely to wait for, side by side.
    fn touch_parents_from(&self, number: usize) {
        for member in self.members[number..].iter().take(LOOKED_UP_TOGETHER) {
            // A load that nobody needs: it has to happen, and nothing waits for it.
            let parent = self.members.get(member.first_parent as usize);
            std::hint::black_box(parent.map(|parent| parent.first_child));
        }
    }

    /// Has a member wait for another one.
    fn hold(&mut self, number: u32, parent: u32) {
        let watched = self.parents[parent as usize].member;
        let next_child = std::mem::replace(&mut self.members[watched as usize].first_child, number);
        let member = &mut self.members[number as usize];
        (member.watched, member.next_child) = (parent, next_child);
        self.states[number as usize] = State::Held;
    }
}

impl Partition {
    /// Orders records of one stream together, if nothing is special about any of them; says whether it did.
    /// No other record of the stream may come in this window.
    ///
    /// After an error the partition must not be used again.
    pub(super) fn order_together(
        &mut self,
        records: &[Scanned],
        extracts: &[&[u8]],
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<bool, Fault> {
        cohort.clear();
        let Some(stream) = self.gather(records, extracts, cohort, lookup)? else {
            return Ok(false);
        };
        let at = At { stream, extracts, lookup };
        self.begin_at(stream)?;
        self.order_cohort(cohort, at)?;
        self.end_at(stream);
        Ok(true)
    }

    /// Fills the cohort. Nothing if these records have to come one by one; else their stream.
    fn gather(
        &mut self,
        records: &[Scanned],
        extracts: &[&[u8]],
        cohort: &mut Cohort,
        lookup: &Lookup,
    ) -> Result<Option<u32>, Fault> {
        let mut stream = None;
        cohort.members.reserve(records.len());
        for records in records.chunks(LOOKED_UP_TOGETHER) {
            lookup.go_on()?;
            // The scanners have left the extracts anywhere in memory.
            for scanned in records {
                Extract::touch(extracts[scanned.cut as usize], scanned.extract);
            }
            self.touch_known(records, lookup);
            for scanned in records {
                let extract = Extract::at(extracts[scanned.cut as usize], scanned.extract);
                let Some(extract) = extract else { return Ok(None) };
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
        // All that comes of the stream in this window is here, so only what was held before the window can ask for a
        // member: what comes to be held in the lists of the partition waits for what does not come in this window.
        cohort.is_apart = self.streams[stream as usize].held == 0;
        Ok(cohort.link(extracts).then_some(stream))
    }

    fn order_cohort(&mut self, cohort: &mut Cohort, at: At<'_>) -> Result<(), Fault> {
        for number in 0..cohort.members.len() as u32 {
            at.lookup.go_on()?;
            if (number as usize).is_multiple_of(LOOKED_UP_TOGETHER) {
                cohort.touch_parents_from(number as usize);
            }
            let member = cohort.members[number as usize];
            match self.missing_in(&member, member.parents(), cohort, at)? {
                None => {
                    let event = self.first_seen(member.key, cohort);
                    self.deliver_member(member.index, number, event, cohort, at)?;
                    self.deliver_ready_of(member.index, cohort, at)?;
                }
                Some(parent) => self.hold_member(number, parent, cohort, at)?,
            }
        }
        for number in 0..cohort.members.len() {
            at.lookup.go_on()?;
            if cohort.states[number] == State::Held {
                let watched = cohort.members[number].watched;
                self.hold_outside(number as u32, watched, cohort, at)?;
            }
        }
        Ok(())
    }

    /// The first of these parents of a member that is not delivered.
    fn missing_in(
        &self,
        member: &Member,
        parents: Range<u32>,
        cohort: &Cohort,
        at: At<'_>,
    ) -> Result<Option<u32>, Fault> {
        for parent in parents {
            let Parent { key, id, member: number, .. } = cohort.parents[parent as usize];
            let is_delivered = match cohort.states.get(number as usize) {
                Some(state) => *state == State::Delivered,
                None => {
                    let id = id.of(at.extracts[member.cut as usize]);
                    self.is_delivered(at.stream, key, id, at.lookup)?
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
        number: u32,
        parent: u32,
        cohort: &mut Cohort,
        at: At<'_>,
    ) -> Result<(), Fault> {
        match cohort.parents[parent as usize].member {
            NONE => self.hold_outside(number, parent, cohort, at),
            _ => {
                cohort.hold(number, parent);
                Ok(())
            }
        }
    }

    /// Has a member wait in the lists of the partition.
    fn hold_outside(
        &mut self,
        number: u32,
        parent: u32,
        cohort: &mut Cohort,
        at: At<'_>,
    ) -> Result<(), Fault> {
        cohort.states[number as usize] = State::Outside;
        let Parent { key: parent_key, list_at, .. } = cohort.parents[parent as usize];
        let Member { position, key, .. } = cohort.members[number as usize];
        self.hold(at.stream, parent_key, Watch { position, key, parent_at: u32::from(list_at) })
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
        number: u32,
        event: Ready,
        cohort: &mut Cohort,
        at: At<'_>,
    ) -> Result<(), Fault> {
        let At { stream, extracts, lookup } = at;
        cohort.states[number as usize] = State::Delivered;
        let member = cohort.members[number as usize];
        let lineage = if member.is_chained {
            self.chain(trigger, stream)
        } else {
            self.take_tips(&member, cohort, at)?;
            Chain::Listed
        };
        self.add_delivery(trigger, stream, event, member.position, lineage);
        let mut next = member.first_child;
        while next != NONE {
            let child = cohort.members[next as usize];
            match self.missing_in(&child, child.watched + 1..child.parents().end, cohort, at)? {
                None => cohort.ready.push(Reverse(next)),
                Some(parent) => self.hold_member(next, parent, cohort, at)?,
            }
            next = child.next_child;
        }
        if self.may_be_awaited(member.key) {
            // The name is that of the stream; the lists of the partition are compared by it.
            let name = self.streams[stream as usize].name.clone();
            let id = member.id.of(extracts[member.cut as usize]);
            self.release_children(stream, member.key, Some((&name, id)), lookup)?;
        }
        Ok(())
    }

    /// Takes the parents of a member, which have a delivered child now, off the tips.
    fn take_tips(&mut self, member: &Member, cohort: &Cohort, at: At<'_>) -> Result<(), Fault> {
        for parent in member.parents() {
            // Most have one, and that is a member: its number is at hand.
            let is_first = parent == member.parents_from && member.first_parent != NONE;
            let number = match is_first {
                true => member.first_parent,
                false => cohort.parents[parent as usize].member,
            };
            let tip = match cohort.members.get(number as usize) {
                Some(parent) => {
                    let is_it = |tip: &Tip| Ok::<_, Fault>(tip.position == parent.position);
                    self.streams[at.stream as usize].tips.find(parent.key, is_it)?
                }
                None => {
                    let Parent { key, id, .. } = cohort.parents[parent as usize];
                    let id = id.of(at.extracts[member.cut as usize]);
                    self.find_tip(at.stream, key, id, at.lookup)?
                }
            };
            if let Some(tip) = tip {
                self.streams[at.stream as usize].tips.remove(&tip);
            }
        }
        Ok(())
    }

    /// Delivers held events, members and others, until none is ready, the one with the smallest position first.
    fn deliver_ready_of(
        &mut self,
        trigger: u32,
        cohort: &mut Cohort,
        at: At<'_>,
    ) -> Result<(), Fault> {
        loop {
            let here = cohort.ready.peek().map(|Reverse(number)| *number);
            let is_first = |number: u32| {
                let position = cohort.members[number as usize].position;
                self.next_ready().is_none_or(|there| position < there)
            };
            if let Some(number) = here.filter(|&number| is_first(number)) {
                at.lookup.go_on()?;
                cohort.ready.pop();
                let event = self.first_seen(cohort.members[number as usize].key, cohort);
                self.deliver_member(trigger, number, event, cohort, at)?;
            } else if let Some((position, event)) = self.take_next_ready(at.stream, at.lookup)? {
                debug_assert!(!cohort.is_apart, "nothing was held that could be released");
                // Members that waited for an event outside come from there, and others wait for them here.
                match cohort.members.binary_search_by_key(&position, |member| member.position) {
                    Ok(number) => {
                        self.deliver_member(trigger, number as u32, event, cohort, at)?;
                    }
                    Err(_) => self.deliver_held(trigger, at.stream, position, event, at.lookup)?,
                }
            } else {
                return Ok(());
            }
        }
    }
}
