//! Functions of range vectors: for every step the window of one series' samples becomes one value.
//!
//! [`rate`] has the functions of counters and gauges, [`histogram_rate`] those of them that subtract histograms, [`over_time`] the `*_over_time` family, [`sliding`] what windows of floats share with each other, [`regression`] the least
//! squares and the smoothing, [`edges`] what `anchored` and `smoothed` do at a window's ends, [`start`] what start
//! timestamps tell of counters. Windows are slices of the decoded columns, found by two indices that only move forward.

pub(crate) mod edges;
mod histogram_rate;
mod lanes;
mod over_time;
mod rate;
mod regression;
mod sliding;
mod start;

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use skald_model::{Columns, FloatHistogram, Labels, Quoted};

use self::histogram_rate::Noted;
use self::start::Starts;
use super::env::Env;
use super::error::EvalError;
use super::operator::Operator;
use super::points::{Point, Points, StepSeries, histogram_work};
use super::reader::strip_stale;
use super::scalar::{Scalar, ScalarPlan};
use super::series_operator::{Buffers, SeriesOperator, SeriesWork};
use super::window::{WindowInput, WindowShape, WindowSource};
use crate::ast::{EdgeMode, Span};
use crate::plan::Grid;

/// A function of range vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RangeFunction {
    Rate,
    Increase,
    Delta,
    Irate,
    Idelta,
    Changes,
    Resets,
    Deriv,
    PredictLinear,
    DoubleExponentialSmoothing,
    SumOverTime,
    AvgOverTime,
    MinOverTime,
    MaxOverTime,
    CountOverTime,
    PresentOverTime,
    LastOverTime,
    FirstOverTime,
    StddevOverTime,
    StdvarOverTime,
    QuantileOverTime,
    MadOverTime,
    TsOfMinOverTime,
    TsOfMaxOverTime,
    TsOfLastOverTime,
    TsOfFirstOverTime,
}

impl RangeFunction {
    /// The function called `name`, if it is of this kind.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "rate" => Self::Rate,
            "increase" => Self::Increase,
            "delta" => Self::Delta,
            "irate" => Self::Irate,
            "idelta" => Self::Idelta,
            "changes" => Self::Changes,
            "resets" => Self::Resets,
            "deriv" => Self::Deriv,
            "predict_linear" => Self::PredictLinear,
            "double_exponential_smoothing" => Self::DoubleExponentialSmoothing,
            "sum_over_time" => Self::SumOverTime,
            "avg_over_time" => Self::AvgOverTime,
            "min_over_time" => Self::MinOverTime,
            "max_over_time" => Self::MaxOverTime,
            "count_over_time" => Self::CountOverTime,
            "present_over_time" => Self::PresentOverTime,
            "last_over_time" => Self::LastOverTime,
            "first_over_time" => Self::FirstOverTime,
            "stddev_over_time" => Self::StddevOverTime,
            "stdvar_over_time" => Self::StdvarOverTime,
            "quantile_over_time" => Self::QuantileOverTime,
            "mad_over_time" => Self::MadOverTime,
            "ts_of_min_over_time" => Self::TsOfMinOverTime,
            "ts_of_max_over_time" => Self::TsOfMaxOverTime,
            "ts_of_last_over_time" => Self::TsOfLastOverTime,
            "ts_of_first_over_time" => Self::TsOfFirstOverTime,
            _ => return None,
        })
    }

    /// Whether the result keeps the metric name.
    pub(crate) fn keeps_name(self) -> bool {
        matches!(self, Self::LastOverTime | Self::FirstOverTime)
    }

    /// Whether the function knows what to do with `anchored` or `smoothed`.
    pub(crate) fn allows(self, edges: EdgeMode) -> bool {
        match edges {
            EdgeMode::Plain => true,
            EdgeMode::Smoothed => matches!(self, Self::Rate | Self::Increase | Self::Delta),
            EdgeMode::Anchored => {
                matches!(self, Self::Rate | Self::Increase | Self::Delta | Self::Changes | Self::Resets)
            }
        }
    }
}

/// The samples of one step's window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window<'c> {
    pub(crate) float_times: &'c [i64],
    pub(crate) floats: &'c [f64],
    pub(crate) histogram_times: &'c [i64],
    pub(crate) histograms: &'c [Arc<FloatHistogram>],
    /// Index of the first float in the series' column.
    pub(crate) first_float: usize,
    /// Likewise of the first histogram.
    pub(crate) first_histogram: usize,
    /// The window is left-open: `start < t <= end`.
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) step: usize,
}

impl Window<'_> {
    pub(crate) fn len(&self) -> usize {
        self.floats.len() + self.histograms.len()
    }

    /// Whether it holds both kinds of samples.
    pub(crate) fn is_mixed(&self) -> bool {
        !self.floats.is_empty() && !self.histograms.is_empty()
    }
}

