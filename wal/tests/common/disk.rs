//! A simulated disk: a device below, a cache above, and the operations that go from one to the other.
//! It remembers what is synced, and any operation can fail, or be the last one.
//!
//! The tests of the log and of the engine share it, so both mean the same by a power loss.
//!
//! # What a crash may leave
//!
//! Of a page that was written since its file was synced, each sector comes back as it was at any of
//! these writes or before them, in any order over pages and files; or with noise in the bytes that
//! were written, and only there. A file that was never synced may have lost its length. Names that were
//! made, changed or removed since the directory was synced are kept or lost one by one, or from
//! some moment on. Nothing else changes: what is synced stays.
//!
//! # What a failed sync leaves
//!
//! As the common kernels do it: the pages stay readable, count as clean, are not written by the next
//! sync, which succeeds, and are gone after a power loss. Whoever had the file open when it failed hears of it,
//! once, also if it was somebody else's sync. On a disk with a seed, a part of them has
//! arrived. Whatever is written later into one of these pages takes the rest of the page along.
//! [`Disk::drop_caches`] makes the cache forget what the device does not have.
//!
//! # Maps
//!
//! They show the cache, as the operating system's do. Reading a sector that the device cannot read
//! ends a process that has mapped it; here the map shows noise in its place, so that a byte that is
//! used unchecked does not pass for a good one.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses another part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use thalweg_wal::storage::{
    Access, LockAttempt, Map, MemoryStorage, Storage, StorageFile, read_exact_at, read_file,
    write_all_at,
};

/// A piece that is written or lost as a whole.
const SECTOR: usize = 512;
/// What the cache writes at a time, with whatever it shows in it.
const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// What happens at an operation. One that the fault cannot happen to passes it on to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The machine stops at this operation: it and all later ones fail.
    Stop,
    /// This operation fails, the later ones work.
    Error,
    /// There is no room for it.
    Full,
    /// A write or a read comes to less than it was asked for.
    Short,
    /// A write or a read is interrupted before it has begun.
    Interrupted,
}

impl Fault {
    fn can_happen_to(self, op: Op) -> bool {
        match self {
            Fault::Stop | Fault::Error => true,
            Fault::Full => matches!(op, Op::Create | Op::Write | Op::Reserve | Op::Sync),
            Fault::Short | Fault::Interrupted => matches!(op, Op::Write | Op::Read),
        }
    }
}

/// What is done to a disk. All but the last three change something, and are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    Create,
    Write,
    Reserve,
    Sync,
    Rename,
    Remove,
    SyncDir,
    /// Read some bytes.
    Read,
    /// Open or map.
    Look,
    /// List the directory.
    List,
}

impl Op {
    fn changes_nothing(self) -> bool {
        matches!(self, Op::Read | Op::Look | Op::List)
    }
}

/// Decisions without a pattern, the same for the same seed (SplitMix64, Sebastiano Vigna).
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let noise = self.next().to_le_bytes();
            chunk.copy_from_slice(&noise[..chunk.len()]);
        }
    }
}

/// A directory on the disk. Clones share everything.
#[derive(Debug, Clone)]
pub struct Disk {
    /// What reads and maps show.
    cache: MemoryStorage,
    state: Arc<Mutex<State>>,
    /// Called before every operation but a sync, outside of any lock: a place where other threads may
    /// come between. (A mapped file is locked while it is synced.)
    between: fn(),
}

#[derive(Debug)]
struct State {
    /// Files by number.
    files: BTreeMap<u64, Inode>,
    /// Names now, and names that survive.
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// What leads from the one to the other.
    unsynced_names: Vec<NameChange>,
    made: u64,
    /// Writes so far: which came first.
    writes: u64,
    /// Operations so far that change something, and of which kinds.
    ops: u64,
    counts: BTreeMap<Op, u64>,
    /// Operations so far that do not.
    reads: u64,
    faults: Faults,
    read_faults: Faults,
    /// At the operation of one kind with this number.
    kind_faults: BTreeMap<(Op, u64), Fault>,
    /// Operations during which there is no room.
    full: Range<u64>,
    stopped: bool,
    /// Faults that have happened.
    happened: Vec<(Op, String, Fault)>,
    /// What a failed operation leaves half done; without a seed, nothing or all as documented.
    dice: Option<Dice>,
    /// What the store takes for chance.
    random: Dice,
    /// Over everything that was done, in its order.
    fingerprint: u64,
}

