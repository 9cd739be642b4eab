//! The blocks of a merge, walked together series by series.
//!
//! Labels are pairs of symbols here, by their numbers in a table that all sources share: those ascend like the texts, so
//! that series are compared, and looked for in tables, without any text.

use bytes::Bytes;
use skald_model::{Labels, QueryRange};

use super::framing::Ranged;
use super::local::{LocalBlock, OpenFile};
use super::segment::{Frame, find_frame};
use super::series::{SeriesEntry, series_offset};
use super::symbols::{SortedSymbols, SymbolSet};
use super::visible::{hidden_ranges, is_hidden};
use super::{BlockError, BlockFile, ChunkMeta};
use crate::SeriesChunks;
use crate::chunk::{Chunk, Encoding};
use crate::postings::SeriesRef;

/// Bytes of a file that are read at once. They are soon gone from the processor's caches when there are many more.
const WINDOW: u64 = 256 << 10;
/// Bytes that tell how long an entry or a chunk is.
const LEAST: u64 = 10;

/// A stretch of a file in memory, which moves on with its reader.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The bytes from `offset` on: `want` of them at least, unless the file ends before.
    #[inline]
    fn at(&mut self, file: &OpenFile, offset: u64, want: u64) -> Result<&[u8], BlockError> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset.saturating_add(want).min(file.len) > end || offset > end {
            let len = want.max(WINDOW).min(file.len.saturating_sub(offset));
            self.bytes.resize(len as usize, 0);
            self.start = offset;
            // What a failed read leaves behind is not looked at again.
            file.read_into(&mut self.bytes, offset).inspect_err(|_| self.bytes.clear())?;
        }
        Ok(&self.bytes[(offset - self.start) as usize..])
    }

    /// Parses what starts at `offset`, with as many bytes as it asks for. Gives the bytes, too.
    #[inline]
    fn parse<T>(
        &mut self,
        file: &OpenFile,
        offset: u64,
        mut parse: impl FnMut(&[u8]) -> Result<Ranged<T>, BlockError>,
    ) -> Result<(T, &[u8]), BlockError> {
        let mut want = LEAST;
        loop {
            let bytes = self.at(file, offset, want)?;
            let have = bytes.len() as u64;
            match parse(bytes)? {
                Ranged::Complete(parsed) => return Ok((parsed, &self.bytes[(offset - self.start) as usize..])),
                // The file has no more, or more does not help.
                Ranged::Short { need } if have < want || need <= have => {
                    return Err(BlockError::damaged(file.kind, offset, "ends before its contents do"));
                }
                Ranged::Short { need } => want = need,
            }
        }
    }
}

/// One block's series, one after the other. Those of which nothing may be seen are passed over.
pub(super) struct MergeSource<'a> {
    block: &'a LocalBlock,
    range: QueryRange,
    /// The shared number of each of the block's symbols.
    numbers: Vec<u32>,
    /// The shared number of the empty text, which is no label's name or value.
    empty: Option<u32>,
    series: Vec<SeriesRef>,
    /// Index of the series behind the current one.
    next: usize,
    ended: bool,
    index: Window,
    segment: Window,
    /// Which segment that is of.
    segment_number: u32,
    entry: SeriesEntry,
    previous: Vec<(u32, u32)>,
    /// The current series: its labels,
    labels: Vec<(u32, u32)>,
    /// those of its chunks of which something may be seen,
    chunks: Vec<ChunkMeta>,
    /// and what of them may not.
    hidden: Vec<QueryRange>,
    /// The data of its chunks, how each is coded and where it ends: kept for the next series' sake.
    bytes: Vec<u8>,
    found: Vec<(Encoding, usize)>,
}

impl<'a> MergeSource<'a> {
    fn new(
        block: &'a LocalBlock,
        range: QueryRange,
        numbers: Vec<u32>,
        empty: Option<u32>,
    ) -> Result<Self, BlockError> {
        Ok(Self {
            block,
            range,
            numbers,
            empty,
            series: block.find(&[])?,
            next: 0,
            ended: false,
            index: Window::default(),
            segment: Window::default(),
            segment_number: 0,
            entry: SeriesEntry::default(),
            previous: Vec::new(),
            labels: Vec::new(),
            chunks: Vec::new(),
            hidden: Vec::new(),
            bytes: Vec::new(),
            found: Vec::new(),
        })
    }

