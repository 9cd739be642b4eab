//! A plan out of the bytes of another process: bounded as a query's text is, then checked.

use std::collections::HashMap;

use bytes::Bytes;
use skald_model::Matcher;
use skald_promql::ast::{Cardinality, EdgeMode, Span, ValueType, VectorMatching};
use skald_promql::functions::function;
use skald_promql::parse::{MAX_BYTES, MAX_NODES as MAX_QUERY_NODES, MAX_REGEX_COST};
use skald_promql::plan::{Counted, Grid, MAX_NODES, Node, Op, Plan, Selector, TimeShift, Yields};
use skald_proto::grpc::{self as messages, MalformedMessage};
use skald_proto::plan::{decode_node, decode_plan};

use super::{MAX_PLAN_BYTES, VERSION, names};
use crate::error::{ErrorKind, ServiceError};
use crate::grpc::{convert, malformed};

/// Fields of all nodes together: more than the operations, labels and matchers of the largest query.
const MAX_FIELDS: usize = 35 * MAX_NODES;
/// Fields of one node: as many labels or matchers as a query has parts.
const MAX_NODE_FIELDS: usize = 2 * MAX_QUERY_NODES;
/// Matchers of all nodes: those of `info` stand twice.
const MAX_MATCHERS: usize = 2 * MAX_QUERY_NODES;
/// Bytes of all texts: some stand at several nodes.
const MAX_TEXT_BYTES: usize = 4 * MAX_BYTES;

/// The plan behind `bytes`, ready to run.
pub fn decode(bytes: Bytes) -> Result<Plan, ServiceError> {
    if bytes.len() > MAX_PLAN_BYTES {
        return Err(too_large(format!("it has {} bytes, more than {MAX_PLAN_BYTES}", bytes.len())));
    }
    let message = decode_plan(bytes, MAX_NODES + MAX_QUERY_NODES).map_err(malformed)?;
    if message.version != VERSION {
        let text = format!(
            "this querier does not know plans of version {}, only of version {VERSION}: queriers are to be updated \
             before query-frontends",
            message.version
        );
        return Err(ServiceError::new(ErrorKind::Unimplemented, "plan-version-unknown", text));
    }
    if message.nodes.len() > MAX_NODES {
        return Err(too_large(format!("it has {} nodes, more than {MAX_NODES}", message.nodes.len())));
    }
    let mut decoder = Decoder { version: message.version, ..Decoder::default() };
    let mut nodes = Vec::with_capacity(message.nodes.len());
    for bytes in message.nodes {
        nodes.push(decoder.node(bytes)?);
    }
    let plan = Plan {
        nodes,
        root: message.root,
        instant: message.instant,
        delayed_name_removal: message.delayed_name_removal,
        type_and_unit_labels: message.type_and_unit_labels,
        per_step_stats: message.per_step_stats,
        twins: twins(&message.twins)?,
    };
    plan.check().map_err(|error| ServiceError::new(ErrorKind::BadData, "invalid-plan", error.to_string()))?;
    Ok(plan)
}

fn too_large(why: String) -> ServiceError {
    ServiceError::new(ErrorKind::BadData, "plan-too-large", format!("the plan is larger than any query's: {why}"))
}

fn broken(why: &'static str) -> ServiceError {
    malformed(MalformedMessage(why))
}

fn twins(places: &[u64]) -> Result<Vec<(Span, Span)>, ServiceError> {
    if !places.len().is_multiple_of(4) {
        return Err(broken("places of a plan do not come by fours"));
    }
    places.chunks_exact(4).map(|four| Ok((span(four[0], four[1])?, span(four[2], four[3])?))).collect()
}

fn span(start: u64, end: u64) -> Result<Span, ServiceError> {
    let at = |at: u64| usize::try_from(at).ok().filter(|at| *at <= MAX_BYTES);
    match (at(start), at(end)) {
        (Some(start), Some(end)) => Ok(Span { start, end }),
        _ => Err(broken("a place lies beyond the longest query")),
    }
}

