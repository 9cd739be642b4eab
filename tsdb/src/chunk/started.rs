//! Start timestamps beside samples: a column of their own, and chunks that carry one.
//!
//! Only heads make these. A series whose sender gives no starts pays nothing, an open chunk stays what it is when the first
//! start comes, and blocks get Prometheus' own encodings ([`for_block`]).
//!
//! The column is a list of runs, `run << 2 | how` (uvarint) each: how the next `run` samples come by their starts.
//!
//! | how | start |
//! |---|---|
//! | 0 | none |
//! | 1 | that of the last sample that has one |
//! | 2 | the time of the sample before |
//! | 3 | `time - start` follows (varint), for each |
//!
//! Samples behind the last run have none. A chunk with such a column: `chunk | column | column's length u32`, little-endian;
//! so its first two bytes still are its number of samples.

use std::borrow::Cow;

use skald_model::varint::{get_uvarint, get_varint, put_uvarint, put_varint};
use skald_model::{Columns, QueryRange, TimestampMs};

use super::{Chunk, ChunkError, Encoding, histogram, xor, xor2};

const NONE: u8 = 0;
const SAME: u8 = 1;
const PREVIOUS: u8 = 2;
const OWN: u8 = 3;

const LENGTH_BYTES: usize = 4;

/// Writes a column of start timestamps.
#[derive(Debug, Clone, Default)]
pub struct StartWriter {
    /// Runs that are complete.
    bytes: Vec<u8>,
    how: u8,
    run: u32,
    /// Samples that have been told about.
    samples: u32,
    last: TimestampMs,
}

impl StartWriter {
    /// Gives sample number `index` at `time` a start; 0 is none. Indexes ascend; samples left out have none. `previous` is the
    /// time of the sample before, whatever it is for the first.
    pub fn push(&mut self, index: usize, previous: TimestampMs, time: TimestampMs, start: TimestampMs) {
        if start == 0 {
            return;
        }
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let missing = index.saturating_sub(self.samples);
        if missing > 0 {
            self.extend(NONE, missing);
        }
        self.samples = index.saturating_add(1);
        if start == self.last {
            self.extend(SAME, 1);
        } else if index > 0 && start == previous {
            self.extend(PREVIOUS, 1);
        } else {
            self.end_run();
            put_uvarint(&mut self.bytes, 1 << 2 | u64::from(OWN));
            put_varint(&mut self.bytes, time.wrapping_sub(start));
        }
        self.last = start;
    }

    /// Whether no sample has a start.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Bytes of the column so far, or a few more.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the column to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
        if self.run > 0 {
            put_uvarint(out, u64::from(self.run) << 2 | u64::from(self.how));
        }
    }

    /// Begins anew, keeps the allocation.
    pub fn clear(&mut self) {
        self.bytes.clear();
        (self.how, self.run, self.samples, self.last) = (NONE, 0, 0, 0);
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    fn extend(&mut self, how: u8, samples: u32) {
        if self.how != how {
            self.end_run();
            self.how = how;
        }
        self.run += samples;
    }

    fn end_run(&mut self) {
        if self.run > 0 {
            put_uvarint(&mut self.bytes, u64::from(self.run) << 2 | u64::from(self.how));
        }
        self.run = 0;
    }
}

/// Reads a column of start timestamps, sample by sample.
#[derive(Debug, Clone)]
pub struct StartReader<'a> {
    bytes: &'a [u8],
    at: usize,
    how: u8,
    run: u64,
    last: TimestampMs,
    previous: TimestampMs,
}

impl<'a> StartReader<'a> {
    /// Reads from the first sample on.
    pub fn new(column: &'a [u8]) -> Self {
        Self { bytes: column, at: 0, how: NONE, run: 0, last: 0, previous: 0 }
    }

    /// The start of the next sample, which is at `time`; 0 is none.
    pub fn next(&mut self, time: TimestampMs) -> Result<TimestampMs, ChunkError> {
        const DAMAGED: ChunkError = ChunkError::Malformed("start timestamp");
        let previous = std::mem::replace(&mut self.previous, time);
        if self.run == 0 {
            if self.at == self.bytes.len() {
                return Ok(0);
            }
            let header = get_uvarint(self.bytes, &mut self.at).ok_or(DAMAGED)?;
            (self.how, self.run) = ((header & 3) as u8, header >> 2);
            if self.run == 0 {
                return Err(DAMAGED);
            }
        }
        self.run -= 1;
        let start = match self.how {
            NONE => return Ok(0),
            SAME => self.last,
            PREVIOUS => previous,
            _ => time.wrapping_sub(get_varint(self.bytes, &mut self.at).ok_or(DAMAGED)?),
        };
        self.last = start;
        Ok(start)
    }
}

