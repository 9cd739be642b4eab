//! The engine as its callers see it, on hand-built trees.

mod cancellation;
mod consistency;
mod names;

use skald_model::{Columns, Labels, Matcher};

use super::*;
use crate::ast::*;
use crate::functions::function;
use crate::testing::{MemStorage, block_on};

const SPAN: Span = Span { start: 0, end: 0 };

fn selector(name: &str) -> VectorSelector {
    VectorSelector {
        name: Some(name.to_owned()),
        matchers: vec![Matcher::equal("__name__", name)],
        offset: None,
        at: None,
        edges: EdgeMode::Plain,
        span: SPAN,
    }
}

fn vector(name: &str) -> Expr {
    Expr::Vector(selector(name))
}

fn call(name: &str, args: Vec<Expr>) -> Expr {
    Expr::Call(Call { function: function(name).unwrap(), args, span: SPAN })
}

fn rate(name: &str, range_ms: i64) -> Expr {
    let range = Duration::Literal(range_ms);
    call("rate", vec![Expr::Matrix(MatrixSelector { selector: selector(name), range, span: SPAN })])
}

fn sum_by(labels: &[&str], expr: Expr) -> Expr {
    Expr::Aggregate(Aggregate {
        op: AggregateOp::Sum,
        expr: Box::new(expr),
        param: None,
        grouping: labels.iter().map(|l| (*l).to_owned()).collect(),
        without: false,
        span: SPAN,
    })
}

fn binary(op: BinaryOp, lhs: Expr, rhs: Expr) -> Expr {
    Expr::Binary(Binary {
        op,
        lhs: Box::new(lhs),
        rhs: Box::new(rhs),
        matching: None,
        return_bool: false,
        span: SPAN,
        op_span: SPAN,
    })
}

fn number(value: f64) -> Expr {
    Expr::Number(NumberLiteral { value, is_duration: false, span: SPAN })
}

/// `requests_total{pod, zone}`, a counter every 10 s that grows by 1, 2, 3, … per sample, and `limit{pod}`, constant.
fn storage() -> MemStorage {
    let mut series = Vec::new();
    for pod in 0..20 {
        let mut counter = Columns::default();
        (0..200).for_each(|i| counter.push_float(i * 10_000, (i * (pod + 1)) as f64));
        let name = format!("{pod}");
        let labels = [("__name__", "requests_total"), ("pod", &name), ("zone", ["a", "b", "c"][pod as usize % 3])];
        series.push((Labels::from_pairs(labels), counter));
        let mut limit = Columns::default();
        (0..200).for_each(|i| limit.push_float(i * 10_000, 10.0));
        series.push((Labels::from_pairs([("__name__", "limit"), ("pod", &name)]), limit));
    }
    MemStorage::new(series)
}

fn run(query: &Expr, params: &EvalParams, source: &MemStorage) -> Result<Value, EvalError> {
    let context = QueryContext::unlimited();
    let output = block_on(evaluate(query, params, source, &context))?;
    let value = output.value.clone();
    drop(output);
    assert_eq!(context.bytes(), 0, "everything charged is given back");
    Ok(value)
}

fn matrix(value: Value) -> Vec<(String, Vec<f64>)> {
    let Value::Matrix(series) = value else { panic!("not a matrix: {value:?}") };
    series.into_iter().map(|s| (s.labels.to_string(), s.samples.float_values)).collect()
}

#[test]
fn sum_by_of_a_rate() {
    let query = sum_by(&["zone"], rate("requests_total", 60_000));
    let got = matrix(run(&query, &EvalParams::range(600_000, 900_000, 150_000), &storage()).unwrap());
    // Pods 0, 3, …, 18 grow by 1, 4, …, 19 per 10 s, and so on.
    for ((labels, values), (zone, per_sample)) in got.iter().zip([("a", 70.0), ("b", 77.0), ("c", 63.0)]) {
        assert_eq!(labels, &format!("{{zone={zone:?}}}"));
        assert_eq!(values.len(), 3);
        values.iter().for_each(|v| assert!((v - per_sample / 10.0).abs() < 1e-9, "{labels} {v}"));
    }
    assert_eq!(got.len(), 3);
}

