//! The answer to a query as JSON, cut into parts that any thread can encode: a long series between its samples.

use std::ops::Range;
use std::sync::Arc;

use skald_model::{Columns, FloatHistogram, TimestampMs};
use skald_promql::eval::{Element, SampleValue, Series, Value};

use super::answer::{Data, Item, List, Part, sum};
use super::json::{put_float_point, put_histogram_point, put_labels, put_plain_float, put_str, put_time};
use super::point_text::put_points;

/// `"resultType":…,"result":…`
pub struct ValueData {
    left: Left,
    kind: &'static str,
    begun: bool,
}

/// What is not cut off yet.
enum Left {
    Scalar(TimestampMs, f64),
    Text(TimestampMs, String),
    Vector(List<Element>),
    Matrix(Matrix),
}

impl ValueData {
    /// The encoding of `value`.
    pub fn new(value: Value) -> Self {
        let (left, kind) = match value {
            Value::Scalar { timestamp, value } => (Left::Scalar(timestamp, value), "scalar"),
            Value::String { timestamp, value } => (Left::Text(timestamp, value), "string"),
            Value::Vector(elements) => (Left::Vector(List::new(elements)), "vector"),
            Value::Matrix(series) => (Left::Matrix(Matrix::new(series)), "matrix"),
        };
        Self { left, kind, begun: false }
    }
}

impl Data for ValueData {
    fn cut(&mut self, room: usize) -> Part {
        let part = match &mut self.left {
            Left::Scalar(timestamp, value) => {
                let (timestamp, value) = (*timestamp, *value);
                Part::last(move |out| {
                    out.push(b'[');
                    put_time(out, timestamp);
                    out.extend_from_slice(b",\"");
                    put_plain_float(out, value);
                    out.extend_from_slice(b"\"]");
                })
            }
            Left::Text(timestamp, text) => {
                let (timestamp, text) = (*timestamp, std::mem::take(text));
                Part::last(move |out| {
                    out.push(b'[');
                    put_time(out, timestamp);
                    out.push(b',');
                    put_str(out, &text);
                    out.push(b']');
                })
            }
            Left::Vector(elements) => elements.cut(room),
            Left::Matrix(matrix) => matrix.cut(room),
        };
        if std::mem::replace(&mut self.begun, true) {
            return part;
        }
        let kind = self.kind;
        part.after(move |out| {
            out.extend_from_slice(b"\"resultType\":\"");
            out.extend_from_slice(kind.as_bytes());
            out.extend_from_slice(b"\",\"result\":");
        })
    }

    fn bytes(&self, enough: usize) -> usize {
        match &self.left {
            Left::Scalar(..) => POINT_BYTES,
            Left::Text(_, text) => text.len(),
            Left::Vector(elements) => elements.bytes(enough),
            Left::Matrix(matrix) => matrix.bytes(enough),
        }
    }
}

/// Bytes of a point with a float: fewer for whole numbers, a few more with milliseconds and all digits.
const POINT_BYTES: usize = 32;
/// Bytes of what stands around a series.
const SERIES_BYTES: usize = 32;

/// Bytes of a point with this histogram, about: each of its buckets takes four numbers.
fn histogram_bytes(histogram: &FloatHistogram) -> usize {
    96 + 48 * (1 + histogram.positive_buckets.len() + histogram.negative_buckets.len())
}

impl Item for Element {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"metric\":");
        put_labels(out, &self.labels);
        match &self.value {
            SampleValue::Float(value) => {
                out.extend_from_slice(b",\"value\":");
                put_float_point(out, self.timestamp, *value);
            }
            SampleValue::Histogram(histogram) => {
                out.extend_from_slice(b",\"histogram\":");
                put_histogram_point(out, self.timestamp, histogram);
            }
        }
        out.push(b'}');
    }

    fn bytes(&self) -> usize {
        let value = match &self.value {
            SampleValue::Float(_) => POINT_BYTES,
            SampleValue::Histogram(histogram) => histogram_bytes(histogram),
        };
        SERIES_BYTES + self.labels.bytes() + value
    }
}

