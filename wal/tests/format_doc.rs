//! `FORMAT.md` says what the code does: its numbers are the constants, its tables have no gaps, and
//! its rows are the rows that recovery cites.

mod common;

use common::{Event, bytes_of, frame_of, open};
use thalweg_wal::format::{
    ALIGN, BATCH_LEN_MAX, FRAME_HEADER_LEN, FRAME_LEN_MAX, FrameHeader, ID_LEN_MAX,
    PARENT_COUNT_MAX, PAYLOAD_LEN_MAX, RECORD_HEADER_LEN, SEGMENT_HEADER_COPY_LEN,
    SEGMENT_HEADER_LEN, STREAM_LEN_MAX, SegmentHeader, VERSION_MAJOR, VERSION_MINOR,
};
use thalweg_wal::name;
use thalweg_wal::storage::{MemoryStorage, read_file};
use thalweg_wal::{
    DiscardReason, LOSSES_HEADER_LEN, RecordKind, SEGMENT_LEN_MAX, SEGMENT_LEN_MIN,
    TRIM_HEADER_LEN, TrimPoint, TrimWriter,
};

const REFERENCE: &str = include_str!("../FORMAT.md");
const RECOVERY: &str = include_str!("../src/recover.rs");

/// The cells of the table rows in `text`, without the head.
fn rows(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

fn section(title: &str) -> &'static str {
    let start = REFERENCE.find(title).unwrap_or_else(|| panic!("no {title:?}"));
    &REFERENCE[start..]
}

#[test]
fn limits_are_the_constants() {
    let constants = [
        ("ALIGN", ALIGN),
        ("SEGMENT_HEADER_LEN", SEGMENT_HEADER_LEN),
        ("SEGMENT_HEADER_COPY_LEN", SEGMENT_HEADER_COPY_LEN),
        ("FRAME_HEADER_LEN", FRAME_HEADER_LEN),
        ("RECORD_HEADER_LEN", RECORD_HEADER_LEN),
        ("SEGMENT_LEN_MIN", SEGMENT_LEN_MIN),
        ("SEGMENT_LEN_MAX", SEGMENT_LEN_MAX),
        ("STREAM_LEN_MAX", STREAM_LEN_MAX as u64),
        ("ID_LEN_MAX", ID_LEN_MAX as u64),
        ("PARENT_COUNT_MAX", PARENT_COUNT_MAX as u64),
        ("PAYLOAD_LEN_MAX", PAYLOAD_LEN_MAX as u64),
        ("BATCH_LEN_MAX", BATCH_LEN_MAX as u64),
        ("FRAME_LEN_MAX", FRAME_LEN_MAX),
    ];
    let stated: Vec<(String, String)> = rows(section("## Limits"))
        .into_iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].clone()))
        .collect();
    let expected: Vec<(String, String)> =
        constants.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect();
    assert_eq!(stated, expected);
}

#[test]
fn field_tables_have_no_gaps_and_the_right_length() {
    let tables = [
        ("segment header", SEGMENT_HEADER_COPY_LEN),
        ("frame header", FRAME_HEADER_LEN),
        ("record header", RECORD_HEADER_LEN),
        ("losses header", LOSSES_HEADER_LEN),
        ("trim header", TRIM_HEADER_LEN),
    ];
    for (table, len) in tables {
        let mut next = 0;
        for row in rows(section(&format!("<!-- table: {table} -->"))) {
            assert_eq!(row[0], next.to_string(), "{table}: {row:?}");
            next += row[1].parse::<u64>().expect("a length");
        }
        assert_eq!(next, len, "{table}");
    }
}

/// Offset of a field, by its name in a table.
fn offset(table: &str, field: &str) -> usize {
    rows(section(&format!("<!-- table: {table} -->")))
        .into_iter()
        .find(|row| row[2] == field)
        .unwrap_or_else(|| panic!("{table} has no {field}"))[0]
        .parse()
        .expect("an offset")
}

