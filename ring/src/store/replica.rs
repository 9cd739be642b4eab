//! One process' copy of everything that is replicated.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::Store;
use super::message::{Cluster, MAX_NAME_LENGTH, MessageError, Section};
use super::queue::{EntryName, Queue, Taken, transmit_limit};
use crate::codec::{DecodeError, Reader};
use crate::value::{EntryKey, MAX_ENTRY_LENGTH, Value};

/// Entries in a packet that did not fit after which it counts as full.
const REFUSALS: usize = 8;

/// What has come and gone so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages taken in.
    pub received: u64,
    /// Messages of other clusters.
    pub other_cluster: u64,
    /// Messages with a wrong signature, or none, or one that was not expected.
    pub signature: u64,
    /// Messages or entries of newer builds.
    pub newer_version: u64,
    /// Messages or entries that make no sense.
    pub malformed: u64,
    /// Entries of slots that this process has not opened.
    pub unknown_slot: u64,
}

/// Which of [`Counts`].
#[derive(Debug, Clone, Copy)]
enum Counted {
    Received,
    OtherCluster,
    Signature,
    NewerVersion,
    Malformed,
    UnknownSlot,
}

/// Why a slot cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The slot is open with values of another type.
    #[error("slot {0} holds another type of value")]
    OtherType(String),
    /// A name nobody could send.
    #[error("slot name {0} is longer than {max} bytes", max = MAX_NAME_LENGTH)]
    NameTooLong(String),
}

/// One process' copy of everything that is replicated.
///
/// Every process of a cluster opens every slot, whether it needs it or not: what it has not opened it cannot pass on.
#[derive(Debug)]
pub struct Replica {
    cluster: Cluster,
    /// `None` in a process that has nobody to tell.
    queue: Option<Arc<Mutex<Queue>>>,
    slots: RwLock<BTreeMap<Arc<str>, Arc<dyn AnySlot>>>,
    counts: [AtomicU64; 6],
}

/// A value of a replica.
#[derive(Debug)]
struct Slot<V> {
    name: Arc<str>,
    value: watch::Sender<Arc<V>>,
    queue: Option<Arc<Mutex<Queue>>>,
}

