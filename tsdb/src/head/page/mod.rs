//! A page: up to 1,024 series with everything that is theirs alone, behind one lock.
//!
//! Open chunks lie in a [`Slab`], labels and the addresses of closed chunks in [`Cold`], what few series have (open histogram chunks,
//! out-of-order samples) in side tables. An append touches a series' state and the end of its open chunk, nothing else.

mod flush;
mod read;
mod snapshot;

pub(super) use snapshot::{samples_of, skip_series};

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use skald_model::{HistogramValue, TimestampMs};

use super::chunk_files::StoredChunk;
use super::cold::{self, Cold, ColdRef};
use super::sample::{OpenHistogram, SampleValue, TimedSample, either};
use super::side::{Side, find_in};
use super::sizing;
use super::slab::{self, Slab};
use super::stored::Shelf;
use super::symbols::Symbol;
use crate::chunk::histogram::Appended;
use crate::chunk::started::{self, StartWriter};
use crate::chunk::xor::{XorAppender, put_num_samples};
use crate::chunk::{Chunk, Encoding};
use crate::wal::Generation;

/// Series per page. Large enough that the page's own cost vanishes, small enough that a flush, which holds the page's
/// lock while it copies what lives, takes well below a millisecond.
pub(super) const PAGE_SERIES: usize = 1024;

/// The pages of a head, at some moment.
pub(super) type Pages = [Arc<RwLock<Page>>];

/// What the chunk the next sample goes to is coded as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// There is none: the series has no in-order sample.
    Nothing,
    Floats,
    /// Some of which have start timestamps.
    StartedFloats,
    Histograms,
}

/// A series' state, 96 bytes.
pub(super) struct Series {
    /// The upper half of the sender's 128-bit hash; the lower half finds the series in the table.
    pub(super) hash: u64,
    /// A keyed hash of the label bytes that no sender knows: equal labels, in all likelihood of 2^-64.
    pub(super) fingerprint: u64,
    /// Writes the open chunk, when that holds floats.
    appender: XorAppender,
    /// Time of the open chunk's first sample.
    chunk_start: TimestampMs,
    /// First time at which the open chunk takes no sample.
    cut_at: TimestampMs,
    /// Bytes of the open chunk, when that holds floats.
    tail: slab::Tail,
    /// Label record; [`cold::NONE`] when the slot is free.
    labels: ColdRef,
    /// The newest closed chunk.
    closed: ColdRef,
    /// Index into the page's out-of-order table, or [`NO_ENTRY`].
    side: u32,
    /// Index into the page's table of open histogram chunks, or of start timestamps when the open chunk holds floats that
    /// have such; else [`NO_ENTRY`].
    extra: u32,
    /// The segment of the log that defines this series last (low 32 bits; 0 is none).
    pub(super) defined_in: u32,
    /// Index into the list of series of the batch being appended; means nothing outside.
    pub(super) mark: u32,
    open: Open,
}

const _: () = assert!(size_of::<Series>() == 96);

const NO_ENTRY: u32 = u32::MAX;

/// The newest in-order sample of a series.
pub(super) enum Last<'a> {
    Nothing,
    Float(TimestampMs, f64),
    Histogram(TimestampMs, &'a OpenHistogram),
}

/// The rules under which samples are stored.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) range_ms: i64,
    /// In-order samples are at or above this; no chunk holds samples of both sides.
    pub(super) boundary: TimestampMs,
    /// Where closed chunks go.
    pub(super) shelf: Shelf<'a>,
}

/// Where the sample of a certain time is.
pub(super) enum Found {
    Nothing,
    Value(SampleValue),
    /// In this chunk, if anywhere: to be read without the page's lock.
    Stored(StoredChunk),
}

#[derive(Default)]
pub(super) struct Page {
    series: Vec<Series>,
    slab: Slab,
    cold: Cold,
    sides: Table<Side>,
    histograms: Table<OpenHistogramChunk>,
    /// Those of open chunks of floats.
    starts: Table<StartWriter>,
}

/// An open chunk of histograms with their start timestamps, if there are any.
struct OpenHistogramChunk {
    chunk: OpenHistogram,
    starts: Option<Box<StartWriter>>,
}

impl OpenHistogramChunk {
    fn new(chunk: OpenHistogram) -> Self {
        Self { chunk, starts: None }
    }

    /// Gives the last sample a start; `previous` is the time of the one before.
    fn start_last(&mut self, previous: TimestampMs, start: TimestampMs) {
        if start != 0 {
            let (samples, time) = either!(&self.chunk, a => (usize::from(a.num_samples()), a.max_time()));
            self.starts.get_or_insert_default().push(samples - 1, previous, time, start);
        }
    }

