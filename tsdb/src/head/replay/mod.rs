//! Rebuilding heads from the log.
//!
//! A snapshot comes first, if there is one ([`restore`]). A stretch of the log goes through [`ReplayHeads`]: what its
//! series refs mean ([`ref_map`]), then its samples ([`samples`]), but for those that restored series have.
//!
//! A restored series may have [`holes`]: chunks that its snapshot refers to and nobody can read. An older snapshot and the
//! log fill them as far as they go back.

mod holes;
mod ref_map;
mod restore;
mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, MutexGuard};
use skald_model::{LabelBytes, TimestampMs};

use self::holes::Holes;
use self::ref_map::RefMap;
use self::restore::{Horizons, restore_series};
use self::samples::{Logged, LoggedSamples, store};
use super::append::AppendLimits;
use super::{Appender, ChunkFiles, Head, LostChunks, locate};
use crate::Workers;
use crate::postings::SeriesRef;
use crate::wal::{
    Cut, Generation, HeadId, HeadState, Keep, Missed, Position, Record, Replay, Replayed, Restored, SegmentId,
    SeriesDefinitions,
};

/// What a head needs to know while its log is read.
#[derive(Default)]
pub(super) struct ReplayState {
    segment: SegmentId,
    /// Slots by the refs of the segment being read.
    slots: RefMap,
    /// What blocks hold already.
    done: Option<Cut>,
    /// What restored series have.
    horizons: Horizons,
    /// What they lack.
    holes: Holes,
    /// Exemplars that the log has before are restored.
    exemplars_from: Position,
}

/// Feeds the log to heads, which `make` creates as they turn up.
pub struct ReplayHeads<M> {
    chunk_files: Arc<ChunkFiles>,
    heads: BTreeMap<HeadId, Arc<Head>>,
    segment: SegmentId,
    make: M,
}

impl<M: FnMut(HeadId, &HeadState) -> Arc<Head>> ReplayHeads<M> {
    /// No heads yet. Those that `make` makes have their closed chunks in `chunk_files`.
    pub fn new(chunk_files: Arc<ChunkFiles>, make: M) -> Self {
        Self { chunk_files, heads: BTreeMap::new(), segment: SegmentId(0), make }
    }

    /// The heads, ready for appends, and by head what of their snapshots' chunks is lost for good.
    pub fn finish(self, workers: &dyn Workers) -> (BTreeMap<HeadId, Arc<Head>>, BTreeMap<HeadId, LostChunks>) {
        let heads: Vec<&Arc<Head>> = self.heads.values().collect();
        let lost: Vec<Mutex<LostChunks>> = heads.iter().map(|_| Mutex::default()).collect();
        workers.for_each(heads.len(), &|number| *lost[number].lock() = heads[number].finish_replay());
        let lost = self.heads.keys().copied().zip(lost.into_iter().map(Mutex::into_inner));
        let lost = lost.filter(|(_, lost)| lost.chunks > 0).collect();
        (self.heads, lost)
    }
}

impl<M: FnMut(HeadId, &HeadState) -> Arc<Head>> Replay for ReplayHeads<M> {
    fn segment(&mut self, segment: SegmentId) {
        self.segment = segment;
    }

    /// Removes the files that no snapshot refers to, so that a disk they filled has space.
    fn keep_files(&mut self, of_snapshots: &[Option<Vec<u32>>]) -> Vec<Keep> {
        let all = self.chunk_files.numbers();
        let keep = |files: &Option<Vec<u32>>| {
            let mut pin = self.chunk_files.pin();
            for file in files.as_ref().unwrap_or(&all) {
                self.chunk_files.reserve(*file);
                // Of one that is not there, the chunks are found missing when they are looked for.
                let _ = pin.add(*file);
            }
            Box::new(pin) as Keep
        };
        let keeps = of_snapshots.iter().map(keep).collect();
        self.chunk_files.upkeep();
        keeps
    }

    fn series(&self) -> usize {
        self.heads.values().map(|head| head.series_count()).sum()
    }