type Faults = BTreeMap<u64, Fault>;

/// A file: what the device has, and what the next sync brings there.
#[derive(Debug, Clone, Default)]
struct Inode {
    /// Its newest name.
    name: String,
    len: u64,
    /// Pages that are not all zeros.
    device: BTreeMap<u64, Arc<[u8; PAGE]>>,
    /// By page, from the oldest write on.
    dirty: BTreeMap<u64, Vec<Version>>,
    /// Pages that have their place on the device.
    allocated: BTreeSet<u64>,
    /// Was ever synced: if not, its length may be lost with its bytes.
    synced: bool,
    /// Sectors that the device cannot read.
    bad: BTreeSet<u64>,
    /// Syncs that have failed.
    sync_errors: u64,
}

/// A page after a write.
#[derive(Debug, Clone)]
struct Version {
    write: u64,
    image: Arc<[u8; PAGE]>,
    /// What was written; the rest of the page came along.
    written: Range<usize>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(String, u64),
    Rename(String, String, u64),
    Unlink(String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Link(name, number) => drop(names.insert(name.clone(), *number)),
            NameChange::Rename(from, to, number) => {
                if names.get(from) == Some(number) {
                    names.remove(from);
                }
                names.insert(to.clone(), *number);
            }
            NameChange::Unlink(name) => drop(names.remove(name)),
        }
    }
}

/// What becomes of what was not synced.
enum Survival<'a> {
    /// Writes up to this one arrive, in their order, and names as far as they got.
    Before(u64),
    /// Each sector, and each file's length, as the coin says; all names or none.
    Coin(&'a mut dyn FnMut() -> bool),
    /// Each piece of so many bytes arrives `often` times in eight, and else turns into noise once in
    /// `noise` times, if that is not 0.
    Pieces { dice: Dice, len: usize, often: u64, noise: u64 },
}

impl Inode {
    fn page(&self, page: u64) -> &[u8; PAGE] {
        self.device.get(&page).map_or(&ZEROS, |page| page)
    }

    /// A page as a sync would bring it to the device.
    fn newest(&self, page: u64) -> &[u8; PAGE] {
        let versions = self.dirty.get(&page);
        versions.and_then(|versions| versions.last()).map_or(self.page(page), |last| &last.image)
    }

    fn put_page(&mut self, page: u64, image: Arc<[u8; PAGE]>) {
        if *image == ZEROS {
            self.device.remove(&page);
        } else {
            self.device.insert(page, image);
        }
    }

    fn flush(&mut self) {
        for (page, versions) in std::mem::take(&mut self.dirty) {
            if let Some(last) = versions.into_iter().next_back() {
                self.put_page(page, last.image);
            }
        }
        self.synced = true;
    }

    /// Brings to the device what survives of what was not synced, and forgets the rest.
    fn settle(&mut self, survival: &mut Survival<'_>) {
        for (page, versions) in std::mem::take(&mut self.dirty) {
            let mut bytes = *self.page(page);
            for version in &versions {
                survival.settle(&mut bytes, version);
            }
            self.put_page(page, Arc::new(bytes));
        }
        if !self.synced && !survival.keeps_length() {
            self.len = 0;
            self.device.clear();
        }
    }

    fn is_bad(&self, offset: u64, len: usize) -> bool {
        let sector = SECTOR as u64;
        self.bad.range(offset / sector..(offset + len as u64).div_ceil(sector)).next().is_some()
    }
}

