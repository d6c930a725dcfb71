//! What the simulation knows: every batch that was submitted and what was said of it, and every number
//! that a reader has seen. After each recovery the log is held against it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use thalweg::reference::{SerialEvent, SerialRecord};
use thalweg::{AppendFailure, Cause, Event, Outcome, Placement, Receipt};

use crate::common::Expected;

/// A cursor of which the marks are not in batches of the model, and that only goes up.
pub const SOLO: &[u8] = b"solo";

/// A record as it was submitted, and whether with an id of its own.
pub type Submitted = (SerialRecord, bool);

/// What is known of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Fate {
    /// It was submitted, and nobody has said anything.
    UnderWay,
    /// It was not accepted, or not appended.
    NotStored,
    Stored(Receipt),
    /// It is stored, but nobody has said where.
    Somewhere,
    /// Nobody knows, until the next recovery.
    Unknown,
    /// A recovery has found it, or not.
    Found(bool),
}

#[derive(Debug)]
struct Known {
    lane: usize,
    records: Vec<Submitted>,
    fate: Fate,
    /// Whether nobody will say what became of it.
    forgotten: bool,
}

/// What a reader has seen under a global sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    position: u64,
    local: u64,
    stream: Vec<u8>,
    id: Vec<u8>,
}

/// What a subscription has shown.
#[derive(Debug, Default)]
pub struct Followed {
    /// Of this stream; of all if there is none.
    pub stream: Option<Vec<u8>>,
    /// From this global sequence on, up to this one.
    pub from: u64,
    pub to: u64,
    pub globals: Vec<u64>,
}

#[derive(Debug, Default)]
struct State {
    batches: Vec<Known>,
    /// Accepted batches of each appender, in order; and whether it promises a prefix.
    lanes: Vec<(Vec<usize>, bool)>,
    /// The first record of a batch names it.
    by_first: HashMap<(Vec<u8>, Vec<u8>), usize>,
    seen: BTreeMap<u64, Seen>,
    /// What subscriptions have shown since the last recovery.
    followed: Vec<Followed>,
    /// Where [`SOLO`] was seen.
    cursor_at: u64,
    acknowledged: u64,
}

/// Shared by all threads. Nobody holds the lock while the turn may go on.
#[derive(Debug, Default)]
pub struct Model {
    state: Mutex<State>,
}

fn name_of(record: &SerialRecord) -> (Vec<u8>, Vec<u8>) {
    match record {
        SerialRecord::Event(event) => (event.stream.clone(), event.id.clone()),
        SerialRecord::Seal(stream) => (stream.clone(), b"seal".to_vec()),
        SerialRecord::Unseal(stream) => (stream.clone(), b"unseal".to_vec()),
        SerialRecord::Mark(_) => panic!("no batch begins with a mark"),
        SerialRecord::Discard(_) => panic!("no batch begins with a discard"),
        SerialRecord::StreamTrim(..) => panic!("no batch begins with a trim"),
    }
}

impl Model {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new appender.
    pub fn lane(&self, keeps_prefix: bool) -> usize {
        let mut state = self.state();
        state.lanes.push((Vec::new(), keeps_prefix));
        state.lanes.len() - 1
    }

    /// Number of the next batch of any appender, for the name of its first record.
    pub fn submit(&self, lane: usize, records: impl FnOnce(usize) -> Vec<Submitted>) -> usize {
        let mut state = self.state();
        let number = state.batches.len();
        let records = records(number);
        let before = state.by_first.insert(name_of(&records[0].0), number);
        assert!(before.is_none(), "the first record of a batch is its own");
        state.batches.push(Known { lane, records, fate: Fate::UnderWay, forgotten: false });
        number
    }

    pub fn records(&self, number: usize) -> Vec<Submitted> {
        self.state().batches[number].records.clone()
    }

    /// An event of an earlier batch.
    pub fn earlier(&self, choose: u64) -> Option<SerialEvent> {
        let state = self.state();
        let batch = state.batches.get(choose as usize % state.batches.len().max(1))?;
        let at = choose as usize / 7 % batch.records.len();
        match &batch.records[at] {
            // Not the first, by which the batch is known.
            (SerialRecord::Event(event), true) if at > 0 => Some(event.clone()),
            _ => None,
        }
    }

    pub fn accepted(&self, number: usize) {
        let mut state = self.state();
        let lane = state.batches[number].lane;
        state.lanes[lane].0.push(number);
    }

    pub fn refused(&self, number: usize) {
        self.state().decide(number, Fate::NotStored);
    }

    /// The batch was acknowledged, without a receipt.
    pub fn stored(&self, number: usize) {
        self.accepted(number);
        self.state().decide(number, Fate::Somewhere);
    }

    /// Nobody will be told what became of the batch.
    pub fn forget(&self, number: usize) {
        self.state().batches[number].forgotten = true;
    }

