//! What a process is given from outside: time, chance, threads, the network, gossip.
//!
//! Everything here is a constructor argument of whoever needs it, so that a whole cluster can run under a seeded
//! simulation; `clippy.toml` bans the direct calls elsewhere. The disk's seam is [`skald_tsdb::disk`].

pub mod clock;
pub mod crew;
pub mod gossip;
pub mod net;
pub mod pool;
pub mod rng;

use std::sync::Arc;

pub use clock::{Clock, ManualClock, SystemClock};
pub use crew::Crew;
pub use gossip::{Gossiping, SocketGossip};
pub use net::{BoxIo, Listener, MemNet, Net, TcpNet};
pub use pool::{Pool, PoolTask};
pub use rng::Rng;

/// The seams of one process, bundled because most services need several.
#[derive(Clone)]
pub struct Runtime {
    /// Wall and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<Rng>,
    /// Files.
    pub disk: Arc<dyn skald_tsdb::disk::Disk>,
    /// Sockets.
    pub net: Arc<dyn Net>,
    /// How the others are met.
    pub gossip: Arc<dyn Gossiping>,
    /// Object storage in place of the one that the settings name, which is outside of the process, too.
    pub bucket: Option<Arc<dyn crate::bucket::Bucket>>,
    /// CPU work of the write path.
    pub ingest_pool: Pool,
    /// CPU work of queries.
    pub query_pool: Pool,
    /// CPU work nobody waits for: flushes, merges.
    pub background_pool: Pool,
}
