//! Makes checksums match again, so that what a fuzzer has changed gets past them.
//!
//! The layouts are written down here a second time, from `wal/FORMAT.md` and the heads of the engine's
//! `derived` modules: nothing in the product should be able to forge its own files.

use crc32c::{crc32c, crc32c_append};

const PAGE: usize = 4096;
const HEADER_COPY: usize = 2048;
const FRAME_HEADER: usize = 48;
const RECORD_HEADER: usize = 24;
const RECORD_MAGIC: u8 = 0xE7;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn item_crc(index: u64, bytes: &[u8]) -> u32 {
    crc32c_append(crc32c(&index.to_le_bytes()), bytes)
}

/// Where the magic number of a file's kind is, whatever the file is called, the checksums of that kind.
/// `number` is the ordinal in its name.
pub fn file(bytes: &mut [u8], number: u64) {
    match bytes.first_chunk::<8>() {
        Some(b"THALWEGS") => segment(bytes),
        Some(b"THALWEGC") => checkpoint(bytes),
        Some(b"THALWEGD") => chunk(bytes, number),
        Some(b"THALWEGR") => run(bytes),
        Some(b"THALWEGT") => trimmed(bytes),
        _ => {}
    }
}

/// Where a trimmed log begins, and the body behind it.
fn trimmed(bytes: &mut [u8]) {
    let Some((header, body)) = bytes.split_at_mut_checked(80) else { return };
    put(header, 72, crc32c(body));
    let crc = crc32c(&header[..76]);
    put(header, 76, crc);
}

/// The first copy of a segment's header, which becomes both; then the frames.
pub fn segment(bytes: &mut [u8]) {
    if bytes.len() < PAGE {
        return;
    }
    segment_header(bytes);
    let (base, salt) = (u64_at(bytes, 40), u64_at(bytes, 56));
    frames(&mut bytes[PAGE..], base.wrapping_add(PAGE as u64), salt);
}

/// The first copy of the header, which becomes both.
pub fn segment_header(page: &mut [u8]) {
    let crc = crc32c(&page[..HEADER_COPY - 4]);
    put(page, HEADER_COPY - 4, crc);
    page.copy_within(..HEADER_COPY, HEADER_COPY);
}

/// Whatever looks like a frame header or a record, in the order in which a reader meets them.
pub fn frames(bytes: &mut [u8], start: u64, salt: u64) {
    let mut at = 0;
    while at + 8 <= bytes.len() {
        let position = start.wrapping_add(at as u64);
        at += match frame_header(&mut bytes[at..], position, salt) {
            0 => record(&mut bytes[at..], position, salt).max(8),
            len => len,
        };
    }
}

/// A frame header and its place; returns its length, or 0 if none stands there.
pub fn frame_header(bytes: &mut [u8], position: u64, salt: u64) -> usize {
    if bytes.len() < FRAME_HEADER || bytes[..4] != *b"FRM1" {
        return 0;
    }
    bytes[8..16].copy_from_slice(&position.to_le_bytes());
    let crc = crc32c_append(crc32c(&salt.to_le_bytes()), &bytes[8..FRAME_HEADER]);
    put(bytes, 4, crc);
    FRAME_HEADER
}

/// A record; returns its length, or 0 if none stands there.
pub fn record(bytes: &mut [u8], position: u64, salt: u64) -> usize {
    if bytes.len() < RECORD_HEADER || bytes[4] != RECORD_MAGIC {
        return 0;
    }
    let fields = u64::from(u32_at(bytes, 8)) + u64::from(u32_at(bytes, 12));
    let fields = fields + u64::from(bytes[20]) + u64::from(bytes[21]);
    let len = (RECORD_HEADER as u64 + fields).next_multiple_of(8);
    if len > bytes.len() as u64 {
        return 0;
    }
    let content = crc32c(&bytes[4..len as usize]);
    let mut place = [0; 20];
    place[..8].copy_from_slice(&salt.to_le_bytes());
    place[8..16].copy_from_slice(&position.to_le_bytes());
    place[16..].copy_from_slice(&content.to_le_bytes());
    put(bytes, 0, crc32c(&place));
    len as usize
}

