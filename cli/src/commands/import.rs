//! `import`: events from lines of JSON, in file order.
//!
//! Three threads work at once: one reads and cuts lines, this one parses and fills batches, and
//! the engine's own write. Batches are bounded by count and by bytes, and a bounded number of them
//! is on its way, so memory does not depend on the input.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use thalweg::{AppenderOptions, Event, MixedAppender, MixedBatch, Stats, Store, Ticket};

use super::{POLL, StoreArgument, settled};
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::lines::{Chunk, Input, LINE_LEN_MAX, numbered};
use crate::ndjson;
use crate::output::{self, count, note, plural};
use crate::progress::Progress;

/// Most events in a batch.
const BATCH_EVENTS_MAX: usize = 1024;
/// A batch of this many bytes is full.
const BATCH_BYTES: u64 = 1 << 20;
/// Most batches that are submitted and not acknowledged.
const BATCHES_WAITING: usize = 32;
/// Bytes on their way: as many batches as that, and a batch can be longer than `BATCH_BYTES` by one event.
const PIPELINE_BYTES: u64 = BATCHES_WAITING as u64 * 2 * BATCH_BYTES;
/// How long a batch that is not full waits for more input.
const LINGER: Duration = Duration::from_millis(10);
/// How long, after an interrupt, to wait for what was submitted.
const LAST_WAIT: Duration = Duration::from_millis(250);
/// Bad lines that are reported one by one without `--verbose`.
const REPORTED_LINES: u64 = 20;

/// Append events from lines of JSON, in file order
///
/// Each line is one event:
///
///   {"stream":"s","id":"b","parents":["a"],"payload":{"any":"JSON"}}
///
/// `stream` is a string of 1 to 255 bytes; nothing else is needed. `id` is a string of 1 to 64
/// bytes, unique in its stream; without one the engine gives the event an id. `parents` lists ids
/// of the same stream: [] is a root, and without the key (or with null) the event is chained on the
/// stream's tips. A string of ids with spaces between is taken too, and "" is a root. Other keys
/// are ignored, so what `read` prints can be imported.
///
/// A payload that is a string is stored as its UTF-8 bytes, {"base64":".."} as the bytes that it
/// encodes, and any other value as its own text, as written. A string whose text is itself JSON,
/// like "42", keeps its quotes. So `read` gives every value back as it was, and `read | import`
/// copies every byte. To store an object that looks like {"base64":".."}, write it as a string.
/// Names and ids take {"base64":".."} too.
///
/// A bad line is reported with its number and skipped. Empty lines are ignored. An event that is
/// known already is a duplicate and ignored, so an import that was cut short can be run again; an
/// event with the id of another one is a conflict, and the first one stands.
///
/// A line of a sealed stream is bad, also if its event is known already.
///
/// Acknowledged events are on disk: they survive Ctrl-C and power loss. Exit code 1 if any line
/// was skipped or in conflict.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Import {
    #[command(flatten)]
    store: StoreArgument,
    /// The file to read; `-` is stdin
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Stop at the first bad line; the lines before it are stored
    #[arg(long)]
    strict: bool,
    /// Report every bad line, not only the first 20
    #[arg(long, short)]
    verbose: bool,
    /// Print the summary to stdout as a JSON object
    #[arg(long)]
    json: bool,
}

/// The summary: counts of this run, but `held`, which counts the events that the store holds now.
#[derive(Serialize)]
struct Summary {
    appended: u64,
    skipped: u64,
    delivered: u64,
    duplicates: u64,
    conflicts: u64,
    held: u64,
    lines_acknowledged: u64,
    elapsed_seconds: f64,
    events_per_second: u64,
    interrupted: bool,
}

/// How the input came to its end.
enum End {
    Input,
    Strict,
    Interrupted,
}

