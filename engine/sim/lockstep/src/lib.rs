//! Threads that run one at a time, in an order that a seed decides.
//!
//! [`run`] makes a *world*. The thread that calls it and all threads that are started in it with
//! [`thread`] are threads of the operating system, but only one of them runs at any moment: the others
//! wait for their turn. At each operation of the types in this crate the one that runs may have to
//! hand the turn on, and whoever has to wait hands it on. To whom, the seed decides. So one seed gives
//! one run, if the threads share nothing but through these types and ask nothing of the outside
//! that differs from run to run.
//!
//! A world has a clock of its own, [`now`]. It moves a little with every step, and jumps when
//! everybody waits, or sometimes when the seed wants a wait to run out of time. When everybody waits
//! and nobody has a deadline, the process ends with a report of who waits: that is a deadlock.
//!
//! Outside of a world everything here is what `std` has.
//!
//! Not here: weak memory. Whatever one thread has written the next one sees. loom explores what may come
//! of orderings; this explores orders of steps, in programs that are far too large for loom.

pub mod atomic;
mod channel;
mod lock;
pub mod thread;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

pub use channel::{
    Either, Receiver, RecvError, SendError, Sender, TryRecvError, bounded, either, unbounded,
};
pub use lock::{
    Condvar, Mutex as Lock, MutexGuard as LockGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    WaitTimeoutResult,
};

/// More steps than any run takes that comes to an end.
const STEPS_MAX: u64 = 20_000_000;
/// Nobody computes for this long without a step.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// What a step takes on the world's clock, in nanoseconds.
const STEP_NS: u64 = 1_000;

thread_local! {
    static CURRENT: RefCell<Option<(Arc<World>, usize)>> = const { RefCell::new(None) };
}

/// Where the clocks of all worlds begin.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What a run came to, besides its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Operations at which the turn could have been handed on.
    pub steps: u64,
    /// How often it was.
    pub switches: u64,
    /// Threads that there were.
    pub threads: usize,
    /// Differs, but for chance, if the turns went another way.
    pub fingerprint: u64,
}

/// Runs `body` in a world of its own, and waits until all threads in it have ended.
///
/// # Panics
///
/// If `body` panics, with what it says, when the other threads have ended.
pub fn run<T>(seed: u64, body: impl FnOnce() -> T) -> (T, Summary) {
    let world = Arc::new(World::new(seed));
    let me = world.enter(String::from("main"), std::thread::current());
    world.turn.store(me, Ordering::Release);
    CURRENT.set(Some((Arc::clone(&world), me)));
    let value = catch_unwind(AssertUnwindSafe(body));
    for other in 1.. {
        if !world.wait_for(me, other) {
            break;
        }
    }
    CURRENT.set(None);
    let state = world.state();
    let summary = Summary {
        steps: state.steps,
        switches: state.switches,
        threads: state.threads.len(),
        fingerprint: state.fingerprint,
    };
    drop(state);
    match value {
        Ok(value) => (value, summary),
        Err(panic) => resume_unwind(panic),
    }
}

/// A place where the turn may go to another thread.
pub fn point() {
    if let Some((world, me)) = current() {
        world.point(me, false);
    }
}

/// A place where the turn should go to another thread, since this one has nothing to do.
pub fn yield_now() {
    match current() {
        Some((world, me)) => world.point(me, true),
        None => std::thread::yield_now(),
    }
}

/// The time, in this world or outside.
pub fn now() -> Instant {
    match current() {
        Some((world, _)) => *EPOCH + Duration::from_nanos(world.state().clock_ns),
        None => Instant::now(),
    }
}

/// One of two, as the seed has it.
fn toss() -> bool {
    current().is_some_and(|(world, _)| world.state().dice.below(2) == 1)
}

/// The ordinal of this thread in its world, if it is in one.
pub fn ordinal() -> Option<usize> {
    current().map(|(_, me)| me)
}

