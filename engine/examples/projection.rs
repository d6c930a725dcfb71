//! A projection that counts each event exactly once: it follows the streams of many accounts, keeps the sum of
//! each, and appends the sums to a stream of its own, in one batch with the mark that says how far it has come.
//! Kill it at any point and run it again: nothing is counted twice, and nothing is left out.
//!
//! ```sh
//! cargo run -p thalweg --example projection                    # once, and nothing is kept
//! cargo run -p thalweg --example projection -- /tmp/accounts   # again and again
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thalweg::{Ack, AppenderOptions, Batch, Event, Placement, Store};

/// Name of the cursor, and of the stream with what the projection makes.
const NAME: &str = "balances";
/// So many events at most go into one batch of the projection.
const EVENTS_MAX: usize = 100;

type Sums = BTreeMap<String, i64>;

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let given = std::env::args().nth(1).map(PathBuf::from);
    println!("{}", run(&given.unwrap_or_else(|| temporary.path().join("store")))?);
    Ok(())
}

/// Brings the projection up to date, pays something in, and does so again.
pub fn run(path: &Path) -> Result<String, Box<dyn Error>> {
    let store = Store::open(path)?;
    let before: i64 = project(&store)?.values().sum();
    let paid = pay(&store)?;
    let after: i64 = project(&store)?.values().sum();
    for cursor in store.cursors() {
        let name = String::from_utf8_lossy(&cursor.name);
        println!("cursor {name} is at {}, {} events behind", cursor.at, cursor.lag);
    }
    assert_eq!(before + paid, after);
    store.close()?;
    Ok(format!("{before} before, {paid} paid in, {after} now"))
}

/// Somebody pays something into some accounts. Returns how much.
fn pay(store: &Store) -> Result<i64, Box<dyn Error>> {
    let mut paid = 0;
    for account in 0..10 {
        let appender = store.appender(format!("account-{account}"))?;
        for amount in 1..=20 {
            appender.submit_and_forget(Batch::from([Event::new(amount.to_string())]))?;
            paid += amount;
        }
        appender.flush()?;
    }
    Ok(paid)
}

/// Brings the sums up to date with what is durable, and returns them.
fn project(store: &Store) -> Result<Sums, Box<dyn Error>> {
    store.wait_committed(store.durable_end())?;
    let cursor = store.cursor(NAME)?;
    // The newest event of the projection and the cursor are of the same batch.
    let view = store.stream(NAME)?;
    let mut sums = match view.as_ref().and_then(|view| view.read(view.len() - 1..).ok()?.next()) {
        Some(newest) => parse(std::str::from_utf8(newest?.payload())?)?,
        None => Sums::new(),
    };
    // The place that the next event of the projection takes. Should a second projection run at the same time, the
    // batch of one of the two is rejected, and its mark with it.
    let mut place = view.map_or(0, |view| view.len());
    let balances = store.appender_with(NAME, AppenderOptions::new().ack(Ack::Ordered))?;
    let mut accounts = store.subscribe_prefix("account-", &cursor)?;
    loop {
        let mut count = 0;
        while count < EVENTS_MAX {
            let Some(event) = accounts.next_timeout(Duration::from_millis(10))? else { break };
            let account = String::from_utf8_lossy(event.stream()).into_owned();
            let amount: i64 = std::str::from_utf8(event.payload())?.parse()?;
            *sums.entry(account).or_default() += amount;
            count += 1;
        }
        if count == 0 {
            return Ok(sums);
        }
        let text: String = sums.iter().map(|(account, sum)| format!("{account} {sum}\n")).collect();
        let batch = Batch::from([Event::new(text).if_local(place)]);
        let receipt = balances.submit(batch.mark(NAME, accounts.next_sequence()))?.wait()?;
        match receipt.placements[..] {
            [Placement::Delivered { .. }, Placement::Marked { .. }] => place += 1,
            ref other => return Err(format!("somebody else projects, too: {other:?}").into()),
        }
    }
}

fn parse(text: &str) -> Result<Sums, Box<dyn Error>> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(account, sum)| Ok((account.to_owned(), sum.parse()?))).collect()
}
