//! Every operator stops soon after it is told to, wherever it is.
#![expect(clippy::disallowed_methods, reason = "how long a query takes to stop is what these tests ask")]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use skald_model::{Columns, FloatHistogram, Labels, Span};

use super::*;
use crate::eval::context::looks;
use crate::parse::{ParseOptions, parse_expr};

/// The promise, and how much slower code without optimisation is. Taken of the CPU time of the query's thread, so that
/// it is the program's and not its neighbours'.
const PROMISE: Duration = Duration::from_millis(50);
const ALLOWANCE: u32 = if cfg!(debug_assertions) { 4 } else { 1 };
/// The memory limit of a query by default, and how long it may take to give so much back, in a million small pieces: nobody
/// waits for that.
const MEMORY_LIMIT: usize = 1 << 30;
const FREEING: Duration = Duration::from_millis(150);
/// When queries are told to stop: in the middle of reading, of working things out, and of giving out what was kept.
const AFTER: [Duration; 2] = if cfg!(debug_assertions) {
    [Duration::from_millis(20), Duration::from_millis(120)]
} else {
    [Duration::from_millis(30), Duration::from_millis(1500)]
};

const SERIES: usize = 1500;
const SAMPLES: i64 = 400;
const STEP_MS: i64 = 15_000;

fn wide_storage() -> MemStorage {
    let histogram = |i: i64| {
        Arc::new(FloatHistogram {
            schema: 3,
            count: 160.0 * i as f64,
            sum: i as f64,
            positive_spans: vec![Span { offset: 0, length: 160 }],
            positive_buckets: vec![i as f64; 160],
            ..FloatHistogram::default()
        })
    };
    let histograms: Vec<_> = (0..SAMPLES).map(histogram).collect();
    let mut all = Vec::new();
    for n in 0..SERIES {
        let (i, group) = (format!("number-{n:05}"), format!("{}", n % 10));
        let le = format!("{}", n % 15);
        let labels = |name: &str| {
            Labels::from_pairs([("__name__", name), ("group", group.as_str()), ("i", i.as_str()), ("le", le.as_str())])
        };
        let mut floats = Columns::default();
        (0..SAMPLES).for_each(|s| floats.push_float(s * STEP_MS, (s * n as i64 % 97) as f64));
        all.push((labels("wide"), floats));
        if n % 10 == 0 {
            let mut native = Columns::default();
            (0..SAMPLES).for_each(|s| native.push_histogram(s * STEP_MS, Arc::clone(&histograms[s as usize])));
            all.push((labels("native"), native));
        }
        if n % 100 == 0 {
            let info = Labels::from_pairs([("__name__", "target_info"), ("instance", i.as_str()), ("job", "j")]);
            let mut ones = Columns::default();
            (0..SAMPLES).for_each(|s| ones.push_float(s * STEP_MS, 1.0));
            all.push((info, ones));
        }
    }
    MemStorage::new(all).with_batch_size(100)
}

