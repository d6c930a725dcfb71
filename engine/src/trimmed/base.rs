//! The base: the machine's state where the log begins, and copies of the records before it that are still looked at.
//!
//! ```text
//! lengths | checkpoint | entries, by global sequence | records, by position | tips, by stream and place | bytes
//! ```
//!
//! The *checkpoint* is one as any other, at the position where the log begins; it lists runs of its own. The *records*
//! are those of the events that are held there, whole, and of the tips of all streams, without parents and payload: that
//! is where a stream's name stands, and the ids that chained events go on from. The *entries* are those deliveries that
//! links of later ones lead to: of each stream the way back of its skip list, and its tips.

use std::io;
use std::ops::Range;

use thalweg_wal::storage::{MappedFile, Storage};
use thalweg_wal::{Record, TrimPoint, TrimWriter, Trimmed, name};

use crate::derived::checkpoint::Checkpoint;
use crate::derived::chunks::{self, ChunkReader};
use crate::derived::order_log::{Entry, Lineage, NONE};
use crate::derived::run::{DamagedRun, Extent, KnownItem, Run};
use crate::derived::runs::{self, BuildError, Fresh, Truth};
use crate::error::{LogOpenError, OpenError, ReadError};
use crate::order::keys::Keys;
use crate::order::partition::KnownAs;
use crate::order::window::Frontier;
use crate::pipeline::lookup::Fault;
use crate::sync::{Arc, Snapshot};
use crate::trimmed::facts::{FACT_LEN, FACTS, Fact};

const LENGTHS: usize = 5;
const ENTRY_LEN: usize = 32;
const RECORD_LEN: usize = 16;
const TIP_LEN: usize = 24;
/// On the offset of a record: it is a tip, and its fact stands before it.
const IS_TIP: u64 = 1;

/// What is kept of the part of the log that was trimmed, open for reading.
#[derive(Debug)]
pub(crate) struct Base {
    file: Trimmed,
    pub(crate) keys: Keys,
    /// The machine's state where the log begins; what it lists is in `runs`.
    pub(crate) checkpoint: Checkpoint,
    /// Runs of that state, oldest first.
    pub(crate) runs: Vec<Arc<Run>>,
    facts: ChunkReader,
    entries: Range<usize>,
    records: Range<usize>,
    tips: Range<usize>,
    bytes: Range<usize>,
}

/// What is wrong with it, and with which file.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// Name of the file.
    pub(crate) file: String,
    /// Offset there, where one place is concerned.
    pub(crate) offset: Option<u64>,
    pub(crate) detail: String,
}

impl Wrong {
    /// Of the file of the base itself.
    pub(crate) fn base(detail: impl Into<String>) -> Self {
        Wrong { file: name::trimmed().to_owned(), offset: None, detail: detail.into() }
    }

    fn needed(file: String) -> Self {
        Wrong { file, offset: None, detail: String::from("it is missing or damaged") }
    }

    fn damaged((file, offset): (String, u64)) -> Self {
        Wrong { file, offset: Some(offset), detail: String::from("the checksum does not match") }
    }

    /// The error of whoever cannot go on without it.
    pub(crate) fn refusal(self, storage: &dyn Storage) -> OpenError {
        let Wrong { file, offset, detail } = self;
        let detail = match offset {
            Some(offset) => format!("offset {offset}: {detail}"),
            None => detail,
        };
        LogOpenError::Trimmed { file: storage.describe(&file), detail }.into()
    }
}

impl Base {
    /// Opens what is kept in `storage`; nothing if nothing was ever trimmed. Reads the state and all records once, to
    /// verify them.
    ///
    /// # Errors
    ///
    /// It is damaged, or another store's, or cannot be read.
    pub(crate) fn open(
        storage: &dyn Storage,
        store_id: &[u8; 16],
    ) -> Result<Option<Arc<Self>>, OpenError> {
        Self::examine(storage, store_id)?.map_err(|wrong| wrong.refusal(storage))
    }