    /// The one outcome of an accepted batch.
    pub fn outcome(&self, number: usize, outcome: Outcome) {
        let mut state = self.state();
        let fate = match outcome {
            Ok(receipt) => {
                state.acknowledged += 1;
                for (placement, (record, _)) in
                    receipt.placements.iter().zip(&state.batches[number].records)
                {
                    let is_right = match placement {
                        Placement::Undecided => true,
                        Placement::Sealed { .. } | Placement::Unsealed => {
                            matches!(record, SerialRecord::Seal(_) | SerialRecord::Unseal(_))
                        }
                        Placement::Marked { .. } => matches!(record, SerialRecord::Mark(_)),
                        Placement::Trimmed { .. } => {
                            matches!(record, SerialRecord::StreamTrim(..))
                        }
                        Placement::Discarded | Placement::NotHeld { .. } => {
                            matches!(record, SerialRecord::Discard(_))
                        }
                        Placement::Rejected { .. } => {
                            matches!(record, SerialRecord::Event(_) | SerialRecord::Mark(_))
                        }
                        _ => matches!(record, SerialRecord::Event(_)),
                    };
                    assert!(is_right, "{record:?} came to {placement:?}");
                }
                Fate::Stored(receipt)
            }
            Err(AppendFailure::NotAppended(cause)) => {
                assert!(!matches!(cause, Cause::Panic { .. }), "batch {number}: {cause}");
                Fate::NotStored
            }
            Err(AppendFailure::Unknown(cause)) => {
                assert!(!matches!(cause, Cause::Panic { .. }), "batch {number}: {cause}");
                Fate::Unknown
            }
        };
        state.decide(number, fate);
    }

    /// What a reader was shown.
    pub fn saw(&self, event: &Event) {
        let seen = Seen {
            position: event.position(),
            local: event.local(),
            stream: event.stream().to_vec(),
            id: event.id().to_vec(),
        };
        let before = self.state().seen.insert(event.global(), seen.clone());
        assert!(
            before.as_ref().is_none_or(|before| *before == seen),
            "global {} was {before:?} and is {seen:?}",
            event.global()
        );
    }

    /// What a subscription was shown.
    pub fn followed(&self, followed: Followed) {
        self.state().followed.push(followed);
    }

    /// Where somebody has seen [`SOLO`].
    pub fn cursor_at(&self, at: u64) {
        let mut state = self.state();
        state.cursor_at = state.cursor_at.max(at);
    }

    /// Batches that were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.state().acknowledged
    }

    /// The store is closed: every batch has its outcome. Returns of how many it is that nobody knows.
    pub fn check_ended(&self) -> u64 {
        let mut state = self.state();
        let mut unknown = 0;
        for (number, batch) in state.batches.iter_mut().enumerate() {
            if batch.fate == Fate::UnderWay && batch.forgotten {
                batch.fate = Fate::Unknown;
                continue;
            }
            assert!(batch.fate != Fate::UnderWay, "batch {number} has no outcome");
            unknown += u64::from(batch.fate == Fate::Unknown && !batch.forgotten);
        }
        unknown
    }

    /// With buffered durability a power loss takes what was not synced, but nothing before something that
    /// stays.
    pub fn lose_what_was_buffered(&self, (since, seen, cursor_at): (usize, u64, u64)) {
        let mut state = self.state();
        for batch in &mut state.batches[since..] {
            if matches!(batch.fate, Fate::Stored(_) | Fate::Somewhere) {
                batch.fate = Fate::Unknown;
            }
        }
        state.seen.split_off(&seen);
        state.cursor_at = cursor_at;
        for followed in &mut state.followed {
            followed.globals.retain(|global| *global < seen);
            followed.to = followed.to.min(seen).max(followed.from);
        }
    }

    pub fn batch_count(&self) -> usize {
        self.state().batches.len()
    }

    /// How far everything has come: batches, global sequences that were seen, and [`SOLO`].
    pub fn progress(&self) -> (usize, u64, u64) {
        let state = self.state();
        let seen = state.seen.last_key_value().map_or(0, |(global, _)| global + 1);
        (state.batches.len(), seen, state.cursor_at)
    }

    /// Holds a log that has been recovered against everything that was said.
    pub fn check(&self, expected: &Expected) {
        let mut state = self.state();
        let found = state.find(expected);
        for (number, position) in &found {
            let batch = &state.batches[*number];
            let is_allowed = match &batch.fate {
                Fate::NotStored | Fate::Found(false) => false,
                Fate::Stored(receipt) => receipt.position == *position,
                Fate::UnderWay | Fate::Somewhere | Fate::Unknown | Fate::Found(true) => true,
            };
            assert!(is_allowed, "batch {number} is at {position}, and was {:?}", batch.fate);
        }
        for (number, batch) in state.batches.iter().enumerate() {
            let is_there = found.contains_key(&number);
            match &batch.fate {
                Fate::Stored(receipt) => {
                    assert!(is_there, "batch {number} was acknowledged, and is gone: {receipt:?}");
                    for (at, placement) in receipt.placements.iter().enumerate() {
                        check_placement(expected, receipt.position, at, placement);
                    }
                }
                Fate::Somewhere | Fate::Found(true) => {
                    assert!(is_there, "batch {number} was there, and is gone");
                }
                Fate::UnderWay | Fate::NotStored | Fate::Unknown | Fate::Found(false) => {}
            }
        }
        for (accepted, keeps_prefix) in &state.lanes {
            let positions = accepted.iter().map(|number| found.get(number));
            let stored: Vec<u64> = positions.clone().flatten().copied().collect();
            assert!(stored.is_sorted(), "an appender's batches are in another order");
            let gap = positions.skip(stored.len()).any(|position| position.is_some());
            assert!(
                !(gap && *keeps_prefix),
                "of {accepted:?} something in between is gone: {found:?}"
            );
        }
        state.followed.drain(..).for_each(|followed| followed.check(expected));
        let at = expected.machine.cursors.get(SOLO).copied().unwrap_or(0);
        assert!(at >= state.cursor_at, "a cursor was at {}, and is at {at}", state.cursor_at);
        for (global, seen) in &state.seen {
            let delivery = expected.order.get(*global as usize);
            let now = delivery.map(|delivery| Seen {
                position: delivery.position,
                local: delivery.local,
                stream: delivery.stream.clone(),
                id: expected.events[&delivery.position].id.clone(),
            });
            assert_eq!(now.as_ref(), Some(seen), "global {global} was seen, and is another now");
        }
        // What a recovery has decided stays decided.
        for (number, batch) in state.batches.iter_mut().enumerate() {
            if matches!(batch.fate, Fate::Unknown | Fate::UnderWay) {
                batch.fate = Fate::Found(found.contains_key(&number));
            }
        }
    }
}

