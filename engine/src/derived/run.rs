//! A run: what the machine learned over a part of the log, sorted, in one immutable file.
//!
//! A run has three tables of items of fixed length, sorted by a 64-bit key:
//!
//! * *known*: what became of an id ([`KnownItem`]);
//! * *streams*: the state of a stream ([`StreamItem`]), with what does not fit in among the *blobs*;
//! * *watches*: which held event waits for which parent ([`WatchItem`]).
//!
//! Keys are hashes, so where a key stands can be computed: the upper bits choose a *bucket*, some
//! dozens of items side by side, and a line of the table's [filter](super::filter). A look-up costs
//! one cache line if the key is not there, and a header and a bucket if it is. Buckets, lines and blobs
//! have checksums that every look-up verifies, so a run is opened without reading it.
//!
//! ```text
//! header page | known: items, buckets, filter | streams: the same | watches: the same | blobs
//! ```
//!
//! A run is written from front to back, whatever its size, in a few fixed buffers: sorted keys fill
//! items, buckets and lines in order.

use std::io;
use std::marker::PhantomData;

use thalweg_wal::storage::{MappedFile, Storage, StorageFile, remove_if_there, write_all_at};

use crate::derived::filter::{self, LINE_LEN, Line};
use crate::derived::item_crc;
use crate::sync::Arc;

const MAGIC: [u8; 8] = *b"THALWEGR";
const VERSION: u32 = 1;
/// Bytes of the file that belong to its header.
const HEADER_LEN: u64 = 4096;
const HEADER_USED: usize = 72 + TABLE_COUNT * TABLE_LEN + 4;
const TABLE_COUNT: usize = 3;
/// Bytes that describe a table in the header.
const TABLE_LEN: usize = 48;
/// Bytes before the items of a bucket, in a place of their own.
const BUCKET_LEN: u64 = 16;
/// Bytes of items in a bucket, on average.
const BUCKET_ITEMS_LEN: u64 = 256;
/// Bytes before a blob.
const BLOB_HEADER_LEN: u64 = 8;
/// Bytes that are written at once.
const WRITE_LEN: usize = 256 << 10;

/// An item of a table.
pub(crate) trait Item: Copy + std::fmt::Debug {
    /// Bytes of an item.
    const LEN: usize;
    /// Which of the tables of a run it is in.
    const TABLE: usize;
    fn key(&self) -> u64;
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads an item from [`Item::LEN`] bytes.
    fn decode(bytes: &[u8]) -> Self;
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// What became of the events with an id of this key: see `order::partition::KnownAs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KnownItem {
    pub(crate) key: u64,
    pub(crate) value: u64,
}

impl Item for KnownItem {
    const LEN: usize = 16;
    const TABLE: usize = 0;

    #[inline]
    fn key(&self) -> u64 {
        self.key
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key.to_le_bytes());
        out.extend_from_slice(&self.value.to_le_bytes());
    }

    #[inline]
    fn decode(bytes: &[u8]) -> Self {
        KnownItem { key: u64_at(bytes, 0), value: u64_at(bytes, 8) }
    }
}

/// The state of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamItem {
    pub(crate) key: u64,
    /// Global sequence of its newest delivery, if that is its only tip and there is nothing else to
    /// say; otherwise [`StreamItem::BLOB`] and the offset of a blob.
    pub(crate) value: u64,
    /// Key of the tip's id; zero with a blob.
    pub(crate) tip_key: u64,
}

impl StreamItem {
    pub(crate) const BLOB: u64 = 1 << 63;

    /// Offset of the blob, if there is one.
    pub(crate) fn blob(&self) -> Option<u64> {
        (self.value & Self::BLOB != 0).then_some(self.value & !Self::BLOB)
    }
}

impl Item for StreamItem {
    const LEN: usize = 24;
    const TABLE: usize = 1;

