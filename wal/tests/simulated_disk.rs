//! The simulated disk itself: it has to lose what may be lost and keep what is synced, or the tests on
//! it prove nothing.

#[path = "common/disk.rs"]
mod disk;

use std::collections::BTreeSet;
use std::io::ErrorKind;

use disk::{Dice, Disk, Fault, Op};
use thalweg_wal::storage::{Access, Storage, StorageFile, read_exact_at, read_file, write_all_at};

const LEN: u64 = 16 << 10;

/// A disk with a synced file of ones.
fn ones(disk: &Disk) -> std::sync::Arc<dyn StorageFile> {
    let file = disk.create("file", LEN).expect("creates");
    write_all_at(&*file, &[1; LEN as usize], 0).expect("writes");
    file.sync().expect("syncs");
    disk.sync_dir().expect("syncs");
    file
}

fn bytes(disk: &Disk) -> Vec<u8> {
    read_file(disk, "file").expect("reads")
}

/// What each sector of the file came to, if it is of one kind.
fn sectors(disk: &Disk) -> Vec<Option<u8>> {
    let bytes = bytes(disk);
    let sectors = bytes.chunks(512);
    sectors
        .map(|sector| sector.iter().all(|byte| *byte == sector[0]).then_some(sector[0]))
        .collect()
}

#[test]
fn what_is_synced_survives_every_crash() {
    let disk = Disk::new();
    let file = ones(&disk);
    write_all_at(&*file, &[2; 512], 512).expect("writes");
    for seed in 0..500 {
        let after = sectors(&disk.crash(seed));
        assert!(after.iter().enumerate().all(|(at, &byte)| at == 1 || byte == Some(1)));
    }
    file.sync().expect("syncs");
    for seed in 0..500 {
        assert_eq!(sectors(&disk.crash(seed))[..3], [Some(1), Some(2), Some(1)]);
    }
}

/// Every outcome of two writes to two pages comes up: lost, kept, the later without the earlier, torn at a
/// sector and at a page, and noise, which never leaves the bytes that were written.
#[test]
fn what_is_not_synced_is_lost_kept_reordered_or_torn() {
    let disk = Disk::new();
    let file = ones(&disk);
    write_all_at(&*file, &[2; 4096], 0).expect("writes");
    write_all_at(&*file, &[3; 1000], 8192).expect("writes");
    let mut seen = BTreeSet::new();
    for seed in 0..2000 {
        let after = disk.crash(seed);
        let (now, found) = (bytes(&after), sectors(&after));
        assert!(now[4096..8192].iter().chain(&now[9192..]).all(|&byte| byte == 1));
        let (first, second) = (&found[..8], &found[16..17]);
        seen.insert(match (first, second) {
            ([Some(1), ..], [Some(1)]) if first == [Some(1); 8] => "lost",
            ([Some(2), ..], [Some(3)]) if first == [Some(2); 8] => "kept",
            ([Some(2), ..], [Some(1)]) if first == [Some(2); 8] => "in order",
            ([Some(1), ..], [Some(3)]) if first == [Some(1); 8] => "reordered",
            _ if found.contains(&None) => "noise",
            _ => "torn",
        });
    }
    let all = ["in order", "kept", "lost", "noise", "reordered", "torn"];
    assert_eq!(seen, BTreeSet::from(all));
}

/// A sector that is written twice comes back as it was at one of the writes, or before.
#[test]
fn any_write_since_the_last_sync_may_be_the_one_that_arrived() {
    let disk = Disk::new();
    let file = ones(&disk);
    for byte in [2, 3, 4] {
        write_all_at(&*file, &[byte; 512], 0).expect("writes");
    }
    let seen: BTreeSet<_> = (0..500).map(|seed| sectors(&disk.crash(seed))[0]).collect();
    assert!(seen.is_superset(&[1, 2, 3, 4].map(Some).into()), "{seen:?}");
}

