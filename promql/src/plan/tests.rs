//! What is shared, and that plans cut by series or by steps give the answer of the whole.

use std::sync::Arc;

use skald_model::{Columns, Labels, QueryRange};

use super::{Op, Plan};
use crate::ast::Expr;
use crate::eval::{
    EvalParams, FragmentFuture, FragmentRunner, QueryContext, QueryOutput, SampleValue, Series, Value, Workers,
    evaluate_fragment, evaluate_plan,
};
use crate::parse::{ParseOptions, parse_expr};
use crate::testing::{MemStorage, block_on};

const MINUTE: i64 = 60_000;

fn parse(query: &str) -> Expr {
    let options = ParseOptions { experimental_functions: true, ..ParseOptions::default() };
    parse_expr(query, &options).unwrap()
}

fn params() -> EvalParams {
    EvalParams::range(10 * MINUTE, 70 * MINUTE, MINUTE)
}

fn plan(query: &str) -> Plan {
    let plan = Plan::of(&parse(query), &params()).unwrap();
    plan.check().unwrap();
    plan
}

/// Counters with resets and gaps, gauges with odd values, in several pods and zones.
fn storage() -> MemStorage {
    let series = (0..60i64).map(|i| {
        let name = if i % 3 == 0 { "gauge" } else { "requests_total" };
        let (pod, zone) = (format!("pod-{}", i % 7), format!("{}", i % 2));
        let id = i.to_string();
        let labels = Labels::from_pairs([("__name__", name), ("id", &id), ("pod", &pod), ("zone", &zone)]);
        let mut columns = Columns::default();
        let mut value = 0.0;
        for sample in 0..300i64 {
            value += 0.1 * ((sample * 7 + i) % 13) as f64;
            if (sample + 5 * i) % 97 == 0 {
                value = 1e15 / 3.0;
            }
            if (sample / 10 + i) % 11 == 0 {
                continue;
            }
            let odd = [f64::NAN, f64::INFINITY, -0.0];
            let shown = if name == "gauge" && (sample + i) % 41 < 3 && i % 2 == 0 {
                odd[((sample + i) % 41) as usize]
            } else {
                value
            };
            columns.push_float(sample * 15_000 + i, shown);
        }
        (labels, columns)
    });
    MemStorage::new(series).with_batch_size(7).with_pending()
}

const QUERIES: [&str; 14] = [
    "sum(rate(requests_total[5m]))",
    "sum by (pod) (requests_total)",
    "avg without (id) (rate(requests_total[3m])) * 2",
    "min(gauge) + max(gauge)",
    "count by (zone) (gauge > 5)",
    "sum by (pod) (rate(requests_total[5m])) / sum by (pod) (rate(requests_total[5m] offset 5m))",
    "sum(rate(requests_total[5m])) / sum(rate(requests_total[5m]))",
    "topk(2, sum by (pod) (abs(gauge)))",
    "max_over_time(sum(requests_total)[10m:1m])",
    "group(gauge @ end())",
    "sum(clamp_max(requests_total, 100)) or avg(gauge)",
    "stddev(requests_total)",
    "requests_total / on (id, pod) group_left requests_total",
    "quantile(0.5, sum by (pod, zone) (gauge))",
];

/// Equal bits, or sums that differ in their last digits where `sums` allows.
#[track_caller]
fn check_equal(query: &str, got: &[Series], want: &[Series], sums: bool) {
    let labels = |series: &[Series]| series.iter().map(|s| s.labels.to_string()).collect::<Vec<_>>();
    assert_eq!(labels(got), labels(want), "{query}");
    for (got, want) in got.iter().zip(want) {
        assert_eq!(got.samples.float_timestamps, want.samples.float_timestamps, "{query}");
        for (a, b) in got.samples.float_values.iter().zip(&want.samples.float_values) {
            let near = sums && (a - b).abs() <= 1e-12 * b.abs();
            assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) || near, "{query}: {a} is not {b}");
        }
    }
}