    /// Series are looked up in parallel and created one after another; samples are decoded by frame and stored by page,
    /// both in parallel. A page takes its samples in the order of the log, so every series does.
    fn stretch(&mut self, replayed: Vec<Replayed<'_>>, workers: &dyn Workers) -> Missed {
        for one in &replayed {
            if let Replayed::Head { head, state, .. } = one {
                self.heads.entry(*head).or_insert_with(|| (self.make)(*head, state));
            }
        }
        // Heads that only come with a definition are in the map now; without one there is nothing to replay to.
        let ids: BTreeSet<HeadId> = replayed.iter().map(Replayed::head).collect();
        let heads: Vec<(HeadId, &Head)> = ids.iter().filter_map(|id| Some((*id, &**self.heads.get(id)?))).collect();
        let number_of = |id: HeadId| heads.binary_search_by_key(&id, |(id, _)| *id).ok();
        let mut appenders: Vec<_> = heads.iter().map(|(_, head)| head.appender.lock()).collect();
        for appender in &mut appenders {
            if appender.replay.segment != self.segment {
                appender.replay.segment = self.segment;
                appender.replay.slots.clear();
            }
        }
        let (mut definitions, mut samples, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        let (mut restored, mut dropped) = (Vec::new(), Vec::new());
        for one in replayed {
            let Some(number) = number_of(one.head()) else { continue };
            match one {
                Replayed::Record { record: Record::Series(of_record), .. } => definitions.push((number, of_record)),
                Replayed::Restored { position, part: Restored::Series(bytes), .. } => {
                    restored.push((number, position, bytes));
                }
                Replayed::Dropped { head } => dropped.push(head),
                other => rest.push((number, other)),
            }
        }
        let mut missed = restore_series(&heads, &mut appenders, &restored, workers);
        define(&heads, &mut appenders, definitions, workers);
        for (number, one) in rest {
            let (head, appender) = (heads[number].1, &mut *appenders[number]);
            match one {
                Replayed::Head { state, done, .. } => head.replay_state(appender, &state, done),
                Replayed::Record { record, position, .. } => {
                    samples.extend(head.replay_record(appender, position, record).map(|samples| (number, samples)));
                }
                Replayed::Restored { position, part: Restored::Exemplars(bytes), .. } => {
                    missed.malformed += u64::from(!head.restore_exemplars(appender, position, bytes));
                }
                Replayed::Restored { .. } | Replayed::Dropped { .. } => {}
            }
        }
        store(&heads, &appenders, samples, workers, &mut missed);
        drop((appenders, heads));
        for head in dropped.iter().filter_map(|head| self.heads.remove(head)) {
            head.release_chunks();
        }
        missed
    }
}

impl Replayed<'_> {
    fn head(&self) -> HeadId {
        match self {
            Self::Head { head, .. } | Self::Record { head, .. } => *head,
            Self::Restored { head, .. } | Self::Dropped { head } => *head,
        }
    }
}

/// A series of a definition record.
struct Defined<'a> {
    series_ref: u32,
    labels: LabelBytes<'a>,
    hash: u128,
    fingerprint: u64,
    slot: Option<SeriesRef>,
}

