//! How a block is opened: from what is kept of it on this machine, else from the bucket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use skald_tsdb::block::{BlockError, BlockFile, BlockMeta, HeaderRanges, IndexHeader, TOC_LEN, Toc, Tombstones};
use skald_tsdb::disk::Disk;
use ulid::Ulid;

use super::block::{OpenBlock, ReadError};
use super::facts::Facts;
use super::files::FileHandle;
use super::metrics::Metrics;
use super::pages::{FileNumber, PageReader, PagedObject, Usage};
use crate::bucket::layout::{INDEX_FILE, META_FILE, TOMBSTONES_FILE};
use crate::bucket::{BucketError, TenantBucket};
use crate::runtime::Pool;

const FACTS_FILE: &str = "facts";
const HEADER_FILE: &str = "index-header";
/// An index up to this size is fetched whole when its header is wanted; of a larger one, this much of its end first.
const SMALL_INDEX: u64 = 256 << 10;
/// Room for a series' entry and a chunk when the block does not say how long its longest are.
const DEFAULT_ENTRY_ESTIMATE: u64 = 512;
const DEFAULT_CHUNK_ESTIMATE: u64 = 2 << 10;
/// Most that is fetched on the suspicion that an entry or chunk is as long as its block's longest.
const MAX_ESTIMATE: u64 = 64 << 10;

/// Opens blocks.
pub(super) struct Opener {
    pub(super) disk: Arc<dyn Disk>,
    /// Where things are kept: `<dir>/<tenant>/<ulid>/`.
    pub(super) dir: PathBuf,
    pub(super) pool: Pool,
    pub(super) pages: Arc<PageReader>,
    pub(super) metrics: Metrics,
    /// Number of the next open block.
    pub(super) next_number: AtomicU64,
}

