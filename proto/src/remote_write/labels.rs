//! Labels of a series: recognised as canonical where they stand, or made canonical.

use skald_model::{LabelBytes, METRIC_NAME, varint};

use super::wire::{Reader, Wire, tag};
use super::{DecodeError, Defect};

const LABEL_NAME: u32 = tag(1, Wire::Bytes);
const LABEL_VALUE: u32 = tag(2, Wire::Bytes);
const LABEL_FIELDS: u32 = 1 << 1 | 1 << 2;

/// What the labels of a series look like: enough to check limits without walking them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelShape {
    /// Number of labels.
    pub count: u32,
    /// Bytes of the longest name.
    pub longest_name: u32,
    /// Bytes of the longest value.
    pub longest_value: u32,
    /// Whether there is a metric name.
    pub has_metric_name: bool,
    /// Whether every name is `[a-zA-Z_][a-zA-Z0-9_]*`, and the metric name, if any, `[a-zA-Z_:][a-zA-Z0-9_:]*`.
    pub legacy_names: bool,
}

impl LabelShape {
    const EMPTY: Self =
        Self { count: 0, longest_name: 0, longest_value: 0, has_metric_name: false, legacy_names: true };

    /// Measures labels.
    pub fn of(labels: LabelBytes<'_>) -> Self {
        let mut shape = Self::EMPTY;
        for (name, value) in labels.iter() {
            shape.add(name.as_bytes(), value.as_bytes(), is_legacy_label_name(name.as_bytes()));
        }
        shape
    }

    #[inline]
    fn add(&mut self, name: &[u8], value: &[u8], legacy_name: bool) {
        self.count += 1;
        self.longest_name = self.longest_name.max(name.len() as u32);
        self.longest_value = self.longest_value.max(value.len() as u32);
        self.legacy_names &= legacy_name;
        if name == METRIC_NAME.as_bytes() {
            self.has_metric_name = true;
            self.legacy_names &= is_legacy_metric_name(value);
        }
    }
}

/// Whether a label name is one of the old character set: `[a-zA-Z_][a-zA-Z0-9_]*`.
pub fn is_legacy_label_name(name: &[u8]) -> bool {
    matches!(name.first(), Some(b'a'..=b'z' | b'A'..=b'Z' | b'_')) && name.iter().all(|b| LEGACY[*b as usize])
}

/// Whether a metric name is one of the old character set: `[a-zA-Z_:][a-zA-Z0-9_:]*`.
pub fn is_legacy_metric_name(name: &[u8]) -> bool {
    matches!(name.first(), Some(b'a'..=b'z' | b'A'..=b'Z' | b'_' | b':'))
        && name.iter().all(|b| LEGACY[*b as usize] || *b == b':')
}

static LEGACY: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = matches!(byte as u8, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_');
        byte += 1;
    }
    table
};

/// A label as sent, unchecked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RawLabel<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

/// Names of the last series, up to the first that differed from the series before: ascending, and known to be legacy or
/// not. Neighbours in a request mostly share their names, and one comparison with the neighbour then replaces the checks
/// of order and of character set.
#[derive(Default)]
pub(super) struct NameMemo<'a> {
    names: Vec<(&'a [u8], bool)>,
}

impl<'a> NameMemo<'a> {
    /// Whether `name`, the `i`-th of its series, follows its predecessor, and whether it is a legacy name.
    /// Called with `i` = 0, 1, 2, … for each series.
    #[inline]
    fn check(&mut self, i: usize, name: &'a [u8]) -> Option<bool> {
        if let Some((known, legacy)) = self.names.get(i)
            && *known == name
        {
            return Some(*legacy);
        }
        self.learn(i, name)
    }

    fn learn(&mut self, i: usize, name: &'a [u8]) -> Option<bool> {
        self.names.truncate(i);
        // Empty names fail here, too.
        if name <= self.names.last().map_or(&[][..], |(previous, _)| *previous) {
            return None;
        }
        let legacy = is_legacy_label_name(name);
        self.names.push((name, legacy));
        Some(legacy)
    }
}

/// Passes over the labels at the start of a `TimeSeries`, if they are canonical. Leaves `series` behind the last label.
/// `None` when they are not; `series` is then where it was.
///
/// Canonical means: the bytes of [`LabelBytes`], provided that no further label follows behind other fields.
#[inline]
pub(super) fn canonical<'a>(series: &mut Reader<'a>, memo: &mut NameMemo<'a>) -> Option<LabelShape> {
    let bytes = series.bytes();
    let start = series.at();
    let mut at = start;
    let mut shape = LabelShape::EMPTY;
    while bytes.get(at) == Some(&0x0A) {
        let label = canonical_label(bytes, &mut at)?;
        let legacy = memo.check(shape.count as usize, label.name)?;
        shape.add(label.name, label.value, legacy);
    }
    let encoded = &bytes[start..at];
    if !encoded.is_ascii() && !is_utf8(LabelBytes::new_unchecked(encoded), shape.count) {
        return None;
    }
    series.seek(at);
    Some(shape)
}

