//! Connections: taken from a listener, limited, served as HTTP/1.1 or HTTP/2, and ended gracefully.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::config::Config;
use crate::runtime::{Clock, Listener};
use crate::tls::ServerTls;

/// Who sent a request: an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer(pub Arc<str>);

/// Counts the calls of one connection that are under way; an extension of every request.
#[derive(Debug, Clone, Default)]
pub struct OpenCalls(Arc<AtomicUsize>);

impl OpenCalls {
    /// One more, unless there are `most`.
    pub fn open(&self, most: usize) -> Option<OpenCall> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let open = OpenCall(self.0.clone());
        (before < most).then_some(open)
    }
}

/// A call under way, until it is dropped.
#[derive(Debug)]
pub struct OpenCall(Arc<AtomicUsize>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// HTTP/2 streams that one connection may have open beyond the calls it is allowed, so that further calls are told why they
/// fail.
const STREAMS_TO_REFUSE: u32 = 256;
/// Longest time a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent HTTP/2 peer is asked whether it lives, and how long it may take to say so.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Rest after a connection could not be taken, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves what `router` yields for each request on `listener`, in TLS if there is any, until `stop` completes; then takes no more connections, lets the requests under way
/// finish for up to `graceful_shutdown_timeout`, and cuts the rest.
pub async fn serve(
    mut listener: Box<dyn Listener>,
    tls: Option<Arc<ServerTls>>,
    router: impl Fn() -> Router + Clone + Send + 'static,
    config: &Config,
    clock: Arc<dyn Clock>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let builder = builder(config);
    let graceful = GracefulShutdown::new();
    let stopping = CancellationToken::new();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (io, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::select! {
                    () = &mut stop => break,
                    () = clock.sleep(ACCEPT_PAUSE) => continue,
                }
            }
        };
        let asked = Arc::new(AtomicBool::new(false));
        let service = {
            let (asked, router, peer) = (asked.clone(), router.clone(), Peer(peer.as_str().into()));
            let calls = OpenCalls::default();
            service_fn(move |mut request: hyper::Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(peer.clone());
                request.extensions_mut().insert(calls.clone());
                router().oneshot(request)
            })
        };
        let (builder, watcher) = (builder.clone(), graceful.watcher());
        let shaken = {
            let (tls, clock, stopping) = (tls.clone(), clock.clone(), stopping.clone());
            async move {
                let Some(tls) = tls else { return Ok(io) };
                tokio::select! {
                    shaken = tls.accept(io) => shaken.map_err(|e| e.to_string()),
                    () = clock.sleep(HANDSHAKE_TIMEOUT) => Err("it took too long".to_owned()),
                    () = stopping.cancelled() => Err("this process stops".to_owned()),
                }
            }
        };
        // The server's own timer starts once it knows the protocol, which a silent client never tells.
        let silence = clock.sleep(config.http_header_timeout);
        connections.spawn(async move {
            let io = match shaken.await {
                Ok(io) => io,
                Err(error) => {
                    tracing::debug!(peer, error, "TLS handshake failed");
                    return;
                }
            };
            let connection = builder.serve_connection(TokioIo::new(io), service).into_owned();
            let mut connection = pin!(watcher.watch(connection));
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = silence => {
                    if !asked.load(Ordering::Relaxed) {
                        tracing::debug!(peer, "connection closed: it asked for nothing");
                        return;
                    }
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(peer, %error, "connection ended");
            }
        });
    }
    drop(listener);
    stopping.cancel();
    tokio::select! {
        () = graceful.shutdown() => {}
        () = clock.sleep(config.graceful_shutdown_timeout) => {
            tracing::warn!(connections = connections.len(), "requests did not finish in time, their connections are cut");
        }
    }
    connections.shutdown().await;
}

fn builder(config: &Config) -> auto::Builder<TokioExecutor> {
    let headers = config.http_max_header_size.as_usize();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(config.http_header_timeout).max_buf_size(headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(headers).unwrap_or(u32::MAX))
        .max_concurrent_streams(config.grpc_max_in_flight_calls.saturating_add(STREAMS_TO_REFUSE))
        .adaptive_window(true)
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1);
    builder
}
