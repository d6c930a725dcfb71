//! The commands, one file each, and how they open a store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use thalweg::{
    Follower, HeldEvent, LogOpenError, OpenError, Options, ReadError, Stats, Store, StreamInfo,
};

use crate::exit::Exit;
use crate::interrupt::{self, Interrupt};
use crate::output::{note, plural};
use crate::progress::Progress;

/// How often a wait looks for an interrupt.
const POLL: Duration = Duration::from_millis(50);

mod append;
mod backup;
mod bench;
mod cursors;
mod discard;
mod graph;
mod held;
mod import;
mod order;
mod read;
mod repair;
mod restore;
mod seal;
mod stat;
mod streams;
mod trim;
mod verify;
mod why;

#[derive(Subcommand)]
pub(crate) enum Command {
    Import(import::Import),
    Append(append::Append),
    Read(read::Read),
    Streams(streams::Streams),
    Cursors(cursors::Cursors),
    Seal(seal::Seal),
    Unseal(seal::Unseal),
    Trim(trim::Trim),
    Held(held::Held),
    Discard(discard::Discard),
    Why(why::Why),
    Stat(stat::Stat),
    Verify(verify::Verify),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Repair(repair::Repair),
    Order(order::Order),
    Graph(graph::Graph),
    Bench(bench::Bench),
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        match self {
            Command::Import(command) => command.run(),
            Command::Append(command) => command.run(),
            Command::Read(command) => command.run(),
            Command::Streams(command) => command.run(),
            Command::Cursors(command) => command.run(),
            Command::Seal(command) => command.run(),
            Command::Unseal(command) => command.run(),
            Command::Trim(command) => command.run(),
            Command::Held(command) => command.run(),
            Command::Discard(command) => command.run(),
            Command::Why(command) => command.run(),
            Command::Stat(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Backup(command) => command.run(),
            Command::Restore(command) => command.run(),
            Command::Repair(command) => command.run(),
            Command::Order(command) => command.run(),
            Command::Graph(command) => command.run(),
            Command::Bench(command) => command.run(),
        }
    }
}

/// The first argument of every command.
#[derive(Args)]
struct StoreArgument {
    /// The store: a directory
    #[arg(value_name = "STORE")]
    path: PathBuf,
}

impl StoreArgument {
    /// Opens the store for a command that only reads and prints: Ctrl-C ends it at once.
    fn open_to_print(&self) -> anyhow::Result<Store> {
        interrupt::exit_at_once()?;
        open_to_read(&self.path)
    }

    /// Looks at the store to print: from outside while a program writes it, and else with all of its log in order.
    fn view(&self) -> anyhow::Result<View> {
        if self.is_written()? {
            Ok(View::Outside(self.follow()?))
        } else {
            Ok(View::Inside(self.open_to_print()?))
        }
    }

    /// Whether another program has the store open for writing.
    fn is_written(&self) -> anyhow::Result<bool> {
        check_is_store(&self.path)?;
        let writer = thalweg::writer_of(&self.path);
        Ok(writer.map_err(|error| anyhow!("cannot look at {}: {error}", self.shown()))?.is_some())
    }

    /// Follows the store, for a command that only prints: Ctrl-C ends it at once.
    fn follow(&self) -> anyhow::Result<Follower> {
        interrupt::exit_at_once()?;
        check_is_store(&self.path)?;
        Store::open_follower(&self.path)
            .map_err(|error| anyhow!("cannot follow {}: {}", self.shown(), advised(&error)))
    }

    /// Opens the store to append; creates it if it is not there.
    fn open_to_append(&self) -> anyhow::Result<Store> {
        if self.path.exists() && !self.path.is_dir() {
            bail!("{} is a file, and a store is a directory; name another path", self.shown());
        }
        Options::new()
            .create(true)
            .open(&self.path)
            .map_err(|error| anyhow!("cannot open {} to append: {}", self.shown(), advised(&error)))
    }

    /// Opens the store to change it; it must be there.
    fn open_to_change(&self) -> anyhow::Result<Store> {
        check_is_store(&self.path)?;
        let store = Options::new().create(false).open(&self.path).map_err(|error| {
            anyhow!("cannot open {} to change: {}", self.shown(), advised(&error))
        })?;
        // What is changed is only answered when everything before it is in order.
        discovered(&store, &|| false)?;
        Ok(store)
    }

    fn shown(&self) -> std::path::Display<'_> {
        self.path.display()
    }
}

/// How a command that only reads looks at a store.
enum View {
    /// Nobody writes it: all of its log, in order.
    Inside(Store),
    /// Another program writes it.
    Outside(Follower),
}

