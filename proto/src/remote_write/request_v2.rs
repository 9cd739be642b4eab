//! The walk over a 2.0 request: symbols first, then its series, columns filled as it goes.
//!
//! Labels come as references into a table of symbols. They are written out as [`LabelBytes`], so that a series is the same
//! whichever version brings it.

use std::collections::HashSet;

use skald_model::{Exemplar, FloatSample, LabelBytes, Labels, METRIC_NAME, MetricMetadata, MetricType, TimestampMs};

use super::labels::{self, LabelShape, NameOrder, RawLabel, is_legacy_label_name};
use super::sink::Sink;
use super::wire::{Reader, Wire, tag};
use super::{DecodeError, Defect, Received, Rejected, histogram};
use crate::write_batch::{LabelSlice, LabelSource};

const REQUEST_SYMBOL: u32 = tag(4, Wire::Bytes);
const REQUEST_SERIES: u32 = tag(5, Wire::Bytes);
const REQUEST_FIELDS: u32 = 1 << 4 | 1 << 5;

const SERIES_LABEL_REFS: u32 = tag(1, Wire::Bytes);
const SERIES_LABEL_REF: u32 = tag(1, Wire::Varint);
const SERIES_SAMPLE: u32 = tag(2, Wire::Bytes);
const SERIES_HISTOGRAM: u32 = tag(3, Wire::Bytes);
const SERIES_EXEMPLAR: u32 = tag(4, Wire::Bytes);
const SERIES_METADATA: u32 = tag(5, Wire::Bytes);
const SERIES_FIELDS: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;

const SAMPLE_VALUE: u32 = tag(1, Wire::Fixed64);
const SAMPLE_TIMESTAMP: u32 = tag(2, Wire::Varint);
const SAMPLE_START: u32 = tag(3, Wire::Varint);
const SAMPLE_FIELDS: u32 = 1 << 1 | 1 << 2 | 1 << 3;

const EXEMPLAR_LABEL_REFS: u32 = tag(1, Wire::Bytes);
const EXEMPLAR_LABEL_REF: u32 = tag(1, Wire::Varint);
const EXEMPLAR_VALUE: u32 = tag(2, Wire::Fixed64);
const EXEMPLAR_TIMESTAMP: u32 = tag(3, Wire::Varint);
const EXEMPLAR_FIELDS: u32 = 1 << 1 | 1 << 2 | 1 << 3;

const METADATA_TYPE: u32 = tag(1, Wire::Varint);
const METADATA_HELP: u32 = tag(3, Wire::Varint);
const METADATA_UNIT: u32 = tag(4, Wire::Varint);
const METADATA_FIELDS: u32 = 1 << 1 | 1 << 3 | 1 << 4;

/// Labels written out may take this many times the message's own size: a symbol of any length is worth a byte to whoever
/// refers to it. Real requests, whose labels are long and mostly those of their neighbours, take some ten times.
const MAX_LABEL_WIDENING: usize = 64;
/// Allowance for small messages.
const LABEL_WIDENING_FLOOR: usize = 1 << 20;

/// Fills the cleared `out` from `message`. Labels written out take at most `max_label_bytes`.
pub(super) fn decode(
    message: &[u8],
    max_label_bytes: usize,
    out: &mut Received,
    on_reject: &mut dyn FnMut(Rejected<'_>),
) -> Result<(), DecodeError> {
    let label_limit = message.len().saturating_mul(MAX_LABEL_WIDENING).max(LABEL_WIDENING_FLOOR).min(max_label_bytes);
    let mut walk = Walk {
        sink: Sink::new(message, out, on_reject),
        label_limit,
        symbols: Vec::new(),
        refs: Vec::new(),
        memo: Vec::new(),
        memo_base: 0,
        scratch: Vec::new(),
        series_order: NameOrder::default(),
        exemplar_order: NameOrder::default(),
        last_metadata: None,
        metadata: HashSet::new(),
    };
    // Protobuf lets symbols stand behind the series that need them.
    let mut request = Reader::new(message);
    while let Some(tag) = request.tag()? {
        match tag {
            REQUEST_SYMBOL => {
                if !walk.symbol(request.slice()?) {
                    return Err(walk.sink.too_wide());
                }
            }
            REQUEST_SERIES => {
                request.slice()?;
            }
            _ => request.skip(tag, REQUEST_FIELDS)?,
        }
    }
    let mut request = Reader::new(message);
    while let Some(tag) = request.tag()? {
        match tag {
            REQUEST_SERIES => {
                if !walk.series(request.message()?)? {
                    return Err(walk.sink.too_wide());
                }
            }
            _ => request.skip(tag, 0)?,
        }
    }
    Ok(())
}

/// One entry of the request's table.
#[derive(Clone, Copy)]
struct Symbol<'a> {
    /// Bytes where it is not UTF-8.
    text: Result<&'a str, &'a [u8]>,
    /// Whether it is a legacy label name.
    is_legacy_name: bool,
}