/// Steps and counts; what is too large for this machine is refused by the plan's check.
fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Decodes node after node and counts what they hold together.
#[derive(Default)]
struct Decoder {
    version: u32,
    fields: usize,
    matchers: usize,
    text_bytes: usize,
    regex_cost: usize,
    /// Regexes compiled already: shards and twins repeat them.
    known: HashMap<(u32, String, String), Matcher>,
}

impl Decoder {
    fn node(&mut self, bytes: Bytes) -> Result<Node, ServiceError> {
        // A field takes a byte or two at least.
        let most = MAX_NODE_FIELDS.min(MAX_FIELDS.saturating_sub(self.fields));
        self.fields += bytes.len().min(35);
        let mut message = decode_node(bytes, most).map_err(malformed)?;
        self.fields += message.names.len() + message.include.len() + message.matchers.len();
        let texts = [&message.text, &message.above, &message.name];
        let names = message.names.iter().chain(&message.include).chain(texts);
        self.text_bytes += names.map(String::len).sum::<usize>() + message.labels.len();
        if self.text_bytes > MAX_TEXT_BYTES {
            return Err(too_large(format!("its texts have more than {MAX_TEXT_BYTES} bytes")));
        }
        if !message.input_spans.len().is_multiple_of(2) {
            return Err(broken("places of a plan's node do not come by twos"));
        }
        let input_spans = message.input_spans.chunks_exact(2).map(|two| span(two[0], two[1]));
        Ok(Node {
            input_spans: input_spans.collect::<Result<_, _>>()?,
            inputs: std::mem::take(&mut message.inputs),
            grid: Grid { start: message.grid_start, step: message.grid_step, count: size(message.grid_count) },
            value_type: match message.value_type {
                1 => ValueType::Scalar,
                2 => ValueType::String,
                3 => ValueType::Vector,
                4 => ValueType::Matrix,
                _ => return Err(broken("a plan's node has an unknown type")),
            },
            span: span(message.span_start, message.span_end)?,
            op: self.op(message)?,
        })
    }

    fn op(&mut self, mut message: messages::PlanNode) -> Result<Op, ServiceError> {
        Ok(match message.op.as_str() {
            "number" => Op::Number(f64::from_bits(message.number_bits)),
            "text" => Op::Text(message.text),
            "time" => Op::Time,
            "select" => Op::Select {
                smoothed: message.smoothed,
                yields: match message.yields {
                    0 => Yields::Value,
                    1 => Yields::Timestamp,
                    2 => Yields::StartTimestamp,
                    3 => Yields::InfoTime,
                    other => return Err(self.unknown(&format!("the yield {other} of a selector"))),
                },
                selector: self.selector(message)?,
            },
            "range_select" => Op::RangeSelect {
                range_ms: message.window,
                edges: match message.edges {
                    0 => EdgeMode::Plain,
                    1 => EdgeMode::Anchored,
                    2 => EdgeMode::Smoothed,
                    other => return Err(self.unknown(&format!("the edges {other} of a range selector"))),
                },
                selector: self.selector(message)?,
            },
            "subquery" => {
                Op::Subquery { range_ms: message.window, shift: shift(&message), counted: self.counted(&message)? }
            }
            "repeat" => Op::Repeat,
            "negate" => Op::Negate,
            "call" => {
                let called = function(&message.name);
                Op::Call(called.ok_or_else(|| self.unknown(&format!("the function {:?}", message.name)))?)
            }
            "absent" => Op::Absent(messages::labels(&message.labels).map_err(malformed)?),
            "info" => Op::Info(self.matchers(std::mem::take(&mut message.matchers))?),
            "aggregate" | "combine" => {
                let op = names::aggregation_named(&message.name);
                let op = op.ok_or_else(|| self.unknown(&format!("the aggregation {:?}", message.name)))?;
                let (grouping, without) = (message.names, message.without);
                match message.op.as_str() {
                    "aggregate" => Op::Aggregate { op, grouping, without },
                    _ => Op::Combine { op, grouping, without },
                }
            }
            "binary" => {
                let op = names::operator_named(&message.name);
                Op::Binary {
                    op: op.ok_or_else(|| self.unknown(&format!("the operator {:?}", message.name)))?,
                    return_bool: message.return_bool,
                    many_unique: message.many_unique,
                    matching: self.matching(message)?,
                }
            }
            "disjoint" => Op::Disjoint,
            "unique" => Op::Unique,
            "merge" => Op::Merge,
            other => return Err(self.unknown(&format!("the operation {other:?}"))),
        })
    }

