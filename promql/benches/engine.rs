//! How long does the engine take for a query over samples that are already in memory, and how much does it hold?
//!
//! Workloads: those of Prometheus' BenchmarkRangeQuery family, over 1, 100 and 2,000 series and 1, 1,000 and 10,000
//! steps of 10 s. Data: two days of samples every 10 s, counters that grow by an uneven step and restart now and then,
//! gauges with few distinct values, classic histograms of 10 buckets, native histograms of 20. Many series share one
//! column of samples, so that the data fits a laptop; a source yields 32 series at a time. No randomness.
//!
//! Unit: milliseconds per query (wall clock, best run), CPU nanoseconds per series and step (mean of the runs), largest
//! budget charge.
//!
//! Run with `cargo bench -p skald-promql --bench engine -- [--limit=SECONDS] [WORD…]`: only workloads where every WORD
//! is a part of the query or the shape, such as `2000x1000` for 2,000 series and 1,000 steps. A workload that would
//! take longer than the limit (default 5 s), judged by the one of fewer steps before it, is left out.

#![allow(missing_docs, reason = "a bench has no API")]
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "a bench reports on stdout")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use skald_model::{Columns, FloatHistogram, Labels, METRIC_NAME, MatchOp, QueryRange, Span};
use skald_promql::eval::{EvalParams, QueryContext, evaluate};
use skald_promql::parse::{ParseOptions, parse_expr};
use skald_promql::source::{Queryable, Select, SeriesBatch, SeriesSource, SourceError};
use skald_promql::testing::block_on;

/// Distance of samples and of steps.
const STEP_MS: i64 = 10_000;
const SAMPLES: i64 = 2 * 8_640;
const SERIES: [usize; 3] = [1, 100, 2_000];
const STEPS: [usize; 3] = [1, 1_000, 10_000];
/// Buckets of a classic histogram: a histogram is that many series.
const BUCKETS: usize = 10;
/// Distinct columns of samples.
const PATTERNS: usize = 24;
/// Series of a batch.
const BATCH: usize = 32;

const QUERIES: &[&str] = &[
    // Selectors and rates.
    "counter_total",
    "rate(counter_total[1m])",
    "rate(counter_total[1h])",
    "rate(counter_total[1d])",
    "increase(counter_total[5m])",
    "irate(counter_total[1m])",
    "delta(gauge[5m])",
    // Aggregations.
    "sum(counter_total)",
    "sum by (le) (h_bucket)",
    "sum without (id) (h_bucket)",
    "sum without (le) (h_bucket)",
    "sum(rate(counter_total[5m]))",
    "sum by (le) (rate(h_bucket[5m]))",
    "sum by (id) (counter_total)",
    "avg by (pod) (counter_total)",
    "max by (pod) (gauge)",
    "count(gauge)",
    "stddev(gauge)",
    "topk(1, counter_total)",
    "topk(5, rate(counter_total[5m]))",
    "topk by (pod) (3, gauge)",
    "quantile(0.9, counter_total)",
    "quantile by (pod) (0.9, gauge)",
    "count_values(\"value\", gauge)",
    // Between vectors and scalars.
    "sum(counter_total) / sum(other_total)",
    "sum by (pod) (rate(counter_total[1m])) / sum by (pod) (rate(other_total[1m]))",
    "counter_total - other_total",
    "counter_total - on (id) other_total",
    "counter_total * on (pod) group_left (version) pod_info",
    "counter_total and other_total{id=~\".*[0-4]$\"}",
    "counter_total or other_total{id=~\".*[0-4]$\"}",
    "counter_total unless other_total{id=~\".*[0-4]$\"}",
    "counter_total and gauge > 20",
    "counter_total * 8 + 1",
    "gauge > 20",
    "-counter_total",
    "clamp_max(gauge, 20)",
    "absent(gauge)",
    "absent_over_time(gauge[5m])",
    "timestamp(gauge)",
    "label_replace(counter_total, \"copy\", \"$1\", \"id\", \"(.*)\")",
    "label_join(counter_total, \"both\", \"-\", \"id\", \"pod\")",
    // Over time.
    "sum_over_time(gauge[1h])",
    "avg_over_time(gauge[1h])",
    "max_over_time(gauge[1h])",
    "min_over_time(counter_total[1h])",
    "count_over_time(gauge[1h])",
    "stddev_over_time(gauge[1h])",
    "quantile_over_time(0.9, gauge[1h])",
    "quantile_over_time(0.9, counter_total[1h])",
    "mad_over_time(gauge[1h])",
    "last_over_time(gauge[1h])",
    "present_over_time(gauge[1h])",
    "deriv(gauge[1h])",
    "predict_linear(gauge[1h], 60)",
    "changes(gauge[1h])",
    "resets(counter_total[1h])",
    "max_over_time(rate(counter_total[1m])[10m:30s])",
    "sum_over_time(gauge[10m:10s])",
    // Histograms.
    "histogram_quantile(0.9, h_bucket)",
    "histogram_quantile(0.9, rate(h_bucket[5m]))",
    "histogram_quantile(0.9, sum by (le) (rate(h_bucket[5m])))",
    "histogram_fraction(0, 3, h_bucket)",
    "native",
    "rate(native[1m])",
    "sum(native)",
    "sum(rate(native[1m]))",
    "sum by (pod) (rate(native[5m]))",
    "avg(native)",
    "histogram_quantile(0.9, native)",
    "histogram_quantile(0.9, sum(rate(native[1m])))",
    "histogram_count(rate(native[1m]))",
    "sum_over_time(native[5m])",
];