    #[inline]
    fn key(&self) -> u64 {
        self.key
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.key, self.value, self.tip_key] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    #[inline]
    fn decode(bytes: &[u8]) -> Self {
        StreamItem { key: u64_at(bytes, 0), value: u64_at(bytes, 8), tip_key: u64_at(bytes, 16) }
    }
}

/// That a held event waits for a parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatchItem {
    pub(crate) parent_key: u64,
    /// Position of the event in the log.
    pub(crate) position: u64,
    /// Key of its id.
    pub(crate) id_key: u64,
    /// Where the parent stands in the event's list, in bytes.
    pub(crate) parent_at: u32,
}

impl Item for WatchItem {
    const LEN: usize = 28;
    const TABLE: usize = 2;

    #[inline]
    fn key(&self) -> u64 {
        self.parent_key
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.parent_key, self.position, self.id_key] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.parent_at.to_le_bytes());
    }

    #[inline]
    fn decode(bytes: &[u8]) -> Self {
        WatchItem {
            parent_key: u64_at(bytes, 0),
            position: u64_at(bytes, 8),
            id_key: u64_at(bytes, 16),
            parent_at: u32_at(bytes, 24),
        }
    }
}

/// A run does not hold what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DamagedRun {
    /// Name of the file.
    pub(crate) file: String,
    /// Offset in the file, in bytes.
    pub(crate) offset: u64,
}

/// Which part of the log a run is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Ordinal of the run in its store.
    pub(crate) number: u64,
    /// It has what happened from this position on ...
    pub(crate) from: u64,
    /// ... and before this one.
    pub(crate) to: u64,
}

/// Name of the file of run `n`: the runs of the order's state have other names than those that are kept of
/// what was trimmed.
pub(crate) type Naming = fn(u64) -> String;

/// Where a table lies in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct TableAt {
    items_at: u64,
    item_count: u64,
    buckets_at: u64,
    bucket_count: u64,
    filter_at: u64,
    line_count: u64,
}

impl TableAt {
    /// The place of a table for up to `capacity` items, from `start` on.
    fn plan<I: Item>(start: u64, capacity: u64) -> Self {
        let items_per_bucket = BUCKET_ITEMS_LEN / I::LEN as u64;
        let bucket_count = capacity.div_ceil(items_per_bucket).max(1);
        let items_at = start;
        let buckets_at = (items_at + capacity * I::LEN as u64).next_multiple_of(LINE_LEN as u64);
        let filter_at = (buckets_at + bucket_count * BUCKET_LEN).next_multiple_of(LINE_LEN as u64);
        let line_count = filter::line_count(capacity);
        TableAt { items_at, item_count: 0, buckets_at, bucket_count, filter_at, line_count }
    }

    fn end(&self) -> u64 {
        self.filter_at + self.line_count * LINE_LEN as u64
    }

    fn fields(&self) -> [u64; TABLE_LEN / 8] {
        let TableAt { items_at, item_count, buckets_at, bucket_count, filter_at, line_count } =
            *self;
        [items_at, item_count, buckets_at, bucket_count, filter_at, line_count]
    }

    fn read(bytes: &[u8]) -> Self {
        TableAt {
            items_at: u64_at(bytes, 0),
            item_count: u64_at(bytes, 8),
            buckets_at: u64_at(bytes, 16),
            bucket_count: u64_at(bytes, 24),
            filter_at: u64_at(bytes, 32),
            line_count: u64_at(bytes, 40),
        }
    }

    /// Whether the table lies within the file, whatever its numbers say.
    fn fits<I: Item>(&self, file_len: u64) -> bool {
        let fits = |at: u64, count: u64, len: u64| {
            let end = count.checked_mul(len).and_then(|len| at.checked_add(len));
            end.is_some_and(|end| end <= file_len)
        };
        self.bucket_count > 0
            && self.line_count > 0
            && fits(self.items_at, self.item_count, I::LEN as u64)
            && fits(self.buckets_at, self.bucket_count, BUCKET_LEN)
            && fits(self.filter_at, self.line_count, LINE_LEN as u64)
    }
}

