//! `load`: series with samples at equal distances.

use std::collections::BTreeMap;
use std::sync::Arc;

use skald_model::histogram::CUSTOM_BUCKETS_SCHEMA;
use skald_model::{Columns, FloatHistogram, Labels, LabelsBuilder, METRIC_NAME, Span, TimestampMs};

use super::{Line, Lines, ScriptError};
use crate::duration::parse_duration;
use crate::series_description::{MAX_VALUES, SequenceValue, parse_series_description};

/// Data to add. Point `i` of a series has the time `i * step_ms`.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where the command stands.
    pub line: usize,
    /// Distance between two points.
    pub step_ms: i64,
    /// Whether classic histograms are loaded as native ones with custom buckets besides.
    pub with_nhcb: bool,
    /// The series; of two with equal labels the last counts.
    pub series: Vec<LoadSeries>,
}

/// A series to add.
#[derive(Debug, Clone)]
pub struct LoadSeries {
    /// Which.
    pub labels: Labels,
    /// Its points.
    pub values: Vec<SequenceValue>,
    /// The start timestamp of each point relative to the point's own time, if the script gives them.
    pub start_offsets_ms: Option<Vec<Option<i64>>>,
}

pub(super) fn parse(command: Line<'_>, lines: &mut Lines<'_>) -> Result<Load, ScriptError> {
    let (word, step) = Line::split_word(command.text);
    let with_nhcb = match word {
        "load" => false,
        "load_with_nhcb" => true,
        _ => return Err(command.error("invalid load command. (load[_with_nhcb] <step:duration>)")),
    };
    let step_ms = command.duration(step)?;
    let mut series = Vec::new();
    let mut pending: Option<(Labels, Vec<Option<i64>>)> = None;
    while let Some(line) = lines.next_of_body() {
        let (word, rest) = Line::split_word(line.text);
        if let Some(metric) = word.strip_suffix("@st") {
            if pending.is_some() {
                return Err(line.error("@st line has no following sample line"));
            }
            let metric = parse_series_description(metric).map_err(|e| line.error(e.to_string()))?;
            pending = Some((metric.labels, start_offsets(line, rest)?));
            continue;
        }
        let described = parse_series_description(line.text).map_err(|e| line.error(e.to_string()))?;
        let start_offsets_ms = match pending.take() {
            None => None,
            Some((labels, _)) if labels != described.labels => {
                return Err(line.error("@st metric does not match the following sample line metric"));
            }
            Some((_, offsets)) if offsets.len() != described.values.len() => {
                let (starts, samples) = (offsets.len(), described.values.len());
                return Err(line.error(format!("@st line has {starts} values but sample line has {samples}")));
            }
            Some((_, offsets)) => Some(offsets),
        };
        series.push(LoadSeries { labels: described.labels, values: described.values, start_offsets_ms });
    }
    if pending.is_some() {
        return Err(command.error("@st line has no following sample line"));
    }
    Ok(Load { line: command.number, step_ms, with_nhcb, series })
}

/// The items of an `@st` line: `_`, `_xN`, `d`, `dxN`, `d+dxN`, `d-dxN` with durations `d`.
fn start_offsets(line: Line<'_>, text: &str) -> Result<Vec<Option<i64>>, ScriptError> {
    let mut offsets = Vec::new();
    for item in text.split_ascii_whitespace() {
        let invalid = || line.error(format!("invalid @st item {item:?}"));
        let (body, repeats) = match item.split_once('x') {
            None => (item, 0),
            Some((body, count)) => (body, count.parse().ok().filter(|n| *n < MAX_VALUES).ok_or_else(invalid)?),
        };
        if body == "_" {
            offsets.extend(std::iter::repeat_n(None, if item == "_" { 1 } else { repeats }));
            continue;
        }
        let sign_at = body.get(1..).and_then(|rest| rest.find(['+', '-'])).map_or(body.len(), |at| at + 1);
        let (base, delta) = body.split_at(sign_at);
        let mut offset = signed_duration(base).ok_or_else(invalid)?;
        let delta = if delta.is_empty() { 0 } else { signed_duration(delta).ok_or_else(invalid)? };
        for _ in 0..=repeats {
            offsets.push(Some(offset));
            offset += delta;
        }
    }
    Ok(offsets)
}

fn signed_duration(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(text) => parse_duration(text).ok().map(|ms| -ms),
        None => parse_duration(text.strip_prefix('+').unwrap_or(text)).ok(),
    }
}

