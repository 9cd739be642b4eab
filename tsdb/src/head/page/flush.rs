//! What a flush takes out of a page, and how the page gives memory back afterwards.

use std::collections::{BTreeSet, HashMap};

use skald_model::{BlockRange, QueryRange, TimestampMs};

use super::super::chunk_files::{ChunkAddress, StoredChunk};
use super::super::cold::{self, Cold, ColdRef};
use super::super::cut::CutExtent;
use super::super::recode;
use super::super::sample::{SampleValue, TimedSample};
use super::super::slab;
use super::super::stored::{PageChunk, Shelf};
use super::{NO_ENTRY, Open, Page, Rules, Series};
use crate::chunk::{Chunk, Encoding};
use crate::wal::{Cut, Generation};

/// What a flush takes of one series.
pub(in super::super) struct CutParts {
    /// Ascending, without overlap.
    pub(in super::super) chunks: Vec<PageChunk>,
    /// Out-of-order samples, exactly those wanted.
    beside: Vec<TimedSample>,
}

/// The instants of `range` below the cut's end.
fn covered(range: BlockRange, cut: Cut) -> Option<QueryRange> {
    let range = QueryRange { min: range.min, max: range.max.min(cut.up_to).saturating_sub(1) };
    (!range.is_empty()).then_some(range)
}

impl CutParts {
    /// Chunks with exactly the samples wanted, ascending and without overlap, out of what was read of `self.chunks`.
    pub(in super::super) fn finish(self, chunks: Vec<Chunk>, range: BlockRange, cut: Cut, range_ms: i64) -> Vec<Chunk> {
        let Some(range) = covered(range, cut) else { return Vec::new() };
        let inside = |chunk: &Chunk| range.contains(chunk.min_time) && range.contains(chunk.max_time);
        if self.beside.is_empty() && chunks.iter().all(inside) {
            return chunks;
        }
        let mut samples = self.beside;
        for chunk in &chunks {
            // These bytes were encoded here and have their checksum: they decode.
            let decoded = recode::decode(chunk.encoding, &chunk.data, range, &mut samples);
            debug_assert!(decoded.is_ok());
        }
        samples.sort_by_key(|sample| sample.time);
        // A sample may have been sent again while its chunk could not be read.
        samples.dedup_by_key(|sample| sample.time);
        recode::encode(&samples, range_ms)
    }
}

