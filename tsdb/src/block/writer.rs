//! Writes a block from series in label order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skald_model::{BlockRange, Labels, varint};
use ulid::Ulid;

use super::buffered::BufferedFile;
use super::framed_chunks::{FramedChunk, FramedChunks};
use super::gathered_postings::GatheredPostings;
use super::meta::{BlockMeta, BlockStats, Compaction, FileSize, IndexStats, META_FILE, META_VERSION, ThanosMeta};
use super::segment::{CHUNKS_DIR, SEGMENT_LEN, SegmentWriter};
use super::series::{SERIES_ALIGN, SeriesEntry};
use super::symbols::SortedSymbols;
use super::toc::{INDEX_HEADER_LEN, TOC_LEN, Toc, index_magic};
use super::tombstones::{TOMBSTONES_FILE, Tombstones};
use super::{BlockError, BlockFile, ChunkMeta, INDEX_FILE};
use crate::chunk::Chunk;
use crate::disk::Disk;
use crate::postings::SeriesRef;

/// Largest section a 32 bit length describes.
const SECTION_LIMIT: u64 = u32::MAX as u64;
/// References of a postings list that are written at once.
const POSTINGS_BATCH: usize = 4096;

/// What a block says of itself from the start.
#[derive(Debug, Clone)]
pub struct NewBlock {
    /// Its name.
    pub ulid: Ulid,
    /// The time range it answers for; every chunk has to lie inside.
    pub range: BlockRange,
    /// Where it comes from.
    pub compaction: Compaction,
    /// Labels and source for object storage; files and index statistics are filled in.
    pub thanos: Option<ThanosMeta>,
}

/// Writes one block, series by series.
///
/// Everything goes to `<ULID>.tmp-for-creation`; [`BlockWriter::finish`] syncs and renames it. A writer that is dropped
/// before removes it. In memory stand the symbols and the postings (delta-coded: one or two bytes per label of a
/// series); series and chunks go out as they come. After an error the block cannot be finished any more.
pub struct BlockWriter {
    disk: Arc<dyn Disk>,
    new: NewBlock,
    parent: PathBuf,
    temporary: PathBuf,
    index: BufferedFile,
    symbols: SortedSymbols,
    symbols_end: u64,
    segments: Option<SegmentWriter>,
    postings: GatheredPostings,
    /// Labels of the last series, by number.
    previous: Vec<(u32, u32)>,
    stats: BlockStats,
    longest_series: u64,
    broken: bool,
    published: bool,
    /// Of the series being added.
    framed: FramedChunks,
    scratch: Scratch,
}

#[derive(Default)]
struct Scratch {
    /// Labels by place in the block's own symbol table.
    places: Vec<(u32, u32)>,
    chunks: Vec<ChunkMeta>,
    body: Vec<u8>,
    entry: Vec<u8>,
}

impl BlockWriter {
    /// Starts a block inside the directory `parent`. `symbols` has to hold every label name and value that will come.
    pub fn create(
        disk: Arc<dyn Disk>,
        parent: &Path,
        new: NewBlock,
        symbols: SortedSymbols,
    ) -> Result<Self, BlockError> {
        Self::with_segment_len(disk, parent, new, symbols, SEGMENT_LEN)
    }

    /// [`BlockWriter::create`] with smaller chunk segments.
    pub fn with_segment_len(
        disk: Arc<dyn Disk>,
        parent: &Path,
        new: NewBlock,
        symbols: SortedSymbols,
        segment_len: u64,
    ) -> Result<Self, BlockError> {
        if new.range.min >= new.range.max {
            return Err(BlockError::Input(format!("time range {:?} is empty", new.range)));
        }
        if disk.exists(&parent.join(new.ulid.to_string())) {
            return Err(BlockError::Input(format!("block {} exists", new.ulid)));
        }
        let temporary = parent.join(format!("{}.tmp-for-creation", new.ulid));
        let prepare = || {
            if disk.exists(&temporary) {
                disk.remove_dir_all(&temporary)?;
            }
            disk.create_dir_all(&temporary.join(CHUNKS_DIR))
        };
        prepare().map_err(BlockError::io(BlockFile::Index))?;
        let index = BufferedFile::create(&*disk, &temporary.join(INDEX_FILE), BlockFile::Index);
        let index = index.inspect_err(|_| drop(disk.remove_dir_all(&temporary)))?;
        let segments = SegmentWriter::new(disk.clone(), temporary.clone(), segment_len.min(SEGMENT_LEN));
        let mut writer = Self {
            disk,
            new,
            parent: parent.to_owned(),
            temporary,
            index,
            symbols,
            symbols_end: 0,
            segments: Some(segments),
            postings: GatheredPostings::default(),
            previous: Vec::new(),
            stats: BlockStats::default(),
            longest_series: 0,
            broken: false,
            published: false,
            framed: FramedChunks::default(),
            scratch: Scratch::default(),
        };
        writer.write_symbols()?;
        Ok(writer)
    }

