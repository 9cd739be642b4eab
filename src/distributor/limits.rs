//! What the distributor enforces for each tenant.

use std::time::Duration;

use super::relabel::RelabelRules;
use crate::settings::{setting_enum, settings};

setting_enum! {
    /// Which metric and label names are valid.
    pub enum NameValidation {
        /// Letters, digits, `_`, and in metric names `:`; not beginning with a digit.
        Legacy = "legacy",
        /// Any UTF-8.
        Utf8 = "utf8",
    }
}

settings! {
    /// Checked before anything is stored.
    pub struct Limits {
        /// Write requests per second a tenant may send, to all distributors together: each takes its share by how many live.
        /// More are answered with 429. `none` sets no limit.
        pub request_rate: Option<f64> = None => 0.001..,
        /// Write requests a tenant may send to one distributor at once before the rate counts.
        pub request_burst_size: u64 = 100 => 1..,
        /// Samples, exemplars and metadata entries per second a tenant may send, to all distributors together: each takes its
        /// share by how many live. More are answered with 429, and senders drop them unless told to retry. `none` sets no
        /// limit.
        pub ingestion_rate: Option<f64> = None => 0.001..,
        /// Samples, exemplars and metadata entries a tenant may send to one distributor at once before the rate counts. Larger
        /// requests than this are always refused while there is a rate.
        pub ingestion_burst_size: u64 = 200_000 => 1..,
        /// How many replica groups of ingesters a tenant's series are spread over (shuffle sharding): fewer keep tenants
        /// apart, more carry larger ones. `none` takes all.
        pub ingestion_tenant_shard_size: Option<usize> = None => 1..,
        /// Whether the tenant's senders are pairs of Prometheus that scrape the same: then only the elected replica's samples
        /// are taken, of series that have both labels below. Others are answered with 202.
        pub accept_ha_samples: bool = false,
        /// The label that both replicas of a pair have in common.
        pub ha_cluster_label: String = "cluster".to_owned(),
        /// The label that tells the replicas of a pair apart; it is taken off.
        pub ha_replica_label: String = "__replica__".to_owned(),
        /// Most pairs of a tenant. `none` sets no limit.
        pub ha_max_clusters: Option<usize> = Some(100),
        /// Rules that change or leave out the tenant's series before anything is checked: Prometheus' `metric_relabel_configs`,
        /// with its actions and defaults. Each rule is a mapping of `source_labels`, `separator`, `target_label`, `regex`,
        /// `modulus`, `replacement` and `action`. The label `__meta_tenant_id` carries the tenant's name meanwhile. What rules
        /// leave out is counted (`skald_discarded_samples_total`, reason `relabel_configuration`) and is no error. In a flag or
        /// variable the list is written as JSON.
        pub metric_relabel_configs: RelabelRules = RelabelRules::default(),
        /// Labels that are taken off the tenant's series, after the rules above.
        pub drop_labels: Vec<String> = Vec::new(),
        /// Most labels of a series, the metric name included.
        pub max_label_names_per_series: u32 = 30 => 1..,
        /// Most labels of a series whose metric name ends in `_info`.
        pub max_label_names_per_info_series: u32 = 80 => 1..,
        /// Longest label name in bytes.
        pub max_label_name_length: u32 = 1024 => 1..,
        /// Longest label value in bytes, the metric name included.
        pub max_label_value_length: u32 = 2048 => 1..,
        /// Longest metric name and unit of metadata in bytes; longer help texts are cut there.
        pub max_metadata_length: u32 = 1024 => 1..,
        /// How far a sample's time may lie in the future. It forgives clocks that run fast; too large lets one wrong clock
        /// put samples where no query looks.
        pub creation_grace_period: Duration = Duration::from_secs(600),
        /// How far a sample's time may lie in the past, whatever the ingesters would still take. `none` leaves it to them.
        pub past_grace_period: Option<Duration> = None,
        /// Which metric and label names are valid.
        pub name_validation_scheme: NameValidation = NameValidation::Legacy,
        /// Whether native histograms are stored; `false` leaves them out silently.
        pub native_histograms_ingestion_enabled: bool = true,
        /// Most buckets of a native histogram. `none` sets no limit.
        pub max_native_histogram_buckets: Option<u32> = None => 1..,
        /// Whether a native histogram with too many buckets is stored with a coarser resolution; `false` refuses it.
        pub reduce_native_histogram_over_max_buckets: bool = true,
    }
    check |limits| {
        let legacy = limits.name_validation_scheme == NameValidation::Legacy;
        limits.metric_relabel_configs.check_names(legacy).map_err(|why| format!("`metric_relabel_configs`: {why}"))
    };
}
