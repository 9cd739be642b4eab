//! A cache bounded by bytes.

use std::collections::VecDeque;
use std::hash::Hash;

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use skald_model::Labels;
use std::collections::HashMap;

/// Memory an entry takes besides its bytes, about.
const ENTRY_OVERHEAD: usize = 128;

/// What a cache holds.
pub(super) trait Cached: Clone {
    /// Bytes it takes on the heap.
    fn heap_bytes(&self) -> usize;
}

impl Cached for Bytes {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl Cached for Labels {
    fn heap_bytes(&self) -> usize {
        self.as_bytes().len()
    }
}

/// Values by key, at most so many bytes in all; the least lately used go first, roughly.
///
/// Entries stand in a queue. When room is needed, the first one goes, unless it was used since it was put in line: then it
/// goes to the end once more (the "second chance" algorithm). A hit therefore costs no reordering.
pub(super) struct ByteCache<K, V> {
    capacity: usize,
    /// Held for lookups or insertions of one batch, never longer.
    state: Mutex<State<K, V>>,
}

struct State<K, V> {
    entries: HashMap<K, Entry<V>, RandomState>,
    /// Every key of `entries`, once.
    line: VecDeque<K>,
    used: usize,
}

struct Entry<V> {
    value: V,
    hit: bool,
}

fn cost(value: &impl Cached) -> usize {
    value.heap_bytes() + ENTRY_OVERHEAD
}

impl<K: Hash + Eq + Clone, V: Cached> ByteCache<K, V> {
    /// An empty cache that may grow to `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::new(State { entries: HashMap::default(), line: VecDeque::new(), used: 0 }) }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.state.lock().get(key)
    }

    /// What the cache has of each key.
    pub(super) fn get_all(&self, keys: impl Iterator<Item = K>) -> Vec<Option<V>> {
        let mut state = self.state.lock();
        keys.map(|key| state.get(&key)).collect()
    }

    /// Puts `value` in, replacing what the key had. Values should own their memory: a slice would keep more alive than is
    /// counted.
    pub(super) fn insert(&self, key: K, value: V) {
        self.insert_all([(key, value)]);
    }

    /// Puts all these in.
    pub(super) fn insert_all(&self, values: impl IntoIterator<Item = (K, V)>) {
        let mut state = self.state.lock();
        for (key, value) in values {
            if cost(&value) <= self.capacity {
                state.insert(key, value, self.capacity);
            }
        }
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        self.state.lock().used
    }
}

impl<K: Hash + Eq + Clone, V: Cached> State<K, V> {
    fn get(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        entry.hit = true;
        Some(entry.value.clone())
    }

    fn insert(&mut self, key: K, value: V, capacity: usize) {
        match self.entries.get_mut(&key) {
            Some(entry) => {
                self.used = self.used - cost(&entry.value) + cost(&value);
                entry.value = value;
            }
            None => {
                self.used += cost(&value);
                self.line.push_back(key.clone());
                self.entries.insert(key, Entry { value, hit: false });
            }
        }
        while self.used > capacity {
            let Some(key) = self.line.pop_front() else { break };
            match self.entries.get_mut(&key) {
                Some(entry) if entry.hit => {
                    entry.hit = false;
                    self.line.push_back(key);
                }
                _ => {
                    if let Some(entry) = self.entries.remove(&key) {
                        self.used -= cost(&entry.value);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(len: usize) -> Bytes {
        Bytes::from(vec![len as u8; len])
    }

    #[test]
    fn what_is_used_stays() {
        let cache = ByteCache::new(3 * (100 + ENTRY_OVERHEAD));
        for key in 0..3 {
            cache.insert(key, bytes(100));
        }
        assert_eq!(cache.get(&0), Some(bytes(100)));
        cache.insert(3, bytes(100));
        assert!(cache.get(&0).is_some() && cache.get(&1).is_none() && cache.get(&3).is_some());
        cache.insert(4, bytes(100_000));
        assert!(cache.get(&4).is_none() && cache.get(&0).is_some());
    }

    proptest! {
        #[test]
        fn never_above_its_capacity_and_never_wrong(steps in proptest::collection::vec((0_u8..20, 0_usize..300, 0_u8..4), 1..200)) {
            let cache: ByteCache<u8, Bytes> = ByteCache::new(2_000);
            let mut last = std::collections::HashMap::new();
            for (key, len, what) in steps {
                match what {
                    0 | 1 => if let Some(found) = cache.get(&key) {
                        prop_assert_eq!(Some(&found.len()), last.get(&key));
                    },
                    _ => {
                        cache.insert(key, bytes(len));
                        last.insert(key, len);
                    }
                }
                prop_assert!(cache.used() <= 2_000);
                let state = cache.state.lock();
                prop_assert_eq!(state.used, state.entries.values().map(|e| cost(&e.value)).sum::<usize>());
                prop_assert_eq!(state.line.len(), state.entries.len());
            }
        }
    }
}
