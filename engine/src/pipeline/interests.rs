//! Where those wait who want events of several streams, or of all streams whose names begin in some way: each at a place of
//! its own, which the committer moves when a window has something for it.
//!
//! Names cost a look at a record for each stream of a window, so the committer asks for them only if somebody is in the list,
//! and makes no more than `LOOKS_MAX` comparisons in a window: beyond that, and with every [`PASSED_MAX`] deliveries, all
//! are woken. So whoever waits has never more than that many events of others to look at when it wakes.
//!
//! # Protocol
//!
//! ```text
//! subscriber                           committer
//! S1  put a place into the list        C1  publish `delivered`
//! S2  look at what is delivered        C2  take a snapshot of the list
//! S3  wait until the place is beyond   C3  move the places in it that the window is for
//!     that, go to S2
//! ```
//!
//! # The race it prevents
//!
//! A window that the subscriber has not looked at, and that the committer has told nobody of. The list is behind a
//! lock. If S1 comes before C2, the place is in the snapshot, and C3 moves it. If C2 comes before S1, so does
//! C1, and S2 sees the window. The end is the same: `delivered` fails, then the places in the list do, and whoever has put a
//! place into the list looks whether `delivered` has failed.
//!
//! # What nobody has to look at
//!
//! Whoever has waited for long does not look at the events of others that came meanwhile, which may be trimmed by then. The
//! committer says up to where it has told the place of everything (`told`), and where the first of what is for it
//! begins, of what the subscriber has not looked at (`wanted`). It knows that from `looked`, which may be old: it begins anew
//! only when that is beyond all that was for the place, so `wanted` may be too low, and never too high. It stores `wanted`, then `told`;
//! the subscriber loads `told`, then `wanted`: what it sees of `wanted` is not older. Before its first wait
//! there is nothing to go by, since the windows before it was in the list are not counted.

use std::collections::HashSet;
use std::ops::Range;

use crate::sync::{Arc, AtomicU64, List, Ordering, Watermark, load_own, ord, step};

/// So many comparisons with names the committer makes for one window.
const LOOKS_MAX: usize = 4096;
/// Whoever waits wakes with this many deliveries, whatever they are.
pub const PASSED_MAX: u64 = 1 << 16;

/// In the place of a global sequence: there is nothing.
const NOTHING: u64 = u64::MAX;

/// Which streams somebody wants.
#[derive(Debug)]
pub enum Wants {
    /// Those with these names.
    Streams(HashSet<Vec<u8>>),
    /// Those whose names begin so.
    Prefix(Vec<u8>),
}

impl Wants {
    /// Whether it wants the stream with this name.
    pub fn wants(&self, stream: &[u8]) -> bool {
        match self {
            Wants::Streams(names) => names.contains(stream),
            Wants::Prefix(prefix) => stream.starts_with(prefix),
        }
    }
}

/// What somebody wants, and where it waits.
#[derive(Debug)]
pub struct Interest {
    /// Which streams.
    pub wants: Wants,
    /// How many events were delivered when there was something for it. Published by the committer alone.
    pub place: Watermark,
    /// The subscriber has looked at everything below this global sequence when it began to wait.
    looked: AtomicU64,
    /// Where the first window begins that has something for it and that it had not looked at; or nothing.
    wanted: AtomicU64,
    /// The windows below this global sequence are counted in `wanted` and `place`.
    told: AtomicU64,
}

impl Interest {
    fn new(wants: Wants) -> Self {
        Interest {
            wants,
            place: Watermark::new(0),
            looked: AtomicU64::new(0),
            wanted: AtomicU64::new(NOTHING),
            told: AtomicU64::new(0),
        }
    }

    /// Everything below `next` is looked at, and all that is delivered. By the subscriber, before it waits.
    pub fn set_looked(&self, next: u64) {
        // Relaxed: nothing else is read on its account, and an older one is only lower.
        self.looked.store(next, Ordering::Relaxed);
    }