fn main() {
    let mut words = Vec::new();
    let mut limit = 5.0;
    for arg in std::env::args().skip(1) {
        match arg.strip_prefix("--limit=") {
            Some(seconds) => limit = seconds.parse().expect("--limit= takes seconds"),
            // cargo adds --bench.
            None if arg == "--bench" => {}
            None => words.push(arg),
        }
    }
    let patterns = Patterns::new();
    for series in SERIES {
        let storage = Storage::new(&patterns, series);
        for text in QUERIES {
            let mut seconds_per_step: f64 = 0.0;
            for steps in STEPS {
                let shape = format!("{series}x{steps}");
                if !words.iter().all(|word| text.contains(word.as_str()) || *word == shape) {
                    continue;
                }
                let name = format!("{text} {shape}");
                if seconds_per_step * steps as f64 > limit {
                    println!("{name:80} left out: would take {:.0} s", seconds_per_step * steps as f64);
                    continue;
                }
                let measured = measure(text, steps, &storage);
                if steps > 1 {
                    seconds_per_step = measured.wall / steps as f64;
                }
                let each = measured.cpu * 1e9 / (series * steps) as f64;
                let (wall, peak) = (measured.wall * 1e3, measured.peak_bytes >> 10);
                println!("{name:80} {wall:10.3} ms {each:9.2} ns/series/step {peak:9} KiB peak");
            }
        }
    }
}

struct Measured {
    /// Seconds of the quickest run.
    wall: f64,
    /// CPU seconds of a run, the mean of all runs: the kernel counts in ticks.
    cpu: f64,
    peak_bytes: usize,
}

/// Runs a query again and again for about a second.
fn measure(text: &str, steps: usize, storage: &Storage) -> Measured {
    let query = parse_expr(text, &ParseOptions::ALL).expect("the query is PromQL");
    let end = (SAMPLES - 1) * STEP_MS;
    let start = end - (steps as i64 - 1) * STEP_MS;
    let params = EvalParams::range(start, end, if steps == 1 { 0 } else { STEP_MS });
    let mut best = Measured { wall: f64::INFINITY, cpu: 0.0, peak_bytes: 0 };
    let (mut runs, mut spent) = (0.0, 0.0);
    let cpu = cpu_seconds();
    while runs < 1_000.0 && spent < 1.0 {
        let context = QueryContext::unlimited();
        let begin = Instant::now();
        let output = block_on(evaluate(&query, &params, storage, &context)).expect("the query succeeds");
        let wall = begin.elapsed().as_secs_f64();
        best.wall = best.wall.min(wall);
        best.peak_bytes = context.peak_bytes();
        drop(output);
        (runs, spent) = (runs + 1.0, spent + wall);
    }
    best.cpu = (cpu_seconds() - cpu) / runs;
    best
}