#[test]
fn fields_stand_where_the_tables_say() {
    let header = SegmentHeader {
        store_id: *b"0123456789abcdef",
        number: 0x1111,
        base: 0x2222,
        len: 0x3333,
        salt: 0x4444,
        previous_end: 0x5555,
        previous_salt: 0x6666,
        forgotten: 0x8888,
        previous_forgotten: 0x7777,
    };
    let page = header.encode();
    let holds = |table: &str, bytes: &[u8], field: &str, value: &[u8]| {
        let at = offset(table, field);
        assert_eq!(&bytes[at..at + value.len()], value, "{table}: {field}");
    };
    let segment = |field, value: &[u8]| holds("segment header", &page, field, value);
    segment("magic", b"THALWEGS");
    segment("major version", &VERSION_MAJOR.to_le_bytes());
    segment("minor version", &VERSION_MINOR.to_le_bytes());
    let features = rows(section("<!-- table: features -->"));
    assert_eq!((features.len(), features[0][1].trim_matches('`')), (1, "FORGETS"));
    let bit: u32 = features[0][0].parse().expect("a bit");
    segment("features", &(1_u32 << bit).to_le_bytes());
    segment("store id", b"0123456789abcdef");
    for (field, value) in [
        ("number", header.number),
        ("base", header.base),
        ("len", header.len),
        ("salt", header.salt),
        ("previous end", header.previous_end),
        ("previous salt", header.previous_salt),
        ("forgotten", header.forgotten),
        ("previous forgotten", header.previous_forgotten),
    ] {
        segment(field, &value.to_le_bytes());
    }

    let header = FrameHeader {
        position: 0x111111,
        len: 0x2222,
        record_count: 0x33,
        floor: 0x4444,
        written_at: 0x1122_3344_5566,
    };
    let mut bytes = [0xAA; FRAME_HEADER_LEN as usize];
    header.encode_into(7, &mut bytes);
    let frame = |field, value: &[u8]| holds("frame header", &bytes, field, value);
    frame("magic", b"FRM1");
    frame("position", &header.position.to_le_bytes());
    frame("len", &header.len.to_le_bytes());
    frame("record count", &header.record_count.to_le_bytes());
    frame("floor", &header.floor.to_le_bytes());
    frame("written at", &header.written_at.to_le_bytes());
    frame("reserved", &[0; 4]);
}

#[test]
fn the_fields_of_a_trim_stand_where_the_table_says() {
    let storage = MemoryStorage::new();
    let store_id = *b"0123456789abcdef";
    let point = TrimPoint {
        segment: 0x22,
        position: 0x55_5000,
        previous_end: 0x44_4440,
        previous_salt: 0x6666,
    };
    let mut writer = TrimWriter::create(&storage, store_id, point, 5).expect("begins");
    writer.write(b"facts").expect("writes");
    writer.finish().expect("trims");
    let bytes = read_file(&storage, name::trimmed()).expect("reads");
    for (field, value) in [
        ("magic", &b"THALWEGT"[..]),
        ("version", &1_u32.to_le_bytes()),
        ("reserved", &[0; 4]),
        ("store id", &store_id),
        ("number", &point.segment.to_le_bytes()),
        ("position", &point.position.to_le_bytes()),
        ("previous end", &point.previous_end.to_le_bytes()),
        ("previous salt", &point.previous_salt.to_le_bytes()),
        ("body len", &5_u64.to_le_bytes()),
        ("body checksum", &crc32c::crc32c(b"facts").to_le_bytes()),
        ("checksum", &crc32c::crc32c(&bytes[..76]).to_le_bytes()),
    ] {
        let at = offset("trim header", field);
        assert_eq!(&bytes[at..at + value.len()], value, "{field}");
    }
    assert_eq!(&bytes[TRIM_HEADER_LEN as usize..], b"facts");
}

/// The bytes of the last of these records, as they are written.
fn written(events: &[Event]) -> Vec<u8> {
    let storage = MemoryStorage::new();
    let opened = open(&storage, None).expect("opens");
    let mut writer = opened.writer;
    writer.append(&mut frame_of(events)).expect("appends");
    writer.sync().expect("syncs");
    let segment = &opened.segments[0];
    let records = segment.walk(segment.first(), segment.end());
    let last = records.last().expect("a record").expect("whole").position() as usize;
    bytes_of(&storage, 1)[last..segment.end() as usize].to_vec()
}

