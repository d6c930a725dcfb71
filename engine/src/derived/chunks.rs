//! A growing array of items of fixed length, in files of fixed length.
//!
//! A chunk is a header page and a number of items. Items are appended by one writer with positioned
//! writes and read through maps by anybody; items below the published count never change. What a
//! crash leaves beyond the last checkpoint comes to stand there again: the order is a function of the
//! log, so the same bytes belong at the same place. They are left as they are, since a follower in
//! another process may show them.

use std::io;

use thalweg_wal::name;
use thalweg_wal::storage::{
    Access, MappedFile, MappedTail, MappedWriter, Storage, StorageFile, read_exact_at, read_file,
    remove_if_there,
};

use crate::sync::{Arc, List, Snapshot};

/// Bytes of a chunk that belong to its header.
const HEADER_LEN: u64 = 4096;
const HEADER_USED: usize = 48;
const MAGIC: [u8; 8] = *b"THALWEGD";
const VERSION: u32 = 1;
/// Files are compared in pieces of this many bytes.
const COMPARE_LEN: usize = 64 << 10;

/// What a chunked file holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Name of chunk `n`.
    pub(crate) name: fn(u64) -> String,
    /// Bytes of an item.
    pub(crate) item_len: usize,
    /// Items of a chunk.
    pub(crate) chunk_items: u64,
}

impl Layout {
    pub(crate) fn file_len(&self) -> u64 {
        HEADER_LEN + self.chunk_items * self.item_len as u64
    }

