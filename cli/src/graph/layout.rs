//! Columns for the nodes of a graph.
//!
//! The idea is that of `git log --graph`: going down from child to parent, a column is a line that
//! waits for one parent; all children of that parent lead into it, and where two lines wait for the
//! same parent they meet in the left one. Unlike there, a line stays in its column otherwise, so it
//! is easy to follow, and a line to a far column takes two rows whatever the distance. Columns are
//! bounded; parents that find none free are counted instead of drawn, so that a merge of a thousand
//! parents stays readable.

use super::Dag;

/// A merge opens no new line beyond this many columns.
const COLUMNS_MAX: usize = 24;
/// Beyond this many, a node without a line that leads to it gets none that leads on either.
const OWN_COLUMNS_MAX: usize = 32;

/// A node and the lines around it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The node's column.
    pub(super) column: usize,
    /// Columns of the lines that stand beside the node.
    pub(super) passing: Vec<usize>,
    /// Columns of the lines that lead down from the node; its own too, if the line goes on.
    pub(super) edges: Vec<usize>,
    /// Column of a line beside the node that goes over to the node's column below it, because
    /// both wait for the same parent.
    pub(super) joining: Option<usize>,
    /// Parents for which no column was free.
    pub(super) undrawn: usize,
    /// Whether the node would seem to be a parent of the one above, and is not.
    pub(super) gap: bool,
}

/// Gives every node of the graph its row.
pub(super) fn rows(dag: &Dag) -> Vec<Row> {
    let mut columns = Columns::default();
    dag.nodes.iter().enumerate().map(|(at, node)| columns.place(at, &node.parents)).collect()
}

/// No node: marks a column that is still seen in a node's row and free below it.
const LEAVING: usize = usize::MAX;

/// For each column the node that its line waits for.
#[derive(Default)]
struct Columns {
    waiting: Vec<Option<usize>>,
    /// The column of the last node, if no line leads down from it.
    ended: Option<usize>,
}

impl Columns {
    fn place(&mut self, node: usize, parents: &[usize]) -> Row {
        let lead = self.waiting_for(node);
        let column = lead.unwrap_or_else(|| self.free(0));
        let gap = lead.is_none() && self.ended == Some(column);
        self.reserve(column, None);
        let passing = self.taken();
        let joining = self.joining(column, parents);
        let mut edges = Vec::new();
        let mut undrawn = 0;
        for parent in parents {
            match self.edge(column, *parent) {
                Some(edge) => edges.push(edge),
                None => undrawn += 1,
            }
        }
        if let Some(from) = joining {
            self.reserve(from, None);
        }
        edges.sort_unstable();
        self.ended = edges.is_empty().then_some(column);
        Row { column, passing, edges, joining, undrawn, gap }
    }

    /// Moves a line on the right that waits for one of `parents` into `column`: the first parent's,
    /// or another's where no parent would begin a new line in `column`. The column that it leaves
    /// stays reserved until [`Columns::place`] is done with the node.
    fn joining(&mut self, column: usize, parents: &[usize]) -> Option<usize> {
        let places: Vec<Option<usize>> =
            parents.iter().map(|parent| self.waiting_for(*parent)).collect();
        let on_the_right = |place: &Option<usize>| place.is_some_and(|place| place > column);
        let candidates = if places.contains(&None) { 1 } else { places.len() };
        let chosen = places.iter().take(candidates).position(on_the_right)?;
        if column >= OWN_COLUMNS_MAX {
            return None;
        }
        self.reserve(column, Some(parents[chosen]));
        let from = places[chosen]?;
        self.reserve(from, Some(LEAVING));
        Some(from)
    }

    fn waiting_for(&self, node: usize) -> Option<usize> {
        self.waiting.iter().position(|waiting| *waiting == Some(node))
    }

    /// The column of the line from a node in `column` to `parent`.
    fn edge(&mut self, column: usize, parent: usize) -> Option<usize> {
        if let Some(taken) = self.waiting_for(parent) {
            return Some(taken);
        }
        let own = Some(column).filter(|own| self.is_free(*own) && *own < OWN_COLUMNS_MAX);
        let near = || Some(self.free(column)).filter(|near| *near < COLUMNS_MAX);
        let any = || Some(self.free(0)).filter(|any| *any < COLUMNS_MAX);
        let free = own.or_else(near).or_else(any)?;
        self.reserve(free, Some(parent));
        Some(free)
    }

    /// The first free column from `from` on.
    fn free(&self, from: usize) -> usize {
        (from..).find(|column| self.is_free(*column)).expect("columns do not end")
    }

    fn is_free(&self, column: usize) -> bool {
        self.waiting.get(column).is_none_or(|waiting| waiting.is_none())
    }

    fn reserve(&mut self, column: usize, node: Option<usize>) {
        if column >= self.waiting.len() {
            self.waiting.resize(column + 1, None);
        }
        self.waiting[column] = node;
    }

    fn taken(&self) -> Vec<usize> {
        (0..self.waiting.len()).filter(|column| !self.is_free(*column)).collect()
    }
}
