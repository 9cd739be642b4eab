//! Which replica group an instance belongs to.

use std::time::Duration;

use crate::instance::InstanceId;
use crate::ring::{GroupId, MAX_GROUPS};

/// What makes a replica group, the same in every process of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupRules {
    /// Members of a group. Configuration, never inferred from who is there.
    pub replication_factor: u16,
    /// Whether members of a group have to be in distinct zones.
    pub zone_aware: bool,
    /// How long news take to reach everybody. So long after a group was seen to become writable nothing is written to it, so that
    /// who reads knows of it by then; unless there is no other.
    pub spread: Duration,
}

impl GroupRules {
    /// How many members make a majority.
    pub fn quorum(&self) -> usize {
        usize::from(self.replication_factor) / 2 + 1
    }
}

/// A place in a replica group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Membership {
    /// Which group.
    pub group: GroupId,
    /// Which member of it, 0 to RF − 1, where no zone tells them apart; otherwise 0.
    pub index: u16,
}

/// Why an instance has no group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Neither the id nor the configuration has a number.
    #[error("instance id {0} does not end in -<number>, and no replica group is configured")]
    NoOrdinal(InstanceId),
    /// A configured group says nothing about the place in it.
    #[error(
        "replica group {group} of {id} is configured, but without zones its place in the group follows from an id that ends in -<number>"
    )]
    NoIndex {
        /// The instance.
        id: InstanceId,
        /// Its configured group.
        group: GroupId,
    },
    /// A number out of range.
    #[error("replica group {0} is beyond the highest number {max}", max = MAX_GROUPS - 1)]
    NumberTooHigh(u32),
}

impl Membership {
    /// The place of an instance: from its ordinal, or in the `configured` group.
    ///
    /// With zones, `ingester-zone-a-3` is zone a's member of group 3. Without, consecutive ordinals form groups: of RF 3,
    /// `ingester-3`, `-4` and `-5` are members 0, 1 and 2 of group 1.
    pub fn of(id: &InstanceId, configured: Option<GroupId>, rules: &GroupRules) -> Result<Self, MembershipError> {
        let factor = u32::from(rules.replication_factor.max(1));
        let membership = match (configured, id.ordinal()) {
            (Some(group), _) if rules.zone_aware => Self { group, index: 0 },
            (Some(group), Some(ordinal)) => Self { group, index: (ordinal % factor) as u16 },
            (Some(group), None) if factor == 1 => Self { group, index: 0 },
            (Some(group), None) => return Err(MembershipError::NoIndex { id: id.clone(), group }),
            (None, None) => return Err(MembershipError::NoOrdinal(id.clone())),
            (None, Some(ordinal)) if rules.zone_aware => Self { group: GroupId(ordinal), index: 0 },
            (None, Some(ordinal)) => Self { group: GroupId(ordinal / factor), index: (ordinal % factor) as u16 },
        };
        if membership.group.0 >= MAX_GROUPS {
            return Err(MembershipError::NumberTooHigh(membership.group.0));
        }
        Ok(membership)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(id: &str, configured: Option<u32>, zone_aware: bool, expected: Result<(u32, u16), &str>) {
        let rules = GroupRules { replication_factor: 3, zone_aware, spread: Duration::ZERO };
        let found = Membership::of(&InstanceId::new(id).unwrap(), configured.map(GroupId), &rules);
        let found = found.map(|place| (place.group.0, place.index)).map_err(|error| error.to_string());
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn groups_from_ordinals_and_configuration() {
        check("ingester-zone-a-3", None, true, Ok((3, 0)));
        check("ingester-3", None, false, Ok((1, 0)));
        check("ingester-5", None, false, Ok((1, 2)));
        check("vm17.example", Some(9), true, Ok((9, 0)));
        check("ingester-zone-a-3", Some(9), true, Ok((9, 0)));
        check("ingester-4", Some(9), false, Ok((9, 1)));
        check("a", None, true, Err("instance id a does not end in -<number>, and no replica group is configured"));
        check("a-1024", None, true, Err("replica group 1024 is beyond the highest number 1023"));
        check("a", Some(1024), true, Err("replica group 1024 is beyond the highest number 1023"));
        check(
            "a",
            Some(1),
            false,
            Err(
                "replica group 1 of a is configured, but without zones its place in the group follows from an id that \
                 ends in -<number>",
            ),
        );
    }
}
