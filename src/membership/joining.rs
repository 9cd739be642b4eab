//! How this process meets the others: starts gossip, joins, joins again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use skald_ring::store::gossip::{Gossip, GossipConfig};
use skald_ring::{Cluster, Replica};

use super::Rings;
use super::identity::Identity;
use super::settings::GossipSettings;
use crate::runtime::Clock;
use crate::settings::HostPort;

/// Pause between the first attempts to join.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How often the others are counted.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How long the others may take to hear that this process leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The replica, and gossip if the settings ask for it.
pub(super) async fn start(
    settings: &GossipSettings,
    identity: &Identity,
    clock: &Arc<dyn Clock>,
) -> Result<(Arc<Replica>, Option<Gossip>), String> {
    let Some((bind, advertised)) = &identity.gossip else { return Ok((Arc::new(Replica::alone()), None)) };
    let key = settings.cluster_key.expose().as_bytes();
    let cluster = Cluster::new(&settings.cluster_label, Some(key).filter(|key| !key.is_empty()))
        .map_err(|error| format!("memberlist.cluster_label: {error}"))?;
    let replica = Arc::new(Replica::new(cluster));
    let mut config = GossipConfig::new(identity.id.to_string(), resolve_one(bind).await?);
    config.advertise_address = Some(resolve_one(advertised).await?);
    config.gossip_interval = settings.gossip_interval;
    config.gossip_nodes = settings.gossip_nodes;
    config.push_pull_interval = settings.pull_push_interval;
    let clock = clock.clone();
    let gossip = Gossip::start(config, replica.clone(), move || clock.now_ms()).await;
    let gossip = gossip.map_err(|error| error.to_string())?;
    tracing::info!(address = %gossip.address(), cluster = settings.cluster_label, "gossiping");
    Ok((replica, Some(gossip)))
}

async fn resolve(address: &HostPort) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host((address.host(), address.port())).await;
    Ok(found.map_err(|error| format!("{address} is not found: {error}"))?.collect())
}

async fn resolve_one(address: &HostPort) -> Result<SocketAddr, String> {
    resolve(address).await?.into_iter().next().ok_or_else(|| format!("{address} has no address"))
}

impl Rings {
    /// Joins once; how many were met, and why not the others.
    async fn join(&self, gossip: &Gossip) -> (usize, Vec<String>) {
        let mut addresses = Vec::new();
        let mut failures = Vec::new();
        for member in &self.settings.join_members {
            match resolve(member).await {
                Ok(found) => addresses.extend(found),
                Err(why) => failures.push(why),
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        addresses.retain(|address| *address != gossip.address());
        let joins = addresses.iter().map(|address| gossip.join(*address));
        let mut met = 0;
        for joined in futures::future::join_all(joins).await {
            match joined {
                Ok(()) => met += 1,
                Err(error) => failures.push(error.to_string()),
            }
        }
        (met, failures)
    }

    /// Tries to meet somebody before this process says anything of itself: the more it knows then, the less has to be put
    /// right afterwards. Goes on without, as the first one has to.
    pub(super) async fn join_first(&self) {
        let Some(gossip) = &self.gossip else { return };
        let deadline = self.clock.monotonic() + self.settings.join_timeout;
        loop {
            let (met, failures) = self.join(gossip).await;
            if met > 0 || failures.is_empty() {
                tracing::info!(met, "joined the cluster");
                return;
            }
            if self.clock.monotonic() >= deadline {
                tracing::warn!(failures = failures.join("; "), "met nobody of memberlist.join_members yet");
                return;
            }
            self.clock.sleep(FIRST_PAUSE).await;
        }
    }

    /// Joins again and again.
    pub(super) async fn rejoin(&self) {
        let Some(gossip) = &self.gossip else { return std::future::pending().await };
        loop {
            // Until somebody was met, as often as the first attempts.
            let pause = match gossip.count_members().await {
                0 | 1 => FIRST_PAUSE.max(self.settings.rejoin_interval / 60),
                _ => self.settings.rejoin_interval,
            };
            self.clock.sleep(pause).await;
            let (met, failures) = self.join(gossip).await;
            if met == 0 && !failures.is_empty() {
                tracing::debug!(failures = failures.join("; "), "met nobody of memberlist.join_members");
            }
        }
    }

    /// Counts the others, for the metrics and for how often gossip repeats itself.
    pub(super) async fn measure(&self) {
        loop {
            let members = match &self.gossip {
                Some(gossip) => gossip.count_members().await,
                None => 1,
            };
            self.metrics.update(members, &self.replica.counts(), self.replica.waiting());
            self.clock.sleep(COUNT_EVERY).await;
        }
    }

    pub(super) async fn stop_gossip(&self) {
        if let Some(gossip) = &self.gossip
            && let Err(error) = gossip.stop(LEAVE_TIMEOUT).await
        {
            tracing::warn!(%error, "gossip did not end well");
        }
    }
}
