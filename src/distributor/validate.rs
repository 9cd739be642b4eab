//! Checks of one tenant's decoded write: what is bad is taken out and counted, what is good stays.

use std::ops::Range;
use std::sync::Arc;

use skald_model::histogram::{EXPONENTIAL_SCHEMAS, FINEST_RESERVED_SCHEMA};
use skald_model::{
    Exemplar, FloatHistogram, Histogram, HistogramSample, HistogramValue, LabelBytes, Labels, METRIC_NAME,
    MetricMetadata, TimestampMs,
};
use skald_proto::remote_write::{Defect, LabelShape, Received, Rejected, is_legacy_label_name, is_legacy_metric_name};
use skald_proto::{SeriesEntry, WriteBatch};

use super::limits::{Limits, NameValidation};
use super::rejections::{Rejections, shown};
use crate::ingester::client::RejectedKind;

/// Most characters of an exemplar's labels, names and values together (OpenMetrics).
const MAX_EXEMPLAR_CHARS: usize = 128;

/// Counts what the decoder could not represent.
pub(super) fn reject_undecodable(rejected: Rejected<'_>, rejections: &mut Rejections) {
    let (reason, what) = match rejected.defect {
        Defect::NoLabels => ("missing-metric-name", "a series has no labels, so no metric name"),
        Defect::NoSamples => ("series-without-samples", "a series has neither samples nor histograms"),
        Defect::LabelReference => ("label-reference-invalid", "a label refers to no symbol, or has no value"),
        Defect::EmptyLabelName => ("label-invalid", "a label name is empty"),
        Defect::LabelNameNotUtf8 => ("label-invalid", "a label name is not valid UTF-8"),
        Defect::LabelValueNotUtf8 => ("label-value-invalid", "a label value is not valid UTF-8"),
        Defect::DuplicateLabelName => ("duplicate-label-names", "two labels have the same name"),
        Defect::ExemplarWithoutLabels => ("exemplar-labels-missing", "an exemplar has no labels"),
        Defect::ExemplarLabelsInvalid => ("exemplar-labels-invalid", "an exemplar's labels are not valid"),
        Defect::MetadataWithoutName => ("metadata-missing-metric-name", "a metadata entry names no metric"),
        Defect::MetadataNotUtf8 => ("metadata-invalid", "a metadata entry is not valid UTF-8"),
        Defect::MetadataReference => ("metadata-reference-invalid", "a series' metadata refers to no symbol"),
    };
    let message = || match rejected.metadata {
        0 => format!("{what}: {}", shown(rejected.labels)),
        _ => what.to_owned(),
    };
    // The sample that a series should have had counts: its sender has to learn of it.
    let missing = usize::from(rejected.defect == Defect::NoSamples);
    rejections.add(RejectedKind::Sample, reason, rejected.samples + missing, message);
    rejections.add(RejectedKind::Exemplar, reason, rejected.exemplars, message);
    rejections.add(RejectedKind::Metadata, reason, rejected.metadata, message);
}

/// The earliest time that requests of the query API can name: an older sample could never be read.
const OLDEST: TimestampMs = i64::MIN / 1000 * 1000 + 62_135_596_801_000;

/// Takes out of a decoded write what breaks a limit.
pub(super) fn validate(received: &mut Received, limits: &Limits, now: TimestampMs, rejections: &mut Rejections) {
    let Received { batch, shapes } = received;
    let past = limits.past_grace_period.map_or(OLDEST, |period| now.saturating_sub(millis(period)).max(OLDEST));
    let future = now.saturating_add(millis(limits.creation_grace_period));
    let mut check = Check { limits, now, past, future, rejections };
    let mut series = std::mem::take(&mut batch.series);
    let mut shapes = shapes.iter();
    series.retain_mut(|entry| match shapes.next() {
        Some(shape) => check.series(batch, entry, shape),
        None => false,
    });
    batch.series = series;
    batch.metadata.retain_mut(|metadata| check.metadata(metadata));
}

fn millis(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

struct Check<'a> {
    limits: &'a Limits,
    now: TimestampMs,
    /// Oldest and newest time of a sample.
    past: TimestampMs,
    future: TimestampMs,
    rejections: &'a mut Rejections,
}

/// Why something is refused.
struct Refusal {
    reason: &'static str,
    message: String,
}

