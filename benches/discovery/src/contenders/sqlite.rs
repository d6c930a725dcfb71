//! What the SQLite contenders share: schema, queries, and the order of a stream.
//!
//! They do what a Ceramic node does when it starts (`ceramicnetwork/rust-ceramic`, `event-svc`): before
//! pull request 620 (December 2024) in one task, since then in many. Schema, queries, batches, tasks and
//! settings are those of the node; the code is not, and does not contain any of it. An event is a row
//! with its key and its delivery number, which is null until it is delivered, and blocks behind a table
//! of links. Who orders reads undelivered rows with their blocks, builds the event's archive, and decodes
//! it for stream and parents, since no table has those.
//!
//! Where we deviate, and in whose favour:
//!
//! * rusqlite without a runtime instead of sqlx over tokio, with cached statements: theirs.
//! * A parent has a list of children. The node keeps one child, and leaves forks undelivered: theirs,
//!   since it could not take part otherwise.
//! * An event may have several parents, for the real history. With one it makes no difference.
//! * No capabilities and no time events, so two blocks an event and never more: theirs.
//! * No hash of a block is verified: theirs.
//! * A failed read or write ends the run.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use crate::Failure;
use crate::event::{self, Cid, Header, archive, blocks, id, mix, ordinal};
use crate::profile::Data;

/// What tuning changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    /// Said of tables whose rows are found by their key alone.
    without_rowid: &'static str,
    /// Settings of each connection.
    pragmas: &'static [(&'static str, i64)],
    /// Connections that read.
    pub(super) readers: usize,
    /// Rows that a reading task asks for at a time.
    pub(super) batch: usize,
    undelivered: &'static str,
    deliverable: &'static str,
    mark: &'static str,
    /// Whether a delivered parent is read and decoded too.
    reads_delivered: bool,
    /// Whether a task takes rows in a row, and not every sixteenth.
    pub(super) in_ranges: bool,
}

/// As the node has it.
pub(super) const PLAIN: Tuning = Tuning {
    without_rowid: "",
    pragmas: &[],
    readers: 8,
    batch: 250,
    undelivered: "
        SELECT inside.rowid, eb.root, b.multihash, b.bytes, eb.codec
        FROM (
            SELECT e.cid, e.order_key, e.rowid FROM ceramic_one_event e
            WHERE EXISTS (SELECT 1 FROM ceramic_one_event_block WHERE event_cid = e.cid)
            AND e.delivered IS NULL AND e.rowid > ?1 AND (e.rowid % ?3) = ?4 LIMIT ?2
        ) inside
        JOIN ceramic_one_event_block eb ON eb.event_cid = inside.cid
        JOIN ceramic_one_block b ON b.multihash = eb.block_multihash
        ORDER BY inside.order_key, eb.idx",
    deliverable: "
        SELECT count(1) > 0, e.delivered IS NOT NULL, e.rowid
        FROM ceramic_one_event_block eb JOIN ceramic_one_event e ON e.cid = eb.event_cid
        WHERE e.cid = ?1",
    mark: "UPDATE ceramic_one_event SET delivered = ?1 WHERE cid = ?2 AND delivered IS NULL",
    reads_delivered: true,
    in_ranges: false,
};

