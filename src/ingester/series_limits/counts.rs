//! How many series each replica group has of a tenant, as ingesters tell each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skald_ring::codec::{DecodeError, Reader, put_bytes, put_uvarint, put_varint};
use skald_ring::value::EntryKey;
use skald_ring::{GroupId, MAX_GROUPS, Value};

/// A count nobody told again for so long is forgotten.
pub(super) const RETENTION: Duration = Duration::from_secs(3600);

/// Longest name of a tenant.
const MAX_NAME_LENGTH: usize = 256;
const VERSION: u8 = 1;

/// Whose series are counted, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    tenant: Arc<str>,
    group: u32,
}

/// What one member of a group counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Count {
    /// Raised with every count of the group, whichever member tells it.
    pub(super) version: u64,
    /// A number of the process that counted.
    pub(super) publisher: u64,
    pub(super) series: u64,
    /// Wall time, Unix milliseconds: for forgetting only.
    pub(super) at_ms: i64,
}

/// The counts of all groups. Merging keeps the highest version of each, so it does not matter in which order and how often
/// they come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeriesCounts {
    counts: BTreeMap<Place, Count>,
}

impl SeriesCounts {
    /// Adds what a group counted, or replaces it.
    pub(super) fn set(&mut self, tenant: &str, group: GroupId, count: Count) {
        self.counts.insert(Place { tenant: tenant.into(), group: group.0 }, count);
    }

    /// What is known of a tenant, by group.
    pub(super) fn of<'c>(&'c self, tenant: &'c str) -> impl Iterator<Item = (GroupId, Count)> + 'c {
        let from = Place { tenant: tenant.into(), group: 0 };
        let entries = self.counts.range(from..).take_while(move |(place, _)| &*place.tenant == tenant);
        entries.map(|(place, count)| (GroupId(place.group), *count))
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }
}

impl Place {
    fn write(&self, out: &mut Vec<u8>) {
        put_bytes(out, self.tenant.as_bytes());
        put_uvarint(out, self.group.into());
    }

    fn key(&self) -> EntryKey {
        let mut key = Vec::new();
        self.write(&mut key);
        key.into()
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tenant = reader.text("tenant", MAX_NAME_LENGTH)?.into();
        Ok(Self { tenant, group: reader.uvarint("group", u64::from(MAX_GROUPS))? as u32 })
    }
}

impl Value for SeriesCounts {
    fn merge(&mut self, other: &Self) -> Vec<EntryKey> {
        let mut changed = Vec::new();
        for (place, count) in &other.counts {
            if self.counts.get(place).is_none_or(|known| count > known) {
                self.counts.insert(place.clone(), *count);
                changed.push(place.key());
            }
        }
        changed
    }

    fn lacks(&self, other: &Self) -> bool {
        other.counts.iter().any(|(place, count)| self.counts.get(place).is_none_or(|known| count > known))
    }

    fn entries(&self) -> Vec<EntryKey> {
        self.counts.keys().map(Place::key).collect()
    }

    fn is_transient(_: &[u8]) -> bool {
        false
    }

    /// `version u8 | tenant | group | version | publisher | series | at`.
    fn encode_entry(&self, key: &[u8], out: &mut Vec<u8>) -> bool {
        let Ok(place) = Place::read(&mut Reader::new(key)) else { return false };
        let Some(count) = self.counts.get(&place) else { return false };
        out.push(VERSION);
        place.write(out);
        put_uvarint(out, count.version);
        put_uvarint(out, count.publisher);
        put_uvarint(out, count.series);
        put_varint(out, count.at_ms);
        true
    }

    fn decode_entry(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = reader.byte("version of a count of series")?;
        if version != VERSION {
            let (what, version, newest) = ("a count of series", version.into(), VERSION.into());
            return Err(DecodeError::UnknownVersion { what, version, newest });
        }
        let place = Place::read(reader)?;
        let count = Count {
            version: reader.uvarint("version", u64::MAX)?,
            publisher: reader.uvarint("publisher", u64::MAX)?,
            series: reader.uvarint("series", u64::MAX)?,
            at_ms: reader.varint("time of a count of series")?,
        };
        Ok(Self { counts: BTreeMap::from([(place, count)]) })
    }

    fn expire(&mut self, now_ms: i64) {
        let oldest = now_ms.saturating_sub(RETENTION.as_millis() as i64);
        self.counts.retain(|_, count| count.at_ms >= oldest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = SeriesCounts> {
        (0..3u8, 0..3u32, 1..4u64, 0..2u64, 0..3u64, 0..3i64).prop_map(
            |(tenant, group, version, publisher, series, at_ms)| {
                let mut counts = SeriesCounts::default();
                counts.set(&format!("t{tenant}"), GroupId(group), Count { version, publisher, series, at_ms });
                counts
            },
        )
    }

    fn merged<'a>(entries: impl IntoIterator<Item = &'a SeriesCounts>) -> SeriesCounts {
        let mut all = SeriesCounts::default();
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
            let mut read = SeriesCounts::default();
            for key in all.entries() {
                let mut bytes = Vec::new();
                prop_assert!(all.encode_entry(&key, &mut bytes));
                let mut reader = Reader::new(&bytes);
                read.merge(&SeriesCounts::decode_entry(&mut reader).unwrap());
                prop_assert!(reader.is_empty());
            }
            prop_assert_eq!(read, all);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = SeriesCounts::decode_entry(&mut Reader::new(&bytes));
            let _ = SeriesCounts::default().encode_entry(&bytes, &mut Vec::new());
        }
    }

    #[test]
    fn a_tenants_counts_are_its_own() {
        let mut all = SeriesCounts::default();
        let count = |series| Count { version: 1, publisher: 1, series, at_ms: 0 };
        for (tenant, group, series) in [("a", 0, 1), ("a", 7, 2), ("ab", 1, 3), ("b", 0, 4)] {
            all.set(tenant, GroupId(group), count(series));
        }
        assert_eq!(all.of("a").collect::<Vec<_>>(), [(GroupId(0), count(1)), (GroupId(7), count(2))]);
        assert_eq!(all.of("c").count(), 0);
        all.expire(RETENTION.as_millis() as i64 + 1);
        assert_eq!(all.len(), 0);
    }
}