    fn write_symbols(&mut self) -> Result<(), BlockError> {
        self.index.put(&index_magic())?;
        let mut len = Vec::new();
        let mut prefix_len = |symbol: &[u8]| {
            len.clear();
            varint::put_uvarint(&mut len, symbol.len() as u64);
            len.len()
        };
        let body_len = 4 + self.symbols.iter().map(|s| (prefix_len(s) + s.len()) as u64).sum::<u64>();
        let mut section = SectionWriter::start(&mut self.index, "the symbol table", body_len)?;
        section.put(&(self.symbols.len() as u32).to_be_bytes())?;
        for symbol in self.symbols.iter() {
            len.clear();
            varint::put_uvarint(&mut len, symbol.len() as u64);
            section.put(&len)?;
            section.put(symbol)?;
        }
        section.finish()?;
        self.symbols_end = self.index.position();
        Ok(())
    }

    /// Adds a series, whose labels come after those of every series before, with its chunks in time order.
    ///
    /// A series without chunks is left out. A refused one ([`BlockError::Input`]) leaves no trace.
    pub fn add_series(&mut self, labels: &Labels, chunks: &[Chunk]) -> Result<(), BlockError> {
        if chunks.is_empty() {
            return Ok(());
        }
        let mut numbers = Vec::with_capacity(16);
        for (name, value) in labels {
            match (self.symbols.number(name), self.symbols.number(value)) {
                (Some(name), Some(value)) => numbers.push((name, value)),
                _ => return Err(BlockError::Input(format!("label is not among the symbols: {labels}"))),
            }
        }
        let mut framed = std::mem::take(&mut self.framed);
        framed.clear();
        let added = chunks.iter().try_for_each(|chunk| framed.push(chunk)).and_then(|()| self.add(&numbers, &framed));
        self.framed = framed;
        added
    }

    /// The same with labels by number ([`SortedSymbols::number`]) and chunks as they will stand in the segment.
    pub(super) fn add(&mut self, labels: &[(u32, u32)], chunks: &FramedChunks) -> Result<(), BlockError> {
        if self.broken {
            return Err(BlockError::Input("an earlier write failed".into()));
        }
        if chunks.chunks().is_empty() {
            return Ok(());
        }
        if let Err(what) = self.check(labels, chunks.chunks()) {
            return Err(BlockError::Input(format!("{what}: {}", self.symbols.labels(labels))));
        }
        let series = self.index.position().div_ceil(SERIES_ALIGN);
        let series = SeriesRef::try_from(series).map_err(|_| BlockError::TooLarge {
            what: "the series section",
            len: series.saturating_mul(SERIES_ALIGN),
            limit: (SECTION_LIMIT + 1) * SERIES_ALIGN,
        })?;
        self.broken = true;
        self.write_series(series, labels, chunks)?;
        self.broken = false;
        self.previous.clear();
        self.previous.extend_from_slice(labels);
        Ok(())
    }

