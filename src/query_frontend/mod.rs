//! The query-frontend: Prometheus' query API over HTTP, answered by queriers.
//!
//! A request's way: [`params`] reads it, one of [`query`], [`labels`], [`expressions`] checks it and asks a querier, and
//! [`answer`] with [`json`] writes what Prometheus would, large answers piece by piece. Queries are parsed and planned
//! here and nowhere else.
//!
//! Absent on purpose: samples are never read here.

mod answer;
mod expressions;
mod json;
mod labels;
mod params;
mod query;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use axum::routing::get;
use skald_promql::parse::ParseOptions;

use crate::error::ServiceError;
use crate::querier::client::QuerierClient;
use crate::runtime::Runtime;
use crate::settings::settings;
use answer::Success;

settings! {
    /// The query-frontend: checks queries, bounds them, and hands them to queriers.
    pub struct Config {
        /// Queriers to ask (`host:port` of their gRPC listeners), in turn. Empty asks the querier of this process.
        pub querier_addresses: Vec<String> = Vec::new(),
        /// Longest time one query may take; a request's `timeout` parameter can only shorten it.
        pub query_timeout: Duration = Duration::from_secs(120) => Duration::from_millis(1)..=Duration::from_secs(86_400),
        /// How far an instant selector looks back for a sample, unless the request names another `lookback_delta`.
        pub lookback_delta: Duration = Duration::from_secs(300) => Duration::from_millis(1)..,
        /// Most points per series a range query may ask for.
        pub max_points_per_series: u64 = 11_000 => 1..,
    }
}

settings! {
    /// The dialect of PromQL. By default what Prometheus 3.14 understands without feature flags.
    pub struct PromqlConfig {
        /// Allow functions and aggregations that Prometheus marks as experimental.
        pub experimental_functions: bool = false,
        /// Allow arithmetic in durations, such as `[5m * 2]` or `[step()]`.
        pub duration_expressions: bool = false,
        /// Allow `smoothed` and `anchored` on range selectors.
        pub extended_range_selectors: bool = false,
        /// Allow `fill`, `fill_left` and `fill_right` on binary operators.
        pub binary_fill_modifiers: bool = false,
        /// Drop metric names at the end of an evaluation instead of at once, so that `by (__name__)` still sees them.
        pub delayed_name_removal: bool = false,
        /// Step of subqueries that name none.
        pub default_subquery_step: Duration = Duration::from_secs(60) => Duration::from_millis(1)..,
    }
}

impl PromqlConfig {
    /// What the parser is to understand.
    pub fn parse_options(&self) -> ParseOptions {
        ParseOptions {
            experimental_functions: self.experimental_functions,
            duration_expressions: self.duration_expressions,
            extended_selectors: self.extended_range_selectors,
            binary_fill_modifiers: self.binary_fill_modifiers,
        }
    }
}

/// The query-frontend of a process.
pub struct QueryFrontend {
    config: Config,
    promql: PromqlConfig,
    parse_options: ParseOptions,
    multitenancy_enabled: bool,
    queriers: Vec<Arc<dyn QuerierClient>>,
    /// Which querier is asked next.
    turn: AtomicUsize,
    runtime: Runtime,
}

impl QueryFrontend {
    /// A query-frontend that asks these queriers in turn.
    ///
    /// # Panics
    /// Without any querier.
    pub fn new(
        config: Config,
        promql: PromqlConfig,
        multitenancy_enabled: bool,
        queriers: Vec<Arc<dyn QuerierClient>>,
        runtime: Runtime,
    ) -> Self {
        assert!(!queriers.is_empty(), "a query-frontend needs a querier");
        let parse_options = promql.parse_options();
        Self { config, promql, parse_options, multitenancy_enabled, queriers, turn: AtomicUsize::new(0), runtime }
    }

    /// The querier whose turn it is.
    fn querier(&self) -> &dyn QuerierClient {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.queriers[turn % self.queriers.len()].as_ref()
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
            .with_state(self)
    }
}
