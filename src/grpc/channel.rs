//! Connections to a neighbour.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::runtime::Net;

/// Silence after which a connection is probed. Without probes a channel can stay dead for good once a network
/// partition has healed, because the HTTP/2 connection is never dropped.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a probe may take before the connection is dropped and made anew.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a peer may send on one stream before we have read it.
const STREAM_WINDOW: u32 = 2 << 20;
/// The same for all streams of a connection together: at least the sum of the streams' windows of a busy querier, so
/// that one stream nobody reads cannot stop the others.
const CONNECTION_WINDOW: u32 = 256 << 20;

/// A channel to `address` (`host:port`), connected on first use and again after every break.
pub fn channel(net: Arc<dyn Net>, address: &str) -> io::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is not host:port: {e}")))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let connect = move |uri: Uri| {
        let address = uri.authority().map(|a| a.to_string()).unwrap_or_default();
        let connecting = net.connect(&address);
        async move { connecting.await.map(TokioIo::new) }
    };
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(connect)))
}