/// A slot whose type does not matter.
trait AnySlot: std::fmt::Debug + Send + Sync {
    fn entries(&self) -> Vec<EntryKey>;
    fn encode_entry(&self, key: &[u8], out: &mut Vec<u8>) -> bool;
    /// Merges all that can be read of `entries`; what was wrong with the rest.
    fn receive(&self, entries: &[&[u8]], now_ms: i64) -> Vec<DecodeError>;
    fn expire(&self, now_ms: i64);
    fn describe(&self) -> String;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<V: Value> Store<V> for Slot<V> {
    fn get(&self) -> Arc<V> {
        self.value.borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<Arc<V>> {
        self.value.subscribe()
    }

    fn update(&self, change: &V) -> bool {
        let mut changed = Vec::new();
        self.value.send_if_modified(|value| {
            if value.lacks(change) {
                changed = Arc::make_mut(value).merge(change);
            }
            !changed.is_empty()
        });
        let any = !changed.is_empty();
        if let Some(queue) = &self.queue {
            let mut queue = queue.lock();
            for entry in changed {
                let transient = V::is_transient(&entry);
                queue.push(EntryName { slot: self.name.clone(), entry, transient });
            }
        }
        any
    }
}

impl<V: Value> AnySlot for Slot<V> {
    fn entries(&self) -> Vec<EntryKey> {
        self.get().entries()
    }

    fn encode_entry(&self, key: &[u8], out: &mut Vec<u8>) -> bool {
        self.value.borrow().encode_entry(key, out)
    }

    fn receive(&self, entries: &[&[u8]], now_ms: i64) -> Vec<DecodeError> {
        let mut change = V::default();
        let mut errors = Vec::new();
        for entry in entries {
            let mut reader = Reader::new(entry);
            match V::decode_entry(&mut reader) {
                Ok(entry) if reader.is_empty() => {
                    change.merge(&entry);
                }
                Ok(_) => errors.push(DecodeError::Invalid("the end of an entry")),
                Err(error) => errors.push(error),
            }
        }
        change.expire(now_ms);
        self.update(&change);
        errors
    }

    fn expire(&self, now_ms: i64) {
        self.value.send_if_modified(|value| {
            let mut left = (**value).clone();
            left.expire(now_ms);
            let changed = left != **value;
            if changed {
                *value = Arc::new(left);
            }
            changed
        });
    }

    fn describe(&self) -> String {
        format!("{:#?}", self.value.borrow())
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Replica {
    /// An empty replica of a cluster's values.
    pub fn new(cluster: Cluster) -> Self {
        let queue = Some(Arc::default());
        Self { cluster, queue, slots: RwLock::default(), counts: Default::default() }
    }

    /// A replica that has nobody to tell: the store of a process that is a cluster of its own, and of tests.
    pub fn alone() -> Self {
        let cluster = Cluster::new("alone", None).unwrap_or_else(|_| unreachable!("a valid name"));
        Self { queue: None, ..Self::new(cluster) }
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The value of that name, which is empty when it is opened first.
    pub fn open<V: Value>(&self, name: &str) -> Result<Arc<dyn Store<V>>, OpenError> {
        if name.len() > MAX_NAME_LENGTH {
            return Err(OpenError::NameTooLong(name.to_owned()));
        }
        let mut slots = self.slots.write();
        if let Some(slot) = slots.get(name) {
            let slot = slot.clone().into_any().downcast::<Slot<V>>();
            return Ok(slot.map_err(|_| OpenError::OtherType(name.to_owned()))?);
        }
        let name: Arc<str> = name.into();
        let value = watch::Sender::new(Arc::new(V::default()));
        let slot = Arc::new(Slot { name: name.clone(), value, queue: self.queue.clone() });
        slots.insert(name, slot.clone());
        Ok(slot)
    }

    /// The names of all slots that are open.
    pub fn slots(&self) -> Vec<Arc<str>> {
        self.slots.read().keys().cloned().collect()
    }

    /// A slot's value as a text, for people who look for a fault.
    pub fn describe(&self, slot: &str) -> Option<String> {
        Some(self.slots.read().get(slot)?.describe())
    }

    /// What has come so far.
    pub fn counts(&self) -> Counts {
        let count = |which: Counted| self.counts[which as usize].load(Ordering::Relaxed);
        Counts {
            received: count(Counted::Received),
            other_cluster: count(Counted::OtherCluster),
            signature: count(Counted::Signature),
            newer_version: count(Counted::NewerVersion),
            malformed: count(Counted::Malformed),
            unknown_slot: count(Counted::UnknownSlot),
        }
    }

    fn count(&self, which: Counted) {
        self.counts[which as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn count_error(&self, error: &DecodeError) {
        let newer = matches!(error, DecodeError::UnknownVersion { .. });
        self.count(if newer { Counted::NewerVersion } else { Counted::Malformed });
    }

    /// Entries that wait to be told.
    pub fn waiting(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.lock().len())
    }

    /// Takes in a message, whatever it is, at wall time `now_ms`. What it has that is new here will be passed on.
    pub fn receive(&self, message: &[u8], now_ms: i64) -> Result<(), MessageError> {
        let taken = self.cluster.open(message).and_then(|body| Ok(self.receive_body(body, now_ms)?));
        match &taken {
            Ok(()) => self.count(Counted::Received),
            Err(MessageError::OtherCluster(_)) => self.count(Counted::OtherCluster),
            Err(MessageError::Signature) => self.count(Counted::Signature),
            Err(MessageError::Malformed(error)) => self.count_error(error),
        }
        taken
    }

    fn receive_body(&self, body: &[u8], now_ms: i64) -> Result<(), DecodeError> {
        // Everything is taken apart before anything is taken in.
        let mut sections = Vec::new();
        let mut reader = Reader::new(body);
        while !reader.is_empty() {
            let slot = reader.text("slot name", MAX_NAME_LENGTH)?;
            let count = reader.uvarint("number of entries", body.len() as u64)?;
            let mut entries = Vec::new();
            for _ in 0..count {
                entries.push(reader.bytes("entry", MAX_ENTRY_LENGTH)?);
            }
            sections.push((slot, entries));
        }
        for (name, entries) in sections {
            let slot = self.slots.read().get(name).cloned();
            match slot {
                Some(slot) => slot.receive(&entries, now_ms).iter().for_each(|error| self.count_error(error)),
                None => self.count(Counted::UnknownSlot),
            }
        }
        Ok(())
    }

    /// The next message of at most `limit` bytes for a cluster of `members`, of what has changed and is not told enough;
    /// `None` when all is told. Entries are told `multiplier` · log₁₀ (members + 1) times.
    pub fn next_message(&self, limit: usize, multiplier: u32, members: usize) -> Option<Vec<u8>> {
        let mut room = limit.checked_sub(self.cluster.frame_length())?;
        let mut sections: BTreeMap<Arc<str>, Section> = BTreeMap::new();
        let slots = self.slots.read();
        let mut bytes = Vec::new();
        let most = transmit_limit(multiplier, members);
        self.queue.as_ref()?.lock().offer(most, REFUSALS, |name| {
            bytes.clear();
            let Some(slot) = slots.get(&name.slot) else { return Taken::Gone };
            if !slot.encode_entry(&name.entry, &mut bytes) || bytes.len() > MAX_ENTRY_LENGTH {
                return Taken::Gone;
            }
            let section = sections.entry(name.slot.clone()).or_default();
            let Some(left) = room.checked_sub(section.cost(&name.slot, &bytes)) else { return Taken::Refused };
            room = left;
            section.push(&bytes);
            Taken::Told
        });
        self.write(&sections)
    }

    /// Everything, for one who may have missed any of it.
    pub fn full_state(&self) -> Vec<u8> {
        let mut sections: BTreeMap<Arc<str>, Section> = BTreeMap::new();
        let mut bytes = Vec::new();
        for (name, slot) in &*self.slots.read() {
            for key in slot.entries() {
                bytes.clear();
                if slot.encode_entry(&key, &mut bytes) && bytes.len() <= MAX_ENTRY_LENGTH {
                    sections.entry(name.clone()).or_default().push(&bytes);
                }
            }
        }
        self.write(&sections).unwrap_or_else(|| self.cluster.seal(&[]))
    }

    fn write(&self, sections: &BTreeMap<Arc<str>, Section>) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        let filled = sections.iter().filter(|(_, section)| !section.is_empty());
        filled.for_each(|(name, section)| section.write(name, &mut body));
        (!body.is_empty()).then(|| self.cluster.seal(&body))
    }

    /// Drops what nobody needs to hear of any more. Call every few minutes.
    pub fn expire(&self, now_ms: i64) {
        let slots: Vec<_> = self.slots.read().values().cloned().collect();
        slots.iter().for_each(|slot| slot.expire(now_ms));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::instance::{Instance, InstanceId};
    use crate::state::{Registration, RingState, Version};

    const PACKET: usize = 1400;

    fn registered(name: &str) -> RingState {
        let instance = Instance::new(InstanceId::new(name).unwrap());
        RingState::of_instance(Registration { version: Version { incarnation: 1, counter: 1 }, instance }, 1)
    }

    fn replica() -> (Replica, Arc<dyn Store<RingState>>) {
        let replica = Replica::new(Cluster::new("test", None).unwrap());
        let store = replica.open("ring").unwrap();
        (replica, store)
    }

    #[test]
    fn messages_fit_packets_and_carry_everything() {
        let (from, store) = replica();
        for i in 0..200 {
            store.update(&registered(&format!("ingester-zone-a-{i}")));
        }
        assert_eq!(from.waiting(), 400);
        let (to, heard) = replica();
        let mut packets = 0;
        while let Some(message) = from.next_message(PACKET, 1, 3) {
            assert!(message.len() <= PACKET);
            to.receive(&message, 0).unwrap();
            packets += 1;
        }
        assert_eq!(heard.get(), store.get());
        assert!(packets < 20, "{packets}");
        // It passes on what it heard.
        assert_eq!(to.waiting(), 400);
        let counts = Counts { received: packets, ..Counts::default() };
        assert_eq!((to.counts(), from.waiting()), (counts, 0));
    }

    #[test]
    fn the_newest_of_what_waits_is_told_and_what_is_known_is_not_passed_on() {
        let (from, store) = replica();
        store.update(&registered("a-0"));
        assert!(!store.update(&registered("a-0")));
        let beat = |count| {
            let heartbeat = crate::state::Heartbeat { incarnation: 1, count, at_ms: 0 };
            RingState::of_heartbeat(InstanceId::new("a-0").unwrap(), heartbeat)
        };
        (2..100).for_each(|count| {
            store.update(&beat(count));
        });
        let message = from.next_message(PACKET, 1, 1).unwrap();
        assert!(from.next_message(PACKET, 1, 1).is_none());
        let (to, heard) = replica();
        to.receive(&message, 0).unwrap();
        assert_eq!(heard.get().heartbeat(&InstanceId::new("a-0").unwrap()).count, 99);
        while to.next_message(PACKET, 1, 1).is_some() {}
        to.receive(&message, 0).unwrap();
        assert_eq!(to.waiting(), 0);
    }

    #[test]
    fn foreign_and_strange_messages_are_counted_and_change_nothing() {
        let (replica, store) = replica();
        let foreign = Replica::new(Cluster::new("other", None).unwrap());
        foreign.open::<RingState>("ring").unwrap().update(&registered("a-0"));
        assert!(replica.receive(&foreign.full_state(), 0).is_err());
        assert!(replica.receive(&[9], 0).is_err());
        assert!(replica.receive(&[], 0).is_err());
        let test = Cluster::new("test", None).unwrap();
        // A slot that is not open here, and an entry of a kind that only a newer build has.
        replica.receive(&test.seal(b"\x04else\x01\x01\x01"), 0).unwrap();
        replica.receive(&test.seal(b"\x04ring\x01\x01\x63"), 0).unwrap();
        let expected = Counts {
            received: 2,
            other_cluster: 1,
            newer_version: 2,
            malformed: 1,
            unknown_slot: 1,
            ..Counts::default()
        };
        assert_eq!(replica.counts(), expected);
        assert_eq!(*store.get(), RingState::default());
    }

    #[test]
    fn a_slot_has_one_type() {
        #[derive(Debug, Clone, Default, PartialEq)]
        struct Nothing;
        impl Value for Nothing {
            fn merge(&mut self, _: &Self) -> Vec<EntryKey> {
                Vec::new()
            }
            fn lacks(&self, _: &Self) -> bool {
                false
            }
            fn entries(&self) -> Vec<EntryKey> {
                Vec::new()
            }
            fn is_transient(_: &[u8]) -> bool {
                false
            }
            fn encode_entry(&self, _: &[u8], _: &mut Vec<u8>) -> bool {
                false
            }
            fn decode_entry(_: &mut Reader<'_>) -> Result<Self, DecodeError> {
                Ok(Self)
            }
            fn expire(&mut self, _: i64) {}
        }
        let (replica, _) = replica();
        assert_eq!(replica.open::<Nothing>("ring").err(), Some(OpenError::OtherType("ring".into())));
        assert!(replica.open::<Nothing>(&"x".repeat(65)).is_err());
        assert_eq!(replica.slots().len(), 1);
    }

    #[test]
    fn what_has_expired_does_not_come_back() {
        let (replica, store) = replica();
        store.update(&registered("a-0"));
        let forgotten = store.get().forget(&InstanceId::new("a-0").unwrap(), 1000).unwrap();
        store.update(&forgotten);
        let late = replica.full_state();
        let week = crate::state::TOMBSTONE_RETENTION.as_millis() as i64;
        replica.expire(week + 2000);
        assert_eq!(*store.get(), RingState::default());
        replica.receive(&late, week + 2000).unwrap();
        assert_eq!(*store.get(), RingState::default());
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body: Vec<u8>, entry: Vec<u8>) {
            let (replica, _) = replica();
            let _ = replica.receive(&replica.cluster().seal(&body), 0);
            let mut section = Section::default();
            section.push(&entry);
            let mut body = Vec::new();
            section.write("ring", &mut body);
            let _ = replica.receive(&replica.cluster().seal(&body), 0);
        }
    }
}
