//! A cache bounded by bytes.

use std::collections::VecDeque;
use std::hash::Hash;

use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;

/// Memory an entry takes besides its bytes, about.
const ENTRY_OVERHEAD: usize = 128;

/// Bytes by key, at most so many in all; the least lately used go first, roughly.
///
/// Entries stand in a queue. When room is needed, the first one goes, unless it was used since it was put in line: then it
/// goes to the end once more (the "second chance" algorithm). A hit therefore costs no reordering.
pub(super) struct ByteCache<K> {
    capacity: usize,
    /// Held for a lookup or an insertion, never longer.
    state: Mutex<State<K>>,
}

struct State<K> {
    entries: HashMap<K, Entry>,
    /// Every key of `entries`, once.
    line: VecDeque<K>,
    used: usize,
}

struct Entry {
    bytes: Bytes,
    hit: bool,
}

fn cost(bytes: &Bytes) -> usize {
    bytes.len() + ENTRY_OVERHEAD
}

impl<K: Hash + Eq + Clone> ByteCache<K> {
    /// An empty cache that may grow to `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::new(State { entries: HashMap::new(), line: VecDeque::new(), used: 0 }) }
    }

    pub(super) fn get(&self, key: &K) -> Option<Bytes> {
        let mut state = self.state.lock();
        let entry = state.entries.get_mut(key)?;
        entry.hit = true;
        Some(entry.bytes.clone())
    }

    /// Puts `bytes` in, replacing what the key had. Bytes should own their memory: a slice would keep more alive than is
    /// counted.
    pub(super) fn insert(&self, key: K, bytes: Bytes) {
        let cost_of_new = cost(&bytes);
        if cost_of_new > self.capacity {
            return;
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        match state.entries.get_mut(&key) {
            Some(entry) => {
                state.used = state.used - cost(&entry.bytes) + cost_of_new;
                entry.bytes = bytes;
            }
            None => {
                state.used += cost_of_new;
                state.line.push_back(key.clone());
                state.entries.insert(key, Entry { bytes, hit: false });
            }
        }
        while state.used > self.capacity {
            let Some(key) = state.line.pop_front() else { break };
            match state.entries.get_mut(&key) {
                Some(entry) if entry.hit => {
                    entry.hit = false;
                    state.line.push_back(key);
                }
                _ => {
                    if let Some(entry) = state.entries.remove(&key) {
                        state.used -= cost(&entry.bytes);
                    }
                }
            }
        }
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> usize {
        self.state.lock().used
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
            let cache = ByteCache::new(2_000);
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
                prop_assert_eq!(state.used, state.entries.values().map(|e| cost(&e.bytes)).sum::<usize>());
                prop_assert_eq!(state.line.len(), state.entries.len());
            }
        }
    }
}