    /// As [`Base::open`], and says which file it is that is not what it should be.
    pub(crate) fn examine(
        storage: &dyn Storage,
        store_id: &[u8; 16],
    ) -> Result<Result<Option<Arc<Self>>, Wrong>, OpenError> {
        loop {
            let opened = match Trimmed::open(storage) {
                Ok(opened) => opened,
                Err(LogOpenError::Trimmed { detail, .. }) => return Ok(Err(Wrong::base(detail))),
                Err(error) => return Err(error.into()),
            };
            let Some(file) = opened else { return Ok(Ok(None)) };
            let point = file.point();
            let base = match file.verify_body() {
                Err(LogOpenError::Trimmed { detail, .. }) => Err(Wrong::base(detail)),
                Err(error) => return Err(error.into()),
                Ok(()) if file.store_id() != *store_id => {
                    Err(Wrong::base("it belongs to another store"))
                }
                Ok(()) => Self::read(file, storage, store_id)?,
            };
            // An owner that has trimmed the store meanwhile has taken away what the old file needs.
            let newest = || Trimmed::open(storage).ok().flatten().map(|newest| newest.point());
            if base.is_ok() || newest() == Some(point) {
                return Ok(base.map(|base| Some(Arc::new(base))));
            }
        }
    }

    fn read(
        file: Trimmed,
        storage: &dyn Storage,
        store_id: &[u8; 16],
    ) -> Result<Result<Self, Wrong>, OpenError> {
        let Some((checkpoint, [entries, records, tips, bytes])) = parts(file.body()) else {
            return Ok(Err(Wrong::base("what it says of itself does not fit together")));
        };
        if checkpoint.store_id != *store_id || checkpoint.ordered != file.point().position {
            return Ok(Err(Wrong::base("its state is that of another place of the log")));
        }
        let opened = |name: String, opened: io::Result<_>| match opened {
            Ok(opened) => Ok(Ok(opened)),
            Err(error) if is_missing_or_wrong(&error) => Ok(Err(Wrong::needed(name))),
            Err(source) => Err(OpenError::Io {
                context: format!("opening {}", storage.describe(&name)),
                source,
            }),
        };
        let mut runs = Vec::with_capacity(checkpoint.runs.len());
        for &number in &checkpoint.runs {
            let run = Run::open(storage, store_id, name::facts_run, number);
            match opened(name::facts_run(number), run)? {
                Ok(run) => runs.push(run),
                Err(wrong) => return Ok(Err(wrong)),
            }
        }
        let count = (checkpoint.forgotten, checkpoint.frontier.global);
        let facts = match chunks::open_to_read(FACTS, store_id, storage, count) {
            Ok(facts) => facts.reader(),
            Err((name, source)) if !is_missing_or_wrong(&source) => {
                let context = format!("opening {}", storage.describe(&name));
                return Err(OpenError::Io { context, source });
            }
            Err((name, _)) => return Ok(Err(Wrong::needed(name))),
        };
        let keys = Keys::new(store_id);
        Ok(Ok(Base { file, keys, checkpoint, runs, facts, entries, records, tips, bytes }))
    }

    /// Position at which the log begins.
    pub(crate) fn position(&self) -> u64 {
        self.checkpoint.ordered
    }

    /// The file that says so.
    pub(crate) fn file(&self) -> &Arc<MappedFile> {
        self.file.file()
    }

    /// What is kept of deliveries that are not forgotten.
    pub(crate) fn facts(&self) -> &ChunkReader {
        &self.facts
    }

    /// The first segment of the log, and what was before it.
    pub(crate) fn point(&self) -> TrimPoint {
        self.file.point()
    }

    /// How far the order was there: deliveries before this one are trimmed.
    pub(crate) fn frontier(&self) -> Frontier {
        self.checkpoint.frontier
    }

    fn row<const LEN: usize>(&self, table: &Range<usize>, index: usize) -> [u64; LEN] {
        let at = table.start + index * LEN * 8;
        let row = &self.file.body()[at..at + LEN * 8];
        std::array::from_fn(|field| u64_at(row, field * 8))
    }

