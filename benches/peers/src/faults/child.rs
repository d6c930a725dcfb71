//! The two processes: one appends and says what was acknowledged, the other says what it finds.

use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::contenders::{Contender, Peer, Setup};
use crate::payload::{Batches, Pool};

/// What is appended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) contender: String,
    pub(crate) setup: Setup,
    /// Bytes of a payload.
    pub(crate) payload: usize,
    /// First event of each thread.
    pub(crate) first: Vec<u64>,
    /// Appends of each thread that are to be acknowledged.
    pub(crate) appends: u64,
}

/// Refused appends after which a thread gives up.
const REFUSED_MAX: u64 = 25;
/// From a refused append to the next one.
const PAUSE: Duration = Duration::from_millis(5);

/// One line of the appending process, written at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Said {
    /// The store is open, and the appends begin.
    Open,
    Acknowledged(u32, u64),
    Refused(String),
    /// An append has panicked in the thread that called it.
    Panicked(String),
    Closed,
    NotClosed(String),
}

impl Said {
    fn say(&self) {
        let mut line = serde_json::to_vec(self).expect("a line is plain data");
        line.push(b'\n');
        std::io::stdout().lock().write_all(&line).expect("somebody listens");
    }
}

/// Appends, when it is told to begin.
pub(crate) fn append(spec: &Spec) -> Result<(), Failure> {
    std::io::stdin().read_exact(&mut [0])?;
    let contender = (Peer::named(&spec.contender)?.open)(&spec.setup)?;
    Said::Open.say();
    std::thread::scope(|scope| {
        for thread in 0..spec.setup.threads {
            let contender = &*contender;
            scope.spawn(move || {
                let appending = AssertUnwindSafe(|| append_as(contender, spec, thread));
                match catch_unwind(appending) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => Said::Refused(error.to_string()).say(),
                    Err(panic) => Said::Panicked(message(&*panic)).say(),
                }
            });
        }
    });
    match contender.close() {
        Ok(()) => Said::Closed.say(),
        Err(error) => Said::NotClosed(error.to_string()).say(),
    }
    Ok(())
}

fn append_as(contender: &dyn Contender, spec: &Spec, thread: usize) -> Result<(), Failure> {
    let pool = Pool::new(spec.payload, 1);
    let mut batches = Batches::new(&pool, thread as u32, 1);
    let mut session = contender.session(thread)?;
    for _ in 0..spec.first[thread] {
        batches.next();
    }
    let mut refused = 0;
    for number in spec.first[thread]..spec.first[thread] + spec.appends {
        let batch = batches.next();
        while let Err(error) = session.append(batch) {
            Said::Refused(whole(&*error)).say();
            refused += 1;
            if refused == REFUSED_MAX {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        Said::Acknowledged(thread as u32, number).say();
    }
    Ok(())
}

/// An error with its causes, as a user would see it.
fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref().copied()).unwrap_or("without a message").to_owned()
}

/// What a store has, as who opens it finds it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Found {
    /// Events of each thread, in the order they were shown.
    pub(super) events: Vec<Vec<u64>>,
    /// Payloads that nobody has written.
    pub(super) wrong: u64,
    /// Why opening or reading has ended early.
    pub(super) error: Option<String>,
    pub(super) panic: Option<String>,
}

/// Opens a store and says what is there.
pub(crate) fn read(spec: &Spec) -> Result<(), Failure> {
    let peer = Peer::named(&spec.contender)?;
    let pool = Pool::new(spec.payload, 1);
    let mut found = Found { events: vec![Vec::new(); spec.setup.threads], ..Found::default() };
    let mut visit = |payload: &[u8]| {
        match pool.check(payload) {
            Ok((thread, number)) if (thread as usize) < found.events.len() => {
                found.events[thread as usize].push(number);
            }
            _ => found.wrong += 1,
        }
        Ok(())
    };
    match catch_unwind(AssertUnwindSafe(|| (peer.read_back)(&spec.setup, &mut visit))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => found.error = Some(whole(&*error)),
        Err(panic) => found.panic = Some(message(&*panic)),
    }
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}
