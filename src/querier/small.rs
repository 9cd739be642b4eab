//! Which queries are evaluated on the thread they arrive at: waking another one takes longer than they do.
//!
//! What a query costs is known only once its series and samples are. So it is begun where it arrives, and whoever is about
//! to do something for it, be it reading or evaluating, says first what that will cost ([`Pool::begin`]): a query that
//! turns out larger than the time its thread is lent for goes on on the query pool from where it is. The costs are
//! estimates, and high ones: what matters is that no thread that serves sockets is held for long.
//!
//! [`Pool::begin`]: crate::runtime::Pool::begin

use std::time::Duration;

use skald_promql::ast::AggregateOp;
use skald_promql::plan::{Op, Plan};
use skald_tsdb::SeriesChunks;
use skald_tsdb::chunk::Encoding;

/// CPU time that a thread is lent to a query for.
const LENT: Duration = Duration::from_micros(600);
/// CPU time of one node of a plan at one step, and for a native histogram.
const STEP_TIME: Duration = Duration::from_nanos(10);
const HISTOGRAM_STEP_TIME: Duration = Duration::from_micros(1);
/// CPU time of one sample in one window it lies in, from its chunk to what is made of it; and of a native histogram.
const SAMPLE_TIME: Duration = Duration::from_nanos(10);
const HISTOGRAM_TIME: Duration = Duration::from_micros(1);
/// CPU time of one series besides.
const SERIES_TIME: Duration = Duration::from_micros(2);
/// Regexes with more states are not small.
const MAX_REGEX_COST: usize = 1000;
/// Functions whose cost depends on texts of the query.
const OF_TEXTS: [&str; 2] = ["label_replace", "label_join"];

/// What the series of a small query cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Small {
    /// Steps of all nodes, a window of a subquery counting as its points.
    steps: u32,
    /// Windows that a sample lies in, at most.
    windows: u32,
}

impl Small {
    /// Of a query that may be small, as far as its plan tells.
    pub(super) fn of(plan: &Plan) -> Option<Self> {
        let (mut steps, mut windows) = (0_usize, 1_usize);
        for node in &plan.nodes {
            let mut points = node.grid.count;
            match &node.op {
                Op::Select { selector, .. } if !has_small_regexes(&selector.matchers) => return None,
                Op::RangeSelect { selector, range_ms, .. } => {
                    if !has_small_regexes(&selector.matchers) {
                        return None;
                    }
                    windows = windows.max(overlap(*range_ms, node.grid.step, node.grid.count));
                }
                Op::Subquery { range_ms, .. } => {
                    let inner = node.inputs.iter().map(|input| plan.node(*input).grid.count).sum::<usize>();
                    points = inner.saturating_mul(overlap(*range_ms, node.grid.step, node.grid.count));
                }
                Op::Call(function) if OF_TEXTS.contains(&function.name) => return None,
                Op::Aggregate { op: AggregateOp::CountValues, .. } | Op::Info(_) => return None,
                _ => {}
            }
            steps = steps.saturating_add(points);
        }
        let small = Self { steps: u32::try_from(steps).ok()?, windows: u32::try_from(windows).ok()? };
        small.lent().map(|_| small)
    }

    /// How long a thread is lent to the query for; `None` if its steps alone take longer.
    pub(super) fn lent(&self) -> Option<Duration> {
        (STEP_TIME.saturating_mul(self.steps) <= LENT).then_some(LENT)
    }

    /// CPU time of decoding and evaluating these series.
    pub(super) fn cost(&self, series: &[SeriesChunks]) -> Duration {
        series.iter().fold(Duration::ZERO, |cost, one| cost.saturating_add(self.cost_of_one(one)))
    }