/// The bucket of a key.
#[inline]
fn bucket_of(key: u64, bucket_count: u64) -> u64 {
    ((u128::from(key) * u128::from(bucket_count)) >> 64) as u64
}

/// A checksum over the items of a bucket, and over where they are.
fn bucket_crc(items_crc: u32, index: u64, start: u64, count: u32) -> u32 {
    let mut place = [0; 20];
    place[..8].copy_from_slice(&index.to_le_bytes());
    place[8..16].copy_from_slice(&start.to_le_bytes());
    place[16..].copy_from_slice(&count.to_le_bytes());
    crc32c::crc32c_append(items_crc, &place)
}

/// A run, open for reading.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) extent: Extent,
    name: String,
    file: Arc<MappedFile>,
    tables: [TableAt; TABLE_COUNT],
    blobs_at: u64,
    blobs_len: u64,
}

impl Run {
    /// Opens a run of the store. An error of the kinds not found, end of file and invalid data means
    /// that the run is not what it should be.
    pub(crate) fn open(
        storage: &dyn Storage,
        store_id: &[u8; 16],
        named: Naming,
        number: u64,
    ) -> io::Result<Arc<Self>> {
        let name = named(number);
        let file = MappedFile::open(storage, &name, HEADER_LEN)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("{name} is wrong"));
        let header: &[u8; HEADER_USED] =
            file.bytes().first_chunk().expect("the header is published");
        let (body, crc) = header.split_last_chunk::<4>().expect("longer than a checksum");
        let ours = u32::from_le_bytes(*crc) == crc32c::crc32c(body)
            && body[..8] == MAGIC
            && u32_at(body, 8) == VERSION
            && body[16..32] == store_id[..]
            && u64_at(body, 32) == number;
        if !ours {
            return Err(wrong());
        }
        let extent = Extent { number, from: u64_at(body, 40), to: u64_at(body, 48) };
        let (blobs_at, blobs_len) = (u64_at(body, 56), u64_at(body, 64));
        let table = |index: usize| TableAt::read(&body[72 + index * TABLE_LEN..]);
        let tables: [TableAt; TABLE_COUNT] = std::array::from_fn(table);
        let fits = tables[0].fits::<KnownItem>(file.len())
            && tables[1].fits::<StreamItem>(file.len())
            && tables[2].fits::<WatchItem>(file.len())
            && blobs_at.checked_add(blobs_len).is_some_and(|end| end <= file.len());
        if !fits {
            return Err(wrong());
        }
        // All of it was written before the header was.
        let file = MappedFile::open(storage, &name, file.len())?;
        Ok(Arc::new(Run { extent, name, file, tables, blobs_at, blobs_len }))
    }

    /// The file, which stays as it is when its name goes.
    pub(crate) fn file(&self) -> &Arc<MappedFile> {
        &self.file
    }

    fn damaged(&self, offset: u64) -> DamagedRun {
        DamagedRun { file: self.name.clone(), offset }
    }

    /// Verifies every checksum of the run, but those of blobs.
    pub(crate) fn verify(self: &Arc<Self>) -> Result<(), DamagedRun> {
        fn table<I: Item>(run: &Arc<Run>) -> Result<(), DamagedRun> {
            run.verify_filter::<I>()?;
            run.items::<I>(0).try_for_each(|item| item.map(drop))
        }
        table::<KnownItem>(self)?;
        table::<StreamItem>(self)?;
        table::<WatchItem>(self)
    }

    /// Items of a table.
    pub(crate) fn count<I: Item>(&self) -> u64 {
        self.tables[I::TABLE].item_count
    }

    /// Items of all tables.
    pub(crate) fn item_count(&self) -> u64 {
        self.tables.iter().map(|table| table.item_count).sum()
    }

    /// Bytes of all blobs.
    pub(crate) fn blobs_len(&self) -> u64 {
        self.blobs_len
    }

    #[inline]
    fn bytes(&self, at: u64, len: u64) -> Result<&[u8], DamagedRun> {
        let bytes = self.file.bytes().get(at as usize..(at + len) as usize);
        bytes.ok_or_else(|| self.damaged(at))
    }

    /// Has the processor fetch what says whether `key` is in a table.
    #[inline]
    pub(crate) fn touch<I: Item>(&self, key: u64) {
        let table = &self.tables[I::TABLE];
        let at = table.filter_at + filter::line_of(key, table.line_count) * LINE_LEN as u64;
        // A load that nobody needs: it has to happen, and nothing waits for it.
        std::hint::black_box(self.file.bytes()[at as usize]);
    }

    /// The items of a table with this key.
    #[inline]
    pub(crate) fn find<I: Item>(
        &self,
        key: u64,
    ) -> Result<impl Iterator<Item = I> + use<'_, I>, DamagedRun> {
        let table = &self.tables[I::TABLE];
        let items = match table.item_count > 0 && self.may_contain(table, key)? {
            true => self.bucket::<I>(bucket_of(key, table.bucket_count))?,
            false => &[],
        };
        let first = partition_point::<I>(items, key);
        let items = items[first * I::LEN..].chunks_exact(I::LEN).map(I::decode);
        Ok(items.take_while(move |item| item.key() == key))
    }

    #[inline]
    fn may_contain(&self, table: &TableAt, key: u64) -> Result<bool, DamagedRun> {
        let index = filter::line_of(key, table.line_count);
        let at = table.filter_at + index * LINE_LEN as u64;
        let line = self.bytes(at, LINE_LEN as u64)?.first_chunk().expect("a line");
        filter::may_contain(line, index, key).ok_or_else(|| self.damaged(at))
    }

    /// The items of a bucket, verified, and each where its key puts it: who walks a table relies on its
    /// being sorted, and on meeting no item twice.
    fn bucket_in_order<I: Item>(&self, index: u64) -> Result<&[u8], DamagedRun> {
        let items = self.bucket::<I>(index)?;
        let table = &self.tables[I::TABLE];
        let mut keys = items.chunks_exact(I::LEN).map(|item| I::decode(item).key());
        match keys.clone().is_sorted()
            && keys.all(|key| bucket_of(key, table.bucket_count) == index)
        {
            true => Ok(items),
            false => Err(self.damaged(table.buckets_at + index * BUCKET_LEN)),
        }
    }

    /// The items of a bucket, verified.
    fn bucket<I: Item>(&self, index: u64) -> Result<&[u8], DamagedRun> {
        let table = &self.tables[I::TABLE];
        let at = table.buckets_at + index * BUCKET_LEN;
        let header = self.bytes(at, BUCKET_LEN)?;
        let (start, count, crc) = (u64_at(header, 0), u32_at(header, 8), u32_at(header, 12));
        if start.checked_add(u64::from(count)).is_none_or(|end| end > table.item_count) {
            return Err(self.damaged(at));
        }
        let items_at = table.items_at + start * I::LEN as u64;
        let items = self.bytes(items_at, u64::from(count) * I::LEN as u64)?;
        if crc != bucket_crc(crc32c::crc32c(items), index, start, count) {
            return Err(self.damaged(items_at));
        }
        Ok(items)
    }

    /// All items of a table whose keys are not below `from`, sorted by key.
    pub(crate) fn items<I: Item>(self: &Arc<Self>, from: u64) -> Items<I> {
        let bucket = bucket_of(from, self.tables[I::TABLE].bucket_count);
        Items {
            run: Arc::clone(self),
            from,
            next_bucket: bucket,
            bucket,
            next: 0,
            _item: PhantomData,
        }
    }

    /// Verifies every line of a table's filter; the items are verified as they are read.
    pub(crate) fn verify_filter<I: Item>(&self) -> Result<(), DamagedRun> {
        let table = &self.tables[I::TABLE];
        (0..table.line_count).try_for_each(|index| {
            let at = table.filter_at + index * LINE_LEN as u64;
            let line = self.bytes(at, LINE_LEN as u64)?.first_chunk().expect("a line");
            filter::may_contain(line, index, 1).map(drop).ok_or_else(|| self.damaged(at))
        })
    }

    /// An item says what no item can.
    pub(crate) fn damaged_item(&self) -> DamagedRun {
        self.damaged(0)
    }

    /// What is said at this blob does not add up.
    pub(crate) fn damaged_blob(&self, offset: u64) -> DamagedRun {
        self.damaged(self.blobs_at.saturating_add(offset))
    }

    /// The blob at this offset.
    pub(crate) fn blob(&self, offset: u64) -> Result<&[u8], DamagedRun> {
        let at = self.blobs_at.saturating_add(offset);
        let within = |end: Option<u64>| end.is_some_and(|end| end <= self.blobs_len);
        if !within(offset.checked_add(BLOB_HEADER_LEN)) {
            return Err(self.damaged(at));
        }
        let header = self.bytes(at, BLOB_HEADER_LEN)?;
        let (len, crc) = (u64::from(u32_at(header, 0)), u32_at(header, 4));
        if !within(offset.checked_add(BLOB_HEADER_LEN + len)) {
            return Err(self.damaged(at));
        }
        let bytes = self.bytes(at + BLOB_HEADER_LEN, len)?;
        if crc != item_crc(offset, bytes) {
            return Err(self.damaged(at));
        }
        Ok(bytes)
    }
}

