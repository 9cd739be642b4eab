//! Questions and answers of repair as messages, and back.

use futures::{StreamExt, TryStreamExt};
use skald_model::QueryRange;
use skald_proto::grpc::{self as messages, MalformedMessage};
use skald_tsdb::head::{HashRange, PartDigest, SampleDigest, SeriesDigest};
use tonic::Request;

use super::exchange::{
    ChunkStream, ChunksRequest, DigestsRequest, Member, OverviewPart, OverviewStream, RangeDigest, SeriesDigestStream,
    SeriesRequest, TenantOverview,
};
use super::import::nonsense;
use crate::error::ServiceError;
use crate::grpc::{self, CallKind, Peer, convert, malformed};
use crate::tenant::TenantId;

/// Largest message of repair: several times the largest series of one range.
pub(in crate::ingester) const MAX_REPAIR_MESSAGE_BYTES: usize = 64 << 20;

type Client = messages::ingester_client::IngesterClient<Peer>;

fn range(range: Option<messages::TimeRange>) -> Result<QueryRange, MalformedMessage> {
    range.map(QueryRange::from).ok_or(MalformedMessage("a range is missing"))
}

fn hash_range_message(hashes: HashRange) -> messages::HashRange {
    messages::HashRange { first: hashes.first, last: hashes.last }
}

fn hash_range(message: messages::HashRange) -> HashRange {
    HashRange { first: message.first, last: message.last }
}

fn digest_message(digest: RangeDigest) -> messages::RepairDigest {
    let RangeDigest { series, digest: SampleDigest { samples, checksum } } = digest;
    messages::RepairDigest { series, samples, checksum }
}

fn digest(message: messages::RepairDigest) -> RangeDigest {
    let messages::RepairDigest { series, samples, checksum } = message;
    RangeDigest { series, digest: SampleDigest { samples, checksum } }
}

fn hashes_message(hashes: impl Iterator<Item = u128>) -> Vec<u8> {
    hashes.flat_map(u128::to_le_bytes).collect()
}

fn hashes(bytes: &[u8]) -> Result<Vec<u128>, MalformedMessage> {
    let (hashes, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(MalformedMessage("a hash is not 16 bytes"));
    }
    Ok(hashes.iter().map(|bytes| u128::from_le_bytes(*bytes)).collect())
}

pub(in crate::ingester) fn overview_message(part: OverviewPart) -> messages::RepairOverviewResponse {
    let Member { instance, repaired, intact } = part.member;
    let one_range = |(range, digest): (QueryRange, RangeDigest)| messages::RepairRange {
        range: Some(range.into()),
        digest: Some(digest_message(digest)),
    };
    let tenant = |overview: TenantOverview| messages::RepairTenant {
        tenant: overview.tenant.as_str().to_owned(),
        from: overview.from,
        ranges: overview.ranges.into_iter().map(one_range).collect(),
    };
    messages::RepairOverviewResponse {
        member: Some(messages::RepairMember { instance, repaired, intact }),
        tenants: part.tenants.into_iter().map(tenant).collect(),
        last: part.last,
    }
}

fn overview(message: messages::RepairOverviewResponse) -> Result<OverviewPart, ServiceError> {
    let messages::RepairMember { instance, repaired, intact } = message.member.unwrap_or_default();
    let tenant = |message: messages::RepairTenant| {
        let one_range =
            |message: messages::RepairRange| Ok((range(message.range)?, digest(message.digest.unwrap_or_default())));
        let ranges: Result<_, MalformedMessage> = message.ranges.into_iter().map(one_range).collect();
        Ok::<_, ServiceError>(TenantOverview {
            tenant: TenantId::new(&message.tenant)?,
            from: message.from,
            ranges: ranges.map_err(malformed)?,
        })
    };
    Ok(OverviewPart {
        member: Member { instance, repaired, intact },
        tenants: message.tenants.into_iter().map(tenant).collect::<Result<_, _>>()?,
        last: message.last,
    })
}

pub(in crate::ingester) fn digests_request(
    message: messages::RepairDigestsRequest,
) -> Result<DigestsRequest, MalformedMessage> {
    let hashes = message.hashes.ok_or(MalformedMessage("a stretch of hashes is missing"))?;
    Ok(DigestsRequest { range: range(message.range)?, hashes: hash_range(hashes), parts: message.parts as usize })
}

pub(in crate::ingester) fn digests_message(tenant: &TenantId, parts: &[PartDigest]) -> messages::RepairDigestsResponse {
    let part = |part: &PartDigest| digest_message(RangeDigest { series: part.series, digest: part.digest });
    messages::RepairDigestsResponse { tenant: tenant.as_str().to_owned(), parts: parts.iter().map(part).collect() }
}

pub(in crate::ingester) fn series_request(
    message: messages::RepairSeriesRequest,
) -> Result<SeriesRequest, MalformedMessage> {
    let hashes = message.hashes.into_iter().map(hash_range).collect();
    Ok(SeriesRequest { range: range(message.range)?, hashes })
}

