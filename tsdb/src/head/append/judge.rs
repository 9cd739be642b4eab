//! Which series a request is about, and which of its samples are accepted.

use std::sync::atomic::Ordering;

use skald_model::{FloatSample, HistogramSample, HistogramValue, LabelBytes, METRIC_NAME, TimestampMs};

use super::super::chunk_files::StoredChunk;
use super::super::page::{Found, Last, Page};
use super::super::sample::{OpenHistogram, SampleValue};
use super::super::side::find_in;
use super::super::{Appender, locate};
use super::{Accepted, AppendError, Newest, RejectReason, RejectedKind, Rejection, Request, SeriesAppend, Touched};
use crate::postings::SeriesRef;

/// Most buckets, spans and bounds of one histogram together: a bound on what one record takes. Real ones have hundreds.
pub(super) const MAX_BUCKETS: usize = 65_536;

pub(super) fn buckets(value: &HistogramValue) -> usize {
    match value {
        HistogramValue::Integer(h) => {
            let spans = h.positive_spans.len() + h.negative_spans.len();
            h.positive_deltas.len() + h.negative_deltas.len() + h.custom_values.len() + spans
        }
        HistogramValue::Float(h) => {
            let spans = h.positive_spans.len() + h.negative_spans.len();
            h.positive_buckets.len() + h.negative_buckets.len() + h.custom_values.len() + spans
        }
    }
}

enum Verdict {
    InOrder,
    Beside,
    /// It is stored already.
    Same,
    Rejected(RejectReason),
}