/// Series of which the first have been cut off.
struct Matrix {
    series: std::vec::IntoIter<Series>,
    current: Option<Cursor>,
    begun: bool,
}

/// A series of which some samples are cut off.
struct Cursor {
    series: Arc<Series>,
    /// The first sample that is not; floats come before histograms.
    next: usize,
}

/// Some samples of a series. The parts that share a series keep it until the last of them is encoded.
struct Slice {
    series: Arc<Series>,
    samples: Range<usize>,
}

impl Matrix {
    fn new(series: Vec<Series>) -> Self {
        Self { series: series.into_iter(), current: None, begun: false }
    }

    fn cut(&mut self, room: usize) -> Part {
        let mut slices = Vec::new();
        let mut left = room;
        while left > 0 {
            let next = || self.series.next().map(|series| Cursor { series: Arc::new(series), next: 0 });
            let Some(mut cursor) = self.current.take().or_else(next) else { break };
            let (slice, bytes) = cursor.cut(left);
            slices.push(slice);
            left = left.saturating_sub(bytes);
            if cursor.next < cursor.series.samples.len() {
                self.current = Some(cursor);
            }
        }
        let is_first = !std::mem::replace(&mut self.begun, true);
        let is_last = self.current.is_none() && self.series.as_slice().is_empty();
        Part::new(is_last, move |out| {
            if is_first {
                out.push(b'[');
            }
            for (i, slice) in slices.into_iter().enumerate() {
                if slice.samples.start == 0 && !(is_first && i == 0) {
                    out.push(b',');
                }
                slice.put(out);
            }
            if is_last {
                out.push(b']');
            }
        })
    }

    fn bytes(&self, enough: usize) -> usize {
        let of = |series: &Series| {
            let histograms = series.samples.histograms.len() * each_histogram(&series.samples);
            SERIES_BYTES + series.labels.bytes() + POINT_BYTES * series.samples.float_values.len() + histograms
        };
        sum(self.series.as_slice().iter().map(of), enough)
    }
}

/// Bytes of one of the histograms, about: buckets become more rather than fewer.
fn each_histogram(samples: &Columns) -> usize {
    let ends = [samples.histograms.first(), samples.histograms.last()];
    ends.into_iter().flatten().map(|histogram| histogram_bytes(histogram)).max().unwrap_or(0)
}

impl Cursor {
    /// Cuts off the samples that fit into `room`, at least one, and says how many bytes they take, about.
    fn cut(&mut self, room: usize) -> (Slice, usize) {
        let samples = &self.series.samples;
        let start = self.next;
        let mut bytes = if start == 0 { SERIES_BYTES + self.series.labels.bytes() } else { 0 };
        let floats = samples.float_values.len();
        for (end, each) in [(floats, POINT_BYTES), (samples.len(), each_histogram(samples))] {
            let fit = (room.saturating_sub(bytes) / each.max(1)).max(usize::from(self.next == start));
            let fit = fit.min(end.saturating_sub(self.next));
            self.next += fit;
            bytes += fit * each;
            if self.next < end {
                break;
            }
        }
        (Slice { series: Arc::clone(&self.series), samples: start..self.next }, bytes)
    }
}

impl Slice {
    fn put(&self, out: &mut Vec<u8>) {
        let Columns { float_timestamps, float_values, histogram_timestamps, histograms, .. } = &self.series.samples;
        let Range { start, end } = self.samples;
        if start == 0 {
            out.extend_from_slice(b"{\"metric\":");
            put_labels(out, &self.series.labels);
        }
        let count = float_values.len();
        if start < count {
            let floats = start..end.min(count);
            let begin = |out: &mut Vec<u8>| out.extend_from_slice(b",\"values\":");
            put_opened(out, start == 0, begin, |out| {
                put_points(out, &float_timestamps[floats.clone()], &float_values[floats]);
            });
            if end >= count {
                out.push(b']');
            }
        }
        if end > count {
            let range = start.saturating_sub(count)..end - count;
            let begin = |out: &mut Vec<u8>| out.extend_from_slice(b",\"histograms\":");
            put_opened(out, range.start == 0, begin, |out| {
                for i in range {
                    out.push(b',');
                    put_histogram_point(out, histogram_timestamps[i], &histograms[i]);
                }
            });
            if end == count + histograms.len() {
                out.push(b']');
            }
        }
        if end == count + histograms.len() {
            out.push(b'}');
        }
    }
}

