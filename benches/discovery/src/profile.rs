//! What is discovered: seeded shapes, and one real history.

use std::collections::HashMap;
use std::io::Read;

use serde::Deserialize;

use crate::Failure;
use crate::event::mix;

/// A shape of data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Profile {
    /// The letter by which it is asked for.
    pub(crate) letter: char,
    pub(crate) name: &'static str,
    make: fn(&mut Maker),
}

/// All shapes, by letter.
pub(crate) const PROFILES: [Profile; 8] = [
    Profile { letter: 'a', name: "many short streams", make: |maker| maker.chains(10) },
    Profile { letter: 'b', name: "few long streams", make: |maker| maker.chains(100_000) },
    Profile { letter: 'c', name: "one hot stream and a tail", make: Maker::hot },
    Profile { letter: 'd', name: "5% forks", make: Maker::forks },
    Profile { letter: 'e', name: "5% of the parents missing", make: Maker::missing },
    Profile { letter: 'f', name: "90% delivered already", make: |maker| maker.restart(90) },
    Profile { letter: 'g', name: "nothing undelivered", make: |maker| maker.restart(100) },
    Profile { letter: 'h', name: "a real history", make: |_| {} },
];

/// Events of a stream with forks.
const FORKED_LEN: usize = 100;
/// Most events that a stream has in the tail behind the hot one, and in the restarts.
const SHORT_LEN: usize = 10;

/// Events, by ordinal. Parents have lower ordinals than their children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Data {
    /// For each event the first event of its stream, which gives the stream its name.
    pub(crate) streams: Vec<u32>,
    /// For each event its parents.
    pub(crate) parents: Vec<Vec<u32>>,
    /// The events that are there, in the order in which they arrived.
    pub(crate) arrivals: Vec<u32>,
    /// How many of those have arrived before anything else, and are delivered already where the store
    /// can say so. Closed: their parents are among them.
    pub(crate) settled: usize,
    /// For each event, whether it is delivered already in a store that delivers first events at once.
    pub(crate) delivered: Vec<bool>,
}

impl Data {
    /// About `count` events of this shape, the same for the same seed.
    pub(crate) fn new(profile: &Profile, count: usize, seed: u64) -> Result<Self, Failure> {
        let data = match profile.letter {
            'h' => Data::default(),
            _ => Maker::run(profile.make, count, seed),
        };
        let mut data = if profile.letter == 'h' { history(count)? } else { data };
        let (settled, rest) = data.arrivals.split_at_mut(data.settled);
        shuffle(settled, seed);
        shuffle(rest, seed ^ 1);
        Ok(data)
    }

    /// Events that are there and not delivered: the work.
    pub(crate) fn backlog(&self) -> usize {
        self.arrivals.iter().filter(|event| !self.delivered[**event as usize]).count()
    }

    /// Bytes of the events that are there, without what a store adds.
    pub(crate) fn stream_count(&self) -> usize {
        let mut streams: Vec<u32> =
            self.arrivals.iter().map(|event| self.streams[*event as usize]).collect();
        streams.sort_unstable();
        streams.dedup();
        streams.len()
    }
}

/// Fisher and Yates.
fn shuffle(events: &mut [u32], seed: u64) {
    let mut random = Random(seed);
    for index in (1..events.len()).rev() {
        events.swap(index, random.below(index + 1));
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        ((u128::from(mix(mix(self.0))) * end as u128) >> 64) as usize
    }
}

/// Makes seeded shapes.
struct Maker {
    data: Data,
    count: usize,
    random: Random,
}

impl Maker {
    fn run(make: fn(&mut Maker), count: usize, seed: u64) -> Data {
        let mut maker = Maker { data: Data::default(), count, random: Random(mix(seed)) };
        make(&mut maker);
        let mut data = maker.data;
        if data.arrivals.is_empty() {
            data.arrivals = (0..data.parents.len() as u32).collect();
        }
        if data.delivered.is_empty() {
            data.delivered = data.parents.iter().map(Vec::is_empty).collect();
        }
        data
    }

    fn len(&self) -> usize {
        self.data.parents.len()
    }

    fn push(&mut self, stream: usize, parents: Vec<u32>) {
        self.data.streams.push(stream as u32);
        self.data.parents.push(parents);
    }

    /// One stream of `len` events; each has the one before as its parent, or with a chance of `forks` in
    /// a hundred any before.
    fn stream(&mut self, len: usize, forks: usize) {
        let first = self.len();
        self.push(first, vec![]);
        for event in first + 1..first + len {
            let forks = self.random.below(100) < forks;
            let parent = if forks { first + self.random.below(event - first) } else { event - 1 };
            self.push(first, vec![parent as u32]);
        }
    }

    fn streams(&mut self, len: usize, forks: usize) {
        while self.len() < self.count {
            self.stream(len.min(self.count - self.len()), forks);
        }
    }

    fn chains(&mut self, len: usize) {
        self.streams(len, 0);
    }

    fn hot(&mut self) {
        self.stream(self.count / 2, 0);
        self.streams(SHORT_LEN, 0);
    }

    fn forks(&mut self) {
        self.streams(FORKED_LEN, 5);
    }

