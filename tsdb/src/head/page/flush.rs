//! What a flush takes out of a page, and how the page gives memory back afterwards.

use std::collections::BTreeSet;

use skald_model::{BlockRange, QueryRange, TimestampMs};

use super::super::cold::{self, ClosedChunk, Cold, ColdRef};
use super::super::recode;
use super::super::sample::{SampleValue, TimedSample};
use super::super::slab::{Piece, Slab};
use super::read::copy;
use super::{NO_ENTRY, Open, Page, Rules};
use crate::chunk::{Chunk, Encoding};
use crate::wal::{Cut, Generation};

impl Page {
    /// Adds the starts of the aligned ranges in which samples lie that `cut` covers.
    pub(in super::super) fn ranges(&self, cut: Cut, rules: Rules, starts: &mut BTreeSet<TimestampMs>) {
        let mut add = |min: TimestampMs, max: TimestampMs| {
            let last = max.min(cut.up_to.saturating_sub(1));
            // Chunks lie within one range, so this adds one start or, for an unaligned cut, none.
            if min <= last {
                starts.insert(min.div_euclid(rules.range_ms).saturating_mul(rules.range_ms));
                starts.insert(last.div_euclid(rules.range_ms).saturating_mul(rules.range_ms));
            }
        };
        for series in self.series.iter().filter(|series| series.is_alive()) {
            self.cold.chunks(series.closed).for_each(|chunk| add(chunk.min_time, chunk.max_time));
            if let Some(max_time) = self.open_max_time(series) {
                add(series.chunk_start, max_time);
            }
            if let Some(side) = self.sides.get(series.side) {
                side.for_each_range(cut.generation, &mut add);
            }
        }
    }

    /// Appends chunks with exactly the samples of a series that lie in `range` and are covered by `cut`: ascending and
    /// without overlap, copied where that is possible.
    pub(in super::super) fn cut_chunks(
        &self,
        index: usize,
        range: BlockRange,
        cut: Cut,
        rules: Rules,
        out: &mut Vec<Chunk>,
    ) {
        let Some(series) = self.series(index) else { return };
        let max = range.max.min(cut.up_to).saturating_sub(1);
        let range = QueryRange { min: range.min, max };
        if range.is_empty() {
            return;
        }
        let overlaps = |min_time, max_time| min_time <= range.max && range.min <= max_time;
        let mut chunks: Vec<Chunk> =
            self.cold.chunks(series.closed).filter(|c| overlaps(c.min_time, c.max_time)).map(copy).collect();
        chunks.reverse();
        if let Some(max_time) = self.open_max_time(series)
            && overlaps(series.chunk_start, max_time)
        {
            chunks.extend(self.open_chunk(series));
        }
        let mut samples: Vec<TimedSample> = Vec::new();
        if let Some(side) = self.sides.get(series.side) {
            side.samples(cut.generation, range, &mut samples);
        }
        let inside = |chunk: &Chunk| range.contains(chunk.min_time) && range.contains(chunk.max_time);
        if samples.is_empty() && chunks.iter().all(inside) {
            out.append(&mut chunks);
            return;
        }
        for chunk in &chunks {
            // These bytes were encoded here and never left memory: they decode.
            let decoded = recode::decode(chunk.encoding, &chunk.data, range, &mut samples);
            debug_assert!(decoded.is_ok());
        }
        samples.sort_by_key(|sample| sample.time);
        out.extend(recode::encode(&samples, rules.range_ms));
    }

    /// Time of the oldest sample; `MAX` when there is none.
    pub(in super::super) fn min_time(&self) -> TimestampMs {
        let mut oldest = TimestampMs::MAX;
        for series in self.series.iter().filter(|series| series.is_alive()) {
            if series.open != Open::Nothing {
                oldest = oldest.min(series.chunk_start);
            }
            oldest = self.cold.chunks(series.closed).fold(oldest, |oldest, chunk| oldest.min(chunk.min_time));
            if let Some(side) = self.sides.get(series.side) {
                side.for_each_range(Generation(u32::MAX), |min, _| oldest = oldest.min(min));
            }
        }
        oldest
    }

