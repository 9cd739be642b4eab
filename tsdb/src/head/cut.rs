//! Flushing: raise the boundary, hand the samples below it out for blocks, then drop them.
//!
//! ```text
//! begin_cut(up_to) ── the boundary rises, in-flight appends are done, later ones below it are "late"
//!   └ cut_ranges ── the aligned ranges with samples to write, one block each
//!       └ cut_labels ── which series there are, for the block's symbols
//!       └ cut_series ── series by series, labels ascending, chunks without overlap
//! finish_cut ── the blocks are safe: logged, hidden from new readers, dropped once no older reader is left
//! ```
//!
//! A cut that is begun and never finished (a failed upload, a crash) loses nothing: the next one covers it too. Late
//! samples carry the generation the cut began, belong to the next cut, and may give blocks that overlap earlier ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use skald_model::{BlockRange, Labels, QueryRange, TimestampMs};

use super::stored::{LostChunks, PageChunk};
use super::{Head, locate};
use crate::SeriesChunks;
use crate::chunk::Chunk;
use crate::wal::{Cut, SegmentId, Wal, WalError};

/// Bytes of chunks a flush reads at once.
const READ_BYTES: usize = 1 << 20;

/// Whether a finished cut's memory is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Dropped {
    /// It is.
    Done,
    /// A reader who began before still needs it: call [`Head::drop_covered`] again later.
    Pinned,
}

/// What a cut takes of one series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutExtent {
    /// From the first to the last sample, or a little more.
    pub times: QueryRange,
    /// The chunks it is made of; where they overlap, about as many come out.
    pub chunks: usize,
}

impl Head {
    /// Up to where the head should be cut now, if anywhere: the end of the newest aligned range that the newest sample has
    /// left half a range behind, once there is something below it and no cut has been finished there (one that failed
    /// is due again). Late samples do not cause a cut of their own; they go with the next range.
    pub fn due_cut(&self) -> Option<TimestampMs> {
        let range_ms = self.options.block_range_ms;
        let QueryRange { min, max } = self.time_range()?;
        let end = max.saturating_sub(range_ms / 2).div_euclid(range_ms).saturating_mul(range_ms);
        (min < end && self.view.lock().hidden.up_to < end).then_some(end)
    }

    /// Number of series that hold no sample at or after `time`: those that are gone once a cut up to there is finished.
    /// Walks every page.
    pub fn series_before(&self, time: TimestampMs) -> usize {
        let pages = self.pages.read().clone();
        pages.iter().map(|page| page.read().series_before(time)).sum()
    }

    /// Begins a cut of everything older than `up_to` (or than the boundary, if that is higher).
    ///
    /// When this returns, no append that saw the old boundary is under way.
    pub fn begin_cut(&self, wal: &Wal, up_to: TimestampMs) -> Result<Cut, WalError> {
        let mut appender = self.appender.lock();
        let up_to = up_to.max(appender.boundary);
        let generation = wal.begin_cut(self.id, up_to)?;
        appender.generation = generation;
        appender.boundary = up_to;
        self.boundary.store(up_to, Ordering::Relaxed);
        Ok(Cut { generation, up_to })
    }

    /// The aligned ranges in which samples lie that the cut covers and no earlier cut did, ascending. The last one may be
    /// clipped by the cut. Blocks of these ranges hold all that the cut covers.
    pub fn cut_ranges(&self, cut: Cut) -> Vec<BlockRange> {
        let rules = self.rules(cut.up_to);
        let mut starts = BTreeSet::new();
        for page in self.pages.read().clone() {
            page.read().ranges(cut, rules, &mut starts);
        }
        let end = |min: TimestampMs| min.saturating_add(rules.range_ms).min(cut.up_to);
        starts.into_iter().map(|min| BlockRange { min, max: end(min) }).collect()
    }

    /// The series with samples of `range` that the cut covers, labels ascending, each with the extent of those. Reads no chunk:
    /// what a block needs to know before its series come.
    pub fn cut_labels<E>(
        self: &Arc<Self>,
        cut: Cut,
        range: BlockRange,
        mut each: impl FnMut(&Labels, CutExtent) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut select = self.select(&[], QueryRange::ALL);
        while let Some((labels, slot)) = select.next_series() {
            let (number, at) = locate(slot);
            let extent = select.page(number).and_then(|page| page.read().cut_extent(at, range, cut));
            if let Some(extent) = extent {
                each(&labels, extent)?;
            }
        }
        Ok(())
    }

