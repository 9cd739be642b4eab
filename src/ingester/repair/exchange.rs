//! What members of a replica group ask each other, and answer.

use futures::stream::BoxStream;
use skald_model::{QueryRange, TimestampMs};
use skald_tsdb::SeriesChunks;
use skald_tsdb::head::{HashRange, PartDigest, SampleDigest, SeriesDigest};

use crate::error::ServiceError;
use crate::tenant::TenantId;

/// Length of the ranges that are compared as a whole: a quarter of a block's. What is older than the newest of them is
/// digested once and remembered.
pub const COMPARED_MS: i64 = super::super::BLOCK_RANGE_MS / 4;

/// Most parts of the series' hashes in one question.
pub const MAX_PARTS: usize = 4096;

/// Most series whose chunks one question may ask for.
pub const MAX_SERIES_OF_CHUNKS: usize = 16_384;

/// Most stretches of hashes in one question.
pub const MAX_STRETCHES: usize = MAX_PARTS;

/// Who answers, and what it knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Its name; empty where nobody has told it.
    pub instance: String,
    /// Whether it counts for reads.
    pub repaired: bool,
    /// Whether it has everything it ever acknowledged.
    pub intact: bool,
}

/// What all series of a range add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RangeDigest {
    /// Series with samples.
    pub series: u64,
    /// Their samples.
    pub digest: SampleDigest,
}

impl RangeDigest {
    /// That of series in parts.
    pub fn of(parts: &[PartDigest]) -> Self {
        parts.iter().fold(Self::default(), |sum, part| Self {
            series: sum.series + part.series,
            digest: SampleDigest {
                samples: sum.digest.samples + part.digest.samples,
                checksum: sum.digest.checksum.wrapping_add(part.digest.checksum),
            },
        })
    }
}

/// What a member holds of a tenant, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantOverview {
    /// Whose it is.
    pub tenant: TenantId,
    /// Older samples went with blocks that are in the bucket; they are compared no more.
    pub from: TimestampMs,
    /// The ranges with samples, ascending; each within one aligned stretch of [`COMPARED_MS`].
    pub ranges: Vec<(QueryRange, RangeDigest)>,
}

/// A part of an overview.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OverviewPart {
    /// Who answers.
    pub member: Member,
    /// Some tenants.
    pub tenants: Vec<TenantOverview>,
    /// Whether it is the last part. A stream that ends without one is cut short.
    pub last: bool,
}

/// Asks for digests of parts of a tenant's series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestsRequest {
    /// Of which samples.
    pub range: QueryRange,
    /// Of which series.
    pub hashes: HashRange,
    /// Into so many parts of equal length.
    pub parts: usize,
}

/// Asks for digests of single series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesRequest {
    /// Of which samples.
    pub range: QueryRange,
    /// Of which series.
    pub hashes: Vec<HashRange>,
}

/// Asks for the chunks of series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunksRequest {
    /// Those that may hold samples of this range.
    pub range: QueryRange,
    /// Of the series with these hashes.
    pub hashes: Vec<u128>,
}

/// The parts of an overview.
pub type OverviewStream = BoxStream<'static, Result<OverviewPart, ServiceError>>;

/// Digests of series, in batches, in no particular order. A series may come twice; the later one counts.
pub type SeriesDigestStream = BoxStream<'static, Result<Vec<SeriesDigest>, ServiceError>>;

/// Series with their chunks, in batches, in no particular order.
pub type ChunkStream = BoxStream<'static, Result<Vec<SeriesChunks>, ServiceError>>;
