//! Native histogram chunks: integer counts (encoding 2) and float counts (encoding 3).
//!
//! Layout: `num_samples u16 | flags u8 | layout | sample …`; everything after the flags is one bit stream.
//!
//! | part | coding |
//! |---|---|
//! | flags | two high bits: [`ResetHeader`]; the rest zero |
//! | layout | zero threshold, schema, positive spans, negative spans, custom bounds only of schema -53: [`layout`] |
//! | first sample | time varbit_int; count, zero count, sum, positive then negative buckets, each as [`field`] says |
//! | others | delta of delta of time varbit_int; the same fields against the sample before |
//! | stale marker | time, two zero bits for the counts, sum; **no** buckets (except in a first sample: its layout has none) |
//!
//! All samples of a chunk share one layout, and no counter falls inside a chunk. [`HistogramAppender`] keeps that:
//! it widens samples or the whole chunk when buckets appear, and says when another chunk must begin. Readers therefore
//! know that a chunk's later samples are not resets; its first sample is always read as [`ResetHint::Unknown`], since
//! the chunk before it may be missing.
//!
//! The two encodings differ only in how one field is coded ([`Kind`]).

mod appender;
pub mod field;
pub mod layout;
mod reader;

pub use appender::{Appended, HistogramAppender};
pub use reader::{decode, decode_samples, for_each_sample, with_starts};

use std::sync::Arc;

use skald_model::{FloatHistogram, Histogram, HistogramValue, ResetHint, Span, stale_nan};

use self::field::{CountField, DeltaField, Field, XorField};
use self::layout::Layout;
use super::Encoding;

/// What a chunk's flags say about the counter reset before its first sample; readers only heed `Gauge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ResetHeader {
    /// Nothing.
    #[default]
    Unknown = 0b0000_0000,
    /// Certainly none.
    NotReset = 0b0100_0000,
    /// The chunk begins with a reset.
    Reset = 0b1000_0000,
    /// The chunk holds gauge histograms.
    Gauge = 0b1100_0000,
}

impl ResetHeader {
    /// The header in a chunk's flag byte.
    pub fn from_flags(flags: u8) -> Self {
        match flags & 0b1100_0000 {
            0b0100_0000 => Self::NotReset,
            0b1000_0000 => Self::Reset,
            0b1100_0000 => Self::Gauge,
            _ => Self::Unknown,
        }
    }

    /// The header of a chunk that begins with a sample of hint `hint` and has no known predecessor.
    pub fn from_hint(hint: ResetHint) -> Self {
        match hint {
            ResetHint::Unknown => Self::Unknown,
            ResetHint::NotReset => Self::NotReset,
            ResetHint::Reset => Self::Reset,
            ResetHint::Gauge => Self::Gauge,
        }
    }

    /// The hint of sample number `index` of a chunk with this header.
    pub fn hint(self, index: u16) -> ResetHint {
        match (self, index) {
            (Self::Gauge, _) => ResetHint::Gauge,
            (_, 0) => ResetHint::Unknown,
            _ => ResetHint::NotReset,
        }
    }
}

/// A histogram that no chunk can hold: spans do not add up to its buckets, overlap, or reach impossible indexes.
///
/// Validation at ingestion finds these first; the sample is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("histogram spans do not match its buckets")]
pub struct InvalidHistogram;

/// A sample's parts, whichever kind it is of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a, C, B> {
    /// Reset knowledge.
    pub hint: ResetHint,
    /// Resolution.
    pub schema: i32,
    /// Half-width of the zero bucket.
    pub zero_threshold: f64,
    /// Observations in the zero bucket.
    pub zero_count: C,
    /// All observations.
    pub count: C,
    /// Sum of observations.
    pub sum: f64,
    /// Positive buckets.
    pub positive: Buckets<'a, B>,
    /// Negative buckets.
    pub negative: Buckets<'a, B>,
    /// Bounds of custom buckets.
    pub custom_values: &'a Arc<[f64]>,
}

/// A sample's totals.
#[derive(Debug, Clone, Copy)]
pub struct Counts<C> {
    /// All observations.
    pub count: C,
    /// Observations in the zero bucket.
    pub zero_count: C,
    /// Sum of observations.
    pub sum: f64,
}

/// The buckets of one sign.
#[derive(Debug, Clone, Copy)]
pub struct Buckets<'a, B> {
    /// Where they are.
    pub spans: &'a [Span],
    /// What they hold, as the kind stores it.
    pub values: &'a [B],
}

/// What differs between integer and float histograms.
pub trait Kind: Sized {
    /// The sample type.
    type Sample: Clone + PartialEq + std::fmt::Debug;
    /// Coding of counts.
    type Count: Field;
    /// Coding of buckets.
    type Bucket: Field;
    /// The chunks' encoding.
    const ENCODING: Encoding;

    /// A sample's parts.
    fn parts(sample: &Self::Sample) -> Parts<'_, CountOf<Self>, BucketOf<Self>>;

    /// Puts a sample together.
    fn sample(
        hint: ResetHint,
        layout: &Layout,
        counts: Counts<CountOf<Self>>,
        positive: Vec<BucketOf<Self>>,
        negative: Vec<BucketOf<Self>>,
    ) -> Self::Sample;

    /// The stale marker.
    fn stale() -> Self::Sample;

    /// Merges buckets until the schema is `schema`.
    fn reduce_resolution(sample: &mut Self::Sample, schema: i32);

