//! Settings of the compactor.

use std::time::Duration;

use crate::settings::settings;

settings! {
    /// The role that tends the blocks in object storage.
    pub struct Config {
        /// How often each tenant's bucket index is made anew. Queries see a block once it is in there, so smaller finds new
        /// blocks sooner and lets ingesters drop theirs sooner; each round costs two listings, one read and one write per
        /// tenant. Where requests cost money and tenants are many, `15m` is enough.
        pub cleanup_interval: Duration = Duration::from_secs(60) => Duration::from_secs(1)..,
        /// How many tenants are worked on at once. A tenant whose part of the bucket hangs takes one place, no more.
        pub cleanup_concurrency: usize = 20 => 1..=1000,
        /// How many blocks' `meta.json` are read at once for one tenant.
        pub meta_sync_concurrency: usize = 20 => 1..=1000,
    }
}