    /// Drops what `cut` covers and moves the rest together. Returns the indexes of series that hold nothing any more;
    /// their slots stay taken until [`Page::remove`].
    pub(in super::super) fn drop_covered(&mut self, cut: Cut, rules: Rules) -> Vec<usize> {
        let straddling = self.straddling(cut);
        let old_slab = std::mem::take(&mut self.slab);
        let old_cold = std::mem::take(&mut self.cold);
        let mut labels = Vec::new();
        for index in 0..self.series.len() {
            let open_max = self.open_max_time(&self.series[index]);
            let series = &mut self.series[index];
            if !series.is_alive() {
                continue;
            }
            labels.clear();
            old_cold.labels(series.labels, &mut labels);
            // Copying less than there was cannot run out of addresses.
            series.labels = self.cold.put_labels(&labels).unwrap_or(series.labels);
            series.closed = keep_closed(&old_cold, &mut self.cold, series.closed, cut, rules);
            let series = &mut self.series[index];
            if series.chunk_start < cut.up_to && open_max.is_some() {
                drop(self.histograms.take(series.histogram));
                series.histogram = NO_ENTRY;
                series.open = Open::Nothing;
            }
            series.piece = match series.open {
                Open::Floats => move_piece(&old_slab, &mut self.slab, series.piece, series.appender.byte_len()),
                Open::Nothing | Open::Histograms => Piece::NONE,
            };
            if let Some(side) = self.sides.get_mut(series.side) {
                side.drop_covered(cut, rules.range_ms);
                if side.is_empty() {
                    drop(self.sides.take(series.side));
                    series.side = NO_ENTRY;
                }
            }
        }
        for (index, samples) in straddling {
            for sample in samples {
                match &sample.value {
                    SampleValue::Float(value) => self.append_float(index, sample.time, *value, rules),
                    SampleValue::Histogram(value) => self.append_histogram(index, sample.time, value, rules),
                }
            }
        }
        self.alive().filter(|index| self.is_empty(*index)).collect()
    }

    /// What stays of open chunks on both sides of a cut, by series. Only a cut within a range has such.
    fn straddling(&self, cut: Cut) -> Vec<(usize, Vec<TimedSample>)> {
        let mut straddling = Vec::new();
        for index in self.alive() {
            let series = &self.series[index];
            let is_straddling = series.chunk_start < cut.up_to
                && self.open_max_time(series).is_some_and(|max_time| max_time >= cut.up_to);
            if let Some(chunk) = is_straddling.then(|| self.open_chunk(series)).flatten() {
                straddling.push((index, samples_left(chunk.encoding, &chunk.data, cut)));
            }
        }
        straddling
    }

    /// Whether a series has no sample.
    pub(in super::super) fn is_empty(&self, index: usize) -> bool {
        self.series(index).is_some_and(|series| {
            series.open == Open::Nothing && series.closed == cold::NONE && series.side == NO_ENTRY
        })
    }

    /// Frees the slot of a series, whatever it holds.
    pub(in super::super) fn remove(&mut self, index: usize) {
        let Some(series) = self.series.get_mut(index) else { return };
        series.labels = cold::NONE;
        series.closed = cold::NONE;
        series.open = Open::Nothing;
        self.slab.free(std::mem::replace(&mut series.piece, Piece::NONE));
        drop(self.sides.take(std::mem::replace(&mut series.side, NO_ENTRY)));
        drop(self.histograms.take(std::mem::replace(&mut series.histogram, NO_ENTRY)));
    }

    /// Gives the memory of free slots at the page's end back.
    pub(in super::super) fn shrink(&mut self) {
        let used = self.series.iter().rposition(|series| series.is_alive()).map_or(0, |last| last + 1);
        self.series.truncate(used);
        if self.series.capacity() >= 2 * used {
            self.series.shrink_to_fit();
        }
        if used == 0 {
            *self = Self::default();
        }
    }
}

/// Copies what `cut` leaves of the closed chunks; returns the newest.
fn keep_closed(old: &Cold, new: &mut Cold, newest: ColdRef, cut: Cut, rules: Rules) -> ColdRef {
    let mut kept: Vec<ClosedChunk<'_>> = old.chunks(newest).take_while(|c| c.max_time >= cut.up_to).collect();
    kept.reverse();
    let mut newest = cold::NONE;
    for chunk in kept {
        if chunk.min_time >= cut.up_to {
            newest = new.put_chunk(ClosedChunk { previous: newest, ..chunk }).unwrap_or(newest);
            continue;
        }
        for left in recode::encode(&samples_left(chunk.encoding, chunk.data, cut), rules.range_ms) {
            let Chunk { min_time, max_time, encoding, data } = &left;
            let left =
                ClosedChunk { previous: newest, min_time: *min_time, max_time: *max_time, encoding: *encoding, data };
            newest = new.put_chunk(left).unwrap_or(newest);
        }
    }
    newest
}

/// The samples of a chunk that a cut leaves.
fn samples_left(encoding: Encoding, data: &[u8], cut: Cut) -> Vec<TimedSample> {
    let mut left = Vec::new();
    let decoded = recode::decode(encoding, data, QueryRange { min: cut.up_to, max: TimestampMs::MAX }, &mut left);
    debug_assert!(decoded.is_ok());
    left
}

fn move_piece(old: &Slab, new: &mut Slab, piece: Piece, len: usize) -> Piece {
    let Some(moved) = new.allocate(len) else { return Piece::NONE };
    new.bytes_mut(moved)[..len].copy_from_slice(&old.bytes(piece)[..len]);
    moved
}