impl View {
    fn held(&self) -> Result<Vec<HeldEvent>, ReadError> {
        match self {
            View::Inside(store) => store.held(),
            View::Outside(follower) => follower.held(),
        }
    }

    fn oldest_held(&self) -> Result<Option<HeldEvent>, ReadError> {
        match self {
            View::Inside(store) => store.oldest_held(),
            View::Outside(follower) => follower.oldest_held(),
        }
    }

    fn streams(&self) -> Result<Vec<StreamInfo>, ReadError> {
        match self {
            View::Inside(store) => store.streams(),
            View::Outside(follower) => follower.streams(),
        }
    }

    /// Whether all of the log could be read so far; says so if not.
    fn seen_whole(&self) -> Exit {
        match self {
            View::Inside(store) => seen_whole(store),
            View::Outside(follower) => match follower.stats() {
                Ok(stats) => seen(stats.corrupt, stats.stopped.as_deref()),
                Err(error) => seen(0, Some(&error.to_string())),
            },
        }
    }
}

/// The counts once everything durable is ordered; `None` after an interrupt.
fn settled(store: &Store, interrupt: &Interrupt) -> anyhow::Result<Option<Stats>> {
    if !discovered(store, &|| interrupt.is_set())? {
        return Ok(None);
    }
    let end = store.durable_end();
    let start = store.stats().committed;
    let progress = Progress::new("ordering", Some(end.saturating_sub(start)));
    while !store.wait_committed_timeout(end, POLL)? {
        if interrupt.is_set() {
            return Ok(None);
        }
        let stats = store.stats();
        progress.set(stats.committed.saturating_sub(start), stats.delivered);
    }
    progress.clear();
    Ok(Some(store.stats()))
}

/// Waits until everything is in order that the log held when the store was opened; `false` if `interrupted`
/// says so before.
fn discovered(store: &Store, interrupted: &dyn Fn() -> bool) -> Result<bool, ReadError> {
    let discovery = store.discovery();
    if discovery.progress().is_done {
        return Ok(true);
    }
    let progress = Progress::of_discovery("ordering");
    let done = loop {
        if discovery.wait_timeout(POLL)?.is_some() {
            break true;
        }
        if interrupted() {
            break false;
        }
        progress.set_discovery(&discovery.progress());
    };
    progress.clear();
    Ok(done)
}

/// Opens the store without touching it, with everything ordered that was durable at this moment.
/// Where that cannot be, with what could be ordered; [`seen_whole`] tells in the end.
fn open_to_read(path: &Path) -> anyhow::Result<Store> {
    check_is_store(path)?;
    let store = Options::new()
        .create(false)
        .open_read_only(path)
        .map_err(|error| anyhow!("cannot open {} to read: {}", path.display(), advised(&error)))?;
    // The engine keeps the cause of a failure, and the questions that follow report it.
    let _ = discovered(&store, &|| false);
    Ok(store)
}

/// Whether all of the log could be read so far; says so if not.
fn seen_whole(store: &Store) -> Exit {
    let stats = store.stats();
    seen(stats.corrupt, stats.poisoned.as_deref())
}

/// The same, with so many damaged places, and why it went no further.
fn seen(corrupt: u64, stopped: Option<&str>) -> Exit {
    if corrupt > 0 {
        note(format_args!(
            "{} of the log damaged and left out; `thalweg verify` tells where",
            plural(corrupt, "place")
        ));
    }
    if let Some(cause) = stopped {
        note(format_args!("only a part of the log could be ordered: {cause}"));
    }
    if corrupt > 0 || stopped.is_some() { Exit::Problem } else { Exit::Done }
}

/// The error, and what to do about it where the library cannot know.
fn advised(error: &OpenError) -> String {
    let advice = match error {
        OpenError::Log(LogOpenError::Missing { .. }) => "; `thalweg import` creates one",
        OpenError::Log(LogOpenError::NotAStore { .. }) => "; name another directory",
        OpenError::Log(LogOpenError::Locked { .. }) => {
            "; reading works beside it, but only one process at a time can write"
        }
        _ => "",
    };
    format!("{error}{advice}")
}

/// Says what to do where no store can be. Whether a directory is a store, the library decides.
fn check_is_store(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => bail!("{shown} is a file, and a store is a directory; name another path"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("there is no store at {shown}; `thalweg import {shown} FILE` creates one")
        }
        Err(error) => Err(error).with_context(|| format!("cannot open {shown}")),
    }
}
