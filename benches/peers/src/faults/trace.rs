//! Runs a process and stops at each of its system calls, to count them, to let one fail, or to end it.
//!
//! Works on whatever makes the calls: the C library, or a crate that makes them itself, which
//! preloading a library does not see. A call that fails is not made; one that is cut short is made for
//! half of its bytes.

use std::collections::{BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::child::Said;
use super::disk::{Disk, FileId, Syncing};
use crate::Failure;

/// Without a word for so long, a process hangs.
const SILENCE: Duration = Duration::from_secs(10);

/// What is done to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The process is killed before it makes the call.
    Kill,
    Fails(Errno),
    Short,
}

/// What a system call does to the files of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Write,
    Sync,
    /// Cuts a file, or reserves room in it.
    Size,
    /// Makes, renames or removes a file.
    Name,
}

/// From the `at`-th call of these kinds on, the first being 1, `times` calls.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) fault: Fault,
    pub(super) calls: &'static [Call],
    pub(super) at: u64,
    pub(super) times: u64,
}

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Code(i32),
    Signal(Signal),
    /// It was silent, and was killed.
    Hung,
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Traced {
    pub(super) end: End,
    pub(super) said: Vec<Said>,
    /// What it had said when the first call failed.
    pub(super) said_before: Option<usize>,
    /// Last lines on the standard error.
    pub(super) complaint: String,
    /// Calls of each kind, from the opened store on.
    pub(super) counts: HashMap<Call, u64>,
    pub(super) disk: Disk,
    /// Ways to write that the disk of the model does not see.
    pub(super) unseen: BTreeSet<&'static str>,
}

impl std::hash::Hash for Call {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (*self as u8).hash(state);
    }
}

fn start(command: &mut Command) -> Result<Child, Failure> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(piped.spawn()?)
}

/// Runs an appending process without stopping it. Returns what it said, if it ended well.
pub(super) fn leave_alone(command: &mut Command) -> Result<Vec<Said>, Failure> {
    let mut child = start(command)?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let watcher = watch(&mut child, pid);
    child.stdin.take().expect("is piped").write_all(&[1])?;
    let (said, complaint, hung) = watcher.join().map_err(|_| "the watcher has panicked")??;
    let status = child.wait()?;
    if status.success() {
        return Ok(said);
    }
    let how = if hung { "it was silent for too long, and killed" } else { complaint.trim() };
    Err(format!("without a fault, {status}: {how}").into())
}

/// Runs an appending process on a store in `dir`.
pub(super) fn run(
    command: &mut Command,
    dir: &Path,
    plan: Option<Plan>,
) -> Result<Traced, Failure> {
    let mut child = start(command)?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options)?;
    ptrace::interrupt(pid)?;
    let watcher = watch(&mut child, pid);
    // It waits for this byte, so it has done nothing yet.
    child.stdin.take().expect("is piped").write_all(&[1])?;
    let mut tracer = Tracer {
        pid,
        dir: dir.to_owned(),
        plan,
        lines: 0,
        said_before: None,
        under_way: HashMap::new(),
        counts: HashMap::new(),
        met: 0,
        disk: Disk::default(),
        unseen: BTreeSet::new(),
    };
    let status = tracer.follow()?;
    let (said, complaint, hung) = watcher.join().map_err(|_| "the watcher has panicked")??;
    let end = match status {
        _ if hung => End::Hung,
        WaitStatus::Exited(_, code) => End::Code(code),
        WaitStatus::Signaled(_, signal, _) => End::Signal(signal),
        other => return Err(format!("ended as {other:?}").into()),
    };
    let Tracer { said_before, counts, disk, unseen, .. } = tracer;
    Ok(Traced { end, said, said_before, complaint, counts, disk, unseen })
}

type Watched = Result<(Vec<Said>, String, bool), Failure>;

/// Collects what the process says, and kills it when it says nothing for too long.
fn watch(child: &mut Child, pid: Pid) -> std::thread::JoinHandle<Watched> {
    let stdout = child.stdout.take().expect("is piped");
    let mut stderr = child.stderr.take().expect("is piped");
    let complaint = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    std::thread::spawn(move || {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().try_for_each(|line| sender.send(line))
        });
        let (mut said, mut hung) = (Vec::new(), false);
        loop {
            match lines.recv_timeout(SILENCE) {
                // A line that the kill has cut was not said.
                Ok(line) => said.extend(serde_json::from_str::<Said>(&line?)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    hung = true;
                    // It may have ended at this moment.
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
        }
        let complaint = complaint.join().map_err(|_| "reading has panicked")?;
        Ok((said, complaint, hung))
    })
}