    fn unknown(&self, what: &str) -> ServiceError {
        let text = format!("this querier does not know {what}, the plan has version {}", self.version);
        ServiceError::new(ErrorKind::Unimplemented, "plan-operation-unknown", text)
    }

    fn selector(&mut self, message: messages::PlanNode) -> Result<Selector, ServiceError> {
        Ok(Selector {
            range: message.range.ok_or_else(|| broken("a selector has no time range"))?.into(),
            shift: shift(&message),
            lookback_ms: message.lookback,
            counted: self.counted(&message)?,
            counts_only: message.counts_only,
            step_ms: message.query_step,
            shard: message.shard.map(convert::shard).transpose().map_err(malformed)?,
            above: message.above,
            matchers: self.matchers(message.matchers)?,
        })
    }

    fn counted(&self, message: &messages::PlanNode) -> Result<Counted, ServiceError> {
        Ok(match message.counted {
            0 => Counted::No,
            1 => Counted::Step(message.counted_places),
            2 => Counted::EveryStep(size(message.counted_steps), message.counted_places),
            other => return Err(self.unknown(&format!("the way {other} of counting samples"))),
        })
    }

    fn matchers(&mut self, matchers: Vec<messages::Matcher>) -> Result<Vec<Matcher>, ServiceError> {
        self.matchers += matchers.len();
        if self.matchers > MAX_MATCHERS {
            return Err(too_large(format!("it has more than {MAX_MATCHERS} matchers")));
        }
        matchers.into_iter().map(|message| self.matcher(message)).collect()
    }

    fn matcher(&mut self, message: messages::Matcher) -> Result<Matcher, ServiceError> {
        self.text_bytes += message.name.len() + message.value.len();
        if self.text_bytes > MAX_TEXT_BYTES {
            return Err(too_large(format!("its texts have more than {MAX_TEXT_BYTES} bytes")));
        }
        // 0 and 1 are `=` and `!=`, which need no automaton.
        if message.op < 2 {
            return Matcher::try_from(message).map_err(malformed);
        }
        let key = (message.op, message.name.clone(), message.value.clone());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let matcher = Matcher::try_from(message).map_err(malformed)?;
        self.regex_cost = self.regex_cost.saturating_add(matcher.regex_cost());
        if self.regex_cost > MAX_REGEX_COST {
            return Err(too_large(format!("its regexes have more than {MAX_REGEX_COST} states")));
        }
        self.known.insert(key, matcher.clone());
        Ok(matcher)
    }

    fn matching(&self, message: messages::PlanNode) -> Result<Option<VectorMatching>, ServiceError> {
        let Some(matching) = message.matching else { return Ok(None) };
        Ok(Some(VectorMatching {
            cardinality: match matching.cardinality {
                0 => Cardinality::OneToOne,
                1 => Cardinality::ManyToOne,
                2 => Cardinality::OneToMany,
                3 => Cardinality::ManyToMany,
                other => return Err(self.unknown(&format!("the cardinality {other}"))),
            },
            labels: message.names,
            on: matching.on,
            include: message.include,
            fill_left: matching.fill_left_bits.map(f64::from_bits),
            fill_right: matching.fill_right_bits.map(f64::from_bits),
        }))
    }
}

fn shift(message: &messages::PlanNode) -> TimeShift {
    TimeShift { at: message.at, offset: message.offset }
}