impl Page {
    /// Adds the starts of the aligned ranges in which samples lie that `cut` covers.
    pub(in super::super) fn ranges(&self, cut: Cut, rules: Rules<'_>, starts: &mut BTreeSet<TimestampMs>) {
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

    /// What of a series lies in `range` and is covered by `cut`; `None` when nothing does. The chunks may hold more.
    pub(in super::super) fn cut_parts(&self, index: usize, range: BlockRange, cut: Cut) -> Option<CutParts> {
        let series = self.series(index)?;
        let range = covered(range, cut)?;
        let overlaps = |min_time, max_time| min_time <= range.max && range.min <= max_time;
        let closed = self.cold.chunks(series.closed).filter(|c| overlaps(c.min_time, c.max_time));
        let mut chunks: Vec<PageChunk> = closed.map(PageChunk::Stored).collect();
        chunks.reverse();
        if let Some(max_time) = self.open_max_time(series)
            && overlaps(series.chunk_start, max_time)
        {
            chunks.extend(self.open_chunk(series).map(PageChunk::Copied));
        }
        let mut beside: Vec<TimedSample> = Vec::new();
        if let Some(side) = self.sides.get(series.side) {
            side.samples(cut.generation, range, &mut beside);
        }
        (!chunks.is_empty() || !beside.is_empty()).then_some(CutParts { chunks, beside })
    }

    /// From the first to the last sample, or a little more, of what [`Page::cut_parts`] gives, and of how many chunks that is
    /// made; without reading them.
    pub(in super::super) fn cut_extent(&self, index: usize, range: BlockRange, cut: Cut) -> Option<CutExtent> {
        let series = self.series(index)?;
        let range = covered(range, cut)?;
        let mut times = QueryRange { min: TimestampMs::MAX, max: TimestampMs::MIN };
        let mut chunks = 0;
        let mut add = |min: TimestampMs, max: TimestampMs| {
            if min <= range.max && range.min <= max {
                chunks += 1;
                times = QueryRange { min: times.min.min(min.max(range.min)), max: times.max.max(max.min(range.max)) };
            }
        };
        self.cold.chunks(series.closed).for_each(|chunk| add(chunk.min_time, chunk.max_time));
        if let Some(max_time) = self.open_max_time(series) {
            add(series.chunk_start, max_time);
        }
        if let Some(side) = self.sides.get(series.side) {
            side.for_each_range(cut.generation, &mut add);
        }
        (!times.is_empty()).then_some(CutExtent { times, chunks })
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

    /// Number of series that hold nothing at or after `time`: a cut there takes all of them.
    pub(in super::super) fn series_before(&self, time: TimestampMs) -> usize {
        let is_before = |series: &&Series| {
            let beside_too = || {
                let mut before = true;
                if let Some(side) = self.sides.get(series.side) {
                    side.for_each_range(Generation(u32::MAX), |_, max| before &= max < time);
                }
                before
            };
            // Closed chunks are older than the open one.
            series.is_alive() && self.open_max_time(series).is_none_or(|max_time| max_time < time) && beside_too()
        };
        self.series.iter().filter(is_before).count()
    }

    /// Drops what `cut` covers and moves the rest together. Returns the indexes of series that hold nothing any more;
    /// their slots stay taken until [`Page::remove`].
    pub(in super::super) fn drop_covered(&mut self, cut: Cut, rules: Rules<'_>) -> Vec<usize> {
        let straddling = self.straddling(cut);
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
                self.drop_extra(index);
                let series = &mut self.series[index];
                series.open = Open::Nothing;
                self.slab.free(std::mem::replace(&mut series.tail, slab::NONE));
            }
            let series = &mut self.series[index];
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
                    SampleValue::Float(value) => self.append_float(index, sample.time, *value, sample.start, rules),
                    SampleValue::Histogram(value) => {
                        self.append_histogram(index, sample.time, value, sample.start, rules);
                    }
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

    /// The closed chunks that lie in `files`.
    pub(in super::super) fn chunks_in(&self, files: &BTreeSet<u32>) -> Vec<StoredChunk> {
        let alive = self.series.iter().filter(|series| series.is_alive());
        let chunks = alive.flat_map(|series| self.cold.chunks(series.closed));
        chunks.filter(|chunk| files.contains(&chunk.address.file)).collect()
    }

    /// Remembers chunks by their new places; takes those it has found out of `places`.
    pub(in super::super) fn replace_chunks(&mut self, places: &mut HashMap<ChunkAddress, StoredChunk>) {
        let old = std::mem::take(&mut self.cold);
        let mut labels = Vec::new();
        for series in self.series.iter_mut().filter(|series| series.is_alive()) {
            labels.clear();
            old.labels(series.labels, &mut labels);
            // Copying cannot run out of addresses: the entries are as long as before, or a few bytes longer.
            series.labels = self.cold.put_labels(&labels).unwrap_or(series.labels);
            let mut chunks: Vec<StoredChunk> = old.chunks(series.closed).collect();
            chunks.reverse();
            series.closed = cold::NONE;
            for chunk in chunks {
                let chunk = places.remove(&chunk.address).unwrap_or(chunk);
                series.closed = self.cold.put_chunk(series.closed, &chunk).unwrap_or(series.closed);
            }
        }
    }

    /// Whether a series has no sample.
    pub(in super::super) fn is_empty(&self, index: usize) -> bool {
        self.series(index).is_some_and(|series| {
            series.open == Open::Nothing && series.closed == cold::NONE && series.side == NO_ENTRY
        })
    }

    /// Frees the slot of a series, whatever it holds.
    pub(in super::super) fn remove(&mut self, index: usize, shelf: Shelf<'_>) {
        if index >= self.series.len() {
            return;
        }
        self.drop_extra(index);
        let series = &mut self.series[index];
        self.cold.chunks(series.closed).for_each(|chunk| shelf.release(&chunk));
        series.labels = cold::NONE;
        series.closed = cold::NONE;
        series.open = Open::Nothing;
        self.slab.free(std::mem::replace(&mut series.tail, slab::NONE));
        drop(self.sides.take(std::mem::replace(&mut series.side, NO_ENTRY)));
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

/// Copies what `cut` leaves of the closed chunks, and gives the others up; returns the newest.
fn keep_closed(old: &Cold, new: &mut Cold, newest: ColdRef, cut: Cut, rules: Rules<'_>) -> ColdRef {
    let (mut kept, covered): (Vec<StoredChunk>, Vec<StoredChunk>) =
        old.chunks(newest).partition(|chunk| chunk.max_time >= cut.up_to);
    covered.iter().for_each(|chunk| rules.shelf.release(chunk));
    kept.reverse();
    let mut newest = cold::NONE;
    for chunk in kept {
        // Only a cut that is not aligned to a range leaves part of a chunk. One that cannot be read stays whole.
        let data = if chunk.min_time < cut.up_to { rules.shelf.read(&chunk) } else { None };
        let Some(data) = data else {
            newest = new.put_chunk(newest, &chunk).unwrap_or(newest);
            continue;
        };
        for left in recode::encode(&samples_left(chunk.encoding, &data, cut), rules.range_ms) {
            let left = rules.shelf.put(left.min_time, left.max_time, left.encoding, &left.data);
            newest = new.put_chunk(newest, &left).unwrap_or(newest);
        }
        rules.shelf.release(&chunk);
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
