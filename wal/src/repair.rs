//! Making a log whole again whose files are damaged, missing, or in each other's places.
//!
//! A [`Survey`] says what is wrong: it changes nothing. [`Survey::mend`] puts the files right once it is
//! written down what is lost: after it, the log opens for writing. What it replaces it keeps first, in a
//! folder of its own. It can be cut short at any operation: what it leaves is refused by writers, read
//! by readers as before, and finished by the next attempt.
//!
//! Deliberately not here: what the lost records were, and what the order makes of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::error::OpenError;
use crate::format::{
    FRAME_HEADER_LEN, Fault, RecordLayout, Run, SEGMENT_HEADER_LEN, SegmentHeader, align_up,
    written_len,
};
use crate::log::{SEGMENT_LEN_MAX, SEGMENT_LEN_MIN};
use crate::loss::{Losses, Stretch};
use crate::name;
use crate::record::Record;
use crate::recover::{Link, Recovered, TailHint, recover, segment_numbers};
use crate::segment::{Damage, Segment};
use crate::storage::{Access, Storage, StorageFile, read_exact_at, remove_if_there, write_all_at};
use crate::trim::TrimPoint;

/// More bytes than this are not taken to be lost at the end of the log.
const LOST_END_MAX: u64 = 1 << 40;
/// Files are copied in pieces of this many bytes.
const COPY_LEN: u64 = 1 << 20;

/// What is there of a log.
#[derive(Debug)]
pub struct Survey {
    /// Identity of the store.
    pub store_id: [u8; 16],
    /// What is known to be lost already.
    pub losses: Option<Arc<Losses>>,
    /// The segments that can be read, in order.
    pub segments: Vec<Arc<Segment>>,
    /// Position at which the log ends.
    pub end: u64,
    /// Everything that is wrong, in the order of the log.
    pub damage: Vec<Damage>,
    links: Vec<Link>,
    /// Where what was durable ends for all that is known: beyond the last segment if that is lost.
    durable_end: u64,
    /// A segment is lost at the end of the log.
    is_end_lost: bool,
    /// Newest delivery in each segment.
    newest: Vec<u64>,
    /// Where the log begins, if it was trimmed.
    trim: Option<TrimPoint>,
    /// Files of segments that were trimmed: no part of the log, and no damage.
    trimmed: Vec<u64>,
    /// Why nobody knows where the log begins.
    trim_fault: Option<OpenError>,
}

/// A segment as it has to be for the log to be whole.
#[derive(Debug)]
struct Target {
    header: SegmentHeader,
    /// Where its frames end.
    end: u64,
    /// What is there of it.
    link: Option<usize>,
}

impl Survey {
    /// Looks at all files of the log and reads all of it. `delivered` are positions of events that were
    /// delivered, and so durable, for all that the order says.
    pub fn open(
        storage: &dyn Storage,
        hint: Option<TailHint>,
        delivered: &[u64],
    ) -> Result<Self, OpenError> {
        let recovered = match recover(storage, hint, false)? {
            Some(recovered) => recovered,
            None => return Err(crate::log::nothing_there(storage, hint)),
        };
        let Recovered { segments, end, damage: mut found, losses, links, .. } = recovered;
        let Recovered { trim, trimmed, trim_fault, .. } = recovered;
        let walked = |position: u64| {
            segments.iter().any(|segment| (segment.first()..segment.end()).contains(&position))
        };
        found.retain(|damage| !walked(damage.position));
        let limit = links.last().map_or(0, |link| link.header.base + link.header.len);
        let is_end_lost = found.iter().any(|damage| {
            damage.position >= limit && !matches!(damage.fault, Fault::Foreign | Fault::Long)
        });
        for segment in &segments {
            found.extend(segment.walk(segment.first(), segment.end()).filter_map(Result::err));
        }
        found.sort_by_key(|damage| damage.position);
        let store_id = links[0].header.store_id;
        let hinted = hint.map_or(0, |hint| hint.durable_end);
        let lost = losses.as_ref().and_then(|losses| losses.stretches().last());
        let unreadable = found.iter().filter(|damage| {
            damage.position >= limit
                && !matches!(damage.fault, Fault::Foreign | Fault::Long | Fault::Missing)
        });
        let mut unreadable_end = None;
        for damage in unreadable {
            // What follows the last byte that was written was never used.
            let context = format!("reading {}", storage.describe(&damage.file));
            let len = match storage.open(&damage.file, Access::Read) {
                Ok(file) => written_end(&*file).map_err(OpenError::io(context))?,
                Err(_) => 0,
            };
            let end = damage.resumes.min(damage.position + align_up(len));
            unreadable_end = Some(end.max(unreadable_end.unwrap_or(0)));
        }
        let newest = delivered.iter().max().map(|at| at + 8);
        let lost = lost.map(|stretch| stretch.to);
        let ends = [hinted, end].into_iter().chain(unreadable_end).chain(newest).chain(lost);
        let durable_end = ends.max().unwrap_or(end);
        // Of each segment, the newest is enough.
        let in_segment = |link: &Link| {
            let range = link.header.base..link.header.base + link.header.len;
            delivered.iter().copied().filter(|at| range.contains(at)).max()
        };
        let newest = links.iter().filter_map(in_segment).collect();
        let damage = found;
        Ok(Survey {
            store_id,
            losses,
            segments,
            end,
            damage,
            links,
            durable_end,
            is_end_lost,
            newest,
            trim,
            trimmed,
            trim_fault,
        })
    }

