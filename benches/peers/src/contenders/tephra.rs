//! tephra: events of one type, tagged with their stream, without a condition.

use ::tephra::writer::AppendReply;
use ::tephra::{
    AppendError, Event, EventType, Position, PositionRange, Query, SegmentConfig, SegmentSet, Tag,
    Tags, WriteCoordinator, WriteHandle, WriterConfig,
};

use super::{Contender, Peer, Session, Setup, Visit};
use crate::Failure;

pub(super) const PEER: Peer =
    Peer { name: "tephra", package: "tephra", buffered: false, pipelined: true, open, read_back };

/// As in the example of its documentation.
const SEGMENT_BYTES: usize = 256 << 20;

fn start(setup: &Setup) -> Result<(WriteCoordinator, WriteHandle), Failure> {
    let set = SegmentSet::open(&setup.dir, SegmentConfig::new(SEGMENT_BYTES))?;
    Ok(WriteCoordinator::start(set, WriterConfig::default())?)
}

fn open(setup: &Setup) -> Result<Box<dyn Contender>, Failure> {
    let (coordinator, handle) = start(setup)?;
    Ok(Box::new(Open { coordinator, handle, streams: setup.streams }))
}

fn read_back(setup: &Setup, visit: &mut Visit<'_>) -> Result<(), Failure> {
    let (coordinator, handle) = start(setup)?;
    let mut reads = handle.read(&Query::all(), Position::ZERO, None);
    while let Some(item) = reads.next() {
        visit(item?.event.data())?;
    }
    drop(reads);
    drop(handle);
    coordinator.shutdown();
    Ok(())
}

struct Open {
    coordinator: WriteCoordinator,
    handle: WriteHandle,
    streams: usize,
}

impl Contender for Open {
    fn session(&self, thread: usize) -> Result<Box<dyn Session + '_>, Failure> {
        let stream = Tag::new(format!("stream:{}", thread % self.streams))?;
        let (reply, replies) = flume::unbounded();
        Ok(Box::new(Thread {
            handle: self.handle.clone(),
            event_type: EventType::new("Appended")?,
            tags: Tags::new([stream])?,
            reply,
            replies,
        }))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        let Open { coordinator, handle, .. } = *self;
        drop(handle);
        coordinator.shutdown();
        Ok(())
    }
}

struct Thread {
    handle: WriteHandle,
    event_type: EventType,
    tags: Tags,
    reply: AppendReply,
    replies: flume::Receiver<(u64, Result<PositionRange, AppendError>)>,
}

impl Thread {
    fn events(&self, batch: &[Vec<u8>]) -> Result<Vec<Event>, Failure> {
        let event = |payload: &Vec<u8>| Event::new(&self.event_type, &self.tags, payload);
        Ok(batch.iter().map(event).collect::<Result<_, _>>()?)
    }
}

impl Session for Thread {
    fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.handle.append(self.events(batch)?, None)?;
        Ok(())
    }

    fn submit(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        Ok(self.handle.append_submit(self.events(batch)?, None, 0, self.reply.clone())?)
    }

    fn wait(&mut self) -> Result<(), Failure> {
        // There is one writer, so replies come in the order of the requests.
        self.replies.recv()?.1?;
        Ok(())
    }
}
