//! What is made of the bytes of a block, structure by structure: postings lists, series' entries, chunks.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use skald_model::{Labels, Matcher, QueryRange};
use skald_tsdb::block::{
    BlockError, ChunkMeta, ChunkRef, FoundChunk, Ranged, SeriesEntry, chunk_range, find_chunk, hidden_ranges,
    is_hidden, parse_postings, series_offset,
};
use skald_tsdb::chunk::Chunk;
use skald_tsdb::postings::SeriesRef;

use super::block::OpenBlock;
use super::pages::LabelsKey;
use super::reading::{IndexedSeries, Wanted, WantedChunk};

/// Longest entry that the estimate for further ones follows.
const MAX_LEARNED_ENTRY: u64 = 4 << 10;
/// Longest chunk that the estimate for further ones follows.
const MAX_LEARNED_CHUNK: u64 = 16 << 10;

/// Parses structures whose ranges were read, and keeps what comes of them.
pub(super) trait Parsing: Send + 'static {
    /// Parses structure `number`, which begins `part` of `bytes`. `Short` is answered by another call with more bytes;
    /// numbers do not ascend any more then.
    fn parse(&mut self, number: usize, bytes: &Bytes, part: Range<usize>) -> Result<Ranged<()>, BlockError>;
}

/// Postings lists.
pub(super) struct Lists {
    /// Where each begins, ascending.
    pub(super) starts: Vec<u64>,
    /// Where postings lists end.
    pub(super) end: u64,
    pub(super) lists: Vec<Vec<SeriesRef>>,
}

impl Parsing for Lists {
    fn parse(&mut self, number: usize, bytes: &Bytes, part: Range<usize>) -> Result<Ranged<()>, BlockError> {
        Ok(match parse_postings(self.starts[number], self.end, &bytes[part])? {
            Ranged::Complete(list) => {
                self.lists[number] = list;
                Ranged::Complete(())
            }
            Ranged::Short { need } => Ranged::Short { need },
        })
    }
}

/// Chunks of one segment.
pub(super) struct Chunks {
    pub(super) block: Arc<OpenBlock>,
    pub(super) metas: Vec<ChunkMeta>,
    /// Where each belongs in `chunks`.
    pub(super) places: Vec<usize>,
    pub(super) chunks: Vec<Option<Chunk>>,
}

impl Parsing for Chunks {
    fn parse(&mut self, number: usize, bytes: &Bytes, part: Range<usize>) -> Result<Ranged<()>, BlockError> {
        let meta = &self.metas[number];
        match find_chunk(meta, &bytes[part.clone()])? {
            Ranged::Complete(FoundChunk { encoding, data }) => {
                let data = bytes.slice(part.start + data.start..part.start + data.end);
                let chunk = Chunk { min_time: meta.min_time, max_time: meta.max_time, encoding, data };
                self.chunks[self.places[number]] = Some(chunk);
                Ok(Ranged::Complete(()))
            }
            Ranged::Short { need } => {
                self.block.chunk_estimate.fetch_max(need.min(MAX_LEARNED_CHUNK), Ordering::Relaxed);
                Ok(Ranged::Short { need })
            }
        }
    }
}

/// Entries of series: labels, and the places of the chunks that are wanted.
pub(super) struct Entries {
    block: Arc<OpenBlock>,
    series: Vec<SeriesRef>,
    /// Labels that need not be put together.
    known: Vec<Option<Labels>>,
    wanted: Wanted,
    chunk_estimate: u64,
    /// One entry's memory serves all: most of what an entry says is not wanted.
    entry: SeriesEntry,
    parsed: Vec<Parsed>,
    /// Label symbols of all series whose labels are not known.
    symbols: Vec<(u32, u32)>,
}

