//! The connections of this process to others, one per address.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tonic::transport::{Channel, Endpoint, Uri};

use super::config::{Config, STREAM_WINDOW};
use super::noting::{BrokenBy, Noting};
use super::peer::{Peer, PeerMetrics};
use crate::runtime::{BoxIo, Clock, Net, Runtime};
use crate::tls::ClientTls;

/// How long a connection nobody asked for is kept: a ring that changes for a moment costs no handshakes.
const KEPT_UNUSED: Duration = Duration::from_secs(600);
/// How often unused ones are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Makes and keeps connections; clones share them.
#[derive(Clone)]
pub struct Channels {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    net: Arc<dyn Net>,
    clock: Arc<dyn Clock>,
    tls: Option<Arc<ClientTls>>,
    metrics: PeerMetrics,
    peers: Mutex<Peers>,
}

#[derive(Default)]
struct Peers {
    by_address: HashMap<String, Kept>,
    looked: Duration,
}

struct Kept {
    peer: Peer,
    /// When it was last asked for.
    asked: Duration,
}

impl Channels {
    /// Connections over the network of `runtime`.
    pub fn new(config: Config, runtime: &Runtime, registry: &mut Registry) -> Result<Self, String> {
        let tls = ClientTls::open(&config.tls, runtime.disk.clone(), runtime.clock.clone())?;
        Ok(Self::with(config, runtime.net.clone(), runtime.clock.clone(), tls, PeerMetrics::new(registry)))
    }

    /// Connections in plain text with the default settings, for tests.
    #[cfg(test)]
    pub(crate) fn plain(net: Arc<dyn Net>) -> Self {
        let clock = Arc::new(crate::runtime::SystemClock::default());
        Self::with(Config::default(), net, clock, None, PeerMetrics::new(&mut Registry::default()))
    }

    pub(super) fn with(
        config: Config,
        net: Arc<dyn Net>,
        clock: Arc<dyn Clock>,
        tls: Option<Arc<ClientTls>>,
        metrics: PeerMetrics,
    ) -> Self {
        Self { shared: Arc::new(Shared { config, net, clock, tls, metrics, peers: Mutex::default() }) }
    }

    /// The peer at `address` (`host:port`), connected on its first call and again after every break.
    pub fn to(&self, address: &str) -> io::Result<Peer> {
        let shared = &self.shared;
        let now = shared.clock.monotonic();
        let mut peers = shared.peers.lock();
        if now.saturating_sub(peers.looked) >= LOOK_EVERY {
            peers.looked = now;
            peers.by_address.retain(|_, kept| kept.peer.is_held() || now.saturating_sub(kept.asked) < KEPT_UNUSED);
        }
        if let Some(kept) = peers.by_address.get_mut(address) {
            kept.asked = now;
            return Ok(kept.peer.clone());
        }
        let broken_by = BrokenBy::default();
        let connection = self.connection(address, broken_by.clone())?;
        let peer = Peer::new(address, connection, broken_by, &shared.config, shared.clock.clone(), &shared.metrics);
        peers.by_address.insert(address.to_owned(), Kept { peer: peer.clone(), asked: now });
        Ok(peer)
    }

    /// Whether the peer at `address` may be asked like any other. One that was never asked may.
    pub fn healthy(&self, address: &str) -> bool {
        self.shared.peers.lock().by_address.get(address).is_none_or(|kept| kept.peer.is_healthy())
    }

    /// How many peers are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.shared.peers.lock().by_address.len()
    }

    fn connection(&self, address: &str, broken_by: BrokenBy) -> io::Result<Channel> {
        let config = &self.shared.config;
        // Whatever is spoken below, tonic is told `http`: TLS is the connector's.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .ok()
            .filter(|endpoint| endpoint.uri().port().is_some())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{address:?} is not host:port")))?
            // Without probes a connection can stay dead for good once a partition has healed.
            .http2_keep_alive_interval(config.keep_alive_interval)
            .keep_alive_timeout(config.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(config.connection_window());
        let shared = self.shared.clone();
        let connect = move |uri: Uri| {
            let (shared, broken_by) = (shared.clone(), broken_by.clone());
            async move {
                let address = uri.authority().map(|a| a.to_string()).unwrap_or_default();
                let io = shared.connect(&address).await?;
                Ok::<_, io::Error>(TokioIo::new(Noting::new(io, broken_by, shared.metrics.traffic.clone())))
            }
        };
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(connect)))
    }
}

impl Shared {
    async fn connect(&self, address: &str) -> io::Result<BoxIo> {
        let connecting = async {
            let io = self.net.connect(address).await?;
            match &self.tls {
                None => Ok(io),
                Some(tls) => tls.connect(address, io).await,
            }
        };
        tokio::select! {
            connected = connecting => connected,
            () = self.clock.sleep(self.config.connect_timeout) => {
                let timeout = crate::settings::format_duration(self.config.connect_timeout);
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout}")))
            }
        }
    }
}