/// What somebody who knows SQLite would try without giving up the node's design. The file is mapped, a
/// connection may cache 64 MiB, there are 32 of them; links and blocks lie in their key's tree; tasks
/// take ranges of rows, so that they do not all walk the same index, and 1,000 rows at a time; a row is
/// marked by its number; of a parent only that is asked which is needed; the log of SQLite is moved to
/// the file less often.
pub(super) const TUNED: Tuning = Tuning {
    without_rowid: "WITHOUT ROWID",
    pragmas: &[
        ("mmap_size", 1 << 40),
        ("cache_size", -(64 << 10)),
        ("temp_store", 2),
        ("wal_autocheckpoint", 16_384),
    ],
    readers: 32,
    batch: 1000,
    undelivered: "
        SELECT inside.rowid, eb.root, b.multihash, b.bytes, eb.codec
        FROM (
            SELECT e.cid, e.rowid FROM ceramic_one_event e
            WHERE e.delivered IS NULL AND e.rowid > ?1 AND e.rowid <= ?4
            ORDER BY e.rowid LIMIT ?2 + 0 * ?3
        ) inside
        JOIN ceramic_one_event_block eb ON eb.event_cid = inside.cid
        JOIN ceramic_one_block b ON b.multihash = eb.block_multihash
        ORDER BY inside.rowid, eb.idx",
    deliverable: "
        SELECT count(1) > 0, e.delivered IS NOT NULL, e.rowid
        FROM ceramic_one_event e WHERE e.cid = ?1",
    mark: "UPDATE ceramic_one_event SET delivered = ?1 WHERE rowid = ?2 AND delivered IS NULL",
    reads_delivered: false,
    in_ranges: true,
};

const VALUE: &str = "
    SELECT 0, eb.root, b.multihash, b.bytes, eb.codec
    FROM ceramic_one_event_block eb JOIN ceramic_one_block b ON b.multihash = eb.block_multihash
    WHERE eb.event_cid = ?1 ORDER BY eb.idx";

/// Rows in a transaction while the store is prepared.
const PREPARE_BATCH: usize = 1000;

fn schema(tuning: &Tuning) -> String {
    let without_rowid = tuning.without_rowid;
    format!(
        "CREATE TABLE ceramic_one_event (
            order_key BLOB NOT NULL UNIQUE,
            ahash_0 INTEGER NOT NULL, ahash_1 INTEGER NOT NULL,
            ahash_2 INTEGER NOT NULL, ahash_3 INTEGER NOT NULL,
            ahash_4 INTEGER NOT NULL, ahash_5 INTEGER NOT NULL,
            ahash_6 INTEGER NOT NULL, ahash_7 INTEGER NOT NULL,
            cid BLOB NOT NULL PRIMARY KEY,
            discovered TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
            delivered INTEGER UNIQUE,
            init_cid BLOB,
            informant TEXT,
            is_time_event BOOLEAN DEFAULT FALSE
        );
        CREATE TABLE ceramic_one_block (
            multihash BLOB NOT NULL PRIMARY KEY, bytes BLOB NOT NULL
        ) {without_rowid};
        CREATE TABLE ceramic_one_event_block (
            event_cid BLOB NOT NULL REFERENCES ceramic_one_event (cid),
            block_multihash BLOB NOT NULL REFERENCES ceramic_one_block (multihash),
            codec INTEGER NOT NULL, idx INTEGER NOT NULL, root BOOL NOT NULL,
            PRIMARY KEY (event_cid, block_multihash)
        ) {without_rowid};
        CREATE INDEX idx_event_block_multihash ON ceramic_one_event_block (block_multihash);"
    )
}

/// A connection.
pub(super) struct Db {
    connection: Connection,
    tuning: &'static Tuning,
    lookups: Cell<u64>,
}

/// An event as it is read, with its row.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) row: i64,
    pub(super) header: Header,
}

/// What the store knows of a parent.
enum Parent {
    Absent,
    Delivered,
    Undelivered(Found),
}

impl Db {
    pub(super) fn open(tuning: &'static Tuning, dir: &Path, writes: bool) -> Result<Self, Failure> {
        let path = dir.join("events.sqlite");
        let flags = match writes {
            true => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
            false => OpenFlags::SQLITE_OPEN_READ_ONLY,
        };
        // Each connection has one user at a time; without the lock inside it is faster.
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.set_prepared_statement_cache_capacity(64);
        if writes {
            let mode: String =
                connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
            if mode != "wal" {
                return Err(format!("the journal is in mode {mode}").into());
            }
            connection.pragma_update(None, "synchronous", "NORMAL")?;
        }
        connection.pragma_update(None, "foreign_keys", true)?;
        for (name, value) in tuning.pragmas {
            connection.pragma_update(None, name, value)?;
        }
        Ok(Db { connection, tuning, lookups: Cell::new(0) })
    }