#[test]
fn names_that_are_not_synced_are_lost_or_kept_one_by_one() {
    let disk = Disk::new();
    ones(&disk);
    for name in ["a", "b"] {
        disk.create(name, 8).expect("creates").sync().expect("syncs");
    }
    disk.rename("file", "other").expect("renames");
    let mut seen = BTreeSet::new();
    for seed in 0..500 {
        let names: BTreeSet<String> = disk.crash(seed).list().expect("lists").into_iter().collect();
        let renamed = names.contains("other");
        assert!(renamed != names.contains("file"), "a file has one of its two names");
        seen.insert((names.contains("a"), names.contains("b"), renamed));
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
    disk.sync_dir().expect("syncs");
    for seed in 0..100 {
        assert_eq!(disk.crash(seed).list().expect("lists"), ["a", "b", "other"]);
    }
}

#[test]
fn a_file_that_was_never_synced_may_lose_its_length() {
    let disk = Disk::new();
    disk.create("file", LEN).expect("creates");
    disk.sync_dir().expect("syncs");
    let lens: BTreeSet<u64> = (0..100)
        .map(|seed| disk.crash(seed).open("file", Access::Read).expect("is there"))
        .map(|file| file.len().expect("a length"))
        .collect();
    assert_eq!(lens, BTreeSet::from([0, LEN]));
}

/// After a failed sync the cache shows what the device does not have, the next sync succeeds, and a
/// write to the same page takes along what was lost of it.
#[test]
fn a_failed_sync_leaves_a_cache_that_lies() {
    let disk = Disk::new();
    let file = ones(&disk);
    write_all_at(&*file, &[2; 8192], 0).expect("writes");
    disk.fail_at(disk.ops() + 1, Fault::Error);
    file.sync().expect_err("fails");
    file.sync().expect("nothing is left to do");
    let device = |file: &dyn StorageFile| {
        let mut bytes = [0; 8192];
        assert_eq!(file.read_device_at(&mut bytes, 0).expect("reads"), 8192);
        [bytes[0], bytes[4096]]
    };
    assert_eq!(bytes(&disk)[..8192], [2; 8192]);
    assert_eq!(device(&*file), [1, 1]);
    assert_eq!(bytes(&disk.crash(1))[..8192], [1; 8192]);
    write_all_at(&*file, &[3; 8], 0).expect("writes");
    file.sync().expect("syncs");
    let after = bytes(&disk.crash(1));
    assert_eq!([after[0], after[8], after[4096]], [3, 2, 1]);
    disk.drop_caches();
    assert!(bytes(&disk) == after);
}

#[test]
fn everybody_who_has_the_file_hears_of_a_failed_sync_once() {
    let disk = Disk::new();
    let file = ones(&disk);
    let other = disk.open("file", Access::Write).expect("opens");
    write_all_at(&*file, &[2; 8], 0).expect("writes");
    disk.fail_at(disk.ops() + 1, Fault::Error);
    other.sync().expect_err("fails");
    other.sync().expect("it has heard of it");
    file.sync().expect_err("it was its write, too");
    file.sync().expect("it has heard of it");
    disk.open("file", Access::Read).expect("opens").sync().expect("it came later");
}

#[test]
fn with_a_seed_a_failed_sync_may_have_done_a_part() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let disk = Disk::with_seed(seed);
        let file = ones(&disk);
        write_all_at(&*file, &[2; 4096], 0).expect("writes");
        disk.fail_at(disk.ops() + 1, Fault::Error);
        file.sync().expect_err("fails");
        let after = sectors(&disk.crash(seed));
        seen.insert(after.iter().filter(|&&byte| byte == Some(2)).count());
    }
    assert!(seen.contains(&0) && seen.contains(&8) && seen.len() > 5, "{seen:?}");
}

#[test]
fn every_operation_can_be_the_last_one() {
    let run = |disk: &Disk| {
        let file = disk.create("a", LEN)?;
        file.reserve()?;
        write_all_at(&*file, &[1; 1000], 0)?;
        file.sync()?;
        disk.rename("a", "b")?;
        disk.sync_dir()?;
        disk.remove("b")
    };
    let whole = Disk::with_seed(1);
    run(&whole).expect("works");
    assert_eq!(whole.ops(), 7);
    for op in 1..=whole.ops() {
        let disk = Disk::with_seed(1);
        disk.fail_at(op, Fault::Stop);
        run(&disk).expect_err("the machine stops");
        assert!(disk.has_stopped() && disk.ops() == op);
        disk.create("c", 8).expect_err("it has stopped");
        assert!(disk.crash(1).create("c", 8).is_ok(), "and starts again");
    }
}

