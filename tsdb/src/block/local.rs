//! A block on the local file system.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use skald_model::{Labels, Matcher, QueryRange};

use super::framing::Ranged;
use super::postings_table::parse_postings;
use super::segment::{CHUNKS_DIR, SEGMENT_HEADER_LEN, check_segment_header, parse_chunk, segment_path};
use super::series::{SeriesEntry, series_range};
use super::toc::Toc;
use super::tombstones::{TOMBSTONES_FILE, Tombstones};
use super::visible::{hidden_ranges, is_hidden};
use super::{BlockError, BlockFile, BlockMeta, ChunkMeta, Coalesce, INDEX_FILE, IndexHeader, chunk_range, meta};
use crate::bounded::{self, Progress};
use crate::chunk::Chunk;
use crate::disk::{Disk, DiskFile};
use crate::postings::{self, Deferral, SeriesRef};
use crate::{SeriesChunks, SeriesFilter};

/// Series whose entries are read together.
const SERIES_BATCH: usize = 256;
/// Room for a series' entry; a longer one is read again.
pub(super) const ENTRY_ESTIMATE: u64 = 512;
/// Room for the last chunk of a series; a longer one is read again.
const CHUNK_ESTIMATE: u64 = 2 << 10;
/// How reads of entries are joined.
const JOIN_ENTRIES: Coalesce = Coalesce { max_gap: 4 << 10, max_len: 1 << 20 };
/// How reads of chunks are joined. A chunk holds on to the whole read, so gaps cost memory.
const JOIN_CHUNKS: Coalesce = Coalesce { max_gap: 256, max_len: 256 << 10 };
/// Bytes of chunks that are read ahead.
const CHUNKS_BATCH: u64 = 256 << 10;

/// A block in a local directory, open for reading.
///
/// Memory: a part of the index' symbols and postings offsets (one of 32), nothing of the samples. Any number of threads
/// may read at once.
pub struct LocalBlock {
    dir: PathBuf,
    meta: BlockMeta,
    header: IndexHeader,
    index: OpenFile,
    segments: Vec<OpenFile>,
    tombstones: Tombstones,
}

/// A file of a block, open for reading.
pub(super) struct OpenFile {
    pub(super) kind: BlockFile,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) len: u64,
}

impl OpenFile {
    pub(super) fn open(disk: &dyn Disk, path: &Path, kind: BlockFile) -> Result<Self, BlockError> {
        let file = disk.open(path).map_err(BlockError::io(kind))?;
        let len = file.len().map_err(BlockError::io(kind))?;
        Ok(Self { kind, file, len })
    }

    /// The bytes of `range`, cut at the file's end.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Bytes, BlockError> {
        let end = range.end.min(self.len);
        let mut buffer = vec![0; end.saturating_sub(range.start) as usize];
        self.read_into(&mut buffer, range.start.min(end))?;
        Ok(buffer.into())
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read_into(&self, buffer: &mut [u8], offset: u64) -> Result<(), BlockError> {
        self.file.read_exact_at(buffer, offset).map_err(BlockError::io(self.kind))
    }

    /// Parses what starts at `offset`: first from `bytes`, then, if that is too short, from what it asks for.
    pub(super) fn parse<T>(
        &self,
        offset: u64,
        bytes: Bytes,
        mut parse: impl FnMut(&Bytes) -> Result<Ranged<T>, BlockError>,
    ) -> Result<T, BlockError> {
        let mut parsed = parse(&bytes)?;
        let mut have = bytes.len() as u64;
        while let Ranged::Short { need } = parsed {
            let longer = self.read(offset..offset.saturating_add(need))?;
            if longer.len() as u64 <= have {
                break;
            }
            have = longer.len() as u64;
            parsed = parse(&longer)?;
        }
        parsed.or_truncated(self.kind, offset)
    }
}

