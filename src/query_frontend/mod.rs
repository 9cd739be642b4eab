//! The query-frontend: Prometheus' query API over HTTP, answered by queriers.
//!
//! A request's way: [`params`] and [`reading`] read it, one of [`query`], [`labels`], [`expressions`] checks it and asks a
//! querier, and [`answer`] with [`value`], [`json`] and [`point_text`] writes what Prometheus would, large answers piece by
//! piece. [`queriers`] has the query-scheduler say whose turn it is. Queries are parsed and planned here and nowhere else; [`parts`] has one evaluated whole, or cut by series and
//! steps by several queriers.
//!
//! Absent on purpose: samples are never read here.

mod answer;
mod explain;
mod expressions;
mod join;
mod json;
mod labels;
pub(crate) mod params;
mod parts;
mod point_text;
pub mod queriers;
mod query;
mod reading;
mod value;

#[cfg(test)]
mod api_tests;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use skald_promql::parse::ParseOptions;

use crate::error::ServiceError;
use crate::limits::TenantLimits;
use crate::querier::client::QuerierClient;
use crate::runtime::Runtime;
use crate::settings::{ByteSize, settings};
use crate::tenant::TenantId;
use answer::Success;

settings! {
    /// The query-frontend: checks queries, bounds them, and hands them to queriers.
    pub struct Config {
        /// Query-schedulers to ask for queriers (`host:port` of their gRPC listeners), in turn. Empty uses the querier of this
        /// process.
        pub scheduler_addresses: Vec<String> = Vec::new(),
        /// Queries that read only samples younger than this wait by themselves, and a quarter of the queriers is kept for
        /// them: slow queries of old ranges do not hold them up. Best what ingesters hold in memory.
        pub recent_queries_within: Duration = Duration::from_secs(12 * 3600),
        /// Longest time one query may take; a request's `timeout` parameter can only shorten it.
        pub query_timeout: Duration = Duration::from_secs(120) => Duration::from_millis(1)..=Duration::from_secs(86_400),
        /// How far an instant selector looks back for a sample, unless the request names another `lookback_delta`.
        pub lookback_delta: Duration = Duration::from_secs(300) => Duration::from_millis(1)..,
        /// Most points per series a range query may ask for.
        pub max_points_per_series: u64 = 11_000 => 1..,
        /// Shards that the aggregations of a query are cut into by series, each evaluated by the querier whose turn it
        /// is: one query then uses several queriers. Only queries whose series all go through such aggregations
        /// (`sum`, `avg`, `min`, `max`, `count`, `group`) are cut; sums of floats may differ in their last digits. Each
        /// shard asks every ingester and store-gateway, so more shards cost more requests. 0 is off: a querier already
        /// uses all its cores.
        pub query_shards: u32 = 0 => 0..=256,
        /// Cut range queries at the multiples of this interval into parts that queriers evaluate at the same time.
        /// Smaller intervals spread long queries wider, but samples near the cuts are read twice. `none` is off.
        pub split_interval: Option<Duration> = None,
        /// Parts and shards of one query that are evaluated at the same time.
        pub max_parts_at_once: usize = 16 => 1..=1000,
        /// Most bytes a query may hold in the query-frontend while its parts or shards are put together. `none` is no
        /// limit.
        pub query_memory_limit: Option<ByteSize> = Some(ByteSize::gib(1)),
    }
    check |config| match config.split_interval {
        Some(interval) if interval < Duration::from_secs(1) => {
            Err(format!("`split_interval` ({interval:?}) must be at least 1s"))
        }
        _ => Ok(()),
    };
}

settings! {
    /// What of PromQL a tenant may use that Prometheus 3.14 has behind feature flags.
    pub struct Limits {
        /// Allow functions and aggregations that Prometheus marks as experimental.
        pub promql_experimental_functions: bool = false,
        /// Allow arithmetic in durations, such as `[5m * 2]` or `[step()]`.
        pub promql_duration_expressions: bool = false,
        /// Allow `smoothed` and `anchored` on range selectors.
        pub promql_extended_range_selectors: bool = false,
        /// Allow `fill`, `fill_left` and `fill_right` on binary operators.
        pub promql_binary_fill_modifiers: bool = false,
        /// Drop metric names at the end of an evaluation instead of at once, so that `by (__name__)` still sees them.
        pub promql_delayed_name_removal: bool = false,
    }
}

settings! {
    /// How PromQL is evaluated.
    pub struct PromqlConfig {
        /// Step of subqueries that name none.
        pub default_subquery_step: Duration = Duration::from_secs(60) => Duration::from_millis(1)..,
    }
}

impl Limits {
    /// What the parser is to understand of the tenant's queries.
    pub fn parse_options(&self) -> ParseOptions {
        ParseOptions {
            experimental_functions: self.promql_experimental_functions,
            duration_expressions: self.promql_duration_expressions,
            extended_selectors: self.promql_extended_range_selectors,
            binary_fill_modifiers: self.promql_binary_fill_modifiers,
        }
    }
}

/// The query-frontend of a process.
pub struct QueryFrontend {
    config: Config,
    promql: PromqlConfig,
    limits: TenantLimits,
    multitenancy_enabled: bool,
    queriers: Arc<dyn QuerierClient>,
    runtime: Runtime,
}

impl QueryFrontend {
    /// A query-frontend that asks these queriers.
    pub fn new(
        config: Config,
        promql: PromqlConfig,
        limits: TenantLimits,
        multitenancy_enabled: bool,
        queriers: Arc<dyn QuerierClient>,
        runtime: Runtime,
    ) -> Self {
        Self { config, promql, limits, multitenancy_enabled, queriers, runtime }
    }

    /// What of PromQL a tenant may use.
    fn limits(&self, tenant: &TenantId) -> Limits {
        self.limits.of(tenant).query_frontend.clone()
    }

    /// The queriers as one.
    fn querier(&self) -> &dyn QuerierClient {
        self.queriers.as_ref()
    }

    /// The response to an outcome.
    async fn respond(&self, outcome: Result<Success, ServiceError>) -> Response {
        answer::respond(outcome, &self.runtime, self.config.query_timeout).await
    }

    /// The API's routes, without the configured prefix.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/api/v1/query", get(query::instant).post(query::instant))
            .route("/api/v1/query_range", get(query::range).post(query::range))
            .route("/api/v1/query_exemplars", get(labels::exemplars).post(labels::exemplars))
            .route("/api/v1/labels", get(labels::names).post(labels::names))
            .route("/api/v1/label/{name}/values", get(labels::values))
            .route("/api/v1/series", get(labels::series).post(labels::series))
            .route("/api/v1/metadata", get(labels::metadata))
            .route("/api/v1/format_query", get(expressions::format).post(expressions::format))
            .route("/api/v1/parse_query", get(expressions::parse).post(expressions::parse))
            .route("/api/v1/status/buildinfo", get(expressions::build_info))
            .route("/api/v1/rules", get(expressions::rules))
            .route("/api/v1/alerts", get(expressions::alerts))
            .with_state(self)
    }
}
