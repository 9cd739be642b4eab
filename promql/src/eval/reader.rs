//! Reads the series of one select one by one.

use std::task::{Context, Poll, ready};

use skald_model::{Columns, Labels, QueryRange, is_stale_nan};

use super::context::Charge;
use super::env::Env;
use super::error::EvalError;
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
    /// The batch and the columns.
    charge: Charge,
    span: Span,
}

impl SeriesReader {
    pub(crate) fn new(source: Box<dyn SeriesSource>, range: QueryRange, charge: Charge, span: Span) -> Self {
        Self { source, batch: None, next: 0, ended: false, range, charge, span }
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
    16 * columns.float_timestamps.capacity() + histograms
}

/// Removes the stale markers, which no window holds.
pub(crate) fn strip_stale(columns: &mut Columns) {
    if columns.float_values.iter().any(|v| is_stale_nan(*v)) {
        let values = &columns.float_values;
        let mut i = 0;
        columns.float_timestamps.retain(|_| {
            i += 1;
            !is_stale_nan(values[i - 1])
        });
        columns.float_values.retain(|v| !is_stale_nan(*v));
    }
    if columns.histograms.iter().any(|h| h.is_stale()) {
        let histograms = &columns.histograms;
        let mut i = 0;
        columns.histogram_timestamps.retain(|_| {
            i += 1;
            !histograms[i - 1].is_stale()
        });
        columns.histograms.retain(|h| !h.is_stale());
    }
}
