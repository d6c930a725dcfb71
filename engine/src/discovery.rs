//! Discovery: putting in order what the log held, and no checkpoint knew, when the store was opened.
//!
//! It is not a mode: the pipeline follows the end of the log, and here is only kept where that end was at
//! the opening, and what was found up to there. The window that comes to it ends there, so the report
//! counts nothing of what was appended meanwhile.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::error::ReadError;
use crate::observe::Observer;
use crate::pipeline::core::{Core, deadline_in};
use crate::sync::{Arc, WaitError};
use crate::timings::StageTimes;

/// A handle on the discovery of a store: how far it is, and what it has come to. Cheap to clone, for any
/// thread. It does not keep the store open.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let store = thalweg::Store::open(dir.path())?; // serves at once
/// let report = store.discovery().wait()?;
/// println!("{} events found and delivered", report.delivered);
/// # store.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Discovery {
    core: Arc<Core>,
}

/// How far a discovery has come.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DiscoveryProgress {
    /// Bytes of the log that were not ordered when the store was opened.
    pub bytes_total: u64,
    /// How many of them are verified and split.
    pub bytes_scanned: u64,
    /// How many of them are ordered, so that what is delivered of them can be read.
    pub bytes_done: u64,
    /// Events that were found so far, whatever became of them.
    pub scanned: u64,
    /// Events that were delivered since the opening.
    pub delivered: u64,
    /// Events that are delivered in all.
    pub delivered_in_all: u64,
    /// Events that are held now, also those that were held before.
    pub held: u64,
    /// Time since the opening began; until the end, once there is one.
    pub elapsed: Duration,
    /// Events that were found, by the time that it took: in a second.
    pub events_per_second: f64,
    /// How long the rest takes, if it goes on at the speed so far; nothing as long as that is not known.
    pub eta: Option<Duration>,
    /// Why the order cannot be written just now, if it cannot; see
    /// [`Stats::commit_error`](crate::Stats::commit_error).
    pub commit_error: Option<String>,
    /// Whether everything is ordered that the log held when the store was opened.
    pub is_done: bool,
}

/// What a discovery, or a [rebuild](crate::rebuild), has come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DiscoveryReport {
    /// Bytes of the log that were not ordered.
    pub bytes: u64,
    /// Events in them that were found.
    pub scanned: u64,
    /// Events that were delivered.
    pub delivered: u64,
    /// Events that are held, also those that were held before.
    pub held: u64,
    /// Events that were there already when they arrived.
    pub duplicates: u64,
    /// Events whose id another event had already.
    pub conflicts: u64,
    /// Events that were not taken, since a condition of theirs did not hold or their stream was sealed.
    pub rejected: u64,
    /// Events that were held, and discarded.
    pub discarded: u64,
    /// Damaged places in the log. A store that is open for reading leaves each of them out, and goes on
    /// behind it.
    pub corrupt: u64,
    /// Time from the beginning of the opening until the last of it could be read.
    pub elapsed: Duration,
    /// Time from the beginning of the opening until the first delivery could be read.
    pub first_delivery: Option<Duration>,
    /// Where the time of the threads went, if the store was opened with
    /// [`Options::timings`](crate::Options::timings).
    pub stages: Option<StageTimes>,
    /// Whether it is done. If not, the next opening goes on where it has stopped.
    pub is_done: bool,
}

impl Discovery {
    pub(crate) fn new(core: &Arc<Core>) -> Self {
        Discovery { core: Arc::clone(core) }
    }

    /// How far it is. Never blocks.
    pub fn progress(&self) -> DiscoveryProgress {
        let (core, state) = (&self.core, &self.core.discovery);
        // Against the flow, so that no stage is ahead of the one before it.
        let committed = core.committed.get();
        let report = state.report(core);
        let scanned = core.scanned.get();
        let passed = |position: u64| position.clamp(state.from, state.to) - state.from;
        let bytes_total = state.to - state.from;
        let bytes_done = if report.is_done { bytes_total } else { passed(committed) };
        let elapsed = report.elapsed;
        let seconds = elapsed.as_secs_f64();
        DiscoveryProgress {
            bytes_total,
            bytes_scanned: passed(scanned).max(bytes_done),
            bytes_done,
            scanned: report.scanned,
            delivered: report.delivered,
            delivered_in_all: state.delivered_before + report.delivered,
            held: report.held,
            elapsed,
            events_per_second: if seconds > 0.0 { report.scanned as f64 / seconds } else { 0.0 },
            eta: eta(elapsed, bytes_done, bytes_total),
            commit_error: core.commit_error.lock().clone(),
            is_done: report.is_done,
        }
    }

    /// What it has come to so far. Never blocks.
    pub fn report(&self) -> DiscoveryReport {
        self.core.discovery.report(&self.core)
    }

    /// Blocks until everything is ordered, and can be read, that the log held when the store was opened.
    ///
    /// # Errors
    ///
    /// The store was closed before, or its engine has stopped; [`Discovery::report`] then says how far
    /// it came, and the next opening goes on.
    pub fn wait(&self) -> Result<DiscoveryReport, ReadError> {
        let to = self.core.discovery.to;
        self.core.committed.wait_for(to).map_err(|_| self.core.ended())?;
        Ok(self.report())
    }

    /// As [`Discovery::wait`], for at most `timeout`; nothing if it is not done by then.
    ///
    /// # Errors
    ///
    /// As for [`Discovery::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<DiscoveryReport>, ReadError> {
        let to = self.core.discovery.to;
        match self.core.committed.wait_deadline(to, deadline_in(timeout)) {
            Ok(_) => Ok(Some(self.report())),
            Err(WaitError::TimedOut) => Ok(None),
            Err(WaitError::Failed) => Err(self.core.ended()),
        }
    }
}

