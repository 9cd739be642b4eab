//! The ingester over gRPC: a client of a remote one, and the server side of a local one.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use skald_model::{LabelBytes, Labels, MetricMetadata, TimestampMs};
use skald_proto::grpc::{self as messages, MalformedMessage, ingester_client, ingester_server};
use skald_proto::{WriteBatch, WriteBatchBuilder};
use skald_tsdb::head::PartDigest;
use tonic::{Request, Response, Status};

use super::client::{IngesterClient, PushReply, RejectedKind, Rejection};
use super::repair::exchange::{
    ChunkStream, ChunksRequest, DigestsRequest, OverviewStream, SeriesDigestStream, SeriesRequest,
};
use super::repair::grpc as repair;
use crate::error::ServiceError;
use crate::grpc::{
    self, MAX_MESSAGE_BYTES, Peer, SERIES_PER_MESSAGE, Served, client_of, compressing, convert, malformed,
};
use crate::select::{LabelRequest, SelectRequest, SeriesExemplars, SeriesStream};
use crate::tenant::TenantId;

/// A remote ingester.
#[derive(Clone)]
pub struct GrpcIngesterClient {
    client: ingester_client::IngesterClient<Peer>,
    peer: Peer,
}

impl GrpcIngesterClient {
    /// An ingester behind `peer`.
    pub fn new(peer: Peer) -> Self {
        Self { client: client_of!(ingester_client::IngesterClient<Peer>, peer.clone()), peer }
    }
}