/// Index of the first of these items whose key is not below `key`.
#[inline]
fn partition_point<I: Item>(items: &[u8], key: u64) -> usize {
    let (mut low, mut high) = (0, items.len() / I::LEN);
    while low < high {
        let middle = low.midpoint(high);
        if I::decode(&items[middle * I::LEN..]).key() < key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// The items of a table, in order. After damage there are no more.
#[derive(Debug)]
pub(crate) struct Items<I> {
    run: Arc<Run>,
    from: u64,
    next_bucket: u64,
    /// The bucket in hand, if `next_bucket` is behind it.
    bucket: u64,
    next: usize,
    _item: PhantomData<I>,
}

impl<I: Item> Iterator for Items<I> {
    type Item = Result<I, DamagedRun>;

    fn next(&mut self) -> Option<Self::Item> {
        let bucket_count = self.run.tables[I::TABLE].bucket_count;
        loop {
            if self.next_bucket > self.bucket {
                let table = &self.run.tables[I::TABLE];
                let header =
                    self.run.bytes(table.buckets_at + self.bucket * BUCKET_LEN, BUCKET_LEN);
                let header = header.expect("verified when the bucket was entered");
                let (start, count) = (u64_at(header, 0), u32_at(header, 8) as usize);
                if self.next < count {
                    let at = table.items_at + (start + self.next as u64) * I::LEN as u64;
                    self.next += 1;
                    let bytes = self.run.bytes(at, I::LEN as u64).expect("in a verified bucket");
                    return Some(Ok(I::decode(bytes)));
                }
            }
            if self.next_bucket == bucket_count {
                return None;
            }
            self.bucket = self.next_bucket;
            self.next_bucket += 1;
            match self.run.bucket_in_order::<I>(self.bucket) {
                Ok(items) => self.next = partition_point::<I>(items, self.from),
                Err(damaged) => {
                    (self.bucket, self.next_bucket) = (bucket_count, bucket_count);
                    return Some(Err(damaged));
                }
            }
        }
    }
}

/// How many items a run may come to have.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Capacity {
    pub(crate) known: u64,
    pub(crate) streams: u64,
    pub(crate) watches: u64,
    /// Bytes of blobs, and how many there are.
    pub(crate) blobs: (u64, u64),
}

/// A run in the making: the tables one after the other, each by [`RunWriter::table`].
pub(crate) struct RunWriter<'a> {
    storage: &'a dyn Storage,
    store_id: [u8; 16],
    named: Naming,
    extent: Extent,
    file: Arc<dyn StorageFile>,
    tables: [TableAt; TABLE_COUNT],
    blobs_at: u64,
    blobs_end: u64,
    blobs: Region,
    /// Whether to give up.
    is_stopping: &'a dyn Fn() -> bool,
}

