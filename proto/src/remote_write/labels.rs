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
    pub(super) const EMPTY: Self =
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
    pub(super) fn add(&mut self, name: &[u8], value: &[u8], legacy_name: bool) {
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
    /// The whole field when it is what [`LabelBytes::encode`] makes of name and value, else empty.
    encoded: &'a [u8],
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
            && same(known, name)
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

/// Equality of short texts, without the call that comparing slices of unknown length compiles to.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    #[inline]
    fn ends<const N: usize>(a: &[u8], b: &[u8]) -> bool {
        a.first_chunk::<N>() == b.first_chunk::<N>() && a.last_chunk::<N>() == b.last_chunk::<N>()
    }
    a.len() == b.len()
        && match a.len() {
            8..=16 => ends::<8>(a, b),
            4..=7 => ends::<4>(a, b),
            2..=3 => ends::<2>(a, b),
            _ => a == b,
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
        let (name, value) = canonical_label(bytes, &mut at)?;
        let legacy = memo.check(shape.count as usize, name)?;
        shape.add(name, value, legacy);
    }
    let encoded = &bytes[start..at];
    if !encoded.is_ascii() && !is_utf8(encoded, shape.count) {
        return None;
    }
    series.seek(at);
    Some(shape)
}

/// Name and value of a label.
type NameValue<'a> = (&'a [u8], &'a [u8]);

/// A label at `at` with both fields in order, minimal varints, and neither part empty.
#[inline]
fn canonical_label<'a>(bytes: &'a [u8], at: &mut usize) -> Option<NameValue<'a>> {
    short_label(bytes, at).or_else(|| long_label(bytes, at))
}

/// [`canonical_label`] when all lengths are below 128.
#[inline]
fn short_label<'a>(bytes: &'a [u8], at: &mut usize) -> Option<NameValue<'a>> {
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
    Some((name, value))
}

/// [`canonical_label`] with lengths of any size.
#[cold]
fn long_label<'a>(bytes: &'a [u8], at: &mut usize) -> Option<NameValue<'a>> {
    let mut reader = *at + 1;
    let label_len = minimal_varint(bytes, &mut reader)?;
    let end = reader.checked_add(label_len).filter(|end| *end <= bytes.len())?;
    let name = canonical_field(&bytes[..end], &mut reader, 0x0A)?;
    let value = canonical_field(&bytes[..end], &mut reader, 0x12)?;
    if reader != end || value.is_empty() {
        return None;
    }
    *at = end;
    Some((name, value))
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

/// Whether every name and value of encoded labels is UTF-8.
fn is_utf8(encoded: &[u8], count: u32) -> bool {
    // Each text stands between two ASCII bytes (a length's last byte before, a tag or the end behind), so that all of
    // them are UTF-8 when the whole is. Lengths of two bytes may spoil the whole; then each text is checked by itself: the
    // walk ends at the first that is not UTF-8.
    std::str::from_utf8(encoded).is_ok() || LabelBytes::new_unchecked(encoded).iter().count() == count as usize
}

/// Reads one label, whose field begins at `start` and whose message is `label`, as any encoder may write it.
pub(super) fn any_label<'a>(start: usize, mut label: Reader<'a>) -> Result<RawLabel<'a>, DecodeError> {
    let bytes = label.bytes();
    let mut end = start;
    if bytes[start] == 0x0A
        && let Some((name, value)) = canonical_label(bytes, &mut end)
    {
        return Ok(RawLabel { name, value, encoded: &bytes[start..end] });
    }
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

/// Sorts labels and checks them, remembering the order: a sender that does not sort mostly has the same order of names in
/// neighbouring series.
#[derive(Default)]
pub(super) struct NameOrder<'a> {
    /// Names as last sent, known to be what [`LabelBytes`] promises of them.
    names: Vec<&'a [u8]>,
    /// Positions in `names`, ascending by name, and whether it is a legacy name.
    order: Vec<(u32, bool)>,
}

impl<'a> NameOrder<'a> {
    /// Walks labels, none of them without a value, in the order of their names. An error says what [`LabelBytes`] promises
    /// and they do not keep.
    pub(super) fn arrange<'l>(
        &mut self,
        labels: &'l [RawLabel<'a>],
    ) -> Result<impl Iterator<Item = (&'l RawLabel<'a>, bool)>, Defect> {
        let known = self.names.len() == labels.len() && self.names.iter().zip(labels).all(|(n, l)| same(n, l.name));
        if !known && let Err(defect) = self.learn(labels) {
            *self = Self::default();
            return Err(defect);
        }
        if !labels.iter().all(|label| label.value.is_ascii() || std::str::from_utf8(label.value).is_ok()) {
            return Err(Defect::LabelValueNotUtf8);
        }
        Ok(self.order.iter().map(|(position, legacy)| (&labels[*position as usize], *legacy)))
    }

    fn learn(&mut self, labels: &[RawLabel<'a>]) -> Result<(), Defect> {
        self.names.clear();
        self.order.clear();
        for (position, label) in labels.iter().enumerate() {
            if label.name.is_empty() {
                return Err(Defect::EmptyLabelName);
            }
            if std::str::from_utf8(label.name).is_err() {
                return Err(Defect::LabelNameNotUtf8);
            }
            self.order.push((position as u32, is_legacy_label_name(label.name)));
        }
        self.order.sort_unstable_by_key(|(position, _)| labels[*position as usize].name);
        let name = |(position, _): &(u32, bool)| labels[*position as usize].name;
        if self.order.windows(2).any(|pair| name(&pair[0]) == name(&pair[1])) {
            return Err(Defect::DuplicateLabelName);
        }
        self.names.extend(labels.iter().map(|label| label.name));
        Ok(())
    }
}

/// Appends arranged labels as [`LabelBytes`].
pub(super) fn encode<'l, 'a: 'l>(
    arranged: impl Iterator<Item = (&'l RawLabel<'a>, bool)>,
    out: &mut Vec<u8>,
) -> LabelShape {
    let mut shape = LabelShape::EMPTY;
    for (label, legacy) in arranged {
        shape.add(label.name, label.value, legacy);
        if label.encoded.is_empty() {
            let (name, value) = label.text();
            LabelBytes::encode(out, name, value);
        } else {
            out.extend_from_slice(label.encoded);
        }
    }
    shape
}

impl<'a> RawLabel<'a> {
    pub(super) fn new(name: &'a [u8], value: &'a [u8]) -> Self {
        Self { name, value, encoded: &[] }
    }

    /// Name and value of a label that has been arranged.
    pub(super) fn text(&self) -> (&'a str, &'a str) {
        // Checked by `arrange`; the cheap fallback keeps this free of panics.
        let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).unwrap_or_default();
        (text(self.name), text(self.value))
    }
}