impl<'a> Symbol<'a> {
    fn bytes(&self) -> &'a [u8] {
        self.text.map_or_else(|bytes| bytes, str::as_bytes)
    }
}

/// A label as it was written out.
#[derive(Clone, Copy)]
struct KnownLabel {
    /// Name and value.
    refs: [u32; 2],
    legacy_name: bool,
    /// Where it stands, from the series' first label on.
    start: u32,
    end: u32,
    /// Of all labels up to this one.
    shape: LabelShape,
}

/// Metadata by references: of which metric name, type, help, unit.
type MetadataKey = (u32, MetricType, u32, u32);

struct Walk<'a, 'out> {
    sink: Sink<'out>,
    /// Bytes of all labels written out.
    label_limit: usize,
    symbols: Vec<Symbol<'a>>,
    /// References of the series or exemplar at hand.
    refs: Vec<u32>,
    /// The labels written last, which neighbours mostly share; none after labels that had to be rearranged.
    memo: Vec<KnownLabel>,
    /// Where among the labels written out they begin.
    memo_base: usize,
    /// Labels of the series or exemplar at hand, when they are not canonical.
    scratch: Vec<RawLabel<'a>>,
    series_order: NameOrder<'a>,
    exemplar_order: NameOrder<'a>,
    /// What the request has said of metrics: every series repeats it.
    last_metadata: Option<MetadataKey>,
    metadata: HashSet<MetadataKey>,
}

