//! File names. No other module builds or parses one.

/// The lock file of a store; never deleted.
pub const LOCK: &str = "LOCK";

const SEGMENT_PREFIX: &str = "segment-";
const SEGMENT_SUFFIX: &str = ".wal";
const SEGMENT_NEW_SUFFIX: &str = ".new";
const ORDER_PREFIX: &str = "order-";
const ORDER_SUFFIX: &str = ".ord";
const TIPS_PREFIX: &str = "tips-";
const TIPS_SUFFIX: &str = ".tip";
const RUN_PREFIX: &str = "run-";
const RUN_SUFFIX: &str = ".run";
const CHECKPOINT: &str = "checkpoint.ckp";
const CHECKPOINT_NEW: &str = "checkpoint.new";
const MANIFEST: &str = "backup.manifest";
const MANIFEST_NEW: &str = "backup.new";
const UNFINISHED: &str = "backup.unfinished";
const LOSSES: &str = "losses.los";
const LOSSES_NEW: &str = "losses.new";
const TRIMMED: &str = "trimmed.trm";
const TRIMMED_NEW: &str = "trimmed.new";
const FACTS_PREFIX: &str = "facts-";
const FACTS_SUFFIX: &str = ".fct";
const FACTS_RUN_SUFFIX: &str = ".run";
/// Name, in such a folder, of the report of the repair.
pub const REPORT: &str = "report.json";
const QUARANTINE_PREFIX: &str = "quarantine-";

/// Name of segment `number` of the log.
pub fn segment(number: u64) -> String {
    format!("{SEGMENT_PREFIX}{number:016x}{SEGMENT_SUFFIX}")
}

/// Name under which segment `number` is filled with zeros before it gets its own.
pub fn segment_new(number: u64) -> String {
    format!("{SEGMENT_PREFIX}{number:016x}{SEGMENT_NEW_SUFFIX}")
}

/// Name of chunk `number` of the order log.
pub fn order(number: u64) -> String {
    format!("{ORDER_PREFIX}{number:016x}{ORDER_SUFFIX}")
}

/// Name of chunk `number` of the tips log.
pub fn tips(number: u64) -> String {
    format!("{TIPS_PREFIX}{number:016x}{TIPS_SUFFIX}")
}

/// Name of run `number` of the machine's state.
pub fn run(number: u64) -> String {
    format!("{RUN_PREFIX}{number:016x}{RUN_SUFFIX}")
}

/// Name of the checkpoint.
pub fn checkpoint() -> &'static str {
    CHECKPOINT
}

/// Name under which a checkpoint is written before it replaces the old one.
pub fn checkpoint_new() -> &'static str {
    CHECKPOINT_NEW
}

/// Name of the manifest of a backup: what is in it, with a checksum for each file.
pub fn manifest() -> &'static str {
    MANIFEST
}

/// Name under which a manifest is written before it gets its own.
pub fn manifest_new() -> &'static str {
    MANIFEST_NEW
}

/// Name of the mark of a copy that is being made: without a manifest beside it, it is not whole.
pub fn unfinished() -> &'static str {
    UNFINISHED
}

/// Name of the file that says what is lost of the log.
pub fn losses() -> &'static str {
    LOSSES
}

/// Name under which losses are written before they replace the old ones.
pub fn losses_new() -> &'static str {
    LOSSES_NEW
}

/// Name of the file that says with which segment the log begins, if that is not the first.
pub fn trimmed() -> &'static str {
    TRIMMED
}

/// Name under which such a file is written before it replaces the old one.
pub fn trimmed_new() -> &'static str {
    TRIMMED_NEW
}

/// Name of file `number` with what ordering needs of what was trimmed.
pub fn facts(number: u64) -> String {
    format!("{FACTS_PREFIX}{number:016x}{FACTS_SUFFIX}")
}

/// Name of run `number` of the machine's state at the place where the log begins.
pub fn facts_run(number: u64) -> String {
    format!("{FACTS_PREFIX}{number:016x}{FACTS_RUN_SUFFIX}")
}

/// Name of the folder in which repair `number` keeps what it has replaced.
pub fn quarantine(number: u64) -> String {
    format!("{QUARANTINE_PREFIX}{number:04}")
}

/// Number of the repair to whose folder `name` belongs.
pub(crate) fn quarantine_number(name: &str) -> Option<u64> {
    let rest = name.strip_prefix(QUARANTINE_PREFIX)?;
    rest.split('/').next()?.parse().ok()
}