    fn advance(&mut self) -> Result<(), WalkError> {
        loop {
            let Some(&series) = self.series.get(self.next) else {
                self.ended = true;
                return Ok(());
            };
            self.next += 1;
            let (end, offset) = (self.block.header().toc().series_end(), series_offset(series));
            self.index.parse(self.block.index(), offset, |bytes| self.entry.parse(series, end, bytes))?;
            std::mem::swap(&mut self.previous, &mut self.labels);
            self.read_labels(offset)?;
            if self.previous >= self.labels {
                return Err(WalkError::OutOfOrder(self.labels.clone()));
            }
            let (meta, stones) = (self.block.meta(), self.block.tombstones());
            self.hidden = hidden_ranges(&self.entry.chunks, meta.range(), stones.of(series));
            self.chunks.clear();
            let (range, hidden) = (self.range, &self.hidden);
            let wanted = |chunk: &&ChunkMeta| chunk.overlaps(range) && !is_hidden(chunk, hidden);
            self.chunks.extend(self.entry.chunks.iter().filter(wanted));
            if !self.chunks.is_empty() {
                let chunks = &self.chunks;
                self.hidden.retain(|hidden| chunks.iter().any(|chunk| chunk.overlaps(*hidden)));
                return Ok(());
            }
        }
    }

    fn read_labels(&mut self, offset: u64) -> Result<(), BlockError> {
        let damaged = |what| BlockError::damaged(BlockFile::Index, offset, what);
        self.labels.clear();
        for (name, value) in &self.entry.labels {
            match (self.numbers.get(*name as usize), self.numbers.get(*value as usize)) {
                (Some(&name), Some(&value)) => self.labels.push((name, value)),
                _ => return Err(damaged("a series names a symbol that does not exist")),
            }
        }
        let is_empty = |&(name, value): &(u32, u32)| self.empty == Some(name) || self.empty == Some(value);
        if !self.labels.is_sorted_by(|a, b| a.0 < b.0) || self.labels.iter().any(is_empty) {
            return Err(damaged("labels of a series are not in order"));
        }
        Ok(())
    }

    /// Where the parts of a chunk of the current series stand, and the bytes that start with it.
    #[inline]
    fn frame(&mut self, chunk: usize) -> Result<(ChunkMeta, Frame, &[u8]), BlockError> {
        let meta = self.chunks[chunk];
        let number = meta.reference.segment();
        if number != self.segment_number {
            (self.segment, self.segment_number) = (Window::default(), number);
        }
        let segment = self.block.segment(number)?;
        let offset = u64::from(meta.reference.offset());
        let (frame, bytes) = self.segment.parse(segment, offset, |bytes| find_frame(&meta, bytes))?;
        Ok((meta, frame, bytes))
    }
}

/// Why a walk had to stop.
pub(super) enum WalkError {
    Block(BlockError),
    /// The series with these labels does not come after the one before it.
    OutOfOrder(Vec<(u32, u32)>),
}

impl From<BlockError> for WalkError {
    fn from(error: BlockError) -> Self {
        Self::Block(error)
    }
}

/// A chunk of the current series: its place in time, then in the list of sources, then among the source's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub(super) min_time: i64,
    pub(super) max_time: i64,
    source: usize,
    chunk: usize,
}

/// All sources together: equal series are one.
pub(super) struct MergeWalk<'a> {
    pub(super) symbols: SortedSymbols,
    sources: Vec<MergeSource<'a>>,
    /// The sources that have the current series.
    current: Vec<usize>,
    /// Its chunks by time.
    candidates: Vec<Candidate>,
}

impl<'a> MergeWalk<'a> {
    /// Of what the blocks have in `range`.
    pub(super) fn new(
        blocks: impl Iterator<Item = &'a LocalBlock> + Clone,
        range: QueryRange,
    ) -> Result<Self, BlockError> {
        let mut set = SymbolSet::default();
        let mut places = Vec::new();
        for block in blocks.clone() {
            let mut places_of = Vec::with_capacity(block.header().symbol_count() as usize);
            block.header().for_each_symbol(|symbol| {
                places_of.push(set.place(symbol)?);
                Ok(())
            })?;
            places.push(places_of);
        }
        let symbols = set.sort();
        let empty = symbols.number("");
        let mut sources = Vec::new();
        for (block, mut numbers) in blocks.zip(places) {
            numbers.iter_mut().for_each(|number| *number = symbols.number_at(*number));
            sources.push(MergeSource::new(block, range, numbers, empty)?);
        }
        Ok(Self { symbols, sources, current: Vec::new(), candidates: Vec::new() })
    }

