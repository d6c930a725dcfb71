//! Records that are parsed already: what the contenders in memory begin with.
//!
//! Streams and ids are 64-bit keys of which it is known that no two are the same: what is left when
//! everything about reading, checking, decoding and comparing is free. Where a part is settled, it is
//! known for free too: only the rest is here, without parents that are settled.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::Failure;
use crate::event::mix;
use crate::profile::Data;

const FILE: &str = "records";

/// Records in the order of their arrival.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) records: Vec<Record>,
    /// Keys of all parents, one record's behind the other's.
    parents: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) stream: u64,
    pub(super) key: u64,
    /// Not for ordering: what the key stands for.
    pub(super) ordinal: u32,
    /// Where its parents end.
    parents_end: u32,
    parent_count: u32,
}

impl Records {
    pub(super) fn parents(&self, record: &Record) -> &[u64] {
        let end = record.parents_end as usize;
        &self.parents[end - record.parent_count as usize..end]
    }

    fn new(data: &Data) -> Self {
        let mut settled = vec![false; data.parents.len()];
        let (before, rest) = data.arrivals.split_at(data.settled);
        before.iter().for_each(|event| settled[*event as usize] = true);
        let key = |ordinal: u32| mix(u64::from(ordinal) | 6 << 32);
        let mut records = Records::default();
        for &ordinal in rest {
            let parents = &data.parents[ordinal as usize];
            let parents = parents.iter().filter(|parent| !settled[**parent as usize]);
            let begin = records.parents.len();
            records.parents.extend(parents.map(|parent| key(*parent)));
            records.records.push(Record {
                stream: key(data.streams[ordinal as usize]),
                key: key(ordinal),
                ordinal,
                parents_end: records.parents.len() as u32,
                parent_count: (records.parents.len() - begin) as u32,
            });
        }
        records
    }

    /// Reads them all to memory.
    pub(super) fn load(dir: &Path) -> Result<Self, Failure> {
        let bytes = std::fs::read(dir.join(FILE))?;
        let (words, _) = bytes.as_chunks();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().ok_or("the records are cut short");
        let (count, parent_count) = (next()?, next()?);
        let mut records = Records::default();
        for _ in 0..count {
            let [stream, key, ordinal, parents_end, parent_count] =
                [next()?, next()?, next()?, next()?, next()?];
            records.records.push(Record {
                stream,
                key,
                ordinal: ordinal as u32,
                parents_end: parents_end as u32,
                parent_count: parent_count as u32,
            });
        }
        for _ in 0..parent_count {
            records.parents.push(next()?);
        }
        Ok(records)
    }

    fn save(&self, dir: &Path) -> Result<(), Failure> {
        let mut words = vec![self.records.len() as u64, self.parents.len() as u64];
        for record in &self.records {
            let numbers = [record.ordinal, record.parents_end, record.parent_count];
            words.extend([record.stream, record.key]);
            words.extend(numbers.map(u64::from));
        }
        words.extend(&self.parents);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(std::fs::write(dir.join(FILE), bytes)?)
    }

    /// The ordinals of these places.
    pub(super) fn ordinals(&self, places: &[u64]) -> Vec<u32> {
        places.iter().map(|place| self.records[*place as usize].ordinal).collect()
    }
}

pub(super) fn prepare(data: &Data, dir: &Path) -> Result<(), Failure> {
    Records::new(data).save(dir)
}

/// Has the order on the device: eight bytes for each event, one write, one sync.
pub(super) fn write_order(dir: &Path, places: &[u64]) -> Result<(), Failure> {
    let mut bytes = Vec::with_capacity(places.len() * 8);
    places.iter().for_each(|place| bytes.extend_from_slice(&place.to_le_bytes()));
    let mut file = File::create(dir.join("order"))?;
    file.write_all(&bytes)?;
    Ok(file.sync_data()?)
}
