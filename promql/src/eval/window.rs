//! Range selectors and subqueries: one series' samples, and the window of them that belongs to a step.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use skald_model::{Columns, FloatHistogram, Labels};

use super::context::Charge;
use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::histogram_bytes;
use super::reader::{SeriesReader, strip_stale};
use crate::ast::{EdgeMode, Span};
use crate::plan::{Counted, Grid, TimeShift};

/// What a range function reads: a range selector or a subquery.
pub(crate) struct WindowInput {
    pub(crate) source: WindowSource,
    pub(crate) shape: WindowShape,
}

/// Which of a series' samples belong to a step's window, and how they count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowShape {
    /// Window length; the window is left-open.
    pub(crate) range: i64,
    pub(crate) shift: TimeShift,
    pub(crate) edges: EdgeMode,
    /// How far outside the window `anchored` and `smoothed` look.
    pub(crate) lookback: i64,
    pub(crate) span: Span,
    pub(crate) counted: Counted,
}

/// Where the samples come from.
pub(crate) enum WindowSource {
    Selector(SeriesReader),
    Subquery { child: Box<dyn Operator>, grid: Grid, charge: Charge },
}

impl WindowInput {
    /// The labels of the next series and whether its name is to be dropped, its samples (no stale marker among them)
    /// in `columns`; `None` is the end.
    pub(crate) fn poll_series(
        &mut self,
        cx: &mut Context<'_>,
        env: &mut Env<'_>,
        columns: &mut Columns,
    ) -> Poll<Result<Option<(Labels, bool)>, EvalError>> {
        match &mut self.source {
            WindowSource::Selector(reader) => {
                let Some(labels) = ready!(reader.poll_series(cx, env, columns))? else { return Poll::Ready(Ok(None)) };
                strip_stale(columns);
                Poll::Ready(Ok(Some((labels, false))))
            }
            WindowSource::Subquery { child, grid, charge } => {
                let Some(series) = ready!(child.poll_next(cx, env))? else { return Poll::Ready(Ok(None)) };
                columns.clear();
                // Counted before it is taken: a subquery's samples may be half of what the query holds.
                let histograms: usize = series.points.histograms().iter().map(|(_, h)| 32 + histogram_bytes(h)).sum();
                charge.resize(16 * series.points.floats.len() + histograms, self.shape.span)?;
                columns.float_timestamps.reserve_exact(series.points.floats.len());
                columns.float_values.reserve_exact(series.points.floats.len());
                for step in series.points.floats.ones() {
                    columns.push_float(grid.time(step), series.points.values[step]);
                }
                for (step, histogram) in series.points.histograms() {
                    columns.push_histogram(grid.time(*step as usize), without_reset_hint(histogram));
                }
                charge.hold_samples(columns.len())?;
                env.tick(columns.len())?;
                env.recycle(series.points);
                Poll::Ready(Ok(Some((series.labels, series.drop_name))))
            }
        }
    }

    /// The samples of the window of a step at `time`: the value of a range vector itself.
    pub(crate) fn cut(&self, columns: &Columns, time: i64) -> Columns {
        let end = self.shape.shift.apply(time);
        let start = end.saturating_sub(self.shape.range);
        let inside = |times: &[i64]| times.partition_point(|t| *t <= start)..times.partition_point(|t| *t <= end);
        let floats = inside(&columns.float_timestamps);
        let histograms = inside(&columns.histogram_timestamps);
        Columns {
            float_timestamps: columns.float_timestamps[floats.clone()].to_vec(),
            float_values: columns.float_values[floats].to_vec(),
            histogram_timestamps: columns.histogram_timestamps[histograms.clone()].to_vec(),
            histograms: columns.histograms[histograms].to_vec(),
            ..Columns::default()
        }
    }
}

/// What a subquery computed says nothing about resets between its points; only gauges stay gauges.
fn without_reset_hint(histogram: &Arc<FloatHistogram>) -> Arc<FloatHistogram> {
    use skald_model::ResetHint;
    match histogram.reset_hint {
        ResetHint::Gauge | ResetHint::Unknown => Arc::clone(histogram),
        ResetHint::Reset | ResetHint::NotReset => {
            Arc::new(FloatHistogram { reset_hint: ResetHint::Unknown, ..FloatHistogram::clone(histogram) })
        }
    }
}
