//! Native histograms as remote_write carries them; integer and float ones share one message.

use std::sync::Arc;

use skald_model::{FloatHistogram, Histogram, HistogramSample, HistogramValue, ResetHint, Span, TimestampMs};

use super::DecodeError;
use super::wire::{Reader, Wire, tag};

const COUNT_INT: u32 = tag(1, Wire::Varint);
const COUNT_FLOAT: u32 = tag(2, Wire::Fixed64);
const SUM: u32 = tag(3, Wire::Fixed64);
const SCHEMA: u32 = tag(4, Wire::Varint);
const ZERO_THRESHOLD: u32 = tag(5, Wire::Fixed64);
const ZERO_COUNT_INT: u32 = tag(6, Wire::Varint);
const ZERO_COUNT_FLOAT: u32 = tag(7, Wire::Fixed64);
const NEGATIVE_SPAN: u32 = tag(8, Wire::Bytes);
const NEGATIVE_DELTAS: u32 = tag(9, Wire::Bytes);
const NEGATIVE_DELTA: u32 = tag(9, Wire::Varint);
const NEGATIVE_COUNTS: u32 = tag(10, Wire::Bytes);
const NEGATIVE_COUNT: u32 = tag(10, Wire::Fixed64);
const POSITIVE_SPAN: u32 = tag(11, Wire::Bytes);
const POSITIVE_DELTAS: u32 = tag(12, Wire::Bytes);
const POSITIVE_DELTA: u32 = tag(12, Wire::Varint);
const POSITIVE_COUNTS: u32 = tag(13, Wire::Bytes);
const POSITIVE_COUNT: u32 = tag(13, Wire::Fixed64);
const RESET_HINT: u32 = tag(14, Wire::Varint);
const TIMESTAMP: u32 = tag(15, Wire::Varint);
const CUSTOM_VALUES: u32 = tag(16, Wire::Bytes);
const CUSTOM_VALUE: u32 = tag(16, Wire::Fixed64);
/// Only 2.0 has it; in 1.0 it is an unknown field, of any type.
const START_TIMESTAMP: u32 = tag(17, Wire::Varint);
/// Fields 1 to 16.
const HISTOGRAM_FIELDS: u32 = 0x1_FFFE;

const SPAN_OFFSET: u32 = tag(1, Wire::Varint);
const SPAN_LENGTH: u32 = tag(2, Wire::Varint);
const SPAN_FIELDS: u32 = 1 << 1 | 1 << 2;

/// Everything the message can say, before it is known which kind of histogram it is.
#[derive(Default)]
struct Message {
    timestamp: i64,
    start: i64,
    reset_hint: ResetHint,
    schema: i32,
    zero_threshold: f64,
    sum: f64,
    count_int: u64,
    count_float: Option<f64>,
    zero_count_int: u64,
    zero_count_float: f64,
    positive_spans: Vec<Span>,
    negative_spans: Vec<Span>,
    positive_deltas: Vec<i64>,
    negative_deltas: Vec<i64>,
    positive_counts: Vec<f64>,
    negative_counts: Vec<f64>,
    custom_values: Vec<f64>,
}

/// Reads one `Histogram` message, and its start timestamp, 0 when it has none. Whether it makes sense is for its consumer to
/// check.
pub(super) fn read(mut reader: Reader<'_>) -> Result<(HistogramSample, TimestampMs), DecodeError> {
    let mut m = Message::default();
    while let Some(tag) = reader.tag()? {
        match tag {
            // A later member of a oneof replaces an earlier one.
            COUNT_INT => (m.count_int, m.count_float) = (reader.varint()?, None),
            COUNT_FLOAT => m.count_float = Some(reader.double()?),
            SUM => m.sum = reader.double()?,
            SCHEMA => m.schema = reader.signed()? as i32,
            ZERO_THRESHOLD => m.zero_threshold = reader.double()?,
            ZERO_COUNT_INT => m.zero_count_int = reader.varint()?,
            ZERO_COUNT_FLOAT => m.zero_count_float = reader.double()?,
            NEGATIVE_SPAN => m.negative_spans.push(span(reader.message()?)?),
            POSITIVE_SPAN => m.positive_spans.push(span(reader.message()?)?),
            NEGATIVE_DELTAS => packed_signed(reader.message()?, &mut m.negative_deltas)?,
            POSITIVE_DELTAS => packed_signed(reader.message()?, &mut m.positive_deltas)?,
            NEGATIVE_DELTA => m.negative_deltas.push(reader.signed()?),
            POSITIVE_DELTA => m.positive_deltas.push(reader.signed()?),
            NEGATIVE_COUNTS => packed_doubles(reader.message()?, &mut m.negative_counts)?,
            POSITIVE_COUNTS => packed_doubles(reader.message()?, &mut m.positive_counts)?,
            NEGATIVE_COUNT => m.negative_counts.push(reader.double()?),
            POSITIVE_COUNT => m.positive_counts.push(reader.double()?),
            CUSTOM_VALUES => packed_doubles(reader.message()?, &mut m.custom_values)?,
            CUSTOM_VALUE => m.custom_values.push(reader.double()?),
            RESET_HINT => m.reset_hint = reset_hint(reader.varint()?),
            TIMESTAMP => m.timestamp = reader.varint()? as i64,
            START_TIMESTAMP => m.start = reader.varint()? as i64,
            _ => reader.skip(tag, HISTOGRAM_FIELDS)?,
        }
    }
    let start = m.start;
    Ok((HistogramSample { timestamp: m.timestamp, value: m.into_value() }, start))
}

