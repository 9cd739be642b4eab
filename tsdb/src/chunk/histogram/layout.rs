//! What all samples of a histogram chunk have in common: resolution, zero threshold, which buckets there are.
//!
//! | field | coding |
//! |---|---|
//! | zero threshold | byte 0 for 0; bytes 1 to 254 for the powers of two `2^(byte-244)`; else byte 255 and 64 bits |
//! | schema | varbit_int |
//! | spans, positive then negative | number varbit_uint, per span length varbit_uint and offset varbit_int |
//! | custom bounds, schema -53 only | number varbit_uint, per bound in thousandths + 1 varbit_uint, or `0` and 64 bits |

use std::sync::Arc;

use skald_model::Span;
use skald_model::histogram::{CUSTOM_BUCKETS_SCHEMA, EXPONENTIAL_SCHEMAS, FINEST_RESERVED_SCHEMA, MAX_BUCKET_INDEX};

use super::InvalidHistogram;
use crate::chunk::ChunkError;
use crate::chunk::bits::{BitReader, BitWriter, ByteSink};
use crate::chunk::varbit;

/// Largest bound, in thousandths, that is written as an integer (four bytes).
const MAX_BOUND_THOUSANDTHS: f64 = 33_554_430.0;

/// A chunk's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Resolution.
    pub schema: i32,
    /// Half-width of the zero bucket.
    pub zero_threshold: f64,
    /// Spans of the positive buckets.
    pub positive_spans: Vec<Span>,
    /// Spans of the negative buckets.
    pub negative_spans: Vec<Span>,
    /// Bounds of custom buckets, else empty.
    pub custom_values: Arc<[f64]>,
}

impl Layout {
    /// The layout of a chunk that begins with a stale marker.
    pub fn empty() -> Self {
        Self {
            schema: 0,
            zero_threshold: 0.0,
            positive_spans: Vec::new(),
            negative_spans: Vec::new(),
            custom_values: Arc::from([]),
        }
    }

    /// Writes the layout.
    pub fn put<S: ByteSink>(&self, out: &mut BitWriter<'_, S>) {
        put_zero_threshold(out, self.zero_threshold);
        varbit::put_int(out, i64::from(self.schema));
        for spans in [&self.positive_spans, &self.negative_spans] {
            varbit::put_uint(out, spans.len() as u64);
            for span in spans {
                varbit::put_uint(out, u64::from(span.length));
                varbit::put_int(out, i64::from(span.offset));
            }
        }
        if self.schema == CUSTOM_BUCKETS_SCHEMA {
            varbit::put_uint(out, self.custom_values.len() as u64);
            self.custom_values.iter().for_each(|&bound| put_bound(out, bound));
        }
    }

    /// Reads a layout. Everything it names is proven to be followed by at least as many bits.
    pub fn take(bits: &mut BitReader<'_>) -> Result<Self, ChunkError> {
        let zero_threshold = take_zero_threshold(bits);
        let schema = i32::try_from(varbit::take_int(bits)).map_err(|_| ChunkError::Malformed("schema"))?;
        if schema != CUSTOM_BUCKETS_SCHEMA && !(*EXPONENTIAL_SCHEMAS.start()..=FINEST_RESERVED_SCHEMA).contains(&schema)
        {
            return Err(ChunkError::Malformed("schema"));
        }
        let positive_spans = take_spans(bits)?;
        let negative_spans = take_spans(bits)?;
        let custom_values = if schema == CUSTOM_BUCKETS_SCHEMA { take_bounds(bits)? } else { Arc::from([]) };
        bits.check()?;
        let buckets = num_buckets(&positive_spans) + num_buckets(&negative_spans);
        if buckets > bits.remaining() {
            return Err(ChunkError::Truncated);
        }
        Ok(Self { schema, zero_threshold, positive_spans, negative_spans, custom_values })
    }
}

fn put_zero_threshold<S: ByteSink>(out: &mut BitWriter<'_, S>, threshold: f64) {
    let bits = threshold.to_bits();
    let (exponent, fraction) = ((bits >> 52) as i64 - 1023, bits & ((1 << 52) - 1));
    if threshold == 0.0 {
        out.put(0, 8);
    } else if fraction == 0 && (-243..=10).contains(&exponent) {
        // The exponent includes the sign bit: a negative threshold is out of that range.
        out.put((exponent + 244) as u64, 8);
    } else {
        out.put(255, 8);
        out.put(bits, 64);
    }
}

