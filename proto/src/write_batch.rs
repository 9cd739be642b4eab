//! One write request on its way from a sender to the heads.

use std::ops::Range;

use bytes::Bytes;
use skald_model::{
    Exemplar, FloatSample, HistogramSample, HistogramValue, LabelBytes, Labels, MetricMetadata, TimestampMs,
};

/// Series with their samples, and metadata, of one request; owns everything it shows.
///
/// Labels are slices of the decompressed request (`body`), as the sender encoded them, when they were canonical
/// ([`LabelBytes`]); otherwise they stand encoded anew in `rebuilt`. Samples of all series share three columns, in the
/// order of the series. Start timestamps have columns of their own, which end with the last sample that has one: senders of
/// none pay nothing. A series dropped by validation leaves its samples behind in the columns: count and walk by series.
/// The same label set may occur in several entries.
///
/// [`WriteBatch::clear`] keeps the allocations, so that a batch can be filled again.
#[derive(Debug, Clone, Default)]
pub struct WriteBatch {
    pub(crate) body: Bytes,
    pub(crate) rebuilt: Vec<u8>,
    /// One entry per series of the request that has at least one sample, histogram or exemplar.
    pub series: Vec<SeriesEntry>,
    /// Float samples of all series.
    pub samples: Vec<FloatSample>,
    /// Start timestamps of `samples` from the first on; 0 is none, as is what is missing at the end.
    pub sample_starts: Vec<TimestampMs>,
    /// Native histogram samples of all series.
    pub histograms: Vec<HistogramSample>,
    /// Start timestamps of `histograms` likewise.
    pub histogram_starts: Vec<TimestampMs>,
    /// Exemplars of all series.
    pub exemplars: Vec<Exemplar>,
    /// Metadata of metric families.
    pub metadata: Vec<MetricMetadata>,
}

/// Where the parts of one series stand in its [`WriteBatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesEntry {
    /// Hash of the canonical label bytes ([`LabelBytes::hash`]).
    pub hash: u128,
    /// The canonical label bytes.
    pub labels: LabelSlice,
    /// Its part of [`WriteBatch::samples`].
    pub samples: Range<u32>,
    /// Its part of [`WriteBatch::histograms`].
    pub histograms: Range<u32>,
    /// Its part of [`WriteBatch::exemplars`].
    pub exemplars: Range<u32>,
}

/// Where canonical label bytes stand in their [`WriteBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelSlice {
    pub(crate) source: LabelSource,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// Which of a batch's two buffers a [`LabelSlice`] lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LabelSource {
    /// As received.
    Body,
    /// Encoded anew.
    Rebuilt,
}

/// One series of a [`WriteBatch`], looked up.
#[derive(Debug, Clone, Copy)]
pub struct SeriesView<'a> {
    /// The series' labels.
    pub labels: LabelBytes<'a>,
    /// Hash of `labels`.
    pub hash: u128,
    /// Float samples in the sender's order.
    pub samples: &'a [FloatSample],
    /// Start timestamps of `samples` from the first on; 0 is none, as is what is missing at the end.
    pub sample_starts: &'a [TimestampMs],
    /// Native histogram samples in the sender's order.
    pub histograms: &'a [HistogramSample],
    /// Start timestamps of `histograms` likewise.
    pub histogram_starts: &'a [TimestampMs],
    /// Exemplars in the sender's order.
    pub exemplars: &'a [Exemplar],
}