impl Survival<'_> {
    fn settle(&mut self, bytes: &mut [u8; PAGE], version: &Version) {
        let piece_len = match self {
            Survival::Before(_) => PAGE,
            Survival::Coin(_) => SECTOR,
            Survival::Pieces { len, .. } => *len,
        };
        for start in (0..PAGE).step_by(piece_len) {
            let piece = start..start + piece_len;
            if bytes[piece.clone()] == version.image[piece.clone()] {
                continue;
            }
            let (keeps, noise) = match self {
                Survival::Before(write) => (version.write < *write, None),
                Survival::Coin(coin) => (coin(), None),
                Survival::Pieces { dice, often, noise, .. } => {
                    let keeps = dice.below(8) < *often;
                    let is_noise = *noise > 0 && dice.once_in(*noise);
                    (keeps, is_noise.then_some(dice))
                }
            };
            if let Some(dice) = noise {
                let written =
                    version.written.start.max(piece.start)..version.written.end.min(piece.end);
                if !written.is_empty() {
                    dice.fill(&mut bytes[written]);
                }
            } else if keeps {
                bytes[piece.clone()].copy_from_slice(&version.image[piece]);
            }
        }
    }

    fn keeps_length(&mut self) -> bool {
        match self {
            Survival::Before(write) => *write > 0,
            Survival::Coin(coin) => coin(),
            Survival::Pieces { dice, .. } => !dice.once_in(3),
        }
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk {
    pub fn new() -> Self {
        Self::over(State::new(None))
    }

    /// A disk on which failed operations may be half done, as the seed has it.
    pub fn with_seed(seed: u64) -> Self {
        Self::over(State::new(Some(Dice(seed))))
    }

    fn over(state: State) -> Self {
        let disk = Disk {
            cache: MemoryStorage::new(),
            state: Arc::new(Mutex::new(state)),
            between: || {},
        };
        disk.fill_cache();
        disk
    }

    /// The same disk, with something to call before every operation.
    #[must_use]
    pub fn calling(self, between: fn()) -> Self {
        Disk { between, ..self }
    }

    /// How many operations there were that change something.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// How many operations of this kind there were.
    pub fn count(&self, op: Op) -> u64 {
        self.state().counts.get(&op).copied().unwrap_or(0)
    }

    /// How many operations there were that change nothing.
    pub fn reads(&self) -> u64 {
        self.state().reads
    }

    /// Adds a fault at an operation that changes something, counted from 1.
    pub fn fail_at(&self, op: u64, fault: Fault) {
        self.state().faults.insert(op, fault);
    }

    /// Adds a fault at an operation that changes nothing, counted from 1.
    pub fn fail_read_at(&self, read: u64, fault: Fault) {
        self.state().read_faults.insert(read, fault);
    }

    /// Adds a fault at the operation of a kind that comes after `skip` others of it.
    pub fn fail_next(&self, op: Op, skip: u64, fault: Fault) {
        assert!(fault.can_happen_to(op), "{fault:?} never happens to {op:?}");
        let mut state = self.state();
        let at = state.counts.get(&op).copied().unwrap_or(0) + 1 + skip;
        state.kind_faults.insert((op, at), fault);
    }

    /// There is no room from one operation to before another.
    pub fn full_during(&self, ops: Range<u64>) {
        self.state().full = ops;
    }

    /// The process that has stopped starts again: the machine has not, so the cache is what it was.
    pub fn restart(&self) {
        self.heal();
        let mut state = self.state();
        state.stopped = false;
        state.happened.clear();
    }

    pub fn will_be_full(&self) -> bool {
        !self.state().full.is_empty()
    }

    /// Takes back all faults that have not happened.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.read_faults.clear();
        state.kind_faults.clear();
        state.full = 0..0;
    }

    /// The faults that have happened: at what, to which file.
    pub fn happened(&self) -> Vec<(Op, String, Fault)> {
        self.state().happened.clone()
    }

    pub fn has_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Differs, but for chance, if anything was done in another order.
    pub fn fingerprint(&self) -> u64 {
        self.state().fingerprint
    }

    /// The disk after a power loss; of what was not synced, `keeps` says for each sector whether it
    /// arrived.
    pub fn power_loss(&self, mut keeps: impl FnMut() -> bool) -> Disk {
        self.after(&mut Survival::Coin(&mut keeps), 0)
    }

    /// The disk after a power loss, in one of the states that it may be in, as the seed has it.
    pub fn crash(&self, seed: u64) -> Disk {
        let mut dice = Dice(seed);
        let writes = self.state().writes;
        let mut survival = match dice.below(8) {
            0 => Survival::Before(0),
            1 => Survival::Before(u64::MAX),
            2 => Survival::Before(dice.below(writes + 1)),
            kind => Survival::Pieces {
                len: if kind < 6 { SECTOR } else { PAGE },
                often: dice.below(8),
                noise: [0, 0, 4, 32][dice.below(4) as usize],
                dice: Dice(dice.next()),
            },
        };
        self.after(&mut survival, dice.next())
    }

    fn after(&self, survival: &mut Survival<'_>, seed: u64) -> Disk {
        let state = self.state();
        let mut files = state.files.clone();
        files.values_mut().for_each(|file| file.settle(survival));
        let names = match survival {
            // In order, and as far as they got.
            Survival::Coin(coin) => {
                if coin() {
                    state.names.clone()
                } else {
                    state.durable_names.clone()
                }
            }
            Survival::Before(0) => state.durable_names.clone(),
            Survival::Before(u64::MAX) => state.names.clone(),
            Survival::Before(_) | Survival::Pieces { .. } => state.surviving_names(&mut Dice(seed)),
        };
        files.retain(|number, file| {
            file.synced = true;
            names.values().any(|named| named == number)
        });
        for (name, number) in &names {
            let file = files.get_mut(number).expect("every name has a file");
            file.name = name.clone();
        }
        let after = State {
            files,
            durable_names: names.clone(),
            names,
            made: state.made,
            random: state.random.clone(),
            fingerprint: state.fingerprint,
            ..State::new(state.dice.as_ref().map(|_| Dice(seed)))
        };
        drop(state);
        Disk::over(after).calling(self.between)
    }

    /// Makes the cache show what the device has, and what is on its way there. Maps that there are go on
    /// showing what they showed.
    pub fn drop_caches(&self) {
        for name in self.cache.list().expect("memory lists") {
            self.cache.remove(&name).expect("memory removes");
        }
        self.fill_cache();
    }

    fn fill_cache(&self) {
        let mut state = self.state();
        let State { files, names, random, .. } = &mut *state;
        for (name, number) in names {
            let file = &files[number];
            let cached = self.cache.create(name, file.len).expect("a new name");
            let pages: BTreeSet<u64> =
                file.device.keys().chain(file.dirty.keys()).copied().collect();
            for page in pages {
                let offset = page * PAGE as u64;
                let len = (file.len - offset).min(PAGE as u64) as usize;
                write_all_at(&*cached, &file.newest(page)[..len], offset).expect("inside the file");
            }
            for sector in &file.bad {
                let offset = sector * SECTOR as u64;
                let mut noise = [0; SECTOR];
                random.clone().fill(&mut noise);
                let len = file.len.saturating_sub(offset).min(SECTOR as u64) as usize;
                write_all_at(&*cached, &noise[..len], offset).expect("inside the file");
            }
        }
    }

    /// Turns one bit of a file around, on the device and in the cache.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) {
        let mut state = self.state();
        let number = state.names[name];
        let file = state.files.get_mut(&number).expect("every name has a file");
        assert!(file.dirty.is_empty() && offset < file.len, "a byte at rest");
        let mut page = *file.page(offset / PAGE as u64);
        page[offset as usize % PAGE] ^= 1 << bit;
        file.put_page(offset / PAGE as u64, Arc::new(page));
        let cached = self.cache.open(name, Access::Write).expect("every name is in the cache");
        write_all_at(&*cached, &page[offset as usize % PAGE..][..1], offset).expect("inside");
    }

    /// Makes the sector at `offset` of a file one that the device cannot read, until it is written.
    pub fn spoil(&self, name: &str, offset: u64) {
        let mut state = self.state();
        let number = state.names[name];
        let file = state.files.get_mut(&number).expect("every name has a file");
        file.bad.insert(offset / SECTOR as u64);
        drop(state);
        self.drop_caches();
    }

    /// Makes all sectors readable again.
    pub fn mend(&self) {
        self.state().files.values_mut().for_each(|file| file.bad.clear());
        self.drop_caches();
    }

    /// The names of all files, sorted.
    pub fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// The bytes of a file that are not zeros, by page.
    pub fn used(&self, name: &str) -> Vec<u64> {
        let state = self.state();
        let file = &state.files[&state.names[name]];
        file.device.keys().chain(file.dirty.keys()).map(|page| page * PAGE as u64).collect()
    }

    /// The files as the cache shows them.
    pub fn cached(&self) -> MemoryStorage {
        self.cache.fork()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while locked")
    }

    /// Counts an operation, and says what happens to it.
    fn step(&self, op: Op, name: &str) -> (MutexGuard<'_, State>, Option<Fault>) {
        if op != Op::Sync {
            (self.between)();
        }
        let mut state = self.state();
        let fault = state.step(op, name);
        (state, fault)
    }

    /// The same where nothing can be half done.
    fn whole_step(&self, op: Op, name: &str) -> io::Result<MutexGuard<'_, State>> {
        match self.step(op, name) {
            (state, None) => Ok(state),
            (_, Some(fault)) => Err(error_of(fault)),
        }
    }

    /// Writes to the cache, and notes what has to go to the device.
    fn write(
        &self,
        state: &mut State,
        number: u64,
        cached: &dyn StorageFile,
        buf: &[u8],
        offset: u64,
    ) -> io::Result<()> {
        write_all_at(cached, buf, offset)?;
        state.writes += 1;
        let write = state.writes;
        let file = state.files.get_mut(&number).expect("an open file has a number");
        let end = offset + buf.len() as u64;
        for page in offset / PAGE as u64..end.div_ceil(PAGE as u64) {
            file.allocated.insert(page);
            let start = page * PAGE as u64;
            let mut image = [0; PAGE];
            let len = (file.len - start).min(PAGE as u64) as usize;
            read_exact_at(cached, &mut image[..len], start)?;
            if file.dirty.contains_key(&page) || image != *file.page(page) {
                let written =
                    offset.saturating_sub(start) as usize..(end - start).min(PAGE as u64) as usize;
                let version = Version { write, image: Arc::new(image), written };
                file.dirty.entry(page).or_default().push(version);
            }
        }
        let sector = SECTOR as u64;
        file.bad.retain(|bad| !(offset / sector..end.div_ceil(sector)).contains(bad));
        Ok(())
    }
}

