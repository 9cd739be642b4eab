//! Plans over the wire: the same plan, the same answer; damaged ones are refused.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use skald_model::{Columns, Labels, Span};
use skald_promql::ast::ValueType;
use skald_promql::eval::{
    EvalError, EvalParams, FragmentOutput, Interrupt, PartialGroup, QueryContext, evaluate_fragment, evaluate_plan,
};
use skald_promql::functions::FUNCTIONS;
use skald_promql::parse::{ParseOptions, parse_expr};
use skald_promql::plan::{Op, Plan};
use skald_promql::testing::{MemStorage, block_on};
use skald_proto::grpc as messages;
use skald_proto::plan::{decode_node, decode_plan, encode_node, encode_plan};

use super::fragment::{add_groups, group_messages};
use super::{decode, encode};
use crate::error::ErrorKind;

const MINUTE: i64 = 60_000;

fn storage() -> MemStorage {
    let series = (0..24i64).map(|i| {
        let name = ["m", "n", "h"][(i % 3) as usize];
        let labels = [("__name__", name.to_owned()), ("id", format!("{}", i / 3)), ("pod", format!("p{}", i / 3 % 3))];
        let mut columns = Columns::default();
        for sample in 0..200i64 {
            let (time, value) = (sample * 15_000, ((sample * 7 + i * 13) % 31) as f64 / 3.0);
            if name == "h" {
                columns.push_histogram(time, histogram(value + sample as f64).into());
            } else {
                columns.push_float(time, if (sample + i) % 53 == 0 { f64::NAN } else { value });
            }
        }
        (Labels::from_pairs(labels), columns)
    });
    MemStorage::new(series)
}

fn histogram(value: f64) -> skald_model::FloatHistogram {
    skald_model::FloatHistogram {
        schema: 1,
        count: 3.0 * value,
        sum: value * 0.7,
        positive_spans: vec![Span { offset: -1, length: 2 }],
        positive_buckets: vec![value, 2.0 * value],
        ..skald_model::FloatHistogram::default()
    }
}

/// Every function, aggregation, operator and modifier at least once.
fn queries() -> Vec<String> {
    let mut queries: Vec<String> = Vec::new();
    for function in FUNCTIONS {
        let argument = |i: usize| match function.arg_type(i) {
            Some(ValueType::Vector) if function.name == "info" && i == 1 => "{pod=~\"p.*\"}",
            Some(ValueType::Vector) => "m",
            Some(ValueType::Matrix) => "m[5m]",
            Some(ValueType::String) => "\"pod\"",
            _ => "0.5",
        };
        for count in function.min_args()..=function.max_args().unwrap_or(5).min(6) {
            let args: Vec<_> = (0..count).map(argument).collect();
            queries.push(format!("{}({})", function.name, args.join(", ")));
        }
    }
    for aggregation in ["sum", "avg", "min", "max", "count", "group", "stddev", "stdvar"] {
        for clause in ["", " by (pod)", " without (id)", " by (__name__, pod)"] {
            queries.extend(["m", "h", "rate(m[5m])"].map(|inner| format!("{aggregation}{clause} ({inner})")));
        }
    }
    for aggregation in ["topk(2", "bottomk(2", "limitk(2", "limit_ratio(-0.5", "quantile(0.9", "count_values(\"v\""] {
        queries.push(format!("{aggregation}, m)"));
    }
    for operator in ["+", "-", "*", "/", "%", "^", "atan2", "==", "!=", "<", "<=", ">", ">="] {
        queries.push(format!("m {operator} on (id, pod) n"));
        queries.push(format!("m {operator} 2"));
        queries.push(format!("2 {operator} m"));
        queries.push(format!("m {operator} on (pod) group_left (id) sum by (pod) (n)"));
        queries.push(format!("sum without (id) (m) {operator} ignoring (id) group_right (id) n"));
    }
    for operator in ["==", "<", ">="] {
        queries.push(format!("m {operator} bool on (id) n"));
        queries.push(format!("1 {operator} bool 2"));
    }
    for operator in ["and", "or", "unless"] {
        queries.push(format!("m {operator} on (pod) n"));
        queries.push(format!("m {operator} ignoring (id) n{{id!=\"3\"}}"));
    }
    let others = [
        "-1e300 * 1e300",
        "NaN",
        "-0",
        "\"text é\"",
        "m{pod=~\"p[01]\", id!~\"1|2\"}",
        "m @ 1000 offset -5m",
        "m @ end() offset 1m",
        "sum_over_time(m[10m:30s] @ start())",
        "max_over_time(sum by (pod) (rate(m[5m]))[10m:1m])",
        "sum(m) / sum(m)",
        "m + m + m",
        "rate(m[5m] smoothed)",
        "increase(m[5m] anchored)",
        "h </ 2",
        "h >/ 1",
        "m + on (id) fill (0) n",
        "m + on (id) fill_left (NaN) fill_right (-0) n",
        "timestamp(m)",
        "histogram_quantile(0.9, h)",
        "histogram_quantile(0.9, sum by (pod) (rate(h[5m])))",
        "absent(nothing{a=\"b\"})",
        "label_replace(m, \"x\", \"$1\", \"pod\", \"p(.*)\")",
        "scalar(m) + time()",
        "m[5m]",
        "((m))",
    ];
    queries.extend(others.map(str::to_owned));
    queries
}

