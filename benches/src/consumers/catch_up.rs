//! A subscription over everything that is there, beside a plain read of the same events.

use std::path::Path;
use std::time::Instant;

use super::report::{Figures, Row};
use super::{Contender, Durability, Failure, Log, Options, What, header, payload};

const STREAMS: u64 = 16;
/// Events of one batch.
const BATCH: u64 = 512;

pub(super) fn run(
    contender: &Contender,
    dir: &Path,
    what: What,
    options: &Options,
) -> Result<Row, Failure> {
    let log = (contender.open)(dir, Durability::Durable)?;
    let mut expected = Sum::default();
    let mut appender = log.appender()?;
    for first in (0..options.events).step_by(BATCH as usize) {
        let numbers = first..options.events.min(first + BATCH);
        for number in numbers.clone().filter(|number| is_wanted(what, *number)) {
            expected.add(number);
        }
        let event = |number| ((number % STREAMS) as usize, payload(number, options.payload));
        appender.append(&numbers.map(event).collect::<Vec<_>>())?;
    }
    drop(appender);
    log.settle()?;

    let (mut reads, mut subscriptions) = (Vec::new(), Vec::new());
    // The first round warms up.
    for _ in 0..=options.rounds {
        reads.push(timed(expected, |sum| read(&*log, what, sum))?);
        subscriptions.push(timed(expected, |sum| subscribe(&*log, what, expected.count, sum))?);
    }
    log.close()?;
    Ok(Row {
        case: "catch-up",
        durability: Durability::Durable,
        of: String::from(match what {
            What::All => "everything",
            What::Stream(_) => "one stream of 16",
        }),
        threads: 1,
        payload: options.payload,
        events: expected.count,
        figures: Figures::Rates {
            rounds: options.rounds,
            read_per_s: expected.count as f64 / median(&mut reads[1..]),
            subscription_per_s: expected.count as f64 / median(&mut subscriptions[1..]),
        },
    })
}

fn is_wanted(what: What, number: u64) -> bool {
    match what {
        What::All => true,
        What::Stream(stream) => number % STREAMS == stream as u64,
    }
}

/// Count of events, and a checksum over their numbers, in their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    count: u64,
    checksum: u64,
}

impl Sum {
    fn add(&mut self, number: u64) {
        self.count += 1;
        let mixed = self.checksum.wrapping_add(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.checksum = mixed ^ (mixed >> 32);
    }
}

/// The seconds that it takes, if it comes to what it should.
fn timed(
    expected: Sum,
    what: impl FnOnce(&mut Sum) -> Result<(), Failure>,
) -> Result<f64, Failure> {
    let mut sum = Sum::default();
    let begun = Instant::now();
    what(&mut sum)?;
    let seconds = begun.elapsed().as_secs_f64();
    match sum == expected {
        true => Ok(seconds),
        false => Err(format!("{sum:?} was read instead of {expected:?}").into()),
    }
}

fn read(log: &dyn Log, what: What, sum: &mut Sum) -> Result<(), Failure> {
    log.read(what, &mut |payload| {
        sum.add(header(payload)?.0);
        Ok(())
    })
}

fn subscribe(log: &dyn Log, what: What, count: u64, sum: &mut Sum) -> Result<(), Failure> {
    let mut subscription = log.subscribe(what)?;
    while sum.count < count {
        let goes_on = subscription.next(&mut |payload| {
            sum.add(header(payload)?.0);
            Ok(())
        });
        if !goes_on? {
            return Err("the subscription has ended".into());
        }
    }
    Ok(())
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_unstable_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
