//! From an append to the subscribers that wait for it.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::report::{Figures, Quantiles, Row};
use super::{
    Contender, Durability, Failure, Options, Subscribe, What, header, now_ns, payload, stamp,
};

/// Nobody who works takes so long.
const STUCK_AFTER: Duration = Duration::from_secs(60);
/// Thousands of waiters need little else.
const STACK: usize = 256 << 10;
/// How long waiters have to fall asleep before the first append.
const SETTLE: Duration = Duration::from_millis(200);

/// What the waiters wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// Each for a stream of its own.
    OwnStreams,
    /// All of them for everything.
    Everything,
}

impl Of {
    pub(super) const ALL: [Of; 2] = [Of::OwnStreams, Of::Everything];
}

pub(super) fn run(
    contender: &Contender,
    dir: &Path,
    durability: Durability,
    of: Of,
    waiters: usize,
    options: &Options,
) -> Result<Row, Failure> {
    // Each event goes to one stream, and is for so many waiters.
    let (streams, each) = match of {
        Of::OwnStreams => (waiters, 1),
        Of::Everything => (1, waiters),
    };
    let warm_up = options.appends / 10;
    let log = (contender.open)(dir, durability)?;
    let left = &AtomicUsize::new(0);
    let (all_seen_in, all_seen) = channel();
    let (mut acks, seen) = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        let appended = (|| {
            for number in 0..waiters {
                let (what, next) = match of {
                    Of::OwnStreams => (What::Stream(number), number as u64),
                    Of::Everything => (What::All, 0),
                };
                let (subscription, all_seen) = (log.subscribe(what)?, all_seen_in.clone());
                let step = streams as u64;
                let waiter = Waiter { subscription, next, step, warm_up, left, all_seen };
                let builder = std::thread::Builder::new().stack_size(STACK);
                threads.push(builder.spawn_scoped(scope, move || waiter.wait())?);
            }
            std::thread::sleep(SETTLE);
            let mut appender = log.appender()?;
            let mut acks = Vec::new();
            for number in 0..options.appends {
                let mut event = [(number as usize % streams, payload(number, options.payload))];
                left.store(each, Ordering::SeqCst);
                let begun = now_ns();
                stamp(&mut event[0].1);
                appender.append(&event)?;
                acks.push(now_ns() - begun);
                all_seen.recv_timeout(STUCK_AFTER).map_err(|_| "a subscriber did not wake")?;
            }
            Ok::<_, Failure>(acks)
        })();
        // Ends the waits, after an error too.
        log.close()?;
        let mut seen = Vec::new();
        for thread in threads {
            seen.extend(thread.join().map_err(|_| "a subscriber has panicked")??);
        }
        Ok::<_, Failure>((appended?, seen))
    })?;
    let counted = options.appends - warm_up;
    if seen.len() as u64 != counted * each as u64 {
        return Err(format!("{} events were seen, of {}", seen.len(), counted * each as u64).into());
    }
    let of = match of {
        Of::OwnStreams => "own streams",
        Of::Everything => "everything",
    };
    Ok(Row {
        case: "wake",
        durability,
        of: format!("{waiters} on {of}"),
        threads: waiters,
        payload: options.payload,
        events: options.appends * each as u64,
        figures: Figures::Latency {
            ack: Quantiles::of(acks.split_off(warm_up as usize)),
            seen: Quantiles::of(seen),
        },
    })
}

struct Waiter<'a> {
    subscription: Box<dyn Subscribe + Send>,
    /// Number of the event that comes next, and how far it is to the one after that.
    next: u64,
    step: u64,
    /// Events before this one do not count.
    warm_up: u64,
    /// How many are still to see the event that was appended last. The last one says so.
    left: &'a AtomicUsize,
    all_seen: Sender<()>,
}

impl Waiter<'_> {
    /// Waits until the store is closed. Returns how long each event took, in nanoseconds.
    fn wait(self) -> Result<Vec<u64>, Failure> {
        let Waiter { mut subscription, mut next, step, warm_up, left, all_seen } = self;
        let mut times = Vec::new();
        let mut visit = |payload: &[u8]| {
            let now = now_ns();
            let (number, sent) = header(payload)?;
            if number != next {
                return Err(format!("event {number} came instead of {next}").into());
            }
            next += step;
            if number >= warm_up {
                times.push(now - sent);
            }
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                let _ = all_seen.send(());
            }
            Ok(())
        };
        while subscription.next(&mut visit)? {}
        Ok(times)
    }
}
