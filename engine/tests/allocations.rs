//! In a steady state an append allocates nothing on the threads that it passes: the appender's, the
//! writer's, and that of the callbacks.

#![allow(unsafe_code)] // An allocator that counts.

#[path = "../../wal/tests/common/hooked.rs"]
mod hooked;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use hooked::{Hooked, Op};
use thalweg::storage::MemoryStorage;
use thalweg::{Ack, AppenderOptions, Batch, Event, NewEvent, Options, Store, StreamAppender};

/// Threads that can be told apart.
const THREADS_MAX: usize = 512;

/// Allocations of each thread while [`COUNTS`] is set. The last one is for all further threads.
static ALLOCATIONS: [AtomicU64; THREADS_MAX] = [const { AtomicU64::new(0) }; THREADS_MAX];
static COUNTS: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// The threads that have said who they are, and where the first allocation of each came from.
static KNOWN: Mutex<Vec<(String, usize)>> = Mutex::new(Vec::new());
static FIRST: Mutex<Vec<(usize, Backtrace)>> = Mutex::new(Vec::new());

thread_local! {
    static THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
    static IS_KNOWN: Cell<bool> = const { Cell::new(false) };
    /// Whether the thread is counting, which allocates too.
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is handed on to the system's allocator as it came; counting returns no memory and
// does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(pointer, layout, len) }
    }
}

fn this_thread() -> usize {
    THREAD.with(|thread| {
        if thread.get() == usize::MAX {
            thread.set(NEXT.fetch_add(1, Ordering::Relaxed).min(THREADS_MAX - 1));
        }
        thread.get()
    })
}

fn count() {
    if !COUNTS.load(Ordering::Relaxed) || IS_COUNTING.replace(true) {
        return;
    }
    let thread = this_thread();
    let is_first = ALLOCATIONS[thread].fetch_add(1, Ordering::Relaxed) == 0;
    if is_first
        && IS_KNOWN.get()
        && let Ok(mut first) = FIRST.lock()
    {
        first.push((thread, Backtrace::force_capture()));
    }
    IS_COUNTING.set(false);
}

/// Lets the test find the calling thread by its name.
fn introduce() {
    if !IS_KNOWN.replace(true) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        KNOWN.lock().unwrap().push((name, this_thread()));
    }
}

/// What is counted is the process's, so there is one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    KNOWN.lock().unwrap().clear();
    IS_KNOWN.set(false);
    introduce();
    alone
}

/// Runs `what`, and returns how often each known thread has allocated meanwhile, and all of them.
fn allocations(what: impl FnOnce()) -> (Vec<(String, u64)>, u64) {
    ALLOCATIONS.iter().for_each(|count| count.store(0, Ordering::SeqCst));
    FIRST.lock().unwrap().clear();
    COUNTS.store(true, Ordering::SeqCst);
    what();
    COUNTS.store(false, Ordering::SeqCst);
    let of = |thread: usize| ALLOCATIONS[thread].load(Ordering::SeqCst);
    let known = KNOWN.lock().unwrap();
    let counts = known.iter().map(|(name, thread)| (name.clone(), of(*thread))).collect();
    (counts, (0..THREADS_MAX).map(of).sum())
}

/// Where the first allocation of each known thread came from.
fn first_allocations() -> String {
    FIRST
        .lock()
        .unwrap()
        .iter()
        .map(|(thread, trace)| format!("thread {thread}:\n{trace}"))
        .collect()
}

/// Writes wait while it is held.
#[derive(Debug, Default)]
struct Held {
    /// Whether writes wait, and whether one does.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Held {
    fn set(&self, is_held: bool) {
        *self.state.lock().unwrap() = (is_held, false);
        self.changed.notify_all();
    }

    /// Waits while it is held.
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 = state.0;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| state.0).unwrap());
    }

    fn wait_until_one_waits(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| !state.1).unwrap());
    }
}

fn open() -> (Store, Arc<Held>) {
    let held = Arc::new(Held::default());
    let writes = Arc::clone(&held);
    // The engine's threads say who they are when they write.
    let storage = Hooked::new(MemoryStorage::new(), move |op| {
        if op == Op::Write {
            introduce();
            writes.pass();
        }
        Ok(())
    });
    let options = Options::new().segment_bytes(64 << 20).scanners(1).orderers(1);
    let store = options.open_on(Arc::new(storage)).expect("opens");
    // A store begins with small segments. In the large ones that follow, no segment is begun, nor
    // asked for, in what is measured.
    let appender = store.appender("warm up").expect("an appender");
    while store.stats().segments < 8 {
        appender.append(vec![0; 1 << 20]).expect("accepted").wait().expect("appended");
    }
    (store, held)
}

fn chained() -> NewEvent {
    Event::new(vec![7; 100])
}

