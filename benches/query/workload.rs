//! What is asked.

use crate::data::{INTERVAL, MANY_INTERVAL, MAX_STEPS, SIZES, Times};
use crate::server::Query;

/// Which summary a workload counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Prometheus' BenchmarkRangeQuery family: the bars on every workload and on the mean.
    Family,
    /// 100,000 series: bars of their own.
    Many,
    /// Selection by regular expression among 100,000 series.
    Regex,
}

/// One query of the benchmark.
#[derive(Debug, Clone)]
pub struct Workload {
    pub section: Section,
    /// Its name without sizes.
    pub name: &'static str,
    /// Series of one metric; steps.
    pub series: usize,
    pub steps: i64,
    pub query: Query,
    /// Whether VictoriaMetrics answers the same thing.
    pub common: bool,
}

/// Names and expressions; `X` is the number of series.
const FAMILY: [(&str, &str, bool); 12] = [
    ("selector", "a_X", false),
    ("rate[1m]", "rate(a_X[1m])", false),
    ("rate[1d]", "rate(a_X[1d])", false),
    ("sum", "sum(a_X)", true),
    ("sum by (le)", "sum by (le) (h_X)", true),
    ("ratio of sums", "sum(a_X) / sum(b_X)", true),
    ("vector - vector", "a_X - b_X", false),
    ("and regex", "a_X and b_X{l=~\".*[0-4]$\"}", false),
    ("topk", "topk(5, a_X)", false),
    ("histogram_quantile", "histogram_quantile(0.9, h_X)", false),
    ("subquery", "max_over_time(rate(a_X[1m])[5m:1m])", false),
    ("native sum(rate)", "sum(rate(nh_X[1m]))", false),
];

/// Steps of the queries over 100,000 series: an hour of samples less the first windows.
const MANY_STEPS: i64 = 220;

const MANY_QUERIES: [(&str, &str, i64); 4] = [
    ("sum(rate)", "sum(rate(requests_total[5m]))", MANY_STEPS),
    ("sum by (namespace)(rate)", "sum by (namespace) (rate(requests_total[5m]))", MANY_STEPS),
    ("instant sum(rate)", "sum(rate(requests_total[5m]))", 1),
    ("instant sum", "sum(requests_total)", 1),
];

/// Shapes of regular expressions: each has its own way through the postings.
const REGEX: [(&str, &str); 7] = [
    ("literal", "app-017-00000c35-00017"),
    ("set", "app-017-.*-00017|app-018-.*-00018"),
    ("set of literals", "app-001-9e3779b1-00001|app-002-3c6ef363-00002"),
    ("prefix", "app-017-.*"),
    ("suffix", ".*-00017"),
    ("contains", ".*-0001.*"),
    ("general", "app-0[0-9]7-.*[05]"),
];

/// Everything that is measured, in order. `quick` leaves out what takes long.
pub fn workloads(times: Times, quick: bool) -> Vec<Workload> {
    let mut all = Vec::new();
    for (name, expr, common) in FAMILY {
        for series in SIZES {
            for steps in [1, 1_000, MAX_STEPS] {
                if quick && series as i64 * steps > 1_000_000 {
                    continue;
                }
                let end = times.end - INTERVAL;
                let expr = expr.replace('X', &series.to_string());
                let query = Query { expr, start: end - (steps - 1) * INTERVAL, end, step: INTERVAL };
                all.push(Workload { section: Section::Family, name, series, steps, query, common });
            }
        }
    }
    let end = times.many_last();
    for (name, expr, steps) in MANY_QUERIES {
        let start = end - (steps - 1) * MANY_INTERVAL;
        let query = Query { expr: expr.to_owned(), start, end, step: MANY_INTERVAL };
        let series = crate::data::MANY;
        all.push(Workload { section: Section::Many, name, series, steps, query, common: true });
    }
    for (name, regex) in REGEX {
        let expr = format!("sum(requests_total{{pod=~\"{regex}\"}})");
        let query = Query { expr, start: end, end, step: MANY_INTERVAL };
        let series = crate::data::MANY;
        all.push(Workload { section: Section::Regex, name, series, steps: 1, query, common: true });
    }
    all
}