impl LocalBlock {
    /// Opens the block in `dir`, checking everything that is read on opening.
    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<Self, BlockError> {
        let meta = disk.read(&dir.join(meta::META_FILE)).map_err(BlockError::io(BlockFile::Meta))?;
        let meta = BlockMeta::parse(&meta)?;
        let index = OpenFile::open(disk, &dir.join(INDEX_FILE), BlockFile::Index)?;
        let toc = Toc::parse(index.len, &index.read(Toc::range(index.len)?)?)?;
        let header = IndexHeader::open_index(&index.file, toc)?;
        let tombstones_path = dir.join(TOMBSTONES_FILE);
        let tombstones = match disk.exists(&tombstones_path) {
            true => {
                let bytes = disk.read(&tombstones_path).map_err(BlockError::io(BlockFile::Tombstones))?;
                Tombstones::parse(&bytes)?
            }
            false => Tombstones::default(),
        };
        let files = disk.list(&dir.join(CHUNKS_DIR)).map_err(BlockError::io(BlockFile::Segment(0)))?;
        let mut segments = Vec::new();
        for number in 0..files.len() as u32 {
            let path = segment_path(dir, number);
            // Segments are numbered without a gap: whatever else is in the directory is not one.
            if !disk.exists(&path) {
                break;
            }
            let segment = OpenFile::open(disk, &path, BlockFile::Segment(number))?;
            check_segment_header(number, &segment.read(0..SEGMENT_HEADER_LEN)?)?;
            segments.push(segment);
        }
        Ok(Self { dir: dir.to_owned(), meta, header, index, segments, tombstones })
    }

