//! A series' identity on its way from a sender to a head: the sorted labels as remote_write encodes them.

use xxhash_rust::xxh3::xxh3_128;

use crate::{Labels, varint};

/// Sorted labels in remote_write's own encoding, so that the received bytes can travel without being rebuilt.
///
/// Per label, in ascending name order: `0x0A | len uvarint | 0x0A | name_len uvarint | name | 0x12 | value_len uvarint
/// | value` (protobuf `repeated Label labels = 1` of `prometheus.TimeSeries`, varints minimal). Names are unique and not
/// empty, values are not empty, all are valid UTF-8. Equal label sets therefore have equal bytes and equal hashes.
///
/// The type itself promises nothing about bytes made with [`LabelBytes::new_unchecked`]; reading damaged ones ends
/// early, it never panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelBytes<'a>(&'a [u8]);

impl<'a> LabelBytes<'a> {
    /// Wraps bytes whose rules the caller has checked (or made with [`LabelBytes::encode`]).
    pub fn new_unchecked(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Wraps bytes after checking every rule; `None` when one is broken.
    pub fn check(bytes: &'a [u8]) -> Option<Self> {
        let mut rebuilt = 0;
        let mut previous: &str = "";
        let mut iter = Self(bytes).iter();
        for (name, value) in iter.by_ref() {
            if name <= previous || value.is_empty() {
                return None;
            }
            previous = name;
            rebuilt += encoded_len(name, value);
        }
        // A non-minimal varint or an unknown field makes the canonical length differ from the walked one.
        (iter.rest.is_empty() && rebuilt == bytes.len()).then_some(Self(bytes))
    }

    /// Appends one label; call in ascending name order.
    pub fn encode(out: &mut Vec<u8>, name: &str, value: &str) {
        let inner = field_len(name) + field_len(value);
        out.push(0x0A);
        varint::put_uvarint(out, inner as u64);
        out.push(0x0A);
        varint::put_uvarint(out, name.len() as u64);
        out.extend_from_slice(name.as_bytes());
        out.push(0x12);
        varint::put_uvarint(out, value.len() as u64);
        out.extend_from_slice(value.as_bytes());
    }

    /// Encodes a whole label set.
    pub fn from_labels(labels: &Labels) -> Vec<u8> {
        let mut out = Vec::with_capacity(labels.as_bytes().len() + 40);
        for (name, value) in labels {
            Self::encode(&mut out, name, value);
        }
        out
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The 128-bit series hash (xxh3-128, seed 0, of the bytes): what senders compute and heads look up.
    #[inline]
    pub fn hash(&self) -> u128 {
        xxh3_128(self.0)
    }

    /// Labels in name order.
    pub fn iter(&self) -> LabelBytesIter<'a> {
        LabelBytesIter { rest: self.0 }
    }

    /// The same identity as a query sees it.
    pub fn to_labels(&self) -> Labels {
        Labels::from_sorted(self.iter())
    }
}

fn uvarint_len(value: usize) -> usize {
    (64 - (value as u64 | 1).leading_zeros() as usize).div_ceil(7)
}

fn field_len(text: &str) -> usize {
    1 + uvarint_len(text.len()) + text.len()
}

fn encoded_len(name: &str, value: &str) -> usize {
    let inner = field_len(name) + field_len(value);
    1 + uvarint_len(inner) + inner
}

/// Walks [`LabelBytes`]; ends at the first damaged label.
#[derive(Clone)]
pub struct LabelBytesIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for LabelBytesIter<'a> {
    type Item = (&'a str, &'a str);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.rest;
        let mut at = 1;
        if *bytes.first()? != 0x0A {
            return None;
        }
        let label = varint::get_slice(bytes, &mut at)?;
        let mut inner = 1;
        if *label.first()? != 0x0A {
            return None;
        }
        let name = varint::get_slice(label, &mut inner)?;
        if *label.get(inner)? != 0x12 {
            return None;
        }
        inner += 1;
        let value = varint::get_slice(label, &mut inner)?;
        if inner != label.len() {
            return None;
        }
        let pair = (std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?);
        self.rest = &bytes[at..];
        Some(pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(pairs in proptest::collection::btree_map("[a-z]{1,3}", ".{1,300}", 0..6)) {
            let labels = Labels::from_pairs(pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())));
            let bytes = LabelBytes::from_labels(&labels);
            let checked = LabelBytes::check(&bytes).unwrap();
            prop_assert_eq!(checked.to_labels(), labels);
        }

        #[test]
        fn damaged_bytes_never_panic(bytes: Vec<u8>) {
            if let Some(checked) = LabelBytes::check(&bytes) {
                prop_assert_eq!(LabelBytes::from_labels(&checked.to_labels()), bytes);
            }
        }
    }

    #[test]
    fn broken_rules_are_refused() {
        let mut unsorted = Vec::new();
        LabelBytes::encode(&mut unsorted, "b", "1");
        LabelBytes::encode(&mut unsorted, "a", "1");
        assert!(LabelBytes::check(&unsorted).is_none());
        // `name_len` as the two-byte varint 0x81 0x00: same meaning, other bytes.
        assert!(LabelBytes::check(&[0x0A, 7, 0x0A, 0x81, 0x00, b'a', 0x12, 1, b'v']).is_none());
        assert!(LabelBytes::check(&[0x0A, 6, 0x0A, 1, b'a', 0x12, 1, b'v']).is_some());
    }
}
