//! A follower beside the owner, as another process would have it: it lives on while the owner fails, is closed and
//! comes back, and whatever it shows is held against the model like what the owner's readers see.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockstep::thread::{Builder, JoinHandle};
use thalweg::{Follower, ReadError, StreamView};

use crate::disk::{Dice, Disk};
use crate::model::{Followed, Model};
use crate::scenario::shared;

/// A follower that has come to nothing new after so many waits of a second never will. In a simulated world a wait can run
/// out of time at any step, and when all wait, it takes none.
const WAITS_MAX: usize = 1000;

pub struct Following {
    follower: Follower,
    /// Follows until the follower is closed. Taken by the end.
    thread: Option<JoinHandle<()>>,
    /// Something has happened for which it may stop, or be unable to read.
    harmed: Arc<AtomicBool>,
}

impl Following {
    /// Follows what is on the disk; nothing if that cannot be opened, for which there has to be a reason.
    pub fn open(disk: &Disk, model: &Arc<Model>, is_harmed: bool, dice: &mut Dice) -> Option<Self> {
        let follower = match Follower::open_on(shared(disk)) {
            Ok(follower) => follower,
            Err(error) => {
                let harmed = is_harmed || !disk.happened().is_empty();
                assert!(harmed, "nothing has happened, but: {error}");
                return None;
            }
        };
        let harmed = Arc::new(AtomicBool::new(is_harmed));
        let from = dice.below(1 + follower.delivered());
        let (model, dice) = (Arc::clone(model), Dice(dice.next()));
        let (followed, told) = (follower.clone(), Arc::clone(&harmed));
        let disk = disk.clone();
        let follow = move || {
            let mut seen = Followed { from, ..Followed::default() };
            seen.to = from;
            if let Err(error) = follow(&followed, &model, &mut seen, dice) {
                let harmed = told.load(Ordering::SeqCst) || !disk.happened().is_empty();
                assert!(harmed, "nothing has happened, but: {error}");
            }
            model.followed(seen);
        };
        let thread = Builder::new().name(String::from("follower")).spawn(follow).expect("starts");
        Some(Following { follower, thread: Some(thread), harmed })
    }

    /// From now on it may stop.
    pub fn harm(&self) {
        self.harmed.store(true, Ordering::SeqCst);
    }

    /// It comes to all that the owner has delivered, unless it may have stopped.
    pub fn catch_up(&self, delivered: u64) {
        let comes = |_| match self.follower.wait_delivered(delivered, Duration::from_secs(1)) {
            Ok(there) => there,
            // What has happened earlier has stopped it.
            Err(error) => {
                assert!(self.harmed.load(Ordering::SeqCst), "nothing has happened, but: {error}");
                true
            }
        };
        let there = self.follower.delivered();
        assert!((0..WAITS_MAX).any(comes), "the follower was at {there}, and not at {delivered}");
    }

    /// Ends it, and hands what it has shown to the model.
    pub fn end(mut self) {
        self.follower.close();
        if let Err(panic) = self.thread.take().expect("it ends once").join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Following {
    /// A test that fails does not leave it behind: it would wait for ever.
    fn drop(&mut self) {
        self.follower.close();
    }
}

/// Follows in all the ways that there are, and notes every number.
fn follow(
    follower: &Follower,
    model: &Model,
    seen: &mut Followed,
    mut dice: Dice,
) -> Result<(), ReadError> {
    let mut subscription = follower.subscribe(seen.from)?;
    // Of each stream, how many events there are, at least.
    let mut lens: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    loop {
        let next = match dice.below(8) {
            0 => {
                let stream = format!("s{}", dice.below(4)).into_bytes();
                let len = lens.get(&stream).copied().unwrap_or(0);
                let view = follower.stream(&stream)?;
                let there = view.as_ref().map_or(0, StreamView::len);
                assert!(there >= len, "of {len} events, a view has {there}");
                if let Some(view) = view {
                    let from = dice.below(view.len());
                    let see = |event: Result<_, _>| event.map(|event| model.saw(&event));
                    let read = || view.read(from..)?.try_for_each(see);
                    match read() {
                        // A record of the log says so, and may come at any time.
                        Err(ReadError::Trimmed { first }) if first > from => {}
                        read => read?,
                    }
                }
                continue;
            }
            1..4 => subscription.next_timeout(Duration::from_millis(dice.below(5))),
            _ => subscription.next().unwrap_or(Err(ReadError::Closed)).map(Some),
        };
        match next {
            Ok(Some(event)) => {
                model.saw(&event);
                lens.insert(event.stream().to_vec(), event.local() + 1);
                seen.globals.push(event.global());
                seen.to = event.global() + 1;
            }
            Ok(None) => {}
            Err(ReadError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
