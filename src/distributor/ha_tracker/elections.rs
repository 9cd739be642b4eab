//! Who is elected of each pair of Prometheus, as distributors tell each other.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::time::Duration;

use skald_ring::Value;
use skald_ring::codec::{DecodeError, Reader, put_bytes, put_uvarint, put_varint};
use skald_ring::value::EntryKey;

/// Longest name of a tenant, cluster and replica in bytes, so that an entry fits a packet.
pub(super) const MAX_NAME_LENGTH: usize = 256;
/// An election nothing was received for so long is forgotten.
pub(super) const RETENTION: Duration = Duration::from_secs(3600);

const VERSION: u8 = 1;

/// Whose election it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pair {
    pub(super) tenant: String,
    /// Value of the label that all replicas of a pair share.
    pub(super) cluster: String,
}

/// Who is elected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Election {
    /// Raised with every change of the elected replica.
    pub(super) term: u64,
    pub(super) replica: String,
    /// Raised again and again while samples of the replica come.
    pub(super) beat: u64,
    /// Wall time of the last beat, Unix milliseconds. For people and for forgetting, never for electing.
    pub(super) received_at_ms: i64,
    /// Wall time of the election.
    pub(super) elected_at_ms: i64,
}

impl Election {
    /// The higher term counts. Of two in one term, which two distributors held without knowing of each other, the lower name.
    fn rank(&self) -> (u64, Reverse<&str>, u64, i64, i64) {
        (self.term, Reverse(&self.replica), self.beat, self.received_at_ms, self.elected_at_ms)
    }

    fn is_newer_than(&self, other: &Self) -> bool {
        self.rank().cmp(&other.rank()) == Ordering::Greater
    }
}

/// The elections of all pairs. Merging keeps the higher ranked one of each, so it does not matter in which order and how
/// often they come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Elections {
    pairs: BTreeMap<Pair, Election>,
}

impl Elections {
    pub(super) fn of(pair: Pair, election: Election) -> Self {
        Self { pairs: BTreeMap::from([(pair, election)]) }
    }

    pub(super) fn get(&self, pair: &Pair) -> Option<&Election> {
        self.pairs.get(pair)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Pair, &Election)> {
        self.pairs.iter()
    }

    /// Clusters of a tenant.
    pub(super) fn clusters_of(&self, tenant: &str) -> usize {
        let from = Pair { tenant: tenant.to_owned(), cluster: String::new() };
        self.pairs.range(from..).take_while(|(pair, _)| pair.tenant == tenant).count()
    }
}

fn key(pair: &Pair) -> EntryKey {
    let mut key = Vec::new();
    put_bytes(&mut key, pair.tenant.as_bytes());
    put_bytes(&mut key, pair.cluster.as_bytes());
    key.into()
}

fn read_pair(reader: &mut Reader<'_>) -> Result<Pair, DecodeError> {
    let tenant = reader.text("tenant", MAX_NAME_LENGTH)?.to_owned();
    Ok(Pair { tenant, cluster: reader.text("cluster", MAX_NAME_LENGTH)?.to_owned() })
}

impl Value for Elections {
    fn merge(&mut self, other: &Self) -> Vec<EntryKey> {
        let mut changed = Vec::new();
        for (pair, election) in &other.pairs {
            if self.pairs.get(pair).is_none_or(|known| election.is_newer_than(known)) {
                self.pairs.insert(pair.clone(), election.clone());
                changed.push(key(pair));
            }
        }
        changed
    }

    fn lacks(&self, other: &Self) -> bool {
        let newer = |(pair, election): (&Pair, &Election)| {
            self.pairs.get(pair).is_none_or(|known| election.is_newer_than(known))
        };
        other.pairs.iter().any(newer)
    }

    fn entries(&self) -> Vec<EntryKey> {
        self.pairs.keys().map(key).collect()
    }

    fn is_transient(_: &[u8]) -> bool {
        false
    }