/// Plans of all queries, whole and sharded, instant and ranges, and of a part of the steps.
fn plans() -> Vec<(String, Plan)> {
    let options = ParseOptions {
        experimental_functions: true,
        duration_expressions: true,
        extended_selectors: true,
        binary_fill_modifiers: true,
    };
    let mut plans = Vec::new();
    for query in queries() {
        let Ok(expr) = parse_expr(&query, &options) else { panic!("{query} is not parsed") };
        let range = EvalParams { per_step_stats: true, ..EvalParams::range(10 * MINUTE, 40 * MINUTE, MINUTE) };
        let late = EvalParams { delayed_name_removal: true, ..EvalParams::instant(20 * MINUTE) };
        plans.extend(Plan::of(&expr, &EvalParams::instant(30 * MINUTE)).map(|plan| (query.clone(), plan)));
        plans.extend(Plan::of(&expr, &late).map(|plan| (query.clone(), plan)));
        plans.extend(Plan::of_steps(&expr, &range, Some(3..20)).map(|plan| (query.clone(), plan)));
        plans.extend(Plan::of(&expr, &range).map(|plan| (query.clone(), plan.sharded(3))));
    }
    plans
}

/// A plan with the bits of its numbers: two NaN are never equal.
fn exactly(plan: &Plan) -> String {
    let bits: Vec<u64> = plan
        .nodes
        .iter()
        .flat_map(|node| match &node.op {
            Op::Number(number) => vec![number.to_bits()],
            Op::Binary { matching: Some(matching), .. } => {
                [matching.fill_left, matching.fill_right].into_iter().flatten().map(f64::to_bits).collect()
            }
            _ => Vec::new(),
        })
        .collect();
    format!("{plan:?} {bits:?}")
}

fn answer(plan: &Plan) -> String {
    match block_on(evaluate_plan(plan, &storage(), &QueryContext::unlimited())) {
        Ok(output) => format!("{:?} {:?} {:?}", output.value, output.annotations, output.stats),
        Err(error) => error.to_string(),
    }
}

#[test]
fn plans_survive_the_wire_and_answer_the_same() {
    let plans = plans();
    assert!(plans.len() > 600, "{}", plans.len());
    for (query, plan) in plans {
        let back = decode(encode(&plan)).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert_eq!(exactly(&back), exactly(&plan), "{query}");
        assert_eq!(answer(&back), answer(&plan), "{query}");
    }
}

#[test]
fn a_number_keeps_its_bits() {
    let (_, mut plan) = plans().into_iter().find(|(query, _)| query == "NaN").unwrap();
    for bits in [0x7ff0_0000_0000_0002, 0xfff8_0000_dead_beef, 1, 1 << 63] {
        plan.nodes[0].op = Op::Number(f64::from_bits(bits));
        let back = decode(encode(&plan)).unwrap();
        assert!(matches!(back.nodes[0].op, Op::Number(number) if number.to_bits() == bits));
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut messages::QueryPlan), kind: ErrorKind, why: &str) {
    let (_, plan) = plans().into_iter().find(|(query, _)| query == "sum by (pod) (rate(m[5m]))").unwrap();
    let mut message = decode_plan(encode(&plan), 100).unwrap();
    change(&mut message);
    let error = decode(encode_plan(&message).into()).unwrap_err();
    assert!(error.kind == kind && error.message.contains(why), "{error:?}");
}

fn change_node(plan: &mut messages::QueryPlan, id: usize, change: impl FnOnce(&mut messages::PlanNode)) {
    let mut node = decode_node(plan.nodes[id].clone(), 100_000).unwrap();
    change(&mut node);
    plan.nodes[id] = encode_node(&node);
}

