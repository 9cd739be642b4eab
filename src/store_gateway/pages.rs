//! How ranges of objects are read: page by page through a cache, missing pages by few large requests; or straight from the
//! file an object is.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use skald_model::Labels;
use skald_tsdb::block::Coalesce;
use skald_tsdb::postings::SeriesRef;
use std::collections::HashMap;
use tokio::sync::Semaphore;

use super::block::ReadError;
use super::cache::ByteCache;
use super::config::Config;
use super::files::{FileHandle, Files, Stretches, read_error};
use super::metrics::Metrics;
use crate::bucket::{Bucket, BucketError};
use crate::runtime::Pool;

/// Size of a page. Small enough that one series' entry or chunk does not drag much along, large enough that bookkeeping is
/// nothing beside it.
pub(super) const PAGE: u64 = 16 << 10;
/// Largest request.
const MAX_REQUEST: u64 = 8 << 20;
/// Requests of one read under way at once.
const READ_CONCURRENCY: usize = 8;

/// An object that is read by ranges.
#[derive(Debug, Clone)]
pub(super) struct PagedObject {
    /// Number of the open block it belongs to: unlike a name never used twice, so that no cache can mix tenants up.
    pub(super) block: u64,
    /// Which file of the block.
    pub(super) file: FileNumber,
    /// Its key in the bucket.
    pub(super) key: String,
    /// Its size.
    pub(super) len: u64,
    /// Its file, where the bucket is a directory.
    pub(super) handle: FileHandle,
}

/// A file of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum FileNumber {
    Index,
    /// Counted from zero.
    Segment(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct PageKey {
    block: u64,
    file: FileNumber,
    page: u64,
}

type PageCache = ByteCache<PageKey, Bytes>;

/// A series of an open block.
pub(super) type LabelsKey = (u64, SeriesRef);

/// Whether cached pages will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Yes.
    Cached,
    /// No: what came from the cache, or from a transfer, was damaged.
    Anew,
}

