//! Slots: where series get their place, and what happens to it when they are gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skald_model::LabelBytes;

use super::append::AppendError;
use super::page::PAGE_SERIES;
use super::{Appender, Head, Retired, locate};
use crate::postings::SeriesRef;
use crate::wal::SegmentId;

/// A segment's number as series keep it.
pub(super) fn short(segment: SegmentId) -> u32 {
    segment.0 as u32
}

impl Head {
    /// Gives a series a slot and enters it everywhere.
    pub(super) fn insert_series(
        &self,
        appender: &mut Appender,
        segment: SegmentId,
        labels: LabelBytes<'_>,
        hash: u128,
        fingerprint: u64,
    ) -> Result<SeriesRef, AppendError> {
        let slot = self.free_slot(appender, segment).ok_or(AppendError::Full)?;
        let (number, index) = locate(slot);
        let mut head_index = self.index.write();
        let inserted = head_index.insert(slot, labels);
        let created = inserted
            .as_deref()
            .is_some_and(|pairs| appender.pages[number].write().create(index, hash, fingerprint, pairs));
        if !created {
            if let Some(pairs) = inserted {
                head_index.remove(slot, &pairs);
            }
            drop(head_index);
            self.retire(appender, segment, slot);
            return Err(AppendError::Full);
        }
        drop(head_index);
        appender.table.insert(hash, slot);
        self.series.fetch_add(1, Ordering::Relaxed);
        Ok(slot)
    }

    fn free_slot(&self, appender: &mut Appender, segment: SegmentId) -> Option<SeriesRef> {
        if let Some(oldest) = appender.retired.front_mut()
            && oldest.segment < segment
            && !self.view.lock().is_pinned_before(oldest.epoch)
        {
            let slot = oldest.first;
            (oldest.first, oldest.count) = (slot + 1, oldest.count - 1);
            if oldest.count == 0 {
                appender.retired.pop_front();
            }
            return Some(slot);
        }
        let slot = appender.next_slot;
        appender.next_slot = slot.checked_add(1)?;
        if slot as usize / PAGE_SERIES == appender.pages.len() {
            let page = Arc::default();
            appender.pages.push(Arc::clone(&page));
            self.pages.write().push(page);
        }
        Some(slot)
    }

    fn retire(&self, appender: &mut Appender, segment: SegmentId, slot: SeriesRef) {
        let mut view = self.view.lock();
        view.epoch += 1;
        match appender.retired.back_mut() {
            Some(last) if last.segment == segment && last.first + last.count == slot => {
                (last.count, last.epoch) = (last.count + 1, view.epoch);
            }
            _ => appender.retired.push_back(Retired { first: slot, count: 1, segment, epoch: view.epoch }),
        }
    }

    /// Takes series out of everything.
    pub(super) fn remove_series(&self, appender: &mut Appender, segment: SegmentId, slots: &[SeriesRef]) {
        /// Series removed under one hold of the index' lock.
        const AT_ONCE: usize = 64;
        let (mut pairs, mut bytes) = (Vec::new(), Vec::new());
        for slots in slots.chunks(AT_ONCE) {
            let mut index = self.index.write();
            for slot in slots {
                let (number, at) = locate(*slot);
                let Some(page) = appender.pages.get(number) else { continue };
                let mut page = page.write();
                pairs.clear();
                bytes.clear();
                page.labels(at, &mut pairs);
                index.label_bytes(&pairs, &mut bytes);
                index.remove(*slot, &pairs);
                page.remove(at, self.shelf());
                drop(page);
                appender.table.remove(LabelBytes::new_unchecked(&bytes).hash(), *slot);
                self.series.fetch_sub(1, Ordering::Relaxed);
            }
            drop(index);
            self.exemplars.lock().remove_series(slots);
            for slot in slots {
                self.retire(appender, segment, *slot);
            }
        }
    }
}
