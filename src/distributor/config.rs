//! Settings of the distributor itself; what one tenant may do stands in `limits.rs`.

use std::time::Duration;

use super::ha_tracker::HaTrackerConfig;
use crate::settings::{ByteSize, settings};

settings! {
    /// Takes remote write, checks it and sends it to the ingesters.
    pub struct Config {
        /// Largest write request, as it arrives and decompressed; more is answered with 413. Larger lets one request hold
        /// more memory.
        pub max_recv_msg_size: ByteSize = ByteSize::mib(100) => ByteSize::kib(1)..=ByteSize::mib(1024),
        /// Longest time an ingester may take to store a write; then the write counts as failed there, and is repeated by
        /// its sender when too few others have stored it. Shorter fails faster when an ingester hangs; too short fails
        /// writes that were only slow.
        pub remote_timeout: Duration = Duration::from_secs(10) => Duration::from_millis(10)..,
        /// Pairs of Prometheus that scrape the same.
        pub ha_tracker: HaTrackerConfig,
        /// What all tenants together may use of this process.
        pub instance_limits: InstanceLimits,
    }
}

settings! {
    /// What all tenants together may use of this distributor; beyond it, writes are answered with 503 and repeated later.
    pub struct InstanceLimits {
        /// Write requests being answered at the same time. `none` sets no limit.
        pub max_inflight_push_requests: Option<u64> = Some(2000) => 1..,
        /// Memory of the write requests being answered, compressed and decompressed bodies and what is decoded from them. A
        /// single request that takes more is answered with 413. `none` sets no limit.
        pub max_inflight_push_requests_bytes: Option<ByteSize> = Some(ByteSize::gib(1)) => ByteSize::mib(1)..,
    }
}
