//! The graph in characters: `*` is a delivered event, `o` a held one, `x` one that never arrived.
//! Columns are two characters wide.

use super::layout::{Row, rows};
use super::{Dag, Kind};
use crate::output::plural;

/// Draws the graph.
pub(crate) fn draw(dag: &Dag) -> String {
    let mut text = String::new();
    for (node, row) in dag.nodes.iter().zip(rows(dag)) {
        if row.gap {
            push_line(&mut text, &Canvas::with_lines(&row.passing), "");
        }
        let mut canvas = Canvas::with_lines(&row.passing);
        canvas.put(
            2 * row.column,
            match node.kind {
                Kind::Delivered { .. } => '*',
                Kind::Held => 'o',
                Kind::Absent => 'x',
            },
        );
        push_line(&mut text, &canvas, &node.label(row.undrawn));
        for canvas in links(&row) {
            push_line(&mut text, &canvas, "");
        }
    }
    if dag.older > 0 {
        text.push_str(&format!("~ {} not shown\n", plural(dag.older, "older event")));
    }
    text
}

/// A row of characters, grown as needed.
struct Canvas(Vec<char>);

impl Canvas {
    fn with_lines(columns: &[usize]) -> Self {
        let mut canvas = Canvas(Vec::new());
        for column in columns {
            canvas.put(2 * column, '|');
        }
        canvas
    }

    fn put(&mut self, at: usize, character: char) {
        if at >= self.0.len() {
            self.0.resize(at + 1, ' ');
        }
        self.0[at] = character;
    }

    /// A line across the cells that hold no line yet.
    fn run_across(&mut self, cells: std::ops::Range<usize>) {
        for at in cells {
            if self.0.get(at).is_none_or(|character| *character == ' ') {
                self.put(at, '-');
            }
        }
    }
}

fn push_line(text: &mut String, canvas: &Canvas, label: &str) {
    let start = text.len();
    text.extend(&canvas.0);
    text.push_str("  ");
    text.push_str(label);
    text.truncate(start + text[start..].trim_end().len());
    text.push('\n');
}

/// The rows between a node and the next one. Lines to neighbouring columns are slanted. Lines that
/// go farther run across, `+` where they meet a line, `.` where they become one, and past the lines
/// that they only cross.
///
/// ```text
/// | | *      | | * |      *
/// | |/       +-|-| |      |-.-.-.
/// | *        | | * |      * | | |
/// ```
fn links(row: &Row) -> Vec<Canvas> {
    let goes_on = row.edges.contains(&row.column);
    let edges: Vec<usize> = row.edges.iter().copied().filter(|edge| *edge != row.column).collect();
    let mut canvases = Vec::new();
    if !edges.is_empty() {
        let mut passing = row.passing.clone();
        passing.extend(goes_on.then_some(row.column));
        canvases.push(branches(&passing, row.column, &edges));
    }
    if let Some(from) = row.joining {
        let mut passing = row.passing.clone();
        passing.retain(|column| *column != from);
        passing.extend(&row.edges);
        canvases.push(branches(&passing, from, &[row.column]));
    }
    canvases
}

/// Lines from the column `at` to others, beside and across the passing ones.
fn branches(passing: &[usize], at: usize, edges: &[usize]) -> Canvas {
    let mut canvas = Canvas::with_lines(passing);
    let leftmost = edges.iter().copied().filter(|edge| *edge < at).min();
    let rightmost = edges.iter().copied().filter(|edge| *edge > at).max();
    let far_left = leftmost.filter(|edge| *edge + 1 < at);
    let far_right = rightmost.filter(|edge| *edge > at + 1);
    if (far_left.is_some() || far_right.is_some()) && !passing.contains(&at) {
        canvas.put(2 * at, '\'');
    }
    match (leftmost, far_left) {
        (_, Some(end)) => canvas.run_across(2 * end..2 * at),
        (Some(_), None) => canvas.put(2 * at - 1, '/'),
        (None, None) => {}
    }
    match (rightmost, far_right) {
        (_, Some(end)) => canvas.run_across(2 * at + 1..2 * end + 1),
        (Some(_), None) => canvas.put(2 * at + 1, '\\'),
        (None, None) => {}
    }
    for edge in edges {
        let far = if *edge < at { far_left } else { far_right };
        if far.is_some() {
            canvas.put(2 * edge, if passing.contains(edge) { '+' } else { '.' });
        }
    }
    canvas
}

#[cfg(test)]
mod tests {
    use super::super::tests::{delivered, held};
    use super::*;

    fn drawn(events: &[(&str, &[&str])]) -> String {
        let text = draw(&Dag::new(delivered(events), 0, Vec::new()));
        format!("\n{text}")
    }

    #[test]
    fn a_chain_is_one_column() {
        assert_eq!(
            drawn(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]),
            "
*  2  c
*  1  b
*  0  a
"
        );
    }

    #[test]
    fn a_fork_and_a_merge() {
        assert_eq!(
            drawn(&[("a", &[]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"])]),
            r"
*  3  d
|\
| *  2  c
* |  1  b
|/
*  0  a
"
        );
    }

    #[test]
    fn held_events_and_what_they_miss_are_marked() {
        let held = held(&[("h", &["x"]), ("i", &["h"])]);
        let text = draw(&Dag::new(delivered(&[("a", &[])]), 7, held));
        assert_eq!(
            format!("\n{text}"),
            "
o  held  i
o  held  h
x  never arrived  x

*  0  a
~ 7 older events not shown
"
        );
    }

    #[test]
    fn an_octopus_runs_across_other_lines() {
        let merge = ["b0", "b1", "b2", "b3"];
        let text = drawn(&[
            ("r", &[]),
            ("b0", &["r"]),
            ("b1", &["r"]),
            ("b2", &["r"]),
            ("b3", &["r"]),
            ("octo", &merge),
            ("side", &["b1"]),
            ("end", &["octo", "side"]),
        ]);
        assert_eq!(
            text,
            r"
*  7  end
|\
| *  6  side
* |  5  octo
|-+-.-.
| | | *  4  b3
| | * |  3  b2
| | |/
| * |  2  b1
| |/
* |  1  b0
|/
*  0  r
"
        );
    }

    #[test]
    fn a_line_to_a_far_column_crosses_the_ones_between() {
        let events: [(&str, &[&str]); 6] = [
            ("r", &[]),
            ("a", &["r"]),
            ("b", &["r"]),
            ("x", &["a"]),
            ("y", &["b"]),
            ("z", &["r", "a"]),
        ];
        assert_eq!(
            drawn(&events),
            r"
*  5  z
|\
| | *  4  y
| | | *  3  x
| +-|-'
| | *  2  b
+-|-'
| *  1  a
|/
*  0  r
"
        );
    }

    #[test]
    fn more_lines_than_there_is_room_for_are_counted() {
        let names: Vec<String> = (0..100).map(|at| format!("b{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut events: Vec<(&str, &[&str])> = vec![("root", &[])];
        events.extend(names.iter().map(|name| (*name, ["root"].as_slice())));
        events.push(("octo", &names));
        let text = drawn(&events);
        assert!(text.contains("parents not drawn)"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() < 100), "{text}");
    }
}
