//! What can still be read of a damaged block, as a new block.
//!
//! Everything is found from the ground up: the symbols, then the series entries, which lie at multiples of 16 bytes and
//! carry a checksum each, then their chunks. Postings, their table and the table of contents are not needed. A damaged
//! entry or chunk costs itself only; damaged symbols cost the block, since no series could be named.

use std::path::Path;
use std::sync::Arc;

use skald_model::{BlockRange, Columns, Labels, QueryRange, TimestampMs};
use ulid::Ulid;

use super::local::{ENTRY_ESTIMATE, OpenFile, WantedChunk, read_chunk};
use super::segment::segment_path;
use super::series::SERIES_ALIGN;
use super::symbols::{LabelsReader, SymbolTable};
use super::toc::{INDEX_HEADER_LEN, index_magic};
use super::{
    BlockError, BlockFile, BlockMeta, BlockStats, BlockWriter, ChunkMeta, Compaction, INDEX_FILE, META_FILE, NewBlock,
    Ranged, SeriesEntry, SymbolSet, TOMBSTONES_FILE, ThanosMeta, Toc, Tombstones, hidden_ranges,
};
use crate::SeriesChunks;
use crate::block::section::Section;
use crate::chunk::Chunk;
use crate::decode::decode_series;
use crate::disk::Disk;
use crate::encode::without_overlaps;
use crate::postings::SeriesRef;

/// So many losses are described; more are counted only.
const DESCRIBED: usize = 1000;
/// Bytes of the index that are searched at once.
const WINDOW: u64 = 1 << 20;

/// What a salvage kept and what it had to give up.
#[derive(Debug, Default)]
pub struct SalvageReport {
    /// What the damaged block says about itself, if that can be read.
    pub meta: Option<BlockMeta>,
    /// The block that was written; `None` when nothing was to be written or nothing was left.
    pub written: Option<BlockMeta>,
    /// What could be read.
    pub kept: BlockStats,
    /// The first losses.
    pub losses: Vec<Loss>,
    /// Number of losses, described or not.
    pub loss_count: u64,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// In which file it lies.
    pub file: BlockFile,
    /// Of which series, if that is known.
    pub series: Option<Labels>,
    /// First and last instant of the samples lost, if they are known.
    pub times: Option<(TimestampMs, TimestampMs)>,
    /// What is wrong.
    pub what: String,
}

impl SalvageReport {
    fn lose(&mut self, loss: Loss) {
        if self.losses.len() < DESCRIBED {
            self.losses.push(loss);
        }
        self.loss_count += 1;
    }

    fn lose_part(&mut self, file: BlockFile, what: impl Into<String>) {
        self.lose(Loss { file, series: None, times: None, what: what.into() });
    }

    /// Samples that the block says it had and that could not be read; `None` when it does not say.
    pub fn lost_samples(&self) -> Option<u64> {
        let stated = self.meta.as_ref()?.stats.num_samples;
        (stated > 0).then(|| stated.saturating_sub(self.kept.num_samples))
    }
}