impl Message {
    fn into_value(self) -> HistogramValue {
        let custom_values = self.custom_values.into();
        match self.count_float {
            Some(count) => HistogramValue::Float(Arc::new(FloatHistogram {
                reset_hint: self.reset_hint,
                schema: self.schema,
                zero_threshold: self.zero_threshold,
                zero_count: self.zero_count_float,
                count,
                sum: self.sum,
                positive_spans: self.positive_spans,
                negative_spans: self.negative_spans,
                positive_buckets: self.positive_counts,
                negative_buckets: self.negative_counts,
                custom_values,
            })),
            None => HistogramValue::Integer(Arc::new(Histogram {
                reset_hint: self.reset_hint,
                schema: self.schema,
                zero_threshold: self.zero_threshold,
                zero_count: self.zero_count_int,
                count: self.count_int,
                sum: self.sum,
                positive_spans: self.positive_spans,
                negative_spans: self.negative_spans,
                positive_deltas: self.positive_deltas,
                negative_deltas: self.negative_deltas,
                custom_values,
            })),
        }
    }
}

/// Bytes a histogram sample takes on the heap, the allocator's own included roughly.
pub(crate) fn heap_bytes(sample: &HistogramSample) -> usize {
    let (fixed, spans, eights) = match &sample.value {
        HistogramValue::Integer(h) => (
            size_of::<Histogram>(),
            h.positive_spans.capacity() + h.negative_spans.capacity(),
            h.positive_deltas.capacity() + h.negative_deltas.capacity() + h.custom_values.len(),
        ),
        HistogramValue::Float(h) => (
            size_of::<FloatHistogram>(),
            h.positive_spans.capacity() + h.negative_spans.capacity(),
            h.positive_buckets.capacity() + h.negative_buckets.capacity() + h.custom_values.len(),
        ),
    };
    size_of::<HistogramSample>() + 32 + fixed + 8 * (spans + eights)
}

fn span(mut reader: Reader<'_>) -> Result<Span, DecodeError> {
    let mut span = Span::default();
    while let Some(tag) = reader.tag()? {
        match tag {
            // Protobuf cuts 32-bit fields down to their low bits.
            SPAN_OFFSET => span.offset = reader.signed()? as i32,
            SPAN_LENGTH => span.length = reader.varint()? as u32,
            _ => reader.skip(tag, SPAN_FIELDS)?,
        }
    }
    Ok(span)
}

fn packed_signed(mut reader: Reader<'_>, out: &mut Vec<i64>) -> Result<(), DecodeError> {
    while reader.remaining() > 0 {
        out.push(reader.signed()?);
    }
    Ok(())
}

fn packed_doubles(mut reader: Reader<'_>, out: &mut Vec<f64>) -> Result<(), DecodeError> {
    out.reserve_exact(reader.remaining() / 8);
    while reader.remaining() > 0 {
        out.push(reader.double()?);
    }
    Ok(())
}

fn reset_hint(number: u64) -> ResetHint {
    match number {
        1 => ResetHint::Reset,
        2 => ResetHint::NotReset,
        3 => ResetHint::Gauge,
        _ => ResetHint::Unknown,
    }
}
