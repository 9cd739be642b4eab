//! Writing histogram chunks: which samples share a chunk, and what a new bucket costs.

use skald_model::{ResetHint, Span, TimestampMs, is_stale_nan};

use super::field::{Field, XorField};
use super::layout::{self, Layout};
use super::reader::{Reader, State};
use super::{BucketOf, Buckets, CountOf, InvalidHistogram, Kind, Parts, ResetHeader};
use crate::chunk::bits::{BitWriter, Tail};
use crate::chunk::xor::put_num_samples;
use crate::chunk::{ChunkError, varbit};

/// What became of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Appended {
    /// Its bytes follow those of the sample before.
    InPlace,
    /// It has buckets the chunk did not have: the whole chunk was written anew.
    Recoded,
    /// It was **not** appended: it cannot share this chunk. Start another one with this header.
    CutNewChunk(ResetHeader),
}

/// Writes one histogram chunk. Owns its bytes, which are a complete chunk after every sample.
#[derive(Debug, Clone)]
pub struct HistogramAppender<K: Kind> {
    bytes: Vec<u8>,
    tail: Tail,
    header: ResetHeader,
    num_samples: u16,
    min_time: TimestampMs,
    layout: Layout,
    state: State<K>,
}

/// How a sample fits an open chunk.
enum Fit {
    /// Same buckets.
    AsIs,
    /// The chunk, the sample or both lack buckets; these are the spans of all.
    Widen { positive: Vec<Span>, negative: Vec<Span> },
    /// Not at all.
    Cut(ResetHeader),
}

impl<K: Kind> HistogramAppender<K> {
    /// Starts a chunk with its first sample. `header` is what [`Appended::CutNewChunk`] or
    /// [`HistogramAppender::header_of_next`] said, or [`ResetHeader::from_hint`] when there is no chunk before.
    pub fn start(time: TimestampMs, sample: &K::Sample, header: ResetHeader) -> Result<Self, InvalidHistogram> {
        let parts = checked_parts::<K>(sample)?;
        if is_stale_nan(parts.sum) {
            return Ok(Self::start_parts(time, &K::parts(&K::stale()), header));
        }
        Ok(Self::start_parts(time, &parts, header))
    }

    fn start_parts(time: TimestampMs, parts: &Parts<'_, CountOf<K>, BucketOf<K>>, header: ResetHeader) -> Self {
        let layout = Layout {
            schema: parts.schema,
            zero_threshold: parts.zero_threshold,
            positive_spans: parts.positive.spans.to_vec(),
            negative_spans: parts.negative.spans.to_vec(),
            custom_values: parts.custom_values.clone(),
        };
        let mut bytes = vec![0, 1, header as u8];
        let mut out = BitWriter::new(&mut bytes);
        layout.put(&mut out);
        varbit::put_int(&mut out, time);
        let state = State {
            time,
            delta: 0,
            count: K::Count::put_first(&mut out, parts.count),
            zero_count: K::Count::put_first(&mut out, parts.zero_count),
            sum: XorField::put_first(&mut out, parts.sum),
            positive: parts.positive.values.iter().map(|&b| K::Bucket::put_first(&mut out, b)).collect(),
            negative: parts.negative.values.iter().map(|&b| K::Bucket::put_first(&mut out, b)).collect(),
        };
        let tail = out.finish();
        Self { bytes, tail, header, num_samples: 1, min_time: time, layout, state }
    }

    /// Goes on with a chunk whose bytes were written by an earlier appender: reads all of it once.
    pub fn resume(bytes: Vec<u8>) -> Result<Self, ChunkError> {
        let mut reader = Reader::<K>::new(&bytes)?;
        let mut num_samples = 0;
        let mut min_time = 0;
        while reader.advance()? {
            if num_samples == 0 {
                min_time = reader.state().map_or(0, |state| state.time);
            }
            num_samples += 1;
        }
        let (position, header) = (reader.position(), reader.header());
        let (layout, state) = reader.into_parts();
        let state = state.ok_or(ChunkError::Malformed("sample count"))?;
        if position.div_ceil(8) != bytes.len() {
            return Err(ChunkError::Malformed("length"));
        }
        let tail = match position % 8 {
            0 => Tail::default(),
            bits => Tail { byte: bytes[bytes.len() - 1] & (0xff << (8 - bits)), bits: bits as u8 },
        };
        Ok(Self { bytes, tail, header, num_samples, min_time, layout, state })
    }

