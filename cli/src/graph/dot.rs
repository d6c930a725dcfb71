//! The graph in the language of Graphviz: `thalweg graph STORE STREAM --format dot | dot -Tsvg`.

use super::{Dag, Kind};
use crate::output;

/// Writes the graph; children stand above their parents.
pub(crate) fn draw(dag: &Dag, stream: &[u8]) -> String {
    let mut text = format!("digraph {} {{\n", quoted(&output::name(stream)));
    text.push_str("  node [shape=box, style=rounded, fontname=\"monospace\", fontsize=10];\n");
    for (at, node) in dag.nodes.iter().enumerate() {
        let id = output::name(&node.id);
        let (label, look) = match &node.kind {
            Kind::Delivered { local, payload } if payload.is_empty() => {
                (format!("{local}  {id}"), "")
            }
            Kind::Delivered { local, payload } => (format!("{local}  {id}\n{payload}"), ""),
            Kind::Held => (format!("held  {id}"), ", style=\"rounded,dashed\", color=\"#c2410c\""),
            Kind::Absent => {
                (format!("never arrived  {id}"), ", style=\"rounded,dotted\", color=\"#6b7280\"")
            }
        };
        text.push_str(&format!("  n{at} [label={}{look}];\n", quoted(&label)));
    }
    for (at, node) in dag.nodes.iter().enumerate() {
        for parent in node.parents.iter().chain(&node.cycle) {
            text.push_str(&format!("  n{at} -> n{parent};\n"));
        }
        if node.older_parents > 0 {
            let label = format!("{} older", output::count(node.older_parents as u64));
            text.push_str(&format!("  o{at} [label={}, shape=plaintext];\n", quoted(&label)));
            text.push_str(&format!("  n{at} -> o{at} [style=dotted];\n"));
        }
    }
    if dag.older > 0 {
        let label = format!("{} not shown", output::plural(dag.older, "older event"));
        text.push_str(&format!("  label={};\n", quoted(&label)));
    }
    text.push_str("}\n");
    text
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::super::tests::{delivered, held};
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        let dag = Dag::new(delivered(&[("a\"; x", &[]), ("b\\", &["a\"; x"])]), 0, Vec::new());
        let text = draw(&dag, b"s\n\"");
        assert!(text.contains(r#"n1 [label="0  a\"; x"];"#), "{text}");
        assert!(text.contains(r#"n0 [label="1  b\\"];"#), "{text}");
        assert!(text.contains("n0 -> n1;"), "{text}");
    }

    #[test]
    fn cycles_are_drawn() {
        let dag = Dag::new(Vec::new(), 0, held(&[("a", &["b"]), ("b", &["a"])]));
        let text = draw(&dag, b"s");
        assert!(text.contains("n0 -> n1;") && text.contains("n1 -> n0;"), "{text}");
    }
}