    /// Where to go on for the subscriber that has looked at everything below `next`: there is nothing for it
    /// between. Only after it has waited once.
    pub fn pass(&self, next: u64) -> u64 {
        // Acquire: what is seen of `wanted` counts all that is told.
        let told = self.told.load(ord!("interests.told_load", Acquire));
        let wanted = self.wanted.load(Ordering::Relaxed);
        next.max(told.min(wanted))
    }

    /// By the committer alone.
    fn tell(&self, window: &Range<u64>, is_for_it: bool) {
        let wanted = load_own(&self.wanted);
        // Beyond all that was for it, and not only beyond the first of it.
        let is_beyond_all = step!("interests.begin_anew_beyond_all");
        let all = if is_beyond_all { self.place.get() } else { wanted.saturating_add(1) };
        let has_all = self.looked.load(Ordering::Relaxed) >= all;
        let wanted = if has_all { NOTHING } else { wanted };
        let wanted = if is_for_it { wanted.min(window.start) } else { wanted };
        let tell = || self.told.store(window.end, ord!("interests.told_store", Release));
        let is_in_order = step!("interests.wanted_before_told");
        if !is_in_order {
            tell();
        }
        self.wanted.store(wanted, Ordering::Relaxed);
        if is_in_order {
            tell();
        }
        if is_for_it {
            self.place.publish(window.end);
        }
    }
}

/// All that somebody waits for. Taken out by whoever has put it in.
#[derive(Debug)]
pub struct Interests {
    list: List<Arc<Interest>>,
}

impl Interests {
    /// Nobody wants anything.
    pub fn new() -> Self {
        Interests { list: List::new(Vec::new()) }
    }

    /// Step S1. What is delivered has to be looked at after this, and whether `delivered` has failed.
    pub fn add(&self, wants: Wants) -> Arc<Interest> {
        let interest = Arc::new(Interest::new(wants));
        self.list.push(Arc::clone(&interest));
        interest
    }

    /// Takes out what was put in.
    pub fn remove(&self, interest: &Arc<Interest>) {
        self.list.change(|list| list.retain(|other| !Arc::ptr_eq(other, interest)));
    }

    /// Steps C2 and C3, after `delivered` is published: the window has made these global sequences, in so many streams. `names`
    /// gives their names, or nothing if one cannot be read.
    pub fn publish<'a>(
        &self,
        window: Range<u64>,
        stream_count: usize,
        names: impl FnOnce() -> Option<Vec<&'a [u8]>>,
    ) {
        let list = self.list.snapshot();
        if list.is_empty() || window.is_empty() {
            return;
        }
        let is_far = window.start / PASSED_MAX != window.end / PASSED_MAX;
        let is_small = stream_count.saturating_mul(list.len()) <= LOOKS_MAX;
        let names = if is_small && !is_far { names() } else { None };
        for interest in list.iter() {
            let is_for_it = match &names {
                Some(names) => names.iter().any(|name| interest.wants.wants(name)),
                None => true,
            };
            interest.tell(&window, is_for_it);
        }
    }

    /// Ends the waits of those in the list, after `delivered` has failed.
    pub fn fail(&self) {
        if step!("interests.fail_those_there") {
            self.list.snapshot().iter().for_each(|interest| interest.place.fail());
        }
    }
}

#[cfg(all(test, not(thalweg_loom)))]
mod tests {
    use super::*;

    fn prefix(prefix: &str) -> Wants {
        Wants::Prefix(prefix.into())
    }

