//! Rebuilding heads from the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLockWriteGuard;
use skald_model::{LabelBytes, TimestampMs};

use super::append::AppendLimits;
use super::page::{Found, Last, Page, Rules};
use super::sample::{SampleValue, TimedSample};
use super::side::find_in;
use super::{Appender, Head, locate};
use crate::postings::SeriesRef;
use crate::wal::{Cut, Generation, HeadId, HeadState, Record, Replay, SegmentId};

/// What a head needs to know while its log is read.
#[derive(Default)]
pub(super) struct ReplayState {
    segment: SegmentId,
    /// Slots by the refs of the segment being read.
    slots: RefMap,
    /// What blocks hold already.
    done: Option<Cut>,
}

/// Refs per page of a [`RefMap`].
const REF_PAGE: usize = 4096;
/// No slot.
const NO_SLOT: SeriesRef = SeriesRef::MAX;

/// Slots by ref, in pages: refs are dense, but a damaged log must not make them large.
#[derive(Default)]
struct RefMap {
    pages: Vec<Option<Box<[SeriesRef; REF_PAGE]>>>,
}

impl RefMap {
    fn insert(&mut self, series_ref: u32, slot: SeriesRef) {
        let number = series_ref as usize / REF_PAGE;
        if number >= self.pages.len() {
            self.pages.resize_with(number + 1, || None);
        }
        let page = self.pages[number].get_or_insert_with(|| Box::new([NO_SLOT; REF_PAGE]));
        page[series_ref as usize % REF_PAGE] = slot;
    }

    #[inline]
    fn get(&self, series_ref: u32) -> Option<SeriesRef> {
        let page = self.pages.get(series_ref as usize / REF_PAGE)?.as_ref()?;
        Some(page[series_ref as usize % REF_PAGE]).filter(|slot| *slot != NO_SLOT)
    }

    fn clear(&mut self) {
        self.pages.iter_mut().flatten().for_each(|page| page.fill(NO_SLOT));
    }
}

/// Feeds the log to heads, which `make` creates as they turn up.
pub struct ReplayHeads<M> {
    heads: BTreeMap<HeadId, Arc<Head>>,
    segment: SegmentId,
    make: M,
}

impl<M: FnMut(HeadId, &HeadState) -> Arc<Head>> ReplayHeads<M> {
    /// No heads yet.
    pub fn new(make: M) -> Self {
        Self { heads: BTreeMap::new(), segment: SegmentId(0), make }
    }

    /// The heads, ready for appends.
    pub fn finish(self) -> BTreeMap<HeadId, Arc<Head>> {
        self.heads.values().for_each(|head| head.finish_replay());
        self.heads
    }
}

impl<M: FnMut(HeadId, &HeadState) -> Arc<Head>> Replay for ReplayHeads<M> {
    fn segment(&mut self, segment: SegmentId) {
        self.segment = segment;
    }

    fn head(&mut self, id: HeadId, state: &HeadState, done: Cut) {
        let head = self.heads.entry(id).or_insert_with(|| (self.make)(id, state));
        head.replay_state(state, done);
    }

    fn record(&mut self, id: HeadId, record: Record<'_>) -> u64 {
        self.heads.get(&id).map_or(0, |head| {
            let undefined = head.replay(self.segment, record);
            head.chunk_files.write_batches();
            undefined
        })
    }
}

impl Head {
    /// Takes over what the log says about the head at this place. Blocks hold what `done` covers.
    pub fn replay_state(&self, state: &HeadState, done: Cut) {
        let mut appender = self.appender.lock();
        appender.generation = state.generation;
        self.set_boundary(&mut appender, state.boundary);
        appender.replay.done = Some(done);
    }

    /// Repeats one record; returns how many of its samples had no series definition.
    ///
    /// What was acknowledged is stored whatever the limits and the window are by now.
    pub fn replay(&self, segment: SegmentId, record: Record<'_>) -> u64 {
        let mut appender = self.appender.lock();
        let appender = &mut *appender;
        if appender.replay.segment != segment {
            appender.replay.segment = segment;
            appender.replay.slots.clear();
        }
        match record {
            Record::Series(definitions) => {
                for (series_ref, labels) in definitions {
                    if let Some(slot) = self.replay_series(appender, labels) {
                        appender.replay.slots.insert(series_ref, slot);
                    }
                }
                0
            }
            Record::Floats { generation, samples, .. } => {
                let samples = samples
                    .map(|s| (s.series_ref, TimedSample { time: s.timestamp, value: SampleValue::Float(s.value) }));
                self.replay_samples(appender, generation, samples)
            }
            Record::Histograms { generation, samples, .. } => {
                let samples = samples
                    .map(|(r, s)| (r, TimedSample { time: s.timestamp, value: SampleValue::Histogram(s.value) }));
                self.replay_samples(appender, generation, samples)
            }
            Record::Exemplars(exemplars) => {
                let mut store = self.exemplars.lock();
                for (series_ref, exemplar) in exemplars {
                    if let Some(slot) = appender.replay.slots.get(series_ref) {
                        store.insert(slot, exemplar, AppendLimits::default().max_exemplars);
                    }
                }
                0
            }
            Record::Metadata(metadata) => {
                let mut store = self.metadata.lock();
                metadata.for_each(|one| store.insert(one));
                0
            }
            Record::CutBegun(cut) => {
                appender.generation = cut.generation;
                self.set_boundary(appender, cut.up_to);
                0
            }
            // The log's end said so from the start, or samples are dropped when the replay is finished.
            Record::CutDone(cut) => {
                if appender.replay.done.is_none_or(|done| done.generation < cut.generation) {
                    appender.replay.done = Some(cut);
                }
                self.hide(cut);
                0
            }
        }
    }

