//! What restored series lack: closed chunks that a snapshot refers to, and that cannot be read.
//!
//! The chunk's times and its number of samples are known. An older snapshot may have its samples in other chunks, and the
//! log may still have their records: either way they are stored beside the series' chunks, one by one, where they are not
//! there already. What is missing in the end is lost.

use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use skald_model::{Labels, TimestampMs};

use super::super::chunk_files::{ChunkReadError, StoredChunk};
use super::super::stored::LostChunks;
use super::super::{Appender, Head, locate};
use crate::postings::SeriesRef;
use crate::wal::Cut;

/// The holes of a head.
#[derive(Default)]
pub(super) struct Holes {
    by_slot: HashMap<SeriesRef, Vec<Hole>, foldhash::fast::FixedState>,
}

/// One chunk that is not there.
pub(super) struct Hole {
    pub(super) chunk: StoredChunk,
    /// Samples of its time that were found elsewhere.
    found: AtomicU64,
}

impl Holes {
    pub(super) fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    pub(super) fn add(&mut self, slot: SeriesRef, chunk: StoredChunk) {
        self.by_slot.entry(slot).or_default().push(Hole { chunk, found: AtomicU64::new(0) });
    }

    /// Forgets a slot, which is another series' now, or will be.
    pub(super) fn remove(&mut self, slot: SeriesRef) {
        if !self.is_empty() {
            self.by_slot.remove(&slot);
        }
    }

    pub(super) fn of(&self, slot: SeriesRef) -> &[Hole] {
        self.by_slot.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// The hole of a series at this time.
    pub(super) fn at(&self, slot: SeriesRef, time: TimestampMs) -> Option<&Hole> {
        if self.is_empty() {
            return None;
        }
        self.of(slot).iter().find(|hole| hole.chunk.min_time <= time && time <= hole.chunk.max_time)
    }

    /// What was found nowhere, and is not in blocks either.
    pub(super) fn lost(self, head: &Head, appender: &Appender, done: Cut) -> LostChunks {
        let mut lost = LostChunks::default();
        for (slot, holes) in self.by_slot {
            let unfilled = holes.into_iter().filter_map(|Hole { chunk, found }| {
                let StoredChunk { address, samples, max_time, .. } = chunk;
                let samples = u64::from(samples).saturating_sub(found.into_inner()) as u16;
                let error = ChunkReadError::Damaged { file: address.file, offset: address.offset };
                let is_lost = samples > 0 && max_time >= done.up_to;
                is_lost.then_some((StoredChunk { samples, ..chunk }, error))
            });
            lost.add(|| labels(head, appender, slot), unfilled.collect());
        }
        lost
    }
}

impl Hole {
    pub(super) fn found_one(&self) {
        self.found.fetch_add(1, Ordering::Relaxed);
    }
}

fn labels(head: &Head, appender: &Appender, slot: SeriesRef) -> Labels {
    let (number, at) = locate(slot);
    let mut pairs = Vec::new();
    let index = head.index.read();
    if let Some(page) = appender.pages.get(number) {
        page.read().labels(at, &mut pairs);
    }
    index.labels(&pairs)
}
