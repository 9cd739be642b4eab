//! Skald's services and the binary's parts.
//!
//! One sample's way: [`distributor`] → [`ingester`] (head and log in `skald-tsdb`) → [`bucket`].
//! One query's way: [`query_frontend`] → (its turn by [`query_scheduler`]) → [`querier`] → [`ingester`] and
//! [`store_gateway`] → `skald-promql`.
//! [`app`] alone knows them all; services meet only at each other's `client.rs`, and find each other by [`membership`].

pub mod app;
pub mod bucket;
pub mod cli;
pub mod compactor;
pub mod config;
pub mod data_dir;
pub mod distributor;
pub mod error;
pub mod grpc;
pub mod http;
pub mod ingester;
pub mod limits;
pub mod logging;
pub mod membership;
pub mod querier;
pub mod query_frontend;
pub mod query_plan;
pub mod query_scheduler;
pub mod read_ahead;
pub mod runtime;
pub mod runtime_config;
pub mod select;
pub mod services;
pub mod settings;
pub mod store_gateway;
pub mod tenant;
pub mod tls;
pub mod tsdb_tool;
