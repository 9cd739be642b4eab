//! What the refs of the segment being replayed mean.

use crate::postings::SeriesRef;

/// Refs per page of a [`RefMap`].
const REF_PAGE: usize = 4096;
/// No slot.
const NO_SLOT: SeriesRef = SeriesRef::MAX;

/// Slots by ref, in pages: refs are dense, but a damaged log must not make them large.
#[derive(Default)]
pub(super) struct RefMap {
    pages: Vec<Option<Box<[SeriesRef; REF_PAGE]>>>,
}

impl RefMap {
    pub(super) fn insert(&mut self, series_ref: u32, slot: SeriesRef) {
        let number = series_ref as usize / REF_PAGE;
        if number >= self.pages.len() {
            self.pages.resize_with(number + 1, || None);
        }
        let page = self.pages[number].get_or_insert_with(|| Box::new([NO_SLOT; REF_PAGE]));
        page[series_ref as usize % REF_PAGE] = slot;
    }

    #[inline]
    pub(super) fn get(&self, series_ref: u32) -> Option<SeriesRef> {
        let page = self.pages.get(series_ref as usize / REF_PAGE)?.as_ref()?;
        Some(page[series_ref as usize % REF_PAGE]).filter(|slot| *slot != NO_SLOT)
    }

    pub(super) fn clear(&mut self) {
        self.pages.iter_mut().flatten().for_each(|page| page.fill(NO_SLOT));
    }
}
