//! What the fuzz target of the import does with its bytes; the tests beside this file do the same with
//! every input that is kept. See `engine/fuzz/README.md` in the repository.

use super::{EventFields, name_from_argument, parse, write_event};

/// A line of an import: it is an event or a typed error, and an event comes back as it was from the line
/// that `read` writes of it.
pub fn line(bytes: &[u8]) {
    let _ = name_from_argument(bytes.to_vec());
    let parsed = match parse(bytes) {
        Ok(parsed) => parsed,
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 1024, "a report of {} bytes", text.len());
            return;
        }
    };
    let parents: Option<Vec<Vec<u8>>> =
        parsed.parents.as_ref().map(|list| list.iter().map(|id| id.to_vec()).collect());
    let (stream, payload) = (&*parsed.stream, &*parsed.payload);
    let id = parsed.id.as_deref().unwrap_or(b"made");
    let mut out = Vec::new();
    let fields = EventFields {
        global: u64::MAX,
        local: 0,
        stream,
        id,
        parents: parents.as_deref(),
        payload,
    };
    write_event(&mut out, &fields);
    assert_eq!(out.pop(), Some(b'\n'));
    assert!(!out.contains(&b'\n'), "one event, one line");
    let again = parse(&out).expect("what is written reads back");
    assert_eq!(again.stream, parsed.stream);
    assert_eq!(again.id.as_deref(), Some(id));
    assert_eq!(again.parents, parsed.parents);
    assert_eq!(again.payload, parsed.payload);
}
