//! Reading histogram chunks, sample by sample.

use std::sync::Arc;

use skald_model::histogram::EXPONENTIAL_SCHEMAS;
use skald_model::{Columns, FloatHistogram, HistogramSample, QueryRange, TimestampMs, is_stale_nan};

use super::field::{Field, XorField};
use super::layout::{self, Layout};
use super::{BucketOf, CountOf, Counts, Float, Integer, Kind, ResetHeader};
use crate::chunk::bits::{BitReader, BitWriter};
use crate::chunk::started::StartReader;
use crate::chunk::xor2::StartCoder;
use crate::chunk::{ChunkError, Encoding, ST_COUNT, num_samples, varbit};

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
    /// Start timestamps among the samples, and that of the sample read last.
    starts: Option<StartCoder>,
    start: TimestampMs,
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
            starts: None,
            start: 0,
        })
    }

    /// Reads a chunk that has start timestamps: the count leaves room for the flags, whose byte is theirs.
    fn with_starts(bytes: &'a [u8]) -> Result<Self, ChunkError> {
        let mut reader = Self::new(bytes)?;
        let flags = (reader.num_samples >> 8) as u8 & !((ST_COUNT >> 8) as u8);
        reader.header = ResetHeader::from_flags(flags);
        reader.num_samples &= ST_COUNT;
        reader.starts = Some(StartCoder::of_header(bytes[2]));
        Ok(reader)
    }

    /// Reads the next sample; false at the end.
    pub(super) fn advance(&mut self) -> Result<bool, ChunkError> {
        if self.index == self.num_samples {
            return Ok(false);
        }
        let mut before = 0;
        match &mut self.state {
            None => self.state = Some(self.take_first()?),
            Some(state) => {
                before = state.time;
                take_next(&mut self.bits, state)?;
                if state.time <= before {
                    return Err(ChunkError::OutOfOrder);
                }
            }
        }
        if let (Some(starts), Some(state)) = (&mut self.starts, &self.state) {
            self.start = starts.take(&mut self.bits, self.index, before, state.time)?;
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
    encoding: Encoding,
    bytes: &[u8],
    range: QueryRange,
    mut each: impl FnMut(&Reader<'_, K>, &State<K>),
) -> Result<(), ChunkError> {
    let has_starts = encoding != encoding.plain();
    let mut reader = if has_starts { Reader::<K>::with_starts(bytes)? } else { Reader::<K>::new(bytes)? };
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
        Encoding::Histogram | Encoding::HistogramStarts => decode_kind::<Integer>(encoding, bytes, range, out),
        Encoding::FloatHistogram | Encoding::FloatHistogramStarts => decode_kind::<Float>(encoding, bytes, range, out),
        _ => Err(ChunkError::Malformed("histogram encoding")),
    };
    if result.is_err() {
        out.histogram_timestamps.truncate(start);
        out.histograms.truncate(start);
        out.histogram_starts.truncate(start);
    }
    result
}

fn decode_kind<K: Kind>(
    encoding: Encoding,
    bytes: &[u8],
    range: QueryRange,
    out: &mut Columns,
) -> Result<(), ChunkError> {
    for_each_in::<K>(encoding, bytes, range, |reader, state| {
        out.push_histogram(state.time, Arc::new(reader.float_sample(state)));
        out.start_last_histogram(reader.start);
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
    let before = out.len();
    let result = for_each_sample(encoding, bytes, range, |sample, _| out.push(sample));
    if result.is_err() {
        out.truncate(before);
    }
    result
}

/// Calls `each` with every sample of a histogram chunk that lies in `range`, as it was written, and its start timestamp (0 is
/// none). Before an error come those that could be read.
pub fn for_each_sample(
    encoding: Encoding,
    bytes: &[u8],
    range: QueryRange,
    each: impl FnMut(HistogramSample, TimestampMs),
) -> Result<(), ChunkError> {
    match encoding.plain() {
        _ if encoding.has_column() => Err(ChunkError::Malformed("histogram encoding")),
        Encoding::Histogram => for_each_sample_of::<Integer>(encoding, bytes, range, each),
        Encoding::FloatHistogram => for_each_sample_of::<Float>(encoding, bytes, range, each),
        _ => Err(ChunkError::Malformed("histogram encoding")),
    }
}

fn for_each_sample_of<K: Kind>(
    encoding: Encoding,
    bytes: &[u8],
    range: QueryRange,
    mut each: impl FnMut(HistogramSample, TimestampMs),
) -> Result<(), ChunkError> {
    for_each_in::<K>(encoding, bytes, range, |reader, state| {
        let value = K::into_value(reader.sample(state));
        each(HistogramSample { timestamp: state.time, value }, reader.start);
    })
}

/// A chunk of a plain encoding as one with start timestamps, which a column beside it gives
/// ([`crate::chunk::started`]). The samples' own bits stay as they are.
pub fn with_starts(encoding: Encoding, plain: &[u8], column: &[u8]) -> Result<Vec<u8>, ChunkError> {
    match encoding {
        Encoding::Histogram => with_starts_kind::<Integer>(plain, column),
        Encoding::FloatHistogram => with_starts_kind::<Float>(plain, column),
        _ => Err(ChunkError::Malformed("histogram encoding")),
    }
}

fn with_starts_kind<K: Kind>(plain: &[u8], column: &[u8]) -> Result<Vec<u8>, ChunkError> {
    let mut reader = Reader::<K>::new(plain)?;
    if reader.num_samples > ST_COUNT {
        return Err(ChunkError::Malformed("number of samples"));
    }
    let (mut starts, mut coder) = (StartReader::new(column), StartCoder::default());
    let count = reader.num_samples | u16::from(plain[2] & !((ST_COUNT >> 8) as u8)) << 8;
    let mut chunk = Vec::with_capacity(plain.len() + column.len() + 64);
    chunk.extend_from_slice(&count.to_be_bytes());
    chunk.push(0);
    let mut out = BitWriter::new(&mut chunk);
    let mut copied = BitReader::new(&plain[3..]);
    let mut previous = 0;
    while reader.advance()? {
        let Some(time) = reader.state().map(|state| state.time) else { break };
        let mut bits = reader.bits.position() - copied.position();
        while bits > 0 {
            let some = bits.min(64) as u32;
            out.put(copied.take(some), some);
            bits -= some as usize;
        }
        coder.put(&mut out, reader.index - 1, previous, time, starts.next(time)?);
        previous = time;
    }
    out.finish();
    chunk[2] = coder.header();
    Ok(chunk)
}