    fn encoding(&self) -> Encoding {
        let encoding = match &self.chunk {
            OpenHistogram::Integer(_) => Encoding::Histogram,
            OpenHistogram::Float(_) => Encoding::FloatHistogram,
        };
        if self.starts.is_some() { encoding.with_column() } else { encoding }
    }

    /// All of its bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = either!(&self.chunk, appender => appender.bytes()).to_vec();
        if let Some(starts) = &self.starts {
            started::attach(&mut bytes, starts);
        }
        bytes
    }

    fn heap_bytes(&self) -> usize {
        let starts = self.starts.as_ref().map_or(0, |starts| size_of::<StartWriter>() + starts.heap_bytes());
        size_of_val(self) + either!(&self.chunk, appender => appender.heap_bytes()) + starts
    }
}

/// A list whose free places are used again.
struct Table<T> {
    entries: Vec<Option<Box<T>>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> Table<T> {
    fn insert(&mut self, entry: T) -> u32 {
        let entry = Some(Box::new(entry));
        // At most one entry per series of the page: the search is short, and rare.
        match self.entries.iter().position(Option::is_none) {
            Some(at) => {
                self.entries[at] = entry;
                at as u32
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        }
    }

    fn get(&self, at: u32) -> Option<&T> {
        self.entries.get(at as usize)?.as_deref()
    }

    fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.entries.get_mut(at as usize)?.as_deref_mut()
    }

    fn take(&mut self, at: u32) -> Option<T> {
        self.entries.get_mut(at as usize)?.take().map(|entry| *entry)
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten().map(Box::as_ref)
    }
}

impl Series {
    fn new(hash: u128, fingerprint: u64, labels: ColdRef) -> Self {
        Self {
            hash: (hash >> 64) as u64,
            fingerprint,
            appender: XorAppender::new(),
            chunk_start: 0,
            cut_at: 0,
            tail: slab::NONE,
            labels,
            closed: cold::NONE,
            side: NO_ENTRY,
            extra: NO_ENTRY,
            defined_in: 0,
            mark: 0,
            open: Open::Nothing,
        }
    }

    /// Whether the slot holds a series.
    pub(super) fn is_alive(&self) -> bool {
        self.labels != cold::NONE
    }
}

impl Page {
    /// Puts a series at `index`, which is free.
    pub(super) fn create(&mut self, index: usize, hash: u128, fingerprint: u64, labels: &[(Symbol, Symbol)]) -> bool {
        let Some(labels) = self.cold.put_labels(labels) else { return false };
        let series = Series::new(hash, fingerprint, labels);
        while self.series.len() <= index {
            // Small heads stay small: the page grows with them.
            if self.series.len() == self.series.capacity() {
                let more = self.series.len().clamp(4, PAGE_SERIES / 4);
                self.series.reserve_exact(more.min(PAGE_SERIES - self.series.len().min(PAGE_SERIES - 1)));
            }
            self.series.push(Series::new(0, 0, cold::NONE));
        }
        self.series[index] = series;
        true
    }

    #[inline]
    pub(super) fn series(&self, index: usize) -> Option<&Series> {
        self.series.get(index).filter(|series| series.is_alive())
    }

    #[inline]
    pub(super) fn series_mut(&mut self, index: usize) -> Option<&mut Series> {
        self.series.get_mut(index).filter(|series| series.is_alive())
    }

    /// Indexes of the slots that hold a series.
    pub(super) fn alive(&self) -> impl Iterator<Item = usize> {
        self.series.iter().enumerate().filter(|(_, series)| series.is_alive()).map(|(index, _)| index)
    }

    /// Appends the label symbols of a series to `out`, in name order.
    pub(super) fn labels(&self, index: usize, out: &mut Vec<(Symbol, Symbol)>) {
        if let Some(series) = self.series(index) {
            self.cold.labels(series.labels, out);
        }
    }

    /// The newest in-order sample.
    #[inline]
    pub(super) fn last(&self, index: usize) -> Last<'_> {
        let Some(series) = self.series(index) else { return Last::Nothing };
        match series.open {
            Open::Floats | Open::StartedFloats => {
                Last::Float(series.appender.last_time(), series.appender.last_value())
            }
            Open::Nothing => Last::Nothing,
            Open::Histograms => match self.histograms.get(series.extra) {
                Some(open) => Last::Histogram(either!(&open.chunk, appender => appender.max_time()), &open.chunk),
                None => Last::Nothing,
            },
        }
    }

