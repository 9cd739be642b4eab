//! Runs Prometheus' own PromQL scripts (`shared/promqltest/*.test`), with the two extra checks of Prometheus' runner:
//! an instant query gives the same with `@` on every selector at any time, and in the middle of a range query.
//!
//! Prints the pass rate per file and what failed, by kind. Skipped when the scripts are not there. `tests/scripts` has
//! scripts of our own for what those leave out.

#![expect(clippy::disallowed_methods, reason = "the scripts are files, and the test has no simulated disk")]
#![allow(clippy::print_stdout, reason = "the report is what the test is run for")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use skald_model::histogram::CUSTOM_BUCKETS_SCHEMA;
use skald_model::{Columns, FloatHistogram, Labels, ResetHint, Span};
use skald_promql::ast::{AtModifier, Expr};
use skald_promql::eval::{Annotations, EvalParams, Interrupt, QueryContext, SampleValue, Value, evaluate};
use skald_promql::parse::{ParseOptions, parse_expr};
use skald_promql::script::{Command, Eval, EvalTime, Expected, TextMatch, parse_script};
use skald_promql::series_description::SequenceValue;
use skald_promql::testing::{MemStorage, block_on};

const SAMPLE_LIMIT: usize = 10_000;

#[test]
fn scripts_of_prometheus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/promqltest");
    if !folder.is_dir() {
        println!("skipped: no scripts at {}", folder.display());
        return;
    }
    run_folder(&folder);
}

#[test]
fn scripts_of_our_own() {
    run_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts"));
}

fn run_folder(folder: &Path) {
    let entries = std::fs::read_dir(folder).expect("a readable folder");
    let mut scripts: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|extension| extension == "test"));
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts in {}", folder.display());
    let mut failed = Vec::new();
    let (mut passed_in_all, mut all) = (0, 0);
    for script in scripts {
        let name = script.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        let text = std::fs::read_to_string(&script).expect("a readable script");
        let (passed, failures) = run_script(&text);
        println!("{name}: {passed} of {} pass", passed + failures.len());
        let mut by_kind: BTreeMap<&str, Vec<&Failure>> = BTreeMap::new();
        failures.iter().for_each(|failure| by_kind.entry(failure.kind).or_default().push(failure));
        for (kind, failures) in by_kind {
            println!("  {kind}: {}", failures.len());
            failures.iter().for_each(|f| println!("    line {}: {}\n      {}", f.line, f.query, f.detail));
        }
        passed_in_all += passed;
        all += passed + failures.len();
        if !failures.is_empty() {
            failed.push(format!("{name}: {} fail", failures.len()));
        }
    }
    println!("all: {passed_in_all} of {all} pass");
    assert!(failed.is_empty(), "{failed:?}");
}

/// An evaluation that did not yield what the script says.
struct Failure {
    line: usize,
    query: String,
    kind: &'static str,
    detail: String,
}

fn run_script(text: &str) -> (usize, Vec<Failure>) {
    let commands = match parse_script(text) {
        Ok(commands) => commands,
        Err(error) => {
            let failure = Failure { line: error.line, query: String::new(), kind: "script", detail: error.message };
            return (0, vec![failure]);
        }
    };
    let mut storage = MemStorage::default();
    let (mut passed, mut failures) = (0, Vec::new());
    for command in commands {
        match command {
            Command::Clear => storage.clear(),
            Command::Load(load) => {
                for (labels, columns) in load.columns().expect("loadable series") {
                    append(storage.series_mut(&labels), columns);
                }
            }
            Command::Eval(eval) => match check(&storage, &eval) {
                Ok(()) => passed += 1,
                Err((kind, detail)) => {
                    let detail = detail.chars().take(600).collect();
                    failures.push(Failure { line: eval.line, query: eval.query.clone(), kind, detail });
                }
            },
        }
    }
    (passed, failures)
}

