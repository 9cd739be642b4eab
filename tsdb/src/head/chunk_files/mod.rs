//! Chunk files: where closed chunks lie, so that memory holds only what is hot.
//!
//! One set of files serves every head of an ingester. [`mod@write`] takes chunks into a buffer, gives them their address at
//! once, and writes the buffer in batches; [`read`] finds a chunk by its address in buffer or file and verifies it;
//! [`record`] is the bytes, `FORMAT.md` beside this file their description; [`file_set`] counts what lives where.
//!
//! - What the files hold is in the log, too, until a snapshot of the log names their records: then they are its part. Such
//!   a snapshot pins the files ([`Pin`]), and syncs them before it counts; a start opens them and retains what it finds
//!   named ([`ChunkFiles::retain_sound`]).
//! - A batch that cannot be written (a full disk) stays in memory, is readable there, and is tried again. Beyond
//!   [`ChunkFileOptions::memory_budget`] heads take no more samples until that works.
//! - A file is removed when no head has a chunk in it and no snapshot pins it ([`ChunkFiles::pin`]). When files are mostly
//!   waste, because some heads keep old chunks for long, [`ChunkFiles::sparse_files`] names those to be emptied.
//!
//! Locking: `writer` is taken before `state`; `state` is innermost of the crate, and no I/O is done while it is held.
//!
//! Absent on purpose: threads and timers. Who appends writes full batches afterwards; the caller tries again after
//! failures and removes files ([`ChunkFiles::upkeep`]).

mod buffers;
mod file_set;
mod read;
mod record;
#[cfg(test)]
mod tests;
mod write;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use skald_model::TimestampMs;

use self::buffers::Buffers;
use self::file_set::FileSet;
use crate::chunk::Encoding;
use crate::disk::Disk;
use crate::wal::HeadId;

pub use file_set::Pin;
pub use read::ChunkReadError;
pub use write::NewChunk;

/// Where a chunk lies. Stays true across restarts, as long as its file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkAddress {
    /// The file's number.
    pub file: u32,
    /// Offset of the record in the file.
    pub offset: u32,
    /// Length of the chunk's data.
    pub len: u32,
}

/// A closed chunk as its series remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredChunk {
    /// Time of the first sample.
    pub min_time: TimestampMs,
    /// Time of the last sample.
    pub max_time: TimestampMs,
    /// How it is coded.
    pub encoding: Encoding,
    /// Samples in it: what is lost if it cannot be read.
    pub samples: u16,
    /// Checksum of its record, which covers the address: another record never passes for it, whatever a file holds.
    pub crc: u32,
    /// Where it lies.
    pub address: ChunkAddress,
}

/// How chunk files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkFileOptions {
    /// Size at which a file is complete and another begun. At most 1 GiB.
    pub file_bytes: u32,
    /// Bytes written at once. Large enough that a write's fixed cost vanishes, small enough that one takes well below a
    /// millisecond.
    pub batch_bytes: usize,
    /// Bytes of chunks that may wait in memory while they cannot be written.
    pub memory_budget: u64,
}

impl Default for ChunkFileOptions {
    fn default() -> Self {
        Self { file_bytes: 128 << 20, batch_bytes: 256 << 10, memory_budget: 256 << 20 }
    }
}

/// What there is, and what went wrong since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChunkFileStats {
    /// Files.
    pub files: usize,
    /// Bytes of all files, those not yet written included.
    pub bytes: u64,
    /// Of these, bytes of chunks that a head still has.
    pub live_bytes: u64,
    /// Chunks that a head still has.
    pub live_chunks: u64,
    /// Bytes waiting in memory.
    pub pending_bytes: u64,
    /// Writes that failed.
    pub write_failures: u64,
    /// Chunks that could not be read.
    pub lost_reads: u64,
}

/// The chunk files of one directory. All methods may be called from several threads.
pub struct ChunkFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: ChunkFileOptions,
    /// One writes at a time.
    writer: Mutex<()>,
    state: Mutex<FileSet>,
    /// Copies of the state's, to be looked at without its lock.
    pending_bytes: AtomicU64,
    waiting_batches: AtomicUsize,
    /// The last write failed: appends do not try again, the upkeep does.
    failing: AtomicBool,
    write_failures: AtomicU64,
    lost_reads: AtomicU64,
    buffers: Arc<Buffers>,
}

