//! Placement: who the members of a ring are, and which of them holds what.
//!
//! A [`RingState`] is what is gossiped: [`instance`]s' descriptions with versions that merge in any order. An [`Observer`]
//! judges by one process' own clock who lives. From both follow the [`ReplicaGroups`], an immutable view of ingesters:
//! which groups take series or only answer, who has a quorum, and the [`Subring`] of each tenant.
//!
//! Roles that own blocks or jobs have an [`InstanceRing`] instead, where each instance has tokens of its own. A [`Lifecycle`]
//! is an instance's own part: registering, heartbeats, leaving.
//!
//! States are spread by a [`Store`]: [`Replica`]s that merge what they hear, over gossip, over a simulated network, or alone.
//!
//! A series' [`token`] is a point of a space of 2³² tokens. [`ranges`] divides that space evenly among numbered groups, as
//! a pure function of how many there are; a [`Ring`] looks tokens up in it.
//!
//! Absent on purpose: clocks, randomness and sockets, which are arguments; settings; what is stored on an instance.

pub mod clock;
pub mod codec;
pub mod group;
pub mod instance;
pub mod instance_ring;
pub mod lifecycle;
pub mod observer;
pub mod ranges;
pub mod replica_groups;
pub mod ring;
pub mod state;
pub mod store;
pub mod subring;
pub mod token;
pub mod value;

pub use self::ring::{GroupId, MAX_GROUPS, Ring, RingError};
pub use clock::{ClockCheck, ClockState};
pub use group::{GroupRules, Membership, MembershipError};
pub use instance::{Build, Instance, InstanceId, InstanceState};
pub use instance_ring::{InstanceRing, InstanceRingRules, Operation, ReplicaSet, key_token};
pub use lifecycle::{
    AutoForget, Lifecycle, LifecycleEvent, ScaleIn, ScaleInError, Step, prepare_scale_in, remove_group,
    scale_in_progress,
};
pub use observer::{Member, Now, Observer, members};
pub use replica_groups::{Claim, Conflict, GroupState, GroupView, ReplicaGroups};
pub use state::{GroupMode, GroupRegister, Heartbeat, Registration, RingState, Tombstone, Version};
pub use store::{Cluster, Replica, Store};
pub use subring::{Positions, Subring};
pub use token::{Token, metadata_token, series_token};
pub use value::Value;