    /// Index of the row with this beginning.
    fn find<const LEN: usize, const KEY: usize>(
        &self,
        table: &Range<usize>,
        key: [u64; KEY],
    ) -> Result<usize, usize> {
        let (mut low, mut high) = (0, table.len() / (LEN * 8));
        while low < high {
            let middle = low + (high - low) / 2;
            let row: [u64; LEN] = self.row(table, middle);
            match row[..KEY].cmp(&key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// The entry of a delivery that links of later ones lead to.
    pub(crate) fn entry(&self, global: u64) -> Option<Entry> {
        let index = self.find::<4, 1>(&self.entries, [global]).ok()?;
        let [_, position, local, jump] = self.row(&self.entries, index);
        // Whoever comes here goes no further back, but along the jumps.
        Some(Entry { position, local, previous: NONE, jump, lineage: Lineage::Listed })
    }

    /// The copy of a record, and the fact of a tip.
    fn kept(&self, position: u64) -> Option<(Record<'_>, Option<Fact>)> {
        let index = self.find::<2, 1>(&self.records, [position]).ok()?;
        let [_, at] = self.row(&self.records, index);
        let bytes = self.file.body()[self.bytes.clone()].get((at & !IS_TIP) as usize..)?;
        if at & IS_TIP == 0 {
            return Some((Record::detached(bytes, position)?, None));
        }
        let (fact, bytes) = bytes.split_at_checked(FACT_LEN)?;
        Some((Record::detached(bytes, position)?, Some(Fact::decode(position, fact)?)))
    }

    /// The record at a position before the log: of an event that is held where the log begins, or what is kept of a
    /// tip.
    pub(crate) fn record(&self, position: u64) -> Option<Record<'_>> {
        Some(self.kept(position)?.0)
    }

    /// The record of the event at a position before the log, if it is held where the log begins.
    pub(crate) fn held(&self, position: u64) -> Option<Record<'_>> {
        self.kept(position).filter(|(_, fact)| fact.is_none()).map(|(record, _)| record)
    }

    /// What is kept of the tip at a position before the log.
    pub(crate) fn fact_at(&self, position: u64) -> Option<Fact> {
        self.kept(position)?.1
    }

    /// What is kept of a delivery, or of a tip that is forgotten otherwise.
    pub(crate) fn fact_of(&self, global: u64) -> Option<Fact> {
        if global < self.checkpoint.forgotten {
            return self.fact_at(self.entry(global)?.position);
        }
        self.fact(global)
    }

    /// What is kept of a delivery that is not forgotten.
    pub(crate) fn fact(&self, global: u64) -> Option<Fact> {
        Fact::decode(global, self.facts.item(global)?)
    }

    /// The delivery of the event `id` of `stream`, if it was before the log.
    pub(crate) fn global_of(&self, stream: &[u8], id: &[u8]) -> Result<Option<u64>, DamagedRun> {
        let key = self.keys.event(self.keys.stream(stream), id);
        // An id that was forgotten can have come again.
        let mut newest = None;
        let look = |_: &Run, item: KnownItem| {
            let KnownAs::Delivered(global) = KnownAs::decode(item.value) else { return None };
            match self.fact_of(global) {
                Some(fact) if fact.is_event(self.keys, stream, id) => {
                    newest = newest.max(Some(global));
                    None
                }
                None if global >= self.checkpoint.forgotten => {
                    let (file, offset) = chunks::place(FACTS, global);
                    Some(DamagedRun { file, offset })
                }
                Some(_) | None => None,
            }
        };
        match runs::find(&self.runs, self.position(), key, look)? {
            Some(damaged) => Err(damaged),
            None => Ok(newest),
        }
    }

    /// What is kept of the tip at this place of a stream.
    pub(crate) fn tip(&self, stream: &[u8], local: u64) -> Option<Record<'_>> {
        let key = self.keys.stream(stream);
        let mut index = match self.find::<3, 2>(&self.tips, [key, local]) {
            Ok(index) | Err(index) => index,
        };
        // Streams can share a key.
        while index > 0 && self.row::<3>(&self.tips, index - 1)[..2] == [key, local] {
            index -= 1;
        }
        (index..self.tips.len() / TIP_LEN)
            .map(|index| self.row::<3>(&self.tips, index))
            .take_while(|row| row[..2] == [key, local])
            .filter_map(|[.., position]| self.record(position))
            .find(|record| record.stream() == stream)
    }

    /// Number of the records that are kept: of held events and of tips.
    pub(crate) fn record_count(&self) -> u64 {
        (self.records.len() / RECORD_LEN) as u64
    }

