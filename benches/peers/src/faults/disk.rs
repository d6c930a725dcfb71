//! What a power cut would leave of the files that a process writes.
//!
//! A page that was written and not synced since has the bytes that it had at its last sync. A sync that
//! fails leaves its pages as Linux does: no longer dirty, so that no later sync writes them, and with
//! their new bytes in the cache only. A file is as long as it was at its last sync. Names are taken
//! to be durable at once, which is kinder than a file system has to be.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::Failure;

const PAGE_LEN: u64 = 4096;

/// A file, by device and inode: it stays the same when it is renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId(u64, u64);

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        FileId(metadata.dev(), metadata.ino())
    }
}

/// A page whose bytes in the cache are not those on the disk.
#[derive(Debug)]
struct Page {
    on_disk: Vec<u8>,
    /// Whether a sync would write it. A sync that has failed has taken that away.
    dirty: bool,
    /// When it was last written, on the clock of the [`Disk`].
    written_at: u64,
}

#[derive(Debug, Default)]
struct Pages {
    durable_len: u64,
    pages: BTreeMap<u64, Page>,
}

/// A sync on its way: what it found dirty, with the bytes that it found.
#[derive(Debug)]
pub(super) struct Syncing {
    file: FileId,
    len: u64,
    begun_at: u64,
    pages: Vec<(u64, Vec<u8>)>,
}

/// The files of one directory. All of them were made while somebody watched.
#[derive(Debug, Default)]
pub(super) struct Disk {
    files: HashMap<FileId, Pages>,
    clock: u64,
}

impl Disk {
    /// A file is new, or was emptied.
    pub(super) fn created(&mut self, file: FileId) {
        self.files.insert(file, Pages::default());
    }

    /// `len` bytes from `offset` on are about to be written.
    pub(super) fn write(&mut self, at: &Path, offset: u64, len: u64) -> Result<(), Failure> {
        let file = File::open(at)?;
        let pages = &mut self.files.entry(FileId::of(&file.metadata()?)).or_default().pages;
        self.clock += 1;
        for number in offset / PAGE_LEN..(offset + len).div_ceil(PAGE_LEN) {
            let page = match pages.entry(number) {
                std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let on_disk = read_page(&file, number)?;
                    place.insert(Page { on_disk, dirty: true, written_at: 0 })
                }
            };
            (page.dirty, page.written_at) = (true, self.clock);
        }
        Ok(())
    }

    /// A file is about to be cut, or made longer.
    pub(super) fn set_len(&mut self, at: &Path, len: u64) -> Result<(), Failure> {
        let pages = self.files.entry(FileId::of(&std::fs::metadata(at)?)).or_default();
        pages.durable_len = pages.durable_len.min(len);
        pages.pages.retain(|number, _| *number < len.div_ceil(PAGE_LEN));
        Ok(())
    }

    /// A sync begins.
    pub(super) fn sync(&mut self, at: &Path) -> Result<Syncing, Failure> {
        let file = File::open(at)?;
        let metadata = file.metadata()?;
        let id = FileId::of(&metadata);
        self.clock += 1;
        let mut found = Vec::new();
        if let Some(pages) = self.files.get(&id) {
            for (number, _) in pages.pages.iter().filter(|(_, page)| page.dirty) {
                found.push((*number, read_page(&file, *number)?));
            }
        }
        Ok(Syncing { file: id, len: metadata.len(), begun_at: self.clock, pages: found })
    }

    /// A sync has ended.
    pub(super) fn synced(&mut self, sync: Syncing, well: bool) {
        let file = self.files.entry(sync.file).or_default();
        if well {
            file.durable_len = sync.len;
        }
        for (number, found) in sync.pages {
            let Some(page) = file.pages.get_mut(&number) else { continue };
            let since = page.written_at > sync.begun_at;
            match (well, since) {
                (true, true) => page.on_disk = found,
                (true, false) => drop(file.pages.remove(&number)),
                (false, true) => {}
                (false, false) => page.dirty = false,
            }
        }
    }

    /// Makes the files below `dir` what the power cut leaves of them.
    pub(super) fn cut_power(&self, dir: &Path) -> Result<(), Failure> {
        for path in super::files_below(dir)? {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let metadata = file.metadata()?;
            let Some(pages) = self.files.get(&FileId::of(&metadata)) else { continue };
            let len = metadata.len().min(pages.durable_len);
            file.set_len(len)?;
            for (number, page) in &pages.pages {
                let start = number * PAGE_LEN;
                let take = len.saturating_sub(start).min(PAGE_LEN) as usize;
                file.write_all_at(&page.on_disk[..take], start)?;
            }
        }
        Ok(())
    }
}

/// A page as the cache has it, with zeros beyond the end of the file.
fn read_page(file: &File, number: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; PAGE_LEN as usize];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], number * PAGE_LEN + have as u64)? {
            0 => break,
            more => have += more,
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is written, synced and cut as its disk is told.
    struct Watched {
        disk: Disk,
        dir: std::path::PathBuf,
        path: std::path::PathBuf,
        file: File,
    }

    impl Watched {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("disk-{}-{name}", std::process::id()));
            std::fs::create_dir(&dir).unwrap();
            let path = dir.join("file");
            let file = File::create_new(&path).unwrap();
            Watched { disk: Disk::default(), dir, path, file }
        }

        fn write(&mut self, bytes: &[u8], offset: u64) {
            self.disk.write(&self.path, offset, bytes.len() as u64).unwrap();
            self.file.write_all_at(bytes, offset).unwrap();
        }

        fn sync(&mut self, well: bool) {
            let sync = self.disk.sync(&self.path).unwrap();
            self.disk.synced(sync, well);
        }

        fn after_a_cut(self) -> Vec<u8> {
            self.disk.cut_power(&self.dir).unwrap();
            let left = std::fs::read(&self.path).unwrap();
            std::fs::remove_dir_all(&self.dir).unwrap();
            left
        }
    }

    #[test]
    fn what_was_synced_stays_and_what_was_not_goes() {
        let mut file = Watched::new("synced");
        file.write(b"stays", 0);
        file.sync(true);
        file.write(b"goes", 0);
        file.write(b"goes too", 9000);
        assert_eq!(file.after_a_cut(), b"stays");
    }

    #[test]
    fn a_later_sync_does_not_bring_back_what_a_failed_one_has_lost() {
        let mut file = Watched::new("failed");
        file.write(b"lost", 0);
        file.sync(false);
        file.write(b"kept", PAGE_LEN);
        file.sync(true);
        let left = file.after_a_cut();
        assert_eq!((&left[..4], &left[PAGE_LEN as usize..]), (&[0; 4][..], &b"kept"[..]));
    }

    #[test]
    fn a_page_that_is_written_again_after_a_failed_sync_is_written_out() {
        let mut file = Watched::new("again");
        file.write(b"lost?", 0);
        file.sync(false);
        file.write(b"no", 5);
        file.sync(true);
        assert_eq!(file.after_a_cut(), b"lost?no");
    }

    #[test]
    fn a_page_that_is_written_during_a_sync_is_as_the_sync_found_it() {
        let mut file = Watched::new("during");
        file.write(b"before", 0);
        let sync = file.disk.sync(&file.path).unwrap();
        file.write(b"during", 0);
        file.disk.synced(sync, true);
        assert_eq!(file.after_a_cut(), b"before");
    }
}