/// Puts the column behind the bytes of a chunk that it belongs to.
pub fn attach(data: &mut Vec<u8>, starts: &StartWriter) {
    let before = data.len();
    starts.write(data);
    let len = u32::try_from(data.len() - before).unwrap_or(u32::MAX);
    data.extend_from_slice(&len.to_le_bytes());
}

/// The chunk and the column of what [`attach`] made.
pub fn split(data: &[u8]) -> Result<(&[u8], &[u8]), ChunkError> {
    let (rest, len) = data.split_last_chunk::<LENGTH_BYTES>().ok_or(ChunkError::Truncated)?;
    let at = usize::try_from(u32::from_le_bytes(*len)).ok().and_then(|len| rest.len().checked_sub(len));
    Ok(rest.split_at(at.ok_or(ChunkError::Malformed("length"))?))
}

/// Appends the samples of a chunk of any encoding that lie in `range` to the columns of their kind, with their start
/// timestamps. Samples must be newer than those already there. On an error `out` is as it was.
pub fn decode(encoding: Encoding, data: &[u8], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    match encoding {
        Encoding::Xor => xor::decode(data, range, out),
        Encoding::Xor2 => xor2::decode(data, range, out),
        Encoding::Histogram | Encoding::FloatHistogram | Encoding::HistogramStarts | Encoding::FloatHistogramStarts => {
            histogram::decode(encoding, data, range, out)
        }
        Encoding::StartedXor | Encoding::StartedHistogram | Encoding::StartedFloatHistogram => {
            decode_started(encoding, data, range, out)
        }
    }
}

fn decode_started(encoding: Encoding, data: &[u8], range: QueryRange, out: &mut Columns) -> Result<(), ChunkError> {
    let (inner, column) = split(data)?;
    // Starts are found by walking from the first sample on.
    let mut all = Columns::default();
    decode(encoding.plain(), inner, QueryRange { min: TimestampMs::MIN, max: range.max }, &mut all)?;
    let mut starts = StartReader::new(column);
    let times = if encoding.is_float() { &all.float_timestamps } else { &all.histogram_timestamps };
    let found = times.iter().map(|time| starts.next(*time)).collect::<Result<Vec<_>, _>>()?;
    if encoding.is_float() {
        all.float_starts = found;
    } else {
        all.histogram_starts = found;
    }
    out.extend_from(&all, range);
    Ok(())
}

impl Chunk {
    /// The same samples without their start timestamps, if those stand beside; nothing is encoded anew.
    fn without_starts(&self) -> Result<Chunk, ChunkError> {
        let (inner, _) = split(&self.data)?;
        let data = self.data.slice(..inner.len());
        Ok(Chunk { encoding: self.encoding.plain(), data, ..*self })
    }
}

/// A head's chunks as a block has them: in Prometheus' encodings with start timestamps, or without them.
pub fn for_block(chunks: &[Chunk], keep_starts: bool) -> Result<Cow<'_, [Chunk]>, ChunkError> {
    if !chunks.iter().any(|chunk| chunk.encoding.has_column()) {
        return Ok(Cow::Borrowed(chunks));
    }
    let convert = |chunk: &Chunk| match chunk.encoding.has_column() && !keep_starts {
        true => chunk.without_starts(),
        false => interleaved(chunk),
    };
    chunks.iter().map(convert).collect::<Result<Vec<_>, _>>().map(Cow::Owned)
}

/// Gives the samples of `chunks`, which hold no starts, those of `starts` in their order (0 is none), as a block has them.
pub fn give_starts(chunks: Vec<Chunk>, starts: &[(TimestampMs, TimestampMs)]) -> Result<Vec<Chunk>, ChunkError> {
    if starts.iter().all(|(_, start)| *start == 0) {
        return Ok(chunks);
    }
    let mut rest = starts;
    let mut next = |chunk: Chunk| {
        let (of_chunk, later) = rest.split_at(usize::from(chunk.num_samples()).min(rest.len()));
        rest = later;
        let (mut writer, mut previous) = (StartWriter::default(), 0);
        for (index, (time, start)) in of_chunk.iter().enumerate() {
            writer.push(index, previous, *time, *start);
            previous = *time;
        }
        interleaved(&with_column(chunk, &writer))
    };
    chunks.into_iter().map(&mut next).collect()
}

