//! Placement: who the members of a ring are, and which of them holds what.
//!
//! From the outside in: a [`state::RingState`] is what is gossiped, [`instance`]s' descriptions with versions that merge
//! in any order. A series' [`token`] is a point of a space of 2³² tokens. [`ranges`] divides that space evenly among
//! numbered groups, as a pure function of how many there are; [`ring`] is the immutable snapshot services look tokens up in.
//!
//! Absent on purpose: clocks, randomness and sockets, which are arguments; settings; what is stored on an instance.

pub mod codec;
pub mod group;
pub mod instance;
pub mod ranges;
pub mod ring;
pub mod state;
pub mod token;
pub mod value;

pub use group::{GroupRules, Membership, MembershipError};
pub use instance::{Build, Instance, InstanceId, InstanceState};
pub use ring::{GroupId, MAX_GROUPS, Ring, RingError};
pub use state::{GroupMode, GroupRegister, Heartbeat, Registration, RingState, Tombstone, Version};
pub use token::{Token, metadata_token, series_token};
pub use value::Value;
