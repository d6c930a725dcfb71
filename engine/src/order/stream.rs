//! One stream: its state in memory, and as a run has it.
//!
//! Most streams have one tip, which is their newest delivery, and nothing more to say. Of those a run
//! has the global sequence of that delivery: the rest is in the order log and in the record. What is
//! different about the others, a run has in a blob.

use smallvec::SmallVec;

use crate::derived::order_log::{Damaged, Entry, NONE};
use crate::derived::run::StreamItem;
use crate::order::tips::{Tip, Tips};
use crate::pipeline::lookup::{Fault, Lookup};

/// The name of a stream; short ones lie in the stream itself.
pub(crate) type Name = SmallVec<[u8; 24]>;
/// The way back of the skip list; that of a short stream lies in the stream itself.
pub(crate) type Path = SmallVec<[u64; 4]>;

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) key: u64,
    pub(crate) name: Name,
    /// Number of delivered events.
    pub(crate) delivered: u64,
    /// Number of held events.
    pub(crate) held: u32,
    /// Whether the stream takes no events.
    pub(crate) sealed: bool,
    /// Another stream had this key before.
    pub(crate) is_second: bool,
    /// Whether the window in hand has delivered to the stream.
    pub(crate) touched: bool,
    /// Whether the stream has changed since the newest run was begun.
    pub(crate) fresh: bool,
    pub(crate) tips: Tips,
    /// Global sequences of the deliveries whose local sequences are the newest one and what is left
    /// of it as its lowest set bits are cleared one by one: the way back of the skip list. Its beginning
    /// may be missing, and is then in the order log.
    pub(crate) path: Path,
}

impl Stream {
    pub(crate) fn new(key: u64, name: &[u8]) -> Self {
        Stream {
            key,
            name: Name::from_slice(name),
            delivered: 0,
            held: 0,
            sealed: false,
            is_second: false,
            touched: false,
            fresh: false,
            tips: Tips::default(),
            path: Path::new(),
        }
    }

    /// Whether there is anything to say of the stream. One that has only seen rejected events has
    /// nothing to show.
    pub(crate) fn is_there(&self) -> bool {
        self.sealed || self.delivered + u64::from(self.held) > 0
    }

    /// Appends a delivery to the skip list; returns its links back.
    pub(crate) fn link(
        &mut self,
        local: u64,
        global: u64,
        lookup: &Lookup,
    ) -> Result<(u64, u64), Fault> {
        let previous = self.path.last().copied().unwrap_or(NONE);
        if local > 0 {
            let cleared = local.trailing_zeros() as usize;
            // Of a stream that comes from a run, only the end of the way is known at first.
            while self.path.len() <= cleared {
                let first = *self.path.first().expect("the stream has a delivery");
                match lookup.entry(first)?.jump {
                    jump if jump < first => self.path.insert(0, jump),
                    _ => return Err(Damaged { global: first }.into()),
                }
            }
            self.path.truncate(self.path.len() - cleared);
        }
        let jump = self.path.last().copied().unwrap_or(NONE);
        self.path.push(global);
        Ok((previous, jump))
    }

    /// Bytes that the stream takes in memory beside its own size.
    pub(crate) fn heap_len(&self) -> usize {
        let name = if self.name.spilled() { self.name.capacity() } else { 0 };
        let path = if self.path.spilled() { self.path.capacity() * 8 } else { 0 };
        name + path + self.tips.heap_len()
    }

    /// The stream for a run: its item, and its blob if it has one, which the caller puts somewhere.
    pub(crate) fn encode(&self) -> (StreamItem, Option<Box<[u8]>>) {
        if let (Some(tip), Some(&head)) = (self.tips.only(), self.path.last())
            && tip.local + 1 == self.delivered
            && self.held == 0
            && !self.sealed
            && !self.is_second
        {
            return (StreamItem { key: self.key, value: head, tip_key: tip.key }, None);
        }
        let mut blob = Vec::with_capacity(32 + self.name.len() + self.tips.len() * 24);
        blob.push(u8::from(self.sealed) | u8::from(self.is_second) << 1);
        blob.push(self.name.len() as u8);
        blob.extend_from_slice(&self.name);
        blob.extend_from_slice(&self.path.last().copied().unwrap_or(NONE).to_le_bytes());
        blob.extend_from_slice(&self.held.to_le_bytes());
        for tip in self.tips.sorted() {
            for number in [tip.key, tip.local, tip.position] {
                blob.extend_from_slice(&number.to_le_bytes());
            }
        }
        (StreamItem { key: self.key, value: StreamItem::BLOB, tip_key: 0 }, Some(blob.into()))
    }
}

const SEALED: u8 = 1;
const SECOND: u8 = 2;

/// What a blob says of a stream.
#[derive(Debug)]
pub(crate) struct StreamBlob<'a> {
    flags: u8,
    pub(crate) name: &'a [u8],
    /// Newest delivery, or [`NONE`].
    pub(crate) head: u64,
    held: u32,
    tips: &'a [u8],
}

impl<'a> StreamBlob<'a> {
    /// Nothing if the blob does not add up.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (&[flags, name_len], rest) = bytes.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(usize::from(name_len))?;
        let (head, rest) = rest.split_first_chunk()?;
        let (held, tips) = rest.split_first_chunk()?;
        let (head, held) = (u64::from_le_bytes(*head), u32::from_le_bytes(*held));
        tips.len().is_multiple_of(24).then_some(StreamBlob { flags, name, head, held, tips })
    }

    fn tips(&self) -> impl Iterator<Item = Tip> {
        let number =
            |tip: &[u8], at: usize| u64::from_le_bytes(tip[at..at + 8].try_into().expect("eight"));
        self.tips.chunks_exact(24).map(move |tip| Tip {
            key: number(tip, 0),
            local: number(tip, 8),
            position: number(tip, 16),
        })
    }

    /// The stream, which has so many deliveries. Nothing if a tip is none of them.
    pub(crate) fn restore(&self, key: u64, delivered: u64) -> Option<Stream> {
        if self.tips().any(|tip| tip.local >= delivered) {
            return None;
        }
        let path = if self.head == NONE { Path::new() } else { Path::from_slice(&[self.head]) };
        let mut stream = Stream {
            delivered,
            held: self.held,
            sealed: self.flags & SEALED != 0,
            is_second: self.flags & SECOND != 0,
            path,
            ..Stream::new(key, self.name)
        };
        self.tips().for_each(|tip| stream.tips.insert(tip));
        Some(stream)
    }
}

/// A stream of which a run has no blob: its newest delivery is its only tip.
pub(crate) fn restore_quiet(item: &StreamItem, name: &[u8], head: &Entry) -> Stream {
    let path = Path::from_slice(&[item.value]);
    let delivered = head.local + 1;
    let mut stream = Stream { delivered, path, ..Stream::new(item.key, name) };
    stream.tips.insert(Tip { key: item.tip_key, local: head.local, position: head.position });
    stream
}

/// Name of the stream of this blob, if another stream had its key before.
pub(crate) fn name_of_second(blob: &[u8]) -> Option<&[u8]> {
    StreamBlob::decode(blob).filter(|blob| blob.flags & SECOND != 0).map(|blob| blob.name)
}
