//! The head: one tenant's recent series, in memory.
//!
//! Where things are: a series' labels are symbols in [`index`], which also holds the postings; its state, open chunk and
//! out-of-order samples are in a [`page`] of up to 1,024 series, which knows where in the [`chunk_files`] its closed
//! chunks lie; [`table`] finds its slot by hash, and [`slots`] gives slots out. [`labels`] says which series matchers select.
//!
//! An append ([`append`]) resolves and validates all samples of a request, logs them, and then stores them; a read
//! ([`select`]) copies chunks page by page, and reads closed ones through [`stored`]; a flush ([`cut`]) hands out whole
//! aligned ranges, then drops them; [`move_chunks`] empties files of which little is left; [`replay`] rebuilds all of it
//! from the log and from what [`snapshot`] wrote. [`changes`] counts what changed of older times. [`exemplars`] and [`metadata`] are bounded stores beside the series.
//!
//! Locking order: `appender` → `index` → a page → `exemplars`, `metadata`, `moved`, `changes` → `view`; the locks of the log and of
//! the chunk files are innermost.
//!
//! Absent on purpose: tenants, clocks, files other than the log's and the chunk files, threads.

mod append;
mod changes;
mod chunk_files;
mod cold;
#[cfg(test)]
mod crash_tests;
mod cut;
mod digest;
mod exemplars;
mod index;
mod labels;
mod metadata;
mod missing;
mod move_chunks;
mod page;
mod reading;
mod recode;
mod ref_set;
mod replay;
mod sample;
mod select;
mod side;
mod sizing;
mod slab;
mod slots;
mod snapshot;
#[cfg(test)]
mod snapshot_tests;
mod stored;
mod symbols;
mod table;
#[cfg(test)]
mod tests;
mod value_order;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicIsize, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use skald_model::{QueryRange, TimestampMs};

use self::changes::Changes;
use self::exemplars::ExemplarStore;
use self::index::Index;
use self::metadata::MetadataStore;
use self::page::{PAGE_SERIES, Page, Rules};
use self::stored::Shelf;
use self::table::SeriesTable;
use crate::postings::SeriesRef;
use crate::wal::{Cut, Generation, HeadId, SegmentId};

pub use append::{
    AppendError, AppendLimits, Appended, ImportError, ImportLimits, Imported, RejectReason, RejectedKind, Rejection,
    SeriesAppend, SeriesImport,
};
pub use changes::{ChangeSnapshot, DataVersion};
pub use chunk_files::{
    ChunkAddress, ChunkFileOptions, ChunkFileStats, ChunkFiles, ChunkReadError, NewChunk, Pin, StoredChunk,
};
pub use cut::{CutExtent, Dropped};
pub use digest::{HashRange, PartDigest, SampleDigest, SeriesDigest};
pub use exemplars::SeriesExemplars;
pub use metadata::{MetadataLimits, MetadataOutcome};
pub use missing::{Missing, missing};
pub use replay::ReplayHeads;
pub use select::Select;
pub use snapshot::{HeadsSnapshot, SnapshotProgress};
pub use stored::{LostChunk, LostChunks};

/// How a head stores its samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadOptions {
    /// Length of the aligned ranges that chunks do not cross and blocks cover. Positive; default 2 h.
    pub block_range_ms: i64,
}

impl Default for HeadOptions {
    fn default() -> Self {
        Self { block_range_ms: 2 * 3600 * 1000 }
    }
}

/// A head's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeadStats {
    /// Series.
    pub series: usize,
    /// Label names and values in use.
    pub symbols: usize,
    /// Exemplars.
    pub exemplars: usize,
    /// Heap bytes of series, open chunks, symbols and postings.
    pub heap_bytes: usize,
}

/// One tenant's recent series. All methods may be called from several threads.
pub struct Head {
    id: HeadId,
    options: HeadOptions,
    chunk_files: Arc<ChunkFiles>,
    /// What appends change besides the series themselves. Held from the first validation of a request until its samples
    /// are stored, the log's write included: see [`append`] for why.
    appender: Mutex<Appender>,
    index: RwLock<Index>,
    /// Grows only; the pages are shared with the appender.
    pages: RwLock<Vec<Arc<RwLock<Page>>>>,
    /// The newest and oldest sample; `MIN` and `MAX` while there is none.
    max_time: AtomicI64,
    min_time: AtomicI64,
    series: AtomicUsize,
    /// Copy of the appender's, for readers.
    boundary: AtomicI64,
    /// Heap bytes of out-of-order samples. Changed under the appender's lock.
    late_bytes: AtomicIsize,
    view: Mutex<View>,
    exemplars: Mutex<ExemplarStore>,
    metadata: Mutex<MetadataStore>,
    moved: Mutex<Vec<move_chunks::Moved>>,
    changes: Mutex<Changes>,
}

/// The part of the head that appends own.
#[derive(Default)]
struct Appender {
    table: SeriesTable,
    pages: Vec<Arc<RwLock<Page>>>,
    /// Slots whose series are gone, oldest first. A slot is used again when neither the log nor a reader can mean the
    /// old series any more.
    retired: VecDeque<Retired>,
    next_slot: SeriesRef,
    generation: Generation,
    /// In-order samples are at or above this.
    boundary: TimestampMs,
    replay: replay::ReplayState,
}