impl<'a> RunWriter<'a> {
    /// Creates the file. Writing ends with an error of the kind interrupted when `is_stopping`.
    pub(crate) fn create(
        storage: &'a dyn Storage,
        store_id: [u8; 16],
        named: Naming,
        extent: Extent,
        capacity: Capacity,
        is_stopping: &'a dyn Fn() -> bool,
    ) -> io::Result<Self> {
        let known = TableAt::plan::<KnownItem>(HEADER_LEN, capacity.known);
        let streams = TableAt::plan::<StreamItem>(known.end(), capacity.streams);
        let watches = TableAt::plan::<WatchItem>(streams.end(), capacity.watches);
        let (blob_bytes, blob_count) = capacity.blobs;
        let blobs_at = watches.end();
        let blobs_end = blobs_at + blob_bytes + blob_count * BLOB_HEADER_LEN;
        let name = named(extent.number);
        remove_if_there(storage, &name)?;
        let file = storage.create(&name, blobs_end)?;
        let tables = [known, streams, watches];
        let blobs = Region::new(blobs_at);
        Ok(RunWriter {
            storage,
            store_id,
            named,
            extent,
            file,
            tables,
            blobs_at,
            blobs_end,
            blobs,
            is_stopping,
        })
    }

    /// Begins the table of these items. Blobs that its items name are put by [`TableWriter::blob`].
    pub(crate) fn table<I: Item>(&mut self) -> TableWriter<'_, 'a, I> {
        let table = self.tables[I::TABLE];
        TableWriter {
            items: Region::new(table.items_at),
            buckets: Region::new(table.buckets_at),
            lines: Region::new(table.filter_at),
            bucket: OpenBucket::default(),
            line: (0, Line::new()),
            run: self,
            table,
            _item: PhantomData,
        }
    }