/// The rest of the time, by the bytes that are done.
fn eta(elapsed: Duration, done: u64, total: u64) -> Option<Duration> {
    if done == total {
        return Some(Duration::ZERO);
    }
    let rest = elapsed.as_secs_f64() * (total - done) as f64 / done as f64;
    Duration::try_from_secs_f64(rest).ok().filter(|_| done > 0)
}

/// Events by what became of them, without the delivered ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) held: u64,
    pub(crate) duplicates: u64,
    pub(crate) conflicts: u64,
    pub(crate) rejected: u64,
    pub(crate) discarded: u64,
    pub(crate) corrupt: u64,
}

impl Tally {
    fn events(&self) -> u64 {
        self.held + self.duplicates + self.conflicts + self.rejected + self.discarded
    }
}

/// What the stages keep of the discovery.
#[derive(Debug)]
pub(crate) struct Discovering {
    /// When the opening began.
    begun: Instant,
    /// Where the order ended then, and where the log did.
    from: u64,
    pub(crate) to: u64,
    delivered_before: u64,
    /// Set before the first window.
    before: OnceLock<Tally>,
    /// Set by the orderer with the last window.
    after: OnceLock<Tally>,
    /// Set by the committer.
    first_delivery: OnceLock<Duration>,
    /// Set by the committer, before it publishes the last window.
    end: OnceLock<End>,
}

#[derive(Debug)]
struct End {
    elapsed: Duration,
    delivered: u64,
    stages: Option<StageTimes>,
}

impl Discovering {
    pub(crate) fn new(begun: Instant, from: u64, to: u64, delivered_before: u64) -> Self {
        let end = OnceLock::new();
        if from >= to {
            let _ = end.set(End { elapsed: Duration::ZERO, delivered: 0, stages: None });
        }
        Discovering {
            begun,
            from: from.min(to),
            to,
            delivered_before,
            before: OnceLock::new(),
            after: OnceLock::new(),
            first_delivery: OnceLock::new(),
            end,
        }
    }

    /// What there is before the first window.
    pub(crate) fn begins(&self, tally: Tally) {
        let _ = self.before.set(tally);
        if self.end.get().is_some() {
            let _ = self.after.set(tally);
        }
    }

    /// The log is ordered up to `to`, with this in it.
    pub(crate) fn ordered(&self, to: u64, tally: impl FnOnce() -> Tally) {
        if to >= self.to && self.after.get().is_none() {
            let _ = self.after.set(tally());
        }
    }

    /// The window up to `to` is about to be readable, with so many deliveries up to it.
    pub(crate) fn commits(&self, to: u64, delivered: u64, observer: &Observer) {
        if self.end.get().is_some() {
            return;
        }
        let (elapsed, delivered) = (self.begun.elapsed(), delivered - self.delivered_before);
        if delivered > 0 {
            let _ = self.first_delivery.set(elapsed);
        }
        if to >= self.to {
            let _ = self.end.set(End { elapsed, delivered, stages: observer.stage_times() });
            observer.trace.discovered(delivered);
        }
    }

    fn report(&self, core: &Core) -> DiscoveryReport {
        // In this order: whoever sees deliveries of live events sees that there is an end, too.
        let delivered = core.delivered.get() - self.delivered_before;
        let end = self.end.get();
        let delivered = end.map_or(delivered, |end| end.delivered);
        let before = self.before.get().copied().unwrap_or_default();
        let now = self.after.get().copied().unwrap_or_else(|| core.counts.tally());
        let scanned = (delivered + now.events()).saturating_sub(before.events());
        let stages = || core.observer.stage_times();
        DiscoveryReport {
            bytes: self.to - self.from,
            scanned,
            delivered,
            held: now.held,
            duplicates: now.duplicates - before.duplicates.min(now.duplicates),
            conflicts: now.conflicts - before.conflicts.min(now.conflicts),
            rejected: now.rejected - before.rejected.min(now.rejected),
            discarded: now.discarded - before.discarded.min(now.discarded),
            corrupt: now.corrupt - before.corrupt.min(now.corrupt),
            elapsed: end.map_or_else(|| self.begun.elapsed(), |end| end.elapsed),
            first_delivery: self.first_delivery.get().copied(),
            stages: end.map_or_else(stages, |end| end.stages),
            is_done: end.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use thalweg_wal::storage::MemoryStorage;

    use super::*;

    #[test]
    fn the_rest_takes_as_long_as_the_speed_so_far_says() {
        let second = Duration::from_secs(1);
        assert_eq!(eta(second, 0, 100), None);
        assert_eq!(eta(second, 25, 100), Some(3 * second));
        assert_eq!(eta(second, 100, 100), Some(Duration::ZERO));
        assert_eq!(eta(Duration::ZERO, 0, 0), Some(Duration::ZERO));
        assert_eq!(eta(Duration::MAX, 1, u64::MAX), None, "beyond what can be said");
    }

    #[test]
    fn what_is_ordered_already_is_no_discovery() {
        let state = Discovering::new(Instant::now(), 500, 500, 7);
        state.begins(Tally { held: 3, ..Tally::default() });
        assert_eq!(
            state.end.get().map(|end| (end.elapsed, end.delivered)),
            Some((Duration::ZERO, 0))
        );
        assert_eq!(state.after.get(), state.before.get());
        // What comes later is not counted.
        state.ordered(600, || Tally { held: 9, ..Tally::default() });
        state.commits(600, 9, &Observer::new(&MemoryStorage::new(), true, 0, false));
        assert_eq!(state.after.get(), state.before.get());
        assert!(state.first_delivery.get().is_none());
    }
}