/// The windows of one series, step by step.
pub(crate) struct Windows<'c> {
    columns: &'c Columns,
    floats: std::ops::Range<usize>,
    histograms: std::ops::Range<usize>,
}

impl<'c> Windows<'c> {
    pub(crate) fn new(columns: &'c Columns) -> Self {
        Self { columns, floats: 0..0, histograms: 0..0 }
    }

    /// The window `start < t <= end`; neither bound may be earlier than the call before had it.
    #[inline]
    pub(crate) fn advance(&mut self, start: i64, end: i64, step: usize) -> Window<'c> {
        let columns = self.columns;
        advance(&mut self.floats, &columns.float_timestamps, start, end);
        if !columns.histogram_timestamps.is_empty() {
            advance(&mut self.histograms, &columns.histogram_timestamps, start, end);
        }
        Window {
            float_times: &columns.float_timestamps[self.floats.clone()],
            floats: &columns.float_values[self.floats.clone()],
            histogram_times: &columns.histogram_timestamps[self.histograms.clone()],
            histograms: &columns.histograms[self.histograms.clone()],
            first_float: self.floats.start,
            first_histogram: self.histograms.start,
            start,
            end,
            step,
        }
    }
}

impl<'c> Windows<'c> {
    /// The window with the samples around it that `anchored` or `smoothed` may use; its bounds stay those of the
    /// window itself.
    fn advance_around(&mut self, start: i64, end: i64, input: &WindowShape, step: usize) -> Window<'c> {
        let after = if input.edges == EdgeMode::Smoothed { input.lookback } else { 0 };
        let window = self.advance(start.saturating_sub(input.lookback), end.saturating_add(after), step);
        Window { start, end, ..window }
    }
}

#[inline]
fn advance(range: &mut std::ops::Range<usize>, times: &[i64], start: i64, end: i64) {
    while range.end < times.len() && times[range.end] <= end {
        range.end += 1;
    }
    while range.start < range.end && times[range.start] <= start {
        range.start += 1;
    }
}

/// A range function with all it needs but the samples.
pub(crate) struct RangeCall {
    pub(crate) function: RangeFunction,
    pub(crate) window: WindowShape,
    /// The scalar arguments in their order.
    pub(crate) scalars: Vec<Scalar>,
    /// Where the first argument of the call stands: annotations on parameters name it.
    pub(crate) parameter_span: Span,
    pub(crate) grid: Grid,
    /// Whether the metric name is dropped from the result.
    pub(crate) drops_name: bool,
}

/// Applies a [`RangeFunction`] to every series of a range vector.
pub(crate) struct RangeOperator {
    scalars: Vec<ScalarPlan>,
    state: RangeState,
}

enum RangeState {
    /// The scalar arguments are being worked out.
    Waiting(WindowInput, RangeCall),
    Selector(SeriesOperator),
    Subquery(WindowInput, RangeCall, Buffers),
    Ended,
}

/// What a function may use besides the window.
pub(crate) struct Call<'a, 'e, 'q> {
    pub(crate) function: RangeFunction,
    pub(crate) labels: &'a Labels,
    /// Of the whole series.
    pub(crate) starts: Starts<'a>,
    /// Of the windows so far.
    pub(crate) noted: Noted,
    pub(crate) scalars: &'a [Scalar],
    pub(crate) scratch: &'a mut Vec<f64>,
    pub(crate) span: Span,
    pub(crate) parameter_span: Span,
    /// The step's own time, without the selector's shift.
    pub(crate) time: i64,
    pub(crate) env: &'e mut Env<'q>,
}

impl Call<'_, '_, '_> {
    pub(crate) fn scalar(&self, i: usize, step: usize) -> f64 {
        self.scalars.get(i).map_or(f64::NAN, |s| s.at(step))
    }

    /// `text`, and ` for metric name "…"` if the series has one.
    pub(crate) fn for_metric(&self, text: &str) -> String {
        for_metric(text, self.labels)
    }

    pub(crate) fn warn_mixed(&mut self) {
        let text = self.for_metric("encountered a mix of histograms and floats");
        self.env.annotations.warn(self.span, text);
    }

    pub(crate) fn info_ignored_histograms(&mut self) {
        let text = self.for_metric("ignored histograms in a range containing both floats and histograms");
        self.env.annotations.info(self.span, text);
    }
}

/// `text`, and ` for metric name "…"` if the series has one.
pub(crate) fn for_metric(text: &str, labels: &Labels) -> String {
    match labels.metric_name() {
        Some(name) => format!("{text} for metric name {}", Quoted(name)),
        None => text.to_owned(),
    }
}

impl RangeOperator {
    pub(crate) fn new(input: WindowInput, call: RangeCall, scalars: Vec<ScalarPlan>) -> Self {
        Self { scalars, state: RangeState::Waiting(input, call) }
    }
}

