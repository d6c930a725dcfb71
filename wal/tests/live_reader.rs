//! Reading beside a writer that goes on: what is shown is a durable prefix, and never damage.

mod common;
#[path = "common/hooked.rs"]
mod hooked;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Event, OPTIONS, append_frames, frame_of, open, patch, whole};
use hooked::{Hooked, Op};
use thalweg_wal::storage::{
    Access, LockAttempt, Map, MemoryStorage, OsStorage, Storage, StorageFile, remove_if_there,
};
use thalweg_wal::{LogReader, LogWriter, OpenError, TailReport, name};

/// A store whose first readings of the tail see the front of the file as it was before.
#[derive(Debug)]
struct Racing {
    before: MemoryStorage,
    now: MemoryStorage,
    /// File offset below which the stale readings are stale.
    stale_below: u64,
    stale_readings: Arc<AtomicU64>,
    operations: Arc<Mutex<Vec<&'static str>>>,
}

impl Storage for Racing {
    fn describe(&self, name: &str) -> String {
        self.now.describe(name)
    }
    fn create(&self, _name: &str, _len: u64) -> io::Result<Arc<dyn StorageFile>> {
        panic!("a reader creates nothing")
    }
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        assert_eq!(access, Access::Read, "a reader needs no right to write");
        Ok(Arc::new(RacingFile {
            before: self.before.open(name, access)?,
            now: self.now.open(name, access)?,
            stale_below: self.stale_below,
            stale_readings: Arc::clone(&self.stale_readings),
            operations: Arc::clone(&self.operations),
        }))
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.now.list()
    }
    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        panic!("a reader renames nothing")
    }
    fn remove(&self, _name: &str) -> io::Result<()> {
        panic!("a reader removes nothing")
    }
    fn sync_dir(&self) -> io::Result<()> {
        panic!("a reader changes nothing in the directory")
    }
    fn try_lock(&self, _name: &str, _holder: &str) -> io::Result<LockAttempt> {
        panic!("a reader takes no lock")
    }
}

#[derive(Debug)]
struct RacingFile {
    before: Arc<dyn StorageFile>,
    now: Arc<dyn StorageFile>,
    stale_below: u64,
    stale_readings: Arc<AtomicU64>,
    operations: Arc<Mutex<Vec<&'static str>>>,
}

impl RacingFile {
    fn note(&self, operation: &'static str) {
        self.operations.lock().expect("no panic while locked").push(operation);
    }
}

impl StorageFile for RacingFile {
    fn len(&self) -> io::Result<u64> {
        self.now.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.now.read_at(buf, offset)
    }
    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.note("read");
        let count = self.now.read_device_at(buf, offset)?;
        let is_tail = offset >= common::HEADER_PAGE as u64;
        let one_less = |left: u64| left.checked_sub(1);
        let stale = is_tail
            && self
                .stale_readings
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
                .is_ok();
        if stale {
            let len = self.stale_below.saturating_sub(offset).min(count as u64) as usize;
            self.before.read_at(&mut buf[..len], offset)?;
        }
        Ok(count)
    }
    fn write_at(&self, _buf: &[u8], _offset: u64) -> io::Result<usize> {
        panic!("a reader writes nothing")
    }
    fn sync(&self) -> io::Result<()> {
        self.note("sync");
        self.now.sync()
    }
    fn map(&self) -> io::Result<Map> {
        self.now.map()
    }
}

fn events(index: u8) -> Vec<Event> {
    vec![Event::new("s", [index], vec![index; 300])]
}

/// A store, and the same store two frames later, read by somebody who is overtaken in between.
fn racing(stale_readings: u64) -> (Racing, Vec<u64>) {
    let now = MemoryStorage::new();
    let mut writer = open(&now, None).expect("opens").writer;
    append_frames(&mut writer, &[events(0)]);
    let before = now.fork();
    let edges = append_frames(&mut writer, &[events(1), events(2)]);
    drop(writer);
    let racing = Racing {
        before,
        now,
        stale_below: edges[1],
        stale_readings: Arc::new(AtomicU64::new(stale_readings)),
        operations: Arc::default(),
    };
    (racing, edges)
}

