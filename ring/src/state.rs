//! The state of a ring, as it is gossiped: who is in it, who was forgotten, which groups there are and which are read-only.
//!
//! Every entry has one writer or a logical version, so states merge without a clock:
//!
//! - a **description** belongs to its instance, which numbers its changes: (incarnation, counter), where the incarnation is
//!   higher than any the instance knows of when it starts;
//! - a **heartbeat** is a number the instance keeps raising within an incarnation, apart from the description, so that the
//!   message that travels most is the smallest;
//! - a **tombstone** says up to which incarnation an instance is forgotten; what is late and not newer stays forgotten, an
//!   instance that comes back has a higher incarnation;
//! - a **group register** says that a group was complete once, so that it may hold series even while nobody of it is there,
//!   and whether it takes new ones; each change has the next version, and the removal of a group is one.
//!
//! Of equal versions that differ, which takes two processes that claim one id, the greater by all fields wins everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::{DecodeError, Reader, put_bytes, put_uvarint, put_varint};
use crate::instance::{Instance, InstanceId, decode_id};
use crate::ring::{GroupId, MAX_GROUPS};
use crate::value::{EntryKey, Value};

/// How long tombstones are kept. A replica that was cut off for longer may bring a forgotten instance back, dead, to be
/// forgotten again.
pub const TOMBSTONE_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// Which of two descriptions of an instance is newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Raised at every start of the instance.
    pub incarnation: u64,
    /// Raised at every change of the description; begins at 1.
    pub counter: u64,
}

/// A sign of life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heartbeat {
    /// The instance's incarnation.
    pub incarnation: u64,
    /// Raised with every heartbeat.
    pub count: u64,
    /// The instance's wall time at that, Unix milliseconds: so clocks that are wrong are noticed.
    pub at_ms: i64,
}

/// A description with its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Registration {
    /// Which of two is newer.
    pub version: Version,
    /// What the instance says about itself.
    pub instance: Instance,
}

/// Up to where an instance is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tombstone {
    /// This incarnation and all before.
    pub incarnation: u64,
    /// Wall time of the forgetting, Unix milliseconds: for [`TOMBSTONE_RETENTION`] only.
    pub at_ms: i64,
}

/// Whether a group takes new series. Of two changes that do not know of each other, that of the higher one counts: what is
/// in doubt is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupMode {
    /// It neither takes series nor is read: what it held is in object storage, or given up.
    Removed,
    /// It does.
    ReadWrite,
    /// It only answers: on its way out, or being looked after.
    ReadOnly,
}

impl GroupMode {
    /// In entries.
    fn code(self) -> u8 {
        match self {
            Self::ReadWrite => 0,
            Self::ReadOnly => 1,
            Self::Removed => 2,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        [Self::ReadWrite, Self::ReadOnly, Self::Removed].into_iter().find(|mode| mode.code() == code)
    }
}

/// What is stored about a group, from when it was complete for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupRegister {
    /// Raised with every change. Two changes that do not know of each other: read-only wins.
    pub version: u64,
    /// Whether it takes new series.
    pub mode: GroupMode,
    /// Wall time of the change, Unix milliseconds: for lookbacks and people, never for ordering.
    pub since_ms: i64,
}

/// What is known of one instance. Nothing in it is forgotten by its own tombstone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Record {
    /// Shared, because states are copied for every change while readers hold them.
    registration: Option<Arc<Registration>>,
    heartbeat: Option<Heartbeat>,
    tombstone: Option<Tombstone>,
}

impl Record {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes away what the tombstone covers.
    fn bury(&mut self) {
        let Some(tombstone) = self.tombstone else { return };
        self.registration.take_if(|registration| registration.version.incarnation <= tombstone.incarnation);
        self.heartbeat.take_if(|heartbeat| heartbeat.incarnation <= tombstone.incarnation);
    }
}

/// The state of one role's ring. Equal for all who have heard the same, in whatever order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RingState {
    instances: BTreeMap<InstanceId, Record>,
    groups: BTreeMap<GroupId, GroupRegister>,
}

impl RingState {
    /// The instances that are registered, Left ones included, by id.
    pub fn registrations(&self) -> impl Iterator<Item = &Registration> {
        self.instances.values().filter_map(|record| record.registration.as_deref())
    }