    /// The chunk so far: complete after every sample.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The finished chunk.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Samples so far; at least one.
    pub fn num_samples(&self) -> u16 {
        self.num_samples
    }

    /// Time of the first sample.
    pub fn min_time(&self) -> TimestampMs {
        self.min_time
    }

    /// Time of the last sample.
    pub fn max_time(&self) -> TimestampMs {
        self.state.time
    }

    /// The chunk's header.
    pub fn header(&self) -> ResetHeader {
        self.header
    }

    /// Heap bytes of the open chunk and what it takes to go on with it.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
            + (self.state.positive.capacity() + self.state.negative.capacity()) * size_of::<K::Bucket>()
            + (self.layout.positive_spans.capacity() + self.layout.negative_spans.capacity()) * size_of::<Span>()
            + self.layout.custom_values.len() * 8
    }

    /// Whether `sample` equals the last one in everything but its hint: the same sample sent twice.
    pub fn last_equals(&self, sample: &K::Sample) -> bool {
        let parts = K::parts(sample);
        let same_bits = self.state.sum.value().to_bits() == parts.sum.to_bits();
        if self.state.is_stale() || is_stale_nan(parts.sum) {
            return same_bits;
        }
        let counts = self.state.counts();
        same_bits
            && counts.count == parts.count
            && counts.zero_count == parts.zero_count
            && self.same_scale(&parts)
            && same_buckets::<K>(&self.layout.positive_spans, &self.state.positive, parts.positive)
            && same_buckets::<K>(&self.layout.negative_spans, &self.state.negative, parts.negative)
    }

    /// Appends one sample, newer than the last one.
    pub fn append(&mut self, time: TimestampMs, sample: &K::Sample) -> Result<Appended, InvalidHistogram> {
        let parts = checked_parts::<K>(sample)?;
        let fit = self.fit(&parts);
        if let Fit::Cut(header) = fit {
            return Ok(Appended::CutNewChunk(header));
        }
        if self.num_samples == u16::MAX {
            return Ok(Appended::CutNewChunk(header_after_fit(&parts)));
        }
        let Fit::Widen { positive, negative } = fit else {
            self.put_next(time, &parts, parts.positive.values, parts.negative.values);
            return Ok(Appended::InPlace);
        };
        let wider_positive = widen::<K>(parts.positive.spans, parts.positive.values.iter().copied(), &positive);
        let wider_negative = widen::<K>(parts.negative.spans, parts.negative.values.iter().copied(), &negative);
        let recoded = layout::num_buckets(&positive) != self.state.positive.len()
            || layout::num_buckets(&negative) != self.state.negative.len();
        if recoded {
            self.recode(&positive, &negative);
        }
        self.put_next(time, &parts, &wider_positive, &wider_negative);
        Ok(if recoded { Appended::Recoded } else { Appended::InPlace })
    }

    /// The header of a chunk that `sample` would begin after this one, when this one is cut for its size or time.
    pub fn header_of_next(&self, sample: &K::Sample) -> ResetHeader {
        match checked_parts::<K>(sample) {
            Ok(parts) => match self.fit(&parts) {
                Fit::Cut(header) => header,
                Fit::AsIs | Fit::Widen { .. } => header_after_fit(&parts),
            },
            Err(InvalidHistogram) => ResetHeader::Unknown,
        }
    }

    fn fit(&self, parts: &Parts<'_, CountOf<K>, BucketOf<K>>) -> Fit {
        let gauge = parts.hint == ResetHint::Gauge;
        if is_stale_nan(parts.sum) {
            return Fit::AsIs;
        }
        if parts.hint == ResetHint::Reset {
            return Fit::Cut(ResetHeader::Reset);
        }
        let unrelated = if gauge { ResetHeader::Gauge } else { ResetHeader::Unknown };
        if gauge != (self.header == ResetHeader::Gauge) || self.state.is_stale() {
            return Fit::Cut(unrelated);
        }
        let last = self.state.counts();
        if !gauge && parts.count < last.count {
            return Fit::Cut(ResetHeader::Reset);
        }
        if !self.same_scale(parts) {
            let other_bounds = self.layout.schema == parts.schema && self.layout.custom_values != *parts.custom_values;
            return Fit::Cut(if !gauge && other_bounds { ResetHeader::Reset } else { unrelated });
        }
        if !gauge && parts.zero_count < last.zero_count {
            return Fit::Cut(ResetHeader::Reset);
        }
        let positive = compare::<K>(&self.layout.positive_spans, &self.state.positive, parts.positive, gauge);
        let negative = compare::<K>(&self.layout.negative_spans, &self.state.negative, parts.negative, gauge);
        match (positive, negative) {
            (Compared::Reset, _) | (_, Compared::Reset) => Fit::Cut(ResetHeader::Reset),
            (Compared::SameBuckets, Compared::SameBuckets) => Fit::AsIs,
            _ => Fit::Widen {
                positive: layout::union(&self.layout.positive_spans, parts.positive.spans),
                negative: layout::union(&self.layout.negative_spans, parts.negative.spans),
            },
        }
    }

    /// Whether schema, zero threshold and custom bounds are the chunk's.
    fn same_scale(&self, parts: &Parts<'_, CountOf<K>, BucketOf<K>>) -> bool {
        self.layout.schema == parts.schema
            && self.layout.zero_threshold == parts.zero_threshold
            && self.layout.custom_values == *parts.custom_values
    }

    fn put_next(
        &mut self,
        time: TimestampMs,
        parts: &Parts<'_, CountOf<K>, BucketOf<K>>,
        positive: &[BucketOf<K>],
        negative: &[BucketOf<K>],
    ) {
        if self.tail.bits > 0 {
            self.bytes.pop();
        }
        let mut out = BitWriter::resume(&mut self.bytes, self.tail);
        let state = &mut self.state;
        let delta = time.wrapping_sub(state.time);
        varbit::put_int(&mut out, delta.wrapping_sub(state.delta));
        if is_stale_nan(parts.sum) {
            // Both count fields as "no change", and no buckets.
            out.put(0, 2);
            state.sum.put_next(&mut out, parts.sum);
        } else {
            state.count.put_next(&mut out, parts.count);
            state.zero_count.put_next(&mut out, parts.zero_count);
            state.sum.put_next(&mut out, parts.sum);
            state.positive.iter_mut().zip(positive).for_each(|(field, &b)| field.put_next(&mut out, b));
            state.negative.iter_mut().zip(negative).for_each(|(field, &b)| field.put_next(&mut out, b));
        }
        state.time = time;
        state.delta = delta;
        self.tail = out.finish();
        self.num_samples += 1;
        put_num_samples(&mut self.bytes, self.num_samples);
    }

    /// Writes all samples anew with wider spans.
    fn recode(&mut self, positive: &[Span], negative: &[Span]) {
        let mut recoded: Option<Self> = None;
        // The bytes are our own: reading them cannot fail.
        let mut reader = Reader::<K>::new(&self.bytes);
        while let Ok(reader) = &mut reader
            && let Ok(true) = reader.advance()
            && let Some(state) = reader.state()
        {
            let (from_positive, from_negative) = (&self.layout.positive_spans, &self.layout.negative_spans);
            let positive_values = widen::<K>(from_positive, state.positive.iter().map(Field::value), positive);
            let negative_values = widen::<K>(from_negative, state.negative.iter().map(Field::value), negative);
            let counts = state.counts();
            let parts = Parts {
                hint: ResetHint::Unknown,
                schema: self.layout.schema,
                zero_threshold: self.layout.zero_threshold,
                zero_count: counts.zero_count,
                count: counts.count,
                sum: counts.sum,
                positive: Buckets { spans: positive, values: &positive_values },
                negative: Buckets { spans: negative, values: &negative_values },
                custom_values: &self.layout.custom_values,
            };
            match &mut recoded {
                Some(chunk) => chunk.put_next(state.time, &parts, &positive_values, &negative_values),
                None => recoded = Some(Self::start_parts(state.time, &parts, self.header)),
            }
        }
        if let Some(recoded) = recoded {
            assert_eq!(recoded.num_samples, self.num_samples, "a chunk reads back what was written to it");
            *self = recoded;
        }
    }
}