impl<'a> Walk<'a, '_> {
    /// `false` when the budget is used up.
    fn symbol(&mut self, bytes: &'a [u8]) -> bool {
        let text = std::str::from_utf8(bytes).map_err(|_| bytes);
        self.symbols.push(Symbol { text, is_legacy_name: is_legacy_label_name(bytes) });
        self.sink.charge(size_of::<Symbol<'_>>())
    }

    /// `Ok(false)` when the budget is used up.
    fn series(&mut self, mut fields: Reader<'a>) -> Result<bool, DecodeError> {
        let mark = self.sink.mark();
        let whole = fields;
        let mut metadata = None;
        let mut has_exemplars = false;
        self.refs.clear();
        while let Some(tag) = fields.tag()? {
            match tag {
                SERIES_LABEL_REFS => packed_refs(fields.message()?, &mut self.refs)?,
                SERIES_LABEL_REF => self.refs.push(reference(&mut fields)?),
                SERIES_SAMPLE => {
                    let (sample, start) = sample(fields.message()?)?;
                    self.sink.batch.push_sample(sample, start);
                }
                SERIES_HISTOGRAM => {
                    let (sample, start) = histogram::read(fields.message()?)?;
                    let start = known_start(start, sample.timestamp);
                    if !self.sink.histogram(sample, start) {
                        return Ok(false);
                    }
                }
                SERIES_EXEMPLAR => {
                    has_exemplars = true;
                    fields.slice()?;
                }
                SERIES_METADATA => metadata = Some(fields.message()?),
                _ => fields.skip(tag, SERIES_FIELDS)?,
            }
        }
        let rebuilt_before = self.sink.batch.rebuilt.len();
        let labels = match self.write_labels() {
            Some(labels) => Ok(labels),
            None => {
                self.memo.clear();
                self.sink.batch.rebuilt.truncate(rebuilt_before);
                self.rearrange_labels()?
            }
        };
        let (slice, shape) = match labels {
            _ if self.sink.mark().no_samples_since(mark) => {
                self.memo.clear();
                self.sink.batch.rebuilt.truncate(rebuilt_before);
                self.collect_labels();
                self.sink.reject_series(Defect::NoSamples, &self.scratch, mark);
                return Ok(true);
            }
            Ok(labels) => labels,
            Err(defect) => {
                self.sink.reject_series(defect, &self.scratch, mark);
                return Ok(true);
            }
        };
        if let Some(metadata) = metadata
            && !self.metadata(metadata)?
        {
            return Ok(false);
        }
        if has_exemplars && !self.exemplars(whole)? {
            return Ok(false);
        }
        self.sink.series(whole.bytes(), slice, shape, mark);
        Ok(true)
    }

    /// Writes the labels at hand out, if they are what [`LabelBytes`] promises; `None`, with some of them written, when they
    /// are not.
    #[inline]
    fn write_labels(&mut self) -> Option<(LabelSlice, LabelShape)> {
        let Self { symbols, refs, memo, memo_base, .. } = self;
        let rebuilt = &mut self.sink.batch.rebuilt;
        let (start, base) = (rebuilt.len(), *memo_base);
        let (pairs, []) = refs.as_chunks::<2>() else { return None };
        if pairs.is_empty() {
            return None;
        }
        // What neighbours have in common from the first label on is copied at once.
        let shared = pairs.iter().zip(&*memo).take_while(|(pair, known)| **pair == known.refs).count();
        let mut shape = LabelShape::EMPTY;
        if let Some(last) = shared.checked_sub(1).and_then(|last| memo.get(last)) {
            if start + last.end as usize > self.label_limit {
                return None;
            }
            rebuilt.extend_from_within(base..base + last.end as usize);
            shape = last.shape;
        }
        for (i, &pair) in pairs.iter().enumerate().skip(shared) {
            let [name_ref, value_ref] = pair;
            let (name, value) =
                (symbols.get(name_ref as usize)?.text.ok()?, symbols.get(value_ref as usize)?.text.ok()?);
            if value.is_empty() || rebuilt.len() + name.len() + value.len() > self.label_limit {
                return None;
            }
            // As long as there is a memo, all names so far are those of the neighbour.
            let known = memo.get(i).filter(|known| known.refs[0] == name_ref).copied();
            let legacy = match known {
                Some(known) => known.legacy_name,
                None => {
                    memo.truncate(i);
                    let previous = memo.last().map_or("", |previous| text(symbols, previous.refs[0]));
                    // Empty names fail here, too.
                    if name <= previous {
                        return None;
                    }
                    symbols[name_ref as usize].is_legacy_name
                }
            };
            shape.add(name.as_bytes(), value.as_bytes(), legacy);
            let label_start = rebuilt.len();
            match known {
                Some(known) if known.refs == pair => {
                    rebuilt.extend_from_within(base + known.start as usize..base + known.end as usize);
                }
                _ => put_label(rebuilt, name, value),
            }
            let at = |at: usize| (at - start) as u32;
            let (start, end) = (at(label_start), at(rebuilt.len()));
            let written = KnownLabel { refs: pair, legacy_name: legacy, start, end, shape };
            match memo.get_mut(i) {
                Some(known) => *known = written,
                None => memo.push(written),
            }
        }
        memo.truncate(pairs.len());
        *memo_base = start;
        let slice = LabelSlice { source: LabelSource::Rebuilt, start: start as u32, end: rebuilt.len() as u32 };
        Some((slice, shape))
    }

    /// Writes labels out that were not as they should be; leaves them in `scratch` as sent when they have a defect.
    #[cold]
    fn rearrange_labels(&mut self) -> Result<Result<(LabelSlice, LabelShape), Defect>, DecodeError> {
        if !self.collect_labels() {
            return Ok(Err(Defect::LabelReference));
        }
        if self.scratch.is_empty() {
            return Ok(Err(Defect::NoLabels));
        }
        if self.sink.batch.rebuilt.len() + self.scratch_bytes() > self.label_limit {
            return Err(self.sink.labels_too_wide(self.label_limit));
        }
        let arranged = match self.series_order.arrange(&self.scratch) {
            Ok(arranged) => arranged,
            Err(defect) => return Ok(Err(defect)),
        };
        let rebuilt = &mut self.sink.batch.rebuilt;
        let start = rebuilt.len() as u32;
        let shape = labels::encode(arranged, rebuilt);
        Ok(Ok((LabelSlice { source: LabelSource::Rebuilt, start, end: rebuilt.len() as u32 }, shape)))
    }

    /// Bytes of the names and values in `scratch`: symbols are small, what refers to them often is not.
    fn scratch_bytes(&self) -> usize {
        self.scratch.iter().map(|label| label.name.len() + label.value.len()).sum()
    }

    /// Fills `scratch` with the labels at hand that have a value; `false` when a reference is missing or leads nowhere.
    fn collect_labels(&mut self) -> bool {
        self.scratch.clear();
        let (pairs, rest) = self.refs.as_chunks::<2>();
        let mut sound = rest.is_empty();
        for [name, value] in pairs {
            match (self.symbols.get(*name as usize), self.symbols.get(*value as usize)) {
                (Some(_), Some(value)) if value.bytes().is_empty() => {}
                (Some(name), Some(value)) => self.scratch.push(RawLabel::new(name.bytes(), value.bytes())),
                _ => sound = false,
            }
        }
        sound
    }

    /// Adds the exemplars of a series. `Ok(false)` when the budget is used up.
    fn exemplars(&mut self, mut series: Reader<'a>) -> Result<bool, DecodeError> {
        while let Some(tag) = series.tag()? {
            if tag == SERIES_EXEMPLAR {
                if !self.exemplar(series.message()?)? {
                    return Ok(false);
                }
            } else {
                // All fields have been walked already.
                series.skip(tag, 0)?;
            }
        }
        Ok(true)
    }

    fn exemplar(&mut self, mut fields: Reader<'a>) -> Result<bool, DecodeError> {
        let (mut value, mut timestamp) = (0.0, 0);
        self.refs.clear();
        while let Some(tag) = fields.tag()? {
            match tag {
                EXEMPLAR_LABEL_REFS => packed_refs(fields.message()?, &mut self.refs)?,
                EXEMPLAR_LABEL_REF => self.refs.push(reference(&mut fields)?),
                EXEMPLAR_VALUE => value = fields.double()?,
                EXEMPLAR_TIMESTAMP => timestamp = fields.varint()? as i64,
                _ => fields.skip(tag, EXEMPLAR_FIELDS)?,
            }
        }
        let sound = self.collect_labels();
        if !self.sink.affords(self.scratch_bytes()) {
            return Ok(false);
        }
        let labels = match self.exemplar_order.arrange(&self.scratch) {
            _ if !sound => Err(Defect::ExemplarLabelsInvalid),
            _ if self.scratch.is_empty() => Err(Defect::ExemplarWithoutLabels),
            Ok(arranged) => Ok(Labels::from_sorted(arranged.map(|(label, _)| label.text()))),
            Err(_) => Err(Defect::ExemplarLabelsInvalid),
        };
        match labels {
            Ok(labels) => Ok(self.sink.exemplar(Exemplar { labels, value, timestamp })),
            Err(defect) => {
                self.sink.reject_exemplar(defect, &self.scratch);
                Ok(true)
            }
        }
    }

    /// Adds what a series says of its metric, once. `Ok(false)` when the budget is used up.
    fn metadata(&mut self, mut message: Reader<'a>) -> Result<bool, DecodeError> {
        let (mut metric_type, mut help, mut unit) = (MetricType::Unknown, 0, 0);
        while let Some(tag) = message.tag()? {
            match tag {
                METADATA_TYPE => metric_type = MetricType::from_number(message.varint()?),
                METADATA_HELP => help = reference(&mut message)?,
                METADATA_UNIT => unit = reference(&mut message)?,
                _ => message.skip(tag, METADATA_FIELDS)?,
            }
        }
        if (metric_type, help, unit) == (MetricType::Unknown, 0, 0) {
            return Ok(true);
        }
        // The labels are sound by now. Without a metric name there is nothing to tell about.
        let symbols = &self.symbols;
        let (pairs, _) = self.refs.as_chunks::<2>();
        let Some([_, metric]) = pairs.iter().find(|[name, _]| text(symbols, *name) == METRIC_NAME) else {
            return Ok(true);
        };
        let key = (*metric, metric_type, help, unit);
        if self.last_metadata == Some(key) || !self.metadata.insert(key) {
            return Ok(true);
        }
        self.last_metadata = Some(key);
        // 0 is the empty symbol, whatever the table has there.
        let symbol = |at: u32| if at == 0 { Some(Ok("")) } else { symbols.get(at as usize).map(|symbol| symbol.text) };
        let defect = match (symbol(help), symbol(unit)) {
            (Some(Ok(help)), Some(Ok(unit))) => {
                let metric = family(text(symbols, *metric), metric_type).to_owned();
                let entry = MetricMetadata { metric, metric_type, help: help.to_owned(), unit: unit.to_owned() };
                return Ok(self.sink.metadata(entry));
            }
            (Some(_), Some(_)) => Defect::MetadataNotUtf8,
            _ => Defect::MetadataReference,
        };
        self.sink.reject_metadata(defect);
        Ok(true)
    }
}

