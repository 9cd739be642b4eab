//! The decoder: a frame's payload as an iterator over borrowed items.

use skald_model::varint::{get_slice, get_uvarint, get_varint};
use skald_model::{Exemplar, HistogramSample, LabelBytes, Labels, MetricMetadata, MetricType, TimestampMs};

use super::frame::FrameKind;
use super::{Generation, histogram};
use crate::chunk::started::StartReader;

/// One record of one head, borrowed from the log.
///
/// The iterators end early at bytes that are no item. Checksums have held when a record gets here, so only a writer could
/// have put such bytes there.
pub enum Record<'a> {
    /// Series definitions: ref and labels.
    Series(SeriesDefinitions<'a>),
    /// Float samples.
    Floats {
        /// Cuts the head had begun.
        generation: Generation,
        /// Newest timestamp among the samples.
        max_time: TimestampMs,
        /// The samples.
        samples: Floats<'a>,
    },
    /// Native histogram samples.
    Histograms {
        /// Cuts the head had begun.
        generation: Generation,
        /// Newest timestamp among the samples.
        max_time: TimestampMs,
        /// The samples.
        samples: Histograms<'a>,
    },
    /// Exemplars: ref of their series, and they.
    Exemplars(Exemplars<'a>),
    /// Metric metadata.
    Metadata(Metadata<'a>),
    /// The head began a cut: its boundary rose.
    CutBegun(Cut),
    /// The cut's blocks are safe: what it covers need not be kept.
    CutDone(Cut),
}

/// Everything of a generation below `generation` and older than `up_to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// First generation that is not covered.
    pub generation: Generation,
    /// First timestamp that is not covered.
    pub up_to: TimestampMs,
}

impl Cut {
    /// The cut that covers nothing.
    pub const NONE: Cut = Cut { generation: Generation(0), up_to: TimestampMs::MIN };

    /// Whether a sample of `generation` at `timestamp` is in the cut's blocks.
    #[inline]
    pub fn covers(&self, generation: Generation, timestamp: TimestampMs) -> bool {
        generation < self.generation && timestamp < self.up_to
    }
}

/// What a `Head` record says: the state in which the head stood when its segment was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadState {
    /// The opaque bytes given to [`super::Wal::define_head`].
    pub definition: Vec<u8>,
    /// Cuts begun.
    pub generation: Generation,
    /// Samples older than this were cut off when the last cut began.
    pub boundary: TimestampMs,
    /// The last finished cut.
    pub done: Cut,
}

impl<'a> Record<'a> {
    /// The record of a payload; `None` for kinds that concern the log itself, and for malformed bytes.
    pub(super) fn parse(kind: FrameKind, payload: &'a [u8]) -> Option<Self> {
        let mut at = 0;
        Some(match kind {
            FrameKind::Head | FrameKind::HeadDropped | FrameKind::Segments => return None,
            FrameKind::SnapshotSeries | FrameKind::SnapshotExemplars | FrameKind::LogBegins => return None,
            FrameKind::SnapshotIndex | FrameKind::SnapshotEnd | FrameKind::SnapshotFiles => return None,
            FrameKind::CutBegun => Self::CutBegun(Cut::parse(payload)?),
            FrameKind::CutDone => Self::CutDone(Cut::parse(payload)?),
            FrameKind::Series => Self::Series(SeriesDefinitions { bytes: payload, at: 0 }),
            FrameKind::Exemplars => Self::Exemplars(Exemplars { bytes: payload, at: 0 }),
            FrameKind::Metadata => Self::Metadata(Metadata { bytes: payload, at: 0 }),
            FrameKind::Floats | FrameKind::StartedFloats => {
                let generation = Generation::get(payload, &mut at)?;
                let max_time = get_varint(payload, &mut at)?;
                Self::Floats {
                    generation,
                    max_time,
                    samples: Floats::parse(payload, at, kind == FrameKind::StartedFloats)?,
                }
            }
            FrameKind::Histograms | FrameKind::StartedHistograms => {
                let generation = Generation::get(payload, &mut at)?;
                let max_time = get_varint(payload, &mut at)?;
                Self::Histograms {
                    generation,
                    max_time,
                    samples: Histograms { bytes: payload, at, have_starts: kind == FrameKind::StartedHistograms },
                }
            }
        })
    }
}

impl Generation {
    pub(super) fn get(bytes: &[u8], at: &mut usize) -> Option<Self> {
        u32::try_from(get_uvarint(bytes, at)?).ok().map(Self)
    }
}

impl Cut {
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut at = 0;
        let generation = Generation::get(payload, &mut at)?;
        Some(Self { generation, up_to: get_varint(payload, &mut at)? })
    }
}

impl HeadState {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let mut at = 0;
        let generation = Generation::get(payload, &mut at)?;
        let boundary = get_varint(payload, &mut at)?;
        let done_generation = Generation::get(payload, &mut at)?;
        let done = Cut { generation: done_generation, up_to: get_varint(payload, &mut at)? };
        Some(Self { definition: payload.get(at..)?.to_vec(), generation, boundary, done })
    }
}

