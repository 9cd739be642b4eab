//! Plans for people.

use super::{Counted, Node, Op, Plan, Selector};
use crate::ast::EdgeMode;
use crate::eval::{aggregate_name, symbol};

impl Plan {
    /// What a node does, in a few words: `sum by (pod)`, `rate`, `select requests_total{job="a"}[300000 ms]`.
    pub fn describe(&self, node: &Node) -> String {
        match &node.op {
            Op::Number(value) => format!("number {value}"),
            Op::Text(text) => format!("text {text:?}"),
            Op::Time => "time".to_owned(),
            Op::Select { selector, .. } => format!("select {}", describe_selector(selector)),
            Op::RangeSelect { selector, range_ms, edges } => {
                let edges = match edges {
                    EdgeMode::Plain => "",
                    EdgeMode::Anchored => " anchored",
                    EdgeMode::Smoothed => " smoothed",
                };
                format!("select {}[{range_ms} ms]{edges}", describe_selector(selector))
            }
            Op::Subquery { range_ms, .. } => format!("subquery [{range_ms} ms]"),
            Op::Repeat => "same at every step".to_owned(),
            Op::Negate => "-".to_owned(),
            Op::Call(function) => function.name.to_owned(),
            Op::Absent(_) => "absent".to_owned(),
            Op::Info(_) => "info".to_owned(),
            Op::Aggregate { op, grouping, without } => {
                format!("{}{}", aggregate_name(*op), describe_grouping(grouping, *without))
            }
            Op::Combine { op, grouping, without } => {
                format!("combine {}{}", aggregate_name(*op), describe_grouping(grouping, *without))
            }
            Op::Binary { op, .. } => symbol(*op).to_owned(),
            Op::Disjoint | Op::Unique => "check for equal labels".to_owned(),
            Op::Merge => "join halves of series".to_owned(),
        }
    }

    /// Whether the node's samples count at several places of the query: it is computed once for all of them.
    pub fn places(node: &Node) -> u32 {
        match &node.op {
            Op::Select { selector, .. } | Op::RangeSelect { selector, .. } => match selector.counted {
                Counted::Step(times) | Counted::EveryStep(_, times) => times,
                Counted::No => 1,
            },
            _ => 1,
        }
    }
}

fn describe_grouping(grouping: &[String], without: bool) -> String {
    match (without, grouping) {
        (false, []) => String::new(),
        (true, _) => format!(" without ({})", grouping.join(", ")),
        (false, _) => format!(" by ({})", grouping.join(", ")),
    }
}

fn describe_selector(selector: &Selector) -> String {
    let matchers: Vec<String> = selector.matchers.iter().map(ToString::to_string).collect();
    let shard = selector.shard.map_or(String::new(), |s| format!(" shard {} of {}", s.index + 1, s.count));
    format!("{{{}}}{shard}", matchers.join(","))
}
