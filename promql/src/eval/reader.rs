//! Reads the series of one select one by one.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use skald_model::{Columns, FloatHistogram, Labels, QueryRange, ResetHint, TimestampMs, is_stale_nan};

use super::context::Charge;
use super::env::Env;
use super::error::EvalError;
use super::histogram::reset::is_reset;
use crate::ast::Span;
use crate::source::{SeriesBatch, SeriesSource};

/// Reads the series of one select one by one, decoding each into columns that are used again.
pub(crate) struct SeriesReader {
    source: Box<dyn SeriesSource>,
    batch: Option<Box<dyn SeriesBatch>>,
    /// Next series of the batch.
    next: usize,
    ended: bool,
    range: QueryRange,
    /// Only counts and sums of native histograms are used: see [`note_resets`].
    counts_only: bool,
    /// The batch and the columns.
    charge: Charge,
    span: Span,
}

impl SeriesReader {
    pub(crate) fn new(source: Box<dyn SeriesSource>, range: QueryRange, charge: Charge, span: Span) -> Self {
        Self { source, batch: None, next: 0, ended: false, range, counts_only: false, charge, span }
    }

    /// The same reader, which keeps only what `histogram_count`, `histogram_sum` and `histogram_avg` need.
    #[must_use]
    pub(crate) fn with_counts_only(self, counts_only: bool) -> Self {
        Self { counts_only, ..self }
    }

    /// The labels of the next series, its samples in `columns`; `None` is the end.
    pub(crate) fn poll_series(
        &mut self,
        cx: &mut Context<'_>,
        env: &mut Env<'_>,
        columns: &mut Columns,
    ) -> Poll<Result<Option<Labels>, EvalError>> {
        loop {
            if let Some(batch) = &self.batch {
                if self.next < batch.len() {
                    let i = self.next;
                    self.next += 1;
                    columns.clear();
                    batch.decode(i, self.range, columns)?;
                    if self.counts_only && !columns.histograms.is_empty() {
                        note_resets(columns);
                    }
                    let held = batch.heap_bytes().saturating_add(columns_bytes(columns));
                    self.charge.resize(held, self.span)?;
                    self.charge.hold_samples(columns.len())?;
                    env.stats.series_read += 1;
                    env.stats.samples_read += columns.len() as u64;
                    env.tick(columns.len())?;
                    return Poll::Ready(Ok(Some(batch.labels(i).clone())));
                }
                self.batch = None;
            }
            if self.ended {
                columns.clear();
                self.charge.resize(0, self.span)?;
                self.charge.hold_samples(0)?;
                return Poll::Ready(Ok(None));
            }
            env.context.interrupt().check()?;
            match ready!(self.source.poll_batch(cx))? {
                Some(batch) => {
                    self.charge.resize(batch.heap_bytes(), self.span)?;
                    self.batch = Some(batch);
                    self.next = 0;
                }
                None => self.ended = true,
            }
        }
    }
}

fn columns_bytes(columns: &Columns) -> usize {
    let histograms: usize = columns.histograms.iter().map(|h| 16 + super::points::histogram_bytes(h)).sum();
    let starts = columns.float_starts.capacity() + columns.histogram_starts.capacity();
    16 * columns.float_timestamps.capacity() + 8 * starts + histograms
}

/// Finds the resets while the buckets are at hand, then drops the buckets.
///
/// Prometheus does the same below `histogram_count` and its like, and answers with more "reset" hints than otherwise:
/// aggregations warn about them.
fn note_resets(columns: &mut Columns) {
    let mut before: Option<Arc<FloatHistogram>> = None;
    for histogram in &mut columns.histograms {
        if histogram.is_stale() {
            continue;
        }
        let reset_hint = match (&before, histogram.reset_hint) {
            (Some(before), ResetHint::Unknown) if is_reset(histogram, before) => ResetHint::Reset,
            (Some(_), ResetHint::Unknown) => ResetHint::NotReset,
            (_, hint) => hint,
        };
        let counts = FloatHistogram {
            reset_hint,
            schema: histogram.schema,
            custom_values: Arc::clone(&histogram.custom_values),
            count: histogram.count,
            sum: histogram.sum,
            ..FloatHistogram::default()
        };
        before = Some(std::mem::replace(histogram, Arc::new(counts)));
    }
}

/// Removes the stale markers, which no window holds.
pub(crate) fn strip_stale(columns: &mut Columns) {
    if columns.float_values.iter().any(|v| is_stale_nan(*v)) {
        let values = &columns.float_values;
        retain(&mut columns.float_timestamps, |i| !is_stale_nan(values[i]));
        retain(&mut columns.float_starts, |i| !is_stale_nan(values[i]));
        columns.float_values.retain(|v| !is_stale_nan(*v));
    }
    if columns.histograms.iter().any(|h| h.is_stale()) {
        let histograms = &columns.histograms;
        retain(&mut columns.histogram_timestamps, |i| !histograms[i].is_stale());
        retain(&mut columns.histogram_starts, |i| !histograms[i].is_stale());
        columns.histograms.retain(|h| !h.is_stale());
    }
}

/// Keeps the times of the samples that `keep` is true of.
fn retain(times: &mut Vec<TimestampMs>, keep: impl Fn(usize) -> bool) {
    let mut i = 0;
    times.retain(|_| {
        i += 1;
        keep(i - 1)
    });
}
