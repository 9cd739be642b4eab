//! Settings of the cluster: gossip, this process' place in it, and its rings.

use std::time::Duration;

use crate::settings::{HostPort, Secret, settings};

settings! {
    /// How processes find each other: by gossip. Without `bind_address` this process is alone, and needs none of it.
    pub struct GossipSettings {
        /// Where this process gossips, on TCP and UDP. `none` starts no gossip: the process is alone.
        pub bind_address: Option<HostPort> = None,
        /// Where others reach that address, if it is another one; needed when `bind_address` is one like `0.0.0.0` and
        /// `instance.address` is not an IP address.
        pub advertise_address: Option<HostPort> = None,
        /// Processes to join (`host:port` of their gossip); names are looked up anew at each attempt, and every address
        /// behind a name is joined. One that lives is enough; the process itself may be among them.
        pub join_members: Vec<HostPort> = Vec::new(),
        /// Name of the cluster, checked on joining and on every message: two clusters never merge, even when an address
        /// of one is reused by the other.
        pub cluster_label: String = "skald".to_owned(),
        /// Key with which messages are signed. Whoever does not have it cannot join or change anything. Empty signs
        /// nothing.
        pub cluster_key: Secret = Secret::default(),
        /// How often what is new is sent on. Smaller spreads it faster, for more packets.
        pub gossip_interval: Duration = Duration::from_millis(200) => Duration::from_millis(10)..,
        /// To how many others at once.
        pub gossip_nodes: usize = 3 => 1..=100,
        /// How often everything is exchanged with one other process, so that what was lost on the way comes after all.
        pub pull_push_interval: Duration = Duration::from_secs(10) => Duration::from_millis(100)..,
        /// How often `join_members` are joined again, so that a cluster that fell apart finds together.
        pub rejoin_interval: Duration = Duration::from_secs(60) => Duration::from_millis(100)..,
        /// How long news take to reach everybody: a process that has started is ready so long after it told that it serves,
        /// one that stops serves on for so long, and a replica group that is new is written to after so long. At least the time a change needs to spread (0.3 s among 6 processes, 0.8 s
        /// among 60, 2.5 s among 600).
        pub announce_delay: Duration = Duration::from_secs(1),
        /// How long the first attempts to join may take before the process goes on without having met anyone.
        pub join_timeout: Duration = Duration::from_secs(10),
    }
}

settings! {
    /// This process, as the others see it.
    pub struct InstanceSettings {
        /// Its name: the same after a restart, and of no other process. For ingesters its number at the end decides the
        /// replica group: with zones `ingester-zone-a-3` is zone a's member of group 3; without, numbers that follow each
        /// other form groups. Empty takes the host's name.
        pub id: String = String::new(),
        /// The zone it runs in. Members of a replica group are in distinct zones when
        /// `ring.zone_awareness_enabled`; readers ask their own zone first.
        pub availability_zone: String = String::new(),
        /// Host name or IP address at which others reach it. Empty takes that of `server.grpc_listen_address`, which must
        /// then not be one like `0.0.0.0`.
        pub address: String = String::new(),
        /// The replica group of an ingester, instead of the number at the end of its id.
        pub replica_group: Option<u32> = None,
    }
}

settings! {
    /// The rings of the roles: who is in them and who counts as alive. The same in every process of a cluster.
    pub struct RingSettings {
        /// How many ingesters hold each series; a write needs a majority of them, and so does a read. A process without
        /// gossip is the only one, and takes 1.
        pub replication_factor: u16 = 3 => 1..=15,
        /// Whether the members of a replica group, and the store-gateways of a block, must be in distinct zones.
        pub zone_awareness_enabled: bool = false,
        /// How often each instance says that it is alive.
        pub heartbeat_period: Duration = Duration::from_secs(15) => Duration::from_millis(100)..,
        /// An instance nothing was heard of for so long counts as dead. It keeps what it owns until it is forgotten.
        pub heartbeat_timeout: Duration = Duration::from_secs(60) => Duration::from_millis(300)..,
        /// When a dead instance that keeps no data of its own (every role but the ingester) is forgotten. `none` keeps it
        /// until somebody forgets it on the ring's page.
        pub auto_forget_after: Option<Duration> = Some(Duration::from_secs(600)),
        /// How far apart the wall clocks of the cluster may be: for so much longer than ingesters hold what is written, groups
        /// are asked that have become read-only, or that a tenant's series went to before.
        pub clock_tolerance: Duration = skald_ring::observer::CLOCK_TOLERANCE,
        /// How many store-gateways serve each block.
        pub store_gateway_replication_factor: usize = 3 => 1..=15,
    }
    check |config| if config.heartbeat_timeout > config.heartbeat_period {
        Ok(())
    } else {
        Err(format!(
            "`heartbeat_timeout` ({:?}) must be longer than `heartbeat_period` ({:?}), better three times",
            config.heartbeat_timeout, config.heartbeat_period
        ))
    };
}