/// A system call between its entry and its exit.
enum UnderWay {
    Fails(Errno),
    /// The register that was changed, as it was.
    Short(u64),
    Sync(Syncing),
    /// Opens a file that may be new.
    Creates,
}

struct Tracer {
    pid: Pid,
    dir: PathBuf,
    plan: Option<Plan>,
    /// Lines said. The store is open from the first one on.
    lines: usize,
    said_before: Option<usize>,
    under_way: HashMap<Pid, UnderWay>,
    counts: HashMap<Call, u64>,
    /// Calls of the plan so far.
    met: u64,
    disk: Disk,
    unseen: BTreeSet<&'static str>,
}

impl Tracer {
    /// Goes from stop to stop until the process has ended.
    fn follow(&mut self) -> Result<WaitStatus, Failure> {
        loop {
            let status = waitpid(None, Some(WaitPidFlag::__WALL))?;
            let resumed = match status {
                WaitStatus::PtraceSyscall(thread) => match self.stopped(thread) {
                    Ok(()) => ptrace::syscall(thread, None),
                    // A thread that was killed while it stood still is there no more.
                    Err(error) if is_gone(&*error) => Ok(()),
                    Err(error) => {
                        let _ = kill(self.pid, Signal::SIGKILL);
                        return Err(error);
                    }
                },
                WaitStatus::PtraceEvent(thread, ..) => ptrace::syscall(thread, None),
                WaitStatus::Stopped(thread, signal) => ptrace::syscall(thread, signal),
                WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..)
                    if thread == self.pid =>
                {
                    return Ok(status);
                }
                _ => Ok(()),
            };
            match resumed {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn stopped(&mut self, thread: Pid) -> Result<(), Failure> {
        let is_entry = ptrace::syscall_info(thread)?.op == libc::PTRACE_SYSCALL_INFO_ENTRY;
        let mut regs = ptrace::getregs(thread)?;
        if is_entry { self.entry(thread, &mut regs) } else { self.exit(thread, &mut regs) }
    }

    fn entry(&mut self, thread: Pid, regs: &mut user_regs_struct) -> Result<(), Failure> {
        let number = regs.orig_rax.cast_signed();
        let call = match number {
            libc::SYS_write | libc::SYS_pwrite64 => Call::Write,
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => Call::Write,
            libc::SYS_fsync | libc::SYS_fdatasync => Call::Sync,
            libc::SYS_ftruncate | libc::SYS_fallocate => Call::Size,
            libc::SYS_openat if regs.rdx as i32 & libc::O_CREAT != 0 => Call::Name,
            libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => Call::Name,
            libc::SYS_unlink | libc::SYS_unlinkat => Call::Name,
            _ => {
                self.look_for_other_ways(thread, number, regs);
                return Ok(());
            }
        };
        let at = PathBuf::from(format!("/proc/{thread}/fd/{}", regs.rdi as i32));
        if call != Call::Name {
            if call == Call::Write && regs.rdi == 1 {
                self.lines += 1;
                return Ok(());
            }
            if !std::fs::read_link(&at).is_ok_and(|path| path.starts_with(&self.dir)) {
                return Ok(());
            }
        }
        match self.fault_for(call) {
            Some(Fault::Kill) => return Ok(kill(self.pid, Signal::SIGKILL)?),
            Some(Fault::Fails(errno)) => {
                if call == Call::Sync {
                    let sync = self.disk.sync(&at)?;
                    self.disk.synced(sync, false);
                }
                regs.orig_rax = u64::MAX;
                ptrace::setregs(thread, *regs)?;
                self.under_way.insert(thread, UnderWay::Fails(errno));
                return Ok(());
            }
            Some(Fault::Short) => {
                self.under_way.insert(thread, UnderWay::Short(regs.rdx));
                // Half of the bytes, or half of the buffers.
                regs.rdx = regs.rdx.div_ceil(2);
                ptrace::setregs(thread, *regs)?;
            }
            None => {}
        }
        self.tell_the_disk(thread, call, number, regs, &at)
    }

    /// What the plan has for this call.
    fn fault_for(&mut self, call: Call) -> Option<Fault> {
        if self.lines == 0 {
            return None;
        }
        *self.counts.entry(call).or_default() += 1;
        let plan = self.plan.filter(|plan| plan.calls.contains(&call))?;
        self.met += 1;
        let hit = (plan.at..plan.at + plan.times).contains(&self.met);
        if hit {
            self.said_before.get_or_insert(self.lines);
        }
        hit.then_some(plan.fault)
    }

    fn tell_the_disk(
        &mut self,
        thread: Pid,
        call: Call,
        number: i64,
        regs: &user_regs_struct,
        at: &Path,
    ) -> Result<(), Failure> {
        match (call, number) {
            (Call::Write, _) => {
                let (offset, len) = range(thread, number, regs, at)?;
                self.disk.write(at, offset, len)
            }
            (Call::Sync, _) => {
                let sync = self.disk.sync(at)?;
                self.under_way.insert(thread, UnderWay::Sync(sync));
                Ok(())
            }
            (Call::Size, libc::SYS_ftruncate) => self.disk.set_len(at, regs.rsi),
            // Punches a hole, or writes zeros.
            (Call::Size, _) if regs.rsi & !(libc::FALLOC_FL_KEEP_SIZE as u64) != 0 => {
                self.disk.write(at, regs.rdx, regs.r10)
            }
            (Call::Name, libc::SYS_openat) => {
                self.under_way.insert(thread, UnderWay::Creates);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn exit(&mut self, thread: Pid, regs: &mut user_regs_struct) -> Result<(), Failure> {
        let result = regs.rax.cast_signed();
        match self.under_way.remove(&thread) {
            None => {}
            Some(UnderWay::Fails(errno)) => {
                regs.rax = (-i64::from(errno as i32)).cast_unsigned();
                ptrace::setregs(thread, *regs)?;
            }
            Some(UnderWay::Short(rdx)) => {
                regs.rdx = rdx;
                ptrace::setregs(thread, *regs)?;
            }
            Some(UnderWay::Sync(sync)) => self.disk.synced(sync, result == 0),
            Some(UnderWay::Creates) if result >= 0 => {
                let at = format!("/proc/{thread}/fd/{result}");
                let metadata = std::fs::metadata(at)?;
                if metadata.is_file() && metadata.len() == 0 {
                    self.disk.created(FileId::of(&metadata));
                }
            }
            Some(UnderWay::Creates) => {}
        }
        Ok(())
    }

    fn look_for_other_ways(&mut self, thread: Pid, number: i64, regs: &user_regs_struct) {
        let below = |fd: u64| {
            let path = std::fs::read_link(format!("/proc/{thread}/fd/{}", fd as i32));
            path.is_ok_and(|path| path.starts_with(&self.dir))
        };
        let written = libc::PROT_WRITE as u64;
        let way = match number {
            libc::SYS_io_uring_setup => "io_uring",
            libc::SYS_mmap
                if regs.r10 & 0xf == libc::MAP_SHARED as u64
                    && regs.rdx & written != 0
                    && below(regs.r8) =>
            {
                "a writable map"
            }
            libc::SYS_msync => "msync",
            libc::SYS_sync | libc::SYS_syncfs => "a sync of the file system",
            libc::SYS_sync_file_range if below(regs.rdi) => "sync_file_range",
            libc::SYS_copy_file_range if below(regs.rdx) => "copy_file_range",
            libc::SYS_sendfile if below(regs.rdi) => "sendfile",
            _ => return,
        };
        self.unseen.insert(way);
    }
}

/// Where a write goes, and how many bytes.
fn range(
    thread: Pid,
    number: i64,
    regs: &user_regs_struct,
    at: &Path,
) -> Result<(u64, u64), Failure> {
    let len = match number {
        libc::SYS_write | libc::SYS_pwrite64 => regs.rdx,
        _ => {
            let mut len = 0;
            for place in 0..regs.rdx {
                let at = (regs.rsi + place * 16 + 8) as ptrace::AddressType;
                len += ptrace::read(thread, at)?.cast_unsigned();
            }
            len
        }
    };
    let offset = match number {
        libc::SYS_write | libc::SYS_writev => {
            let name = at.file_name().expect("a descriptor").to_string_lossy();
            let info = std::fs::read_to_string(format!("/proc/{thread}/fdinfo/{name}"))?;
            let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
            let flags = i32::from_str_radix(field("flags:").unwrap_or("0").trim(), 8)?;
            if flags & libc::O_APPEND != 0 {
                std::fs::metadata(at)?.len()
            } else {
                field("pos:").unwrap_or("0").trim().parse()?
            }
        }
        _ => regs.r10,
    };
    Ok((offset, len))
}

/// Whether a thread has ended under our hands.
fn is_gone(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let no_thread = error.downcast_ref() == Some(&Errno::ESRCH);
    let no_file = error.downcast_ref::<std::io::Error>();
    no_thread || no_file.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