    /// Undelivered events above a row, at most `limit`: those whose row leaves `of` when divided by
    /// `by`, or, in ranges, those up to the row `of`.
    pub(super) fn undelivered(
        &self,
        above: i64,
        limit: usize,
        by: i64,
        of: i64,
    ) -> Result<Vec<Found>, Failure> {
        let mut select = self.connection.prepare_cached(self.tuning.undelivered)?;
        events(select.query(params![above, limit as i64, by, of])?)
    }

    /// The rows of undelivered events lie between these, the first excluded.
    pub(super) fn undelivered_range(&self) -> Result<(i64, i64), Failure> {
        let range = "SELECT coalesce(min(rowid), 1) - 1, coalesce(max(rowid), 0)
            FROM ceramic_one_event WHERE delivered IS NULL";
        Ok(self.connection.query_row(range, [], |row| Ok((row.get(0)?, row.get(1)?)))?)
    }

    /// What the store knows of a parent: two queries.
    fn parent(&self, cid: &Cid) -> Result<Parent, Failure> {
        self.lookups.set(self.lookups.get() + 1);
        let mut select = self.connection.prepare_cached(self.tuning.deliverable)?;
        let there = select
            .query_row([cid], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let (delivered, row) = match there {
            Some((true, Some(delivered), Some(row))) => (delivered, row),
            _ => return Ok(Parent::Absent),
        };
        if delivered && !self.tuning.reads_delivered {
            return Ok(Parent::Delivered);
        }
        let mut select = self.connection.prepare_cached(VALUE)?;
        let mut found = events(select.query([cid])?)?;
        let found = found.pop().ok_or("an event has blocks")?;
        Ok(if delivered { Parent::Delivered } else { Parent::Undelivered(Found { row, ..found }) })
    }

    /// Gives these events numbers, in their order, in one transaction.
    pub(super) fn mark(&mut self, events: &[Marked], next: &mut i64) -> Result<(), Failure> {
        if events.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        {
            let mut mark = transaction.prepare_cached(self.tuning.mark)?;
            for (cid, row) in events {
                match self.tuning.in_ranges {
                    true => mark.execute(params![*next, row])?,
                    false => mark.execute(params![*next, cid])?,
                };
                *next += 1;
            }
        }
        Ok(transaction.commit()?)
    }

    /// The number that the next delivery gets.
    pub(super) fn next_number(&self) -> Result<i64, Failure> {
        let newest = "SELECT coalesce(max(delivered), 0) + 1 FROM ceramic_one_event";
        Ok(self.connection.query_row(newest, [], |row| row.get(0))?)
    }

    /// Queries for parents, so far.
    pub(super) fn lookups(&self) -> u64 {
        self.lookups.get()
    }

    /// All delivered events, in the order in which consumers see them.
    pub(super) fn order(&self) -> Result<Vec<u32>, Failure> {
        let feed = "SELECT cid FROM ceramic_one_event WHERE delivered >= 0 ORDER BY delivered";
        let mut select = self.connection.prepare(feed)?;
        let mut rows = select.query([])?;
        let mut order = Vec::new();
        while let Some(row) = rows.next()? {
            order.push(ordinal(row.get_ref(0)?.as_blob()?)?);
        }
        Ok(order)
    }
}

/// An event that gets a number: its id and its row.
pub(super) type Marked = (Cid, i64);

/// Builds the archives of events out of the rows of their blocks, and decodes them.
fn events(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    let mut pieces = Pieces::default();
    while let Some(row) = rows.next()? {
        let number = row.get(0)?;
        if number != pieces.row && !pieces.blocks.is_empty() {
            found.push(pieces.take()?);
        }
        pieces.row = number;
        pieces.push(row)?;
    }
    if !pieces.blocks.is_empty() {
        found.push(pieces.take()?);
    }
    Ok(found)
}

/// The blocks of an event, as far as they are read.
#[derive(Default)]
struct Pieces {
    row: i64,
    root: Option<Cid>,
    blocks: Vec<(Cid, Vec<u8>)>,
}

impl Pieces {
    fn push(&mut self, row: &Row<'_>) -> Result<(), Failure> {
        let is_root: bool = row.get(1)?;
        let codec: i64 = row.get(4)?;
        let mut cid = [1; event::CID_LEN];
        cid[1] = (codec & 0x7f) as u8;
        cid[2..].copy_from_slice(row.get_ref(2)?.as_blob()?);
        if is_root {
            self.root = Some(cid);
        }
        self.blocks.push((cid, row.get_ref(3)?.as_blob()?.to_vec()));
        Ok(())
    }

