//! Series of snapshots: read in parallel, created one after another, filled in parallel.
//!
//! The chunks they refer to are read and verified now, while there may still be an older snapshot and a log to go back to.

use std::ops::Range;

use parking_lot::{Mutex, MutexGuard, RwLockWriteGuard};
use skald_model::varint::{get_slice, get_uvarint, get_varint};
use skald_model::{Exemplar, LabelBytes, Labels, QueryRange};

use super::super::append::AppendLimits;
use super::super::chunk_files::StoredChunk;
use super::super::page::{Page, samples_of, skip_series};
use super::super::sample::TimedSample;
use super::super::{Appender, Head, locate};
use super::samples::store_beside;
use crate::Workers;
use crate::postings::SeriesRef;
use crate::wal::{Cut, Generation, HeadId, Missed, Position};

/// Up to which position of the log restored series have everything.
#[derive(Default)]
pub(super) struct Horizons {
    positions: Vec<Position>,
    /// By slot: number of the position plus one; 0 for a series that was not restored.
    by_slot: Vec<u32>,
}

impl Horizons {
    #[inline]
    pub(super) fn get(&self, slot: SeriesRef) -> Option<Position> {
        let number = self.by_slot.get(slot as usize)?.checked_sub(1)?;
        self.positions.get(number as usize).copied()
    }

    fn set(&mut self, slot: SeriesRef, position: Position) {
        if self.positions.last() != Some(&position) {
            self.positions.push(position);
        }
        let at = slot as usize;
        if at >= self.by_slot.len() {
            self.by_slot.resize(at + 1, 0);
        }
        self.by_slot[at] = self.positions.len() as u32;
    }

    /// Forgets a slot, which is another series' now.
    pub(super) fn clear(&mut self, slot: SeriesRef) {
        if let Some(number) = self.by_slot.get_mut(slot as usize) {
            *number = 0;
        }
    }
}

/// A record of series: of which head, complete up to where, and its bytes.
pub(super) type SeriesRecord<'a> = (usize, Position, &'a [u8]);

/// A record of series, read.
#[derive(Default)]
struct Parsed {
    /// The label bytes of all its series.
    labels: Vec<u8>,
    series: Vec<ParsedSeries>,
    in_files: Vec<StoredChunk>,
    /// The bytes are not what they should be.
    is_malformed: bool,
}

struct ParsedSeries {
    labels: Range<usize>,
    hash: u128,
    fingerprint: u64,
    /// What it holds, among the record's bytes.
    body: Range<usize>,
    /// Those of its chunks that lie in files, among the record's.
    in_files: Range<usize>,
    target: Target,
}

/// What becomes of a record's series.
#[derive(Clone, Copy)]
enum Target {
    /// Another record's is newer.
    Nothing,
    /// It has been created, and is filled.
    Series(SeriesRef),
    /// It is there, and lacks what this record may have.
    Holes(SeriesRef),
}

/// What the filling of a record's series gave.
#[derive(Default)]
struct Filled {
    /// Chunks that cannot be read, and their series.
    unreadable: Vec<(SeriesRef, StoredChunk)>,
    /// Others that would have filled holes.
    unreadable_elsewhere: u64,
    /// Some bytes were not what they should be.
    is_malformed: bool,
}

