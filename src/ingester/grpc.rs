//! The ingester over gRPC: a client of a remote one, and the server side of a local one.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use skald_model::{Labels, MetricMetadata, TimestampMs};
use skald_proto::WriteBatch;
use skald_proto::grpc::{self as messages, ingester_client, ingester_server};
use skald_tsdb::head::PartDigest;
use tonic::{Request, Response, Status};

use super::client::{IngesterClient, KnownReply, PushReply};
use super::push_message::{self, Guess};
use super::repair::exchange::{
    ChunkStream, ChunksRequest, DigestsRequest, OverviewStream, SeriesDigestStream, SeriesRequest,
};
use super::repair::grpc as repair;
use crate::error::{ErrorKind, ServiceError};
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
    guess: Arc<Guess>,
}

impl GrpcIngesterClient {
    /// An ingester behind `peer`.
    pub fn new(peer: Peer) -> Self {
        let client = client_of!(ingester_client::IngesterClient<Peer>, peer.clone());
        Self { client, peer, guess: Arc::default() }
    }

    async fn push_labels(&self, tenant: &TenantId, batch: &WriteBatch) -> Result<PushReply, ServiceError> {
        let response = self.client.clone().push(grpc::write_request(tenant, push_message::message(batch))).await?;
        Ok(push_message::reply(response.into_inner()))
    }
}

/// The gRPC service of a local ingester.
pub fn server(ingester: Arc<dyn IngesterClient>) -> ingester_server::IngesterServer<Served<dyn IngesterClient>> {
    compressing!(ingester_server::IngesterServer::new(Served(ingester)))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[async_trait]
impl IngesterClient for GrpcIngesterClient {
    fn is_healthy(&self) -> bool {
        self.peer.is_healthy()
    }

    async fn push(&self, tenant: &TenantId, batch: Arc<WriteBatch>) -> Result<PushReply, ServiceError> {
        if self.guess.should_send_labels() {
            return self.push_labels(tenant, &batch).await;
        }
        let KnownReply { reply, unknown } = match self.push_known(tenant, batch.clone()).await {
            // An older process.
            Err(error) if error.kind == ErrorKind::Unimplemented => {
                self.guess.is_not_understood();
                return self.push_labels(tenant, &batch).await;
            }
            known => known?,
        };
        self.guess.found(batch.series.len(), unknown.len());
        if unknown.is_empty() {
            return Ok(reply);
        }
        let rest = self.push_labels(tenant, &batch.pick(&unknown)).await?;
        Ok(push_message::joined(reply, rest))
    }

    async fn push_known(&self, tenant: &TenantId, batch: Arc<WriteBatch>) -> Result<KnownReply, ServiceError> {
        let message = push_message::known_message(&batch);
        let response = self.client.clone().push_known(grpc::write_request(tenant, message)).await?;
        push_message::known_reply(response.into_inner(), batch.series.len()).map_err(malformed)
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
        let batch = push_message::batch(request.into_inner()).map_err(malformed)?;
        let reply = self.0.push(&tenant, Arc::new(batch)).await?;
        Ok(Response::new(push_message::reply_message(reply)))
    }

    async fn push_known(
        &self,
        request: Request<messages::PushKnownRequest>,
    ) -> Result<Response<messages::PushKnownResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let batch = push_message::known_batch(request.into_inner()).map_err(malformed)?;
        let KnownReply { reply, unknown } = self.0.push_known(&tenant, Arc::new(batch)).await?;
        Ok(Response::new(messages::PushKnownResponse { push: Some(push_message::reply_message(reply)), unknown }))
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
