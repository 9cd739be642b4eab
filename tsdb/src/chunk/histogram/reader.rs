//! Reading histogram chunks, sample by sample.

use std::sync::Arc;

use skald_model::histogram::EXPONENTIAL_SCHEMAS;
use skald_model::{Columns, FloatHistogram, HistogramSample, QueryRange, TimestampMs, is_stale_nan};

use super::field::{Field, XorField};
use super::layout::{self, Layout};
use super::{BucketOf, CountOf, Counts, Float, Integer, Kind, ResetHeader};
use crate::chunk::bits::BitReader;
use crate::chunk::{ChunkError, Encoding, num_samples, varbit};

/// Samples of finer schemas, which only newer programs may write, are reduced to this one.
const FINEST_SCHEMA: i32 = *EXPONENTIAL_SCHEMAS.end();

/// The last sample of a chunk, field by field: what the next one is coded against.
#[derive(Debug, Clone)]
pub(super) struct State<K: Kind> {
    pub(super) time: TimestampMs,
    pub(super) delta: i64,
    pub(super) count: K::Count,
    pub(super) zero_count: K::Count,
    pub(super) sum: XorField,
    pub(super) positive: Vec<K::Bucket>,
    pub(super) negative: Vec<K::Bucket>,
}

impl<K: Kind> State<K> {
    pub(super) fn is_stale(&self) -> bool {
        is_stale_nan(self.sum.value())
    }

    pub(super) fn counts(&self) -> Counts<CountOf<K>> {
        Counts { count: self.count.value(), zero_count: self.zero_count.value(), sum: self.sum.value() }
    }
}

/// Walks a chunk's samples.
pub(super) struct Reader<'a, K: Kind> {
    bits: BitReader<'a>,
    header: ResetHeader,
    num_samples: u16,
    /// Samples read.
    index: u16,
    layout: Layout,
    /// The sample read last; none before the first.
    state: Option<State<K>>,
}

impl<'a, K: Kind> Reader<'a, K> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, ChunkError> {
        let num_samples = num_samples(bytes)?;
        let flags = *bytes.get(2).ok_or(ChunkError::Truncated)?;
        Ok(Self {
            bits: BitReader::new(&bytes[3..]),
            header: ResetHeader::from_flags(flags),
            num_samples,
            index: 0,
            layout: Layout::empty(),
            state: None,
        })
    }

    /// Reads the next sample; false at the end.
    pub(super) fn advance(&mut self) -> Result<bool, ChunkError> {
        if self.index == self.num_samples {
            return Ok(false);
        }
        match &mut self.state {
            None => self.state = Some(self.take_first()?),
            Some(state) => {
                let before = state.time;
                take_next(&mut self.bits, state)?;
                if state.time <= before {
                    return Err(ChunkError::OutOfOrder);
                }
            }
        }
        self.bits.check()?;
        self.index += 1;
        Ok(true)
    }

    fn take_first(&mut self) -> Result<State<K>, ChunkError> {
        self.layout = Layout::take(&mut self.bits)?;
        let bits = &mut self.bits;
        Ok(State {
            time: varbit::take_int(bits),
            delta: 0,
            count: K::Count::take_first(bits),
            zero_count: K::Count::take_first(bits),
            sum: XorField::take_first(bits),
            positive: take_first_buckets::<K>(bits, layout::num_buckets(&self.layout.positive_spans)),
            negative: take_first_buckets::<K>(bits, layout::num_buckets(&self.layout.negative_spans)),
        })
    }

    /// The sample read last.
    pub(super) fn state(&self) -> Option<&State<K>> {
        self.state.as_ref()
    }

    pub(super) fn header(&self) -> ResetHeader {
        self.header
    }

    /// Bits of the whole chunk read so far.
    pub(super) fn position(&self) -> usize {
        24 + self.bits.position()
    }

    pub(super) fn into_parts(self) -> (Layout, Option<State<K>>) {
        (self.layout, self.state)
    }

    /// The sample read last, as it was written.
    fn sample(&self, state: &State<K>) -> K::Sample {
        if state.is_stale() {
            return K::stale();
        }
        let values = |fields: &[K::Bucket]| fields.iter().map(Field::value).collect();
        let hint = self.header.hint(self.index - 1);
        let mut sample =
            K::sample(hint, &self.layout, state.counts(), values(&state.positive), values(&state.negative));
        if self.layout.schema > FINEST_SCHEMA {
            K::reduce_resolution(&mut sample, FINEST_SCHEMA);
        }
        sample
    }

    /// The sample read last, its counts as floats.
    fn float_sample(&self, state: &State<K>) -> FloatHistogram {
        if state.is_stale() {
            return Float::stale();
        }
        let counts = state.counts();
        let mut sample = FloatHistogram {
            reset_hint: self.header.hint(self.index - 1),
            schema: self.layout.schema,
            zero_threshold: self.layout.zero_threshold,
            zero_count: K::to_f64(counts.zero_count),
            count: K::to_f64(counts.count),
            sum: counts.sum,
            positive_spans: self.layout.positive_spans.clone(),
            negative_spans: self.layout.negative_spans.clone(),
            positive_buckets: float_buckets::<K>(&state.positive),
            negative_buckets: float_buckets::<K>(&state.negative),
            custom_values: self.layout.custom_values.clone(),
        };
        if self.layout.schema > FINEST_SCHEMA {
            sample.reduce_resolution(FINEST_SCHEMA);
        }
        sample
    }
}

