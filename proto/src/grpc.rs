//! Messages and service stubs generated from `proto/*.proto`, and what turns the shared words into them and back.

#![allow(missing_docs, reason = "generated; the comments stand in the .proto file")]
#![allow(clippy::all, reason = "generated")]

use std::sync::Arc;

use skald_model::{
    FloatHistogram, HistogramSample, HistogramValue, Labels, MatchOp, MetricMetadata, MetricType, QueryRange, ResetHint,
};

tonic::include_proto!("skald.v1");

/// A message whose content breaks a rule; the text names it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct MalformedMessage(pub &'static str);

impl From<&skald_model::Matcher> for Matcher {
    fn from(matcher: &skald_model::Matcher) -> Self {
        let op = match matcher.op() {
            MatchOp::Equal => 0,
            MatchOp::NotEqual => 1,
            MatchOp::Regex => 2,
            MatchOp::NotRegex => 3,
        };
        Self { op, name: matcher.name().to_owned(), value: matcher.value().to_owned() }
    }
}

impl TryFrom<Matcher> for skald_model::Matcher {
    type Error = MalformedMessage;

    fn try_from(matcher: Matcher) -> Result<Self, MalformedMessage> {
        let op = match matcher.op {
            0 => MatchOp::Equal,
            1 => MatchOp::NotEqual,
            2 => MatchOp::Regex,
            3 => MatchOp::NotRegex,
            _ => return Err(MalformedMessage("unknown matcher operator")),
        };
        Self::new(op, matcher.name, matcher.value).map_err(|_| MalformedMessage("a regex does not compile"))
    }
}

impl From<QueryRange> for TimeRange {
    fn from(range: QueryRange) -> Self {
        Self { min: range.min, max: range.max }
    }
}

impl From<TimeRange> for QueryRange {
    fn from(range: TimeRange) -> Self {
        Self { min: range.min, max: range.max }
    }
}

impl From<&skald_model::Exemplar> for Exemplar {
    fn from(exemplar: &skald_model::Exemplar) -> Self {
        Self { labels: exemplar.labels.as_bytes().to_vec(), value: exemplar.value, timestamp: exemplar.timestamp }
    }
}

impl TryFrom<Exemplar> for skald_model::Exemplar {
    type Error = MalformedMessage;

    fn try_from(exemplar: Exemplar) -> Result<Self, MalformedMessage> {
        Ok(Self { labels: labels(&exemplar.labels)?, value: exemplar.value, timestamp: exemplar.timestamp })
    }
}

/// The label set behind a message's bytes.
pub fn labels(bytes: &[u8]) -> Result<Labels, MalformedMessage> {
    Labels::from_bytes(bytes).map_err(|_| MalformedMessage("malformed labels"))
}

impl From<&MetricMetadata> for Metadata {
    fn from(metadata: &MetricMetadata) -> Self {
        Self {
            metric: metadata.metric.clone(),
            metric_type: metadata.metric_type as u32,
            help: metadata.help.clone(),
            unit: metadata.unit.clone(),
        }
    }
}

impl From<Metadata> for MetricMetadata {
    fn from(metadata: Metadata) -> Self {
        Self {
            metric: metadata.metric,
            metric_type: MetricType::from_number(u64::from(metadata.metric_type)),
            help: metadata.help,
            unit: metadata.unit,
        }
    }
}

fn spans(spans: &[skald_model::Span]) -> Vec<Span> {
    spans.iter().map(|s| Span { offset: s.offset, length: s.length }).collect()
}

fn model_spans(spans: Vec<Span>) -> Vec<skald_model::Span> {
    spans.into_iter().map(|s| skald_model::Span { offset: s.offset, length: s.length }).collect()
}

