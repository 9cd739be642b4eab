//! The parts of a query's steps, put together.

use std::collections::{BTreeSet, HashMap};

use skald_model::{Columns, Labels, QueryRange};
use skald_promql::ast::Span;
use skald_promql::eval::{Annotations, EvalError, QueryStats, Series, Value};

use crate::error::ServiceError;
use crate::querier::client::{QueryReply, query_error};

/// Answers to parts of a range query, in the order of their steps.
#[derive(Default)]
pub struct Joined {
    series: Vec<Series>,
    places: HashMap<Labels, usize>,
    annotations: Annotations,
    warnings: BTreeSet<String>,
    stats: QueryStats,
    bytes: usize,
    limit: Option<usize>,
}

impl Joined {
    /// Nothing yet; all parts together may hold `limit` bytes.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Takes the next part.
    pub fn add(&mut self, reply: QueryReply) -> Result<(), ServiceError> {
        let Value::Matrix(series) = reply.value else {
            return Err(ServiceError::internal("a part of a range query is not a matrix"));
        };
        for part in series {
            self.bytes += columns_bytes(&part.samples);
            match self.places.get(&part.labels) {
                Some(place) => self.series[*place].samples.extend_from(&part.samples, QueryRange::ALL),
                None => {
                    // Once in the answer, once as a key.
                    self.bytes += 2 * part.labels.as_bytes().len() + size_of::<Series>();
                    self.places.insert(part.labels.clone(), self.series.len());
                    self.series.push(part);
                }
            }
            if let Some(limit) = self.limit.filter(|limit| self.bytes > *limit) {
                let error = EvalError::MemoryLimit { limit, needed: self.bytes, span: Span::default() };
                return Err(query_error(error));
            }
        }
        self.annotations.merge(reply.annotations);
        self.warnings.extend(reply.warnings);
        self.add_stats(reply.stats);
        Ok(())
    }

    /// Counts are summed; parts run at the same time, each with its own peak.
    fn add_stats(&mut self, other: QueryStats) {
        let mine = &mut self.stats;
        mine.series_read += other.series_read;
        mine.samples_read += other.samples_read;
        mine.queryable_samples += other.queryable_samples;
        mine.queryable_samples_per_step.extend(other.queryable_samples_per_step);
        mine.peak_samples = mine.peak_samples.max(other.peak_samples);
        mine.peak_bytes = mine.peak_bytes.max(other.peak_bytes);
    }

    /// The answer.
    pub fn finish(self) -> QueryReply {
        let mut series = self.series;
        series.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        QueryReply {
            value: Value::Matrix(series),
            annotations: self.annotations,
            warnings: self.warnings.into_iter().collect(),
            stats: self.stats,
            explain: None,
            charge: None,
        }
    }
}

fn columns_bytes(columns: &Columns) -> usize {
    let histogram = |h: &std::sync::Arc<skald_model::FloatHistogram>| {
        size_of::<skald_model::FloatHistogram>() + 8 * (h.positive_buckets.len() + h.negative_buckets.len())
    };
    16 * columns.float_values.len() + columns.histograms.iter().map(histogram).sum::<usize>()
}
