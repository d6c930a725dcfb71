//! Rows, as a table and as JSON.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::{Contender, Failure};

/// Quantiles of some times, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quantiles {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Quantiles {
    /// Of times in nanoseconds, of which there is at least one.
    pub(super) fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let last = times.len() - 1;
        let us = |per_cent: usize| times[last * per_cent / 100] as f64 / 1e3;
        Quantiles { p50: us(50), p99: us(99), max: us(100) }
    }

    fn json(&self) -> String {
        let Self { p50, p99, max } = self;
        format!("{{\"p50\":{p50:.1},\"p99\":{p99:.1},\"max\":{max:.1}}}")
    }
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.1}{:>9.1}{:>9.1}", self.p50, self.p99, self.max)
    }
}

/// What a case has come to.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) case: &'static str,
    pub(super) durability: super::Durability,
    /// Who reads or waits, and for what.
    pub(super) of: String,
    pub(super) threads: usize,
    pub(super) payload: usize,
    /// Events that were read, each of them checked.
    pub(super) events: u64,
    pub(super) figures: Figures,
}

#[derive(Debug)]
pub(super) enum Figures {
    Latency {
        /// From the call of an append to its acknowledgement.
        ack: Quantiles,
        /// From there to the return of `next`.
        seen: Quantiles,
    },
    /// Medians over so many rounds.
    Rates { rounds: usize, read_per_s: f64, subscription_per_s: f64 },
}

/// Where the rows go.
pub(super) struct Report<'a> {
    json: Option<File>,
    machine: &'a str,
    headed: Option<&'static str>,
}

impl<'a> Report<'a> {
    pub(super) fn new(json: Option<&Path>, machine: &'a str) -> Result<Self, Failure> {
        let append = |path| File::options().create(true).append(true).open(path);
        Ok(Report { json: json.map(append).transpose()?, machine, headed: None })
    }

    pub(super) fn add(&mut self, contender: &Contender, row: &Row) -> Result<(), Failure> {
        if self.headed.replace(row.case) != Some(row.case) {
            let columns = match row.figures {
                Figures::Latency { .. } => format!(
                    "{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}   us",
                    "ack p50", "p99", "max", "seen p50", "p99", "max"
                ),
                Figures::Rates { .. } => {
                    format!("{:>12}{:>14}{:>9}", "read /s", "subscribed /s", "ratio")
                }
            };
            println!("\n{:<34}{:<10}{columns}", row.case, "");
        }
        let who = format!("{} {}", contender.name, row.of);
        println!("{who:<34}{:<10}{}", row.durability, row.figures);
        if let Some(json) = &mut self.json {
            writeln!(json, "{}", row.json(contender, self.machine))?;
        }
        Ok(())
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Figures::Latency { ack, seen } => write!(f, "{ack}{seen}"),
            Figures::Rates { read_per_s, subscription_per_s, .. } => {
                let ratio = read_per_s / subscription_per_s;
                write!(f, "{read_per_s:>12.0}{subscription_per_s:>14.0}{ratio:>9.2}")
            }
        }
    }
}

impl Row {
    fn json(&self, contender: &Contender, machine: &str) -> String {
        let Row { case, durability, of, threads, payload, events, figures } = self;
        let Contender { name, version, .. } = contender;
        let figures = match figures {
            Figures::Latency { ack, seen } => {
                format!("\"ack_us\":{},\"seen_us\":{}", ack.json(), seen.json())
            }
            Figures::Rates { rounds, read_per_s, subscription_per_s } => format!(
                "\"rounds\":{rounds},\"read_per_s\":{read_per_s:.0},\
                 \"subscription_per_s\":{subscription_per_s:.0},\"ratio\":{:.3}",
                read_per_s / subscription_per_s
            ),
        };
        format!(
            "{{\"row\":\"consumers\",\"case\":\"{case}\",\"contender\":\"{name}\",\
             \"version\":\"{version}\",\"durability\":\"{durability}\",\"of\":\"{of}\",\
             \"threads\":{threads},\"payload\":{payload},\"events_checked\":{events},{figures},\
             \"machine\":{machine}}}"
        )
    }
}