    /// The sample at `time`, wherever it is.
    pub(super) fn find(&self, index: usize, time: TimestampMs) -> Found {
        let Some(series) = self.series(index) else { return Found::Nothing };
        if let Some(found) = self.sides.get(series.side).and_then(|side| side.find(time)) {
            return Found::Value(found);
        }
        match self.last(index) {
            Last::Float(last, value) if last == time => return Found::Value(SampleValue::Float(value)),
            Last::Float(..) | Last::Histogram(..) if time >= series.chunk_start => {
                let found = self.open_chunk(series).and_then(|open| find_in(open.encoding, &open.data, time));
                return found.map_or(Found::Nothing, Found::Value);
            }
            _ => {}
        }
        let closed = self.cold.chunks(series.closed).find(|chunk| chunk.min_time <= time);
        closed.filter(|chunk| time <= chunk.max_time).map_or(Found::Nothing, Found::Stored)
    }

    /// Appends a float newer than the series' last sample. A `start` of 0 is none.
    #[inline]
    pub(super) fn append_float(
        &mut self,
        index: usize,
        time: TimestampMs,
        value: f64,
        start: TimestampMs,
        rules: Rules<'_>,
    ) {
        let Some(series) = self.series.get_mut(index) else { return };
        let in_open_chunk = series.open == Open::Floats
            && series.chunk_start >= rules.boundary
            && !sizing::float_chunk_is_full(
                series.appender.num_samples(),
                series.appender.byte_len(),
                time,
                series.cut_at,
            );
        if !in_open_chunk || start != 0 {
            self.prepare_floats(index, time, start, rules);
        }
        let series = &mut self.series[index];
        let len = series.appender.byte_len();
        let Ok(sample) = series.appender.encode(time, value) else {
            // Not before 65,535 samples or bytes, and chunks are cut long before.
            debug_assert!(false, "an open chunk is never full");
            return;
        };
        series.tail = self.slab.write(series.tail, len, sample.offset(), sample.bytes());
        let samples = series.appender.num_samples();
        if let Some(end) = sizing::predict_floats(samples, series.chunk_start, time, series.cut_at) {
            series.cut_at = end;
        }
    }

    /// Makes the open chunk one that takes a float at `time`, and notes that float's start.
    fn prepare_floats(&mut self, index: usize, time: TimestampMs, start: TimestampMs, rules: Rules<'_>) {
        let series = &self.series[index];
        let appender = &series.appender;
        let goes_on = matches!(series.open, Open::Floats | Open::StartedFloats)
            && series.chunk_start >= rules.boundary
            && !sizing::float_chunk_is_full(appender.num_samples(), appender.byte_len(), time, series.cut_at);
        if !goes_on {
            self.close(index, rules.shelf);
            let series = &mut self.series[index];
            series.open = Open::Floats;
            series.appender = XorAppender::new();
            series.chunk_start = time;
            series.cut_at = sizing::range_end(time, rules.range_ms);
        }
        if start == 0 {
            return;
        }
        let series = &mut self.series[index];
        if series.open == Open::Floats {
            // The chunk stays what it is; the samples it has have no starts.
            series.open = Open::StartedFloats;
            series.extra = self.starts.insert(StartWriter::default());
        }
        if let Some(starts) = self.starts.get_mut(series.extra) {
            let samples = usize::from(series.appender.num_samples());
            starts.push(samples, series.appender.last_time(), time, start);
        }
    }

    /// Appends a histogram newer than the series' last sample. Its spans fit its buckets: the caller has checked. A `start`
    /// of 0 is none.
    pub(super) fn append_histogram(
        &mut self,
        index: usize,
        time: TimestampMs,
        value: &HistogramValue,
        start: TimestampMs,
        rules: Rules<'_>,
    ) {
        let Some(series) = self.series.get_mut(index) else { return };
        let mut header = OpenHistogram::first_header(value);
        let open = match series.open {
            Open::Histograms => self.histograms.get_mut(series.extra),
            Open::Nothing | Open::Floats | Open::StartedFloats => None,
        };
        if let Some(entry) = open
            && series.chunk_start >= rules.boundary
        {
            let open = &mut entry.chunk;
            let previous = either!(&*open, a => a.max_time());
            let (samples, bytes) = either!(&*open, a => (a.num_samples(), a.bytes().len()));
            let range_end = sizing::range_end(series.chunk_start, rules.range_ms);
            let full = sizing::histogram_chunk_is_full(samples, bytes, time, series.cut_at, range_end);
            let outcome = match (&mut *open, value) {
                (OpenHistogram::Integer(a), HistogramValue::Integer(h)) if full => {
                    Appended::CutNewChunk(a.header_of_next(h))
                }
                (OpenHistogram::Float(a), HistogramValue::Float(h)) if full => {
                    Appended::CutNewChunk(a.header_of_next(h))
                }
                (OpenHistogram::Integer(a), HistogramValue::Integer(h)) => {
                    a.append(time, h).unwrap_or(Appended::CutNewChunk(header))
                }
                (OpenHistogram::Float(a), HistogramValue::Float(h)) => {
                    a.append(time, h).unwrap_or(Appended::CutNewChunk(header))
                }
                _ => Appended::CutNewChunk(header),
            };
            match outcome {
                Appended::CutNewChunk(next) => header = next,
                Appended::InPlace | Appended::Recoded => {
                    let bytes = either!(&*open, a => a.bytes().len());
                    if series.cut_at == range_end
                        && let Some(end) = sizing::predict_histograms(bytes, series.chunk_start, time, range_end)
                    {
                        series.cut_at = end;
                    }
                    entry.start_last(previous, start);
                    return;
                }
            }
        }
        // What is accepted was checked; a log whose checksums hold may still say anything.
        let Some(opened) = OpenHistogram::start(time, value, header) else { return };
        self.close(index, rules.shelf);
        let mut opened = OpenHistogramChunk::new(opened);
        opened.start_last(0, start);
        let series = &mut self.series[index];
        series.open = Open::Histograms;
        series.extra = self.histograms.insert(opened);
        series.chunk_start = time;
        series.cut_at = sizing::range_end(time, rules.range_ms);
    }