/// Number of samples that a payload of floats says it has.
pub(super) fn count_floats(payload: &[u8]) -> usize {
    let mut at = 0;
    let count = Generation::get(payload, &mut at)
        .and_then(|_| get_varint(payload, &mut at))
        .and_then(|_| get_uvarint(payload, &mut at));
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

fn get_ref(bytes: &[u8], at: &mut usize) -> Option<u32> {
    u32::try_from(get_uvarint(bytes, at)?).ok()
}

/// Series definitions of one record.
#[derive(Clone)]
pub struct SeriesDefinitions<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Iterator for SeriesDefinitions<'a> {
    type Item = (u32, LabelBytes<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let series_ref = get_ref(self.bytes, &mut self.at)?;
        let labels = get_slice(self.bytes, &mut self.at)?;
        Some((series_ref, LabelBytes::new_unchecked(labels)))
    }
}

/// One float sample in the log.
#[derive(Debug, Clone, Copy)]
pub struct LoggedFloat {
    /// The series, by the definitions of this segment.
    pub series_ref: u32,
    /// When.
    pub timestamp: TimestampMs,
    /// What.
    pub value: f64,
    /// Its start timestamp; 0 is none.
    pub start: TimestampMs,
}

/// Float samples of one record.
#[derive(Clone)]
pub struct Floats<'a> {
    left: usize,
    odd: bool,
    refs: &'a [u8],
    refs_at: usize,
    times: &'a [u8],
    times_at: usize,
    widths: &'a [u8],
    values: &'a [u8],
    last_ref: i64,
    last_time: TimestampMs,
    starts: Option<StartReader<'a>>,
}

impl<'a> Floats<'a> {
    fn parse(payload: &'a [u8], mut at: usize, have_starts: bool) -> Option<Self> {
        let mut length = || usize::try_from(get_uvarint(payload, &mut at)?).ok();
        let (count, refs_len, times_len) = (length()?, length()?, length()?);
        let starts = if have_starts { Some(StartReader::new(get_slice(payload, &mut at)?)) } else { None };
        let rest = payload.get(at..)?;
        let (refs, rest) = rest.split_at_checked(refs_len)?;
        let (times, rest) = rest.split_at_checked(times_len)?;
        let (widths, values) = rest.split_at_checked(count.div_ceil(2))?;
        let (last_ref, last_time) = (0, 0);
        Some(Self {
            left: count,
            odd: false,
            refs,
            refs_at: 0,
            times,
            times_at: 0,
            widths,
            values,
            last_ref,
            last_time,
            starts,
        })
    }
}

impl Iterator for Floats<'_> {
    type Item = LoggedFloat;

    #[inline]
    fn next(&mut self) -> Option<LoggedFloat> {
        self.left = self.left.checked_sub(1)?;
        let series_ref = self.last_ref.checked_add(get_varint(self.refs, &mut self.refs_at)?)?;
        let timestamp = self.last_time.wrapping_add(get_varint(self.times, &mut self.times_at)?);
        (self.last_ref, self.last_time) = (series_ref, timestamp);
        let pair = *self.widths.first()?;
        let width = if self.odd {
            self.widths = &self.widths[1..];
            pair >> 4
        } else {
            pair & 15
        };
        self.odd = !self.odd;
        let (stored, rest) = self.values.split_at_checked(usize::from(width))?;
        self.values = rest;
        let mut bytes = [0; 8];
        bytes.get_mut(..stored.len())?.copy_from_slice(stored);
        let value = f64::from_bits(u64::from_be_bytes(bytes));
        let start = match &mut self.starts {
            None => 0,
            Some(starts) => starts.next(timestamp).ok()?,
        };
        Some(LoggedFloat { series_ref: u32::try_from(series_ref).ok()?, timestamp, value, start })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

/// Native histogram samples of one record: series, sample, and start timestamp (0 is none).
#[derive(Clone)]
pub struct Histograms<'a> {
    bytes: &'a [u8],
    at: usize,
    have_starts: bool,
}

impl Iterator for Histograms<'_> {
    type Item = (u32, HistogramSample, TimestampMs);

    fn next(&mut self) -> Option<Self::Item> {
        let series_ref = get_ref(self.bytes, &mut self.at)?;
        let timestamp = get_varint(self.bytes, &mut self.at)?;
        let start = if self.have_starts { get_varint(self.bytes, &mut self.at)? } else { 0 };
        let value = histogram::decode(self.bytes, &mut self.at)?;
        Some((series_ref, HistogramSample { timestamp, value }, start))
    }
}

/// Exemplars of one record.
pub struct Exemplars<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for Exemplars<'_> {
    type Item = (u32, Exemplar);

    fn next(&mut self) -> Option<Self::Item> {
        let series_ref = get_ref(self.bytes, &mut self.at)?;
        let timestamp = get_varint(self.bytes, &mut self.at)?;
        let end = self.at.checked_add(8)?;
        let bits = u64::from_le_bytes(self.bytes.get(self.at..end)?.try_into().ok()?);
        self.at = end;
        let labels = Labels::from_bytes(get_slice(self.bytes, &mut self.at)?).ok()?;
        Some((series_ref, Exemplar { labels, value: f64::from_bits(bits), timestamp }))
    }
}

/// Metric metadata of one record.
pub struct Metadata<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Iterator for Metadata<'_> {
    type Item = MetricMetadata;

    fn next(&mut self) -> Option<MetricMetadata> {
        let metric_type = MetricType::from_number(u64::from(*self.bytes.get(self.at)?));
        self.at += 1;
        let mut text = || String::from_utf8(get_slice(self.bytes, &mut self.at)?.to_vec()).ok();
        Some(MetricMetadata { metric_type, metric: text()?, help: text()?, unit: text()? })
    }
}