    /// What an instance last said about itself.
    pub fn registration(&self, id: &InstanceId) -> Option<&Registration> {
        self.instances.get(id)?.registration.as_deref()
    }

    /// The last heartbeat heard of the registered incarnation; 0 when none was.
    pub fn heartbeat(&self, id: &InstanceId) -> Heartbeat {
        let Some(record) = self.instances.get(id) else { return Heartbeat::default() };
        let incarnation = record.registration.as_ref().map_or(0, |registration| registration.version.incarnation);
        let heard = record.heartbeat.filter(|heartbeat| heartbeat.incarnation >= incarnation);
        heard.unwrap_or(Heartbeat { incarnation, count: 0, at_ms: 0 })
    }

    /// The tombstone of an instance, if it was forgotten.
    pub fn tombstone(&self, id: &InstanceId) -> Option<Tombstone> {
        self.instances.get(id)?.tombstone
    }

    /// Those that were forgotten and are remembered for it.
    pub fn tombstones(&self) -> impl Iterator<Item = (&InstanceId, Tombstone)> {
        self.instances.iter().filter_map(|(id, record)| Some((id, record.tombstone?)))
    }

    /// The highest incarnation of an instance that is known of, forgotten or not; 0 when none is.
    pub fn incarnation(&self, id: &InstanceId) -> u64 {
        let Some(record) = self.instances.get(id) else { return 0 };
        let registered = record.registration.as_ref().map(|registration| registration.version.incarnation);
        let heard = record.heartbeat.map(|heartbeat| heartbeat.incarnation);
        let forgotten = record.tombstone.map(|tombstone| tombstone.incarnation);
        [registered, heard, forgotten].into_iter().flatten().max().unwrap_or(0)
    }

    /// What is stored about a group; `None` is one that was never complete, or that builds without such registers made.
    pub fn group(&self, group: GroupId) -> Option<GroupRegister> {
        self.groups.get(&group).copied()
    }

    /// All that is stored about groups.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, GroupRegister)> {
        self.groups.iter().map(|(group, register)| (*group, *register))
    }

    /// A state that says only this: an instance's description, and a heartbeat of that count, without a time.
    pub fn of_instance(registration: Registration, heartbeat: u64) -> Self {
        let heartbeat = Heartbeat { incarnation: registration.version.incarnation, count: heartbeat, at_ms: 0 };
        let id = registration.instance.id.clone();
        let record = Record { registration: Some(Arc::new(registration)), heartbeat: Some(heartbeat), tombstone: None };
        Self { instances: BTreeMap::from([(id, record)]), groups: BTreeMap::new() }
    }

    /// A state that says only this: an instance lives.
    pub fn of_heartbeat(id: InstanceId, heartbeat: Heartbeat) -> Self {
        let record = Record { heartbeat: Some(heartbeat), ..Record::default() };
        Self { instances: BTreeMap::from([(id, record)]), groups: BTreeMap::new() }
    }

    /// The change that forgets an instance as it is known here, by anyone, at wall time `now_ms`. `None` when there is
    /// nothing to forget. An instance that lives registers again.
    pub fn forget(&self, id: &InstanceId, now_ms: i64) -> Option<Self> {
        self.registration(id)?;
        let tombstone = Tombstone { incarnation: self.incarnation(id), at_ms: now_ms };
        Some(Self::of_tombstone(id.clone(), tombstone))
    }

    fn of_tombstone(id: InstanceId, tombstone: Tombstone) -> Self {
        let record = Record { tombstone: Some(tombstone), ..Record::default() };
        Self { instances: BTreeMap::from([(id, record)]), groups: BTreeMap::new() }
    }

    /// What is stored about groups, and nothing else: what a cluster that is stopped whole must not forget.
    pub fn only_groups(&self) -> Self {
        Self { instances: BTreeMap::new(), groups: self.groups.clone() }
    }

    /// The change that says that a group was complete at wall time `now_ms`; `None` when that is known.
    pub fn form_group(&self, group: GroupId, now_ms: i64) -> Option<Self> {
        let before = self.group(group);
        if before.is_some_and(|register| register.mode != GroupMode::Removed) {
            return None;
        }
        let version = before.map_or(0, |register| register.version) + 1;
        Some(Self::of_group(group, GroupRegister { version, mode: GroupMode::ReadWrite, since_ms: now_ms }))
    }

    /// The change that makes a group take new series or not from wall time `now_ms` on; `None` when it is so already.
    pub fn set_group_mode(&self, group: GroupId, mode: GroupMode, now_ms: i64) -> Option<Self> {
        let before = self.group(group);
        if before.map_or(GroupMode::ReadWrite, |register| register.mode) == mode {
            return None;
        }
        let version = before.map_or(0, |register| register.version) + 1;
        Some(Self::of_group(group, GroupRegister { version, mode, since_ms: now_ms }))
    }

    fn of_group(group: GroupId, register: GroupRegister) -> Self {
        Self { instances: BTreeMap::new(), groups: BTreeMap::from([(group, register)]) }
    }

    /// Merges one record; whether its registration, heartbeat or tombstone changed.
    fn merge_record(&mut self, id: &InstanceId, other: &Record) -> [bool; 3] {
        let own = self.instances.entry(id.clone()).or_default();
        let before = own.clone();
        own.registration = own.registration.take().max(other.registration.clone());
        own.heartbeat = own.heartbeat.max(other.heartbeat);
        own.tombstone = own.tombstone.max(other.tombstone);
        own.bury();
        let changed = [
            own.registration != before.registration,
            own.heartbeat != before.heartbeat,
            own.tombstone != before.tombstone,
        ];
        if own.is_empty() {
            self.instances.remove(id);
        }
        changed
    }
}