impl Operator for RangeOperator {
    fn poll_next(&mut self, cx: &mut Context<'_>, env: &mut Env<'_>) -> Poll<Result<Option<StepSeries>, EvalError>> {
        for scalar in &mut self.scalars {
            ready!(scalar.poll_ready(cx, env))?;
        }
        if let RangeState::Waiting(..) = &self.state
            && let RangeState::Waiting(input, call) = std::mem::replace(&mut self.state, RangeState::Ended)
        {
            let scalars = self.scalars.iter().map(|scalar| scalar.value().clone()).collect();
            let call = RangeCall { scalars, ..call };
            self.state = match input.source {
                WindowSource::Selector(reader) => {
                    let steps = call.grid.count;
                    RangeState::Selector(SeriesOperator::new(reader, Arc::new(call), steps))
                }
                WindowSource::Subquery { .. } => RangeState::Subquery(input, call, Buffers::default()),
            };
        }
        match &mut self.state {
            RangeState::Selector(series) => series.poll_next(cx, env),
            RangeState::Subquery(input, call, buffers) => loop {
                let Some((labels, drop_name)) = ready!(input.poll_series(cx, env, &mut buffers.columns))? else {
                    return Poll::Ready(Ok(None));
                };
                if let Some(series) = call.series(labels, drop_name, buffers, env)? {
                    return Poll::Ready(Ok(Some(series)));
                }
            },
            RangeState::Waiting(..) | RangeState::Ended => Poll::Ready(Ok(None)),
        }
    }
}

impl SeriesWork for RangeCall {
    fn run(&self, labels: Labels, buffers: &mut Buffers, env: &mut Env<'_>) -> Result<Option<StepSeries>, EvalError> {
        strip_stale(&mut buffers.columns);
        self.series(labels, false, buffers, env)
    }
}

impl RangeCall {
    fn series(
        &self,
        labels: Labels,
        drop_name: bool,
        buffers: &mut Buffers,
        env: &mut Env<'_>,
    ) -> Result<Option<StepSeries>, EvalError> {
        let mut points = env.points(self.grid.count, self.window.span)?;
        self.fill(buffers, &mut points, &labels, env)?;
        if points.is_empty() {
            env.recycle(points);
            return Ok(None);
        }
        let mut series = StepSeries { labels, drop_name, points };
        if self.drops_name {
            env.names.drop(&mut series);
        }
        Ok(Some(series))
    }

    fn fill(
        &self,
        buffers: &mut Buffers,
        points: &mut Points,
        labels: &Labels,
        env: &mut Env<'_>,
    ) -> Result<(), EvalError> {
        let Self { function, window: input, scalars, parameter_span, grid, .. } = self;
        let Buffers { columns, scratch } = buffers;
        let starts = Starts::of(columns, *function);
        if columns.histograms.is_empty() && starts.is_empty() && input.edges == EdgeMode::Plain {
            if matches!(function, RangeFunction::Rate | RangeFunction::Increase | RangeFunction::Delta) {
                return rate::fill_floats(self, columns, points, labels, env);
            }
            env.tick(grid.count)?;
            if sliding::fill(self, columns, points, env)? {
                return Ok(());
            }
        }
        let mut windows = Windows::new(columns);
        let mut call = Call {
            function: *function,
            labels,
            starts,
            noted: Noted::default(),
            scalars,
            scratch,
            span: input.span,
            parameter_span: *parameter_span,
            time: 0,
            env,
        };
        for step in 0..grid.count {
            call.time = grid.time(step);
            let end = input.shift.apply(call.time);
            let start = end.saturating_sub(input.range);
            if input.edges != EdgeMode::Plain {
                let outside = windows.advance_around(start, end, input, step);
                call.env.count_samples(input.counted, step, outside.len());
                call.env.tick(outside.len())?;
                if let Some(point) = edges::value(&outside, input, &mut call)? {
                    points.push(step, point, input.span)?;
                }
                continue;
            }
            let window = windows.advance(start, end, step);
            call.env.count_samples(input.counted, step, window.len());
            let each = window.histograms.first().map_or(0, |histogram| histogram_work(histogram));
            call.env.tick(window.len() + each * window.histograms.len())?;
            if window.len() == 0 {
                continue;
            }
            if let Some(point) = value(&window, &mut call)? {
                points.push(step, point, input.span)?;
            }
        }
        Ok(())
    }
}

fn value(window: &Window<'_>, call: &mut Call<'_, '_, '_>) -> Result<Option<Point>, EvalError> {
    use RangeFunction as F;
    match call.function {
        F::Rate | F::Increase | F::Delta => rate::window(window, call),
        F::Irate | F::Idelta => rate::instant_rate(window, call),
        F::Changes => Ok(rate::changes(window)),
        F::Resets => Ok(rate::resets(window, call.starts)),
        F::Deriv => Ok(regression::deriv(window, call)),
        F::PredictLinear => Ok(regression::predict_linear(window, call)),
        F::DoubleExponentialSmoothing => regression::double_exponential_smoothing(window, call),
        _ => over_time::value(window, call),
    }
}