/// What the threads of this process have used of the CPUs.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let nanoseconds = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
}

/// The columns that series share.
struct Patterns {
    counters: Vec<Arc<Columns>>,
    gauges: Vec<Arc<Columns>>,
    /// Bucket `b` of pattern `p` is `buckets[p][b]`.
    buckets: Vec<Vec<Arc<Columns>>>,
    native: Vec<Arc<Columns>>,
    ones: Arc<Columns>,
}

impl Patterns {
    fn new() -> Self {
        let floats = |pattern: usize, value: &mut dyn FnMut(i64) -> f64| {
            let mut columns = Columns::default();
            (0..SAMPLES).for_each(|i| columns.push_float(time(i, pattern), value(i)));
            Arc::new(columns)
        };
        let counter = |pattern: usize, factor: f64| {
            let mut total = 0.0;
            floats(pattern, &mut |i| {
                total += uneven(i, pattern, 13) as f64 + 0.25;
                if (i + 7 * pattern as i64) % 3_000 == 0 {
                    total = 0.0;
                }
                total * factor
            })
        };
        let bucket_factor = |b: usize| (b + 1) as f64;
        Self {
            counters: (0..PATTERNS).map(|p| counter(p, 1.0)).collect(),
            gauges: (0..PATTERNS).map(|p| floats(p, &mut |i| uneven(i, p, 41) as f64)).collect(),
            buckets: (0..PATTERNS / 6).map(|p| (0..BUCKETS).map(|b| counter(p, bucket_factor(b))).collect()).collect(),
            native: (0..PATTERNS / 6).map(native).collect(),
            ones: floats(0, &mut |_| 1.0),
        }
    }
}

/// When sample `i` of a series was taken: not at the steps, and not when others were.
fn time(i: i64, pattern: usize) -> i64 {
    i * STEP_MS - 1 - (pattern as i64 * 397) % 9_000
}

fn uneven(i: i64, pattern: usize, below: i64) -> i64 {
    (((i + pattern as i64) * 2_654_435_761) >> 7).rem_euclid(below)
}

/// A counter of histograms with 20 buckets.
fn native(pattern: usize) -> Arc<Columns> {
    let mut columns = Columns::default();
    let mut counts = [0.0; 20];
    for i in 0..SAMPLES {
        if (i + 7 * pattern as i64) % 3_000 == 0 {
            counts = [0.0; 20];
        }
        for (b, count) in counts.iter_mut().enumerate() {
            *count += uneven(i, pattern + b, 5) as f64;
        }
        let count = counts.iter().sum();
        let histogram = FloatHistogram {
            schema: 3,
            zero_threshold: 1e-128,
            count,
            sum: count * 3.5,
            positive_spans: vec![Span { offset: 3, length: 12 }, Span { offset: 2, length: 8 }],
            positive_buckets: counts.to_vec(),
            ..FloatHistogram::default()
        };
        columns.push_histogram(time(i, pattern), Arc::new(histogram));
    }
    Arc::new(columns)
}

/// So many series of each metric, by the metric's name, in label order.
struct Storage(BTreeMap<String, BTreeMap<Labels, Arc<Columns>>>);