impl Opener {
    /// Opens a block; `None` when the bucket has no such block (its `meta.json` is missing).
    pub(super) async fn open(
        &self,
        bucket: &TenantBucket,
        id: Ulid,
        usage: &Usage,
    ) -> Result<Option<OpenBlock>, ReadError> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let dir = self.block_dir(bucket, id);
        if let Some((facts, tombstones, header)) = self.load(&dir).await? {
            self.metrics.opened_from_disk.inc();
            return Ok(Some(self.assemble(bucket, id, number, &facts, tombstones, header)));
        }
        let Some((facts, stones)) = fetch_facts(bucket, id, usage).await? else { return Ok(None) };
        let tombstones = if stones.is_empty() { Tombstones::default() } else { Tombstones::parse(&stones)? };
        let index = self.index_object(bucket, id, number, facts.index_len);
        let (toc, symbols, postings_table) = self.fetch_header(&index, usage).await?;
        let header = self.store(dir, facts.encode(&stones), toc, symbols, postings_table).await?;
        self.metrics.opened_from_bucket.inc();
        Ok(Some(self.assemble(bucket, id, number, &facts, tombstones, header)))
    }

    /// Where what is kept of a block lies.
    pub(super) fn block_dir(&self, bucket: &TenantBucket, id: Ulid) -> PathBuf {
        self.dir.join(bucket.tenant().as_str()).join(id.to_string())
    }

    fn index_object(&self, bucket: &TenantBucket, id: Ulid, number: u64, len: u64) -> PagedObject {
        let key = bucket.block_key(id, INDEX_FILE);
        PagedObject { block: number, file: FileNumber::Index, key, len, handle: FileHandle::default() }
    }

    fn assemble(
        &self,
        bucket: &TenantBucket,
        id: Ulid,
        number: u64,
        facts: &Facts,
        tombstones: Tombstones,
        header: IndexHeader,
    ) -> OpenBlock {
        let segments = facts.segment_lens.iter().zip(0..).map(|(&len, segment)| PagedObject {
            block: number,
            file: FileNumber::Segment(segment),
            key: bucket.segment_key(id, segment),
            len,
            handle: FileHandle::default(),
        });
        let estimate = |longest: u64, default: u64| if longest == 0 { default } else { longest.min(MAX_ESTIMATE) };
        OpenBlock {
            tenant: bucket.tenant().clone(),
            id,
            range: skald_model::BlockRange { min: facts.min_time, max: facts.max_time },
            header,
            tombstones,
            index: self.index_object(bucket, id, number, facts.index_len),
            segments: segments.collect(),
            entry_estimate: AtomicU64::new(estimate(facts.series_max_size, DEFAULT_ENTRY_ESTIMATE)),
            chunk_estimate: AtomicU64::new(estimate(facts.chunk_max_size, DEFAULT_CHUNK_ESTIMATE)),
        }
    }

    /// What is kept on this machine, if it is there and intact.
    async fn load(&self, dir: &Path) -> Result<Option<(Facts, Tombstones, IndexHeader)>, ReadError> {
        let (disk, dir, metrics) = (self.disk.clone(), dir.to_owned(), self.metrics.clone());
        let loaded = self.pool.run(move || {
            if !disk.exists(&dir.join(HEADER_FILE)) {
                return None;
            }
            match load(&*disk, &dir) {
                Ok(loaded) => Some(loaded),
                Err(error) => {
                    metrics.damages.inc();
                    tracing::warn!(dir = %dir.display(), %error, "what is kept of a block is made anew");
                    None
                }
            }
        });
        Ok(loaded.await?)
    }

    /// The table of contents of an index, and the ranges its header is made of.
    async fn fetch_header(&self, index: &PagedObject, usage: &Usage) -> Result<(Toc, Bytes, Bytes), ReadError> {
        let len = index.len;
        // Also checks that there is room for a table of contents.
        let toc_at = Toc::range(len)?.start;
        let tail_at = len.saturating_sub(SMALL_INDEX);
        let tail = self.pages.read_uncached(index, tail_at..len, usage).await?;
        let toc = Toc::parse(len, &tail)?;
        if tail_at == 0 {
            self.pages.keep(index, &tail);
        }
        let HeaderRanges { symbols, postings_table } = HeaderRanges::of(&toc);
        let fetch = |range: std::ops::Range<u64>| {
            let tail = tail.clone();
            async move {
                if range.start >= tail_at && range.end <= toc_at + TOC_LEN {
                    return Ok(tail.slice((range.start - tail_at) as usize..(range.end - tail_at) as usize));
                }
                self.pages.read_uncached(index, range, usage).await
            }
        };
        let (symbols, postings_table) = tokio::try_join!(fetch(symbols), fetch(postings_table))?;
        Ok((toc, symbols, postings_table))
    }

    /// Checks a header, keeps it on this machine, and opens it from there. If it cannot be kept, it stays in memory.
    async fn store(
        &self,
        dir: PathBuf,
        facts: Vec<u8>,
        toc: Toc,
        symbols: Bytes,
        postings_table: Bytes,
    ) -> Result<IndexHeader, ReadError> {
        let disk = self.disk.clone();
        let stored = self.pool.run(move || {
            let in_memory = IndexHeader::parse(toc, &symbols, &postings_table)?;
            let io = |source| BlockError::Io { file: BlockFile::IndexHeader, source };
            let keep = || {
                disk.create_dir_all(&dir).map_err(io)?;
                disk.write_atomically(&dir.join(FACTS_FILE), &facts).map_err(io)?;
                IndexHeader::store(&*disk, &dir.join(HEADER_FILE), &toc, &symbols, &postings_table)?;
                IndexHeader::open(&*disk, &dir.join(HEADER_FILE))
            };
            Ok(keep().unwrap_or_else(|error| {
                tracing::warn!(dir = %dir.display(), %error, "a block's header cannot be kept on disk and stays in memory");
                in_memory
            }))
        });
        stored.await?.map_err(ReadError::Block)
    }
}

