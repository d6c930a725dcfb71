//! Being told by the kernel that files of a directory change, with Linux's inotify.
//!
//! The kernel queues what happens from the moment on at which the watch is made, after the write that it tells of, so
//! a change is either seen by a look at the file that comes later, or still in the queue. It tells of writes
//! with `write`, by any process of this machine; not of those through a map, nor of those of another
//! machine on a network file system.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;

use super::Watch;

/// Bytes of events that are taken from the kernel at once; one takes at most a third of a KiB.
const EVENTS_LEN: usize = 4096;

/// A watch on one directory.
#[derive(Debug)]
pub(super) struct DirectoryWatch {
    events: OwnedFd,
    /// A counter that is not zero after a call of `wake`.
    wake: OwnedFd,
}

impl DirectoryWatch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::CREATE | WatchFlags::MODIFY | WatchFlags::MOVED_TO;
        let ends = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        add_watch(&events, dir, changes | ends | WatchFlags::ONLYDIR)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(DirectoryWatch { events, wake })
    }

    /// Takes all events that there are; says whether one is wanted.
    fn take_events(&self, is_wanted: &dyn Fn(&str) -> bool) -> io::Result<bool> {
        let over =
            ReadFlags::IGNORED | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
        let mut space = [MaybeUninit::uninit(); EVENTS_LEN];
        let mut reader = Reader::new(&self.events, &mut space);
        let mut wanted = false;
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(wanted),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if event.events().intersects(over) {
                return Err(io::ErrorKind::NotFound.into());
            }
            wanted |= match event.file_name() {
                Some(name) => name.to_str().is_ok_and(is_wanted),
                // The queue was full, and something is lost.
                None => true,
            };
        }
    }
}

impl Watch for DirectoryWatch {
    fn wait(&self, is_wanted: &dyn Fn(&str) -> bool, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
            let mut fds =
                [PollFd::new(&self.events, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !fds[1].revents().is_empty() {
                // Back to zero; nobody else reads it.
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
                return Ok(());
            }
            if self.take_events(is_wanted)? {
                return Ok(());
            }
        }
    }

    fn wake(&self) {
        // It fails only where the counter is full, and then it is not zero.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}