/// What is wanted of a series' entry.
#[derive(Default)]
struct Parsed {
    /// Whether the series is wanted at all.
    is_wanted: bool,
    chunks: Vec<WantedChunk>,
    hidden: Vec<QueryRange>,
    /// Its part of all symbols.
    symbols: Range<usize>,
    /// The series' first chunk.
    first: Option<ChunkRef>,
    /// Whether its last chunk is wanted, whose end the entry does not tell.
    ends_open: bool,
}

impl Entries {
    pub(super) fn new(
        block: Arc<OpenBlock>,
        series: Vec<SeriesRef>,
        known: Vec<Option<Labels>>,
        wanted: Wanted,
    ) -> Self {
        let chunk_estimate = block.chunk_estimate.load(Ordering::Relaxed);
        let mut parsed = Vec::new();
        parsed.resize_with(series.len(), Parsed::default);
        let (entry, symbols) = (SeriesEntry::default(), Vec::new());
        Self { block, series, known, wanted, chunk_estimate, entry, parsed, symbols }
    }

    /// The series that are wanted and satisfy `deferred`. Labels that were put together are appended to `learned`.
    pub(super) fn finish(
        self,
        deferred: &[Matcher],
        learned: &mut Vec<(LabelsKey, Labels)>,
    ) -> Result<Vec<IndexedSeries>, BlockError> {
        let Self { block, series, known, parsed, symbols, .. } = self;
        let mut labels_reader = block.header.labels_reader();
        let mut indexed = Vec::with_capacity(parsed.len());
        let mut parsed = parsed.into_iter().peekable();
        for (series, known) in series.into_iter().zip(known) {
            let Some(mut parsed_one) = parsed.next() else { break };
            if !parsed_one.is_wanted {
                continue;
            }
            parsed_one.end_last_chunk(parsed.peek().and_then(|next| next.first));
            let labels = match known {
                Some(labels) => labels,
                None => {
                    let symbols = symbols.get(parsed_one.symbols).unwrap_or_default();
                    let labels = labels_reader.labels_of(series_offset(series), symbols)?;
                    learned.push(((block.index.block, series), labels.clone()));
                    labels
                }
            };
            if deferred.iter().all(|matcher| matcher.matches(labels.get(matcher.name()).unwrap_or_default())) {
                indexed.push(IndexedSeries { labels, chunks: parsed_one.chunks, hidden: parsed_one.hidden });
            }
        }
        Ok(indexed)
    }

    /// Looks at the whole entry, some of whose samples must not be shown.
    fn parse_whole(&mut self, number: usize, bytes: &[u8]) -> Result<Parsed, BlockError> {
        let (block, entry) = (&self.block, &mut self.entry);
        let series = self.series[number];
        // It is complete, as a part of it was.
        let _ = entry.parse(series, block.header.toc().series_end(), bytes)?;
        let mut hidden = hidden_ranges(&entry.chunks, block.range, block.tombstones.of(series));
        let chunks = wanted_chunks(entry, self.wanted, &hidden, self.chunk_estimate);
        let is_wanted = chunks.is_some();
        let chunks = chunks.unwrap_or_default();
        hidden.retain(|range| chunks.iter().any(|chunk| chunk.meta.overlaps(*range)));
        let first = entry.chunks.first().map(|chunk| chunk.reference);
        let last = entry.chunks.last().map(|chunk| chunk.reference);
        let ends_open = last.is_some() && chunks.last().map(|chunk| chunk.meta.reference) == last;
        Ok(Parsed { is_wanted, chunks, hidden, symbols: 0..0, first, ends_open })
    }
}

