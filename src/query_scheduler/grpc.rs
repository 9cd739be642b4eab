//! The scheduler over gRPC: a client of a remote one, and the server side of the one of this process.

use std::sync::Arc;

use async_trait::async_trait;
use futures::channel::mpsc;
use futures::stream::BoxStream;
use futures::{SinkExt, StreamExt};
use skald_proto::grpc::{self as messages, query_scheduler_client, query_scheduler_server};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::Scheduler;
use super::client::{Ask, Reads, SchedulerClient, Turn, stopping};
use crate::error::{ErrorKind, ServiceError};
use crate::grpc::{self, CallKind, Peer, client_of, compressing};
use crate::http;
use crate::tenant::TenantId;

/// A remote scheduler.
#[derive(Clone)]
pub struct GrpcSchedulerClient {
    client: query_scheduler_client::QuerySchedulerClient<Peer>,
}

impl GrpcSchedulerClient {
    /// A scheduler behind `peer`.
    pub fn new(peer: Peer) -> Self {
        Self { client: client_of!(query_scheduler_client::QuerySchedulerClient<Peer>, peer) }
    }
}

/// The gRPC service of the scheduler of this process.
pub fn server(scheduler: Scheduler) -> query_scheduler_server::QuerySchedulerServer<ServedScheduler> {
    compressing!(query_scheduler_server::QuerySchedulerServer::new(ServedScheduler(scheduler)))
}

/// Serves the scheduler of this process.
#[derive(Clone)]
pub struct ServedScheduler(Scheduler);

#[async_trait]
impl SchedulerClient for GrpcSchedulerClient {
    async fn turn(&self, tenant: &TenantId, ask: Ask) -> Result<Turn, ServiceError> {
        let message = messages::TurnRequest {
            reads_store: ask.reads == Reads::Store,
            not: ask.not.iter().map(|querier| querier.as_ref().to_owned()).collect(),
        };
        let mut request = grpc::request(tenant, message);
        // Who waits sets the deadline, by going away.
        request.extensions_mut().insert(CallKind::LongLived);
        let mut stream = self.client.clone().turn(request).await?.into_inner();
        let message = stream.message().await?.ok_or_else(stopping)?;
        // The stream is the lease.
        Ok(Turn { querier: message.querier.into(), lease: Box::new(std::sync::Mutex::new(stream)) })
    }

    async fn offer(&self, address: &str, mut slots: watch::Receiver<u32>) -> Result<(), ServiceError> {
        // One offer waits to be sent at most; the newest number is read when there is room.
        let (mut sender, offers) = mpsc::channel(0);
        let telling = async {
            loop {
                let offer = messages::OfferRequest { address: address.to_owned(), slots: *slots.borrow_and_update() };
                if sender.send(offer).await.is_err() || slots.changed().await.is_err() {
                    break;
                }
            }
        };
        let mut client = self.client.clone();
        let listening = async move {
            let mut request = Request::new(offers);
            request.extensions_mut().insert(CallKind::LongLived);
            let mut stream = client.offer(request).await?.into_inner();
            while stream.message().await?.is_some() {}
            Ok(())
        };
        tokio::select! {
            () = telling => Ok(()),
            ended = listening => ended,
        }
    }
}

#[async_trait]
impl query_scheduler_server::QueryScheduler for ServedScheduler {
    type TurnStream = BoxStream<'static, Result<messages::TurnResponse, Status>>;

    async fn turn(&self, request: Request<messages::TurnRequest>) -> Result<Response<Self::TurnStream>, Status> {
        let tenant = grpc::tenant_of(&request)?;
        let message = request.into_inner();
        let reads = if message.reads_store { Reads::Store } else { Reads::Recent };
        let ask = Ask { reads, not: message.not.into_iter().map(Arc::from).collect() };
        let Turn { querier, lease } = self.0.turn(&tenant, ask).await?;
        let first = futures::stream::once(async move { Ok(messages::TurnResponse { querier: querier.to_string() }) });
        let stopped = self.0.stopped();
        // The slot is given back with the stream, which its caller drops.
        let rest = futures::stream::once(async move {
            let _lease = lease;
            stopped.await;
        });
        let rest = rest.filter_map(|()| async { None });
        Ok(Response::new(first.chain(rest).boxed()))
    }

    type OfferStream = BoxStream<'static, Result<messages::OfferResponse, Status>>;

    async fn offer(
        &self,
        request: Request<tonic::Streaming<messages::OfferRequest>>,
    ) -> Result<Response<Self::OfferStream>, Status> {
        let peer = request.extensions().get::<http::Peer>().cloned();
        let mut offers = request.into_inner();
        let Some(first) = offers.message().await? else {
            return Err(ServiceError::new(ErrorKind::BadData, "malformed-message", "an offer says nothing").into());
        };
        let address = reachable(&first.address, peer.as_ref().map(|http::Peer(address)| address.as_ref()));
        tracing::info!(querier = address, slots = first.slots, "a querier offers slots");
        let offered = self.0.offered(&address, first.slots);
        let answers = futures::stream::unfold((offers, offered), |(mut offers, offered)| async move {
            let offer = offers.message().await.ok().flatten()?;
            offered.set(offer.slots);
            Some((Ok(messages::OfferResponse {}), (offers, offered)))
        });
        Ok(Response::new(answers.take_until(self.0.stopped()).boxed()))
    }
}

/// A querier that listens on every address says only its port: its host is where it calls from.
fn reachable(address: &str, peer: Option<&str>) -> String {
    let host = peer.and_then(|peer| peer.rsplit_once(':')).map_or("", |(host, _)| host);
    if address.starts_with(':') { format!("{host}{address}") } else { address.to_owned() }
}
