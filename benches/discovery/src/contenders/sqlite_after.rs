//! SQLite, after: sixteen tasks read, each every sixteenth row, 250 events at a time, and send events
//! one by one over a channel of 10,000. One task takes what is there, has up to sixteen tasks order the
//! streams that were touched, waits for all of them, and writes one transaction. Readers and orderers
//! share eight connections.
//!
//! Tasks are threads here. The node starts a task for an ordering step too, and its readers are tasks
//! over SQLite's own threads; a thread costs more to start, some 20 microseconds beside steps of
//! milliseconds. In its favour, an orderer has its connection for a stream, and not for a query.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::sqlite::{Db, Found, Marked, PLAIN, Stream, TUNED, Tuning};
use super::{Contender, Done, Setup, Store, Threads};
use crate::Failure;
use crate::event::Cid;
use crate::expected::Strictness;
use crate::machine::Clock;

pub(super) const CONTENDER: Contender = Contender {
    name: "sqlite after",
    store: Store::Sqlite,
    threads: Threads::Tasks,
    strictness: Strictness::Causal,
    is_slow: true,
    is_memory: false,
    run: |setup| run(setup, &PLAIN),
};

/// The same, tuned: see [`TUNED`] for how.
pub(super) const TUNED_CONTENDER: Contender = Contender {
    name: "sqlite tuned",
    store: Store::SqliteTuned,
    run: |setup| run(setup, &TUNED),
    ..CONTENDER
};

/// Tasks that read.
const READERS: i64 = 16;
/// Events between those who read and the one who orders.
const CHANNEL: usize = 10_000;
/// Events that are taken from the channel before what else is there.
const TAKE: usize = 1000;
/// Ordering tasks, unless it is said otherwise.
const TASKS: usize = 16;
/// Fewest streams that are worth a task.
const STREAMS_MIN: usize = 25;

/// What cannot be: the pool has both ends of its channel.
const NO_POOL: &str = "the pool is gone";

/// Connections that are free.
struct Pool {
    free: Receiver<Db>,
    back: Sender<Db>,
    lookups: AtomicU64,
}

impl Pool {
    fn open(tuning: &'static Tuning, setup: &Setup) -> Result<Self, Failure> {
        let (back, free) = bounded(tuning.readers);
        for _ in 0..tuning.readers {
            back.send(Db::open(tuning, &setup.dir, false)?).map_err(|_| NO_POOL)?;
        }
        Ok(Pool { free, back, lookups: AtomicU64::new(0) })
    }

    /// Waits for a connection and has it for one call.
    fn with<T>(&self, call: impl FnOnce(&Db) -> Result<T, Failure>) -> Result<T, Failure> {
        let db = self.free.recv()?;
        let before = db.lookups();
        let result = call(&db);
        // Relaxed: only a number.
        self.lookups.fetch_add(db.lookups() - before, Ordering::Relaxed);
        self.back.send(db).map_err(|_| NO_POOL)?;
        result
    }
}

fn run(setup: &Setup, tuning: &'static Tuning) -> Result<Done, Failure> {
    let mut clock = Clock::start();
    let writer = Db::open(tuning, &setup.dir, true)?;
    let pool = Pool::open(tuning, setup)?;
    let tasks = if setup.threads == 0 { TASKS } else { setup.threads };
    let mut manager = Manager {
        next: writer.next_number()?,
        writer,
        pool: &pool,
        tasks,
        streams: HashMap::new(),
    };
    let (rows_above, rows_end) = pool.with(|db| match tuning.in_ranges {
        true => db.undelivered_range(),
        false => Ok((0, 0)),
    })?;
    std::thread::scope(|scope| {
        let (send, receive) = bounded(CHANNEL);
        let reader = |task| {
            let (send, pool) = (send.clone(), &pool);
            let end = |task| rows_above + (rows_end - rows_above) * task / READERS;
            let (above, of) = if tuning.in_ranges { (end(task), end(task + 1)) } else { (0, task) };
            scope.spawn(move || read(pool, tuning, above, of, &send))
        };
        let readers: Vec<_> = (0..READERS).map(reader).collect();
        drop(send);
        // If it fails, the readers find nobody at the other end.
        let managed = manager.run(receive, &mut clock);
        for reader in readers {
            let read = reader.join().map_err(|_| "a reader has panicked")?;
            if managed.is_ok() {
                read?;
            }
        }
        managed
    })?;
    let used = clock.stop();
    let lookups = Some(pool.lookups.load(Ordering::Relaxed));
    Ok(Done { lookups, ..Done::ordered(used, manager.writer.order()?) })
}

/// One reading task.
fn read(
    pool: &Pool,
    tuning: &Tuning,
    mut above: i64,
    of: i64,
    send: &Sender<Found>,
) -> Result<(), Failure> {
    loop {
        let found = pool.with(|db| db.undelivered(above, tuning.batch, READERS, of))?;
        let is_last = found.len() < tuning.batch;
        for found in found {
            above = above.max(found.row);
            send.send(found).map_err(|_| "nobody orders")?;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Who orders and writes.
struct Manager<'a> {
    writer: Db,
    next: i64,
    pool: &'a Pool,
    tasks: usize,
    streams: HashMap<Cid, Stream>,
}

impl Manager<'_> {
    fn run(&mut self, receive: Receiver<Found>, clock: &mut Clock) -> Result<(), Failure> {
        while let Ok(found) = receive.recv() {
            self.add(found);
            for found in receive.try_iter().take(TAKE + CHANNEL) {
                self.add(found);
            }
            if self.cycle()? > 0 {
                clock.first();
            }
        }
        Ok(())
    }

    fn add(&mut self, found: Found) {
        self.streams.entry(found.header.stream).or_default().add(found);
    }

    /// Orders the streams that were touched, and writes; how many events were delivered.
    fn cycle(&mut self) -> Result<usize, Failure> {
        let touched = self.streams.extract_if(|_, stream| stream.is_touched);
        let mut touched: Vec<(Cid, Stream)> = touched.collect();
        let chunk = (touched.len() / self.tasks).max(STREAMS_MIN);
        let pool = self.pool;
        let ready = std::thread::scope(|scope| {
            let order = |streams| scope.spawn(move || order(pool, streams));
            let tasks: Vec<_> = touched.chunks_mut(chunk).map(order).collect();
            let mut ready = Vec::new();
            for task in tasks {
                ready.extend(task.join().map_err(|_| "an orderer has panicked")??);
            }
            Ok::<_, Failure>(ready)
        })?;
        self.writer.mark(&ready, &mut self.next)?;
        for (cid, mut stream) in touched {
            if stream.prune() {
                self.streams.insert(cid, stream);
            }
        }
        Ok(ready.len())
    }
}

/// One ordering task.
fn order(pool: &Pool, streams: &mut [(Cid, Stream)]) -> Result<Vec<Marked>, Failure> {
    let mut ready = Vec::new();
    for (_, stream) in streams {
        ready.extend(pool.with(|db| stream.order(db))?);
    }
    Ok(ready)
}
