//! What an instance says about itself.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::codec::{DecodeError, Reader, put_bytes, put_uvarint, put_varint};
use crate::group::Membership;
use crate::ring::{GroupId, MAX_GROUPS};

/// Longest id of an instance in bytes.
pub const MAX_ID_LENGTH: usize = 128;
/// Longest address in bytes.
pub const MAX_ADDRESS_LENGTH: usize = 256;
/// Longest name of a zone in bytes.
pub const MAX_ZONE_LENGTH: usize = 64;
/// Most bytes of fields that only newer builds know.
pub const MAX_UNKNOWN_LENGTH: usize = 128;
/// Longest name of a build in bytes.
pub const MAX_BUILD_LENGTH: usize = 64;

/// Name of a member of a ring, the same after a restart (`ingester-zone-a-3`). 1 to [`MAX_ID_LENGTH`] bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// Checks `id`.
    pub fn new(id: &str) -> Result<Self, InvalidInstance> {
        within("instance id", id, MAX_ID_LENGTH)?;
        if id.is_empty() { Err(InvalidInstance::EmptyId) } else { Ok(Self(id.into())) }
    }

    /// As a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number at the end of the id, as a StatefulSet gives it: 3 of `ingester-zone-a-3`.
    pub fn ordinal(&self) -> Option<u32> {
        let digits = &self.0[self.0.rfind('-')? + 1..];
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
    }
}

impl Borrow<str> for InstanceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A description nobody can take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInstance {
    /// An instance without a name.
    #[error("the instance id is empty")]
    EmptyId,
    /// A text beyond its limit, which keeps any description within one packet.
    #[error("the {what} has {length} bytes, the limit is {limit}")]
    TooLong {
        /// Which text.
        what: &'static str,
        /// Its bytes.
        length: usize,
        /// Most bytes it may have.
        limit: usize,
    },
}

fn within(what: &'static str, text: &str, limit: usize) -> Result<(), InvalidInstance> {
    let length = text.len();
    if length > limit { Err(InvalidInstance::TooLong { what, length, limit }) } else { Ok(()) }
}

/// Where an instance is in its life.
///
/// ```text
/// Pending ──► Joining ──► Active ──► Leaving ──► Left
///                            ▲          │ (a stop that was called off)
///                            └──────────┘
/// ```
/// An instance that crashed stays in the state it was last in and is told by its heartbeat; that one restarts begins anew
/// with Pending under a higher incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstanceState {
    /// Registered; nothing is asked of it yet.
    Pending,
    /// Catching up: replaying, loading, repairing.
    Joining,
    /// At work.
    Active,
    /// Stopping: takes nothing new.
    Leaving,
    /// Gone for good, on its own accord. Owns nothing.
    Left,
}

impl InstanceState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Joining, Self::Active, Self::Leaving, Self::Left];
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "PENDING",
            Self::Joining => "JOINING",
            Self::Active => "ACTIVE",
            Self::Leaving => "LEAVING",
            Self::Left => "LEFT",
        })
    }
}

/// Which build an instance runs, for rings in the middle of a roll.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Build {
    /// For people; at most [`MAX_BUILD_LENGTH`] bytes.
    pub name: String,
    /// Oldest and newest version of the protocols between services that it speaks.
    pub oldest_protocol: u32,
    /// See [`Build::oldest_protocol`].
    pub newest_protocol: u32,
}

impl Build {
    /// The newest protocol version that both speak.
    pub fn common_protocol(&self, other: &Self) -> Option<u32> {
        let newest = self.newest_protocol.min(other.newest_protocol);
        (newest >= self.oldest_protocol.max(other.oldest_protocol)).then_some(newest)
    }
}