fn matrix(output: QueryOutput) -> Vec<Series> {
    match output.value {
        Value::Matrix(series) => series,
        other => panic!("not a matrix: {other:?}"),
    }
}

fn whole(query: &str) -> QueryOutput {
    block_on(evaluate_plan(&plan(query), &storage(), &QueryContext::unlimited())).unwrap()
}

#[test]
fn equal_parts_are_planned_once() {
    let count = |query: &str, is: fn(&Op) -> bool| plan(query).nodes.iter().filter(|node| is(&node.op)).count();
    let selects = |query: &str| count(query, |op| matches!(op, Op::Select { .. } | Op::RangeSelect { .. }));
    for (query, want) in [
        ("sum(a) / sum(a)", 1),
        ("sum(a) / sum(b)", 2),
        ("sum(a) / sum by (x) (a)", 2),
        ("sum(a) / sum(a offset 1m)", 2),
        ("rate(a[5m]) / (rate(a[5m]) + rate(b[5m]))", 2),
        ("a + a + a", 1),
        ("a / (a + b)", 2),
        ("(a + b) / (a - (a + b))", 2),
        ("sum(a) + (sum(a) + max(sum(a)))", 1),
        // What streams into different aggregations is read for each.
        ("sum(a) / count(a)", 2),
        ("(sum(a) + sum(b)) / (sum(a) + sum(b))", 2),
        ("sum_over_time(sum(a)[5m:1m]) - sum_over_time(sum(a)[5m:1m])", 1),
        ("topk(3, a) or topk(3, a)", 1),
    ] {
        assert_eq!(selects(query), want, "{query}");
    }
}

#[test]
fn what_is_shared_counts_at_each_place_and_warns_at_the_last() {
    let once = whole("sum(rate(gauge[5m]))");
    let twice = whole("sum(rate(gauge[5m])) + sum(rate(gauge[5m]))");
    assert_eq!(twice.stats.queryable_samples, 2 * once.stats.queryable_samples);
    assert_eq!(twice.stats.samples_read, once.stats.samples_read);
    let query = "sum(rate(gauge[5m])) + sum(rate(gauge[5m]))";
    let infos = twice.annotations.infos(query, 10);
    assert_eq!(infos.len(), 1, "{infos:?}");
    assert!(infos[0].ends_with("(1:33)"), "{infos:?}");
}

#[test]
fn wide_queries_are_planned_in_no_time() {
    // Each operand twice, 6,000 in all: what is quadratic in them would take minutes in a debug build.
    fn tree(names: &[String]) -> String {
        let (left, right) = names.split_at(names.len() / 2);
        if left.is_empty() { names.concat() } else { format!("({} + {})", tree(left), tree(right)) }
    }
    let names: Vec<String> = (0..6_000).map(|i| format!("m{}", i % 3_000)).collect();
    let plan = plan(&tree(&names));
    assert_eq!(plan.nodes.iter().filter(|node| matches!(node.op, Op::Select { .. })).count(), 3_000);
}

struct Threads;

impl Workers for Threads {
    fn threads(&self) -> usize {
        4
    }

    #[expect(clippy::disallowed_methods, reason = "the crate has no pool")]
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        std::thread::spawn(work);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for query in QUERIES {
        let one = whole(query);
        let context = QueryContext::unlimited().with_workers(Arc::new(Threads));
        let source = storage().with_batch_size(40);
        let many = block_on(evaluate_plan(&plan(query), &source, &context)).unwrap();
        assert_eq!(many.stats.samples_read, one.stats.samples_read, "{query}");
        assert_eq!(many.annotations.infos(query, 10), one.annotations.infos(query, 10));
        check_equal(query, &matrix(many), &matrix(one), false);
        assert_eq!(context.bytes(), 0, "{query}: what a query held is given back");
    }
}

/// Evaluates fragments as queries of their own.
struct Elsewhere;