impl Check<'_> {
    /// Whether anything of the series stays.
    #[inline]
    fn series(&mut self, batch: &mut WriteBatch, entry: &mut SeriesEntry, shape: &LabelShape) -> bool {
        if !self.labels_fit(shape)
            && let Some(refusal) = self.labels(batch.labels_of(entry), shape)
        {
            let samples = entry.samples.len() + entry.histograms.len();
            self.rejections.add(RejectedKind::Sample, refusal.reason, samples, || refusal.message.clone());
            let exemplars = entry.exemplars.len();
            self.rejections.add(RejectedKind::Exemplar, refusal.reason, exemplars, || refusal.message.clone());
            return false;
        }
        let times = self.past..=self.future;
        if !column(&batch.samples, &entry.samples).iter().all(|sample| times.contains(&sample.timestamp)) {
            let labels = batch.labels_of(entry).to_labels();
            let (samples, starts) = (&mut batch.samples, &mut batch.sample_starts);
            retain(samples, starts, &mut entry.samples, |s| self.in_time(s.timestamp, &labels));
        }
        if !entry.histograms.is_empty() {
            let labels = batch.labels_of(entry).to_labels();
            let (histograms, starts) = (&mut batch.histograms, &mut batch.histogram_starts);
            retain(histograms, starts, &mut entry.histograms, |sample| self.histogram(sample, &labels));
        }
        if !entry.exemplars.is_empty() {
            retain(&mut batch.exemplars, &mut [], &mut entry.exemplars, |exemplar| self.exemplar(exemplar));
        }
        !(entry.samples.is_empty() && entry.histograms.is_empty() && entry.exemplars.is_empty())
    }

    /// Whether the labels break no limit, judged by their shape alone.
    #[inline]
    fn labels_fit(&self, shape: &LabelShape) -> bool {
        let limits = self.limits;
        shape.has_metric_name
            && shape.count <= limits.max_label_names_per_series
            && shape.longest_name <= limits.max_label_name_length
            && shape.longest_value <= limits.max_label_value_length
            && (shape.legacy_names || limits.name_validation_scheme == NameValidation::Utf8)
    }

    /// The limit the labels break, if they do. Walks them.
    #[cold]
    fn labels(&self, labels: LabelBytes<'_>, shape: &LabelShape) -> Option<Refusal> {
        let limits = self.limits;
        let series = || shown(labels.to_labels());
        let Some((_, metric)) = labels.iter().find(|(name, _)| *name == METRIC_NAME) else {
            return refuse("missing-metric-name", format!("a series has no metric name: {}", series()));
        };
        let legacy = limits.name_validation_scheme == NameValidation::Legacy;
        if legacy && !is_legacy_metric_name(metric.as_bytes()) {
            let message = format!("metric name {:?} is not valid (name_validation_scheme is legacy)", shown(metric));
            return refuse("metric-name-invalid", message);
        }
        let (reason, most) = match metric.ends_with("_info") {
            true => ("max-label-names-per-info-series", limits.max_label_names_per_info_series),
            false => ("max-label-names-per-series", limits.max_label_names_per_series),
        };
        if shape.count > most {
            return refuse(reason, format!("a series has {} labels, the limit is {most}: {}", shape.count, series()));
        }
        for (name, value) in labels.iter() {
            if name.len() > limits.max_label_name_length as usize {
                let (len, most) = (name.len(), limits.max_label_name_length);
                let message =
                    format!("label name {:?} has {len} bytes, the limit is {most}: {}", shown(name), series());
                return refuse("label-name-too-long", message);
            }
            if legacy && !is_legacy_label_name(name.as_bytes()) {
                let name = shown(name);
                let message =
                    format!("label name {name:?} is not valid (name_validation_scheme is legacy): {}", series());
                return refuse("label-invalid", message);
            }
            if value.len() > limits.max_label_value_length as usize {
                let (len, most) = (value.len(), limits.max_label_value_length);
                let message = format!("the value of label {name:?} has {len} bytes, the limit is {most}: {}", series());
                return refuse("label-value-too-long", message);
            }
        }
        None
    }

    fn in_time(&mut self, at: TimestampMs, labels: &Labels) -> bool {
        let Some((reason, what)) = self.time(at) else { return true };
        let message = || format!("a sample at {at} {what}: {}", shown(labels));
        self.rejections.add(RejectedKind::Sample, reason, 1, message);
        false
    }

    fn time(&self, at: TimestampMs) -> Option<(&'static str, String)> {
        if at > self.future {
            let (now, newest) = (self.now, self.future);
            return Some((
                "too-far-in-future",
                format!("is newer than {newest}, the newest accepted time now ({now})"),
            ));
        }
        if at < self.past {
            let (now, oldest) = (self.now, self.past);
            return Some(("too-far-in-past", format!("is older than {oldest}, the oldest accepted time now ({now})")));
        }
        None
    }

    fn histogram(&mut self, sample: &mut HistogramSample, labels: &Labels) -> bool {
        if !self.limits.native_histograms_ingestion_enabled {
            self.rejections.dropped_histograms += 1;
            return false;
        }
        if !self.in_time(sample.timestamp, labels) {
            return false;
        }
        let Err((reason, what)) = self.buckets(&mut sample.value) else { return true };
        let message = || format!("a native histogram is not valid, {what}: {}", shown(labels));
        self.rejections.add(RejectedKind::Sample, reason, 1, message);
        false
    }

    /// Checks a histogram, and brings it into the form that is stored: a stale marker without buckets, no finer schema than
    /// there is a chunk encoding for, and no more buckets than the limit.
    fn buckets(&self, value: &mut HistogramValue) -> Result<(), (&'static str, String)> {
        if let Some(marker) = stale_marker(value) {
            *value = marker;
            return Ok(());
        }
        if (*EXPONENTIAL_SCHEMAS.end()..=FINEST_RESERVED_SCHEMA).contains(&value.schema()) {
            value.reduce_resolution(*EXPONENTIAL_SCHEMAS.end());
        }
        value.validate().map_err(|error| (error.id(), error.to_string()))?;
        let Some(most) = self.limits.max_native_histogram_buckets else { return Ok(()) };
        let buckets = value.num_buckets();
        if buckets <= most as usize {
            return Ok(());
        }
        if !self.limits.reduce_native_histogram_over_max_buckets {
            return Err(("max-native-histogram-buckets", format!("it has {buckets} buckets, the limit is {most}")));
        }
        match value.reduce_to_buckets(most as usize) {
            Ok(_) => Ok(()),
            Err(error) => Err(("not-reducible-native-histogram", error.to_string())),
        }
    }

    fn exemplar(&mut self, exemplar: &Exemplar) -> bool {
        let chars: usize = exemplar.labels.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
        let refusal = if chars > MAX_EXEMPLAR_CHARS {
            Some(("exemplar-labels-too-long", format!("has {chars} characters, the limit is {MAX_EXEMPLAR_CHARS}")))
        } else if exemplar.timestamp == 0 {
            Some(("exemplar-timestamp-invalid", "has no timestamp".to_owned()))
        } else {
            self.time(exemplar.timestamp)
        };
        if let Some((reason, what)) = &refusal {
            let message = || format!("an exemplar {what}: {}", shown(&exemplar.labels));
            self.rejections.add(RejectedKind::Exemplar, reason, 1, message);
        }
        refusal.is_none()
    }

    fn metadata(&mut self, metadata: &mut MetricMetadata) -> bool {
        let most = self.limits.max_metadata_length as usize;
        let too_long = if metadata.metric.len() > most {
            Some(("metadata-metric-name-too-long", "metric name", metadata.metric.len()))
        } else if metadata.unit.len() > most {
            Some(("metadata-unit-too-long", "unit", metadata.unit.len()))
        } else {
            None
        };
        if let Some((reason, what, len)) = too_long {
            self.rejections.add(RejectedKind::Metadata, reason, 1, || {
                format!("metadata's {what} has {len} bytes, the limit is {most}: {}", shown(&metadata.metric))
            });
            return false;
        }
        metadata.help.truncate(metadata.help.floor_char_boundary(most));
        true
    }
}