    fn take(&mut self) -> Result<Found, Failure> {
        let root = self.root.take().ok_or("an event has a root")?;
        let blocks = self.blocks.iter().map(|(cid, bytes)| (&cid[..], &bytes[..]));
        let archive = archive(&root, blocks);
        self.blocks.clear();
        Ok(Found { row: self.row, header: event::parse(&archive)? })
    }
}

/// Makes the store: rows in the order of arrival, numbers for what is delivered.
pub(super) fn prepare(tuning: &'static Tuning, data: &Data, dir: &Path) -> Result<(), Failure> {
    let mut db = Db::open(tuning, dir, true)?;
    db.connection.execute_batch(&schema(tuning))?;
    let mut numbers = vec![None; data.parents.len()];
    // Ordinals are in causal order.
    let delivered = (0..data.parents.len()).filter(|event| data.delivered[*event]);
    delivered.zip(1_i64..).for_each(|(event, number)| numbers[event] = Some(number));
    for events in data.arrivals.chunks(PREPARE_BATCH) {
        let transaction = db.connection.transaction()?;
        for &event in events {
            insert(&transaction, data, event, numbers[event as usize])?;
        }
        transaction.commit()?;
    }
    db.connection.execute_batch(
        "PRAGMA analysis_limit = 1000; PRAGMA optimize = 0x10002; PRAGMA wal_checkpoint(TRUNCATE);",
    )?;
    db.connection.close().map_err(|(_, error)| error.into())
}

fn insert(
    connection: &Connection,
    data: &Data,
    event: u32,
    delivered: Option<i64>,
) -> Result<(), Failure> {
    let (cid, stream) = (id(event), id(data.streams[event as usize]));
    let parents: Vec<Cid> = data.parents[event as usize].iter().map(|of| id(*of)).collect();
    let hash = |word: u64| mix(u64::from(event) | (7 + word) << 32) as u32;
    connection
        .prepare_cached(
            "INSERT INTO ceramic_one_event (order_key, cid, delivered, init_cid,
                ahash_0, ahash_1, ahash_2, ahash_3, ahash_4, ahash_5, ahash_6, ahash_7)
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            order_key(&stream, &cid),
            cid,
            delivered,
            stream,
            hash(0),
            hash(1),
            hash(2),
            hash(3),
            hash(4),
            hash(5),
            hash(6),
            hash(7),
        ])?;
    for (place, block) in blocks(event, &stream, &parents).iter().enumerate() {
        let multihash = &block.cid[2..];
        connection
            .prepare_cached("INSERT INTO ceramic_one_block (multihash, bytes) VALUES (?1, ?2)")?
            .execute(params![multihash, block.bytes])?;
        connection
            .prepare_cached(
                "INSERT INTO ceramic_one_event_block
                    (event_cid, block_multihash, codec, idx, root)
                VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            )?
            .execute(params![cid, multihash, block.codec, place as i64, block.root])?;
    }
    Ok(())
}

/// Network, model, controller, the end of the stream's address, the event's address.
fn order_key(stream: &Cid, cid: &Cid) -> Vec<u8> {
    let mut key = vec![0xce, 0x01, 0x05, 0x00];
    key.extend_from_slice(&mix(8).to_be_bytes());
    key.extend_from_slice(&stream[4..12]);
    key.extend_from_slice(&stream[event::CID_LEN - 4..]);
    key.extend_from_slice(cid);
    key
}