/// The parts of a sample whose spans fit its buckets.
fn checked_parts<K: Kind>(sample: &K::Sample) -> Result<Parts<'_, CountOf<K>, BucketOf<K>>, InvalidHistogram> {
    let parts = K::parts(sample);
    layout::check_spans(parts.positive.spans, parts.positive.values.len())?;
    layout::check_spans(parts.negative.spans, parts.negative.values.len())?;
    Ok(parts)
}

/// The header after a chunk that could have taken the sample.
fn header_after_fit<C, B>(parts: &Parts<'_, C, B>) -> ResetHeader {
    if parts.hint == ResetHint::Gauge { ResetHeader::Gauge } else { ResetHeader::NotReset }
}

enum Compared {
    SameBuckets,
    OtherBuckets,
    Reset,
}

/// Compares the chunk's last buckets with a sample's. A bucket that fell, or vanished although it was populated, is a
/// reset, unless these are gauges.
fn compare<K: Kind>(spans: &[Span], last: &[K::Bucket], sample: Buckets<'_, BucketOf<K>>, gauge: bool) -> Compared {
    let zero = BucketOf::<K>::default();
    if spans == sample.spans {
        if gauge {
            return Compared::SameBuckets;
        }
        let (mut before, mut now) = (zero, zero);
        for (field, &value) in last.iter().zip(sample.values) {
            before = K::absolute(before, field.value());
            now = K::absolute(now, value);
            if now < before {
                return Compared::Reset;
            }
        }
        return Compared::SameBuckets;
    }
    let mut chunk = layout::indexes(spans).zip(last.iter().map(Field::value).scan(zero, |sum, value| {
        *sum = K::absolute(*sum, value);
        Some(*sum)
    }));
    let mut new = layout::indexes(sample.spans).zip(sample.values.iter().scan(zero, |sum, &value| {
        *sum = K::absolute(*sum, value);
        Some(*sum)
    }));
    let (mut left, mut right) = (chunk.next(), new.next());
    let mut other_buckets = false;
    loop {
        match (left, right) {
            (None, None) => break,
            (Some((i, before)), Some((j, now))) if i == j => {
                if !gauge && now < before {
                    return Compared::Reset;
                }
                (left, right) = (chunk.next(), new.next());
            }
            (Some((i, before)), other) if other.is_none_or(|(j, _)| i < j) => {
                if !gauge && before != zero {
                    return Compared::Reset;
                }
                other_buckets = true;
                left = chunk.next();
            }
            _ => {
                other_buckets = true;
                right = new.next();
            }
        }
    }
    if other_buckets { Compared::OtherBuckets } else { Compared::SameBuckets }
}