/// Appends a label as [`LabelBytes::encode`] does, which takes longer over short ones.
#[inline]
fn put_label(out: &mut Vec<u8>, name: &str, value: &str) {
    let inner = name.len() + value.len() + 4;
    if inner >= 0x80 {
        return LabelBytes::encode(out, name, value);
    }
    out.reserve(inner + 2);
    out.extend_from_slice(&[0x0A, inner as u8, 0x0A, name.len() as u8]);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&[0x12, value.len() as u8]);
    out.extend_from_slice(value.as_bytes());
}

/// The text of a symbol that is known to have one.
fn text<'a>(symbols: &[Symbol<'a>], at: u32) -> &'a str {
    symbols.get(at as usize).and_then(|symbol| symbol.text.ok()).unwrap_or_default()
}

/// The metric family that a series of this name belongs to: 2.0 says of each series what 1.0 says of families.
fn family(metric: &str, metric_type: MetricType) -> &str {
    let suffixes: &[&str] = match metric_type {
        MetricType::Histogram => &["_bucket", "_count", "_sum"],
        MetricType::GaugeHistogram => &["_bucket", "_gcount", "_gsum"],
        MetricType::Summary => &["_count", "_sum"],
        _ => &[],
    };
    suffixes.iter().find_map(|suffix| metric.strip_suffix(suffix)).filter(|family| !family.is_empty()).unwrap_or(metric)
}

/// A start timestamp, or 0 for one that makes no sense.
fn known_start(start: TimestampMs, timestamp: TimestampMs) -> TimestampMs {
    if start <= timestamp { start } else { 0 }
}

#[inline]
fn sample(mut message: Reader<'_>) -> Result<(FloatSample, TimestampMs), DecodeError> {
    let (mut sample, mut start) = (FloatSample { timestamp: 0, value: 0.0 }, 0);
    while let Some(tag) = message.tag()? {
        match tag {
            SAMPLE_VALUE => sample.value = message.double()?,
            SAMPLE_TIMESTAMP => sample.timestamp = message.varint()? as i64,
            SAMPLE_START => start = message.varint()? as i64,
            _ => message.skip(tag, SAMPLE_FIELDS)?,
        }
    }
    Ok((sample, known_start(start, sample.timestamp)))
}

/// A reference; one beyond 32 bits leads nowhere.
fn reference(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    Ok(u32::try_from(reader.varint()?).unwrap_or(u32::MAX))
}

#[inline]
fn packed_refs(mut reader: Reader<'_>, out: &mut Vec<u32>) -> Result<(), DecodeError> {
    while reader.remaining() > 0 {
        out.push(reference(&mut reader)?);
    }
    Ok(())
}
