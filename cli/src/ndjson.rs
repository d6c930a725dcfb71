//! Events as lines of JSON, both ways, without losing a byte.
//!
//! The engine stores bytes; JSON has values. These rules translate, and they lose nothing in
//! either direction: any bytes that `read` prints are stored as the same bytes by `import`, and any
//! value that `import` stores is printed as the same value by `read`.
//!
//! | stored bytes | in JSON |
//! |---|---|
//! | a payload that is itself JSON, but no string | that JSON, exactly as stored: `{"n":1.50}` |
//! | other UTF-8 text | a string: `"hello"` |
//! | anything else | `{"base64":"/wA="}` |
//!
//! The other way round, a string stands for its UTF-8 bytes, `{"base64":".."}` (that key and no
//! other, a string) for the bytes that it encodes, and any other value for its own text, as
//! written. So numbers keep their digits, objects their key order, repeated keys and inner blanks.
//!
//! Three kinds of payload need a second look:
//!
//! * Text that would not come back as it was is written as a string: JSON with blanks around it or
//!   a line break inside, and text that looks like `{"base64":".."}`.
//! * A string whose text is itself JSON, like `"42"`, would come back as the number. It is stored
//!   with its quotes, and a payload of this form is written as it is.
//! * `{"base64":".."}` is the one value that does not come back as such: it stands for its bytes.
//!   An object that is meant literally is given as a string, `"{\"base64\":\"..\"}"`.
//!
//! Stream names, ids and parents follow the last two rows. Text of which so much is control
//! characters that base64 is the shorter form is written in base64; this bounds a line by the
//! event that it holds.
//!
//! This module knows no store and does no I/O. Parsing does not recurse, whatever the nesting.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

// By path: the fuzzer includes this file so.
#[cfg(any(test, fuzzing))]
#[path = "ndjson/hostile.rs"]
#[allow(unreachable_pub, reason = "the fuzzer is another crate")]
pub mod hostile;
#[cfg(test)]
mod tests;

/// Reads base64 with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Most parents that the engine takes. A line has room for many more, and each would take a dozen times its
/// own length before the engine could refuse it.
const PARENTS_MAX: usize = 1 << 20;

/// One event, as a line describes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// Name of the stream.
    pub(crate) stream: Cow<'a, [u8]>,
    /// The id; without one the engine names the event.
    pub(crate) id: Option<Cow<'a, [u8]>>,
    /// The parents, empty for a root; without a list the event is chained on the stream's tips.
    pub(crate) parents: Option<Vec<Cow<'a, [u8]>>>,
    /// The payload; empty where the line has none.
    pub(crate) payload: Cow<'a, [u8]>,
}

/// Why a line is no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadLine {
    /// The bytes are not UTF-8.
    NotUtf8 {
        /// Place of the first wrong byte, from 1.
        column: usize,
    },
    /// The line is not JSON.
    Syntax {
        /// Place of the error, in bytes from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// The line is JSON, but no object.
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A key that every event needs is not there.
    Absent {
        /// The key.
        key: &'static str,
    },
    /// A key that has a meaning is there twice.
    Twice {
        /// The key.
        key: &'static str,
    },
    /// A value is of a type that its key does not take.
    Type {
        /// The key, with an index for an element of a list.
        key: String,
        /// What it takes.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// More parents than [`PARENTS_MAX`].
    TooManyParents,
    /// A string or its base64 cannot be decoded.
    Encoding {
        /// The key, with an index for an element of a list.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadLine::NotUtf8 { column } => write!(f, "not UTF-8 at byte {column}"),
            BadLine::Syntax { column, reason } => write!(f, "not JSON: {reason} at byte {column}"),
            BadLine::NotAnObject { found } => write!(f, "expected an object, found {found}"),
            BadLine::Absent { key } => write!(f, "has no `{key}`"),
            BadLine::Twice { key } => write!(f, "has `{key}` twice"),
            BadLine::Type { key, expected, found } => {
                write!(f, "`{key}` takes {expected}, found {found}")
            }
            BadLine::TooManyParents => {
                write!(f, "`parents` takes at most {PARENTS_MAX} ids, found more")
            }
            BadLine::Encoding { key, reason } => write!(f, "`{key}`: {reason}"),
        }
    }
}