/// A label at `at` with both fields in order, minimal varints, and neither part empty.
#[inline]
fn canonical_label<'a>(bytes: &'a [u8], at: &mut usize) -> Option<RawLabel<'a>> {
    short_label(bytes, at).or_else(|| long_label(bytes, at))
}

/// [`canonical_label`] when all lengths are below 128.
#[inline]
fn short_label<'a>(bytes: &'a [u8], at: &mut usize) -> Option<RawLabel<'a>> {
    let &[_, label_len, 0x0A, name_len] = bytes.get(*at..)?.first_chunk::<4>()? else { return None };
    let name_end = *at + 4 + name_len as usize;
    let label_end = *at + 2 + label_len as usize;
    let name = bytes.get(*at + 4..name_end)?;
    let &[0x12, value_len] = bytes.get(name_end..)?.first_chunk::<2>()? else { return None };
    let short = (label_len | name_len | value_len) < 0x80;
    if !short || value_len == 0 || name_end + 2 + value_len as usize != label_end {
        return None;
    }
    let value = bytes.get(name_end + 2..label_end)?;
    *at = label_end;
    Some(RawLabel { name, value })
}

/// [`canonical_label`] with lengths of any size.
#[cold]
fn long_label<'a>(bytes: &'a [u8], at: &mut usize) -> Option<RawLabel<'a>> {
    let mut reader = *at + 1;
    let label_len = minimal_varint(bytes, &mut reader)?;
    let end = reader.checked_add(label_len).filter(|end| *end <= bytes.len())?;
    let name = canonical_field(&bytes[..end], &mut reader, 0x0A)?;
    let value = canonical_field(&bytes[..end], &mut reader, 0x12)?;
    if reader != end || value.is_empty() {
        return None;
    }
    *at = end;
    Some(RawLabel { name, value })
}

fn canonical_field<'a>(bytes: &'a [u8], at: &mut usize, tag: u8) -> Option<&'a [u8]> {
    if *bytes.get(*at)? != tag {
        return None;
    }
    *at += 1;
    let len = minimal_varint(bytes, at)?;
    let field = bytes.get(*at..at.checked_add(len)?)?;
    *at += len;
    Some(field)
}

/// A varint without a needless last byte.
fn minimal_varint(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let start = *at;
    let value = varint::get_uvarint(bytes, at)?;
    if *at - start > 1 && bytes[*at - 1] == 0 {
        return None;
    }
    usize::try_from(value).ok()
}

fn is_utf8(labels: LabelBytes<'_>, count: u32) -> bool {
    // The walk checks each name and value and ends at the first that is not UTF-8.
    labels.iter().count() == count as usize
}

/// Reads one `Label` message as any encoder may write it.
pub(super) fn any_label<'a>(mut label: Reader<'a>) -> Result<RawLabel<'a>, DecodeError> {
    let mut raw = RawLabel::default();
    while let Some(tag) = label.tag()? {
        match tag {
            LABEL_NAME => raw.name = label.slice()?,
            LABEL_VALUE => raw.value = label.slice()?,
            _ => label.skip(tag, LABEL_FIELDS)?,
        }
    }
    Ok(raw)
}

/// Sorts labels, none of them without a value, by name, and checks what [`LabelBytes`] promises.
pub(super) fn make_canonical(labels: &mut [RawLabel<'_>]) -> Result<(), Defect> {
    labels.sort_by_key(|label| label.name);
    for (i, label) in labels.iter().enumerate() {
        if label.name.is_empty() {
            return Err(Defect::EmptyLabelName);
        }
        if std::str::from_utf8(label.name).is_err() {
            return Err(Defect::LabelNameNotUtf8);
        }
        if std::str::from_utf8(label.value).is_err() {
            return Err(Defect::LabelValueNotUtf8);
        }
        if i > 0 && labels[i - 1].name == label.name {
            return Err(Defect::DuplicateLabelName);
        }
    }
    Ok(())
}

/// Labels of [`make_canonical`] as text, pair by pair.
pub(super) fn as_text<'a>(labels: &'a [RawLabel<'a>]) -> impl Iterator<Item = (&'a str, &'a str)> {
    labels.iter().map(|label| {
        // Checked by `make_canonical`; the cheap fallback keeps this free of panics.
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
        (text(label.name), text(label.value))
    })
}