/// Adds samples to a series as a head does: histograms learn whether they follow a reset.
fn append(series: &mut Columns, more: Columns) {
    let starts = more.float_starts.into_iter().chain(std::iter::repeat(0));
    for ((time, value), start) in more.float_timestamps.into_iter().zip(more.float_values).zip(starts) {
        if series.float_timestamps.last().is_none_or(|last| *last < time) {
            series.push_float(time, value);
            series.start_last_float(start);
        }
    }
    let starts = more.histogram_starts.into_iter().chain(std::iter::repeat(0));
    for ((time, histogram), start) in more.histogram_timestamps.into_iter().zip(more.histograms).zip(starts) {
        if series.histogram_timestamps.last().is_some_and(|last| *last >= time) {
            continue;
        }
        let before = series.histograms.last().zip(series.histogram_timestamps.last());
        let continues = before.is_some_and(|(before, before_time)| {
            let interrupted = series.float_timestamps.iter().any(|t| before_time < t && *t < time);
            !interrupted && same_chunk(before, &histogram)
        });
        let reset_hint = match histogram.reset_hint {
            ResetHint::Gauge => ResetHint::Gauge,
            _ if continues => ResetHint::NotReset,
            // A chunk's first histogram does not tell why the chunk was begun.
            _ => ResetHint::Unknown,
        };
        series.push_histogram(time, Arc::new(FloatHistogram { reset_hint, ..FloatHistogram::clone(&histogram) }));
        series.start_last_histogram(start);
    }
}

/// Whether a head keeps both in one chunk: the same layout, and no reset between them.
fn same_chunk(before: &FloatHistogram, after: &FloatHistogram) -> bool {
    let not_fallen = |spans_before: &[Span], counts_before: &[f64], spans: &[Span], counts: &[f64]| {
        let now = by_index(spans, counts);
        by_index(spans_before, counts_before).iter().all(|(index, count)| now.get(index).unwrap_or(&0.0) >= count)
    };
    before.reset_hint != ResetHint::Gauge
        && after.reset_hint != ResetHint::Reset
        && !before.is_stale()
        && before.schema == after.schema
        && before.zero_threshold == after.zero_threshold
        && before.custom_values == after.custom_values
        && after.count >= before.count
        && after.zero_count >= before.zero_count
        && not_fallen(&before.positive_spans, &before.positive_buckets, &after.positive_spans, &after.positive_buckets)
        && not_fallen(&before.negative_spans, &before.negative_buckets, &after.negative_spans, &after.negative_buckets)
}

/// The populated buckets.
fn by_index(spans: &[Span], counts: &[f64]) -> BTreeMap<i32, f64> {
    let mut index = 0;
    let mut counts = counts.iter();
    let mut all = BTreeMap::new();
    for span in spans {
        index += span.offset;
        for count in counts.by_ref().take(span.length as usize) {
            if *count != 0.0 {
                all.insert(index, *count);
            }
            index += 1;
        }
    }
    all
}

