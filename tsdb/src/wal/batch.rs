//! The encoder: records of one commit, framed in the caller's own buffer.

use skald_model::varint::{put_uvarint, put_varint};
use skald_model::{Exemplar, HistogramValue, LabelBytes, MetricMetadata, TimestampMs};

use super::frame::{FrameKind, MAX_PAYLOAD, TARGET_PAYLOAD, put_counted_frame, put_frame};
use super::{Generation, HeadId, Held, SegmentId, histogram};
use crate::chunk::started::StartWriter;

/// Bytes a spare batch may keep allocated between commits.
const KEEP_BYTES: usize = 256 << 10;

/// Records of one head for one commit. Reusable: [`super::Wal::begin`] clears it and ties it to the segment being written.
///
/// Frames are split near 60 KiB; within a batch they keep the order of the calls, except that floats gather in one run
/// of frames: they may come later than they were added, never earlier. Series definitions must come before the samples
/// that need them.
#[derive(Default)]
pub struct WalBatch {
    pub(super) bytes: Vec<u8>,
    pub(super) segment: SegmentId,
    pub(super) head: HeadId,
    pub(super) compress: bool,
    /// Newest sample, if there is one; with the generation this is what pins a segment.
    pub(super) newest: Option<TimestampMs>,
    pub(super) generation: Generation,
    /// A payload no reader would accept: the commit fails.
    pub(super) oversize: bool,
    /// Bytes of series definitions among `bytes`.
    pub(super) definition_bytes: usize,
    floats: FloatColumns,
    open: Vec<u8>,
    open_kind: Option<FrameKind>,
    /// What of series and samples `open` holds.
    open_held: Held,
    open_ref: Option<u32>,
    scratch: Vec<u8>,
    /// A column of starts, complete.
    starts: Vec<u8>,
}

/// Float samples not yet framed, one vector per column of the format.
#[derive(Default)]
struct FloatColumns {
    count: usize,
    /// How often the next sample is another series'.
    series: u64,
    oldest: TimestampMs,
    newest: TimestampMs,
    last_ref: u32,
    last_time: TimestampMs,
    refs: Vec<u8>,
    times: Vec<u8>,
    widths: Vec<u8>,
    values: Vec<u8>,
    starts: StartWriter,
}

impl WalBatch {
    /// The segment this batch is encoded for: series not yet defined there need a definition.
    pub fn segment(&self) -> SegmentId {
        self.segment
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.open.is_empty() && self.floats.count == 0
    }

    pub(super) fn reset(&mut self, segment: SegmentId, head: HeadId, generation: Generation, compress: bool) {
        self.bytes.clear();
        self.bytes.shrink_to(KEEP_BYTES);
        self.open.clear();
        self.open_kind = None;
        (self.open_held, self.open_ref) = (Held::NOTHING, None);
        self.floats.clear();
        self.newest = None;
        self.oversize = false;
        self.definition_bytes = 0;
        (self.segment, self.head, self.generation, self.compress) = (segment, head, generation, compress);
    }

    /// Defines a series: `series_ref` means these labels in this segment from here on.
    pub fn series(&mut self, series_ref: u32, labels: LabelBytes<'_>) {
        self.open(FrameKind::Series);
        let before = self.open.len();
        self.open_held.series += 1;
        put_uvarint(&mut self.open, u64::from(series_ref));
        put_uvarint(&mut self.open, labels.as_bytes().len() as u64);
        self.open.extend_from_slice(labels.as_bytes());
        self.definition_bytes += self.open.len() - before;
        self.close_if_full();
    }

