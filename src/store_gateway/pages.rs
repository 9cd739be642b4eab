//! How ranges of objects are read: page by page through a cache, missing pages by few large requests.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use skald_tsdb::block::Coalesce;
use std::collections::HashMap;
use tokio::sync::Semaphore;

use super::cache::ByteCache;
use super::config::Config;
use super::metrics::{CacheMetrics, Metrics};
use crate::bucket::{Bucket, BucketError};

/// Size of a page. Small enough that one series' entry or chunk does not drag much along, large enough that bookkeeping is
/// nothing beside it.
const PAGE: u64 = 64 << 10;
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

/// Reads ranges of objects through two page caches, one for indexes and one for chunks.
pub(super) struct PageReader {
    bucket: Arc<dyn Bucket>,
    index_pages: ByteCache<PageKey>,
    chunk_pages: ByteCache<PageKey>,
    metrics: Metrics,
    /// Bounds the requests under way, of all queries together.
    requests: Semaphore,
    coalesce: Coalesce,
}

impl PageReader {
    pub(super) fn new(bucket: Arc<dyn Bucket>, config: &Config, metrics: Metrics) -> Self {
        Self {
            bucket,
            index_pages: ByteCache::new(config.index_cache_size.as_usize()),
            chunk_pages: ByteCache::new(config.chunks_cache_size.as_usize()),
            metrics,
            requests: Semaphore::new(config.max_concurrent_requests),
            coalesce: Coalesce { max_gap: config.partitioner_max_gap.as_u64(), max_len: MAX_REQUEST },
        }
    }