/// What a file in a store's directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The lock file.
    Lock,
    /// A segment of the log, with its number.
    Segment(u64),
    /// A segment whose preparation was cut short; may be deleted.
    SegmentNew(u64),
    /// A chunk of the order log, with its number: derived, may be deleted.
    Order(u64),
    /// A chunk of the tips log, with its number: derived, may be deleted.
    Tips(u64),
    /// A run of the machine's state, with its number: derived, may be deleted.
    Run(u64),
    /// The checkpoint, whole or half written: derived, may be deleted.
    Checkpoint,
    /// The manifest of a backup, whole or half written, or the mark of one that is not finished.
    Backup,
    /// What is lost of the log.
    Losses,
    /// Losses that are half written; may be deleted.
    LossesNew,
    /// Where the log begins, if not at its first segment.
    Trimmed,
    /// The same, half written; may be deleted.
    TrimmedNew,
    /// What ordering needs of what was trimmed, with a number: cannot be made again from the log.
    Facts(u64),
    /// A run of the machine's state where the log begins, with its number: cannot be made again either.
    FactsRun(u64),
    /// What a repair has replaced. Not read by anything; may be deleted.
    Quarantine,
    /// Not ours. Left alone.
    Unknown,
}

impl Kind {
    /// Whether the file can be made again from the log.
    pub fn is_derived(self) -> bool {
        matches!(self, Kind::Order(_) | Kind::Tips(_) | Kind::Run(_) | Kind::Checkpoint)
    }
}

/// Tells what `name` is.
pub fn kind(name: &str) -> Kind {
    let number = |prefix: &str, suffix: &str| {
        let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
        let canonical = digits.len() == 16 && !digits.contains(|c: char| c.is_ascii_uppercase());
        u64::from_str_radix(digits, 16).ok().filter(|_| canonical)
    };
    if name == LOCK {
        Kind::Lock
    } else if name == CHECKPOINT || name == CHECKPOINT_NEW {
        Kind::Checkpoint
    } else if [MANIFEST, MANIFEST_NEW, UNFINISHED].contains(&name) {
        Kind::Backup
    } else if name == LOSSES {
        Kind::Losses
    } else if name == LOSSES_NEW {
        Kind::LossesNew
    } else if name == TRIMMED {
        Kind::Trimmed
    } else if name == TRIMMED_NEW {
        Kind::TrimmedNew
    } else if name.starts_with(QUARANTINE_PREFIX) {
        Kind::Quarantine
    } else if let Some(number) = number(SEGMENT_PREFIX, SEGMENT_SUFFIX) {
        Kind::Segment(number)
    } else if let Some(number) = number(SEGMENT_PREFIX, SEGMENT_NEW_SUFFIX) {
        Kind::SegmentNew(number)
    } else if let Some(number) = number(ORDER_PREFIX, ORDER_SUFFIX) {
        Kind::Order(number)
    } else if let Some(number) = number(TIPS_PREFIX, TIPS_SUFFIX) {
        Kind::Tips(number)
    } else if let Some(number) = number(RUN_PREFIX, RUN_SUFFIX) {
        Kind::Run(number)
    } else if let Some(number) = number(FACTS_PREFIX, FACTS_SUFFIX) {
        Kind::Facts(number)
    } else if let Some(number) = number(FACTS_PREFIX, FACTS_RUN_SUFFIX) {
        Kind::FactsRun(number)
    } else {
        Kind::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        assert_eq!(kind(&segment(0xabc)), Kind::Segment(0xabc));
        assert_eq!(kind(&segment_new(3)), Kind::SegmentNew(3));
        assert_eq!(kind(&order(7)), Kind::Order(7));
        assert_eq!(kind(&tips(u64::MAX)), Kind::Tips(u64::MAX));
        assert_eq!(kind(&run(9)), Kind::Run(9));
        assert_eq!(kind(checkpoint()), Kind::Checkpoint);
        assert_eq!(kind(checkpoint_new()), Kind::Checkpoint);
        assert_eq!(kind(manifest()), Kind::Backup);
        assert_eq!(kind(manifest_new()), Kind::Backup);
        assert_eq!(kind(unfinished()), Kind::Backup);
        assert_eq!(kind(losses()), Kind::Losses);
        assert_eq!(kind(losses_new()), Kind::LossesNew);
        assert_eq!(kind(trimmed()), Kind::Trimmed);
        assert_eq!(kind(trimmed_new()), Kind::TrimmedNew);
        assert_eq!(kind(&facts(0xfac75)), Kind::Facts(0xfac75));
        assert_eq!(kind(&facts_run(5)), Kind::FactsRun(5));
        assert!(!Kind::FactsRun(1).is_derived());
        assert!(!Kind::Trimmed.is_derived() && !Kind::Facts(1).is_derived());
        assert_eq!(kind(&quarantine(3)), Kind::Quarantine);
        assert_eq!(kind(LOCK), Kind::Lock);
    }

    #[test]
    fn near_misses_are_not_ours() {
        for name in ["segment-1.wal", "segment-00000000000000AB.wal", "order-.ord", "", "x"] {
            assert_eq!(kind(name), Kind::Unknown, "{name}");
        }
    }
}