/// A stale marker in the one form it is stored in, if `value` is one.
fn stale_marker(value: &HistogramValue) -> Option<HistogramValue> {
    match value {
        HistogramValue::Integer(h) if h.is_stale() => {
            Some(HistogramValue::Integer(Arc::new(Histogram { sum: h.sum, ..Histogram::default() })))
        }
        HistogramValue::Float(h) if h.is_stale() => {
            Some(HistogramValue::Float(Arc::new(FloatHistogram { sum: h.sum, ..FloatHistogram::default() })))
        }
        _ => None,
    }
}

fn refuse(reason: &'static str, message: String) -> Option<Refusal> {
    Some(Refusal { reason, message })
}

fn column<'a, T>(column: &'a [T], run: &Range<u32>) -> &'a [T] {
    &column[run.start as usize..run.end as usize]
}

/// Keeps of a series' run in a column what `keep` says yes to, in order and with its start timestamp, and shortens the run.
fn retain<T>(column: &mut [T], starts: &mut [TimestampMs], run: &mut Range<u32>, mut keep: impl FnMut(&mut T) -> bool) {
    let mut kept = run.start as usize;
    for i in run.start as usize..run.end as usize {
        if keep(&mut column[i]) {
            column.swap(kept, i);
            // The column of starts may end before the samples do.
            let start = starts.get(i).copied().unwrap_or(0);
            if let Some(place) = starts.get_mut(kept) {
                *place = start;
            }
            kept += 1;
        }
    }
    run.end = kept as u32;
}
