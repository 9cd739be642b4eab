//! One query, many ways to the same answer: as a range query, as an instant query per step, from batches of any size,
//! from sources that make it wait.

use std::sync::Arc;

use skald_model::{Columns, FloatHistogram, Labels, stale_nan};

use crate::eval::{EvalError, EvalParams, QueryContext, SampleValue, Value, evaluate};
use crate::parse::{ParseOptions, parse_expr};
use crate::testing::{MemStorage, block_on};

const QUERIES: &[&str] = &[
    "counter",
    "gauge offset 30s",
    "gauge @ 100 + on (pod) group_left gauge",
    "{__name__=~\"counter|gauge\"}",
    "rate(counter[1m])",
    "increase(counter[45s] offset 10s)",
    "irate(counter[2m])",
    "delta(gauge[1m])",
    "idelta(gauge[1m])",
    "deriv(gauge[2m])",
    "predict_linear(gauge[2m], 60)",
    "changes(gauge[1m]) + resets(counter[1m])",
    "sum_over_time(gauge[1m])",
    "avg_over_time(gauge[1m])",
    "stddev_over_time(gauge[1m])",
    "quantile_over_time(0.3, gauge[1m])",
    "mad_over_time(gauge[1m])",
    "max_over_time(gauge[1m]) - min_over_time(gauge[1m])",
    "last_over_time(gauge[1m]) == first_over_time(gauge[1m])",
    "count_over_time({__name__=~\".+\", zone=\"a\"}[1m])",
    "double_exponential_smoothing(gauge[2m], 0.3, 0.4)",
    "absent(gauge{pod=\"1\"} > 5)",
    "absent_over_time(gauge{pod=\"9\"}[30s])",
    "sum by (zone) (counter)",
    "avg without (pod) (gauge)",
    "min(gauge) or max(counter)",
    "count by (zone) (gauge > 0)",
    "stddev(gauge)",
    "quantile(0.9, gauge)",
    "quantile by (zone) (scalar(count(gauge)) / 20, gauge)",
    "topk(2, gauge)",
    "bottomk by (zone) (1, gauge)",
    "limitk(3, gauge)",
    "limit_ratio(0.5, gauge)",
    "count_values(\"value\", floor(gauge))",
    "group by (zone) (counter)",
    "counter / on (pod, zone) gauge",
    "counter * on (zone) group_left sum by (zone) (gauge)",
    "gauge > bool 3",
    "gauge > 3 and counter > 100",
    "gauge > 3 or counter > 100",
    "gauge unless on (zone) (counter > 200)",
    "gauge + fill(1) (gauge > 3)",
    "gauge > 3 + time() % 7",
    "clamp(gauge, 1, 4) + round(gauge, 0.5)",
    "scalar(hour()) + minute(counter)",
    "timestamp(gauge) + timestamp(gauge + 1)",
    "label_replace(gauge, \"zone\", \"$1$1\", \"zone\", \"(.*)\")",
    "label_join(gauge, \"both\", \"-\", \"pod\", \"zone\")",
    "max_over_time(rate(counter[30s])[2m:20s])",
    "sum_over_time((gauge > 3)[1m:7s] offset 13s)",
    "avg_over_time(sum by (zone) (gauge)[1m:10s] @ 200)",
    "histogram_quantile(0.7, sum by (le) (rate(bucket[1m])))",
    "histogram_fraction(0, 2, bucket)",
    "latency",
    "rate(latency[1m])",
    "sum by (zone) (latency)",
    "avg(rate(latency[1m]))",
    "sum_over_time(latency[1m])",
    "histogram_quantile(0.9, latency)",
    "histogram_count(latency) + histogram_sum(latency) + histogram_avg(latency) + histogram_stddev(latency)",
    "latency * 2 - latency",
    "latency </ 2",
    "increase(counter[1m] smoothed)",
    "rate(counter[1m] anchored)",
    "gauge smoothed",
    "rate(latency[1m] smoothed)",
    "info(gauge, {__name__=\"zone_info\"})",
    "scalar(gauge{pod=\"1\"}) + vector(time())",
    "-gauge ^ 2 % 3",
];

/// The parameters of every way, in the mode that drops names at once and in the one that drops them at the end.
fn modes(params: EvalParams) -> [EvalParams; 2] {
    let delayed = EvalParams { delayed_name_removal: true, ..params.clone() };
    [EvalParams { lookback_ms: 25_000, ..params }, delayed]
}

