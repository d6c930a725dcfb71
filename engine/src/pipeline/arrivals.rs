//! Where those wait who want events of one stream: not woken by every window, and without a place for each
//! stream.
//!
//! Streams share places by their keys. A place is a watermark: the number of events that were delivered when
//! one of its streams was last delivered to. Who has looked at everything below `n` and waits for more waits
//! until it is above `n`. The committer publishes `delivered` before, so what woke the waiter can be read.
//! One that was woken for another stream of its place looks, and waits again.

use crate::order::partition::HeadUpdate;
use crate::sync::Watermark;

/// How many places there are. A thousand waiters share each with a few others.
const PLACES: usize = 256;

#[derive(Debug)]
pub(crate) struct Arrivals {
    places: Box<[Watermark]>,
}

impl Arrivals {
    pub(crate) fn new(delivered: u64) -> Self {
        Arrivals { places: (0..PLACES).map(|_| Watermark::new(delivered)).collect() }
    }

    /// Where to wait for events of the stream with this key.
    pub(crate) fn of(&self, stream_key: u64) -> &Watermark {
        &self.places[place_of(stream_key)]
    }

    /// Wakes those who wait for streams that a window has delivered to. Readers see the first `delivered`
    /// events.
    pub(crate) fn publish(&self, heads: &[HeadUpdate], delivered: u64) {
        let mut is_touched = [false; PLACES];
        for head in heads {
            let place = place_of(head.stream_key);
            if !std::mem::replace(&mut is_touched[place], true) {
                self.places[place].publish(delivered);
            }
        }
    }

    /// Ends every wait.
    pub(crate) fn fail(&self) {
        self.places.iter().for_each(Watermark::fail);
    }
}

fn place_of(stream_key: u64) -> usize {
    // The upper bits choose the partition.
    stream_key as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derived::order_log::NONE;

    #[test]
    fn those_of_other_places_are_left_in_peace() {
        let arrivals = Arrivals::new(5);
        let head = |stream_key| HeadUpdate { stream_key, previous: NONE, head: 0 };
        let same = 7 + PLACES as u64;
        arrivals.publish(&[head(7), head(9), head(7), head(same)], 8);
        let at = |stream_key| arrivals.of(stream_key).get();
        assert_eq!((at(7), at(same), at(9)), (8, 8, 8));
        assert_eq!((0..PLACES as u64).map(at).filter(|&at| at == 5).count(), PLACES - 2);
        arrivals.fail();
        assert!((0..PLACES as u64).all(|key| arrivals.of(key).is_failed()));
    }
}