/// Reads what is readable of the block in `dir` and, if `into` names a directory, writes it there as the block `ulid`.
///
/// Deleted samples and samples outside the block's time range are left out, chunks that overlap are joined. `progress`
/// gets the bytes of series entries that are done, and all of them. Memory: the symbols, and four bytes a series.
///
/// # Errors
///
/// When nothing can be salvaged (no index, damaged symbols) or the new block cannot be written.
pub fn salvage_block(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    into: Option<&Path>,
    ulid: Ulid,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SalvageReport, BlockError> {
    let mut salvage = Salvage::open(disk.as_ref(), dir)?;
    let mut series = Vec::new();
    let mut symbols = SymbolSet::default();
    salvage.find_series(&mut series, &mut symbols)?;
    let range = salvage.range(&series)?;
    let mut writer = match into {
        Some(parent) => {
            Some(BlockWriter::create(disk.clone(), parent, salvage.new_block(ulid, range), symbols.sort())?)
        }
        None => None,
    };
    let mut labels_reader = LabelsReader::new(&salvage.parts.symbols);
    let total = salvage.parts.series_end;
    for found in series.chunk_by(|_, next| next.twin_of_previous) {
        let Some(first) = found.first() else { continue };
        progress(super::series_offset(first.series), total);
        let mut chunks = Vec::new();
        let mut labels = None;
        for found in found {
            let entry = salvage.parts.entry(found.series)?;
            let own = labels_reader.labels(&entry)?;
            salvage.parts.chunks(&own, &entry, range, &mut salvage.report, &mut chunks);
            labels = Some(own);
        }
        let (Some(labels), false) = (labels, chunks.is_empty()) else { continue };
        chunks.sort_by_key(|chunk: &Chunk| (chunk.min_time, chunk.max_time));
        let chunks = match without_overlaps(&chunks) {
            Ok(chunks) => chunks,
            // Every chunk has been decoded once: this cannot happen to what passed.
            Err(error) => {
                salvage.report.lose(loss_of(&labels, &chunks, error.to_string()));
                continue;
            }
        };
        salvage.report.count(&chunks);
        if let Some(writer) = &mut writer {
            writer.add_series(&labels, &chunks)?;
        }
    }
    progress(total, total);
    if let Some(writer) = writer {
        salvage.report.written = writer.finish()?;
    }
    Ok(salvage.report)
}

fn loss_of(labels: &Labels, chunks: &[Chunk], what: String) -> Loss {
    let min = chunks.iter().map(|chunk| chunk.min_time).min();
    let max = chunks.iter().map(|chunk| chunk.max_time).max();
    Loss { file: BlockFile::Segment(0), series: Some(labels.clone()), times: min.zip(max), what }
}

impl SalvageReport {
    fn count(&mut self, chunks: &[Chunk]) {
        self.kept.num_series += 1;
        for chunk in chunks {
            let samples = u64::from(chunk.num_samples());
            self.kept.num_chunks += 1;
            self.kept.num_samples += samples;
            match chunk.encoding.is_float() {
                true => self.kept.num_float_samples += samples,
                false => self.kept.num_histogram_samples += samples,
            }
        }
    }
}

struct Salvage {
    parts: Parts,
    report: SalvageReport,
}

/// The parts of the block that can be read.
struct Parts {
    index: OpenFile,
    symbols: SymbolTable,
    /// The first multiple of 16 behind the symbols.
    series_start: u64,
    /// Where entries end at the latest.
    series_end: u64,
    segments: Vec<Option<OpenFile>>,
    tombstones: Tombstones,
}

/// A series entry that is sound.
struct Found {
    series: SeriesRef,
    /// Whether it has the labels of the one before it.
    twin_of_previous: bool,
}

impl Salvage {
    fn open(disk: &dyn Disk, dir: &Path) -> Result<Self, BlockError> {
        let mut report = SalvageReport::default();
        let meta = disk.read(&dir.join(META_FILE)).map_err(BlockError::io(BlockFile::Meta));
        match meta.and_then(|meta| BlockMeta::parse(&meta)) {
            Ok(meta) => report.meta = Some(meta),
            Err(error) => report.lose_part(BlockFile::Meta, error.to_string()),
        }
        let index = OpenFile::open(disk, &dir.join(INDEX_FILE), BlockFile::Index)?;
        let magic = index_magic();
        if *index.read(0..INDEX_HEADER_LEN)? != magic {
            report.lose_part(BlockFile::Index, "does not begin as an index of version 2");
        }
        let symbols = Section::from_file(BlockFile::Index, &index.file, INDEX_HEADER_LEN..index.len)?;
        let symbols_end = INDEX_HEADER_LEN + symbols.len() + super::framing::FRAME_LEN;
        let series_start = symbols_end.next_multiple_of(SERIES_ALIGN);
        // Without a table of contents everything behind the symbols is searched: what is no entry fails its checksum.
        let toc = Toc::range(index.len).and_then(|range| Toc::parse(index.len, &index.read(range)?));
        let series_end = match toc {
            Ok(toc) => toc.series_end().min(index.len),
            Err(error) => {
                report.lose_part(BlockFile::Index, error.to_string());
                index.len
            }
        };
        let tombstones = match disk.exists(&dir.join(TOMBSTONES_FILE)) {
            true => {
                let bytes = disk.read(&dir.join(TOMBSTONES_FILE)).map_err(BlockError::io(BlockFile::Tombstones));
                bytes.and_then(|bytes| Tombstones::parse(&bytes)).unwrap_or_else(|error| {
                    report.lose_part(BlockFile::Tombstones, format!("{error}; deleted samples come back"));
                    Tombstones::default()
                })
            }
            false => Tombstones::default(),
        };
        let parts = Parts {
            index,
            symbols: SymbolTable::open(symbols)?,
            series_start,
            series_end,
            segments: open_segments(disk, dir),
            tombstones,
        };
        Ok(Self { parts, report })
    }

    /// Finds the sound entries and puts them in label order.
    fn find_series(&mut self, series: &mut Vec<Found>, symbols: &mut SymbolSet) -> Result<(), BlockError> {
        let Self { parts, report } = self;
        let mut labels_reader = LabelsReader::new(&parts.symbols);
        let mut previous: Option<Labels> = None;
        let mut in_order = true;
        // Start of the damaged bytes that are being passed over.
        let mut damaged_from = None;
        let mut window = Window::default();
        let mut at = parts.series_start;
        let mut entry = SeriesEntry::default();
        while at < parts.series_end {
            let Ok(found) = SeriesRef::try_from(at / SERIES_ALIGN) else { break };
            let len = parts.parse_entry(found, &mut window, &mut entry)?;
            let labels = len.map(|_| labels_reader.labels(&entry));
            let (Some(len), Some(Ok(labels))) = (len, labels) else {
                damaged_from.get_or_insert(at);
                at += SERIES_ALIGN;
                continue;
            };
            if let Some(from) = damaged_from.take() {
                report.lose_part(BlockFile::Index, format!("{} bytes from byte {from} on hold no series", at - from));
            }
            in_order &= previous.as_ref().is_none_or(|previous| *previous < labels);
            symbols.insert_labels(&labels)?;
            previous = Some(labels);
            series.push(Found { series: found, twin_of_previous: false });
            at = (at + len).next_multiple_of(SERIES_ALIGN);
        }
        let end_is_known = parts.series_end < parts.index.len;
        if let (Some(from), true) = (damaged_from, end_is_known)
            && parts.series_end - from > SERIES_ALIGN
        {
            let what = format!("{} bytes from byte {from} on hold no series", parts.series_end - from);
            report.lose_part(BlockFile::Index, what);
        }
        if !in_order {
            report.lose_part(BlockFile::Index, "series are not in label order");
            self.sort(series)?;
        }
        Ok(())
    }

    /// Puts series into label order; those of equal labels stand side by side.
    fn sort(&self, series: &mut Vec<Found>) -> Result<(), BlockError> {
        let mut labels_reader = LabelsReader::new(&self.parts.symbols);
        let with_labels = std::mem::take(series).into_iter().map(|found| {
            let labels = labels_reader.labels(&self.parts.entry(found.series)?)?;
            Ok((labels, found.series))
        });
        let mut with_labels = with_labels.collect::<Result<Vec<_>, BlockError>>()?;
        with_labels.sort();
        let mut previous: Option<Labels> = None;
        for (labels, found) in with_labels {
            let twin_of_previous = previous.as_ref() == Some(&labels);
            series.push(Found { series: found, twin_of_previous });
            previous = Some(labels);
        }
        Ok(())
    }

    /// The block's own time range, or, when its `meta.json` is lost, that of its chunks.
    fn range(&self, series: &[Found]) -> Result<BlockRange, BlockError> {
        if let Some(meta) = &self.report.meta {
            return Ok(meta.range());
        }
        let mut range = BlockRange { min: TimestampMs::MAX, max: TimestampMs::MIN };
        for found in series {
            for chunk in self.parts.entry(found.series)?.chunks {
                range.min = range.min.min(chunk.min_time);
                range.max = range.max.max(chunk.max_time.saturating_add(1));
            }
        }
        Ok(if range.min < range.max { range } else { BlockRange { min: 0, max: 0 } })
    }

    fn new_block(&self, ulid: Ulid, range: BlockRange) -> NewBlock {
        let (compaction, thanos) = match &self.report.meta {
            Some(meta) => (meta.compaction.clone(), meta.thanos.clone()),
            None => (Compaction { level: 1, sources: vec![ulid], ..Compaction::default() }, None),
        };
        let thanos = thanos.map(|thanos| ThanosMeta {
            files: Vec::new(),
            segment_files: Vec::new(),
            index_stats: Default::default(),
            ..thanos
        });
        NewBlock { ulid, range, compaction, thanos }
    }
}

/// Every segment whose file opens, at its number's place.
fn open_segments(disk: &dyn Disk, dir: &Path) -> Vec<Option<OpenFile>> {
    let names = disk.list(&dir.join(super::CHUNKS_DIR)).unwrap_or_default();
    let numbers = names.iter().filter_map(|entry| entry.name.parse::<u32>().ok()?.checked_sub(1));
    // A block has a few hundred segments at the very most.
    let count = numbers.filter(|number| *number < 1 << 16).max().map_or(0, |last| last + 1);
    let open = |number| OpenFile::open(disk, &segment_path(dir, number), BlockFile::Segment(number)).ok();
    (0..count).map(open).collect()
}

/// Bytes of the index read ahead.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: bytes::Bytes,
}

