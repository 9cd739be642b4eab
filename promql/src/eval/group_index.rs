//! Numbers for label subsets: groups of aggregations, match groups of binary operators.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use skald_model::{Labels, METRIC_NAME, varint};

/// Which labels of a series count.
#[derive(Debug, Clone)]
pub(crate) enum LabelSubset {
    /// These; ascending, each once.
    Only(Vec<String>),
    /// All but these; ascending, each once.
    Without(Vec<String>),
}

impl LabelSubset {
    /// `by (labels)` and `on (labels)`.
    pub(crate) fn only(labels: &[String]) -> Self {
        Self::Only(ascending(labels.to_vec()))
    }

    /// `without (labels)` and `ignoring (labels)`; the metric name never counts.
    pub(crate) fn without(labels: &[String]) -> Self {
        let mut labels = labels.to_vec();
        labels.push(METRIC_NAME.to_owned());
        Self::Without(ascending(labels))
    }

    /// Whether the metric name counts.
    pub(crate) fn has_name(&self) -> bool {
        matches!(self, Self::Only(labels) if labels.iter().any(|l| l == METRIC_NAME))
    }

    /// The counting labels of `labels`, laid out as [`Labels::as_bytes`], into the cleared `out`.
    pub(crate) fn project(&self, labels: &Labels, out: &mut Vec<u8>) {
        out.clear();
        match self {
            // Not even the labels' memory is touched.
            Self::Only(wanted) if wanted.is_empty() => {}
            Self::Only(wanted) => {
                let mut wanted = wanted.iter().map(String::as_str).peekable();
                for (name, value) in labels {
                    while wanted.next_if(|w| *w < name).is_some() {}
                    match wanted.peek() {
                        None => break,
                        Some(w) if *w == name => put_label(out, name, value),
                        Some(_) => {}
                    }
                }
            }
            Self::Without(unwanted) => {
                let mut unwanted = unwanted.iter().map(String::as_str).peekable();
                for (name, value) in labels {
                    while unwanted.next_if(|u| *u < name).is_some() {}
                    if unwanted.peek() != Some(&name) {
                        put_label(out, name, value);
                    }
                }
            }
        }
    }

    /// The counting labels of `labels`.
    pub(crate) fn of(&self, labels: &Labels) -> Labels {
        let mut bytes = Vec::new();
        self.project(labels, &mut bytes);
        Labels::from_bytes(&bytes).unwrap_or_default()
    }
}

fn ascending(mut labels: Vec<String>) -> Vec<String> {
    labels.sort_unstable();
    labels.dedup();
    labels
}

fn put_label(out: &mut Vec<u8>, name: &str, value: &str) {
    varint::put_uvarint(out, name.len() as u64);
    out.extend_from_slice(name.as_bytes());
    varint::put_uvarint(out, value.len() as u64);
    out.extend_from_slice(value.as_bytes());
}

/// Gives each distinct subset of labels a number, 0, 1, 2, … in the order of first sight.
pub(crate) struct GroupIndex {
    subset: LabelSubset,
    hasher: foldhash::fast::RandomState,
    ids: HashTable<u32>,
    /// Keys one after the other; group `i` ends at `ends[i]`.
    keys: Vec<u8>,
    ends: Vec<usize>,
    scratch: Vec<u8>,
}

impl GroupIndex {
    pub(crate) fn new(subset: LabelSubset) -> Self {
        Self {
            subset,
            hasher: foldhash::fast::RandomState::default(),
            ids: HashTable::new(),
            keys: Vec::new(),
            ends: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// The number of the group of `labels`; a new one if it is the first of its group.
    pub(crate) fn insert(&mut self, labels: &Labels) -> usize {
        self.subset.project(labels, &mut self.scratch);
        let Self { hasher, ids, keys, ends, scratch, .. } = self;
        let hash = hasher.hash_one(&scratch[..]);
        let is_it = |&id: &u32| {
            let key = key_of(keys, ends, id);
            // Comparing no bytes at the address of nothing costs some processors a hundred nanoseconds.
            key.len() == scratch.len() && (key.is_empty() || key == &scratch[..])
        };
        if let Some(id) = ids.find(hash, is_it) {
            return *id as usize;
        }
        // A query cannot hold 2^32 groups: each costs more than 16 bytes.
        let id = ends.len() as u32;
        keys.extend_from_slice(scratch);
        ends.push(keys.len());
        ids.insert_unique(hash, id, |&other| hasher.hash_one(key_of(keys, ends, other)));
        id as usize
    }

    /// The number of the group of `labels`, if some series of it was seen.
    pub(crate) fn get(&mut self, labels: &Labels) -> Option<usize> {
        self.subset.project(labels, &mut self.scratch);
        let hash = self.hasher.hash_one(&self.scratch[..]);
        let found = self.ids.find(hash, |&id| key_of(&self.keys, &self.ends, id) == &self.scratch[..]);
        found.map(|id| *id as usize)
    }

    /// The labels of a group.
    pub(crate) fn labels(&self, id: usize) -> Labels {
        Labels::from_bytes(key_of(&self.keys, &self.ends, id as u32)).unwrap_or_default()
    }

    /// Bytes that a group holds here.
    pub(crate) fn key_bytes(&self, id: usize) -> usize {
        // Buffers and tables grow by doubling.
        2 * (key_of(&self.keys, &self.ends, id as u32).len() + size_of::<usize>() + 2 * size_of::<u32>())
    }

    pub(crate) fn subset(&self) -> &LabelSubset {
        &self.subset
    }
}

fn key_of<'k>(keys: &'k [u8], ends: &[usize], id: u32) -> &'k [u8] {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] };
    &keys[start..ends[id]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subsets_and_numbers() {
        let labels = Labels::from_pairs([("__name__", "m"), ("a", "1"), ("b", "2"), ("c", "3")]);
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let check = |subset: LabelSubset, want: &str| assert_eq!(subset.of(&labels).to_string(), want);
        check(LabelSubset::only(&names(&["c", "a", "x"])), r#"{a="1", c="3"}"#);
        check(LabelSubset::only(&names(&["__name__"])), r#"{__name__="m"}"#);
        check(LabelSubset::only(&[]), "{}");
        check(LabelSubset::without(&names(&["b", "b", "x"])), r#"{a="1", c="3"}"#);

        let mut index = GroupIndex::new(LabelSubset::only(&names(&["a"])));
        let other = Labels::from_pairs([("a", "2")]);
        assert_eq!((index.insert(&labels), index.insert(&other), index.insert(&labels)), (0, 1, 0));
        assert_eq!(index.get(&Labels::empty()), None);
        assert_eq!(index.labels(1), other);
    }
}