    #[test]
    fn only_those_are_woken_that_a_window_is_for() {
        let interests = Interests::new();
        interests.publish(0..1, 1, || panic!("nobody wants to know"));
        let a = interests.add(prefix("a"));
        let b = interests.add(Wants::Streams(HashSet::from([b"b".to_vec(), b"ab".to_vec()])));
        interests.publish(1..3, 1, || Some(vec![b"ab"]));
        assert_eq!((a.place.get(), b.place.get()), (3, 3));
        interests.publish(3..4, 2, || Some(vec![b"aa", b"c"]));
        interests.publish(4..6, 1, || Some(vec![b"c"]));
        interests.publish(6..6, 0, || panic!("there is nothing"));
        assert_eq!((a.place.get(), b.place.get()), (4, 3));
        interests.publish(6..7, 1, || None);
        assert_eq!(
            (a.place.get(), b.place.get()),
            (7, 7),
            "what cannot be read may be for anybody"
        );
        interests.remove(&a);
        interests.publish(7..8, LOOKS_MAX + 1, || panic!("they are too many"));
        assert_eq!((a.place.get(), b.place.get()), (7, 8));
        interests.publish(8..PASSED_MAX, 1, || panic!("it is time to wake up"));
        assert_eq!(b.place.get(), PASSED_MAX);
        interests.publish(PASSED_MAX..PASSED_MAX + 1, 1, || Some(vec![b"c"]));
        assert_eq!(b.place.get(), PASSED_MAX, "and once is enough");
        b.set_looked(PASSED_MAX + 1);
        interests.publish(PASSED_MAX + 1..PASSED_MAX + 4, 1, || Some(vec![b"c"]));
        assert_eq!(b.pass(PASSED_MAX + 1), PASSED_MAX + 4, "they are of others");
        interests.publish(PASSED_MAX + 4..PASSED_MAX + 5, 1, || Some(vec![b"b"]));
        interests.publish(PASSED_MAX + 5..PASSED_MAX + 6, 1, || Some(vec![b"c"]));
        assert_eq!(b.pass(PASSED_MAX + 1), PASSED_MAX + 4, "there is one");
        assert_eq!(b.pass(PASSED_MAX + 5), PASSED_MAX + 5, "nobody knows that it is seen");
        interests.fail();
        assert!(b.place.is_failed() && !a.place.is_failed());
    }

    #[test]
    fn whoever_passes_over_others_misses_nothing() {
        const WINDOWS: u64 = 20_000;
        // Now and then some in a row.
        let is_for_it = |number: u64| number.is_multiple_of(7) || number % 64 < 3;
        let (interests, delivered) = (Interests::new(), Watermark::new(0));
        let interest = interests.add(prefix("a"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut next = 0;
                while next < WINDOWS {
                    next = delivered.get().max(next);
                    interest.set_looked(next);
                    for _ in 0..10 {
                        let further = interest.pass(next);
                        assert!(!(next..further).any(is_for_it), "from {next} to {further}");
                        next = further;
                    }
                }
            });
            for number in 0..WINDOWS {
                delivered.publish(number + 1);
                let name: &[u8] = if is_for_it(number) { b"a" } else { b"b" };
                interests.publish(number..number + 1, 1, || Some(vec![name]));
            }
        });
    }

    #[test]
    fn whoever_comes_while_others_publish_misses_nothing() {
        const ROUNDS: u64 = 2000;
        let (interests, delivered) = (Interests::new(), Watermark::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut next = 0;
                    while next < ROUNDS {
                        let interest = interests.add(prefix("a"));
                        if delivered.is_failed() {
                            interest.place.fail();
                        }
                        for _ in 0..3 {
                            next = delivered.get();
                            if interest.place.wait_for(next + 1).is_err() {
                                next = delivered.get();
                                assert_eq!(next, ROUNDS, "it ends when all is there");
                                break;
                            }
                        }
                        interests.remove(&interest);
                    }
                });
            }
            for number in 0..ROUNDS {
                delivered.publish(number + 1);
                interests.publish(number..number + 1, 1, || Some(vec![b"a"]));
            }
            delivered.fail();
            interests.fail();
        });
        assert!(interests.list.snapshot().is_empty());
    }
}
