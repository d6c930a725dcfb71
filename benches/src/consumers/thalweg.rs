//! Thalweg: events without ids or parents of their own, chained on the tips of their stream.

use std::path::Path;

use ::thalweg::{
    AppenderOptions, Event, Follower, MixedAppender, MixedBatch, Options, Store, Subscription,
};

use super::{Append, Contender, Durability, Log, Opened, Subscribe, Visit, What};
use crate::Failure;

pub(crate) fn contender(version: &'static str) -> Contender {
    let durabilities = &[Durability::Durable, Durability::Buffered];
    Contender { name: "thalweg", version, durabilities, open, follow }
}

fn open(dir: &Path, durability: Durability) -> Opened {
    let durability = match durability {
        Durability::Durable => ::thalweg::Durability::Sync,
        Durability::Buffered => ::thalweg::Durability::Buffered,
    };
    Ok(Box::new(Open { store: Options::new().durability(durability).open(dir)? }))
}

fn follow(dir: &Path) -> Result<Box<dyn Subscribe>, Failure> {
    let follower = Store::open_follower(dir)?;
    let subscription = follower.subscribe(0)?;
    Ok(Box::new(Following { subscription, _follower: follower }))
}

fn name(stream: usize) -> String {
    format!("stream-{stream}")
}

struct Open {
    store: Store,
}

impl Log for Open {
    fn appender(&self) -> Result<Box<dyn Append + '_>, Failure> {
        let options = AppenderOptions::new().pipeline_bytes(u64::MAX);
        Ok(Box::new(Appender(self.store.mixed_appender(options)?)))
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(self.store.wait_committed(self.store.durable_end())?)
    }

    fn read(&self, what: What, visit: &mut Visit<'_>) -> Result<(), Failure> {
        let mut events = match what {
            What::All => self.store.read(..)?,
            What::Stream(stream) => match self.store.stream(name(stream))? {
                Some(view) => view.read(..)?,
                None => return Ok(()),
            },
        };
        events.try_for_each(|event| visit(event?.payload()))
    }

    fn subscribe(&self, what: What) -> Result<Box<dyn Subscribe + Send>, Failure> {
        Ok(Box::new(match what {
            What::All => self.store.subscribe(0)?,
            What::Stream(stream) => self.store.subscribe_stream(name(stream), 0)?,
        }))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.store.close()?)
    }
}

struct Appender(MixedAppender);

impl Append for Appender {
    fn append(&mut self, events: &[(usize, Vec<u8>)]) -> Result<(), Failure> {
        let mut batch = MixedBatch::new();
        for (stream, payload) in events {
            batch.push(name(*stream), &Event::new(payload.as_slice()))?;
        }
        self.0.submit(batch)?.wait()?;
        Ok(())
    }
}

impl Subscribe for Subscription {
    fn next(&mut self, visit: &mut Visit<'_>) -> Result<bool, Failure> {
        match Iterator::next(self) {
            Some(event) => visit(event?.payload()).map(|()| true),
            None => Ok(false),
        }
    }
}

struct Following {
    subscription: Subscription,
    /// It closes with the last handle.
    _follower: Follower,
}

impl Subscribe for Following {
    fn next(&mut self, visit: &mut Visit<'_>) -> Result<bool, Failure> {
        Subscribe::next(&mut self.subscription, visit)
    }
}
