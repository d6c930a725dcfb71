//! The runs as a picture: events a second over threads, and what the time went to. SVG written by hand,
//! without fonts, scripts or anything from outside; readable on white and on black.

use std::fmt::Write as _;

use super::{Row, STAGES};
use crate::output;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 462.0;
/// The two charts: left edge and width of each, top and bottom of both.
const LEFT: (f64, f64) = (86.0, 364.0);
const RIGHT: (f64, f64) = (530.0, 290.0);
const TOP: f64 = 104.0;
const BOTTOM: f64 = 350.0;

/// Colours of the stages.
const COLOURS: [&str; 5] = ["#0891b2", "#2563eb", "#9333ea", "#d97706", "#9ca3af"];

const STYLE: &str = "\
  text { font: 13px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2937 }
  .title { font-size: 17px; font-weight: 600 } .head { font-weight: 600 } .small { font-size: 11.5px }
  .note { fill: #6b7280 } .end { text-anchor: end } .middle { text-anchor: middle }
  .background { fill: #ffffff } .grid { stroke: #e5e7eb } .axis { stroke: #9ca3af }
  .ideal { fill: none; stroke: #9ca3af; stroke-width: 1.5; stroke-dasharray: 5 4 }
  .line { fill: none; stroke: #2563eb; stroke-width: 2.5; stroke-linejoin: round }
  .range { stroke: #2563eb; stroke-width: 1.5; opacity: 0.55 }
  .point { fill: #2563eb; stroke: #ffffff; stroke-width: 2 } .inside { fill: #ffffff; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e5e7eb } .note { fill: #9ca3af } .background { fill: #111827 } .inside { fill: #ffffff }
    .grid { stroke: #263041 } .axis { stroke: #6b7280 } .ideal { stroke: #6b7280 }
    .line, .range { stroke: #60a5fa } .point { fill: #60a5fa; stroke: #111827 }
  }";

/// Draws the rows, of which there is at least one, by number of threads.
pub(crate) fn draw(rows: &[Row], title: &str, notes: &[String]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n<title>{0}</title>\n<style>\n{STYLE}\n</style>\n\
         <rect class=\"background\" width=\"100%\" height=\"100%\" rx=\"6\"/>\n\
         <text class=\"title\" x=\"28\" y=\"40\">{0}</text>\n",
        escaped(title)
    );
    speeds(&mut svg, rows);
    stages(&mut svg, rows);
    for (line, note) in notes.iter().enumerate() {
        let y = HEIGHT - 36.0 + 17.0 * line as f64;
        text(&mut svg, "note small", 28.0, y, note);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Events a second, with the slowest and the fastest run, and what a perfect machine would do.
fn speeds(svg: &mut String, rows: &[Row]) {
    let (left, width) = LEFT;
    text(svg, "head", left, TOP - 26.0, "events a second");
    let rates = |row: &Row| row.runs.iter().map(super::rate).fold(0.0, f64::max);
    let most = rows.iter().map(rates).fold(0.0, f64::max);
    let first = &rows[0];
    let ideal = |row: &Row| first.events_per_second() / first.threads as f64 * row.threads as f64;
    // Room for some of what would be in proportion, but not for so much that nothing else is seen.
    let most = most.max(ideal(&rows[rows.len() - 1]).min(1.5 * most));
    let (step, count) = steps(most);
    let top = step * count as f64;
    let y = |rate: f64| BOTTOM - (BOTTOM - TOP) * (rate / top).min(1.0);
    for tick in 0..=count {
        let rate = step * tick as f64;
        let class = if tick == 0 { "axis" } else { "grid" };
        line(svg, class, (left, y(rate)), (left + width, y(rate)));
        text(svg, "note small end", left - 10.0, y(rate) + 4.0, &short(rate));
    }
    let x = |index: usize| left + width * (index as f64 + 0.5) / rows.len() as f64;
    let ideals: Vec<(f64, f64)> =
        rows.iter().enumerate().map(|(i, row)| (x(i), ideal(row))).collect();
    let ideals: Vec<(f64, f64)> =
        below(&ideals, top).into_iter().map(|(x, rate)| (x, y(rate))).collect();
    path(svg, "ideal", &ideals);
    if let Some((x, y)) = ideals.last().filter(|_| ideals.len() > 1) {
        text(svg, "note small end", x - 10.0, y + 4.0, "in proportion");
    }
    for (index, row) in rows.iter().enumerate() {
        let (slowest, fastest) = (&row.runs[0], &row.runs[row.runs.len() - 1]);
        let ends = (y(super::rate(slowest)), y(super::rate(fastest)));
        line(svg, "range", (x(index), ends.0), (x(index), ends.1));
        text(svg, "middle", x(index), BOTTOM + 20.0, &row.threads.to_string());
        let efficiency = format!("{:.0} %", row.efficiency(first) * 100.0);
        text(svg, "small middle", x(index), BOTTOM + 40.0, &efficiency);
    }
    let line: Vec<(f64, f64)> =
        rows.iter().enumerate().map(|(i, row)| (x(i), y(row.events_per_second()))).collect();
    path(svg, "line", &line);
    for ((x, y), row) in line.into_iter().zip(rows) {
        let _ = writeln!(svg, "<circle class=\"point\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"/>");
        text(svg, "small", x + 8.0, y + 17.0, &short(row.events_per_second()));
    }
    text(svg, "note small end", left - 10.0, BOTTOM + 20.0, "threads");
    text(svg, "note small end", left - 10.0, BOTTOM + 40.0, "efficiency");
}

/// A bar for each number of threads: parts of the time of the cores.
fn stages(svg: &mut String, rows: &[Row]) {
    let (left, width) = RIGHT;
    text(svg, "head", left, TOP - 26.0, "where the time of the cores went");
    let slot = width / rows.len() as f64;
    let bar = (slot * 0.62).min(54.0);
    for (index, row) in rows.iter().enumerate() {
        let x = left + slot * (index as f64 + 0.5);
        let mut y = BOTTOM;
        for (share, colour) in row.shares().0.into_iter().zip(COLOURS) {
            let height = (BOTTOM - TOP) * share;
            y -= height;
            let at = x - bar / 2.0;
            let _ = writeln!(
                svg,
                "<rect x=\"{at:.1}\" y=\"{y:.1}\" width=\"{bar:.1}\" height=\"{height:.1}\" \
                 fill=\"{colour}\"/>"
            );
            if height > 18.0 && bar > 34.0 {
                let label = format!("{:.0} %", share * 100.0);
                text(svg, "small middle inside", x, y + height / 2.0 + 4.0, &label);
            }
        }
        text(svg, "middle", x, BOTTOM + 20.0, &row.threads.to_string());
    }
    line(svg, "axis", (left, BOTTOM), (left + width, BOTTOM));
    text(svg, "note small end", left - 10.0, BOTTOM + 20.0, "threads");
    // In the order of the bars, from the top.
    for (line, (stage, colour)) in STAGES.iter().zip(COLOURS).rev().enumerate() {
        let (x, y) = (left + width + 22.0, TOP + 12.0 + 24.0 * line as f64);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{:.1}\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{colour}\"/>",
            y - 10.0
        );
        text(svg, "", x + 19.0, y, stage);
    }
}

/// The beginning of a rising line, up to where it crosses `top`.
fn below(points: &[(f64, f64)], top: f64) -> Vec<(f64, f64)> {
    let inside = points.iter().take_while(|(_, y)| *y <= top).count();
    let mut line = points[..inside].to_vec();
    if let (Some(&(x1, y1)), Some(&(x2, y2))) = (line.last(), points.get(inside)) {
        line.push((x1 + (x2 - x1) * (top - y1) / (y2 - y1), top));
    }
    line
}

/// Distance and number of the lines of a grid that reaches to `most`.
fn steps(most: f64) -> (f64, usize) {
    let most = most.max(1.0);
    let tenth = 10_f64.powf((most / 5.0).log10().floor());
    let fits = |step: &f64| most / step <= 5.0;
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * tenth).into_iter().find(fits);
    let step = step.unwrap_or(tenth * 10.0);
    (step, (most / step).ceil() as usize)
}

/// `1.25 M`, `640 k`.
fn short(number: f64) -> String {
    let (value, unit) = match number {
        n if n >= 1e6 => (n / 1e6, " M"),
        n if n >= 1e3 => (n / 1e3, " k"),
        n => (n, ""),
    };
    let text = if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, text: &str) {
    let text = escaped(text);
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
}

fn line(svg: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let ends = format!("x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"");
    let _ = writeln!(svg, "<line class=\"{class}\" {ends}/>");
}

fn path(svg: &mut String, class: &str, points: &[(f64, f64)]) {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    if points.len() > 1 {
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{}\"/>", points.join("L"));
    }
}

fn escaped(text: &str) -> String {
    let text = output::preview(text.as_bytes(), 400);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use thalweg::DiscoveryReport;

    use super::*;

    fn row(threads: usize, seconds: u64) -> Row {
        let mut report = DiscoveryReport::default();
        report.scanned = 1_000_000;
        report.elapsed = Duration::from_secs(seconds);
        Row { threads, cores: threads, scanners: 1, orderers: threads, runs: vec![report; 3] }
    }

    #[test]
    fn every_row_is_drawn_and_text_is_escaped() {
        let rows = [row(1, 8), row(2, 4), row(4, 2)];
        let svg = draw(&rows, "a <title> & more", &[String::from("a note")]);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a &lt;title&gt; &amp; more") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(draw(&rows[..1], "", &[]).contains("<circle"));
    }

    #[test]
    fn a_line_ends_where_it_leaves_the_picture() {
        let line = [(0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (3.0, 8.0)];
        assert_eq!(below(&line, 3.0), [(0.0, 1.0), (1.0, 2.0), (1.5, 3.0)]);
        assert_eq!(below(&line, 9.0), line);
    }

    #[test]
    fn grids_have_round_steps() {
        for (most, expected) in
            [(1.0, 0.2), (90_000.0, 20_000.0), (1_200_000.0, 250_000.0), (5e6, 1e6)]
        {
            let (step, count) = steps(most);
            assert!((step - expected).abs() < step * 1e-6, "{most}: {step}");
            assert!(step * count as f64 >= most * 0.999 && count <= 5, "{most}");
        }
        assert_eq!(
            ["0", "999", "1.25 k", "20 k", "1.2 M"],
            [short(0.0), short(999.0), short(1250.0), short(20_000.0), short(1.2e6)]
        );
    }
}