type Checked = Result<(), (&'static str, String)>;

fn params(time: EvalTime) -> EvalParams {
    let params = match time {
        EvalTime::Instant(at) => EvalParams::instant(at),
        EvalTime::Range(range) => EvalParams::range(range.start_ms, range.end_ms, range.step_ms),
    };
    EvalParams { delayed_name_removal: true, ..params }
}

fn run(storage: &MemStorage, query: &Expr, params: &EvalParams) -> Result<(Value, Annotations), String> {
    let context = QueryContext::new(None, Some(SAMPLE_LIMIT), Interrupt::default());
    let output = block_on(evaluate(query, params, storage, &context)).map_err(|e| e.to_string())?;
    let (value, annotations) = (output.value.clone(), output.annotations.clone());
    drop(output);
    assert_eq!(context.bytes(), 0, "what a query holds is given back with its answer");
    Ok((value, annotations))
}

fn parse(query: &str) -> Result<Expr, String> {
    parse_expr(query, &ParseOptions::ALL).map_err(|e| e.to_string())
}

fn check(storage: &MemStorage, eval: &Eval) -> Checked {
    let result = parse(&eval.query).and_then(|query| run(storage, &query, &params(eval.time)).map(|got| (query, got)));
    if let Some(expected) = &eval.fail {
        return match result {
            Ok(_) => Err(("error", "it succeeds".to_owned())),
            Err(error) if expected.matches(&error) => Ok(()),
            Err(error) => Err(("error", format!("{error:?} is not {expected:?}"))),
        };
    }
    let (query, (value, annotations)) = result.map_err(|error| ("error", error))?;
    check_annotations("warning", annotations.warnings(&eval.query, 100), &eval.warn, eval.no_warn)?;
    check_annotations("info", annotations.infos(&eval.query, 100), &eval.info, eval.no_info)?;
    check_value(&value, eval)?;
    if let EvalTime::Instant(time) = eval.time {
        check_in_range(storage, eval, &query, time, &value)?;
        check_at_modifier(storage, eval, query, time, &value)?;
    }
    Ok(())
}

fn check_annotations(kind: &'static str, got: Vec<String>, expected: &[TextMatch], none: bool) -> Checked {
    if none && !got.is_empty() {
        return Err(("annotation", format!("{kind} not expected: {got:?}")));
    }
    if let Some(missing) = expected.iter().find(|e| !got.iter().any(|text| e.matches(text))) {
        return Err(("annotation", format!("no {kind} like {missing:?} in {got:?}")));
    }
    let extra = got.iter().find(|text| !expected.is_empty() && !expected.iter().any(|e| e.matches(text)));
    extra.map_or(Ok(()), |text| Err(("annotation", format!("{kind} not expected: {text}"))))
}

/// A point with its time, and whether its reset hint counts.
#[derive(Debug, Clone)]
enum Point {
    Float(f64),
    Histogram(Arc<FloatHistogram>, bool),
}

type Points = Vec<(i64, Point)>;

fn check_value(value: &Value, eval: &Eval) -> Checked {
    let expected = match (&eval.expected, value) {
        (Expected::Scalar(want), Value::Scalar { value, .. }) if floats_equal(*value, *want) => return Ok(()),
        (Expected::String(want), Value::String { value, .. }) if value == want => return Ok(()),
        (Expected::Series(series), Value::Vector(_) | Value::Matrix(_)) => series,
        (want, got) => return Err(("value", format!("got {got:?}, want {want:?}"))),
    };
    let (start, step) = match (eval.time, eval.range_vector) {
        (_, Some(range)) | (EvalTime::Range(range), None) => (range.start_ms, range.step_ms),
        (EvalTime::Instant(time), None) => (time, 0),
    };
    let expected: Vec<(Labels, Points)> = expected
        .iter()
        .map(|series| {
            let points = series.values.iter().enumerate().filter_map(|(i, value)| {
                let point = match value {
                    SequenceValue::Omitted => return None,
                    SequenceValue::Float(value) => Point::Float(*value),
                    SequenceValue::Histogram { histogram, hint_given } => {
                        Point::Histogram(Arc::clone(histogram), *hint_given)
                    }
                };
                Some((start + i as i64 * step, point))
            });
            (series.labels.clone(), points.collect::<Points>())
        })
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let got = points_of(value);
    if matches!(value, Value::Matrix(_)) && !got.is_sorted_by(|a, b| a.0 < b.0) {
        return Err(("order", "a matrix ascends by labels".to_owned()));
    }
    let order = |series: &[(Labels, Points)]| series.iter().map(|(labels, _)| labels.to_string()).collect::<Vec<_>>();
    if eval.ordered && order(&got) != order(&expected) {
        return Err(("order", format!("got {:?}, want {:?}", order(&got), order(&expected))));
    }
    compare(got, expected)
}

fn points_of(value: &Value) -> Vec<(Labels, Points)> {
    match value {
        Value::Scalar { timestamp, value } => vec![(Labels::empty(), vec![(*timestamp, Point::Float(*value))])],
        Value::String { .. } => Vec::new(),
        Value::Vector(elements) => elements
            .iter()
            .map(|element| {
                let point = match &element.value {
                    SampleValue::Float(value) => Point::Float(*value),
                    SampleValue::Histogram(histogram) => Point::Histogram(Arc::clone(histogram), true),
                };
                (element.labels.clone(), vec![(element.timestamp, point)])
            })
            .collect(),
        Value::Matrix(series) => series
            .iter()
            .map(|series| {
                let samples = &series.samples;
                let floats = samples.float_timestamps.iter().zip(&samples.float_values);
                let histograms = samples.histogram_timestamps.iter().zip(&samples.histograms);
                let mut points: Points = floats.map(|(time, value)| (*time, Point::Float(*value))).collect();
                points.extend(histograms.map(|(time, h)| (*time, Point::Histogram(Arc::clone(h), true))));
                points.sort_by_key(|(time, _)| *time);
                (series.labels.clone(), points)
            })
            .collect(),
    }
}

fn compare(mut got: Vec<(Labels, Points)>, mut want: Vec<(Labels, Points)>) -> Checked {
    got.sort_by(|a, b| a.0.cmp(&b.0));
    want.sort_by(|a, b| a.0.cmp(&b.0));
    let labels = |series: &[(Labels, Points)]| series.iter().map(|(l, _)| l.to_string()).collect::<Vec<_>>();
    if labels(&got) != labels(&want) {
        return Err(("series", format!("got {:?}, want {:?}", labels(&got), labels(&want))));
    }
    for ((labels, got), (_, want)) in got.iter().zip(&want) {
        let same = |((got_time, got), (want_time, want)): (&(i64, Point), &(i64, Point))| {
            got_time == want_time && points_equal(got, want)
        };
        if got.len() != want.len() || !got.iter().zip(want).all(same) {
            return Err(("value", format!("{labels}: got {got:?}, want {want:?}")));
        }
    }
    Ok(())
}

fn points_equal(got: &Point, want: &Point) -> bool {
    match (got, want) {
        (Point::Float(got), Point::Float(want)) => floats_equal(*got, *want),
        (Point::Histogram(got, _), Point::Histogram(want, hint_given)) => {
            let same_buckets = |a: (&[Span], &[f64]), b: (&[Span], &[f64])| {
                let (a, b) = (by_index(a.0, a.1), by_index(b.0, b.1));
                a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && floats_equal(*a.1, *b.1))
            };
            let positive = same_buckets(
                (&got.positive_spans, &got.positive_buckets),
                (&want.positive_spans, &want.positive_buckets),
            );
            let negative = same_buckets(
                (&got.negative_spans, &got.negative_buckets),
                (&want.negative_spans, &want.negative_buckets),
            );
            positive
                && negative
                && got.schema == want.schema
                && (got.schema != CUSTOM_BUCKETS_SCHEMA || got.custom_values == want.custom_values)
                && got.zero_threshold == want.zero_threshold
                && floats_equal(got.zero_count, want.zero_count)
                && floats_equal(got.count, want.count)
                && floats_equal(got.sum, want.sum)
                && (!hint_given || got.reset_hint == want.reset_hint)
        }
        _ => false,
    }
}

