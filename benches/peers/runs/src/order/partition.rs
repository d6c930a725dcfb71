//! What became of an event, as in the engine's `order/partition.rs`; nothing is held here.

pub(crate) enum KnownAs {
    Delivered(u64),
    Held(u64),
}

impl KnownAs {
    const WAS_HELD: u64 = 1 << 62;
    const HELD: u64 = 3 << 62;

    pub(crate) fn encode(self) -> u64 {
        match self {
            KnownAs::Delivered(global) => global,
            KnownAs::Held(position) => Self::HELD | position,
        }
    }

    pub(crate) fn decode(value: u64) -> Self {
        match value >> 62 {
            3 => KnownAs::Held(value & !Self::HELD),
            _ => KnownAs::Delivered(value & !Self::WAS_HELD),
        }
    }

    /// Nothing is discarded here.
    pub(crate) fn discarded_at(_: u64) -> Option<u64> {
        None
    }

    pub(crate) fn was_held(value: u64) -> bool {
        value >> 62 == 1
    }
}
