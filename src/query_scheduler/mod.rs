//! The query-scheduler: whose turn it is to use which querier.
//!
//! A query-frontend asks for a [`client::Turn`] and waits in its tenant's [`queue`]; queriers offer slots for as long as they are
//! connected. Who gets a turn calls its querier directly: plans and answers take one hop each, stream with the connection's own
//! back-pressure, and end with it when either side goes away. The turn is a call to the scheduler that stays open as long as
//! the query runs, so whoever dies gives back what it held. A scheduler that dies takes no running query along.
//!
//! Absent on purpose: plans, samples and answers never come here.

pub mod client;
pub mod grpc;
mod queue;
mod remote;
mod service;

#[cfg(test)]
mod tests;

pub use remote::{Addresses, Schedulers};
pub use service::{Metrics, Offered, Scheduler};

use crate::settings::settings;

settings! {
    /// The query-scheduler: shares the queriers fairly among tenants.
    pub struct Config {
        /// Requests to queriers that one tenant may have waiting in one query-scheduler: its queries, or the parts and shards
        /// they are cut into. Further ones are answered with 429 (`too-many-outstanding-requests`).
        pub max_outstanding_requests_per_tenant: usize = 800 => 1..,
    }
}
