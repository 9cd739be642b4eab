//! Prometheus' JSON, written straight into a buffer.

use std::io::Write;

use skald_model::{Exemplar, FloatHistogram, GoFloat, Labels, TimestampMs};

use super::answer::Item;
use super::point_text::put_if_common;

/// Appends a JSON string.
pub fn put_str(out: &mut Vec<u8>, text: &str) {
    // Writing into a Vec cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// Appends seconds since the epoch: whole ones without decimals, others with exactly three.
pub fn put_time(out: &mut Vec<u8>, ms: TimestampMs) {
    let (whole, part) = (ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000);
    if ms < 0 {
        out.push(b'-');
    }
    put_number(out, whole);
    if part != 0 {
        let digit = |of: u64| b'0' + (of % 10) as u8;
        out.extend_from_slice(&[b'.', digit(part / 100), digit(part / 10), digit(part)]);
    }
}

/// Appends a number as serde_json does, which is several times faster than formatting.
fn put_number(out: &mut Vec<u8>, number: impl serde::Serialize) {
    // Writing into a Vec cannot fail.
    let _ = serde_json::to_writer(out, &number);
}

/// Appends a float without exponent, however many digits that takes: Prometheus prints scalars so.
pub fn put_plain_float(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        let _ = write!(out, "{}", GoFloat(value));
    } else {
        put_float(out, value);
    }
}

/// Appends a float as Go's shortest form, the way Prometheus picks between plain and exponent notation.
pub fn put_float(out: &mut Vec<u8>, value: f64) {
    let magnitude = value.abs();
    if put_if_common(out, value).is_some() {
    } else if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    } else if magnitude != 0.0 && !(1e-6..1e21).contains(&magnitude) {
        let start = out.len();
        let _ = write!(out, "{value:e}");
        // Rust writes `1e-7` and `1e21`, Go `1e-07` and `1e+21`.
        if let Some(e) = out[start..].iter().position(|&b| b == b'e').map(|at| start + at) {
            let negative = out.get(e + 1) == Some(&b'-');
            let digits = out.split_off(e + 1 + usize::from(negative));
            out.truncate(e + 1);
            out.push(if negative { b'-' } else { b'+' });
            if digits.len() < 2 {
                out.push(b'0');
            }
            out.extend_from_slice(&digits);
        }
    } else {
        let _ = write!(out, "{}", GoFloat(value));
    }
}

impl Item for Labels {
    fn put(&self, out: &mut Vec<u8>) {
        put_labels(out, self);
    }

    fn bytes(&self) -> usize {
        // Quotes and punctuation take more than the lengths in the labels' bytes.
        2 + self.as_bytes().len() * 5 / 4
    }
}

impl Item for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_str(out, self);
    }

    fn bytes(&self) -> usize {
        3 + self.len()
    }
}

/// Appends a list; `put` writes one item.
pub fn put_list<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut put: impl FnMut(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        put(out, item);
    }
    out.push(b']');
}

/// Appends a label set as an object.
pub fn put_labels(out: &mut Vec<u8>, labels: &Labels) {
    out.push(b'{');
    for (i, (name, value)) in labels.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        put_str(out, name);
        out.push(b':');
        put_str(out, value);
    }
    out.push(b'}');
}

fn put_quoted_float(out: &mut Vec<u8>, value: f64) {
    out.push(b'"');
    put_float(out, value);
    out.push(b'"');
}

/// Appends a time and a float.
pub fn put_float_point(out: &mut Vec<u8>, timestamp: TimestampMs, value: f64) {
    out.push(b'[');
    put_time(out, timestamp);
    out.push(b',');
    put_quoted_float(out, value);
    out.push(b']');
}

/// Appends a time and a histogram.
pub fn put_histogram_point(out: &mut Vec<u8>, timestamp: TimestampMs, histogram: &FloatHistogram) {
    out.push(b'[');
    put_time(out, timestamp);
    out.push(b',');
    put_histogram(out, histogram);
    out.push(b']');
}