    /// What the block says about itself.
    pub fn meta(&self) -> &BlockMeta {
        &self.meta
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its symbols and postings offsets.
    pub fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// What is deleted of it.
    pub fn tombstones(&self) -> &Tombstones {
        &self.tombstones
    }

    /// The series that satisfy `matchers` and have a chunk that may hold a sample in `range`, in label order.
    pub fn select(self: &Arc<Self>, matchers: &[Matcher], range: QueryRange) -> Result<LocalSelect, BlockError> {
        let series = self.find(matchers)?;
        let (batch, ready) = (Vec::new().into_iter(), Vec::new().into_iter());
        Ok(LocalSelect { block: self.clone(), series, range, keep: None, next: 0, batch, ready, failed: false })
    }

    /// The label sets of the series that satisfy one of the lists of matchers (all, without any list), ascending.
    pub fn series(&self, selectors: &[Vec<Matcher>]) -> Result<Vec<Labels>, BlockError> {
        let mut found = Vec::new();
        let mut progress = Progress::default();
        self.visit_labels(&self.find_any(selectors)?, &mut |labels| {
            if progress.goes_on(labels.as_bytes().len() + 4 * size_of::<Labels>()) {
                found.push(labels.clone());
            }
        })?;
        Ok(found)
    }

    /// The names of all labels of the series that satisfy one of the lists of matchers (all, without any), ascending.
    pub fn label_names(&self, selectors: &[Vec<Matcher>]) -> Result<Vec<String>, BlockError> {
        if selectors.is_empty() {
            return Ok(self.header.label_names().map(|(name, _)| name.to_owned()).collect());
        }
        let mut names = BTreeSet::new();
        self.visit_labels(&self.find_any(selectors)?, &mut |labels| {
            for (name, _) in labels {
                if !names.contains(name) {
                    names.insert(name.to_owned());
                }
            }
        })?;
        Ok(names.into_iter().collect())
    }

    /// The values label `name` has in the series that satisfy one of the lists of matchers (all, without any), ascending.
    pub fn label_values(&self, name: &str, selectors: &[Vec<Matcher>]) -> Result<Vec<String>, BlockError> {
        if selectors.is_empty() {
            let mut values = Vec::new();
            let mut progress = Progress::default();
            self.header.label_values(name, &mut |value| {
                if progress.goes_on(value.len() + 4 * size_of::<String>()) {
                    values.push(value.to_owned());
                }
            })?;
            return Ok(values);
        }
        let mut values = BTreeSet::new();
        let mut progress = Progress::default();
        self.visit_labels(&self.find_any(selectors)?, &mut |labels| {
            if let Some(value) = labels.get(name)
                && !values.contains(value)
                && progress.goes_on(value.len() + 4 * size_of::<String>())
            {
                values.insert(value.to_owned());
            }
        })?;
        Ok(values.into_iter().collect())
    }

    fn find_any(&self, selectors: &[Vec<Matcher>]) -> Result<Vec<SeriesRef>, BlockError> {
        match selectors {
            [] => self.find(&[]),
            [only] => self.find(only),
            many => {
                let found = many.iter().map(|matchers| self.find(matchers)).collect::<Result<Vec<_>, _>>()?;
                Ok(postings::set::union(&found))
            }
        }
    }

    /// The series that satisfy all of `matchers`, ascending.
    pub(super) fn find(&self, matchers: &[Matcher]) -> Result<Vec<SeriesRef>, BlockError> {
        let deferral = Deferral::WhenCheaper { entry_bytes: ENTRY_ESTIMATE, entry_values: 1 };
        let plan = postings::plan(&self.header, matchers, deferral)?;
        let mut found = plan.evaluate(|range| self.postings(range.clone()))?;
        if !plan.deferred().is_empty() {
            let mut matching = Vec::with_capacity(found.len());
            self.visit_entries(&found, &mut |series, _, labels| {
                if plan.deferred().iter().all(|m| m.matches(labels.get(m.name()).unwrap_or_default())) {
                    matching.push(series);
                }
                Ok(())
            })?;
            found = matching;
        }
        Ok(found)
    }

    /// The list that lies in `range` of the index.
    pub(super) fn postings(&self, range: Range<u64>) -> Result<Vec<SeriesRef>, BlockError> {
        let (offset, end) = (range.start, self.header.postings_end());
        self.index.parse(offset, self.index.read(range)?, |bytes| parse_postings(offset, end, bytes))
    }

    fn visit_labels(&self, series: &[SeriesRef], visit: &mut dyn FnMut(&Labels)) -> Result<(), BlockError> {
        self.visit_entries(series, &mut |_, _, labels| {
            visit(labels);
            Ok(())
        })
    }

    /// Reads the entries of `series` (ascending) batch by batch.
    pub(super) fn visit_entries(
        &self,
        series: &[SeriesRef],
        visit: &mut dyn FnMut(SeriesRef, &SeriesEntry, &Labels) -> Result<(), BlockError>,
    ) -> Result<(), BlockError> {
        let mut labels_reader = self.header.labels_reader();
        let end = self.header.toc().series_end();
        let mut entry = SeriesEntry::default();
        for batch in series.chunks(SERIES_BATCH) {
            if !bounded::goes_on() {
                break;
            }
            let ranges = batch.iter().map(|&series| series_range(series, ENTRY_ESTIMATE, end));
            for fetch in JOIN_ENTRIES.join(ranges) {
                let bytes = self.index.read(fetch.range.clone())?;
                for &series in &batch[fetch.items] {
                    let offset = super::series_offset(series);
                    let from = bytes.len().min((offset - fetch.range.start) as usize);
                    self.index.parse(offset, bytes.slice(from..), |bytes| entry.parse(series, end, bytes))?;
                    visit(series, &entry, &labels_reader.labels(&entry)?)?;
                }
            }
        }
        Ok(())
    }

    /// The file of its index.
    pub(super) fn index(&self) -> &OpenFile {
        &self.index
    }

    /// One of its segments.
    pub(super) fn segment(&self, number: u32) -> Result<&OpenFile, BlockError> {
        self.segments.get(number as usize).ok_or_else(|| {
            BlockError::damaged(BlockFile::Segment(number), 0, "the index names a segment that does not exist")
        })
    }

    /// Reads chunks whose places ascend.
    pub(super) fn chunks(&self, wanted: &[WantedChunk]) -> Result<Vec<Chunk>, BlockError> {
        let mut chunks = Vec::with_capacity(wanted.len());
        for run in wanted.chunk_by(|a, b| a.meta.reference.segment() == b.meta.reference.segment()) {
            let segment = self.segment(run[0].meta.reference.segment())?;
            for fetch in JOIN_CHUNKS.join(run.iter().map(|chunk| chunk.bytes.clone())) {
                let bytes = segment.read(fetch.range.clone())?;
                for WantedChunk { meta, bytes: range } in &run[fetch.items] {
                    let from = bytes.len().min((range.start - fetch.range.start) as usize);
                    chunks.push(segment.parse(range.start, bytes.slice(from..), |bytes| parse_chunk(meta, bytes))?);
                }
            }
        }
        Ok(chunks)
    }
}

/// A chunk, and the bytes of its segment that most likely hold it.
pub(super) struct WantedChunk {
    meta: ChunkMeta,
    bytes: Range<u64>,
}

impl WantedChunk {
    /// The chunks of one series.
    pub(super) fn of_series(chunks: &[ChunkMeta]) -> impl Iterator<Item = Self> {
        let want = |i| Self { meta: chunks[i], bytes: chunk_range(chunks, i, CHUNK_ESTIMATE) };
        (0..chunks.len()).map(want)
    }