    /// Ends the replay: drops what turned out to be in blocks, and series of which nothing is left.
    pub fn finish_replay(&self) {
        let segment = {
            let mut appender = self.appender.lock();
            let state = std::mem::take(&mut appender.replay);
            if appender.boundary == TimestampMs::MAX {
                // Unknown still: above all there is, so that nothing old gets in order.
                let above = self.max_time().map_or(TimestampMs::MIN, |newest| newest.saturating_add(1));
                self.set_boundary(&mut appender, above);
            }
            self.hide(state.done.unwrap_or(Cut::NONE));
            // Slots freed now are free at once: the log goes on with another segment.
            state.segment
        };
        // Nobody reads yet.
        let _ = self.drop_hidden(|| segment);
        let mut appender = self.appender.lock();
        let pages = appender.pages.clone();
        for (number, page) in pages.iter().enumerate() {
            let empty: Vec<SeriesRef> = {
                let page = page.read();
                let empty = page.alive().filter(|at| page.is_empty(*at));
                empty.map(|at| (number * super::PAGE_SERIES + at) as u32).collect()
            };
            self.remove_series(&mut appender, segment, &empty);
        }
    }

    fn set_boundary(&self, appender: &mut Appender, boundary: TimestampMs) {
        appender.boundary = boundary;
        self.boundary.store(boundary, Ordering::Relaxed);
    }

    fn replay_series(&self, appender: &mut Appender, labels: LabelBytes<'_>) -> Option<SeriesRef> {
        let (hash, fingerprint) = (labels.hash(), appender.table.fingerprint(labels.as_bytes()));
        let known = appender.table.candidates(hash).find(|slot| {
            let (number, at) = locate(*slot);
            appender.pages.get(number).is_some_and(|page| {
                let page = page.read();
                let series = page.series(at);
                series.is_some_and(|s| s.hash == (hash >> 64) as u64 && s.fingerprint == fingerprint)
            })
        });
        let segment = appender.replay.segment;
        known.or_else(|| self.insert_series(appender, segment, labels, hash, fingerprint).ok())
    }

    fn replay_samples(
        &self,
        appender: &mut Appender,
        generation: Generation,
        samples: impl Iterator<Item = (u32, TimedSample)>,
    ) -> u64 {
        if generation > appender.generation {
            // The record of a cut's begin is lost, and with it the boundary: whatever comes now may be late.
            appender.generation = generation;
            self.set_boundary(appender, TimestampMs::MAX);
        }
        let rules = self.rules(appender.boundary);
        let done = appender.replay.done.unwrap_or(Cut::NONE);
        let (mut min, mut max, mut undefined) = (TimestampMs::MAX, TimestampMs::MIN, 0);
        // Samples come as requests brought them, by and large page by page.
        let mut locked: Option<(usize, RwLockWriteGuard<'_, Page>)> = None;
        for (series_ref, sample) in samples {
            if done.covers(generation, sample.time) {
                continue;
            }
            let Some(slot) = appender.replay.slots.get(series_ref) else {
                undefined += 1;
                continue;
            };
            let (number, at) = locate(slot);
            if locked.as_ref().is_none_or(|(page, _)| *page != number) {
                drop(locked.take());
                locked = appender.pages.get(number).map(|page| (number, page.write()));
            }
            let Some((_, page)) = &mut locked else { continue };
            (min, max) = (min.min(sample.time), max.max(sample.time));
            replay_sample(page, at, generation, sample, rules);
        }
        drop(locked);
        self.note_times(min, max);
        undefined
    }
}

/// Stores a sample as the append did that logged it.
fn replay_sample(page: &mut Page, at: usize, generation: Generation, sample: TimedSample, rules: Rules<'_>) {
    let newer = match page.last(at) {
        Last::Nothing => true,
        Last::Float(last, _) | Last::Histogram(last, _) => sample.time > last,
    };
    if newer && sample.time >= rules.boundary {
        match &sample.value {
            SampleValue::Float(value) => page.append_float(at, sample.time, *value, rules),
            SampleValue::Histogram(value) => page.append_histogram(at, sample.time, value, rules),
        }
        return;
    }
    let is_known = match page.find(at, sample.time) {
        Found::Nothing => false,
        Found::Value(_) => true,
        Found::Stored(chunk) => {
            let data = rules.shelf.read(&chunk);
            data.is_some_and(|data| find_in(chunk.encoding, &data, sample.time).is_some())
        }
    };
    if !is_known {
        page.insert_beside(at, generation, sample, rules);
    }
}