impl WriteBatch {
    /// Labels of series `i`.
    pub fn labels(&self, i: usize) -> LabelBytes<'_> {
        self.labels_of(&self.series[i])
    }

    /// Float samples of series `i`.
    pub fn samples(&self, i: usize) -> &[FloatSample] {
        run(&self.samples, &self.series[i].samples)
    }

    /// Native histogram samples of series `i`.
    pub fn histograms(&self, i: usize) -> &[HistogramSample] {
        run(&self.histograms, &self.series[i].histograms)
    }

    /// Exemplars of series `i`.
    pub fn exemplars(&self, i: usize) -> &[Exemplar] {
        run(&self.exemplars, &self.series[i].exemplars)
    }

    /// Labels of an entry of this batch.
    #[inline]
    pub fn labels_of(&self, entry: &SeriesEntry) -> LabelBytes<'_> {
        LabelBytes::new_unchecked(self.slice(entry.labels))
    }

    /// Every series, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = SeriesView<'_>> {
        self.series.iter().map(|entry| self.view(entry))
    }

    #[inline]
    fn view(&self, entry: &SeriesEntry) -> SeriesView<'_> {
        SeriesView {
            labels: self.labels_of(entry),
            hash: entry.hash,
            samples: run(&self.samples, &entry.samples),
            sample_starts: starts(&self.sample_starts, &entry.samples),
            histograms: run(&self.histograms, &entry.histograms),
            histogram_starts: starts(&self.histogram_starts, &entry.histograms),
            exemplars: run(&self.exemplars, &entry.exemplars),
        }
    }

    /// Adds a float sample to the columns, with its start timestamp unless that is 0.
    #[inline]
    pub(crate) fn push_sample(&mut self, sample: FloatSample, start: TimestampMs) {
        if start != 0 {
            self.sample_starts.resize(self.samples.len(), 0);
            self.sample_starts.push(start);
        }
        self.samples.push(sample);
    }

    /// Adds a histogram likewise.
    pub(crate) fn push_histogram(&mut self, sample: HistogramSample, start: TimestampMs) {
        if start != 0 {
            self.histogram_starts.resize(self.histograms.len(), 0);
            self.histogram_starts.push(start);
        }
        self.histograms.push(sample);
    }

    /// Whether there is neither a series nor metadata.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty() && self.metadata.is_empty()
    }

    /// Float and histogram samples of the series that are in the batch.
    pub fn sample_count(&self) -> usize {
        self.series.iter().map(|s| s.samples.len() + s.histograms.len()).sum()
    }

    /// Exemplars of the series that are in the batch.
    pub fn exemplar_count(&self) -> usize {
        self.series.iter().map(|s| s.exemplars.len()).sum()
    }

    /// Keeps the series `keep` says yes to.
    pub fn retain_series(&mut self, mut keep: impl FnMut(SeriesView<'_>) -> bool) {
        let mut series = std::mem::take(&mut self.series);
        series.retain(|entry| keep(self.view(entry)));
        self.series = series;
    }

    /// Distributes series and metadata over `parts` batches, each in the order they have here. Labels that stand in the
    /// request are shared, everything else is copied. The functions name the part, below `parts`.
    pub fn split(
        &self,
        parts: usize,
        mut part_of_series: impl FnMut(&SeriesEntry) -> usize,
        mut part_of_metadata: impl FnMut(&MetricMetadata) -> usize,
    ) -> Vec<WriteBatch> {
        let mut split = vec![WriteBatch { body: self.body.clone(), ..WriteBatch::default() }; parts];
        for entry in &self.series {
            self.copy_series(entry, &mut split[part_of_series(entry)]);
        }
        for metadata in &self.metadata {
            split[part_of_metadata(metadata)].metadata.push(metadata.clone());
        }
        split
    }

    /// The series of these numbers, ascending, without metadata. Numbers of none are passed over.
    pub fn pick(&self, numbers: &[u32]) -> WriteBatch {
        let mut picked = WriteBatch { body: self.body.clone(), ..WriteBatch::default() };
        for entry in numbers.iter().filter_map(|number| self.series.get(*number as usize)) {
            self.copy_series(entry, &mut picked);
        }
        picked
    }

    /// Adds a series of this batch to one that shares its body.
    fn copy_series(&self, entry: &SeriesEntry, part: &mut WriteBatch) {
        let labels = match entry.labels.source {
            LabelSource::Body => entry.labels,
            LabelSource::Rebuilt => {
                let start = end(part.rebuilt.len());
                part.rebuilt.extend_from_slice(self.slice(entry.labels));
                LabelSlice { source: LabelSource::Rebuilt, start, end: end(part.rebuilt.len()) }
            }
        };
        append_starts(&mut part.sample_starts, part.samples.len(), starts(&self.sample_starts, &entry.samples));
        let samples = append(&mut part.samples, run(&self.samples, &entry.samples));
        let histogram_starts = starts(&self.histogram_starts, &entry.histograms);
        append_starts(&mut part.histogram_starts, part.histograms.len(), histogram_starts);
        let histograms = append(&mut part.histograms, run(&self.histograms, &entry.histograms));
        let exemplars = append(&mut part.exemplars, run(&self.exemplars, &entry.exemplars));
        part.series.push(SeriesEntry { hash: entry.hash, labels, samples, histograms, exemplars });
    }

    /// Bytes of memory this holds, unused capacity included.
    pub fn heap_bytes(&self) -> usize {
        fn column<T>(column: &Vec<T>) -> usize {
            column.capacity() * size_of::<T>()
        }
        let histograms: usize = self.histograms.iter().map(crate::remote_write::histogram_heap_bytes).sum();
        let exemplars: usize = self.exemplars.iter().map(|e| e.labels.as_bytes().len()).sum();
        let metadata: usize = self.metadata.iter().map(|m| m.metric.len() + m.help.len() + m.unit.len()).sum();
        let columns = column(&self.rebuilt) + column(&self.series) + column(&self.samples) + column(&self.histograms);
        let columns = columns + column(&self.exemplars) + column(&self.metadata);
        let columns = columns + column(&self.sample_starts) + column(&self.histogram_starts);
        self.body.len() + columns + histograms + exemplars + metadata
    }

    /// Forgets everything, keeps the allocations (the body's only if nobody else holds a part of it).
    pub fn clear(&mut self) {
        self.rebuilt.clear();
        self.series.clear();
        self.samples.clear();
        self.sample_starts.clear();
        self.histograms.clear();
        self.histogram_starts.clear();
        self.exemplars.clear();
        self.metadata.clear();
    }

    #[inline]
    fn slice(&self, at: LabelSlice) -> &[u8] {
        let bytes: &[u8] = match at.source {
            LabelSource::Body => &self.body,
            LabelSource::Rebuilt => &self.rebuilt,
        };
        &bytes[at.start as usize..at.end as usize]
    }
}

