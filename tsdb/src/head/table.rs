//! From a series' hash to its slot.

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashTable;

use crate::postings::SeriesRef;

/// Tables the series are spread over, so that none stalls an append for long when it grows.
const SHARDS: usize = 16;

/// Slots by hash. Holds 32 bits of each hash; who finds a slot verifies that it is the series looked for.
pub(super) struct SeriesTable {
    shards: [HashTable<Entry>; SHARDS],
    /// Keys the fingerprints, so that no sender of labels can make two label sets that pass for one. Samples that come with a
    /// hash alone are not guarded so.
    hasher: foldhash::quality::RandomState,
}

#[derive(Clone, Copy)]
struct Entry {
    slot: SeriesRef,
    tag: u32,
}

impl Default for SeriesTable {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| HashTable::new()), hasher: foldhash::quality::RandomState::default() }
    }
}

/// The lower half of the hash: its low 32 bits are the tag, its top bits choose the shard.
fn split(hash: u128) -> (usize, u32) {
    let low = hash as u64;
    ((low >> 60) as usize % SHARDS, low as u32)
}

fn spread(tag: u32) -> u64 {
    u64::from(tag) << 32 | u64::from(tag)
}

impl SeriesTable {
    /// The keyed hash that tells a series from others of the same sender's hash.
    #[inline]
    pub(super) fn fingerprint(&self, label_bytes: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(label_bytes);
        hasher.finish()
    }

    /// Slots whose series may have this hash; one, hardly ever more.
    pub(super) fn candidates(&self, hash: u128) -> impl Iterator<Item = SeriesRef> {
        let (shard, tag) = split(hash);
        self.shards[shard].iter_hash(spread(tag)).filter(move |entry| entry.tag == tag).map(|entry| entry.slot)
    }

    pub(super) fn insert(&mut self, hash: u128, slot: SeriesRef) {
        let (shard, tag) = split(hash);
        self.shards[shard].insert_unique(spread(tag), Entry { slot, tag }, |entry| spread(entry.tag));
    }

    pub(super) fn remove(&mut self, hash: u128, slot: SeriesRef) {
        let (shard, tag) = split(hash);
        if let Ok(found) = self.shards[shard].find_entry(spread(tag), |entry| entry.slot == slot) {
            found.remove();
        }
    }

    /// Gives memory back after many removals.
    pub(super) fn compact(&mut self) {
        for shard in &mut self.shards {
            if shard.capacity() > shard.len() * 4 {
                shard.shrink_to_fit(|entry| spread(entry.tag));
            }
        }
    }

    /// Heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.shards.iter().map(HashTable::allocation_size).sum()
    }
}
