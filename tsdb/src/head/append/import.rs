//! Imports: samples a peer holds and this head lacks, of any age, as encoded chunks.
//!
//! They go the way of other samples: logged, then stored under the appender's lock, some thousand at a time. What the head
//! holds already is passed over, so an import may be repeated. What is newer than its series' last sample and above the
//! cut boundary goes on in its chunks; all else goes beside them, as late samples do, and into a block with the next cut.
//! That is so, too, for a range of which there is a block already: the head does not look into blocks, the next one
//! overlaps, and readers and compaction take a sample of both once. Refusing instead would leave a member for good without
//! what it missed before its cut. Whoever knows the blocks does not send what they hold.
//!
//! Samples come with their start timestamps; one that is here keeps what it has, also if that is none.
//!
//! Of two different values at one time the one that is here stays: it is counted, and never equal to the peer's.

use std::collections::BTreeMap;

use skald_model::{HistogramValue, LabelBytes, QueryRange, TimestampMs};

use super::super::recode;
use super::super::sample::{OpenHistogram, SampleValue, TimedSample};
use super::super::stored::PageChunk;
use super::super::{Appender, Head, locate};
use super::judge::{MAX_BUCKETS, buckets};
use super::{Accepted, AppendError, AppendLimits, Newest, RejectReason, Request};
use crate::chunk::{Chunk, ChunkError};
use crate::postings::SeriesRef;
use crate::wal::{Cut, Lsn, Wal, WalError};

/// Samples stored under one hold of the appender's lock: a few milliseconds.
const SAMPLES_AT_ONCE: usize = 8192;

/// One series of an import.
#[derive(Debug, Clone, Copy)]
pub struct SeriesImport<'a> {
    /// Its labels: sorted, valid.
    pub labels: LabelBytes<'a>,
    /// What the peer holds of it, in any order; chunks may overlap.
    pub chunks: &'a [Chunk],
}

/// Limits of an import.
#[derive(Debug, Clone, Copy)]
pub struct ImportLimits {
    /// As of an append. Samples beyond its `max_time` are passed over: the peers' clocks differ, and the next round has
    /// them. Exemplars do not matter.
    pub append: AppendLimits,
    /// Heap bytes of late samples ([`Head::late_bytes`]) from which on nothing is imported until a cut made blocks of
    /// them.
    pub max_late_bytes: usize,
}

/// What became of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imported {
    /// Samples that were missing and are stored now.
    pub stored: u64,
    /// Samples that were here.
    pub known: u64,
    /// Samples at whose time there is another value here, which stays.
    pub conflicts: u64,
    /// Samples beyond the newest time that is accepted now.
    pub too_new: u64,
    /// The import is durable when the log is, up to here.
    pub lsn: Lsn,
}

/// Why an import ended before its end. What came before the series named is stored; repeating all of it does no harm.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImportError {
    /// The peer's bytes: fetch them again, or from another.
    #[error("chunk of series {series} from {min_time} to {max_time} is damaged: {source}")]
    Damaged {
        /// Number of the series within the import.
        series: usize,
        /// What the chunk says.
        min_time: TimestampMs,
        /// Likewise.
        max_time: TimestampMs,
        /// What is wrong.
        source: ChunkError,
    },
    /// A flush makes room.
    #[error("{late_bytes} bytes of late samples are in memory already: limit {limit}; a flush makes room")]
    LateBacklog {
        /// What there is.
        late_bytes: usize,
        /// What there may be.
        limit: usize,
    },
    /// The tenant has as many series as it may.
    #[error("series {series} would be one more than the head may have: limit {limit}")]
    SeriesLimit {
        /// Number of the series within the import.
        series: usize,
        /// Series there may be, in all or of this metric.
        limit: usize,
    },
    /// As of an append.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl From<WalError> for ImportError {
    fn from(error: WalError) -> Self {
        Self::Append(error.into())
    }
}

/// A series of the import, decoded: ascending, one sample per time.
struct Incoming<'a> {
    number: usize,
    labels: LabelBytes<'a>,
    samples: Vec<TimedSample>,
}

