//! A series' samples as a snapshot has them.
//!
//! ```text
//! flags 1 │ [open chunk: start varint, cut_at varint, chunk] │ count uvarint, closed chunks │ count uvarint, late chunks
//! ```
//!
//! Flags, bits 0-1: whether the open chunk holds nothing, floats, integer or float histograms; bit 2: start timestamps, too. A closed chunk is an address
//! in the chunk files, or a copy, oldest first; a late one has its generation (uvarint) before it. `FORMAT.md` in
//! [`crate::wal`] has the layouts.

use skald_model::varint::{get_slice, get_uvarint, get_varint, put_uvarint, put_varint};
use skald_model::{QueryRange, TimestampMs};

use super::super::chunk_files::{ChunkAddress, Pin, StoredChunk};
use super::super::recode;
use super::super::sample::{OpenHistogram, TimedSample, either};
use super::super::side::Side;
use super::super::slab;
use super::super::stored::Shelf;
use super::{Open, OpenHistogramChunk, Page, Rules, cold};
use crate::chunk::histogram::{Float, HistogramAppender, Integer};
use crate::chunk::started::{self, StartWriter};
use crate::chunk::xor::XorAppender;
use crate::chunk::{Chunk, Encoding};
use crate::wal::{Generation, Held};

const OPEN_NOTHING: u8 = 0;
const OPEN_FLOATS: u8 = 1;
const OPEN_INTEGERS: u8 = 2;
const OPEN_FLOAT_HISTOGRAMS: u8 = 3;
/// Added to these: start timestamps stand beside.
const STARTED: u8 = 4;
/// In a chunk's first byte: its address follows, not its bytes.
const BY_ADDRESS: u8 = 0x80;

/// A closed chunk as a snapshot has it.
pub(in super::super) enum Written<'a> {
    Copied { encoding: Encoding, min_time: TimestampMs, max_time: TimestampMs, data: &'a [u8] },
    InFile(StoredChunk),
}

impl Page {
    /// Appends what the series holds to `out`, and counts it. Closed chunks stay in their files, which are pinned; those in
    /// a file that cannot be relied on are copied. `false` when such a chunk cannot be read.
    pub(in super::super) fn put_series(
        &self,
        index: usize,
        rules: Rules<'_>,
        pin: &mut Pin,
        out: &mut Vec<u8>,
        held: &mut Held,
    ) -> bool {
        let Some(series) = self.series(index) else { return true };
        held.series += 1;
        let open = self.open_chunk(series);
        out.push(open.as_ref().map_or(OPEN_NOTHING, |chunk| kind_of(chunk.encoding)));
        if let Some(chunk) = &open {
            put_varint(out, series.chunk_start);
            put_varint(out, series.cut_at);
            put_bytes(out, &chunk.data);
            count(held, chunk.min_time, chunk.max_time, &chunk.data);
        }
        let mut closed: Vec<StoredChunk> = self.cold.chunks(series.closed).collect();
        closed.reverse();
        put_uvarint(out, closed.len() as u64);
        let mut previous = 0;
        for chunk in closed {
            if pin.add(chunk.address.file) {
                put_address(out, &chunk, &mut previous);
                let StoredChunk { min_time, max_time, samples, .. } = chunk;
                held.add(Held { series: 0, samples: u64::from(samples), min_time, max_time });
            } else {
                let Some(data) = rules.shelf.read(&chunk) else { return false };
                put_chunk(out, chunk.encoding, chunk.min_time, chunk.max_time, &data);
                count(held, chunk.min_time, chunk.max_time, &data);
            }
        }
        let late = self.sides.get(series.side).map(|side| side.encoded(rules.range_ms)).unwrap_or_default();
        put_uvarint(out, late.len() as u64);
        for (generation, chunk) in &late {
            put_uvarint(out, u64::from(generation.0));
            put_chunk(out, chunk.encoding, chunk.min_time, chunk.max_time, &chunk.data);
            count(held, chunk.min_time, chunk.max_time, &chunk.data);
        }
        true
    }