    /// Puts a sample beside the chunks; returns by how many bytes what is there has grown.
    pub(super) fn insert_beside(
        &mut self,
        index: usize,
        generation: Generation,
        sample: TimedSample,
        rules: Rules<'_>,
    ) -> isize {
        let Some(series) = self.series.get_mut(index) else { return 0 };
        if series.side == NO_ENTRY {
            series.side = self.sides.insert(Side::default());
        }
        let Some(side) = self.sides.get_mut(series.side) else { return 0 };
        let before = side.heap_bytes() as isize;
        side.insert(generation, sample, rules.range_ms);
        side.heap_bytes() as isize - before
    }

    /// Heap bytes of what is beside the chunks.
    pub(super) fn late_bytes(&self) -> usize {
        self.sides.iter().map(Side::heap_bytes).sum()
    }

    /// Moves the open chunk to the closed ones.
    fn close(&mut self, index: usize, shelf: Shelf<'_>) {
        let series = &self.series[index];
        let stored = match series.open {
            Open::Nothing => return,
            Open::Floats => {
                let (samples, len) = (series.appender.num_samples(), series.appender.byte_len());
                let mut bytes = self.slab.copy(series.tail, len);
                put_num_samples(&mut bytes, samples);
                Some(shelf.put(series.chunk_start, series.appender.last_time(), Encoding::Xor, &bytes))
            }
            Open::StartedFloats | Open::Histograms => self.open_chunk(series).map(|chunk| {
                let Chunk { min_time, max_time, encoding, data } = chunk;
                shelf.put(min_time, max_time, encoding, &data)
            }),
        };
        self.drop_extra(index);
        let series = &mut self.series[index];
        let closed = stored.and_then(|stored| self.cold.put_chunk(series.closed, &stored));
        debug_assert!(closed.is_some(), "a page's cold records stay below four GiB");
        series.closed = closed.unwrap_or(series.closed);
        series.open = Open::Nothing;
        self.slab.free(std::mem::replace(&mut series.tail, slab::NONE));
    }

    /// Drops what of the open chunk lies in the page's tables.
    fn drop_extra(&mut self, index: usize) {
        let series = &mut self.series[index];
        let extra = std::mem::replace(&mut series.extra, NO_ENTRY);
        match series.open {
            Open::Nothing | Open::Floats => {}
            Open::StartedFloats => drop(self.starts.take(extra)),
            Open::Histograms => drop(self.histograms.take(extra)),
        }
    }

    /// Time of the open chunk's last sample.
    fn open_max_time(&self, series: &Series) -> Option<TimestampMs> {
        match series.open {
            Open::Nothing => None,
            Open::Floats | Open::StartedFloats => Some(series.appender.last_time()),
            Open::Histograms => {
                Some(either!(&self.histograms.get(series.extra)?.chunk, appender => appender.max_time()))
            }
        }
    }

    /// A copy of the open chunk.
    fn open_chunk(&self, series: &Series) -> Option<Chunk> {
        let max_time = self.open_max_time(series)?;
        let (encoding, data) = match series.open {
            Open::Nothing => return None,
            Open::Floats | Open::StartedFloats => {
                let mut data = self.slab.copy(series.tail, series.appender.byte_len());
                put_num_samples(&mut data, series.appender.num_samples());
                if series.open == Open::StartedFloats {
                    started::attach(&mut data, self.starts.get(series.extra)?);
                    (Encoding::StartedXor, data)
                } else {
                    (Encoding::Xor, data)
                }
            }
            Open::Histograms => {
                let open = self.histograms.get(series.extra)?;
                (open.encoding(), open.to_bytes())
            }
        };
        Some(Chunk { min_time: series.chunk_start, max_time, encoding, data: Bytes::from(data) })
    }
}
