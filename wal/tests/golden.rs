//! Stores of released versions are read for ever. The files in `golden/` are never written again
//! once their version is released; each line holds the bytes at an offset, and what is not listed is zero.

mod common;

use common::{Event, golden_frames, open, put, read, snapshot, whole};
use thalweg_wal::format::{FrameHeader, SegmentHeader, SegmentHeaderState};
use thalweg_wal::storage::MemoryStorage;
use thalweg_wal::{TailReport, name};

const SEGMENT_1: &str = include_str!("golden/v1/segment-0000000000000001.wal.hex");
const SEGMENT_2: &str = include_str!("golden/v1/segment-0000000000000002.wal.hex");

const BASE_2: u64 = 1 << 20;
/// Positions of the whole frames of the first segment, and where it was cut.
const FRAMES_1: [u64; 3] = [4096, 4288, 4728];
const FRAMES_2: [u64; 4] = [1052672, 1053072, 1053120, 1053416];

fn unpack(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let len = lines.next().and_then(|line| line.strip_prefix("len ")).expect("the length first");
    let mut bytes = vec![0; len.parse().expect("a number")];
    for line in lines {
        let (offset, hex) = line.split_once(' ').expect("an offset and bytes");
        let offset = usize::from_str_radix(offset, 16).expect("a number");
        for (index, pair) in hex.as_bytes().chunks(2).enumerate() {
            let digits = std::str::from_utf8(pair).expect("digits");
            bytes[offset + index] = u8::from_str_radix(digits, 16).expect("digits");
        }
    }
    bytes
}

fn golden() -> MemoryStorage {
    let storage = MemoryStorage::new();
    put(&storage, &name::segment(1), &unpack(SEGMENT_1));
    put(&storage, &name::segment(2), &unpack(SEGMENT_2));
    storage
}

#[test]
fn version_1_reads_back() {
    let storage = golden();
    let files = snapshot(&storage);
    let reader = read(&storage, None).expect("opens");
    assert_eq!(reader.damage, []);
    assert_eq!(reader.tail, TailReport::Clean);
    assert_eq!(whole(&reader.segments), golden_frames().concat());
    assert_eq!(reader.segments[0].end(), FRAMES_1[2]);
    assert_eq!(reader.end, FRAMES_2[3]);
    assert!(snapshot(&storage) == files);
    let positions: Vec<u64> = reader
        .segments
        .iter()
        .flat_map(|segment| segment.walk(segment.first(), segment.end()))
        .map(|record| record.expect("whole").position())
        .collect();
    assert_eq!(
        positions,
        [
            4144, 4184, 4240, 4336, 4376, 1052720, 1053168, 1053208, 1053256, 1053304, 1053352,
            1053384
        ]
    );
}

#[test]
fn version_1_takes_appends() {
    let storage = golden();
    let opened = open(&storage, None).expect("opens");
    let mut writer = opened.writer;
    let more = vec![Event::new("orders", "o-4", "later")];
    common::append_frames(&mut writer, std::slice::from_ref(&more));
    drop(writer);
    let reader = read(&storage, None).expect("opens");
    assert_eq!(whole(&reader.segments), [golden_frames().concat(), more].concat());
}

/// What this version writes differs from the golden bytes in nothing but random numbers and what
/// follows from them.
#[test]
fn version_1_is_what_is_written() {
    let golden = [unpack(SEGMENT_1), unpack(SEGMENT_2)];
    let page = |bytes: &[u8]| match SegmentHeader::decode(&bytes[..4096]) {
        SegmentHeaderState::Valid(header) => header,
        other => panic!("a whole header, not {other:?}"),
    };
    let headers = [page(&golden[0]), page(&golden[1])];
    for (bytes, header) in golden.iter().zip(&headers) {
        assert_eq!(bytes[..4096], header.encode());
    }
    assert_eq!((headers[0].base, headers[0].previous_end, headers[0].previous_salt), (0, 0, 0));
    assert_eq!((headers[1].base, headers[1].previous_end), (BASE_2, FRAMES_1[2]));
    assert_eq!(headers[1].previous_salt, headers[0].salt);

    // The same events, written now.
    let storage = MemoryStorage::new();
    let mut writer = open(&storage, None).expect("opens").writer;
    let first = common::append_frames(&mut writer, &golden_frames()[..2]);
    drop(writer);
    let mut writer = open(&storage, None).expect("opens").writer;
    let second = common::append_frames(&mut writer, &golden_frames()[2..]);
    drop(writer);
    assert_eq!((first[..].to_vec(), second[..].to_vec()), (FRAMES_1.to_vec(), FRAMES_2.to_vec()));
    let reader = read(&storage, None).expect("opens");
    for (index, edges) in [first, second].iter().enumerate() {
        let segment = &reader.segments[index];
        let mut now = common::bytes_of(&storage, index as u64 + 1);
        let mut then = golden[index].clone();
        let salt = headers[index].salt;
        for pair in edges.windows(2) {
            let offset = (pair[0] - segment.base()) as usize;
            let len = pair[1] - pair[0];
            let records = segment.walk(pair[0], pair[1]).map(|record| record.expect("whole"));
            let record_count = records.count() as u32;
            let (position, written_at) = (pair[0], 0);
            let header = FrameHeader { position, len, record_count, floor: position, written_at };
            header.encode_into(salt, &mut now[offset..]);
            assert_eq!(now[offset..offset + 48], then[offset..offset + 48]);
        }
        // The checksum of a record is bound to the salt.
        for record in segment.walk(segment.first(), segment.end()) {
            let offset = (record.expect("whole").position() - segment.base()) as usize;
            now[offset..offset + 4].fill(0);
            then[offset..offset + 4].fill(0);
        }
        let end = edges.last().expect("an end");
        let range = 4096..(end - segment.base()) as usize;
        assert_eq!(now[range.clone()], then[range]);
    }
}

/// The checksums, computed here once more from what `FORMAT.md` says.
#[test]
fn version_1_has_the_checksums_that_the_reference_states() {
    for (text, base, frames) in [(SEGMENT_1, 0, &FRAMES_1[..]), (SEGMENT_2, BASE_2, &FRAMES_2)] {
        let bytes = unpack(text);
        let crc_at = |at: usize| bytes[at..at + 4].to_vec();
        let stated = |parts: &[&[u8]]| crc32c::crc32c(&parts.concat()).to_le_bytes().to_vec();
        for copy in [0, 2048] {
            assert_eq!(crc_at(copy + 2044), stated(&[&bytes[copy..copy + 2044]]));
        }
        let salt = &bytes[56..64];
        for pair in frames.windows(2) {
            let (frame, end) = ((pair[0] - base) as usize, (pair[1] - base) as usize);
            assert_eq!(crc_at(frame + 4), stated(&[salt, &bytes[frame + 8..frame + 48]]));
            let mut record = frame + 48;
            while record < end {
                let number = |at: usize| {
                    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four")) as usize
                };
                let fields = number(record + 8)
                    + number(record + 12)
                    + usize::from(bytes[record + 20])
                    + usize::from(bytes[record + 21]);
                let len = (24 + fields).next_multiple_of(8);
                let content = stated(&[&bytes[record + 4..record + len]]);
                let position = (base + record as u64).to_le_bytes();
                assert_eq!(crc_at(record), stated(&[salt, &position, &content]));
                record += len;
            }
            assert_eq!(record, end);
        }
    }
}