    /// Whether the log is as it should be, but for what is known to be lost.
    pub fn is_whole(&self) -> bool {
        self.damage.is_empty() && self.durable_end <= self.end
    }

    /// The stretches of the log that cannot be read and are not known to be lost: after
    /// [`Survey::mend`] with losses that have them, the log is whole.
    pub fn stretches(&self) -> Result<Vec<Stretch>, OpenError> {
        let mut stretches = Vec::new();
        let mut add = |from: u64, to: u64| {
            if from < to {
                stretches.push(Stretch { from, to });
            }
        };
        for target in self.targets()? {
            let SegmentHeader { base, .. } = target.header;
            let first = base + SEGMENT_HEADER_LEN;
            match target.link {
                Some(index) => {
                    let link = &self.links[index];
                    let readable = self.segments[index].end().min(base + link.there);
                    add(readable.max(first), target.end);
                }
                None => add(first, target.end),
            }
        }
        for segment in &self.segments {
            for damage in segment.walk(segment.first(), segment.end()).filter_map(Result::err) {
                match damage.fault {
                    // The records are there, and the header counts others.
                    Fault::Count => add(damage.position, damage.position + FRAME_HEADER_LEN),
                    _ => add(damage.position, damage.resumes),
                }
            }
        }
        stretches.sort_by_key(|stretch| stretch.from);
        let known = |stretch: &Stretch| {
            let known = self.losses.as_ref().and_then(|losses| losses.stretch_at(stretch.from));
            known.is_some_and(|known| known.to >= stretch.to)
        };
        stretches.retain(|stretch| !known(stretch));
        Ok(stretches)
    }

    /// Positions that frames can stand at, segment by segment.
    pub fn extents(&self) -> Result<Vec<Stretch>, OpenError> {
        let extent = |target: &Target| Stretch {
            from: target.header.base + SEGMENT_HEADER_LEN,
            to: target.end,
        };
        Ok(self.targets()?.iter().map(extent).collect())
    }

    /// Positions at which segments begin, and what each of them says is forgotten.
    pub fn forgotten(&self) -> Result<Vec<(u64, u64)>, OpenError> {
        let said = |target: &Target| (target.header.base, target.header.forgotten);
        Ok(self.targets()?.iter().map(said).collect())
    }

    /// The segments of a log that is whole.
    fn targets(&self) -> Result<Vec<Target>, OpenError> {
        let mut targets: Vec<Target> = Vec::new();
        for (index, link) in self.links.iter().enumerate() {
            let before = targets.last().map_or(self.begins() - 1, |target| target.header.number);
            for number in before + 1..link.header.number {
                targets.push(self.made(targets.last(), number, Some(&link.header))?);
            }
            let segment = &self.segments[index];
            let mut header = link.header.clone();
            if let Some(previous) = targets.last_mut() {
                match link.previous_end {
                    // It knows where the segment before it ends, of which less may be there.
                    Some(end) => previous.end = end,
                    None => header.previous_end = previous.end,
                }
                if previous.link.is_none() {
                    previous.header.salt = header.previous_salt;
                    previous.header.forgotten = header.previous_forgotten;
                }
            }
            let limit = header.base + header.len;
            // Where its end is not known from elsewhere, it is at least behind what was delivered.
            let delivered =
                self.newest.iter().copied().filter(|at| (header.base..limit).contains(at));
            let end = segment.end().max(delivered.max().map_or(0, |at| at + 8));
            targets.push(Target { header, end, link: Some(index) });
        }
        let limit = targets.last().map_or(0, |target| target.header.base + target.header.len);
        if let (Some(last), Some(link)) = (targets.last_mut(), self.links.last()) {
            let is_cut = link.there < link.header.len;
            match self.durable_end > limit {
                // What it had up to its end, only a later segment knew.
                true if is_cut => last.end = limit,
                true => {}
                false => last.end = last.end.max(self.durable_end),
            }
        }
        if self.durable_end > limit || self.is_end_lost {
            let number = targets.last().map_or(self.begins(), |target| target.header.number + 1);
            let made = self.made(targets.last(), number, None)?;
            targets.push(made);
        }
        Ok(targets)
    }