#[inline]
fn run<'a, T>(column: &'a [T], range: &Range<u32>) -> &'a [T] {
    &column[range.start as usize..range.end as usize]
}

/// The part of start timestamps that belongs to these samples.
#[inline]
fn starts<'a>(starts: &'a [TimestampMs], samples: &Range<u32>) -> &'a [TimestampMs] {
    let (from, upto) = (samples.start as usize, samples.end as usize);
    &starts[from.min(starts.len())..upto.min(starts.len())]
}

/// Adds start timestamps behind those of `before` samples.
fn append_starts(column: &mut Vec<TimestampMs>, before: usize, part: &[TimestampMs]) {
    if !part.is_empty() {
        column.resize(before, 0);
        column.extend_from_slice(part);
    }
}

fn append<T: Clone>(column: &mut Vec<T>, part: &[T]) -> Range<u32> {
    let start = end(column.len());
    column.extend_from_slice(part);
    start..end(column.len())
}

/// Makes a [`WriteBatch`] part by part, for receivers of other encodings and for tests.
///
/// Samples, histograms and exemplars belong to the series begun last.
///
/// ```
/// use skald_proto::WriteBatchBuilder;
///
/// let mut builder = WriteBatchBuilder::default();
/// builder.series([("__name__", "up"), ("job", "api")]).sample(1000, 1.0).sample(2000, 0.0);
/// let batch = builder.build();
/// assert_eq!(batch.samples(0).len(), 2);
/// ```
#[derive(Debug, Default)]
pub struct WriteBatchBuilder {
    batch: WriteBatch,
}

impl WriteBatchBuilder {
    /// Continues in the allocations of a batch that is no longer needed.
    pub fn reuse(mut batch: WriteBatch) -> Self {
        batch.clear();
        batch.body = Bytes::new();
        Self { batch }
    }

    /// Builds over a received message, so that [`WriteBatchBuilder::series_at`] can point into it.
    pub fn over(body: Bytes) -> Self {
        Self { batch: WriteBatch { body, ..WriteBatch::default() } }
    }

    /// Begins a series with these labels, in any order. Of pairs with one name the last wins, empty values are left out.
    pub fn series<N: AsRef<str>, V: AsRef<str>>(&mut self, labels: impl IntoIterator<Item = (N, V)>) -> &mut Self {
        let bytes = LabelBytes::from_labels(&Labels::from_pairs(labels));
        let labels = LabelBytes::new_unchecked(&bytes);
        self.series_bytes(labels, labels.hash())
    }

    /// Begins a series with checked canonical label bytes and their hash.
    ///
    /// # Panics
    /// When the labels of one batch exceed 4 GiB: receivers cap message sizes far below.
    pub fn series_bytes(&mut self, labels: LabelBytes<'_>, hash: u128) -> &mut Self {
        let rebuilt = &mut self.batch.rebuilt;
        let start = end(rebuilt.len());
        rebuilt.extend_from_slice(labels.as_bytes());
        let labels = LabelSlice { source: LabelSource::Rebuilt, start, end: end(rebuilt.len()) };
        self.begin(labels, hash)
    }

    /// Begins a series whose checked canonical label bytes stand at `at` in the message of [`WriteBatchBuilder::over`].
    ///
    /// # Panics
    /// When `at` lies outside the message.
    pub fn series_at(&mut self, at: Range<usize>, hash: u128) -> &mut Self {
        assert!(at.start <= at.end && at.end <= self.batch.body.len(), "labels lie inside the message");
        self.begin(LabelSlice { source: LabelSource::Body, start: end(at.start), end: end(at.end) }, hash)
    }

    /// Begins a series known by its hash alone; its labels are empty.
    pub fn series_known(&mut self, hash: u128) -> &mut Self {
        self.begin(LabelSlice { source: LabelSource::Rebuilt, start: 0, end: 0 }, hash)
    }

    fn begin(&mut self, labels: LabelSlice, hash: u128) -> &mut Self {
        let batch = &mut self.batch;
        let samples = end(batch.samples.len());
        let histograms = end(batch.histograms.len());
        let exemplars = end(batch.exemplars.len());
        batch.series.push(SeriesEntry {
            hash,
            labels,
            samples: samples..samples,
            histograms: histograms..histograms,
            exemplars: exemplars..exemplars,
        });
        self
    }

