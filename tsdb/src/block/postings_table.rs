//! The postings offset table: where the postings list of every label pair lies.

use std::cmp::Ordering;
use std::ops::Range;

use skald_model::varint;

use super::framing::{FRAME_LEN, Ranged, section_body, u32_at};
use super::section::Section;
use super::symbols::SAMPLE_EVERY;
use super::toc::Toc;
use super::{BlockError, BlockFile};
use crate::postings::SeriesRef;

/// Length to fetch for a list whose end the table does not tell.
const UNKNOWN_LIST_LEN: u64 = 4 << 10;

/// Reads the postings offset table, of which every 32nd entry of each label name is kept.
///
/// Body: `count u32 | count × (2 uvarint | name | value | offset uvarint)`, name and value as `len uvarint | bytes`,
/// strictly ascending by name and value. The pair `("", "")` is first: the list of all series.
#[derive(Clone)]
pub(super) struct PostingsTable {
    section: Section,
    names: Vec<Name>,
    samples: Vec<Sample>,
    /// The values of the samples, one behind the other.
    values: Vec<u8>,
    /// Where postings lists may lie in the index.
    lists: Range<u64>,
}

/// A label name.
#[derive(Clone)]
struct Name {
    name: Box<str>,
    /// Index of its first sample; those of the next name follow.
    first_sample: u32,
    /// Number of its values.
    values: u32,
}

/// A kept entry.
#[derive(Clone, Copy)]
struct Sample {
    /// Where the entry starts in the section.
    entry: u32,
    /// Where its value starts in [`PostingsTable::values`].
    value: u32,
    /// Where its list starts in the index.
    list: u64,
}

/// An entry as it lies in the section.
struct Entry<'a> {
    name: &'a [u8],
    value: &'a [u8],
    list: u64,
    len: usize,
}

/// What to do about a value.
enum Visit {
    Pass,
    /// Its list is wanted.
    Take,
    /// Neither this one nor those behind it matter.
    Stop,
}

impl<'a> Entry<'a> {
    /// `None` when the bytes end first.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut at = 1;
        bytes.first()?;
        let name = varint::get_slice(bytes, &mut at)?;
        let value = varint::get_slice(bytes, &mut at)?;
        let list = varint::get_uvarint(bytes, &mut at)?;
        Some(Self { name, value, list, len: at })
    }
}

impl PostingsTable {
    pub(super) fn open(section: Section, toc: &Toc) -> Result<Self, BlockError> {
        let lists = toc.postings..toc.postings_end();
        let mut table = Self { section, names: Vec::new(), samples: Vec::new(), values: Vec::new(), lists };
        let count = table.section.count()?;
        let section = table.section.clone();
        let mut seen = 0_u32;
        let mut previous_value: Vec<u8> = Vec::new();
        section.walk(4..section.len(), |at, bytes| {
            if bytes.first().is_some_and(|&strings| strings != 2) {
                return Err(section.damaged(at, "a postings offset is not of a pair"));
            }
            let Some(entry) = Entry::parse(bytes) else { return Ok(None) };
            let last = table.names.last();
            let new_name = last.is_none_or(|last| last.name.as_bytes() != entry.name);
            let in_order = match last {
                None => entry.name.is_empty() && entry.value.is_empty(),
                Some(last) if new_name => last.name.as_bytes() < entry.name,
                Some(_) => previous_value.as_slice() < entry.value,
            };
            if !in_order {
                return Err(section.damaged(at, "postings offsets are not in order"));
            }
            if new_name {
                let name = std::str::from_utf8(entry.name);
                let name = name.map_err(|_| section.damaged(at, "a label name is not UTF-8"))?;
                let first_sample = table.samples.len() as u32;
                table.names.push(Name { name: name.into(), first_sample, values: 0 });
            }
            if let Some(name) = table.names.last_mut() {
                if name.values.is_multiple_of(SAMPLE_EVERY) {
                    let value = table.values.len() as u32;
                    table.values.extend_from_slice(entry.value);
                    table.samples.push(Sample { entry: at as u32, value, list: entry.list });
                }
                name.values += 1;
            }
            seen = seen.saturating_add(1);
            previous_value.clear();
            previous_value.extend_from_slice(entry.value);
            Ok(Some(entry.len))
        })?;
        if seen != count {
            return Err(section.damaged(0, "count of postings offsets is wrong"));
        }
        table.names.shrink_to_fit();
        table.samples.shrink_to_fit();
        table.values.shrink_to_fit();
        Ok(table)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let names: usize = self.names.iter().map(|n| n.name.len() + size_of::<Name>()).sum();
        self.section.memory_bytes() + names + self.samples.len() * size_of::<Sample>() + self.values.len()
    }

