//! Whole stores with hostile files: opened for reading and for writing, checked, and made again.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use thalweg::storage::Storage;
use thalweg::{
    Ack, AppenderOptions, Cause, Event, MixedBatch, NewEvent, OpenError, Options, ReadError, Store,
    VerifyReport, rebuild as rebuild_at, verify, verify_on,
};
use thalweg_wal::LogReader;

use super::disk::{Disk, Image};
use super::input::Input;

/// Position, stream, id and payload of an event.
type Written = (u64, Vec<u8>, Vec<u8>, Vec<u8>);

/// Small stores, and everything that was ever written to any of them.
#[derive(Debug)]
pub struct Bases {
    images: Vec<Image>,
    written: HashSet<Written>,
}

fn options() -> Options {
    Options::new().scanners(1).orderers(1).pin(false).segment_bytes(1 << 20)
}

fn submit(store: &Store, batch: MixedBatch) {
    store.submit(batch, Ack::Ordered).expect("accepted").wait().expect("appended");
}

/// Events of every kind, whose names are small numbers.
fn fill(store: &Store, names: u8, count: u8) {
    for round in 0..count {
        let mut batch = MixedBatch::new();
        let (a, b) = (round.wrapping_mul(37) % names, round.wrapping_mul(11) % names);
        let stream = |number: u8| format!("stream-{}", number % 3);
        let name = |number: u8| format!("e{number}");
        let payload = vec![round; usize::from(a % 5) * 7];
        let mut push = |stream: String, event: NewEvent| {
            batch.push(stream, &event).expect("within the limits");
        };
        push(stream(a), Event::new(&*payload).id(name(a)).parents([name(b)]));
        push(stream(b), Event::new(&*payload).id(name(b)).parents::<&str>([]));
        push(stream(a), Event::new(&*payload).id(name(a)).parents([name(a), name(b), name(names)]));
        push(stream(b), Event::new("chained"));
        push(stream(b), Event::new("tied").with_previous());
        push(stream(a), Event::new("place").if_local(u64::from(round)));
        push(stream(a), Event::new("required").parents([name(b)]).require_parents());
        if round % 8 == 7 {
            batch.push_seal(stream(a)).expect("within the limits");
            batch.push(stream(a), &Event::new("sealed out")).expect("within the limits");
            batch.push_unseal(stream(a)).expect("within the limits");
            batch.push_seal("sealed").expect("within the limits");
        }
        submit(store, batch);
    }
}

fn open(disk: &Disk) -> Store {
    options().open_on(disk.shared()).expect("opens")
}

impl Bases {
    /// The stores, made on the first call.
    pub fn get() -> &'static Self {
        static BASES: OnceLock<Bases> = OnceLock::new();
        BASES.get_or_init(Bases::make)
    }

    fn make() -> Self {
        let mut images = Vec::new();
        let mut written = HashSet::new();
        let mut add = |disk: &Disk| {
            let mut image = Image::of(disk);
            image.shorten();
            written.extend(events(&image.disk(9)));
            images.push(image);
        };
        // Of one segment: killed early, closed with one run, and closed with several.
        let disk = Disk::new(1);
        let store = open(&disk);
        fill(&store, 20, 6);
        add(&disk);
        store.close().expect("closes");
        add(&disk);
        let store = open(&disk);
        for _ in 0..3 {
            fill(&store, 30, 6);
            store.checkpoint().expect("a checkpoint");
        }
        store.close().expect("closes");
        add(&disk);
        // Killed with a tail that no checkpoint has, and opened again, so that there are more segments.
        let store = open(&disk);
        fill(&store, 40, 6);
        let killed = Image::of(&disk).disk(2);
        store.close().expect("closes");
        let store = open(&killed);
        fill(&store, 40, 4);
        add(&killed);
        let killed_again = Image::of(&killed).disk(3);
        store.close().expect("closes");
        let store = open(&killed_again);
        fill(&store, 40, 2);
        store.close().expect("closes");
        add(&killed_again);
        // Another store.
        let disk = Disk::new(4);
        let store = open(&disk);
        fill(&store, 10, 8);
        store.close().expect("closes");
        add(&disk);
        Bases { images, written }
    }

    /// Two of the stores.
    fn pick(&self, input: &mut Input<'_>) -> (Image, &Image) {
        let base = self.images[input.below(self.images.len())].clone();
        (base, &self.images[input.below(self.images.len())])
    }
}

