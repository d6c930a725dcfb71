//! Progress bars on stderr, shown only when stderr is a terminal and there is something to wait for.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use thalweg::DiscoveryProgress;

use crate::output;

/// How often the line is built anew. Callers may report as often as they like.
const REDRAW: Duration = Duration::from_millis(100);
/// Work that takes less than this shows no bar.
const DELAY: Duration = Duration::from_millis(400);

/// `1,234 events (567/s)`.
fn events_words(events: u64, rate: u64) -> String {
    format!("{} events ({}/s)", output::count(events), output::count(rate))
}

/// The same for a discovery, with the rest of its time and what keeps it waiting.
fn discovery_words(discovery: &DiscoveryProgress) -> String {
    let mut words = events_words(discovery.scanned, discovery.events_per_second as u64);
    if let Some(eta) = discovery.eta {
        words.push_str(&format!(", {} left", FormattedDuration(eta)));
    }
    if let Some(error) = &discovery.commit_error {
        words.push_str(&format!("; waiting: {error}"));
    }
    words
}

/// A bar over bytes, with a count of events beside it.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    updated: Cell<Instant>,
    /// Whether there is a terminal to show the bar on.
    terminal: bool,
}

impl Progress {
    /// A bar headed by `verb`. Without a total it counts, but cannot say when it will end.
    pub(crate) fn new(verb: &'static str, bytes_total: Option<u64>) -> Self {
        let bar = ProgressBar::with_draw_target(bytes_total, ProgressDrawTarget::hidden());
        let template = match bytes_total {
            Some(_) => {
                "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes} \
                 ({binary_bytes_per_sec}), {msg}, {eta} left"
            }
            None => "{prefix} {spinner} {binary_bytes} ({binary_bytes_per_sec}), {msg}",
        };
        Self::with(bar, verb, template)
    }

    /// A bar for a discovery, which knows its total, its speed and the rest of its time itself.
    pub(crate) fn of_discovery(verb: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        Self::with(bar, verb, "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes}, {msg}")
    }

    /// A bar over bytes alone.
    pub(crate) fn of_bytes(verb: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        let template = "{prefix} {bar:24} {binary_bytes}/{binary_total_bytes} \
                        ({binary_bytes_per_sec}), {eta} left";
        Self::with(bar, verb, template)
    }

    fn with(bar: ProgressBar, verb: &'static str, template: &str) -> Self {
        bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
        bar.set_prefix(verb);
        let (started, terminal) = (Instant::now(), std::io::stderr().is_terminal());
        Progress { bar, started, updated: Cell::new(started), terminal }
    }

    /// Reports how far the work has come.
    pub(crate) fn set(&self, bytes_done: u64, events: u64) {
        if !self.is_due() {
            return;
        }
        let rate = output::per_second(events, self.started.elapsed());
        self.bar.set_position(bytes_done);
        self.draw(events_words(events, rate));
    }

    fn is_due(&self) -> bool {
        let due = self.terminal && self.updated.get().elapsed() >= REDRAW;
        if due {
            self.updated.set(Instant::now());
        }
        due
    }

    fn draw(&self, message: String) {
        self.bar.set_message(message);
        if self.bar.is_hidden() && self.started.elapsed() >= DELAY {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.tick();
    }

    /// Reports how far a discovery has come.
    pub(crate) fn set_discovery(&self, discovery: &DiscoveryProgress) {
        if !self.is_due() {
            return;
        }
        self.bar.set_length(discovery.bytes_total);
        self.bar.set_position(discovery.bytes_done);
        self.draw(discovery_words(discovery));
    }

    /// Sets the number of bytes in all, where it is only known on the way.
    pub(crate) fn set_total(&self, bytes_total: u64) {
        self.bar.set_length(bytes_total);
    }

    /// Prints a line to stderr without tearing the bar.
    pub(crate) fn note(&self, text: std::fmt::Arguments<'_>) {
        self.bar.suspend(|| output::note(text));
    }

    /// Takes the bar off the screen.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
