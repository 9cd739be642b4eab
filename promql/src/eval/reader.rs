//! Reads the series of one select one by one.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use skald_model::{Columns, FloatHistogram, Labels, QueryRange, ResetHint, TimestampMs, is_stale_nan};

use super::context::Charge;
use super::env::{Env, Said};
use super::error::EvalError;
use super::explain::NodeReport;
use super::histogram::reset::is_reset;
use crate::ast::Span;
use crate::source::{SeriesBatch, SeriesSource};

/// Reads the series of one select: batch by batch, or one by one into columns that are used again.
pub(crate) struct SeriesReader {
    source: Box<dyn SeriesSource>,
    batch: Option<Box<dyn SeriesBatch>>,
    /// Next series of the batch.
    next: usize,
    ended: bool,
    decoding: Decoding,
    /// The batch that is read one by one.
    batch_charge: Charge,
    /// The columns.
    charge: Charge,
    report: Option<Arc<NodeReport>>,
}

/// A batch with its share of the query's budget.
pub(crate) type ChargedBatch = (Box<dyn SeriesBatch>, Charge);

/// How the samples of a series are taken out of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Decoding {
    range: QueryRange,
    /// Only counts and sums of native histograms are used: see [`note_resets`].
    counts_only: bool,
    span: Span,
}

impl Decoding {
    /// Decodes series `i` into `columns`, which stay charged to `charge`; the number of samples.
    pub(crate) fn decode(
        &self,
        batch: &dyn SeriesBatch,
        i: usize,
        columns: &mut Columns,
        charge: &mut Charge,
        env: &mut Env<'_>,
    ) -> Result<usize, EvalError> {
        columns.clear();
        batch.decode(i, self.range, columns)?;
        if self.counts_only && !columns.histograms.is_empty() {
            note_resets(columns);
        }
        charge.resize(columns_bytes(columns), self.span)?;
        charge.hold_samples(columns.len())?;
        env.stats.series_read += 1;
        env.stats.samples_read += columns.len() as u64;
        env.tick(columns.len())?;
        Ok(columns.len())
    }
}

impl SeriesReader {
    pub(crate) fn new(source: Box<dyn SeriesSource>, range: QueryRange, charge: Charge, span: Span) -> Self {
        let decoding = Decoding { range, counts_only: false, span };
        let batch_charge = charge.empty();
        Self { source, batch: None, next: 0, ended: false, decoding, batch_charge, charge, report: None }
    }

    /// The same reader, which keeps only what `histogram_count`, `histogram_sum` and `histogram_avg` need.
    #[must_use]
    pub(crate) fn with_counts_only(mut self, counts_only: bool) -> Self {
        self.decoding.counts_only = counts_only;
        self
    }

    /// The same reader, which tells what it has read.
    #[must_use]
    pub(crate) fn with_report(self, report: Option<Arc<NodeReport>>) -> Self {
        Self { report, ..self }
    }

    pub(crate) fn decoding(&self) -> Decoding {
        self.decoding
    }

    pub(crate) fn span(&self) -> Span {
        self.decoding.span
    }

    /// An empty share of the query's budget.
    pub(crate) fn empty_charge(&self) -> Charge {
        self.charge.empty()
    }

    /// The next batch, with its share of the budget; `None` is the end.
    pub(crate) fn poll_batch(
        &mut self,
        cx: &mut Context<'_>,
        env: &mut Env<'_>,
    ) -> Poll<Result<Option<ChargedBatch>, EvalError>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        env.context.interrupt().check()?;
        let Some(batch) = ready!(self.source.poll_batch(cx))? else {
            self.ended = true;
            return Poll::Ready(Ok(None));
        };
        let bytes = batch.heap_bytes();
        let mut charge = self.charge.empty();
        charge.grow(bytes, self.decoding.span)?;
        if let Some(report) = &self.report {
            report.read_bytes(bytes);
        }
        Poll::Ready(Ok(Some((batch, charge))))
    }

    /// Tells of a series with `samples` samples.
    pub(crate) fn report_series(&self, samples: usize) {
        if let Some(report) = &self.report {
            report.read_series(1, samples as u64);
        }
    }

    /// Tells of what was read for a piece of the query.
    pub(crate) fn report(&self, said: &Said) {
        if let Some(report) = &self.report {
            report.read_series(said.stats.series_read, said.stats.samples_read);
            report.worked(said.took);
        }
    }

    /// The labels of the next series, its samples in `columns`; `None` is the end.
    pub(crate) fn poll_series(
        &mut self,
        cx: &mut Context<'_>,
        env: &mut Env<'_>,
        columns: &mut Columns,
    ) -> Poll<Result<Option<Labels>, EvalError>> {
        loop {
            if let Some(batch) = self.batch.as_deref().filter(|batch| self.next < batch.len()) {
                let i = self.next;
                self.next += 1;
                let samples = self.decoding.decode(batch, i, columns, &mut self.charge, env)?;
                self.report_series(samples);
                return Poll::Ready(Ok(Some(batch.labels(i).clone())));
            }
            self.batch = None;
            let Some((batch, charge)) = ready!(self.poll_batch(cx, env))? else {
                columns.clear();
                self.batch_charge = self.charge.empty();
                self.charge.resize(0, self.decoding.span)?;
                self.charge.hold_samples(0)?;
                return Poll::Ready(Ok(None));
            };
            (self.batch, self.batch_charge, self.next) = (Some(batch), charge, 0);
        }
    }
}

/// Bytes that samples hold.
pub(crate) fn columns_bytes(columns: &Columns) -> usize {
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
