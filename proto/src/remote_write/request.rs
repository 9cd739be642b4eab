//! The walk over a `WriteRequest`: one pass, columns filled as it goes.

use skald_model::{Exemplar, FloatSample, Labels, MetricMetadata, MetricType};

use super::labels::{self, LabelShape, NameMemo, NameOrder, RawLabel};
use super::sink::Sink;
use super::wire::{Reader, Wire, tag};
use super::{DecodeError, Defect, Received, Rejected, histogram};
use crate::write_batch::{LabelSlice, LabelSource};

const REQUEST_SERIES: u32 = tag(1, Wire::Bytes);
const REQUEST_METADATA: u32 = tag(3, Wire::Bytes);
const REQUEST_FIELDS: u32 = 1 << 1 | 1 << 3;

const SERIES_LABEL: u32 = tag(1, Wire::Bytes);
const SERIES_SAMPLE: u32 = tag(2, Wire::Bytes);
const SERIES_EXEMPLAR: u32 = tag(3, Wire::Bytes);
const SERIES_HISTOGRAM: u32 = tag(4, Wire::Bytes);
const SERIES_FIELDS: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;

const SAMPLE_VALUE: u32 = tag(1, Wire::Fixed64);
const SAMPLE_TIMESTAMP: u32 = tag(2, Wire::Varint);
const SAMPLE_FIELDS: u32 = 1 << 1 | 1 << 2;

const EXEMPLAR_LABEL: u32 = tag(1, Wire::Bytes);
const EXEMPLAR_VALUE: u32 = tag(2, Wire::Fixed64);
const EXEMPLAR_TIMESTAMP: u32 = tag(3, Wire::Varint);
const EXEMPLAR_FIELDS: u32 = 1 << 1 | 1 << 2 | 1 << 3;

const METADATA_TYPE: u32 = tag(1, Wire::Varint);
const METADATA_NAME: u32 = tag(2, Wire::Bytes);
const METADATA_HELP: u32 = tag(4, Wire::Bytes);
const METADATA_UNIT: u32 = tag(5, Wire::Bytes);
const METADATA_FIELDS: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5;

