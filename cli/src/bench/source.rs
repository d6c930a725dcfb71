//! Logs to discover: made from a seed, so that every machine gets the same events in the same order.

use std::path::Path;

use clap::ValueEnum;
use thalweg::{AppenderOptions, Durability, Event, MixedBatch, Options, Store};

/// Events in a batch, and batches under way.
const BATCH_EVENTS: usize = 1024;
const BATCHES_UNDER_WAY: usize = 32;

/// In which order the events arrive, and what their parents are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Chains, in an order that has nothing to do with theirs
    Shuffled,
    /// Chains, parents first, streams in turn
    InOrder,
    /// As shuffled, with forks and merges
    Forks,
}

/// What the events are like.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) events: u64,
    pub(crate) streams: u64,
    pub(crate) payload: usize,
    pub(crate) profile: Profile,
    pub(crate) seed: u64,
}

impl Source {
    /// Makes a store at `path` with all events in its log. `progress` is called with the number of events
    /// so far; `false` from it ends the work, and is returned.
    pub(crate) fn fill(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> anyhow::Result<bool> {
        let store = Options::new().durability(Durability::Buffered).open(path)?;
        let options = AppenderOptions::new().pipeline(BATCHES_UNDER_WAY).pipeline_bytes(u64::MAX);
        let appender = store.mixed_appender(options)?;
        let mut batch = MixedBatch::new();
        let payload = vec![b'-'; self.payload];
        for (count, number) in self.arrivals().into_iter().enumerate() {
            let place = number / self.streams;
            let stream = number % self.streams;
            let parents = self.parents(place).map(|parent| self.id(parent * self.streams + stream));
            let event = Event::new(payload.as_slice()).id(self.id(number)).parents(parents);
            batch.push(self.stream(number), &event)?;
            if batch.len() == BATCH_EVENTS {
                appender.submit_and_forget(std::mem::take(&mut batch))?;
                if !progress(count as u64 + 1) {
                    return Ok(false);
                }
            }
        }
        if !batch.is_empty() {
            appender.submit_and_forget(batch)?;
        }
        appender.flush()?;
        store.close()?;
        Ok(true)
    }

    /// Numbers of the events, in the order of their arrival: those of a stream are a number of streams
    /// apart.
    fn arrivals(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..self.events).collect();
        if self.profile != Profile::InOrder {
            let mut state = self.seed;
            for last in (1..numbers.len()).rev() {
                state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                numbers.swap(last, (mixed(state) % (last as u64 + 1)) as usize);
            }
        }
        numbers
    }

    /// Places of the parents of the event at `place` of its stream.
    fn parents(&self, place: u64) -> impl Iterator<Item = u64> + use<> {
        let forks = self.profile == Profile::Forks;
        let chosen = mixed(self.seed ^ place);
        // A fork hangs on one of the four before it, and every eighth event merges two of them.
        let back = if forks { 1 + chosen % 4 } else { 1 };
        let first = place.checked_sub(back).or_else(|| place.checked_sub(1));
        let merges = forks && chosen.is_multiple_of(8);
        let second = if merges { place.checked_sub(2) } else { None };
        [first, second.filter(|second| Some(*second) != first)].into_iter().flatten()
    }

    fn stream(&self, number: u64) -> String {
        format!("stream-{}", number % self.streams)
    }

    /// Ids are like those of content-addressed systems: they are spread evenly, and neighbours have
    /// nothing in common.
    fn id(&self, number: u64) -> [u8; 32] {
        let mut id = [0; 32];
        for (word, bytes) in (0..).zip(id.chunks_exact_mut(8)) {
            let value = if word == 3 { number } else { mixed(self.seed ^ (number << 2 | word)) };
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        id
    }

    /// Reads the order, sees that it is whole and causal, and returns its digest.
    pub(crate) fn check(&self, store: &Store) -> anyhow::Result<u64> {
        let mut delivered = vec![0_u64; (self.events as usize).div_ceil(64)];
        let mut locals = vec![0_u64; self.streams as usize];
        let mut digest = Digest::default();
        for (global, event) in (0..).zip(store.read(..)?) {
            let event = event?;
            let number = event.id().last_chunk().map_or(u64::MAX, |word| u64::from_le_bytes(*word));
            let is_it = number < self.events && *event.id() == self.id(number);
            anyhow::ensure!(is_it && event.global() == global, "{event:?} is not one of ours");
            let (place, stream) = (number / self.streams, number % self.streams);
            let local = &mut locals[stream as usize];
            anyhow::ensure!(event.local() == *local, "{event:?} is not in its place");
            *local += 1;
            let bit = |number: u64| (number as usize / 64, 1_u64 << (number % 64));
            for parent in self.parents(place) {
                let (word, mask) = bit(parent * self.streams + stream);
                anyhow::ensure!(delivered[word] & mask != 0, "{event:?} comes before its parent");
            }
            let (word, mask) = bit(number);
            anyhow::ensure!(delivered[word] & mask == 0, "{event:?} is delivered twice");
            delivered[word] |= mask;
            // Not of positions: those depend on how appends were grouped when the log was made.
            digest.add(event.local());
            digest.add(number);
        }
        let count: u64 = delivered.iter().map(|word| u64::from(word.count_ones())).sum();
        anyhow::ensure!(count == self.events, "{count} of {} events are delivered", self.events);
        Ok(digest.0)
    }
}

/// Of numbers in their order.
#[derive(Debug, Default)]
struct Digest(u64);

impl Digest {
    fn add(&mut self, number: u64) {
        self.0 = mixed(self.0.rotate_left(5) ^ number);
    }
}

/// The finalizer of SplitMix64 (Sebastiano Vigna).
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn source(profile: Profile) -> Source {
        Source { events: 1000, streams: 7, payload: 3, profile, seed: 1 }
    }

    #[test]
    fn every_event_arrives_once_and_names_earlier_ones() {
        for profile in [Profile::Shuffled, Profile::InOrder, Profile::Forks] {
            let source = source(profile);
            let arrivals = source.arrivals();
            assert_eq!(arrivals.is_sorted(), profile == Profile::InOrder);
            assert_eq!(
                BTreeSet::from_iter(&arrivals),
                BTreeSet::from_iter(&(0..1000).collect::<Vec<_>>())
            );
            let ids: BTreeSet<_> = arrivals.iter().map(|number| source.id(*number)).collect();
            assert_eq!(ids.len(), 1000);
            for place in 0..200 {
                let parents: Vec<u64> = source.parents(place).collect();
                assert!(parents.iter().all(|parent| *parent < place));
                assert_eq!(parents.is_empty(), place == 0);
            }
        }
        let forks = source(Profile::Forks);
        assert!((0..200).any(|place| forks.parents(place).count() == 2));
    }

    #[test]
    fn a_check_sees_what_is_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        for profile in [Profile::Shuffled, Profile::Forks] {
            let path = dir.path().join(format!("{profile:?}"));
            let source = source(profile);
            assert!(source.fill(&path, &mut |_| true).expect("fills"));
            let store = Store::open(&path).expect("opens");
            let digest = source.check(&store).expect("whole");
            assert_eq!(source.check(&store).expect("whole"), digest);
            let longer = Source { events: 1001, ..source.clone() };
            assert!(longer.check(&store).is_err());
            let other = Source { seed: 2, ..source };
            assert!(other.check(&store).is_err());
            store.close().expect("closes");
        }
    }
}