    /// Gives a series that was just created what [`Page::put_series`] wrote, but for chunks in files that `is_sound` denies.
    /// Returns the times of its oldest and newest sample; `None` when the bytes are not what they should be, and the series
    /// has what came before the fault.
    pub(in super::super) fn restore_series(
        &mut self,
        index: usize,
        bytes: &[u8],
        shelf: Shelf<'_>,
        mut is_sound: impl FnMut(&StoredChunk) -> bool,
    ) -> Option<(TimestampMs, TimestampMs)> {
        let mut times = (TimestampMs::MAX, TimestampMs::MIN);
        let mut note = |min: TimestampMs, max: TimestampMs| times = (times.0.min(min), times.1.max(max));
        let mut at = 1;
        let kind = *bytes.first()?;
        if kind != OPEN_NOTHING {
            let (chunk_start, cut_at) = (get_varint(bytes, &mut at)?, get_varint(bytes, &mut at)?);
            let max_time = self.restore_open(index, kind, get_slice(bytes, &mut at)?)?;
            let series = self.series_mut(index)?;
            (series.chunk_start, series.cut_at) = (chunk_start, cut_at);
            note(chunk_start, max_time);
        }
        let (mut newest, mut previous) = (cold::NONE, 0);
        for _ in 0..get_uvarint(bytes, &mut at)? {
            let chunk = match get_closed(bytes, &mut at, &mut previous)? {
                Written::Copied { encoding, min_time, max_time, data } => {
                    check_chunk(encoding, min_time, max_time, data)?;
                    shelf.put(min_time, max_time, encoding, data)
                }
                Written::InFile(chunk) if is_sound(&chunk) => chunk,
                Written::InFile(_) => continue,
            };
            newest = self.cold.put_chunk(newest, &chunk)?;
            note(chunk.min_time, chunk.max_time);
            self.series_mut(index)?.closed = newest;
        }
        let mut side = Side::default();
        for _ in 0..get_uvarint(bytes, &mut at)? {
            let generation = Generation(u32::try_from(get_uvarint(bytes, &mut at)?).ok()?);
            let (encoding, min_time, max_time, data) = get_chunk(bytes, &mut at)?;
            check_chunk(encoding, min_time, max_time, data)?;
            side.restore(generation, Chunk { min_time, max_time, encoding, data: data.to_vec().into() });
            note(min_time, max_time);
        }
        if !side.is_empty() {
            let side = self.sides.insert(side);
            self.series_mut(index)?.side = side;
        }
        Some(times)
    }

    /// Goes on with an open chunk; returns the time of its last sample.
    fn restore_open(&mut self, index: usize, kind: u8, data: &[u8]) -> Option<TimestampMs> {
        let (data, starts) = match kind & STARTED {
            0 => (data, None),
            _ => (started::split(data).ok()?.0, Some(resume_starts(encoding_of(kind)?, data)?)),
        };
        if kind & !STARTED == OPEN_FLOATS {
            let appender = XorAppender::resume(data).ok()?;
            let tail = self.slab.write(slab::NONE, 0, 0, data);
            let extra = starts.map(|starts| self.starts.insert(starts));
            let series = self.series_mut(index)?;
            (series.open, series.appender, series.tail) = (Open::Floats, appender, tail);
            if let Some(extra) = extra {
                (series.open, series.extra) = (Open::StartedFloats, extra);
            }
            return Some(appender.last_time());
        }
        let open = match kind & !STARTED {
            OPEN_INTEGERS => OpenHistogram::Integer(HistogramAppender::<Integer>::resume(data.to_vec()).ok()?),
            OPEN_FLOAT_HISTOGRAMS => OpenHistogram::Float(HistogramAppender::<Float>::resume(data.to_vec()).ok()?),
            _ => return None,
        };
        let max_time = either!(&open, appender => appender.max_time());
        let extra = self.histograms.insert(OpenHistogramChunk { chunk: open, starts: starts.map(Box::new) });
        let series = self.series_mut(index)?;
        (series.open, series.extra) = (Open::Histograms, extra);
        Some(max_time)
    }
}

