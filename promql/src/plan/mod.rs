//! A query resolved against its range: what is computed, on which steps, from which selects.
//!
//! [`Plan::of`] turns a checked expression into nodes: durations, `@` and offsets become times, step-invariant parts
//! and equal aggregations become one node each. A plan says everything about its evaluation; where it came from is in
//! the spans only. [`crate::eval::evaluate`] runs it. Plans travel between processes, so whoever receives one checks it
//! with [`Plan::check`] first; running a checked plan cannot panic.
//!
//! [`shard`] cuts a plan by series, [`Plan::of_steps`] by time.
//!
//! Absent on purpose: sources, budgets, time that passes.

mod check;
pub mod describe;
pub mod grid;
mod planner;
pub mod shard;
#[cfg(test)]
mod tests;

use skald_model::{Labels, Matcher, QueryRange};

pub use self::check::MAX_NODES;
pub use self::grid::{Grid, TimeShift};
use crate::ast::{AggregateOp, BinaryOp, EdgeMode, Span, ValueType, VectorMatching};
use crate::functions::Function;

/// A query ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Inputs stand before the nodes that use them; a node may be used by several.
    pub nodes: Vec<Node>,
    /// The node whose value is the answer.
    pub root: NodeId,
    /// Whether it is an instant query: one step, and a vector keeps its order.
    pub instant: bool,
    /// Metric names are dropped at the end of the evaluation instead of at once.
    pub delayed_name_removal: bool,
    /// `__type__` and `__unit__` are dropped with the metric name.
    pub type_and_unit_labels: bool,
    /// Statistics are wanted per step, too.
    pub per_step_stats: bool,
    /// Parts of the query that are computed once for several places: what is said of the first place holds for the
    /// second, too.
    pub twins: Vec<(Span, Span)>,
}

/// Index of a node in its plan.
pub type NodeId = u32;

/// One part of a query.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// To the values of which nodes.
    pub inputs: Vec<NodeId>,
    /// Where each input stands in the query, parentheses included.
    pub input_spans: Vec<Span>,
    /// The steps at which the node has values.
    pub grid: Grid,
    /// What it yields.
    pub value_type: ValueType,
    /// Where it stands in the query.
    pub span: Span,
}

/// What a [`Node`] does.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
    /// `time()`
    Time,
    /// An instant selector.
    Select {
        /// What is read.
        selector: Selector,
        /// What of it is yielded.
        yields: Yields,
        /// `smoothed`: values between two samples are interpolated.
        smoothed: bool,
    },
    /// A range selector.
    RangeSelect {
        /// What is read.
        selector: Selector,
        /// Window length, milliseconds; the window is left-open.
        range_ms: i64,
        /// `anchored` or `smoothed`.
        edges: EdgeMode,
    },
    /// A window over the values of a vector on a grid of its own.
    Subquery {
        /// Window length, milliseconds; the window is left-open.
        range_ms: i64,
        /// `@` and `offset`.
        shift: TimeShift,
        /// How its points count as samples.
        counted: Counted,
    },
    /// The value of one step at every step.
    Repeat,
    /// A minus sign before a scalar or a vector.
    Negate,
    /// A function of its arguments.
    Call(&'static Function),
    /// `absent` and `absent_over_time`, and the labels of what they yield.
    Absent(Labels),
    /// `info`: the second input yields the times of the info series' samples.
    Info(Vec<Matcher>),
    /// An aggregation; its parameter is the second input.
    Aggregate {
        /// Which.
        op: AggregateOp,
        /// Labels of the clause.
        grouping: Vec<String>,
        /// Whether the clause is `without`.
        without: bool,
    },
    /// An aggregation over the partial results of shards, its inputs: equal aggregations of disjoint series.
    Combine {
        /// Which.
        op: AggregateOp,
        /// Labels of the clause.
        grouping: Vec<String>,
        /// Whether the clause is `without`.
        without: bool,
    },
    /// A binary operator; the types of its inputs tell of which kind.
    Binary {
        /// Which.
        op: BinaryOp,
        /// Whether a comparison yields 0 or 1 instead of filtering.
        return_bool: bool,
        /// How two vectors are matched.
        matching: Option<VectorMatching>,
        /// No two series of the "many" side have equal labels once their names are dropped, and none comes in halves.
        many_unique: bool,
    },
    /// Refuses series of equal labels that meet at a step.
    Disjoint,
    /// Refuses series of equal labels.
    Unique,
    /// Joins the halves of series.
    Merge,
}