    /// Adds a float sample.
    #[inline]
    pub fn float(&mut self, series_ref: u32, timestamp: TimestampMs, value: f64) {
        let columns = &mut self.floats;
        if columns.count == 0 {
            (columns.oldest, columns.newest, columns.series) = (timestamp, timestamp, 1);
        } else if columns.last_ref != series_ref {
            columns.series += 1;
        }
        columns.oldest = columns.oldest.min(timestamp);
        columns.newest = columns.newest.max(timestamp);
        put_varint(&mut columns.refs, i64::from(series_ref) - i64::from(columns.last_ref));
        put_varint(&mut columns.times, timestamp.wrapping_sub(columns.last_time));
        (columns.last_ref, columns.last_time) = (series_ref, timestamp);
        let bits = value.to_bits();
        let width = 8 - (bits.trailing_zeros() / 8) as usize;
        columns.values.extend_from_slice(&bits.to_be_bytes()[..width]);
        match columns.widths.last_mut() {
            Some(last) if columns.count % 2 == 1 => *last |= (width as u8) << 4,
            _ => columns.widths.push(width as u8),
        }
        columns.count += 1;
        if columns.values.len() + columns.refs.len() + columns.times.len() >= TARGET_PAYLOAD {
            self.close_floats();
        }
    }

    /// Gives the float that is added next, at `timestamp`, a start timestamp.
    pub fn start_next_float(&mut self, timestamp: TimestampMs, start: TimestampMs) {
        let columns = &self.floats;
        if columns.values.len() + columns.refs.len() + columns.times.len() + columns.starts.byte_len() >= TARGET_PAYLOAD
        {
            self.close_floats();
        }
        let columns = &mut self.floats;
        columns.starts.push(columns.count, columns.last_time, timestamp, start);
    }

    /// Adds a native histogram sample with its start timestamp; 0 is none.
    pub fn histogram(&mut self, series_ref: u32, timestamp: TimestampMs, value: &HistogramValue, start: TimestampMs) {
        // Where some have starts, the others go with them: their order stays, and frames stay large.
        let started = start != 0 || self.open_kind == Some(FrameKind::StartedHistograms);
        self.open(if started { FrameKind::StartedHistograms } else { FrameKind::Histograms });
        let series = u64::from(self.open_ref != Some(series_ref));
        self.open_held.add(Held { series, samples: 1, min_time: timestamp, max_time: timestamp });
        self.open_ref = Some(series_ref);
        put_uvarint(&mut self.open, u64::from(series_ref));
        put_varint(&mut self.open, timestamp);
        if started {
            put_varint(&mut self.open, start);
        }
        histogram::encode(&mut self.open, value);
        self.close_if_full();
    }

    /// Adds an exemplar.
    pub fn exemplar(&mut self, series_ref: u32, exemplar: &Exemplar) {
        self.open(FrameKind::Exemplars);
        put_uvarint(&mut self.open, u64::from(series_ref));
        put_varint(&mut self.open, exemplar.timestamp);
        self.open.extend_from_slice(&exemplar.value.to_bits().to_le_bytes());
        put_bytes(&mut self.open, exemplar.labels.as_bytes());
        self.close_if_full();
    }

    /// Adds a metric family's metadata.
    pub fn metadata(&mut self, metadata: &MetricMetadata) {
        self.open(FrameKind::Metadata);
        Self::put_metadata(&mut self.open, metadata);
        self.close_if_full();
    }

    /// Appends one item of a record of metadata.
    pub(crate) fn put_metadata(out: &mut Vec<u8>, metadata: &MetricMetadata) {
        out.push(metadata.metric_type as u8);
        for text in [&metadata.metric, &metadata.help, &metadata.unit] {
            put_bytes(out, text.as_bytes());
        }
    }

    pub(super) fn cut_begun(&mut self, generation: Generation, up_to: TimestampMs) {
        self.cut(FrameKind::CutBegun, generation, up_to);
    }

    pub(super) fn cut_done(&mut self, generation: Generation, up_to: TimestampMs) {
        self.cut(FrameKind::CutDone, generation, up_to);
    }

    fn cut(&mut self, kind: FrameKind, generation: Generation, up_to: TimestampMs) {
        self.open(kind);
        put_uvarint(&mut self.open, u64::from(generation.0));
        put_varint(&mut self.open, up_to);
        self.close();
    }