impl Load {
    /// Every series with its samples, the native histograms made of classic ones included; ascending by labels.
    pub fn columns(&self) -> Result<Vec<(Labels, Columns)>, String> {
        let mut all: BTreeMap<Labels, Columns> = BTreeMap::new();
        for series in &self.series {
            let mut columns = Columns::default();
            let mut timestamp = 0;
            for (i, value) in series.values.iter().enumerate() {
                let offsets = series.start_offsets_ms.as_ref();
                let start = offsets.and_then(|offsets| offsets[i]).map_or(0, |offset| timestamp + offset);
                match value {
                    SequenceValue::Omitted => {}
                    SequenceValue::Float(value) => {
                        columns.push_float(timestamp, *value);
                        columns.start_last_float(start);
                    }
                    SequenceValue::Histogram { histogram, .. } => {
                        columns.push_histogram(timestamp, Arc::clone(histogram));
                        columns.start_last_histogram(start);
                    }
                }
                timestamp += self.step_ms;
            }
            all.insert(series.labels.clone(), columns);
        }
        if self.with_nhcb {
            for (labels, columns) in custom_histograms(&all)? {
                all.insert(labels, columns);
            }
        }
        Ok(all.into_iter().collect())
    }
}

/// A classic histogram at one time, as collected from its series.
#[derive(Default)]
struct Classic {
    /// Bounds with their cumulative counts.
    buckets: Vec<(f64, f64)>,
    count: Option<f64>,
    sum: f64,
}

/// The native histograms with custom buckets that the classic ones among `series` stand for.
fn custom_histograms(series: &BTreeMap<Labels, Columns>) -> Result<BTreeMap<Labels, Columns>, String> {
    let mut found: BTreeMap<Labels, BTreeMap<TimestampMs, Classic>> = BTreeMap::new();
    for (labels, columns) in series {
        let name = labels.metric_name().unwrap_or_default();
        let (kind, base) = match name.rsplit_once('_') {
            Some((base, kind @ ("bucket" | "count" | "sum"))) => (kind, base),
            _ => continue,
        };
        let mut bound = f64::NAN;
        if kind == "bucket" {
            let le = labels.get("le").ok_or_else(|| format!("expected bucket label in metric {labels}"))?;
            bound = le.parse().unwrap_or(f64::NAN);
            if bound.is_nan() {
                continue;
            }
        }
        let mut key = LabelsBuilder::new(labels);
        key.set(METRIC_NAME, base).remove("le");
        let at_times = found.entry(key.build()).or_default();
        for (timestamp, value) in columns.float_timestamps.iter().zip(&columns.float_values) {
            let classic = at_times.entry(*timestamp).or_default();
            match kind {
                "bucket" => classic.buckets.push((bound, *value)),
                "count" => classic.count = Some(*value),
                _ => classic.sum = *value,
            }
        }
    }
    let mut histograms = BTreeMap::new();
    for (labels, at_times) in found {
        let mut columns = Columns::default();
        for (timestamp, classic) in at_times {
            let histogram = classic.convert().map_err(|e| format!("{labels} at {timestamp}: {e}"))?;
            columns.push_histogram(timestamp, Arc::new(histogram));
        }
        histograms.insert(labels, columns);
    }
    Ok(histograms)
}

impl Classic {
    fn convert(mut self) -> Result<FloatHistogram, String> {
        self.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.buckets.dedup_by_key(|bucket| bucket.0);
        if self.buckets.iter().any(|b| b.1 < 0.0) || self.count.is_some_and(|count| count < 0.0) {
            return Err("negative count".to_owned());
        }
        let highest = self.buckets.last().copied();
        let count = self.count.or(highest.map(|b| b.1)).unwrap_or(0.0);
        if highest.is_none_or(|b| b.0 != f64::INFINITY) {
            self.buckets.push((f64::INFINITY, count));
        } else if highest.is_some_and(|b| b.1 != count) {
            return Err(format!("count mismatch: count {count}, +Inf bucket {:?}", highest.map(|b| b.1)));
        }
        let mut before = 0.0;
        let mut positive_buckets = Vec::with_capacity(self.buckets.len());
        for (_, cumulative) in &self.buckets {
            if *cumulative < before {
                return Err(format!("count is not cumulative: {cumulative} < {before}"));
            }
            positive_buckets.push(cumulative - before);
            before = *cumulative;
        }
        let custom_values = self.buckets.iter().map(|b| b.0).filter(|bound| *bound != f64::INFINITY).collect();
        let length = u32::try_from(positive_buckets.len()).map_err(|_| "too many buckets")?;
        Ok(FloatHistogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            count,
            sum: self.sum,
            positive_spans: vec![Span { offset: 0, length }],
            positive_buckets,
            custom_values,
            ..FloatHistogram::default()
        })
    }
}