impl Histogram {
    /// The message of an integer histogram at `timestamp`.
    pub fn from_integer(timestamp: i64, h: &skald_model::Histogram) -> Self {
        Self {
            timestamp,
            is_float: false,
            reset_hint: h.reset_hint as u32,
            schema: h.schema,
            zero_threshold: h.zero_threshold,
            count: h.count,
            zero_count: h.zero_count,
            sum_bits: h.sum.to_bits(),
            positive_spans: spans(&h.positive_spans),
            negative_spans: spans(&h.negative_spans),
            positive_deltas: h.positive_deltas.clone(),
            negative_deltas: h.negative_deltas.clone(),
            custom_values: h.custom_values.to_vec(),
            ..Self::default()
        }
    }

    /// The message of a float histogram at `timestamp`.
    pub fn from_float(timestamp: i64, h: &FloatHistogram) -> Self {
        Self {
            timestamp,
            is_float: true,
            reset_hint: h.reset_hint as u32,
            schema: h.schema,
            zero_threshold: h.zero_threshold,
            float_count: h.count,
            float_zero_count: h.zero_count,
            sum_bits: h.sum.to_bits(),
            positive_spans: spans(&h.positive_spans),
            negative_spans: spans(&h.negative_spans),
            positive_buckets: h.positive_buckets.clone(),
            negative_buckets: h.negative_buckets.clone(),
            custom_values: h.custom_values.to_vec(),
            ..Self::default()
        }
    }

    /// The message of a sample.
    pub fn from_sample(sample: &HistogramSample) -> Self {
        match &sample.value {
            HistogramValue::Integer(h) => Self::from_integer(sample.timestamp, h),
            HistogramValue::Float(h) => Self::from_float(sample.timestamp, h),
        }
    }

    fn model_reset_hint(&self) -> ResetHint {
        match self.reset_hint {
            1 => ResetHint::Reset,
            2 => ResetHint::NotReset,
            3 => ResetHint::Gauge,
            _ => ResetHint::Unknown,
        }
    }

    /// The sample behind the message.
    pub fn into_sample(self) -> HistogramSample {
        let timestamp = self.timestamp;
        let reset_hint = self.model_reset_hint();
        let sum = f64::from_bits(self.sum_bits);
        let value = if self.is_float {
            HistogramValue::Float(Arc::new(FloatHistogram {
                reset_hint,
                schema: self.schema,
                zero_threshold: self.zero_threshold,
                zero_count: self.float_zero_count,
                count: self.float_count,
                sum,
                positive_spans: model_spans(self.positive_spans),
                negative_spans: model_spans(self.negative_spans),
                positive_buckets: self.positive_buckets,
                negative_buckets: self.negative_buckets,
                custom_values: self.custom_values.into(),
            }))
        } else {
            HistogramValue::Integer(Arc::new(skald_model::Histogram {
                reset_hint,
                schema: self.schema,
                zero_threshold: self.zero_threshold,
                zero_count: self.zero_count,
                count: self.count,
                sum,
                positive_spans: model_spans(self.positive_spans),
                negative_spans: model_spans(self.negative_spans),
                positive_deltas: self.positive_deltas,
                negative_deltas: self.negative_deltas,
                custom_values: self.custom_values.into(),
            }))
        };
        HistogramSample { timestamp, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_survive_the_wire() {
        let float = FloatHistogram {
            reset_hint: ResetHint::Gauge,
            schema: -53,
            sum: skald_model::stale_nan(),
            positive_spans: vec![skald_model::Span { offset: -3, length: 2 }],
            positive_buckets: vec![1.5, 2.5],
            custom_values: vec![1.0, 2.0].into(),
            ..FloatHistogram::default()
        };
        let HistogramValue::Float(back) = Histogram::from_float(7, &float).into_sample().value else {
            panic!("a float histogram stays one")
        };
        assert!(back.is_stale());
        assert_eq!((back.reset_hint, &back.positive_spans), (ResetHint::Gauge, &float.positive_spans));
        let integer = HistogramSample {
            timestamp: 9,
            value: HistogramValue::Integer(Arc::new(skald_model::Histogram {
                positive_deltas: vec![3, -2],
                count: 4,
                ..skald_model::Histogram::default()
            })),
        };
        assert_eq!(Histogram::from_sample(&integer).into_sample(), integer);
    }
}