/// The gRPC service of a local ingester.
pub fn server(ingester: Arc<dyn IngesterClient>) -> ingester_server::IngesterServer<Served<dyn IngesterClient>> {
    compressing!(ingester_server::IngesterServer::new(Served(ingester)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn push_message(batch: &WriteBatch) -> messages::PushRequest {
    let mut message = messages::PushRequest::default();
    let mut labels = Vec::new();
    let mut hashes = Vec::with_capacity(batch.series.len() * 16);
    for series in batch.iter() {
        labels.extend_from_slice(series.labels.as_bytes());
        message.label_lengths.push(series.labels.as_bytes().len() as u32);
        hashes.extend_from_slice(&series.hash.to_le_bytes());
        message.sample_counts.push(series.samples.len() as u32);
        if series.sample_starts.iter().any(|start| *start != 0) {
            message.start_timestamps.resize(message.timestamps.len(), 0);
            message.start_timestamps.extend_from_slice(series.sample_starts);
        }
        for sample in series.samples {
            message.timestamps.push(sample.timestamp);
            message.value_bits.push(sample.value.to_bits());
        }
        message.histogram_counts.push(series.histograms.len() as u32);
        let starts = series.histogram_starts.iter().copied().chain(std::iter::repeat(0));
        message.histograms.extend(series.histograms.iter().zip(starts).map(|(sample, start_timestamp)| {
            messages::Histogram { start_timestamp, ..messages::Histogram::from_sample(sample) }
        }));
        message.exemplar_counts.push(series.exemplars.len() as u32);
        message.exemplars.extend(series.exemplars.iter().map(messages::Exemplar::from));
    }
    message.labels = labels.into();
    message.hashes = hashes.into();
    message.metadata = batch.metadata.iter().map(messages::Metadata::from).collect();
    message
}

/// The batch of a message. Labels stay slices of the received bytes, checked once more: a peer's bug must not reach
/// a head, where equal series are found by equal bytes.
fn push_batch(message: messages::PushRequest) -> Result<WriteBatch, MalformedMessage> {
    let series = message.label_lengths.len();
    let counts = [&message.sample_counts, &message.histogram_counts, &message.exemplar_counts];
    if counts.iter().any(|c| c.len() != series)
        || message.hashes.len() != series * 16
        || message.timestamps.len() != message.value_bits.len()
    {
        return Err(MalformedMessage("columns of unequal length"));
    }
    let short = || MalformedMessage("a column is too short");
    let body: Bytes = message.labels;
    let mut builder = WriteBatchBuilder::over(body.clone());
    let mut at = 0_usize;
    let mut floats = message.timestamps.into_iter().zip(message.value_bits);
    let mut starts = message.start_timestamps.into_iter();
    let mut histograms = message.histograms.into_iter();
    let mut exemplars = message.exemplars.into_iter();
    for i in 0..series {
        let end = at.checked_add(message.label_lengths[i] as usize).ok_or_else(short)?;
        let bytes = body.get(at..end).ok_or_else(short)?;
        let labels = LabelBytes::check(bytes).ok_or(MalformedMessage("labels are not canonical"))?;
        builder.series_at(at..end, labels.hash());
        at = end;
        for _ in 0..message.sample_counts[i] {
            let (timestamp, bits) = floats.next().ok_or_else(short)?;
            builder.started_sample(timestamp, f64::from_bits(bits), starts.next().unwrap_or(0));
        }
        for _ in 0..message.histogram_counts[i] {
            let message = histograms.next().ok_or_else(short)?;
            let start = message.start_timestamp;
            let sample = message.into_sample();
            builder.started_histogram(sample.timestamp, sample.value, start);
        }
        for _ in 0..message.exemplar_counts[i] {
            builder.exemplar(exemplars.next().ok_or_else(short)?.try_into()?);
        }
    }
    for metadata in message.metadata {
        builder.metadata(metadata.into());
    }
    Ok(builder.build())
}

fn reply_message(reply: PushReply) -> messages::PushResponse {
    let rejection = |r: Rejection| messages::Rejection {
        reason: r.reason.into_owned(),
        count: r.count,
        message: r.message,
        kind: match r.kind {
            RejectedKind::Sample => 0,
            RejectedKind::Exemplar => 1,
            RejectedKind::Metadata => 2,
        },
    };
    messages::PushResponse {
        samples: reply.samples,
        histograms: reply.histograms,
        exemplars: reply.exemplars,
        rejections: reply.rejections.into_iter().map(rejection).collect(),
    }
}

fn reply(message: messages::PushResponse) -> PushReply {
    let rejection = |r: messages::Rejection| Rejection {
        kind: match r.kind {
            1 => RejectedKind::Exemplar,
            2 => RejectedKind::Metadata,
            _ => RejectedKind::Sample,
        },
        reason: r.reason.into(),
        count: r.count,
        message: r.message,
    };
    PushReply {
        samples: message.samples,
        histograms: message.histograms,
        exemplars: message.exemplars,
        rejections: message.rejections.into_iter().map(rejection).collect(),
    }
}

#[async_trait]
impl IngesterClient for GrpcIngesterClient {
    fn is_healthy(&self) -> bool {
        self.peer.is_healthy()
    }

    async fn push(&self, tenant: &TenantId, batch: Arc<WriteBatch>) -> Result<PushReply, ServiceError> {
        let response = self.client.clone().push(grpc::write_request(tenant, push_message(&batch))).await?;
        Ok(reply(response.into_inner()))
    }

    async fn select(&self, tenant: &TenantId, request: SelectRequest) -> Result<SeriesStream, ServiceError> {
        let message = convert::select_message(&request, &[]);
        let stream = self
            .client
            .clone()
            .select(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        let batches = stream.map_err(ServiceError::from).and_then(|message| async move {
            message.series.into_iter().map(convert::series_chunks).collect::<Result<_, _>>().map_err(malformed)
        });
        Ok(batches.boxed())
    }

    async fn label_names(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<String>, ServiceError> {
        let message = convert::label_names_message(&request, &[]);
        request.bounds.keep(
            self.client
                .clone()
                .label_names(grpc::request_until(tenant, message, request.bounds.deadline()))
                .await?
                .into_inner()
                .names,
        )
    }

    async fn label_values(
        &self,
        tenant: &TenantId,
        name: &str,
        request: LabelRequest,
    ) -> Result<Vec<String>, ServiceError> {
        let message = convert::label_values_message(name, &request, &[]);
        request.bounds.keep(
            self.client
                .clone()
                .label_values(grpc::request_until(tenant, message, request.bounds.deadline()))
                .await?
                .into_inner()
                .values,
        )
    }

    async fn series(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        let message = convert::series_message(&request, &[]);
        let mut stream = self
            .client
            .clone()
            .series(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        let mut all = Vec::new();
        while let Some(message) = stream.message().await? {
            all.extend(request.bounds.keep(convert::label_sets(&message.labels).map_err(malformed)?)?);
        }
        Ok(all)
    }

    async fn exemplars(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        let message = convert::exemplars_message(&request);
        let response = self
            .client
            .clone()
            .exemplars(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        response.series.into_iter().map(convert::series_exemplars).collect::<Result<_, _>>().map_err(malformed)
    }

    async fn metadata(&self, tenant: &TenantId, metric: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        let message = messages::MetadataRequest { metric: metric.unwrap_or_default().to_owned() };
        let response = self.client.clone().metadata(grpc::request(tenant, message)).await?.into_inner();
        Ok(response.metadata.into_iter().map(Into::into).collect())
    }

    async fn repair_overview(&self, up_to: TimestampMs) -> Result<OverviewStream, ServiceError> {
        repair::ask_overview(&self.client, up_to).await
    }

    async fn repair_digests(
        &self,
        tenant: &TenantId,
        request: DigestsRequest,
    ) -> Result<Vec<PartDigest>, ServiceError> {
        repair::ask_digests(&self.client, tenant, request).await
    }

    async fn repair_series(
        &self,
        tenant: &TenantId,
        request: SeriesRequest,
    ) -> Result<SeriesDigestStream, ServiceError> {
        repair::ask_series(&self.client, tenant, request).await
    }

    async fn repair_chunks(&self, tenant: &TenantId, request: ChunksRequest) -> Result<ChunkStream, ServiceError> {
        repair::ask_chunks(&self.client, tenant, request).await
    }
}

#[async_trait]
impl ingester_server::Ingester for Served<dyn IngesterClient> {
    async fn push(&self, request: Request<messages::PushRequest>) -> Result<Response<messages::PushResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let batch = push_batch(request.into_inner()).map_err(malformed)?;
        let reply = self.0.push(&tenant, Arc::new(batch)).await?;
        Ok(Response::new(reply_message(reply)))
    }

    type SelectStream = BoxStream<'static, Result<messages::SelectResponse, Status>>;

    async fn select(&self, request: Request<messages::SelectRequest>) -> Result<Response<Self::SelectStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let (select, _) = convert::select(request.into_inner()).map_err(malformed)?;
        let cancel = select.bounds.cancel_on_drop();
        let stream = self.0.select(&tenant, select).await?;
        let messages = stream.map_err(Status::from).map_ok(move |batch| {
            let _until_the_stream_is_dropped = &cancel;
            messages::SelectResponse {
                series: batch.into_iter().map(convert::series_chunks_message).collect(),
                served_blocks: Vec::new(),
            }
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn label_names(
        &self,
        request: Request<messages::LabelNamesRequest>,
    ) -> Result<Response<messages::LabelNamesResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let (labels, _) = convert::label_names(request.into_inner()).map_err(malformed)?;
        let _cancel = labels.bounds.cancel_on_drop();
        let names = self.0.label_names(&tenant, labels).await?;
        Ok(Response::new(messages::LabelNamesResponse { names, served_blocks: Vec::new() }))
    }

    async fn label_values(
        &self,
        request: Request<messages::LabelValuesRequest>,
    ) -> Result<Response<messages::LabelValuesResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let (name, labels, _) = convert::label_values(request.into_inner()).map_err(malformed)?;
        let _cancel = labels.bounds.cancel_on_drop();
        let values = self.0.label_values(&tenant, &name, labels).await?;
        Ok(Response::new(messages::LabelValuesResponse { values, served_blocks: Vec::new() }))
    }

    type SeriesStream = BoxStream<'static, Result<messages::SeriesResponse, Status>>;

    async fn series(&self, request: Request<messages::SeriesRequest>) -> Result<Response<Self::SeriesStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let (labels, _) = convert::series(request.into_inner()).map_err(malformed)?;
        let _cancel = labels.bounds.cancel_on_drop();
        let sets = self.0.series(&tenant, labels).await?;
        let batches: Vec<_> = sets
            .chunks(SERIES_PER_MESSAGE)
            .map(|sets| {
                Ok(messages::SeriesResponse { labels: convert::label_sets_message(sets), served_blocks: Vec::new() })
            })
            .collect();
        Ok(Response::new(futures::stream::iter(batches).boxed()))
    }

    async fn exemplars(
        &self,
        request: Request<messages::ExemplarsRequest>,
    ) -> Result<Response<messages::ExemplarsResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let labels = convert::exemplars(request.into_inner()).map_err(malformed)?;
        let series = self.0.exemplars(&tenant, labels).await?;
        let series = series.iter().map(convert::series_exemplars_message).collect();
        Ok(Response::new(messages::ExemplarsResponse { series }))
    }

    async fn metadata(
        &self,
        request: Request<messages::MetadataRequest>,
    ) -> Result<Response<messages::MetadataResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let metric = request.into_inner().metric;
        let metadata = self.0.metadata(&tenant, (!metric.is_empty()).then_some(metric.as_str())).await?;
        let metadata = metadata.iter().map(messages::Metadata::from).collect();
        Ok(Response::new(messages::MetadataResponse { metadata }))
    }

    type RepairOverviewStream = BoxStream<'static, Result<messages::RepairOverviewResponse, Status>>;

    async fn repair_overview(
        &self,
        request: Request<messages::RepairOverviewRequest>,
    ) -> Result<Response<Self::RepairOverviewStream>, Status> {
        let parts = self.0.repair_overview(request.into_inner().up_to).await?;
        Ok(Response::new(parts.map_ok(repair::overview_message).map_err(Status::from).boxed()))
    }

    async fn repair_digests(
        &self,
        request: Request<messages::RepairDigestsRequest>,
    ) -> Result<Response<messages::RepairDigestsResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let digests = repair::digests_request(request.into_inner()).map_err(malformed)?;
        let parts = self.0.repair_digests(&tenant, digests).await?;
        Ok(Response::new(repair::digests_message(&tenant, &parts)))
    }

    type RepairSeriesStream = BoxStream<'static, Result<messages::RepairSeriesResponse, Status>>;

    async fn repair_series(
        &self,
        request: Request<messages::RepairSeriesRequest>,
    ) -> Result<Response<Self::RepairSeriesStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let series = repair::series_request(request.into_inner()).map_err(malformed)?;
        let batches = self.0.repair_series(&tenant, series).await?;
        let messages = batches.map_ok(move |series| repair::series_message(&tenant, &series));
        Ok(Response::new(messages.map_err(Status::from).boxed()))
    }

    type RepairChunksStream = BoxStream<'static, Result<messages::RepairChunksResponse, Status>>;

    async fn repair_chunks(
        &self,
        request: Request<messages::RepairChunksRequest>,
    ) -> Result<Response<Self::RepairChunksStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let chunks = repair::chunks_request(&request.into_inner()).map_err(malformed)?;
        let batches = self.0.repair_chunks(&tenant, chunks).await?;
        let messages = batches.map_ok(move |series| repair::chunks_message(&tenant, series));
        Ok(Response::new(messages.map_err(Status::from).boxed()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skald_model::{Histogram, HistogramValue};

    use super::*;

    #[test]
    fn starts_survive_the_wire() {
        let mut builder = WriteBatchBuilder::default();
        let value = || HistogramValue::Integer(Arc::new(Histogram::default()));
        builder.series([("a", "1")]).sample(10, 1.0);
        builder.series([("a", "2")]).sample(10, 1.0).started_sample(20, 2.0, 15).sample(30, 3.0);
        builder.series([("a", "3")]).sample(10, 1.0).histogram(5, value()).started_histogram(6, value(), 4);
        builder.series([("a", "4")]).started_sample(10, 1.0, -9);
        let batch = builder.build();
        let back = push_batch(push_message(&batch)).unwrap();
        assert_eq!((back.sample_starts, back.histogram_starts), (vec![0, 0, 15, 0, 0, -9], vec![0, 4]));
        let mut builder = WriteBatchBuilder::default();
        builder.series([("a", "1")]).sample(1, 1.0);
        let plain = push_message(&builder.build());
        assert!(plain.start_timestamps.is_empty());
    }
}
