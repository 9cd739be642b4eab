//! What the distributor keeps of each tenant that writes: its rates and its counters.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::counter::Counter;
use serde_json::json;

use super::limits::Limits;
use super::metrics::{DiscardLabels, Metrics, TenantLabels, reason_label};
use super::push::LiveDistributors;
use super::rate_limit::{Rate, TokenBucket};
use super::rejections::Rejections;
use crate::error::{ErrorKind, ServiceError};
use crate::http::TablePage;
use crate::ingester::client::RejectedKind;
use crate::membership::{ShardMemory, TenantShards};
use crate::tenant::TenantId;

/// A tenant that has not written for so long is forgotten, its counters included.
const IDLE: Duration = Duration::from_secs(20 * 60);
/// How often idle tenants are looked for, at most.
const SWEEP_EVERY: Duration = Duration::from_secs(5 * 60);

/// All tenants that have written lately.
#[derive(Debug)]
pub(super) struct Tenants {
    metrics: Arc<Metrics>,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    tenants: HashMap<TenantId, Arc<Tenant>>,
    swept_at: Duration,
}

/// One tenant's rates and counters.
#[derive(Debug)]
pub(super) struct Tenant {
    name: TenantLabels,
    requests: TokenBucket,
    items: TokenBucket,
    received_samples: Counter,
    received_exemplars: Counter,
    received_metadata: Counter,
    deduped_samples: Counter,
    /// Discard counters this tenant has.
    discards: Mutex<BTreeSet<(u8, String)>>,
    /// Monotonic milliseconds of the last write.
    seen: AtomicU64,
    /// Held only to look into it.
    shard: Mutex<ShardMemory>,
}

const KINDS: [RejectedKind; 3] = [RejectedKind::Sample, RejectedKind::Exemplar, RejectedKind::Metadata];

impl Tenants {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, state: RwLock::default() }
    }

    /// The tenant's state, made when it is new. `now` is monotonic.
    pub(super) fn get(&self, id: &TenantId, now: Duration) -> Arc<Tenant> {
        if let Some(tenant) = self.state.read().tenants.get(id) {
            tenant.seen.store(now.as_millis() as u64, Ordering::Relaxed);
            return tenant.clone();
        }
        let mut state = self.state.write();
        if now.saturating_sub(state.swept_at) >= SWEEP_EVERY {
            state.swept_at = now;
            let idle_since = now.saturating_sub(IDLE).as_millis() as u64;
            for (_, tenant) in state.tenants.extract_if(|_, tenant| tenant.seen.load(Ordering::Relaxed) < idle_since) {
                tenant.forget(&self.metrics);
            }
        }
        let tenant = state.tenants.entry(id.clone()).or_insert_with(|| Arc::new(self.tenant(id, now)));
        tenant.clone()
    }

    /// What each tenant has written to this distributor: `/distributor/all_user_stats`. `now` is monotonic.
    pub(super) fn page(&self, now: Duration) -> TablePage {
        let state = self.state.read();
        let mut tenants: Vec<_> = state.tenants.iter().collect();
        tenants.sort_by_key(|(id, _)| id.as_str());
        let row = |(id, tenant): &(&TenantId, &Arc<Tenant>)| {
            let seen = Duration::from_millis(tenant.seen.load(Ordering::Relaxed));
            vec![
                json!(id.as_str()),
                json!(tenant.received_samples.get()),
                json!(tenant.received_exemplars.get()),
                json!(tenant.received_metadata.get()),
                json!(tenant.deduped_samples.get()),
                json!(now.saturating_sub(seen).as_secs()),
            ]
        };
        TablePage {
            title: "Tenants of the distributor".to_owned(),
            notes: vec![format!(
                "What this distributor took since it started; those that wrote nothing for {} minutes are left out. Every \
                 ingester shows at /ingester/tenants what it holds of them.",
                IDLE.as_secs() / 60
            )],
            columns: &["tenant", "samples", "exemplars", "metadata", "deduped_samples", "seconds_since_the_last_write"],
            rows: tenants.iter().map(row).collect(),
            action: None,
        }
    }

    fn tenant(&self, id: &TenantId, now: Duration) -> Tenant {
        let name = TenantLabels { tenant: id.as_str().to_owned() };
        Tenant {
            requests: TokenBucket::new(now),
            items: TokenBucket::new(now),
            received_samples: self.metrics.received_samples.get_or_create_owned(&name),
            received_exemplars: self.metrics.received_exemplars.get_or_create_owned(&name),
            received_metadata: self.metrics.received_metadata.get_or_create_owned(&name),
            deduped_samples: self.metrics.deduped_samples.get_or_create_owned(&name),
            discards: Mutex::default(),
            seen: AtomicU64::new(now.as_millis() as u64),
            shard: Mutex::default(),
            name,
        }
    }
}