/// The undelivered events of a stream, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Stream {
    events: HashMap<Cid, State>,
    children: HashMap<Cid, Vec<Cid>>,
    /// The newest delivered event, which the next one often has as its parent.
    newest: Option<Cid>,
    pub(super) is_touched: bool,
}

#[derive(Debug)]
enum State {
    Delivered,
    Undelivered { row: i64, parents: Vec<Cid> },
}

impl Stream {
    /// Adds an undelivered event.
    pub(super) fn add(&mut self, found: Found) {
        let Found { row, header: Header { id, parents, .. } } = found;
        self.is_touched = true;
        if self.events.contains_key(&id) {
            return;
        }
        for parent in &parents {
            self.children.entry(*parent).or_default().push(id);
        }
        self.events.insert(id, State::Undelivered { row, parents });
    }

    /// Finds what can be delivered, reading parents that are not in memory; walks back as far as
    /// parents are undelivered, then forward through the children.
    pub(super) fn order(&mut self, db: &Db) -> Result<Vec<Marked>, Failure> {
        let is_undelivered = |(cid, state): (&Cid, &State)| match state {
            State::Undelivered { .. } => Some(*cid),
            State::Delivered => None,
        };
        let mut queue: VecDeque<Cid> = self.events.iter().filter_map(is_undelivered).collect();
        let mut ready = Vec::new();
        while let Some(cid) = queue.pop_front() {
            if self.load_parents(&cid, db, &mut queue)? {
                ready.extend(self.deliver(&cid));
            }
        }
        let mut next = 0;
        while let Some((cid, _)) = ready.get(next) {
            next += 1;
            for child in self.children.get(cid).cloned().unwrap_or_default() {
                if self.is_ready(&child) {
                    ready.extend(self.deliver(&child));
                }
            }
        }
        Ok(ready)
    }

    /// Has the parents of an event in memory, as far as they are in the store; whether all are
    /// delivered. Those that are not go to the queue.
    fn load_parents(
        &mut self,
        cid: &Cid,
        db: &Db,
        queue: &mut VecDeque<Cid>,
    ) -> Result<bool, Failure> {
        let Some(State::Undelivered { parents, .. }) = self.events.get(cid) else {
            return Ok(false);
        };
        let mut are_delivered = true;
        for parent in parents.clone() {
            are_delivered &= match self.events.get(&parent) {
                Some(State::Delivered) => true,
                Some(State::Undelivered { .. }) => false,
                None => match db.parent(&parent)? {
                    Parent::Absent => false,
                    Parent::Delivered => {
                        self.events.insert(parent, State::Delivered);
                        true
                    }
                    Parent::Undelivered(found) => {
                        self.add(found);
                        queue.push_back(parent);
                        false
                    }
                },
            };
        }
        Ok(are_delivered)
    }

    fn is_ready(&self, cid: &Cid) -> bool {
        let is_delivered = |parent: &Cid| matches!(self.events.get(parent), Some(State::Delivered));
        match self.events.get(cid) {
            Some(State::Undelivered { parents, .. }) => parents.iter().all(is_delivered),
            _ => false,
        }
    }

    fn deliver(&mut self, cid: &Cid) -> Option<Marked> {
        match self.events.insert(*cid, State::Delivered) {
            Some(State::Undelivered { row, .. }) => {
                self.newest = Some(*cid);
                Some((*cid, row))
            }
            _ => None,
        }
    }

    /// Forgets what is delivered, but for the newest; whether the stream is still worth keeping.
    pub(super) fn prune(&mut self) -> bool {
        self.is_touched = false;
        let (events, newest) = (&mut self.events, self.newest);
        let mut undelivered = 0;
        events.retain(|cid, state| match state {
            State::Undelivered { .. } => {
                undelivered += 1;
                true
            }
            State::Delivered => Some(*cid) == newest,
        });
        self.children.retain(|_, children| {
            let waits = |child: &Cid| matches!(events.get(child), Some(State::Undelivered { .. }));
            children.retain(waits);
            !children.is_empty()
        });
        undelivered > 0
    }
}