/// All events of a log, whatever became of them.
fn events(storage: &dyn Storage) -> Vec<Written> {
    let log = LogReader::open(storage, None).expect("opens");
    let tag: String = log.store_id[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let records =
        log.segments.iter().flat_map(|segment| segment.walk(segment.first(), segment.end()));
    let written = records.map(|record| {
        let record = record.expect("no damage");
        let id = match record.given_id() {
            [] => format!("{tag}-{:x}", record.position()).into_bytes(),
            given => given.to_vec(),
        };
        (record.position(), record.stream().to_vec(), id, record.payload().to_vec())
    });
    written.collect()
}

/// Looks at everything that a store shows.
fn look(store: &Store, see: &mut dyn FnMut(Written)) {
    let mut see = |event: &Event| {
        let _ = event.parents();
        let (stream, id) = (event.stream().to_vec(), event.id().to_vec());
        let _ = store.get(&stream, &id);
        see((event.position(), stream, id, event.payload().to_vec()));
    };
    if let Ok(read) = store.read(..) {
        read.flatten().for_each(|event| see(&event));
    }
    for info in store.streams().unwrap_or_default() {
        let _ = store.tips(&info.name);
        let Ok(Some(view)) = store.stream(&info.name) else { continue };
        let from = view.len() / 2;
        for range in [0..view.len(), from..view.len(), view.len().saturating_sub(1)..u64::MAX] {
            view.read(range).into_iter().flatten().flatten().for_each(|event| see(&event));
        }
    }
    for event in store.held().unwrap_or_default() {
        let _ = store.why_held(&event.stream, &event.id);
    }
}

/// Nothing takes this long.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Waits until everything is ordered, or the store has stopped; says whether all is.
fn settle(store: &Store) -> bool {
    let settled = match store.wait_committed_timeout(store.durable_end(), STUCK_AFTER) {
        Ok(true) => true,
        Ok(false) => panic!("the order hangs"),
        Err(_) => false,
    };
    check_cause(store);
    settled
}

fn check_cause(store: &Store) {
    if let Some(Cause::Panic { thread, message }) = store.cause() {
        panic!("{thread} panicked: {message}");
    }
}

fn verified(storage: Arc<dyn Storage>) -> Result<VerifyReport, ReadError> {
    verify_on(storage, &|_| ControlFlow::Continue(()))
}

/// Everything that only reads.
fn read(image: &Image, written: Option<&HashSet<Written>>) {
    let disk = image.disk(5);
    let _ = verified(disk.shared());
    if let Ok(store) = options().open_read_only_on(disk.shared()) {
        settle(&store);
        look(&store, &mut |event| {
            if let Some(written) = written {
                assert!(written.contains(&event), "nobody has written {event:?}");
            }
        });
        check_cause(&store);
        let _ = store.close();
    }
    assert!(image.is_in(&disk), "a reader has changed something");
}

/// Opens for writing, looks, goes on, and opens again.
fn write(disk: &Disk, written: Option<&HashSet<Written>>) {
    let Ok(store) = options().open_on(disk.shared()) else { return };
    settle(&store);
    look(&store, &mut |event| {
        if let Some(written) = written {
            assert!(written.contains(&event), "nobody has written {event:?}");
        }
    });
    for round in 0..3 {
        let ack = AppenderOptions::new().ack(if round == 0 { Ack::Durable } else { Ack::Ordered });
        let Ok(appender) = store.appender_with("stream-1", ack) else { break };
        let event = Event::new("later").id(format!("later-{round}"));
        let event = if round == 1 { event.parents(["e1", "e40"]) } else { event };
        if let Ok(ticket) = appender.submit(thalweg::Batch::from([event])) {
            let mut ticket = ticket;
            assert!(ticket.wait_timeout(STUCK_AFTER).is_some(), "an append hangs");
        }
        let _ = store.checkpoint();
    }
    look(&store, &mut |_| {});
    check_cause(&store);
    let _ = store.close();
    check_cause(&store);
    drop(store);
    if let Ok(store) = options().open_on(disk.shared()) {
        settle(&store);
        look(&store, &mut |_| {});
        let _ = store.close();
        check_cause(&store);
    }
}

/// Throws the derived files away, as a rebuild does. What the pipeline then makes of the log, hostile or
/// not, is what the serial machine makes of it.
fn rebuild(image: &Image) {
    let mut image = image.clone();
    image.0.retain(|name, _| name.starts_with("segment-"));
    let disk = image.disk(6);
    let Ok(store) = options().open_on(disk.shared()) else { return };
    let settled = settle(&store);
    look(&store, &mut |_| {});
    let closed = store.close();
    check_cause(&store);
    drop(store);
    if settled && closed.is_ok() {
        let report = verified(disk.shared()).expect("verifies what has just been written");
        assert_eq!(report.problems, [], "after a rebuild");
    }
}

/// A store with any of its files changed, and what was ever written if its checksums were left alone.
pub fn mutated(bytes: &[u8]) -> (Image, Option<&'static HashSet<Written>>) {
    let mut input = Input(bytes);
    let bases = Bases::get();
    let (mut image, donor) = bases.pick(&mut input);
    let fixed = !input.once_in(3);
    image.mutate(&[""], donor, &mut input);
    if fixed {
        image.fix_up();
        return (image, None);
    }
    (image, Some(&bases.written))
}

/// Any file of a store, with checksums that match or do not.
pub fn store(bytes: &[u8]) {
    let (image, written) = mutated(bytes);
    read(&image, written);
    write(&image.disk(7), written);
    rebuild(&image);
}

/// As [`store`], in a directory, which is rebuilt as the command line does it.
pub fn directory(bytes: &[u8], path: &Path) {
    let (image, written) = mutated(bytes);
    for (name, file) in &image.0 {
        std::fs::write(path.join(name), &file.used).expect("writes");
        let file_at = std::fs::File::options().write(true).open(path.join(name)).expect("opens");
        file_at.set_len(file.len).expect("has a length");
    }
    let go_on = |_| ControlFlow::Continue(());
    let _ = verify(path, &go_on);
    match rebuild_at(path, options(), &|_| ControlFlow::Continue(())) {
        Ok(report) if report.corrupt > 0 => {
            let names = std::fs::read_dir(path).expect("lists").map(|entry| entry.expect("lists"));
            let names: HashSet<_> = names.map(|entry| entry.file_name()).collect();
            let is_kept = |name: &String| names.contains(std::ffi::OsStr::new(name));
            assert!(image.0.keys().all(is_kept), "evidence is thrown away");
        }
        Ok(_) => {
            assert_eq!(verify(path, &go_on).expect("verifies").problems, [], "after a rebuild")
        }
        Err(OpenError::Poisoned(Cause::Panic { thread, message })) => {
            panic!("{thread} panicked: {message}")
        }
        Err(_) => {}
    }
    if let Ok(store) = options().open(path) {
        settle(&store);
        look(&store, &mut |event| {
            if let Some(written) = written {
                assert!(written.contains(&event), "nobody has written {event:?}");
            }
        });
        let _ = store.close();
        check_cause(&store);
    }
}

fn derived(bytes: &[u8], prefix: &str) {
    let mut input = Input(bytes);
    let (mut image, donor) = Bases::get().pick(&mut input);
    image.mutate(&[prefix], donor, &mut input);
    image.fix_up();
    read(&image, None);
    write(&image.disk(7), None);
}

/// A hostile checkpoint whose checksum matches.
pub fn checkpoint(bytes: &[u8]) {
    derived(bytes, "checkpoint");
}

/// A hostile order log or tips log whose checksums match.
pub fn order_log(bytes: &[u8]) {
    derived(
        bytes,
        if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { "tips-" } else { "order-" },
    );
}

/// Hostile runs whose checksums match.
pub fn run(bytes: &[u8]) {
    derived(bytes, "run-");
}

/// Hostile headers of segments whose checksums match.
pub fn segment_header(bytes: &[u8]) {
    let mut input = Input(bytes);
    let bases = Bases::get();
    let (mut image, donor) = bases.pick(&mut input);
    let mut pages = image.clone();
    pages.0.retain(|name, _| name.starts_with("segment-"));
    pages.0.values_mut().for_each(|file| file.used.truncate(80));
    let names: Vec<String> = pages.0.keys().cloned().collect();
    pages.mutate(&["segment-"], donor, &mut input);
    for (name, page) in pages.0 {
        match image.0.get_mut(&name) {
            Some(file) if names.contains(&name) => {
                let len = page.used.len().min(80);
                file.used[..len].copy_from_slice(&page.used[..len]);
                file.len = page.len.max(file.used.len() as u64);
            }
            _ => drop(image.0.insert(name, page)),
        }
    }
    // The frames stay as they are: whether they follow from the header is the question.
    for file in image.0.values_mut().filter(|file| file.used.starts_with(b"THALWEGS")) {
        if file.used.len() >= 4096 {
            super::fix_up::segment_header(&mut file.used);
        }
    }
    read(&image, None);
    write(&image.disk(7), None);
}

/// A log of one segment that has exactly these bytes behind its header page.
pub fn log(frames: &[u8]) {
    let mut image = Bases::get().images[0].clone();
    image.0.retain(|name, _| name.starts_with("segment-"));
    let file = image.0.values_mut().next().expect("a segment");
    file.used.resize(4096, 0);
    file.used.extend_from_slice(frames);
    image.shorten();
    read(&image, None);
    write(&image.disk(7), None);
    rebuild(&image);
}

/// Base and salt of the segment that [`log`] makes.
pub fn log_salt() -> u64 {
    let image = &Bases::get().images[0];
    let file = image.0.values().find(|file| file.used.starts_with(b"THALWEGS")).expect("a segment");
    u64::from_le_bytes(file.used[56..64].try_into().expect("eight bytes"))
}
