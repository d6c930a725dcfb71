//! What `stat` shows, from wherever it is known, and as JSON.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::value::RawValue;
use thalweg::{
    CursorInfo, FollowerStats, Histogram, QueueDepth, QueueDepths, Stats, Timings, Waiting,
};

use super::super::View;
use crate::{ndjson, output};

/// The keys of `--json`, in this order. They are described in the help.
#[derive(Debug, Default, Serialize)]
pub(super) struct Numbers {
    pub(super) source: Source,
    pub(super) writer: Option<String>,
    pub(super) delivered: u64,
    pub(super) delivered_per_second: Option<u64>,
    pub(super) held: Option<u64>,
    pub(super) oldest_held_seconds: Option<f64>,
    pub(super) duplicates: Option<u64>,
    pub(super) conflicts: Option<u64>,
    pub(super) rejected: Option<u64>,
    pub(super) discarded: Option<u64>,
    pub(super) corrupt: u64,
    pub(super) streams: Option<u64>,
    pub(super) segments: u64,
    pub(super) log_bytes: u64,
    pub(super) first: u64,
    pub(super) written: Option<u64>,
    pub(super) durable: Option<u64>,
    pub(super) scanned: Option<u64>,
    pub(super) ordered: Option<u64>,
    pub(super) committed: u64,
    pub(super) checkpoint_position: Option<u64>,
    pub(super) backlog: Option<Backlog>,
    pub(super) queues: Option<Queues>,
    pub(super) times: Option<Times>,
    pub(super) frames: Option<Frames>,
    pub(super) cursors: Vec<Cursor>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) recovery: Option<String>,
    pub(super) checkpoint_error: Option<String>,
    pub(super) commit_error: Option<String>,
    pub(super) poisoned: Option<String>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    #[default]
    Store,
    Follower,
}

#[derive(Debug, Serialize)]
pub(super) struct Backlog {
    pub(super) sync: Amount,
    pub(super) scan: Amount,
    pub(super) order: Amount,
    pub(super) commit: Amount,
}

#[derive(Debug, Serialize)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    pub(super) events: Option<u64>,
}