/// A plain chunk with a column beside, if that says anything.
pub fn with_column(chunk: Chunk, starts: &StartWriter) -> Chunk {
    if starts.is_empty() {
        return chunk;
    }
    let mut data = chunk.data.to_vec();
    attach(&mut data, starts);
    Chunk { encoding: chunk.encoding.with_column(), data: data.into(), ..chunk }
}

/// A chunk with a column as one of Prometheus' encodings that have start timestamps among the samples.
fn interleaved(chunk: &Chunk) -> Result<Chunk, ChunkError> {
    if !chunk.encoding.has_column() {
        return Ok(chunk.clone());
    }
    let (inner, column) = split(&chunk.data)?;
    let mut columns = Columns::default();
    let (encoding, data) = match chunk.encoding {
        Encoding::StartedXor => {
            decode(chunk.encoding, &chunk.data, QueryRange::ALL, &mut columns)?;
            let Columns { float_timestamps, float_values, float_starts, .. } = &columns;
            (Encoding::Xor2, xor2::encode(float_timestamps, float_values, float_starts))
        }
        Encoding::StartedHistogram => {
            (Encoding::HistogramStarts, histogram::with_starts(Encoding::Histogram, inner, column)?)
        }
        _ => (Encoding::FloatHistogramStarts, histogram::with_starts(Encoding::FloatHistogram, inner, column)?),
    };
    Ok(Chunk { encoding, data: data.into(), ..*chunk })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skald_model::HistogramValue;

    use super::*;

    /// Times with starts as senders have them: the process', the last sample's time, anything, none.
    fn any_samples() -> impl Strategy<Value = Vec<(TimestampMs, TimestampMs)>> {
        let sample = (1_i64..1_000_000, 0_u8..5, any::<i64>());
        (any::<i32>(), proptest::collection::vec(sample, 0..200)).prop_map(|(first, samples)| {
            let mut time = i64::from(first);
            let started = |(step, how, own): (i64, u8, i64)| {
                let previous = time;
                time += step;
                let start = match how {
                    0 => 0,
                    1 => previous,
                    2 => own,
                    _ => 77,
                };
                (time, start)
            };
            samples.into_iter().map(started).collect()
        })
    }

    fn column_of(samples: &[(TimestampMs, TimestampMs)]) -> StartWriter {
        let mut writer = StartWriter::default();
        let mut previous = 0;
        for (index, (time, start)) in samples.iter().enumerate() {
            writer.push(index, previous, *time, *start);
            previous = *time;
        }
        writer
    }

    proptest! {
        #[test]
        fn columns_round_trip(samples in any_samples()) {
            let mut bytes = Vec::new();
            column_of(&samples).write(&mut bytes);
            let mut reader = StartReader::new(&bytes);
            for (time, start) in &samples {
                prop_assert_eq!(reader.next(*time), Ok(*start));
            }
        }

        #[test]
        fn chunks_carry_them(samples in any_samples(), min in any::<i32>(), len in 0_i64..100_000_000) {
            prop_assume!(!samples.is_empty());
            let times: Vec<_> = samples.iter().map(|s| s.0).collect();
            let values: Vec<_> = times.iter().map(|t| (t % 7) as f64).collect();
            let plain = xor::encode(&times, &values);
            let mut data = plain.clone();
            attach(&mut data, &column_of(&samples));
            let range = QueryRange { min: i64::from(min), max: i64::from(min) + len };
            let chunk = Chunk {
                min_time: times[0],
                max_time: times[times.len() - 1],
                encoding: Encoding::StartedXor,
                data: data.into(),
            };
            let kept = for_block(std::slice::from_ref(&chunk), true).unwrap();
            let dropped = for_block(std::slice::from_ref(&chunk), false).unwrap();
            prop_assert_eq!((&dropped[0].data[..], dropped[0].encoding), (&plain[..], Encoding::Xor));
            prop_assert_eq!(chunk.num_samples(), kept[0].num_samples());
            for chunk in [&chunk, &kept[0]] {
                let mut columns = Columns::default();
                columns.push_float(i64::MIN, 0.0);
                decode(chunk.encoding, &chunk.data, range, &mut columns).unwrap();
                columns.float_starts.resize(columns.float_values.len(), 0);
                let found = columns.float_timestamps.iter().zip(&columns.float_starts).skip(1);
                let found: Vec<_> = found.map(|(t, s)| (*t, *s)).collect();
                let expected: Vec<_> = samples.iter().copied().filter(|s| range.contains(s.0)).collect();
                prop_assert_eq!(found, expected);
                prop_assert!(columns.float_values[1..].iter().zip(&columns.float_timestamps[1..]).all(|(v, t)| *v == (t % 7) as f64));
            }
        }

        #[test]
        fn damage_is_survived(bytes: Vec<u8>) {
            for encoding in [Encoding::StartedXor, Encoding::StartedHistogram, Encoding::StartedFloatHistogram] {
                let _ = decode(encoding, &bytes, QueryRange::ALL, &mut Columns::default());
            }
        }
    }

    /// Chunks of encodings 4 to 6 that Prometheus 3's own encoders (August 2026) made, in hexadecimal, each with what its decoders
    /// read: `f`, `i` or `h` (floats, integer, float histograms), time, start, then value bits, or count and sum.
    const OF_PROMETHEUS: &str = include_str!("testdata/starts.txt");

    #[test]
    fn what_prometheus_wrote_is_read() {
        let mut lines = OF_PROMETHEUS.lines().peekable();
        let mut chunks = 0;
        while let Some(line) = lines.next() {
            let [_, encoding, data] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let encoding = Encoding::from_byte(encoding.parse().unwrap()).unwrap();
            let byte = |at: usize| u8::from_str_radix(&data[2 * at..2 * at + 2], 16).unwrap();
            let data: Vec<u8> = (0..data.len() / 2).map(byte).collect();
            let mut found = Vec::new();
            if encoding == Encoding::Xor2 {
                let mut columns = Columns::default();
                decode(encoding, &data, QueryRange::ALL, &mut columns).unwrap();
                columns.float_starts.resize(columns.float_values.len(), 0);
                let samples = columns.float_timestamps.iter().zip(&columns.float_starts).zip(&columns.float_values);
                found.extend(samples.map(|((time, start), value)| format!("f {time} {start} {:x}", value.to_bits())));
                // And ours is the same, bit by bit.
                let Columns { float_timestamps, float_values, float_starts, .. } = &columns;
                assert_eq!(xor2::encode(float_timestamps, float_values, float_starts), data);
            } else {
                let each = |sample: skald_model::HistogramSample, start| {
                    let time = sample.timestamp;
                    found.push(match sample.value {
                        HistogramValue::Integer(h) => format!("i {time} {start} {} {:x}", h.count, h.sum.to_bits()),
                        HistogramValue::Float(h) => {
                            format!("h {time} {start} {:x} {:x}", h.count.to_bits(), h.sum.to_bits())
                        }
                    });
                };
                histogram::for_each_sample(encoding, &data, QueryRange::ALL, each).unwrap();
            }
            let expected: Vec<&str> = std::iter::from_fn(|| lines.next_if(|line| !line.starts_with("chunk"))).collect();
            assert_eq!(found, expected);
            chunks += 1;
        }
        assert!(chunks > 12, "{chunks}");
    }

    #[test]
    fn what_senders_do_takes_few_bytes() {
        let column = |samples: &[(i64, i64)]| {
            let mut bytes = Vec::new();
            column_of(samples).write(&mut bytes);
            bytes.len()
        };
        // One start for all, and each sample's that of the sample before.
        let counter: Vec<_> = (1..=120).map(|i| (1_700_000_000_000 + i * 15_000, 1_700_000_000_000)).collect();
        let delta: Vec<_> = (1..=120).map(|i| (i * 15_000, (i - 1) * 15_000 + i64::from(i == 1))).collect();
        assert!(column(&counter) <= 6 && column(&delta) <= 6, "{} {}", column(&counter), column(&delta));
        assert_eq!(column(&[(1, 0), (2, 0)]), 0);
    }
}
