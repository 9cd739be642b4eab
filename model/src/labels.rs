//! A series' identity inside a query: an immutable, sorted label set.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use crate::quote::Quoted;
use crate::varint;

/// Name of the label that holds the metric name.
pub const METRIC_NAME: &str = "__name__";

/// A sorted set of labels; cheap to clone.
///
/// Layout of the shared bytes, per label in ascending name order:
/// `name_len uvarint | name | value_len uvarint | value`. Names are unique and not empty, values are not empty,
/// all are valid UTF-8: checked once on construction, so equal sets have equal bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Labels {
    bytes: Arc<[u8]>,
}

static EMPTY: LazyLock<Arc<[u8]>> = LazyLock::new(|| Arc::from([]));

/// Bytes which are not a label set as [`Labels`] lays it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed label set")]
pub struct MalformedLabels;

impl Labels {
    /// The label set without labels.
    pub fn empty() -> Self {
        Self { bytes: EMPTY.clone() }
    }

    /// Builds a set from pairs in any order. Of pairs with one name the last wins; empty values are left out.
    pub fn from_pairs<N: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let mut builder = LabelsBuilder::default();
        for (name, value) in pairs {
            builder.set(name.as_ref(), value.as_ref());
        }
        builder.build()
    }

    /// Builds a set from pairs that the caller has already sorted by name, unique and without empty values.
    pub fn from_sorted<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut bytes = Vec::with_capacity(256);
        for (name, value) in pairs {
            put_str(&mut bytes, name);
            put_str(&mut bytes, value);
        }
        debug_assert!(Self::check(&bytes).is_ok(), "from_sorted needs sorted, unique, non-empty labels");
        Self { bytes: bytes.into() }
    }

    /// Takes bytes laid out as [`Labels::as_bytes`] gives them, checking every rule of the layout.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MalformedLabels> {
        Self::check(bytes)?;
        Ok(Self { bytes: bytes.into() })
    }

    fn check(bytes: &[u8]) -> Result<(), MalformedLabels> {
        let mut at = 0;
        let mut previous: &[u8] = &[];
        while at < bytes.len() {
            let name = varint::get_slice(bytes, &mut at).ok_or(MalformedLabels)?;
            let value = varint::get_slice(bytes, &mut at).ok_or(MalformedLabels)?;
            if name <= previous || value.is_empty() {
                return Err(MalformedLabels);
            }
            if std::str::from_utf8(name).is_err() || std::str::from_utf8(value).is_err() {
                return Err(MalformedLabels);
            }
            previous = name;
        }
        Ok(())
    }

    /// The set's bytes; the layout is in the type's documentation.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Labels in ascending name order.
    pub fn iter(&self) -> LabelsIter<'_> {
        LabelsIter { bytes: &self.bytes }
    }

    /// The value of label `name`, if the set has it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// The metric name, if there is one.
    pub fn metric_name(&self) -> Option<&str> {
        self.get(METRIC_NAME)
    }

    /// Whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Number of labels; walks the set.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// The set without label `name`.
    pub fn without(&self, name: &str) -> Labels {
        if self.get(name).is_none() {
            return self.clone();
        }
        Labels::from_sorted(self.iter().filter(|(n, _)| *n != name))
    }

    /// The set without its metric name.
    pub fn without_name(&self) -> Labels {
        self.without(METRIC_NAME)
    }

    /// What a Prometheus built as it is released hashes series to, which decides what `limit_ratio` picks: xxHash64
    /// (seed 0) over each name and value behind its length (one byte, from 255 on 0xFF and three bytes, little-endian).
    pub fn prometheus_hash(&self) -> u64 {
        let mut joined = Vec::with_capacity(self.bytes.len() + 16);
        for text in self.iter().flat_map(|(name, value)| [name, value]) {
            match u8::try_from(text.len()) {
                Ok(length) if length < u8::MAX => joined.push(length),
                _ => {
                    let [a, b, c, ..] = (text.len() as u64).to_le_bytes();
                    joined.extend_from_slice(&[u8::MAX, a, b, c]);
                }
            }
            joined.extend_from_slice(text.as_bytes());
        }
        xxhash_rust::xxh64::xxh64(&joined, 0)
    }

    /// xxHash64 (seed 0) over `name 0xFF value 0xFF` of each label: Prometheus' stable label hash.
    pub fn stable_hash(&self) -> u64 {
        let mut joined = Vec::with_capacity(self.bytes.len() + 16);
        for (name, value) in self.iter() {
            joined.extend_from_slice(name.as_bytes());
            joined.push(0xFF);
            joined.extend_from_slice(value.as_bytes());
            joined.push(0xFF);
        }
        xxhash_rust::xxh64::xxh64(&joined, 0)
    }
}

/// Whether `name` is a letter or underscore followed by letters, digits and underscores: a name that PromQL may write
/// without quotes.
pub fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b == b'_' || b.is_ascii_alphabetic())
        && bytes.all(|b| b == b'_' || b.is_ascii_alphanumeric())
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    varint::put_uvarint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