/// What one query costs the bucket.
#[derive(Debug, Default)]
pub(super) struct Usage {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Usage {
    /// Counts a request and what it brought.
    pub(super) fn count(&self, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Bytes of one object, enough to serve the ranges they were read for.
pub(super) enum ReadBytes {
    /// From the caches and the bucket.
    Pages(Pages),
    /// From a file of this machine.
    Stretches(Stretches),
}

impl ReadBytes {
    /// Hands on the bytes of a range: a part of some bytes. What lies beyond the object's end is missing.
    ///
    /// `near` helps to find ranges that ascend: 0 for the first one, then whatever it was left as.
    pub(super) fn with_bytes<R>(
        &self,
        range: &Range<u64>,
        near: &mut usize,
        use_it: impl FnOnce(&Bytes, Range<usize>) -> R,
    ) -> R {
        match self {
            Self::Pages(pages) => {
                let bytes = pages.bytes(range);
                use_it(&bytes, 0..bytes.len())
            }
            Self::Stretches(stretches) => {
                let (bytes, part) = stretches.find(range, near);
                use_it(bytes, part)
            }
        }
    }

    #[cfg(test)]
    fn bytes(&self, range: &Range<u64>) -> Bytes {
        self.with_bytes(range, &mut 0, |bytes, part| bytes.slice(part))
    }
}

/// Pages of one object.
pub(super) struct Pages {
    by_number: HashMap<u64, Bytes>,
    /// Size of the object.
    len: u64,
}

impl Pages {
    fn bytes(&self, range: &Range<u64>) -> Bytes {
        let end = range.end.min(self.len);
        if range.start >= end {
            return Bytes::new();
        }
        let part = |page: u64| {
            let bytes = self.by_number.get(&page).cloned().unwrap_or_default();
            let from = (range.start.saturating_sub(page * PAGE) as usize).min(bytes.len());
            let to = (end.saturating_sub(page * PAGE) as usize).min(bytes.len());
            bytes.slice(from..to.max(from))
        };
        let (first, last) = (range.start / PAGE, (end - 1) / PAGE);
        if first == last {
            return part(first);
        }
        let mut joined = BytesMut::with_capacity((end - range.start) as usize);
        for page in first..=last {
            joined.extend_from_slice(&part(page));
        }
        joined.freeze()
    }
}

/// Reads ranges of objects through two page caches, one for indexes and one for chunks.
pub(super) struct PageReader {
    bucket: Arc<dyn Bucket>,
    /// Cuts what was fetched into pages.
    pool: Pool,
    files: Files,
    index_pages: Arc<PageCache>,
    chunk_pages: Arc<PageCache>,
    /// Labels of series: most work of reading an index is to put them together.
    pub(super) labels: ByteCache<LabelsKey, Labels>,
    metrics: Metrics,
    /// Bounds the requests under way, of all queries together.
    requests: Semaphore,
    coalesce: Coalesce,
}

impl PageReader {
    pub(super) fn new(bucket: Arc<dyn Bucket>, pool: Pool, config: &Config, metrics: Metrics) -> Self {
        Self {
            bucket,
            pool,
            files: Files::new(),
            index_pages: Arc::new(ByteCache::new(config.index_cache_size.as_usize() / 2)),
            labels: ByteCache::new(config.index_cache_size.as_usize() / 2),
            chunk_pages: Arc::new(ByteCache::new(config.chunks_cache_size.as_usize())),
            metrics,
            requests: Semaphore::new(config.max_concurrent_requests),
            coalesce: Coalesce { max_gap: config.partitioner_max_gap.as_u64(), max_len: MAX_REQUEST },
        }
    }

    fn cache(&self, object: &PagedObject) -> &Arc<PageCache> {
        match object.file {
            FileNumber::Index => &self.index_pages,
            FileNumber::Segment(_) => &self.chunk_pages,
        }
    }

    /// The bytes of `ranges`, which may overlap and come in any order.
    pub(super) async fn read(
        &self,
        object: &PagedObject,
        ranges: &[Range<u64>],
        freshness: Freshness,
        usage: &Usage,
    ) -> Result<ReadBytes, ReadError> {
        if self.pool.is_lent() && !object.handle.is_kept() && self.bucket.has_files() {
            self.pool.leave().await;
        }
        let Some(file) = self.files.open(&*self.bucket, object)? else {
            return self.read_pages(object, ranges, freshness, usage).await.map(ReadBytes::Pages);
        };
        if self.pool.is_lent() {
            if let Ok(Some(stretches)) = Stretches::read_at_hand(&*file, object.len, ranges) {
                usage.count(stretches.len());
                return Ok(ReadBytes::Stretches(stretches));
            }
            self.pool.leave().await;
        }
        let (ranges, len) = (ranges.to_vec(), object.len);
        let read = self.pool.run(move || Stretches::read(&*file, len, &ranges)).await?;
        let stretches = read.map_err(|error| read_error(&*self.bucket, &object.key, &error))?;
        usage.count(stretches.len());
        Ok(ReadBytes::Stretches(stretches))
    }

    async fn read_pages(
        &self,
        object: &PagedObject,
        ranges: &[Range<u64>],
        freshness: Freshness,
        usage: &Usage,
    ) -> Result<Pages, ReadError> {
        let cache = self.cache(object);
        let metrics = match object.file {
            FileNumber::Index => &self.metrics.index_cache,
            FileNumber::Segment(_) => &self.metrics.chunks_cache,
        };
        let mut pages = Pages { by_number: HashMap::new(), len: object.len };
        let missing = look_up(object, ranges, freshness, cache, &mut pages.by_number);
        metrics.hits.inc_by(pages.by_number.len() as u64);
        metrics.misses.inc_by(missing.len() as u64);
        let page_ranges = missing.iter().map(|page| page * PAGE..((page + 1) * PAGE).min(object.len));
        let missing = &missing;
        let fetches = self.coalesce.join(page_ranges).into_iter().map(|fetch| async move {
            let bytes = self.request(object, fetch.range.clone(), usage).await?;
            let numbers = missing.get(fetch.items).unwrap_or_default().to_vec();
            let (object, cache) = (object.clone(), cache.clone());
            let kept = self.pool.run(move || {
                let keep = |page| (page, keep_page(&cache, &object, page, fetch.range.start, &bytes));
                numbers.into_iter().map(keep).collect::<Vec<_>>()
            });
            Ok::<_, ReadError>(kept.await?)
        });
        let mut fetches = stream::iter(fetches).buffer_unordered(READ_CONCURRENCY);
        while let Some(kept) = fetches.try_next().await? {
            pages.by_number.extend(kept);
        }
        metrics.bytes.set(i64::try_from(cache.used()).unwrap_or(i64::MAX));
        Ok(pages)
    }

    /// The bytes of one range, which lies within the object, past the caches.
    pub(super) async fn read_uncached(
        &self,
        object: &PagedObject,
        range: Range<u64>,
        usage: &Usage,
    ) -> Result<Bytes, BucketError> {
        let starts = range.clone().step_by(MAX_REQUEST as usize);
        let parts = starts.map(|start| self.request(object, start..range.end.min(start + MAX_REQUEST), usage));
        let parts: Vec<Bytes> = stream::iter(parts).buffered(READ_CONCURRENCY).try_collect().await?;
        match parts.as_slice() {
            [only] => Ok(only.clone()),
            parts => Ok(parts.concat().into()),
        }
    }

    /// Keeps the whole object, which was read for another purpose, in its cache, unless it is a file anyway.
    pub(super) fn keep(&self, object: &PagedObject, bytes: &Bytes) {
        if self.is_file(object) {
            return;
        }
        for page in 0..(bytes.len() as u64).div_ceil(PAGE) {
            keep_page(self.cache(object), object, page, 0, bytes);
        }
    }

    /// Whether the object is a file of this machine, which is read without requests.
    pub(super) fn is_file(&self, object: &PagedObject) -> bool {
        matches!(self.files.open(&*self.bucket, object), Ok(Some(_)))
    }

    async fn request(&self, object: &PagedObject, range: Range<u64>, usage: &Usage) -> Result<Bytes, BucketError> {
        // Never closed, so there is always a permit in the end.
        let _permit = self.requests.acquire().await;
        let bytes = self.bucket.get_range(&object.key, range).await?;
        usage.count(bytes.len() as u64);
        Ok(bytes)
    }
}

/// Memory that reading some ranges takes, in pages; the ranges come in ascending order.
#[derive(Debug, Default)]
pub(super) struct PageCount {
    /// First page not counted yet.
    next: u64,
    bytes: u64,
}

impl PageCount {
    /// Says that the ranges to come are another object's.
    pub(super) fn begin_object(&mut self) {
        self.next = 0;
    }

    /// Counts the pages of `range` that were not counted before; bytes so far.
    pub(super) fn add(&mut self, range: &Range<u64>) -> u64 {
        let first = (range.start / PAGE).max(self.next);
        let end = range.end.div_ceil(PAGE);
        self.bytes += end.saturating_sub(first) * PAGE;
        self.next = self.next.max(end);
        self.bytes
    }
}

/// Puts the page into the cache; `bytes` begin at `start` of the object.
fn keep_page(cache: &PageCache, object: &PagedObject, page: u64, start: u64, bytes: &Bytes) -> Bytes {
    let from = (page * PAGE - start) as usize;
    let to = (from + PAGE as usize).min(bytes.len());
    // A copy, so that a page kept does not keep the whole request's memory.
    let bytes = Bytes::copy_from_slice(bytes.get(from..to).unwrap_or_default());
    cache.insert(PageKey { block: object.block, file: object.file, page }, bytes.clone());
    bytes
}

/// Puts the pages at hand into `pages`, returns the numbers of the others, ascending.
fn look_up(
    object: &PagedObject,
    ranges: &[Range<u64>],
    freshness: Freshness,
    cache: &PageCache,
    pages: &mut HashMap<u64, Bytes>,
) -> Vec<u64> {
    let numbers = |range: &Range<u64>| range.start / PAGE..range.end.min(object.len).div_ceil(PAGE);
    let mut missing: Vec<u64> = ranges.iter().filter(|range| !range.is_empty()).flat_map(numbers).collect();
    missing.sort_unstable();
    missing.dedup();
    missing.retain(|&page| {
        let key = PageKey { block: object.block, file: object.file, page };
        match cache.get(&key).filter(|_| freshness == Freshness::Cached) {
            Some(bytes) => {
                pages.insert(page, bytes);
                false
            }
            None => true,
        }
    });
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{Condition, MemBucket};
    use proptest::prelude::*;

    const LEN: u64 = 10 * PAGE + 17;

    fn content() -> Bytes {
        (0..LEN).map(|i| (i / 7 + i / PAGE) as u8).collect::<Vec<u8>>().into()
    }

    fn object() -> PagedObject {
        PagedObject {
            block: 1,
            file: FileNumber::Index,
            key: "t/b/index".into(),
            len: LEN,
            handle: FileHandle::default(),
        }
    }

    async fn reader(bucket: &MemBucket, config: Config) -> PageReader {
        bucket.put("t/b/index", content(), Condition::None).await.unwrap();
        bucket.take_calls();
        PageReader::new(Arc::new(bucket.clone()), Pool::inline(), &config, Metrics::default())
    }

    #[tokio::test]
    async fn near_pages_come_in_one_request_and_only_once() {
        let bucket = MemBucket::default();
        let reader = reader(&bucket, Config::default()).await;
        let usage = Usage::default();
        let ranges = [5..9, 3 * PAGE..3 * PAGE + 1, LEN - 1..LEN + 100];
        let pages = reader.read(&object(), &ranges, Freshness::Cached, &usage).await.unwrap();
        assert_eq!(ranges.each_ref().map(|range| pages.bytes(range).len()), [4, 1, 1]);
        assert_eq!((usage.requests(), usage.bytes()), (1, LEN));
        reader.read(&object(), &ranges, Freshness::Cached, &usage).await.unwrap();
        assert_eq!(usage.requests(), 1);
        reader.read(&object(), &ranges, Freshness::Anew, &usage).await.unwrap();
        assert_eq!(usage.requests(), 2);
        // Another block's pages of the same number are not these.
        let stranger = PagedObject { block: 2, ..object() };
        reader.read(&stranger, &ranges, Freshness::Cached, &usage).await.unwrap();
        assert_eq!(usage.requests(), 3);
        assert_eq!(bucket.take_calls().len(), 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn ranges_are_what_the_object_holds(
            reads in proptest::collection::vec(proptest::collection::vec((0..LEN + 10, 0_u64..3 * PAGE), 0..5), 1..5),
            cache in 0_u64..12,
            gap in 0_u64..3,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let config = Config {
                    index_cache_size: crate::settings::ByteSize::bytes(2 * cache * PAGE),
                    partitioner_max_gap: crate::settings::ByteSize::bytes(gap * PAGE),
                    ..Config::default()
                };
                let reader = reader(&MemBucket::default(), config).await;
                for read in reads {
                    let ranges: Vec<_> = read.iter().map(|&(start, len)| start..start + len).collect();
                    let pages = reader.read(&object(), &ranges, Freshness::Cached, &Usage::default()).await.unwrap();
                    for range in &ranges {
                        let expected = content().slice(range.start.min(LEN) as usize..range.end.min(LEN) as usize);
                        assert_eq!(pages.bytes(range), expected);
                    }
                }
            });
        }
    }
}
