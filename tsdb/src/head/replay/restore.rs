//! Series of snapshots: read in parallel, created one after another, filled in parallel.

use std::ops::Range;

use parking_lot::{Mutex, MutexGuard, RwLockWriteGuard};
use skald_model::varint::{get_slice, get_uvarint, get_varint};
use skald_model::{Exemplar, LabelBytes, Labels};

use super::super::append::AppendLimits;
use super::super::page::{Page, skip_series};
use super::super::{Appender, Head, locate};
use crate::Workers;
use crate::postings::SeriesRef;
use crate::wal::{HeadId, Position};

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
    /// The bytes are not what they should be.
    is_malformed: bool,
}

struct ParsedSeries {
    labels: Range<usize>,
    hash: u128,
    fingerprint: u64,
    /// What it holds, among the record's bytes.
    body: Range<usize>,
    slot: Option<SeriesRef>,
}

/// Restores series; returns how many records could not be made sense of.
pub(super) fn restore_series(
    heads: &[(HeadId, &Head)],
    appenders: &mut [MutexGuard<'_, Appender>],
    records: &[SeriesRecord<'_>],
    workers: &dyn Workers,
) -> u64 {
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
            let known = appender.find(series.hash, series.fingerprint);
            if let Some(known) = known {
                // A series that went and came back while the snapshot was written is in it twice; one of an older
                // snapshot may be in the newer one.
                if appender.replay.horizons.get(known).is_none_or(|horizon| horizon >= *position) {
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
            series.slot = Some(slot);
        }
    }
    let malformed: Vec<Mutex<bool>> = parsed.iter().map(|parsed| Mutex::new(parsed.is_malformed)).collect();
    {
        let appenders: Vec<&Appender> = appenders.iter().map(|appender| &**appender).collect();
        workers.for_each(records.len(), &|at| {
            let (number, _, bytes) = records[at];
            heads[number].1.chunk_files.write_batches();
            if !fill(heads[number].1, appenders[number], bytes, &parsed[at].series) {
                *malformed[at].lock() = true;
            }
        });
    }
    for (number, slot) in obsolete {
        let (head, appender) = (heads[number].1, &mut *appenders[number]);
        let segment = appender.replay.segment;
        appender.replay.horizons.clear(slot);
        head.remove_series(appender, segment, &[slot]);
    }
    malformed.into_iter().filter(|is_malformed| *is_malformed.lock()).count() as u64
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
        let start = parsed.labels.len();
        for _ in 0..get_uvarint(bytes, &mut at)? {
            let mut text = || names.get(usize::try_from(get_uvarint(bytes, &mut at)?).ok()?).copied();
            LabelBytes::encode(&mut parsed.labels, text()?, text()?);
        }
        let body = at;
        skip_series(bytes, &mut at)?;
        let labels = start..parsed.labels.len();
        let label_bytes = LabelBytes::new_unchecked(&parsed.labels[labels.clone()]);
        let (hash, fingerprint) = (label_bytes.hash(), appender.table.fingerprint(label_bytes.as_bytes()));
        parsed.series.push(ParsedSeries { labels, hash, fingerprint, body: body..at, slot: None });
    }
    Some(())
}

/// Fills the series that were created; whether all of them could be.
fn fill(head: &Head, appender: &Appender, bytes: &[u8], series: &[ParsedSeries]) -> bool {
    let mut locked: Option<(usize, RwLockWriteGuard<'_, Page>)> = None;
    let mut all = true;
    for series in series {
        let Some(slot) = series.slot else { continue };
        let (number, at) = locate(slot);
        if locked.as_ref().is_none_or(|(page, _)| *page != number) {
            drop(locked.take());
            locked = appender.pages.get(number).map(|page| (number, page.write()));
        }
        let restored =
            locked.as_mut().and_then(|(_, page)| page.restore_series(at, &bytes[series.body.clone()], head.shelf()));
        match restored {
            Some((min, max)) => head.note_times(min, max),
            None => all = false,
        }
    }
    all
}

impl Head {
    /// Takes the exemplars of a record; whether the bytes are what they should be.
    pub(super) fn restore_exemplars(&self, appender: &mut Appender, position: Position, bytes: &[u8]) -> bool {
        let mut store = self.exemplars.lock();
        let mut at = 0;
        let mut next = || {
            let labels = LabelBytes::new_unchecked(get_slice(bytes, &mut at)?);
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