/// How a snapshot says what an open chunk of this encoding holds.
fn kind_of(encoding: Encoding) -> u8 {
    let kind = match encoding.plain() {
        Encoding::Histogram => OPEN_INTEGERS,
        Encoding::FloatHistogram => OPEN_FLOAT_HISTOGRAMS,
        _ => OPEN_FLOATS,
    };
    if encoding.has_column() { kind | STARTED } else { kind }
}

fn encoding_of(kind: u8) -> Option<Encoding> {
    let encoding = match kind & !STARTED {
        OPEN_FLOATS => Encoding::Xor,
        OPEN_INTEGERS => Encoding::Histogram,
        OPEN_FLOAT_HISTOGRAMS => Encoding::FloatHistogram,
        _ => return None,
    };
    Some(if kind & STARTED == 0 { encoding } else { encoding.with_column() })
}

/// Goes on with the start timestamps of an open chunk.
fn resume_starts(encoding: Encoding, data: &[u8]) -> Option<StartWriter> {
    let mut samples = Vec::new();
    recode::decode(encoding, data, QueryRange::ALL, &mut samples).ok()?;
    let (mut starts, mut previous) = (StartWriter::default(), 0);
    for (index, sample) in samples.iter().enumerate() {
        starts.push(index, previous, sample.time, sample.start);
        previous = sample.time;
    }
    Some(starts)
}

/// Where the series of these bytes ends. Adds its chunks that lie in files to `in_files`.
pub(in super::super) fn skip_series(bytes: &[u8], at: &mut usize, in_files: &mut Vec<StoredChunk>) -> Option<()> {
    let kind = *bytes.get(*at)?;
    *at += 1;
    if kind != OPEN_NOTHING {
        get_varint(bytes, at)?;
        get_varint(bytes, at)?;
        get_slice(bytes, at)?;
    }
    let mut previous = 0;
    for _ in 0..get_uvarint(bytes, at)? {
        if let Written::InFile(chunk) = get_closed(bytes, at, &mut previous)? {
            in_files.push(chunk);
        }
    }
    for _ in 0..get_uvarint(bytes, at)? {
        get_uvarint(bytes, at)?;
        get_chunk(bytes, at)?;
    }
    Some(())
}

/// Reads the samples of `wanted` that [`Page::put_series`] wrote, chunks in files by `read`; late ones are left out.
pub(in super::super) fn samples_of(
    bytes: &[u8],
    wanted: QueryRange,
    mut read: impl FnMut(&StoredChunk) -> Option<bytes::Bytes>,
    out: &mut Vec<TimedSample>,
) -> Option<()> {
    let mut at = 1;
    let overlaps = |min: TimestampMs, max: TimestampMs| min <= wanted.max && wanted.min <= max;
    let open = match *bytes.first()? {
        OPEN_NOTHING => None,
        kind => {
            get_varint(bytes, &mut at)?;
            get_varint(bytes, &mut at)?;
            Some((kind, get_slice(bytes, &mut at)?))
        }
    };
    let mut previous = 0;
    for _ in 0..get_uvarint(bytes, &mut at)? {
        // Checksums have held: what does not decode is a writer's fault, and has nothing to give.
        match get_closed(bytes, &mut at, &mut previous)? {
            Written::Copied { encoding, min_time, max_time, data } if overlaps(min_time, max_time) => {
                let _ = recode::decode(encoding, data, wanted, out);
            }
            Written::InFile(chunk) if overlaps(chunk.min_time, chunk.max_time) => {
                if let Some(data) = read(&chunk) {
                    let _ = recode::decode(chunk.encoding, &data, wanted, out);
                }
            }
            Written::Copied { .. } | Written::InFile(_) => {}
        }
    }
    if let Some((kind, data)) = open {
        let encoding = encoding_of(kind)?;
        let _ = recode::decode(encoding, data, wanted, out);
    }
    Some(())
}

