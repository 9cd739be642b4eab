//! Goes round: compares with the members of the group, at once after the start, every few minutes from then on.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::super::Ingester;
use super::metrics::Failure;
use super::pass::{Pass, PeerReport, Settled};
use super::verdict::{Compared, Situation, explain, is_repaired};
use super::{Group, Peer, Repaired};
use crate::error::ServiceError;

/// Younger samples may be on their way to one of the members still, and are left to the next pass.
const SETTLE_MS: i64 = 60 * 1000;

/// Pause of a member that is not repaired yet.
const RETRY: Duration = Duration::from_secs(2);

/// The first pass after becoming repaired: what distributors did not send here until they had noticed that it is back.
const SECOND_PASS_AFTER: Duration = Duration::from_secs(90);

/// What one life of this process knows of the others.
#[derive(Default)]
pub(super) struct Known {
    compared: BTreeMap<String, Compared>,
    /// Differences that stay, by member.
    settled: BTreeMap<String, Settled>,
}

impl Ingester {
    /// Whether it counts for reads, as that changes.
    pub fn repaired(&self) -> watch::Receiver<Repaired> {
        self.shared.repair.repaired.subscribe()
    }

    /// Refuses reads from now on until this ingester is repaired: for members of a replica group.
    pub fn guard_reads(&self) {
        self.shared.repair.guards_reads.store(true, Ordering::Relaxed);
    }

    /// Repairs this ingester, which the others know as `instance`, until dropped. `group` is asked before every pass.
    pub async fn repair_forever(&self, instance: &str, group: impl Fn() -> Group + Send + Sync) {
        let shared = &self.shared;
        instance.clone_into(&mut shared.repair.instance.lock());
        let mut known = Known::default();
        let mut passes_when_repaired = 0;
        loop {
            if self.repair_once(&group(), &mut known).await {
                let interval = match passes_when_repaired {
                    0 => SECOND_PASS_AFTER.min(shared.config.repair_interval),
                    _ => shared.config.repair_interval,
                };
                passes_when_repaired += 1;
                // Members of a group that started together shall not ask each other all at once.
                let part = 0.9 + 0.2 * (shared.runtime.rng.next_u64() % 1024) as f64 / 1024.0;
                shared.runtime.clock.sleep(interval.mul_f64(part)).await;
            } else {
                shared.runtime.clock.sleep(RETRY).await;
            }
        }
    }

    /// One pass over the other members; whether this one is repaired.
    pub(super) async fn repair_once(&self, group: &Group, known: &mut Known) -> bool {
        let shared = &self.shared;
        let was_repaired = *shared.repair.repaired.borrow() == Repaired::Yes;
        let gap = shared.repair.history.lock().gap().map(str::to_owned);
        let begun = shared.runtime.clock.monotonic();
        let mut missing: Vec<(String, String)> = Vec::new();
        shared.repair.reports.lock().retain(|id, _| group.peers.iter().any(|peer| peer.id == *id));
        known.settled.retain(|id, _| group.peers.iter().any(|peer| peer.id == *id));
        for peer in &group.peers {
            let compared = known.compared.get(&peer.id);
            if !was_repaired && compared.is_some_and(|compared| gap.is_some() || compared.repaired) {
                continue;
            }
            if !peer.healthy {
                missing.push((peer.id.clone(), "not healthy".to_owned()));
                continue;
            }
            let settled = known.settled.entry(peer.id.clone()).or_default();
            match self.compare_with(peer, was_repaired, settled).await {
                Ok(compared) => _ = known.compared.insert(peer.id.clone(), compared),
                Err(error) => missing.push((peer.id.clone(), error.to_string())),
            }
            if !was_repaired && self.judge(group, known, gap.as_deref(), &missing).await {
                return true;
            }
        }
        shared.metrics.repair.last_pass_seconds.set((shared.runtime.clock.monotonic() - begun).as_secs_f64());
        if missing.is_empty() && group.peers.len() >= group.others {
            shared.metrics.repair.last_whole_pass_time.set(shared.runtime.clock.now_ms() / 1000);
        }
        was_repaired || self.judge(group, known, gap.as_deref(), &missing).await
    }