pub(in crate::ingester) fn series_message(
    tenant: &TenantId,
    series: &[SeriesDigest],
) -> messages::RepairSeriesResponse {
    messages::RepairSeriesResponse {
        tenant: tenant.as_str().to_owned(),
        hashes: hashes_message(series.iter().map(|series| series.hash)),
        samples: series.iter().map(|series| series.digest.samples).collect(),
        checksums: series.iter().map(|series| series.digest.checksum).collect(),
    }
}

fn series(message: messages::RepairSeriesResponse) -> Result<Vec<SeriesDigest>, MalformedMessage> {
    let hashes = hashes(&message.hashes)?;
    if message.samples.len() != hashes.len() || message.checksums.len() != hashes.len() {
        return Err(MalformedMessage("columns of unequal length"));
    }
    let digests = message.samples.into_iter().zip(message.checksums);
    let series = hashes.into_iter().zip(digests);
    Ok(series
        .map(|(hash, (samples, checksum))| SeriesDigest { hash, digest: SampleDigest { samples, checksum } })
        .collect())
}

pub(in crate::ingester) fn chunks_request(
    message: &messages::RepairChunksRequest,
) -> Result<ChunksRequest, MalformedMessage> {
    Ok(ChunksRequest { range: range(message.range)?, hashes: hashes(&message.hashes)? })
}

pub(in crate::ingester) fn chunks_message(
    tenant: &TenantId,
    series: Vec<skald_tsdb::SeriesChunks>,
) -> messages::RepairChunksResponse {
    messages::RepairChunksResponse {
        tenant: tenant.as_str().to_owned(),
        series: series.into_iter().map(convert::series_chunks_message).collect(),
    }
}

/// An answer must be about whom it was asked of.
fn check_tenant(asked: &TenantId, answered: &str) -> Result<(), ServiceError> {
    if answered == asked.as_str() {
        return Ok(());
    }
    Err(nonsense(format!("it answered with data of {answered:?} when asked for that of {asked}")))
}

/// A question whose answer is read as fast as it can be imported: whoever asks bounds the wait for each part.
fn long<T>(mut request: Request<T>) -> Request<T> {
    request.extensions_mut().insert(CallKind::LongLived);
    request
}

fn bounded(client: &Client) -> Client {
    client.clone().max_decoding_message_size(MAX_REPAIR_MESSAGE_BYTES)
}

pub(in crate::ingester) async fn ask_overview(client: &Client, up_to: i64) -> Result<OverviewStream, ServiceError> {
    let message = messages::RepairOverviewRequest { up_to };
    let stream = bounded(client).repair_overview(long(Request::new(message))).await?.into_inner();
    Ok(stream.map_err(ServiceError::from).and_then(|message| async move { overview(message) }).boxed())
}

pub(in crate::ingester) async fn ask_digests(
    client: &Client,
    tenant: &TenantId,
    request: DigestsRequest,
) -> Result<Vec<PartDigest>, ServiceError> {
    let message = messages::RepairDigestsRequest {
        range: Some(request.range.into()),
        hashes: Some(hash_range_message(request.hashes)),
        parts: request.parts as u32,
    };
    let response = bounded(client).repair_digests(grpc::request(tenant, message)).await?.into_inner();
    check_tenant(tenant, &response.tenant)?;
    let parts = request.hashes.split(request.parts);
    if parts.len() != response.parts.len() {
        return Err(nonsense(format!("it answered with {} parts instead of {}", response.parts.len(), parts.len())));
    }
    let part = |(hashes, message): (HashRange, messages::RepairDigest)| {
        let RangeDigest { series, digest } = digest(message);
        PartDigest { hashes, series, digest }
    };
    Ok(parts.into_iter().zip(response.parts).map(part).collect())
}

pub(in crate::ingester) async fn ask_series(
    client: &Client,
    tenant: &TenantId,
    request: SeriesRequest,
) -> Result<SeriesDigestStream, ServiceError> {
    let message = messages::RepairSeriesRequest {
        range: Some(request.range.into()),
        hashes: request.hashes.into_iter().map(hash_range_message).collect(),
    };
    let stream = bounded(client).repair_series(long(grpc::request(tenant, message))).await?.into_inner();
    let tenant = tenant.clone();
    let batches = stream.map_err(ServiceError::from).and_then(move |message| {
        let checked = check_tenant(&tenant, &message.tenant).and_then(|()| series(message).map_err(malformed));
        async move { checked }
    });
    Ok(batches.boxed())
}

pub(in crate::ingester) async fn ask_chunks(
    client: &Client,
    tenant: &TenantId,
    request: ChunksRequest,
) -> Result<ChunkStream, ServiceError> {
    let hashes = hashes_message(request.hashes.into_iter());
    let message = messages::RepairChunksRequest { range: Some(request.range.into()), hashes };
    let stream = bounded(client).repair_chunks(long(grpc::request(tenant, message))).await?.into_inner();
    let tenant = tenant.clone();
    let batches = stream.map_err(ServiceError::from).and_then(move |message| {
        let checked = check_tenant(&tenant, &message.tenant).and_then(|()| {
            message.series.into_iter().map(convert::series_chunks).collect::<Result<_, _>>().map_err(malformed)
        });
        async move { checked }
    });
    Ok(batches.boxed())
}