/// Appends where a chunk lies; `previous` is the time of the last sample before it.
fn put_address(out: &mut Vec<u8>, chunk: &StoredChunk, previous: &mut TimestampMs) {
    out.push(chunk.encoding as u8 | BY_ADDRESS);
    put_varint(out, chunk.min_time.wrapping_sub(*previous));
    put_uvarint(out, chunk.max_time.wrapping_sub(chunk.min_time) as u64);
    put_uvarint(out, u64::from(chunk.samples));
    for number in [chunk.address.file, chunk.address.offset, chunk.address.len] {
        put_uvarint(out, u64::from(number));
    }
    out.extend_from_slice(&chunk.crc.to_le_bytes());
    *previous = chunk.max_time;
}

fn get_closed<'a>(bytes: &'a [u8], at: &mut usize, previous: &mut TimestampMs) -> Option<Written<'a>> {
    let first = *bytes.get(*at)?;
    if first & BY_ADDRESS == 0 {
        let (encoding, min_time, max_time, data) = get_chunk(bytes, at)?;
        return Some(Written::Copied { encoding, min_time, max_time, data });
    }
    let encoding = Encoding::from_byte(first & !BY_ADDRESS)?;
    *at += 1;
    let min_time = previous.wrapping_add(get_varint(bytes, at)?);
    let max_time = min_time.wrapping_add(get_uvarint(bytes, at)? as i64);
    let samples = u16::try_from(get_uvarint(bytes, at)?).ok()?;
    let mut number = || u32::try_from(get_uvarint(bytes, at)?).ok();
    let address = ChunkAddress { file: number()?, offset: number()?, len: number()? };
    let crc = u32::from_le_bytes(*bytes.get(*at..)?.first_chunk::<4>()?);
    *at += 4;
    *previous = max_time;
    Some(Written::InFile(StoredChunk { min_time, max_time, encoding, samples, crc, address }))
}

fn put_chunk(out: &mut Vec<u8>, encoding: Encoding, min_time: TimestampMs, max_time: TimestampMs, data: &[u8]) {
    out.push(encoding as u8);
    put_varint(out, min_time);
    put_uvarint(out, max_time.wrapping_sub(min_time) as u64);
    put_bytes(out, data);
}

fn get_chunk<'a>(bytes: &'a [u8], at: &mut usize) -> Option<(Encoding, TimestampMs, TimestampMs, &'a [u8])> {
    let encoding = Encoding::from_byte(*bytes.get(*at)?)?;
    *at += 1;
    let min_time = get_varint(bytes, at)?;
    let max_time = min_time.wrapping_add(get_uvarint(bytes, at)? as i64);
    Some((encoding, min_time, max_time, get_slice(bytes, at)?))
}

/// That a chunk decodes to samples of ascending times between those it is said to have: a checksum vouches for what was
/// written, not for its sense, and nobody expects an error from a chunk in memory.
fn check_chunk(encoding: Encoding, min_time: TimestampMs, max_time: TimestampMs, data: &[u8]) -> Option<()> {
    let mut samples = Vec::new();
    recode::decode(encoding, data, QueryRange::ALL, &mut samples).ok()?;
    let ascend = samples.is_sorted_by(|a, b| a.time < b.time);
    let lie_between = samples.first()?.time >= min_time && samples.last()?.time <= max_time;
    (ascend && lie_between).then_some(())
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn count(held: &mut Held, min_time: TimestampMs, max_time: TimestampMs, data: &[u8]) {
    let samples = data.first_chunk::<2>().map_or(0, |count| u64::from(u16::from_be_bytes(*count)));
    held.add(Held { series: 0, samples, min_time, max_time });
}