/// Appends items that have a comma before each. Of the first ones of their list, `begin` appends the list's name, and a
/// bracket stands instead of the first comma.
fn put_opened(out: &mut Vec<u8>, first: bool, begin: impl FnOnce(&mut Vec<u8>), put: impl FnOnce(&mut Vec<u8>)) {
    if first {
        begin(out);
    }
    let start = out.len();
    put(out);
    if first && let Some(comma) = out.get_mut(start) {
        *comma = b'[';
    }
}

#[cfg(test)]
mod tests {
    use skald_model::Labels;

    use super::*;

    /// The whole of the data in parts that aim at `room` bytes, and how many parts there were.
    fn encoded(mut data: ValueData, room: usize) -> (String, usize) {
        let mut out = Vec::new();
        for parts in 1.. {
            let part = data.cut(room);
            let is_last = part.is_last();
            part.put(&mut out);
            if is_last {
                return (String::from_utf8(out).unwrap(), parts);
            }
        }
        unreachable!()
    }

    fn series(name: &str, floats: i64, histograms: i64) -> Series {
        let mut samples = Columns::default();
        (0..floats).for_each(|i| samples.push_float(1_700_000_000_000 + i * 1000, i as f64 / 2.0));
        let histogram = Arc::new(FloatHistogram { count: 3.0, sum: 1.5, zero_count: 3.0, ..FloatHistogram::default() });
        (0..histograms).for_each(|i| samples.push_histogram(1_800_000_000_000 + i * 1000, histogram.clone()));
        Series { labels: Labels::from_pairs([("name", name)]), samples }
    }

    #[test]
    fn scalars_have_no_exponent() {
        for (value, expected) in [(1e21, "1000000000000000000000"), (-1.5e-7, "-0.00000015"), (f64::INFINITY, "+Inf")] {
            let (text, _) = encoded(ValueData::new(Value::Scalar { timestamp: 0, value }), 100);
            assert_eq!(text, format!(r#""resultType":"scalar","result":[0,"{expected}"]"#));
        }
    }

    #[test]
    fn matrices_look_the_same_however_they_are_cut() {
        let matrices = [
            vec![],
            vec![series("a", 1, 0)],
            vec![series("a", 0, 2), series("b", 3, 0), series("c", 2, 2)],
            vec![series("a", 300, 40), series("b", 1, 1), series("c", 500, 0)],
        ];
        for matrix in matrices {
            let data = || ValueData::new(Value::Matrix(matrix.clone()));
            let (whole, parts) = encoded(data(), usize::MAX);
            assert_eq!(parts, 1);
            let parsed: serde_json::Value = serde_json::from_str(&format!("{{{whole}}}")).unwrap();
            let all = parsed["result"].as_array().unwrap();
            assert_eq!(all.len(), matrix.len());
            for (series, shown) in matrix.iter().zip(all) {
                assert_eq!(shown["metric"]["name"], series.labels.get("name").unwrap());
                let len = |name: &str| shown[name].as_array().map_or(0, Vec::len);
                assert_eq!(len("values"), series.samples.float_values.len());
                assert_eq!(len("histograms"), series.samples.histograms.len());
            }
            for room in [1, 50, 400, 3000] {
                let (text, parts) = encoded(data(), room);
                assert_eq!(text, whole);
                assert!(room > 50 || parts >= matrix.len());
            }
            if let Some(last) = all.last().and_then(|series| series["values"].as_array()?.last()) {
                let floats = matrix.last().unwrap().samples.float_values.len();
                assert_eq!(
                    *last,
                    serde_json::json!([1_700_000_000 + floats - 1, ((floats - 1) as f64 / 2.0).to_string()])
                );
            }
        }
    }
}