fn floats_equal(a: f64, b: f64) -> bool {
    const EPSILON: f64 = 1e-6;
    if (a.is_nan() && b.is_nan()) || a == b {
        return true;
    }
    let (sum, difference) = (a.abs() + b.abs(), (a - b).abs());
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return difference < EPSILON * f64::MIN_POSITIVE;
    }
    difference / sum.min(f64::MAX) < EPSILON
}

fn mentions(query: &str, words: &[&str]) -> bool {
    let query = query.to_ascii_lowercase();
    words.iter().any(|word| query.contains(word))
}

/// The instant query is the middle step of a range query.
fn check_in_range(storage: &MemStorage, eval: &Eval, query: &Expr, time: i64, value: &Value) -> Checked {
    let depends_on_range = mentions(&eval.query, &["range(", "step(", "start(", "end("]);
    if eval.ordered || depends_on_range || matches!(value, Value::Matrix(_) | Value::String { .. }) {
        return Ok(());
    }
    let params = EvalParams { delayed_name_removal: true, ..EvalParams::range(time - 60_000, time + 60_000, 60_000) };
    let (in_range, _) = run(storage, query, &params).map_err(|e| ("as a range query", e))?;
    let mut middle = points_of(&in_range);
    middle.iter_mut().for_each(|(_, points)| points.retain(|(at, _)| *at == time));
    middle.retain(|(_, points)| !points.is_empty());
    compare(without_hints(middle), without_hints(points_of(value))).map_err(|(_, text)| ("as a range query", text))
}