#[test]
fn operators_between_vectors_match_labels() {
    let zoned = sum_by(&["pod"], vector("requests_total"));
    let query = binary(BinaryOp::Div, zoned, vector("limit"));
    let Value::Vector(elements) = run(&query, &EvalParams::instant(100_000), &storage()).unwrap() else {
        panic!("not a vector")
    };
    assert_eq!(elements.len(), 20);
    for element in elements {
        let pod: f64 = element.labels.get("pod").unwrap().parse().unwrap();
        assert!(matches!(element.value, SampleValue::Float(v) if v == pod + 1.0), "{element:?}");
        assert!(element.labels.metric_name().is_none());
    }
}

#[test]
fn many_to_one_has_to_be_explicit() {
    let mut query = binary(BinaryOp::Mul, vector("requests_total"), vector("limit"));
    if let Expr::Binary(binary) = &mut query {
        binary.matching = Some(VectorMatching {
            cardinality: Cardinality::OneToOne,
            labels: vec!["nothing".to_owned()],
            on: true,
            include: Vec::new(),
            fill_left: None,
            fill_right: None,
        });
    }
    let error = run(&query, &EvalParams::instant(100_000), &storage()).unwrap_err();
    assert!(error.to_string().starts_with("found duplicate series for the match group {} on the right"), "{error}");
    assert_eq!(error.error_type(), "execution");
}

#[test]
fn batches_and_waiting_change_nothing() {
    let query = binary(
        BinaryOp::Add,
        sum_by(&["pod"], rate("requests_total", 45_000)),
        binary(BinaryOp::Mul, number(2.0), vector("limit")),
    );
    let params = EvalParams::range(0, 1_900_000, 7_000);
    let want = format!("{:?}", run(&query, &params, &storage()).unwrap());
    for batch_size in [1, 3, 7, 1000] {
        let source = storage().with_batch_size(batch_size);
        assert_eq!(format!("{:?}", run(&query, &params, &source).unwrap()), want);
        assert_eq!(format!("{:?}", run(&query, &params, &source.with_pending()).unwrap()), want);
    }
}

#[test]
fn the_edges_of_windows_are_left_open() {
    let at = |time| run(&vector("limit"), &EvalParams { lookback_ms: 5_000, ..EvalParams::instant(time) }, &storage());
    let count = |value: Value| match value {
        Value::Vector(elements) => elements.len(),
        other => panic!("not a vector: {other:?}"),
    };
    assert_eq!(count(at(4_999).unwrap()), 20);
    assert_eq!(count(at(5_000).unwrap()), 0);
    assert_eq!(count(at(10_000).unwrap()), 20);
}

#[test]
fn limits_name_themselves() {
    let query = binary(BinaryOp::Add, vector("requests_total"), number(1.0));
    let params = EvalParams::range(0, 1_900_000, 1_000);
    let with = |memory, samples| {
        let context = QueryContext::new(memory, samples, Interrupt::default());
        block_on(evaluate(&query, &params, &storage(), &context)).map(|_| ())
    };
    assert!(with(None, None).is_ok());
    let error = with(Some(50_000), None).unwrap_err();
    assert!(matches!(error, EvalError::MemoryLimit { limit: 50_000, .. }), "{error}");
    assert!(error.to_string().contains("memory limit of 50000 bytes"), "{error}");
    let error = with(None, Some(1_000)).unwrap_err();
    assert_eq!(error.to_string(), "query processing would load too many samples into memory in query execution");
}

#[test]
fn labels_a_query_makes_count_as_held() {
    let storage = storage();
    let run = |text: &str| {
        let expr = crate::parse::parse_expr(text, &crate::parse::ParseOptions::default()).unwrap();
        let context = QueryContext::new(Some(1_000_000), None, Interrupt::default());
        block_on(evaluate(&expr, &EvalParams::instant(1_990_000), &storage, &context)).map(|_| ())
    };
    let relabel = |times: usize| format!("label_replace(limit, 'x', '{}', 'pod', '.*')", "0123456789".repeat(times));
    run(&relabel(1000)).unwrap();
    // 20 series with a label of 100 kB.
    let error = run(&relabel(10_000)).unwrap_err();
    assert!(matches!(error, EvalError::MemoryLimit { .. }), "{error}");
    // So do those that only tell whether a label set comes twice.
    let error = run(&format!("count({})", relabel(10_000))).unwrap_err();
    assert!(matches!(error, EvalError::MemoryLimit { .. }), "{error}");
    run(&format!("count({})", relabel(1000))).unwrap();
}