fn current() -> Option<(Arc<World>, usize)> {
    // After the thread's locals are gone there is no world either.
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

#[derive(Debug)]
struct World {
    seed: u64,
    /// Whose turn it is. Written by who has it, with the state locked.
    turn: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    threads: Vec<Member>,
    dice: Dice,
    policy: Policy,
    clock_ns: u64,
    steps: u64,
    switches: u64,
    fingerprint: u64,
    lowest: i64,
}

#[derive(Debug)]
struct Member {
    name: String,
    thread: Thread,
    status: Status,
    /// Its last wait ended because its time was up.
    timed_out: bool,
    priority: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ready,
    /// Waits for one of two things, until a time on the world's clock if there is one.
    Waits {
        on: usize,
        or: usize,
        until_ns: Option<u64>,
    },
    Ended,
}

/// Who goes on.
#[derive(Debug, Clone, Copy)]
enum Policy {
    /// At one step of so many, anybody.
    Anybody { one_in: u64 },
    /// Whoever has the highest priority; at one step of so many, the one that runs gets the lowest.
    /// (Burckhardt and others, "A randomized scheduler with probabilistic guarantees", 2010.)
    Priority { one_in: u64 },
}

/// SplitMix64, Sebastiano Vigna.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What is waited for when a thread is to end.
fn end_of(thread: usize) -> usize {
    usize::MAX - thread
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed ^ 0x5C4E_D01E);
        let policy = match dice.below(8) {
            0 => Policy::Anybody { one_in: 1 },
            1 | 2 => Policy::Anybody { one_in: 4 },
            3 => Policy::Anybody { one_in: 16 },
            4 => Policy::Anybody { one_in: 100 },
            5 => Policy::Priority { one_in: 16 },
            6 => Policy::Priority { one_in: 200 },
            _ => Policy::Priority { one_in: 2000 },
        };
        World {
            seed,
            turn: AtomicUsize::new(0),
            state: Mutex::new(State {
                threads: Vec::new(),
                dice,
                policy,
                clock_ns: 0,
                steps: 0,
                switches: 0,
                fingerprint: 0,
                lowest: 0,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, name: String, thread: Thread) -> usize {
        let mut state = self.state();
        let priority = state.dice.below(1 << 40) as i64;
        let status = Status::Ready;
        state.threads.push(Member { name, thread, status, timed_out: false, priority });
        state.threads.len() - 1
    }

    fn point(&self, me: usize, yields: bool) {
        let mut state = self.state();
        state.steps += 1;
        state.clock_ns += STEP_NS;
        if state.steps > STEPS_MAX {
            self.give_up(&state, "it does not come to an end");
        }
        let policy = state.policy;
        let next = match policy {
            _ if yields => {
                state.demote(me);
                state.choose()
            }
            Policy::Anybody { one_in } if state.dice.below(one_in) == 0 => state.choose(),
            Policy::Anybody { .. } => Some(me),
            Policy::Priority { one_in } => {
                if state.dice.below(one_in) == 0 {
                    state.demote(me);
                }
                state.choose()
            }
        };
        self.hand_on(me, next, state);
    }

    /// Waits until somebody wakes those who wait for `on`; returns whether the time was up before.
    fn wait(&self, me: usize, on: usize, deadline: Option<Instant>) -> bool {
        self.wait_either(me, on, on, deadline)
    }

    /// The same for either of two things.
    fn wait_either(&self, me: usize, on: usize, or: usize, deadline: Option<Instant>) -> bool {
        let mut state = self.state();
        let since_epoch = |at: Instant| at.saturating_duration_since(*EPOCH).as_nanos() as u64;
        state.threads[me].status = Status::Waits { on, or, until_ns: deadline.map(since_epoch) };
        state.threads[me].timed_out = false;
        let next = state.choose();
        self.hand_on(me, next, state);
        self.state().threads[me].timed_out
    }

    fn wake(&self, on: usize) {
        self.state().wake(on);
    }

    /// Waits until another thread has ended; `false` if there is none of this number.
    fn wait_for(&self, me: usize, other: usize) -> bool {
        loop {
            match self.state().threads.get(other) {
                None => return false,
                Some(member) if member.status == Status::Ended => return true,
                Some(_) => {}
            }
            self.wait(me, end_of(other), None);
        }
    }

    /// Ends a thread, which has the turn.
    fn leave(&self, me: usize) {
        let mut state = self.state();
        state.threads[me].status = Status::Ended;
        state.wake(end_of(me));
        let next = state.choose();
        self.pass(next, &mut state);
    }

    /// Gives the turn to `next`, and waits until it comes back.
    fn hand_on(&self, me: usize, next: Option<usize>, mut state: MutexGuard<'_, State>) {
        if next == Some(me) {
            return;
        }
        self.pass(next, &mut state);
        drop(state);
        self.await_turn(me);
    }

    fn pass(&self, next: Option<usize>, state: &mut State) {
        let Some(next) = next else { self.give_up(state, "everybody waits for ever") };
        state.switches += 1;
        let mixed = state.fingerprint ^ state.steps << 16 ^ next as u64;
        state.fingerprint = Dice(mixed).next();
        // Release: pairs with the Acquire load in `await_turn`.
        self.turn.store(next, Ordering::Release);
        state.threads[next].thread.unpark();
    }

    fn await_turn(&self, me: usize) {
        // Acquire: pairs with the Release store in `pass`; what the others did comes before.
        while self.turn.load(Ordering::Acquire) != me {
            let begun = Instant::now();
            std::thread::park_timeout(STUCK_AFTER);
            if begun.elapsed() >= STUCK_AFTER && self.turn.load(Ordering::Acquire) != me {
                let state = self.state();
                let name = &state.threads[self.turn.load(Ordering::Acquire)].name;
                self.give_up(
                    &state,
                    &format!("{name} computes for ever, or waits for the outside"),
                );
            }
        }
    }

    /// Ends the process: no thread of this world can go on.
    fn give_up(&self, state: &State, why: &str) -> ! {
        let mut report =
            format!("\nTHALWEG_SEED={}: {why}, after {} steps\n", self.seed, state.steps);
        for (number, member) in state.threads.iter().enumerate() {
            let _ = writeln!(report, "  {number} {}: {:?}", member.name, member.status);
        }
        eprintln!("{report}");
        std::process::exit(101);
    }
}

impl State {
    /// Who goes on: nobody, if all wait for ever.
    fn choose(&mut self) -> Option<usize> {
        let is_ready = |member: &Member| member.status == Status::Ready;
        let clock_ns = self.clock_ns;
        for member in &mut self.threads {
            if matches!(member.status, Status::Waits { until_ns: Some(until), .. } if until <= clock_ns)
            {
                member.status = Status::Ready;
                member.timed_out = true;
            }
        }
        let ready = self.threads.iter().filter(|member| is_ready(member)).count() as u64;
        // Now and then a wait runs out of time though somebody could go on.
        if ready == 0 || self.dice.below(256) == 0 {
            self.pass_time();
        }
        let ready = || self.threads.iter().enumerate().filter(|(_, member)| is_ready(member));
        match self.policy {
            Policy::Anybody { .. } => {
                let count = ready().count() as u64;
                let chosen = if count == 0 { return None } else { self.dice.below(count) as usize };
                ready().nth(chosen).map(|(number, _)| number)
            }
            Policy::Priority { .. } => {
                ready().max_by_key(|(_, member)| member.priority).map(|(number, _)| number)
            }
        }
    }

    /// Lets the wait with the next deadline run out of time, if there is one.
    fn pass_time(&mut self) {
        let deadlines = self.threads.iter_mut().filter_map(|member| match member.status {
            Status::Waits { until_ns: Some(until_ns), .. } => Some((until_ns, member)),
            Status::Waits { until_ns: None, .. } | Status::Ready | Status::Ended => None,
        });
        if let Some((until_ns, member)) = deadlines.min_by_key(|(until_ns, _)| *until_ns) {
            member.status = Status::Ready;
            member.timed_out = true;
            self.clock_ns = self.clock_ns.max(until_ns);
        }
    }

    fn demote(&mut self, me: usize) {
        self.lowest -= 1;
        self.threads[me].priority = self.lowest;
    }

    fn wake(&mut self, on: usize) {
        for member in &mut self.threads {
            if matches!(member.status, Status::Waits { on: one, or, .. } if one == on || or == on) {
                member.status = Status::Ready;
            }
        }
    }
}