    fn header(&self, store_id: &[u8; 16], number: u64) -> [u8; HEADER_USED] {
        let mut header = [0; HEADER_USED];
        header[0..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(self.item_len as u32).to_le_bytes());
        header[16..32].copy_from_slice(store_id);
        header[32..40].copy_from_slice(&number.to_le_bytes());
        let crc = crc32c::crc32c(&header[..HEADER_USED - 4]);
        header[HEADER_USED - 4..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// An error if `chunk` is not chunk `number` of this store.
    fn check(&self, store_id: &[u8; 16], number: u64, chunk: &MappedFile) -> io::Result<()> {
        let expected = self.header(store_id, number);
        if chunk.len() != self.file_len() || chunk.bytes()[..HEADER_USED] != expected {
            let name = (self.name)(number);
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is wrong")));
        }
        Ok(())
    }

    /// Offset in its chunk at which item `index` begins.
    fn offset(&self, index: u64) -> u64 {
        HEADER_LEN + (index % self.chunk_items) * self.item_len as u64
    }

    /// Bytes of chunk `number` that hold what is left of `count` items in all.
    pub(crate) fn published(&self, number: u64, count: u64) -> u64 {
        let before = number * self.chunk_items;
        HEADER_LEN + count.saturating_sub(before).min(self.chunk_items) * self.item_len as u64
    }
}

/// The readers' side: the chunks there are.
#[derive(Debug)]
pub(crate) struct SharedChunks {
    layout: Layout,
    /// By their numbers; nothing in the place of one that is not needed any more.
    list: List<Option<Arc<MappedFile>>>,
}

impl SharedChunks {
    /// Lets go of the chunks that hold nothing but items below `first`, but not of the last, and returns their
    /// names. Whoever has a view of the list goes on reading them.
    pub(crate) fn retire(&self, first: u64) -> Vec<String> {
        let mut retired = Vec::new();
        self.list.change(|chunks| {
            let last = chunks.len().saturating_sub(1);
            let below = ((first / self.layout.chunk_items) as usize).min(last);
            for (number, chunk) in (0..).zip(&mut chunks[..below]) {
                if chunk.take().is_some() {
                    retired.push((self.layout.name)(number));
                }
            }
        });
        retired
    }

    /// A reader with its own view of the list.
    pub(crate) fn reader(self: &Arc<Self>) -> ChunkReader {
        ChunkReader { layout: self.layout, list: self.list.snapshot(), shared: Arc::clone(self) }
    }
}

/// Reads items. Holds a view of the list of chunks and refreshes it when an item is not in it.
#[derive(Debug, Clone)]
pub(crate) struct ChunkReader {
    layout: Layout,
    list: Snapshot<Option<Arc<MappedFile>>>,
    shared: Arc<SharedChunks>,
}

impl ChunkReader {
    /// The bytes of item `index`, or nothing if it is not published.
    #[inline]
    pub(crate) fn item(&self, index: u64) -> Option<&[u8]> {
        let chunk = self.list.get((index / self.layout.chunk_items) as usize)?.as_ref()?;
        let at = self.layout.offset(index) as usize;
        chunk.bytes().get(at..at + self.layout.item_len)
    }

    /// The file of chunk `number`, which stays as it is when its name goes.
    pub(crate) fn file(&self, number: u64) -> Option<&Arc<MappedFile>> {
        self.list.get(number as usize)?.as_ref()
    }

    /// Sees chunks that were added since.
    pub(crate) fn refresh(&mut self) {
        self.list = self.shared.list.snapshot();
    }

    /// Sees no chunk any more.
    pub(crate) fn let_go(&mut self) {
        self.list = Snapshot::default();
    }
}

/// The writer's side. There is one.
#[derive(Debug)]
pub(crate) struct ChunkWriter {
    storage: Arc<dyn Storage>,
    store_id: [u8; 16],
    shared: Arc<SharedChunks>,
    /// The chunk that is being filled, if it is not full.
    current: Option<MappedWriter>,
    count: u64,
    /// What a session that crashed has written may stand where the next items go.
    is_resuming: bool,
    /// First chunk that was not handed out for syncing since it was last written to.
    unsynced_from: usize,
}

impl ChunkWriter {
    /// Opens the first `count` items that `source` holds, to go on in `target`: the same storage
    /// for a store that is written, another for one that must not be changed. Chunks with nothing but items
    /// below `first` are not needed.
    ///
    /// An error means that the files are missing or wrong, and that the array has to be made again.
    pub(crate) fn open(
        layout: Layout,
        store_id: [u8; 16],
        source: &dyn Storage,
        target: Arc<dyn Storage>,
        (first, count): (u64, u64),
        in_place: bool,
    ) -> io::Result<Self> {
        let needed_from = first / layout.chunk_items;
        let mut list = vec![None; needed_from as usize];
        let mut current = None;
        for number in needed_from..count.div_ceil(layout.chunk_items) {
            let name = (layout.name)(number);
            let published = layout.published(number, count);
            let full = published == layout.file_len();
            let chunk = if full {
                MappedFile::open(source, &name, published)?
            } else {
                let writer = if in_place {
                    MappedWriter::open(source, &name, published)?
                } else {
                    copy_chunk(source, &*target, &name, layout.file_len(), published)?
                };
                let chunk = Arc::clone(writer.shared());
                current = Some(writer);
                chunk
            };
            layout.check(&store_id, number, &chunk)?;
            list.push(Some(chunk));
        }
        // What the checkpoint counts, its writer has synced.
        let unsynced_from = (count / layout.chunk_items) as usize;
        let is_resuming = in_place && current.is_some();
        let shared = Arc::new(SharedChunks { layout, list: List::new(list) });
        Ok(ChunkWriter {
            storage: target,
            store_id,
            shared,
            current,
            count,
            is_resuming,
            unsynced_from,
        })
    }

    /// As [`ChunkWriter::open`], in place, for whoever writes again what stands behind the items, whatever it is.
    pub(crate) fn open_to_rewrite(
        layout: Layout,
        store_id: [u8; 16],
        source: &dyn Storage,
        target: Arc<dyn Storage>,
        items: (u64, u64),
    ) -> io::Result<Self> {
        let opened = Self::open(layout, store_id, source, target, items, true)?;
        Ok(ChunkWriter { is_resuming: false, ..opened })
    }

    /// Begins behind the first `count` items, which are not there.
    pub(crate) fn begin(
        layout: Layout,
        store_id: [u8; 16],
        target: Arc<dyn Storage>,
        count: u64,
    ) -> io::Result<Self> {
        let number = count / layout.chunk_items;
        let list = vec![None; number as usize];
        let mut writer = ChunkWriter {
            storage: target,
            store_id,
            shared: Arc::new(SharedChunks { layout, list: List::new(list) }),
            current: None,
            count,
            is_resuming: false,
            unsynced_from: number as usize,
        };
        if !count.is_multiple_of(layout.chunk_items) {
            writer.writer()?.publish(layout.published(number, count));
        }
        Ok(writer)
    }

    /// The readers' side.
    pub(crate) fn shared(&self) -> &Arc<SharedChunks> {
        &self.shared
    }

    /// Number of items.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Appends whole items, and takes them off `bytes`: after an error, what is left there is what is
    /// not appended, and the call can be made again.
    pub(crate) fn append(&mut self, bytes: &mut &[u8]) -> io::Result<()> {
        let layout = self.shared.layout;
        while !bytes.is_empty() {
            let in_chunk = self.count % layout.chunk_items;
            let room = (layout.chunk_items - in_chunk) as usize * layout.item_len;
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            let offset = layout.offset(self.count);
            let is_resuming = self.is_resuming;
            let writer = self.writer()?;
            let standing = if is_resuming { writer.standing_len(now, offset)? } else { 0 };
            if standing < now.len() {
                // All that follows is new.
                writer.write_at(&now[standing..], offset + standing as u64)?;
            }
            writer.publish(offset + now.len() as u64);
            self.is_resuming &= standing == now.len();
            self.count += (now.len() / layout.item_len) as u64;
            if self.count.is_multiple_of(layout.chunk_items) {
                self.current = None;
            }
            *bytes = rest;
        }
        Ok(())
    }

    /// The chunk to write to; a new one if the last is full.
    fn writer(&mut self) -> io::Result<&mut MappedWriter> {
        if self.current.is_none() {
            let layout = self.shared.layout;
            let number = self.count / layout.chunk_items;
            let name = (layout.name)(number);
            // What a session that crashed has left there, or an attempt that failed, is not part of any
            // checkpoint.
            remove_if_there(&*self.storage, &name)?;
            let mut writer = MappedWriter::create(&*self.storage, &name, layout.file_len())?;
            writer.write_at(&layout.header(&self.store_id, number), 0)?;
            writer.publish(HEADER_LEN);
            self.shared.list.push(Some(Arc::clone(writer.shared())));
            self.current = Some(writer);
            self.is_resuming = false;
        }
        Ok(self.current.as_mut().expect("set above"))
    }

    /// The full chunks that nobody was asked to sync yet. Syncing them as they fill up keeps what a
    /// checkpoint has to wait for small.
    pub(crate) fn take_full(&mut self) -> Vec<Arc<MappedFile>> {
        let full = (self.count / self.shared.layout.chunk_items) as usize;
        let chunks = self.shared.list.snapshot();
        let unsynced = chunks.get(self.unsynced_from..full).unwrap_or_default();
        self.unsynced_from += unsynced.len();
        unsynced.iter().flatten().cloned().collect()
    }

    /// All chunks that nobody was asked to sync since they were last written to.
    pub(crate) fn take_unsynced(&mut self) -> Vec<Arc<MappedFile>> {
        let mut taken = self.take_full();
        // The last chunk is written to again, so it stays on the list.
        let chunks = self.shared.list.snapshot();
        let rest = chunks.get(self.unsynced_from..).unwrap_or_default();
        taken.extend(rest.iter().flatten().cloned());
        taken
    }
}

/// Opens the items `first..count` to read them, and nothing else. An error comes with the name of the file.
pub(crate) fn open_to_read(
    layout: Layout,
    store_id: &[u8; 16],
    storage: &dyn Storage,
    (first, count): (u64, u64),
) -> Result<Arc<SharedChunks>, (String, io::Error)> {
    let needed_from = first / layout.chunk_items;
    let mut list = vec![None; needed_from as usize];
    for number in needed_from..count.div_ceil(layout.chunk_items) {
        let name = (layout.name)(number);
        let chunk = MappedFile::open(storage, &name, layout.published(number, count))
            .and_then(|chunk| layout.check(store_id, number, &chunk).map(|()| chunk));
        list.push(Some(chunk.map_err(|error| (name, error))?));
    }
    Ok(Arc::new(SharedChunks { layout, list: List::new(list) }))
}

/// All bytes of chunk `number`, if it is there and of a store that `is_ours`, whatever is in it: for whoever
/// looks for evidence, and checks each item.
pub(crate) fn read_chunk(
    storage: &dyn Storage,
    layout: Layout,
    number: u64,
    is_ours: &dyn Fn(&[u8; 16]) -> bool,
) -> Option<Vec<u8>> {
    let bytes = read_file(storage, &(layout.name)(number)).ok()?;
    let identity: [u8; 16] = bytes.get(16..32)?.try_into().ok()?;
    let is_whole = bytes.get(..HEADER_USED)? == layout.header(&identity, number);
    (is_whole && is_ours(&identity)).then_some(bytes)
}

/// The file of an item, and its offset there.
pub(crate) fn place(layout: Layout, index: u64) -> (String, u64) {
    let offset = HEADER_LEN + index % layout.chunk_items * layout.item_len as u64;
    ((layout.name)(index / layout.chunk_items), offset)
}

/// Item `index` of a chunk, if there is so much of it.
pub(crate) fn item_of(chunk: &[u8], layout: Layout, index: u64) -> Option<&[u8]> {
    let at = HEADER_LEN as usize + index as usize * layout.item_len;
    chunk.get(at..at + layout.item_len)
}

/// The side of a process that reads along while another writes. There is one in a follower.
///
/// The owner may take a chunk away and make it again: one that recovers removes what lies beyond its
/// checkpoint, and a rebuild removes everything. So every look opens the chunk by its name, and what it finds there is
/// shown only on a map of a file that has the same.
#[derive(Debug)]
pub(crate) struct ChunkFollower {
    storage: Arc<dyn Storage>,
    store_id: [u8; 16],
    shared: Arc<SharedChunks>,
    /// Of the last chunk in the list.
    last: Option<MappedTail>,
    /// Items below this one were trimmed: a chunk that is made again does not have them.
    first: u64,
    count: u64,
}

/// Bytes that stood in a chunk file when somebody looked. Nothing of them is believed yet.
#[derive(Debug)]
pub(crate) struct Piece {
    file: Arc<dyn StorageFile>,
    first: u64,
    item_len: usize,
    bytes: Vec<u8>,
}

impl Piece {
    /// What may be items, each with its index.
    pub(crate) fn items(&self) -> impl Iterator<Item = (u64, &[u8])> {
        (self.first..).zip(self.bytes.chunks_exact(self.item_len))
    }

    /// One past the index of the last.
    pub(crate) fn end(&self) -> u64 {
        self.first + (self.bytes.len() / self.item_len) as u64
    }
}

impl ChunkFollower {
    /// Shows the first `count` items, which a checkpoint counts, without chunks that have nothing but items below
    /// `first`.
    ///
    /// An error means that files are missing or wrong.
    pub(crate) fn open(
        layout: Layout,
        store_id: [u8; 16],
        storage: Arc<dyn Storage>,
        (first, count): (u64, u64),
    ) -> io::Result<Self> {
        let needed_from = first / layout.chunk_items;
        let mut list = vec![None; needed_from as usize];
        let mut last = None;
        for number in needed_from..count.div_ceil(layout.chunk_items) {
            let file = storage.open(&(layout.name)(number), Access::Read)?;
            let tail = MappedTail::over(file, layout.published(number, count))?;
            layout.check(&store_id, number, tail.shared())?;
            list.push(Some(Arc::clone(tail.shared())));
            last = Some(tail);
        }
        let shared = Arc::new(SharedChunks { layout, list: List::new(list) });
        Ok(ChunkFollower { storage, store_id, shared, last, first, count })
    }

    /// Begins behind the first `count` items, which are not there.
    pub(crate) fn begin(
        layout: Layout,
        store_id: [u8; 16],
        storage: Arc<dyn Storage>,
        count: u64,
    ) -> Self {
        let list = List::new(vec![None; (count / layout.chunk_items) as usize]);
        let shared = Arc::new(SharedChunks { layout, list });
        ChunkFollower { storage, store_id, shared, last: None, first: count, count }
    }

    /// The readers' side.
    pub(crate) fn shared(&self) -> &Arc<SharedChunks> {
        &self.shared
    }

    /// Takes note that the items below `first` were trimmed, and goes on there if it has not come so far; `true` then.
    pub(crate) fn trim(&mut self, first: u64) -> bool {
        self.first = first;
        let is_overtaken = first > self.count;
        if is_overtaken {
            self.skip_to(first);
        }
        is_overtaken
    }

    fn skip_to(&mut self, count: u64) {
        let len = (count / self.shared.layout.chunk_items) as usize;
        self.shared.list.change(|chunks| {
            chunks.truncate(len);
            chunks.resize(len, None);
        });
        (self.last, self.count) = (None, count);
    }

    /// Number of items that are shown.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Whether the last item that is shown stands in the same chunk as the next one.
    pub(crate) fn is_within_chunk(&self) -> bool {
        self.count > self.first && !self.count.is_multiple_of(self.shared.layout.chunk_items)
    }

    /// What stands in the files now from item `first` on, up to `item_count` items of one chunk; nothing if there is no
    /// such chunk.
    pub(crate) fn look(&self, first: u64, item_count: u64) -> io::Result<Option<Piece>> {
        let layout = self.shared.layout;
        let number = first / layout.chunk_items;
        let file = match self.storage.open(&(layout.name)(number), Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if file.len()? != layout.file_len() {
            return Ok(None);
        }
        let mut header = [0; HEADER_USED];
        read_exact_at(&*file, &mut header, 0)?;
        if header != layout.header(&self.store_id, number) {
            return Ok(None);
        }
        let item_count = item_count.min(layout.chunk_items - first % layout.chunk_items);
        let mut bytes = vec![0; item_count as usize * layout.item_len];
        read_exact_at(&*file, &mut bytes, layout.offset(first))?;
        Ok(Some(Piece { file, first, item_len: layout.item_len, bytes }))
    }

    /// Shows the items below `to`, which `piece` holds, whole by their checksums; `false` if that has to wait.
    ///
    /// The owner writes items one after the other, so where it has written these, it has written all before them.
    pub(crate) fn publish(&mut self, piece: &Piece, to: u64) -> io::Result<bool> {
        let layout = self.shared.layout;
        debug_assert!((self.count + 1..=piece.end()).contains(&to));
        let number = piece.first / layout.chunk_items;
        let end = layout.published(number, to);
        let begun = !self.count.is_multiple_of(layout.chunk_items);
        if let Some(tail) = self.last.as_mut().filter(|_| begun) {
            let items = &piece.bytes[..(to - piece.first) as usize * layout.item_len];
            if !has(tail, items, layout.offset(piece.first))? {
                // Another file has taken the name.
                let shown = tail.shared();
                let first = self.first.max(number * layout.chunk_items);
                let from = layout.offset(first);
                let is_same = has_at(&*piece.file, &shown.bytes()[..HEADER_USED], 0)?
                    && has_at(&*piece.file, &shown.bytes()[from as usize..], from)?;
                if !is_same {
                    return Ok(false);
                }
                *tail = MappedTail::over(Arc::clone(&piece.file), shown.published())?;
                let renewed = Arc::clone(tail.shared());
                self.shared.list.change(|chunks| chunks[number as usize] = Some(renewed));
            }
            tail.publish(end);
        } else {
            let mut tail = MappedTail::over(Arc::clone(&piece.file), HEADER_LEN)?;
            tail.publish(end);
            self.shared.list.push(Some(Arc::clone(tail.shared())));
            self.last = Some(tail);
        }
        self.count = to;
        Ok(true)
    }
}

/// Whether the mapped file, too, holds these bytes at `offset`.
fn has(tail: &MappedTail, expected: &[u8], offset: u64) -> io::Result<bool> {
    let mut bytes = vec![0; expected.len()];
    tail.read_exact_at(&mut bytes, offset)?;
    Ok(bytes == expected)
}

/// Whether the file holds these bytes at `offset`.
fn has_at(file: &dyn StorageFile, expected: &[u8], offset: u64) -> io::Result<bool> {
    let mut piece = vec![0; expected.len().min(COMPARE_LEN)];
    for (expected, offset) in expected.chunks(COMPARE_LEN).zip((offset..).step_by(COMPARE_LEN)) {
        let piece = &mut piece[..expected.len()];
        read_exact_at(file, piece, offset)?;
        if piece != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The published part of a chunk, copied to where it may be written.
fn copy_chunk(
    source: &dyn Storage,
    target: &dyn Storage,
    name: &str,
    len: u64,
    published: u64,
) -> io::Result<MappedWriter> {
    let original = MappedFile::open(source, name, published)?;
    let mut copy = MappedWriter::create(target, name, len)?;
    copy.write_at(original.bytes(), 0)?;
    copy.publish(published);
    Ok(copy)
}

/// Removes every derived file: the checkpoint first, so that no crash leaves one that names what
/// is gone.
pub(crate) fn remove_all(storage: &dyn Storage) -> io::Result<()> {
    let mut names: Vec<String> = storage.list()?;
    names.retain(|name| name::kind(name).is_derived());
    names.sort_by_key(|name| name::kind(name) != name::Kind::Checkpoint);
    for name in &names {
        storage.remove(name)?;
    }
    if names.is_empty() { Ok(()) } else { storage.sync_dir() }
}
