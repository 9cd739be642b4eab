//! Taking chunks out of files that hold few: so that heads which keep old chunks for long do not keep whole files.

use std::collections::{BTreeSet, HashMap};

use parking_lot::RwLock;

use super::Head;
use super::chunk_files::{ChunkAddress, StoredChunk};
use super::page::Page;

/// Chunks that have been copied elsewhere, while a reader may still look for them in the old place.
pub(super) struct Moved {
    /// Readers that began in this epoch or later know the new place.
    epoch: u64,
    old: Vec<StoredChunk>,
}

impl Head {
    /// Copies the chunks that lie in `files` to the file being written; returns how many. The old ones are given up when no
    /// reader is left who may want them, by a later call or flush.
    ///
    /// A chunk that cannot be read stays where it is.
    pub fn move_chunks(&self, files: &BTreeSet<u32>) -> usize {
        self.release_moved();
        let pages = self.pages.read().clone();
        let mut count = 0;
        for page in pages {
            let wanted = page.read().chunks_in(files);
            if wanted.is_empty() {
                continue;
            }
            let read = self.chunk_files.read_all(self.id, &wanted);
            let (mut copied, mut copies) = (Vec::new(), HashMap::new());
            for (chunk, data) in wanted.into_iter().zip(read) {
                let StoredChunk { min_time, max_time, encoding, address, .. } = chunk;
                if let Ok(data) = data {
                    copies.insert(address, self.shelf().put(min_time, max_time, encoding, &data));
                    copied.push(chunk);
                }
            }
            count += copies.len();
            self.replace(&page, copied, &mut copies);
            // Dropped by a flush meanwhile.
            copies.values().for_each(|copy| self.shelf().release(copy));
            self.chunk_files.write_batches();
        }
        count
    }

    /// Puts the copies in the places of their originals, as far as these are still there, and takes them out of `copies`.
    fn replace(&self, page: &RwLock<Page>, copied: Vec<StoredChunk>, copies: &mut HashMap<ChunkAddress, StoredChunk>) {
        // An append that looks a sample up reads its chunk without the page's lock, but with this one.
        let _appender = self.appender.lock();
        page.write().replace_chunks(copies);
        let is_replaced = |chunk: &StoredChunk| !copies.contains_key(&chunk.address);
        let mut view = self.view.lock();
        view.epoch += 1;
        let epoch = view.epoch;
        drop(view);
        let old = copied.into_iter().filter(is_replaced).collect();
        self.moved.lock().push(Moved { epoch, old });
    }

    /// Gives up what has been moved, as far as no reader is in the way.
    pub(super) fn release_moved(&self) {
        let mut moved = self.moved.lock();
        moved.retain(|moved| {
            let is_pinned = self.view.lock().is_pinned_before(moved.epoch);
            if !is_pinned {
                moved.old.iter().for_each(|chunk| self.shelf().release(chunk));
            }
            is_pinned
        });
    }
}