fn load(disk: &dyn Disk, dir: &Path) -> Result<(Facts, Tombstones, IndexHeader), BlockError> {
    let file = BlockFile::IndexHeader;
    let bytes = disk.read(&dir.join(FACTS_FILE)).map_err(|source| BlockError::Io { file, source })?;
    let damaged = |what| BlockError::Damaged { file, offset: 0, what };
    let (facts, stones) = Facts::decode(&bytes).ok_or_else(|| damaged("facts are damaged"))?;
    let tombstones = if stones.is_empty() { Tombstones::default() } else { Tombstones::parse(stones)? };
    let header = IndexHeader::open(disk, &dir.join(HEADER_FILE))?;
    if header.toc().index_len != facts.index_len {
        return Err(damaged("header and facts are of different indexes"));
    }
    Ok((facts, tombstones, header))
}

/// Facts and tombstones file (empty when there is none) of a block in the bucket; `None` when it has no `meta.json`.
async fn fetch_facts(bucket: &TenantBucket, id: Ulid, usage: &Usage) -> Result<Option<(Facts, Bytes)>, ReadError> {
    let Some(meta) = get_if_there(bucket, &bucket.block_key(id, META_FILE), usage).await? else { return Ok(None) };
    let meta = BlockMeta::parse(&meta)?;
    let damaged = |file, what| ReadError::Block(BlockError::Damaged { file, offset: 0, what });
    if meta.ulid != id {
        return Err(damaged(BlockFile::Meta, "it is another block's"));
    }
    let (index_len, segment_lens) = match sizes_in(&meta) {
        Some(sizes) => sizes,
        None => list_sizes(bucket, id, usage).await?,
    };
    if index_len == 0 {
        return Err(damaged(BlockFile::Index, "missing or empty"));
    }
    let stats = meta.thanos.map(|thanos| thanos.index_stats).unwrap_or_default();
    let stones = get_if_there(bucket, &bucket.block_key(id, TOMBSTONES_FILE), usage).await?.unwrap_or_default();
    let facts = Facts {
        min_time: meta.min_time,
        max_time: meta.max_time,
        index_len,
        segment_lens,
        series_max_size: stats.series_max_size,
        chunk_max_size: stats.chunk_max_size,
    };
    Ok(Some((facts, stones)))
}

async fn get_if_there(bucket: &TenantBucket, key: &str, usage: &Usage) -> Result<Option<Bytes>, BucketError> {
    let got = bucket.bucket().get(key).await;
    usage.count(got.as_ref().map_or(0, |object| object.bytes.len() as u64));
    match got {
        Ok(object) => Ok(Some(object.bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sizes of index and segments as `meta.json` states them, if it does.
fn sizes_in(meta: &BlockMeta) -> Option<(u64, Vec<u64>)> {
    let files = &meta.thanos.as_ref()?.files;
    let index = files.iter().find(|file| file.rel_path == INDEX_FILE)?.size_bytes;
    let segments = files.iter().filter_map(|file| Some((file.rel_path.strip_prefix("chunks/")?, file.size_bytes)));
    let lens = in_order(segments)?;
    (index > 0 && lens.iter().all(|&len| len > 0)).then_some((index, lens))
}

/// Sizes of segments by number, when they are named 000001, 000002 and so on without a gap.
fn in_order<'a>(segments: impl Iterator<Item = (&'a str, u64)>) -> Option<Vec<u64>> {
    let mut segments: Vec<(&str, u64)> = segments.collect();
    segments.sort_unstable();
    let named = |(segment, number): (&(&str, u64), usize)| segment.0 == format!("{number:06}");
    segments.iter().zip(1..).all(named).then(|| segments.iter().map(|segment| segment.1).collect())
}

async fn list_sizes(bucket: &TenantBucket, id: Ulid, usage: &Usage) -> Result<(u64, Vec<u64>), ReadError> {
    let chunks = bucket.block_key(id, "chunks/");
    let (files, segments) = tokio::try_join!(bucket.list_block(id), bucket.bucket().list(&chunks))?;
    usage.count(0);
    usage.count(0);
    let index = files.objects.iter().find(|(name, _)| name == INDEX_FILE).map_or(0, |(_, meta)| meta.size);
    let segments = segments.objects.iter().map(|(name, meta)| (name.as_str(), meta.size));
    let damaged =
        BlockError::Damaged { file: BlockFile::Segment(0), offset: 0, what: "segments are not numbered in order" };
    Ok((index, in_order(segments).ok_or(damaged)?))
}
