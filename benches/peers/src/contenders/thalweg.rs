//! Thalweg: events without ids or parents of their own, chained on the tips of their stream.
//!
//! Three times: with tickets, as everybody else; with callbacks; and with threads that spin before they
//! sleep, which it does by itself only where each of its threads has a core of its own.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ::thalweg::{
    AppenderOptions, Batch, Durability, Event, Histogram, Options, Outcome, Store, StreamAppender,
    Ticket,
};

use super::{Contender, Peer, Quantiles, Session, Setup, Spans, Visit};
use crate::Failure;

pub(super) const PEER: Peer = Peer {
    name: "thalweg",
    package: "thalweg",
    buffered: true,
    pipelined: true,
    open: |setup| open_as(setup, Answers::Tickets, Duration::ZERO),
    read_back,
};

pub(super) const CALLBACKS: Peer = Peer {
    name: "thalweg-callbacks",
    open: |setup| open_as(setup, Answers::Callbacks, Duration::ZERO),
    ..PEER
};

pub(super) const SPINNING: Peer = Peer {
    name: "thalweg-spinning",
    open: |setup| open_as(setup, Answers::Tickets, Duration::from_micros(20)),
    ..PEER
};

/// More than any thread has under way.
const PIPELINE: usize = 64;

#[derive(Clone, Copy)]
enum Answers {
    Tickets,
    Callbacks,
}

struct Open {
    store: Store,
    streams: usize,
    answers: Answers,
}

fn open_as(setup: &Setup, answers: Answers, spin: Duration) -> Result<Box<dyn Contender>, Failure> {
    let store = open(setup, options().timings(true).spin(spin))?;
    Ok(Box::new(Open { store, streams: setup.streams, answers }))
}

fn options() -> Options {
    Options::new()
}

fn open(setup: &Setup, options: Options) -> Result<Store, Failure> {
    let durability = if setup.durable { Durability::Sync } else { Durability::Buffered };
    Ok(options.durability(durability).open(&setup.dir)?)
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let store = open(setup, options())?;
    store.wait_committed(store.durable_end())?;
    for event in store.read(..)? {
        visit(event?.payload())?;
    }
    let held = store.stats().held;
    if held > 0 {
        return Err(format!("{held} events are held").into());
    }
    Ok(store.close()?)
}

fn quantiles(histogram: &Histogram) -> Option<Quantiles> {
    let us = |part| histogram.quantile(part) as f64 / 1e3;
    (histogram.count() > 0).then(|| Quantiles {
        p50: us(0.5),
        p99: us(0.99),
        p99_9: us(0.999),
        max: histogram.max() as f64 / 1e3,
    })
}

impl Contender for Open {
    fn session(&self, thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        let options = AppenderOptions::new().pipeline(PIPELINE).pipeline_bytes(u64::MAX);
        let stream = format!("stream-{}", thread % self.streams);
        let appender = self.store.appender_with(stream, options)?;
        Ok(match self.answers {
            Answers::Tickets => Box::new(Tickets { appender, under_way: VecDeque::new() }),
            Answers::Callbacks => {
                let (outcomes, called) = channel();
                Box::new(Callbacks { appender, outcomes, called })
            }
        })
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(self.store.wait_committed(self.store.durable_end())?)
    }

    fn spans(&self) -> Spans {
        let timings = self.store.stats().timings;
        Spans {
            slot_wait_us: quantiles(&timings.slot_wait),
            queue_us: quantiles(&timings.queue),
            write_us: quantiles(&timings.write),
            sync_us: quantiles(&timings.sync),
            callback_us: quantiles(&timings.callback),
        }
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.store.close()?)
    }
}

fn batch_of(payloads: &[Vec<u8>]) -> Batch {
    payloads.iter().map(|payload| Event::new(payload.as_slice())).collect()
}

struct Tickets {
    appender: StreamAppender,
    under_way: VecDeque<Ticket>,
}

impl Session for Tickets {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.appender.submit(batch_of(batch))?.wait()?;
        Ok(())
    }

    fn submit(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.under_way.push_back(self.appender.submit(batch_of(batch))?);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Failure> {
        self.under_way.pop_front().ok_or("nothing is under way")?.wait()?;
        Ok(())
    }
}

struct Callbacks {
    appender: StreamAppender,
    outcomes: Sender<Outcome>,
    called: Receiver<Outcome>,
}

impl Session for Callbacks {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.submit(batch)?;
        self.wait()
    }

    fn submit(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        let outcomes = self.outcomes.clone();
        self.appender.submit_with(batch_of(batch), move |outcome| {
            let _ = outcomes.send(outcome);
        })?;
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Failure> {
        self.called.recv()??;
        Ok(())
    }
}
