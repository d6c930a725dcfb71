//! A frame in the making: the batches of one group commit, side by side in one buffer.

use crate::batch::EncodedBatch;
use crate::format::{
    FRAME_HEADER_LEN, FRAME_LEN_MAX, FrameHeader, bind_record, encoded_record_len,
};

/// The next frame. Its buffer is kept from frame to frame.
#[derive(Debug)]
pub struct FrameBuf {
    bytes: Vec<u8>,
    record_count: u32,
    written_at: u64,
}

impl Default for FrameBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameBuf {
    /// An empty frame.
    pub fn new() -> Self {
        FrameBuf { bytes: vec![0; FRAME_HEADER_LEN as usize], record_count: 0, written_at: 0 }
    }

    /// Takes all batches out.
    pub fn clear(&mut self) {
        self.bytes.truncate(FRAME_HEADER_LEN as usize);
        self.record_count = 0;
        self.written_at = 0;
    }

    /// Says when the frame is made, in milliseconds since the Unix epoch. Without this, nobody will know.
    pub fn stamp(&mut self, written_at: u64) {
        self.written_at = written_at;
    }

    /// Whether there is no batch in the frame.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Bytes of the frame so far, header included.
    pub fn byte_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether `batch` still fits below the longest frame of the format.
    pub fn fits(&self, batch: &EncodedBatch) -> bool {
        self.byte_len() + batch.byte_len() <= FRAME_LEN_MAX
    }

    /// Adds a batch, which [`FrameBuf::fits`], and returns the offset of its first record.
    pub fn push(&mut self, batch: &EncodedBatch) -> u64 {
        debug_assert!(self.fits(batch));
        let offset = self.byte_len();
        self.bytes.extend_from_slice(batch.bytes());
        self.record_count += batch.count();
        offset
    }

    /// Binds every record to its place and writes the header; returns the finished bytes.
    pub(crate) fn seal(&mut self, salt: u64, position: u64, floor: u64) -> &[u8] {
        let mut offset = FRAME_HEADER_LEN;
        while offset < self.byte_len() {
            let record = &mut self.bytes[offset as usize..];
            let len = encoded_record_len(record);
            bind_record(record, salt, position + offset);
            offset += len;
        }
        let len = self.byte_len();
        let FrameBuf { record_count, written_at, .. } = *self;
        let header = FrameHeader { position, len, record_count, floor, written_at };
        header.encode_into(salt, &mut self.bytes);
        &self.bytes
    }
}