    /// The same with its kind named.
    fn into_value(sample: Self::Sample) -> HistogramValue;

    /// A count as a float.
    fn to_f64(count: CountOf<Self>) -> f64;

    /// A bucket's count from the stored value and the count of the bucket before it.
    fn absolute(before: BucketOf<Self>, stored: BucketOf<Self>) -> BucketOf<Self>;

    /// The stored value of a bucket from its count and that of the bucket before it.
    fn stored(before: BucketOf<Self>, absolute: BucketOf<Self>) -> BucketOf<Self>;

    /// A bucket's count as a float.
    fn bucket_to_f64(absolute: BucketOf<Self>) -> f64;
}

/// The count type of a kind.
pub type CountOf<K> = <<K as Kind>::Count as Field>::Value;
/// The stored bucket type of a kind.
pub type BucketOf<K> = <<K as Kind>::Bucket as Field>::Value;

/// Integer counts; buckets stored as differences to the bucket before.
#[derive(Debug, Clone, Copy)]
pub struct Integer;

/// Float counts; buckets stored absolute.
#[derive(Debug, Clone, Copy)]
pub struct Float;

impl Kind for Integer {
    type Sample = Histogram;
    type Count = CountField;
    type Bucket = DeltaField;
    const ENCODING: Encoding = Encoding::Histogram;

    fn parts(sample: &Histogram) -> Parts<'_, u64, i64> {
        Parts {
            hint: sample.reset_hint,
            schema: sample.schema,
            zero_threshold: sample.zero_threshold,
            zero_count: sample.zero_count,
            count: sample.count,
            sum: sample.sum,
            positive: Buckets { spans: &sample.positive_spans, values: &sample.positive_deltas },
            negative: Buckets { spans: &sample.negative_spans, values: &sample.negative_deltas },
            custom_values: &sample.custom_values,
        }
    }

    fn sample(
        hint: ResetHint,
        layout: &Layout,
        counts: Counts<u64>,
        positive: Vec<i64>,
        negative: Vec<i64>,
    ) -> Histogram {
        Histogram {
            reset_hint: hint,
            schema: layout.schema,
            zero_threshold: layout.zero_threshold,
            zero_count: counts.zero_count,
            count: counts.count,
            sum: counts.sum,
            positive_spans: layout.positive_spans.clone(),
            negative_spans: layout.negative_spans.clone(),
            positive_deltas: positive,
            negative_deltas: negative,
            custom_values: layout.custom_values.clone(),
        }
    }

    fn stale() -> Histogram {
        Histogram { sum: stale_nan(), ..Histogram::default() }
    }

    fn reduce_resolution(sample: &mut Histogram, schema: i32) {
        sample.reduce_resolution(schema);
    }

    fn into_value(sample: Histogram) -> HistogramValue {
        HistogramValue::Integer(Arc::new(sample))
    }

    #[inline]
    fn to_f64(count: u64) -> f64 {
        count as f64
    }

    #[inline]
    fn absolute(before: i64, stored: i64) -> i64 {
        before.wrapping_add(stored)
    }

    #[inline]
    fn stored(before: i64, absolute: i64) -> i64 {
        absolute.wrapping_sub(before)
    }

    #[inline]
    fn bucket_to_f64(absolute: i64) -> f64 {
        absolute as f64
    }
}

impl Kind for Float {
    type Sample = FloatHistogram;
    type Count = XorField;
    type Bucket = XorField;
    const ENCODING: Encoding = Encoding::FloatHistogram;

    fn parts(sample: &FloatHistogram) -> Parts<'_, f64, f64> {
        Parts {
            hint: sample.reset_hint,
            schema: sample.schema,
            zero_threshold: sample.zero_threshold,
            zero_count: sample.zero_count,
            count: sample.count,
            sum: sample.sum,
            positive: Buckets { spans: &sample.positive_spans, values: &sample.positive_buckets },
            negative: Buckets { spans: &sample.negative_spans, values: &sample.negative_buckets },
            custom_values: &sample.custom_values,
        }
    }

    fn sample(
        hint: ResetHint,
        layout: &Layout,
        counts: Counts<f64>,
        positive: Vec<f64>,
        negative: Vec<f64>,
    ) -> FloatHistogram {
        FloatHistogram {
            reset_hint: hint,
            schema: layout.schema,
            zero_threshold: layout.zero_threshold,
            zero_count: counts.zero_count,
            count: counts.count,
            sum: counts.sum,
            positive_spans: layout.positive_spans.clone(),
            negative_spans: layout.negative_spans.clone(),
            positive_buckets: positive,
            negative_buckets: negative,
            custom_values: layout.custom_values.clone(),
        }
    }

    fn stale() -> FloatHistogram {
        FloatHistogram { sum: stale_nan(), ..FloatHistogram::default() }
    }

    fn reduce_resolution(sample: &mut FloatHistogram, schema: i32) {
        sample.reduce_resolution(schema);
    }

    fn into_value(sample: FloatHistogram) -> HistogramValue {
        HistogramValue::Float(Arc::new(sample))
    }

    #[inline]
    fn to_f64(count: f64) -> f64 {
        count
    }

    #[inline]
    fn absolute(_before: f64, stored: f64) -> f64 {
        stored
    }

    #[inline]
    fn stored(_before: f64, absolute: f64) -> f64 {
        absolute
    }

    #[inline]
    fn bucket_to_f64(absolute: f64) -> f64 {
        absolute
    }
}

#[cfg(test)]
mod tests;
