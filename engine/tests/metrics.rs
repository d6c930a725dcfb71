//! The feature `metrics`: what a recorder hears of stores.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{Rng, acked, append_every_kind};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};
use thalweg::{Ack, Follower, Options, Stats, Store, Timings};

/// A number by its name and its labels.
type Numbers<T> = Mutex<BTreeMap<String, Arc<T>>>;

/// Keeps what it hears.
#[derive(Default)]
struct Heard {
    counters: Numbers<AtomicU64>,
    gauges: Numbers<AtomicU64>,
    histograms: Numbers<Mutex<Vec<f64>>>,
    described: Mutex<BTreeSet<String>>,
}

struct Values(Arc<Mutex<Vec<f64>>>);

impl HistogramFn for Values {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

fn name_of(key: &Key) -> String {
    let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
    format!("{}{}", key.name(), labels.collect::<String>())
}

fn number<T: Default>(numbers: &Numbers<T>, key: &Key) -> Arc<T> {
    Arc::clone(numbers.lock().unwrap().entry(name_of(key)).or_default())
}

impl Heard {
    fn describe(&self, key: &KeyName, description: &str) {
        assert!(!description.is_empty());
        self.described.lock().unwrap().insert(key.as_str().to_owned());
    }

    fn counter(&self, name: &str) -> u64 {
        self.counters.lock().unwrap()[name].load(Ordering::SeqCst)
    }

    fn gauge(&self, name: &str) -> f64 {
        f64::from_bits(self.gauges.lock().unwrap()[name].load(Ordering::SeqCst))
    }

    fn values(&self, name: &str) -> Vec<f64> {
        self.histograms.lock().unwrap()[name].lock().unwrap().clone()
    }

    /// All names, without labels.
    fn names(&self) -> BTreeSet<String> {
        let counters: Vec<String> = self.counters.lock().unwrap().keys().cloned().collect();
        let gauges: Vec<String> = self.gauges.lock().unwrap().keys().cloned().collect();
        let histograms: Vec<String> = self.histograms.lock().unwrap().keys().cloned().collect();
        let all = [counters, gauges, histograms].concat();
        all.iter().map(|name| name.split(' ').next().unwrap().to_owned()).collect()
    }
}

impl Recorder for Heard {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&key, &description);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&key, &description);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&key, &description);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(number(&self.counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(number(&self.gauges, key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Values(number(&self.histograms, key))))
    }
}

/// What is heard of a store is what it says itself.
fn agree(heard: &Heard, label: &str, stats: &Stats) {
    let named = |name: &str| format!("thalweg_{name} store={label}");
    for (name, value) in [
        ("delivered_events_total", stats.delivered),
        ("duplicate_events_total", stats.duplicates),
        ("conflicting_events_total", stats.conflicts),
        ("rejected_events_total", stats.rejected),
        ("appended_batches_total", stats.timings.frame_batches.sum()),
        ("appended_bytes_total", stats.timings.frame_bytes.sum()),
        ("commit_retries_total", 0),
    ] {
        assert_eq!(heard.counter(&named(name)), value, "{name}");
    }
    for (name, value) in [
        ("held_events", stats.held),
        ("streams", stats.streams),
        ("memory_bytes", stats.memory),
        ("unordered_bytes", 0),
        ("poisoned", 0),
    ] {
        assert_eq!(heard.gauge(&named(name)), value as f64, "{name}");
    }
    let Timings { write, sync, scan, order, commit, frame_batches, frame_bytes, .. } =
        &stats.timings;
    for (name, own) in [
        ("write_seconds", write),
        ("fdatasync_seconds", sync),
        ("scan_seconds", scan),
        ("order_seconds", order),
        ("commit_seconds", commit),
    ] {
        let values = heard.values(&named(name));
        assert_eq!(values.len() as u64, own.count(), "{name}");
        let sum: f64 = values.iter().sum();
        assert!((sum - own.sum() as f64 / 1e9).abs() < 1e-6, "{name}: {sum} seconds");
    }
    for (name, own) in [("frame_batches", frame_batches), ("frame_bytes", frame_bytes)] {
        let values = heard.values(&named(name));
        assert_eq!(
            (values.len() as u64, values.iter().sum::<f64>()),
            (own.count(), own.sum() as f64)
        );
    }
}

#[test]
fn a_recorder_hears_of_each_store_what_it_says_itself() {
    let heard = Heard::default();
    let mut rng = Rng::from_env();
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let [first, second] = &dirs
        .each_ref()
        .map(|dir| with_local_recorder(&heard, || Store::open(dir.path()).expect("opens")));
    append_every_kind(first, &mut rng, 20, 20);
    append_every_kind(second, &mut rng, 5, 20);
    let sent = first.appender_with("s", acked(Ack::Durable)).expect("an appender");
    sent.append("x").expect("accepted").wait().expect("appended");
    first.checkpoint().expect("a checkpoint");
    for (store, dir) in [first, second].into_iter().zip(&dirs) {
        store.wait_committed(store.durable_end()).expect("goes on");
        store.checkpoint().expect("a checkpoint");
        let label = dir.path().display().to_string();
        agree(&heard, &label, &store.stats());
        let checkpoints = heard.values(&format!("thalweg_checkpoint_seconds store={label}"));
        assert!(!checkpoints.is_empty() && checkpoints.iter().all(|&seconds| seconds > 0.0));
        for ack in ["durable", "ordered"] {
            let queued = heard.gauge(&format!("thalweg_queued_batches store={label} ack={ack}"));
            assert!((0.0..=1.0).contains(&queued), "{queued}");
        }
    }
    let label = dirs[0].path().display().to_string();
    let events = heard.counter(&format!("thalweg_appended_events_total store={label}"));
    let stats = first.stats();
    let known = [stats.delivered, stats.held, stats.duplicates, stats.conflicts, stats.rejected];
    // Seals, put on and taken off, are counted with the events.
    assert!(events >= known.iter().sum(), "{events}: {known:?}");
    dirs.iter().zip([first, second]).for_each(|(_, store)| store.close().expect("closes"));
}

#[test]
fn every_number_is_described_and_in_the_documentation() {
    let heard = Heard::default();
    let dir = tempfile::tempdir().expect("a directory");
    let store = with_local_recorder(&heard, || Store::open(dir.path()).expect("opens"));
    store.close().expect("closes");
    let names = heard.names();
    assert_eq!(names, *heard.described.lock().unwrap());
    let page = include_str!("../src/lib.rs");
    let words = page.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
    let documented: BTreeSet<String> =
        words.filter(|word| word.starts_with("thalweg_")).map(str::to_owned).collect();
    let documented = documented.into_iter().filter(|word| word != "thalweg_wal").collect();
    assert_eq!(names, documented);
}

#[test]
fn who_only_reads_counts_nothing_of_what_the_owner_counts() {
    let heard = Heard::default();
    let dir = tempfile::tempdir().expect("a directory");
    Store::open(dir.path()).expect("opens").close().expect("closes");
    with_local_recorder(&heard, || {
        let reader = Options::new().open_read_only(dir.path()).expect("opens");
        let follower: Follower = Store::open_follower(dir.path()).expect("follows");
        drop((reader, follower));
    });
    assert_eq!(heard.names(), BTreeSet::new());
}