#[test]
fn kinds_flags_and_the_place_stand_where_the_tables_say() {
    let record = |field| offset("record header", field);
    let plain =
        || Event { parents: Some(vec![b"a".to_vec()]), ..Event::new("stream", "id", "xyz") };
    let cases = [
        ("CHAINED", Event { parents: None, ..plain() }),
        ("REQUIRE_PARENTS", Event { require_parents: true, ..plain() }),
        ("IF_TIPS", Event { if_tips: true, ..plain() }),
        ("IF_LOCAL", Event { if_local: Some(0x1122_3344_5566_7788), ..plain() }),
        ("WITH_PREVIOUS", Event { with_previous: true, ..plain() }),
    ];
    let stated = rows(section("<!-- table: event flags -->"));
    assert_eq!(stated.len(), cases.len());
    for (row, (name, event)) in stated.iter().zip(cases) {
        assert_eq!(row[1].trim_matches('`'), name);
        let bit: u8 = row[0].parse().expect("a bit");
        let bytes = written(&[plain(), event]);
        assert_eq!((bytes[record("kind")], bytes[record("flags")]), (1, 1 << bit), "{name}");
    }

    // The place, and behind it the parents, stand behind the id.
    let bytes = written(&[Event { if_local: Some(0x1122_3344_5566_7788), ..plain() }]);
    assert_eq!(bytes[record("lineage len")], 8 + 2);
    assert_eq!(bytes[record("parent count")], 1);
    let fields = [b"streamid", &0x1122_3344_5566_7788_u64.to_le_bytes()[..], b"\x01axyz"].concat();
    assert_eq!(bytes[24..24 + fields.len()], fields);

    for (kind, number) in [(RecordKind::Seal, 2), (RecordKind::Unseal, 3)] {
        let bytes = written(&[Event::control(kind, "stream")]);
        let header = [&[0xE7, number][..], &[0; 14], &[6], &[0; 3], b"stream", &[0; 2]].concat();
        assert_eq!(bytes[4..], header);
    }
    let bytes = written(&[Event::new("stream", "1234", "xyzq"), Event::mark("stream", 0x0102)]);
    let header = [&[0xE7, 4, 0, 0, 16][..], &[0; 11], &[6], &[0; 3], b"stream"].concat();
    let payload = [&[2, 1][..], &[0; 6], &[40, 0, 0, 0, 1, 0, 0, 0], &[0; 2]].concat();
    assert_eq!(bytes[4..], [header, payload].concat());
    for (reason, number) in [(DiscardReason::Discarded, 1), (DiscardReason::Expired, 2)] {
        let bytes = written(&[Event::discard("stream", "id", reason)]);
        let header = [&[0xE7, 6, 0, 0, 4][..], &[0; 11], &[6, 2, 0, 0]].concat();
        assert_eq!(
            bytes[4..],
            [&header[..], b"streamid", &[number, 0, 0, 0, 0, 0, 0, 0][..4], &[0; 4]].concat()
        );
    }
    let bytes = written(&[Event::stream_trim("stream", 0x0102)]);
    let header = [&[0xE7, 7, 0, 0, 8][..], &[0; 11], &[6, 0, 0, 0]].concat();
    assert_eq!(bytes[4..], [&header[..], b"stream", &[2, 1], &[0; 8]].concat());
    let kinds = "| 5 | 1 | kind | 1: an event; 2: a seal; 3: the end of a seal; 4: a mark; 6: a discard; 7: a stream's trim |";
    assert!(REFERENCE.contains(kinds));
}

#[test]
fn recovery_cites_every_row_and_no_other() {
    for (title, letter, count) in [("### Headers", 'H', 6), ("### The tail", 'T', 5)] {
        let stated: Vec<String> =
            rows(section(title)).into_iter().map(|row| row[0].clone()).collect();
        let expected: Vec<String> = (1..=count).map(|row| format!("{letter}{row}")).collect();
        assert_eq!(stated, expected);
        for row in expected {
            assert!(RECOVERY.contains(&row), "recovery does not cite {row}");
        }
        let next = format!("{letter}{}", count + 1);
        assert!(!RECOVERY.contains(&next), "recovery cites {next}");
    }
}

#[test]
fn file_names_and_the_version_are_as_stated() {
    let pattern = |name: String| name.replace("0000000000000001", "N");
    for name in [
        name::LOCK.to_owned(),
        pattern(name::segment(1)),
        pattern(name::segment_new(1)),
        pattern(name::order(1)),
        pattern(name::tips(1)),
        name::checkpoint().to_owned(),
        name::checkpoint_new().to_owned(),
        name::manifest().to_owned(),
        name::manifest_new().to_owned(),
        name::unfinished().to_owned(),
        name::losses().to_owned(),
        name::losses_new().to_owned(),
        name::trimmed().to_owned(),
        name::trimmed_new().to_owned(),
        pattern(name::facts(1)),
    ] {
        assert!(section("## Files").contains(&format!("`{name}`")), "{name}");
    }
    let newest = rows(section("## Versions")).pop().expect("a version");
    assert_eq!(newest[0], format!("{VERSION_MAJOR}.{VERSION_MINOR}"));
}
