//! Native histograms: integer ones as senders give them, float ones as queries compute with them.
//!
//! Facts: Prometheus model/histogram; bucket `i` of an exponential schema `s` has upper bound `2^(i * 2^-s)`;
//! schema -53 has explicit upper bounds in `custom_values` (the last bucket, beyond them, ends at +Inf).
//!
//! `bucket` gives the buckets with their bounds; `validate` is what ingestion asks of a sender's histogram; `resolution`
//! makes buckets coarser; `convert` turns integer counts into floats. What queries compute with histograms is `promql`'s.

mod bucket;
mod convert;
mod resolution;
mod validate;

pub use bucket::{Bucket, bucket_indexes, exponential_bound};
pub use resolution::NotReducible;
pub use validate::HistogramError;

use std::ops::RangeInclusive;
use std::sync::Arc;

/// Schema number of histograms with custom bucket bounds.
pub const CUSTOM_BUCKETS_SCHEMA: i32 = -53;

/// Resolutions that are computed with: `2^(2^-schema)` between two bounds.
pub const EXPONENTIAL_SCHEMAS: RangeInclusive<i32> = -4..=8;

/// Finest resolution that may be met; what is finer than [`EXPONENTIAL_SCHEMAS`] is reduced to its finest when read.
pub const FINEST_RESERVED_SCHEMA: i32 = 52;

/// Bucket indexes lie in `-MAX_BUCKET_INDEX ..= MAX_BUCKET_INDEX`, so that distances between them fit an `i32` too.
pub const MAX_BUCKET_INDEX: i64 = 1 << 30;

/// A run of consecutive buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// Gap to the previous span's end; of the first span, the index of its first bucket.
    pub offset: i32,
    /// Number of buckets.
    pub length: u32,
}

/// What is known about a counter reset before this sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum ResetHint {
    /// Nothing; compare with the previous sample.
    #[default]
    Unknown = 0,
    /// A reset happened.
    Reset = 1,
    /// No reset happened.
    NotReset = 2,
    /// A gauge histogram: resets have no meaning.
    Gauge = 3,
}

/// A histogram with integer counts; buckets are deltas to their predecessor across all spans of their sign.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// Reset knowledge.
    pub reset_hint: ResetHint,
    /// Resolution: -4..=8, or [`CUSTOM_BUCKETS_SCHEMA`].
    pub schema: i32,
    /// Half-width of the zero bucket.
    pub zero_threshold: f64,
    /// Observations in the zero bucket.
    pub zero_count: u64,
    /// All observations.
    pub count: u64,
    /// Sum of observations; the stale marker's bits make the whole sample stale.
    pub sum: f64,
    /// Spans of the positive buckets.
    pub positive_spans: Vec<Span>,
    /// Spans of the negative buckets.
    pub negative_spans: Vec<Span>,
    /// Positive buckets, each as difference to the one before.
    pub positive_deltas: Vec<i64>,
    /// Negative buckets, likewise.
    pub negative_deltas: Vec<i64>,
    /// Upper bounds of a custom-bucket histogram, ascending, without +Inf; else empty.
    pub custom_values: Arc<[f64]>,
}

/// A histogram with float counts; buckets are absolute.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FloatHistogram {
    /// Reset knowledge.
    pub reset_hint: ResetHint,
    /// Resolution: -4..=8, or [`CUSTOM_BUCKETS_SCHEMA`].
    pub schema: i32,
    /// Half-width of the zero bucket.
    pub zero_threshold: f64,
    /// Observations in the zero bucket.
    pub zero_count: f64,
    /// All observations.
    pub count: f64,
    /// Sum of observations; the stale marker's bits make the whole sample stale.
    pub sum: f64,
    /// Spans of the positive buckets.
    pub positive_spans: Vec<Span>,
    /// Spans of the negative buckets.
    pub negative_spans: Vec<Span>,
    /// Positive bucket counts, absolute.
    pub positive_buckets: Vec<f64>,
    /// Negative bucket counts, absolute.
    pub negative_buckets: Vec<f64>,
    /// Upper bounds of a custom-bucket histogram, ascending, without +Inf; else empty.
    pub custom_values: Arc<[f64]>,
}

impl Histogram {
    /// Whether this is the stale marker of a histogram series.
    pub fn is_stale(&self) -> bool {
        crate::is_stale_nan(self.sum)
    }
}

impl FloatHistogram {
    /// Whether this is the stale marker of a histogram series.
    pub fn is_stale(&self) -> bool {
        crate::is_stale_nan(self.sum)
    }
}