/// Reads `count` buckets of a first sample; the layout has proven that the bits are there.
fn take_first_buckets<K: Kind>(bits: &mut BitReader<'_>, count: usize) -> Vec<K::Bucket> {
    (0..count).map(|_| K::Bucket::take_first(bits)).collect()
}

fn take_next<K: Kind>(bits: &mut BitReader<'_>, state: &mut State<K>) -> Result<(), ChunkError> {
    state.delta = state.delta.wrapping_add(varbit::take_int(bits));
    state.time = state.time.wrapping_add(state.delta);
    state.count.take_next(bits)?;
    state.zero_count.take_next(bits)?;
    state.sum.take_next(bits)?;
    if state.is_stale() {
        return Ok(());
    }
    state.positive.iter_mut().try_for_each(|bucket| bucket.take_next(bits))?;
    state.negative.iter_mut().try_for_each(|bucket| bucket.take_next(bits))
}

fn float_buckets<K: Kind>(fields: &[K::Bucket]) -> Vec<f64> {
    let mut absolute = BucketOf::<K>::default();
    fields
        .iter()
        .map(|field| {
            absolute = K::absolute(absolute, field.value());
            K::bucket_to_f64(absolute)
        })
        .collect()
}

/// Calls `each` with the reader and the state of every sample in `range`, in time order.
fn for_each_in<K: Kind>(
    bytes: &[u8],
    range: QueryRange,
    mut each: impl FnMut(&Reader<'_, K>, &State<K>),
) -> Result<(), ChunkError> {
    let mut reader = Reader::<K>::new(bytes)?;
    while reader.advance()? {
        let Some(state) = reader.state() else { break };
        if state.time > range.max {
            break;
        }
        if state.time >= range.min {
            each(&reader, state);
        }
    }
    Ok(())
}

/// Appends the samples of a histogram chunk that lie in `range` to the histogram columns of `out`, integer counts
/// converted to floats.
///
/// Samples must be newer than those already there. On an error `out` is as it was.
pub fn decode(encoding: Encoding, bytes: &[u8], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    let start = out.histogram_timestamps.len();
    let result = match encoding {
        Encoding::Histogram => decode_kind::<Integer>(bytes, range, out),
        Encoding::FloatHistogram => decode_kind::<Float>(bytes, range, out),
        Encoding::Xor | Encoding::Xor2 => Err(ChunkError::Malformed("histogram encoding")),
    };
    if result.is_err() {
        out.histogram_timestamps.truncate(start);
        out.histograms.truncate(start);
    }
    result
}

fn decode_kind<K: Kind>(bytes: &[u8], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    for_each_in::<K>(bytes, range, |reader, state| {
        out.push_histogram(state.time, Arc::new(reader.float_sample(state)));
    })
}

/// Appends the samples of a histogram chunk that lie in `range` to `out` as they were written.
///
/// On an error `out` is as it was.
pub fn decode_samples(
    encoding: Encoding,
    bytes: &[u8],
    range: QueryRange,
    out: &mut Vec<HistogramSample>,
) -> Result<(), ChunkError> {
    let start = out.len();
    let result = match encoding {
        Encoding::Histogram => decode_samples_kind::<Integer>(bytes, range, out),
        Encoding::FloatHistogram => decode_samples_kind::<Float>(bytes, range, out),
        Encoding::Xor | Encoding::Xor2 => Err(ChunkError::Malformed("histogram encoding")),
    };
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn decode_samples_kind<K: Kind>(
    bytes: &[u8],
    range: QueryRange,
    out: &mut Vec<HistogramSample>,
) -> Result<(), ChunkError> {
    for_each_in::<K>(bytes, range, |reader, state| {
        out.push(HistogramSample { timestamp: state.time, value: K::into_value(reader.sample(state)) });
    })
}