impl Parsing for Entries {
    fn parse(&mut self, number: usize, bytes: &Bytes, part: Range<usize>) -> Result<Ranged<()>, BlockError> {
        let (bytes, series) = (&bytes[part], self.series[number]);
        let (Wanted::Overlapping(range) | Wanted::LabelsOf(range)) = self.wanted;
        let (end, with_labels) = (self.block.header.toc().series_end(), self.known[number].is_none());
        let around = match self.entry.parse_part(series, end, bytes, range, with_labels)? {
            Ranged::Complete(around) => around,
            Ranged::Short { need } => {
                self.block.entry_estimate.fetch_max(need.min(MAX_LEARNED_ENTRY), Ordering::Relaxed);
                return Ok(Ranged::Short { need });
            }
        };
        let symbols = self.symbols.len()..self.symbols.len() + self.entry.labels.len();
        self.symbols.extend_from_slice(&self.entry.labels);
        let (chunks, block) = (&self.entry.chunks, self.block.range);
        let is_shown = |chunk: &ChunkMeta| chunk.min_time >= block.min && chunk.max_time < block.max;
        let parsed = if !self.block.tombstones.of(series).is_empty() || !chunks.iter().all(is_shown) {
            self.parse_whole(number, bytes)?
        } else {
            let (is_wanted, ends_open) = (!chunks.is_empty(), around.next.is_none());
            let chunks = match self.wanted {
                Wanted::LabelsOf(_) => Vec::new(),
                Wanted::Overlapping(_) => places(chunks, around.next, self.chunk_estimate),
            };
            let ends_open = ends_open && !chunks.is_empty();
            Parsed { is_wanted, chunks, hidden: Vec::new(), symbols: 0..0, first: around.first, ends_open }
        };
        self.parsed[number] = Parsed { symbols, ..parsed };
        Ok(Ranged::Complete(()))
    }
}

impl Parsed {
    /// Where the next series' chunks start, this one's last has ended, as they are normally written in order.
    fn end_last_chunk(&mut self, next: Option<ChunkRef>) {
        let (true, Some(last), Some(next)) = (self.ends_open, self.chunks.last_mut(), next) else { return };
        last.end_before(next);
    }
}

impl WantedChunk {
    /// Ends the bytes where another chunk begins, if that is nearer.
    fn end_before(&mut self, next: ChunkRef) {
        let reference = self.meta.reference;
        if next.segment() == reference.segment() && next > reference {
            self.bytes.end = self.bytes.end.min(self.bytes.start + u64::from(next.offset() - reference.offset()));
        }
    }
}

/// The places of chunks behind which comes `next`. `estimate` is a guess of a length that cannot be told.
fn places(chunks: &[ChunkMeta], next: Option<ChunkRef>, estimate: u64) -> Vec<WantedChunk> {
    let place = |i: usize| WantedChunk { meta: chunks[i], bytes: chunk_range(chunks, i, estimate) };
    let mut places: Vec<WantedChunk> = (0..chunks.len()).map(place).collect();
    if let (Some(last), Some(next)) = (places.last_mut(), next)
        && next.segment() == last.meta.reference.segment()
        && next > last.meta.reference
    {
        last.bytes.end = u64::from(next.offset());
    }
    places
}

/// The chunks of a series that are wanted; `None` when the series is not. `estimate` is a guess of the last one's length.
fn wanted_chunks(
    entry: &SeriesEntry,
    wanted: Wanted,
    hidden: &[QueryRange],
    estimate: u64,
) -> Option<Vec<WantedChunk>> {
    let is_wanted = |chunk: &ChunkMeta, range| chunk.overlaps(range) && !is_hidden(chunk, hidden);
    let range = match wanted {
        Wanted::LabelsOf(range) => return entry.chunks.iter().any(|chunk| is_wanted(chunk, range)).then(Vec::new),
        Wanted::Overlapping(range) => range,
    };
    // Chunks stand in time order.
    let first = entry.chunks.partition_point(|chunk| chunk.max_time < range.min);
    let behind = entry.chunks.partition_point(|chunk| chunk.min_time <= range.max);
    let chunks: Vec<WantedChunk> = (first..behind)
        .filter(|&i| is_wanted(&entry.chunks[i], range))
        .map(|i| WantedChunk { meta: entry.chunks[i], bytes: chunk_range(&entry.chunks, i, estimate) })
        .collect();
    (!chunks.is_empty()).then_some(chunks)
}
