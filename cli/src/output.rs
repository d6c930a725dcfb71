//! Words and numbers for people, and the two streams that they go to.
//!
//! Data goes to stdout through [`stdout`]; its errors are returned, so that a closed pipe can end a
//! command quietly. Everything else goes to stderr through [`note`], whose errors nobody can be
//! told about.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::ndjson;

/// Bytes that are collected before they are written to stdout.
const STDOUT_BUFFER_LEN: usize = 64 << 10;

/// Stdout, buffered. It must be flushed before it goes out of scope, or an error is lost.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(STDOUT_BUFFER_LEN, io::stdout().lock())
}

/// Prints one line to stderr.
pub(crate) fn note(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints `value` as one line of JSON on stdout.
pub(crate) fn json_line(out: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// `12345678` as `12,345,678`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `count` and a noun in the right number: `1 event`, `1,200 events`. The plural adds an `s`.
pub(crate) fn plural(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A length in bytes, in the binary unit that leaves one to four digits before the point.
pub(crate) fn bytes(len: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if len < 1024 {
        return format!("{len} B");
    }
    let mut value = len as f64;
    let mut unit = "";
    for name in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, name);
    }
    format!("{value:.1} {unit}")
}

/// A duration to about three digits: `82.1 µs`, `8.21 ms`, `3.50 s`, `12 min 3 s`.
pub(crate) fn duration(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    if seconds < 0.001 {
        format!("{:.1} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.2} ms", seconds * 1000.0)
    } else if seconds < 120.0 {
        format!("{seconds:.2} s")
    } else {
        format!("{} min {} s", elapsed.as_secs() / 60, elapsed.as_secs() % 60)
    }
}

/// How old something is, in the unit in which `discard` takes it that leaves a small number.
pub(crate) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", count(seconds / 86_400)),
    }
}

/// `90s`, `45m`, `36h`, `30d`.
pub(crate) fn age_argument(text: &str) -> Result<Duration, String> {
    let wrong =
        || String::from("an age is a number and s, m, h or d, such as 90s, 45m, 36h or 30d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number = &text[..text.len() - 1];
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// Events a second, rounded; 0 when no time has passed.
pub(crate) fn per_second(events: u64, elapsed: Duration) -> u64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { (events as f64 / seconds).round() as u64 } else { 0 }
}

/// A stream name or an id as one printable word.
///
/// Text stands as it is. What a terminal or a line of output could not carry (bytes that are not
/// UTF-8, control characters), and text that would read like it, stands as JSON: a string with
/// escapes, or `{"base64":".."}`. [`name_argument`] reads both back.
pub(crate) fn name(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if is_plain(text) => text.to_owned(),
        _ => {
            let mut json = Vec::new();
            ndjson::write_bytes(&mut json, name);
            escape_controls(&String::from_utf8(json).expect("JSON is UTF-8"))
        }
    }
}

fn is_plain(text: &str) -> bool {
    !text.starts_with(['"', '{']) && !text.chars().any(is_unprintable)
}

/// Control characters, and the ones that reorder or hide the text around them.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn escape_controls(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if is_unprintable(character) {
            text.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            text.push(character);
        }
    }
    text
}

/// The first `width` characters of a payload, with what a terminal should not see replaced.
pub(crate) fn preview(payload: &[u8], width: usize) -> String {
    // Four bytes a character at most, and some more to know that there is more.
    let head = &payload[..payload.len().min(4 * width + 4)];
    let decoded = String::from_utf8_lossy(head);
    let mut text: String = decoded
        .chars()
        .take(width)
        .map(|c| {
            if c == '\n' || c == '\t' {
                ' '
            } else if is_unprintable(c) {
                '.'
            } else {
                c
            }
        })
        .collect();
    if decoded.chars().nth(width).is_some() {
        text.pop();
        text.push('…');
    }
    text
}

/// An argument that names a stream or an id: see [`name`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NameArgument(pub(crate) Vec<u8>);