/// What an instance says about itself. Only the instance writes it; tokens are not part of it, they follow from group or id.
///
/// Which role it has is told by the ring it is in: each role has one of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// Its name.
    pub id: InstanceId,
    /// Where it is in its life.
    pub state: InstanceState,
    /// `host:port` of its gRPC server.
    pub grpc_address: String,
    /// `host:port` of its HTTP server.
    pub http_address: String,
    /// Availability zone; empty when there are none.
    pub zone: String,
    /// The replica group it belongs to, for roles that have such.
    pub membership: Option<Membership>,
    /// Wall time of its first registration, Unix milliseconds. For people and lookbacks, never for ordering.
    pub registered_at_ms: i64,
    /// Wall time at which its group was complete for the first time as far as it knows, Unix milliseconds. From then on
    /// the group may hold series, even if members are missing later.
    pub group_formed_at_ms: Option<i64>,
    /// Whether it has what its group has acknowledged, as far as it knows. One that has not yet been repaired takes writes,
    /// and does not count for reads. Always true of roles that keep nothing.
    pub repaired: bool,
    /// Whether all it holds is in object storage, where every reader finds it. Only of one whose group takes nothing new.
    pub shipped: bool,
    /// A random number of the process: two that claim the same id differ in it.
    pub process: u64,
    /// Which build it runs.
    pub build: Build,
    /// What a newer build says beyond this, as it came: passed on, so that nothing is lost on the way through older ones.
    pub unknown: Box<[u8]>,
}

impl Instance {
    /// A new instance with nothing but a name: Pending, without addresses, zone or group.
    pub fn new(id: InstanceId) -> Self {
        Self {
            id,
            state: InstanceState::Pending,
            grpc_address: String::new(),
            http_address: String::new(),
            zone: String::new(),
            membership: None,
            registered_at_ms: 0,
            group_formed_at_ms: None,
            repaired: true,
            shipped: false,
            process: 0,
            build: Build::default(),
            unknown: Box::default(),
        }
    }

    /// Whether it has what its group has acknowledged, and serves it.
    pub fn is_whole(&self) -> bool {
        self.repaired && matches!(self.state, InstanceState::Active | InstanceState::Leaving)
    }

    /// Whether its texts are within their limits, as every reader demands.
    pub fn validate(&self) -> Result<(), InvalidInstance> {
        within("gRPC address", &self.grpc_address, MAX_ADDRESS_LENGTH)?;
        within("HTTP address", &self.http_address, MAX_ADDRESS_LENGTH)?;
        within("zone", &self.zone, MAX_ZONE_LENGTH)?;
        within("build name", &self.build.name, MAX_BUILD_LENGTH)
    }

    /// Appends `id | state u8 | gRPC address | HTTP address | zone | 0 or 1 + group | index | registered at | flags u8 (1 formed,
    /// 2 repaired) | formed at | process u64 LE | build name | oldest | newest protocol |
    /// shipped u8 | unknown`. New fields are appended, and have a meaning when they are missing.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.id.as_str().as_bytes());
        out.push(self.state as u8);
        put_bytes(out, self.grpc_address.as_bytes());
        put_bytes(out, self.http_address.as_bytes());
        put_bytes(out, self.zone.as_bytes());
        put_uvarint(out, self.membership.map_or(0, |membership| u64::from(membership.group.0) + 1));
        put_uvarint(out, self.membership.map_or(0, |membership| u64::from(membership.index)));
        put_varint(out, self.registered_at_ms);
        out.push(u8::from(self.group_formed_at_ms.is_some()) | u8::from(self.repaired) << 1);
        put_varint(out, self.group_formed_at_ms.unwrap_or(0));
        out.extend_from_slice(&self.process.to_le_bytes());
        put_bytes(out, self.build.name.as_bytes());
        put_uvarint(out, self.build.oldest_protocol.into());
        put_uvarint(out, self.build.newest_protocol.into());
        // Left out while it says nothing, as by builds that know of no such thing.
        if self.shipped || !self.unknown.is_empty() {
            out.push(u8::from(self.shipped));
        }
        out.extend_from_slice(&self.unknown);
    }

    /// Takes all that is left in `reader`.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let id = decode_id(reader)?;
        let state = reader.byte("instance state")?;
        let state = *InstanceState::ALL.get(usize::from(state)).ok_or(DecodeError::Invalid("instance state"))?;
        let grpc_address = reader.text("gRPC address", MAX_ADDRESS_LENGTH)?.to_owned();
        let http_address = reader.text("HTTP address", MAX_ADDRESS_LENGTH)?.to_owned();
        let zone = reader.text("zone", MAX_ZONE_LENGTH)?.to_owned();
        let group = reader.uvarint("replica group", MAX_GROUPS.into())? as u32;
        let index = reader.uvarint("index in the replica group", u16::MAX.into())? as u16;
        let registered_at_ms = reader.varint("registration time")?;
        let flags = reader.byte("flags")?;
        let formed_at_ms = reader.varint("formation time")?;
        let process = reader.take(8, "process number")?;
        let process = process.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let build = Build {
            name: reader.text("build name", MAX_BUILD_LENGTH)?.to_owned(),
            oldest_protocol: reader.uvarint("oldest protocol", u32::MAX.into())? as u32,
            newest_protocol: reader.uvarint("newest protocol", u32::MAX.into())? as u32,
        };
        let shipped = !reader.is_empty() && reader.byte("whether it is in object storage")? != 0;
        let unknown = reader.rest();
        let (value, limit) = (unknown.len() as u64, MAX_UNKNOWN_LENGTH as u64);
        if value > limit {
            return Err(DecodeError::TooLarge { what: "rest of a description", value, limit });
        }
        reader.take(unknown.len(), "rest of a description")?;
        Ok(Self {
            id,
            state,
            grpc_address,
            http_address,
            zone,
            membership: group.checked_sub(1).map(|group| Membership { group: GroupId(group), index }),
            registered_at_ms,
            group_formed_at_ms: (flags & 1 != 0).then_some(formed_at_ms),
            repaired: flags & 2 != 0,
            shipped,
            process,
            build,
            unknown: unknown.into(),
        })
    }
}