impl From<Waiting> for Amount {
    fn from(Waiting { bytes, events, .. }: Waiting) -> Self {
        Amount { bytes, events }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Queues {
    pub(super) durable: Queue,
    pub(super) ordered: Queue,
    pub(super) windows: u64,
    pub(super) callbacks: u64,
    pub(super) calls: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Queue {
    pub(super) batches: u64,
    pub(super) bytes: u64,
}

impl From<QueueDepth> for Queue {
    fn from(QueueDepth { batches, bytes, .. }: QueueDepth) -> Self {
        Queue { batches, bytes }
    }
}

impl From<QueueDepths> for Queues {
    fn from(depths: QueueDepths) -> Self {
        Queues {
            durable: depths.durable.into(),
            ordered: depths.ordered.into(),
            windows: depths.windows,
            callbacks: depths.callbacks,
            calls: depths.calls,
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Times {
    pub(super) write: Time,
    pub(super) sync: Time,
    pub(super) scan: Time,
    pub(super) order: Time,
    pub(super) commit: Time,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Time {
    pub(super) count: u64,
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) max_ns: u64,
}

impl From<&Histogram> for Time {
    fn from(times: &Histogram) -> Self {
        Time {
            count: times.count(),
            p50_ns: times.quantile(0.5),
            p99_ns: times.quantile(0.99),
            max_ns: times.max(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Frames {
    batches: Size,
    bytes: Size,
}

#[derive(Debug, Serialize)]
struct Size {
    count: u64,
    p50: u64,
    p99: u64,
    max: u64,
}

impl From<&Histogram> for Size {
    fn from(sizes: &Histogram) -> Self {
        let Time { count, p50_ns: p50, p99_ns: p99, max_ns: max } = Time::from(sizes);
        Size { count, p50, p99, max }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Cursor {
    cursor: Box<RawValue>,
    /// For people.
    #[serde(skip)]
    pub(super) name: String,
    pub(super) at: u64,
    pub(super) lag: u64,
}

impl From<CursorInfo> for Cursor {
    fn from(CursorInfo { name, at, lag, .. }: CursorInfo) -> Self {
        let mut json = Vec::new();
        ndjson::write_bytes(&mut json, &name);
        let json = String::from_utf8(json).expect("JSON is UTF-8");
        let cursor = RawValue::from_string(json).expect("a name is written as JSON");
        Cursor { cursor, name: output::name(&name), at, lag }
    }
}

impl Numbers {
    pub(super) fn of(view: &View) -> anyhow::Result<Self> {
        let mut numbers: Numbers = match view {
            View::Inside(store) => store.stats().into(),
            View::Outside(follower) => follower.stats()?.into(),
        };
        if numbers.held != Some(0) {
            let age = view.oldest_held()?.and_then(|event| event.age(SystemTime::now()));
            numbers.oldest_held_seconds = age.map(|age| age.as_secs_f64());
        }
        Ok(numbers)
    }

    /// So many were delivered `elapsed` ago.
    pub(super) fn set_rate(&mut self, delivered: u64, elapsed: Duration) {
        let new = self.delivered.saturating_sub(delivered);
        self.delivered_per_second = Some(output::per_second(new, elapsed));
    }
}

impl From<Stats> for Numbers {
    fn from(stats: Stats) -> Self {
        let Timings { write, sync, scan, order, commit, frame_batches, frame_bytes, .. } =
            &stats.timings;
        Numbers {
            source: Source::Store,
            writer: None,
            delivered: stats.delivered,
            delivered_per_second: None,
            held: Some(stats.held),
            oldest_held_seconds: None,
            discarded: Some(stats.discarded),
            duplicates: Some(stats.duplicates),
            conflicts: Some(stats.conflicts),
            rejected: Some(stats.rejected),
            corrupt: stats.corrupt,
            streams: Some(stats.streams),
            segments: stats.segments,
            log_bytes: stats.log_bytes,
            first: stats.first,
            written: Some(stats.written),
            durable: Some(stats.durable),
            scanned: Some(stats.scanned),
            ordered: Some(stats.ordered),
            committed: stats.committed,
            checkpoint_position: Some(stats.checkpoint_position),
            backlog: Some(Backlog {
                sync: stats.backlog.sync.into(),
                scan: stats.backlog.scan.into(),
                order: stats.backlog.order.into(),
                commit: stats.backlog.commit.into(),
            }),
            queues: Some(stats.queues.into()),
            times: Some(Times {
                write: write.into(),
                sync: sync.into(),
                scan: scan.into(),
                order: order.into(),
                commit: commit.into(),
            }),
            frames: Some(Frames { batches: frame_batches.into(), bytes: frame_bytes.into() }),
            cursors: stats.cursors.into_iter().map(Cursor::from).collect(),
            memory_bytes: Some(stats.memory),
            recovery: Some(stats.recovery),
            checkpoint_error: stats.checkpoint_error,
            commit_error: stats.commit_error,
            poisoned: stats.poisoned,
        }
    }
}

impl From<FollowerStats> for Numbers {
    fn from(stats: FollowerStats) -> Self {
        let numbers = Numbers {
            source: Source::Follower,
            writer: stats.writer,
            delivered: stats.delivered,
            corrupt: stats.corrupt,
            segments: stats.segments,
            log_bytes: stats.log_bytes,
            first: stats.first,
            committed: stats.log_end,
            poisoned: stats.stopped,
            ..Numbers::default()
        };
        let Some(known) = stats.checkpoint else { return numbers };
        Numbers {
            held: Some(known.held),
            duplicates: Some(known.duplicates),
            conflicts: Some(known.conflicts),
            rejected: Some(known.rejected),
            discarded: Some(known.discarded),
            streams: Some(known.streams),
            checkpoint_position: Some(known.position),
            cursors: known.cursors.into_iter().map(Cursor::from).collect(),
            ..numbers
        }
    }
}