    /// The series with samples of `range` that the cut covers, labels ascending, each with its chunks: ascending,
    /// without overlap, nothing outside the range. The first error of `each` ends it. Chunks that cannot be read are left
    /// out, and returned.
    pub fn cut_series<E>(
        self: &Arc<Self>,
        cut: Cut,
        range: BlockRange,
        mut each: impl FnMut(&Labels, &[Chunk]) -> Result<(), E>,
    ) -> Result<LostChunks, E> {
        let rules = self.rules(cut.up_to);
        // The select's order and pin; what finished cuts cover is gone or is not in these chunks' ranges.
        let mut select = self.select(&[], QueryRange::ALL);
        let mut lost = LostChunks::default();
        loop {
            let (mut found, mut chunks_of, mut bytes) = (Vec::new(), Vec::new(), 0);
            while bytes < READ_BYTES
                && let Some((labels, slot)) = select.next_series()
            {
                let (number, at) = locate(slot);
                let parts = select.page(number).and_then(|page| page.read().cut_parts(at, range, cut));
                if let Some(mut parts) = parts {
                    let chunks = std::mem::take(&mut parts.chunks);
                    bytes += SeriesChunks::bytes_of(&labels, chunks.iter().map(PageChunk::len));
                    found.push((labels, parts));
                    chunks_of.push(chunks);
                }
            }
            if found.is_empty() {
                return Ok(lost);
            }
            for ((labels, parts), loaded) in found.into_iter().zip(rules.shelf.load(chunks_of)) {
                let (mut chunks, mut unreadable) = (Vec::with_capacity(loaded.len()), Vec::new());
                for chunk in loaded {
                    match chunk {
                        Ok(chunk) => chunks.push(chunk),
                        Err(error) => unreadable.push(error),
                    }
                }
                lost.add(|| labels.clone(), unreadable);
                let chunks = parts.finish(chunks, range, cut, rules.range_ms);
                if !chunks.is_empty() {
                    each(&labels, &chunks)?;
                }
            }
        }
    }

    /// Declares that blocks hold all the cut covers, and that readers find them: logs it (so that the log can be freed
    /// and replay skips it), hides it from readers who begin from now on, and drops it as soon as it may.
    pub fn finish_cut(&self, wal: &Wal, cut: Cut) -> Result<Dropped, WalError> {
        wal.finish_cut(self.id, cut)?;
        self.hide(cut);
        Ok(self.drop_covered(wal))
    }

    pub(super) fn hide(&self, cut: Cut) {
        let mut view = self.view.lock();
        if cut.generation > view.hidden.generation {
            view.hidden = cut;
            view.epoch += 1;
            view.hidden_since = view.epoch;
        }
    }

    /// Frees what finished cuts cover, unless a reader still needs it. Cheap when there is nothing to do.
    pub fn drop_covered(&self, wal: &Wal) -> Dropped {
        self.release_moved();
        self.drop_hidden(|| wal.segment())
    }

    /// `segment` gives the log's segment: a slot freed while one is written is not used again in it.
    pub(super) fn drop_hidden(&self, segment: impl Fn() -> SegmentId) -> Dropped {
        let cut = {
            let view = self.view.lock();
            if view.dropped == view.hidden {
                return Dropped::Done;
            }
            // Readers of the current epoch do not see it; retiring slots only raises the epoch further.
            if view.is_pinned_before(view.hidden_since) {
                return Dropped::Pinned;
            }
            view.hidden
        };
        let rules = self.rules(cut.up_to);
        let pages = self.pages.read().len();
        for number in 0..pages {
            // Page by page, so that appends wait for one page at most.
            let mut appender = self.appender.lock();
            let Some(page) = appender.pages.get(number).cloned() else { break };
            let empty = page.write().drop_covered(cut, rules);
            let slots: Vec<_> = empty.into_iter().map(|at| (number * super::PAGE_SERIES + at) as u32).collect();
            self.remove_series(&mut appender, segment(), &slots);
            if !slots.is_empty() {
                page.write().shrink();
            }
        }
        let mut appender = self.appender.lock();
        appender.table.compact();
        if appender.retired.capacity() > 4 * appender.retired.len() {
            appender.retired.shrink_to_fit();
        }
        self.index.write().compact();
        // No append runs now: the oldest time is that of what is left.
        let oldest = appender.pages.iter().map(|page| page.read().min_time()).min().unwrap_or(TimestampMs::MAX);
        self.min_time.store(oldest, Ordering::Relaxed);
        self.count_late_bytes(&appender);
        let newest = self.max_time.load(Ordering::Relaxed);
        self.changes.lock().forget_before(oldest.min(newest.saturating_add(1)));
        self.view.lock().dropped = cut;
        Dropped::Done
    }
}
