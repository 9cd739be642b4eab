//! Samples that go in, and what a head holds, as text that is easily compared.

use super::*;

pub(super) fn check_block_chunks(range: BlockRange, chunks: &[Chunk]) {
    assert!(chunks.is_sorted_by(|a, b| a.max_time < b.min_time), "chunks overlap");
    assert!(chunks.iter().all(|c| range.min <= c.min_time && c.max_time < range.max), "chunk outside its block");
}

/// Per series, per time, the value as text.
pub(in crate::head) type Contents = BTreeMap<Labels, BTreeMap<TimestampMs, String>>;

pub(super) fn add(series: &mut BTreeMap<TimestampMs, String>, chunk: &Chunk, what: &str) {
    let mut samples = Vec::new();
    recode::decode(chunk.encoding, &chunk.data, QueryRange::ALL, &mut samples).unwrap();
    assert_eq!(samples.first().map(|s| s.time), Some(chunk.min_time));
    assert_eq!(samples.last().map(|s| s.time), Some(chunk.max_time));
    assert_eq!(samples.len(), usize::from(chunk.num_samples()));
    for sample in samples {
        let before = series.insert(sample.time, full_text(&sample));
        assert!(before.is_none(), "time {} {what}", sample.time);
    }
}

pub(in crate::head) fn contents(head: &Arc<Head>, matchers: &[Matcher], range: QueryRange) -> Contents {
    let mut select = head.select(matchers, range);
    let mut all = Vec::new();
    while let Some(batch) = select.next_batch(500).unwrap() {
        all.extend(batch);
    }
    assert!(all.is_sorted_by(|a, b| a.labels < b.labels), "series out of order");
    let mut contents = Contents::new();
    for series in all {
        assert!(series.chunks.is_sorted_by_key(|chunk| chunk.min_time));
        let samples = contents.entry(series.labels).or_default();
        series.chunks.iter().for_each(|chunk| add(samples, chunk, "twice in the head"));
    }
    contents
}

/// A sample's value, and its start timestamp if it has one.
pub(super) fn full_text(sample: &TimedSample) -> String {
    match sample.start {
        0 => text(&sample.value),
        start => format!("{} since {start}", text(&sample.value)),
    }
}

pub(super) fn text(value: &SampleValue) -> String {
    match value {
        SampleValue::Float(value) => format!("{:x}", value.to_bits()),
        SampleValue::Histogram(HistogramValue::Integer(h)) => format!("i {} {:x}", h.count, h.sum.to_bits()),
        SampleValue::Histogram(HistogramValue::Float(h)) => format!("f {} {:x}", h.count, h.sum.to_bits()),
    }
}

pub(in crate::head) fn append(
    head: &Head,
    wal: &Wal,
    batch: &[(&Labels, &[TimedSample])],
    limits: &AppendLimits,
) -> Result<Appended, AppendError> {
    struct Owned {
        labels: Vec<u8>,
        floats: Vec<FloatSample>,
        float_starts: Vec<TimestampMs>,
        histograms: Vec<HistogramSample>,
        histogram_starts: Vec<TimestampMs>,
    }
    let mut owned = Vec::new();
    for (labels, samples) in batch {
        let (mut floats, mut histograms) = (Vec::new(), Vec::new());
        let (mut float_starts, mut histogram_starts) = (Vec::new(), Vec::new());
        for TimedSample { time: timestamp, value, start } in *samples {
            match value.clone() {
                SampleValue::Float(value) => {
                    floats.push(FloatSample { timestamp: *timestamp, value });
                    float_starts.push(*start);
                }
                SampleValue::Histogram(value) => {
                    histograms.push(HistogramSample { timestamp: *timestamp, value });
                    histogram_starts.push(*start);
                }
            }
        }
        let labels = LabelBytes::from_labels(labels);
        owned.push(Owned { labels, floats, float_starts, histograms, histogram_starts });
    }
    let series = owned.iter().map(|one| {
        let labels = LabelBytes::new_unchecked(&one.labels);
        let (samples, histograms) = (&one.floats[..], &one.histograms[..]);
        let (sample_starts, histogram_starts) = (&one.float_starts[..], &one.histogram_starts[..]);
        let (labels, hash) = (Some(labels), labels.hash());
        SeriesAppend { labels, hash, samples, sample_starts, histograms, histogram_starts, exemplars: &[] }
    });
    head.append(wal, series, limits)
}

pub(in crate::head) fn float(time: TimestampMs, value: f64) -> TimedSample {
    TimedSample { time, value: SampleValue::Float(value), start: 0 }
}

/// The sample with a start timestamp.
pub(in crate::head) fn started(sample: TimedSample, start: TimestampMs) -> TimedSample {
    TimedSample { start, ..sample }
}

pub(in crate::head) fn histogram(time: TimestampMs, count: u64) -> TimedSample {
    let histogram = Histogram {
        count,
        sum: count as f64,
        positive_spans: vec![Span { offset: (count % 3) as i32, length: 1 }],
        positive_deltas: vec![count as i64],
        ..Histogram::default()
    };
    TimedSample { time, value: SampleValue::Histogram(HistogramValue::Integer(Arc::new(histogram))), start: 0 }
}

pub(in crate::head) fn labels(i: usize) -> Labels {
    Labels::from_pairs([("__name__", format!("m{}", i % 2)), ("i", i.to_string())])
}

pub(super) fn reasons(appended: &Appended) -> Vec<(RejectReason, u64)> {
    appended.rejections.iter().map(|r| (r.reason, r.count)).collect()
}