fn batches(count: usize, events: usize, event: &NewEvent) -> Vec<Batch> {
    (0..count).map(|_| Batch::from(vec![event.clone(); events])).collect()
}

const APPENDS: usize = 2000;

/// Allocations of the threads that are known, and of all.
type Counts = (Vec<(String, u64)>, u64);

fn submit_and_wait(appender: &StreamAppender, batch: Batch) {
    appender.submit(batch).expect("accepted").wait().expect("appended");
}

fn steady(on: (&Store, &StreamAppender, &Held), append: impl Fn(&StreamAppender, Batch)) -> Counts {
    steady_of(on, chained(), append)
}

/// Measures after a warm-up, in which the pipeline was as full as it can be, so that whatever is kept
/// for later is there.
fn steady_of(
    (store, appender, held): (&Store, &StreamAppender, &Held),
    event: NewEvent,
    append: impl Fn(&StreamAppender, Batch),
) -> Counts {
    held.set(true);
    let other = store.appender("warm up").expect("an appender");
    let first = other.append("has the writer wait").expect("accepted");
    held.wait_until_one_waits();
    // What waits for room has a buffer too.
    let filling = appender.clone();
    let batches_to_fill = batches(AppenderOptions::PIPELINE_MAX, 1, &event);
    let filling = std::thread::spawn(move || {
        let mut tickets = Vec::new();
        for batch in batches_to_fill {
            match filling.submit_timeout(batch, Duration::from_millis(10)) {
                Ok(ticket) => tickets.push(ticket),
                Err(_) => break,
            }
        }
        tickets
    });
    let tickets = filling.join().expect("the pipeline is full");
    held.set(false);
    first.wait().expect("appended");
    tickets.into_iter().for_each(|ticket| drop(ticket.wait().expect("appended")));
    for batch in batches(2 * APPENDS, 1, &event) {
        append(appender, batch);
    }
    appender.flush().expect("flushes");
    // A queue may grow once more in what is measured, when threads meet as they have not before; in
    // what follows, it has grown.
    let mut attempts = (0..5).map(|_| {
        let batches = batches(APPENDS, 1, &event);
        allocations(|| batches.into_iter().for_each(|batch| append(appender, batch)))
    });
    let is_steady = |(counts, _): &Counts| {
        let on_the_way = counts.iter().filter(|(name, _)| is_on_the_way(name));
        on_the_way.map(|(_, count)| count).sum::<u64>() == 0
    };
    let mut last = attempts.next().expect("there are some");
    while !is_steady(&last) {
        match attempts.next() {
            Some(next) => last = next,
            None => break,
        }
    }
    last
}

/// Whether it is a thread that an append of this thread passes.
fn is_on_the_way(name: &str) -> bool {
    let this = std::thread::current();
    ["thalweg-writer", "thalweg-callback"].contains(&name) || this.name() == Some(name)
}

fn assert_none(what: &str, (counts, all): Counts) {
    let all = all * 1000 / APPENDS as u64;
    println!("{what}: {all} allocations for 1,000 appends in the whole process");
    let appender = std::thread::current().name().unwrap_or_default().to_owned();
    let of = |thread: &str| {
        let counts = counts.iter().filter(|(name, _)| name == thread);
        counts.map(|(_, count)| count).sum::<u64>()
    };
    assert_eq!(of(&appender), 0, "{what}: {counts:?}\n{}", first_allocations());
    assert_eq!(of("thalweg-callback"), 0, "{what}: {counts:?}\n{}", first_allocations());
    assert_eq!(of("thalweg-writer"), 0, "{what}: {counts:?}\n{}", first_allocations());
    assert!(counts.iter().any(|(name, _)| name == "thalweg-writer"), "{counts:?}");
}

#[test]
fn an_append_that_is_waited_for_allocates_nothing() {
    let _alone = alone();
    let (store, held) = open();
    for pipeline in [1, 2, 16] {
        let options = AppenderOptions::new().pipeline(pipeline);
        let appender = store.appender_with("s", options).expect("an appender");
        let counts = steady((&store, &appender, &held), submit_and_wait);
        let what = format!("submit and wait, pipeline {pipeline}");
        assert_none(&what, counts);
    }
}

#[test]
fn an_append_that_is_forgotten_allocates_nothing() {
    let _alone = alone();
    let (store, held) = open();
    for ack in [Ack::Durable, Ack::Ordered] {
        for pipeline in [1, 2, 16] {
            for has_callback in [false, true] {
                let mut options = AppenderOptions::new().pipeline(pipeline).ack(ack);
                if has_callback {
                    options = options.on_outcome(|outcome| {
                        introduce();
                        assert!(outcome.is_ok());
                    });
                }
                let appender = store.appender_with("s", options).expect("an appender");
                let counts = steady((&store, &appender, &held), |appender, batch| {
                    appender.submit_and_forget(batch).expect("accepted");
                });
                let what =
                    format!("forgotten, {ack:?}, pipeline {pipeline}, callback: {has_callback}");
                assert_none(&what, counts);
            }
        }
    }
}