    /// Ends the bytes where the chunk of another series begins, if that is nearer.
    fn end_before(&mut self, next: &Self) {
        let (mine, its) = (self.meta.reference, next.meta.reference);
        if its > mine && its.segment() == mine.segment() {
            self.bytes.end = self.bytes.end.min(next.bytes.start);
        }
    }
}

/// Reads one chunk.
pub(super) fn read_chunk(segment: &OpenFile, wanted: &WantedChunk) -> Result<Chunk, BlockError> {
    let bytes = segment.read(wanted.bytes.clone())?;
    segment.parse(wanted.bytes.start, bytes, |bytes| parse_chunk(&wanted.meta, bytes))
}

/// Walks the series a select found. After an error it ends.
pub struct LocalSelect {
    block: Arc<LocalBlock>,
    series: Vec<SeriesRef>,
    range: QueryRange,
    /// The chunks of other series are not read.
    keep: Option<SeriesFilter>,
    /// Index of the first series whose entry is not read yet.
    next: usize,
    /// Series whose chunks are not read yet.
    batch: std::vec::IntoIter<Found>,
    ready: std::vec::IntoIter<SeriesChunks>,
    failed: bool,
}

/// A series whose chunks are not read yet.
struct Found {
    labels: Labels,
    chunks: Vec<ChunkMeta>,
    hidden: Vec<QueryRange>,
}

impl LocalSelect {
    /// The same series, but those that `keep` refuses.
    #[must_use]
    pub fn only(mut self, keep: SeriesFilter) -> Self {
        self.keep = Some(keep);
        self
    }

    /// Number of series found; some may turn out to have no chunk in the range.
    pub fn series_count(&self) -> usize {
        self.series.len()
    }

    fn fill(&mut self) -> Result<(), BlockError> {
        let end = self.series.len().min(self.next + SERIES_BATCH);
        let mut batch = Vec::with_capacity(end - self.next);
        let (block, range, keep) = (&self.block, self.range, &self.keep);
        block.visit_entries(&self.series[self.next..end], &mut |series, entry, labels| {
            if keep.as_ref().is_some_and(|keep| !keep(labels)) {
                return Ok(());
            }
            let hidden = hidden_ranges(&entry.chunks, block.meta.range(), block.tombstones.of(series));
            let wanted = |chunk: &&ChunkMeta| chunk.overlaps(range) && !is_hidden(chunk, &hidden);
            let chunks: Vec<ChunkMeta> = entry.chunks.iter().filter(wanted).copied().collect();
            if !chunks.is_empty() {
                batch.push(Found { labels: labels.clone(), chunks, hidden });
            }
            Ok(())
        })?;
        self.next = end;
        self.batch = batch.into_iter();
        Ok(())
    }

    /// Reads the chunks of the next series of the batch, about [`CHUNKS_BATCH`] bytes of them.
    fn read_chunks(&mut self) -> Result<(), BlockError> {
        let mut wanted: Vec<WantedChunk> = Vec::new();
        let mut found = Vec::new();
        let mut bytes = 0;
        while bytes < CHUNKS_BATCH
            && let Some(series) = self.batch.next()
        {
            for chunk in WantedChunk::of_series(&series.chunks) {
                if let Some(last) = wanted.last_mut() {
                    last.end_before(&chunk);
                }
                bytes += chunk.bytes.end - chunk.bytes.start;
                wanted.push(chunk);
            }
            found.push(series);
        }
        let mut chunks = self.block.chunks(&wanted)?.into_iter();
        let with_chunks = |Found { labels, chunks: metas, mut hidden }| {
            hidden.retain(|range: &QueryRange| metas.iter().any(|chunk: &ChunkMeta| chunk.overlaps(*range)));
            SeriesChunks { labels, chunks: chunks.by_ref().take(metas.len()).collect(), deleted: hidden }
        };
        self.ready = found.into_iter().map(with_chunks).collect::<Vec<_>>().into_iter();
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<SeriesChunks>, BlockError> {
        loop {
            if let Some(series) = self.ready.next() {
                return Ok(Some(series));
            }
            if !self.batch.as_slice().is_empty() {
                self.read_chunks()?;
            } else if self.next < self.series.len() {
                self.fill()?;
            } else {
                return Ok(None);
            }
        }
    }
}

impl Iterator for LocalSelect {
    type Item = Result<SeriesChunks, BlockError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.try_next();
        self.failed = next.is_err();
        next.transpose()
    }
}