/// Reads a stream name or an id from the command line: its bytes, unless they are a JSON string
/// or `{"base64":".."}`, which are decoded.
pub(crate) fn name_argument() -> impl clap::builder::TypedValueParser<Value = NameArgument> {
    use clap::builder::TypedValueParser as _;
    clap::builder::OsStringValueParser::new().try_map(|argument| {
        let bytes = std::os::unix::ffi::OsStringExt::into_vec(argument);
        let name = ndjson::name_from_argument(bytes);
        if name.is_empty() { Err("must not be empty") } else { Ok(NameArgument(name)) }
    })
}

/// Reads a sequence number or a count from the command line.
pub(crate) fn number_argument(text: &str) -> Result<u64, String> {
    if let Some(digits) = text.strip_prefix('-')
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err("must not be negative".into());
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("must be a whole number, like 0 or 1000".into());
    }
    text.parse().map_err(|_| format!("is too large; the largest is {}", u64::MAX))
}

/// An empty table with these column heads; a head that starts with `>` makes a column of numbers.
pub(crate) fn table<const N: usize>(heads: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(heads.map(|head| head.trim_start_matches('>')));
    for (index, head) in heads.iter().enumerate() {
        let column = table.column_mut(index).expect("the header has made the columns");
        column.set_padding((0, 2));
        if head.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Prints a table without the blanks that pad its last column.
pub(crate) fn print_table(out: &mut impl Write, table: &Table) -> io::Result<()> {
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 12345678, u64::MAX].map(count),
            ["0", "999", "1,000", "12,345,678", "18,446,744,073,709,551,615"]
        );
        assert_eq!(plural(1, "event"), "1 event");
        assert_eq!(plural(2000, "event"), "2,000 events");
    }

    #[test]
    fn lengths_have_units() {
        assert_eq!(
            [0, 1023, 1024, 1536, 1 << 20, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "16.0 EiB"]
        );
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration(Duration::from_nanos(82_140)), "82.1 µs");
        assert_eq!(duration(Duration::from_micros(1234)), "1.23 ms");
        assert_eq!(duration(Duration::from_millis(61_500)), "61.50 s");
        assert_eq!(duration(Duration::from_secs(723)), "12 min 3 s");
        let ages = [0, 119, 120, 7_199, 7_200, 172_799, 172_800, 86_400_000];
        let ages = ages.map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(ages, ["0s", "119s", "2m", "119m", "2h", "47h", "2d", "1,000d"]);
        assert_eq!(per_second(100, Duration::ZERO), 0);
        assert_eq!(per_second(100, Duration::from_millis(500)), 200);
    }

    #[test]
    fn names_are_printable_and_read_back() {
        let names: [&[u8]; 9] = [
            b"orders",
            b"two words",
            b"\x1b[31mred",
            b"\xff\xfe",
            b"\"quoted\"",
            b"{\"base64\":\"aGk=\"}",
            "\u{202e}reversed\u{85}".as_bytes(),
            b"{",
            b"\0",
        ];
        for bytes in names {
            let shown = name(bytes);
            assert!(!shown.chars().any(is_unprintable), "{shown:?}");
            assert_eq!(ndjson::name_from_argument(shown.clone().into_bytes()), bytes, "{shown}");
        }
        assert_eq!(name(b"two words"), "two words");
    }

    #[test]
    fn previews_are_short_and_harmless() {
        assert_eq!(preview(b"abc", 3), "abc");
        assert_eq!(preview(b"abcd", 3), "ab…");
        assert_eq!(preview(b"a\nb\x1b\0", 9), "a b..");
        assert_eq!(preview("ääää".as_bytes(), 3), "ää…");
        assert_eq!(preview(&[0xff; 100], 4).chars().count(), 4);
    }

    #[test]
    fn number_arguments_say_what_is_wrong() {
        assert_eq!(number_argument("42"), Ok(42));
        assert!(number_argument("-1").unwrap_err().contains("negative"));
        assert!(number_argument("18446744073709551616").unwrap_err().contains("too large"));
        for text in ["", "-", "1e3", "+1", " 1", "0x10", "1.0", "ten"] {
            assert!(number_argument(text).unwrap_err().contains("whole number"), "{text}");
        }
    }
}
