//! Starting, naming, pinning and outliving the threads of the pipeline.
//!
//! One thread, one role. A thread that panics stops the engine with its message as the cause; it
//! never goes quietly. Threads are pinned only where each can have a core of its own: with fewer
//! cores the scheduler knows better, and nothing spins: the writer spins before it sleeps only where each
//! thread has a core, or where the options say so.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Cause;
use crate::options::Options;
use crate::pipeline::core::Core;
use crate::sync::Arc;
use crate::sync::thread::{Builder, JoinHandle};

/// Threads of the pipeline besides scanners and pool: writer, orderer, committer.
pub(crate) const SINGLE_THREADS: usize = 3;

/// Which core each thread is pinned to: none, or one each.
#[derive(Debug, Default)]
pub(crate) struct Cores {
    ids: Vec<core_affinity::CoreId>,
    next: usize,
}

impl Cores {
    /// Reads the cores that this process may use, before any thread is pinned: a pinned thread
    /// sees only its own.
    pub(crate) fn for_options(options: &Options) -> Self {
        let wanted = SINGLE_THREADS + options.scanners + options.orderers;
        let ids = core_affinity::get_core_ids().unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(ids.len());
        if options.pin && cores >= wanted { Cores { ids, next: 0 } } else { Cores::default() }
    }

    /// Whether each thread has one.
    pub(crate) fn are_enough(&self) -> bool {
        !self.ids.is_empty()
    }

    /// The next core, if threads are pinned.
    pub(crate) fn take(&mut self) -> Option<core_affinity::CoreId> {
        let id = self.ids.get(self.next).copied();
        self.next += 1;
        id
    }
}

/// Pins the calling thread. A pin that fails costs speed and nothing else.
fn pin(core: Option<core_affinity::CoreId>) {
    if let Some(core) = core {
        core_affinity::set_for_current(core);
    }
}

/// Starts a thread of the pipeline, which runs `stage`. If it panics, the engine stops with that
/// cause. The stage is dropped after that, and the promises that it held with it, so whoever waits
/// for one of them finds the cause.
pub(crate) fn spawn<S: Send + 'static>(
    core: &Arc<Core>,
    name: &'static str,
    pinned_to: Option<core_affinity::CoreId>,
    mut stage: S,
    run: impl FnOnce(&mut S) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let core = Arc::clone(core);
    Builder::new().name(name.to_owned()).spawn(move || {
        pin(pinned_to);
        // Whatever the stage has left half done is never used again: the engine is stopped.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&mut stage))) {
            core.fail(Cause::Panic { thread: name, message: message_of(&*panic) });
            // It may wait for what this thread will never send.
            core.stop_orderer();
        }
    })
}

/// What a panic said.
pub(crate) fn message_of(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        String::from("no message")
    }
}

/// The pool of orderers: a private one, so that the global pool stays the application's. Adds its
/// threads to `handles`, since a pool that is dropped does not wait for them.
pub(crate) fn pool(
    options: &Options,
    cores: &mut Cores,
    handles: &mut Vec<JoinHandle<()>>,
) -> io::Result<Option<rayon::ThreadPool>> {
    if options.orderers == 1 {
        return Ok(None);
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.orderers)
        .spawn_handler(|thread| {
            let pinned_to = cores.take();
            let name = format!("thalweg-order-{}", thread.index());
            handles.push(Builder::new().name(name).spawn(move || {
                pin(pinned_to);
                thread.run();
            })?);
            Ok(())
        })
        .build()
        .map_err(io::Error::other)?;
    Ok(Some(pool))
}