    /// Checks everything a series has to fulfil and looks up its symbols.
    fn check(&mut self, labels: &[(u32, u32)], chunks: &[FramedChunk]) -> Result<(), &'static str> {
        if labels.is_empty() {
            return Err("series without labels");
        }
        // Numbers ascend like their texts.
        if self.previous.as_slice() >= labels {
            return Err("series out of order");
        }
        self.scratch.places.clear();
        for &(name, value) in labels {
            match (self.symbols.place(name), self.symbols.place(value)) {
                (Some(name), Some(value)) => self.scratch.places.push((name, value)),
                _ => return Err("label is not among the symbols"),
            }
        }
        let mut previous_max = None;
        for chunk in chunks {
            if chunk.min_time > chunk.max_time || previous_max.is_some_and(|max| max >= chunk.min_time) {
                return Err("chunks out of order or overlapping");
            }
            if chunk.min_time < self.new.range.min || chunk.max_time >= self.new.range.max {
                return Err("chunk outside the block's time range");
            }
            if chunk.num_samples == 0 {
                return Err("chunk without samples");
            }
            previous_max = Some(chunk.max_time);
        }
        Ok(())
    }

    fn write_series(
        &mut self,
        series: SeriesRef,
        labels: &[(u32, u32)],
        chunks: &FramedChunks,
    ) -> Result<(), BlockError> {
        let Scratch { places, chunks: metas, body, entry } = &mut self.scratch;
        metas.clear();
        if let Some(segments) = &mut self.segments {
            segments.append(chunks, metas)?;
        }
        entry.clear();
        SeriesEntry::encode(places, metas, body, entry);
        self.index.pad(SERIES_ALIGN)?;
        self.index.put(entry)?;
        self.longest_series = self.longest_series.max(entry.len() as u64);
        self.postings.add(series, labels);
        self.stats.num_series += 1;
        self.stats.num_chunks += metas.len() as u64;
        for chunk in chunks.chunks() {
            let samples = u64::from(chunk.num_samples);
            self.stats.num_samples += samples;
            match chunk.encoding.is_float() {
                true => self.stats.num_float_samples += samples,
                false => self.stats.num_histogram_samples += samples,
            }
        }
        Ok(())
    }

    /// Number of series added so far.
    pub fn series_count(&self) -> u64 {
        self.stats.num_series
    }

    /// Completes, syncs and publishes the block. `None` when no series came: no block is left then.
    pub fn finish(mut self) -> Result<Option<BlockMeta>, BlockError> {
        if self.broken {
            return Err(BlockError::Input("an earlier write failed".into()));
        }
        if self.stats.num_series == 0 {
            return Ok(None);
        }
        let Some(segments) = self.segments.take() else {
            return Ok(None);
        };
        let (segment_sizes, longest_chunk) = segments.finish()?;
        let index_len = self.finish_index()?;
        self.write_small(TOMBSTONES_FILE, BlockFile::Tombstones, &Tombstones::default().encode())?;
        let meta = self.meta(index_len, &segment_sizes, longest_chunk);
        self.write_small(META_FILE, BlockFile::Meta, &meta.to_json())?;
        self.publish().map_err(BlockError::io(BlockFile::Meta))?;
        self.published = true;
        Ok(Some(meta))
    }

    /// Postings, their offset table and the table of contents; answers with the size of the index.
    fn finish_index(&mut self) -> Result<u64, BlockError> {
        let Self { index, symbols, .. } = self;
        let postings = std::mem::take(&mut self.postings).sort();
        let series_end = index.position();
        let mut offsets = Vec::with_capacity(postings.len());
        let mut table_len = 4;
        let mut bytes = Vec::new();
        for list in postings.lists() {
            index.pad(4)?;
            let offset = index.position();
            let mut section = SectionWriter::start(index, "a postings list", 4 + 4 * u64::from(list.count))?;
            section.put(&list.count.to_be_bytes())?;
            let mut series = list.series().peekable();
            while series.peek().is_some() {
                bytes.clear();
                series.by_ref().take(POSTINGS_BATCH).for_each(|r| bytes.extend_from_slice(&r.to_be_bytes()));
                section.put(&bytes)?;
            }
            section.finish()?;
            table_len += table_entry(&mut bytes, symbols, list.pair, offset);
            offsets.push(offset);
        }
        let postings_table = index.position();
        let mut table = SectionWriter::start(index, "the postings offset table", table_len)?;
        table.put(&(offsets.len() as u32).to_be_bytes())?;
        for (list, offset) in postings.lists().zip(offsets) {
            table_entry(&mut bytes, symbols, list.pair, offset);
            table.put(&bytes)?;
        }
        table.finish()?;
        let index_len = index.position() + TOC_LEN;
        let toc = Toc {
            symbols: INDEX_HEADER_LEN,
            series: self.symbols_end,
            label_indices: series_end,
            label_offset_table: postings_table,
            postings: series_end,
            postings_table,
            index_len,
        };
        index.put(&toc.encode())?;
        index.sync()?;
        Ok(index_len)
    }

    fn meta(&self, index_len: u64, segment_sizes: &[u64], longest_chunk: u64) -> BlockMeta {
        let mut thanos = self.new.thanos.clone();
        if let Some(thanos) = &mut thanos {
            let segments = segment_sizes.iter().zip(0..).map(|(&size_bytes, segment)| FileSize {
                rel_path: BlockFile::Segment(segment).to_string(),
                size_bytes,
            });
            let index = FileSize { rel_path: INDEX_FILE.to_owned(), size_bytes: index_len };
            let meta = FileSize { rel_path: META_FILE.to_owned(), size_bytes: 0 };
            thanos.files = segments.chain([index, meta]).collect();
            thanos.index_stats = IndexStats { series_max_size: self.longest_series, chunk_max_size: longest_chunk };
        }
        BlockMeta {
            ulid: self.new.ulid,
            min_time: self.new.range.min,
            max_time: self.new.range.max,
            stats: self.stats,
            compaction: self.new.compaction.clone(),
            version: META_VERSION,
            thanos,
        }
    }

    fn write_small(&self, name: &str, kind: BlockFile, bytes: &[u8]) -> Result<(), BlockError> {
        let mut file = BufferedFile::create(&*self.disk, &self.temporary.join(name), kind)?;
        file.put(bytes)?;
        file.sync()
    }

    /// Makes the files' names durable, then gives the block its own name.
    fn publish(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.temporary.join(CHUNKS_DIR))?;
        self.disk.sync_dir(&self.temporary)?;
        self.disk.rename(&self.temporary, &self.parent.join(self.new.ulid.to_string()))?;
        self.disk.sync_dir(&self.parent)
    }
}

