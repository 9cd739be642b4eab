//! Labels, series, exemplars and metadata from the same sources as samples, and the querier's client trait.

use std::collections::BTreeSet;
use std::future::Future;

use async_trait::async_trait;
use futures::future::join_all;
use skald_model::{Labels, MetricMetadata};
use skald_promql::eval::{CancelOnDrop, Interrupt};
use ulid::Ulid;

use super::Querier;
use super::client::{FragmentReply, QuerierClient, QueryReply, QueryRequest};
use super::select::{check_served, no_store_gateway, store_gateways};
use super::sources::sources;
use crate::error::ServiceError;
use crate::ingester::client::IngesterClient;
use crate::select::{LabelRequest, RequestBounds, SeriesExemplars};
use crate::store_gateway::client::{FromBlocks, StoreGatewayClient};
use crate::tenant::TenantId;

impl Querier {
    /// Asks every member of every ingester group; of each group at most a minority may fail.
    async fn ask_ingesters<'a, T, F>(
        &'a self,
        ask: impl Fn(&'a dyn IngesterClient) -> F,
    ) -> Result<Vec<T>, ServiceError>
    where
        F: Future<Output = Result<T, ServiceError>>,
    {
        let groups = self.shared.ingesters.iter().map(|group| {
            let answers = join_all(group.members.iter().map(|member| ask(member.as_ref())));
            async move { (group.tolerated_failures(), answers.await) }
        });
        let mut all = Vec::new();
        for (mut left, answers) in join_all(groups).await {
            for answer in answers {
                match answer {
                    Ok(answer) => all.push(answer),
                    Err(_) if left > 0 => left -= 1,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(all)
    }

    /// Asks store-gateways in turn until one has read every block.
    async fn ask_store<'a, T, F>(
        &'a self,
        blocks: &[Ulid],
        ask: impl Fn(&'a dyn StoreGatewayClient) -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<FromBlocks<T>, ServiceError>>,
    {
        let mut last = no_store_gateway();
        for gateway in store_gateways(&self.shared, blocks) {
            let answer = ask(gateway.as_ref()).await;
            match answer.and_then(|answer| check_served(blocks, &answer.served).map(|()| answer.value)) {
                Ok(value) => return Ok(value),
                Err(error) if error.kind.is_retryable() => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The union of what ingesters and blocks answer, ascending.
    async fn union<'a, T, I, S>(
        &'a self,
        tenant: &TenantId,
        request: &LabelRequest,
        ask_ingester: impl Fn(&'a dyn IngesterClient, LabelRequest) -> I,
        ask_store: impl Fn(&'a dyn StoreGatewayClient, Vec<Ulid>, LabelRequest) -> S,
    ) -> Result<Vec<T>, ServiceError>
    where
        T: Ord,
        I: Future<Output = Result<Vec<T>, ServiceError>>,
        S: Future<Output = Result<FromBlocks<Vec<T>>, ServiceError>>,
    {
        let sources = sources(&self.shared.config, request.range, self.shared.runtime.clock.now_ms());
        let interrupt = Interrupt::default();
        let _cancel = CancelOnDrop(interrupt.clone());
        let bounds = RequestBounds::of_labels(interrupt, self.shared.config.query_memory_limit);
        let request = &LabelRequest { bounds, ..request.clone() };
        let recent = async {
            match sources.ingesters {
                None => Ok(Vec::new()),
                Some(_) => self.ask_ingesters(|ingester| ask_ingester(ingester, request.clone())).await,
            }
        };
        let stored = async {
            let Some(range) = sources.store else { return Ok(Vec::new()) };
            let blocks = self.shared.blocks.blocks(tenant, range).await?;
            if blocks.is_empty() {
                return Ok(Vec::new());
            }
            self.ask_store(&blocks, |gateway| ask_store(gateway, blocks.clone(), request.clone())).await
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
        let mut lists: Vec<Vec<T>> = recent.into_iter().chain([stored]).filter(|list| !list.is_empty()).collect();
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
            |ingester, request| ingester.label_names(tenant, request),
            |gateway, blocks, request| gateway.label_names(tenant, blocks, request),
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
            |ingester, request| ingester.label_values(tenant, name, request),
            |gateway, blocks, request| gateway.label_values(tenant, blocks, name, request),
        )
        .await
    }

    async fn series(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<Labels>, ServiceError> {
        self.union(
            tenant,
            &request,
            |ingester, request| ingester.series(tenant, request),
            |gateway, blocks, request| gateway.series(tenant, blocks, request),
        )
        .await
    }

    async fn exemplars(&self, tenant: &TenantId, request: LabelRequest) -> Result<Vec<SeriesExemplars>, ServiceError> {
        let answers = self.ask_ingesters(|ingester| ingester.exemplars(tenant, request.clone())).await?;
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
        let answers = self.ask_ingesters(|ingester| ingester.metadata(tenant, metric)).await?;
        let key = |m: &MetricMetadata| (m.metric.clone(), m.metric_type as u8, m.help.clone(), m.unit.clone());
        let mut seen = BTreeSet::new();
        let mut all: Vec<MetricMetadata> = answers.into_iter().flatten().filter(|m| seen.insert(key(m))).collect();
        all.sort_by_cached_key(key);
        Ok(all)
    }
}