    /// One event in twenty, but no first one, never arrives; what stands behind it cannot be delivered.
    fn missing(&mut self) {
        self.streams(SHORT_LEN, 0);
        let lost: Vec<bool> = self
            .data
            .parents
            .iter()
            .map(|parents| !parents.is_empty() && self.random.below(100) < 5)
            .collect();
        let there = |event: &u32| !lost[*event as usize];
        self.data.arrivals = (0..self.data.parents.len() as u32).filter(there).collect();
    }

    /// The oldest part of each stream, so many in a hundred, is delivered.
    fn restart(&mut self, percent: usize) {
        self.streams(SHORT_LEN, 0);
        let place = |event: usize| event - self.data.streams[event] as usize;
        let delivered: Vec<bool> =
            (0..self.len()).map(|event| place(event) * 100 < percent * SHORT_LEN).collect();
        let part = |wanted: bool| {
            let events = delivered.iter().enumerate().filter(move |(_, is)| **is == wanted);
            events.map(|(event, _)| event as u32)
        };
        self.data.arrivals = part(true).chain(part(false)).collect();
        self.data.settled = part(true).count();
        self.data.delivered = delivered;
    }
}

/// A line of the history that comes with this repository.
#[derive(Deserialize)]
struct Line {
    id: String,
    parents: String,
}

/// The first `count` events, parents first, of a real commit graph: one stream, merges and forks, some
/// roots. See `benches/data`. Only the graph is real: the bytes are those of the other profiles, so that
/// every contender can have them in its schema.
fn history(count: usize) -> Result<Data, Failure> {
    let packed = include_bytes!("../../data/rust-analyzer.ndjson.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text)?;
    let lines: Vec<Line> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let place: HashMap<&str, usize> =
        lines.iter().enumerate().map(|(place, line)| (&*line.id, place)).collect();
    let parents_of = |line: &Line| -> Result<Vec<usize>, Failure> {
        let find = |id| place.get(id).copied().ok_or("a parent is not in the history");
        Ok(line.parents.split_whitespace().map(find).collect::<Result<_, _>>()?)
    };
    let parents: Vec<Vec<usize>> = lines.iter().map(parents_of).collect::<Result<_, _>>()?;
    let mut ordinals = vec![None; lines.len()];
    let mut data = Data::default();
    for place in parents_first(&parents).into_iter().take(count) {
        ordinals[place] = Some(data.parents.len() as u32);
        let of = |parent: &usize| ordinals[*parent].expect("parents come first");
        data.parents.push(parents[place].iter().map(of).collect());
        data.streams.push(0);
    }
    data.arrivals = (0..data.parents.len() as u32).collect();
    data.delivered = data.parents.iter().map(Vec::is_empty).collect();
    Ok(data)
}

/// Places in an order in which parents come before their children.
fn parents_first(parents: &[Vec<usize>]) -> Vec<usize> {
    let mut order = Vec::with_capacity(parents.len());
    let mut done = vec![false; parents.len()];
    for place in 0..parents.len() {
        let mut stack = vec![place];
        while let Some(&top) = stack.last() {
            let before = stack.len();
            stack.extend(parents[top].iter().filter(|parent| !done[**parent]));
            if stack.len() == before {
                stack.pop();
                if !std::mem::replace(&mut done[top], true) {
                    order.push(top);
                }
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_what_is_settled_is_closed() {
        for profile in &PROFILES {
            let data = Data::new(profile, 5_000, 1).unwrap();
            assert_eq!(data, Data::new(profile, 5_000, 1).unwrap());
            assert!(!data.arrivals.is_empty() && data.parents.len() <= 5_000);
            for (event, parents) in data.parents.iter().enumerate() {
                assert!(parents.iter().all(|parent| (*parent as usize) < event));
                let closed = |parent: &u32| data.delivered[*parent as usize];
                assert!(!data.delivered[event] || parents.iter().all(closed), "{profile:?}");
            }
            let mut there = data.arrivals.clone();
            there.sort_unstable();
            assert_ne!(there, data.arrivals);
            there.dedup();
            assert_eq!(there.len(), data.arrivals.len());
        }
    }

    #[test]
    fn profiles_are_what_they_are_called() {
        let of = |letter| {
            let profile = PROFILES.iter().find(|profile| profile.letter == letter).unwrap();
            Data::new(profile, 10_000, 1).unwrap()
        };
        assert_eq!((of('a').stream_count(), of('a').backlog()), (1_000, 9_000));
        assert_eq!((of('b').stream_count(), of('b').backlog()), (1, 9_999));
        assert_eq!(of('c').stream_count(), 501);
        let forked = of('d');
        let forks = forked
            .parents
            .windows(2)
            .enumerate()
            .filter(|(event, pair)| !pair[1].is_empty() && pair[1] != [*event as u32]);
        assert!((300..700).contains(&forks.count()));
        assert!((9_400..9_700).contains(&of('e').arrivals.len()));
        assert_eq!((of('f').backlog(), of('f').settled), (1_000, 9_000));
        assert_eq!((of('g').backlog(), of('g').settled), (0, 10_000));
        assert!(of('h').parents.iter().any(|parents| parents.len() > 1));
    }
}