    /// `version u8 | tenant | cluster | term | replica | beat | received at | elected at`.
    fn encode_entry(&self, key: &[u8], out: &mut Vec<u8>) -> bool {
        let Ok(pair) = read_pair(&mut Reader::new(key)) else { return false };
        let Some(election) = self.pairs.get(&pair) else { return false };
        out.push(VERSION);
        put_bytes(out, pair.tenant.as_bytes());
        put_bytes(out, pair.cluster.as_bytes());
        put_uvarint(out, election.term);
        put_bytes(out, election.replica.as_bytes());
        put_uvarint(out, election.beat);
        put_varint(out, election.received_at_ms);
        put_varint(out, election.elected_at_ms);
        true
    }

    fn decode_entry(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = reader.byte("version of an election")?;
        if version != VERSION {
            let (what, version, newest) = ("an election", version.into(), VERSION.into());
            return Err(DecodeError::UnknownVersion { what, version, newest });
        }
        let pair = read_pair(reader)?;
        let election = Election {
            term: reader.uvarint("term", u64::MAX)?,
            replica: reader.text("replica", MAX_NAME_LENGTH)?.to_owned(),
            beat: reader.uvarint("beat", u64::MAX)?,
            received_at_ms: reader.varint("time of the last sample")?,
            elected_at_ms: reader.varint("time of the election")?,
        };
        Ok(Self::of(pair, election))
    }

    fn expire(&mut self, now_ms: i64) {
        let oldest = now_ms.saturating_sub(RETENTION.as_millis() as i64);
        self.pairs.retain(|_, election| election.received_at_ms >= oldest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Elections> {
        (0..3u8, 0..3u8, 1..4u64, 0..3u8, 0..4u64, 0..4i64, 0..4i64).prop_map(
            |(tenant, cluster, term, replica, beat, received_at_ms, elected_at_ms)| {
                let pair = Pair { tenant: format!("t{tenant}"), cluster: format!("c{cluster}") };
                let replica = format!("r{replica}");
                Elections::of(pair, Election { term, replica, beat, received_at_ms, elected_at_ms })
            },
        )
    }

    fn merged<'a>(entries: impl IntoIterator<Item = &'a Elections>) -> Elections {
        let mut all = Elections::default();
        for entry in entries {
            let lacked = all.lacks(entry);
            assert_eq!(!all.merge(entry).is_empty(), lacked);
        }
        all
    }

    proptest! {
        #[test]
        fn merges_in_any_order_and_number(entries in proptest::collection::vec(entry(), 0..20), cut: prop::sample::Index) {
            let all = merged(&entries);
            prop_assert_eq!(&merged(entries.iter().rev()), &all);
            let mut halves = merged(&entries[..cut.index(entries.len() + 1)]);
            halves.merge(&all);
            halves.merge(&all);
            prop_assert_eq!(&halves, &all);
        }

        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(entry(), 0..20)) {
            let all = merged(&entries);
            let mut read = Elections::default();
            for key in all.entries() {
                let mut bytes = Vec::new();
                prop_assert!(all.encode_entry(&key, &mut bytes));
                let mut reader = Reader::new(&bytes);
                read.merge(&Elections::decode_entry(&mut reader).unwrap());
                prop_assert!(reader.is_empty());
            }
            prop_assert_eq!(read, all);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Elections::decode_entry(&mut Reader::new(&bytes));
            let _ = Elections::default().encode_entry(&bytes, &mut Vec::new());
        }
    }

    #[test]
    fn the_longest_entry_fits_a_packet() {
        let long = || "x".repeat(MAX_NAME_LENGTH);
        let pair = Pair { tenant: long(), cluster: long() };
        let election = Election {
            term: u64::MAX,
            replica: long(),
            beat: u64::MAX,
            received_at_ms: i64::MIN,
            elected_at_ms: i64::MIN,
        };
        let all = Elections::of(pair.clone(), election);
        let mut bytes = Vec::new();
        assert!(all.encode_entry(&key(&pair), &mut bytes));
        assert!(bytes.len() <= skald_ring::value::MAX_ENTRY_LENGTH, "{}", bytes.len());
    }
}
