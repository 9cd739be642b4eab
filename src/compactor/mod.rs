//! The compactor: tends the blocks in object storage. Today that is the bucket index of every tenant.
//!
//! Reading order: [`index_update`] makes one tenant's index anew; [`service`] does so for every tenant, again and again;
//! [`admin`] does so on demand; [`metrics`] tells how it goes. All state is in the bucket: any number of compactors may run, and one may be killed at any
//! moment.
//!
//! Absent on purpose: nothing here removes or rewrites a block.

mod admin;
mod config;
mod index_update;
mod metrics;
mod service;

#[cfg(test)]
mod tests;

pub use admin::routes;
pub use config::Config;
pub use index_update::{IndexUpdate, update_bucket_index};
pub use service::{Compactor, Ownership};
