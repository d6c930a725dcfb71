//! One seed: a store lives through a few sessions, each with faults, crashes or neither, and after each
//! recovery everything that it ever said has to be so.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thalweg::storage::Storage;
use thalweg::{Durability, LogOpenError, OpenError, Options, Store, verify_on};

use crate::common::{check, expected};
use crate::damage;
use crate::disk::{Dice, Disk, Fault, Op};
use crate::following::Following;
use crate::model::Model;
use crate::workload::{self, Size};

/// How often an opening that has a checkpoint lists the directory.
const LISTINGS: u64 = 8;

/// What a scenario came to: to see that the simulation does what it is for, and does it again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    pub sessions: u64,
    pub crashes: u64,
    pub reopened: u64,
    pub faults: u64,
    pub acknowledged: u64,
    pub delivered: u64,
    pub rolled: u64,
    /// Followers that were opened.
    pub followers: u64,
    pub ops: u64,
    /// Of everything that was done to the disk, in its order.
    pub fingerprint: u64,
}

/// Faults to come. A machine that stops is the most frequent: it is what all others have to end in.
fn plan(disk: &Disk, dice: &mut Dice) {
    let op = |dice: &mut Dice| {
        let range = [4, 20, 60, 200][dice.below(4) as usize];
        disk.ops() + 1 + dice.below(range)
    };
    let read = |dice: &mut Dice| disk.reads() + 1 + dice.below(60);
    let harmless = [Fault::Short, Fault::Interrupted];
    match dice.below(12) {
        0 => {}
        1 => {
            for _ in 0..4 {
                disk.fail_at(op(dice), harmless[dice.below(2) as usize]);
                disk.fail_read_at(read(dice), harmless[dice.below(2) as usize]);
            }
        }
        2 | 3 => {
            for _ in 0..1 + dice.below(2) {
                disk.fail_at(op(dice), Fault::Error);
            }
        }
        4 => {
            let from = op(dice);
            disk.full_during(from..from + 1 + dice.below(40));
        }
        // Files that cannot be opened, a directory that cannot be listed: they come at the opening.
        5 => match dice.below(4) {
            0 => disk.fail_next(Op::Look, dice.below(24), Fault::Error),
            1 => disk.fail_next(Op::List, dice.below(LISTINGS), Fault::Error),
            // By the last of them the runs are numbered.
            2 => disk.fail_next(Op::List, LISTINGS - 1 - dice.below(2), Fault::Error),
            _ => disk.fail_read_at(read(dice), Fault::Error),
        },
        6 => {
            disk.fail_at(op(dice), [Fault::Error, Fault::Full][dice.below(2) as usize]);
            disk.fail_at(op(dice), harmless[dice.below(2) as usize]);
            disk.fail_at(op(dice), Fault::Stop);
        }
        7 | 8 => {
            let what = [Op::Sync, Op::Sync, Op::SyncDir, Op::Rename][dice.below(4) as usize];
            disk.fail_next(what, dice.below(8), Fault::Error);
        }
        _ => disk.fail_at(op(dice), Fault::Stop),
    }
}

pub fn shared(disk: &Disk) -> Arc<dyn Storage> {
    Arc::new(disk.clone())
}

/// The disk as whoever reads past the cache sees it, to look at without leaving traces.
pub fn copy(disk: &Disk) -> Disk {
    disk.power_loss(|| true)
}

pub fn options(dice: &mut Dice) -> Options {
    // The threads of a pool would take no turns.
    let orderers = if lockstep::ordinal().is_some() { 1 } else { 1 + dice.below(3) as usize };
    Options::new()
        .segment_bytes(1 << 20)
        .scanners(1 + dice.below(2) as usize)
        .orderers(orderers)
        .pin(false)
        .clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .wait_for_room(Duration::from_secs([0, 1, 300][dice.below(3) as usize]))
        .memory_budget([0, 30_000, 1 << 30][dice.below(3) as usize])
        .queue_bytes([1, 10_000, 64 << 20][dice.below(3) as usize])
}