impl Head {
    /// Stores what is missing here of a peer's samples; when it returns, what is stored is in the log. Samples of any age
    /// are taken.
    pub fn import_chunks<'a>(
        &self,
        wal: &Wal,
        series: impl IntoIterator<Item = SeriesImport<'a>>,
        limits: &ImportLimits,
    ) -> Result<Imported, ImportError> {
        let mut imported = Imported::default();
        let mut waiting: Vec<Incoming<'a>> = Vec::new();
        for (number, SeriesImport { labels, chunks }) in series.into_iter().enumerate() {
            let samples = decode(number, chunks)?;
            let held: usize = waiting.iter().map(|series| series.samples.len()).sum();
            if held > 0 && held + samples.len() > SAMPLES_AT_ONCE {
                self.import_some(wal, std::mem::take(&mut waiting), limits, &mut imported)?;
            }
            if !samples.is_empty() {
                waiting.push(Incoming { number, labels, samples });
            }
        }
        self.import_some(wal, waiting, limits, &mut imported)?;
        Ok(imported)
    }

    fn import_some(
        &self,
        wal: &Wal,
        series: Vec<Incoming<'_>>,
        limits: &ImportLimits,
        imported: &mut Imported,
    ) -> Result<(), ImportError> {
        if series.is_empty() {
            return Ok(());
        }
        if self.chunk_files.is_over_budget() {
            let pending_bytes = self.chunk_files.stats().pending_bytes;
            return Err(AppendError::ChunkBacklog { pending_bytes }.into());
        }
        let late_bytes = self.late_bytes();
        if late_bytes >= limits.max_late_bytes {
            return Err(ImportError::LateBacklog { late_bytes, limit: limits.max_late_bytes });
        }
        let stored = {
            let appender = &mut *self.appender.lock();
            let mut request = Request::new(self, &limits.append, wal.segment());
            let (mut counts, mut refused) = (Imported::default(), None);
            for one in series {
                match request.resolve_import(appender, one, &mut counts) {
                    Ok(()) => {}
                    // What came before it is stored.
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                }
            }
            let appended = request.finish(appender, wal, Ok(()));
            appended.map(|appended| (Imported { lsn: appended.lsn, ..counts }, refused))
        };
        // After the lock: others append meanwhile.
        self.chunk_files.write_batches();
        let (counts, refused) = stored?;
        imported.stored += counts.stored;
        imported.known += counts.known;
        imported.conflicts += counts.conflicts;
        imported.too_new += counts.too_new;
        imported.lsn = imported.lsn.max(counts.lsn);
        refused.map_or(Ok(()), Err)
    }
}

/// The samples of a series' chunks, ascending; of several at one time that of the chunk given first.
fn decode(number: usize, chunks: &[Chunk]) -> Result<Vec<TimedSample>, ImportError> {
    let mut samples: Vec<TimedSample> = Vec::new();
    for chunk in chunks {
        let before = samples.len();
        recode::decode(chunk.encoding, &chunk.data, QueryRange::ALL, &mut samples)
            .and_then(|()| check(chunk, &samples[before..]))
            .map_err(|source| {
                let Chunk { min_time, max_time, .. } = *chunk;
                ImportError::Damaged { series: number, min_time, max_time, source }
            })?;
    }
    if !samples.is_sorted_by(|a, b| a.time < b.time) {
        samples.sort_by_key(|sample| sample.time);
        samples.dedup_by_key(|sample| sample.time);
    }
    Ok(samples)
}

/// Whether decoded samples are what the chunk says, and what the head can store.
fn check(chunk: &Chunk, samples: &[TimedSample]) -> Result<(), ChunkError> {
    let (first, last) = (samples.first().map(|s| s.time), samples.last().map(|s| s.time));
    if (first, last) != (Some(chunk.min_time), Some(chunk.max_time)) {
        return Err(ChunkError::Malformed("time"));
    }
    if !samples.is_sorted_by(|a, b| a.time < b.time) {
        return Err(ChunkError::OutOfOrder);
    }
    let is_storable = |sample: &TimedSample| match &sample.value {
        SampleValue::Float(_) => true,
        SampleValue::Histogram(value) => is_storable(sample.time, value),
    };
    if samples.iter().all(is_storable) { Ok(()) } else { Err(ChunkError::Malformed("histogram")) }
}

fn is_storable(time: TimestampMs, value: &HistogramValue) -> bool {
    buckets(value) <= MAX_BUCKETS && OpenHistogram::start(time, value, OpenHistogram::first_header(value)).is_some()
}

