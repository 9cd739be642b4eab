//! A bounded store of metric metadata: per metric the distinct descriptions senders gave.

use std::collections::BTreeMap;
use std::ops::Bound;

use skald_model::MetricMetadata;

use super::Head;
use crate::wal::{CommitError, Lsn, Wal, WalBatch, WalError};

/// Most metrics a head describes, whatever the limits say.
const MAX_METRICS: usize = 500_000;
/// Most descriptions of one metric, likewise.
const MAX_PER_METRIC: usize = 64;

/// How much metadata a head keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataLimits {
    /// Most metrics; at most half a million.
    pub max_metrics: Option<usize>,
    /// Most descriptions of one metric; at most 64.
    pub max_per_metric: Option<usize>,
}

impl MetadataLimits {
    /// Keeps all there is room for.
    pub const NONE: MetadataLimits = MetadataLimits { max_metrics: None, max_per_metric: None };
}

/// What became of metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataOutcome {
    /// Stored, those that were there already included.
    pub accepted: u64,
    /// Refused because the head knows as many metrics as it may.
    pub over_metrics: u64,
    /// Refused because the metric has as many descriptions as it may.
    pub over_per_metric: u64,
    /// Where in the log it stands.
    pub lsn: Lsn,
}

#[derive(Default)]
pub(super) struct MetadataStore {
    by_metric: BTreeMap<String, Vec<MetricMetadata>>,
}

enum Verdict {
    NewMetric,
    New,
    Known,
    OverMetrics,
    OverPerMetric,
}

impl MetadataStore {
    /// Judges metadata that comes after `new`, which will be stored and has `added_metrics` that are not here.
    fn judge(
        &self,
        new: &MetadataStore,
        added_metrics: usize,
        metadata: &MetricMetadata,
        limits: MetadataLimits,
    ) -> Verdict {
        let descriptions = |store: &MetadataStore| store.by_metric.get(&metadata.metric).map_or(0, Vec::len);
        let has =
            |store: &MetadataStore| store.by_metric.get(&metadata.metric).is_some_and(|known| known.contains(metadata));
        if has(self) || has(new) {
            return Verdict::Known;
        }
        let known = descriptions(self) + descriptions(new);
        if known == 0 {
            let metrics = self.by_metric.len() + added_metrics;
            let is_over = metrics >= limits.max_metrics.unwrap_or(MAX_METRICS).min(MAX_METRICS);
            return if is_over { Verdict::OverMetrics } else { Verdict::NewMetric };
        }
        if known >= limits.max_per_metric.unwrap_or(MAX_PER_METRIC).min(MAX_PER_METRIC) {
            Verdict::OverPerMetric
        } else {
            Verdict::New
        }
    }

    /// The metrics behind a name, ascending, with their descriptions.
    pub(super) fn after(&self, from: Bound<&str>) -> impl Iterator<Item = (&String, &Vec<MetricMetadata>)> {
        self.by_metric.range::<str, _>((from, Bound::Unbounded))
    }

    pub(super) fn insert(&mut self, metadata: MetricMetadata) {
        let known = self.by_metric.entry(metadata.metric.clone()).or_default();
        if !known.contains(&metadata) {
            known.push(metadata);
        }
    }
}

impl Head {
    /// Stores metadata; only what is new is logged. It lives as long as the log keeps it: senders repeat theirs every
    /// minute.
    pub fn append_metadata(
        &self,
        wal: &Wal,
        metadata: &[MetricMetadata],
        limits: MetadataLimits,
    ) -> Result<MetadataOutcome, WalError> {
        let appender = self.appender.lock();
        let mut outcome = MetadataOutcome { accepted: 0, over_metrics: 0, over_per_metric: 0, lsn: Lsn(0) };
        let (mut new, mut added_metrics) = (MetadataStore::default(), 0);
        {
            let store = self.metadata.lock();
            for one in metadata {
                match store.judge(&new, added_metrics, one, limits) {
                    Verdict::Known => outcome.accepted += 1,
                    Verdict::OverMetrics => outcome.over_metrics += 1,
                    Verdict::OverPerMetric => outcome.over_per_metric += 1,
                    verdict @ (Verdict::New | Verdict::NewMetric) => {
                        added_metrics += usize::from(matches!(verdict, Verdict::NewMetric));
                        outcome.accepted += 1;
                        new.insert(one.clone());
                    }
                }
            }
        }
        let mut batch = WalBatch::default();
        outcome.lsn = loop {
            wal.begin(&mut batch, self.id, appender.generation);
            new.by_metric.values().flatten().for_each(|one| batch.metadata(one));
            match wal.commit(&mut batch) {
                Ok(lsn) => break lsn,
                Err(CommitError::Rotated) => {}
                Err(CommitError::Wal(error)) => return Err(error),
            }
        };
        let mut store = self.metadata.lock();
        new.by_metric.into_values().flatten().for_each(|one| store.insert(one));
        Ok(outcome)
    }

    /// Metadata of one metric, or of all, ascending by metric.
    pub fn metadata(&self, metric: Option<&str>) -> Vec<MetricMetadata> {
        let store = self.metadata.lock();
        match metric {
            Some(metric) => store.by_metric.get(metric).cloned().unwrap_or_default(),
            None => store.by_metric.values().flatten().cloned().collect(),
        }
    }
}
