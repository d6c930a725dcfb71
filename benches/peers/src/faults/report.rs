//! The table: a column for each contender, rounds counted.

use super::{DAMAGES, FAULTS, Reopened, Row, Running};
use crate::contenders::Peer;

/// The name of a line, and what it says of the rounds of a contender.
type Line = (&'static str, fn(&[&Row]) -> String);

/// Of each fault that hits a running process.
const RUNNING: &[Line] = &[
    ("the caller is told", |rows| tally(rows.iter().map(|row| told(row)))),
    ("appends afterwards", |rows| tally(rows.iter().map(|row| afterwards(row)))),
    ("opened again", |rows| tally(rows.iter().map(|row| opened(&row.opened)))),
    ("the power fails, opened again", |rows| {
        tally(rows.iter().filter_map(|row| row.after_power_cut.as_ref()).map(opened))
    }),
];
/// Of each damage to a closed store.
const CLOSED: &[Line] =
    &[("opened again", |rows| tally(rows.iter().map(|row| opened(&row.opened))))];

/// Prints the table.
pub(super) fn table(contenders: &[&Peer], rows: &[Row]) {
    let heads = contenders.iter().map(|peer| format!(" {} {} |", peer.name, peer.version()));
    eprintln!("| | |{}", heads.collect::<String>());
    eprintln!("|---|---|{}", "---|".repeat(contenders.len()));
    let faults = FAULTS.iter().map(|(fault, ..)| *fault);
    for fault in faults.chain(DAMAGES) {
        let of = |peer: &Peer| -> Vec<&Row> {
            let mine = rows.iter().filter(|row| row.contender == peer.name);
            let hit = |row: &&Row| row.running.as_ref().is_none_or(|running| running.hit);
            mine.filter(|row| row.fault.split(' ').next() == Some(fault)).filter(hit).collect()
        };
        let lines = match fault {
            "kill" => &RUNNING[2..],
            _ if DAMAGES.contains(&fault) => CLOSED,
            _ => RUNNING,
        };
        if contenders.iter().all(|peer| of(peer).is_empty()) {
            continue;
        }
        for (line, say) in lines {
            let cells = contenders.iter().map(|peer| format!(" {} |", say(&of(peer))));
            eprintln!("| {fault} | {line} |{}", cells.collect::<String>());
        }
    }
}

/// How often each was seen, in the order in which they were seen first.
fn tally(seen: impl Iterator<Item = &'static str>) -> String {
    let mut counts: Vec<(&str, u32)> = Vec::new();
    for name in seen {
        match counts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counts.push((name, 1)),
        }
    }
    let texts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(", ") }
}

fn told(row: &Row) -> &'static str {
    match &row.running {
        Some(Running { panicked: Some(_), .. }) => "panic",
        Some(Running { refused: 1.., .. }) => "error",
        Some(Running { end, .. }) if end == "hangs" => "hang",
        Some(Running { close_failed: Some(_), .. }) => "on closing",
        Some(Running { end, .. }) if end != "exit 0" => "dies",
        _ => "nothing",
    }
}

fn afterwards(row: &Row) -> &'static str {
    let Some(running) = &row.running else { return "-" };
    // What was under way in the other threads may have been synced before.
    let more = running.acknowledged_after > super::THREADS as u64;
    let go_on = more || running.acknowledged == super::THREADS as u64 * super::APPENDS;
    match (running.end.as_str(), go_on) {
        ("hangs", _) => "hang",
        ("exit 0", true) => "go on",
        ("exit 0", false) => "refused",
        _ => "dies",
    }
}

/// The worst first: what nobody is told of, then what is said.
fn opened(reopened: &Reopened) -> &'static str {
    match reopened {
        Reopened { wrong: 1.., .. } => "**other bytes**",
        Reopened { died: Some(died), .. } if died == "hangs" => "**hang**",
        Reopened { died: Some(_), .. } => "**dies**",
        Reopened { panic: Some(_), .. } => "panic",
        Reopened { error: Some(_), .. } => "refused",
        Reopened { lost: 1.., .. } => "**fewer**",
        Reopened { goes_on: Some(false), .. } => "**no appends**",
        Reopened { twice: 1.., .. } => "all, some twice",
        _ => "all",
    }
}
