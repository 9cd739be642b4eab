//! Samples and exemplars: plain data.

use std::sync::Arc;

use crate::{FloatHistogram, Histogram, TimestampMs};

/// Bits of the stale marker, a signalling NaN that ends a series (Prometheus model/value).
pub const STALE_NAN_BITS: u64 = 0x7FF0_0000_0000_0002;

/// The stale marker as a float. Keep it in registers as bits where arithmetic could quieten it.
pub fn stale_nan() -> f64 {
    f64::from_bits(STALE_NAN_BITS)
}

/// Whether `value` is the stale marker; other NaNs are ordinary values.
#[inline]
pub fn is_stale_nan(value: f64) -> bool {
    value.to_bits() == STALE_NAN_BITS
}

/// One float sample.
#[derive(Debug, Clone, Copy)]
pub struct FloatSample {
    /// When.
    pub timestamp: TimestampMs,
    /// What; NaN payload bits are preserved everywhere.
    pub value: f64,
}

/// A native histogram as a sender gave it: integer or float counts.
#[derive(Debug, Clone, PartialEq)]
pub enum HistogramValue {
    /// Integer counts, buckets as deltas.
    Integer(Arc<Histogram>),
    /// Float counts, buckets absolute.
    Float(Arc<FloatHistogram>),
}

/// One native histogram sample.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramSample {
    /// When.
    pub timestamp: TimestampMs,
    /// What.
    pub value: HistogramValue,
}

/// One exemplar: a sample's witness, with its own labels (a trace id, usually).
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    /// Labels of the exemplar itself, not of its series.
    pub labels: crate::Labels,
    /// The observed value.
    pub value: f64,
    /// When.
    pub timestamp: TimestampMs,
}
