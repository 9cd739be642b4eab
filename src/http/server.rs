//! Connections: taken from a listener, limited, served as HTTP/1.1 or HTTP/2, and ended gracefully.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::config::Config;
use crate::runtime::{Clock, Listener};

/// Who sent a request: an extension of every request.
#[derive(Debug, Clone)]
pub struct Peer(pub Arc<str>);

/// HTTP/2 streams one connection may have open: a peer multiplexes all its calls over one.
const MAX_CONCURRENT_STREAMS: u32 = 4096;
/// How often a silent HTTP/2 peer is asked whether it lives, and how long it may take to say so.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Rest after a connection could not be taken, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves what `router` yields for each request on `listener` until `stop` completes; then takes no more connections, lets the requests under way
/// finish for up to `graceful_shutdown_timeout`, and cuts the rest.
pub async fn serve(
    mut listener: Box<dyn Listener>,
    router: impl Fn() -> Router + Clone + Send + 'static,
    config: &Config,
    clock: Arc<dyn Clock>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let builder = builder(config);
    let graceful = GracefulShutdown::new();
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
            service_fn(move |mut request: hyper::Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                request.extensions_mut().insert(peer.clone());
                router().oneshot(request)
            })
        };
        let connection = builder.serve_connection(TokioIo::new(io), service).into_owned();
        let connection = graceful.watch(connection);
        // The server's own timer starts once it knows the protocol, which a silent client never tells.
        let silence = clock.sleep(config.http_header_timeout);
        connections.spawn(async move {
            let mut connection = pin!(connection);
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
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .adaptive_window(true)
        .keep_alive_interval(KEEP_ALIVE.0)
        .keep_alive_timeout(KEEP_ALIVE.1);
    builder
}
