//! The manifest of a backup: what is in it, with the length and a checksum of every file.
//!
//! Plain text, so that a person can read it, and a line with a checksum over all the others at its
//! end, so that a program need not trust it. The checksums are XXH3 with 128 bits: they find every
//! accident, and are no protection against forgery.
//!
//! ```text
//! thalweg backup 1
//! store 5f0c...            identity of the store, in hexadecimal
//! position 1234            where the log of the backup ends
//! ordered 1200             up to where the order is there too
//! first 0                  first event of the backup
//! delivered 17             events delivered up to `position`, or `-` if that was not known
//! created 1750000000       seconds since 1970, for people
//! files 2
//! sealed segment-0000000000000001.wal 1048576 0123...
//! open segment-0000000000000002.wal 1048576 4567...
//! checksum 89ab...
//! ```

use std::fmt::Write as _;
use std::str::Lines;

use thalweg_wal::name;
use xxhash_rust::xxh3::xxh3_128;

const HEADING: &str = "thalweg backup";
const VERSION: &str = "1";

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Bytes.
    pub(crate) len: u64,
    /// XXH3 of all bytes, with 128 bits.
    pub(crate) checksum: u128,
    /// Nobody will write it again, in any store that has it: it may be linked.
    pub(crate) sealed: bool,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) store_id: [u8; 16],
    pub(crate) position: u64,
    pub(crate) ordered: u64,
    pub(crate) first: u64,
    pub(crate) delivered: Option<u64>,
    pub(crate) created: u64,
    pub(crate) files: Vec<Entry>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> String {
        let Manifest { store_id, position, ordered, first, delivered, created, files } = self;
        let store = u128::from_be_bytes(*store_id);
        let delivered = delivered.map_or_else(|| String::from("-"), |count| count.to_string());
        let mut text = format!(
            "{HEADING} {VERSION}\nstore {store:032x}\nposition {position}\nordered {ordered}\n\
             first {first}\ndelivered {delivered}\ncreated {created}\nfiles {}\n",
            files.len()
        );
        for Entry { name, len, checksum, sealed } in files {
            let kind = if *sealed { "sealed" } else { "open" };
            writeln!(text, "{kind} {name} {len} {checksum:032x}").expect("a string takes it");
        }
        let checksum = xxh3_128(text.as_bytes());
        writeln!(text, "checksum {checksum:032x}").expect("a string takes it");
        text
    }

    /// Reads a manifest, or says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
        let version = text.strip_prefix(HEADING).ok_or("it does not begin as a manifest does")?;
        // The version first: a newer manifest may have another end.
        let version = version.lines().next().unwrap_or_default().trim();
        let body = text.rfind("checksum ").filter(|_| version == VERSION);
        let (body, end) = text.split_at(body.ok_or(match version {
            VERSION => "its end is missing",
            _ => "a newer version has written it",
        })?);
        if end.strip_suffix('\n') != Some(&format!("checksum {:032x}", xxh3_128(body.as_bytes()))) {
            return Err("its checksum is wrong");
        }
        // Whole, so what follows can only fail for what was never written by us.
        Self::read(body).ok_or("it does not read as one")
    }

    fn read(body: &str) -> Option<Self> {
        let mut lines = body.lines();
        lines.next()?;
        let store_id = hexadecimal(field(&mut lines, "store")?)?.to_be_bytes();
        let position = field(&mut lines, "position")?.parse().ok()?;
        let ordered = field(&mut lines, "ordered")?.parse().ok()?;
        let first = field(&mut lines, "first")?.parse().ok()?;
        let delivered = match field(&mut lines, "delivered")? {
            "-" => None,
            count => Some(count.parse().ok()?),
        };
        let created = field(&mut lines, "created")?.parse().ok()?;
        let count: usize = field(&mut lines, "files")?.parse().ok()?;
        let files = lines.map(Entry::read).collect::<Option<Vec<_>>>()?;
        let whole = files.len() == count;
        whole.then_some(Manifest { store_id, position, ordered, first, delivered, created, files })
    }
}

impl Entry {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let sealed = match words.next()? {
            "sealed" => true,
            "open" => false,
            _ => return None,
        };
        let name = words.next()?;
        let is_of_a_store = match name::kind(name) {
            name::Kind::Segment(_)
            | name::Kind::Order(_)
            | name::Kind::Tips(_)
            | name::Kind::Run(_)
            | name::Kind::Losses
            | name::Kind::Trimmed
            | name::Kind::Facts(_)
            | name::Kind::FactsRun(_) => true,
            name::Kind::Checkpoint => name == name::checkpoint(),
            name::Kind::Lock
            | name::Kind::SegmentNew(_)
            | name::Kind::Backup
            | name::Kind::LossesNew
            | name::Kind::TrimmedNew
            | name::Kind::Quarantine
            | name::Kind::Unknown => false,
        };
        let len = words.next()?.parse().ok()?;
        let checksum = hexadecimal(words.next()?)?;
        let whole = is_of_a_store && words.next().is_none();
        whole.then(|| Entry { name: name.to_owned(), len, checksum, sealed })
    }
}

/// The rest of the next line, if it begins with this word.
fn field<'a>(lines: &mut Lines<'a>, word: &str) -> Option<&'a str> {
    lines.next()?.strip_prefix(word)?.strip_prefix(' ')
}

fn hexadecimal(digits: &str) -> Option<u128> {
    u128::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let entry = |name, sealed| Entry { name, len: 1 << 20, checksum: 77, sealed };
        Manifest {
            store_id: [0xab; 16],
            position: 5000,
            ordered: 4096,
            first: 2,
            delivered: Some(3),
            created: 1_750_000_000,
            files: vec![
                entry(name::segment(1), true),
                entry(name::run(7), true),
                entry(name::checkpoint().to_owned(), false),
            ],
        }
    }

    #[test]
    fn a_manifest_reads_back_and_not_with_any_byte_changed_or_missing() {
        for delivered in [Some(3), None] {
            let manifest = Manifest { delivered, ..manifest() };
            let text = manifest.encode();
            assert_eq!(Manifest::decode(text.as_bytes()), Ok(manifest));
            for byte in 0..text.len() {
                let mut changed = text.clone().into_bytes();
                changed[byte] ^= 2;
                assert!(Manifest::decode(&changed).is_err(), "byte {byte}");
                assert!(Manifest::decode(&text.as_bytes()[..byte]).is_err(), "{byte} bytes");
            }
        }
    }

    /// Whole by its checksum, as somebody would write it who wants a restore to write elsewhere.
    #[test]
    fn a_manifest_names_only_files_of_a_store() {
        for name in ["../evil", "/etc/passwd", "LOCK", "backup.manifest", "checkpoint.new", ""] {
            let mut manifest = manifest();
            manifest.files[1].name = name.to_owned();
            assert!(Manifest::decode(manifest.encode().as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_newer_version_is_named_as_such() {
        let text = manifest().encode().replace("thalweg backup 1\n", "thalweg backup 2\n");
        assert_eq!(Manifest::decode(text.as_bytes()), Err("a newer version has written it"));
    }
}
