//! A store as a value: the files of a directory, and ways to harm them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thalweg::storage::{
    Access, LockAttempt, MemoryStorage, Storage, StorageFile, read_exact_at, read_file,
    write_all_at,
};

use super::fix_up;
use super::input::Input;

/// A directory in memory whose random numbers are the same every time.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    inner: MemoryStorage,
    next: Arc<AtomicU64>,
}

impl Disk {
    /// An empty directory. Stores that are made in directories with different seeds are different.
    pub fn new(seed: u64) -> Self {
        Disk { inner: MemoryStorage::new(), next: Arc::new(AtomicU64::new(seed)) }
    }

    /// As an option of the store takes it.
    pub fn shared(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }
}

impl Storage for Disk {
    fn describe(&self, name: &str) -> String {
        self.inner.describe(name)
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn StorageFile>> {
        self.inner.create(name, len)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        self.inner.open(name, access)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }

    fn try_lock(&self, name: &str, holder: &str) -> io::Result<LockAttempt> {
        self.inner.try_lock(name, holder)
    }

    fn random(&self) -> u64 {
        // SplitMix64 (Sebastiano Vigna).
        let state = self.next.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// A file without the zeros at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Length of the file.
    pub len: u64,
    /// The bytes up to the last that is not zero.
    pub used: Vec<u8>,
}

/// Files by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image(pub BTreeMap<String, File>);

impl Image {
    /// What is in a directory now.
    pub fn of(storage: &dyn Storage) -> Self {
        let mut files = BTreeMap::new();
        for name in storage.list().expect("lists") {
            let mut used = read_file(storage, &name).expect("reads");
            let len = used.len() as u64;
            used.truncate(used_len(&used));
            files.insert(name, File { len, used });
        }
        Image(files)
    }

    /// A directory with these files.
    pub fn disk(&self, seed: u64) -> Disk {
        let disk = Disk::new(seed);
        for (name, File { len, used }) in &self.0 {
            let file = disk.create(name, *len).expect("creates");
            write_all_at(&*file, used, 0).expect("writes");
        }
        disk
    }

    /// Whether a directory has these files and no others.
    pub fn is_in(&self, disk: &Disk) -> bool {
        let is_there = |(name, file): (&String, &File)| {
            let found = disk.open(name, Access::Read).expect("opens");
            let mut bytes = vec![0; file.used.len()];
            read_exact_at(&*found, &mut bytes, 0).expect("reads");
            found.len().expect("has a length") == file.len && bytes == file.used
        };
        disk.list().expect("lists").len() == self.0.len() && self.0.iter().all(is_there)
    }

    /// Cuts the zeros at the end of the last segment short, so that looking through them takes no time.
    pub fn shorten(&mut self) {
        let is_segment = |name: &&String| name.starts_with("segment-");
        let name = self.0.keys().rfind(is_segment).cloned().expect("a segment");
        let file = self.0.get_mut(&name).expect("it is there");
        file.len = (file.used.len() as u64 + 8192).next_multiple_of(4096);
        file.used[48..56].copy_from_slice(&file.len.to_le_bytes());
        fix_up::segment_header(&mut file.used);
    }

    /// Makes all checksums match again.
    pub fn fix_up(&mut self) {
        for (name, file) in &mut self.0 {
            let digits = name.get(name.len().saturating_sub(20)..name.len().saturating_sub(4));
            let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
            // An item or a page may end in zeros.
            let whole = (file.used.len() as u64).next_multiple_of(4096).min(file.len);
            file.used.resize(whole as usize, 0);
            fix_up::file(&mut file.used, number.unwrap_or(0));
        }
    }

    /// One change to the file with this name, which another file may lend bytes to.
    fn change(&mut self, name: &str, other: &File, input: &mut Input<'_>) {
        let file = self.0.get_mut(name).expect("it is there");
        let end = file.used.len();
        // Nearly all fields are aligned to four bytes.
        let at = |input: &mut Input<'_>| match input.byte() {
            0..64 => input.below(end),
            64..128 => input.below(end.min(256)),
            _ => input.below(end) & !3,
        };
        match input.byte() % 10 {
            0 => {
                let (at, bit) = (at(input), input.below(8));
                file.used[at..].first_mut().into_iter().for_each(|byte| *byte ^= 1 << bit);
            }
            1 => {
                let (at, byte) = (at(input), input.byte());
                file.used[at..].first_mut().into_iter().for_each(|old| *old = byte);
            }
            2 => number::<2>(&mut file.used, at(input), input),
            3 | 4 => number::<4>(&mut file.used, at(input), input),
            5 | 6 => number::<8>(&mut file.used, at(input), input),
            7 => {
                let (at, len) = (at(input), input.below(600));
                let end = (at + len).min(end);
                file.used[at..end].fill(0);
            }
            8 => {
                let (at, from, len) = (at(input), input.below(other.used.len()), input.below(600));
                let len = len.min(end - at).min(other.used.len() - from);
                file.used[at..at + len].copy_from_slice(&other.used[from..from + len]);
            }
            _ => {
                let (at, from, len) = (at(input), at(input), input.below(600));
                let len = len.min(end - at).min(end - from);
                file.used.copy_within(from..from + len, at);
            }
        }
    }

    /// One change to the files as such.
    fn shuffle(&mut self, names: &[String], donor: &Image, input: &mut Input<'_>) {
        let pick = |input: &mut Input<'_>| names[input.below(names.len())].clone();
        let name = pick(input);
        match input.byte() % 7 {
            0 => drop(self.0.remove(&name)),
            1 => {
                let other = pick(input);
                if let (Some(a), Some(b)) = (self.0.remove(&name), self.0.remove(&other)) {
                    self.0.insert(name, b);
                    self.0.insert(other, a);
                }
            }
            2 => {
                let from =
                    donor.0.keys().nth(input.below(donor.0.len())).expect("a donor has files");
                self.0.insert(
                    if input.once_in(2) { name } else { from.clone() },
                    donor.0[from].clone(),
                );
            }
            3 => {
                // Another file with the next number, or with one far off.
                if let (Some(file), Some((stem, rest))) = (self.0.get(&name), name.split_once('-'))
                    && let Some((_, kind)) = rest.split_once('.')
                {
                    let number = input.number(self.0.len() as u64);
                    self.0.insert(format!("{stem}-{number:016x}.{kind}"), file.clone());
                }
            }
            choice => {
                let Some(file) = self.0.get_mut(&name) else { return };
                match choice {
                    4 => file.used.truncate(input.below(file.used.len() + 1)),
                    5 => file.used.extend(input.bytes(600)),
                    _ => {}
                }
                file.len = match input.byte() % 4 {
                    0 => file.used.len() as u64,
                    1 => file.len.saturating_sub(8),
                    2 => file.len + 4096,
                    _ => file.len.max(file.used.len() as u64),
                };
                file.used.truncate(file.len as usize);
            }
        }
    }

    /// Changes what the input says, of the files whose names begin with one of these. A donor is another
    /// store, or this one at another time.
    pub fn mutate(&mut self, prefixes: &[&str], donor: &Image, input: &mut Input<'_>) {
        const CHANGES_MAX: usize = 24;
        for _ in 0..CHANGES_MAX {
            let is_meant = |name: &&String| prefixes.iter().any(|prefix| name.starts_with(prefix));
            let names: Vec<String> = self.0.keys().filter(is_meant).cloned().collect();
            if input.is_empty() || names.is_empty() {
                return;
            }
            if input.once_in(5) {
                self.shuffle(&names, donor, input);
                continue;
            }
            let name = &names[input.below(names.len())];
            let other = match donor.0.get(name) {
                Some(other) if input.once_in(2) => other.clone(),
                _ => self.0[&names[input.below(names.len())]].clone(),
            };
            self.change(name, &other, input);
        }
    }
}

/// Length of `bytes` without the zeros at their end.
fn used_len(mut bytes: &[u8]) -> usize {
    // Whole blocks first: comparing them is as fast as memory.
    while let Some((before, block)) = bytes.split_last_chunk::<4096>() {
        if *block != [0; 4096] {
            break;
        }
        bytes = before;
    }
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Replaces a number of `N` bytes by another.
fn number<const N: usize>(bytes: &mut [u8], at: usize, input: &mut Input<'_>) {
    let Some(place) = bytes.get_mut(at..at + N) else { return };
    let mut now = [0; 8];
    now[..N].copy_from_slice(place);
    let number = input.number(u64::from_le_bytes(now));
    place.copy_from_slice(&number.to_le_bytes()[..N]);
}
