//! Where the walks over both versions' messages put what they find.

use skald_model::{Exemplar, HistogramSample, LabelBytes, MetricMetadata, TimestampMs};

use super::labels::{LabelShape, RawLabel};
use super::{DecodeError, Defect, RawLabels, Received, Rejected, histogram};
use crate::write_batch::{LabelSlice, LabelSource, SeriesEntry, WriteBatch};

/// Histograms, exemplars, metadata and symbols may take this many times the message's own size. Series and float samples stay
/// below eight times by themselves. A histogram of two bytes would take a hundred times; a real one takes less than seven.
const MAX_WIDENING: usize = 16;
/// Allowance for small messages, where Rust's fixed sizes weigh more.
const WIDENING_FLOOR: usize = 1 << 20;

/// The columns being filled, and what they may still take.
pub(super) struct Sink<'out> {
    pub(super) batch: &'out mut WriteBatch,
    shapes: &'out mut Vec<LabelShape>,
    on_reject: &'out mut dyn FnMut(Rejected<'_>),
    message_len: usize,
    limit: usize,
    /// Bytes that may still be allocated for parts with a fixed size far above their encoding's.
    budget: usize,
}

/// Lengths of the columns before a series.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    samples: u32,
    histograms: u32,
    exemplars: u32,
}

impl Mark {
    /// Whether only exemplars, if anything, came since `before`.
    pub(super) fn no_samples_since(self, before: Mark) -> bool {
        (self.samples, self.histograms) == (before.samples, before.histograms)
    }
}

impl<'out> Sink<'out> {
    pub(super) fn new(message: &[u8], out: &'out mut Received, on_reject: &'out mut dyn FnMut(Rejected<'_>)) -> Self {
        let limit = message.len().saturating_mul(MAX_WIDENING).max(WIDENING_FLOOR);
        let Received { batch, shapes } = out;
        Self { batch, shapes, on_reject, message_len: message.len(), limit, budget: limit }
    }

    pub(super) fn too_wide(&self) -> DecodeError {
        DecodeError::TooWide { message: self.message_len, limit: self.limit }
    }

    pub(super) fn labels_too_wide(&self, limit: usize) -> DecodeError {
        DecodeError::TooWide { message: self.message_len, limit }
    }

    /// Whether a charge of so many bytes would pass.
    pub(super) fn affords(&self, bytes: usize) -> bool {
        bytes <= self.budget
    }

    #[inline]
    pub(super) fn mark(&self) -> Mark {
        // Each part takes at least two bytes of a message below 2 GiB.
        Mark {
            samples: self.batch.samples.len() as u32,
            histograms: self.batch.histograms.len() as u32,
            exemplars: self.batch.exemplars.len() as u32,
        }
    }

    /// `false` when the budget is used up.
    pub(super) fn charge(&mut self, bytes: usize) -> bool {
        let left = self.budget.checked_sub(bytes);
        self.budget = left.unwrap_or(0);
        left.is_some()
    }

    /// Adds the series whose parts came since `mark`. Labels that stand in the message are slices of it.
    #[inline]
    pub(super) fn series(&mut self, message: &[u8], labels: LabelSlice, shape: LabelShape, mark: Mark) {
        let (start, end) = (labels.start as usize, labels.end as usize);
        let bytes = match labels.source {
            LabelSource::Body => &message[start..end],
            LabelSource::Rebuilt => &self.batch.rebuilt[start..end],
        };
        let hash = LabelBytes::new_unchecked(bytes).hash();
        let upto = self.mark();
        self.batch.series.push(SeriesEntry {
            hash,
            labels,
            samples: mark.samples..upto.samples,
            histograms: mark.histograms..upto.histograms,
            exemplars: mark.exemplars..upto.exemplars,
        });
        self.shapes.push(shape);
    }

    /// Takes out what came since `mark`, and tells it.
    pub(super) fn reject_series(&mut self, defect: Defect, labels: &[RawLabel<'_>], mark: Mark) {
        let batch = &mut *self.batch;
        let samples = batch.samples.len() - mark.samples as usize;
        let histograms = batch.histograms.len() - mark.histograms as usize;
        (self.on_reject)(Rejected {
            defect,
            labels: RawLabels(labels),
            samples: samples + histograms,
            exemplars: batch.exemplars.len() - mark.exemplars as usize,
            metadata: 0,
        });
        batch.samples.truncate(mark.samples as usize);
        batch.sample_starts.truncate(mark.samples as usize);
        batch.histograms.truncate(mark.histograms as usize);
        batch.histogram_starts.truncate(mark.histograms as usize);
        batch.exemplars.truncate(mark.exemplars as usize);
    }

    /// `false` when the budget is used up.
    pub(super) fn histogram(&mut self, sample: HistogramSample, start: TimestampMs) -> bool {
        let affordable = self.charge(histogram::heap_bytes(&sample));
        if affordable {
            self.batch.push_histogram(sample, start);
        }
        affordable
    }

    /// `false` when the budget is used up.
    pub(super) fn exemplar(&mut self, exemplar: Exemplar) -> bool {
        let affordable = self.charge(size_of::<Exemplar>() + 48 + exemplar.labels.as_bytes().len());
        if affordable {
            self.batch.exemplars.push(exemplar);
        }
        affordable
    }

    pub(super) fn reject_exemplar(&mut self, defect: Defect, labels: &[RawLabel<'_>]) {
        let labels = RawLabels(labels);
        (self.on_reject)(Rejected { defect, labels, samples: 0, exemplars: 1, metadata: 0 });
    }

    /// `false` when the budget is used up.
    pub(super) fn metadata(&mut self, entry: MetricMetadata) -> bool {
        let texts = entry.metric.len() + entry.help.len() + entry.unit.len();
        let affordable = self.charge(size_of::<MetricMetadata>() + 48 + texts);
        if affordable {
            self.batch.metadata.push(entry);
        }
        affordable
    }

    pub(super) fn reject_metadata(&mut self, defect: Defect) {
        (self.on_reject)(Rejected { defect, labels: RawLabels(&[]), samples: 0, exemplars: 0, metadata: 1 });
    }
}