/// What a selector reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Selector {
    /// Conditions on the labels.
    pub matchers: Vec<Matcher>,
    /// Every sample that can be looked at.
    pub range: QueryRange,
    /// `@` and `offset`.
    pub shift: TimeShift,
    /// How far back an instant selector looks, or `anchored` and `smoothed` look outside their windows; exclusive.
    pub lookback_ms: i64,
    /// How its samples count.
    pub counted: Counted,
    /// Of native histograms only counts and sums are used.
    pub counts_only: bool,
    /// The function or aggregation right above, or empty.
    pub above: String,
    /// The query's step in milliseconds.
    pub step_ms: i64,
    /// Only the series of one shard.
    pub shard: Option<SeriesShard>,
}

/// One of `count` disjoint parts of all series: see [`SeriesShard::holds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeriesShard {
    /// Which, from 0.
    pub index: u32,
    /// Of how many; at least 1.
    pub count: u32,
}

impl SeriesShard {
    /// Whether a series with these labels is in this shard: its stable hash, the one Prometheus keeps for labels,
    /// modulo the number of shards, as Mimir's queries do it.
    pub fn holds(&self, labels: &Labels) -> bool {
        labels.stable_hash() % u64::from(self.count.max(1)) == u64::from(self.index)
    }
}

/// What an instant selector yields of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Yields {
    /// Its value.
    Value,
    /// Its own time in seconds: `timestamp(selector)`.
    Timestamp,
    /// Its start timestamp in seconds, 0 if it has none: `start_timestamp(selector)`.
    StartTimestamp,
    /// Its own time in seconds, the name kept: `info`. Native histograms are left as they are.
    InfoTime,
}

/// How the samples a selector uses count in the statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counted {
    /// Not: inside a subquery, whose points are counted where they are used.
    No,
    /// Each at its step, so many times: the expression stands at so many places.
    Step(u32),
    /// Each at every one of so many steps, so many times: the expression is evaluated once for all of them.
    EveryStep(usize, u32),
}

impl Plan {
    /// Bytes that the plan and the tree it was made of hold, about: what a query costs before it has read anything.
    pub fn heap_bytes(&self) -> usize {
        // A state of an automaton has some 50 bytes, and selects have copies of their own.
        let matcher = |m: &Matcher| 2 * (size_of::<Matcher>() + m.name().len() + m.value().len() + 50 * m.regex_cost());
        let matchers = |all: &[Matcher]| all.iter().map(matcher).sum::<usize>();
        let texts = |all: &[String]| all.iter().map(|text| 2 * (size_of::<String>() + text.len())).sum::<usize>();
        let of_op = |op: &Op| match op {
            Op::Select { selector, .. } | Op::RangeSelect { selector, .. } => matchers(&selector.matchers),
            Op::Info(selection) => matchers(selection),
            Op::Text(text) => 2 * text.len(),
            Op::Aggregate { grouping, .. } | Op::Combine { grouping, .. } => texts(grouping),
            _ => 0,
        };
        self.nodes.iter().map(|node| 2 * size_of::<Node>() + of_op(&node.op)).sum()
    }

    /// The node of an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The node whose value is the answer.
    pub fn root(&self) -> &Node {
        self.node(self.root)
    }

    /// Steps of the query, as far as samples count at them: a fragment may have one step and count at all of them.
    pub(crate) fn counted_steps(&self) -> usize {
        self.nodes.iter().map(Node::counted_steps).fold(self.root().grid.count, usize::max)
    }

    /// How often each node is used as an input, the root once more.
    pub(crate) fn uses(&self) -> Vec<u32> {
        let mut uses = vec![0; self.nodes.len()];
        uses[self.root as usize] += 1;
        self.nodes.iter().flat_map(|node| &node.inputs).for_each(|id| uses[*id as usize] += 1);
        uses
    }
}

impl Node {
    /// Steps that each of the node's samples counts at, if it is evaluated once for all of them.
    fn counted_steps(&self) -> usize {
        let counted = match &self.op {
            Op::Select { selector, .. } | Op::RangeSelect { selector, .. } => selector.counted,
            Op::Subquery { counted, .. } => *counted,
            _ => Counted::No,
        };
        if let Counted::EveryStep(steps, _) = counted { steps } else { 0 }
    }
}