/// Reads one line.
pub(crate) fn parse(line: &[u8]) -> Result<Line<'_>, BadLine> {
    let line = std::str::from_utf8(line)
        .map_err(|error| BadLine::NotUtf8 { column: error.valid_up_to() + 1 })?;
    if !line.trim_start().starts_with('{') {
        let value: &RawValue = serde_json::from_str(line).map_err(syntax)?;
        return Err(BadLine::NotAnObject { found: type_of(value) });
    }
    let fields: Fields<'_> = serde_json::from_str(line).map_err(syntax)?;
    if let Some(key) = fields.twice {
        return Err(BadLine::Twice { key });
    }
    let stream = fields.stream.ok_or(BadLine::Absent { key: "stream" })?;
    Ok(Line {
        stream: name("stream", stream)?,
        id: fields.id.filter(|id| !is_null(id)).map(|id| name("id", id)).transpose()?,
        parents: fields.parents.map_or(Ok(None), parents)?,
        payload: fields.payload.map_or(Ok(Cow::Borrowed(&[][..])), payload)?,
    })
}

fn syntax(error: serde_json::Error) -> BadLine {
    BadLine::Syntax { column: error.column(), reason: reason(&error) }
}

/// What the parser says, without the place at the end of its text: that is in the error's fields.
fn reason(error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = error.to_string();
    text.strip_suffix(&place).unwrap_or(&text).to_owned()
}

/// The values of the keys that have a meaning, not decoded yet.
#[derive(Default)]
struct Fields<'a> {
    stream: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    parents: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    twice: Option<&'static str>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Stream,
    Id,
    Parents,
    Payload,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            let (place, key) = match key {
                Key::Stream => (&mut fields.stream, "stream"),
                Key::Id => (&mut fields.id, "id"),
                Key::Parents => (&mut fields.parents, "parents"),
                Key::Payload => (&mut fields.payload, "payload"),
                Key::Other => continue,
            };
            if place.replace(value).is_some() {
                fields.twice = Some(key);
            }
        }
        Ok(fields)
    }
}

fn type_of(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

const NAME_EXPECTED: &str = "a string or {\"base64\":\"..\"}";

/// A stream name, an id or a parent.
fn name<'a>(key: &str, value: &'a RawValue) -> Result<Cow<'a, [u8]>, BadLine> {
    match decode(key, value)? {
        Decoded::Bytes(bytes) => Ok(bytes),
        Decoded::Other => {
            Err(BadLine::Type { key: key.into(), expected: NAME_EXPECTED, found: type_of(value) })
        }
    }
}

fn parents(value: &RawValue) -> Result<Option<Vec<Cow<'_, [u8]>>>, BadLine> {
    if is_null(value) {
        return Ok(None);
    }
    match type_of(value) {
        "a list" => {
            let Listed(list) = serde_json::from_str(value.get()).map_err(syntax)?;
            let list = not_too_many(list)?;
            let one = |(index, value)| name(&format!("parents[{index}]"), value);
            list.into_iter().enumerate().map(one).collect::<Result<_, _>>().map(Some)
        }
        "a string" => not_too_many(words(name("parents", value)?)).map(Some),
        found => Err(BadLine::Type {
            key: "parents".into(),
            expected: "a list of ids, a string of ids with spaces between, or null",
            found,
        }),
    }
}

fn not_too_many<T>(list: Vec<T>) -> Result<Vec<T>, BadLine> {
    if list.len() > PARENTS_MAX { Err(BadLine::TooManyParents) } else { Ok(list) }
}

