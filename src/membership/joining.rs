//! How this process meets the others: starts gossip, joins, joins again.

use std::sync::Arc;
use std::time::Duration;

use skald_ring::{Cluster, Replica};

use super::Rings;
use super::identity::Identity;
use super::settings::GossipSettings;
use crate::runtime::Runtime;
use crate::runtime::gossip::{Joined, Participant, Participation};

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
    runtime: &Runtime,
) -> Result<(Arc<Replica>, Option<Box<dyn Participation>>), String> {
    let Some((bind, advertised)) = &identity.gossip else { return Ok((Arc::new(Replica::alone()), None)) };
    let key = settings.cluster_key.expose().as_bytes();
    let cluster = Cluster::new(&settings.cluster_label, Some(key).filter(|key| !key.is_empty()))
        .map_err(|error| format!("memberlist.cluster_label: {error}"))?;
    let replica = Arc::new(Replica::new(cluster));
    let participant = Participant {
        node: identity.id.to_string(),
        bind: bind.clone(),
        advertised: advertised.clone(),
        gossip_interval: settings.gossip_interval,
        gossip_nodes: settings.gossip_nodes,
        push_pull_interval: settings.pull_push_interval,
        replica: replica.clone(),
        clock: runtime.clock.clone(),
    };
    let gossip = runtime.gossip.start(participant).await?;
    tracing::info!(address = %gossip.address(), cluster = settings.cluster_label, "gossiping");
    Ok((replica, Some(gossip)))
}

impl Rings {
    /// Tries to meet somebody before this process says anything of itself: the more it knows then, the less has to be put
    /// right afterwards. Goes on without, as the first one has to.
    pub(super) async fn join_first(&self) {
        let Some(gossip) = &self.gossip else { return };
        let deadline = self.clock.monotonic() + self.settings.join_timeout;
        loop {
            let Joined { met, failures } = gossip.join(&self.settings.join_members).await;
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
            let Joined { met, failures } = gossip.join(&self.settings.join_members).await;
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
