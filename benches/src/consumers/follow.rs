//! From an append to a follower in another process.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};

use super::report::{Figures, Quantiles, Row};
use super::{Contender, Durability, Failure, Options, header, now_ns, payload, stamp};

/// The word with which the process of the follower is started.
pub(crate) const CHILD: &str = "consumers-follower";

pub(super) fn run(
    contender: &Contender,
    dir: &Path,
    durability: Durability,
    options: &Options,
) -> Result<Row, Failure> {
    let log = (contender.open)(dir, durability)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args([CHILD, contender.name])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(child.stdout.take().ok_or("it has an output")?).lines();
    let appended = append(&*log, lines, options);
    // It follows until it is told to end.
    child.kill()?;
    child.wait()?;
    log.close()?;
    let (mut acks, mut seen) = appended?;
    let warm_up = options.appends as usize / 10;
    Ok(Row {
        case: "follower",
        durability,
        of: String::from("in another process"),
        threads: 1,
        payload: options.payload,
        events: options.appends,
        figures: Figures::Latency {
            ack: Quantiles::of(acks.split_off(warm_up)),
            seen: Quantiles::of(seen.split_off(warm_up)),
        },
    })
}

/// Appends one event after the other; the follower says of each how long it took.
fn append(
    log: &dyn super::Log,
    mut lines: Lines<BufReader<ChildStdout>>,
    options: &Options,
) -> Result<(Vec<u64>, Vec<u64>), Failure> {
    let (mut acks, mut seen) = (Vec::new(), Vec::new());
    let mut line =
        || lines.next().ok_or("the follower has ended; see above")?.map_err(Failure::from);
    if line()? != "ready" {
        return Err("the follower says something else than it should".into());
    }
    let mut appender = log.appender()?;
    for number in 0..options.appends {
        let mut event = [(0, payload(number, options.payload))];
        let begun = now_ns();
        stamp(&mut event[0].1);
        appender.append(&event)?;
        acks.push(now_ns() - begun);
        seen.push(line()?.parse()?);
    }
    Ok((acks, seen))
}

/// What the process does that is started with [`CHILD`]: follows, and prints how long each event took, in nanoseconds.
pub(crate) fn child<S: AsRef<str>>(contenders: &[Contender], words: &[S]) -> Result<(), Failure> {
    let [name, dir] = words else { return Err("takes a contender and a directory".into()) };
    let contender = contenders.iter().find(|contender| contender.name == name.as_ref());
    let contender = contender.ok_or_else(|| format!("{} is no contender", name.as_ref()))?;
    let mut subscription = (contender.follow)(dir.as_ref().as_ref())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    let mut next = 0;
    let mut visit = |payload: &[u8]| {
        let now = now_ns();
        let (number, sent) = header(payload)?;
        if number != next {
            return Err(format!("event {number} came instead of {next}").into());
        }
        next += 1;
        // A line is written at once, and after the time was taken.
        writeln!(out, "{}", now - sent)?;
        Ok(())
    };
    while subscription.next(&mut visit)? {}
    Ok(())
}