/// Appends a native histogram; empty buckets are left out. The first number of a bucket says which of its bounds
/// belong to it: 0 the upper, 1 the lower, 2 none, 3 both.
fn put_histogram(out: &mut Vec<u8>, histogram: &FloatHistogram) {
    out.extend_from_slice(b"{\"count\":");
    put_quoted_float(out, histogram.count);
    out.extend_from_slice(b",\"sum\":");
    put_quoted_float(out, histogram.sum);
    let mut first = true;
    for bucket in histogram.buckets().filter(|b| b.count != 0.0) {
        out.extend_from_slice(if first { b",\"buckets\":[" } else { b"," });
        first = false;
        let rule = match (bucket.lower_inclusive, bucket.upper_inclusive) {
            (false, true) => b'0',
            (true, false) => b'1',
            (false, false) => b'2',
            (true, true) => b'3',
        };
        out.extend_from_slice(&[b'[', rule, b',']);
        put_quoted_float(out, bucket.lower);
        out.push(b',');
        put_quoted_float(out, bucket.upper);
        out.push(b',');
        put_quoted_float(out, bucket.count);
        out.push(b']');
    }
    if !first {
        out.push(b']');
    }
    out.push(b'}');
}

/// Appends an exemplar.
pub fn put_exemplar(out: &mut Vec<u8>, exemplar: &Exemplar) {
    out.extend_from_slice(b"{\"labels\":");
    put_labels(out, &exemplar.labels);
    out.extend_from_slice(b",\"value\":");
    put_quoted_float(out, exemplar.value);
    out.extend_from_slice(b",\"timestamp\":");
    put_time(out, exemplar.timestamp);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn float(value: f64, expected: &str) {
        let mut out = Vec::new();
        put_float(&mut out, value);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn floats_look_like_go_s() {
        float(0.0, "0");
        float(-0.0, "-0");
        float(1.5, "1.5");
        float(1e-6, "0.000001");
        float(1e-7, "1e-07");
        float(-1.25e-12, "-1.25e-12");
        float(1e20, "100000000000000000000");
        float(1e21, "1e+21");
        float(1.5e300, "1.5e+300");
        float(5e-324, "5e-324");
        // Between two texts the even one, as Go has it.
        float(4_503_599_627_370_497.0 / 4.0, "1125899906842624.2");
        float(4_503_599_627_370_499.0 / 4.0, "1125899906842624.8");
        float(9_007_199_254_740_991.0, "9007199254740991");
        float(-9_007_199_254_740_992.0, "-9007199254740992");
        float(9_999_999_999_999_998.0, "9999999999999998");
        float(1e16, "10000000000000000");
        float(0.00001, "0.00001");
        float(0.000009, "0.000009");
        float(f64::NAN, "NaN");
        float(f64::INFINITY, "+Inf");
        float(f64::NEG_INFINITY, "-Inf");
    }

    proptest! {
        #[test]
        fn the_fast_ways_write_what_formatting_writes(bits: u64, digits in -1_000_000_i64..1_000_000, scale in -12_i32..20) {
            for value in [f64::from_bits(bits), digits as f64 * 10_f64.powi(scale), digits as f64 / 128.0] {
                if !(1e-6..1e21).contains(&value.abs()) {
                    continue;
                }
                let mut out = Vec::new();
                put_float(&mut out, value);
                prop_assert_eq!(String::from_utf8(out).unwrap(), GoFloat(value).to_string());
            }
        }
    }

    #[test]
    fn times_have_none_or_three_decimals() {
        for (ms, expected) in
            [(0, "0"), (1500, "1.500"), (-1, "-0.001"), (-2000, "-2"), (1_435_781_430_781, "1435781430.781")]
        {
            let mut out = Vec::new();
            put_time(&mut out, ms);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let mut out = Vec::new();
        put_labels(&mut out, &Labels::from_pairs([("a", "q\"\\\n\u{1}é")]));
        assert_eq!(String::from_utf8(out).unwrap(), r#"{"a":"q\"\\\n\u0001é"}"#);
    }
}