/// Enters what refs mean, and creates the series that are new.
fn define(
    heads: &[(HeadId, &Head)],
    appenders: &mut [MutexGuard<'_, Appender>],
    definitions: Vec<(usize, SeriesDefinitions<'_>)>,
    workers: &dyn Workers,
) {
    let found: Vec<Mutex<Vec<Defined<'_>>>> = definitions.iter().map(|_| Mutex::default()).collect();
    {
        let appenders: Vec<&Appender> = appenders.iter().map(|appender| &**appender).collect();
        let definitions: Vec<_> = definitions.iter().map(|(number, of_record)| (*number, of_record.clone())).collect();
        workers.for_each(definitions.len(), &|at| {
            let (number, of_record) = &definitions[at];
            let appender = appenders[*number];
            let mut found = found[at].lock();
            // Labels that make no sense, under a checksum that holds, define nothing: what refers to them is reported lost.
            for (series_ref, labels) in of_record.clone().filter(|(_, l)| LabelBytes::check(l.as_bytes()).is_some()) {
                let (hash, fingerprint) = (labels.hash(), appender.table.fingerprint(labels.as_bytes()));
                found.push(Defined { series_ref, labels, hash, fingerprint, slot: appender.find(hash, fingerprint) });
            }
        });
    }
    for ((number, _), found) in definitions.iter().zip(found) {
        let (head, appender) = (heads[*number].1, &mut *appenders[*number]);
        let segment = appender.replay.segment;
        for one in found.into_inner() {
            let Defined { series_ref, labels, hash, fingerprint, slot } = one;
            // A series may be defined twice in a stretch.
            let slot = slot.or_else(|| appender.find(hash, fingerprint));
            let slot = slot.or_else(|| {
                let slot = head.insert_series(appender, segment, labels, hash, fingerprint).ok()?;
                appender.replay.horizons.clear(slot);
                appender.replay.holes.remove(slot);
                Some(slot)
            });
            if let Some(slot) = slot {
                appender.replay.slots.insert(series_ref, slot);
            }
        }
    }
}

impl Appender {
    fn find(&self, hash: u128, fingerprint: u64) -> Option<SeriesRef> {
        self.find_all(hash, fingerprint).next()
    }

    /// All series of these labels: those that are to be removed are there as well.
    fn find_all(&self, hash: u128, fingerprint: u64) -> impl Iterator<Item = SeriesRef> {
        self.table.candidates(hash).filter(move |slot| {
            let (number, at) = locate(*slot);
            self.pages.get(number).is_some_and(|page| {
                let page = page.read();
                let series = page.series(at);
                series.is_some_and(|s| s.hash == (hash >> 64) as u64 && s.fingerprint == fingerprint)
            })
        })
    }
}

impl Head {
    /// Takes over what the log says about the head at this place. Blocks hold what `done` covers.
    fn replay_state(&self, appender: &mut Appender, state: &HeadState, done: Cut) {
        appender.generation = state.generation;
        self.set_boundary(appender, state.boundary);
        appender.replay.done = Some(done);
    }

    /// Repeats one record other than definitions; samples are only made ready to be stored.
    ///
    /// What was acknowledged is stored whatever the limits and the window are by now.
    fn replay_record<'a>(
        &'a self,
        appender: &mut Appender,
        position: Position,
        record: Record<'a>,
    ) -> Option<LoggedSamples<'a>> {
        match record {
            Record::Series(_) => {}
            Record::Exemplars(_) if position < appender.replay.exemplars_from => {}
            Record::Floats { generation, samples, .. } => {
                return Some(self.replay_samples(appender, position, generation, Logged::Floats(samples)));
            }
            Record::Histograms { generation, samples, .. } => {
                return Some(self.replay_samples(appender, position, generation, Logged::Histograms(samples)));
            }
            Record::Exemplars(exemplars) => {
                let mut store = self.exemplars.lock();
                for (series_ref, exemplar) in exemplars {
                    if let Some(slot) = appender.replay.slots.get(series_ref) {
                        store.insert(slot, exemplar, AppendLimits::default().max_exemplars);
                    }
                }
            }
            Record::Metadata(metadata) => {
                let mut store = self.metadata.lock();
                metadata.for_each(|one| store.insert(one));
            }
            Record::CutBegun(cut) => {
                appender.generation = cut.generation;
                self.set_boundary(appender, cut.up_to);
            }
            // The log's end said so from the start, or samples are dropped when the replay is finished.
            Record::CutDone(cut) => {
                if appender.replay.done.is_none_or(|done| done.generation < cut.generation) {
                    appender.replay.done = Some(cut);
                }
                self.hide(cut);
            }
        }
        None
    }

    fn replay_samples<'a>(
        &'a self,
        appender: &mut Appender,
        position: Position,
        generation: Generation,
        samples: Logged<'a>,
    ) -> LoggedSamples<'a> {
        if generation > appender.generation {
            // The record of a cut's begin is lost, and with it the boundary: whatever comes now may be late.
            appender.generation = generation;
            self.set_boundary(appender, TimestampMs::MAX);
        }
        let done = appender.replay.done.unwrap_or(Cut::NONE);
        LoggedSamples { samples, position, generation, rules: self.rules(appender.boundary), done }
    }

    /// Ends the replay: drops what turned out to be in blocks, and series of which nothing is left. Returns what of a
    /// snapshot's chunks is lost.
    pub fn finish_replay(&self) -> LostChunks {
        let (segment, lost) = {
            let mut appender = self.appender.lock();
            let state = std::mem::take(&mut appender.replay);
            if appender.boundary == TimestampMs::MAX {
                // Unknown still: above all there is, so that nothing old gets in order.
                let above = self.max_time().map_or(TimestampMs::MIN, |newest| newest.saturating_add(1));
                self.set_boundary(&mut appender, above);
            }
            let done = state.done.unwrap_or(Cut::NONE);
            self.hide(done);
            // Slots freed now are free at once: the log goes on with another segment.
            (state.segment, state.holes.lost(self, &appender, done))
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
        self.count_late_bytes(&appender);
        lost
    }

    /// Gives its chunks in files up: nobody will ask for them.
    fn release_chunks(&self) {
        for page in self.pages.read().iter() {
            let mut page = page.write();
            let alive: Vec<usize> = page.alive().collect();
            alive.into_iter().for_each(|at| page.remove(at, self.shelf()));
        }
    }

    fn set_boundary(&self, appender: &mut Appender, boundary: TimestampMs) {
        appender.boundary = boundary;
        self.boundary.store(boundary, Ordering::Relaxed);
    }
}
