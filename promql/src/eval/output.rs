//! What a query yields.

use std::sync::Arc;

use skald_model::{Columns, FloatHistogram, Labels, TimestampMs};

use super::annotations::Annotations;
use super::context::AnswerCharge;
use super::explain::NodeCost;

/// The answer to a query with everything said about it.
#[derive(Debug)]
pub struct QueryOutput {
    /// The answer.
    pub value: Value,
    /// Warnings and infos.
    pub annotations: Annotations,
    /// What it took.
    pub stats: QueryStats,
    /// What each node of the plan took, by its id, if the context has a clock.
    pub explain: Option<Vec<NodeCost>>,
    /// The answer counts against the query's budget until it is dropped.
    pub charge: AnswerCharge,
}

/// A query's answer.
#[derive(Debug, Clone)]
pub enum Value {
    /// Of an instant query of scalar type.
    Scalar {
        /// The evaluation time.
        timestamp: TimestampMs,
        /// The number.
        value: f64,
    },
    /// Of an instant query of string type.
    String {
        /// The evaluation time.
        timestamp: TimestampMs,
        /// The text.
        value: String,
    },
    /// Of an instant query of vector type; in the order of the evaluation (`sort` and `topk` order it).
    Vector(Vec<Element>),
    /// Of a range query, or of an instant query of matrix type; ascending by labels.
    Matrix(Vec<Series>),
}

/// One element of an instant vector.
#[derive(Debug, Clone)]
pub struct Element {
    /// Which series.
    pub labels: Labels,
    /// The evaluation time.
    pub timestamp: TimestampMs,
    /// The value.
    pub value: SampleValue,
}

/// A float or a native histogram.
#[derive(Debug, Clone)]
pub enum SampleValue {
    /// A float.
    Float(f64),
    /// A native histogram.
    Histogram(Arc<FloatHistogram>),
}

/// One series of a matrix.
#[derive(Debug, Clone)]
pub struct Series {
    /// Which series.
    pub labels: Labels,
    /// Its values in time order; never empty.
    pub samples: Columns,
}

/// What a query took.
#[derive(Debug, Clone, Default)]
pub struct QueryStats {
    /// Series decoded; one that two selectors read counts twice.
    pub series_read: u64,
    /// Samples decoded, each once per selector that read it.
    pub samples_read: u64,
    /// Samples used per step, summed over the steps: a sample in several windows counts in each (Prometheus'
    /// `totalQueryableSamples`).
    pub queryable_samples: u64,
    /// The same per step of the query, if [`super::EvalParams::per_step_stats`] asks for it.
    pub queryable_samples_per_step: Vec<u64>,
    /// Most samples held at one time.
    pub peak_samples: u64,
    /// Most bytes held at one time.
    pub peak_bytes: u64,
}

impl QueryStats {
    /// Adds what another part of the query took; the peaks are the query's, not sums.
    pub(crate) fn add(&mut self, other: &QueryStats) {
        self.series_read += other.series_read;
        self.samples_read += other.samples_read;
        self.queryable_samples += other.queryable_samples;
        let steps = self.queryable_samples_per_step.iter_mut().zip(&other.queryable_samples_per_step);
        steps.for_each(|(mine, theirs)| *mine += theirs);
    }
}