/// Whether a sample's populated buckets and counts are those of the chunk's last sample.
fn same_buckets<K: Kind>(spans: &[Span], last: &[K::Bucket], sample: Buckets<'_, BucketOf<K>>) -> bool {
    let zero = BucketOf::<K>::default();
    let mut sum = zero;
    let chunk = layout::indexes(spans).zip(last).map(|(i, field)| {
        sum = K::absolute(sum, field.value());
        (i, sum)
    });
    let mut sum = zero;
    let new = layout::indexes(sample.spans).zip(sample.values).map(|(i, &value)| {
        sum = K::absolute(sum, value);
        (i, sum)
    });
    chunk.filter(|bucket| bucket.1 != zero).eq(new.filter(|bucket| bucket.1 != zero))
}

/// Stored bucket values of spans `from` rewritten for the wider spans `to`; new buckets are empty.
fn widen<K: Kind>(from: &[Span], values: impl Iterator<Item = BucketOf<K>>, to: &[Span]) -> Vec<BucketOf<K>> {
    let zero = BucketOf::<K>::default();
    let mut sum = zero;
    let mut old = layout::indexes(from).zip(values).map(|(i, value)| {
        sum = K::absolute(sum, value);
        (i, sum)
    });
    let mut next = old.next();
    let mut before = zero;
    layout::indexes(to)
        .map(|index| {
            let absolute = match next {
                Some((i, count)) if i == index => {
                    next = old.next();
                    count
                }
                _ => zero,
            };
            let stored = K::stored(before, absolute);
            before = absolute;
            stored
        })
        .collect()
}