impl<'a> Request<'a, '_> {
    /// Finds or creates the series and accepts what it lacks.
    fn resolve_import(
        &mut self,
        appender: &mut Appender,
        series: Incoming<'a>,
        counts: &mut Imported,
    ) -> Result<(), ImportError> {
        let Incoming { number, labels, mut samples } = series;
        let all = samples.len();
        samples.retain(|sample| sample.time <= self.limits.max_time);
        counts.too_new += (all - samples.len()) as u64;
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Ok(()) };
        let range = QueryRange { min: first.time, max: last.time };
        let hash = labels.hash();
        let fingerprint = appender.table.fingerprint(labels.as_bytes());
        let touched_before = self.touched.len();
        let at = match self.find(appender, hash, Some(fingerprint)) {
            Some(slot) => self.touch(appender, slot, Some(labels)),
            None => {
                // The index comes before pages in the locking order.
                self.page = None;
                if let Some(reason) = self.over_limit(labels) {
                    return Err(self.series_limit(number, reason));
                }
                let slot = self.head.insert_series(appender, self.segment, labels, hash, fingerprint)?;
                let at = self.touch(appender, slot, Some(labels));
                self.touched[at].created = true;
                at
            }
        };
        let slot = self.touched[at].slot;
        // A series may be given twice: what this request has brought is not stored yet.
        let repeated = at < touched_before;
        let stored = self.stored_samples(appender, slot, range);
        for TimedSample { time, value, start } in samples {
            let found = match stored.get(&time) {
                Some(found) => Some(found.clone()),
                None if repeated => self.in_request(slot, time),
                None => None,
            };
            match found {
                Some(found) if found.is_same(&value) => counts.known += 1,
                Some(_) => counts.conflicts += 1,
                None => {
                    counts.stored += 1;
                    self.accept_import(appender, at, TimedSample { time, value, start });
                }
            }
        }
        Ok(())
    }

    fn series_limit(&self, series: usize, reason: RejectReason) -> ImportError {
        let limit = match reason {
            RejectReason::SeriesPerMetricLimit => self.limits.max_series_per_metric,
            _ => self.limits.max_series,
        };
        ImportError::SeriesLimit { series, limit: limit.unwrap_or(usize::MAX) }
    }

    /// Takes a sample whose time is free.
    fn accept_import(&mut self, appender: &Appender, at: usize, sample: TimedSample) {
        let TimedSample { time, value, start } = sample;
        let touched = &mut self.touched[at];
        let slot = touched.slot;
        let newer = match &touched.newest {
            Newest::Nothing => true,
            Newest::Float(last, _) | Newest::Histogram(last, _) => time > *last,
        };
        let beside = !newer || time < appender.boundary;
        if !beside {
            touched.newest = match &value {
                SampleValue::Float(value) => Newest::Float(time, value.to_bits()),
                SampleValue::Histogram(value) => Newest::Histogram(time, Some(value.clone())),
            };
        }
        self.note(slot, time, || value.clone());
        let order = self.next_order();
        self.note_start(order, start);
        match value {
            SampleValue::Float(value) => self.floats.push(Accepted { slot, order, time, value, beside }),
            SampleValue::Histogram(value) => self.histograms.push(Accepted { slot, order, time, value, beside }),
        }
    }

    /// The samples of a series in `range`, by time. What a chunk has that cannot be read is not there: it is taken again.
    fn stored_samples(
        &mut self,
        appender: &Appender,
        slot: SeriesRef,
        range: QueryRange,
    ) -> BTreeMap<TimestampMs, SampleValue> {
        let (number, index) = locate(slot);
        let rules = self.head.rules(appender.boundary);
        let mut chunks: Vec<PageChunk> = Vec::new();
        if let Some(page) = self.page(appender, number) {
            page.chunks(index, range, Cut::NONE, rules, &mut chunks);
        }
        if chunks.iter().any(|chunk| matches!(chunk, PageChunk::Stored(_))) {
            // Readers shall not wait for the disk.
            self.page = None;
        }
        let mut samples: Vec<TimedSample> = Vec::new();
        for chunk in rules.shelf.load(vec![chunks]).into_iter().flatten().flatten() {
            // These bytes were encoded here and have their checksum: they decode.
            let decoded = recode::decode(chunk.encoding, &chunk.data, range, &mut samples);
            debug_assert!(decoded.is_ok());
        }
        samples.into_iter().map(|sample| (sample.time, sample.value)).collect()
    }
}
