//! `stat`: the numbers of a store, once or again and again.

mod numbers;
mod page;
mod screen;

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use clap::Args;

use self::numbers::Numbers;
use self::screen::Screen;
use super::{StoreArgument, View};
use crate::exit::Exit;
use crate::output;

/// Show the numbers of a store
///
/// Events are counted since the store was made. Positions are addresses in bytes in the whole log;
/// what is durable is on disk, what is committed is ordered and can be read.
///
/// While no program writes the store, all of its log is looked at, and the times are those that this
/// took now. While one does, the numbers are what can be seen from outside: what is delivered is of
/// this moment, what is held or ignored and where cursors are is as of the newest checkpoint. Queues and
/// times of that program are its own; it has them from the library (`Store::stats`).
///
/// With --watch the numbers are shown again and again until Ctrl-C: in place on a terminal, otherwise one
/// block, or with --json one line, each time. They are always those from outside then.
#[derive(Args)]
#[command(verbatim_doc_comment, after_help = JSON_HELP)]
pub(crate) struct Stat {
    #[command(flatten)]
    store: StoreArgument,
    /// Print one JSON object; see below
    #[arg(long)]
    json: bool,
    /// Show them every SECONDS
    #[arg(long, short, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = seconds)]
    watch: Option<Duration>,
}

const JSON_HELP: &str = "\
The JSON object has always the same keys; what is not known is null:
  source                 store: all of the log was looked at; follower: seen from outside
  writer                 who has the store open for writing, as \"process 1234\"
  delivered              events that can be read
  delivered_per_second   since the time before, with --watch
  held, duplicates, conflicts, rejected, discarded, streams
                         source follower: as of checkpoint_position
  oldest_held_seconds    how long the held event that was appended first has been held
  corrupt                damaged places that were met
  segments, log_bytes, written, durable, scanned, ordered, committed, checkpoint_position
                         lengths and positions in bytes; source follower: the log up to the
                         newest delivered event
  backlog                sync, scan, order, commit: bytes and events on the way
  queues                 durable, ordered: batches and bytes; windows, callbacks, calls
  times                  write, sync, scan, order, commit: count, p50_ns, p99_ns, max_ns
  frames                 batches, bytes: count, p50, p99, max
  cursors                a list of cursor, at, lag
  first                  the first global sequence that is not trimmed
  memory_bytes, recovery, checkpoint_error, commit_error, poisoned";

impl Stat {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let Some(interval) = self.watch else {
            let view = self.store.view()?;
            let numbers = Numbers::of(&view)?;
            let mut out = output::stdout();
            if self.json {
                output::json_line(&mut out, &numbers)?;
            } else {
                out.write_all(page::page(&numbers).as_bytes())?;
            }
            out.flush()?;
            return Ok(view.seen_whole());
        };
        self.watch(interval)
    }

    fn watch(&self, interval: Duration) -> anyhow::Result<Exit> {
        let view = View::Outside(self.store.follow()?);
        let mut screen = Screen::new(!self.json && std::io::stdout().is_terminal());
        let mut next = Instant::now();
        let mut before = None;
        loop {
            let mut numbers = Numbers::of(&view)?;
            let looked = Instant::now();
            if let Some((delivered, at)) = before {
                numbers.set_rate(delivered, looked - at);
            }
            before = Some((numbers.delivered, looked));
            if self.json {
                let mut out = output::stdout();
                output::json_line(&mut out, &numbers)?;
                out.flush()?;
            } else {
                screen.show(&page::page(&numbers))?;
            }
            if numbers.poisoned.is_some() {
                return Ok(view.seen_whole());
            }
            // By the clock, however long a look takes; what was missed is not made up for.
            next = (next + interval).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

/// Reads a number of seconds from the command line.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 0.1..=86_400.0) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("must be a number of seconds from 0.1 to 86400".into()),
    }
}
