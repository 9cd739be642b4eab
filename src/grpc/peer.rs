//! Another process as gRPC clients call it: bounded in number and time, its health noted.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Body as HttpBody;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tower::Service;

use super::config::Config;
use super::deadline::{Deadline, Timed, passed, set_timeout, timeout_of};
use super::health::Health;
use super::noting::{BrokenBy, Traffic};
use crate::error::{ErrorKind, ServiceError};
use crate::runtime::Clock;

/// What kind of call a request is; an extension of requests. Without one it is a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// A write: short.
    Write,
    /// Anything that is asked.
    Read,
    /// A stream that is meant to stay open: no deadline.
    LongLived,
}

/// Signals of clients.
#[derive(Clone)]
pub(super) struct PeerMetrics {
    in_flight: Gauge,
    unreached: Counter,
    refused: Counter,
    pub(super) traffic: Traffic,
}

impl PeerMetrics {
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            in_flight: Gauge::default(),
            unreached: Counter::default(),
            refused: Counter::default(),
            traffic: Traffic::default(),
        };
        registry.register(
            "skald_grpc_client_calls_in_flight",
            "Calls to other processes that are under way",
            metrics.in_flight.clone(),
        );
        registry.register(
            "skald_grpc_client_unreached_calls",
            "Calls that ended without any answer because the other process could not be reached or the connection broke",
            metrics.unreached.clone(),
        );
        registry.register(
            "skald_grpc_client_refused_calls",
            "Calls not made because grpc_client.max_in_flight_calls to one process were under way",
            metrics.refused.clone(),
        );
        registry.register(
            "skald_grpc_client_sent_bytes",
            "Bytes sent to other processes on connections made by this one, before TLS",
            metrics.traffic.sent.clone(),
        );
        registry.register(
            "skald_grpc_client_received_bytes",
            "Bytes received from other processes on connections made by this one, after TLS",
            metrics.traffic.received.clone(),
        );
        metrics
    }
}

/// Why a request could not even be sent; its message may be too large.
type Unsent = Arc<Mutex<Option<Status>>>;

/// The body of a request, whose own error the transport would swallow.
struct Sending {
    body: Body,
    unsent: Unsent,
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Err(status))) = &polled {
            *self.unsent.lock() = Some(status.clone());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

/// Another process. Clones are the same.
#[derive(Clone)]
pub struct Peer {
    shared: Arc<Shared>,
    channel: Channel,
}

struct Shared {
    address: String,
    config: Config,
    clock: Arc<dyn Clock>,
    health: Health,
    broken_by: BrokenBy,
    in_flight: Arc<Semaphore>,
    metrics: PeerMetrics,
}

/// What a call holds while it is under way.
pub struct InFlight {
    _permit: OwnedSemaphorePermit,
    gauge: Gauge,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Peer {
    pub(super) fn new(
        address: &str,
        channel: Channel,
        broken_by: BrokenBy,
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: &PeerMetrics,
    ) -> Self {
        let in_flight = Arc::new(Semaphore::new(config.max_in_flight_calls));
        let (address, config, metrics) = (address.to_owned(), config.clone(), metrics.clone());
        let shared = Shared { address, config, clock, health: Health::default(), broken_by, in_flight, metrics };
        Self { shared: Arc::new(shared), channel }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// Whether it may be asked like any other: calls to it have not failed to reach it again and again of late.
    pub fn is_healthy(&self) -> bool {
        self.shared.health.is_healthy(|| self.shared.clock.monotonic())
    }

    /// How messages to it are compressed.
    pub fn compression(&self) -> Option<CompressionEncoding> {
        self.shared.config.compression.encoding()
    }

    /// Largest messages sent to and taken from it.
    pub fn message_bounds(&self) -> (usize, usize) {
        let config = &self.shared.config;
        (config.max_send_msg_size.as_usize(), config.max_recv_msg_size.as_usize())
    }

    /// Whether somebody besides the one who asks has it.
    pub(super) fn is_held(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    async fn ask(self, request: Request<Body>) -> Result<Response<Timed<Body, InFlight>>, Status> {
        let Peer { shared, mut channel } = self;
        let unsent = Unsent::default();
        let mut request = request.map(|body| Body::new(Sending { body, unsent: unsent.clone() }));
        let kept = shared.in_flight()?;
        let kind = request.extensions().get::<CallKind>().copied().unwrap_or(CallKind::Read);
        let named = request.extensions().get::<Deadline>();
        let named = named.map(|deadline| deadline.0.saturating_sub(shared.clock.monotonic()));
        let timeout = named.or_else(|| timeout_of(request.headers())).or(match kind {
            CallKind::Write => Some(shared.config.write_timeout),
            CallKind::Read => Some(shared.config.read_timeout),
            CallKind::LongLived => None,
        });
        if let Some(timeout) = timeout {
            set_timeout(request.headers_mut(), timeout);
        }
        let begun = shared.clock.monotonic();
        let mut timer = timeout.map(|timeout| (shared.clock.sleep(timeout), timeout));
        let calling = async {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        };
        let answered = match &mut timer {
            None => calling.await,
            Some((timer, timeout)) => tokio::select! {
                biased;
                answered = calling => answered,
                () = timer => return Err(shared.too_late(kind, *timeout)),
            },
        };
        match answered {
            Ok(response) => {
                shared.health.reached();
                Ok(response.map(|body| Timed::new(body, timer, kept)))
            }
            // The transport has a timer of its own for the same deadline.
            Err(_) if timeout.is_some_and(|timeout| shared.clock.monotonic().saturating_sub(begun) >= timeout) => {
                Err(shared.too_late(kind, timeout.unwrap_or_default()))
            }
            Err(error) => Err(unsent.lock().take().unwrap_or_else(|| shared.unreached(&error))),
        }
    }
}

impl Shared {
    fn in_flight(&self) -> Result<InFlight, Status> {
        let Ok(permit) = self.in_flight.clone().try_acquire_owned() else {
            self.metrics.refused.inc();
            let most = self.config.max_in_flight_calls;
            let text = format!(
                "{most} calls to {} are under way, the most allowed (grpc_client.max_in_flight_calls)",
                self.address
            );
            return Err(ServiceError::new(ErrorKind::Unavailable, "peer-in-flight-limit", text).into());
        };
        self.metrics.in_flight.inc();
        Ok(InFlight { _permit: permit, gauge: self.metrics.in_flight.clone() })
    }

    /// A call that was not answered in time. A write is short: without an answer something is wrong with the peer.
    fn too_late(&self, kind: CallKind, timeout: Duration) -> Status {
        if kind == CallKind::Write {
            self.health.missed(self.clock.monotonic());
        }
        passed(timeout).into()
    }

    fn unreached(&self, error: &dyn Error) -> Status {
        self.metrics.unreached.inc();
        self.health.missed(self.clock.monotonic());
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            let one = error.to_string();
            if !text.contains(&one) {
                text = format!("{text}: {one}");
            }
            source = error.source();
        }
        if let Some(broken) = self.broken_by.take().filter(|broken| !text.contains(broken)) {
            text = format!("{text}: {broken}");
        }
        let text = format!("cannot reach {}: {text}{}", self.address, crate::tls::advice(&text));
        ServiceError::new(ErrorKind::Unavailable, "peer-unreachable", text).into()
    }
}

impl Service<Request<Body>> for Peer {
    type Response = Response<Timed<Body, InFlight>>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    /// The call itself waits for the connection, within its deadline.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().ask(request))
    }
}