impl ChunkFiles {
    /// Opens the files in `dir`, which is created if need be. Nothing in them is referenced yet: [`ChunkFiles::pin`] those
    /// that snapshots name, then call [`ChunkFiles::upkeep`], which removes the rest.
    ///
    /// Nothing has to be written, so a full disk is no obstacle. A file that cannot be read is left alone.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: ChunkFileOptions) -> io::Result<Self> {
        if !disk.exists(dir) {
            disk.create_dir_all(dir)?;
        }
        let state = FileSet::open(disk.as_ref(), dir)?;
        let options = ChunkFileOptions { file_bytes: options.file_bytes.clamp(1 << 12, 1 << 30), ..options };
        Ok(Self {
            disk,
            dir: dir.to_owned(),
            options,
            writer: Mutex::new(()),
            state: Mutex::new(state),
            pending_bytes: AtomicU64::new(0),
            waiting_batches: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
            write_failures: AtomicU64::new(0),
            lost_reads: AtomicU64::new(0),
            buffers: Arc::default(),
        })
    }

    /// Whether so much waits in memory that nothing more should be stored.
    pub fn is_over_budget(&self) -> bool {
        self.pending_bytes.load(Ordering::Relaxed) > self.options.memory_budget
    }

    /// Sizes and counts.
    pub fn stats(&self) -> ChunkFileStats {
        let mut stats = self.state.lock().stats();
        stats.pending_bytes = self.pending_bytes.load(Ordering::Relaxed);
        stats.write_failures = self.write_failures.load(Ordering::Relaxed);
        stats.lost_reads = self.lost_reads.load(Ordering::Relaxed);
        stats
    }

    /// Reads chunks of `head` that an earlier process wrote, and takes those into use that are sound; says which are.
    #[must_use]
    pub fn retain_sound(&self, head: HeadId, chunks: &[StoredChunk]) -> Vec<bool> {
        let read = self.read_all(head, chunks);
        let mut state = self.state.lock();
        read.iter().zip(chunks).map(|(read, chunk)| read.is_ok() && state.retain(chunk.address)).collect()
    }

    /// Never gives these numbers and those before them to a new file, whether their files are there or not: a snapshot
    /// refers to them.
    pub fn reserve(&self, file: u32) {
        self.state.lock().reserve(file);
    }

    /// The numbers of all files.
    pub fn numbers(&self) -> Vec<u32> {
        self.state.lock().files.keys().copied().collect()
    }

    /// Gives a chunk up. Its file is removed by a later [`ChunkFiles::upkeep`] when it was the last one in it.
    pub fn release(&self, address: ChunkAddress) {
        let mut state = self.state.lock();
        state.release(address);
        self.publish(&state);
    }

    /// A guard that keeps files whatever heads release: what a snapshot holds.
    pub fn pin(self: &Arc<Self>) -> Pin {
        Pin::new(Arc::clone(self))
    }

    /// The files that [`super::Head::move_chunks`] is to empty: those whose fsync failed, and those that hold little that is
    /// live, once all files together are mostly waste. As long as files take at most three times what is live, and four
    /// files more, there are none of the latter.
    pub fn sparse_files(&self) -> BTreeSet<u32> {
        self.state.lock().sparse_files(4 * u64::from(self.options.file_bytes))
    }

    /// Tries again what could not be written, and removes files that nobody needs. To be called every second or so.
    pub fn upkeep(&self) {
        if self.waiting_batches.load(Ordering::Relaxed) > 0 {
            // Counted where it fails; what is not written is still in memory.
            let _ = self.write_waiting();
        }
        self.buffers.clear();
        let unneeded = self.state.lock().take_unneeded();
        for file in unneeded {
            // A file that stays is found, unreferenced, by the next start.
            let _ = self.disk.remove_file(&self.dir.join(file_set::file_name(file)));
        }
    }
}
