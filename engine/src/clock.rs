//! The time of day, for the ages of held events. Nothing in the order, in recovery or in a wait follows from it, and
//! no other file looks at it: a clock that can be set jumps.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where the time of day comes from.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    pub(crate) fn new(clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Clock(Arc::new(clock))
    }

    /// The clock of the machine.
    pub(crate) fn of_machine() -> Self {
        Self::new(SystemTime::now)
    }

    pub(crate) fn now(&self) -> SystemTime {
        (self.0)()
    }

    /// Milliseconds since the Unix epoch, as a frame has them; 0, for not known, if the clock is before it.
    pub(crate) fn millis(&self) -> u64 {
        let since = self.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// So many milliseconds after the Unix epoch; nothing if that is later than anybody can say.
pub(crate) fn at_millis(millis: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}
