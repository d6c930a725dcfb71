//! Input, cut into lines on a thread of its own.
//!
//! Reading a pipe can block for ever, and nothing but data ends such a read; so the thread that
//! follows signals must not be the one that reads. Lines are bounded: an endless one is reported
//! and passed over, up to the next line break.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};

use anyhow::{Context as _, bail};

use crate::output;

/// Longest line, in bytes. The longest event that the engine takes (a batch of 64 MiB) fits, in
/// the longest form that [`crate::ndjson`] writes it in.
pub(crate) const LINE_LEN_MAX: usize = 128 << 20;

/// Bytes asked for in one read.
const BLOCK_LEN: usize = 256 << 10;

/// Chunks that wait between the reading thread and the one that parses.
const CHUNKS_WAITING: usize = 4;

/// A piece of the input.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// Whole lines with their line breaks; only the last line of the input may lack its own.
    Lines {
        /// Number of the first one, from 1.
        first: u64,
        /// The lines.
        text: Vec<u8>,
    },
    /// A line that is longer than [`LINE_LEN_MAX`], left out.
    TooLong {
        /// Its number, from 1.
        line: u64,
    },
    /// Reading failed; nothing follows.
    Failed(io::Error),
}

/// Where input comes from: a file, or stdin for `-`.
pub(crate) struct Input {
    reader: Box<dyn Read + Send>,
    /// Length in bytes, where it is known.
    pub(crate) len: Option<u64>,
}

impl Input {
    /// Opens `path`, or stdin if it is `-`.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            if io::stdin().is_terminal() {
                output::note(format_args!("reading from the terminal; Ctrl-D ends the input"));
            }
            return Ok(Input { reader: Box::new(io::stdin()), len: None });
        }
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        let metadata = file.metadata().with_context(|| format!("cannot open {shown}"))?;
        if metadata.is_dir() {
            bail!("{shown} is a directory; name a file, or `-` for stdin");
        }
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Input { reader: Box::new(file), len })
    }

    /// Reads on a new thread. The receiver ends with the input; dropping it ends the thread after
    /// the read that it is in.
    pub(crate) fn lines(self) -> io::Result<Receiver<Chunk>> {
        let (sender, receiver) = sync_channel(CHUNKS_WAITING);
        let mut splitter = Splitter::new(self.reader, LINE_LEN_MAX);
        std::thread::Builder::new().name("thalweg-input".into()).spawn(move || {
            while let Some(chunk) = splitter.next() {
                let last = matches!(chunk, Chunk::Failed(_));
                if sender.send(chunk).is_err() || last {
                    break;
                }
            }
        })?;
        Ok(receiver)
    }

    /// Reads everything, on a new thread, up to `len_max` bytes and one more, so that the caller
    /// can see that there is more. The receiver gives one answer.
    pub(crate) fn whole(self, len_max: u64) -> io::Result<Receiver<io::Result<Vec<u8>>>> {
        let (sender, receiver) = sync_channel(1);
        std::thread::Builder::new().name("thalweg-input".into()).spawn(move || {
            let mut bytes = Vec::new();
            let result = self.reader.take(len_max + 1).read_to_end(&mut bytes);
            // Nobody listens any more after an interrupt.
            let _ = sender.send(result.map(|_| bytes));
        })?;
        Ok(receiver)
    }
}

/// The lines of `text`, without their line breaks, and their numbers.
pub(crate) fn numbered(first: u64, mut text: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    (first..).map_while(move |number| {
        use std::io::BufRead as _;
        let line = text;
        let len = text.skip_until(b'\n').expect("reading a slice cannot fail");
        (len > 0).then(|| (number, line[..len].strip_suffix(b"\n").unwrap_or(&line[..len])))
    })
}

struct Splitter<R> {
    input: R,
    line_len_max: usize,
    block: Box<[u8]>,
    /// The line that has begun but not ended.
    open: Vec<u8>,
    /// Number of that line.
    line: u64,
    /// Whether that line is too long, and is passed over.
    skipping: bool,
}

impl<R: Read> Splitter<R> {
    fn new(input: R, line_len_max: usize) -> Self {
        let block = vec![0; BLOCK_LEN].into_boxed_slice();
        Splitter { input, line_len_max, block, open: Vec::new(), line: 1, skipping: false }
    }

    /// The next piece as soon as it has a whole line; `None` at the end of the input.
    fn next(&mut self) -> Option<Chunk> {
        loop {
            let len = match self.input.read(&mut self.block) {
                Ok(0) => return self.last_line(),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Some(Chunk::Failed(error)),
            };
            let chunk = self.take(len);
            if chunk.is_some() {
                return chunk;
            }
        }
    }

    fn last_line(&mut self) -> Option<Chunk> {
        let text = std::mem::take(&mut self.open);
        (!text.is_empty()).then_some(Chunk::Lines { first: self.line, text })
    }

    /// Takes over what was read into the block.
    fn take(&mut self, len: usize) -> Option<Chunk> {
        let mut block = &self.block[..len];
        if self.skipping {
            let at = block.iter().position(|byte| *byte == b'\n')?;
            block = &block[at + 1..];
            self.skipping = false;
            self.line += 1;
        }
        let Some(last) = block.iter().rposition(|byte| *byte == b'\n') else {
            self.open.extend_from_slice(block);
            return self.check_len();
        };
        let (whole, open) = block.split_at(last + 1);
        let mut text = std::mem::replace(&mut self.open, open.to_vec());
        text.extend_from_slice(whole);
        let first = self.line;
        self.line += text.iter().filter(|byte| **byte == b'\n').count() as u64;
        Some(Chunk::Lines { first, text })
    }

    fn check_len(&mut self) -> Option<Chunk> {
        if self.open.len() <= self.line_len_max {
            return None;
        }
        self.open = Vec::new();
        self.skipping = true;
        Some(Chunk::TooLong { line: self.line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most `step` bytes a read.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(self.1);
            self.0.read(&mut buffer[..len])
        }
    }

    fn split(input: &[u8], step: usize, line_len_max: usize) -> Vec<(u64, String)> {
        let mut splitter = Splitter::new(Slow(input, step), line_len_max);
        let mut lines = Vec::new();
        while let Some(chunk) = splitter.next() {
            match chunk {
                Chunk::Lines { first, text } => lines.extend(
                    numbered(first, &text)
                        .map(|(number, line)| (number, String::from_utf8(line.to_vec()).unwrap())),
                ),
                Chunk::TooLong { line } => lines.push((line, "too long".into())),
                Chunk::Failed(error) => panic!("{error}"),
            }
        }
        lines
    }

    #[test]
    fn lines_are_whole_whatever_the_reads() {
        let input = b"one\n\nthree\r\nfour";
        for step in 1..20 {
            let lines = split(input, step, 100);
            let expected = [(1, "one"), (2, ""), (3, "three\r"), (4, "four")];
            assert_eq!(lines, expected.map(|(n, text)| (n, text.to_owned())), "{step}");
        }
        assert_eq!(split(b"", 1, 100), []);
        assert_eq!(split(b"\n", 1, 100), [(1, String::new())]);
    }

    #[test]
    fn an_endless_line_is_reported_once_and_passed_over() {
        let input = [b"first\n".as_slice(), &[b'x'; 1000], b"\nthird\n", &[b'y'; 1000]].concat();
        for step in [1, 7, 50] {
            let lines = split(&input, step, 100);
            let expected = [(1, "first"), (2, "too long"), (3, "third"), (4, "too long")];
            assert_eq!(lines, expected.map(|(n, text)| (n, text.to_owned())), "{step}");
        }
    }
}