#[test]
fn what_is_unknown_or_too_large_is_refused_with_a_reason() {
    use ErrorKind::{BadData, Unimplemented};
    refused(|plan| plan.version = 2, Unimplemented, "does not know plans of version 2");
    refused(
        |plan| change_node(plan, 1, |node| node.name = "rate_of_change".to_owned()),
        Unimplemented,
        "does not know the function \"rate_of_change\", the plan has version 1",
    );
    refused(|plan| change_node(plan, 1, |node| node.op = "dance".to_owned()), Unimplemented, "the operation \"dance\"");
    refused(|plan| change_node(plan, 2, |node| node.name = "mode".to_owned()), Unimplemented, "aggregation \"mode\"");
    refused(|plan| plan.root = 9, BadData, "root is missing");
    refused(|plan| plan.nodes = vec![bytes::Bytes::new(); 500_000], BadData, "more parts than the longest query");
    let matcher = |i: usize| messages::Matcher {
        op: 2,
        name: "a".to_owned(),
        value: format!("(x{{1,500}}){{1,2}}y{{1,900}}{i}"),
    };
    refused(
        |plan| change_node(plan, 0, |node| node.matchers = (0..1000).map(matcher).collect()),
        BadData,
        "its regexes have more than",
    );
    let many = vec![messages::Matcher::default(); 200_000];
    refused(|plan| change_node(plan, 0, |node| node.matchers = many), BadData, "more parts than the longest query");
    let long = "x".repeat(3 << 20);
    refused(|plan| change_node(plan, 0, |node| node.above = long), BadData, "its texts have more than");
    refused(
        |plan| change_node(plan, 0, |node| node.shard = Some(messages::SeriesShard { index: 2, count: 2 })),
        BadData,
        "a shard is not one of its shards",
    );
    assert_eq!(decode(vec![0xff; 100].into()).unwrap_err().kind, BadData);
}

/// Bytes changed at random make a plan that is refused, or one that can be run: never a panic.
#[test]
fn damaged_plans_never_panic() {
    let encoded: Vec<Vec<u8>> = plans().iter().map(|(_, plan)| encode(plan).to_vec()).collect();
    let config = ProptestConfig {
        cases: 3000,
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    let source = storage();
    let outcome = TestRunner::new(config).run(&(0..encoded.len(), damage, any::<bool>()), |(which, damage, cut)| {
        let mut bytes = encoded[which].clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            if cut && byte < 16 {
                bytes.truncate(at.max(1));
            } else {
                bytes[at] = byte;
            }
            if bytes.is_empty() {
                return Ok(());
            }
        }
        if let Ok(plan) = decode(bytes.into()) {
            let context = QueryContext::new(Some(16 << 20), Some(1_000_000), Interrupt::default());
            let _: Result<_, EvalError> = block_on(evaluate_plan(&plan, &source, &context));
        }
        Ok(())
    });
    outcome.unwrap();
}

fn sent(groups: Vec<PartialGroup>) -> (Vec<PartialGroup>, usize) {
    let (mut back, mut messages) = (Vec::new(), 0);
    for message in group_messages(groups) {
        messages += 1;
        add_groups(&mut back, message).unwrap();
    }
    (back, messages)
}

fn bits(groups: &[PartialGroup]) -> String {
    let bits = |column: &[f64]| column.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let group = |group: &PartialGroup| format!("{group:?} {:?} {:?}", bits(&group.first), bits(&group.second));
    groups.iter().map(group).collect()
}

#[test]
fn partial_results_survive_the_wire() {
    for query in ["sum by (pod) (m)", "avg by (id) (h)", "sum({__name__=~\"m|h\"})", "max without (id) (m)"] {
        let options = ParseOptions::default();
        let params = EvalParams::range(10 * MINUTE, 40 * MINUTE, 1000);
        let plan = Plan::of(&parse_expr(query, &options).unwrap(), &params).unwrap();
        let output: FragmentOutput =
            block_on(evaluate_fragment(&plan, &storage(), &QueryContext::unlimited())).unwrap();
        assert!(!output.groups.is_empty());
        let expected = bits(&output.groups);
        assert_eq!(bits(&sent(output.groups).0), expected, "{query}");
    }
}

#[test]
fn long_groups_go_on_in_further_messages() {
    let group = |name: &str, steps: usize| PartialGroup {
        labels: Labels::from_pairs([("a", name)]),
        drop_name: true,
        floats: (0..steps.div_ceil(64) as u64).collect(),
        first: (0..steps).map(|i| i as f64).collect(),
        second: vec![-0.0; steps],
        count: Vec::new(),
        incremental: Vec::new(),
        histograms: vec![(3, None)],
    };
    let groups = vec![group("x", 100_000), group("y", 5), group("z", 40_000), group("empty", 0)];
    let expected = bits(&groups);
    let (back, messages) = sent(groups);
    assert_eq!(bits(&back), expected);
    assert!(messages >= 8, "{messages}");
}

#[test]
fn damaged_partial_results_are_refused() {
    let continued = messages::PartialGroup { continues: true, ..messages::PartialGroup::default() };
    assert!(add_groups(&mut Vec::new(), vec![continued]).is_err());
    let mut wrong = messages::Histogram::from_float(0, &histogram(1.0));
    wrong.positive_spans[0].length = 1 << 30;
    let total = messages::PartialTotal {
        sum: Some(wrong.clone()),
        compensation: Some(wrong),
        ..messages::PartialTotal::default()
    };
    let group = messages::PartialGroup { histograms: vec![total], ..messages::PartialGroup::default() };
    assert!(add_groups(&mut Vec::new(), vec![group]).is_err());
}