    /// Frames what is still open.
    pub(super) fn finish(&mut self) {
        self.close();
        self.close_floats();
    }

    fn open(&mut self, kind: FrameKind) {
        if self.open_kind != Some(kind) {
            self.close();
            self.open_kind = Some(kind);
        }
    }

    fn close_if_full(&mut self) {
        if self.open.len() >= TARGET_PAYLOAD {
            let kind = self.open_kind;
            self.close();
            self.open_kind = kind;
        }
    }

    fn close(&mut self) {
        let Some(kind) = self.open_kind.take() else { return };
        if self.open.is_empty() {
            return;
        }
        let mut payload = std::mem::take(&mut self.open);
        let held = std::mem::replace(&mut self.open_held, Held::NOTHING);
        self.open_ref = None;
        if matches!(kind, FrameKind::Histograms | FrameKind::StartedHistograms) {
            let mut prefixed = std::mem::take(&mut self.scratch);
            prefixed.clear();
            put_uvarint(&mut prefixed, u64::from(self.generation.0));
            put_varint(&mut prefixed, held.max_time);
            prefixed.extend_from_slice(&payload);
            self.scratch = std::mem::replace(&mut payload, prefixed);
            self.newest = self.newest.max(Some(held.max_time));
        }
        self.oversize |= payload.len() > MAX_PAYLOAD;
        let compressed = self.compress && payload.len() >= 128 && self.compress(&payload);
        let framed = if compressed { &self.scratch } else { &payload };
        if matches!(kind, FrameKind::Histograms | FrameKind::StartedHistograms | FrameKind::Series) {
            put_counted_frame(&mut self.bytes, self.segment, kind, compressed, self.head, framed, held);
        } else {
            put_frame(&mut self.bytes, self.segment, kind, compressed, self.head, framed);
        }
        payload.clear();
        self.open = payload;
    }

    /// Compresses into `scratch`; `false` when that gains nothing.
    fn compress(&mut self, payload: &[u8]) -> bool {
        self.scratch.resize(snap::raw::max_compress_len(payload.len()), 0);
        match snap::raw::Encoder::new().compress(payload, &mut self.scratch) {
            Ok(n) if n < payload.len() => {
                self.scratch.truncate(n);
                true
            }
            _ => false,
        }
    }

    /// Floats are never compressed: their columns leave little to find, and a sample's budget is nanoseconds.
    fn close_floats(&mut self) {
        if self.floats.count == 0 {
            return;
        }
        // A run of floats may fill its frame while the definitions of its series have not filled theirs.
        self.close();
        let columns = &mut self.floats;
        let payload = &mut self.scratch;
        payload.clear();
        put_uvarint(payload, u64::from(self.generation.0));
        put_varint(payload, columns.newest);
        put_uvarint(payload, columns.count as u64);
        put_uvarint(payload, columns.refs.len() as u64);
        put_uvarint(payload, columns.times.len() as u64);
        let mut kind = FrameKind::Floats;
        if !columns.starts.is_empty() {
            kind = FrameKind::StartedFloats;
            self.starts.clear();
            columns.starts.write(&mut self.starts);
            put_bytes(payload, &self.starts);
        }
        for column in [&columns.refs, &columns.times, &columns.widths, &columns.values] {
            payload.extend_from_slice(column);
        }
        let FloatColumns { count, series, oldest, newest, .. } = *columns;
        let held = Held { series, samples: count as u64, min_time: oldest, max_time: newest };
        put_counted_frame(&mut self.bytes, self.segment, kind, false, self.head, payload, held);
        self.newest = self.newest.max(Some(columns.newest));
        columns.clear();
    }
}

impl FloatColumns {
    fn clear(&mut self) {
        (self.count, self.last_ref, self.last_time) = (0, 0, 0);
        for column in [&mut self.refs, &mut self.times, &mut self.widths, &mut self.values] {
            column.clear();
        }
        self.starts.clear();
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
