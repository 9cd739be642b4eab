//! Changing the labels of decoded series, or leaving series out, before they are checked.

use skald_model::LabelBytes;

use super::Received;
use super::labels::LabelShape;
use crate::write_batch::{LabelSlice, LabelSource};

/// What becomes of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// It stays as it is.
    Keep,
    /// It is left out.
    Drop,
    /// It gets the labels that were written: canonical bytes ([`LabelBytes`]).
    Replace,
}

impl Received {
    /// Asks `decide` for each series what becomes of it; new labels go into the buffer it is given, which is empty. How many
    /// series were left out.
    pub fn rewrite_series(
        &mut self,
        mut decide: impl FnMut(SeriesSize, LabelBytes<'_>, &mut Vec<u8>) -> Rewrite,
    ) -> usize {
        let before = self.batch.series.len();
        let mut series = std::mem::take(&mut self.batch.series);
        let mut written = Vec::new();
        let mut kept = 0;
        let mut at = 0;
        series.retain_mut(|entry| {
            let shape = self.shapes[at];
            at += 1;
            written.clear();
            let size = SeriesSize {
                samples: entry.samples.len(),
                histograms: entry.histograms.len(),
                exemplars: entry.exemplars.len(),
            };
            let shape = match decide(size, self.batch.labels_of(entry), &mut written) {
                Rewrite::Keep => shape,
                Rewrite::Drop => return false,
                Rewrite::Replace => {
                    let labels = LabelBytes::new_unchecked(&written);
                    entry.hash = labels.hash();
                    let start = self.batch.rebuilt.len();
                    self.batch.rebuilt.extend_from_slice(&written);
                    let end = self.batch.rebuilt.len();
                    // What is written out is no more than what was received, whose offsets fit.
                    entry.labels = LabelSlice { source: LabelSource::Rebuilt, start: start as u32, end: end as u32 };
                    LabelShape::of(labels)
                }
            };
            self.shapes[kept] = shape;
            kept += 1;
            true
        });
        self.batch.series = series;
        self.shapes.truncate(kept);
        before - kept
    }
}

/// How much a series brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeriesSize {
    /// Float samples.
    pub samples: usize,
    /// Native histograms.
    pub histograms: usize,
    /// Exemplars.
    pub exemplars: usize,
}