    /// Decides whether this member is repaired now, and tells.
    async fn judge(&self, group: &Group, known: &Known, gap: Option<&str>, missing: &[(String, String)]) -> bool {
        let shared = &self.shared;
        let of_group = group.peers.iter().filter_map(|peer| known.compared.get(&peer.id)).copied();
        let compared: Vec<Compared> = of_group.collect();
        let situation = Situation { others: group.others, gap, compared: &compared };
        if !is_repaired(situation) {
            let reason = explain(situation, group.peers.len(), missing);
            let before = shared.repair.repaired.send_replace(Repaired::No { reason: reason.clone() });
            if before != (Repaired::No { reason: reason.clone() }) {
                tracing::info!(reason, "not repaired yet");
            }
            return false;
        }
        // What was imported must be as durable as what it stands for before that is forgotten.
        if gap.is_some() && !self.sync().await {
            return false;
        }
        let ingester = self.clone();
        let noted = shared.runtime.background_pool.run(move || {
            ingester.shared.repair.history.lock().filled(ingester.shared.runtime.disk.as_ref());
        });
        if noted.await.is_err() {
            return false;
        }
        shared.metrics.repair.repaired.set(1);
        shared.repair.repaired.send_replace(Repaired::Yes);
        tracing::info!(compared = compared.len(), others = group.others, "repaired");
        true
    }

    async fn compare_with(&self, peer: &Peer, was_repaired: bool, settled: &Settled) -> Result<Compared, ServiceError> {
        let shared = &self.shared;
        let (begun, at_ms) = (shared.runtime.clock.monotonic(), shared.runtime.clock.now_ms());
        let up_to = if was_repaired { at_ms.saturating_sub(SETTLE_MS) } else { i64::MAX };
        let (found, compared) = Pass::new(self, peer, up_to, settled).run().await;
        let took = shared.runtime.clock.monotonic() - begun;
        let metrics = &shared.metrics.repair;
        metrics.passes.inc();
        metrics.tenants_failed.inc_by(found.failed_tenants);
        metrics.ranges_compared.inc_by(found.ranges);
        metrics.ranges_differing.inc_by(found.ranges_differing);
        metrics.series_compared.inc_by(found.series_compared);
        metrics.series_differing.inc_by(found.series_differing);
        metrics.chunks_fetched.inc_by(found.chunks);
        metrics.bytes_fetched.inc_by(found.bytes);
        metrics.samples_imported.inc_by(found.samples_imported);
        metrics.conflicts.inc_by(found.conflicts);
        let (samples, bytes, took_ms) = (found.samples_imported, found.bytes, took.as_millis() as u64);
        match &compared {
            Ok(_) if samples > 0 => tracing::info!(peer = peer.id, samples, bytes, took_ms, "repaired from a member"),
            Ok(_) => tracing::debug!(peer = peer.id, bytes, took_ms, "compared with a member"),
            Err(error) => {
                metrics.failures.get_or_create(&Failure { reason: error.reason.clone().into_owned() }).inc();
                tracing::warn!(peer = peer.id, %error, samples, took_ms, "comparison with a member is not whole");
            }
        }
        let mut reports = shared.repair.reports.lock();
        let before = reports.get(&peer.id).and_then(|report| report.whole_at_ms);
        let whole_at_ms = if compared.is_ok() { Some(at_ms) } else { before };
        let error = compared.as_ref().err().cloned();
        reports.insert(peer.id.clone(), PeerReport { at_ms, took, found, error, whole_at_ms });
        compared.map(|member| Compared { repaired: member.repaired, intact: member.intact })
    }
}