/// The values of a list, but only as many as it takes to see that there are too many.
struct Listed<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Listed<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListedVisitor)
    }
}

struct ListedVisitor;

impl<'de> Visitor<'de> for ListedVisitor {
    type Value = Listed<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Listed<'de>, A::Error> {
        let mut list = Vec::new();
        while list.len() <= PARENTS_MAX {
            let Some(value) = seq.next_element()? else { return Ok(Listed(list)) };
            list.push(value);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Listed(list))
    }
}

/// The ids in a string of ids with spaces between, but only as many as it takes to see that there are
/// too many.
fn words(text: Cow<'_, [u8]>) -> Vec<Cow<'_, [u8]>> {
    let max = PARENTS_MAX + 1;
    match text {
        Cow::Borrowed(text) => split(text).take(max).map(Cow::Borrowed).collect(),
        Cow::Owned(text) => split(&text).take(max).map(|word| Cow::Owned(word.to_vec())).collect(),
    }
}

fn split(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b' ').filter(|word| !word.is_empty())
}

fn payload(value: &RawValue) -> Result<Cow<'_, [u8]>, BadLine> {
    match decode("payload", value)? {
        Decoded::Bytes(_) if stands_for_itself(value.get()) => {}
        Decoded::Bytes(bytes) => return Ok(bytes),
        Decoded::Other => {}
    }
    Ok(Cow::Borrowed(value.get().as_bytes()))
}

/// What a JSON value stands for.
enum Decoded<'a> {
    /// A string or `{"base64":".."}`: these bytes.
    Bytes(Cow<'a, [u8]>),
    /// Any other value.
    Other,
}

fn decode<'a>(key: &str, value: &'a RawValue) -> Result<Decoded<'a>, BadLine> {
    let bad = |reason: String| BadLine::Encoding { key: key.into(), reason };
    if let Some(text) = string(value.get()) {
        let text = text.map_err(|error| bad(reason(&error)))?;
        return Ok(Decoded::Bytes(into_bytes(text)));
    }
    if let Some(text) = base64_form(value.get()) {
        let bytes =
            LENIENT.decode(text.as_bytes()).map_err(|error| bad(format!("not base64: {error}")))?;
        return Ok(Decoded::Bytes(Cow::Owned(bytes)));
    }
    Ok(Decoded::Other)
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The value of a JSON string, or `None` for JSON of another type.
fn string(json: &str) -> Option<Result<Cow<'_, str>, serde_json::Error>> {
    json.starts_with('"').then(|| serde_json::from_str(json).map(|Text(text)| text))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64Form<'a> {
    #[serde(borrow)]
    base64: Cow<'a, str>,
}

/// The string in `{"base64":".."}`, or `None` for any other JSON: another key beside it, the same
/// key twice, a value that is no string. Reading and writing both decide by this function.
fn base64_form(json: &str) -> Option<Cow<'_, str>> {
    if !json.starts_with('{') {
        return None;
    }
    serde_json::from_str(json).ok().map(|Base64Form { base64 }| base64)
}

/// Reads a stream name or an id given on a command line: see [`crate::output::name`].
pub(crate) fn name_from_argument(argument: Vec<u8>) -> Vec<u8> {
    let decoded = std::str::from_utf8(&argument).ok().and_then(|text| match string(text) {
        Some(text) => text.ok().map(|text| text.into_owned().into_bytes()),
        None => base64_form(text).and_then(|text| LENIENT.decode(text.as_bytes()).ok()),
    });
    decoded.unwrap_or(argument)
}

/// Writes an event as a line, with the line break.
pub(crate) fn write_event(out: &mut Vec<u8>, event: &EventFields<'_>) {
    out.extend_from_slice(b"{\"global\":");
    write_number(out, event.global);
    out.extend_from_slice(b",\"local\":");
    write_number(out, event.local);
    out.extend_from_slice(b",\"stream\":");
    write_bytes(out, event.stream);
    out.extend_from_slice(b",\"id\":");
    write_bytes(out, event.id);
    out.extend_from_slice(b",\"parents\":");
    match event.parents {
        Some(parents) => write_list(out, parents),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"payload\":");
    write_payload(out, event.payload);
    out.extend_from_slice(b"}\n");
}

