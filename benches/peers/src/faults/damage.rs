//! Damage to the files of a store that was closed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Bench, Reopened, Spec, command, files_below, trace};
use crate::Failure;
use crate::contenders::Setup;
use crate::payload::{Batches, HEADER_LEN, Pool, READY_MIN, number_of};

/// Events of the store whose bits are flipped and whose tail is cut.
const EVENTS: u64 = 200;
/// Places at which the last event is cut.
const CUTS: u64 = 8;
/// Bytes of an event of the store that loses a file.
const LARGE_LEN: usize = 1 << 20;

impl Bench<'_> {
    pub(super) fn damage(&mut self, [flip, tail, missing]: [bool; 3]) -> Result<(), Failure> {
        if flip || tail {
            let spec = self.closed(EVENTS, super::PAYLOAD_LEN, self.options.durable)?;
            if flip {
                self.flip(&spec)?;
            }
            if tail {
                self.tail(&spec)?;
            }
            std::fs::remove_dir_all(&spec.setup.dir)?;
        }
        if missing {
            let events = self.options.large_bytes / LARGE_LEN as u64;
            let spec = self.closed(events, LARGE_LEN, !self.peer.buffered)?;
            self.missing(&spec)?;
            std::fs::remove_dir_all(&spec.setup.dir)?;
        }
        Ok(())
    }

    /// A store that one thread has appended to, and closed.
    fn closed(&self, events: u64, payload: usize, durable: bool) -> Result<Spec, Failure> {
        let dir = self.fresh("closed")?;
        let byte_max = events * payload as u64 + (1 << 20);
        let setup = Setup { dir, durable, threads: 1, streams: 1, byte_max };
        let spec = Spec {
            contender: self.peer.name.to_owned(),
            setup,
            payload,
            first: vec![0],
            appends: events,
        };
        let said = trace::leave_alone(&mut command("faults-append", &spec)?)?;
        let acknowledged = &super::acknowledged(&said)[0];
        if acknowledged.len() as u64 != events {
            return Err(format!("{} without a fault: {:?}", self.peer.name, said.last()).into());
        }
        Ok(spec)
    }

    /// What is found in a copy of the store to which something is done.
    fn with(
        &self,
        spec: &Spec,
        damage: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<Reopened, Failure> {
        let dir = self.copy(&spec.setup.dir, "damaged")?;
        damage(&dir)?;
        let setup = Setup { dir: dir.clone(), ..spec.setup.clone() };
        let all: HashSet<u64> = (0..spec.appends).collect();
        let (_, reopened) = self.look(&Spec { setup, ..spec.clone() }, &[all])?;
        std::fs::remove_dir_all(&dir)?;
        Ok(reopened)
    }

    /// Flips one bit at a time, spread over all bytes that files have up to the last that is not zero.
    fn flip(&mut self, spec: &Spec) -> Result<(), Failure> {
        let mut used = Vec::new();
        for path in files_below(&spec.setup.dir)? {
            let len = std::fs::read(&path)?.iter().rposition(|byte| *byte != 0);
            let path = path.strip_prefix(&spec.setup.dir)?.to_owned();
            used.extend(len.map(|last| (path, last as u64 + 1)));
        }
        let of = used.iter().map(|(_, len)| len).sum::<u64>();
        for round in 0..self.options.flips {
            let at = (2 * round + 1) * of / (2 * self.options.flips);
            let mut offset = at;
            let (path, _) = used
                .iter()
                .find(|(_, len)| {
                    let here = offset < *len;
                    offset -= if here { 0 } else { *len };
                    here
                })
                .expect("is below the sum");
            let reopened = self.with(spec, |dir| {
                let file = OpenOptions::new().read(true).write(true).open(dir.join(path))?;
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset)?;
                byte[0] ^= 1 << (round % 8);
                Ok(file.write_all_at(&byte, offset)?)
            })?;
            let row = self.row(&format!("flip {}+{offset}", path.display()), (at, of), reopened);
            self.push(row);
        }
        Ok(())
    }

    /// Cuts the file with the last event in it, at places that are spread over that event.
    fn tail(&mut self, spec: &Spec) -> Result<(), Failure> {
        let last = places(spec)?.into_iter().max_by_key(|place| (place.number, place.offset));
        let Place { path, offset, .. } = last.ok_or("no event is found in the files")?;
        for cut in 0..CUTS {
            let len = offset + cut * spec.payload as u64 / CUTS;
            let reopened = self.with(spec, |dir| {
                let file = OpenOptions::new().write(true).open(dir.join(&path))?;
                Ok(file.set_len(len)?)
            })?;
            let row = self.row(&format!("tail {} at {len}", path.display()), (cut, CUTS), reopened);
            self.push(row);
        }
        Ok(())
    }

    /// Takes away the file in the middle, of those that hold events.
    fn missing(&mut self, spec: &Spec) -> Result<(), Failure> {
        let mut files = BTreeMap::new();
        for place in places(spec)? {
            let first = files.entry(place.path).or_insert(place.number);
            *first = place.number.min(*first);
        }
        // By their first event, which is not the order of their names everywhere.
        let mut files: Vec<_> = files.into_iter().map(|(path, first)| (first, path)).collect();
        files.sort();
        let of = files.len() as u64;
        if of < 3 {
            eprintln!("{} keeps its events in {of} file(s): none is in the middle", self.peer.name);
            return Ok(());
        }
        let (_, path) = files.swap_remove(files.len() / 2);
        let reopened = self.with(spec, |dir| Ok(std::fs::remove_file(dir.join(&path))?))?;
        let row = self.row(&format!("missing {}", path.display()), (of / 2, of), reopened);
        self.push(row);
        Ok(())
    }
}

/// Where an event begins in a file.
struct Place {
    path: PathBuf,
    offset: u64,
    /// The event. A store that compresses does not show its number: then it is the last that it may be.
    number: u64,
}

/// Bytes of a body by which an event is recognised; a store may break it up behind them.
const RECOGNISED_LEN: usize = 64;

/// Where events lie in the files.
fn places(spec: &Spec) -> Result<Vec<Place>, Failure> {
    let pool = Pool::new(spec.payload, 1);
    let mut batches = Batches::new(&pool, 0, 1);
    // Bodies come again and again; a later event takes the place of an earlier one.
    let mut bodies = HashMap::new();
    for number in 0..spec.appends {
        let body = &batches.next()[0][HEADER_LEN..];
        bodies.insert(<[u8; 8]>::try_from(&body[..8])?, (number, body[..RECOGNISED_LEN].to_vec()));
    }
    // Most places are none, and two bytes tell that.
    let start = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let mut starts = vec![false; 1 << 16];
    bodies.keys().for_each(|body| starts[start(body)] = true);
    let mut places = Vec::new();
    for path in files_below(&spec.setup.dir)? {
        let bytes = std::fs::read(&path)?;
        let path = path.strip_prefix(&spec.setup.dir)?;
        for (at, window) in bytes.windows(RECOGNISED_LEN).enumerate().skip(HEADER_LEN) {
            if !starts[start(window)] {
                continue;
            }
            let Some((last, body)) = bodies.get(&window[..8]) else { continue };
            if window == body {
                let header = number_of(&bytes[at - HEADER_LEN..at]);
                let is_header = header <= *last && (last - header).is_multiple_of(READY_MIN as u64);
                let number = if is_header { header } else { *last };
                let offset = (at - HEADER_LEN) as u64;
                places.push(Place { path: path.to_owned(), offset, number });
            }
        }
    }
    Ok(places)
}