/// A flush left an empty buffer among those that are kept, and a later batch grew it.
#[test]
fn a_flush_costs_the_batches_after_it_nothing() {
    let _alone = alone();
    let (store, held) = open();
    let options = AppenderOptions::new().pipeline(16);
    let appender = store.appender_with("s", options).expect("an appender");
    steady((&store, &appender, &held), submit_and_wait);
    const FLUSHES: u64 = 10;
    let mut rounds: Vec<_> = (0..FLUSHES).map(|_| batches(40, 1, &chained())).collect();
    let (counts, _) = allocations(|| {
        for batches in rounds.drain(..) {
            appender.flush().expect("flushes");
            batches.into_iter().for_each(|batch| submit_and_wait(&appender, batch));
        }
    });
    let this = std::thread::current().name().unwrap_or_default().to_owned();
    let own: u64 = counts.iter().filter(|(name, _)| *name == this).map(|(_, count)| count).sum();
    // What the flush itself waits on.
    assert!(own <= FLUSHES, "{counts:?}\n{}", first_allocations());
}

#[test]
fn an_event_with_a_few_parents_allocates_nothing() {
    let _alone = alone();
    let (store, held) = open();
    let appender = store.appender("s").expect("an appender");
    let root = Event::new("root").id("root").parents::<&str>([]);
    appender.append_event(root).expect("accepted").wait().expect("appended");
    let (counts, _) = steady_of(
        (&store, &appender, &held),
        Event::new("x").parents(["root", "root"]),
        submit_and_wait,
    );
    let this = std::thread::current().name().unwrap_or_default().to_owned();
    for (name, count) in &counts {
        let is_on_the_way = *name == this || name == "thalweg-writer";
        assert!(!is_on_the_way || *count == 0, "{counts:?}\n{}", first_allocations());
    }
}

/// What the engine allocates for a group is spread over the events in it.
#[test]
fn a_group_allocates_no_more_than_its_events_do() {
    const EVENTS: usize = 64;
    const BATCHES: usize = 200;
    let _alone = alone();
    let (store, _) = open();
    let appender = store.appender_with("s", AppenderOptions::new().pipeline(16)).expect("opens");
    let run = |batches: Vec<Batch>| {
        let mut last = None;
        for batch in batches {
            last = Some(appender.submit(batch).expect("accepted"));
        }
        let end = last.expect("a batch").wait().expect("appended").end;
        store.wait_committed(end).expect("committed");
    };
    run(batches(BATCHES, EVENTS, &chained()));
    let measured = batches(BATCHES, EVENTS, &chained());
    let (counts, all) = allocations(|| run(measured));
    let per_append = all as f64 / (BATCHES * EVENTS) as f64;
    println!("{per_append:.3} allocations for an event in the whole process, {counts:?}");
    assert!(per_append < 0.25, "{per_append} allocations for an event: {counts:?}");
    assert!(counts.iter().all(|(_, count)| *count < 10 * BATCHES as u64), "{counts:?}");
}

/// What is asked for costs nothing before it is there.
#[test]
fn a_long_range_allocates_no_more_than_a_short_one() {
    const FAR: u64 = 1 << 63;
    let _alone = alone();
    let store = Options::new().open_on(Arc::new(MemoryStorage::new())).expect("opens");
    let appender = store.appender_with("s", AppenderOptions::new().ack(Ack::Ordered)).unwrap();
    for _ in 0..10 {
        appender.append("event").expect("accepted").wait().expect("appended");
    }
    let name = thread::current().name().unwrap_or_default().to_owned();
    let mine = |what: &dyn Fn()| {
        let (counts, _) = allocations(what);
        counts.iter().find(|(thread, _)| *thread == name).expect("it has said who it is").1
    };
    let read_to = |to: u64| {
        mine(&|| {
            assert_eq!(store.read(..to).unwrap().count(), 10);
            let stream = store.stream("s").unwrap().unwrap();
            assert_eq!(stream.read(..to).unwrap().count(), 10);
        })
    };
    assert_eq!(read_to(10), read_to(FAR));
    let wait_at = |from: u64| {
        mine(&|| {
            assert_eq!(store.read(from..).unwrap().count(), 0);
            for mut waiting in [
                store.subscribe(from).unwrap(),
                store.subscribe_stream("s", from).unwrap(),
                store.subscribe_stream_at("s", from).unwrap(),
                store.subscribe_prefix("s", from).unwrap(),
            ] {
                assert!(waiting.next_timeout(Duration::from_millis(1)).unwrap().is_none());
            }
        })
    };
    assert_eq!(wait_at(10), wait_at(FAR));
    store.close().expect("closes");
}