#[test]
fn a_large_buffer_is_not_kept_for_one_step() {
    let context = QueryContext::new(None, None, Interrupt::default());
    let plan = Plan::of(&vector("limit"), &EvalParams::instant(0)).unwrap();
    let mut env = env::Env::new(&context, &plan);
    let large = env.points(1_000_000, SPAN).unwrap();
    env.recycle(large);
    let one = env.points(1, SPAN).unwrap();
    assert!(one.values.capacity() < 1000);
    let again = env.points(900_000, SPAN).unwrap();
    assert_eq!(again.values.capacity(), 1_000_000);
}

#[test]
fn an_interrupt_stops_the_query() {
    for (stop, want) in [(Interrupt::cancel as fn(&Interrupt), "canceled"), (Interrupt::time_out, "timeout")] {
        let interrupt = Interrupt::default();
        stop(&interrupt);
        let context = QueryContext::new(None, None, interrupt);
        let error = block_on(evaluate(&vector("limit"), &EvalParams::instant(0), &storage(), &context)).unwrap_err();
        assert_eq!(error.error_type(), want);
    }
}

#[test]
fn statistics_count_samples_per_step() {
    let source = storage();
    let stats = |query: &Expr, params: EvalParams| {
        let params = EvalParams { per_step_stats: true, ..params };
        block_on(evaluate(query, &params, &source, &QueryContext::unlimited())).unwrap().stats
    };
    let params = EvalParams::range(600_000, 620_000, 10_000);
    // Windows of 60 s hold 6 samples of each of 20 series, and neighbours share 5 of them.
    let got = stats(&rate("requests_total", 60_000), params.clone());
    assert_eq!((got.queryable_samples, got.queryable_samples_per_step), (360, vec![120, 120, 120]));
    assert_eq!((got.series_read, got.samples_read), (20, 160));
    // A step-invariant part is read once but used at every step.
    let fixed = Expr::Vector(VectorSelector { at: Some(AtModifier::Timestamp(500_000)), ..selector("limit") });
    let got = stats(&fixed, params.clone());
    assert_eq!((got.queryable_samples, got.queryable_samples_per_step), (60, vec![20, 20, 20]));
    // A subquery's own samples do not count, its points do, where they are used.
    let subquery = Expr::Subquery(Subquery {
        expr: Box::new(vector("limit")),
        range: Duration::Literal(60_000),
        step: Some(Duration::Literal(30_000)),
        offset: None,
        at: None,
        span: SPAN,
    });
    let got = stats(&call("sum_over_time", vec![subquery]), params);
    assert_eq!(got.queryable_samples_per_step, vec![40, 40, 40]);
}

/// The deepest trees the parser lets through are evaluated on a small stack, in debug builds too.
#[test]
fn deep_queries_fit_the_stack() {
    let deepest = crate::parse::MAX_DEPTH - 20;
    let chain = |op: &str, term: &str| vec![term; deepest].join(op);
    let nested = |open: &str, inner: &str, close: &str| open.repeat(deepest) + inner + &close.repeat(deepest);
    let queries = [
        chain(" + ", "limit"),
        chain(" or ", "limit"),
        chain(" + ", "time()"),
        nested("abs(", "limit", ")"),
        nested("(", "limit", ")"),
        nested("-", "limit", ""),
        nested("sum(", "limit", ")"),
        nested("label_replace(", "limit", r#", "a", "b", "", "")"#),
        nested("1 + ", "limit", ""),
        nested("max_over_time(", "limit", "[10s:10s])"),
        nested("scalar(vector(", "1", "))")[..].to_owned(),
    ];
    let run_all = move || {
        for text in &queries {
            let parsed = crate::parse::parse_expr(text, &crate::parse::ParseOptions::ALL);
            let Ok(query) = parsed else { continue };
            let result = run(&query, &EvalParams::instant(100_000), &storage());
            assert!(result.is_ok(), "{:.40}: {}", text, result.unwrap_err());
        }
    };
    let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(run_all).unwrap();
    thread.join().unwrap();
}