    /// Begins at the first series (anew).
    pub(super) fn rewind(&mut self) {
        for source in &mut self.sources {
            (source.next, source.ended) = (0, false);
            source.labels.clear();
        }
        self.current = (0..self.sources.len()).collect();
    }

    /// Goes to the next series. False when there is none.
    pub(super) fn advance(&mut self) -> Result<bool, WalkError> {
        for &source in &self.current {
            self.sources[source].advance()?;
        }
        self.current.clear();
        for (number, source) in self.sources.iter().enumerate().filter(|(_, source)| !source.ended) {
            let order = self.current.first().map(|&first| source.labels.cmp(&self.sources[first].labels));
            if order.is_none_or(|order| order.is_lt()) {
                self.current.clear();
            }
            if order.is_none_or(|order| order.is_le()) {
                self.current.push(number);
            }
        }
        Ok(!self.current.is_empty())
    }

    /// The labels of the current series.
    pub(super) fn labels(&self) -> &[(u32, u32)] {
        self.current.first().map_or(&[], |&first| &self.sources[first].labels)
    }

    /// Whether some samples in chunks of the current series are hidden.
    pub(super) fn has_hidden(&self) -> bool {
        self.current.iter().any(|&source| !self.sources[source].hidden.is_empty())
    }

    /// The chunks of the current series, all sources together, by time.
    pub(super) fn candidates(&mut self) -> &[Candidate] {
        self.candidates.clear();
        for &source in &self.current {
            let candidate = |(chunk, meta): (usize, &ChunkMeta)| {
                let (min_time, max_time) = (meta.min_time, meta.max_time);
                Candidate { min_time, max_time, source, chunk }
            };
            self.candidates.extend(self.sources[source].chunks.iter().enumerate().map(candidate));
        }
        // They stand in sorted runs, which this sort sees.
        self.candidates.sort();
        &self.candidates
    }

    /// How many chunks the current series will have, unless more has to be done than to leave out those that others have.
    pub(super) fn chunk_count(&mut self) -> usize {
        let Some((&first, others)) = self.current.split_first() else { return 0 };
        let times = |source: usize| self.sources[source].chunks.iter().map(|meta| (meta.min_time, meta.max_time));
        if others.iter().all(|&other| times(first).eq(times(other))) {
            return self.sources[first].chunks.len();
        }
        let times = |candidate: &Candidate| (candidate.min_time, candidate.max_time);
        self.candidates().chunk_by(|a, b| times(a) == times(b)).count()
    }

    /// One of those.
    pub(super) fn candidate(&self, number: usize) -> Option<Candidate> {
        self.candidates.get(number).copied()
    }

    /// Where its parts stand, and the bytes that start with it. Its checksum is not verified.
    pub(super) fn frame(&mut self, candidate: Candidate) -> Result<(ChunkMeta, Frame, &[u8]), BlockError> {
        self.sources[candidate.source].frame(candidate.chunk)
    }

    /// What each source has of the current series, checksums verified. Labels are left out.
    pub(super) fn parts(&mut self) -> Result<Vec<SeriesChunks>, BlockError> {
        let mut parts = Vec::with_capacity(self.current.len());
        for &source in &self.current {
            let source = &mut self.sources[source];
            let (mut bytes, mut found) = (std::mem::take(&mut source.bytes), std::mem::take(&mut source.found));
            bytes.clear();
            found.clear();
            for chunk in 0..source.chunks.len() {
                let (meta, frame, framed) = source.frame(chunk)?;
                let encoding = frame.check(&meta, framed)?;
                bytes.extend_from_slice(&framed[frame.data()]);
                found.push((encoding, bytes.len()));
            }
            // All chunks share one allocation.
            let shared = Bytes::copy_from_slice(&bytes);
            let mut start = 0;
            let chunk = |(meta, &(encoding, end)): (&ChunkMeta, &(Encoding, usize))| {
                let data = shared.slice(start..end);
                start = end;
                Chunk { min_time: meta.min_time, max_time: meta.max_time, encoding, data }
            };
            let chunks = source.chunks.iter().zip(&found).map(chunk).collect();
            (source.bytes, source.found) = (bytes, found);
            parts.push(SeriesChunks { labels: Labels::empty(), chunks, deleted: source.hidden.clone() });
        }
        Ok(parts)
    }
}