    /// Label names, ascending, with the number of values of each.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, u32)> {
        // The first one is the empty name of the list of all series.
        self.names.iter().skip(1).map(|n| (&*n.name, n.values))
    }

    pub(super) fn value_count(&self, name: &str) -> u32 {
        self.find_name(name).map_or(0, |i| self.names[i].values)
    }

    /// The list of one pair.
    pub(super) fn find(&self, name: &str, value: &str) -> Result<Option<Range<u64>>, BlockError> {
        let mut found = Vec::new();
        self.walk_values(name, value, &mut found, |entry| match entry.cmp(value.as_bytes()) {
            Ordering::Less => Ok(Visit::Pass),
            Ordering::Equal => Ok(Visit::Take),
            Ordering::Greater => Ok(Visit::Stop),
        })?;
        Ok(found.pop())
    }

    /// Appends the lists of those values of `name` that `is_wanted` says yes to. It is asked about every value that starts
    /// with `prefix`, ascending.
    pub(super) fn scan(
        &self,
        name: &str,
        prefix: &str,
        is_wanted: &mut dyn FnMut(&str) -> bool,
        lists: &mut Vec<Range<u64>>,
    ) -> Result<(), BlockError> {
        // Not even asked for nothing: comparing no bytes at an empty text's address, where there is no memory, takes the
        // processor a hundred nanoseconds.
        let any = prefix.is_empty();
        self.walk_values(name, prefix, lists, |value| {
            if !any && !value.starts_with(prefix.as_bytes()) {
                return Ok(if value < prefix.as_bytes() { Visit::Pass } else { Visit::Stop });
            }
            let value = std::str::from_utf8(value);
            let value = value.map_err(|_| self.section.damaged(0, "a label value is not UTF-8"))?;
            Ok(if is_wanted(value) { Visit::Take } else { Visit::Pass })
        })
    }

    fn find_name(&self, name: &str) -> Option<usize> {
        self.names.binary_search_by(|n| (*n.name).cmp(name)).ok()
    }

    /// Visits values of `name`, beginning at most 32 before `from`; appends the lists of those `visit` takes.
    ///
    /// Values stay where they are read: of the one before, only its list is kept until the next entry has told its end.
    fn walk_values(
        &self,
        name: &str,
        from: &str,
        lists: &mut Vec<Range<u64>>,
        mut visit: impl FnMut(&[u8]) -> Result<Visit, BlockError>,
    ) -> Result<(), BlockError> {
        let Some(index) = self.find_name(name) else { return Ok(()) };
        let first = self.names[index].first_sample as usize;
        let end = self.names.get(index + 1).map_or(self.samples.len(), |next| next.first_sample as usize);
        let Some(start) = self.samples.get(self.last_sample_at_most(first..end, from.as_bytes())) else {
            return Ok(());
        };
        let end_entry = self.samples.get(end).map_or(self.section.len(), |s| u64::from(s.entry));
        // Every entry here begins alike.
        let mut head = vec![2];
        varint::put_uvarint(&mut head, name.len() as u64);
        head.extend_from_slice(name.as_bytes());
        let mut taken = None;
        self.section.walk(u64::from(start.entry)..end_entry, |at, bytes| {
            let Some(entry) = bytes.strip_prefix(head.as_slice()) else {
                return match bytes.len() < head.len() {
                    true => Ok(None),
                    false => Err(self.section.damaged(at, "a postings offset is of another label")),
                };
            };
            let mut len = 0;
            let Some(value) = varint::get_slice(entry, &mut len) else { return Ok(None) };
            let Some(list) = varint::get_uvarint(entry, &mut len) else { return Ok(None) };
            if let Some(before) = taken.take() {
                lists.push(self.list_range(before, Some(list))?);
            }
            match visit(value)? {
                Visit::Pass => {}
                Visit::Take => taken = Some(list),
                Visit::Stop => return Ok(Some(0)),
            }
            Ok(Some(head.len() + len))
        })?;
        if let Some(last) = taken {
            lists.push(self.list_range(last, self.samples.get(end).map(|s| s.list))?);
        }
        Ok(())
    }

    /// The last of `samples` whose value is at most `value`, or the first.
    fn last_sample_at_most(&self, samples: Range<usize>, value: &[u8]) -> usize {
        let (mut low, mut high) = (samples.start, samples.end);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.sample_value(middle) <= value { low = middle } else { high = middle }
        }
        low
    }

    fn sample_value(&self, index: usize) -> &[u8] {
        let start = self.samples[index].value as usize;
        let end = self.samples.get(index + 1).map_or(self.values.len(), |next| next.value as usize);
        &self.values[start..end]
    }

    /// Lists normally follow each other in the table's order, so that the next one's start bounds this one's end.
    fn list_range(&self, list: u64, next: Option<u64>) -> Result<Range<u64>, BlockError> {
        if list < self.lists.start || list + FRAME_LEN > self.lists.end {
            return Err(self.section.damaged(0, "a postings offset lies outside the postings"));
        }
        let end = match next {
            None => self.lists.end,
            Some(next) if next > list => next.min(self.lists.end),
            Some(_) => (list + UNKNOWN_LIST_LEN).min(self.lists.end),
        };
        Ok(list..end)
    }

    /// Where postings lists end.
    pub(super) fn lists_end(&self) -> u64 {
        self.lists.end
    }
}

/// Postings of the list that starts `bytes`, which lie at `offset` of the index; checksum and order verified.
///
/// `lists_end` is where postings lists end ([`Toc::postings_end`]).
pub fn parse_postings(offset: u64, lists_end: u64, bytes: &[u8]) -> Result<Ranged<Vec<SeriesRef>>, BlockError> {
    let damaged = |what| BlockError::damaged(BlockFile::Index, offset, what);
    let body = match section_body(BlockFile::Index, offset, lists_end, bytes)? {
        Ranged::Complete(body) => body,
        Ranged::Short { need } => return Ok(Ranged::Short { need }),
    };
    let count = u32_at(body, 0).ok_or_else(|| damaged("postings have no count"))?;
    let (refs, rest) = body[4..].as_chunks::<4>();
    if refs.len() != count as usize || !rest.is_empty() {
        return Err(damaged("count of postings is wrong"));
    }
    let refs: Vec<SeriesRef> = refs.iter().map(|r| u32::from_be_bytes(*r)).collect();
    if !refs.is_sorted_by(|a, b| a < b) {
        return Err(damaged("postings are not in order"));
    }
    Ok(Ranged::Complete(refs))
}