impl State {
    fn new(dice: Option<Dice>) -> Self {
        State {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            made: 0,
            writes: 0,
            ops: 0,
            counts: BTreeMap::new(),
            reads: 0,
            faults: Faults::new(),
            read_faults: Faults::new(),
            kind_faults: BTreeMap::new(),
            full: 0..0,
            stopped: false,
            happened: Vec::new(),
            random: Dice(dice.as_ref().map_or(0, |dice| dice.0)),
            dice,
            fingerprint: 0,
        }
    }

    fn step(&mut self, op: Op, name: &str) -> Option<Fault> {
        let count = self.counts.entry(op).or_default();
        *count += 1;
        let of_its_kind = self.kind_faults.remove(&(op, *count));
        let (now, faults) = match op {
            _ if op.changes_nothing() => (&mut self.reads, &mut self.read_faults),
            _ => (&mut self.ops, &mut self.faults),
        };
        *now += 1;
        let due = faults.range(..=*now).find(|(_, fault)| fault.can_happen_to(op));
        let due = due.map(|(&at, &fault)| (at, fault));
        if let Some((at, _)) = due {
            faults.remove(&at);
        }
        let due = due.map(|(_, fault)| fault).or(of_its_kind);
        if let Some(fault) = due {
            self.happened.push((op, name.to_owned(), fault));
            self.stopped |= fault == Fault::Stop;
        }
        self.note(op as u64, name.as_bytes());
        if self.stopped && !op.changes_nothing() {
            return Some(Fault::Stop);
        }
        due
    }