    /// Number of the segment that the log begins with.
    fn begins(&self) -> u64 {
        self.trim.map_or(1, |trim| trim.segment)
    }

    /// A segment of which nothing is there. What is not known of it and does not matter is made up, the
    /// same each time.
    fn made(
        &self,
        previous: Option<&Target>,
        number: u64,
        next: Option<&SegmentHeader>,
    ) -> Result<Target, OpenError> {
        let trimmed = self
            .trim
            .map_or((0, 0, 0), |trim| (trim.position, trim.previous_end, trim.previous_salt));
        let (base, previous_end, previous_salt) = previous.map_or(trimmed, |target| {
            (target.header.base + target.header.len, target.end, target.header.salt)
        });
        // As much as is forgotten for certain: the segment behind it may tell of more.
        let forgotten = previous.map_or(0, |target| target.header.forgotten);
        let unusable = || OpenError::SegmentForeign {
            file: name::segment(number),
            detail: "there is no room for it between the segments beside it",
        };
        let (len, end) = match next {
            Some(next) => {
                // The last of several have all that is left over: there the next one says where its frames
                // ended, and that is behind the shortest that can have been before it.
                let behind = next.number - number - 1;
                let room = next.base.checked_sub(base).ok_or_else(unusable)?;
                let shortest = behind.checked_mul(SEGMENT_LEN_MIN);
                let len_max = shortest.and_then(|behind| room.checked_sub(behind));
                let longest = behind.saturating_mul(SEGMENT_LEN_MAX);
                let len_min = room.saturating_sub(longest).max(SEGMENT_LEN_MIN);
                let len = len_max.ok_or_else(unusable)?.min(SEGMENT_LEN_MAX).min(len_min);
                (len, base + len)
            }
            None => {
                let lost = self.durable_end.saturating_sub(base).max(SEGMENT_HEADER_LEN + 8);
                // No log has lost so much at its end; a checkpoint that says so is wrong.
                if lost > LOST_END_MAX {
                    return Err(unusable());
                }
                (lost.next_multiple_of(SEGMENT_LEN_MIN), (base + lost).next_multiple_of(8))
            }
        };
        if len < SEGMENT_HEADER_LEN {
            return Err(unusable());
        }
        let mut bytes = self.store_id.to_vec();
        bytes.extend_from_slice(&number.to_le_bytes());
        let salt = u64::from(crc32c::crc32c(&bytes)) << 32 | u64::from(number as u32) | 1;
        let header = SegmentHeader {
            store_id: self.store_id,
            number,
            base,
            len,
            salt,
            previous_end,
            previous_salt,
            forgotten,
            previous_forgotten: forgotten,
        };
        Ok(Target { header, end, link: None })
    }

