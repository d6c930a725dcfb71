//! An account that several threads withdraw from, and that is never overdrawn: whoever withdraws looks at the events,
//! decides, and appends on the condition that nothing has come since. Who was too late is told so, reads what has
//! come, and decides again. Nobody holds a lock meanwhile.
//!
//! ```sh
//! cargo run -p thalweg --example account
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};
use std::thread;

use thalweg::{Ack, AppenderOptions, Placement, Rejection, Store, StreamAppender};

type Failure = Box<dyn Error + Send + Sync>;

const STREAM: &str = "account-7";
const THREADS: u64 = 4;
const PAID_IN: i64 = 1000;

fn main() -> Result<(), Failure> {
    let temporary = tempfile::tempdir()?;
    let given = std::env::args().nth(1).map(PathBuf::from);
    println!("{}", run(&given.unwrap_or_else(|| temporary.path().join("store")))?);
    Ok(())
}

/// Pays in, withdraws until nothing more can be withdrawn, and checks the account.
pub fn run(path: &Path) -> Result<String, Failure> {
    let store = Store::open(path)?;
    // Only a receipt that has waited for the order says what became of the event.
    let appender = store.appender_with(STREAM, AppenderOptions::new().ack(Ack::Ordered))?;
    let before = Account::read(&store)?;
    appender.append(PAID_IN.to_string())?.wait()?;

    let withdrawn = thread::scope(|scope| {
        let start = |number| {
            let (store, appender) = (&store, &appender);
            scope.spawn(move || withdraw(store, appender, number))
        };
        let threads: Vec<_> = (1..=THREADS).map(start).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("does not panic"));
        joined.collect::<Result<Vec<_>, _>>()
    })?;
    for (number, thread) in (1..).zip(&withdrawn) {
        let Withdrawn { sum, events, late } = thread;
        println!("thread {number}: {sum:>4} in {events:>3} withdrawals; too late {late:>3} times");
    }

    // What the threads say, and what the log says.
    let after = Account::read(&store)?;
    let sum: i64 = withdrawn.iter().map(|thread| thread.sum).sum();
    let events: u64 = withdrawn.iter().map(|thread| thread.events).sum();
    assert_eq!(after.balance, before.balance + PAID_IN - sum);
    assert_eq!(after.events, before.events + 1 + events);
    store.close()?;
    Ok(format!("{} there, {sum} withdrawn, {} left", before.balance + PAID_IN, after.balance))
}

/// What somebody who has read so many events of the account knows of it.
#[derive(Default)]
struct Account {
    events: u64,
    balance: i64,
}

impl Account {
    fn read(store: &Store) -> Result<Self, Failure> {
        let mut account = Account::default();
        account.catch_up(store)?;
        Ok(account)
    }

    /// Takes in what has come since.
    fn catch_up(&mut self, store: &Store) -> Result<(), Failure> {
        let Some(stream) = store.stream(STREAM)? else { return Ok(()) };
        for event in stream.read(self.events..)? {
            self.balance += std::str::from_utf8(event?.payload())?.parse::<i64>()?;
            self.events += 1;
            assert!(self.balance >= 0, "overdrawn by event {}", self.events - 1);
        }
        Ok(())
    }
}

/// What a thread has done.
#[derive(Default)]
struct Withdrawn {
    sum: i64,
    events: u64,
    late: u64,
}

/// Withdraws as often as it can.
fn withdraw(store: &Store, appender: &StreamAppender, thread: u64) -> Result<Withdrawn, Failure> {
    let mut withdrawn = Withdrawn::default();
    let mut account = Account::read(store)?;
    loop {
        let amount = 1 + ((withdrawn.events * 7 + thread * 5) % 20) as i64;
        if amount > account.balance {
            return Ok(withdrawn);
        }
        let ticket = appender.append_if_local(account.events, (-amount).to_string())?;
        match &ticket.wait()?.placements[0] {
            Placement::Delivered { .. } => {
                withdrawn.sum += amount;
                withdrawn.events += 1;
            }
            Placement::Rejected { reason: Rejection::Local { .. }, .. } => withdrawn.late += 1,
            other => return Err(format!("unexpected: {other:?}").into()),
        }
        account.catch_up(store)?;
    }
}