/// What an entry is about; the first byte of its name and of its bytes.
const REGISTRATION: u8 = 1;
const HEARTBEAT: u8 = 2;
const TOMBSTONE: u8 = 3;
const GROUP: u8 = 4;

fn instance_key(tag: u8, id: &InstanceId) -> EntryKey {
    [&[tag], id.as_str().as_bytes()].concat().into()
}

fn group_key(group: GroupId) -> EntryKey {
    [&[GROUP][..], &group.0.to_le_bytes()].concat().into()
}

impl Value for RingState {
    fn merge(&mut self, other: &Self) -> Vec<EntryKey> {
        let mut changed = Vec::new();
        for (id, record) in &other.instances {
            let [registration, heartbeat, tombstone] = self.merge_record(id, record);
            // What the tombstone took away needs no message of its own.
            if tombstone {
                changed.push(instance_key(TOMBSTONE, id));
            }
            let left = self.instances.get(id);
            if registration && left.is_some_and(|record| record.registration.is_some()) {
                changed.push(instance_key(REGISTRATION, id));
            }
            if heartbeat && left.is_some_and(|record| record.heartbeat.is_some()) {
                changed.push(instance_key(HEARTBEAT, id));
            }
        }
        for (group, register) in &other.groups {
            let own = self.groups.get(group);
            if own.is_none_or(|own| own < register) {
                self.groups.insert(*group, *register);
                changed.push(group_key(*group));
            }
        }
        changed
    }

    fn lacks(&self, other: &Self) -> bool {
        let nothing = Record::default();
        let in_records = other.instances.iter().any(|(id, theirs)| {
            let own = self.instances.get(id).unwrap_or(&nothing);
            let buried = own.tombstone.map(|tombstone| tombstone.incarnation);
            let news = |incarnation: u64| buried.is_none_or(|buried| buried < incarnation);
            theirs.tombstone > own.tombstone
                || (theirs.heartbeat > own.heartbeat && theirs.heartbeat.is_some_and(|it| news(it.incarnation)))
                || (theirs.registration > own.registration
                    && theirs.registration.as_ref().is_some_and(|it| news(it.version.incarnation)))
        });
        in_records || other.groups.iter().any(|(group, theirs)| self.groups.get(group) < Some(theirs))
    }

    fn entries(&self) -> Vec<EntryKey> {
        let mut entries = Vec::new();
        for (id, record) in &self.instances {
            entries.extend(record.tombstone.map(|_| instance_key(TOMBSTONE, id)));
            entries.extend(record.registration.as_ref().map(|_| instance_key(REGISTRATION, id)));
            entries.extend(record.heartbeat.map(|_| instance_key(HEARTBEAT, id)));
        }
        entries.extend(self.groups.keys().map(|group| group_key(*group)));
        entries
    }

