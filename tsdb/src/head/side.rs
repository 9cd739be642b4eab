//! Out-of-order samples of one series, kept beside its chunks and merged on read and flush.

use skald_model::{QueryRange, TimestampMs};

use super::recode;
use super::sample::{SampleValue, TimedSample};
use crate::chunk::Chunk;
use crate::wal::{Cut, Generation};

/// Samples that gather before they are encoded.
const MAX_BUFFERED: usize = 32;
/// Samples of a chunk.
const MAX_CHUNK_SAMPLES: usize = 120;

/// The out-of-order samples of one series. No two have one time, and none the time of a sample in the series' chunks.
#[derive(Default)]
pub(super) struct Side {
    /// Not yet encoded, ascending; all of `generation`.
    buffer: Vec<TimedSample>,
    generation: Generation,
    /// Encoded; they overlap each other and the series' chunks.
    chunks: Vec<SideChunk>,
    /// Bytes of their data.
    data_bytes: usize,
}

struct SideChunk {
    chunk: Chunk,
    generation: Generation,
}

impl Side {
    /// Adds a sample whose time is not there yet.
    pub(super) fn insert(&mut self, generation: Generation, sample: TimedSample, range_ms: i64) {
        if self.buffer.len() >= MAX_BUFFERED || (generation != self.generation && !self.buffer.is_empty()) {
            self.encode_buffer(range_ms);
        }
        self.generation = generation;
        let at = self.buffer.partition_point(|other| other.time < sample.time);
        self.buffer.insert(at, sample);
    }

    /// All of it as chunks with their generations, for a snapshot.
    pub(super) fn encoded(&self, range_ms: i64) -> Vec<(Generation, Chunk)> {
        let mut all: Vec<_> = self.chunks.iter().map(|c| (c.generation, c.chunk.clone())).collect();
        all.extend(recode::encode(&self.buffer, range_ms).into_iter().map(|chunk| (self.generation, chunk)));
        all
    }

    /// Takes a chunk back from a snapshot.
    pub(super) fn restore(&mut self, generation: Generation, chunk: Chunk) {
        self.push(generation, chunk);
    }

    fn push(&mut self, generation: Generation, chunk: Chunk) {
        self.data_bytes += chunk.data.len();
        self.chunks.push(SideChunk { chunk, generation });
    }

    fn encode_buffer(&mut self, range_ms: i64) {
        let mut samples = std::mem::take(&mut self.buffer);
        self.take_up_last(&mut samples);
        for chunk in recode::encode(&samples, range_ms) {
            self.push(self.generation, chunk);
        }
        // Its memory serves again.
        samples.clear();
        samples.shrink_to(2 * MAX_BUFFERED);
        self.buffer = samples;
    }

    /// Puts the samples of the last chunk before `samples`, when those only go on where it ends and it has room for them:
    /// what comes in order (an import, a sender that catches up) makes whole chunks.
    fn take_up_last(&mut self, samples: &mut Vec<TimedSample>) {
        let Some(last) = self.chunks.last() else { return };
        let goes_on = samples.first().is_some_and(|first| last.chunk.max_time < first.time);
        let fits = usize::from(last.chunk.num_samples()) + samples.len() <= MAX_CHUNK_SAMPLES;
        if last.generation != self.generation || !last.chunk.encoding.is_float() || !goes_on || !fits {
            return;
        }
        let mut joined = Vec::with_capacity(MAX_CHUNK_SAMPLES);
        if recode::decode(last.chunk.encoding, &last.chunk.data, QueryRange::ALL, &mut joined).is_ok() {
            self.data_bytes -= last.chunk.data.len();
            self.chunks.pop();
            joined.append(samples);
            *samples = joined;
        }
    }

    /// The sample at `time`, if there is one.
    pub(super) fn find(&self, time: TimestampMs) -> Option<SampleValue> {
        if let Ok(at) = self.buffer.binary_search_by_key(&time, |sample| sample.time) {
            return Some(self.buffer[at].value.clone());
        }
        let around = self.chunks.iter().filter(|c| c.chunk.min_time <= time && time <= c.chunk.max_time);
        around.into_iter().find_map(|c| find_in(c.chunk.encoding, &c.chunk.data, time))
    }

    /// Chunks with all samples that `shown` does not cover; such a chunk may hold some that it does.
    pub(super) fn chunks(&self, shown_after: Cut, range_ms: i64, out: &mut Vec<Chunk>) {
        let visible = |generation: Generation, newest: TimestampMs| !shown_after.covers(generation, newest);
        let encoded = self.chunks.iter().filter(|c| visible(c.generation, c.chunk.max_time));
        out.extend(encoded.map(|c| c.chunk.clone()));
        if self.buffer.last().is_some_and(|newest| visible(self.generation, newest.time)) {
            out.extend(recode::encode(&self.buffer, range_ms));
        }
    }

    /// Appends the samples of `range` that are of a generation below `below`.
    pub(super) fn samples(&self, below: Generation, range: QueryRange, out: &mut Vec<TimedSample>) {
        let around = self
            .chunks
            .iter()
            .filter(|c| c.generation < below && c.chunk.min_time <= range.max && range.min <= c.chunk.max_time);
        for c in around {
            // These bytes were encoded here and never left memory: they decode.
            let decoded = recode::decode(c.chunk.encoding, &c.chunk.data, range, out);
            debug_assert!(decoded.is_ok());
        }
        if self.generation < below {
            out.extend(self.buffer.iter().filter(|sample| range.contains(sample.time)).cloned());
        }
    }

    /// Drops what `cut` covers.
    pub(super) fn drop_covered(&mut self, cut: Cut, range_ms: i64) {
        let generation = self.generation;
        self.buffer.retain(|sample| !cut.covers(generation, sample.time));
        let old = std::mem::take(&mut self.chunks);
        self.data_bytes = 0;
        for c in old {
            if cut.covers(c.generation, c.chunk.max_time) {
                continue;
            }
            if !cut.covers(c.generation, c.chunk.min_time) {
                self.push(c.generation, c.chunk);
                continue;
            }
            // Only a cut that is not aligned to a range leaves part of a chunk.
            let mut left = Vec::new();
            let range = QueryRange { min: cut.up_to, max: TimestampMs::MAX };
            let decoded = recode::decode(c.chunk.encoding, &c.chunk.data, range, &mut left);
            debug_assert!(decoded.is_ok());
            for chunk in recode::encode(&left, range_ms) {
                self.push(c.generation, chunk);
            }
        }
    }

    /// Visits the time range of everything that is of a generation below `below`.
    pub(super) fn for_each_range(&self, below: Generation, mut visit: impl FnMut(TimestampMs, TimestampMs)) {
        self.chunks.iter().filter(|c| c.generation < below).for_each(|c| visit(c.chunk.min_time, c.chunk.max_time));
        if self.generation < below {
            self.buffer.iter().for_each(|sample| visit(sample.time, sample.time));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.chunks.is_empty()
    }

    /// Heap bytes, without looking at every chunk. Histograms that are not encoded yet count by their place only.
    pub(super) fn heap_bytes(&self) -> usize {
        self.buffer.capacity() * size_of::<TimedSample>()
            + self.chunks.capacity() * size_of::<SideChunk>()
            + self.data_bytes
    }
}

/// The sample of a chunk at exactly `time`.
pub(super) fn find_in(encoding: crate::chunk::Encoding, data: &[u8], time: TimestampMs) -> Option<SampleValue> {
    let mut found = Vec::new();
    recode::decode(encoding, data, QueryRange { min: time, max: time }, &mut found).ok()?;
    found.pop().map(|sample| sample.value)
}