/// Fills the cleared `out` from `message`; label slices refer to `message`.
pub(super) fn decode(
    message: &[u8],
    out: &mut Received,
    on_reject: &mut dyn FnMut(Rejected<'_>),
) -> Result<(), DecodeError> {
    let mut walk = Walk {
        sink: Sink::new(message, out, on_reject),
        memo: NameMemo::default(),
        scratch: Vec::new(),
        series_order: NameOrder::default(),
        exemplar_order: NameOrder::default(),
    };
    let mut request = Reader::new(message);
    while let Some(tag) = request.tag()? {
        let done = match tag {
            REQUEST_SERIES => walk.series(request.message()?)?,
            REQUEST_METADATA => walk.metadata(request.message()?)?,
            _ => request.skip(tag, REQUEST_FIELDS).map(|()| true)?,
        };
        if !done {
            return Err(walk.sink.too_wide());
        }
    }
    Ok(())
}

struct Walk<'a, 'out> {
    sink: Sink<'out>,
    memo: NameMemo<'a>,
    /// Labels of the series or exemplar at hand, when they are not canonical.
    scratch: Vec<RawLabel<'a>>,
    /// Order of the label names of the last such series, and exemplar.
    series_order: NameOrder<'a>,
    exemplar_order: NameOrder<'a>,
}

impl<'a> Walk<'a, '_> {
    /// `Ok(false)` when the budget is used up.
    #[inline]
    fn series(&mut self, message: Reader<'a>) -> Result<bool, DecodeError> {
        let mark = self.sink.mark();
        let start = message.at();
        let mut fields = message;
        let mut shape = labels::canonical(&mut fields, &mut self.memo);
        let labels_end = fields.at();
        while let Some(tag) = fields.tag()? {
            match tag {
                SERIES_SAMPLE => {
                    let sample = sample(fields.message()?)?;
                    self.sink.batch.samples.push(sample);
                }
                SERIES_LABEL => {
                    fields.message()?;
                    // Behind another field, or not canonical.
                    shape = None;
                }
                SERIES_EXEMPLAR => {
                    if !self.exemplar(fields.message()?)? {
                        return Ok(false);
                    }
                }
                SERIES_HISTOGRAM => {
                    let (sample, _) = histogram::read(fields.message()?)?;
                    if !self.sink.histogram(sample, 0) {
                        return Ok(false);
                    }
                }
                _ => fields.skip(tag, SERIES_FIELDS)?,
            }
        }
        if self.sink.mark() == mark {
            // Nothing to store: an empty series must not cost more than its bytes.
            return Ok(true);
        }
        let (labels, shape) = match shape {
            Some(shape) if shape.count > 0 => {
                (LabelSlice { source: LabelSource::Body, start: start as u32, end: labels_end as u32 }, shape)
            }
            _ => match self.rebuild_labels(message)? {
                Ok(rebuilt) => rebuilt,
                Err(defect) => {
                    self.sink.reject_series(defect, &self.scratch, mark);
                    return Ok(true);
                }
            },
        };
        self.sink.series(message.bytes(), labels, shape, mark);
        Ok(true)
    }

    /// Encodes labels anew that were not canonical; leaves them in `scratch` as sent when they have a defect.
    #[cold]
    fn rebuild_labels(&mut self, series: Reader<'a>) -> Result<Result<(LabelSlice, LabelShape), Defect>, DecodeError> {
        self.collect_labels(series, SERIES_LABEL, SERIES_FIELDS)?;
        if self.scratch.is_empty() {
            return Ok(Err(Defect::NoLabels));
        }
        let arranged = match self.series_order.arrange(&self.scratch) {
            Ok(arranged) => arranged,
            Err(defect) => return Ok(Err(defect)),
        };
        let rebuilt = &mut self.sink.batch.rebuilt;
        let start = rebuilt.len();
        let shape = labels::encode(arranged, rebuilt);
        let slice = LabelSlice { source: LabelSource::Rebuilt, start: start as u32, end: rebuilt.len() as u32 };
        Ok(Ok((slice, shape)))
    }

    /// Fills `scratch` with the labels of a message that have a value, wherever in it they stand.
    fn collect_labels(&mut self, mut message: Reader<'a>, label: u32, fields: u32) -> Result<(), DecodeError> {
        self.scratch.clear();
        loop {
            let start = message.at();
            let Some(tag) = message.tag()? else { return Ok(()) };
            if tag == label {
                let label = labels::any_label(start, message.message()?)?;
                if !label.value.is_empty() {
                    self.scratch.push(label);
                }
            } else {
                // The caller has walked the other fields already, so that any wire type is right here.
                message.skip(tag, fields & 1 << (label >> 3))?;
            }
        }
    }

    /// `Ok(false)` when the budget is used up.
    fn exemplar(&mut self, message: Reader<'a>) -> Result<bool, DecodeError> {
        let mut fields = message;
        let (mut value, mut timestamp) = (0.0, 0);
        while let Some(tag) = fields.tag()? {
            match tag {
                EXEMPLAR_LABEL => drop(fields.message()?),
                EXEMPLAR_VALUE => value = fields.double()?,
                EXEMPLAR_TIMESTAMP => timestamp = fields.varint()? as i64,
                _ => fields.skip(tag, EXEMPLAR_FIELDS)?,
            }
        }
        self.collect_labels(message, EXEMPLAR_LABEL, EXEMPLAR_FIELDS)?;
        let labels = match self.exemplar_order.arrange(&self.scratch) {
            _ if self.scratch.is_empty() => Err(Defect::ExemplarWithoutLabels),
            Ok(arranged) => Ok(Labels::from_sorted(arranged.map(|(label, _)| label.text()))),
            Err(_) => Err(Defect::ExemplarLabelsInvalid),
        };
        let labels = match labels {
            Ok(labels) => labels,
            Err(defect) => {
                self.sink.reject_exemplar(defect, &self.scratch);
                return Ok(true);
            }
        };
        Ok(self.sink.exemplar(Exemplar { labels, value, timestamp }))
    }

    /// `Ok(false)` when the budget is used up.
    fn metadata(&mut self, mut message: Reader<'a>) -> Result<bool, DecodeError> {
        let (mut metric, mut help, mut unit): (&[u8], &[u8], &[u8]) = (&[], &[], &[]);
        let mut metric_type = MetricType::Unknown;
        while let Some(tag) = message.tag()? {
            match tag {
                METADATA_TYPE => metric_type = MetricType::from_number(message.varint()?),
                METADATA_NAME => metric = message.slice()?,
                METADATA_HELP => help = message.slice()?,
                METADATA_UNIT => unit = message.slice()?,
                _ => message.skip(tag, METADATA_FIELDS)?,
            }
        }
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).map(str::to_owned);
        let defect = if metric.is_empty() { Defect::MetadataWithoutName } else { Defect::MetadataNotUtf8 };
        let entry = match (text(metric), text(help), text(unit)) {
            (Ok(metric), Ok(help), Ok(unit)) if !metric.is_empty() => {
                MetricMetadata { metric, metric_type, help, unit }
            }
            _ => {
                self.sink.reject_metadata(defect);
                return Ok(true);
            }
        };
        Ok(self.sink.metadata(entry))
    }
}

#[inline]
fn sample(mut message: Reader<'_>) -> Result<FloatSample, DecodeError> {
    let mut sample = FloatSample { timestamp: 0, value: 0.0 };
    while let Some(tag) = message.tag()? {
        match tag {
            SAMPLE_VALUE => sample.value = message.double()?,
            SAMPLE_TIMESTAMP => sample.timestamp = message.varint()? as i64,
            _ => message.skip(tag, SAMPLE_FIELDS)?,
        }
    }
    Ok(sample)
}
