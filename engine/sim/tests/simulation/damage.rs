//! Bits that flip and sectors that cannot be read any more, in a store that was closed: what is shown is
//! right, what is wrong is named, and nothing that was acknowledged is cut.

use thalweg::storage::Storage;
use thalweg::{Cause, LogOpenError, OpenError, ReadError, Store, verify_on};
use thalweg_wal::format::{FRAME_HEADER_LEN, SEGMENT_HEADER_LEN};
use thalweg_wal::{LogReader, name};

use crate::common::{Expected, check};
use crate::disk::{Dice, Disk};
use crate::scenario::{copy, options, shared};

/// Does one damage of each kind to copies of `disk`, which has this log. `last_alone` says that the last
/// record has a frame of its own.
pub fn run(disk: &Disk, now: &Expected, last_alone: bool, dice: &mut Dice) {
    flip_in_the_log(&copy(disk), now, last_alone, dice);
    flip_in_a_derived_file(&copy(disk), now, dice);
    spoil(&copy(disk), now, dice);
}

fn is_segment(name: &str) -> bool {
    matches!(name::kind(name), name::Kind::Segment(_))
}

fn is_derived(name: &str) -> bool {
    name::kind(name).is_derived()
}

/// One of these files, and a place in a part of it that is in use.
fn place(disk: &Disk, is_it: fn(&str) -> bool, dice: &mut Dice) -> Option<(String, u64)> {
    let names: Vec<String> = disk.names().into_iter().filter(|name| is_it(name)).collect();
    let name = names.get(dice.below(names.len().max(1) as u64) as usize)?;
    let pages = disk.used(name);
    let page = pages.get(dice.below(pages.len().max(1) as u64) as usize)?;
    let file = disk.cached().open(name, thalweg::storage::Access::Read).ok()?;
    Some((name.clone(), (page + dice.below(4096)).min(file.len().ok()? - 1)))
}

fn open(disk: &Disk, dice: &mut Dice) -> Result<Store, OpenError> {
    options(dice).open_on(shared(disk))
}

fn flip_in_the_log(disk: &Disk, now: &Expected, last_alone: bool, dice: &mut Dice) {
    let log = LogReader::open(disk, None).expect("opens");
    let Some((file, offset)) = place(disk, is_segment, dice) else { return };
    let is_it = |number| name::segment(number) == file;
    // A flipped bit in a spare is taken for a lost header, and is not.
    let Some(segment) = log.segments.iter().find(|segment| is_it(segment.number())) else { return };
    let used = segment.end() - segment.base();
    let is_last = log.segments.last().is_some_and(|last| is_it(last.number()));
    // Without the checkpoint that closing has left, the log itself has to prove that it went on.
    let alone = last_alone && dice.once_in(2);
    if alone {
        remove_derived(disk, |_| true);
    }
    disk.flip(&file, offset, dice.below(8) as u8);
    let what = format!("{file} at {offset} of {used}, without a checkpoint: {alone}");
    if offset >= used {
        // Behind the end stands nothing that anybody was told of.
        return check_opens(disk, now, dice, &what);
    }
    // Of the last frame nothing proves that it was durable, and before the first there is nothing.
    let last = now.records.last().map_or(0, |(place, _)| place.start - FRAME_HEADER_LEN);
    if is_last && (used == SEGMENT_HEADER_LEN || alone && segment.base() + offset >= last) {
        return;
    }
    let verified = verify_on(shared(disk), &|_| std::ops::ControlFlow::Continue(()));
    assert!(verified.is_err() || verified.is_ok_and(|it| it.problem_count > 0), "{what}: not seen");
    for opened in [open(disk, dice), options(dice).open_read_only_on(shared(disk))] {
        match opened {
            Ok(store) => check_what_is_shown(&store, now, &what),
            Err(error) => check_named(&error, &what),
        }
    }
}

fn flip_in_a_derived_file(disk: &Disk, now: &Expected, dice: &mut Dice) {
    let Some((file, offset)) = place(disk, is_derived, dice) else { return };
    disk.flip(&file, offset, dice.below(8) as u8);
    let what = format!("{file} at {offset}");
    let store = open(disk, dice).expect("what is derived keeps no store from opening");
    check_what_is_shown(&store, now, &what);
    drop(store);
    remove_derived(disk, |_| true);
    check_opens(disk, now, dice, &what);
}

fn spoil(disk: &Disk, now: &Expected, dice: &mut Dice) {
    let Some((file, offset)) = place(disk, |_| true, dice) else { return };
    disk.spoil(&file, offset);
    let what = format!("{file} cannot be read at {offset}");
    match open(disk, dice) {
        // A map shows noise where the device cannot read.
        Ok(store) => return check_what_is_shown(&store, now, &what),
        Err(error) => check_named(&error, &what),
    }
    // That something cannot be read has changed nothing.
    disk.mend();
    check_opens(disk, now, dice, &what);
}

/// Removes derived files, as somebody may who wants the order to be made again.
pub fn remove_derived(disk: &Disk, mut is_it: impl FnMut(&str) -> bool) {
    for name in disk.names().iter().filter(|name| is_derived(name) && is_it(name)) {
        disk.remove(name).expect("removes");
    }
}

fn check_opens(disk: &Disk, now: &Expected, dice: &mut Dice, what: &str) {
    let store = open(disk, dice).unwrap_or_else(|error| panic!("{what}: {error}"));
    check(&store, now);
    store.close().expect("closes");
}

fn check_named(error: &OpenError, what: &str) {
    let is_named = matches!(
        error,
        OpenError::Io { .. }
            | OpenError::Log(
                LogOpenError::Damaged(_)
                    | LogOpenError::Io { .. }
                    | LogOpenError::Version { .. }
                    | LogOpenError::SegmentForeign { .. }
            )
    );
    assert!(is_named, "{what}: {error:?}");
}

/// Everything that a store shows is right, and what it cannot show it names.
fn check_what_is_shown(store: &Store, now: &Expected, what: &str) {
    if let Err(error) = store.wait_committed(store.durable_end()) {
        let is_named = matches!(error, ReadError::Poisoned(Cause::Derived(_) | Cause::Damage(_)));
        assert!(is_named, "{what}: {error:?}");
    }
    // With an event left out the others have other numbers, but each is what it was.
    let is_whole = store.stats().corrupt == 0;
    for event in store.read(..).expect("reads") {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let is_named = matches!(error, ReadError::Damage(_) | ReadError::Order { .. });
                assert!(is_named, "{what}: {error:?}");
                continue;
            }
        };
        let wanted = &now.events[&event.position()];
        assert_eq!((event.stream(), event.id()), (&wanted.stream[..], &wanted.id[..]), "{what}");
        assert!(event.payload() == wanted.payload, "{what}");
        if is_whole {
            let delivery = &now.order[event.global() as usize];
            let shown = (event.position(), event.local());
            assert_eq!(shown, (delivery.position, delivery.local), "{what}");
        }
    }
}
