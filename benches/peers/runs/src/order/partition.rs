//! What became of an event, as in the engine's `order/partition.rs`; nothing is held here.

pub(crate) enum KnownAs {
    Delivered,
    Held(u64),
}

impl KnownAs {
    const HELD: u64 = 3 << 62;

    pub(crate) fn encode(self) -> u64 {
        match self {
            KnownAs::Delivered => unreachable!("only watches are encoded, and there are none"),
            KnownAs::Held(position) => Self::HELD | position,
        }
    }

    pub(crate) fn decode(value: u64) -> Self {
        match value >> 62 {
            3 => KnownAs::Held(value & !Self::HELD),
            _ => KnownAs::Delivered,
        }
    }

    pub(crate) fn was_held(value: u64) -> bool {
        value >> 62 == 1
    }
}