impl Drop for BlockWriter {
    fn drop(&mut self) {
        if !self.published {
            // What stays behind is removed at the next start, by its name.
            let _ = self.disk.remove_dir_all(&self.temporary);
        }
    }
}

/// Replaces `out` by an entry of the postings offset table; answers with its length.
fn table_entry(out: &mut Vec<u8>, symbols: &SortedSymbols, pair: Option<(u32, u32)>, offset: u64) -> u64 {
    let (name, value): (&[u8], &[u8]) =
        pair.map_or((&[], &[]), |(name, value)| (symbols.symbol(name), symbols.symbol(value)));
    out.clear();
    out.push(2);
    for text in [name, value] {
        varint::put_uvarint(out, text.len() as u64);
        out.extend_from_slice(text);
    }
    varint::put_uvarint(out, offset);
    out.len() as u64
}

/// Writes `length u32 | body | crc32c(body) u32`, the length known beforehand.
struct SectionWriter<'a> {
    file: &'a mut BufferedFile,
    crc: u32,
    left: u64,
}

impl<'a> SectionWriter<'a> {
    fn start(file: &'a mut BufferedFile, what: &'static str, body_len: u64) -> Result<Self, BlockError> {
        let len =
            u32::try_from(body_len).map_err(|_| BlockError::TooLarge { what, len: body_len, limit: SECTION_LIMIT })?;
        file.put(&len.to_be_bytes())?;
        Ok(Self { file, crc: 0, left: body_len })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), BlockError> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.left = self.left.wrapping_sub(bytes.len() as u64);
        self.file.put(bytes)
    }

    fn finish(self) -> Result<(), BlockError> {
        assert_eq!(self.left, 0, "a section is as long as its header says");
        self.file.put(&self.crc.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemDisk;

    #[test]
    fn sections_beyond_32_bits_are_refused_before_they_are_begun() {
        let disk = MemDisk::default();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let mut file = BufferedFile::create(&disk, Path::new("/d/f"), BlockFile::Index).unwrap();
        let refused = SectionWriter::start(&mut file, "a postings list", 1 << 32).err();
        assert!(matches!(refused, Some(BlockError::TooLarge { what: "a postings list", len: 0x1_0000_0000, .. })));
        assert_eq!(file.position(), 0);
    }
}