    /// All held events' records, in the order of the log.
    pub(crate) fn all_held(&self) -> impl Iterator<Item = Record<'_>> {
        let positions = (0..self.records.len() / RECORD_LEN)
            .map(|index| self.row::<2>(&self.records, index))
            .filter(|[_, at]| at & IS_TIP == 0);
        positions.filter_map(|[position, _]| self.record(position))
    }

    /// All tips: their records, and their places in their streams.
    pub(crate) fn all_tips(&self) -> impl Iterator<Item = (Record<'_>, u64)> {
        let rows = (0..self.tips.len() / TIP_LEN).map(|index| self.row::<3>(&self.tips, index));
        rows.filter_map(|[_, local, position]| Some((self.record(position)?, local)))
    }

    /// Global sequences of the tips that are forgotten otherwise.
    pub(crate) fn forgotten_tips(&self) -> impl Iterator<Item = u64> {
        let entries =
            (0..self.entries.len() / ENTRY_LEN).map(|index| self.row::<4>(&self.entries, index));
        entries
            .take_while(|[global, ..]| *global < self.checkpoint.forgotten)
            .filter(|&[_, position, ..]| self.fact_at(position).is_some())
            .map(|[global, ..]| global)
    }

    /// The runs of the state, copied for the machine to go on with: as one.
    pub(crate) fn copy_runs(
        self: &Arc<Self>,
        target: &dyn Storage,
        store_id: [u8; 16],
    ) -> io::Result<Vec<Arc<Run>>> {
        if self.runs.is_empty() {
            return Ok(Vec::new());
        }
        let extent = Extent { number: 1, from: 0, to: self.position() };
        let never = |_: &_| false;
        // Their ids are found where they are.
        let is_left_out = |global| global < self.frontier().global;
        let is_delivery = |_, _| false;
        let truth = Truth { is_over: &never, is_delivery: &is_delivery, is_left_out: &is_left_out };
        let run = runs::build(
            target,
            store_id,
            name::run,
            extent,
            &Fresh::default(),
            &self.runs,
            &truth,
            &|| false,
        );
        run.map(|run| vec![run]).map_err(|error| match error {
            BuildError::Io(error) => error,
            BuildError::Damaged(DamagedRun { file, offset }) => {
                let detail = format!("{file} is damaged at offset {offset}");
                io::Error::new(io::ErrorKind::InvalidData, detail)
            }
        })
    }

    /// Verifies every checksum of the facts and of the runs that is looked at only when it is needed; the rest was
    /// verified by the opening.
    pub(crate) fn verify(&self, wrong: &mut dyn FnMut(Wrong)) {
        for global in self.checkpoint.forgotten..self.frontier().global {
            if self.fact(global).is_none() {
                wrong(Wrong::damaged(chunks::place(FACTS, global)));
            }
        }
        for run in &self.runs {
            if let Err(damaged) = run.verify() {
                wrong(damaged.into());
            }
        }
    }
}

impl From<DamagedRun> for Wrong {
    fn from(DamagedRun { file, offset }: DamagedRun) -> Self {
        Wrong::damaged((file, offset))
    }
}

impl From<Fault> for Wrong {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Run(damaged) => damaged.into(),
            Fault::Trimmed(_) => Wrong::base("its state leads to what it does not have"),
            other => Wrong::base(ReadError::from(other).to_string()),
        }
    }
}

/// What is wrong, if nothing says where the log begins and it does not begin with segment 1, while there are facts:
/// then something was trimmed. Without this the trimmed segments would pass for lost ones.
pub(crate) fn missing(storage: &dyn Storage) -> Option<Wrong> {
    let kinds: Vec<name::Kind> =
        storage.list().ok()?.iter().map(|other| name::kind(other)).collect();
    let is_there = |is_it: fn(&name::Kind) -> bool| kinds.iter().any(is_it);
    let is_missing = is_there(|kind| matches!(kind, name::Kind::Facts(_)))
        && !is_there(|kind| matches!(kind, name::Kind::Trimmed | name::Kind::Segment(1)));
    is_missing.then(|| Wrong::base("it is missing, and there are facts of what was trimmed"))
}

/// Whether the file is not what it should be; any other error says nothing about it.
fn is_missing_or_wrong(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | NotFound | UnexpectedEof)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The parts of a body, if they are there and fill it.
fn parts(body: &[u8]) -> Option<(Checkpoint, [Range<usize>; 4])> {
    let lengths = body.get(..LENGTHS * 8)?;
    let lengths: [usize; LENGTHS] = std::array::from_fn(|index| {
        usize::try_from(u64_at(lengths, index * 8)).unwrap_or(usize::MAX)
    });
    let [checkpoint_len, entries, records, tips, bytes] = lengths;
    let mut at = LENGTHS * 8;
    let mut next = |count: usize, len: usize| {
        let start = at;
        at = start.checked_add(count.checked_mul(len)?)?.checked_next_multiple_of(8)?;
        (at <= body.len()).then_some(start..start + count * len)
    };
    let checkpoint = next(checkpoint_len, 1)?;
    let rest = [
        next(entries, ENTRY_LEN)?,
        next(records, RECORD_LEN)?,
        next(tips, TIP_LEN)?,
        next(bytes, 1)?,
    ];
    let checkpoint = Checkpoint::decode(&body[checkpoint])?;
    (at == body.len()).then_some((checkpoint, rest))
}

