//! Labels, series, exemplars and metadata from the same sources as samples, and the querier's client trait.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::{BoxFuture, try_join_all};
use skald_model::{Labels, MetricMetadata};
use skald_promql::eval::{CancelOnDrop, Interrupt};
use ulid::Ulid;

use super::Querier;
use super::client::{FragmentReply, QuerierClient, QueryReply, QueryRequest};
use super::replicas::{ask_quorum, candidates};
use super::sources::sources;
use super::store::ask_blocks;
use crate::error::ServiceError;
use crate::ingester::client::IngesterClient;
use crate::select::{LabelRequest, RequestBounds, SeriesExemplars};
use crate::store_gateway::client::{FromBlocks, StoreGatewayClient};
use crate::tenant::TenantId;

impl Querier {
    /// Asks a quorum of every ingester group.
    async fn ask_ingesters<T>(
        &self,
        tenant: &TenantId,
        ask: impl Fn(Arc<dyn IngesterClient>) -> BoxFuture<'static, Result<T, ServiceError>>,
    ) -> Result<Vec<T>, ServiceError> {
        let groups = candidates(&self.shared, tenant)?;
        let asking = groups.into_iter().map(|group| ask_quorum(&self.shared, group, &ask));
        Ok(try_join_all(asking).await?.into_iter().flat_map(|answered| answered.answers).collect())
    }

    /// The union of what ingesters and blocks answer, ascending.
    async fn union<T, S>(
        &self,
        tenant: &TenantId,
        request: &LabelRequest,
        ask_ingester: impl Fn(Arc<dyn IngesterClient>, LabelRequest) -> BoxFuture<'static, Result<Vec<T>, ServiceError>>,
        ask_store: impl Fn(Arc<dyn StoreGatewayClient>, Vec<Ulid>, LabelRequest) -> S,
    ) -> Result<Vec<T>, ServiceError>
    where
        T: Ord,
        S: Future<Output = Result<FromBlocks<Vec<T>>, ServiceError>>,
    {
        let sources = sources(&self.shared.config, request.range, self.shared.runtime.clock.now_ms());
        let interrupt = Interrupt::default();
        let _cancel = CancelOnDrop(interrupt.clone());
        let bounds =
            RequestBounds::of_labels(interrupt, request.bounds.deadline(), self.shared.config.query_memory_limit);
        let request = &LabelRequest { bounds, ..request.clone() };
        let recent = async {
            match sources.ingesters {
                None => Ok(Vec::new()),
                Some(_) => self.ask_ingesters(tenant, |ingester| ask_ingester(ingester, request.clone())).await,
            }
        };
        let stored = async {
            let Some(range) = sources.store else { return Ok(Vec::new()) };
            let blocks = self.shared.blocks.blocks(tenant, range).await?;
            if blocks.is_empty() {
                return Ok(Vec::new());
            }
            ask_blocks(&self.shared, tenant, blocks, |gateway, blocks| ask_store(gateway, blocks, request.clone()))
                .await
        };
        let stored = async {
            match stored.await {
                Err(error) if sources.store_is_optional => {
                    tracing::warn!(%tenant, %error, "object storage was not asked for labels");
                    Ok(Vec::new())
                }
                answer => answer,
            }
        };
        let (recent, stored) = futures::try_join!(recent, stored)?;
        let mut lists: Vec<Vec<T>> = recent.into_iter().chain(stored).filter(|list| !list.is_empty()).collect();
        let mut all = match lists.len() {
            0 | 1 => lists.pop().unwrap_or_default(),
            _ => {
                let mut all: Vec<T> = lists.into_iter().flatten().collect();
                // Finds the lists, which ascend, and merges them.
                all.sort();
                all.dedup();
                all
            }
        };
        all.truncate(request.limit.unwrap_or(usize::MAX));
        Ok(all)
    }
}

#[async_trait]
impl QuerierClient for Querier {
    async fn query(&self, tenant: &TenantId, request: QueryRequest) -> Result<QueryReply, ServiceError> {
        self.evaluate(tenant, request).await
    }

    async fn fragment(&self, tenant: &TenantId, request: QueryRequest) -> Result<FragmentReply, ServiceError> {
        self.evaluate_fragment(tenant, request).await
    }

    async fn label_names(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<String>, ServiceError> {
        self.union(
            tenant,
            &request,
            |ingester, request| {
                let tenant = tenant.clone();
                Box::pin(async move { ingester.label_names(&tenant, request).await })
            },
            |gateway, blocks, request| async move { gateway.label_names(tenant, blocks, request).await },
        )
        .await
    }

    async fn label_values(
        &self,
        tenant: &TenantId,
        name: &str,
        request: LabelRequest,
    ) -> Result<Vec<String>, ServiceError> {
        self.union(
            tenant,
            &request,
            |ingester, request| {
                let (tenant, name) = (tenant.clone(), name.to_owned());
                Box::pin(async move { ingester.label_values(&tenant, &name, request).await })
            },
            |gateway, blocks, request| async move { gateway.label_values(tenant, blocks, name, request).await },
        )
        .await
    }

    async fn series(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        self.union(
            tenant,
            &request,
            |ingester, request| {
                let tenant = tenant.clone();
                Box::pin(async move { ingester.series(&tenant, request).await })
            },
            |gateway, blocks, request| async move { gateway.series(tenant, blocks, request).await },
        )
        .await
    }

    async fn exemplars(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        let asking = |ingester: Arc<dyn IngesterClient>| -> BoxFuture<'static, _> {
            let (tenant, request) = (tenant.clone(), request.clone());
            Box::pin(async move { ingester.exemplars(&tenant, request).await })
        };
        let answers = self.ask_ingesters(tenant, asking).await?;
        let mut all: Vec<SeriesExemplars> = answers.into_iter().flatten().collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        let mut merged: Vec<SeriesExemplars> = Vec::with_capacity(all.len());
        for one in all {
            match merged.last_mut() {
                Some(last) if last.labels == one.labels => last.exemplars.extend(one.exemplars),
                _ => merged.push(one),
            }
        }
        for series in &mut merged {
            series.exemplars.sort_by(|a, b| (a.timestamp, &a.labels).cmp(&(b.timestamp, &b.labels)));
            series.exemplars.dedup_by(|a, b| {
                a.timestamp == b.timestamp && a.labels == b.labels && a.value.to_bits() == b.value.to_bits()
            });
        }
        Ok(merged)
    }

    async fn metadata(&self, tenant: &TenantId, metric: Option<&str>) -> Result<Vec<MetricMetadata>, ServiceError> {
        let asking = |ingester: Arc<dyn IngesterClient>| -> BoxFuture<'static, _> {
            let (tenant, metric) = (tenant.clone(), metric.map(str::to_owned));
            Box::pin(async move { ingester.metadata(&tenant, metric.as_deref()).await })
        };
        let answers = self.ask_ingesters(tenant, asking).await?;
        let key = |m: &MetricMetadata| (m.metric.clone(), m.metric_type as u8, m.help.clone(), m.unit.clone());
        let mut seen = BTreeSet::new();
        let mut all: Vec<MetricMetadata> = answers.into_iter().flatten().filter(|m| seen.insert(key(m))).collect();
        all.sort_by_cached_key(key);
        Ok(all)
    }
}