/// What a line says about a delivered event.
pub(crate) struct EventFields<'a> {
    pub(crate) global: u64,
    pub(crate) local: u64,
    pub(crate) stream: &'a [u8],
    pub(crate) id: &'a [u8],
    /// `None` if damage elsewhere hides them; `import` then takes the event for a chained one.
    pub(crate) parents: Option<&'a [Vec<u8>]>,
    pub(crate) payload: &'a [u8],
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    use std::io::Write as _;
    write!(out, "{number}").expect("a vector takes every write");
}

/// Writes names as a list.
pub(crate) fn write_list(out: &mut Vec<u8>, names: &[Vec<u8>]) {
    out.push(b'[');
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_bytes(out, name);
    }
    out.push(b']');
}

/// Writes bytes as a string if they are text, or as `{"base64":".."}`.
pub(crate) fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => write_text(out, text),
        Err(_) => write_base64(out, bytes),
    }
}

fn write_payload(out: &mut Vec<u8>, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) if stands_for_itself(text) => out.extend_from_slice(bytes),
        Ok(text) => write_text(out, text),
        Err(_) => write_base64(out, bytes),
    }
}

/// How many times JSON may be quoted and still be told from text that only looks like it. Each
/// level costs a pass over the payload, and by hand nobody gets past the third.
const QUOTING_DEPTH_MAX: usize = 16;

/// Whether this text, as a payload, stands in a line as it is: JSON that is no string, or a string
/// of which the same is true. Reading and writing both decide by this function.
fn stands_for_itself(text: &str) -> bool {
    let mut text = Cow::Borrowed(text);
    for _ in 0..QUOTING_DEPTH_MAX {
        if !text.starts_with('"') {
            return is_one_value(&text) && base64_form(&text).is_none();
        }
        if !text.ends_with('"') {
            return false;
        }
        text = match string(&text) {
            Some(Ok(inner)) => Cow::Owned(inner.into_owned()),
            _ => return false,
        };
    }
    false
}

/// Whether the text is JSON, no string, on one line and without blanks around it.
fn is_one_value(text: &str) -> bool {
    let may_be_json = matches!(
        text.as_bytes().first(),
        Some(b'{' | b'[' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9')
    );
    may_be_json
        && serde_json::from_str::<&RawValue>(text).is_ok_and(|value| value.get() == text)
        && !text.as_bytes().contains(&b'\n')
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    let escapes_len = escapes_len(text);
    if escapes_len == 0 {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else if text.len() + escapes_len + 2 > base64_form_len(text.len()) {
        write_base64(out, text.as_bytes());
    } else {
        serde_json::to_writer(out, text).expect("a vector takes every write");
    }
}

/// Bytes that escapes add to a text when it is written as a string.
fn escapes_len(text: &str) -> usize {
    const ADDED: [u8; 256] = {
        let mut added = [0; 256];
        let mut byte = 0;
        while byte < 0x20 {
            added[byte] = 5;
            byte += 1;
        }
        let mut short = b"\x08\t\n\x0c\r\"\\".as_slice();
        while let [first, rest @ ..] = short {
            added[*first as usize] = 1;
            short = rest;
        }
        added
    };
    text.bytes().map(|byte| usize::from(ADDED[usize::from(byte)])).sum()
}

fn base64_form_len(len: usize) -> usize {
    b"{\"base64\":\"\"}".len() + len.div_ceil(3) * 4
}

fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b"{\"base64\":\"");
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let len =
        STANDARD.encode_slice(bytes, &mut out[start..]).expect("the space is what base64 needs");
    out.truncate(start + len);
    out.extend_from_slice(b"\"}");
}