/// Whether something has happened that a store may fail for.
fn is_harmed(disk: &Disk) -> bool {
    let is_harm = |fault| !matches!(fault, Fault::Short | Fault::Interrupted);
    disk.has_stopped() || disk.happened().iter().any(|(_, _, fault)| is_harm(*fault))
}

/// Whether nothing has happened but that there was no room for a new segment.
fn has_only_no_room(disk: &Disk) -> bool {
    disk.happened().iter().all(|(op, file, fault)| match fault {
        Fault::Full => *op != Op::Sync && file.starts_with("segment-") && file.ends_with(".new"),
        Fault::Short | Fault::Interrupted => true,
        Fault::Stop | Fault::Error => false,
    })
}

/// A store that cannot be opened says that it could not read or write: there is no damage.
fn check_refusal(error: &OpenError, disk: &Disk) {
    let is_io = matches!(error, OpenError::Io { .. } | OpenError::Log(LogOpenError::Io { .. }));
    assert!(is_io, "nothing is damaged, but: {error}");
    assert!(is_harmed(disk), "nothing has happened, but: {error}");
}

struct Scenario {
    disk: Disk,
    model: Arc<Model>,
    dice: Dice,
    report: Report,
    /// Whether all sessions append as [`Size::uniform`] says, and more of them lose a sync: it takes two
    /// that follow each other for a frame to begin where another has left something behind.
    uniform: bool,
    /// How far everything had come from where on a power loss may take away what a session with buffered
    /// durability has shown; until the next recovery.
    buffered: Option<(usize, u64, u64)>,
    /// A follower, at times, over any number of sessions.
    following: Option<Following>,
    /// Whether there can be one. After a power loss, entries of a buffered store may have outlived records that were
    /// not synced, and what a follower makes of these is not promised.
    can_follow: bool,
}

/// Runs the scenario of a seed, in the world of the caller.
pub fn run(seed: u64) -> Report {
    let mut dice = Dice(seed);
    let disk = Disk::with_seed(dice.next()).calling(lockstep::point);
    let model = Arc::default();
    let uniform = dice.once_in(5);
    let report = Report::default();
    let mut scenario = Scenario {
        disk,
        model,
        dice,
        report,
        uniform,
        buffered: None,
        following: None,
        can_follow: true,
    };
    for _ in 0..1 + scenario.dice.below(4) {
        scenario.session();
        scenario.between();
    }
    scenario.end();
    scenario.report
}

impl Scenario {
    fn size(&mut self) -> Size {
        let uniform = self.dice.once_in(if self.uniform { 1 } else { 20 });
        Size::of(uniform, &mut self.dice)
    }

    fn session(&mut self) {
        self.report.sessions += 1;
        let faults_from_the_start = self.dice.once_in(if self.uniform { 8 } else { 2 });
        if faults_from_the_start {
            plan(&self.disk, &mut self.dice);
        }
        let mut size = self.size();
        let buffered = self.dice.once_in(if size.uniform { 2 } else { 6 });
        let durability = if buffered { Durability::Buffered } else { Durability::Sync };
        let since = self.model.progress();
        let opened = options(&mut self.dice).durability(durability).open_on(shared(&self.disk));
        let store = match opened {
            Ok(store) => store,
            Err(error) => return check_refusal(&error, &self.disk),
        };
        // What recovery has found is durable by now.
        self.buffered = None;
        let now = expected(&copy(&self.disk));
        self.model.check(&now);
        if !faults_from_the_start {
            if self.dice.once_in(2) {
                check(&store, &now);
            }
            plan(&self.disk, &mut self.dice);
            if buffered && (self.uniform || self.dice.once_in(2)) {
                self.disk.fail_next(Op::Sync, self.dice.below(3), Fault::Error);
            }
        }
        if self.disk.will_be_full() {
            // Only new segments need room.
            size.large = 2;
        }
        if self.following.is_none() && self.can_follow && self.dice.once_in(4) {
            let is_harmed = is_harmed(&self.disk);
            self.following = Following::open(&self.disk, &self.model, is_harmed, &mut self.dice);
            self.report.followers += u64::from(self.following.is_some());
        }
        workload::run(&store, &self.disk, &self.model, size, &mut self.dice);
        let is_closed = self.close(store);
        if buffered && !is_closed {
            self.buffered = Some(since);
        }
    }