#[test]
fn a_full_disk_has_room_for_what_is_written_over() {
    let disk = Disk::new();
    let file = ones(&disk);
    let fresh = disk.create("fresh", LEN).expect("creates");
    disk.full_during(0..u64::MAX);
    let is_full = |kind| assert_eq!(kind, ErrorKind::StorageFull);
    is_full(disk.create("next", 8).expect_err("full").kind());
    is_full(write_all_at(&*fresh, &[1; 8], 0).expect_err("full").kind());
    write_all_at(&*file, &[2; 512], 0).expect("it has its place");
    disk.heal();
    write_all_at(&*fresh, &[1; 8], 0).expect("there is room again");
}

#[test]
fn short_and_interrupted_operations_are_finished_by_whoever_asks() {
    let disk = Disk::new();
    let file = ones(&disk);
    for fault in [Fault::Short, Fault::Interrupted] {
        disk.fail_at(disk.ops() + 1, fault);
        disk.fail_read_at(disk.reads() + 1, fault);
        write_all_at(&*file, &[7; 3000], 100).expect("writes");
        let mut read = [0; 3000];
        read_exact_at(&*file, &mut read, 100).expect("reads");
        assert_eq!(read, [7; 3000]);
    }
    let happened: Vec<_> = disk.happened().into_iter().map(|(op, _, fault)| (op, fault)).collect();
    let faults = [Fault::Short, Fault::Interrupted];
    assert_eq!(happened, faults.map(|fault| [(Op::Write, fault), (Op::Read, fault)]).concat());
}

#[test]
fn a_sector_that_cannot_be_read_fails_its_readers_until_it_is_written() {
    let disk = Disk::new();
    ones(&disk);
    disk.spoil("file", 1024);
    let disk = disk.crash(0);
    let file = disk.open("file", Access::Write).expect("opens");
    let mut sector = [0; 512];
    let map = disk.cached();
    assert_ne!(read_file(&map, "file").expect("reads")[1024..1536], [1; 512], "noise in the map");
    for offset in [1000, 1024, 1535] {
        file.read_at(&mut sector, offset).expect_err("the sector is bad");
        file.read_device_at(&mut sector, offset).expect_err("the sector is bad");
    }
    file.read_at(&mut sector, 512).expect("reads what is beside it");
    file.read_at(&mut sector, 1536).expect("reads what is beside it");
    write_all_at(&*file, &[4; 512], 1024).expect("writes");
    file.read_at(&mut sector, 1024).expect("reads");
    assert_eq!(sector, [4; 512]);
}

#[test]
fn a_flipped_bit_is_on_the_device_and_in_the_cache() {
    let disk = Disk::new();
    ones(&disk);
    disk.flip("file", 5000, 7);
    let mut wanted = vec![1; LEN as usize];
    wanted[5000] ^= 0x80;
    assert!(bytes(&disk) == wanted);
    assert!(bytes(&disk.crash(3)) == wanted);
}

/// The same seed, the same disk: also where it is left to chance what a failure has done.
#[test]
fn the_same_seed_gives_the_same_disk() {
    let run = |seed: u64| {
        let (mut dice, disk) = (Dice(seed), Disk::with_seed(seed));
        let file = ones(&disk);
        for _ in 0..50 {
            match dice.below(8) {
                0 => disk.fail_at(disk.ops() + 1, Fault::Error),
                1 => drop(file.sync()),
                2 => drop(disk.sync_dir()),
                3 => drop(disk.create(&format!("f{}", dice.below(9)), 5000)),
                _ => drop(file.write_at(&[dice.below(256) as u8; 700], dice.below(LEN - 700))),
            }
        }
        let after = disk.crash(dice.next());
        (disk.fingerprint(), disk::files(&after), after.happened())
    };
    for seed in 0..50 {
        assert!(run(seed) == run(seed));
    }
    assert!(run(1) != run(2));
}