impl<'a> Request<'a, '_> {
    /// Finds or creates the series and validates what it brings.
    pub(super) fn resolve(
        &mut self,
        appender: &mut Appender,
        number: usize,
        series: SeriesAppend<'a>,
    ) -> Result<(), AppendError> {
        let fingerprint = series.labels.map(|labels| appender.table.fingerprint(labels.as_bytes()));
        let next = self.touched.last().map_or(0, |last| last.slot.wrapping_add(1));
        let guessed = self.in_order && self.is_series(appender, next, series.hash, fingerprint);
        let found = if guessed { Some(next) } else { self.find(appender, series.hash, fingerprint) };
        self.in_order = found == Some(next);
        let at = match found {
            Some(slot) => self.touch(appender, slot, series.labels),
            None => {
                let (Some(labels), Some(fingerprint)) = (series.labels, fingerprint) else {
                    self.outcome.unknown.push(number as u32);
                    return Ok(());
                };
                match self.create(appender, number, series, labels, fingerprint)? {
                    Some(at) => at,
                    None => return Ok(()),
                }
            }
        };
        for (i, sample) in series.samples.iter().enumerate() {
            let order = self.next_order();
            self.judge_float(appender, number, at, *sample);
            if let Some(start) = series.sample_starts.get(i) {
                self.note_start_of(order, *start);
            }
        }
        let starts = series.histogram_starts.iter().copied().chain(std::iter::repeat(0));
        for (sample, start) in series.histograms.iter().zip(starts) {
            let order = self.next_order();
            self.judge_histogram(appender, number, at, sample);
            self.note_start_of(order, start);
        }
        for exemplar in series.exemplars {
            let slot = self.touched[at].slot;
            let pending = self.exemplars.last().filter(|(last, _)| *last == slot).map(|(_, exemplar)| *exemplar);
            let known = self.head.exemplars.lock().judge(slot, pending, exemplar);
            match known {
                Ok(is_new) => {
                    self.outcome.exemplars += 1;
                    if is_new && self.limits.max_exemplars > 0 {
                        self.exemplars.push((slot, exemplar));
                    }
                }
                Err(reason) => self.reject(RejectedKind::Exemplar, reason, 1, number, exemplar.timestamp),
            }
        }
        Ok(())
    }

    /// The page of a slot, locked for writing until another page is asked for.
    pub(super) fn page(&mut self, appender: &Appender, number: usize) -> Option<&mut Page> {
        if self.page.as_ref().is_none_or(|(locked, _)| *locked != number) {
            self.page = None;
            self.page = Some((number, appender.pages.get(number)?.write_arc()));
        }
        self.page.as_mut().map(|(_, guard)| &mut **guard)
    }

    /// Without a fingerprint the hash decides alone: with what finds the slot in the table, 100 bits of it.
    fn is_series(&mut self, appender: &Appender, slot: SeriesRef, hash: u128, fingerprint: Option<u64>) -> bool {
        let (page, index) = locate(slot);
        self.page(appender, page).and_then(|page| page.series(index)).is_some_and(|series| {
            series.hash == (hash >> 64) as u64 && fingerprint.is_none_or(|wanted| series.fingerprint == wanted)
        })
    }

    pub(super) fn find(&mut self, appender: &Appender, hash: u128, fingerprint: Option<u64>) -> Option<SeriesRef> {
        let mut candidates = appender.table.candidates(hash);
        candidates.find(|slot| self.is_series(appender, *slot, hash, fingerprint))
    }

    /// Enters a series into the list of touched ones, unless this request has touched it before.
    pub(super) fn touch(&mut self, appender: &Appender, slot: SeriesRef, labels: Option<LabelBytes<'a>>) -> usize {
        let (number, index) = locate(slot);
        let next = self.touched.len();
        let mark = self.page(appender, number).and_then(|page| page.series(index)).map_or(0, |series| series.mark);
        if self.touched.get(mark as usize).is_some_and(|touched| touched.slot == slot) {
            return mark as usize;
        }
        let (mut newest, mut defined_in) = (Newest::Nothing, 0);
        if let Some(page) = self.page(appender, number) {
            newest = match page.last(index) {
                Last::Nothing => Newest::Nothing,
                Last::Float(time, value) => Newest::Float(time, value.to_bits()),
                Last::Histogram(time, _) => Newest::Histogram(time, None),
            };
            if let Some(series) = page.series_mut(index) {
                series.mark = next as u32;
                defined_in = series.defined_in;
            }
        }
        self.touched.push(Touched { slot, labels, defined_in, newest, created: false });
        next
    }

    /// Creates a series for which at least one sample is acceptable; `None` when nothing of it is.
    fn create(
        &mut self,
        appender: &mut Appender,
        number: usize,
        series: SeriesAppend<'a>,
        labels: LabelBytes<'a>,
        fingerprint: u64,
    ) -> Result<Option<usize>, AppendError> {
        // A sender that computes another hash must not get a second series of the same labels.
        let hash = labels.hash();
        if hash != series.hash
            && let Some(slot) = self.find(appender, hash, Some(fingerprint))
        {
            return Ok(Some(self.touch(appender, slot, series.labels)));
        }
        // The index comes before pages in the locking order.
        self.page = None;
        let times = series.samples.iter().map(|s| s.timestamp).chain(series.histograms.iter().map(|s| s.timestamp));
        let acceptable = times.clone().any(|t| self.admit(appender, t, true).is_ok());
        let refused = if acceptable { self.over_limit(labels) } else { None };
        if !acceptable || refused.is_some() {
            for time in times {
                let reason = refused.or(self.admit(appender, time, true).err()).unwrap_or(RejectReason::TooOld);
                self.reject(RejectedKind::Sample, reason, 1, number, time);
            }
            for exemplar in series.exemplars {
                let reason = RejectReason::ExemplarSeriesMissing;
                self.reject(RejectedKind::Exemplar, reason, 1, number, exemplar.timestamp);
            }
            return Ok(None);
        }
        let slot = self.head.insert_series(appender, self.segment, labels, hash, fingerprint)?;
        let at = self.touch(appender, slot, series.labels);
        self.touched[at].created = true;
        Ok(Some(at))
    }

    pub(super) fn over_limit(&self, labels: LabelBytes<'_>) -> Option<RejectReason> {
        if self.limits.max_series.is_some_and(|limit| self.head.series_count() >= limit) {
            return Some(RejectReason::SeriesLimit);
        }
        let limit = self.limits.max_series_per_metric?;
        let (_, metric) = labels.iter().find(|(name, _)| *name == METRIC_NAME)?;
        let series = self.head.index.read().series_with(METRIC_NAME, metric);
        (series >= limit).then_some(RejectReason::SeriesPerMetricLimit)
    }

    /// Whether a sample at `time` may be stored, given whether it is newer than its series' last; and if so, whether in
    /// order.
    fn admit(&self, appender: &Appender, time: TimestampMs, newer: bool) -> Result<bool, RejectReason> {
        if time > self.limits.max_time {
            return Err(RejectReason::TooFarInFuture);
        }
        if newer && time >= appender.boundary {
            return Ok(true);
        }
        let window = self.limits.out_of_order_window_ms;
        if window <= 0 {
            return Err(RejectReason::OutOfOrder);
        }
        // A sample that is itself too far in the future does not raise the bar for others.
        let newest = self.head.max_time.load(Ordering::Relaxed).min(self.limits.max_time);
        if time < newest.saturating_sub(window) { Err(RejectReason::TooOld) } else { Ok(false) }
    }

    fn judge_float(&mut self, appender: &Appender, number: usize, at: usize, sample: FloatSample) {
        let FloatSample { timestamp: time, value } = sample;
        let slot = self.touched[at].slot;
        let newer = match &self.touched[at].newest {
            Newest::Nothing => true,
            Newest::Float(last, _) | Newest::Histogram(last, _) => time > *last,
        };
        // The common case, before anything else is built.
        if newer && time >= appender.boundary && time <= self.limits.max_time {
            self.touched[at].newest = Newest::Float(time, value.to_bits());
            self.outcome.samples += 1;
            self.note(slot, time, || SampleValue::Float(value));
            let order = self.next_order();
            self.floats.push(Accepted { slot, order, time, value, beside: false });
            return;
        }
        let value_of = SampleValue::Float(value);
        match self.judge(appender, at, time, &value_of, newer) {
            Verdict::Rejected(reason) => self.reject(RejectedKind::Sample, reason, 1, number, time),
            Verdict::Same => self.outcome.samples += 1,
            Verdict::InOrder | Verdict::Beside => {
                self.outcome.samples += 1;
                self.note(slot, time, || value_of);
                let order = self.next_order();
                self.floats.push(Accepted { slot, order, time, value, beside: true });
            }
        }
    }

    fn judge_histogram(&mut self, appender: &Appender, number: usize, at: usize, sample: &HistogramSample) {
        let time = sample.timestamp;
        let slot = self.touched[at].slot;
        let value = &sample.value;
        let fits = buckets(value) <= MAX_BUCKETS
            && OpenHistogram::start(time, value, OpenHistogram::first_header(value)).is_some();
        if !fits {
            self.reject(RejectedKind::Sample, RejectReason::InvalidHistogram, 1, number, time);
            return;
        }
        let newer = match &self.touched[at].newest {
            Newest::Nothing => true,
            Newest::Float(last, _) | Newest::Histogram(last, _) => time > *last,
        };
        let stored = SampleValue::Histogram(value.clone());
        let beside = match self.judge(appender, at, time, &stored, newer) {
            Verdict::Rejected(reason) => {
                self.reject(RejectedKind::Sample, reason, 1, number, time);
                return;
            }
            Verdict::Same => {
                self.outcome.histograms += 1;
                return;
            }
            Verdict::InOrder => false,
            Verdict::Beside => true,
        };
        if !beside {
            self.touched[at].newest = Newest::Histogram(time, Some(value.clone()));
        }
        self.outcome.histograms += 1;
        self.note(slot, time, || stored);
        let order = self.next_order();
        self.histograms.push(Accepted { slot, order, time, value: value.clone(), beside });
    }

    fn judge(
        &mut self,
        appender: &Appender,
        at: usize,
        time: TimestampMs,
        value: &SampleValue,
        newer: bool,
    ) -> Verdict {
        if newer && time >= appender.boundary {
            return match self.admit(appender, time, newer) {
                Ok(_) => Verdict::InOrder,
                Err(reason) => Verdict::Rejected(reason),
            };
        }
        if time <= self.limits.max_time {
            let same = self.is_stored(appender, at, time, value);
            match same {
                Some(true) => return Verdict::Same,
                Some(false) => return Verdict::Rejected(RejectReason::DuplicateTimestamp),
                None => {}
            }
        }
        match self.admit(appender, time, newer) {
            Ok(_) => Verdict::Beside,
            Err(reason) => Verdict::Rejected(reason),
        }
    }

    /// Whether the sample stored at `time`, or accepted earlier in this request, has this value; `None` without one.
    fn is_stored(&mut self, appender: &Appender, at: usize, time: TimestampMs, value: &SampleValue) -> Option<bool> {
        let slot = self.touched[at].slot;
        let (number, index) = locate(slot);
        // A request repeated as a whole meets the newest sample: no chunk needs to be decoded for it.
        match (&self.touched[at].newest, value) {
            (Newest::Float(last, bits), SampleValue::Float(value)) if *last == time => {
                return Some(*bits == value.to_bits());
            }
            (Newest::Histogram(last, Some(newest)), _) if *last == time => {
                return Some(SampleValue::Histogram(newest.clone()).is_same(value));
            }
            (Newest::Histogram(last, None), SampleValue::Histogram(value)) if *last == time => {
                let page = self.page(appender, number)?;
                return match page.last(index) {
                    Last::Histogram(_, open) => Some(open.last_is_same(value)),
                    Last::Nothing | Last::Float(..) => None,
                };
            }
            _ => {}
        }
        if let Some(found) = self.in_request(slot, time) {
            return Some(found.is_same(value));
        }
        let found = match self.page(appender, number)?.find(index, time) {
            Found::Nothing => None,
            Found::Value(found) => Some(found),
            Found::Stored(chunk) => self.find_in_file(&chunk, time),
        };
        found.map(|found| found.is_same(value))
    }

    /// The sample at `time` of a closed chunk. One that cannot be read holds nothing: its samples are taken again, beside it.
    fn find_in_file(&mut self, chunk: &StoredChunk, time: TimestampMs) -> Option<SampleValue> {
        if self.chunk_read.as_ref().is_none_or(|(address, _)| *address != chunk.address) {
            // Readers shall not wait for the disk.
            self.page = None;
            self.chunk_read = Some((chunk.address, self.head.shelf().read(chunk)));
        }
        let (_, data) = self.chunk_read.as_ref()?;
        find_in(chunk.encoding, data.as_ref()?, time)
    }

    /// Looks among the samples this request has brought so far.
    pub(super) fn in_request(&mut self, slot: SeriesRef, time: TimestampMs) -> Option<SampleValue> {
        let by_time = self.by_time.get_or_insert_with(|| {
            let floats = self.floats.iter().map(|s| ((s.slot, s.time), SampleValue::Float(s.value)));
            let histograms =
                self.histograms.iter().map(|s| ((s.slot, s.time), SampleValue::Histogram(s.value.clone())));
            floats.chain(histograms).collect()
        });
        by_time.get(&(slot, time)).cloned()
    }

    pub(super) fn next_order(&self) -> u32 {
        (self.floats.len() + self.histograms.len()) as u32
    }

    /// Remembers a start timestamp, if the sample of this order was accepted. One that is stored already keeps what it has.
    fn note_start_of(&mut self, order: u32, start: TimestampMs) {
        if self.next_order() > order {
            self.note_start(order, start);
        }
    }

    pub(super) fn note(&mut self, slot: SeriesRef, time: TimestampMs, value: impl FnOnce() -> SampleValue) {
        if let Some(by_time) = &mut self.by_time {
            by_time.insert((slot, time), value());
        }
    }

    fn reject(&mut self, kind: RejectedKind, reason: RejectReason, count: u64, series: usize, timestamp: TimestampMs) {
        let known = self.outcome.rejections.iter_mut().find(|known| known.kind == kind && known.reason == reason);
        match known {
            Some(known) => known.count += count,
            None => self.outcome.rejections.push(Rejection { kind, reason, count, series, timestamp }),
        }
    }
}
