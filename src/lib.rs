//! Skald's services and the binary's parts.
//!
//! One sample's way: [`distributor`] → [`ingester`] (head and log in `skald-tsdb`) → [`bucket`].
//! One query's way: [`query_frontend`] → [`querier`] → [`ingester`] and [`store_gateway`] → `skald-promql`.
//! [`app`] alone knows them all; services meet only at each other's `client.rs`.

pub mod error;
pub mod ingester;
pub mod runtime;
pub mod select;
pub mod store_gateway;
pub mod tenant;
