//! What has to come out: the serial machine's order for Thalweg, and its set for everybody.

use thalweg::reference::{SerialEvent, SerialMachine, SerialRecord};

use crate::Failure;
use crate::profile::Data;

/// What the serial machine makes of the arrivals.
pub(crate) struct Expected<'a> {
    data: &'a Data,
    /// Ordinals in the order of their delivery.
    order: Vec<u32>,
}

/// How strictly an order is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// The same events, each once, each behind its parents.
    Causal,
    /// The serial machine's order.
    Exact,
}

impl<'a> Expected<'a> {
    pub(crate) fn new(data: &'a Data) -> Self {
        let mut machine = SerialMachine::default();
        let name = |event: u32| event.to_le_bytes().to_vec();
        for (place, &event) in data.arrivals.iter().enumerate() {
            let parents = &data.parents[event as usize];
            let record = SerialRecord::Event(SerialEvent {
                stream: name(data.streams[event as usize]),
                id: name(event),
                parents: Some(parents.iter().map(|parent| name(*parent)).collect()),
                require_parents: false,
                if_tips: false,
                if_local: None,
                with_previous: false,
                payload: Vec::new(),
            });
            machine.arrive(place as u64..place as u64 + 1, record);
        }
        let order = machine
            .order
            .iter()
            .map(|delivery| data.arrivals[delivery.position as usize])
            .collect();
        Expected { data, order }
    }

    /// Events that can be delivered.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether a contender has delivered what it had to, as it had to.
    pub(crate) fn check(&self, order: &[u32], strictness: Strictness) -> Result<(), Failure> {
        self.check_causal(order)?;
        if strictness == Strictness::Exact
            && let Some(place) = order.iter().zip(&self.order).position(|(is, has)| is != has)
        {
            let (is, has) = (order[place], self.order[place]);
            return Err(format!("delivery {place} is event {is}, and not {has}").into());
        }
        Ok(())
    }

    /// The same number of events, none twice, none before a parent: so it is the same set, since what
    /// cannot be delivered has an ancestor that is not there.
    fn check_causal(&self, order: &[u32]) -> Result<(), Failure> {
        let mut there = vec![false; self.data.parents.len()];
        self.data.arrivals.iter().for_each(|event| there[*event as usize] = true);
        let mut delivered = vec![false; there.len()];
        for (place, &event) in order.iter().enumerate() {
            let event = event as usize;
            if !there.get(event).copied().unwrap_or(false) {
                return Err(format!("delivery {place} is event {event}, which is not there").into());
            }
            let parents = &self.data.parents[event];
            if let Some(parent) = parents.iter().find(|parent| !delivered[**parent as usize]) {
                return Err(format!("event {event} came before its parent {parent}").into());
            }
            if std::mem::replace(&mut delivered[event], true) {
                return Err(format!("event {event} came twice").into());
            }
        }
        if order.len() != self.order.len() {
            let (is, has) = (order.len(), self.order.len());
            return Err(format!("{is} events were delivered, and not {has}").into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::PROFILES;

    #[test]
    fn a_wrong_order_is_seen() {
        let data = Data::new(&PROFILES[4], 1_000, 3).unwrap();
        let expected = Expected::new(&data);
        let right = expected.order.clone();
        assert!(right.len() < data.arrivals.len());
        expected.check(&right, Strictness::Exact).unwrap();

        let mut other = right.clone();
        other.sort_unstable(); // parents have lower ordinals
        expected.check(&other, Strictness::Causal).unwrap();
        expected.check(&other, Strictness::Exact).unwrap_err();

        let wrong = |change: fn(&mut Vec<u32>)| {
            let mut order = right.clone();
            change(&mut order);
            expected.check(&order, Strictness::Causal).unwrap_err();
        };
        wrong(|order| order.truncate(order.len() - 1));
        wrong(|order| order.push(order[0]));
        wrong(|order| order.reverse());
        wrong(|order| order[0] = u32::MAX);
        wrong(|order| *order.last_mut().unwrap() = order[0]);
    }
}
