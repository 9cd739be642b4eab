//! Plans, and what parts of them yield, as messages between the query-frontend and queriers.
//!
//! [`encode()`] and [`decode()`] turn a plan into bytes and back, without loss; [`names`] are the words for its operations;
//! [`fragment`] and [`said`] do the same for partial results and for what is said about answers. `proto/proto/plan.proto`
//! has the messages. A plan from another process is bounded like a query's text, and checked, before anything is made
//! of it.

mod decode;
mod encode;
pub mod fragment;
mod names;
pub mod said;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use skald_promql::plan::Plan;

use crate::error::ServiceError;
pub use decode::decode;
pub use encode::encode;

/// Version of the plans written here. It grows with every change that an older reader would misunderstand.
const VERSION: u32 = 1;

/// Largest plan taken, in bytes: some times what the largest query needs.
pub const MAX_PLAN_BYTES: usize = 32 << 20;

/// A plan on its way: shared within a process, bytes between processes.
#[derive(Debug, Clone)]
pub enum SentPlan {
    /// Made in this process.
    Here(Arc<Plan>),
    /// As it arrived; decoding it is work for the query pool.
    Encoded(Bytes),
}

impl SentPlan {
    /// The plan itself, ready to run.
    pub fn ready(self) -> Result<Arc<Plan>, ServiceError> {
        match self {
            Self::Here(plan) => Ok(plan),
            Self::Encoded(bytes) => decode(bytes).map(Arc::new),
        }
    }

    /// Its bytes.
    pub fn encoded(self) -> Bytes {
        match self {
            Self::Here(plan) => encode(&plan),
            Self::Encoded(bytes) => bytes,
        }
    }
}