impl Parts {
    /// Parses the entry at `series`: its length, or `None` when there is no sound one.
    fn parse_entry(
        &self,
        series: SeriesRef,
        window: &mut Window,
        entry: &mut SeriesEntry,
    ) -> Result<Option<u64>, BlockError> {
        let offset = super::series_offset(series);
        let mut wanted = 1;
        loop {
            let window_end = window.start + window.bytes.len() as u64;
            let needed_end = offset.saturating_add(wanted).min(self.series_end);
            if offset < window.start || needed_end > window_end {
                let end = offset.saturating_add(wanted.max(WINDOW)).min(self.series_end);
                *window = Window { start: offset, bytes: self.index.read(offset..end)? };
            }
            let bytes = window.bytes.slice((offset - window.start) as usize..);
            match entry.parse(series, self.series_end, &bytes) {
                Ok(Ranged::Complete(())) => {
                    let mut at = 0;
                    let body = skald_model::varint::get_uvarint(&bytes, &mut at).unwrap_or_default();
                    return Ok(Some(at as u64 + body + 4));
                }
                Ok(Ranged::Short { need }) if need > bytes.len() as u64 && offset + need <= self.series_end => {
                    wanted = need;
                }
                Ok(Ranged::Short { .. }) | Err(_) => return Ok(None),
            }
        }
    }