/// Restores series.
pub(super) fn restore_series(
    heads: &[(HeadId, &Head)],
    appenders: &mut [MutexGuard<'_, Appender>],
    records: &[SeriesRecord<'_>],
    workers: &dyn Workers,
) -> Missed {
    let parsed: Vec<Mutex<Parsed>> = records.iter().map(|_| Mutex::default()).collect();
    {
        let appenders: Vec<&Appender> = appenders.iter().map(|appender| &**appender).collect();
        workers.for_each(records.len(), &|at| {
            let (number, _, bytes) = records[at];
            let mut parsed = parsed[at].lock();
            parsed.is_malformed = parse(bytes, appenders[number], &mut parsed).is_none();
        });
    }
    let mut parsed: Vec<Parsed> = parsed.into_iter().map(Mutex::into_inner).collect();
    let mut obsolete = Vec::new();
    for ((number, position, _), parsed) in records.iter().zip(&mut parsed) {
        let (head, appender) = (heads[*number].1, &mut *appenders[*number]);
        for series in &mut parsed.series {
            let horizons = &appender.replay.horizons;
            // Of several the others are obsolete; one without a horizon is as new as can be.
            let known = appender
                .find_all(series.hash, series.fingerprint)
                .max_by_key(|slot| horizons.get(*slot).map_or((true, None), |horizon| (false, Some(horizon))));
            if let Some(known) = known {
                // A series that went and came back while the snapshot was written is in it twice; one of an older
                // snapshot may be in the newer one.
                if appender.replay.horizons.get(known).is_none_or(|horizon| horizon >= *position) {
                    if !appender.replay.holes.of(known).is_empty() {
                        series.target = Target::Holes(known);
                    }
                    continue;
                }
                obsolete.push((*number, known));
            }
            let labels = LabelBytes::new_unchecked(&parsed.labels[series.labels.clone()]);
            let segment = appender.replay.segment;
            let Ok(slot) = head.insert_series(appender, segment, labels, series.hash, series.fingerprint) else {
                parsed.is_malformed = true;
                continue;
            };
            appender.replay.horizons.set(slot, *position);
            appender.replay.holes.remove(slot);
            series.target = Target::Series(slot);
        }
    }
    let filled: Vec<Mutex<Filled>> = parsed.iter().map(|_| Mutex::default()).collect();
    {
        let appenders: Vec<&Appender> = appenders.iter().map(|appender| &**appender).collect();
        workers.for_each(records.len(), &|at| {
            let (number, _, bytes) = records[at];
            heads[number].1.chunk_files.write_batches();
            *filled[at].lock() = fill(heads[number].1, appenders[number], bytes, &parsed[at]);
        });
    }
    let mut missed = Missed::default();
    for ((filled, parsed), (number, ..)) in filled.into_iter().zip(&parsed).zip(records) {
        let Filled { unreadable, unreadable_elsewhere, is_malformed } = filled.into_inner();
        missed.malformed += u64::from(is_malformed || parsed.is_malformed);
        missed.unreadable_chunks += unreadable.len() as u64 + unreadable_elsewhere;
        let holes = &mut appenders[*number].replay.holes;
        unreadable.into_iter().for_each(|(slot, chunk)| holes.add(slot, chunk));
    }
    for (number, slot) in obsolete {
        let (head, appender) = (heads[number].1, &mut *appenders[number]);
        let segment = appender.replay.segment;
        appender.replay.horizons.clear(slot);
        appender.replay.holes.remove(slot);
        head.remove_series(appender, segment, &[slot]);
    }
    missed
}

fn parse(bytes: &[u8], appender: &Appender, parsed: &mut Parsed) -> Option<()> {
    let mut at = 0;
    let dictionary = get_slice(bytes, &mut at)?;
    let mut names = Vec::new();
    let mut from = 0;
    while from < dictionary.len() {
        names.push(std::str::from_utf8(get_slice(dictionary, &mut from)?).ok()?);
    }
    while at < bytes.len() {
        let (start, mut previous) = (parsed.labels.len(), "");
        for _ in 0..get_uvarint(bytes, &mut at)? {
            let mut text = || names.get(usize::try_from(get_uvarint(bytes, &mut at)?).ok()?).copied();
            let (name, value) = (text()?, text()?);
            if name <= previous || value.is_empty() {
                return None;
            }
            LabelBytes::encode(&mut parsed.labels, name, value);
            previous = name;
        }
        let (body, first) = (at, parsed.in_files.len());
        skip_series(bytes, &mut at, &mut parsed.in_files)?;
        let in_files = first..parsed.in_files.len();
        let labels = start..parsed.labels.len();
        let label_bytes = LabelBytes::new_unchecked(&parsed.labels[labels.clone()]);
        let (hash, fingerprint) = (label_bytes.hash(), appender.table.fingerprint(label_bytes.as_bytes()));
        let (body, target) = (body..at, Target::Nothing);
        parsed.series.push(ParsedSeries { labels, hash, fingerprint, body, in_files, target });
    }
    Some(())
}

/// Fills the series that were created, and the holes of others.
fn fill(head: &Head, appender: &Appender, bytes: &[u8], record: &Parsed) -> Filled {
    let mut filled = Filled::default();
    let created = |series: &&ParsedSeries| matches!(series.target, Target::Series(_));
    let wanted: Vec<StoredChunk> = record
        .series
        .iter()
        .filter(created)
        .flat_map(|series| &record.in_files[series.in_files.clone()])
        .copied()
        .collect();
    let sound = head.chunk_files.retain_sound(head.id, &wanted);
    let mut chunks = wanted.iter().zip(sound);
    let done = appender.replay.done.unwrap_or(Cut::NONE);
    let mut locked: Option<(usize, RwLockWriteGuard<'_, Page>)> = None;
    for series in &record.series {
        let body = &bytes[series.body.clone()];
        let (Target::Series(slot) | Target::Holes(slot)) = series.target else { continue };
        let (number, at) = locate(slot);
        if locked.as_ref().is_none_or(|(page, _)| *page != number) {
            drop(locked.take());
            locked = appender.pages.get(number).map(|page| (number, page.write()));
        }
        let Some((_, page)) = &mut locked else { continue };
        if let Target::Holes(_) = series.target {
            let is_well_formed = fill_holes(head, appender, page, slot, body, &mut filled.unreadable_elsewhere);
            filled.is_malformed |= !is_well_formed;
            continue;
        }
        let mut own = chunks.by_ref().take(series.in_files.len());
        let is_sound = |chunk: &StoredChunk| {
            let is_sound = own.next().is_some_and(|(known, is_sound)| known == chunk && is_sound);
            if !is_sound && chunk.max_time >= done.up_to {
                filled.unreadable.push((slot, *chunk));
            }
            is_sound
        };
        match page.restore_series(at, body, head.shelf(), is_sound) {
            Some((min, max)) => head.note_times(min, max),
            None => filled.is_malformed = true,
        }
        // Malformed bytes were not read to their end.
        own.for_each(drop);
    }
    filled
}

/// Stores what a record has of the holes of a series, whose page is locked; whether the bytes are what they should be.
fn fill_holes(
    head: &Head,
    appender: &Appender,
    page: &mut Page,
    slot: SeriesRef,
    body: &[u8],
    unreadable: &mut u64,
) -> bool {
    let (_, at) = locate(slot);
    let rules = head.rules(appender.boundary);
    let mut is_well_formed = true;
    for hole in appender.replay.holes.of(slot) {
        let wanted = QueryRange { min: hole.chunk.min_time, max: hole.chunk.max_time };
        let mut samples: Vec<TimedSample> = Vec::new();
        let read = |chunk: &StoredChunk| {
            let data = rules.shelf.read(chunk);
            *unreadable += u64::from(data.is_none());
            data
        };
        is_well_formed &= samples_of(body, wanted, read, &mut samples).is_some();
        for sample in samples {
            // As the chunk's own: every cut covers them that reaches beyond their time.
            if store_beside(page, at, Generation(0), sample, rules) {
                hole.found_one();
            }
        }
    }
    is_well_formed
}

impl Head {
    /// Takes the exemplars of a record; whether the bytes are what they should be.
    pub(super) fn restore_exemplars(&self, appender: &mut Appender, position: Position, bytes: &[u8]) -> bool {
        let mut store = self.exemplars.lock();
        let mut at = 0;
        let mut next = || {
            let labels = LabelBytes::check(get_slice(bytes, &mut at)?)?;
            let timestamp = get_varint(bytes, &mut at)?;
            let end = at.checked_add(8)?;
            let value = f64::from_bits(u64::from_le_bytes(bytes.get(at..end)?.try_into().ok()?));
            at = end;
            let exemplar = Exemplar { labels: Labels::from_bytes(get_slice(bytes, &mut at)?).ok()?, value, timestamp };
            Some((labels, exemplar, at))
        };
        let mut read = 0;
        while let Some((labels, exemplar, end)) = next() {
            read = end;
            let (hash, fingerprint) = (labels.hash(), appender.table.fingerprint(labels.as_bytes()));
            if let Some(slot) = appender.find(hash, fingerprint) {
                store.insert(slot, exemplar, AppendLimits::default().max_exemplars);
            }
        }
        appender.replay.exemplars_from = appender.replay.exemplars_from.max(position);
        read == bytes.len()
    }
}
