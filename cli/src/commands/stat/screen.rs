//! Where `--watch` shows its pages: one in the place of the one before on a terminal, else one after the other.

use std::io::{self, Write};

use crate::output;

/// Where pages go.
pub(super) struct Screen {
    is_terminal: bool,
    /// Lines of the page that is shown.
    shown: usize,
    is_first: bool,
}

impl Screen {
    pub(super) fn new(is_terminal: bool) -> Self {
        Screen { is_terminal, shown: 0, is_first: true }
    }

    /// Shows a page, whole or not at all: an interrupt finds the cursor below it.
    pub(super) fn show(&mut self, page: &str) -> io::Result<()> {
        let text = if self.is_terminal {
            let (lines, columns) = terminal_size();
            self.redrawn(page, lines, columns)
        } else if self.is_first {
            page.to_owned()
        } else {
            format!("\n{page}")
        };
        self.is_first = false;
        let mut out = output::stdout();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// The page, cut to what the terminal has room for, in the place of the one before.
    fn redrawn(&mut self, page: &str, lines: usize, columns: usize) -> String {
        let mut text = match self.shown {
            0 => String::new(),
            // Up to the first line, and clear from there on.
            shown => format!("\x1b[{shown}A\r\x1b[J"),
        };
        // The cursor stands below. A line that was broken, or ran out above, could not be drawn over.
        let room = lines.saturating_sub(1).max(1);
        let all: Vec<&str> = page.lines().collect();
        let is_cut = all.len() > room;
        self.shown = all.len().min(room);
        let whole = if is_cut { room - 1 } else { all.len() };
        for line in &all[..whole] {
            text.extend(line.chars().take(columns.max(1)));
            text.push('\n');
        }
        if is_cut {
            text.push_str("…\n");
        }
        text
    }
}

/// Lines and columns of the terminal; a usual size if it does not say.
fn terminal_size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok();
    let size = size.map(|size| (usize::from(size.ws_row), usize::from(size.ws_col)));
    size.filter(|(lines, columns)| *lines > 0 && *columns > 0).unwrap_or((24, 80))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "one\ntwo is long\nthree\n";

    #[test]
    fn a_page_takes_the_place_of_the_one_before() {
        let mut screen = Screen::new(true);
        assert_eq!(screen.redrawn(PAGE, 24, 80), PAGE);
        assert_eq!(screen.redrawn("four\n", 24, 80), "\x1b[3A\r\x1b[Jfour\n");
        assert_eq!(screen.redrawn(PAGE, 24, 80), format!("\x1b[1A\r\x1b[J{PAGE}"));
    }

    #[test]
    fn a_page_is_cut_to_the_terminal() {
        let mut screen = Screen::new(true);
        assert_eq!(screen.redrawn(PAGE, 4, 5), "one\ntwo i\nthree\n");
        assert_eq!(screen.redrawn(PAGE, 3, 5), "\x1b[3A\r\x1b[Jone\n…\n");
        assert_eq!(screen.redrawn(PAGE, 0, 0), "\x1b[2A\r\x1b[J…\n");
    }
}
