//! How one native histogram stands in the log; `FORMAT.md` has the layout.

use std::sync::Arc;

use skald_model::varint::{get_uvarint, get_varint, put_uvarint, put_varint};
use skald_model::{FloatHistogram, Histogram, HistogramValue, ResetHint, Span};

const FLOAT: u8 = 1;

pub(super) fn encode(out: &mut Vec<u8>, value: &HistogramValue) {
    match value {
        HistogramValue::Integer(h) => {
            out.push((h.reset_hint as u8) << 1);
            put_varint(out, i64::from(h.schema));
            put_f64(out, h.zero_threshold);
            put_f64(out, h.sum);
            put_uvarint(out, h.count);
            put_uvarint(out, h.zero_count);
            put_spans(out, &h.positive_spans);
            put_spans(out, &h.negative_spans);
            for deltas in [&h.positive_deltas, &h.negative_deltas] {
                put_uvarint(out, deltas.len() as u64);
                deltas.iter().for_each(|delta| put_varint(out, *delta));
            }
            put_floats(out, &h.custom_values);
        }
        HistogramValue::Float(h) => {
            out.push((h.reset_hint as u8) << 1 | FLOAT);
            put_varint(out, i64::from(h.schema));
            put_f64(out, h.zero_threshold);
            put_f64(out, h.sum);
            put_f64(out, h.count);
            put_f64(out, h.zero_count);
            put_spans(out, &h.positive_spans);
            put_spans(out, &h.negative_spans);
            put_floats(out, &h.positive_buckets);
            put_floats(out, &h.negative_buckets);
            put_floats(out, &h.custom_values);
        }
    }
}

/// `None` when the bytes are not a histogram.
pub(super) fn decode(bytes: &[u8], at: &mut usize) -> Option<HistogramValue> {
    let flags = *bytes.get(*at)?;
    *at += 1;
    let reset_hint = match flags >> 1 {
        0 => ResetHint::Unknown,
        1 => ResetHint::Reset,
        2 => ResetHint::NotReset,
        3 => ResetHint::Gauge,
        _ => return None,
    };
    let schema = i32::try_from(get_varint(bytes, at)?).ok()?;
    let zero_threshold = get_f64(bytes, at)?;
    let sum = get_f64(bytes, at)?;
    if flags & FLOAT == 0 {
        Some(HistogramValue::Integer(Arc::new(Histogram {
            reset_hint,
            schema,
            zero_threshold,
            sum,
            count: get_uvarint(bytes, at)?,
            zero_count: get_uvarint(bytes, at)?,
            positive_spans: get_spans(bytes, at)?,
            negative_spans: get_spans(bytes, at)?,
            positive_deltas: get_list(bytes, at, get_varint)?,
            negative_deltas: get_list(bytes, at, get_varint)?,
            custom_values: get_list(bytes, at, get_f64)?.into(),
        })))
    } else {
        Some(HistogramValue::Float(Arc::new(FloatHistogram {
            reset_hint,
            schema,
            zero_threshold,
            sum,
            count: get_f64(bytes, at)?,
            zero_count: get_f64(bytes, at)?,
            positive_spans: get_spans(bytes, at)?,
            negative_spans: get_spans(bytes, at)?,
            positive_buckets: get_list(bytes, at, get_f64)?,
            negative_buckets: get_list(bytes, at, get_f64)?,
            custom_values: get_list(bytes, at, get_f64)?.into(),
        })))
    }
}

fn put_f64(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

fn put_floats(out: &mut Vec<u8>, values: &[f64]) {
    put_uvarint(out, values.len() as u64);
    values.iter().for_each(|value| put_f64(out, *value));
}

fn put_spans(out: &mut Vec<u8>, spans: &[Span]) {
    put_uvarint(out, spans.len() as u64);
    for span in spans {
        put_varint(out, i64::from(span.offset));
        put_uvarint(out, u64::from(span.length));
    }
}

fn get_f64(bytes: &[u8], at: &mut usize) -> Option<f64> {
    let end = at.checked_add(8)?;
    let raw: [u8; 8] = bytes.get(*at..end)?.try_into().ok()?;
    *at = end;
    Some(f64::from_bits(u64::from_le_bytes(raw)))
}

fn get_spans(bytes: &[u8], at: &mut usize) -> Option<Vec<Span>> {
    get_list(bytes, at, |bytes, at| {
        let offset = i32::try_from(get_varint(bytes, at)?).ok()?;
        let length = u32::try_from(get_uvarint(bytes, at)?).ok()?;
        Some(Span { offset, length })
    })
}

fn get_list<T>(bytes: &[u8], at: &mut usize, get: impl Fn(&[u8], &mut usize) -> Option<T>) -> Option<Vec<T>> {
    let count = usize::try_from(get_uvarint(bytes, at)?).ok()?;
    // Every entry takes a byte at least: a larger count is damage, and must not allocate.
    if count > bytes.len().saturating_sub(*at) {
        return None;
    }
    (0..count).map(|_| get(bytes, at)).collect()
}