impl Import {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        let input = Input::open(&self.file)?;
        let acknowledged = Arc::new(Acknowledged::default());
        let interrupt = Interrupt::install({
            let acknowledged = acknowledged.clone();
            move || acknowledged.say()
        })?;
        let store = self.store.open_to_append()?;
        let Some(before) = settled(&store, &interrupt)? else {
            return Ok(Exit::Interrupted);
        };
        let started = Instant::now();
        let pipeline =
            AppenderOptions::new().pipeline(BATCHES_WAITING).pipeline_bytes(PIPELINE_BYTES);
        let mut importer = Importer {
            store: &store,
            appender: store.mixed_appender(pipeline)?,
            interrupt: &interrupt,
            progress: Progress::new("importing", input.len),
            acknowledged: &acknowledged,
            batch: MixedBatch::new(),
            batch_last_line: 0,
            waiting: VecDeque::new(),
            bytes_read: 0,
            skipped: 0,
            report_all: self.verbose,
            strict: self.strict,
        };
        let result = importer.run(&input.lines()?);
        importer.progress.clear();
        let skipped = importer.skipped;
        let mut end = result.inspect_err(|_| note(format_args!("{}", acknowledged.words())))?;
        let mut after = store.stats();
        if !matches!(end, End::Interrupted) {
            match settled(&store, &interrupt)? {
                Some(stats) => after = stats,
                None => end = End::Interrupted,
            }
        }
        let summary = summary(&before, &after, &acknowledged, skipped, started.elapsed(), &end);
        store.close().context("cannot close the store")?;
        self.report(&summary)?;
        Ok(match end {
            End::Interrupted => {
                acknowledged.say();
                Exit::Interrupted
            }
            End::Strict => Exit::Problem,
            End::Input if skipped > 0 || summary.conflicts > 0 => Exit::Problem,
            End::Input => Exit::Done,
        })
    }

    fn report(&self, summary: &Summary) -> anyhow::Result<()> {
        if self.json {
            let mut out = output::stdout();
            output::json_line(&mut out, summary)?;
            std::io::Write::flush(&mut out)?;
            return Ok(());
        }
        let elapsed = Duration::from_secs_f64(summary.elapsed_seconds);
        note(format_args!(
            "appended {} in {} ({} events/s): {} delivered{}{}",
            plural(summary.appended, "event"),
            output::duration(elapsed),
            count(summary.events_per_second),
            count(summary.delivered),
            counted(summary.duplicates, "duplicate"),
            counted(summary.conflicts, "conflicting"),
        ));
        if summary.conflicts > 0 {
            note(format_args!(
                "{} not taken: the id stands for another event",
                plural(summary.conflicts, "event")
            ));
        }
        if summary.skipped > 0 {
            note(format_args!("skipped {}", plural(summary.skipped, "line")));
        }
        if summary.held > 0 {
            note(format_args!(
                "the store holds {} until missing parents arrive; see `thalweg held {}`",
                plural(summary.held, "event"),
                self.store.shown()
            ));
        }
        Ok(())
    }
}

/// `, 3 duplicate`, or nothing for none.
fn counted(number: u64, what: &str) -> String {
    if number == 0 { String::new() } else { format!(", {} {what}", count(number)) }
}

fn summary(
    before: &Stats,
    after: &Stats,
    acknowledged: &Acknowledged,
    skipped: u64,
    elapsed: Duration,
    end: &End,
) -> Summary {
    let appended = acknowledged.events.load(Ordering::Relaxed);
    Summary {
        appended,
        skipped,
        delivered: after.delivered.saturating_sub(before.delivered),
        duplicates: after.duplicates.saturating_sub(before.duplicates),
        conflicts: after.conflicts.saturating_sub(before.conflicts),
        held: after.held,
        lines_acknowledged: acknowledged.lines.load(Ordering::Relaxed),
        elapsed_seconds: elapsed.as_secs_f64(),
        events_per_second: output::per_second(appended, elapsed),
        interrupted: matches!(end, End::Interrupted),
    }
}

