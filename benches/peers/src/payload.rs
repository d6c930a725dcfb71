//! Payloads that say who wrote them, so that what is read back can be checked byte for byte.
//!
//! The first bytes of a payload are its thread and its number in that thread, from 0; the rest is a
//! piece of a fixed pool of bytes that do not compress. Which piece follows from thread and number, so
//! the reader needs to know nothing else.

/// Bytes of thread and number.
pub(crate) const HEADER_LEN: usize = 12;
/// Bytes of the pool, beyond the length of a payload.
const POOL_LEN: usize = 1 << 20;
/// Fewest payloads that a thread has ready. In batches of one, every so many have the same body.
pub(crate) const READY_MIN: usize = 64;

/// The bytes that payloads are cut from, the same in every process.
#[derive(Debug)]
pub(crate) struct Pool {
    bytes: Vec<u8>,
    payload_len: usize,
    ready: usize,
}

impl Pool {
    /// For payloads of `payload_len` bytes in batches of `batch`.
    pub(crate) fn new(payload_len: usize, batch: usize) -> Self {
        let words = (POOL_LEN + payload_len).div_ceil(8) as u64;
        let bytes = (0..words).flat_map(|word| mix(word).to_le_bytes()).collect();
        Pool { bytes, payload_len, ready: batch * READY_MIN.div_ceil(batch) }
    }

    fn body(&self, thread: u32, number: u64) -> &[u8] {
        let slot = number % self.ready as u64;
        let at = mix(u64::from(thread) << 32 | slot) as usize % POOL_LEN;
        &self.bytes[at..at + self.payload_len - HEADER_LEN]
    }

    /// The thread and the number of a payload, if it is one, whole and unchanged.
    pub(crate) fn check(&self, payload: &[u8]) -> Result<(u32, u64), String> {
        if payload.len() != self.payload_len {
            return Err(format!("{} bytes instead of {}", payload.len(), self.payload_len));
        }
        let (thread, number) = (thread_of(payload), number_of(payload));
        if payload[HEADER_LEN..] == *self.body(thread, number) {
            Ok((thread, number))
        } else {
            Err(format!("event {number} of thread {thread} has other bytes"))
        }
    }
}

/// The thread that wrote a payload.
fn thread_of(payload: &[u8]) -> u32 {
    u32::from_le_bytes(payload[..4].try_into().expect("four bytes"))
}

/// The number of a payload in its thread.
pub(crate) fn number_of(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[4..HEADER_LEN].try_into().expect("eight bytes"))
}

/// The batches of one thread. The bodies are made beforehand; only headers are written while the
/// clock runs, so that making payloads costs next to nothing.
#[derive(Debug)]
pub(crate) struct Batches {
    ready: Vec<Vec<u8>>,
    batch: usize,
    next: u64,
}

impl Batches {
    pub(crate) fn new(pool: &Pool, thread: u32, batch: usize) -> Self {
        let make = |number| {
            let mut payload = vec![0; HEADER_LEN];
            payload[..4].copy_from_slice(&thread.to_le_bytes());
            payload.extend_from_slice(pool.body(thread, number));
            payload
        };
        Batches { ready: (0..pool.ready as u64).map(make).collect(), batch, next: 0 }
    }

    /// The next batch.
    pub(crate) fn next(&mut self) -> &[Vec<u8>] {
        let first = self.next as usize % self.ready.len();
        let batch = &mut self.ready[first..first + self.batch];
        for payload in &mut *batch {
            payload[4..HEADER_LEN].copy_from_slice(&self.next.to_le_bytes());
            self.next += 1;
        }
        batch
    }
}

/// The finalizer of SplitMix64, on its counter.
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_recognised_and_what_is_changed_is_not() {
        for batch in [1, 64, 100, 512] {
            let pool = Pool::new(100, batch);
            let mut batches = Batches::new(&pool, 7, batch);
            for number in 0..2_000 / batch * batch {
                if number % batch == 0 {
                    let payloads = batches.next();
                    assert_eq!(payloads.len(), batch);
                    for (place, payload) in payloads.iter().enumerate() {
                        assert_eq!(pool.check(payload), Ok((7, (number + place) as u64)));
                        let mut changed = payload.clone();
                        changed[99] ^= 1;
                        assert!(pool.check(&changed).is_err());
                        assert!(pool.check(&payload[1..]).is_err());
                    }
                }
            }
        }
    }
}
