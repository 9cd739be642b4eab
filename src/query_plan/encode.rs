//! A plan as bytes.

use bytes::Bytes;
use skald_promql::ast::{Cardinality, EdgeMode, Span, ValueType, VectorMatching};
use skald_promql::plan::{Counted, Node, Op, Plan, Selector, TimeShift, Yields};
use skald_proto::grpc as messages;
use skald_proto::plan::{encode_node, encode_plan};

use super::{VERSION, names};
use crate::grpc::convert::shard_message;

/// The bytes of a plan.
pub fn encode(plan: &Plan) -> Bytes {
    let places = |(a, b): &(Span, Span)| [a.start, a.end, b.start, b.end].map(|at| at as u64);
    let message = messages::QueryPlan {
        version: VERSION,
        nodes: plan.nodes.iter().map(|node| encode_node(&node_message(node))).collect(),
        root: plan.root,
        instant: plan.instant,
        delayed_name_removal: plan.delayed_name_removal,
        type_and_unit_labels: plan.type_and_unit_labels,
        per_step_stats: plan.per_step_stats,
        twins: plan.twins.iter().flat_map(places).collect(),
    };
    encode_plan(&message).into()
}

fn node_message(node: &Node) -> messages::PlanNode {
    let mut message = messages::PlanNode {
        inputs: node.inputs.clone(),
        input_spans: node.input_spans.iter().flat_map(|span| [span.start as u64, span.end as u64]).collect(),
        grid_start: node.grid.start,
        grid_step: node.grid.step,
        grid_count: node.grid.count as u64,
        value_type: match node.value_type {
            ValueType::Scalar => 1,
            ValueType::String => 2,
            ValueType::Vector => 3,
            ValueType::Matrix => 4,
        },
        span_start: node.span.start as u64,
        span_end: node.span.end as u64,
        ..messages::PlanNode::default()
    };
    message.op = put_op(&node.op, &mut message).to_owned();
    message
}

/// Writes what the operation needs and returns its word.
fn put_op(op: &Op, message: &mut messages::PlanNode) -> &'static str {
    match op {
        Op::Number(value) => {
            message.number_bits = value.to_bits();
            "number"
        }
        Op::Text(text) => {
            message.text.clone_from(text);
            "text"
        }
        Op::Time => "time",
        Op::Select { selector, yields, smoothed } => {
            put_selector(selector, message);
            message.smoothed = *smoothed;
            message.yields = match yields {
                Yields::Value => 0,
                Yields::Timestamp => 1,
                Yields::StartTimestamp => 2,
                Yields::InfoTime => 3,
            };
            "select"
        }
        Op::RangeSelect { selector, range_ms, edges } => {
            put_selector(selector, message);
            message.window = *range_ms;
            message.edges = match edges {
                EdgeMode::Plain => 0,
                EdgeMode::Anchored => 1,
                EdgeMode::Smoothed => 2,
            };
            "range_select"
        }
        Op::Subquery { range_ms, shift, counted } => {
            message.window = *range_ms;
            put_shift(*shift, message);
            put_counted(*counted, message);
            "subquery"
        }
        Op::Repeat => "repeat",
        Op::Negate => "negate",
        Op::Call(function) => {
            message.name = function.name.to_owned();
            "call"
        }
        Op::Absent(labels) => {
            message.labels = labels.as_bytes().to_vec();
            "absent"
        }
        Op::Info(matchers) => {
            message.matchers = matchers.iter().map(Into::into).collect();
            "info"
        }
        Op::Aggregate { op, grouping, without } => {
            message.name = names::aggregation(*op).to_owned();
            (message.names, message.without) = (grouping.clone(), *without);
            "aggregate"
        }
        Op::Combine { op, grouping, without } => {
            message.name = names::aggregation(*op).to_owned();
            (message.names, message.without) = (grouping.clone(), *without);
            "combine"
        }
        Op::Binary { op, return_bool, matching, many_unique } => {
            message.name = names::operator(*op).to_owned();
            (message.return_bool, message.many_unique) = (*return_bool, *many_unique);
            if let Some(matching) = matching {
                put_matching(matching, message);
            }
            "binary"
        }
        Op::Disjoint => "disjoint",
        Op::Unique => "unique",
        Op::Merge => "merge",
    }
}

fn put_selector(selector: &Selector, message: &mut messages::PlanNode) {
    message.matchers = selector.matchers.iter().map(Into::into).collect();
    message.range = Some(selector.range.into());
    put_shift(selector.shift, message);
    message.lookback = selector.lookback_ms;
    put_counted(selector.counted, message);
    message.counts_only = selector.counts_only;
    message.above.clone_from(&selector.above);
    message.query_step = selector.step_ms;
    message.shard = selector.shard.map(shard_message);
}

fn put_shift(shift: TimeShift, message: &mut messages::PlanNode) {
    (message.at, message.offset) = (shift.at, shift.offset);
}

fn put_counted(counted: Counted, message: &mut messages::PlanNode) {
    let (kind, steps, places) = match counted {
        Counted::No => (0, 0, 0),
        Counted::Step(places) => (1, 0, places),
        Counted::EveryStep(steps, places) => (2, steps as u64, places),
    };
    (message.counted, message.counted_steps, message.counted_places) = (kind, steps, places);
}

fn put_matching(matching: &VectorMatching, message: &mut messages::PlanNode) {
    message.names.clone_from(&matching.labels);
    message.include.clone_from(&matching.include);
    message.matching = Some(messages::PlanMatching {
        cardinality: match matching.cardinality {
            Cardinality::OneToOne => 0,
            Cardinality::ManyToOne => 1,
            Cardinality::OneToMany => 2,
            Cardinality::ManyToMany => 3,
        },
        on: matching.on,
        fill_left_bits: matching.fill_left.map(f64::to_bits),
        fill_right_bits: matching.fill_right.map(f64::to_bits),
    });
}