impl Tenant {
    /// How many groups its series are spread over now, when `wanted` is the limit.
    pub(super) fn shard_size(&self, shards: &TenantShards, id: &TenantId, wanted: Option<usize>) -> Option<usize> {
        shards.write_size(id, wanted, &mut self.shard.lock())
    }

    /// Takes one request from the tenant's rate.
    pub(super) fn admit_request(
        &self,
        limits: &Limits,
        distributors: &LiveDistributors,
        now: Duration,
    ) -> Result<(), ServiceError> {
        let Some(rate) = limits.request_rate else { return Ok(()) };
        let burst = limits.request_burst_size;
        let share = Rate { per_second: rate / distributors() as f64, burst };
        let Err(wait) = self.requests.take(1, share, now) else { return Ok(()) };
        Err(ServiceError::new(
            ErrorKind::TooManyRequests,
            "tenant-max-request-rate",
            format!("the tenant is beyond its request rate of {rate} a second with bursts of {burst}"),
        )
        .retry_after(wait))
    }

    /// Takes `items` samples, exemplars and metadata entries from the tenant's rate.
    pub(super) fn admit_items(
        &self,
        items: u64,
        limits: &Limits,
        distributors: &LiveDistributors,
        now: Duration,
    ) -> Result<(), ServiceError> {
        let Some(rate) = limits.ingestion_rate else { return Ok(()) };
        let burst = limits.ingestion_burst_size;
        let share = Rate { per_second: rate / distributors() as f64, burst };
        let Err(wait) = self.items.take(items, share, now) else { return Ok(()) };
        Err(ServiceError::new(
            ErrorKind::TooManyRequests,
            "tenant-max-ingestion-rate",
            format!("{items} samples, exemplars and metadata entries are beyond the tenant's ingestion rate of {rate} a second with bursts of {burst}"),
        )
        .retry_after(wait))
    }

    /// Counts what goes to the ingesters.
    pub(super) fn count_received(&self, samples: u64, exemplars: u64, metadata: u64) {
        self.received_samples.inc_by(samples);
        self.received_exemplars.inc_by(exemplars);
        self.received_metadata.inc_by(metadata);
    }

    /// Counts samples of replicas that are not elected.
    pub(super) fn count_deduped(&self, samples: u64) {
        self.deduped_samples.inc_by(samples);
    }

    /// Counts what was refused, wherever.
    pub(super) fn count_rejections(&self, rejections: &Rejections, metrics: &Metrics) {
        for rejection in rejections.iter() {
            self.count_discarded(rejection.kind, &rejection.reason, rejection.count, metrics);
        }
    }

    /// Counts parts refused for one reason.
    pub(super) fn count_discarded(&self, kind: RejectedKind, reason: &str, count: u64, metrics: &Metrics) {
        if count == 0 {
            return;
        }
        let labels = DiscardLabels { reason: reason_label(reason), tenant: self.name.tenant.clone() };
        metrics.discarded(kind).get_or_create(&labels).inc_by(count);
        self.discards.lock().insert((kind as u8, labels.reason));
    }

    fn forget(&self, metrics: &Metrics) {
        metrics.received_samples.remove(&self.name);
        metrics.received_exemplars.remove(&self.name);
        metrics.received_metadata.remove(&self.name);
        metrics.deduped_samples.remove(&self.name);
        for (kind, reason) in std::mem::take(&mut *self.discards.lock()) {
            let labels = DiscardLabels { reason, tenant: self.name.tenant.clone() };
            if let Some(kind) = KINDS.into_iter().find(|known| *known as u8 == kind) {
                metrics.discarded(kind).remove(&labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::registry::Registry;

    #[test]
    fn idle_tenants_and_their_counters_are_forgotten() {
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let tenants = Tenants::new(metrics.clone());
        let get = |id: &str, minutes: u64| tenants.get(&TenantId::new(id).unwrap(), Duration::from_secs(minutes * 60));
        get("idle", 0).count_discarded(RejectedKind::Sample, "label-invalid", 3, &metrics);
        get("busy", 0).count_received(1, 1, 1);
        get("busy", 15);
        let shown = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        };
        assert!(shown().contains(r#"skald_discarded_samples_total{reason="label_invalid",tenant="idle"} 3"#));
        get("new", 25);
        assert!(!shown().contains("idle\""), "{}", shown());
        assert!(shown().contains(r#"skald_distributor_received_samples_total{tenant="busy"} 1"#));
        let rows = tenants.page(Duration::from_secs(26 * 60)).rows;
        assert_eq!(
            rows,
            [[json!("busy"), json!(1), json!(1), json!(1), json!(0), json!(660)].to_vec(), {
                [json!("new"), json!(0), json!(0), json!(0), json!(0), json!(60)].to_vec()
            }]
        );
    }
}