fn checkpoint(bytes: &mut [u8]) {
    let Some(end) = bytes.len().checked_sub(4) else { return };
    let crc = crc32c(&bytes[..end]);
    put(bytes, end, crc);
}

/// The header and the items of a chunk, of the order log or of the tips log by its header.
fn chunk(bytes: &mut [u8], number: u64) {
    const HEADER: usize = 48;
    if bytes.len() < PAGE {
        return;
    }
    let crc = crc32c(&bytes[..HEADER - 4]);
    put(bytes, HEADER - 4, crc);
    let (item_len, body_len, count): (_, _, u64) = match u32_at(bytes, 12) {
        40 => (40, 36, 1 << 18),
        16 => (16, 8, 1 << 16),
        _ => return,
    };
    let first = number.wrapping_mul(count);
    for (index, item) in bytes[PAGE..].chunks_exact_mut(item_len).enumerate() {
        if item.iter().any(|byte| *byte != 0) {
            let crc = item_crc(first.wrapping_add(index as u64), &item[..body_len]);
            put(item, body_len, crc);
        }
    }
}

/// The blobs, the lines, the buckets and the header of a run.
fn run(bytes: &mut [u8]) {
    const LINE: usize = 64;
    const BUCKET: usize = 16;
    const TABLES_AT: usize = 72;
    const HEADER: usize = TABLES_AT + 3 * 48 + 4;
    if bytes.len() < HEADER {
        return;
    }
    // Numbers that lead out of the file lead to nothing that could be sealed.
    let within = |bytes: &[u8], at: u64, len: u64| {
        let end = at.checked_add(len)?;
        (end <= bytes.len() as u64).then_some(at as usize..end as usize)
    };
    let (blobs_at, blobs_len) = (u64_at(bytes, 56), u64_at(bytes, 64));
    let mut offset = 0;
    while offset < blobs_len {
        let Some(header) = within(bytes, blobs_at.wrapping_add(offset), 8) else { break };
        let len = u64::from(u32_at(bytes, header.start));
        let Some(blob) = within(bytes, header.end as u64, len) else { break };
        let crc = item_crc(offset, &bytes[blob]);
        put(bytes, header.start + 4, crc);
        offset += 8 + len;
    }
    for (table, item_len) in [16, 24, 28].into_iter().enumerate() {
        let field = |index: usize| TABLES_AT + table * 48 + index * 8;
        let (items_at, buckets_at, bucket_count) =
            (u64_at(bytes, field(0)), u64_at(bytes, field(2)), u64_at(bytes, field(3)));
        let (filter_at, line_count) = (u64_at(bytes, field(4)), u64_at(bytes, field(5)));
        for index in 0..line_count {
            let at = filter_at.saturating_add(index * LINE as u64);
            let Some(line) = within(bytes, at, LINE as u64) else { break };
            let crc = item_crc(index, &bytes[line.start..line.end - 4]);
            put(bytes, line.end - 4, crc);
        }
        for index in 0..bucket_count {
            let at = buckets_at.saturating_add(index * BUCKET as u64);
            let Some(bucket) = within(bytes, at, BUCKET as u64) else { break };
            let (start, count) = (u64_at(bytes, bucket.start), u32_at(bytes, bucket.start + 8));
            let items_start = start.saturating_mul(item_len).saturating_add(items_at);
            let Some(items) = within(bytes, items_start, u64::from(count) * item_len) else {
                continue;
            };
            let mut place = [0; 20];
            place[..8].copy_from_slice(&index.to_le_bytes());
            place[8..16].copy_from_slice(&start.to_le_bytes());
            place[16..].copy_from_slice(&count.to_le_bytes());
            let crc = crc32c_append(crc32c(&bytes[items]), &place);
            put(bytes, bucket.start + 12, crc);
        }
    }
    let crc = crc32c(&bytes[..HEADER - 4]);
    put(bytes, HEADER - 4, crc);
}
