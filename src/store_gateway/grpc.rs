//! The store-gateway over gRPC: a client of a remote one, and the server side of a local one.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use skald_model::Labels;
use skald_proto::grpc::{self as messages, store_gateway_client, store_gateway_server};
use tonic::{Request, Response, Status};
use ulid::Ulid;

use super::client::{BlocksBatch, BlocksStream, FromBlocks, StoreGatewayClient};
use crate::error::ServiceError;
use crate::grpc::{
    self, MAX_MESSAGE_BYTES, Peer, SERIES_PER_MESSAGE, Served, client_of, compressing, convert, malformed,
};
use crate::select::{LabelRequest, SelectRequest};
use crate::tenant::TenantId;

/// A remote store-gateway.
#[derive(Clone)]
pub struct GrpcStoreGatewayClient {
    client: store_gateway_client::StoreGatewayClient<Peer>,
    peer: Peer,
}

impl GrpcStoreGatewayClient {
    /// A store-gateway behind `peer`.
    pub fn new(peer: Peer) -> Self {
        Self { client: client_of!(store_gateway_client::StoreGatewayClient<Peer>, peer.clone()), peer }
    }
}

/// The gRPC service of a local store-gateway.
pub fn server(
    gateway: Arc<dyn StoreGatewayClient>,
) -> store_gateway_server::StoreGatewayServer<Served<dyn StoreGatewayClient>> {
    compressing!(
        store_gateway_server::StoreGatewayServer::new(Served(gateway)).max_encoding_message_size(MAX_MESSAGE_BYTES)
    )
}

#[async_trait]
impl StoreGatewayClient for GrpcStoreGatewayClient {
    fn is_healthy(&self) -> bool {
        self.peer.is_healthy()
    }

    async fn select(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: SelectRequest,
    ) -> Result<BlocksStream, ServiceError> {
        let message = convert::select_message(&request, &blocks);
        let stream = self
            .client
            .clone()
            .select(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        let batches = stream.map_err(ServiceError::from).and_then(|message| async move {
            let batch = if message.series.is_empty() {
                convert::blocks(message.served_blocks).map(BlocksBatch::Served)
            } else {
                let series = message.series.into_iter().map(convert::series_chunks);
                series.collect::<Result<_, _>>().map(BlocksBatch::Series)
            };
            batch.map_err(malformed)
        });
        Ok(batches.boxed())
    }

    async fn label_names(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<String>>, ServiceError> {
        let message = convert::label_names_message(&request, &blocks);
        let answer = self
            .client
            .clone()
            .label_names(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        let value = request.bounds.keep(answer.names)?;
        Ok(FromBlocks { value, served: convert::blocks(answer.served_blocks).map_err(malformed)? })
    }

    async fn label_values(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        name: &str,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<String>>, ServiceError> {
        let message = convert::label_values_message(name, &request, &blocks);
        let answer = self
            .client
            .clone()
            .label_values(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        let value = request.bounds.keep(answer.values)?;
        Ok(FromBlocks { value, served: convert::blocks(answer.served_blocks).map_err(malformed)? })
    }

    async fn series(
        &self,
        tenant: &TenantId,
        blocks: Vec<Ulid>,
        request: LabelRequest,
    ) -> Result<FromBlocks<Vec<Labels>>, ServiceError> {
        let message = convert::series_message(&request, &blocks);
        let mut stream = self
            .client
            .clone()
            .series(grpc::request_until(tenant, message, request.bounds.deadline()))
            .await?
            .into_inner();
        let mut answer = FromBlocks { value: Vec::new(), served: Vec::new() };
        while let Some(message) = stream.message().await? {
            answer.value.extend(request.bounds.keep(convert::label_sets(&message.labels).map_err(malformed)?)?);
            answer.served.extend(convert::blocks(message.served_blocks).map_err(malformed)?);
        }
        Ok(answer)
    }
}

#[async_trait]
impl store_gateway_server::StoreGateway for Served<dyn StoreGatewayClient> {
    type SelectStream = BoxStream<'static, Result<messages::SelectResponse, Status>>;

    async fn select(&self, request: Request<messages::SelectRequest>) -> Result<Response<Self::SelectStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let (select, blocks) = convert::select(request.into_inner()).map_err(malformed)?;
        let cancel = select.bounds.cancel_on_drop();
        let stream = self.0.select(&tenant, blocks, select).await?;
        let messages = stream.map_err(Status::from).map_ok(move |batch| {
            let _until_the_stream_is_dropped = &cancel;
            match batch {
                BlocksBatch::Series(series) => messages::SelectResponse {
                    series: series.into_iter().map(convert::series_chunks_message).collect(),
                    served_blocks: Vec::new(),
                },
                BlocksBatch::Served(blocks) => {
                    messages::SelectResponse { series: Vec::new(), served_blocks: convert::block_messages(&blocks) }
                }
            }
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn label_names(
        &self,
        request: Request<messages::LabelNamesRequest>,
    ) -> Result<Response<messages::LabelNamesResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let (labels, blocks) = convert::label_names(request.into_inner()).map_err(malformed)?;
        let _cancel = labels.bounds.cancel_on_drop();
        let answer = self.0.label_names(&tenant, blocks, labels).await?;
        let served_blocks = convert::block_messages(&answer.served);
        Ok(Response::new(messages::LabelNamesResponse { names: answer.value, served_blocks }))
    }

    async fn label_values(
        &self,
        request: Request<messages::LabelValuesRequest>,
    ) -> Result<Response<messages::LabelValuesResponse>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let (name, labels, blocks) = convert::label_values(request.into_inner()).map_err(malformed)?;
        let _cancel = labels.bounds.cancel_on_drop();
        let answer = self.0.label_values(&tenant, blocks, &name, labels).await?;
        let served_blocks = convert::block_messages(&answer.served);
        Ok(Response::new(messages::LabelValuesResponse { values: answer.value, served_blocks }))
    }

    type SeriesStream = BoxStream<'static, Result<messages::SeriesResponse, Status>>;

    async fn series(&self, request: Request<messages::SeriesRequest>) -> Result<Response<Self::SeriesStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let (labels, blocks) = convert::series(request.into_inner()).map_err(malformed)?;
        let _cancel = labels.bounds.cancel_on_drop();
        let answer = self.0.series(&tenant, blocks, labels).await?;
        let sets = answer.value.chunks(SERIES_PER_MESSAGE).map(|sets| {
            Ok(messages::SeriesResponse { labels: convert::label_sets_message(sets), served_blocks: Vec::new() })
        });
        let served =
            messages::SeriesResponse { labels: Vec::new(), served_blocks: convert::block_messages(&answer.served) };
        let batches: Vec<_> = sets.chain([Ok(served)]).collect();
        Ok(Response::new(futures::stream::iter(batches).boxed()))
    }
}
