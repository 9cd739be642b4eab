//! Which series of a write are duplicates.

use skald_model::LabelBytes;
use skald_proto::remote_write::{Received, Rewrite};

use super::{HaTracker, Verdict};
use crate::distributor::limits::Limits;
use crate::distributor::rejections::{LeftOut, Rejections, shown};
use crate::ingester::client::RejectedKind;
use crate::tenant::TenantId;

/// Leaves out the series of replicas that are not elected, and takes the replica's label from the others. Series that do not
/// have both labels stay as they are.
pub(in crate::distributor) fn dedupe(
    tracker: &HaTracker,
    tenant: &TenantId,
    received: &mut Received,
    limits: &Limits,
    rejections: &mut Rejections,
) -> LeftOut {
    let mut deduped = LeftOut::default();
    // Series of one sender have the same pair: it is asked for once.
    let mut last: Option<(String, String, Verdict)> = None;
    received.rewrite_series(|size, labels, written| {
        let (mut cluster, mut replica) = (None, None);
        for (name, value) in labels.iter() {
            if name == limits.ha_cluster_label {
                cluster = Some(value);
            } else if name == limits.ha_replica_label {
                replica = Some(value);
            }
        }
        let (Some(cluster), Some(replica)) = (cluster, replica) else { return Rewrite::Keep };
        let verdict = match &last {
            Some((c, r, verdict)) if c == cluster && r == replica => *verdict,
            _ => {
                let verdict = tracker.check(tenant, cluster, replica, limits.ha_max_clusters);
                last = Some((cluster.to_owned(), replica.to_owned(), verdict));
                verdict
            }
        };
        let mut refuse = |reason, message: &dyn Fn() -> String| {
            rejections.add(RejectedKind::Sample, reason, size.samples + size.histograms, message);
            rejections.add(RejectedKind::Exemplar, reason, size.exemplars, message);
            Rewrite::Drop
        };
        match verdict {
            Verdict::Accept => {
                for (name, value) in labels.iter().filter(|(name, _)| *name != limits.ha_replica_label) {
                    LabelBytes::encode(written, name, value);
                }
                Rewrite::Replace
            }
            Verdict::Duplicate => {
                deduped.add(size);
                Rewrite::Drop
            }
            Verdict::TooManyClusters => refuse("tenant-too-many-ha-clusters", &|| {
                let most = limits.ha_max_clusters.unwrap_or_default();
                format!("the tenant has {most} clusters of replicas already, the limit is {most}: {}", shown(cluster))
            }),
            Verdict::NameTooLong => refuse("ha-label-value-too-long", &|| {
                let most = super::MAX_NAME_LENGTH;
                let (names, cluster) = (&limits.ha_cluster_label, cluster.len());
                let (replicas, replica) = (&limits.ha_replica_label, replica.len());
                format!("values of {names} ({cluster} bytes) and {replicas} ({replica} bytes) may have {most} bytes")
            }),
        }
    });
    deduped
}