/// The instant query gives the same at any time once every selector is fixed to its own.
fn check_at_modifier(storage: &MemStorage, eval: &Eval, mut query: Expr, time: i64, value: &Value) -> Checked {
    const TIME_DEPENDENT: &[&str] = &[
        "time(",
        "timestamp(",
        "predict_linear(",
        "minute(",
        "hour(",
        "day_of_",
        "days_in_",
        "month(",
        "year(",
        "start(",
        "end(",
        "range(",
        "step(",
    ];
    if mentions(&eval.query, TIME_DEPENDENT) || matches!(value, Value::String { .. }) {
        return Ok(());
    }
    fix_time(&mut query, time);
    let times = if time == 0 { vec![-1_000, 0, 1_000] } else { vec![-10 * time, 0, time / 5, time, 10 * time] };
    for at in times {
        let params = EvalParams { delayed_name_removal: true, ..EvalParams::instant(at) };
        let (fixed, _) = run(storage, &query, &params).map_err(|e| ("with @", e))?;
        let range_vector = matches!(value, Value::Matrix(_));
        let timeless = |value: &Value| {
            let mut points = without_hints(points_of(value));
            if !range_vector {
                points.iter_mut().flat_map(|(_, points)| points).for_each(|(at, _)| *at = 0);
            }
            points
        };
        compare(timeless(&fixed), timeless(value)).map_err(|(_, text)| ("with @", format!("at {at}: {text}")))?;
    }
    Ok(())
}

fn without_hints(mut series: Vec<(Labels, Points)>) -> Vec<(Labels, Points)> {
    for (_, points) in &mut series {
        for (_, point) in points {
            if let Point::Histogram(_, hint_given) = point {
                *hint_given = false;
            }
        }
    }
    series
}

/// Puts `@ time` on every selector and subquery that has none, except inside a subquery that has its own.
fn fix_time(expr: &mut Expr, time: i64) {
    let at = AtModifier::Timestamp(time);
    match expr {
        Expr::Vector(selector) => {
            selector.at.get_or_insert(at);
        }
        Expr::Matrix(matrix) => {
            matrix.selector.at.get_or_insert(at);
        }
        Expr::Subquery(subquery) => {
            subquery.at.get_or_insert(at);
        }
        Expr::Paren(paren) => fix_time(&mut paren.expr, time),
        Expr::Unary(unary) => fix_time(&mut unary.expr, time),
        Expr::Binary(binary) => {
            fix_time(&mut binary.lhs, time);
            fix_time(&mut binary.rhs, time);
        }
        Expr::Aggregate(aggregate) => {
            fix_time(&mut aggregate.expr, time);
            if let Some(param) = &mut aggregate.param {
                fix_time(param, time);
            }
        }
        Expr::Call(call) => {
            // The second argument of `info` is not evaluated: it only holds matchers.
            let evaluated = if call.function.name == "info" { 1 } else { call.args.len() };
            call.args.iter_mut().take(evaluated).for_each(|arg| fix_time(arg, time));
        }
        Expr::Number(_) | Expr::String(_) => {}
    }
}