impl Followed {
    /// Everything that it was for came once, in order.
    fn check(&self, expected: &Expected) {
        let wants = |global: &u64| {
            let stream = self.stream.as_ref();
            stream.is_none_or(|stream| expected.order[*global as usize].stream == *stream)
        };
        let wanted: Vec<u64> = (self.from..self.to).filter(wants).collect();
        assert_eq!(self.globals, wanted, "of {:?}, {}..{}", self.stream, self.from, self.to);
    }
}

impl State {
    fn decide(&mut self, number: usize, fate: Fate) {
        let batch = &mut self.batches[number];
        assert!(
            batch.fate == Fate::UnderWay,
            "batch {number} has two outcomes: {:?} and {fate:?}",
            batch.fate
        );
        batch.fate = fate;
    }

    /// The batches in the log, each with its position: all of it is whole batches.
    fn find(&self, expected: &Expected) -> BTreeMap<usize, u64> {
        let mut found = BTreeMap::new();
        let is_solo = |record: &SerialRecord| matches!(record, SerialRecord::Mark(mark) if mark.cursor == SOLO);
        let mut records = expected.records.iter().filter(|(_, record)| !is_solo(record));
        while let Some((place, first)) = records.next() {
            let Some(&number) = self.by_first.get(&name_of(first)) else {
                panic!("at {} no batch begins: {first:?}", place.start);
            };
            let batch = &self.batches[number];
            check_record(number, first, &batch.records[0]);
            let mut end = place.end;
            for submitted in &batch.records[1..] {
                let Some((place, record)) = records.next() else {
                    panic!("batch {number} is torn at {end}");
                };
                assert_eq!(place.start, end, "batch {number} is torn");
                check_record(number, record, submitted);
                end = place.end;
            }
            if let Fate::Stored(receipt) = &batch.fate {
                assert_eq!((place.start, end), (receipt.position, receipt.end), "batch {number}");
            }
            assert!(found.insert(number, place.start).is_none(), "batch {number} is there twice");
        }
        found
    }
}

fn check_record(number: usize, found: &SerialRecord, (submitted, with_id): &Submitted) {
    let is_same = match (found, submitted) {
        (SerialRecord::Event(found), SerialRecord::Event(submitted)) if !with_id => {
            // The engine has named it.
            *found == SerialEvent { id: found.id.clone(), ..submitted.clone() }
        }
        (SerialRecord::Mark(found), SerialRecord::Mark(submitted)) => {
            (&found.cursor, found.change) == (&submitted.cursor, submitted.change)
        }
        (found, submitted) => found == submitted,
    };
    assert!(is_same, "batch {number} is torn: {found:?} in the place of {submitted:?}");
}

/// What a receipt says of an event is what the serial machine makes of it.
fn check_placement(expected: &Expected, position: u64, at: usize, placement: &Placement) {
    let first = expected.records.partition_point(|(place, _)| place.start < position);
    let should = expected.placement(expected.records[first + at].0.start);
    let is_right = match (placement, &should) {
        (Placement::Undecided, _) => true,
        // Only those that somebody waited for are named, and many at once are not.
        (Placement::Rejected { reason, tips }, Placement::Rejected { reason: right, .. }) => {
            reason == right && (tips.is_empty() || *placement == should)
        }
        _ => *placement == should,
    };
    assert!(is_right, "{placement:?} was said of {position} + {at}, which is {should:?}");
}