    /// An entry found before.
    fn entry(&self, series: SeriesRef) -> Result<SeriesEntry, BlockError> {
        let mut entry = SeriesEntry::default();
        let offset = super::series_offset(series);
        let bytes = self.index.read(super::series_range(series, ENTRY_ESTIMATE, self.series_end))?;
        self.index.parse(offset, bytes, |bytes| entry.parse(series, self.series_end, bytes))?;
        Ok(entry)
    }

    /// Adds the chunks of a series that can be read to `out`, without what is deleted or outside `range`.
    fn chunks(
        &self,
        labels: &Labels,
        entry: &SeriesEntry,
        range: BlockRange,
        report: &mut SalvageReport,
        out: &mut Vec<Chunk>,
    ) {
        let series = (entry.offset / SERIES_ALIGN) as SeriesRef;
        for meta in &entry.chunks {
            let read = self.chunk(meta).and_then(|chunk| {
                let hidden = hidden_ranges(
                    &[ChunkMeta { min_time: chunk.min_time, max_time: chunk.max_time, ..*meta }],
                    range,
                    self.tombstones.of(series),
                );
                let mut one = SeriesChunks { labels: labels.clone(), chunks: vec![chunk], deleted: hidden };
                one.cut_deleted().map_err(|error| error.to_string())?;
                Ok(one.chunks)
            });
            match read {
                Ok(chunks) => out.extend(chunks),
                Err(what) => report.lose(Loss {
                    file: BlockFile::Segment(meta.reference.segment()),
                    series: Some(labels.clone()),
                    times: Some((meta.min_time, meta.max_time)),
                    what,
                }),
            }
        }
    }

    /// A chunk whose every sample can be read, with the times of its first and last.
    fn chunk(&self, meta: &ChunkMeta) -> Result<Chunk, String> {
        let number = meta.reference.segment();
        let segment = self.segments.get(number as usize).and_then(Option::as_ref);
        let segment = segment.ok_or_else(|| format!("{} does not exist", BlockFile::Segment(number)))?;
        let wanted = WantedChunk::of_series(std::slice::from_ref(meta)).next().ok_or("no chunk")?;
        let mut chunk = read_chunk(segment, &wanted).map_err(|error| error.to_string())?;
        let mut columns = Columns::default();
        decode_series(std::slice::from_ref(&chunk), QueryRange::ALL, &mut columns)
            .map_err(|error| error.to_string())?;
        let times = match columns.float_timestamps.is_empty() {
            true => &columns.histogram_timestamps,
            false => &columns.float_timestamps,
        };
        let (Some(&min_time), Some(&max_time)) = (times.first(), times.last()) else {
            return Err("holds no sample".to_owned());
        };
        if times.len() != usize::from(chunk.num_samples()) {
            return Err(format!("holds {} samples and says {}", times.len(), chunk.num_samples()));
        }
        (chunk.min_time, chunk.max_time) = (min_time, max_time);
        Ok(chunk)
    }
}