impl Default for Labels {
    fn default() -> Self {
        Self::empty()
    }
}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.bytes);
    }
}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Label-set order: name, then value, pair by pair, by bytes; a prefix comes first.
impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        // Byte order is the order of UTF-8 texts, so there is nothing to decode.
        let (mut at, mut other_at) = (0, 0);
        loop {
            let field = varint::get_slice(&self.bytes, &mut at);
            let other_field = varint::get_slice(&other.bytes, &mut other_at);
            match field.cmp(&other_field) {
                Ordering::Equal if field.is_none() => return Ordering::Equal,
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
    }
}

/// As Prometheus prints label sets: `{a="b", c="d"}`, a name that is no plain identifier in quotes.
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (name, value)) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            if is_identifier(name) {
                f.write_str(name)?
            } else {
                write!(f, "{}", Quoted(name))?
            }
            write!(f, "={}", Quoted(value))?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Walks a [`Labels`] in name order.
#[derive(Clone)]
pub struct LabelsIter<'a> {
    bytes: &'a [u8],
}

impl<'a> LabelsIter<'a> {
    #[inline]
    fn take(&mut self) -> Option<&'a str> {
        let mut at = 0;
        let slice = varint::get_slice(self.bytes, &mut at)?;
        self.bytes = &self.bytes[at..];
        // Checked on construction; the cheap fallback keeps this path free of panics.
        Some(std::str::from_utf8(slice).unwrap_or_default())
    }
}

impl<'a> Iterator for LabelsIter<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.take()?;
        let value = self.take()?;
        Some((name, value))
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a str, &'a str);
    type IntoIter = LabelsIter<'a>;

    fn into_iter(self) -> LabelsIter<'a> {
        self.iter()
    }
}

/// Collects changes to a label set.
#[derive(Debug, Clone, Default)]
pub struct LabelsBuilder {
    pairs: Vec<(String, String)>,
}

impl LabelsBuilder {
    /// Starts from an existing set.
    pub fn new(base: &Labels) -> Self {
        Self { pairs: base.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect() }
    }

    /// Sets `name` to `value`; an empty value removes the label.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        let at = self.pairs.binary_search_by(|(n, _)| n.as_str().cmp(name));
        match (at, value.is_empty()) {
            (Ok(i), true) => drop(self.pairs.remove(i)),
            (Ok(i), false) => value.clone_into(&mut self.pairs[i].1),
            (Err(_), true) => {}
            (Err(i), false) => self.pairs.insert(i, (name.to_owned(), value.to_owned())),
        }
        self
    }

    /// Removes `name`, if present.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.set(name, "")
    }

    /// Keeps only the labels `keep` says yes to.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) -> &mut Self {
        self.pairs.retain(|(name, _)| keep(name));
        self
    }

    /// The current value of `name`, if present.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.pairs.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok()?;
        Some(&self.pairs[at].1)
    }

    /// The finished set.
    pub fn build(&self) -> Labels {
        Labels::from_sorted(self.pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_is_pairwise() {
        let a = Labels::from_pairs([("a", "b")]);
        let ab = Labels::from_pairs([("a", "b"), ("c", "d")]);
        let longer = Labels::from_pairs([("aa", "a")]);
        assert!(a < ab && ab < longer && Labels::empty() < a);
    }

    #[test]
    fn builder_sets_and_removes() {
        let base = Labels::from_pairs([("x", "1"), ("a", "2"), ("empty", "")]);
        assert_eq!(base.to_string(), r#"{a="2", x="1"}"#);
        let changed = LabelsBuilder::new(&base).set("x", "").set("m", "3").build();
        assert_eq!(changed.to_string(), r#"{a="2", m="3"}"#);
        let odd = Labels::from_pairs([("a.b", "x\"\n"), ("0", "é")]);
        assert_eq!(odd.to_string(), r#"{"0"="é", "a.b"="x\"\n"}"#);
        assert_eq!(base.without("a").len(), 1);
    }

    proptest! {
        #[test]
        fn order_is_that_of_the_pairs(
            a in proptest::collection::btree_map("[a-c]{1,2}", "[a-c\u{e9}]{1,130}", 0..4),
            b in proptest::collection::btree_map("[a-c]{1,2}", "[a-c\u{e9}]{1,130}", 0..4),
        ) {
            let (x, y) = (Labels::from_pairs(&a), Labels::from_pairs(&b));
            prop_assert_eq!(x.cmp(&y), x.iter().cmp(y.iter()));
        }

        #[test]
        fn bytes_round_trip(pairs in proptest::collection::btree_map("[a-z]{1,3}", ".{1,200}", 0..6)) {
            let labels = Labels::from_pairs(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            prop_assert_eq!(&Labels::from_bytes(labels.as_bytes()).unwrap(), &labels);
            prop_assert_eq!(labels.len(), pairs.len());
        }

        #[test]
        fn arbitrary_bytes_are_checked(bytes: Vec<u8>) {
            if let Ok(labels) = Labels::from_bytes(&bytes) {
                prop_assert_eq!(labels.iter().count(), labels.len());
            }
        }
    }
}