    /// The bytes of each range, in the order of the ranges, which may overlap. What lies beyond the object's end is missing
    /// from the result.
    pub(super) async fn read(
        &self,
        object: &PagedObject,
        ranges: &[Range<u64>],
        freshness: Freshness,
        usage: &Usage,
    ) -> Result<Vec<Bytes>, BucketError> {
        let (cache, metrics) = match object.file {
            FileNumber::Index => (&self.index_pages, &self.metrics.index_cache),
            FileNumber::Segment(_) => (&self.chunk_pages, &self.metrics.chunks_cache),
        };
        let mut pages: HashMap<u64, Bytes> = HashMap::new();
        let missing = self.look_up(object, ranges, freshness, cache, metrics, &mut pages);
        let page_ranges = missing.iter().map(|page| page * PAGE..((page + 1) * PAGE).min(object.len));
        let fetches = self.coalesce.join(page_ranges).into_iter().map(|fetch| async {
            let bytes = self.request(object, fetch.range.clone(), usage).await?;
            Ok((fetch, bytes))
        });
        let mut fetches = stream::iter(fetches).buffer_unordered(READ_CONCURRENCY);
        while let Some((fetch, bytes)) = fetches.try_next().await? {
            for &page in missing.get(fetch.items).unwrap_or_default() {
                pages.insert(page, keep_page(cache, object, page, fetch.range.start, &bytes));
            }
        }
        metrics.bytes.set(i64::try_from(cache.used()).unwrap_or(i64::MAX));
        Ok(ranges.iter().map(|range| assemble(&pages, range, object.len)).collect())
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

    /// Keeps the whole object, which was read for another purpose, in its cache.
    pub(super) fn keep(&self, object: &PagedObject, bytes: &Bytes) {
        let cache = match object.file {
            FileNumber::Index => &self.index_pages,
            FileNumber::Segment(_) => &self.chunk_pages,
        };
        for page in 0..(bytes.len() as u64).div_ceil(PAGE) {
            keep_page(cache, object, page, 0, bytes);
        }
    }

    /// Puts the pages at hand into `pages`, returns the numbers of the others, ascending.
    fn look_up(
        &self,
        object: &PagedObject,
        ranges: &[Range<u64>],
        freshness: Freshness,
        cache: &ByteCache<PageKey>,
        metrics: &CacheMetrics,
        pages: &mut HashMap<u64, Bytes>,
    ) -> Vec<u64> {
        let numbers = |range: &Range<u64>| range.start / PAGE..range.end.min(object.len).div_ceil(PAGE);
        let mut missing: Vec<u64> = ranges.iter().filter(|range| !range.is_empty()).flat_map(numbers).collect();
        missing.sort_unstable();
        missing.dedup();
        let wanted = missing.len();
        missing.retain(|&page| {
            let key = PageKey { block: object.block, file: object.file, page };
            match freshness {
                Freshness::Cached => match cache.get(&key) {
                    Some(bytes) => {
                        pages.insert(page, bytes);
                        false
                    }
                    None => true,
                },
                Freshness::Anew => {
                    cache.remove(&key);
                    true
                }
            }
        });
        metrics.misses.inc_by(missing.len() as u64);
        metrics.hits.inc_by((wanted - missing.len()) as u64);
        missing
    }

    async fn request(&self, object: &PagedObject, range: Range<u64>, usage: &Usage) -> Result<Bytes, BucketError> {
        // Never closed, so there is always a permit in the end.
        let _permit = self.requests.acquire().await;
        let bytes = self.bucket.get_range(&object.key, range).await?;
        usage.count(bytes.len() as u64);
        Ok(bytes)
    }
}

/// Puts the page into the cache; `bytes` begin at `start` of the object.
fn keep_page(cache: &ByteCache<PageKey>, object: &PagedObject, page: u64, start: u64, bytes: &Bytes) -> Bytes {
    let from = (page * PAGE - start) as usize;
    let to = (from + PAGE as usize).min(bytes.len());
    // A copy, so that a page kept does not keep the whole request's memory.
    let bytes = Bytes::copy_from_slice(bytes.get(from..to).unwrap_or_default());
    cache.insert(PageKey { block: object.block, file: object.file, page }, bytes.clone());
    bytes
}

/// The bytes of `range` from the pages that hold them.
fn assemble(pages: &HashMap<u64, Bytes>, range: &Range<u64>, len: u64) -> Bytes {
    let end = range.end.min(len);
    if range.start >= end {
        return Bytes::new();
    }
    let part = |page: u64| {
        let bytes = pages.get(&page).cloned().unwrap_or_default();
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
        PagedObject { block: 1, file: FileNumber::Index, key: "t/b/index".into(), len: LEN }
    }

    async fn reader(bucket: &MemBucket, config: Config) -> PageReader {
        bucket.put("t/b/index", content(), Condition::None).await.unwrap();
        bucket.take_calls();
        PageReader::new(Arc::new(bucket.clone()), &config, Metrics::default())
    }

    #[tokio::test]
    async fn near_pages_come_in_one_request_and_only_once() {
        let bucket = MemBucket::default();
        let reader = reader(&bucket, Config::default()).await;
        let usage = Usage::default();
        let ranges = [5..9, 3 * PAGE..3 * PAGE + 1, LEN - 1..LEN + 100];
        let got = reader.read(&object(), &ranges, Freshness::Cached, &usage).await.unwrap();
        assert_eq!(got.iter().map(Bytes::len).collect::<Vec<_>>(), [4, 1, 1]);
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
                    index_cache_size: crate::settings::ByteSize::bytes(cache * PAGE),
                    partitioner_max_gap: crate::settings::ByteSize::bytes(gap * PAGE),
                    ..Config::default()
                };
                let reader = reader(&MemBucket::default(), config).await;
                for read in reads {
                    let ranges: Vec<_> = read.iter().map(|&(start, len)| start..start + len).collect();
                    let got = reader.read(&object(), &ranges, Freshness::Cached, &Usage::default()).await.unwrap();
                    for (range, got) in ranges.iter().zip(got) {
                        let expected = content().slice(range.start.min(LEN) as usize..range.end.min(LEN) as usize);
                        assert_eq!(got, expected);
                    }
                }
            });
        }
    }
}
