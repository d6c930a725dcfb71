//! `verify`: every byte against its checksum, and the order against the reference.

use std::io::Write as _;
use std::ops::ControlFlow;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use thalweg::{BackupError, Problem, ReadError, VerifyReport};

use super::{StoreArgument, advised, check_is_store};
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::output::{self, count, note, plural};
use crate::progress::Progress;

/// Check the whole store
///
/// Reads every record of the log, checks its checksum, puts the events in order once more with the
/// plain one-thread reference and compares that to the stored order. Opens nothing for writing and
/// can run beside a program that writes the store; it then checks what was on disk when it began.
/// Of a backup every file is compared with the manifest too.
///
/// Exit code 0 if all is well, 1 if there are problems, which are listed on stdout, with what to do about
/// each. What a repair has recorded as lost is counted, and is no problem any more.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Verify {
    #[command(flatten)]
    store: StoreArgument,
    /// Print one JSON object with the counts and the list of problems
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> anyhow::Result<Exit> {
        check_is_store(&self.store.path)?;
        let interrupt = Interrupt::install(|| note(format_args!("interrupted")))?;
        let progress = Progress::new("verifying", Some(0));
        let report = thalweg::verify(&self.store.path, &|done| {
            progress.set_total(done.bytes_total);
            progress.set(done.bytes_done, done.events);
            if interrupt.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        progress.clear();
        let shown = self.store.shown();
        let mut report = report.map_err(|error| match &error {
            ReadError::Open(cause) => anyhow!("cannot verify {shown}: {}", advised(cause)),
            other => anyhow!("cannot verify {shown}: {other}"),
        })?;
        if !report.interrupted {
            self.compare_with_manifest(&interrupt, &mut report)?;
        }
        self.print(&report)?;
        if report.interrupted {
            note(format_args!("interrupted: only a part of the store was checked"));
            return Ok(Exit::Interrupted);
        }
        Ok(if report.problem_count > 0 { Exit::Problem } else { Exit::Done })
    }

    /// What a backup has beyond a store: a manifest, with a checksum for every file.
    fn compare_with_manifest(
        &self,
        interrupt: &Interrupt,
        report: &mut VerifyReport,
    ) -> anyhow::Result<()> {
        let progress = Progress::of_bytes("comparing");
        let checked = thalweg::verify_backup(&self.store.path, &|done| {
            progress.set_total(done.bytes_total);
            progress.set(done.bytes_done, 0);
            if interrupt.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        progress.clear();
        match checked {
            Ok(check) => {
                report.problem_count += check.problem_count;
                report.problems.extend(check.problems);
                report.interrupted = check.interrupted;
            }
            Err(BackupError::NotABackup { .. }) => {}
            Err(error) => return Err(anyhow!("cannot verify {}: {error}", self.store.shown())),
        }
        Ok(())
    }

    fn print(&self, report: &VerifyReport) -> anyhow::Result<()> {
        let mut out = output::stdout();
        if self.json {
            output::json_line(&mut out, &Report::new(report))?;
        } else {
            for problem in &report.problems {
                writeln!(out, "{problem}")?;
            }
            let listed = report.problems.len() as u64;
            if report.problem_count > listed {
                writeln!(out, "and {} more", count(report.problem_count - listed))?;
            }
            for file in &report.unknown_files {
                writeln!(out, "{file}: none of the store's files; left alone")?;
            }
            if report.lost_stretches > 0 {
                writeln!(
                    out,
                    "recorded as lost by a repair: {} in {}, with {}",
                    output::bytes(report.lost_bytes),
                    plural(report.lost_stretches, "place"),
                    plural(report.lost_events, "delivered event")
                )?;
            }
            writeln!(out, "{}", summary(report))?;
        }
        Ok(out.flush()?)
    }
}

fn summary(report: &VerifyReport) -> String {
    let verdict = match (report.problem_count, report.interrupted) {
        (0, true) => "no problem so far".into(),
        (0, false) => "no problem".into(),
        (problems, _) => plural(problems, "problem"),
    };
    if report.interrupted {
        return format!("{verdict}: {} checked", plural(report.records, "record"));
    }
    format!(
        "{verdict}: {} checked, {} delivered, {} held, {} duplicate, {} conflicting, {} rejected, \
         {} discarded, in {}",
        plural(report.records, "record"),
        count(report.delivered),
        count(report.held),
        count(report.duplicates),
        count(report.conflicts),
        count(report.rejected),
        count(report.discarded),
        plural(report.streams, "stream")
    )
}

/// The keys of `--json`, in this order.
#[derive(Serialize)]
struct Report<'a> {
    problem_count: u64,
    problems: Vec<Listed<'a>>,
    records: u64,
    delivered: u64,
    held: u64,
    duplicates: u64,
    conflicts: u64,
    rejected: u64,
    discarded: u64,
    streams: u64,
    lost_stretches: u64,
    lost_bytes: u64,
    lost_events: u64,
    unknown_files: &'a [String],
    left_files: &'a [String],
    interrupted: bool,
}

#[derive(Serialize)]
struct Listed<'a> {
    file: &'a str,
    offset: Option<u64>,
    position: Option<u64>,
    detail: &'a str,
    remedy: &'static str,
}

impl<'a> Report<'a> {
    fn new(report: &'a VerifyReport) -> Self {
        let listed = |problem: &'a Problem| Listed {
            file: &problem.file,
            offset: problem.offset,
            position: problem.position,
            detail: &problem.detail,
            remedy: problem.remedy.command(),
        };
        Report {
            problem_count: report.problem_count,
            problems: report.problems.iter().map(listed).collect(),
            records: report.records,
            delivered: report.delivered,
            held: report.held,
            duplicates: report.duplicates,
            conflicts: report.conflicts,
            rejected: report.rejected,
            discarded: report.discarded,
            streams: report.streams,
            lost_stretches: report.lost_stretches,
            lost_bytes: report.lost_bytes,
            lost_events: report.lost_events,
            unknown_files: &report.unknown_files,
            left_files: &report.left_files,
            interrupted: report.interrupted,
        }
    }
}