/// The frame at the end was read before it was written, the one behind it after: that once looked
/// like damage.
#[test]
fn a_frame_that_is_written_while_it_is_read_is_not_damage() {
    let (storage, edges) = racing(1);
    let reader = LogReader::open(&storage, None).expect("opens");
    assert_eq!(reader.damage, []);
    assert_eq!((reader.end, reader.tail), (edges[2], TailReport::Clean));
    assert_eq!(whole(&reader.segments), [events(0), events(1), events(2)].concat());
    assert_eq!(storage.stale_readings.load(Ordering::Relaxed), 0, "it was overtaken");
}

#[test]
fn what_a_reader_shows_is_durable() {
    let (storage, _) = racing(0);
    LogReader::open(&storage, None).expect("opens");
    let operations = storage.operations.lock().expect("free");
    assert_eq!(operations.first(), Some(&"read"), "the header");
    assert!(operations.contains(&"sync"));
    assert_eq!(operations.last(), Some(&"sync"), "nothing is read behind the last sync");
}

#[test]
fn real_damage_stays_damage_however_often_one_looks() {
    let (storage, edges) = racing(1);
    patch(&storage.now, 1, edges[0] as usize + 60, b"!!");
    let reader = LogReader::open(&storage, None).expect("opens");
    assert_eq!(reader.damage.len(), 1);
    assert!(matches!(open(&storage.now, None), Err(OpenError::Damaged(_))));
}

/// A spare that the writer takes back between the look at the directory and the look at the file.
#[test]
fn a_spare_that_vanishes_meanwhile_is_not_missed() {
    let files = racing(0).0.now;
    files.create(&name::segment(2), common::MIB).expect("creates");
    let writers = files.clone();
    let vanishing = Hooked::new(files.clone(), move |op| match op {
        Op::Open(name, _) if name == name::segment(2) => remove_if_there(&writers, name),
        _ => Ok(()),
    });
    let reader = LogReader::open(&vanishing, None).expect("opens");
    assert!(!files.list().expect("lists").contains(&name::segment(2)), "nobody has looked at it");
    assert_eq!(whole(&reader.segments), [events(0), events(1), events(2)].concat());
}

#[test]
fn readers_beside_a_writer_see_growing_prefixes() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::open(dir.path()).expect("opens"));
    let mut writer = LogWriter::open(Arc::clone(&storage), OPTIONS, None).expect("opens").writer;
    let event = |index: u32| Event::new("s", index.to_be_bytes(), vec![index as u8; 9_000]);
    let acknowledged = AtomicU64::new(0);
    let count = 400;
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..count {
                if let Some(request) = writer.request_spare() {
                    writer.offer_spare(request.prepare(&*storage, &|| true).ok());
                }
                writer.append(&mut frame_of(&[event(index)])).expect("appends");
                writer.sync().expect("syncs");
                // Release: pairs with the Acquire load below.
                acknowledged.store(u64::from(index) + 1, Ordering::Release);
            }
        });
        let mut seen = 0;
        let mut openings = 0;
        while seen < count as usize {
            // Acquire: pairs with the Release store above.
            let at_least = acknowledged.load(Ordering::Acquire) as usize;
            let reader = LogReader::open(&*storage, None).expect("opens beside the writer");
            assert_eq!(reader.damage, []);
            let found = whole(&reader.segments);
            assert!(found.len() >= at_least.max(seen), "nothing goes away");
            let expected = (0..found.len() as u32).map(event);
            assert!(found.iter().cloned().eq(expected), "in order, without gaps");
            seen = found.len();
            openings += 1;
        }
        assert!(openings > 1);
    });
}
