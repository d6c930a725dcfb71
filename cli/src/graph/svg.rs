//! The graph as a picture: SVG, written by hand, without fonts, scripts or anything from outside.

use std::collections::BTreeMap;

use super::layout::{Row, rows};
use super::{Dag, Kind};
use crate::output::{self, plural};

/// Width of a column, height of a row and radius of a node, in pixels.
const COLUMN: usize = 18;
const ROW: usize = 26;
const RADIUS: usize = 5;
/// Space around the picture, and above it for the title.
const MARGIN: usize = 20;
const TITLE: usize = 40;
/// Width of a character of a label, for the width of the picture.
const CHARACTER: usize = 8;

/// Colours of the lines by column; readable on white and on black.
const COLOURS: [&str; 8] =
    ["#2563eb", "#059669", "#d97706", "#9333ea", "#dc2626", "#0891b2", "#65a30d", "#db2777"];

const STYLE: &str = "\
  text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2937 }
  .title { font-weight: bold } .note { fill: #6b7280 }
  .background { fill: #ffffff } path { fill: none; stroke-width: 2 }
  .held { fill: #ffffff; stroke: #c2410c; stroke-width: 2 }
  .absent { fill: #ffffff; stroke: #6b7280; stroke-width: 1.5; stroke-dasharray: 2 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e7eb } .note { fill: #9ca3af } .background { fill: #111827 }
    .held, .absent { fill: #111827 }
  }";

/// Draws the graph.
pub(crate) fn draw(dag: &Dag, stream: &[u8]) -> String {
    let rows = rows(dag);
    let x = |column: usize| MARGIN + column * COLUMN + COLUMN / 2;
    let y = |row: usize| TITLE + MARGIN + row * ROW;
    let columns = rows.iter().map(|row| row.column.max(widest(row)) + 1).max().unwrap_or(0);
    let label_x = x(columns) + COLUMN / 2;
    let labels: Vec<String> =
        dag.nodes.iter().zip(&rows).map(|(node, row)| node.label(row.undrawn)).collect();
    let title = title(dag, stream);
    let longest = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let width = (label_x + longest * CHARACTER).max(title.chars().count() * 9) + 2 * MARGIN;
    let height = y(rows.len()) + MARGIN;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\">\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"background\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"{}\">{}</text>\n",
        MARGIN + 12,
        escaped(&title)
    );
    for line in lines(&rows) {
        svg.push_str(&line.drawn(x, y));
    }
    for (at, (node, row)) in dag.nodes.iter().zip(&rows).enumerate() {
        let (cx, cy) = (x(row.column), y(at));
        let look = match node.kind {
            Kind::Delivered { .. } => format!("fill=\"{}\"", colour(row.column)),
            Kind::Held => "class=\"held\"".into(),
            Kind::Absent => "class=\"absent\"".into(),
        };
        let note = if matches!(node.kind, Kind::Delivered { .. }) { "" } else { " class=\"note\"" };
        svg.push_str(&format!(
            "<circle cx=\"{cx}\" cy=\"{cy}\" r=\"{RADIUS}\" {look}><title>{}</title></circle>\n\
             <text{note} x=\"{label_x}\" y=\"{}\" xml:space=\"preserve\">{}</text>\n",
            escaped(&output::name(&node.id)),
            cy + 4,
            escaped(&labels[at])
        ));
    }
    if dag.older > 0 {
        let text = format!("{} not shown", plural(dag.older, "older event"));
        let y = y(rows.len()) + 4;
        svg.push_str(&format!("<text class=\"note\" x=\"{label_x}\" y=\"{y}\">{text}</text>\n"));
    }
    svg.push_str("</svg>\n");
    svg
}

fn widest(row: &Row) -> usize {
    row.edges.iter().chain(&row.passing).copied().max().unwrap_or(0)
}

fn title(dag: &Dag, stream: &[u8]) -> String {
    let count = |kind: fn(&Kind) -> bool| dag.nodes.iter().filter(|node| kind(&node.kind)).count();
    let delivered = count(|kind| matches!(kind, Kind::Delivered { .. })) as u64 + dag.older;
    let held = count(|kind| matches!(kind, Kind::Held)) as u64;
    let stream = output::name(stream);
    format!("{stream}: {} delivered, {} held", plural(delivered, "event"), output::count(held))
}

fn colour(column: usize) -> &'static str {
    COLOURS[column % COLOURS.len()]
}

/// A piece of a line: straight down from a row to a later one, or over to another column within
/// one row.
struct Line {
    from: (usize, usize),
    to: (usize, usize),
}

impl Line {
    fn drawn(&self, x: impl Fn(usize) -> usize, y: impl Fn(usize) -> usize) -> String {
        let (x1, y1) = (x(self.from.0), y(self.from.1));
        let (x2, y2) = (x(self.to.0), y(self.to.1));
        let path = if x1 == x2 {
            format!("V{y2}")
        } else {
            let middle = (y1 + y2) / 2;
            format!("C{x1} {middle} {x2} {middle} {x2} {y2}")
        };
        // A line that branches off has the colour of the column that is not the main one.
        let colour = colour(self.from.0.max(self.to.0));
        format!("<path d=\"M{x1} {y1}{path}\" stroke=\"{colour}\"/>\n")
    }
}

/// The lines between all rows, straight ones in one piece.
fn lines(rows: &[Row]) -> Vec<Line> {
    let mut lines = Vec::new();
    // For each column the row in which its straight line began.
    let mut straight: BTreeMap<usize, usize> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate() {
        if let Some(start) = straight.remove(&row.column) {
            lines.push(Line { from: (row.column, start), to: (row.column, at) });
        }
        if let Some(from) = row.joining {
            if let Some(start) = straight.remove(&from) {
                lines.push(Line { from: (from, start), to: (from, at) });
            }
            lines.push(Line { from: (from, at), to: (row.column, at + 1) });
        }
        for edge in &row.edges {
            if *edge != row.column {
                lines.push(Line { from: (row.column, at), to: (*edge, at + 1) });
                straight.entry(*edge).or_insert(at + 1);
            } else {
                straight.entry(*edge).or_insert(at);
            }
        }
    }
    lines.retain(|line| line.from != line.to);
    lines
}

/// Text for XML. Control characters are gone already; XML has two more that it does not take.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::tests::{delivered, held};
    use super::*;

    #[test]
    fn text_is_escaped_and_every_edge_has_a_line() {
        let events =
            delivered(&[("<a>&", &[]), ("b", &["<a>&"]), ("c", &["<a>&"]), ("d", &["b", "c"])]);
        let svg = draw(&Dag::new(events, 0, held(&[("h", &["x"])])), b"</svg>");
        assert_eq!(svg.matches("</svg>").count(), 1);
        assert_eq!(svg.matches("<circle").count(), 6);
        assert_eq!(svg.matches("<path d=").count(), 6);
        assert!(svg.contains("&lt;a&gt;&amp;"));
    }

    #[test]
    fn nothing_to_draw_is_a_picture_too() {
        assert!(draw(&Dag::new(Vec::new(), 0, Vec::new()), b"s").ends_with("</svg>\n"));
    }
}