    /// Walks over all that can be read once `losses` are known, in the order of the log: records, and what
    /// stands in for others. Ends when `visit` says so.
    pub fn walk(
        &self,
        losses: &Arc<Losses>,
        mut visit: impl FnMut(Record<'_>) -> std::ops::ControlFlow<()>,
    ) -> Result<(), OpenError> {
        for target in self.targets()? {
            let (base, limit) = (target.header.base, target.header.base + target.header.len);
            match target.link {
                Some(index) => {
                    let segment = self.segments[index].knowing(losses);
                    for record in segment.walk(segment.first(), segment.end()).flatten() {
                        if visit(record).is_break() {
                            return Ok(());
                        }
                    }
                    // Beyond what is there of the file.
                    for place in losses.substitutes_within(segment.end(), limit) {
                        if visit(losses.substitute(place)).is_break() {
                            return Ok(());
                        }
                    }
                }
                None => {
                    for place in losses.substitutes_within(base, limit) {
                        if visit(losses.substitute(place)).is_break() {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// What stands at `position` as it is, damaged or not, if it has the shape of a record: nothing in it can
    /// be relied on.
    pub fn unverified(&self, position: u64) -> Option<Unverified> {
        let segment = self
            .segments
            .iter()
            .find(|segment| (segment.first()..segment.end()).contains(&position))?;
        segment.unverified(position)
    }

    /// Puts the files right. `losses` have all of [`Survey::stretches`]. Returns the name of the folder in
    /// which what is replaced is kept, and the `report`.
    ///
    /// # Errors
    ///
    /// What was done so far stands; another attempt goes on. [`OpenError::Trimmed`], and nothing is done: what
    /// that file says, nothing else tells.
    pub fn mend(
        &self,
        storage: &dyn Storage,
        losses: &Losses,
        report: &[u8],
    ) -> Result<String, OpenError> {
        if let Some(OpenError::Trimmed { file, detail }) = &self.trim_fault {
            let (file, detail) = (file.clone(), detail.clone());
            return Err(OpenError::Trimmed { file, detail });
        }
        let folder =
            free_folder(storage).map_err(OpenError::io("listing the store's directory"))?;
        let context = format!("keeping what is damaged in {}", storage.describe(&folder));
        self.keep(storage, &folder, report).map_err(OpenError::io(context))?;
        let context = format!("writing {}", storage.describe(name::losses()));
        let written = match losses.stretches().is_empty() {
            true => remove_if_there(storage, name::losses()),
            false if self.losses.as_deref() == Some(losses) => Ok(()),
            false => losses.write(storage),
        };
        written.map_err(OpenError::io(context))?;
        self.clear_names(storage, &folder).map_err(OpenError::io("moving segments"))?;
        for target in self.targets()? {
            self.make(storage, &target).map_err(OpenError::io(format!(
                "writing {}",
                storage.describe(&name::segment(target.header.number))
            )))?;
        }
        Ok(folder)
    }

    /// Keeps a copy of every byte that is given up or replaced, and the report.
    fn keep(&self, storage: &dyn Storage, folder: &str, report: &[u8]) -> io::Result<()> {
        storage.create_folder(folder)?;
        let mut parts: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let mut add = |file: u64, from: u64, to: u64| {
            let end = parts.entry((file, from)).or_insert(to);
            *end = to.max(*end);
        };
        for damage in &self.damage {
            let Some(link) = self.links.iter().find(|link| {
                let base = link.header.base;
                (base..base + link.header.len).contains(&damage.position)
            }) else {
                continue;
            };
            let base = link.header.base;
            match damage.fault {
                Fault::Missing | Fault::Foreign | Fault::Short | Fault::Misnamed | Fault::Long => {}
                _ => add(link.file, damage.position - base, damage.resumes - base),
            }
        }
        for link in &self.links {
            let len = storage.open(&name::segment(link.file), Access::Read)?.len()?;
            // Behind its end, or too few for anything to begin there.
            add(link.file, link.there, len);
        }
        for ((file, from), to) in parts {
            let source = storage.open(&name::segment(file), Access::Read)?;
            let to = to.min(source.len()?);
            if from < to {
                let kept = format!("{folder}/{}.bytes-{from}-{to}", name::segment(file));
                copy(storage, &*source, from, to, &kept)?;
            }
        }
        if let Some(Damage { file, .. }) = self.damage.iter().find(|damage| damage.segment == 0) {
            let source = storage.open(file, Access::Read)?;
            copy(storage, &*source, 0, source.len()?, &format!("{folder}/{file}"))?;
        }
        let name = format!("{folder}/{}", name::REPORT);
        let file = storage.create(&name, report.len() as u64)?;
        write_all_at(&*file, report, 0)?;
        file.sync()?;
        storage.sync_folder(folder)?;
        storage.sync_dir()
    }

    /// Moves files out of the way that are none of the log, and gives those their names that have others'.
    /// Nothing is ever replaced: after each step every segment is there, under whatever name.
    fn clear_names(&self, storage: &dyn Storage, folder: &str) -> io::Result<()> {
        let used = |file: u64| self.links.iter().any(|link| link.file == file);
        let files = segment_numbers(storage)?;
        let is_trimmed = |file: u64| self.trimmed.contains(&file);
        for &file in files.iter().filter(|&&file| !used(file) && !is_trimmed(file)) {
            let name = name::segment(file);
            let source = storage.open(&name, Access::Read)?;
            if written_end(&*source)? == 0 {
                // A spare.
                storage.remove(&name)?;
            } else {
                storage.rename(&name, &format!("{folder}/{name}"))?;
            }
            storage.sync_folder(folder)?;
            storage.sync_dir()?;
        }
        let mut places: BTreeMap<u64, u64> =
            self.links.iter().map(|link| (link.header.number, link.file)).collect();
        let mut free = files.iter().chain(places.keys()).max().map_or(1, |last| last + 1);
        while let Some((&number, &file)) = places.iter().find(|&(number, file)| number != file) {
            // In the way is a segment that has another's name too: it gets a name that nobody has.
            if let Some((&other, _)) = places.iter().find(|&(_, other)| *other == number) {
                storage.rename(&name::segment(number), &name::segment(free))?;
                storage.sync_dir()?;
                places.insert(other, free);
                free += 1;
            }
            storage.rename(&name::segment(file), &name::segment(number))?;
            storage.sync_dir()?;
            places.insert(number, number);
        }
        Ok(())
    }

    /// Writes a segment anew that is not there, or not whole.
    fn make(&self, storage: &dyn Storage, target: &Target) -> io::Result<()> {
        let link = target.link.map(|index| &self.links[index]);
        if link.is_some_and(|link| link.whole && link.header == target.header) {
            return Ok(());
        }
        let (new_name, name) =
            (name::segment_new(target.header.number), name::segment(target.header.number));
        remove_if_there(storage, &new_name)?;
        let file = storage.create(&new_name, target.header.len)?;
        if let Some(link) = link {
            let source = storage.open(&name, Access::Read)?;
            copy_into(&*source, SEGMENT_HEADER_LEN, link.there, &*file, SEGMENT_HEADER_LEN)?;
        }
        write_all_at(&*file, &target.header.encode(), 0)?;
        file.sync()?;
        storage.rename(&new_name, &name)?;
        storage.sync_dir()
    }
}

/// What a damaged place seems to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified {
    /// Name of the stream.
    pub stream: Vec<u8>,
    /// The id that was given, if there was one.
    pub id: Option<Vec<u8>>,
    /// The listed parents; none if the event was chained.
    pub parents: Option<Vec<Vec<u8>>>,
    /// Whether it seems to be an event.
    pub is_event: bool,
}

impl Segment {
    /// The segment as it is to whoever knows `losses`.
    fn knowing(&self, losses: &Arc<Losses>) -> Arc<Segment> {
        Segment::new(self.header().clone(), Arc::clone(self.file()), Some(losses))
    }

    fn unverified(&self, position: u64) -> Option<Unverified> {
        let run = Run { bytes: self.file().bytes(), start: self.base(), salt: self.header().salt };
        let record = run.record_shape(position).ok()?;
        let id = record.given_id();
        let parents: Vec<Vec<u8>> = record.parents().map(<[u8]>::to_vec).collect();
        // The list may end early, where a length in it leads outside.
        let is_listed = parents.len() == record.parents().size_hint().1?;
        if !is_listed && !record.is_chained() {
            return None;
        }
        Some(Unverified {
            stream: record.stream().to_vec(),
            id: (!id.is_empty()).then(|| id.to_vec()),
            parents: (!record.is_chained()).then_some(parents),
            is_event: RecordLayout::is_event(record.bytes()),
        })
    }
}

/// A name for a folder that is not there.
fn free_folder(storage: &dyn Storage) -> io::Result<String> {
    let names = storage.list()?;
    let numbers = names.iter().filter_map(|name| name::quarantine_number(name));
    Ok(name::quarantine(numbers.max().map_or(1, |last| last + 1)))
}

/// Offset one past the last byte of a file that is not zero.
fn written_end(file: &dyn StorageFile) -> io::Result<u64> {
    let len = file.len()?;
    let mut piece = vec![0; COPY_LEN.min(len) as usize];
    let (mut offset, mut end) = (0, 0);
    while offset < len {
        let want = (len - offset).min(COPY_LEN) as usize;
        read_exact_at(file, &mut piece[..want], offset)?;
        let written = written_len(&piece[..want]) as u64;
        if written > 0 {
            end = offset + written;
        }
        offset += want as u64;
    }
    Ok(end)
}

fn copy(
    storage: &dyn Storage,
    source: &dyn StorageFile,
    from: u64,
    to: u64,
    name: &str,
) -> io::Result<()> {
    let file = storage.create(name, to - from)?;
    copy_into(source, from, to, &*file, 0)?;
    file.sync()
}

fn copy_into(
    source: &dyn StorageFile,
    from: u64,
    to: u64,
    target: &dyn StorageFile,
    at: u64,
) -> io::Result<()> {
    let mut piece = vec![0; COPY_LEN.min(to.saturating_sub(from)) as usize];
    let mut offset = from;
    while offset < to {
        let want = (to - offset).min(COPY_LEN) as usize;
        read_exact_at(source, &mut piece[..want], offset)?;
        write_all_at(target, &piece[..want], at + (offset - from))?;
        offset += want as u64;
    }
    Ok(())
}