    /// Makes the file durable, and opens it. Its name is durable after [`Storage::sync_dir`].
    pub(crate) fn finish(mut self) -> io::Result<Arc<Run>> {
        self.blobs.flush(&*self.file)?;
        let mut header = Vec::with_capacity(HEADER_USED);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&self.store_id);
        let blobs_len = self.blobs.end() - self.blobs_at;
        let Extent { number, from, to } = self.extent;
        let numbers = [number, from, to, self.blobs_at, blobs_len].into_iter();
        for field in numbers.chain(self.tables.iter().flat_map(TableAt::fields)) {
            header.extend_from_slice(&field.to_le_bytes());
        }
        let crc = crc32c::crc32c(&header);
        header.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(header.len(), HEADER_USED);
        write_all_at(&*self.file, &header, 0)?;
        self.file.sync()?;
        Run::open(self.storage, &self.store_id, self.named, number)
    }

    /// Takes a file away that will not be finished.
    pub(crate) fn abandon(storage: &dyn Storage, named: Naming, number: u64) {
        // What is left is removed by the next opening.
        let _ = remove_if_there(storage, &named(number));
    }
}

/// The bucket that is being filled.
#[derive(Debug, Default)]
struct OpenBucket {
    index: u64,
    start: u64,
    count: u32,
    crc: u32,
}

/// A table in the making. Items come sorted by key.
pub(crate) struct TableWriter<'r, 'a, I> {
    run: &'r mut RunWriter<'a>,
    table: TableAt,
    items: Region,
    buckets: Region,
    lines: Region,
    bucket: OpenBucket,
    line: (u64, Line),
    _item: PhantomData<I>,
}