    fn cost_of_one(&self, series: &SeriesChunks) -> Duration {
        let samples = |chunks: &mut dyn Iterator<Item = &skald_tsdb::chunk::Chunk>| -> u32 {
            chunks.map(|chunk| u32::from(chunk.num_samples())).sum()
        };
        let is_float = |chunk: &&skald_tsdb::chunk::Chunk| chunk.encoding == Encoding::Xor;
        let floats = samples(&mut series.chunks.iter().filter(is_float));
        let histograms = samples(&mut series.chunks.iter().filter(|chunk| !is_float(chunk)));
        let step_time = if histograms > 0 { HISTOGRAM_STEP_TIME } else { STEP_TIME };
        let of_samples = SAMPLE_TIME
            .saturating_mul(floats)
            .saturating_add(HISTOGRAM_TIME.saturating_mul(histograms))
            .saturating_mul(self.windows);
        SERIES_TIME.saturating_add(step_time.saturating_mul(self.steps)).saturating_add(of_samples)
    }
}

/// In how many windows a sample lies.
fn overlap(range_ms: i64, step: i64, count: usize) -> usize {
    if count <= 1 {
        return 1;
    }
    let windows = range_ms.max(0) / step.max(1);
    usize::try_from(windows).unwrap_or(usize::MAX).saturating_add(1).min(count)
}

fn has_small_regexes(matchers: &[skald_model::Matcher]) -> bool {
    matchers.iter().map(skald_model::Matcher::regex_cost).fold(0, usize::saturating_add) <= MAX_REGEX_COST
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skald_model::Labels;
    use skald_promql::eval::EvalParams;
    use skald_promql::parse::{ParseOptions, parse_expr};
    use skald_tsdb::chunk::Chunk;

    use super::*;

    fn small(query: &str, steps: i64) -> Option<Small> {
        let params = EvalParams::range(0, (steps - 1) * 10_000, 10_000);
        let expr = parse_expr(query, &ParseOptions::default()).unwrap();
        Small::of(&Plan::of(&expr, &params).unwrap())
    }

    #[track_caller]
    fn check(query: &str, steps: i64, expected: Option<(u32, u32)>) {
        assert_eq!(small(query, steps).map(|small| (small.steps, small.windows)), expected, "{query}");
    }

    #[test]
    fn steps_and_windows_are_counted() {
        check("a", 1, Some((1, 1)));
        check("sum(rate(a[1m]))", 1000, Some((3000, 7)));
        check("rate(a[1d])", 1, Some((2, 1)));
        check("rate(a[1d])", 1000, Some((2000, 1000)));
        // The points of the subquery, each in seven windows, besides the steps of function and selector.
        check("max_over_time(a[1m:10s])", 100, Some((100 + 105 + 7 * 105, 1)));
    }

    #[test]
    fn what_may_cost_much_is_not_small() {
        check("a", 70_000, None);
        check(r#"label_replace(a, "b", "$1$1", "c", "(.*)")"#, 1, None);
        check(r#"count_values("b", a)"#, 1, None);
        check(r#"{a=~"(x{1,500}){1,2}y{1,900}"}"#, 1, None);
        check("sum_over_time(max_over_time(a[1d:1s])[1d:1s])", 1, None);
    }

    #[test]
    fn series_cost_what_their_chunks_say() {
        let chunk = |encoding, samples: u16| Chunk {
            min_time: 0,
            max_time: 1,
            encoding,
            data: Bytes::copy_from_slice(&samples.to_be_bytes()),
        };
        let series = |chunks| SeriesChunks { labels: Labels::default(), chunks, deleted: Vec::new() };
        let small = Small { steps: 10, windows: 3 };
        let floats = series(vec![chunk(Encoding::Xor, 120), chunk(Encoding::Xor, 80)]);
        let base = SERIES_TIME + STEP_TIME * 10;
        assert_eq!(small.cost(std::slice::from_ref(&floats)), base + SAMPLE_TIME * 200 * 3);
        let histograms = series(vec![chunk(Encoding::Histogram, 5)]);
        let cost = small.cost(&[histograms, floats]);
        assert_eq!(cost, base + SAMPLE_TIME * 600 + SERIES_TIME + HISTOGRAM_STEP_TIME * 10 + HISTOGRAM_TIME * 15);
    }
}