/// A query for every operator and kind of function, each with more to do than time to stop.
fn queries() -> Vec<String> {
    let mut all: Vec<String> = [
        "wide",
        "native",
        "wide offset 1m",
        "wide @ end()",
        "wide * 2 > 1",
        "native * 2",
        "-wide",
        "-native",
        "wide + wide",
        "wide + on (group) group_left () sum by (group) (wide)",
        "wide == bool on (i) wide",
        "native + native",
        "native == native",
        "wide and wide",
        "wide or wide * 2",
        "wide unless on (group) native",
        "topk(5, wide)",
        "bottomk by (group) (100, wide)",
        "limitk(1000, wide)",
        "limit_ratio(0.5, wide)",
        "quantile by (group) (0.9, wide)",
        "count_values(\"v\", wide)",
        "count_values(\"v\", native)",
        "sum(native)",
        "avg by (group) (native)",
        "absent(wide)",
        "absent_over_time(wide[1h])",
        "scalar(wide)",
        "vector(scalar(wide)) + wide",
        "timestamp(wide)",
        "label_replace(wide, \"x\", \"$1$1\", \"i\", \"(.*)\")",
        "label_join(wide, \"x\", \"-\", \"i\", \"group\")",
        "info(wide)",
        "day_of_year(wide)",
        "round(wide, 0.1)",
        "clamp(wide, 1, scalar(wide))",
        "histogram_quantile(0.9, wide)",
        "histogram_quantile(0.9, native)",
        "histogram_quantiles(wide, \"q\", 0.1, 0.9)",
        "histogram_fraction(0, 1, native)",
        "histogram_stddev(native)",
        "histogram_count(native)",
        "rate(native[10m])",
        "sum_over_time(native[1h])",
        "max_over_time(wide[10m:1s])",
        "sum_over_time(rate(wide[1m])[1h:10s])",
        "max_over_time(max_over_time(wide[1m:1s])[1m:1s])",
        "sum by (i) (wide) + sum by (i) (wide)",
    ]
    .map(str::to_owned)
    .to_vec();
    for op in ["sum", "avg", "min", "max", "count", "group", "stddev", "stdvar"] {
        all.push(format!("{op} by (group) (wide)"));
    }
    for function in [
        "rate",
        "increase",
        "delta",
        "idelta",
        "irate",
        "resets",
        "changes",
        "deriv",
        "sum_over_time",
        "avg_over_time",
        "min_over_time",
        "count_over_time",
        "last_over_time",
        "stddev_over_time",
        "mad_over_time",
        "present_over_time",
        "ts_of_max_over_time",
    ] {
        all.push(format!("{function}(wide[1h])"));
    }
    all.push("quantile_over_time(0.5, wide[1h])".to_owned());
    all.push("predict_linear(wide[1h], 60)".to_owned());
    all.push("double_exponential_smoothing(wide[1h], 0.5, 0.5)".to_owned());
    for sort in ["sort(wide)", "sort_desc(wide)", "sort_by_label(wide, \"i\")", "wide[100m]"] {
        all.push(sort.to_owned());
    }
    all
}

#[test]
fn every_operator_stops_soon() {
    let storage = Arc::new(wide_storage());
    let (mut stopped, mut ended, mut late, mut slowest) = (0, Vec::new(), Vec::new(), Vec::new());
    for query in queries() {
        let expr = parse_expr(&query, &ParseOptions::ALL).unwrap_or_else(|e| panic!("{query}: {e}"));
        for after in AFTER {
            let interrupt = Interrupt::default();
            let context = QueryContext::new(Some(MEMORY_LIMIT), None, interrupt.clone());
            let (storage, expr) = (Arc::clone(&storage), expr.clone());
            let instant = query.starts_with("sort") || query.ends_with(']');
            let end = (SAMPLES - 1) * STEP_MS;
            let params = if instant { EvalParams::instant(end) } else { EvalParams::range(0, end, 1000) };
            let running = thread::spawn(move || {
                looks::begin();
                let plan = Plan::of(&expr, &params).unwrap();
                let mut env = env::Env::new(&context, &plan);
                let mut root = match build::build(&plan, &*storage, &mut env) {
                    Ok(root) => root,
                    Err(error) => return (Err(error), looks::end(), Duration::ZERO),
                };
                let outcome = block_on(poll_fn(|cx| root.poll(cx, &mut env)));
                let longest = looks::end();
                looks::begin();
                let outcome = outcome.map(|_| ());
                drop((root, env));
                (outcome, longest, looks::end())
            });
            thread::sleep(after);
            interrupt.cancel();
            let (outcome, longest, freeing) = running.join().unwrap();
            match outcome {
                Err(EvalError::Canceled) => stopped += 1,
                Ok(()) => ended.push(query.clone()),
                Err(EvalError::Execution(_) | EvalError::MemoryLimit { .. }) => {}
                Err(error) => panic!("{query}: {error}"),
            }
            let what = format!("{longest:>7.1?}, freeing {freeing:>7.1?}: {query}, {after:?} after its start");
            if longest > PROMISE * ALLOWANCE || freeing > FREEING * ALLOWANCE {
                late.push(what.clone());
            }
            slowest.push((longest.max(freeing), what));
        }
    }
    ended.dedup();
    slowest.sort_by_key(|(longest, _)| std::cmp::Reverse(*longest));
    println!("{stopped} were stopped; ended before that: {ended:?}; the slowest:");
    slowest.iter().take(25).for_each(|(_, what)| println!("{what}"));
    assert!(late.is_empty(), "{}", late.join("\n"));
    assert!(stopped >= 60, "only {stopped} queries were still running");
}