fn take_zero_threshold(bits: &mut BitReader<'_>) -> f64 {
    match bits.take(8) {
        0 => 0.0,
        255 => f64::from_bits(bits.take(64)),
        byte => f64::from_bits((1023 + byte - 244) << 52),
    }
}

fn put_bound<S: ByteSink>(out: &mut BitWriter<'_, S>, bound: f64) {
    let thousandths = (bound * 1000.0).round() as u64;
    if (0.0..=MAX_BOUND_THOUSANDTHS).contains(&(bound * 1000.0))
        && (thousandths as f64 / 1000.0).to_bits() == bound.to_bits()
    {
        varbit::put_uint(out, thousandths + 1);
    } else {
        out.put(0, 1);
        out.put(bound.to_bits(), 64);
    }
}

fn take_bounds(bits: &mut BitReader<'_>) -> Result<Arc<[f64]>, ChunkError> {
    let count = varbit::take_uint(bits);
    if count > bits.remaining() as u64 {
        return Err(ChunkError::Truncated);
    }
    let bounds: Vec<f64> = (0..count)
        .map(|_| match varbit::take_uint(bits) {
            0 => f64::from_bits(bits.take(64)),
            above => (above - 1) as f64 / 1000.0,
        })
        .collect();
    Ok(bounds.into())
}

fn take_spans(bits: &mut BitReader<'_>) -> Result<Vec<Span>, ChunkError> {
    let count = varbit::take_uint(bits);
    // A span takes two bits at least.
    if count > bits.remaining() as u64 / 2 {
        return Err(ChunkError::Truncated);
    }
    let mut spans = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let length = u32::try_from(varbit::take_uint(bits)).map_err(|_| ChunkError::Malformed("span length"))?;
        let offset = i32::try_from(varbit::take_int(bits)).map_err(|_| ChunkError::Malformed("span offset"))?;
        spans.push(Span { offset, length });
    }
    check_indexes(&spans).map_err(|_| ChunkError::Malformed("span"))?;
    Ok(spans)
}

/// Number of buckets the spans describe; they have passed a check.
pub fn num_buckets(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.length as usize).sum()
}

/// Whether the spans ascend without overlap, stay inside the index range, and describe `buckets` buckets.
pub fn check_spans(spans: &[Span], buckets: usize) -> Result<(), InvalidHistogram> {
    check_indexes(spans)?;
    if num_buckets(spans) == buckets { Ok(()) } else { Err(InvalidHistogram) }
}

fn check_indexes(spans: &[Span]) -> Result<(), InvalidHistogram> {
    let mut end = 0i64;
    for (i, span) in spans.iter().enumerate() {
        let begin = end + i64::from(span.offset);
        end = begin + i64::from(span.length);
        if (i > 0 && span.offset < 0) || begin < -MAX_BUCKET_INDEX || end > MAX_BUCKET_INDEX {
            return Err(InvalidHistogram);
        }
    }
    Ok(())
}

/// The indexes of the buckets that `spans` describe, ascending.
pub fn indexes(spans: &[Span]) -> impl Iterator<Item = i32> {
    ranges(spans).flat_map(|(begin, end)| begin..end)
}

/// The spans as half-open index ranges.
fn ranges(spans: &[Span]) -> impl Iterator<Item = (i32, i32)> {
    spans.iter().scan(0i32, |end, span| {
        let begin = end.wrapping_add(span.offset);
        *end = begin.wrapping_add(span.length as i32);
        Some((begin, *end))
    })
}

/// Spans of all buckets that occur in `a` or `b`, adjacent ones merged.
pub fn union(a: &[Span], b: &[Span]) -> Vec<Span> {
    let mut all: Vec<(i32, i32)> = ranges(a).chain(ranges(b)).filter(|range| range.0 < range.1).collect();
    all.sort_unstable();
    let mut merged: Vec<(i32, i32)> = Vec::with_capacity(all.len());
    for (begin, end) in all {
        match merged.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((begin, end)),
        }
    }
    let mut previous_end = 0;
    merged
        .into_iter()
        .map(|(begin, end)| {
            let span = Span { offset: begin - previous_end, length: (end - begin) as u32 };
            previous_end = end;
            span
        })
        .collect()
}
