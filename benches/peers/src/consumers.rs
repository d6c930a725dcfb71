//! `consumers`: how soon subscribers and followers see an event, and how fast they catch up.
//!
//! The cases are those of `thalweg-benches consumers`, from the same files. tephra is beside Thalweg here, since it is the only
//! peer with subscriptions and with a follower in another process.

#[path = "../../src/consumers/mod.rs"]
mod cases;

use crate::Failure;
use crate::contenders::version_of;
use crate::machine::{Machine, probe};

pub(crate) use self::cases::follow::CHILD;

fn contenders() -> Vec<cases::Contender> {
    vec![
        cases::thalweg::contender(version_of("thalweg")),
        #[cfg(feature = "tephra")]
        tephra::contender(),
    ]
}

/// Runs what was asked for.
pub(crate) fn run(words: &[String]) -> Result<bool, Failure> {
    if matches!(words.first().map(String::as_str), Some("--help" | "-h")) {
        print!("{}", cases::USAGE);
        return Ok(true);
    }
    let options = cases::Options::parse(words)?;
    let machine = serde_json::json!({
        "machine": Machine::new(&options.dir)?,
        "fdatasync": probe(&options.dir)?,
    });
    cases::run(&options, &contenders(), &machine.to_string())?;
    Ok(true)
}

/// The process of the follower.
pub(crate) fn follow(words: &[String]) -> Result<bool, Failure> {
    cases::follow::child(&contenders(), words)?;
    Ok(true)
}

#[cfg(feature = "tephra")]
mod tephra {
    //! tephra: events of one type, tagged with their stream, without a condition.

    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use ::tephra::{
        Event, EventType, Follower, FollowerConfig, FollowerPoller, Position, Query, QueryItem,
        SegmentConfig, SegmentSet, Subscription, Tag, Tags, WriteCoordinator, WriteHandle,
        WriterConfig,
    };

    use super::cases::{Append, Contender, Durability, Log, Opened, Subscribe, Visit, What};
    use crate::Failure;
    use crate::contenders::version_of;

    /// As in the example of its documentation.
    const SEGMENT_BYTES: usize = 256 << 20;
    /// How often its follower looks. The example of its documentation has 10 ms; nobody tells it when to.
    const POLL: Duration = Duration::from_millis(1);

    pub(super) fn contender() -> Contender {
        let version = version_of("tephra");
        // There is no mode in which it acknowledges without a sync.
        let durabilities = &[Durability::Durable];
        Contender { name: "tephra", version, durabilities, open, follow }
    }

    fn open(dir: &Path, _durability: Durability) -> Opened {
        let set = SegmentSet::open(dir, SegmentConfig::new(SEGMENT_BYTES))?;
        let (coordinator, handle) = WriteCoordinator::start(set, WriterConfig::default())?;
        Ok(Box::new(Open { coordinator, handle }))
    }

    fn follow(dir: &Path) -> Result<Box<dyn Subscribe>, Failure> {
        let config = FollowerConfig::new(SegmentConfig::new(SEGMENT_BYTES));
        let follower = Arc::new(Follower::open(dir, config)?);
        let subscription = follower.reader().subscribe(Query::all(), Position::ZERO);
        Ok(Box::new(Following { subscription, _poller: follower.poll_every(POLL) }))
    }

    fn tags(stream: usize) -> Result<Tags, Failure> {
        Ok(Tags::new([Tag::new(format!("stream:{stream}"))?])?)
    }

    fn query(what: What) -> Result<Query, Failure> {
        Ok(match what {
            What::All => Query::all(),
            What::Stream(stream) => Query::item(QueryItem::with_tags(tags(stream)?)),
        })
    }

    struct Open {
        coordinator: WriteCoordinator,
        handle: WriteHandle,
    }

    impl Log for Open {
        fn appender(&self) -> Result<Box<dyn Append + '_>, Failure> {
            let event_type = EventType::new("Appended")?;
            Ok(Box::new(Appender { handle: self.handle.clone(), event_type }))
        }

        fn settle(&self) -> Result<(), Failure> {
            Ok(())
        }

        fn read(&self, what: What, visit: &mut Visit<'_>) -> Result<(), Failure> {
            let mut reads = self.handle.read(&query(what)?, Position::ZERO, None);
            while let Some(item) = reads.next() {
                visit(item?.event.data())?;
            }
            Ok(())
        }

        fn subscribe(&self, what: What) -> Result<Box<dyn Subscribe + Send>, Failure> {
            Ok(Box::new(self.handle.subscribe(query(what)?, Position::ZERO)))
        }

        fn close(self: Box<Self>) -> Result<(), Failure> {
            let Open { coordinator, handle } = *self;
            drop(handle);
            coordinator.shutdown();
            Ok(())
        }
    }

    struct Appender {
        handle: WriteHandle,
        event_type: EventType,
    }

    impl Append for Appender {
        fn append(&mut self, events: &[(usize, Vec<u8>)]) -> Result<(), Failure> {
            let event = |(stream, payload): &(usize, Vec<u8>)| {
                Ok::<_, Failure>(Event::new(&self.event_type, &tags(*stream)?, payload)?)
            };
            self.handle.append(events.iter().map(event).collect::<Result<_, _>>()?, None)?;
            Ok(())
        }
    }

    impl Subscribe for Subscription {
        fn next(&mut self, visit: &mut Visit<'_>) -> Result<bool, Failure> {
            let Some(batch) = self.next_batch() else { return Ok(false) };
            batch?.iter().try_for_each(|(_, event)| visit(event.data()))?;
            Ok(true)
        }
    }

    struct Following {
        subscription: Subscription,
        /// Looks until it is dropped.
        _poller: FollowerPoller,
    }

    impl Subscribe for Following {
        fn next(&mut self, visit: &mut Visit<'_>) -> Result<bool, Failure> {
            Subscribe::next(&mut self.subscription, visit)
        }
    }
}
