//! Storage in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use skald_model::{Columns, Labels, QueryRange};

use crate::source::{Queryable, Select, SeriesBatch, SeriesSource, SourceError};

/// Series in memory. Yields them in batches of a given size, with a `Pending` before each if asked to.
#[derive(Debug, Clone)]
pub struct MemStorage {
    series: BTreeMap<Labels, Arc<Columns>>,
    batch_size: usize,
    pending: bool,
}

impl Default for MemStorage {
    fn default() -> Self {
        Self { series: BTreeMap::new(), batch_size: 128, pending: false }
    }
}

impl MemStorage {
    /// Storage that holds these series; of two with equal labels the last stays.
    pub fn new(series: impl IntoIterator<Item = (Labels, Columns)>) -> Self {
        let series = series.into_iter().map(|(labels, columns)| (labels, Arc::new(columns))).collect();
        Self { series, ..Self::default() }
    }

    /// The same storage with batches of `series` series.
    #[must_use]
    pub fn with_batch_size(mut self, series: usize) -> Self {
        self.batch_size = series.max(1);
        self
    }

    /// The same storage that is `Pending` once before each batch.
    #[must_use]
    pub fn with_pending(mut self) -> Self {
        self.pending = true;
        self
    }

    /// The columns of a series, to append to.
    pub fn series_mut(&mut self, labels: &Labels) -> &mut Columns {
        Arc::make_mut(self.series.entry(labels.clone()).or_default())
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.series.clear();
    }
}

impl Queryable for MemStorage {
    fn select(&self, select: Select) -> Box<dyn SeriesSource> {
        let matching = |labels: &Labels| {
            select.shard.is_none_or(|shard| shard.holds(labels))
                && select.matchers.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or("")))
        };
        let inside = |columns: &Columns| {
            let range = select.range;
            let any =
                |times: &[i64]| times.get(times.partition_point(|t| *t < range.min)).is_some_and(|t| *t <= range.max);
            any(&columns.float_timestamps) || any(&columns.histogram_timestamps)
        };
        let found: Vec<_> = self
            .series
            .iter()
            .filter(|(labels, columns)| matching(labels) && inside(columns))
            .map(|(labels, columns)| (labels.clone(), Arc::clone(columns)))
            .collect();
        let batches = found.chunks(self.batch_size).rev().map(|batch| MemBatch(batch.to_vec())).collect();
        Box::new(MemSource { batches, pending: self.pending, waited: false })
    }
}

struct MemSource {
    /// The next one last.
    batches: Vec<MemBatch>,
    pending: bool,
    waited: bool,
}

impl SeriesSource for MemSource {
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Box<dyn SeriesBatch>>, SourceError>> {
        if self.pending && !self.waited {
            self.waited = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.waited = false;
        Poll::Ready(Ok(self.batches.pop().map(|batch| Box::new(batch) as Box<dyn SeriesBatch>)))
    }
}

struct MemBatch(Vec<(Labels, Arc<Columns>)>);

impl SeriesBatch for MemBatch {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn labels(&self, i: usize) -> &Labels {
        &self.0[i].0
    }

    fn decode(&self, i: usize, range: QueryRange, out: &mut Columns) -> Result<(), SourceError> {
        if !range.is_empty() {
            out.extend_from(&self.0[i].1, range);
        }
        Ok(())
    }

    fn heap_bytes(&self) -> usize {
        self.0.iter().map(|(labels, columns)| 64 + labels.as_bytes().len() + 16 * columns.len()).sum()
    }
}