    fn note(&mut self, number: u64, bytes: &[u8]) {
        let words = bytes
            .chunks(8)
            .map(|chunk| chunk.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)));
        for word in std::iter::once(number).chain(words) {
            self.fingerprint = Dice(self.fingerprint ^ word).next();
        }
    }

    /// Whether there is no room for an operation that needs some.
    fn is_full(&mut self, op: Op, name: &str) -> bool {
        let is_full = self.full.contains(&self.ops);
        if is_full {
            self.happened.push((op, name.to_owned(), Fault::Full));
        }
        is_full
    }

    fn chance(&mut self, times: u64) -> bool {
        self.dice.as_mut().is_some_and(|dice| dice.once_in(times))
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn surviving_names(&self, dice: &mut Dice) -> BTreeMap<String, u64> {
        let mut names = self.durable_names.clone();
        let in_order = dice.once_in(2);
        for change in &self.unsynced_names {
            match (dice.once_in(2), in_order) {
                (true, _) => change.apply(&mut names),
                (false, true) => break,
                (false, false) => {}
            }
        }
        names
    }

    /// What a failed sync of a file leaves: see the top.
    fn fail_sync(&mut self, number: u64) {
        let file = self.files.get_mut(&number).expect("an open file has a number");
        file.sync_errors += 1;
        let often = self.dice.as_mut().map_or(0, |dice| dice.below(9));
        let dice = Dice(self.dice.as_mut().map_or(0, Dice::next));
        let mut survival = Survival::Pieces { dice, len: SECTOR, often, noise: 0 };
        for (page, versions) in std::mem::take(&mut file.dirty) {
            let mut bytes = *file.page(page);
            versions.iter().for_each(|version| survival.settle(&mut bytes, version));
            file.put_page(page, Arc::new(bytes));
        }
    }
}