    fn is_transient(key: &[u8]) -> bool {
        key.first() == Some(&HEARTBEAT)
    }

    /// `1 | incarnation | counter | description`, `2 | id | incarnation | count | at`, `3 | id | incarnation | at`, or
    /// `4 | group | version | mode u8 | since`.
    fn encode_entry(&self, key: &[u8], out: &mut Vec<u8>) -> bool {
        let Some((tag, name)) = key.split_first() else { return false };
        let entry = |out: &mut Vec<u8>| -> Option<()> {
            if *tag == GROUP {
                let group = GroupId(u32::from_le_bytes(name.try_into().ok()?));
                let register = self.group(group)?;
                out.push(GROUP);
                put_uvarint(out, group.0.into());
                put_uvarint(out, register.version);
                out.push(register.mode.code());
                put_varint(out, register.since_ms);
                return Some(());
            }
            let record = self.instances.get(std::str::from_utf8(name).ok()?)?;
            match *tag {
                REGISTRATION => {
                    let registration = record.registration.as_ref()?;
                    out.push(REGISTRATION);
                    put_uvarint(out, registration.version.incarnation);
                    put_uvarint(out, registration.version.counter);
                    registration.instance.encode(out);
                }
                HEARTBEAT => {
                    let heartbeat = record.heartbeat?;
                    out.push(HEARTBEAT);
                    put_bytes(out, name);
                    put_uvarint(out, heartbeat.incarnation);
                    put_uvarint(out, heartbeat.count);
                    put_varint(out, heartbeat.at_ms);
                }
                TOMBSTONE => {
                    let tombstone = record.tombstone?;
                    out.push(TOMBSTONE);
                    put_bytes(out, name);
                    put_uvarint(out, tombstone.incarnation);
                    put_varint(out, tombstone.at_ms);
                }
                _ => return None,
            }
            Some(())
        };
        entry(out).is_some()
    }

    fn decode_entry(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.byte("kind of entry")? {
            REGISTRATION => {
                let incarnation = reader.uvarint("incarnation", u64::MAX - 1)?;
                let version = Version { incarnation, counter: reader.uvarint("counter", u64::MAX)? };
                let instance = Instance::decode(reader)?;
                let id = instance.id.clone();
                let record =
                    Record { registration: Some(Arc::new(Registration { version, instance })), ..Record::default() };
                Ok(Self { instances: BTreeMap::from([(id, record)]), groups: BTreeMap::new() })
            }
            HEARTBEAT => {
                let id = decode_id(reader)?;
                let incarnation = reader.uvarint("incarnation", u64::MAX - 1)?;
                let count = reader.uvarint("heartbeat", u64::MAX)?;
                Ok(Self::of_heartbeat(id, Heartbeat { incarnation, count, at_ms: reader.varint("time")? }))
            }
            TOMBSTONE => {
                let id = decode_id(reader)?;
                let incarnation = reader.uvarint("incarnation", u64::MAX - 1)?;
                Ok(Self::of_tombstone(id, Tombstone { incarnation, at_ms: reader.varint("time")? }))
            }
            GROUP => {
                let group = GroupId(reader.uvarint("replica group", u64::from(MAX_GROUPS) - 1)? as u32);
                let version = reader.uvarint("version", u64::MAX - 1)?;
                let mode = GroupMode::of_code(reader.byte("mode")?).ok_or(DecodeError::Invalid("mode"))?;
                Ok(Self::of_group(group, GroupRegister { version, mode, since_ms: reader.varint("time")? }))
            }
            tag => Err(DecodeError::UnknownVersion { what: "entry", version: tag.into(), newest: GROUP.into() }),
        }
    }

    fn expire(&mut self, now_ms: i64) {
        let oldest_ms = now_ms.saturating_sub(TOMBSTONE_RETENTION.as_millis() as i64);
        self.instances.retain(|_, record| {
            record.tombstone.take_if(|tombstone| tombstone.at_ms < oldest_ms);
            !record.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