pub(crate) fn decode_id(reader: &mut Reader<'_>) -> Result<InstanceId, DecodeError> {
    let id = reader.text("instance id", MAX_ID_LENGTH)?;
    InstanceId::new(id).map_err(|_| DecodeError::Invalid("instance id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals() {
        let ordinal = |id: &str| InstanceId::new(id).unwrap().ordinal();
        assert_eq!(ordinal("ingester-zone-a-3"), Some(3));
        assert_eq!(ordinal("ingester-12"), Some(12));
        assert_eq!(ordinal("distributor-7f9c-x8k2"), None);
        assert_eq!(ordinal("ingester-"), None);
        assert_eq!(ordinal("ingester"), None);
        assert_eq!(ordinal("ingester-+3"), None);
        assert_eq!(ordinal("ingester-99999999999"), None);
    }

    #[test]
    fn ids_and_descriptions_that_cannot_be() {
        assert_eq!(InstanceId::new(""), Err(InvalidInstance::EmptyId));
        let long = InstanceId::new(&"x".repeat(129)).unwrap_err();
        assert_eq!(long.to_string(), "the instance id has 129 bytes, the limit is 128");
        let mut instance = Instance::new(InstanceId::new("a").unwrap());
        assert!(instance.validate().is_ok());
        instance.zone = "z".repeat(65);
        assert_eq!(instance.validate().unwrap_err().to_string(), "the zone has 65 bytes, the limit is 64");
    }

    #[test]
    fn the_longest_description_fits_a_packet() {
        let mut instance = Instance::new(InstanceId::new(&"i".repeat(MAX_ID_LENGTH)).unwrap());
        instance.grpc_address = "g".repeat(MAX_ADDRESS_LENGTH);
        instance.http_address = "h".repeat(MAX_ADDRESS_LENGTH);
        instance.zone = "z".repeat(MAX_ZONE_LENGTH);
        instance.build =
            Build { name: "b".repeat(MAX_BUILD_LENGTH), oldest_protocol: u32::MAX, newest_protocol: u32::MAX };
        instance.membership = Some(Membership { group: GroupId(1023), index: u16::MAX });
        (instance.registered_at_ms, instance.group_formed_at_ms) = (i64::MIN, Some(i64::MIN));
        instance.unknown = vec![0; MAX_UNKNOWN_LENGTH].into();
        instance.shipped = true;
        let mut out = Vec::new();
        instance.encode(&mut out);
        assert!(out.len() < 980, "{}", out.len());
        assert_eq!(Instance::decode(&mut Reader::new(&out)).unwrap(), instance);
        // An older build says nothing beyond its protocols.
        let older = &out[..out.len() - MAX_UNKNOWN_LENGTH - 1];
        let read = Instance::decode(&mut Reader::new(older)).unwrap();
        assert_eq!(read, Instance { shipped: false, unknown: Box::default(), ..instance });
    }

    #[test]
    fn builds_agree_on_the_newest_common_protocol() {
        let build = |oldest, newest| Build { name: String::new(), oldest_protocol: oldest, newest_protocol: newest };
        assert_eq!(build(1, 3).common_protocol(&build(2, 5)), Some(3));
        assert_eq!(build(1, 1).common_protocol(&build(2, 5)), None);
    }
}
