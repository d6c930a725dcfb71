//! The numbers of a store for people: groups of lines, each with a head.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::Table;

use super::numbers::{Amount, Backlog, Numbers, Queue, Queues, Source, Time, Times};
use crate::output::{bytes, count, duration, plural, preview, table};

/// Characters of a text that came with an error, or from recovery.
const TEXT_WIDTH: usize = 200;

/// A group of lines that is being written.
struct Group<'a> {
    page: &'a mut String,
}

impl Group<'_> {
    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        writeln!(self.page, "  {key:<11} {value}").expect("a string takes all");
    }

    fn text(&mut self, key: &str, text: &Option<String>) {
        if let Some(text) = text {
            self.line(key, preview(text.as_bytes(), TEXT_WIDTH));
        }
    }
}

/// Begins a group.
fn group<'a>(page: &'a mut String, head: &str) -> Group<'a> {
    page.push_str(head);
    page.push('\n');
    Group { page }
}

/// Everything about a store, without anything that a terminal has to understand.
pub(super) fn page(numbers: &Numbers) -> String {
    let mut page = String::new();
    log(numbers, &mut group(&mut page, "log"));
    order(numbers, &mut group(&mut page, "order"));
    if let (Some(backlog), Some(queues)) = (&numbers.backlog, &numbers.queues) {
        queued(backlog, queues, &mut group(&mut page, "queues"));
    }
    if let Some(times) = &numbers.times {
        timed(times, &mut page);
    }
    if !numbers.cursors.is_empty() {
        let mut cursors = table(["cursors", ">at", ">lag"]);
        for cursor in &numbers.cursors {
            cursors.add_row([format!("  {}", cursor.name), count(cursor.at), count(cursor.lag)]);
        }
        append(&cursors, &mut page);
    }
    page
}

fn log(numbers: &Numbers, group: &mut Group<'_>) {
    match (numbers.source, &numbers.writer) {
        (Source::Store, _) => group.line("written by", "no program at the moment"),
        (Source::Follower, None) => group.line("written by", "no program; seen from outside"),
        (Source::Follower, Some(writer)) => {
            let writer = if writer.is_empty() { "another process" } else { writer };
            let writer = preview(writer.as_bytes(), TEXT_WIDTH);
            group.line("written by", format_args!("{writer}; this is what is seen from outside"));
        }
    }
    let segments = plural(numbers.segments, "segment");
    group.line("length", format_args!("{} in {segments}", bytes(numbers.log_bytes)));
    if numbers.first > 0 {
        group.line("trimmed", format_args!("up to global sequence {}", count(numbers.first)));
    }
    if let Some(durable) = numbers.durable {
        group.line("durable", format_args!("to position {}", count(durable)));
    }
    group.text("recovery", &numbers.recovery);
}

fn order(numbers: &Numbers, group: &mut Group<'_>) {
    let (delivered, is_known) = (count(numbers.delivered), numbers.checkpoint_position.is_some());
    let (held, streams) = (count(numbers.held.unwrap_or(0)), numbers.streams.unwrap_or(0));
    let streams = plural(streams, "stream");
    group.line(
        "events",
        match numbers.source {
            Source::Store => format!("{delivered} delivered, {held} held, in {streams}"),
            Source::Follower if is_known => {
                format!("{delivered} delivered; at the checkpoint {held} held, in {streams}")
            }
            Source::Follower => format!("{delivered} delivered"),
        },
    );
    if let Some(seconds) = numbers.oldest_held_seconds {
        let age = duration(Duration::from_secs_f64(seconds));
        group.line("oldest held", format_args!("for {age}"));
    }
    if let Some(rate) = numbers.delivered_per_second {
        group.line("rate", format_args!("{} a second", plural(rate, "event")));
    }
    if let (Some(duplicates), Some(conflicts), Some(rejected), Some(discarded)) =
        (numbers.duplicates, numbers.conflicts, numbers.rejected, numbers.discarded)
    {
        let [duplicates, conflicts, rejected, discarded] =
            [duplicates, conflicts, rejected, discarded].map(count);
        let ignored = format!(
            "{duplicates} duplicate, {conflicts} conflicting, {rejected} rejected, {discarded} discarded"
        );
        group.line(
            "ignored",
            match numbers.source {
                Source::Store => format!("{ignored}, {} corrupt", count(numbers.corrupt)),
                Source::Follower => format!("at the checkpoint {ignored}"),
            },
        );
    }
    let behind = numbers.durable.map_or(0, |durable| durable.saturating_sub(numbers.committed));
    let lag = if behind == 0 { String::new() } else { format!(", {} behind", bytes(behind)) };
    group.line("committed", format_args!("to position {}{lag}", count(numbers.committed)));
    match numbers.checkpoint_position {
        Some(position) => group.line("checkpoint", format_args!("at position {}", count(position))),
        None => group.line("checkpoint", "none yet, so what is held is not known"),
    }
    if let Some(memory) = numbers.memory_bytes {
        group.line("memory", bytes(memory));
    }
    group.text("unwritten", &numbers.commit_error);
    group.text("checkpoint", &numbers.checkpoint_error);
    group.text("poisoned", &numbers.poisoned);
}

fn queued(backlog: &Backlog, queues: &Queues, group: &mut Group<'_>) {
    let Backlog { sync, scan, order, commit } = backlog;
    let stages = [("to sync", sync), ("to scan", scan), ("to order", order), ("to commit", commit)];
    let Queues { durable, ordered, windows, callbacks, calls } = queues;
    let appends = [("for disk", durable), ("for order", ordered)];
    let others = [
        ("window", "windows", windows),
        ("callback", "callbacks", callbacks),
        ("call", "calls", calls),
    ];
    let mut is_empty = true;
    for (key, Amount { bytes: len, events }) in stages {
        if *len > 0 || events.is_some_and(|events| events > 0) {
            is_empty = false;
            let events = events.map_or(String::new(), |n| format!(", {}", plural(n, "event")));
            group.line(key, format_args!("{}{events}", bytes(*len)));
        }
    }
    for (key, Queue { batches, bytes: len }) in appends {
        if *batches > 0 {
            is_empty = false;
            group.line(key, format_args!("{} batches, {}", count(*batches), bytes(*len)));
        }
    }
    for (noun, key, number) in others {
        if *number > 0 {
            is_empty = false;
            group.line(key, plural(*number, noun));
        }
    }
    if is_empty {
        group.line("all", "empty");
    }
}

fn timed(times: &Times, page: &mut String) {
    let Times { write, sync, scan, order, commit } = times;
    let stages =
        [("write", write), ("sync", sync), ("scan", scan), ("order", order), ("commit", commit)];
    let mut rows = table(["times", ">count", ">p50", ">p99", ">max"]);
    let mut is_empty = true;
    for (name, Time { count: times, p50_ns, p99_ns, max_ns }) in stages {
        if *times > 0 {
            is_empty = false;
            let [p50, p99, max] =
                [p50_ns, p99_ns, max_ns].map(|ns| duration(Duration::from_nanos(*ns)));
            rows.add_row([format!("  {name}"), count(*times), p50, p99, max]);
        }
    }
    if !is_empty {
        append(&rows, page);
    }
}

fn append(table: &Table, page: &mut String) {
    for line in table.lines() {
        page.push_str(line.trim_end());
        page.push('\n');
    }
}