/// A base in the making.
#[derive(Debug, Default)]
pub(crate) struct BaseBuilder {
    entries: Vec<[u64; 4]>,
    records: Vec<[u64; 2]>,
    tips: Vec<[u64; 3]>,
    bytes: Vec<u8>,
}

impl BaseBuilder {
    /// Keeps the entry of a delivery that links lead to. The same one can come twice.
    pub(crate) fn entry(&mut self, global: u64, entry: &Entry) {
        self.entries.push([global, entry.position, entry.local, entry.jump]);
    }

    /// Keeps the record of a held event.
    pub(crate) fn held(&mut self, record: &Record<'_>) {
        self.records.push([record.position(), self.bytes.len() as u64]);
        self.bytes.extend_from_slice(record.bytes());
    }

    /// Keeps what is needed of a tip, the event at this place of its stream.
    pub(crate) fn tip(&mut self, record: &Record<'_>, stream_key: u64, local: u64, fact: &Fact) {
        let position = record.position();
        self.records.push([position, self.bytes.len() as u64 | IS_TIP]);
        self.tips.push([stream_key, local, position]);
        fact.encode(position, &mut self.bytes);
        self.bytes.extend_from_slice(&record.stub());
    }

    /// Writes it, durably. To finish what this returns makes it the base of the store: the trim itself. What
    /// `checkpoint` lists, and all facts, are durable by then.
    pub(crate) fn write<'a>(
        mut self,
        storage: &'a dyn Storage,
        point: TrimPoint,
        checkpoint: &Checkpoint,
    ) -> io::Result<TrimWriter<'a>> {
        self.entries.sort_unstable();
        self.entries.dedup();
        self.records.sort_unstable();
        self.tips.sort_unstable();
        let checkpoint_bytes = checkpoint.encode();
        let lengths = [
            checkpoint_bytes.len(),
            self.entries.len(),
            self.records.len(),
            self.tips.len(),
            self.bytes.len(),
        ];
        let padding = checkpoint_bytes.len().next_multiple_of(8) - checkpoint_bytes.len();
        let rows = self.entries.len() * ENTRY_LEN
            + self.records.len() * RECORD_LEN
            + self.tips.len() * TIP_LEN;
        let len = LENGTHS * 8 + checkpoint_bytes.len() + padding + rows + self.bytes.len();
        let mut writer = TrimWriter::create(storage, checkpoint.store_id, point, len as u64)?;
        for len in lengths {
            writer.write(&(len as u64).to_le_bytes())?;
        }
        writer.write(&checkpoint_bytes)?;
        writer.write(&[0; 8][..padding])?;
        let entries = self.entries.iter().flatten();
        let rows = entries.chain(self.records.iter().flatten()).chain(self.tips.iter().flatten());
        for number in rows {
            writer.write(&number.to_le_bytes())?;
        }
        writer.write(&self.bytes)?;
        writer.sync()?;
        Ok(writer)
    }
}

/// Where the log begins, for whoever looks something up; nothing is before it if nothing was ever trimmed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Horizon {
    /// Deliveries before this one are trimmed.
    pub(crate) first: u64,
    /// Positions before this one are.
    pub(crate) position: u64,
    bases: Option<Snapshot<Arc<Base>>>,
}

impl Horizon {
    /// Where the log begins by the newest of these bases.
    pub(crate) fn new(bases: Snapshot<Arc<Base>>) -> Self {
        match bases.last() {
            Some(base) => {
                let (first, position) = (base.frontier().global, base.position());
                Horizon { first, position, bases: Some(bases) }
            }
            None => Horizon::default(),
        }
    }

    /// What is kept of what is before.
    #[inline]
    pub(crate) fn base(&self) -> Option<&Arc<Base>> {
        self.bases.as_ref()?.last()
    }
}
