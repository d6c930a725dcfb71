//! Choices out of the fuzzer's bytes.

/// What is left of the input. At its end every choice is zero.
#[derive(Debug)]
pub struct Input<'a>(pub &'a [u8]);

/// Numbers at which lengths, counts and places go wrong.
const EXTREMES: [u64; 24] = [
    0,
    1,
    2,
    7,
    8,
    40,
    48,
    0x7f,
    0xff,
    0x100,
    4095,
    4096,
    0xffff,
    1 << 20,
    i32::MAX as u64,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 48,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

impl Input<'_> {
    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// A number below `end`, or 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let number = match end {
            ..=0x100 => usize::from(self.byte()),
            0x101..=0x1_0000 => usize::from(self.byte()) | usize::from(self.byte()) << 8,
            _ => (0..3).fold(0, |number, _| number << 8 | usize::from(self.byte())),
        };
        number.checked_rem(end).unwrap_or(0)
    }

    /// True once in so many.
    pub fn once_in(&mut self, times: u8) -> bool {
        self.byte() % times == times - 1
    }

    /// An extreme number, or one that is a little off `now`.
    pub fn number(&mut self, now: u64) -> u64 {
        match self.byte() {
            index @ ..24 => EXTREMES[usize::from(index)],
            delta @ 24..128 => now.wrapping_add_signed(i64::from(delta) - 76),
            delta @ 128..232 => now.wrapping_add_signed((i64::from(delta) - 180) * 8),
            232.. => (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte())),
        }
    }

    /// Up to `max` bytes.
    pub fn bytes(&mut self, max: usize) -> Vec<u8> {
        (0..self.below(max + 1)).map(|_| self.byte()).collect()
    }
}