impl Storage {
    fn new(patterns: &Patterns, series: usize) -> Self {
        let mut all = BTreeMap::new();
        for i in 0..series {
            let (pod, id) = (format!("pod-{}", i % 10), format!("{i}"));
            let labels = |name: &str| {
                Labels::from_pairs([
                    ("__name__", name),
                    ("job", "bench"),
                    ("namespace", "n"),
                    ("pod", &pod),
                    ("id", &id),
                ])
            };
            let pick = |columns: &[Arc<Columns>]| Arc::clone(&columns[i % columns.len()]);
            all.insert(labels("counter_total"), pick(&patterns.counters));
            all.insert(labels("other_total"), pick(&patterns.counters[PATTERNS / 2..]));
            all.insert(labels("gauge"), pick(&patterns.gauges));
            all.insert(labels("native"), pick(&patterns.native));
        }
        for i in 0..series.div_ceil(BUCKETS) {
            let id = format!("{i}");
            let buckets = &patterns.buckets[i % patterns.buckets.len()];
            for (b, columns) in buckets.iter().enumerate() {
                let le = if b + 1 == BUCKETS { "+Inf".to_owned() } else { format!("{}", 1 << b) };
                let labels = [("__name__", "h_bucket"), ("job", "bench"), ("id", &id), ("le", &le)];
                all.insert(Labels::from_pairs(labels), Arc::clone(columns));
            }
        }
        for pod in 0..10 {
            let pod = format!("pod-{pod}");
            let labels = [("__name__", "pod_info"), ("pod", &pod), ("version", "v1.2.3")];
            all.insert(Labels::from_pairs(labels), Arc::clone(&patterns.ones));
        }
        let mut metrics: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
        for (labels, columns) in all {
            metrics.entry(labels.metric_name().unwrap_or("").to_owned()).or_default().insert(labels, columns);
        }
        Self(metrics)
    }
}

impl Queryable for Storage {
    fn select(&self, select: Select) -> Box<dyn SeriesSource> {
        let (name, others): (Vec<_>, Vec<_>) =
            select.matchers.iter().partition(|m| m.name() == METRIC_NAME && m.op() == MatchOp::Equal);
        let matching = |labels: &Labels| others.iter().all(|m| m.matches(labels.get(m.name()).unwrap_or("")));
        let series: Vec<_> = self
            .0
            .get(name[0].value())
            .into_iter()
            .flatten()
            .filter(|(labels, _)| matching(labels))
            .map(|(labels, columns)| (labels.clone(), Arc::clone(columns)))
            .collect();
        Box::new(Source { batches: series.chunks(BATCH).map(|batch| Batch::new(batch, select.range)).rev().collect() })
    }
}

/// Batches, the next one last.
struct Source {
    batches: Vec<Batch>,
}

impl SeriesSource for Source {
    fn poll_batch(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Box<dyn SeriesBatch>>, SourceError>> {
        Poll::Ready(Ok(self.batches.pop().map(|batch| Box::new(batch) as Box<dyn SeriesBatch>)))
    }
}

struct Batch {
    series: Vec<(Labels, Arc<Columns>)>,
    bytes: usize,
}

impl Batch {
    /// Charged as if the samples were encoded, two bytes each.
    fn new(series: &[(Labels, Arc<Columns>)], range: QueryRange) -> Self {
        let labels: usize = series.iter().map(|(labels, _)| 64 + labels.as_bytes().len()).sum();
        let samples = usize::try_from((range.max - range.min) / STEP_MS).unwrap_or(0);
        Self { series: series.to_vec(), bytes: labels + 2 * samples * series.len() }
    }
}

impl SeriesBatch for Batch {
    fn len(&self) -> usize {
        self.series.len()
    }

    fn labels(&self, i: usize) -> &Labels {
        &self.series[i].0
    }

    fn decode(&self, i: usize, range: QueryRange, out: &mut Columns) -> Result<(), SourceError> {
        let columns = &self.series[i].1;
        let inside =
            |times: &[i64]| times.partition_point(|t| *t < range.min)..times.partition_point(|t| *t <= range.max);
        let floats = inside(&columns.float_timestamps);
        out.float_timestamps.extend_from_slice(&columns.float_timestamps[floats.clone()]);
        out.float_values.extend_from_slice(&columns.float_values[floats]);
        let histograms = inside(&columns.histogram_timestamps);
        out.histogram_timestamps.extend_from_slice(&columns.histogram_timestamps[histograms.clone()]);
        out.histograms.extend_from_slice(&columns.histograms[histograms]);
        Ok(())
    }

    fn heap_bytes(&self) -> usize {
        self.bytes
    }
}
