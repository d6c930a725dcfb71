//! Ctrl-C. A run ends within a second of it, whatever it is doing, with exit code 130.
//!
//! Commands that only print have nothing to finish and end inside the signal handler. Commands
//! that have something to say or to wait for poll a flag; a second signal ends those at once, and
//! a watchdog ends them when the poll does not come in time, because a thread may be stuck in a
//! system call that no flag reaches (a slow sync, a full pipe).
//!
//! The handlers do nothing but store a flag, write one byte to a socket, or `_exit`.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::exit::INTERRUPTED;

/// How long a command has, after the signal, to end on its own. Below the second that is promised.
const GRACE: Duration = Duration::from_millis(850);

const SIGNALS: [i32; 2] = [SIGINT, SIGTERM];

/// Ends the process at once, with exit code 130, when a signal comes.
pub(crate) fn exit_at_once() -> io::Result<()> {
    let always = Arc::new(AtomicBool::new(true));
    for signal in SIGNALS {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            INTERRUPTED.into(),
            always.clone(),
        )?;
    }
    Ok(())
}

/// A flag that a signal sets.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    flag: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the handlers. `last_words` runs on the watchdog's thread if the command has not
    /// ended in time; it must not block.
    pub(crate) fn install(last_words: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        let (mut woken, waker) = UnixStream::pair()?;
        for signal in SIGNALS {
            // The order matters: the second signal finds the flag that the first has set.
            signal_hook::flag::register_conditional_shutdown(
                signal,
                INTERRUPTED.into(),
                flag.clone(),
            )?;
            signal_hook::flag::register(signal, flag.clone())?;
            signal_hook::low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        std::thread::Builder::new().name("thalweg-watchdog".into()).spawn(move || {
            if woken.read(&mut [0]).is_ok_and(|len| len > 0) {
                std::thread::sleep(GRACE);
                last_words();
                std::process::exit(INTERRUPTED.into());
            }
        })?;
        Ok(Interrupt { flag })
    }

    /// Whether a signal has come.
    pub(crate) fn is_set(&self) -> bool {
        // SeqCst is what signal-hook stores with; nothing else is published through the flag.
        self.flag.load(Ordering::SeqCst)
    }
}