/// Uneven series: counters with resets, gauges with gaps, stale markers and NaN, native and classic histograms.
fn storage() -> MemStorage {
    // A fixed linear congruential generator: the same data in every run.
    let mut state = 12_345_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut series = Vec::new();
    for pod in 0..7 {
        let (pod_name, zone) = (pod.to_string(), ["a", "b", "c"][pod % 3]);
        let labels = |name: &str| {
            Labels::from_pairs([("__name__", name), ("pod", &pod_name), ("zone", zone), ("instance", zone)])
        };
        let (mut counter, mut gauge, mut latency) = (Columns::default(), Columns::default(), Columns::default());
        let mut buckets = [Columns::default(), Columns::default(), Columns::default()];
        let (mut value, mut counts) = (0.0, [0.0; 3]);
        for i in 0..60_i64 {
            let time = i * 10_000 + random(3_000) as i64;
            if random(25) == 0 {
                (value, counts) = (0.0, [0.0; 3]);
            }
            value += random(20) as f64;
            counts.iter_mut().for_each(|count| *count += random(5) as f64);
            if random(8) != 0 {
                counter.push_float(time, value);
            }
            match random(12) {
                0 => gauge.push_float(time, stale_nan()),
                1 => gauge.push_float(time, f64::NAN),
                2 => {}
                _ => gauge.push_float(time, random(100) as f64 / 10.0),
            }
            let mut cumulative = 0.0;
            for (bucket, count) in buckets.iter_mut().zip(counts) {
                cumulative += count;
                bucket.push_float(time, cumulative);
            }
            if random(6) != 0 {
                let histogram = FloatHistogram {
                    schema: random(2) as i32,
                    count: cumulative,
                    sum: cumulative * 1.5,
                    positive_spans: vec![skald_model::Span { offset: 0, length: 3 }],
                    positive_buckets: counts.to_vec(),
                    ..FloatHistogram::default()
                };
                latency.push_histogram(time, Arc::new(histogram));
            }
        }
        series.extend([(labels("counter"), counter), (labels("gauge"), gauge), (labels("latency"), latency)]);
        for (le, columns) in ["1", "2", "+Inf"].into_iter().zip(buckets) {
            let labels = Labels::from_pairs([("__name__", "bucket"), ("pod", &pod_name), ("le", le)]);
            series.push((labels, columns));
        }
    }
    for (i, zone) in ["a", "b"].into_iter().enumerate() {
        let mut info = Columns::default();
        (0..30).for_each(|step| info.push_float(step * 17_000 + i as i64, 1.0));
        let labels = [("__name__", "zone_info"), ("instance", zone), ("region", "north")];
        series.push((Labels::from_pairs(labels), info));
    }
    MemStorage::new(series)
}

/// A value as text, every bit of it: labels, then the time and value of each point.
type Points = Vec<(String, i64, String)>;

fn run(text: &str, params: &EvalParams, storage: &MemStorage) -> Result<Points, EvalError> {
    let query = parse_expr(text, &ParseOptions::ALL).unwrap_or_else(|e| panic!("{text}: {e}"));
    let output = block_on(evaluate(&query, params, storage, &QueryContext::unlimited()))?;
    let float = |value: f64| if value.is_nan() { "NaN".to_owned() } else { format!("{:x}", value.to_bits()) };
    let mut points = Points::new();
    match &output.value {
        Value::Scalar { timestamp, value } => points.push(("{}".to_owned(), *timestamp, float(*value))),
        Value::String { .. } => {}
        Value::Vector(elements) => points.extend(elements.iter().map(|element| {
            let value = match &element.value {
                SampleValue::Float(value) => float(*value),
                SampleValue::Histogram(histogram) => format!("{histogram:?}"),
            };
            (element.labels.to_string(), element.timestamp, value)
        })),
        Value::Matrix(series) => {
            for one in series {
                let (labels, samples) = (one.labels.to_string(), &one.samples);
                let floats = samples.float_timestamps.iter().zip(&samples.float_values);
                points.extend(floats.map(|(time, value)| (labels.clone(), *time, float(*value))));
                let histograms = samples.histogram_timestamps.iter().zip(&samples.histograms);
                points.extend(histograms.map(|(time, h)| (labels.clone(), *time, format!("{h:?}"))));
            }
        }
    }
    points.sort();
    Ok(points)
}

#[test]
fn a_range_query_is_its_instant_queries() {
    let storage = storage();
    let (start, end, step) = (40_000, 640_000, 37_000);
    for text in QUERIES {
        for params in modes(EvalParams::range(start, end, step)) {
            let in_range = run(text, &params, &storage);
            let mut one_by_one = Ok(Points::new());
            for time in (start..=end).step_by(step as usize) {
                let instant = EvalParams { start_ms: time, end_ms: time, step_ms: 0, ..params.clone() };
                match (run(text, &instant, &storage), &mut one_by_one) {
                    (Ok(points), Ok(all)) => all.extend(points),
                    (Err(error), Ok(_)) => one_by_one = Err(error),
                    (_, Err(_)) => {}
                }
            }
            match (in_range, one_by_one) {
                (Ok(in_range), Ok(mut one_by_one)) => {
                    one_by_one.sort();
                    assert_eq!(in_range, one_by_one, "{text}");
                    assert!(!in_range.is_empty() || text.contains("absent"), "{text} finds nothing");
                }
                // A range query may refuse series of equal labels that never meet at one step.
                (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string(), "{text}"),
                (Err(_), _) if !params.delayed_name_removal => {}
                (in_range, one_by_one) => panic!("{text}: {in_range:?} but {:?}", one_by_one.err()),
            }
        }
    }
}

#[test]
fn batches_and_waiting_change_no_bit() {
    let storage = storage();
    for text in QUERIES {
        for params in modes(EvalParams::range(40_000, 640_000, 53_000)) {
            let want = run(text, &params, &storage).map_err(|e| e.to_string());
            for source in [
                storage.clone().with_batch_size(1),
                storage.clone().with_batch_size(3).with_pending(),
                storage.clone().with_batch_size(1_000).with_pending(),
            ] {
                assert_eq!(run(text, &params, &source).map_err(|e| e.to_string()), want, "{text}");
            }
        }
    }
}