impl FragmentRunner for Elsewhere {
    fn run(&self, fragment: Plan) -> FragmentFuture {
        Box::pin(async move { evaluate_fragment(&fragment, &storage(), &QueryContext::unlimited()).await })
    }
}

#[test]
fn shards_give_the_answer_of_the_whole() {
    for query in QUERIES {
        let want = whole(query);
        let infos = want.annotations.infos(query, 10);
        let want = matrix(want);
        for shards in [1, 2, 5] {
            let sharded = plan(query).sharded(shards);
            sharded.check().unwrap();
            for context in [QueryContext::unlimited(), QueryContext::unlimited().with_fragments(Arc::new(Elsewhere))] {
                let got = block_on(evaluate_plan(&sharded, &storage(), &context)).unwrap();
                assert_eq!(got.annotations.infos(query, 10), infos, "{query}");
                check_equal(query, &matrix(got), &want, true);
            }
        }
    }
    let cut = |query: &str| plan(query).sharded(3).nodes.iter().any(|node| matches!(node.op, Op::Combine { .. }));
    for (query, want) in [
        ("sum(rate(a[5m]))", true),
        ("sum(a * 2 > bool 3)", true),
        ("sum(a + b)", false),
        ("stddev(a)", false),
        ("sum(label_replace(a, \"x\", \"y\", \"\", \"\"))", false),
        ("sum(histogram_quantile(0.9, a))", false),
        ("sum(a * scalar(b))", false),
        ("sum(sum by (x) (a))", true),
    ] {
        assert_eq!(cut(query), want, "{query}");
    }
}

#[test]
fn steps_give_the_answer_of_the_whole() {
    for query in QUERIES {
        let want = matrix(whole(query));
        let mut got: Vec<Series> = Vec::new();
        for steps in [0..1, 1..20, 20..61] {
            let part = Plan::of_steps(&parse(query), &params(), Some(steps)).unwrap();
            for series in matrix(block_on(evaluate_plan(&part, &storage(), &QueryContext::unlimited())).unwrap()) {
                match got.iter_mut().find(|known| known.labels == series.labels) {
                    Some(known) => known.samples.extend_from(&series.samples, QueryRange::ALL),
                    None => got.push(series),
                }
            }
        }
        got.sort_by(|a, b| a.labels.cmp(&b.labels));
        check_equal(query, &got, &want, false);
    }
    assert!(Plan::of_steps(&parse("a"), &params(), Some(60..62)).is_err());
}

#[test]
fn damaged_plans_are_refused() {
    let good = plan("sum by (a) (rate(x[5m])) / 2 + topk(3, y)");
    let refused = |change: fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        plan.check().is_err()
    };
    assert!(refused(|plan| plan.root = 1000));
    assert!(refused(|plan| plan.nodes[0].grid.count = usize::MAX));
    assert!(refused(|plan| plan.nodes[0].grid.step = 0));
    assert!(refused(|plan| {
        let last = plan.nodes.len() - 1;
        plan.nodes[last].inputs[0] = last as u32;
    }));
    assert!(refused(|plan| plan.nodes.swap(0, 1)));
    assert!(refused(|plan| {
        let last = plan.nodes.len() - 1;
        plan.nodes[last].input_spans.clear();
    }));
    assert!(refused(|plan| plan.nodes.iter_mut().for_each(|node| node.op = Op::Time)));
}

#[test]
fn an_instant_vector_keeps_its_order() {
    let query = parse("sort_desc(sum by (pod) (gauge))");
    let plan = Plan::of(&query, &EvalParams::instant(30 * MINUTE)).unwrap();
    let output = block_on(evaluate_plan(&plan.sharded(4), &storage(), &QueryContext::unlimited())).unwrap();
    let Value::Vector(elements) = output.value else { panic!("not a vector") };
    let values = elements.iter().map(|element| match element.value {
        SampleValue::Float(value) => value,
        SampleValue::Histogram(_) => panic!("no histogram was stored"),
    });
    let values: Vec<f64> = values.filter(|value| !value.is_nan()).collect();
    assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
}