    /// Closes the store, and says whether that went well.
    fn close(&mut self, store: Store) -> bool {
        self.report.rolled += store.stats().segments - 1;
        let delivered = store.delivered();
        let closed = if self.dice.once_in(4) {
            // What becomes of the last sync nobody hears.
            drop(store);
            None
        } else {
            Some(store.close().map_err(|error| error.to_string()))
        };
        let unknown = self.model.check_ended();
        let is_harmed = is_harmed(&self.disk);
        match &self.following {
            Some(following) if is_harmed => following.harm(),
            Some(following) => following.catch_up(delivered),
            None => {}
        }
        if !is_harmed || has_only_no_room(&self.disk) {
            assert!(closed != Some(Ok(())) || unknown == 0, "{unknown} are not known");
            assert_eq!(
                closed.clone().unwrap_or(Ok(())),
                Ok(()),
                "but for {:?}",
                self.disk.happened()
            );
        }
        closed.map_or(!is_harmed, |closed| closed.is_ok())
    }

    /// What happens to the machine before the store is opened again.
    fn between(&mut self) {
        let happened = self.disk.happened();
        self.report.faults += happened.len() as u64;
        let crashes = self.dice.once_in(2) || self.disk.has_stopped() && !self.dice.once_in(4);
        let is_failed_sync = |(op, _, fault): &(_, _, _)| *op == Op::Sync && *fault != Fault::Stop;
        let lost = self.buffered.filter(|_| crashes || happened.iter().any(is_failed_sync));
        let drops_caches = !crashes && self.dice.once_in(3);
        // The machine takes it along. Maps of this disk stay behind when it drops its caches, and those of a
        // real one do not.
        if (crashes || drops_caches || lost.is_some() || self.dice.once_in(4))
            && let Some(following) = self.following.take()
        {
            following.end();
        }
        if let Some(since) = lost {
            self.model.lose_what_was_buffered(since);
            self.can_follow = false;
        }
        if crashes {
            self.report.crashes += 1;
            self.report.ops += self.disk.ops();
            self.disk = self.disk.crash(self.dice.next());
        } else {
            self.report.reopened += 1;
            self.disk.restart();
            if drops_caches {
                self.disk.drop_caches();
            }
        }
        if self.dice.once_in(8) {
            // Everything but the log can be made again, all of it or what somebody has deleted.
            let all = self.dice.once_in(2);
            damage::remove_derived(&self.disk, |_| all || self.dice.once_in(3));
        }
    }

    /// Without faults everything is there, works, and is found to be right.
    fn end(&mut self) {
        let store = options(&mut self.dice).open_on(shared(&self.disk)).expect("opens");
        let now = expected(&copy(&self.disk));
        self.model.check(&now);
        check(&store, &now);
        let size = self.size();
        workload::run(&store, &self.disk, &self.model, size, &mut self.dice);
        let last_alone = self.dice.once_in(2);
        if last_alone {
            workload::append_last(&store, &self.model);
        }
        store.close().expect("closes");
        self.model.check_ended();
        if let Some(following) = self.following.take() {
            following.catch_up(store.delivered());
            following.end();
        }
        let now = expected(&copy(&self.disk));
        self.model.check(&now);
        if self.dice.once_in(3) {
            damage::run(&self.disk, &now, last_alone, &mut self.dice);
        }
        let report = verify_on(shared(&self.disk), &|_| std::ops::ControlFlow::Continue(()))
            .expect("verifies");
        assert_eq!(report.problems, []);
        self.report.acknowledged = self.model.acknowledged();
        self.report.delivered = now.order.len() as u64;
        self.report.ops += self.disk.ops();
        self.report.fingerprint = self.disk.fingerprint();
    }
}

impl Report {
    pub fn add(&mut self, other: &Report) {
        self.sessions += other.sessions;
        self.crashes += other.crashes;
        self.reopened += other.reopened;
        self.faults += other.faults;
        self.acknowledged += other.acknowledged;
        self.delivered += other.delivered;
        self.rolled += other.rolled;
        self.followers += other.followers;
        self.ops += other.ops;
    }
}