/// What is on disk so far. Written by the importing thread alone; the watchdog reads it for its
/// last words, so both are atomics, and being a little behind does not matter there.
#[derive(Default)]
struct Acknowledged {
    events: AtomicU64,
    lines: AtomicU64,
}

impl Acknowledged {
    fn words(&self) -> String {
        let events = self.events.load(Ordering::Relaxed);
        let lines = self.lines.load(Ordering::Relaxed);
        format!(
            "{} acknowledged, up to line {}; what follows may be missing",
            plural(events, "event"),
            count(lines)
        )
    }

    fn say(&self) {
        note(format_args!("interrupted: {}", self.words()));
    }
}

/// A batch on its way.
struct Submitted {
    ticket: Ticket,
    events: u64,
    last_line: u64,
}

struct Importer<'a> {
    store: &'a Store,
    appender: MixedAppender,
    interrupt: &'a Interrupt,
    progress: Progress,
    acknowledged: &'a Acknowledged,
    batch: MixedBatch,
    batch_last_line: u64,
    waiting: VecDeque<Submitted>,
    bytes_read: u64,
    skipped: u64,
    report_all: bool,
    strict: bool,
}

impl Importer<'_> {
    fn run(&mut self, chunks: &Receiver<Chunk>) -> anyhow::Result<End> {
        let end = self.read(chunks)?;
        if !matches!(end, End::Interrupted) {
            self.submit()?;
            while !self.waiting.is_empty() {
                if self.wait_for_first()?.is_break() {
                    return self.interrupted();
                }
            }
            return Ok(end);
        }
        self.interrupted()
    }

    /// Waits a moment for what was submitted. What is in the open batch was promised to nobody.
    fn interrupted(&mut self) -> anyhow::Result<End> {
        let deadline = Instant::now() + LAST_WAIT;
        while let Some(mut first) = self.waiting.pop_front() {
            let left = deadline.saturating_duration_since(Instant::now());
            match first.ticket.wait_timeout(left) {
                Some(receipt) => {
                    receipt?;
                    self.acknowledge(&first);
                }
                None => break,
            }
        }
        Ok(End::Interrupted)
    }

    /// Takes the input to its end, or to where it has to stop.
    fn read(&mut self, chunks: &Receiver<Chunk>) -> anyhow::Result<End> {
        loop {
            let chunk = match chunks.recv_timeout(if self.batch.is_empty() { POLL } else { LINGER })
            {
                Ok(chunk) => chunk,
                Err(RecvTimeoutError::Timeout) if self.interrupt.is_set() => {
                    return Ok(End::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.submit()?;
                    self.take_finished()?;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Input),
            };
            match self.take(chunk)? {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(end) => return Ok(end),
            }
        }
    }

    fn take(&mut self, chunk: Chunk) -> anyhow::Result<ControlFlow<End>> {
        match chunk {
            Chunk::Lines { first, text } => {
                for (number, line) in numbered(first, &text) {
                    if self.interrupt.is_set() {
                        return Ok(ControlFlow::Break(End::Interrupted));
                    }
                    if self.take_line(number, line)?.is_break() {
                        return Ok(ControlFlow::Break(End::Strict));
                    }
                }
                self.bytes_read += text.len() as u64;
                self.progress
                    .set(self.bytes_read, self.acknowledged.events.load(Ordering::Relaxed));
                Ok(ControlFlow::Continue(()))
            }
            Chunk::TooLong { line } => {
                let reason = format!("longer than {}", output::bytes(LINE_LEN_MAX as u64));
                Ok(self.skip(line, &reason).map_break(|()| End::Strict))
            }
            Chunk::Failed(error) => {
                // What was read is good: it is stored before the error is told.
                self.submit()?;
                while !self.waiting.is_empty() && self.wait_for_first()?.is_continue() {}
                Err(error).context("cannot read the input")
            }
        }
    }

    /// Adds the event to the batch, or skips the line; breaks if that ends the import.
    fn take_line(&mut self, number: u64, line: &[u8]) -> anyhow::Result<ControlFlow<()>> {
        let line = without_mark(number, line).trim_ascii();
        if line.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let line = match ndjson::parse(line) {
            Ok(line) => line,
            Err(reason) => return Ok(self.skip(number, &reason)),
        };
        if self.store.is_sealed(&line.stream) {
            return Ok(self.skip(number, &"the stream is sealed"));
        }
        let mut event = Event::new(line.payload);
        if let Some(id) = line.id {
            // The engine takes an empty id for none; here somebody has written one.
            if id.is_empty() {
                return Ok(self.skip(number, &"`id` is empty; leave it out to get one"));
            }
            event = event.id(id);
        }
        if let Some(parents) = line.parents {
            event = event.parents(parents);
        }
        if self.batch.push(&line.stream, &event).is_err() {
            // Either the event is over a limit, or the batch with it; an empty batch tells.
            self.submit()?;
            match self.batch.push(&line.stream, &event) {
                Err(_) if !self.batch.is_empty() => return Ok(ControlFlow::Continue(())),
                Err(reason) => return Ok(self.skip(number, &reason)),
                Ok(()) => {}
            }
        }
        self.batch_last_line = number;
        if self.batch.len() >= BATCH_EVENTS_MAX || self.batch.byte_len() >= BATCH_BYTES {
            self.submit()?;
            self.take_finished()?;
        }
        Ok(ControlFlow::Continue(()))
    }

    fn skip(&mut self, line: u64, reason: &dyn std::fmt::Display) -> ControlFlow<()> {
        self.skipped += 1;
        if self.report_all || self.skipped <= REPORTED_LINES {
            self.progress.note(format_args!("line {line}: {reason}"));
        } else if self.skipped == REPORTED_LINES + 1 {
            self.progress.note(format_args!(
                "more bad lines are only counted; --verbose reports all of them"
            ));
        }
        if self.strict { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Submits the batch, after waiting for a place if too many are on their way. After an
    /// interrupt it leaves the batch as it is.
    fn submit(&mut self) -> anyhow::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        while self.waiting.len() >= BATCHES_WAITING {
            if self.wait_for_first()?.is_break() {
                return Ok(());
            }
        }
        let batch = std::mem::take(&mut self.batch);
        let events = batch.len() as u64;
        let ticket = self.appender.submit(batch).map_err(|refused| refused.reason)?;
        self.waiting.push_back(Submitted { ticket, events, last_line: self.batch_last_line });
        Ok(())
    }

    /// Waits until the first batch on its way is acknowledged; breaks after an interrupt.
    fn wait_for_first(&mut self) -> anyhow::Result<ControlFlow<()>> {
        while let Some(mut first) = self.waiting.pop_front() {
            match first.ticket.wait_timeout(POLL) {
                Some(receipt) => {
                    receipt?;
                    self.acknowledge(&first);
                    break;
                }
                None => self.waiting.push_front(first),
            }
            if self.interrupt.is_set() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Takes note of the batches that are acknowledged already.
    fn take_finished(&mut self) -> anyhow::Result<()> {
        while let Some(mut first) = self.waiting.pop_front() {
            match first.ticket.try_wait() {
                Some(receipt) => {
                    receipt?;
                    self.acknowledge(&first);
                }
                None => {
                    self.waiting.push_front(first);
                    break;
                }
            }
        }
        Ok(())
    }

    fn acknowledge(&self, batch: &Submitted) {
        self.acknowledged.events.fetch_add(batch.events, Ordering::Relaxed);
        self.acknowledged.lines.store(batch.last_line, Ordering::Relaxed);
    }
}

/// The first line without the byte order mark that some editors put there.
fn without_mark(number: u64, line: &[u8]) -> &[u8] {
    const MARK: &[u8] = "\u{feff}".as_bytes();
    if number == 1 { line.strip_prefix(MARK).unwrap_or(line) } else { line }
}