fn error_of(fault: Fault) -> io::Error {
    match fault {
        Fault::Stop => io::Error::other("the machine has stopped"),
        Fault::Error => io::Error::other("injected"),
        Fault::Full => io::ErrorKind::StorageFull.into(),
        Fault::Interrupted => io::ErrorKind::Interrupted.into(),
        Fault::Short => unreachable!("a short operation is no error"),
    }
}

impl Storage for Disk {
    fn describe(&self, name: &str) -> String {
        format!("disk:{name}")
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>> {
        let mut state = self.whole_step(Op::Create, name)?;
        if state.is_full(Op::Create, name) {
            return Err(error_of(Fault::Full));
        }
        let inner = self.cache.create(name, len)?;
        state.made += 1;
        let number = state.made;
        state.files.insert(number, Inode { name: name.to_owned(), len, ..Inode::default() });
        state.change_names(NameChange::Link(name.to_owned(), number));
        Ok(Arc::new(DiskFile::new(self, &state, number, inner)))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        let state = self.whole_step(Op::Look, name)?;
        let inner = self.cache.open(name, access)?;
        let number = state.names[name];
        Ok(Arc::new(DiskFile::new(self, &state, number, inner)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let _state = self.whole_step(Op::List, "")?;
        self.cache.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut state, fault) = self.step(Op::Rename, from);
        if fault.is_none() || fault == Some(Fault::Stop) && state.chance(2) {
            self.cache.rename(from, to)?;
            let number = state.names[from];
            let file = state.files.get_mut(&number).expect("every name has a file");
            file.name = to.to_owned();
            state.change_names(NameChange::Rename(from.to_owned(), to.to_owned(), number));
        }
        fault.map_or(Ok(()), |fault| Err(error_of(fault)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if self.cache.open(name, Access::Read).is_err() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (mut state, fault) = self.step(Op::Remove, name);
        if fault.is_none() || fault == Some(Fault::Stop) && state.chance(2) {
            self.cache.remove(name)?;
            state.change_names(NameChange::Unlink(name.to_owned()));
        }
        fault.map_or(Ok(()), |fault| Err(error_of(fault)))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let (mut state, fault) = self.step(Op::SyncDir, "");
        match fault {
            None => {
                state.durable_names = state.names.clone();
                state.unsynced_names.clear();
                Ok(())
            }
            Some(fault) => {
                if fault != Fault::Stop
                    && let Some(mut dice) = state.dice.clone()
                {
                    // Some of them got there, and the others will not.
                    state.durable_names = state.surviving_names(&mut dice);
                    state.unsynced_names.clear();
                    state.dice = Some(dice);
                }
                Err(error_of(fault))
            }
        }
    }

    fn try_lock(&self, name: &str, holder: &str) -> io::Result<LockAttempt> {
        self.cache.try_lock(name, holder)
    }

    fn random(&self) -> u64 {
        self.state().random.next()
    }
}

#[derive(Debug)]
struct DiskFile {
    disk: Disk,
    number: u64,
    inner: Arc<dyn StorageFile>,
    /// Failed syncs of the file that this handle has heard of.
    heard: AtomicU64,
}

impl DiskFile {
    fn new(disk: &Disk, state: &State, number: u64, inner: Arc<dyn StorageFile>) -> Self {
        let heard = AtomicU64::new(state.files[&number].sync_errors);
        DiskFile { disk: disk.clone(), number, inner, heard }
    }

    fn name(&self) -> String {
        self.disk.state().files[&self.number].name.clone()
    }

    /// How many of the bytes a read is to read.
    fn read_len(&self, len: usize, offset: u64) -> io::Result<(MutexGuard<'_, State>, usize)> {
        let (state, fault) = self.disk.step(Op::Read, &self.name());
        match fault {
            None if state.files[&self.number].is_bad(offset, len) => {
                Err(io::Error::other("the device cannot read a sector"))
            }
            None => Ok((state, len)),
            Some(Fault::Short) => Ok((state, len.div_ceil(2))),
            Some(fault) => Err(error_of(fault)),
        }
    }
}

impl StorageFile for DiskFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let (_state, len) = self.read_len(buf.len(), offset)?;
        self.inner.read_at(&mut buf[..len], offset)
    }

    fn read_device_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let (state, len) = self.read_len(buf.len(), offset)?;
        let file = &state.files[&self.number];
        let len = file.len.saturating_sub(offset).min(len as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let in_page = at as usize % PAGE;
            let count = (PAGE - in_page).min(len - done);
            // A direct read writes the dirty pages first, which makes nothing durable.
            let page = file.newest(at / PAGE as u64);
            buf[done..done + count].copy_from_slice(&page[in_page..in_page + count]);
            done += count;
        }
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let name = self.name();
        let (mut state, fault) = self.disk.step(Op::Write, &name);
        state.note(offset, &(buf.len() as u64).to_be_bytes());
        let file = &state.files[&self.number];
        let pages = offset / PAGE as u64..(offset + buf.len() as u64).div_ceil(PAGE as u64);
        let needs_room = pages.clone().any(|page| !file.allocated.contains(&page));
        let fault =
            fault.or((needs_room && state.is_full(Op::Write, &name)).then_some(Fault::Full));
        let mut write = |buf| self.disk.write(&mut state, self.number, &*self.inner, buf, offset);
        let half = &buf[..buf.len() / 2];
        match fault {
            None => write(buf).map(|()| buf.len()),
            Some(Fault::Short) if half.is_empty() => write(buf).map(|()| buf.len()),
            Some(Fault::Short) => write(half).map(|()| half.len()),
            Some(Fault::Interrupted) => Err(error_of(Fault::Interrupted)),
            Some(fault @ (Fault::Stop | Fault::Error | Fault::Full)) => {
                // Some of it may have been written all the same.
                write(half)?;
                Err(error_of(fault))
            }
        }
    }

    fn reserve(&self) -> io::Result<bool> {
        let name = self.name();
        let mut state = self.disk.whole_step(Op::Reserve, &name)?;
        if state.is_full(Op::Reserve, &name) {
            return Err(error_of(Fault::Full));
        }
        let can = state.dice.is_some();
        if can {
            let file = state.files.get_mut(&self.number).expect("an open file has a number");
            file.allocated.extend(0..file.len.div_ceil(PAGE as u64));
        }
        Ok(can)
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, fault) = self.disk.step(Op::Sync, &self.name());
        match fault {
            None => {
                let file = state.files.get_mut(&self.number).expect("an open file has a number");
                file.flush();
                if self.heard.swap(file.sync_errors, Ordering::Relaxed) < file.sync_errors {
                    return Err(error_of(Fault::Error));
                }
                Ok(())
            }
            Some(fault) => {
                // What a stopped machine was about to write is still to be decided.
                if fault != Fault::Stop {
                    state.fail_sync(self.number);
                    let sync_errors = state.files[&self.number].sync_errors;
                    self.heard.store(sync_errors, Ordering::Relaxed);
                }
                Err(error_of(fault))
            }
        }
    }

    fn map(&self) -> io::Result<Map> {
        let _state = self.disk.whole_step(Op::Look, &self.name())?;
        self.inner.map()
    }
}

/// All files of a disk with their bytes as the cache shows them.
pub fn files(disk: &Disk) -> Vec<(String, Vec<u8>)> {
    let names = disk.list().expect("lists");
    names
        .into_iter()
        .map(|name| {
            let bytes = read_file(disk, &name).expect("reads");
            (name, bytes)
        })
        .collect()
}
