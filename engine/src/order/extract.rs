//! Extracts: what the machine looks at of an event without conditions, copied out of the log.
//!
//! A scanner has each record in the processor's caches, once. When the machine comes to it, stream by stream, the log is a
//! place where each look has to wait for memory, and a cold one where it has to be read again. So scanners copy what
//! the machine is going to look at, and that lies together for each partition.
//!
//! ```text
//! flags u8 | stream length u8 | id length u8 | length of the list u16 | stream | id | list of parents, as in the record
//! ```

use thalweg_wal::{Record, RecordKind};

use crate::event::EventId;

/// The place of an extract that there is not: something is special about the record, and the machine reads it in the log.
pub(crate) const NO_EXTRACT: u32 = u32::MAX;

const FIXED_LEN: usize = 5;
/// Bytes of a list of parents that is copied at most.
const PARENTS_LEN_MAX: usize = 1024;
const CHAINED: u8 = 1;
const CACHE_LINE_LEN: usize = 64;

/// The extract of an event.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extract<'a> {
    /// Where it is.
    at: u32,
    pub(crate) stream: &'a [u8],
    pub(crate) id: &'a [u8],
    pub(crate) is_chained: bool,
    parents: &'a [u8],
}

/// Where an id is among the extracts of a cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    at: u32,
    len: u8,
}

impl Span {
    /// The id.
    #[inline]
    pub(crate) fn of(self, extracts: &[u8]) -> &[u8] {
        &extracts[self.at as usize..][..usize::from(self.len)]
    }
}

impl<'a> Extract<'a> {
    /// Appends the extract of a record to `extracts` and returns its place there, or [`NO_EXTRACT`].
    pub(crate) fn push(record: &Record<'_>, id: &EventId<'_>, extracts: &mut Vec<u8>) -> u32 {
        let parents = record.parents().as_bytes();
        // Long lists stay in the log: they are few, and would take as much memory as there.
        if parents.len() > PARENTS_LEN_MAX {
            return NO_EXTRACT;
        }
        let (Ok(at), Ok(parents_len)) =
            (u32::try_from(extracts.len()), u16::try_from(parents.len()))
        else {
            return NO_EXTRACT;
        };
        if !is_plain(record) {
            return NO_EXTRACT;
        }
        let stream = record.stream();
        let flags = if record.is_chained() { CHAINED } else { 0 };
        let [low, high] = parents_len.to_le_bytes();
        extracts.extend_from_slice(&[flags, stream.len() as u8, id.len() as u8, low, high]);
        extracts.extend_from_slice(stream);
        extracts.extend_from_slice(id);
        extracts.extend_from_slice(parents);
        at
    }

    /// The extract at this place.
    pub(crate) fn at(extracts: &'a [u8], at: u32) -> Option<Self> {
        let extract = extracts.get(at as usize..)?;
        let (&[flags, stream_len, id_len, low, high], rest) = extract.split_first_chunk()?;
        let (stream, rest) = rest.split_at_checked(usize::from(stream_len))?;
        let (id, rest) = rest.split_at_checked(usize::from(id_len))?;
        let parents = rest.get(..usize::from(u16::from_le_bytes([low, high])))?;
        Some(Extract { at, stream, id, is_chained: flags & CHAINED != 0, parents })
    }

    /// Has the processor fetch the extract at this place, as far as most reach.
    #[inline]
    pub(crate) fn touch(extracts: &[u8], at: u32) {
        for line in [0, CACHE_LINE_LEN] {
            // A load that nobody needs: it has to happen, and nothing waits for it.
            std::hint::black_box(extracts.get(at as usize + line).copied());
        }
    }

    /// Bytes that it takes.
    pub(crate) fn len(&self) -> usize {
        FIXED_LEN + self.stream.len() + self.id.len() + self.parents.len()
    }

    /// Where the id is.
    pub(crate) fn id_span(&self) -> Span {
        let at = self.at + (FIXED_LEN + self.stream.len()) as u32;
        Span { at, len: self.id.len() as u8 }
    }

    /// The listed parents: the place of each in the list, in bytes, its id, and where that is.
    pub(crate) fn parents(&self) -> impl Iterator<Item = (u16, &'a [u8], Span)> {
        let (list, Span { at: id_at, len: id_len }) = (self.parents, self.id_span());
        let first = id_at + u32::from(id_len);
        let mut rest = list;
        std::iter::from_fn(move || {
            let list_at = (list.len() - rest.len()) as u16;
            let (&len, behind) = rest.split_first()?;
            let parent;
            (parent, rest) = behind.split_at_checked(usize::from(len))?;
            Some((list_at, parent, Span { at: first + u32::from(list_at) + 1, len }))
        })
    }
}

/// Whether this is an event without conditions.
fn is_plain(record: &Record<'_>) -> bool {
    record.kind() == RecordKind::Event
        && !record.is_lost()
        && !record.is_with_previous()
        && record.if_local().is_none()
        && !record.is_if_tips()
        && !record.requires_parents()
}