impl<I: Item> TableWriter<'_, '_, I> {
    /// Appends an item.
    pub(crate) fn push(&mut self, item: I) -> io::Result<()> {
        let bucket = bucket_of(item.key(), self.table.bucket_count);
        debug_assert!(bucket >= self.bucket.index, "keys do not come sorted");
        self.close_buckets(bucket)?;
        let line = filter::line_of(item.key(), self.table.line_count);
        self.close_lines(line)?;
        self.line.1.insert(item.key());
        let encoded =
            self.items.put(&*self.run.file, self.run.is_stopping, |out| item.encode(out))?;
        self.bucket.crc = crc32c::crc32c_append(self.bucket.crc, encoded);
        self.bucket.count += 1;
        self.table.item_count += 1;
        Ok(())
    }

    /// Puts a blob, and returns its offset.
    pub(crate) fn blob(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let run = &mut *self.run;
        let offset = run.blobs.end() - run.blobs_at;
        // Streams of a damaged run can share a blob, and every one of them would have it copied.
        if run.blobs.end() + BLOB_HEADER_LEN + bytes.len() as u64 > run.blobs_end {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let crc = item_crc(offset, bytes);
        run.blobs.put(&*run.file, run.is_stopping, |out| {
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(&crc.to_le_bytes());
            out.extend_from_slice(bytes);
        })?;
        Ok(offset)
    }

    /// Ends the table.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.close_buckets(self.table.bucket_count)?;
        self.close_lines(self.table.line_count)?;
        debug_assert!(self.items.end() <= self.table.buckets_at, "more items than room");
        for region in [&mut self.items, &mut self.buckets, &mut self.lines] {
            region.flush(&*self.run.file)?;
        }
        self.run.tables[I::TABLE] = self.table;
        Ok(())
    }

    /// Writes the headers of the buckets before this one.
    fn close_buckets(&mut self, next: u64) -> io::Result<()> {
        while self.bucket.index < next {
            let OpenBucket { index, start, count, crc } = self.bucket;
            let crc = bucket_crc(crc, index, start, count);
            self.buckets.put(&*self.run.file, self.run.is_stopping, |out| {
                out.extend_from_slice(&start.to_le_bytes());
                out.extend_from_slice(&count.to_le_bytes());
                out.extend_from_slice(&crc.to_le_bytes());
            })?;
            let start = start + u64::from(count);
            self.bucket = OpenBucket { index: index + 1, start, count: 0, crc: 0 };
        }
        Ok(())
    }

    /// Writes the lines of the filter before this one.
    fn close_lines(&mut self, next: u64) -> io::Result<()> {
        while self.line.0 < next {
            let index = self.line.0;
            let (_, line) = std::mem::replace(&mut self.line, (index + 1, Line::new()));
            let line = line.finish(index);
            self.lines.put(&*self.run.file, self.run.is_stopping, |out| out.extend(line))?;
        }
        Ok(())
    }
}

/// A part of a file that is written from front to back, a good piece at a time.
#[derive(Debug)]
struct Region {
    /// Where the buffer goes in the file.
    at: u64,
    buffer: Vec<u8>,
}

impl Region {
    fn new(at: u64) -> Self {
        Region { at, buffer: Vec::new() }
    }

    /// Where the next byte goes.
    fn end(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    /// Appends what `encode` appends, and returns it.
    fn put(
        &mut self,
        file: &dyn StorageFile,
        is_stopping: &dyn Fn() -> bool,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<&[u8]> {
        if self.buffer.len() >= WRITE_LEN {
            if is_stopping() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.flush(file)?;
        }
        let start = self.buffer.len();
        encode(&mut self.buffer);
        Ok(&self.buffer[start..])
    }

    fn flush(&mut self, file: &dyn StorageFile) -> io::Result<()> {
        write_all_at(file, &self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