    /// Adds a float sample.
    pub fn sample(&mut self, timestamp: i64, value: f64) -> &mut Self {
        self.started_sample(timestamp, value, 0)
    }

    /// Adds a float sample with a start timestamp; 0 is none.
    pub fn started_sample(&mut self, timestamp: i64, value: f64, start: TimestampMs) -> &mut Self {
        self.batch.push_sample(FloatSample { timestamp, value }, start);
        let upto = end(self.batch.samples.len());
        self.current().samples.end = upto;
        self
    }

    /// Adds a native histogram sample.
    pub fn histogram(&mut self, timestamp: i64, value: HistogramValue) -> &mut Self {
        self.started_histogram(timestamp, value, 0)
    }

    /// Adds a native histogram sample with a start timestamp; 0 is none.
    pub fn started_histogram(&mut self, timestamp: i64, value: HistogramValue, start: TimestampMs) -> &mut Self {
        self.batch.push_histogram(HistogramSample { timestamp, value }, start);
        let upto = end(self.batch.histograms.len());
        self.current().histograms.end = upto;
        self
    }

    /// Adds an exemplar.
    pub fn exemplar(&mut self, exemplar: Exemplar) -> &mut Self {
        self.batch.exemplars.push(exemplar);
        let upto = end(self.batch.exemplars.len());
        self.current().exemplars.end = upto;
        self
    }

    /// Adds metadata of a metric family.
    pub fn metadata(&mut self, metadata: MetricMetadata) -> &mut Self {
        self.batch.metadata.push(metadata);
        self
    }

    /// The batch; the builder is empty afterwards.
    pub fn build(&mut self) -> WriteBatch {
        std::mem::take(&mut self.batch)
    }

    fn current(&mut self) -> &mut SeriesEntry {
        self.batch.series.last_mut().expect("a series was begun")
    }
}

fn end(len: usize) -> u32 {
    u32::try_from(len).expect("a batch stays below 2^32 parts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_belong_to_the_series_begun_last() {
        let mut builder = WriteBatchBuilder::default();
        builder.series([("b", "2"), ("__name__", "m")]).sample(1, 1.0).sample(2, 2.0);
        builder.series([("__name__", "n")]).sample(3, 3.0).exemplar(Exemplar {
            labels: Labels::from_pairs([("trace", "x")]),
            value: 1.0,
            timestamp: 3,
        });
        let batch = builder.build();
        assert_eq!(batch.labels(0).to_labels().to_string(), r#"{__name__="m", b="2"}"#);
        assert_eq!(batch.samples(0).iter().map(|s| s.timestamp).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(batch.samples(1).iter().map(|s| s.timestamp).collect::<Vec<_>>(), [3]);
        assert_eq!((batch.exemplars(0).len(), batch.exemplars(1).len()), (0, 1));
        assert_eq!((batch.sample_count(), batch.exemplar_count()), (3, 1));
        assert_eq!(batch.series[1].hash, batch.labels(1).hash());
    }

    #[test]
    fn parts_of_a_split_hold_what_they_were_given() {
        let mut builder = WriteBatchBuilder::default();
        for (i, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            builder.series([("__name__", name)]).sample(i as i64, 1.0).sample(i as i64 + 10, 1.0);
        }
        let mut i = 0;
        let batch = builder.build();
        let parts = batch.split(
            3,
            |_| {
                i += 1;
                i % 2
            },
            |_| 0,
        );
        let shown = |part: &WriteBatch| -> Vec<(String, Vec<i64>)> {
            let series =
                |s: SeriesView<'_>| (s.labels.to_labels().to_string(), s.samples.iter().map(|s| s.timestamp).collect());
            part.iter().map(series).collect()
        };
        let expected = |name: &str, t| (format!("{{__name__={name:?}}}"), vec![t, t + 10]);
        assert_eq!(shown(&parts[0]), [expected("b", 1), expected("d", 3)]);
        assert_eq!(shown(&parts[1]), [expected("a", 0), expected("c", 2)]);
        assert!(parts[2].is_empty());
    }

    #[test]
    fn dropped_series_do_not_count() {
        let mut builder = WriteBatchBuilder::default();
        builder.series([("__name__", "a")]).sample(1, 1.0);
        builder.series([("__name__", "b")]).sample(1, 1.0).sample(2, 1.0);
        let mut batch = builder.build();
        batch.retain_series(|series| series.samples.len() == 2);
        assert_eq!((batch.series.len(), batch.sample_count()), (1, 2));
        assert_eq!(batch.iter().next().unwrap().samples[1].timestamp, 2);
    }
}
