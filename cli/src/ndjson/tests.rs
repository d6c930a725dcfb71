use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn payload_of(json: &str) -> Result<Vec<u8>, BadLine> {
    let line = format!("{{\"stream\":\"s\",\"payload\":{json}}}");
    parse(line.as_bytes()).map(|line| line.payload.into_owned())
}

fn payload_json(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    write_payload(&mut out, bytes);
    String::from_utf8(out).unwrap()
}

fn round_trip(stream: &[u8], id: &[u8], parents: &[Vec<u8>], payload: &[u8]) {
    let mut out = Vec::new();
    let fields = EventFields { global: 7, local: 3, stream, id, parents: Some(parents), payload };
    write_event(&mut out, &fields);
    assert_eq!(out.pop(), Some(b'\n'));
    assert!(!out.contains(&b'\n'), "one event, one line");
    serde_json::from_slice::<serde::de::IgnoredAny>(&out).unwrap();
    let line = parse(&out).unwrap();
    assert_eq!(line.stream, stream);
    assert_eq!(line.id.as_deref(), Some(id));
    assert_eq!(line.parents.unwrap(), parents);
    assert_eq!(line.payload, payload, "{}", String::from_utf8_lossy(&out));
}

/// Bytes that are likely to be mistaken for something: JSON of all kinds, cut, padded and mixed.
fn tricky_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just("\""),
        Just("\\"),
        Just(":"),
        Just(","),
        Just(" "),
        Just("\n"),
        Just("\r"),
        Just("\t"),
        Just("\0"),
        Just("base64"),
        Just("\"base64\""),
        Just("{\"base64\":\"aGk=\"}"),
        Just("{\"base\\u00364\":\"aGk=\"}"),
        Just("{\"base64\":1}"),
        Just("null"),
        Just("true"),
        Just("-0"),
        Just("1e5"),
        Just("0.10"),
        Just("\"text\""),
        Just("{\"a\":1,\"a\":2}"),
        Just("\u{feff}"),
        Just("\\ud800"),
        Just("é"),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat().into_bytes())
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..100),
        any::<String>().prop_map(String::into_bytes),
        any_json().prop_map(|json| json.to_string().into_bytes()),
        tricky_bytes(),
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let tricky_text = || tricky_bytes().prop_map(|bytes| String::from_utf8(bytes).unwrap());
    let leaf = prop_oneof![
        Just(Value::Null),
        tricky_text().prop_map(Value::from),
        tricky_text().prop_map(|text| Value::from(Value::from(text).to_string())),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 20, 4, |inner| {
        let key = prop_oneof![any::<String>(), Just("base64".to_owned())];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_come_back(
        stream in any_bytes(),
        id in any_bytes(),
        parents in proptest::collection::vec(any_bytes(), 0..4),
        payload in any_bytes(),
    ) {
        round_trip(&stream, &id, &parents, &payload);
    }

    #[test]
    fn any_json_value_keeps_its_meaning(value in any_json()) {
        let json = value.to_string();
        prop_assume!(base64_form(&json).is_none());
        let back = payload_json(&payload_of(&json).unwrap());
        // Parsed on both sides, because the parser used here may lose a float's last digit.
        let parsed = |json| serde_json::from_str::<Value>(json).unwrap();
        prop_assert_eq!(parsed(&back), parsed(&json));
    }

    #[test]
    fn no_bytes_panic_the_parser(line in any_bytes()) {
        let _ = parse(&line).map_err(|error| error.to_string());
        let mut inside = b"{\"stream\":".to_vec();
        inside.extend(&line);
        let _ = parse(&inside);
        let mut inside = b"{\"stream\":\"s\",\"parents\":".to_vec();
        inside.extend(&line);
        inside.push(b'}');
        let _ = parse(&inside);
    }
}

#[test]
fn json_stays_as_it_was_written() {
    for json in [
        "1e5",
        "-0",
        "0.10",
        "1E400",
        "123456789012345678901234567890",
        "true",
        "null",
        "[]",
        "{}",
        "[ 1,\t2 ]",
        "{\"b\":1,\"a\":2,\"b\":3}",
        "{\"base64\":1}",
        "{\"base64\":\"a\",\"x\":1}",
        "{\"base64\":\"a\",\"base64\":\"b\"}",
        "{\"k\":\"\\ud800\"}",
        "[1,\r2]",
        "\"42\"",
        "\"{\\\"a\\\": [] }\"",
        "\"\\u0034\\u0032\"",
        "\"\\\"42\\\"\"",
    ] {
        assert_eq!(payload_of(json).unwrap(), json.as_bytes(), "{json}");
        assert_eq!(payload_json(json.as_bytes()), json);
    }
}

#[test]
fn text_that_would_not_come_back_as_json_is_a_string() {
    for (bytes, json) in [
        ("", "\"\""),
        ("hello", "\"hello\""),
        (" 1", "\" 1\""),
        ("1 ", "\"1 \""),
        ("[1,\n2]", "\"[1,\\n2]\""),
        ("\"\"", "\"\\\"\\\"\""),
        ("\"42\" ", "\"\\\"42\\\" \""),
        ("\"quoted\"", "\"\\\"quoted\\\"\""),
        ("{\"base64\":\"aGk=\"}", "\"{\\\"base64\\\":\\\"aGk=\\\"}\""),
        ("{\"base64\":\"!\"}", "\"{\\\"base64\\\":\\\"!\\\"}\""),
        ("{\"base\\u00364\":\"aGk=\"}", "\"{\\\"base\\\\u00364\\\":\\\"aGk=\\\"}\""),
        ("NaN", "\"NaN\""),
        ("nul", "\"nul\""),
        ("01", "\"01\""),
        ("{", "\"{\""),
        ("1 2", "\"1 2\""),
    ] {
        assert_eq!(payload_json(bytes.as_bytes()), json);
        assert_eq!(payload_of(json).unwrap(), bytes.as_bytes());
    }
    assert_eq!(payload_json(b"\xff\0"), "{\"base64\":\"/wA=\"}");
    assert_eq!(payload_of("{\"base64\":\"/wA\"}").unwrap(), b"\xff\0", "without padding too");
}

#[test]
fn text_full_of_escapes_is_bounded_by_base64() {
    let zeros = [0; 300];
    assert_eq!(payload_json(&zeros).len(), base64_form_len(300));
    assert_eq!(payload_of(&payload_json(&zeros)).unwrap(), zeros);
    assert_eq!(payload_json(b"\0"), "\"\\u0000\"");
    for byte in 0..0x80 {
        let text = char::from(byte).to_string();
        let escaped = serde_json::to_string(&text).unwrap();
        assert_eq!(escapes_len(&text) + 3, escaped.len(), "{byte}");
    }
}

#[test]
fn nesting_does_not_recurse() {
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    assert_eq!(payload_of(&deep).unwrap(), deep.as_bytes());
    assert_eq!(payload_json(deep.as_bytes()), deep);
    let unknown = format!("{{\"x\":{deep},\"stream\":\"s\"}}");
    assert_eq!(parse(unknown.as_bytes()).unwrap().stream, &b"s"[..]);
    let open = "{\"stream\":".repeat(200_000);
    assert!(matches!(parse(open.as_bytes()), Err(BadLine::Syntax { .. })));
    for key in ["stream", "id", "parents"] {
        let line = format!("{{\"stream\":\"s\",\"{key}\":{deep}}}");
        assert!(parse(line.as_bytes()).is_err());
    }
}

#[test]
fn parents_take_three_forms() {
    let parents = |json: &str| {
        let line = format!("{{\"stream\":\"s\",\"parents\":{json}}}");
        let parents = parse(line.as_bytes()).unwrap().parents;
        parents.map(|ids| ids.iter().map(|id| id.to_vec()).collect::<Vec<_>>())
    };
    assert_eq!(parents("null"), None);
    assert_eq!(parents("[]"), Some(vec![]));
    assert_eq!(parents("\"\""), Some(vec![]));
    assert_eq!(parents("\"  \""), Some(vec![]));
    assert_eq!(parents("\"a  b\""), Some(vec![b"a".to_vec(), b"b".to_vec()]));
    assert_eq!(parents("\"\\u0061 b\""), Some(vec![b"a".to_vec(), b"b".to_vec()]));
    assert_eq!(parents("[\"a b\"]"), Some(vec![b"a b".to_vec()]));
    assert_eq!(parents("[\"a\",{\"base64\":\"/w==\"}]"), Some(vec![b"a".to_vec(), vec![0xff]]));
    assert_eq!(parse(b"{\"stream\":\"s\"}").unwrap().parents, None);
}

#[test]
fn what_read_prints_is_read_again() {
    let line =
        br#" {"global":1,"local":0,"stream":"s","id":null,"extra":{"id":2},"payload":null} "#;
    let line = parse(line).unwrap();
    assert_eq!((line.id, &*line.payload), (None, &b"null"[..]));
    assert_eq!(parse(b"{\"stream\":\"s\"}\r").unwrap().payload, &b""[..]);
}

#[test]
fn bad_lines_say_why() {
    let reason = |line: &[u8]| parse(line).unwrap_err().to_string();
    for (line, text) in [
        (&b"\xff"[..], "not UTF-8 at byte 1"),
        (b"{\"stream\":\"\xff\"}", "not UTF-8 at byte 12"),
        (b"hello", "not JSON: expected value at byte 1"),
        (b"{\"stream\":\"s\"", "not JSON: EOF while parsing an object at byte 13"),
        (b"{\"stream\":\"s\"} x", "not JSON: trailing characters at byte 16"),
        (b"{\"stream\":\"s\"}{\"stream\":\"s\"}", "not JSON: trailing characters at byte 15"),
        (b"\0\0", "not JSON: expected value at byte 1"),
        (b"[\"s\",\"id\"]", "expected an object, found a list"),
        (b"null", "expected an object, found null"),
        (b"12", "expected an object, found a number"),
        (b"\"s\"", "expected an object, found a string"),
        (b"{}", "has no `stream`"),
        (b"{\"Stream\":\"s\"}", "has no `stream`"),
        (b"{\"stream\":\"s\",\"id\":\"a\",\"id\":\"b\"}", "has `id` twice"),
        (b"{\"stream\":5}", "`stream` takes a string or {\"base64\":\"..\"}, found a number"),
        (b"{\"stream\":null}", "`stream` takes a string or {\"base64\":\"..\"}, found null"),
        (
            b"{\"stream\":\"s\",\"id\":[]}",
            "`id` takes a string or {\"base64\":\"..\"}, found a list",
        ),
        (
            b"{\"stream\":\"s\",\"parents\":[\"a\",1]}",
            "`parents[1]` takes a string or {\"base64\":\"..\"}, found a number",
        ),
        (
            b"{\"stream\":\"s\",\"parents\":true}",
            "`parents` takes a list of ids, a string of ids with spaces between, or null, found a boolean",
        ),
        (b"{\"stream\":\"s\",\"payload\":{\"base64\":\"a\"}}", "`payload`: not base64: "),
        (b"{\"stream\":\"\\ud800\"}", "`stream`: unexpected end of hex escape"),
    ] {
        let shown = String::from_utf8_lossy(line);
        assert!(reason(line).starts_with(text), "{shown}: {}", reason(line));
    }
}

#[test]
fn no_more_parents_are_collected_than_an_event_can_have() {
    let count = |text: &str| parse(text.as_bytes()).map(|line| line.parents.unwrap().len());
    for (of, separator, end) in [("\"", " ", "\""), ("[\"a\"", ",\"a\"", "]")] {
        let list = |ids: usize| {
            let list = if of == "\"" { "a ".repeat(ids) } else { separator.repeat(ids - 1) };
            format!("{{\"stream\":\"s\",\"parents\":{of}{list}{end}}}")
        };
        assert_eq!(count(&list(PARENTS_MAX)), Ok(PARENTS_MAX));
        for too_many in [PARENTS_MAX + 1, 3 * PARENTS_MAX] {
            let error = count(&list(too_many)).unwrap_err();
            assert_eq!(error, BadLine::TooManyParents);
            assert!(error.to_string().contains("1048576"), "{error}");
        }
    }
    // A list that is too long and ends badly is no JSON, however much of it was read.
    let list = "1,".repeat(2 * PARENTS_MAX);
    let bad = format!("{{\"stream\":\"s\",\"parents\":[{list}}}");
    assert!(matches!(parse(bad.as_bytes()), Err(BadLine::Syntax { .. })));
}

/// The inputs that the fuzzer was worth keeping for: see `engine/fuzz/README.md`.
#[test]
fn every_input_kept_of_the_import() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/fuzz");
    let mut inputs = 0;
    for folder in [folder.join("corpus/import"), folder.join("crashes/import")] {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            hostile::line(&std::fs::read(path).unwrap());
            inputs += 1;
        }
    }
    assert!(inputs > 100, "only {inputs} inputs");
}
