//! How long does the engine take for a range query over samples that are already in memory?
//!
//! Data: counters sampled every 15 s for a day, 10 pods × 200 series, values that grow by an uneven step. Unit: ms per
//! query and ns per series and step. Run with `cargo bench -p skald-promql`; the data has no randomness.

#![allow(missing_docs, reason = "a bench has no API")]
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::time::Instant;

use skald_model::{Columns, Labels, Matcher};
use skald_promql::ast::*;
use skald_promql::eval::{EvalParams, QueryContext, evaluate};
use skald_promql::functions::function;
use skald_promql::testing::{MemStorage, block_on};

const SPAN: Span = Span { start: 0, end: 0 };
const DAY_MS: i64 = 86_400_000;
const SERIES: i64 = 2_000;

fn main() {
    let storage = storage();
    let selector = || VectorSelector {
        name: Some("requests_total".to_owned()),
        matchers: vec![Matcher::equal("__name__", "requests_total")],
        offset: None,
        at: None,
        edges: EdgeMode::Plain,
        span: SPAN,
    };
    let over = |name: &str, range_ms: i64| {
        let range = Duration::Literal(range_ms);
        let window = Expr::Matrix(MatrixSelector { selector: selector(), range, span: SPAN });
        Expr::Call(Call { function: function(name).expect("a known function"), args: vec![window], span: SPAN })
    };
    let aggregate = |op, labels: &[&str], param: Option<f64>, expr| {
        let number = |value| Box::new(Expr::Number(NumberLiteral { value, is_duration: false, span: SPAN }));
        Expr::Aggregate(Aggregate {
            op,
            expr: Box::new(expr),
            param: param.map(number),
            grouping: labels.iter().map(|l| (*l).to_owned()).collect(),
            without: false,
            span: SPAN,
        })
    };
    let divide = |lhs, rhs| {
        let (op, return_bool) = (BinaryOp::Div, false);
        let (lhs, rhs) = (Box::new(lhs), Box::new(rhs));
        Expr::Binary(Binary { op, lhs, rhs, matching: None, return_bool, span: SPAN, op_span: SPAN })
    };
    let vector = || Expr::Vector(selector());
    let queries = [
        ("x", vector()),
        ("rate(x[1m])", over("rate", 60_000)),
        ("rate(x[1h])", over("rate", 3_600_000)),
        ("sum_over_time(x[1h])", over("sum_over_time", 3_600_000)),
        ("sum(x)", aggregate(AggregateOp::Sum, &[], None, vector())),
        ("sum by (pod) (rate(x[5m]))", aggregate(AggregateOp::Sum, &["pod"], None, over("rate", 300_000))),
        ("avg by (pod) (x)", aggregate(AggregateOp::Avg, &["pod"], None, vector())),
        ("max by (pod) (x)", aggregate(AggregateOp::Max, &["pod"], None, vector())),
        ("topk(5, x)", aggregate(AggregateOp::Topk, &[], Some(5.0), vector())),
        ("quantile(0.9, x)", aggregate(AggregateOp::Quantile, &[], Some(0.9), vector())),
        ("x / x", divide(vector(), vector())),
    ];
    for (text, query) in &queries {
        for (steps, step_ms) in [(1, 0), (1_000, DAY_MS / 1_000)] {
            let start = if steps == 1 { DAY_MS - 1 } else { 3_600_000 };
            let params = EvalParams::range(start, DAY_MS - 1, step_ms);
            let context = QueryContext::unlimited();
            let mut best = f64::INFINITY;
            for _ in 0..5 {
                let begin = Instant::now();
                let output = block_on(evaluate(query, &params, &storage, &context)).expect("the query succeeds");
                best = best.min(begin.elapsed().as_secs_f64());
                drop(output);
            }
            let each = best * 1e9 / (SERIES * steps) as f64;
            let peak = context.peak_bytes() >> 10;
            println!("{text:30} {steps:5} steps {:9.2} ms {each:8.1} ns/series/step {peak:8} KiB peak", best * 1e3);
        }
    }
}

fn storage() -> MemStorage {
    MemStorage::new((0..SERIES).map(|i| {
        let (pod, id) = (format!("pod-{}", i % 10), format!("{i}"));
        let labels = Labels::from_pairs([("__name__", "requests_total"), ("pod", &pod), ("id", &id)]);
        let mut columns = Columns::default();
        let mut value = 0.0;
        for sample in 0..DAY_MS / 15_000 {
            value += ((sample * 7 + i) % 13) as f64;
            if (sample + i) % 3_000 == 0 {
                value = 0.0;
            }
            columns.push_float(sample * 15_000 + i % 1_000, value);
        }
        (labels, columns)
    }))
}
