//! How one tenant's bucket index is made anew.

use std::future::Future;

use futures::{StreamExt, TryStreamExt, stream};
use skald_model::TimestampMs;
use skald_tsdb::block::BlockMeta;
use ulid::Ulid;

use crate::bucket::index::{BucketIndex, DeletionMark, DeletionMarkFile, IndexError, IndexedBlock};
use crate::bucket::layout::META_FILE;
use crate::bucket::{BucketError, Condition, TenantBucket, Version};

/// Tries after somebody else wrote the index in between.
const MAX_TRIES: usize = 3;

/// A bucket index just written, and what was left out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexUpdate {
    /// The index.
    pub index: BucketIndex,
    /// Folders without `meta.json`, ascending: uploads under way or given up, deletions under way.
    pub partial: Vec<Ulid>,
    /// Blocks whose `meta.json` cannot be used, ascending, and why.
    pub damaged: Vec<(Ulid, String)>,
}

/// What `meta.json` of one block turned out to be.
enum Found {
    Complete(IndexedBlock),
    Partial(Ulid),
    Damaged(Ulid, String),
}

/// Makes the tenant's bucket index anew from what is in the bucket, and writes it.
///
/// Blocks are immutable, so what the previous index says of a block that is still there is taken over; only new blocks'
/// `meta.json` are read, `concurrency` at once. If the bucket fails anywhere, nothing is written: an index must not miss a
/// block. If somebody else writes the index meanwhile, the work starts over.
pub async fn update_bucket_index(
    bucket: &TenantBucket,
    now_ms: TimestampMs,
    concurrency: usize,
) -> Result<IndexUpdate, IndexError> {
    let mut tries = 1;
    loop {
        let (previous, condition) = previous_index(bucket).await?;
        let update = collect(bucket, previous.as_ref(), now_ms, concurrency).await?;
        match bucket.bucket().put(&bucket.index_key(), update.index.encode().into(), condition).await {
            Ok(_) => return Ok(update),
            Err(e) if e.is_precondition() && tries < MAX_TRIES => tries += 1,
            Err(e) => return Err(e.into()),
        }
    }
}

/// The index as it is, and the condition under which it may be replaced. A damaged one counts for nothing.
async fn previous_index(bucket: &TenantBucket) -> Result<(Option<BucketIndex>, Condition), IndexError> {
    match BucketIndex::fetch(bucket).await {
        Ok(Some((index, version))) => Ok((Some(index), unchanged(version))),
        Ok(None) => Ok((None, Condition::Absent)),
        Err(error @ IndexError::Damaged { .. }) => {
            tracing::warn!(tenant = %bucket.tenant(), %error, "bucket index is made anew from nothing");
            let meta = bucket.bucket().head(&bucket.index_key()).await?;
            Ok((None, unchanged(meta.version)))
        }
        Err(error) => Err(error),
    }
}

/// A store that has no versions leaves the last writer the winner, which costs at most one round.
fn unchanged(version: Version) -> Condition {
    if version == Version::default() { Condition::None } else { Condition::Unchanged(version) }
}

async fn collect(
    bucket: &TenantBucket,
    previous: Option<&BucketIndex>,
    now_ms: TimestampMs,
    concurrency: usize,
) -> Result<IndexUpdate, IndexError> {
    // Marks first: a block deleted between the two listings then has a mark without a block, which means nothing; the
    // other way round it would be a block whose mark is missing.
    let marked = bucket.list_deletion_marks().await?;
    let present = bucket.list_blocks().await?;
    let known = |id: &Ulid| previous.and_then(|index| index.block(*id));
    let mut blocks: Vec<IndexedBlock> = present.iter().filter_map(known).cloned().collect();
    let new: Vec<Ulid> = present.iter().filter(|id| known(id).is_none()).copied().collect();
    let (mut partial, mut damaged) = (Vec::new(), Vec::new());
    let metas = at_once(new.into_iter().map(|id| read_meta(bucket, id)), concurrency);
    for found in metas.await? {
        match found {
            Found::Complete(block) => blocks.push(block),
            Found::Partial(id) => partial.push(id),
            Found::Damaged(id, why) => damaged.push((id, why)),
        }
    }
    partial.sort_unstable();
    damaged.sort_unstable();

    let known = |id: &Ulid| previous.and_then(|index| index.deletion_mark(*id));
    let mut marks: Vec<DeletionMark> = marked.iter().filter_map(known).cloned().collect();
    let new: Vec<Ulid> = marked.iter().filter(|id| known(id).is_none()).copied().collect();
    let new = at_once(new.into_iter().map(|id| read_mark(bucket, id)), concurrency).await?;
    marks.extend(new.into_iter().flatten());
    Ok(IndexUpdate { index: BucketIndex::new(blocks, marks, now_ms), partial, damaged })
}

async fn at_once<T>(
    calls: impl Iterator<Item = impl Future<Output = Result<T, BucketError>>>,
    concurrency: usize,
) -> Result<Vec<T>, BucketError> {
    stream::iter(calls).buffer_unordered(concurrency.max(1)).try_collect().await
}

async fn read_meta(bucket: &TenantBucket, id: Ulid) -> Result<Found, BucketError> {
    let object = match bucket.bucket().get(&bucket.block_key(id, META_FILE)).await {
        Ok(object) => object,
        Err(e) if e.is_not_found() => return Ok(Found::Partial(id)),
        Err(e) => return Err(e),
    };
    Ok(match BlockMeta::parse(&object.bytes) {
        Ok(meta) if meta.ulid == id => Found::Complete(IndexedBlock::new(&meta, object.meta.last_modified)),
        Ok(meta) => Found::Damaged(id, format!("meta.json is of block {}", meta.ulid)),
        Err(error) => Found::Damaged(id, error.to_string()),
    })
}

async fn read_mark(bucket: &TenantBucket, id: Ulid) -> Result<Option<DeletionMark>, BucketError> {
    let object = match bucket.bucket().get(&bucket.deletion_mark_key(id)).await {
        Ok(object) => object,
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e),
    };
    match serde_json::from_slice::<DeletionMarkFile>(&object.bytes) {
        Ok(mark) if mark.id == id => Ok(Some(DeletionMark { block_id: id, deletion_time: mark.deletion_time })),
        // Keeping a block that should go costs storage; dropping one that should stay costs data.
        _ => {
            tracing::warn!(tenant = %bucket.tenant(), block = %id, "deletion mark cannot be read and counts for nothing");
            Ok(None)
        }
    }
}