/// Neighbours that retired one after the other: a flush lets whole pages go.
struct Retired {
    first: SeriesRef,
    count: u32,
    segment: SegmentId,
    /// Of the last one.
    epoch: u64,
}

/// What readers see, and who is reading.
struct View {
    /// What blocks show instead of the head.
    hidden: Cut,
    /// The epoch since which it is.
    hidden_since: u64,
    /// What has been dropped of it.
    dropped: Cut,
    /// Grows whenever `hidden` does or slots retire.
    epoch: u64,
    /// Readers by the epoch in which they began.
    readers: BTreeMap<u64, usize>,
}

impl View {
    /// Whether somebody reads who began before `epoch`.
    fn is_pinned_before(&self, epoch: u64) -> bool {
        self.readers.first_key_value().is_some_and(|(oldest, _)| *oldest < epoch)
    }
}

impl Head {
    /// An empty head, registered with the log as `id`, whose closed chunks go to `chunk_files`.
    pub fn new(id: HeadId, options: HeadOptions, chunk_files: Arc<ChunkFiles>) -> Self {
        assert!(options.block_range_ms > 0, "a block range is positive");
        Self {
            id,
            options,
            chunk_files,
            appender: Mutex::new(Appender { boundary: TimestampMs::MIN, ..Appender::default() }),
            index: RwLock::default(),
            pages: RwLock::default(),
            max_time: AtomicI64::new(TimestampMs::MIN),
            min_time: AtomicI64::new(TimestampMs::MAX),
            series: AtomicUsize::new(0),
            boundary: AtomicI64::new(TimestampMs::MIN),
            late_bytes: AtomicIsize::new(0),
            view: Mutex::new(View {
                hidden: Cut::NONE,
                hidden_since: 0,
                dropped: Cut::NONE,
                epoch: 0,
                readers: BTreeMap::new(),
            }),
            exemplars: Mutex::default(),
            metadata: Mutex::default(),
            moved: Mutex::default(),
            changes: Mutex::new(Changes::new(0)),
        }
    }

    /// Its number in the log.
    pub fn id(&self) -> HeadId {
        self.id
    }

    /// The options it was made with.
    pub fn options(&self) -> HeadOptions {
        self.options
    }

    /// Number of series.
    pub fn series_count(&self) -> usize {
        self.series.load(Ordering::Relaxed)
    }

    /// Time of the newest sample ever stored.
    pub fn max_time(&self) -> Option<TimestampMs> {
        Some(self.max_time.load(Ordering::Relaxed)).filter(|t| *t != TimestampMs::MIN)
    }

    /// Time of the oldest sample, or something older.
    pub fn min_time(&self) -> Option<TimestampMs> {
        Some(self.min_time.load(Ordering::Relaxed)).filter(|t| *t != TimestampMs::MAX)
    }

    /// From the oldest to the newest sample, or a little more; `None` while there never was one.
    pub fn time_range(&self) -> Option<QueryRange> {
        self.min_time().zip(self.max_time()).map(|(min, max)| QueryRange { min, max: max.max(min) })
    }

    /// The cut boundary: older samples are stored only as late ones, within the out-of-order window.
    pub fn boundary(&self) -> TimestampMs {
        self.boundary.load(Ordering::Relaxed)
    }

    /// Heap bytes of samples that came out of order or were imported, and wait for the next cut.
    pub fn late_bytes(&self) -> usize {
        usize::try_from(self.late_bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Counts them anew. No append runs.
    fn count_late_bytes(&self, appender: &Appender) {
        let bytes: usize = appender.pages.iter().map(|page| page.read().late_bytes()).sum();
        self.late_bytes.store(bytes as isize, Ordering::Relaxed);
    }

    /// Sizes; walks every page.
    pub fn stats(&self) -> HeadStats {
        let table_bytes = {
            let appender = self.appender.lock();
            appender.table.heap_bytes() + appender.retired.capacity() * size_of::<Retired>()
        };
        let (symbols, index_bytes) = {
            let index = self.index.read();
            (index.symbols.len(), index.heap_bytes())
        };
        let pages = self.pages.read().clone();
        let page_bytes: usize = pages.iter().map(|page| page.read().heap_bytes() + size_of::<RwLock<Page>>()).sum();
        let exemplars = self.exemplars.lock().len();
        let heap_bytes = table_bytes + index_bytes + page_bytes;
        HeadStats { series: self.series_count(), symbols, exemplars, heap_bytes }
    }

    fn rules(&self, boundary: TimestampMs) -> Rules<'_> {
        Rules { range_ms: self.options.block_range_ms, boundary, shelf: self.shelf() }
    }

    fn shelf(&self) -> Shelf<'_> {
        Shelf { files: &self.chunk_files, head: self.id }
    }

    fn note_times(&self, min: TimestampMs, max: TimestampMs) {
        if min <= max {
            self.min_time.fetch_min(min, Ordering::Relaxed);
            self.max_time.fetch_max(max, Ordering::Relaxed);
        }
    }
}

/// Page number and index within the page.
#[inline]
fn locate(slot: SeriesRef) -> (usize, usize) {
    (slot as usize / PAGE_SERIES, slot as usize % PAGE_SERIES)
}
