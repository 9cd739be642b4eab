//! The distributor: takes writes, checks them, and sends each series to the ingesters that hold it.
//!
//! A write visits the files in this order:
//!
//! ```text
//! remote_write   headers, tenant, size            405 415 401 413
//!   in_flight    bytes of this instance           503
//!   rate_limit   requests of the tenant           429
//!   (decode)     skald_proto::remote_write        400
//!   ha_tracker   one replica of each pair          202 when nothing is left
//!   relabel      the tenant's own rules
//!   validate     labels, times, histograms        400 for what is bad, the rest goes on
//!   rate_limit   samples of the tenant            429
//!   shard        series by replica group
//!   replicate    to each group's ingesters, or another group's; 503 when none has a quorum
//! ```
//!
//! Bad parts are dropped and counted ([`rejections`]), good ones written; then the answer is 400 with the first reason.
//! 4xx says that a retry cannot help, 429 and 5xx that it can.
//!
//! Absent on purpose: anything stored. A distributor can be replaced by an empty one at any time.

mod config;
mod ha_tracker;
mod in_flight;
mod limits;
mod metrics;
mod push;
mod rate_limit;
mod rejections;
mod relabel;
mod remote_write;
mod replicate;
mod shard;
mod tenants;
mod validate;

#[cfg(test)]
mod tests;

pub use config::{Config, InstanceLimits};
pub use ha_tracker::{Elections, HaTracker};
pub use limits::{Limits, NameValidation};
pub use push::{Distributor, LiveDistributors};
pub use relabel::RelabelRules;
pub use remote_write::routes;
